import { assert, it } from "@effect/vitest"
import { Context, Effect, Exit, Fiber, Layer, Redacted, Scope } from "effect"
import { SqlClient, SqlError } from "effect/sql"
import * as Postgres from "../../src/backends/Postgres.ts"
import { ownPostgres } from "../fixtures/ownServer.ts"
import { tcpProxy } from "../fixtures/tcpProxy.ts"
import { withProgram } from "../servers.ts"

withProgram("PostgreSQL", "a client whose server has gone silent", () => {
  it.live("is closed in time, and what waits for the server fails then", () =>
    Effect.gen(function*() {
      const proxy = yield* tcpProxy((yield* ownPostgres()).port)
      const scope = yield* Scope.make()
      const sql = yield* Postgres.layer({
        url: Redacted.make(`postgres://postgres@127.0.0.1:${proxy.port}/postgres`)
      }).pipe(Layer.buildWithScope(scope), Effect.map(Context.get(SqlClient.SqlClient)))
      yield* sql`SELECT 1`
      yield* proxy.mute
      // It begins in a way that no interruption ends.
      const transaction = yield* Effect.forkDetach(sql.withTransaction(sql`SELECT 1`))
      yield* Effect.repeat(Effect.sleep("10 millis"), { while: () => proxy.unheard() === 0 })
      yield* Scope.close(scope, Exit.void)
      const error = yield* Effect.flip(Fiber.join(transaction))
      assert.instanceOf(error, SqlError.SqlError)
      assert.strictEqual(error.reason._tag, "ConnectionError")
    }))
})
