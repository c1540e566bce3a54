import * as NodeServices from "@effect/platform-node/NodeServices"
import { assert, it } from "@effect/vitest"
import * as Deferred from "effect/Deferred"
import * as Effect from "effect/Effect"
import * as Exit from "effect/Exit"
import * as Fiber from "effect/Fiber"
import * as FileSystem from "effect/FileSystem"
import * as Schema from "effect/Schema"
import { execFileSync } from "node:child_process"
import * as Gguf from "../../src/model/Gguf.ts"
import { Malformed, ModelFileError, Truncated, Unreadable } from "../../src/model/ModelFileError.ts"
import {
  Bytes,
  file,
  gguf,
  ggufHeader,
  type GgufScalar,
  type GgufSpec,
  type GgufValue,
  llamaPairs,
  llamaTensors,
  string,
  tinyGguf,
  u32
} from "./files.ts"

const readBytes = (bytes: Uint8Array) => Effect.flatMap(file("x.gguf", bytes), Gguf.read)

const reasonOf = (bytes: Uint8Array) => Effect.map(Effect.flip(readBytes(bytes)), (error) => error.reason)

/** Reads bytes that must be refused as malformed, and gives what was said. */
const detailOf = (spec: GgufSpec) =>
  Effect.map(reasonOf(gguf(spec)), (reason) => {
    assert.instanceOf(reason, Malformed)
    return [reason.detail, reason.offset]
  })

it.layer(NodeServices.layer)("Gguf", (it) => {
  it.effect("reads a small model", () =>
    Effect.gen(function*() {
      const bytes = tinyGguf()
      const model = yield* readBytes(bytes)
      const dataOffset = Math.ceil(ggufHeader({ pairs: llamaPairs, tensors: llamaTensors }).length / 32) * 32
      assert.deepStrictEqual(model, {
        version: 3,
        pairs: new Map<string, Gguf.Value>([
          ["general.architecture", "llama"],
          ["general.name", "Tiny Llama"],
          ["general.file_type", 0],
          ["general.size_label", "3K"],
          ["llama.context_length", 512],
          ["llama.embedding_length", 32],
          ["llama.block_count", 2],
          ["llama.attention.head_count", 4],
          ["llama.attention.head_count_kv", 2],
          ["tokenizer.ggml.tokens", { _tag: "List", length: 3, values: ["<s>", "</s>", "a"] }]
        ]),
        metadata: {
          architecture: "llama",
          type: undefined,
          name: "Tiny Llama",
          file_type: 0,
          size_label: "3K",
          context_length: 512,
          embedding_length: 32,
          block_count: 2,
          head_count: 4,
          head_count_kv: 2,
          key_length: undefined,
          value_length: undefined,
          causal: undefined,
          pooling_type: undefined,
          split_count: undefined,
          split_tensors_count: undefined
        },
        tensors: [
          { name: "token_embd.weight", type: "F32", shape: [32, 3], offset: 0, bytes: 384 },
          { name: "blk.0.attn_q.weight", type: "Q8_0", shape: [32, 32], offset: 384, bytes: 1088 },
          { name: "output_norm.weight", type: "F32", shape: [5], offset: 1472, bytes: 20 }
        ],
        parameterCount: 96 + 1024 + 5,
        alignment: 32,
        dataOffset,
        expectedBytes: dataOffset + 1492,
        fileBytes: bytes.length
      })
      assert.strictEqual(model.expectedBytes, bytes.length)
      assert.deepStrictEqual(Gguf.shape(model.metadata), { contextLength: 512, layers: 2, kvHeads: 2, headDim: 8 })
    }))

  // UTF-8 has no lone surrogates.
  const Text = Schema.String.check(Schema.makeFilter((text: string) => text.isWellFormed()))
  const Scalar: Schema.Schema<GgufScalar> = Schema.Union([
    Schema.Struct({ type: Schema.Literal("string"), value: Text }),
    Schema.Struct({ type: Schema.Literal("bool"), value: Schema.Boolean }),
    Schema.Struct({
      type: Schema.Literal("u8"),
      value: Schema.Int.check(Schema.isBetween({ minimum: 0, maximum: 255 }))
    }),
    Schema.Struct({
      type: Schema.Literal("i16"),
      value: Schema.Int.check(Schema.isBetween({ minimum: -32768, maximum: 32767 }))
    }),
    Schema.Struct({ type: Schema.Literal("u32"), value: Schema.Int.check(Schema.isUint32()) }),
    Schema.Struct({ type: Schema.Literal("i32"), value: Schema.Int.check(Schema.isInt32()) }),
    Schema.Struct({ type: Schema.Literal("u64"), value: Schema.Natural }),
    Schema.Struct({ type: Schema.Literal("i64"), value: Schema.Int }),
    Schema.Struct({ type: Schema.Literal("f64"), value: Schema.Finite })
  ])

  it.effect.prop("reads back every value", {
    version: Schema.Literals([2, 3]),
    exponent: Schema.Int.check(Schema.isBetween({ minimum: 0, maximum: 7 })),
    entries: Schema.Array(Schema.Struct({
      key: Text.check(Schema.isNonEmpty()),
      value: Scalar,
      list: Schema.Array(Text)
    })),
    extents: Schema.Array(Schema.Int.check(Schema.isBetween({ minimum: 0, maximum: 9 }))).check(Schema.isMaxLength(4)),
    names: Schema.Array(Text)
  }, ({ entries, exponent, extents, names, version }) =>
    Effect.gen(function*() {
      const alignment = 2 ** exponent
      const pairs = new Map<string, GgufValue>()
      const expected = new Map<string, Gguf.Value>()
      for (const { key, list, value } of entries) {
        pairs.set(key, value)
        // No integer is minus zero.
        expected.set(key, typeof value.value === "number" && value.type !== "f64" ? value.value + 0 : value.value)
        pairs.set(`${key}s`, { type: "array", of: "string", values: list })
        expected.set(`${key}s`, { _tag: "List", length: list.length, values: list })
      }
      pairs.set("general.alignment", { type: "u32", value: alignment })
      expected.set("general.alignment", alignment)
      const elements = extents.reduce((product, extent) => product * extent, 1)
      const tensors = [...new Set(names)].map((name) => ({
        name,
        shape: extents.map((extent) => extent + 0),
        bytes: elements * 4
      }))
      const model = yield* readBytes(gguf({ version, alignment, pairs: [...pairs], tensors }))
      assert.strictEqual(model.version, version)
      assert.strictEqual(model.alignment, alignment)
      assert.deepStrictEqual([...model.pairs], [...expected])
      assert.strictEqual(model.parameterCount, tensors.length * elements)
      assert.deepStrictEqual(
        model.tensors.map(({ bytes, name, shape }) => ({ name, shape, bytes })),
        tensors
      )
      assert.strictEqual(model.expectedBytes, model.fileBytes)
    }), { arbitrary: { runs: 100 } })

  it.effect("reads each type of value", () =>
    Effect.gen(function*() {
      const values: ReadonlyArray<readonly [GgufValue, Gguf.Value]> = [
        [{ type: "u8", value: 255 }, 255],
        [{ type: "i8", value: -128 }, -128],
        [{ type: "u16", value: 65535 }, 65535],
        [{ type: "i16", value: -32768 }, -32768],
        [{ type: "u32", value: 4294967295 }, 4294967295],
        [{ type: "i32", value: -2147483648 }, -2147483648],
        [{ type: "f32", value: 0.5 }, 0.5],
        [{ type: "bool", value: true }, true],
        [{ type: "bool", value: false }, false],
        [{ type: "string", value: "snow ☃" }, "snow ☃"],
        [{ type: "u64", value: 2n ** 64n - 1n }, 2n ** 64n - 1n],
        [{ type: "u64", value: 9007199254740991 }, 9007199254740991],
        [{ type: "i64", value: -(2n ** 63n) }, -(2n ** 63n)],
        [{ type: "f64", value: 1e300 }, 1e300],
        [{ type: "array", of: "i8", values: [-1, 2] }, { _tag: "List", length: 2, values: [-1, 2] }],
        [{ type: "array", of: "bool", values: [true, false] }, { _tag: "List", length: 2, values: [true, false] }],
        [{ type: "array", of: "f64", values: [] }, { _tag: "List", length: 0, values: [] }],
        [
          {
            type: "nested",
            values: [{ type: "array", of: "u8", values: [1] }, { type: "array", of: "string", values: ["a"] }]
          },
          { _tag: "List", length: 2, values: undefined }
        ]
      ]
      const model = yield* readBytes(gguf({ pairs: values.map(([value], i) => [`k${i}`, value]) }))
      assert.deepStrictEqual([...model.pairs.values()], values.map(([, expected]) => expected))
    }))

  it.effect("keeps the length of long arrays and long strings only, and reads on behind them", () =>
    Effect.gen(function*() {
      const tokens = Array.from({ length: 30_000 }, (_, i) => `token ${i}`)
      const model = yield* readBytes(tinyGguf({
        pairs: [
          ["tokens", { type: "array", of: "string", values: tokens }],
          ["scores", { type: "array", of: "f32", values: tokens.map((_, i) => i) }],
          ["json", string("x".repeat(200_000))],
          ["edge", string("y".repeat(65_535))],
          ["texts", { type: "array", of: "string", values: ["short", "z".repeat(70_000)] }],
          ...llamaPairs
        ]
      }))
      assert.deepStrictEqual([...model.pairs.values()].slice(0, 5), [
        { _tag: "List", length: 30_000, values: undefined },
        { _tag: "List", length: 30_000, values: undefined },
        { _tag: "LongText", bytes: 200_000 },
        "y".repeat(65_535),
        { _tag: "List", length: 2, values: undefined }
      ])
      assert.strictEqual(model.metadata.architecture, "llama")
      assert.strictEqual(model.tensors.length, 3)
    }))

  it.effect("knows how many bytes a tensor of each type takes", () =>
    Effect.gen(function*() {
      // Bytes of 256 elements, from ggml's block structs: a scale or two, and the packed quants.
      const types: ReadonlyArray<readonly [number, string, number]> = [
        [0, "F32", 1024],
        [1, "F16", 512],
        [2, "Q4_0", 8 * (2 + 16)],
        [3, "Q4_1", 8 * (2 + 2 + 16)],
        [6, "Q5_0", 8 * (2 + 4 + 16)],
        [7, "Q5_1", 8 * (2 + 2 + 4 + 16)],
        [8, "Q8_0", 8 * (2 + 32)],
        [9, "Q8_1", 8 * (2 + 2 + 4 + 32)],
        [10, "Q2_K", 16 + 64 + 2 + 2],
        [11, "Q3_K", 32 + 64 + 12 + 2],
        [12, "Q4_K", 2 + 2 + 12 + 128],
        [13, "Q5_K", 2 + 2 + 12 + 32 + 128],
        [14, "Q6_K", 128 + 64 + 16 + 2],
        [15, "Q8_K", 4 + 256 + 2 * 16],
        [16, "IQ2_XXS", 2 + 64],
        [17, "IQ2_XS", 2 + 64 + 8],
        [18, "IQ3_XXS", 2 + 96],
        [19, "IQ1_S", 2 + 32 + 16],
        [20, "IQ4_NL", 8 * (2 + 16)],
        [21, "IQ3_S", 2 + 64 + 8 + 32 + 4],
        [22, "IQ2_S", 2 + 64 + 8 + 8],
        [23, "IQ4_XS", 2 + 2 + 4 + 128],
        [24, "I8", 256],
        [25, "I16", 512],
        [26, "I32", 1024],
        [27, "I64", 2048],
        [28, "F64", 2048],
        [29, "IQ1_M", 32 + 16 + 8],
        [30, "BF16", 512],
        [34, "TQ1_0", 2 + 4 + 48],
        [35, "TQ2_0", 2 + 64],
        [39, "MXFP4", 8 * (1 + 16)],
        [40, "NVFP4", 4 * (4 + 32)],
        [41, "Q1_0", 2 * (2 + 16)],
        [42, "Q2_0", 4 * (2 + 16)]
      ]
      const model = yield* readBytes(gguf({
        tensors: types.map(([type, name, bytes]) => ({ name, shape: [256, 3], type, bytes: bytes * 3 }))
      }))
      assert.deepStrictEqual(
        model.tensors.map(({ bytes, name, type }) => [name, type, bytes]),
        types.map(([, name, bytes]) => [name, name, bytes * 3])
      )
      assert.strictEqual(model.expectedBytes, model.fileBytes)
    }))

  it.effect("says Truncated for a file cut anywhere", () =>
    Effect.gen(function*() {
      const bytes = tinyGguf()
      const path = yield* file("x.gguf", bytes)
      const fs = yield* FileSystem.FileSystem
      // At every byte of the header, and at some of the data.
      for (let length = bytes.length - 1; length >= 0; length -= length > 700 ? 61 : 1) {
        yield* fs.truncate(path, length)
        const reason = (yield* Effect.flip(Gguf.read(path))).reason
        assert.instanceOf(reason, Truncated)
        assert.strictEqual(reason.actual, length)
        assert.isAbove(reason.expected, length)
        assert.isAtMost(reason.expected, bytes.length)
      }
    }))

  it.effect.prop("never does worse than a typed failure, whichever bytes are changed", {
    changes: Schema.NonEmptyArray(
      Schema.Struct({ at: Schema.Natural, to: Schema.Int.check(Schema.isBetween({ minimum: 0, maximum: 255 })) })
    )
  }, ({ changes }) =>
    Effect.gen(function*() {
      const bytes = tinyGguf()
      // The tensor data is never read.
      for (const { at, to } of changes) bytes[at % 700] = to
      const exit = yield* Effect.exit(Effect.result(readBytes(bytes)))
      assert.isTrue(Exit.isSuccess(exit))
    }), { arbitrary: { runs: 100 } })

  it.effect("never does worse than a typed failure, whichever byte is 255", () =>
    Effect.gen(function*() {
      const path = yield* file("x.gguf", "")
      const fs = yield* FileSystem.FileSystem
      const header = ggufHeader({ pairs: llamaPairs, tensors: llamaTensors }).length
      for (let at = 0; at < header; at++) {
        const bytes = tinyGguf()
        bytes[at] = 255
        yield* fs.writeFile(path, bytes)
        const exit = yield* Effect.exit(Effect.result(Gguf.read(path)))
        assert.isTrue(Exit.isSuccess(exit))
      }
    }))

  it.effect("takes trailing bytes, and a file without tensors", () =>
    Effect.gen(function*() {
      const trailing = yield* readBytes(new Bytes().raw(tinyGguf()).zeros(100).toUint8Array())
      assert.strictEqual(trailing.fileBytes - trailing.expectedBytes, 100)
      const empty = yield* readBytes(gguf({ pairs: llamaPairs }))
      assert.deepStrictEqual([empty.parameterCount, empty.expectedBytes], [0, empty.fileBytes])
    }))

  it.effect("refuses what is no GGUF file that can be used here", () =>
    Effect.gen(function*() {
      assert.deepStrictEqual(yield* detailOf({ magic: "GGML" }), ["it does not begin with GGUF", 0])
      assert.deepStrictEqual(yield* detailOf({ version: 1 }), ["it has version 1, and only 2 and 3 are in use", 4])
      assert.deepStrictEqual(yield* detailOf({ version: 4 }), ["it has version 4, and only 2 and 3 are in use", 4])
      assert.deepStrictEqual(yield* detailOf({ version: 0x03000000 }), [
        "it is big-endian, and only little-endian files can be used here",
        4
      ])
    }))

  it.effect("refuses counts and lengths beyond reason before it allocates for them", () =>
    Effect.gen(function*() {
      const huge = [2n ** 40n, 2n ** 53n + 1n, 2n ** 63n, 2n ** 64n - 1n]
      for (const count of huge) {
        assert.include((yield* detailOf({ tensorCount: count }))[0], "tensors")
        assert.include((yield* detailOf({ pairCount: count }))[0], "keys")
        const claims: ReadonlyArray<readonly [number, Bytes]> = [
          [8, new Bytes().u64(count)],
          [9, new Bytes().u32(0).u64(count)],
          [9, new Bytes().u32(8).u64(count)],
          [9, new Bytes().u32(9).u64(count)],
          [9, new Bytes().u32(8).u64(1).u64(count)],
          [9, new Bytes().u32(9).u64(1).u32(12).u64(count)]
        ]
        for (const [number, claim] of claims) {
          yield* detailOf({ pairs: [["key", { type: "bytes", number, bytes: claim.toUint8Array() }]] })
        }
        const name = ggufHeader({ pairCount: 1 }).u64(count).zeros(100).toUint8Array()
        assert.instanceOf(yield* reasonOf(name), Malformed)
      }
      for (const shape of [[2n ** 53n + 1n], [2n ** 63n], [2n ** 64n - 1n], [2n ** 64n - 1n, 0], [2 ** 50, 2 ** 50]]) {
        assert.include((yield* detailOf({ tensors: [{ name: "t", shape, bytes: 0 }] }))[0], "larger than any disk")
      }
      // Few enough elements, too many bytes.
      assert.include(
        (yield* detailOf({ tensors: [{ name: "t", shape: [2 ** 50], type: 28, bytes: 0 }] }))[0],
        "larger than any disk"
      )
      // A file can be long without taking any room.
      const list = new Bytes().u32(0).u64(200 * 1024 * 1024).toUint8Array()
      const sparse = yield* file("x.gguf", gguf({ pairs: [["key", { type: "bytes", number: 9, bytes: list }]] }))
      const fs = yield* FileSystem.FileSystem
      yield* fs.truncate(sparse, 2 ** 30)
      assert.deepStrictEqual(
        (yield* Effect.flip(Gguf.read(sparse))).reason,
        new Malformed({ detail: "key would take 209715200 bytes, more than any header has", offset: 51 })
      )
      // Below those limits, what the file lacks is what is wrong with it.
      assert.instanceOf(yield* reasonOf(gguf({ tensorCount: 200_000 })), Truncated)
      assert.instanceOf(yield* reasonOf(gguf({ pairCount: 60_000 })), Truncated)
      assert.deepStrictEqual(
        yield* reasonOf(gguf({ tensors: [{ name: "t", shape: [2 ** 40], bytes: 0 }] })),
        new Truncated({ expected: 64 + 4 * 2 ** 40, actual: 64 })
      )
    }))

  it.effect("refuses arrays nested too deep or too often", () =>
    Effect.gen(function*() {
      const nest = (
        depth: number,
        leaf: GgufValue & { readonly type: "array" | "nested" }
      ): GgufValue & { readonly type: "array" | "nested" } =>
        depth === 0 ? leaf : { type: "nested", values: [nest(depth - 1, leaf)] }
      const leaf = { type: "array", of: "u8", values: [] } as const
      yield* readBytes(gguf({ pairs: [["key", nest(3, leaf)]] }))
      assert.strictEqual((yield* detailOf({ pairs: [["key", nest(4, leaf)]] }))[0], "key nests arrays too deep")
      const many = { type: "nested", values: Array.from({ length: 40_000 }, () => leaf) } as const
      assert.strictEqual((yield* detailOf({ pairs: [["a", many], ["b", many]] }))[0], "b nests too many arrays")
    }))

  it.effect("refuses unknown types, repeated names and other nonsense", () =>
    Effect.gen(function*() {
      const one = { name: "t", shape: [8], bytes: 32 }
      const bytes = new Uint8Array(8)
      assert.deepStrictEqual(yield* detailOf({ pairs: [["k", { type: "bytes", number: 13, bytes }]] }), [
        "the key k has a value of unknown type 13",
        24
      ])
      assert.deepStrictEqual(
        yield* detailOf({
          pairs: [["k", { type: "bytes", number: 9, bytes: new Bytes().u32(13).u64(0).toUint8Array() }]]
        }),
        ["k is an array of unknown type 13", 37]
      )
      assert.deepStrictEqual(yield* detailOf({ pairs: [["k", u32(1)], ["k", u32(1)]] }), ["the key k comes twice", 41])
      assert.deepStrictEqual(yield* detailOf({ pairs: [["", u32(1)]] }), ["a key is empty", 24])
      assert.deepStrictEqual(yield* detailOf({ tensors: [one, one] }), ["the tensor t comes twice", 57])
      assert.deepStrictEqual(yield* detailOf({ tensors: [{ ...one, dimensions: 5 }] }), [
        "the tensor t has 5 dimensions",
        24
      ])
      assert.deepStrictEqual(yield* detailOf({ tensors: [{ ...one, type: 4 }] }), [
        "the tensor t has the type 4, which ggml does not have",
        24
      ])
      assert.deepStrictEqual(yield* detailOf({ tensors: [{ ...one, shape: [33], type: 8 }] }), [
        "the rows of the tensor t are no multiple of the 32 elements of a Q8_0 block",
        24
      ])
      for (const value of [u32(0), u32(48), string("32"), { type: "u64", value: 2n ** 40n } as const]) {
        assert.deepStrictEqual(yield* detailOf({ pairs: [["general.alignment", value]] }), [
          "general.alignment is not a power of two",
          undefined
        ])
      }
    }))

  it.effect("refuses tensors that overlap or leave a hole", () =>
    Effect.gen(function*() {
      const tensors = (
        offset: number | bigint
      ) => [{ name: "a", shape: [9], bytes: 36 }, { name: "b", shape: [8], bytes: 32, offset }]
      assert.strictEqual((yield* readBytes(gguf({ tensors: tensors(64) }))).tensors[1]?.offset, 64)
      assert.strictEqual(
        (yield* detailOf({ tensors: tensors(32) }))[0],
        "the tensor b at offset 32, not 64, overlaps the one before"
      )
      assert.strictEqual(
        (yield* detailOf({ tensors: tensors(96) }))[0],
        "the tensor b at offset 96, not 64, leaves a hole before it"
      )
      assert.strictEqual(
        (yield* detailOf({ tensors: tensors(2n ** 64n - 32n) }))[0],
        `the tensor b at offset ${2n ** 64n - 32n}, not 64, leaves a hole before it`
      )
    }))

  it.effect("treats keys of the object prototype as keys", () =>
    Effect.gen(function*() {
      const model = yield* readBytes(gguf({ pairs: [["__proto__", u32(1)], ["constructor", u32(2)], ...llamaPairs] }))
      assert.strictEqual(model.pairs.get("__proto__"), 1)
      assert.strictEqual(model.metadata.architecture, "llama")
    }))

  it.effect("cuts what it quotes", () =>
    Effect.gen(function*() {
      const [detail] = yield* detailOf({
        pairs: [["k".repeat(60_000), { type: "bytes", number: 99, bytes: new Uint8Array(8) }]]
      })
      assert.strictEqual(String(detail).length, 500)
    }))

  it("describes a head for each layer, other widths, encoders, and values of the wrong kind", () => {
    const describe = (pairs: Record<string, unknown>) =>
      Gguf.shape(Gguf.describe(new Map(Object.entries({ "general.architecture": "x", ...pairs }))))
    assert.deepStrictEqual(
      describe({
        "x.block_count": 3,
        "x.attention.head_count_kv": { _tag: "List", length: 3, values: [1, 0, 2] },
        "x.attention.key_length": 192,
        "x.attention.value_length": 128
      }),
      { contextLength: undefined, layers: 3, kvHeads: [1, 0, 2], headDim: 160 }
    )
    // As a hub's JSON has it.
    assert.deepStrictEqual(describe({ "x.attention.head_count_kv": [1, 0, 2] }).kvHeads, [1, 0, 2])
    assert.deepStrictEqual(
      describe({
        "x.block_count": 12,
        "x.embedding_length": 64,
        "x.attention.head_count": 8,
        "x.attention.causal": false
      }),
      { contextLength: undefined, layers: undefined, kvHeads: 8, headDim: 8 }
    )
    assert.deepStrictEqual(
      describe({
        "x.block_count": "12",
        "x.context_length": -1,
        "x.attention.head_count_kv": [1, "2"],
        "x.attention.head_count": 1.5
      }),
      { contextLength: undefined, layers: undefined, kvHeads: undefined, headDim: undefined }
    )
  })

  it.effect("fails with Missing and Unreadable, and waits for no pipe", () =>
    Effect.gen(function*() {
      const path = yield* file("x.gguf", tinyGguf())
      assert.deepStrictEqual(
        (yield* Effect.flip(Gguf.read(`${path}.no`))).message,
        `${path}.no is missing. Check the path; of a model that was downloaded, pull it again`
      )
      const folder = path.slice(0, path.lastIndexOf("/"))
      const error = yield* Effect.flip(Gguf.read(folder))
      assert.strictEqual(
        error.message,
        `${folder} cannot be read: it is no file, but Directory. Check its permissions and the disk`
      )
      assert.isTrue(Schema.is(ModelFileError)(error))
      execFileSync("mkfifo", [`${folder}/pipe`])
      assert.deepStrictEqual(
        (yield* Effect.flip(Gguf.read(`${folder}/pipe`))).reason,
        new Unreadable({ detail: "it is no file, but FIFO", cause: undefined })
      )
    }))

  it.effect("reads the header only", () =>
    Effect.gen(function*() {
      const fs = yield* FileSystem.FileSystem
      const path = yield* file("x.gguf", tinyGguf({ tensors: [{ name: "t", shape: [2 ** 18], bytes: 2 ** 20 }] }))
      let read = 0
      const counting = FileSystem.FileSystem.of({
        ...fs,
        open: (path, options) =>
          Effect.map(fs.open(path, options), (file) => ({
            ...file,
            read: (buffer: Uint8Array, options?: FileSystem.File.ReadOptions) =>
              Effect.tap(file.read(buffer, options), (bytes) => Effect.sync(() => read += bytes))
          }))
      })
      yield* Effect.provideService(Gguf.read(path), FileSystem.FileSystem, counting)
      assert.isAbove(read, 0)
      assert.isAtMost(read, 64 * 1024)
    }))

  it.effect("stops when interrupted, and closes the file", () =>
    Effect.gen(function*() {
      const fs = yield* FileSystem.FileSystem
      const path = yield* file("x.gguf", tinyGguf())
      const reading = yield* Deferred.make<void>()
      const closed = yield* Deferred.make<void>()
      const hanging = FileSystem.FileSystem.of({
        ...fs,
        open: Effect.fnUntraced(function*(path: string, options) {
          yield* Effect.addFinalizer(() => Deferred.succeed(closed, undefined))
          const file = yield* fs.open(path, options)
          return { ...file, read: () => Effect.andThen(Deferred.succeed(reading, undefined), Effect.never) }
        })
      })
      const fiber = yield* Effect.forkChild(Effect.provideService(Gguf.read(path), FileSystem.FileSystem, hanging))
      yield* Deferred.await(reading)
      yield* Fiber.interrupt(fiber)
      yield* Deferred.await(closed)
      assert.isTrue(Exit.hasInterrupts(yield* Fiber.await(fiber)))
    }))
})
