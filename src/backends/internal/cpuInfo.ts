/**
 * The name and vendor of a processor, out of `/proc/cpuinfo`, which each architecture writes in its own way.
 *
 * Numbers of ARM implementers and parts are those of the MIDR_EL1 register, as ARM's and the vendors' manuals list them.
 *
 * @since 0.1.0
 */
import type { Processor } from "../Host.ts"

const implementers: Readonly<Record<string, string>> = {
  "0x41": "ARM",
  "0x42": "Broadcom",
  "0x43": "Cavium",
  "0x46": "Fujitsu",
  "0x48": "HiSilicon",
  "0x4e": "NVIDIA",
  "0x51": "Qualcomm",
  "0x53": "Samsung",
  "0x56": "Marvell",
  "0x61": "Apple",
  "0x69": "Intel",
  "0x6d": "Microsoft",
  "0x70": "Phytium",
  "0xc0": "Ampere"
}

const parts: Readonly<Record<string, Readonly<Record<string, string>>>> = {
  "0x41": {
    "0xd03": "Cortex-A53",
    "0xd05": "Cortex-A55",
    "0xd07": "Cortex-A57",
    "0xd08": "Cortex-A72",
    "0xd09": "Cortex-A73",
    "0xd0a": "Cortex-A75",
    "0xd0b": "Cortex-A76",
    "0xd0c": "Neoverse-N1",
    "0xd0d": "Cortex-A77",
    "0xd40": "Neoverse-V1",
    "0xd41": "Cortex-A78",
    "0xd42": "Cortex-A78AE",
    "0xd44": "Cortex-X1",
    "0xd46": "Cortex-A510",
    "0xd47": "Cortex-A710",
    "0xd48": "Cortex-X2",
    "0xd49": "Neoverse-N2",
    "0xd4d": "Cortex-A715",
    "0xd4e": "Cortex-X3",
    "0xd4f": "Neoverse-V2",
    "0xd80": "Cortex-A520",
    "0xd81": "Cortex-A720",
    "0xd82": "Cortex-X4",
    "0xd84": "Neoverse-V3",
    "0xd85": "Cortex-X925",
    "0xd87": "Cortex-A725",
    "0xd8e": "Neoverse-N3"
  },
  "0x48": { "0xd01": "TaiShan v110" },
  "0x4e": { "0x003": "Denver 2", "0x004": "Carmel" },
  "0xc0": { "0xac3": "Ampere-1", "0xac4": "Ampere-1a" }
}

/** Vendors by what stands in a processor's name. */
const vendors: ReadonlyArray<readonly [name: RegExp, vendor: string]> = [
  [/^apple/i, "Apple"],
  [/intel/i, "GenuineIntel"],
  [/amd|ryzen|epyc/i, "AuthenticAMD"],
  [/^power|^ppc/i, "IBM"],
  [/loongson/i, "Loongson"]
]

/**
 * The vendor that a processor's name gives away.
 *
 * @internal
 */
export const vendorOfName = (name: string): string => vendors.find(([pattern]) => pattern.test(name))?.[1] ?? "Unknown"

/**
 * Reads `/proc/cpuinfo`. A processor with cores of several kinds is named by all of them, each once.
 *
 * @internal
 */
export const parse = (text: string, architecture: string): Processor => {
  const all = (key: string): ReadonlyArray<string> =>
    text.split("\n").flatMap((line) => {
      const colon = line.indexOf(":")
      const value = line.slice(colon + 1).trim()
      return colon !== -1 && line.slice(0, colon).trim() === key && value !== "" ? [value] : []
    })
  const first = (...keys: ReadonlyArray<string>): string | undefined => keys.flatMap(all)[0]

  const implementer = first("CPU implementer")
  const maker = implementer === undefined ? undefined : implementers[implementer]
  // The lines of a core come in this order, one of each kind.
  const makers = all("CPU implementer")
  const cores = all("CPU part").map((part, index) => parts[makers[index] ?? ""]?.[part])
  const kinds = [...new Set(cores.filter((name) => name !== undefined))].join(" + ")

  const name = first("model name", "Model Name", "cpu model", "cpu") ??
    (kinds === "" ? undefined : kinds) ?? first("Hardware", "uarch", "Processor")
  return {
    name: name ?? (maker === undefined ? `${architecture} processor` : `${maker} ${architecture} processor`),
    vendor: first("vendor_id") ?? maker ?? vendorOfName(name ?? ""),
    architecture,
    features: (first("flags", "Features") ?? "").split(" ").filter((feature) => feature !== "")
  }
}
