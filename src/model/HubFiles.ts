/**
 * Which files of a repository make up a model: weights in one format, and what is needed to use them.
 *
 * @since 0.1.0
 */
import { formatOfPath, shardOfName } from "./Detect.ts"
import type { ModelShape } from "./Estimate.ts"
import type { HubModel } from "./Hub.ts"
import type { ManifestFile, ModelFormat } from "./Model.ts"

/**
 * The files of a model, weights first.
 *
 * @category models
 * @since 0.1.0
 */
export interface Selection<F> {
  readonly format: ModelFormat
  readonly weights: ReadonlyArray<F>
  readonly others: ReadonlyArray<F>
}

// From the most to the least useful where a repository holds the same weights in several formats.
const preference: ReadonlyArray<ModelFormat> = ["safetensors", "gguf", "pytorch", "onnx", "tensorrt"]

// Configuration, tokenizers, templates, and the modules that some models bring along.
const companion = /\.(?:json|txt|model|jinja|py|tiktoken|ya?ml|spm|bpe|onnx_data)$/i
const trainingState = /^(?:training_args|optimizer|scheduler|scaler|rng_state.*)\.(?:bin|pt|pth)$/
const indexOf: ReadonlyArray<readonly [RegExp, ModelFormat]> = [
  [/\.safetensors\.index[^/]*\.json$/, "safetensors"],
  [/\.bin\.index[^/]*\.json$/, "pytorch"],
  [/\.onnx_data$/, "onnx"]
]

const baseOf = (path: string) => path.slice(path.lastIndexOf("/") + 1)
const folderOf = (path: string) => path.slice(0, path.lastIndexOf("/") + 1)
const isProjector = (path: string) => /mmproj/i.test(baseOf(path))
const isImatrix = (path: string) => /imatrix/i.test(baseOf(path))
const isVariant = (path: string) => /\.(?:fp16|bf16|non_ema)[.-]/.test(baseOf(path))
const isConsolidated = (path: string) => baseOf(path).startsWith("consolidated")

// All shards of one model share this name; for an unsharded file it is the path without extension.
const stemOf = (path: string) =>
  folderOf(path) + (shardOfName(baseOf(path))?.stem ?? baseOf(path).replace(/\.[a-z]+$/i, ""))

// Drops `dropped` files that have a counterpart in their own folder that is not dropped.
const preferred = <F extends { readonly path: string }>(
  files: ReadonlyArray<F>,
  dropped: (path: string) => boolean
): ReadonlyArray<F> => {
  const folders = new Set(files.filter(({ path }) => !dropped(path)).map(({ path }) => folderOf(path)))
  return files.filter(({ path }) => !dropped(path) || !folders.has(folderOf(path)))
}

// Repositories publish the same weights twice: at another precision, as the trainer wrote them (consolidated, original/),
// or, for diffusers, as one file beside the folders of the parts.
const withoutCopies = <F extends { readonly path: string }>(files: ReadonlyArray<F>, all: ReadonlyArray<F>) => {
  const once = preferred(preferred(files, isVariant), isConsolidated)
  const published = once.filter(({ path }) => !path.startsWith("original/"))
  const current = published.length === 0 ? once : published
  const parts = current.filter(({ path }) => path.includes("/"))
  return parts.length > 0 && all.some(({ path }) => path === "model_index.json") ? parts : current
}

// llama.cpp's rule for a repository without a tag: Q4_K_M, else the first.
const defaultQuantisation = "q4_k_m"

const endsWith = (stem: string, suffix: string) => {
  const name = stem.toLowerCase()
  const end = suffix.toLowerCase()
  return name === end || (name.endsWith(end) && /[-._/]/.test(name.charAt(name.length - end.length - 1)))
}

const groupGguf = <F extends { readonly path: string }>(
  files: ReadonlyArray<F>
): ReadonlyMap<string, ReadonlyArray<F>> => {
  const groups = new Map<string, Array<F>>()
  for (const file of files) {
    if (formatOfPath(file.path) !== "gguf" || isProjector(file.path) || isImatrix(file.path)) continue
    const stem = stemOf(file.path)
    groups.set(stem, [...(groups.get(stem) ?? []), file])
  }
  return groups
}

// The shortest name that fits: Q4_K_M itself, not UD-Q4_K_M.
const findGroup = (stems: ReadonlyArray<string>, suffix: string) =>
  stems.filter((stem) => endsWith(stem, suffix)).sort((a, b) => a.length - b.length)[0]

const isWeight = (path: string) => formatOfPath(path) !== undefined && !trainingState.test(baseOf(path))

/**
 * The weights that a tag could choose, by name: GGUF models without their extension, at most twenty.
 *
 * @category selection
 * @since 0.1.0
 */
export const choices = (files: ReadonlyArray<{ readonly path: string }>): ReadonlyArray<string> =>
  [...groupGguf(files).keys()].slice(0, 20)

/**
 * The files of a model.
 *
 * **Details**
 *
 * With a `choice`, the weights are the file of that path, or the GGUF file, with all its shards, whose name ends with it,
 * in any case of letters. Without, they are all weights in the first of these formats that there is: safetensors, GGUF,
 * PyTorch, ONNX, TensorRT. Of several GGUF quantisations one is taken, `Q4_K_M` or else the first, and with it a vision
 * projector. Configuration, tokenizer and code come along; other formats, copies of the same weights, training state,
 * pictures and documents do not.
 *
 * `undefined` means that the choice fits nothing, or that there are no weights at all.
 *
 * @category selection
 * @since 0.1.0
 */
export const select = <F extends { readonly path: string }>(
  files: ReadonlyArray<F>,
  choice?: string | undefined
): Selection<F> | undefined => {
  const selection = (format: ModelFormat, weights: ReadonlyArray<F>): Selection<F> => ({
    format,
    weights,
    others: files.filter(({ path }) => {
      if (!companion.test(path)) return false
      const index = indexOf.find(([pattern]) => pattern.test(path))
      return index === undefined || index[1] === format
    })
  })
  const withProjector = (group: ReadonlyArray<F>): Selection<F> => {
    const projectors = files.filter(({ path }) => formatOfPath(path) === "gguf" && isProjector(path))
    const projector = projectors.find(({ path }) => /[-._]f16/i.test(path)) ?? projectors[0]
    return selection("gguf", projector === undefined ? group : [...group, projector])
  }

  const weights = files.filter(({ path }) => isWeight(path))
  const groups = groupGguf(files)
  if (choice !== undefined) {
    const named = weights.find(({ path }) => path === choice)
    const format = named === undefined ? undefined : formatOfPath(named.path)
    const stem = named === undefined
      ? findGroup([...groups.keys()], choice.replace(/\.gguf$/i, ""))
      : stemOf(named.path)
    const group = stem === undefined ? undefined : groups.get(stem)
    if (group !== undefined) return withProjector(group)
    return named === undefined || format === undefined ? undefined : selection(format, [named])
  }
  for (const format of preference) {
    const inFormat = weights.filter(({ path }) => formatOfPath(path) === format)
    if (inFormat.length === 0) continue
    if (format !== "gguf") return selection(format, withoutCopies(inFormat, files))
    const stem = findGroup([...groups.keys()], defaultQuantisation) ?? [...groups.keys()][0]
    const group = stem === undefined ? undefined : groups.get(stem)
    if (group !== undefined) return withProjector(group)
  }
  return undefined
}

/**
 * What a failure calls weights in any known format.
 *
 * @category constants
 * @since 0.1.0
 */
export const anyWeights = "*.{safetensors,gguf,bin,pt,pth,onnx,engine,plan}"

/**
 * A selection as a manifest, with what the hub lists.
 *
 * @category conversions
 * @since 0.1.0
 */
export const manifest = (selection: Selection<ManifestFile>): ReadonlyArray<ManifestFile> =>
  [...selection.weights, ...selection.others].map(({ path, sha256, size }) => ({
    path,
    size,
    ...(sha256 === undefined ? undefined : { sha256 })
  }))

/**
 * What a model's files add up to: the manifest, the bytes of all, the checksum of the weights when that is one file, and
 * the shape with the bytes of the weights.
 *
 * @category conversions
 * @since 0.1.0
 */
export const summary = (
  selection: Selection<{ readonly path: string }>,
  files: ReadonlyArray<ManifestFile>,
  shape: ModelShape
): Pick<HubModel, "files" | "size" | "checksum" | "shape"> => {
  const weights = files.filter(({ path }) => selection.weights.some((weight) => weight.path === path))
  const sum = (some: ReadonlyArray<ManifestFile>) => some.reduce((bytes, { size }) => bytes + size, 0)
  const only = weights.length === 1 ? weights[0]?.sha256 : undefined
  return {
    files,
    size: sum(files),
    checksum: only === undefined ? undefined : `sha256:${only}`,
    shape: { ...shape, weightBytes: sum(weights) }
  }
}
