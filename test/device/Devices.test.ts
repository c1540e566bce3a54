import { assert, describe, it } from "@effect/vitest"
import { DateTime, Effect, Fiber, Layer } from "effect"
import { TestClock } from "effect/testing"
import { type EnergyCounter, Host, HostError, Malformed, type ProcessorTime } from "../../src/backends/Host.ts"
import { Devices, layer } from "../../src/device/Devices.ts"
import { DeviceMetricsError, DeviceUnreachable } from "../../src/device/Errors.ts"
import { type Device, DeviceId } from "../../src/device/Model.ts"
import { NotInstalled, NvidiaSmi, NvidiaSmiError } from "../../src/device/NvidiaSmi.ts"

const cpuId = DeviceId.make("cpu-0")

const none = Effect.fail(new NvidiaSmiError({ reason: new NotInstalled() }))
const withoutGpus = Layer.succeed(NvidiaSmi, { gpus: none, gpu: () => none, setPowerLimit: () => none })

interface Counters {
  readonly time: ProcessorTime
  readonly energy?: ReadonlyArray<EnergyCounter>
}

const memory = { total: 1000, used: 400, available: 600 }

/** A processor whose counters say one after the other of these, then the last one. */
const withProcessor = (readings: ReadonlyArray<Counters>, change: Partial<Host["Service"]> = {}) => {
  let count = 0
  let reading = readings[0]
  const host = Host.of({
    memory: Effect.succeed(memory),
    machineMemory: Effect.succeed(memory),
    storage: () => Effect.succeed(memory),
    processor: Effect.succeed({
      name: "Abacus",
      vendor: "Unknown",
      architecture: "x86_64",
      features: ["fma", "avx2", "vme"]
    }),
    processorTime: Effect.sync(() => {
      reading = readings[Math.min(count++, readings.length - 1)]
      return reading!.time
    }),
    temperature: Effect.succeed(55.5),
    energy: Effect.sync(() => reading!.energy ?? []),
    ...change
  })
  return Effect.provide(Layer.provide(layer(), [Layer.succeed(Host, host), withoutGpus]))
}

/** A reading of the processor, whose second half comes after a time. */
const read = Effect.fnUntraced(function*(after = 200) {
  const { read } = yield* Devices
  const fiber = yield* Effect.forkChild(read("cpu-0"))
  yield* TestClock.adjust(after - 1)
  assert.strictEqual(fiber.pollUnsafe(), undefined)
  yield* TestClock.adjust(1)
  return yield* Fiber.join(fiber)
})

const package0 = (microjoules: number) => ({ zone: "intel-rapl:0", microjoules, range: 1_000_000_000 })
const package1 = (microjoules: number) => ({ zone: "intel-rapl:1", microjoules, range: 1_000_000_000 })

describe("the processor", () => {
  it.effect("is read twice, a fifth of a second apart", () =>
    Effect.gen(function*() {
      const { history, metrics } = yield* read().pipe(withProcessor([
        { time: { busy: 100, total: 1000 }, energy: [package0(1_000_000), package1(5_000_000)] },
        { time: { busy: 130, total: 1040 }, energy: [package0(3_000_000), package1(7_000_000)] }
      ]))
      assert.deepStrictEqual(metrics, {
        utilization: 75,
        temperature: 55.5,
        // 4 J in 0.2 s.
        power: 20,
        memory_used: 400,
        memory_total: 1000
      })
      assert.deepStrictEqual(history, [{
        timestamp: DateTime.formatIso(DateTime.makeUnsafe(200)),
        utilization: 75,
        temperature: 55.5,
        power: 20
      }])
    }))

  it.effect("has a counter of energy that begins anew", () =>
    Effect.gen(function*() {
      const { metrics } = yield* read().pipe(withProcessor([
        { time: { busy: 0, total: 1 }, energy: [package0(999_500_000), package1(0)] },
        { time: { busy: 0, total: 2 }, energy: [package0(500_000), package1(1_000_000)] }
      ]))
      assert.strictEqual(metrics.power, 10)
    }))

  it.effect("has no power where no counter can be read both times", () =>
    Effect.gen(function*() {
      const { metrics } = yield* read().pipe(withProcessor([
        { time: { busy: 0, total: 1 }, energy: [package0(1)] },
        { time: { busy: 0, total: 2 }, energy: [package1(2)] }
      ]))
      assert.strictEqual(metrics.power, null)
    }))

  it.effect("is no more than busy, and nothing where its counters stand still", () =>
    Effect.gen(function*() {
      const share = (...times: ReadonlyArray<ProcessorTime>) =>
        Effect.map(read(), ({ metrics }) => metrics.utilization).pipe(withProcessor(times.map((time) => ({ time }))))
      // The count of waiting for disks has gone down.
      assert.strictEqual(yield* share({ busy: 0, total: 100 }, { busy: 20, total: 110 }), 100)
      assert.strictEqual(yield* share({ busy: 10, total: 100 }, { busy: 9, total: 110 }), 0)
      assert.strictEqual(yield* share({ busy: 10, total: 100 }), null)
      assert.strictEqual(yield* share({ busy: 10, total: 100 }, { busy: 5, total: 50 }), null)
    }))

  it.effect("keeps its last 60 readings, oldest first", () =>
    Effect.gen(function*() {
      for (let count = 0; count < 61; count++) yield* read()
      const { history } = yield* read()
      assert.strictEqual(history.length, 60)
      const times = [history[0]?.timestamp, history.at(-1)?.timestamp]
      assert.deepStrictEqual(times, ["1970-01-01T00:00:00.600Z", "1970-01-01T00:00:12.400Z"])
    }).pipe(withProcessor([{ time: { busy: 0, total: 0 } }])))

  it.effect("is described by its name, and the extensions that matter", () =>
    Effect.gen(function*() {
      const { detect, get, list } = yield* Devices
      const cpu: Device = {
        id: cpuId,
        name: "Abacus",
        vendor: "Unknown",
        type: "cpu",
        architecture: "x86_64",
        capabilities: ["avx2", "fma"],
        memory: 1000
      }
      assert.deepStrictEqual(yield* list, [cpu])
      assert.deepStrictEqual(yield* get("CPU"), cpu)
      assert.deepStrictEqual(yield* detect, { devices: [cpu], fresh: [cpu] })
      assert.deepStrictEqual(yield* detect, { devices: [cpu], fresh: [] })
    }).pipe(withProcessor([])))

  const failure = new HostError({ path: "/proc/meminfo", reason: new Malformed({ expected: "line MemTotal in kB" }) })
  it.effect("that cannot be read is a failure, and unknown among others", () =>
    Effect.gen(function*() {
      const { check, checkAll, detect, get, list } = yield* Devices
      const fiber = yield* Effect.forkChild(Effect.flip((yield* Devices).read()))
      yield* TestClock.adjust(200)
      const detail = failure.message
      const unreachable = new DeviceUnreachable({ device_id: "cpu-0", reason: "Malformed", detail, retryable: false })
      // Nothing else is there to be read.
      assert.deepStrictEqual(yield* Fiber.join(fiber), unreachable)
      assert.deepStrictEqual(yield* Effect.flip(detect), unreachable)
      assert.deepStrictEqual(yield* Effect.flip(list), unreachable)
      assert.deepStrictEqual(yield* Effect.flip(get("cpu-0")), unreachable)
      assert.deepStrictEqual(yield* Effect.flip(check("cpu-0")), unreachable)
      assert.deepStrictEqual(yield* checkAll, [
        { device_id: cpuId, status: "unknown", issues: [detail], changedFrom: undefined }
      ])
      const named = yield* Effect.forkChild(Effect.flip((yield* Devices).read("cpu-0")))
      yield* TestClock.adjust(200)
      assert.deepStrictEqual(yield* Fiber.join(named), new DeviceMetricsError({ device_id: "cpu-0", detail }))
    }).pipe(withProcessor([{ time: { busy: 0, total: 0 } }], { machineMemory: Effect.fail(failure) })))
})
