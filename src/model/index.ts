/**
 * The model domain: a register of AI models on this host, pulled from hubs or imported from disk.
 *
 * **Example** (Importing a file and asking what it needs)
 *
 * ```ts
 * import * as Model from "effect-units/model"
 *
 * const program = Effect.gen(function*() {
 *   const { model_id } = yield* Model.import({ path: "/models/tiny.gguf" })
 *   return yield* Model.estimateResources({ model_id })
 * })
 * ```
 *
 * @since 0.1.0
 */
import type * as Config from "effect/Config"
import type * as FileSystem from "effect/FileSystem"
import type * as HttpClient from "effect/http/HttpClient"
import * as Layer from "effect/Layer"
import type * as Path from "effect/Path"
import type * as SqlClient from "effect/sql/SqlClient"
import * as ModelHub from "./ModelHub.ts"
import * as ModelStore from "./ModelStore.ts"

export { create, delete_ as delete, import_ as import, pull, verify } from "./Commands.ts"
export * from "./Errors.ts"
export * from "./Events.ts"
export { HubError } from "./HubError.ts"
export * from "./Model.ts"
export { ModelHub } from "./ModelHub.ts"
export { type Change, ModelStore, ModelStoreError, ModelUsage, type NewModel, StoredModel } from "./ModelStore.ts"
export { estimateResources, get, list, search } from "./Queries.ts"

/**
 * Settings of the domain: where pulled files go, and how to reach the hubs.
 *
 * @category models
 * @since 0.1.0
 */
export interface Options extends ModelStore.Options {
  readonly hubs?: ModelHub.Options | undefined
}

/**
 * Layer of all that the units of this domain need, over the application's database, HTTP client and file system.
 *
 * @category layers
 * @since 0.1.0
 */
export const layer = (options: Options): Layer.Layer<
  ModelStore.ModelStore | ModelHub.ModelHub,
  ModelStore.ModelStoreError,
  SqlClient.SqlClient | HttpClient.HttpClient | FileSystem.FileSystem | Path.Path
> => Layer.merge(ModelStore.layer(options), ModelHub.layer(options.hubs))

/**
 * The same, with the addresses and tokens of the hubs from `Config`: `HF_ENDPOINT`, `HF_TOKEN`, `MODELSCOPE_DOMAIN`,
 * `MODELSCOPE_API_TOKEN`, `OLLAMA_HOST`, each of which may be missing.
 *
 * @category layers
 * @since 0.1.0
 */
export const layerConfig = (
  options: ModelStore.Options & {
    readonly hubs?: Omit<ModelHub.Options, "huggingface" | "modelscope" | "ollama"> | undefined
  }
): Layer.Layer<
  ModelStore.ModelStore | ModelHub.ModelHub,
  ModelStore.ModelStoreError | Config.ConfigError,
  SqlClient.SqlClient | HttpClient.HttpClient | FileSystem.FileSystem | Path.Path
> => Layer.merge(ModelStore.layer(options), ModelHub.layerConfig(options.hubs))
