/**
 * The entities of the engine domain: what the register holds of an engine, and what its units report.
 *
 * Field names are those of the wire. Times are Unix seconds.
 *
 * @since 0.1.0
 */
import * as Schema from "effect/Schema"

/**
 * The id of an engine: `engine-` and eight hexadecimal digits.
 *
 * **Gotchas**
 *
 * The digits hold 32 random bits, so whoever makes an id has to draw again when it is taken.
 *
 * @category models
 * @since 0.1.0
 */
export const EngineId = Schema.String.check(Schema.isPattern(/^engine-[0-9a-f]{8}$/)).pipe(Schema.brand("EngineId"))

/**
 * @category models
 * @since 0.1.0
 */
export type EngineId = typeof EngineId.Type

/**
 * What an engine is: the servers that there are recipes for, and what they are for.
 *
 * @category models
 * @since 0.1.0
 */
export const EngineType = Schema.Literals([
  "ollama",
  "vllm",
  "sglang",
  "whisper",
  "tts",
  "diffusion",
  "transformers",
  "huggingface",
  "video",
  "rerank"
])

/**
 * @category models
 * @since 0.1.0
 */
export type EngineType = typeof EngineType.Type

/**
 * Where an engine is in its life.
 *
 * **Details**
 *
 * `installing` leads to `stopped` or `error`; `stopped` and `error` by `starting` to `running` or `error`; `running` by `stopping` to
 * `stopped` or `error`, and to `error` where the engine ends by itself.
 *
 * @category models
 * @since 0.1.0
 */
export const EngineStatus = Schema.Literals(["stopped", "starting", "running", "stopping", "error", "installing"])

/**
 * @category models
 * @since 0.1.0
 */
export type EngineStatus = typeof EngineStatus.Type

const FilePath = Schema.String.check(
  Schema.makeFilter((path: string) => path.startsWith("/") && !path.includes("\0") && !path.split("/").includes(".."), {
    expected: "an absolute path without `..`"
  })
)

/**
 * How an engine is started.
 *
 * **Details**
 *
 * - `model_id` is a model of the register, `model_path` the absolute path of a model's file or folder, `model` a name that the engine
 *   itself resolves, such as a repository of HuggingFace. One of them at most; some engines need one.
 * - `port` is the port of this host to listen on. Without it, the usual port of the engine where that is free, else another.
 * - `gpu` says whether GPUs are used; `device` says the same in words, and goes second.
 * - `gpu_memory_utilization` is the share of a GPU's memory, above 0 up to 1. `tensor_parallel_size` is the number of GPUs that a
 *   model is spread over, `max_model_len` a bound on its context in tokens.
 * - `served_model_name` is the name that clients use for the model.
 * - `async` lets the start return before the engine is healthy.
 *
 * @category models
 * @since 0.1.0
 */
export const EngineConfig = Schema.Struct({
  model_id: Schema.optionalKey(Schema.NonEmptyString),
  model_path: Schema.optionalKey(FilePath),
  // What begins with a dash would be read as an option.
  model: Schema.optionalKey(Schema.String.check(Schema.isPattern(/^[A-Za-z0-9][A-Za-z0-9._:/@-]*$/))),
  port: Schema.optionalKey(Schema.Int.check(Schema.isBetween({ minimum: 1, maximum: 65_535 }))),
  gpu: Schema.optionalKey(Schema.Boolean),
  device: Schema.optionalKey(Schema.Literals(["gpu", "cpu"])),
  gpu_memory_utilization: Schema.optionalKey(
    Schema.Finite.check(Schema.isGreaterThan(0), Schema.isLessThanOrEqualTo(1))
  ),
  tensor_parallel_size: Schema.optionalKey(Schema.Int.check(Schema.isGreaterThanOrEqualTo(1))),
  max_model_len: Schema.optionalKey(Schema.Int.check(Schema.isGreaterThanOrEqualTo(1))),
  served_model_name: Schema.optionalKey(Schema.String.check(Schema.isPattern(/^[A-Za-z0-9][A-Za-z0-9._:/@-]*$/))),
  async: Schema.optionalKey(Schema.Boolean)
})

/**
 * @category models
 * @since 0.1.0
 */
export type EngineConfig = typeof EngineConfig.Type

/**
 * What an engine can do. `max_concurrent` counts requests, `max_context_length` tokens, `max_batch_size` requests that are computed
 * at once.
 *
 * @category models
 * @since 0.1.0
 */
export const Features = Schema.Struct({
  supports_streaming: Schema.Boolean,
  supports_batch: Schema.Boolean,
  supports_multimodal: Schema.Boolean,
  supports_tools: Schema.Boolean,
  supports_embedding: Schema.Boolean,
  supports_gpu_layers: Schema.Boolean,
  supports_quantization: Schema.Boolean,
  max_concurrent: Schema.Natural,
  max_context_length: Schema.Natural,
  max_batch_size: Schema.Natural
})

/**
 * @category models
 * @since 0.1.0
 */
export type Features = typeof Features.Type

/**
 * An engine in the register.
 *
 * **Details**
 *
 * `path` is the absolute path of its program, or the reference of its image; empty before it is installed. `process_id` is the
 * decimal id of its process, or the id of its container; empty while it does not run. `models` are the names by which it serves
 * its models, and `capabilities` what they can do: `chat`, `completion`, `embedding`, `vision`, `tools`, `transcription`, `speech`,
 * `image`, `video`, `rerank`. `config` is that of the last start.
 *
 * @category models
 * @since 0.1.0
 */
export const Engine = Schema.Struct({
  id: EngineId,
  name: Schema.NonEmptyString,
  type: EngineType,
  status: EngineStatus,
  version: Schema.String,
  path: Schema.String,
  process_id: Schema.String,
  models: Schema.Array(Schema.String),
  capabilities: Schema.Array(Schema.String),
  config: EngineConfig,
  created_at: Schema.Natural,
  updated_at: Schema.Natural
})

/**
 * @category models
 * @since 0.1.0
 */
export type Engine = typeof Engine.Type
