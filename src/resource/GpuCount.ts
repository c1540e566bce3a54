/**
 * How many GPUs there are for slots to have parts of.
 *
 * @since 0.1.0
 */
import * as Context from "effect/Context"
import * as Effect from "effect/Effect"
import * as Layer from "effect/Layer"
import { Devices } from "../device/Devices.ts"

/**
 * How many GPUs the host has, of which slots can have parts. The default knows of none.
 *
 * **Example** (A host with two)
 *
 * ```ts
 * const layer = Layer.succeed(Resource.GpuCount, Effect.succeed(2))
 * ```
 *
 * @category references
 * @since 0.1.0
 */
export const GpuCount: Context.Reference<Effect.Effect<number>> = Context.Reference<Effect.Effect<number>>(
  "effect-units/resource/GpuCount",
  { defaultValue: () => Effect.succeed(0) }
)

/**
 * Layer that counts those that the device domain finds, which may have been up to 30 seconds ago.
 *
 * @category layers
 * @since 0.1.0
 */
export const layerDevices: Layer.Layer<never, never, Devices> = Layer.effect(
  GpuCount,
  Effect.map(Devices, ({ list }) =>
    list.pipe(
      Effect.map((devices) => devices.filter(({ type }) => type === "gpu").length),
      // It fails where there is no device at all.
      Effect.orElseSucceed(() => 0)
    ))
)
