/**
 * How a case of the conformance suite fails.
 *
 * @since 0.1.0
 */
import * as Schema from "effect/Schema"

/**
 * A publisher did not do what it promises; see `publisherSuite`.
 *
 * @category errors
 * @since 0.1.0
 */
export class Nonconformance extends Schema.TaggedError<Nonconformance>("effect-units/testing/Nonconformance")(
  "Nonconformance",
  {
    /** Number of the case. */
    number: Schema.Int,
    /** The promise that was not kept; `delivery` is what every transport owes. */
    promise: Schema.String,
    detail: Schema.String,
    cause: Schema.optionalKey(Schema.Defect())
  }
) {
  override get message(): string {
    return `Case ${this.number}, ${this.promise}: ${this.detail}`
  }
}
