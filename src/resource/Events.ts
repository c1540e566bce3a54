/**
 * What the resource domain tells of itself, besides the lifecycle of its units.
 *
 * @since 0.1.0
 */
import * as Schema from "effect/Schema"
import * as DomainEvent from "../DomainEvent.ts"
import { Bytes, Pressure, SlotId } from "./Resource.ts"

/**
 * `resource.allocated`: a slot was given, with its limit in bytes.
 *
 * @category events
 * @since 0.1.0
 */
export const ResourceAllocated = DomainEvent.define("resource.allocated", { slot_id: SlotId, memory: Bytes })

/**
 * `resource.released`: a slot is no more.
 *
 * @category events
 * @since 0.1.0
 */
export const ResourceReleased = DomainEvent.define("resource.released", { slot_id: SlotId })

/**
 * `resource.preemption`: a slot was taken away for one of a higher priority, which `reason` names.
 *
 * @category events
 * @since 0.1.0
 */
export const ResourcePreemption = DomainEvent.define("resource.preemption", {
  slot_id: SlotId,
  reason: Schema.String
})

/**
 * `resource.pressure_warning`: the memory in use has come to a level of `high` or `critical`, which begins at `threshold` of all memory.
 *
 * @category events
 * @since 0.1.0
 */
export const ResourcePressureWarning = DomainEvent.define("resource.pressure_warning", {
  pressure: Pressure,
  threshold: Schema.Finite
})
