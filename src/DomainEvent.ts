/**
 * What a unit says of its domain while it runs: `model.created`, `model.pull_progress`.
 *
 * Domain events go through the same publisher as lifecycle events and are never mistaken for them: they have a `type` of their
 * own and no `event_type`.
 *
 * @since 0.1.0
 */
import * as Clock from "effect/Clock"
import * as Context from "effect/Context"
import * as Effect from "effect/Effect"
import type * as Fiber from "effect/Fiber"
import * as Predicate from "effect/Predicate"
import * as Schema from "effect/Schema"
import * as EventPublisher from "./EventPublisher.ts"
import * as Execution from "./Execution.ts"
import * as CloudEvent from "./internal/cloudEvent.ts"
import * as Encode from "./internal/encode.ts"
import { asDomainEvent, LiveDomainEvent } from "./internal/liveEvent.ts"
import { isSilent } from "./internal/publishing.ts"
import * as Snapshot from "./internal/snapshot.ts"

/**
 * Schema of the wire object. Decoding ignores fields that it does not know.
 *
 * @category models
 * @since 0.1.0
 */
export const DomainEvent = Schema.Struct({
  /** The domain and what happened: `model.created`. */
  type: Schema.NonEmptyString,
  /** Unique per event. The key to deduplicate on. */
  id: Schema.NonEmptyString,
  /** The first part of `type`. */
  domain: Schema.String,
  /** RFC 3339, UTC, milliseconds. */
  timestamp: Schema.String,
  /** The execution that published it; absent outside of any. */
  correlation_id: Schema.optionalKey(Schema.NonEmptyString),
  /** The outermost execution around it; absent outside of any. */
  root_id: Schema.optionalKey(Schema.NonEmptyString),
  /** The unit that published it; absent outside of any. */
  unit_name: Schema.optionalKey(Schema.String),
  /** W3C trace id of the ambient span, as lifecycle events have it. */
  trace_id: Schema.optionalKey(Schema.String),
  /** W3C span id of the ambient span. */
  span_id: Schema.optionalKey(Schema.String),
  /** What `Execution.annotate` set around it. */
  attributes: Schema.optionalKey(
    Schema.Record(Schema.String, Schema.Union([Schema.String, Schema.Finite, Schema.Boolean]))
  ),
  /** The publisher instance that numbered the event. */
  source: Schema.String,
  /** Counts the events of one source from 1, lifecycle events included: a gap shows a loss. */
  sequence: Schema.Int,
  /** What happened, encoded by the definition's Schema, without secrets and within bounds. */
  payload: Schema.Json
})

/**
 * @category models
 * @since 0.1.0
 */
export type DomainEvent = typeof DomainEvent.Type

/**
 * Tells a domain event from a lifecycle event, and from anything else.
 *
 * @category guards
 * @since 0.1.0
 */
export const isDomainEvent = (u: unknown): u is DomainEvent =>
  Predicate.hasProperty(u, "type") && Predicate.hasProperty(u, "payload") && !Predicate.hasProperty(u, "event_type")

/**
 * A kind of domain event: its name and the Schema of its payload.
 *
 * @category models
 * @since 0.1.0
 */
export interface Definition<in out Payload extends Schema.Struct.Fields> {
  readonly type: string
  readonly domain: string
  readonly payload: Schema.Struct<Payload>
  /**
   * Publishes one. It never fails, and never waits longer than the hand-over to the publisher; what goes wrong in an open
   * publisher is counted there.
   */
  readonly publish: (payload: Schema.Struct.Type<Payload>) => Effect.Effect<void, never, EventPublisher.EventPublisher>
}

/**
 * Defines a kind of domain event.
 *
 * **Example** (Telling that a model was created)
 *
 * ```ts
 * const Created = DomainEvent.define("model.created", { model_id: Schema.String })
 * const program = Created.publish({ model_id: "model-0a1b2c3d" })
 * ```
 *
 * @category constructors
 * @since 0.1.0
 */
export const define = <const Fields extends Schema.Struct.Fields>(
  type: `${string}.${string}`,
  fields: Fields
): Definition<Fields> => {
  const payload = Schema.Struct(fields)
  const domain = type.slice(0, type.indexOf("."))
  const encode = Encode.make(payload)
  return {
    type,
    domain,
    payload,
    publish: (value) =>
      Effect.withFiber((fiber: Fiber.Fiber<unknown, unknown>) => {
        // The signature of `publish` asks for the service; a fiber shows its context without its type.
        const publisher = Context.getUnsafe(fiber.context, EventPublisher.EventPublisher)
        const surroundings = fiber.getRef(Execution.Surroundings)
        if (isSilent(publisher, surroundings)) return Effect.void
        const event = asDomainEvent(
          new LiveDomainEvent({
            type,
            domain,
            // Progress is told by one object that changes, more often than not.
            value: Snapshot.of(value),
            encode,
            clock: fiber.getRef(Clock.Clock),
            surroundings,
            span: fiber.cache.span,
            limits: publisher.limits
          })
        )
        if (publisher.waits) {
          return Effect.ignore(publisher.publish(event))
        }
        publisher.offer(event)
        return Effect.void
      })
  }
}

/**
 * The wire object of an event: plain JSON data. It does not throw.
 *
 * @category encoding
 * @since 0.1.0
 */
export const toJson = (event: DomainEvent): DomainEvent => ({
  type: event.type,
  id: event.id,
  domain: event.domain,
  timestamp: event.timestamp,
  ...(event.correlation_id === undefined ? {} : { correlation_id: event.correlation_id }),
  ...(event.root_id === undefined ? {} : { root_id: event.root_id }),
  ...(event.unit_name === undefined ? {} : { unit_name: event.unit_name }),
  ...(event.trace_id === undefined ? {} : { trace_id: event.trace_id }),
  ...(event.span_id === undefined ? {} : { span_id: event.span_id }),
  ...(event.attributes === undefined ? {} : { attributes: event.attributes }),
  source: event.source,
  sequence: event.sequence,
  payload: event.payload
})

/**
 * Decodes the wire object of an event. Fails with a `SchemaError` that names the field that does not fit; a retry does not help.
 *
 * @category encoding
 * @since 0.1.0
 */
export const fromJson: (json: unknown) => Effect.Effect<DomainEvent, Schema.SchemaError> = Schema
  .decodeUnknownEffect(DomainEvent)

/**
 * The event as a CloudEvents 1.0 object in structured JSON form: `type` is `effect-units.<type>`, the rest as for lifecycle events.
 *
 * @category CloudEvents
 * @since 0.1.0
 */
export const toCloudEvent = (event: DomainEvent): CloudEvent.CloudEvent =>
  CloudEvent.make({
    type: `effect-units.${event.type}`,
    subject: event.unit_name ?? event.domain,
    event,
    data: toJson(event)
  })

/**
 * Decodes the event out of a CloudEvents 1.0 object. Fails with a `SchemaError` where the envelope or the event does not fit.
 *
 * @category CloudEvents
 * @since 0.1.0
 */
export const fromCloudEvent = (cloudEvent: unknown): Effect.Effect<DomainEvent, Schema.SchemaError> =>
  Effect.flatMap(CloudEvent.decode(cloudEvent), (envelope) => fromJson(envelope.data))
