/** Routes for sound, images and more by the OpenAI protocol and its dialects, as strict as the real ones are with what they do not know. */
import { Schema } from "effect"
import { checked, failure, type Options } from "./OpenAiServer.ts"
import { wav } from "./samples.ts"
import type { Received, Reply, Route } from "./StandIn.ts"

/** A part of a form: text, or a file. */
export interface Part {
  readonly name: string
  readonly filename: string | undefined
  readonly type: string | undefined
  readonly bytes: Buffer
}

/** The parts of a body that is `multipart/form-data`; `undefined` for any other. */
export const partsOf = ({ body, headers }: Received): ReadonlyArray<Part> | undefined => {
  const boundary = headers["content-type"]?.match(/^multipart\/form-data;\s*boundary="?([^";]+)"?$/)?.[1]
  if (boundary === undefined) return undefined
  const parts: Array<Part> = []
  const line = Buffer.from(`\r\n--${boundary}`)
  const all = Buffer.concat([Buffer.from("\r\n"), body])
  for (let at = all.indexOf(line); at !== -1;) {
    const start = at + line.length
    if (all.subarray(start, start + 2).toString() === "--") return parts
    const next = all.indexOf(line, start)
    const gap = all.indexOf("\r\n\r\n", start)
    if (next === -1 || gap === -1 || gap > next) return undefined
    const head = all.subarray(start, gap).toString()
    parts.push({
      name: head.match(/[; ]name="([^"]*)"/)?.[1] ?? "",
      filename: head.match(/filename="([^"]*)"/)?.[1],
      type: head.match(/content-type:\s*(\S+)/i)?.[1],
      bytes: all.subarray(gap + 4, next)
    })
    at = next
  }
  return undefined
}

/** Checks a form: the key, that each field is one of those that there are, and the model. */
const checkedForm = (
  { key, models }: Options,
  fields: ReadonlyArray<string>,
  answer: (field: (name: string) => string | undefined, parts: ReadonlyArray<Part>) => Reply
) =>
(request: Received): Reply => {
  if (key !== undefined && request.headers.authorization !== `Bearer ${key}`) {
    return failure(401, "Incorrect API key provided", "invalid_request_error")
  }
  const parts = partsOf(request)
  if (parts === undefined) return failure(415, "Unsupported media type", "invalid_request_error")
  const unknown = parts.find(({ name }) => !fields.includes(name))
  if (unknown !== undefined) return failure(400, `Unknown field ${unknown.name}`, "invalid_request_error")
  const field = (name: string) => parts.find((part) => part.name === name)?.bytes.toString()
  return models.includes(field("model") ?? "")
    ? answer(field, parts)
    : failure(404, `The model \`${field("model")}\` does not exist.`, "invalid_request_error", "model_not_found")
}

const Speech = Schema.Struct({
  model: Schema.String,
  input: Schema.String,
  voice: Schema.optional(Schema.String),
  response_format: Schema.Literal("wav")
})

export const voices = ["af_heart", "bm_george"]

/** A recording has as many samples as its text has characters, times 800: a tenth of a second each. */
export const spoken = (text: string): Buffer => wav(text.length * 800)

/** What can be heard: how many bytes there are. */
export const heard = (bytes: Uint8Array): string => `${bytes.length} bytes`

/** Transcription with segments, speech, and the list of voices as Kokoro-FastAPI has it. */
export const audioRoutes = (options: Options): ReadonlyArray<Route> => [
  {
    method: "POST",
    path: "/v1/audio/transcriptions",
    handle: checkedForm(
      options,
      ["file", "model", "language", "response_format", "timestamp_granularities[]"],
      (field, parts) => {
        const file = parts.find(({ filename, name }) => name === "file" && filename !== undefined)
        if (file === undefined) return failure(400, "'file' is a required field", "invalid_request_error")
        const text = heard(file.bytes)
        if (field("response_format") === "json") return { body: { text } }
        return {
          body: {
            task: "transcribe",
            text,
            language: field("language") ?? "english",
            duration: 1.5,
            segments: [{ id: 0, seek: 0, start: 0, end: 1.5, text, tokens: [1], temperature: 0 }]
          }
        }
      }
    )
  },
  {
    method: "POST",
    path: "/v1/audio/speech",
    handle: checked(options, Speech, ({ input, voice }) =>
      voice === undefined || voices.includes(voice)
        ? { headers: { "content-type": "audio/wav" }, body: spoken(input) }
        : failure(400, `Voice '${voice}' not found`, "validation_error"))
  },
  {
    method: "GET",
    path: "/v1/audio/voices",
    handle: () => ({ body: { voices } })
  }
]
