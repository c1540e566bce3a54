/**
 * What the transports to message brokers share: events as text, the filters of a subscription, and the way of an event from the unit
 * that publishes it to the fiber that sends it.
 *
 * @since 0.1.0
 */
import * as Clock from "effect/Clock"
import * as Effect from "effect/Effect"
import * as Exit from "effect/Exit"
import * as Fiber from "effect/Fiber"
import * as Option from "effect/Option"
import * as Schema from "effect/Schema"
import * as Scope from "effect/Scope"
import * as DomainEvent from "../DomainEvent.ts"
import * as EventPublisher from "../EventPublisher.ts"
import * as ExecutionEvent from "../ExecutionEvent.ts"
import * as Json from "./json.ts"
import * as Metrics from "./metrics.ts"
import { Ring } from "./ring.ts"

/**
 * The JSON text of an event. What JSON cannot hold as it is, NUL and lone surrogates, is in it as escapes.
 *
 * @internal
 */
export const toText = (event: EventPublisher.Event): string =>
  JSON.stringify(ExecutionEvent.isExecutionEvent(event) ? ExecutionEvent.toJson(event) : DomainEvent.toJson(event))

/**
 * The JSON text of an event whose own is larger than a transport takes. What the event carries, `input`, `output`, `error`, the failure's `value`,
 * `payload`, shows as `{ $truncated, bytes, sha256 }`; what the event is, it still is.
 *
 * @internal
 */
export const toOutline = (event: EventPublisher.Event): string => JSON.stringify(outlineOf(event))

const outlineOf = (event: EventPublisher.Event): EventPublisher.Event => {
  if (!ExecutionEvent.isExecutionEvent(event)) {
    const json = DomainEvent.toJson(event)
    return { ...json, payload: Json.outline(json.payload) }
  }
  const json = ExecutionEvent.toJson(event)
  switch (json.event_type) {
    case "execution_started":
      return json.input === undefined ? json : { ...json, input: Json.outline(json.input) }
    case "execution_completed":
      return json.output === undefined ? json : { ...json, output: Json.outline(json.output) }
    case "execution_failed": {
      const { error, failure } = json
      const shown = Json.outline(error)
      return {
        ...json,
        error: typeof shown === "string" ? shown : JSON.stringify(shown),
        failure: failure.value === undefined ? failure : { ...failure, value: Json.outline(failure.value) }
      }
    }
  }
}

const decodeExecutionEvent = Schema.decodeUnknownExit(ExecutionEvent.ExecutionEvent)
const decodeDomainEvent = Schema.decodeUnknownExit(DomainEvent.DomainEvent)

/**
 * The event that a text holds; a failure where it holds none.
 *
 * @internal
 */
export const fromText = (text: string): Exit.Exit<EventPublisher.Event, unknown> => {
  try {
    const json: unknown = JSON.parse(text)
    return ExecutionEvent.isExecutionEvent(json) ? decodeExecutionEvent(json) : decodeDomainEvent(json)
  } catch (thrown) {
    return Exit.fail(thrown)
  }
}

/** @internal */
export const typeOf = (event: EventPublisher.Event): string =>
  ExecutionEvent.isExecutionEvent(event) ? event.event_type : event.type

/**
 * The clock of the machine. How long a server has not answered is real time, also where the units run under a `TestClock`.
 *
 * @internal
 */
export const realClock: Clock.Clock = Clock.Clock.defaultValue()

/**
 * Milliseconds of a clock that is never set back.
 *
 * @internal
 */
export const monotonicMillis = (): number => Number(realClock.monotonicTimeNanosUnsafe() / 1_000_000n)

/** @internal */
export const inRealTime = <A, E, R>(self: Effect.Effect<A, E, R>): Effect.Effect<A, E, R> =>
  Effect.provideService(self, Clock.Clock, realClock)

/**
 * Says what a client library threw.
 *
 * @internal
 */
export const describe = (thrown: unknown): string =>
  thrown instanceof Error ? thrown.message === "" ? thrown.name : thrown.message : String(thrown)

/**
 * A pause that doubles with each failure, and is short again after a success.
 *
 * @internal
 */
export class Backoff {
  private readonly first: number
  private readonly longest: number
  private millis = 0

  constructor(first: number, longest: number) {
    this.first = first
    this.longest = longest
  }

  next(): number {
    this.millis = this.millis === 0 ? this.first : Math.min(this.millis * 2, this.longest)
    return this.millis
  }

  reset(): void {
    this.millis = 0
  }
}

/**
 * Gives each subscription a scope that ends with its own, or with the one around where that closes first.
 *
 * @internal
 */
export const subscriptions = Effect.gen(function*() {
  const open = new Set<Scope.Closeable>()
  yield* Effect.addFinalizer((exit) =>
    Effect.forEach([...open], (scope) => Scope.close(scope, exit), { concurrency: "unbounded", discard: true })
  )
  return <A, E>(subscribe: Effect.Effect<A, E, Scope.Scope>): Effect.Effect<A, E, Scope.Scope> =>
    Effect.acquireRelease(
      Effect.map(Scope.make(), (scope) => {
        open.add(scope)
        return scope
      }),
      (scope, exit) => {
        open.delete(scope)
        return Scope.close(scope, exit)
      }
    ).pipe(Effect.flatMap((scope) => Scope.provide(subscribe, scope)))
})

/**
 * Settings that the publishers to brokers share.
 *
 * @internal
 */
export interface PublisherOptions extends
  Pick<
    EventPublisher.Options,
    "source" | "capacity" | "timeout" | "terminalTimeout" | "flushTimeout" | "maxFieldBytes"
  >
{
  readonly policy?: "open" | "closed" | undefined
}

/**
 * An event on its way to a broker.
 *
 * @internal
 */
export class Outgoing {
  readonly event: EventPublisher.Event
  /** Done when the broker has it, or has refused it. Nobody waits for it under the `open` policy. */
  readonly settled: EventPublisher.Receipt | undefined
  /** True when who waited for it has given up: it need not be sent. */
  withdrawn = false

  constructor(event: EventPublisher.Event, isWaitedFor: boolean) {
    this.event = event
    this.settled = isWaitedFor
      ? new EventPublisher.Receipt(() => {
        this.withdrawn = true
      })
      : undefined
  }
}

/**
 * What a sender gets: the events, and where to say what became of each of them.
 *
 * @internal
 */
export interface Outbound {
  readonly ring: Ring<Outgoing>
  /** The broker has it. */
  readonly acknowledged: (item: Outgoing) => void
  /** The broker refuses it for good: it is lost. */
  readonly refused: (item: Outgoing, detail: string, cause: unknown) => void
}

/**
 * The sending end of a transport.
 *
 * @internal
 */
export interface Sender {
  /** Names the transport in logs. */
  readonly transport: string
  /** Names the transport in `effect_units_events_dropped`. */
  readonly buffer: string
  /** Sends what the ring gives until it gives nothing more, and succeeds when all of it is settled. */
  readonly run: (outbound: Outbound) => Effect.Effect<void>
  /** How many events it has taken from the ring that are not settled. */
  readonly unsettled: () => number
}

/**
 * A publisher in front of a sender. Units hand over to a bounded buffer and wait for the broker under the `closed` policy alone. Closing
 * the scope sends what was accepted, for at most `flushTimeout`.
 *
 * @internal
 */
export const makePublisher = Effect.fnUntraced(
  function*(options: PublisherOptions, sender: Sender): Effect.fn.Return<EventPublisher.Publisher, never, Scope.Scope> {
    const context = yield* Effect.context<never>()
    const capacity = options.capacity ?? 16_384
    const ring = new Ring<Outgoing>(capacity)
    let refusing = false

    const outbound: Outbound = {
      ring,
      acknowledged: ({ settled }) => {
        refusing = false
        settled?.settle(Exit.void)
      },
      refused: ({ event, settled }, detail, cause) => {
        const reason = new EventPublisher.Rejected({ detail, cause })
        const error = new EventPublisher.PublishError({ event_id: event.id, reason })
        // Who waits for it reports it.
        if (settled !== undefined) return settled.settle(Exit.fail(error))
        Metrics.publishFailures(reason._tag).updateUnsafe(1, context)
        if (refusing) return
        refusing = true
        Effect.logWarning(
          `${error.message}. The event is lost; further ones are counted in effect_units_publish_failures.`
        )
          .pipe(Effect.runForkWith(context))
      }
    }

    const fiber = yield* sender.run(outbound).pipe(
      Effect.catchCause((cause) => Effect.logError(`The sender to ${sender.transport} died`, cause)),
      Effect.withTracerEnabled(false),
      inRealTime,
      Effect.forkDetach
    )
    yield* Effect.addFinalizer(() =>
      Effect.gen(function*() {
        ring.end()
        const flushed = yield* Effect.timeoutOption(Fiber.await(fiber), options.flushTimeout ?? "10 seconds")
        if (Option.isSome(flushed)) return
        const lost = ring.size + sender.unsettled()
        fiber.interruptUnsafe()
        Metrics.drops(sender.buffer).updateUnsafe(lost, context)
        yield* Effect.logWarning(
          `${sender.transport} did not take all events within flushTimeout: ${lost} were dropped, of which it may have some`
        )
      })
    )

    // Accepted on the spot, for the order.
    const accept = (event: EventPublisher.Event, isWaitedFor: boolean): EventPublisher.Receipt | undefined => {
      const item = new Outgoing(event, isWaitedFor)
      if (ring.offer(item)) return item.settled
      const reason = new EventPublisher.BufferFull({ capacity })
      throw new EventPublisher.PublishError({ event_id: event.id, reason })
    }
    const isClosed = options.policy === "closed"
    return yield* EventPublisher.make({
      ...options,
      timeout: options.timeout ?? "5 seconds",
      publish: (event) => accept(event, isClosed)
    })
  }
)
