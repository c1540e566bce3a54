import { assert, describe, it } from "@effect/vitest"
import { Effect, Layer } from "effect"
import * as Engine from "../../src/engine/index.ts"
import * as EventPublisher from "../../src/EventPublisher.ts"
import { freePort } from "../fixtures/ownServer.ts"
import * as world from "./world.ts"
import { behave, runs, until } from "./world.ts"

const layer = Layer.merge(world.layer, EventPublisher.layerNoop)

const both = Effect.gen(function*() {
  yield* behave("vllm", { models: ["a", "b"], contextLength: 4096 })
  yield* behave("ollama", { models: ["llama3:8b"], version: "0.5.1" })
  yield* Engine.install({ name: "vllm" })
  yield* Engine.install({ name: "ollama" })
})

const namesOf = (input: Parameters<typeof Engine.list>[0]) =>
  Effect.map(Engine.list(input), ({ items, total }) => [items.map(({ name }) => name), total] as const)

describe("engine.list", () => {
  it.effect("goes by creation, and pages through what matches", () =>
    Effect.gen(function*() {
      yield* both
      yield* Engine.start({ name: "vllm", config: { model: "acme/tiny" } })
      const [all, total] = yield* namesOf({})
      assert.sameMembers([...all], ["tiny", "vllm", "ollama"])
      assert.strictEqual(total, 3)
      for (const offset of [0, 1, 2, 3]) {
        assert.deepStrictEqual(yield* namesOf({ limit: 1, offset }), [all.slice(offset, offset + 1), 3])
      }
      assert.deepStrictEqual(yield* namesOf({ status: "running" }), [["vllm"], 1])
      assert.deepStrictEqual(yield* namesOf({ type: "ollama" }), [["ollama"], 1])
      assert.deepStrictEqual(yield* namesOf({ type: "ollama", status: "running" }), [[], 0])
    }).pipe(Effect.provide(layer)))

  it.effect("tells what runs in reality", () =>
    Effect.gen(function*() {
      yield* both
      const { process_id } = yield* Engine.start({ name: "vllm", config: { model: "acme/tiny" } })
      process.kill(Number(process_id), "SIGKILL")
      yield* until(Effect.sync(() => !runs(Number(process_id))))
      assert.deepStrictEqual(yield* namesOf({ status: "running" }), [[], 0])
      assert.deepStrictEqual(yield* namesOf({ status: "error" }), [["vllm"], 1])
    }).pipe(Effect.provide(layer)))
})

describe("engine.get", () => {
  it.effect("asks an engine that runs for its models, in its own way", () =>
    Effect.gen(function*() {
      yield* both
      assert.deepStrictEqual((yield* Engine.get({ name: "ollama" })).models, [])
      yield* Engine.start({ name: "ollama", config: { port: yield* freePort } })
      const { capabilities, models, version } = yield* Engine.get({ name: "ollama" })
      assert.deepStrictEqual(models, ["llama3:8b"])
      assert.deepStrictEqual(capabilities, ["chat", "completion", "embedding", "vision", "tools"])
      assert.strictEqual(version, "0.5.1")
    }).pipe(Effect.provide(layer)))
})

describe("engine.features", () => {
  it.effect("are those of the type, and the context that a running engine has", () =>
    Effect.gen(function*() {
      yield* both
      const { features } = Engine.Recipe.recipes.vllm
      assert.strictEqual(features.max_context_length, 128_000)
      assert.deepStrictEqual(yield* Engine.features({ name: "vllm" }), features)
      yield* Engine.start({ name: "vllm", config: { model: "acme/tiny" } })
      assert.deepStrictEqual(yield* Engine.features({ name: "vllm" }), { ...features, max_context_length: 4096 })
      assert.deepStrictEqual(yield* Engine.features({ name: "ollama" }), Engine.Recipe.recipes.ollama.features)
    }).pipe(Effect.provide(layer)))
})
