/**
 * Acknowledgements over a source of events that knows none: what is in flight, what has to be delivered again, and how far a
 * consumer has come.
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
import * as Semaphore from "effect/Semaphore"
import * as Stream from "effect/Stream"
import type { Delivery, SubscribeError } from "../EventSubscriber.ts"

/**
 * An event as its source has it.
 *
 * @internal
 */
export type Sourced = Pick<Delivery, "event" | "position" | "missed">

/**
 * How a subscription keeps account.
 *
 * @internal
 */
export interface Options {
  readonly maxInFlight?: number | undefined
  readonly ackTimeout?: Duration.Input | undefined
  /** For a consumer whose place is kept: saves the position up to which everything is handled. Calls come one after the other. */
  readonly keepPlace?: {
    readonly save: (position: string) => Effect.Effect<void, SubscribeError>
    /** What an acknowledgement fails with after the end of the subscription, when there is no place to keep any more. */
    readonly ended: () => SubscribeError
  } | undefined
}

interface Entry extends Sourced {
  /** Its number in the order of the source. */
  readonly order: number
  attempt: number
  state: "ready" | "delivered" | "handled"
  /** By the clock, in milliseconds; of a delivered one. */
  deadline: number
}

/** How many events a consumer may be ahead of the oldest one that it has not handled, where its place is kept. */
const longestLead = 10_000

/**
 * Turns a source into deliveries, until the scope closes. Events that are not acknowledged in time, or given back, are delivered again
 * before newer ones. When the source ends, the deliveries end as soon as nothing is in flight.
 *
 * @internal
 */
export const acknowledging = Effect.fnUntraced(function*(
  source: Stream.Stream<Sourced, SubscribeError>,
  options: Options
): Effect.fn.Return<Stream.Stream<Delivery, SubscribeError>, never, Scope.Scope> {
  const max = Math.max(1, options.maxInFlight ?? 1)
  const ackTimeout = Duration.toMillis(options.ackTimeout ?? "30 seconds")
  const { keepPlace } = options
  const clock = yield* Clock.Clock
  const saving = yield* Semaphore.make(1)

  /** In the order of the source. */
  const ready: Array<Entry> = []
  /** In the order of their deadlines. */
  const delivered = new Set<Entry>()
  /** In the order of the source, from the oldest that is not handled on; only where the place is kept. */
  const lead: Array<Entry> = []
  let handledUpTo: Sourced["position"] | undefined
  let savedUpTo: Sourced["position"] | undefined
  let count = 0
  let end: Exit.Exit<void, SubscribeError> | undefined
  let closed = false

  const change = Latch.makeUnsafe(false)
  const room = Latch.makeUnsafe(true)

  const makeRoom = (): void => {
    if (ready.length + delivered.size < max && lead.length < longestLead) room.openUnsafe()
    else room.closeUnsafe()
  }

  const toReady = (entry: Entry): void => {
    entry.state = "ready"
    const at = ready.findIndex(({ order }) => order > entry.order)
    ready.splice(at === -1 ? ready.length : at, 0, entry)
    change.openUnsafe()
  }

  const giveBack = (entry: Entry): void => {
    delivered.delete(entry)
    toReady(entry)
  }

  const handle = (entry: Entry): void => {
    if (entry.state === "handled") return
    if (entry.state === "ready") ready.splice(ready.indexOf(entry), 1)
    entry.state = "handled"
    delivered.delete(entry)
    const open = lead.findIndex(({ state }) => state !== "handled")
    const passed = lead.splice(0, open === -1 ? lead.length : open)
    handledUpTo = passed.at(-1)?.position ?? handledUpTo
    makeRoom()
    change.openUnsafe()
  }

  /** Whoever acknowledges while another is saving is mostly covered by that one, or by one save for many. */
  const save = (keep: NonNullable<Options["keepPlace"]>): Effect.Effect<void, SubscribeError> =>
    Effect.suspend(() => {
      const position = handledUpTo
      if (position === undefined || position === savedUpTo) return Effect.void
      return Effect.map(keep.save(position), () => {
        savedUpTo = position
      })
    }).pipe(Semaphore.withPermit(saving))

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
      ack: Effect.suspend(() => {
        if (keepPlace !== undefined && closed && entry.state !== "handled") return Effect.fail(keepPlace.ended())
        handle(entry)
        return keepPlace === undefined ? Effect.void : save(keepPlace)
      }),
      retry: Effect.sync(() => {
        if (!closed && entry.state === "delivered" && entry.attempt === attempt) giveBack(entry)
      })
    }
  }

  /** Gives back what was not acknowledged in time, and tells when the next one is due. */
  const expire = (): number => {
    const now = clock.currentTimeMillisUnsafe()
    for (const entry of delivered) {
      if (entry.deadline > now) return entry.deadline - now
      giveBack(entry)
    }
    return Infinity
  }

  const next: Pull.Pull<Arr.NonEmptyReadonlyArray<Delivery>, SubscribeError> = Effect.suspend(() => {
    const due = expire()
    const entry = ready.shift()
    if (entry !== undefined) return Effect.succeed<Arr.NonEmptyReadonlyArray<Delivery>>([deliver(entry)])
    if (end !== undefined && Exit.isFailure(end)) return Exit.failCause(end.cause)
    if (end !== undefined && delivered.size === 0) return Cause.done()
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
      end ??= Exit.void
      change.openUnsafe()
    })
  )
  yield* Stream.runForEach(source, (sourced) => {
    const entry: Entry = { ...sourced, order: count++, attempt: 0, state: "ready", deadline: 0 }
    if (keepPlace !== undefined) lead.push(entry)
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
