/**
 * Every service of every domain on its embedded default, on Node: one folder, and nothing else to install.
 *
 * @since 0.1.0
 */
import * as NodeHttpClient from "@effect/platform-node/NodeHttpClient"
import * as NodeServices from "@effect/platform-node/NodeServices"
import type * as Config from "effect/Config"
import * as Effect from "effect/Effect"
import * as FileSystem from "effect/FileSystem"
import type * as HttpClient from "effect/http/HttpClient"
import * as Layer from "effect/Layer"
import * as Path from "effect/Path"
import type * as PlatformError from "effect/PlatformError"
import type * as SqlClient from "effect/sql/SqlClient"
import type { DockerError } from "./backends/DockerError.ts"
import * as DockerNode from "./backends/DockerNode.ts"
import * as LlamaCpp from "./backends/LlamaCpp.ts"
import * as Sqlite from "./backends/Sqlite.ts"
import * as Device from "./device/index.ts"
import * as Engine from "./engine/index.ts"
import * as Endpoints from "./inference/Endpoints.ts"
import * as Inference from "./inference/index.ts"
import * as MediaSource from "./inference/MediaSource.ts"
import * as Router from "./inference/Router.ts"
import * as PublicAddress from "./internal/publicAddress.ts"
import * as Model from "./model/index.ts"
import type * as ModelHub from "./model/ModelHub.ts"
import type * as ModelStore from "./model/ModelStore.ts"
import * as Resource from "./resource/index.ts"

/**
 * Settings of `layerEmbedded`.
 *
 * @category models
 * @since 0.1.0
 */
export interface Options {
  /** The folder for the database and for pulled models; it is made where it is missing. */
  readonly directory: string
  /**
   * How to reach the model hubs. Default: as the environment says; see `Model.layerConfig`. Where that says nothing, at their public
   * addresses, and Ollama on this host.
   */
  readonly hubs?: ModelHub.Options | undefined
  /** Where devices are looked for. Default: this host, with NVIDIA's program as the environment says; see `Device.layerConfig`. */
  readonly device?: Device.Options | undefined
  /** How engines are run. Their output goes to `engines`. Docker is where `DOCKER_HOST` says, by default at its usual socket. */
  readonly engines?: Omit<Engine.DockerOptions, "directory"> | undefined
  /** The endpoints that serve models, besides the engines that run here. Default: as the environment says; see `Inference.layerConfig`. */
  readonly endpoints?: ReadonlyArray<Endpoints.EndpointOptions> | undefined
  /** What recordings and images units may be given. Default: no files, and no images of addresses that are not public. */
  readonly media?: MediaSource.Options | undefined
  /** How models run in this process that nothing else serves, where `node-llama-cpp` is installed. */
  readonly llama?: LlamaCpp.Options | undefined
}

/**
 * Layer of every service that the units need, but for `EventPublisher`, which is the application's choice.
 *
 * **Details**
 *
 * Records are in `units.db`, a SQLite file; the files of pulled models are in `models`. Building it fails with `SqliteError` where the
 * file cannot be used, `ModelStoreError`, `EngineStoreError` or `ResourceLedgerError` where its tables cannot be made, `PlatformError` where the folder
 * cannot be made, `ConfigError` where the environment cannot be read. Slots have parts of the GPUs that the device domain finds.
 *
 * @category layers
 * @since 0.1.0
 */
export const layerEmbedded = (options: Options): Layer.Layer<
  | Model.ModelStore
  | Model.ModelHub
  | Engine.EngineStore
  | Engine.Engines
  | Device.Devices
  | Inference.Router
  | Inference.Endpoints
  | Inference.MediaSource
  | Resource.ResourceLedger
  | SqlClient.SqlClient
  | HttpClient.HttpClient
  | NodeServices.NodeServices,
  | Sqlite.SqliteError
  | ModelStore.ModelStoreError
  | Engine.EngineStoreError
  | DockerError
  | Resource.ResourceLedgerError
  | PlatformError.PlatformError
  | Config.ConfigError
> =>
  Layer.unwrap(Effect.gen(function*() {
    const fs = yield* FileSystem.FileSystem
    const paths = yield* Path.Path
    const directory = paths.resolve(options.directory)
    yield* fs.makeDirectory(directory, { recursive: true })
    const sqlite = Sqlite.layer({ filename: paths.join(directory, "units.db") })
    const models = { directory: paths.join(directory, "models") }
    const model = options.hubs === undefined
      ? Model.layerConfig(models)
      : Model.layer({ ...models, hubs: options.hubs })
    const device = options.device === undefined ? Device.layerConfig() : Device.layer(options.device)
    const endpoints = Endpoints.combine<
      Config.ConfigError,
      HttpClient.HttpClient | LlamaCpp.LlamaCpp | ModelStore.ModelStore | Engine.Engines
    >(
      Inference.layerEngines(),
      options.endpoints === undefined ? Endpoints.layerConfig() : Endpoints.layer(options.endpoints),
      Inference.layerInProcess
    )
    const media = MediaSource.layer(options.media).pipe(Layer.provide(
      // Names that strangers choose are not to lead into this network, whatever address they have when the connection is made.
      options.media?.allowPrivateAddresses === true
        ? NodeHttpClient.layerUndici
        // As a layer it is the client that everything else has, over another dispatcher, and would be taken for that one.
        : Layer.fresh(NodeHttpClient.layerUndiciOptions({ connect: { lookup: PublicAddress.lookup } }))
    ))
    const inference = Layer.provideMerge(Router.layer(), endpoints).pipe(
      Layer.provide(LlamaCpp.layer(options.llama)),
      Layer.merge(media)
    )
    const resource = Resource.layerConfig({ directory })
    const engine = Engine.layerDocker({ ...options.engines, directory: paths.join(directory, "engines") }).pipe(
      Layer.provide(DockerNode.layerConfig)
    )
    return Layer.merge(inference, resource).pipe(
      Layer.provideMerge(Layer.merge(model, engine)),
      Layer.provideMerge(sqlite),
      Layer.merge(Layer.provideMerge(Resource.layerDevices, device))
    )
  })).pipe(
    Layer.provideMerge(Layer.merge(NodeHttpClient.layerUndici, NodeServices.layer))
  )
