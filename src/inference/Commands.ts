/**
 * The commands of the inference domain. They change nothing here, but each is work for an endpoint.
 *
 * @since 0.1.0
 */
import * as Unit from "../Unit.ts"
import { InternalError } from "../UnitError.ts"
import { inferenceFailures } from "./Errors.ts"
import { ChatAnswer, ChatInput, chatRequest } from "./internal/shapes.ts"
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
