/**
 * What this host has and uses: memory, storage, processor. On Linux out of `/proc` and `/sys`, elsewhere out of `node:os`.
 *
 * **Details**
 *
 * Sizes are bytes. The formats are those of the Linux man pages proc(5), proc_stat(5) and cgroups(7), and of the kernel's
 * documentation of cgroup v1 and v2, thermal zones, hwmon and powercap. Node knows the limits of a control group too
 * (`process.constrainedMemory`), but neither what in it could be reclaimed, nor roots other than those of the system.
 *
 * @since 0.1.0
 */
import * as Context from "effect/Context"
import * as Effect from "effect/Effect"
import * as FileSystem from "effect/FileSystem"
import * as Layer from "effect/Layer"
import * as Path from "effect/Path"
import type * as PlatformError from "effect/PlatformError"
import * as Schema from "effect/Schema"
import * as fs from "node:fs/promises"
import * as os from "node:os"
import * as cpuInfo from "./internal/cpuInfo.ts"

/**
 * A file or file system is missing, or may not be read. A retry does not help.
 *
 * @category errors
 * @since 0.1.0
 */
export class Unreadable extends Schema.TaggedError<Unreadable>("effect-units/backends/Host/Unreadable")("Unreadable", {
  detail: Schema.String,
  cause: Schema.Defect()
}) {
  override get message(): string {
    return `cannot be read (${this.detail}). Check that it is there, and that this process may read it`
  }
}

/**
 * A file does not hold what its format says. A retry does not help.
 *
 * @category errors
 * @since 0.1.0
 */
export class Malformed extends Schema.TaggedError<Malformed>("effect-units/backends/Host/Malformed")("Malformed", {
  expected: Schema.String
}) {
  override get message(): string {
    return `has no ${this.expected}. Check that it is the kernel's own file`
  }
}

/**
 * The host could not be read. `path` is the file at fault.
 *
 * @category errors
 * @since 0.1.0
 */
export class HostError extends Schema.TaggedError<HostError>("effect-units/backends/Host/HostError")("HostError", {
  path: Schema.String,
  reason: Schema.Union([Unreadable, Malformed])
}) {
  override get message(): string {
    return `${this.path} ${this.reason.message}`
  }
}

/**
 * Memory or storage in bytes. `available` is what can still be had, `used` what cannot; together they are never more than `total`.
 *
 * @category models
 * @since 0.1.0
 */
export interface Capacity {
  readonly total: number
  readonly used: number
  readonly available: number
}

/**
 * The processor. `architecture` is what `uname -m` says, such as `x86_64` or `aarch64`. Where the kernel does not name it, `name` is
 * made of the architecture and `vendor` is `Unknown`. `features` are its extensions by the kernel's names, such as `avx2` or `asimd`.
 *
 * @category models
 * @since 0.1.0
 */
export interface Processor {
  readonly name: string
  readonly vendor: string
  readonly architecture: string
  readonly features: ReadonlyArray<string>
}

/**
 * Time that all processors together have spent since the host started, in ticks of an unknown length: only the difference of two
 * readings says something, `busy` of `total`.
 *
 * @category models
 * @since 0.1.0
 */
export interface ProcessorTime {
  readonly busy: number
  readonly total: number
}

/**
 * A counter of the energy that one processor package has used, in microjoules. It begins at 0 again after `range`.
 *
 * @category models
 * @since 0.1.0
 */
export interface EnergyCounter {
  readonly zone: string
  readonly microjoules: number
  readonly range: number
}

/**
 * Reads the host. Every effect reads anew.
 *
 * @category services
 * @since 0.1.0
 */
export class Host extends Context.Service<Host, {
  /**
   * The memory that this process can have: that of the machine, or that of its control group where that is less. What the kernel
   * would reclaim counts as available.
   */
  readonly memory: Effect.Effect<Capacity, HostError>
  /** The memory of the machine, whatever this process may have of it. */
  readonly machineMemory: Effect.Effect<Capacity, HostError>
  /** The file system that holds a path which exists. `available` is what users other than root can have. */
  readonly storage: (path: string) => Effect.Effect<Capacity, HostError>
  readonly processor: Effect.Effect<Processor>
  readonly processorTime: Effect.Effect<ProcessorTime, HostError>
  /** The processor's temperature in degrees Celsius, the highest of its sensors; `undefined` where it has none that can be read. */
  readonly temperature: Effect.Effect<number | undefined>
  /** One counter for each package whose counter can be read, by zone; on most systems only root may. */
  readonly energy: Effect.Effect<ReadonlyArray<EnergyCounter>>
}>()("effect-units/backends/Host") {}

/**
 * Settings of the layer: where the kernel's file systems are mounted.
 *
 * @category models
 * @since 0.1.0
 */
export interface Options {
  /** Default `/proc`. */
  readonly proc?: string | undefined
  /** Default `/sys`. Control groups are at `fs/cgroup` in it. */
  readonly sys?: string | undefined
  /** Default: that of this process. Where it is not `linux`, `node:os` is asked instead of files. */
  readonly platform?: NodeJS.Platform | undefined
}

const capacity = (total: number, available: number): Capacity => {
  // The kernel's estimate of what is available can be more than there is.
  const free = Math.min(available, total)
  return { total, used: total - free, available: free }
}

const unreadable = (path: string) => (error: PlatformError.PlatformError): HostError =>
  new HostError({ path, reason: new Unreadable({ detail: error.reason._tag, cause: error }) })

const malformed = (path: string, expected: string): HostError =>
  new HostError({ path, reason: new Malformed({ expected }) })

// More bytes than a number holds exactly are nothing that could be used up; network file systems report them.
const toNumber = (bytes: bigint): number => Number(bytes < 2n ** 53n ? bytes : 2n ** 53n - 1n)

const statfs = (path: string): Effect.Effect<Capacity, HostError> =>
  Effect.map(
    Effect.tryPromise({
      // Effect's FileSystem has nothing for file systems as a whole.
      try: () => fs.statfs(path, { bigint: true }),
      catch: (cause) =>
        new HostError({
          path,
          reason: new Unreadable({ detail: cause instanceof Error ? cause.message : String(cause), cause })
        })
    }),
    ({ bavail, bfree, blocks, bsize }) => ({
      total: toNumber(blocks * bsize),
      used: toNumber((blocks - bfree) * bsize),
      available: toNumber(bavail * bsize)
    })
  )

const portable = Host.of({
  memory: Effect.sync(() => capacity(os.totalmem(), os.freemem())),
  machineMemory: Effect.sync(() => capacity(os.totalmem(), os.freemem())),
  storage: statfs,
  processor: Effect.sync(() => {
    const architecture = os.machine()
    const name = os.cpus()[0]?.model.trim() ?? ""
    return {
      name: name === "" ? `${architecture} processor` : name,
      vendor: cpuInfo.vendorOfName(name),
      architecture,
      features: []
    }
  }),
  processorTime: Effect.sync(() => {
    const times = os.cpus().map(({ times }) => times)
    const sum = (of: (typeof times)[number]) => of.user + of.nice + of.sys + of.irq + of.idle
    const total = times.reduce((all, one) => all + sum(one), 0)
    return { busy: total - times.reduce((all, { idle }) => all + idle, 0), total }
  }),
  temperature: Effect.undefined,
  energy: Effect.succeed([])
})

const inKiB = (text: string, name: string): number | undefined => {
  const match = new RegExp(`^${name}:\\s+(\\d+) kB$`, "m").exec(text)
  return match === null ? undefined : Number(match[1]) * 1024
}

/** What a file of one number holds; `undefined` for a file without one, such as a limit of `max`. */
const natural = (text: string): number | undefined => /^\d+$/.test(text.trim()) ? Number(text) : undefined

const makeLinux = Effect.fnUntraced(function*({ proc = "/proc", sys = "/sys" }: Options) {
  const files = yield* FileSystem.FileSystem
  const paths = yield* Path.Path

  const read = (path: string) => Effect.mapError(files.readFileString(path), unreadable(path))
  // A sensor that goes away, or that only root may read, is a sensor that is not there.
  const maybe = (...path: ReadonlyArray<string>): Effect.Effect<string | undefined> =>
    Effect.orElseSucceed(files.readFileString(paths.join(...path)), () => undefined)
  const number = (...path: ReadonlyArray<string>) =>
    Effect.map(maybe(...path), (text) => text === undefined ? undefined : natural(text))
  const list = (...path: ReadonlyArray<string>): Effect.Effect<ReadonlyArray<string>> =>
    Effect.orElseSucceed(Effect.map(files.readDirectory(paths.join(...path)), (names) => names.sort()), () => [])

  const machineMemory = Effect.gen(function*() {
    const path = paths.join(proc, "meminfo")
    const text = yield* read(path)
    const total = inKiB(text, "MemTotal")
    if (total === undefined) return yield* malformed(path, "line MemTotal in kB")
    const free = inKiB(text, "MemFree")
    // Linux before 3.14 does not estimate it.
    const available = inKiB(text, "MemAvailable") ??
      (free === undefined ? undefined : free + (inKiB(text, "Buffers") ?? 0) + (inKiB(text, "Cached") ?? 0))
    if (available === undefined) return yield* malformed(path, "line MemAvailable in kB")
    return capacity(total, available)
  })

  /**
   * The folders that can hold a limit for this process: its control group and those around it. In a container the path may be that
   * of the host, where only the root of the mount is there.
   */
  const groups = Effect.gen(function*() {
    const text = (yield* maybe(proc, "self", "cgroup")) ?? "0::/"
    return text.split("\n").flatMap((line) => {
      const match = /^(\d+):([^:]*):(\/.*)$/.exec(line)
      if (match === null) return []
      const [, hierarchy, controllers, path] = match
      const v2 = hierarchy === "0" && controllers === ""
      if (!v2 && controllers?.split(",").includes("memory") !== true) return []
      const names = (path ?? "").split("/").filter((name) => name !== "" && name !== "..")
      const root = v2 ? paths.join(sys, "fs", "cgroup") : paths.join(sys, "fs", "cgroup", "memory")
      return Array.from(
        { length: names.length + 1 },
        (_, depth) => ({ v2, folder: paths.join(root, ...names.slice(0, depth)) })
      )
    })
  })

  const limitOf = Effect.fnUntraced(function*({ folder, v2 }: { readonly folder: string; readonly v2: boolean }) {
    const limit = yield* number(folder, v2 ? "memory.max" : "memory.limit_in_bytes")
    const used = yield* number(folder, v2 ? "memory.current" : "memory.usage_in_bytes")
    if (limit === undefined || used === undefined) return undefined
    const stat = (yield* maybe(folder, "memory.stat")) ?? ""
    const inactive = new RegExp(`^${v2 ? "" : "total_"}inactive_file (\\d+)$`, "m").exec(stat)?.[1] ?? 0
    // What a file that nobody has read lately takes is given back first.
    return capacity(limit, Math.max(0, limit - Math.max(0, used - Number(inactive))))
  })

  const memory = Effect.gen(function*() {
    const machine = yield* machineMemory
    const limits = yield* Effect.forEach(yield* groups, limitOf)
    // Version 1 says "no limit" by a number beyond any machine's memory.
    return limits.reduce<Capacity>((least, limit) => {
      // Each group around the process has to have room, and so has the machine.
      if (limit === undefined || limit.total >= machine.total) return least
      return capacity(Math.min(least.total, limit.total), Math.min(least.available, limit.available))
    }, machine)
  })

  const processorTime = Effect.gen(function*() {
    const path = paths.join(proc, "stat")
    const line = /^cpu +(\d+(?: \d+){3,})$/m.exec(yield* read(path))?.[1]
    if (line === undefined) return yield* malformed(path, "line cpu with four numbers or more")
    // What guests took is part of user and nice already.
    const [user = 0, nice = 0, system = 0, idle = 0, iowait = 0, irq = 0, softirq = 0, steal = 0] = line.split(" ")
      .map(Number)
    const busy = user + nice + system + irq + softirq + steal
    return { busy, total: busy + idle + iowait }
  })

  const degrees = (milli: ReadonlyArray<number | undefined>): number | undefined => {
    const known = milli.filter((one) => one !== undefined).filter((one) => one > 0)
    return known.length === 0 ? undefined : Math.max(...known) / 1000
  }

  /** By the drivers that sensors(1) reads a processor's temperature from. */
  const fromHwmon = Effect.gen(function*() {
    const root = paths.join(sys, "class", "hwmon")
    const found = yield* Effect.forEach(yield* list(root), (sensor) =>
      Effect.gen(function*() {
        const name = (yield* maybe(root, sensor, "name"))?.trim() ?? ""
        if (!/^(?:coretemp|k8temp|k10temp|zenpower|cpu_thermal)$/.test(name)) return []
        const inputs = (yield* list(root, sensor)).filter((file) => /^temp\d+_input$/.test(file))
        return yield* Effect.forEach(inputs, (file) => number(root, sensor, file))
      }))
    return degrees(found.flat())
  })

  const fromZones = Effect.gen(function*() {
    const root = paths.join(sys, "class", "thermal")
    const zones = (yield* list(root)).filter((name) => name.startsWith("thermal_zone"))
    const read = yield* Effect.forEach(zones, (zone) =>
      Effect.all({
        type: Effect.map(maybe(root, zone, "type"), (type) => type?.trim() ?? ""),
        milli: number(root, zone, "temp")
      }))
    const of = (type: RegExp) => degrees(read.filter((zone) => type.test(zone.type)).map(({ milli }) => milli))
    // The board's own sensor is next to the processor, and often the only one.
    return of(/cpu|pkg|core|soc/i) ?? of(/^acpitz/)
  })

  const energy = Effect.gen(function*() {
    const root = paths.join(sys, "class", "powercap")
    // Zones below a package's are parts of it.
    const zones = (yield* list(root)).filter((name) => /^intel-rapl:\d+$/.test(name))
    const counters = yield* Effect.forEach(zones, (zone) =>
      Effect.gen(function*() {
        // Another zone at the top is the whole platform, with the packages in it.
        const name = (yield* maybe(root, zone, "name"))?.trim() ?? ""
        const microjoules = yield* number(root, zone, "energy_uj")
        const range = yield* number(root, zone, "max_energy_range_uj")
        return !name.startsWith("package") || microjoules === undefined || range === undefined
          ? []
          : [{ zone, microjoules, range }]
      }))
    return counters.flat()
  })

  return Host.of({
    memory,
    machineMemory,
    storage: statfs,
    processor: Effect.map(maybe(proc, "cpuinfo"), (text) => cpuInfo.parse(text ?? "", os.machine())),
    processorTime,
    temperature: Effect.flatMap(fromHwmon, (found) => found === undefined ? fromZones : Effect.succeed(found)),
    energy
  })
})

/**
 * Layer that reads this host.
 *
 * @category layers
 * @since 0.1.0
 */
export const layer = (options: Options = {}): Layer.Layer<Host, never, FileSystem.FileSystem | Path.Path> =>
  (options.platform ?? process.platform) === "linux"
    ? Layer.effect(Host, makeLinux(options))
    : Layer.succeed(Host, portable)
