/**
 * What every model hub does, whatever its protocol.
 *
 * @since 0.1.0
 */
import type * as Effect from "effect/Effect"
import type { ModelShape } from "./Estimate.ts"
import type { HubError, HubReason } from "./HubError.ts"
import type { ManifestFile, ModelFormat, ModelType, SearchResult } from "./Model.ts"
import type { Progress } from "./Progress.ts"

/**
 * A model on a hub.
 *
 * **Details**
 *
 * `tag` is a branch, tag or commit (HuggingFace: main, ModelScope: master), or an Ollama tag (latest). On HuggingFace and
 * ModelScope it may also choose weights out of several: the path of a file, or the end of a GGUF file's name, such as
 * `Q4_K_M`. `mirror` is a URL that takes the place of the hub's own address, for this call; no token goes there.
 *
 * @category models
 * @since 0.1.0
 */
export interface Reference {
  readonly repo: string
  readonly tag?: string | undefined
  readonly mirror?: string | undefined
}

/**
 * A pull: what, and the absolute path of the folder for its files. `onProgress` is told at the start, after each file, at
 * the end, and in between at most twice a second; the pull waits for it.
 *
 * @category models
 * @since 0.1.0
 */
export interface PullRequest extends Reference {
  readonly directory: string
  readonly onProgress: (progress: Progress) => Effect.Effect<void>
}

/**
 * A search: text, how many results at most, and the type they must have.
 *
 * @category models
 * @since 0.1.0
 */
export interface SearchRequest {
  readonly query: string
  readonly limit: number
  readonly type?: ModelType | undefined
}

/**
 * What a hub knows of a model; after a pull, what is on disk.
 *
 * **Details**
 *
 * `name` is the repository, with `:tag` unless that is the default one. `type` is a guess when `tags` include
 * `type:guessed`. `revision` is the commit (HuggingFace), the commit or branch (ModelScope) or the digest (Ollama).
 * `files` is empty for Ollama, which keeps files to itself; `size` is the sum in bytes in any case. `checksum` is
 * `sha256:<hex>` of the only weight file, or Ollama's digest; absent when there are several. `shape` is what
 * the hub tells of the model's dimensions, and the bytes of its weights.
 *
 * @category models
 * @since 0.1.0
 */
export interface HubModel {
  readonly name: string
  readonly type: ModelType
  readonly format: ModelFormat
  readonly tags: ReadonlyArray<string>
  readonly revision: string
  readonly files: ReadonlyArray<ManifestFile>
  readonly size: number
  readonly checksum?: string | undefined
  readonly shape: ModelShape
}

/**
 * The client of one hub.
 *
 * @category models
 * @since 0.1.0
 */
export interface Hub {
  /** Fetches a model. A repeat checks what is there and fetches what is missing or changed. */
  readonly pull: (request: PullRequest) => Effect.Effect<HubModel, HubError>
  /** What a pull would bring, without fetching it. On Ollama: what it holds. */
  readonly describe: (reference: Reference) => Effect.Effect<HubModel, HubError>
  /** Removes what the hub's own program holds for this host. A model that is not there counts as removed. */
  readonly remove: (reference: Reference) => Effect.Effect<void, HubError>
  /** Models by name or topic, the most downloaded first. */
  readonly search: (request: SearchRequest) => Effect.Effect<ReadonlyArray<SearchResult>, HubError>
}

/**
 * The tag that says that a model's type is a guess.
 *
 * @category constants
 * @since 0.1.0
 */
export const guessedTag = "type:guessed"

/**
 * The name of a model: its repository, and its tag unless that is the hub's default.
 *
 * @category conversions
 * @since 0.1.0
 */
export const nameOf = ({ repo, tag }: Reference, defaultTag: string): string =>
  tag === undefined || tag === defaultTag ? repo : `${repo}:${tag}`

/**
 * The base of a hub's addresses, without a slash at its end.
 *
 * @category conversions
 * @since 0.1.0
 */
export const baseUrl = (endpoint: string): string => endpoint.replace(/\/+$/, "")

/**
 * Whether a repository name can stand in an address as it is: `name` or `owner/name`, of letters, digits, `.`, `_`, `-`.
 *
 * @category guards
 * @since 0.1.0
 */
export const isRepoName = (repo: string): boolean =>
  /^[\w.-]+(?:\/[\w.-]+)?$/.test(repo) && repo.split("/").every((part) => !/^\.+$/.test(part))

/**
 * Every segment of a path, made fit for an address.
 *
 * @category conversions
 * @since 0.1.0
 */
export const encodePath = (path: string): string => path.split("/").map(encodeURIComponent).join("/")

/**
 * A reason that a tag may have stood for a file instead of a revision.
 *
 * @category guards
 * @since 0.1.0
 */
export const isNoRevision = (reason: HubReason): boolean =>
  reason._tag === "RevisionNotFound" || reason._tag === "RepoNotFound"
