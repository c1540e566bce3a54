/**
 * Deleting old events from an event store, a few at a time.
 *
 * @since 0.1.0
 */
import type * as Clock from "effect/Clock"
import * as Duration from "effect/Duration"
import * as Effect from "effect/Effect"
import type * as SqlClient from "effect/sql/SqlClient"
import type * as SqlError from "effect/sql/SqlError"
import type { Pruned, PruneOptions } from "../EventStore.ts"
import { inRealTime, monotonicMillis } from "./brokers.ts"
import * as Rows from "./eventRows.ts"

// Integer columns come as numbers from SQLite and as bigints from PostgreSQL.
type Integer = number | bigint

const batchSize = 500

/**
 * Makes `EventStore.prune`.
 *
 * @internal
 */
export const make = (surroundings: {
  readonly sql: SqlClient.SqlClient
  readonly clock: Clock.Clock
  readonly transact: <A, E, R>(self: Effect.Effect<A, E, R>) => Effect.Effect<A, E | SqlError.SqlError, R>
  readonly lastOffset: Effect.Effect<number, SqlError.SqlError>
}): (options: PruneOptions) => Effect.Effect<Pruned, SqlError.SqlError> => {
  const { clock, lastOffset, sql, transact } = surroundings

  /** The consumer that has come least far. */
  const slowest = Effect.map(
    sql<{ consumer: string; last_offset: Integer }>`
      SELECT consumer, last_offset FROM effect_units_groups
      UNION ALL SELECT consumer, last_offset FROM effect_units_checkpoints
      ORDER BY last_offset, consumer LIMIT 1`,
    ([row]) => row && { name: Rows.original(row.consumer), position: Number(row.last_offset) }
  )

  return Effect.fnUntraced(function*(options) {
    const { keep, olderThan, unacknowledged = false } = options
    const before = olderThan === undefined
      ? Number.MIN_SAFE_INTEGER
      : clock.currentTimeMillisUnsafe() - Duration.toMillis(olderThan)
    const upTo = keep === undefined ? 0 : (yield* lastOffset) - keep
    const size = Math.max(1, Math.trunc(options.batch ?? batchSize))
    const isOld = sql`(occurred_at < ${before} OR event_offset <= ${upTo})`
    const oldest = (after: number, limit: number) =>
      sql`SELECT event_offset, occurred_at FROM effect_units_events
        WHERE event_offset > ${after} ORDER BY event_offset LIMIT ${limit}`

    const pruneBatch = Effect.fnUntraced(function*(after: number) {
      const consumer = unacknowledged ? undefined : yield* slowest
      const [range] = yield* sql<{ last: Integer | null; old: Integer }>`
        SELECT MAX(event_offset) AS last, COUNT(CASE WHEN ${isOld} THEN 1 END) AS old
        FROM (${oldest(after, size)}) AS oldest`
      if (range === undefined || range.last === null || Number(range.old) === 0) return undefined
      const last = consumer === undefined ? Number(range.last) : Math.min(Number(range.last), consumer.position)
      if (consumer !== undefined && last <= after) return { consumer: consumer.name }
      const isIn = sql`event_offset > ${after} AND event_offset <= ${last}`
      // By consumer, so that the primary key of the table leads to them.
      const isKept = unacknowledged ? sql`` : sql`AND event_offset NOT IN (
        SELECT event_offset FROM effect_units_deliveries
        WHERE consumer IN (SELECT consumer FROM effect_units_groups) AND ${isIn})`
      const events = yield* sql`DELETE FROM effect_units_events
        WHERE ${isIn} AND ${isOld} AND event_offset NOT IN (SELECT started_offset FROM effect_units_running) ${isKept}
        RETURNING event_offset`
      const executions = yield* sql`DELETE FROM effect_units_executions
        WHERE ended_offset > ${after} AND ended_offset <= ${last}
          AND NOT EXISTS (SELECT 1 FROM effect_units_events WHERE event_offset = ended_offset)
        RETURNING ended_offset`
      return { consumer: undefined, last, events: events.length, executions: executions.length }
    })

    const total = { events: 0, executions: 0 }
    let after = 0
    while (true) {
      const began = monotonicMillis()
      const pruned = yield* transact(pruneBatch(after))
      if (pruned === undefined) return total
      if (pruned.consumer !== undefined) return { ...total, waiting_for: pruned.consumer }
      total.events += pruned.events
      total.executions += pruned.executions
      after = pruned.last
      // Others get at least as much of the database.
      yield* inRealTime(Effect.sleep(monotonicMillis() - began))
    }
  })
}
