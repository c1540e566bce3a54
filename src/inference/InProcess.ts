/**
 * The registered models of this host as an endpoint of their own: llama.cpp runs them inside of this process, and nothing has to be
 * started for it.
 *
 * @since 0.1.0
 */
import * as Effect from "effect/Effect"
import * as Layer from "effect/Layer"
import * as Stream from "effect/Stream"
import * as LlamaCpp from "../backends/LlamaCpp.ts"
import { ModelStore, type StoredModel } from "../model/ModelStore.ts"
import type { Backend, ChatRequest, CompleteRequest } from "./Backend.ts"
import { type BackendReason, EngineFailed, ModelMissing, Refused } from "./BackendReason.ts"
import { Endpoints } from "./Endpoints.ts"
import type { FinishReason, Usage } from "./Inference.ts"
import * as Pieces from "./internal/pieces.ts"

const pageSize = 100

const failed = (error: { readonly message: string; readonly retryable: boolean }): BackendReason =>
  new EngineFailed({ detail: error.message, retryable: error.retryable })

const reasonOf = (error: LlamaCpp.LlamaCppError): BackendReason =>
  error.reason._tag === "PromptTooLong" ? new Refused({ detail: error.message }) : failed(error)

const usageOf = ({ completion_tokens, prompt_tokens }: LlamaCpp.Piece & { readonly type: "end" }): Usage => ({
  prompt_tokens,
  completion_tokens,
  total_tokens: prompt_tokens + completion_tokens
})

const pieceOf = (piece: LlamaCpp.Piece): Pieces.Piece =>
  piece.type === "text"
    ? { text: piece.text }
    : { finish_reason: piece.finish_reason, usage: usageOf(piece), last: true }

const noReason: FinishReason = ""

/** The whole answer of a stream, which ends well or fails. */
const whole = (pieces: Stream.Stream<Pieces.Piece, BackendReason>) =>
  Effect.map(
    Stream.runCollect(pieces),
    (all) => {
      const end = all.at(-1)
      return {
        text: all.map(({ text }) => text ?? "").join(""),
        finish_reason: end?.finish_reason ?? noReason,
        ...(end?.usage === undefined ? {} : { usage: end.usage })
      }
    }
  )

/** One file of language or of embeddings, that is there and not being changed. */
const canRun = ({ format, path, status, type }: StoredModel): boolean =>
  format === "gguf" && path !== undefined && path.endsWith(".gguf") && status === "ready" &&
  (type === "llm" || type === "embedding")

/**
 * Makes the backend.
 *
 * **Details**
 *
 * It serves registered models of the types `llm` and `embedding` that are one GGUF file and ready, under their ids, and loads each when it is
 * first asked for. It does chat, completion and embeddings. A message of the role `tool` is refused.
 *
 * @category constructors
 * @since 0.1.0
 */
export const make: Effect.Effect<Backend, never, LlamaCpp.LlamaCpp | ModelStore> = Effect.gen(function*() {
  const engine = yield* LlamaCpp.LlamaCpp
  const store = yield* ModelStore

  const pathOf = Effect.fnUntraced(function*(id: string): Effect.fn.Return<string, BackendReason> {
    const model = yield* Effect.mapError(store.find(id), failed)
    if (model?.path !== undefined && canRun(model)) return model.path
    return yield* new ModelMissing({
      detail: "It runs registered models that are one GGUF file and ready. Import or pull it first",
      loading: false
    })
  })

  const answer = (
    id: string,
    pieces: (path: string) => Stream.Stream<LlamaCpp.Piece, LlamaCpp.LlamaCppError>
  ): Stream.Stream<Pieces.Piece, BackendReason> =>
    Stream.unwrap(Effect.map(pathOf(id), (path) => Stream.mapError(Stream.map(pieces(path), pieceOf), reasonOf)))

  const chat = ({ messages, model, ...sampling }: ChatRequest): Stream.Stream<Pieces.Piece, BackendReason> => {
    const known: Array<LlamaCpp.Message> = []
    for (const { content, role } of messages) {
      if (role === "tool") {
        return Stream.fail(
          new Refused({ detail: "The embedded engine knows no tools. Leave messages of that role out" })
        )
      }
      known.push({ role, content })
    }
    return answer(model, (path) => engine.chat(path, known, sampling))
  }

  const complete = ({ model, prompt, ...sampling }: CompleteRequest) =>
    answer(model, (path) => engine.complete(path, prompt, sampling))

  return {
    models: Effect.gen(function*() {
      const models: Array<StoredModel> = []
      while (true) {
        const page = yield* store.list({ format: "gguf", status: "ready", limit: pageSize, offset: models.length })
        models.push(...page.items)
        if (page.items.length < pageSize) break
      }
      return models.filter(canRun).map(({ id, type }) => ({ id, type }))
    }).pipe(Effect.mapError(failed)),
    chat: (request) =>
      Effect.map(whole(chat(request)), ({ text, ...end }) => ({ content: text, model: request.model, id: "", ...end })),
    chatStream: (request) => Pieces.chunks(chat(request), request.model),
    complete: (request) => whole(complete(request)),
    completeStream: (request) => Pieces.chunks(complete(request), request.model),
    embed: Effect.fnUntraced(function*({ input, model }) {
      const path = yield* pathOf(model)
      const { embeddings, prompt_tokens } = yield* Effect.mapError(engine.embed(path, input), reasonOf)
      return { embeddings, usage: { prompt_tokens, total_tokens: prompt_tokens } }
    })
  }
})

/**
 * Layer of the one endpoint, `embedded`, which is asked where no other one serves a model.
 *
 * @category layers
 * @since 0.1.0
 */
export const layer: Layer.Layer<Endpoints, never, LlamaCpp.LlamaCpp | ModelStore> = Layer.effect(
  Endpoints,
  Effect.map(make, (backend) =>
    Endpoints.of({
      list: Effect.succeed([
        { name: "embedded", provider: "llama.cpp", address: "in process", backend, isLastResort: true }
      ])
    }))
)
