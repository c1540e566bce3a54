/**
 * What the tables of an event store tell of executions.
 *
 * @since 0.1.0
 */
import * as Effect from "effect/Effect"
import type * as SqlClient from "effect/sql/SqlClient"
import type * as SqlError from "effect/sql/SqlError"
import type * as Statement from "effect/sql/Statement"
import type { ExecutionRecord, ExecutionsOptions } from "../EventStore.ts"
import type { Integer } from "./eventLog.ts"
import * as Rows from "./eventRows.ts"
import { planned } from "./planned.ts"

/**
 * How many rows a page has at most.
 *
 * @internal
 */
export const maxLimit = 1000
const countedChildren = 1000

/** @internal */
export const bounded = (limit: number | undefined): number => Math.min(Math.max(1, Math.trunc(limit ?? 100)), maxLimit)

interface ExecutionRow extends Rows.Identity {
  readonly outcome: ExecutionRecord["outcome"]
  readonly started_at: Integer
  readonly first_offset: Integer
  readonly ended_at: Integer | null
  readonly duration_ms: Integer | null
  readonly failure_kind: NonNullable<ExecutionRecord["failure"]>["kind"] | null
  readonly failure_tag: string | null
  readonly failure_code: string | null
  readonly error: string | null
  readonly children: Integer
}

/** @internal */
export const rfc3339 = (millis: Integer): string => new Date(Number(millis)).toISOString()

/**
 * The fields that events and records of executions share.
 *
 * @internal
 */
export const identityOf = (row: Rows.Identity) => {
  const { parent_id, ...identity } = Rows.restore(row)
  return { ...identity, ...(parent_id === null ? {} : { parent_id }) }
}

const toRecord = (row: ExecutionRow): ExecutionRecord => ({
  ...identityOf(row),
  outcome: row.outcome,
  started_at: rfc3339(row.started_at),
  ...(row.ended_at === null ? {} : { ended_at: rfc3339(row.ended_at) }),
  ...(row.duration_ms === null ? {} : { duration_ms: Number(row.duration_ms) }),
  ...(row.failure_kind === null ? {} : {
    failure: {
      kind: row.failure_kind,
      ...(row.failure_tag === null ? {} : { tag: row.failure_tag }),
      ...(row.failure_code === null ? {} : { code: row.failure_code }),
      message: row.error ?? ""
    }
  }),
  children: Number(row.children),
  first_offset: Number(row.first_offset)
})

/** @internal */
export const make = (sql: SqlClient.SqlClient) => {
  const identity = sql.literal("correlation_id, unit_name, domain, kind, parent_id, root_id, source, started_at")
  const selectRunning = sql`SELECT ${identity}, started_offset AS first_offset, CAST(NULL AS BIGINT) AS ended_at,
      CAST(NULL AS BIGINT) AS duration_ms, 'running' AS outcome, CAST(NULL AS TEXT) AS failure_kind,
      CAST(NULL AS TEXT) AS failure_tag, CAST(NULL AS TEXT) AS failure_code, CAST(NULL AS TEXT) AS error
    FROM effect_units_running`
  const selectEnded = sql`SELECT ${identity}, first_offset, ended_at, duration_ms, outcome, failure_kind, failure_tag,
      failure_code, error
    FROM effect_units_executions`

  const childrenIn = (table: string, condition: string) =>
    sql.literal(`(SELECT COUNT(*) FROM (SELECT 1 FROM ${table} AS child
      WHERE child.parent_id = page.correlation_id ${condition} LIMIT ${countedChildren}) AS counted)`)
  const withChildren = (page: Statement.Fragment) =>
    sql<ExecutionRow>`SELECT page.*, ${childrenIn("effect_units_running", "")}
        + ${childrenIn("effect_units_executions", "AND child.outcome = 'completed'")}
        + ${childrenIn("effect_units_executions", "AND child.outcome = 'failed'")} AS children
      FROM (${page}) AS page`

  const toRecords = (statement: Statement.Statement<ExecutionRow>) =>
    Effect.map(planned(sql, statement), (rows) => rows.map(toRecord))

  const list = (options: ExecutionsOptions): Effect.Effect<ReadonlyArray<ExecutionRecord>, SqlError.SqlError> => {
    const limit = bounded(options.limit)
    const oldestFirst = options.after !== undefined
    const order = sql.literal(
      oldestFirst ? "ORDER BY started_at, first_offset" : "ORDER BY started_at DESC, first_offset DESC"
    )
    const branch = (
      select: Statement.Fragment,
      offset: "started_offset" | "first_offset",
      outcome: ReadonlyArray<Statement.Fragment>
    ) => {
      const place = (
        comparison: "<" | ">",
        at: ExecutionsOptions["before"]
      ): ReadonlyArray<Statement.Fragment> =>
        at === undefined ? [] : [
          sql`(started_at, ${sql(offset)}) ${sql.literal(comparison)} (${
            Date.parse(at.started_at)
          }, ${at.first_offset})`
        ]
      const equal = (column: string, value: string | undefined): ReadonlyArray<Statement.Fragment> =>
        value === undefined ? [] : [sql`${sql(column)} = ${Rows.text(value)}`]
      const conditions = [
        ...outcome,
        ...equal("unit_name", options.unit),
        ...equal("domain", options.domain),
        ...equal("parent_id", options.parentId),
        ...(options.since === undefined ? [] : [sql`started_at >= ${options.since.epochMilliseconds}`]),
        ...(options.until === undefined ? [] : [sql`started_at < ${options.until.epochMilliseconds}`]),
        ...place("<", options.before),
        ...place(">", options.after)
      ]
      return sql`SELECT * FROM (${select} WHERE ${sql.and(conditions)} ${order} LIMIT ${limit}) AS ${
        sql(`by_${outcome.length}`)
      }`
    }
    const ended = (outcome: string) => branch(selectEnded, "first_offset", [sql`outcome = ${outcome}`])
    const branches = [
      ...(options.outcome === undefined || options.outcome === "running"
        ? [branch(selectRunning, "started_offset", [])]
        : []),
      ...(options.outcome === undefined || options.outcome === "completed" ? [ended("completed")] : []),
      ...(options.outcome === undefined || options.outcome === "failed" ? [ended("failed")] : [])
    ]
    const page = sql`${sql.join(" UNION ALL ", false)(branches)} ${order} LIMIT ${limit}`
    return Effect.map(
      toRecords(sql<ExecutionRow>`${withChildren(page)} ${order}`),
      (records) => oldestFirst ? records.toReversed() : records
    )
  }

  const find = (correlationId: string): Effect.Effect<ExecutionRecord | undefined, SqlError.SqlError> => {
    const id = Rows.text(correlationId)
    return Effect.map(
      toRecords(withChildren(
        sql`${selectRunning} WHERE correlation_id = ${id} UNION ALL ${selectEnded} WHERE correlation_id = ${id}`
      )),
      ([record]) => record
    )
  }

  return { list, find }
}
