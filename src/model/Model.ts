/**
 * The entities of the model domain: what the register holds of a model, what hubs answer, and what its units report.
 *
 * Field names are those of the wire. Sizes are bytes, times are Unix seconds.
 *
 * @since 0.1.0
 */
import * as Schema from "effect/Schema"

/**
 * The id of a model: `model-` and eight hexadecimal digits.
 *
 * **Gotchas**
 *
 * The digits hold 32 random bits, so whoever makes an id has to draw again when it is taken.
 *
 * @category models
 * @since 0.1.0
 */
export const ModelId = Schema.String.check(Schema.isPattern(/^model-[0-9a-f]{8}$/)).pipe(Schema.brand("ModelId"))

/**
 * @category models
 * @since 0.1.0
 */
export type ModelId = typeof ModelId.Type

/**
 * What a model does.
 *
 * @category models
 * @since 0.1.0
 */
export const ModelType = Schema.Literals([
  "llm",
  "vlm",
  "asr",
  "tts",
  "embedding",
  "diffusion",
  "video_gen",
  "detection",
  "rerank"
])

/**
 * @category models
 * @since 0.1.0
 */
export type ModelType = typeof ModelType.Type

/**
 * The format of a model's weight files.
 *
 * @category models
 * @since 0.1.0
 */
export const ModelFormat = Schema.Literals(["gguf", "safetensors", "onnx", "tensorrt", "pytorch"])

/**
 * @category models
 * @since 0.1.0
 */
export type ModelFormat = typeof ModelFormat.Type

/**
 * Where a model is in its life: `pending` (registered, nothing checked), `pulling`, `ready`, `error` (a pull or a check
 * failed), `verifying`.
 *
 * @category models
 * @since 0.1.0
 */
export const ModelStatus = Schema.Literals(["pending", "pulling", "ready", "error", "verifying"])

/**
 * @category models
 * @since 0.1.0
 */
export type ModelStatus = typeof ModelStatus.Type

/**
 * Where a model came from: one of the hubs, or this host's own disk.
 *
 * @category models
 * @since 0.1.0
 */
export const ModelSource = Schema.Literals(["ollama", "huggingface", "modelscope", "local"])

/**
 * @category models
 * @since 0.1.0
 */
export type ModelSource = typeof ModelSource.Type

/**
 * A SHA-256 digest as 64 lowercase hexadecimal digits.
 *
 * @category models
 * @since 0.1.0
 */
export const Sha256 = Schema.String.check(Schema.isPattern(/^[0-9a-f]{64}$/))

/**
 * A checksum with its scheme: `sha256:` and 64 lowercase hexadecimal digits, or `size:` and a number of bytes.
 *
 * @category models
 * @since 0.1.0
 */
export const Checksum = Schema.String.check(Schema.isPattern(/^(?:sha256:[0-9a-f]{64}|size:(?:0|[1-9][0-9]{0,15}))$/))

/**
 * A path inside a model, with `/` between its segments on every platform: neither absolute, nor leading out by `..`.
 *
 * @category models
 * @since 0.1.0
 */
export const RelativePath = Schema.String.check(
  Schema.isPattern(/^(?!\.{0,2}(?:\/|$))(?!.*\/\.{0,2}(?:\/|$))[^\0]+$/s)
)

/**
 * One file of a model. `path` is relative to the model's root: the folder that the model is, or that holds its file.
 *
 * @category models
 * @since 0.1.0
 */
export const ManifestFile = Schema.Struct({
  path: RelativePath,
  size: Schema.Natural,
  sha256: Schema.optional(Sha256)
})

/**
 * @category models
 * @since 0.1.0
 */
export type ManifestFile = typeof ManifestFile.Type

/**
 * What a model needs to run. All sizes are bytes; `gpu_type` names a class of GPU, and is empty for CPU only.
 *
 * @category models
 * @since 0.1.0
 */
export const Requirements = Schema.Struct({
  memory_min: Schema.Natural,
  memory_recommended: Schema.Natural,
  gpu_memory: Schema.Natural,
  gpu_type: Schema.String
})

/**
 * @category models
 * @since 0.1.0
 */
export type Requirements = typeof Requirements.Type

/**
 * A model in the register.
 *
 * **Details**
 *
 * `path` is the absolute path of its file or folder, absent before a pull and for models that only Ollama holds. `size`
 * is the sum over all files. `files` is the manifest that `model.verify` checks against; it is empty for a model that was
 * registered without looking at its files.
 *
 * @category models
 * @since 0.1.0
 */
export const Model = Schema.Struct({
  id: ModelId,
  name: Schema.NonEmptyString,
  type: ModelType,
  format: ModelFormat,
  status: ModelStatus,
  source: ModelSource,
  path: Schema.optional(Schema.NonEmptyString),
  size: Schema.Natural,
  checksum: Schema.optional(Checksum),
  requirements: Schema.optional(Requirements),
  tags: Schema.Array(Schema.String),
  files: Schema.Array(ManifestFile),
  created_at: Schema.Natural,
  updated_at: Schema.Natural
})

/**
 * @category models
 * @since 0.1.0
 */
export type Model = typeof Model.Type

/**
 * One hit of a search over the hubs. `id` is the repository's name there, not a `ModelId`.
 *
 * @category models
 * @since 0.1.0
 */
export const SearchResult = Schema.Struct({
  id: Schema.NonEmptyString,
  name: Schema.String,
  type: ModelType,
  source: ModelSource,
  description: Schema.String,
  downloads: Schema.Natural,
  tags: Schema.Array(Schema.String)
})

/**
 * @category models
 * @since 0.1.0
 */
export type SearchResult = typeof SearchResult.Type

/**
 * How far a pull is.
 *
 * **Details**
 *
 * `status` is text for people. `progress` is a percentage, 0 to 100; it is 0 as long as the total is unknown, which
 * `bytes_total` 0 stands for. `speed` is bytes per second. `error` is set on the last report of a pull that failed.
 *
 * @category models
 * @since 0.1.0
 */
export const PullProgress = Schema.Struct({
  model_id: ModelId,
  status: Schema.String,
  progress: Schema.Finite.check(Schema.isBetween({ minimum: 0, maximum: 100 })),
  bytes_total: Schema.Natural,
  bytes_done: Schema.Natural,
  speed: Schema.Finite.check(Schema.isGreaterThanOrEqualTo(0)),
  error: Schema.optional(Schema.String)
})

/**
 * @category models
 * @since 0.1.0
 */
export type PullProgress = typeof PullProgress.Type

/**
 * The outcome of checking a model's files. `issues` has one line for each finding, and is empty when `valid`.
 *
 * @category models
 * @since 0.1.0
 */
export const Verification = Schema.Struct({
  valid: Schema.Boolean,
  issues: Schema.Array(Schema.String)
})

/**
 * @category models
 * @since 0.1.0
 */
export type Verification = typeof Verification.Type
