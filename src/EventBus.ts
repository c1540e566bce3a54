/**
 * Publish and subscribe within one process: events as Streams.
 *
 * Each subscriber has a bounded buffer of its own. One that is slow, fails or goes away costs the others, and the units, nothing;
 * what it misses is counted, and it is told.
 *
 * @since 0.1.0
 */
import * as Arr from "effect/Array"
import * as Cause from "effect/Cause"
import * as Context from "effect/Context"
import * as Effect from "effect/Effect"
import * as Layer from "effect/Layer"
import * as Metric from "effect/Metric"
import type * as Pull from "effect/Pull"
import * as Schedule from "effect/Schedule"
import type * as Scope from "effect/Scope"
import * as Stream from "effect/Stream"
import type { DomainEvent } from "./DomainEvent.ts"
import type { Event } from "./EventPublisher.ts"
import { EventSubscriber, fromStream, SubscribeError, wants } from "./EventSubscriber.ts"
import { type ExecutionEvent, isExecutionEvent } from "./ExecutionEvent.ts"
import { beganAfter, rootCount } from "./internal/liveEvent.ts"
import * as Metrics from "./internal/metrics.ts"
import { Ring } from "./internal/ring.ts"

/**
 * How a subscriber takes what comes. What it misses is counted in `effect_units_events_dropped`, too.
 *
 * @category models
 * @since 0.1.0
 */
export interface Delivery {
  /** How many events may wait for this subscriber. Default 4,096. */
  readonly capacity?: number | undefined
  /** Which event is lost where more would wait: the newest (`dropping`, the default) or the oldest (`sliding`). */
  readonly strategy?: "dropping" | "sliding" | undefined
  /**
   * Called in the subscriber's own fiber with the number of events that are missing, after the last one before them and before the
   * next one. Default: a warning in the log.
   */
  readonly onGap?: ((missed: number) => Effect.Effect<void>) | undefined
  /**
   * Also take part in trees of executions that are under way already. Default `false`: a subscriber sees a tree from its first event
   * on, or not at all.
   */
  readonly includeRunning?: boolean | undefined
}

/**
 * Which lifecycle events a subscriber wants. Every list that is given has to hold the event's value.
 *
 * @category models
 * @since 0.1.0
 */
export interface Options extends Delivery {
  readonly types?: ReadonlyArray<ExecutionEvent["event_type"]> | undefined
  readonly domains?: ReadonlyArray<string> | undefined
  readonly units?: ReadonlyArray<string> | undefined
  /** The events of one execution. */
  readonly correlationId?: string | undefined
  /** The events of one execution and all below it. */
  readonly rootId?: string | undefined
}

/**
 * Which domain events a subscriber wants.
 *
 * @category models
 * @since 0.1.0
 */
export interface DomainOptions extends Delivery {
  readonly types?: ReadonlyArray<string> | undefined
  readonly domains?: ReadonlyArray<string> | undefined
  readonly correlationId?: string | undefined
}

/**
 * The service: publish, and subscribe.
 *
 * @category services
 * @since 0.1.0
 */
export class EventBus extends Context.Service<EventBus, {
  /** Hands an event to every subscriber that wants it. Never waits, never throws. */
  readonly publish: (event: Event) => void
  /** The lifecycle events from now on; the subscription exists when this effect has run, and ends with the scope. */
  readonly subscription: (options?: Options) => Effect.Effect<Stream.Stream<ExecutionEvent>, never, Scope.Scope>
  /** The domain events from now on; see `subscription`. */
  readonly domainSubscription: (
    options?: DomainOptions
  ) => Effect.Effect<Stream.Stream<DomainEvent>, never, Scope.Scope>
  /** The events of both kinds from now on, in one order, that a predicate accepts; see `subscription`. */
  readonly subscriptionOf: (
    wants: (event: Event) => boolean,
    options?: Delivery
  ) => Effect.Effect<Stream.Stream<Event>, never, Scope.Scope>
  /** How many subscribers there are. */
  readonly subscribers: Effect.Effect<number>
}>()("effect-units/EventBus") {}

interface Subscriber {
  readonly wants: (event: Event) => boolean
  readonly end: () => void
  readonly offer: (event: Event) => boolean
}

const within = (list: ReadonlyArray<string> | undefined): (value: string | undefined) => boolean => {
  if (list === undefined) return () => true
  const set: ReadonlySet<string | undefined> = new Set(list)
  return (value) => set.has(value)
}

const lifecycle = (options: Options): (event: Event) => event is ExecutionEvent => {
  const types = within(options.types)
  const domains = within(options.domains)
  const units = within(options.units)
  const { correlationId, rootId } = options
  return (event): event is ExecutionEvent =>
    isExecutionEvent(event) && types(event.event_type) && domains(event.domain) && units(event.unit_name) &&
    (correlationId === undefined || event.correlation_id === correlationId) &&
    (rootId === undefined || event.root_id === rootId)
}

const domain = (options: DomainOptions): (event: Event) => event is DomainEvent => {
  const types = within(options.types)
  const domains = within(options.domains)
  const { correlationId } = options
  return (event): event is DomainEvent =>
    !isExecutionEvent(event) && types(event.type) && domains(event.domain) &&
    (correlationId === undefined || event.correlation_id === correlationId)
}

const warn = (missed: number): Effect.Effect<void> =>
  Effect.logWarning(`A subscriber of the event bus is too slow: it missed ${missed} events`)

/** How many events a subscriber gets in one chunk of its stream. */
const chunkSize = 256

const make = Effect.gen(function*() {
  const subscribers = new Set<Subscriber>()
  const drops = Metrics.drops("bus")
  const context = yield* Effect.context<never>()
  let closed = false

  const subscribe = Effect.fnUntraced(function*<E extends Event>(
    wants: (event: Event) => event is E,
    options: Delivery
  ): Effect.fn.Return<Stream.Stream<E>, never, Scope.Scope> {
    const since = options.includeRunning === true ? undefined : rootCount()
    const ring = new Ring<E>(options.capacity ?? 4096)
    const subscriber: Subscriber = {
      end: () => ring.end(),
      wants: since === undefined ? wants : (event) => beganAfter(event, since) && wants(event),
      // `wants` has let only events of type E through.
      offer: (event) => options.strategy === "sliding" ? ring.slide(event as E) : ring.offer(event as E)
    }
    yield* Effect.acquireRelease(
      Effect.sync(() => closed ? ring.end() : void subscribers.add(subscriber)),
      () =>
        Effect.sync(() => {
          subscribers.delete(subscriber)
          ring.end()
        })
    )
    const onGap = options.onGap ?? warn
    const pull: Pull.Pull<Arr.NonEmptyReadonlyArray<E>> = Effect.flatMap(ring.take(chunkSize), (batch) => {
      if (batch === undefined) return Cause.done()
      const onward = Arr.isReadonlyArrayNonEmpty(batch.items) ? Effect.succeed(batch.items) : pull
      return batch.missed === 0 ? onward : Effect.andThen(onGap(batch.missed), onward)
    })
    return Stream.fromPull(Effect.succeed(pull))
  })

  yield* Effect.addFinalizer(() =>
    Effect.sync(() => {
      closed = true
      for (const subscriber of subscribers) subscriber.end()
      subscribers.clear()
    })
  )

  return EventBus.of({
    publish: (event) => {
      for (const subscriber of subscribers) {
        if (subscriber.wants(event) && !subscriber.offer(event)) drops.updateUnsafe(1, context)
      }
    },
    subscription: (options = {}) => subscribe(lifecycle(options), options),
    domainSubscription: (options = {}) => subscribe(domain(options), options),
    subscriptionOf: (wants, options = {}) => subscribe((event): event is Event => wants(event), options),
    subscribers: Effect.sync(() => subscribers.size)
  })
})

/**
 * Layer of a bus without subscribers. When its scope closes, every subscriber still gets what waits for it, and its stream ends.
 *
 * @category layers
 * @since 0.1.0
 */
export const layer: Layer.Layer<EventBus> = Layer.effect(EventBus, make)

/**
 * Layer that reads the bus as one reads any other transport: with acknowledgements.
 *
 * Guarantees: in the order of publishing; each event once, and again where it is given back or not acknowledged in time; events that a
 * subscriber had no room for are told in `missed`. The bus keeps nothing: a subscription begins with what is published from then on, and
 * one that names a `consumer`, or wants to begin elsewhere, fails with a `SubscribeError`.
 *
 * @category layers
 * @since 0.1.0
 */
export const layerSubscriber = (
  options?: Pick<Delivery, "capacity" | "strategy">
): Layer.Layer<EventSubscriber, never, EventBus> =>
  Layer.effect(
    EventSubscriber,
    EventBus.useSync((bus) =>
      EventSubscriber.of({
        subscribe: (wanted) => {
          if (wanted.consumer !== undefined || (wanted.from ?? "new") !== "new") return Effect.fail(keepsNothing())
          let position = 0
          let missed = 0
          const onGap = (count: number): Effect.Effect<void> =>
            Effect.sync(() => {
              missed += count
            })
          return Effect.flatMap(
            bus.subscriptionOf(wants(wanted), { ...options, onGap, includeRunning: true }),
            (events) =>
              fromStream(
                Stream.map(events, (event) => {
                  const before = missed
                  missed = 0
                  return { event, position: String(++position), missed: before }
                }),
                wanted
              )
          )
        }
      })
    )
  )

const keepsNothing = (): SubscribeError =>
  new SubscribeError({
    transport: "the event bus",
    detail: "it keeps no events. Leave `consumer` and `from` out, or take a durable transport",
    retryable: false
  })

/**
 * The lifecycle events from the moment the stream is first pulled.
 *
 * **Details**
 *
 * Events come in the order in which they were published. The stream ends when the bus's scope closes. Use
 * `EventBus.subscription` where the subscription has to exist before something else begins.
 *
 * **Gotchas**
 *
 * Events come in chunks. A consumer that fails with one and runs the stream again does not get the rest of its chunk: see to the
 * failures of each event by itself, or use `listen`, which does.
 *
 * **Example** (Watching for failures)
 *
 * ```ts
 * const failures = EventBus.subscribe({ types: ["execution_failed"], domains: ["model"] }).pipe(
 *   Stream.runForEach((event) => Effect.logError(`${event.unit_name} failed: ${event.event_type}`))
 * )
 * ```
 *
 * @category streams
 * @since 0.1.0
 */
export const subscribe = (options?: Options): Stream.Stream<ExecutionEvent, never, EventBus> =>
  Stream.unwrap(EventBus.use((bus) => bus.subscription(options)))

/**
 * Settings of `listen`.
 *
 * @category models
 * @since 0.1.0
 */
export interface ListenOptions extends Options {
  /** When an event is handled again whose handler failed or died. Default: three times, after 100, 200 and 400 ms. */
  readonly retry?: Schedule.Schedule<unknown> | undefined
}

const defaultRetry = Schedule.exponential("100 millis").pipe(Schedule.upTo({ times: 3 }))

/**
 * Handles the lifecycle events one after the other, from the moment it runs until the bus's scope closes, whatever becomes of each.
 *
 * **Details**
 *
 * A handler that fails or dies gets the same event again, by `retry`; then the event is given up, which is counted in
 * `effect_units_listener_failures` and logged once per streak, and the handler gets the next one. Meanwhile events wait, as for any
 * slow subscriber.
 *
 * **Example** (Mailing about failures)
 *
 * ```ts
 * const mailer = EventBus.listen((event) => sendMail(event.unit_name), { types: ["execution_failed"] })
 * const program = Effect.andThen(Effect.forkScoped(mailer), serve)
 * ```
 *
 * @category streams
 * @since 0.1.0
 */
export const listen = <E, R>(
  handle: (event: ExecutionEvent) => Effect.Effect<void, E, R>,
  options?: ListenOptions
): Effect.Effect<void, never, R | EventBus> =>
  Effect.suspend(() => {
    let failing = false
    const given = Effect.sync(() => {
      failing = false
    })
    const givenUp = (cause: Cause.Cause<E>): Effect.Effect<void> =>
      Effect.suspend(() => {
        const counted = Metric.update(Metrics.listenerFailures, 1)
        if (failing) return counted
        failing = true
        return Effect.andThen(
          counted,
          Effect.logWarning(
            "A listener of the event bus gave an event up; further ones are counted in effect_units_listener_failures.",
            cause
          )
        )
      })
    return Stream.runForEach(subscribe(options), (event) =>
      Effect.suspend(() => handle(event)).pipe(
        Effect.sandbox,
        Effect.retry(options?.retry ?? defaultRetry),
        Effect.matchEffect({ onSuccess: () => given, onFailure: givenUp })
      ))
  })

/**
 * The domain events from the moment the stream is first pulled; see `subscribe`.
 *
 * @category streams
 * @since 0.1.0
 */
export const subscribeDomain = (options?: DomainOptions): Stream.Stream<DomainEvent, never, EventBus> =>
  Stream.unwrap(EventBus.use((bus) => bus.domainSubscription(options)))
