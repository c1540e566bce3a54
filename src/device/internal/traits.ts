/**
 * What a device is able to do, by what it says of itself.
 *
 * Compute capabilities are those of NVIDIA's CUDA programming guide.
 *
 * @since 0.1.0
 */
import type { Gpu } from "../NvidiaSmi.ts"

const architectures: ReadonlyArray<readonly [capability: RegExp, name: string]> = [
  [/^3\./, "Kepler"],
  [/^5\./, "Maxwell"],
  [/^6\./, "Pascal"],
  [/^7\.[0-4]$/, "Volta"],
  [/^7\./, "Turing"],
  [/^8\.9$/, "Ada Lovelace"],
  [/^8\./, "Ampere"],
  [/^9\./, "Hopper"],
  [/^1[0-2]\./, "Blackwell"]
]

/** Drivers that do not tell a compute capability know no card later than these. */
const byName: ReadonlyArray<readonly [name: RegExp, capability: string]> = [
  [/\b(?:A100|A30)\b/, "8.0"],
  [/\bRTX (?:30\d\d|A\d{4})\b|\b(?:A2|A10|A16|A40)\b/, "8.6"],
  [/\bT4\b|\bRTX 20\d\d\b|\bGTX 16\d\d\b|\bQuadro RTX\b|\bTITAN RTX\b/, "7.5"],
  [/\bV100\b|\bTITAN V\b/, "7.0"],
  [/\bP100\b/, "6.0"],
  [/\bGTX 10\d\d\b|\bP4\b|\bP40\b|\bQuadro P\d+\b|\bTITAN Xp?\b/, "6.1"]
]

const capabilityOf = ({ computeCapability, name }: Gpu): string | undefined =>
  computeCapability ?? byName.find(([pattern]) => pattern.test(name))?.[1]

/**
 * The name of a GPU's architecture; `Unknown` where nothing tells it.
 *
 * @internal
 */
export const architectureOf = (gpu: Gpu): string => {
  const capability = capabilityOf(gpu)
  return architectures.find(([pattern]) => capability !== undefined && pattern.test(capability))?.[1] ?? "Unknown"
}

/**
 * What a GPU can compute with, and whether it is divided or shares the processor's memory.
 *
 * @internal
 */
export const capabilitiesOf = (gpu: Gpu): ReadonlyArray<string> => {
  const capability = Number(capabilityOf(gpu) ?? 0)
  return [
    "cuda",
    // The GTX 16 series is Turing without them.
    ...(capability >= 7 && !/\bGTX 16/.test(gpu.name) ? ["tensor"] : []),
    ...(capability >= 8 ? ["bf16"] : []),
    ...(capability >= 8.9 ? ["fp8"] : []),
    ...(capability >= 10 ? ["fp4"] : []),
    ...(gpu.mig ? ["mig"] : []),
    ...(gpu.memoryTotal === null ? ["unified_memory"] : [])
  ]
}

const inference = new Set(
  ("sse4_2 avx avx2 fma f16c avx512f avx512_bf16 avx512_vnni avx_vnni amx_tile amx_int8 amx_bf16 " +
    "asimd asimddp asimdhp i8mm bf16 sve sve2").split(" ")
)

/**
 * The extensions of a processor that matter to inference, sorted.
 *
 * @internal
 */
export const extensionsOf = (features: ReadonlyArray<string>): ReadonlyArray<string> =>
  features.filter((feature) => inference.has(feature)).sort()
