/**
 * Which model is meant: the names that one may be served by, and what it does.
 *
 * @since 0.1.0
 */
import type { ModelType } from "../model/Model.ts"
import type { StoredModel } from "../model/ModelStore.ts"
import type { ListedModel } from "./Backend.ts"
import type { Modality } from "./Inference.ts"

/** Names differ by case and by the tag that Ollama adds to those that have none. */
const normal = (name: string): string => name.toLowerCase().replace(/:latest$/, "")

/**
 * The names by which a registered model may be served: its id, its name, its path with and without folders and ending, and the
 * repository that it came from.
 *
 * @category conversions
 * @since 0.1.0
 */
export const namesOf = ({ id, name, origin, path }: StoredModel): ReadonlyArray<string> => {
  const names: Array<string> = [id, name]
  if (path !== undefined) {
    const file = path.slice(Math.max(path.lastIndexOf("/"), path.lastIndexOf("\\")) + 1)
    names.push(path, file, file.replace(/\.[^.]+$/, ""))
  }
  if (origin !== undefined) names.push(origin.repo, `${origin.repo}:${origin.tag}`)
  return names
}

/**
 * Says of an id whether it is one of some names, for what is the same to those who serve models.
 *
 * @category guards
 * @since 0.1.0
 */
export const isOneOf = (names: ReadonlyArray<string>): (id: string) => boolean => {
  const known = new Set(names.map(normal))
  return (id) => known.has(normal(id))
}

/**
 * Finds the registered model that an id stands for, by the same rules. Of several, the one that was registered first.
 *
 * @category conversions
 * @since 0.1.0
 */
export const finder = (models: ReadonlyArray<StoredModel>): (id: string) => StoredModel | undefined => {
  const byName = new Map<string, StoredModel>()
  for (const model of models) {
    for (const name of namesOf(model)) {
      if (!byName.has(normal(name))) byName.set(normal(name), model)
    }
  }
  return (id) => byName.get(normal(id))
}

/** Words in the names of models that tell what they do, by the names that are usual on the hubs. The first that fits counts. */
const words: ReadonlyArray<readonly [RegExp, ModelType]> = [
  [/rerank/, "rerank"],
  [/embed|(?:^|[/_-])(?:bge|gte|e5|minilm)(?:[_.:-]|$)/, "embedding"],
  [/whisper|(?:^|[/_-])asr(?:[_.:-]|$)|paraformer|sensevoice/, "asr"],
  [/(?:^|[/_-])tts(?:[_.:-]|$)|kokoro|cosyvoice|(?:^|[/_-])(?:bark|piper)(?:[_.:-]|$)/, "tts"],
  [/text-to-video|(?:^|[/_-])t2v|cogvideo|hunyuanvideo|(?:^|[/_-])sora(?:[_.:-]|$)/, "video_gen"],
  [/diffusion|sdxl|flux|dall-e|gpt-image/, "diffusion"],
  [/yolo|(?:^|[/_-])detr(?:[_.:-]|$)/, "detection"],
  [/llava|vision|(?:^|[/_-])vl(?:[_.:-]|$)|\dvl(?:[_.:-]|$)|pixtral|internvl/, "vlm"]
]

/**
 * What a model that is served does: what its endpoint tells, or a guess by its name, `llm` where that says nothing.
 *
 * @category conversions
 * @since 0.1.0
 */
export const typeOf = ({ id, type }: ListedModel): ModelType => {
  const name = id.toLowerCase()
  const guess = words.find(([word]) => word.test(name))?.[1] ?? "llm"
  return type ?? guess
}

const modalities: Readonly<Record<ModelType, ReadonlyArray<Modality>>> = {
  llm: ["text"],
  vlm: ["text", "image"],
  asr: ["audio", "text"],
  tts: ["text", "audio"],
  embedding: ["text"],
  diffusion: ["text", "image"],
  video_gen: ["text", "video"],
  detection: ["image"],
  rerank: ["text"]
}

/**
 * What goes into models of a type, and what comes out.
 *
 * @category conversions
 * @since 0.1.0
 */
export const modalitiesOf = (type: ModelType): ReadonlyArray<Modality> => modalities[type]
