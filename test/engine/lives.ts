/** How each unit of the engine domain ends. */
import { Effect } from "effect"
import * as Engine from "../../src/engine/index.ts"
import { domain } from "../lives.ts"
import { behave, breakDatabase, holdDatabase, layer, noted, until, World } from "./world.ts"

const lives = domain(layer)

const named = { name: "vllm" } as const
const unknown = { name: "nothing" }
const start = { ...named, config: { model: "acme/tiny" } } as const
const starting = ["engine.start_progress", "engine.start_progress"]
const started = [...starting, "engine.start_progress", "engine.started"]
const failed = [...starting, "engine.start_progress", "engine.error"]

const installed = (behaviour: Parameters<typeof behave>[1] = {}) =>
  Effect.andThen(behave("vllm", behaviour), Engine.install(named))

const running = (behaviour: Parameters<typeof behave>[1] = {}) =>
  Effect.andThen(installed(behaviour), Engine.start(start))

const during = Effect.fnUntraced(function*(status: Engine.EngineStatus) {
  yield* until(Effect.map(Engine.get(named), (engine) => engine.status === status))
})

/** An engine whose start is under way, and goes on to be: its process runs, and is not ready. */
const beingStarted = Effect.gen(function*() {
  yield* installed({ readyAfter: "never" })
  yield* Effect.forkScoped(Effect.exit(Engine.start(start)))
  yield* during("starting")
  yield* noted(/^\d+ \d+$/)
})

/** An engine whose installation is under way, and goes on to be. */
const beingInstalled = Effect.gen(function*() {
  yield* installed()
  yield* behave("vllm", { versionAfter: "never" })
  yield* Effect.forkScoped(Effect.exit(Engine.install(named)))
  yield* noted(/version$/)
})

/** An engine in a container of a Docker that does not answer. */
const outOfReach = Effect.gen(function*() {
  yield* installed()
  const store = yield* Engine.EngineStore
  const { id } = yield* store.get("vllm")
  const launch = { id: "lost", host: "127.0.0.1", port: 1, instance: { kind: "container", id: "0a1b2c3d" } } as const
  yield* store.change(id, { status: "running", launch, config: start.config })
})

/** Of a model that has been deleted since. */
const withoutModel = Effect.gen(function*() {
  yield* running()
  const store = yield* Engine.EngineStore
  const { id } = yield* store.get("vllm")
  yield* store.change(id, { config: { model_id: "model-00000000" } })
})

const broken = <I>(input: I) => ({ given: Effect.as(breakDatabase, input) })
const held = <A, E, R, I>(given: Effect.Effect<A, E, R>, input: I) => ({
  given: Effect.as(Effect.tap(given, holdDatabase), input)
})

export const engineLives = [
  ...lives(Engine.start, {
    completed: { given: Effect.as(installed(), start), tells: started },
    failures: {
      EngineNotFound: { given: Effect.succeed(unknown) },
      EngineAlreadyRunning: { given: Effect.as(running(), start) },
      EngineStartFailed: {
        given: Effect.as(installed({ print: ["no such model"], exit: 3 }), start),
        tells: failed,
        leavesTraces: true
      },
      ModelNotFound: { given: Effect.as(installed(), { ...named, model_id: "model-00000000" }) },
      InternalError: broken(start),
      InvalidInput: { given: Effect.as(installed(), { ...named, config: { model_path: "/models/../etc" } }) }
    },
    interrupted: {
      given: Effect.as(installed({ readyAfter: "never" }), start),
      meanwhile: noted(/^\d+ \d+$/),
      tells: failed,
      leavesTraces: true
    }
  }),
  ...lives(Engine.stop, {
    completed: { given: Effect.as(running(), named), tells: ["engine.stopped"] },
    failures: {
      EngineNotFound: { given: Effect.succeed(unknown) },
      EngineNotRunning: { given: Effect.as(installed(), named) },
      EngineStopFailed: { given: Effect.as(beingInstalled, named) },
      InternalError: broken(named),
      InvalidInput: { given: Effect.succeed({ ...named, timeout: 0 }) }
    },
    interrupted: {
      given: Effect.as(running({ ignores: ["SIGINT"] }), named),
      meanwhile: noted(/^SIGINT$/),
      leavesTraces: true
    }
  }),
  ...lives(Engine.restart, {
    completed: { given: Effect.as(running(), named), tells: ["engine.stopped", ...started] },
    failures: {
      EngineNotFound: { given: Effect.succeed(unknown) },
      EngineAlreadyRunning: { given: Effect.as(beingStarted, named) },
      EngineStopFailed: { given: Effect.as(outOfReach, named), tells: ["engine.error"], leavesTraces: true },
      EngineStartFailed: {
        given: Effect.as(Effect.andThen(running(), behave("vllm", { exit: 3 })), named),
        tells: ["engine.stopped", ...failed],
        leavesTraces: true
      },
      ModelNotFound: { given: Effect.as(withoutModel, named) },
      InternalError: broken(named),
      InvalidInput: { given: Effect.succeed({ name: "" }) }
    },
    interrupted: {
      given: Effect.as(Effect.andThen(running(), behave("vllm", { readyAfter: "never" })), named),
      meanwhile: noted(/^\d+ \d+$/, 2),
      tells: ["engine.stopped", ...failed],
      leavesTraces: true
    }
  }),
  ...lives(Engine.install, {
    completed: { given: Effect.as(behave("vllm"), { ...named, version: "0.6.3" }) },
    failures: {
      EngineInstallFailed: { given: Effect.as(behave("vllm"), { ...named, version: "0.7.0" }) },
      InternalError: broken(named),
      InvalidInput: { given: Effect.succeed({ ...named, version: "$(id)" }) }
    },
    interrupted: {
      given: Effect.as(behave("vllm", { versionAfter: "never" }), named),
      meanwhile: noted(/version$/)
    }
  }),
  ...lives(Engine.get, {
    completed: { given: Effect.as(running(), named) },
    failures: {
      EngineNotFound: { given: Effect.succeed(unknown) },
      InternalError: broken(named),
      InvalidInput: { given: Effect.succeed({ name: "" }) }
    },
    interrupted: held(installed(), named)
  }),
  ...lives(Engine.list, {
    completed: { given: Effect.as(running(), { status: "running", limit: 10 } as const) },
    failures: {
      InternalError: broken({}),
      InvalidInput: { given: Effect.succeed({ limit: 101 }) }
    },
    interrupted: held(World, {})
  }),
  ...lives(Engine.features, {
    completed: { given: Effect.as(running({ contextLength: 4096 }), named) },
    failures: {
      EngineNotFound: { given: Effect.succeed(unknown) },
      InternalError: broken(named),
      InvalidInput: { given: Effect.succeed({ name: "" }) }
    },
    interrupted: held(installed(), named)
  })
]
