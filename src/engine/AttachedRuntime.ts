/**
 * Engines that somebody else runs, such as an Ollama that is a service of the system: they are used, and never ended.
 *
 * @since 0.1.0
 */
import * as Effect from "effect/Effect"
import * as Stream from "effect/Stream"
import type { Probe } from "./Probe.ts"
import { recipes } from "./Recipe.ts"
import { RuntimeError, type RuntimeOf } from "./Runtime.ts"

/** How often such an engine is looked at, as nothing tells of its end. */
const lookInterval = "5 seconds"

/**
 * Builds the runtime. What it starts is nothing; whether an engine runs is whether it is healthy.
 *
 * @category constructors
 * @since 0.1.0
 */
export const make = (probe: Probe): RuntimeOf<"attached"> => {
  const isRunning: RuntimeOf<"attached">["isRunning"] = ({ url }) => probe.isHealthy(recipes.ollama, url)
  const refused = Effect.fail(
    new RuntimeError({
      reason: "Refused",
      detail: "An engine that somebody else runs cannot be started from here",
      retryable: false
    })
  )
  return {
    locate: () => Effect.undefined,
    install: () => refused,
    start: () => refused,
    isRunning,
    ended: Effect.fnUntraced(function*(instance) {
      while (yield* isRunning(instance)) yield* Effect.sleep(lookInterval)
      return {}
    }),
    stop: () => Effect.void,
    adopt: isRunning,
    sweep: () => Effect.void,
    lines: () => Stream.empty,
    tail: () => Effect.succeed([])
  }
}
