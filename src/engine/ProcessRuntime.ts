/**
 * Engines as child processes of this host.
 *
 * @since 0.1.0
 */
import * as Duration from "effect/Duration"
import * as Effect from "effect/Effect"
import * as ChildProcess from "effect/process/ChildProcess"
import * as ChildProcessSpawner from "effect/process/ChildProcessSpawner"
import * as Stream from "effect/Stream"
import { Supervisor, type SupervisorError } from "../backends/Supervisor.ts"
import { mask, secretsOf } from "./internal/masking.ts"
import type { Env, ProcessPart, Recipe, Settings } from "./Recipe.ts"
import { type Launch, RuntimeError, type RuntimeOf } from "./Runtime.ts"

/** For a program that says its version; the first import of a large Python package takes its time. */
const probeTimeout = "1 minute"

const failed = ({ message, reason }: SupervisorError): RuntimeError =>
  new RuntimeError({
    reason: reason._tag === "NotFound" ? "Missing" : reason._tag === "Survived" ? "Survived" : "Refused",
    detail: message,
    retryable: reason._tag === "SpawnFailed",
    cause: reason
  })

/** The first thing in a text that looks like a version: `vllm 0.6.3.post1` and `ollama version is 0.5.1`. */
const versionIn = (text: string): string => /\d+(?:\.\d+)+[0-9A-Za-z.+-]*/.exec(text)?.[0] ?? ""

const isVersion = (found: string, wanted: string): boolean => found === wanted.replace(/^v(?=\d)/, "")

const settingsOf = ({ config, gpu, host, modelName, modelPath, port, servedName }: Launch): Settings => ({
  host,
  port,
  model: modelPath ?? modelName,
  servedName,
  gpu,
  config
})

const envOf = (part: ProcessPart, settings: Settings): Env => part.env?.(settings) ?? {}

/**
 * Builds the runtime over the supervisor of child processes. Secrets of a recipe's environment are taken out of what a child writes.
 *
 * **Details**
 *
 * A program is found on the PATH and asked for its version. There is no way to fetch one that would suit every program, so `install`
 * fails with `Missing` where it is not there in the version asked for, and says how to get it.
 *
 * @category constructors
 * @since 0.1.0
 */
export const make: Effect.Effect<
  RuntimeOf<"process">,
  never,
  Supervisor | ChildProcessSpawner.ChildProcessSpawner
> = Effect.gen(function*() {
  const supervisor = yield* Supervisor
  const spawner = yield* ChildProcessSpawner.ChildProcessSpawner
  /** What to take out of the output of which child, by its output file. */
  const secrets = new Map<string, ReadonlyArray<string>>()

  /** What a program says of its version; `undefined` where it does not run. */
  const probe = Effect.fnUntraced(function*(part: ProcessPart, program: string) {
    if (part.probe === undefined) return ""
    const command = ChildProcess.make(program, part.probe, { stdin: "ignore", forceKillAfter: "1 second" })
    return yield* Effect.scoped(Effect.gen(function*() {
      const handle = yield* spawner.spawn(command)
      const text = yield* Stream.mkString(Stream.decodeText(handle.all))
      return (yield* handle.exitCode) === 0 ? versionIn(text) : undefined
    })).pipe(
      Effect.timeout(probeTimeout),
      Effect.orElseSucceed(() => undefined)
    )
  })

  const find = Effect.fnUntraced(function*({ process: part }: Recipe) {
    if (part === undefined) return undefined
    const path = yield* Effect.orElseSucceed(supervisor.which(part.command), () => undefined)
    if (path === undefined) return undefined
    const version = yield* probe(part, path)
    return version === undefined ? undefined : { path, version }
  })

  const locate: RuntimeOf<"process">["locate"] = (recipe, version) =>
    Effect.map(
      find(recipe),
      (found) => found !== undefined && (version === undefined || isVersion(found.version, version)) ? found : undefined
    )

  return {
    locate,
    install: Effect.fnUntraced(function*(recipe, { version }) {
      const found = yield* find(recipe)
      if (found !== undefined && (version === undefined || isVersion(found.version, version))) return found
      const { process: part, type } = recipe
      const detail = part === undefined
        ? `${type} cannot be run as a program. Install Docker to run it as a container`
        : found === undefined
        ? `${part.command} is not on the PATH, or does not run. To have it, ${part.howToInstall(version)}`
        : `${found.path} is version ${found.version || "unknown"}, not ${version}. To have that, ${
          part.howToInstall(version)
        }`
      return yield* new RuntimeError({ reason: "Missing", detail, retryable: false })
    }),
    start: Effect.fnUntraced(function*(launch) {
      const { process: part, type } = launch.recipe
      if (part === undefined) {
        return yield* new RuntimeError({
          reason: "Refused",
          detail: `${type} cannot be run as a program`,
          retryable: false
        })
      }
      const settings = settingsOf(launch)
      const env = envOf(part, settings)
      const ref = yield* Effect.mapError(
        supervisor.start({ name: launch.id, command: launch.path, args: part.args(settings), env, cwd: part.cwd }),
        failed
      )
      secrets.set(ref.output, secretsOf(env))
      return { kind: "process", ref }
    }),
    isRunning: ({ ref }) => supervisor.isRunning(ref),
    ended: ({ ref }) => supervisor.exited(ref),
    stop: ({ ref }, { force, grace, signal }) =>
      Effect.mapError(supervisor.stop(ref, { signal, grace: force ? Duration.zero : grace }), failed),
    adopt: ({ ref }) => supervisor.adopt(ref),
    sweep: (launchId) => Effect.mapError(supervisor.sweep(launchId), failed),
    lines: ({ ref }) => Stream.map(supervisor.lines(ref), (line) => mask(secrets.get(ref.output), line)),
    tail: ({ ref }, count) =>
      Effect.map(supervisor.tail(ref, count), (lines) => lines.map((line) => mask(secrets.get(ref.output), line)))
  }
})
