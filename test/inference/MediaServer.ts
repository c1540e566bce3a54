/** Routes for sound, images and more by the OpenAI protocol and its dialects, as strict as the real ones are with what they do not know. */
import { Result, Schema } from "effect"
import { checked, failure, type Options } from "./OpenAiServer.ts"
import { mp4, png, wav } from "./samples.ts"
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

const Images = Schema.Struct({
  model: Schema.String,
  prompt: Schema.String,
  n: Schema.Literal(1),
  size: Schema.optional(Schema.String),
  response_format: Schema.optional(Schema.Literals(["b64_json", "url"])),
  seed: Schema.optional(Schema.Int),
  negative_prompt: Schema.optional(Schema.String),
  steps: Schema.optional(Schema.Int),
  num_inference_steps: Schema.optional(Schema.Int),
  step: Schema.optional(Schema.Int)
})

/** Images: always the same. */
export const imageRoutes = (options: Options): ReadonlyArray<Route> => [{
  method: "POST",
  path: "/v1/images/generations",
  handle: checked(options, Images, () => ({
    body: { created: 1, data: [{ b64_json: png.toString("base64"), revised_prompt: "a pixel" }] }
  }))
}]

/** A job at the server: how often it was looked at, and whether it is still there. */
export interface Job {
  looks: number
  deleted: boolean
  readonly fields: Readonly<Record<string, string>>
}

/** What the jobs of a server make. */
export const video = mp4(5000)

/**
 * Jobs for videos, the first of which is `video-1`. One is queued, then worked on when it is looked at, and done after so many looks. `jobs` is the
 * server's own view.
 */
export const videoRoutes = (options: Options, jobs: Map<string, Job> = new Map(), looks = 3): ReadonlyArray<Route> => {
  const bodyOf = (id: string, job: Job) => ({
    id,
    object: "video",
    model: job.fields["model"],
    status: job.looks >= looks ? "completed" : job.looks === 0 ? "queued" : "in_progress",
    progress: job.looks,
    seconds: job.fields["seconds"] ?? "4",
    error: null
  })
  const known = (answer: (id: string, job: Job) => Reply) => ({ url }: Received): Reply => {
    const id = url.pathname.split("/")[3] ?? ""
    const job = jobs.get(id)
    return job === undefined || job.deleted
      ? failure(404, `No video with the id ${id}`, "invalid_request_error")
      : answer(id, job)
  }
  return [
    {
      method: "POST",
      path: "/v1/videos",
      handle: checkedForm(options, ["model", "prompt", "seconds", "size", "fps", "seed"], (_, parts) => {
        const id = `video-${jobs.size + 1}`
        const job: Job = {
          looks: 0,
          deleted: false,
          fields: Object.fromEntries(parts.map(({ bytes, name }) => [name, bytes.toString()]))
        }
        jobs.set(id, job)
        return { body: bodyOf(id, job) }
      })
    },
    {
      method: "GET",
      path: "/v1/videos/*",
      handle: (request) =>
        known((id, job) => {
          if (request.url.pathname.endsWith("/content")) {
            return job.looks < looks
              ? failure(400, "Not ready", "invalid_request_error")
              : { headers: { "content-type": "video/mp4" }, body: video }
          }
          job.looks++
          return { body: bodyOf(id, job) }
        })(request)
    },
    {
      method: "DELETE",
      path: "/v1/videos/*",
      handle: known((id, job) => {
        job.deleted = true
        return { body: { id, object: "video.deleted", deleted: true } }
      })
    }
  ]
}

const LocalVideo = Schema.Struct({
  model: Schema.String,
  prompt: Schema.String,
  width: Schema.optional(Schema.Int),
  height: Schema.optional(Schema.Int),
  fps: Schema.optional(Schema.Int),
  num_frames: Schema.optional(Schema.Int),
  seconds: Schema.optional(Schema.String),
  seed: Schema.optional(Schema.Int),
  response_format: Schema.Literal("b64_json")
})

/** Videos as LocalAI makes them: at once. */
export const localVideoRoutes = (options: Options): ReadonlyArray<Route> => [
  {
    method: "POST",
    path: "/video",
    handle: checked(
      options,
      LocalVideo,
      () => ({ body: { created: 1, data: [{ b64_json: video.toString("base64") }] } })
    )
  },
  {
    method: "GET",
    path: "/generated/*",
    handle: () => ({ headers: { "content-type": "video/mp4" }, body: video })
  }
]

const words = (text: string): ReadonlyArray<string> => text.toLowerCase().split(/\W+/).filter((word) => word !== "")

/** The part of the query's words that a document has. */
export const relevance = (query: string, document: string): number => {
  const wanted = words(query)
  return wanted.filter((word) => words(document).includes(word)).length / Math.max(1, wanted.length)
}

const ranks = (query: string, documents: ReadonlyArray<string>) =>
  documents.map((document, index) => ({ index, score: relevance(query, document) }))
    .toSorted((a, b) => b.score - a.score || b.index - a.index)

const Rerank = Schema.Struct({
  model: Schema.String,
  query: Schema.String,
  documents: Schema.Array(Schema.String),
  top_n: Schema.optional(Schema.Int),
  return_documents: Schema.optional(Schema.Boolean)
})

/** Reranking as vLLM has it. Those of the same score come in the other order. */
export const rerankRoutes = (options: Options): ReadonlyArray<Route> => [{
  method: "POST",
  path: "/v1/rerank",
  handle: checked(options, Rerank, ({ documents, model, query, top_n }) => ({
    body: {
      id: "rerank-1",
      model,
      results: ranks(query, documents).slice(0, top_n).map(({ index, score }) => ({ index, relevance_score: score })),
      usage: { total_tokens: 1 }
    }
  }))
}]

const Texts = Schema.Struct({
  query: Schema.String,
  texts: Schema.Array(Schema.String),
  raw_scores: Schema.optional(Schema.Boolean),
  return_text: Schema.optional(Schema.Boolean),
  truncate: Schema.optional(Schema.Boolean)
})

/** Checks a body without a model. */
const plain =
  <S extends Schema.ConstraintDecoder<unknown, never>>(schema: S, answer: (body: S["Type"]) => Reply) =>
  ({ body }: Received): Reply => {
    const decoded = Schema.decodeUnknownResult(Schema.fromJsonString(schema), { onExcessProperty: "error" })(
      body.toString()
    )
    return Result.isSuccess(decoded)
      ? answer(decoded.success)
      : { status: 422, body: { error: decoded.failure.message, error_type: "Validation" } }
  }

/** An array is a body, too: by itself it would be sent in pieces. */
const json = (body: unknown): Reply => ({ headers: { "content-type": "application/json" }, body: JSON.stringify(body) })

/** Reranking as text-embeddings-inference has it. */
export const textsRoutes: ReadonlyArray<Route> = [{
  method: "POST",
  path: "/rerank",
  handle: plain(Texts, ({ query, texts }) => json(ranks(query, texts)))
}]

const isImage = (base64: string): boolean => Buffer.from(base64, "base64").equals(png)

/** Detection as LocalAI has it: one thing in the image that it knows, nothing in others. */
export const detectionRoutes = (options: Options): ReadonlyArray<Route> => [{
  method: "POST",
  path: "/v1/detection",
  handle: checked(options, Schema.Struct({ model: Schema.String, image: Schema.String }), ({ image }) => {
    const [, base64] = /^data:image\/png;base64,(.*)$/.exec(image) ?? []
    if (base64 === undefined) return failure(400, "not valid base64 data type string", "invalid_request_error")
    return {
      body: {
        detections: isImage(base64)
          ? [{ x: 350, y: 200.5, width: 150, height: 100, class_name: "dog", confidence: 0.9 }]
          : []
      }
    }
  })
}]

/** Detection as Hugging Face has it. */
export const boxesRoutes = (model: string): ReadonlyArray<Route> => [{
  method: "POST",
  path: `/models/${model}`,
  handle: plain(
    Schema.Struct({ inputs: Schema.String }),
    ({ inputs }) =>
      json(isImage(inputs) ? [{ label: "dog", score: 0.9, box: { xmin: 350, ymin: 200, xmax: 500, ymax: 300 } }] : [])
  )
}]

/** Everything by the OpenAI protocol. */
export const routes = (options: Options): ReadonlyArray<Route> => [
  ...audioRoutes(options),
  ...imageRoutes(options),
  // Nobody has to wait.
  ...videoRoutes(options, new Map(), 0),
  ...rerankRoutes(options),
  ...detectionRoutes(options)
]
