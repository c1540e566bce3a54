/**
 * The entities of the resource domain: slots of memory and GPU that workloads were promised, and what the host has.
 *
 * Field names are those of the wire. Sizes are bytes, times are Unix seconds.
 *
 * @since 0.1.0
 */
import * as Schema from "effect/Schema"

/**
 * The id of a slot: `slot-` and eight hexadecimal digits.
 *
 * @category models
 * @since 0.1.0
 */
export const SlotId = Schema.String.check(Schema.isPattern(/^slot-[0-9a-f]{8}$/)).pipe(Schema.brand("SlotId"))

/**
 * @category models
 * @since 0.1.0
 */
export type SlotId = typeof SlotId.Type

/**
 * What a slot is for. It says from which pool the slot is: `inference`, `container`, `system`.
 *
 * @category models
 * @since 0.1.0
 */
export const SlotType = Schema.Literals(["inference_native", "docker_container", "system_service"])

/**
 * @category models
 * @since 0.1.0
 */
export type SlotType = typeof SlotType.Type

/**
 * Where a slot is in its life: `active` (its workload runs), `idle` (kept, but not in use), `preempted` (taken away for a slot of a
 * higher priority). Active and idle slots count against the budget, preempted ones do not.
 *
 * @category models
 * @since 0.1.0
 */
export const SlotStatus = Schema.Literals(["active", "idle", "preempted"])

/**
 * @category models
 * @since 0.1.0
 */
export type SlotStatus = typeof SlotStatus.Type

/**
 * How much of a GPU: 0 is none, 1 is a whole one.
 *
 * @category models
 * @since 0.1.0
 */
export const GpuFraction = Schema.Finite.check(Schema.isBetween({ minimum: 0, maximum: 1 }))

/**
 * Who goes first: 0 to 100, the higher wins.
 *
 * @category models
 * @since 0.1.0
 */
export const Priority = Schema.Int.check(Schema.isBetween({ minimum: 0, maximum: 100 }))

/**
 * A number of bytes of which there is at least one.
 *
 * @category models
 * @since 0.1.0
 */
export const Bytes = Schema.Int.check(Schema.isGreaterThan(0))

/**
 * A slot: memory and a part of the GPUs that a workload was promised. It is an entry in a ledger; what uses the slot keeps to it by
 * itself. `name` is a label that several slots can have.
 *
 * @category models
 * @since 0.1.0
 */
export const Slot = Schema.Struct({
  id: SlotId,
  name: Schema.NonEmptyString,
  type: SlotType,
  memory_limit: Bytes,
  gpu_fraction: GpuFraction,
  priority: Priority,
  status: SlotStatus,
  created_at: Schema.Natural,
  updated_at: Schema.Natural
})

/**
 * @category models
 * @since 0.1.0
 */
export type Slot = typeof Slot.Type

/**
 * What a slot has. `memory_used` is what its workload uses, where `SlotUsage` tells, else the slot's limit.
 *
 * @category models
 * @since 0.1.0
 */
export const Allocation = Schema.Struct({
  slot_id: SlotId,
  name: Slot.fields.name,
  type: SlotType,
  memory_used: Schema.Natural,
  gpu_fraction: GpuFraction,
  priority: Priority,
  status: SlotStatus
})

/**
 * @category models
 * @since 0.1.0
 */
export type Allocation = typeof Allocation.Type

/**
 * Memory or storage. `used` and `available` together are never more than `total`.
 *
 * @category models
 * @since 0.1.0
 */
export const Capacity = Schema.Struct({ total: Schema.Natural, used: Schema.Natural, available: Schema.Natural })

/**
 * How much of the memory is used: `low`, from a half `medium`, from three quarters `high`, from nine tenths `critical`.
 *
 * @category models
 * @since 0.1.0
 */
export const Pressure = Schema.Literals(["low", "medium", "high", "critical"])

/**
 * @category models
 * @since 0.1.0
 */
export type Pressure = typeof Pressure.Type

/**
 * The name of a part of the memory, for slots of one type.
 *
 * @category models
 * @since 0.1.0
 */
export const PoolName = Schema.Literals(["inference", "container", "system"])

/**
 * @category models
 * @since 0.1.0
 */
export type PoolName = typeof PoolName.Type

/**
 * A part of the memory. `reserved` is what slots have of it, `available` what they have not.
 *
 * @category models
 * @since 0.1.0
 */
export const Pool = Schema.Struct({
  name: PoolName,
  total: Schema.Natural,
  reserved: Schema.Natural,
  available: Schema.Natural
})

/**
 * How the memory is divided. `total` is all of it, `reserved` what slots do not get; the pools together are what is left.
 *
 * @category models
 * @since 0.1.0
 */
export const Budget = Schema.Struct({
  total: Schema.Natural,
  reserved: Schema.Natural,
  pools: Schema.Struct({ inference: Pool, container: Pool, system: Pool })
})

/**
 * @category models
 * @since 0.1.0
 */
export type Budget = typeof Budget.Type

/**
 * Why a slot is refused, or (`would require preemption`) at whose cost it is given.
 *
 * @category models
 * @since 0.1.0
 */
export const Reason = Schema.Literals([
  "pressure critical",
  "pool exhausted",
  "insufficient memory",
  "insufficient gpu",
  "too many slots",
  "would require preemption"
])

/**
 * @category models
 * @since 0.1.0
 */
export type Reason = typeof Reason.Type
