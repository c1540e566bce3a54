/**
 * The commands of the resource domain: units that change the ledger of slots.
 *
 * @since 0.1.0
 */
import * as Effect from "effect/Effect"
import * as Schema from "effect/Schema"
import * as Unit from "../Unit.ts"
import { InternalError, InvalidInput } from "../UnitError.ts"
import { ResourceAllocationFailed, ResourceInsufficient, ResourcePressureHigh, SlotNotFound } from "./Errors.ts"
import { ResourceAllocated, ResourcePreemption, ResourceReleased } from "./Events.ts"
import { internal } from "./internal/failures.ts"
import { Bytes, GpuFraction, Priority, type Slot, SlotId, SlotStatus, SlotType } from "./Resource.ts"
import { type Grant, ResourceLedger } from "./ResourceLedger.ts"

const tell = Effect.fnUntraced(function*({ preempted, slot }: Grant) {
  const reason = `Made room for ${slot.id}, whose priority is ${slot.priority}`
  for (const slot_id of preempted) yield* ResourcePreemption.publish({ slot_id, reason })
  yield* ResourceAllocated.publish({ slot_id: slot.id, memory: slot.memory_limit })
})

const tellReleased = (slot: Slot) => ResourceReleased.publish({ slot_id: slot.id })

const giveBack = (id: string) => Effect.flatMap(ResourceLedger, (ledger) => ledger.release(id, tellReleased))

/**
 * `resource.allocate`: promises memory, and a part of the GPUs, to a workload. Each call gives a slot of its own.
 *
 * **Details**
 *
 * A slot fits where its pool has room, where the host has so much memory available besides what is reserved, and where the GPUs have
 * room: all parts together are no more than there are GPUs. Where it does not fit, slots of a lower priority are taken away, the lowest
 * first, of the same the oldest, but none of type `system_service`; where that is not enough either, nothing changes. While 90 % of
 * the memory is used, slots are for a priority of 80 or more.
 *
 * Interrupted, it leaves no slot: one that was committed by then is released again, and events tell of both. Only an interruption
 * that comes as the work has ended already is too late for that; `resource.allocated` has told of that slot.
 *
 * @category commands
 * @since 0.1.0
 */
export const allocate = Unit.command("resource.allocate", {
  description: "Reserves memory and GPU for a workload",
  input: {
    name: Schema.NonEmptyString,
    type: SlotType,
    memory_bytes: Bytes,
    gpu_fraction: GpuFraction.pipe(Unit.withDefault(0)),
    priority: Priority.pipe(Unit.withDefault(5))
  },
  output: { slot_id: SlotId },
  errors: [ResourceInsufficient, ResourcePressureHigh, ResourceAllocationFailed, InternalError],
  examples: [{ name: "llama", type: "inference_native", memory_bytes: 4_294_967_296, priority: 10 }],
  handler: ({ memory_bytes, ...request }) => {
    let granted: SlotId | undefined
    return Effect.gen(function*() {
      const ledger = yield* ResourceLedger
      const { slot } = yield* ledger.allocate({ ...request, memory_limit: memory_bytes }, (grant) => {
        granted = grant.slot.id
        return tell(grant)
      }).pipe(
        Effect.catchTag("HostError", ({ message }) => new ResourceAllocationFailed({ detail: message })),
        internal
      )
      return { slot_id: slot.id }
    }).pipe(
      // Whoever asked for it will not get to know its id.
      Effect.onInterrupt(() => granted === undefined ? Effect.void : Effect.ignore(giveBack(granted), { log: true }))
    )
  }
})

/**
 * `resource.release`: takes a slot out of the ledger, whatever its status. Its memory can be promised again at once. The workload goes
 * on; whoever started it ends it.
 *
 * @category commands
 * @since 0.1.0
 */
export const release = Unit.command("resource.release", {
  description: "Gives the memory and GPU of a slot back",
  input: { slot_id: Schema.NonEmptyString },
  output: { success: Schema.Literal(true) },
  errors: [SlotNotFound, InternalError],
  examples: [{ slot_id: "slot-0a1b2c3d" }],
  handler: Effect.fnUntraced(function*({ slot_id }) {
    yield* internal(giveBack(slot_id))
    return { success: true } as const
  })
})

/**
 * `resource.update_slot`: changes the limit of a slot in bytes, its status, or both: all of it, or nothing.
 *
 * **Details**
 *
 * A slot that grows, or that becomes active after it was taken away, has to fit; no other slot is taken away for it. One that was
 * taken away can only become active, not idle. It may shrink below what its workload uses. Without `memory_limit` and
 * `status`, or with those that it has, the slot stays as it is.
 *
 * @category commands
 * @since 0.1.0
 */
export const updateSlot = Unit.command("resource.update_slot", {
  description: "Changes the limit or the status of a slot",
  input: {
    slot_id: Schema.NonEmptyString,
    memory_limit: Schema.optionalKey(Bytes),
    status: Schema.optionalKey(SlotStatus)
  },
  output: { success: Schema.Literal(true) },
  errors: [SlotNotFound, ResourceInsufficient, InternalError],
  examples: [{ slot_id: "slot-0a1b2c3d", status: "idle" }],
  handler: Effect.fnUntraced(function*({ memory_limit, slot_id, status }) {
    const ledger = yield* ResourceLedger
    yield* ledger.update(slot_id, { memory_limit, status }).pipe(
      Effect.catchTag(
        "InvalidTransition",
        ({ message }) =>
          new InvalidInput({ unit: "resource.update_slot", issues: [{ path: "status", expected: message }] })
      ),
      internal
    )
    return { success: true } as const
  })
})
