import { assert, describe, it } from "@effect/vitest"
import { Effect, Result, Schema } from "effect"
import { allFields, minimalFields, parse, without } from "../../../src/device/internal/gpuRows.ts"
import { type Card, gb10, h100Mig, oldDriver, rtx4090, secondCard } from "../cards.ts"

const MiB = 1024 * 1024

const rowOf = (card: Card, fields: ReadonlyArray<string> = allFields) => fields.map((field) => card[field]!).join(", ")
const parsed = (output: string, fields = allFields) => Result.getOrThrow(parse(fields, output))
const problem = (output: string) => Result.getOrThrow(Result.flip(parse(allFields, output)))

const gpu4090 = {
  index: 0,
  uuid: rtx4090["uuid"],
  busId: "00000000:01:00.0",
  name: "NVIDIA GeForce RTX 4090",
  memoryTotal: 24564 * MiB,
  memoryUsed: 1024 * MiB,
  utilization: 37,
  temperature: 56,
  power: 123.45,
  powerLimit: 450,
  powerMin: 150,
  powerMax: 600,
  computeCapability: "8.9",
  mig: false,
  slowdown: 1,
  eccErrors: 0,
  lost: false
}

describe("rows", () => {
  it("become GPUs", () => {
    assert.deepStrictEqual(parsed(`${rowOf(rtx4090)}\n`), [gpu4090])
    const two = parsed(`${rowOf(rtx4090)}\r\n${rowOf(secondCard(h100Mig))}\r\n`)
    assert.deepStrictEqual(two.map(({ index, mig, utilization }) => [index, mig, utilization]), [
      [0, false, 37],
      [1, true, null]
    ])
  })

  it("may lack nearly every value", () => {
    assert.deepStrictEqual(parsed(rowOf(gb10)), [{
      ...gpu4090,
      uuid: gb10["uuid"],
      busId: gb10["pci.bus_id"],
      name: "NVIDIA GB10",
      memoryTotal: null,
      memoryUsed: null,
      utilization: null,
      temperature: null,
      power: null,
      powerLimit: null,
      powerMin: null,
      powerMax: null,
      computeCapability: "12.1",
      slowdown: 0
    }])
    for (
      const missing of ["N/A", "[N/A]", "[Not Supported]", "[Unknown Error]", "ERR!", "[Insufficient Permissions]"]
    ) {
      assert.strictEqual(parsed(rowOf({ ...rtx4090, "power.draw": missing }))[0]?.power, null)
    }
    const lost = parsed(
      rowOf(Object.fromEntries(allFields.map((field) => [field, "[GPU is lost]"]))).replace(/^[^,]*/, "3")
    )
    assert.deepStrictEqual(lost.map(({ index, lost, name }) => [index, lost, name]), [[3, true, "NVIDIA GPU"]])
  })

  it("of fewer fields leave the others out", () => {
    const [gpu] = parsed(rowOf(rtx4090, minimalFields), minimalFields)
    assert.deepStrictEqual(gpu, {
      ...gpu4090,
      powerMin: null,
      powerMax: null,
      computeCapability: undefined,
      slowdown: 0
    })
    const older = allFields.map((field) => field.replace("clocks_event_reasons", "clocks_throttle_reasons"))
      .filter((field) => field in oldDriver)
    assert.strictEqual(parsed(rowOf(oldDriver, older), older)[0]?.slowdown, 1)
  })

  it("stand between remarks", () => {
    const remark = "WARNING: infoROM is corrupted at gpu 0000:01:00.0"
    assert.deepStrictEqual(parsed(`\n${remark}\n${rowOf(rtx4090)}\n${remark}\n`), [gpu4090])
  })

  it("have a name with whatever is in it", () => {
    assert.strictEqual(parsed(rowOf({ ...rtx4090, name: "A, B, C" }))[0]?.name, "A, B, C")
  })

  it("are refused for what is wrong with them", () => {
    assert.strictEqual(problem(""), "it holds no row of a GPU")
    assert.strictEqual(problem("Segmentation fault\n"), "it holds no row of a GPU")
    assert.strictEqual(problem("0, GPU-"), `a row has 2 values instead of ${allFields.length}`)
    const with_ = (field: string, value: string) => problem(rowOf({ ...rtx4090, [field]: value }))
    assert.strictEqual(with_("power.draw", "12.3 W"), "power.draw is \"12.3 W\"")
    assert.strictEqual(with_("memory.total", ""), "memory.total is \"\"")
    assert.strictEqual(with_("temperature.gpu", "1e5"), "temperature.gpu is \"1e5\"")
    assert.strictEqual(with_("clocks_event_reasons.active", "7"), "clocks_event_reasons.active is \"7\"")
    // Nobody reads a number with that many digits.
    assert.strictEqual(with_("power.draw", "9".repeat(400)), `power.draw is "${"9".repeat(100)}"`)
    // One good row does not make up for a bad one.
    assert.match(problem(`${rowOf(rtx4090)}\n1, GPU-\n`), /a row has 2 values/)
  })

  it("have no share of time that is none", () => {
    const share = (value: string) => parsed(rowOf({ ...rtx4090, "utilization.gpu": value }))[0]?.utilization
    assert.deepStrictEqual(["0", "100", "101", "-1", "4294967295"].map(share), [0, 100, null, null, null])
  })

  const Value = Schema.Union([Schema.Int.check(Schema.isBetween({ minimum: 0, maximum: 1e6 })), Schema.Null])
  const Values = Schema.Struct({
    total: Value,
    used: Value,
    temperature: Value,
    power: Value,
    limit: Value,
    slowdown: Schema.Int.check(Schema.isBetween({ minimum: 0, maximum: 2 ** 32 - 1 }))
  })
  it.effect.prop("give back what was printed", { cards: Schema.Array(Values) }, ({ cards }) =>
    Effect.sync(() => {
      const print = (value: number | null, digits = 0) => value === null ? "[N/A]" : value.toFixed(digits)
      const rows = cards.map((card, index) =>
        rowOf({
          ...rtx4090,
          "index": String(index),
          "memory.total": print(card.total),
          "memory.used": print(card.used),
          "temperature.gpu": print(card.temperature),
          "power.draw": print(card.power === null ? null : card.power / 100, 2),
          "power.limit": print(card.limit, 2),
          "clocks_event_reasons.active": `0x${card.slowdown.toString(16).padStart(16, "0")}`
        })
      )
      const result = parse(allFields, rows.join("\n"))
      if (cards.length === 0) return assert.isTrue(Result.isFailure(result))
      const inBytes = (mib: number | null) => mib === null ? null : mib * MiB
      assert.deepStrictEqual(
        Result.getOrThrow(result).map((
          gpu
        ) => [gpu.memoryTotal, gpu.memoryUsed, gpu.temperature, gpu.power, gpu.powerLimit, gpu.slowdown]),
        cards.map((card) => [
          inBytes(card.total),
          inBytes(card.used),
          card.temperature,
          card.power === null ? null : card.power / 100,
          card.limit,
          card.slowdown
        ])
      )
    }))

  const cell = Schema.Literals([
    "0",
    "7",
    "[N/A]",
    "",
    " ",
    ", ",
    ",",
    "\n",
    "\r\n",
    "0x1",
    "-1",
    "1.5",
    "GPU-",
    "[GPU is lost]",
    "\u0000",
    "é"
  ])
  it.effect.prop("are never more than a failure, whatever they are made of", {
    text: Schema.String,
    cells: Schema.Array(cell)
  }, ({ cells, text }) =>
    Effect.sync(() => {
      for (const output of [text, `0, ${text}`, cells.join(", "), `0, ${cells.join(", ")}`]) {
        const result = parse(allFields, output)
        if (Result.isFailure(result)) assert.isAbove(result.failure.length, 0)
        else for (const { utilization } of result.success) assert.isTrue(utilization === null || utilization <= 100)
      }
    }))
})

describe("fields", () => {
  const complain = (field: string) => `Field "${field}" is not a valid field to query.\n\n`

  it("that the driver does not know are left out, or named as they were before", () => {
    const lacking = without(allFields, complain("compute_cap"))
    assert.deepStrictEqual(lacking, allFields.filter((field) => field !== "compute_cap"))
    const renamed = without(lacking, complain("clocks_event_reasons.active"))
    assert.include(renamed, "clocks_throttle_reasons.active")
    assert.strictEqual(renamed.length, lacking.length)
    assert.deepStrictEqual(
      without(renamed, complain("clocks_throttle_reasons.active")),
      lacking.filter((field) => !field.startsWith("clocks_"))
    )
  })

  it("are the minimal ones where the driver does not say which it does not know", () => {
    assert.strictEqual(without(allFields, "Invalid combination of input arguments"), minimalFields)
    assert.strictEqual(without(allFields, complain("fan.speed")), minimalFields)
  })
})
