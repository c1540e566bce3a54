/**
 * Where the events of units go: the one service that every unit asks for.
 *
 * A publisher takes events over and never makes a unit wait for a network. An application chooses one by Layer, and combines
 * them with `combine`, `filter`, `sample` and `buffered`.
 *
 * @since 0.1.0
 */
import * as Cause from "effect/Cause"
import * as Clock from "effect/Clock"
import * as Config from "effect/Config"
import * as Console from "effect/Console"
import * as Context from "effect/Context"
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
import { executionAsyncId } from "node:async_hooks"
import type { DomainEvent } from "./DomainEvent.ts"
import * as EventBus from "./EventBus.ts"
import * as Execution from "./Execution.ts"
import type { ExecutionEvent } from "./ExecutionEvent.ts"
import { isExecutionEvent, isTerminal } from "./ExecutionEvent.ts"
import * as ConsoleLine from "./internal/consoleLine.ts"
import { hashed } from "./internal/hash.ts"
import { uuidV7 } from "./internal/ids.ts"
import * as Json from "./internal/json.ts"
import { number, renumber } from "./internal/liveEvent.ts"
import * as Metrics from "./internal/metrics.ts"
import { publishing } from "./internal/publishing.ts"
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
 * `run` begins a transaction, or joins the one around it; runs `work`; stores `completed(value)`, where there is one; commits. Any
 * failure, defect or interruption on the way rolls back. A commit that fails is a defect that holds a `PublishError`. The failed
 * event is published by the caller, after `run`.
 *
 * It is called where it cannot be interrupted, and `work` can be: so its exit says what became of the transaction, whatever the
 * caller does meanwhile.
 *
 * @category models
 * @since 0.1.0
 */
export interface Transaction {
  readonly run: <A, E, R>(
    work: Effect.Effect<A, E, R>,
    completed: (value: A) => ExecutionEvent | undefined
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
  /** True where handing an event over can take time, so that units go through `publish`: not under the `open` policy, but for a buffer that suspends. */
  readonly waits: boolean
  /** True for the code that a publish function calls: units run by it are not published, or they would publish without end. */
  readonly isPublishing: boolean
  readonly limits: Json.Limits
  readonly tallies: Metrics.Tallies
  /** The context that the publisher was made in: its metrics and its logger. */
  readonly context: Context.Context<never>
  /** How long the end of an execution waits for a closed or transactional publisher. */
  readonly terminalTimeout: Duration.Duration
  /** Takes an event over. Never fails, never waits. */
  readonly offer: (event: Event) => void
  /** Publishes an event and succeeds when the transport has it. A failure is reported already. */
  readonly publish: (event: Event) => Effect.Effect<void, PublishError>
  /** Counts a failure to publish in `effect_units_publish_failures`, and logs the first of a streak. */
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
 * Stands for an event that a publisher has accepted and its transport has yet to acknowledge. A function that publishes in batches returns
 * it in place of an Effect that waits: nothing is run for each event.
 *
 * @category models
 * @since 0.1.0
 */
export class Receipt {
  private exit: Exit.Exit<void, PublishError> | undefined
  private readonly waiting: Array<(exit: Exit.Exit<void, PublishError>) => void> = []
  private readonly withdraw: (() => void) | undefined

  /** `withdraw` is called when somebody who waits gives up. */
  constructor(withdraw?: () => void) {
    this.withdraw = withdraw
  }

  /** Says what became of the event; only the first time counts. */
  settle(exit: Exit.Exit<void, PublishError>): void {
    if (this.exit !== undefined) return
    this.exit = exit
    for (const tell of this.waiting.splice(0)) tell(exit)
  }

  /** Waits until it is settled; `start` is called before, and what it gives at the end. */
  private wait(
    start: (giveUp: (exit: Exit.Exit<void, PublishError>) => void) => () => void
  ): Effect.Effect<void, PublishError> {
    return Effect.callback((resume) => {
      if (this.exit !== undefined) return resume(this.exit)
      const tell = (exit: Exit.Exit<void, PublishError>): void => {
        end()
        resume(exit)
      }
      const leave = (): void => {
        const index = this.waiting.indexOf(tell)
        if (index >= 0) this.waiting.splice(index, 1)
        this.withdraw?.()
      }
      const end = start((exit) => {
        leave()
        resume(exit)
      })
      this.waiting.push(tell)
      return Effect.sync(() => {
        end()
        leave()
      })
    })
  }

  /** Waits for the acknowledgement. */
  get acknowledged(): Effect.Effect<void, PublishError> {
    return this.wait(() => () => {})
  }

  /**
   * Waits for it so long at most.
   *
   * @internal
   */
  within(time: Duration.Duration, late: () => PublishError): Effect.Effect<void, PublishError> {
    return Effect.contextWith((context: Context.Context<never>) =>
      this.wait((giveUp) => after(context, time, () => giveUp(Exit.fail(late()))))
    )
  }
}

/**
 * Settings of `make` and `layer`.
 *
 * @category models
 * @since 0.1.0
 */
export interface Options {
  /**
   * Publishes one event: at once, as an Effect, or by a `Receipt` that is settled later. A function that throws and an Effect that fails
   * or dies count as a failure to publish.
   */
  readonly publish: (event: Event) => void | Effect.Effect<void, PublishError> | Receipt
  /** Default `open`. `transactional` needs `transaction`. */
  readonly policy?: Policy | undefined
  /** Needed by the `transactional` policy, and used by no other. */
  readonly transaction?: Transaction | undefined
  /** Default: a new UUID. Give one where a restarted process should go on under its old name. */
  readonly source?: string | undefined
  /** How many events may wait for an Effect that publishes, under the `open` policy; more are dropped and counted. Default 16,384. */
  readonly capacity?: number | undefined
  /** How long one Effect or receipt may take before it is given up and counted as a failure. Default 30 seconds. */
  readonly timeout?: Duration.Input | undefined
  /** How long the end of an execution waits under the policies `closed` and `transactional`. Default 5 seconds. */
  readonly terminalTimeout?: Duration.Input | undefined
  /** How long closing the scope waits for events that were accepted. Default 10 seconds. */
  readonly flushTimeout?: Duration.Input | undefined
  /** Longest string or blob in an event, in bytes; longer ones are replaced by their size and SHA-256. Default 64 KiB. */
  readonly maxFieldBytes?: number | undefined
}

const toPublishError = (event: Event, thrown: unknown): PublishError =>
  thrown instanceof PublishError
    ? thrown
    : new PublishError({
      event_id: event.id,
      reason: new Unavailable({ detail: Json.describe(thrown), cause: thrown })
    })

const reasonTag = (thrown: unknown): PublishError["reason"]["_tag"] =>
  thrown instanceof PublishError ? thrown.reason._tag : "Unavailable"

const closedError = (event: Event): PublishError => new PublishError({ event_id: event.id, reason: new Closed() })

const timedOut = (event: Event, after: Duration.Duration): PublishError =>
  new PublishError({ event_id: event.id, reason: new TimedOut({ after_ms: Duration.toMillis(after) }) })

const liveClock = Context.get(Context.empty(), Clock.Clock)
/** What `setTimeout` takes at most, in milliseconds. */
const longestTimer = 2 ** 31 - 1

/** Calls back after a time by the clock, unless what it gives is called before. */
const after = (context: Context.Context<never>, time: Duration.Duration, then: () => void): () => void => {
  const millis = Duration.toMillis(time)
  if (Context.get(context, Clock.Clock) === liveClock && millis <= longestTimer) {
    // As that clock sleeps, without a fiber: this is on the path of every event that is waited for.
    const timer = setTimeout(then, millis)
    return () => clearTimeout(timer)
  }
  const timer = Effect.runForkWith(context)(Effect.sleep(time))
  timer.addObserver((exit) => {
    if (Exit.isSuccess(exit)) then()
  })
  return () => timer.interruptUnsafe()
}

/** Gives up on an effect after a time, even on one that does not heed its interruption. */
const within = <A, E>(
  effect: Effect.Effect<A, E>,
  time: Duration.Duration,
  late: Effect.Effect<A, E>
): Effect.Effect<A, E> =>
  Effect.contextWith((context: Context.Context<never>) =>
    Effect.callback((resume) => {
      const work = Effect.runForkWith(context)(effect)
      const exit = work.pollUnsafe()
      if (exit !== undefined) return resume(exit)
      let isLate = false
      const cancel = after(context, time, () => {
        isLate = true
        work.interruptUnsafe()
        resume(late)
      })
      work.addObserver((exit) => {
        if (isLate) return
        cancel()
        resume(exit)
      })
      return Effect.sync(() => {
        cancel()
        work.interruptUnsafe()
      })
    })
  )

interface Accepted {
  readonly event: Event
  readonly effect: Effect.Effect<void, PublishError>
}

/** Stands for the id of an asynchronous scope; theirs are not negative. */
const noScope = -1

/** Tells whether code runs inside of a synchronous call of a publisher's function. */
class Inside {
  private scope = noScope

  /** Fibers go on in an asynchronous scope of their own, so one that a function wakes is told from what it calls or starts. */
  get isNow(): boolean {
    return this.scope !== noScope && this.scope === executionAsyncId()
  }

  /** Gives what `leave` takes. */
  enter(): number {
    const before = this.scope
    this.scope = executionAsyncId()
    return before
  }

  leave(before: number): void {
    this.scope = before
  }
}

class PublisherImpl implements Publisher {
  readonly policy: Policy
  readonly source: string
  readonly isNoop = false
  readonly waits: boolean
  sequence = 0
  readonly limits: Json.Limits
  readonly tallies: Metrics.Tallies
  readonly context: Context.Context<never>
  readonly terminalTimeout: Duration.Duration
  readonly transaction: Transaction | undefined
  /** What `offer` has accepted and an Effect has to publish. */
  readonly queue: Ring<Accepted>
  private readonly send: Options["publish"]
  private readonly timeout: Duration.Duration
  private failing = false
  private overflowing = false
  private closed = false
  private readonly sending = new Inside()

  constructor(options: Options, context: Context.Context<never>, source: string) {
    this.policy = options.policy ?? "open"
    this.waits = this.policy !== "open"
    this.source = source
    this.context = context
    this.send = options.publish
    this.transaction = this.policy === "transactional" && options.transaction !== undefined
      ? withCompleted(options.transaction, (event) => {
        number(event, this)
        return event
      })
      : undefined
    this.queue = new Ring(options.capacity ?? 16_384)
    this.timeout = Duration.fromInputUnsafe(options.timeout ?? "30 seconds")
    this.terminalTimeout = Duration.fromInputUnsafe(options.terminalTimeout ?? "5 seconds")
    this.limits = { ...Json.defaultLimits, maxFieldBytes: options.maxFieldBytes ?? Json.defaultLimits.maxFieldBytes }
    this.tallies = Metrics.tallies(Context.get(context, Metric.MetricRegistry))
  }

  get isPublishing(): boolean {
    return this.sending.isNow
  }

  // The functions of the interface are fields, so that they work when they are taken out of the publisher, too.
  readonly offer = (event: Event): void => {
    if (this.closed) return this.fail("Closed", () => closedError(event))
    number(event, this)
    try {
      const effect = this.call(event)
      if (effect === undefined) this.failing = false
      else if (!this.queue.offer({ event, effect })) this.overflow(event)
    } catch (thrown) {
      this.fail(reasonTag(thrown), () => toPublishError(event, thrown))
    }
  }

  readonly publish = (event: Event): Effect.Effect<void, PublishError> =>
    this.settle(
      event,
      Effect.suspend(() => {
        if (this.closed) return Effect.fail(closedError(event))
        number(event, this)
        return this.call(event) ?? Effect.void
      })
    )

  /** Publishes what `offer` has accepted. */
  readonly publishAccepted = ({ effect, event }: Accepted): Effect.Effect<void> => {
    if (this.queue.size === 0) this.overflowing = false
    return Effect.ignore(this.settle(event, effect))
  }

  /** Takes no more events. */
  readonly end = (): void => {
    this.closed = true
    this.queue.end()
  }

  readonly report = (error: PublishError): void => this.fail(error.reason._tag, () => error)

  /** An error costs far more than a count, and whoever is on this path is a unit: only the first of a streak is made. */
  private fail(tag: PublishError["reason"]["_tag"], error: () => PublishError): void {
    Metrics.publishFailures(tag).updateUnsafe(1, this.context)
    if (this.failing) return
    this.failing = true
    this.warn(error())
  }

  private overflow(event: Event): void {
    Metrics.publishFailures("BufferFull").updateUnsafe(1, this.context)
    if (this.overflowing) return
    this.overflowing = true
    const reason = new BufferFull({ capacity: this.queue.capacity })
    this.warn(new PublishError({ event_id: event.id, reason }))
  }

  private warn(error: PublishError): void {
    const consequence = this.policy === "open" ? "Units run on" : "Units do not start while it lasts"
    Effect.logWarning(
      `${error.message}. ${consequence}; further failures are counted in effect_units_publish_failures.`
    ).pipe(Effect.runForkWith(this.context))
  }

  /** What is left to do, within its time. */
  private call(event: Event): Effect.Effect<void, PublishError> | undefined {
    const before = this.sending.enter()
    try {
      const result = this.send(event)
      if (result instanceof Receipt) return result.within(this.timeout, () => timedOut(event, this.timeout))
      return result !== undefined && Effect.isEffect(result) ? this.guarded(event, result) : undefined
    } finally {
      this.sending.leave(before)
    }
  }

  /** Within its time, and without units of its own being published. */
  private guarded(event: Event, effect: Effect.Effect<void, PublishError>): Effect.Effect<void, PublishError> {
    const late = Effect.suspend(() => Effect.fail(timedOut(event, this.timeout)))
    return within(Effect.provideService(effect, Execution.Surroundings, publishing), this.timeout, late)
  }

  /** Reports every way to fail, as a `PublishError`. */
  private settle(event: Event, effect: Effect.Effect<void, PublishError>): Effect.Effect<void, PublishError> {
    return Effect.matchCauseEffect(effect, {
      onSuccess: () => {
        this.failing = false
        return Effect.void
      },
      onFailure: (cause) => {
        const error = toPublishError(event, Cause.squash(cause))
        this.report(error)
        return Effect.fail(error)
      }
    })
  }
}

/** A transaction that stores what becomes of the completed event. */
const withCompleted = (
  transaction: Transaction,
  change: (event: ExecutionEvent) => ExecutionEvent | undefined
): Transaction => ({
  run: (work, completed) =>
    transaction.run(work, (value) => {
      const event = completed(value)
      return event && change(event)
    })
})

/**
 * Makes a publisher from a function.
 *
 * **Details**
 *
 * Under the `open` policy a function that returns an Effect is called on the unit's path, its Effects run one after the other
 * in the background, so order is kept and no unit waits. Closing the scope runs those that were accepted, for at most
 * `flushTimeout`; what is left then is counted as dropped, in `effect_units_events_dropped`.
 *
 * **Gotchas**
 *
 * Units that run inside of `publish` are not published. That goes for what an Effect does, forked fibers included, and for what a
 * function does until it returns; let it return an Effect rather than fork one that goes on.
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
    const publisher = new PublisherImpl(options, context, options.source ?? (yield* newSource))
    yield* consume(publisher.queue, publisher.publishAccepted, publisher.end, options.flushTimeout)
    return publisher
  }
)

/** Handles what a queue holds, until its scope closes, and then for as long as it may take to finish. */
const consume = Effect.fnUntraced(
  function*<A>(
    queue: Ring<A>,
    handle: (item: A) => Effect.Effect<void>,
    end: () => void,
    flushTimeout: Duration.Input = "10 seconds"
  ): Effect.fn.Return<void, never, Scope.Scope> {
    const fiber = yield* Effect.forkDetach(queue.forEach(handle))
    const context = yield* Effect.context<never>()
    const flush = Effect.gen(function*() {
      end()
      if (queue.unfinished === 0) return
      const flushed = yield* Effect.timeoutOption(Fiber.await(fiber), flushTimeout)
      if (Option.isSome(flushed)) return
      const lost = queue.unfinished
      // Not waited for, as the deadline has passed.
      fiber.interruptUnsafe()
      Metrics.drops("flush").updateUnsafe(lost, context)
      yield* Effect.logWarning(
        `A publisher could not publish all events within its flushTimeout: ${lost} were dropped. Give it more time, or a faster transport`
      )
    })
    yield* Effect.addFinalizer(() => flush)
  }
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
  waits: false,
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

/** The publisher of a layer, and all that the layer gives besides. */
const built = <A, E, R>(layer: Layer.Layer<A | EventPublisher, E, R>) =>
  Effect.map(Layer.build(layer), (context) => ({
    context,
    // Safe: the type of the layer says that it gives one, only not in a form from which the compiler can take it out again.
    publisher: Context.get(context as Context.Context<EventPublisher>, EventPublisher)
  }))

/** A function of a Layer that changes its publisher, and nothing else that it gives. */
interface Combinator<in Argument> {
  (argument: Argument): <A, E, R>(
    self: Layer.Layer<A | EventPublisher, E, R>
  ) => Layer.Layer<A | EventPublisher, E, R>
  <A, E, R>(
    self: Layer.Layer<A | EventPublisher, E, R>,
    argument: Argument
  ): Layer.Layer<A | EventPublisher, E, R>
}

const combinator = <Argument>(
  change: (publisher: Publisher, argument: Argument) => Effect.Effect<Publisher, never, Scope.Scope>
): Combinator<Argument> =>
  dual(
    2,
    <A, E, R>(
      self: Layer.Layer<A | EventPublisher, E, R>,
      argument: Argument
    ): Layer.Layer<A | EventPublisher, E, R> =>
      Layer.effectContext(Effect.gen(function*() {
        const { context, publisher } = yield* built(self)
        return publisher.isNoop ? context : Context.add(context, EventPublisher, yield* change(publisher, argument))
      }))
  )

/**
 * Publishes every event to both of two publishers, and gives what both Layers give.
 *
 * **Details**
 *
 * The stricter policy of the two holds. Neither waits for the other under the `open` policy, and what goes wrong in one does not
 * keep an event from the other. The start of an execution is handed first to the one that can refuse it, and what is refused is not
 * handed on; its end is handed to both. Where one of them is `transactional`, the other has the completed event after the commit.
 * Both see the numbering of the pair. A noop is no part of a pair. Of the limits on fields the lower ones hold.
 *
 * **Gotchas**
 *
 * Where both can refuse, and the second refuses a start, the first has a start that is not followed by an end. Beside a publisher
 * that is waited for, the events of executions that run at the same time can come to the other one in another order than that of
 * their numbers.
 *
 * @category combinators
 * @since 0.1.0
 */
export const combine: {
  <B, E2, R2>(that: Layer.Layer<B | EventPublisher, E2, R2>): <A, E, R>(
    self: Layer.Layer<A | EventPublisher, E, R>
  ) => Layer.Layer<A | B | EventPublisher, E | E2, R | R2>
  <A, E, R, B, E2, R2>(
    self: Layer.Layer<A | EventPublisher, E, R>,
    that: Layer.Layer<B | EventPublisher, E2, R2>
  ): Layer.Layer<A | B | EventPublisher, E | E2, R | R2>
} = dual(
  2,
  <A, E, R, B, E2, R2>(
    self: Layer.Layer<A | EventPublisher, E, R>,
    that: Layer.Layer<B | EventPublisher, E2, R2>
  ): Layer.Layer<A | B | EventPublisher, E | E2, R | R2> =>
    Layer.effectContext(Effect.gen(function*() {
      const left = yield* built(self)
      const right = yield* built(that)
      const context = Context.merge(left.context, right.context)
      return Context.add(context, EventPublisher, yield* pair(left.publisher, right.publisher))
    }))
)

const policies = ["open", "closed", "transactional"] as const

const isStart = (event: Event): boolean => isExecutionEvent(event) && !isTerminal(event)

const pair = Effect.fnUntraced(function*(left: Publisher, right: Publisher): Effect.fn.Return<Publisher> {
  if (left.isNoop) return right
  if (right.isNoop) return left
  if (left.transaction !== undefined && right.transaction !== undefined) {
    return yield* Effect.die(
      new TypeError("Two transactional publishers cannot be combined: one transaction cannot commit in both")
    )
  }
  const strictness = Math.max(policies.indexOf(left.policy), policies.indexOf(right.policy))
  const counter = { source: yield* newSource, sequence: 0 }
  const [first, second] = right.waits && !left.waits ? [right, left] : [left, right]
  const [transactional, other] = right.transaction === undefined ? [left, right] : [right, left]
  return {
    // In bounds: both indices come from the list.
    policy: policies[strictness]!,
    source: counter.source,
    isNoop: false,
    waits: first.waits,
    get isPublishing() {
      return left.isPublishing || right.isPublishing
    },
    limits: left.limits.maxFieldBytes <= right.limits.maxFieldBytes ? left.limits : right.limits,
    tallies: left.tallies,
    context: left.context,
    terminalTimeout: Duration.max(left.terminalTimeout, right.terminalTimeout),
    offer: (event) => {
      number(event, counter)
      left.offer(event)
      right.offer(event)
    },
    publish: (event) =>
      Effect.suspend(() => {
        number(event, counter)
        const toSecond = second.waits === first.waits
          ? second.publish(event)
          : Effect.sync(() => second.offer(event))
        if (first.waits && first.policy !== "open" && isStart(event)) {
          return first.publish(event).pipe(
            // Whoever gives up waiting publishes the end of the execution, to both.
            Effect.onInterrupt(() => handOver(second, event)),
            Effect.andThen(toSecond)
          )
        }
        const both = Effect.all([Effect.exit(toSecond), Effect.exit(first.publish(event))], { concurrency: 2 })
        return Effect.flatMap(both, ([later, sooner]) => Effect.andThen(sooner, later))
      }),
    report: (error) => first.report(error),
    transaction: transactional.transaction && thenHandedTo(transactional.transaction, other, counter)
  }
})

/** A transaction whose completed events go to another publisher, too, once they are committed. */
const thenHandedTo = (
  transaction: Transaction,
  other: Publisher,
  counter: { readonly source: string; sequence: number }
): Transaction => ({
  run: (work, completed) =>
    Effect.suspend(() => {
      let stored: ExecutionEvent | undefined
      const run = transaction.run(work, (value) => {
        stored = completed(value)
        if (stored !== undefined) number(stored, counter)
        return stored
      })
      return Effect.tap(run, () => stored === undefined ? Effect.void : handOver(other, stored))
    })
})

/**
 * Hands an event over that does not decide any more whether a unit runs, such as the end of its execution: at once, or, where the
 * publisher waits, within its `terminalTimeout`. What goes wrong is reported.
 *
 * @category combinators
 * @since 0.1.0
 */
export const handOver = (publisher: Publisher, event: Event): Effect.Effect<void> => {
  if (!publisher.waits) return Effect.sync(() => publisher.offer(event))
  const late = Effect.sync(() => publisher.report(timedOut(event, publisher.terminalTimeout)))
  return within(Effect.ignore(publisher.publish(event)), publisher.terminalTimeout, late)
}

const newSource: Effect.Effect<string> = Effect.clockWith((clock) =>
  Effect.sync(() => uuidV7(clock.currentTimeMillisUnsafe()))
)

/** A publisher in front of another, that numbers what it lets through. */
const inFront = Effect.fnUntraced(function*(
  publisher: Publisher,
  pass: (event: Event, on: (event: Event) => void) => void
): Effect.fn.Return<Publisher> {
  const counter = { source: yield* newSource, sequence: 0 }
  const passing = new Inside()
  const passOn = (event: Event, on: (event: Event) => void): void => {
    const before = passing.enter()
    try {
      pass(event, (next) => on(renumber(next, counter)))
    } finally {
      passing.leave(before)
    }
  }
  /** What an event lets through, in order: often itself. */
  const passed = (event: Event): ReadonlyArray<Event> => {
    const list: Array<Event> = []
    passOn(event, (next) => void list.push(next))
    return list
  }
  const reported = (event: Event, thrown: unknown): PublishError => {
    const error = toPublishError(event, thrown)
    publisher.report(error)
    return error
  }
  return {
    policy: publisher.policy,
    source: counter.source,
    isNoop: false,
    waits: publisher.waits,
    get isPublishing() {
      return passing.isNow || publisher.isPublishing
    },
    limits: publisher.limits,
    tallies: publisher.tallies,
    context: publisher.context,
    terminalTimeout: publisher.terminalTimeout,
    offer: (event) => {
      try {
        passOn(event, (next) => publisher.offer(next))
      } catch (thrown) {
        reported(event, thrown)
      }
    },
    publish: (event) =>
      Effect.flatMap(
        Effect.try({ try: () => passed(event), catch: (thrown) => reported(event, thrown) }),
        (events) => Effect.forEach(events, (next) => publisher.publish(next), { discard: true })
      ),
    report: (error) => publisher.report(error),
    transaction: publisher.transaction &&
      withCompleted(publisher.transaction, (event) => {
        try {
          // A completed event lets itself through, or nothing.
          return passed(event).find(isExecutionEvent)
        } catch (thrown) {
          reported(event, thrown)
          return undefined
        }
      })
  }
})

/**
 * Lets only those events through that a predicate accepts.
 *
 * **Details**
 *
 * What passes is numbered anew, without holes, under a source of its own. A predicate that throws is a failure to publish: its
 * event stays back, and it is counted, or under the other policies treated as they treat failures.
 *
 * **Gotchas**
 *
 * A predicate over the unit, the domain or the attributes keeps both events of an execution together; one over `event_type` does
 * not.
 *
 * @category combinators
 * @since 0.1.0
 */
export const filter: Combinator<(event: Event) => boolean> = combinator((publisher, predicate) =>
  inFront(publisher, (event, on) => {
    if (predicate(event)) on(event)
  })
)

/**
 * Settings of `sample`.
 *
 * @category models
 * @since 0.1.0
 */
export interface SampleOptions {
  /** The share of the executions that passes, from 0 to 1. */
  readonly rate: number
  /** How many started events are held for executions that may fail yet. Default 10,000. */
  readonly capacity?: number | undefined
}

/**
 * Lets a share of the executions through, and every one that fails.
 *
 * **Details**
 *
 * Both events of an execution pass, or neither. The choice falls by `root_id`, so a whole tree of executions passes or stays back,
 * in every process alike; a failed execution passes by itself, its started event right before its failed one. Started events of
 * executions that were not chosen are held until they end, at most `capacity`; beyond that the oldest pass. Domain events follow
 * their tree.
 *
 * @category combinators
 * @since 0.1.0
 */
export const sample: Combinator<SampleOptions> = combinator((publisher, { capacity = 10_000, rate }) => {
  const held = new Map<string, ExecutionEvent>()
  return inFront(publisher, (event, on) => {
    if (event.root_id === undefined || hashed(event.root_id) < rate) return on(event)
    if (!isExecutionEvent(event)) return
    if (isTerminal(event)) {
      const started = held.get(event.correlation_id)
      held.delete(event.correlation_id)
      if (event.event_type === "execution_completed" && started !== undefined) return
      if (started !== undefined) on(started)
      return on(event)
    }
    held.set(event.correlation_id, event)
    if (held.size <= capacity) return
    // A Map gives its entries in the order in which they came.
    for (const [id, oldest] of held) {
      held.delete(id)
      return on(oldest)
    }
  })
})

/**
 * What a full buffer does: `suspend` makes units wait for room, `dropping` loses the new event, `sliding` the oldest one.
 *
 * @category models
 * @since 0.1.0
 */
export type Strategy = "suspend" | "dropping" | "sliding"

/**
 * Settings of `buffered`.
 *
 * @category models
 * @since 0.1.0
 */
export interface BufferOptions {
  /** How many events may wait; those that are just being published do not count. */
  readonly capacity: number
  readonly strategy: Strategy
  /** How long closing the scope waits for what was accepted. Default 10 seconds. */
  readonly flushTimeout?: Duration.Input | undefined
}

/**
 * Puts a bounded buffer in front of a publisher: units hand over to the buffer, a fiber publishes from it, one event after the
 * other, in order.
 *
 * **Details**
 *
 * The policy becomes `open`: a unit no longer learns whether its event was published. What is dropped is counted in
 * `effect_units_events_dropped`, logged once until the buffer has drained, and shows as a gap in `sequence`. Under `suspend` units
 * wait for room, an ending one at most `terminalTimeout` of the publisher; an event whose unit gives up waiting is dropped. Closing
 * the scope publishes what was accepted, for at most `flushTimeout`; what comes later, or still waits for room, is dropped, and `publish`
 * fails with the reason `Closed`, while units run on.
 *
 * @category combinators
 * @since 0.1.0
 */
export const buffered: Combinator<BufferOptions> = combinator(Effect.fnUntraced(
  function*(publisher: Publisher, options: BufferOptions): Effect.fn.Return<Publisher, never, Scope.Scope> {
    const counter = { source: yield* newSource, sequence: 0 }
    const ring = new Ring<Event>(options.capacity)
    const drops = Metrics.drops("buffered")
    let dropping = false
    const dropped = (): void => {
      drops.updateUnsafe(1, publisher.context)
      if (dropping) return
      dropping = true
      Effect.logWarning(
        `A buffer of ${options.capacity} events is full and drops events; they are counted in effect_units_events_dropped.`
      ).pipe(Effect.runForkWith(publisher.context))
    }
    const forward = (event: Event): Effect.Effect<void> => {
      if (ring.size === 0) dropping = false
      return Effect.ignore(publisher.publish(event))
    }
    let closed = false
    const end = (): void => {
      closed = true
      ring.end()
    }
    yield* consume(ring, forward, end, options.flushTimeout)
    const offer = (event: Event): void => {
      number(event, counter)
      if (!(options.strategy === "sliding" ? ring.slide(event) : ring.offer(event))) dropped()
    }
    const wait = (event: Event): Effect.Effect<void, PublishError> =>
      Effect.suspend(() => {
        number(event, counter)
        return Effect.flatMap(ring.offerWaiting(event, dropped), (accepted) => {
          if (accepted) return Effect.void
          dropped()
          return Effect.fail(closedError(event))
        })
      })
    const hand = (event: Event): Effect.Effect<void, PublishError> =>
      Effect.suspend(() => {
        offer(event)
        return closed ? Effect.fail(closedError(event)) : Effect.void
      })
    const waits = options.strategy === "suspend"
    return {
      policy: "open",
      source: counter.source,
      isNoop: false,
      waits,
      get isPublishing() {
        return publisher.isPublishing
      },
      limits: publisher.limits,
      tallies: publisher.tallies,
      context: publisher.context,
      terminalTimeout: publisher.terminalTimeout,
      offer,
      publish: waits ? wait : hand,
      report: (error) => publisher.report(error),
      transaction: undefined
    }
  }
))

/**
 * Turns a publisher's refusal into a typed failure.
 *
 * **Details**
 *
 * Under the policies `closed` and `transactional` a unit that may not run, or may not commit, dies with a `PublishError`, as a
 * Layer cannot add to the typed failures of a unit. Around such units this gives the error its place in the types.
 *
 * @category combinators
 * @since 0.1.0
 */
export const failOnRefusal = <A, E, R>(self: Effect.Effect<A, E, R>): Effect.Effect<A, E | PublishError, R> =>
  Effect.catchDefect(
    self,
    (defect): Effect.Effect<never, PublishError> =>
      defect instanceof PublishError ? Effect.fail(defect) : Effect.die(defect)
  )

/**
 * Layer that publishes to the subscribers of an `EventBus` in this process, and gives that bus.
 *
 * @category layers
 * @since 0.1.0
 */
export const layerBus: Layer.Layer<EventPublisher | EventBus.EventBus> = Layer.provideMerge(
  Layer.effect(
    EventPublisher,
    Effect.flatMap(EventBus.EventBus, (bus) => make({ publish: bus.publish }))
  ),
  EventBus.layer
)

/**
 * Layer that writes one readable line per event to the `Console`: when, what, who, how long. In colour where standard output is a
 * terminal and the variable `NO_COLOR` is empty or not set.
 *
 * Source of the variable: https://no-color.org.
 *
 * @category layers
 * @since 0.1.0
 */
export const layerConsole: Layer.Layer<EventPublisher> = Layer.effect(
  EventPublisher,
  Effect.gen(function*() {
    const console = yield* Console.Console
    // Any text will do, so reading it cannot fail.
    const noColour = yield* Effect.orDie(Config.String("NO_COLOR").pipe(Config.withDefault("")))
    const colour = process.stdout.isTTY && noColour === ""
    return yield* make({ publish: (event) => console.log(ConsoleLine.format(event, colour)) })
  })
)

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
    const capacity = Math.max(1, options.capacity)
    const ring: Array<Event> = []
    let next = 0
    let dropped = 0
    const publisher = yield* make({
      publish: (event) => {
        if (ring.length < capacity) {
          ring.push(event)
        } else {
          ring[next] = event
          next = (next + 1) % capacity
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
