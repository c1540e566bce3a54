import { assert, describe, it } from "@effect/vitest"
import { Effect, Layer } from "effect"
import * as Inference from "../../src/inference/index.ts"
import * as ModelStore from "../../src/model/ModelStore.ts"
import * as Testing from "../../src/testing/index.ts"
import { layer, World } from "./world.ts"

const world = Layer.provideMerge(layer, Testing.layerTest)

const idsOf = ({ models }: { readonly models: ReadonlyArray<Inference.InferenceModel> }) =>
  models.map(({ id, provider }) => `${id} ${provider}`)

describe("inference.models", () => {
  it.effect("lists what all endpoints serve, in order, with what they tell of it", () =>
    Effect.gen(function*() {
      const { ollama } = yield* World
      const { models } = yield* Inference.models()
      assert.deepStrictEqual(idsOf({ models }), [
        "echo openai",
        "echo:latest ollama",
        "embed-4 openai",
        "tiny:1b ollama"
      ])
      assert.deepStrictEqual(models.slice(1, 3), [
        {
          id: "echo:latest",
          name: "echo:latest",
          type: "llm",
          provider: "ollama",
          description: "llama 1B Q4_0",
          modalities: ["text"]
        },
        {
          id: "embed-4",
          name: "embed-4",
          type: "embedding",
          provider: "openai",
          description: "",
          max_tokens: 4096,
          modalities: ["text"]
        }
      ])
      const details = { families: ["llama", "clip"], family: "llama" }
      ollama.fault("/api/tags", {
        kind: "answer",
        body: { models: [{ name: "eye", details }, { name: "eye", details }] }
      })
      const { models: seeing } = yield* Inference.models({ type: "vlm" })
      assert.deepStrictEqual(seeing.map(({ id, modalities }) => [id, modalities]), [["eye", ["text", "image"]]])
    }).pipe(Effect.provide(world)))

  it.effect("knows a registered model by its names, and what it does", () =>
    Effect.gen(function*() {
      const store = yield* ModelStore.ModelStore
      const common = { format: "gguf", status: "pending", source: "local", size: 0, tags: [], files: [] } as const
      yield* store.insert({ ...common, name: "Reads Well", type: "asr", path: "/models/echo.gguf" })
      const { models } = yield* Inference.models({ type: "asr" })
      assert.deepStrictEqual(
        models.map(({ id, modalities, name }) => [id, name, modalities]),
        [["echo", "Reads Well", ["audio", "text"]], ["echo:latest", "Reads Well", ["audio", "text"]]]
      )
    }).pipe(Effect.provide(world)))

  it.effect("leaves out an endpoint that does not answer, and has nothing where none does", () =>
    Effect.gen(function*() {
      const { ollama, openai } = yield* World
      openai.fault("/v1/models", { kind: "answer", status: 500, body: "" })
      assert.deepStrictEqual(idsOf(yield* Inference.models()), ["echo:latest ollama", "tiny:1b ollama"])
      yield* Effect.promise(() => ollama.close())
      assert.deepStrictEqual(idsOf(yield* Inference.models()), ["echo openai", "embed-4 openai"])
      yield* Effect.promise(() => openai.close())
      assert.deepStrictEqual(yield* Inference.models(), { models: [] })
    }).pipe(Effect.provide(world)))
})
