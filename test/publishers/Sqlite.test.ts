import { assert, describe, it } from "@effect/vitest"
import { Cause, Context, Deferred, Effect, Exit, Fiber, Layer, Logger, Metric, Queue, Schema, Scope } from "effect"
import { SqlClient } from "effect/sql"
import { TestClock } from "effect/testing"
import * as fs from "node:fs"
import * as os from "node:os"
import * as path from "node:path"
import { DatabaseSync } from "node:sqlite"
import * as Backend from "../../src/backends/Sqlite.ts"
import * as DomainEvent from "../../src/DomainEvent.ts"
import * as EventPublisher from "../../src/EventPublisher.ts"
import * as EventStore from "../../src/EventStore.ts"
import * as ExecutionEvent from "../../src/ExecutionEvent.ts"
import { instrument } from "../../src/instrument.ts"
import * as Sqlite from "../../src/publishers/Sqlite.ts"
import * as ChildProcess from "../fixtures/childProcess.ts"
import { domainEvent } from "../fixtures/events.ts"

const temporaryFile = Effect.map(
  Effect.acquireRelease(
    Effect.sync(() => fs.mkdtempSync(path.join(os.tmpdir(), "sqlite-publisher-"))),
    (directory) => Effect.sync(() => fs.rmSync(directory, { recursive: true }))
  ),
  (directory) => path.join(directory, "events.db")
)

const connect = (filename: string) =>
  Effect.acquireRelease(Effect.sync(() => new DatabaseSync(filename)), (db) => Effect.sync(() => db.close()))

/** The events of a file, read by a connection of their own. */
const stored = (db: DatabaseSync) =>
  db.prepare("SELECT payload FROM effect_units_events ORDER BY event_offset").all().map((row) =>
    // The store's own rows: what it wrote is what these tests look at.
    JSON.parse(String(row["payload"])) as EventPublisher.Event
  )

const says = (events: ReadonlyArray<EventPublisher.Event>) =>
  events.map((event) =>
    ExecutionEvent.isExecutionEvent(event) ? `${event.unit_name} ${event.event_type.slice(10)}` : event.type
  )

/** A publisher and its store on one client that the test shares, and what it logs and counts. */
const shared = Effect.fnUntraced(function*(options: Sqlite.Options = {}) {
  const logged: Array<string> = []
  const logger = Logger.layer([Logger.make(({ message }) => void logged.push(String(message)))])
  const registry = new Map()
  const scope = yield* Effect.acquireRelease(Scope.make(), (scope) => Scope.close(scope, Exit.void))
  const context = yield* Sqlite.layerStore(options).pipe(
    Layer.provideMerge(EventStore.layer()),
    Layer.provideMerge(Backend.layer({ filename: ":memory:" })),
    Layer.provide([logger, Layer.succeed(Metric.MetricRegistry, registry)]),
    Layer.buildWithScope(scope)
  )
  const count = (name: string) =>
    Effect.map(
      Effect.provideService(Metric.snapshot, Metric.MetricRegistry, registry),
      (metrics) =>
        metrics.filter((metric) => metric.id === name).reduce(
          (sum, metric) => sum + (metric.type === "Counter" ? Number(metric.state.count) : 0),
          0
        )
    )
  return {
    logged,
    count,
    context,
    close: Scope.close(scope, Exit.void),
    publisher: Context.get(context, EventPublisher.EventPublisher),
    store: Context.get(context, EventStore.EventStore),
    sql: Context.get(context, SqlClient.SqlClient)
  }
})

const add = instrument((n: number) => Effect.succeed(n + 1), { name: "test.add" })

const Noted = DomainEvent.define("test.noted", { text: Schema.String })

/** Lets the database take not one event more; `makeRoom` undoes it. The number of events that it took until then. */
const fillUp = Effect.fnUntraced(function*(
  { sql, store }: { readonly sql: SqlClient.SqlClient; readonly store: EventStore.Store }
) {
  const [row] = yield* sql<{ page_count: number }>`PRAGMA page_count`
  yield* sql`PRAGMA max_page_count = ${sql.literal(String(row!.page_count))}`
  const before = yield* store.lastOffset
  for (let id = 0;; id++) {
    const appended = yield* Effect.exit(store.append([domainEvent(`filler-${id}`)]))
    if (Exit.isFailure(appended)) return (yield* store.lastOffset) - before
  }
})

const makeRoom = ({ sql }: { readonly sql: SqlClient.SqlClient }) => sql`PRAGMA max_page_count = 10000`

/** Waits until the store has so many events. Storing is done in real time, whatever the clock of the test says. */
const until = Effect.fnUntraced(function*(store: EventStore.Store, offset: number) {
  while ((yield* store.lastOffset) < offset) yield* Effect.promise(() => new Promise(setImmediate))
})

describe("open", () => {
  it.effect("what units publish is stored in order, numbered without holes, and flushed as the scope closes", () =>
    Effect.gen(function*() {
      const filename = yield* temporaryFile
      yield* Effect.forEach(Array.from({ length: 3000 }, (_, n) => n), add, { discard: true }).pipe(
        Effect.provide(Sqlite.layer({ filename }))
      )
      const events = stored(yield* connect(filename))
      assert.strictEqual(events.length, 6000)
      assert.deepStrictEqual(
        events.map((event) => event.sequence),
        Array.from({ length: 6000 }, (_, index) => index + 1)
      )
      assert.deepStrictEqual(
        says(events),
        Array.from({ length: 3000 }, () => ["test.add started", "test.add completed"]).flat()
      )
      for (let index = 0; index < 6000; index += 2) {
        assert.strictEqual(events[index]!.correlation_id, events[index + 1]!.correlation_id)
      }
    }))

  it.effect("events arrive while the scope is open, and the clock of a test stands still", () =>
    Effect.gen(function*() {
      const { context, store } = yield* shared()
      yield* Effect.provide(add(1), context)
      yield* until(store, 2)
      assert.deepStrictEqual(
        says((yield* store.read()).map(({ event }) => event)),
        ["test.add started", "test.add completed"]
      )
    }))

  it.effect("a full disk costs no unit and no event: what was accepted is stored once there is space", () =>
    Effect.gen(function*() {
      const made = yield* shared({ batch: 50 })
      const { context, count, logged, store } = made
      const fillers = yield* fillUp(made)
      const results = yield* Effect.provide(Effect.forEach([1, 2, 3], add), context)
      assert.deepStrictEqual(results, [2, 3, 4])
      while (logged.length === 0) yield* Effect.promise(() => new Promise(setImmediate))
      assert.match(logged[0]!, /the disk is full: free space, or prune the store\. Events wait and are tried again/)
      // Several tries later, still nothing but the one message.
      for (let round = 0; round < 5; round++) yield* TestClock.adjust("2 seconds")
      yield* Effect.provide(add(4), context)
      for (let round = 0; round < 5; round++) yield* TestClock.adjust("2 seconds")
      assert.strictEqual(logged.length, 1)
      assert.strictEqual(yield* store.lastOffset, fillers)
      assert.strictEqual(yield* count("effect_units_publish_failures"), 8)

      yield* makeRoom(made)
      yield* TestClock.adjust("2 seconds")
      yield* until(store, fillers + 8)
      assert.deepStrictEqual(
        (yield* store.read({ after: fillers })).map(({ event }) => event.sequence),
        [1, 2, 3, 4, 5, 6, 7, 8]
      )
      assert.strictEqual(yield* count("effect_units_events_dropped"), 0)
    }))

  it.effect("an event that the database refuses for good does not take the others with it", () =>
    Effect.gen(function*() {
      const { count, logged, publisher, sql, store } = yield* shared()
      yield* sql`CREATE TRIGGER refuse BEFORE INSERT ON effect_units_events WHEN NEW.id = 'poison'
        BEGIN SELECT RAISE(ABORT, 'refused'); END`
      const broken = Object.defineProperty(domainEvent("broken"), "payload", {
        get: () => {
          throw new Error("no payload")
        }
      })
      for (const event of [domainEvent("1"), broken, domainEvent("2"), domainEvent("poison"), domainEvent("3")]) {
        publisher.offer(event)
      }
      yield* until(store, 3)
      assert.deepStrictEqual((yield* store.read()).map(({ event }) => event.id), ["1", "2", "3"])
      assert.strictEqual(yield* count("effect_units_events_dropped"), 2)
      // Two streaks: in between an event was stored.
      assert.strictEqual(logged.length, 2)
      for (const message of logged) assert.include(message, "Events are lost")
    }))

  it.effect("what finds no room is refused and counted; what was accepted is stored", () =>
    Effect.gen(function*() {
      const { close, count, publisher, sql, store } = yield* shared({ capacity: 10 })
      const holding = yield* Deferred.make<void>()
      const release = yield* Deferred.make<void>()
      yield* Effect.forkChild(
        sql.withTransaction(Effect.andThen(Deferred.succeed(holding, undefined), Deferred.await(release)))
      )
      yield* Deferred.await(holding)
      for (let id = 0; id < 15; id++) publisher.offer(domainEvent(`${id}`))
      assert.strictEqual(yield* count("effect_units_publish_failures"), 5)
      yield* Deferred.succeed(release, undefined)
      yield* until(store, 10)
      assert.deepStrictEqual(
        (yield* store.read()).map(({ event }) => event.id),
        Array.from({ length: 10 }, (_, id) => `${id}`)
      )
      yield* close
    }))

  it.effect("closing waits for a locked database until the deadline, and counts what is dropped", () =>
    Effect.gen(function*() {
      const { close, count, logged, publisher, sql } = yield* shared({ flushTimeout: "3 seconds" })
      const holding = yield* Deferred.make<void>()
      const holder = yield* Effect.forkChild(
        sql.withTransaction(Effect.andThen(Deferred.succeed(holding, undefined), Effect.never))
      )
      yield* Deferred.await(holding)
      for (let id = 0; id < 7; id++) publisher.offer(domainEvent(`${id}`))
      const closing = yield* Effect.forkChild(close, { startImmediately: true })
      yield* TestClock.adjust("2999 millis")
      assert.isUndefined(closing.pollUnsafe())
      yield* TestClock.adjust("1 millis")
      yield* Fiber.interrupt(holder)
      yield* Fiber.join(closing)
      assert.strictEqual(yield* count("effect_units_events_dropped"), 7)
      assert.deepStrictEqual(logged, [
        "The event store did not take everything before its deadline: 7 events were dropped"
      ])
    }))
})

describe("closed", () => {
  it.effect("closing does not wait for a locked file behind its deadline, and tells those who wait", () =>
    Effect.gen(function*() {
      const filename = yield* temporaryFile
      const scope = yield* Scope.make()
      const context = yield* Layer.buildWithScope(
        Sqlite.layer({ filename, policy: "closed", flushTimeout: "1 second", busyTimeout: "1 hour", batch: 1 }),
        scope
      )
      const { publish } = Context.get(context, EventPublisher.EventPublisher)
      const db = yield* connect(filename)
      db.exec("BEGIN IMMEDIATE")
      // The first is being stored, the second waits.
      const waiting = [
        yield* Effect.forkChild(publish(domainEvent("1"))),
        yield* Effect.forkChild(publish(domainEvent("2")))
      ]
      yield* TestClock.adjust("10 millis")
      const closing = yield* Effect.forkChild(Scope.close(scope, Exit.void))
      yield* TestClock.adjust("1 second")
      yield* Fiber.join(closing)
      const refusals = yield* Effect.forEach(waiting, (fiber) => Effect.flip(Fiber.join(fiber)))
      assert.deepStrictEqual(refusals.map(({ event_id, reason }) => [event_id, reason._tag]), [
        ["1", "Unavailable"],
        ["2", "Unavailable"]
      ])
    }))

  it.effect("a unit runs once its start is committed, and its caller resumes once its end is", () =>
    Effect.gen(function*() {
      const filename = yield* temporaryFile
      const seen = yield* Effect.gen(function*() {
        const db = yield* connect(filename)
        const look = instrument(() => Effect.sync(() => says(stored(db))), { name: "test.look" })
        return [yield* look(), says(stored(db))]
      }).pipe(Effect.provide(Sqlite.layer({ filename, policy: "closed" })), Effect.scoped)
      assert.deepStrictEqual(seen, [["test.look started"], ["test.look started", "test.look completed"]])
    }))

  it.effect("a unit whose start cannot be committed does not run; an end that cannot be is tried again", () =>
    Effect.gen(function*() {
      const made = yield* shared({ policy: "closed" })
      const { context, logged, store } = made
      const ran: Array<string> = []
      const unit = instrument((name: string) => Effect.sync(() => ran.push(name)), { name: "test.unit" })
      const fill = instrument(() => fillUp(made), { name: "test.fill" })

      // The disk is full by the end of this one.
      const filling = yield* Effect.forkChild(Effect.provide(fill(), context), { startImmediately: true })
      while (logged.length === 0) yield* Effect.promise(() => new Promise(setImmediate))
      yield* TestClock.adjust("1 seconds")
      assert.isUndefined(filling.pollUnsafe())

      const refusing = yield* Effect.forkChild(
        Effect.flip(EventPublisher.failOnRefusal(Effect.provide(unit("refused"), context))),
        { startImmediately: true }
      )
      yield* TestClock.adjust("2 seconds")
      const refusal = yield* Fiber.join(refusing)
      assert.strictEqual(refusal.reason._tag, "Unavailable")
      assert.include(refusal.message, "the disk is full")
      assert.isTrue(refusal.retryable)

      yield* makeRoom(made)
      yield* TestClock.adjust("1900 millis")
      assert.strictEqual((yield* Fiber.join(filling)) + 2, yield* store.lastOffset)
      yield* Effect.provide(unit("runs"), context)
      assert.deepStrictEqual(ran, ["runs"])
      // The publisher tells of the end that waits, and of the start that it refused, once each.
      assert.strictEqual(logged.length, 2)
      assert.deepStrictEqual(
        says((yield* store.read({ limit: 1000 })).map(({ event }) => event)).filter((text) => text !== "model.created"),
        ["test.fill started", "test.fill completed", "test.unit started", "test.unit completed"]
      )
    }))

  it.effect("domain events keep their place between start and end", () =>
    Effect.gen(function*() {
      const { context, store } = yield* shared({ policy: "closed" })
      const unit = instrument(
        () => Effect.forEach(["a", "b"], (text) => Noted.publish({ text }), { discard: true }),
        { name: "test.unit" }
      )
      yield* Effect.provide(unit(), context)
      assert.deepStrictEqual(
        says((yield* store.read()).map(({ event }) => event)),
        ["test.unit started", "test.noted", "test.noted", "test.unit completed"]
      )
    }))

  it.effect("within a transaction of the same client the events are a part of it", () =>
    Effect.gen(function*() {
      const { context, sql, store } = yield* shared({ policy: "closed" })
      yield* Effect.exit(sql.withTransaction(Effect.andThen(Effect.provide(add(1), context), Effect.fail("no"))))
      assert.strictEqual(yield* store.lastOffset, 0)
      yield* sql.withTransaction(Effect.provide(add(1), context))
      assert.deepStrictEqual(
        says((yield* store.read()).map(({ event }) => event)),
        ["test.add started", "test.add completed"]
      )
    }))
})

describe("transactional", () => {
  const setup = Effect.gen(function*() {
    const made = yield* shared({ policy: "transactional" })
    const { sql, store } = made
    yield* sql`CREATE TABLE accounts (name TEXT PRIMARY KEY)`
    const write = (name: string) => sql`INSERT INTO accounts VALUES (${name})`
    const accounts = Effect.map(sql`SELECT name FROM accounts ORDER BY name`.values, (rows) => rows.flat())
    const events = Effect.map(store.read(), (entries) => says(entries.map(({ event }) => event)))
    return { ...made, write, accounts, events }
  })

  it.effect("the handler's writes and the completed event commit together", () =>
    Effect.gen(function*() {
      const { accounts, context, events, store, write } = yield* setup
      const unit = instrument(
        (name: string) =>
          Effect.gen(function*() {
            yield* write(name)
            yield* Noted.publish({ text: name })
            // Only the start is committed by now; the rest is a part of this transaction.
            return says((yield* store.read()).map(({ event }) => event))
          }),
        { name: "test.open" }
      )
      assert.deepStrictEqual(yield* Effect.provide(unit("ada"), context), ["test.open started"])
      assert.deepStrictEqual(yield* accounts, ["ada"])
      assert.deepStrictEqual(yield* events, ["test.open started", "test.noted", "test.open completed"])
    }))

  it.effect("a failure takes back the writes and what was published, and is told after", () =>
    Effect.gen(function*() {
      const { accounts, context, events, write } = yield* setup
      const unit = instrument(
        (name: string) =>
          write(name).pipe(
            Effect.andThen(Noted.publish({ text: name })),
            Effect.andThen(add(1)),
            Effect.andThen(Effect.fail("no"))
          ),
        { name: "test.open" }
      )
      assert.deepStrictEqual(yield* Effect.exit(Effect.provide(unit("ada"), context)), Exit.fail("no"))
      assert.deepStrictEqual([yield* accounts, yield* events], [[], ["test.open started", "test.open failed"]])
    }))

  it.effect("a unit within a unit is taken back by itself, and goes with the outer one", () =>
    Effect.gen(function*() {
      const { accounts, context, events, write } = yield* setup
      const inner = instrument(
        (name: string, fails: boolean) =>
          Effect.andThen(
            write(name),
            Effect.andThen(Noted.publish({ text: name }), fails ? Effect.fail("no") : Effect.void)
          ),
        { name: "test.inner" }
      )
      const outer = instrument(
        () =>
          Effect.gen(function*() {
            yield* write("outer")
            yield* Effect.exit(inner("fails", true))
            yield* inner("stays", false)
          }),
        { name: "test.outer" }
      )
      yield* Effect.provide(outer(), context)
      assert.deepStrictEqual(yield* accounts, ["outer", "stays"])
      assert.deepStrictEqual(yield* events, [
        "test.outer started",
        "test.inner started",
        "test.inner failed",
        "test.inner started",
        "test.noted",
        "test.inner completed",
        "test.outer completed"
      ])
    }))

  it.effect("a commit that fails is a defect, and the execution has failed", () =>
    Effect.gen(function*() {
      const { accounts, context, events, sql } = yield* setup
      yield* sql`CREATE TABLE entries (name TEXT REFERENCES accounts DEFERRABLE INITIALLY DEFERRED)`
      const unit = instrument(() => sql`INSERT INTO entries VALUES ('nobody')`, { name: "test.book" })
      const exit = yield* Effect.exit(EventPublisher.failOnRefusal(Effect.provide(unit(), context)))
      assert.isTrue(Exit.isFailure(exit) && Cause.hasFails(exit.cause))
      assert.deepStrictEqual([yield* accounts, yield* events], [[], ["test.book started", "test.book failed"]])
      assert.deepStrictEqual(yield* sql`SELECT * FROM entries`, [])
    }))

  it.effect("what a handler forks and does not wait for is published by itself, once the transaction is over", () =>
    Effect.gen(function*() {
      const { context, events, store } = yield* setup
      const proceed = yield* Deferred.make<void>()
      const unit = instrument(
        () => Effect.forkDetach(Effect.andThen(Deferred.await(proceed), add(1))),
        { name: "test.fork" }
      )
      const daemon = yield* Effect.provide(unit(), context)
      yield* Deferred.succeed(proceed, undefined)
      yield* Fiber.await(daemon)
      yield* until(store, 3)
      assert.deepStrictEqual((yield* events).slice(0, 3), [
        "test.fork started",
        "test.fork completed",
        "test.add started"
      ])
    }))
})

describe("a process that is killed", () => {
  it.effect("loses nothing of what a closed publisher acknowledged", () =>
    Effect.gen(function*() {
      const filename = yield* temporaryFile
      const child = yield* ChildProcess.start("sqlitePublisherProcess.ts", filename)
      const lines = [...yield* Queue.takeN(child.lines, 200)]
      yield* child.kill
      lines.push(...yield* Queue.collect(child.lines))
      const db = yield* connect(filename)
      assert.deepStrictEqual({ ...db.prepare("PRAGMA integrity_check").get() }, { integrity_check: "ok" })
      const ids = new Set(stored(db).map((event) => event.id))
      assert.deepStrictEqual(
        lines.flatMap((id) => [`${id}:started`, `${id}:completed`]).filter((id) => !ids.has(id)),
        []
      )
    }), 20_000)
})
