/**
 * A relay that has a full log before it: how many events a second it moves to a broker, and marks as moved, beside the same events read
 * from the store and handed to the same publisher without any order, mark or lease. Then the same relay at the end of a log that holds a
 * million events, beside one in a small log, and while old events are deleted.
 *
 * The servers are started from the programs that this machine has; one that it has not is left out, and said so.
 *
 *     node benchmarks/Relay.ts [--quick] [--json FILE]
 */
import { Context, Deferred, Effect, Layer, References, type Scope, Stream } from "effect"
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
import { append, appending, type Database, onEach } from "./databases.ts"
import { eventsOf } from "./events.ts"
import { main, median, minimum, type Report, whole } from "./harness.ts"

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

/** Takes up a relay where it is, lets it move so many events, and gives how many a second. */
const drain = Effect.fnUntraced(function*(store: EventStore.Store, count: number) {
  const done = yield* Deferred.make<void>()
  let moved = 0
  const to = EventPublisher.layer({
    policy: "closed",
    // What is beyond that is left to the next round.
    publish: () =>
      Effect.suspend(() => {
        if (++moved === count) Deferred.doneUnsafe(done, Effect.void)
        return moved > count ? Effect.never : Effect.void
      })
  })
  const begun = performance.now()
  yield* Effect.provideService(
    Relay.make({ name: "relay", to, from: "new", flushTimeout: 0 }),
    EventStore.EventStore,
    store
  )
  yield* Deferred.await(done)
  return count / (performance.now() - begun) * 1000
}, Effect.scoped)

/** Deletes old events while others are appended and moved; the longest that nothing was moved, in milliseconds. */
const besidePruning = Effect.fnUntraced(function*(store: EventStore.Store, keep: number) {
  let last = performance.now()
  let longest = 0
  let moved = 0
  const to = EventPublisher.layer({
    policy: "closed",
    publish: () => {
      longest = Math.max(longest, performance.now() - last)
      last = performance.now()
      moved++
    }
  })
  yield* Effect.provideService(Relay.make({ name: "relay", to }), EventStore.EventStore, store)
  const begun = performance.now()
  const appended = yield* appending(store, store.prune({ keep }), Effect.sleep("100 millis"))
  return {
    appended,
    idle: Math.max(longest, performance.now() - last),
    rate: moved / (performance.now() - begun) * 1000
  }
}, Effect.scoped)

const measureLog = Effect.fnUntraced(function*(database: Database, quick: boolean) {
  const stored = quick ? 20_000 : 1_000_000
  const pending = quick ? 5000 : 100_000
  const count = quick ? 1000 : 10_000
  const rounds = quick ? 2 : 5
  const small = yield* database.open("small")
  const large = yield* database.open("large")
  yield* append(large, stored)
  // It begins behind what is stored, as if it had moved that.
  yield* Effect.forEach([small, large], (store) =>
    Effect.scoped(Effect.provideService(
      Relay.make({ name: "relay", to: EventPublisher.layer({ policy: "closed", publish: () => {} }), from: "new" }),
      EventStore.EventStore,
      store
    )))
  yield* append(small, (rounds + 1) * count)
  yield* append(large, pending)
  const rates: Record<"small" | "large", Array<number>> = { small: [], large: [] }
  for (let round = -1; round < rounds; round++) {
    const inSmall = yield* drain(small, count)
    const inLarge = yield* drain(large, count)
    if (round < 0) continue
    rates.small.push(inSmall)
    rates.large.push(inLarge)
  }
  assert.ok((rounds + 1) * count <= pending, "the relay has come to the end")
  const { appended, idle, rate } = yield* besidePruning(large, pending + stored / 2)
  assert.ok(appended.result.events > 0, "nothing was pruned")
  return {
    small: median(rates.small),
    large: median(rates.large),
    beside: rate,
    idle,
    appended: appended.rate,
    longest: appended.longest,
    deleted: appended.result.events
  }
}, Effect.scoped)

/** A relay in a large log. */
export const runLog = async (quick: boolean): Promise<Report> => {
  const { leftOut, measured } = await onEach((database) =>
    Effect.provideService(measureLog(database, quick), References.MinimumLogLevel, "None")
  )
  const [stored, pending] = quick ? ["20,000", "5,000"] : ["1,000,000", "100,000"]
  return {
    title: `Relay: ${stored} events sent, ${pending} pending`,
    rows: measured.map(([database, { appended, beside, deleted, idle, large, longest, small }]) => ({
      database,
      "moved/s, small log": whole(small),
      "moved/s, large log": whole(large),
      "moved/s while pruning": whole(beside),
      "longest without any, ms": idle.toFixed(1),
      "appended/s while pruning": whole(appended),
      "longest append of 500, ms": longest.toFixed(1),
      pruned: whole(deleted)
    })),
    notes: [
      "Moved: read, handed to a publisher that acknowledges at once, and marked, in batches of 500; the median of some rounds, in turns. " +
      "Pruning deletes half of what is stored while another fiber of the process appends 500 events at most ten times a second, and the relay moves them.",
      ...leftOut
    ],
    targets: measured.flatMap(([database, { idle, large, longest, small }]) => [
      {
        target: `${database}: in the large log at least 80 % as fast as in the small one`,
        measured: `${Math.round(100 * large / small)} %`,
        met: large >= 0.8 * small
      },
      {
        target: `${database}: no append waits for pruning longer than a second`,
        measured: `${longest.toFixed(1)} ms`,
        met: longest < 1000
      },
      {
        target: `${database}: the relay does not wait for pruning longer than a second`,
        measured: `${idle.toFixed(1)} ms`,
        met: idle < 1000
      }
    ])
  }
}

if (import.meta.main) await main([run, runLog])
