import { assert, describe, it } from "@effect/vitest"
import { ConfigProvider, Effect, Layer, type Scope } from "effect"
import { TestClock } from "effect/testing"
import * as fs from "node:fs"
import * as path from "node:path"
import * as EventPublisher from "../../src/EventPublisher.ts"
import { layerEmbedded } from "../../src/node.ts"
import * as Resource from "../../src/resource/index.ts"
import * as Testing from "../../src/testing/index.ts"
import { rtx4090 } from "../device/cards.ts"
import { GiB, layer, setMachine, temporaryDirectory, World } from "./world.ts"

type Services = Layer.Success<typeof layer> | EventPublisher.EventPublisher | Testing.TestEvents

/** A test on a host of its own. */
const test = <E>(name: string, effect: Effect.Effect<void, E, Services | Scope.Scope>) =>
  it.effect(name, () => effect.pipe(Effect.provide(Layer.merge(layer, Testing.layerTest))))

const llama = { name: "llama", type: "inference_native", memory_bytes: GiB } as const

describe("resource.status", () => {
  test(
    "tells what the host has, and its slots by creation",
    Effect.gen(function*() {
      const empty = yield* Resource.status()
      assert.deepStrictEqual(empty, {
        memory: { total: 100 * GiB, used: 0, available: 100 * GiB },
        storage: { total: 1000, used: 600, available: 300 },
        slots: [],
        pressure: "low"
      })
      const names = ["c", "a", "b"]
      for (const name of names) {
        yield* Resource.allocate({ ...llama, name })
        yield* TestClock.adjust("1 second")
      }
      assert.deepStrictEqual((yield* Resource.status()).slots.map(({ name }) => name), names)
    })
  )

  test(
    "warns once each time that the pressure has come to high or critical",
    Effect.gen(function*() {
      const { domainEvents } = yield* Testing.TestEvents
      const warnings: Array<unknown> = []
      for (const used of [10, 75, 80, 90, 99, 80, 50, 80, 10, 95]) {
        yield* setMachine({ used: used * GiB })
        const before = (yield* domainEvents).length
        const { pressure } = yield* Resource.status()
        warnings.push([pressure, ...(yield* domainEvents).slice(before).map(({ payload }) => payload)])
      }
      const high = { pressure: "high", threshold: 0.75 }
      const critical = { pressure: "critical", threshold: 0.9 }
      assert.deepStrictEqual(warnings, [
        ["low"],
        ["high", high],
        ["high"],
        ["critical", critical],
        ["critical"],
        ["high", high],
        ["medium"],
        ["high", high],
        ["low"],
        ["critical", critical]
      ])
    })
  )
})

describe("resource.allocations", () => {
  test(
    "has those that match all that is asked for, with what is known of their use",
    Effect.gen(function*() {
      const { machine } = yield* World
      const one = yield* Resource.allocate(llama)
      yield* TestClock.adjust("1 second")
      const two = yield* Resource.allocate({
        ...llama,
        name: "other",
        type: "docker_container",
        gpu_fraction: 0.25,
        priority: 7
      })
      machine.usage.set(one.slot_id, 7)
      const common = { gpu_fraction: 0, priority: 5, status: "active" }
      const first = { ...one, name: "llama", type: "inference_native", memory_used: 7, ...common }
      const second = {
        ...two,
        name: "other",
        type: "docker_container",
        memory_used: GiB,
        ...common,
        gpu_fraction: 0.25,
        priority: 7
      }
      const found = (filter: Parameters<typeof Resource.allocations>[0]) =>
        Effect.map(Resource.allocations(filter), ({ allocations }) => allocations)
      assert.deepStrictEqual<unknown>(yield* found({}), [first, second])
      assert.deepStrictEqual<unknown>(yield* found({ type: "docker_container" }), [second])
      assert.deepStrictEqual<unknown>(yield* found({ slot_id: one.slot_id, type: "inference_native" }), [first])
      assert.deepStrictEqual(yield* found({ slot_id: one.slot_id, type: "docker_container" }), [])
      assert.deepStrictEqual(yield* found({ slot_id: "slot-00000000" }), [])
      assert.deepStrictEqual(yield* found({ type: "system_service" }), [])
    })
  )
})

describe("resource.can_allocate", () => {
  test(
    "says yes or no, and why",
    Effect.gen(function*() {
      const ask = Resource.canAllocate
      assert.deepStrictEqual(yield* ask({ memory_bytes: 54 * GiB }), { can_allocate: true })
      const never = { can_allocate: false, reason: "pool exhausted" } as const
      assert.deepStrictEqual(yield* ask({ memory_bytes: 54 * GiB + 1 }), never)
      assert.deepStrictEqual(yield* ask({ memory_bytes: 19 * GiB, type: "docker_container" }), never)
      yield* Resource.allocate({ ...llama, memory_bytes: 54 * GiB, gpu_fraction: 1 })
      // Another pool has room.
      assert.deepStrictEqual(yield* ask({ memory_bytes: 18 * GiB }), { can_allocate: true })
      assert.deepStrictEqual(yield* ask({ memory_bytes: 1, type: "inference_native" }), never)
      assert.deepStrictEqual(yield* ask({ memory_bytes: 1, type: "docker_container", gpu_fraction: 0.1 }), {
        can_allocate: false,
        reason: "insufficient gpu"
      })
      // A priority over 100 is one of 100.
      for (const priority of [6, 100, 1000]) {
        assert.deepStrictEqual(yield* ask({ memory_bytes: GiB, type: "inference_native", priority }), {
          can_allocate: true,
          reason: "would require preemption"
        })
      }
      yield* setMachine({ used: 89 * GiB })
      assert.deepStrictEqual(yield* ask({ memory_bytes: 2 * GiB }), {
        can_allocate: false,
        reason: "insufficient memory"
      })
      yield* setMachine({ used: 90 * GiB })
      assert.deepStrictEqual(yield* ask({ memory_bytes: 1 }), { can_allocate: false, reason: "pressure critical" })
    })
  )
})

describe("on this host", () => {
  const embedded = (directory: string) => Layer.merge(layerEmbedded({ directory }), EventPublisher.layerNoop)

  it.effect("memory, storage and pools are what there is, and slots outlive the services", () =>
    Effect.gen(function*() {
      const directory = yield* temporaryDirectory
      const { slot_id } = yield* Effect.gen(function*() {
        const { memory, pressure, slots, storage } = yield* Resource.status()
        for (const { available, total, used } of [memory, storage]) {
          assert.isAbove(total, 0)
          assert.isAtMost(used + available, total)
        }
        assert.deepStrictEqual(slots, [])
        assert.include(["low", "medium", "high", "critical"], pressure)
        const { pools, reserved, total } = yield* Resource.budget()
        assert.strictEqual(total, memory.total)
        assert.isAtMost(Object.values(pools).reduce((sum, pool) => sum + pool.total, reserved), total)
        return yield* Resource.allocate({ ...llama, memory_bytes: 1, priority: 100 })
      }).pipe(Effect.provide(embedded(directory)))
      const { allocations } = yield* Effect.provide(Resource.allocations(), embedded(directory))
      assert.deepStrictEqual(
        allocations.map(({ memory_used, slot_id, status }) => ({ memory_used, slot_id, status })),
        [
          { memory_used: 1, slot_id, status: "active" }
        ]
      )
    }))

  it.effect("GPUs are those that the device domain finds, and memory is divided as the environment says", () =>
    Effect.gen(function*() {
      const directory = yield* temporaryDirectory
      const program = path.join(directory, "nvidia-smi")
      fs.symlinkSync(path.join(import.meta.dirname, "..", "device", "nvidia-smi"), program)
      const other = {
        ...rtx4090,
        index: "1",
        uuid: "GPU-00000000-0000-0000-0000-000000000001",
        "pci.bus_id": "00000000:02:00.0"
      }
      fs.writeFileSync(path.join(directory, "state.json"), JSON.stringify({ gpus: [rtx4090, other] }))
      yield* Effect.gen(function*() {
        const ask = (gpu_fraction: number) => Resource.canAllocate({ memory_bytes: 1, gpu_fraction, priority: 100 })
        const most = { ...llama, memory_bytes: 1, gpu_fraction: 0.75, priority: 100 }
        yield* Resource.allocate(most)
        yield* Resource.allocate(most)
        assert.deepStrictEqual(yield* ask(0.5), { can_allocate: true })
        assert.deepStrictEqual(yield* ask(0.51), { can_allocate: false, reason: "insufficient gpu" })
        const { pools } = yield* Resource.budget()
        assert.strictEqual(pools.system.total, 0)
        assert.approximately(pools.inference.total, pools.container.total, 1)
      }).pipe(
        Effect.provide(embedded(directory)),
        Effect.provideService(
          ConfigProvider.ConfigProvider,
          ConfigProvider.fromUnknown({
            NVIDIA_SMI: program,
            RESOURCE_INFERENCE_SHARE: "0.5",
            RESOURCE_CONTAINER_SHARE: "0.5"
          })
        )
      )
    }))
})
