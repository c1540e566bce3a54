/**
 * The queries of the resource domain: units that change nothing.
 *
 * @since 0.1.0
 */
import * as Effect from "effect/Effect"
import * as Schema from "effect/Schema"
import * as Unit from "../Unit.ts"
import { InternalError } from "../UnitError.ts"
import { thresholds } from "./Budgeting.ts"
import { ResourcePressureWarning } from "./Events.ts"
import { internal } from "./internal/failures.ts"
import { Allocation, Budget, Bytes, Capacity, GpuFraction, Pressure, Reason, Slot, SlotType } from "./Resource.ts"
import { ResourceLedger } from "./ResourceLedger.ts"

const withoutTimes = <S extends { readonly created_at: unknown; readonly updated_at: unknown }>(
  { created_at: _created, updated_at: _updated, ...slot }: S
) => slot

/**
 * `resource.status`: what the host has and uses, and its slots by creation, then id.
 *
 * **Details**
 *
 * Memory is that of this process's control group, where that may have less than the machine. Storage is the file system of the folder
 * that the ledger was given. Each time that a look from this process finds the pressure to have come to `high` or `critical`,
 * `resource.pressure_warning` tells so.
 *
 * @category queries
 * @since 0.1.0
 */
export const status = Unit.query("resource.status", {
  description: "Tells what memory and storage the host has and uses, and which slots there are",
  input: {},
  output: {
    memory: Capacity,
    storage: Capacity,
    slots: Schema.Array(Schema.Struct(withoutTimes(Slot.fields))),
    pressure: Pressure
  },
  errors: [InternalError],
  examples: [{}],
  handler: Effect.fnUntraced(function*() {
    const ledger = yield* ResourceLedger
    const { entered, memory, pressure, slots, storage } = yield* internal(ledger.status)
    if (entered && (pressure === "high" || pressure === "critical")) {
      const threshold = thresholds.find(([level]) => level === pressure)?.[1] ?? 0
      yield* ResourcePressureWarning.publish({ pressure, threshold })
    }
    return { memory, storage, slots: slots.map(withoutTimes), pressure }
  })
})

/**
 * `resource.budget`: how the memory is divided into pools, and what is left in them. A quarter of it, 10 GiB at most, or what the
 * ledger's settings say if that is more, is reserved; the pools are shares of the rest.
 *
 * @category queries
 * @since 0.1.0
 */
export const budget = Unit.query("resource.budget", {
  description: "Tells how the memory is divided, and what is left of it for slots",
  input: {},
  output: Budget,
  errors: [InternalError],
  examples: [{}],
  handler: Effect.fnUntraced(function*() {
    const ledger = yield* ResourceLedger
    return yield* internal(ledger.budget)
  })
})

/**
 * `resource.allocations`: what slots have, by creation, then id. An id that no slot has gives an empty list. There are 10,000 slots at
 * most.
 *
 * @category queries
 * @since 0.1.0
 */
export const allocations = Unit.query("resource.allocations", {
  description: "Lists what slots have of the memory and the GPUs",
  input: { slot_id: Schema.optionalKey(Schema.NonEmptyString), type: Schema.optionalKey(SlotType) },
  output: { allocations: Schema.Array(Allocation) },
  errors: [InternalError],
  examples: [{}, { type: "inference_native" }],
  handler: Effect.fnUntraced(function*(filter) {
    const ledger = yield* ResourceLedger
    return { allocations: yield* internal(ledger.allocations(filter)) }
  })
})

/**
 * `resource.can_allocate`: whether `resource.allocate` would give a slot now, by the same rule, and changing nothing. Without `type` it
 * tells whether a slot of any type would be given.
 *
 * **Details**
 *
 * `reason` says why not; or, with a yes, that other slots would be taken away (`would require preemption`). The answer is a hint: it may
 * be out of date by the time it is read. A priority over 100 counts as 100.
 *
 * @category queries
 * @since 0.1.0
 */
export const canAllocate = Unit.query("resource.can_allocate", {
  description: "Tells whether a slot would fit",
  input: {
    memory_bytes: Bytes,
    priority: Schema.Natural.pipe(Unit.withDefault(5)),
    type: Schema.optionalKey(SlotType),
    gpu_fraction: GpuFraction.pipe(Unit.withDefault(0))
  },
  output: { can_allocate: Schema.Boolean, reason: Schema.optionalKey(Reason) },
  errors: [InternalError],
  examples: [{ memory_bytes: 4_294_967_296, type: "inference_native" }],
  handler: Effect.fnUntraced(function*({ gpu_fraction, memory_bytes, priority, type }) {
    const ledger = yield* ResourceLedger
    return yield* internal(
      ledger.canAllocate({ type, gpu_fraction, memory_limit: memory_bytes, priority: Math.min(priority, 100) })
    )
  })
})
