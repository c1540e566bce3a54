import { assert, describe, it } from "@effect/vitest"
import { Cause, Context, DateTime, Effect, Exit, Layer, Metric, Queue, Schema, Stream } from "effect"
import { SqlClient } from "effect/sql"
import { TestClock } from "effect/testing"
import * as fs from "node:fs"
import * as os from "node:os"
import * as path from "node:path"
import * as Sqlite from "../src/backends/Sqlite.ts"
import * as ConsumerGroups from "../src/ConsumerGroups.ts"
import * as EventStore from "../src/EventStore.ts"
import * as EventSubscriber from "../src/EventSubscriber.ts"
import * as ChildProcess from "./fixtures/childProcess.ts"
import { completed, domainEvent, started } from "./fixtures/events.ts"
import { join, shown } from "./fixtures/members.ts"
import { client } from "./fixtures/postgres.ts"
import { withServer } from "./servers.ts"

const built = Effect.fnUntraced(function*<E>(layer: Layer.Layer<SqlClient.SqlClient, E>) {
  const context = yield* Layer.build(Layer.provideMerge(EventStore.layer(), layer))
  return { store: Context.get(context, EventStore.EventStore), sql: Context.get(context, SqlClient.SqlClient) }
})

const memory = built(Sqlite.layer({ filename: ":memory:" }))

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
          // Hangs; leaves in good order, which is no attempt, so not for ever; or crashes: nobody hears of it again.
          if (step >= 88 && step < 94 && leaves++ < 20) return "leave" as const
          return step < 94 ? "on" as const : "crash" as const
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

const temporaryFile = Effect.map(
  Effect.acquireRelease(
    Effect.sync(() => fs.mkdtempSync(path.join(os.tmpdir(), "effect-units-groups-"))),
    (directory) => Effect.sync(() => fs.rmSync(directory, { recursive: true }))
  ),
  (directory) => path.join(directory, "events.db")
)

describe("processes that share a group", () => {
  const open = (filename: string) => built(Sqlite.layer({ filename }))

  it.live(
    "of which one is killed: nothing is lost, and what it had comes again, in order",
    () =>
      Effect.gen(function*() {
        const filename = yield* temporaryFile
        const { store } = yield* open(filename)
        const executions = Array.from({ length: 150 }, (_, index) => `e${index}`)
        const events = executions.flatMap((id) => [started(id), completed(id)])
        const [doomed, other] = [
          yield* ChildProcess.start("groupProcess.ts", "work", filename, "400"),
          yield* ChildProcess.start("groupProcess.ts", "work", filename, "400")
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
        const filename = yield* temporaryFile
        const { store } = yield* open(filename)
        const stopped = yield* ChildProcess.start("groupProcess.ts", "hold", filename, "300")
        yield* Queue.take(stopped.lines)
        yield* store.append([started("a")])
        assert.strictEqual(yield* Queue.take(stopped.lines), "holding a:started 1")
        yield* stopped.signal("SIGSTOP")
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
})
