import { assert, describe, it } from "@effect/vitest"
import { Effect, Schema } from "effect"
import { LineRing } from "../../src/internal/lineRing.ts"

const wide = { maxBytes: 1e6, maxLines: 1e5, maxLineLength: 1e5 }
const encoder = new TextEncoder()

/** Text in which ends of lines and characters of several bytes are frequent. */
const Text = Schema.Array(
  Schema.Literals(["a", "bc", "é", "漢", "🙂", "\n", "\r\n", "\r", "\n\n", " "])
).check(Schema.isMaxLength(60))
/** How long the pieces are in which it arrives. */
const Sizes = Schema.Array(Schema.Int.check(Schema.isBetween({ minimum: 1, maximum: 5 })))

const feed = (ring: LineRing, bytes: Uint8Array, sizes: ReadonlyArray<number>) => {
  let at = 0
  for (const size of sizes) {
    ring.push(bytes.slice(at, at + size))
    at += size
  }
  ring.push(bytes.slice(at))
}

describe("LineRing", () => {
  it.effect.prop(
    "gives the same lines however the output is cut",
    { parts: Text, sizes: Sizes },
    ({ parts, sizes }) =>
      Effect.sync(() => {
        const text = parts.join("")
        const ring = new LineRing(wide)
        feed(ring, encoder.encode(text), sizes)
        ring.end()
        const lines = text.split(/\r\n|\n|\r/)
        if (lines.at(-1) === "") lines.pop()
        assert.deepStrictEqual(ring.since(0), lines)
        assert.strictEqual(ring.count, lines.length)
      })
  )

  it.effect.prop("breaks long lines at the same places however the output is cut", { parts: Text, sizes: Sizes }, ({
    parts,
    sizes
  }) =>
    Effect.sync(() => {
      const text = parts.join("")
      const [cut, whole] = [new LineRing({ ...wide, maxLineLength: 3 }), new LineRing({ ...wide, maxLineLength: 3 })]
      feed(cut, encoder.encode(text), sizes)
      whole.push(encoder.encode(text))
      cut.end()
      whole.end()
      assert.deepStrictEqual(cut.since(0), whole.since(0))
      assert.isTrue(cut.since(0).every((line) => line.length <= 3 && line.isWellFormed()))
      assert.strictEqual(cut.since(0).join(""), text.replaceAll(/[\r\n]/g, ""))
    }))

  it.effect.prop("keeps the last lines within its bounds", {
    parts: Text,
    maxBytes: Schema.Int.check(Schema.isBetween({ minimum: 1, maximum: 20 })),
    maxLines: Schema.Int.check(Schema.isBetween({ minimum: 1, maximum: 5 }))
  }, ({ maxBytes, maxLines, parts }) =>
    Effect.sync(() => {
      const all = new LineRing(wide)
      const ring = new LineRing({ ...wide, maxBytes, maxLines })
      for (const one of [all, ring]) one.push(encoder.encode(parts.join("")))
      for (const one of [all, ring]) one.end()
      const kept = ring.since(0)
      const size = (lines: ReadonlyArray<string>) => lines.reduce((sum, line) => sum + Buffer.byteLength(line), 0)
      assert.strictEqual(ring.count, all.count)
      assert.deepStrictEqual(kept, all.since(all.count - kept.length))
      assert.isTrue(kept.length <= maxLines && size(kept) <= maxBytes)
      const oneMore = all.since(all.count - kept.length - 1)
      assert.isTrue(kept.length === all.count || oneMore.length > maxLines || size(oneMore) > maxBytes)
    }))

  it("goes on from a line that was read before", () => {
    const ring = new LineRing({ ...wide, maxLines: 2 })
    ring.push(encoder.encode("a\nb\n"))
    const seen = ring.count
    ring.push(encoder.encode("c\nd\ne\n"))
    assert.deepStrictEqual(ring.since(seen), ["d", "e"])
    assert.deepStrictEqual(ring.since(ring.count), [])
  })

  it("shows what has no end yet among the last lines only", () => {
    const ring = new LineRing(wide)
    ring.push(encoder.encode("a\nb\nhalf"))
    assert.deepStrictEqual([ring.tail(2), ring.tail(0), ring.since(0)], [["b", "half"], [], ["a", "b"]])
    ring.push(encoder.encode(" done\n"))
    assert.deepStrictEqual(ring.tail(1), ["half done"])
  })

  it("shows bytes that are no UTF-8", () => {
    const ring = new LineRing(wide)
    ring.push(new Uint8Array([0x61, 0xff, 0x62, 0x0a, 0xe2, 0x82]))
    ring.end()
    assert.deepStrictEqual(ring.since(0), ["a\ufffdb", "\ufffd"])
  })
})
