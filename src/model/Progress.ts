/**
 * Progress of a pull: sums what its parts report, and tells an observer in order and not too often.
 *
 * @since 0.1.0
 */
import * as Clock from "effect/Clock"
import * as Effect from "effect/Effect"
import * as Semaphore from "effect/Semaphore"

/**
 * How far a pull has come. Sizes are bytes, `speed` is bytes a second over the network, `progress` per cent from 0 to 100
 * and 0 as long as the total is unknown; `bytes_done` includes what an earlier pull had left.
 *
 * @category models
 * @since 0.1.0
 */
export interface Progress {
  readonly status: string
  readonly progress: number
  readonly bytes_total: number
  readonly bytes_done: number
  readonly speed: number
}

/**
 * Where one part of a pull, a file or a layer, has come to: its bytes at hand, its bytes in all when that was not
 * promised at the start, and how many bytes came over the network since it last reported.
 *
 * @category models
 * @since 0.1.0
 */
export interface Part {
  readonly done: number
  readonly total?: number | undefined
  readonly received: number
}

/**
 * @category models
 * @since 0.1.0
 */
export interface Reporter {
  /** Tells the observer now. */
  readonly tell: (status: string) => Effect.Effect<void>
  /** Takes in a part's state, and tells the observer if the last time is half a second ago. */
  readonly advance: (key: string, part: Part, status: string) => Effect.Effect<void>
  /** Tells the observer for the last time: all is there, and the speed is the average of the whole. */
  readonly finish: (status: string) => Effect.Effect<void>
}

const interval = 500

// Not the time of day, which may be set back in the middle of a pull.
const millis = Effect.map(Clock.monotonicTimeNanos, (nanos) => Number(nanos / 1_000_000n))

/**
 * Builds a reporter. `promised` is the sum of the sizes known at the start, in bytes; parts that state a total of their
 * own come on top.
 *
 * @category constructors
 * @since 0.1.0
 */
export const make = Effect.fnUntraced(function*(
  promised: number,
  onProgress: (progress: Progress) => Effect.Effect<void>
): Effect.fn.Return<Reporter> {
  const turn = yield* Semaphore.make(1)
  const started = yield* millis
  const parts = new Map<string, Part>()
  let done = 0
  let total = promised
  let received = 0
  let told = started
  let sample = { at: started, received: 0 }
  let speed = 0

  const emit = (status: string, now: number) => {
    told = now
    if (now - sample.at >= interval) {
      speed = (received - sample.received) * 1000 / (now - sample.at)
      sample = { at: now, received }
    }
    const all = Math.max(total, done)
    return onProgress({
      status,
      progress: all === 0 ? 0 : done * 100 / all,
      bytes_total: all,
      bytes_done: done,
      speed: Math.round(speed)
    })
  }
  const inTurn = (emission: (now: number) => Effect.Effect<void>) =>
    turn.withPermits(1)(Effect.flatMap(millis, emission))

  return {
    tell: (status) => inTurn((now) => emit(status, now)),
    advance: (key, part, status) =>
      Effect.flatMap(millis, (now) => {
        const before = parts.get(key)
        parts.set(key, part)
        done += part.done - (before?.done ?? 0)
        total += (part.total ?? 0) - (before?.total ?? 0)
        received += part.received
        if (now - told < interval) return Effect.void
        // Another part may have told while this one waited for its turn.
        return inTurn((now) => now - told < interval ? Effect.void : emit(status, now))
      }),
    finish: (status) =>
      inTurn((now) => {
        if (now > started) {
          speed = received * 1000 / (now - started)
          sample = { at: now, received }
        }
        total = done
        return emit(status, now)
      })
  }
})
