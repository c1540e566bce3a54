import { NodeHttpClient } from "@effect/platform-node"
import { assert, describe, it } from "@effect/vitest"
import { Config, ConfigProvider, Effect, Exit, Layer, Redacted } from "effect"
import * as Endpoints from "../../src/inference/Endpoints.ts"
import * as OllamaServer from "./OllamaServer.ts"
import * as OpenAiServer from "./OpenAiServer.ts"
import { serve } from "./world.ts"

const listed = <E>(layer: Layer.Layer<Endpoints.Endpoints, E>) =>
  Effect.provide(Endpoints.Endpoints.use(({ list }) => list), layer)

const about = (endpoints: ReadonlyArray<Endpoints.Endpoint>) =>
  endpoints.map(({ address, name, provider }) => [name, provider, address])

const client = NodeHttpClient.layerUndici

describe("Endpoints.layer", () => {
  it.effect("has the endpoints of a list, each with what its dialect can do", () =>
    Effect.gen(function*() {
      const openai = yield* serve(OpenAiServer.routes({ models: ["echo"], key: "secret" }))
      const ollama = yield* serve(OllamaServer.routes({ models: [{ name: "echo" }] }))
      const backend = { models: Effect.succeed([{ id: "mine" }]) }
      const layer = Endpoints.layer([
        { name: "a", dialect: "openai", baseUrl: openai.url, apiKey: Redacted.make("secret"), provider: "vllm" },
        { name: "b", dialect: "ollama", baseUrl: ollama.url, models: ["echo"], modelId: "model-00000000" },
        { name: "c", dialect: "in_process", backend }
      ])
      const endpoints = yield* listed(Layer.provide(layer, client))
      assert.deepStrictEqual(about(endpoints), [
        ["a", "vllm", openai.url],
        ["b", "ollama", ollama.url],
        ["c", "in_process", "in process"]
      ])
      assert.deepStrictEqual([endpoints[1]?.models, endpoints[1]?.modelId], [["echo"], "model-00000000"])
      // A client lives as long as the layer, so these are asked within it.
      const ids = yield* Effect.gen(function*() {
        const { list } = yield* Endpoints.Endpoints
        const all = yield* Effect.forEach(yield* list, ({ backend }) => backend.models)
        return all.map((models) => models.map(({ id }) => id))
      }).pipe(Effect.provide(Layer.provide(layer, client)))
      assert.deepStrictEqual(ids, [["echo"], ["echo"], ["mine"]])
    }))
})

describe("Endpoints.layerConfig", () => {
  const from = (env: Record<string, string>) =>
    listed(Layer.provide(Endpoints.layerConfig(), client)).pipe(
      Effect.provide(ConfigProvider.layer(ConfigProvider.fromUnknown(env)))
    )

  it.effect("has Ollama on this host by default, and a server of the OpenAI protocol where its address is given", () =>
    Effect.gen(function*() {
      assert.deepStrictEqual(about(yield* from({})), [["ollama", "ollama", "http://localhost:11434"]])
      assert.deepStrictEqual(
        about(yield* from({ OLLAMA_HOST: "0.0.0.0:80", OPENAI_API_KEY: "k", OPENAI_BASE_URL: " " })),
        [
          ["ollama", "ollama", "http://127.0.0.1"]
        ]
      )
      assert.deepStrictEqual(about(yield* from({ OPENAI_BASE_URL: "http://host/v1 " })), [
        ["openai", "openai", "http://host/v1"],
        ["ollama", "ollama", "http://localhost:11434"]
      ])
    }))

  it.effect("sends the key that the environment gives", () =>
    Effect.gen(function*() {
      const openai = yield* serve(OpenAiServer.routes({ models: ["echo"], key: "from the environment" }))
      const models = Effect.gen(function*() {
        const [endpoint] = yield* (yield* Endpoints.Endpoints).list
        return yield* endpoint!.backend.models
      })
      const run = (env: Record<string, string>) =>
        Effect.provide(
          models,
          Endpoints.layerConfig().pipe(
            Layer.provide([client, ConfigProvider.layer(ConfigProvider.fromUnknown(env))])
          )
        )
      const address = { OPENAI_BASE_URL: openai.url }
      const found = yield* run({ ...address, OPENAI_API_KEY: " from the environment " })
      assert.deepStrictEqual(found.map(({ id }) => id), ["echo"])
      assert.isTrue(Exit.isFailure(yield* Effect.exit(run({ ...address, OPENAI_API_KEY: "" }))))
    }))

  it.effect("fails where the environment cannot be read", () =>
    Effect.gen(function*() {
      const broken = ConfigProvider.make(() =>
        Effect.fail(new ConfigProvider.SourceError({ message: "no environment" }))
      )
      const error = yield* listed(Layer.provide(Endpoints.layerConfig(), client)).pipe(
        Effect.provide(ConfigProvider.layer(broken)),
        Effect.flip
      )
      assert.instanceOf(error, Config.ConfigError)
    }))
})

describe("Endpoints.combine", () => {
  const layer = (...names: ReadonlyArray<readonly [string, string]>) =>
    Layer.succeed(Endpoints.Endpoints, {
      list: Effect.succeed(
        names.map(([name, provider]) => ({ name, provider, address: "here", backend: { models: Effect.succeed([]) } }))
      )
    })

  it.effect("has the endpoints of all, in their order, and each name once", () =>
    Effect.gen(function*() {
      const all = Endpoints.combine(layer(["b", "1"], ["a", "1"]), layer(), layer(["c", "3"], ["a", "3"]))
      assert.deepStrictEqual((yield* listed(all)).map(({ name, provider }) => name + provider), ["b1", "a1", "c3"])
    }))

  it.effect("fails as the first of them does", () =>
    Effect.gen(function*() {
      const error = new Endpoints.EndpointsError({ cause: "out of order" })
      const broken = Layer.succeed(Endpoints.Endpoints, { list: Effect.fail(error) })
      assert.strictEqual(yield* Effect.flip(listed(Endpoints.combine(layer(["a", "1"]), broken))), error)
      assert.strictEqual(error.message, "The endpoints could not be listed: no reason is known")
    }))
})
