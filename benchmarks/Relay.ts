/**
 * A relay that has a full log before it: how many events a second it moves to a broker, and marks as moved, beside the same events read
 * from the store and handed to the same publisher without any order, mark or lease.
 *
 * The servers are started from the programs that this machine has; one that it has not is left out, and said so.
 *
 *     node benchmarks/Relay.ts [--quick] [--json FILE]
 */
import { Context, Effect, Layer, References, type Scope, Stream } from "effect"
import assert from "node:assert/strict"
import { spawnSync } from "node:child_process"
import { mkdtempSync, rmSync } from "node:fs"
import { tmpdir } from "node:os"
import { join } from "node:path"
import * as EventPublisher from "../src/EventPublisher.ts"
import * as EventStore from "../src/EventStore.ts"
import * as Nats from "../src/publishers/Nats.ts"
import * as Redis from "../src/publishers/Redis.ts"
import * as Relay from "../src/Relay.ts"
import { ownNats, ownRedis } from "../test/fixtures/ownServer.ts"
import { eventsOf } from "./events.ts"
import { main, median, minimum, type Report } from "./harness.ts"

type Target = Layer.Layer<EventPublisher.EventPublisher, unknown>

interface Broker {
  readonly name: string
  readonly program?: string
  /** Gives a publisher that acknowledges, whose topic nobody has used. */
  readonly open: Effect.Effect<(round: number) => Target, never, Scope.Scope>
}

const brokers: ReadonlyArray<Broker> = [
  {
    name: "nowhere: a publisher that acknowledges at once",
    open: Effect.succeed(() => EventPublisher.layer({ policy: "closed", publish: () => {} }))
  },
  {
    name: "NATS JetStream",
    program: "nats-server",
    open: Effect.map(
      ownNats(),
      ({ url: servers }) => (round: number) =>
        Nats.layerPublisher({ servers, prefix: `round${round}`, policy: "closed" })
    )
  },
  {
    name: "Redis Streams",
    program: "redis-server",
    open: Effect.map(
      ownRedis(),
      ({ url }) => (round: number) => Redis.layerPublisher({ url, key: `round${round}`, policy: "closed" })
    )
  }
]

const seconds = Effect.fnUntraced(function*<E, R>(effect: Effect.Effect<unknown, E, R>) {
  const begun = performance.now()
  yield* effect
  return (performance.now() - begun) / 1000
})

const inFlight = 256

/** Reads and publishes, and nothing else. */
const byHand = (store: EventStore.Store, to: Target, count: number) =>
  Effect.scoped(Effect.gen(function*() {
    const publisher = Context.get(yield* Layer.build(to), EventPublisher.EventPublisher)
    return yield* seconds(
      store.tail().pipe(
        Stream.take(count),
        Stream.mapEffect(({ event }) => publisher.publish(event), { concurrency: inFlight, unordered: true }),
        Stream.runDrain
      )
    )
  }))

const byRelay = (store: EventStore.Store, to: Target, count: number, round: string) =>
  Effect.scoped(Effect.gen(function*() {
    const relay = Relay.make({ name: round, to, maxInFlight: inFlight })
    return yield* seconds(Effect.gen(function*() {
      const { status } = yield* Effect.provideService(relay, EventStore.EventStore, store)
      yield* Effect.repeat(Effect.delay(status, "2 millis"), { until: ({ lag_events }) => lag_events === 0 })
      assert.equal((yield* status).relayed, count)
    }))
  }))

const program = Effect.fnUntraced(function*(quick: boolean) {
  const count = quick ? 1000 : 40_000
  const rounds = quick ? 1 : 5
  const folder = yield* Effect.acquireRelease(
    Effect.sync(() => mkdtempSync(join(tmpdir(), "effect-units-bench-"))),
    (path) => Effect.sync(() => rmSync(path, { recursive: true, force: true }))
  )
  const store = Context.get(
    yield* Layer.build(EventStore.layerSqlite({ filename: join(folder, "events.db") })),
    EventStore.EventStore
  )
  yield* store.append(eventsOf(count, 100))
  const rows: Array<Report["rows"][number]> = []
  const leftOut: Array<string> = []
  for (const { name, open, program } of brokers) {
    if (program !== undefined && spawnSync(program, ["--version"]).error !== undefined) {
      leftOut.push(`${name} is left out: ${program} is not installed.`)
      continue
    }
    yield* Effect.scoped(Effect.gen(function*() {
      const target = yield* open
      const hand: Array<number> = []
      const relay: Array<number> = []
      for (let round = 0; round < rounds; round++) {
        hand.push(yield* byHand(store, target(2 * round), count))
        relay.push(yield* byRelay(store, target(2 * round + 1), count, `${name} ${round}`))
      }
      rows.push({
        to: name,
        "a second": Math.round(count / minimum(relay)).toLocaleString("en"),
        "median a second": Math.round(count / median(relay)).toLocaleString("en"),
        "by hand, a second": Math.round(count / minimum(hand)).toLocaleString("en")
      })
    }))
  }
  const report: Report = {
    title: "Relay: from a log on SQLite to a broker, events that are acknowledged and marked",
    rows,
    notes: [
      `The best and the median of ${rounds} rounds of ${
        count.toLocaleString("en")
      } events; batches of 500, ${inFlight} in flight. By hand the same ` +
      "events are read and published, in no order, and nothing is remembered.",
      ...leftOut
    ],
    targets: []
  }
  return report
}, Effect.scoped)

export const run = (quick: boolean): Promise<Report> =>
  Effect.runPromise(Effect.provideService(program(quick), References.MinimumLogLevel, "None"))

if (import.meta.main) await main([run])
