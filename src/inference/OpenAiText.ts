/**
 * Text by the OpenAI protocol (https://platform.openai.com/docs/api-reference), as OpenAI, vLLM, SGLang, llama.cpp, LocalAI and many
 * others speak it.
 *
 * @since 0.1.0
 */
import * as Effect from "effect/Effect"
import * as Option from "effect/Option"
import * as Result from "effect/Result"
import * as Schema from "effect/Schema"
import * as Stream from "effect/Stream"
import type { Backend, ChatRequest, CompleteRequest } from "./Backend.ts"
import { type BackendReason, EngineFailed } from "./BackendReason.ts"
import type { EndpointHttp } from "./EndpointHttp.ts"
import type { EmbedUsage, FinishReason, Usage } from "./Inference.ts"
import { maybe } from "./internal/forms.ts"
import * as Pieces from "./internal/pieces.ts"
import * as Wire from "./internal/wire.ts"

const WireUsage = maybe(Schema.Struct({
  prompt_tokens: maybe(Schema.Natural),
  completion_tokens: maybe(Schema.Natural),
  total_tokens: maybe(Schema.Natural)
}))

const Completion = Schema.Struct({
  id: maybe(Schema.String),
  model: maybe(Schema.String),
  choices: Schema.Array(Schema.Struct({
    message: Schema.optional(Schema.Struct({ content: maybe(Schema.String) })),
    text: maybe(Schema.String),
    finish_reason: maybe(Schema.String)
  })),
  usage: WireUsage
})

const Delta = Schema.Struct({
  id: maybe(Schema.String),
  model: maybe(Schema.String),
  choices: maybe(Schema.Array(Schema.Struct({
    delta: maybe(Schema.Struct({ content: maybe(Schema.String) })),
    text: maybe(Schema.String),
    finish_reason: maybe(Schema.String)
  }))),
  usage: WireUsage,
  error: Schema.optional(Schema.Unknown)
})

const Vectors = Schema.Struct({
  data: Schema.Array(Schema.Struct({ index: Schema.Natural, embedding: Schema.Array(Schema.Finite) })),
  usage: WireUsage
})

const Models = Schema.Struct({
  data: Schema.Array(Schema.Struct({
    id: Schema.NonEmptyString,
    max_model_len: maybe(Schema.Natural),
    meta: maybe(Schema.Struct({ n_ctx_train: maybe(Schema.Natural) }))
  }))
})

const finishReasonOf = (reason: string | null | undefined): FinishReason => {
  switch (reason) {
    case "stop":
    case "length":
    case "content_filter":
    case "tool_calls":
      return reason
    // What came before tools.
    case "function_call":
      return "tool_calls"
    default:
      return ""
  }
}

const usageOf = (usage: (typeof Completion.Type)["usage"]): { readonly usage?: Usage } => {
  if (usage === undefined || usage === null) return {}
  const { completion_tokens, prompt_tokens, total_tokens } = usage
  if (typeof prompt_tokens !== "number") return {}
  const completion = completion_tokens ?? Math.max(0, (total_tokens ?? prompt_tokens) - prompt_tokens)
  return {
    usage: {
      prompt_tokens,
      completion_tokens: completion,
      total_tokens: total_tokens ?? prompt_tokens + completion
    }
  }
}

const embedUsageOf = (usage: (typeof Vectors.Type)["usage"]): { readonly usage?: EmbedUsage } => {
  if (typeof usage?.prompt_tokens !== "number") return {}
  const { prompt_tokens, total_tokens } = usage
  return { usage: { prompt_tokens, total_tokens: total_tokens ?? prompt_tokens } }
}

const chatBody = (request: ChatRequest) => ({
  model: request.model,
  messages: request.messages,
  temperature: request.temperature,
  max_tokens: request.max_tokens,
  top_p: request.top_p,
  // Not of OpenAI, but of the servers that run on one's own hosts.
  top_k: request.top_k,
  frequency_penalty: request.frequency_penalty,
  presence_penalty: request.presence_penalty,
  stop: request.stop
})

const completeBody = (request: CompleteRequest) => ({
  model: request.model,
  prompt: request.prompt,
  temperature: request.temperature,
  max_tokens: request.max_tokens,
  top_p: request.top_p,
  stop: request.stop
})

const streamed = { stream: true, stream_options: { include_usage: true } } as const

const noChoice = new EngineFailed({ detail: "Its answer has no choices", retryable: false })

const decodeDelta = Wire.decoder(Delta)

/**
 * Chat, completion, embeddings and the list of models.
 *
 * **Details**
 *
 * Streams ask for the usage, which comes in a chunk of its own before `[DONE]`. One that ends with neither `[DONE]` nor a reason to
 * finish has broken off, and fails. `top_k` is an extra field that vLLM and others know; OpenAI itself refuses it.
 *
 * @category constructors
 * @since 0.1.0
 */
export const make = (http: EndpointHttp) => {
  const first = Effect.fnUntraced(function*(path: string, body: { readonly model: string }) {
    const completion = yield* http.json(http.post(path, body), Completion, body.model)
    const [choice] = completion.choices
    if (choice === undefined) return yield* noChoice
    return { completion, choice }
  })

  const pieceOf = (data: string, model: string): Pieces.Piece => {
    if (data === "[DONE]") return { last: true }
    const decoded = decodeDelta(data)
    if (Result.isFailure(decoded)) {
      return {
        failure: new EngineFailed({
          detail: `Its answer cannot be read: ${http.clean(decoded.failure.message)}`,
          retryable: false
        })
      }
    }
    const { choices, error, id, model: served, usage } = decoded.success
    if (error !== undefined && error !== null) return { failure: http.reason({ error }, model) }
    const choice = choices?.[0]
    const finish = choice?.finish_reason
    return {
      text: choice?.delta?.content ?? choice?.text ?? undefined,
      finish_reason: typeof finish === "string" ? finishReasonOf(finish) : undefined,
      ...usageOf(usage),
      model: served ?? undefined,
      id: id ?? undefined
    }
  }

  const stream = (path: string, body: { readonly model: string }) => {
    const { model } = body
    const request = http.post(path, { ...body, ...streamed })
    return Pieces.chunks(
      Stream.map(Pieces.eventData(http.stream(request, model)), (data) => pieceOf(data, model)),
      model
    )
  }

  return {
    chat: Effect.fnUntraced(function*(request) {
      const { choice, completion } = yield* first("/chat/completions", chatBody(request))
      return {
        content: choice.message?.content ?? "",
        finish_reason: finishReasonOf(choice.finish_reason),
        ...usageOf(completion.usage),
        model: completion.model ?? request.model,
        id: completion.id ?? ""
      }
    }),
    chatStream: (request) => stream("/chat/completions", chatBody(request)),
    complete: Effect.fnUntraced(function*(request) {
      const { choice, completion } = yield* first("/completions", completeBody(request))
      return {
        text: choice.text ?? "",
        finish_reason: finishReasonOf(choice.finish_reason),
        ...usageOf(completion.usage)
      }
    }),
    completeStream: (request) => stream("/completions", completeBody(request)),
    embed: Effect.fnUntraced(function*({ input, model }): Effect.fn.Return<
      { readonly embeddings: ReadonlyArray<ReadonlyArray<number>>; readonly usage?: EmbedUsage },
      BackendReason
    > {
      const body = { model, input, encoding_format: "float" }
      const { data, usage } = yield* http.json(http.post("/embeddings", body), Vectors, model)
      const byIndex = new Map(data.map(({ embedding, index }) => [index, embedding]))
      const embeddings = input.flatMap((_, index) => Option.toArray(Option.fromNullishOr(byIndex.get(index))))
      return { embeddings, ...embedUsageOf(usage) }
    }),
    models: Effect.map(
      http.list("/models", Models),
      ({ data }) =>
        data.map(({ id, max_model_len, meta }) => ({ id, max_tokens: max_model_len ?? meta?.n_ctx_train ?? undefined }))
    )
  } satisfies Backend
}
