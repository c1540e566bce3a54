import * as NodeServices from "@effect/platform-node/NodeServices"
import { assert, describe, it } from "@effect/vitest"
import { Effect, Fiber, Layer } from "effect"
import { TestClock } from "effect/testing"
import * as Sqlite from "../../src/backends/Sqlite.ts"
import * as EngineStore from "../../src/engine/EngineStore.ts"

const layer = EngineStore.layer().pipe(
  Layer.provide(Sqlite.layer({ filename: ":memory:" })),
  Layer.provide(NodeServices.layer)
)

const vllm = { name: "vllm", type: "vllm", version: "0.6.3", path: "/bin/vllm", runtime: "process" } as const
const launch = { id: "engine-1", host: "127.0.0.1", port: 8000 } as const

describe("EngineStore", () => {
  it.effect("makes one record of a name, whoever asks", () =>
    Effect.gen(function*() {
      const store = yield* EngineStore.EngineStore
      const all = yield* Effect.all(Array.from({ length: 5 }, () => store.register(vllm)), { concurrency: "unbounded" })
      assert.strictEqual(all.filter(({ created }) => created).length, 1)
      assert.strictEqual(new Set(all.map(({ engine }) => engine.id)).size, 1)
    }).pipe(Effect.provide(layer)))

  it.effect("does not show what was never installed", () =>
    Effect.gen(function*() {
      const store = yield* EngineStore.EngineStore
      const { engine } = yield* store.register({ ...vllm, path: "" })
      assert.strictEqual((yield* Effect.flip(store.get("vllm")))._tag, "EngineNotFound")
      const installing = yield* Effect.forkChild(store.during(engine, "install", () => Effect.never))
      while ((yield* Effect.exit(store.get("vllm")))._tag === "Failure") yield* Effect.yieldNow
      assert.deepStrictEqual((yield* store.list({})).map(({ status }) => status), ["installing"])
      yield* Fiber.interrupt(installing)
      assert.deepStrictEqual(yield* store.list({}), [])
    }).pipe(Effect.provide(layer)))

  it.effect("shows the work that is under way, by the status that the record has", () =>
    Effect.gen(function*() {
      const store = yield* EngineStore.EngineStore
      const { engine } = yield* store.register(vllm)
      const shown: Array<string> = []
      for (const status of ["stopped", "running"] as const) {
        yield* store.change(engine.id, { status })
        for (const operation of ["start", "stop", "restart", "install"] as const) {
          const now = yield* store.during(engine, operation, () => store.get("vllm"))
          shown.push(`${status}, ${operation}: ${now.status}`)
        }
      }
      assert.deepStrictEqual(shown, [
        "stopped, start: starting",
        "stopped, stop: stopping",
        "stopped, restart: starting",
        "stopped, install: installing",
        "running, start: starting",
        "running, stop: stopping",
        "running, restart: stopping",
        "running, install: running"
      ])
      assert.strictEqual((yield* store.get("vllm")).status, "running")
    }).pipe(Effect.provide(layer)))

  it.effect("settles a record of this launch only, while nobody works on it", () =>
    Effect.gen(function*() {
      const store = yield* EngineStore.EngineStore
      const { engine } = yield* store.register(vllm)
      yield* store.change(engine.id, { status: "running", launch, error: "before" })
      assert.isFalse(yield* store.settle(engine.id, "engine-2", { status: "error" }))
      const died = { status: "error", launch: undefined, error: "died" } as const
      assert.isFalse(yield* store.during(engine, "stop", () => store.settle(engine.id, launch.id, died)))
      assert.isTrue(yield* store.settle(engine.id, launch.id, died))
      assert.isFalse(yield* store.settle(engine.id, launch.id, died))
      const { error, launch: none, status } = yield* store.get("vllm")
      assert.deepStrictEqual([error, none, status], ["died", undefined, "error"])
    }).pipe(Effect.provide(layer)))

  it.effect("keeps an engine to the work on it for as long as that goes on", () =>
    Effect.gen(function*() {
      const store = yield* EngineStore.EngineStore
      const { engine } = yield* store.register(vllm)
      const working = yield* Effect.forkChild(store.during(engine, "start", () => Effect.never))
      while ((yield* store.get("vllm")).status !== "starting") yield* Effect.yieldNow
      assert.strictEqual((yield* Effect.flip(store.during(engine, "stop", () => Effect.void)))._tag, "Busy")
      // It goes on for as long as its program does.
      yield* TestClock.adjust("5 minutes")
      assert.strictEqual((yield* store.get("vllm")).status, "starting")
      yield* Fiber.interrupt(working)
      assert.strictEqual((yield* store.get("vllm")).status, "stopped")
    }).pipe(Effect.provide(layer)))
})
