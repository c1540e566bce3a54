/**
 * The durable log of events, over SQL: append, read, follow; the executions that the events tell of; how far consumers have come.
 *
 * Events get an offset each, from 1 and without holes, in the order in which they are committed. The store keeps what their
 * lifecycle events say of executions in tables of its own, in the same transaction, so that a list of executions costs the same
 * whatever the size of the log.
 *
 * It runs on SQLite and on PostgreSQL.
 *
 * **The table for other programs**
 *
 * `effect_units_events` has the columns that Debezium's outbox event router looks for by its default names
 * (https://debezium.io/documentation/reference/stable/transformations/outbox-event-router.html), on both databases: `id`, the event's;
 * `aggregatetype`, its domain, and so a topic `outbox.event.model`; `aggregateid`, its execution, and so the key by which Kafka keeps its
 * order (the event's own id where it belongs to none); `type`; and `payload`, the wire object as JSON text. Rows are only ever inserted and
 * deleted. A connector of PostgreSQL needs no more than this (SQLite has none of Debezium's own):
 *
 * ```properties
 * table.include.list=public.effect_units_events
 * transforms=outbox
 * transforms.outbox.type=io.debezium.transforms.outbox.EventRouter
 * transforms.outbox.table.expand.json.payload=true
 * transforms.outbox.table.fields.additional.placement=type:header:eventType
 * ```
 *
 * The last two are a matter of taste: the payload as a structure instead of text, and the type as a header.
 *
 * @since 0.1.0
 */
import * as Arr from "effect/Array"
import * as Clock from "effect/Clock"
import * as Context from "effect/Context"
import type * as DateTime from "effect/DateTime"
import * as Duration from "effect/Duration"
import * as Effect from "effect/Effect"
import * as Exit from "effect/Exit"
import * as Layer from "effect/Layer"
import * as Metric from "effect/Metric"
import * as Option from "effect/Option"
import * as Predicate from "effect/Predicate"
import * as PubSub from "effect/PubSub"
import * as Queue from "effect/Queue"
import * as Schema from "effect/Schema"
import type * as Scope from "effect/Scope"
import * as Semaphore from "effect/Semaphore"
import * as Migrator from "effect/sql/Migrator"
import * as SqlClient from "effect/sql/SqlClient"
import * as SqlError from "effect/sql/SqlError"
import type * as Statement from "effect/sql/Statement"
import * as Stream from "effect/Stream"
import * as Sqlite from "./backends/Sqlite.ts"
import type { ConsumerGroups } from "./ConsumerGroups.ts"
import * as DomainEvent from "./DomainEvent.ts"
import type { Event } from "./EventPublisher.ts"
import { EventSubscriber } from "./EventSubscriber.ts"
import * as ExecutionEvent from "./ExecutionEvent.ts"
import * as Rows from "./internal/eventRows.ts"
import * as Migrations from "./internal/eventStoreMigrations.ts"
import * as GroupMember from "./internal/groupMember.ts"
import * as Groups from "./internal/groups.ts"
import { uuidV7 } from "./internal/ids.ts"
import * as Metrics from "./internal/metrics.ts"
import * as ProcessIdentity from "./internal/processIdentity.ts"
import * as Pruning from "./internal/pruning.ts"
import * as StoreSubscriber from "./internal/storeSubscriber.ts"
import { withTransaction } from "./internal/transaction.ts"

/**
 * An event with its place in the log. Offsets begin at 1 and have no holes but those that `prune` makes.
 *
 * @category models
 * @since 0.1.0
 */
export interface Entry {
  readonly offset: number
  readonly event: Event
}

/**
 * Which events to read: those that fit every field that is set, and of a list any one.
 *
 * `types` names lifecycle events by their `event_type` and domain events by their `type`.
 *
 * @category models
 * @since 0.1.0
 */
export interface Filter {
  readonly types?: ReadonlyArray<string> | undefined
  readonly domains?: ReadonlyArray<string> | undefined
  readonly units?: ReadonlyArray<string> | undefined
  readonly correlationId?: string | undefined
}

/**
 * What `append` did.
 *
 * @category models
 * @since 0.1.0
 */
export interface Appended {
  /** How many events were stored. */
  readonly stored: number
  /** Ids of events that were not, as the log had them already, or another terminal event of the same execution. */
  readonly duplicates: ReadonlyArray<string>
  /** Offset of the newest event in the log. */
  readonly last_offset: number
}

/**
 * An execution as its events tell of it, started and terminal event joined.
 *
 * @category models
 * @since 0.1.0
 */
export interface ExecutionRecord {
  readonly correlation_id: string
  readonly unit_name: string
  readonly domain: string
  readonly kind: "command" | "query"
  readonly parent_id?: string
  readonly root_id: string
  readonly source: string
  readonly outcome: "running" | "completed" | "failed"
  /** RFC 3339, UTC, milliseconds. Where the started event was lost, reckoned from the terminal one. */
  readonly started_at: string
  /** Absent while it runs. */
  readonly ended_at?: string
  /** Absent while it runs. */
  readonly duration_ms?: number
  /** Present in failed ones; the message is cut at 1,000 characters, the event has the whole. */
  readonly failure?: {
    readonly kind: "fail" | "die" | "interrupt" | "abandoned"
    readonly tag?: string
    readonly code?: string
    readonly message: string
  }
  /** How many executions name this one as their parent; counted up to 1,000. */
  readonly children: number
  /** Offset of its first event. With `started_at` its place in the list of executions. */
  readonly first_offset: number
}

/**
 * One execution with its events and its children.
 *
 * @category models
 * @since 0.1.0
 */
export interface ExecutionDetail {
  readonly execution: ExecutionRecord
  /** Its lifecycle and domain events in the order of the log, at most 1,000; `read` with `correlationId` has the others. */
  readonly events: ReadonlyArray<Entry>
  /** Newest first, at most 1,000; `executions` with `parentId` has the others. */
  readonly children: ReadonlyArray<ExecutionRecord>
}

/**
 * Which executions to list, and which page of them.
 *
 * @category models
 * @since 0.1.0
 */
export interface ExecutionsOptions {
  readonly unit?: string | undefined
  readonly domain?: string | undefined
  readonly outcome?: ExecutionRecord["outcome"] | undefined
  readonly parentId?: string | undefined
  /** Started at this time or later. */
  readonly since?: DateTime.DateTime | undefined
  /** Started before this time. */
  readonly until?: DateTime.DateTime | undefined
  /** The page of older ones: give the last record of the page before. */
  readonly before?: Pick<ExecutionRecord, "started_at" | "first_offset"> | undefined
  /** The page of newer ones: give the first record of the page after. */
  readonly after?: Pick<ExecutionRecord, "started_at" | "first_offset"> | undefined
  /** Default 100, at most 1,000. */
  readonly limit?: number | undefined
}

/**
 * What to delete: events older than `olderThan`, and all but the newest `keep`.
 *
 * @category models
 * @since 0.1.0
 */
export interface PruneOptions {
  /** Age by the events' own timestamps. */
  readonly olderThan?: Duration.Input | undefined
  /** How many of the newest events stay. */
  readonly keep?: number | undefined
  /** How many events one transaction looks at. Default 500. */
  readonly batch?: number | undefined
  /** Whether events go that a group has not acknowledged, parked ones included, or a checkpoint has not passed. Default `false`. */
  readonly unacknowledged?: boolean | undefined
}

/**
 * What `prune` deleted.
 *
 * @category models
 * @since 0.1.0
 */
export interface Pruned {
  readonly events: number
  readonly executions: number
  /**
   * The consumer that has come least far, where older events wait for it. If nobody reads for it any more, `groups.remove` or
   * `removeCheckpoint` forgets it.
   */
  readonly waiting_for?: string
}

/**
 * Events of transactions that are not in the log yet. On SQLite there are none.
 *
 * @category models
 * @since 0.1.0
 */
export interface Pending {
  /** How many events are committed and wait for their place in the log; moments, unless nobody has the store open. */
  readonly events: number
  /** How long the oldest of these waits, in milliseconds. */
  readonly waiting_ms: number
  /** How many transactions are open that have appended events. */
  readonly transactions: number
  /** How long the oldest of these is open, in milliseconds: as late will its events be. */
  readonly open_ms: number
}

const SqlCause = { cause: Schema.Defect() }

/**
 * The disk, or the database's own limit, is full. Nothing was stored; a retry helps once there is space.
 *
 * @category errors
 * @since 0.1.0
 */
export class Full extends Schema.TaggedError<Full>("effect-units/EventStore/Full")("Full", SqlCause) {
  readonly retryable = true
  override get message(): string {
    return "the disk is full: free space, or prune the store"
  }
}

/**
 * Another process held the database's lock for longer than the busy timeout. A retry helps.
 *
 * @category errors
 * @since 0.1.0
 */
export class Busy extends Schema.TaggedError<Busy>("effect-units/EventStore/Busy")("Busy", SqlCause) {
  readonly retryable = true
  override get message(): string {
    return "the database is locked by another process: try again, or raise its busy timeout"
  }
}

/**
 * The database may be read and not written. A retry does not help.
 *
 * @category errors
 * @since 0.1.0
 */
export class ReadOnly extends Schema.TaggedError<ReadOnly>("effect-units/EventStore/ReadOnly")("ReadOnly", SqlCause) {
  readonly retryable = false
  override get message(): string {
    return "the database cannot be written: give this user write permission, on SQLite's file and its directory, or on " +
      "PostgreSQL's schema and tables"
  }
}

/**
 * The file is no database, or a damaged one. A retry does not help.
 *
 * @category errors
 * @since 0.1.0
 */
export class NotADatabase extends Schema.TaggedError<NotADatabase>("effect-units/EventStore/NotADatabase")(
  "NotADatabase",
  { detail: Schema.String, ...SqlCause }
) {
  readonly retryable = false
  override get message(): string {
    return this.detail
  }
}

/**
 * A newer version of this library made the tables. They were left as they are; a retry does not help.
 *
 * @category errors
 * @since 0.1.0
 */
export class NewerVersion extends Schema.TaggedError<NewerVersion>("effect-units/EventStore/NewerVersion")(
  "NewerVersion",
  { found: Schema.Int, known: Schema.Int }
) {
  readonly retryable = false
  override get message(): string {
    return `the database has schema version ${this.found} and this program knows ${this.known}: ` +
      "update effect-units, or name another database"
  }
}

/**
 * A stored event is none that this program can read: a newer program or a hand wrote it. Go on after its offset.
 *
 * @category errors
 * @since 0.1.0
 */
export class Undecodable extends Schema.TaggedError<Undecodable>("effect-units/EventStore/Undecodable")("Undecodable", {
  offset: Schema.Int,
  cause: Schema.Defect()
}) {
  readonly retryable = false
  override get message(): string {
    return `the event at offset ${this.offset} cannot be decoded: update effect-units, or read on after it`
  }
}

/**
 * The database failed in another way, which `detail` tells.
 *
 * @category errors
 * @since 0.1.0
 */
export class Unavailable extends Schema.TaggedError<Unavailable>("effect-units/EventStore/Unavailable")("Unavailable", {
  detail: Schema.String,
  retryable: Schema.Boolean,
  ...SqlCause
}) {
  override get message(): string {
    return this.detail
  }
}

/**
 * The store could not do what it was asked; `reason` says why and what to do.
 *
 * @category errors
 * @since 0.1.0
 */
export class EventStoreError extends Schema.TaggedError<EventStoreError>("effect-units/EventStore/EventStoreError")(
  "EventStoreError",
  { reason: Schema.Union([Full, Busy, ReadOnly, NotADatabase, NewerVersion, Undecodable, Unavailable]) }
) {
  override readonly cause = this.reason
  override get message(): string {
    return `Event store: ${this.reason.message}`
  }
  /** Whether the same call can succeed later. */
  get retryable(): boolean {
    return this.reason.retryable
  }
}

/**
 * A store at work.
 *
 * @category models
 * @since 0.1.0
 */
export interface Store {
  /**
   * Stores events in their order, all or none, in one transaction; inside of `withTransaction` in that one. When it succeeds
   * outside of one, they are committed.
   *
   * **Details**
   *
   * An event whose id the log has is not stored again, and an execution that has ended takes no second terminal event, so a
   * retry is safe. `owned` says that this process runs the executions: should it die, they are closed as abandoned. Publishers
   * of this process set it, relays of foreign events do not.
   */
  readonly append: (
    events: ReadonlyArray<Event>,
    options?: { readonly owned?: boolean | undefined }
  ) => Effect.Effect<Appended, EventStoreError>

  /**
   * Reads events after an offset (default 0, the beginning), at most `limit` (default 100, at most 1,000), in their order.
   *
   * **Gotchas**
   *
   * A filter costs by the events that it passes over, in slices of 1,000; only `correlationId` has an index.
   */
  readonly read: (options?: {
    readonly after?: number | undefined
    readonly limit?: number | undefined
    readonly filter?: Filter | undefined
  }) => Effect.Effect<ReadonlyArray<Entry>, EventStoreError>

  /**
   * Replays the log after an offset (default 0, the beginning), and then follows it: every event once, in order, and no seam
   * between the two. To see new events only, begin after `lastOffset`.
   *
   * **Details**
   *
   * Appends by this store are seen at once; those of other processes within `pollInterval` (default 1 second). It reads at the
   * pace of its consumer and holds 500 events at most. It ends with a failure only; go on after the last offset that was seen.
   */
  readonly tail: (options?: {
    readonly after?: number | undefined
    readonly filter?: Filter | undefined
    readonly pollInterval?: Duration.Input | undefined
  }) => Stream.Stream<Entry, EventStoreError>

  /** Offset of the newest event; 0 in an empty log. It stays what it is when events are pruned. */
  readonly lastOffset: Effect.Effect<number, EventStoreError>

  /** Executions, newest start first. Each page costs the same, whatever the size of the store. */
  readonly executions: (
    options?: ExecutionsOptions
  ) => Effect.Effect<ReadonlyArray<ExecutionRecord>, EventStoreError>

  /** One execution with its events and children. */
  readonly execution: (correlationId: string) => Effect.Effect<Option.Option<ExecutionDetail>, EventStoreError>

  /**
   * Deletes old events, from the oldest on, in small transactions, and the records of executions whose terminal event went. Between
   * transactions it rests for as long as the last one took, so that others get at least half of the database.
   *
   * **Details**
   *
   * The started event of an execution that still runs stays, and so does what a group has not seen, not acknowledged, or parked, and what lies
   * after a checkpoint, unless `unacknowledged` is set; of a parked event that is deleted its error stays. By age it stops at the first batch that holds nothing old enough,
   * so an old event that arrived late goes together with those around it. Space is used again; the file does not shrink.
   */
  readonly prune: (options: PruneOptions) => Effect.Effect<Pruned, EventStoreError>

  /**
   * Ends the executions whose process is gone, each with an `execution_failed` of failure kind `abandoned`, and succeeds with
   * their number. The store does so by itself when it is built, and each third of the lease from then on.
   *
   * **Details**
   *
   * Only executions that were appended as `owned` are closed. Their process is gone when its store was closed in good order;
   * or when it is a process of this machine and container that does not run any more (known on Linux); or else when this store has
   * seen it show no sign of life for a whole lease of it, by its own clock: the clocks of machines are not compared.
   */
  readonly closeAbandoned: Effect.Effect<number, EventStoreError>

  /** Who shares which events, how far each group has come, and what it gave up. */
  readonly groups: ConsumerGroups

  /** The offset that a consumer saved last. Groups keep their position by themselves. */
  readonly checkpoint: (consumer: string) => Effect.Effect<Option.Option<number>, EventStoreError>

  /** Saves how far a consumer has come. Inside of `withTransaction` it commits together with what the consumer wrote. */
  readonly saveCheckpoint: (consumer: string, offset: number) => Effect.Effect<void, EventStoreError>

  /** Forgets how far a consumer has come, so that `prune` waits for it no more. */
  readonly removeCheckpoint: (consumer: string) => Effect.Effect<void, EventStoreError>

  /**
   * What transactions hold back, to raise an alarm when one stays open. The gauges `effect_units_event_store_pending_events` and
   * `effect_units_event_store_transaction_seconds` have it, too, as it was on the last round.
   */
  readonly pending: Effect.Effect<Pending, EventStoreError>

  /** Runs an effect in a transaction of the store's client, or in the one around it as a savepoint. */
  readonly withTransaction: <A, E, R>(self: Effect.Effect<A, E, R>) => Effect.Effect<A, E | EventStoreError, R>

  /**
   * The client that the tables are on, without transforms: for tables of one's own that change together with the log, inside of
   * `withTransaction`. `fromSqlError` says what its failures mean.
   */
  readonly sql: SqlClient.SqlClient

  /** Whether code with this context runs inside of a transaction of the store's client. */
  readonly inTransaction: (context: Context.Context<never>) => boolean
}

/**
 * The service.
 *
 * @category services
 * @since 0.1.0
 */
export class EventStore extends Context.Service<EventStore, Store>()("effect-units/EventStore") {}

/**
 * Settings of a store.
 *
 * @category models
 * @since 0.1.0
 */
export interface Options {
  /**
   * For how long a process shows no sign of life before others take it for gone, where it cannot be looked up. It shows one each third of it.
   * Default 30 seconds. Longer than the event loop may ever stand still.
   */
  readonly lease?: Duration.Input | undefined
  /**
   * On PostgreSQL: what arrives on a channel of the server, where the store notifies of what it commits. Each element lets tails look at
   * once; a stream that ends or fails is run again each second, and tails poll meanwhile.
   */
  readonly notifications?: ((channel: string) => Stream.Stream<unknown, unknown>) | undefined
}

const batchSize = 500
// Milliseconds that a process may keep the lock of the log and do nothing.
const longestLock = 10_000
// Schemas of one database share its channels.
const channel = "'effect_units_' || md5(current_schema())"
const scanSize = 1000
const maxLimit = 1000
const countedChildren = 1000

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

/** Writes what a batch changes: on PostgreSQL in one statement, and so in one round trip. */
const makeWrite = (
  sql: SqlClient.SqlClient
): (plan: Rows.Plan, next: number) => Effect.Effect<void, SqlError.SqlError> =>
  sql.onDialectOrElse({
    pg: () => {
      const events = unnested<Rows.Prepared>(Rows.eventColumns, 3)
      const running = unnested<Rows.RunningRow>(Rows.runningColumns, 3 + Rows.eventColumns.length)
      const ended = unnested<Rows.EndedRow>(
        Rows.endedColumns,
        3 + Rows.eventColumns.length + Rows.runningColumns.length
      )
      const text = `WITH moved AS (UPDATE effect_units_log SET last_offset = $1 WHERE name = 'events' RETURNING name),
        done AS (DELETE FROM effect_units_running WHERE started_offset = ANY($2::bigint[])),
        events AS (INSERT INTO effect_units_events ${events.text}),
        running AS (INSERT INTO effect_units_running ${running.text}),
        ended AS (INSERT INTO effect_units_executions ${ended.text})
        SELECT pg_notify(${channel}, '') FROM moved`
      return (plan: Rows.Plan, next: number) =>
        Effect.asVoid(sql.unsafe(text, [
          next,
          array(plan.noLongerRunning),
          ...events.parameters(plan.events),
          ...running.parameters(plan.running),
          ...ended.parameters(plan.ended)
        ]))
    },
    orElse: () => {
      const insertEvents = makeInsert<Rows.Prepared>(sql, "effect_units_events", Rows.eventColumns)
      const insertRunning = makeInsert<Rows.RunningRow>(sql, "effect_units_running", Rows.runningColumns)
      const insertEnded = makeInsert<Rows.EndedRow>(sql, "effect_units_executions", Rows.endedColumns)
      return Effect.fnUntraced(function*(plan: Rows.Plan, next: number) {
        yield* insertEvents(plan.events)
        if (plan.noLongerRunning.length > 0) {
          yield* sql`DELETE FROM effect_units_running WHERE ${among(sql, "started_offset", plan.noLongerRunning)}`
        }
        yield* insertRunning(plan.running)
        yield* insertEnded(plan.ended)
        yield* sql`UPDATE effect_units_log SET last_offset = ${next} WHERE name = 'events'`
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

const bounded = (limit: number | undefined): number => Math.min(Math.max(1, Math.trunc(limit ?? 100)), maxLimit)

/**
 * What a failure of the store's client means: which of the reasons it is, and so whether a retry helps.
 *
 * @category errors
 * @since 0.1.0
 */
export const fromSqlError = (error: SqlError.SqlError): EventStoreError => {
  const cause = error.reason
  const reason = () => {
    switch (Sqlite.resultCode(error)) {
      case Sqlite.ResultCode.full:
        return new Full({ cause })
      case Sqlite.ResultCode.readOnly:
        return new ReadOnly({ cause })
      case Sqlite.ResultCode.notADatabase:
      case Sqlite.ResultCode.corrupt:
        return new NotADatabase({ detail: error.message, cause })
    }
    switch (cause._tag) {
      case "LockTimeoutError":
      case "DeadlockError":
      case "SerializationError":
      case "StatementTimeoutError":
        return new Busy({ cause })
      case "AuthorizationError":
        return new ReadOnly({ cause })
    }
    const state = sqlState(error)
    switch (state) {
      case "53100":
        return new Full({ cause })
      case "25006":
        return new ReadOnly({ cause })
      default:
        return new Unavailable({ detail: detailOf(error), retryable: error.isRetryable || passes(state), cause })
    }
  }
  return new EventStoreError({ reason: reason() })
}

/** PostgreSQL's code of five characters; see https://www.postgresql.org/docs/current/errcodes-appendix.html. */
const sqlState = ({ reason: { cause } }: SqlError.SqlError): string | undefined =>
  Predicate.hasProperty(cause, "code") && typeof cause.code === "string" ? cause.code : undefined

/** Whether a server that says so can take the same statement later: short of something, shutting down, starting, or tired of waiting. */
const passes = (state: string | undefined): boolean =>
  state !== undefined && (/^(08|53|57P)/.test(state) || state === "25P03")

/** Some drivers say what failed in the cause only. */
const detailOf = (error: SqlError.SqlError): string => {
  const { cause } = error.reason
  return cause instanceof Error && cause.message !== "" && !error.message.includes(cause.message)
    ? `${error.message}: ${cause.message}`
    : error.message
}

const fromSqliteError = ({ reason }: Sqlite.SqliteError): EventStoreError => {
  const make = () => {
    switch (reason._tag) {
      case "NotADatabase":
      case "Corrupt":
        return new NotADatabase({ detail: reason.message, cause: reason })
      case "ReadOnly":
        return new ReadOnly({ cause: reason })
      case "Locked":
        return new Busy({ cause: reason })
      case "DirectoryNotFound":
      case "Unavailable":
        return new Unavailable({ detail: reason.message, retryable: reason.retryable, cause: reason })
    }
  }
  return new EventStoreError({ reason: make() })
}

const wrap = <A, R>(self: Effect.Effect<A, SqlError.SqlError, R>): Effect.Effect<A, EventStoreError, R> =>
  Effect.mapError(self, fromSqlError)

const decodeExecutionEvent = Schema.decodeUnknownExit(ExecutionEvent.ExecutionEvent)
const decodeDomainEvent = Schema.decodeUnknownExit(DomainEvent.DomainEvent)

const decode = (payload: string): Exit.Exit<Event, unknown> => {
  try {
    const json: unknown = JSON.parse(payload)
    return ExecutionEvent.isExecutionEvent(json) ? decodeExecutionEvent(json) : decodeDomainEvent(json)
  } catch (thrown) {
    return Exit.fail(thrown)
  }
}

// Integer columns come as numbers from SQLite and as bigints from PostgreSQL.
type Integer = number | bigint

interface PayloadRow {
  readonly event_offset: Integer
  readonly payload: string
}

const toEntries = (rows: ReadonlyArray<PayloadRow>): Effect.Effect<ReadonlyArray<Entry>, EventStoreError> => {
  const entries: Array<Entry> = []
  for (const row of rows) {
    const offset = Number(row.event_offset)
    const decoded = decode(row.payload)
    if (Exit.isFailure(decoded)) {
      return Effect.fail(new EventStoreError({ reason: new Undecodable({ offset, cause: decoded.cause }) }))
    }
    entries.push({ offset, event: decoded.value })
  }
  return Effect.succeed(entries)
}

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

const rfc3339 = (millis: Integer): string => new Date(Number(millis)).toISOString()

/** The fields that events and records of executions share. */
const identityOf = (row: Rows.Identity) => {
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

const makeLog = (sql: SqlClient.SqlClient, wake: Effect.Effect<void>, staged: Effect.Effect<void>) => {
  const isPostgres = sql.onDialectOrElse({ pg: () => true, orElse: () => false })

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
  // server ends the transaction of a process that stops while it has the lock.
  const lockedLastOffset = isPostgres
    ? Effect.map(
      sql<{ last_offset: Integer }>`
        SELECT last_offset, set_config('idle_in_transaction_session_timeout', ${String(longestLock)}, true)
        FROM effect_units_log WHERE name = 'events' FOR UPDATE`,
      ([row]) => Number(row?.last_offset ?? 0)
    )
    : lastOffset

  const write = makeWrite(sql)

  // PostgreSQL keeps the plan of a prepared statement from when the tables were small, until it has analysed them: a scan, which takes
  // longer with every event. So what is looked up is planned each time.
  const planned = <A>(statement: Statement.Statement<A>): Effect.Effect<ReadonlyArray<A>, SqlError.SqlError> =>
    isPostgres ? statement.unprepared : statement

  const known = Effect.fnUntraced(function*(correlationIds: ReadonlyArray<string>) {
    if (correlationIds.length === 0) return { running: new Map(), ended: new Set<string>() }
    const ids = among(sql, "correlation_id", correlationIds)
    const running = yield* planned(sql<{ correlation_id: string; started_offset: Integer; started_at: Integer }>`
      SELECT correlation_id, started_offset, started_at FROM effect_units_running WHERE ${ids}`)
    const ended = yield* planned(sql<{ correlation_id: string }>`
      SELECT correlation_id FROM effect_units_executions WHERE ${ids}`)
    return {
      running: new Map(running.map((row) => [
        row.correlation_id,
        { started_offset: Number(row.started_offset), started_at: Number(row.started_at) }
      ])),
      ended: new Set(ended.map((row) => row.correlation_id))
    }
  })

  const store = Effect.fnUntraced(function*(
    batch: ReadonlyArray<Rows.Prepared>,
    correlationIds: ReadonlyArray<string>
  ) {
    const last = yield* lockedLastOffset
    const plan = Rows.plan(batch, last, yield* known(correlationIds))
    const next = last + plan.events.length
    if (next > last) yield* write(plan, next)
    for (const { correlation_id, started_at, started_offset } of plan.late) {
      yield* sql`UPDATE effect_units_executions SET ${sql.update({ started_at, started_offset })}
        WHERE correlation_id = ${correlation_id}`
    }
    return { stored: plan.events.length, duplicates: plan.refused, last_offset: next }
  })

  /**
   * Stores the events of a batch that the log does not have, in the transaction around it. `lookUp` says when it asks for every id: at
   * once; where one of them turns out to be known; or never, and then one that is known fails the transaction.
   */
  const storeBatch = (
    batch: ReadonlyArray<Rows.Prepared>,
    lookUp: "first" | "on conflict" | "never"
  ): Effect.Effect<Appended, SqlError.SqlError> => {
    const unique = new Map<string, Rows.Prepared>()
    const repeated: Array<string> = []
    for (const event of batch) {
      if (unique.has(event.id)) repeated.push(event.id)
      else unique.set(event.id, event)
    }
    const events = Array.from(unique.values())
    const storeAll = store(events, Rows.unpaired(events))
    const storeUnknown = Effect.gen(function*() {
      // Looked up under the lock.
      yield* lockedLastOffset
      const rows = yield* planned(sql<{ id: string }>`
        SELECT id FROM effect_units_events WHERE ${among(sql, "id", Array.from(unique.keys()))}`)
      for (const { id } of rows) unique.delete(id)
      const unknown = Array.from(unique.values())
      const appended = yield* store(unknown, Rows.executions(unknown))
      return { ...appended, duplicates: [...rows.map((row) => row.id), ...appended.duplicates] }
    })
    const storing = () => {
      switch (lookUp) {
        case "first":
          return storeUnknown
        case "on conflict":
          return Effect.catchIf(transaction(storeAll), isUniqueViolation, () => storeUnknown)
        case "never":
          return storeAll
      }
    }
    return Effect.map(storing(), (appended) => ({ ...appended, duplicates: [...repeated, ...appended.duplicates] }))
  }

  /** Gives events their place in the log, in the transaction around it. */
  const place = Effect.fnUntraced(function*(
    events: ReadonlyArray<Rows.Prepared>,
    lookUp: "first" | "on conflict" | "never"
  ) {
    let stored = 0
    let last_offset = 0
    const duplicates: Array<string> = []
    for (const batch of Arr.chunksOf(events, batchSize)) {
      const appended = yield* storeBatch(batch, lookUp)
      stored += appended.stored
      last_offset = appended.last_offset
      duplicates.push(...appended.duplicates.map(Rows.original))
      if (events.length > batchSize) yield* Effect.yieldNow
    }
    if (stored > 0) yield* sql.afterCommit(wake)
    return { stored, duplicates, last_offset }
  })

  const nothing = Effect.map(lastOffset, (last_offset) => ({ stored: 0, duplicates: [], last_offset }))

  /** Appends in a transaction that has the lock, or takes it. */
  const appendLocked = (
    events: ReadonlyArray<Event>,
    now: number,
    owner: string | null
  ): Effect.Effect<Appended, SqlError.SqlError> =>
    events.length === 0 ?
      nothing :
      transact(Effect.suspend(() =>
        place(events.map((event) => Rows.prepare(event, now, owner)), isPostgres ? "first" : "on conflict")
      ))

  const stage = (
    events: ReadonlyArray<Event>,
    owner: string | null
  ): Effect.Effect<Appended, SqlError.SqlError> =>
    Effect.gen(function*() {
      // Says that this process has a transaction under way, for whoever takes it for gone.
      if (owner !== null) yield* sql`SELECT pg_advisory_xact_lock_shared(hashtextextended(${owner}, 0))`
      yield* sql.unsafe(
        "INSERT INTO effect_units_staged (owner, payload) SELECT $1, payload FROM unnest($2::text[]) AS payload",
        [owner, events.map(Rows.payload)]
      )
      yield* sql.afterCommit(staged)
      return { stored: events.length, duplicates: [], last_offset: yield* lastOffset }
    })

  /** Appends in a transaction of its own. Most events are new, and nothing is looked up before one of them turns out not to be. */
  const appendAlone = (
    events: ReadonlyArray<Event>,
    now: number,
    owner: string | null
  ): Effect.Effect<Appended, SqlError.SqlError> => {
    const attempt = (lookUp: "first" | "never") =>
      transact(Effect.suspend(() => place(events.map((event) => Rows.prepare(event, now, owner)), lookUp)))
    return Effect.catchIf(attempt("never"), isUniqueViolation, () => attempt("first"))
  }

  const append = isPostgres
    ? (events: ReadonlyArray<Event>, now: number, owner: string | null) =>
      events.length === 0 ?
        nothing :
        Effect.contextWith((context: Context.Context<never>) =>
          inTransaction(context) ? stage(events, owner) : appendAlone(events, now, owner)
        )
    : appendLocked

  /** Places what was staged and is committed, in the transaction around it; succeeds with how many events were staged. */
  const placeStaged = Effect.fnUntraced(function*(now: number, limit: number) {
    yield* lockedLastOffset
    const rows = yield* sql<{ stage_id: Integer; owner: string | null; payload: string }>`
      DELETE FROM effect_units_staged
      WHERE stage_id IN (SELECT stage_id FROM effect_units_staged ORDER BY stage_id LIMIT ${limit})
      RETURNING stage_id, owner, payload`
    const inOrder = rows.toSorted((a, b) => Number(a.stage_id) - Number(b.stage_id))
    yield* place(inOrder.map(({ owner, payload }) => Rows.fromPayload(payload, now, owner)), "first")
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
          FROM effect_units_staged
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
    sql<{ found: boolean }>`SELECT EXISTS (SELECT 1 FROM effect_units_staged) AS found`,
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
    return sql<PayloadRow>`
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
  }

  return {
    append,
    appendLocked,
    placeStaged,
    isStaged,
    pending,
    withoutTransaction,
    transact,
    inTransaction,
    isPostgres,
    lastOffset,
    scan,
    ofExecution
  }
}

const isUniqueViolation = (error: SqlError.SqlError): boolean => error.reason._tag === "UniqueViolation"

/** A condition that a column has one of some values, whose text is the same for many numbers of them. */
const among = (
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

const filterConditions = (
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

const makeExecutions = (sql: SqlClient.SqlClient) => {
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

  const toRecords = Effect.map((rows: ReadonlyArray<ExecutionRow>) => rows.map(toRecord))

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

/** Wakes tails for what other processes commit, for as long as it runs. */
const follow = (
  notifications: (channel: string) => Stream.Stream<unknown, unknown>,
  sql: SqlClient.SqlClient,
  wake: Effect.Effect<void>
): Effect.Effect<never> =>
  Effect.flatMap(
    sql<{ name: string }>`SELECT ${sql.literal(channel)} AS name`,
    ([row]) => Stream.runForEach(notifications(row?.name ?? ""), () => wake)
  ).pipe(
    Effect.catchCause((cause) =>
      Effect.logDebug("The event store lost its notifications and polls until it has them again", cause)
    ),
    Effect.andThen(Effect.sleep("1 second")),
    Effect.forever
  )

interface OwnerRow {
  readonly owner: string
  readonly process: string | null
  readonly beat: Integer
  readonly lease_ms: Integer
}

/** The beat of an owner whose store was closed. */
const ended = 0

const abandonedMessage = "The process that ran this execution ended before the execution did"

interface AbandonedRow extends Rows.Identity {
  readonly started_at: Integer
  readonly payload: string | null
}

/** Ends an execution at `now` (milliseconds), in the words of its started event. */
const abandoned = (row: AbandonedRow, now: number, source: string, sequence: number): ExecutionEvent.ExecutionEvent => {
  const started = row.payload === null ? undefined : Option.getOrUndefined(Exit.getSuccess(decode(row.payload)))
  const known = started !== undefined && ExecutionEvent.isExecutionEvent(started) ? started : undefined
  const durationMs = Math.max(0, now - Number(row.started_at))
  const identity = identityOf(row)
  return {
    event_type: "execution_failed",
    ...identity,
    id: `${identity.correlation_id}:failed`,
    timestamp: rfc3339(now),
    ...(known?.trace_id === undefined ? {} : { trace_id: known.trace_id }),
    ...(known?.span_id === undefined ? {} : { span_id: known.span_id }),
    ...(known?.attributes === undefined ? {} : { attributes: known.attributes }),
    source,
    sequence,
    duration_ms: durationMs,
    // By the wall clock: the monotonic one went with the process. Beyond 104 days nanoseconds are no safe integer.
    duration_ns: Math.min(durationMs * 1e6, Number.MAX_SAFE_INTEGER),
    error: abandonedMessage,
    failure: { kind: "abandoned" }
  }
}

const wrapSome = <A, E, R>(
  self: Effect.Effect<A, E | SqlError.SqlError, R>
): Effect.Effect<A, Exclude<E, SqlError.SqlError> | EventStoreError, R> =>
  Effect.mapError(
    self,
    // Safe: what is no SqlError is all that Exclude leaves.
    (error) => SqlError.isSqlError(error) ? fromSqlError(error) : error as Exclude<E, SqlError.SqlError>
  )

const consumerGroups = (groups: Groups.Groups, members: ReturnType<typeof GroupMember.make>): ConsumerGroups => {
  // Of what is replayed or discarded the members of this process hear at once.
  const telling = <A, E>(self: Effect.Effect<A, E | SqlError.SqlError>) =>
    Effect.tap(wrapSome(self), () => Effect.sync(members.tellAll))
  return {
    subscribe: members.subscribe,
    list: wrap(groups.list),
    remove: (group) => telling(groups.remove(group)),
    parked: (options = {}) => wrap(groups.listParked(options, bounded(options.limit))),
    get: (id) => wrapSome(groups.get(id)),
    replay: (id) => telling(groups.replay(id)),
    edit: (id, event) => wrapSome(groups.edit(id, event)),
    discard: (id) => telling(groups.discard(id)),
    replayAll: (filter) => telling(groups.replayAll(filter)),
    discardAll: (filter) => telling(groups.discardAll(filter))
  }
}

class Inner<E> {
  readonly error: E
  constructor(error: E) {
    this.error = error
  }
}

/**
 * Makes a store on a `SqlClient`: brings its tables up to date, closes what died processes left running, and goes on doing so
 * until the scope closes.
 *
 * @category constructors
 * @since 0.1.0
 */
export const make: (
  options?: Options
) => Effect.Effect<Store, EventStoreError, SqlClient.SqlClient | Scope.Scope> = Effect.fnUntraced(
  function*(options: Options = {}) {
    const given = yield* SqlClient.SqlClient
    // The store's columns have the names that they have, whatever the application transforms its own to.
    const sql = given.withoutTransforms()
    const clock = yield* Clock.Clock
    const lease = Duration.toMillis(options.lease ?? "30 seconds")

    const schema = yield* Migrations.migrate(Migrations.migrations).pipe(
      Effect.provideService(SqlClient.SqlClient, sql),
      Effect.mapError((error) =>
        error instanceof Migrator.MigrationError
          ? error.cause instanceof SqlError.SqlError
            ? fromSqlError(error.cause)
            : new EventStoreError({
              reason: new Unavailable({ detail: error.message, retryable: false, cause: error })
            })
          : fromSqlError(error)
      )
    )
    if (schema.newer) {
      return yield* new EventStoreError({ reason: new NewerVersion({ found: schema.found, known: schema.known }) })
    }

    const wakeups = yield* Effect.acquireRelease(PubSub.sliding<void>(1), PubSub.shutdown)
    const wake = Effect.asVoid(PubSub.publish(wakeups, undefined))

    // How often transactions of this process have committed staged events, and how many of these commits are placed.
    let staged = 0
    let placed = 0
    const toPlace = yield* Queue.sliding<void>(1)
    const log = makeLog(
      sql,
      wake,
      Effect.sync(() => {
        staged++
        Queue.offerUnsafe(toPlace, undefined)
      })
    )
    const placing = yield* Semaphore.make(1)

    /** Gives what was staged and is committed its place, whichever process it is from. */
    const placeStaged = placing.withPermit(Effect.gen(function*() {
      const upTo = staged
      while (true) {
        const count = yield* log.transact(log.placeStaged(clock.currentTimeMillisUnsafe(), batchSize))
        if (count < batchSize) break
        yield* Effect.yieldNow
      }
      placed = upTo
    }))

    /** Before a read: what this process has committed is in the log. */
    const settled = Effect.contextWith((context: Context.Context<never>) =>
      placed < staged && !log.inTransaction(context) ? placeStaged : Effect.void
    )
    /** What is staged by a process that died before it could place it, or is about to; and whether there was any. */
    const placeAnyStaged = log.isPostgres
      ? Effect.flatMap(log.isStaged, (found) => found ? Effect.as(placeStaged, true) : Effect.succeed(false))
      : Effect.succeed(false)
    const reading = <A>(self: Effect.Effect<A, SqlError.SqlError>): Effect.Effect<A, EventStoreError> =>
      wrap(log.isPostgres ? Effect.andThen(settled, self) : self)
    const executions = makeExecutions(sql)

    // Names this store among the owners, and as the source of the events that it makes itself.
    const instance = uuidV7(clock.currentTimeMillisUnsafe())
    const process = ProcessIdentity.own() ?? null
    let sequence = 0
    let isOwner = false

    // Written anew each time: whoever took this process for gone has deleted it.
    const renew = Effect.suspend(() => {
      const row = { owner: instance, process, beat: 1, lease_ms: lease }
      return sql`INSERT INTO effect_units_owners ${sql.insert(row)}
        ON CONFLICT (owner) DO UPDATE SET beat = effect_units_owners.beat + 1`
    })
    const own = Effect.suspend(() =>
      isOwner ? Effect.void : Effect.andThen(
        renew,
        sql.afterCommit(Effect.sync(() => {
          isOwner = true
        }))
      )
    )

    const append: Store["append"] = (events, appendOptions) =>
      Effect.suspend(() => {
        const now = clock.currentTimeMillisUnsafe()
        return wrap(
          // On PostgreSQL a process is an owner from the start, as here the row would be locked until the end of a transaction.
          appendOptions?.owned === true && !log.isPostgres
            ? sql.withTransaction(Effect.andThen(own, log.append(events, now, instance)))
            : log.append(events, now, appendOptions?.owned === true ? instance : null)
        )
      })

    const read: Store["read"] = Effect.fnUntraced(function*(readOptions = {}) {
      const { filter } = readOptions
      const limit = bounded(readOptions.limit)
      let after = readOptions.after ?? 0
      yield* reading(Effect.void)
      if (filter?.correlationId !== undefined) {
        return yield* Effect.flatMap(wrap(log.ofExecution(filter.correlationId, after, limit, filter)), toEntries)
      }
      const entries: Array<Entry> = []
      while (entries.length < limit) {
        const { next, rows } = yield* wrap(log.scan(after, limit - entries.length, filter))
        if (next === undefined) break
        after = next
        entries.push(...yield* toEntries(rows))
        yield* Effect.yieldNow
      }
      return entries
    })

    const tail: Store["tail"] = (tailOptions = {}) =>
      // Subscribed before the first read: what is committed after a read that finds nothing has left a wake-up behind.
      Stream.unwrap(Effect.map(PubSub.subscribe(wakeups), (wake) => {
        const wait = Effect.timeoutOrElse(PubSub.take(wake), {
          duration: tailOptions.pollInterval ?? "1 second",
          orElse: () => Effect.void
        })
        const waitForMore = Effect.flatMap(wrap(placeAnyStaged), (found) => found ? Effect.void : wait)
        let after = tailOptions.after ?? 0
        const pull: Effect.Effect<Arr.NonEmptyReadonlyArray<Entry>, EventStoreError> = Effect.suspend(() =>
          Effect.flatMap(wrap(log.scan(after, batchSize, tailOptions.filter)), ({ next, rows }) => {
            if (next === undefined) return Effect.andThen(waitForMore, pull)
            after = next
            return Effect.filterOrElse(
              toEntries(rows),
              Arr.isReadonlyArrayNonEmpty,
              () => Effect.andThen(Effect.yieldNow, pull)
            )
          })
        )
        return Stream.fromPull(Effect.succeed(pull))
      }))

    const execution: Store["execution"] = Effect.fnUntraced(function*(correlationId) {
      const record = yield* reading(executions.find(correlationId))
      if (record === undefined) return Option.none()
      const rows = yield* wrap(log.ofExecution(correlationId, 0, maxLimit, undefined))
      const children = yield* wrap(executions.list({ parentId: correlationId, limit: maxLimit }))
      return Option.some({ execution: record, events: yield* toEntries(rows), children })
    })

    const { inTransaction, lastOffset, transact } = log
    const prune = Pruning.make({ sql, clock, transact, lastOffset })
    const groups = Groups.make({
      sql,
      clock,
      transact,
      lastOffset,
      decode,
      encode: Rows.payload,
      filter: (wanted) => filterConditions(sql, wanted)
    })
    const members = GroupMember.make({
      groups,
      clock,
      transact,
      toError: fromSqlError,
      inTransaction,
      afterCommit: sql.afterCommit,
      settle: placeAnyStaged,
      lifetime: yield* Effect.scope,
      start: (from) =>
        StoreSubscriber.start({ read, lastOffset: reading(lastOffset) }, from, reading(groups.beginning)),
      whenAppended: (tell) =>
        Effect.scoped(Effect.flatMap(
          PubSub.subscribe(wakeups),
          (wake) => Effect.forever(Effect.andThen(PubSub.take(wake), Effect.sync(tell)))
        ))
    })

    // The beats of other owners, and since when they stand at what they are: by one clock that is never set, and of no other machine.
    const beats = new Map<string, { readonly beat: number; readonly since: number }>()
    const now = (): number => Number(clock.monotonicTimeNanosUnsafe() / 1_000_000n)

    const isGone = (row: OwnerRow): boolean => {
      const beat = Number(row.beat)
      const known = beats.get(row.owner)
      if (known?.beat !== beat) beats.set(row.owner, { beat, since: now() })
      if (beat === ended) return true
      const isAlive = row.process === null ? undefined : ProcessIdentity.isAlive(row.process)
      if (isAlive !== undefined) return !isAlive
      return known?.beat === beat && now() - known.since >= Number(row.lease_ms)
    }

    const goneOwners = Effect.map(
      sql<OwnerRow>`SELECT owner, process, beat, lease_ms FROM effect_units_owners`,
      (owners) => {
        for (const owner of beats.keys()) if (!owners.some((row) => row.owner === owner)) beats.delete(owner)
        return owners.filter((row) => row.owner !== instance && isGone(row)).map(({ owner }) => owner)
      }
    )

    const closeBatch = Effect.gen(function*() {
      const owners = yield* Effect.flatMap(goneOwners, log.withoutTransaction)
      if (owners.length === 0) return 0
      if (log.isPostgres) {
        // What they committed before they died counts.
        while ((yield* log.placeStaged(clock.currentTimeMillisUnsafe(), batchSize)) > 0) yield* Effect.yieldNow
      }
      const rows = yield* sql<AbandonedRow>`
        SELECT running.*, event.payload FROM effect_units_running AS running
        LEFT JOIN effect_units_events AS event ON event.event_offset = running.started_offset
        WHERE ${among(sql, "owner", owners)} ORDER BY running.started_offset LIMIT ${batchSize}`
      if (rows.length === 0) {
        yield* sql`DELETE FROM effect_units_owners WHERE ${among(sql, "owner", owners)}`
        return 0
      }
      const now = clock.currentTimeMillisUnsafe()
      const events = rows.map((row, index) => abandoned(row, now, instance, sequence + index + 1))
      const { stored } = yield* log.appendLocked(events, now, null)
      yield* sql.afterCommit(Effect.sync(() => {
        sequence += stored
      }))
      return stored
    })

    const closeAbandoned: Store["closeAbandoned"] = wrap(Effect.gen(function*() {
      // Looked up first outside of a transaction, which takes the lock: mostly there is nothing to do.
      if (log.isPostgres && (yield* log.isStaged)) yield* placeStaged
      if ((yield* goneOwners).length === 0) return 0
      let closed = 0
      while (true) {
        const count = yield* log.transact(closeBatch)
        if (count === 0) return closed
        closed += count
        yield* Effect.yieldNow
      }
    }))

    // What still runs at the end of the scope ends with it, and whoever opens the database next says so.
    yield* Effect.addFinalizer(() =>
      Effect.suspend(() =>
        isOwner
          ? Effect.ignore(sql`UPDATE effect_units_owners SET beat = ${ended} WHERE owner = ${instance}`, { log: true })
          : Effect.void
      )
    )
    if (log.isPostgres) yield* wrap(own)
    yield* closeAbandoned
    if (log.isPostgres) {
      yield* Queue.take(toPlace).pipe(
        Effect.andThen(settled),
        // Whoever looks next places it, in this process or another.
        Effect.catch((error) =>
          Effect.logWarning("Committed events wait for their place in the log", fromSqlError(error))
        ),
        Effect.forever,
        Effect.forkScoped
      )
      if (options.notifications !== undefined) yield* Effect.forkScoped(follow(options.notifications, sql, wake))
    }
    const observe = Effect.flatMap(wrap(log.pending), ({ events, open_ms }) =>
      Effect.andThen(
        Metric.update(Metrics.pendingEvents, events),
        Metric.update(Metrics.openTransaction, open_ms / 1000)
      ))
    yield* Effect.suspend(() => isOwner ? Effect.asVoid(wrap(renew)) : Effect.void).pipe(
      Effect.andThen(closeAbandoned),
      Effect.andThen(log.isPostgres ? observe : Effect.void),
      Effect.catch((error) => Effect.logWarning("The event store could not look after its lease", error)),
      Effect.delay(lease / 3),
      Effect.forever,
      Effect.forkScoped
    )

    return {
      append,
      read,
      tail,
      lastOffset: reading(log.lastOffset),
      executions: (listOptions = {}) => reading(executions.list(listOptions)),
      execution,
      prune: (pruneOptions) => reading(prune(pruneOptions)),
      closeAbandoned,
      groups: consumerGroups(groups, members),
      checkpoint: (consumer) =>
        wrap(Effect.map(
          sql<{ last_offset: Integer }>`
            SELECT last_offset FROM effect_units_checkpoints WHERE consumer = ${Rows.text(consumer)}`,
          ([row]) => Option.map(Option.fromUndefinedOr(row), ({ last_offset }) => Number(last_offset))
        )),
      saveCheckpoint: (consumer, last_offset) =>
        wrap(Effect.asVoid(
          sql`INSERT INTO effect_units_checkpoints ${sql.insert({ consumer: Rows.text(consumer), last_offset })}
            ON CONFLICT (consumer) DO UPDATE SET last_offset = excluded.last_offset`
        )),
      removeCheckpoint: (consumer) =>
        wrap(Effect.asVoid(sql`DELETE FROM effect_units_checkpoints WHERE consumer = ${Rows.text(consumer)}`)),
      withTransaction: <A, E, R>(self: Effect.Effect<A, E, R>) =>
        // The effect's own failures are told from those of BEGIN and COMMIT, whatever they are.
        withTransaction(sql.withTransaction)(Effect.mapError(self, (error) => new Inner(error))).pipe(
          Effect.mapError((error) => error instanceof Inner ? error.error : fromSqlError(error))
        ),
      pending: wrap(log.pending),
      sql,
      inTransaction: log.inTransaction
    }
  }
)

/**
 * Layer of a store on the `SqlClient` of the application. Its tables begin with `effect_units_`.
 *
 * **When to use**
 *
 * Use where events are to commit in one transaction with other data. Mind that a SQLite client is one connection: a long
 * transaction of the application holds up the log.
 *
 * @category layers
 * @since 0.1.0
 */
export const layer = (options?: Options): Layer.Layer<EventStore, EventStoreError, SqlClient.SqlClient> =>
  Layer.effect(EventStore, make(options))

/**
 * Layer of a store on a SQLite file of its own connection.
 *
 * **Details**
 *
 * Fails with `EventStoreError` where the file cannot be used or was made by a newer version; `reason` says what to do. Several
 * processes may use one file.
 *
 * **Example** (A store on a file)
 *
 * ```ts
 * const layer = EventStore.layerSqlite({ filename: "events.db" })
 * ```
 *
 * @category layers
 * @since 0.1.0
 */
export const layerSqlite = (options: Options & Sqlite.Options): Layer.Layer<EventStore, EventStoreError> =>
  layer(options).pipe(
    Layer.provide(Sqlite.layer(options)),
    Layer.catchTag("SqliteError", (error) => Layer.effect(EventStore, Effect.fail(fromSqliteError(error))))
  )

/**
 * Settings of `layerCleanup`.
 *
 * @category models
 * @since 0.1.0
 */
export interface CleanupOptions extends PruneOptions {
  /** From the end of one clean-up to the begin of the next one. Default 1 hour. */
  readonly every?: Duration.Input | undefined
}

/**
 * Layer that prunes the store, at once and then again and again; see `Store.prune`.
 *
 * **Details**
 *
 * What it deleted is logged, and counted in `effect_units_events_pruned`. A clean-up that fails is logged, and the next one is tried when
 * it is due. Several processes may clean up one store; it is enough if one does.
 *
 * **Example** (Keeping a month)
 *
 * ```ts
 * const layer = EventStore.layerCleanup({ olderThan: "30 days" })
 * ```
 *
 * @category layers
 * @since 0.1.0
 */
export const layerCleanup = (options: CleanupOptions): Layer.Layer<never, never, EventStore> =>
  Layer.effectDiscard(Effect.flatMap(EventStore, (store) =>
    store.prune(options).pipe(
      Effect.flatMap(({ events, executions, waiting_for }) =>
        Effect.andThen(
          Metric.update(Metrics.pruned, events),
          Effect.logInfo(
            `The event store deleted ${events} old events and ${executions} executions` +
              (waiting_for === undefined ? "" : `; older ones wait for "${waiting_for}"`)
          )
        )
      ),
      Effect.catch((error) => Effect.logWarning("The event store could not delete old events", error)),
      Effect.andThen(Effect.sleep(options.every ?? "1 hour")),
      Effect.forever,
      Effect.forkScoped
    )))

/**
 * Layer that reads the log as one reads any other transport: with acknowledgements, and named consumers that go on where they stopped.
 *
 * Guarantees: at least once, from any offset (`position`), time or the beginning, in the order of the log. A consumer with a name is a
 * group; see `ConsumerGroups`: its subscribers, in any number of processes, share the events, order is kept per execution, attempts are
 * counted and kept, and after `maxAttempts` an event is parked, to be found, replayed or discarded by the store's `groups`. A subscriber
 * without a name sees every event, and its attempts are counted in memory.
 *
 * **Details**
 *
 * What other processes append is seen within `pollInterval` (default 1 second). Beginning at a time reads the log up to there.
 *
 * **Example** (Two processes that share the work)
 *
 * ```ts
 * const worker = EventSubscriber.consume({ consumer: "billing", maxInFlight: 100, ackTimeout: "1 minute" }, charge)
 * ```
 *
 * @category layers
 * @since 0.1.0
 */
export const layerSubscriber = (
  options?: { readonly pollInterval?: Duration.Input | undefined }
): Layer.Layer<EventSubscriber, never, EventStore> =>
  Layer.effect(EventSubscriber, EventStore.use((store) => StoreSubscriber.make(store, options ?? {})))
