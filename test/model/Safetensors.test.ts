import * as NodeServices from "@effect/platform-node/NodeServices"
import { assert, it } from "@effect/vitest"
import * as Effect from "effect/Effect"
import * as Exit from "effect/Exit"
import * as FileSystem from "effect/FileSystem"
import * as Schema from "effect/Schema"
import { LengthMismatch, Malformed, Missing, Truncated } from "../../src/model/ModelFileError.ts"
import * as Safetensors from "../../src/model/Safetensors.ts"
import { Bytes, file, folder, safetensors, safetensorsOf, tinySafetensors } from "./files.ts"

const readBytes = (bytes: Uint8Array) => Effect.flatMap(file("x.safetensors", bytes), Safetensors.read)

const reasonOf = (bytes: Uint8Array) => Effect.map(Effect.flip(readBytes(bytes)), (error) => error.reason)

/** Reads bytes that must be refused as malformed, and gives what was said. */
const detailOf = (bytes: Uint8Array) =>
  Effect.map(reasonOf(bytes), (reason) => {
    assert.instanceOf(reason, Malformed)
    return reason.detail
  })

const entry = (dtype: unknown, shape: unknown, offsets: unknown) =>
  JSON.stringify({ dtype, shape, data_offsets: offsets })

it.layer(NodeServices.layer)("Safetensors", (it) => {
  it.effect("reads a small model", () =>
    Effect.gen(function*() {
      const model = yield* readBytes(tinySafetensors)
      assert.deepStrictEqual(model, {
        metadata: new Map([["format", "pt"]]),
        tensors: [
          { name: "model.embed_tokens.weight", dtype: "F32", shape: [3, 4], begin: 0, end: 48 },
          { name: "model.norm.weight", dtype: "BF16", shape: [4], begin: 48, end: 56 }
        ],
        parameterCount: 16,
        dataOffset: tinySafetensors.length - 56,
        fileBytes: tinySafetensors.length
      })
    }))

  const bits: Record<Safetensors.Dtype, number> = {
    BOOL: 8,
    F4: 4,
    F6_E2M3: 6,
    F6_E3M2: 6,
    U8: 8,
    I8: 8,
    F8_E5M2: 8,
    F8_E4M3: 8,
    F8_E8M0: 8,
    F8_E4M3FNUZ: 8,
    F8_E5M2FNUZ: 8,
    I16: 16,
    U16: 16,
    F16: 16,
    BF16: 16,
    I32: 32,
    U32: 32,
    F32: 32,
    C64: 64,
    F64: 64,
    I64: 64,
    U64: 64
  }
  const dtypes = Object.keys(bits) as Array<Safetensors.Dtype>

  it.effect.prop("reads back every header", {
    tensors: Schema.Array(Schema.Struct({
      name: Schema.String,
      dtype: Schema.Literals(dtypes),
      // Four elements at least share a byte evenly, whatever their width.
      shape: Schema.Array(Schema.Int.check(Schema.isBetween({ minimum: 0, maximum: 5 }))).check(Schema.isMaxLength(3))
    })),
    metadata: Schema.Array(Schema.Tuple([Schema.String, Schema.String]))
  }, ({ metadata, tensors }) =>
    Effect.gen(function*() {
      const named = new Map(
        tensors.filter(({ name }) => name !== "__metadata__" && name !== "__proto__").map(({ dtype, name, shape }) => {
          const extents = [4, ...shape.map((extent) => extent + 0)]
          const elements = extents.reduce((product, extent) => product * extent, 1)
          return [name, { dtype, shape: extents, bytes: elements * bits[dtype] / 8 }] as const
        })
      )
      const entries = Object.fromEntries(metadata)
      const model = yield* readBytes(safetensors(Object.fromEntries(named), entries))
      assert.deepStrictEqual(
        new Map(
          model.tensors.map(({ begin, dtype, end, name, shape }) => [name, { dtype, shape, bytes: end - begin }])
        ),
        new Map([...named].map(([name, tensor]) => [name, { ...tensor }]))
      )
      assert.deepStrictEqual(model.metadata, new Map(Object.entries(entries)))
    }), { arbitrary: { runs: 100 } })

  it.effect("says Truncated for a file cut anywhere", () =>
    Effect.gen(function*() {
      const path = yield* file("x.safetensors", tinySafetensors)
      const fs = yield* FileSystem.FileSystem
      for (let length = tinySafetensors.length - 1; length >= 0; length--) {
        yield* fs.truncate(path, length)
        const reason = (yield* Effect.flip(Safetensors.read(path))).reason
        assert.instanceOf(reason, Truncated)
        assert.strictEqual(reason.actual, length)
        assert.isAbove(reason.expected, length)
        assert.isAtMost(reason.expected, tinySafetensors.length)
      }
    }))

  it.effect("never does worse than a typed failure, whichever byte is changed", () =>
    Effect.gen(function*() {
      const path = yield* file("x.safetensors", "")
      const fs = yield* FileSystem.FileSystem
      for (let at = 0; at < tinySafetensors.length - 56; at++) {
        for (const byte of [0, 0x22, 0x5d]) {
          const bytes = tinySafetensors.slice()
          bytes[at] = byte
          yield* fs.writeFile(path, bytes)
          assert.isTrue(Exit.isSuccess(yield* Effect.exit(Effect.result(Safetensors.read(path)))))
        }
      }
    }))

  it.effect("refuses a file that goes on after its last tensor", () =>
    Effect.gen(function*() {
      const expected = tinySafetensors.length
      assert.deepStrictEqual(
        yield* reasonOf(new Bytes().raw(tinySafetensors).zeros(3).toUint8Array()),
        new LengthMismatch({ expected, actual: expected + 3 })
      )
    }))

  it.effect("refuses lengths of the header beyond reason", () =>
    Effect.gen(function*() {
      for (const length of [100_000_001n, 2n ** 40n, 2n ** 53n + 1n, 2n ** 63n, 2n ** 64n - 1n]) {
        assert.strictEqual(yield* detailOf(safetensorsOf("{}", 0, length)), `it claims a header of ${length} bytes`)
      }
      assert.deepStrictEqual(
        yield* reasonOf(safetensorsOf("{}", 0, 100_000_000)),
        new Truncated({ expected: 100_000_008, actual: 10 })
      )
      assert.strictEqual(yield* detailOf(safetensorsOf("", 0)), "its header does not begin with {")
    }))

  it.effect("refuses headers that are no JSON object, or not only one", () =>
    Effect.gen(function*() {
      assert.strictEqual(yield* detailOf(safetensorsOf(" {}", 0)), "its header does not begin with {")
      assert.strictEqual(yield* detailOf(safetensorsOf("[]", 0)), "its header does not begin with {")
      for (const text of ["{", "{}}", "{}\0", "{\"a\"}", "{\"a\":1,}", "{\"a", "{\"a\\"]) {
        yield* detailOf(safetensorsOf(text, 0))
      }
      // A lone byte of a longer character.
      const text = new TextEncoder().encode(`{"a":${entry("U8", [1], [0, 1])}}`)
      yield* detailOf(safetensorsOf(text.map((byte, at) => at === 2 ? 0xe2 : byte), 1))
      assert.strictEqual((yield* readBytes(safetensorsOf("{}  ", 0))).tensors.length, 0)
    }))

  it.effect("refuses keys that come twice, however they are spelt", () =>
    Effect.gen(function*() {
      const one = entry("U8", [1], [0, 1])
      assert.strictEqual(yield* detailOf(safetensorsOf(`{"a":${one},"a":${one}}`, 1)), "the key a comes twice")
      assert.strictEqual(yield* detailOf(safetensorsOf(`{"a":${one}, "\\u0061" : ${one}}`, 1)), "the key a comes twice")
      assert.strictEqual(
        yield* detailOf(safetensorsOf(`{"a":{"dtype":"U8","dtype":"I8","shape":[1],"data_offsets":[0,1]}}`, 1)),
        "the key dtype comes twice"
      )
      // Values and keys of different objects may repeat; braces and quotes in strings mean nothing.
      const model = yield* readBytes(
        safetensorsOf(`{"__metadata__":{"a":"a","{\\"b\\":":"]"},"a":${one},"b":${entry("U8", [1], [1, 2])}}`, 2)
      )
      assert.deepStrictEqual(model.metadata, new Map([["a", "a"], ["{\"b\":", "]"]]))
      assert.deepStrictEqual(model.tensors.map(({ name }) => name), ["a", "b"])
    }))

  it.effect("refuses headers made to fill the memory", () =>
    Effect.gen(function*() {
      const nested = "[".repeat(2000) + "]".repeat(2000)
      assert.strictEqual(yield* detailOf(safetensorsOf(`{"a":${nested}}`, 0)), "it nests more than 32 levels")
      assert.strictEqual(
        yield* detailOf(safetensorsOf(`{"a":[${"{},".repeat(1_000_001)}{}]}`, 0)),
        "it has more than 2000000 values"
      )
    }))

  it.effect("takes names of the object prototype as names", () =>
    Effect.gen(function*() {
      const model = yield* readBytes(
        safetensorsOf(
          `{"__metadata__":{"__proto__":"x"},"__proto__":${entry("U8", [1], [0, 1])},"constructor":${
            entry("U8", [1], [1, 2])
          }}`,
          2
        )
      )
      assert.deepStrictEqual(model.tensors.map(({ name }) => name), ["__proto__", "constructor"])
      assert.deepStrictEqual(model.metadata, new Map([["__proto__", "x"]]))
      yield* detailOf(safetensorsOf(`{"a":${entry("constructor", [1], [0, 1])}}`, 1))
      yield* detailOf(safetensorsOf(`{"a":{"__proto__":${entry("U8", [1], [0, 1])}}}`, 1))
    }))

  it.effect("refuses entries of the wrong kind", () =>
    Effect.gen(function*() {
      const entries: ReadonlyArray<string> = [
        "1",
        "null",
        "[]",
        "{}",
        entry("F7", [1], [0, 1]),
        entry(8, [1], [0, 1]),
        entry("U8", 1, [0, 1]),
        entry("U8", [-1], [0, 1]),
        entry("U8", [1.5], [0, 1]),
        entry("U8", ["1"], [0, 1]),
        entry("U8", [1], [0]),
        entry("U8", [1], [0, 1, 2]),
        entry("U8", [1], [-1, 0]),
        entry("U8", [1], [1, 0]),
        `{"dtype":"U8","shape":[1],"data_offsets":[0,9007199254740993]}`,
        `{"dtype":"U8","shape":[9007199254740993],"data_offsets":[0,1]}`,
        `{"dtype":"U8","shape":[1],"data_offsets":[0,1e400]}`
      ]
      for (const it of entries) yield* detailOf(safetensorsOf(`{"a":${it}}`, 1))
      assert.strictEqual(
        yield* detailOf(safetensorsOf(`{"__metadata__":{"a":1}}`, 0)),
        "its __metadata__ is no map of strings"
      )
      assert.strictEqual(
        yield* detailOf(safetensorsOf(`{"__metadata__":[]}`, 0)),
        "its __metadata__ is no map of strings"
      )
    }))

  it.effect("refuses tensors that overlap, leave a hole, or are not as large as their shape", () =>
    Effect.gen(function*() {
      const two = (b: string) => safetensorsOf(`{"b":${b},"a":${entry("U8", [4], [0, 4])}}`, 8)
      assert.strictEqual(
        yield* detailOf(two(entry("U8", [5], [3, 8]))),
        "the tensor b at offset 3, not 4, overlaps the one before"
      )
      assert.strictEqual(
        yield* detailOf(two(entry("U8", [3], [5, 8]))),
        "the tensor b at offset 5, not 4, leaves a hole before it"
      )
      assert.strictEqual(
        yield* detailOf(two(entry("U8", [4], [0, 4]))),
        "the tensor a at offset 0, not 4, overlaps the one before"
      )
      assert.strictEqual(
        yield* detailOf(safetensorsOf(`{"a":${entry("U8", [1], [1, 2])}}`, 2)),
        "the tensor a at offset 1, not 0, leaves a hole before it"
      )
      assert.strictEqual(
        yield* detailOf(two(entry("F16", [3], [4, 8]))),
        "the tensor b has 4 bytes, which are not F16 [3]"
      )
      assert.strictEqual(
        yield* detailOf(safetensorsOf(`{"a":${entry("F4", [3], [0, 1])}}`, 1)),
        "the tensor a has 1 bytes, which are not F4 [3]"
      )
      // The product of a shape is exact, however large: this one is 2^64, which is 0 in 64 bits.
      assert.strictEqual(
        yield* detailOf(safetensorsOf(`{"a":${entry("U8", [2 ** 32, 2 ** 32], [0, 0])}}`, 0)),
        "the tensor a has 0 bytes, which are not U8 [4294967296, 4294967296]"
      )
      const max = Number.MAX_SAFE_INTEGER
      assert.strictEqual(
        yield* detailOf(safetensorsOf(`{"a":${entry("U8", [max], [0, max])}}`, 0)),
        "its tensors are larger than any disk"
      )
      // Empty tensors and scalars are none of these.
      const model = yield* readBytes(
        safetensorsOf(
          `{"a":${entry("F32", [0, 7], [0, 0])},"b":${entry("F32", [], [0, 4])},"c":${entry("F32", [0], [4, 4])}}`,
          4
        )
      )
      assert.strictEqual(model.parameterCount, 1)
    }))

  const index = (weight_map: unknown) => JSON.stringify({ metadata: { total_size: 3 }, weight_map })
  const shard = (name: string) => safetensors({ [name]: { dtype: "U8", shape: [3], bytes: 3 } })

  it.effect("reads an index and its shards", () =>
    Effect.gen(function*() {
      const root = yield* folder({
        "model.safetensors.index.json": index({ a: "one.safetensors", b: "sub/two.safetensors" }),
        "one.safetensors": shard("a"),
        "sub/two.safetensors": shard("b")
      })
      const path = `${root}/model.safetensors.index.json`
      const read = yield* Safetensors.readIndex(path)
      assert.deepStrictEqual(read, { shards: new Map([["one.safetensors", ["a"]], ["sub/two.safetensors", ["b"]]]) })
      const shards = yield* Safetensors.readShards(path, read)
      assert.deepStrictEqual([...shards].map(([path, { tensors }]) => [path, tensors[0]?.name]), [
        ["one.safetensors", "a"],
        ["sub/two.safetensors", "b"]
      ])
    }))

  it.effect("refuses an index that is malformed, or leads out of the model", () =>
    Effect.gen(function*() {
      for (
        const text of [
          "",
          "[]",
          "{}",
          index([]),
          index({ a: 1 }),
          index({ a: "../x" }),
          index({ a: "/etc/passwd" }),
          index({ a: "" }),
          `{"weight_map":{"a":"x","a":"y"}}`
        ]
      ) {
        const path = yield* file("model.safetensors.index.json", text)
        const error = yield* Effect.flip(Safetensors.readIndex(path))
        assert.strictEqual(error.path, path)
        assert.instanceOf(error.reason, Malformed)
      }
    }))

  it.effect("says which shard is missing, broken, or lacks a tensor", () =>
    Effect.gen(function*() {
      const errorOf = Effect.fnUntraced(function*(files: Record<string, string | Uint8Array>) {
        const root = yield* folder({
          "m.safetensors.index.json": index({ a: "one.safetensors", b: "two.safetensors" }),
          ...files
        })
        const path = `${root}/m.safetensors.index.json`
        const error = yield* Effect.flip(
          Effect.flatMap(Safetensors.readIndex(path), (it) => Safetensors.readShards(path, it))
        )
        return [error.path.slice(root.length + 1), error.reason] as const
      })
      assert.deepStrictEqual(yield* errorOf({ "one.safetensors": shard("a") }), ["two.safetensors", new Missing()])
      const cut = shard("b").slice(0, -1)
      assert.deepStrictEqual(yield* errorOf({ "one.safetensors": shard("a"), "two.safetensors": cut }), [
        "two.safetensors",
        new Truncated({ expected: cut.length + 1, actual: cut.length })
      ])
      assert.deepStrictEqual(yield* errorOf({ "one.safetensors": shard("a"), "two.safetensors": shard("c") }), [
        "two.safetensors",
        new Malformed({
          detail: "the tensor b should be here by m.safetensors.index.json, and is not",
          offset: undefined
        })
      ])
    }))
})
