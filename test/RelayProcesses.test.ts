/** Relays as processes of their own, that are killed in the middle of it, or stand still and come to themselves too late. */
import { assert, describe, it } from "@effect/vitest"
import { Context, Effect, Fiber, Layer, Option, Queue } from "effect"
import * as fs from "node:fs"
import * as os from "node:os"
import * as path from "node:path"
import { EventPublisher, EventStore, Relay } from "../src/index.ts"
import * as ChildProcess from "./fixtures/childProcess.ts"
import { completed, domainEvent, started } from "./fixtures/events.ts"
import { newName } from "./fixtures/names.ts"
import { clientOf, schemas, type Where } from "./fixtures/transactionalWorld.ts"
import { stress, withServer } from "./servers.ts"

const temporaryFolder = Effect.acquireRelease(
  Effect.sync(() => fs.mkdtempSync(path.join(os.tmpdir(), "effect-units-relay-"))),
  (directory) => Effect.sync(() => fs.rmSync(directory, { recursive: true }))
)

const openStore = (where: Where, seed: number) =>
  Effect.map(
    Layer.build(Layer.fresh(Layer.provide(EventStore.layer(), clientOf(where, seed, false)))),
    (context) => Context.get(context, EventStore.EventStore)
  )

/** Trees of four events, of which several are under way at a time. */
const trees = (count: number, prefix = ""): ReadonlyArray<EventPublisher.Event> => {
  const all = Array.from({ length: count }, (_, index) => {
    const id = `${prefix}${index}`
    return [
      started(id),
      started(`${id}-child`, { root: id }),
      domainEvent(`${id}-said`, { correlation: id }),
      completed(`${id}-child`, { root: id }),
      completed(id)
    ]
  })
  return Array.from({ length: count + 4 }, (_, turn) =>
    all.flatMap((events, index) => {
      const event = turn - index >= 0 && turn - index < events.length ? events[turn - index] : undefined
      return event === undefined ? [] : [event]
    })).flat()
}

/** Up to where a shard is marked. */
const placeOf = (store: EventStore.Store, shard = 0) =>
  Effect.map(store.checkpoint(`relay x ${shard}`), Option.getOrElse(() => 0))

const sent = (directory: string, seed: number): ReadonlyArray<string> => {
  const file = path.join(directory, `${seed}.log`)
  return fs.existsSync(file) ? fs.readFileSync(file, "utf8").split("\n").slice(0, -1) : []
}

/** Every event arrived, and of each tree first in the order of the log. */
const assertAll = (events: ReadonlyArray<EventPublisher.Event>, arrived: ReadonlyArray<string>): void => {
  const first = new Map<string, number>()
  for (const [index, id] of arrived.entries()) if (!first.has(id)) first.set(id, index)
  const last = new Map<string, number>()
  for (const { id, root_id = "" } of events) {
    const at = first.get(id) ?? -1
    assert.isAbove(at, last.get(root_id) ?? -1, `${id} came too early, or not at all`)
    last.set(root_id, at)
  }
  assert.strictEqual(first.size, events.length)
}
const steps = ["before publish", "while publishing", "after publish", "before mark", "after mark", "after commit"]

/** Lets relays of many worlds die at each step, one process a step, and looks at what they have sent and marked. */
const crashEverywhere = Effect.fnUntraced(function*(
  where: Where,
  directory: string,
  worlds: number,
  gone: (seeds: ReadonlyArray<number>) => Effect.Effect<void>
) {
  const seeds = Array.from({ length: worlds }, (_, seed) => seed)
  const events = trees(60)
  const offsets = new Map(events.map(({ id }, index) => [id, index + 1]))
  const position = (seed: number) => Effect.scoped(Effect.flatMap(openStore(where, seed), (store) => placeOf(store)))
  for (const seed of seeds) {
    yield* Effect.scoped(Effect.flatMap(openStore(where, seed), (store) => store.append(events)))
  }
  const before = new Map(seeds.map((seed) => [seed, { position: 0, lines: 0 }]))
  let repeated = 0
  for (const step of steps) {
    const child = yield* ChildProcess.start(
      "relayProcess.ts",
      "crash",
      JSON.stringify(where),
      directory,
      step,
      ...seeds.map(String)
    )
    assert.deepStrictEqual(yield* Queue.collect(child.lines), [`stopped ${worlds}, ${worlds} at the step`])
    yield* gone(seeds)
    for (const seed of seeds) {
      const batch = 5 + seed % 8
      const was = before.get(seed) ?? { position: 0, lines: 0 }
      const lines = sent(directory, seed)
      const now = yield* position(seed)
      const latest = lines.slice(was.lines).map((id) => offsets.get(id) ?? 0)
      // Nothing that was marked is sent again, nothing is marked that was not sent, and nothing is far ahead of the mark.
      assert.isAbove(Math.min(...latest, Infinity), was.position)
      assert.deepStrictEqual(
        events.slice(0, now).filter(({ id }) => !lines.includes(id)),
        []
      )
      assert.isAtMost(Math.max(...latest, 0), now + batch)
      assert.strictEqual(new Set(latest).size, latest.length)
      repeated += latest.filter((offset) => lines.slice(0, was.lines).includes(events[offset - 1]!.id)).length
      before.set(seed, { position: now, lines: lines.length })
    }
  }
  assert.isAbove(repeated, worlds)
  for (const seed of seeds) {
    const to = EventPublisher.layer({
      policy: "closed",
      publish: ({ id }) => Effect.sync(() => fs.appendFileSync(path.join(directory, `${seed}.log`), `${id}\n`))
    })
    yield* Effect.scoped(Effect.gen(function*() {
      const store = yield* openStore(where, seed)
      const relay = yield* Effect.provideService(
        Relay.make({ name: "x", to }),
        EventStore.EventStore,
        store
      )
      yield* Effect.repeat(Effect.andThen(Effect.yieldNow, relay.status), {
        until: (status) => status.lag_events === 0
      })
    }))
    assertAll(events, sent(directory, seed))
  }
})

/** One of several processes stands still past its lease, while events come, and comes to itself too late. */
const standStill = Effect.fnUntraced(function*(where: Where, directory: string, processes: number, shards: number) {
  const store = yield* openStore(where, 0)
  const { sql } = store
  // One after the other, so that who is new among the members is known.
  const known = new Set<string>()
  const children = yield* Effect.forEach(Array.from({ length: processes }), () =>
    Effect.gen(function*() {
      const child = yield* ChildProcess.start(
        "relayProcess.ts",
        "run",
        JSON.stringify(where),
        directory,
        "1500",
        String(shards)
      )
      const members = sql<{ member: string }>`SELECT member FROM effect_units_relay_members`
      const rows = yield* Effect.repeat(Effect.orElseSucceed(members, () => []), {
        until: (rows) => rows.some(({ member }) => !known.has(member))
      })
      const member = rows.map((row) => row.member).find((member) => !known.has(member)) ?? ""
      known.add(member)
      return { ...child, member }
    }))
  const events: Array<EventPublisher.Event> = []
  let batches = 0
  // What is expected is stored, whatever interrupts it.
  const append = Effect.uninterruptible(Effect.suspend(() => {
    const more = trees(10, `${batches++}:`)
    events.push(...more)
    return store.append(more)
  }))
  // Events come all the while.
  const load = yield* Effect.forkChild(Effect.forever(Effect.andThen(append, Effect.sleep("20 millis"))))
  const sends = (child: (typeof children)[number]) =>
    Effect.repeat(Queue.take(child.lines), { until: (line) => line === "sent" })
  // Within a transaction: one that stood still with SQLite's lock would let nobody write.
  const stop = (child: (typeof children)[number]) =>
    store.withTransaction(Effect.andThen(
      child.stop,
      sql`SELECT shard FROM effect_units_relay_shards WHERE member = ${child.member}`
    ))
  // Whoever sends first stands still, in the middle of it, unless it has just given its shards to others.
  const stopFirst = Effect.gen(function*() {
    const child = yield* Effect.raceAllFirst(children.map((child) => Effect.as(sends(child), child)))
    const held = yield* stop(child)
    if (held.length === 0) yield* child.signal("SIGCONT")
    return { child, held }
  })
  const { child: stopped } = yield* Effect.repeat(stopFirst, { until: ({ held }) => held.length > 0 })
  const others = children.filter((child) => child !== stopped)
  // Others take all of the shards.
  const taken = sql`SELECT shard FROM effect_units_relay_shards WHERE member <> ${stopped.member}`
  yield* Effect.repeat(Effect.andThen(Effect.sleep("20 millis"), taken), {
    until: (rows) => rows.length === shards
  })
  yield* Effect.raceAllFirst(others.map(sends))
  yield* stopped.signal("SIGCONT")
  yield* Effect.repeat(Queue.take(stopped.lines), { until: (line) => line.includes("has lost shard") })
  yield* append
  yield* Fiber.interrupt(load)
  const positions = Effect.forEach(
    Array.from({ length: shards }, (_, shard) => shard),
    (shard) => placeOf(store, shard)
  )
  yield* Effect.repeat(Effect.andThen(Effect.sleep("20 millis"), positions), {
    until: (list) => Math.min(...list) === events.length
  })
  assertAll(events, sent(directory, 0))
})

const killed = (worlds: number) =>
  `killed at any step, they lose nothing, keep order, and repeat what they had not marked, ${worlds} times a step`

const stoodStill = (processes: number, shards: number) =>
  `${processes} processes, ${shards} shards: one that stands still past its lease loses nothing, and no order`

const worlds = 20 * Math.max(1, stress)

describe("relays from SQLite", () => {
  it.live(killed(worlds), () =>
    Effect.gen(function*() {
      const directory = yield* temporaryFolder
      yield* crashEverywhere({ directory }, directory, worlds, () => Effect.void)
    }), 300_000 * Math.max(1, stress))

  for (const [processes, shards] of [[2, 1], [4, 4]] as const) {
    it.live(stoodStill(processes, shards), () =>
      Effect.gen(function*() {
        const directory = yield* temporaryFolder
        yield* standStill({ directory }, directory, processes, shards)
      }), 120_000)
  }
})

await withServer("PostgreSQL", "relays from PostgreSQL", (url) => {
  it.live(killed(worlds), () =>
    Effect.gen(function*() {
      const { gone, where } = yield* schemas(url, newName("effect_units_relay_crash"), worlds)
      yield* crashEverywhere(where, yield* temporaryFolder, worlds, gone)
    }), 300_000 * Math.max(1, stress))

  for (const [processes, shards] of [[2, 1], [2, 2], [4, 4]] as const) {
    it.live(stoodStill(processes, shards), () =>
      Effect.gen(function*() {
        const { where } = yield* schemas(url, newName("effect_units_relay"), 1)
        yield* standStill(where, yield* temporaryFolder, processes, shards)
      }), 120_000)
  }
})
