/**
 * Child processes that outlive the call that started them: engines, tunnels, helpers.
 *
 * A child leads a session and a process group of its own. It writes to a file, not to a pipe, so it goes on when the program that
 * started it ends, however that ends; the next one finds it by what was recorded of it (`Ref`), and ends it or takes it over. What
 * is recorded holds the boot, the process id and the time at which the process started, so that an id which the system has given to
 * another process since is never signalled.
 *
 * **Gotchas**
 *
 * POSIX only: children are started by `/bin/sh`, which sends their output to the file and then becomes the child. Beyond the life of
 * the program that started them, children can be recognised on Linux only; elsewhere they count as gone then.
 *
 * @since 0.1.0
 */
import * as Config from "effect/Config"
import * as Context from "effect/Context"
import * as Data from "effect/Data"
import * as Deferred from "effect/Deferred"
import * as Duration from "effect/Duration"
import * as Effect from "effect/Effect"
import * as Exit from "effect/Exit"
import * as FileSystem from "effect/FileSystem"
import * as Layer from "effect/Layer"
import * as Option from "effect/Option"
import * as Path from "effect/Path"
import type * as PlatformError from "effect/PlatformError"
import * as ChildProcess from "effect/process/ChildProcess"
import * as ChildProcessSpawner from "effect/process/ChildProcessSpawner"
import type * as Redacted from "effect/Redacted"
import * as Schema from "effect/Schema"
import * as Scope from "effect/Scope"
import * as Stream from "effect/Stream"
import * as Fs from "node:fs"
import { defaultBounds, LineRing } from "../internal/lineRing.ts"
import * as ProcessFamily from "../internal/processFamily.ts"
import * as ProcessIdentity from "../internal/processIdentity.ts"

/**
 * What is recorded of a child, to find it again.
 *
 * **Details**
 *
 * `identity` names the process beyond its id, on this machine and until the next boot; it is absent on systems that tell no such
 * thing. `output` is the absolute path of the file that it writes to.
 *
 * @category models
 * @since 0.1.0
 */
export const Ref = Schema.Struct({
  pid: Schema.Int,
  identity: Schema.optionalKey(Schema.String),
  output: Schema.NonEmptyString
})

/**
 * @category models
 * @since 0.1.0
 */
export type Ref = typeof Ref.Type

/**
 * How a child ended. `code` is its exit code, `signal` what killed it; both are absent where another program had started it, as the
 * system tells these to the parent only.
 *
 * @category models
 * @since 0.1.0
 */
export interface Exited {
  readonly code?: number | undefined
  readonly signal?: string | undefined
}

/**
 * There is no program of this name on the PATH. A retry helps once it is installed.
 *
 * @category errors
 * @since 0.1.0
 */
export class NotFound extends Schema.TaggedError<NotFound>("effect-units/backends/Supervisor/NotFound")("NotFound", {
  command: Schema.String
}) {
  override get message(): string {
    return `There is no program ${this.command} that this user may run. Install it, or put its folder on the PATH`
  }
}

/**
 * The system did not start the program.
 *
 * @category errors
 * @since 0.1.0
 */
export class SpawnFailed extends Schema.TaggedError<SpawnFailed>("effect-units/backends/Supervisor/SpawnFailed")(
  "SpawnFailed",
  { command: Schema.String, cause: Schema.Defect() }
) {
  override get message(): string {
    return `${this.command} could not be started${
      because(this.cause)
    }. Look at the limits of this user for processes and memory`
  }
}

/**
 * The file for a child's output could not be made or read.
 *
 * @category errors
 * @since 0.1.0
 */
export class OutputUnusable extends Schema.TaggedError<OutputUnusable>(
  "effect-units/backends/Supervisor/OutputUnusable"
)("OutputUnusable", { path: Schema.String, cause: Schema.Defect() }) {
  override get message(): string {
    return `The output file ${this.path} cannot be used${
      because(this.cause)
    }. Check its folder and the room on its disk`
  }
}

/**
 * Processes go on after `SIGKILL`: they hang in a system call, or belong to another user. A retry helps once that has passed.
 *
 * @category errors
 * @since 0.1.0
 */
export class Survived extends Schema.TaggedError<Survived>("effect-units/backends/Supervisor/Survived")("Survived", {
  pids: Schema.Array(Schema.Int)
}) {
  override get message(): string {
    return `Process ${
      this.pids.join(", ")
    } goes on after SIGKILL. It may hang in the system (state D in ps), or belong to another user: end it by hand`
  }
}

class Closed extends Data.TaggedError("Closed")<{ readonly message: string }> {}

const because = (cause: unknown): string => cause instanceof Error ? ` (${cause.message})` : ""

/**
 * What a child process could not do, or what could not be done to it. `reason` says why and what to do.
 *
 * @category errors
 * @since 0.1.0
 */
export class SupervisorError extends Schema.TaggedError<SupervisorError>(
  "effect-units/backends/Supervisor/SupervisorError"
)("SupervisorError", { reason: Schema.Union([NotFound, SpawnFailed, OutputUnusable, Survived]) }) {
  override readonly cause = this.reason
  override get message(): string {
    return this.reason.message
  }
}

const failure = (reason: SupervisorError["reason"]) => new SupervisorError({ reason })

/**
 * What to start.
 *
 * @category models
 * @since 0.1.0
 */
export interface Start {
  /**
   * Names the child among those of the same directory, also to `find` and `sweep` it when nothing else was recorded: letters,
   * digits, `-`, `_` and `.`. What an earlier one of this name wrote is overwritten.
   */
  readonly name: string
  /** A name on the PATH, or an absolute path. */
  readonly command: string
  readonly args: ReadonlyArray<string>
  /** Added to this program's own environment; `undefined` takes a variable away. Nothing of it is shown anywhere. */
  readonly env?: Readonly<Record<string, string | Redacted.Redacted | undefined>> | undefined
  /** Absolute path of the folder to run in. Default: that of this program. */
  readonly cwd?: string | undefined
}

/**
 * How to end a child: `signal` first (default `SIGTERM`), then, where it or what it started still runs after `grace` (default 10
 * seconds), `SIGKILL`. Without grace (0), `SIGKILL` at once.
 *
 * @category models
 * @since 0.1.0
 */
export interface Stop {
  readonly signal?: ChildProcess.Signal | undefined
  readonly grace?: Duration.Input | undefined
}

/**
 * Starts, watches and ends child processes.
 *
 * **Details**
 *
 * - `which` finds a program on the PATH as this user may run it, and gives its absolute path; fails with `NotFound`.
 * - `start` has started the program when it succeeds, whatever becomes of it; fails with `NotFound`, `SpawnFailed`, `OutputUnusable`.
 *   It cannot be interrupted half-way.
 * - `isRunning` asks the system, now.
 * - `exited` waits for the end of a child: one that was started here is noticed at once, another within a second.
 * - `stop` ends a child and all that it started, also what left its group, and succeeds once none of them runs; where none does, at
 *   once. Fails with `Survived`.
 * - `adopt` makes a child that an earlier program has left one's own: it is treated like one that was started here when this
 *   service is closed. Says whether it runs.
 * - `find` looks for a running child by its name, where what was recorded of it is lost.
 * - `sweep` ends all that runs under a name, at once, and removes its output. It succeeds where nothing runs.
 * - `lines` are those that a child writes, from the oldest that is kept; the stream ends after the child's last.
 * - `tail` are the last lines so far, those of a child that has ended as well.
 *
 * @category services
 * @since 0.1.0
 */
export class Supervisor extends Context.Service<Supervisor, {
  readonly which: (command: string, path?: string | undefined) => Effect.Effect<string, SupervisorError>
  readonly start: (options: Start) => Effect.Effect<Ref, SupervisorError>
  readonly isRunning: (ref: Ref) => Effect.Effect<boolean>
  readonly exited: (ref: Ref) => Effect.Effect<Exited>
  readonly stop: (ref: Ref, options?: Stop | undefined) => Effect.Effect<void, SupervisorError>
  readonly adopt: (ref: Ref) => Effect.Effect<boolean>
  readonly find: (name: string) => Effect.Effect<Ref | undefined>
  readonly sweep: (name: string) => Effect.Effect<void, SupervisorError>
  readonly lines: (ref: Ref) => Stream.Stream<string>
  readonly tail: (ref: Ref, count: number) => Effect.Effect<ReadonlyArray<string>>
}>()("effect-units/backends/Supervisor") {}

/**
 * Settings of the service.
 *
 * @category models
 * @since 0.1.0
 */
export interface Options {
  /** Absolute path of the folder for the children's output; it is made where it is missing. */
  readonly directory: string
  /**
   * What becomes of the children when the service is closed: `stop` (default) ends them, `leave` lets them run, for a later program
   * to `adopt`. After a crash of the program they run in both cases.
   */
  readonly onClose?: "stop" | "leave" | undefined
  /** How children are ended then. */
  readonly stop?: Stop | undefined
  /** Bytes after which an output file is emptied, its last lines kept in memory. Default 8 MiB. */
  readonly maxFileBytes?: number | undefined
}

/** How often a file is looked at where the system does not tell of changes, and a child of another program whether it runs. */
const lookInterval = "1 second"
/** How often the processes of a child that is ending are looked at. */
const pollInterval = "50 millis"
/** For what the system needs to take a process away after SIGKILL: memory to free, devices to close. */
const killPatience = Duration.seconds(10)
const defaultGrace = "10 seconds"

// `$0` is the file, the rest the program and its arguments: none of them is read as shell.
const script = `exec "$@" >>"$0" 2>&1`

/** A child that is watched. */
interface Watched {
  readonly ref: Ref
  readonly ring: LineRing
  readonly end: Deferred.Deferred<Exited>
  /** Of the fibers that read its output. */
  readonly readers: Scope.Closeable
  /** Set for children that were started here. */
  readonly handle: ChildProcessSpawner.ChildProcessHandle | undefined
  /** Whether it is this service's to end. */
  owned: boolean
  /** How far its file was read. */
  offset: number
  exited: Exited | undefined
  /** When it was last seen alive; see `ProcessFamily.now`. */
  seen: number | undefined
  changed: Deferred.Deferred<void>
}

/** Reads a file from an offset on, and gives the next one: 0 where the file was longer than it may be, and has been emptied. */
const read = (file: string, ring: LineRing, from: number, maxFileBytes: number): number => {
  let descriptor: number | undefined
  let offset = from
  try {
    descriptor = Fs.openSync(file, maxFileBytes === Infinity ? "r" : "r+")
    const { size } = Fs.fstatSync(descriptor)
    // Another program may have emptied it; and what was written while none was there to read it can be long.
    offset = Math.max(size < from ? 0 : from, size - defaultBounds.maxBytes)
    const buffer = new Uint8Array(64 * 1024)
    for (let length = -1; length !== 0; offset += length) {
      length = Fs.readSync(descriptor, buffer, 0, buffer.byteLength, offset)
      ring.push(buffer.subarray(0, length))
    }
    if (offset <= maxFileBytes) return offset
    Fs.ftruncateSync(descriptor)
    return 0
  } catch {
    return offset
  } finally {
    if (descriptor !== undefined) Fs.closeSync(descriptor)
  }
}

const signalName = (error: PlatformError.PlatformError): string | undefined =>
  /signal: '(\w+)'/.exec(error.cause instanceof Error ? error.cause.message : error.message)?.[1]

const aliveIdentity = ({ identity }: Ref): boolean =>
  identity !== undefined && ProcessIdentity.isAlive(identity) === true

const make = Effect.fnUntraced(function*(options: Options) {
  const fs = yield* FileSystem.FileSystem
  const paths = yield* Path.Path
  const spawner = yield* ChildProcessSpawner.ChildProcessSpawner
  const { maxFileBytes = 8 * 1024 * 1024, onClose = "stop" } = options
  const watched = new Map<string, Watched>()
  const ownPath = yield* Effect.orElseSucceed(Config.String("PATH"), () => "")
  // Whatever watches children goes on until they have been ended.
  const background = yield* Scope.make()

  const outputOf = (name: string): string => paths.join(options.directory, `${name}.log`)

  const isAlive = (one: Watched): boolean => {
    const alive = one.handle === undefined || one.ref.identity !== undefined
      ? aliveIdentity(one.ref)
      : one.exited === undefined
    if (alive) one.seen = ProcessFamily.now()
    return alive
  }

  /**
   * Reads what has been written since. It never fails: what cannot be read now may be so next time. It does so in one go, as what a
   * child wrote between the reading and the emptying of its file would be lost.
   */
  const drain = (one: Watched) =>
    Effect.sync(() => {
      const before = one.ring.count
      one.offset = read(one.ref.output, one.ring, one.offset, one.owned ? maxFileBytes : Infinity)
      if (one.ring.count > before) notify(one)
    })

  const notify = (one: Watched): void => {
    const { changed } = one
    one.changed = Deferred.makeUnsafe()
    Deferred.doneUnsafe(changed, Effect.void)
  }

  /** Takes note of the end of a child, once all that it wrote has been read. */
  const finish = Effect.fnUntraced(function*(one: Watched, exited: Exited) {
    yield* drain(one)
    if (one.exited !== undefined) return
    one.ring.end()
    one.exited = exited
    notify(one)
    yield* Deferred.succeed(one.end, exited)
    yield* Scope.close(one.readers, Exit.void)
  }, Effect.uninterruptible)

  const follow = (one: Watched, ready: Deferred.Deferred<void>) =>
    fs.watch(one.ref.output, { onReady: () => Deferred.doneUnsafe(ready, Effect.void) }).pipe(
      Stream.runForEach(() => drain(one)),
      // Where the system does not tell of changes, the file is looked at from time to time.
      Effect.ignore,
      Effect.ensuring(Deferred.succeed(ready, undefined))
    )

  const watch = Effect.fnUntraced(function*(
    ref: Ref,
    handle: ChildProcessSpawner.ChildProcessHandle | undefined
  ) {
    const readers = yield* Scope.fork(background)
    const one: Watched = {
      ref,
      ring: new LineRing(),
      end: Deferred.makeUnsafe(),
      readers,
      handle,
      owned: handle !== undefined,
      offset: 0,
      exited: undefined,
      seen: handle === undefined && !aliveIdentity(ref) ? undefined : ProcessFamily.now(),
      changed: Deferred.makeUnsafe()
    }
    watched.set(ref.output, one)
    const ready = yield* Deferred.make<void>()
    // At once: a fiber that is interrupted before it begins tells nobody.
    yield* Effect.forkIn(follow(one, ready), readers, { startImmediately: true })
    yield* Effect.forkIn(Effect.forever(Effect.delay(drain(one), lookInterval)), readers)
    yield* Effect.forkIn(
      handle === undefined
        ? Effect.gen(function*() {
          while (isAlive(one)) yield* Effect.sleep(lookInterval)
          yield* finish(one, {})
        })
        : handle.exitCode.pipe(
          Effect.match({ onFailure: (error) => ({ signal: signalName(error) }), onSuccess: (code) => ({ code }) }),
          Effect.flatMap((exited) => finish(one, exited))
        ),
      background
    )
    yield* Deferred.await(ready)
    yield* drain(one)
    return one
  })

  /** The record of a child that is watched here, or that is from now on. */
  const watching = Effect.fnUntraced(function*(ref: Ref) {
    const known = knownOf(ref)
    if (known !== undefined) return known
    return yield* watch(ref, undefined)
  }, Effect.uninterruptible)

  const knownOf = (ref: Ref): Watched | undefined => {
    const known = watched.get(ref.output)
    return known !== undefined && known.ref.pid === ref.pid && known.ref.identity === ref.identity ? known : undefined
  }

  const which = Effect.fnUntraced(function*(command: string, path: string = ownPath) {
    const missing = failure(new NotFound({ command }))
    const candidates = command.includes("/")
      ? [command]
      : path.split(":").filter((folder) => folder !== "").map((folder) => paths.join(folder, command))
    for (const candidate of candidates) {
      const isProgram = Effect.map(fs.stat(candidate), ({ mode, type }) => type === "File" && (mode & 0o111) !== 0)
      if (yield* Effect.orElseSucceed(isProgram, () => false)) return paths.resolve(candidate)
    }
    return yield* missing
  })

  let isClosed = false
  /** Nobody would watch or end what a start that outlives the supervisor leaves. */
  const whileOpen = Effect.suspend(() =>
    isClosed ? Effect.fail(new Closed({ message: "the scope of its supervisor is closed" })) : Effect.void
  )

  const start = Effect.fnUntraced(function*({ args, command, cwd, env = {}, name }: Start) {
    const PATH = env["PATH"]
    const program = yield* which(command, typeof PATH === "string" ? PATH : undefined)
    const output = outputOf(name)
    yield* Effect.mapError(
      Effect.andThen(
        fs.makeDirectory(options.directory, { recursive: true }),
        // What a program writes may be for its owner only.
        fs.writeFileString(output, "", { mode: 0o600 })
      ),
      (cause) => failure(new OutputUnusable({ path: output, cause }))
    )
    const handleScope = yield* Scope.make()
    return yield* Effect.gen(function*() {
      yield* whileOpen
      const handle = yield* spawner.spawn(ChildProcess.make("/bin/sh", ["-c", script, output, program, ...args], {
        env: { ...env, [ProcessFamily.markVariable]: output },
        extendEnv: true,
        cwd,
        stdin: "ignore",
        stdout: "ignore",
        stderr: "ignore",
        detached: true
      }))
      yield* whileOpen
      // It may outlive this program, and its scope does not end it: `stop` does, with all that it started.
      yield* Effect.asVoid(handle.unref)
      const identity = ProcessIdentity.of(handle.pid)
      const ref: Ref = { pid: handle.pid, output, ...(identity === undefined ? {} : { identity }) }
      const one = yield* watch(ref, handle)
      // What is left of a group whose leader has failed is ended at once, while its id cannot be another's.
      yield* Effect.forkIn(Effect.andThen(Deferred.await(one.end), Scope.close(handleScope, Exit.void)), background)
      return ref
    }).pipe(
      Scope.provide(handleScope),
      Effect.onError((cause) => Scope.close(handleScope, Exit.failCause(cause))),
      Effect.mapError((cause) => failure(new SpawnFailed({ command, cause })))
    )
  }, Effect.uninterruptible)

  /** What of a child runs now. */
  const members = (one: Watched | undefined, ref: Ref | undefined, mark: string): ReadonlyArray<ProcessFamily.Member> =>
    ProcessFamily.members({
      mark,
      seen: one?.seen,
      leader: ref?.identity === undefined ? undefined : { pid: ref.pid, identity: ref.identity }
    })

  const signal = (pid: number, name: ChildProcess.Signal): void => {
    try {
      process.kill(pid, name)
    } catch {
      // It has ended, or is not ours to end: what is left is looked at afterwards.
    }
  }

  /** Signals all members; in one go, so that no id can be given to another process in between. */
  const signalAll = (one: Watched, name: ChildProcess.Signal) =>
    Effect.sync(() => {
      const alive = isAlive(one)
      const rest = members(one, one.ref, one.ref.output)
      // A group is signalled at once: none of it can start another that is missed.
      if (alive) signal(-one.ref.pid, name)
      for (const { group, pid } of rest) {
        if (!alive || group !== one.ref.pid) signal(pid, name)
      }
    })

  const remaining = (one: Watched): ReadonlyArray<number> => {
    const rest = members(one, one.ref, one.ref.output).map(({ pid }) => pid)
    return rest.length === 0 && isAlive(one) ? [one.ref.pid] : rest
  }

  /** Waits until nothing of a child runs, with something to do for what runs without its leader. */
  const gone = Effect.fnUntraced(function*(one: Watched, leaderless: Effect.Effect<void>) {
    // The end of one's own child is told by the system.
    const noticed = one.handle === undefined ? Effect.never : Deferred.await(one.end)
    let led = isAlive(one)
    while (remaining(one).length > 0) {
      if (led && !isAlive(one)) {
        led = false
        yield* leaderless
      }
      yield* one.exited === undefined
        ? Effect.raceFirst(noticed, Effect.sleep(pollInterval))
        : Effect.sleep(pollInterval)
    }
    if (one.exited === undefined) yield* one.handle === undefined ? finish(one, {}) : noticed
  })

  /** Asks by a signal, and says whether nothing of a child runs any more before time is out. */
  const ask = (one: Watched, name: ChildProcess.Signal, patience: Duration.Duration) =>
    // A process that was just being made when the signal came may not have got it. While its leader runs, a second signal would
    // mean more haste to many programs; afterwards nobody else tells it.
    Effect.andThen(signalAll(one, name), gone(one, signalAll(one, name))).pipe(
      Effect.timeoutOption(patience),
      Effect.map(Option.isSome)
    )

  const end = Effect.fnUntraced(function*(one: Watched, { grace = defaultGrace, signal = "SIGTERM" }: Stop = {}) {
    const patience = Duration.fromInputUnsafe(grace)
    if (Duration.toMillis(patience) > 0 && (yield* ask(one, signal, patience))) return
    const again = Effect.forever(Effect.delay(signalAll(one, "SIGKILL"), pollInterval))
    if (!(yield* Effect.raceFirst(ask(one, "SIGKILL", killPatience), again))) {
      return yield* failure(new Survived({ pids: [...remaining(one)] }))
    }
  })

  const sweep = Effect.fnUntraced(function*(name: string) {
    const output = outputOf(name)
    const one = watched.get(output)
    if (one !== undefined && (one.exited === undefined || remaining(one).length > 0)) yield* end(one, { grace: 0 })
    const kill = Effect.sync(() => {
      const rest = members(undefined, undefined, output)
      for (const { pid } of rest) signal(pid, "SIGKILL")
      return rest.map(({ pid }) => pid)
    })
    const swept = Effect.gen(function*() {
      while ((yield* kill).length > 0) yield* Effect.sleep(pollInterval)
    })
    if (Option.isNone(yield* Effect.timeoutOption(swept, killPatience))) {
      return yield* failure(new Survived({ pids: yield* kill }))
    }
    watched.delete(output)
    yield* Effect.ignore(fs.remove(output, { force: true }))
  })

  yield* Effect.addFinalizer((exit) =>
    Effect.suspend(() => {
      isClosed = true
      return Effect.forEach(
        onClose === "leave" ? [] : [...watched.values()].filter((one) => one.owned),
        (one) =>
          Effect.catch(end(one, options.stop), (error) => Effect.logError("A child process was not ended", error)),
        { concurrency: "unbounded", discard: true }
      )
    }).pipe(Effect.andThen(Scope.close(background, exit)))
  )

  return Supervisor.of({
    which,
    start,
    isRunning: (ref) =>
      Effect.sync(() => {
        const known = knownOf(ref)
        return known === undefined ? aliveIdentity(ref) : isAlive(known)
      }),
    exited: (ref) => Effect.flatMap(watching(ref), (one) => Deferred.await(one.end)),
    stop: (ref, options) => Effect.flatMap(watching(ref), (one) => end(one, options)),
    adopt: (ref) =>
      Effect.suspend(() =>
        !aliveIdentity(ref) ? Effect.succeed(false) : Effect.map(watching(ref), (one) => {
          one.owned = true
          return true
        })
      ),
    find: (name) =>
      Effect.sync(() => {
        const output = outputOf(name)
        const leader = members(undefined, undefined, output).find(({ group, pid }) => group === pid)
        const identity = leader && ProcessIdentity.of(leader.pid)
        return leader === undefined || identity === undefined ? undefined : { pid: leader.pid, identity, output }
      }),
    sweep,
    lines: (ref) =>
      Stream.unwrap(Effect.map(watching(ref), (one) =>
        Stream.paginate(0, (from) =>
          Effect.gen(function*() {
            for (;;) {
              const { changed, exited } = one
              const lines = one.ring.since(from)
              if (lines.length > 0) return [lines, Option.some(one.ring.count)]
              if (exited !== undefined) return [[], Option.none()]
              yield* Deferred.await(changed)
            }
          })))),
    tail: Effect.fnUntraced(function*(ref, count) {
      const known = knownOf(ref)
      if (known !== undefined) {
        yield* drain(known)
        return known.ring.tail(count)
      }
      const ring = new LineRing()
      read(ref.output, ring, 0, Infinity)
      return ring.tail(count)
    })
  })
})

/**
 * Layer of the service. Closing it ends the children, or leaves them, as `onClose` says.
 *
 * @category layers
 * @since 0.1.0
 */
export const layer = (options: Options): Layer.Layer<
  Supervisor,
  never,
  ChildProcessSpawner.ChildProcessSpawner | FileSystem.FileSystem | Path.Path
> => Layer.effect(Supervisor, make(options))
