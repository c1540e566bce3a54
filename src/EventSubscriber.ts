/**
 * Reading events back from a transport: deliveries that are acknowledged once they are handled.
 *
 * Delivery is at least once, in order per execution, with the event's `id` as the key to deduplicate on. What a transport promises
 * beyond that is in its own documentation.
 *
 * @since 0.1.0
 */
import type * as Cause from "effect/Cause"
import * as Context from "effect/Context"
import type * as Duration from "effect/Duration"
import * as Effect from "effect/Effect"
import { dual } from "effect/Function"
import * as Layer from "effect/Layer"
import * as Predicate from "effect/Predicate"
import * as Schema from "effect/Schema"
import type * as Scope from "effect/Scope"
import * as Stream from "effect/Stream"
import type { Event } from "./EventPublisher.ts"
import { isExecutionEvent } from "./ExecutionEvent.ts"
import { acknowledging } from "./internal/acknowledging.ts"

/**
 * Where a subscription begins: with what comes from now on, with the oldest event there is, with the first event after a time in Unix
 * milliseconds, or right after a position of the transport, as deliveries have them.
 *
 * @category models
 * @since 0.1.0
 */
export type From = "new" | "beginning" | { readonly time: number } | { readonly position: string }

/**
 * How long an event that was given back waits for its next attempt: `base`, and `factor` times as long after each further one, at most
 * `max`; each time up to a fifth more or less.
 *
 * @category models
 * @since 0.1.0
 */
export interface Backoff {
  /** Default 100 milliseconds. */
  readonly base?: Duration.Input | undefined
  /** Default 5 minutes. */
  readonly max?: Duration.Input | undefined
  /** Default 2. */
  readonly factor?: number | undefined
}

/**
 * What a subscriber wants, and how.
 *
 * @category models
 * @since 0.1.0
 */
export interface Options {
  /**
   * Name of a durable consumer. The transport keeps its position, so that a subscriber of the same name goes on where the last one
   * stopped; subscribers that share the name at one time share the events, each going to one of them. Without a name a subscriber
   * sees all events, and its position is forgotten when it ends.
   */
  readonly consumer?: string | undefined
  /** Where a consumer that is new begins. Default `beginning` with a name, `new` without. */
  readonly from?: From | undefined
  /** Lifecycle event types, or types of domain events. Default: all. */
  readonly types?: ReadonlyArray<string> | undefined
  /** Default: all. */
  readonly domains?: ReadonlyArray<string> | undefined
  /** Names of units. Default: all. */
  readonly units?: ReadonlyArray<string> | undefined
  /** How many deliveries may be unacknowledged at a time. 1 keeps strict order. Default 1. */
  readonly maxInFlight?: number | undefined
  /** After how long without an acknowledgement an event is delivered again. Default 30 seconds. */
  readonly ackTimeout?: Duration.Input | undefined
  /** The pause before another attempt. */
  readonly backoff?: Backoff | undefined
  /**
   * After how many attempts an event is parked, where the transport parks events: the event store does, for named consumers. Elsewhere
   * attempts go on. Default 15, which with the default backoff takes about a quarter of an hour.
   */
  readonly maxAttempts?: number | undefined
}

/**
 * An event on its way to a handler.
 *
 * @category models
 * @since 0.1.0
 */
export interface Delivery {
  readonly event: Event
  /** The transport's own position of the event: an offset, a sequence, an entry id. */
  readonly position: string
  /** 1 on the first delivery to this consumer; more on each that follows a `retry`, a crash or a timeout. */
  readonly attempt: number
  /** Events that the transport has lost right before this one, as far as it can tell: trimmed, expired. */
  readonly missed: number
  /** The event is handled: it is not delivered to this consumer again. */
  readonly ack: Effect.Effect<void, SubscribeError>
  /** The event is not handled: it is delivered again. What went wrong is kept where the transport parks events. */
  readonly retry: (cause?: Cause.Cause<unknown>) => Effect.Effect<void, SubscribeError>
}

/**
 * Reading from a transport failed. A retry of the subscription can help where `retryable` says so; a named consumer then goes on where it
 * stopped.
 *
 * @category errors
 * @since 0.1.0
 */
export class SubscribeError extends Schema.TaggedError<SubscribeError>("effect-units/EventSubscriber/SubscribeError")(
  "SubscribeError",
  {
    transport: Schema.String,
    /** What failed, and what to do. */
    detail: Schema.String,
    retryable: Schema.Boolean,
    /**
     * Of an acknowledgement: the event went to another subscriber of the consumer, as it was not acknowledged in time; or the subscription
     * has ended. The event is, or will be, delivered again.
     */
    reason: Schema.optionalKey(Schema.Literals(["lease_lost", "ended"])),
    cause: Schema.optionalKey(Schema.Defect())
  }
) {
  override get message(): string {
    return `Reading events from ${this.transport} failed: ${this.detail}`
  }
}

/**
 * The reading end of a transport.
 *
 * @category services
 * @since 0.1.0
 */
export class EventSubscriber extends Context.Service<EventSubscriber, {
  /**
   * The deliveries of a subscription. It exists as soon as the effect has succeeded, and ends with the scope; what was delivered and not
   * acknowledged by then is delivered to the consumer's next subscriber.
   */
  readonly subscribe: (options: Options) => Effect.Effect<
    Stream.Stream<Delivery, SubscribeError>,
    SubscribeError,
    Scope.Scope
  >
}>()("effect-units/EventSubscriber") {}

const among = (list: ReadonlyArray<string> | undefined): (value: string | undefined) => boolean => {
  if (list === undefined) return () => true
  const set: ReadonlySet<string | undefined> = new Set(list)
  return (value) => set.has(value)
}

/**
 * Whether a subscription wants an event, by its `types`, `domains` and `units`; for transports that cannot filter themselves.
 *
 * @category constructors
 * @since 0.1.0
 */
export const wants = (options: Pick<Options, "types" | "domains" | "units">): (event: Event) => boolean => {
  const types = among(options.types)
  const domains = among(options.domains)
  const units = among(options.units)
  return (event) =>
    types(isExecutionEvent(event) ? event.event_type : event.type) && domains(event.domain) && units(event.unit_name)
}

/**
 * Deliveries out of a plain stream of events, for transports that know no acknowledgements.
 *
 * **Details**
 *
 * At most `maxInFlight` events are unacknowledged at a time, those that wait for another attempt included. One that is given back is
 * delivered again after its `backoff`, one that is not acknowledged within `ackTimeout` right then, each before newer ones. Attempts are counted in memory. The source is read from now on until the scope closes, and no further ahead
 * than there is room for; when it ends, the deliveries end once nothing is in flight.
 *
 * **Example** (Reading what a receiver of webhooks gets)
 *
 * ```ts
 * const subscriber = EventSubscriber.of({
 *   subscribe: (options) =>
 *     fromStream(
 *       received.pipe(Stream.filter(wants(options)), Stream.map((event) => ({ event, position: event.id, missed: 0 }))),
 *       options
 *     )
 * })
 * ```
 *
 * @category constructors
 * @since 0.1.0
 */
export const fromStream = (
  source: Stream.Stream<Pick<Delivery, "event" | "position" | "missed">, SubscribeError>,
  options: Pick<Options, "maxInFlight" | "ackTimeout" | "backoff">
): Effect.Effect<Stream.Stream<Delivery, SubscribeError>, never, Scope.Scope> => acknowledging(source, options)

/**
 * Settings of `distinct`.
 *
 * @category models
 * @since 0.1.0
 */
export interface DistinctOptions {
  /** How many ids a subscription remembers; the oldest go first. Default 65,536, which take some ten megabytes. */
  readonly capacity?: number | undefined
}

/** The first copy of an event that a subscription has seen. */
interface First {
  readonly position: string
  isHandled: boolean
}

const withoutCopies =
  (capacity: number) => (self: Stream.Stream<Delivery, SubscribeError>): Stream.Stream<Delivery, SubscribeError> =>
    Stream.suspend(() => {
      const known = new Map<string, First>()
      let missed = 0
      const pass = (delivery: Delivery): Effect.Effect<Delivery | undefined, SubscribeError> => {
        const { event: { id }, position } = delivery
        const first = known.get(id)
        missed += delivery.missed
        // A copy is not needed while the first is being handled, either: that one comes again until it is.
        if (first !== undefined && (first.isHandled || first.position !== position)) {
          return Effect.as(settle(delivery.ack), undefined)
        }
        const own = first ?? { position, isHandled: false }
        known.set(id, own)
        const [oldest = id] = known.keys()
        if (known.size > capacity) known.delete(oldest)
        const told = missed
        missed = 0
        const ack = Effect.tap(delivery.ack, () =>
          Effect.sync(() => {
            own.isHandled = true
          }))
        return Effect.succeed({ ...delivery, missed: told, ack })
      }
      return self.pipe(Stream.mapEffect(pass), Stream.filter(Predicate.isNotUndefined))
    })

/**
 * Passes over the copies of an event that its transport has twice, as after a publish whose acknowledgement was lost for longer than the
 * transport remembers ids: they are acknowledged and not delivered. Changes the subscriber of a Layer, and nothing else that it gives.
 *
 * **Gotchas**
 *
 * Each subscription has a memory of its own, which ends with it. What was handled and not acknowledged when a process died comes again, and
 * of copies that go to two subscribers of one name each gets one. Where that must not be, a handler stores the event's id together with
 * what it does, under a unique key.
 *
 * **Example** (A broker that stores again what is sent again)
 *
 * ```ts
 * const layer = Redis.layer({ url }).pipe(EventSubscriber.distinct())
 * ```
 *
 * @category combinators
 * @since 0.1.0
 */
export const distinct: {
  (options?: DistinctOptions): <A, E, R>(
    self: Layer.Layer<A | EventSubscriber, E, R>
  ) => Layer.Layer<A | EventSubscriber, E, R>
  <A, E, R>(
    self: Layer.Layer<A | EventSubscriber, E, R>,
    options?: DistinctOptions
  ): Layer.Layer<A | EventSubscriber, E, R>
} = dual(
  (args) => Layer.isLayer(args[0]),
  <A, E, R>(
    self: Layer.Layer<A | EventSubscriber, E, R>,
    { capacity = 65_536 }: DistinctOptions = {}
  ): Layer.Layer<A | EventSubscriber, E, R> =>
    Layer.effectContext(Effect.map(Layer.build(self), (context) => {
      const { subscribe } = Context.get(context, EventSubscriber)
      return Context.add(context, EventSubscriber, {
        subscribe: (options) => Effect.map(subscribe(options), withoutCopies(capacity))
      })
    }))
)

/**
 * The deliveries of a subscription, as a Stream that subscribes when it is first pulled.
 *
 * @category streams
 * @since 0.1.0
 */
export const deliveries = (options: Options): Stream.Stream<Delivery, SubscribeError, EventSubscriber> =>
  Stream.unwrap(EventSubscriber.use((subscriber) => subscriber.subscribe(options)))

/**
 * Handles events, one after the other, for as long as it runs. An event is acknowledged when its handler succeeds; when the handler fails or
 * dies, the event is given back with what went wrong, which is logged. Interruption leaves the event that is being handled unacknowledged.
 *
 * **Details**
 *
 * With `maxInFlight` above 1 the next event is handled while the last one is being acknowledged, which lets a transport acknowledge many
 * at once. An acknowledgement that comes too late, as another subscriber has the event by then, is logged.
 *
 * **Example** (A named consumer)
 *
 * ```ts
 * const worker = EventSubscriber.consume({ consumer: "billing", types: ["execution_completed"] }, (event) => charge(event))
 * ```
 *
 * @category consumers
 * @since 0.1.0
 */
export const consume = <E, R>(
  options: Options,
  handler: (event: Event, delivery: Delivery) => Effect.Effect<unknown, E, R>
): Effect.Effect<void, SubscribeError, R | EventSubscriber> =>
  deliveries(options).pipe(
    Stream.mapEffect((delivery) =>
      Effect.matchCauseEffect(handler(delivery.event, delivery), {
        onSuccess: () => Effect.succeed(delivery.ack),
        onFailure: (cause) =>
          Effect.as(
            Effect.logWarning(`A handler failed on ${delivery.event.id}, attempt ${delivery.attempt}`, cause),
            delivery.retry(cause)
          )
      })
    ),
    Stream.mapEffect(settle, { concurrency: Math.max(1, options.maxInFlight ?? 1), unordered: true }),
    Stream.runDrain
  )

const settle = (how: Effect.Effect<void, SubscribeError>): Effect.Effect<void, SubscribeError> =>
  Effect.catchIf(how, ({ reason }) => reason === "lease_lost", (error) => Effect.logWarning(error.message))
