/**
 * The failures of the model domain, one class per code. Their messages say what happened and what to do.
 *
 * @since 0.1.0
 */
import * as Schema from "effect/Schema"
import * as UnitError from "../UnitError.ts"

/**
 * No model has this id. A retry does not help; `model.list` tells which there are.
 *
 * @category errors
 * @since 0.1.0
 */
export class ModelNotFound
  extends UnitError.make<ModelNotFound>()("ModelNotFound", { code: "00100", retryable: false }, {
    model_id: Schema.String
  })
{
  override get message(): string {
    return `There is no model ${this.model_id}. List the models to see which there are`
  }
}

/**
 * A model of this name, whatever its case, or of this path is in the register: `model_id`. A retry does not help.
 *
 * @category errors
 * @since 0.1.0
 */
export class ModelAlreadyExists
  extends UnitError.make<ModelAlreadyExists>()("ModelAlreadyExists", { code: "00101", retryable: false }, {
    model_id: Schema.String,
    conflict: Schema.Literals(["name", "path"]),
    value: Schema.String
  })
{
  override get message(): string {
    const what = `The model ${this.model_id} has the ${this.conflict} ${JSON.stringify(this.value)} already.`
    return this.conflict === "name"
      ? `${what} Choose another name, or delete it first`
      : `${what} Use it, or delete it first`
  }
}

/**
 * A pull did not finish. What it has fetched is kept, and the next pull of the same model goes on from there. Whether a retry can
 * help is said by `retryable`.
 *
 * @category errors
 * @since 0.1.0
 */
export class ModelPullFailed
  extends UnitError.make<ModelPullFailed>()("ModelPullFailed", { code: "00102", retryable: false }, {
    model_id: Schema.String,
    /**
     * The kind of failure: that of the hub, such as `RepoNotFound`, `Gated`, `Network`, `DiskFull`, `ChecksumMismatch`; or `Busy` with
     * a check or a delete, `Cancelled` or `Deleted` by a delete.
     */
    reason: Schema.String,
    detail: Schema.String,
    /** True for what can pass by itself: a network that breaks, a hub that is down. */
    retryable: Schema.Boolean
  })
{
  override get message(): string {
    return `The pull of ${this.model_id} failed. ${this.detail}`
  }
}

/**
 * The same model is being pulled. A retry helps once that pull has ended.
 *
 * @category errors
 * @since 0.1.0
 */
export class PullInProgress
  extends UnitError.make<PullInProgress>()("PullInProgress", { code: "00005", retryable: true }, {
    model_id: Schema.String
  })
{
  override get message(): string {
    return `The model ${this.model_id} is being pulled. Wait for that pull, or delete the model with force to end it`
  }
}

/**
 * A model could not be checked: it is in use, or its files or its backend could not be read. What a check finds wrong is no
 * failure, but an issue in its output.
 *
 * @category errors
 * @since 0.1.0
 */
export class ModelVerifyFailed
  extends UnitError.make<ModelVerifyFailed>()("ModelVerifyFailed", { code: "00103", retryable: true }, {
    model_id: Schema.String,
    detail: Schema.String
  })
{
  override get message(): string {
    return `The model ${this.model_id} could not be checked. ${this.detail}`
  }
}

/**
 * A path holds no model that can be imported: it is missing, unreadable, without weights, or its header is corrupt. A retry does
 * not help before the files change.
 *
 * @category errors
 * @since 0.1.0
 */
export class ModelImportFailed
  extends UnitError.make<ModelImportFailed>()("ModelImportFailed", { code: "00104", retryable: false }, {
    path: Schema.String,
    /** The kind of failure, such as `Missing`, `NoWeights`, `Malformed`, `Truncated`. */
    reason: Schema.String,
    detail: Schema.String
  })
{
  override get message(): string {
    return `${this.path} was not imported. ${this.detail}`
  }
}

/**
 * A model was not deleted: it is in use, or its files or its copy at a backend could not be removed. Its record is still there, so
 * the delete can be tried again.
 *
 * @category errors
 * @since 0.1.0
 */
export class ModelDeleteFailed
  extends UnitError.make<ModelDeleteFailed>()("ModelDeleteFailed", { code: "00105", retryable: true }, {
    model_id: Schema.String,
    detail: Schema.String,
    /** Services that use the model. */
    services: Schema.Array(Schema.String)
  })
{
  override get message(): string {
    return `The model ${this.model_id} was not deleted. ${this.detail}`
  }
}
