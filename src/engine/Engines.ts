/**
 * Running engines: from a recipe to one that answers as a healthy one does, and back to nothing that runs.
 *
 * The units of the domain decide what is to be done, and record it; this service does it. It also watches what runs, so that an end
 * that nobody asked for is recorded and told.
 *
 * @since 0.1.0
 */
import * as Context from "effect/Context"
import * as DateTime from "effect/DateTime"
import type * as Duration from "effect/Duration"
import * as Effect from "effect/Effect"
import * as Exit from "effect/Exit"
import type * as Fiber from "effect/Fiber"
import * as FiberMap from "effect/FiberMap"
import type * as HttpClient from "effect/http/HttpClient"
import * as Layer from "effect/Layer"
import * as Option from "effect/Option"
import * as Queue from "effect/Queue"
import * as Random from "effect/Random"
import * as Schedule from "effect/Schedule"
import * as Schema from "effect/Schema"
import * as Stream from "effect/Stream"
import * as Ports from "../backends/Ports.ts"
import type { EventPublisher } from "../EventPublisher.ts"
import * as Execution from "../Execution.ts"
import * as ProcessIdentity from "../internal/processIdentity.ts"
import * as AttachedRuntime from "./AttachedRuntime.ts"
import type { EngineConfig, EngineId, EngineType } from "./Engine.ts"
import { EngineStore, type EngineStoreError, type StoredEngine, type StoredLaunch } from "./EngineStore.ts"
import type { EngineNotFound } from "./Errors.ts"
import { EngineFailed, EngineHealthChanged, EngineStarted, EngineStartProgress, EngineStopped } from "./Events.ts"
import * as Probe from "./Probe.ts"
import { type Recipe, recipes } from "./Recipe.ts"
import { type Artifact, type Instance, type Launch, type Runtime, RuntimeError, Runtimes } from "./Runtime.ts"

/**
 * Why an engine did not come to be healthy: the reasons of a runtime, or of its own. `transient` says that another attempt can
 * succeed at once, `retryable` that one can later.
 *
 * @category errors
 * @since 0.1.0
 */
export class LaunchFailed extends Schema.TaggedError<LaunchFailed>("effect-units/engine/LaunchFailed")("LaunchFailed", {
  reason: Schema.String,
  detail: Schema.String,
  retryable: Schema.Boolean,
  transient: Schema.Boolean
}) {
  override get message(): string {
    return this.detail
  }
}

/**
 * An engine that runs, for whoever sends it requests.
 *
 * **Details**
 *
 * `address` is its base URL, without a path; `launch` changes with every start. `model_id` is the model of the register that it was
 * started for.
 *
 * @category models
 * @since 0.1.0
 */
export interface LiveEngine {
  readonly name: string
  readonly type: EngineType
  readonly dialect: "openai" | "ollama"
  readonly address: string
  readonly launch: string
  readonly capabilities: ReadonlyArray<string>
  readonly model_id?: string | undefined
}

/**
 * What a launch is made of, besides the engine itself: see `Launch`.
 *
 * @category models
 * @since 0.1.0
 */
export type Request = Pick<Launch, "modelPath" | "modelName" | "servedName"> & { readonly config: EngineConfig }

/**
 * How an engine is ended: see `StopOptions`. `reason` is told by `engine.stopped`.
 *
 * @category models
 * @since 0.1.0
 */
export interface End {
  readonly force: boolean
  readonly grace: Duration.Input
  readonly reason: "stop" | "force" | "restart"
}

/**
 * Runs engines.
 *
 * **Details**
 *
 * - `recipe` is that of an engine: by its name, else by its type.
 * - `actual` gives a record with the status that it has in reality. It writes nothing.
 * - `launch` brings an engine up, records it and tells of it, and gives its record once it is healthy; `onStarted` is called once
 *   there is something that runs. Interrupted or failed, nothing of it runs any more. It has to be called by work on the engine; see
 *   `EngineStore.during`.
 * - `end` ends what runs of an engine, records it and tells of it. It has to be called by work on the engine, too.
 * - `install` finds what an engine is run from, or fetches it, and says by what it is run then.
 * - `fork` runs work that outlives its caller, until this service is closed.
 * - `served` asks an engine that runs for its models; `undefined` where it does not tell.
 * - `live` are the engines that run, by creation. It asks no engine.
 * - `watch` watches the engines that ran when this service was built, for as long as it goes on: those that are started later are
 *   watched anyhow. Their ends are recorded and told.
 *
 * @category services
 * @since 0.1.0
 */
export class Engines extends Context.Service<Engines, {
  readonly recipe: (engine: { readonly name: string; readonly type: EngineType }) => Recipe
  readonly actual: (engine: StoredEngine) => Effect.Effect<StoredEngine>
  readonly launch: (
    engine: StoredEngine,
    request: Request,
    onStarted?: ((engine: StoredEngine) => Effect.Effect<void>) | undefined
  ) => Effect.Effect<StoredEngine, LaunchFailed | EngineNotFound | EngineStoreError, EventPublisher>
  readonly end: (
    engine: StoredEngine,
    options: End
  ) => Effect.Effect<StoredEngine, RuntimeError | EngineNotFound | EngineStoreError, EventPublisher>
  readonly install: (
    engine: { readonly name: string; readonly type: EngineType },
    version: string | undefined
  ) => Effect.Effect<Artifact & Pick<StoredEngine, "runtime">, RuntimeError>
  readonly fork: <A, E, R>(work: Effect.Effect<A, E, R>) => Effect.Effect<Fiber.Fiber<A, E>, never, R>
  readonly served: (engine: StoredEngine) => Effect.Effect<Probe.Served | undefined>
  readonly live: Effect.Effect<ReadonlyArray<LiveEngine>, EngineStoreError>
  readonly watch: Effect.Effect<void, EngineStoreError, EventPublisher>
}>()("effect-units/engine/Engines") {}

/**
 * Settings of the service.
 *
 * @category models
 * @since 0.1.0
 */
export interface Options {
  /**
   * Recipes by the name of the engine. One that is not the name of a type is in the register from the start, and needs no
   * installation.
   */
  readonly recipes?: Readonly<Record<string, Recipe>> | undefined
  /** The address that engines listen on. Default `127.0.0.1`. */
  readonly host?: string | undefined
  /**
   * What becomes of the engines that were started here when the service is closed: `stop` (default) ends them, `leave` lets them run,
   * for the next program on the same register to take over. After a crash of the program they run in both cases.
   */
  readonly onClose?: "stop" | "leave" | undefined
  /** How often a running engine is asked whether it is healthy. Default 10 seconds. */
  readonly healthInterval?: Duration.Input | undefined
}

/** How often an engine that starts is asked whether it is healthy, besides whenever it writes something. */
const startPollInterval = "500 millis"
/** For one answer then: some servers take connections before they can answer, and never answer those. */
const startAnswerTimeout = "2 seconds"
const defaultGrace = "10 seconds"
/** How much of an engine's output goes into a message. */
const tailLines = 5
const tailLength = 1000

/** The id of the process or container that an engine runs as; empty where it does not run. */
const processIdOf = (instance: Instance | undefined): string => {
  switch (instance?.kind) {
    case undefined:
      return ""
    case "process":
      return String(instance.ref.pid)
    case "container":
      return instance.id
    case "attached":
      return instance.process_id
  }
}

/**
 * The id of the process or container that an engine runs as, as its units report it: empty where it does not run.
 *
 * @category accessors
 * @since 0.1.0
 */
export const processId = ({ launch, status }: StoredEngine): string =>
  status === "stopped" || status === "error" ? "" : processIdOf(launch?.instance)

const timestamp = Effect.map(DateTime.now, DateTime.formatIso)

/** A runtime, bound to one of its instances. */
const bind = <I extends Instance>(runtime: Runtime<I> | undefined, instance: I) => {
  const by = runtime ?? absent(instance.kind)
  return {
    isRunning: by.isRunning(instance),
    ended: by.ended(instance),
    stop: (options: Parameters<Runtime<I>["stop"]>[1]) => by.stop(instance, options),
    adopt: by.adopt(instance),
    sweep: by.sweep,
    lines: by.lines(instance),
    tail: (count: number) => by.tail(instance, count)
  }
}

type Bound = ReturnType<typeof bind>

/** What stands for a runtime that this program does not have. */
const absent = (kind: Instance["kind"]): Runtime<Instance> => {
  const error = new RuntimeError({
    reason: "Unavailable",
    detail: `This program was set up without a runtime of kind ${kind}. Give it one`,
    retryable: false
  })
  const fail = () => Effect.fail(error)
  return {
    locate: fail,
    install: fail,
    start: fail,
    isRunning: fail,
    ended: fail,
    stop: fail,
    adopt: fail,
    sweep: fail,
    lines: () => Stream.fail(error),
    tail: fail
  }
}

const includesAny = (lines: ReadonlyArray<string>, texts: ReadonlyArray<string>): boolean =>
  lines.some((line) => texts.some((text) => line.toLowerCase().includes(text.toLowerCase())))

const quote = (lines: ReadonlyArray<string>): string => {
  const text = lines.slice(-tailLines).join("\n").trim()
  return text === "" ? "It wrote nothing" : `Its last output: ${text.slice(-tailLength)}`
}

const addressOf = ({ host, port }: Pick<StoredLaunch, "host" | "port">): string =>
  `http://${host.includes(":") ? `[${host}]` : host}:${port}`

const fromRuntime = (error: RuntimeError): LaunchFailed =>
  new LaunchFailed({
    reason: error.reason,
    detail: error.detail,
    retryable: error.retryable || error.reason === "PortTaken",
    transient: error.retryable
  })

const ignoreFailure = (what: string) => <A, E, R>(effect: Effect.Effect<A, E, R>) =>
  Effect.catch(effect, (error) => Effect.logWarning(what, error))

/** An engine of this program, to be ended with it. */
interface Owned {
  readonly engine: StoredEngine
  readonly launch: StoredLaunch & { readonly instance: Instance }
  /** Whether an earlier program has started it. */
  readonly adopted: boolean
  /** Where its events go; absent for one that was adopted, and is not watched. */
  readonly publisher: Context.Context<EventPublisher> | undefined
}

const make = Effect.fnUntraced(function*(options: Options) {
  const store = yield* EngineStore
  const runtimes = yield* Runtimes
  const probe = yield* Probe.make
  const attached = AttachedRuntime.make(probe)
  const { healthInterval = "10 seconds", host = "127.0.0.1", onClose = "stop" } = options
  const own = ProcessIdentity.own()
  const scope = yield* Effect.scope
  const owned = new Map<EngineId, Owned>()

  const recipe = ({ name, type }: { readonly name: string; readonly type: EngineType }): Recipe =>
    options.recipes?.[name] ?? recipes[type]

  const bound = (instance: Instance): Bound => {
    switch (instance.kind) {
      case "process":
        return bind(runtimes.process, instance)
      case "container":
        return bind(runtimes.container, instance)
      case "attached":
        return bind(attached, instance)
    }
  }

  const runtimeOf = (
    kind: StoredEngine["runtime"]
  ): Pick<Runtime, "locate" | "install" | "start" | "sweep"> =>
    (kind === "process" ? runtimes.process : runtimes.container) ?? absent(kind)

  const actual = Effect.fnUntraced(function*(engine: StoredEngine) {
    if (engine.status !== "running") return engine
    const { launch } = engine
    // Where the runtime does not answer, what is recorded is all that is known.
    const runs = launch?.instance === undefined
      ? false
      : yield* Effect.orElseSucceed(bound(launch.instance).isRunning, () => true)
    return runs ? engine : { ...engine, status: "error" as const, error: engine.error ?? "It has ended by itself" }
  })

  /** Ends what an earlier launch has left, recorded or not. */
  const sweep = Effect.fnUntraced(function*(engine: StoredEngine) {
    const { launch } = engine
    if (launch === undefined) return
    if (launch.instance?.kind === "attached") return
    if (launch.instance !== undefined) {
      yield* bound(launch.instance).stop({ force: true, grace: 0 })
    }
    yield* runtimeOf(engine.runtime).sweep(launch.id)
  })

  const progress = (
    engine: StoredEngine,
    phase: "pulling" | "starting" | "loading" | "ready" | "failed",
    message: string,
    value: number
  ) =>
    Effect.flatMap(
      timestamp,
      (timestamp) =>
        EngineStartProgress.publish({ service_id: engine.name, phase, message, progress: value, timestamp })
    )

  const identity = ({ id, name, type }: StoredEngine) => ({ engine_id: id, name, type })

  const tellError = (engine: StoredEngine, error: string, error_code: string) =>
    Effect.flatMap(
      timestamp,
      (timestamp) => EngineFailed.publish({ ...identity(engine), status: "error", error, error_code, timestamp })
    )

  const tellStopped = (engine: StoredEngine, reason: string) =>
    Effect.flatMap(
      timestamp,
      (stopped_at) => EngineStopped.publish({ ...identity(engine), status: "stopped", reason, stopped_at })
    )

  /** What an engine is run from: an image can have gone since it was installed. */
  const artifact = Effect.fnUntraced(function*(engine: StoredEngine, recipe: Recipe) {
    if (engine.runtime === "process") return engine.path
    const runtime = runtimeOf("container")
    const version = engine.version === "" || engine.version === recipe.container?.tag ? undefined : engine.version
    const located = yield* runtime.locate(recipe, version)
    if (located !== undefined) return located.path
    const context = yield* Effect.context<EventPublisher>()
    yield* progress(engine, "pulling", `Pulling the image of ${engine.name}`, 0)
    const pulled = yield* runtime.install(recipe, {
      version,
      onProgress: (message, fraction = 0) =>
        Effect.provideContext(progress(engine, "pulling", message, Math.round(fraction * 50)), context)
    })
    return pulled.path
  })

  /** Waits until an instance is healthy; fails as soon as it is known that it will not be. */
  const healthy = Effect.fnUntraced(function*(instance: Instance, recipe: Recipe, address: string) {
    const { ended, isRunning, lines, tail } = bound(instance)
    const wrote = yield* Queue.sliding<void>(1)
    const outOfMemory = (last: ReadonlyArray<string>) =>
      new LaunchFailed({
        reason: "OutOfMemory",
        detail: `Its memory does not suffice. Choose a smaller model, or free memory. ${quote(last)}`,
        retryable: false,
        transient: false
      })
    const poll = Effect.gen(function*() {
      // What answers can be somebody else, who took the port, while this one is about to end for that.
      while (!((yield* probe.isHealthy(recipe, address, startAnswerTimeout)) && (yield* isRunning))) {
        yield* Effect.raceFirst(Effect.sleep(startPollInterval), Queue.take(wrote))
      }
    })
    const read = Stream.runForEach(lines, (line) =>
      includesAny([line], recipe.outOfMemory)
        ? Effect.flatMap(tail(tailLines), (last) => Effect.fail(outOfMemory(last)))
        : Queue.offer(wrote, undefined))
    const died = Effect.gen(function*() {
      const { code, outOfMemory: killed = false, signal } = yield* ended
      const last = yield* Effect.orElseSucceed(tail(tailLines * 10), () => [])
      if (killed || includesAny(last, recipe.outOfMemory)) return yield* outOfMemory(last)
      const transient = includesAny(last, recipe.transient)
      const how = code === undefined ? signal === undefined ? "" : ` by ${signal}` : ` with exit code ${code}`
      return yield* new LaunchFailed({
        reason: "Died",
        detail: `It ended${how} before it was healthy. ${quote(last)}`,
        retryable: transient,
        transient
      })
    })
    const late = Effect.flatMap(Effect.orElseSucceed(tail(tailLines), () => []), (last) =>
      Effect.fail(
        new LaunchFailed({
          reason: "HealthTimeout",
          detail: `${address}${recipe.healthPath} did not answer as a healthy engine does in time. ${quote(last)}`,
          retryable: true,
          transient: false
        })
      ))
    yield* Effect.raceAllFirst([poll, died, Effect.andThen(read, Effect.never)]).pipe(
      Effect.timeoutOrElse({ duration: recipe.startTimeout, orElse: () => late }),
      Effect.mapError((error) => error instanceof RuntimeError ? fromRuntime(error) : error)
    )
  })

  const newLaunchId = (engine: StoredEngine) =>
    Effect.map(
      Random.nextIntBetween(0, 2 ** 32, { halfOpen: true }),
      (n) => `${engine.id}-${n.toString(16).padStart(8, "0")}`
    )

  const record = (engine: StoredEngine, launch: StoredLaunch, config: EngineConfig) =>
    store.change(engine.id, { launch, config })

  const portTaken = Effect.fnUntraced(function*({ message, reason, retryable }: Ports.PortError) {
    // What listens for a container is Docker's own program, which tells nobody anything.
    const holder = reason._tag === "Taken"
      ? yield* runtimes.container?.portHolder?.(reason.port) ?? Effect.undefined
      : undefined
    return yield* new LaunchFailed({
      reason: "PortTaken",
      detail: holder === undefined
        ? `Its ${message}`
        : `Its port is held by ${holder}. Stop that, or choose another port`,
      retryable,
      transient: false
    })
  })

  /** One attempt: a port, an instance on it, and its health. */
  const attempt = Effect.fnUntraced(function*(
    engine: StoredEngine,
    { config, ...model }: Request,
    path: string,
    onStarted: (engine: StoredEngine) => Effect.Effect<void>
  ) {
    const by = recipe(engine)
    const runtime = runtimeOf(engine.runtime)
    const { port } = yield* Effect.catch(
      Ports.reserve({ purpose: `engine ${engine.name}`, host, port: config.port, preferred: by.port }),
      portTaken
    )
    const launch: StoredLaunch = {
      id: yield* newLaunchId(engine),
      host,
      port,
      ...(own === undefined ? {} : { owner: own })
    }
    yield* record(engine, launch, config)
    yield* progress(engine, "starting", `Starting ${engine.name}`, 70)
    const gpu = config.gpu ?? (config.device === undefined ? by.gpu : config.device === "gpu")
    const start = runtime.start({
      id: launch.id,
      engine: engine.name,
      recipe: by,
      path,
      host,
      port,
      gpu,
      config,
      ...model
    })
    const forget = store.change(engine.id, { launch: undefined })
    return yield* Effect.acquireUseRelease(
      start.pipe(
        Effect.mapError((error) => missing(engine, by, error)),
        Effect.tapError(() => Effect.ignore(forget))
      ),
      Effect.fnUntraced(function*(instance) {
        const started = { ...launch, instance }
        const starting = yield* record(engine, started, config)
        yield* onStarted(starting)
        yield* progress(engine, "loading", `Waiting until ${engine.name} is healthy`, 75)
        yield* healthy(instance, by, addressOf(launch))
        return started
      }),
      (instance, exit) =>
        Exit.isSuccess(exit) ? Effect.void : bound(instance).stop({
          force: false,
          grace: by.stopGrace ?? defaultGrace,
          signal: by.process?.stopSignal ?? "SIGINT"
        }).pipe(
          Effect.andThen(forget),
          ignoreFailure(`Something of the engine ${engine.name} may still run after a start that has failed`)
        )
    )
  }, Effect.scoped)

  /** A program that is not there any more, with the words of the recipe. */
  const missing = (engine: StoredEngine, { process: part }: Recipe, error: RuntimeError): LaunchFailed =>
    error.reason === "Missing" && engine.runtime === "process" && part !== undefined
      ? new LaunchFailed({
        reason: "Missing",
        detail: `${error.detail}. To have it, ${part.howToInstall(undefined)}`,
        retryable: false,
        transient: false
      })
      : fromRuntime(error)

  /** An engine that somebody else runs at the port where this one would listen. */
  const attach = Effect.fnUntraced(function*(engine: StoredEngine, by: Recipe, config: EngineConfig) {
    if (by.attach !== true) return undefined
    const port = config.port ?? by.port
    const url = addressOf({ host, port })
    if (!(yield* probe.isHealthy(by, url))) return undefined
    const holder = yield* Ports.holder(port)
    const process_id = holder === undefined ? "" : String(holder.pid)
    return { id: yield* newLaunchId(engine), host, port, instance: { kind: "attached", url, process_id } as const }
  })

  const watchers = yield* FiberMap.make<EngineId>()

  const recordEnd = Effect.fnUntraced(function*(engine: StoredEngine, launch: StoredLaunch, detail: string) {
    const ended = yield* store.settle(engine.id, launch.id, { status: "error", launch: undefined, error: detail })
    if (ended) yield* tellError(engine, `The engine ${engine.name} has ended by itself. ${detail}`, "00202")
  })

  /** Looks after an engine that runs, until it ends. */
  const watchOne = ({ adopted, engine, launch }: Owned) => {
    const { ended, stop, tail } = bound(launch.instance)
    const by = recipe(engine)
    const death = Effect.gen(function*() {
      const { code, signal } = yield* ended
      // Which secrets it was given by another program, to be taken out of what it wrote, is not known here.
      const last = adopted ? undefined : quote(yield* tail(tailLines))
      // What it has started may go on without it.
      yield* Effect.ignore(stop({ force: true, grace: 0 }))
      owned.delete(engine.id)
      const how = code !== undefined
        ? `Its exit code is ${code}`
        : signal !== undefined
        ? `It was ended by ${signal}`
        : "Nobody had asked for it"
      yield* recordEnd(engine, launch, last === undefined ? how : `${how}. ${last}`)
    })
    const health = Effect.gen(function*() {
      let before: "healthy" | "unhealthy" = "healthy"
      for (;;) {
        yield* Effect.sleep(healthInterval)
        const now = (yield* probe.isHealthy(by, addressOf(launch))) ? "healthy" : "unhealthy"
        if (now === before) continue
        yield* EngineHealthChanged.publish({
          ...identity(engine),
          old_status: before,
          new_status: now,
          timestamp: yield* timestamp
        })
        before = now
      }
    })
    return Effect.raceFirst(death, health).pipe(
      ignoreFailure(`The engine ${engine.name} is not watched any more`),
      // It outlives the execution that started it.
      Effect.updateService(Execution.Surroundings, ({ attributes, generateId }) => ({
        execution: undefined,
        attributes,
        generateId
      }))
    )
  }

  const watch = Effect.fnUntraced(function*(seen: Omit<Owned, "publisher">) {
    const { engine } = seen
    const one: Owned = { ...seen, publisher: yield* Effect.context<EventPublisher>() }
    owned.set(engine.id, one)
    yield* FiberMap.run(watchers, engine.id, watchOne(one))
  })

  const launch = Effect.fnUntraced(
    function*(
      engine: StoredEngine,
      request: Request,
      onStarted: (engine: StoredEngine) => Effect.Effect<void> = () => Effect.void
    ) {
      const by = recipe(engine)
      yield* Effect.mapError(sweep(engine), fromRuntime)
      const there = yield* attach(engine, by, request.config)
      const path = there !== undefined ? "" : yield* Effect.mapError(artifact(engine, by), fromRuntime)
      const started = there ?? (yield* Effect.retry(attempt(engine, request, path, onStarted), {
        times: by.retries,
        schedule: Schedule.spaced(by.retryDelay),
        while: (error) => error._tag === "LaunchFailed" && error.transient
      }))
      const running = yield* store.change(engine.id, {
        status: "running",
        launch: started,
        config: request.config,
        error: undefined
      })
      yield* watch({ engine: running, launch: started, adopted: false })
      yield* progress(engine, "ready", `${engine.name} is ready`, 100)
      yield* EngineStarted.publish({
        ...identity(engine),
        process_id: processIdOf(started.instance),
        status: "running",
        started_at: yield* timestamp
      })
      return { ...running, status: "running" as const }
    },
    (effect, engine) =>
      Effect.onExit(effect, (exit) => {
        if (Exit.isSuccess(exit)) return Effect.void
        const failure = Option.getOrUndefined(Exit.findErrorOption(exit))
        const detail = failure?.message ?? "The start was interrupted"
        return Effect.gen(function*() {
          yield* ignoreFailure(`The failure of ${engine.name} was not recorded`)(
            store.change(engine.id, { status: "error", error: detail })
          )
          yield* progress(engine, "failed", detail, -1)
          yield* tellError(engine, detail, "00203")
        })
      })
  )

  const end = Effect.fnUntraced(function*(engine: StoredEngine, { force, grace, reason }: End) {
    const { launch } = engine
    const instance = launch?.instance
    const runs = instance !== undefined && (yield* Effect.orElseSucceed(bound(instance).isRunning, () => true))
    if (instance !== undefined) {
      const signal = recipe(engine).process?.stopSignal ?? "SIGINT"
      yield* bound(instance).stop({ force, grace, signal }).pipe(
        Effect.tapError(({ detail }) =>
          Effect.andThen(
            ignoreFailure(`The failure of ${engine.name} was not recorded`)(
              store.change(engine.id, { status: "error", error: detail })
            ),
            tellError(engine, detail, "00204")
          )
        )
      )
    }
    owned.delete(engine.id)
    yield* FiberMap.remove(watchers, engine.id)
    const stopped = yield* store.change(engine.id, { status: "stopped", launch: undefined, error: undefined })
    yield* tellStopped(engine, !runs ? "ended" : instance.kind === "attached" ? "detached" : reason)
    return { ...stopped, status: "stopped" as const }
  })

  const install = Effect.fnUntraced(function*(
    engine: { readonly name: string; readonly type: EngineType },
    version: string | undefined
  ) {
    const by = recipe(engine)
    const kinds = ([runtimes.prefer, "process", "container"] as const).filter((kind, index, all) =>
      all.indexOf(kind) === index && runtimes[kind] !== undefined && by[kind] !== undefined
    )
    for (const runtime of kinds) {
      const located = yield* Effect.orElseSucceed(runtimeOf(runtime).locate(by, version), () => undefined)
      if (located !== undefined) return { ...located, runtime }
    }
    const failures: Array<RuntimeError> = []
    // A container can be fetched, a program only be asked for.
    for (const runtime of kinds.toSorted()) {
      const fetched = yield* Effect.result(
        runtimeOf(runtime).install(by, { version, onProgress: (message) => Effect.logDebug(message) })
      )
      if (fetched._tag === "Success") return { ...fetched.success, runtime }
      failures.push(fetched.failure)
    }
    // What can be done about a program comes first, where that is the way.
    const [first, ...others] = runtimes.prefer === "process" ? failures.toReversed() : failures
    return yield* first === undefined
      ? new RuntimeError({ reason: "Missing", detail: `Nothing here can run ${engine.name}`, retryable: false })
      : new RuntimeError({
        reason: first.reason,
        detail: [first, ...others].map(({ detail }) => detail).join(". "),
        retryable: failures.some(({ retryable }) => retryable),
        cause: first
      })
  })

  /** Takes over what a program that is gone has left: what ran goes on, what was just being started is ended. */
  const takeOver = Effect.fnUntraced(function*(engine: StoredEngine) {
    const { launch } = engine
    // Of a program elsewhere it cannot be known whether it is gone.
    if (launch?.owner === undefined || ProcessIdentity.isAlive(launch.owner) !== false || own === undefined) return
    const { instance } = launch
    if (engine.status === "running" && instance !== undefined && (yield* bound(instance).adopt)) {
      const mine = { ...launch, owner: own, instance }
      if (yield* store.settle(engine.id, launch.id, { launch: mine })) {
        owned.set(engine.id, { engine, launch: mine, adopted: true, publisher: undefined })
      }
      return
    }
    yield* sweep(engine)
    yield* store.settle(engine.id, launch.id, {
      status: "error",
      launch: undefined,
      error: "It ended together with the program that had started it"
    })
  })

  for (const [name, by] of Object.entries(options.recipes ?? {})) {
    if (Object.hasOwn(recipes, name)) continue
    yield* store.register({
      name,
      type: by.type,
      version: "",
      path: by.process?.command ?? by.container?.image ?? name,
      runtime: by.process === undefined ? "container" : "process"
    })
  }
  yield* Effect.forEach(
    yield* store.list({}),
    (engine) => ignoreFailure(`The engine ${engine.name} was not taken over`)(takeOver(engine)),
    { concurrency: "unbounded", discard: true }
  )

  const shutDown = Effect.fnUntraced(function*({ engine, launch, publisher }: Owned) {
    if (launch.instance.kind === "attached") return
    const signal = recipe(engine).process?.stopSignal ?? "SIGINT"
    yield* bound(launch.instance).stop({ force: false, grace: defaultGrace, signal })
    const stopped = yield* store.settle(engine.id, launch.id, { status: "stopped", launch: undefined })
    if (stopped && publisher !== undefined) {
      yield* Effect.provideContext(tellStopped(engine, "shutdown"), publisher)
    }
  })

  yield* Effect.addFinalizer(() =>
    FiberMap.clear(watchers).pipe(
      Effect.andThen(
        onClose === "leave" ? Effect.void : Effect.forEach(
          [...owned.values()],
          (one) => ignoreFailure(`The engine ${one.engine.name} was not stopped`)(shutDown(one)),
          { concurrency: "unbounded", discard: true }
        )
      )
    )
  )

  return Engines.of({
    recipe,
    actual,
    launch,
    end,
    install,
    fork: (work) => Effect.forkIn(work, scope),
    served: (engine) =>
      engine.launch === undefined ? Effect.undefined : probe.served(recipe(engine), addressOf(engine.launch)),
    live: Effect.gen(function*() {
      const engines = yield* Effect.forEach(yield* store.list({}), actual, { concurrency: "unbounded" })
      return engines.flatMap((engine) => {
        if (engine.status !== "running" || engine.launch === undefined) return []
        const { capabilities, dialect } = recipe(engine)
        const live: LiveEngine = {
          name: engine.name,
          type: engine.type,
          dialect,
          address: addressOf(engine.launch),
          launch: engine.launch.id,
          capabilities,
          model_id: engine.config.model_id
        }
        return [live]
      })
    }),
    watch: Effect.gen(function*() {
      for (const one of owned.values()) {
        if (one.publisher === undefined) yield* watch(one)
      }
    })
  })
})

/**
 * Layer of the service. Building it takes over the engines that an earlier program has left; closing it ends what was started here,
 * or leaves it, as `onClose` says.
 *
 * @category layers
 * @since 0.1.0
 */
export const layer = (
  options: Options = {}
): Layer.Layer<Engines, EngineStoreError, EngineStore | Runtimes | HttpClient.HttpClient> =>
  Layer.effect(Engines, make(options))
