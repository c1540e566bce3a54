/**
 * The end of what works on a database: it waits for a database that answers, and not for one that has gone silent.
 *
 * @since 0.1.0
 */
import type * as Cause from "effect/Cause"
import * as Duration from "effect/Duration"
import * as Effect from "effect/Effect"
import * as Fiber from "effect/Fiber"
import type * as Scope from "effect/Scope"
import { inRealTime } from "./brokers.ts"

const patience = Duration.seconds(2)

/**
 * Runs an effect, and waits for it no longer than 2 seconds. It is interrupted then, and left to itself: who is within BEGIN or COMMIT
 * heeds no interruption until the database has answered.
 *
 * @internal
 */
export const within = <A, E, R>(self: Effect.Effect<A, E, R>): Effect.Effect<A, E | Cause.TimeoutError, R> =>
  Effect.flatMap(
    Effect.forkDetach(self, { startImmediately: true }),
    (fiber) =>
      inRealTime(Effect.timeout(Fiber.join(fiber), patience)).pipe(
        Effect.ensuring(Effect.sync(() => fiber.interruptUnsafe()))
      )
  )

/**
 * `within`, for what others make good once they miss who is closed: a failure is only logged.
 *
 * @internal
 */
export const attempt = <A, E, R>(self: Effect.Effect<A, E, R>): Effect.Effect<void, never, R> =>
  Effect.ignore(within(self), { log: true, message: "The database did not answer while something on it was closed" })

/**
 * `Effect.forkScoped`, but that the end of the scope waits for the fiber no longer than 2 seconds.
 *
 * @internal
 */
export const forkScoped = <A, E, R>(
  self: Effect.Effect<A, E, R>
): Effect.Effect<Fiber.Fiber<A, E>, never, R | Scope.Scope> =>
  Effect.acquireRelease(Effect.forkDetach(self), (fiber) => attempt(Fiber.interrupt(fiber)))
