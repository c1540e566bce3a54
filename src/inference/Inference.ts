/**
 * The entities of the inference domain: what models are asked, and what they answer.
 *
 * Field names are those of the wire. Times are seconds.
 *
 * @since 0.1.0
 */
import * as Schema from "effect/Schema"
import { ModelType } from "../model/Model.ts"

/**
 * One turn of a conversation.
 *
 * @category models
 * @since 0.1.0
 */
export const Message = Schema.Struct({
  role: Schema.Literals(["system", "user", "assistant", "tool"]),
  content: Schema.String
})

/**
 * @category models
 * @since 0.1.0
 */
export type Message = typeof Message.Type

/**
 * Why a model stopped: it was done or met a stop text, reached the limit of tokens, was filtered, or wants to call tools. Empty where
 * the backend does not say, or says something else.
 *
 * @category models
 * @since 0.1.0
 */
export const FinishReason = Schema.Literals(["stop", "length", "content_filter", "tool_calls", ""])

/**
 * @category models
 * @since 0.1.0
 */
export type FinishReason = typeof FinishReason.Type

/**
 * Tokens that a request took, as the backend counted them.
 *
 * @category models
 * @since 0.1.0
 */
export const Usage = Schema.Struct({
  prompt_tokens: Schema.Natural,
  completion_tokens: Schema.Natural,
  total_tokens: Schema.Natural
})

/**
 * @category models
 * @since 0.1.0
 */
export type Usage = typeof Usage.Type

/**
 * Tokens that an embedding took, as the backend counted them.
 *
 * @category models
 * @since 0.1.0
 */
export const EmbedUsage = Schema.Struct({ prompt_tokens: Schema.Natural, total_tokens: Schema.Natural })

/**
 * @category models
 * @since 0.1.0
 */
export type EmbedUsage = typeof EmbedUsage.Type

/**
 * A piece of a streamed answer.
 *
 * **Details**
 *
 * Each `content` holds in `data` what comes next of the text. The last chunk is `done`, with empty `data`, the reason in `metadata`, and
 * `usage` where the backend counts. A stream without it has not ended well: what goes wrong is no chunk, but the failure of the stream.
 * `model` is the model's id at its backend, and `id` the backend's own for the request, empty where it gives none.
 *
 * @category models
 * @since 0.1.0
 */
export const StreamChunk = Schema.Struct({
  type: Schema.Literals(["content", "done"]),
  data: Schema.String,
  metadata: Schema.Struct({ finish_reason: FinishReason, model: Schema.String, id: Schema.String }),
  usage: Schema.optionalKey(Usage)
})

/**
 * @category models
 * @since 0.1.0
 */
export type StreamChunk = typeof StreamChunk.Type

/**
 * A stretch of a recording: from `start` to `end`, and what is said there.
 *
 * @category models
 * @since 0.1.0
 */
export const Segment = Schema.Struct({
  id: Schema.Int,
  start: Schema.Finite,
  end: Schema.Finite,
  text: Schema.String
})

/**
 * @category models
 * @since 0.1.0
 */
export type Segment = typeof Segment.Type

/**
 * An image: its bytes in Base64, an address where it is, or both.
 *
 * @category models
 * @since 0.1.0
 */
export const Image = Schema.Struct({
  base64: Schema.optionalKey(Schema.String),
  url: Schema.optionalKey(Schema.String)
})

/**
 * @category models
 * @since 0.1.0
 */
export type Image = typeof Image.Type

/**
 * A document by its relevance. `index` is its position in the request; the scale of `score` is the model's own.
 *
 * @category models
 * @since 0.1.0
 */
export const RerankResult = Schema.Struct({
  document: Schema.String,
  score: Schema.Finite,
  index: Schema.Natural
})

/**
 * @category models
 * @since 0.1.0
 */
export type RerankResult = typeof RerankResult.Type

/**
 * An object in an image. `bbox` is x, y, width and height in pixels, from the top left.
 *
 * @category models
 * @since 0.1.0
 */
export const Detection = Schema.Struct({
  label: Schema.String,
  confidence: Schema.Finite.check(Schema.isBetween({ minimum: 0, maximum: 1 })),
  bbox: Schema.Tuple([Schema.Finite, Schema.Finite, Schema.Finite, Schema.Finite])
})

/**
 * @category models
 * @since 0.1.0
 */
export type Detection = typeof Detection.Type

/**
 * A voice that a model can speak with. What its backend does not tell is empty; `language` is ISO 639-1, or what the backend calls it.
 *
 * @category models
 * @since 0.1.0
 */
export const Voice = Schema.Struct({
  id: Schema.NonEmptyString,
  name: Schema.String,
  language: Schema.String,
  gender: Schema.String,
  description: Schema.String
})

/**
 * @category models
 * @since 0.1.0
 */
export type Voice = typeof Voice.Type

/**
 * What goes into a model, and what comes out of it.
 *
 * @category models
 * @since 0.1.0
 */
export const Modality = Schema.Literals(["text", "image", "audio", "video"])

/**
 * @category models
 * @since 0.1.0
 */
export type Modality = typeof Modality.Type

/**
 * A model that is being served.
 *
 * **Details**
 *
 * `id` is its name at the endpoint, `provider` the kind of endpoint. `type` and `name` are those of the register where it knows the
 * model; else `type` is what the endpoint tells, or a guess by the name. `max_tokens` is the length of its context, where the endpoint
 * tells.
 *
 * @category models
 * @since 0.1.0
 */
export const InferenceModel = Schema.Struct({
  id: Schema.NonEmptyString,
  name: Schema.String,
  type: ModelType,
  provider: Schema.String,
  description: Schema.String,
  max_tokens: Schema.optionalKey(Schema.Natural),
  modalities: Schema.Array(Modality)
})

/**
 * @category models
 * @since 0.1.0
 */
export type InferenceModel = typeof InferenceModel.Type
