import { assert, describe, it } from "@effect/vitest"
import { Cause, Clock, Context, DateTime, Effect, Exit, Layer, Metric, Queue, Schema, Stream } from "effect"
import { SqlClient, Statement } from "effect/sql"
import { TestClock } from "effect/testing"
import * as Sqlite from "../src/backends/Sqlite.ts"
import * as ConsumerGroups from "../src/ConsumerGroups.ts"
import * as EventStore from "../src/EventStore.ts"
import * as EventSubscriber from "../src/EventSubscriber.ts"
import * as ChildProcess from "./fixtures/childProcess.ts"
import { completed, domainEvent, started } from "./fixtures/events.ts"
import { join, shown } from "./fixtures/members.ts"
import { client } from "./fixtures/postgres.ts"
import { postgres, sqlite, type World } from "./fixtures/storeWorlds.ts"
import { withServer } from "./servers.ts"

const built = Effect.fnUntraced(function*<E>(layer: Layer.Layer<SqlClient.SqlClient, E>) {
  const context = yield* Layer.build(Layer.provideMerge(EventStore.layer(), layer))
  return { store: Context.get(context, EventStore.EventStore), sql: Context.get(context, SqlClient.SqlClient) }
})

const memory = built(Sqlite.layer({ filename: ":memory:" }))

/** Runs an effect with an account of the statements that it has run up to now. */
const counting = <A, E, R>(use: (statements: (part?: string) => number) => Effect.Effect<A, E, R>) => {
  const texts: Array<string> = []
  return Effect.provideService(
    use((part = "") => texts.filter((text) => text.includes(part)).length),
    Statement.CurrentTransformer,
    (statement) =>
      Effect.sync(() => {
        texts.push(statement.compile()[0])
        return statement
      })
  )
}

const soon = { backoff: { base: "1 millis", max: "5 millis" } } as const

const error = (name: string, message: string) => Object.assign(new Error(message), { name })

class Refused extends Schema.TaggedError<Refused>("test/Refused")("Refused", {
  token: Schema.Redacted(Schema.String)
}) {
  override get message(): string {
    return "the gateway refused token hunter2-hunter2"
  }
}

const ids = (deliveries: ReadonlyArray<EventSubscriber.Delivery>) => deliveries.map(({ event }) => event.id)

/** Waits for what another process, or fiber, brings about. */
const until = <E>(condition: Effect.Effect<boolean, E>) =>
  Effect.repeat(Effect.delay(condition, "5 millis"), { until: (holds) => holds })

const noReason = "It was given back, and nobody said why"

/** Lets input and output go on. */
const ioTurn = Effect.promise(() => new Promise(setImmediate))

/** What holds on every database, in real time. */
const suite = <E>(layer: Layer.Layer<SqlClient.SqlClient, E>) => {
  const live = (name: string, test: (parts: Effect.Success<typeof memory>) => Effect.Effect<unknown, unknown, never>) =>
    it.live(name, () => Effect.scoped(Effect.flatMap(built(layer), test)))

  live(
    "members share the events, and of an execution one event is out at a time",
    ({ store }) =>
      Effect.scoped(Effect.gen(function*() {
        const events = ["a", "b", "c"].flatMap((id) => [
          started(id),
          domainEvent(`${id}1`, { correlation: id }),
          completed(id)
        ])
        yield* store.append([...events, domainEvent("free")])
        const [one, two] = [yield* join(store, { maxInFlight: 2 }), yield* join(store, { maxInFlight: 10 })]
        const first = [...yield* one.takeN(2), ...yield* two.takeN(2)]
        assert.sameMembers(ids(first), ["a:started", "b:started", "c:started", "free"])
        assert.deepStrictEqual((yield* store.groups.list).map(({ lag, open, position }) => [position, lag, open]), [
          [10, 0, 4]
        ])
        for (const { ack } of first) yield* ack
        yield* until(Effect.map(store.groups.list, ([group]) => group?.open === 3))
        const second = [...yield* one.waiting, ...yield* two.waiting]
        assert.sameMembers(ids(second), ["a1", "b1", "c1"])
        yield* Effect.forEach(second, ({ ack }) => ack, { concurrency: "unbounded" })
        yield* until(Effect.map(store.groups.list, ([group]) => group?.open === 3))
        const third = [...yield* one.waiting, ...yield* two.waiting]
        assert.sameMembers(ids(third), ["a:completed", "b:completed", "c:completed"])
        yield* Effect.forEach(third, ({ ack }) => ack, { concurrency: "unbounded" })
        assert.deepStrictEqual(yield* store.groups.list, [{ name: "x", position: 10, lag: 0, open: 0, parked: 0 }])
      }))
  )

  live(
    "a group that begins while the first event is appended has it",
    ({ store }) =>
      Effect.forEach(Array.from({ length: 100 }, (_, index) => index), (turns) =>
        Effect.scoped(Effect.gen(function*() {
          yield* store.prune({ keep: 0 })
          const consumer = `begins after ${turns} turns`
          const joining = Effect.andThen(
            Effect.repeat(ioTurn, { times: turns }),
            join(store, { consumer, from: "beginning" })
          )
          const [member] = yield* Effect.all([joining, store.append([domainEvent(consumer)])], { concurrency: 2 })
          const delivery = yield* member.take
          assert.strictEqual(delivery.event.id, consumer)
          yield* delivery.ack
          yield* store.groups.remove(consumer)
        })))
  )

  live(
    "an event that fails again and again is parked with its error, and the others go on",
    ({ store }) =>
      Effect.scoped(Effect.gen(function*() {
        yield* store.append([started("bad"), started("a"), completed("bad"), completed("a"), domainEvent("d")])
        const member = yield* join(store, { ...soon, maxAttempts: 3, maxInFlight: 2 })
        const seen: Array<string> = []
        const reasons = [
          Cause.fail("first"),
          Cause.die(error("Odd", "second")),
          Cause.fail(new Refused({ token: secret }))
        ]
        for (let count = 0; count < 6; count++) {
          const delivery = yield* member.take
          seen.push(shown(delivery))
          yield* delivery.event.id === "bad:started" ? delivery.retry(reasons[delivery.attempt - 1]) : delivery.ack
        }
        assert.sameMembers(seen, [
          "1 bad:started",
          "1 bad:started again 2",
          "1 bad:started again 3",
          "2 a:started",
          "4 a:completed",
          "5 d"
        ])
        assert.isBelow(seen.indexOf("2 a:started"), seen.indexOf("4 a:completed"))
        // What came later of the same execution waits behind it.
        assert.deepStrictEqual(yield* store.groups.list, [{ name: "x", position: 5, lag: 0, open: 0, parked: 1 }])
        const [parked, ...others] = yield* store.groups.parked()
        assert.deepStrictEqual(others, [])
        if (parked === undefined) return assert.fail("nothing is parked")
        const { cause, parked_at, ...rest } = parked
        assert.deepStrictEqual(rest, {
          id: "1:x",
          group: "x",
          offset: 1,
          event: started("bad"),
          attempts: 3,
          error: "the gateway refused token <redacted>",
          edited: false
        })
        assert.include(cause, "Refused")
        assert.notInclude(cause, "hunter2")
        assert.closeTo(Date.parse(parked_at), Date.now(), 60_000)
        assert.deepStrictEqual(yield* store.groups.get("1:x"), parked)

        yield* store.groups.replay("1:x")
        const again = yield* member.take
        assert.strictEqual(shown(again), "1 bad:started")
        yield* again.ack
        const last = yield* member.take
        assert.strictEqual(shown(last), "3 bad:completed")
        yield* last.ack
        assert.deepStrictEqual(yield* store.groups.list, [{ name: "x", position: 5, lag: 0, open: 0, parked: 0 }])
      }))
  )

  live(
    "parked events are found by group, time, type, domain, unit and error, page by page",
    ({ store }) =>
      Effect.scoped(Effect.gen(function*() {
        const events = [started("a"), started("b", { unit: "billing.charge" }), domainEvent("c"), domainEvent("d")]
        yield* store.append(events)
        for (const consumer of ["x", "y\u0000"]) {
          const member = yield* join(store, { consumer, maxAttempts: 1, maxInFlight: 4 })
          for (const delivery of yield* member.takeN(4)) {
            yield* delivery.retry(delivery.event.id === "c" ? Cause.fail("100%_Full\\") : undefined)
          }
        }
        const { groups } = store
        const found = (filter: ConsumerGroups.ParkedFilter) =>
          Effect.map(groups.parked(filter), (list) => list.map(({ id }) => id).sort())
        assert.deepStrictEqual(yield* found({}), [
          "1:x",
          "1:y\u0000",
          "2:x",
          "2:y\u0000",
          "3:x",
          "3:y\u0000",
          "4:x",
          "4:y\u0000"
        ])
        assert.deepStrictEqual(yield* found({ group: "y\u0000", types: ["execution_started"] }), [
          "1:y\u0000",
          "2:y\u0000"
        ])
        assert.deepStrictEqual(yield* found({ group: "x", domains: ["billing"] }), ["2:x"])
        assert.deepStrictEqual(yield* found({ group: "x", units: ["model.pull", "none"] }), ["1:x"])
        assert.deepStrictEqual(yield* found({ types: ["model.created"], error: "100%_FULL\\" }), ["3:x", "3:y\u0000"])
        assert.deepStrictEqual(yield* found({ error: "0%f" }), [])
        const now = yield* DateTime.now
        assert.deepStrictEqual(yield* found({ until: DateTime.subtract(now, { hours: 1 }) }), [])
        assert.strictEqual((yield* found({ since: DateTime.subtract(now, { hours: 1 }) })).length, 8)

        const pages: Array<string> = []
        let before: ConsumerGroups.ParkedEvent | undefined
        while (true) {
          const page = yield* groups.parked({ limit: 3, before })
          if (page.length === 0) break
          pages.push(...page.map(({ id }) => id))
          before = page.at(-1)
        }
        assert.deepStrictEqual(pages, (yield* groups.parked()).map(({ id }) => id))
        assert.strictEqual(new Set(pages).size, 8)

        assert.strictEqual(yield* groups.discardAll({ group: "x", units: ["model.pull"] }), 1)
        assert.strictEqual(yield* groups.replayAll({ group: "y\u0000" }), 4)
        assert.deepStrictEqual(yield* found({}), ["2:x", "3:x", "4:x"])
        assert.deepStrictEqual((yield* groups.list).map(({ name, parked }) => [name, parked]), [["x", 3], [
          "y\u0000",
          0
        ]])
      }))
  )

  live(
    "an event can be edited before it is replayed, and stays what it was in the log",
    ({ store }) =>
      Effect.scoped(Effect.gen(function*() {
        yield* store.append([started("a"), completed("a")])
        const member = yield* join(store, { maxAttempts: 1 })
        yield* (yield* member.take).retry()
        const edited = started("a", { input: { model_id: "other" } })
        yield* store.groups.edit("1:x", edited)
        const parked = yield* store.groups.get("1:x")
        assert.deepStrictEqual([parked.event, parked.edited, parked.error], [edited, true, noReason])
        yield* store.groups.replay("1:x")
        const delivery = yield* member.take
        assert.deepStrictEqual(delivery.event, edited)
        yield* delivery.ack
        assert.strictEqual(shown(yield* member.take), "2 a:completed")
        assert.deepStrictEqual((yield* store.read())[0]?.event, started("a"))
      }))
  )

  live(
    "what is not parked, no group, and another event are told by their errors",
    ({ store }) =>
      Effect.scoped(Effect.gen(function*() {
        yield* store.append([started("a"), started("b")])
        const { groups } = store
        const member = yield* join(store, { maxAttempts: 1, maxInFlight: 2 })
        const [first] = yield* member.takeN(2)
        yield* first?.retry() ?? Effect.void
        for (const id of ["2:x", "9:x", "1:y", "nonsense", ""]) {
          const refused = Exit.fail(new ConsumerGroups.NotParked({ id }))
          assert.deepStrictEqual(yield* Effect.exit(groups.get(id)), refused)
          assert.deepStrictEqual(yield* Effect.exit(groups.replay(id)), refused)
          assert.deepStrictEqual(yield* Effect.exit(groups.discard(id)), refused)
          assert.deepStrictEqual(yield* Effect.exit(groups.edit(id, started("a"))), refused)
        }
        const other = { id: "1:x", event_id: "b:started" }
        assert.deepStrictEqual(
          yield* Effect.exit(groups.edit("1:x", started("b"))),
          Exit.fail(new ConsumerGroups.OtherEvent(other))
        )
        assert.deepStrictEqual(
          yield* Effect.exit(groups.remove("none")),
          Exit.fail(new ConsumerGroups.GroupNotFound({ group: "none" }))
        )
        yield* groups.discard("1:x")
        assert.deepStrictEqual(
          yield* Effect.exit(groups.discard("1:x")),
          Exit.fail(new ConsumerGroups.NotParked({ id: "1:x" }))
        )
        assert.strictEqual(yield* groups.discardAll({}), 0)
      }))
  )

  live(
    "what a member holds goes to another one when its lease runs out, and then its acknowledgement is refused",
    ({ store }) =>
      Effect.scoped(Effect.gen(function*() {
        yield* store.append([started("a"), completed("a")])
        // It asks for no more, so that it is the other one that gets it.
        const slow = yield* store.groups.subscribe({ consumer: "x", ackTimeout: "50 millis" })
        const [late] = yield* Stream.runCollect(Stream.take(slow, 1))
        if (late === undefined) return assert.fail("a delivery is due")
        const other = yield* join(store, { ackTimeout: "1 minute", maxInFlight: 2 })
        const taken = yield* other.take
        assert.strictEqual(shown(taken), "1 a:started again 2")
        const refused = yield* Effect.flip(late.ack)
        assert.deepStrictEqual([refused.reason, refused.retryable], ["lease_lost", false])
        // Who has lost it cannot give it back either.
        yield* late.retry(Cause.fail("late"))
        assert.deepStrictEqual((yield* store.groups.list)[0]?.open, 1)
        yield* taken.ack
        assert.strictEqual(shown(yield* other.take), "2 a:completed")
      }))
  )

  live(
    "what a member holds as it leaves goes to the others at once, and is no attempt",
    ({ store }) =>
      Effect.scoped(Effect.gen(function*() {
        yield* store.append([started("a"), started("b"), started("c")])
        const first = yield* join(store, { maxInFlight: 2 })
        const [a] = yield* first.takeN(2)
        const second = yield* join(store, { maxInFlight: 3 })
        assert.strictEqual(shown(yield* second.take), "3 c:started")
        yield* first.leave
        assert.deepStrictEqual((yield* second.takeN(2)).map(shown), ["1 a:started", "2 b:started"])
        const refused = yield* Effect.flip(a?.ack ?? Effect.die("no delivery"))
        assert.strictEqual(refused.reason, "ended")
      }))
  )

  live(
    "an acknowledgement inside of a transaction commits with what the handler wrote",
    ({ sql, store }) =>
      Effect.scoped(Effect.gen(function*() {
        yield* sql`CREATE TABLE ledger (event TEXT PRIMARY KEY)`
        yield* store.append([started("a"), completed("a")])
        const member = yield* join(store, { ackTimeout: "100 millis" })
        const handle = (delivery: EventSubscriber.Delivery) =>
          Effect.andThen(sql`INSERT INTO ledger (event) VALUES (${delivery.event.id})`, delivery.ack)
        const first = yield* member.take
        yield* Effect.exit(store.withTransaction(Effect.andThen(handle(first), Effect.fail("no"))))
        // It still has it.
        yield* store.withTransaction(handle(first))
        yield* first.ack
        const second = yield* member.take
        assert.strictEqual(shown(second), "2 a:completed")
        // Its lease runs out, and it comes again.
        const again = yield* member.take
        assert.strictEqual(shown(again), "2 a:completed again 2")
        const refused = yield* Effect.flip(store.withTransaction(handle(second)))
        assert.strictEqual(refused instanceof EventSubscriber.SubscribeError ? refused.reason : refused, "lease_lost")
        yield* store.withTransaction(handle(again))
        assert.deepStrictEqual(yield* sql`SELECT event FROM ledger ORDER BY event`.values, [["a:completed"], [
          "a:started"
        ]])
        assert.strictEqual((yield* store.groups.list)[0]?.open, 0)
      }))
  )

  live(
    "an event that nobody can decode is parked, and its execution waits for an edit",
    ({ sql, store }) =>
      Effect.scoped(Effect.gen(function*() {
        yield* store.append([started("a"), completed("a"), started("b")])
        yield* sql`UPDATE effect_units_events SET payload = '{"odd":1}' WHERE event_offset = 1`
        const member = yield* join(store, { maxInFlight: 3 })
        const b = yield* member.take
        assert.strictEqual(shown(b), "3 b:started")
        const [parked] = yield* store.groups.parked()
        assert.deepStrictEqual(
          [parked?.id, parked?.event, parked?.error],
          ["1:x", undefined, "The event at offset 1 cannot be decoded: update effect-units, or edit it"]
        )
        yield* store.groups.edit("1:x", started("a"))
        yield* store.groups.replay("1:x")
        const a = yield* member.take
        assert.deepStrictEqual([a.event, a.attempt], [started("a"), 1])
        yield* a.ack
        assert.strictEqual(shown(yield* member.take), "2 a:completed")
      }))
  )

  live(
    "clean-up leaves what a group has not seen, has not acknowledged, or has parked",
    ({ store }) =>
      Effect.scoped(Effect.gen(function*() {
        yield* store.append(["a", "b", "c", "d", "e"].flatMap((id) => [started(id), completed(id)]))
        const member = yield* join(store, { consumer: "x", maxAttempts: 1, maxInFlight: 3 })
        const [a, b, c] = yield* member.takeN(3)
        if (a === undefined || b === undefined || c === undefined) return assert.fail("three deliveries are due")
        yield* a.ack
        yield* b.retry()
        yield* member.leave
        yield* store.saveCheckpoint("reader", 4)
        const offsets = Effect.map(store.read(), (entries) => entries.map(({ offset }) => offset))
        assert.deepStrictEqual(yield* store.prune({ keep: 0 }), { events: 1, executions: 0, waiting_for: "reader" })
        // Of a the started event was acknowledged; the parked b and what waits behind the three stay.
        assert.deepStrictEqual(yield* offsets, [2, 3, 4, 5, 6, 7, 8, 9, 10])
        yield* store.removeCheckpoint("reader")
        assert.strictEqual((yield* store.prune({ keep: 0 })).waiting_for, "x")
        assert.deepStrictEqual(yield* store.prune({ keep: 4, unacknowledged: true }), { events: 5, executions: 3 })
        assert.deepStrictEqual(yield* offsets, [7, 8, 9, 10])
        const gone = yield* store.groups.get("3:x")
        assert.deepStrictEqual([gone.event, gone.error], [undefined, noReason])
        // What is gone is passed over.
        const next = yield* join(store, { consumer: "x", maxInFlight: 4 })
        assert.deepStrictEqual(ids(yield* next.takeN(2)), ["d:started", "e:started"])
        yield* store.groups.remove("x")
        const end = yield* next.ended
        assert.include(Exit.isFailure(end) ? Cause.pretty(end.cause) : "", "group \"x\" was removed")
        assert.deepStrictEqual([yield* store.groups.list, yield* store.groups.parked()], [[], []])
        assert.deepStrictEqual(yield* store.prune({ keep: 0 }), { events: 4, executions: 2 })
      }))
  )

  live(
    "of two filters of one group the newer one counts, and the other ends",
    ({ store }) =>
      Effect.scoped(Effect.gen(function*() {
        const old = yield* join(store, { types: ["execution_started"] })
        const same = yield* join(store, { types: ["execution_started", "execution_started"] })
        yield* same.leave
        const next = yield* join(store, { types: ["execution_started", "execution_completed"], maxInFlight: 2 })
        yield* store.append([domainEvent("d"), started("a"), completed("b")])
        const end = yield* old.ended
        assert.include(Exit.isFailure(end) ? Cause.pretty(end.cause) : "", "made group \"x\" ask for other events")
        assert.deepStrictEqual((yield* next.takeN(2)).map(shown), ["2 a:started", "3 b:completed"])
      }))
  )

  live(
    "a duplicate in a batch is the only one that is told, and what a member handled it does not get again",
    ({ store }) =>
      Effect.scoped(Effect.gen(function*() {
        const member = yield* join(store, { maxInFlight: 10 })
        yield* store.append([started("a")])
        yield* (yield* member.take).ack
        assert.deepStrictEqual(yield* store.append([started("a"), completed("a"), started("b"), started("b")]), {
          stored: 2,
          duplicates: ["b:started", "a:started"],
          last_offset: 3
        })
        assert.sameMembers(ids(yield* member.takeN(2)), ["a:completed", "b:started"])
      }))
  )
}

const secret = Schema.decodeUnknownSync(Schema.RedactedFromValue(Schema.String))("hunter2-hunter2")

describe("groups on SQLite", () => {
  suite(Sqlite.layer({ filename: ":memory:" }))
})

await withServer("PostgreSQL", "groups on PostgreSQL", (url) => {
  suite(client(url))

  it.live(
    "an event costs no more for those that were handled before it, also before the server cleans up its table",
    () =>
      Effect.gen(function*() {
        const { sql, store } = yield* built(client(url))
        yield* sql`ALTER TABLE effect_units_deliveries SET (autovacuum_enabled = false)`
        const stream = yield* store.groups.subscribe({ consumer: "x", maxInFlight: 100 })
        const handled = yield* Queue.unbounded<void>()
        const handle = ({ ack }: EventSubscriber.Delivery) => Effect.andThen(ack, Queue.offer(handled, undefined))
        yield* Effect.forkScoped(Stream.runDrain(Stream.mapEffect(stream, handle, { concurrency: 100 })))
        const executions = 3000
        for (let index = 0; index < executions; index += 50) {
          const names = Array.from({ length: 50 }, (_, each) => String(index + each))
          yield* store.append(names.flatMap((name) => [started(name), completed(name)]))
          yield* Queue.takeN(handled, 100)
          // A statement that is prepared now has a plan for a table that is all but empty.
          if (index === 0) yield* sql`ANALYZE effect_units_deliveries`
        }
        const figures = sql<{ deleted: number; read: number }>`
          SELECT n_tup_del::float8 AS deleted, (seq_tup_read + (
            SELECT SUM(idx_tup_read) FROM pg_stat_user_indexes AS of_index WHERE of_index.relid = of_table.relid
          ))::float8 AS read FROM pg_stat_user_tables AS of_table
          WHERE schemaname = current_schema() AND relname = 'effect_units_deliveries'`
        // Servers tell what they did with a delay.
        const [told] = yield* Effect.repeat(figures, { until: ([row]) => row?.deleted === 2 * executions })
        assert.isBelow(told?.read ?? 0, 50 * executions)
      }),
    60_000
  )
})

describe("a group in time", () => {
  /** Lets everything happen that happens without time. */
  const settled = Effect.all(Array.from({ length: 200 }, () => Effect.yieldNow), { discard: true })
  const passed = (millis: number) => Effect.andThen(TestClock.adjust(millis), settled)

  it.effect("waits longer after each attempt, while others go on, and parks what is not acknowledged in time", () =>
    Effect.gen(function*() {
      const { store } = yield* memory
      yield* store.append([started("bad"), domainEvent("good"), started("hung")])
      const member = yield* join(store, {
        backoff: { base: "1 second", factor: 3, max: "5 seconds" },
        maxAttempts: 4,
        maxInFlight: 3,
        ackTimeout: "1 hour",
        pollInterval: "1 hour"
      })
      for (const delivery of yield* member.takeN(3)) {
        yield* delivery.event.id === "bad:started" ? delivery.retry(Cause.fail("no")) : Effect.void
        yield* delivery.event.id === "good" ? delivery.ack : Effect.void
      }
      // A fifth more or less than 1, 3 and 5 seconds.
      for (const [index, millis] of [1000, 3000, 5000].entries()) {
        yield* passed(millis * 0.8 - 1)
        assert.deepStrictEqual(yield* member.waiting, [])
        yield* passed(millis * 0.4 + 2)
        const again = yield* member.waiting
        assert.deepStrictEqual(again.map(shown), [`1 bad:started again ${index + 2}`])
        yield* again[0]?.retry(Cause.fail(`no ${index}`)) ?? Effect.void
      }
      for (const attempt of [2, 3, 4]) {
        yield* passed(3_600_000)
        assert.deepStrictEqual((yield* member.waiting).map(shown), [`3 hung:started again ${attempt}`])
      }
      yield* passed(3_600_000)
      assert.deepStrictEqual(yield* member.waiting, [])
      assert.deepStrictEqual(
        (yield* store.groups.parked()).map(({ attempts, error, id }) => [id, attempts, error]),
        [
          ["3:x", 4, "It was not acknowledged in time: its handler took too long, or its process ended"],
          ["1:x", 4, "no 2"]
        ]
      )
    }))

  it.effect("keeps attempts and their times when all members have gone", () =>
    Effect.gen(function*() {
      const { store } = yield* memory
      yield* store.append([started("a")])
      const options = {
        backoff: { base: "1 minute" },
        maxAttempts: 2,
        ackTimeout: "1 hour",
        pollInterval: "1 minute"
      } as const
      const first = yield* join(store, options)
      yield* (yield* first.take).retry(Cause.fail("no"))
      yield* first.leave
      const second = yield* join(store, options)
      yield* passed(40_000)
      assert.deepStrictEqual(yield* second.waiting, [])
      yield* passed(40_000)
      const again = yield* second.take
      assert.strictEqual(again.attempt, 2)
      yield* again.retry(Cause.fail("never"))
      assert.deepStrictEqual((yield* store.groups.parked()).map((one) => one.error), ["never"])
    }))

  it.effect("hands out nothing new while 10,000 events wait", () =>
    Effect.gen(function*() {
      const { store } = yield* memory
      yield* store.append(Array.from({ length: 10_001 }, (_, index) => domainEvent(`${index}`)))
      const member = yield* join(store, { backoff: { base: "1 hour" }, maxInFlight: 10_000, pollInterval: "1 second" })
      const all = yield* member.takeN(10_000)
      yield* Effect.forEach(all.slice(1), ({ retry }) => retry(), { concurrency: "unbounded", discard: true })
      yield* passed(10_000)
      assert.deepStrictEqual(yield* member.waiting, [])
      assert.deepStrictEqual(yield* store.groups.list, [{
        name: "x",
        position: 10_000,
        lag: 1,
        open: 10_000,
        parked: 0
      }])
      yield* all[0]?.ack ?? Effect.void
      yield* passed(10_000)
      assert.deepStrictEqual(ids(yield* member.waiting), ["10000"])
    }))

  it.effect("rests where what it has yet to see was pruned, and tells the next event how much that was", () =>
    counting((statements) =>
      Effect.gen(function*() {
        const { store } = yield* memory
        yield* store.append(Array.from({ length: 10 }, (_, index) => domainEvent(`${index}`)))
        yield* Effect.scoped(Effect.asVoid(store.groups.subscribe({ consumer: "x" })))
        yield* store.prune({ keep: 0, unacknowledged: true })
        const members = [
          yield* join(store),
          yield* join(store, { consumer: "y", from: { position: "4" } }),
          yield* join(store, { consumer: "z", from: { time: 0 } })
        ]
        yield* settled
        const before = statements()
        assert.isAbove(before, 0)
        yield* settled
        assert.strictEqual(statements(), before)
        assert.deepStrictEqual((yield* store.groups.list).map(({ lag }) => lag), [0, 0, 0])
        yield* store.append([domainEvent("new")])
        const missed = yield* Effect.forEach(members, ({ take }) => Effect.map(take, (delivery) => delivery.missed))
        assert.deepStrictEqual(missed, [10, 6, 10])
      })
    ))

  it.effect("has one member look for what is new, the next one for what is left, and each for what another leaves behind", () =>
    counting((statements) =>
      Effect.gen(function*() {
        const { store } = yield* memory
        const options = { pollInterval: "1 hour", ackTimeout: "2 hours" } as const
        const members = yield* Effect.forEach(Array.from({ length: 50 }), () => join(store, options))
        yield* settled
        const looks = () => statements("MIN(due_at)")
        const before = looks()
        assert.isAtLeast(before, 50)
        yield* store.append([started("a"), completed("a")])
        yield* settled
        assert.isBelow(looks() - before, 5)
        const inHand = Effect.map(
          Effect.forEach(members, ({ waiting }) => waiting),
          (each) => each.flatMap((deliveries, index) => deliveries.map((delivery) => ({ delivery, index })))
        )
        const [first] = yield* inHand
        yield* first?.delivery.ack ?? Effect.void
        yield* settled
        assert.isBelow(looks() - before, 10)
        const [second] = yield* inHand
        assert.strictEqual(second?.delivery.event.id, "a:completed")
        // What it gives back as it leaves another one gets, and what there is for all goes to all.
        yield* members[second?.index ?? 0]?.leave ?? Effect.void
        yield* settled
        const [third] = yield* inHand
        assert.strictEqual(third?.delivery.event.id, "a:completed")
        yield* store.append(Array.from({ length: 60 }, (_, index) => domainEvent(`${index}`)))
        yield* Effect.repeat(settled, { times: 20 })
        assert.strictEqual((yield* inHand).length, 48)
      })
    ))

  it.effect("counts what it does", () =>
    Effect.gen(function*() {
      const { store } = yield* memory
      const registry: Metric.MetricRegistry = new Map()
      yield* store.append([domainEvent("a"), domainEvent("b"), domainEvent("c"), domainEvent("d")])
      const member = yield* join(store, { maxAttempts: 1, maxInFlight: 3 }).pipe(
        Effect.provideService(Metric.MetricRegistry, registry)
      )
      const [a, b] = yield* member.takeN(3)
      yield* a?.ack ?? Effect.void
      yield* b?.retry() ?? Effect.void
      yield* settled
      const figures = Metric.snapshotUnsafe(Context.make(Metric.MetricRegistry, registry)).flatMap((
        { attributes, id, state }
      ) =>
        id.startsWith("effect_units_group_") && attributes?.["group"] === "x"
          ? [[
            id.slice(19),
            attributes["outcome"],
            "count" in state ? state.count : "value" in state ? state.value : undefined
          ]]
          : []
      )
      assert.sameDeepMembers(figures, [
        ["deliveries", "acknowledged", 1],
        ["deliveries", "parked", 1],
        ["parked", undefined, 1],
        ["lag", undefined, 0]
      ])
    }))

  it.effect("cleans up at once and then each hour", () =>
    Effect.gen(function*() {
      const { store } = yield* memory
      yield* store.append([domainEvent("a"), domainEvent("b")])
      yield* Layer.build(
        EventStore.layerCleanup({ keep: 1 }).pipe(Layer.provide(Layer.succeed(EventStore.EventStore, store)))
      )
      const left = Effect.map(store.read(), (entries) => entries.map(({ event }) => event.id))
      const become = (expected: ReadonlyArray<string>) =>
        TestClock.withLive(until(Effect.map(left, (found) => found.join() === expected.join())))
      yield* become(["b"])
      yield* store.append([domainEvent("c")])
      yield* passed(3_599_000)
      assert.deepStrictEqual(yield* left, ["b", "c"])
      yield* passed(1000)
      yield* become(["c"])
    }))
})

/** On every database, by a clock that is set an hour back or forward while time passes as it does. */
const clockSuite = <E>(layer: Layer.Layer<SqlClient.SqlClient, E>) => {
  const hour = 3_600_000

  /** A member that has one event and has given back another one, and an event that is parked in another group. */
  const begun = Effect.gen(function*() {
    const clock = yield* Clock.Clock
    let ahead = 0
    const wall = () => clock.currentTimeMillisUnsafe() + ahead
    const nanos = () => BigInt(wall()) * 1_000_000n
    const parts = yield* Effect.provideService(built(layer), Clock.Clock, {
      currentTimeMillisUnsafe: wall,
      currentTimeMillis: Effect.sync(wall),
      currentTimeNanosUnsafe: nanos,
      currentTimeNanos: Effect.sync(nanos),
      monotonicTimeNanosUnsafe: () => clock.monotonicTimeNanosUnsafe(),
      monotonicTimeNanos: clock.monotonicTimeNanos,
      sleep: (duration) => clock.sleep(duration)
    })
    const { store } = parts
    yield* store.append([domainEvent("held"), domainEvent("waiting")])
    const member = yield* join(store, { ackTimeout: "2 minutes", backoff: { base: "4 minutes" }, maxInFlight: 3 })
    const [held, waiting] = yield* member.takeN(2)
    if (held === undefined || waiting === undefined) return yield* Effect.die("two deliveries are due")
    yield* waiting.retry()
    const other = yield* join(store, { consumer: "y", maxAttempts: 1 })
    yield* (yield* other.take).retry()
    yield* other.leave
    const set = (millis: number) =>
      Effect.sync(() => {
        ahead += millis
      })
    return { ...parts, member, held, set, wall }
  })

  it.live("that is set back, leases and pauses are no longer than if they began then, and all is replayed", () =>
    Effect.gen(function*() {
      const { set, sql, store, wall } = yield* begun
      yield* set(-hour)
      assert.strictEqual(yield* store.groups.replayAll({ group: "y" }), 1)
      const waits = Effect.map(
        sql<{ due_at: unknown }>`SELECT due_at FROM effect_units_deliveries WHERE consumer = 'x' ORDER BY event_offset`,
        (rows) => rows.map(({ due_at }) => Number(due_at) - wall())
      )
      // The longest pause is 5 minutes where nothing else is said, and any is up to a fifth longer.
      const [lease, pause] = [2 * 60_000, 6 * 60_000]
      const short = ([held = 0, waiting = 0]: ReadonlyArray<number>) => held <= lease && waiting <= pause
      yield* until(Effect.map(waits, short))
      const [held, waiting] = yield* waits
      assert.closeTo(held ?? 0, lease, 60_000)
      assert.closeTo(waiting ?? 0, pause, 60_000)
    }))

  it.live("that is set forward, they end at once, and what came again is not acknowledged by whoever had it before", () =>
    Effect.gen(function*() {
      const { held, member, set, store } = yield* begun
      yield* set(hour)
      const again = yield* member.takeN(2)
      assert.deepStrictEqual(again.map(shown), ["1 held again 2", "2 waiting again 2"])
      assert.strictEqual((yield* Effect.flip(held.ack)).reason, "lease_lost")
      yield* Effect.forEach(again, ({ ack }) => ack)
      assert.deepStrictEqual((yield* store.groups.list).map(({ name, open, parked }) => [name, open, parked]), [
        ["x", 0, 0],
        ["y", 0, 1]
      ])
    }))
}

describe("by a clock on SQLite", () => {
  clockSuite(Sqlite.layer({ filename: ":memory:" }))
})

await withServer("PostgreSQL", "by a clock on PostgreSQL", (url) => clockSuite(client(url)))

describe("members that come, fail, hang, leave and crash", () => {
  const Step = Schema.Int.check(Schema.isBetween({ minimum: 0, maximum: 99 }))

  it.effect.prop(
    "every event ends up acknowledged or parked, and those of an execution in their order",
    {
      executions: Schema.NonEmptyArray(Schema.Int.check(Schema.isBetween({ minimum: 1, maximum: 4 }))),
      script: Schema.NonEmptyArray(Step)
    },
    ({ executions, script }) =>
      Effect.gen(function*() {
        const { store } = yield* memory
        const all = executions.flatMap((length, index) =>
          Array.from(
            { length },
            (_, step) => ({
              execution: `${index}`,
              event: domainEvent(`${index}-${step}`, { correlation: `${index}` })
            })
          )
        )
        // As they come from many units at once: one of each execution in turn.
        const interleaved = all.toSorted((one, other) => {
          const step = (event: { readonly id: string }) => Number(event.id.split("-")[1])
          return step(one.event) - step(other.event)
        })
        const acknowledged = new Set<string>()
        const violations: Array<string> = []
        let leaves = 0
        let at = 0
        const decide = (): number => script[at++ % script.length] ?? 0

        const handle = Effect.fnUntraced(function*(delivery: EventSubscriber.Delivery) {
          const { event } = delivery
          if (acknowledged.has(event.id)) violations.push(`${event.id} came after it was acknowledged`)
          const earlier = all.filter(({ execution }) => execution === event.correlation_id)
          for (const { event: { id } } of earlier.slice(0, earlier.findIndex(({ event: { id } }) => id === event.id))) {
            if (!acknowledged.has(id)) violations.push(`${event.id} came before ${id} was done`)
          }
          const step = decide()
          if (step < 60) {
            // Another member may have it by now.
            const exit = yield* Effect.exit(delivery.ack)
            if (Exit.isSuccess(exit)) acknowledged.add(event.id)
            return "on" as const
          }
          if (step < 80) {
            yield* delivery.retry(Cause.fail(step))
            return "on" as const
          }
          // Hangs; or leaves, in good order or after it was away for longer than its lease. Where nobody has had the event meanwhile, that is no
          // attempt, and so it is not done for ever.
          if (step < 88 || leaves++ >= 20) return "on" as const
          return step < 94 ? "leave" as const : "crash" as const
        })

        const member = Effect.fnUntraced(function*(): Effect.fn.Return<void, EventSubscriber.SubscribeError> {
          while (true) {
            const end = yield* Effect.scoped(Effect.gen(function*() {
              const joined = yield* join(store, {
                maxInFlight: 1 + decide() % 3,
                ackTimeout: "10 seconds",
                pollInterval: "5 seconds",
                maxAttempts: 5
              })
              while (true) {
                const what = yield* handle(yield* joined.take)
                if (what === "crash") yield* Effect.sleep("11 seconds")
                if (what !== "on") return what
              }
            }))
            if (end === "crash") yield* Effect.yieldNow
          }
        })
        yield* Effect.forkScoped(member())
        yield* Effect.forkScoped(member())
        yield* Effect.forkScoped(member())
        yield* Effect.yieldNow
        for (const [index, { event }] of interleaved.entries()) {
          yield* store.append([event])
          if (index % 3 === decide() % 3) yield* TestClock.adjust("1 second")
        }
        const isIdle = Effect.map(store.groups.list, ([group]) => group?.lag === 0 && group.open === 0)
        for (let round = 0; round < 1000 && !(yield* isIdle); round++) {
          yield* TestClock.adjust("5 seconds")
          yield* settledAll
        }
        assert.isTrue(yield* isIdle, "the group never came to rest")
        assert.deepStrictEqual(violations, [])
        const parked = new Map((yield* store.groups.parked({ limit: 1000 })).map((one) => [one.event?.id, one]))
        for (const { event, execution } of all) {
          const own = all.filter((other) => other.execution === execution)
          const blocked = own.some((other) =>
            parked.has(other.event.id) && own.indexOf(other) < own.findIndex((one) => one.event === event)
          )
          assert.strictEqual(
            Number(acknowledged.has(event.id)) + Number(parked.has(event.id)) + Number(blocked),
            1,
            `${event.id}: acknowledged ${acknowledged.has(event.id)}, parked ${
              parked.has(event.id)
            }, behind a parked one ${blocked}`
          )
        }
        assert.strictEqual((yield* store.groups.list)[0]?.parked, parked.size)
      }),
    { arbitrary: { runs: 40 } }
  )

  const settledAll = Effect.all(Array.from({ length: 50 }, () => Effect.yieldNow), { discard: true })
})

/** Members of one group that are processes of their own. */
const processes = (world: World) => {
  it.live(
    "of which one is killed: nothing is lost, and what it had comes again, in order",
    () =>
      Effect.gen(function*() {
        const { address, open } = yield* world.database
        const store = yield* open()
        const executions = Array.from({ length: 150 }, (_, index) => `e${index}`)
        const events = executions.flatMap((id) => [started(id), completed(id)])
        const [doomed, other] = [
          yield* ChildProcess.start("groupProcess.ts", "work", address, "400"),
          yield* ChildProcess.start("groupProcess.ts", "work", address, "400")
        ]
        yield* Queue.take(doomed.lines)
        yield* Queue.take(other.lines)
        yield* store.append(events)
        const lines: Array<string> = []
        // Killed as it is in the middle of its work.
        lines.push(...yield* Queue.takeN(doomed.lines, 40))
        yield* doomed.kill
        yield* until(Effect.map(store.groups.list, ([group]) => group?.lag === 0 && group.open === 0))
        yield* other.kill
        const ofDoomed = [...lines, ...yield* Queue.collect(doomed.lines)]
        const ofOther = yield* Queue.collect(other.lines)
        const said = (list: ReadonlyArray<string>, what: string) =>
          list.flatMap((line) => line.startsWith(`${what} `) ? [line.split(" ")[1] ?? ""] : [])
        const handled = [...said(ofDoomed, "handled"), ...said(ofOther, "handled")]
        assert.sameMembers(Array.from(new Set(handled)), events.map(({ id }) => id))
        const twice = handled.filter((id, index) => handled.indexOf(id) !== index)
        const confirmed = new Set(said(ofDoomed, "acknowledged"))
        assert.deepStrictEqual(twice.filter((id) => confirmed.has(id)), [])
        const times = new Map<string, ReadonlyArray<bigint>>()
        for (const line of [...ofDoomed, ...ofOther]) {
          const [what, id = "", time = "0"] = line.split(" ")
          if (what === "handled") times.set(id, [...times.get(id) ?? [], BigInt(time)])
        }
        for (const id of executions) {
          const ends = times.get(`${id}:completed`) ?? []
          assert.isTrue(
            (times.get(`${id}:started`) ?? []).every((at) => ends.every((end) => at < end)),
            `${id} in order`
          )
        }
      }),
    30_000
  )

  it.live(
    "of which one stands still for longer than its lease: its acknowledgement is refused",
    () =>
      Effect.gen(function*() {
        const { address, open } = yield* world.database
        const store = yield* open()
        const stopped = yield* ChildProcess.start("groupProcess.ts", "hold", address, "300")
        yield* Queue.take(stopped.lines)
        yield* store.append([started("a")])
        assert.strictEqual(yield* Queue.take(stopped.lines), "holding a:started 1")
        // Within a transaction: one that stood still with SQLite's lock would let nobody write.
        yield* store.withTransaction(stopped.stop)
        const member = yield* join(store)
        const taken = yield* member.take
        assert.strictEqual(shown(taken), "1 a:started again 2")
        yield* stopped.signal("SIGUSR2")
        yield* stopped.signal("SIGCONT")
        assert.strictEqual(yield* Queue.take(stopped.lines), "lease_lost a:started")
        yield* taken.ack
        assert.deepStrictEqual(yield* store.groups.list, [{ name: "x", position: 1, lag: 0, open: 0, parked: 0 }])
      }),
    30_000
  )
}

describe("processes that share a group on SQLite", () => {
  processes(sqlite)
})

await withServer("PostgreSQL", "processes that share a group on PostgreSQL", (url) => processes(postgres(url)))
