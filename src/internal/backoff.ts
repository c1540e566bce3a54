/**
 * How long an event that was given back waits for its next attempt.
 *
 * @since 0.1.0
 */
import * as Duration from "effect/Duration"
import * as Effect from "effect/Effect"
import * as Random from "effect/Random"
import type { Backoff } from "../EventSubscriber.ts"

const limit = (backoff: Backoff): number => Duration.toMillis(backoff.max ?? "5 minutes")

const spread = 0.2

/**
 * No pause is longer than so many milliseconds.
 *
 * @internal
 */
export const longest = (backoff: Backoff = {}): number => (1 + spread) * limit(backoff)

/**
 * Milliseconds to wait after an attempt, of which the first is 1: `base`, and `factor` times as long after each further one, at most
 * `max`; up to a fifth more or less, so that what failed together does not come again together.
 *
 * @internal
 */
export const make = (backoff: Backoff = {}): (attempt: number) => Effect.Effect<number> => {
  const base = Duration.toMillis(backoff.base ?? "100 millis")
  const max = limit(backoff)
  const factor = backoff.factor ?? 2
  return (attempt) =>
    Effect.map(
      Random.next,
      (random) => Math.round(Math.min(base * factor ** (attempt - 1), max) * (1 + spread * (2 * random - 1)))
    )
}
