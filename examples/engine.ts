/**
 * An engine of one's own: a server of one GGUF file that speaks the OpenAI protocol, as far as health, models and chat go.
 *
 *     node examples/engine.ts --model tiny.gguf --port 8080 [--host 127.0.0.1] [--name tiny]
 *
 * It imports the library by path, so that it runs without a build.
 */
import { NodeHttpServer, NodeRuntime } from "@effect/platform-node"
import { Clock, Effect, Layer, Schema, Stream } from "effect"
import { HttpRouter, HttpServerRequest, HttpServerResponse } from "effect/http"
import { createServer } from "node:http"
import { basename, resolve } from "node:path"
import { parseArgs } from "node:util"
import * as LlamaCpp from "../src/backends/LlamaCpp.ts"

const { values: { host, model = "", name = basename(model, ".gguf"), port } } = parseArgs({
  options: {
    model: { type: "string" },
    name: { type: "string" },
    host: { type: "string", default: "127.0.0.1" },
    port: { type: "string", default: "8080" }
  }
})
const path = resolve(model)

const Chat = Schema.Struct({
  messages: Schema.Array(
    Schema.Struct({ role: Schema.Literals(["system", "user", "assistant"]), content: Schema.String })
  ),
  stream: Schema.optional(Schema.Boolean),
  temperature: Schema.optional(Schema.Finite),
  max_tokens: Schema.optional(Schema.Natural),
  top_p: Schema.optional(Schema.Finite),
  top_k: Schema.optional(Schema.Natural),
  frequency_penalty: Schema.optional(Schema.Finite),
  presence_penalty: Schema.optional(Schema.Finite),
  stop: Schema.optional(Schema.Array(Schema.String))
})

const refusal = (error: { readonly message: string }, status: number) =>
  HttpServerResponse.jsonUnsafe({ error: { message: error.message } }, { status })

const usageOf = ({ completion_tokens, prompt_tokens }: LlamaCpp.Piece & { readonly type: "end" }) => ({
  prompt_tokens,
  completion_tokens,
  total_tokens: prompt_tokens + completion_tokens
})

let requests = 0

const chat = Effect.gen(function*() {
  const engine = yield* LlamaCpp.LlamaCpp
  const { messages, stream, ...sampling } = yield* HttpServerRequest.schemaBodyJson(Chat)
  const common = { id: `chat-${++requests}`, created: Math.floor((yield* Clock.currentTimeMillis) / 1000), model: name }
  const pieces = engine.chat(path, messages, sampling)
  if (stream !== true) {
    const all = yield* Stream.runCollect(pieces)
    const content = all.map((piece) => piece.type === "text" ? piece.text : "").join("")
    const end = all.find((piece) => piece.type === "end")
    const choice = { index: 0, message: { role: "assistant", content }, finish_reason: end?.finish_reason }
    return HttpServerResponse.jsonUnsafe({
      ...common,
      object: "chat.completion",
      choices: [choice],
      usage: end === undefined ? undefined : usageOf(end)
    })
  }
  const chunk = (piece: LlamaCpp.Piece) => ({
    ...common,
    object: "chat.completion.chunk",
    choices: [
      piece.type === "text"
        ? { index: 0, delta: { content: piece.text }, finish_reason: null }
        : { index: 0, delta: {}, finish_reason: piece.finish_reason }
    ],
    ...(piece.type === "end" ? { usage: usageOf(piece) } : {})
  })
  const lines = pieces.pipe(
    Stream.map((piece) => `data: ${JSON.stringify(chunk(piece))}\n\n`),
    Stream.catch((error) => Stream.make(`data: ${JSON.stringify({ error: { message: error.message } })}\n\n`)),
    Stream.concat(Stream.make("data: [DONE]\n\n")),
    Stream.encodeText
  )
  return HttpServerResponse.stream(lines, { contentType: "text/event-stream" })
}).pipe(
  Effect.catchTag("LlamaCppError", (error) => Effect.succeed(refusal(error, error.retryable ? 500 : 400))),
  Effect.catchTag("SchemaError", (error) => Effect.succeed(refusal(error, 400)))
)

const routes = (context_length: number) =>
  HttpRouter.use(Effect.fnUntraced(function*(router) {
    const models = { object: "list", data: [{ id: name, object: "model", max_model_len: context_length }] }
    yield* router.add("GET", "/health", Effect.succeed(HttpServerResponse.text("ok")))
    yield* router.add("GET", "/v1/models", Effect.succeed(HttpServerResponse.jsonUnsafe(models)))
    yield* router.add("POST", "/v1/chat/completions", chat)
  }))

/** It listens once the model is loaded: who can connect gets an answer. */
const server = LlamaCpp.LlamaCpp.use((engine) => engine.load(path)).pipe(
  Effect.map(({ context_length }) =>
    HttpRouter.serve(routes(context_length), { disableLogger: true }).pipe(
      Layer.provide(NodeHttpServer.layer(createServer, { host, port: Number(port) }))
    )
  ),
  Layer.unwrap,
  Layer.provide(LlamaCpp.layer({ gpu: false, threads: 1 }))
)

NodeRuntime.runMain(Layer.launch(server))
