/** Routes of an Ollama server, as strict as a test can want it: the real one passes over fields that it does not know. */
import { Result, Schema } from "effect"
import * as echo from "./echo.ts"
import type { Received, Reply, Route } from "./StandIn.ts"

export interface Options {
  /** Models that it holds, with their families. */
  readonly models: ReadonlyArray<{ readonly name: string; readonly families?: ReadonlyArray<string> }>
}

const failure = (status: number, error: string): Reply => ({ status, body: { error } })

const Sampling = Schema.Struct({
  temperature: Schema.optional(Schema.Finite),
  num_predict: Schema.optional(Schema.Int),
  top_p: Schema.optional(Schema.Finite),
  top_k: Schema.optional(Schema.Int),
  frequency_penalty: Schema.optional(Schema.Finite),
  presence_penalty: Schema.optional(Schema.Finite),
  stop: Schema.optional(Schema.Array(Schema.String))
})

const Chat = Schema.Struct({
  model: Schema.String,
  messages: Schema.Array(Schema.Struct({ role: Schema.String, content: Schema.String })),
  stream: Schema.Boolean,
  options: Sampling
})

const Generate = Schema.Struct({
  model: Schema.String,
  prompt: Schema.String,
  raw: Schema.Literal(true),
  stream: Schema.Boolean,
  options: Sampling
})

const Embed = Schema.Struct({
  model: Schema.String,
  input: Schema.Array(Schema.String),
  truncate: Schema.Literal(false)
})

const checked = <S extends Schema.ConstraintDecoder<unknown, never>>(
  { models }: Options,
  schema: S,
  answer: (body: S["Type"]) => Reply
) =>
({ body }: Received): Reply => {
  const decoded = Schema.decodeUnknownResult(Schema.fromJsonString(schema), { onExcessProperty: "error" })(
    body.toString()
  )
  if (Result.isFailure(decoded)) return failure(400, `invalid request: ${decoded.failure.message}`)
  const { model } = JSON.parse(body.toString())
  const isHeld = models.some(({ name }) => name === model || name === `${model}:latest`)
  return isHeld ? answer(decoded.success) : failure(404, `model '${model}' not found`)
}

const lines = (values: ReadonlyArray<unknown>): Reply => ({
  headers: { "content-type": "application/x-ndjson" },
  body: values.map((value) => `${JSON.stringify(value)}\n`)
})

/** A whole answer, or the lines of one. */
const answers = (
  generated: echo.Generated,
  model: string,
  stream: boolean,
  text: (words: string) => object
): Reply => {
  const head = { model, created_at: "2025-01-01T00:00:00Z" }
  const end = {
    done: true,
    done_reason: generated.finish,
    total_duration: 5_000_000,
    prompt_eval_count: generated.promptTokens,
    eval_count: generated.words.length
  }
  return stream
    ? lines([
      ...generated.words.map((word) => ({ ...head, ...text(word), done: false })),
      { ...head, ...text(""), ...end }
    ])
    : { body: { ...head, ...text(generated.words.join("")), ...end } }
}

/** What chat, completion, embeddings and the list of models need. */
export const routes = (options: Options): ReadonlyArray<Route> => [
  {
    method: "GET",
    path: "/api/tags",
    handle: () => ({
      body: {
        models: options.models.map(({ families = ["llama"], name }) => ({
          name,
          model: name,
          size: 1,
          digest: "0",
          details: { format: "gguf", family: families[0], families, parameter_size: "1B", quantization_level: "Q4_0" }
        }))
      }
    })
  },
  {
    method: "POST",
    path: "/api/chat",
    handle: checked(options, Chat, ({ messages, model, options: { num_predict, stop }, stream }) => {
      const prompt = messages.map(({ content }) => content).join(" ")
      const generated = echo.generate(prompt, { said: messages.at(-1)?.content ?? "", maxTokens: num_predict, stop })
      return answers(generated, model, stream, (content) => ({ message: { role: "assistant", content } }))
    })
  },
  {
    method: "POST",
    path: "/api/generate",
    handle: checked(options, Generate, ({ model, options: { num_predict, stop }, prompt, stream }) => {
      const generated = echo.generate(prompt, { said: prompt, maxTokens: num_predict, stop })
      return answers(generated, model, stream, (response) => ({ response }))
    })
  },
  {
    method: "POST",
    path: "/api/embed",
    handle: checked(options, Embed, ({ input, model }) => ({
      body: { model, embeddings: input.map(echo.embed), prompt_eval_count: echo.countWords(input) }
    }))
  }
]
