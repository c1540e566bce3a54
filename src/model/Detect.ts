/**
 * What names say about a model: its type by a hub's pipeline tag, by the architecture in a GGUF header, by a
 * `config.json`; its format by a file's extension.
 *
 * All functions are pure, and answer `undefined` where a name says nothing, so that a caller who falls back to
 * `defaultType` knows that it guesses.
 *
 * @since 0.1.0
 */
import type { ModelFormat, ModelType } from "./Model.ts"

/**
 * The type to assume when nothing tells it: most models are language models.
 *
 * @category constants
 * @since 0.1.0
 */
export const defaultType: ModelType = "llm"

const pipelineTags = new Map<string, ModelType>([
  ["text-generation", "llm"],
  ["text2text-generation", "llm"],
  ["causal-lm", "llm"],
  ["chat", "llm"],
  ["image-text-to-text", "vlm"],
  ["visual-question-answering", "vlm"],
  ["multimodal", "vlm"],
  ["automatic-speech-recognition", "asr"],
  ["text-to-speech", "tts"],
  ["feature-extraction", "embedding"],
  ["sentence-similarity", "embedding"],
  ["sentence-embedding", "embedding"],
  ["text-to-image", "diffusion"],
  ["text-to-image-synthesis", "diffusion"],
  ["image-to-image", "diffusion"],
  ["text-to-video", "video_gen"],
  ["text-to-video-synthesis", "video_gen"],
  ["image-to-video", "video_gen"],
  ["object-detection", "detection"],
  ["image-object-detection", "detection"],
  ["image-segmentation", "detection"],
  ["text-ranking", "rerank"],
  ["reranking", "rerank"]
])

/**
 * The type of a model by the pipeline tag (HuggingFace) or task (ModelScope) of its repository.
 *
 * @category detection
 * @since 0.1.0
 */
export const typeOfPipelineTag = (tag: string): ModelType | undefined => pipelineTags.get(tag.trim().toLowerCase())

const extensions = new Map<string, ModelFormat>([
  ["gguf", "gguf"],
  ["safetensors", "safetensors"],
  ["onnx", "onnx"],
  ["engine", "tensorrt"],
  ["plan", "tensorrt"],
  ["bin", "pytorch"],
  ["pt", "pytorch"],
  ["pth", "pytorch"]
])

const extension = /\.([a-z]+)$/i

/**
 * The format of a weight file by its extension, in any case of letters.
 *
 * @category detection
 * @since 0.1.0
 */
export const formatOfPath = (path: string): ModelFormat | undefined => {
  const match = extension.exec(path)
  return match?.[1] === undefined ? undefined : extensions.get(match[1].toLowerCase())
}

// The names that llama.cpp and ComfyUI-GGUF write for what is not a language model.
const ggufArchitectures = new Map<string, ModelType>([
  ["bert", "embedding"],
  ["modern-bert", "embedding"],
  ["nomic-bert", "embedding"],
  ["nomic-bert-moe", "embedding"],
  ["neo-bert", "embedding"],
  ["jina-bert-v2", "embedding"],
  ["jina-bert-v3", "embedding"],
  ["eurobert", "embedding"],
  ["gemma-embedding", "embedding"],
  ["llama-embed", "embedding"],
  ["t5encoder", "embedding"],
  ["clip", "vlm"],
  ["qwen2vl", "vlm"],
  ["qwen3vl", "vlm"],
  ["qwen3vlmoe", "vlm"],
  ["mllama", "vlm"],
  ["cogvlm", "vlm"],
  ["chameleon", "vlm"],
  ["hunyuan_vl", "vlm"],
  ["paddleocr", "vlm"],
  ["deepseek2-ocr", "vlm"],
  ["whisper", "asr"],
  ["wavtokenizer-dec", "tts"],
  ["flux", "diffusion"],
  ["sd1", "diffusion"],
  ["sdxl", "diffusion"],
  ["sd3", "diffusion"],
  ["aura", "diffusion"],
  ["hidream", "diffusion"],
  ["lumina2", "diffusion"],
  ["qwen_image", "diffusion"],
  ["cosmos", "video_gen"],
  ["ltxv", "video_gen"],
  ["hyvid", "video_gen"],
  ["wan", "video_gen"]
])

/**
 * The type of a GGUF model by `general.architecture`, and by `<architecture>.pooling_type` where it is there: 4 ranks, 1
 * to 3 embed (`enum llama_pooling_type` of llama.cpp), whatever the architecture.
 *
 * **Gotchas**
 *
 * Anything else that has an architecture is taken for a language model: the list of those grows with every release, the
 * others are few. A vision projector beside the file makes the pair a `vlm`; only the folder tells.
 *
 * @category detection
 * @since 0.1.0
 */
export const typeOfGgufArchitecture = (architecture: string, poolingType?: number | undefined): ModelType => {
  if (poolingType === 4) return "rerank"
  if (poolingType !== undefined && poolingType >= 1 && poolingType <= 3) return "embedding"
  return ggufArchitectures.get(architecture) ?? "llm"
}

const modelTypes = new Map<string, ModelType>([
  ["whisper", "asr"],
  ["wav2vec2", "asr"],
  ["wav2vec2-bert", "asr"],
  ["hubert", "asr"],
  ["moonshine", "asr"],
  ["speech_to_text", "asr"],
  ["parakeet_ctc", "asr"],
  ["vits", "tts"],
  ["bark", "tts"],
  ["speecht5", "tts"],
  ["fastspeech2_conformer", "tts"],
  ["csm", "tts"],
  ["dia", "tts"],
  ["clip", "embedding"],
  ["siglip", "embedding"],
  ["nomic_bert", "embedding"],
  ["t5", "llm"],
  ["mt5", "llm"],
  ["umt5", "llm"],
  ["bart", "llm"],
  ["mbart", "llm"],
  ["pegasus", "llm"],
  ["m2m_100", "llm"]
])

// What the transformers library ends its class names with. The first match counts.
const classSuffixes: ReadonlyArray<readonly [RegExp, ModelType]> = [
  [/ForSequenceClassification$/, "rerank"],
  [/For(?:CTC|SpeechSeq2Seq|RNNT|TDT)$/, "asr"],
  [/For(?:TextToSpeech|TextToWaveform|TextToSpectrogram)$/, "tts"],
  [
    /For(?:ZeroShotObjectDetection|ObjectDetection|ImageSegmentation|SemanticSegmentation|InstanceSegmentation|UniversalSegmentation)$/,
    "detection"
  ],
  // With the types of encoders and decoders of text settled above, what remains takes images as well as text.
  [/For(?:ConditionalGeneration|ImageTextToText|Vision2Seq|VisualQuestionAnswering)$/, "vlm"],
  [/(?:ForCausalLM|LMHeadModel)$/, "llm"],
  [/(?:Model|ForMaskedLM)$/, "embedding"]
]

/**
 * The type of a model by what a `config.json` of the transformers library says of it.
 *
 * **Details**
 *
 * `model_type` decides where one kind of class serves several purposes, as `...ForConditionalGeneration` does; otherwise
 * the class names in `architectures` do. A sequence classifier counts as a reranker, a bare encoder as an embedder.
 *
 * @category detection
 * @since 0.1.0
 */
export const typeOfConfig = (config: {
  readonly architectures?: ReadonlyArray<string> | undefined
  readonly model_type?: string | undefined
}): ModelType | undefined => {
  const architectures = config.architectures ?? []
  // A classification head outranks the encoder below it, which `model_type` names.
  if (architectures.some((name) => name.endsWith("ForSequenceClassification"))) return "rerank"
  const byType = config.model_type === undefined ? undefined : modelTypes.get(config.model_type)
  if (byType !== undefined) return byType
  for (const name of architectures) {
    for (const [pattern, type] of classSuffixes) {
      if (pattern.test(name)) return type
    }
  }
  return undefined
}

const videoPipeline = /video|^(?:Wan|LTX|Mochi|Allegro|Latte|AnimateDiff)/i

/**
 * The type of a model by the `_class_name` in a `model_index.json` of the diffusers library: pictures, or video.
 *
 * @category detection
 * @since 0.1.0
 */
export const typeOfDiffusersClass = (className: string): ModelType =>
  videoPipeline.test(className) ? "video_gen" : "diffusion"

const shardName = /^(.+)-(\d{5})-of-(\d{5})(\.[a-z]+)$/i

/**
 * The place of a file in a set of shards, by its name: `tiny-00002-of-00003.gguf` is number 2 of 3 of `tiny`. Numbers
 * start at 1. Any other name, and numbers that make no sense, give `undefined`.
 *
 * @category detection
 * @since 0.1.0
 */
export const shardOfName = (
  name: string
):
  | { readonly stem: string; readonly number: number; readonly count: number; readonly extension: string }
  | undefined =>
{
  const match = shardName.exec(name)
  if (match === null) return undefined
  const [, stem = "", number, count, extension = ""] = match
  const shard = { stem, number: Number(number), count: Number(count), extension }
  return shard.number >= 1 && shard.number <= shard.count ? shard : undefined
}

/**
 * The name of a shard; the inverse of `shardOfName`.
 *
 * @category detection
 * @since 0.1.0
 */
export const nameOfShard = (stem: string, number: number, count: number, extension: string): string =>
  `${stem}-${String(number).padStart(5, "0")}-of-${String(count).padStart(5, "0")}${extension}`
