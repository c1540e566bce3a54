/**
 * Reads the header of a safetensors file, and the index of a model that is split over several.
 *
 * The format is that of the README of huggingface/safetensors: a u64 length, that many bytes of JSON, the tensor data. The
 * rules are those of its own reader (`safetensors/src/tensor.rs`), and the ones that the README asks for beyond it: a
 * header of at most 100 MB that starts with `{`, no key twice, known dtypes, tensors that cover the data without overlap
 * or hole, and a file that ends where the last one does. Tensor data is never read.
 *
 * @since 0.1.0
 */
import * as Effect from "effect/Effect"
import type * as FileSystem from "effect/FileSystem"
import * as Path from "effect/Path"
import * as Result from "effect/Result"
import * as Schema from "effect/Schema"
import { openRegular } from "./internal/fileWindow.ts"
import * as Json from "./internal/jsonFile.ts"
import { RelativePath } from "./Model.ts"
import { LengthMismatch, malformed, ModelFileError, Truncated } from "./ModelFileError.ts"

// Bits of an element (`Dtype::bitsize`).
const dtypeBits = {
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
} as const

/**
 * The type of a tensor's elements.
 *
 * @category models
 * @since 0.1.0
 */
export type Dtype = keyof typeof dtypeBits

/**
 * One tensor: `begin` and `end` are bytes relative to the start of the tensor data.
 *
 * @category models
 * @since 0.1.0
 */
export interface Tensor {
  readonly name: string
  readonly dtype: Dtype
  readonly shape: ReadonlyArray<number>
  readonly begin: number
  readonly end: number
}

/**
 * The header of a safetensors file. `tensors` are in the order of their data, and `dataOffset` is where that begins.
 *
 * @category models
 * @since 0.1.0
 */
export interface Safetensors {
  readonly metadata: ReadonlyMap<string, string>
  readonly tensors: ReadonlyArray<Tensor>
  readonly parameterCount: number
  readonly dataOffset: number
  readonly fileBytes: number
}

/**
 * The index of a model in several files. `shards` maps the path of each, relative to the index, to the tensors that it
 * has to hold.
 *
 * @category models
 * @since 0.1.0
 */
export interface Index {
  readonly shards: ReadonlyMap<string, ReadonlyArray<string>>
}

/**
 * The most bytes of JSON that a header may have (`MAX_HEADER_SIZE`).
 *
 * @category constants
 * @since 0.1.0
 */
export const maxHeaderBytes = 100_000_000

const decodeEntry = Schema.decodeUnknownResult(Schema.Struct({
  // The keys of a constant are those of its type.
  dtype: Schema.Literals(Object.keys(dtypeBits) as Array<Dtype>),
  shape: Schema.Array(Schema.Natural),
  data_offsets: Schema.Tuple([Schema.Natural, Schema.Natural])
}))

/**
 * Reads the header of a safetensors file.
 *
 * **Details**
 *
 * Fails with `Malformed` for anything that breaks the format, `Truncated` when the file ends before its header or its
 * last tensor does, `LengthMismatch` when it goes on after it, `Missing` or `Unreadable` when it cannot be read.
 *
 * @category reading
 * @since 0.1.0
 */
export const read: (path: string) => Effect.Effect<Safetensors, ModelFileError, FileSystem.FileSystem> = Effect
  .fnUntraced(function*(path: string) {
    const { file, size } = yield* openRegular(path)
    const truncated = (expected: number) =>
      new ModelFileError({ path, reason: new Truncated({ expected, actual: size }) })

    if (size < 8) return yield* truncated(8)
    const prefix = yield* Json.readBytes(path, file, 0, 8)
    const headerBytes = new DataView(prefix.buffer, prefix.byteOffset).getBigUint64(0, true)
    if (headerBytes > maxHeaderBytes) return yield* malformed(path, `it claims a header of ${headerBytes} bytes`, 0)
    const dataOffset = 8 + Number(headerBytes)
    if (size < dataOffset) return yield* truncated(dataOffset)

    const bytes = yield* Json.readBytes(path, file, 8, Number(headerBytes))
    if (bytes[0] !== 0x7b) return yield* malformed(path, "its header does not begin with {", 8)
    const header = yield* Json.parseObject(path, bytes, 8)

    let metadata: ReadonlyMap<string, string> = new Map()
    const tensors: Array<Tensor> = []
    for (const [name, value] of Object.entries(header)) {
      if (name === "__metadata__") {
        const strings = Json.stringMap(value)
        if (strings === undefined) return yield* malformed(path, "its __metadata__ is no map of strings")
        metadata = strings
        continue
      }
      const decoded = decodeEntry(value)
      if (Result.isFailure(decoded)) return yield* malformed(path, `the tensor ${name}: ${decoded.failure.message}`)
      const { data_offsets: [begin, end], dtype, shape } = decoded.success
      tensors.push({ name, dtype, shape, begin, end })
    }
    tensors.sort((a, b) => a.begin - b.begin || a.end - b.end)

    let next = 0
    let parameterCount = 0n
    for (const { begin, dtype, end, name, shape } of tensors) {
      if (begin !== next) {
        const what = begin < next ? "overlaps the one before" : "leaves a hole before it"
        return yield* malformed(path, `the tensor ${name} at offset ${begin}, not ${next}, ${what}`)
      }
      const elements = shape.reduce((product, extent) => product * BigInt(extent), 1n)
      if (BigInt(end - begin) * 8n !== elements * BigInt(dtypeBits[dtype])) {
        return yield* malformed(
          path,
          `the tensor ${name} has ${end - begin} bytes, which are not ${dtype} [${shape.join(", ")}]`
        )
      }
      parameterCount += elements
      next = end
    }

    const expected = dataOffset + next
    if (!Number.isSafeInteger(expected)) return yield* malformed(path, "its tensors are larger than any disk")
    if (size < expected) return yield* truncated(expected)
    if (size > expected) {
      return yield* new ModelFileError({ path, reason: new LengthMismatch({ expected, actual: size }) })
    }
    // No less than four bits each, all of them in the file: the count is far from 2^53.
    const safetensors: Safetensors = {
      metadata,
      tensors,
      parameterCount: Number(parameterCount),
      dataOffset,
      fileBytes: size
    }
    return safetensors
  }, Effect.scoped)

const isRelativePath: (text: string) => boolean = Schema.is(RelativePath)

/**
 * Reads an index (`model.safetensors.index.json`), without looking at the shards. Fails like `read`.
 *
 * @category reading
 * @since 0.1.0
 */
export const readIndex: (path: string) => Effect.Effect<Index, ModelFileError, FileSystem.FileSystem> = Effect
  .fnUntraced(function*(path: string) {
    const json = yield* Json.read(path)
    const weightMap = Json.stringMap(json["weight_map"])
    if (weightMap === undefined) return yield* malformed(path, "its weight_map is no map of tensors to files")
    const shards = new Map<string, Array<string>>()
    for (const [tensor, shard] of weightMap) {
      if (!isRelativePath(shard)) {
        return yield* malformed(path, `it names the file ${shard}, which is not inside the model`)
      }
      const tensors = shards.get(shard)
      if (tensors === undefined) shards.set(shard, [tensor])
      else tensors.push(tensor)
    }
    return { shards }
  })

/**
 * Reads all shards that an index names, and checks that each holds the tensors it should.
 *
 * **Details**
 *
 * Fails like `read`, with the path of the shard at fault: `Missing` for one that is not there, `Malformed` for one that
 * lacks a tensor. The result maps the shards' paths, relative to the index, to their headers.
 *
 * @category reading
 * @since 0.1.0
 */
export const readShards: (
  path: string,
  index: Index
) => Effect.Effect<ReadonlyMap<string, Safetensors>, ModelFileError, FileSystem.FileSystem | Path.Path> = Effect
  .fnUntraced(function*(path: string, index: Index) {
    const paths = yield* Path.Path
    const folder = paths.dirname(path)
    const shards = new Map<string, Safetensors>()
    for (const [name, tensors] of index.shards) {
      const shardPath = paths.join(folder, name)
      const shard = yield* read(shardPath)
      const held = new Set(shard.tensors.map((tensor) => tensor.name))
      const lost = tensors.find((tensor) => !held.has(tensor))
      if (lost !== undefined) {
        return yield* malformed(shardPath, `the tensor ${lost} should be here by ${paths.basename(path)}, and is not`)
      }
      shards.set(name, shard)
    }
    return shards
  })
