import { NodeServices } from "@effect/platform-node"
import { assert, describe, it } from "@effect/vitest"
import { Effect, Layer } from "effect"
import * as fs from "node:fs"
import * as os from "node:os"
import * as path from "node:path"
import { Host, HostError, layer, type Options } from "../../src/backends/Host.ts"

const hosted = (options: Options) => Effect.provide(Layer.provide(layer(options), NodeServices.layer))

/** A host of files: those given, in a folder that goes with the scope. */
const host = Effect.fnUntraced(function*(files: Readonly<Record<string, string>>) {
  const root = yield* Effect.acquireRelease(
    Effect.sync(() => fs.mkdtempSync(path.join(os.tmpdir(), "host-"))),
    (root) => Effect.sync(() => fs.rmSync(root, { recursive: true }))
  )
  for (const [name, content] of Object.entries(files)) {
    fs.mkdirSync(path.dirname(path.join(root, name)), { recursive: true })
    fs.writeFileSync(path.join(root, name), content)
  }
  const options = { proc: path.join(root, "proc"), sys: path.join(root, "sys"), platform: "linux" } as const
  return { root, host: yield* Host.pipe(hosted(options)) }
})

const KiB = 1024
const meminfo = "MemTotal:        1000 kB\nMemFree:          100 kB\nMemAvailable:     600 kB\n"
const machine = { total: 1000 * KiB, used: 400 * KiB, available: 600 * KiB }

describe("this host", () => {
  for (const platform of [process.platform, "darwin"] as const) {
    it.effect(`is read as ${platform}`, () =>
      Effect.gen(function*() {
        const host = yield* Host
        const memory = yield* host.memory
        const machineMemory = yield* host.machineMemory
        const storage = yield* host.storage(os.tmpdir())
        for (const { available, total, used } of [memory, machineMemory, storage]) {
          assert.isAbove(total, 0)
          assert.isAtLeast(used, 0)
          assert.isAtLeast(available, 0)
          assert.isAtMost(used + available, total)
        }
        assert.isAtMost(memory.total, machineMemory.total)
        assert.strictEqual(machineMemory.total, os.totalmem())
        const { architecture, name, vendor } = yield* host.processor
        assert.strictEqual(architecture, os.machine())
        assert.isAbove(name.length, 0)
        assert.isAbove(vendor.length, 0)
        const before = yield* host.processorTime
        const after = yield* host.processorTime
        assert.isAbove(before.busy, 0)
        assert.isAbove(before.total, before.busy)
        assert.isAtLeast(after.total, before.total)
        const temperature = yield* host.temperature
        assert.isTrue(temperature === undefined || (temperature > 0 && temperature < 150), String(temperature))
        for (const { microjoules, range } of yield* host.energy) assert.isAtMost(microjoules, range)
      }).pipe(hosted({ platform })))
  }
})

describe("storage", () => {
  it.effect("is that of the file system which holds the path, as the system counts it", () =>
    Effect.gen(function*() {
      const { host: { storage }, root } = yield* host({})
      const { blocks, bsize } = fs.statfsSync(root)
      assert.strictEqual((yield* storage(root)).total, blocks * bsize)
      const missing = path.join(root, "missing")
      const error = yield* Effect.flip(storage(missing))
      assert.instanceOf(error, HostError)
      assert.strictEqual(error.reason._tag, "Unreadable")
      assert.match(error.message, /missing cannot be read \(ENOENT.*Check that it is there/)
    }))
})

describe("memory", () => {
  const memoryOf = (files: Readonly<Record<string, string>>) =>
    Effect.flatMap(host({ "proc/meminfo": meminfo, ...files }), ({ host }) => host.memory)
  const v2 = { "proc/self/cgroup": "0::/a/b\n" }
  const v1 = { "proc/self/cgroup": "9:name=systemd:/x\n4:cpu,memory:/a\n0::/\n" }
  const group = (folder: string, max: string, current: number, inactive = 0) => ({
    [`sys/fs/cgroup/${folder}/memory.max`]: `${max}\n`,
    [`sys/fs/cgroup/${folder}/memory.current`]: `${current}\n`,
    [`sys/fs/cgroup/${folder}/memory.stat`]: `anon 5\ninactive_file ${inactive}\nactive_file 7\n`
  })
  const group1 = (folder: string, limit: string, usage: number, inactive = 0) => ({
    [`sys/fs/cgroup/memory/${folder}/memory.limit_in_bytes`]: `${limit}\n`,
    [`sys/fs/cgroup/memory/${folder}/memory.usage_in_bytes`]: `${usage}\n`,
    [`sys/fs/cgroup/memory/${folder}/memory.stat`]: `inactive_file 1\ntotal_inactive_file ${inactive}\n`
  })

  it.effect("is that of the machine without a control group, or with one that has no limit below it", () =>
    Effect.gen(function*() {
      assert.deepStrictEqual(yield* memoryOf({}), machine)
      assert.deepStrictEqual(yield* memoryOf({ ...v2, ...group("a/b", "max", 900) }), machine)
      assert.deepStrictEqual(yield* memoryOf({ ...v2, ...group("a/b", String(1001 * KiB), 900) }), machine)
      assert.deepStrictEqual(yield* memoryOf({ ...v1, ...group1("a", "9223372036854771712", 900) }), machine)
      assert.deepStrictEqual(yield* memoryOf({ ...v2, "sys/fs/cgroup/a/b/memory.max": "garbage" }), machine)
      // A limit whose use cannot be read says nothing of what is available.
      assert.deepStrictEqual(yield* memoryOf({ ...v2, "sys/fs/cgroup/a/b/memory.max": "1024" }), machine)
    }))

  it.effect("is that of the control group where that is less, with what could be reclaimed", () =>
    Effect.gen(function*() {
      const limited = { total: 500 * KiB, used: 200 * KiB, available: 300 * KiB }
      const max = String(500 * KiB)
      assert.deepStrictEqual(yield* memoryOf({ ...v2, ...group("a/b", max, 250 * KiB, 50 * KiB) }), limited)
      assert.deepStrictEqual(yield* memoryOf({ ...v1, ...group1("a", max, 250 * KiB, 50 * KiB) }), limited)
      // More in use than allowed, as after the limit was lowered.
      const over = { total: 500 * KiB, used: 500 * KiB, available: 0 }
      assert.deepStrictEqual(yield* memoryOf({ ...v2, ...group("a/b", max, 600 * KiB) }), over)
    }))

  it.effect("is bound by every group around the process, and by the machine", () =>
    Effect.gen(function*() {
      const outer = group("a", String(700 * KiB), 600 * KiB)
      const inner = group("a/b", String(900 * KiB), 100 * KiB)
      const bound = { total: 700 * KiB, used: 600 * KiB, available: 100 * KiB }
      assert.deepStrictEqual(yield* memoryOf({ ...v2, ...outer, ...inner }), bound)
      // The group would have 690 KiB, of which the machine has 600 KiB.
      const idle = { total: 700 * KiB, used: 100 * KiB, available: 600 * KiB }
      assert.deepStrictEqual(yield* memoryOf({ ...v2, ...group("a", String(700 * KiB), 10 * KiB) }), idle)
    }))

  it.effect("finds the limit of a container that sees its group's path from outside", () =>
    Effect.gen(function*() {
      const limited = { total: 500 * KiB, used: 100 * KiB, available: 400 * KiB }
      const outside = { "proc/self/cgroup": "0::/docker/0123/../x\n" }
      const max = String(500 * KiB)
      assert.deepStrictEqual(yield* memoryOf({ ...outside, ...group(".", max, 100 * KiB) }), limited)
      assert.deepStrictEqual(yield* memoryOf(group(".", max, 100 * KiB)), limited)
      assert.deepStrictEqual(yield* memoryOf({ ...v1, ...group1(".", max, 100 * KiB) }), limited)
      assert.deepStrictEqual(yield* memoryOf({ "proc/self/cgroup": "no line\n\n" }), machine)
    }))

  it.effect("is estimated where the kernel does not", () =>
    Effect.gen(function*() {
      const old = "MemTotal: 1000 kB\nMemFree: 100 kB\nBuffers: 20 kB\nCached: 30 kB\n"
      assert.strictEqual((yield* memoryOf({ "proc/meminfo": old })).available, 150 * KiB)
      const generous = "MemTotal: 1000 kB\nMemAvailable: 1100 kB\n"
      assert.deepStrictEqual(yield* memoryOf({ "proc/meminfo": generous }), {
        total: 1000 * KiB,
        used: 0,
        available: 1000 * KiB
      })
    }))

  it.effect("is an error that names the file where it is not there, or is something else", () =>
    Effect.gen(function*() {
      const missing = yield* Effect.flip((yield* host({})).host.memory)
      assert.match(missing.message, /proc\/meminfo cannot be read \(NotFound\)/)
      const garbage = yield* Effect.flip(memoryOf({ "proc/meminfo": "MemTotal: many kB\n" }))
      assert.match(garbage.message, /proc\/meminfo has no line MemTotal in kB/)
      const half = yield* Effect.flip(memoryOf({ "proc/meminfo": "MemTotal: 1000 kB\n" }))
      assert.match(half.message, /proc\/meminfo has no line MemAvailable in kB/)
    }))
})

describe("the processor", () => {
  const processor = (cpuinfo: string) => Effect.flatMap(host({ "proc/cpuinfo": cpuinfo }), ({ host }) => host.processor)
  const architecture = os.machine()
  const arm = (implementer: string, ...parts: ReadonlyArray<string>) =>
    parts.map((part, index) => `processor\t: ${index}\nCPU implementer\t: ${implementer}\nCPU part\t: ${part}\n`).join(
      "\n"
    )
  const known: ReadonlyArray<readonly [cpuinfo: string, name: string, vendor: string]> = [
    [
      "vendor_id\t: GenuineIntel\nmodel name\t: Intel(R) Xeon(R) Platinum 8480+\n",
      "Intel(R) Xeon(R) Platinum 8480+",
      "GenuineIntel"
    ],
    ["vendor_id\t: AuthenticAMD\nmodel name\t: AMD EPYC 9654: 96 cores\n", "AMD EPYC 9654: 96 cores", "AuthenticAMD"],
    [arm("0x41", "0xd0c", "0xd0c"), "Neoverse-N1", "ARM"],
    [arm("0x41", "0xd87", "0xd85", "0xd87"), "Cortex-A725 + Cortex-X925", "ARM"],
    [arm("0x61", "0x022"), `Apple ${architecture} processor`, "Apple"],
    [arm("0x00", "0xfff"), `${architecture} processor`, "Unknown"],
    ["CPU implementer : 0x41\nCPU part : 0xfff\nHardware : BCM2711\n", "BCM2711", "ARM"],
    ["processor : 0\ncpu : POWER9, altivec supported\n", "POWER9, altivec supported", "IBM"],
    ["vendor_id : IBM/S390\n", `${architecture} processor`, "IBM/S390"],
    ["Model Name : Loongson-3A5000\n", "Loongson-3A5000", "Loongson"],
    ["hart : 0\nuarch : sifive,u74-mc\n", "sifive,u74-mc", "Unknown"],
    ["model name\t: \n: x\nno colon\n", `${architecture} processor`, "Unknown"]
  ]
  for (const [cpuinfo, name, vendor] of known) {
    it.effect(`is ${name} of ${vendor}`, () =>
      Effect.gen(function*() {
        assert.deepStrictEqual(yield* processor(cpuinfo), { name, vendor, architecture, features: [] })
      }))
  }

  it.effect("has a name where the kernel tells nothing", () =>
    Effect.gen(function*() {
      const expected = { name: `${architecture} processor`, vendor: "Unknown", architecture, features: [] }
      assert.deepStrictEqual(yield* (yield* host({})).host.processor, expected)
    }))

  it.effect("tells its extensions", () =>
    Effect.gen(function*() {
      assert.deepStrictEqual((yield* processor("flags\t\t: fpu  avx2\n")).features, ["fpu", "avx2"])
      assert.deepStrictEqual((yield* processor("Features\t: fp asimd\n")).features, ["fp", "asimd"])
    }))

  const time = (stat: string) => Effect.flatMap(host({ "proc/stat": stat }), ({ host }) => host.processorTime)

  it.effect("counts waiting for a disk as idle, and a guest once", () =>
    Effect.gen(function*() {
      const stat = "cpu  10 20 30 400 50 6 7 8 9 10\ncpu0 1 2 3 4 5 6 7 8 9 10\nintr 7\n"
      assert.deepStrictEqual(yield* time(stat), { busy: 10 + 20 + 30 + 6 + 7 + 8, total: 81 + 400 + 50 })
      assert.deepStrictEqual(yield* time("cpu 1 2 3 4\n"), { busy: 6, total: 10 })
      const error = yield* Effect.flip(time("cpu x y z\n"))
      assert.match(error.message, /proc\/stat has no line cpu with four numbers/)
      const missing = yield* Effect.flip((yield* host({})).host.processorTime)
      assert.strictEqual(missing.reason._tag, "Unreadable")
    }))
})

describe("sensors", () => {
  const temperature = (files: Readonly<Record<string, string>>) =>
    Effect.flatMap(host(files), ({ host }) => host.temperature)
  const zone = (index: number, type: string, temp: string) => ({
    [`sys/class/thermal/thermal_zone${index}/type`]: `${type}\n`,
    [`sys/class/thermal/thermal_zone${index}/temp`]: `${temp}\n`
  })
  const hwmon = (index: number, name: string, ...inputs: ReadonlyArray<number>) => ({
    [`sys/class/hwmon/hwmon${index}/name`]: `${name}\n`,
    ...Object.fromEntries(
      inputs.map((input, nth) => [`sys/class/hwmon/hwmon${index}/temp${nth + 1}_input`, `${input}\n`])
    )
  })

  it.effect("give the processor's highest temperature, and no other device's", () =>
    Effect.gen(function*() {
      const cores = { ...hwmon(0, "nvme", 90_000), ...hwmon(1, "coretemp", 51_000, 62_500) }
      assert.strictEqual(yield* temperature({ ...cores, ...zone(0, "x86_pkg_temp", "40000") }), 62.5)
      const zones = { ...zone(0, "acpitz", "27800"), ...zone(1, "iwlwifi_1", "50000") }
      assert.strictEqual(yield* temperature(zones), 27.8)
      assert.strictEqual(yield* temperature({ ...zones, ...zone(2, "cpu-thermal", "45123") }), 45.123)
      assert.strictEqual(yield* temperature(zone(0, "iwlwifi_1", "50000")), undefined)
      assert.strictEqual(yield* temperature(zone(0, "cpu-thermal", "garbage")), undefined)
      assert.strictEqual(yield* temperature(zone(0, "cpu-thermal", "-274000")), undefined)
      assert.strictEqual(yield* temperature({}), undefined)
    }))

  it.effect("give the energy of each package once", () =>
    Effect.gen(function*() {
      const rapl = (zone: string, name: string, energy?: string) => ({
        [`sys/class/powercap/${zone}/name`]: `${name}\n`,
        [`sys/class/powercap/${zone}/max_energy_range_uj`]: "262143328850\n",
        ...(energy === undefined ? {} : { [`sys/class/powercap/${zone}/energy_uj`]: `${energy}\n` })
      })
      const files = {
        ...rapl("intel-rapl:0", "package-0", "100"),
        ...rapl("intel-rapl:0:0", "core", "50"),
        ...rapl("intel-rapl:1", "package-1", "200"),
        ...rapl("intel-rapl:2", "psys", "400"),
        ...rapl("intel-rapl:3", "package-2")
      }
      const counters = yield* (yield* host(files)).host.energy
      assert.deepStrictEqual(counters, [
        { zone: "intel-rapl:0", microjoules: 100, range: 262143328850 },
        { zone: "intel-rapl:1", microjoules: 200, range: 262143328850 }
      ])
    }))
})
