import { assert, describe, it } from "@effect/vitest"
import { Effect, Fiber, Layer, Schema, type Scope } from "effect"
import { TestClock } from "effect/testing"
import * as Device from "../../src/device/index.ts"
import type { EventPublisher } from "../../src/EventPublisher.ts"
import * as Testing from "../../src/testing/index.ts"
import { InvalidInput } from "../../src/UnitError.ts"
import { catalog } from "../../src/units.ts"
import { type Card, gb10, h100Mig, rtx4090, secondCard } from "./cards.ts"
import { GiB, layer, meminfo, type State, World } from "./world.ts"

type Services = Layer.Success<typeof layer> | EventPublisher | Testing.TestEvents

/** A test on a host of its own. */
const test = <E>(name: string, effect: Effect.Effect<void, E, Services | Scope.Scope>) =>
  it.effect(name, () => effect.pipe(Effect.provide(Layer.merge(layer, Testing.layerTest))))

/** NVIDIA's program says this from now on. */
const set = (state: State) => Effect.map(World, (world) => world.set(state))
const cards = (...gpus: ReadonlyArray<Card>) => set({ gpus })
const fails = (code: number, stdout = "said\n") => set({ gpus: [rtx4090], says: { code, stdout } })

const told = Effect.gen(function*() {
  const events = yield* (yield* Testing.TestEvents).domainEvents
  return events.map(({ payload, type }): Readonly<Record<string, unknown>> => ({ type, ...payload as object }))
})

const id = (text: string) => Device.DeviceId.make(text)

const MiB = 1024 * 1024
const second = secondCard(h100Mig)

describe("input", () => {
  const refused: ReadonlyArray<readonly [name: string, input: unknown, ...paths: ReadonlyArray<string>]> = [
    ["info", { device_id: "" }, "device_id"],
    ["info", { device_id: null }, "device_id"],
    ["info", "gpu-0", ""],
    ["metrics", { device_id: 0 }, "device_id"],
    ["metrics", { history: "yes" }, "history"],
    ["health", { device_id: "" }, "device_id"],
    ["health", [], ""]
  ]
  test(
    "that does not fit is refused",
    Effect.gen(function*() {
      for (const [name, input, ...paths] of refused) {
        const error = yield* Effect.flip(catalog.execute(`device.${name}`, input))
        assert.instanceOf(error, InvalidInput, `${name} ${JSON.stringify(input)}`)
        assert.deepStrictEqual(error.issues.map(({ path }) => path), paths)
      }
      assert.deepStrictEqual((yield* World).calls(), [])
    })
  )

  test(
    "may be missing or have more keys",
    Effect.gen(function*() {
      for (const input of [undefined, {}, { page: 7 }]) {
        assert.hasAllKeys(yield* catalog.execute("device.info", input), ["devices"])
        assert.hasAllKeys(yield* catalog.execute("device.health", input), ["devices"])
      }
    })
  )
})

describe("device.info", () => {
  const gpu = {
    id: id("gpu-0"),
    name: "NVIDIA GeForce RTX 4090",
    vendor: "NVIDIA",
    architecture: "Ada Lovelace",
    capabilities: ["cuda", "tensor", "bf16", "fp8"],
    memory: 24564 * MiB
  }
  const ids = Effect.map(Device.info(), (all) => "devices" in all ? all.devices.map(({ id }) => id) : [])

  test(
    "tells what a device is, by any of its names",
    Effect.gen(function*() {
      for (const device_id of ["gpu-0", "GPU-0", "nvidia-0", "0", rtx4090["uuid"]!, rtx4090["pci.bus_id"]!]) {
        assert.deepStrictEqual(yield* Device.info({ device_id }), gpu)
      }
      assert.deepStrictEqual(yield* Device.info({ device_id: "cpu-0" }), {
        id: id("cpu-0"),
        name: "Intel(R) Xeon(R)",
        vendor: "GenuineIntel",
        architecture: process.arch === "x64" ? "x86_64" : "aarch64",
        capabilities: ["amx_tile", "avx2"],
        memory: 32 * 1024 * MiB
      })
    })
  )

  test(
    "tells of all, what they can do included",
    Effect.gen(function*() {
      yield* cards(rtx4090, second, { ...secondCard(gb10), index: "2" })
      const all = yield* Device.info()
      assert("devices" in all)
      assert.deepStrictEqual(all.devices[0], gpu)
      assert.deepStrictEqual(all.devices.map(({ capabilities, id }) => [id, capabilities.slice(4)] as const), [
        [id("gpu-0"), []],
        [id("gpu-1"), ["mig"]],
        [id("gpu-2"), ["fp4", "unified_memory"]],
        [id("cpu-0"), []]
      ])
    })
  )

  test(
    "is up to 30 seconds old, and no older",
    Effect.gen(function*() {
      const { calls } = yield* World
      yield* cards(rtx4090, second)
      assert.deepStrictEqual(yield* ids, ["gpu-0", "gpu-1", "cpu-0"])
      yield* cards(rtx4090)
      yield* TestClock.adjust("29999 millis")
      assert.deepStrictEqual(yield* ids, ["gpu-0", "gpu-1", "cpu-0"])
      assert.hasAnyKeys(yield* Device.info({ device_id: second["uuid"]! }), ["name"])
      assert.strictEqual(calls().length, 1)
      yield* TestClock.adjust("1 millis")
      assert.deepStrictEqual(
        yield* Effect.flip(Device.info({ device_id: "gpu-1" })),
        new Device.DeviceNotFound({ device_id: "gpu-1" })
      )
      assert.deepStrictEqual(yield* ids, ["gpu-0", "cpu-0"])
      // One that was added since is found by its name at once, and by detect for all.
      yield* cards(rtx4090, second)
      assert.hasAnyKeys(yield* Device.info({ device_id: "gpu-1" }), ["name"])
      assert.deepStrictEqual(yield* ids, ["gpu-0", "cpu-0"])
      yield* Device.detect()
      assert.deepStrictEqual(yield* ids, ["gpu-0", "gpu-1", "cpu-0"])
      // That the program fails is not asked for time and again, either.
      yield* TestClock.adjust("30 seconds")
      yield* fails(255)
      const before = calls().length
      for (let count = 0; count < 3; count++) assert.deepStrictEqual(yield* ids, ["cpu-0"])
      assert.strictEqual(calls().length, before + 1)
    })
  )

  test(
    "fails for a GPU that cannot be reached, and leaves it out of the list",
    Effect.gen(function*() {
      const { hanging, remove } = yield* World
      for (
        const [code, reason, retryable] of [[9, "Failed", true], [15, "Lost", false], [
          4,
          "NoPermission",
          false
        ]] as const
      ) {
        yield* fails(code)
        const error = yield* Effect.flip(Device.info({ device_id: "gpu-0" }))
        assert.instanceOf(error, Device.DeviceUnreachable)
        assert.deepStrictEqual([error.reason, error.retryable], [reason, retryable])
        assert.deepStrictEqual(yield* ids, ["cpu-0"])
      }
      yield* set({ gpus: [rtx4090], hangs: "always" })
      const fiber = yield* Effect.forkChild(Effect.flip(Device.info({ device_id: "gpu-0" })))
      yield* hanging
      yield* TestClock.adjust("10 seconds")
      const slow = yield* Fiber.join(fiber)
      assert.deepStrictEqual([(slow as Device.DeviceUnreachable).reason, slow.retryable], ["TimedOut", true])
      remove("bin/nvidia-smi")
      assert.deepStrictEqual(
        yield* Effect.flip(Device.info({ device_id: "gpu-0" })),
        new Device.DeviceNotFound({ device_id: "gpu-0" })
      )
    })
  )
})

describe("device.metrics", () => {
  const metrics = (...input: Parameters<typeof Device.metrics>) => Device.metrics(...input)

  test(
    "reads the first device, or the one that is named",
    Effect.gen(function*() {
      yield* cards(rtx4090, second)
      const first = {
        utilization: 37,
        temperature: 56,
        power: 123.45,
        memory_used: 1024 * MiB,
        memory_total: 24564 * MiB
      }
      assert.deepStrictEqual(yield* metrics(), first)
      assert.deepStrictEqual(yield* metrics({ device_id: "gpu-0" }), first)
      assert.deepStrictEqual(yield* metrics({ device_id: "gpu-1" }), {
        // A card in instances has no utilisation of its own.
        utilization: null,
        temperature: 31,
        power: 71.8,
        memory_used: 38 * MiB,
        memory_total: 81559 * MiB
      })
    })
  )

  test(
    "has nulls for what a card does not report, and the host's memory for one that shares it",
    Effect.gen(function*() {
      yield* cards(gb10)
      assert.deepStrictEqual(yield* metrics(), {
        utilization: null,
        temperature: null,
        power: null,
        memory_used: 8 * 1024 * MiB,
        memory_total: 32 * 1024 * MiB
      })
      yield* cards({ ...rtx4090, "memory.used": "[Insufficient Permissions]" })
      assert.deepInclude(yield* metrics(), { memory_used: null, memory_total: 24564 * MiB })
    })
  )

  test(
    "has its readings so far where they are asked for, by device",
    Effect.gen(function*() {
      yield* cards(rtx4090, second)
      assert.notProperty(yield* metrics({ device_id: "gpu-1" }), "history")
      yield* metrics({ device_id: "gpu-0" })
      yield* TestClock.adjust("1 second")
      const { history } = yield* metrics({ device_id: second["uuid"]!, history: true })
      const reading = { utilization: null, temperature: 31, power: 71.8 }
      assert.deepStrictEqual(history, [
        { timestamp: "1970-01-01T00:00:00.000Z", ...reading },
        { timestamp: "1970-01-01T00:00:01.000Z", ...reading }
      ])
    })
  )

  test(
    "fails for a device that is not there, cannot be reached, or says what cannot be read",
    Effect.gen(function*() {
      const failure = (device_id?: string) => Effect.flip(metrics(device_id === undefined ? {} : { device_id }))
      assert.deepStrictEqual(yield* failure("gpu-7"), new Device.DeviceNotFound({ device_id: "gpu-7" }))
      yield* fails(255)
      assert.instanceOf(yield* failure("gpu-0"), Device.DeviceUnreachable)
      yield* fails(0, "0, GPU-\n")
      const garbage = yield* failure("gpu-0")
      assert.instanceOf(garbage, Device.DeviceMetricsError)
      assert.match(garbage.message, /^The metrics of gpu-0 cannot be read\. .* a row has 2 values/)
      yield* cards(gb10)
      const { remove } = yield* World
      remove("proc/meminfo")
      assert.match((yield* failure("gpu-0")).message, /proc\/meminfo cannot be read/)
      yield* cards({ ...rtx4090, "power.draw": "[GPU is lost]" })
      assert.match((yield* failure("gpu-0")).message, /does not answer on its bus/)
    })
  )

  test(
    "tells of a metric that has risen above its threshold, once each time it does",
    Effect.gen(function*() {
      const temperatures = ["90", "91", "95", "[N/A]", "92", "90", "91"]
      for (const temperature of temperatures) {
        yield* cards({ ...rtx4090, "temperature.gpu": temperature })
        yield* metrics()
      }
      const alert = {
        type: "device.metrics_alert",
        device_id: "gpu-0",
        metric: "temperature",
        value: 91,
        threshold: 90
      }
      assert.deepStrictEqual(yield* told, [alert, alert])
      yield* cards({ ...rtx4090, "memory.used": "24564" })
      yield* metrics()
      assert.deepStrictEqual((yield* told).slice(2), [
        { ...alert, metric: "memory_percent", value: 100, threshold: 95 }
      ])
    })
  )

  it.effect("knows the thresholds that it is given, and no others", () =>
    Effect.gen(function*() {
      const { command, proc, sys } = yield* World
      yield* cards({ ...rtx4090, "temperature.gpu": "99" })
      const device = Device.layer({
        thresholds: { utilization: 30, power: 123.45 },
        nvidiaSmi: { command },
        host: { proc, sys, platform: "linux" }
      })
      yield* Effect.provide(metrics(), device)
      assert.deepStrictEqual(yield* told, [
        { type: "device.metrics_alert", device_id: "gpu-0", metric: "utilization", value: 37, threshold: 30 }
      ])
    }).pipe(Effect.provide(Layer.merge(layer, Testing.layerTest))))
})

describe("device.health", () => {
  const all = Effect.map(Device.health(), (all) => "devices" in all ? all.devices : [])
  const statuses = Effect.map(all, (devices) => devices.map(({ device_id, status }) => `${device_id} ${status}`))
  const changed = (device_id: string, old_status: string, new_status: string) => ({
    type: "device.health_changed",
    device_id,
    old_status,
    new_status
  })

  test(
    "looks anew each time, and tells of each change",
    Effect.gen(function*() {
      assert.deepStrictEqual(yield* Device.health({ device_id: "gpu-0" }), { status: "healthy", issues: [] })
      assert.deepStrictEqual(yield* all, [
        { device_id: id("gpu-0"), status: "healthy", issues: [] },
        { device_id: id("cpu-0"), status: "healthy", issues: [] }
      ])
      assert.deepStrictEqual(yield* told, [])
      yield* cards({ ...rtx4090, "temperature.gpu": "85" })
      assert.deepStrictEqual(yield* Device.health({ device_id: rtx4090["uuid"]! }), {
        status: "warning",
        issues: ["The GPU is at 85 °C"]
      })
      assert.deepStrictEqual(yield* statuses, ["gpu-0 warning", "cpu-0 healthy"])
      const { write } = yield* World
      write("proc/meminfo", meminfo(32 * GiB, GiB))
      assert.deepStrictEqual(yield* statuses, ["gpu-0 warning", "cpu-0 critical"])
      yield* cards(rtx4090)
      write("proc/meminfo", meminfo(32 * GiB, 3 * GiB))
      assert.deepStrictEqual(yield* Device.health({ device_id: "cpu-0" }), {
        status: "warning",
        issues: ["90.6 % of the memory is used"]
      })
      assert.deepStrictEqual(yield* statuses, ["gpu-0 healthy", "cpu-0 warning"])
      assert.deepStrictEqual(yield* told, [
        changed("gpu-0", "healthy", "warning"),
        changed("cpu-0", "healthy", "critical"),
        changed("cpu-0", "critical", "warning"),
        changed("gpu-0", "warning", "healthy")
      ])
    })
  )

  test(
    "tells of a change once, however many look at a time",
    Effect.gen(function*() {
      yield* statuses
      yield* cards({ ...rtx4090, "temperature.gpu": "99" })
      yield* Effect.all([statuses, statuses, Device.health({ device_id: "gpu-0" })], { concurrency: "unbounded" })
      assert.deepStrictEqual(yield* told, [changed("gpu-0", "healthy", "critical")])
    })
  )

  test(
    "is critical for a GPU that is lost, in whichever way that shows",
    Effect.gen(function*() {
      const lost = { device_id: id("gpu-1"), status: "critical" } as const
      yield* cards(rtx4090, second)
      assert.deepStrictEqual(yield* statuses, ["gpu-0 healthy", "gpu-1 healthy", "cpu-0 healthy"])
      // A row of which nothing but the index is left.
      yield* cards(rtx4090, { ...second, "power.draw": "[GPU is lost]" })
      assert.deepInclude((yield* all)[1], lost)
      // No row, and a complaint.
      const complaint = { ...second, says: { code: 15, stdout: "Unable to determine the device handle\n" } }
      yield* set({ gpus: [rtx4090, complaint] as unknown as ReadonlyArray<Card> })
      assert.deepStrictEqual(yield* statuses, ["gpu-0 healthy", "gpu-1 critical", "cpu-0 healthy"])
      const { issues, status } = (yield* Device.health({ device_id: second["uuid"]! })) as Device.Health
      assert.deepStrictEqual([status, issues.length], ["critical", 1])
      // Rows of the others, and the same exit code.
      const partly = { ...second, says: { code: 15 } }
      yield* set({ gpus: [rtx4090, partly] as unknown as ReadonlyArray<Card> })
      assert.deepStrictEqual(yield* statuses, ["gpu-0 healthy", "gpu-1 critical", "cpu-0 healthy"])
      // Taken away, it is no device any more.
      yield* cards(rtx4090)
      assert.deepStrictEqual(yield* statuses, ["gpu-0 healthy", "cpu-0 healthy"])
      assert.deepStrictEqual(
        yield* Effect.flip(Device.health({ device_id: "gpu-1" })),
        new Device.DeviceNotFound({ device_id: "gpu-1" })
      )
      const { calls } = yield* World
      const before = calls().length
      yield* statuses
      assert.strictEqual(calls().length, before + 1)
    })
  )

  test(
    "is unknown for what cannot be read, among all, and a failure for itself",
    Effect.gen(function*() {
      const { hanging, remove } = yield* World
      yield* fails(255, "Failed to initialize NVML: Unknown Error\n")
      const [gpu, ...others] = yield* all
      // No GPU was seen yet: that there is something to look after is told all the same.
      assert.deepInclude(gpu, { device_id: id("gpu-0"), status: "unknown" })
      assert.match(gpu!.issues.join(), /exit code 255: Failed to initialize NVML/)
      assert.deepStrictEqual(others.map(({ status }) => status), ["healthy"])
      assert.instanceOf(yield* Effect.flip(Device.health({ device_id: "gpu-0" })), Device.DeviceUnreachable)
      yield* cards(rtx4090, second)
      yield* statuses
      yield* fails(9)
      assert.deepStrictEqual(yield* statuses, ["gpu-0 unknown", "gpu-1 unknown", "cpu-0 healthy"])
      yield* set({ gpus: [rtx4090, second], hangs: "always" })
      const fiber = yield* Effect.forkChild(statuses)
      yield* hanging
      yield* TestClock.adjust("10 seconds")
      assert.deepStrictEqual(yield* Fiber.join(fiber), ["gpu-0 unknown", "gpu-1 unknown", "cpu-0 healthy"])
      yield* cards(gb10)
      remove("proc/meminfo")
      assert.deepStrictEqual(yield* statuses, ["gpu-0 unknown", "cpu-0 unknown"])
      assert.instanceOf(yield* Effect.flip(Device.health({ device_id: "gpu-0" })), Device.DeviceUnreachable)
    })
  )
})

it("documents its units by examples that fit their schemas", () => {
  for (const unit of catalog.units.filter(({ domain }) => domain === "device")) {
    assert.isAbove(unit.examples.length, 0, unit.name)
    const decode = Schema.decodeUnknownSync(Schema.toCodecJson(unit.input))
    for (const example of unit.examples) decode(example)
  }
})
