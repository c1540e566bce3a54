/**
 * How failures of the services below become failures of units.
 *
 * @since 0.1.0
 */
import * as Effect from "effect/Effect"
import { HostError } from "../../backends/Host.ts"
import { InternalError } from "../../UnitError.ts"
import { ResourceLedgerError } from "../ResourceLedger.ts"

/**
 * Turns a failure of the ledger, or of reading the host, into the `InternalError` that every unit of the domain declares.
 *
 * @internal
 */
export const internal = <A, E, R>(
  self: Effect.Effect<A, E | ResourceLedgerError | HostError, R>
): Effect.Effect<A, Exclude<E, ResourceLedgerError | HostError> | InternalError, R> =>
  Effect.mapError(self, (error) =>
    error instanceof ResourceLedgerError || error instanceof HostError
      ? new InternalError({ detail: error.message, cause: error })
      // What is left of the failures, as the branch above took the others.
      : error as Exclude<E, ResourceLedgerError | HostError>)
