/**
 * Videos: jobs by the OpenAI protocol (https://platform.openai.com/docs/api-reference/videos), as OpenAI, vllm-omni and SGLang have them, and the
 * one request that LocalAI has instead.
 *
 * @since 0.1.0
 */
import * as Duration from "effect/Duration"
import * as Effect from "effect/Effect"
import * as Fiber from "effect/Fiber"
import * as Schema from "effect/Schema"
import type { Backend, GenerateVideoAnswer, GenerateVideoRequest } from "./Backend.ts"
import { type BackendReason, EngineFailed, TimedOut } from "./BackendReason.ts"
import type { EndpointHttp } from "./EndpointHttp.ts"
import * as Forms from "./internal/forms.ts"
import * as Media from "./internal/media.ts"

const Job = Schema.Struct({
  id: Schema.NonEmptyString,
  status: Schema.String,
  seconds: Forms.maybe(Schema.Union([Schema.Finite, Schema.FiniteFromString])),
  error: Forms.maybe(Schema.Unknown)
})

const Videos = Schema.Struct({
  data: Schema.Array(Schema.Struct({ b64_json: Forms.maybe(Schema.String), url: Forms.maybe(Schema.String) }))
})

/**
 * Settings.
 *
 * @category models
 * @since 0.1.0
 */
export interface Options {
  /** The address of the host, below which paths are that are not part of the protocol. Without a slash at its end. */
  readonly root: string
  /** How long a job may take, its result included. Default: 30 minutes. */
  readonly jobTimeout?: Duration.Input | undefined
}

/** Bytes. What a string of Base64 can hold in JavaScript is some 400 MB. */
const maxVideo = 256 * 1024 * 1024

/** Milliseconds between two looks at a job: at first, and at most. */
const firstPause = 1000
const longestPause = 15_000
const growth = 1.5

/** So many looks at a job that fail one after another are its failure. */
const patience = 5

/** How long a job that was just begun, or is not wanted any more, is waited for when the request ends. */
const grace = "5 seconds"

const sizeOf = ({ height, width }: GenerateVideoRequest): string | undefined =>
  width === undefined || height === undefined ? undefined : `${width}x${height}`

/** A form, as it is the one body that all of these servers take. */
const formOf = (request: GenerateVideoRequest): FormData => {
  const form = new FormData()
  const fields = {
    model: request.model,
    prompt: request.prompt,
    seconds: request.duration,
    size: sizeOf(request),
    fps: request.fps,
    seed: request.seed
  }
  for (const [name, value] of Object.entries(fields)) if (value !== undefined) form.append(name, String(value))
  return form
}

const localBody = ({ duration, fps, height, model, prompt, seed, width }: GenerateVideoRequest) => ({
  model,
  prompt,
  width,
  height,
  fps,
  num_frames: duration === undefined || fps === undefined ? undefined : Math.round(duration * fps),
  seconds: duration === undefined ? undefined : String(duration),
  seed,
  response_format: "b64_json"
})

const unreadable = new EngineFailed({
  detail: "Its answer lacks the video, or has one that cannot be read",
  retryable: false
})

const isTransient = (reason: BackendReason): boolean =>
  reason._tag === "Busy" || reason._tag === "TimedOut" || reason._tag === "Unreachable" ||
  reason._tag === "EngineFailed" && reason.retryable

/** Once a job was begun, no other endpoint is to begin it again. */
const afterwards = (reason: BackendReason): BackendReason =>
  reason._tag === "Unreachable" ? new EngineFailed({ detail: reason.detail, retryable: true }) : reason

/**
 * Videos from a text.
 *
 * **Details**
 *
 * A job is begun, looked at after a second and then ever less often, up to every 15 seconds, and its video fetched, which may have 256 MB.
 * However that ends, by interruption as well, the job is deleted at its server, which also stops it; a job that is just being begun is
 * waited for, for at most 5 seconds, so that it can be. Four looks may fail in a row, as asking again does
 * no harm; with the fifth the request fails.
 *
 * @category constructors
 * @since 0.1.0
 */
export const make = (http: EndpointHttp, { jobTimeout = "30 minutes", root }: Options) => {
  const deadline = Duration.fromInputUnsafe(jobTimeout)

  const pathOf = (id: string) => `/videos/${encodeURIComponent(id)}`

  /** What cannot be deleted is not the caller's concern: it has its answer, or a failure of its own. */
  const cancel = (id: string): Effect.Effect<void> =>
    http.bytes(http.del(pathOf(id)), 1024 * 1024).pipe(Effect.timeoutOption(grace), Effect.ignore)

  /** Begins a job. One that comes about in spite of an interruption is cancelled. */
  const begin = Effect.fnUntraced(function*(
    request: GenerateVideoRequest,
    restore: <A, E, R>(effect: Effect.Effect<A, E, R>) => Effect.Effect<A, E, R>
  ) {
    const creation = yield* Effect.forkChild(http.json(http.form("/videos", formOf(request)), Job, request.model))
    return yield* Effect.onInterrupt(restore(Fiber.join(creation)), () =>
      Fiber.join(creation).pipe(
        Effect.flatMap(({ id }) => cancel(id)),
        Effect.timeoutOption(grace),
        Effect.ignore,
        Effect.andThen(Fiber.interrupt(creation))
      ))
  })

  const poll = (
    id: string,
    model: string,
    pause: number,
    failures: number
  ): Effect.Effect<typeof Job.Type, BackendReason> =>
    Effect.sleep(pause).pipe(
      Effect.andThen(http.json(http.get(pathOf(id)), Job, model)),
      Effect.matchEffect({
        onFailure: (reason) =>
          isTransient(reason) && failures + 1 < patience
            ? poll(id, model, next(pause), failures + 1)
            : Effect.fail(reason),
        onSuccess: (job) => until(job, model, next(pause))
      })
    )

  const until = (job: typeof Job.Type, model: string, pause: number): Effect.Effect<typeof Job.Type, BackendReason> => {
    switch (job.status) {
      case "completed":
      case "succeeded":
        return Effect.succeed(job)
      case "failed":
      case "cancelled":
      case "canceled":
      case "expired":
        return Effect.fail(
          job.error === undefined || job.error === null
            ? new EngineFailed({ detail: `The job ended as ${job.status}`, retryable: false })
            : http.reason({ error: job.error }, model)
        )
      default:
        return poll(job.id, model, pause, 0)
    }
  }

  const result = Effect.fnUntraced(function*(job: typeof Job.Type, model: string) {
    const { id, seconds } = yield* until(job, model, firstPause)
    const { bytes, type } = yield* http.bytes(http.get(`${pathOf(id)}/content`), maxVideo, model)
    return answerOf(bytes, type, seconds ?? job.seconds ?? undefined)
  })

  const byJob = (request: GenerateVideoRequest): Effect.Effect<GenerateVideoAnswer, BackendReason> =>
    Effect.uninterruptibleMask((restore) =>
      Effect.flatMap(
        begin(request, restore),
        (job) =>
          result(job, request.model).pipe(
            Effect.mapError(afterwards),
            restore,
            Effect.onExit(() => cancel(job.id))
          )
      )
    )

  const atOnce = Effect.fnUntraced(function*(request: GenerateVideoRequest): Effect.fn.Return<
    GenerateVideoAnswer,
    BackendReason
  > {
    const { data } = yield* http.json(http.post(`${root}/video`, localBody(request)), Videos, request.model)
    const [video] = data
    const bytes = typeof video?.b64_json === "string" ? Media.fromBase64(video.b64_json) : undefined
    if (bytes !== undefined) return answerOf(bytes, "video/mp4", undefined)
    // It may keep files itself; the key goes nowhere else.
    const { url } = video ?? {}
    if (typeof url !== "string" || !URL.canParse(url) || new URL(url).origin !== new URL(root).origin) {
      return yield* unreadable
    }
    const file = yield* http.bytes(http.get(url), maxVideo, request.model)
    return answerOf(file.bytes, file.type, undefined)
  })

  return {
    generateVideo: (request) =>
      byJob(request).pipe(
        Forms.orElse(() => atOnce(request)),
        Effect.filterOrFail(({ video }) => video.length > 0, () => unreadable),
        Effect.timeoutOrElse({
          duration: deadline,
          orElse: () =>
            Effect.fail(
              new TimedOut({
                detail: `The video was not there within ${Duration.toSeconds(deadline)} s, and was given up. ` +
                  "Ask for a shorter one, or raise the timeout"
              })
            )
        })
      )
  } satisfies Partial<Backend>
}

const next = (pause: number): number => Math.min(pause * growth, longestPause)

const answerOf = (video: Uint8Array, type: string, duration: number | undefined): GenerateVideoAnswer => ({
  video,
  type: Media.videoOf(video)?.type ?? type,
  ...(duration === undefined ? {} : { duration })
})
