import { assert, describe, it } from "@effect/vitest"
import { Result } from "effect"
import * as Health from "../../src/device/Health.ts"
import { allFields, parse } from "../../src/device/internal/gpuRows.ts"
import { type Card, gb10, rtx4090 } from "./cards.ts"

const gpuOf = (card: Card) => Result.getOrThrow(parse(allFields, allFields.map((field) => card[field]).join(", ")))[0]!

/** How a card fares that says something else in some fields. */
const ofCard = (change: Card, card = rtx4090) => {
  const gpu = gpuOf({ ...card, ...change })
  const { memoryTotal: memory_total, memoryUsed: memory_used, power, temperature, utilization } = gpu
  return Health.ofGpu(gpu, { utilization, temperature, power, memory_total, memory_used })
}

const healthy = { status: "healthy", issues: [] } as const

describe("a GPU", () => {
  it("is healthy when idle, at its limit of power, and when it reports nothing", () => {
    assert.deepStrictEqual(ofCard({}), healthy)
    assert.deepStrictEqual(ofCard({}, gb10), healthy)
    // Idle, clocks as set, limited by power, by its peers, by its display.
    for (const bit of [0x1, 0x2, 0x4, 0x10, 0x100]) {
      assert.deepStrictEqual(ofCard({ "clocks_event_reasons.active": `0x${bit.toString(16)}` }), healthy)
    }
  })

  const findings: ReadonlyArray<readonly [field: string, value: string, status: string, issue: RegExp]> = [
    ["temperature.gpu", "80", "healthy", /^$/],
    ["temperature.gpu", "81", "warning", /^The GPU is at 81 °C$/],
    ["temperature.gpu", "90", "warning", /90/],
    ["temperature.gpu", "91", "critical", /91/],
    ["memory.used", "23335", "healthy", /^$/],
    ["memory.used", "23336", "warning", /^95 % of the GPU's memory is used$/],
    ["memory.used", "24564", "warning", /^100 %/],
    ["ecc.errors.uncorrected.volatile.total", "0", "healthy", /^$/],
    ["ecc.errors.uncorrected.volatile.total", "2", "critical", /^ECC could not correct 2 errors/],
    ["clocks_event_reasons.active", "0x0000000000000008", "critical", /^The hardware has slowed the GPU down$/],
    ["clocks_event_reasons.active", "0x0000000000000020", "critical", /^The driver .* temperature$/],
    ["clocks_event_reasons.active", "0x0000000000000040", "critical", /^The hardware .* temperature$/],
    ["clocks_event_reasons.active", "0x0000000000000080", "critical", /power supply/]
  ]
  for (const [field, value, status, issue] of findings) {
    it(`is ${status} with ${field} ${value}`, () => {
      const found = ofCard({ [field]: value })
      assert.strictEqual(found.status, status)
      assert.match(found.issues.join("\n"), issue)
    })
  }

  it("is as bad as the worst finding, and has all of them", () => {
    const warm = { "temperature.gpu": "85", "memory.used": "24564" }
    assert.deepStrictEqual([ofCard(warm).status, ofCard(warm).issues.length], ["warning", 2])
    const bad = ofCard({ ...warm, "clocks_event_reasons.active": "0x68" })
    assert.deepStrictEqual([bad.status, bad.issues.length], ["critical", 5])
  })

  it("is critical when it is lost, whatever else it says", () => {
    const lost = ofCard({ "power.draw": "[GPU is lost]", "temperature.gpu": "85" })
    assert.strictEqual(lost.status, "critical")
    assert.match(lost.issues.join("\n"), /^The GPU is lost.*Restart the host$/)
  })
})

describe("the processor", () => {
  it("fares as its memory is used", () => {
    const at = (memory_used: number) => Health.ofCpu({ memory_total: 1000, memory_used })
    assert.deepStrictEqual([0, 850, 851, 950, 951, 1000].map((used) => at(used).status), [
      "healthy",
      "healthy",
      "warning",
      "warning",
      "critical",
      "critical"
    ])
    assert.deepStrictEqual(at(960).issues, ["96 % of the memory is used"])
    assert.deepStrictEqual(at(850), healthy)
    assert.deepStrictEqual(Health.ofCpu({ memory_total: null, memory_used: 7 }), healthy)
    assert.deepStrictEqual(Health.ofCpu({ memory_total: 0, memory_used: 0 }), healthy)
  })
})
