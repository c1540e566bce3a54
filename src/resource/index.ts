/**
 * The resource domain: a ledger of what workloads were promised of this host's memory and GPUs, and what the host has.
 *
 * **Example** (Reserving memory for as long as a workload runs)
 *
 * ```ts
 * import * as Resource from "effect-units/resource"
 *
 * const program = Effect.acquireUseRelease(
 *   Resource.allocate({ name: "llama", type: "inference_native", memory_bytes: 4_294_967_296 }),
 *   ({ slot_id }) => runWorkload(slot_id),
 *   ({ slot_id }) => Resource.release({ slot_id })
 * )
 * ```
 *
 * @since 0.1.0
 */
import * as Config from "effect/Config"
import * as Effect from "effect/Effect"
import type * as FileSystem from "effect/FileSystem"
import * as Layer from "effect/Layer"
import * as Option from "effect/Option"
import type * as Path from "effect/Path"
import * as Schema from "effect/Schema"
import type * as SqlClient from "effect/sql/SqlClient"
import * as Host from "../backends/Host.ts"
import * as ResourceLedger from "./ResourceLedger.ts"

export { allocate, release, updateSlot } from "./Commands.ts"
export * from "./Errors.ts"
export * from "./Events.ts"
export { GpuCount, layerDevices } from "./GpuCount.ts"
export { allocations, budget, canAllocate, status } from "./Queries.ts"
export * from "./Resource.ts"
export {
  type Change,
  type Grant,
  InvalidTransition,
  type Options,
  type Request,
  ResourceLedger,
  ResourceLedgerError,
  SlotUsage
} from "./ResourceLedger.ts"

const setting = (name: string, schema: Schema.Codec<number>) =>
  Config.map(Config.option(Config.schema(schema, name)), Option.getOrUndefined)

const Share = Schema.Finite.check(Schema.isBetween({ minimum: 0, maximum: 1 }))

const settings = Config.all({
  reserved: setting("RESOURCE_RESERVED_BYTES", Schema.Natural),
  inferenceShare: setting("RESOURCE_INFERENCE_SHARE", Share),
  containerShare: setting("RESOURCE_CONTAINER_SHARE", Share)
})

/**
 * Layer of all that the units of this domain need, over the application's database and file system.
 *
 * @category layers
 * @since 0.1.0
 */
export const layer = (options: ResourceLedger.Options): Layer.Layer<
  ResourceLedger.ResourceLedger,
  ResourceLedger.ResourceLedgerError,
  SqlClient.SqlClient | FileSystem.FileSystem | Path.Path
> => Layer.provide(ResourceLedger.layer(options), Host.layer())

/**
 * The same, with the division of memory from `Config`, as far as it is there: `RESOURCE_RESERVED_BYTES`, `RESOURCE_INFERENCE_SHARE`,
 * `RESOURCE_CONTAINER_SHARE`. See `Options` for what each of them means, and its default.
 *
 * @category layers
 * @since 0.1.0
 */
export const layerConfig = (
  options: Omit<ResourceLedger.Options, "reserved" | "inferenceShare" | "containerShare">
): Layer.Layer<
  ResourceLedger.ResourceLedger,
  ResourceLedger.ResourceLedgerError | Config.ConfigError,
  SqlClient.SqlClient | FileSystem.FileSystem | Path.Path
> => Layer.unwrap(Effect.map(settings, (given) => layer({ ...options, ...given })))
