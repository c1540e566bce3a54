import { assert, describe, it } from "@effect/vitest"
import {
  Clock,
  Context,
  Deferred,
  Effect,
  Exit,
  Fiber,
  Layer,
  Logger,
  Metric,
  Option,
  Queue,
  Redacted,
  Schema,
  Scope,
  Stream,
  type Tracer
} from "effect"
import { FetchHttpClient } from "effect/http"
import { Statement } from "effect/sql"
import { TestClock } from "effect/testing"
import * as fs from "node:fs"
import * as os from "node:os"
import * as path from "node:path"
import {
  DomainEvent,
  EventPublisher,
  EventStore,
  EventSubscriber,
  Execution,
  ExecutionEvent,
  instrument,
  Relay
} from "../src/index.ts"
import * as Nats from "../src/publishers/Nats.ts"
import * as OpenTelemetry from "../src/publishers/OpenTelemetry.ts"
import * as Postgres from "../src/publishers/Postgres.ts"
import * as Redis from "../src/publishers/Redis.ts"
import * as Sqlite from "../src/publishers/Sqlite.ts"
import { Faults } from "../src/testing/index.ts"
import { completed, domainEvent, failed, started } from "./fixtures/events.ts"
import { newName } from "./fixtures/names.ts"
import { ownNats, ownRedis, type OwnServer } from "./fixtures/ownServer.ts"
import { ownSchema } from "./fixtures/postgres.ts"
import { removeKey, removeStream } from "./fixtures/removal.ts"
import { postgres, sqlite, type World } from "./fixtures/storeWorlds.ts"
import { tcpProxy } from "./fixtures/tcpProxy.ts"
import * as OtlpReceiver from "./publishers/OtlpReceiver.ts"
import { withProgram, withServer } from "./servers.ts"

type Event = EventPublisher.Event

const temporaryFile = Effect.map(
  Effect.acquireRelease(
    Effect.sync(() => fs.mkdtempSync(path.join(os.tmpdir(), "relay-"))),
    (directory) => Effect.sync(() => fs.rmSync(directory, { recursive: true }))
  ),
  (directory) => path.join(directory, "events.db")
)

/** A store on a file, which lives as long as the scope. */
const openStore = (filename: string) =>
  Effect.map(
    Layer.build(Layer.fresh(EventStore.layerSqlite({ filename }))),
    (context) => Context.get(context, EventStore.EventStore)
  )

const newStore = Effect.flatMap(temporaryFile, openStore)

/** What a broker got, one after the other. */
const makeBroker = Effect.map(Queue.unbounded<Event>(), (queue) => {
  const all: Array<Event> = []
  const take = (event: Event) =>
    Effect.sync(() => {
      all.push(event)
      Queue.offerUnsafe(queue, event)
    })
  return {
    all,
    take,
    ids: () => all.map(({ id }) => id),
    /** Waits for so many more events. */
    arrived: (count: number) => Queue.takeN(queue, count),
    layer: EventPublisher.layer({ policy: "closed", publish: take })
  }
})

const reject = (event: Event) =>
  Effect.fail(
    new EventPublisher.PublishError({
      event_id: event.id,
      reason: new EventPublisher.Rejected({ detail: "it is too large" })
    })
  )

const unavailable = (event: Event) =>
  Effect.fail(
    new EventPublisher.PublishError({
      event_id: event.id,
      reason: new EventPublisher.Unavailable({ detail: "nobody is there" })
    })
  )

/** A relay at work, which the test can end before the end of its own scope. */
const start = Effect.fnUntraced(function*<E>(store: EventStore.Store, options: Relay.Options<E>) {
  const scope = yield* Effect.acquireRelease(Scope.make(), (scope) => Scope.close(scope, Exit.void))
  const relay = yield* Relay.make(options).pipe(
    Effect.provideService(EventStore.EventStore, store),
    Scope.provide(scope)
  )
  return { ...relay, close: Scope.close(scope, Exit.void) }
})

/** Waits until a relay has marked all there is. SQLite answers in real time, whatever the clock of the test says. */
const caughtUp = Effect.fnUntraced(function*(relay: Relay.Running) {
  while ((yield* relay.status).lag_events > 0) yield* Effect.promise(() => new Promise(setImmediate))
})

const turns = (count: number) =>
  Effect.promise(async () => {
    for (let turn = 0; turn < count; turn++) await new Promise(setImmediate)
  })

const counter = (name: string) => (registry: Metric.MetricRegistry) =>
  Object.fromEntries(
    Metric.snapshotUnsafe(Context.make(Metric.MetricRegistry, registry)).flatMap(({ attributes, id, state }) =>
      id === name && "count" in state
        ? [[attributes?.["outcome"] ?? attributes?.["reason"] ?? "", Number(state.count)]]
        : []
    )
  )

const story = (id: string) => [started(id), completed(id)]

describe("moving", () => {
  it.effect("moves what is there and what comes, and goes on where it stopped", () =>
    Effect.gen(function*() {
      const store = yield* newStore
      const broker = yield* makeBroker
      yield* store.append([...story("a"), domainEvent("d", { correlation: "a" }), ...story("b")])
      const first = yield* start(store, { name: "x", to: broker.layer, batch: 2 })
      yield* broker.arrived(5)
      yield* store.append(story("c"))
      yield* broker.arrived(2)
      yield* first.close
      yield* store.append(story("d"))
      const second = yield* start(store, { name: "x", to: broker.layer })
      yield* broker.arrived(2)
      yield* caughtUp(second)
      assert.deepStrictEqual(
        broker.ids().join(" "),
        "a:started a:completed d b:started b:completed c:started c:completed d:started d:completed"
      )
      const status = yield* second.status
      assert.deepStrictEqual(
        [status.position, status.last_offset, status.relayed, status.refused, status.parked, status.shards[0]?.token],
        [9, 9, 9, 0, 0, 2]
      )
    }))

  it.effect("hands events over as they were published", () =>
    Effect.gen(function*() {
      const store = yield* newStore
      const broker = yield* makeBroker
      const events = [
        started("a", {
          parent: "p",
          root: "r",
          trace_id: "0af7651916cd43dd8448eb211c80319c",
          attributes: { request_id: "r-1", user_id: 7, admin: true },
          input: { text: "NUL \0, half \ud800, quotes \"", nested: [1, null, { deep: -0.5 }] }
        }),
        failed("a", { parent: "p", root: "r", sequence: 2, failure: { kind: "fail", value: { _tag: "X" } } }),
        domainEvent("d", { correlation: "a", payload: [1, "two"] })
      ]
      yield* store.append(events)
      yield* start(store, { name: "x", to: broker.layer })
      assert.deepStrictEqual(yield* broker.arrived(3), events)
    }))

  it.effect("begins with what is new where it is told to, and remembers that", () =>
    Effect.gen(function*() {
      const store = yield* newStore
      const broker = yield* makeBroker
      yield* store.append(story("old"))
      const relay = yield* start(store, { name: "x", to: broker.layer, from: "new" })
      yield* relay.close
      yield* store.append(story("new"))
      yield* start(store, { name: "x", to: broker.layer, from: "new" })
      yield* broker.arrived(2)
      assert.deepStrictEqual(broker.ids(), ["new:started", "new:completed"])
    }))

  it.effect("keeps the order of each tree, whatever the publisher does, and sends different trees side by side", () =>
    Effect.gen(function*() {
      const store = yield* newStore
      const broker = yield* makeBroker
      const trees = Array.from({ length: 40 }, (_, tree) => [
        started(`${tree}`),
        started(`${tree}-child`, { root: `${tree}` }),
        completed(`${tree}-child`, { root: `${tree}` }),
        completed(`${tree}`)
      ])
      // One event of each of four trees in turn.
      const events = Array.from(
        { length: 10 },
        (_, group) => [0, 1, 2, 3].flatMap((part) => trees.slice(4 * group, 4 * group + 4).map((tree) => tree[part]!))
      ).flat()
      yield* store.append(events)
      let inFlight = 0
      let most = 0
      const slow = EventPublisher.layer({
        policy: "closed",
        publish: (event) =>
          Effect.gen(function*() {
            most = Math.max(most, ++inFlight)
            // What is sent later is answered first.
            yield* Effect.sleep(1000 - 5 * events.findIndex(({ id }) => id === event.id))
            inFlight--
            yield* broker.take(event)
          })
      })
      yield* start(store, { name: "x", to: slow, maxInFlight: 16 })
      const arrived = yield* Effect.forkChild(broker.arrived(160), { startImmediately: true })
      while (arrived.pollUnsafe() === undefined) {
        yield* turns(1)
        yield* TestClock.adjust("500 millis")
      }
      assert.strictEqual(most, 16)
      assert.notDeepEqual(broker.ids(), events.map(({ id }) => id))
      for (const tree of trees) {
        const ids: ReadonlyArray<string> = tree.map(({ id }) => id)
        assert.deepStrictEqual(broker.ids().filter((id) => ids.includes(id)), ids)
      }
    }))

  it.effect("loses nothing and keeps order over faults of every kind", () =>
    Effect.forEach([1, 2, 3, 4, 5, 6], (seed) =>
      Effect.gen(function*() {
        const store = yield* newStore
        const broker = yield* makeBroker
        const ids = Array.from({ length: 30 }, (_, index) => `${seed}-${index}`)
        yield* store.append(
          ids.flatMap((id) => [started(id), domainEvent(`${id}:said`, { correlation: id }), completed(id)])
        )
        const to = broker.layer.pipe(Faults.inject({
          timeout: "1 second",
          schedule: Faults.seeded(seed, [
            [0.05, "fail"],
            [0.03, "die"],
            [0.03, "hang"],
            [0.05, "duplicate"],
            [0.05, "crash"],
            [0.1, { delay: "20 millis" }]
          ])
        }))
        const relay = yield* start(store, { name: "x", to, batch: 7 + seed, maxInFlight: 8 })
        while ((yield* relay.status).lag_events > 0) {
          yield* turns(1)
          yield* TestClock.adjust("500 millis")
        }
        const first = (id: string) => broker.ids().indexOf(id)
        for (const id of ids) {
          assert.isAtLeast(first(`${id}:started`), 0)
          assert.isBelow(first(`${id}:started`), first(`${id}:said`))
          assert.isBelow(first(`${id}:said`), first(`${id}:completed`))
        }
      }), { discard: true }))

  it.effect("closing waits for the batch that is under way", () =>
    Effect.gen(function*() {
      const store = yield* newStore
      const broker = yield* makeBroker
      const holding = yield* Deferred.make<void>()
      const go = yield* Deferred.make<void>()
      const slow = EventPublisher.layer({
        policy: "closed",
        publish: (event) =>
          Deferred.succeed(holding, undefined).pipe(
            Effect.andThen(Deferred.await(go)),
            Effect.andThen(broker.take(event))
          )
      })
      yield* store.append([...story("a"), ...story("b")])
      const relay = yield* start(store, { name: "x", to: slow, batch: 2 })
      yield* Deferred.await(holding)
      const closing = yield* Effect.forkChild(relay.close, { startImmediately: true })
      yield* turns(3)
      assert.isUndefined(closing.pollUnsafe())
      yield* Deferred.succeed(go, undefined)
      yield* Fiber.join(closing)
      assert.deepStrictEqual(broker.ids(), ["a:started", "a:completed"])
      assert.deepStrictEqual(yield* store.checkpoint("relay x 0"), Option.some(2))
      const { members, shards } = yield* relay.status
      assert.deepStrictEqual([members, shards.map(({ holder }) => holder)], [[], [undefined]])
    }))

  it.effect("closing keeps its shards for as long as it takes", () =>
    Effect.gen(function*() {
      const store = yield* newStore
      const holding = yield* Deferred.make<void>()
      const slow = EventPublisher.layer({
        policy: "closed",
        timeout: "1 hour",
        publish: () => Effect.andThen(Deferred.succeed(holding, undefined), Effect.sleep("20 seconds"))
      })
      yield* store.append(story("a"))
      const relay = yield* start(store, { name: "x", to: slow, lease: "6 seconds", flushTimeout: "1 minute" })
      yield* Deferred.await(holding)
      const closing = yield* Effect.forkChild(relay.close, { startImmediately: true })
      for (let second = 0; second < 41; second++) {
        yield* TestClock.adjust("1 second")
        yield* turns(1)
      }
      yield* Fiber.join(closing)
      assert.strictEqual((yield* relay.status).position, 2)
    }))

  it.effect("closing gives a publisher up that does not answer, once its time is over", () =>
    Effect.gen(function*() {
      const store = yield* newStore
      const holding = yield* Deferred.make<void>()
      const stuck = EventPublisher.layer({
        policy: "closed",
        timeout: "1 hour",
        publish: () => Effect.andThen(Deferred.succeed(holding, undefined), Effect.never)
      })
      yield* store.append(story("a"))
      const relay = yield* start(store, { name: "x", to: stuck, flushTimeout: "2 seconds" })
      yield* Deferred.await(holding)
      const closing = yield* Effect.forkChild(relay.close, { startImmediately: true })
      yield* TestClock.adjust("1999 millis")
      assert.isUndefined(closing.pollUnsafe())
      yield* TestClock.adjust("1 millis")
      yield* Fiber.join(closing)
      const { members, position, shards } = yield* relay.status
      assert.deepStrictEqual([members, shards.map(({ holder }) => holder), position], [[], [undefined], 0])
    }))

  it.effect("moves what another process appends, as soon as it looks", () =>
    Effect.gen(function*() {
      const filename = yield* temporaryFile
      const [here, there] = [yield* openStore(filename), yield* openStore(filename)]
      const broker = yield* makeBroker
      yield* start(here, { name: "x", to: broker.layer, pollInterval: "2 seconds" })
      yield* turns(3)
      yield* there.append(story("a"))
      yield* TestClock.adjust("1999 millis")
      assert.deepStrictEqual(broker.ids(), [])
      yield* TestClock.adjust("1 millis")
      yield* broker.arrived(2)
    }))

  it.effect("into another store, where nothing is taken for the relay's own", () =>
    Effect.gen(function*() {
      const from = yield* newStore
      const file = yield* temporaryFile
      yield* from.append([started("runs", { at: 0 }), ...story("done")])
      const to = Sqlite.layer({ filename: file, policy: "closed", owned: false })
      const relay = yield* start(from, { name: "x", to })
      yield* caughtUp(relay)
      yield* relay.close
      // Whoever opens it next closes what it takes for abandoned.
      const there = yield* openStore(file)
      assert.strictEqual(yield* there.closeAbandoned, 0)
      assert.deepStrictEqual(
        (yield* there.read()).map(({ event }) => event),
        (yield* from.read()).map(({ event }) => event)
      )
    }))
})

describe("a publisher that fails", () => {
  it.effect("is tried again after longer and longer pauses, with one event in turn, and then with all", () =>
    Effect.gen(function*() {
      const registry: Metric.MetricRegistry = new Map()
      const logs: Array<string> = []
      const store = yield* newStore
      const broker = yield* makeBroker
      let isDown = true
      const attempts: Array<string> = []
      const to = EventPublisher.layer({
        policy: "closed",
        publish: (event) =>
          Effect.suspend(() => {
            attempts.push(event.id)
            return isDown ? unavailable(event) : broker.take(event)
          })
      })
      yield* store.append(["a", "b", "c"].map((id) => started(id)))
      const relay = yield* start(store, { name: "x", to }).pipe(
        Effect.provide(Logger.layer([Logger.make(({ message }) => void logs.push(String(message)))])),
        Effect.provideService(Metric.MetricRegistry, registry)
      )
      const until = Effect.fnUntraced(function*(count: number) {
        while (attempts.length < count) yield* turns(1)
        yield* turns(1)
      })
      yield* until(3)
      for (const [pause, count] of [[50, 4], [100, 5], [200, 6], [400, 7]] as const) {
        yield* TestClock.adjust(pause - 1)
        yield* turns(1)
        assert.strictEqual(attempts.length, count - 1)
        yield* TestClock.adjust(1)
        yield* until(count)
        assert.strictEqual(attempts.length, count)
      }
      assert.deepStrictEqual(attempts.slice(3), ["a:started", "b:started", "c:started", "a:started"])
      assert.strictEqual((yield* relay.status).position, 0)
      isDown = false
      yield* TestClock.adjust(800)
      yield* broker.arrived(3)
      yield* caughtUp(relay)
      assert.deepStrictEqual(broker.ids().toSorted(), ["a:started", "b:started", "c:started"])
      assert.deepStrictEqual(counter("effect_units_relay_failures")(registry), { Unavailable: 7 })
      assert.deepStrictEqual(counter("effect_units_relay_events")(registry), { relayed: 3 })
      assert.deepStrictEqual(logs.filter((line) => line.startsWith("The relay")), [
        "The relay \"x\" waits: Event a:started was not published: the transport is unavailable: nobody is there. Check that it runs and " +
        "can be reached; a retry can help. It tries again; failures are counted in effect_units_relay_failures."
      ])
    }))

  it.effect("that takes nothing has nothing put aside, however long it is away", () =>
    Effect.gen(function*() {
      const store = yield* newStore
      const broker = yield* makeBroker
      let isDown = true
      let attempts = 0
      const to = EventPublisher.layer({
        policy: "closed",
        publish: (event) =>
          Effect.suspend(() => {
            attempts++
            return isDown ? unavailable(event) : broker.take(event)
          })
      })
      const ids = Array.from({ length: 10 }, (_, index) => `${index}`)
      yield* store.append(ids.flatMap(story))
      const relay = yield* start(store, { name: "x", to, batch: 4, maxAttempts: 1 })
      for (let round = 0; round < 100; round++) {
        yield* turns(2)
        yield* TestClock.adjust("10 seconds")
      }
      assert.isAbove(attempts, 100)
      const status = yield* relay.status
      assert.deepStrictEqual([status.parked, status.refused, status.position], [0, 0, 0])
      isDown = false
      yield* TestClock.adjust("10 seconds")
      yield* broker.arrived(20)
      yield* caughtUp(relay)
      for (const id of ids) {
        assert.deepStrictEqual(broker.ids().filter((one) => one.startsWith(`${id}:`)), [
          `${id}:started`,
          `${id}:completed`
        ])
      }
    }))

  it.effect("that takes what it gets without having delivered it is refused", () =>
    Effect.gen(function*() {
      const store = yield* newStore
      const broker = yield* makeBroker
      for (const to of [EventPublisher.layer({ publish: broker.take }), EventPublisher.layerNoop]) {
        const error = yield* Effect.flip(start(store, { name: "x", to }))
        assert.deepStrictEqual(
          error,
          new Relay.RelayError({ relay: "x", reason: new Relay.NotAcknowledging({ policy: "open" }) })
        )
      }
    }))
})

describe("a database that fails", () => {
  it.effect("is asked again ten times a second for where a shard stands", () =>
    Effect.gen(function*() {
      const store = yield* newStore
      const broker = yield* makeBroker
      let isDown = true
      let asked = 0
      const failing: Statement.Transformer = (statement) => {
        if (!isDown || !statement.compile()[0].trim().startsWith("SELECT last_offset FROM effect_units_checkpoints")) {
          return Effect.succeed(statement)
        }
        asked++
        return Effect.succeed(store.sql`SELECT nothing`)
      }
      yield* store.append(story("a"))
      yield* start(store, { name: "x", to: broker.layer }).pipe(
        Effect.provideService(Statement.CurrentTransformer, failing)
      )
      yield* turns(5)
      for (let round = 0; round < 5; round++) {
        const before = asked
        yield* TestClock.adjust(99)
        yield* turns(5)
        assert.strictEqual(asked, before)
        yield* TestClock.adjust(1)
        yield* turns(5)
        assert.strictEqual(asked, before + 1)
      }
      isDown = false
      yield* TestClock.adjust(100)
      yield* broker.arrived(2)
    }))

  it.effect("with a defect, once, does not end what looks after the lease", () =>
    Effect.gen(function*() {
      const store = yield* newStore
      const broker = yield* makeBroker
      const logs: Array<string> = []
      let beats = 0
      const dying: Statement.Transformer = (statement) =>
        statement.compile()[0].startsWith("INSERT INTO effect_units_relay_members") && ++beats === 2
          ? Effect.die(new Error("a bug"))
          : Effect.succeed(statement)
      yield* start(store, { name: "x", to: broker.layer, lease: "3 seconds" }).pipe(
        Effect.provide(Logger.layer([Logger.make(({ message }) => void logs.push(String(message)))])),
        Effect.provideService(Statement.CurrentTransformer, dying)
      )
      for (let second = 0; second < 5; second++) {
        yield* TestClock.adjust("1 second")
        yield* turns(2)
      }
      assert.strictEqual(beats, 6)
      assert.isTrue(logs.some((line) => line.startsWith("The relay \"x\" could not look after its lease")))
    }))
})

const bug = (event: Event) => event.id === "poison:started"

/** An event that fails is parked, and the others do not wait for it. */
const parkWhatFails = ({ database }: World) =>
  Effect.gen(function*() {
    const store = yield* Effect.flatMap(database, ({ open }) => open())
    const broker = yield* makeBroker
    const to = EventPublisher.layer({
      policy: "closed",
      publish: (event) => bug(event) ? Effect.die(new Error("a bug")) : broker.take(event)
    })
    yield* store.append(story("poison"))
    yield* store.append(Array.from({ length: 30 }, (_, index) => started(`${index}`)))
    const relay = yield* start(store, { name: "x", to, batch: 10, maxAttempts: 3 })
    yield* broker.arrived(31)
    yield* caughtUp(relay)
    const arrived = broker.ids()
    assert.strictEqual(new Set(arrived).size, 31)
    // What belongs to its tree has waited; nothing else has.
    assert.isAbove(arrived.indexOf("poison:completed"), 20)
    assert.deepStrictEqual(
      (yield* relay.parked()).map(({ error, event, offset }) => [offset, event?.id, error]),
      [[
        1,
        "poison:started",
        "Event poison:started was not published: the transport is unavailable: a bug. Check that it runs and can be reached; " +
        "a retry can help. It failed 3 times while others got through"
      ]]
    )
    const { parked, position, refused, relayed } = yield* relay.status
    assert.deepStrictEqual([parked, position, refused, relayed], [1, 32, 1, 31])
  })

describe("an event that fails time and again", () => {
  it.live("is parked once others got through often enough, which do not wait for it", () => parkWhatFails(sqlite))

  it.effect("is parked after some 80 seconds, as the pauses are", () =>
    Effect.gen(function*() {
      const store = yield* newStore
      const broker = yield* makeBroker
      const to = EventPublisher.layer({
        policy: "closed",
        publish: (event) => bug(event) ? unavailable(event) : broker.take(event)
      })
      yield* store.append([started("poison"), ...Array.from({ length: 20 }, (_, index) => started(`${index}`))])
      const relay = yield* start(store, { name: "x", to, batch: 1 })
      yield* turns(2)
      let passed = 0
      while ((yield* relay.status).parked === 0) {
        yield* TestClock.adjust("50 millis")
        yield* turns(1)
        passed += 50
      }
      assert.strictEqual(passed, 82_750)
      yield* broker.arrived(20)
    }))

  it.effect("is parked alone, of each of many trees, and the others keep their order", () =>
    Effect.gen(function*() {
      const store = yield* newStore
      const broker = yield* makeBroker
      const trees = Array.from({ length: 40 }, (_, tree) =>
        ["a", "b", "c", "d"].map((part, index) =>
          // In every third tree one event fails, each time another one.
          domainEvent(`${tree % 3 === 0 && tree % 4 === index ? "poison-" : ""}${tree}${part}`, {
            correlation: `${tree}`
          })
        ))
      const isPoison = ({ id }: Event) => id.startsWith("poison")
      const to = EventPublisher.layer({
        policy: "closed",
        publish: (event) => isPoison(event) ? unavailable(event) : broker.take(event)
      })
      const events = [0, 1, 2, 3].flatMap((part) => trees.map((tree) => tree[part]!))
      yield* store.append(events)
      const relay = yield* start(store, { name: "x", to, batch: 9, maxInFlight: 4, maxAttempts: 2 })
      // What comes last has nothing behind it that could get through.
      yield* store.append(Array.from({ length: 60 }, (_, index) => started(`last-${index}`)))
      while ((yield* relay.status).lag_events > 0) {
        yield* turns(1)
        yield* TestClock.adjust("10 seconds")
      }
      assert.deepStrictEqual(
        (yield* relay.parked()).map(({ event }) => event?.id),
        events.filter(isPoison).map(({ id }) => id)
      )
      assert.strictEqual(broker.all.length, events.length - 14 + 60)
      for (const tree of trees) {
        const ids: ReadonlyArray<string> = tree.filter((event) => !isPoison(event)).map(({ id }) => id)
        assert.deepStrictEqual(broker.ids().filter((id) => ids.includes(id)), ids)
      }
    }))

  it.effect("is not marked before it is out of the way", () =>
    Effect.gen(function*() {
      const store = yield* newStore
      const [first, second] = [yield* makeBroker, yield* makeBroker]
      const to = EventPublisher.layer({
        policy: "closed",
        publish: (event) => bug(event) ? unavailable(event) : first.take(event)
      })
      yield* store.append([...story("a"), ...story("poison"), ...story("b"), ...story("c")])
      const relay = yield* start(store, { name: "x", to, batch: 2 })
      while (first.all.length < 6) {
        yield* turns(2)
        yield* TestClock.adjust("10 seconds")
      }
      assert.deepStrictEqual(
        first.ids().toSorted().join(" "),
        "a:completed a:started b:completed b:started c:completed c:started"
      )
      yield* turns(2)
      assert.strictEqual((yield* relay.status).position, 2)
      yield* relay.close
      yield* start(store, { name: "x", to: second.layer })
      yield* second.arrived(6)
      assert.deepStrictEqual(second.ids().slice(0, 2), ["poison:started", "poison:completed"])
    }))

  it.effect("is waited for where that is wanted", () =>
    Effect.gen(function*() {
      const store = yield* newStore
      const broker = yield* makeBroker
      let heals = false
      const to = EventPublisher.layer({
        policy: "closed",
        publish: (event) => bug(event) && !heals ? unavailable(event) : broker.take(event)
      })
      yield* store.append([...story("poison"), ...story("a")])
      const relay = yield* start(store, { name: "x", to, batch: 2, onRefused: "wait", maxAttempts: 1 })
      for (let round = 0; round < 20; round++) {
        yield* turns(2)
        yield* TestClock.adjust("10 seconds")
      }
      assert.deepStrictEqual([broker.ids(), (yield* relay.status).position], [[], 0])
      heals = true
      yield* TestClock.adjust("10 seconds")
      yield* broker.arrived(4)
      assert.deepStrictEqual(broker.ids(), ["poison:started", "poison:completed", "a:started", "a:completed"])
    }))
})

describe("an event that is refused for good", () => {
  const poisoned = Effect.gen(function*() {
    const store = yield* newStore
    const broker = yield* makeBroker
    const state = { heals: false }
    const to = EventPublisher.layer({
      policy: "closed",
      publish: (event) => event.id.startsWith("poison") && !state.heals ? reject(event) : broker.take(event)
    })
    return { store, broker, state, to }
  })

  it.effect("is parked, and the others go on; it can be sent again, or forgotten", () =>
    Effect.gen(function*() {
      const { broker, state, store, to } = yield* poisoned
      const logs: Array<string> = []
      const registry: Metric.MetricRegistry = new Map()
      yield* TestClock.setTime(1000)
      yield* store.append([...story("a"), ...story("poison"), domainEvent("poison-2"), ...story("b")])
      const relay = yield* start(store, { name: "x", to }).pipe(
        Effect.provide(Logger.layer([Logger.make(({ message }) => void logs.push(String(message)))])),
        Effect.provideService(Metric.MetricRegistry, registry)
      )
      yield* caughtUp(relay)
      assert.deepStrictEqual(
        new Set(broker.ids()),
        new Set(["a:started", "a:completed", "b:started", "b:completed"])
      )
      const parked = yield* relay.parked()
      const [, , first, second, third] = (yield* store.read()).map(({ event }) => event)
      const others = { error: "it is too large", parked_at: "1970-01-01T00:00:01.000Z" }
      assert.deepStrictEqual(parked, [
        { offset: 3, event: first!, ...others },
        { offset: 4, event: second!, ...others },
        { offset: 5, event: third!, ...others }
      ])
      assert.deepStrictEqual((yield* relay.parked({ after: 3, limit: 1 })).map(({ offset }) => offset), [4])
      assert.deepStrictEqual(
        [(yield* relay.status).parked, (yield* relay.status).refused, (yield* relay.status).relayed],
        [3, 3, 4]
      )
      assert.deepStrictEqual(counter("effect_units_relay_events")(registry), { parked: 3, relayed: 4 })
      assert.include(logs, "The relay \"x\" has parked the event poison:started at offset 3: it is too large")

      const error = yield* Effect.flip(relay.replay(3))
      assert.strictEqual(error._tag, "PublishError")
      state.heals = true
      assert.deepStrictEqual(
        [yield* relay.replay(3), yield* relay.replay(3), yield* relay.discard(5), yield* relay.discard(5)],
        [true, false, true, false]
      )
      assert.deepStrictEqual((yield* relay.parked()).map(({ offset }) => offset), [4])
      assert.strictEqual(broker.ids().at(-1), "poison:started")
    }))

  it.effect("stays in the log where it is to be skipped", () =>
    Effect.gen(function*() {
      const { broker, store, to } = yield* poisoned
      yield* store.append([...story("poison"), ...story("a")])
      const relay = yield* start(store, { name: "x", to, onRefused: "skip" })
      yield* caughtUp(relay)
      assert.deepStrictEqual(broker.ids(), ["a:started", "a:completed"])
      assert.deepStrictEqual([(yield* relay.status).parked, (yield* relay.status).refused], [0, 2])
    }))

  it.effect("is waited for where that is wanted, and where too many are parked", () =>
    Effect.forEach([{ onRefused: "wait" }, { maxParked: 0 }] as const, (options) =>
      Effect.gen(function*() {
        const { broker, state, store, to } = yield* poisoned
        yield* store.append([...story("poison"), ...story("a")])
        const relay = yield* start(store, { name: "x", to, batch: 2, ...options })
        yield* turns(5)
        for (let round = 0; round < 5; round++) {
          yield* TestClock.adjust("20 seconds")
          yield* turns(2)
        }
        assert.deepStrictEqual([broker.ids(), (yield* relay.status).position], [[], 0])
        state.heals = true
        yield* TestClock.adjust("20 seconds")
        yield* caughtUp(relay)
        assert.deepStrictEqual(broker.ids(), ["poison:started", "poison:completed", "a:started", "a:completed"])
        assert.strictEqual((yield* relay.status).parked, 0)
      }), { discard: true }))

  it.effect("also when nobody here can read it", () =>
    Effect.gen(function*() {
      const { broker, store, to } = yield* poisoned
      yield* store.append(["a", "b", "c", "d", "e"].flatMap(story))
      const unreadable = "{\"event_type\":\"execution_paused\"}"
      yield* store.sql`UPDATE effect_units_events SET payload = ${unreadable} WHERE event_offset IN (4, 10)`
      const relay = yield* start(store, { name: "x", to })
      yield* caughtUp(relay)
      assert.deepStrictEqual(
        broker.ids().toSorted().join(" "),
        "a:completed a:started b:started c:completed c:started d:completed d:started e:started"
      )
      const parked = yield* relay.parked()
      assert.deepStrictEqual(
        parked.map((one) => [one.offset, one.event, one.error]),
        [4, 10].map((offset) => [
          offset,
          undefined,
          `the event at offset ${offset} cannot be decoded: update effect-units, or read on after it`
        ])
      )
      const error = yield* Effect.flip(relay.replay(4))
      assert.strictEqual(error.reason._tag, "Undecodable")
      assert.deepStrictEqual(
        yield* store.sql`SELECT body FROM effect_units_relay_parked WHERE event_offset = 4`,
        [{ body: unreadable }].map((row) => Object.assign(Object.create(null), row))
      )
    }))
})

describe("several processes", () => {
  /** A process whose clock the test rules by itself: one that it does not move stands still. */
  const makeProcess = Effect.fnUntraced(function*<E>(
    filename: string,
    options: Relay.Options<E>
  ) {
    const clock = yield* TestClock.make()
    const scope = yield* Effect.acquireRelease(Scope.make(), (scope) => Scope.close(scope, Exit.void))
    const inIt = <A, E, R>(effect: Effect.Effect<A, E, R>) =>
      effect.pipe(Effect.provideService(Clock.Clock, clock), Scope.provide(scope))
    const store = yield* inIt(openStore(filename))
    const relay = yield* inIt(Effect.provideService(Relay.make(options), EventStore.EventStore, store))
    return {
      relay,
      store,
      clock,
      close: Scope.close(scope, Exit.void),
      /** Lets time go by, and what is due happen. */
      pass: (millis: number) =>
        Effect.gen(function*() {
          for (let left = millis; left > 0; left -= 1000) {
            yield* clock.adjust(Math.min(1000, left))
            yield* turns(2)
          }
        })
    }
  })

  it.effect("one works, another stands by and takes over when the first has ended", () =>
    Effect.gen(function*() {
      const filename = yield* temporaryFile
      const [one, two] = [yield* makeBroker, yield* makeBroker]
      const first = yield* makeProcess(filename, { name: "x", to: one.layer })
      const second = yield* makeProcess(filename, { name: "x", to: two.layer })
      yield* first.store.append(story("a"))
      yield* one.arrived(2)
      yield* second.pass(30_000)
      assert.deepStrictEqual(two.ids(), [])
      yield* first.close
      yield* second.store.append(story("b"))
      yield* second.pass(5000)
      yield* two.arrived(2)
      assert.deepStrictEqual([one.ids(), two.ids()], [["a:started", "a:completed"], ["b:started", "b:completed"]])
    }))

  it.effect("one that stands still loses its shard, and what it marks then is refused", () =>
    Effect.gen(function*() {
      const filename = yield* temporaryFile
      const [one, two] = [yield* makeBroker, yield* makeBroker]
      const go = yield* Deferred.make<void>()
      const holding = yield* Deferred.make<void>()
      const slow = EventPublisher.layer({
        policy: "closed",
        publish: (event) =>
          Effect.andThen(
            Effect.andThen(Deferred.succeed(holding, undefined), Deferred.await(go)),
            one.take(event)
          )
      })
      const first = yield* makeProcess(filename, { name: "x", to: slow, lease: "15 seconds" })
      yield* first.store.append([started("a"), started("b")])
      yield* Deferred.await(holding)
      const second = yield* makeProcess(filename, { name: "x", to: two.layer, lease: "15 seconds" })
      // The first process is alive on this machine, and says nothing.
      yield* second.pass(14_000)
      assert.deepStrictEqual(two.ids(), [])
      yield* second.pass(6000)
      yield* two.arrived(2)
      yield* caughtUp(second.relay)
      yield* second.store.append([started("c")])
      yield* two.arrived(1)
      yield* caughtUp(second.relay)
      const { shards } = yield* second.relay.status
      assert.strictEqual(shards[0]?.token, 2)
      // The first one comes to itself: what was under way arrives again, and its mark does not count.
      yield* Deferred.succeed(go, undefined)
      yield* one.arrived(2)
      yield* turns(10)
      assert.deepStrictEqual(yield* second.store.checkpoint("relay x 0"), Option.some(3))
      assert.deepStrictEqual((yield* second.relay.status).relayed, 3)
      yield* first.pass(5000)
      assert.deepStrictEqual(
        (yield* second.relay.status).shards.map(({ holder, token }) => [holder, token]),
        shards.map(({ holder, token }) => [holder, token])
      )
      assert.deepStrictEqual(two.ids(), ["a:started", "b:started", "c:started"])
    }))

  it.effect("share the shards, and keep each tree in one of them", () =>
    Effect.gen(function*() {
      const filename = yield* temporaryFile
      const brokers = [yield* makeBroker, yield* makeBroker, yield* makeBroker]
      const open = (index: number) =>
        makeProcess(filename, { name: "x", to: brokers[index]!.layer, shards: 4, lease: "15 seconds" })
      /** How many shards each member holds. */
      const shared = (relay: Relay.Running) =>
        Effect.map(relay.status, ({ members, shards }) =>
          members.map((member) => shards.filter(({ holder }) => holder === member).length))
      const all = Effect.fnUntraced(function*(processes: ReadonlyArray<Effect.Success<ReturnType<typeof open>>>) {
        for (let round = 0; round < 6; round++) {
          for (const process of processes) {
            yield* process.pass(2500)
          }
        }
      })
      const a = yield* open(0)
      assert.deepStrictEqual(yield* shared(a.relay), [4])
      const b = yield* open(1)
      yield* all([a, b])
      assert.deepStrictEqual(yield* shared(a.relay), [2, 2])
      const ids = Array.from({ length: 60 }, (_, index) =>
        `${index}`)
      yield* a.store.append(ids.flatMap(story))
      yield* all([a, b])
      const [first, second] = [brokers[0]!.ids(), brokers[1]!.ids()]
      assert.strictEqual(first.length + second.length, 120)
      assert.isAbove(Math.min(first.length, second.length), 20)
      for (const id of ids) {
        const where = [first, second].filter((list) => list.includes(`${id}:started`))
        assert.deepStrictEqual(
          where.map((list) => list.filter((one) => one.startsWith(`${id}:`))),
          [[`${id}:started`, `${id}:completed`]]
        )
      }
      const c = yield* open(2)
      yield* all([a, b, c])
      const three = yield* shared(a.relay)
      assert.strictEqual(three.length, 3)
      assert.strictEqual(three.reduce((sum, one) => sum + one, 0), 4)
      assert.isAtMost(Math.max(...three), 2)
      yield* a.close
      yield* b.close
      yield* all([c])
      assert.deepStrictEqual(yield* shared(c.relay), [4])
      const status = yield* c.relay.status
      assert.deepStrictEqual([status.lag_events, status.relayed, status.members.length], [0, 120, 1])
    }))

  it.effect("the number of shards changes once nobody runs it, and nothing is left out", () =>
    Effect.gen(function*() {
      const filename = yield* temporaryFile
      const broker = yield* makeBroker
      const first = yield* makeProcess(filename, { name: "x", to: broker.layer, shards: 2 })
      yield* first.store.append(story("a"))
      yield* broker.arrived(2)
      yield* caughtUp(first.relay)
      const error = yield* Effect.flip(makeProcess(filename, { name: "x", to: broker.layer, shards: 3 }))
      assert.deepStrictEqual(
        error,
        new Relay.RelayError({ relay: "x", reason: new Relay.ShardsDiffer({ found: 2, wanted: 3 }) })
      )
      yield* first.close
      const second = yield* makeProcess(filename, { name: "x", to: broker.layer, shards: 3 })
      const ids = Array.from({ length: 20 }, (_, index) => `${index}`)
      yield* second.store.append(ids.map((id) => started(id)))
      yield* broker.arrived(20)
      yield* caughtUp(second.relay)
      const { position, shards } = yield* second.relay.status
      assert.deepStrictEqual([position, shards.length, broker.ids().length], [22, 3, 22])
    }))

  it.effect("one with fewer shards, or none any more, does not keep the log from being pruned", () =>
    Effect.gen(function*() {
      const filename = yield* temporaryFile
      const broker = yield* makeBroker
      const store = yield* openStore(filename)
      const prune = Effect.map(store.prune({ keep: 0 }), ({ events }) => events)
      const run = Effect.fnUntraced(function*(shards: number) {
        const relay = yield* start(store, { name: "x", to: broker.layer, shards })
        yield* caughtUp(relay)
        yield* relay.close
      })
      yield* run(3)
      yield* store.append(story("a"))
      assert.strictEqual(yield* prune, 0)
      yield* run(1)
      assert.strictEqual(yield* prune, 2)
      yield* store.append(story("b"))
      assert.strictEqual(yield* prune, 0)
      const remove = Effect.provideService(Relay.remove("x"), EventStore.EventStore, store)
      assert.deepStrictEqual([yield* remove, yield* remove, yield* prune], [true, false, 2])
    }))

  it.effect("relays of different names know nothing of each other", () =>
    Effect.gen(function*() {
      const filename = yield* temporaryFile
      const [one, two] = [yield* makeBroker, yield* makeBroker]
      const first = yield* makeProcess(filename, { name: "x", to: one.layer })
      yield* makeProcess(filename, { name: "y", to: two.layer, shards: 2 })
      yield* first.store.append(story("a"))
      yield* one.arrived(2)
      yield* first.close
    }))
})

describe("looking after it", () => {
  it.effect("says what it missed, as it was pruned all the same", () =>
    Effect.gen(function*() {
      const registry: Metric.MetricRegistry = new Map()
      const logs: Array<string> = []
      const store = yield* newStore
      const broker = yield* makeBroker
      const run = start(store, { name: "x", to: broker.layer }).pipe(
        Effect.provide(Logger.layer([Logger.make(({ message }) => void logs.push(String(message)))])),
        Effect.provideService(Metric.MetricRegistry, registry)
      )
      yield* store.append(story("a"))
      const first = yield* run
      yield* caughtUp(first)
      yield* first.close
      yield* store.append([...story("b"), ...story("c")])
      yield* store.prune({ keep: 1, unacknowledged: true })
      yield* caughtUp(yield* run)
      assert.deepStrictEqual(broker.ids(), ["a:started", "a:completed", "c:completed"])
      assert.deepStrictEqual(counter("effect_units_relay_events")(registry), { relayed: 3, missed: 3 })
      assert.include(
        logs,
        "The relay \"x\" has missed 3 events before offset 6: they were pruned before it came to them"
      )
    }))

  it.effect("says how far it is behind, in events and in time, also by metrics", () =>
    Effect.gen(function*() {
      const registry: Metric.MetricRegistry = new Map()
      const store = yield* newStore
      const stuck = EventPublisher.layer({ policy: "closed", timeout: "1 hour", publish: () => Effect.never })
      yield* TestClock.setTime(10_000)
      yield* store.append([started("a", { at: 4000 }), started("b", { at: 9000 })])
      const relay = yield* start(store, { name: "x", to: stuck, flushTimeout: 0 }).pipe(
        Effect.provideService(Metric.MetricRegistry, registry)
      )
      const { lag_events, lag_seconds, last_offset, name, position } = yield* relay.status
      assert.deepStrictEqual([name, position, last_offset, lag_events, lag_seconds], ["x", 0, 2, 2, 6])
      const gauges = Object.fromEntries(
        Metric.snapshotUnsafe(Context.make(Metric.MetricRegistry, registry)).flatMap(({ id, state }) =>
          id.startsWith("effect_units_relay") && "value" in state ? [[id, state.value]] : []
        )
      )
      assert.deepStrictEqual(gauges, {
        effect_units_relay_lag_events: 2,
        effect_units_relay_lag_seconds: 6,
        effect_units_relay_shards: 1
      })
      yield* relay.close
    }))

  it.effect("the Layer gives it, and what its publisher's Layer fails with", () =>
    Effect.gen(function*() {
      const broker = yield* makeBroker
      const store = EventStore.layerSqlite({ filename: ":memory:" })
      const position = yield* Relay.Relay.use(({ status }) => Effect.map(status, ({ position }) => position)).pipe(
        Effect.provide(Relay.layer({ name: "x", to: broker.layer }).pipe(Layer.provide(store)))
      )
      assert.strictEqual(position, 0)
      const failing = Layer.effect(EventPublisher.EventPublisher, Effect.fail("no server"))
      const exit = yield* Effect.exit(Effect.scoped(Layer.build(
        Relay.layer({ name: "x", to: failing }).pipe(Layer.provide(store))
      )))
      assert.deepStrictEqual(
        Option.map(Exit.getCause(exit), String),
        Option.map(Exit.getCause(Exit.fail("no server")), String)
      )
    }))
})

await withServer("PostgreSQL", "a relay from PostgreSQL", (url) => {
  it.live("parks what fails time and again while others get through", () => parkWhatFails(postgres(url)))

  it.live("moves, parks, hands its shards over, and its stale mark is refused", () =>
    Effect.gen(function*() {
      const schema = yield* ownSchema(url)
      const open = Effect.map(
        Layer.build(Layer.fresh(Postgres.layer({ url: Redacted.make(url), schema, policy: "transactional" }))),
        (context) => ({ context, store: Context.get(context, EventStore.EventStore) })
      )
      const { context, store } = yield* open
      const other = yield* open
      const broker = yield* makeBroker
      let heals = false
      let held: Effect.Effect<unknown> = Effect.void
      const to = EventPublisher.layer({
        policy: "closed",
        publish: (event) =>
          event.id.startsWith("poison") && !heals
            ? reject(event)
            : Effect.andThen(Effect.suspend(() => held), broker.take(event))
      })
      const options = { name: "x", to, lease: "600 millis", shards: 2, pollInterval: "50 millis" } as const
      const first = yield* start(store, options)
      yield* other.store.append([...story("a"), ...story("poison"), ...story("b")])
      yield* broker.arrived(4)
      yield* caughtUp(first)
      assert.deepStrictEqual((yield* first.parked()).map(({ event, offset }) => [offset, event?.id]), [
        [3, "poison:started"],
        [4, "poison:completed"]
      ])
      heals = true
      assert.deepStrictEqual([yield* first.replay(3), yield* first.discard(4), yield* first.discard(4)], [
        true,
        true,
        false
      ])
      yield* broker.arrived(1)

      // What a unit commits is relayed as well, and what it rolls back is not.
      const unit = instrument((fails: boolean) => fails ? Effect.fail("no") : Effect.void, { name: "test.unit" })
      yield* Effect.provide(Effect.andThen(Effect.exit(unit(true)), unit(false)), context)
      const told = yield* broker.arrived(4)
      assert.deepStrictEqual(told.map((event) => "event_type" in event ? event.event_type : "").toSorted(), [
        "execution_completed",
        "execution_failed",
        "execution_started",
        "execution_started"
      ])

      // Another process takes both shards while a batch is under way.
      const under = yield* Deferred.make<void>()
      const go = yield* Deferred.make<void>()
      held = Effect.andThen(Deferred.succeed(under, undefined), Deferred.await(go))
      const before = (yield* first.status).position
      yield* store.append([started("held")])
      yield* Deferred.await(under)
      yield* store.sql`UPDATE effect_units_relay_shards SET token = token + 1, member = 'another'`
      held = Effect.void
      yield* Deferred.succeed(go, undefined)
      // Nobody beats for that one, so they come back; what was not marked is sent again.
      yield* broker.arrived(2)
      yield* caughtUp(first)
      assert.deepStrictEqual(broker.ids().slice(-2), ["held:started", "held:started"])
      assert.isAbove((yield* first.status).position, before)

      const second = yield* start(other.store, options)
      const holders = Effect.map(second.status, ({ shards }) => new Set(shards.map(({ holder }) => holder)).size)
      yield* Effect.repeat(Effect.andThen(Effect.sleep("20 millis"), holders), { until: (count) => count === 2 })
      yield* store.append(Array.from({ length: 20 }, (_, index) => started(`${index}`)))
      yield* broker.arrived(20)
      yield* caughtUp(second)
      yield* first.close
      yield* Effect.repeat(Effect.andThen(Effect.sleep("20 millis"), second.status), {
        until: ({ members, shards }) => members.length === 1 && shards.every(({ holder }) => holder === members[0])
      })
      const status = yield* second.status
      assert.deepStrictEqual([status.relayed, status.refused, status.parked, status.lag_events], [29, 2, 0, 0])
    }))
})

await withServer("PostgreSQL", "a relay that stands still on PostgreSQL", (url) => {
  it.live("in the middle of its mark holds nobody up for longer than a lease", () =>
    Effect.gen(function*() {
      const schema = yield* ownSchema(url)
      const layer = Postgres.layer({ url: Redacted.make(url), schema, policy: "closed" })
      const store = Context.get(yield* Layer.build(layer), EventStore.EventStore)
      const other = Context.get(yield* Layer.build(Layer.fresh(layer)), EventStore.EventStore)
      const broker = yield* makeBroker
      const marking = yield* Deferred.make<void>()
      const go = yield* Deferred.make<void>()
      const standStill: Statement.Transformer = (statement) =>
        statement.compile()[0].startsWith("UPDATE effect_units_relay_shards SET relayed")
          ? Deferred.succeed(marking, undefined).pipe(Effect.andThen(Deferred.await(go)), Effect.as(statement))
          : Effect.succeed(statement)
      const relay = yield* start(store, { name: "x", to: broker.layer, lease: "300 millis" }).pipe(
        Effect.provideService(Statement.CurrentTransformer, standStill)
      )
      yield* store.append(story("a"))
      yield* Deferred.await(marking)
      // Waits for the lock that the mark has.
      yield* other.sql`UPDATE effect_units_relay_shards SET member = member`
      yield* Deferred.succeed(go, undefined)
      yield* caughtUp(relay)
      assert.strictEqual((yield* relay.status).position, 2)
    }), 20_000)
})

/**
 * What units published into a store arrives at a broker's subscriber as it was, also what came while the broker was away, and makes the
 * spans there that it would have made here. `broker` gives the broker at an address, `server` is where it really is.
 */
const through = (
  server: string,
  broker: (url: string) => Layer.Layer<EventPublisher.EventPublisher | EventSubscriber.EventSubscriber, unknown>
) =>
  Effect.gen(function*() {
    const registry: Metric.MetricRegistry = new Map()
    const filename = yield* temporaryFile
    const { hostname, port, protocol } = new URL(server)
    const proxy = yield* tcpProxy(Number(port))
    const source = Layer.provideMerge(
      Relay.layer({ name: "x", to: broker(`${protocol}//${hostname}:${proxy.port}`) }),
      Sqlite.layer({ filename, policy: "closed" })
    )
    /** The spans that the units ran in, by execution. */
    const ranIn = new Map<string, Pick<Tracer.AnySpan, "traceId" | "spanId">>()
    const note = Effect.gen(function*() {
      const { spanId, traceId } = yield* Effect.currentSpan
      const execution = yield* Execution.current
      ranIn.set(execution?.correlation_id ?? "none", { traceId, spanId })
    })
    const Noted = DomainEvent.define("test.noted", { text: Schema.String })
    const inner = instrument(
      (text: string) =>
        note.pipe(Effect.andThen(Noted.publish({ text })), Effect.andThen(Effect.fail({ _tag: "No", text }))),
      { name: "test.inner" }
    )
    const outer = instrument(
      (text: string) => Effect.andThen(note, Effect.withSpan(Effect.exit(inner(text)), "step")),
      { name: "test.outer" }
    )
    const call = Effect.withSpan(
      Execution.annotate({ request_id: "r-1", user_id: 7 })(outer("NUL \0 and half \ud800")),
      "request"
    )
    const { arrived, published } = yield* Effect.gen(function*() {
      const store = yield* EventStore.EventStore
      const relay = yield* Relay.Relay
      yield* call
      yield* caughtUp(relay)
      proxy.leadTo(1)
      yield* proxy.cut
      yield* call
      yield* Effect.repeat(
        Effect.delay(Effect.sync(() => counter("effect_units_relay_failures")(registry)), "20 millis"),
        {
          until: (failures) => Object.keys(failures).length > 0
        }
      )
      proxy.leadTo(Number(port))
      const arrived = new Map<string, Event>()
      yield* Stream.unwrap(EventSubscriber.EventSubscriber.use((subscriber) => subscriber.subscribe({ consumer: "c" })))
        .pipe(
          Stream.tap(({ ack }) => ack),
          Stream.tap(({ event }) => Effect.sync(() => arrived.set(event.id, arrived.get(event.id) ?? event))),
          Stream.takeUntil(() => arrived.size === 10),
          Stream.runDrain,
          Effect.provide(broker(server))
        )
      return { arrived: Array.from(arrived.values()), published: (yield* store.read()).map(({ event }) => event) }
    }).pipe(Effect.provide(source), Effect.provideService(Metric.MetricRegistry, registry))
    assert.deepStrictEqual(arrived, published)
    assert.deepStrictEqual(arrived[0]?.attributes, { request_id: "r-1", user_id: 7 })
    const executions = arrived.filter(ExecutionEvent.isExecutionEvent)
    assert.deepStrictEqual([ranIn.size, executions.length], [4, 8])
    assert.deepStrictEqual(
      arrived.map(({ correlation_id, span_id, trace_id }) => [correlation_id, trace_id, span_id]),
      arrived.map(({ correlation_id }) => {
        const span = ranIn.get(correlation_id ?? "")
        return [correlation_id, span?.traceId, span?.spanId]
      })
    )

    const collector = yield* Effect.acquireRelease(
      Effect.promise(() => OtlpReceiver.start()),
      ({ close }) => Effect.promise(close)
    )
    const exporter = OpenTelemetry.layerTraces({ url: collector.url, resource: { serviceName: "test" } }).pipe(
      Layer.provide(FetchHttpClient.layer)
    )
    yield* EventPublisher.EventPublisher.use((publisher) => Effect.sync(() => arrived.forEach(publisher.offer))).pipe(
      Effect.provide(exporter)
    )
    assert.sameDeepMembers(
      collector.spans().map(({ links, name, parentSpanId, spanId, traceId }) => ({
        name,
        traceId,
        spanId,
        parentSpanId,
        links: links.map(({ spanId }) => spanId)
      })),
      executions.filter(ExecutionEvent.isTerminal).map((event) => ({
        name: event.unit_name,
        traceId: ranIn.get(event.root_id)?.traceId ?? "",
        spanId: OpenTelemetry.spanId(event.correlation_id),
        // The root is below the span of the request, its child below it, with a link to the span around that.
        parentSpanId: event.parent_id === undefined ? event.span_id : OpenTelemetry.spanId(event.parent_id),
        links: event.parent_id === undefined ? [] : [ranIn.get(event.correlation_id)?.spanId ?? ""]
      }))
    )
  })

await withServer("NATS", "a relay to NATS JetStream", (servers) => {
  it.live("events arrive as they were published over a cut connection, and make the spans of what the units ran in", () => {
    const prefix = newName("relay")
    return Effect.ensuring(
      through(
        servers,
        (servers) => Nats.layer({ servers, prefix, policy: "closed", storage: "memory", timeout: "500 millis" })
      ),
      removeStream(servers, prefix)
    )
  })
})

await withServer("Redis", "a relay to Redis Streams", (url) => {
  it.live("events arrive as they were published over a cut connection, and make the spans of what the units ran in", () => {
    const key = newName("relay")
    return Effect.ensuring(
      through(url, (url) => Redis.layer({ url, key, policy: "closed", timeout: "500 millis" })),
      removeKey(url, key)
    )
  })
})

/** A relay whose broker is killed, and started again on its data, while events come. */
const overRestart = (
  server: Effect.Effect<OwnServer, never, Scope.Scope>,
  broker: (url: string) => Layer.Layer<EventPublisher.EventPublisher | EventSubscriber.EventSubscriber, unknown>
) =>
  Effect.gen(function*() {
    const { kill, start: restart, url } = yield* server
    const store = yield* newStore
    const ids = Array.from({ length: 600 }, (_, index) => `${index}`)
    const append = (from: number, to: number) => store.append(ids.slice(from, to).flatMap(story))
    const { status } = yield* start(store, { name: "x", to: broker(url), batch: 50 })
    yield* append(0, 200)
    yield* Effect.repeat(Effect.andThen(Effect.yieldNow, status), { until: ({ position }) => position > 100 })
    yield* kill
    yield* append(200, 400)
    const before = yield* status
    assert.isAbove(before.lag_events, 0)
    yield* restart
    yield* append(400, 600)
    yield* Effect.repeat(Effect.delay(status, "20 millis"), { until: ({ lag_events }) => lag_events === 0 })
    const first = new Map<string, number>()
    const arrived = Stream.unwrap(
      EventSubscriber.EventSubscriber.use((subscriber) => subscriber.subscribe({ consumer: "c", maxInFlight: 100 }))
    ).pipe(
      Stream.tap(({ ack }) => ack),
      Stream.tap(({ event: { id } }) => Effect.sync(() => first.has(id) || first.set(id, first.size))),
      Stream.takeUntil(() => first.size === 2 * ids.length),
      Stream.runDrain
    )
    yield* Effect.provide(arrived, broker(url))
    for (const id of ids) assert.isBelow(first.get(`${id}:started`) ?? Infinity, first.get(`${id}:completed`) ?? -1)
  })

withProgram("NATS", "a relay to a NATS server that is killed", () => {
  it.live("goes on where it was, and nothing is lost", () =>
    overRestart(ownNats(), (servers) => Nats.layer({ servers, policy: "closed", timeout: "500 millis" })))
})

withProgram("Redis", "a relay to a Redis server that is killed", () => {
  it.live("goes on where it was, and nothing is lost", () =>
    overRestart(ownRedis(), (url) => Redis.layer({ url, policy: "closed", timeout: "500 millis" })))
})
