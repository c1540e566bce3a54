/**
 * Engines as containers of a Docker Engine.
 *
 * A container carries the id of its start in its name and in a label, so that it is found whatever became of the program that started
 * it. What does not carry such a label is never touched, and what does only by its id.
 *
 * @since 0.1.0
 */
import type * as Duration from "effect/Duration"
import * as Effect from "effect/Effect"
import * as FileSystem from "effect/FileSystem"
import * as Path from "effect/Path"
import * as Predicate from "effect/Predicate"
import * as Redacted from "effect/Redacted"
import * as Schedule from "effect/Schedule"
import type * as Scope from "effect/Scope"
import * as Stream from "effect/Stream"
import * as Docker from "../backends/Docker.ts"
import type { DockerError } from "../backends/DockerError.ts"
import * as Ports from "../backends/Ports.ts"
import { mask, secretsOf } from "./internal/masking.ts"
import type { ContainerPart, Env, Recipe } from "./Recipe.ts"
import { type Artifact, type Ended, type Launch, RuntimeError, type RuntimeOf, type StopOptions } from "./Runtime.ts"

/**
 * Settings of the runtime.
 *
 * @category models
 * @since 0.1.0
 */
export interface Options {
  /**
   * `bridge` (default) publishes a port of the host to the engine's own port. `host` gives the engine the host's network, which some
   * hosts with GPUs run faster with; the engine has to listen where its arguments say.
   */
  readonly network?: "bridge" | "host" | undefined
  /** What becomes of the containers when the scope closes: `stop` (default) ends and removes them, `leave` lets them run. */
  readonly onClose?: "stop" | "leave" | undefined
  /** How long they are given to end then. Default: 10 seconds. */
  readonly grace?: Duration.Input | undefined
  /** The credentials for an image, where its registry wants any. */
  readonly auth?: ((image: string) => Docker.RegistryAuth | undefined) | undefined
}

/** A container of this runtime, as it is recorded. */
type Instance = { readonly kind: "container"; readonly id: string }

/**
 * The labels of a container that an engine runs in: the id of its start, and for people the name and the type of the engine.
 *
 * @category constants
 * @since 0.1.0
 */
export const labels = {
  launch: "effect-units.launch",
  engine: "effect-units.engine",
  type: "effect-units.engine-type"
} as const

/** What an engine writes is kept this long: without a bound Docker fills the disk with it, and some loggers keep nothing. */
const logConfig = { Type: "json-file", Config: { "max-size": "20m", "max-file": "2" } }

/** For what Docker needs to take a container away after it was killed: memory to free, devices to close. */
const removal = Schedule.spaced("100 millis").pipe(Schedule.upTo({ duration: "10 seconds" }))

const kindOf = (reason: DockerError["reason"]): RuntimeError["reason"] => {
  switch (reason._tag) {
    case "Unreachable":
    case "TimedOut":
    case "TooOld":
    case "Undecodable":
    case "Unsupported":
      return "Unavailable"
    case "ImageMissing":
    case "InvalidImage":
    case "Unauthorized":
      return "Missing"
    case "PortTaken":
      return "PortTaken"
    default:
      return "Refused"
  }
}

const toRuntimeError = (error: DockerError) =>
  new RuntimeError({ reason: kindOf(error.reason), detail: error.message, retryable: error.retryable, cause: error })

/** What breaks off during a pull is the registry's or the network's, whose words Docker passes on. */
const toPullError = (error: DockerError) => {
  const { reason } = error
  const broke = reason._tag === "Refused" || reason._tag === "Unreachable" || reason._tag === "TimedOut"
  return broke
    ? new RuntimeError({ reason: "Interrupted", detail: error.message, retryable: error.retryable, cause: error })
    : toRuntimeError(error)
}

const isAbsent = (error: DockerError) => error.reason._tag === "ContainerNotFound"
const isImageMissing = (error: DockerError) => error.reason._tag === "ImageMissing"
const isBusy = (error: DockerError) => error.reason._tag === "Conflict" && error.reason.in_progress
const isConflict = (error: DockerError) => error.reason._tag === "Conflict"

const referenceOf = (part: ContainerPart, version: string | undefined) =>
  `${part.image}:${version === undefined ? part.tag : part.tagOf?.(version) ?? version}`

const environment = (env: Env): ReadonlyArray<string> =>
  Object.entries(env).map(([name, value]) =>
    // A name alone takes away what the image sets.
    value === undefined ? name : `${name}=${Predicate.isString(value) ? value : Redacted.value(value)}`
  )

const gigabytes = (bytes: number) => `${(bytes / 1e9).toFixed(2)} GB`

/** What has been fetched, over the layers that the engine has spoken of. It never goes back, though more layers become known. */
const makeProgress = (image: string) => {
  const layers = new Map<string, { readonly current: number; readonly total: number }>()
  let told = -1
  return ({ id, progressDetail, status }: Docker.PullProgress): readonly [string, number | undefined] | undefined => {
    const total = progressDetail?.total
    if (id !== undefined && status === "Downloading" && total !== undefined) {
      layers.set(id, { current: progressDetail?.current ?? 0, total })
    }
    const known = id === undefined ? undefined : layers.get(id)
    if (id !== undefined && known !== undefined && /^(Download complete|Extracting|Pull complete)$/.test(status)) {
      layers.set(id, { current: known.total, total: known.total })
    }
    let [done, all] = [0, 0]
    for (const { current, total } of layers.values()) [done, all] = [done + current, all + total]
    const fraction = all === 0 ? undefined : done / all
    // In steps of a percent, as Docker tells of every few kilobytes.
    const percent = fraction === undefined ? 0 : Math.floor(fraction * 100)
    if (percent <= told) return undefined
    told = percent
    return [
      fraction === undefined ? `pulling ${image}` : `pulling ${image}: ${gigabytes(done)} of ${gigabytes(all)}`,
      fraction
    ]
  }
}

/**
 * Builds the runtime over a Docker Engine, which need not run yet. Secrets of a recipe's environment are taken out of what a container
 * writes; Docker itself shows them to whoever may use it.
 *
 * @category constructors
 * @since 0.1.0
 */
export const make = Effect.fnUntraced(function*(
  options: Options = {}
): Effect.fn.Return<
  RuntimeOf<"container">,
  never,
  Docker.Docker | FileSystem.FileSystem | Path.Path | Scope.Scope
> {
  const docker = yield* Docker.Docker
  const fs = yield* FileSystem.FileSystem
  const path = yield* Path.Path
  const { auth = () => undefined, grace = "10 seconds", network = "bridge", onClose = "stop" } = options
  const own = new Set<string>()
  /** What to take out of the output of which container. */
  const secrets = new Map<string, ReadonlyArray<string>>()

  /** Removes a container, running or not, and succeeds once the engine does not know it any more. */
  const remove = (id: string): Effect.Effect<void, RuntimeError> =>
    docker.removeContainer(id, { force: true, volumes: true }).pipe(
      Effect.retry({ schedule: removal, while: isBusy }),
      Effect.catchIf(isAbsent, () => Effect.void),
      Effect.andThen(Effect.sync(() => {
        own.delete(id)
        secrets.delete(id)
      })),
      Effect.mapError((error) =>
        isConflict(error)
          ? new RuntimeError({
            reason: "Survived",
            detail: `The container ${id.slice(0, 12)} cannot be removed. See what Docker says of it: ${error.message}`,
            retryable: true,
            cause: error
          })
          : toRuntimeError(error)
      )
    )

  const sweep = (launchId: string) =>
    docker.listContainers({ all: true, filters: { label: [`${labels.launch}=${launchId}`] } }).pipe(
      Effect.mapError(toRuntimeError),
      Effect.flatMap(Effect.forEach(({ Id }) => remove(Id), { discard: true }))
    )

  const stop = Effect.fnUntraced(function*({ id }: Instance, { force, grace }: StopOptions) {
    if (!force) {
      yield* docker.stopContainer(id, { timeout: grace }).pipe(
        Effect.catchIf(isAbsent, () => Effect.void),
        Effect.mapError(toRuntimeError)
      )
    }
    yield* remove(id)
  })

  yield* Effect.addFinalizer(() =>
    onClose === "leave" ? Effect.void : Effect.forEach(own, (id) =>
      Effect.catch(
        stop({ kind: "container", id }, { force: false, grace }),
        (error) => Effect.logWarning(`The container ${id.slice(0, 12)} was not ended`, error)
      ), { concurrency: "unbounded", discard: true })
  )

  const portHolder = Effect.fnUntraced(function*(port: number) {
    const [other] = yield* Effect.orElseSucceed(
      docker.listContainers({ filters: { publish: [String(port)], status: ["running"] } }),
      () => []
    )
    return other === undefined
      ? undefined
      : `the container ${(other.Names[0] ?? other.Id.slice(0, 12)).replace(/^\//, "")} of the image ${other.Image}`
  })

  const taken = Effect.fnUntraced(function*(error: DockerError, port: number) {
    const process = yield* Ports.holder(port)
    const holder = (yield* portHolder(port)) ??
      (process === undefined ? undefined : `${process.name} (process ${process.pid})`)
    return yield* new RuntimeError({
      reason: "PortTaken",
      detail: `Port ${port} is held by ${
        holder ?? "something that has ended meanwhile"
      }. Stop that, or choose another port.`,
      retryable: holder === undefined,
      cause: error
    })
  })

  const partOf = (recipe: Recipe) =>
    recipe.container === undefined
      ? Effect.fail(
        new RuntimeError({
          reason: "Missing",
          detail: `There is no image for ${recipe.type}. Run it as a process, or give its recipe a container.`,
          retryable: false
        })
      )
      : Effect.succeed(recipe.container)

  /** The folder to mount, and the path of the model inside: of a file its folder, as other parts of it can be there. */
  const modelOf = Effect.fnUntraced(function*(part: ContainerPart, modelPath: string) {
    const { type } = yield* Effect.mapError(fs.stat(modelPath), (cause) =>
      new RuntimeError({
        reason: "Refused",
        detail: `The model at ${modelPath} cannot be mounted: ${cause.reason._tag}. Check the path.`,
        retryable: false,
        cause
      }))
    return type === "Directory"
      ? { folder: modelPath, inside: part.modelMount }
      : { folder: path.dirname(modelPath), inside: `${part.modelMount}/${path.basename(modelPath)}` }
  })

  const specOf = Effect.fnUntraced(function*(launch: Launch) {
    const part = yield* partOf(launch.recipe)
    const model = launch.modelPath === undefined ? undefined : yield* modelOf(part, launch.modelPath)
    const published = network === "bridge"
    const settings = {
      host: published ? "0.0.0.0" : launch.host,
      port: published ? part.port : launch.port,
      model: model?.inside ?? launch.modelName,
      servedName: launch.servedName,
      gpu: launch.gpu,
      config: launch.config
    }
    const env = part.env?.(settings) ?? {}
    const spec: Docker.ContainerSpec = {
      Image: launch.path,
      Cmd: part.args(settings),
      Env: environment(env),
      Labels: {
        [labels.launch]: launch.id,
        [labels.engine]: launch.engine,
        [labels.type]: launch.recipe.type
      },
      ExposedPorts: published ? { [`${part.port}/tcp`]: {} } : undefined,
      HostConfig: {
        NetworkMode: network,
        PortBindings: published
          ? { [`${part.port}/tcp`]: [{ HostIp: launch.host, HostPort: String(launch.port) }] }
          : undefined,
        Mounts: model === undefined
          ? undefined
          : [{ Type: "bind", Source: model.folder, Target: part.modelMount, ReadOnly: true }],
        DeviceRequests: launch.gpu ? [{ Count: -1, Capabilities: [["gpu"]] }] : undefined,
        Memory: part.memory,
        NanoCpus: part.cpus === undefined ? undefined : Math.round(part.cpus * 1e9),
        IpcMode: part.hostIpc === true ? "host" : undefined,
        ShmSize: part.hostIpc === true ? undefined : part.sharedMemory,
        LogConfig: logConfig
      }
    }
    return { spec, hidden: secretsOf(env) }
  })

  const start = (launch: Launch) =>
    Effect.uninterruptibleMask((restore) =>
      Effect.gen(function*() {
        const { hidden, spec } = yield* restore(specOf(launch))
        const clean = Effect.catch(
          sweep(launch.id),
          (error) => Effect.logWarning(`What was left of the start ${launch.id} was not removed`, error)
        )
        return yield* Effect.gen(function*() {
          // The engine finishes what it has begun whether anyone waits or not, so these two are waited for.
          const { Id } = yield* Effect.mapError(
            docker.createContainer({ name: `effect-units-${launch.id}`, spec }),
            toRuntimeError
          )
          yield* restore(Effect.void)
          yield* Effect.catch(
            docker.startContainer(Id),
            (error) =>
              error.reason._tag === "PortTaken" ? taken(error, launch.port) : Effect.fail(toRuntimeError(error))
          )
          yield* restore(Effect.void)
          own.add(Id)
          secrets.set(Id, hidden)
          return { kind: "container" as const, id: Id }
        }).pipe(Effect.onError(() => clean))
      })
    )

  const locate = (recipe: Recipe, version?: string | undefined): Effect.Effect<Artifact | undefined, RuntimeError> => {
    if (recipe.container === undefined) return Effect.undefined
    const image = referenceOf(recipe.container, version)
    return docker.inspectImage(image).pipe(
      // What is located by this version again is the same image.
      Effect.as({ path: image, version: version ?? recipe.container.tag }),
      Effect.catchIf(isImageMissing, () => Effect.undefined),
      Effect.mapError(toRuntimeError)
    )
  }

  const install: RuntimeOf<"container">["install"] = Effect.fnUntraced(function*(recipe, { onProgress, version }) {
    const part = yield* partOf(recipe)
    const present = yield* locate(recipe, version)
    if (present !== undefined) return present
    const image = referenceOf(part, version)
    const progress = makeProgress(image)
    yield* docker.pullImage(image, { auth: auth(image) }).pipe(
      Stream.runForEach((line) => {
        const news = progress(line)
        return news === undefined ? Effect.void : onProgress(...news)
      }),
      Effect.mapError(toPullError)
    )
    return (yield* locate(recipe, version)) ?? (yield* new RuntimeError({
      reason: "Missing",
      detail: `The image ${image} was removed while it was pulled. Install it again.`,
      retryable: true
    }))
  })

  const isRunning = ({ id }: Instance) =>
    docker.inspectContainer(id).pipe(
      Effect.map(({ State }) => State.Running),
      Effect.catchIf(isAbsent, () => Effect.succeed(false)),
      Effect.mapError(toRuntimeError)
    )

  const ended = ({ id }: Instance): Effect.Effect<Ended, RuntimeError> =>
    Effect.gen(function*() {
      const code = yield* docker.waitContainer(id)
      const { State } = yield* docker.inspectContainer(id)
      return { code, outOfMemory: State.OOMKilled }
    }).pipe(
      Effect.catchIf(isAbsent, () => Effect.succeed({})),
      Effect.mapError(toRuntimeError)
    )

  /** What a container wrote; nothing where it was removed. */
  const texts = (id: string, options: Docker.LogOptions) =>
    docker.logLines(id, options).pipe(
      Stream.map(({ text }) => mask(secrets.get(id), text)),
      Stream.catchIf(isAbsent, () => Stream.empty),
      Stream.mapError(toRuntimeError)
    )

  return {
    locate,
    install,
    start,
    isRunning,
    ended,
    stop,
    adopt: (instance) =>
      Effect.tap(isRunning(instance), (running) =>
        Effect.sync(() => {
          if (running) own.add(instance.id)
        })),
    sweep,
    portHolder,
    lines: ({ id }) => texts(id, { follow: true }),
    tail: ({ id }, count) => Stream.runCollect(texts(id, { tail: count }))
  }
})
