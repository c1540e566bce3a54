/**
 * Acknowledgements over a source of events that knows none: what is in flight, and what has to be delivered again.
 *
 * @since 0.1.0
 */
import type * as Arr from "effect/Array"
import * as Cause from "effect/Cause"
import * as Clock from "effect/Clock"
import * as Duration from "effect/Duration"
import * as Effect from "effect/Effect"
import * as Exit from "effect/Exit"
import * as Latch from "effect/Latch"
import type * as Pull from "effect/Pull"
import type * as Scope from "effect/Scope"
import * as Stream from "effect/Stream"
import type { Delivery, Options, SubscribeError } from "../EventSubscriber.ts"
import * as Backoff from "./backoff.ts"

/**
 * An event as its source has it.
 *
 * @internal
 */
export type Sourced = Pick<Delivery, "event" | "position" | "missed">

interface Entry extends Sourced {
  /** Its number in the order of the source. */
  readonly order: number
  attempt: number
  state: "ready" | "delivered" | "waiting" | "handled"
  /** By the clock, in milliseconds: until when a delivered one may be acknowledged, or a waiting one waits. */
  deadline: number
}

/**
 * Turns a source into deliveries, until the scope closes. Events that are not acknowledged in time, or were given back and have waited,
 * are delivered again before newer ones. When the source ends, the deliveries end as soon as nothing is in flight.
 *
 * @internal
 */
export const acknowledging = Effect.fnUntraced(function*(
  source: Stream.Stream<Sourced, SubscribeError>,
  options: Pick<Options, "maxInFlight" | "ackTimeout" | "backoff">
): Effect.fn.Return<Stream.Stream<Delivery, SubscribeError>, never, Scope.Scope> {
  const max = Math.max(1, options.maxInFlight ?? 1)
  const ackTimeout = Duration.toMillis(options.ackTimeout ?? "30 seconds")
  const pause = Backoff.make(options.backoff)
  const clock = yield* Clock.Clock

  /** In the order of the source. */
  const ready: Array<Entry> = []
  /** In the order of their deadlines. */
  const delivered = new Set<Entry>()
  /** Those that were given back and wait for their next attempt. They keep their room, so that one in flight keeps strict order. */
  const waiting = new Set<Entry>()
  let count = 0
  let end: Exit.Exit<void, SubscribeError> | undefined
  let closed = false

  const change = Latch.makeUnsafe(false)
  const room = Latch.makeUnsafe(true)

  const makeRoom = (): void => {
    if (ready.length + delivered.size + waiting.size < max) room.openUnsafe()
    else room.closeUnsafe()
  }

  const toReady = (entry: Entry): void => {
    entry.state = "ready"
    const at = ready.findIndex(({ order }) => order > entry.order)
    ready.splice(at === -1 ? ready.length : at, 0, entry)
    change.openUnsafe()
  }

  const handle = (entry: Entry): void => {
    if (entry.state === "handled") return
    if (entry.state === "ready") ready.splice(ready.indexOf(entry), 1)
    entry.state = "handled"
    delivered.delete(entry)
    waiting.delete(entry)
    makeRoom()
    change.openUnsafe()
  }

  const giveBack = (entry: Entry): Effect.Effect<void> =>
    Effect.map(pause(entry.attempt), (millis) => {
      delivered.delete(entry)
      waiting.add(entry)
      entry.state = "waiting"
      entry.deadline = clock.currentTimeMillisUnsafe() + millis
      change.openUnsafe()
    })

  const deliver = (entry: Entry): Delivery => {
    const attempt = ++entry.attempt
    entry.state = "delivered"
    entry.deadline = clock.currentTimeMillisUnsafe() + ackTimeout
    delivered.add(entry)
    return {
      event: entry.event,
      position: entry.position,
      missed: attempt === 1 ? entry.missed : 0,
      attempt,
      ack: Effect.sync(() => handle(entry)),
      retry: () =>
        Effect.suspend(() =>
          !closed && entry.state === "delivered" && entry.attempt === attempt ? giveBack(entry) : Effect.void
        )
    }
  }

  /** Makes ready what was not acknowledged in time and what has waited, and tells when the next one is due. */
  const expire = (): number => {
    const now = clock.currentTimeMillisUnsafe()
    let due = Infinity
    for (const entry of waiting) {
      if (entry.deadline > now) due = Math.min(due, entry.deadline - now)
      else {
        waiting.delete(entry)
        toReady(entry)
      }
    }
    for (const entry of delivered) {
      if (entry.deadline > now) return Math.min(due, entry.deadline - now)
      delivered.delete(entry)
      toReady(entry)
    }
    return due
  }

  const next: Pull.Pull<Arr.NonEmptyReadonlyArray<Delivery>, SubscribeError> = Effect.suspend(() => {
    const due = expire()
    const entry = ready.shift()
    if (entry !== undefined) return Effect.succeed<Arr.NonEmptyReadonlyArray<Delivery>>([deliver(entry)])
    if (end !== undefined && Exit.isFailure(end)) return Exit.failCause(end.cause)
    if (end !== undefined && delivered.size + waiting.size === 0) return Cause.done()
    change.closeUnsafe()
    const wait = due === Infinity
      ? change.await
      : Effect.timeoutOrElse(change.await, { duration: due, orElse: () => Effect.void })
    return Effect.andThen(wait, next)
  })

  yield* Effect.addFinalizer(() =>
    Effect.sync(() => {
      closed = true
      ready.length = 0
      delivered.clear()
      waiting.clear()
      end ??= Exit.void
      change.openUnsafe()
    })
  )
  yield* Stream.runForEach(source, (sourced) => {
    const entry: Entry = { ...sourced, order: count++, attempt: 0, state: "ready", deadline: 0 }
    toReady(entry)
    makeRoom()
    return room.await
  }).pipe(
    Effect.onExit((exit) =>
      Effect.sync(() => {
        // Interrupted by the end of the scope, or of what it reads from.
        end ??= Exit.isFailure(exit) && Cause.hasInterruptsOnly(exit.cause) ? Exit.void : exit
        change.openUnsafe()
      })
    ),
    Effect.forkScoped
  )
  return Stream.fromPull(Effect.succeed(next))
})
