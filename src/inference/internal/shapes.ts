/**
 * What the units that give text take and give, whole or bit by bit.
 *
 * @since 0.1.0
 */
import * as Schema from "effect/Schema"
import type { ChatRequest, CompleteRequest } from "../Backend.ts"
import { FinishReason, Message, type StreamChunk, Usage } from "../Inference.ts"

const between = (minimum: number, maximum: number) =>
  Schema.optionalKey(Schema.Finite.check(Schema.isBetween({ minimum, maximum })))

const atLeastOne = Schema.optionalKey(Schema.Int.check(Schema.isGreaterThanOrEqualTo(1)))

const sampling = {
  model: Schema.NonEmptyString,
  temperature: between(0, 2),
  max_tokens: atLeastOne,
  top_p: between(0, 1),
  stop: Schema.optionalKey(Schema.Array(Schema.NonEmptyString)),
  stream: Schema.optionalKey(Schema.Boolean)
} as const

/** @internal */
export const ChatInput = Schema.Struct({
  ...sampling,
  messages: Schema.NonEmptyArray(Message),
  top_k: atLeastOne,
  frequency_penalty: between(-2, 2),
  presence_penalty: between(-2, 2)
})

/** @internal */
export const ChatAnswer = Schema.Struct({
  content: Schema.String,
  finish_reason: FinishReason,
  usage: Schema.optionalKey(Usage),
  model: Schema.String,
  id: Schema.String
})

/** @internal */
export const CompleteInput = Schema.Struct({ ...sampling, prompt: Schema.NonEmptyString })

/** @internal */
export const CompleteAnswer = Schema.Struct({
  text: Schema.String,
  finish_reason: FinishReason,
  usage: Schema.optionalKey(Usage)
})

/** @internal */
export const chatRequest = (
  { stream: _stream, ...request }: typeof ChatInput.Type,
  model: string
): ChatRequest => ({ ...request, model })

/** @internal */
export const completeRequest = (
  { stream: _stream, ...request }: typeof CompleteInput.Type,
  model: string
): CompleteRequest => ({ ...request, model })

/**
 * What a streamed answer comes to, as its completed event tells it. Longer texts are left out, so that memory stays flat; whoever takes
 * the chunks has them.
 *
 * @internal
 */
export const streamedText = Schema.optionalKey(Schema.String)

/** Characters. As many as an event shows of one field. */
const maxText = 64 * 1024

/** @internal */
export const appended = (text: string | undefined, { data }: StreamChunk): string | undefined =>
  text === undefined || text.length + data.length > maxText ? undefined : text + data
