/**
 * The failures of the inference domain, one class per code. Their messages say what happened and what to do.
 *
 * None of them holds an address beyond its host, a header or a key.
 *
 * @since 0.1.0
 */
import * as Schema from "effect/Schema"
import * as UnitError from "../UnitError.ts"

/**
 * No endpoint that is live serves the model. `retryable` says whether it may come by itself, as a model does that is being loaded.
 *
 * @category errors
 * @since 0.1.0
 */
export class InferenceModelNotLoaded
  extends UnitError.make<InferenceModelNotLoaded>()("InferenceModelNotLoaded", { code: "00300", retryable: false }, {
    model: Schema.String,
    detail: Schema.String,
    retryable: Schema.Boolean
  })
{
  override get message(): string {
    return `The model ${JSON.stringify(this.model)} is not served. ${this.detail}`
  }
}

/**
 * The endpoint refuses the parameters, or the model or its endpoint cannot do what is asked. A retry does not help.
 *
 * @category errors
 * @since 0.1.0
 */
export class InferenceInvalidParams
  extends UnitError.make<InferenceInvalidParams>()("InferenceInvalidParams", { code: "00301", retryable: false }, {
    model: Schema.String,
    /** The name of the endpoint; absent where none was asked. */
    endpoint: Schema.optionalKey(Schema.String),
    detail: Schema.String
  })
{
  override get message(): string {
    const who = this.endpoint === undefined ? "" : ` at ${this.endpoint}`
    return `The request cannot be done with the model ${JSON.stringify(this.model)}${who}. ${this.detail}`
  }
}

/**
 * The endpoint failed, could not be reached, or gave an answer that cannot be read. `retryable` says whether a retry can help.
 *
 * @category errors
 * @since 0.1.0
 */
export class InferenceEngineError
  extends UnitError.make<InferenceEngineError>()("InferenceEngineError", { code: "00302", retryable: false }, {
    model: Schema.String,
    endpoint: Schema.String,
    detail: Schema.String,
    /** The HTTP status, where there was one. */
    status: Schema.optionalKey(Schema.Int),
    retryable: Schema.Boolean
  })
{
  override get message(): string {
    return `The endpoint ${this.endpoint} failed for the model ${JSON.stringify(this.model)}. ${this.detail}`
  }
}

/**
 * The endpoint did not answer in time, or fell silent in the middle of its answer. A retry can help; the request may have been worked on.
 *
 * @category errors
 * @since 0.1.0
 */
export class InferenceTimeout
  extends UnitError.make<InferenceTimeout>()("InferenceTimeout", { code: "00303", retryable: true }, {
    model: Schema.String,
    endpoint: Schema.String,
    detail: Schema.String
  })
{
  override get message(): string {
    return `The endpoint ${this.endpoint} took too long for the model ${JSON.stringify(this.model)}. ${this.detail}`
  }
}

/**
 * The endpoint is busy, or limits the rate of requests. A retry helps after `retry_after_seconds`, where the endpoint says it.
 *
 * @category errors
 * @since 0.1.0
 */
export class InferenceRateLimited
  extends UnitError.make<InferenceRateLimited>()("InferenceRateLimited", { code: "00304", retryable: true }, {
    model: Schema.String,
    endpoint: Schema.String,
    detail: Schema.String,
    retry_after_seconds: Schema.optionalKey(Schema.Natural)
  })
{
  override get message(): string {
    const wait = this.retry_after_seconds === undefined ? "later" : `in ${this.retry_after_seconds} s`
    return `The endpoint ${this.endpoint} is busy. ${this.detail} Try again ${wait}`
  }
}

/**
 * Every way in which a request to a model can fail.
 *
 * @category errors
 * @since 0.1.0
 */
export const inferenceFailures = [
  InferenceModelNotLoaded,
  InferenceInvalidParams,
  InferenceEngineError,
  InferenceTimeout,
  InferenceRateLimited
] as const

/**
 * @category errors
 * @since 0.1.0
 */
export type InferenceFailure = (typeof inferenceFailures)[number]["Type"]
