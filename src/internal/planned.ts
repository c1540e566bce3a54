/**
 * Plans of statements.
 *
 * @since 0.1.0
 */
import type * as Effect from "effect/Effect"
import type * as SqlClient from "effect/sql/SqlClient"
import type * as SqlError from "effect/sql/SqlError"
import type * as Statement from "effect/sql/Statement"

/**
 * Runs a statement by a plan for what the tables hold now. PostgreSQL keeps the plan of a prepared one from when they were small, until it
 * has analysed them: a scan, which takes longer with every event.
 *
 * @internal
 */
export const planned = <A>(
  sql: SqlClient.SqlClient,
  statement: Statement.Statement<A>
): Effect.Effect<ReadonlyArray<A>, SqlError.SqlError> =>
  sql.onDialectOrElse({ pg: () => statement.unprepared, orElse: () => statement })
