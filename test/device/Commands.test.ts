import { assert, describe, it } from "@effect/vitest"
import { Effect, Fiber, Layer, type Scope } from "effect"
import * as Device from "../../src/device/index.ts"
import type { EventPublisher } from "../../src/EventPublisher.ts"
import * as Testing from "../../src/testing/index.ts"
import { InvalidInput } from "../../src/UnitError.ts"
import { catalog } from "../../src/units.ts"
import { gb10, h100Mig, oldDriver, rtx4090, secondCard } from "./cards.ts"
import { layer, type State, World } from "./world.ts"

type Services = Layer.Success<typeof layer> | EventPublisher | Testing.TestEvents

/** A test on a host of its own. */
const test = <E>(name: string, effect: Effect.Effect<void, E, Services | Scope.Scope>) =>
  it.effect(name, () => effect.pipe(Effect.provide(Layer.merge(layer, Testing.layerTest))))

const set = (state: Partial<State>) => Effect.map(World, (world) => world.set({ ...world.state(), ...state }))

const told = Effect.gen(function*() {
  const events = yield* (yield* Testing.TestEvents).domainEvents
  return events.map(({ payload, type }) => [type, (payload as { device: { id: string } }).device.id])
})

const id = (text: string) => Device.DeviceId.make(text)

const MiB = 1024 * 1024

describe("input", () => {
  const refused: ReadonlyArray<readonly [name: string, input: unknown, ...paths: ReadonlyArray<string>]> = [
    ["detect", "all", ""],
    ["set_power_limit", {}, "device_id", "limit_watts"],
    ["set_power_limit", 7, ""],
    ["set_power_limit", { device_id: "gpu-0", limit_watts: 0 }, "limit_watts"],
    ["set_power_limit", { device_id: "gpu-0", limit_watts: -1 }, "limit_watts"],
    ["set_power_limit", { device_id: "gpu-0", limit_watts: "300" }, "limit_watts"],
    ["set_power_limit", { device_id: "gpu-0", limit_watts: null }, "limit_watts"],
    ["set_power_limit", { device_id: "gpu-0", limit_watts: Infinity }, "limit_watts"],
    ["set_power_limit", { device_id: "", limit_watts: 300 }, "device_id"]
  ]
  test(
    "that does not fit is refused, before the program is run",
    Effect.gen(function*() {
      for (const [name, input, ...paths] of refused) {
        const error = yield* Effect.flip(catalog.execute(`device.${name}`, input))
        assert.instanceOf(error, InvalidInput, `${name} ${JSON.stringify(input)}`)
        assert.deepStrictEqual(error.issues.map(({ path }) => path), paths)
      }
      assert.deepStrictEqual((yield* World).calls(), [])
    })
  )
})

describe("device.detect", () => {
  const cpu = {
    id: id("cpu-0"),
    name: "Intel(R) Xeon(R)",
    vendor: "GenuineIntel",
    type: "cpu",
    memory: 32 * 1024 * MiB
  } as const

  test(
    "finds GPUs, then the processor, and tells of each once",
    Effect.gen(function*() {
      yield* set({ gpus: [h100Mig, secondCard(gb10)] })
      const { devices: [first, second, last, ...rest] } = yield* Device.detect()
      const gpu = { vendor: "NVIDIA", type: "gpu" } as const
      assert.deepStrictEqual(first, {
        ...gpu,
        id: id("gpu-0"),
        name: "NVIDIA H100 80GB HBM3",
        memory: 81559 * MiB,
        architecture: "Hopper"
      })
      // It has the processor's memory.
      const unified = {
        ...gpu,
        id: id("gpu-1"),
        name: "NVIDIA GB10",
        memory: 32 * 1024 * MiB,
        architecture: "Blackwell"
      }
      assert.deepStrictEqual(second, unified)
      assert.deepInclude(last, cpu)
      assert.deepStrictEqual(rest, [])
      const seen = ["gpu-0", "gpu-1", "cpu-0"].map((id) => ["device.detected", id])
      assert.deepStrictEqual(yield* told, seen)
      yield* Device.detect()
      assert.deepStrictEqual(yield* told, seen)
      // Another card in the same place, and the first one in another.
      yield* set({ gpus: [rtx4090, { ...h100Mig, index: "1" }] })
      yield* Device.detect()
      assert.deepStrictEqual(yield* told, [...seen, ["device.detected", "gpu-0"]])
    })
  )

  test(
    "answers without GPUs, without their driver, and where it fails",
    Effect.gen(function*() {
      const { remove } = yield* World
      const only = Effect.map(Device.detect(), ({ devices }) => devices.map(({ id }) => id))
      yield* set({ gpus: [] })
      assert.deepStrictEqual(yield* only, ["cpu-0"])
      for (const code of [9, 12, 15, 255]) {
        yield* set({ gpus: [rtx4090], says: { code, stdout: "said\n" } })
        assert.deepStrictEqual(yield* only, ["cpu-0"])
      }
      remove("bin/nvidia-smi")
      assert.deepStrictEqual(yield* only, ["cpu-0"])
      // The GPU is there, and the processor is not to be read.
      remove("proc/meminfo")
      const error = yield* Effect.flip(Device.detect())
      assert.instanceOf(error, Device.DeviceUnreachable)
      assert.match(error.message, /^The device cpu-0 cannot be reached\. .*proc\/meminfo cannot be read/)
    })
  )

  test(
    "finds GPUs where the processor cannot be read",
    Effect.gen(function*() {
      const { remove } = yield* World
      remove("proc/meminfo")
      assert.deepStrictEqual((yield* Device.detect()).devices.map(({ id }) => id), ["gpu-0"])
    })
  )

  const named: ReadonlyArray<readonly [name: string, capability: string | undefined, architecture: string]> = [
    ["NVIDIA A100-SXM4-40GB", "8.0", "Ampere"],
    ["NVIDIA L4", "8.9", "Ada Lovelace"],
    ["NVIDIA B200", "10.0", "Blackwell"],
    ["Tesla T4", "7.5", "Turing"],
    ["Tesla T4", undefined, "Turing"],
    ["GeForce RTX 3090", undefined, "Ampere"],
    ["Tesla P100-PCIE-16GB", undefined, "Pascal"],
    ["Something new", "99.9", "Unknown"],
    ["Something old", undefined, "Unknown"]
  ]
  test(
    "names the architecture by the compute capability, or else by the name",
    Effect.gen(function*() {
      for (const [name, capability, architecture] of named) {
        yield* set({ gpus: [{ ...rtx4090, name, "compute_cap": capability ?? "[N/A]" }] })
        assert.strictEqual((yield* Device.detect()).devices[0]?.architecture, architecture, name)
      }
      yield* set({ gpus: [oldDriver] })
      assert.strictEqual((yield* Device.detect()).devices[0]?.architecture, "Volta")
    })
  )
})

describe("device.set_power_limit", () => {
  const limitOf = Effect.map(World, (world) => world.state().gpus.map((gpu) => gpu["power.limit"]))
  const setTo = (limit_watts: number, device_id = "gpu-0") => Device.setPowerLimit({ device_id, limit_watts })

  test(
    "sets a limit within the card's bounds, by any of its names",
    Effect.gen(function*() {
      yield* set({ gpus: [rtx4090, secondCard(rtx4090)] })
      const names = ["gpu-1", "nvidia-1", "1", secondCard(rtx4090)["uuid"]!, "00000000:02:00.0"]
      for (const [index, name] of names.entries()) {
        assert.deepStrictEqual(yield* setTo(200 + index, name), { success: true })
        assert.deepStrictEqual(yield* limitOf, ["450.00", `${200 + index}.00`])
      }
      yield* setTo(250.9, "gpu-1")
      assert.deepStrictEqual(yield* limitOf, ["450.00", "250.90"])
      for (const bound of [150, 600]) yield* setTo(bound)
    })
  )

  test(
    "is refused beyond them, with the bounds, and nothing is set",
    Effect.gen(function*() {
      for (const limit_watts of [149.9, 600.1]) {
        const error = yield* Effect.flip(setTo(limit_watts))
        const bounds = { min_watts: 150, max_watts: 600 }
        assert.deepStrictEqual(error, new Device.InvalidPowerLimit({ device_id: "gpu-0", limit_watts, ...bounds }))
        assert.match(error.message, /Choose 150 to 600 W$/)
        assert.strictEqual(error.code, "00009")
      }
      const { calls } = yield* World
      assert.isFalse(calls().some((call) => call.includes("-pl")))
    })
  )

  test(
    "is not supported by processors, and by cards without a limit",
    Effect.gen(function*() {
      yield* set({ gpus: [gb10] })
      for (const device_id of ["gpu-0", "cpu-0"]) {
        const error = yield* Effect.flip(setTo(300, device_id))
        assert.deepStrictEqual(error, new Device.InvalidPowerLimit({ device_id, limit_watts: 300 }))
        assert.match(error.message, /not supported/)
      }
      yield* set({ gpus: [rtx4090], says: { code: 3, stdout: "not supported\n", only: "-pl" } })
      assert.deepStrictEqual(
        yield* Effect.flip(setTo(300)),
        new Device.InvalidPowerLimit({ device_id: "gpu-0", limit_watts: 300 })
      )
    })
  )

  test(
    "needs root",
    Effect.gen(function*() {
      yield* set({ uid: 1000 })
      const error = yield* Effect.flip(setTo(300))
      assert.instanceOf(error, Device.Unauthorized)
      assert.match(error.message, /gpu-0 was not changed\. .*Insufficient Permissions\. Run as root$/)
      assert.deepStrictEqual(yield* limitOf, ["450.00"])
    })
  )

  test(
    "needs a device that is there, and named by what could be one",
    Effect.gen(function*() {
      const { calls } = yield* World
      for (const device_id of ["gpu-1", "7", "GPU-00000000-0000-0000-0000-000000000000", "0000:09:00.0"]) {
        assert.deepStrictEqual(yield* Effect.flip(setTo(300, device_id)), new Device.DeviceNotFound({ device_id }))
      }
      assert.strictEqual(calls().length, 4)
      for (const device_id of ["-pl", "--help", "gpu-0,1", "gpu--1", "0; reboot", "cpu-1", "GPU-", "tpu-0", " 0"]) {
        assert.deepStrictEqual(yield* Effect.flip(setTo(300, device_id)), new Device.DeviceNotFound({ device_id }))
      }
      assert.strictEqual(calls().length, 4)
    })
  )

  test(
    "fails where the card does not take what it was told, or is lost",
    Effect.gen(function*() {
      yield* set({ keepsLimit: true })
      const error = yield* Effect.flip(setTo(300))
      assert.instanceOf(error, Device.DeviceUnreachable)
      assert.deepStrictEqual([error.reason, error.retryable], ["NotApplied", true])
      assert.match(error.message, /told to take 300 W, and reports a limit of 450 W/)
      // Cards round: half a watt is none.
      assert.deepStrictEqual(yield* setTo(450.5), { success: true })
      yield* set({ gpus: [{ ...rtx4090, "power.limit": "[GPU is lost]" }] })
      const lost = yield* Effect.flip(setTo(300))
      assert.deepStrictEqual((lost as Device.DeviceUnreachable).reason, "Lost")
    })
  )

  test(
    "is set by one call at a time for each card, the last of which wins",
    Effect.gen(function*() {
      const { has } = yield* World
      yield* set({ settingMillis: 20 })
      const limits = [200, 300, 400, 500]
      yield* Effect.forEach(limits, (limit) => setTo(limit), { concurrency: "unbounded" })
      assert.isFalse(has("overlapped"))
      assert.include(limits.map((limit) => `${limit}.00`), (yield* limitOf).join())
    })
  )

  test(
    "is the old one when interrupted before it was set, and the card is free for the next call",
    Effect.gen(function*() {
      const { hanging } = yield* World
      yield* set({ hangs: "-pl" })
      const fiber = yield* Effect.forkChild(setTo(300))
      yield* hanging
      const waiting = yield* Effect.forkChild(setTo(350))
      yield* Fiber.interrupt(fiber)
      assert.deepStrictEqual(yield* limitOf, ["450.00"])
      yield* Fiber.interrupt(waiting)
      const { set: say, state } = yield* World
      const { hangs: _hangs, ...others } = state()
      say(others)
      yield* setTo(400)
      assert.deepStrictEqual(yield* limitOf, ["400.00"])
    })
  )
})
