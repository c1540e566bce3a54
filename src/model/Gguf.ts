/**
 * Reads the header of a GGUF file: what the model is, and which tensors it holds.
 *
 * The format is that of `docs/gguf.md` in ggml, versions 2 and 3, little-endian: magic, version, counts, key-value pairs,
 * tensor infos, padding, tensor data. Where the document leaves something open, the rules of llama.cpp's own reader
 * (`ggml/src/gguf.cpp`) hold: keys and tensor names are unique, the alignment is a power of two, and tensors follow each
 * other in the order of the header without a gap.
 *
 * The parser is written by hand, for files come from strangers. The one on npm, `@huggingface/gguf` 0.4.6, bounds its
 * counts, but takes a file that was cut off for one that goes on with zeros, keeps whole vocabularies in memory, does not
 * know how many bytes a tensor takes, and opens files by itself instead of through a `FileSystem`. Here every count and
 * length is checked against what the file can still hold before anything is allocated for it, and no more than 64 KiB of
 * the file is in memory at a time. Tensor data is never read.
 *
 * @since 0.1.0
 */
import * as Effect from "effect/Effect"
import type * as FileSystem from "effect/FileSystem"
import * as Predicate from "effect/Predicate"
import type { ModelShape } from "./Estimate.ts"
import * as FileWindow from "./internal/fileWindow.ts"
import { malformed, ModelFileError, Truncated } from "./ModelFileError.ts"

/**
 * An array among the key-value pairs. Arrays of up to 1024 numbers, booleans or strings keep their `values`; of longer
 * and of nested ones, such as a tokenizer's vocabulary, only the `length` is kept.
 *
 * @category models
 * @since 0.1.0
 */
export interface List {
  readonly _tag: "List"
  readonly length: number
  readonly values: ReadonlyArray<string | number | bigint | boolean> | undefined
}

/**
 * A string of more than 64 KiB - 1 bytes, of which only the length is kept.
 *
 * @category models
 * @since 0.1.0
 */
export interface LongText {
  readonly _tag: "LongText"
  readonly bytes: number
}

/**
 * The value of a key. Integers of 64 bits that a number cannot hold exactly are `bigint`.
 *
 * @category models
 * @since 0.1.0
 */
export type Value = string | number | bigint | boolean | List | LongText

/**
 * One tensor: `shape` has the fastest-varying dimension first, `offset` is relative to the start of the tensor data.
 *
 * @category models
 * @since 0.1.0
 */
export interface Tensor {
  readonly name: string
  readonly type: string
  readonly shape: ReadonlyArray<number>
  readonly offset: number
  readonly bytes: number
}

/**
 * The well-known keys, under the names that they have in the file without their prefix.
 *
 * **Details**
 *
 * A key that is absent, or has a value of another kind, is `undefined`. `head_count` and `head_count_kv` are one number,
 * or one for each block. `causal` is false for pure encoders.
 *
 * @category models
 * @since 0.1.0
 */
export interface Metadata {
  readonly architecture: string | undefined
  readonly type: string | undefined
  readonly name: string | undefined
  readonly file_type: number | undefined
  readonly size_label: string | undefined
  readonly context_length: number | undefined
  readonly embedding_length: number | undefined
  readonly block_count: number | undefined
  readonly head_count: number | ReadonlyArray<number> | undefined
  readonly head_count_kv: number | ReadonlyArray<number> | undefined
  readonly key_length: number | undefined
  readonly value_length: number | undefined
  readonly causal: boolean | undefined
  readonly pooling_type: number | undefined
  readonly split_count: number | undefined
  readonly split_tensors_count: number | undefined
}

/**
 * The header of a GGUF file.
 *
 * **Details**
 *
 * `dataOffset` is where the tensor data begins; without tensors, where the header ends. `expectedBytes` is the least
 * length of a file that holds all its tensors, and `fileBytes` the real one, which is never less.
 *
 * @category models
 * @since 0.1.0
 */
export interface Gguf {
  readonly version: 2 | 3
  readonly pairs: ReadonlyMap<string, Value>
  readonly metadata: Metadata
  readonly tensors: ReadonlyArray<Tensor>
  readonly parameterCount: number
  readonly alignment: number
  readonly dataOffset: number
  readonly expectedBytes: number
  readonly fileBytes: number
}

/**
 * The first four bytes of every file, read as a little-endian number.
 *
 * @category constants
 * @since 0.1.0
 */
export const magic = 0x46554747

// Far above what the largest published models have: headers of some 20 MiB, tens of thousands of tensors.
const maxHeaderBytes = 128 * 1024 * 1024
const maxPairs = 65_536
const maxTensors = 262_144
const maxTextBytes = 65_535
const maxAlignment = 2 ** 31
const maxDataBytes = 2 ** 52
const maxKeptValues = 1024
// Nothing that is published nests arrays, and each nested one costs time without costing the file many bytes.
const maxNestedLists = 65_536
const maxNesting = 4

// Elements in a block, bytes in a block: ggml's type traits (`ggml/src/ggml.c`, `gguf-py/gguf/constants.py`). Numbers that
// are not here were withdrawn, or belong to a fork.
const tensorTypes = new Map<number, readonly [name: string, elements: number, bytes: number]>([
  [0, ["F32", 1, 4]],
  [1, ["F16", 1, 2]],
  [2, ["Q4_0", 32, 18]],
  [3, ["Q4_1", 32, 20]],
  [6, ["Q5_0", 32, 22]],
  [7, ["Q5_1", 32, 24]],
  [8, ["Q8_0", 32, 34]],
  [9, ["Q8_1", 32, 40]],
  [10, ["Q2_K", 256, 84]],
  [11, ["Q3_K", 256, 110]],
  [12, ["Q4_K", 256, 144]],
  [13, ["Q5_K", 256, 176]],
  [14, ["Q6_K", 256, 210]],
  [15, ["Q8_K", 256, 292]],
  [16, ["IQ2_XXS", 256, 66]],
  [17, ["IQ2_XS", 256, 74]],
  [18, ["IQ3_XXS", 256, 98]],
  [19, ["IQ1_S", 256, 50]],
  [20, ["IQ4_NL", 32, 18]],
  [21, ["IQ3_S", 256, 110]],
  [22, ["IQ2_S", 256, 82]],
  [23, ["IQ4_XS", 256, 136]],
  [24, ["I8", 1, 1]],
  [25, ["I16", 1, 2]],
  [26, ["I32", 1, 4]],
  [27, ["I64", 1, 8]],
  [28, ["F64", 1, 8]],
  [29, ["IQ1_M", 256, 56]],
  [30, ["BF16", 1, 2]],
  [34, ["TQ1_0", 256, 54]],
  [35, ["TQ2_0", 256, 66]],
  [39, ["MXFP4", 32, 17]],
  [40, ["NVFP4", 64, 36]],
  [41, ["Q1_0", 128, 18]],
  [42, ["Q2_0", 64, 18]]
])

const stringType = 8
const listType = 9

interface Scalar {
  readonly bytes: number
  readonly take: (window: FileWindow.FileWindow) => number | bigint | boolean
}

const exact = (value: bigint): number | bigint => {
  const number = Number(value)
  return Number.isSafeInteger(number) ? number : value
}

const scalars = new Map<number, Scalar>([
  [0, { bytes: 1, take: (window) => window.u8() }],
  [1, { bytes: 1, take: (window) => window.i8() }],
  [2, { bytes: 2, take: (window) => window.u16() }],
  [3, { bytes: 2, take: (window) => window.i16() }],
  [4, { bytes: 4, take: (window) => window.u32() }],
  [5, { bytes: 4, take: (window) => window.i32() }],
  [6, { bytes: 4, take: (window) => window.f32() }],
  [7, { bytes: 1, take: (window) => window.u8() !== 0 }],
  [10, { bytes: 8, take: (window) => exact(window.u64()) }],
  [11, { bytes: 8, take: (window) => exact(window.i64()) }],
  [12, { bytes: 8, take: (window) => window.f64() }]
])

const align = (position: number, alignment: number): number => Math.ceil(position / alignment) * alignment

type Reading<A> = Effect.fn.Return<A, ModelFileError>

/** Whether the file can hold `bytes` more of header; asked before anything is read, skipped or allocated. */
const beyond = (window: FileWindow.FileWindow, bytes: number, what: string): ModelFileError | undefined => {
  const end = window.position + bytes
  if (end <= window.size && end <= maxHeaderBytes) return undefined
  return end > maxHeaderBytes
    ? malformed(window.path, `${what} would take ${bytes} bytes, more than any header has`, window.position)
    : new ModelFileError({ path: window.path, reason: new Truncated({ expected: end, actual: window.size }) })
}

function* readCount(window: FileWindow.FileWindow): Reading<number> {
  if (!window.has(8)) yield* window.fill(8)
  return window.count()
}

function* readU32(window: FileWindow.FileWindow): Reading<number> {
  if (!window.has(4)) yield* window.fill(4)
  return window.u32()
}

function* readName(window: FileWindow.FileWindow, what: string): Reading<string> {
  const at = window.position
  const bytes = yield* readCount(window)
  if (bytes > maxTextBytes) return yield* malformed(window.path, `it claims ${what} of ${bytes} bytes`, at)
  const problem = beyond(window, bytes, what)
  if (problem !== undefined) return yield* problem
  if (!window.has(bytes)) yield* window.fill(bytes)
  return window.text(bytes)
}

function* readText(window: FileWindow.FileWindow, what: string): Reading<string | LongText> {
  const bytes = yield* readCount(window)
  const problem = beyond(window, bytes, what)
  if (problem !== undefined) return yield* problem
  if (bytes > maxTextBytes) {
    window.skip(bytes)
    return { _tag: "LongText", bytes }
  }
  if (!window.has(bytes)) yield* window.fill(bytes)
  return window.text(bytes)
}

/** Counts nested lists over a whole header. */
interface Nesting {
  lists: number
}

function* readList(window: FileWindow.FileWindow, what: string, depth: number, nesting: Nesting): Reading<List> {
  const at = window.position
  const type = yield* readU32(window)
  const length = yield* readCount(window)
  const list = (values?: List["values"]): List => ({ _tag: "List", length, values })

  const scalar = scalars.get(type)
  if (scalar !== undefined) {
    const problem = beyond(window, length * scalar.bytes, what)
    if (problem !== undefined) return yield* problem
    if (length > maxKeptValues) {
      window.skip(length * scalar.bytes)
      return list()
    }
    const values: Array<number | bigint | boolean> = []
    for (let i = 0; i < length; i++) {
      if (!window.has(scalar.bytes)) yield* window.fill(scalar.bytes)
      values.push(scalar.take(window))
    }
    return list(values)
  }

  if (type === stringType) {
    const problem = beyond(window, length * 8, what)
    if (problem !== undefined) return yield* problem
    if (length <= maxKeptValues) {
      const values: Array<string> = []
      let long = false
      for (let i = 0; i < length; i++) {
        const text = yield* readText(window, what)
        if (Predicate.isString(text)) values.push(text)
        else long = true
      }
      return list(long ? undefined : values)
    }
    // A vocabulary: a loop without generators, for it has some hundred thousand entries.
    for (let i = 0; i < length; i++) {
      if (!window.has(8)) yield* window.fill(8)
      const bytes = window.count()
      const problem = beyond(window, bytes, what)
      if (problem !== undefined) return yield* problem
      window.skip(bytes)
    }
    return list()
  }

  if (type === listType) {
    if (depth === maxNesting) return yield* malformed(window.path, `${what} nests arrays too deep`, at)
    nesting.lists += length
    if (nesting.lists > maxNestedLists) return yield* malformed(window.path, `${what} nests too many arrays`, at)
    const problem = beyond(window, length * 12, what)
    if (problem !== undefined) return yield* problem
    for (let i = 0; i < length; i++) yield* readList(window, what, depth + 1, nesting)
    return list()
  }

  return yield* malformed(window.path, `${what} is an array of unknown type ${type}`, at)
}

function* readPairs(window: FileWindow.FileWindow, count: number): Reading<Map<string, Value>> {
  const pairs = new Map<string, Value>()
  const nesting: Nesting = { lists: 0 }
  for (let i = 0; i < count; i++) {
    const at = window.position
    const key = yield* readName(window, "a key")
    if (key === "") return yield* malformed(window.path, "a key is empty", at)
    if (pairs.has(key)) return yield* malformed(window.path, `the key ${key} comes twice`, at)
    const type = yield* readU32(window)
    const scalar = scalars.get(type)
    if (scalar !== undefined) {
      if (!window.has(scalar.bytes)) yield* window.fill(scalar.bytes)
      pairs.set(key, scalar.take(window))
    } else if (type === stringType) {
      pairs.set(key, yield* readText(window, key))
    } else if (type === listType) {
      pairs.set(key, yield* readList(window, key, 1, nesting))
    } else {
      return yield* malformed(window.path, `the key ${key} has a value of unknown type ${type}`, at)
    }
  }
  return pairs
}

function* readTensors(
  window: FileWindow.FileWindow,
  count: number,
  alignment: number
): Reading<{ readonly tensors: Array<Tensor>; readonly dataBytes: number; readonly parameterCount: number }> {
  const tensors: Array<Tensor> = []
  const names = new Set<string>()
  let parameterCount = 0n
  let next = 0
  let dataBytes = 0
  for (let i = 0; i < count; i++) {
    const at = window.position
    const name = yield* readName(window, "a tensor name")
    if (names.has(name)) return yield* malformed(window.path, `the tensor ${name} comes twice`, at)
    names.add(name)

    const dimensions = yield* readU32(window)
    if (dimensions > 4) return yield* malformed(window.path, `the tensor ${name} has ${dimensions} dimensions`, at)
    if (!window.has(dimensions * 8 + 12)) yield* window.fill(dimensions * 8 + 12)
    const shape: Array<number> = []
    let elements = 1n
    for (let d = 0; d < dimensions; d++) {
      const extent = window.u64()
      elements *= extent
      shape.push(Number(extent))
    }
    const typeNumber = window.u32()
    const offset = window.u64()

    const type = tensorTypes.get(typeNumber)
    if (type === undefined) {
      return yield* malformed(
        window.path,
        `the tensor ${name} has the type ${typeNumber}, which ggml does not have`,
        at
      )
    }
    const [typeName, blockElements, blockBytes] = type
    if ((shape[0] ?? 1) % blockElements !== 0) {
      return yield* malformed(
        window.path,
        `the rows of the tensor ${name} are no multiple of the ${blockElements} elements of a ${typeName} block`,
        at
      )
    }
    parameterCount += elements
    const bytes = elements / BigInt(blockElements) * BigInt(blockBytes)
    const end = next + Number(bytes)
    if (end > maxDataBytes || parameterCount > Number.MAX_SAFE_INTEGER || !shape.every(Number.isSafeInteger)) {
      return yield* malformed(window.path, `the tensor ${name} is larger than any disk: ${shape.join(" x ")}`, at)
    }
    if (offset !== BigInt(next)) {
      const what = offset < BigInt(next) ? "overlaps the one before" : "leaves a hole before it"
      return yield* malformed(window.path, `the tensor ${name} at offset ${offset}, not ${next}, ${what}`, at)
    }
    tensors.push({ name, type: typeName, shape, offset: next, bytes: Number(bytes) })
    dataBytes = end
    next = align(end, alignment)
  }
  return { tensors, dataBytes, parameterCount: Number(parameterCount) }
}

const textOf = (value: unknown): string | undefined => Predicate.isString(value) ? value : undefined

const naturalOf = (value: unknown): number | undefined =>
  Predicate.isNumber(value) && Number.isSafeInteger(value) && value >= 0 ? value : undefined

const isList = (value: unknown): value is List => Predicate.isTagged(value, "List")

const naturalsOf = (value: unknown): number | ReadonlyArray<number> | undefined => {
  const values = isList(value) ? value.values : value
  if (!Array.isArray(values)) return naturalOf(values)
  const naturals = values.map(naturalOf)
  return naturals.every(Predicate.isNotUndefined) ? naturals : undefined
}

/**
 * The well-known keys among a header's pairs.
 *
 * **When to use**
 *
 * For pairs that did not come from a file: Ollama's `POST /api/show` answers the same keys as `model_info`.
 *
 * @category conversions
 * @since 0.1.0
 */
export const describe = (pairs: ReadonlyMap<string, unknown>): Metadata => {
  const architecture = textOf(pairs.get("general.architecture"))
  const own = (key: string) => pairs.get(`${architecture}.${key}`)
  const causal = own("attention.causal")
  return {
    architecture,
    type: textOf(pairs.get("general.type")),
    name: textOf(pairs.get("general.name")),
    file_type: naturalOf(pairs.get("general.file_type")),
    size_label: textOf(pairs.get("general.size_label")),
    context_length: naturalOf(own("context_length")),
    embedding_length: naturalOf(own("embedding_length")),
    block_count: naturalOf(own("block_count")),
    head_count: naturalsOf(own("attention.head_count")),
    head_count_kv: naturalsOf(own("attention.head_count_kv")),
    key_length: naturalOf(own("attention.key_length")),
    value_length: naturalOf(own("attention.value_length")),
    causal: Predicate.isBoolean(causal) ? causal : undefined,
    pooling_type: naturalOf(own("pooling_type")),
    split_count: naturalOf(pairs.get("split.count")),
    split_tensors_count: naturalOf(pairs.get("split.tensors.count"))
  }
}

/**
 * What a memory estimate needs of a header, save for the size of the weights.
 *
 * **Details**
 *
 * Without `head_count_kv` every head has its own keys and values; without `key_length` and `value_length` a head is
 * `embedding_length / head_count` wide. Both as llama.cpp reads them. A pure encoder has no cache, and so no layers here.
 *
 * @category conversions
 * @since 0.1.0
 */
export const shape = (metadata: Metadata): ModelShape => {
  const { block_count, causal, embedding_length, head_count, key_length } = metadata
  const fallback = embedding_length !== undefined && Predicate.isNumber(head_count) && head_count > 0
    ? embedding_length / head_count
    : undefined
  const keys = key_length ?? fallback
  const values = metadata.value_length ?? fallback
  return {
    contextLength: metadata.context_length,
    layers: causal === false ? undefined : block_count,
    kvHeads: metadata.head_count_kv ?? head_count,
    headDim: keys === undefined || values === undefined ? undefined : (keys + values) / 2
  }
}

/**
 * Reads the header of a GGUF file.
 *
 * **Details**
 *
 * Fails with `Malformed` for anything that breaks the format, a version other than 2 and 3 and a big-endian file
 * included; with `Truncated` when the file ends before its header or its last tensor does; with `Missing` or
 * `Unreadable` when it cannot be read. Bytes after the last tensor do no harm.
 *
 * **Gotchas**
 *
 * Of a model in shards only the first has an architecture and the other keys of the model.
 *
 * @category reading
 * @since 0.1.0
 */
export const read: (path: string) => Effect.Effect<Gguf, ModelFileError, FileSystem.FileSystem> = Effect.fnUntraced(
  function*(path: string) {
    const window = yield* FileWindow.open(path)
    yield* window.fill(4)
    if (window.u32() !== magic) return yield* malformed(path, "it does not begin with GGUF", 0)
    yield* window.fill(20)
    const version = window.u32()
    if (version !== 2 && version !== 3) {
      return yield* malformed(
        path,
        (version & 0xffff) === 0 && version !== 0
          ? "it is big-endian, and only little-endian files can be used here"
          : `it has version ${version}, and only 2 and 3 are in use`,
        4
      )
    }
    const tensorCount = window.count()
    const pairCount = window.count()
    if (tensorCount > maxTensors) return yield* malformed(path, `it claims ${tensorCount} tensors`, 8)
    if (pairCount > maxPairs) return yield* malformed(path, `it claims ${pairCount} keys`, 16)
    // The least that a pair and a tensor info can take.
    const problem = beyond(window, pairCount * 14 + tensorCount * 24, "the header")
    if (problem !== undefined) return yield* problem

    const pairs = yield* readPairs(window, pairCount)
    const alignment = pairs.get("general.alignment") ?? 32
    if (!Predicate.isNumber(alignment) || alignment > maxAlignment || !Number.isInteger(Math.log2(alignment))) {
      return yield* malformed(path, "general.alignment is not a power of two")
    }
    const { dataBytes, parameterCount, tensors } = yield* readTensors(window, tensorCount, alignment)
    const dataOffset = tensorCount === 0 ? window.position : align(window.position, alignment)
    const expectedBytes = dataOffset + dataBytes
    if (expectedBytes > window.size) {
      return yield* new ModelFileError({
        path,
        reason: new Truncated({ expected: expectedBytes, actual: window.size })
      })
    }
    const gguf: Gguf = {
      version,
      pairs,
      metadata: describe(pairs),
      tensors,
      parameterCount,
      alignment,
      dataOffset,
      expectedBytes,
      fileBytes: window.size
    }
    return gguf
  },
  Effect.scoped
)
