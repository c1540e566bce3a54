import { assert, it } from "@effect/vitest"
import {
  Context,
  Deferred,
  type Duration,
  Effect,
  Exit,
  Fiber,
  Layer,
  Option,
  Queue,
  Redacted,
  Schedule,
  Schema,
  Stream
} from "effect"
import { SqlClient } from "effect/sql"
import { execFileSync } from "node:child_process"
import * as path from "node:path"
import * as Backend from "../../src/backends/Postgres.ts"
import { type Event, EventPublisher } from "../../src/EventPublisher.ts"
import * as EventStore from "../../src/EventStore.ts"
import * as Postgres from "../../src/publishers/Postgres.ts"
import { completed, domainEvent, failed, started } from "../fixtures/events.ts"
import { ownPostgres } from "../fixtures/ownServer.ts"
import { ownSchema } from "../fixtures/postgres.ts"
import { postgresPrograms, withProgram, withServer } from "../servers.ts"

await withServer("PostgreSQL", "a log that transactions of the application take part in", (url) => {
  const open = Effect.fnUntraced(function*(schema: string, maxConnections?: number, at = url) {
    const context = yield* Layer.build(
      Postgres.layer({ url: Redacted.make(at), schema, policy: "transactional", maxConnections })
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
  const transaction = Effect.fnUntraced(function*(store: EventStore.Store, ...events: ReadonlyArray<Event>) {
    const appended = yield* Deferred.make<void>()
    const end = yield* Deferred.make<void, "no">()
    const fiber = yield* Effect.forkScoped(
      store.withTransaction(
        Effect.andThen(
          store.append(events, { owned: true }),
          Effect.andThen(Deferred.succeed(appended, undefined), Deferred.await(end))
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
      isRolledBack: Schema.Boolean
    })).check(Schema.isBetweenLength(32, 32))
  }, ({ transactions }) =>
    Effect.gen(function*() {
      const schema = yield* ownSchema(url)
      const { store } = yield* open(schema, 40)
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
      const begin = ({ events, isRolledBack }: (typeof all)[number]) =>
        Effect.map(transaction(store, ...events), ({ commit, rollback }) => isRolledBack ? rollback : commit)
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
    }), { arbitrary: { runs: 5 }, timeout: 60_000 })

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
      const database = `effect_units_restored_${process.pid}`
      yield* Effect.acquireRelease(
        first.sql`CREATE DATABASE ${first.sql(database)}`,
        () => Effect.orDie(first.sql`DROP DATABASE ${first.sql(database)} WITH (FORCE)`)
      )
      const restored = Object.assign(new URL(url), { pathname: `/${database}` }).href
      const program = (name: string) => path.join(postgresPrograms() ?? "", name)
      const dump = execFileSync(program("pg_dump"), ["--schema", schema, url])
      execFileSync(program("psql"), ["--quiet", "--output", "/dev/null", restored], { input: dump })
      const second = yield* open(schema, undefined, restored)
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
        EventPublisher
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
          store.tail({ after: seen.at(-1)?.offset ?? 0, pollInterval: "50 millis" }).pipe(
            Stream.takeUntil((entry) => {
              seen.push(entry)
              return seen.length === 1200
            }),
            Stream.runDrain
          )
        )
        yield* Effect.all([...[0, 1, 2, 3].map(write), restarts, Effect.retry(follow, again)], {
          concurrency: "unbounded",
          discard: true
        })
        assert.strictEqual(acknowledged.length, 1200)
        assert.deepStrictEqual(seen.map(({ offset }) => offset), Array.from({ length: 1200 }, (_, index) => index + 1))
        assert.sameMembers(seen.map(({ event }) => event.id), acknowledged)
      }),
    120_000
  )
})
