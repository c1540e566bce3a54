/**
 * From an event store to a broker: moves the events of the log to a publisher that acknowledges, at least once, in order.
 *
 * Units publish into a store, where an event is durable once it is committed, and a relay takes it from there to NATS, Redis, a webhook
 * or another store. So neither a unit nor its transaction ever waits for a network, and nothing is lost while the broker is away.
 *
 * **Guarantees**
 *
 * - At least once: a relay marks how far it has come only after the publisher has acknowledged all up to there. What dies with a process
 *   before its mark is sent again by the next one: one batch at most for each shard, and while an event is held up by failures, one for
 *   each attempt. The event's `id` is the key to deduplicate on.
 * - In order for each tree of executions: nothing of a tree (`root_id`) is sent before what precedes it in the log is acknowledged. What
 *   of it arrives a second time comes later, and in order too. Different trees overtake each other.
 * - One at a time: any number of processes can run a relay of one name. Each shard is one process's; the others stand by, or have the
 *   other shards. A process that stood still for longer than `lease` has lost its shards, and what it would mark then is refused.
 * - Nothing in silence: an event that the publisher refuses for good, or that fails time and again while others get through, is put
 *   aside with the reason, logged and counted, and the others go on; see `onRefused` and `maxAttempts`.
 *
 * **Gotchas**
 *
 * Events of one tree go one after the other, each in one round trip to the broker. `prune` keeps what a relay has not moved, so one that is
 * no longer run has to be forgotten, by `remove`; with `unacknowledged` it does not wait, and the relay logs and counts what it missed.
 *
 * @since 0.1.0
 */
import * as Clock from "effect/Clock"
import * as Context from "effect/Context"
import * as Duration from "effect/Duration"
import * as Effect from "effect/Effect"
import * as Exit from "effect/Exit"
import * as Fiber from "effect/Fiber"
import * as Layer from "effect/Layer"
import * as Metric from "effect/Metric"
import * as Option from "effect/Option"
import * as Result from "effect/Result"
import * as Schedule from "effect/Schedule"
import * as Schema from "effect/Schema"
import type * as Scope from "effect/Scope"
import * as Migrator from "effect/sql/Migrator"
import * as SqlClient from "effect/sql/SqlClient"
import * as SqlError from "effect/sql/SqlError"
import * as Stream from "effect/Stream"
import * as EventPublisher from "./EventPublisher.ts"
import * as EventStore from "./EventStore.ts"
import * as Brokers from "./internal/brokers.ts"
import { hashed } from "./internal/hash.ts"
import * as Metrics from "./internal/metrics.ts"
import * as ShardLeases from "./internal/shardLeases.ts"

/**
 * Settings of a relay.
 *
 * @category models
 * @since 0.1.0
 */
export interface Options<out E = never, out R = never> {
  /** Names the relay: processes that use one name share its work. */
  readonly name: string
  /** The publisher that events go to. It has to acknowledge: its policy must not be `open`. Of what else the Layer gives nothing is used. */
  readonly to: Layer.Layer<EventPublisher.EventPublisher, E, R>
  /** Where a relay that is new begins: with the oldest event there is, or with what comes from now on. Default `beginning`. */
  readonly from?: "beginning" | "new" | undefined
  /**
   * Into how many parts the work is divided, each of which is one process's at a time. Default 1: one process works, the others stand
   * by. Every holder of a shard reads the whole log. It can be changed while no process runs the relay.
   */
  readonly shards?: number | undefined
  /** How many events are read, sent and marked together at most: 1 to 1,000. Default 500. */
  readonly batch?: number | undefined
  /** How many events may be sent and not acknowledged. Default 256. */
  readonly maxInFlight?: number | undefined
  /**
   * How long a process may stand still before others take its shards. It beats three times as often. Default 15 seconds. Longer than
   * the event loop may ever stand still.
   */
  readonly lease?: Duration.Input | undefined
  /** How soon what other processes append is seen. Default 1 second. */
  readonly pollInterval?: Duration.Input | undefined
  /**
   * What becomes of an event that the publisher refuses for good, as one that is too large, and of one in the log that this program
   * cannot read. `park`, the default: it is kept in a table of its own, until `replay` or `discard`. `skip`: it stays in the log, and
   * is never sent. `wait`: nothing else is sent until it is taken after all. All of it is logged, and counted.
   */
  readonly onRefused?: "park" | "skip" | "wait" | undefined
  /**
   * How often an event may fail while events of other trees get through, before it counts as refused for good, whatever its failure says
   * of a retry. The process that holds its shard counts. Where nothing gets through, as while a broker is away, nothing is counted; with
   * `wait` neither. Default 15, which takes some 80 seconds, as the pauses grow to 10.
   */
  readonly maxAttempts?: number | undefined
  /**
   * How many events may be parked. Then the relay waits with the next one: a broker that refuses all there is, as for want of a
   * permission, should not have the log copied. Default 1,000.
   */
  readonly maxParked?: number | undefined
  /** How long closing the scope waits for the batch that is under way; what is left of it is sent again. Default 5 seconds. */
  readonly flushTimeout?: Duration.Input | undefined
}

/**
 * A shard of a relay, as it is.
 *
 * @category models
 * @since 0.1.0
 */
export interface ShardStatus {
  readonly shard: number
  /** The process that holds it; absent where none does. */
  readonly holder?: string
  /** Grows each time that a process takes the shard. */
  readonly token: number
  /** Offset up to which all of its events are moved, or put aside. */
  readonly position: number
  /** How many events it has moved in all. */
  readonly relayed: number
  /** How many it has put aside or left out in all. */
  readonly refused: number
}

/**
 * A relay, as it is.
 *
 * @category models
 * @since 0.1.0
 */
export interface Status {
  readonly name: string
  readonly shards: ReadonlyArray<ShardStatus>
  /** The processes that take part, this one among them. */
  readonly members: ReadonlyArray<string>
  /** Offset up to which every event of the log is moved, or put aside. */
  readonly position: number
  /** Offset of the newest event of the log. */
  readonly last_offset: number
  /** How many events of the log lie behind `position`. */
  readonly lag_events: number
  /** Age of the oldest one of them, by its timestamp; 0 where there is none. */
  readonly lag_seconds: number
  readonly relayed: number
  readonly refused: number
  /** How many events are parked now. */
  readonly parked: number
}

/**
 * An event that was put aside.
 *
 * @category models
 * @since 0.1.0
 */
export interface Parked {
  /** Its offset in the log, by which it goes. */
  readonly offset: number
  /** Absent where this program cannot read it. */
  readonly event?: EventPublisher.Event
  /** Why it was refused, in words. */
  readonly error: string
  /** RFC 3339, UTC, milliseconds. */
  readonly parked_at: string
}

/**
 * The publisher says that it has an event as soon as it has it in memory, so a relay to it would lose what is waiting there. A retry
 * does not help.
 *
 * @category errors
 * @since 0.1.0
 */
export class NotAcknowledging
  extends Schema.TaggedError<NotAcknowledging>("effect-units/Relay/NotAcknowledging")("NotAcknowledging", {
    policy: Schema.String
  })
{
  readonly retryable = false
  override get message(): string {
    return `its publisher does not acknowledge (policy "${this.policy}"): build that one with policy "closed"`
  }
}

/**
 * Processes that run the relay divide it into another number of shards. A retry helps once they have ended.
 *
 * @category errors
 * @since 0.1.0
 */
export class ShardsDiffer extends Schema.TaggedError<ShardsDiffer>("effect-units/Relay/ShardsDiffer")("ShardsDiffer", {
  found: Schema.Int,
  wanted: Schema.Int
}) {
  readonly retryable = true
  override get message(): string {
    return `it runs with ${this.found} shards, the options say ${this.wanted}: give all processes the same number, ` +
      "or end all of them before it is changed"
  }
}

/**
 * A relay could not be built; `reason` says why.
 *
 * @category errors
 * @since 0.1.0
 */
export class RelayError extends Schema.TaggedError<RelayError>("effect-units/Relay/RelayError")("RelayError", {
  relay: Schema.String,
  reason: Schema.Union([NotAcknowledging, ShardsDiffer])
}) {
  override readonly cause = this.reason
  override get message(): string {
    return `Relay "${this.relay}": ${this.reason.message}`
  }
  /** Whether building it again can succeed later. */
  get retryable(): boolean {
    return this.reason.retryable
  }
}

/**
 * A relay at work, as an operator sees it.
 *
 * @category models
 * @since 0.1.0
 */
export interface Running {
  readonly status: Effect.Effect<Status, EventStore.EventStoreError>
  /** What was put aside, oldest first, after an offset; at most `limit` (default 100, at most 1,000). */
  readonly parked: (options?: {
    readonly after?: number | undefined
    readonly limit?: number | undefined
  }) => Effect.Effect<ReadonlyArray<Parked>, EventStore.EventStoreError>
  /**
   * Sends a parked event, and forgets it once the publisher has it; `false` where none is parked at this offset. It comes behind
   * what was sent meanwhile, later events of its own tree among them: order holds for what was never parked.
   *
   * It is sent as it is in the log. To send another one in its place, publish that with an `id` of its own to the publisher, or append
   * it to the store, and `discard` this one.
   */
  readonly replay: (
    offset: number
  ) => Effect.Effect<boolean, EventPublisher.PublishError | EventStore.EventStoreError>
  /** Forgets a parked event; `false` where none is parked at this offset. */
  readonly discard: (offset: number) => Effect.Effect<boolean, EventStore.EventStoreError>
}

/**
 * The service.
 *
 * @category services
 * @since 0.1.0
 */
export class Relay extends Context.Service<Relay, Running>()("effect-units/Relay") {}

// Integer columns come as numbers from SQLite and as bigints from PostgreSQL.
type Integer = number | bigint

const migrate = Migrator.make({})({
  table: "effect_units_relay_migrations",
  loader: Migrator.fromRecord({
    "1_tables": Effect.flatMap(SqlClient.SqlClient, (sql) =>
      Effect.forEach(
        [
          ...ShardLeases.tables,
          `CREATE TABLE effect_units_relay_parked (
            relay TEXT NOT NULL,
            event_offset BIGINT NOT NULL,
            error TEXT NOT NULL,
            parked_at BIGINT NOT NULL,
            body TEXT NOT NULL,
            PRIMARY KEY (relay, event_offset)
          )`
        ],
        (text) => sql.unsafe(text).unprepared,
        { discard: true }
      ))
  })
})

const prepareTables = Effect.fnUntraced(
  function*(sql: SqlClient.SqlClient) {
    yield* Effect.provideService(migrate, SqlClient.SqlClient, sql)
  },
  Effect.mapError((error) =>
    error instanceof Migrator.MigrationError
      ? error.cause instanceof SqlError.SqlError
        ? EventStore.fromSqlError(error.cause)
        : new EventStore.EventStoreError({
          reason: new EventStore.Unavailable({ detail: error.message, retryable: false, cause: error })
        })
      : EventStore.fromSqlError(error)
  )
)

/** What the place of a shard is saved under, among the checkpoints of the store. */
const consumerOf = (relay: string, shard: number): string => `relay ${relay} ${shard}`

const positionOf = (store: EventStore.Store, name: string, shard: number) =>
  Effect.map(store.checkpoint(consumerOf(name, shard)), Option.getOrElse(() => 0))

const shardOf = (event: EventPublisher.Event, shards: number): number => Math.floor(hashed(keyOf(event)) * shards)

/** What keeps its order: a tree of executions. */
const keyOf = (event: EventPublisher.Event): string => event.root_id ?? event.correlation_id ?? ""

const removeShards = Effect.fnUntraced(function*(store: EventStore.Store, name: string) {
  const removed = yield* store.sql<{ shard: Integer }>`
    DELETE FROM effect_units_relay_shards WHERE relay = ${name} RETURNING shard`
  yield* Effect.forEach(removed, ({ shard }) => store.removeCheckpoint(consumerOf(name, Number(shard))), {
    discard: true
  })
  return removed.length > 0
})

const failWith = (error: SqlError.SqlError): Effect.Effect<never, EventStore.EventStoreError> =>
  Effect.fail(EventStore.fromSqlError(error))

/**
 * Makes sure of the rows of a relay. Where it is divided anew, every shard begins where the last one was.
 */
const register = Effect.fnUntraced(
  function*(
    store: EventStore.Store,
    { from = "beginning", name, shards = 1 }: Pick<Options, "from" | "name" | "shards">
  ) {
    const { sql } = store
    const place = Effect.fnUntraced(function*(offset: number) {
      yield* removeShards(store, name)
      for (let shard = 0; shard < shards; shard++) {
        yield* sql`INSERT INTO effect_units_relay_shards ${
          sql.insert({ relay: name, shard, member: null, token: 0, relayed: 0, refused: 0 })
        }`
        yield* store.saveCheckpoint(consumerOf(name, shard), offset)
      }
    })
    // Written first, so that of two processes that begin at once the second one finds what the first has made.
    const [made] = yield* sql<{ shards: Integer }>`
    INSERT INTO effect_units_relays ${sql.insert({ relay: name, shards })} ON CONFLICT DO NOTHING RETURNING shards`
    if (made !== undefined) return yield* place(from === "new" ? yield* store.lastOffset : 0)
    const [row] = yield* sql<{ shards: Integer }>`
    UPDATE effect_units_relays SET shards = shards WHERE relay = ${name} RETURNING shards`
    const found = Number(row?.shards ?? shards)
    if (found === shards) return
    const members = yield* sql`SELECT member FROM effect_units_relay_members WHERE relay = ${name}`
    if (members.length > 0) {
      return yield* new RelayError({ relay: name, reason: new ShardsDiffer({ found, wanted: shards }) })
    }
    const positions = yield* Effect.forEach(
      Array.from({ length: found }, (_, shard) => shard),
      (shard) => positionOf(store, name, shard)
    )
    yield* sql`UPDATE effect_units_relays SET shards = ${shards} WHERE relay = ${name}`
    yield* place(Math.min(...positions))
  },
  (effect, store) => Effect.catchTag(store.withTransaction(effect), "SqlError", failWith)
)

/** What is read at once. */
interface Page {
  readonly entries: ReadonlyArray<EventStore.Entry>
  /** Why the only event of this page cannot be read. */
  readonly unreadable?: string
  /** How many events were pruned before this page. */
  readonly missed: number
  /** The page ends here. */
  readonly last: number
}

/** Events of one tree, which have to go one after the other. */
class Lane {
  readonly entries: Array<EventStore.Entry> = []
  /** Why the first of them was not taken when it was last sent. */
  failure: string | undefined
  /** How often it has failed while others got through. */
  attempts = 0
  /** Whether it is refused for good, and the relay waits with it. */
  isHeld = false

  /** The first one is out of the way. */
  advance(): void {
    this.entries.shift()
    this.failure = undefined
    this.attempts = 0
    this.isHeld = false
  }

  get isStuck(): boolean {
    return this.failure !== undefined
  }
}

/** How many events of a shard may be read and not out of the way, before no more are read. */
const maxWaiting = 10_000

/**
 * Makes a relay, which works until the scope closes.
 *
 * @category constructors
 * @since 0.1.0
 */
export const make = Effect.fnUntraced(function*<E, R>(
  options: Options<E, R>
): Effect.fn.Return<
  Running,
  E | RelayError | EventStore.EventStoreError,
  R | EventStore.EventStore | Scope.Scope
> {
  const { maxInFlight = 256, maxParked = 1000, name, onRefused = "park" } = options
  const shards = Math.max(1, Math.trunc(options.shards ?? 1))
  const batch = Math.min(Math.max(1, Math.trunc(options.batch ?? 500)), 1000)
  const maxAttempts = Math.max(1, Math.trunc(options.maxAttempts ?? 15))
  const store = yield* EventStore.EventStore
  const { sql } = store
  const clock = yield* Clock.Clock
  const publisher = Context.get(yield* Layer.build(options.to), EventPublisher.EventPublisher)
  if (publisher.policy === "open") {
    return yield* new RelayError({ relay: name, reason: new NotAcknowledging({ policy: publisher.policy }) })
  }
  yield* prepareTables(sql)
  yield* register(store, { ...options, shards })

  const inSql = <A, R>(effect: Effect.Effect<A, SqlError.SqlError, R>) =>
    Effect.mapError(effect, EventStore.fromSqlError)

  let failing = false
  /** Counts what failed and is tried again, and logs the first of a streak. */
  const failed = (reason: string, message: string): Effect.Effect<void> =>
    Effect.suspend(() => {
      const streak = failing
      failing = true
      return Effect.andThen(
        Metric.update(Metrics.relayFailures(name, reason), 1),
        streak ? Effect.void : Effect.logWarning(
          `The relay "${name}" waits: ${message}. It tries again; failures are counted in effect_units_relay_failures.`
        )
      )
    })

  const park = Effect.fnUntraced(function*(offset: number, error: string) {
    const [count] = yield* sql<{ parked: Integer }>`
      SELECT COUNT(*) AS parked FROM effect_units_relay_parked WHERE relay = ${name}`
    if (Number(count?.parked ?? 0) >= maxParked) return false
    // By the database, which can also copy what this program cannot read.
    yield* sql`INSERT INTO effect_units_relay_parked (relay, event_offset, error, parked_at, body)
      SELECT CAST(${name} AS TEXT), event_offset, CAST(${error.toWellFormed().replaceAll("\0", "\ufffd")} AS TEXT),
        CAST(${clock.currentTimeMillisUnsafe()} AS BIGINT), payload
      FROM effect_units_events WHERE event_offset = ${offset}
      ON CONFLICT DO NOTHING`
    return true
  })

  /** Puts an event aside that cannot be moved; `false` where the relay is to wait with it. */
  const refuse = Effect.fnUntraced(function*(offset: number, id: string, error: string) {
    if (onRefused === "wait") return false
    if (onRefused === "park" && !(yield* inSql(park(offset, error)))) return false
    const outcome = onRefused === "park" ? "parked" : "skipped"
    yield* Metric.update(Metrics.relayed(name, outcome), 1)
    yield* Effect.logWarning(`The relay "${name}" has ${outcome} the event ${id} at offset ${offset}: ${error}`)
    return true
  })

  /** Waits until there may be something after an offset. */
  const more = (after: number): Effect.Effect<void> =>
    store.tail({ after, pollInterval: options.pollInterval }).pipe(
      Stream.take(1),
      Stream.runDrain,
      // Whoever reads next finds out by itself.
      Effect.ignore
    )

  const nextPage = Effect.fnUntraced(function*(after: number): Effect.fn.Return<Page> {
    const backoff = new Brokers.Backoff(50, 10_000)
    let limit = batch
    while (true) {
      const read = yield* Effect.result(store.read({ after, limit }))
      if (Result.isSuccess(read)) {
        const last = read.success.at(-1)
        if (last !== undefined) {
          // Offsets have no holes but those that were pruned; what went before a relay began was never its to miss.
          const missed = after === 0 ? 0 : last.offset - after - read.success.length
          return { entries: read.success, last: last.offset, missed }
        }
        yield* more(after)
        continue
      }
      const { reason } = read.failure
      if (reason._tag !== "Undecodable") {
        yield* failed(reason._tag, read.failure.message)
        yield* Effect.sleep(backoff.next())
      } else if (limit === 1) {
        return { entries: [], unreadable: reason.message, last: reason.offset, missed: 0 }
      } else limit = Math.trunc(limit / 2)
    }
  })

  const work = Effect.fnUntraced(function*(lease: ShardLeases.Lease): Effect.fn.Return<void, ShardLeases.Lost> {
    const { shard } = lease
    const backoff = new Brokers.Backoff(50, 10_000)
    const lost = new ShardLeases.Lost({ shard })
    /** What is read and not out of the way; first the tree whose turn it is to be tried. */
    const lanes = new Map<string, Lane>()
    /** Whether anything got through when something was last sent. */
    let isUp = true
    let relayed = 0
    let refused = 0

    /** Puts the first event of a lane aside; `false` where the relay is to wait with it. */
    const putAside = Effect.fnUntraced(function*(lane: Lane, { event, offset }: EventStore.Entry, error: string) {
      const isDone = yield* Effect.orElseSucceed(refuse(offset, event.id, error), () => false)
      lane.isHeld = !isDone
      if (isDone) {
        refused++
        lane.advance()
      }
      return isDone
    })

    /** Sends the first event of a lane; `false` where it has to be sent again, or there is none. */
    const sendFirst = Effect.fnUntraced(function*(lane: Lane): Effect.fn.Return<boolean, ShardLeases.Lost> {
      const [entry] = lane.entries
      if (entry === undefined) return false
      if (!lease.isFresh()) return yield* lost
      const { event } = entry
      const sent = yield* Effect.result(
        Effect.catchDefect(publisher.publish(event), (cause) =>
          Effect.fail(
            new EventPublisher.PublishError({
              event_id: event.id,
              reason: new EventPublisher.Unavailable({ detail: Brokers.describe(cause), cause })
            })
          ))
      )
      if (Result.isSuccess(sent)) {
        relayed++
        lane.advance()
        return true
      }
      const { message, reason } = sent.failure
      if (reason._tag === "Rejected" && (yield* putAside(lane, entry, reason.detail))) return true
      lane.failure = message
      yield* failed(reason._tag, message)
      return false
    })

    const sendAll = Effect.fnUntraced(function*(lane: Lane) {
      let isTaken = true
      while (isTaken) isTaken = yield* sendFirst(lane)
    })

    const send = (list: ReadonlyArray<Lane>, how: (lane: Lane) => Effect.Effect<unknown, ShardLeases.Lost>) =>
      Effect.forEach(list, how, { concurrency: maxInFlight, discard: true })

    const dropEmpty = (): void => {
      for (const [key, lane] of lanes) if (lane.entries.length === 0) lanes.delete(key)
    }

    /** Whether others are to be read, as all that is read has failed. */
    const needsOthers = (): boolean => {
      if (onRefused === "wait") return false
      let waiting = 0
      for (const lane of lanes.values()) {
        if (!lane.isStuck || lane.isHeld) return false
        waiting += lane.entries.length
      }
      return waiting < maxWaiting
    }

    /** Waits before the next attempt; `false` where there is none, as the shard is to be given back. */
    const pause = Effect.suspend(() =>
      Effect.timeoutOrElse(lease.stop.await, { duration: backoff.next(), orElse: () => Effect.void })
    ).pipe(Effect.map(() => !lease.isStopping()))

    /** Adds what was read to what is to be sent; `false` where the shard is to be given back. */
    const takeIn = Effect.fnUntraced(function*({ entries, last, missed, unreadable }: Page) {
      // Nobody knows whose they were, so the first shard tells.
      if (missed > 0 && shard === 0) {
        yield* Metric.update(Metrics.relayed(name, "missed"), missed)
        yield* Effect.logWarning(
          `The relay "${name}" has missed ${missed} events before offset ${last}: they were pruned before it came to them`
        )
      }
      for (const entry of entries) {
        if (shards > 1 && shardOf(entry.event, shards) !== shard) continue
        const key = keyOf(entry.event)
        let lane = lanes.get(key)
        if (lane === undefined) lanes.set(key, lane = new Lane())
        lane.entries.push(entry)
      }
      // Nobody knows whose it is, so the first shard sees to it.
      if (unreadable === undefined || shard !== 0) return true
      const id = "that cannot be read"
      while (!(yield* Effect.orElseSucceed(refuse(last, id, unreadable), () => false))) {
        yield* failed("Undecodable", unreadable)
        if (!(yield* pause)) return false
      }
      refused++
      return true
    })

    const mark = Effect.fnUntraced(function*(position: number): Effect.fn.Return<void, ShardLeases.Lost> {
      const save = Effect.andThen(
        inSql(sql`UPDATE effect_units_relay_shards SET relayed = relayed + ${relayed}, refused = refused + ${refused}
          WHERE relay = ${name} AND shard = ${shard}`),
        store.saveCheckpoint(consumerOf(name, shard), position)
      )
      while (true) {
        const marked = yield* Effect.result(lease.fenced(save))
        if (Result.isSuccess(marked)) break
        if (marked.failure._tag === "Lost") return yield* marked.failure
        yield* failed(marked.failure.reason._tag, marked.failure.message)
        if (!lease.isFresh()) return yield* lost
        yield* Effect.sleep(backoff.next())
      }
      yield* Metric.update(Metrics.relayed(name, "relayed"), relayed)
      yield* Metric.update(Metrics.relayBatches(name), 1)
      relayed = 0
      refused = 0
    })

    let last = yield* Effect.retry(positionOf(store, name, shard), {
      schedule: Schedule.spaced("100 millis"),
      while: () => lease.isFresh() && !lease.isStopping()
    }).pipe(Effect.mapError(() => lost))
    let reading = yield* Effect.forkChild(nextPage(last))

    const turnPage = Effect.gen(function*() {
      const page = yield* Fiber.join(reading)
      last = page.last
      // While this page is sent the next one is read.
      reading = yield* Effect.forkChild(nextPage(last))
      return yield* takeIn(page)
    })

    /**
     * Tries again what has failed. While others get through, all that has failed is tried, and a page of others goes on with each attempt.
     * While nothing gets through, one event that has failed is tried, each time that of another tree, and one that has not.
     */
    const tryAgain = Effect.gen(function*() {
      const stuck = Array.from(lanes).flatMap(([key, lane]) =>
        lane.isStuck ? [{ key, lane, entry: lane.entries[0] }] : []
      )
      const free = () => Array.from(lanes.values()).filter((lane) => !lane.isStuck)
      const suspects = isUp ? stuck : stuck.slice(0, 1)
      const before = relayed
      yield* send(suspects.map(({ lane }) => lane), sendFirst)
      const between = relayed
      if (isUp) yield* send(free(), sendAll)
      else {
        if (relayed === before) yield* send(free().slice(0, 1), sendFirst)
        if (relayed > before) yield* send(Array.from(lanes.values()), sendAll)
      }
      isUp = relayed > before
      for (const { entry, key, lane } of suspects) {
        if (entry === undefined || entry !== lane.entries[0]) continue
        lanes.delete(key)
        lanes.set(key, lane)
        // Only what was sent after it shows that the publisher took something.
        if (relayed > between) lane.attempts++
        if (lane.attempts < maxAttempts) continue
        yield* putAside(lane, entry, `${lane.failure}. It failed ${lane.attempts} times while others got through`)
      }
      dropEmpty()
    })

    while (true) {
      yield* Effect.raceFirst(Fiber.await(reading), lease.stop.await)
      if (lease.isStopping()) return
      if (!lease.isFresh()) return yield* lost
      if (!(yield* turnPage)) return
      yield* send(Array.from(lanes.values()), sendAll)
      isUp = relayed > 0
      dropEmpty()
      while (lanes.size > 0) {
        if (relayed + refused > 0) {
          yield* mark(Math.min(...Array.from(lanes.values(), ({ entries: [oldest] }) => oldest?.offset ?? last)) - 1)
        }
        if (!(yield* pause)) return
        if (reading.pollUnsafe() !== undefined && needsOthers() && !(yield* turnPage)) return
        yield* tryAgain
      }
      yield* mark(last)
      failing = false
      backoff.reset()
    }
  }, (effect, { shard }) =>
    effect.pipe(
      Effect.tapError(() => Effect.logInfo(ShardLeases.lostMessage(name, shard))),
      Effect.catchDefect((defect) => Effect.logError(`The relay "${name}" stopped on shard ${shard}`, defect))
    ))

  const status = Effect.gen(function*(): Effect.fn.Return<Status, EventStore.EventStoreError> {
    const rows = yield* inSql(sql<{
      shard: Integer
      member: string | null
      token: Integer
      relayed: Integer
      refused: Integer
    }>`SELECT shard, member, token, relayed, refused FROM effect_units_relay_shards WHERE relay = ${name} ORDER BY shard`)
    const members = yield* inSql(sql<{ member: string }>`
      SELECT member FROM effect_units_relay_members WHERE relay = ${name} ORDER BY member`)
    const [parked] = yield* inSql(sql<{ parked: Integer }>`
      SELECT COUNT(*) AS parked FROM effect_units_relay_parked WHERE relay = ${name}`)
    const states = yield* Effect.forEach(
      rows,
      (row) =>
        Effect.map(positionOf(store, name, Number(row.shard)), (position): ShardStatus => ({
          shard: Number(row.shard),
          ...(row.member === null ? {} : { holder: row.member }),
          token: Number(row.token),
          position,
          relayed: Number(row.relayed),
          refused: Number(row.refused)
        }))
    )
    const last_offset = yield* store.lastOffset
    const position = Math.min(last_offset, ...states.map((state) => state.position))
    const [oldest] = position < last_offset
      ? yield* Effect.orElseSucceed(store.read({ after: position, limit: 1 }), () => [])
      : []
    const age = oldest === undefined ? 0 : clock.currentTimeMillisUnsafe() - Date.parse(oldest.event.timestamp)
    return {
      name,
      shards: states,
      members: members.map((row) => row.member),
      position,
      last_offset,
      lag_events: Math.max(0, last_offset - position),
      lag_seconds: Number.isNaN(age) ? 0 : Math.max(0, age / 1000),
      relayed: states.reduce((sum, state) => sum + state.relayed, 0),
      refused: states.reduce((sum, state) => sum + state.refused, 0),
      parked: Number(parked?.parked ?? 0)
    }
  })

  yield* ShardLeases.make(store, {
    name,
    lease: Duration.fromInputUnsafe(options.lease ?? "15 seconds"),
    patience: Duration.fromInputUnsafe(options.flushTimeout ?? "5 seconds"),
    work,
    onBeat: Effect.fnUntraced(function*(held) {
      yield* Metric.update(Metrics.relayShards(name), held)
      // Where several processes report, the one that works is the one that knows.
      const { lag_events, lag_seconds } = held === 0 ? { lag_events: 0, lag_seconds: 0 } : yield* status
      yield* Metric.update(Metrics.relayLag(name), lag_events)
      yield* Metric.update(Metrics.relayLagSeconds(name), lag_seconds)
    }, (effect) => Effect.ignore(effect))
  })

  const findParked = (offset: number) =>
    inSql(sql<{ body: string }>`
      SELECT body FROM effect_units_relay_parked WHERE relay = ${name} AND event_offset = ${offset}`)

  const discard: Running["discard"] = (offset) =>
    Effect.map(
      inSql(sql`DELETE FROM effect_units_relay_parked
        WHERE relay = ${name} AND event_offset = ${offset} RETURNING event_offset`),
      (rows) => rows.length > 0
    )

  return {
    status,
    parked: Effect.fnUntraced(function*({ after = 0, limit = 100 } = {}) {
      const rows = yield* inSql(sql<{ event_offset: Integer; error: string; parked_at: Integer; body: string }>`
        SELECT event_offset, error, parked_at, body FROM effect_units_relay_parked
        WHERE relay = ${name} AND event_offset > ${after}
        ORDER BY event_offset LIMIT ${Math.min(Math.max(1, Math.trunc(limit)), 1000)}`)
      return rows.map(({ body, error, event_offset, parked_at }): Parked => {
        const event = Brokers.fromText(body)
        return {
          offset: Number(event_offset),
          ...(Exit.isSuccess(event) ? { event: event.value } : {}),
          error,
          parked_at: new Date(Number(parked_at)).toISOString()
        }
      })
    }),
    replay: Effect.fnUntraced(function*(offset) {
      const [row] = yield* findParked(offset)
      if (row === undefined) return false
      const event = Brokers.fromText(row.body)
      if (Exit.isFailure(event)) {
        return yield* new EventStore.EventStoreError({
          reason: new EventStore.Undecodable({ offset, cause: event.cause })
        })
      }
      yield* publisher.publish(event.value)
      yield* discard(offset)
      return true
    }),
    discard
  }
})

/**
 * Forgets a relay that is no longer run, with its place and what it parked, so that `prune` waits for it no more. `false` where there is
 * none of that name. Under the same name it begins anew.
 *
 * @category constructors
 * @since 0.1.0
 */
export const remove = (name: string): Effect.Effect<boolean, EventStore.EventStoreError, EventStore.EventStore> =>
  EventStore.EventStore.use((store) => {
    const { sql } = store
    const removeAll = Effect.gen(function*() {
      for (const table of ["effect_units_relay_members", "effect_units_relay_parked", "effect_units_relays"]) {
        yield* sql`DELETE FROM ${sql(table)} WHERE relay = ${name}`
      }
      return yield* removeShards(store, name)
    })
    return Effect.andThen(
      prepareTables(sql),
      Effect.catchTag(store.withTransaction(removeAll), "SqlError", failWith)
    )
  })

/**
 * Layer of a relay that works for as long as the Layer lives.
 *
 * **Details**
 *
 * Building it builds `to`, and fails as that does; with `RelayError` where that publisher does not acknowledge, or other processes
 * divide the relay in another way; with `EventStoreError` where its tables cannot be made. From then on it does not fail: while the
 * publisher or the database is away it waits and tries again.
 *
 * A transport that does not answer counts as failed after its own `timeout`, and what it may have after all is sent again.
 *
 * **Example** (From SQLite to NATS)
 *
 * ```ts
 * const layer = Relay.layer({ name: "nats", to: Nats.layerPublisher({ policy: "closed" }) }).pipe(
 *   Layer.provideMerge(Sqlite.layer({ filename: "events.db" }))
 * )
 * ```
 *
 * @category layers
 * @since 0.1.0
 */
export const layer = <E = never, R = never>(
  options: Options<E, R>
): Layer.Layer<Relay, E | RelayError | EventStore.EventStoreError, R | EventStore.EventStore> =>
  Layer.effect(Relay, make(options))
