import { assert, describe, it } from "@effect/vitest"
import { Effect, Schema } from "effect"
import * as Budgeting from "../../src/resource/Budgeting.ts"
import { PoolName, SlotId } from "../../src/resource/Resource.ts"
import { GiB } from "./world.ts"

const Share = Schema.Finite.check(Schema.isBetween({ minimum: 0, maximum: 1 }))

describe("memory", () => {
  it("is divided by shares, of what is not reserved", () => {
    const inGiB = (total: number, settings: Budgeting.Settings = {}) => {
      const { pools, reserved } = Budgeting.divide(total * GiB, settings)
      return [reserved, pools.inference, pools.container, pools.system].map((bytes) => bytes / GiB)
    }
    // A quarter, and 10 GiB from 40 GiB on.
    assert.deepStrictEqual(inGiB(20), [5, 9, 3, 3])
    assert.deepStrictEqual(inGiB(40), [10, 18, 6, 6])
    assert.deepStrictEqual(inGiB(110), [10, 60, 20, 20])
    assert.deepStrictEqual(inGiB(0), [0, 0, 0, 0])
    // What is configured counts where it is more.
    assert.deepStrictEqual(inGiB(110, { reserved: GiB }), [10, 60, 20, 20])
    assert.deepStrictEqual(inGiB(110, { reserved: 60 * GiB }), [60, 30, 10, 10])
    assert.deepStrictEqual(inGiB(110, { reserved: 200 * GiB }), [110, 0, 0, 0])
    assert.deepStrictEqual(inGiB(110, { inferenceShare: 0.5, containerShare: 0.25 }), [10, 50, 25, 25])
    // Shares of more than the whole are scaled down, and leave nothing for the system.
    assert.deepStrictEqual(inGiB(110, { inferenceShare: 1, containerShare: 1 }), [10, 50, 50, 0])
  })

  it.effect.prop("is never more in its parts than as a whole", {
    total: Schema.Natural,
    reserved: Schema.Natural,
    inferenceShare: Share,
    containerShare: Share
  }, ({ total, ...settings }) =>
    Effect.sync(() => {
      const { pools, reserved } = Budgeting.divide(total, settings)
      const parts = [reserved, ...Object.values(pools)]
      for (const part of parts) assert.isTrue(Number.isSafeInteger(part) && part >= 0, String(part))
      assert.isAtMost(parts.reduce((sum, part) => sum + part), total)
      assert.isAtLeast(reserved, Math.min(total / 4, 10 * GiB))
      assert.isAtLeast(reserved, Math.min(total, settings.reserved))
    }))
})

it("pressure begins where the thresholds say", () => {
  const at = (used: number) => Budgeting.pressureOf({ total: 1000, used, available: 1000 - used })
  assert.deepStrictEqual(
    [0, 499, 500, 749, 750, 899, 900, 1000].map(at),
    ["low", "low", "medium", "medium", "high", "high", "critical", "critical"]
  )
  assert.strictEqual(Budgeting.pressureOf({ total: 0, used: 0, available: 0 }), "critical")
})

describe("what is taken away", () => {
  const Amount = Schema.Int.check(Schema.isBetween({ minimum: 0, maximum: 20 }))
  const candidate = (index: number, bytes: number, pool: PoolName = "inference", gpu = 0, used?: number) => ({
    id: SlotId.make(`slot-${String(index).padStart(8, "0")}`),
    pool,
    bytes,
    gpu,
    used
  })
  const chosen = (missing: { pool: number; host: number; gpu: number }, ...all: ReadonlyArray<Budgeting.Candidate>) =>
    Budgeting.choose(all, "inference", missing)?.map(({ id }) => Number(id.slice(5)))

  it("is the first, as many as are needed, and none that does not help", () => {
    const three = [candidate(1, 4), candidate(2, 4), candidate(3, 4)]
    assert.deepStrictEqual(chosen({ pool: 1, host: 0, gpu: 0 }, ...three), [1])
    assert.deepStrictEqual(chosen({ pool: 4, host: 4, gpu: 0 }, ...three), [1])
    assert.deepStrictEqual(chosen({ pool: 5, host: 0, gpu: 0 }, ...three), [1, 2])
    assert.deepStrictEqual(chosen({ pool: 12, host: 0, gpu: 0 }, ...three), [1, 2, 3])
    assert.isUndefined(chosen({ pool: 13, host: 0, gpu: 0 }, ...three))
    assert.isUndefined(chosen({ pool: 1, host: 0, gpu: 0 }))
    // The first would not be enough, and the second alone is.
    assert.deepStrictEqual(chosen({ pool: 10, host: 0, gpu: 0 }, candidate(1, 4), candidate(2, 10)), [2])
    // Slots of another pool make no room in this one, but on the host.
    const other = candidate(1, 9, "container")
    assert.deepStrictEqual(chosen({ pool: 4, host: 0, gpu: 0 }, other, candidate(2, 4)), [2])
    assert.deepStrictEqual(chosen({ pool: 0, host: 9, gpu: 0 }, other, candidate(2, 4)), [1])
    assert.deepStrictEqual(chosen({ pool: 1, host: 10, gpu: 0 }, other, candidate(2, 4)), [1, 2])
    // Who uses more than the limit gives back more, and who has a part of a GPU that.
    assert.deepStrictEqual(chosen({ pool: 0, host: 9, gpu: 0 }, candidate(1, 4, "inference", 0, 9)), [1])
    assert.deepStrictEqual(chosen({ pool: 0, host: 0, gpu: 7 }, candidate(1, 4), candidate(2, 4, "system", 7)), [2])
  })

  it.effect.prop("is enough, and no more than that", {
    missing: Schema.Struct({ pool: Amount, host: Amount, gpu: Amount }),
    all: Schema.Array(Schema.Struct({ pool: PoolName, bytes: Amount, gpu: Amount, used: Schema.UndefinedOr(Amount) }))
      .check(Schema.isMaxLength(8))
  }, ({ all, missing }) =>
    Effect.sync(() => {
      const candidates = all.map((one, index) => ({
        ...one,
        ...candidate(index, one.bytes, one.pool, one.gpu, one.used)
      }))
      const enough = (taken: ReadonlyArray<Budgeting.Candidate>) => {
        const sum = (of: (one: Budgeting.Candidate) => number) => taken.reduce((total, one) => total + of(one), 0)
        return sum(({ bytes, pool }) => pool === "inference" ? bytes : 0) >= missing.pool &&
          sum(({ bytes, used }) => Math.max(bytes, used ?? 0)) >= missing.host && sum(({ gpu }) => gpu) >= missing.gpu
      }
      const taken = Budgeting.choose(candidates, "inference", missing)
      assert.strictEqual(taken !== undefined, enough(candidates))
      if (taken === undefined) return
      assert.isTrue(enough(taken))
      assert.deepStrictEqual([...taken].sort((a, b) => a.id < b.id ? -1 : 1), [...taken])
      for (const one of taken) assert.isFalse(enough(taken.filter((other) => other !== one)))
    }), { arbitrary: { runs: 300 } })
})
