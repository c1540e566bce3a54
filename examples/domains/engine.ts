import { Effect } from "effect"
import * as Engine from "../../src/engine/index.ts"

/** Has vLLM serve a model for as long as an effect runs, whatever its end. */
export const serving = <A, E, R>(model_id: string, work: Effect.Effect<A, E, R>) =>
  Effect.gen(function*() {
    yield* Engine.install({ name: "vllm" })
    return yield* Effect.acquireUseRelease(
      Effect.interruptible(Engine.start({ name: "vllm", model_id })),
      () => work,
      () => Effect.ignore(Engine.stop({ name: "vllm" }))
    )
  })
