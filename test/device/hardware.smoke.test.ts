/** The units on this host's own hardware. What concerns GPUs runs where NVIDIA's program finds one; nothing is changed on it. */
import { NodeServices } from "@effect/platform-node"
import { assert, describe, it } from "@effect/vitest"
import { Effect, Layer } from "effect"
import { spawnSync } from "node:child_process"
import * as os from "node:os"
import * as Device from "../../src/device/index.ts"
import * as EventPublisher from "../../src/EventPublisher.ts"

const hardware = Effect.provide(
  Layer.merge(Layer.provide(Device.layer(), NodeServices.layer), EventPublisher.layerNoop)
)

const detected = Effect.map(Device.detect(), ({ devices }) => devices)

describe("the processor of this host", () => {
  it.live("is detected, read and looked at", () =>
    Effect.gen(function*() {
      const cpu = (yield* detected).at(-1)
      assert.deepInclude(cpu, { id: Device.DeviceId.make("cpu-0"), type: "cpu", architecture: os.machine() })
      assert.strictEqual(cpu?.memory, os.totalmem())
      const { memory_total, memory_used, power, temperature, utilization } = yield* Device.metrics({
        device_id: "cpu-0"
      })
      assert.strictEqual(memory_total, os.totalmem())
      assert.isTrue(memory_used! > 0 && memory_used! < memory_total!)
      assert.isTrue(utilization === null || (utilization >= 0 && utilization <= 100), String(utilization))
      assert.isTrue(temperature === null || (temperature > 0 && temperature < 150), String(temperature))
      assert.isTrue(power === null || (power >= 0 && power < 5000), String(power))
      const health = yield* Device.health({ device_id: "cpu-0" })
      assert("status" in health)
      assert.strictEqual(health.issues.length === 0, health.status === "healthy")
    }).pipe(hardware))

  it.live("is busier while it works", () =>
    Effect.gen(function*() {
      const work = Effect.sync(() => {
        for (const end = performance.now() + 20; performance.now() < end;);
      })
      const share = yield* Effect.raceFirst(
        Device.metrics({ device_id: "cpu-0" }),
        Effect.forever(Effect.andThen(work, Effect.yieldNow))
      )
      // One thread of all that there are, less what the fiber leaves to others.
      assert.isAbove(share.utilization ?? 0, 100 / os.cpus().length / 4)
    }).pipe(hardware))
})

const hasGpu = spawnSync("nvidia-smi", ["-L"]).status === 0

describe.skipIf(!hasGpu)("the GPUs of this host, where nvidia-smi finds one", () => {
  it.live("are detected, read and looked at", () =>
    Effect.gen(function*() {
      const [gpu] = yield* detected
      assert(gpu !== undefined)
      assert.deepInclude(gpu, { vendor: "NVIDIA", type: "gpu" })
      assert.isAbove(gpu.memory, 0)
      const metrics = yield* Device.metrics()
      assert.isTrue(metrics.power === null || metrics.power > 0)
      assert.isTrue(metrics.memory_total !== null && metrics.memory_total >= gpu.memory)
      assert.isTrue("status" in (yield* Device.health({ device_id: gpu.id })))
    }).pipe(hardware))

  it.live.skipIf(process.geteuid?.() === 0)(
    "refuse a limit of power to whoever is not root",
    () =>
      Effect.gen(function*() {
        const [gpu] = yield* detected
        const error = yield* Effect.flip(Device.setPowerLimit({ device_id: gpu!.id, limit_watts: 0.5 }))
        assert.instanceOf(error, Device.InvalidPowerLimit)
        if (error.max_watts === undefined) return
        const limit_watts = error.max_watts
        const refused = yield* Effect.flip(Device.setPowerLimit({ device_id: gpu!.id, limit_watts }))
        assert.instanceOf(refused, Device.Unauthorized)
      }).pipe(hardware)
  )
})
