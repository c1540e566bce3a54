/**
 * The CloudEvents 1.0 envelope in structured JSON form, as far as the library's events need it.
 *
 * Written by hand, as the form is a handful of fields; the tests hold it against the `cloudevents` package.
 *
 * @since 0.1.0
 */
import type * as Effect from "effect/Effect"
import * as Schema from "effect/Schema"

/** @internal */
export const CloudEvent = Schema.Struct({
  specversion: Schema.Literal("1.0"),
  id: Schema.NonEmptyString,
  source: Schema.NonEmptyString,
  type: Schema.NonEmptyString,
  subject: Schema.optionalKey(Schema.String),
  time: Schema.optionalKey(Schema.String),
  datacontenttype: Schema.optionalKey(Schema.String),
  correlationid: Schema.optionalKey(Schema.String),
  partitionkey: Schema.optionalKey(Schema.String),
  sequence: Schema.optionalKey(Schema.String),
  traceparent: Schema.optionalKey(Schema.String),
  data: Schema.Json
})

/** @internal */
export type CloudEvent = typeof CloudEvent.Type

/** @internal */
export const decode: (u: unknown) => Effect.Effect<CloudEvent, Schema.SchemaError> = Schema.decodeUnknownEffect(
  CloudEvent
)

interface Source {
  readonly id: string
  readonly source: string
  readonly sequence: number
  readonly timestamp: string
  readonly correlation_id?: string | undefined
  readonly root_id?: string | undefined
  readonly trace_id?: string | undefined
  readonly span_id?: string | undefined
}

/** @internal */
export const make = (options: {
  readonly type: string
  readonly subject: string
  readonly event: Source
  readonly data: Schema.Json
}): CloudEvent => {
  const { event } = options
  const partition = event.root_id ?? event.correlation_id
  return {
    specversion: "1.0",
    id: event.id,
    source: `/effect-units/${encodeURIComponent(event.source)}`,
    type: options.type,
    subject: options.subject,
    time: event.timestamp,
    datacontenttype: "application/json",
    ...(event.correlation_id === undefined ? {} : { correlationid: event.correlation_id }),
    ...(partition === undefined ? {} : { partitionkey: partition }),
    sequence: String(event.sequence),
    ...(event.trace_id === undefined || event.span_id === undefined
      ? {}
      : { traceparent: `00-${event.trace_id}-${event.span_id}-01` }),
    data: options.data
  }
}
