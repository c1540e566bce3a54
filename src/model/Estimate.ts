/**
 * How much memory a model needs to serve, computed from its shape.
 *
 * @since 0.1.0
 */
import * as Predicate from "effect/Predicate"
import type { Requirements } from "./Model.ts"

/**
 * What an estimate is computed from. What is not known is `undefined`.
 *
 * **Details**
 *
 * `weightBytes` is the size of the weight files. Where they are not at hand, `parameterCount` times `bytesPerParameter`
 * stands in for it. `layers`, `kvHeads` (one number, or one for each layer) and `headDim` (the mean of a key's and a
 * value's width) give the size of the key-value cache, and `contextLength` is the longest context of the model in tokens.
 *
 * @category models
 * @since 0.1.0
 */
export interface ModelShape {
  readonly weightBytes?: number | undefined
  readonly parameterCount?: number | undefined
  readonly bytesPerParameter?: number | undefined
  readonly layers?: number | undefined
  readonly kvHeads?: number | ReadonlyArray<number> | undefined
  readonly headDim?: number | undefined
  readonly contextLength?: number | undefined
}

/**
 * The part of a model's requirements that an estimate gives.
 *
 * @category models
 * @since 0.1.0
 */
export type Estimate = Pick<Requirements, "memory_min" | "memory_recommended" | "gpu_type">

/**
 * A class of GPU, and how much memory one card of it has, in bytes.
 *
 * @category models
 * @since 0.1.0
 */
export interface GpuClass {
  readonly name: string
  readonly memory: number
}

const gigabyte = 1_000_000_000

/**
 * The known classes of GPU, from small to large.
 *
 * **Details**
 *
 * Memory is what NVIDIA's data sheets state for the card, in decimal gigabytes; drivers report a little more than that.
 *
 * @category constants
 * @since 0.1.0
 */
export const gpuClasses: ReadonlyArray<GpuClass> = [
  { name: "RTX 4060", memory: 8 * gigabyte },
  { name: "RTX 3060", memory: 12 * gigabyte },
  { name: "T4", memory: 16 * gigabyte },
  { name: "L4", memory: 24 * gigabyte },
  { name: "RTX 5090", memory: 32 * gigabyte },
  { name: "A100 40GB", memory: 40 * gigabyte },
  { name: "L40S", memory: 48 * gigabyte },
  { name: "A100 80GB", memory: 80 * gigabyte },
  { name: "H200", memory: 141 * gigabyte },
  { name: "B200", memory: 180 * gigabyte }
]

/**
 * The smallest known class of GPU of which one card holds so many bytes; `undefined` when none does.
 *
 * @category estimates
 * @since 0.1.0
 */
export const gpuFor = (bytes: number): GpuClass | undefined => gpuClasses.find((gpu) => gpu.memory >= bytes)

/** The context to plan for when the caller names none, unless the model's own is shorter. */
const defaultContext = 8192
/** The shortest context at which a model is of use. */
const minimalContext = 2048
/** Keys and values are kept as f16. */
const cacheBytesPerElement = 2

const kvBytesPerToken = (shape: ModelShape): number => {
  const { headDim, kvHeads, layers } = shape
  if (layers === undefined || kvHeads === undefined || headDim === undefined) return 0
  const heads = Predicate.isNumber(kvHeads) ? layers * kvHeads : kvHeads.reduce((sum, heads) => sum + heads, 0)
  return 2 * heads * headDim * cacheBytesPerElement
}

/**
 * Estimates the memory that a model needs.
 *
 * **Details**
 *
 *     weights            = weightBytes, or parameterCount x bytesPerParameter
 *     kv(context)        = 2 x layers x kvHeads x headDim x context x 2 bytes
 *     memory_min         = weights x 1.1 + kv(2048)
 *     memory_recommended = (weights + kv(context)) x 1.2
 *
 * `contextLength` in the options is the context to plan for, in tokens, by default 8192; no context is longer than the
 * model's own. `gpu_type` is the smallest known class of which one card holds `memory_recommended`, or empty when none
 * does. All results are rounded up to bytes.
 *
 * The answer is `undefined` when the size of the weights cannot be told: nothing is made up. Without the three numbers of
 * the cache, its share is 0, which is right for encoders and diffusion models.
 *
 * @category estimates
 * @since 0.1.0
 */
export const estimate = (
  shape: ModelShape,
  options?: { readonly contextLength?: number | undefined } | undefined
): Estimate | undefined => {
  const weights = shape.weightBytes ?? (
    shape.parameterCount === undefined || shape.bytesPerParameter === undefined
      ? undefined
      : Math.ceil(shape.parameterCount * shape.bytesPerParameter)
  )
  if (weights === undefined) return undefined
  const longest = shape.contextLength ?? Infinity
  const context = Math.min(longest, options?.contextLength ?? defaultContext)
  const perToken = kvBytesPerToken(shape)
  // Multiplied before divided: 1.1 and 1.2 are no exact numbers.
  const memory_min = Math.ceil(weights * 11 / 10 + perToken * Math.min(context, minimalContext))
  const memory_recommended = Math.ceil((weights + perToken * context) * 12 / 10)
  // A header can claim any number of layers.
  if (!Number.isSafeInteger(memory_min) || !Number.isSafeInteger(memory_recommended)) return undefined
  return { memory_min, memory_recommended, gpu_type: gpuFor(memory_recommended)?.name ?? "" }
}

const scales = new Map([["", 1], ["K", 1e3], ["M", 1e6], ["B", 1e9], ["T", 1e12], ["Q", 1e15]])

const parameterText = /^(?:(\d{1,6}) ?x ?)?(\d{1,15}(?:\.\d{1,9})?) ?([KMBTQ]?)$/i

/**
 * The number of parameters in a text like `350M`, `1.5B` or `8x7B`, as GGUF's `general.size_label` and Ollama's
 * `parameter_size` have it; `undefined` for anything else.
 *
 * **Gotchas**
 *
 * Experts of a mixture share some of their weights, so that `8x7B`, here 56 billion, is more than the model really has.
 *
 * @category estimates
 * @since 0.1.0
 */
export const parseParameterCount = (text: string): number | undefined => {
  const match = parameterText.exec(text.trim())
  if (match === null) return undefined
  const [, experts = "1", amount, unit = ""] = match
  const count = Math.round(Number(experts) * Number(amount) * (scales.get(unit.toUpperCase()) ?? NaN))
  return Number.isSafeInteger(count) ? count : undefined
}
