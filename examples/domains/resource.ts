import { Effect } from "effect"
import * as Resource from "../../src/resource/index.ts"

/** Runs a workload with 4 GiB promised to it, for as long as it runs. */
export const withMemory = <A, E, R>(workload: Effect.Effect<A, E, R>) =>
  Effect.acquireUseRelease(
    Resource.allocate({ name: "llama", type: "inference_native", memory_bytes: 4 * 1024 ** 3 }),
    () => workload,
    ({ slot_id }) => Resource.release({ slot_id })
  )
