/**
 * Writes model files byte by byte, from the formats' own descriptions and not by the code under test: valid ones, and
 * ones that lie about any count, length or offset.
 */
import * as Effect from "effect/Effect"
import * as FileSystem from "effect/FileSystem"
import * as Path from "effect/Path"

export class Bytes {
  private readonly parts: Array<Uint8Array> = []
  length = 0

  raw(bytes: Uint8Array): this {
    this.parts.push(bytes)
    this.length += bytes.length
    return this
  }
  private fixed(size: number, write: (view: DataView) => void): this {
    const bytes = new Uint8Array(size)
    write(new DataView(bytes.buffer))
    return this.raw(bytes)
  }
  u8 = (n: number) => this.fixed(1, (view) => view.setUint8(0, n))
  i8 = (n: number) => this.fixed(1, (view) => view.setInt8(0, n))
  u16 = (n: number) => this.fixed(2, (view) => view.setUint16(0, n, true))
  i16 = (n: number) => this.fixed(2, (view) => view.setInt16(0, n, true))
  u32 = (n: number) => this.fixed(4, (view) => view.setUint32(0, n, true))
  i32 = (n: number) => this.fixed(4, (view) => view.setInt32(0, n, true))
  f32 = (n: number) => this.fixed(4, (view) => view.setFloat32(0, n, true))
  f64 = (n: number) => this.fixed(8, (view) => view.setFloat64(0, n, true))
  u64 = (n: number | bigint) => this.fixed(8, (view) => view.setBigUint64(0, BigInt(n), true))
  i64 = (n: number | bigint) => this.fixed(8, (view) => view.setBigInt64(0, BigInt(n), true))
  /** UTF-8 after its length as a u64. */
  string = (text: string): this => {
    const bytes = new TextEncoder().encode(text)
    return this.u64(bytes.length).raw(bytes)
  }
  zeros = (count: number): this => this.raw(new Uint8Array(count))

  toUint8Array(): Uint8Array {
    const all = new Uint8Array(this.length)
    let at = 0
    for (const part of this.parts) {
      all.set(part, at)
      at += part.length
    }
    return all
  }
}

export const ggufTypes = {
  u8: 0,
  i8: 1,
  u16: 2,
  i16: 3,
  u32: 4,
  i32: 5,
  f32: 6,
  bool: 7,
  string: 8,
  u64: 10,
  i64: 11,
  f64: 12
} as const

export type GgufScalar =
  | { readonly type: "string"; readonly value: string }
  | { readonly type: "bool"; readonly value: boolean }
  | { readonly type: "u64" | "i64"; readonly value: number | bigint }
  | { readonly type: "u8" | "i8" | "u16" | "i16" | "u32" | "i32" | "f32" | "f64"; readonly value: number }

export type GgufValue =
  | GgufScalar
  | { readonly type: "array"; readonly of: keyof typeof ggufTypes; readonly values: ReadonlyArray<GgufScalar["value"]> }
  | { readonly type: "nested"; readonly values: ReadonlyArray<GgufValue & { readonly type: "array" | "nested" }> }
  /** Bytes after the value's type number, written as they are. */
  | { readonly type: "bytes"; readonly number: number; readonly bytes: Uint8Array }

export interface GgufTensor {
  readonly name: string
  readonly shape: ReadonlyArray<number | bigint>
  /** The number of the ggml type, by default 0, which is F32. */
  readonly type?: number
  readonly bytes: number
  /** By default bytes of 0xAA. */
  readonly data?: Uint8Array
  readonly offset?: number | bigint
  readonly dimensions?: number
}

export interface GgufSpec {
  readonly magic?: string
  readonly version?: number
  readonly pairs?: ReadonlyArray<readonly [key: string, value: GgufValue]>
  readonly tensors?: ReadonlyArray<GgufTensor>
  readonly alignment?: number
  readonly tensorCount?: number | bigint
  readonly pairCount?: number | bigint
}

const scalar = (out: Bytes, type: keyof typeof ggufTypes, value: GgufScalar["value"]): void => {
  if (type === "string") out.string(String(value))
  else if (type === "bool") out.u8(value === true ? 1 : 0)
  else if (type === "u64" || type === "i64") out[type](BigInt(value))
  else out[type](Number(value))
}

const value = (out: Bytes, it: GgufValue): void => {
  switch (it.type) {
    case "array":
      out.u32(9)
      arrayBody(out, it)
      return
    case "nested":
      out.u32(9)
      arrayBody(out, it)
      return
    case "bytes":
      out.u32(it.number).raw(it.bytes)
      return
    default:
      out.u32(ggufTypes[it.type])
      scalar(out, it.type, it.value)
  }
}

const arrayBody = (out: Bytes, it: GgufValue & { readonly type: "array" | "nested" }): void => {
  if (it.type === "array") {
    out.u32(ggufTypes[it.of]).u64(it.values.length)
    for (const element of it.values) scalar(out, it.of, element)
  } else {
    out.u32(9).u64(it.values.length)
    for (const element of it.values) arrayBody(out, element)
  }
}

const pad = (out: Bytes, alignment: number): Bytes => out.zeros((alignment - out.length % alignment) % alignment)

/** The header alone, without the padding before the data. */
export const ggufHeader = (spec: GgufSpec): Bytes => {
  const { pairs = [], tensors = [], alignment = 32 } = spec
  const out = new Bytes()
  out.raw(new TextEncoder().encode(spec.magic ?? "GGUF")).u32(spec.version ?? 3)
  out.u64(spec.tensorCount ?? tensors.length).u64(spec.pairCount ?? pairs.length)
  for (const [key, it] of pairs) value(out.string(key), it)
  let offset = 0
  for (const tensor of tensors) {
    out.string(tensor.name).u32(tensor.dimensions ?? tensor.shape.length)
    for (const extent of tensor.shape) out.u64(extent)
    out.u32(tensor.type ?? 0).u64(tensor.offset ?? offset)
    offset += Math.ceil(tensor.bytes / alignment) * alignment
  }
  return out
}

/** A whole file: header, padding, and tensor data. The last tensor has no padding after it. */
export const gguf = (spec: GgufSpec): Uint8Array => {
  const { tensors = [], alignment = 32 } = spec
  const out = ggufHeader(spec)
  for (const tensor of tensors) pad(out, alignment).raw(tensor.data ?? new Uint8Array(tensor.bytes).fill(0xaa))
  return out.toUint8Array()
}

export const string = (value: string): GgufValue => ({ type: "string", value })
export const u32 = (value: number): GgufValue => ({ type: "u32", value })

/** The keys of a small llama: two blocks, four heads with two of keys and values, of width 8. */
export const llamaPairs: ReadonlyArray<readonly [string, GgufValue]> = [
  ["general.architecture", string("llama")],
  ["general.name", string("Tiny Llama")],
  ["general.file_type", u32(0)],
  ["general.size_label", string("3K")],
  ["llama.context_length", u32(512)],
  ["llama.embedding_length", u32(32)],
  ["llama.block_count", u32(2)],
  ["llama.attention.head_count", u32(4)],
  ["llama.attention.head_count_kv", u32(2)],
  ["tokenizer.ggml.tokens", { type: "array", of: "string", values: ["<s>", "</s>", "a"] }]
]

export const llamaTensors: ReadonlyArray<GgufTensor> = [
  { name: "token_embd.weight", shape: [32, 3], bytes: 384 },
  { name: "blk.0.attn_q.weight", shape: [32, 32], type: 8, bytes: 32 * 34 },
  { name: "output_norm.weight", shape: [5], bytes: 20 }
]

/** A small and valid model of 96 + 1024 + 5 parameters. */
export const tinyGguf = (overrides?: GgufSpec): Uint8Array =>
  gguf({ pairs: llamaPairs, tensors: llamaTensors, ...overrides })

export interface SafetensorsTensor {
  readonly dtype: string
  readonly shape: ReadonlyArray<number>
  readonly bytes: number
}

/** A file with any header and so many bytes of data; `length` is what it claims of its header. */
export const safetensorsOf = (header: string | Uint8Array, dataBytes: number, length?: number | bigint): Uint8Array => {
  const json = typeof header === "string" ? new TextEncoder().encode(header) : header
  return new Bytes().u64(length ?? json.length).raw(json).raw(new Uint8Array(dataBytes).fill(0xaa)).toUint8Array()
}

/** A valid file: tensors one after the other, the header padded with spaces to a multiple of eight. */
export const safetensors = (
  tensors: Readonly<Record<string, SafetensorsTensor>>,
  metadata?: Readonly<Record<string, string>>
): Uint8Array => {
  let offset = 0
  const entries: Array<string> = metadata === undefined ? [] : [`"__metadata__":${JSON.stringify(metadata)}`]
  for (const [name, { bytes, dtype, shape }] of Object.entries(tensors)) {
    const entry = { dtype, shape, data_offsets: [offset, offset + bytes] }
    entries.push(`${JSON.stringify(name)}:${JSON.stringify(entry)}`)
    offset += bytes
  }
  const json = `{${entries.join(",")}}`
  const bytes = new TextEncoder().encode(json).length
  return safetensorsOf(json + " ".repeat((8 - bytes % 8) % 8), offset)
}

/** A small and valid model of 12 + 4 parameters. */
export const tinySafetensors: Uint8Array = safetensors({
  "model.embed_tokens.weight": { dtype: "F32", shape: [3, 4], bytes: 48 },
  "model.norm.weight": { dtype: "BF16", shape: [4], bytes: 8 }
}, { format: "pt" })

/** The `config.json` of a small llama, as the transformers library writes it. */
export const llamaConfig = {
  architectures: ["LlamaForCausalLM"],
  model_type: "llama",
  hidden_size: 32,
  num_hidden_layers: 2,
  num_attention_heads: 4,
  num_key_value_heads: 2,
  max_position_embeddings: 512
}

/** Writes files, by their paths below a new temporary folder, and gives that folder. Its scope removes it. */
export const folder = Effect.fnUntraced(function*(files: Readonly<Record<string, string | Uint8Array>>) {
  const fs = yield* FileSystem.FileSystem
  const paths = yield* Path.Path
  // The system's temporary folder may itself be a link.
  const root = yield* fs.realPath(yield* fs.makeTempDirectoryScoped({ prefix: "model-" }))
  for (const [name, content] of Object.entries(files)) {
    const path = paths.join(root, name)
    yield* fs.makeDirectory(paths.dirname(path), { recursive: true })
    yield* typeof content === "string" ? fs.writeFileString(path, content) : fs.writeFile(path, content)
  }
  return root
})

/** Writes one file in a new temporary folder, and gives its path. */
export const file = (name: string, content: string | Uint8Array) =>
  Effect.map(folder({ [name]: content }), (root) => `${root}/${name}`)
