/**
 * Transactions on a connection that can be lost.
 *
 * @since 0.1.0
 */
import * as Effect from "effect/Effect"
import type * as Exit from "effect/Exit"
import type * as SqlClient from "effect/sql/SqlClient"
import * as SqlError from "effect/sql/SqlError"

/**
 * `withTransaction` of a client, but that a roll-back that fails changes nothing of how the transaction ended. A client dies of it, and
 * takes the failure along that led to it; but mostly the connection is gone, and then the server has rolled back.
 *
 * @internal
 */
export const withTransaction =
  (transaction: SqlClient.SqlClient["withTransaction"]): SqlClient.SqlClient["withTransaction"] =>
  <R, E, A>(self: Effect.Effect<A, E, R>): Effect.Effect<A, E | SqlError.SqlError, R> =>
    Effect.suspend(() => {
      let inner: Exit.Exit<A, E> | undefined
      const observed = Effect.onExit(self, (exit) =>
        Effect.sync(() => {
          inner = exit
        }))
      return Effect.catchDefect(transaction(observed), (defect) =>
        SqlError.isSqlError(defect) && inner?._tag === "Failure" ? Effect.failCause(inner.cause) : Effect.die(defect))
    })
