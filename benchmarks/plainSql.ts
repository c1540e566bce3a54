/**
 * The event log written by hand: the rows that the store keeps, in its own tables, by statements that a client runs as they are. It knows
 * no duplicates, no retries, no other writer and no failures.
 */
import type * as PgClient from "@effect/sql-pg/PgClient"
import { Effect } from "effect"
import type { DatabaseSync } from "node:sqlite"
import type { ExecutionEvent } from "../src/ExecutionEvent.ts"

type Value = string | number
type Row = ReadonlyArray<Value>

/** Its executions have no parents. */
const identity = "correlation_id, unit_name, domain, kind, root_id, source"

const tables = {
  effect_units_events: {
    columns:
      "event_offset, id, aggregatetype, aggregateid, type, payload, unit_name, correlation_id, lifecycle, occurred_at",
    types: "bigint, text, text, text, text, text, text, text, bigint, bigint"
  },
  effect_units_running: {
    columns: `${identity}, started_offset, started_at`,
    types: "text, text, text, text, text, text, bigint, bigint"
  },
  effect_units_executions: {
    columns: `${identity}, ended_offset, first_offset, started_offset, started_at, ended_at, duration_ms, outcome`,
    types: "text, text, text, text, text, text, bigint, bigint, bigint, bigint, bigint, bigint, text"
  }
} as const

type Table = keyof typeof tables

const identityOf = (event: ExecutionEvent): Row => [
  event.correlation_id,
  event.unit_name,
  event.domain,
  event.kind,
  event.root_id,
  event.source
]

/** Turns events into rows. It remembers which executions have begun. */
const planner = () => {
  let offset = 0
  const begun = new Map<string, { readonly offset: number; readonly at: number }>()
  return (events: ReadonlyArray<ExecutionEvent>) => {
    const rows: Record<Table, Array<Row>> = {
      effect_units_events: [],
      effect_units_running: [],
      effect_units_executions: []
    }
    const here = new Map<string, Row>()
    const over: Array<number> = []
    for (const event of events) {
      const at = Date.parse(event.timestamp)
      const { correlation_id, domain, event_type, id, unit_name } = event
      offset++
      rows.effect_units_events.push(
        [offset, id, domain, correlation_id, event_type, JSON.stringify(event), unit_name, correlation_id, 1, at]
      )
      if (event.event_type === "execution_started") {
        begun.set(correlation_id, { offset, at })
        here.set(correlation_id, [...identityOf(event), offset, at])
        continue
      }
      const start = begun.get(correlation_id) ?? { offset, at }
      begun.delete(correlation_id)
      if (!here.delete(correlation_id)) over.push(start.offset)
      rows.effect_units_executions.push(
        [...identityOf(event), offset, start.offset, start.offset, start.at, at, event.duration_ms, "completed"]
      )
    }
    rows.effect_units_running.push(...here.values())
    return { rows, over, last: offset }
  }
}

const entries = (rows: Record<Table, ReadonlyArray<Row>>) =>
  // The keys are those of the type.
  Object.entries(rows) as ReadonlyArray<readonly [Table, ReadonlyArray<Row>]>

/** Into a SQLite file that has the tables, one transaction a call. */
export const sqlite = (db: DatabaseSync): (events: ReadonlyArray<ExecutionEvent>) => Promise<void> => {
  const plan = planner()
  const insert = (table: Table) => {
    const { columns } = tables[table]
    return db.prepare(`INSERT INTO ${table} (${columns}) VALUES (${columns.replace(/\w+/g, "?")})`)
  }
  const inserts = {
    effect_units_events: insert("effect_units_events"),
    effect_units_running: insert("effect_units_running"),
    effect_units_executions: insert("effect_units_executions")
  }
  const end = db.prepare("DELETE FROM effect_units_running WHERE started_offset = ?")
  const count = db.prepare("UPDATE effect_units_log SET last_offset = ?")
  return async (events) => {
    const { last, over, rows } = plan(events)
    db.exec("BEGIN IMMEDIATE")
    for (const [table, all] of entries(rows)) for (const row of all) inserts[table].run(...row)
    for (const offset of over) end.run(offset)
    count.run(last)
    db.exec("COMMIT")
  }
}

// The client takes the type of an array from its first number, and others may be wider.
const wide = (value: Value | undefined) => typeof value === "number" ? BigInt(value) : value

/** Into a PostgreSQL database that has the tables, one transaction a call and one statement a table. */
export const postgres = (client: PgClient.PgClient): (events: ReadonlyArray<ExecutionEvent>) => Promise<void> => {
  const plan = planner()
  const insert = (table: Table, rows: ReadonlyArray<Row>) => {
    const { columns, types } = tables[table]
    const arrays = types.split(", ").map((type, index) => `$${index + 1}::${type}[]`)
    return client.unsafe(
      `INSERT INTO ${table} (${columns}) SELECT * FROM unnest(${arrays.join(", ")})`,
      arrays.map((_, index) => rows.map((row) => wide(row[index])))
    )
  }
  return (events) => {
    const { last, over, rows } = plan(events)
    return Effect.gen(function*() {
      yield* client.unsafe("UPDATE effect_units_log SET last_offset = $1", [BigInt(last)])
      for (const [table, all] of entries(rows)) if (all.length > 0) yield* insert(table, all)
      if (over.length > 0) {
        yield* client.unsafe("DELETE FROM effect_units_running WHERE started_offset = ANY($1::bigint[])", [
          over.map(BigInt)
        ])
      }
    }).pipe(client.withTransaction, Effect.asVoid, Effect.runPromise)
  }
}
