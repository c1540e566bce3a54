/**
 * What an endpoint can do, whatever its protocol: the one interface between the units and everything that serves models.
 *
 * **Details**
 *
 * A backend is a record of operations, and has those that its protocol knows. One that it does not have is never called: the units
 * then say that the endpoint cannot do it. Operations get requests that were checked, with `model` as the endpoint itself calls it, and
 * fail with a `BackendReason`. They may be called at the same time, hold nothing between calls that the backend does not own up to, and
 * end what they have begun when they are interrupted: a connection is closed, a job cancelled, a generation stopped.
 *
 * A protocol is a file that makes such a record, and may put it together out of several: `{ ...text(http), ...audio(http) }`.
 *
 * **Example** (A backend that repeats what it is told)
 *
 * ```ts
 * const echo: Backend = {
 *   models: Effect.succeed([{ id: "echo", type: "llm" }]),
 *   complete: ({ prompt }) => Effect.succeed({ text: prompt, finish_reason: "stop" })
 * }
 * ```
 *
 * @since 0.1.0
 */
import type * as Effect from "effect/Effect"
import type * as Stream from "effect/Stream"
import type { ModelType } from "../model/Model.ts"
import type { BackendReason } from "./BackendReason.ts"
import type {
  Detection,
  EmbedUsage,
  FinishReason,
  Image,
  Message,
  Modality,
  Segment,
  StreamChunk,
  Usage,
  Voice
} from "./Inference.ts"

/**
 * What chat and completion have in common. `max_tokens` bounds the answer; texts in `stop` end it, and are not part of it.
 *
 * @category requests
 * @since 0.1.0
 */
export interface Sampling {
  readonly model: string
  readonly temperature?: number | undefined
  readonly max_tokens?: number | undefined
  readonly top_p?: number | undefined
  readonly stop?: ReadonlyArray<string> | undefined
}

/**
 * @category requests
 * @since 0.1.0
 */
export interface ChatRequest extends Sampling {
  readonly messages: ReadonlyArray<Message>
  readonly top_k?: number | undefined
  readonly frequency_penalty?: number | undefined
  readonly presence_penalty?: number | undefined
}

/**
 * `id` is the backend's own for the request, empty where it gives none; `usage` is absent where it does not count.
 *
 * @category answers
 * @since 0.1.0
 */
export interface ChatAnswer {
  readonly content: string
  readonly finish_reason: FinishReason
  readonly usage?: Usage
  readonly model: string
  readonly id: string
}

/**
 * A text to go on with as it is, without a chat template.
 *
 * @category requests
 * @since 0.1.0
 */
export interface CompleteRequest extends Sampling {
  readonly prompt: string
}

/**
 * @category answers
 * @since 0.1.0
 */
export interface CompleteAnswer {
  readonly text: string
  readonly finish_reason: FinishReason
  readonly usage?: Usage
}

/**
 * @category requests
 * @since 0.1.0
 */
export interface EmbedRequest {
  readonly model: string
  readonly input: ReadonlyArray<string>
}

/**
 * One vector for each input, in the same order. That there are as many, and all of one length, is checked by the unit.
 *
 * @category answers
 * @since 0.1.0
 */
export interface EmbedAnswer {
  readonly embeddings: ReadonlyArray<ReadonlyArray<number>>
  readonly usage?: EmbedUsage
}

/**
 * A recording or an image: its bytes, a file name that fits them, and their media type.
 *
 * @category requests
 * @since 0.1.0
 */
export interface Media {
  readonly bytes: Uint8Array
  readonly name: string
  readonly type: string
}

/**
 * `language` is ISO 639-1; the model finds out where it is absent.
 *
 * @category requests
 * @since 0.1.0
 */
export interface TranscribeRequest {
  readonly model: string
  readonly audio: Media
  readonly language?: string | undefined
}

/**
 * `language` is as the backend tells it, `duration` in seconds; `segments` is empty where the backend makes none.
 *
 * @category answers
 * @since 0.1.0
 */
export interface TranscribeAnswer {
  readonly text: string
  readonly language?: string | undefined
  readonly duration?: number | undefined
  readonly segments: ReadonlyArray<Segment>
}

/**
 * @category requests
 * @since 0.1.0
 */
export interface SynthesizeRequest {
  readonly model: string
  readonly text: string
  readonly voice?: string | undefined
}

/**
 * `type` is the media type of the recording.
 *
 * @category answers
 * @since 0.1.0
 */
export interface SynthesizeAnswer {
  readonly audio: Uint8Array
  readonly type: string
}

/**
 * `width` and `height` are pixels; both or neither are there.
 *
 * @category requests
 * @since 0.1.0
 */
export interface GenerateImageRequest {
  readonly model: string
  readonly prompt: string
  readonly width?: number | undefined
  readonly height?: number | undefined
  readonly steps?: number | undefined
  readonly negative_prompt?: string | undefined
  readonly seed?: number | undefined
}

/**
 * @category answers
 * @since 0.1.0
 */
export interface GenerateImageAnswer {
  readonly images: ReadonlyArray<Image>
}

/**
 * `duration` is seconds, `width` and `height` are pixels.
 *
 * @category requests
 * @since 0.1.0
 */
export interface GenerateVideoRequest {
  readonly model: string
  readonly prompt: string
  readonly duration?: number | undefined
  readonly fps?: number | undefined
  readonly width?: number | undefined
  readonly height?: number | undefined
  readonly seed?: number | undefined
}

/**
 * `type` is the media type of the video, `duration` in seconds, where the backend tells it.
 *
 * @category answers
 * @since 0.1.0
 */
export interface GenerateVideoAnswer {
  readonly video: Uint8Array
  readonly type: string
  readonly duration?: number | undefined
}

/**
 * @category requests
 * @since 0.1.0
 */
export interface RerankRequest {
  readonly model: string
  readonly query: string
  readonly documents: ReadonlyArray<string>
}

/**
 * One score for each document, in any order; `index` is its position in the request.
 *
 * @category answers
 * @since 0.1.0
 */
export interface RerankAnswer {
  readonly scores: ReadonlyArray<{ readonly index: number; readonly score: number }>
}

/**
 * @category requests
 * @since 0.1.0
 */
export interface DetectRequest {
  readonly model: string
  readonly image: Media
}

/**
 * @category answers
 * @since 0.1.0
 */
export interface DetectAnswer {
  readonly detections: ReadonlyArray<Detection>
}

/**
 * A model as its endpoint lists it. What the endpoint does not tell is absent. `max_tokens` is the length of its context.
 *
 * @category answers
 * @since 0.1.0
 */
export interface ListedModel {
  readonly id: string
  readonly type?: ModelType | undefined
  readonly description?: string | undefined
  readonly max_tokens?: number | undefined
  readonly modalities?: ReadonlyArray<Modality> | undefined
}

/**
 * An operation that gives one answer.
 *
 * @category models
 * @since 0.1.0
 */
export type Call<Request, Answer> = (request: Request) => Effect.Effect<Answer, BackendReason>

/**
 * An operation that answers bit by bit. The stream ends with its `done` chunk, or fails; it never ends without either.
 *
 * @category models
 * @since 0.1.0
 */
export type Streaming<Request> = (request: Request) => Stream.Stream<StreamChunk, BackendReason>

/**
 * What an endpoint can do.
 *
 * @category models
 * @since 0.1.0
 */
export interface Backend {
  /** The models that it serves. A model that can be loaded on demand counts. */
  readonly models: Effect.Effect<ReadonlyArray<ListedModel>, BackendReason>
  readonly chat?: Call<ChatRequest, ChatAnswer>
  readonly chatStream?: Streaming<ChatRequest>
  readonly complete?: Call<CompleteRequest, CompleteAnswer>
  readonly completeStream?: Streaming<CompleteRequest>
  readonly embed?: Call<EmbedRequest, EmbedAnswer>
  readonly transcribe?: Call<TranscribeRequest, TranscribeAnswer>
  readonly synthesize?: Call<SynthesizeRequest, SynthesizeAnswer>
  readonly generateImage?: Call<GenerateImageRequest, GenerateImageAnswer>
  readonly generateVideo?: Call<GenerateVideoRequest, GenerateVideoAnswer>
  readonly rerank?: Call<RerankRequest, RerankAnswer>
  readonly detect?: Call<DetectRequest, DetectAnswer>
  /** The voices of a model; empty where the endpoint cannot list them. */
  readonly voices?: Call<{ readonly model: string }, ReadonlyArray<Voice>>
}
