import * as NodeServices from "@effect/platform-node/NodeServices"
import { assert, describe, it } from "@effect/vitest"
import { Context, Effect, Exit, Fiber, Layer, Queue, Redacted, Scope, Stream } from "effect"
import { TestClock } from "effect/testing"
import * as fs from "node:fs"
import * as os from "node:os"
import * as path from "node:path"
import * as Supervisor from "../../src/backends/Supervisor.ts"
import * as ProcessIdentity from "../../src/internal/processIdentity.ts"
import * as ChildProcess from "../fixtures/childProcess.ts"

class Folder extends Context.Service<Folder, { readonly root: string }>()("test/Folder") {}

const folder = Layer.effect(
  Folder,
  Effect.map(
    Effect.acquireRelease(
      Effect.sync(() => fs.mkdtempSync(path.join(os.tmpdir(), "supervisor-"))),
      (root) => Effect.sync(() => fs.rmSync(root, { recursive: true, force: true }))
    ),
    (root) => ({ root })
  )
)

const supervised = (options: Partial<Supervisor.Options> = {}) =>
  Layer.unwrap(
    Effect.map(Folder, ({ root }) => Supervisor.layer({ directory: path.join(root, "output"), ...options }))
  ).pipe(Layer.provide(NodeServices.layer))

/** A shell script as a child. */
const sh = (script: string, options: Partial<Supervisor.Start> = {}) =>
  Supervisor.Supervisor.use(({ start }) => start({ name: "child", command: "sh", args: ["-c", script], ...options }))

/** The first lines of a child, as soon as they are there. */
const firstLines = (ref: Supervisor.Ref, count: number) =>
  Supervisor.Supervisor.use(({ lines }) => Stream.runCollect(Stream.take(lines(ref), count)))

/** Whether a process runs, as the system says. */
const runs = (pid: number): boolean => {
  const stat = ProcessIdentity.stat(String(pid))
  return stat !== undefined && ProcessIdentity.runs(stat)
}

const turn = Effect.promise(() => new Promise((resolve) => setImmediate(resolve)))

const until = Effect.fnUntraced(function*(condition: () => boolean) {
  while (!condition()) yield* turn
})

/** Lets time pass for as long as an effect runs. */
const passing = <A, E, R>(effect: Effect.Effect<A, E, R>) =>
  Effect.raceFirst(effect, Effect.forever(Effect.andThen(turn, TestClock.adjust("50 millis"))))

/** Runs an effect over the service, and lets time pass while that is closed. */
const over =
  (options: Partial<Supervisor.Options> = {}) =>
  <A, E>(effect: Effect.Effect<A, E, Supervisor.Supervisor | Folder | Scope.Scope>) =>
    Effect.gen(function*() {
      const scope = yield* Scope.make()
      const context = yield* Layer.buildWithScope(Layer.provideMerge(supervised(options), folder), scope)
      const exit = yield* Effect.exit(Effect.provideContext(effect, context))
      yield* passing(Scope.close(scope, exit))
      return yield* exit
    })

/** Starts a shell in the background of a child, and gives its pid by the child's first line. */
const withGrandchild = `sh -c 'trap "" TERM INT; echo $$; while :; do sleep 30 & wait; done' & wait`

describe("Supervisor", () => {
  it.effect("runs a program with its arguments as they are", () =>
    Effect.gen(function*() {
      const odd = ["a b", "$(touch x)", "'", "", "*", "-n"]
      const { exited, lines, start } = yield* Supervisor.Supervisor
      const ref = yield* start({ name: "child", command: "printf", args: ["<%s>\\n", ...odd] })
      assert.deepStrictEqual(yield* Stream.runCollect(lines(ref)), odd.map((text) => `<${text}>`))
      assert.deepStrictEqual(yield* exited(ref), { code: 0 })
    }).pipe(over()))

  it.effect("gives a child a group of its own, no input, and both its outputs in their order", () =>
    Effect.gen(function*() {
      const ref = yield* sh("read line || echo none; echo error >&2; echo last; exec sleep 30")
      assert.deepStrictEqual(yield* firstLines(ref, 3), ["none", "error", "last"])
      const stat = ProcessIdentity.stat(String(ref.pid))
      assert.deepStrictEqual([stat?.group, stat?.session], [ref.pid, ref.pid])
    }).pipe(over()))

  it.effect("adds to the environment, and takes away from it", () =>
    Effect.gen(function*() {
      const ref = yield* sh(`echo "$ADDED \${HOME-none} \${PATH:+path}"`, {
        env: { ADDED: Redacted.make("added"), HOME: undefined }
      })
      assert.deepStrictEqual(yield* firstLines(ref, 1), ["added none path"])
    }).pipe(over()))

  it.effect("runs in a folder", () =>
    Effect.gen(function*() {
      const { root } = yield* Folder
      const ref = yield* sh("pwd -P", { cwd: root })
      assert.deepStrictEqual(yield* firstLines(ref, 1), [fs.realpathSync(root)])
    }).pipe(over()))

  it.effect("notices the end of a child at once, and how it ended", () =>
    Effect.gen(function*() {
      const { exited, isRunning, tail } = yield* Supervisor.Supervisor
      const failed = yield* sh("echo why; printf last; exit 3")
      assert.deepStrictEqual(yield* exited(failed), { code: 3 })
      assert.isFalse(yield* isRunning(failed))
      assert.deepStrictEqual(yield* tail(failed, 5), ["why", "last"])
      const killed = yield* sh("kill -9 $$", { name: "killed" })
      assert.deepStrictEqual(yield* exited(killed), { signal: "SIGKILL" })
    }).pipe(over()))

  it.effect("says which program is missing, and does not run what is no program", () =>
    Effect.gen(function*() {
      const { root } = yield* Folder
      const { start, which } = yield* Supervisor.Supervisor
      fs.writeFileSync(path.join(root, "text"), "no program", { mode: 0o644 })
      const missing = (command: string) =>
        new Supervisor.SupervisorError({ reason: new Supervisor.NotFound({ command }) })
      assert.deepStrictEqual(
        yield* Effect.exit(start({ name: "child", command: "no-such-program", args: [] })),
        Exit.fail(missing("no-such-program"))
      )
      assert.deepStrictEqual(yield* Effect.exit(which("text", root)), Exit.fail(missing("text")))
      fs.chmodSync(path.join(root, "text"), 0o755)
      assert.strictEqual(yield* which("text", `/nowhere:${root}`), path.join(root, "text"))
      assert.strictEqual(yield* which(path.join(root, "text")), path.join(root, "text"))
    }).pipe(over()))

  it.effect("starts nothing once it is closed, and says so", () =>
    Effect.gen(function*() {
      const scope = yield* Scope.make()
      const context = yield* Layer.buildWithScope(Layer.provideMerge(supervised(), folder), scope)
      const { root } = Context.get(context, Folder)
      yield* passing(Scope.close(scope, Exit.void))
      fs.mkdirSync(root)
      yield* Effect.addFinalizer(() => Effect.sync(() => fs.rmSync(root, { recursive: true })))
      const error = yield* Effect.flip(Effect.provideContext(sh(`touch ${root}/started`), context))
      assert.strictEqual(error.reason._tag, "SpawnFailed")
      assert.include(error.message, "the scope of its supervisor is closed")
      assert.isFalse(fs.existsSync(path.join(root, "started")))
    }))

  it.effect("says why no output can be kept", () =>
    Effect.gen(function*() {
      const { root } = yield* Folder
      fs.writeFileSync(path.join(root, "output"), "")
      const error = yield* Effect.flip(sh("true"))
      assert.strictEqual(error.reason._tag, "OutputUnusable")
      assert.include(error.message, path.join(root, "output"))
    }).pipe(over()))

  describe("stop", () => {
    it.effect("lets a child end by itself", () =>
      Effect.gen(function*() {
        const { exited, stop, tail } = yield* Supervisor.Supervisor
        const ref = yield* sh(`trap 'echo bye; exit 7' INT; echo ready; while :; do sleep 30 & wait; done`)
        yield* firstLines(ref, 1)
        yield* passing(stop(ref, { signal: "SIGINT", grace: "1 hour" }))
        assert.deepStrictEqual(yield* exited(ref), { code: 7 })
        assert.deepStrictEqual(yield* tail(ref, 5), ["ready", "bye"])
      }).pipe(over()))

    it.effect("kills a child that does not listen, once its grace has passed", () =>
      Effect.gen(function*() {
        const { exited, isRunning, stop } = yield* Supervisor.Supervisor
        const ref = yield* sh(`trap '' TERM; echo ready; while :; do sleep 30; done`)
        yield* firstLines(ref, 1)
        const stopping = yield* Effect.forkChild(stop(ref, { grace: "1 second" }))
        for (let tenth = 0; tenth < 9; tenth++) yield* Effect.andThen(TestClock.adjust("100 millis"), turn)
        assert.isTrue(yield* isRunning(ref))
        yield* passing(Fiber.join(stopping))
        assert.deepStrictEqual(yield* exited(ref), { signal: "SIGKILL" })
      }).pipe(over()))

    it.effect("kills at once without grace", () =>
      Effect.gen(function*() {
        const { exited, stop } = yield* Supervisor.Supervisor
        const ref = yield* sh(`trap '' TERM; echo ready; while :; do sleep 30; done`)
        yield* firstLines(ref, 1)
        yield* passing(stop(ref, { grace: 0 }))
        assert.deepStrictEqual(yield* exited(ref), { signal: "SIGKILL" })
      }).pipe(over()))

    it.effect("ends what a child has started, too", () =>
      Effect.gen(function*() {
        const { stop } = yield* Supervisor.Supervisor
        const ref = yield* sh(withGrandchild)
        const [pid] = yield* firstLines(ref, 1)
        yield* passing(stop(ref, { grace: "1 second" }))
        assert.deepStrictEqual([runs(ref.pid), runs(Number(pid))], [false, false])
      }).pipe(over()))

    it.effect("ends what has left the child's group, and what has wiped its environment", () =>
      Effect.gen(function*() {
        const { stop } = yield* Supervisor.Supervisor
        const ref = yield* sh(
          `setsid sh -c 'echo left $$; exec sleep 30' & env -i sh -c 'echo wiped $$; exec sleep 30' & wait`
        )
        const pids = (yield* firstLines(ref, 2)).map((line) => Number(line.split(" ")[1]))
        assert.deepStrictEqual(pids.map(runs), [true, true])
        yield* passing(stop(ref))
        assert.deepStrictEqual(pids.map(runs), [false, false])
      }).pipe(over()))

    it.effect("ends what a child has left behind", () =>
      Effect.gen(function*() {
        const { exited, stop } = yield* Supervisor.Supervisor
        const ref = yield* sh(`{ sh -c 'echo $$; exec sleep 30' & } | { read pid; echo $pid; }; exit 0`)
        const [pid] = yield* firstLines(ref, 1)
        yield* exited(ref)
        assert.isTrue(runs(Number(pid)))
        yield* passing(stop(ref))
        assert.isFalse(runs(Number(pid)))
      }).pipe(over()))

    it.effect("succeeds where nothing runs any more", () =>
      Effect.gen(function*() {
        const { exited, stop } = yield* Supervisor.Supervisor
        const ref = yield* sh("true")
        yield* exited(ref)
        yield* stop(ref)
      }).pipe(over()))

    it.effect("never touches a process that has got the id of another", () =>
      Effect.gen(function*() {
        const { isRunning, stop } = yield* Supervisor.Supervisor
        const ref = yield* sh("echo ready; exec sleep 30")
        yield* firstLines(ref, 1)
        // As recorded of a process that had the same id, and started an hour earlier.
        const [ticks = ""] = ref.identity!.split(" ").slice(-1)
        const earlier = { ...ref, identity: ref.identity!.replace(ticks, String(Number(ticks) - 1)), output: "/none" }
        assert.isFalse(yield* isRunning(earlier))
        yield* passing(stop(earlier))
        assert.isTrue(yield* isRunning(ref))
        const otherBoot = { ...ref, identity: `another-boot pid:[1] ${ref.pid} ${ticks}`, output: "/none" }
        assert.isFalse(yield* isRunning(otherBoot))
        yield* passing(stop(otherBoot))
        assert.isTrue(yield* isRunning(ref))
      }).pipe(over()))
  })

  describe("output", () => {
    it.effect("is followed as it comes", () =>
      Effect.gen(function*() {
        const { lines } = yield* Supervisor.Supervisor
        const ref = yield* sh(`mkfifo gate; echo one; cat gate; echo three`, { cwd: (yield* Folder).root })
        const seen = yield* Queue.unbounded<string>()
        yield* Effect.forkChild(Stream.runForEach(lines(ref), (line) => Queue.offer(seen, line)))
        assert.strictEqual(yield* Queue.take(seen), "one")
        fs.writeFileSync(path.join((yield* Folder).root, "gate"), "two\n")
        assert.deepStrictEqual([yield* Queue.take(seen), yield* Queue.take(seen)], ["two", "three"])
      }).pipe(over()))

    it.effect("stays bounded on disk, its last lines kept", () =>
      Effect.gen(function*() {
        const { exited, tail } = yield* Supervisor.Supervisor
        const ref = yield* sh(
          `i=0; while [ $i -lt 2000 ]; do echo "line $i, long enough for a small file"; i=$((i+1)); done`
        )
        yield* exited(ref)
        assert.isBelow(fs.statSync(ref.output).size, 20_000)
        // A line that comes in the moment in which the file is emptied is lost.
        const numbers = (yield* tail(ref, 5000)).map((line) => Number(/^line (\d+),/.exec(line)?.[1]))
        assert.isAbove(numbers.length, 1000)
        assert.deepStrictEqual(numbers, numbers.toSorted((a, b) => a - b))
      }).pipe(over({ maxFileBytes: 10_000 })))

    it.effect("is for its owner only", () =>
      Effect.gen(function*() {
        const ref = yield* sh("true")
        assert.strictEqual(fs.statSync(ref.output).mode & 0o777, 0o600)
      }).pipe(over()))
  })

  describe("on close", () => {
    const during = Effect.fnUntraced(function*(options: Partial<Supervisor.Options>) {
      const scope = yield* Scope.make()
      const context = yield* Layer.buildWithScope(supervised(options), scope)
      const ref = yield* Effect.provideContext(
        Effect.tap(sh(withGrandchild), (ref) => firstLines(ref, 1)),
        context
      )
      const [pid] = yield* Effect.provideContext(firstLines(ref, 1), context)
      yield* passing(Scope.close(scope, Exit.void))
      return [ref, Number(pid)] as const
    })

    it.effect("ends its children, with all that they started", () =>
      Effect.gen(function*() {
        const [ref, pid] = yield* during({})
        assert.deepStrictEqual([runs(ref.pid), runs(pid)], [false, false])
      }).pipe(Effect.provide(folder)))

    it.effect("leaves its children, for the next one to adopt, follow and end", () =>
      Effect.gen(function*() {
        const [ref, pid] = yield* during({ onClose: "leave" })
        assert.deepStrictEqual([runs(ref.pid), runs(pid)], [true, true])
        const next = Effect.gen(function*() {
          const { adopt, isRunning, tail } = yield* Supervisor.Supervisor
          assert.isTrue(yield* adopt(ref))
          assert.isTrue(yield* isRunning(ref))
          assert.deepStrictEqual(yield* tail(ref, 1), [String(pid)])
        })
        yield* passing(Effect.provide(next, supervised()))
        assert.deepStrictEqual([runs(ref.pid), runs(pid)], [false, false])
        yield* Effect.gen(function*() {
          const { adopt, exited } = yield* Supervisor.Supervisor
          assert.isFalse(yield* adopt(ref))
          assert.deepStrictEqual(yield* exited(ref), {})
        }).pipe(Effect.provide(supervised()))
      }).pipe(Effect.provide(folder)))

    it.effect("does not end what it has only looked at", () =>
      Effect.gen(function*() {
        const [ref] = yield* during({ onClose: "leave" })
        const other = Effect.asVoid(firstLines(ref, 1))
        yield* passing(Effect.provide(other, supervised()))
        assert.isTrue(runs(ref.pid))
        yield* passing(
          Effect.provide(Supervisor.Supervisor.use(({ stop }) => stop(ref, { grace: 0 })), supervised())
        )
        assert.isFalse(runs(ref.pid))
      }).pipe(Effect.provide(folder)))
  })

  describe("after a crash of the program", () => {
    const crashed = Effect.fnUntraced(function*(script: string) {
      const directory = path.join((yield* Folder).root, "output")
      const program = yield* ChildProcess.start("supervisedProcess.ts", directory, "sh", "-c", script)
      const ref: Supervisor.Ref = JSON.parse(yield* Queue.take(program.lines))
      yield* program.kill
      return ref
    })

    it.effect("its child goes on, and is found, followed and ended by the next one", () =>
      Effect.gen(function*() {
        const { root } = yield* Folder
        const ref = yield* crashed(`mkfifo ${root}/gate; echo one; cat ${root}/gate; echo three; exec sleep 30`)
        const { exited, find, lines, stop } = yield* Supervisor.Supervisor
        assert.isTrue(runs(ref.pid))
        yield* until(() => fs.existsSync(`${root}/gate`))
        fs.writeFileSync(`${root}/gate`, "two\n")
        assert.deepStrictEqual(yield* Stream.runCollect(Stream.take(lines(ref), 3)), ["one", "two", "three"])
        assert.deepStrictEqual(yield* find("child"), ref)
        assert.isUndefined(yield* find("other"))
        const noticed = yield* Effect.forkChild(exited(ref))
        yield* passing(stop(ref, { grace: "1 minute" }))
        assert.deepStrictEqual(yield* passing(Fiber.join(noticed)), {})
        assert.isFalse(runs(ref.pid))
        assert.isUndefined(yield* find("child"))
      }).pipe(over()))

    it.effect("what is left of it is swept by its name, though its leader is gone", () =>
      Effect.gen(function*() {
        const ref = yield* crashed(`setsid sh -c 'echo $$; exec sleep 30' & exec sleep 30`)
        const { sweep } = yield* Supervisor.Supervisor
        const [pid] = yield* firstLines(ref, 1)
        process.kill(ref.pid, "SIGKILL")
        yield* until(() => !runs(ref.pid))
        assert.isTrue(runs(Number(pid)))
        yield* passing(sweep("child"))
        assert.isFalse(runs(Number(pid)))
        assert.isFalse(fs.existsSync(ref.output))
        yield* sweep("child")
      }).pipe(over()))
  })
})
