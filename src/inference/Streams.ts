/**
 * The streams of the inference domain: chat and completion bit by bit.
 *
 * They are variants of `inference.chat` and `inference.complete`, with the same input and the same failures, and are in the catalog of
 * streams rather than among the units of the domain: `streams` of `effect-units/units`.
 *
 * @since 0.1.0
 */
import * as Stream from "effect/Stream"
import * as Unit from "../Unit.ts"
import { InternalError } from "../UnitError.ts"
import { inferenceFailures } from "./Errors.ts"
import { type FinishReason, StreamChunk } from "./Inference.ts"
import {
  appended,
  ChatAnswer,
  ChatInput,
  chatRequest,
  CompleteAnswer,
  CompleteInput,
  completeRequest,
  streamedText
} from "./internal/shapes.ts"
import { Router } from "./Router.ts"

const errors = [...inferenceFailures, InternalError] as const

const noReason: FinishReason = ""

const usageOf = ({ usage }: StreamChunk) => usage === undefined ? {} : { usage }

/**
 * `inference.chat_stream`: the next turn of a conversation as it comes.
 *
 * **Details**
 *
 * `content` chunks hold the text, and the last chunk, `done`, has the reason to finish and the usage. A stream that ends without it has
 * failed. Whoever stops taking chunks closes the connection, by which servers know to stop.
 *
 * The completed event has what `inference.chat` gives; its `content` is left out where it is longer than 64 Ki characters. The failed event
 * tells how many chunks there were.
 *
 * **Example** (Writing an answer as it comes)
 *
 * ```ts
 * const write = Inference.chatStream({ model: "qwen3", messages: [{ role: "user", content: "Tell a story" }] }).pipe(
 *   Stream.runForEach(({ data }) => Console.log(data))
 * )
 * ```
 *
 * @category streams
 * @since 0.1.0
 */
export const chatStream = Unit.stream("inference.chat_stream", {
  description: "Gives the next turn of a conversation bit by bit",
  input: ChatInput,
  chunk: StreamChunk,
  output: { ...ChatAnswer.fields, content: streamedText },
  aggregate: {
    initial: () => ({ content: "", finish_reason: noReason, model: "", id: "" }),
    step: (state, chunk) => {
      const content = appended(state.content, chunk)
      return { ...chunk.metadata, ...usageOf(chunk), ...(content === undefined ? {} : { content }) }
    }
  },
  errors,
  examples: [{ model: "qwen3", messages: [{ role: "user", content: "Say hello" }] }],
  handler: (input) =>
    Stream.unwrap(
      Router.useSync((router) =>
        router.stream(input.model, "chat", (backend, model) => backend.chatStream?.(chatRequest(input, model)))
      )
    )
})

/**
 * `inference.complete_stream`: how a text goes on, as it comes. Otherwise as `inference.chat_stream`; the text of the completed event is
 * `text`.
 *
 * @category streams
 * @since 0.1.0
 */
export const completeStream = Unit.stream("inference.complete_stream", {
  description: "Tells how a text goes on bit by bit",
  input: CompleteInput,
  chunk: StreamChunk,
  output: { ...CompleteAnswer.fields, text: streamedText },
  aggregate: {
    initial: () => ({ text: "", finish_reason: noReason }),
    step: (state, chunk) => {
      const text = appended(state.text, chunk)
      const { finish_reason } = chunk.metadata
      return { finish_reason, ...usageOf(chunk), ...(text === undefined ? {} : { text }) }
    }
  },
  errors,
  examples: [{ model: "qwen3", prompt: "Once upon a time", max_tokens: 20 }],
  handler: (input) =>
    Stream.unwrap(
      Router.useSync((router) =>
        router.stream(
          input.model,
          "completion",
          (backend, model) => backend.completeStream?.(completeRequest(input, model))
        )
      )
    )
})
