/**
 * The entities of the device domain: the compute hardware of this host, what it does, and how it fares.
 *
 * Field names are those of the wire. Sizes are bytes, power is watts, temperatures are degrees Celsius, utilisation is percent.
 *
 * @since 0.1.0
 */
import * as Schema from "effect/Schema"

/**
 * The id of a device: `gpu-` and the index that its driver gives it, or `cpu-0` for all processors together.
 *
 * **Gotchas**
 *
 * A driver can number GPUs in another way after the host has started anew. Their UUIDs, which units take as well, stay.
 *
 * @category models
 * @since 0.1.0
 */
export const DeviceId = Schema.String.check(Schema.isPattern(/^(?:gpu-\d+|cpu-0)$/)).pipe(Schema.brand("DeviceId"))

/**
 * @category models
 * @since 0.1.0
 */
export type DeviceId = typeof DeviceId.Type

/**
 * What a device is.
 *
 * @category models
 * @since 0.1.0
 */
export const DeviceType = Schema.Literals(["gpu", "cpu", "npu", "accelerator"])

/**
 * @category models
 * @since 0.1.0
 */
export type DeviceType = typeof DeviceType.Type

/**
 * A device. What is said here does not change while it is in use.
 *
 * **Details**
 *
 * `vendor` is `NVIDIA` for GPUs, for processors what they say themselves (`GenuineIntel`, `AuthenticAMD`, `ARM`), or `Unknown`.
 * `architecture` is that of the chip, such as `Hopper` or `x86_64`. `memory` is in bytes; where a GPU shares that of the processor,
 * it is the host's. `capabilities` are `cuda`, `tensor`, `bf16`, `fp8`, `fp4`, `mig`, `unified_memory` for GPUs; for processors the
 * extensions that matter to inference, by the names that the Linux kernel has for them.
 *
 * @category models
 * @since 0.1.0
 */
export const Device = Schema.Struct({
  id: DeviceId,
  name: Schema.NonEmptyString,
  vendor: Schema.String,
  type: DeviceType,
  architecture: Schema.String,
  capabilities: Schema.Array(Schema.String),
  memory: Schema.Natural
})

/**
 * @category models
 * @since 0.1.0
 */
export type Device = typeof Device.Type

const Percent = Schema.Finite.check(Schema.isBetween({ minimum: 0, maximum: 100 }))

/**
 * What a device does at one moment. `null` is what it does not report.
 *
 * @category models
 * @since 0.1.0
 */
export const Metrics = Schema.Struct({
  utilization: Schema.NullOr(Percent),
  temperature: Schema.NullOr(Schema.Finite),
  power: Schema.NullOr(Schema.Finite),
  memory_used: Schema.NullOr(Schema.Natural),
  memory_total: Schema.NullOr(Schema.Natural)
})

/**
 * @category models
 * @since 0.1.0
 */
export type Metrics = typeof Metrics.Type

/**
 * An earlier reading. `timestamp` is RFC 3339, UTC, milliseconds.
 *
 * @category models
 * @since 0.1.0
 */
export const Sample = Schema.Struct({
  timestamp: Schema.String,
  utilization: Metrics.fields.utilization,
  temperature: Metrics.fields.temperature,
  power: Metrics.fields.power
})

/**
 * @category models
 * @since 0.1.0
 */
export type Sample = typeof Sample.Type

/**
 * How a device fares; `unknown` is one that cannot be read.
 *
 * @category models
 * @since 0.1.0
 */
export const HealthStatus = Schema.Literals(["healthy", "warning", "critical", "unknown"])

/**
 * @category models
 * @since 0.1.0
 */
export type HealthStatus = typeof HealthStatus.Type

/**
 * How a device fares, and why: `issues` has a line for each finding, and is empty when healthy. `status` is that of the worst one.
 *
 * @category models
 * @since 0.1.0
 */
export const Health = Schema.Struct({ status: HealthStatus, issues: Schema.Array(Schema.String) })

/**
 * @category models
 * @since 0.1.0
 */
export type Health = typeof Health.Type

/**
 * A metric that can have a threshold: percent of time, degrees Celsius, watts, and the percentage of memory that is used.
 *
 * @category models
 * @since 0.1.0
 */
export const AlertMetric = Schema.Literals(["utilization", "temperature", "power", "memory_percent"])

/**
 * @category models
 * @since 0.1.0
 */
export type AlertMetric = typeof AlertMetric.Type
