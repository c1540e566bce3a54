/**
 * Executions as OpenTelemetry spans, and what the library counts as OpenTelemetry metrics, by OTLP over HTTP.
 *
 * Spans are made from events, after the fact: a unit pays for its events and not for a span.
 *
 * **What a span holds**
 *
 * - Name: the unit's. Kind: internal. Start: the event's, in milliseconds; end: the start and the duration, in nanoseconds.
 * - Span id: the second half of the `correlation_id`, where that is a UUID of version 4 or 7, or else the second half of the first 16 bytes of
 *   its SHA-256. `spanId` gives it. So whoever has an event can find its span, and the same event always makes the same span: after
 *   a store, a retry or a broker, too.
 * - Trace id: that of the span that was active around the tree's first event, also where another process goes on with the tree by
 *   `Execution.continueFrom` and its `trace_id`; without one, the `root_id` by the same rule. `traceId` gives that.
 * - Parent: the execution's parent. At the root the span that was active around it, so that the tree hangs below it. Where a handler opened a
 *   span of its own around a child, the child stays below its parent, and has a link to that span.
 * - Status: error with the message for failures, defects and abandoned executions; `error.type`, `effect_units.failure.kind`, `.tag`, `.code`
 *   and `.retryable` say more. An interruption is no error: a race that was lost, a consumer that had enough. It shows by its
 *   `effect_units.failure.kind`.
 * - Attributes: what `Execution.annotate` set, under its own names, and `effect_units.domain`, `.kind`, `.correlation_id`, `.root_id`, and
 *   for streams `.chunks`. Inputs and outputs are not exported.
 * - Events: the domain events of the execution, with the fields of their payload; 128 at most, more are counted. One that comes outside of a
 *   running execution is a span without length, below its execution, or where it has none below the span that was active around it.
 *
 * **Guarantees**
 *
 * - No unit waits, and none fails. Spans are exported in batches, from a bounded buffer. A batch is tried five times in some 15 seconds; what
 *   the receiver then has not taken is given up, counted in `effect_units_spans_dropped` and logged. What a full buffer does not take is
 *   counted in `effect_units_events_dropped`.
 * - At least once, in no order that a receiver should rely on: children come before their parents. A repeated span has the same id.
 * - Closing the scope exports what was accepted, within `flushTimeout`. Executions that have not ended by then have no span, as they
 *   have none when the process dies.
 * - Every execution is exported, also where the span around it was not sampled; `EventPublisher.sample` chooses whole trees.
 *
 * Sources: OTLP specification 1.x, OTLP/HTTP and its JSON encoding; W3C Trace Context.
 *
 * @since 0.1.0
 */
import * as Config from "effect/Config"
import * as Duration from "effect/Duration"
import * as Effect from "effect/Effect"
import * as Fiber from "effect/Fiber"
import type * as HttpClient from "effect/http/HttpClient"
import * as HttpClientRequest from "effect/http/HttpClientRequest"
import * as Layer from "effect/Layer"
import * as Metric from "effect/Metric"
import * as OtlpExporter from "effect/observability/OtlpExporter"
import * as OtlpMetrics from "effect/observability/OtlpMetrics"
import * as OtlpResource from "effect/observability/OtlpResource"
import * as OtlpSerialization from "effect/observability/OtlpSerialization"
import * as Option from "effect/Option"
import * as Redacted from "effect/Redacted"
import * as Schedule from "effect/Schedule"
import * as Schema from "effect/Schema"
import type * as Scope from "effect/Scope"
import * as Semaphore from "effect/Semaphore"
import * as EventPublisher from "../EventPublisher.ts"
import * as HttpPost from "../internal/httpPost.ts"
import * as Json from "../internal/json.ts"
import * as Metrics from "../internal/metrics.ts"
import * as OtelSpans from "../internal/otelSpans.ts"
import { Ring } from "../internal/ring.ts"

/**
 * Where telemetry goes, and what it says of this service.
 *
 * @category models
 * @since 0.1.0
 */
export interface Receiver {
  /** Base address of the receiver, such as `http://localhost:4318`. `/v1/traces` and `/v1/metrics` are added. */
  readonly url: string
  /** `json`, the default, also tells how many spans the receiver refused; `protobuf` is smaller. */
  readonly encoding?: "json" | "protobuf" | undefined
  /** More headers, such as `authorization`. */
  readonly headers?: Readonly<Record<string, string | Redacted.Redacted>> | undefined
  /**
   * What is not given comes from `OTEL_SERVICE_NAME`, `OTEL_SERVICE_VERSION` and `OTEL_RESOURCE_ATTRIBUTES`. Without a service name building
   * the Layer fails with a `ConfigError`.
   */
  readonly resource?: {
    readonly serviceName?: string | undefined
    readonly serviceVersion?: string | undefined
    readonly attributes?: Readonly<Record<string, string | number | boolean>> | undefined
  } | undefined
}

/**
 * Settings of the spans.
 *
 * @category models
 * @since 0.1.0
 */
export interface TraceOptions extends Receiver {
  /** How long a span waits for others at most. Default 5 seconds. */
  readonly exportInterval?: Duration.Input | undefined
  /** So many spans go at once, without waiting. Default 512. */
  readonly maxBatchSize?: number | undefined
  /** How long one export may take. Default 10 seconds. */
  readonly timeout?: Duration.Input | undefined
  /** How many events may wait; more are dropped and counted. Default 16,384. */
  readonly capacity?: number | undefined
  /** How long closing the scope waits for what was accepted. Default 10 seconds. */
  readonly flushTimeout?: Duration.Input | undefined
  /** Default: a new UUID. Give one where a restarted process should go on under its old name. */
  readonly source?: string | undefined
  /** Longest string or blob in an event, in bytes; longer ones are replaced by their size and SHA-256. Default 64 KiB. */
  readonly maxFieldBytes?: number | undefined
}

/**
 * Settings of the metrics.
 *
 * @category models
 * @since 0.1.0
 */
export interface MetricOptions extends Receiver {
  /** How often the metrics are exported. Default 10 seconds. */
  readonly metricsInterval?: Duration.Input | undefined
  /** Whether a value counts from the start of the process, or from the export before. Default `cumulative`. */
  readonly temporality?: "cumulative" | "delta" | undefined
}

/**
 * The span id of an execution.
 *
 * @category ids
 * @since 0.1.0
 */
export const spanId = (correlationId: string): string => OtelSpans.spanId(correlationId)

/**
 * The trace id of a tree of executions around whose root no span was active. Where one was, the events have its id in `trace_id`.
 *
 * @category ids
 * @since 0.1.0
 */
export const traceId = (rootId: string): string => OtelSpans.traceId(rootId)

const spansDropped = Metric.counter("effect_units_spans_dropped", {
  description: "Spans that could not be exported",
  incremental: true
})

/** Executions, and traces, of which something is kept in mind. */
const maxKnown = 10_000

const isConfigError = (u: unknown): u is Config.ConfigError => u instanceof Config.ConfigError

const resourceOf = ({ resource }: Receiver): Effect.Effect<OtlpResource.Resource, Config.ConfigError> =>
  OtlpResource.fromConfig({ ...resource, attributes: { ...resource?.attributes } }).pipe(
    // It dies of a missing name, which is no mistake of the program.
    Effect.catchDefect((defect) => isConfigError(defect) ? Effect.fail(defect) : Effect.die(defect))
  )

const serializationOf = ({ encoding }: Receiver): Layer.Layer<OtlpSerialization.OtlpSerialization> =>
  encoding === "protobuf" ? OtlpSerialization.layerProtobuf : OtlpSerialization.layerJson

const headersOf = ({ headers }: Receiver): Record<string, string> =>
  Object.fromEntries(
    Object.entries(headers ?? {}).map((
      [name, value]
    ) => [name, Redacted.isRedacted(value) ? Redacted.value(value) : value])
  )

const urlOf = ({ url }: Receiver, path: string): string => `${url.replace(/\/+$/, "")}${path}`

/** Why spans were not taken, and how many of them. */
interface Rejection {
  readonly detail: string
  readonly spans: number
  readonly retryable: boolean
  readonly retryAfter: Duration.Duration | undefined
}

const longestRetryAfter = Duration.seconds(30)

const retries = Schedule.exponential("1 second").pipe(
  Schedule.jittered,
  Schedule.upTo({ times: 4 }),
  Schedule.setInputType<Rejection>(),
  Schedule.modifyDelay(({ duration, input: { retryAfter } }) =>
    Effect.succeed(
      retryAfter === undefined ? duration : Duration.max(duration, Duration.min(retryAfter, longestRetryAfter))
    )
  )
)

/** Source: OTLP specification, "OTLP/HTTP Response", "Failures". */
const isRetryable = (status: number): boolean => status === 429 || status === 502 || status === 503 || status === 504

/** Source: OTLP specification, "OTLP/HTTP Response", "Partial Success", in the JSON encoding. */
const decodePartialSuccess = Schema.decodeOption(Schema.fromJsonString(Schema.Struct({
  partialSuccess: Schema.Struct({
    rejectedSpans: Schema.Union([Schema.Finite, Schema.FiniteFromString]),
    errorMessage: Schema.optionalKey(Schema.String)
  })
})))

/** Sends spans, with retries. */
const sender = Effect.fnUntraced(function*(options: TraceOptions) {
  const post = yield* HttpPost.make
  const resource = yield* resourceOf(options)
  const serialization = yield* Effect.provide(OtlpSerialization.OtlpSerialization, serializationOf(options))
  const timeout = Duration.fromInputUnsafe(options.timeout ?? "10 seconds")
  const base = HttpClientRequest.post(urlOf(options, "/v1/traces"), { headers: headersOf(options) })

  return (spans: Array<OtelSpans.Span>): Effect.Effect<void, Rejection> => {
    const body = serialization.traces({
      resourceSpans: [{ resource, scopeSpans: [{ scope: { name: "effect-units" }, spans }] }]
    })
    const reject = (detail: string, more?: Partial<Rejection>) =>
      Effect.fail<Rejection>({ detail, spans: spans.length, retryable: true, retryAfter: undefined, ...more })
    return post(HttpClientRequest.setBody(base, body), timeout).pipe(
      Effect.catch((failure) => reject(failure._tag === "TimedOut" ? "no answer in time" : failure.code)),
      Effect.flatMap(({ redirected, retryAfter, status, text }) => {
        if (redirected || status < 200 || status >= 300) {
          return reject(`HTTP status ${status}`, { retryable: isRetryable(status), retryAfter })
        }
        const partial = Option.map(decodePartialSuccess(text), ({ partialSuccess }) => partialSuccess)
        return Option.isSome(partial) && partial.value.rejectedSpans > 0
          ? reject(partial.value.errorMessage ?? "no reason given", {
            retryable: false,
            spans: partial.value.rejectedSpans
          })
          : Effect.void
      }),
      Effect.retry({ schedule: retries, while: ({ retryable }) => retryable })
    )
  }
})

const make = Effect.fnUntraced(function*(
  options: TraceOptions
): Effect.fn.Return<EventPublisher.Publisher, Config.ConfigError, HttpClient.HttpClient | Scope.Scope> {
  const send = yield* sender(options)
  const context = yield* Effect.context<never>()
  const ring = new Ring<EventPublisher.Event>(options.capacity ?? 16_384)
  const maxBatchSize = Math.max(1, options.maxBatchSize ?? 512)
  const spans = new OtelSpans.Spans(maxKnown)
  const exporting = yield* Semaphore.make(1)
  let pending: Array<OtelSpans.Span> = []
  let sending = 0
  let overflowing = false
  let failing = false

  const warn = (message: string): void => void Effect.logWarning(message).pipe(Effect.runForkWith(context))

  const offer = (event: EventPublisher.Event): void => {
    if (ring.offer(event)) {
      overflowing = false
      return
    }
    Metrics.drops("opentelemetry").updateUnsafe(1, context)
    if (overflowing) return
    overflowing = true
    warn(
      `The buffer of the OpenTelemetry publisher is full (${ring.capacity} events). Further events are dropped, and counted in ` +
        "effect_units_events_dropped."
    )
  }

  const lose = (count: number, detail: string): void => {
    spansDropped.updateUnsafe(count, context)
    if (failing) return
    failing = true
    warn(`${count} spans were not exported: ${detail}. Further ones are counted in effect_units_spans_dropped.`)
  }

  const exportPending = exporting.withPermit(Effect.suspend(() => {
    if (pending.length === 0) return Effect.void
    const batch = pending
    pending = []
    sending = batch.length
    return Effect.match(send(batch), {
      onSuccess: () => {
        sending = 0
        failing = false
      },
      onFailure: ({ detail, spans }) => {
        sending = 0
        lose(spans, detail)
      }
    })
  }))

  const add = (event: EventPublisher.Event): Effect.Effect<void> => {
    try {
      const span = spans.add(event)
      if (span !== undefined) pending.push(span)
    } catch (thrown) {
      // An event of somebody's own making, as those of units can always be read.
      lose(1, Json.describe(thrown))
    }
    // Waits for an export that is under way, so that no more than a batch is pending.
    return pending.length < maxBatchSize ? Effect.void : exportPending
  }

  const collector = yield* Effect.forkDetach(Effect.andThen(ring.forEach(add), exportPending))
  const ticker = yield* Effect.forkDetach(
    Effect.forever(Effect.andThen(Effect.sleep(options.exportInterval ?? "5 seconds"), exportPending))
  )
  yield* Effect.addFinalizer(() =>
    Effect.suspend(() => {
      ring.end()
      return Effect.map(Effect.timeoutOption(Fiber.await(collector), options.flushTimeout ?? "10 seconds"), () => {
        // Not waited for, as the deadline may have passed.
        collector.interruptUnsafe()
        ticker.interruptUnsafe()
        if (ring.size > 0) Metrics.drops("opentelemetry").updateUnsafe(ring.size, context)
        const lost = pending.length + sending
        if (lost > 0) spansDropped.updateUnsafe(lost, context)
        if (lost + ring.size > 0) {
          warn(
            `The OpenTelemetry publisher was closed with ${lost} spans and ${ring.size} events that were not exported.`
          )
        }
      })
    })
  )
  return yield* EventPublisher.make({ publish: offer, source: options.source, maxFieldBytes: options.maxFieldBytes })
})

/**
 * Layer that exports executions as spans, and no metrics. Fails with a `ConfigError` where the service has no name.
 *
 * @category layers
 * @since 0.1.0
 */
export const layerTraces = (
  options: TraceOptions
): Layer.Layer<EventPublisher.EventPublisher, Config.ConfigError, HttpClient.HttpClient> =>
  Layer.effect(EventPublisher.EventPublisher, make(options))

/**
 * Layer that exports all Effect metrics of the application, those of this library among them: executions by unit and outcome, their
 * durations, what publishers have dropped. They are the ones that units count anyway, and nothing is counted again. Leave it out where
 * the application exports its metrics already.
 *
 * @category layers
 * @since 0.1.0
 */
export const layerMetrics = (options: MetricOptions): Layer.Layer<never, Config.ConfigError, HttpClient.HttpClient> =>
  Layer.effectDiscard(
    // For its typed failure: the exporter dies of a missing name.
    Effect.andThen(
      resourceOf(options),
      OtlpMetrics.make({
        url: urlOf(options, "/v1/metrics"),
        resource: { ...options.resource, attributes: { ...options.resource?.attributes } },
        headers: headersOf(options),
        exportInterval: options.metricsInterval,
        temporality: options.temporality
      })
    )
  ).pipe(Layer.provide([serializationOf(options), OtlpExporter.layerFlusher]))

/**
 * Layer that exports executions as spans, and metrics; see `layerTraces` and `layerMetrics`.
 *
 * **Example** (A collector on this machine)
 *
 * ```ts
 * const layer = OpenTelemetry.layer({
 *   url: "http://localhost:4318",
 *   resource: { serviceName: "inference" }
 * }).pipe(Layer.provide(FetchHttpClient.layer))
 * ```
 *
 * @category layers
 * @since 0.1.0
 */
export const layer = (
  options: TraceOptions & MetricOptions
): Layer.Layer<EventPublisher.EventPublisher, Config.ConfigError, HttpClient.HttpClient> =>
  Layer.merge(layerTraces(options), layerMetrics(options))
