/**
 * How failures of the services below become failures of units.
 *
 * @since 0.1.0
 */
import * as Effect from "effect/Effect"
import { InternalError, RateLimited } from "../../UnitError.ts"
import type { HubError } from "../HubError.ts"
import { ModelStoreError } from "../ModelStore.ts"

/**
 * Turns a failure of the register into the `InternalError` that every unit of the domain declares.
 *
 * @internal
 */
export const internal = <A, E, R>(
  self: Effect.Effect<A, E | ModelStoreError, R>
): Effect.Effect<A, Exclude<E, ModelStoreError> | InternalError, R> =>
  Effect.mapError(self, (error) =>
    error instanceof ModelStoreError
      ? new InternalError({ detail: error.message, cause: error })
      // What is left of the failures, as the branch above took the others.
      : error as Exclude<E, ModelStoreError>)

/**
 * The failure of a unit whose hub limits the rate of requests; `undefined` for any other failure of a hub.
 *
 * @internal
 */
export const rateLimited = ({ message, reason }: HubError): RateLimited | undefined => {
  if (reason._tag !== "RateLimited") return undefined
  const seconds = reason.retry_after_seconds
  return new RateLimited({ detail: message, ...(seconds === undefined ? {} : { retry_after_seconds: seconds }) })
}
