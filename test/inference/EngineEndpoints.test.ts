import { assert, describe, it } from "@effect/vitest"
import { Effect, Layer } from "effect"
import { SqlClient } from "effect/sql"
import * as Engine from "../../src/engine/index.ts"
import * as EventPublisher from "../../src/EventPublisher.ts"
import * as Inference from "../../src/inference/index.ts"
import * as Model from "../../src/model/index.ts"
import { behave, layer, processes, until } from "../engine/world.ts"

const world = Layer.merge(layer, EventPublisher.layerNoop)

const vllm = { name: "vllm", config: { model: "acme/tiny" } } as const

describe("the endpoints of engines", () => {
  it.effect("are there for as long as an engine runs, and others after a restart", () =>
    Effect.gen(function*() {
      const { list } = yield* Inference.Endpoints
      const ofEngine = Effect.map(list, (endpoints) => endpoints.find(({ name }) => name === "engine:vllm"))
      yield* behave("vllm", { models: ["tiny"] })
      yield* Engine.install({ name: "vllm" })
      assert.isUndefined(yield* ofEngine)
      yield* Engine.start(vllm)
      const first = yield* ofEngine
      assert.deepStrictEqual([first?.name, first?.provider], ["engine:vllm", "vllm"])
      assert.strictEqual(yield* ofEngine, first)
      const { models } = yield* Inference.models()
      assert.deepStrictEqual(models.filter(({ provider }) => provider === "vllm").map(({ name }) => name), ["tiny"])
      yield* Engine.restart({ name: "vllm" })
      const second = yield* ofEngine
      assert.isDefined(second)
      assert.notStrictEqual(second, first)
      yield* Engine.stop({ name: "vllm" })
      assert.isUndefined(yield* ofEngine)
    }).pipe(Effect.provide(world)))
})

/** The process that answers. */
const ask = (model: string) =>
  Effect.map(
    Inference.chat({ model, messages: [{ role: "user", content: "who are you?" }] }),
    ({ content }) => Number(content)
  )

describe("an engine that runs", () => {
  it.effect("answers for the model it was started for, until it ends, and in its new place after a restart", () =>
    Effect.gen(function*() {
      const { model_id } = yield* Model.create({ name: "My Tiny" })
      yield* behave("tiny", { models: ["/mnt/weights"] })
      assert.strictEqual((yield* Effect.flip(ask("my tiny")))._tag, "InferenceModelNotLoaded")
      yield* Engine.start({ name: "tiny", model_id })
      const [first] = yield* processes
      // By the name and the id in the register, and by its own.
      assert.deepStrictEqual([yield* ask("my tiny"), yield* ask(model_id), yield* ask("/mnt/weights")], [
        first,
        first,
        first
      ])
      const { models } = yield* Inference.models()
      assert.deepStrictEqual(
        models.map(({ id, name, provider }) => ({ id, name, provider })),
        [{ id: "/mnt/weights", name: "My Tiny", provider: "transformers" }]
      )
      yield* Engine.restart({ name: "tiny" })
      const second = (yield* processes).at(-1)
      assert.notStrictEqual(second, first)
      assert.strictEqual(yield* ask("my tiny"), second)
      yield* Engine.stop({ name: "tiny" })
      const stopped = yield* Effect.flip(ask("my tiny"))
      assert.include(["InferenceModelNotLoaded", "InferenceEngineError"], stopped._tag)
      assert.strictEqual((yield* Effect.flip(ask("my tiny")))._tag, "InferenceModelNotLoaded")
    }).pipe(Effect.provide(world)))

  it.effect("is told by its name when it dies, and is then no longer there", () =>
    Effect.gen(function*() {
      const { model_id } = yield* Model.create({ name: "tiny" })
      yield* behave("tiny")
      yield* Engine.start({ name: "tiny", model_id })
      const pid = (yield* processes)[0]!
      assert.strictEqual(yield* ask("tiny"), pid)
      process.kill(pid, "SIGKILL")
      const { live } = yield* Engine.Engines
      yield* until(Effect.map(live, (engines) => engines.length === 0))
      const error = yield* Effect.flip(ask("tiny"))
      assert(error._tag === "InferenceEngineError")
      assert.deepStrictEqual([error.endpoint, error.retryable], ["engine:tiny", true])
      const gone = yield* Effect.flip(ask("tiny"))
      assert.strictEqual(gone._tag, "InferenceModelNotLoaded", error.message + gone.message)
    }).pipe(Effect.provide(world)))

  it.effect("cannot be found where the records of engines cannot be read", () =>
    Effect.gen(function*() {
      const sql = yield* SqlClient.SqlClient
      yield* sql`DROP TABLE effect_units_engines`
      assert.strictEqual((yield* Effect.flip(ask("tiny")))._tag, "InternalError")
      assert.strictEqual((yield* Effect.flip(Inference.models()))._tag, "InternalError")
    }).pipe(Effect.provide(world)))
})
