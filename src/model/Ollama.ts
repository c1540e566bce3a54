/**
 * Ollama (https://github.com/ollama/ollama/blob/main/docs/api.md): it pulls from its registry itself, keeps the files to
 * itself, and tells how far it is as lines of JSON.
 *
 * @since 0.1.0
 */
import * as Effect from "effect/Effect"
import * as Ndjson from "effect/encoding/Ndjson"
import * as HttpClientRequest from "effect/http/HttpClientRequest"
import * as Predicate from "effect/Predicate"
import * as Result from "effect/Result"
import * as Schema from "effect/Schema"
import * as Stream from "effect/Stream"
import { excerpt, hostOf } from "../internal/httpText.ts"
import * as Detect from "./Detect.ts"
import * as Gguf from "./Gguf.ts"
import * as Hub from "./Hub.ts"
import {
  ChecksumMismatch,
  DiskFull,
  HubError,
  type HubReason,
  InvalidResponse,
  Network,
  RepoNotFound,
  Unauthorized,
  Upstream
} from "./HubError.ts"
import type { HubHttp, OnStatus } from "./HubHttp.ts"
import { ModelFormat, type ModelType, Sha256 } from "./Model.ts"
import * as Progress from "./Progress.ts"

/**
 * `endpoint` is the address of the Ollama server; default `http://localhost:11434`.
 *
 * @category models
 * @since 0.1.0
 */
export interface Options {
  readonly endpoint?: string | undefined
}

/**
 * Where Ollama listens, unless the options say otherwise.
 *
 * @category constants
 * @since 0.1.0
 */
export const defaultEndpoint = "http://localhost:11434"

const defaultTag = "latest"
const maxLineBytes = 1024 * 1024

const Line = Schema.Struct({
  status: Schema.optional(Schema.String),
  digest: Schema.optional(Schema.String),
  total: Schema.optional(Schema.Natural),
  completed: Schema.optional(Schema.Natural),
  error: Schema.optional(Schema.String)
})

const Held = Schema.Struct({ name: Schema.NonEmptyString, size: Schema.Natural, digest: Schema.String })
type Held = typeof Held.Type
const Tags = Schema.Struct({ models: Schema.NullOr(Schema.Array(Held)) })

const Show = Schema.Struct({
  details: Schema.optional(Schema.NullOr(Schema.Struct({
    format: Schema.optional(Schema.String),
    family: Schema.optional(Schema.String),
    parameter_size: Schema.optional(Schema.String),
    quantization_level: Schema.optional(Schema.String)
  }))),
  capabilities: Schema.optional(Schema.NullOr(Schema.Array(Schema.String))),
  model_info: Schema.optional(Schema.NullOr(Schema.Record(Schema.String, Schema.Unknown)))
})

const ErrorBody = Schema.fromJsonString(Schema.Struct({ error: Schema.String }))
const isFormat = Schema.is(ModelFormat)
const isSha256 = Schema.is(Sha256)

// Ollama's failures are sentences, those of its own and those of its registry passed on.
const reasonOf = (status: number, message: string, model: string, host: string): HubReason => {
  if (status === 404 || /file does not exist|model .*not found|invalid model name/i.test(message)) {
    return new RepoNotFound({ repo: model })
  }
  if (status === 401 || status === 403 || /unauthorized|access denied/i.test(message)) {
    return new Unauthorized({ detail: excerpt(message) })
  }
  if (/no space left/i.test(message)) return new DiskFull({ path: "Ollama's model store" })
  if (/digest mismatch/i.test(message)) {
    return new ChecksumMismatch({ path: model, expected: "the digest of the registry", actual: "another" })
  }
  if (/timeout|connection|no such host|max retries|unexpected eof|dial tcp/i.test(message)) {
    return new Network({ host, description: `Ollama says: ${excerpt(message)}` })
  }
  return new Upstream({ status, detail: excerpt(message) || "no message" })
}

const typeOf = (capabilities: ReadonlyArray<string>, metadata: Gguf.Metadata): ModelType | undefined => {
  if (capabilities.includes("embedding")) return "embedding"
  if (capabilities.includes("vision")) return "vlm"
  return metadata.architecture === undefined
    ? undefined
    : Detect.typeOfGgufArchitecture(metadata.architecture, metadata.pooling_type)
}

/**
 * Where to reach an Ollama server that was told to listen at `host`, by the rules of `OLLAMA_HOST`: scheme, host and port
 * may each be missing, the port is 11434 unless a scheme is there to imply another, and "any address" means this host.
 *
 * @category conversions
 * @since 0.1.0
 */
export const endpointOf = (host: string): string => {
  const scheme = /^https?:\/\//i.test(host)
  const address = scheme ? host : `http://${host.startsWith(":") ? `localhost${host}` : host}`
  if (!URL.canParse(address)) return address
  const url = new URL(address)
  if (!scheme && url.port === "" && !/:80\/?$/.test(host)) url.port = "11434"
  if (url.hostname === "0.0.0.0") url.hostname = "127.0.0.1"
  if (url.hostname === "[::]") url.hostname = "[::1]"
  return url.href.replace(/\/+$/, "")
}

/**
 * The name by which Ollama knows a model: `repo:tag`, below another registry's host when there is a mirror.
 *
 * @category conversions
 * @since 0.1.0
 */
export const modelName = ({ mirror, repo, tag }: Hub.Reference): string => {
  const tagged = tag === undefined ? repo : `${repo}:${tag}`
  if (mirror === undefined || !URL.canParse(mirror)) return tagged
  const { host, pathname } = new URL(mirror)
  const path = pathname.replaceAll(/^\/+|\/+$/g, "")
  // A name without an owner belongs to `library`, which only the official registry adds by itself.
  return [host, ...(path === "" ? [] : [path]), ...(repo.includes("/") ? [] : ["library"]), tagged].join("/")
}

/**
 * Builds the client of an Ollama server over the shared HTTP.
 *
 * **Details**
 *
 * A cut or silent stream is asked for again, and Ollama goes on from what it has; so does the next pull after an
 * interruption, which closes the connection and with it ends Ollama's own download. Digest and size are those of
 * `/api/tags`, and the shape is that of `/api/show`.
 *
 * A `mirror` is the address of another registry; Ollama allows it over plain `http` too.
 *
 * There is no API for searching Ollama's library, so `search` finds what the server itself holds, without download counts.
 *
 * **Gotchas**
 *
 * Between layers Ollama checks digests without a word, which takes minutes for large ones: give the shared HTTP an idle
 * timeout to match.
 *
 * @category constructors
 * @since 0.1.0
 */
export const make = (http: HubHttp, options: Options): Hub.Hub => {
  const base = Hub.baseUrl(options.endpoint ?? defaultEndpoint)
  const tagsRequest = HttpClientRequest.get(`${base}/api/tags`)
  const host = hostOf(tagsRequest)

  const onStatus = (model: string): OnStatus => (status, _headers, text) => {
    const body = Schema.decodeResult(ErrorBody)(text)
    return reasonOf(status, Result.isSuccess(body) ? body.success.error : text, model, host)
  }

  const tags = Effect.map(
    http.json(tagsRequest, Tags, onStatus("")),
    ({ value }) => value.models ?? []
  )

  const inspect = Effect.fnUntraced(function*(held: Held): Effect.fn.Return<Hub.HubModel, HubReason> {
    const model = held.name
    const request = HttpClientRequest.bodyJsonUnsafe(HttpClientRequest.post(`${base}/api/show`), { model })
    const { value: show } = yield* http.json(request, Show, onStatus(model))
    const metadata = Gguf.describe(new Map(Object.entries(show.model_info ?? {})))
    const known = typeOf(show.capabilities ?? [], metadata)
    const format = show.details?.format?.toLowerCase()
    const digest = held.digest.replace(/^sha256:/, "")
    const parameterCount = show.model_info?.["general.parameter_count"]
    return {
      name: model.endsWith(`:${defaultTag}`) ? model.slice(0, -defaultTag.length - 1) : model,
      type: known ?? Detect.defaultType,
      format: isFormat(format) ? format : "gguf",
      tags: [
        ...[show.details?.family, show.details?.parameter_size, show.details?.quantization_level]
          .filter((tag): tag is string => tag !== undefined && tag !== ""),
        ...(known === undefined ? [Hub.guessedTag] : [])
      ],
      revision: digest,
      files: [],
      size: held.size,
      checksum: isSha256(digest) ? `sha256:${digest}` : undefined,
      shape: {
        ...Gguf.shape(metadata),
        weightBytes: held.size,
        parameterCount: Predicate.isNumber(parameterCount) ? parameterCount : undefined
      }
    }
  })

  const look = Effect.fnUntraced(function*(reference: Hub.Reference) {
    const model = modelName(reference)
    const full = model.includes(":", model.lastIndexOf("/") + 1) ? model : `${model}:${defaultTag}`
    const held = (yield* tags).find(({ name }) => name.toLowerCase() === full.toLowerCase())
    return yield* held === undefined ? new RepoNotFound({ repo: model }) : inspect(held)
  })

  const stream = Effect.fnUntraced(function*(
    request: HttpClientRequest.HttpClientRequest,
    model: string,
    reporter: Progress.Reporter,
    layers: Map<string, number>
  ) {
    const response = yield* http.open(request)
    if (response.status !== 200) return yield* http.fail(response, onStatus(model))
    let done = false
    yield* http.body(response).pipe(
      Stream.pipeThroughChannel(Ndjson.decodeSchema(Line)({ ignoreEmptyLines: true, maxLineBytes })),
      Stream.catchTags({
        NdjsonError: (error) =>
          // A line without its end is what a cut connection leaves.
          Stream.fail(
            error.unterminated
              ? new Network({ host, description: "the connection closed in the middle of a line" })
              : new InvalidResponse({ host, description: excerpt(String(error.cause)) })
          ),
        SchemaError: (error) => Stream.fail(new InvalidResponse({ host, description: excerpt(error.message) }))
      }),
      Stream.runForEach(Effect.fnUntraced(function*(line) {
        if (line.error !== undefined) return yield* reasonOf(200, line.error, model, host)
        if (line.status === "success") done = true
        const { digest, status = "pulling", total } = line
        if (digest === undefined || total === undefined) return
        const at = line.completed ?? 0
        const before = layers.get(digest)
        layers.set(digest, at)
        // What a layer has when it is first heard of came with an earlier pull.
        const received = before === undefined ? 0 : Math.max(0, at - before)
        yield* reporter.advance(digest, { done: at, total, received }, status)
        if (at === total && before !== total) yield* reporter.tell(status)
      }))
    )
    if (!done) return yield* new Network({ host, description: "the answer ended before the pull did" })
  })

  const named = <A, R>(effect: Effect.Effect<A, HubReason, R>, repo?: string | undefined) =>
    Effect.mapError(effect, (reason) => new HubError({ source: "ollama", repo, reason }))

  const pull: Hub.Hub["pull"] = Effect.fnUntraced(function*(request) {
    const model = modelName(request)
    const call = HttpClientRequest.bodyJsonUnsafe(HttpClientRequest.post(`${base}/api/pull`), {
      model,
      stream: true,
      ...(request.mirror?.startsWith("http://") ? { insecure: true } : undefined)
    })
    const reporter = yield* Progress.make(0, request.onProgress)
    const layers = new Map<string, number>()
    yield* reporter.tell("pulling manifest")
    let before = 0
    yield* http.retry(Effect.scoped(stream(call, model, reporter, layers)), () => {
      const now = [...layers.values()].reduce((sum, bytes) => sum + bytes, 0)
      const gained = now - before
      before = now
      return gained >= 1024 * 1024
    })
    yield* reporter.finish("pulled")
    return yield* look(request)
  }, (effect, request) => named(effect, request.repo))

  const remove: Hub.Hub["remove"] = (reference) => {
    const model = modelName(reference)
    const request = HttpClientRequest.bodyJsonUnsafe(HttpClientRequest.delete(`${base}/api/delete`), { model })
    const attempt = Effect.gen(function*() {
      const response = yield* http.open(request)
      if (response.status === 200 || response.status === 404) return
      return yield* http.fail(response, onStatus(model))
    })
    return named(http.retry(Effect.scoped(attempt)), reference.repo)
  }

  const search: Hub.Hub["search"] = Effect.fnUntraced(function*({ limit, query, type }) {
    const text = query.toLowerCase()
    const held = (yield* tags).filter(({ name }) => name.toLowerCase().includes(text))
    const models = yield* Effect.forEach(held, inspect, { concurrency: 4 })
    return models.filter((model) => type === undefined || model.type === type).slice(0, limit).map((model) => ({
      id: model.name,
      name: model.name,
      type: model.type,
      source: "ollama" as const,
      description: "held by this Ollama server",
      downloads: 0,
      tags: model.tags
    }))
  }, (effect) => named(effect))

  return { pull, describe: (reference) => named(look(reference), reference.repo), remove, search }
}
