/**
 * How failures of the services below become failures of units.
 *
 * @since 0.1.0
 */
import * as Effect from "effect/Effect"
import { InternalError } from "../../UnitError.ts"
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
