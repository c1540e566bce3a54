/**
 * What can go wrong between this process and one endpoint. A backend fails with one of these, and says no more than it knows: which
 * model and which endpoint it was is added by the router, which turns it into the failure of a unit.
 *
 * A detail is a sentence for people. It holds no key, header or address.
 *
 * @since 0.1.0
 */
import * as Schema from "effect/Schema"

/**
 * No connection came about, so nothing was sent. The one reason for which a request goes to another endpoint.
 *
 * @category errors
 * @since 0.1.0
 */
export class Unreachable extends Schema.TaggedError<Unreachable>("effect-units/inference/Unreachable")("Unreachable", {
  detail: Schema.String
}) {}

/**
 * The endpoint knows no such model, or has not loaded it yet: then `loading` is true, and a retry can help.
 *
 * @category errors
 * @since 0.1.0
 */
export class ModelMissing
  extends Schema.TaggedError<ModelMissing>("effect-units/inference/ModelMissing")("ModelMissing", {
    detail: Schema.String,
    loading: Schema.Boolean
  })
{}

/**
 * The endpoint refuses the parameters, or cannot do such a thing with this model, or at all: then `unsupported` is true, and another form of
 * the same operation can be tried.
 *
 * @category errors
 * @since 0.1.0
 */
export class Refused extends Schema.TaggedError<Refused>("effect-units/inference/Refused")("Refused", {
  detail: Schema.String,
  unsupported: Schema.optionalKey(Schema.Boolean)
}) {}

/**
 * The endpoint failed, broke off, wants another key, or answered what cannot be read.
 *
 * @category errors
 * @since 0.1.0
 */
export class EngineFailed
  extends Schema.TaggedError<EngineFailed>("effect-units/inference/EngineFailed")("EngineFailed", {
    detail: Schema.String,
    status: Schema.optionalKey(Schema.Int),
    retryable: Schema.Boolean
  })
{}

/**
 * The endpoint did not answer in time.
 *
 * @category errors
 * @since 0.1.0
 */
export class TimedOut
  extends Schema.TaggedError<TimedOut>("effect-units/inference/TimedOut")("TimedOut", { detail: Schema.String })
{}

/**
 * The endpoint is busy. `retry_after_seconds` is the wait, where it named one.
 *
 * @category errors
 * @since 0.1.0
 */
export class Busy extends Schema.TaggedError<Busy>("effect-units/inference/Busy")("Busy", {
  detail: Schema.String,
  retry_after_seconds: Schema.optionalKey(Schema.Natural)
}) {}

/**
 * Every reason.
 *
 * @category errors
 * @since 0.1.0
 */
export type BackendReason = Unreachable | ModelMissing | Refused | EngineFailed | TimedOut | Busy
