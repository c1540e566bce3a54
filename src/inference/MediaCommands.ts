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
import { InferenceEngineError, inferenceFailures, InferenceTimeout } from "./Errors.ts"
import { Segment } from "./Inference.ts"
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
