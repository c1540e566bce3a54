import { assert, describe, it } from "@effect/vitest"
import {
  Context,
  Deferred,
  type Duration,
  Effect,
  Exit,
  Fiber,
  Layer,
  Logger,
  Metric,
  Option,
  Queue,
  Redacted,
  References,
  Schedule,
  Schema,
  Scope,
  Stream
} from "effect"
import { SqlClient, Statement } from "effect/sql"
import { execFileSync } from "node:child_process"
import { createHash, randomBytes } from "node:crypto"
import * as path from "node:path"
import * as Backend from "../../src/backends/Postgres.ts"
import * as DomainEvent from "../../src/DomainEvent.ts"
import * as EventPublisher from "../../src/EventPublisher.ts"
import * as EventStore from "../../src/EventStore.ts"
import { EventSubscriber } from "../../src/EventSubscriber.ts"
import * as ExecutionEvent from "../../src/ExecutionEvent.ts"
import { instrumentEffect } from "../../src/instrument.ts"
import * as Metrics from "../../src/internal/metrics.ts"
import * as Postgres from "../../src/publishers/Postgres.ts"
import * as Relay from "../../src/Relay.ts"
import { completed, domainEvent, failed, started } from "../fixtures/events.ts"
import { newName } from "../fixtures/names.ts"
import { ownPostgres } from "../fixtures/ownServer.ts"
import { ownSchema } from "../fixtures/postgres.ts"
import { subscribe } from "../fixtures/receiving.ts"
import { tcpProxy } from "../fixtures/tcpProxy.ts"
import { postgresPrograms, withProgram, withServer } from "../servers.ts"

await withServer("PostgreSQL", "a log that transactions of the application take part in", (url) => {
  const open = Effect.fnUntraced(function*(
    schema: string,
    options?: Omit<Partial<Postgres.StoreOptions>, "url"> & { readonly url?: string }
  ) {
    const context = yield* Layer.build(
      Postgres.layer({ policy: "transactional", ...options, schema, url: Redacted.make(options?.url ?? url) })
    )
    return {
      context,
      store: Context.get(context, EventStore.EventStore),
      sql: Context.get(context, SqlClient.SqlClient)
    }
  })

  /** Waits for what a query finds. */
  const first = <A, E>(query: Effect.Effect<Option.Option<A>, E>): Effect.Effect<A, E> =>
    Effect.flatMap(
      query,
      (found) => Option.isSome(found) ? Effect.succeed(found.value) : Effect.suspend(() => first(query))
    )

  /** A transaction that appends events, tells so, and ends as it is told to. */
  const transaction = (store: EventStore.Store, ...events: ReadonlyArray<EventPublisher.Event>) =>
    transactionThat(store, Effect.void, events)

  /** The same, with something to do before its end. */
  const transactionThat = Effect.fnUntraced(function*(
    store: EventStore.Store,
    last: Effect.Effect<unknown>,
    events: ReadonlyArray<EventPublisher.Event>
  ) {
    const appended = yield* Deferred.make<void>()
    const end = yield* Deferred.make<void, "no">()
    const fiber = yield* Effect.forkScoped(
      store.withTransaction(
        Effect.andThen(
          store.append(events, { owned: true }),
          Effect.andThen(Deferred.succeed(appended, undefined), Effect.andThen(Deferred.await(end), last))
        )
      ),
      { startImmediately: true }
    )
    yield* Deferred.await(appended)
    return {
      commit: Effect.andThen(Deferred.succeed(end, undefined), Fiber.join(fiber)),
      rollback: Effect.andThen(Deferred.fail(end, "no"), Fiber.await(fiber))
    }
  })

  /** How the executions of a log ended, in the order of their ends. */
  const ends = (store: EventStore.Store) =>
    Effect.map(
      store.read({ limit: 1000, filter: { types: ["execution_completed", "execution_failed"] } }),
      (entries) =>
        entries.flatMap(({ event }) => {
          if (!ExecutionEvent.isExecutionEvent(event) || event.event_type === "execution_started") return []
          return [event.event_type === "execution_completed" ? "completed" : event.failure.kind]
        })
    )

  const idsAfter = (store: EventStore.Store, after = 0) =>
    Effect.map(store.read({ after }), (entries) => entries.map(({ event }) => event.id))

  it.live("transactions that commit in another order than they append miss none and hold up nobody", () =>
    Effect.gen(function*() {
      const schema = yield* ownSchema(url)
      const { store } = yield* open(schema)
      const tx0 = yield* transaction(store, domainEvent("tx0"))
      const tx1 = yield* transaction(store, domainEvent("tx1"))
      const rolledBack = yield* transaction(store, domainEvent("rolled back"))
      const tx2 = yield* transaction(store, domainEvent("tx2"))
      // Others append while these are open.
      yield* store.append([domainEvent("alone")])
      assert.deepStrictEqual(yield* idsAfter(store), ["alone"])
      yield* tx2.commit
      assert.deepStrictEqual(yield* idsAfter(store, 1), ["tx2"])
      yield* rolledBack.rollback
      yield* tx1.commit
      assert.deepStrictEqual(yield* idsAfter(store, 2), ["tx1"])
      yield* tx0.commit
      assert.deepStrictEqual(yield* idsAfter(store), ["alone", "tx2", "tx1", "tx0"])
      assert.strictEqual(yield* store.lastOffset, 4)
    }))

  it.live("what a transaction appended comes before what this process appends after it", () =>
    Effect.gen(function*() {
      const schema = yield* ownSchema(url)
      const { store } = yield* open(schema)
      const names = Array.from({ length: 200 }, (_, index) => `${index}`)
      yield* Effect.forEach(
        names,
        (name) =>
          Effect.andThen(
            store.withTransaction(store.append([domainEvent(`${name}, inside`)])),
            store.append([domainEvent(`${name}, after`)])
          ),
        { concurrency: 6, discard: true }
      )
      const ids = (yield* store.read({ limit: 1000 })).map(({ event }) => event.id)
      assert.deepStrictEqual(
        names.filter((name) => ids.indexOf(`${name}, inside`) > ids.indexOf(`${name}, after`)),
        []
      )
      assert.strictEqual(ids.length, 2 * names.length)
    }))

  it.live("what a process committed and could not place any more is placed by the next one, and counts", () =>
    Effect.gen(function*() {
      const schema = yield* ownSchema(url)
      const first = yield* open(schema)
      yield* first.store.append([started("a"), started("b")], { owned: true })
      // As after a crash between the commit and what follows it.
      const [row] = yield* first.sql<{ owner: string }>`SELECT owner FROM effect_units_running LIMIT 1`
      yield* first.sql`INSERT INTO effect_units_staged (owner, payload)
        VALUES (${row!.owner}, ${JSON.stringify(completed("a"))}), (${row!.owner}, ${JSON.stringify(failed("a"))})`
      yield* first.sql`UPDATE effect_units_owners SET beat = 0`
      const second = yield* open(schema)
      assert.deepStrictEqual(yield* idsAfter(second.store), ["a:started", "b:started", "a:completed", "b:failed"])
      assert.deepStrictEqual(yield* second.sql`SELECT 1 FROM effect_units_staged`, [])
    }))

  it.live("a defect while events are placed is not the end of placing", () =>
    Effect.gen(function*() {
      const schema = yield* ownSchema(url)
      let breaks = true
      const dying: Statement.Transformer = (statement) =>
        Effect.suspend(() => {
          if (!breaks || !statement.compile()[0].includes("DELETE FROM effect_units_staged")) {
            return Effect.succeed(statement)
          }
          breaks = false
          return Effect.die("broken")
        })
      const { sql, store } = yield* Effect.provideService(
        open(schema, { lease: "1 hour" }),
        Statement.CurrentTransformer,
        dying
      )
      yield* store.withTransaction(store.append([domainEvent("1")]))
      yield* first(Effect.sync(() => Option.liftPredicate(breaks, (is) => !is)))
      yield* store.withTransaction(store.append([domainEvent("2")]))
      const stored = sql<{ id: string }>`SELECT id FROM effect_units_events ORDER BY event_offset`
      const ids = yield* first(Effect.map(stored, Option.liftPredicate((rows) => rows.length === 2)))
      assert.deepStrictEqual(ids, [{ id: "1" }, { id: "2" }])
    }))

  it.live("what a process left behind is placed in transactions that are soon over, also where there is ever more of it", () =>
    Effect.gen(function*() {
      const schema = yield* ownSchema(url)
      const own = yield* open(schema)
      yield* own.store.append([started("a")], { owned: true })
      // As if a process wrote more while another one closes what it left.
      yield* own.sql`CREATE TABLE more (payload TEXT)`
      const more = Array.from({ length: 1200 }, (_, index) => JSON.stringify(domainEvent(`more ${index}`)))
      yield* own.sql`INSERT INTO more SELECT unnest(${more}::text[])`
      yield* own.sql`CREATE FUNCTION write_more() RETURNS trigger LANGUAGE plpgsql AS
        'BEGIN
          WITH taken AS (DELETE FROM more RETURNING payload) INSERT INTO effect_units_staged (payload) SELECT payload FROM taken;
          RETURN NULL;
        END'`
      yield* own.sql`CREATE TRIGGER write_more AFTER INSERT ON effect_units_events EXECUTE FUNCTION write_more()`
      const other = yield* open(schema)
      yield* own.sql`UPDATE effect_units_owners SET beat = 0`
      yield* own.sql`INSERT INTO effect_units_staged (payload) VALUES (${JSON.stringify(domainEvent("first"))})`
      assert.strictEqual(yield* other.store.closeAbandoned, 1)
      const [row] = yield* own.sql<{ most: bigint; stored: bigint }>`
        SELECT MAX(events)::int8 AS most, SUM(events)::int8 AS stored
        FROM (SELECT COUNT(*) AS events FROM effect_units_events GROUP BY xmin) AS transactions`
      assert.strictEqual(Number(row?.stored), 1203)
      assert.isAtMost(Number(row?.most), 500)
      assert.deepStrictEqual(yield* ends(other.store), ["abandoned"])
    }))

  it.live("an event of a transaction that the log refuses is set aside, and holds up no other", () =>
    Effect.gen(function*() {
      const schema = yield* ownSchema(url)
      const { sql, store } = yield* open(schema)
      // Longer than an index takes.
      const tooLong = domainEvent(randomBytes(6000).toString("base64"))
      yield* store.withTransaction(store.append([domainEvent("1"), tooLong, domainEvent("2")]))
      assert.deepStrictEqual(yield* idsAfter(store), ["1", "2"])
      yield* sql`INSERT INTO effect_units_staged (payload) VALUES ('{"no event')`
      const other = yield* open(schema)
      assert.strictEqual((yield* other.store.pending).events, 0)
      const refused = yield* sql<{ stage_id: bigint; refused: string }>`
        SELECT stage_id, refused FROM effect_units_staged ORDER BY stage_id`
      assert.strictEqual(refused.length, 2)
      assert.include(refused[0]?.refused, "index row")
      assert.include(refused[1]?.refused, "JSON")
      yield* sql`UPDATE effect_units_staged SET refused = NULL, payload = ${JSON.stringify(domainEvent("3"))}`
      yield* other.store.closeAbandoned
      assert.deepStrictEqual(yield* idsAfter(store), ["1", "2", "3"])
    }))

  it.live("an event that is larger than what can be read keeps its place, with marks for what it carried", () =>
    Effect.gen(function*() {
      const schema = yield* ownSchema(url)
      const { store } = yield* open(schema)
      const large = (id: string, parts: number) =>
        domainEvent(id, { payload: Array.from({ length: parts }, () => "x".repeat(60_000)) })
      yield* store.append([large("large", 300), domainEvent("1"), large("fits", 100)])
      yield* store.withTransaction(store.append([large("large, staged", 300), domainEvent("2")]))
      const payloads = (yield* store.read()).map(({ event }) =>
        DomainEvent.isDomainEvent(event) ? [event.id, event.payload] : []
      )
      const { payload } = large("large", 300)
      const text = JSON.stringify(payload)
      const mark = { $truncated: true, bytes: text.length, sha256: createHash("sha256").update(text).digest("hex") }
      assert.deepStrictEqual(payloads, [
        ["large", mark],
        ["1", { model_id: "m" }],
        ["fits", large("fits", 100).payload],
        ["large, staged", mark],
        ["2", { model_id: "m" }]
      ])
    }))

  it.live("one connection is enough, and tails hear of what others commit by another one", () =>
    Effect.gen(function*() {
      const schema = yield* ownSchema(url)
      const { store } = yield* open(schema, { maxConnections: 1 })
      const other = yield* open(schema, { maxConnections: 1 })
      const tail = yield* Effect.forkScoped(Stream.runCollect(Stream.take(store.tail({ pollInterval: "1 hour" }), 2)))
      yield* store.append([domainEvent("1")])
      yield* other.store.withTransaction(other.store.append([domainEvent("2")]))
      assert.deepStrictEqual((yield* Fiber.join(tail)).map(({ event }) => event.id), ["1", "2"])
    }))

  it.live("the executions of a process with a transaction under way are not abandoned, however late it is", () =>
    Effect.gen(function*() {
      const schema = yield* ownSchema(url)
      const first = yield* open(schema)
      yield* first.store.append([started("a")], { owned: true })
      const ending = yield* transaction(first.store, completed("a"))
      yield* first.sql`UPDATE effect_units_owners SET beat = 0`
      const second = yield* open(schema)
      assert.strictEqual(yield* second.store.closeAbandoned, 0)
      yield* ending.commit
      yield* first.store.lastOffset
      assert.deepStrictEqual(yield* idsAfter(second.store), ["a:started", "a:completed"])
    }))

  it.live.prop("the log misses none of many transactions, whatever the order of their ends, and shows each once", {
    transactions: Schema.Array(Schema.Struct({
      events: Schema.Int.check(Schema.isBetween({ minimum: 1, maximum: 3 })),
      /** When it ends, as compared to the others. */
      place: Schema.Int.check(Schema.isBetween({ minimum: 0, maximum: 10 })),
      /** Whether it begins when the first third of the others has ended. */
      isLate: Schema.Boolean,
      isRolledBack: Schema.Boolean,
      /** Milliseconds that its last statement takes. */
      hold: Schema.Int.check(Schema.isBetween({ minimum: 1, maximum: 200 }))
    })).check(Schema.isBetweenLength(32, 32))
  }, ({ transactions }) =>
    Effect.gen(function*() {
      const schema = yield* ownSchema(url)
      const { sql, store } = yield* open(schema, { maxConnections: 40 })
      const all = transactions.map((each, index) => ({
        ...each,
        events: Array.from({ length: each.events }, (_, at) => domainEvent(`${index}.${at}`))
      }))
      const due = all.filter(({ isRolledBack }) => !isRolledBack).flatMap(({ events }) => events.map(({ id }) => id))
      const followed = yield* store.tail({ pollInterval: "20 millis" }).pipe(
        Stream.take(due.length + 1),
        Stream.runCollect,
        Effect.forkChild
      )
      const begin = ({ events, hold, isRolledBack }: (typeof all)[number]) =>
        Effect.map(
          transactionThat(store, Effect.orDie(sql`SELECT pg_sleep(${hold / 1000})`), events),
          ({ commit, rollback }) => isRolledBack ? rollback : commit
        )
      const early = all.filter(({ isLate }) => !isLate)
      const ends = yield* Effect.forEach(early, begin, { concurrency: "unbounded" })
      const order = early.map((each, index) => ({ ...each, index })).sort((a, b) => a.place - b.place)
      const third = Math.floor(order.length / 3)
      yield* Effect.forEach(order.slice(0, third), ({ index }) => ends[index]!, { concurrency: 4, discard: true })
      const late = yield* Effect.forEach(all.filter(({ isLate }) => isLate), begin, { concurrency: "unbounded" })
      yield* Effect.forEach([...order.slice(third).map(({ index }) => ends[index]!), ...late], (end) => end, {
        concurrency: 4,
        discard: true
      })
      yield* store.append([domainEvent("last")])
      const entries = yield* Fiber.join(followed)
      assert.deepStrictEqual(entries.map(({ offset }) => offset), Array.from(entries, (_, index) => index + 1))
      assert.sameMembers(entries.map(({ event }) => event.id), [...due, "last"])
      // Of each transaction in its own order.
      for (const { events, isRolledBack } of all) {
        const places = events.map(({ id }) => entries.findIndex(({ event }) => event.id === id))
        assert.deepStrictEqual(places, isRolledBack ? places.map(() => -1) : places.toSorted((a, b) => a - b))
      }
    }), { arbitrary: { runs: 10 }, timeout: 60_000 })

  it.live("a transaction that stays open delays its own events, and can be seen to", () =>
    Effect.gen(function*() {
      const schema = yield* ownSchema(url)
      const { sql, store } = yield* open(schema)
      // The store's own move into the log is a transaction as well, for a moment.
      const quiet = first(Effect.map(store.pending, Option.liftPredicate(({ transactions }) => transactions === 0)))
      assert.deepStrictEqual(yield* quiet, { events: 0, waiting_ms: 0, transactions: 0, open_ms: 0 })
      const long = yield* transaction(store, domainEvent("long"))
      for (let index = 0; index < 20; index++) yield* store.append([domainEvent(`${index}`)])
      assert.strictEqual(yield* store.lastOffset, 20)
      const { open_ms, transactions } = yield* store.pending
      assert.strictEqual(transactions, 1)
      assert.isAbove(open_ms, 0)
      yield* sql`INSERT INTO effect_units_staged (payload, staged_at)
        VALUES (${JSON.stringify(domainEvent("left behind"))}, now() - INTERVAL '1 minute')`
      const { events, waiting_ms } = yield* store.pending
      assert.strictEqual(events, 1)
      assert.isAtLeast(waiting_ms, 60_000)
      yield* long.commit
      assert.deepStrictEqual(yield* idsAfter(store, 20), ["long", "left behind"])
      assert.deepStrictEqual(yield* quiet, { events: 0, waiting_ms: 0, transactions: 0, open_ms: 0 })
    }))

  it.live("a gauge tells how long a transaction has been open", () =>
    Effect.gen(function*() {
      const schema = yield* ownSchema(url)
      const { store } = yield* open(schema, { lease: "150 millis" })
      const open_seconds = Effect.map(Metric.value(Metrics.openTransaction), ({ value }) => value)
      const long = yield* transaction(store, domainEvent("long"))
      const one = yield* first(Effect.map(open_seconds, Option.liftPredicate((value) => value > 0)))
      yield* first(Effect.map(open_seconds, Option.liftPredicate((value) => value > one)))
      yield* long.commit
      yield* first(Effect.map(open_seconds, Option.liftPredicate((value) => value === 0)))
    }))

  it.live("what is looked up costs no more for what is stored, also before the server has looked at its tables", () =>
    Effect.gen(function*() {
      const schema = yield* ownSchema(url)
      const { sql, store } = yield* open(schema)
      for (const table of ["events", "executions", "running"]) {
        yield* sql`ALTER TABLE ${sql(`effect_units_${table}`)} SET (autovacuum_enabled = false)`
      }
      const executions = 2000
      for (let index = 0; index < executions; index++) {
        yield* store.append([started(`${index}`)])
        yield* store.append([completed(`${index}`)])
        if (index % 10 === 0) yield* store.execution(`${index}`)
      }
      // Servers tell what they did with a delay.
      const { scanned } = yield* first(Effect.map(
        sql<{ stored: bigint; scanned: bigint }>`
          SELECT SUM(n_tup_ins) FILTER (WHERE relname = 'effect_units_executions')::int8 AS stored,
            SUM(seq_tup_read)::int8 AS scanned
          FROM pg_stat_user_tables WHERE schemaname = ${schema} AND relname IN ('effect_units_events', 'effect_units_executions')`,
        ([row]) => Option.filter(Option.fromUndefinedOr(row), ({ stored }) => Number(stored) === executions)
      ))
      // Scans of small tables are right; scanning all of each for each execution would be millions.
      assert.isBelow(Number(scanned), 50 * executions)
    }))

  it.live("events of a transaction keep their order where the numbers of the server are cached", () =>
    Effect.gen(function*() {
      const schema = yield* ownSchema(url)
      const { sql, store } = yield* open(schema)
      yield* sql`ALTER TABLE effect_units_staged ALTER COLUMN stage_id SET CACHE 50`
      const transactions = yield* Effect.forEach(
        ["a", "b", "c"],
        (name) => transaction(store, ...Array.from({ length: 5 }, (_, index) => domainEvent(`${name}${index}`)))
      )
      yield* Effect.forEach(transactions.toReversed(), ({ commit }) => commit, { discard: true })
      const ids = yield* idsAfter(store)
      assert.strictEqual(ids.length, 15)
      for (const name of ["a", "b", "c"]) {
        assert.deepStrictEqual(
          ids.filter((id) => id.startsWith(name)),
          Array.from({ length: 5 }, (_, index) => `${name}${index}`)
        )
      }
    }))

  it.live("a database that was restored from a dump goes on where the dump ends", () =>
    Effect.gen(function*() {
      const schema = yield* ownSchema(url)
      const first = yield* open(schema)
      yield* first.store.append([started("a"), domainEvent("d")], { owned: true })
      yield* first.sql`UPDATE effect_units_owners SET beat = 0`
      yield* first.sql`INSERT INTO effect_units_staged (payload) VALUES (${JSON.stringify(completed("a"))})`
      // A database of its own, whose transactions are numbered by another server in truth: nothing of the log depends on them.
      const database = newName("effect_units_restored")
      yield* Effect.acquireRelease(
        first.sql`CREATE DATABASE ${first.sql(database)}`,
        () => Effect.orDie(first.sql`DROP DATABASE ${first.sql(database)} WITH (FORCE)`)
      )
      const restored = Object.assign(new URL(url), { pathname: `/${database}` }).href
      const program = (name: string) => path.join(postgresPrograms() ?? "", name)
      const dump = execFileSync(program("pg_dump"), ["--schema", schema, url])
      execFileSync(program("psql"), ["--quiet", "--output", "/dev/null", restored], { input: dump })
      const second = yield* open(schema, { url: restored })
      assert.deepStrictEqual(yield* idsAfter(second.store), ["a:started", "d", "a:completed"])
      const later = yield* transaction(second.store, domainEvent("later"))
      yield* later.commit
      assert.deepStrictEqual(yield* idsAfter(second.store, 3), ["later"])
    }), 60_000)

  it.live(
    "tails hear of what others commit, again after the connection is lost, and poll where they hear nothing",
    () =>
      Effect.gen(function*() {
        const schema = yield* ownSchema(url)
        const hearing = yield* open(schema)
        const other = yield* open(schema)
        const deaf = Context.get(
          yield* Layer.build(Layer.provide(EventStore.layer(), Backend.layer({ url: Redacted.make(url), schema }))),
          EventStore.EventStore
        )
        const seen = yield* Queue.unbounded<string>()
        const follow = (name: string, store: EventStore.Store, pollInterval: Duration.Input) =>
          store.tail({ pollInterval }).pipe(
            Stream.runForEach(({ event }) => Queue.offer(seen, `${name} ${event.id}`)),
            Effect.forkScoped
          )
        const listening = first(Effect.map(
          other.sql<{ pid: number }>`SELECT pid FROM pg_stat_activity WHERE query LIKE 'LISTEN %' AND query LIKE
          '%' || md5(${schema}) || '%' AND pid <> pg_backend_pid()`,
          (rows) => rows.length === 2 ? Option.some(rows) : Option.none()
        ))
        yield* follow("hearing", hearing.store, "1 hour")
        yield* follow("deaf", deaf, "20 millis")
        const connections = yield* listening
        yield* other.store.append([domainEvent("1")])
        assert.sameMembers(yield* Queue.takeN(seen, 2), ["hearing 1", "deaf 1"])
        yield* Effect.forEach(connections, ({ pid }) => other.sql`SELECT pg_terminate_backend(${pid})`)
        yield* other.store.append([domainEvent("2")])
        // It looks as soon as it listens again.
        assert.sameMembers(yield* Queue.takeN(seen, 2), ["hearing 2", "deaf 2"])
        yield* listening
        yield* other.store.append([domainEvent("3")])
        assert.sameMembers(yield* Queue.takeN(seen, 2), ["hearing 3", "deaf 3"])
      }),
    30_000
  )

  it.live("a transaction that fails as its connection is lost fails with its own failure, and takes no event along", () =>
    Effect.gen(function*() {
      const schema = yield* ownSchema(url)
      const { sql, store } = yield* open(schema)
      const killer = yield* open(schema)
      const loseConnection = Effect.gen(function*() {
        const [row] = yield* sql<{ pid: number }>`SELECT pg_backend_pid() AS pid`
        yield* killer.sql`SELECT pg_terminate_backend(${row!.pid})`
        // The server has ended the connection once it says so.
        return yield* Effect.flip(sql`SELECT 1`)
      })
      const failing = Effect.andThen(
        Effect.andThen(store.append([domainEvent("lost")]), loseConnection),
        Effect.fail("no")
      )
      assert.strictEqual(yield* Effect.flip(store.withTransaction(failing)), "no")
      assert.strictEqual(yield* Effect.flip(sql.withTransaction(failing)), "no")
      const appending = Effect.andThen(Effect.orDie(loseConnection), store.append([domainEvent("lost")]))
      const lost = yield* Effect.flip(store.withTransaction(appending))
      assert.isTrue(lost.retryable)
      yield* store.append([domainEvent("kept")])
      assert.deepStrictEqual(yield* idsAfter(store), ["kept"])
    }))

  for (const isolation of ["READ COMMITTED", "REPEATABLE READ"]) {
    it.live(`a unit whose process was wrongly taken for gone takes its writes back, ${isolation}`, () =>
      Effect.gen(function*() {
        const schema = yield* ownSchema(url)
        const own = yield* open(schema)
        const other = yield* open(schema)
        yield* own.sql`CREATE TABLE notes (text TEXT)`
        const begun = yield* Deferred.make<void>()
        const goOn = yield* Deferred.make<void>()
        const unit = instrumentEffect(
          own.sql`INSERT INTO notes (text) VALUES ('late')`.pipe(
            Effect.andThen(Deferred.succeed(begun, undefined)),
            Effect.andThen(Deferred.await(goOn))
          ),
          { name: "test.late" }
        ).pipe(
          Effect.provideService(SqlClient.BeginTransaction, `BEGIN ISOLATION LEVEL ${isolation}`),
          Effect.provide(own.context)
        )
        const running = yield* Effect.forkScoped(Effect.flip(EventPublisher.failOnRefusal(unit)))
        yield* Deferred.await(begun)
        yield* other.sql`UPDATE effect_units_owners SET beat = 0`
        assert.strictEqual(yield* other.store.closeAbandoned, 1)
        yield* Deferred.succeed(goOn, undefined)
        assert.strictEqual((yield* Fiber.join(running))._tag, "PublishError")
        assert.deepStrictEqual(yield* own.sql`SELECT text FROM notes`, [])
        assert.deepStrictEqual(yield* ends(other.store), ["abandoned"])
      }))
  }

  describe("a connection that is lost in the commit of a unit", () => {
    /** A unit whose connection breaks where `decide` says so, once it has written its note. */
    const lose = Effect.fnUntraced(
      function*(decide: (from: "client" | "server", text: string) => "before" | "after" | undefined) {
        const schema = yield* ownSchema(url)
        const at = new URL(url)
        const proxy = yield* tcpProxy(Number(at.port || 5432))
        at.host = `127.0.0.1:${proxy.port}`
        const { context, store } = yield* open(schema, { url: at.href, prepare: false, applicationName: schema })
        const sql = Context.get(context, SqlClient.SqlClient)
        yield* sql`CREATE TABLE notes (text TEXT)`
        const marked = new WeakSet()
        proxy.cutAt((connection, from, bytes) => {
          const text = bytes.toString("latin1")
          if (text.includes("INSERT INTO notes")) marked.add(connection)
          return marked.has(connection) ? decide(from, text) : undefined
        })
        const unit = Effect.provide(
          EventPublisher.failOnRefusal(
            instrumentEffect(Effect.as(sql`INSERT INTO notes VALUES ('kept')`, "done"), { name: "test.unit" })
          ),
          context
        )
        const left = Effect.gen(function*() {
          const direct = yield* open(schema)
          return [yield* ends(direct.store), (yield* direct.sql`SELECT text FROM notes`).length]
        })
        return { context, left, proxy, schema, sql, store, unit }
      }
    )
    const atCommit = (cut: "before" | "after") => (from: "client" | "server", text: string) =>
      from === "client" && text.includes("COMMIT\0") ? cut : undefined
    const atAnswer = (from: "client" | "server", text: string) =>
      from === "server" && text.includes("COMMIT\0") ? "before" : undefined
    /** Has commits of notes wait for a lock, and takes it. Gives it back by the effect that comes back. */
    const holdCommits = Effect.fnUntraced(function*(schema: string) {
      const { sql } = yield* open(schema)
      yield* sql`CREATE FUNCTION hold() RETURNS trigger LANGUAGE plpgsql AS
        'BEGIN PERFORM pg_advisory_xact_lock(hashtextextended(current_schema(), 0)); RETURN NULL; END'`
      yield* sql`CREATE CONSTRAINT TRIGGER hold AFTER INSERT ON notes DEFERRABLE INITIALLY DEFERRED
        FOR EACH ROW EXECUTE FUNCTION hold()`
      const held = yield* Deferred.make<void>()
      const released = yield* Deferred.make<void>()
      yield* Effect.forkScoped(sql.withTransaction(
        sql`SELECT pg_advisory_xact_lock(hashtextextended(current_schema(), 0))`.pipe(
          Effect.andThen(Deferred.succeed(held, undefined)),
          Effect.andThen(Deferred.await(released))
        )
      ))
      yield* Deferred.await(held)
      const waiting = sql`SELECT 1 FROM pg_stat_activity
        WHERE wait_event = 'advisory' AND query LIKE 'COMMIT%' AND application_name = ${schema}`
      const until = (count: number) =>
        first(Effect.map(waiting, (rows) => rows.length === count ? Option.some(rows) : Option.none()))
      return { release: Deferred.succeed(released, undefined), begun: until(1), over: until(0) }
    })

    it.live("is none to the unit where it was committed", () =>
      Effect.gen(function*() {
        const { left, unit } = yield* lose(atAnswer)
        assert.strictEqual(yield* unit, "done")
        assert.deepStrictEqual(yield* left, [["completed"], 1])
      }))

    it.live("fails the unit where the commit never arrived", () =>
      Effect.gen(function*() {
        const { left, unit } = yield* lose(atCommit("before"))
        assert.strictEqual((yield* Effect.flip(unit))._tag, "PublishError")
        assert.deepStrictEqual(yield* left, [["die"], 0])
      }))

    it.live("lets the unit wait for a commit that takes its time", () =>
      Effect.gen(function*() {
        const { left, schema, unit } = yield* lose(atCommit("after"))
        const { begun, release } = yield* holdCommits(schema)
        const running = yield* Effect.forkChild(unit)
        yield* begun
        yield* release
        assert.strictEqual(yield* Fiber.join(running), "done")
        assert.deepStrictEqual(yield* left, [["completed"], 1])
      }))

    it.live("ends a commit that takes too long", () =>
      Effect.gen(function*() {
        const { left, schema, unit } = yield* lose(atCommit("after"))
        const { over, release } = yield* holdCommits(schema)
        assert.strictEqual((yield* Effect.flip(unit))._tag, "PublishError")
        yield* release
        yield* over
        assert.deepStrictEqual(yield* left, [["die"], 0])
      }), 20_000)

    it.live(
      "leaves the end of the unit open for as long as nobody can say what became of it",
      () =>
        Effect.gen(function*() {
          const { left, proxy, store, unit } = yield* lose(atAnswer)
          const running = yield* Effect.forkChild(Effect.flip(unit))
          yield* first(Effect.sync(() => Option.liftPredicate(proxy.cuts(), (cuts) => cuts === 1)))
          proxy.leadTo(1)
          yield* proxy.cut
          const error = yield* Fiber.join(running)
          assert.include(error.message, "the server has yet to say")
          proxy.leadTo(Number(new URL(url).port || 5432))
          yield* store.append([domainEvent("after")])
          assert.deepStrictEqual(yield* left, [["completed"], 1])
        }),
      30_000
    )
  })

  it.live("while the server's disk is full events wait, and are stored once there is space", () =>
    Effect.gen(function*() {
      const schema = yield* ownSchema(url)
      const { context, sql, store } = yield* open(schema)
      yield* sql`CREATE FUNCTION fill() RETURNS trigger LANGUAGE plpgsql AS
        'BEGIN RAISE EXCEPTION ''could not extend file: No space left on device'' USING ERRCODE = ''53100''; END'`
      yield* sql`CREATE TRIGGER fill BEFORE INSERT ON effect_units_events EXECUTE FUNCTION fill()`
      const refusal = yield* Effect.flip(store.append([domainEvent("d")]))
      assert.strictEqual(refusal.reason._tag, "Full")
      assert.isTrue(refusal.retryable)
      const publisher = Context.get(
        yield* Layer.build(Layer.provide(Postgres.layerStore(), Layer.succeedContext(context))),
        EventPublisher.EventPublisher
      )
      for (const id of ["1", "2", "3"]) publisher.offer(domainEvent(id))
      yield* sql`DROP TRIGGER fill ON effect_units_events`
      yield* first(Effect.map(store.lastOffset, Option.liftPredicate((offset) => offset === 3)))
      assert.deepStrictEqual(yield* idsAfter(store), ["1", "2", "3"])
    }))

  it.live("many processes open a new database at once", () =>
    Effect.gen(function*() {
      const schema = yield* ownSchema(url)
      const stores = yield* Effect.all(Array.from({ length: 6 }, () => open(schema)), { concurrency: "unbounded" })
      yield* Effect.forEach(stores, ({ store }, index) => store.append([domainEvent(`${index}`)]), {
        concurrency: "unbounded"
      })
      assert.strictEqual(yield* stores[0]!.store.lastOffset, 6)
    }))

  it.live("a server that is not there is told with what to do", () =>
    Effect.gen(function*() {
      const refusal = (at: string) => Effect.flip(Layer.build(Postgres.layer({ url: Redacted.make(at) })))
      const away = yield* refusal("postgres://postgres@127.0.0.1:1/none")
      assert.strictEqual(away.reason._tag, "Unavailable")
      assert.include(away.message, "ECONNREFUSED")
      assert.isTrue(away.retryable)
      const none = yield* refusal(Object.assign(new URL(url), { pathname: "/effect_units_none" }).href)
      assert.include(none.message, `database "effect_units_none" does not exist`)
      assert.isFalse(none.retryable)
    }))
})

withProgram("PostgreSQL", "a log on a server of its own", () => {
  it.live(
    "while the server is read-only, as after a failover, events wait and are stored once it is not",
    () =>
      Effect.gen(function*() {
        const server = yield* ownPostgres()
        const said = yield* Queue.unbounded<string>()
        const context = yield* Postgres.layer({ url: Redacted.make(server.url) }).pipe(
          Layer.provide(Logger.layer([Logger.make(({ message }) => Queue.offerUnsafe(said, String(message)))])),
          Layer.build
        )
        const sql = Context.get(context, SqlClient.SqlClient)
        const store = Context.get(context, EventStore.EventStore)
        const publisher = Context.get(context, EventPublisher.EventPublisher)
        const administer = (setting: string) =>
          Effect.andThen(sql.unsafe(`ALTER SYSTEM ${setting}`), sql`SELECT pg_reload_conf()`)
        yield* store.append([domainEvent("0")])
        yield* store.append([domainEvent("0")])
        yield* administer("SET default_transaction_read_only = on")
        const error = yield* Effect.flip(Effect.forever(store.append([domainEvent("0")])))
        assert.strictEqual(error.reason._tag, "Unavailable")
        assert.isTrue(error.retryable)
        for (const id of ["1", "2", "3"]) publisher.offer(domainEvent(id))
        assert.include(yield* Queue.take(said), "Events wait and are tried again")
        yield* sql`SET default_transaction_read_only = off`
        yield* administer("RESET default_transaction_read_only")
        yield* Effect.repeat(store.lastOffset, { until: (offset) => offset === 4 })
        assert.deepStrictEqual((yield* store.read()).map(({ event }) => event.id), ["0", "1", "2", "3"])
      }),
    60_000
  )

  const open = Effect.fnUntraced(function*(url: string) {
    const context = yield* Layer.build(Postgres.layer({ url: Redacted.make(url), policy: "closed" }))
    return { store: Context.get(context, EventStore.EventStore), sql: Context.get(context, SqlClient.SqlClient) }
  })

  it.live(
    "what replication shows of the log is what Debezium's outbox event router takes by default",
    () =>
      Effect.gen(function*() {
        const { url } = yield* ownPostgres("wal_level=logical")
        const { sql, store } = yield* open(url)
        yield* sql`SELECT 1 AS made FROM pg_create_logical_replication_slot('outbox', 'test_decoding')`
        yield* store.append([started("a"), domainEvent("d")])
        yield* store.withTransaction(store.append([completed("a"), domainEvent("e", { correlation: "a" })]))
        yield* store.prune({ keep: 1 })
        const changes = yield* sql<{ data: string }>`SELECT data FROM pg_logical_slot_get_changes('outbox', NULL, NULL)`
        const ofLog = changes.map(({ data }) => data).filter((data) =>
          data.startsWith("table public.effect_units_events:")
        )
        const inserts = ofLog.filter((data) => data.includes(" INSERT: "))
        // The router leaves deletions out, and stumbles over anything else.
        assert.deepStrictEqual(ofLog.filter((data) => !/ (INSERT|DELETE): /.test(data)), [])
        const column = (data: string, name: string) =>
          new RegExp(`\\b${name}\\[text\\]:'((?:[^']|'')*)'`).exec(data)?.[1]
        assert.deepStrictEqual(
          inserts.map((data) => ["id", "aggregatetype", "aggregateid", "type"].map((name) => column(data, name))),
          [
            ["a:started", "model", "a", "execution_started"],
            ["d", "model", "d", "model.created"],
            ["a:completed", "model", "a", "execution_completed"],
            ["e", "model", "a", "model.created"]
          ]
        )
        for (const data of inserts) assert.isObject(JSON.parse(column(data, "payload")!.replaceAll("''", "'")))
      }),
    60_000
  )

  it.live("what works on a server that has gone silent is closed in time, and tells those who wait", () =>
    Effect.gen(function*() {
      const proxy = yield* tcpProxy((yield* ownPostgres()).port)
      const scope = yield* Scope.make()
      const context = yield* Relay.layer({
        name: "x",
        to: EventPublisher.layer({ policy: "closed", publish: () => Effect.void }),
        flushTimeout: "200 millis"
      }).pipe(
        Layer.provideMerge(Postgres.layerSubscriber()),
        Layer.provideMerge(
          Postgres.layer({
            url: Redacted.make(`postgres://postgres@127.0.0.1:${proxy.port}/postgres`),
            policy: "closed",
            flushTimeout: "200 millis"
          })
        ),
        Layer.buildWithScope(scope)
      )
      const { publish } = Context.get(context, EventPublisher.EventPublisher)
      yield* publish(domainEvent("heard"))
      const { next } = yield* Scope.provide(subscribe(Context.get(context, EventSubscriber), { consumer: "c" }), scope)
      const { ack } = yield* next
      yield* proxy.mute
      const acknowledging = yield* Effect.forkDetach(ack)
      const publishing = yield* Effect.forkDetach(publish(domainEvent("unheard")))
      yield* Effect.repeat(Effect.sleep("10 millis"), { while: () => proxy.unheard() < 2 })
      yield* Scope.close(scope, Exit.void)
      assert.deepStrictEqual(
        [
          (yield* Effect.flip(Fiber.join(publishing))).reason._tag,
          (yield* Effect.flip(Fiber.join(acknowledging))).reason
        ],
        ["Unavailable", "ended"]
      )
    }).pipe(Effect.provideService(References.MinimumLogLevel, "Error")))

  it.live(
    "a tail loses and skips nothing while the server is killed and started again in the middle of a load",
    () =>
      Effect.gen(function*() {
        const server = yield* ownPostgres()
        const { store } = yield* open(server.url)
        const again = {
          while: (error: EventStore.EventStoreError) => error.retryable,
          schedule: Schedule.spaced("20 millis")
        }
        const acknowledged: Array<string> = []
        const killed = [yield* Deferred.make<void>(), yield* Deferred.make<void>()]
        const write = (writer: number) =>
          Effect.forEach(Array.from({ length: 150 }, (_, index) => index), (index) => {
            const events = [started(`${writer}-${index}`), completed(`${writer}-${index}`)]
            return Effect.map(Effect.retry(store.append(events), again), () => {
              acknowledged.push(...events.map(({ id }) => id))
              if (acknowledged.length >= 200) Deferred.doneUnsafe(killed[0]!, Exit.void)
              if (acknowledged.length >= 600) Deferred.doneUnsafe(killed[1]!, Exit.void)
            })
          }, { discard: true })
        const restarts = Effect.forEach(
          killed,
          (due) => Deferred.await(due).pipe(Effect.andThen(server.kill), Effect.andThen(server.start)),
          { discard: true }
        )
        const seen: Array<EventStore.Entry> = []
        const follow = Effect.suspend(() =>
          store.tail({ after: seen.at(-1)?.offset ?? 0, pollInterval: "1 hour" }).pipe(
            Stream.takeUntil((entry) => {
              seen.push(entry)
              return seen.length === 1201
            }),
            Stream.runDrain
          )
        )
        const following = yield* Effect.forkScoped(Effect.retry(follow, again))
        yield* Effect.all([...[0, 1, 2, 3].map(write), restarts], { concurrency: "unbounded", discard: true })
        // Of this one the tail can only hear, by a connection that listens again.
        const other = yield* open(server.url)
        yield* Effect.retry(other.store.append([domainEvent("other")]), again)
        yield* Fiber.join(following)
        assert.strictEqual(acknowledged.length, 1200)
        assert.deepStrictEqual(seen.map(({ offset }) => offset), Array.from({ length: 1201 }, (_, index) => index + 1))
        assert.sameMembers(seen.map(({ event }) => event.id), [...acknowledged, "other"])
      }),
    120_000
  )
})
