/**
 * How memory is divided, and whether a slot fits: the one rule by which slots are given, grown, and promised in answers.
 *
 * @since 0.1.0
 */
import type * as Host from "../backends/Host.ts"
import type { PoolName, Pressure, SlotId, SlotType } from "./Resource.ts"

/**
 * What can be set about the division of memory.
 *
 * @category models
 * @since 0.1.0
 */
export interface Settings {
  /**
   * Bytes that slots do not get. Where this is less than a quarter of the memory, or 10 GiB if that is less, then that much is kept
   * from them all the same. Default: 0.
   */
  readonly reserved?: number | undefined
  /** The part of the memory for slots of type `inference_native`, 0 to 1. Default 0.6. */
  readonly inferenceShare?: number | undefined
  /** The part of the memory for slots of type `docker_container`, 0 to 1. Default 0.2. The rest is for `system_service`. */
  readonly containerShare?: number | undefined
}

/** How many bytes each pool has. */
type Pools = Readonly<Record<PoolName, number>>

/**
 * The pool of each type of slot.
 *
 * @category constants
 * @since 0.1.0
 */
export const poolOf: Readonly<Record<SlotType, PoolName>> = {
  inference_native: "inference",
  docker_container: "container",
  system_service: "system"
}

/**
 * The types of slots, in the order in which a slot of any type is looked for.
 *
 * @category constants
 * @since 0.1.0
 */
export const types: ReadonlyArray<SlotType> = ["inference_native", "docker_container", "system_service"]

const GiB = 2 ** 30

/**
 * The bytes that slots do not get, and those that each pool has.
 *
 * **Details**
 *
 * The pools are shares of the whole memory, scaled down to what is not reserved, so that each of them is there on hosts of every
 * size. Whole bytes, rounded down.
 *
 * @category constructors
 * @since 0.1.0
 */
export const divide = (
  total: number,
  { containerShare = 0.2, inferenceShare = 0.6, reserved: configured = 0 }: Settings
): { readonly reserved: number; readonly pools: Pools } => {
  const reserved = Math.min(total, Math.max(configured, Math.ceil(Math.min(total / 4, 10 * GiB))))
  const shares = { inference: inferenceShare, container: containerShare }
  const systemShare = Math.max(0, 1 - shares.inference - shares.container)
  const all = shares.inference + shares.container + systemShare
  const scale = Math.min(1, (total - reserved) / (all * total || 1))
  const part = (share: number): number => Math.floor(share * total * scale)
  const [inference, container] = [part(shares.inference), part(shares.container)]
  // By what is left, as three roundings could come to a byte more than there is.
  const system = Math.max(0, Math.min(part(systemShare), total - reserved - inference - container))
  return { reserved, pools: { inference, container, system } }
}

/**
 * The part of all memory from which each level of pressure begins, the highest first.
 *
 * @category constants
 * @since 0.1.0
 */
export const thresholds: ReadonlyArray<readonly [pressure: Pressure, from: number]> = [
  ["critical", 0.9],
  ["high", 0.75],
  ["medium", 0.5],
  ["low", 0]
]

/**
 * The pressure on memory.
 *
 * @category accessors
 * @since 0.1.0
 */
export const pressureOf = ({ total, used }: Host.Capacity): Pressure =>
  thresholds.find(([, from]) => used >= from * total)?.[0] ?? "low"

/**
 * The least priority that is given a slot while the pressure is critical.
 *
 * @category constants
 * @since 0.1.0
 */
export const criticalPriority = 80

/**
 * How many slots a ledger has at most, preempted ones included.
 *
 * @category constants
 * @since 0.1.0
 */
export const maxSlots = 10_000

/**
 * In how many parts a GPU is counted, so that fractions add up exactly.
 *
 * @category constants
 * @since 0.1.0
 */
export const gpuParts = 1_000_000_000

/**
 * What slots have by now, those that count.
 *
 * @category models
 * @since 0.1.0
 */
export interface Books {
  /** How many slots there are, preempted ones included. */
  readonly slots: number
  readonly bytes: Pools
  /** In parts of a GPU. */
  readonly gpu: number
  /** Bytes that slots have and are known not to use yet, so that the host still shows them as available. */
  readonly unused: number
}

/**
 * What there is to be had.
 *
 * @category models
 * @since 0.1.0
 */
export interface Supply {
  readonly memory: Host.Capacity
  readonly reserved: number
  readonly pools: Pools
  /** How many GPUs there are. */
  readonly gpus: number
}

/**
 * What is asked for.
 *
 * @category models
 * @since 0.1.0
 */
export interface Demand {
  readonly pool: PoolName
  readonly bytes: number
  /** In parts of a GPU. */
  readonly gpu: number
}

/** Bytes and parts of GPUs: what is left, what is missing, what a slot would give back. */
interface Amounts {
  readonly pool: number
  readonly host: number
  readonly gpu: number
}

/**
 * What is left of each kind for slots of a pool; less than nothing where the host has less than it had when slots were given.
 *
 * @category accessors
 * @since 0.1.0
 */
export const roomFor = (pool: PoolName, supply: Supply, books: Books): Amounts => ({
  pool: supply.pools[pool] - books.bytes[pool],
  host: supply.memory.available - supply.reserved - books.unused,
  gpu: supply.gpus * gpuParts - books.gpu
})

/**
 * What is missing of each kind for a demand; `undefined` where it fits.
 *
 * @category accessors
 * @since 0.1.0
 */
export const missingFor = ({ bytes, gpu }: Demand, room: Amounts): Amounts | undefined => {
  const missing = {
    pool: Math.max(0, bytes - room.pool),
    host: Math.max(0, bytes - room.host),
    // Who asks for no GPU does not care how few there are.
    gpu: gpu === 0 ? 0 : Math.max(0, gpu - room.gpu)
  }
  return missing.pool + missing.host + missing.gpu === 0 ? undefined : missing
}

/**
 * A slot that could be taken away.
 *
 * @category models
 * @since 0.1.0
 */
export interface Candidate {
  readonly id: SlotId
  readonly pool: PoolName
  readonly bytes: number
  /** In parts of a GPU. */
  readonly gpu: number
  /** Bytes that its workload uses, where that is known. */
  readonly used: number | undefined
}

/**
 * Which slots to take away for what is missing; `undefined` where all of them together would not be enough.
 *
 * **Details**
 *
 * `candidates` go from the one that is to be taken first. Whoever can be spared is spared, the last one first: no slot is taken
 * away that the others make room without.
 *
 * @category accessors
 * @since 0.1.0
 */
export const choose = <C extends Candidate>(
  candidates: ReadonlyArray<C>,
  pool: PoolName,
  missing: Amounts
): ReadonlyArray<C> | undefined => {
  const given = (candidate: Candidate): Amounts => ({
    pool: candidate.pool === pool ? candidate.bytes : 0,
    // What its workload uses comes back once that has ended, and what it does not use is free at once.
    host: Math.max(candidate.bytes, candidate.used ?? 0),
    gpu: candidate.gpu
  })
  const left = candidates.reduce<Amounts>((sum, candidate) => {
    const { gpu, host, pool } = given(candidate)
    return { pool: sum.pool + pool, host: sum.host + host, gpu: sum.gpu + gpu }
  }, { pool: -missing.pool, host: -missing.host, gpu: -missing.gpu })
  if (Math.min(left.pool, left.host, left.gpu) < 0) return undefined
  let spare = left
  return candidates.toReversed().filter((candidate) => {
    const { gpu, host, pool } = given(candidate)
    const without = { pool: spare.pool - pool, host: spare.host - host, gpu: spare.gpu - gpu }
    if (Math.min(without.pool, without.host, without.gpu) < 0) return true
    spare = without
    return false
  }).toReversed()
}
