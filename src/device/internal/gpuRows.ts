/**
 * What `nvidia-smi --query-gpu=... --format=csv,noheader,nounits` prints.
 *
 * The format is that of the tool's own manual and help (`--help-query-gpu`): a row for each GPU, values apart by a comma and a blank,
 * never quoted, so that it is not the CSV of RFC 4180. Sizes are MiB, power is watts, temperatures are degrees Celsius.
 *
 * @since 0.1.0
 */
import * as Result from "effect/Result"
import type { Gpu } from "../NvidiaSmi.ts"

/** Fields that every driver since the first with this kind of query knows. */
const minimal = [
  "index",
  "uuid",
  "pci.bus_id",
  "memory.total",
  "memory.used",
  "utilization.gpu",
  "temperature.gpu",
  "power.draw",
  "power.limit"
]

/** Last in each query, as it is the one value that could hold a separator. */
const name = "name"

/**
 * The fields that are asked for first. Names are those of current drivers; see `without`.
 *
 * @internal
 */
export const allFields: ReadonlyArray<string> = [
  ...minimal,
  "power.min_limit",
  "power.max_limit",
  "compute_cap",
  "mig.mode.current",
  "clocks_event_reasons.active",
  "ecc.errors.uncorrected.volatile.total",
  name
]

/**
 * The fields to ask for where nothing else helps.
 *
 * @internal
 */
export const minimalFields: ReadonlyArray<string> = [...minimal, name]

/** What a field was called before. */
const olderNames: Readonly<Record<string, string>> = {
  "clocks_event_reasons.active": "clocks_throttle_reasons.active"
}

/**
 * The fields without one that the driver says it does not know, or with the older name of it; the minimal ones where it does not say which.
 *
 * @internal
 */
export const without = (fields: ReadonlyArray<string>, complaint: string): ReadonlyArray<string> => {
  const unknown = /Field "([^"]+)" is not a valid field to query/.exec(complaint)?.[1]
  if (unknown === undefined || !fields.includes(unknown)) return minimalFields
  const older = olderNames[unknown]
  return fields.flatMap((field) => field !== unknown ? [field] : older === undefined ? [] : [older])
}

const separator = ", "

/** In brackets, why there is no value: `[N/A]`, `[Not Supported]`, `[Unknown Error]`, `[GPU is lost]`. */
const isMissing = (value: string): boolean => /^(?:N\/A|ERR!|\[.*\])$/.test(value)

const wrong = (field: string, value: string) => Result.fail(`${field} is ${JSON.stringify(value.slice(0, 100))}`)

const number = (field: string, value: string): Result.Result<number | null, string> => {
  if (isMissing(value)) return Result.succeed(null)
  return /^-?\d{1,15}(?:\.\d{1,15})?$/.test(value) ? Result.succeed(Number(value)) : wrong(field, value)
}

const bits = (field: string, value: string): Result.Result<number, string> => {
  if (isMissing(value)) return Result.succeed(0)
  // All reasons that are known are in the lower half.
  return /^0x[0-9a-f]{1,16}$/i.test(value)
    ? Result.succeed(Number(BigInt(value) & 0xffff_ffffn))
    : wrong(field, value)
}

/** A size, and not a negative number in the place of one. */
const bytes = (mib: number | null): number | null => mib === null || mib < 0 ? null : Math.round(mib * 1024 * 1024)

const toGpu = (fields: ReadonlyArray<string>, line: string): Result.Result<Gpu, string> =>
  Result.gen(function*() {
    const parts = line.split(separator)
    const last = fields.length - 1
    if (parts.length < fields.length) {
      return yield* Result.fail(`a row has ${parts.length} values instead of ${fields.length}`)
    }
    const values = [...parts.slice(0, last), parts.slice(last).join(separator)]
    const text = (field: string): string | undefined => {
      const value = values[fields.indexOf(field)]?.trim()
      return value === undefined || isMissing(value) ? undefined : value
    }
    // A field that was not asked for is one that the card does not report.
    const of = (field: string) => number(field, text(field) ?? "N/A")
    const clocks = fields.find((field) => field.startsWith("clocks_")) ?? ""
    const share = yield* of("utilization.gpu")
    const cap = text("compute_cap")
    return {
      index: Number(text("index")),
      uuid: text("uuid"),
      busId: text("pci.bus_id"),
      name: text(name) ?? "NVIDIA GPU",
      memoryTotal: bytes(yield* of("memory.total")),
      memoryUsed: bytes(yield* of("memory.used")),
      utilization: share === null || share < 0 || share > 100 ? null : share,
      temperature: yield* of("temperature.gpu"),
      power: yield* of("power.draw"),
      powerLimit: yield* of("power.limit"),
      powerMin: yield* of("power.min_limit"),
      powerMax: yield* of("power.max_limit"),
      computeCapability: cap !== undefined && /^\d+\.\d+$/.test(cap) ? cap : undefined,
      mig: text("mig.mode.current") === "Enabled",
      slowdown: yield* bits(clocks, text(clocks) ?? "N/A"),
      eccErrors: (yield* of("ecc.errors.uncorrected.volatile.total")) ?? 0,
      lost: /\[GPU is lost\]/i.test(line)
    }
  })

/**
 * The GPUs of an output, in its order; the failure says what is wrong with it. Lines that are no rows are remarks, as the tool makes
 * them about a damaged infoROM; an output of remarks only, or of nothing, is wrong.
 *
 * @internal
 */
export const parse = (
  fields: ReadonlyArray<string>,
  output: string
): Result.Result<ReadonlyArray<Gpu>, string> => {
  const rows = output.split(/\r?\n/).filter((line) => /^\d{1,4}, /.test(line))
  return rows.length === 0
    ? Result.fail("it holds no row of a GPU")
    : Result.all(rows.map((row) => toGpu(fields, row)))
}
