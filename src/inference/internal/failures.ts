/**
 * How what goes wrong below the units becomes their failures.
 *
 * @since 0.1.0
 */
import type { ModelStoreError } from "../../model/ModelStore.ts"
import { InternalError } from "../../UnitError.ts"
import type { BackendReason } from "../BackendReason.ts"
import type { EndpointsError } from "../Endpoints.ts"
import {
  InferenceEngineError,
  type InferenceFailure,
  InferenceInvalidParams,
  InferenceModelNotLoaded,
  InferenceRateLimited,
  InferenceTimeout
} from "../Errors.ts"

/**
 * The failure of a request for a model at an endpoint.
 *
 * @internal
 */
export const failureOf = (reason: BackendReason, model: string, endpoint: string): InferenceFailure => {
  const { detail } = reason
  switch (reason._tag) {
    case "ModelMissing":
      return new InferenceModelNotLoaded({
        model,
        detail: `The endpoint ${endpoint} does not have it. ${detail}`,
        retryable: reason.loading
      })
    case "Refused":
      return new InferenceInvalidParams({ model, endpoint, detail })
    case "Unreachable":
      return new InferenceEngineError({ model, endpoint, detail, retryable: true })
    case "EngineFailed": {
      const { retryable, status } = reason
      return new InferenceEngineError({
        model,
        endpoint,
        detail,
        retryable,
        ...(status === undefined ? {} : { status })
      })
    }
    case "TimedOut":
      return new InferenceTimeout({ model, endpoint, detail })
    case "Busy": {
      const seconds = reason.retry_after_seconds
      return new InferenceRateLimited({
        model,
        endpoint,
        detail,
        ...(seconds === undefined ? {} : { retry_after_seconds: seconds })
      })
    }
  }
}

/**
 * The failure of a unit whose services below failed.
 *
 * @internal
 */
export const internal = (error: ModelStoreError | EndpointsError): InternalError =>
  new InternalError({ detail: error.message, cause: error })
