import { assert, describe, it, vi } from "@effect/vitest"
import { Clock, Context, DateTime, Deferred, Effect, Exit, Fiber, Layer, Option, Queue, Schema, Stream } from "effect"
import { SqlClient, Statement } from "effect/sql"
import { TestClock } from "effect/testing"
import * as fs from "node:fs"
import * as path from "node:path"
import { DatabaseSync } from "node:sqlite"
import type * as Sqlite from "../src/backends/Sqlite.ts"
import type { Event } from "../src/EventPublisher.ts"
import * as EventStore from "../src/EventStore.ts"
import * as ExecutionEvent from "../src/ExecutionEvent.ts"
import * as Migrations from "../src/internal/eventStoreMigrations.ts"
import * as ChildProcess from "./fixtures/childProcess.ts"
import { completed, domainEvent, failed, started } from "./fixtures/events.ts"
import { postgres, sqlite, temporaryFile, type World } from "./fixtures/storeWorlds.ts"
import { withServer } from "./servers.ts"

const open = (filename: string, options?: Partial<EventStore.Options & Sqlite.Options>) =>
  Effect.map(Layer.build(EventStore.layerSqlite({ filename, ...options })), Context.get(EventStore.EventStore))

/** A store on a file, and a second connection to that file. */
const onFile = Effect.gen(function*() {
  const filename = yield* temporaryFile
  const store = yield* open(filename)
  const other = yield* Effect.acquireRelease(
    Effect.sync(() => new DatabaseSync(filename)),
    (db) => Effect.sync(() => db.close())
  )
  return { filename, store, other }
})

/** A store on a client that the test shares. */
const sharedOn = (client: Layer.Layer<SqlClient.SqlClient>) =>
  Effect.map(
    Layer.build(EventStore.layer().pipe(Layer.provideMerge(client))),
    (context) => ({
      store: Context.get(context, EventStore.EventStore),
      sql: Context.get(context, SqlClient.SqlClient)
    })
  )

const entries = (events: ReadonlyArray<Event>, from = 1) =>
  events.map((event, index) => ({ offset: from + index, event }))

/** Lets input and output go on. */
const ioTurn = Effect.promise(() => new Promise(setImmediate))

/** Lets the time of the tests run for as long as an effect needs it. */
const whileTimePasses = <A, E, R>(self: Effect.Effect<A, E, R>, step: `${number} millis` | `${number} seconds`) =>
  Effect.raceFirst(self, Effect.forever(TestClock.adjust(step)))

/** Root may write what nobody else may; run as nobody so that permissions count. */
const asUnprivileged = <A, E, R>(effect: Effect.Effect<A, E, R>) =>
  Effect.acquireUseRelease(
    Effect.sync(() => {
      const root = process.geteuid!() === 0
      if (root) process.seteuid!(65534)
      return root
    }),
    () => effect,
    (root) =>
      Effect.sync(() => {
        if (root) process.seteuid!(0)
      })
  )

const suite = (world: World) => {
  const { database } = world
  const shared = sharedOn(world.client)
  const memory = Effect.map(shared, ({ store }) => store)

  describe("append and read", () => {
    it.effect("events come back whole, in order, with offsets from 1", () =>
      Effect.gen(function*() {
        const store = yield* memory
        const events = [
          started("a", { attributes: { request_id: "r" }, trace_id: "t".repeat(32) }),
          domainEvent("d1", { correlation: "a" }),
          completed("a"),
          failed("b")
        ]
        assert.strictEqual(yield* store.lastOffset, 0)
        assert.deepStrictEqual(yield* store.append(events.slice(0, 1)), { stored: 1, duplicates: [], last_offset: 1 })
        assert.deepStrictEqual(yield* store.append(events.slice(1)), { stored: 3, duplicates: [], last_offset: 4 })
        assert.deepStrictEqual(yield* store.read(), entries(events))
        assert.deepStrictEqual(yield* store.read({ after: 1, limit: 2 }), entries(events).slice(1, 3))
        assert.deepStrictEqual(yield* store.read({ after: 4 }), [])
        assert.deepStrictEqual(yield* store.append([]), { stored: 0, duplicates: [], last_offset: 4 })
        assert.strictEqual(yield* store.lastOffset, 4)
      }))

    it.effect("an event that the log has is not stored again, in one batch or in several, and leaves no hole", () =>
      Effect.gen(function*() {
        const store = yield* memory
        yield* store.append([started("a"), completed("a"), domainEvent("d1")])
        assert.deepStrictEqual(
          yield* store.append([started("b"), started("b"), completed("a"), domainEvent("d1"), completed("b")]),
          { stored: 2, duplicates: ["b:started", "a:completed", "d1"], last_offset: 5 }
        )
        assert.deepStrictEqual(yield* store.append([started("a")]), {
          stored: 0,
          duplicates: ["a:started"],
          last_offset: 5
        })
        assert.deepStrictEqual(
          yield* store.read(),
          entries([started("a"), completed("a"), domainEvent("d1"), started("b"), completed("b")])
        )
      }))

    it.effect("an execution takes one terminal event", () =>
      Effect.gen(function*() {
        const store = yield* memory
        assert.deepStrictEqual(yield* store.append([started("a"), failed("a"), completed("a")]), {
          stored: 2,
          duplicates: ["a:completed"],
          last_offset: 2
        })
        yield* store.append([started("b")])
        yield* store.append([completed("b")])
        assert.deepStrictEqual(yield* store.append([failed("b"), started("c")]), {
          stored: 1,
          duplicates: ["b:failed"],
          last_offset: 5
        })
      }))

    it.effect("a large batch is stored as a whole", () =>
      Effect.gen(function*() {
        const { sql, store } = yield* shared
        const events = Array.from({ length: 700 }, (_, index) => [started(`${index}`), completed(`${index}`)]).flat()
        assert.deepStrictEqual(yield* store.append(events), { stored: 1400, duplicates: [], last_offset: 1400 })
        assert.deepStrictEqual(yield* store.read({ limit: 1000 }), entries(events).slice(0, 1000))

        for (const statement of world.refuse("last")) yield* sql.unsafe(statement)
        const more = Array.from({ length: 700 }, (_, index) => domainEvent(`more-${index}`))
        const error = yield* Effect.flip(store.append([...more, domainEvent("last")]))
        assert.strictEqual(error.reason._tag, "Unavailable")
        assert.strictEqual(yield* store.lastOffset, 1400)
        assert.deepStrictEqual(yield* store.read({ after: 1400 }), [])
      }))

    it.effect("an append in a transaction commits with it, or not at all", () =>
      Effect.gen(function*() {
        const { sql, store } = yield* shared
        yield* sql`CREATE TABLE accounts (name TEXT)`
        const write = Effect.andThen(
          sql`INSERT INTO accounts VALUES ('ada')`,
          store.append([domainEvent("d1")])
        )
        const inside = yield* Deferred.make<boolean>()
        yield* Effect.exit(store.withTransaction(Effect.gen(function*() {
          yield* write
          yield* Deferred.succeed(inside, store.inTransaction(yield* Effect.context<never>()))
          return yield* Effect.fail("no")
        })))
        assert.deepStrictEqual([yield* store.read(), yield* sql`SELECT * FROM accounts`], [[], []])
        assert.isTrue(yield* Deferred.await(inside))
        assert.isFalse(store.inTransaction(yield* Effect.context<never>()))

        yield* store.withTransaction(write)
        assert.deepStrictEqual(yield* store.read(), entries([domainEvent("d1")]))
        assert.deepStrictEqual(yield* sql`SELECT name FROM accounts`.values, [["ada"]])
      }))

    it.effect("any text goes in and comes out: NUL characters, lone surrogates, quotes, other scripts", () =>
      Effect.gen(function*() {
        const store = yield* memory
        const texts = [
          "a\u0000b",
          "\u0000",
          "\ud800",
          "\udc00x",
          "'; DROP TABLE x; --",
          "\u2028",
          "é🙂",
          "\\ud800",
          "\"\\ud800\"",
          ""
        ]
        const events = texts.flatMap((text, index): ReadonlyArray<Event> => [
          started(`${index}${text}`, { input: { [text]: [text] }, attributes: { text }, unit: `model.${text}` }),
          failed(`${index}${text}`, {
            unit: `model.${text}`,
            error: text,
            failure: { kind: "fail", tag: text, value: text }
          }),
          domainEvent(`id ${index}`, { type: `model.${text}`, payload: text })
        ])
        yield* store.append(events)
        assert.deepStrictEqual(yield* store.read({ limit: 100 }), entries(events))
        for (const text of ["a\u0000b", "\ud800"]) {
          const expected = entries(events).filter(({ event }) => event.unit_name === `model.${text}`)
          assert.strictEqual(expected.length, 2)
          assert.deepStrictEqual(yield* store.read({ filter: { units: [`model.${text}`] } }), expected)
          const [execution] = yield* store.executions({ unit: `model.${text}` })
          assert.strictEqual(execution?.correlation_id, expected[0]?.event.correlation_id)
        }
        // Ids that differ in a lone surrogate only are two ids.
        assert.deepStrictEqual(
          yield* store.append([domainEvent("s\ud800"), domainEvent("s\ud801"), domainEvent("s\ufffd")]),
          { stored: 3, duplicates: [], last_offset: events.length + 3 }
        )
        assert.deepStrictEqual(yield* store.append([domainEvent("s\ud800")]), {
          stored: 0,
          duplicates: ["s\ud800"],
          last_offset: events.length + 3
        })
      }))

    it.effect("events are in the columns that an outbox router looks for", () =>
      Effect.gen(function*() {
        const { open, rows } = yield* database
        const store = yield* open()
        const events = [started("a"), domainEvent("d"), domainEvent("e", { correlation: "a" }), completed("a")]
        yield* store.append(events.slice(0, 2))
        yield* store.withTransaction(store.append(events.slice(2)))
        yield* store.lastOffset
        const found = yield* rows(
          "SELECT id, aggregatetype, aggregateid, type, payload FROM effect_units_events ORDER BY event_offset"
        )
        assert.deepStrictEqual(
          found.map(({ payload, ...row }) => ({ ...row, payload: JSON.parse(String(payload)) })),
          ["execution_started", "model.created", "model.created", "execution_completed"].map((type, index) => ({
            id: events[index]!.id,
            aggregatetype: "model",
            aggregateid: index === 1 ? "d" : "a",
            type,
            payload: JSON.parse(JSON.stringify(events[index]))
          }))
        )
      }))

    it.effect("an event that no program of this version wrote is told by its offset", () =>
      Effect.gen(function*() {
        const { execute, open } = yield* database
        const store = yield* open()
        yield* store.append([domainEvent("d1"), domainEvent("d2"), domainEvent("d3")])
        yield* execute(`UPDATE effect_units_events SET payload = '{"event_type":"execution_paused"}' WHERE id = 'd2'`)
        const error = yield* Effect.flip(store.read())
        assert.strictEqual(error.reason._tag, "Undecodable")
        assert.strictEqual(
          error.message,
          "Event store: the event at offset 2 cannot be decoded: update effect-units, or read on after it"
        )
        assert.deepStrictEqual(yield* store.read({ after: 2 }), [{ offset: 3, event: domainEvent("d3") }])
      }))

    const log: ReadonlyArray<Event> = Array.from({ length: 60 }, (_, index) => {
      const unit = ["model.pull", "model.list", "engine.start"][index % 3]!
      return index % 5 === 4
        ? [
          domainEvent(`d${index}`, {
            type: index % 2 === 0 ? "model.created" : "engine.ready",
            correlation: `${index}`
          })
        ]
        : [
          started(`${index}`, { unit }),
          index % 4 === 0 ? failed(`${index}`, { unit }) : completed(`${index}`, { unit })
        ]
    }).flat()

    const some = (values: ReadonlyArray<string>) => Schema.optional(Schema.Array(Schema.Literals(values)))

    const filled = Layer.effect(
      EventStore.EventStore,
      Effect.tap(EventStore.make(), (store) => store.append(log))
    ).pipe(Layer.provide(world.client))

    it.layer(filled)((it) => {
      it.effect.prop("a filter gives the events that fit it", {
        types: some(["execution_started", "execution_failed", "model.created", "none"]),
        domains: some(["model", "engine"]),
        units: some(["model.pull", "engine.start"]),
        correlationId: Schema.optional(Schema.Literals(["0", "4", "none"])),
        after: Schema.Int.check(Schema.isBetween({ minimum: 0, maximum: 120 })),
        limit: Schema.Int.check(Schema.isBetween({ minimum: 1, maximum: 50 }))
      }, ({ after, limit, ...filter }) =>
        Effect.gen(function*() {
          const store = yield* EventStore.EventStore
          const { correlationId, domains, types, units } = filter
          const fits = (event: Event) =>
            (types === undefined ||
              types.includes(ExecutionEvent.isExecutionEvent(event) ? event.event_type : event.type)) &&
            (domains === undefined || domains.includes(event.domain)) &&
            (units === undefined || (event.unit_name !== undefined && units.includes(event.unit_name))) &&
            (correlationId === undefined || event.correlation_id === correlationId)
          const expected = entries(log).slice(after).filter(({ event }) => fits(event)).slice(0, limit)
          assert.deepStrictEqual(yield* store.read({ after, limit, filter }), expected)
          const tailed = yield* store.tail({ after, filter }).pipe(Stream.take(expected.length), Stream.runCollect)
          assert.deepStrictEqual(tailed, expected)
        }), { arbitrary: { runs: 60 }, timeout: 20_000 })
    })

    it.effect("a filter passes over any number of other events", () =>
      Effect.gen(function*() {
        const store = yield* memory
        yield* store.append(Array.from({ length: 2500 }, (_, index) => domainEvent(`${index}`)))
        yield* store.append([domainEvent("last", { type: "engine.ready" })])
        const expected = [{ offset: 2501, event: domainEvent("last", { type: "engine.ready" }) }]
        assert.deepStrictEqual(yield* store.read({ filter: { domains: ["engine"] } }), expected)
        const tail = store.tail({ filter: { domains: ["engine"] } })
        assert.deepStrictEqual(yield* Stream.runCollect(Stream.take(tail, 1)), expected)
        // More of them at once than a page holds.
        const others = yield* store.tail({ filter: { domains: ["model"] } }).pipe(Stream.take(2500), Stream.runCollect)
        assert.deepStrictEqual(
          others.map(({ offset }) => offset),
          Array.from({ length: 2500 }, (_, index) => index + 1)
        )
      }))
  })

  describe("tail", () => {
    it.effect("goes from replay to live, and sees this store's appends at once", () =>
      Effect.gen(function*() {
        const store = yield* memory
        yield* store.append([domainEvent("1"), domainEvent("2")])
        const seen = yield* Queue.unbounded<EventStore.Entry>()
        yield* store.tail({ after: 1 }).pipe(
          Stream.runForEach((entry) => Queue.offer(seen, entry)),
          Effect.forkScoped
        )
        assert.deepStrictEqual(yield* Queue.take(seen), { offset: 2, event: domainEvent("2") })
        yield* store.append([domainEvent("3")])
        assert.deepStrictEqual(yield* Queue.take(seen), { offset: 3, event: domainEvent("3") })
        yield* store.append([domainEvent("3"), domainEvent("4")])
        assert.deepStrictEqual(yield* Queue.take(seen), { offset: 4, event: domainEvent("4") })
      }))

    it.effect("after an offset that the log does not have fails, at once and later", () =>
      Effect.gen(function*() {
        const { sql, store } = yield* shared
        yield* store.append([domainEvent("1"), domainEvent("2"), domainEvent("3")])
        const beyond = (after: number, last_offset: number) => new EventStore.BeyondEnd({ after, last_offset })
        const follow = (after: number) => Effect.flip(Stream.runDrain(store.tail({ after })))
        assert.deepStrictEqual((yield* follow(4)).reason, beyond(4, 3))
        const following = yield* Effect.forkChild(follow(3), { startImmediately: true })
        // As after a restore from an older copy.
        yield* sql`UPDATE effect_units_log SET last_offset = 2`
        assert.deepStrictEqual((yield* whileTimePasses(Fiber.join(following), "1 seconds")).reason, beyond(3, 2))
      }))

    it.effect("sees what another process appends after the poll interval", () =>
      Effect.gen(function*() {
        const { open } = yield* database
        const store = yield* open()
        const second = yield* open()
        const tail = yield* store.tail({ pollInterval: "10 seconds" }).pipe(
          Stream.take(1),
          Stream.runCollect,
          Effect.forkChild({ startImmediately: true })
        )
        yield* second.append([domainEvent("1")])
        if (world.isSynchronous) {
          yield* TestClock.adjust("9999 millis")
          assert.isUndefined(tail.pollUnsafe())
          yield* TestClock.adjust("1 millis")
        }
        assert.deepStrictEqual(
          yield* whileTimePasses(Fiber.join(tail), "1 seconds"),
          entries([domainEvent("1")])
        )
      }))

    it.effect.prop("has neither a hole nor a double at the seam, whoever appends", {
      writes: Schema.Array(
        Schema.Struct({
          store: Schema.Literals([0, 1]),
          size: Schema.Int.check(Schema.isBetween({ minimum: 1, maximum: 40 }))
        })
      ).check(Schema.isBetweenLength(1, 12)),
      joinAfter: Schema.Int.check(Schema.isBetween({ minimum: 0, maximum: 12 }))
    }, ({ joinAfter, writes }) =>
      Effect.gen(function*() {
        const { open } = yield* database
        const stores = [yield* open(), yield* open()] as const
        const total = writes.reduce((sum, write) => sum + write.size, 0)
        const joined = yield* Deferred.make<void>()
        const write = Effect.forEach(writes, ({ size, store }, index) =>
          Effect.gen(function*() {
            if (index === joinAfter) yield* Deferred.succeed(joined, undefined)
            yield* stores[store].append(Array.from({ length: size }, (_, part) => domainEvent(`${index}.${part}`)))
            yield* Effect.yieldNow
          })).pipe(Effect.andThen(Deferred.succeed(joined, undefined)))
        const follow = Deferred.await(joined).pipe(
          Effect.andThen(stores[0].tail().pipe(Stream.take(total), Stream.runCollect))
        )
        const [, followed] = yield* whileTimePasses(Effect.all([write, follow], { concurrency: 2 }), "500 millis")
        assert.deepStrictEqual(
          followed,
          entries(
            writes.flatMap(({ size }, index) =>
              Array.from({ length: size }, (_, part) => domainEvent(`${index}.${part}`))
            )
          )
        )
      }), { arbitrary: { runs: world.isSynchronous ? 25 : 6 }, timeout: 60_000 })
  })

  describe("executions", () => {
    const record = (
      id: string,
      fields: Partial<EventStore.ExecutionRecord> & Pick<EventStore.ExecutionRecord, "outcome" | "first_offset">
    ): EventStore.ExecutionRecord => ({
      correlation_id: id,
      unit_name: "model.pull",
      domain: "model",
      kind: "command",
      root_id: id,
      source: "source-1",
      started_at: "1970-01-01T00:00:00.000Z",
      children: 0,
      ...fields
    })

    it.effect("join the started and the terminal event", () =>
      Effect.gen(function*() {
        const store = yield* memory
        const long = "x".repeat(2000)
        yield* store.append([started("a", { at: 1000 }), started("b", { at: 2000, kind: "query", unit: "model.list" })])
        yield* store.append([completed("a", { at: 1005 })])
        yield* store.append([
          started("c", { at: 3000, parent: "b", root: "b" }),
          failed("c", { at: 3007, parent: "b", root: "b", duration_ms: 7, error: long })
        ])
        const a = record("a", {
          outcome: "completed",
          first_offset: 1,
          started_at: "1970-01-01T00:00:01.000Z",
          ended_at: "1970-01-01T00:00:01.005Z",
          duration_ms: 5
        })
        const b = record("b", {
          outcome: "running",
          kind: "query",
          unit_name: "model.list",
          first_offset: 2,
          started_at: "1970-01-01T00:00:02.000Z",
          children: 1
        })
        const c = record("c", {
          outcome: "failed",
          parent_id: "b",
          root_id: "b",
          first_offset: 4,
          started_at: "1970-01-01T00:00:03.000Z",
          ended_at: "1970-01-01T00:00:03.007Z",
          duration_ms: 7,
          failure: { kind: "fail", tag: "ModelNotFound", code: "00100", message: long.slice(0, 1000) }
        })
        assert.deepStrictEqual(yield* store.executions(), [c, b, a])
        assert.deepStrictEqual(yield* store.executions({ outcome: "running" }), [b])
        assert.deepStrictEqual(yield* store.executions({ outcome: "failed" }), [c])
        assert.deepStrictEqual(yield* store.executions({ outcome: "completed" }), [a])
        assert.deepStrictEqual(yield* store.executions({ parentId: "b" }), [c])
        assert.deepStrictEqual(
          yield* store.execution("b"),
          Option.some({
            execution: b,
            events: [{ offset: 2, event: started("b", { at: 2000, kind: "query", unit: "model.list" }) }],
            children: [c]
          })
        )
        assert.deepStrictEqual(yield* store.execution("none"), Option.none())
      }))

    it.effect("one has its events, domain events included", () =>
      Effect.gen(function*() {
        const store = yield* memory
        const events = [
          started("a"),
          domainEvent("d1", { correlation: "a" }),
          started("b"),
          domainEvent("d2", { correlation: "b" }),
          domainEvent("d3", { correlation: "a" }),
          completed("a")
        ]
        yield* store.append(events)
        const own = entries(events).filter(({ event }) => event.correlation_id === "a")
        assert.strictEqual(own.length, 4)
        assert.deepStrictEqual(Option.map(yield* store.execution("a"), (detail) => detail.events), Option.some(own))
        assert.deepStrictEqual(
          yield* store.read({ filter: { correlationId: "a" }, after: 1, limit: 2 }),
          own.slice(1, 3)
        )
      }))

    it.effect("stand also where the started event was lost, or comes late", () =>
      Effect.gen(function*() {
        const store = yield* memory
        yield* store.append([completed("a", { at: 1000, duration_ms: 400 })])
        const lost = record("a", {
          outcome: "completed",
          first_offset: 1,
          started_at: "1970-01-01T00:00:00.600Z",
          ended_at: "1970-01-01T00:00:01.000Z",
          duration_ms: 400
        })
        assert.deepStrictEqual(yield* store.executions(), [lost])
        yield* store.append([started("a", { at: 595 })])
        assert.deepStrictEqual(yield* store.executions(), [{ ...lost, started_at: "1970-01-01T00:00:00.595Z" }])
        assert.deepStrictEqual(
          Option.map(yield* store.execution("a"), (detail) => detail.events),
          Option.some(entries([completed("a", { at: 1000, duration_ms: 400 }), started("a", { at: 595 })]))
        )
      }))

    it.effect("are what the log says, whatever a store saw before others appended", () =>
      Effect.gen(function*() {
        const { open } = yield* database
        const one = yield* open()
        const other = yield* open()
        yield* one.append(["ended", "pruned", "running"].map((id) => started(id)))
        yield* other.append([completed("ended"), completed("late"), completed("pruned")])
        assert.deepStrictEqual((yield* one.append([failed("ended")])).duplicates, ["ended:failed"])
        yield* one.append([started("late", { at: -3 })])
        yield* other.prune({ keep: 0 })
        yield* one.append([failed("pruned", { at: 9, duration_ms: 4 })])
        const found = yield* one.executions()
        assert.deepStrictEqual(
          found.map(({ correlation_id, outcome, started_at }) => [correlation_id, outcome, Date.parse(started_at)]),
          [["pruned", "failed", 5], ["running", "running", 0]]
        )
      }))

    it.effect("that end late are not running", () =>
      Effect.gen(function*() {
        const { open } = yield* database
        const one = yield* open()
        const other = yield* open()
        yield* one.append([completed("a"), completed("b")])
        yield* other.append([started("a", { at: -1 }), started("c")])
        yield* other.append([started("b", { at: -2 })])
        const found = yield* other.executions()
        assert.deepStrictEqual(
          found.map(({ correlation_id, outcome, started_at }) => [correlation_id, outcome, Date.parse(started_at)]),
          [["c", "running", 0], ["a", "completed", -1], ["b", "completed", -2]]
        )
      }))

    const all = Array.from({ length: 90 }, (_, index) => {
      const unit = ["model.pull", "model.list", "engine.start"][index % 3]!
      // Starts that repeat and go back and forth: the place in the list is the start, then the offset.
      const at = [0, 500, 100, 100, 900][index % 5]! + index
      const overrides = { unit, at, ...(index % 7 === 6 ? { parent: "0" } : {}) }
      const first = started(`${index}`, overrides)
      return index % 4 === 0
        ? [first]
        : index % 4 === 1
        ? [first, failed(`${index}`, overrides)]
        : [first, completed(`${index}`, overrides)]
    })

    const filled = Layer.effect(
      EventStore.EventStore,
      Effect.tap(EventStore.make(), (store) => Effect.forEach(all, (events) => store.append(events)))
    ).pipe(Layer.provide(world.client))

    it.layer(filled)((it) => {
      it.effect.prop("pages put together are the list, forwards and backwards, under any filter", {
        unit: Schema.optional(Schema.Literals(["model.pull", "engine.start", "none.such"])),
        domain: Schema.optional(Schema.Literals(["model", "engine"])),
        outcome: Schema.optional(Schema.Literals(["running", "completed", "failed"])),
        parentId: Schema.optional(Schema.Literals(["0", "1"])),
        since: Schema.optional(Schema.Literals([0, 100, 130, 600])),
        until: Schema.optional(Schema.Literals([100, 131, 2000])),
        limit: Schema.Int.check(Schema.isBetween({ minimum: 1, maximum: 40 }))
      }, ({ limit, since, until, ...equal }) =>
        Effect.gen(function*() {
          const store = yield* EventStore.EventStore
          const filter = {
            ...equal,
            since: since === undefined ? undefined : DateTime.makeUnsafe(since),
            until: until === undefined ? undefined : DateTime.makeUnsafe(until)
          }
          const expected = (yield* store.executions({ limit: 1000 })).filter((execution) =>
            (equal.unit === undefined || execution.unit_name === equal.unit) &&
            (equal.domain === undefined || execution.domain === equal.domain) &&
            (equal.outcome === undefined || execution.outcome === equal.outcome) &&
            (equal.parentId === undefined || execution.parent_id === equal.parentId) &&
            (since === undefined || Date.parse(execution.started_at) >= since) &&
            (until === undefined || Date.parse(execution.started_at) < until)
          )
          const older: Array<EventStore.ExecutionRecord> = []
          let page = yield* store.executions({ ...filter, limit })
          while (page.length > 0) {
            older.push(...page)
            page = yield* store.executions({ ...filter, limit, before: page.at(-1) })
          }
          assert.deepStrictEqual(older, expected)
          const last = expected.at(-1)
          if (last === undefined) return
          const newer = [last]
          page = yield* store.executions({ ...filter, limit, after: last })
          while (page.length > 0) {
            newer.unshift(...page)
            page = yield* store.executions({ ...filter, limit, after: page[0] })
          }
          assert.deepStrictEqual(newer, expected)
        }), { arbitrary: { runs: 40 }, timeout: 20_000 })

      it.effect("the list is ordered by start, newest first", () =>
        Effect.gen(function*() {
          const store = yield* EventStore.EventStore
          const places = (yield* store.executions({ limit: 1000 })).map((execution) =>
            [Date.parse(execution.started_at), execution.first_offset] as const
          )
          assert.strictEqual(places.length, all.length)
          assert.deepStrictEqual(
            places,
            places.toSorted(([at, offset], [at2, offset2]) => at2 - at || offset2 - offset)
          )
        }))
    })
  })

  describe("prune", () => {
    const finished = (count: number, at = 0) =>
      Array.from(
        { length: count },
        (_, index) => [started(`${at}-${index}`, { at }), completed(`${at}-${index}`, { at })]
      )
        .flat()

    it.effect("by count keeps the newest events, and the offsets go on", () =>
      Effect.gen(function*() {
        const store = yield* memory
        const events = finished(50)
        yield* store.append(events)
        assert.deepStrictEqual(yield* store.prune({ keep: 11, batch: 7 }), { events: 89, executions: 44 })
        assert.deepStrictEqual(yield* store.read(), entries(events).slice(89))
        // Of the execution whose started event went, the record stays for as long as its end does.
        assert.strictEqual((yield* store.executions()).length, 6)
        assert.deepStrictEqual(yield* store.prune({ keep: 0 }), { events: 11, executions: 6 })
        assert.deepStrictEqual([yield* store.read(), yield* store.executions()], [[], []])
        assert.strictEqual((yield* store.append([domainEvent("d")])).last_offset, 101)
        assert.deepStrictEqual(yield* store.prune({ keep: 1 }), { events: 0, executions: 0 })
      }))

    it.effect("by age keeps what is younger, and the start of what still runs", () =>
      Effect.gen(function*() {
        const store = yield* memory
        yield* TestClock.setTime(100_000)
        const old = [
          started("running", { at: 10 }),
          domainEvent("d", { at: 10, correlation: "running" }),
          ...finished(30, 20)
        ]
        const young = finished(5, 90_000)
        yield* store.append([...old, ...young])
        assert.deepStrictEqual(yield* store.prune({ olderThan: "1 minute", batch: 10 }), { events: 61, executions: 30 })
        assert.deepStrictEqual(
          yield* store.read(),
          [{ offset: 1, event: started("running", { at: 10 }) }, ...entries(young, old.length + 1)]
        )
        yield* store.append([completed("running", { at: 100_000 })])
        assert.deepStrictEqual(yield* store.prune({ olderThan: "1 minute", batch: 10 }), { events: 1, executions: 0 })
        assert.strictEqual((yield* store.executions()).length, 6)
        assert.deepStrictEqual(yield* store.prune({}), { events: 0, executions: 0 })
      }))

    it.effect("goes in batches, between which others append", () =>
      Effect.gen(function*() {
        const store = yield* memory
        yield* store.append(finished(500))
        const pruning = yield* Effect.forkChild(store.prune({ keep: 0, batch: 5 }), { startImmediately: true })
        while ((yield* store.read({ limit: 1 }))[0]?.offset === 1) yield* ioTurn
        yield* store.append([domainEvent("between")])
        assert.isUndefined(pruning.pollUnsafe())
        assert.deepStrictEqual(yield* Fiber.join(pruning), { events: 1000, executions: 500 })
        assert.deepStrictEqual(yield* store.read(), [{ offset: 1001, event: domainEvent("between") }])
      }))
  })

  describe("checkpoints", () => {
    it.effect("are kept by consumer, and commit with their transaction", () =>
      Effect.gen(function*() {
        const store = yield* memory
        yield* store.saveCheckpoint("mailer", 7)
        yield* store.saveCheckpoint("a\u0000b", 3)
        yield* store.saveCheckpoint("mailer", 5)
        yield* Effect.exit(store.withTransaction(Effect.andThen(store.saveCheckpoint("mailer", 9), Effect.fail("no"))))
        assert.deepStrictEqual(
          yield* Effect.forEach(["mailer", "a\u0000b", "none"], store.checkpoint),
          [Option.some(5), Option.some(3), Option.none()]
        )
        yield* store.removeCheckpoint("none")
        yield* store.removeCheckpoint("mailer")
        assert.deepStrictEqual(
          yield* Effect.forEach(["mailer", "a\u0000b"], store.checkpoint),
          [Option.none(), Option.some(3)]
        )
      }))
  })

  describe("abandoned executions", () => {
    const isRunning = (store: EventStore.Store) =>
      Effect.map(store.executions({ outcome: "running" }), (list) => list.map((execution) => execution.correlation_id))

    it.effect("are closed when their store was closed under them", () =>
      Effect.gen(function*() {
        const { open } = yield* database
        yield* TestClock.setTime(10_000)
        const first = started("a", {
          at: 4000,
          parent: "p",
          root: "r",
          attributes: { request_id: "1" },
          trace_id: "0".repeat(32)
        })
        yield* Effect.scoped(Effect.flatMap(open(), (store) =>
          Effect.gen(function*() {
            yield* store.append([first, started("b"), completed("b")], { owned: true })
            assert.strictEqual(yield* store.closeAbandoned, 0)
            assert.deepStrictEqual(yield* isRunning(store), ["a"])
          })))
        const store = yield* open()
        const [, , , closing] = yield* store.read()
        const source = closing?.event.source
        assert.deepStrictEqual(closing, {
          offset: 4,
          event: {
            ...failed("a", {
              at: 10_000,
              parent: "p",
              root: "r",
              duration_ms: 6000,
              error: "The process that ran this execution ended before the execution did",
              failure: { kind: "abandoned" },
              source: source ?? "",
              sequence: 1
            }),
            attributes: { request_id: "1" },
            trace_id: "0".repeat(32)
          }
        })
        assert.notStrictEqual(source, "source-1")
        assert.deepStrictEqual(yield* isRunning(store), [])
        assert.strictEqual(yield* store.closeAbandoned, 0)
        // What comes from the dead all the same comes too late.
        assert.deepStrictEqual((yield* store.append([completed("a")])).duplicates, ["a:completed"])
      }))

    it.effect("many are closed, in batches", () =>
      Effect.gen(function*() {
        const { open } = yield* database
        const ids = Array.from({ length: 1203 }, (_, index) => `${index}`)
        yield* Effect.scoped(
          Effect.flatMap(open(), (store) => store.append(ids.map((id) => started(id)), { owned: true }))
        )
        const store = yield* open()
        assert.deepStrictEqual(yield* isRunning(store), [])
        assert.strictEqual(yield* store.lastOffset, 2406)
        const closing = yield* store.read({ after: 1203, limit: 1000 })
        assert.deepStrictEqual(
          closing.map(({ event }) => event.sequence),
          Array.from({ length: 1000 }, (_, i) => i + 1)
        )
      }))

    it.effect("are closed once their process was killed, not before, and by nobody else", () =>
      Effect.gen(function*() {
        const { address, open } = yield* database
        const store = yield* open()
        yield* store.append([started("mine")], { owned: true })
        yield* store.append([started("relayed")])
        const child = yield* ChildProcess.start("eventStoreProcess.ts", "run", address, "theirs-1", "theirs-2")
        assert.strictEqual(yield* Queue.take(child.lines), "running")
        // The child has looked for abandoned executions as it opened the store.
        assert.strictEqual(yield* store.closeAbandoned, 0)
        assert.sameMembers(yield* isRunning(store), ["mine", "relayed", "theirs-1", "theirs-2"])
        yield* child.kill
        assert.strictEqual(yield* store.closeAbandoned, 2)
        assert.sameMembers(yield* isRunning(store), ["mine", "relayed"])
        const closed = yield* store.executions({ outcome: "failed" })
        assert.sameDeepMembers(
          closed.map((execution) => [execution.correlation_id, execution.failure?.kind]),
          [["theirs-1", "abandoned"], ["theirs-2", "abandoned"]]
        )
      }), 20_000)

    it.effect("go by the lease where the process cannot be looked up", () =>
      Effect.gen(function*() {
        const { execute, open } = yield* database
        const store = yield* open()
        yield* store.append([started("a")])
        yield* execute(
          "INSERT INTO effect_units_owners VALUES ('elsewhere', NULL, 1, 30000)",
          "UPDATE effect_units_running SET owner = 'elsewhere'"
        )
        assert.strictEqual(yield* store.closeAbandoned, 0)
        yield* TestClock.adjust("29999 millis")
        assert.strictEqual(yield* store.closeAbandoned, 0)
        yield* TestClock.adjust("1 millis")
        // The store closes it by itself, on its round.
        while (!world.isSynchronous && (yield* isRunning(store)).length > 0) yield* TestClock.adjust("1 seconds")
        assert.deepStrictEqual(yield* isRunning(store), [])
        assert.strictEqual(yield* store.lastOffset, 2)
      }))

    it.effect("no clock that is set, here or there, makes a process look gone, nor changes the order of the log", () =>
      Effect.gen(function*() {
        const { execute, open } = yield* database
        const store = yield* open()
        yield* store.append([started("a")], { owned: true })
        yield* execute("UPDATE effect_units_owners SET process = NULL")
        const clock = yield* Clock.Clock
        const hour = 3_600_000
        const shifted = (millis: number): Clock.Clock =>
          Object.assign(Object.create(Object.getPrototypeOf(clock)), clock, {
            currentTimeMillisUnsafe: () => clock.currentTimeMillisUnsafe() + millis,
            currentTimeMillis: Effect.map(clock.currentTimeMillis, (now) => now + millis)
          })
        for (const [index, millis] of [hour, -hour].entries()) {
          const other = yield* Effect.provideService(open(), Clock.Clock, shifted(millis))
          assert.strictEqual(yield* other.closeAbandoned, 0)
          yield* other.append([domainEvent(`${index}`, { at: 2 * hour + millis })])
        }
        assert.strictEqual(yield* store.closeAbandoned, 0)
        assert.deepStrictEqual(yield* isRunning(store), ["a"])
        assert.deepStrictEqual((yield* store.read()).map(({ event }) => event.id), ["a:started", "0", "1"])
      }))

    it.effect("a lease is renewed for as long as the store is open", () =>
      Effect.gen(function*() {
        const { execute, open, rows } = yield* database
        const store = yield* open()
        yield* store.append([started("a")], { owned: true })
        const second = yield* open()
        yield* execute("UPDATE effect_units_owners SET process = NULL")
        for (let round = 1; round <= 10; round++) {
          yield* TestClock.adjust("10 seconds")
          while ((yield* rows(`SELECT owner FROM effect_units_owners WHERE beat <= ${round}`)).length > 0) {
            yield* Effect.andThen(ioTurn, TestClock.adjust("10 millis"))
          }
        }
        assert.strictEqual(yield* second.closeAbandoned, 0)
        // Nor does a store take itself for gone, however long it stood still.
        yield* execute("UPDATE effect_units_owners SET beat = 0")
        assert.strictEqual(yield* store.closeAbandoned, 0)
        assert.deepStrictEqual(yield* isRunning(second), ["a"])
      }))
  })

  it.effect("a defect in one of a store's rounds is not the end of them", () =>
    Effect.gen(function*() {
      const { open, rows } = yield* database
      const broken = yield* Deferred.make<void>()
      let breaks = false
      const dying: Statement.Transformer = (statement) =>
        Effect.suspend(() => {
          if (!breaks || !statement.compile()[0].includes("effect_units_owners")) return Effect.succeed(statement)
          breaks = false
          return Effect.andThen(Deferred.succeed(broken, undefined), Effect.die("broken"))
        })
      const store = yield* Effect.provideService(open(), Statement.CurrentTransformer, dying)
      yield* store.append([started("a")], { owned: true })
      breaks = true
      yield* whileTimePasses(Deferred.await(broken), "1 seconds")
      const beat = Effect.map(rows("SELECT beat FROM effect_units_owners"), ([row]) => Number(row?.["beat"]))
      const before = yield* beat
      while ((yield* beat) === before) yield* Effect.andThen(ioTurn, TestClock.adjust("1 seconds"))
    }))

  describe("the schema", () => {
    it.effect("comes into a database that has other tables, and an older one is brought up to date", () =>
      Effect.gen(function*() {
        const sql = Context.get(yield* Layer.build(world.client), SqlClient.SqlClient)
        const migrate = (migrations: Migrations.Migrations) =>
          Effect.provideService(Migrations.migrate(migrations), SqlClient.SqlClient, sql)
        yield* sql`CREATE TABLE accounts (name TEXT)`
        yield* sql`INSERT INTO accounts VALUES ('ada')`
        assert.deepStrictEqual(yield* migrate(Migrations.migrations), { found: 2, known: 2, newer: false })
        const store = yield* Effect.provideService(EventStore.make(), SqlClient.SqlClient, sql)
        yield* store.append([domainEvent("1")])

        const next: Migrations.Migrations = {
          ...Migrations.migrations,
          "3_note": Effect.asVoid(sql`ALTER TABLE effect_units_events ADD COLUMN note TEXT NOT NULL DEFAULT 'old'`)
        }
        assert.deepStrictEqual(yield* migrate(next), { found: 3, known: 3, newer: false })
        assert.deepStrictEqual(yield* sql`SELECT id, note FROM effect_units_events`.values, [["1", "old"]])
        assert.deepStrictEqual(yield* migrate(next), { found: 3, known: 3, newer: false })
        assert.deepStrictEqual(yield* migrate(Migrations.migrations), { found: 3, known: 2, newer: true })
        assert.deepStrictEqual(yield* sql`SELECT name FROM accounts`.values, [["ada"]])

        // One that breaks half way leaves nothing of itself.
        const broken = yield* Effect.exit(migrate({
          ...next,
          "4_broken": Effect.andThen(sql`CREATE TABLE half (x)`, Effect.asVoid(sql`NONSENSE`))
        }))
        assert.isTrue(Exit.isFailure(broken))
        assert.strictEqual((yield* Effect.flip(sql`SELECT * FROM half`)).reason._tag, "SqlSyntaxError")
        assert.deepStrictEqual(yield* migrate(next), { found: 3, known: 3, newer: false })
      }))
  })

  describe("a process that is killed while it appends", () => {
    it.effect("loses nothing that was acknowledged, and leaves a log without holes", () =>
      Effect.gen(function*() {
        for (const batches of [25, 60]) {
          const { address, open, rows } = yield* database
          const child = yield* ChildProcess.start("eventStoreProcess.ts", "append", address)
          const lines = [...yield* Queue.takeN(child.lines, batches)]
          yield* child.kill
          lines.push(...yield* Queue.collect(child.lines))
          const acknowledged = lines.flatMap((line) => line.split(" "))

          if (world.isSynchronous) {
            assert.deepStrictEqual((yield* rows("PRAGMA integrity_check"))[0]?.["integrity_check"], "ok")
          }
          const stored = yield* rows("SELECT event_offset, id FROM effect_units_events ORDER BY event_offset")
          assert.deepStrictEqual(
            stored.map((row) => Number(row["event_offset"])),
            Array.from(stored, (_, index) => index + 1)
          )
          const ids = stored.map((row) => row["id"])
          // In the order in which they were appended; at the end there may be one batch that nobody was told of.
          assert.deepStrictEqual(ids.slice(0, acknowledged.length), acknowledged)
          assert.isAtMost(ids.length - acknowledged.length, 40)

          // Whoever opens it next finds each execution with its end.
          const store = yield* open()
          assert.deepStrictEqual(yield* store.executions({ outcome: "running" }), [])
          const abandoned = yield* store.executions({ outcome: "failed" })
          assert.deepStrictEqual(abandoned.map((execution) => execution.failure?.kind), ["abandoned"])
          assert.strictEqual(yield* store.lastOffset, ids.length + 1)
        }
      }), 30_000)
  })
}

describe("on SQLite", () => {
  suite(sqlite)
})

await withServer("PostgreSQL", "on PostgreSQL", (url) => suite(postgres(url)))

describe("a SQLite file", () => {
  it.live("takes the events of eight processes at once, while it is checkpointed", () =>
    Effect.gen(function*() {
      const { filename, other, store } = yield* onFile
      const names = Array.from({ length: 8 }, (_, index) => `${index}/`)
      const lines = yield* Effect.forEach(names, (name) =>
        Effect.gen(function*() {
          const child = yield* ChildProcess.start("eventStoreProcess.ts", "append", filename, name)
          const lines = [...yield* Queue.takeN(child.lines, 10)]
          yield* child.kill
          return [...lines, ...yield* Queue.collect(child.lines)]
        }), { concurrency: "unbounded" }).pipe(
          Effect.raceFirst(Effect.forever(Effect.andThen(
            Effect.sync(() => other.exec("PRAGMA wal_checkpoint(TRUNCATE)")),
            ioTurn
          )))
        )
      const acknowledged = lines.flat().flatMap((line) => line.split(" "))
      assert.strictEqual(other.prepare("PRAGMA integrity_check").get()?.["integrity_check"], "ok")
      const stored = other.prepare("SELECT event_offset, id FROM effect_units_events ORDER BY event_offset").all()
      assert.deepStrictEqual(stored.map((row) => row["event_offset"]), Array.from(stored, (_, index) => index + 1))
      const ids = new Set(stored.map((row) => row["id"]))
      assert.deepStrictEqual(acknowledged.filter((id) => !ids.has(id)), [])
      yield* store.closeAbandoned
      assert.deepStrictEqual(yield* store.executions({ outcome: "running" }), [])
    }), 60_000)

  it.live("that is restored from a copy goes on where the copy ends, and who was further hears so", () =>
    Effect.gen(function*() {
      const filename = yield* temporaryFile
      const append = (...ids: ReadonlyArray<string>) =>
        Effect.scoped(Effect.flatMap(open(filename), (store) => store.append(ids.map((id) => domainEvent(id)))))
      yield* append("1", "2")
      fs.copyFileSync(filename, `${filename}.copy`)
      yield* append("3", "4", "5")
      fs.copyFileSync(`${filename}.copy`, filename)
      const store = yield* open(filename)
      const error = yield* Effect.flip(Stream.runDrain(store.tail({ after: 5 })))
      assert.deepStrictEqual(error.reason, new EventStore.BeyondEnd({ after: 5, last_offset: 2 }))
      assert.deepStrictEqual(yield* store.append([domainEvent("other")]), { stored: 1, duplicates: [], last_offset: 3 })
      assert.deepStrictEqual((yield* store.read()).map(({ event }) => event.id), ["1", "2", "other"])
    }))
})

describe("cost", () => {
  it.effect("no question reads a whole table", () =>
    Effect.gen(function*() {
      const { sql, store } = yield* sharedOn(sqlite.client)
      yield* store.append([started("a"), completed("a"), started("b")], { owned: true })
      const prepare = yield* Effect.acquireRelease(
        Effect.sync(() => vi.spyOn(DatabaseSync.prototype, "prepare")),
        (spy) => Effect.sync(() => spy.mockRestore())
      )
      yield* store.append([completed("b"), started("c"), completed("c"), started("d")], { owned: true })
      yield* store.append([started("d"), completed("d")])
      yield* store.read()
      yield* store.read({ filter: { units: ["model.pull"] } })
      yield* store.read({ filter: { correlationId: "a" } })
      for (const outcome of [undefined, "running", "completed", "failed"] as const) {
        for (const unit of [undefined, "model.pull"]) {
          for (const domain of [undefined, "model"]) {
            const since = DateTime.makeUnsafe(0)
            const [first] = yield* store.executions({ outcome, unit, domain, since })
            yield* store.executions({ outcome, unit, domain, before: first ?? { started_at: "1970", first_offset: 1 } })
            yield* store.executions({ outcome, unit, domain, after: first ?? { started_at: "1970", first_offset: 1 } })
          }
        }
      }
      yield* store.execution("a")
      yield* store.prune({ keep: 100 })
      yield* store.prune({ keep: 1 })
      yield* store.checkpoint("c")
      const asked = prepare.mock.calls.map(([text]) => text).filter((text) => /^\s*(SELECT|UPDATE|DELETE)/.test(text))
      assert.isAbove(asked.length, 30)
      const plans = yield* Effect.forEach(asked, (text) =>
        Effect.map(
          sql.unsafe<{ detail: string }>(
            `EXPLAIN QUERY PLAN ${text}`,
            Array.from({ length: text.split("?").length - 1 }, () => 1)
          ),
          (rows) => rows.map((row) => ({ text, detail: row.detail }))
        ))
      const scans = plans.flat().filter(({ detail }) =>
        /^SCAN (effect_units_(events|executions)|child|event)/.test(detail)
      )
      assert.deepStrictEqual(scans, [])
    }))
})

describe("a store that cannot be used", () => {
  const refusal = (filename: string, options?: Partial<Sqlite.Options>) =>
    Effect.map(Effect.flip(open(filename, options)), ({ reason, retryable }) => ({ reason, retryable }))

  it.effect("because its file is no database", () =>
    Effect.gen(function*() {
      const filename = yield* temporaryFile
      fs.writeFileSync(filename, "no database. ".repeat(100))
      const { reason, retryable } = yield* refusal(filename)
      assert.strictEqual(reason._tag, "NotADatabase")
      assert.include(reason.message, "is not a SQLite database")
      assert.isFalse(retryable)
    }))

  it.effect("because its directory does not exist", () =>
    Effect.gen(function*() {
      const { reason, retryable } = yield* refusal(path.join(path.dirname(yield* temporaryFile), "none", "events.db"))
      assert.strictEqual(reason._tag, "Unavailable")
      assert.include(reason.message, "create it first")
      assert.isFalse(retryable)
    }))

  it.effect("because its file may only be read", () =>
    Effect.gen(function*() {
      const filename = yield* temporaryFile
      yield* Effect.scoped(open(filename))
      fs.chmodSync(path.dirname(filename), 0o777)
      fs.chmodSync(filename, 0o444)
      const { reason, retryable } = yield* asUnprivileged(refusal(filename))
      assert.strictEqual(reason._tag, "ReadOnly")
      assert.include(reason.message, "give this user write permission")
      assert.isFalse(retryable)
    }))

  it.effect("because another connection holds the lock, at first and later", () =>
    Effect.gen(function*() {
      const { filename, other, store } = yield* onFile
      yield* store.append([domainEvent("1")])
      other.exec("BEGIN IMMEDIATE")
      const opening = yield* whileTimePasses(refusal(filename, { busyTimeout: "100 millis" }), "10 millis")
      assert.strictEqual(opening.reason._tag, "Busy")
      assert.isTrue(opening.retryable)

      assert.deepStrictEqual(yield* store.read(), entries([domainEvent("1")]))
      const error = yield* whileTimePasses(Effect.flip(store.append([domainEvent("2")])), "100 millis")
      assert.strictEqual(error.reason._tag, "Busy")
      assert.isTrue(error.retryable)
      other.exec("ROLLBACK")
      assert.deepStrictEqual(yield* store.append([domainEvent("2")]), { stored: 1, duplicates: [], last_offset: 2 })
    }))

  it.effect("because a newer version made it, which stays as it is", () =>
    Effect.gen(function*() {
      const filename = yield* temporaryFile
      yield* Effect.scoped(Effect.flatMap(open(filename), (store) => store.append([domainEvent("1")])))
      const db = new DatabaseSync(filename)
      db.exec("INSERT INTO effect_units_migrations (migration_id, name) VALUES (7, 'from_the_future')")
      db.close()
      const before = fs.readFileSync(filename)
      const { reason, retryable } = yield* refusal(filename)
      assert.deepStrictEqual(reason, new EventStore.NewerVersion({ found: 7, known: 2 }))
      assert.strictEqual(
        reason.message,
        "the database has schema version 7 and this program knows 2: update effect-units, or name another database"
      )
      assert.isFalse(retryable)
      assert.isTrue(before.equals(fs.readFileSync(filename)))
    }))

  it.effect("because the disk is full: nothing of the batch is stored, and space makes it work again", () =>
    Effect.gen(function*() {
      const { sql, store } = yield* sharedOn(sqlite.client)
      yield* store.append([domainEvent("1")])
      const [[pages]] = (yield* sql`PRAGMA page_count`.values) as [[number]]
      yield* sql`PRAGMA max_page_count = ${sql.literal(String(pages + 10))}`
      const big = Array.from({ length: 50 }, (_, index) => domainEvent(`big-${index}`, { payload: "x".repeat(5000) }))
      const error = yield* Effect.flip(store.append(big))
      assert.strictEqual(error.reason._tag, "Full")
      assert.strictEqual(error.message, "Event store: the disk is full: free space, or prune the store")
      assert.isTrue(error.retryable)
      assert.deepStrictEqual(yield* store.read(), entries([domainEvent("1")]))
      assert.deepStrictEqual((yield* store.append([domainEvent("2")])).last_offset, 2)
      yield* sql`PRAGMA max_page_count = 10000`
      assert.deepStrictEqual((yield* store.append(big)).last_offset, 52)
    }))
})
