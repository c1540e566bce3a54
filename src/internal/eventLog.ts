/**
 * The log of an event store, on SQLite and on PostgreSQL: giving events their place, and finding them.
 *
 * @since 0.1.0
 */
import * as Arr from "effect/Array"
import type * as Cause from "effect/Cause"
import * as Context from "effect/Context"
import * as Data from "effect/Data"
import * as Effect from "effect/Effect"
import * as Exit from "effect/Exit"
import * as Metric from "effect/Metric"
import * as Option from "effect/Option"
import * as SqlClient from "effect/sql/SqlClient"
import type * as SqlError from "effect/sql/SqlError"
import type * as Statement from "effect/sql/Statement"
import type { Event } from "../EventPublisher.ts"
import type { Appended, Filter } from "../EventStore.ts"
import * as ExecutionEvent from "../ExecutionEvent.ts"
import * as Rows from "./eventRows.ts"
import * as Metrics from "./metrics.ts"
import { planned } from "./planned.ts"
import { withTransaction } from "./transaction.ts"

/**
 * How many events are stored, or read, at a time.
 *
 * @internal
 */
export const batchSize = 500
// Milliseconds that a process may keep the lock of the log and do nothing.
const longestLock = 10_000
/**
 * SQL of the channel of PostgreSQL on which a log tells of what it commits: schemas of one database share its channels.
 *
 * @internal
 */
export const channel = "'effect_units_' || md5(current_schema())"
const scanSize = 1000
// Executions that a store remembers to have begun.
const longestMemory = 10_000

/**
 * Integer columns come as numbers from SQLite and as bigints from PostgreSQL.
 *
 * @internal
 */
export type Integer = number | bigint

/** @internal */
export interface PayloadRow {
  readonly event_offset: Integer
  readonly payload: string
}

/**
 * What the log needs of the store around it.
 *
 * @internal
 */
export interface Surroundings {
  readonly sql: SqlClient.SqlClient
  /** Tells who follows the log that there is more. */
  readonly wake: Effect.Effect<void>
  /** Tells that a transaction has committed what it staged. */
  readonly staged: Effect.Effect<void>
  /** Whether what failed may go well when it is tried again. */
  readonly mayPass: (cause: Cause.Cause<SqlError.SqlError>) => boolean
  /** What failed, in words. */
  readonly explain: (cause: Cause.Cause<SqlError.SqlError>) => string
}

// Few sizes, so that few statement texts are prepared and kept.
const insertSizes = [64, 16, 4, 1] as const

type Insert<Row> = (rows: ReadonlyArray<Row>) => Effect.Effect<void, SqlError.SqlError>

/** Inserts rows, some at a time, with texts that are compiled once for each number of rows. */
const makeInsert = <Row extends object>(
  sql: SqlClient.SqlClient,
  table: string,
  columns: ReadonlyArray<keyof Row & string>
): Insert<Row> => {
  const blank = Object.fromEntries(columns.map((column) => [column, null]))
  const texts = insertSizes.map((size) => ({
    size,
    text: sql`INSERT INTO ${sql(table)} ${sql.insert(Arr.makeBy(size, () => blank))}`.compile()[0]
  }))
  return (rows) => {
    const statements: Array<Statement.Statement<object>> = []
    let from = 0
    for (const { size, text } of texts) {
      for (; rows.length - from >= size; from += size) {
        const values: Array<unknown> = []
        for (let index = from; index < from + size; index++) {
          // In bounds by the condition of the loop above.
          const row = rows[index]!
          for (const column of columns) values.push(row[column])
        }
        statements.push(sql.unsafe(text, values))
      }
    }
    return Effect.forEach(statements, (statement) => statement, { discard: true })
  }
}

/**
 * An array as a parameter for PostgreSQL. The client looks for its type in its values, where numbers would be narrow or wide ones, and nulls
 * nothing; so these go as text.
 */
const array = (values: ReadonlyArray<unknown>): unknown =>
  values.every((value) => value === null || typeof value === "number")
    ? `{${values.map((value) => value === null ? "NULL" : String(value)).join()}}`
    : values

/** Rows as the columns of `unnest`, with one text for any number of them. */
const unnested = <Row extends object>(columns: ReadonlyArray<keyof Row & string>, first: number) => {
  const types = columns.map((column, index) =>
    `$${first + index}::${Rows.integerColumns.has(column) ? "bigint" : "text"}[]`
  )
  return {
    text: `(${columns.join(", ")}) SELECT * FROM unnest(${types.join(", ")})`,
    parameters: (rows: ReadonlyArray<Row>) => columns.map((column) => array(rows.map((row) => row[column])))
  }
}

/**
 * Writes what a batch changes: on PostgreSQL in one statement, and so in one round trip. Succeeds with whether all is running that the plan
 * ends; on PostgreSQL also whether nothing has ended that it begins.
 */
const makeWrite = (
  sql: SqlClient.SqlClient
): (plan: Rows.Plan, next: number) => Effect.Effect<boolean, SqlError.SqlError> =>
  sql.onDialectOrElse({
    pg: () => {
      const events = unnested<Rows.Prepared>(Rows.eventColumns, 4)
      const running = unnested<Rows.RunningRow>(Rows.runningColumns, 4 + Rows.eventColumns.length)
      const ended = unnested<Rows.EndedRow>(
        Rows.endedColumns,
        4 + Rows.eventColumns.length + Rows.runningColumns.length
      )
      const text = `WITH moved AS (UPDATE effect_units_log SET last_offset = $1 WHERE name = 'events' RETURNING name),
        done AS (DELETE FROM effect_units_running WHERE started_offset = ANY($2::bigint[]) RETURNING started_offset),
        events AS (INSERT INTO effect_units_events ${events.text}),
        running AS (INSERT INTO effect_units_running ${running.text}),
        ended AS (INSERT INTO effect_units_executions ${ended.text})
        SELECT pg_notify(${channel}, ''), (SELECT COUNT(*) FROM done) AS done,
          (SELECT COUNT(*) FROM effect_units_executions WHERE correlation_id = ANY($3::text[])) AS late FROM moved`
      return (plan: Rows.Plan, next: number) =>
        Effect.map(
          sql.unsafe<{ done: Integer; late: Integer }>(text, [
            next,
            array(plan.noLongerRunning),
            array(plan.running.map(({ correlation_id }) => correlation_id)),
            ...events.parameters(plan.events),
            ...running.parameters(plan.running),
            ...ended.parameters(plan.ended)
          ]),
          ([row]) => Number(row?.done) === plan.noLongerRunning.length && Number(row?.late) === 0
        )
    },
    orElse: () => {
      const insertEvents = makeInsert<Rows.Prepared>(sql, "effect_units_events", Rows.eventColumns)
      const insertRunning = makeInsert<Rows.RunningRow>(sql, "effect_units_running", Rows.runningColumns)
      const insertEnded = makeInsert<Rows.EndedRow>(sql, "effect_units_executions", Rows.endedColumns)
      return Effect.fnUntraced(function*(plan: Rows.Plan, next: number) {
        yield* insertEvents(plan.events)
        if (plan.noLongerRunning.length > 0) {
          const done = yield* sql`DELETE FROM effect_units_running
            WHERE ${among(sql, "started_offset", plan.noLongerRunning)} RETURNING started_offset`
          if (done.length !== plan.noLongerRunning.length) return false
        }
        yield* insertRunning(plan.running)
        yield* insertEnded(plan.ended)
        yield* sql`UPDATE effect_units_log SET last_offset = ${next} WHERE name = 'events'`
        return true
      })
    }
  })

/** Repeats the last value up to the next power of two, again for few statement texts. */
const padded = <A>(values: ReadonlyArray<A>): ReadonlyArray<A> => {
  const last = values.at(-1)
  if (last === undefined) return values
  const size = 2 ** Math.ceil(Math.log2(values.length))
  return [...values, ...Array.from({ length: size - values.length }, () => last)]
}

// Stores may be on different databases.
let stagings = 0

const isEnd = (event: Event): event is ExecutionEvent.ExecutionEvent =>
  ExecutionEvent.isExecutionEvent(event) && ExecutionEvent.isTerminal(event)

interface StagedRow {
  readonly stage_id: Integer
  readonly owner: string | null
  readonly payload: string
}

/**
 * Makes the log of a database.
 *
 * @internal
 */
export const make = (surroundings: Surroundings) => {
  const { explain, mayPass, sql, staged, wake } = surroundings
  const isPostgres = sql.onDialectOrElse({ pg: () => true, orElse: () => false })

  // A client of PostgreSQL reads rows of 16 MiB by default.
  const largest = isPostgres ? 8 * 1024 * 1024 : Infinity

  const inTransaction = (context: Context.Context<never>): boolean =>
    Option.isSome(Context.getOption(context, sql.transactionService))

  const transaction = withTransaction(sql.withTransaction)

  // Statements have to see what was committed before they got the lock, whatever the default of the database.
  const transact = <A, E, R>(self: Effect.Effect<A, E, R>): Effect.Effect<A, E | SqlError.SqlError, R> =>
    isPostgres
      ? Effect.provideService(
        transaction(self),
        SqlClient.BeginTransaction,
        "BEGIN ISOLATION LEVEL READ COMMITTED"
      )
      : transaction(self)

  const lastOffset = Effect.map(
    sql<{ last_offset: Integer }>`SELECT last_offset FROM effect_units_log WHERE name = 'events'`,
    ([row]) => Number(row?.last_offset ?? 0)
  )

  // Under the lock of this row offsets are given in the order of commits. SQLite has the lock from BEGIN IMMEDIATE. On PostgreSQL the
  // server ends the transaction of a process that stops while it has the lock; and it keeps plans of prepared statements from when its tables
  // were small, which are to use the indices all the same.
  const lockedLastOffset = isPostgres
    ? Effect.map(
      sql<{ last_offset: Integer }>`
        SELECT last_offset, set_config('idle_in_transaction_session_timeout', ${String(longestLock)}, true),
          set_config('enable_seqscan', 'off', true)
        FROM effect_units_log WHERE name = 'events' FOR UPDATE`,
      ([row]) => Number(row?.last_offset ?? 0)
    )
    : lastOffset

  const write = makeWrite(sql)

  const known = Effect.fnUntraced(function*(correlationIds: ReadonlyArray<string>) {
    const running = new Map<string, Rows.Start>()
    const ended = new Set<string>()
    if (correlationIds.length === 0) return { running, ended }
    const ids = among(sql, "correlation_id", correlationIds)
    const rows = yield* sql<{ correlation_id: string; started_offset: Integer | null; started_at: Integer }>`
      SELECT correlation_id, started_offset, started_at FROM effect_units_running WHERE ${ids}
      UNION ALL SELECT correlation_id, NULL, started_at FROM effect_units_executions WHERE ${ids}`
    for (const { correlation_id, started_at, started_offset } of rows) {
      if (started_offset === null) ended.add(correlation_id)
      else running.set(correlation_id, { started_offset: Number(started_offset), started_at: Number(started_at) })
    }
    return { running, ended }
  })

  /** Where executions began that this store has seen begin: taken for true until writing shows that it is not. */
  const begun = new Map<string, Rows.Start>()

  const remember = ({ ended, running }: Rows.Plan): void => {
    for (const { correlation_id, started_at, started_offset } of running) {
      begun.set(correlation_id, { started_offset, started_at })
    }
    for (const { correlation_id } of ended) begun.delete(correlation_id)
    for (const oldest of begun.keys()) {
      if (begun.size <= longestMemory) break
      begun.delete(oldest)
    }
  }

  const store = Effect.fnUntraced(function*(batch: ReadonlyArray<Rows.Prepared>, from: "tables" | "memory") {
    const last = yield* lockedLastOffset
    const { ended, begun: starts } = Rows.unpaired(batch)
    // On PostgreSQL what has ended is seen by the same round trip that writes.
    const unknown = from === "tables"
      ? Rows.executions(batch)
      : ended.filter((id) => !begun.has(id)).concat(isPostgres ? [] : starts)
    const asked = yield* known(unknown)
    if (from === "memory") {
      for (const id of ended) {
        const start = begun.get(id)
        if (start !== undefined) asked.running.set(id, start)
      }
    }
    const plan = Rows.plan(batch, last, asked)
    const next = last + plan.events.length
    if (next > last && !(yield* write(plan, next))) return yield* new Mistaken()
    for (const { correlation_id, started_at, started_offset } of plan.late) {
      yield* sql`UPDATE effect_units_executions SET ${sql.update({ started_at, started_offset })}
        WHERE correlation_id = ${correlation_id}`
    }
    yield* sql.afterCommit(Effect.sync(() => remember(plan)))
    return { stored: plan.events.length, duplicates: plan.refused, last_offset: next }
  })

  /**
   * Stores the events of a batch that the log does not have, in the transaction around it. `assume` says that it has none, and that
   * executions stand as this store remembers; where that is wrong it fails, and nothing is to be committed.
   */
  const storeBatch = Effect.fnUntraced(function*(batch: ReadonlyArray<Rows.Prepared>, assume: boolean) {
    const unique = new Map<string, Rows.Prepared>()
    const duplicates: Array<string> = []
    for (const event of batch) {
      if (unique.has(event.id)) duplicates.push(event.id)
      else unique.set(event.id, event)
    }
    if (!assume) {
      // Looked up under the lock.
      yield* lockedLastOffset
      const rows = yield* sql<{ id: string }>`
        SELECT id FROM effect_units_events WHERE ${among(sql, "id", Array.from(unique.keys()))}`
      for (const { id } of rows) {
        unique.delete(id)
        duplicates.push(id)
      }
    }
    const appended = yield* store(Array.from(unique.values()), assume ? "memory" : "tables")
    return { ...appended, duplicates: [...duplicates, ...appended.duplicates] }
  })

  /** Gives events their place in the log, in the transaction around it. */
  const placeAssuming = Effect.fnUntraced(function*(events: ReadonlyArray<Rows.Prepared>, assume: boolean) {
    let stored = 0
    let last_offset = 0
    const duplicates: Array<string> = []
    for (const batch of Arr.chunksOf(events, batchSize)) {
      const appended = yield* storeBatch(batch, assume)
      stored += appended.stored
      last_offset = appended.last_offset
      duplicates.push(...appended.duplicates.map(Rows.original))
      if (events.length > batchSize) yield* Effect.yieldNow
    }
    if (stored > 0) yield* sql.afterCommit(wake)
    return { stored, duplicates, last_offset }
  })

  /** The same, and everything is looked up. */
  const place = (events: ReadonlyArray<Rows.Prepared>) =>
    Effect.catchTag(placeAssuming(events, false), "Mistaken", Effect.die)

  const nothing = Effect.map(lastOffset, (last_offset) => ({ stored: 0, duplicates: [], last_offset }))

  /**
   * Appends in a transaction, of its own or in the one around it. Most events are new, and most ends are those of starts that came the same
   * way: nothing is looked up before that turns out to be wrong.
   */
  const appendLocked = (
    events: ReadonlyArray<Event>,
    now: number,
    owner: string | null
  ): Effect.Effect<Appended, SqlError.SqlError> => {
    if (events.length === 0) return nothing
    const prepared = () => events.map((event) => Rows.prepare(event, now, owner, largest))
    return Effect.catch(
      transact(Effect.suspend(() => placeAssuming(prepared(), true))),
      (error) =>
        error._tag === "Mistaken" || error.reason._tag === "UniqueViolation"
          ? transact(Effect.suspend(() => place(prepared())))
          : Effect.fail(error)
    )
  }

  /** What the server calls the transaction around an effect, once it has staged events. */
  const Staging = Context.Reference<{ xact: string | undefined } | undefined>(
    `effect-units/EventStore/Staging/${stagings++}`,
    { defaultValue: () => undefined }
  )

  const stage = (
    events: ReadonlyArray<Event>,
    owner: string | null
  ): Effect.Effect<Appended, SqlError.SqlError> =>
    Effect.gen(function*() {
      // Says that this process has a transaction under way, for whoever takes it for gone.
      if (owner !== null) yield* sql`SELECT pg_advisory_xact_lock_shared(hashtextextended(${owner}, 0))`
      // Whoever did so before has ended its executions: a statement behind the lock sees it. But for a transaction that sees what was
      // there at its begin: it fails where it locks what is gone by now.
      const ends = array(events.filter(isEnd).map((event) => Rows.text(event.correlation_id)))
      const [row] = yield* planned(
        sql,
        sql<{ last_offset: Integer; xact: string; ended: ReadonlyArray<string> }>`
        WITH running AS (
          SELECT FROM effect_units_running
          WHERE current_setting('transaction_isolation') <> 'read committed' AND correlation_id = ANY(${ends})
          FOR KEY SHARE
        )
        SELECT last_offset, pg_current_xact_id()::text AS xact,
          ARRAY(SELECT correlation_id FROM effect_units_executions WHERE correlation_id = ANY(${ends})) AS ended
        FROM effect_units_log WHERE name = 'events' AND (SELECT COUNT(*) FROM running) >= 0`
      )
      const ended = new Set(row?.ended.map(Rows.original))
      const isRefused = (event: Event): boolean => isEnd(event) && ended.has(event.correlation_id)
      const staging = events.filter((event) => !isRefused(event))
      if (staging.length > 0) {
        yield* sql.unsafe(
          "INSERT INTO effect_units_staged (owner, payload) SELECT $1, payload FROM unnest($2::text[]) AS payload",
          [owner, staging.map((event) => Rows.payload(event, largest))]
        )
        const around = yield* Staging
        if (around !== undefined) around.xact = row?.xact
        yield* sql.afterCommit(staged)
      }
      return {
        stored: staging.length,
        duplicates: events.filter(isRefused).map(({ id }) => id),
        last_offset: Number(row?.last_offset ?? 0)
      }
    })

  /** Asks what became of a transaction: `committed`, `aborted` or `in progress`. */
  const statusOf = (xact: string): Effect.Effect<string | undefined, SqlError.SqlError> =>
    Effect.map(
      sql<{ status: string | null }>`SELECT pg_xact_status(${xact}::xid8) AS status`,
      ([row]) => row?.status ?? undefined
    )

  /** Ends a transaction that nobody is connected to any more. */
  const endTransaction = (xact: string) =>
    sql`SELECT pg_terminate_backend(pid) FROM pg_locks
      WHERE locktype = 'transactionid' AND granted AND transactionid = ${xact}::xid8::xid`

  const append = isPostgres
    ? (events: ReadonlyArray<Event>, now: number, owner: string | null) =>
      Effect.contextWith((context: Context.Context<never>) =>
        inTransaction(context) && events.length > 0 ? stage(events, owner) : appendLocked(events, now, owner)
      )
    : appendLocked

  /** Places what was staged and is committed, in the transaction around it; succeeds with how many events were staged. */
  const placeStaged = Effect.fnUntraced(function*(now: number, limit: number) {
    yield* lockedLastOffset
    const rows = yield* sql<StagedRow>`
      DELETE FROM effect_units_staged
      WHERE stage_id IN (SELECT stage_id FROM effect_units_staged WHERE refused IS NULL ORDER BY stage_id LIMIT ${limit})
      RETURNING stage_id, owner, payload`
    const inOrder = rows.toSorted((a, b) => Number(a.stage_id) - Number(b.stage_id))
    yield* place(inOrder.map(({ owner, payload }) => Rows.fromPayload(payload, now, owner)))
    return rows.length
  })

  /** The same, one by one: what the log refuses for good is set aside, so that the others have their place. */
  const placeStagedSingly = Effect.fnUntraced(function*(now: number, limit: number) {
    yield* lockedLastOffset
    const rows = yield* sql<StagedRow>`SELECT stage_id, owner, payload FROM effect_units_staged
      WHERE refused IS NULL ORDER BY stage_id LIMIT ${limit}`
    for (const { owner, payload, stage_id } of rows) {
      const exit = yield* Effect.exit(
        transaction(Effect.suspend(() => place([Rows.fromPayload(payload, now, owner)])))
      )
      if (Exit.isSuccess(exit)) {
        yield* sql`DELETE FROM effect_units_staged WHERE stage_id = ${stage_id}`
      } else if (mayPass(exit.cause)) {
        return yield* Effect.failCause(exit.cause)
      } else {
        const refused = Rows.shown(explain(exit.cause))
        yield* sql`UPDATE effect_units_staged SET refused = ${refused} WHERE stage_id = ${stage_id}`
        yield* sql.afterCommit(Effect.andThen(
          Metric.update(Metrics.drops("event_store"), 1),
          Effect.logError(
            `The log refuses an event of a transaction: row ${stage_id} of effect_units_staged is set aside`,
            exit.cause
          )
        ))
      }
    }
    return rows.length
  })

  /** Those of some owners that have no transaction under way in which they have appended. None can begin before the end of this one. */
  const withoutTransaction = (owners: ReadonlyArray<string>) =>
    isPostgres
      ? Effect.map(
        sql<{ owner: string }>`SELECT owner FROM unnest(${owners}::text[]) AS owner
          WHERE pg_try_advisory_xact_lock(hashtextextended(owner, 0))`,
        (rows) => rows.map(({ owner }) => owner)
      )
      : Effect.succeed(owners)

  const pending = isPostgres
    ? Effect.map(
      sql<{ events: Integer; waiting_ms: number; transactions: Integer; open_ms: number }>`
        SELECT staged.events, staged.waiting_ms, opened.transactions, opened.open_ms FROM (
          SELECT COUNT(*) AS events,
            COALESCE(EXTRACT(EPOCH FROM clock_timestamp() - MIN(staged_at)) * 1000, 0)::float8 AS waiting_ms
          FROM effect_units_staged WHERE refused IS NULL
        ) AS staged, (
          SELECT COUNT(*) AS transactions,
            COALESCE(EXTRACT(EPOCH FROM clock_timestamp() - MIN(activity.xact_start)) * 1000, 0)::float8 AS open_ms
          FROM pg_locks AS locks JOIN pg_stat_activity AS activity ON activity.pid = locks.pid
          WHERE locks.relation = 'effect_units_staged'::regclass AND locks.mode = 'RowExclusiveLock'
        ) AS opened`,
      ([row]) => ({
        events: Number(row?.events ?? 0),
        waiting_ms: Math.max(0, Math.round(row?.waiting_ms ?? 0)),
        transactions: Number(row?.transactions ?? 0),
        open_ms: Math.max(0, Math.round(row?.open_ms ?? 0))
      })
    )
    : Effect.succeed({ events: 0, waiting_ms: 0, transactions: 0, open_ms: 0 })

  const isStaged = Effect.map(
    sql<{ found: boolean }>`SELECT EXISTS (SELECT 1 FROM effect_units_staged WHERE refused IS NULL) AS found`,
    ([row]) => row?.found === true
  )

  /**
   * The rows after an offset, and where the next scan begins; `undefined` at the end of the log. With a filter it looks at
   * `scanSize` rows, without one at `limit`.
   */
  const scan = Effect.fnUntraced(function*(after: number, limit: number, filter: Filter | undefined) {
    const conditions = filterConditions(sql, filter)
    const filtered = conditions.length > 0
    const payload = filtered ? sql`CASE WHEN ${sql.and(conditions)} THEN payload END AS payload` : sql`payload`
    const rows = yield* sql<{ event_offset: Integer; payload: string | null }>`
      SELECT event_offset, ${payload} FROM effect_units_events
      WHERE event_offset > ${after} ORDER BY event_offset LIMIT ${filtered ? scanSize : limit}`
    const matching = rows.filter(hasPayload).slice(0, limit)
    const last = matching.length === limit ? matching.at(-1) : rows.at(-1)
    return { rows: matching, next: last === undefined ? undefined : Number(last.event_offset) }
  })

  /** The events of one execution, by way of its record and of the index over domain events. */
  const ofExecution = (correlationId: string, after: number, limit: number, filter: Filter | undefined) => {
    const id = Rows.text(correlationId)
    const conditions = sql.and([sql`event_offset > ${after}`, ...filterConditions(sql, filter)])
    return planned(
      sql,
      sql<PayloadRow>`
      SELECT event_offset, payload FROM effect_units_events
      WHERE event_offset IN (
        SELECT started_offset FROM effect_units_running WHERE correlation_id = ${id}
        UNION ALL SELECT started_offset FROM effect_units_executions WHERE correlation_id = ${id}
        UNION ALL SELECT ended_offset FROM effect_units_executions WHERE correlation_id = ${id}
      ) AND ${conditions}
      UNION ALL
      SELECT event_offset, payload FROM (
        SELECT event_offset, payload FROM effect_units_events
        WHERE lifecycle = 0 AND correlation_id = ${id} AND ${conditions}
        ORDER BY event_offset LIMIT ${limit}
      ) AS domain_events
      ORDER BY event_offset LIMIT ${limit}`
    )
  }

  return {
    append,
    appendLocked,
    placeStaged,
    placeStagedSingly,
    largest,
    isStaged,
    pending,
    Staging,
    statusOf,
    endTransaction,
    withoutTransaction,
    transact,
    inTransaction,
    isPostgres,
    lastOffset,
    scan,
    ofExecution
  }
}

/** Events were stored as what they are not: new, or of executions that stand as remembered. */
class Mistaken extends Data.TaggedError("Mistaken") {}

/**
 * A condition that a column has one of some values, whose text is the same for many numbers of them.
 *
 * @internal
 */
export const among = (
  sql: SqlClient.SqlClient,
  column: string,
  values: ReadonlyArray<string> | ReadonlyArray<number>
): Statement.Fragment =>
  sql.onDialectOrElse({
    pg: () => sql`${sql(column)} = ANY(${array(values)})`,
    orElse: () => sql.in(column, padded<string | number>(values))
  })

const hasPayload = (row: { readonly event_offset: Integer; readonly payload: string | null }): row is PayloadRow =>
  row.payload !== null

/**
 * The conditions of a filter.
 *
 * @internal
 */
export const filterConditions = (
  sql: SqlClient.SqlClient,
  filter: Filter | undefined
): ReadonlyArray<Statement.Fragment> => {
  const oneOf = (column: string, values: ReadonlyArray<string> | undefined): ReadonlyArray<Statement.Fragment> =>
    values === undefined ? [] : [among(sql, column, values.map(Rows.text))]
  return [
    ...oneOf("type", filter?.types),
    ...oneOf("aggregatetype", filter?.domains),
    ...oneOf("unit_name", filter?.units),
    ...(filter?.correlationId === undefined ? [] : [sql`correlation_id = ${Rows.text(filter.correlationId)}`])
  ]
}
