import { NodeServices } from "@effect/platform-node"
import { assert, layer } from "@effect/vitest"
import { Cause, Effect, Exit, Fiber, Layer, Stream } from "effect"
import * as LlamaCpp from "../../src/backends/LlamaCpp.ts"
import * as EventPublisher from "../../src/EventPublisher.ts"
import type { ChatRequest } from "../../src/inference/Backend.ts"
import * as Inference from "../../src/inference/index.ts"
import * as InProcess from "../../src/inference/InProcess.ts"
import * as Model from "../../src/model/index.ts"
import { layerEmbedded } from "../../src/node.ts"
import { file, tinyGguf } from "../model/files.ts"
import { runnableGguf } from "../model/runnable.ts"
import * as OpenAiServer from "./OpenAiServer.ts"
import { folder, nextTurns, serve } from "./world.ts"

const services = Layer.unwrap(Effect.map(folder, (directory) =>
  Layer.mergeAll(
    layerEmbedded({ directory, hubs: {}, endpoints: [], llama: { gpu: false, threads: 1 } }),
    LlamaCpp.layer({ gpu: false, threads: 1 }),
    EventPublisher.layerMemory
  ))).pipe(Layer.provideMerge(NodeServices.layer))

/** A model that runs, registered under a name. */
const registered = Effect.fnUntraced(function*(name: string) {
  const { model_id } = yield* Model.import({ path: yield* file(`${name}.gguf`, runnableGguf({ name })), name })
  return model_id
})

const messages = [{ role: "user", content: "How are you?" }] as const

layer(services)("models in this process", (it) => {
  it.effect("answer by the names of the register, with nothing started for them", () =>
    Effect.gen(function*() {
      const model_id = yield* registered("tiny-chat")
      const { content, id, ...answer } = yield* Inference.chat({
        model: "Tiny-Chat",
        messages,
        max_tokens: 16,
        temperature: 0
      })
      assert.isAbove(content.length, 0)
      assert.strictEqual(id, "")
      const usage = answer.usage
      assert(usage !== undefined)
      assert.deepStrictEqual(answer, { finish_reason: "length", model: model_id, usage })
      assert.strictEqual(usage.completion_tokens, 16)
      assert.strictEqual(usage.total_tokens, usage.prompt_tokens + 16)
    }))

  it.effect("stream, complete and embed", () =>
    Effect.gen(function*() {
      const backend = yield* InProcess.make
      const model = yield* registered("tiny-all")
      assert.deepInclude(yield* backend.models, { id: model, type: "llm" })
      const request: ChatRequest = { model, messages, max_tokens: 8, temperature: 0 }
      const chunks = yield* Stream.runCollect(backend.chatStream!(request))
      const whole = yield* backend.chat!(request)
      assert.strictEqual(chunks.map(({ data }) => data).join(""), whole.content)
      const end = chunks.at(-1)
      assert.deepStrictEqual(end?.metadata, { finish_reason: "length", model, id: "" })
      assert.deepStrictEqual(end?.usage, whole.usage)
      const completion = { model, prompt: "the cat", max_tokens: 8, temperature: 0 }
      const { finish_reason, text, usage } = yield* backend.complete!(completion)
      assert.strictEqual(finish_reason, "length")
      assert.strictEqual(usage?.completion_tokens, 8)
      const streamed = yield* Stream.runCollect(backend.completeStream!(completion))
      assert.strictEqual(streamed.map(({ data }) => data).join(""), text)
      const { embeddings } = yield* backend.embed!({ model, input: ["one", "two"] })
      assert.deepStrictEqual(embeddings.map(({ length }) => length), [64, 64])
    }))

  it.effect("stop generating when the unit is interrupted, and tell it", () =>
    Effect.gen(function*() {
      yield* registered("tiny-endless")
      const memory = yield* EventPublisher.Memory
      const { load } = yield* LlamaCpp.LlamaCpp
      yield* load(yield* file("warm.gguf", runnableGguf()))
      const fiber = yield* Effect.forkChild(Inference.chat({ model: "tiny-endless", messages, temperature: 1 }), {
        startImmediately: true
      })
      yield* Fiber.interrupt(fiber)
      const exit = yield* Fiber.await(fiber)
      assert(Exit.isFailure(exit))
      assert.isTrue(Cause.hasInterruptsOnly(exit.cause))
      const last = (yield* memory.events).at(-1)
      assert(last !== undefined && "failure" in last)
      assert.deepStrictEqual(last.failure, { kind: "interrupt" })
      // The one place of the model is free again.
      yield* Inference.chat({ model: "tiny-endless", messages, max_tokens: 2 })
    }))

  it.effect("say what is wrong with a request or a file", () =>
    Effect.gen(function*() {
      const backend = yield* InProcess.make
      const model = yield* registered("tiny-wrong")
      const tool = yield* Effect.flip(backend.chat!({ model, messages: [{ role: "tool", content: "4" }] }))
      assert.strictEqual(tool._tag, "Refused")
      const long = yield* Effect.flip(Inference.chat({
        model: "tiny-wrong",
        messages: [{ role: "user", content: "word ".repeat(2000) }]
      }))
      assert(long._tag === "InferenceInvalidParams")
      assert.include(long.detail, "2048")
      const path = yield* file("header-only.gguf", tinyGguf())
      yield* Model.import({ path, name: "header-only" })
      const broken = yield* Effect.flip(Inference.chat({ model: "header-only", messages }))
      assert(broken._tag === "InferenceEngineError")
      assert.isFalse(broken.retryable)
      assert.include(broken.message, path)
    }))

  it.effect("are asked only where no other endpoint serves the model", () =>
    Effect.gen(function*() {
      const directory = yield* folder
      const server = yield* serve(OpenAiServer.routes({ models: ["echo"] }))
      const both = layerEmbedded({
        directory,
        hubs: {},
        endpoints: [{ name: "server", dialect: "openai", baseUrl: server.url }],
        llama: { gpu: false, threads: 1 }
      })
      yield* Effect.gen(function*() {
        const model = yield* registered("echo")
        const ask = Effect.map(Inference.chat({ model: "echo", messages, max_tokens: 2 }), (answer) => answer.model)
        assert.deepStrictEqual(yield* Effect.replicateEffect(ask, 3), ["echo", "echo", "echo"])
        yield* Effect.promise(() => server.close())
        yield* nextTurns
        assert.strictEqual(yield* ask, model)
      }).pipe(Effect.provide(both))
    }))
})
