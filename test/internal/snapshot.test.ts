import { assert, describe, it } from "@effect/vitest"
import { Option, Schema } from "effect"
import * as Snapshot from "../../src/internal/snapshot.ts"

class Box extends Schema.Class<Box>("Box")({ items: Schema.mutable(Schema.Array(Schema.String)) }) {
  get size(): number {
    return this.items.length
  }
}

class Handle {
  fd = 3
}

describe("snapshot", () => {
  it("knows the schemas whose checked values share parts with what was given", () => {
    interface List {
      readonly next?: List
    }
    const List = Schema.Struct({ next: Schema.optionalKey(Schema.suspend((): Schema.Codec<List> => List)) })
    const own = [
      Schema.String,
      Schema.Struct({ a: Schema.Array(Schema.Int), b: Schema.Record(Schema.String, Schema.NullOr(Schema.BigInt)) }),
      Schema.Tuple([Schema.Literal("a"), Schema.Symbol]),
      List
    ]
    for (const schema of own) assert.isFalse(Snapshot.isShared(schema.ast))
    const shared = [Schema.Unknown, Schema.Any, Schema.ObjectKeyword, Schema.Json, Schema.Date, Schema.Uint8Array, Box]
    for (const schema of shared) {
      assert.isTrue(Snapshot.isShared(schema.ast))
      assert.isTrue(Snapshot.isShared(Schema.Struct({ a: Schema.Array(schema) }).ast))
      assert.isTrue(Snapshot.isShared(Schema.Tuple([Schema.String, Schema.NullOr(schema)]).ast))
      assert.isTrue(Snapshot.isShared(Schema.Record(Schema.String, schema).ast))
    }
  })

  it("does not change when the original does", () => {
    const original = {
      list: [1, { deep: "a" }],
      date: new Date(0),
      bytes: new Uint8Array([1, 2]),
      buffer: Buffer.from("ab"),
      map: new Map<unknown, unknown>([["k", { v: 1 }]]),
      set: new Set<unknown>([1]),
      box: new Box({ items: ["x"] }),
      bare: Object.assign(Object.create(null), { a: [1] })
    }
    const copy = Snapshot.of(original)
    assert.notStrictEqual(copy, original)
    original.list.push(3)
    original.date.setTime(1)
    original.bytes[0] = 9
    original.buffer[0] = 9
    original.map.set("l", 2)
    original.set.add(2)
    original.box.items.push("y")
    original.bare.a.push(2)
    assert.deepStrictEqual(copy, {
      list: [1, { deep: "a" }],
      date: new Date(0),
      bytes: new Uint8Array([1, 2]),
      buffer: new Uint8Array([97, 98]),
      map: new Map<unknown, unknown>([["k", { v: 1 }]]),
      set: new Set<unknown>([1]),
      box: new Box({ items: ["x"] }),
      bare: Object.assign(Object.create(null), { a: [1] })
    })
    // The copy of an instance is one.
    assert.isTrue(Schema.is(Schema.Struct({ box: Box }))(copy))
  })

  it("keeps what is shared and what is cyclic so", () => {
    const part = { n: 1 }
    const original: { a: unknown; b: unknown; self?: unknown } = { a: part, b: part }
    original.self = original
    const copy = Snapshot.of(original)
    assert.isTrue(
      Schema.is(Schema.Struct({ a: Schema.Unknown, b: Schema.Unknown, self: Schema.Unknown }))(copy) &&
        copy.a === copy.b
    )
    assert.isTrue(Schema.is(Schema.Struct({ self: Schema.Unknown }))(copy) && copy.self === copy)
    let graph: unknown = "leaf"
    for (let level = 0; level < 100; level++) graph = { left: graph, right: graph }
    assert.deepStrictEqual(JSON.stringify(Snapshot.of([part])), "[{\"n\":1}]")
    assert.isObject(Snapshot.of(graph))
  })

  it("holds on to what cannot be copied, or is not shown", () => {
    const { proxy, revoke } = Proxy.revocable({}, {})
    revoke()
    const kept: ReadonlyArray<unknown> = [
      new Handle(),
      new AbortController().signal,
      Option.some(1),
      new URL("http://host/"),
      () => 1,
      proxy,
      new Uint8Array(64 * 1024 + 1),
      new Set(Array.from({ length: 10_001 }, (_, n) => n)),
      new Map(Array.from({ length: 10_001 }, (_, n) => [n, n])),
      Array.from({ length: 10_001 }, (_, n) => n),
      Object.fromEntries(Array.from({ length: 10_001 }, (_, n) => [n, n])),
      "text",
      null,
      undefined,
      1n
    ]
    const copy = Snapshot.of([...kept])
    assert.isArray(copy)
    kept.forEach((value, index) => assert.isTrue(Array.isArray(copy) && copy[index] === value, String(index)))
  })

  it("does not call getters", () => {
    let calls = 0
    const copy = Snapshot.of({
      get bad(): never {
        calls++
        throw new Error("no value here")
      }
    })
    assert.strictEqual(calls, 0)
    assert.throws(() => JSON.stringify(copy), "no value here")
  })

  it("gives up on what is nested without end", () => {
    let deep: unknown = "bottom"
    for (let level = 0; level < 100_000; level++) deep = [deep]
    assert.isArray(Snapshot.of(deep))
  })
})
