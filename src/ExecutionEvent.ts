/**
 * The three events in the life of an execution, their wire form and their CloudEvents form.
 *
 * An event that a running unit publishes holds the unit's values and encodes them when it is first asked for them; an event
 * that was decoded holds its JSON. Both have the fields below, under their names on the wire.
 *
 * @since 0.1.0
 */
import * as Effect from "effect/Effect"
import * as Predicate from "effect/Predicate"
import * as Schema from "effect/Schema"
import * as CloudEvent from "./internal/cloudEvent.ts"

const Id = Schema.NonEmptyString
const Timestamp = Schema.String.check(
  Schema.isPattern(/^\d{4,6}-\d{2}-\d{2}T\d{2}:\d{2}:\d{2}(\.\d+)?(Z|[+-]\d{2}:\d{2})$/, {
    expected: "an RFC 3339 date and time"
  })
)
const Count = Schema.Int.check(Schema.isGreaterThanOrEqualTo(0))

const common = {
  /** Unique per event, and derived: `<correlation_id>:started`, `:completed` or `:failed`. The key to deduplicate on. */
  id: Id,
  kind: Schema.Literals(["command", "query"]),
  /** The first part of the unit's name. */
  domain: Schema.String,
  /** The unit's whole name, such as `model.pull`. */
  unit_name: Schema.String,
  /** RFC 3339, UTC, milliseconds. */
  timestamp: Timestamp,
  /** One UUID per execution, the same on both of its events. */
  correlation_id: Id,
  /** `correlation_id` of the enclosing execution; absent at the root. */
  parent_id: Schema.optionalKey(Id),
  /** `correlation_id` of the outermost execution; its own at the root. */
  root_id: Id,
  /** W3C trace id of the ambient span, 32 hexadecimal digits; without one that of the span around the root, in whatever process. */
  trace_id: Schema.optionalKey(Schema.String),
  /** W3C span id of the ambient span, 16 hexadecimal digits. */
  span_id: Schema.optionalKey(Schema.String),
  /** What `Execution.annotate` set around the execution. */
  attributes: Schema.optionalKey(
    Schema.Record(Schema.String, Schema.Union([Schema.String, Schema.Finite, Schema.Boolean]))
  ),
  /** The publisher instance that numbered the event. */
  source: Schema.String,
  /** Counts the events of one source from 1, without holes: a gap shows a loss. */
  sequence: Count
} as const

const ended = {
  /** Since the start, from a monotonic clock, in whole milliseconds. */
  duration_ms: Count,
  /** The same, in whole nanoseconds. */
  duration_ns: Count,
  /** Elements that a stream gave before it ended; absent where the unit is not a stream. */
  chunks: Schema.optionalKey(Count)
} as const

/**
 * Why an execution failed, in a form that programs can branch on.
 *
 * **Details**
 *
 * `fail` is a typed failure: `tag`, `code` and `retryable` are the error's own, `value` is the error encoded by its Schema.
 * `die` is a defect, `interrupt` an interruption, a timeout included, `abandoned` an execution whose process ended before it did.
 *
 * @category models
 * @since 0.1.0
 */
export const Failure = Schema.Struct({
  kind: Schema.Literals(["fail", "die", "interrupt", "abandoned"]),
  tag: Schema.optionalKey(Schema.String),
  code: Schema.optionalKey(Schema.String),
  retryable: Schema.optionalKey(Schema.Boolean),
  value: Schema.optionalKey(Schema.Json)
})

/**
 * @category models
 * @since 0.1.0
 */
export type Failure = typeof Failure.Type

/**
 * The unit was called: published before its handler runs.
 *
 * @category models
 * @since 0.1.0
 */
export const ExecutionStarted = Schema.Struct({
  event_type: Schema.Literal("execution_started"),
  ...common,
  /** The input, encoded by the unit's input Schema, without secrets and within bounds; absent where there is none. */
  input: Schema.optionalKey(Schema.Json)
})

/**
 * @category models
 * @since 0.1.0
 */
export type ExecutionStarted = typeof ExecutionStarted.Type

/**
 * The unit succeeded: published before its caller resumes.
 *
 * @category models
 * @since 0.1.0
 */
export const ExecutionCompleted = Schema.Struct({
  event_type: Schema.Literal("execution_completed"),
  ...common,
  ...ended,
  /** What the caller gets, encoded by the unit's output Schema, without secrets and within bounds; absent where there is none. */
  output: Schema.optionalKey(Schema.Json)
})

/**
 * @category models
 * @since 0.1.0
 */
export type ExecutionCompleted = typeof ExecutionCompleted.Type

/**
 * The unit failed, died, was interrupted or was abandoned: published before its caller resumes.
 *
 * @category models
 * @since 0.1.0
 */
export const ExecutionFailed = Schema.Struct({
  event_type: Schema.Literal("execution_failed"),
  ...common,
  ...ended,
  /** The message of the failure that the caller has. */
  error: Schema.String,
  failure: Failure
})

/**
 * @category models
 * @since 0.1.0
 */
export type ExecutionFailed = typeof ExecutionFailed.Type

/**
 * Schema of the wire objects: a union told apart by `event_type`.
 *
 * **Details**
 *
 * Decoding ignores fields that it does not know, so that older consumers read newer events.
 *
 * @category models
 * @since 0.1.0
 */
export const ExecutionEvent = Schema.Union([ExecutionStarted, ExecutionCompleted, ExecutionFailed])

/**
 * @category models
 * @since 0.1.0
 */
export type ExecutionEvent = ExecutionStarted | ExecutionCompleted | ExecutionFailed

/**
 * Tells a lifecycle event from a domain event, and from anything else.
 *
 * @category guards
 * @since 0.1.0
 */
export const isExecutionEvent = (u: unknown): u is ExecutionEvent =>
  Predicate.hasProperty(u, "event_type") &&
  (u.event_type === "execution_started" || u.event_type === "execution_completed" ||
    u.event_type === "execution_failed")

/**
 * Tells the first event of an execution from its last.
 *
 * @category guards
 * @since 0.1.0
 */
export const isTerminal = (event: ExecutionEvent): event is ExecutionCompleted | ExecutionFailed =>
  event.event_type !== "execution_started"

const present = <K extends string, V>(name: K, value: V | undefined): { readonly [P in K]?: V } =>
  // The computed key is K itself; TypeScript widens it to string.
  value === undefined ? {} : { [name]: value } as { readonly [P in K]: V }

const commonOf = (event: ExecutionEvent) => ({
  domain: event.domain,
  unit_name: event.unit_name,
  kind: event.kind,
  id: event.id,
  timestamp: event.timestamp,
  correlation_id: event.correlation_id,
  ...present("parent_id", event.parent_id),
  root_id: event.root_id,
  ...present("trace_id", event.trace_id),
  ...present("span_id", event.span_id),
  ...present("attributes", event.attributes),
  source: event.source,
  sequence: event.sequence
})

const endedOf = (event: ExecutionCompleted | ExecutionFailed) => ({
  duration_ms: event.duration_ms,
  duration_ns: event.duration_ns,
  ...present("chunks", event.chunks)
})

/**
 * The wire object of an event: plain JSON data, safe for `JSON.stringify`.
 *
 * **Details**
 *
 * Encoding, redaction and size limits happen here, or at the first read of `input`, `output` or `failure`; never on the path
 * of the unit's caller. It does not throw: a value that cannot be encoded is replaced by `{ "$unencodable": reason }`, a
 * string or blob over 64 KiB by `{ "$truncated": true, "bytes": n, "sha256": hex }`.
 *
 * **Gotchas**
 *
 * An output is held by reference until then. A caller that changes an output it was given changes an event that was not
 * serialised yet. The input of a unit is a copy, save for instances of classes that no Schema made, and bytes and collections
 * beyond their limits. The arguments of a function under `instrument` are held by reference.
 *
 * @category encoding
 * @since 0.1.0
 */
export const toJson = (event: ExecutionEvent): ExecutionEvent => {
  switch (event.event_type) {
    case "execution_started":
      return { event_type: event.event_type, ...commonOf(event), ...present("input", event.input) }
    case "execution_completed":
      return {
        event_type: event.event_type,
        ...commonOf(event),
        ...endedOf(event),
        ...present("output", event.output)
      }
    case "execution_failed":
      return {
        event_type: event.event_type,
        ...commonOf(event),
        ...endedOf(event),
        error: event.error,
        failure: event.failure
      }
  }
}

/**
 * Decodes the wire object of an event. Fails with a `SchemaError` that names the field that does not fit; a retry does not help.
 *
 * @category encoding
 * @since 0.1.0
 */
export const fromJson: (json: unknown) => Effect.Effect<ExecutionEvent, Schema.SchemaError> = Schema
  .decodeUnknownEffect(ExecutionEvent)

/**
 * The event as a CloudEvents 1.0 object in structured JSON form.
 *
 * **Details**
 *
 * `id` is the event's, `source` is `/effect-units/<source>`, `type` is `effect-units.<event_type>`, `subject` the unit's name,
 * `data` the wire object. Extension attributes: `correlationid`, `partitionkey` (the root execution's id, so that a tree
 * of executions stays in one partition), `sequence`, and `traceparent` when a span was active, always with the flag "sampled".
 *
 * Source of the format: CloudEvents specification 1.0.2, with its extensions Distributed Tracing, Partitioning and Sequence.
 *
 * @category CloudEvents
 * @since 0.1.0
 */
export const toCloudEvent = (event: ExecutionEvent): CloudEvent.CloudEvent =>
  CloudEvent.make({
    type: `effect-units.${event.event_type}`,
    subject: event.unit_name,
    event,
    data: toJson(event)
  })

/**
 * Decodes the event out of a CloudEvents 1.0 object. Fails with a `SchemaError` where the envelope or the event does not fit.
 *
 * @category CloudEvents
 * @since 0.1.0
 */
export const fromCloudEvent = (cloudEvent: unknown): Effect.Effect<ExecutionEvent, Schema.SchemaError> =>
  Effect.flatMap(CloudEvent.decode(cloudEvent), (envelope) => fromJson(envelope.data))
