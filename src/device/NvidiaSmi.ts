/**
 * NVIDIA's GPUs, by way of the `nvidia-smi` program that comes with their driver.
 *
 * Exit codes and fields are those of the program's manual. It is started directly, never by a shell, and is given `LC_ALL=C`.
 *
 * @since 0.1.0
 */
import * as Config from "effect/Config"
import * as Context from "effect/Context"
import type * as Duration from "effect/Duration"
import * as Effect from "effect/Effect"
import * as Fiber from "effect/Fiber"
import * as Layer from "effect/Layer"
import * as Option from "effect/Option"
import * as PlatformError from "effect/PlatformError"
import * as ChildProcess from "effect/process/ChildProcess"
import * as ChildProcessSpawner from "effect/process/ChildProcessSpawner"
import * as Result from "effect/Result"
import * as Schema from "effect/Schema"
import * as Stream from "effect/Stream"
import * as gpuRows from "./internal/gpuRows.ts"

/**
 * The program is nowhere to be found: this host has no NVIDIA driver.
 *
 * @category errors
 * @since 0.1.0
 */
export class NotInstalled extends Schema.TaggedError<NotInstalled>("effect-units/device/NvidiaSmi/NotInstalled")(
  "NotInstalled",
  {}
) {
  readonly retryable = false
  override get message(): string {
    return "is not installed. Install the NVIDIA driver, or set NVIDIA_SMI to where the program is"
  }
}

/**
 * The program did not end in time, and was killed. A retry can help.
 *
 * @category errors
 * @since 0.1.0
 */
export class TimedOut extends Schema.TaggedError<TimedOut>("effect-units/device/NvidiaSmi/TimedOut")("TimedOut", {}) {
  readonly retryable = true
  override get message(): string {
    return "did not answer in time. Try again; where it stays so, look into the kernel's log for messages of the driver"
  }
}

/**
 * No GPU has this index, UUID or bus id (exit code 6).
 *
 * @category errors
 * @since 0.1.0
 */
export class NotFound extends Schema.TaggedError<NotFound>("effect-units/device/NvidiaSmi/NotFound")("NotFound", {}) {
  readonly retryable = false
  override get message(): string {
    return "found no such GPU"
  }
}

/**
 * The GPU does not do what it was asked for (exit code 3).
 *
 * @category errors
 * @since 0.1.0
 */
export class NotSupported extends Schema.TaggedError<NotSupported>("effect-units/device/NvidiaSmi/NotSupported")(
  "NotSupported",
  { detail: Schema.String }
) {
  readonly retryable = false
  override get message(): string {
    return `says that the GPU does not support this: ${this.detail}`
  }
}

/**
 * The user of this process may not do this (exit code 4).
 *
 * @category errors
 * @since 0.1.0
 */
export class NoPermission extends Schema.TaggedError<NoPermission>("effect-units/device/NvidiaSmi/NoPermission")(
  "NoPermission",
  { detail: Schema.String }
) {
  readonly retryable = false
  override get message(): string {
    return `was refused: ${this.detail}. Run as root`
  }
}

/**
 * The GPU has fallen off the bus (exit code 15).
 *
 * @category errors
 * @since 0.1.0
 */
export class Lost extends Schema.TaggedError<Lost>("effect-units/device/NvidiaSmi/Lost")("Lost", {
  detail: Schema.String
}) {
  readonly retryable = false
  override get message(): string {
    return `says that a GPU is lost: ${this.detail}. Restart the host to get it back`
  }
}

/**
 * Any other way to fail: the driver is not loaded (exit code 9), a library is missing (12), power cables are not attached (8).
 * `exit_code` is absent where the program could not be run to its end.
 *
 * @category errors
 * @since 0.1.0
 */
export class Failed extends Schema.TaggedError<Failed>("effect-units/device/NvidiaSmi/Failed")("Failed", {
  exit_code: Schema.optional(Schema.Int),
  detail: Schema.String
}) {
  readonly retryable = true
  override get message(): string {
    return this.exit_code === undefined
      ? `could not be run: ${this.detail}. Check the installation of the driver`
      : `ended with exit code ${this.exit_code}: ${this.detail}. Check that the driver is loaded and fits the program`
  }
}

/**
 * The program printed what it does not print by its manual. A retry can help, where it was interrupted.
 *
 * @category errors
 * @since 0.1.0
 */
export class Malformed extends Schema.TaggedError<Malformed>("effect-units/device/NvidiaSmi/Malformed")("Malformed", {
  detail: Schema.String
}) {
  readonly retryable = true
  override get message(): string {
    return `gave an output that cannot be read: ${this.detail}. Run it by hand to see what it prints`
  }
}

/**
 * The one failure of the program.
 *
 * @category errors
 * @since 0.1.0
 */
export class NvidiaSmiError extends Schema.TaggedError<NvidiaSmiError>("effect-units/device/NvidiaSmiError")(
  "NvidiaSmiError",
  {
    reason: Schema.Union([NotInstalled, TimedOut, NotFound, NotSupported, NoPermission, Lost, Failed, Malformed])
  }
) {
  override get message(): string {
    return `nvidia-smi ${this.reason.message}`
  }
}

/**
 * What the program tells of a GPU. Sizes are bytes, power is watts, temperatures are degrees Celsius, utilisation is percent; `null`
 * is what the card does not report, and memory that it shares with the processor.
 *
 * @category models
 * @since 0.1.0
 */
export interface Gpu {
  readonly index: number
  readonly uuid: string | undefined
  readonly busId: string | undefined
  readonly name: string
  readonly memoryTotal: number | null
  readonly memoryUsed: number | null
  readonly utilization: number | null
  readonly temperature: number | null
  readonly power: number | null
  readonly powerLimit: number | null
  readonly powerMin: number | null
  readonly powerMax: number | null
  /** Such as `8.9`; old drivers do not tell it. */
  readonly computeCapability: string | undefined
  /** Whether it is divided into instances. */
  readonly mig: boolean
  /** Why its clocks are reduced, as NVML's bits `nvmlClocksEventReason*`. */
  readonly slowdown: number
  /** Errors since the driver was loaded that ECC could not correct. */
  readonly eccErrors: number
  /** It has fallen off the bus: the driver knows of it, and nothing else. */
  readonly lost: boolean
}

/**
 * The program, one run a call.
 *
 * @category services
 * @since 0.1.0
 */
export class NvidiaSmi extends Context.Service<NvidiaSmi, {
  /** All GPUs, in the order of their indices. */
  readonly gpus: Effect.Effect<ReadonlyArray<Gpu>, NvidiaSmiError>
  /** The GPU of an index, UUID or bus id. */
  readonly gpu: (target: string) => Effect.Effect<Gpu, NvidiaSmiError>
  /**
   * Sets the limit of a GPU's power in watts, as root. It lasts until the driver is unloaded. Interrupted, the limit is the old or the
   * new one.
   */
  readonly setPowerLimit: (target: string, watts: number) => Effect.Effect<void, NvidiaSmiError>
}>()("effect-units/device/NvidiaSmi") {}

/**
 * Settings of the program.
 *
 * @category models
 * @since 0.1.0
 */
export interface Options {
  /**
   * Where the program is: paths, or names to be looked up in `PATH`; the first that is there is taken. Default: `nvidia-smi`, then
   * where drivers put it on Linux and WSL.
   */
  readonly command?: string | ReadonlyArray<string> | undefined
  /** How long one run may take, by the `Clock`. Default 10 seconds. */
  readonly timeout?: Duration.Input | undefined
}

const usualPlaces = [
  "nvidia-smi",
  "/usr/bin/nvidia-smi",
  "/usr/local/bin/nvidia-smi",
  "/opt/nvidia/bin/nvidia-smi",
  "/usr/lib/wsl/lib/nvidia-smi"
]

/** More than a thousand GPUs print. */
const maxOutput = "1 MiB"

/** How long a run that was given up is waited for: a program that hangs in the driver cannot be killed at all. */
const killedWithin = "3 seconds"

interface Ended {
  readonly exitCode: number
  readonly output: string
  readonly complaint: string
}

const fail = (reason: NvidiaSmiError["reason"]) => new NvidiaSmiError({ reason })

const firstLine = (text: string): string => text.trim().split("\n")[0]?.slice(0, 300) ?? ""

const failureOf = ({ complaint, exitCode, output }: Ended): NvidiaSmiError => {
  // Most messages are printed to the standard output.
  const detail = firstLine(output) || firstLine(complaint) || "it says nothing"
  switch (exitCode) {
    case 3:
      return fail(new NotSupported({ detail }))
    case 4:
      return fail(new NoPermission({ detail }))
    case 6:
      return fail(new NotFound())
    case 15:
      return fail(new Lost({ detail }))
    default:
      return fail(new Failed({ exit_code: exitCode, detail }))
  }
}

const isMissing = (error: PlatformError.PlatformError): boolean => error.reason._tag === "NotFound"

const make = Effect.fnUntraced(function*({ command = usualPlaces, timeout = "10 seconds" }: Options) {
  const spawner = yield* ChildProcessSpawner.ChildProcessSpawner
  const places = typeof command === "string" ? [command] : command

  const text = (stream: Stream.Stream<Uint8Array, PlatformError.PlatformError>) =>
    stream.pipe(
      Stream.limitBytes(maxOutput, () =>
        Stream.fail(PlatformError.systemError({
          module: "NvidiaSmi",
          method: "run",
          _tag: "InvalidData",
          description: `it prints more than ${maxOutput}`
        }))),
      Stream.decodeText(),
      Stream.mkString
    )

  const start = Effect.fnUntraced(function*(place: string, args: ReadonlyArray<string>) {
    const child = yield* spawner.spawn(ChildProcess.make(place, args, {
      env: { LC_ALL: "C" },
      extendEnv: true,
      stdin: "ignore",
      forceKillAfter: "1 second"
    }))
    const [output, complaint, exitCode] = yield* Effect.all(
      [text(child.stdout), text(child.stderr), child.exitCode],
      { concurrency: "unbounded" }
    )
    return { exitCode: Number(exitCode), output, complaint }
  }, Effect.scoped)

  const toEnd = (args: ReadonlyArray<string>): Effect.Effect<Ended, NvidiaSmiError> =>
    places.reduceRight<Effect.Effect<Ended, NvidiaSmiError>>(
      (next, place) =>
        Effect.catch(
          start(place, args),
          (error) => isMissing(error) ? next : fail(new Failed({ detail: error.reason.message }))
        ),
      fail(new NotInstalled())
    )

  /** Runs the program. Whoever waits gets away from a run that cannot be killed. */
  const run = Effect.fnUntraced(function*(...args: ReadonlyArray<string>) {
    const fiber = yield* Effect.forkDetach(toEnd(args))
    const giveUp = Effect.suspend(() => {
      fiber.interruptUnsafe()
      return Effect.timeoutOption(Effect.interruptible(Fiber.await(fiber)), killedWithin)
    })
    return yield* Fiber.join(fiber).pipe(
      Effect.timeoutOrElse({ duration: timeout, orElse: () => Effect.fail(fail(new TimedOut())) }),
      Effect.ensuring(giveUp)
    )
  })

  // What one run has learnt of the driver, the next ones know.
  let fields = gpuRows.allFields

  const query = Effect.fnUntraced(function*(...target: ReadonlyArray<string>) {
    for (;;) {
      const asked = fields
      const ended = yield* run(`--query-gpu=${asked.join(",")}`, "--format=csv,noheader,nounits", ...target)
      const { complaint, exitCode, output } = ended
      if (exitCode === 2) {
        const fewer = gpuRows.without(asked, `${output}\n${complaint}`)
        if (asked === gpuRows.minimalFields || fewer.join() === asked.join()) return yield* failureOf(ended)
        fields = fewer
        continue
      }
      // Without an index, that nothing was found is an answer. The rows of a driver that complains about one GPU are those of all
      // others; 14 is a damaged infoROM, whose GPU works.
      if (/^No devices were found/m.test(output) && target.length === 0) return []
      const gpus = gpuRows.parse(asked, output)
      const hasRows = exitCode === 0 || exitCode === 14 || exitCode === 15
      if (Result.isSuccess(gpus) && hasRows) return gpus.success
      if (Result.isSuccess(gpus) || (exitCode !== 0 && exitCode !== 14)) return yield* failureOf(ended)
      return yield* fail(new Malformed({ detail: gpus.failure }))
    }
  })

  return NvidiaSmi.of({
    gpus: query(),
    gpu: Effect.fnUntraced(function*(target) {
      const [gpu] = yield* query("-i", target)
      return gpu ?? (yield* fail(new NotFound()))
    }),
    setPowerLimit: Effect.fnUntraced(function*(target, watts) {
      const ended = yield* run("-i", target, "-pl", String(watts))
      if (ended.exitCode !== 0) return yield* failureOf(ended)
    })
  })
})

/**
 * Layer of the program, with settings from code.
 *
 * @category layers
 * @since 0.1.0
 */
export const layer = (
  options: Options = {}
): Layer.Layer<NvidiaSmi, never, ChildProcessSpawner.ChildProcessSpawner> => Layer.effect(NvidiaSmi, make(options))

/**
 * The same, with the place of the program from `Config`: `NVIDIA_SMI`, which may be missing or empty.
 *
 * @category layers
 * @since 0.1.0
 */
export const layerConfig = (
  options: Omit<Options, "command"> = {}
): Layer.Layer<NvidiaSmi, Config.ConfigError, ChildProcessSpawner.ChildProcessSpawner> =>
  Layer.effect(
    NvidiaSmi,
    Effect.flatMap(
      Config.option(Config.String("NVIDIA_SMI")),
      (command) => make({ ...options, command: Option.getOrUndefined(command)?.trim() || undefined })
    )
  )
