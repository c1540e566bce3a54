import { assert, describe, it } from "@effect/vitest"
import { Effect, Layer } from "effect"
import * as Engine from "../../src/engine/index.ts"
import * as EventPublisher from "../../src/EventPublisher.ts"
import * as Inference from "../../src/inference/index.ts"
import { behave, layer } from "../engine/world.ts"

const vllm = { name: "vllm", config: { model: "acme/tiny" } } as const

describe("the endpoints of engines", () => {
  it.effect("are there for as long as an engine runs, and others after a restart", () =>
    Effect.gen(function*() {
      const { list } = yield* Inference.Endpoints
      const ofEngine = Effect.map(list, (endpoints) => endpoints.find(({ name }) => name === "vllm"))
      yield* behave("vllm", { models: ["tiny"] })
      yield* Engine.install({ name: "vllm" })
      assert.isUndefined(yield* ofEngine)
      yield* Engine.start(vllm)
      const first = yield* ofEngine
      assert.deepStrictEqual([first?.name, first?.provider], ["vllm", "vllm"])
      assert.strictEqual(yield* ofEngine, first)
      const { models } = yield* Inference.models()
      assert.deepStrictEqual(models.filter(({ provider }) => provider === "vllm").map(({ name }) => name), ["tiny"])
      yield* Engine.restart({ name: "vllm" })
      const second = yield* ofEngine
      assert.isDefined(second)
      assert.notStrictEqual(second, first)
      yield* Engine.stop({ name: "vllm" })
      assert.isUndefined(yield* ofEngine)
    }).pipe(Effect.provide(Layer.merge(layer, EventPublisher.layerNoop))))
})
