/**
 * The commands of the inference domain that are about sound, images, videos and rankings. They change nothing here, but each is work for an
 * endpoint.
 *
 * @since 0.1.0
 */
import * as Effect from "effect/Effect"
import * as Schema from "effect/Schema"
import * as Unit from "../Unit.ts"
import { InternalError, InvalidInput } from "../UnitError.ts"
import type { RerankAnswer } from "./Backend.ts"
import { EngineFailed } from "./BackendReason.ts"
import { InferenceEngineError, inferenceFailures, InferenceTimeout } from "./Errors.ts"
import { Detection, Image, RerankResult, Segment } from "./Inference.ts"
import { isoLanguage } from "./internal/languages.ts"
import * as Formats from "./internal/media.ts"
import { type MediaError, MediaSource } from "./MediaSource.ts"
import { Router } from "./Router.ts"

/** The failure of a unit that could not get what it was given in a field. */
const mediaFailure = (unit: string, path: string, model: string) => ({ reason }: MediaError) => {
  if (reason._tag === "Unusable") return new InvalidInput({ unit, issues: [{ path, expected: reason.expected }] })
  const { detail, host: endpoint, isTimeout } = reason
  const failed = { model, endpoint, detail: `It did not give the ${path}: ${detail}` }
  return isTimeout ? new InferenceTimeout(failed) : new InferenceEngineError({ ...failed, retryable: true })
}

/**
 * `inference.transcribe`: what is said in a recording.
 *
 * **Details**
 *
 * `audio` is a data URI, Base64, or the absolute path of a file in a folder that the host allows; at most 25 MB, unless the host says otherwise.
 * Without `language` (ISO 639-1) the model finds out which one it is. In the output, `language` is absent where nobody tells it, `duration`
 * (seconds) where the endpoint does not tell it and the recording is no WAV file; `segments` is empty where the endpoint makes none.
 *
 * @category commands
 * @since 0.1.0
 */
export const transcribe = Unit.command("inference.transcribe", {
  description: "Turns speech into text",
  input: {
    model: Schema.NonEmptyString,
    audio: Schema.NonEmptyString,
    language: Schema.optionalKey(
      Schema.String.check(
        Schema.makeFilter((code: string) => /^[a-z]{2}$/.test(code) && isoLanguage(code) === code, {
          expected: "a language as its two letters of ISO 639-1"
        })
      )
    )
  },
  output: {
    text: Schema.String,
    language: Schema.optionalKey(Schema.String),
    duration: Schema.optionalKey(Schema.Finite),
    segments: Schema.Array(Segment)
  },
  errors: [...inferenceFailures, InternalError],
  examples: [{ model: "whisper-1", audio: "data:audio/wav;base64,UklGRiQAAABXQVZF", language: "en" }],
  handler: Effect.fnUntraced(function*({ audio, language, model }) {
    const source = yield* MediaSource
    const recording = yield* Effect.mapError(
      source.audio(audio),
      mediaFailure("inference.transcribe", "audio", model)
    )
    const router = yield* Router
    const answer = yield* router.call(
      model,
      "transcription",
      (backend, model) => backend.transcribe?.({ model, audio: recording, language })
    )
    const spoken = answer.language === undefined ? language : isoLanguage(answer.language) ?? language
    const duration = answer.duration ?? Formats.wavSeconds(recording.bytes)
    return {
      text: answer.text,
      ...(spoken === undefined ? {} : { language: spoken }),
      ...(duration === undefined ? {} : { duration }),
      segments: answer.segments
    }
  })
})

/**
 * `inference.synthesize`: a text, spoken. `stream` changes nothing here.
 *
 * **Details**
 *
 * `audio` is Base64. WAV is asked for, and `format` is what came: `wav`, `mp3`, `ogg`, `flac`, `m4a`, `webm`, `aac`, or the name in the media type.
 * `duration` is seconds, and there for WAV. A voice that the model does not have is `InferenceInvalidParams`; `inference.voices` lists those
 * that there are.
 *
 * @category commands
 * @since 0.1.0
 */
export const synthesize = Unit.command("inference.synthesize", {
  description: "Turns text into speech",
  input: {
    model: Schema.NonEmptyString,
    text: Schema.NonEmptyString,
    voice: Schema.optionalKey(Schema.NonEmptyString),
    stream: Schema.optionalKey(Schema.Boolean)
  },
  output: { audio: Schema.String, format: Schema.String, duration: Schema.optionalKey(Schema.Finite) },
  errors: [...inferenceFailures, InternalError],
  examples: [{ model: "kokoro", text: "Hello", voice: "af_heart" }],
  handler: ({ model, text, voice }) =>
    Effect.map(
      Router.use((router) =>
        router.call(model, "speech", (backend, model) => backend.synthesize?.({ model, text, voice }))
      ),
      ({ audio, type }) => {
        const duration = Formats.wavSeconds(audio)
        return {
          audio: Formats.toBase64(audio),
          format: Formats.audioOf(audio)?.format ?? Formats.formatOfType(type),
          ...(duration === undefined ? {} : { duration })
        }
      }
    )
})

const atLeastOne = Schema.optionalKey(Schema.Int.check(Schema.isGreaterThanOrEqualTo(1)))

const Size = Schema.optionalKey(
  Schema.String.check(
    Schema.isPattern(/^[1-9]\d{0,4}x[1-9]\d{0,4}$/, { expected: "a size in pixels, such as 1024x768" })
  )
)

/** Width and height of a size that was checked. */
const pixels = (size: string): { readonly width: number; readonly height: number } => {
  const [width = 0, height = 0] = size.split("x").map(Number)
  return { width, height }
}

interface Frame {
  readonly size?: string | undefined
  readonly width?: number | undefined
  readonly height?: number | undefined
}

/** What is wrong with a size that is given in parts or twice. */
const frameIssue = ({ height, size, width }: Frame) => {
  if (size === undefined) {
    if ((width === undefined) === (height === undefined)) return undefined
    const missing = width === undefined ? "width" : "height"
    return { path: [missing], issue: "Expected width and height, or neither" }
  }
  const stated = pixels(size)
  return (width ?? stated.width) === stated.width && (height ?? stated.height) === stated.height
    ? undefined
    : { path: ["size"], issue: "Expected the same as width and height say; leave one of them out" }
}

/** Width and height, where they are given in either form. */
const frameOf = ({ height, size, width }: Frame) => size === undefined ? { width, height } : pixels(size)

/**
 * `inference.generate_image`: images from a description.
 *
 * **Details**
 *
 * The size is `size` (`WIDTHxHEIGHT`), or `width` and `height`, in pixels; where both are given they have to be the same, and without any the
 * endpoint chooses. An image is Base64, or an address where the endpoint keeps it, which is not asked. `format` is that of the first one: `png`,
 * `jpeg`, `webp` and so on, by its bytes or the end of its address, and empty where neither tells. The same `seed` gives the same image where
 * the endpoint can do that.
 *
 * @category commands
 * @since 0.1.0
 */
export const generateImage = Unit.command("inference.generate_image", {
  description: "Makes images from a description",
  input: Schema.Struct({
    model: Schema.NonEmptyString,
    prompt: Schema.NonEmptyString,
    size: Size,
    width: atLeastOne,
    height: atLeastOne,
    steps: atLeastOne,
    negative_prompt: Schema.optionalKey(Schema.String),
    seed: Schema.optionalKey(Schema.Int)
  }).check(Schema.makeFilter(frameIssue)),
  output: { images: Schema.Array(Image), format: Schema.String },
  errors: [...inferenceFailures, InternalError],
  examples: [{ model: "sdxl", prompt: "a lighthouse at dusk", size: "1024x768", seed: 7 }],
  handler: ({ height, model, size, width, ...wanted }) => {
    const frame = frameOf({ height, size, width })
    return Effect.map(
      Router.use((router) =>
        router.call(model, "images", (backend, model) => backend.generateImage?.({ model, ...wanted, ...frame }))
      ),
      ({ images }) => ({ images, format: formatOf(images[0]) })
    )
  }
})

const formatOf = (image: Image | undefined): string => {
  if (image?.base64 !== undefined) {
    const start = Formats.fromBase64(image.base64.slice(0, 64))
    return (start && Formats.imageOf(start)?.format) ?? ""
  }
  const url = image?.url ?? ""
  const ending = URL.canParse(url) ? /\.([A-Za-z0-9]{3,4})$/.exec(new URL(url).pathname)?.[1]?.toLowerCase() : undefined
  return ending === "jpg" ? "jpeg" : ending ?? ""
}

/**
 * `inference.generate_video`: a video from a description. It takes minutes; interruption stops the work where it is done.
 *
 * **Details**
 *
 * `duration` is seconds, `width` and `height` are pixels and go together. `video` is Base64 of at most 256 MB; `format` is `mp4`, `webm` or what
 * came otherwise, and `duration` is there where the endpoint tells it.
 *
 * @category commands
 * @since 0.1.0
 */
export const generateVideo = Unit.command("inference.generate_video", {
  description: "Makes a video from a description",
  input: Schema.Struct({
    model: Schema.NonEmptyString,
    prompt: Schema.NonEmptyString,
    duration: Schema.optionalKey(Schema.Finite.check(Schema.isGreaterThan(0))),
    fps: atLeastOne,
    width: atLeastOne,
    height: atLeastOne,
    seed: Schema.optionalKey(Schema.Int)
  }).check(Schema.makeFilter(frameIssue)),
  output: { video: Schema.String, format: Schema.String, duration: Schema.optionalKey(Schema.Finite) },
  errors: [...inferenceFailures, InternalError],
  examples: [{ model: "wan2", prompt: "waves at a lighthouse", duration: 4, width: 1280, height: 720 }],
  handler: ({ model, ...wanted }) =>
    Effect.map(
      Router.use((router) =>
        router.call(model, "videos", (backend, model) => backend.generateVideo?.({ model, ...wanted }))
      ),
      ({ duration, type, video }) => ({
        video: Formats.toBase64(video),
        format: Formats.videoOf(video)?.format ?? Formats.formatOfType(type),
        ...(duration === undefined ? {} : { duration })
      })
    )
})

/**
 * `inference.rerank`: documents by how relevant they are to a query, the most relevant first; those of the same score in the order of the
 * input. Every document is there once. Scores are the model's own.
 *
 * @category commands
 * @since 0.1.0
 */
export const rerank = Unit.command("inference.rerank", {
  description: "Orders documents by their relevance to a query",
  input: {
    model: Schema.NonEmptyString,
    query: Schema.NonEmptyString,
    documents: Schema.NonEmptyArray(Schema.String)
  },
  output: { results: Schema.Array(RerankResult) },
  errors: [...inferenceFailures, InternalError],
  examples: [{ model: "bge-reranker", query: "ships", documents: ["a lighthouse", "a desert"] }],
  handler: ({ documents, model, query }) =>
    Router.use((router) =>
      router.call(model, "reranking", (backend, model) => {
        const answer = backend.rerank?.({ model, query, documents })
        return answer && Effect.flatMap(answer, ({ scores }) => ranked(documents, scores))
      })
    )
})

/** The documents of an answer that has each of them once. */
const ranked = (
  documents: ReadonlyArray<string>,
  scores: RerankAnswer["scores"]
): Effect.Effect<{ readonly results: ReadonlyArray<RerankResult> }, EngineFailed> => {
  const byIndex = new Map(scores.map(({ index, score }) => [index, score]))
  const results = documents.flatMap((document, index) => {
    const score = byIndex.get(index)
    return score === undefined ? [] : [{ document, score, index }]
  })
  return results.length === documents.length && scores.length === documents.length
    ? Effect.succeed({ results: results.sort((a, b) => b.score - a.score || a.index - b.index) })
    : Effect.fail(
      new EngineFailed({
        detail: `For ${documents.length} documents it gave ${scores.length} scores, of ${results.length} of them. ` +
          "Check that the model is one for reranking",
        retryable: false
      })
    )
}

/**
 * `inference.detect`: the objects in an image, in the order in which the endpoint gives them. None is an answer as well.
 *
 * **Details**
 *
 * `image` is a data URI, Base64, or an `http` or `https` address, which has to be public unless the host says otherwise; at most 25 MB. `bbox` is x,
 * y, width and height in pixels from the top left.
 *
 * @category commands
 * @since 0.1.0
 */
export const detect = Unit.command("inference.detect", {
  description: "Finds objects in an image",
  input: { model: Schema.NonEmptyString, image: Schema.NonEmptyString },
  output: { detections: Schema.Array(Detection) },
  errors: [...inferenceFailures, InternalError],
  examples: [{ model: "yolo11", image: "https://example.com/street.jpg" }],
  handler: Effect.fnUntraced(function*({ image, model }) {
    const source = yield* MediaSource
    const picture = yield* Effect.mapError(source.image(image), mediaFailure("inference.detect", "image", model))
    const router = yield* Router
    return yield* router.call(model, "detection", (backend, model) => backend.detect?.({ model, image: picture }))
  })
})
