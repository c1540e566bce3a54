import { assert, it } from "@effect/vitest"
import { Context, Deferred, Effect, Fiber, Layer, Redacted } from "effect"
import { SqlClient } from "effect/sql"
import type { Event } from "../../src/EventPublisher.ts"
import * as EventStore from "../../src/EventStore.ts"
import * as Postgres from "../../src/publishers/Postgres.ts"
import { completed, domainEvent, failed, started } from "../fixtures/events.ts"
import { ownSchema } from "../fixtures/postgres.ts"
import { withServer } from "../servers.ts"

await withServer("PostgreSQL", "a log that transactions of the application take part in", (url) => {
  const open = Effect.fnUntraced(function*(schema: string) {
    const context = yield* Layer.build(Postgres.layer({ url: Redacted.make(url), schema, policy: "transactional" }))
    return {
      context,
      store: Context.get(context, EventStore.EventStore),
      sql: Context.get(context, SqlClient.SqlClient)
    }
  })

  /** A transaction that appends an event, tells so, and ends as it is told to. */
  const transaction = Effect.fnUntraced(function*(store: EventStore.Store, event: Event) {
    const appended = yield* Deferred.make<void>()
    const end = yield* Deferred.make<void, "no">()
    const fiber = yield* Effect.forkChild(
      store.withTransaction(
        Effect.andThen(
          store.append([event], { owned: true }),
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
      yield* first.sql`UPDATE effect_units_owners SET lease_until = 0`
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
      yield* first.sql`UPDATE effect_units_owners SET lease_until = 0`
      const second = yield* open(schema)
      assert.strictEqual(yield* second.store.closeAbandoned, 0)
      yield* ending.commit
      yield* first.store.lastOffset
      assert.deepStrictEqual(yield* idsAfter(second.store), ["a:started", "a:completed"])
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
