/**
 * The engine domain: servers of models on this host, run as child processes or containers.
 *
 * **Example** (Starting an engine for a model)
 *
 * ```ts
 * import * as Engine from "effect-units/engine"
 *
 * const program = Effect.gen(function*() {
 *   yield* Engine.install({ name: "vllm" })
 *   yield* Engine.start({ name: "vllm", model_id: "model-0a1b2c3d" })
 *   return yield* Engine.get({ name: "vllm" })
 * })
 * ```
 *
 * @since 0.1.0
 */
import * as Effect from "effect/Effect"
import type * as FileSystem from "effect/FileSystem"
import type * as HttpClient from "effect/http/HttpClient"
import * as Layer from "effect/Layer"
import type * as Path from "effect/Path"
import type * as ChildProcessSpawner from "effect/process/ChildProcessSpawner"
import type * as SqlClient from "effect/sql/SqlClient"
import type { Docker } from "../backends/Docker.ts"
import * as Supervisor from "../backends/Supervisor.ts"
import * as ContainerRuntime from "./ContainerRuntime.ts"
import * as Engines from "./Engines.ts"
import * as EngineStore from "./EngineStore.ts"
import * as ProcessRuntime from "./ProcessRuntime.ts"
import { type RuntimeKind, Runtimes } from "./Runtime.ts"

export { install, restart, start, stop } from "./Commands.ts"
export * from "./Engine.ts"
export { Engines, type LiveEngine } from "./Engines.ts"
export { EngineStore, EngineStoreError } from "./EngineStore.ts"
export * from "./Errors.ts"
export * from "./Events.ts"
export { features, get, list } from "./Queries.ts"
export * as Recipe from "./Recipe.ts"
export { RuntimeError, Runtimes } from "./Runtime.ts"

/**
 * Settings of the domain. `directory` is the absolute path of the folder for the engines' output.
 *
 * @category models
 * @since 0.1.0
 */
export interface Options extends EngineStore.Options, Engines.Options {
  readonly directory: string
}

/**
 * The same, with containers.
 *
 * @category models
 * @since 0.1.0
 */
export interface DockerOptions extends Options {
  /** Of an engine that is there both as a program and as an image, which is taken. Default `process`. */
  readonly prefer?: RuntimeKind | undefined
  readonly containers?: Omit<ContainerRuntime.Options, "onClose"> | undefined
}

const over = <R>(options: Options, runtimes: Effect.Effect<Runtimes["Service"], never, R>) =>
  Engines.layer(options).pipe(
    Layer.provide(Layer.effect(Runtimes, runtimes)),
    Layer.provideMerge(
      Layer.merge(
        EngineStore.layer(options),
        Supervisor.layer({ directory: options.directory, onClose: options.onClose })
      )
    )
  )

/**
 * Layer of all that the units of this domain need besides the register of models, with engines as child processes of this program.
 *
 * @category layers
 * @since 0.1.0
 */
export const layer = (options: Options): Layer.Layer<
  EngineStore.EngineStore | Engines.Engines | Supervisor.Supervisor,
  EngineStore.EngineStoreError,
  | SqlClient.SqlClient
  | HttpClient.HttpClient
  | FileSystem.FileSystem
  | Path.Path
  | ChildProcessSpawner.ChildProcessSpawner
> => over(options, Effect.map(ProcessRuntime.make, (process) => ({ process, prefer: "process" as const })))

/**
 * The same, with engines as containers of a Docker Engine besides, which need not run as long as no engine is in a container.
 *
 * @category layers
 * @since 0.1.0
 */
export const layerDocker = (options: DockerOptions): Layer.Layer<
  EngineStore.EngineStore | Engines.Engines | Supervisor.Supervisor,
  EngineStore.EngineStoreError,
  | Docker
  | SqlClient.SqlClient
  | HttpClient.HttpClient
  | FileSystem.FileSystem
  | Path.Path
  | ChildProcessSpawner.ChildProcessSpawner
> =>
  over(
    options,
    Effect.all({
      process: ProcessRuntime.make,
      container: ContainerRuntime.make({ ...options.containers, onClose: options.onClose }),
      prefer: Effect.succeed(options.prefer ?? "process")
    })
  )
