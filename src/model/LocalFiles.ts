/**
 * Models on this host's disk: what a file or folder holds, and whether it is still whole.
 *
 * @since 0.1.0
 */
import * as Effect from "effect/Effect"
import * as FileSystem from "effect/FileSystem"
import * as Path from "effect/Path"
import * as Predicate from "effect/Predicate"
// The hash in `effect/crypto` takes all bytes at once; models are larger than memory, and need one that goes in steps.
import type * as Scope from "effect/Scope"
import { createHash } from "node:crypto"
import * as Detect from "./Detect.ts"
import type { ModelShape } from "./Estimate.ts"
import * as Gguf from "./Gguf.ts"
import { openRegular } from "./internal/fileWindow.ts"
import * as JsonFile from "./internal/jsonFile.ts"
import type { ManifestFile, ModelFormat, ModelType } from "./Model.ts"
import {
  Ambiguous,
  fromPlatform,
  malformed,
  Missing,
  ModelFileError,
  NoWeights,
  TooMany,
  Truncated,
  Unreadable
} from "./ModelFileError.ts"
import * as Safetensors from "./Safetensors.ts"

/**
 * What a file or folder holds.
 *
 * **Details**
 *
 * `path` is absolute with links resolved: the folder, the file, or of a set of shards the first. Manifest paths are
 * relative to `root`, which is the folder, or the one that holds the file. `size` is the sum of all `files`, `weights`
 * are the paths of those that hold the model's weights. `typeGuessed` is true when nothing told the type.
 *
 * @category models
 * @since 0.1.0
 */
export interface LocalModel {
  readonly path: string
  readonly kind: "file" | "directory"
  readonly root: string
  readonly name: string
  readonly type: ModelType
  readonly typeGuessed: boolean
  readonly format: ModelFormat
  readonly size: number
  readonly weights: ReadonlyArray<string>
  readonly files: ReadonlyArray<ManifestFile>
  readonly shape: ModelShape
}

const maxFiles = 10_000
const maxDepth = 32

type Services = FileSystem.FileSystem | Path.Path

const fail = (path: string, reason: ModelFileError["reason"]) => new ModelFileError({ path, reason })

const stat = (path: string): Effect.Effect<FileSystem.File.Info, ModelFileError, FileSystem.FileSystem> =>
  Effect.flatMap(
    FileSystem.FileSystem,
    (fs) => Effect.mapError(fs.stat(path), fromPlatform(path))
  )

const byPath = (a: ManifestFile, b: ManifestFile): number => a.path < b.path ? -1 : a.path > b.path ? 1 : 0

/**
 * All files in a folder, in the order of their paths.
 *
 * Links to files count as files, for the cache of HuggingFace is made of them. Links to folders are not followed, so the
 * walk stays inside the folder and ends. Names that start with a dot belong to tools, not to the model: `.git`, `.cache`.
 */
const walk = Effect.fnUntraced(
  function*(root: string): Effect.fn.Return<Array<ManifestFile>, ModelFileError, Services> {
    const fs = yield* FileSystem.FileSystem
    const paths = yield* Path.Path
    const files: Array<ManifestFile> = []
    const folders: Array<{ readonly path: string; readonly depth: number }> = [{ path: "", depth: 0 }]
    for (let folder = folders.pop(); folder !== undefined; folder = folders.pop()) {
      const at = paths.join(root, folder.path)
      for (const entry of yield* Effect.mapError(fs.readDirectoryEntries(at), fromPlatform(at))) {
        if (entry.name.startsWith(".")) continue
        const path = folder.path === "" ? entry.name : `${folder.path}/${entry.name}`
        if (entry.type === "Directory") {
          if (folder.depth === maxDepth) {
            return yield* fail(root, new TooMany({ what: "levels of folders", limit: maxDepth }))
          }
          folders.push({ path, depth: folder.depth + 1 })
        } else if (entry.type === "File" || entry.type === "SymbolicLink") {
          const info = yield* stat(paths.join(root, path))
          if (info.type !== "File") continue
          if (files.length === maxFiles) return yield* fail(root, new TooMany({ what: "files", limit: maxFiles }))
          files.push({ path, size: Number(info.size) })
        }
      }
    }
    return files.sort(byPath)
  }
)

const baseName = (path: string): string => path.slice(path.lastIndexOf("/") + 1)

const folderOf = (path: string): string => path.slice(0, path.lastIndexOf("/") + 1)

const sum = (numbers: ReadonlyArray<number>): number => numbers.reduce((total, number) => total + number, 0)

/** What the weights of a model tell of it. */
interface Weights {
  readonly paths: ReadonlyArray<string>
  readonly name?: string | undefined
  readonly type?: ModelType | undefined
  readonly shape: ModelShape
}

/**
 * The files by the set of shards that they belong to, each set in the order of its numbers; a file that is no shard makes
 * a set of its own. Fails with `Missing` when a set lacks a shard.
 */
const shardSets = Effect.fnUntraced(function*(
  root: string,
  files: ReadonlyArray<string>
): Effect.fn.Return<ReadonlyArray<readonly [first: string, ...rest: Array<string>]>, ModelFileError, Path.Path> {
  const paths = yield* Path.Path
  const present = new Set(files)
  const sets = new Map<string, readonly [string, ...Array<string>]>()
  for (const file of files) {
    const shard = Detect.shardOfName(baseName(file))
    if (shard === undefined) {
      sets.set(file, [file])
      continue
    }
    const name = (number: number) =>
      folderOf(file) + Detect.nameOfShard(shard.stem, number, shard.count, shard.extension)
    const first = name(1)
    if (sets.has(first)) continue
    const rest: Array<string> = []
    for (let number = 1; number <= shard.count; number++) {
      if (!present.has(name(number))) return yield* fail(paths.join(root, name(number)), new Missing())
      if (number > 1) rest.push(name(number))
    }
    sets.set(first, [first, ...rest])
  }
  return [...sets.values()]
})

interface GgufModel {
  readonly files: readonly [first: string, ...rest: Array<string>]
  readonly metadata: Gguf.Metadata
  readonly bytes: number
  readonly parameterCount: number
}

const readGgufModel = Effect.fnUntraced(function*(
  root: string,
  files: GgufModel["files"]
): Effect.fn.Return<GgufModel, ModelFileError, Services> {
  const paths = yield* Path.Path
  const first = paths.join(root, files[0])
  const head = yield* Gguf.read(first)
  const headers = [head]
  for (const file of files.slice(1)) headers.push(yield* Gguf.read(paths.join(root, file)))
  const { metadata } = head
  const tensors = sum(headers.map((header) => header.tensors.length))
  // A model that was split and merged again says 0.
  if (metadata.split_count !== undefined && metadata.split_count > 1 && metadata.split_count !== files.length) {
    return yield* malformed(first, `it is one of ${metadata.split_count} shards, and is not named like one`)
  }
  if (files.length > 1 && metadata.split_tensors_count !== undefined && metadata.split_tensors_count !== tensors) {
    return yield* malformed(first, `its shards hold ${tensors} tensors, not ${metadata.split_tensors_count}`)
  }
  return {
    files,
    metadata,
    bytes: sum(headers.map((header) => header.fileBytes)),
    parameterCount: sum(headers.map((header) => header.parameterCount))
  }
})

const isProjector = ({ metadata }: GgufModel): boolean => metadata.architecture === "clip" || metadata.type === "mmproj"

// Neither is of use without a model: what is added to its weights, and statistics for quantising it.
const isAccessory = ({ metadata }: GgufModel): boolean => metadata.type === "adapter" || metadata.type === "imatrix"

/** One language model, with the projectors that give it eyes; or one projector. */
const readGgufs = Effect.fnUntraced(function*(
  root: string,
  files: ReadonlyArray<string>
): Effect.fn.Return<Weights, ModelFileError, Services> {
  const paths = yield* Path.Path
  const found: Array<GgufModel> = []
  for (const set of yield* shardSets(root, files)) {
    const model = yield* readGgufModel(root, set)
    if (!isAccessory(model) && model.parameterCount > 0) found.push(model)
  }
  const projectors = found.filter(isProjector)
  const models = found.filter((model) => !isProjector(model))
  const [main, ...others] = models.length === 0 ? projectors : models
  if (main === undefined) return yield* fail(root, new NoWeights())
  if (others.length > 0) {
    return yield* fail(root, new Ambiguous({ candidates: [main, ...others].map((model) => model.files[0]) }))
  }
  const { architecture, name, pooling_type } = main.metadata
  if (architecture === undefined) {
    return yield* malformed(paths.join(root, main.files[0]), "it has no general.architecture")
  }
  const parts = models.length === 0 ? [main] : [main, ...projectors]
  return {
    paths: parts.flatMap((part) => part.files),
    name,
    type: projectors.length > 0 ? "vlm" : Detect.typeOfGgufArchitecture(architecture, pooling_type),
    shape: {
      ...Gguf.shape(main.metadata),
      weightBytes: sum(parts.map((part) => part.bytes)),
      parameterCount: sum(parts.map((part) => part.parameterCount))
    }
  }
})

const isIndex = (path: string): boolean => path.endsWith(".safetensors.index.json")

const variant = /^(.+)\.[^./]+(\.safetensors)$/

/**
 * All files that a loader takes: in a folder with an index, those that it names; elsewhere all but the variants
 * (`model.fp16.safetensors`) of a file that is there as well.
 */
const readSafetensors = Effect.fnUntraced(function*(
  root: string,
  files: ReadonlyArray<string>,
  indexes: ReadonlyArray<string>
): Effect.fn.Return<Weights, ModelFileError, Services> {
  const paths = yield* Path.Path
  const headers = new Map<string, Safetensors.Safetensors>()
  for (const path of indexes) {
    const indexPath = paths.join(root, path)
    for (const [shard, header] of yield* Safetensors.readShards(indexPath, yield* Safetensors.readIndex(indexPath))) {
      headers.set(folderOf(path) + shard, header)
    }
  }
  const indexed = new Set(indexes.map(folderOf))
  const present = new Set(files)
  const loose = files.filter((file) => {
    const base = variant.exec(file)
    return !indexed.has(folderOf(file)) && (base === null || !present.has(`${base[1]}${base[2]}`))
  })
  for (const file of (yield* shardSets(root, loose)).flat()) {
    headers.set(file, yield* Safetensors.read(paths.join(root, file)))
  }
  const all = [...headers.values()]
  return {
    paths: [...headers.keys()],
    shape: {
      weightBytes: sum(all.map((header) => header.fileBytes)),
      parameterCount: sum(all.map((header) => header.parameterCount))
    }
  }
})

/** Formats whose headers are not read: their files only have to be there, and not be empty. */
const readOpaque = Effect.fnUntraced(function*(
  root: string,
  files: ReadonlyArray<ManifestFile>
): Effect.fn.Return<Weights, ModelFileError, Services> {
  const paths = yield* Path.Path
  const weights = (yield* shardSets(root, files.map((file) => file.path))).flat()
  const empty = files.find((file) => file.size === 0)
  if (empty !== undefined) {
    return yield* fail(paths.join(root, empty.path), new Truncated({ expected: 1, actual: 0 }))
  }
  return { paths: weights, shape: { weightBytes: sum(files.map((file) => file.size)) } }
})

type Json = { readonly [key: string]: unknown }

const numberAt = (json: Json, ...keys: ReadonlyArray<string>): number | undefined =>
  keys.map((key) => json[key]).find((value): value is number =>
    Predicate.isNumber(value) && Number.isSafeInteger(value) && value > 0
  )

/**
 * The shape in a `config.json` of the transformers library. A model that also sees has that of its language part below
 * another key. Some families have names of their own for the same number.
 */
const shapeOfConfig = (config: Json): ModelShape => {
  const text = [config["text_config"], config["llm_config"], config["language_config"]].find(Predicate.isObject) ??
    config
  const layers = numberAt(text, "num_hidden_layers", "n_layer", "num_layers", "n_layers")
  const contextLength = numberAt(text, "max_position_embeddings", "n_positions", "max_seq_len", "seq_length", "n_ctx")
  // Multi-head latent attention (DeepSeek) keeps one compressed vector a token and layer, for keys and values together.
  const latent = numberAt(text, "kv_lora_rank")
  if (latent !== undefined) {
    return { layers, contextLength, kvHeads: 1, headDim: (latent + (numberAt(text, "qk_rope_head_dim") ?? 0)) / 2 }
  }
  const heads = numberAt(text, "num_attention_heads", "n_head", "num_heads", "n_heads")
  const width = numberAt(text, "hidden_size", "n_embd", "d_model")
  return {
    layers,
    contextLength,
    kvHeads: numberAt(text, "num_key_value_heads", "num_kv_heads", "multi_query_group_num") ?? heads,
    headDim: numberAt(text, "head_dim", "kv_channels", "d_kv") ??
      (width === undefined || heads === undefined ? undefined : width / heads)
  }
}

// The others compute all tokens at once, and keep no cache.
const generates = (type: ModelType): boolean => type === "llm" || type === "vlm" || type === "asr" || type === "tts"

/**
 * What the JSON files beside the weights say: `model_index.json` of diffusers, `config.json` of transformers,
 * `modules.json` of sentence-transformers, `configuration.json` of ModelScope.
 */
const readConfigs = Effect.fnUntraced(function*(
  folder: string
): Effect.fn.Return<{ readonly type: ModelType | undefined; readonly shape: ModelShape }, ModelFileError, Services> {
  const fs = yield* FileSystem.FileSystem
  const paths = yield* Path.Path
  const exists = (name: string) =>
    Effect.mapError(fs.exists(paths.join(folder, name)), fromPlatform(paths.join(folder, name)))
  const read = Effect.fnUntraced(function*(name: string): Effect.fn.Return<Json, ModelFileError, Services> {
    return (yield* exists(name)) ? yield* JsonFile.read(paths.join(folder, name)) : {}
  })

  const className = (yield* read("model_index.json"))["_class_name"]
  if (Predicate.isString(className)) return { type: Detect.typeOfDiffusersClass(className), shape: {} }

  const config = yield* read("config.json")
  const architectures = config["architectures"]
  const modelType = config["model_type"]
  const byConfig = Detect.typeOfConfig({
    architectures: Array.isArray(architectures) ? architectures.filter(Predicate.isString) : undefined,
    model_type: Predicate.isString(modelType) ? modelType : undefined
  })
  const task = (yield* read("configuration.json"))["task"]
  const byTask = Predicate.isString(task) ? Detect.typeOfPipelineTag(task) : undefined
  // An embedder built on a language model says what it is only by this file.
  const embeds = byConfig !== "rerank" && (yield* exists("modules.json"))
  const type = embeds ? "embedding" : byConfig ?? byTask
  return { type, shape: generates(type ?? Detect.defaultType) ? shapeOfConfig(config) : {} }
})

// Where a folder has several, the first is taken: the order in which engines prefer them.
const formats: ReadonlyArray<ModelFormat> = ["safetensors", "gguf", "onnx", "tensorrt", "pytorch"]

// Left behind by training, and by OpenVINO, under the same extensions as weights.
const noWeights = /^(?:training_args|optimizer|scheduler|rng_state|openvino_)/

const formatOfFile = (file: ManifestFile): ModelFormat | undefined => {
  const name = baseName(file.path)
  if (noWeights.test(name)) return undefined
  // Large ONNX models keep their weights beside the graph.
  return /\.onnx[._]data$/.test(name) ? "onnx" : Detect.formatOfPath(name)
}

const readWeights = Effect.fnUntraced(function*(
  root: string,
  files: ReadonlyArray<ManifestFile>,
  format: ModelFormat,
  weights: ReadonlyArray<ManifestFile>
): Effect.fn.Return<Weights, ModelFileError, Services> {
  const paths = weights.map((file) => file.path)
  if (format === "gguf") return yield* readGgufs(root, paths)
  if (format === "safetensors") {
    return yield* readSafetensors(root, paths, files.map((file) => file.path).filter(isIndex))
  }
  return yield* readOpaque(root, weights)
})

/**
 * The format of a file by its first bytes. The caches of Ollama and HuggingFace name files by their hash, and a link
 * there, once it is resolved, leads to such a name.
 */
const formatOfContent = Effect.fnUntraced(
  function*(
    path: string
  ): Effect.fn.Return<ModelFormat | undefined, ModelFileError, FileSystem.FileSystem | Scope.Scope> {
    const { file, size } = yield* openRegular(path)
    if (size < 9) return undefined
    const start = new DataView((yield* JsonFile.readBytes(path, file, 0, 9)).buffer)
    if (start.getUint32(0, true) === Gguf.magic) return "gguf"
    const headerBytes = start.getBigUint64(0, true)
    return headerBytes <= Safetensors.maxHeaderBytes && start.getUint8(8) === 0x7b ? "safetensors" : undefined
  },
  Effect.scoped
)

/** The folder, or what belongs to the file: itself, or the set of shards that it is one of. */
interface Place {
  readonly path: string
  readonly kind: LocalModel["kind"]
  readonly root: string
  /** The name that the model has when its content tells none. */
  readonly fallbackName: string
  /** The folder to look for configuration in. */
  readonly folder: string
  readonly files: ReadonlyArray<ManifestFile>
  readonly format: ModelFormat | undefined
}

const locate = Effect.fnUntraced(function*(path: string): Effect.fn.Return<Place, ModelFileError, Services> {
  const fs = yield* FileSystem.FileSystem
  const paths = yield* Path.Path
  const realPath = (path: string) => Effect.mapError(fs.realPath(path), fromPlatform(path))
  const real = yield* realPath(path)
  const info = yield* stat(real)
  if (info.type === "Directory") {
    const files = yield* walk(real)
    const present = new Set(files.map(formatOfFile))
    return {
      path: real,
      kind: "directory",
      root: real,
      fallbackName: paths.basename(real),
      folder: real,
      files,
      format: formats.find((format) => present.has(format))
    }
  }
  if (info.type !== "File") return yield* fail(real, new Unreadable({ detail: `it is no file, but ${info.type}` }))

  // A link's own name tells what the name of its target, often a hash, does not.
  const given = paths.resolve(path)
  const name = paths.basename(given)
  const folder = yield* realPath(paths.dirname(given))
  const shard = Detect.shardOfName(name)
  if (shard !== undefined) {
    const files: Array<ManifestFile> = []
    for (let number = 1; number <= shard.count; number++) {
      const sibling = Detect.nameOfShard(shard.stem, number, shard.count, shard.extension)
      const info = yield* stat(paths.join(folder, sibling))
      files.push({ path: sibling, size: Number(info.size) })
    }
    const first = Detect.nameOfShard(shard.stem, 1, shard.count, shard.extension)
    return {
      path: paths.join(folder, first),
      kind: "file",
      root: folder,
      fallbackName: shard.stem,
      folder,
      files,
      format: Detect.formatOfPath(name)
    }
  }
  const byName = Detect.formatOfPath(name) ?? Detect.formatOfPath(real)
  return {
    path: real,
    kind: "file",
    root: paths.dirname(real),
    fallbackName: Detect.formatOfPath(name) === undefined ? name : name.slice(0, name.lastIndexOf(".")),
    folder,
    files: [{ path: paths.basename(real), size: Number(info.size) }],
    format: byName ?? (yield* formatOfContent(real))
  }
})

/**
 * Looks at a model file or folder, and tells all that a register needs to know of it.
 *
 * **Details**
 *
 * Headers of GGUF and safetensors files are read and checked, weights are not. The name is `general.name` of a GGUF
 * header, else that of the folder, or of the file without its extension and shard number. The type comes from the header's
 * architecture, or from the JSON files beside the weights; when neither tells it, it is `llm`, and `typeGuessed` is true.
 *
 * Any shard stands for its whole set. In a folder, names that start with a dot are left out and links to other folders
 * are not followed; of several formats the first of safetensors, GGUF, ONNX, TensorRT, PyTorch counts as the weights. A
 * folder with more than one GGUF model, say several quantisations, is `Ambiguous`; a vision projector belongs to the model
 * beside it.
 *
 * Fails with `Missing`, `Unreadable`, `NoWeights`, `Ambiguous`, `Malformed`, `Truncated`, `LengthMismatch` or `TooMany`.
 *
 * @category reading
 * @since 0.1.0
 */
export const inspect: (path: string) => Effect.Effect<LocalModel, ModelFileError, Services> = Effect.fnUntraced(
  function*(path: string) {
    const place = yield* locate(path)
    const { files, format, kind, root } = place
    if (format === undefined) return yield* fail(place.path, new NoWeights())
    const candidates = kind === "file" ? files : files.filter((file) => formatOfFile(file) === format)
    const weights = yield* readWeights(root, files, format, candidates)

    const configs = format === "gguf"
      ? { type: undefined, shape: {} }
      // What lies beside a single file may have nothing to do with it.
      : yield* kind === "file"
        ? Effect.orElseSucceed(readConfigs(place.folder), () => ({ type: undefined, shape: {} }))
        : readConfigs(place.folder)
    const type = weights.type ?? configs.type
    const model: LocalModel = {
      path: place.path,
      kind,
      root,
      name: weights.name?.trim() || place.fallbackName,
      type: type ?? Detect.defaultType,
      typeGuessed: type === undefined,
      format,
      size: sum(files.map((file) => file.size)),
      weights: weights.paths,
      files,
      shape: { ...configs.shape, ...weights.shape }
    }
    return model
  }
)

const chunkBytes = 1024 * 1024

/**
 * The SHA-256 of a file as 64 lowercase hexadecimal digits, read in steps of 1 MiB. Interruption takes effect between
 * two steps.
 *
 * @category reading
 * @since 0.1.0
 */
export const hashFile: (path: string) => Effect.Effect<string, ModelFileError, FileSystem.FileSystem> = Effect
  .fnUntraced(function*(path: string) {
    const { file } = yield* openRegular(path)
    const hash = createHash("sha256")
    const chunk = new Uint8Array(chunkBytes)
    for (;;) {
      const bytes = yield* Effect.mapError(file.read(chunk), fromPlatform(path))
      if (bytes === 0) return hash.digest("hex")
      hash.update(chunk.subarray(0, bytes))
    }
  }, Effect.scoped)

/** Failures that say something about the files are findings; the others say that nothing could be found out. */
const finding = (error: ModelFileError): Effect.Effect<ModelFileError, ModelFileError> =>
  error.reason._tag === "Unreadable" ? Effect.fail(error) : Effect.succeed(error)

const checkStructure = Effect.fnUntraced(function*(path: string): Effect.fn.Return<void, ModelFileError, Services> {
  if (isIndex(path)) return yield* Effect.asVoid(Safetensors.readShards(path, yield* Safetensors.readIndex(path)))
  const format = Detect.formatOfPath(path) ?? (yield* formatOfContent(path))
  if (format === "gguf") yield* Gguf.read(path)
  else if (format === "safetensors") yield* Safetensors.read(path)
})

const checkFile = Effect.fnUntraced(function*(
  path: string,
  expected: ManifestFile
): Effect.fn.Return<string | undefined, ModelFileError, Services> {
  const info = yield* stat(path)
  if (info.type !== "File") return `is no file, but ${info.type}`
  if (Number(info.size) !== expected.size) return `has ${info.size} bytes, not ${expected.size}`
  if (expected.sha256 !== undefined) {
    const actual = yield* hashFile(path)
    if (actual !== expected.sha256) return `has the SHA-256 ${actual}, not ${expected.sha256}`
  }
  yield* checkStructure(path)
  return undefined
})

/**
 * Checks a model's files against its manifest, and their headers against their formats. The result has one line for each
 * finding, and is empty for a model that is whole.
 *
 * **Details**
 *
 * `path` is the model's file or folder, and the manifest's paths are relative to the folder, or to the one that holds the
 * file. Each file is compared by size, then by SHA-256 where the manifest has one, then its structure is checked; the
 * first finding ends its check. Files that the manifest does not name are not looked at. Without a manifest only the
 * structure is checked, as `inspect` does it.
 *
 * Fails with `Unreadable` when something could not be checked. Interruption takes effect within about 1 MiB.
 *
 * @category reading
 * @since 0.1.0
 */
export const verify: (
  path: string,
  manifest: ReadonlyArray<ManifestFile>
) => Effect.Effect<ReadonlyArray<string>, ModelFileError, Services> = Effect.fnUntraced(
  function*(path: string, manifest: ReadonlyArray<ManifestFile>) {
    const paths = yield* Path.Path
    if (manifest.length === 0) {
      return yield* Effect.matchEffect(inspect(path), {
        onSuccess: () => Effect.succeed([]),
        onFailure: (error) => Effect.map(finding(error), (error) => [error.message])
      })
    }
    const there = yield* Effect.matchEffect(stat(path), { onSuccess: Effect.succeed, onFailure: finding })
    if (there instanceof ModelFileError) return [there.message]
    const root = there.type === "Directory" ? path : paths.dirname(path)
    const issues = new Set<string>()
    for (const file of manifest) {
      const issue = yield* Effect.catch(
        Effect.map(checkFile(paths.join(root, file.path), file), (problem) => problem && `${file.path} ${problem}`),
        (error) => Effect.map(finding(error), ({ path, reason }) => `${paths.relative(root, path)} ${reason.message}`)
      )
      // An index and its shard can find the same.
      if (issue !== undefined) issues.add(issue)
    }
    return [...issues]
  }
)
