/**
 * Groups of subscribers in the tables of an event store: claiming, acknowledging, giving back and parking, each under the lock of the
 * group's row; and what is done with parked events.
 *
 * @since 0.1.0
 */
import type * as Clock from "effect/Clock"
import * as Effect from "effect/Effect"
import * as Exit from "effect/Exit"
import type * as SqlClient from "effect/sql/SqlClient"
import type * as SqlError from "effect/sql/SqlError"
import type * as Statement from "effect/sql/Statement"
import {
  type Group,
  GroupNotFound,
  NotParked,
  OtherEvent,
  type ParkedEvent,
  type ParkedFilter,
  type ParkedOptions
} from "../ConsumerGroups.ts"
import type { Event } from "../EventPublisher.ts"
import { isExecutionEvent } from "../ExecutionEvent.ts"
import * as Rows from "./eventRows.ts"
import type { FailureText } from "./failureText.ts"
import { planned } from "./planned.ts"

/**
 * What groups need of the store around them.
 *
 * @internal
 */
export interface Surroundings {
  readonly sql: SqlClient.SqlClient
  readonly clock: Clock.Clock
  /** A transaction whose statements see what was committed before they got a lock. */
  readonly transact: <A, E, R>(self: Effect.Effect<A, E, R>) => Effect.Effect<A, E | SqlError.SqlError, R>
  readonly lastOffset: Effect.Effect<number, SqlError.SqlError>
  readonly decode: (payload: string) => Exit.Exit<Event, unknown>
  /** The text that `decode` reads. */
  readonly encode: (event: Event) => string
  readonly filter: (wanted: Wanted) => ReadonlyArray<Statement.Fragment>
}

/**
 * The events that a group asks for.
 *
 * @internal
 */
export interface Wanted {
  readonly types?: ReadonlyArray<string> | undefined
  readonly domains?: ReadonlyArray<string> | undefined
  readonly units?: ReadonlyArray<string> | undefined
}

/**
 * A member of a group, as its claims name it.
 *
 * @internal
 */
export interface Member {
  readonly consumer: string
  /** A new one for each subscription: it is what fences acknowledgements. */
  readonly id: string
  readonly wanted: Wanted
  readonly ackTimeout: number
  readonly maxAttempts: number
}

/**
 * What a member says of an event that it was handed.
 *
 * @internal
 */
export type Settlement =
  | { readonly _tag: "Ack"; readonly offset: number }
  | { readonly _tag: "Retry"; readonly offset: number; readonly dueAt: number; readonly failure: FailureText }
  | { readonly _tag: "Park"; readonly offset: number; readonly event: Event; readonly failure: FailureText }

/** @internal */
export interface Claimed {
  readonly offset: number
  readonly event: Event
  readonly attempt: number
  readonly missed: number
  /** It was with a member that let its lease run out. */
  readonly expired: boolean
}

/**
 * What one transaction of a member did.
 *
 * @internal
 */
export type Turned =
  | { readonly _tag: "Removed" }
  | { readonly _tag: "OtherFilter" }
  | {
    readonly _tag: "Turned"
    /** Offsets of those settlements that counted; of the others the lease was lost. */
    readonly settled: ReadonlySet<number>
    readonly claimed: ReadonlyArray<Claimed>
    /** Whether other events may have become due, for this member or others. */
    readonly released: boolean
    /** Whether a further claim may find more at once. */
    readonly more: boolean
    /** The group has as many open events as it may, so that only those that are due can be claimed. */
    readonly full: boolean
    /** How many events the log has after the position of the group, where it was asked for events. */
    readonly lag: number | undefined
    /** How many events are parked in the group, and how many of them this transaction parked. */
    readonly parked: number
    readonly newlyParked: number
  }

// Integer columns come as numbers from SQLite and as bigints from PostgreSQL.
type Integer = number | bigint

/** How many events of a group may be with members or wait for another attempt. */
const maxOpen = 10_000
const scanSize = 1000
/** How many scans of the log one transaction does, where it finds nothing to hand out. */
const maxScans = 4
const batchSize = 500

/** Where it has no meaning, it is the same for all. */
const listed = (values: ReadonlyArray<string> | undefined): ReadonlyArray<string> | null =>
  values === undefined ? null : Array.from(new Set(values)).sort()

/**
 * The filter of a group as it is stored: the same text for the same filter.
 *
 * @internal
 */
export const wantedText = ({ domains, types, units }: Wanted): string =>
  JSON.stringify([listed(types), listed(domains), listed(units)])

const unseen: FailureText = {
  message: "It was not acknowledged in time: its handler took too long, or its process ended",
  cause: ""
}

/**
 * The id of a parked event.
 *
 * @internal
 */
export const parkedId = (consumer: string, offset: number): string => `${offset}:${consumer}`

const placeOf = (id: string): { readonly consumer: string; readonly offset: number } | undefined => {
  const [, offset, consumer] = /^(\d{1,15}):(.*)$/s.exec(id) ?? []
  return offset === undefined || consumer === undefined ? undefined : { consumer, offset: Number(offset) }
}

interface DeliveryRow {
  readonly event_offset: number
  readonly execution: string | null
  readonly attempts: number
  readonly due_at: number | null
  readonly member: string | null
}

interface ParkedRow {
  readonly consumer: string
  readonly event_offset: Integer
  readonly attempts: Integer
  readonly parked_at: Integer
  readonly error: string
  readonly cause: string
  readonly edited: string | null
  readonly payload: string | null
}

type Run = <A>(statement: Statement.Statement<A>) => Effect.Effect<ReadonlyArray<A>, SqlError.SqlError>

/** @internal */
export const make = (surroundings: Surroundings) => {
  const { clock, decode, encode, filter, lastOffset, sql, transact } = surroundings
  const isPostgres = sql.onDialectOrElse({ pg: () => true, orElse: () => false })

  /** A condition whose text is the same for any number of values. */
  const among = (column: string, values: ReadonlyArray<string> | ReadonlyArray<number>): Statement.Fragment =>
    isPostgres
      ? sql`${sql(column)} = ANY(${values})`
      : sql`${sql(column)} IN (SELECT value FROM json_each(${JSON.stringify(values)}))`

  /** For what is looked up among deliveries, but for transactions that have `byIndex`. */
  const fresh: Run = (statement) => planned(sql, statement)
  const prepared: Run = (statement) => statement

  // How many deliveries a group has no planner can tell: they come and go. By a guess that is too low PostgreSQL goes through all of them,
  // with those that were handled since the last vacuum, to find a few. Looked up one by one, they are found by their index.
  const foundBy = (type: "bigint" | "text", values: unknown, lookup: Statement.Fragment): Statement.Fragment =>
    sql`ctid = ANY(ARRAY(
      SELECT found.ctid FROM unnest(${values}::${sql.literal(type)}[]) AS given (value)
        CROSS JOIN LATERAL (${lookup} LIMIT 1) AS found))`

  /** The deliveries of some events. */
  const at = (consumer: string, offsets: ReadonlyArray<number>): Statement.Fragment =>
    isPostgres
      ? foundBy(
        "bigint",
        `{${offsets.join()}}`,
        sql`SELECT ctid FROM effect_units_deliveries WHERE consumer = ${consumer} AND event_offset = given.value`
      )
      : sql`consumer = ${consumer} AND ${among("event_offset", offsets)}`

  /** The first delivery of each of some executions. */
  const firstOf = (consumer: string, executions: ReadonlyArray<string>): Statement.Fragment =>
    isPostgres
      ? foundBy(
        "text",
        executions,
        sql`SELECT ctid FROM effect_units_deliveries WHERE consumer = ${consumer} AND execution = given.value ORDER BY event_offset`
      )
      : sql`consumer = ${consumer} AND event_offset IN (
        SELECT MIN(event_offset) FROM effect_units_deliveries
        WHERE consumer = ${consumer} AND ${among("execution", executions)} GROUP BY execution)`

  // SQLite has the lock from BEGIN IMMEDIATE.
  const forUpdate = sql.literal(isPostgres ? "FOR UPDATE" : "")

  const plain = sql.literal("")
  // Statements that are prepared go by their indices, whatever the server believes of tables that fill and empty all the time.
  const byIndex = sql.literal(
    isPostgres
      ? ", set_config('enable_seqscan', 'off', true), set_config('plan_cache_mode', 'force_generic_plan', true)"
      : ""
  )

  /** Locks a group until the end of the transaction. `byIndex` goes for all of its statements: for no transaction of the application. */
  const lock = (consumer: string, settings = plain) =>
    Effect.map(
      sql<{ last_offset: Integer; parked: Integer; wanted: string }>`
        SELECT last_offset, parked, wanted ${settings} FROM effect_units_groups WHERE consumer = ${consumer} ${forUpdate}`,
      ([row]) => row && { position: Number(row.last_offset), parked: Number(row.parked), wanted: row.wanted }
    )

  const insert = (consumer: string, rows: ReadonlyArray<DeliveryRow>) => {
    if (rows.length === 0) return Effect.void
    const list = JSON.stringify(
      rows.map((row) => [row.event_offset, row.execution, row.attempts, row.due_at, row.member])
    )
    const each = isPostgres
      ? sql`json_array_elements(${list}::json) AS each (value)`
      : sql`json_each(${list})`
    return Effect.asVoid(sql`
      INSERT INTO effect_units_deliveries (consumer, event_offset, execution, attempts, due_at, member)
      SELECT CAST(${consumer} AS TEXT), CAST(value ->> 0 AS BIGINT), value ->> 1, CAST(value ->> 2 AS BIGINT),
        CAST(value ->> 3 AS BIGINT), value ->> 4 FROM ${each}`)
  }

  /** Makes due what waits behind events that are out of the way now. */
  const release = (run: Run, consumer: string, executions: ReadonlyArray<string | null>) => {
    const keys = executions.filter((execution) => execution !== null)
    return keys.length === 0 ? Effect.succeed(false) : Effect.map(
      run(sql`UPDATE effect_units_deliveries SET due_at = 0
        WHERE due_at IS NULL AND parked_at IS NULL AND ${firstOf(consumer, keys)} RETURNING event_offset`),
      (rows) => rows.length > 0
    )
  }

  const remove = Effect.fnUntraced(function*(
    run: Run,
    consumer: string,
    offsets: ReadonlyArray<number>,
    conditions: ReadonlyArray<Statement.Fragment>
  ) {
    const rows = yield* run(sql<{ event_offset: Integer; execution: string | null }>`
      DELETE FROM effect_units_deliveries WHERE ${sql.and([at(consumer, offsets), ...conditions])}
      RETURNING event_offset, execution`)
    const released = yield* release(run, consumer, rows.map(({ execution }) => execution))
    return { offsets: rows.map(({ event_offset }) => Number(event_offset)), released }
  })

  const failed = ({ cause, message }: FailureText) => ({ error: message, cause })

  const parked = (failure: FailureText, event: Event | undefined, now: number) => ({
    ...failed(failure),
    parked_at: now,
    due_at: null,
    member: null,
    type: event === undefined ? null : Rows.text(isExecutionEvent(event) ? event.event_type : event.type),
    domain: event === undefined ? null : Rows.text(event.domain),
    unit_name: event?.unit_name === undefined ? null : Rows.text(event.unit_name)
  })

  const setParked = (count: number, consumer: string) =>
    count === 0
      ? Effect.void
      : sql`UPDATE effect_units_groups SET parked = parked + ${count} WHERE consumer = ${consumer}`

  const settle = Effect.fnUntraced(function*(
    member: Pick<Member, "consumer" | "id">,
    settlements: ReadonlyArray<Settlement>,
    now: number
  ) {
    const { consumer, id } = member
    const acks = settlements.flatMap((one) => one._tag === "Ack" ? [one.offset] : [])
    const acked = acks.length === 0
      ? { offsets: [], released: false }
      : yield* remove(prepared, consumer, acks, [sql`member = ${id}`])
    const settled = new Set<number>(acked.offsets)
    let newlyParked = 0
    for (const settlement of settlements) {
      if (settlement._tag === "Ack") continue
      const { offset } = settlement
      const change = settlement._tag === "Retry"
        ? { ...failed(settlement.failure), due_at: settlement.dueAt, member: null }
        : parked(settlement.failure, settlement.event, now)
      const rows = yield* sql`UPDATE effect_units_deliveries SET ${sql.update(change)}
        WHERE consumer = ${consumer} AND event_offset = ${offset} AND member = ${id} RETURNING event_offset`
      if (rows.length === 0) continue
      settled.add(offset)
      if (settlement._tag === "Park") newlyParked++
    }
    return { settled, released: acked.released, newlyParked }
  })

  const undecodable = (offset: number, cause: unknown): FailureText => ({
    message: `The event at offset ${offset} cannot be decoded: update effect-units, or edit it`,
    cause: String(cause)
  })

  /** What is due: given back and waited, given up by a member that left, or with a member that let its lease run out. */
  const claimDue = Effect.fnUntraced(function*(member: Member, room: number, now: number) {
    const { consumer } = member
    const rows = yield* sql<{
      event_offset: Integer
      execution: string | null
      attempts: Integer
      member: string | null
      error: string | null
      cause: string | null
      payload: string | null
    }>`
      SELECT delivery.event_offset, delivery.execution, delivery.attempts, delivery.member, delivery.error, delivery.cause,
        COALESCE(delivery.edited, event.payload) AS payload
      FROM effect_units_deliveries AS delivery
      LEFT JOIN effect_units_events AS event ON event.event_offset = delivery.event_offset
      WHERE delivery.consumer = ${consumer} AND delivery.due_at <= ${now}
      ORDER BY delivery.due_at, delivery.event_offset LIMIT ${room}`
    const claimed: Array<Claimed> = []
    const gone: Array<number> = []
    let newlyParked = 0
    for (const row of rows) {
      const offset = Number(row.event_offset)
      const attempts = Number(row.attempts)
      if (row.payload === null) {
        gone.push(offset)
        continue
      }
      const decoded = decode(row.payload)
      const expired = row.member !== null
      if (Exit.isFailure(decoded) || (expired && attempts >= member.maxAttempts)) {
        const failure = Exit.isFailure(decoded)
          ? undecodable(offset, decoded.cause)
          : row.error === null
          ? unseen
          : { message: row.error, cause: row.cause ?? "" }
        yield* sql`UPDATE effect_units_deliveries
          SET ${sql.update(parked(failure, Exit.isSuccess(decoded) ? decoded.value : undefined, now))}
          WHERE consumer = ${consumer} AND event_offset = ${offset}`
        newlyParked++
        continue
      }
      claimed.push({ offset, event: decoded.value, attempt: attempts + 1, missed: 0, expired })
    }
    // Its event was pruned by somebody who was told to.
    const removed = gone.length === 0
      ? { released: false }
      : yield* remove(prepared, consumer, gone, [])
    if (claimed.length > 0) {
      yield* sql`UPDATE effect_units_deliveries
        SET attempts = attempts + 1, due_at = ${now + member.ackTimeout}, member = ${member.id}
        WHERE ${at(consumer, claimed.map(({ offset }) => offset))}`
    }
    claimed.sort((one, other) => one.offset - other.offset)
    return { claimed, newlyParked, released: removed.released, more: rows.length === room }
  })

  /** Which of some executions have an event that is not handled. */
  const unfinished = (consumer: string, executions: ReadonlyArray<string>) =>
    executions.length === 0
      ? Effect.succeed(new Set<string>())
      : Effect.map(
        sql<{ execution: string }>`
          SELECT execution FROM effect_units_deliveries WHERE ${firstOf(consumer, executions)}`,
        (rows) => new Set(rows.map(({ execution }) => execution))
      )

  /** What the log has after the position of the group. */
  const claimNew = Effect.fnUntraced(function*(member: Member, from: number, room: number, now: number) {
    const { consumer } = member
    const conditions = filter(member.wanted)
    const filtered = conditions.length > 0
    const payload = filtered ? sql`CASE WHEN ${sql.and(conditions)} THEN payload END AS payload` : sql`payload`
    const claimed: Array<Claimed> = []
    let position = from
    let newlyParked = 0
    let missed = 0
    let more = true
    for (let scan = 0; scan < maxScans && more && claimed.length < room; scan++) {
      const limit = filtered ? scanSize : room - claimed.length
      const rows = yield* sql<{ event_offset: Integer; correlation_id: string | null; payload: string | null }>`
        SELECT event_offset, correlation_id, ${payload} FROM effect_units_events
        WHERE event_offset > ${position} ORDER BY event_offset LIMIT ${limit}`
      more = rows.length === limit
      const executions = rows.flatMap((row) =>
        row.payload === null || row.correlation_id === null ? [] : [row.correlation_id]
      )
      const busy = yield* unfinished(consumer, Array.from(new Set(executions)))
      const deliveries: Array<DeliveryRow> = []
      const unreadable: Array<{ readonly offset: number; readonly failure: FailureText }> = []
      for (const row of rows) {
        if (claimed.length === room) {
          more = true
          break
        }
        const offset = Number(row.event_offset)
        if (!filtered) missed += offset - position - 1
        position = offset
        if (row.payload === null) continue
        const execution = row.correlation_id
        const delivery = { event_offset: offset, execution, attempts: 0, due_at: null, member: null }
        if (execution !== null && busy.has(execution)) {
          deliveries.push(delivery)
          continue
        }
        if (execution !== null) busy.add(execution)
        const decoded = decode(row.payload)
        if (Exit.isFailure(decoded)) {
          deliveries.push(delivery)
          unreadable.push({ offset, failure: undecodable(offset, decoded.cause) })
          continue
        }
        deliveries.push({ ...delivery, attempts: 1, due_at: now + member.ackTimeout, member: member.id })
        claimed.push({ offset, event: decoded.value, attempt: 1, missed, expired: false })
        missed = 0
      }
      yield* insert(consumer, deliveries)
      for (const { failure, offset } of unreadable) {
        yield* sql`UPDATE effect_units_deliveries SET ${sql.update(parked(failure, undefined, now))}
          WHERE consumer = ${consumer} AND event_offset = ${offset}`
        newlyParked++
      }
    }
    if (position > from) {
      yield* sql`UPDATE effect_units_groups SET last_offset = ${position} WHERE consumer = ${consumer}`
    }
    return { claimed, newlyParked, position, more }
  })

  // Not the offset that was given last: a group that has yet to see events that were pruned never comes to it.
  const newest = Effect.map(
    sql<{ newest: Integer | null }>`SELECT MAX(event_offset) AS newest FROM effect_units_events`,
    ([row]) => Number(row?.newest ?? 0)
  )

  const openEvents = (consumer: string) =>
    Effect.map(
      fresh(sql<{ count: Integer }>`SELECT COUNT(*) AS count FROM (
        SELECT 1 FROM effect_units_deliveries WHERE consumer = ${consumer} AND due_at IS NOT NULL LIMIT ${maxOpen}
      ) AS counted`),
      ([row]) => Number(row?.count ?? 0)
    )

  /** What is due, and then what is new. */
  const claim = Effect.fnUntraced(function*(member: Member, position: number, room: number, now: number) {
    const due = yield* claimDue(member, room, now)
    const left = room - due.claimed.length
    const last = yield* newest
    const isBehind = left > 0 && !due.more && last > position
    const isFull = isBehind && (yield* openEvents(member.consumer)) >= maxOpen
    const found = isBehind && !isFull
      ? yield* claimNew(member, position, left, now)
      : { claimed: [], newlyParked: 0, position, more: due.more }
    return {
      claimed: [...due.claimed, ...found.claimed],
      newlyParked: due.newlyParked + found.newlyParked,
      released: due.released,
      more: found.more || due.released,
      full: isFull,
      lag: Math.max(0, last - found.position)
    }
  })

  const nothing = { claimed: [], newlyParked: 0, released: false, more: true, full: false, lag: undefined }

  /** One transaction: what the member has to say, and then as many events as it has room for. */
  const turn = (
    member: Member,
    settlements: ReadonlyArray<Settlement>,
    room: number
  ): Effect.Effect<Turned, SqlError.SqlError> =>
    transact(Effect.gen(function*(): Effect.gen.Return<Turned, SqlError.SqlError> {
      const { consumer } = member
      const group = yield* lock(consumer, byIndex)
      if (group === undefined) return { _tag: "Removed" }
      const isOther = room > 0 && group.wanted !== wantedText(member.wanted)
      if (isOther && settlements.length === 0) return { _tag: "OtherFilter" }
      // Read when the lock is there: who waited long for it holds its leases from now on.
      const now = clock.currentTimeMillisUnsafe()
      const said = yield* settle(member, settlements, now)
      const got = room > 0 && !isOther ? yield* claim(member, group.position, room, now) : nothing
      const newlyParked = said.newlyParked + got.newlyParked
      yield* setParked(newlyParked, consumer)
      return {
        _tag: "Turned",
        ...got,
        settled: said.settled,
        released: said.released || got.released,
        parked: group.parked + newlyParked,
        newlyParked
      }
    }))

  /** Gives back at once all that a member has, as it leaves. What it did not get to do is no attempt. */
  const leave = ({ consumer, id }: Pick<Member, "consumer" | "id">) =>
    transact(Effect.andThen(
      lock(consumer, byIndex),
      Effect.map(
        sql`UPDATE effect_units_deliveries SET due_at = 0, member = NULL, attempts = attempts - 1
          WHERE consumer = ${consumer} AND due_at IS NOT NULL AND member = ${id} RETURNING event_offset`,
        (rows) => rows.length > 0
      )
    ))

  /** After the clock was set back: what was to be due by a later time is due after so many milliseconds from now. */
  const advance = (consumer: string, lease: number, pause: number) =>
    transact(Effect.andThen(
      lock(consumer),
      Effect.suspend(() => {
        const now = clock.currentTimeMillisUnsafe()
        const latest = sql`CASE WHEN member IS NULL THEN ${now + pause} ELSE ${now + lease} END`
        return fresh(sql`UPDATE effect_units_deliveries SET due_at = ${latest}
          WHERE consumer = ${consumer} AND due_at > ${latest}`)
      })
    ))

  /** Acknowledges one event, in the transaction around it. */
  const acknowledge = Effect.fnUntraced(function*({ consumer, id }: Pick<Member, "consumer" | "id">, offset: number) {
    yield* lock(consumer)
    return yield* remove(fresh, consumer, [offset], [sql`member = ${id}`])
  })

  /**
   * When there may be something to claim: 0 where the log goes on after the position of the group, or else when the first of its open
   * events is due. It takes no lock.
   */
  const look = (consumer: string) =>
    Effect.zipWith(
      newest,
      fresh(sql<{ last_offset: Integer; due: Integer | null }>`
        SELECT last_offset, (
          SELECT MIN(due_at) FROM effect_units_deliveries WHERE consumer = ${consumer} AND due_at IS NOT NULL
        ) AS due FROM effect_units_groups WHERE consumer = ${consumer}`),
      (last, [group]) => ({
        // Of a group that was removed a claim says so.
        lag: group === undefined ? 1 : last - Number(group.last_offset),
        due: group?.due === null || group === undefined ? Infinity : Number(group.due)
      })
    )

  /** Creates a group, where it is not there, and gives it the filter. */
  const join = Effect.fnUntraced(function*<E>(consumer: string, wanted: Wanted, start: Effect.Effect<number, E>) {
    const text = wantedText(wanted)
    const exists = Effect.map(
      sql<{ wanted: string }>`SELECT wanted FROM effect_units_groups WHERE consumer = ${consumer}`,
      ([row]) => row
    )
    const found = yield* exists
    if (found?.wanted === text) return
    if (found === undefined) {
      const row = { consumer, last_offset: yield* start, parked: 0, wanted: text }
      yield* sql`INSERT INTO effect_units_groups ${sql.insert(row)} ON CONFLICT (consumer) DO NOTHING`
      if ((yield* exists)?.wanted === text) return
    }
    yield* sql`UPDATE effect_units_groups SET wanted = ${text} WHERE consumer = ${consumer}`
  })

  /** The position right before the oldest event of the log. Of an empty one, before all that is appended once this has begun. */
  const beginning = Effect.flatMap(lastOffset, (last) =>
    Effect.map(
      sql<{ first: Integer | null }>`SELECT MIN(event_offset) AS first FROM effect_units_events`,
      ([row]) => row === undefined || row.first === null ? last : Number(row.first) - 1
    ))

  const list: Effect.Effect<ReadonlyArray<Group>, SqlError.SqlError> = Effect.gen(function*() {
    const last = yield* newest
    const rows = yield* sql<{ consumer: string; last_offset: Integer; parked: Integer }>`
      SELECT consumer, last_offset, parked FROM effect_units_groups`
    const groups = yield* Effect.forEach(rows, (row) =>
      Effect.map(openEvents(row.consumer), (open) => ({
        name: Rows.original(row.consumer),
        position: Number(row.last_offset),
        lag: Math.max(0, last - Number(row.last_offset)),
        open,
        parked: Number(row.parked)
      })))
    return groups.sort((one, other) => one.name < other.name ? -1 : 1)
  })

  const removeGroup = (group: string) => {
    const consumer = Rows.text(group)
    return transact(Effect.gen(function*() {
      if ((yield* lock(consumer)) === undefined) return yield* new GroupNotFound({ group })
      yield* sql`DELETE FROM effect_units_deliveries WHERE consumer = ${consumer}`
      yield* sql`DELETE FROM effect_units_groups WHERE consumer = ${consumer}`
    }))
  }

  const toParked = (row: ParkedRow): ParkedEvent => {
    const payload = row.edited ?? row.payload
    const decoded = payload === null ? undefined : decode(payload)
    const group = Rows.original(row.consumer)
    const offset = Number(row.event_offset)
    return {
      id: parkedId(group, offset),
      group,
      offset,
      ...(decoded !== undefined && Exit.isSuccess(decoded) ? { event: decoded.value } : {}),
      attempts: Number(row.attempts),
      error: row.error,
      cause: row.cause,
      parked_at: new Date(Number(row.parked_at)).toISOString(),
      edited: row.edited !== null
    }
  }

  const conditionsOf = (parkedFilter: ParkedFilter): ReadonlyArray<Statement.Fragment> => {
    const oneOf = (column: string, values: ReadonlyArray<string> | undefined) =>
      values === undefined ? [] : [among(column, values.map(Rows.text))]
    const { error, group, since, until } = parkedFilter
    return [
      sql`parked_at IS NOT NULL`,
      ...(group === undefined ? [] : [sql`consumer = ${Rows.text(group)}`]),
      ...oneOf("type", parkedFilter.types),
      ...oneOf("domain", parkedFilter.domains),
      ...oneOf("unit_name", parkedFilter.units),
      ...(since === undefined ? [] : [sql`parked_at >= ${since.epochMilliseconds}`]),
      ...(until === undefined ? [] : [sql`parked_at < ${until.epochMilliseconds}`]),
      ...(error === undefined
        ? []
        : [sql`LOWER(error) LIKE LOWER(${`%${error.replaceAll(/[\\%_]/g, "\\$&")}%`}) ESCAPE '\\'`])
    ]
  }

  /** The newest parked events that fit, with their payloads. */
  const selectParked = (conditions: ReadonlyArray<Statement.Fragment>, limit: number) => {
    const order = sql.literal("ORDER BY parked_at DESC, consumer DESC, event_offset DESC")
    return fresh(sql<ParkedRow>`
      SELECT page.*, event.payload FROM (
        SELECT consumer, event_offset, attempts, parked_at, error, cause, edited FROM effect_units_deliveries
        WHERE ${sql.and(conditions)} ${order} LIMIT ${limit}
      ) AS page LEFT JOIN effect_units_events AS event ON event.event_offset = page.event_offset ${order}`)
  }

  const listParked = (options: ParkedOptions, limit: number) => {
    const at = options.before
    const place = at === undefined ? undefined : placeOf(at.id)
    const before = at === undefined || place === undefined ? [] : [
      sql`(parked_at, consumer, event_offset) < (${Date.parse(at.parked_at)}, ${
        Rows.text(place.consumer)
      }, ${place.offset})`
    ]
    return Effect.map(
      selectParked([...conditionsOf(options), ...before], limit),
      (rows) => rows.map(toParked)
    )
  }

  const named = (id: string) => {
    const place = placeOf(id)
    return place === undefined
      ? Effect.fail(new NotParked({ id }))
      : Effect.succeed({ consumer: Rows.text(place.consumer), offset: place.offset })
  }

  const get = Effect.fnUntraced(function*(id: string) {
    const { consumer, offset } = yield* named(id)
    const [row] = yield* selectParked(
      [sql`consumer = ${consumer}`, sql`event_offset = ${offset}`, sql`parked_at IS NOT NULL`],
      1
    )
    return row === undefined ? yield* new NotParked({ id }) : toParked(row)
  })

  // A replayed event is due before all that is newer.
  const unparked = { parked_at: null, due_at: 0, attempts: 0, error: null, cause: null }

  const replayAt = (consumer: string, offsets: ReadonlyArray<number>) =>
    Effect.map(
      fresh(sql`UPDATE effect_units_deliveries SET ${sql.update(unparked)}
        WHERE parked_at IS NOT NULL AND ${at(consumer, offsets)} RETURNING event_offset`),
      (rows) => rows.length
    )

  const discardAt = (consumer: string, offsets: ReadonlyArray<number>) =>
    Effect.map(
      remove(fresh, consumer, offsets, [sql`parked_at IS NOT NULL`]),
      (removed) => removed.offsets.length
    )

  type Unpark = typeof replayAt

  const one = (unpark: Unpark) => (id: string) =>
    Effect.flatMap(named(id), ({ consumer, offset }) =>
      transact(Effect.gen(function*() {
        yield* lock(consumer)
        if ((yield* unpark(consumer, [offset])) === 0) return yield* new NotParked({ id })
        yield* setParked(-1, consumer)
      })))

  /** Group by group, oldest event first, of those that are parked now. */
  const all = (unpark: Unpark) =>
    Effect.fnUntraced(function*(parkedFilter: ParkedFilter) {
      // By the clocks that they were parked by, which may be ahead of this one.
      const [newest] = yield* fresh(sql<{ parked_at: Integer | null }>`
        SELECT MAX(parked_at) AS parked_at FROM effect_units_deliveries WHERE parked_at IS NOT NULL`)
      const groups = yield* sql<{ consumer: string }>`SELECT consumer FROM effect_units_groups
        WHERE parked > 0 ORDER BY consumer`
      const conditions = [...conditionsOf(parkedFilter), sql`parked_at <= ${newest?.parked_at ?? 0}`]
      let count = 0
      for (const { consumer } of groups) {
        let after = 0
        while (true) {
          const rows = yield* transact(Effect.gen(function*() {
            yield* lock(consumer)
            const found = yield* fresh(sql<{ event_offset: Integer }>`SELECT event_offset FROM effect_units_deliveries
              WHERE ${sql.and([sql`consumer = ${consumer}`, sql`event_offset > ${after}`, ...conditions])}
              ORDER BY event_offset LIMIT ${batchSize}`)
            const offsets = found.map(({ event_offset }) => Number(event_offset))
            if (offsets.length > 0) yield* setParked(-(yield* unpark(consumer, offsets)), consumer)
            return offsets
          }))
          count += rows.length
          after = rows.at(-1) ?? after
          if (rows.length < batchSize) break
          yield* Effect.yieldNow
        }
      }
      return count
    })

  const edit = Effect.fnUntraced(function*(id: string, event: Event) {
    const { consumer, offset } = yield* named(id)
    const other = new OtherEvent({ id, event_id: event.id })
    yield* transact(Effect.gen(function*() {
      yield* lock(consumer)
      const [row] = yield* sql<{ id: string | null; correlation_id: string | null }>`
        SELECT event.id, event.correlation_id FROM effect_units_deliveries AS delivery
        LEFT JOIN effect_units_events AS event ON event.event_offset = delivery.event_offset
        WHERE delivery.consumer = ${consumer} AND delivery.event_offset = ${offset} AND delivery.parked_at IS NOT NULL`
      if (row === undefined) return yield* new NotParked({ id })
      const execution = event.correlation_id === undefined ? null : Rows.text(event.correlation_id)
      if (row.id !== Rows.text(event.id) || row.correlation_id !== execution) return yield* other
      yield* sql`UPDATE effect_units_deliveries SET edited = ${encode(event)}
        WHERE consumer = ${consumer} AND event_offset = ${offset}`
    }))
  })

  return {
    join,
    beginning,
    look,
    turn,
    leave,
    advance,
    acknowledge,
    list,
    remove: removeGroup,
    listParked,
    get,
    edit,
    replay: one(replayAt),
    discard: one(discardAt),
    replayAll: all(replayAt),
    discardAll: all(discardAt)
  }
}

/** @internal */
export type Groups = ReturnType<typeof make>
