/**
 * The Hugging Face Hub, and what speaks its protocol: `GET /api/models` to search, `/api/models/{repo}/revision/{rev}` and
 * `/tree/{rev}` to look, `/{repo}/resolve/{rev}/{path}` to fetch (https://huggingface.co/docs/hub/api).
 *
 * @since 0.1.0
 */
import * as Effect from "effect/Effect"
import type * as FileSystem from "effect/FileSystem"
import type { Headers } from "effect/http/Headers"
import * as HttpClientRequest from "effect/http/HttpClientRequest"
import type * as Path from "effect/Path"
import * as Redacted from "effect/Redacted"
import * as Schema from "effect/Schema"
import { excerpt, hostOf } from "../internal/httpText.ts"
import * as Detect from "./Detect.ts"
import * as Download from "./Download.ts"
import * as Hub from "./Hub.ts"
import {
  FileNotFound,
  Gated,
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
import { type ModelType, type SearchResult, Sha256 } from "./Model.ts"

/**
 * `endpoint` is the address of the hub, without a path below it; default `https://huggingface.co`. `token` is an access
 * token (`hf_...`), sent to this endpoint only.
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
export const defaultEndpoint = "https://huggingface.co"

const defaultRevision = "main"
const pageSize = 100
// A listing has a thousand entries a page.
const maxPages = 100

const NullishString = Schema.optional(Schema.NullishOr(Schema.String))

const ModelInfo = Schema.Struct({
  id: Schema.NonEmptyString,
  sha: Schema.String.check(Schema.isPattern(/^[0-9a-f]{40,64}$/)),
  pipeline_tag: NullishString,
  tags: Schema.optional(Schema.Array(Schema.String)),
  config: Schema.optional(Schema.NullishOr(Schema.Struct({
    architectures: Schema.optional(Schema.NullishOr(Schema.Array(Schema.String))),
    model_type: NullishString
  }))),
  safetensors: Schema.optional(Schema.NullishOr(Schema.Struct({ total: Schema.optional(Schema.Natural) }))),
  gguf: Schema.optional(Schema.NullishOr(Schema.Struct({
    total: Schema.optional(Schema.Natural),
    architecture: NullishString,
    context_length: Schema.optional(Schema.NullishOr(Schema.Natural))
  })))
})

const TreeEntry = Schema.Struct({
  type: Schema.String,
  path: Schema.String,
  size: Schema.Natural,
  oid: NullishString,
  lfs: Schema.optional(Schema.NullishOr(Schema.Struct({ oid: Sha256, size: Schema.Natural })))
})

const Listed = Schema.Struct({
  id: Schema.NonEmptyString,
  pipeline_tag: NullishString,
  library_name: NullishString,
  downloads: Schema.optional(Schema.Natural),
  tags: Schema.optional(Schema.Array(Schema.String))
})

// The hub filters by one pipeline tag at a time, and only by its own.
const pipelineTags: Record<ModelType, ReadonlyArray<string>> = {
  llm: ["text-generation", "text2text-generation"],
  vlm: ["image-text-to-text", "visual-question-answering"],
  asr: ["automatic-speech-recognition"],
  tts: ["text-to-speech"],
  embedding: ["feature-extraction", "sentence-similarity"],
  diffusion: ["text-to-image", "image-to-image"],
  video_gen: ["text-to-video", "image-to-video"],
  detection: ["object-detection", "image-segmentation"],
  rerank: ["text-ranking"]
}

interface Repository {
  readonly info: typeof ModelInfo.Type
  readonly files: ReadonlyArray<Pick<Download.File, "path" | "size" | "sha256" | "gitSha1">>
}

// https://huggingface.co/docs/hub: X-Error-Code names the failure. A repository that does not exist answers 401 without a
// code, unless the token itself is refused (huggingface_hub, `hf_raise_for_status`).
const onStatus = (context: {
  readonly base: string
  readonly repo: string
  readonly revision: string
  readonly path?: string | undefined
}): OnStatus =>
(status, headers, text) => {
  const message = headers["x-error-message"] ?? text
  const { base, path, repo, revision } = context
  switch (headers["x-error-code"]) {
    case "RepoNotFound":
      return new RepoNotFound({ repo })
    case "RevisionNotFound":
      return new RevisionNotFound({ revision, choices: [] })
    case "EntryNotFound":
      return new FileNotFound({ path: path ?? repo })
    case "GatedRepo":
      return new Gated({ url: `${base}/${repo}` })
    case "DisabledRepo":
      return new Upstream({ status, detail: excerpt(message) || "the repository is disabled" })
  }
  if (status === 401) {
    return /invalid credentials|invalid.* token|expired/i.test(message)
      ? new Unauthorized({ detail: excerpt(message) })
      : new RepoNotFound({ repo })
  }
  if (status === 404) return path === undefined ? new RepoNotFound({ repo }) : new FileNotFound({ path })
  return statusReason(status, headers, message)
}

// RFC 8288. The hub writes its own address into the link; behind a mirror that is the wrong one, and the token of this
// endpoint is nothing for another.
const nextPage = (headers: Headers, base: string): string | undefined => {
  const link = /<([^>]+)>\s*;\s*rel="?next"?/.exec(headers["link"] ?? "")?.[1]
  if (link === undefined || !URL.canParse(link, base)) return undefined
  const url = new URL(link, base)
  const { origin, pathname } = new URL(base)
  const below = pathname === "/" || url.pathname.startsWith(`${pathname}/`) ? "" : pathname
  return origin + below + url.pathname + url.search
}

const typeOf = (info: typeof ModelInfo.Type): ModelType | undefined => {
  const byTag = info.pipeline_tag == null ? undefined : Detect.typeOfPipelineTag(info.pipeline_tag)
  const byConfig = info.config == null ? undefined : Detect.typeOfConfig({
    architectures: info.config.architectures ?? undefined,
    model_type: info.config.model_type ?? undefined
  })
  const byGguf = info.gguf?.architecture == null ? undefined : Detect.typeOfGgufArchitecture(info.gguf.architecture)
  return byTag ?? byConfig ?? byGguf
}

/**
 * Builds the client of a Hugging Face Hub over the shared HTTP.
 *
 * **Details**
 *
 * A pull first asks for the commit that the tag stands for, and takes the listing and all files from that commit. Files
 * are checked by SHA-256 where they are in large file storage, and by Git's checksum where they are not.
 *
 * A tag that is no revision may choose a file; see `HubFiles.select`. A GGUF repository has one quantisation pulled.
 *
 * Searching goes by the hub's full-text search. A type makes one request for each pipeline tag that stands for it.
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
      : HttpClientRequest.bearerToken(request, Redacted.value(options.token))
  }

  // Follows the pages of a list until there are enough.
  const pages = Effect.fnUntraced(function*<S extends Schema.ConstraintDecoder<unknown, never>>(
    base: string,
    first: string,
    item: S,
    limit: number,
    onStatus: OnStatus
  ) {
    const items: Array<S["Type"]> = []
    const list = Schema.Array(item)
    let next: string | undefined = first
    for (let page = 0; next !== undefined && items.length < limit; page++) {
      const request: HttpClientRequest.HttpClientRequest = get(base, next)
      if (page === maxPages) {
        return yield* new InvalidResponse({
          host: hostOf(request),
          description: `a list of more than ${maxPages} pages`
        })
      }
      const answer = yield* http.json(request, list, onStatus)
      items.push(...answer.value)
      next = nextPage(answer.headers, base)
    }
    return items
  })

  const at = Effect.fnUntraced(function*(base: string, repo: string, revision: string) {
    const api = `${base}/api/models/${repo}`
    const fail = onStatus({ base, repo, revision })
    const { value: info } = yield* http.json(
      get(base, `${api}/revision/${encodeURIComponent(revision)}`),
      ModelInfo,
      fail
    )
    const tree = yield* pages(base, `${api}/tree/${info.sha}?recursive=true`, TreeEntry, Number.POSITIVE_INFINITY, fail)
    const files = tree.filter(({ type }) => type === "file").map((entry) => ({
      path: entry.path,
      size: entry.lfs?.size ?? entry.size,
      sha256: entry.lfs?.oid,
      gitSha1: entry.lfs == null && /^[0-9a-f]{40}$/.test(entry.oid ?? "") ? entry.oid ?? undefined : undefined
    }))
    return { info, files }
  })

  const look = Effect.fnUntraced(function*(reference: Hub.Reference) {
    const { repo, tag } = reference
    if (!Hub.isRepoName(repo)) return yield* new RepoNotFound({ repo })
    const base = reference.mirror === undefined ? home : Hub.baseUrl(reference.mirror)
    let choice: string | undefined
    const repository: Repository = yield* at(base, repo, tag ?? defaultRevision).pipe(
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
    return { base, info: repository.info, selection }
  })

  const modelOf = (
    reference: Hub.Reference,
    { info, selection }: Effect.Success<ReturnType<typeof look>>,
    files: Hub.HubModel["files"]
  ): Hub.HubModel => {
    const type = typeOf(info)
    return {
      name: Hub.nameOf(reference, defaultRevision),
      type: type ?? Detect.defaultType,
      format: selection.format,
      tags: [...(info.tags ?? []), ...(type === undefined ? [Hub.guessedTag] : [])],
      revision: info.sha,
      ...HubFiles.summary(selection, files, {
        parameterCount: info.safetensors?.total ?? info.gguf?.total,
        contextLength: info.gguf?.context_length ?? undefined
      })
    }
  }

  const named = <A, R>(effect: Effect.Effect<A, HubReason, R>, repo?: string | undefined) =>
    Effect.mapError(effect, (reason) => new HubError({ source: "huggingface", repo, reason }))

  const describe: Hub.Hub["describe"] = (reference) =>
    named(
      Effect.map(look(reference), (found) => modelOf(reference, found, HubFiles.manifest(found.selection))),
      reference.repo
    )

  const pull: Hub.Hub["pull"] = Effect.fnUntraced(function*(request) {
    const found = yield* look(request)
    const { base, info, selection } = found
    const files = yield* download.all({
      directory: request.directory,
      files: [...selection.weights, ...selection.others].map((file) => ({
        ...file,
        request: get(base, `${base}/${request.repo}/resolve/${info.sha}/${Hub.encodePath(file.path)}`),
        onStatus: onStatus({ base, repo: request.repo, revision: info.sha, path: file.path })
      })),
      parallel: options.parallelFiles,
      onProgress: request.onProgress
    })
    return modelOf(request, found, files)
  }, (effect, request) => named(effect, request.repo))

  const search: Hub.Hub["search"] = Effect.fnUntraced(function*({ limit, query, type }) {
    const found = yield* Effect.forEach(
      type === undefined ? [undefined] : pipelineTags[type],
      (tag) => {
        const url = new URL(`${home}/api/models`)
        url.search = new URLSearchParams({
          search: query,
          ...(tag === undefined ? undefined : { pipeline_tag: tag }),
          sort: "downloads",
          direction: "-1",
          limit: String(Math.min(limit, pageSize))
        }).toString()
        return pages(home, url.href, Listed, limit, statusReason)
      },
      { concurrency: "unbounded" }
    )
    return found.flat().map((model): SearchResult => ({
      id: model.id,
      name: model.id.slice(model.id.indexOf("/") + 1),
      type: (model.pipeline_tag == null ? undefined : Detect.typeOfPipelineTag(model.pipeline_tag)) ??
        Detect.defaultType,
      source: "huggingface",
      description: [model.pipeline_tag, model.library_name].filter((part) => part != null).join(", "),
      downloads: model.downloads ?? 0,
      tags: model.tags ?? []
    })).sort((a, b) => b.downloads - a.downloads).slice(0, limit)
  }, (effect) => named(effect))

  return { pull, describe, remove: () => Effect.void, search }
})
