/**
 * The commands of the inference domain. They change nothing here, but each is work for an endpoint.
 *
 * @since 0.1.0
 */
import * as Effect from "effect/Effect"
import * as Schema from "effect/Schema"
import * as Unit from "../Unit.ts"
import { InternalError } from "../UnitError.ts"
import type { EmbedAnswer } from "./Backend.ts"
import { EngineFailed } from "./BackendReason.ts"
import { inferenceFailures } from "./Errors.ts"
import { EmbedUsage } from "./Inference.ts"
import {
  ChatAnswer,
  ChatInput,
  chatRequest,
  CompleteAnswer,
  CompleteInput,
  completeRequest
} from "./internal/shapes.ts"
import { Router } from "./Router.ts"

/**
 * `inference.chat`: the next turn of a conversation, whole. To have it bit by bit, use `chatStream`; `stream` changes nothing here.
 *
 * **Details**
 *
 * Every option goes to the endpoint as it is. `usage` is absent where the endpoint does not count, `id` empty where it gives none.
 *
 * @category commands
 * @since 0.1.0
 */
export const chat = Unit.command("inference.chat", {
  description: "Gives the next turn of a conversation",
  input: ChatInput,
  output: ChatAnswer,
  errors: [...inferenceFailures, InternalError],
  examples: [{ model: "qwen3", messages: [{ role: "user", content: "Say hello" }] }],
  handler: (input) =>
    Router.use((router) =>
      router.call(input.model, "chat", (backend, model) => backend.chat?.(chatRequest(input, model)))
    )
})

/**
 * `inference.complete`: how a text goes on, whole, without a chat template. To have it bit by bit, use `completeStream`; `stream` changes
 * nothing here.
 *
 * @category commands
 * @since 0.1.0
 */
export const complete = Unit.command("inference.complete", {
  description: "Tells how a text goes on",
  input: CompleteInput,
  output: CompleteAnswer,
  errors: [...inferenceFailures, InternalError],
  examples: [{ model: "qwen3", prompt: "Once upon a time", max_tokens: 20 }],
  handler: (input) =>
    Router.use((router) =>
      router.call(input.model, "completion", (backend, model) => backend.complete?.(completeRequest(input, model)))
    )
})

/**
 * `inference.embed`: a vector for each text, in the order of the texts, by one request. All vectors have the same length. `usage` is absent
 * where the endpoint does not count.
 *
 * @category commands
 * @since 0.1.0
 */
export const embed = Unit.command("inference.embed", {
  description: "Turns texts into vectors",
  input: {
    model: Schema.NonEmptyString,
    input: Schema.Union([Schema.NonEmptyString, Schema.NonEmptyArray(Schema.NonEmptyString)])
  },
  output: { embeddings: Schema.Array(Schema.Array(Schema.Finite)), usage: Schema.optionalKey(EmbedUsage) },
  errors: [...inferenceFailures, InternalError],
  examples: [{ model: "bge-m3", input: ["a text", "another"] }],
  handler: ({ input, model }) => {
    const texts = typeof input === "string" ? [input] : input
    return Router.use((router) =>
      router.call(model, "embeddings", (backend, model) => {
        const answer = backend.embed?.({ model, input: texts })
        return answer && Effect.flatMap(answer, (embedded) => one(texts.length, embedded))
      })
    )
  }
})

/** An answer that has one vector for each text. */
const one = (texts: number, answer: EmbedAnswer): Effect.Effect<EmbedAnswer, EngineFailed> => {
  const { embeddings } = answer
  const lengths = new Set(embeddings.map((vector) => vector.length))
  return embeddings.length === texts && lengths.size === 1 && !lengths.has(0)
    ? Effect.succeed(answer)
    : Effect.fail(
      new EngineFailed({
        detail: `For ${texts} texts it gave ${embeddings.length} vectors, of ${
          Array.from(lengths).join(" and ") || "no"
        } numbers. Check that the model is one for embeddings`,
        retryable: false
      })
    )
}
