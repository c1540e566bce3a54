/**
 * What the model domain tells of itself, besides the lifecycle of its units.
 *
 * @since 0.1.0
 */
import * as Schema from "effect/Schema"
import * as DomainEvent from "../DomainEvent.ts"
import { ModelFormat, ModelId, ModelSource, ModelType, PullProgress, Verification } from "./Model.ts"

/**
 * `model.created`: a model has come into the register.
 *
 * @category events
 * @since 0.1.0
 */
export const ModelCreated = DomainEvent.define("model.created", {
  model_id: ModelId,
  name: Schema.String,
  type: ModelType,
  format: ModelFormat,
  source: ModelSource,
  created_at: Schema.Natural
})

/**
 * `model.deleted`: a model has left the register.
 *
 * @category events
 * @since 0.1.0
 */
export const ModelDeleted = DomainEvent.define("model.deleted", { model_id: ModelId, name: Schema.String })

/**
 * `model.pull_progress`: at the start of a pull, at its end, after each file, and in between at most twice a second.
 *
 * @category events
 * @since 0.1.0
 */
export const ModelPullProgress = DomainEvent.define("model.pull_progress", PullProgress.fields)

/**
 * `model.verified`: a check has ended, with what it found.
 *
 * @category events
 * @since 0.1.0
 */
export const ModelVerified = DomainEvent.define("model.verified", { model_id: ModelId, ...Verification.fields })
