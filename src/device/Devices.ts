/**
 * The devices of this host: those that NVIDIA's driver tells of, then the processor.
 *
 * @since 0.1.0
 */
import * as Clock from "effect/Clock"
import * as Context from "effect/Context"
import * as DateTime from "effect/DateTime"
import * as Effect from "effect/Effect"
import * as Layer from "effect/Layer"
import * as Result from "effect/Result"
import * as Semaphore from "effect/Semaphore"
import { type Capacity, type EnergyCounter, Host, type HostError } from "../backends/Host.ts"
import { DeviceMetricsError, DeviceNotFound, DeviceUnreachable, InvalidPowerLimit, Unauthorized } from "./Errors.ts"
import * as HealthRules from "./Health.ts"
import * as traits from "./internal/traits.ts"
import {
  type AlertMetric,
  type Device,
  DeviceId,
  type Health,
  type HealthStatus,
  type Metrics,
  type Sample
} from "./Model.ts"
import { type Gpu, NvidiaSmi, type NvidiaSmiError } from "./NvidiaSmi.ts"

/**
 * The devices, and those among them that this service had not seen before.
 *
 * @category models
 * @since 0.1.0
 */
export interface Detection {
  readonly devices: ReadonlyArray<Device>
  readonly fresh: ReadonlyArray<Device>
}

/**
 * A metric that has risen above its threshold.
 *
 * @category models
 * @since 0.1.0
 */
export interface Alert {
  readonly metric: AlertMetric
  readonly value: number
  readonly threshold: number
}

/**
 * The metrics of a device, its readings up to this one, oldest first, and which thresholds it has risen above since the last one.
 *
 * @category models
 * @since 0.1.0
 */
export interface Reading {
  readonly device_id: DeviceId
  readonly metrics: Metrics
  readonly history: ReadonlyArray<Sample>
  readonly alerts: ReadonlyArray<Alert>
}

/**
 * How a device fares, and how it did at the last look where that was another way.
 *
 * @category models
 * @since 0.1.0
 */
export interface Checkup extends Health {
  readonly device_id: DeviceId
  readonly changedFrom: HealthStatus | undefined
}

/**
 * The devices of this host.
 *
 * **Details**
 *
 * A device is named by its id, by its index (`gpu-0`, `nvidia-0`, `0`), by a GPU's UUID (`GPU-...`) or by its bus id; the processor is
 * `cpu-0`. Where NVIDIA's program is not there, there are no such GPUs; where it fails, they are left out of lists, with a warning in
 * the log, and asking for one of them fails with `DeviceUnreachable`.
 *
 * @category services
 * @since 0.1.0
 */
export class Devices extends Context.Service<Devices, {
  /** Looks for devices anew. Fails only where there is none, not even the processor. */
  readonly detect: Effect.Effect<Detection, DeviceUnreachable>
  /** The devices, of which the GPUs may have been looked for up to 30 seconds ago. */
  readonly list: Effect.Effect<ReadonlyArray<Device>, DeviceUnreachable>
  /** One device, as up to date as `list`. */
  readonly get: (device_id: string) => Effect.Effect<Device, DeviceNotFound | DeviceUnreachable>
  /** Reads a device, the first one where none is named. For the processor it takes a fifth of a second. */
  readonly read: (
    device_id?: string | undefined
  ) => Effect.Effect<Reading, DeviceNotFound | DeviceUnreachable | DeviceMetricsError>
  /** Looks how a device fares. */
  readonly check: (device_id: string) => Effect.Effect<Checkup, DeviceNotFound | DeviceUnreachable>
  /** Looks how all devices fare; those that cannot be read are `unknown`. */
  readonly checkAll: Effect.Effect<ReadonlyArray<Checkup>>
  /**
   * Sets the limit of a GPU's power, one call at a time for each GPU, and reads it back. Interrupted, the limit is the old or the new
   * one. It lasts until the driver is unloaded.
   */
  readonly setPowerLimit: (
    device_id: string,
    watts: number
  ) => Effect.Effect<void, DeviceNotFound | DeviceUnreachable | InvalidPowerLimit | Unauthorized>
}>()("effect-units/device/Devices") {}

/**
 * Settings of the devices.
 *
 * @category models
 * @since 0.1.0
 */
export interface Options {
  /**
   * Above which reading of a metric `device.metrics_alert` is published: percent, degrees Celsius, watts. Default: a temperature of
   * 90 and 95 percent of memory.
   */
  readonly thresholds?: { readonly [M in AlertMetric]?: number | undefined } | undefined
}

/** How long what does not change about GPUs is taken from the last look. */
const infoMillis = 30_000

/** How many readings of a device are kept. */
const historySize = 60

/** Between the two readings of which the processor's utilisation and power are the difference. */
const interval = "200 millis"

/** Watts by which a limit may differ after it was set: cards round. */
const tolerance = 1

const cpuId = DeviceId.make("cpu-0")

const idOf = (gpu: Gpu): DeviceId => DeviceId.make(`gpu-${gpu.index}`)

/** The same card, whatever its index. */
const identityOf = (gpu: Gpu): string => gpu.uuid ?? idOf(gpu)

/** What NVIDIA's program takes for a GPU that callers name: nothing that could be another argument. */
const targetOf = (device_id: string): string | undefined => {
  const index = /^(?:gpu-|nvidia-)?(\d{1,4})$/i.exec(device_id)?.[1]
  if (index !== undefined) return String(Number(index))
  const isUuid = /^GPU-[0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12}$/i.test(device_id)
  const isBusId = /^(?:[0-9a-f]{4}|[0-9a-f]{8}):[0-9a-f]{2}:[0-9a-f]{2}\.[0-7]$/i.test(device_id)
  return isUuid || isBusId ? device_id : undefined
}

const isNamed = (target: string) => ({ busId, index, uuid }: Gpu): boolean =>
  [String(index), uuid, busId].some((name) => name?.toLowerCase() === target.toLowerCase())

const isCpu = (device_id: string): boolean => /^cpu(?:-0)?$/i.test(device_id)

const unreachable = (device_id: string, error: NvidiaSmiError | HostError): DeviceUnreachable =>
  new DeviceUnreachable({
    device_id,
    reason: error.reason._tag,
    detail: error.message,
    retryable: error._tag === "NvidiaSmiError" && error.reason.retryable
  })

const gpuFailure = (device_id: string) => (error: NvidiaSmiError): DeviceNotFound | DeviceUnreachable =>
  error.reason._tag === "NotInstalled" || error.reason._tag === "NotFound"
    ? new DeviceNotFound({ device_id })
    : unreachable(device_id, error)

/** The power of all packages between two readings, in watts. */
const watts = (
  before: ReadonlyArray<EnergyCounter>,
  after: ReadonlyArray<EnergyCounter>,
  nanos: number
): number | null => {
  const used = after.flatMap(({ microjoules, range, zone }) => {
    const earlier = before.find((counter) => counter.zone === zone)
    if (earlier === undefined) return []
    const difference = microjoules - earlier.microjoules
    return [difference < 0 ? difference + range : difference]
  })
  return used.length === 0 || nanos <= 0 ? null : used.reduce((sum, one) => sum + one, 0) * 1000 / nanos
}

/** What came of looking for GPUs, and when, in milliseconds. */
interface Look {
  readonly at: number
  readonly found: Result.Result<ReadonlyArray<Gpu>, NvidiaSmiError>
}

const listed = (look: Look | undefined): ReadonlyArray<Gpu> =>
  look === undefined ? [] : Result.getOrElse(look.found, () => [])

const make = Effect.fnUntraced(function*({ thresholds = { temperature: 90, memory_percent: 95 } }: Options) {
  const host = yield* Host
  const smi = yield* NvidiaSmi

  let last: Look | undefined
  /** Each GPU that was there, by its identity, and has not been taken away since. */
  const known = new Map<string, Gpu>()
  /** What was in the log last, which need not be there again before it changes. */
  let warned = ""
  const seen = new Set<string>()
  const statuses = new Map<DeviceId, HealthStatus>()
  const histories = new Map<DeviceId, ReadonlyArray<Sample>>()
  const above = new Map<DeviceId, Set<AlertMetric>>()
  const locks = new Map<string, Semaphore.Semaphore>()

  const lookForGpus = Effect.gen(function*() {
    const found = yield* Effect.result(Effect.catchIf(
      smi.gpus,
      (error) => error.reason._tag === "NotInstalled",
      () => Effect.succeed<ReadonlyArray<Gpu>>([])
    ))
    last = { at: yield* Clock.currentTimeMillis, found }
    for (const gpu of listed(last)) known.set(identityOf(gpu), gpu)
    return yield* Effect.fromResult(found)
  })

  /** The last look, unless it is too old to say how things are. */
  const recent = Effect.map(
    Clock.currentTimeMillis,
    (now) => last !== undefined && now - last.at < infoMillis ? last : undefined
  )

  // That the program failed is as good for as long: one that hangs takes its time.
  const recentGpus = Effect.flatMap(recent, (look) => look === undefined ? lookForGpus : Effect.fromResult(look.found))

  const gpu = (device_id: string): Effect.Effect<Gpu, DeviceNotFound | DeviceUnreachable> => {
    const target = targetOf(device_id)
    return target === undefined
      ? Effect.fail(new DeviceNotFound({ device_id }))
      : Effect.mapError(smi.gpu(target), gpuFailure(device_id))
  }

  /** A GPU that is lost can be named, and nothing else. */
  const present = (device_id: string) =>
    Effect.filterOrFail(gpu(device_id), ({ lost }) => !lost, () =>
      new DeviceUnreachable({
        device_id,
        reason: "Lost",
        detail: "The GPU does not answer on its bus. Restart the host",
        retryable: false
      }))

  /** The memory that a GPU has, or shares with the processor. */
  const memoryOf = ({ memoryTotal, memoryUsed }: Gpu): Effect.Effect<
    { readonly memory_total: number; readonly memory_used: number | null },
    HostError
  > =>
    memoryTotal === null
      ? Effect.map(host.machineMemory, ({ total, used }) => ({ memory_total: total, memory_used: used }))
      : Effect.succeed({ memory_total: memoryTotal, memory_used: memoryUsed })

  const describeGpu = (gpu: Gpu): Effect.Effect<Device, HostError> =>
    Effect.map(memoryOf(gpu), ({ memory_total }) => ({
      id: idOf(gpu),
      name: gpu.name,
      vendor: "NVIDIA",
      type: "gpu",
      architecture: traits.architectureOf(gpu),
      capabilities: traits.capabilitiesOf(gpu),
      memory: memory_total
    }))

  const describeCpu: Effect.Effect<Device, HostError> = Effect.gen(function*() {
    const { architecture, features, name, vendor } = yield* host.processor
    const { total } = yield* host.machineMemory
    const capabilities = traits.extensionsOf(features)
    return { id: cpuId, name, vendor, type: "cpu", architecture, capabilities, memory: total }
  })

  const describeAll = Effect.fnUntraced(function*(gpus: Effect.Effect<ReadonlyArray<Gpu>, NvidiaSmiError>) {
    const described = Effect.flatMap(gpus, (gpus) => Effect.forEach(gpus.filter(({ lost }) => !lost), describeGpu))
    const [nvidia, cpu] = yield* Effect.all([
      Effect.result(described),
      Effect.result(Effect.map(describeCpu, (cpu) => [cpu]))
    ])
    const devices = [
      ...Result.getOrElse(nvidia, () => []),
      ...Result.getOrElse(cpu, () => [])
    ]
    if (devices.length === 0 && Result.isFailure(cpu)) return yield* unreachable(cpuId, cpu.failure)
    const failures = [nvidia, cpu].flatMap((result) => Result.isFailure(result) ? [result.failure.message] : [])
    if (failures.join() !== warned) {
      warned = failures.join()
      for (const failure of failures) yield* Effect.logWarning(`Devices are left out: ${failure}`)
    }
    return devices
  })

  const readGpu = Effect.fnUntraced(function*(device_id: string) {
    const found = yield* Effect.mapError(
      present(device_id),
      (error) =>
        error._tag === "DeviceUnreachable" && error.reason === "Malformed"
          ? new DeviceMetricsError({ device_id, detail: error.detail })
          : error
    )
    const { power, temperature, utilization } = found
    const memory = yield* Effect.mapError(
      memoryOf(found),
      (error) => new DeviceMetricsError({ device_id, detail: error.message })
    )
    const metrics: Metrics = { utilization, temperature, power, ...memory }
    return [idOf(found), metrics] as const
  })

  const cpuCounters = Effect.gen(function*() {
    const nanos = yield* Clock.currentTimeNanos
    return { nanos, time: yield* host.processorTime, energy: yield* host.energy }
  })

  const readCpu = Effect.gen(function*() {
    const before = yield* cpuCounters
    yield* Effect.sleep(interval)
    const after = yield* cpuCounters
    const memory: Capacity = yield* host.machineMemory
    const total = after.time.total - before.time.total
    const busy = after.time.busy - before.time.busy
    const metrics: Metrics = {
      // The kernel's count of waiting for disks can go down.
      utilization: total > 0 ? Math.min(100, Math.max(0, busy / total * 100)) : null,
      temperature: (yield* host.temperature) ?? null,
      power: watts(before.energy, after.energy, Number(after.nanos - before.nanos)),
      memory_used: memory.used,
      memory_total: memory.total
    }
    return [cpuId, metrics] as const
  }).pipe(Effect.mapError((error) => new DeviceMetricsError({ device_id: cpuId, detail: error.message })))

  const alertsOf = (device_id: DeviceId, metrics: Metrics): ReadonlyArray<Alert> => {
    const over = above.get(device_id) ?? new Set()
    above.set(device_id, over)
    const values = { ...metrics, memory_percent: HealthRules.memoryPercent(metrics) ?? null }
    return (["utilization", "temperature", "power", "memory_percent"] as const).flatMap((metric) => {
      const value = values[metric]
      const threshold = thresholds[metric]
      // What is not reported has neither risen nor fallen.
      if (value === null || threshold === undefined) return []
      if (value <= threshold) over.delete(metric)
      if (value <= threshold || over.has(metric)) return []
      over.add(metric)
      return [{ metric, value, threshold }]
    })
  }

  const noteStatus = (device_id: DeviceId, { issues, status }: Health): Checkup => {
    const before = statuses.get(device_id)
    statuses.set(device_id, status)
    return { device_id, status, issues, changedFrom: before === status ? undefined : before }
  }

  const healthOfGpu = (gpu: Gpu): Effect.Effect<Health, HostError> =>
    gpu.lost ? Effect.succeed(HealthRules.lostGpu) : Effect.map(memoryOf(gpu), (memory) => {
      const { power, temperature, utilization } = gpu
      return HealthRules.ofGpu(gpu, { utilization, temperature, power, ...memory })
    })

  const healthOfCpu = Effect.map(
    host.machineMemory,
    ({ total, used }) => HealthRules.ofCpu({ memory_total: total, memory_used: used })
  )

  /** The id that a GPU had when it was there. */
  const knownId = (target: string): DeviceId | undefined => {
    const gpu = [...known.values()].find(isNamed(target))
    if (gpu !== undefined) return idOf(gpu)
    return /^\d+$/.test(target) ? DeviceId.make(`gpu-${target}`) : undefined
  }

  const checkGpu = Effect.fnUntraced(function*(device_id: string) {
    const found = yield* Effect.result(gpu(device_id))
    if (Result.isFailure(found)) {
      const id = knownId(targetOf(device_id) ?? "")
      const isLost = found.failure._tag === "DeviceUnreachable" && found.failure.reason === "Lost"
      if (!isLost || id === undefined) return yield* found.failure
      return noteStatus(id, HealthRules.lostGpu)
    }
    const id = idOf(found.success)
    const health = yield* Effect.mapError(healthOfGpu(found.success), (error) => unreachable(id, error))
    return noteStatus(id, health)
  })

  /** A GPU that is not in the list: the driver may have more to say of it alone. One that was taken away is no device any more. */
  const checkMissing = (gpu: Gpu): Effect.Effect<ReadonlyArray<Checkup>> =>
    Effect.matchEffect(checkGpu(gpu.uuid ?? idOf(gpu)), {
      onSuccess: (checkup) => Effect.succeed([checkup]),
      onFailure: (error) =>
        Effect.sync(() => {
          if (error._tag === "DeviceUnreachable") return [noteStatus(idOf(gpu), HealthRules.unknown(error.message))]
          known.delete(identityOf(gpu))
          return []
        })
    })

  const checkGpus: Effect.Effect<ReadonlyArray<Checkup>> = Effect.gen(function*() {
    const found = yield* Effect.result(lookForGpus)
    const gpus = Result.getOrElse(found, () => [])
    const identities = new Set(gpus.map(identityOf))
    const missing = [...known.values()].filter((gpu) => !identities.has(identityOf(gpu)))
    if (Result.isFailure(found)) {
      const why = HealthRules.unknown(found.failure.message)
      // Which GPUs there are cannot be told, but that there is one to look after can.
      if (missing.length === 0) return [noteStatus(DeviceId.make("gpu-0"), why)]
      // Each of them would take as long.
      if (found.failure.reason._tag === "TimedOut") return missing.map((gpu) => noteStatus(idOf(gpu), why))
    }
    const checkups = yield* Effect.forEach(gpus, (gpu) =>
      Effect.map(
        Effect.catch(healthOfGpu(gpu), (error) => Effect.succeed(HealthRules.unknown(error.message))),
        (health) => noteStatus(idOf(gpu), health)
      ))
    const others = yield* Effect.forEach(missing, checkMissing)
    return [...checkups, ...others.flat()]
  })

  const lockOf = (gpu: Gpu): Semaphore.Semaphore => {
    const identity = identityOf(gpu)
    const lock = locks.get(identity) ?? Semaphore.makeUnsafe(1)
    locks.set(identity, lock)
    return lock
  }

  return Devices.of({
    detect: Effect.map(describeAll(lookForGpus), (devices) => {
      const identities = new Map(listed(last).map((gpu) => [idOf(gpu), identityOf(gpu)]))
      const identity = ({ id }: Device) => identities.get(id) ?? id
      const fresh = devices.filter((device) => !seen.has(identity(device)))
      for (const device of fresh) seen.add(identity(device))
      return { devices, fresh }
    }),
    list: describeAll(recentGpus),
    get: Effect.fnUntraced(function*(device_id) {
      if (isCpu(device_id)) return yield* Effect.mapError(describeCpu, (error) => unreachable(cpuId, error))
      const target = targetOf(device_id)
      const listedLately = listed(yield* recent).filter(({ lost }) => !lost).find(isNamed(target ?? ""))
      const found = listedLately ?? (yield* present(device_id))
      return yield* Effect.mapError(describeGpu(found), (error) => unreachable(device_id, error))
    }),
    read: Effect.fnUntraced(function*(device_id) {
      const named = device_id ?? (yield* describeAll(recentGpus))[0]?.id ?? cpuId
      const [id, metrics] = yield* isCpu(named) ? readCpu : readGpu(named)
      const timestamp = DateTime.formatIso(yield* DateTime.now)
      const { power, temperature, utilization } = metrics
      const history = [...histories.get(id) ?? [], { timestamp, utilization, temperature, power }].slice(-historySize)
      histories.set(id, history)
      return { device_id: id, metrics, history, alerts: alertsOf(id, metrics) }
    }),
    check: (device_id) =>
      isCpu(device_id)
        ? Effect.mapBoth(healthOfCpu, {
          onSuccess: (health) => noteStatus(cpuId, health),
          onFailure: (error) => unreachable(cpuId, error)
        })
        : checkGpu(device_id),
    checkAll: Effect.gen(function*() {
      const gpus = yield* checkGpus
      const health = yield* Effect.catch(healthOfCpu, (error) => Effect.succeed(HealthRules.unknown(error.message)))
      return [...gpus, noteStatus(cpuId, health)]
    }),
    setPowerLimit: Effect.fnUntraced(function*(device_id, limit_watts) {
      if (isCpu(device_id)) return yield* new InvalidPowerLimit({ device_id, limit_watts })
      const card = yield* present(device_id)
      const { powerMax: max_watts, powerMin: min_watts } = card
      if (min_watts === null || max_watts === null) return yield* new InvalidPowerLimit({ device_id, limit_watts })
      if (limit_watts < min_watts || limit_watts > max_watts) {
        return yield* new InvalidPowerLimit({ device_id, limit_watts, min_watts, max_watts })
      }
      // By its UUID it is the same card, whatever happens to indices.
      const target = card.uuid ?? String(card.index)
      yield* Semaphore.withPermit(
        lockOf(card),
        Effect.gen(function*() {
          yield* Effect.mapError(smi.setPowerLimit(target, limit_watts), (error) => {
            switch (error.reason._tag) {
              case "NoPermission":
                return new Unauthorized({ device_id, detail: error.message })
              case "NotSupported":
                return new InvalidPowerLimit({ device_id, limit_watts })
              default:
                return gpuFailure(device_id)(error)
            }
          })
          const { powerLimit } = yield* present(target)
          if (powerLimit === null || Math.abs(powerLimit - limit_watts) > tolerance) {
            return yield* new DeviceUnreachable({
              device_id,
              reason: "NotApplied",
              detail: `It was told to take ${limit_watts} W, and reports a limit of ${
                powerLimit ?? "no"
              } W. Try again, and look for another program that sets it`,
              retryable: true
            })
          }
        })
      )
    })
  })
})

/**
 * Layer of the devices of this host. What it remembers (which devices were seen, how they fared, their last 60 readings) lasts as long
 * as the layer.
 *
 * @category layers
 * @since 0.1.0
 */
export const layer = (options: Options = {}): Layer.Layer<Devices, never, Host | NvidiaSmi> =>
  Layer.effect(Devices, make(options))
