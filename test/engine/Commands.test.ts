import { assert, describe, it } from "@effect/vitest"
import { Effect, Fiber, Layer } from "effect"
import { TestClock } from "effect/testing"
import * as path from "node:path"
import * as Engine from "../../src/engine/index.ts"
import * as EventPublisher from "../../src/EventPublisher.ts"
import * as Testing from "../../src/testing/index.ts"
import { behave, layer, noted, runs, signal, World } from "./world.ts"

const silent = EventPublisher.layerNoop

const vllm = { name: "vllm", config: { model: "acme/tiny" } } as const

/** vLLM on the PATH and in the register, behaving like this. */
const installed = (behaviour: Parameters<typeof behave>[1] = {}) =>
  Effect.andThen(behave("vllm", behaviour), Engine.install({ name: "vllm" }))

const statusOf = (name: string) => Effect.map(Engine.get({ name }), ({ status }) => status)

/** The domain events so far: their types, with the phases of progress. */
const told = Effect.map(
  Testing.TestEvents.use(({ domainEvents }) => domainEvents),
  (events) => events.map(({ payload, type }) => [type, (payload as { phase?: string }).phase].filter(Boolean).join(" "))
)

describe("engine.start", () => {
  it.effect("ends once the engine is healthy, and tells how far it is", () =>
    Effect.gen(function*() {
      yield* installed()
      const { process_id, status } = yield* Engine.start(vllm)
      assert.strictEqual(status, "running")
      assert.isTrue(runs(Number(process_id)))
      const { models, ...engine } = yield* Engine.get({ name: "vllm" })
      const { elsewhere } = yield* World
      assert.deepStrictEqual(models, ["tiny"])
      assert.deepStrictEqual(engine, {
        name: "vllm",
        type: "vllm",
        status: "running",
        version: "0.6.3",
        capabilities: ["chat", "completion"],
        process_id,
        path: path.join(elsewhere, "bin", "vllm")
      })
      assert.deepStrictEqual(yield* told, [
        "engine.start_progress starting",
        "engine.start_progress loading",
        "engine.start_progress ready",
        "engine.started"
      ])
    }).pipe(Effect.provide(Layer.merge(layer, Testing.layerTest))))

  it.effect("waits for health, not for the process", () =>
    Effect.gen(function*() {
      yield* installed({ readyAfter: "go" })
      const starting = yield* Effect.forkChild(Engine.start(vllm))
      yield* noted(/^\d+ \d+$/)
      for (let i = 0; i < 20; i++) yield* TestClock.adjust("1 second")
      assert.strictEqual(yield* statusOf("vllm"), "starting")
      yield* signal("go")
      assert.strictEqual((yield* Fiber.join(starting)).status, "running")
    }).pipe(Effect.provide(Layer.merge(layer, silent))))
})
