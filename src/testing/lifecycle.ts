/**
 * The rules that every sequence of events keeps, as a check.
 *
 * @since 0.1.0
 */
import type { DomainEvent } from "../DomainEvent.ts"
import type { ExecutionCompleted, ExecutionEvent, ExecutionFailed, ExecutionStarted } from "../ExecutionEvent.ts"
import { isExecutionEvent, isTerminal } from "../ExecutionEvent.ts"

/**
 * One execution, put together from its events.
 *
 * @category models
 * @since 0.1.0
 */
export interface ObservedExecution {
  readonly correlation_id: string
  readonly unit_name: string
  readonly started: ExecutionStarted
  /** `undefined` while it runs. */
  readonly terminal: ExecutionCompleted | ExecutionFailed | undefined
  /** The executions that name it as their parent, in the order of their starts. */
  readonly children: ReadonlyArray<ObservedExecution>
}

/**
 * Puts executions together from their events, in the order of their starts. Events without a started event are left out.
 *
 * @category combinators
 * @since 0.1.0
 */
export const executionsOf = (events: ReadonlyArray<ExecutionEvent>): ReadonlyArray<ObservedExecution> => {
  const terminals = new Map<string, ExecutionCompleted | ExecutionFailed>()
  const children = new Map<string, Array<ObservedExecution>>()
  const all: Array<ObservedExecution> = []
  for (const event of events) {
    if (isTerminal(event)) terminals.set(event.correlation_id, event)
  }
  for (const event of events) {
    if (isTerminal(event)) continue
    const below: Array<ObservedExecution> = []
    children.set(event.correlation_id, below)
    const execution: ObservedExecution = {
      correlation_id: event.correlation_id,
      unit_name: event.unit_name,
      started: event,
      terminal: terminals.get(event.correlation_id),
      children: below
    }
    all.push(execution)
    if (event.parent_id !== undefined) children.get(event.parent_id)?.push(execution)
  }
  return all
}

/**
 * What breaks the rules in a sequence of events, in words; empty where nothing does. Domain events only count for the numbering.
 *
 * **Details**
 *
 * Per execution: one started event first, one terminal event last, unless it still runs; the same unit, kind, parent and root on
 * both; ids that are derived; a duration of whole milliseconds and nanoseconds, and an end that is not before its start. Per tree:
 * a child starts after its parent, and has its parent's root. Per source: numbers from 1, without holes, in the order of the events.
 *
 * @category assertions
 * @since 0.1.0
 */
export const violations = (
  events: ReadonlyArray<ExecutionEvent | DomainEvent>,
  options?: {
    /** Executions may still be running. Default `false`. */
    readonly allowRunning?: boolean | undefined
    /** Do not look at `sequence`: other events were taken out. Default `false`. */
    readonly ignoreSequence?: boolean | undefined
  }
): ReadonlyArray<string> => {
  const found: Array<string> = []
  const started = new Map<string, ExecutionStarted>()
  const ended = new Set<string>()
  const waitedFor = new Set<string>()
  const sequences = new Map<string, number>()
  for (const event of events) {
    if (options?.ignoreSequence !== true) {
      const expected = (sequences.get(event.source) ?? 0) + 1
      if (event.sequence !== expected) {
        found.push(`${nameOf(event)} has number ${event.sequence} where ${expected} is due`)
      }
      sequences.set(event.source, event.sequence)
    }
    if (!isExecutionEvent(event)) continue
    const name = nameOf(event)
    const suffix = event.event_type.slice("execution_".length)
    if (event.id !== `${event.correlation_id}:${suffix}`) found.push(`${name} has an id that is not derived`)
    if (isTerminal(event)) {
      const start = started.get(event.correlation_id)
      if (start === undefined) found.push(`${name} ended before it started`)
      else {
        for (const field of ["unit_name", "domain", "kind", "parent_id", "root_id"] as const) {
          if (start[field] !== event[field]) found.push(`${name} has another ${field} than its started event`)
        }
        if (Date.parse(event.timestamp) < Date.parse(start.timestamp)) found.push(`${name} has a time before its start`)
      }
      if (ended.has(event.correlation_id)) found.push(`${name} ended twice`)
      ended.add(event.correlation_id)
      if (!Number.isInteger(event.duration_ns) || event.duration_ns < 0) found.push(`${name} has no whole duration`)
      else if (event.duration_ms !== Math.floor(event.duration_ns / 1e6)) found.push(`${name} has two durations`)
    } else {
      if (started.has(event.correlation_id)) found.push(`${name} started twice`)
      if (waitedFor.has(event.correlation_id)) found.push(`${name} started after a child of it`)
      started.set(event.correlation_id, event)
      if (event.parent_id === undefined) {
        if (event.root_id !== event.correlation_id) found.push(`${name} is a root with another root`)
      } else {
        const parent = started.get(event.parent_id)
        // It may be one from elsewhere, that these events do not tell of.
        if (parent === undefined) waitedFor.add(event.parent_id)
        else if (parent.root_id !== event.root_id) found.push(`${name} has another root than its parent`)
      }
    }
  }
  if (options?.allowRunning !== true) {
    for (const [id, event] of started) {
      if (!ended.has(id)) found.push(`${nameOf(event)} never ended`)
    }
  }
  return found
}

const nameOf = (event: ExecutionEvent | DomainEvent): string =>
  `${isExecutionEvent(event) ? event.unit_name : event.type} ${event.id}`
