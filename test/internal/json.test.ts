import { assert, describe, it } from "@effect/vitest"
import { Arbitrary, Schema } from "effect"
import { createHash } from "node:crypto"
import * as Json from "../../src/internal/json.ts"
import { oddities } from "../oddities.ts"

const limits = Json.defaultLimits
const encode = (value: unknown): Schema.Json => Json.fromUnknown(value, limits)
const sha256 = (content: string | Uint8Array): string => createHash("sha256").update(content).digest("hex")

/** Puts a value between two others, as what is odd must not cost its neighbours. */
const amid = (value: unknown): unknown => ({ before: 1, odd: value, after: [value, "end"] })

const nested = (depth: number): unknown => {
  let value: unknown = "bottom"
  for (let level = 0; level < depth; level++) value = { down: value }
  return value
}

const depthOf = (json: Schema.Json): number => {
  let depth = 0
  let place: unknown = json
  while (typeof place === "object" && place !== null && "down" in place) {
    place = place.down
    depth++
  }
  return depth
}

describe("json", () => {
  it.each(oddities)("%s", (_, value, json) => {
    const encoded = encode(value)
    assert.deepStrictEqual(encoded, json)
    const around = encode(amid(value))
    assert.deepStrictEqual(around, { before: 1, odd: json, after: [json, "end"] })
    assert.deepStrictEqual(JSON.parse(JSON.stringify(around)), around)
  })

  it("leaves undefined out of objects, and keeps its place in arrays", () => {
    assert.deepStrictEqual(encode({ a: undefined, b: [undefined] }), { b: [null] })
    assert.strictEqual(encode(undefined), null)
  })

  it("keeps a key that is named __proto__, and gives nothing a prototype", () => {
    const value: unknown = JSON.parse("{ \"__proto__\": { \"polluted\": 1 }, \"constructor\": { \"prototype\": 2 } }")
    const encoded = encode(value)
    assert.strictEqual(
      JSON.stringify(encoded),
      "{\"__proto__\":{\"polluted\":1},\"constructor\":{\"prototype\":2}}"
    )
    assert.strictEqual(Object.getPrototypeOf(encoded), Object.prototype)
    assert.isUndefined(Object.getOwnPropertyDescriptor(Object.prototype, "polluted"))
  })

  it("cuts what is nested deeper than 64 levels", () => {
    assert.deepStrictEqual(encode(nested(64)), nested(64) as Schema.Json)
    const deep = encode(nested(10_000))
    assert.strictEqual(depthOf(deep), 64)
    assert.include(JSON.stringify(deep), "nested deeper than 64 levels")
  })

  it("replaces strings and bytes over the limit by their size and digest", () => {
    const at = "x".repeat(64 * 1024)
    assert.strictEqual(encode(at), at)
    assert.deepStrictEqual(encode(`${at}y`), { $truncated: true, bytes: 65_537, sha256: sha256(`${at}y`) })
    // The limit is in bytes of UTF-8, not in UTF-16 units.
    const euros = "\u20ac".repeat(30_000)
    assert.deepStrictEqual(encode(euros), { $truncated: true, bytes: 90_000, sha256: sha256(euros) })
    const latin = "\u00e9".repeat(30_000)
    assert.strictEqual(encode(latin), latin)
    const blob = new Uint8Array(65_537)
    assert.deepStrictEqual(encode(blob), { $truncated: true, bytes: 65_537, sha256: sha256(blob) })
    assert.deepStrictEqual(
      Json.fromUnknown("12345", { ...limits, maxFieldBytes: 4 }),
      { $truncated: true, bytes: 5, sha256: sha256("12345") }
    )
  })

  it("replaces a name over the limit the same way", () => {
    const name = "n".repeat(70_000)
    assert.deepStrictEqual(encode({ [name]: 1 }), {
      [JSON.stringify({ $truncated: true, bytes: 70_000, sha256: sha256(name) })]: 1
    })
  })

  it("bounds a string of 20 MB", () => {
    const huge = "y".repeat(20_000_000)
    assert.deepStrictEqual(encode(amid(huge)), {
      before: 1,
      odd: { $truncated: true, bytes: 20_000_000, sha256: sha256(huge) },
      after: [{ $truncated: true, bytes: 20_000_000, sha256: sha256(huge) }, "end"]
    })
  })

  it("replaces collections of more than 10,000 entries by their number", () => {
    const numbers = Array.from({ length: 10_001 }, (_, n) => n)
    const truncated = { $truncated: true, items: 10_001 }
    assert.deepStrictEqual(encode(numbers.slice(1)), numbers.slice(1))
    assert.deepStrictEqual(encode(numbers), truncated)
    assert.deepStrictEqual(encode(Object.fromEntries(numbers.map((n) => [n, n]))), truncated)
    assert.deepStrictEqual(encode(new Set(numbers)), truncated)
    assert.deepStrictEqual(encode(new Map(numbers.map((n) => [n, n]))), truncated)
    assert.deepStrictEqual(encode(new Float64Array(10_001)), truncated)
    // Nobody has to have that much memory.
    assert.deepStrictEqual(encode(Object.assign([], { length: 4_000_000_000 })), {
      $truncated: true,
      items: 4_000_000_000
    })
  })

  it("bounds graphs whose parts are shared, which have more paths than parts", () => {
    let graph: unknown = "leaf"
    for (let level = 0; level < 50; level++) graph = { left: graph, right: graph }
    const text = JSON.stringify(encode(graph))
    assert.isBelow(text.length, 5_000_000)
    assert.include(text, "{\"$truncated\":true,\"items\":2}")
  })

  it.prop("gives any JSON back as it is", { json: Schema.Json }, ({ json }) => {
    // JSON has one zero.
    assert.deepStrictEqual(encode(json), JSON.parse(JSON.stringify(json)))
  })

  const atoms = oddities.map(([, value]) => Arbitrary.Constant(value))
  const anyAtom = Arbitrary.flatMap(
    Arbitrary.schema(Schema.Int.check(Schema.isBetween({ minimum: 0, maximum: atoms.length - 1 }))),
    (index) => atoms[index] ?? Arbitrary.Constant(undefined)
  )
  const keyed = Arbitrary.array(Arbitrary.all([Arbitrary.schema(Schema.String), anyAtom]))

  it.prop("never throws, and gives what JSON can say, whatever is put together", {
    list: Arbitrary.array(anyAtom),
    entries: keyed
  }, ({ entries, list }) => {
    const value = {
      list,
      object: Object.fromEntries(entries),
      map: new Map<unknown, unknown>(entries),
      set: new Set(list)
    }
    const encoded = encode(value)
    assert.deepStrictEqual(JSON.parse(JSON.stringify(encoded)), encoded)
  })
})
