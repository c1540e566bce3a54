/**
 * The hubs that models come from, behind one service: `ModelHub`.
 *
 * @since 0.1.0
 */
import * as Config from "effect/Config"
import * as Context from "effect/Context"
import type * as Duration from "effect/Duration"
import * as Effect from "effect/Effect"
import type * as FileSystem from "effect/FileSystem"
import type * as HttpClient from "effect/http/HttpClient"
import * as Layer from "effect/Layer"
import * as Option from "effect/Option"
import type * as Path from "effect/Path"
import * as Redacted from "effect/Redacted"
import * as Result from "effect/Result"
import * as Schedule from "effect/Schedule"
import type { Hub, HubModel, PullRequest, Reference, SearchRequest } from "./Hub.ts"
import type { HubError, HubSource } from "./HubError.ts"
import * as HubHttp from "./HubHttp.ts"
import * as HuggingFace from "./HuggingFace.ts"
import type { SearchResult } from "./Model.ts"
import * as ModelScope from "./ModelScope.ts"
import * as Ollama from "./Ollama.ts"

/**
 * Settings of the hubs, all of them optional.
 *
 * @category models
 * @since 0.1.0
 */
export interface Options extends HubHttp.HttpOptions {
  readonly huggingface?: Omit<HuggingFace.Options, "parallelFiles"> | undefined
  readonly modelscope?: Omit<ModelScope.Options, "parallelFiles"> | undefined
  readonly ollama?:
    | Ollama.Options & {
      /** In place of `idleTimeout`, as Ollama checks digests without a word. Default: 10 minutes. */
      readonly idleTimeout?: Duration.Input | undefined
    }
    | undefined
  /** How many files of a pull are fetched at a time. Default: 4. */
  readonly parallelFiles?: number | undefined
}

/**
 * Pulls, describes, removes and finds models on HuggingFace, ModelScope and Ollama.
 *
 * **Details**
 *
 * - `pull` fetches a model into `directory` (Ollama: into its own store) and succeeds with what is there then. A repeat
 *   checks what is there and fetches only what is missing or changed. On failure and on interruption, connections are
 *   closed, unfinished files stay as `<file>.part` for the next pull to go on from, and nothing else is touched.
 * - `describe` tells what a pull would bring, by the hub's listing; on Ollama, what it holds.
 * - `remove` has Ollama delete a model, one that it does not hold counting as deleted, and does nothing for the others,
 *   whose files are the caller's.
 * - `search` asks one hub, or all of them at once and merges by downloads. Of several, each is asked once, and those that
 *   fail are left out; when all of them fail, so does the search.
 *
 * Every failure is a `HubError`; its `retryable` says whether trying again may help.
 *
 * @category services
 * @since 0.1.0
 */
export class ModelHub extends Context.Service<ModelHub, {
  readonly pull: (request: PullRequest & { readonly source: HubSource }) => Effect.Effect<HubModel, HubError>
  readonly describe: (reference: Reference & { readonly source: HubSource }) => Effect.Effect<HubModel, HubError>
  readonly remove: (reference: Reference & { readonly source: HubSource }) => Effect.Effect<void, HubError>
  readonly search: (
    request: SearchRequest & { readonly source?: HubSource | undefined }
  ) => Effect.Effect<ReadonlyArray<SearchResult>, HubError>
}>()("effect-units/model/ModelHub") {}

/**
 * Builds the hubs over the application's HTTP client and file system.
 *
 * @category constructors
 * @since 0.1.0
 */
export const make = Effect.fnUntraced(function*(
  options: Options
): Effect.fn.Return<
  ModelHub["Service"],
  never,
  HttpClient.HttpClient | FileSystem.FileSystem | Path.Path
> {
  const parallelFiles = options.parallelFiles ?? 4
  const http = yield* HubHttp.make(options)
  const patient = yield* HubHttp.make({ ...options, idleTimeout: options.ollama?.idleTimeout ?? "10 minutes" })
  const hubs: Record<HubSource, Hub> = {
    huggingface: yield* HuggingFace.make(http, { ...options.huggingface, parallelFiles }),
    modelscope: yield* ModelScope.make(http, { ...options.modelscope, parallelFiles }),
    ollama: Ollama.make(patient, { ...options.ollama })
  }
  // Asking all hubs at once does not wait for one that is not there: most hosts run no Ollama.
  const once = yield* HubHttp.make({ ...options, retry: Schedule.recurs(0) })
  const asked: ReadonlyArray<Hub> = [
    yield* HuggingFace.make(once, { ...options.huggingface, parallelFiles }),
    yield* ModelScope.make(once, { ...options.modelscope, parallelFiles }),
    Ollama.make(once, { ...options.ollama })
  ]

  const searchAll = Effect.fnUntraced(function*(request: SearchRequest) {
    const answers = yield* Effect.forEach(
      asked,
      (hub) => Effect.result(hub.search(request)),
      { concurrency: "unbounded" }
    )
    const [first] = answers
    if (first !== undefined && Result.isFailure(first) && answers.every(Result.isFailure)) {
      return yield* first.failure
    }
    for (const answer of answers) {
      if (Result.isFailure(answer)) yield* Effect.logDebug("a model hub did not answer a search", answer.failure)
    }
    return answers
      .flatMap((answer) => Result.isSuccess(answer) ? answer.success : [])
      .sort((a, b) => b.downloads - a.downloads)
      .slice(0, request.limit)
  })

  return ModelHub.of({
    pull: ({ source, ...request }) => hubs[source].pull(request),
    describe: ({ source, ...reference }) => hubs[source].describe(reference),
    remove: ({ source, ...reference }) => hubs[source].remove(reference),
    search: ({ source, ...request }) => source === undefined ? searchAll(request) : hubs[source].search(request)
  })
})

/**
 * The hubs, with settings from code.
 *
 * **When to use**
 *
 * With an `HttpClient` that hands redirects out, as those over `node:http` and Undici do; see `HubHttp.make` for `fetch`.
 *
 * **Example** (A mirror for everything that comes from HuggingFace)
 *
 * ```ts
 * const Hubs = ModelHub.layer({ huggingface: { endpoint: "https://hf-mirror.com" } }).pipe(
 *   Layer.provide([NodeHttpClient.layerUndici, NodeServices.layer])
 * )
 * ```
 *
 * @category layers
 * @since 0.1.0
 */
export const layer = (
  options: Options = {}
): Layer.Layer<ModelHub, never, HttpClient.HttpClient | FileSystem.FileSystem | Path.Path> =>
  Layer.effect(ModelHub, make(options))

/**
 * The hubs, with addresses and tokens from `Config`, by the names that the hubs' own programs use; what is missing or
 * empty is not set.
 *
 * | variable | meaning |
 * |---|---|
 * | `HF_ENDPOINT`, `HF_TOKEN` | address of the Hugging Face Hub, access token |
 * | `MODELSCOPE_DOMAIN`, `MODELSCOPE_API_TOKEN` | host or address of ModelScope, access token |
 * | `OLLAMA_HOST` | where Ollama listens: `host`, `host:port` or an address |
 *
 * @category layers
 * @since 0.1.0
 */
export const layerConfig = (
  options: Omit<Options, "huggingface" | "modelscope" | "ollama"> = {}
): Layer.Layer<ModelHub, Config.ConfigError, HttpClient.HttpClient | FileSystem.FileSystem | Path.Path> => {
  const text = (name: string) =>
    Config.map(Config.option(Config.String(name)), (value) => Option.getOrUndefined(value)?.trim() || undefined)
  const secret = (name: string) =>
    Config.map(
      Config.option(Config.Redacted(name)),
      (value) => {
        const token = Option.isSome(value) ? Redacted.value(value.value).trim() : ""
        return token === "" ? undefined : Redacted.make(token)
      }
    )
  const config = Config.all({
    huggingface: Config.all({ endpoint: text("HF_ENDPOINT"), token: secret("HF_TOKEN") }),
    modelscope: Config.all({
      endpoint: Config.map(
        text("MODELSCOPE_DOMAIN"),
        (host) => host === undefined || /^https?:\/\//i.test(host) ? host : `https://${host}`
      ),
      token: secret("MODELSCOPE_API_TOKEN")
    }),
    ollama: Config.all({
      endpoint: Config.map(text("OLLAMA_HOST"), (host) => host === undefined ? undefined : Ollama.endpointOf(host))
    })
  })
  return Layer.effect(ModelHub, Effect.flatMap(config, (hubs) => make({ ...options, ...hubs })))
}
