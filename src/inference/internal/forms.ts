/**
 * What the protocols over HTTP share: fields that may be missing, and operations that have another form at other servers.
 *
 * @since 0.1.0
 */
import * as Effect from "effect/Effect"
import * as Schema from "effect/Schema"
import type { BackendReason } from "../BackendReason.ts"

/**
 * A field that may be missing: absent and null are the same to these servers.
 *
 * @internal
 */
export const maybe = <S extends Schema.Constraint>(schema: S) => Schema.optional(Schema.NullOr(schema))

/**
 * Does something else where the endpoint has no such operation. Nothing else is tried again.
 *
 * @internal
 */
export const orElse =
  <B>(other: () => Effect.Effect<B, BackendReason>) =>
  <A>(self: Effect.Effect<A, BackendReason>): Effect.Effect<A | B, BackendReason> =>
    Effect.catch(
      self,
      (reason) => reason._tag === "Refused" && reason.unsupported === true ? other() : Effect.fail(reason)
    )
