import { NodeHttpClient } from "@effect/platform-node"
import { assert, describe, it } from "@effect/vitest"
import { Effect, Stream } from "effect"
import type { Backend } from "../../src/inference/Backend.ts"
import * as OpenAi from "../../src/inference/OpenAi.ts"
import * as OpenAiServer from "./OpenAiServer.ts"
import type * as StandIn from "./StandIn.ts"
import { suite } from "./textSuite.ts"
import { serve } from "./world.ts"

const routes = OpenAiServer.routes({ models: ["echo", "tiny"] })

suite({
  name: "the OpenAI protocol",
  routes,
  make: (baseUrl) => OpenAi.make({ baseUrl }),
  paths: { chat: "/v1/chat/completions", complete: "/v1/completions", embed: "/v1/embeddings", models: "/v1/models" },
  id: "chatcmpl-1",
  error: `data: {"error":{"message":"out of memory","type":"server_error","code":null}}\n\ndata: [DONE]\n\n`
})

const opened = Effect.gen(function*() {
  const server: StandIn.StandIn = yield* serve(routes)
  // All operations that are used here are there.
  return { server, backend: (yield* OpenAi.make({ baseUrl: server.url })) as Required<Backend> }
})

const bodies = (server: StandIn.StandIn) => server.requests.map(({ body }) => JSON.parse(body.toString()))

const messages = [{ role: "system", content: "Be brief" }, { role: "user", content: "hello" }] as const
const sampling = { model: "echo", temperature: 0.5, max_tokens: 9, top_p: 0.25, stop: ["x", "y"] }

it.layer(NodeHttpClient.layerUndici)("the OpenAI protocol", (it) => {
  it.effect("sends every option, and nothing that was not given", () =>
    Effect.gen(function*() {
      const { backend, server } = yield* opened
      const chat = { ...sampling, messages, top_k: 3, frequency_penalty: -1, presence_penalty: 1.5 }
      yield* backend.chat(chat)
      yield* Stream.runDrain(backend.chatStream(chat))
      yield* backend.complete({ ...sampling, prompt: "hello" })
      yield* backend.chat({ model: "echo", messages })
      assert.deepStrictEqual(bodies(server), [
        chat,
        { ...chat, stream: true, stream_options: { include_usage: true } },
        { ...sampling, prompt: "hello" },
        { model: "echo", messages }
      ])
    }))

  it.effect("passes over comments, keep-alives, fields of events, and whatever comes after the end", () =>
    Effect.gen(function*() {
      const { backend, server } = yield* opened
      const delta = (content: string | null, finish_reason: string | null = null) =>
        `data: ${JSON.stringify({ id: "1", choices: [{ delta: { content }, finish_reason }] })}\n\n`
      server.fault("/v1/chat/completions", {
        kind: "answer",
        status: 200,
        body: [
          "\uFEFF: hi\r\n\r\n",
          "retry: 3000\n\n",
          "event: message\nid: 7\n" + delta(null),
          ":\n\n",
          delta("one").replaceAll("\n", "\r\n"),
          `data: {"choices": null, "usage": null}\n\n`,
          delta(" two", "eos"),
          "data: [DONE]\n\n",
          "data: what is this?\n\n"
        ]
      })
      const chunks = yield* Stream.runCollect(backend.chatStream({ model: "echo", messages }))
      const metadata = { finish_reason: "" as const, model: "echo", id: "1" }
      assert.deepStrictEqual(chunks, [
        { type: "content", data: "one", metadata },
        { type: "content", data: " two", metadata },
        { type: "done", data: "", metadata }
      ])
    }))

  it.effect("is done by a reason to finish without [DONE], even where the connection breaks then", () =>
    Effect.gen(function*() {
      const { backend, server } = yield* opened
      const body = `data: {"choices":[{"delta":{"content":"one"},"finish_reason":"tool_calls"}]}\n\n`
      server.fault("/v1/chat/completions", { kind: "answer", status: 200, body })
      const chunks = yield* Stream.runCollect(backend.chatStream({ model: "echo", messages }))
      assert.deepStrictEqual(chunks.map(({ type }) => type), ["content", "done"])
      assert.strictEqual(chunks.at(-1)?.metadata.finish_reason, "tool_calls")
    }))

  it.effect("tells what kind of error came inside of a stream", () =>
    Effect.gen(function*() {
      const { backend, server } = yield* opened
      const errors = [
        [{ message: "slow down", type: "rate_limit_error" }, "Busy"],
        [{ message: "too long", type: "invalid_request_error", code: "context_length_exceeded" }, "Refused"],
        [{ message: "no model x", type: "NotFoundError", code: 404 }, "ModelMissing"],
        [{ message: "waiting took too long", code: 504 }, "TimedOut"],
        ["crash", "EngineFailed"],
        [{}, "EngineFailed"]
      ] as const
      for (const [error, tag] of errors) {
        server.fault("/v1/chat/completions", {
          kind: "answer",
          status: 200,
          body: `data: ${JSON.stringify({ error })}\n\n`
        })
        const reason = yield* Effect.flip(Stream.runDrain(backend.chatStream({ model: "echo", messages })))
        assert.strictEqual(reason._tag, tag)
      }
      server.fault("/v1/chat/completions", { kind: "answer", status: 200, body: "data: {nonsense\n\n" })
      const reason = yield* Effect.flip(Stream.runDrain(backend.chatStream({ model: "echo", messages })))
      assert.strictEqual(reason._tag, "EngineFailed")
    }))

  it.effect("makes up no usage, and no text where there is none", () =>
    Effect.gen(function*() {
      const { backend, server } = yield* opened
      const answers = [{ message: { content: null }, finish_reason: "function_call" }, { finish_reason: null }]
      for (const choice of answers) {
        server.fault("/v1/chat/completions", { kind: "answer", status: 200, body: { choices: [choice] } })
      }
      assert.deepStrictEqual(yield* backend.chat({ model: "echo", messages }), {
        content: "",
        finish_reason: "tool_calls",
        model: "echo",
        id: ""
      })
      assert.deepStrictEqual(yield* backend.chat({ model: "echo", messages }), {
        content: "",
        finish_reason: "",
        model: "echo",
        id: ""
      })
    }))

  it.effect("knows the length of a context by the names that vLLM and llama.cpp have for it", () =>
    Effect.gen(function*() {
      const { backend, server } = yield* opened
      const data = [{ id: "a", max_model_len: 8 }, { id: "b", meta: { n_ctx_train: 9 } }, { id: "c", meta: null }]
      server.fault("/v1/models", { kind: "answer", body: { data } })
      assert.deepStrictEqual(yield* backend.models, [
        { id: "a", max_tokens: 8 },
        { id: "b", max_tokens: 9 },
        { id: "c", max_tokens: undefined }
      ])
    }))
})

describe("baseUrl", () => {
  it("adds /v1 to a host without a path, and nothing else", () => {
    assert.strictEqual(OpenAi.baseUrl("http://localhost:8000"), "http://localhost:8000/v1")
    assert.strictEqual(OpenAi.baseUrl("http://localhost:8000/"), "http://localhost:8000/v1")
    assert.strictEqual(OpenAi.baseUrl("https://api.test/openai/v1/"), "https://api.test/openai/v1")
    assert.strictEqual(OpenAi.baseUrl("nonsense"), "nonsense")
  })
})
