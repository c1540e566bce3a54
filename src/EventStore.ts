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
import * as Cause from "effect/Cause"
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
import * as Stream from "effect/Stream"
import * as Sqlite from "./backends/Sqlite.ts"
import type { ConsumerGroups } from "./ConsumerGroups.ts"
import * as DomainEvent from "./DomainEvent.ts"
import type { Event } from "./EventPublisher.ts"
import { EventSubscriber } from "./EventSubscriber.ts"
import * as ExecutionEvent from "./ExecutionEvent.ts"
import { describe, inRealTime, monotonicMillis } from "./internal/brokers.ts"
import * as Closing from "./internal/closing.ts"
import * as Log from "./internal/eventLog.ts"
import * as Rows from "./internal/eventRows.ts"
import * as Migrations from "./internal/eventStoreMigrations.ts"
import * as ExecutionRecords from "./internal/executionRecords.ts"
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
 * The file, or the tables, may be read and not written. A retry does not help. A PostgreSQL server that is read-only as a whole, as after
 * a failover, is `Unavailable` and counts as one that comes back.
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
 * The log ends before the offset after which it was to be followed: the offset is of another database, or this one was restored from an
 * older copy. A retry does not help; decide where to go on.
 *
 * @category errors
 * @since 0.1.0
 */
export class BeyondEnd extends Schema.TaggedError<BeyondEnd>("effect-units/EventStore/BeyondEnd")("BeyondEnd", {
  after: Schema.Int,
  last_offset: Schema.Int
}) {
  readonly retryable = false
  override get message(): string {
    return `there is nothing after offset ${this.after}, as the log ends at ${this.last_offset}: it is another one, or was restored from ` +
      "an older copy; choose an offset of it to go on after"
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
  { reason: Schema.Union([Full, Busy, ReadOnly, NotADatabase, NewerVersion, Undecodable, BeyondEnd, Unavailable]) }
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
   * An event whose id the log has is not stored again, until `prune` deletes it, and an execution that has ended takes no second terminal event, so a
   * retry is safe. On PostgreSQL an event whose JSON has more than 8 MiB is stored with `{ $truncated, bytes, sha256 }` in place of what
   * it carries: its input, output, error or payload. In a transaction there terminal events are looked up at once, and what else the log has is left out once it
   * is placed. `owned` says that this process runs the executions: should it die, they are closed as abandoned. Publishers of this
   * process set it, relays of foreign events do not.
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
   * Where the log ends before that offset, as after a restore from an older copy, it fails with the reason `BeyondEnd`.
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

  /** Forgets how far a consumer has come, so that `prune` waits for it no more. Does nothing where the name is not known. */
  readonly removeCheckpoint: (consumer: string) => Effect.Effect<void, EventStoreError>

  /**
   * What transactions hold back, to raise an alarm when one stays open. The gauges `effect_units_event_store_pending_events` and
   * `effect_units_event_store_transaction_seconds` have it, too, as it was on the last round.
   */
  readonly pending: Effect.Effect<Pending, EventStoreError>

  /**
   * Runs an effect in a transaction of the store's client, or in the one around it as a savepoint.
   *
   * **Details**
   *
   * Where events were appended in a transaction of PostgreSQL and its connection is lost in the commit, the server is asked what became of
   * it, for at most 5 seconds: what was committed succeeds. A commit that the server still works on after 2 of them is ended. If it cannot
   * be found out, the transaction fails with `retryable: false`, as it may be done, and this store appends nothing more until it is known.
   */
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

const doubt = {
  detail: "the connection was lost in a commit, and the server has yet to say whether that was done",
  retryable: false,
  cause: undefined
}

// Milliseconds within which the server has to say what became of a commit on which the connection was lost, and after which it is not to
// work on it any more.
const longestDoubt = 5000
const longestCommit = 2000
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
      default:
        return new Unavailable({ detail: detailOf(error), retryable: error.isRetryable || passes(state), cause })
    }
  }
  return new EventStoreError({ reason: reason() })
}

/** PostgreSQL's code of five characters; see https://www.postgresql.org/docs/current/errcodes-appendix.html. */
const sqlState = ({ reason: { cause } }: SqlError.SqlError): string | undefined =>
  Predicate.hasProperty(cause, "code") && typeof cause.code === "string" ? cause.code : undefined

/**
 * Whether a server that says so can take the same statement later: short of something, shutting down, starting, or tired of waiting; not
 * the primary for now; or unable to know users, as while a password changes.
 */
const passes = (state: string | undefined): boolean =>
  state !== undefined && (/^(08|28|53|57P)/.test(state) || state === "25P03" || state === "25006")

/** Some drivers say what failed in the cause only. */
const detailOf = (error: SqlError.SqlError): string => {
  const { cause } = error.reason
  return cause instanceof Error && cause.message !== "" && !error.message.includes(cause.message)
    ? `${error.message}: ${cause.message}`
    : error.message
}

/** Whether what failed may go well when it is tried again. */
const mayPass = (cause: Cause.Cause<SqlError.SqlError>): boolean =>
  Cause.hasInterrupts(cause) ||
  Option.exists(Cause.findErrorOption(cause), (error) => fromSqlError(error).retryable)

const explain = (cause: Cause.Cause<SqlError.SqlError>): string => {
  const reason = Cause.squash(cause)
  return SqlError.isSqlError(reason) ? detailOf(reason) : describe(reason)
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

const toEntries = (rows: ReadonlyArray<Log.PayloadRow>): Effect.Effect<ReadonlyArray<Entry>, EventStoreError> => {
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

/** Wakes tails for what other processes commit, for as long as it runs. */
const follow = (
  notifications: (channel: string) => Stream.Stream<unknown, unknown>,
  sql: SqlClient.SqlClient,
  wake: Effect.Effect<void>
): Effect.Effect<never> =>
  Effect.flatMap(
    sql<{ name: string }>`SELECT ${sql.literal(Log.channel)} AS name`,
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
  readonly beat: Log.Integer
  readonly lease_ms: Log.Integer
}

/** The beat of an owner whose store was closed. */
const ended = 0

const abandonedMessage = "The process that ran this execution ended before the execution did"

interface AbandonedRow extends Rows.Identity {
  readonly started_at: Log.Integer
  readonly payload: string | null
}

/** Ends an execution at `now` (milliseconds), in the words of its started event. */
const abandoned = (row: AbandonedRow, now: number, source: string, sequence: number): ExecutionEvent.ExecutionEvent => {
  const started = row.payload === null ? undefined : Option.getOrUndefined(Exit.getSuccess(decode(row.payload)))
  const known = started !== undefined && ExecutionEvent.isExecutionEvent(started) ? started : undefined
  const durationMs = Math.max(0, now - Number(row.started_at))
  const identity = ExecutionRecords.identityOf(row)
  return {
    event_type: "execution_failed",
    ...identity,
    id: `${identity.correlation_id}:failed`,
    timestamp: ExecutionRecords.rfc3339(now),
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
    parked: (options = {}) => wrap(groups.listParked(options, ExecutionRecords.bounded(options.limit))),
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
    const countStaged = Effect.sync(() => {
      staged++
      Queue.offerUnsafe(toPlace, undefined)
    })
    const log = Log.make({ sql, wake, staged: countStaged, mayPass, explain })
    const placing = yield* Semaphore.make(1)

    /** Gives what was staged and is committed its place, whichever process it is from. */
    const placeStaged = placing.withPermit(Effect.gen(function*() {
      const upTo = staged
      while (true) {
        const now = clock.currentTimeMillisUnsafe()
        const count = yield* Effect.catchCause(
          log.transact(log.placeStaged(now, Log.batchSize)),
          (cause) => mayPass(cause) ? Effect.failCause(cause) : log.transact(log.placeStagedSingly(now, Log.batchSize))
        )
        if (count < Log.batchSize) break
        yield* Effect.yieldNow
      }
      placed = upTo
    }))

    /** Before a read, and before what happened later is appended: what this process has committed is in the log. */
    const settled = Effect.contextWith((context: Context.Context<never>) =>
      placed < staged && !log.inTransaction(context) ? placeStaged : Effect.void
    )
    // Transactions that were lost in their commit, of which it is not known yet what became of them.
    const inDoubt = new Set<string>()

    /** What became of a transaction that was lost in its commit; whether it was committed, if that can be found out in time. */
    const outcomeOf = Effect.fnUntraced(function*(xact: string) {
      const began = monotonicMillis()
      while (true) {
        const status = yield* Effect.catch(log.statusOf(xact), () => Effect.undefined)
        if (status === "committed") return true
        if (status === "aborted") return false
        if (status === "in progress" && monotonicMillis() - began > longestCommit) {
          yield* Effect.ignore(log.endTransaction(xact))
        }
        yield* Effect.sleep("50 millis")
      }
    }, (outcome) => inRealTime(Effect.timeoutOption(Effect.interruptible(outcome), longestDoubt)))

    /** What a transaction whose commit failed comes to: `result` where it was committed all the same. */
    const afterLostCommit = <A, E>(
      xact: string,
      result: Effect.Effect<A>,
      failed: Effect.Effect<A, E>
    ): Effect.Effect<A, E | EventStoreError> =>
      Effect.flatMap(outcomeOf(xact), (committed): Effect.Effect<A, E | EventStoreError> => {
        if (Option.isSome(committed)) return committed.value ? Effect.andThen(countStaged, result) : failed
        inDoubt.add(xact)
        return Effect.fail(new EventStoreError({ reason: new Unavailable(doubt) }))
      })

    /**
     * Before events are appended, of which one may be the end of a unit that failed in its commit: whether it did is known, and what it
     * staged is in the log.
     */
    const decide = Effect.forEach(inDoubt, (xact) =>
      Effect.flatMap(wrap(log.statusOf(xact)), (status) => {
        if (status === "in progress") {
          return Effect.fail(new EventStoreError({ reason: new Unavailable({ ...doubt, retryable: true }) }))
        }
        inDoubt.delete(xact)
        return status === "committed" ? countStaged : Effect.void
      }), { discard: true })
    const decided = Effect.contextWith((context: Context.Context<never>) =>
      inDoubt.size > 0 && !log.inTransaction(context) ? decide : Effect.void
    )

    /** What is staged by a process that died before it could place it, or is about to; and whether there was any. */
    const placeAnyStaged = log.isPostgres
      ? Effect.flatMap(log.isStaged, (found) => found ? Effect.as(placeStaged, true) : Effect.succeed(false))
      : Effect.succeed(false)
    const reading = <A>(self: Effect.Effect<A, SqlError.SqlError>): Effect.Effect<A, EventStoreError> =>
      wrap(log.isPostgres ? Effect.andThen(settled, self) : self)
    const executions = ExecutionRecords.make(sql)

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
        const owner = appendOptions?.owned === true ? instance : null
        const appending = Effect.andThen(settled, log.append(events, now, owner))
        // On PostgreSQL a process is an owner from the start, as here the row would be locked until the end of a transaction.
        return Effect.andThen(
          decided,
          wrap(owner === null || isOwner ? appending : sql.withTransaction(Effect.andThen(own, appending)))
        )
      })

    const transaction: Store["withTransaction"] = <A, E, R>(self: Effect.Effect<A, E, R>) =>
      Effect.uninterruptibleMask((restore) => {
        const staging: { xact: string | undefined } = { xact: undefined }
        let result: Exit.Exit<A> | undefined
        // The effect's own failures are told from those of BEGIN and COMMIT, whatever they are.
        const inner = self.pipe(
          Effect.mapError((error) => new Inner(error)),
          Effect.tap((value) =>
            Effect.sync(() => {
              result = Exit.succeed(value)
            })
          )
        )
        const outer = Effect.contextWith((context: Context.Context<R>) =>
          withTransaction(sql.withTransaction)(
            log.inTransaction(context) ? inner : Effect.provideService(inner, log.Staging, staging)
          )
        )
        return Effect.flatMap(Effect.exit(restore(outer)), (exit) => {
          const failed = Effect.mapError(exit, (error) => error instanceof Inner ? error.error : fromSqlError(error))
          return Exit.isSuccess(exit) || result === undefined || staging.xact === undefined
            ? failed
            : afterLostCommit(staging.xact, result, failed)
        })
      })

    const read: Store["read"] = Effect.fnUntraced(function*(readOptions = {}) {
      const { filter } = readOptions
      const limit = ExecutionRecords.bounded(readOptions.limit)
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

    const unlessBeyond = (after: number): Effect.Effect<void, EventStoreError> =>
      Effect.flatMap(wrap(log.lastOffset), (last_offset) =>
        after > last_offset
          ? Effect.fail(new EventStoreError({ reason: new BeyondEnd({ after, last_offset }) }))
          : Effect.void)

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
          Effect.flatMap(wrap(log.scan(after, Log.batchSize, tailOptions.filter)), ({ next, rows }) => {
            if (next === undefined) return Effect.andThen(unlessBeyond(after), Effect.andThen(waitForMore, pull))
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
      const rows = yield* wrap(log.ofExecution(correlationId, 0, ExecutionRecords.maxLimit, undefined))
      const children = yield* wrap(executions.list({ parentId: correlationId, limit: ExecutionRecords.maxLimit }))
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
      encode: (event) => Rows.payload(event, log.largest),
      filter: (wanted) => Log.filterConditions(sql, wanted)
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
      start: (from) => StoreSubscriber.start({ read, lastOffset: reading(lastOffset) }, from, reading(groups.beginning))
    })
    const appended = yield* PubSub.subscribe(wakeups)
    yield* Effect.forkScoped(Effect.forever(Effect.andThen(PubSub.take(appended), Effect.sync(members.tellAll))))

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

    /** Closes some, in the transaction around it, and succeeds with their number and whether there may be more. */
    const closeBatch = Effect.gen(function*() {
      const owners = yield* Effect.flatMap(goneOwners, log.withoutTransaction)
      if (owners.length === 0) return { stored: 0, more: false }
      if (log.isPostgres) {
        // What they committed before they died counts. Others wait for this transaction: it places a batch, and the next one looks again.
        const placed = yield* log.placeStaged(clock.currentTimeMillisUnsafe(), Log.batchSize)
        if (placed === Log.batchSize) return { stored: 0, more: true }
      }
      const rows = yield* sql<AbandonedRow>`
        SELECT running.*, event.payload FROM effect_units_running AS running
        LEFT JOIN effect_units_events AS event ON event.event_offset = running.started_offset
        WHERE ${Log.among(sql, "owner", owners)} ORDER BY running.started_offset LIMIT ${Log.batchSize}`
      if (rows.length === 0) {
        yield* sql`DELETE FROM effect_units_owners WHERE ${Log.among(sql, "owner", owners)}`
        return { stored: 0, more: false }
      }
      const now = clock.currentTimeMillisUnsafe()
      const events = rows.map((row, index) => abandoned(row, now, instance, sequence + index + 1))
      const { stored } = yield* log.appendLocked(events, now, null)
      yield* sql.afterCommit(Effect.sync(() => {
        sequence += stored
      }))
      return { stored, more: true }
    })

    const closeAbandoned: Store["closeAbandoned"] = wrap(Effect.gen(function*() {
      // Looked up first outside of a transaction, which takes the lock: mostly there is nothing to do.
      if (log.isPostgres && (yield* log.isStaged)) yield* placeStaged
      if ((yield* goneOwners).length === 0) return 0
      let closed = 0
      while (true) {
        const { more, stored } = yield* log.transact(closeBatch)
        closed += stored
        if (!more) return closed
        yield* Effect.yieldNow
      }
    }))

    // What still runs at the end of the scope ends with it, and whoever opens the database next says so.
    yield* Effect.addFinalizer(() =>
      Effect.suspend(() =>
        isOwner
          ? Closing.attempt(sql`UPDATE effect_units_owners SET beat = ${ended} WHERE owner = ${instance}`)
          : Effect.void
      )
    )
    if (log.isPostgres) yield* wrap(own)
    yield* closeAbandoned
    if (log.isPostgres) {
      yield* Queue.take(toPlace).pipe(
        Effect.andThen(wrap(settled)),
        // Whoever looks next places it, in this process or another.
        Effect.catchCause((cause) => Effect.logWarning("Committed events wait for their place in the log", cause)),
        Effect.forever,
        Closing.forkScoped
      )
      if (options.notifications !== undefined) yield* Closing.forkScoped(follow(options.notifications, sql, wake))
    }
    const observe = Effect.flatMap(wrap(log.pending), ({ events, open_ms }) =>
      Effect.andThen(
        Metric.update(Metrics.pendingEvents, events),
        Metric.update(Metrics.openTransaction, open_ms / 1000)
      ))
    yield* Effect.suspend(() => isOwner ? Effect.asVoid(wrap(renew)) : Effect.void).pipe(
      Effect.andThen(closeAbandoned),
      Effect.andThen(log.isPostgres ? observe : Effect.void),
      Effect.catchCause((cause) => Effect.logWarning("The event store could not look after its lease", cause)),
      Effect.delay(lease / 3),
      Effect.forever,
      Closing.forkScoped
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
          sql<{ last_offset: Log.Integer }>`
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
      withTransaction: transaction,
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
      Effect.catchCause((cause) => Effect.logWarning("The event store could not delete old events", cause)),
      Effect.andThen(Effect.sleep(options.every ?? "1 hour")),
      Effect.forever,
      Closing.forkScoped
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
