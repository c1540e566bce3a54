/**
 * What runs engines: child processes, or containers. The domain above decides when and whether; a runtime does it.
 *
 * A runtime knows nothing of the register, of health, of retries or of events. It starts what a recipe says, tells whether that runs,
 * ends it with all that belongs to it, and finds it again after a crash of this program.
 *
 * @since 0.1.0
 */
import * as Context from "effect/Context"
import type * as Duration from "effect/Duration"
import type * as Effect from "effect/Effect"
import type * as ChildProcess from "effect/process/ChildProcess"
import * as Schema from "effect/Schema"
import type * as Stream from "effect/Stream"
import * as Supervisor from "../backends/Supervisor.ts"
import type { EngineConfig } from "./Engine.ts"
import type { Recipe } from "./Recipe.ts"

/**
 * What of an engine runs, as it is recorded: enough to find it in another program.
 *
 * **Details**
 *
 * - `process`: a child process of this host.
 * - `container`: the full id of a container.
 * - `attached`: a server that somebody else runs, at the address of `url`. It is used, and never ended.
 *
 * @category models
 * @since 0.1.0
 */
export const Instance = Schema.Union([
  Schema.Struct({ kind: Schema.Literal("process"), ref: Supervisor.Ref }),
  Schema.Struct({ kind: Schema.Literal("container"), id: Schema.NonEmptyString }),
  Schema.Struct({ kind: Schema.Literal("attached"), url: Schema.String, process_id: Schema.String })
])

/**
 * @category models
 * @since 0.1.0
 */
export type Instance = typeof Instance.Type

/**
 * The two kinds of runtime that start engines.
 *
 * @category models
 * @since 0.1.0
 */
export const RuntimeKind = Schema.Literals(["process", "container"])

/**
 * @category models
 * @since 0.1.0
 */
export type RuntimeKind = typeof RuntimeKind.Type

/**
 * Why a runtime could not do its work.
 *
 * **Details**
 *
 * - `Missing`: the program or image is not there, or not in the version asked for; `detail` says how to get it.
 * - `Unavailable`: the runtime itself does not answer, such as a Docker daemon that does not run.
 * - `PortTaken`: somebody else has the port; `detail` names who.
 * - `Refused`: the runtime answers, and does not do it: no rights, no such device, a wrong setting.
 * - `Interrupted`: a fetch broke off: the network, the registry.
 * - `Survived`: it runs on although it was killed.
 *
 * @category errors
 * @since 0.1.0
 */
export const RuntimeReason = Schema.Literals([
  "Missing",
  "Unavailable",
  "PortTaken",
  "Refused",
  "Interrupted",
  "Survived"
])

/**
 * What a runtime could not do. `detail` is a sentence that says what was wrong and what to do. `retryable` is true for what can pass
 * by itself within seconds; a start is tried again then.
 *
 * @category errors
 * @since 0.1.0
 */
export class RuntimeError extends Schema.TaggedError<RuntimeError>("effect-units/engine/RuntimeError")("RuntimeError", {
  reason: RuntimeReason,
  detail: Schema.String,
  retryable: Schema.Boolean,
  cause: Schema.optionalKey(Schema.Defect())
}) {
  override get message(): string {
    return this.detail
  }
}

/**
 * What an engine is run from: the absolute path of a program, or the reference of an image, with its version as far as it tells.
 *
 * @category models
 * @since 0.1.0
 */
export interface Artifact {
  readonly path: string
  readonly version: string
}

/**
 * One start of an engine.
 *
 * **Details**
 *
 * - `id` is unique on this host: letters, digits and `-`. Whatever is started has to carry it where the runtime can find it again
 *   (`sweep`): the name of an output file and a mark in the environment, the name and a label of a container.
 * - `engine` is the engine's name, for people: another label.
 * - `path` is `Artifact.path`.
 * - `host` and `port` are where the engine has to be reached from this host. The port is reserved and was proven free.
 * - `modelPath` is the absolute path of a file or folder on this host; a container has it mounted read-only. `modelName` is what the
 *   engine resolves itself. `servedName` is the name for clients. Each can be absent.
 * - `gpu` says whether GPUs are to be used.
 *
 * @category models
 * @since 0.1.0
 */
export interface Launch {
  readonly id: string
  readonly engine: string
  readonly recipe: Recipe
  readonly path: string
  readonly host: string
  readonly port: number
  readonly modelPath?: string | undefined
  readonly modelName?: string | undefined
  readonly servedName?: string | undefined
  readonly gpu: boolean
  readonly config: EngineConfig
}

/**
 * How an instance ended, as far as that is known. `outOfMemory` is set where the system says that it was killed for its memory.
 *
 * @category models
 * @since 0.1.0
 */
export interface Ended {
  readonly code?: number | undefined
  readonly signal?: string | undefined
  readonly outOfMemory?: boolean | undefined
}

/**
 * How an instance is ended: without `force`, it is asked first, by `signal` or else the runtime's own, and killed once `grace` has
 * passed; with it, killed at once.
 *
 * @category models
 * @since 0.1.0
 */
export interface StopOptions {
  readonly force: boolean
  readonly grace: Duration.Input
  readonly signal?: ChildProcess.Signal | undefined
}

/**
 * Runs engines of recipes that it has a part in: `Recipe.process`, `Recipe.container`.
 *
 * **Details**
 *
 * - `locate` looks for what is on this host already, without any network: a program on the PATH, an image. With `version`, that
 *   version. `undefined` where it is not there, or the recipe has no part for this runtime.
 * - `install` brings it, where the runtime can (an image is pulled), and says how to where it cannot (`Missing`). `onProgress` is
 *   told of a fetch: a text for people, and 0 to 1 where the total is known. What an interruption or a failure leaves is nothing
 *   that `locate` would find.
 * - `start` has started the instance when it succeeds, whatever becomes of it. Interrupted or failed, it leaves nothing running.
 * - `isRunning` asks the system, now. It fails only where that does not answer.
 * - `ended` waits until the instance ends by whatever cause, and succeeds at once where it has ended or is not there.
 * - `stop` succeeds once nothing of the instance runs and what belongs to it is removed (a container, its volumes); where it has
 *   ended already, at once. Its output may go with it.
 * - `adopt` makes an instance of an earlier program this one's, to be ended with it where that is the setting; says if it runs.
 * - `sweep` ends and removes all that a start with this `Launch.id` has left, whether recorded or not, and succeeds where that is
 *   nothing.
 * - `lines` is what the instance writes, both outputs, from the oldest line that is kept; the stream ends after the last.
 * - `portHolder` names, in words for people, who of what this runtime can see has a port of this host; a runtime whose programs hold
 *   their ports themselves leaves it to the system to say.
 * - `tail` are the last lines so far, also of an instance that has ended as long as it was not stopped or swept.
 *
 * All may be called from several fibers and programs at once for different instances; for one instance, `start` happens before the
 * others, and the domain above lets no two of `start`, `stop` and `sweep` run at once.
 *
 * @category models
 * @since 0.1.0
 */
export interface Runtime<I extends Instance = Instance> {
  readonly locate: (recipe: Recipe, version?: string | undefined) => Effect.Effect<Artifact | undefined, RuntimeError>
  readonly install: (
    recipe: Recipe,
    options: {
      readonly version?: string | undefined
      readonly onProgress: (message: string, fraction?: number | undefined) => Effect.Effect<void>
    }
  ) => Effect.Effect<Artifact, RuntimeError>
  readonly start: (launch: Launch) => Effect.Effect<I, RuntimeError>
  readonly isRunning: (instance: I) => Effect.Effect<boolean, RuntimeError>
  readonly ended: (instance: I) => Effect.Effect<Ended, RuntimeError>
  readonly stop: (instance: I, options: StopOptions) => Effect.Effect<void, RuntimeError>
  readonly adopt: (instance: I) => Effect.Effect<boolean, RuntimeError>
  readonly sweep: (launchId: string) => Effect.Effect<void, RuntimeError>
  readonly portHolder?: ((port: number) => Effect.Effect<string | undefined>) | undefined
  readonly lines: (instance: I) => Stream.Stream<string, RuntimeError>
  readonly tail: (instance: I, count: number) => Effect.Effect<ReadonlyArray<string>, RuntimeError>
}

/**
 * A runtime for the instances of one kind.
 *
 * @category models
 * @since 0.1.0
 */
export type RuntimeOf<Kind extends Instance["kind"]> = Runtime<Extract<Instance, { readonly kind: Kind }>>

/**
 * The runtimes of this host. Each can be missing; of a recipe that both can run, `prefer` is the one that is taken where nothing else
 * decides.
 *
 * @category services
 * @since 0.1.0
 */
export class Runtimes extends Context.Service<Runtimes, {
  readonly process?: RuntimeOf<"process"> | undefined
  readonly container?: RuntimeOf<"container"> | undefined
  readonly prefer: RuntimeKind
}>()("effect-units/engine/Runtimes") {}
