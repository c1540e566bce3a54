/**
 * How failures of the services below become failures of units.
 *
 * @since 0.1.0
 */
import * as Effect from "effect/Effect"
import { ModelStoreError } from "../../model/ModelStore.ts"
import { InternalError } from "../../UnitError.ts"
import { EngineStoreError } from "../EngineStore.ts"

/**
 * Turns a failure of a register into the `InternalError` that every unit of the domain declares.
 *
 * @internal
 */
export const internal = <A, E, R>(
  self: Effect.Effect<A, E | EngineStoreError | ModelStoreError, R>
): Effect.Effect<A, Exclude<E, EngineStoreError | ModelStoreError> | InternalError, R> =>
  Effect.mapError(self, (error) =>
    error instanceof EngineStoreError || error instanceof ModelStoreError
      ? new InternalError({ detail: error.message, cause: error })
      // What is left of the failures, as the branch above took the others.
      : error as Exclude<E, EngineStoreError | ModelStoreError>)
