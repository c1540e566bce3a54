/** Routes of a server that speaks the OpenAI protocol, as strict as the real ones are with what they do not know. */
import { Result, Schema } from "effect"
import * as echo from "./echo.ts"
import type { Received, Reply, Route } from "./StandIn.ts"

export interface Options {
  /** Ids of the models that it serves. */
  readonly models: ReadonlyArray<string>
  /** Requests must carry this key. */
  readonly key?: string | undefined
}

/** An answer in the form of the protocol's errors. */
export const failure = (status: number, message: string, type: string, code: string | null = null): Reply => ({
  status,
  body: { error: { message, type, param: null, code } }
})

/**
 * Checks what all requests of the protocol have in common, and the body by a schema that tells all fields there are. `answer` gets what
 * fits.
 */
export const checked = <S extends Schema.ConstraintDecoder<unknown, never>>(
  options: Options,
  schema: S,
  answer: (body: S["Type"]) => Reply
) =>
({ body, headers }: Received): Reply => {
  const { key, models } = options
  if (key !== undefined && headers.authorization !== `Bearer ${key}`) return unauthorized(headers.authorization)
  if (headers["content-type"] !== "application/json") {
    return failure(415, `Unsupported media type ${headers["content-type"]}`, "invalid_request_error")
  }
  const decoded = Schema.decodeUnknownResult(Schema.fromJsonString(schema), { onExcessProperty: "error" })(
    body.toString()
  )
  if (Result.isFailure(decoded)) {
    return failure(400, `Invalid request: ${decoded.failure.message}`, "invalid_request_error")
  }
  const { model } = JSON.parse(body.toString())
  return models.includes(model)
    ? answer(decoded.success)
    : failure(404, `The model \`${model}\` does not exist.`, "invalid_request_error", "model_not_found")
}

/** OpenAI itself repeats the key, too, if not all of it. */
const unauthorized = (authorization: string | undefined) =>
  failure(
    401,
    `Incorrect API key provided: ${authorization?.replace("Bearer ", "") ?? "none"}.`,
    "invalid_request_error",
    "invalid_api_key"
  )

const sampling = {
  model: Schema.String,
  temperature: Schema.optional(Schema.Finite),
  max_tokens: Schema.optional(Schema.Int),
  top_p: Schema.optional(Schema.Finite),
  stop: Schema.optional(Schema.Array(Schema.String)),
  stream: Schema.optional(Schema.Boolean),
  stream_options: Schema.optional(Schema.Struct({ include_usage: Schema.Boolean }))
}

const Chat = Schema.Struct({
  ...sampling,
  messages: Schema.Array(Schema.Struct({ role: Schema.String, content: Schema.String })),
  top_k: Schema.optional(Schema.Int),
  frequency_penalty: Schema.optional(Schema.Finite),
  presence_penalty: Schema.optional(Schema.Finite)
})

const Complete = Schema.Struct({ ...sampling, prompt: Schema.String })

const Embed = Schema.Struct({
  model: Schema.String,
  input: Schema.Array(Schema.String),
  encoding_format: Schema.Literal("float")
})

const event = (data: unknown): string => `data: ${typeof data === "string" ? data : JSON.stringify(data)}\n\n`

const usageOf = ({ promptTokens, words }: echo.Generated) => ({
  prompt_tokens: promptTokens,
  completion_tokens: words.length,
  total_tokens: promptTokens + words.length
})

const sse = { "content-type": "text/event-stream; charset=utf-8" }

/** An answer as events: a comment, a chunk that only opens, one for each word, the reason to finish, the usage, and the end. */
const events = (
  generated: echo.Generated,
  head: object,
  choice: (text: string | undefined) => object,
  includeUsage: boolean
): Reply => ({
  headers: sse,
  body: [
    ": connected\n\n",
    event({ ...head, choices: [{ index: 0, ...choice(""), finish_reason: null }] }),
    ...generated.words.map((word) =>
      event({ ...head, choices: [{ index: 0, ...choice(word), finish_reason: null }], usage: null })
    ),
    event({ ...head, choices: [{ index: 0, ...choice(undefined), finish_reason: generated.finish }] }),
    ...(includeUsage ? [event({ ...head, choices: [], usage: usageOf(generated) })] : []),
    event("[DONE]")
  ]
})

/** What chat, completion, embeddings and the list of models need. */
export const routes = (options: Options): ReadonlyArray<Route> => [
  {
    method: "GET",
    path: "/v1/models",
    handle: ({ headers }) =>
      options.key !== undefined && headers.authorization !== `Bearer ${options.key}`
        ? unauthorized(headers.authorization)
        : {
          body: {
            object: "list",
            data: options.models.map((id) => ({ id, object: "model", owned_by: "acme", max_model_len: 4096 }))
          }
        }
  },
  {
    method: "POST",
    path: "/v1/chat/completions",
    handle: checked(options, Chat, (body) => {
      const head = { id: "chatcmpl-1", object: "chat.completion", created: 1, model: body.model }
      const prompt = body.messages.map(({ content }) => content).join(" ")
      const said = body.messages.at(-1)?.content ?? ""
      const generated = echo.generate(prompt, { said, maxTokens: body.max_tokens, stop: body.stop })
      if (body.stream === true) {
        return events(
          generated,
          { ...head, object: "chat.completion.chunk" },
          (text) => ({ delta: text === undefined ? {} : { role: "assistant", content: text } }),
          body.stream_options?.include_usage === true
        )
      }
      const message = { role: "assistant", content: generated.words.join("") }
      return {
        body: {
          ...head,
          choices: [{ index: 0, message, finish_reason: generated.finish }],
          usage: usageOf(generated)
        }
      }
    })
  },
  {
    method: "POST",
    path: "/v1/completions",
    handle: checked(options, Complete, (body) => {
      const head = { id: "cmpl-1", object: "text_completion", created: 1, model: body.model }
      const generated = echo.generate(body.prompt, { said: body.prompt, maxTokens: body.max_tokens, stop: body.stop })
      if (body.stream === true) {
        return events(generated, head, (text) => ({ text: text ?? "" }), body.stream_options?.include_usage === true)
      }
      const choice = { index: 0, text: generated.words.join(""), finish_reason: generated.finish }
      return { body: { ...head, choices: [choice], usage: usageOf(generated) } }
    })
  },
  {
    method: "POST",
    path: "/v1/embeddings",
    handle: checked(options, Embed, ({ input, model }) => {
      if (input.some((text) => text === "")) return failure(400, "'input' is empty", "invalid_request_error")
      const tokens = echo.countWords(input)
      return {
        body: {
          object: "list",
          model,
          // In the other order: the index counts.
          data: input.map((text, index) => ({ object: "embedding", index, embedding: echo.embed(text) })).toReversed(),
          usage: { prompt_tokens: tokens, total_tokens: tokens }
        }
      }
    })
  }
]
