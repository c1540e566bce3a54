/**
 * The commands of the engine domain: units that start and end what runs, and record it.
 *
 * @since 0.1.0
 */
import * as Deferred from "effect/Deferred"
import * as Effect from "effect/Effect"
import * as Fiber from "effect/Fiber"
import * as FileSystem from "effect/FileSystem"
import * as Path from "effect/Path"
import * as Schema from "effect/Schema"
import type * as Operations from "../backends/Operations.ts"
import { ModelNotFound } from "../model/Errors.ts"
import { ModelStore } from "../model/ModelStore.ts"
import * as Unit from "../Unit.ts"
import { InternalError, InvalidInput } from "../UnitError.ts"
import { EngineConfig, EngineStatus, EngineType } from "./Engine.ts"
import { Engines, type LaunchFailed, processId, type Request } from "./Engines.ts"
import { EngineStore, type StoredEngine } from "./EngineStore.ts"
import {
  EngineAlreadyRunning,
  EngineInstallFailed,
  EngineNotFound,
  EngineNotRunning,
  EngineStartFailed,
  EngineStopFailed
} from "./Errors.ts"
import { internal } from "./internal/failures.ts"
import type { Recipe } from "./Recipe.ts"

const startFailed = (
  name: string,
  { detail, reason, retryable }: Pick<LaunchFailed, "detail" | "reason" | "retryable">
) => new EngineStartFailed({ name, reason, detail, retryable })

const noModel = (name: string) =>
  new InvalidInput({
    unit: "engine.start",
    issues: [{
      path: "config",
      expected: `Expected one of model_id, model_path and model, as ${name} does not start without a model`
    }]
  })

/** What an engine is started with: the model, looked up and looked at. */
const requestOf = Effect.fnUntraced(function*(name: string, { needsModel }: Recipe, config: EngineConfig) {
  const { model: modelName, model_id, model_path } = config
  const fs = yield* FileSystem.FileSystem
  const paths = yield* Path.Path
  const model = model_id === undefined ? undefined : yield* ModelStore.use((store) => store.get(model_id))
  const modelPath = model_path ?? model?.path
  if (modelPath !== undefined && !(yield* Effect.orElseSucceed(fs.exists(modelPath), () => false))) {
    return yield* startFailed(name, {
      reason: "ModelMissing",
      detail: `There is nothing at ${modelPath}. Pull or import the model again, or give another path`,
      retryable: false
    })
  }
  if (needsModel && modelPath === undefined && modelName === undefined) {
    return yield* model === undefined ? noModel(name) : startFailed(name, {
      reason: "ModelMissing",
      detail: `The model ${model.id} has no files on this host. Pull it first`,
      retryable: false
    })
  }
  const given = model?.name ?? (model_path === undefined ? undefined : paths.basename(model_path))
  const request: Request = { config, modelPath, modelName, servedName: config.served_model_name ?? given }
  return request
})

const busyAtStart = (name: string, { operation }: Operations.Busy) =>
  operation === "install"
    ? startFailed(name, {
      reason: "Busy",
      detail: "It is being installed. Start it once that has ended",
      retryable: true
    })
    : new EngineAlreadyRunning({ name, status: operation === "stop" ? "stopping" : "starting" })

const cancelled = (name: string) =>
  startFailed(name, {
    reason: "Cancelled",
    detail: "It was stopped meanwhile. Start it again to have it back",
    retryable: false
  })

/**
 * `engine.start`: starts an engine, and ends when it is healthy.
 *
 * **Details**
 *
 * `model_id` and `model_path` fill the same keys of `config`, where it lacks them. With `config.async` it ends as soon as something
 * runs, with the status `starting`; what becomes of it is in `engine.get` and the events. Interrupted or failed, nothing of it is
 * left running, and the status is `error`. Where somebody else runs an Ollama at the engine's port, that one is used.
 *
 * @category commands
 * @since 0.1.0
 */
export const start = Unit.command("engine.start", {
  description: "Starts an engine and waits until it is healthy",
  input: {
    name: Schema.NonEmptyString,
    config: Schema.optionalKey(EngineConfig),
    model_id: EngineConfig.fields.model_id,
    model_path: EngineConfig.fields.model_path
  },
  output: { process_id: Schema.String, status: EngineStatus },
  errors: [EngineNotFound, EngineAlreadyRunning, EngineStartFailed, ModelNotFound, InternalError],
  examples: [{ name: "ollama" }, { name: "vllm", config: { port: 8000 }, model_id: "model-0a1b2c3d" }],
  handler: Effect.fnUntraced(function*({ config, model_id, model_path, name }) {
    const store = yield* EngineStore
    const engines = yield* Engines
    const engine = yield* internal(store.get(name))
    const wanted: EngineConfig = {
      ...(model_id === undefined ? {} : { model_id }),
      ...(model_path === undefined ? {} : { model_path }),
      ...config
    }
    const running = yield* Deferred.make<StoredEngine>()
    const work = store.during(engine, "start", (recorded) =>
      Effect.gen(function*() {
        const now = yield* engines.actual(recorded)
        if (now.status === "running") return yield* new EngineAlreadyRunning({ name, status: "running" })
        const request = yield* requestOf(name, engines.recipe(now), wanted)
        return yield* engines.launch(now, request, (engine) => Deferred.succeed(running, engine))
      })).pipe(
        Effect.catchTags({
          LaunchFailed: (error) => Effect.fail(startFailed(name, error)),
          Busy: (busy) => Effect.fail(busyAtStart(name, busy)),
          Cancelled: () => Effect.fail(cancelled(name))
        }),
        internal
      )
    if (wanted.async !== true) return outputOf(yield* work)
    const fiber = yield* engines.fork(work)
    return outputOf(
      yield* Effect.raceFirst(
        Effect.map(Deferred.await(running), (engine) => ({ ...engine, status: "starting" as const })),
        Fiber.join(fiber)
      )
    )
  })
})

const outputOf = (engine: StoredEngine) => ({ process_id: processId(engine), status: engine.status })

const seconds = Schema.Finite.check(Schema.isGreaterThan(0)).pipe(Unit.withDefault(30))

/**
 * `engine.stop`: ends an engine, with all that it has started.
 *
 * **Details**
 *
 * It is asked to end, and killed after `timeout` seconds, default 30; with `force` at once. One that has ended by itself is recorded
 * as stopped. A start that is under way is ended. An engine that somebody else runs goes on, and is not used any more.
 *
 * @category commands
 * @since 0.1.0
 */
export const stop = Unit.command("engine.stop", {
  description: "Stops an engine",
  input: {
    name: Schema.NonEmptyString,
    force: Schema.Boolean.pipe(Unit.withDefault(false)),
    timeout: seconds
  },
  output: { success: Schema.Literal(true) },
  errors: [EngineNotFound, EngineNotRunning, EngineStopFailed, InternalError],
  examples: [{ name: "ollama" }, { name: "vllm", force: true }],
  handler: Effect.fnUntraced(function*({ force, name, timeout }) {
    const store = yield* EngineStore
    const engines = yield* Engines
    const engine = yield* internal(store.get(name))
    const starting = engine.status === "starting" && (yield* internal(store.cancel(engine.id, "start")))
    yield* store.during(engine, "stop", (recorded) =>
      Effect.gen(function*() {
        if (recorded.status !== "running" && recorded.launch === undefined && !starting) {
          return yield* new EngineNotRunning({ name })
        }
        return yield* engines.end(recorded, {
          force,
          grace: `${timeout} seconds`,
          reason: force ? "force" : "stop"
        })
      })).pipe(
        Effect.catchTags({
          RuntimeError: ({ detail }) => Effect.fail(new EngineStopFailed({ name, detail })),
          Busy: ({ operation }) =>
            Effect.fail(
              new EngineStopFailed({ name, detail: `Its ${operation} is under way. Wait until it has ended` })
            ),
          Cancelled: () =>
            Effect.fail(new EngineStopFailed({ name, detail: "Another program took it over. Stop it again" }))
        }),
        internal
      )
    return { success: true } as const
  })
})

/**
 * `engine.restart`: stops an engine, where it runs, and starts it with the `config` of its last start.
 *
 * @category commands
 * @since 0.1.0
 */
export const restart = Unit.command("engine.restart", {
  description: "Stops an engine and starts it again as it was",
  input: { name: Schema.NonEmptyString },
  output: { process_id: Schema.String, status: EngineStatus },
  errors: [EngineNotFound, EngineStopFailed, EngineStartFailed, EngineAlreadyRunning, ModelNotFound, InternalError],
  examples: [{ name: "ollama" }],
  handler: Effect.fnUntraced(function*({ name }) {
    const store = yield* EngineStore
    const engines = yield* Engines
    const engine = yield* internal(store.get(name))
    const { async: _, ...config } = engine.config
    return outputOf(
      yield* store.during(engine, "restart", (recorded) =>
        Effect.gen(function*() {
          const request = yield* requestOf(name, engines.recipe(recorded), config)
          const stopped = recorded.status === "running" || recorded.launch !== undefined
            ? yield* engines.end(recorded, { force: false, grace: "30 seconds", reason: "restart" })
            : recorded
          return yield* engines.launch(stopped, request)
        })).pipe(
          Effect.catchTags({
            LaunchFailed: (error) => Effect.fail(startFailed(name, error)),
            RuntimeError: ({ detail }) => Effect.fail(new EngineStopFailed({ name, detail })),
            Busy: (busy) => Effect.fail(busyAtStart(name, busy)),
            Cancelled: () => Effect.fail(cancelled(name))
          }),
          internal
        )
    )
  })
})

/**
 * `engine.install`: makes an engine ready to be started.
 *
 * **Details**
 *
 * What is there already in the version asked for, a program on the PATH or an image, is taken as it is. Otherwise an image is pulled,
 * where Docker answers; a program has to be installed by its own means, which the failure names. It can be done while the engine runs,
 * and takes effect at the next start.
 *
 * @category commands
 * @since 0.1.0
 */
export const install = Unit.command("engine.install", {
  description: "Finds or fetches the program or image of an engine",
  input: {
    name: EngineType,
    version: Schema.optionalKey(Schema.String.check(Schema.isPattern(/^[A-Za-z0-9_][A-Za-z0-9_.+-]{0,127}$/)))
  },
  output: { success: Schema.Literal(true), path: Schema.String },
  errors: [EngineInstallFailed, InternalError],
  examples: [{ name: "ollama" }, { name: "vllm", version: "0.6.3" }],
  handler: Effect.fnUntraced(function*({ name, version }) {
    const store = yield* EngineStore
    const engines = yield* Engines
    const fail = (reason: string, detail: string, retryable: boolean) =>
      Effect.fail(new EngineInstallFailed({ name, reason, detail, retryable }))
    const { engine } = yield* internal(
      store.register({ name, type: name, version: "", path: "", runtime: "process" })
    )
    const path = yield* store.during(engine, "install", (recorded) =>
      engines.install(recorded, version).pipe(
        Effect.tap((artifact) => store.change(recorded.id, artifact)),
        // What was never installed is not in the register.
        Effect.onError(() => recorded.path === "" ? Effect.ignore(store.remove(recorded.id)) : Effect.void)
      )).pipe(
        Effect.map(({ path }) => path),
        Effect.catchTags({
          RuntimeError: ({ detail, reason, retryable }) => fail(reason, detail, retryable),
          Busy: ({ operation }) => fail("Busy", `Its ${operation} is under way. Install it once that has ended`, true),
          Cancelled: () => fail("Busy", "Another program took it over. Install it again", true),
          EngineNotFound: () => fail("Busy", "Its installation elsewhere has just failed. Install it again", true)
        }),
        internal
      )
    return { success: true, path } as const
  })
})
