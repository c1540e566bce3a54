/**
 * Speech by the OpenAI protocol, as OpenAI, vLLM, vllm-omni, speaches, Kokoro-FastAPI, LocalAI and xinference speak it.
 *
 * @since 0.1.0
 */
import * as Effect from "effect/Effect"
import * as Predicate from "effect/Predicate"
import * as Schema from "effect/Schema"
import type { Backend, TranscribeRequest } from "./Backend.ts"
import { type BackendReason, EngineFailed, Refused } from "./BackendReason.ts"
import type { EndpointHttp } from "./EndpointHttp.ts"
import type { Voice } from "./Inference.ts"
import * as Forms from "./internal/forms.ts"
import { isoLanguage } from "./internal/languages.ts"
import * as Media from "./internal/media.ts"

const Transcription = Schema.Struct({
  text: Schema.String,
  language: Forms.maybe(Schema.String),
  // Some write it as text.
  duration: Forms.maybe(Schema.Union([Schema.Finite, Schema.FiniteFromString])),
  segments: Forms.maybe(Schema.Array(Schema.Struct({
    id: Forms.maybe(Schema.Int),
    start: Schema.Finite,
    end: Schema.Finite,
    text: Schema.String
  })))
})

const Entry = Schema.Union([
  Schema.String,
  Schema.Struct({
    id: Forms.maybe(Schema.String),
    voice_id: Forms.maybe(Schema.String),
    name: Forms.maybe(Schema.String),
    language: Forms.maybe(Schema.String),
    gender: Forms.maybe(Schema.String),
    description: Forms.maybe(Schema.String),
    model_id: Forms.maybe(Schema.String)
  })
])

const Entries = Schema.Array(Entry)

const Voices = Schema.Union([
  Entries,
  Schema.Struct({ voices: Entries }),
  Schema.Struct({ data: Entries })
])

const isList = (voices: typeof Voices.Type): voices is typeof Entries.Type => Array.isArray(voices)

const voiceOf = (entry: typeof Entry.Type): Voice | undefined => {
  const { description, gender, language, name, ...ids } = Predicate.isString(entry) ? { id: entry } : entry
  const id = "voice_id" in ids ? ids.voice_id ?? ids.id ?? name : ids.id ?? name
  if (id === undefined || id === null || id === "") return undefined
  return {
    id,
    name: name ?? id,
    language: language === undefined || language === null ? "" : isoLanguage(language) ?? language,
    gender: gender ?? "",
    description: description ?? ""
  }
}

/** Those of one model, each once. */
const voicesOf = (answer: typeof Voices.Type, model: string): ReadonlyArray<Voice> => {
  const entries = isList(answer) ? answer : "voices" in answer ? answer.voices : answer.data
  const voices = new Map<string, Voice>()
  for (const entry of entries) {
    const owner = Predicate.isString(entry) ? undefined : entry.model_id
    const voice = voiceOf(entry)
    if (voice !== undefined && (owner ?? model) === model && !voices.has(voice.id)) voices.set(voice.id, voice)
  }
  return Array.from(voices.values())
}

/**
 * The voices of OpenAI, which has no list of them.
 *
 * @category voices
 * @since 0.1.0
 */
export const openAiVoices: ReadonlyArray<Voice> = [
  "alloy",
  "ash",
  "ballad",
  "coral",
  "echo",
  "fable",
  "nova",
  "onyx",
  "sage",
  "shimmer",
  "verse"
].map((id) => ({ id, name: id, language: "", gender: "", description: "" }))

/** Bytes. An hour of speech as WAV has some 170 MB. */
const maxSpeech = 256 * 1024 * 1024

const noSpeech = (type: string) =>
  new EngineFailed({
    detail: `Its answer is no recording, but ${type}. Check that the model is one for speech`,
    retryable: false
  })

const formOf = ({ audio, language, model }: TranscribeRequest, isVerbose: boolean): FormData => {
  const form = new FormData()
  form.append("file", new File([audio.bytes.slice()], audio.name, { type: audio.type }))
  form.append("model", model)
  if (language !== undefined) form.append("language", language)
  form.append("response_format", isVerbose ? "verbose_json" : "json")
  if (isVerbose) form.append("timestamp_granularities[]", "segment")
  return form
}

/**
 * Transcription, speech, and lists of voices.
 *
 * **Details**
 *
 * A transcription is asked for with its segments (`verbose_json`); a server that refuses that is asked for the text alone, which is the one
 * request that is sent a second time. Lists of voices have to come as soon as those of models. `voices` are those that the endpoint is known to have, and then it is not asked for them.
 *
 * @category constructors
 * @since 0.1.0
 */
export const make = (http: EndpointHttp, options: { readonly voices?: ReadonlyArray<Voice> | undefined } = {}) => {
  const transcribe = (request: TranscribeRequest, isVerbose: boolean) =>
    http.json(http.form("/audio/transcriptions", formOf(request, isVerbose)), Transcription, request.model)

  const listed = (path: string, model: string): Effect.Effect<ReadonlyArray<Voice>, BackendReason> => {
    // Each server has one of two names for the model, and passes over the other.
    const query = new URLSearchParams({ model, model_id: model })
    return Effect.map(
      http.list(`${path}?${query.toString()}`, Voices),
      (answer) => voicesOf(answer, model)
    )
  }

  return {
    transcribe: Effect.fnUntraced(function*(request) {
      const answer = yield* Effect.catchTag(
        transcribe(request, true),
        "Refused",
        (refused) => refused.unsupported === true ? Effect.fail(refused) : transcribe(request, false)
      )
      return {
        text: answer.text,
        language: answer.language ?? undefined,
        duration: answer.duration ?? undefined,
        segments: answer.segments?.map(({ end, id, start, text }, index) => ({ id: id ?? index, start, end, text })) ??
          []
      }
    }),
    synthesize: Effect.fnUntraced(function*({ model, text, voice }): Effect.fn.Return<
      { readonly audio: Uint8Array; readonly type: string },
      BackendReason
    > {
      const body = { model, input: text, voice, response_format: "wav" }
      const { bytes, type } = yield* http.bytes(http.post("/audio/speech", body), maxSpeech, model).pipe(
        Effect.mapError((reason) =>
          // What is missing is the voice, not the model.
          voice !== undefined && reason._tag === "ModelMissing" && !reason.loading && /voice/i.test(reason.detail)
            ? new Refused({ detail: `${reason.detail}. See which voices there are` })
            : reason
        )
      )
      if (bytes.length === 0) return yield* noSpeech("nothing")
      const known = Media.audioOf(bytes)?.type
      if (known === undefined && !/^audio\/|^application\/octet-stream/i.test(type)) return yield* noSpeech(type)
      return { audio: bytes, type: known ?? type }
    }),
    voices: ({ model }) =>
      options.voices !== undefined
        ? Effect.succeed(options.voices)
        : listed("/audio/voices", model).pipe(
          Forms.orElse(() => listed("/audio/speech/voices", model)),
          Forms.orElse(() => Effect.succeed([]))
        )
  } satisfies Partial<Backend>
}
