import { assert, describe, it } from "@effect/vitest"
import { Schema } from "effect"
import { LazyId, uuidV7 } from "../../src/internal/ids.ts"

const pattern = /^[0-9a-f]{8}-[0-9a-f]{4}-7[0-9a-f]{3}-[89ab][0-9a-f]{3}-[0-9a-f]{12}$/

const millisOf = (id: string): number => Number.parseInt(id.slice(0, 8) + id.slice(9, 13), 16)

describe("ids", () => {
  // 48 bits of milliseconds.
  const Millis = Schema.Int.check(Schema.isBetween({ minimum: 0, maximum: 2 ** 48 - 1 }))

  it.prop("are UUIDs of version 7 that hold their time", { millis: Millis }, ({ millis }) => {
    const id = uuidV7(millis)
    assert.match(id, pattern)
    assert.strictEqual(millisOf(id), millis)
  })

  it("keep their form where a clock is out of range", () => {
    for (const millis of [-1, 0.5, 2 ** 48, 1e300, -Infinity, Infinity, NaN]) assert.match(uuidV7(millis), pattern)
    assert.strictEqual(millisOf(uuidV7(1234.9)), 1234)
  })

  it("differ, far beyond one pool of randomness", () => {
    const ids = new Set(Array.from({ length: 100_000 }, () => uuidV7(1_700_000_000_000)))
    assert.strictEqual(ids.size, 100_000)
  })

  it("use every random bit", () => {
    const digits = Array.from({ length: 36 }, () => new Set<string>())
    for (let n = 0; n < 4000; n++) {
      Array.from(uuidV7(0)).forEach((digit, index) => digits[index]?.add(digit))
    }
    const seen = digits.map((set) => set.size)
    // The time and the version, the variant, and what is random.
    assert.deepStrictEqual(seen, [
      ...Array.from({ length: 15 }, () => 1),
      ...Array.from({ length: 3 }, () => 16),
      1,
      4,
      ...Array.from({ length: 3 }, () => 16),
      1,
      ...Array.from({ length: 12 }, () => 16)
    ])
  })

  it("sort by time", () => {
    const ids = [5, 1, 4_000_000_000_000, 3, 2].map(uuidV7)
    assert.deepStrictEqual(ids.toSorted().map(millisOf), [1, 2, 3, 5, 4_000_000_000_000])
  })

  it("are made once", () => {
    const id = new LazyId({ millis: 77 }, undefined)
    assert.match(id.value, pattern)
    assert.strictEqual(millisOf(id.value), 77)
    assert.strictEqual(id.value, id.value)
    assert.strictEqual(new LazyId({ millis: 77 }, "given").value, "given")
  })
})
