import { assert, describe, it } from "@effect/vitest"
import { Effect, Layer, Queue, Scope } from "effect"
import { TestClock } from "effect/testing"
import * as http from "node:http"
import * as path from "node:path"
import * as Engine from "../../src/engine/index.ts"
import * as Testing from "../../src/testing/index.ts"
import * as ChildProcess from "../fixtures/childProcess.ts"
import { registry } from "../fixtures/dockerImage.ts"
import * as DockerServer from "../fixtures/DockerServer.ts"
import { freePort } from "../fixtures/ownServer.ts"
import { withProgram } from "../servers.ts"
import { behave, noted, notes, passing, processes, root, runs, services, until, World } from "./world.ts"

const vllm = { name: "vllm", config: { model: "acme/tiny" } } as const

const install = (behaviour: Parameters<typeof behave>[1] = {}) =>
  Effect.andThen(behave("vllm", behaviour), Engine.install({ name: "vllm" }))

const statusOf = (name: string) => Effect.map(Engine.get({ name }), ({ status }) => status)

const stored = Effect.flatMap(Effect.service(Engine.EngineStore), (store) => store.get("vllm"))

/** The payloads of the domain events of a type, and whether they belong to an execution. */
const told = (type: string): Effect.Effect<ReadonlyArray<Record<string, unknown>>, never, Testing.TestEvents> =>
  Effect.map(
    Testing.TestEvents.use(({ domainEvents }) => domainEvents),
    (events) =>
      events.filter((event) => event.type === type).map(({ correlation_id, payload }) => ({
        ...(payload as Record<string, unknown>),
        correlated: correlation_id !== undefined
      }))
  )

/** One program after the other over the same folder: each is closed when it ends. */
const program = (folder: string, options: Partial<Engine.Options> = {}, docker?: string) => {
  const layer = services(folder, options, docker === undefined ? {} : { docker })
  return <A, E>(
    effect: Effect.Effect<
      A,
      E,
      Layer.Success<typeof layer> | Layer.Success<typeof Testing.layerTest> | Scope.Scope
    >
  ) =>
    Effect.gen(function*() {
      const scope = yield* Scope.make()
      const context = yield* passing(Layer.buildWithScope(layer, scope))
      const exit = yield* Effect.exit(Effect.provideContext(effect, context))
      yield* passing(Scope.close(scope, exit))
      return yield* exit
    })
}

/** A program of its own that starts vLLM. */
const starter = (folder: string) =>
  ChildProcess.start(
    "enginesProcess.ts",
    path.join(folder, "embedded"),
    path.join(folder, "elsewhere", "bin"),
    "vllm"
  )

/** Such a program, which is killed as soon as something was seen of it. */
const crash = Effect.fnUntraced(function*<E, R>(folder: string, when: Effect.Effect<unknown, E, R>) {
  const child = yield* starter(folder)
  yield* Queue.take(child.lines)
  yield* when
  yield* child.kill
})

describe("an engine that runs", () => {
  it.effect("is missed when it ends by itself, with all that it has started", () =>
    Effect.gen(function*() {
      const folder = yield* root
      yield* Effect.gen(function*() {
        yield* install({ dieAfter: { file: "die", code: 7 }, grandchild: true })
        yield* Engine.start(vllm)
        yield* noted(/grandchild$/)
        const { elsewhere } = yield* World
        yield* Effect.promise(() => import("node:fs/promises").then((fs) => fs.writeFile(`${elsewhere}/die`, "")))
        yield* passing(until(Effect.map(told("engine.error"), (errors) => errors.length > 0)))
        const [error] = yield* told("engine.error")
        assert.deepStrictEqual([error?.["error_code"], error?.["status"], error?.["correlated"]], [
          "00202",
          "error",
          false
        ])
        assert.include(String(error?.["error"]), "Its exit code is 7")
        const { process_id, status } = yield* Engine.get({ name: "vllm" })
        assert.deepStrictEqual([process_id, status], ["", "error"])
        assert.deepStrictEqual((yield* processes).filter(runs), [])
      }).pipe(program(folder))
    }).pipe(Effect.provide(Testing.layerTest)))

  it.effect("is asked for its health from time to time, and a change is told", () =>
    Effect.gen(function*() {
      const folder = yield* root
      yield* Effect.gen(function*() {
        yield* install()
        yield* Engine.start(vllm)
        const { launch } = yield* stored
        const pid = launch?.instance?.kind === "process" ? launch.instance.ref.pid : 0
        const ask = Effect.promise(() =>
          new Promise((resolve) => http.get(`http://127.0.0.1:${launch?.port}/health`, resolve).on("error", resolve))
        )
        yield* TestClock.adjust("10 seconds")
        yield* ask
        // It hangs: connections are taken, and nothing answers.
        process.kill(pid, "SIGSTOP")
        yield* passing(until(Effect.map(told("engine.health_changed"), (changes) => changes.length === 1)))
        process.kill(pid, "SIGCONT")
        yield* passing(until(Effect.map(told("engine.health_changed"), (changes) => changes.length === 2)))
        const changes = yield* told("engine.health_changed")
        assert.deepStrictEqual(changes.map((change) => [change["old_status"], change["new_status"]]), [
          ["healthy", "unhealthy"],
          ["unhealthy", "healthy"]
        ])
        assert.strictEqual(yield* statusOf("vllm"), "running")
      }).pipe(program(folder))
    }).pipe(Effect.provide(Testing.layerTest)))

  it.effect("is stopped together with the program, by default", () =>
    Effect.gen(function*() {
      const folder = yield* root
      const pid = yield* Effect.gen(function*() {
        yield* install()
        return Number((yield* Engine.start(vllm)).process_id)
      }).pipe(program(folder))
      assert.isFalse(runs(pid))
      assert.deepStrictEqual((yield* told("engine.stopped")).map((event) => [event["reason"], event["correlated"]]), [
        ["shutdown", true]
      ])
      assert.strictEqual(yield* program(folder)(statusOf("vllm")), "stopped")
    }).pipe(Effect.provide(Testing.layerTest)))

  it.effect("is left to the next program where that is asked for", () =>
    Effect.gen(function*() {
      const folder = yield* root
      const leave = program(folder, { onClose: "leave" })
      const { process_id } = yield* leave(Effect.andThen(install(), Engine.start(vllm)))
      assert.isTrue(runs(Number(process_id)))
      const engine = yield* leave(Engine.get({ name: "vllm" }))
      assert.deepStrictEqual([engine.status, engine.process_id, engine.models], ["running", process_id, ["tiny"]])
      yield* program(folder)(passing(Engine.stop({ name: "vllm" })))
      assert.isFalse(runs(Number(process_id)))
    }).pipe(Effect.provide(Testing.layerTest)))
})

describe("after a crash of the program", () => {
  it.effect("its engine goes on, and belongs to the next one", () =>
    Effect.gen(function*() {
      const folder = yield* root
      yield* program(folder)(install({ dieAfter: { file: "die", code: 7 } }))
      const running = Effect.map(statusOf("vllm"), (status) => status === "running")
      yield* crash(folder, program(folder, { onClose: "leave" })(passing(until(running))))
      const pid = yield* Effect.gen(function*() {
        const { process_id, status } = yield* Engine.get({ name: "vllm" })
        assert.strictEqual(status, "running")
        assert.isTrue(runs(Number(process_id)))
        assert.strictEqual((yield* Effect.flip(Engine.start(vllm)))._tag, "EngineAlreadyRunning")
        return Number(process_id)
      }).pipe(program(folder))
      assert.isFalse(runs(pid))
      assert.strictEqual(yield* program(folder)(statusOf("vllm")), "stopped")
    }).pipe(Effect.provide(Testing.layerTest)))

  it.effect("its engine is watched where that is asked for", () =>
    Effect.gen(function*() {
      const folder = yield* root
      yield* program(folder)(install())
      const running = Effect.map(statusOf("vllm"), (status) => status === "running")
      yield* crash(folder, program(folder, { onClose: "leave" })(passing(until(running))))
      yield* Effect.gen(function*() {
        const { watch } = yield* Engine.Engines
        yield* watch
        const { process_id } = yield* Engine.get({ name: "vllm" })
        process.kill(Number(process_id), "SIGKILL")
        yield* passing(until(Effect.map(told("engine.error"), (errors) => errors.length > 0)))
        assert.strictEqual((yield* told("engine.error"))[0]?.["error_code"], "00202")
      }).pipe(program(folder))
    }).pipe(Effect.provide(Testing.layerTest)))

  it.effect("what it was just starting is ended by the next one", () =>
    Effect.gen(function*() {
      const folder = yield* root
      yield* program(folder)(install({ readyAfter: "never", grandchild: true }))
      yield* crash(
        folder,
        Effect.provideService(noted(/grandchild$/), World, {
          directory: path.join(folder, "embedded"),
          elsewhere: path.join(folder, "elsewhere")
        })
      )
      yield* Effect.gen(function*() {
        const pids = yield* processes
        assert.deepStrictEqual([pids.length, pids.filter(runs).length], [2, 0])
      }).pipe(program(folder))
    }).pipe(Effect.provide(Testing.layerTest)))
})

describe("two programs on one register", () => {
  it.effect("start an engine once", () =>
    Effect.gen(function*() {
      const folder = yield* root
      yield* program(folder)(install())
      const programs = yield* Effect.all([starter(folder), starter(folder)])
      yield* Effect.forEach(programs, ({ lines }) => Queue.take(lines))
      const outcomes = yield* Effect.forEach(programs, ({ lines }) => Queue.take(lines))
      const [first, second = ""] = outcomes.toSorted()
      assert.match(first ?? "", /^\d+$/)
      assert.match(second, /runs already|is starting/)
      // Each sees the engine, and can end it, whoever has started it.
      yield* Effect.gen(function*() {
        assert.strictEqual((yield* notes).filter((line) => /^\d+ \d+$/.test(line)).length, 1)
        assert.strictEqual((yield* Engine.get({ name: "vllm" })).process_id, first)
        yield* passing(Engine.stop({ name: "vllm" }))
        assert.deepStrictEqual((yield* processes).filter(runs), [])
      }).pipe(program(folder))
    }).pipe(Effect.provide(Testing.layerTest)))
})

withProgram("busybox", "engines in containers", () => {
  /** Serves the files of its image, `/health` among them. */
  const boxed = (host: string, port: number) =>
    Engine.Recipe.make({
      // The test's time passes faster than that of a container.
      startTimeout: "1 day",
      container: {
        image: `${host}/busybox`,
        tag: "v1",
        tagOf: (version) => `v${version}`,
        args: (
          settings
        ) => ["sh", "-c", "trap 'exit 0' TERM; echo ready; httpd -f -p $0 -h www & wait", String(settings.port)],
        port,
        modelMount: "/models"
      }
    })

  const setup = Effect.gen(function*() {
    const folder = yield* root
    const { address } = yield* DockerServer.make()
    const recipe = boxed(yield* registry(), yield* freePort)
    return program(folder, { recipes: { boxed: recipe } }, address)
  })

  it.effect("are pulled, started, reached, and stopped without a trace", () =>
    Effect.gen(function*() {
      const over = yield* setup
      yield* Effect.gen(function*() {
        const port = yield* freePort
        const start = Engine.start({ name: "boxed", config: { port } })
        const { process_id, status } = yield* passing(start)
        assert.strictEqual(status, "running")
        assert.match(process_id, /^[0-9a-f]{64}$/)
        const phases = (yield* told("engine.start_progress")).map(({ phase }) => phase)
        assert.strictEqual(phases[0], "pulling")
        assert.deepStrictEqual(phases.slice(-3), ["starting", "loading", "ready"])
        assert.strictEqual((yield* Effect.promise(() => fetch(`http://127.0.0.1:${port}/health`))).status, 200)
        const restarted = yield* passing(Engine.restart({ name: "boxed" }))
        assert.notStrictEqual(restarted.process_id, process_id)
        yield* passing(Engine.stop({ name: "boxed" }))
        assert.strictEqual(yield* statusOf("boxed"), "stopped")
        // It is there now, and not pulled again.
        const pulls = (yield* told("engine.start_progress")).filter(({ phase }) => phase === "pulling").length
        yield* passing(start)
        assert.strictEqual(
          (yield* told("engine.start_progress")).filter(({ phase }) => phase === "pulling").length,
          pulls
        )
      }).pipe(over)
      assert.strictEqual(yield* over(statusOf("boxed")), "stopped")
    }).pipe(Effect.provide(Testing.layerTest)))
})
