/**
 * What the failures of units share: a tag, a code, and whether a retry can help.
 *
 * @since 0.1.0
 */
import type * as Cause from "effect/Cause"
import * as Schema from "effect/Schema"
import * as SchemaIssue from "effect/SchemaIssue"

/**
 * What every failure of a unit can say of itself. Failure events carry both, callers can branch on them.
 *
 * @category models
 * @since 0.1.0
 */
export interface Traits {
  /** Five digits, stable across versions: `00100` is a model that does not exist. */
  readonly code: string
  /** Whether the same call can succeed later, with nothing else changed. */
  readonly retryable: boolean
}

/**
 * Base class of a failure with a code.
 *
 * **Details**
 *
 * `code` and `retryable` stand on the prototype, so they are the class's own and not part of the encoded error. Where instances
 * differ in whether a retry helps, give the class a field `retryable`. Say in `message` what was wrong and what to do.
 *
 * **Example** (A failure of one's own)
 *
 * ```ts
 * class CardDeclined extends UnitError.make<CardDeclined>()("CardDeclined", { code: "20001", retryable: false }, {
 *   last4: Schema.String
 * }) {
 *   override get message() {
 *     return `The card ending in ${this.last4} was declined. Ask for another one`
 *   }
 * }
 * ```
 *
 * @category constructors
 * @since 0.1.0
 */
export const make = <Self = never>() =>
<const Tag extends string, const Fields extends Schema.Struct.Fields>(
  tag: Tag,
  traits: Traits,
  fields: Fields
): [Self] extends [never] ? never
  : Schema.Class<Self, Schema.TaggedStruct<Tag, Fields>, Cause.YieldableError & Traits> =>
{
  const base = Schema.TaggedError<Self, Traits>(`effect-units/${tag}`)(tag, fields)
  // TaggedError's type is a conditional on `Self` that generic code cannot resolve: its other branch, for a missing `Self`, is
  // ruled out by the return type, whose condition is the same.
  const prototype = (base as unknown as { readonly prototype: object }).prototype
  Object.defineProperties(prototype, {
    code: { value: traits.code, configurable: true, writable: true },
    retryable: { value: traits.retryable, configurable: true, writable: true }
  })
  // By the return type's own condition, see above.
  return base as never
}

const issuesOf = SchemaIssue.makeFormatterStandardSchemaV1()

const pathOf = (path: ReadonlyArray<unknown>): string =>
  path.map((key, index) => typeof key === "number" ? `[${key}]` : index === 0 ? String(key) : `.${String(key)}`).join(
    ""
  )

/**
 * The input of a unit did not fit its Schema. The handler did not run. A retry of the same input does not help.
 *
 * **Details**
 *
 * `issues` has one entry per place: its `path`, such as `options.limit` or `files[2]`, empty for the input as a whole, and what
 * was `expected` there. Values are never repeated: they may be secret.
 *
 * @category errors
 * @since 0.1.0
 */
export class InvalidInput extends make<InvalidInput>()("InvalidInput", { code: "00009", retryable: false }, {
  unit: Schema.String,
  issues: Schema.Array(Schema.Struct({ path: Schema.String, expected: Schema.String }))
}) {
  override get message(): string {
    const list = this.issues.map(({ expected, path }) => path === "" ? expected : `${path}: ${expected}`)
    return `The input of ${this.unit} is not valid. ${list.join("; ")}`
  }

  /**
   * @category constructors
   * @since 0.1.0
   */
  static fromIssue(unit: string, issue: SchemaIssue.Issue): InvalidInput {
    return new InvalidInput({
      unit,
      issues: issuesOf(issue).issues.map(({ message, path }) => ({
        path: pathOf(path ?? []),
        expected: message === "Missing key" ? "Expected a value, the field is required" : message
      }))
    })
  }
}

/**
 * Something that the unit relies on failed: its store, a backend. `detail` says what, and what to do. A retry can help.
 *
 * @category errors
 * @since 0.1.0
 */
export class InternalError extends make<InternalError>()("InternalError", { code: "00008", retryable: true }, {
  detail: Schema.String,
  cause: Schema.optionalKey(Schema.Defect())
}) {
  override get message(): string {
    return this.detail
  }
}

/**
 * A backend limits the rate of requests. A retry helps after `retry_after_seconds`, where the backend says it.
 *
 * @category errors
 * @since 0.1.0
 */
export class RateLimited extends make<RateLimited>()("RateLimited", { code: "00007", retryable: true }, {
  detail: Schema.String,
  retry_after_seconds: Schema.optionalKey(Schema.Natural)
}) {
  override get message(): string {
    return this.detail
  }
}

/**
 * A backend did not answer in time. A retry can help.
 *
 * @category errors
 * @since 0.1.0
 */
export class Timeout extends make<Timeout>()("Timeout", { code: "00006", retryable: true }, { detail: Schema.String }) {
  override get message(): string {
    return this.detail
  }
}
