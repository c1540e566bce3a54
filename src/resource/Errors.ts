/**
 * The failures of the resource domain, one class per code. Their messages say what happened and what to do.
 *
 * @since 0.1.0
 */
import * as Schema from "effect/Schema"
import * as UnitError from "../UnitError.ts"
import { PoolName } from "./Resource.ts"

/**
 * A slot does not fit, and taking slots of a lower priority away does not make room for it. Whether a retry can help, once slots
 * are released or the host uses less, is said by `retryable`.
 *
 * @category errors
 * @since 0.1.0
 */
export class ResourceInsufficient
  extends UnitError.make<ResourceInsufficient>()("ResourceInsufficient", { code: "00400", retryable: true }, {
    /**
     * What there is too little of: room in the pool, memory that the host has free, GPUs, or room in the ledger for one more slot.
     */
    reason: Schema.Literals(["pool exhausted", "insufficient memory", "insufficient gpu", "too many slots"]),
    pool: PoolName,
    /** In bytes; of GPUs, how many; of slots, one. */
    requested: Schema.Finite,
    /** What could be had, in the same measure. */
    available: Schema.Finite,
    /** False where it is more than there can ever be. */
    retryable: Schema.Boolean
  })
{
  override get message(): string {
    const { available, pool, reason, requested } = this
    switch (reason) {
      case "pool exhausted":
        return `The pool ${pool} has ${available} bytes left, and ${requested} are asked for. Release slots of this pool, or ask for less`
      case "insufficient memory":
        return `The host has ${available} bytes to give, and ${requested} are asked for. Stop what uses its memory, or ask for less`
      case "insufficient gpu":
        return `Of the GPUs ${available} is left, and ${requested} is asked for. Release slots that have a part of them, or ask for less`
      case "too many slots":
        return `There is no room for another slot in the ledger. Release slots that are not needed any more`
    }
  }
}

/**
 * What the host has could not be read. A retry helps once it can.
 *
 * @category errors
 * @since 0.1.0
 */
export class ResourceAllocationFailed
  extends UnitError.make<ResourceAllocationFailed>()("ResourceAllocationFailed", { code: "00401", retryable: true }, {
    detail: Schema.String
  })
{
  override get message(): string {
    return `No slot was given, for nobody knows what the host has. ${this.detail}`
  }
}

/**
 * No slot has this id. A retry does not help; `resource.allocations` tells which there are.
 *
 * @category errors
 * @since 0.1.0
 */
export class SlotNotFound extends UnitError.make<SlotNotFound>()("SlotNotFound", { code: "00402", retryable: false }, {
  slot_id: Schema.String
}) {
  override get message(): string {
    return `There is no slot ${this.slot_id}. List the allocations to see which there are`
  }
}

/**
 * Nearly all memory of the host is used, and only slots of a high priority are given. A retry helps once less is used.
 *
 * @category errors
 * @since 0.1.0
 */
export class ResourcePressureHigh
  extends UnitError.make<ResourcePressureHigh>()("ResourcePressureHigh", { code: "00403", retryable: true }, {
    /** In bytes. */
    used: Schema.Natural,
    /** In bytes. */
    total: Schema.Natural,
    priority: Schema.Natural,
    /** The least priority that is given a slot. */
    priority_needed: Schema.Natural
  })
{
  override get message(): string {
    const { priority, priority_needed, total, used } = this
    return `${used} of ${total} bytes of memory are used, so slots go to a priority of ${priority_needed} or more, and this one has ` +
      `${priority}. Wait until less is used, or ask with a higher priority`
  }
}
