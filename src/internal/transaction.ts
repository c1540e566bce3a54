/**
 * Transactions on a connection that can be lost.
 *
 * @since 0.1.0
 */
import * as Effect from "effect/Effect"
import type * as Exit from "effect/Exit"
import type * as SqlClient from "effect/sql/SqlClient"
import type * as SqlError from "effect/sql/SqlError"

/**
 * `withTransaction` of a client, but that what failed inside stays what it is when the roll-back fails, too: a client makes defects of
 * both, and mostly the connection is gone, so that the server has rolled back.
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
      return Effect.catchCause(
        transaction(observed),
        (cause) => Effect.failCause(inner?._tag === "Failure" ? inner.cause : cause)
      )
    })
