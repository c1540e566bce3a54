/**
 * Where the events of units go: the one service that every unit asks for.
 *
 * A publisher takes events over and never makes a unit wait for a network. An application chooses one by Layer, and combines
 * them with `combine`, `filter`, `sample` and `buffered`.
 *
 * @since 0.1.0
 */
import * as Cause from "effect/Cause"
import * as Context from "effect/Context"
import * as Deferred from "effect/Deferred"
import * as Duration from "effect/Duration"
import * as Effect from "effect/Effect"
import * as Exit from "effect/Exit"
import * as Fiber from "effect/Fiber"
import { dual } from "effect/Function"
import * as Layer from "effect/Layer"
import * as Metric from "effect/Metric"
import * as Option from "effect/Option"
import * as Schema from "effect/Schema"
import type * as Scope from "effect/Scope"
import type { DomainEvent } from "./DomainEvent.ts"
import * as Execution from "./Execution.ts"
import type { ExecutionEvent } from "./ExecutionEvent.ts"
import { isExecutionEvent, isTerminal } from "./ExecutionEvent.ts"
import { uuidV7 } from "./internal/ids.ts"
import * as Json from "./internal/json.ts"
import { number, renumber } from "./internal/liveEvent.ts"
import * as Metrics from "./internal/metrics.ts"
import { Ring } from "./internal/ring.ts"

/**
 * What goes through a publisher: the lifecycle of executions, and what units say of their domain. `isExecutionEvent` and
 * `isDomainEvent` tell them apart.
 *
 * @category models
 * @since 0.1.0
 */
export type Event = ExecutionEvent | DomainEvent

/**
 * What a publisher that cannot do its work means for the units.
 *
 * **Details**
 *
 * - `open`, the default: nothing. The failure is counted, and logged once per streak.
 * - `closed`: a unit whose started event cannot be handed over does not run.
 * - `transactional`: as `closed`, and the handler's own writes commit together with the completed event, or not at all.
 *
 * @category models
 * @since 0.1.0
 */
export type Policy = "open" | "closed" | "transactional"

/**
 * The transport could not be reached or did not take the event. A retry can help.
 *
 * @category errors
 * @since 0.1.0
 */
export class Unavailable
  extends Schema.TaggedError<Unavailable>("effect-units/EventPublisher/Unavailable")("Unavailable", {
    detail: Schema.String,
    cause: Schema.optionalKey(Schema.Defect())
  })
{
  override get message(): string {
    return `the transport is unavailable: ${this.detail}. Check that it runs and can be reached; a retry can help`
  }
}

/**
 * The transport refused this event for good: too large, not allowed. A retry does not help.
 *
 * @category errors
 * @since 0.1.0
 */
export class Rejected extends Schema.TaggedError<Rejected>("effect-units/EventPublisher/Rejected")("Rejected", {
  detail: Schema.String,
  cause: Schema.optionalKey(Schema.Defect())
}) {
  override get message(): string {
    return `the event was refused: ${this.detail}. A retry of the same event does not help`
  }
}

/**
 * The publisher took longer than it is allowed to. A retry can help; the event may have arrived all the same.
 *
 * @category errors
 * @since 0.1.0
 */
export class TimedOut extends Schema.TaggedError<TimedOut>("effect-units/EventPublisher/TimedOut")("TimedOut", {
  after_ms: Schema.Finite
}) {
  override get message(): string {
    return `no acknowledgement within ${this.after_ms} ms. The event may have arrived: a retry is deduplicated by its id`
  }
}

/**
 * A bounded buffer was full. A retry can help once it has drained.
 *
 * @category errors
 * @since 0.1.0
 */
export class BufferFull extends Schema.TaggedError<BufferFull>("effect-units/EventPublisher/BufferFull")("BufferFull", {
  capacity: Schema.Int
}) {
  override get message(): string {
    return `the buffer of ${this.capacity} events is full. Give it more capacity, or a faster transport`
  }
}

/**
 * The publisher's scope has closed. A retry does not help.
 *
 * @category errors
 * @since 0.1.0
 */
export class Closed extends Schema.TaggedError<Closed>("effect-units/EventPublisher/Closed")("Closed", {}) {
  override get message(): string {
    return "the publisher is closed. Run units inside of the scope of its Layer"
  }
}

/**
 * An event was not handed over; `reason` says why.
 *
 * @category errors
 * @since 0.1.0
 */
export class PublishError
  extends Schema.TaggedError<PublishError>("effect-units/EventPublisher/PublishError")("PublishError", {
    event_id: Schema.String,
    reason: Schema.Union([Unavailable, Rejected, TimedOut, BufferFull, Closed])
  })
{
  override get message(): string {
    return `Event ${this.event_id} was not published: ${this.reason.message}`
  }

  /** Whether publishing the same event again can succeed. */
  get retryable(): boolean {
    return this.reason._tag !== "Rejected" && this.reason._tag !== "Closed"
  }
}

/**
 * What a transactional publisher adds: it runs the work of a unit and stores its completed event in one transaction.
 *
 * **Details**
 *
 * `run` begins a transaction, or joins the one around it; runs `work`; stores `completed(value)`; commits. Any failure, defect
 * or interruption on the way rolls back. A commit that fails is a defect that holds a `PublishError`. The failed event is
 * published by the caller, outside of the transaction.
 *
 * @category models
 * @since 0.1.0
 */
export interface Transaction {
  readonly run: <A, E, R>(
    work: Effect.Effect<A, E, R>,
    completed: (value: A) => ExecutionEvent
  ) => Effect.Effect<A, E, R>
}

/**
 * A publisher at work. Made by `make` and the Layers of this module and of `publishers/*`.
 *
 * @category models
 * @since 0.1.0
 */
export interface Publisher {
  readonly policy: Policy
  /** Names this instance in the events that it numbers: unique per instance. */
  readonly source: string
  /** True where nothing is published. It is read once, at the start of an execution. */
  readonly isNoop: boolean
  /** True while a publish function runs: units run by it are not published, or they would publish without end. */
  readonly isPublishing: boolean
  readonly limits: Json.Limits
  readonly tallies: Metrics.Tallies
  /** The context that the publisher was made in: its metrics and its logger. */
  readonly context: Context.Context<never>
  /** How long the end of an execution waits for a closed or transactional publisher. */
  readonly terminalTimeout: Duration.Duration
  /** Takes an event over. Never fails, never waits. */
  readonly offer: (event: Event) => void
  /** Publishes an event and succeeds when the transport has it. */
  readonly publish: (event: Event) => Effect.Effect<void, PublishError>
  /** Counts a failure to publish, and logs the first of a streak. */
  readonly report: (error: PublishError) => void
  readonly transaction: Transaction | undefined
}

/**
 * The service that units require.
 *
 * @category services
 * @since 0.1.0
 */
export class EventPublisher extends Context.Service<EventPublisher, Publisher>()("effect-units/EventPublisher") {}

/**
 * Settings of `make` and `layer`.
 *
 * @category models
 * @since 0.1.0
 */
export interface Options {
  /**
   * Publishes one event: at once, or as an Effect. A function that throws and an Effect that fails or dies count as a failure
   * to publish.
   */
  readonly publish: (event: Event) => void | Effect.Effect<void, PublishError>
  /** Default `open`. `transactional` needs `transaction`. */
  readonly policy?: Policy | undefined
  /** Needed by the `transactional` policy. */
  readonly transaction?: Transaction | undefined
  /** Default: a new UUID. Give one where a restarted process should go on under its old name. */
  readonly source?: string | undefined
  /** How many events may wait for an Effect that publishes, under the `open` policy; more are dropped and counted. Default 16,384. */
  readonly capacity?: number | undefined
  /** How long one Effect may take before it is interrupted and counted as a failure. Default 30 seconds. */
  readonly timeout?: Duration.Input | undefined
  /** How long the end of an execution waits under the policies `closed` and `transactional`. Default 5 seconds. */
  readonly terminalTimeout?: Duration.Input | undefined
  /** How long closing the scope waits for events that were accepted. Default 10 seconds. */
  readonly flushTimeout?: Duration.Input | undefined
  /** Longest string or blob in an event, in bytes; longer ones are replaced by their size and SHA-256. Default 64 KiB. */
  readonly maxFieldBytes?: number | undefined
}

/**
 * The surroundings of the code of a publisher. Units that see them are not published, or they would publish without end.
 *
 * @internal
 */
export const publishing: Execution.Surroundings = { execution: undefined, attributes: undefined, generateId: undefined }

const toPublishError = (event: Event, thrown: unknown): PublishError =>
  thrown instanceof PublishError
    ? thrown
    : new PublishError({
      event_id: event.id,
      reason: new Unavailable({ detail: thrown instanceof Error ? thrown.message : String(thrown), cause: thrown })
    })

class PublisherImpl implements Publisher {
  readonly policy: Policy
  readonly source: string
  readonly isNoop = false
  isPublishing = false
  sequence = 0
  readonly limits: Json.Limits
  readonly tallies: Metrics.Tallies
  readonly context: Context.Context<never>
  readonly terminalTimeout: Duration.Duration
  readonly transaction: Transaction | undefined
  private readonly send: (event: Event) => void | Effect.Effect<void, PublishError>
  private readonly queue: Ring<{ readonly event: Event; readonly effect: Effect.Effect<void, PublishError> }>
  private readonly timeout: Duration.Duration
  private failing = false
  private closed = false

  constructor(options: Options, context: Context.Context<never>, source: string) {
    this.policy = options.policy ?? "open"
    this.source = source
    this.context = context
    this.send = options.publish
    this.transaction = options.transaction
    this.queue = new Ring(options.capacity ?? 16_384)
    this.timeout = Duration.fromInputUnsafe(options.timeout ?? "30 seconds")
    this.terminalTimeout = Duration.fromInputUnsafe(options.terminalTimeout ?? "5 seconds")
    this.limits = { ...Json.defaultLimits, maxFieldBytes: options.maxFieldBytes ?? Json.defaultLimits.maxFieldBytes }
    this.tallies = Metrics.tallies(Context.get(context, Metric.MetricRegistry))
  }

  offer(event: Event): void {
    if (this.closed) return this.report(new PublishError({ event_id: event.id, reason: new Closed() }))
    number(event, this)
    try {
      const effect = this.call(event)
      if (effect === undefined) this.failing = false
      else if (!this.queue.offer({ event, effect })) {
        this.report(new PublishError({ event_id: event.id, reason: new BufferFull({ capacity: this.queue.capacity }) }))
      }
    } catch (thrown) {
      this.report(toPublishError(event, thrown))
    }
  }

  publish(event: Event): Effect.Effect<void, PublishError> {
    return Effect.suspend(() => {
      if (this.closed) return Effect.fail(new PublishError({ event_id: event.id, reason: new Closed() }))
      number(event, this)
      const effect = this.call(event)
      return effect === undefined ? Effect.void : this.guarded(event, effect)
    }).pipe(Effect.catchDefect((defect) => Effect.fail(toPublishError(event, defect))))
  }

  private call(event: Event): Effect.Effect<void, PublishError> | undefined {
    const before = this.isPublishing
    this.isPublishing = true
    try {
      const result = this.send(event)
      return Effect.isEffect(result) ? result : undefined
    } finally {
      this.isPublishing = before
    }
  }

  /** Within its time, without units of its own being published, with every way to fail as a `PublishError`. */
  private guarded(event: Event, effect: Effect.Effect<void, PublishError>): Effect.Effect<void, PublishError> {
    return effect.pipe(
      Effect.timeoutOrElse({
        duration: this.timeout,
        orElse: () =>
          Effect.fail(
            new PublishError({
              event_id: event.id,
              reason: new TimedOut({ after_ms: Duration.toMillis(this.timeout) })
            })
          )
      }),
      Effect.catchDefect((defect) => Effect.fail(toPublishError(event, defect))),
      Effect.provideService(Execution.Surroundings, publishing)
    )
  }

  /** Publishes what `offer` has accepted, in order, until the scope closes and nothing is left. */
  readonly drain: Effect.Effect<void> = Effect.suspend(() =>
    Effect.flatMap(this.queue.take, (batch) =>
      batch === undefined
        ? Effect.void
        : Effect.andThen(
          Effect.forEach(batch, ({ effect, event }) =>
            Effect.matchCause(this.guarded(event, effect), {
              onSuccess: () => {
                this.failing = false
              },
              onFailure: (cause) => this.report(toPublishError(event, Cause.squash(cause)))
            }), { discard: true }),
          this.drain
        ))
  )

  close(): number {
    this.closed = true
    this.queue.end()
    return this.queue.size
  }

  report(error: PublishError): void {
    Metric.update(Metrics.publishFailures(error.reason._tag), 1).pipe(Effect.runSyncWith(this.context))
    if (this.failing) return
    this.failing = true
    Effect.logWarning(
      `${error.message}. Units run on; further failures are counted in effect_units_publish_failures.`
    ).pipe(Effect.runForkWith(this.context))
  }
}

/**
 * Makes a publisher from a function.
 *
 * **Details**
 *
 * Under the `open` policy a function that returns an Effect is called on the unit's path, its Effects run one after the other
 * in the background, so order is kept and no unit waits. Closing the scope runs those that were accepted, for at most
 * `flushTimeout`; what is left then is counted as dropped.
 *
 * **Gotchas**
 *
 * Units that run inside of `publish` are not published. A function that publishes at once must not wake other fibers on the
 * spot; return an Effect for that.
 *
 * @category constructors
 * @since 0.1.0
 */
export const make = Effect.fnUntraced(
  function*(options: Options): Effect.fn.Return<Publisher, never, Scope.Scope> {
    if (options.policy === "transactional" && options.transaction === undefined) {
      return yield* Effect.die(
        new TypeError("A publisher of policy \"transactional\" needs `transaction`: take one of the SQL publishers")
      )
    }
    const context = yield* Effect.context<Scope.Scope>()
    const millis = yield* Effect.clockWith((clock) => clock.currentTimeMillis)
    const publisher = new PublisherImpl(options, context, options.source ?? uuidV7(millis))
    const fiber = yield* Effect.forkDetach(publisher.drain)
    yield* Effect.addFinalizer(() =>
      Effect.suspend(() => {
        publisher.close()
        return Fiber.await(fiber).pipe(
          Effect.timeoutOption(options.flushTimeout ?? "10 seconds"),
          Effect.flatMap(Option.match({
            onSome: () => Effect.void,
            onNone: () => Effect.andThen(Fiber.interrupt(fiber), countDropped("publisher", publisher.close()))
          }))
        )
      })
    )
    return publisher
  }
)

const countDropped = (buffer: string, count: number): Effect.Effect<void> =>
  count === 0 ? Effect.void : Effect.andThen(
    Metric.update(Metrics.drops(buffer), count),
    Effect.logWarning(`${count} events were dropped: the ${buffer} did not drain before its deadline`)
  )

/**
 * Layer of a publisher made from a function; see `make`.
 *
 * **Example** (Sending events to an HTTP endpoint)
 *
 * ```ts
 * const layer = EventPublisher.layer({
 *   publish: (event) => post(ExecutionEvent.toJson(event))
 * })
 * ```
 *
 * @category layers
 * @since 0.1.0
 */
export const layer = (options: Options): Layer.Layer<EventPublisher> => Layer.effect(EventPublisher, make(options))

const noop: Publisher = {
  policy: "open",
  source: "",
  isNoop: true,
  isPublishing: false,
  limits: Json.defaultLimits,
  tallies: new Map(),
  context: Context.empty(),
  terminalTimeout: Duration.zero,
  offer: () => {},
  publish: () => Effect.void,
  report: () => {},
  transaction: undefined
}

/**
 * Layer that publishes nothing: units run as if they were not instrumented.
 *
 * @category layers
 * @since 0.1.0
 */
export const layerNoop: Layer.Layer<EventPublisher> = Layer.succeed(EventPublisher, noop)

/**
 * The events that `layerMemory` holds, oldest first.
 *
 * @category services
 * @since 0.1.0
 */
export class Memory extends Context.Service<Memory, {
  /** The lifecycle events. */
  readonly events: Effect.Effect<ReadonlyArray<ExecutionEvent>>
  /** All events, domain events included, in the order in which they came. */
  readonly all: Effect.Effect<ReadonlyArray<Event>>
  /** How many events gave way to newer ones. */
  readonly dropped: Effect.Effect<number>
  readonly clear: Effect.Effect<void>
}>()("effect-units/EventPublisher/Memory") {}

/**
 * Layer that keeps the newest `capacity` events in memory, and the service that reads them.
 *
 * **Details**
 *
 * Events are kept with their raw values and encoded when they are read. Older events give way to newer ones, and are counted.
 *
 * @category layers
 * @since 0.1.0
 */
export const layerMemoryWith = (options: { readonly capacity: number }): Layer.Layer<EventPublisher | Memory> =>
  Layer.effectContext(Effect.gen(function*() {
    const ring: Array<Event> = []
    let next = 0
    let dropped = 0
    const publisher = yield* make({
      publish: (event) => {
        if (ring.length < options.capacity) {
          ring.push(event)
        } else {
          ring[next] = event
          next = (next + 1) % options.capacity
          dropped++
        }
      }
    })
    const all = Effect.sync(() => [...ring.slice(next), ...ring.slice(0, next)])
    return Context.make(EventPublisher, publisher).pipe(
      Context.add(Memory, {
        all,
        events: Effect.map(all, (events) => events.filter(isExecutionEvent)),
        dropped: Effect.sync(() => dropped),
        clear: Effect.sync(() => {
          ring.length = 0
          next = 0
          dropped = 0
        })
      })
    )
  }))

/**
 * Layer that keeps the newest 10,000 events in memory; see `layerMemoryWith`.
 *
 * @category layers
 * @since 0.1.0
 */
export const layerMemory: Layer.Layer<EventPublisher | Memory> = layerMemoryWith({ capacity: 10_000 })
