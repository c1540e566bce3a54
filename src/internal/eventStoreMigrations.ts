/**
 * The tables of an event store, and how a database gets them.
 *
 * - `effect_units_events`: the log. Offsets are given by the store, under the lock of the row in `effect_units_log`: on every
 *   database an event with a smaller offset is visible no later than one with a larger offset, and there are no holes. Rows are
 *   inserted and deleted, never updated, and have the columns that Debezium's outbox event router looks for.
 * - `effect_units_staged`, on PostgreSQL only: events of transactions of the application, until they have their place in the log.
 * - `effect_units_running`: one row per execution that has begun and not ended; small, whatever the size of the log.
 * - `effect_units_executions`: one row per execution that has ended, written once. Every index begins with the outcome, so that
 *   each query over executions is a bounded walk over one index per outcome.
 * - `effect_units_owners`: the store instances whose process runs executions, each with a number that it counts up.
 * - `effect_units_checkpoints`: how far named consumers have come.
 * - `effect_units_groups`: one row per group of subscribers, with the offset up to which its events have been handed out.
 * - `effect_units_deliveries`: the events up to there that are not handled: in flight, waiting, held behind another one of
 *   their execution, parked. Whoever changes a group's deliveries holds the lock of its row in `effect_units_groups`.
 *
 * @since 0.1.0
 */
import * as Effect from "effect/Effect"
import * as Migrator from "effect/sql/Migrator"
import * as SqlClient from "effect/sql/SqlClient"
import type * as SqlError from "effect/sql/SqlError"

/** @internal */
export type Migrations = Record<string, Effect.Effect<void, SqlError.SqlError, SqlClient.SqlClient>>

/** @internal */
export const table = "effect_units_migrations"

/** Runs statements that are given the type of a numeric primary key, and those that only PostgreSQL needs. */
const statements = (
  texts: (key: string) => ReadonlyArray<string>,
  postgres: ReadonlyArray<string>
): Effect.Effect<void, SqlError.SqlError, SqlClient.SqlClient> =>
  Effect.flatMap(SqlClient.SqlClient, (sql) => {
    // INTEGER alone makes the key of a SQLite table its row number; elsewhere it is too small.
    const key = sql.onDialectOrElse({ sqlite: () => "INTEGER", orElse: () => "BIGINT" })
    const all = sql.onDialectOrElse({ pg: () => [...texts(key), ...postgres], orElse: () => texts(key) })
    return Effect.forEach(all, (text) => sql.unsafe(text).unprepared, { discard: true })
  })

const identity = `
  correlation_id TEXT NOT NULL,
  unit_name TEXT NOT NULL,
  domain TEXT NOT NULL,
  kind TEXT NOT NULL,
  parent_id TEXT,
  root_id TEXT NOT NULL,
  source TEXT NOT NULL`

/**
 * By `<schema version>_<name>`. One that was released is never changed.
 *
 * @internal
 */
export const migrations: Migrations = {
  "1_tables": statements((key) => [
    "CREATE TABLE effect_units_log (name TEXT PRIMARY KEY, last_offset BIGINT NOT NULL)",
    "INSERT INTO effect_units_log (name, last_offset) VALUES ('events', 0)",

    `CREATE TABLE effect_units_events (
      event_offset ${key} PRIMARY KEY,
      id TEXT NOT NULL,
      aggregatetype TEXT NOT NULL,
      aggregateid TEXT NOT NULL,
      type TEXT NOT NULL,
      payload TEXT NOT NULL,
      unit_name TEXT,
      correlation_id TEXT,
      lifecycle INTEGER NOT NULL,
      occurred_at BIGINT NOT NULL
    )`,
    "CREATE UNIQUE INDEX effect_units_events_id ON effect_units_events (id)",
    `CREATE INDEX effect_units_events_correlation ON effect_units_events (correlation_id, event_offset)
      WHERE lifecycle = 0`,

    `CREATE TABLE effect_units_running (${identity},
      started_offset ${key} PRIMARY KEY,
      started_at BIGINT NOT NULL,
      owner TEXT
    )`,
    "CREATE UNIQUE INDEX effect_units_running_correlation ON effect_units_running (correlation_id)",
    "CREATE INDEX effect_units_running_started ON effect_units_running (started_at, started_offset)",
    "CREATE INDEX effect_units_running_parent ON effect_units_running (parent_id) WHERE parent_id IS NOT NULL",

    `CREATE TABLE effect_units_executions (${identity},
      ended_offset ${key} PRIMARY KEY,
      first_offset BIGINT NOT NULL,
      started_offset BIGINT,
      started_at BIGINT NOT NULL,
      ended_at BIGINT NOT NULL,
      duration_ms BIGINT NOT NULL,
      outcome TEXT NOT NULL,
      failure_kind TEXT,
      failure_tag TEXT,
      failure_code TEXT,
      error TEXT
    )`,
    "CREATE UNIQUE INDEX effect_units_executions_correlation ON effect_units_executions (correlation_id)",
    `CREATE INDEX effect_units_executions_outcome
      ON effect_units_executions (outcome, started_at, first_offset)`,
    `CREATE INDEX effect_units_executions_unit
      ON effect_units_executions (outcome, unit_name, started_at, first_offset)`,
    `CREATE INDEX effect_units_executions_domain
      ON effect_units_executions (outcome, domain, started_at, first_offset)`,
    `CREATE INDEX effect_units_executions_parent
      ON effect_units_executions (outcome, parent_id, started_at, first_offset) WHERE parent_id IS NOT NULL`,

    "CREATE TABLE effect_units_owners (owner TEXT PRIMARY KEY, process TEXT, beat BIGINT NOT NULL, lease_ms BIGINT NOT NULL)",
    "CREATE TABLE effect_units_checkpoints (consumer TEXT PRIMARY KEY, last_offset BIGINT NOT NULL)"
  ], [
    // No cache, so that of two transactions of which one follows the other the second has the larger numbers.
    `CREATE TABLE effect_units_staged (
      stage_id BIGINT GENERATED ALWAYS AS IDENTITY (CACHE 1) PRIMARY KEY,
      staged_at TIMESTAMPTZ NOT NULL DEFAULT clock_timestamp(),
      owner TEXT,
      payload TEXT NOT NULL,
      refused TEXT
    )`
  ]),

  "2_groups": statements(() => [
    `CREATE TABLE effect_units_groups (
      consumer TEXT PRIMARY KEY,
      last_offset BIGINT NOT NULL,
      parked BIGINT NOT NULL,
      wanted TEXT NOT NULL
    )`,
    // In flight or waiting: `due_at` is when it can be handed out again, and `member` has it until then. Parked: `parked_at` is
    // set. Held: neither is.
    `CREATE TABLE effect_units_deliveries (
      consumer TEXT NOT NULL,
      event_offset BIGINT NOT NULL,
      execution TEXT,
      attempts BIGINT NOT NULL,
      due_at BIGINT,
      member TEXT,
      parked_at BIGINT,
      edited TEXT,
      type TEXT,
      domain TEXT,
      unit_name TEXT,
      error TEXT,
      cause TEXT,
      PRIMARY KEY (consumer, event_offset)
    )`,
    `CREATE INDEX effect_units_deliveries_due ON effect_units_deliveries (consumer, due_at, event_offset)
      WHERE due_at IS NOT NULL`,
    `CREATE INDEX effect_units_deliveries_execution ON effect_units_deliveries (consumer, execution, event_offset)
      WHERE execution IS NOT NULL`,
    `CREATE INDEX effect_units_deliveries_parked ON effect_units_deliveries (parked_at, consumer, event_offset)
      WHERE parked_at IS NOT NULL`,
    `CREATE INDEX effect_units_deliveries_parked_of ON effect_units_deliveries (consumer, parked_at, event_offset)
      WHERE parked_at IS NOT NULL`
  ], [])
}

const version = (migrations: Migrations): number =>
  Math.max(0, ...Object.keys(migrations).map((name) => Number.parseInt(name, 10)))

/**
 * Brings the tables to the newest of `migrations`, in one transaction. Succeeds with the version that was found, when that is a
 * newer one than this program knows; such a database is left as it is.
 *
 * @internal
 */
export const migrate = Effect.fnUntraced(function*(migrations: Migrations) {
  const sql = yield* SqlClient.SqlClient
  yield* Migrator.make({})({ loader: Migrator.fromRecord(migrations), table })
  const [row] = yield* sql<{ version: number | bigint }>`SELECT MAX(migration_id) AS version FROM ${sql(table)}`
  const found = Number(row?.version ?? 0)
  const known = version(migrations)
  return { found, known, newer: found > known }
})
