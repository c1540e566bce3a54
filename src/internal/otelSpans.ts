/**
 * Executions as OpenTelemetry spans, made from their events after the fact.
 *
 * Sources: the data model and JSON encoding of OTLP 1.x (opentelemetry-proto), and OpenTelemetry's semantic conventions for `error.type`.
 *
 * @since 0.1.0
 */
import { entriesToAttributes } from "effect/observability/OtlpResource"
import type { TraceData } from "effect/observability/OtlpTracer"
import * as Predicate from "effect/Predicate"
import { createHash } from "node:crypto"
import type { DomainEvent } from "../DomainEvent.ts"
import type { Event } from "../EventPublisher.ts"
import { type ExecutionEvent, isExecutionEvent, isTerminal } from "../ExecutionEvent.ts"

/** @internal */
export type Span = TraceData["resourceSpans"][number]["scopeSpans"][number]["spans"][number]

type Attributes = Readonly<Record<string, unknown>>
type Terminal = Extract<ExecutionEvent, { readonly duration_ns: number }>

// Versions whose digits are random where the two ids take them from.
const uuid = /^[0-9a-f]{8}-[0-9a-f]{4}-[47][0-9a-f]{3}-[89ab][0-9a-f]{3}-[0-9a-f]{12}$/

const digitsOf = (id: string): string =>
  uuid.test(id) ? id.replaceAll("-", "") : createHash("sha256").update(id).digest("hex").slice(0, 32)

/** @internal */
export const traceId = (rootId: string): string => digitsOf(rootId)

/** @internal */
export const spanId = (correlationId: string): string => digitsOf(correlationId).slice(16)

const internal = 1
const status = { unset: 0, error: 2 } as const

/** OpenTelemetry's own default limit. */
const maxEventsPerSpan = 128

const millis = (timestamp: string): number => Math.max(0, Date.parse(timestamp) || 0)
const nanos = (millis: number): bigint => BigInt(millis) * 1_000_000n

/** What is known of an execution that has not ended. */
interface Running {
  readonly ambientSpanId: string | undefined
  readonly events: Array<Span["events"][number]>
  droppedEvents: number
}

/** Adds an entry as the newest; where there are too many, the oldest gives way. */
const remember = <A>(map: Map<string, A>, key: string, value: A, capacity: number): void => {
  map.delete(key)
  map.set(key, value)
  if (map.size <= capacity) return
  const [oldest] = map.keys()
  if (oldest !== undefined) map.delete(oldest)
}

const failureAttributes = (event: Terminal): Attributes => {
  if (event.event_type !== "execution_failed") return {}
  const { code, kind, retryable, tag } = event.failure
  return {
    "effect_units.failure.kind": kind,
    ...(tag === undefined ? {} : { "effect_units.failure.tag": tag }),
    ...(code === undefined ? {} : { "effect_units.failure.code": code }),
    ...(retryable === undefined ? {} : { "effect_units.failure.retryable": retryable }),
    ...(kind === "interrupt" ? {} : { "error.type": tag ?? kind })
  }
}

const statusOf = (event: Terminal): Span["status"] =>
  event.event_type === "execution_failed" && event.failure.kind !== "interrupt"
    ? { code: status.error, message: event.error }
    : { code: status.unset }

const spanEvent = (event: DomainEvent): Span["events"][number] => ({
  name: event.type,
  timeUnixNano: String(nanos(millis(event.timestamp))),
  attributes: attributesOf(event),
  droppedAttributesCount: 0
})

// A definition's payload is an object; what was decoded can be anything.
const payloadOf = ({ payload }: DomainEvent): Attributes =>
  Predicate.isObject(payload) ? Object.fromEntries(Object.entries(payload)) : { payload }

const attributesOf = (event: DomainEvent): Span["attributes"] =>
  entriesToAttributes(Object.entries({
    ...event.attributes,
    ...payloadOf(event),
    "effect_units.event_id": event.id
  }))

/**
 * Puts spans together. It holds what executions that have not ended have said so far, and which trace a tree of executions is in, of the
 * newest `capacity` of each.
 *
 * @internal
 */
export class Spans {
  private readonly capacity: number
  private readonly running = new Map<string, Running>()
  private readonly traces = new Map<string, string>()

  constructor(capacity: number) {
    this.capacity = capacity
  }

  /** The span that an event completes. */
  add(event: Event): Span | undefined {
    if (!isExecutionEvent(event)) return this.addDomainEvent(event)
    const trace = this.traceOf(event.root_id, event.trace_id)
    if (isTerminal(event)) return this.end(event, trace)
    const running: Running = { ambientSpanId: event.span_id, events: [], droppedEvents: 0 }
    remember(this.running, event.correlation_id, running, this.capacity)
    return undefined
  }

  /** One for the whole tree, as a parent is looked for in the trace of its child: that of the first event of an execution that was seen of it. */
  private traceOf(rootId: string, ambient: string | undefined): string {
    const trace = this.traces.get(rootId) ?? ambient ?? traceId(rootId)
    remember(this.traces, rootId, trace, this.capacity)
    return trace
  }

  private end(event: Terminal, trace: string): Span {
    const running = this.running.get(event.correlation_id)
    this.running.delete(event.correlation_id)
    const start = nanos(Math.max(0, millis(event.timestamp) - event.duration_ms))
    return {
      traceId: trace,
      spanId: spanId(event.correlation_id),
      parentSpanId: this.parentOf(event, trace),
      name: event.unit_name,
      kind: internal,
      startTimeUnixNano: String(start),
      endTimeUnixNano: String(start + BigInt(event.duration_ns)),
      attributes: entriesToAttributes(Object.entries({
        ...event.attributes,
        "effect_units.domain": event.domain,
        "effect_units.kind": event.kind,
        "effect_units.correlation_id": event.correlation_id,
        "effect_units.root_id": event.root_id,
        ...(event.chunks === undefined ? {} : { "effect_units.chunks": event.chunks }),
        ...failureAttributes(event)
      })),
      droppedAttributesCount: 0,
      events: running?.events ?? [],
      droppedEventsCount: running?.droppedEvents ?? 0,
      links: this.linksOf(event),
      droppedLinksCount: 0,
      status: statusOf(event)
    }
  }

  private parentOf(event: Terminal, trace: string): string | undefined {
    if (event.parent_id !== undefined) return spanId(event.parent_id)
    return event.trace_id === trace ? event.span_id : undefined
  }

  /** To the span that was active around a child and is not its parent's own: one that the parent's handler opened. */
  private linksOf(event: Terminal): Span["links"] {
    const { parent_id, span_id, trace_id } = event
    if (parent_id === undefined || span_id === undefined || trace_id === undefined) return []
    if (this.running.get(parent_id)?.ambientSpanId === span_id) return []
    return [{ traceId: trace_id, spanId: span_id, attributes: [], droppedAttributesCount: 0 }]
  }

  private addDomainEvent(event: DomainEvent): Span | undefined {
    const running = event.correlation_id === undefined ? undefined : this.running.get(event.correlation_id)
    if (running === undefined) return this.alone(event)
    if (running.events.length < maxEventsPerSpan) running.events.push(spanEvent(event))
    else running.droppedEvents++
    return undefined
  }

  /** An event outside of any execution, or of one that has ended: a span without length, so that it is not lost. */
  private alone(event: DomainEvent): Span {
    const time = String(nanos(millis(event.timestamp)))
    return {
      // Not remembered: it does not know the trace of a tree whose root is still to come.
      traceId: (event.root_id === undefined ? undefined : this.traces.get(event.root_id)) ?? event.trace_id ??
        traceId(event.root_id ?? event.id),
      spanId: spanId(event.id),
      parentSpanId: event.correlation_id === undefined ? event.span_id : spanId(event.correlation_id),
      name: event.type,
      kind: internal,
      startTimeUnixNano: time,
      endTimeUnixNano: time,
      attributes: attributesOf(event),
      droppedAttributesCount: 0,
      events: [],
      droppedEventsCount: 0,
      links: [],
      droppedLinksCount: 0,
      status: { code: status.unset }
    }
  }
}
