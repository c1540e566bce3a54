/**
 * Events as the rows of an event store, and what a batch of events says of executions.
 *
 * @since 0.1.0
 */
import * as DomainEvent from "../DomainEvent.ts"
import type { Event } from "../EventPublisher.ts"
import * as ExecutionEvent from "../ExecutionEvent.ts"
import { toOutline } from "./brokers.ts"

/**
 * What is common to the rows of running and of ended executions.
 *
 * @internal
 */
export interface Identity {
  readonly correlation_id: string
  readonly unit_name: string
  readonly domain: string
  readonly kind: "command" | "query"
  readonly parent_id: string | null
  readonly root_id: string
  readonly source: string
}

/**
 * An event as its row, and what it says of its execution.
 *
 * @internal
 */
export interface Prepared {
  /** 0 until `plan` gives it its place. */
  event_offset: number
  readonly id: string
  readonly type: string
  /** The domain. */
  readonly aggregatetype: string
  /** The execution that the event belongs to, or without one the event's own id. */
  readonly aggregateid: string
  readonly unit_name: string | null
  readonly correlation_id: string | null
  /** 1 in lifecycle events, 0 in domain events. */
  readonly lifecycle: 0 | 1
  /** Milliseconds since 1970. */
  readonly occurred_at: number
  readonly payload: string
  /** Absent in domain events. */
  readonly execution: Started | Ended | undefined
  /** The store instance whose process runs the execution; null where it is not known. */
  readonly owner: string | null
}

/** @internal */
export interface Started {
  readonly _tag: "Started"
  readonly identity: Identity
}

/** @internal */
export interface Ended {
  readonly _tag: "Ended"
  readonly identity: Identity
  readonly outcome: "completed" | "failed"
  readonly failure_kind: string | null
  readonly failure_tag: string | null
  readonly failure_code: string | null
  readonly error: string | null
  readonly duration_ms: number
}

/** The row of an execution repeats its error for lists to show; the whole of it is in the event. */
const longestError = 1000

/**
 * A text as any database can hold it. A lone surrogate has no UTF-8, and PostgreSQL takes no NUL; so a text with one of them is
 * written as JSON, which has escapes for both; and one that begins like JSON too, so that two texts that differ stay different.
 *
 * @internal
 */
export const text = (value: string): string =>
  value.isWellFormed() && !value.includes("\0") && !value.startsWith("\"") ? value : JSON.stringify(value)

/**
 * A text that is only shown: what no database can hold gives way to a replacement character.
 *
 * @internal
 */
export const shown = (value: string): string => value.toWellFormed().replaceAll("\0", "\ufffd")

/**
 * What a `text` was made from.
 *
 * @internal
 */
export const original = (stored: string): string => stored.startsWith("\"") ? String(JSON.parse(stored)) : stored

/**
 * The texts of a stored identity as they were.
 *
 * @internal
 */
export const restore = (row: Identity): Identity => ({
  correlation_id: original(row.correlation_id),
  unit_name: original(row.unit_name),
  domain: original(row.domain),
  kind: row.kind,
  parent_id: row.parent_id === null ? null : original(row.parent_id),
  root_id: original(row.root_id),
  source: original(row.source)
})

const optionalText = (value: string | undefined): string | null => value === undefined ? null : text(value)

/**
 * Serialises an event. An unreadable timestamp counts as `now` (milliseconds).
 *
 * `JSON.stringify` escapes NUL characters and lone surrogates, so that any database takes the payload.
 *
 * @internal
 */
export const prepare = (event: Event, now: number, owner: string | null, largest: number): Prepared => {
  const json = toJson(event)
  return row(json, bounded(event, JSON.stringify(json), largest), now, owner)
}

/**
 * Prepares an event from a payload that this library wrote.
 *
 * @internal
 */
export const fromPayload = (payload: string, now: number, owner: string | null): Prepared =>
  // Trusted, as `prepare` made it.
  row(JSON.parse(payload) as Event, payload, now, owner)

/**
 * The payload that `prepare` makes of an event: its JSON, or where that has more bytes than `largest`, an outline.
 *
 * @internal
 */
export const payload = (event: Event, largest: number): string => bounded(event, JSON.stringify(toJson(event)), largest)

const bounded = (event: Event, text: string, largest: number): string => {
  // A UTF-16 unit is at most three bytes of UTF-8: short texts need no count.
  return text.length * 3 <= largest || Buffer.byteLength(text) <= largest ? text : toOutline(event)
}

const toJson = (event: Event): Event =>
  ExecutionEvent.isExecutionEvent(event) ? ExecutionEvent.toJson(event) : DomainEvent.toJson(event)

const millis = (timestamp: string, now: number): number => {
  const parsed = Date.parse(timestamp)
  return Number.isNaN(parsed) ? now : parsed
}

const row = (json: Event, payload: string, now: number, owner: string | null): Prepared => {
  const id = text(json.id)
  const aggregatetype = text(json.domain)
  const common = {
    event_offset: 0,
    id,
    aggregatetype,
    unit_name: optionalText(json.unit_name),
    occurred_at: millis(json.timestamp, now),
    payload,
    owner
  }
  if (!ExecutionEvent.isExecutionEvent(json)) {
    const correlation_id = optionalText(json.correlation_id)
    return {
      ...common,
      type: text(json.type),
      aggregateid: correlation_id ?? id,
      correlation_id,
      lifecycle: 0,
      execution: undefined
    }
  }
  const identity: Identity = {
    correlation_id: text(json.correlation_id),
    unit_name: text(json.unit_name),
    domain: aggregatetype,
    kind: json.kind,
    parent_id: optionalText(json.parent_id),
    root_id: text(json.root_id),
    source: text(json.source)
  }
  return {
    ...common,
    type: json.event_type,
    aggregateid: identity.correlation_id,
    correlation_id: identity.correlation_id,
    lifecycle: 1,
    execution: executionOf(json, identity)
  }
}

const executionOf = (json: ExecutionEvent.ExecutionEvent, identity: Identity): Started | Ended => {
  switch (json.event_type) {
    case "execution_started":
      return { _tag: "Started", identity }
    case "execution_completed":
      return {
        _tag: "Ended",
        identity,
        outcome: "completed",
        failure_kind: null,
        failure_tag: null,
        failure_code: null,
        error: null,
        duration_ms: json.duration_ms
      }
    case "execution_failed":
      return {
        _tag: "Ended",
        identity,
        outcome: "failed",
        failure_kind: json.failure.kind,
        failure_tag: json.failure.tag === undefined ? null : shown(json.failure.tag),
        failure_code: json.failure.code === undefined ? null : shown(json.failure.code),
        error: shown(json.error.slice(0, longestError)),
        duration_ms: json.duration_ms
      }
  }
}

const identityColumns = ["correlation_id", "unit_name", "domain", "kind", "parent_id", "root_id", "source"] as const

/** @internal */
export const eventColumns = [
  "event_offset",
  "id",
  "aggregatetype",
  "aggregateid",
  "type",
  "payload",
  "unit_name",
  "correlation_id",
  "lifecycle",
  "occurred_at"
] as const

/** @internal */
export const runningColumns = [...identityColumns, "started_offset", "started_at", "owner"] as const

/** @internal */
export const endedColumns = [
  ...identityColumns,
  "ended_offset",
  "first_offset",
  "started_offset",
  "started_at",
  "ended_at",
  "duration_ms",
  "outcome",
  "failure_kind",
  "failure_tag",
  "failure_code",
  "error"
] as const

/**
 * Which columns hold integers; the others hold texts.
 *
 * @internal
 */
export const integerColumns: ReadonlySet<string> = new Set([
  "event_offset",
  "lifecycle",
  "occurred_at",
  "started_offset",
  "started_at",
  "ended_offset",
  "first_offset",
  "ended_at",
  "duration_ms"
])

/** @internal */
export interface RunningRow extends Identity {
  readonly started_offset: number
  readonly started_at: number
  readonly owner: string | null
}

/** @internal */
export interface EndedRow extends Identity {
  readonly ended_offset: number
  /** Offset of the started event, or of the terminal one where the started one was lost. */
  readonly first_offset: number
  readonly started_offset: number | null
  readonly started_at: number
  readonly ended_at: number
  readonly duration_ms: number
  readonly outcome: string
  readonly failure_kind: string | null
  readonly failure_tag: string | null
  readonly failure_code: string | null
  readonly error: string | null
}

/**
 * Where an execution began in the log, and when.
 *
 * @internal
 */
export interface Start {
  readonly started_offset: number
  readonly started_at: number
}

/**
 * What the store knows of the executions that a batch names.
 *
 * @internal
 */
export interface Known {
  readonly running: ReadonlyMap<string, Start>
  readonly ended: ReadonlySet<string>
}

/**
 * Where the first event of an execution arrived after its last.
 *
 * @internal
 */
export interface Late {
  readonly correlation_id: string
  readonly started_offset: number
  readonly started_at: number
}

/** @internal */
export interface Plan {
  readonly events: ReadonlyArray<Prepared>
  readonly running: ReadonlyArray<RunningRow>
  readonly ended: ReadonlyArray<EndedRow>
  readonly late: ReadonlyArray<Late>
  /** Offsets at which executions of `ended` began that the store has as running. */
  readonly noLongerRunning: ReadonlyArray<number>
  /** Ids of events that are not stored: a second terminal event of one execution. */
  readonly refused: ReadonlyArray<string>
}

/**
 * The executions that the lifecycle events of a batch name.
 *
 * @internal
 */
export const executions = (batch: ReadonlyArray<Prepared>): ReadonlyArray<string> =>
  Array.from(
    new Set(batch.flatMap(({ execution }) => execution === undefined ? [] : [execution.identity.correlation_id]))
  )

/**
 * The executions that a batch begins and does not end, and those that it ends and does not begin.
 *
 * @internal
 */
export const unpaired = (
  batch: ReadonlyArray<Prepared>
): { readonly begun: ReadonlyArray<string>; readonly ended: ReadonlyArray<string> } => {
  const begun = new Set<string>()
  const ended = new Set<string>()
  for (const { execution } of batch) {
    if (execution !== undefined) (execution._tag === "Started" ? begun : ended).add(execution.identity.correlation_id)
  }
  return {
    begun: Array.from(begun).filter((id) => !ended.has(id)),
    ended: Array.from(ended).filter((id) => !begun.has(id))
  }
}

/**
 * Gives the events of a batch the offsets after `last`, and joins the started and terminal events of each execution. Of two
 * terminal events of one execution the first counts, and the second is refused.
 *
 * @internal
 */
export const plan = (batch: ReadonlyArray<Prepared>, last: number, known: Known): Plan => {
  const events: Array<Prepared> = []
  const begun = new Map<string, RunningRow>()
  const ended = new Map<string, EndedRow>()
  const late: Array<Late> = []
  const noLongerRunning: Array<number> = []
  const refused: Array<string> = []
  let offset = last
  for (const event of batch) {
    const { execution } = event
    if (execution !== undefined) {
      const { identity } = execution
      const id = identity.correlation_id
      const next = offset + 1
      const at = event.occurred_at
      if (execution._tag === "Started") {
        if (ended.has(id) || known.ended.has(id)) {
          late.push({ correlation_id: id, started_offset: next, started_at: at })
        } else begun.set(id, { ...identity, started_offset: next, started_at: at, owner: event.owner })
      } else {
        if (ended.has(id) || known.ended.has(id)) {
          refused.push(event.id)
          continue
        }
        const stored = known.running.get(id)
        if (stored !== undefined) noLongerRunning.push(stored.started_offset)
        const start = begun.get(id) ?? stored
        begun.delete(id)
        ended.set(id, {
          ...identity,
          ended_offset: next,
          first_offset: start?.started_offset ?? next,
          started_offset: start?.started_offset ?? null,
          started_at: start?.started_at ?? at - execution.duration_ms,
          ended_at: at,
          duration_ms: execution.duration_ms,
          outcome: execution.outcome,
          failure_kind: execution.failure_kind,
          failure_tag: execution.failure_tag,
          failure_code: execution.failure_code,
          error: execution.error
        })
      }
    }
    offset += 1
    event.event_offset = offset
    events.push(event)
  }
  return {
    events,
    running: Array.from(begun.values()),
    ended: Array.from(ended.values()),
    late,
    noLongerRunning,
    refused
  }
}
