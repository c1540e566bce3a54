import * as NodeServices from "@effect/platform-node/NodeServices"
import { afterAll, assert, beforeAll, it } from "@effect/vitest"
import { Context, Deferred, Effect, Exit, Fiber, Layer, Redacted, Scope, Stream } from "effect"
import { TestClock } from "effect/testing"
import { once } from "node:events"
import * as fs from "node:fs"
import * as net from "node:net"
import * as os from "node:os"
import * as path from "node:path"
import * as Docker from "../../src/backends/Docker.ts"
import * as DockerNode from "../../src/backends/DockerNode.ts"
import * as ContainerRuntime from "../../src/engine/ContainerRuntime.ts"
import * as Recipe from "../../src/engine/Recipe.ts"
import type { Launch, RuntimeError } from "../../src/engine/Runtime.ts"
import { canPublish, dockerd, served } from "../fixtures/dockerd.ts"
import { archive, registry } from "../fixtures/dockerImage.ts"
import * as DockerServer from "../fixtures/DockerServer.ts"
import { freePort } from "../fixtures/ownServer.ts"
import { withProgram } from "../servers.ts"

const image = "effect-units-engine:v1"

const layer = (address: string) =>
  Layer.merge(DockerNode.layer({ host: address }).pipe(Layer.provide(NodeServices.layer)), NodeServices.layer)

const serving =
  "trap 'echo ending; exit 0' TERM; echo listens on $0, model $1, secret $SECRET; httpd -f -p $0 -h www & wait"

/** An engine that serves the files of its image, which has nothing but busybox. */
const recipe = (port: number, more: Partial<Recipe.ContainerPart> = {}, script = serving) =>
  Recipe.make({
    type: "vllm",
    container: {
      image: "effect-units-engine",
      tag: "v1",
      args: (settings) => ["sh", "-c", script, String(settings.port), String(settings.model)],
      port,
      modelMount: "/models",
      ...more
    }
  })

const processOnly = Recipe.make({ process: { command: "x", args: () => [], howToInstall: () => "" } })

let launches = 0
const launch = (port: number, recipe: Recipe.Recipe, more: Partial<Launch> = {}): Launch => ({
  id: `test-${process.pid}-${++launches}`,
  engine: "mine",
  recipe,
  path: image,
  host: "127.0.0.1",
  port,
  gpu: false,
  config: {},
  ...more
})

const failureOf = <A, R>(effect: Effect.Effect<A, RuntimeError, R>) =>
  Effect.matchEffect(effect, {
    onFailure: Effect.succeed,
    onSuccess: () => Effect.die(new Error("it succeeded"))
  })

const temporary = Effect.acquireRelease(
  Effect.sync(() => fs.mkdtempSync(path.join(os.tmpdir(), "effect-units-models-"))),
  (directory) => Effect.sync(() => fs.rmSync(directory, { recursive: true, force: true }))
)

/** The containers that the engine of these tests knows, of all starts or of one. */
const known = (launchId?: string) => {
  const label = ContainerRuntime.labels.launch
  const filters = { label: [launchId === undefined ? label : `${label}=${launchId}`] }
  return Docker.Docker.use((docker) => docker.listContainers({ all: true, filters })).pipe(
    Effect.map((list) => list.map(({ Id }) => Id)),
    Effect.orDie
  )
}

const inTime = { force: false, grace: "5 seconds" } as const

const suite = (start: Effect.Effect<string, never, Scope.Scope>, { publishes }: { readonly publishes: boolean }) => {
  const scope = Scope.makeUnsafe()
  let address = ""
  beforeAll(async () => {
    address = await Effect.runPromise(Scope.provide(start, scope))
    await Effect.runPromise(
      Docker.Docker.use((docker) => docker.importImage(archive, { image })).pipe(Effect.provide(layer(address)))
    )
  }, 60_000)
  afterAll(() => Effect.runPromise(Scope.close(scope, Exit.void)), 60_000)

  type Services = Layer.Success<ReturnType<typeof layer>> | Scope.Scope
  const test = (
    title: string,
    body: () => Effect.Effect<void, RuntimeError, Services>,
    possible = publishes
  ) => it.effect.skipIf(!possible)(title, () => Effect.suspend(() => Effect.provide(body(), layer(address))), 60_000)

  test("starts an engine that is reached at the host's port, and ends it without a trace", () =>
    Effect.gen(function*() {
      const runtime = yield* ContainerRuntime.make()
      const [inner, outer] = [yield* freePort, yield* freePort]
      const folder = yield* temporary
      fs.writeFileSync(path.join(folder, "model.gguf"), "weights")
      const it = launch(outer, recipe(inner, { env: () => ({ SECRET: Redacted.make("hidden") }) }), {
        modelPath: path.join(folder, "model.gguf")
      })
      const instance = yield* runtime.start(it)
      assert.match(instance.id, /^[0-9a-f]{64}$/)
      assert.strictEqual(yield* served(outer, "/health"), "healthy\n")
      assert.isTrue(yield* runtime.isRunning(instance))
      const written = `listens on ${inner}, model /models/model.gguf, secret <redacted>`
      assert.deepStrictEqual(yield* runtime.tail(instance, 5), [written])
      const holder = Effect.suspend(() => runtime.portHolder?.(outer) ?? Effect.succeed("nobody was asked"))
      assert.strictEqual(yield* holder, `the container effect-units-${it.id} of the image ${image}`)
      const lines = yield* Effect.forkChild(Stream.runCollect(runtime.lines(instance)), { startImmediately: true })
      const end = yield* Effect.forkChild(runtime.ended(instance), { startImmediately: true })
      yield* runtime.stop(instance, inTime)
      assert.strictEqual((yield* Fiber.join(lines))[0], written)
      // What it ended with is lost where it is removed before it is asked for.
      assert.include([0, undefined], (yield* Fiber.join(end)).code)
      assert.isFalse(yield* runtime.isRunning(instance))
      assert.deepStrictEqual(yield* known(), [])
      yield* runtime.stop(instance, inTime)
      yield* runtime.sweep(it.id)
      assert.deepStrictEqual(yield* runtime.ended(instance), {})
      assert.deepStrictEqual(yield* runtime.tail(instance, 5), [])
      assert.deepStrictEqual(yield* Stream.runCollect(runtime.lines(instance)), [])
      assert.isUndefined(yield* holder)
    }))

  test("gives a container what its recipe says, and a folder of models", () =>
    Effect.gen(function*() {
      const docker = yield* Docker.Docker
      const runtime = yield* ContainerRuntime.make()
      const folder = yield* temporary
      fs.writeFileSync(path.join(folder, "config.json"), "{}")
      const part = { memory: 64 * 1024 * 1024, cpus: 0.5, sharedMemory: 96 * 1024 * 1024, modelMount: "/model:s" }
      const script = "cat model:s/config.json; echo $1"
      const it = launch(yield* freePort, recipe(yield* freePort, part, script), { modelPath: folder })
      const instance = yield* runtime.start(it)
      assert.deepStrictEqual(yield* runtime.ended(instance), { code: 0, outOfMemory: false })
      assert.deepStrictEqual(yield* runtime.tail(instance, 10), ["{}/model:s"])
      const { Config, HostConfig, Name } = yield* Effect.orDie(docker.inspectContainer(instance.id))
      assert.strictEqual(Name, `/effect-units-${it.id}`)
      assert.deepStrictEqual(Config.Labels, {
        "effect-units.launch": it.id,
        "effect-units.engine": "mine",
        "effect-units.engine-type": "vllm"
      })
      assert.deepInclude(HostConfig, { NetworkMode: "bridge", Memory: part.memory, ShmSize: part.sharedMemory })
      yield* runtime.sweep(it.id)
      assert.deepStrictEqual(yield* known(), [])
    }))

  test("tells how an engine ended, also where that was for its memory", () =>
    Effect.gen(function*() {
      const runtime = yield* ContainerRuntime.make()
      const ending = Effect.fnUntraced(function*(script: string, memory?: number) {
        const instance = yield* runtime.start(launch(yield* freePort, recipe(yield* freePort, { memory }, script)))
        const ended = yield* runtime.ended(instance)
        assert.isFalse(yield* runtime.isRunning(instance))
        const tail = yield* runtime.tail(instance, 1)
        yield* runtime.stop(instance, inTime)
        return { ...ended, tail }
      })
      assert.deepStrictEqual(yield* ending("echo first; echo last; exit 4"), {
        code: 4,
        outOfMemory: false,
        tail: ["last"]
      })
      assert.deepStrictEqual(
        yield* ending("echo growing; a=xxxxxxxx; while :; do a=$a$a; done", 16 * 1024 * 1024),
        { code: 137, outOfMemory: true, tail: ["growing"] }
      )
    }))

  test("kills what does not end in time, or at once", () =>
    Effect.gen(function*() {
      const runtime = yield* ContainerRuntime.make()
      const deaf = "trap '' TERM; echo deaf; while :; do sleep 0.05; done"
      for (const force of [false, true]) {
        const instance = yield* runtime.start(launch(yield* freePort, recipe(yield* freePort, {}, deaf)))
        yield* runtime.lines(instance).pipe(Stream.take(1), Stream.runDrain)
        yield* runtime.stop(instance, { force, grace: force ? "1 hour" : "1 second" })
        assert.deepStrictEqual(yield* known(), [])
      }
    }))

  test("names the container, or the process, that has the port, and leaves nothing", () =>
    Effect.gen(function*() {
      const docker = yield* Docker.Docker
      const runtime = yield* ContainerRuntime.make()
      const [inner, outer] = [yield* freePort, yield* freePort]
      const name = `foreign-${process.pid}`
      const foreign = yield* Effect.acquireRelease(
        docker.createContainer({
          name,
          spec: {
            Image: image,
            Cmd: ["sh", "-c", "trap 'exit 0' TERM; while :; do sleep 0.05; done"],
            ExposedPorts: { [`${inner}/tcp`]: {} },
            HostConfig: { PortBindings: { [`${inner}/tcp`]: [{ HostIp: "127.0.0.1", HostPort: String(outer) }] } }
          }
        }),
        ({ Id }) => Effect.ignore(docker.removeContainer(Id, { force: true }))
      ).pipe(Effect.tap(({ Id }) => docker.startContainer(Id)), Effect.orDie)
      assert.deepInclude(yield* failureOf(runtime.start(launch(outer, recipe(inner)))), {
        reason: "PortTaken",
        detail:
          `Port ${outer} is held by the container ${name} of the image ${image}. Stop that, or choose another port.`,
        retryable: false
      })
      assert.deepStrictEqual(yield* known(), [])
      assert.isTrue(yield* runtime.isRunning({ kind: "container", id: foreign.Id }))

      const port = yield* freePort
      yield* Effect.acquireRelease(
        Effect.promise(async () => {
          const server = net.createServer().listen(port, "127.0.0.1")
          await once(server, "listening")
          return server
        }),
        (server) => Effect.promise(() => new Promise((resolve) => server.close(resolve)))
      )
      const byProcess = yield* failureOf(runtime.start(launch(port, recipe(inner))))
      assert.deepInclude(byProcess, { reason: "PortTaken", retryable: false })
      assert.match(byProcess.detail, new RegExp(`^Port ${port} is held by .+ \\(process ${process.pid}\\)\\.`))
      assert.deepStrictEqual(yield* known(), [])
    }))

  test("says what a start lacks: an image, a model, a GPU, a program in the image", () =>
    Effect.gen(function*() {
      const runtime = yield* ContainerRuntime.make()
      const [inner, outer] = [yield* freePort, yield* freePort]
      const failing = (more: Partial<Launch>, part: Partial<Recipe.ContainerPart> = {}) =>
        failureOf(runtime.start(launch(outer, recipe(inner, part), more)))
      assert.deepInclude(yield* failing({ path: "effect-units-absent:v1" }), { reason: "Missing", retryable: false })
      const model = yield* failing({ modelPath: "/nowhere/model" })
      assert.deepInclude(model, { reason: "Refused", retryable: false })
      assert.include(model.detail, "The model at /nowhere/model cannot be mounted")
      const gpu = yield* failing({ gpu: true })
      assert.deepInclude(gpu, { reason: "Refused", retryable: false })
      assert.include(gpu.detail, "NVIDIA Container Toolkit")
      const program = yield* failing({}, { args: () => ["no-such-program"] })
      assert.deepInclude(program, { reason: "Refused", retryable: false })
      assert.deepInclude(yield* failing({ recipe: processOnly }), { reason: "Missing", retryable: false })
      assert.deepStrictEqual(yield* known(), [])
    }))

  test("leaves nothing where a start is interrupted, at whatever moment", () =>
    Effect.gen(function*() {
      const runtime = yield* ContainerRuntime.make()
      const port = yield* freePort
      const ends = new Set<string>()
      for (let steps = 0; steps < 14; steps++) {
        const it = launch(port, recipe(yield* freePort))
        const fiber = yield* Effect.forkChild(runtime.start(it), { startImmediately: true })
        for (let i = 0; i < steps ** 3; i++) {
          yield* Effect.promise(() => new Promise((resolve) => setImmediate(resolve)))
        }
        yield* Fiber.interrupt(fiber)
        const exit = yield* Fiber.await(fiber)
        ends.add(exit._tag)
        // It may have been faster; then the caller has what it needs to end it.
        if (Exit.isSuccess(exit)) yield* runtime.stop(exit.value, inTime)
        assert.deepStrictEqual(yield* known(it.id), [])
      }
      assert.isTrue(ends.has("Failure"))
    }))

  test("finds an instance of an earlier program again, and ends its own ones only", () =>
    Effect.gen(function*() {
      const [inner, outer] = [yield* freePort, yield* freePort]
      const instance = yield* Effect.scoped(Effect.flatMap(
        ContainerRuntime.make({ onClose: "leave" }),
        (first) => first.start(launch(outer, recipe(inner)))
      ))
      yield* Effect.scoped(Effect.gen(function*() {
        const second = yield* ContainerRuntime.make()
        assert.isTrue(yield* second.isRunning(instance))
        assert.strictEqual(yield* served(outer, "/health"), "healthy\n")
      }))
      // The second one did not adopt it, the third does.
      assert.deepStrictEqual(yield* known(), [instance.id])
      yield* Effect.scoped(Effect.gen(function*() {
        const third = yield* ContainerRuntime.make()
        assert.isTrue(yield* third.adopt(instance))
      }))
      assert.deepStrictEqual(yield* known(), [])
      const fourth = yield* ContainerRuntime.make()
      assert.isFalse(yield* fourth.adopt(instance))
    }))

  test("pulls an image once, with its progress, and finds it then", () =>
    Effect.gen(function*() {
      const user = { username: "me", password: "secret" }
      const host = yield* registry(user)
      const credentials = { username: user.username, password: Redacted.make(user.password) }
      const runtime = yield* ContainerRuntime.make({
        auth: (image) => image.startsWith(host) ? credentials : undefined
      })
      const pulled = recipe(1, { image: `${host}/busybox`, tagOf: (version) => `v${version}` })
      const told: Array<readonly [string, number | undefined]> = []
      const onProgress = (message: string, fraction?: number | undefined) =>
        Effect.sync(() => void told.push([message, fraction]))
      assert.isUndefined(yield* runtime.locate(pulled))
      const artifact = { path: `${host}/busybox:v1`, version: "v1" }
      assert.deepStrictEqual(yield* runtime.install(pulled, { onProgress }), artifact)
      assert.deepStrictEqual(yield* runtime.locate(pulled), artifact)
      assert.deepStrictEqual(yield* runtime.locate(pulled, "1"), { ...artifact, version: "1" })
      assert.deepStrictEqual(told[0], [`pulling ${host}/busybox:v1`, undefined])
      assert.strictEqual(told.at(-1)?.[1], 1)
      assert.match(told.at(-1)?.[0] ?? "", /: 0\.00 GB of 0\.00 GB$/)
      const before = told.length
      yield* runtime.install(pulled, { onProgress })
      assert.strictEqual(told.length, before)

      const absent = yield* failureOf(runtime.install(pulled, { version: "9", onProgress }))
      assert.deepInclude(absent, { reason: "Missing", retryable: false })
      const broken = recipe(1, { image: `${host}/broken` })
      assert.deepInclude(yield* failureOf(runtime.install(broken, { onProgress })), {
        reason: "Interrupted",
        retryable: true
      })
      assert.isUndefined(yield* runtime.locate(broken))
      assert.isUndefined(yield* runtime.locate(processOnly))
      assert.strictEqual((yield* failureOf(runtime.install(processOnly, { onProgress }))).reason, "Missing")
    }), true)

  test("runs on the host's network, where it is told to", () =>
    Effect.gen(function*() {
      const runtime = yield* ContainerRuntime.make({ network: "host" })
      const port = yield* freePort
      const instance = yield* runtime.start(launch(port, recipe(1)))
      assert.strictEqual(yield* served(port, "/health"), "healthy\n")
      yield* runtime.stop(instance, inTime)
      assert.deepStrictEqual(yield* known(), [])
    }), true)
}

withProgram("busybox", "over the stand-in", () => {
  suite(Effect.map(DockerServer.make(), ({ address }) => address), { publishes: true })
})

withProgram("Docker", "over Docker's own engine", () => {
  suite(dockerd, { publishes: canPublish() })
})

withProgram("busybox", "over an engine that does not behave", () => {
  const setup = Effect.fnUntraced(function*(options: Parameters<typeof DockerServer.make>[0] = {}) {
    const server = yield* DockerServer.make(options)
    const context = yield* Layer.build(layer(server.address))
    yield* Context.get(context, Docker.Docker).importImage(archive, { image })
    return { ...server, context, runtime: yield* Effect.provideContext(ContainerRuntime.make(), context) }
  })

  it.effect("asks for all GPUs, and for the host's memory segments where the recipe wants those", () =>
    Effect.gen(function*() {
      const { runtime } = yield* setup({ gpu: true })
      const it = launch(yield* freePort, recipe(yield* freePort, { hostIpc: true }), { gpu: true })
      assert.isTrue(yield* runtime.isRunning(yield* runtime.start(it)))
    }))

  it.effect("removes the container of a start that failed for a passing reason, which can be tried again", () =>
    Effect.gen(function*() {
      const { context, inject, runtime } = yield* setup()
      const it = launch(yield* freePort, recipe(yield* freePort))
      yield* inject("POST", /start$/, { _tag: "Answer", status: 500, message: "context deadline exceeded" })
      assert.deepInclude(yield* failureOf(runtime.start(it)), { reason: "Refused", retryable: true })
      assert.deepStrictEqual(yield* Effect.provideContext(known(), context), [])
      yield* inject("POST", /start$/, { _tag: "Lines", lines: [], last: "cut" })
      assert.deepInclude(yield* failureOf(runtime.start(it)), { reason: "Unavailable", retryable: true })
      assert.deepStrictEqual(yield* Effect.provideContext(known(), context), [])
      assert.isTrue(yield* runtime.isRunning(yield* runtime.start(it)))
    }))

  it.effect("removes a container that the engine is busy with, as soon as it is not", () =>
    Effect.gen(function*() {
      const { context, inject, runtime, seen } = yield* setup()
      const it = launch(yield* freePort, recipe(yield* freePort))
      const instance = yield* runtime.start(it)
      const message = "You cannot remove a container whose removal is already in progress"
      yield* inject("DELETE", /containers/, {
        _tag: "Answer",
        status: 409,
        message: "cannot kill it: permission denied"
      })
      assert.deepInclude(yield* failureOf(runtime.sweep(it.id)), { reason: "Survived", retryable: true })
      yield* inject("DELETE", /containers/, { _tag: "Answer", status: 409, message })
      const stopping = yield* Effect.forkChild(runtime.stop(instance, inTime), { startImmediately: true })
      const turn = Effect.promise(() => new Promise((resolve) => setImmediate(resolve)))
      const asked = () => seen.filter(({ method }) => method === "DELETE").length
      while (asked() < 2) yield* turn
      // The clock stands still until the answer has been read, as the calls have their own limits by it.
      while (asked() < 3) {
        for (let i = 0; i < 20; i++) yield* turn
        yield* TestClock.adjust("100 millis")
      }
      yield* Fiber.join(stopping)
      assert.deepStrictEqual(yield* Effect.provideContext(known(), context), [])
    }))

  it.effect("ends an interrupted pull at the engine, too", () =>
    Effect.gen(function*() {
      const { inject, runtime, seen } = yield* setup()
      const lines = [{ status: "Downloading", id: "1", progressDetail: { current: 10, total: 100 } }]
      yield* inject("POST", /images.create/, { _tag: "Lines", lines, last: "hang" })
      const told = yield* Deferred.make<string>()
      const absent = recipe(1, { image: "effect-units-absent" })
      const fiber = yield* Effect.forkChild(
        runtime.install(absent, { onProgress: (message) => Effect.asVoid(Deferred.succeed(told, message)) }),
        { startImmediately: true }
      )
      assert.strictEqual(yield* Deferred.await(told), "pulling effect-units-absent:v1: 0.00 GB of 0.00 GB")
      yield* Fiber.interrupt(fiber)
      const pull = seen.find(({ path }) => path.includes("fromImage"))
      assert.isTrue(yield* Effect.promise(() => pull?.ended ?? Promise.resolve(false)))
      assert.isUndefined(yield* runtime.locate(absent))
    }))

  it.effect("says that no engine answers, and that this passes", () =>
    Effect.gen(function*() {
      const context = yield* Layer.build(layer("unix:///nowhere/docker.sock"))
      const runtime = yield* Effect.provideContext(ContainerRuntime.make(), context)
      const instance = { kind: "container", id: "x" } as const
      const calls: ReadonlyArray<Effect.Effect<unknown, RuntimeError>> = [
        runtime.locate(recipe(1)),
        runtime.start(launch(1, recipe(1))),
        runtime.isRunning(instance),
        runtime.ended(instance),
        runtime.stop(instance, inTime),
        runtime.sweep("x"),
        runtime.tail(instance, 1),
        Stream.runDrain(runtime.lines(instance))
      ]
      for (const call of calls) {
        assert.deepInclude(yield* failureOf(call), { reason: "Unavailable", retryable: true })
      }
    }))
})
