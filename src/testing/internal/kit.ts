/**
 * What the cases of the conformance suite are made of: builds of a Layer, readers that record, events, and waiting with a bound.
 *
 * @since 0.1.0
 */
import * as Cause from "effect/Cause"
import type * as Clock from "effect/Clock"
import * as Context from "effect/Context"
import * as Duration from "effect/Duration"
import * as Effect from "effect/Effect"
import * as Equal from "effect/Equal"
import * as Exit from "effect/Exit"
import * as Fiber from "effect/Fiber"
import * as Layer from "effect/Layer"
import * as Metric from "effect/Metric"
import type * as Schema from "effect/Schema"
import * as Scope from "effect/Scope"
import * as Stream from "effect/Stream"
import * as DomainEvent from "../../DomainEvent.ts"
import * as EventPublisher from "../../EventPublisher.ts"
import * as EventSubscriber from "../../EventSubscriber.ts"
import * as ExecutionEvent from "../../ExecutionEvent.ts"
import { uuidV7 } from "../../internal/ids.ts"
import { Nonconformance } from "../Nonconformance.ts"

type Event = EventPublisher.Event
type Delivery = EventSubscriber.Delivery

/**
 * One build of the Layer under test.
 *
 * @internal
 */
export interface Build {
  readonly publisher: EventPublisher.Publisher
  readonly subscriber: EventSubscriber.EventSubscriber["Service"]
  /** How many events the publisher says that it lost, by its metrics. */
  readonly losses: Effect.Effect<number>
  /** Closes the Layer's scope, within the bound. */
  readonly close: Effect.Effect<void, Nonconformance>
}

/**
 * A subscription that records.
 *
 * @internal
 */
export interface Reader {
  /** In the order of their arrival. */
  readonly deliveries: ReadonlyArray<Delivery>
  /**
   * Waits until the deliveries pass a test, as long as there are any; `missing` says what is awaited where nothing comes within the bound, or
   * the subscription ends before.
   */
  readonly until: (
    test: (deliveries: ReadonlyArray<Delivery>) => boolean,
    missing: () => string
  ) => Effect.Effect<void, Nonconformance>
  /** Waits for the subscription to end by itself, and fails where it fails. */
  readonly ended: Effect.Effect<void, Nonconformance>
  /** Closes the subscription, within the bound. */
  readonly close: Effect.Effect<void, Nonconformance>
}

/**
 * Waits until every one of these events has been delivered to one reader or another.
 *
 * @internal
 */
export const gather = (
  readers: ReadonlyArray<Reader>,
  events: ReadonlyArray<Event>
): Effect.Effect<void, Nonconformance> =>
  Effect.suspend(() => {
    const missing = new Set(events.map(({ id }) => id))
    // Whoever gets the last one is the first to see that none is missing.
    return Effect.raceAll(readers.map((reader) => {
      let seen = 0
      return reader.until(
        (all) => {
          for (; seen < all.length; seen++) missing.delete(all[seen]?.event.id ?? "")
          return missing.size === 0
        },
        () => notCome(missing, events)
      )
    }))
  })

const notCome = (missing: ReadonlySet<string>, events: ReadonlyArray<Event>): string => {
  const [first] = missing
  return `${missing.size} of ${events.length} events did not come, such as ${first}`
}

/**
 * What a case has to work with. `E` is how the Layer can fail.
 *
 * @internal
 */
export interface Kit<out E> {
  /** A small number by default, the whole one under stress. */
  readonly size: (small: number, whole: number) => number
  /** A name that no other case, repetition or run has; cleaned up with the scope. */
  readonly topic: Effect.Effect<string, never, Scope.Scope>
  readonly author: (unitName?: string) => Author
  readonly clock: Clock.Clock
  /** How long to wait for one thing. */
  readonly bound: Duration.Duration
  /** How many times as long as by default everything may take. */
  readonly patience: number
  /** Builds the Layer on the storage of a topic. */
  readonly open: (topic: string) => Effect.Effect<Build, E | Nonconformance, Scope.Scope>
  /** A subscription. `handle` gets as many deliveries at a time as may be in flight; without it they are acknowledged. */
  readonly read: (
    build: Build,
    options?: EventSubscriber.Options,
    handle?: (delivery: Delivery) => Effect.Effect<unknown, EventSubscriber.SubscribeError | Nonconformance>
  ) => Effect.Effect<Reader, Nonconformance, Scope.Scope>
  /** Publishes events one after the other. */
  readonly publish: (build: Build, events: ReadonlyArray<Event>) => Effect.Effect<void, Nonconformance>
  /** Publishes events by several fibers, each its share of them one after the other. */
  readonly publishBy: (
    build: Build,
    publishers: number,
    events: ReadonlyArray<Event>
  ) => Effect.Effect<void, Nonconformance>
  /** Hands events over as units do. */
  readonly hand: (build: Build, events: ReadonlyArray<Event>) => Effect.Effect<void, Nonconformance>
  /** Fails where something is not done within the bound. */
  readonly within: <A, E, R>(
    effect: Effect.Effect<A, E, R>,
    doing: string,
    bound?: Duration.Duration
  ) => Effect.Effect<A, E | Nonconformance, R>
  /** As long as the suite waits to see that nothing comes. */
  readonly quiet: Effect.Effect<void>
  readonly broken: (detail: string, cause?: unknown) => Nonconformance
  readonly check: (condition: boolean, detail: () => string) => Effect.Effect<void, Nonconformance>
}

/**
 * The wire object of an event.
 *
 * @internal
 */
export const wire = (event: Event): Event =>
  ExecutionEvent.isExecutionEvent(event) ? ExecutionEvent.toJson(event) : DomainEvent.toJson(event)

/** @internal */
export const idsOf = (deliveries: ReadonlyArray<Delivery>): ReadonlyArray<string> =>
  deliveries.map(({ event }) => event.id)

/**
 * How the events that came differ from the ones expected, in order or in any; `undefined` where they do not. Each is compared as a whole.
 *
 * @internal
 */
export const difference = (
  deliveries: ReadonlyArray<Delivery>,
  expected: ReadonlyArray<Event>,
  inOrder: boolean
): string | undefined => {
  const came = idsOf(deliveries)
  const counts = new Map<string, number>()
  for (const id of came) counts.set(id, (counts.get(id) ?? 0) + 1)
  const missing = expected.filter(({ id }) => !counts.has(id)).map(({ id }) => id)
  if (missing.length > 0) return `${missing.length} of ${expected.length} events did not come, such as ${missing[0]}`
  const twice = expected.find(({ id }) => counts.get(id) !== 1)
  if (twice !== undefined) return `event ${twice.id} came ${counts.get(twice.id)} times`
  if (deliveries.length > expected.length) {
    const known = new Set(expected.map(({ id }) => id))
    return `event ${came.find((id) => !known.has(id))} came and was not expected`
  }
  const byId = new Map(deliveries.map(({ event }) => [event.id, event]))
  for (const event of expected) {
    const arrived = byId.get(event.id)
    if (arrived === undefined || !Equal.equals(wire(arrived), wire(event))) {
      return `event ${event.id} came as ${
        JSON.stringify(arrived && wire(arrived))?.slice(0, 500)
      } and was published as ${JSON.stringify(wire(event)).slice(0, 500)}`
    }
  }
  if (inOrder) {
    const at = expected.findIndex(({ id }, index) => came[index] !== id)
    if (at !== -1) return `event ${came[at]} came in place ${at + 1}, where ${expected[at]?.id} is due`
  }
  return undefined
}

/**
 * Writes the events of a case, numbered by a source of their own.
 *
 * @internal
 */
export class Author {
  private sequence = 0
  private readonly clock: Clock.Clock
  private readonly unitName: string
  private readonly source: string

  constructor(clock: Clock.Clock, unitName = "conformance.run") {
    this.clock = clock
    this.unitName = unitName
    this.source = uuidV7(clock.currentTimeMillisUnsafe())
  }

  private common(correlationId: string, part: string) {
    return {
      id: `${correlationId}:${part}`,
      domain: this.unitName.slice(0, this.unitName.indexOf(".")),
      unit_name: this.unitName,
      kind: "command",
      timestamp: new Date(this.clock.currentTimeMillisUnsafe()).toISOString(),
      correlation_id: correlationId,
      root_id: correlationId,
      source: this.source,
      sequence: ++this.sequence
    } as const
  }

  correlationId(): string {
    return uuidV7(this.clock.currentTimeMillisUnsafe())
  }

  started(correlationId: string, input?: Schema.Json): Event {
    return {
      event_type: "execution_started",
      ...this.common(correlationId, "started"),
      attributes: { request_id: `r-${this.sequence}`, priority: 3, beta: false },
      ...(input === undefined ? {} : { input })
    }
  }

  completed(correlationId: string, output: Schema.Json = null): Event {
    return {
      event_type: "execution_completed",
      ...this.common(correlationId, "completed"),
      duration_ms: 2,
      duration_ns: 2_345_678,
      output
    }
  }

  failed(correlationId: string): Event {
    return {
      event_type: "execution_failed",
      ...this.common(correlationId, "failed"),
      trace_id: "0af7651916cd43dd8448eb211c80319c",
      span_id: "b7ad6b7169203331",
      duration_ms: 0,
      duration_ns: 12_345,
      error: "The card was declined: \"4242\"\n",
      failure: { kind: "fail", tag: "CardDeclined", code: "20001", retryable: false, value: { last4: "4242" } }
    }
  }

  domainEvent(correlationId: string, payload: Schema.Json, what = "happened"): Event {
    const { kind: _, id: _id, ...common } = this.common(correlationId, what)
    return { ...common, type: `${common.domain}.${what}`, id: this.correlationId(), payload }
  }

  /** So many events: executions that complete, that fail, and that say something meanwhile. Each that begins here also ends. */
  events(count: number): ReadonlyArray<Event> {
    const events: Array<Event> = []
    for (let index = 0; events.length < count; index++) {
      const id = this.correlationId()
      const left = count - events.length
      if (left === 1) {
        events.push(this.domainEvent(id, { index }))
        continue
      }
      events.push(this.started(id, { index, text: "plain" }))
      if (index % 4 === 3 && left > 2) events.push(this.domainEvent(id, { index }))
      events.push(index % 5 === 4 ? this.failed(id) : this.completed(id, { index, done: true }))
    }
    return events
  }
}

/** How long to watch for what must not come. */
const quietTime = Duration.millis(50)

/** Runs an effect that must not outlast its bound, even where it does not heed its interruption. */
const bounded = <A, E, R>(
  effect: Effect.Effect<A, E, R>,
  bound: Duration.Duration,
  late: () => Nonconformance
): Effect.Effect<A, E | Nonconformance, R> =>
  Effect.flatMap(
    Effect.forkDetach(effect, { startImmediately: true }),
    (fiber) =>
      Effect.timeoutOrElse(Fiber.join(fiber), {
        duration: bound,
        orElse: () => {
          fiber.interruptUnsafe()
          return Effect.fail(late())
        }
      }).pipe(Effect.onInterrupt(() => Effect.sync(() => fiber.interruptUnsafe())))
  )

const lossMetrics: ReadonlySet<string> = new Set(["effect_units_events_dropped", "effect_units_publish_failures"])

const countLosses = (context: Context.Context<never>): number =>
  Metric.snapshotUnsafe(context).reduce(
    (sum, { id, state }) =>
      lossMetrics.has(id) && "count" in state && typeof state.count === "number" ? sum + state.count : sum,
    0
  )

/** Under stress everything may take so many times as long. */
const patienceOf = (stress: boolean): number => stress ? 5 : 1

/**
 * How long a whole case may take, where it does not ask for more: six waits, and half a minute at least.
 *
 * @internal
 */
export const limitOf = (wait: Duration.Duration, stress: boolean): Duration.Duration =>
  Duration.times(Duration.max(Duration.times(wait, 6), Duration.seconds(30)), patienceOf(stress))

/** @internal */
export const make = <E>(options: {
  readonly number: number
  readonly promise: string
  readonly layer: (
    topic: string
  ) => Layer.Layer<EventPublisher.EventPublisher | EventSubscriber.EventSubscriber, E>
  readonly wait: Duration.Duration
  readonly stress: boolean
  readonly cleanup: (topic: string) => Effect.Effect<unknown, unknown>
  readonly clock: Clock.Clock
}): Kit<E> => {
  const { clock, stress } = options
  const patience = patienceOf(stress)
  const bound = Duration.times(options.wait, patience)
  const broken: Kit<E>["broken"] = (detail, cause) =>
    new Nonconformance({
      number: options.number,
      promise: options.promise,
      detail,
      ...(cause === undefined ? {} : { cause })
    })
  const within: Kit<E>["within"] = (effect, doing, time = bound) =>
    bounded(effect, time, () => broken(`${doing} took longer than ${Duration.format(time)}`))
  const check: Kit<E>["check"] = (condition, detail) => condition ? Effect.void : Effect.fail(broken(detail()))

  const open: Kit<E>["open"] = Effect.fnUntraced(function*(topic) {
    const scope = yield* Scope.fork(yield* Effect.scope)
    const metrics = Context.make(Metric.MetricRegistry, new Map())
    const context = yield* within(
      Layer.buildWithScope(Layer.fresh(options.layer(topic)), scope).pipe(
        Effect.provideContext(metrics)
      ),
      "building the Layer"
    )
    return {
      publisher: Context.get(context, EventPublisher.EventPublisher),
      subscriber: Context.get(context, EventSubscriber.EventSubscriber),
      losses: Effect.sync(() => countLosses(metrics)),
      close: within(Scope.close(scope, Exit.void), "closing the Layer's scope")
    }
  })

  const read: Kit<E>["read"] = Effect.fnUntraced(
    function*(build, readOptions = {}, handle = (delivery) => delivery.ack) {
      const scope = yield* Scope.fork(yield* Effect.scope)
      const deliveries: Array<Delivery> = []
      const watchers = new Set<() => void>()
      let lastArrival = 0
      const stream = yield* build.subscriber.subscribe(readOptions).pipe(
        Scope.provide(scope),
        Effect.mapError((error) => broken(error.message, error)),
        (subscribing) => within(subscribing, "subscribing")
      )
      const look = (): void => {
        for (const watcher of watchers) watcher()
      }
      const fiber = yield* stream.pipe(
        Stream.map((delivery) => {
          deliveries.push(delivery)
          lastArrival = clock.currentTimeMillisUnsafe()
          look()
          return delivery
        }),
        // As `consume` does, so that a transport can acknowledge many at once.
        Stream.mapEffect((delivery) => Effect.tap(handle(delivery), () => Effect.sync(look)), {
          concurrency: readOptions.maxInFlight ?? 1,
          unordered: true
        }),
        Stream.runDrain,
        Effect.forkIn(scope, { startImmediately: true })
      )

      const failure = (
        cause: Cause.Cause<EventSubscriber.SubscribeError | Nonconformance>,
        missing: () => string
      ): Nonconformance => {
        const error = Cause.squash(cause)
        return error instanceof Nonconformance ? error : broken(`the subscription failed: ${missing()}`, error)
      }

      const until: Reader["until"] = (test, missing) => {
        const passed = Effect.callback<void>((resume) => {
          if (test(deliveries)) return resume(Effect.void)
          const watcher = (): void => {
            if (!test(deliveries)) return
            watchers.delete(watcher)
            resume(Effect.void)
          }
          watchers.add(watcher)
          return Effect.sync(() => void watchers.delete(watcher))
        })
        const over = Effect.flatMap(Fiber.await(fiber), (exit) =>
          test(deliveries)
            ? Effect.void
            : Effect.fail(
              Exit.isSuccess(exit)
                ? broken(`the subscription ended before its time: ${missing()}`)
                : failure(exit.cause, missing)
            ))
        const begun = clock.currentTimeMillisUnsafe()
        const stalled: Effect.Effect<never, Nonconformance> = Effect.suspend(() => {
          const left = Math.max(begun, lastArrival) + Duration.toMillis(bound) - clock.currentTimeMillisUnsafe()
          return left > 0
            ? Effect.andThen(Effect.sleep(left), stalled)
            : Effect.fail(broken(`${missing()}; nothing more came for ${Duration.format(bound)}`))
        })
        return Effect.raceAllFirst([passed, over, stalled])
      }
      const well = (
        exit: Exit.Exit<void, EventSubscriber.SubscribeError | Nonconformance> | undefined,
        when: string
      ): Effect.Effect<void, Nonconformance> =>
        exit === undefined || Exit.isSuccess(exit) || Cause.hasInterruptsOnly(exit.cause)
          ? Effect.void
          : Effect.fail(failure(exit.cause, () => when))
      return {
        deliveries,
        until,
        ended: Effect.flatMap(
          within(Fiber.await(fiber), "ending a subscription whose transport is closed"),
          (exit) => well(exit, "instead of ending with its transport")
        ),
        close: Effect.andThen(
          within(Scope.close(scope, Exit.void), "closing a subscription"),
          Effect.suspend(() => well(fiber.pollUnsafe(), "before it was closed"))
        )
      }
    }
  )

  const publish: Kit<E>["publish"] = (build, events) =>
    Effect.forEach(
      events,
      (event) => Effect.mapError(build.publisher.publish(event), (error) => broken(error.message, error)),
      { discard: true }
    )

  const hand: Kit<E>["hand"] = (build, events) =>
    build.publisher.waits
      ? publish(build, events)
      : Effect.forEach(
        events,
        (event, index) => {
          build.publisher.offer(event)
          return index % 16 === 15 ? Effect.yieldNow : Effect.void
        },
        { discard: true }
      )

  // The last part of a UUID is random.
  const name = Effect.sync(() => `conformance_${options.number}_${uuidV7(clock.currentTimeMillisUnsafe()).slice(-12)}`)
  return {
    size: (small, whole) => stress ? whole : small,
    topic: Effect.acquireRelease(
      name,
      (topic) =>
        Effect.catchCause(options.cleanup(topic), (cause) => Effect.logError(`Cleaning up ${topic} failed`, cause))
    ),
    author: (unitName) => new Author(clock, unitName),
    clock,
    bound,
    patience,
    open,
    read,
    publish,
    publishBy: (build, publishers, events) =>
      Effect.forEach(
        Array.from({ length: publishers }, (_, index) => events.filter((_, at) => at % publishers === index)),
        (share) => publish(build, share),
        { concurrency: "unbounded", discard: true }
      ),
    hand,
    within,
    quiet: Effect.sleep(Duration.times(quietTime, patience)),
    broken,
    check
  }
}
