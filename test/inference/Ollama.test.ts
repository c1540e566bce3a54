import { NodeHttpClient } from "@effect/platform-node"
import { assert, it } from "@effect/vitest"
import { Effect, Stream } from "effect"
import type { Backend } from "../../src/inference/Backend.ts"
import * as Ollama from "../../src/inference/Ollama.ts"
import * as MediaServer from "./MediaServer.ts"
import * as OllamaServer from "./OllamaServer.ts"
import { wav } from "./samples.ts"
import type * as StandIn from "./StandIn.ts"
import { suite } from "./textSuite.ts"
import { serve } from "./world.ts"

const models = [{ name: "echo:latest" }, { name: "tiny" }]
const routes = OllamaServer.routes({ models })

suite({
  name: "Ollama's protocol",
  routes,
  make: (baseUrl) => Ollama.make({ baseUrl }),
  paths: { chat: "/api/chat", complete: "/api/generate", embed: "/api/embed", models: "/api/tags" },
  id: "",
  error: `{"error":"out of memory"}\n`
})

const opened = Effect.gen(function*() {
  const server: StandIn.StandIn = yield* serve(routes)
  // All operations that are used here are there.
  return { server, backend: (yield* Ollama.make({ baseUrl: `${server.url}/` })) as Required<Backend> }
})

const messages = [{ role: "user", content: "hello" }] as const

it.layer(NodeHttpClient.layerUndici)("Ollama's protocol", (it) => {
  it.effect("has sound and images by the OpenAI protocol, where the version has them", () =>
    Effect.gen(function*() {
      const options = { models: ["speaker"] }
      const audio = { bytes: wav(1), name: "audio.wav", type: "audio/wav" }
      const server = yield* serve([...MediaServer.audioRoutes(options), ...MediaServer.imageRoutes(options)])
      for (const baseUrl of [server.url, `${server.url}/`]) {
        const backend = (yield* Ollama.make({ baseUrl })) as Required<Backend>
        assert.strictEqual((yield* backend.transcribe({ model: "speaker", audio })).text, "46 bytes")
        assert.strictEqual((yield* backend.synthesize({ model: "speaker", text: "a" })).type, "audio/wav")
        assert.strictEqual((yield* backend.voices({ model: "speaker" })).length, 2)
        assert.strictEqual((yield* backend.generateImage({ model: "speaker", prompt: "a" })).images.length, 1)
      }
      const older = (yield* opened).backend
      assert.deepStrictEqual(yield* older.voices({ model: "tiny" }), [])
      const reason = yield* Effect.flip(older.transcribe({ model: "tiny", audio }))
      assert.isTrue(reason._tag === "Refused" && reason.unsupported)
    }))

  it.effect("sends every option under its name there, and a prompt without a template", () =>
    Effect.gen(function*() {
      const { backend, server } = yield* opened
      const sampling = { model: "echo", temperature: 0.5, max_tokens: 9, top_p: 0.25, stop: ["x"] }
      const options = { temperature: 0.5, num_predict: 9, top_p: 0.25, stop: ["x"] }
      const more = { top_k: 3, frequency_penalty: -1, presence_penalty: 1.5 }
      yield* backend.chat({ ...sampling, ...more, messages })
      yield* Stream.runDrain(backend.completeStream({ ...sampling, prompt: "hello" }))
      yield* backend.chat({ model: "echo", messages })
      assert.deepStrictEqual(server.requests.map(({ body }) => JSON.parse(body.toString())), [
        { model: "echo", messages, stream: false, options: { ...options, ...more } },
        { model: "echo", prompt: "hello", raw: true, stream: true, options },
        { model: "echo", messages, stream: false, options: {} }
      ])
    }))

  it.effect("tells by its families what a model does", () =>
    Effect.gen(function*() {
      const { backend, server } = yield* opened
      const details = [
        { families: ["llama", "clip"], family: "llama" },
        { families: null, family: "nomic-bert" },
        { families: ["llama"], parameter_size: "8B", quantization_level: "Q4_0", family: "llama" },
        null
      ]
      server.fault("/api/tags", {
        kind: "answer",
        body: { models: details.map((details, index) => ({ name: `m${index}`, details })) }
      })
      server.fault("/api/tags", { kind: "answer", body: { models: null } })
      assert.deepStrictEqual(yield* backend.models, [
        { id: "m0", type: "vlm", description: "llama" },
        { id: "m1", type: "embedding", description: "nomic-bert" },
        { id: "m2", type: undefined, description: "llama 8B Q4_0" },
        { id: "m3", type: undefined, description: "" }
      ])
      assert.deepStrictEqual(yield* backend.models, [])
    }))

  it.effect("takes an error for one whatever its status, and a stream without its last line for one that broke off", () =>
    Effect.gen(function*() {
      const { backend, server } = yield* opened
      server.fault("/api/chat", { kind: "answer", status: 200, body: { error: "model is on fire" } })
      assert.strictEqual((yield* Effect.flip(backend.chat({ model: "echo", messages })))._tag, "EngineFailed")
      for (
        const body of [`{"message":{"content":"a"},"done":false}\n`, `{"message":{"con`, "nonsense\n", `{"done":7}\n`]
      ) {
        server.fault("/api/chat", { kind: "answer", status: 200, body })
        const reason = yield* Effect.flip(Stream.runDrain(backend.chatStream({ model: "echo", messages })))
        assert.strictEqual(reason._tag, "EngineFailed", body)
      }
    }))

  it.effect("counts tokens as far as Ollama does", () =>
    Effect.gen(function*() {
      const { backend, server } = yield* opened
      const line = { model: "echo", message: { content: "a" }, done: true, done_reason: "unload" }
      server.fault("/api/chat", { kind: "answer", body: { ...line, eval_count: 3 } }, { kind: "answer", body: line })
      const { finish_reason, usage } = yield* backend.chat({ model: "echo", messages })
      assert.deepStrictEqual([finish_reason, usage], ["", { prompt_tokens: 0, completion_tokens: 3, total_tokens: 3 }])
      assert.notProperty(yield* backend.chat({ model: "echo", messages }), "usage")
    }))
})
