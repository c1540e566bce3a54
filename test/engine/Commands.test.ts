import { assert, describe, it } from "@effect/vitest"
import { Effect, Exit, Fiber, Layer, Schema } from "effect"
import { TestClock } from "effect/testing"
import { once } from "node:events"
import * as fs from "node:fs"
import * as http from "node:http"
import * as net from "node:net"
import * as path from "node:path"
import { EngineConfig } from "../../src/engine/Engine.ts"
import * as Engine from "../../src/engine/index.ts"
import * as Model from "../../src/model/index.ts"
import * as Testing from "../../src/testing/index.ts"
import { freePort } from "../fixtures/ownServer.ts"
import * as world from "./world.ts"
import { behave, noted, notes, passing, processes, runs, secret, signal, until, World } from "./world.ts"

const layer = Layer.merge(world.layer, Testing.layerTest)

const vllm = { name: "vllm", config: { model: "acme/tiny" } } as const

/** vLLM on the PATH and in the register, behaving like this. */
const installed = (behaviour: Parameters<typeof behave>[1] = {}) =>
  Effect.andThen(behave("vllm", behaviour), Engine.install({ name: "vllm" }))

/** Why a start fails, with its message. */
const reasonOf = Effect.fnUntraced(function*(input: Parameters<typeof Engine.start>[0] = vllm) {
  const error = yield* Effect.flip(Engine.start(input))
  assert.instanceOf(error, Engine.EngineStartFailed)
  return [error.reason, error.retryable, error.message] as const
})

const statusOf = (name: string) => Effect.map(Engine.get({ name }), ({ status }) => status)

const whileStatus = (name: string, status: Engine.EngineStatus) =>
  until(Effect.map(statusOf(name), (now) => now === status))

/** How often engines were started. */
const starts = Effect.map(notes, (lines) => lines.filter((line) => /^\d+ \d+$/.test(line)).length)

/** Nothing that engines have started runs. */
const assertNothingRuns = Effect.map(processes, (pids) => {
  assert.isAbove(pids.length, 0)
  assert.deepStrictEqual(pids.filter(runs), [])
})

/** The domain events so far: their types, with the phases of progress. */
const told = Effect.map(
  Testing.TestEvents.use(({ domainEvents }) => domainEvents),
  (events) => events.map(({ payload, type }) => [type, (payload as { phase?: string }).phase].filter(Boolean).join(" "))
)

const lastTold = (type: string) =>
  Effect.map(
    Testing.TestEvents.use(({ domainEvents }) => domainEvents),
    (events) => events.findLast((event) => event.type === type)?.payload as Record<string, unknown> | undefined
  )

/** Somebody else listens on a port. */
const foreigner = Effect.acquireRelease(
  Effect.promise(async () => {
    const server = net.createServer().listen(0, "127.0.0.1")
    await once(server, "listening")
    return { server, port: (server.address() as net.AddressInfo).port }
  }),
  ({ server }) => Effect.sync(() => server.close())
)

describe("engine.start", () => {
  it.effect("ends once the engine is healthy, and tells how far it is", () =>
    Effect.gen(function*() {
      yield* installed()
      const { process_id, status } = yield* Engine.start(vllm)
      assert.strictEqual(status, "running")
      assert.isTrue(runs(Number(process_id)))
      const { models, ...engine } = yield* Engine.get({ name: "vllm" })
      const { elsewhere } = yield* World
      assert.deepStrictEqual(models, ["tiny"])
      assert.deepStrictEqual(engine, {
        name: "vllm",
        type: "vllm",
        status: "running",
        version: "0.6.3",
        capabilities: ["chat", "completion"],
        process_id,
        path: path.join(elsewhere, "bin", "vllm")
      })
      assert.deepStrictEqual(yield* told, [
        "engine.start_progress starting",
        "engine.start_progress loading",
        "engine.start_progress ready",
        "engine.started"
      ])
    }).pipe(Effect.provide(layer)))

  it.effect("waits for health, not for the process", () =>
    Effect.gen(function*() {
      yield* installed({ readyAfter: "go" })
      const starting = yield* Effect.forkChild(Engine.start(vllm))
      yield* noted(/^\d+ \d+$/)
      for (let i = 0; i < 20; i++) yield* TestClock.adjust("1 second")
      assert.strictEqual(yield* statusOf("vllm"), "starting")
      yield* signal("go")
      assert.strictEqual((yield* Fiber.join(starting)).status, "running")
    }).pipe(Effect.provide(layer)))

  it.effect("asks for health as time passes, where the engine writes nothing", () =>
    Effect.gen(function*() {
      const { elsewhere } = yield* World
      yield* installed()
      fs.writeFileSync(
        path.join(elsewhere, "bin", "vllm"),
        fs.readFileSync(path.join(elsewhere, "bin", "vllm"), "utf8").replace("\"$@\"", "\"$@\" >/dev/null")
      )
      assert.strictEqual((yield* passing(Engine.start(vllm))).status, "running")
    }).pipe(Effect.provide(layer)))

  it.effect("asks again where a request is taken and never answered", () =>
    Effect.gen(function*() {
      yield* installed({ swallows: 2 })
      assert.strictEqual((yield* passing(Engine.start(vllm))).status, "running")
    }).pipe(Effect.provide(layer)))

  it.effect("gives vLLM the model, its name and a port as arguments", () =>
    Effect.gen(function*() {
      const { elsewhere } = yield* World
      yield* installed()
      const folder = path.join(elsewhere, "a model; touch x")
      fs.mkdirSync(folder)
      const port = yield* freePort
      const config = { port, gpu_memory_utilization: 0.5, tensor_parallel_size: 2, max_model_len: 4096 }
      yield* Engine.start({ name: "vllm", config, model_path: folder })
      const store = yield* Engine.EngineStore
      const { config: stored, launch } = yield* store.get("vllm")
      assert.deepStrictEqual(stored, { model_path: folder, ...config })
      assert.strictEqual(launch?.port, port)
      const output = launch?.instance?.kind === "process" ? fs.readFileSync(launch.instance.ref.output, "utf8") : ""
      assert.include(
        output,
        `listening with serve ${folder} --host 127.0.0.1 --port ${port} --gpu-memory-utilization 0.5 ` +
          "--tensor-parallel-size 2 --max-model-len 4096 --served-model-name a model; touch x"
      )
    }).pipe(Effect.provide(layer)))

  it.effect("takes a model of the register by its id, with its name", () =>
    Effect.gen(function*() {
      const { elsewhere } = yield* World
      yield* installed()
      const file = path.join(elsewhere, "weights")
      fs.writeFileSync(file, "")
      const { model_id } = yield* Model.create({ name: "tiny", path: file, format: "safetensors" })
      yield* Engine.start({ name: "vllm", model_id })
      const { live } = yield* Engine.Engines
      const { launch } = yield* Effect.flatMap(Effect.service(Engine.EngineStore), (store) => store.get("vllm"))
      assert.deepStrictEqual(yield* live, [{
        name: "vllm",
        type: "vllm",
        dialect: "openai",
        address: `http://127.0.0.1:${launch?.port}`,
        launch: launch?.id ?? "",
        capabilities: ["chat", "completion"],
        model_id
      }])
      fs.rmSync(file)
      yield* Engine.stop({ name: "vllm" })
      const [reason, retryable, message] = yield* reasonOf({ name: "vllm", model_id })
      assert.deepStrictEqual([reason, retryable], ["ModelMissing", false])
      assert.include(message, file)
      assert.deepStrictEqual(yield* live, [])
    }).pipe(Effect.provide(layer)))

  it.effect("asks for a model where the engine needs one, and refuses paths and names that could be anything else", () =>
    Effect.gen(function*() {
      yield* installed()
      const error = yield* Effect.flip(Engine.start({ name: "vllm" }))
      assert.strictEqual(error._tag, "InvalidInput")
      assert.include(error.message, "model_id, model_path and model")
      const isConfig = Schema.is(EngineConfig)
      for (const model_path of ["relative", "/a/../b", "/a\0b", ""]) {
        assert.isFalse(isConfig({ model_path }), model_path)
      }
      for (const model of ["--trust-remote-code", "a b", "$(id)", ""]) assert.isFalse(isConfig({ model }), model)
      assert.isTrue(isConfig({ model: "hf.co/acme/tiny:Q4_K_M", model_path: "/models/it's ok" }))
    }).pipe(Effect.provide(layer)))

  it.effect("hides the GPUs where they are not to be used", () =>
    Effect.gen(function*() {
      yield* installed({ print: ["devices <$CUDA_VISIBLE_DEVICES> home <$HOME>"], exit: 1 })
      const [, , message] = yield* reasonOf({ name: "vllm", config: { model: "tiny", device: "cpu" } })
      assert.include(message, `devices <> home <${process.env["HOME"]}>`)
    }).pipe(Effect.provide(layer)))

  it.effect("says who has the port that was asked for", () =>
    Effect.gen(function*() {
      yield* installed()
      const { port } = yield* foreigner
      const [reason, retryable, message] = yield* reasonOf({ name: "vllm", config: { model: "tiny", port } })
      assert.deepStrictEqual([reason, retryable], ["PortTaken", true])
      assert.include(message, `port ${port}`)
      assert.include(message, String(process.pid))
      assert.strictEqual(yield* starts, 0)
      assert.strictEqual(yield* statusOf("vllm"), "error")
    }).pipe(Effect.provide(layer)))

  it.effect("does not try again without memory, though the engine itself goes on", () =>
    Effect.gen(function*() {
      yield* installed({
        print: ["torch.OutOfMemoryError: CUDA out of memory. Tried to allocate"],
        readyAfter: "never"
      })
      const [reason, retryable, message] = yield* reasonOf()
      assert.deepStrictEqual([reason, retryable], ["OutOfMemory", false])
      assert.include(message, "Tried to allocate")
      assert.strictEqual(yield* starts, 1)
      yield* assertNothingRuns
    }).pipe(Effect.provide(layer)))

  it.effect("says how the engine ended, and what it wrote last", () =>
    Effect.gen(function*() {
      yield* installed({ print: ["first", "ValueError: no such model"], exit: 3 })
      assert.deepStrictEqual(yield* reasonOf(), [
        "Died",
        false,
        "The engine vllm was not started. It ended with exit code 3 before it was healthy. " +
        "Its last output: first\nValueError: no such model"
      ])
      assert.strictEqual(yield* starts, 1)
      yield* behave("vllm", { killed: true })
      const [, , message] = yield* reasonOf()
      assert.include(message, "It ended by SIGKILL")
      assert.strictEqual((yield* lastTold("engine.error"))?.["error_code"], "00203")
      assert.strictEqual(yield* statusOf("vllm"), "error")
      assert.deepStrictEqual((yield* told).slice(-2), ["engine.start_progress failed", "engine.error"])
    }).pipe(Effect.provide(layer)))

  it.effect("tries again what can pass", () =>
    Effect.gen(function*() {
      yield* installed({ busy: 2 })
      assert.strictEqual((yield* passing(Engine.start(vllm))).status, "running")
      assert.strictEqual(yield* starts, 3)
    }).pipe(Effect.provide(layer)))

  it.effect("gives up what does not become healthy in time, and ends it", () =>
    Effect.gen(function*() {
      yield* installed({ print: ["loading"], readyAfter: "never" })
      const starting = yield* Effect.forkChild(Effect.flip(Engine.start(vllm)))
      yield* noted(/^\d+ \d+$/)
      yield* TestClock.adjust("20 minutes")
      const error = yield* passing(Fiber.join(starting))
      assert.instanceOf(error, Engine.EngineStartFailed)
      assert.deepStrictEqual([error.reason, error.retryable], ["HealthTimeout", true])
      assert.include(error.message, "/health did not answer")
      assert.include(error.message, "loading")
      yield* assertNothingRuns
    }).pipe(Effect.provide(layer)))

  it.effect("says how to get a program that has gone", () =>
    Effect.gen(function*() {
      const { elsewhere } = yield* World
      yield* installed()
      fs.rmSync(path.join(elsewhere, "bin", "vllm"))
      const [reason, , message] = yield* reasonOf()
      assert.strictEqual(reason, "Missing")
      assert.include(message, "pip install vllm")
    }).pipe(Effect.provide(layer)))

  it.effect("leaves nothing when it is interrupted, though the engine does not listen and has started others", () =>
    Effect.gen(function*() {
      yield* installed({ readyAfter: "never", ignores: ["SIGINT", "SIGTERM"], grandchild: true })
      const starting = yield* Effect.forkChild(Engine.start(vllm))
      yield* noted(/grandchild$/)
      const pids = yield* processes
      assert.deepStrictEqual([pids.length, pids.filter(runs).length], [2, 2])
      yield* passing(Fiber.interrupt(starting))
      yield* assertNothingRuns
      assert.strictEqual(yield* statusOf("vllm"), "error")
    }).pipe(Effect.provide(layer)))

  it.effect("returns before the engine is healthy where that is asked for", () =>
    Effect.gen(function*() {
      yield* installed({ readyAfter: "go" })
      const { process_id, status } = yield* Engine.start({ name: "vllm", config: { ...vllm.config, async: true } })
      assert.strictEqual(status, "starting")
      assert.isTrue(runs(Number(process_id)))
      assert.strictEqual((yield* Effect.flip(Engine.start(vllm)))._tag, "EngineAlreadyRunning")
      yield* noted(/^\d+ \d+$/)
      yield* signal("go")
      yield* passing(whileStatus("vllm", "running"))
      assert.strictEqual((yield* Engine.get({ name: "vllm" })).process_id, process_id)
    }).pipe(Effect.provide(layer)))

  it.effect("of two at once starts one", () =>
    Effect.gen(function*() {
      yield* installed()
      const exits = yield* Effect.all(
        Array.from({ length: 5 }, () => Effect.exit(Engine.start(vllm))),
        { concurrency: "unbounded" }
      )
      assert.strictEqual(exits.filter(Exit.isSuccess).length, 1)
      const tags = exits.flatMap((exit) => Exit.isFailure(exit) ? exit.cause.reasons : [])
        .map((reason) => reason._tag === "Fail" ? reason.error._tag : reason._tag)
      assert.deepStrictEqual(tags, Array.from({ length: 4 }, () => "EngineAlreadyRunning"))
      assert.strictEqual(yield* starts, 1)
    }).pipe(Effect.provide(layer)))

  it.effect("starts an engine that is recorded as running, and is not", () =>
    Effect.gen(function*() {
      yield* installed()
      const { process_id } = yield* Engine.start(vllm)
      process.kill(Number(process_id), "SIGKILL")
      yield* until(Effect.sync(() => !runs(Number(process_id))))
      assert.strictEqual(yield* statusOf("vllm"), "error")
      assert.strictEqual((yield* Engine.start(vllm)).status, "running")
      assert.strictEqual(yield* starts, 2)
    }).pipe(Effect.provide(layer)))

  it.effect("keeps the secrets of an engine out of its failure", () =>
    Effect.gen(function*() {
      yield* behave("tiny", { print: ["the token is $TOKEN, $TOKEN"], exit: 1 })
      const [, , message] = yield* reasonOf({ name: "tiny" })
      assert.include(message, "the token is <redacted>, <redacted>")
      const events = yield* Testing.TestEvents.use(({ domainEvents }) => domainEvents)
      assert.isAbove(events.length, 0)
      assert.notInclude(JSON.stringify(events.map(({ payload }) => payload)), secret)
    }).pipe(Effect.provide(layer)))

  it.effect("runs a program of one's own, which needs no installation", () =>
    Effect.gen(function*() {
      yield* behave("tiny")
      assert.deepStrictEqual(yield* Engine.list(), {
        items: [{ name: "tiny", type: "transformers", status: "stopped" }],
        total: 1
      })
      assert.strictEqual((yield* Engine.start({ name: "tiny" })).status, "running")
    }).pipe(Effect.provide(layer)))

  it.effect("uses an Ollama that somebody else runs, and never ends it", () =>
    Effect.gen(function*() {
      const server = yield* Effect.acquireRelease(
        Effect.promise(async () => {
          const server = http.createServer((request, response) =>
            response.end(
              request.url === "/api/tags" ? JSON.stringify({ models: [{ name: "llama3:8b" }] }) : "Ollama is running"
            )
          ).listen(0, "127.0.0.1")
          await once(server, "listening")
          return server
        }),
        (server) => Effect.sync(() => server.close())
      )
      const { port } = server.address() as net.AddressInfo
      yield* behave("ollama")
      yield* Engine.install({ name: "ollama" })
      const start = Engine.start({ name: "ollama", config: { port } })
      assert.deepStrictEqual(yield* start, { process_id: String(process.pid), status: "running" })
      assert.strictEqual(yield* starts, 0)
      assert.deepStrictEqual((yield* Engine.get({ name: "ollama" })).models, ["llama3:8b"])
      assert.strictEqual((yield* Effect.flip(start))._tag, "EngineAlreadyRunning")
      yield* Engine.stop({ name: "ollama", force: true })
      assert.strictEqual((yield* lastTold("engine.stopped"))?.["reason"], "detached")
      assert.isTrue(server.listening)
      assert.strictEqual((yield* Effect.flip(Engine.stop({ name: "ollama" })))._tag, "EngineNotRunning")
      // Once that one is gone, there is an own one to be started.
      yield* start
      const closed = once(server, "close")
      server.close()
      server.closeAllConnections()
      yield* Effect.promise(() => closed)
      assert.strictEqual(yield* statusOf("ollama"), "error")
      assert.strictEqual((yield* start).status, "running")
      assert.strictEqual(yield* starts, 1)
    }).pipe(Effect.provide(layer)))
})

describe("engine.stop", () => {
  it.effect("lets an engine end by itself", () =>
    Effect.gen(function*() {
      yield* installed()
      const { process_id } = yield* Engine.start(vllm)
      assert.deepStrictEqual(yield* Engine.stop({ name: "vllm" }), { success: true })
      assert.include(yield* notes, "SIGINT")
      assert.isFalse(runs(Number(process_id)))
      const { process_id: none, status } = yield* Engine.get({ name: "vllm" })
      assert.deepStrictEqual([none, status], ["", "stopped"])
      const { reason, status: told } = (yield* lastTold("engine.stopped")) ?? {}
      assert.deepStrictEqual([reason, told], ["stop", "stopped"])
      assert.strictEqual((yield* Effect.flip(Engine.stop({ name: "vllm" })))._tag, "EngineNotRunning")
    }).pipe(Effect.provide(layer)))

  it.effect("kills an engine that does not listen, with all that it has started, once the time is out", () =>
    Effect.gen(function*() {
      yield* installed({ ignores: ["SIGINT"], grandchild: true })
      const { process_id } = yield* Engine.start(vllm)
      yield* noted(/grandchild$/)
      const stopping = yield* Effect.forkChild(Engine.stop({ name: "vllm", timeout: 1 }))
      yield* noted(/^SIGINT$/)
      assert.strictEqual(yield* statusOf("vllm"), "stopping")
      assert.isTrue(runs(Number(process_id)))
      yield* passing(Fiber.join(stopping))
      yield* assertNothingRuns
    }).pipe(Effect.provide(layer)))

  it.effect("kills at once with force", () =>
    Effect.gen(function*() {
      yield* installed()
      yield* Engine.start(vllm)
      yield* passing(Engine.stop({ name: "vllm", force: true }))
      assert.notInclude(yield* notes, "SIGINT")
      yield* assertNothingRuns
    }).pipe(Effect.provide(layer)))

  it.effect("ends a start that is under way", () =>
    Effect.gen(function*() {
      yield* installed({ readyAfter: "never" })
      const starting = yield* Effect.forkChild(Effect.flip(Engine.start(vllm)))
      yield* noted(/^\d+ \d+$/)
      yield* passing(Engine.stop({ name: "vllm" }))
      const error = yield* Fiber.join(starting)
      assert.instanceOf(error, Engine.EngineStartFailed)
      assert.strictEqual(error.reason, "Cancelled")
      yield* assertNothingRuns
      assert.strictEqual(yield* statusOf("vllm"), "stopped")
    }).pipe(Effect.provide(layer)))

  it.effect("does not let a start, or another stop, in between", () =>
    Effect.gen(function*() {
      yield* installed({ ignores: ["SIGINT"] })
      yield* Engine.start(vllm)
      const stopping = yield* Effect.forkChild(Engine.stop({ name: "vllm" }))
      yield* noted(/^SIGINT$/)
      assert.deepStrictEqual(
        yield* Effect.exit(Engine.start(vllm)),
        Exit.fail(new Engine.EngineAlreadyRunning({ name: "vllm", status: "stopping" }))
      )
      assert.strictEqual((yield* Effect.flip(Engine.stop({ name: "vllm" })))._tag, "EngineStopFailed")
      yield* passing(Fiber.join(stopping))
      assert.strictEqual(yield* starts, 1)
    }).pipe(Effect.provide(layer)))
})

describe("engine.restart", () => {
  it.effect("starts an engine again as it was", () =>
    Effect.gen(function*() {
      yield* installed()
      const port = yield* freePort
      const before = yield* Engine.start({ name: "vllm", config: { model: "acme/tiny", port } })
      const after = yield* Engine.restart({ name: "vllm" })
      assert.strictEqual(after.status, "running")
      assert.notStrictEqual(after.process_id, before.process_id)
      assert.deepStrictEqual([runs(Number(before.process_id)), runs(Number(after.process_id))], [false, true])
      const store = yield* Engine.EngineStore
      const { config, launch } = yield* store.get("vllm")
      assert.deepStrictEqual([config, launch?.port], [{ model: "acme/tiny", port }, port])
      yield* Engine.stop({ name: "vllm" })
      assert.strictEqual((yield* Engine.restart({ name: "vllm" })).status, "running")
    }).pipe(Effect.provide(layer)))

  it.effect("that fails leaves nothing running, and says so", () =>
    Effect.gen(function*() {
      yield* installed()
      yield* Engine.start(vllm)
      yield* behave("vllm", { exit: 1 })
      assert.strictEqual((yield* Effect.flip(Engine.restart({ name: "vllm" })))._tag, "EngineStartFailed")
      const { process_id, status } = yield* Engine.get({ name: "vllm" })
      assert.deepStrictEqual([process_id, status], ["", "error"])
      yield* assertNothingRuns
    }).pipe(Effect.provide(layer)))
})

describe("engine.install", () => {
  it.effect("takes the program that is there, again and again, and tells of another version", () =>
    Effect.gen(function*() {
      const { elsewhere } = yield* World
      yield* behave("vllm")
      const done = { success: true, path: path.join(elsewhere, "bin", "vllm") }
      assert.deepStrictEqual(yield* Engine.install({ name: "vllm" }), done)
      assert.deepStrictEqual(yield* Engine.install({ name: "vllm", version: "0.6.3" }), done)
      const error = yield* Effect.flip(Engine.install({ name: "vllm", version: "0.7.0" }))
      assert.instanceOf(error, Engine.EngineInstallFailed)
      assert.strictEqual(error.reason, "Missing")
      assert.include(
        error.detail,
        `${done.path} is version 0.6.3, not 0.7.0. To have that, run \`pip install vllm==0.7.0\`. `
      )
      // As a container it cannot be had either.
      assert.include(error.detail, "no-docker.sock")
      assert.strictEqual((yield* Engine.get({ name: "vllm" })).version, "0.6.3")
      yield* behave("vllm", { version: "0.7.0" })
      yield* Engine.install({ name: "vllm", version: "0.7.0" })
      assert.strictEqual((yield* Engine.get({ name: "vllm" })).version, "0.7.0")
      assert.strictEqual((yield* Engine.list({ type: "vllm" })).total, 1)
    }).pipe(Effect.provide(layer)))

  it.effect("leaves no record of what is not there, or of what was interrupted", () =>
    Effect.gen(function*() {
      const error = yield* Effect.flip(Engine.install({ name: "vllm" }))
      assert.include(error.message, "pip install vllm")
      yield* behave("vllm", { versionAfter: "never" })
      const installing = yield* Effect.forkChild(Engine.install({ name: "vllm" }))
      yield* noted(/version$/)
      assert.strictEqual(yield* statusOf("vllm"), "installing")
      yield* passing(Fiber.interrupt(installing))
      assert.strictEqual((yield* Engine.list({ type: "vllm" })).total, 0)
      assert.strictEqual((yield* Effect.flip(Engine.get({ name: "vllm" })))._tag, "EngineNotFound")
      yield* assertNothingRuns
    }).pipe(Effect.provide(layer)))

  it.effect("does not touch an engine that runs", () =>
    Effect.gen(function*() {
      yield* installed()
      const { process_id } = yield* Engine.start(vllm)
      yield* behave("vllm", { version: "0.7.0", versionAfter: "go" })
      const installing = yield* Effect.forkChild(Engine.install({ name: "vllm" }))
      yield* noted(/version$/)
      assert.strictEqual(yield* statusOf("vllm"), "running")
      yield* signal("go")
      yield* Fiber.join(installing)
      const engine = yield* Engine.get({ name: "vllm" })
      assert.deepStrictEqual([engine.process_id, engine.status, engine.version], [process_id, "running", "0.7.0"])
    }).pipe(Effect.provide(layer)))
})
