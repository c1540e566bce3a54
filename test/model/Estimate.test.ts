import { assert, describe, it } from "@effect/vitest"
import * as Schema from "effect/Schema"
import * as Estimate from "../../src/model/Estimate.ts"

const GiB = 2 ** 30

// Llama 3.1 8B in BF16: 32 layers, 8 heads of keys and values 128 wide.
const llama8b: Estimate.ModelShape = {
  weightBytes: 16_060_522_496,
  layers: 32,
  kvHeads: 8,
  headDim: 128,
  contextLength: 131_072
}

describe("Estimate", () => {
  it("adds weights and cache", () => {
    // 2 x 32 x 8 x 128 x 2 bytes = 128 KiB a token: 256 MiB at 2048 tokens, 1 GiB at 8192.
    assert.deepStrictEqual(Estimate.estimate(llama8b), {
      memory_min: Math.ceil(16_060_522_496 * 11 / 10) + GiB / 4,
      memory_recommended: Math.ceil((16_060_522_496 + GiB) * 12 / 10),
      gpu_type: "L4"
    })
    assert.deepStrictEqual(Estimate.estimate({ weightBytes: 10 }), {
      memory_min: 11,
      memory_recommended: 12,
      gpu_type: "RTX 4060"
    })
  })

  it("plans for the context that is asked for, as far as the model goes", () => {
    const { memory_min, memory_recommended } = Estimate.estimate(llama8b, { contextLength: 1000 })!
    assert.strictEqual(memory_min, Math.ceil(16_060_522_496 * 11 / 10 + 1000 * 131_072))
    assert.strictEqual(memory_recommended, Math.ceil((16_060_522_496 + 1000 * 131_072) * 12 / 10))
    assert.strictEqual(
      Estimate.estimate(llama8b, { contextLength: 10 ** 9 })?.memory_recommended,
      Math.ceil((16_060_522_496 + 16 * GiB) * 12 / 10)
    )
    const short = { ...llama8b, contextLength: 512 }
    assert.strictEqual(Estimate.estimate(short)?.memory_min, Math.ceil(16_060_522_496 * 11 / 10) + GiB / 16)
    assert.strictEqual(Estimate.estimate(short)?.memory_recommended, Math.ceil((16_060_522_496 + GiB / 16) * 12 / 10))
  })

  it("counts the heads of each layer", () => {
    const perLayer = Estimate.estimate({
      ...llama8b,
      kvHeads: Array.from({ length: 32 }, (_, i) => i % 2 === 0 ? 16 : 0)
    })
    assert.deepStrictEqual(perLayer, Estimate.estimate(llama8b))
    assert.deepStrictEqual(
      Estimate.estimate({ ...llama8b, kvHeads: 0 }),
      Estimate.estimate({ weightBytes: llama8b.weightBytes })
    )
  })

  it("takes parameters where there are no files, and makes nothing up", () => {
    assert.deepStrictEqual(
      Estimate.estimate({ parameterCount: 7, bytesPerParameter: 0.5 }),
      Estimate.estimate({ weightBytes: 4 })
    )
    assert.isUndefined(Estimate.estimate({}))
    assert.isUndefined(Estimate.estimate({ parameterCount: 7 }))
    assert.isUndefined(Estimate.estimate({ layers: 1, kvHeads: 1, headDim: 1 }))
    assert.isUndefined(Estimate.estimate({ weightBytes: 1, layers: 2 ** 32, kvHeads: 2 ** 32, headDim: 128 }))
  })

  it.prop("never recommends less than the least", {
    weightBytes: Schema.Int.check(Schema.isBetween({ minimum: 0, maximum: 2 ** 43 })),
    layers: Schema.Int.check(Schema.isBetween({ minimum: 0, maximum: 200 })),
    kvHeads: Schema.Int.check(Schema.isBetween({ minimum: 0, maximum: 200 })),
    headDim: Schema.Int.check(Schema.isBetween({ minimum: 0, maximum: 1024 })),
    contextLength: Schema.Int.check(Schema.isBetween({ minimum: 1, maximum: 10 ** 6 }))
  }, (shape) => {
    const { gpu_type, memory_min, memory_recommended } = Estimate.estimate(shape)!
    assert.isAtLeast(memory_min, shape.weightBytes)
    assert.isAtLeast(memory_recommended, memory_min)
    const gpu = Estimate.gpuClasses.find(({ name }) => name === gpu_type)
    assert.isTrue(gpu === undefined ? memory_recommended > 180e9 : gpu.memory >= memory_recommended)
  })

  it("names the smallest GPU that is large enough", () => {
    const memories = Estimate.gpuClasses.map(({ memory }) => memory)
    assert.deepStrictEqual(memories, [...new Set(memories)].sort((a, b) => a - b))
    assert.deepStrictEqual([0, 8e9, 8e9 + 1, 141e9, 180e9].map((bytes) => Estimate.gpuFor(bytes)?.name), [
      "RTX 4060",
      "RTX 4060",
      "RTX 3060",
      "H200",
      "B200"
    ])
    assert.isUndefined(Estimate.gpuFor(180e9 + 1))
    assert.strictEqual(Estimate.estimate({ weightBytes: 200e9 })?.gpu_type, "")
  })

  it("reads numbers of parameters", () => {
    const texts: ReadonlyArray<readonly [string, number | undefined]> = [
      ["350M", 350e6],
      ["1.5B", 1.5e9],
      ["8x7B", 56e9],
      ["8 x 7b", 56e9],
      ["134.52M", 134.52e6],
      ["1T", 1e12],
      ["22k", 22e3],
      ["137", 137],
      [" 7 B ", 7e9],
      ["0.5B", 5e8],
      ["", undefined],
      ["B", undefined],
      ["7Bx8", undefined],
      ["-7B", undefined],
      ["1e9", undefined],
      ["7BB", undefined],
      ["1.2.3B", undefined],
      ["999999x999999999Q", undefined],
      ["x".repeat(100_000), undefined]
    ]
    assert.deepStrictEqual(texts.map(([text]) => Estimate.parseParameterCount(text)), texts.map(([, count]) => count))
  })
})
