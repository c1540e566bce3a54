/**
 * The device domain: the compute hardware of this host, NVIDIA's GPUs and the processor.
 *
 * **Example** (Which devices there are, and how the first one does)
 *
 * ```ts
 * import * as Device from "effect-units/device"
 *
 * const program = Effect.gen(function*() {
 *   const { devices } = yield* Device.detect()
 *   return [devices, yield* Device.metrics({ history: true })]
 * })
 * ```
 *
 * @since 0.1.0
 */
import type * as Config from "effect/Config"
import type * as FileSystem from "effect/FileSystem"
import * as Layer from "effect/Layer"
import type * as Path from "effect/Path"
import type * as ChildProcessSpawner from "effect/process/ChildProcessSpawner"
import * as Host from "../backends/Host.ts"
import * as Devices from "./Devices.ts"
import * as NvidiaSmi from "./NvidiaSmi.ts"

export { detect, setPowerLimit } from "./Commands.ts"
export { type Alert, type Checkup, type Detection, Devices, type Reading } from "./Devices.ts"
export * from "./Errors.ts"
export * from "./Events.ts"
export * from "./Model.ts"
export { health, info, metrics } from "./Queries.ts"

/**
 * Settings of the domain: thresholds of alerts, where NVIDIA's program is, and where the kernel's file systems are.
 *
 * @category models
 * @since 0.1.0
 */
export interface Options extends Devices.Options {
  readonly nvidiaSmi?: NvidiaSmi.Options | undefined
  readonly host?: Host.Options | undefined
}

/**
 * Layer of all that the units of this domain need, over the application's file system and child processes.
 *
 * @category layers
 * @since 0.1.0
 */
export const layer = (options: Options = {}): Layer.Layer<
  Devices.Devices,
  never,
  ChildProcessSpawner.ChildProcessSpawner | FileSystem.FileSystem | Path.Path
> => Layer.provide(Devices.layer(options), [NvidiaSmi.layer(options.nvidiaSmi), Host.layer(options.host)])

/**
 * The same, with the place of NVIDIA's program from `Config`: `NVIDIA_SMI`, which may be missing.
 *
 * @category layers
 * @since 0.1.0
 */
export const layerConfig = (
  options: Omit<Options, "nvidiaSmi"> & { readonly nvidiaSmi?: Omit<NvidiaSmi.Options, "command"> | undefined } = {}
): Layer.Layer<
  Devices.Devices,
  Config.ConfigError,
  ChildProcessSpawner.ChildProcessSpawner | FileSystem.FileSystem | Path.Path
> => Layer.provide(Devices.layer(options), [NvidiaSmi.layerConfig(options.nvidiaSmi), Host.layer(options.host)])
