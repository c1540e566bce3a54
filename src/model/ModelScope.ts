/**
 * ModelScope (https://www.modelscope.cn): its hub API under `/api/v1/models`, as its own SDK uses it, and its OpenAPI for
 * searching.
 *
 * The hub API wraps every answer in `{ Code, Data, Message, Success }`, and may report a failure under HTTP 200.
 *
 * @since 0.1.0
 */
import * as Effect from "effect/Effect"
import type * as FileSystem from "effect/FileSystem"
import * as HttpClientRequest from "effect/http/HttpClientRequest"
import type * as Path from "effect/Path"
import * as Predicate from "effect/Predicate"
import * as Redacted from "effect/Redacted"
import * as Result from "effect/Result"
import * as Schema from "effect/Schema"
import { excerpt, hostOf } from "../internal/httpText.ts"
import * as Detect from "./Detect.ts"
import * as Download from "./Download.ts"
import * as Hub from "./Hub.ts"
import {
  FileNotFound,
  HubError,
  type HubReason,
  InvalidResponse,
  RepoNotFound,
  RevisionNotFound,
  Unauthorized,
  Upstream
} from "./HubError.ts"
import * as HubFiles from "./HubFiles.ts"
import { type HubHttp, type OnStatus, statusReason } from "./HubHttp.ts"
import type { ModelType, SearchResult } from "./Model.ts"

/**
 * `endpoint` is the address of the hub; default `https://www.modelscope.cn`. `token` is an access token, sent to this
 * endpoint only.
 *
 * @category models
 * @since 0.1.0
 */
export interface Options {
  readonly endpoint?: string | undefined
  readonly token?: Redacted.Redacted | undefined
  readonly parallelFiles: number
}

/**
 * Where the hub is, unless the options say otherwise.
 *
 * @category constants
 * @since 0.1.0
 */
export const defaultEndpoint = "https://www.modelscope.cn"

const defaultRevision = "master"
const success = 200
const pageSize = 50
// Types are filtered here, not there; a rare one is not worth reading the whole hub for.
const maxPages = 10

const Envelope = Schema.Struct({
  Code: Schema.Int,
  Message: Schema.optional(Schema.NullishOr(Schema.String)),
  Data: Schema.optional(Schema.Unknown)
})

// Words for people; what is no string among them is left out.
const Labels = Schema.optional(Schema.NullishOr(Schema.Array(Schema.Unknown)))
const stringsOf = (labels: ReadonlyArray<unknown> | null | undefined) => (labels ?? []).filter(Predicate.isString)

const Detail = Schema.Struct({
  Tasks: Schema.optional(Schema.NullishOr(Schema.Array(Schema.Union([
    Schema.String,
    Schema.Struct({ Name: Schema.String })
  ])))),
  Tags: Labels
})

const Listing = Schema.Struct({
  Files: Schema.NullishOr(Schema.Array(Schema.Struct({
    Path: Schema.String,
    Type: Schema.String,
    Size: Schema.Natural,
    Sha256: Schema.optional(Schema.NullishOr(Schema.String))
  }))),
  LatestCommitter: Schema.optional(Schema.NullishOr(Schema.Struct({ Id: Schema.optional(Schema.String) })))
})

const Found = Schema.Struct({
  message: Schema.optional(Schema.NullishOr(Schema.String)),
  data: Schema.optional(Schema.NullishOr(Schema.Struct({
    models: Schema.Array(Schema.Struct({
      id: Schema.NonEmptyString,
      description: Schema.optional(Schema.NullishOr(Schema.String)),
      downloads: Schema.optional(Schema.NullishOr(Schema.Natural)),
      tags: Labels,
      tasks: Labels
    })),
    total_count: Schema.optional(Schema.Natural)
  })))
})

const typeOf = (tasks: ReadonlyArray<string>): ModelType | undefined =>
  tasks.map(Detect.typeOfPipelineTag).find(Predicate.isNotUndefined)

const decodeEnvelope = Schema.decodeUnknownResult(Schema.fromJsonString(Envelope))

// The codes are not documented; the messages, in English or Chinese, tell more.
const reasonOf = (status: number, message: string, missing: HubReason): HubReason => {
  if (status === 401 || status === 403 || /unauthori[sz]ed|permission|login|无权/i.test(message)) {
    return new Unauthorized({ detail: excerpt(message) || `HTTP ${status}` })
  }
  if (status === 404 || /not.?found|not exist|不存在/i.test(message)) return missing
  return new Upstream({ status, detail: excerpt(message) || "no message" })
}

const onStatus = (missing: HubReason): OnStatus => (status, _headers, text) => {
  const envelope = decodeEnvelope(text)
  return reasonOf(status, Result.isSuccess(envelope) ? envelope.success.Message ?? "" : text, missing)
}

/**
 * Builds the client of ModelScope over the shared HTTP.
 *
 * **Details**
 *
 * Files are checked by the SHA-256 of the listing. A tag that is no revision may choose a file; see `HubFiles.select`.
 *
 * **Gotchas**
 *
 * The listing names the latest commit, but files are asked for by branch or tag, as the SDK does. A file that changes
 * between listing and download fails with `ChecksumMismatch` or `SizeMismatch`; pull again then.
 *
 * @category constructors
 * @since 0.1.0
 */
export const make = Effect.fnUntraced(function*(
  http: HubHttp,
  options: Options
): Effect.fn.Return<Hub.Hub, never, FileSystem.FileSystem | Path.Path> {
  const download = yield* Download.make(http)
  const home = Hub.baseUrl(options.endpoint ?? defaultEndpoint)

  const get = (base: string, url: string) => {
    const request = HttpClientRequest.get(url)
    return options.token === undefined || base !== home
      ? request
      : HttpClientRequest.setHeader(request, "cookie", `m_session_id=${Redacted.value(options.token)}`)
  }

  const data = Effect.fnUntraced(function*<S extends Schema.ConstraintDecoder<unknown, never>>(
    request: HttpClientRequest.HttpClientRequest,
    schema: S,
    missing: HubReason
  ) {
    const { value } = yield* http.json(request, Envelope, onStatus(missing))
    if (value.Code !== success) return yield* reasonOf(success, value.Message ?? "", missing)
    return yield* Effect.mapError(
      Schema.decodeUnknownEffect(schema)(value.Data),
      (error) => new InvalidResponse({ host: hostOf(request), description: excerpt(error.message) })
    )
  })

  const at = Effect.fnUntraced(function*(base: string, repo: string, revision: string) {
    const api = `${base}/api/v1/models/${repo}`
    const query = `Revision=${encodeURIComponent(revision)}`
    const detail = yield* data(get(base, `${api}?${query}`), Detail, new RepoNotFound({ repo }))
    const listing = yield* data(
      get(base, `${api}/repo/files?${query}&Recursive=true`),
      Listing,
      new RevisionNotFound({ revision, choices: [] })
    )
    return {
      detail,
      revision,
      commit: listing.LatestCommitter?.Id || revision,
      files: (listing.Files ?? []).filter(({ Type }) => Type === "blob").map((file) => ({
        path: file.Path,
        size: file.Size,
        sha256: /^[0-9a-f]{64}$/.test(file.Sha256 ?? "") ? file.Sha256 ?? undefined : undefined
      }))
    }
  })

  const look = Effect.fnUntraced(function*(reference: Hub.Reference) {
    const { repo, tag } = reference
    if (!Hub.isRepoName(repo)) return yield* new RepoNotFound({ repo })
    const base = reference.mirror === undefined ? home : Hub.baseUrl(reference.mirror)
    let choice: string | undefined
    const repository = yield* at(base, repo, tag ?? defaultRevision).pipe(
      Effect.catchIf(
        (reason) => tag !== undefined && Hub.isNoRevision(reason),
        () => {
          choice = tag
          return at(base, repo, defaultRevision)
        }
      )
    )
    const selection = HubFiles.select(repository.files, choice)
    if (selection === undefined) {
      return yield* choice === undefined
        ? new FileNotFound({ path: HubFiles.anyWeights })
        : new RevisionNotFound({ revision: choice, choices: HubFiles.choices(repository.files) })
    }
    return { base, repository, selection }
  })

  const modelOf = (
    reference: Hub.Reference,
    { repository, selection }: Effect.Success<ReturnType<typeof look>>,
    files: Hub.HubModel["files"]
  ): Hub.HubModel => {
    const { Tags, Tasks } = repository.detail
    const type = typeOf((Tasks ?? []).map((task) => Predicate.isString(task) ? task : task.Name))
    return {
      name: Hub.nameOf(reference, defaultRevision),
      type: type ?? Detect.defaultType,
      format: selection.format,
      tags: [...stringsOf(Tags), ...(type === undefined ? [Hub.guessedTag] : [])],
      revision: repository.commit,
      ...HubFiles.summary(selection, files, {})
    }
  }

  const named = <A, R>(effect: Effect.Effect<A, HubReason, R>, repo?: string | undefined) =>
    Effect.mapError(effect, (reason) => new HubError({ source: "modelscope", repo, reason }))

  const describe: Hub.Hub["describe"] = (reference) =>
    named(
      Effect.map(look(reference), (found) => modelOf(reference, found, HubFiles.manifest(found.selection))),
      reference.repo
    )

  const pull: Hub.Hub["pull"] = Effect.fnUntraced(function*(request) {
    const found = yield* look(request)
    const { base, repository, selection } = found
    const files = yield* download.all({
      directory: request.directory,
      files: [...selection.weights, ...selection.others].map((file) => ({
        ...file,
        request: get(
          base,
          `${base}/api/v1/models/${request.repo}/repo?Revision=${encodeURIComponent(repository.revision)}` +
            `&FilePath=${encodeURIComponent(file.path)}`
        ),
        onStatus: onStatus(new FileNotFound({ path: file.path }))
      })),
      parallel: options.parallelFiles,
      onProgress: request.onProgress
    })
    return modelOf(request, found, files)
  }, (effect, request) => named(effect, request.repo))

  const search: Hub.Hub["search"] = Effect.fnUntraced(function*({ limit, query, type }) {
    const results: Array<SearchResult> = []
    for (let page = 1, more = true; more; page++) {
      const url = new URL(`${home}/openapi/v1/models`)
      const size = Math.min(limit, pageSize)
      url.search = new URLSearchParams({
        search: query,
        sort: "downloads",
        page_number: String(page),
        page_size: String(size)
      }).toString()
      const request = HttpClientRequest.get(url)
      const { value } = yield* http.json(
        options.token === undefined
          ? request
          : HttpClientRequest.bearerToken(request, Redacted.value(options.token)),
        Found,
        statusReason
      )
      if (value.data == null) {
        return yield* new Upstream({ status: success, detail: excerpt(value.message ?? "") || "no data" })
      }
      const { models, total_count } = value.data
      for (const model of models) {
        const tasks = stringsOf(model.tasks)
        results.push({
          id: model.id,
          name: model.id.slice(model.id.indexOf("/") + 1),
          type: typeOf(tasks) ?? Detect.defaultType,
          source: "modelscope",
          description: model.description || tasks.join(", "),
          downloads: model.downloads ?? 0,
          tags: stringsOf(model.tags)
        })
      }
      const matching = type === undefined ? results.length : results.filter((result) => result.type === type).length
      more = matching < limit && models.length === size && page * size < (total_count ?? 0) && page < maxPages
    }
    return results.filter((result) => type === undefined || result.type === type).slice(0, limit)
  }, (effect) => named(effect))

  return { pull, describe, remove: () => Effect.void, search }
})
