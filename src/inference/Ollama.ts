/**
 * Ollama's own protocol (https://github.com/ollama/ollama/blob/main/docs/api.md).
 *
 * @since 0.1.0
 */
import * as Effect from "effect/Effect"
import * as Ndjson from "effect/encoding/Ndjson"
import type * as HttpClient from "effect/http/HttpClient"
import * as Schema from "effect/Schema"
import * as Stream from "effect/Stream"
import type { ModelType } from "../model/Model.ts"
import type { Backend, ChatRequest, CompleteRequest, Sampling } from "./Backend.ts"
import { EngineFailed } from "./BackendReason.ts"
import * as EndpointHttp from "./EndpointHttp.ts"
import type { FinishReason, Usage } from "./Inference.ts"
import * as Pieces from "./internal/pieces.ts"
import * as OpenAiAudio from "./OpenAiAudio.ts"
import * as OpenAiImages from "./OpenAiImages.ts"

const Line = Schema.Struct({
  model: Schema.optional(Schema.String),
  message: Schema.optional(Schema.Struct({ content: Schema.optional(Schema.String) })),
  response: Schema.optional(Schema.String),
  done: Schema.optional(Schema.Boolean),
  done_reason: Schema.optional(Schema.String),
  prompt_eval_count: Schema.optional(Schema.Natural),
  eval_count: Schema.optional(Schema.Natural),
  error: Schema.optional(Schema.Unknown)
})
type Line = typeof Line.Type

const Vectors = Schema.Struct({
  embeddings: Schema.Array(Schema.Array(Schema.Finite)),
  prompt_eval_count: Schema.optional(Schema.Natural)
})

const Tags = Schema.Struct({
  models: Schema.NullOr(Schema.Array(Schema.Struct({
    name: Schema.NonEmptyString,
    details: Schema.optional(Schema.NullOr(Schema.Struct({
      family: Schema.optional(Schema.NullOr(Schema.String)),
      families: Schema.optional(Schema.NullOr(Schema.Array(Schema.String))),
      parameter_size: Schema.optional(Schema.NullOr(Schema.String)),
      quantization_level: Schema.optional(Schema.NullOr(Schema.String))
    })))
  })))
})

const maxLineBytes = 10 * 1024 * 1024

const finishReasonOf = (reason: string | undefined): FinishReason =>
  reason === "stop" || reason === "length" ? reason : ""

const usageOf = ({ eval_count, prompt_eval_count }: Line): { readonly usage?: Usage } => {
  // A prompt that is in the cache as a whole is not counted.
  if (eval_count === undefined) return {}
  const prompt = prompt_eval_count ?? 0
  return {
    usage: { prompt_tokens: prompt, completion_tokens: eval_count, total_tokens: prompt + eval_count }
  }
}

const typeOf = (families: ReadonlyArray<string>): ModelType | undefined => {
  if (families.some((family) => /^(?:clip|mllama)$/i.test(family))) return "vlm"
  return families.some((family) => /bert/i.test(family)) ? "embedding" : undefined
}

const options = (request: Sampling & Partial<ChatRequest>) => ({
  temperature: request.temperature,
  num_predict: request.max_tokens,
  top_p: request.top_p,
  top_k: request.top_k,
  frequency_penalty: request.frequency_penalty,
  presence_penalty: request.presence_penalty,
  stop: request.stop
})

const chatBody = (request: ChatRequest) => ({
  model: request.model,
  messages: request.messages,
  options: options(request)
})

const completeBody = (request: CompleteRequest) => ({
  model: request.model,
  prompt: request.prompt,
  // The prompt as it is, without the chat template of the model.
  raw: true,
  options: options(request)
})

/**
 * Builds the client of an Ollama server at `baseUrl`.
 *
 * **Details**
 *
 * Chat, completion and embeddings, which Ollama does in one batch. It gives no id to a request, so `id` is empty. A stream that ends
 * without `done` has broken off, and fails; so does one in which Ollama tells an error. Speech, transcription and images are those of the
 * OpenAI protocol, which newer versions also speak; older ones answer that they have no such operation.
 *
 * @category constructors
 * @since 0.1.0
 */
export const make = Effect.fnUntraced(function*(
  endpoint: EndpointHttp.Options
): Effect.fn.Return<Backend, never, HttpClient.HttpClient> {
  const http = yield* EndpointHttp.make(endpoint)
  const openAi = yield* EndpointHttp.make({ ...endpoint, baseUrl: `${endpoint.baseUrl.replace(/\/+$/, "")}/v1` })

  const unreadable = (message: string) =>
    new EngineFailed({ detail: `Its answer cannot be read: ${http.clean(message)}`, retryable: false })

  /** An answer that is not streamed is one line. It may tell an error in spite of its status. */
  const whole = Effect.fnUntraced(function*(path: string, body: { readonly model: string }) {
    const line = yield* http.json(http.post(path, { ...body, stream: false }), Line, body.model)
    if (line.error !== undefined) return yield* http.reason(line, body.model)
    if (line.done !== true) return yield* unreadable("it is not done")
    return line
  })

  const pieceOf = (line: Line, model: string): Pieces.Piece => {
    if (line.error !== undefined) return { failure: http.reason(line, model) }
    const text = line.message?.content ?? line.response
    return line.done === true
      ? { text, finish_reason: finishReasonOf(line.done_reason), ...usageOf(line), model: line.model, last: true }
      : { text, model: line.model }
  }

  const stream = (path: string, body: { readonly model: string }) => {
    const { model } = body
    const lines = http.stream(http.post(path, { ...body, stream: true }), model).pipe(
      Stream.pipeThroughChannel(
        Ndjson.decodeSchema(Line)({ ignoreEmptyLines: true, maxLineBytes })
      ),
      Stream.catchTags({
        NdjsonError: (error) =>
          Stream.fail(
            // A line without its end is what a cut connection leaves.
            error.unterminated
              ? new EngineFailed({ detail: "Its answer broke off in the middle of a line. Try again", retryable: true })
              : unreadable(String(error.cause))
          ),
        SchemaError: (error) => Stream.fail(unreadable(error.message))
      })
    )
    return Pieces.chunks(Stream.map(lines, (line) => pieceOf(line, model)), model)
  }

  return {
    // Newer versions have these by the other protocol alone; older ones say that there is no such path.
    ...OpenAiAudio.make(openAi),
    ...OpenAiImages.make(openAi),
    models: Effect.map(http.list("/api/tags", Tags), ({ models }) =>
      (models ?? []).map(({ details, name }) => ({
        id: name,
        type: typeOf(details?.families ?? (typeof details?.family === "string" ? [details.family] : [])),
        description: [details?.family, details?.parameter_size, details?.quantization_level]
          .filter((part) => typeof part === "string" && part !== "").join(" ")
      }))),
    chat: Effect.fnUntraced(function*(request) {
      const line = yield* whole("/api/chat", chatBody(request))
      return {
        content: line.message?.content ?? "",
        finish_reason: finishReasonOf(line.done_reason),
        ...usageOf(line),
        model: line.model ?? request.model,
        id: ""
      }
    }),
    chatStream: (request) => stream("/api/chat", chatBody(request)),
    complete: Effect.fnUntraced(function*(request) {
      const line = yield* whole("/api/generate", completeBody(request))
      return { text: line.response ?? "", finish_reason: finishReasonOf(line.done_reason), ...usageOf(line) }
    }),
    completeStream: (request) => stream("/api/generate", completeBody(request)),
    embed: Effect.fnUntraced(function*(request) {
      const { embeddings, prompt_eval_count: tokens } = yield* http.json(
        // What is too long is told, instead of being cut off without a word.
        http.post("/api/embed", { model: request.model, input: request.input, truncate: false }),
        Vectors,
        request.model
      )
      return {
        embeddings,
        ...(tokens === undefined ? {} : { usage: { prompt_tokens: tokens, total_tokens: tokens } })
      }
    })
  }
})
