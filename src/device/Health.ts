/**
 * The rules by which a device is healthy.
 *
 * @since 0.1.0
 */
import type { Health, HealthStatus, Metrics } from "./Model.ts"
import type { Gpu } from "./NvidiaSmi.ts"

type Finding = readonly [status: HealthStatus, issue: string]

const ranks: ReadonlyArray<HealthStatus> = ["healthy", "unknown", "warning", "critical"]

const of = (findings: ReadonlyArray<Finding>): Health => ({
  status: findings.reduce<HealthStatus>(
    (worst, [status]) => ranks.indexOf(status) > ranks.indexOf(worst) ? status : worst,
    "healthy"
  ),
  issues: findings.map(([, issue]) => issue)
})

/**
 * The percentage of its memory that a device uses, where it tells both.
 *
 * @category accessors
 * @since 0.1.0
 */
export const memoryPercent = (
  { memory_total, memory_used }: Pick<Metrics, "memory_total" | "memory_used">
): number | undefined =>
  memory_total === null || memory_used === null || memory_total === 0 ? undefined : memory_used / memory_total * 100

/** Bits of `nvmlClocksEventReason*` that tell of trouble: others are how a card works at its limits, or has been set to. */
const slowdowns: ReadonlyArray<readonly [bit: number, issue: string]> = [
  [0x08, "The hardware has slowed the GPU down"],
  [0x20, "The driver has slowed the GPU down because of its temperature"],
  [0x40, "The hardware has slowed the GPU down because of its temperature"],
  [0x80, "The GPU's power supply has made it slow down"]
]

const whole = (n: number): string => String(Math.round(n * 10) / 10)

/**
 * How a GPU fares.
 *
 * **Details**
 *
 * Critical are: a GPU that is lost, more than 90 °C, errors in memory that ECC could not correct, a slowdown for heat or by the power
 * supply. More than 80 °C or 95 % of its memory in use are a warning. A low performance state is none: it is that of an idle GPU.
 *
 * @category accessors
 * @since 0.1.0
 */
export const ofGpu = (gpu: Gpu, metrics: Metrics): Health => {
  const { eccErrors, lost, slowdown } = gpu
  if (lost) return lostGpu
  const { temperature } = metrics
  const used = memoryPercent(metrics)
  const findings: Array<Finding> = []
  if (temperature !== null && temperature > 90) findings.push(["critical", `The GPU is at ${temperature} °C`])
  else if (temperature !== null && temperature > 80) findings.push(["warning", `The GPU is at ${temperature} °C`])
  if (eccErrors > 0) {
    findings.push(["critical", `ECC could not correct ${eccErrors} errors since the driver was loaded`])
  }
  for (const [bit, issue] of slowdowns) if ((slowdown & bit) !== 0) findings.push(["critical", issue])
  if (used !== undefined && used > 95) findings.push(["warning", `${whole(used)} % of the GPU's memory is used`])
  return of(findings)
}

/**
 * How a GPU fares that has fallen off the bus.
 *
 * @category constants
 * @since 0.1.0
 */
export const lostGpu: Health = of([["critical", "The GPU is lost: it does not answer on its bus. Restart the host"]])

/**
 * How the processor fares: more than 95 % of its memory in use is critical, more than 85 % a warning.
 *
 * @category accessors
 * @since 0.1.0
 */
export const ofCpu = (metrics: Pick<Metrics, "memory_total" | "memory_used">): Health => {
  const used = memoryPercent(metrics)
  return used === undefined || used <= 85
    ? of([])
    : of([[used > 95 ? "critical" : "warning", `${whole(used)} % of the memory is used`]])
}

/**
 * How a device fares that cannot be read.
 *
 * @category constructors
 * @since 0.1.0
 */
export const unknown = (why: string): Health => of([["unknown", why]])
