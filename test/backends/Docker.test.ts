import * as NodeServices from "@effect/platform-node/NodeServices"
import { afterAll, assert, beforeAll, describe, it } from "@effect/vitest"
import { ConfigProvider, Context, Duration, Effect, Exit, Fiber, Layer, Redacted, Schema, Scope, Stream } from "effect"
import { HttpClient, HttpClientResponse } from "effect/http"
import { TestClock } from "effect/testing"
import { spawnSync } from "node:child_process"
import { once } from "node:events"
import * as fs from "node:fs"
import * as http from "node:http"
import * as https from "node:https"
import * as net from "node:net"
import * as os from "node:os"
import * as path from "node:path"
import { inspect } from "node:util"
import * as Docker from "../../src/backends/Docker.ts"
import { type DockerError, reasonOf } from "../../src/backends/DockerError.ts"
import * as DockerNode from "../../src/backends/DockerNode.ts"
import { canPublish, dockerd, served } from "../fixtures/dockerd.ts"
import { archive, registry } from "../fixtures/dockerImage.ts"
import * as DockerServer from "../fixtures/DockerServer.ts"
import { freePort } from "../fixtures/ownServer.ts"
import { withProgram } from "../servers.ts"

const client = (address: string, options: DockerNode.Options = {}) =>
  DockerNode.layer({ host: address, ...options }).pipe(Layer.provide(NodeServices.layer))

const image = "effect-units-test:v1"

const failureOf = <A, R>(effect: Effect.Effect<A, DockerError, R>) =>
  Effect.matchEffect(effect, { onFailure: Effect.succeed, onSuccess: () => Effect.die(new Error("it succeeded")) })

const reasonFrom = <A, R>(effect: Effect.Effect<A, DockerError, R>) =>
  Effect.map(failureOf(effect), ({ reason }) => reason)

/** A container of the test image, gone with the scope. */
const container = Effect.fnUntraced(
  function*(spec: Partial<Docker.ContainerSpec> & { readonly Cmd: ReadonlyArray<string> }) {
    const docker = yield* Docker.Docker
    const { Id } = yield* Effect.acquireRelease(
      docker.createContainer({ spec: { Image: image, ...spec } }),
      ({ Id }) => Effect.ignore(docker.removeContainer(Id, { force: true }))
    )
    return Id
  }
)

const script = (text: string) => ["sh", "-c", text]

const running = Effect.fnUntraced(function*(text: string, spec: Partial<Docker.ContainerSpec> = {}) {
  const docker = yield* Docker.Docker
  const id = yield* container({ ...spec, Cmd: script(text) })
  yield* docker.startContainer(id)
  return id
})

/** Runs until it is told to end, and says when it listens to that. */
const untilTold = "trap 'echo told; exit 3' TERM; echo ready; while :; do sleep 0.05; done"

const firstLine = (id: string) =>
  Docker.Docker.use((docker) => docker.logLines(id, { follow: true }).pipe(Stream.take(1), Stream.runCollect))

const lines = (id: string, options: Parameters<typeof Docker.Docker.Service["logLines"]>[1] = {}) =>
  Docker.Docker.use((docker) => Stream.runCollect(docker.logLines(id, options)))

/** What holds for any engine. */
const suite = (
  start: Effect.Effect<string, never, Scope.Scope>,
  { publishes }: { readonly publishes: boolean }
) => {
  const scope = Scope.makeUnsafe()
  let address = ""
  beforeAll(async () => {
    address = await Effect.runPromise(Scope.provide(start, scope))
    await Effect.runPromise(
      Docker.Docker.use((docker) => docker.importImage(archive, { image })).pipe(Effect.provide(client(address)))
    )
  }, 60_000)
  afterAll(() => Effect.runPromise(Scope.close(scope, Exit.void)), 60_000)

  const test = (title: string, body: Effect.Effect<void, DockerError, Docker.Docker | Scope.Scope>) =>
    it.effect(title, () => Effect.suspend(() => Effect.provide(body, client(address))), 60_000)

  test(
    "agrees on the version of the API",
    Effect.gen(function*() {
      const docker = yield* Docker.Docker
      assert.strictEqual(yield* docker.apiVersion, "1.41")
      assert.strictEqual(docker.address, address)
    })
  )

  test(
    "imports, shows and removes an image",
    Effect.gen(function*() {
      const docker = yield* Docker.Docker
      const name = "effect-units-test/other:v2"
      assert.deepStrictEqual(
        (yield* reasonFrom(docker.inspectImage(name)))._tag,
        "ImageMissing"
      )
      const imported = yield* docker.importImage(archive, { image: name, changes: [`CMD ["echo", "by default"]`] })
      assert.deepInclude(imported, { RepoTags: [name] })
      assert.deepStrictEqual(imported.Config?.Cmd, ["echo", "by default"])
      assert.deepStrictEqual(yield* docker.inspectImage(name), imported)
      const { Id } = yield* docker.createContainer({ spec: { Image: name } })
      yield* docker.startContainer(Id)
      assert.strictEqual(yield* docker.waitContainer(Id), 0)
      assert.deepStrictEqual(yield* lines(Id), [{ stream: "stdout", text: "by default" }])
      yield* docker.removeContainer(Id)
      yield* docker.removeImage(name)
      assert.strictEqual((yield* reasonFrom(docker.inspectImage(name)))._tag, "ImageMissing")
      assert.strictEqual((yield* reasonFrom(docker.removeImage(name)))._tag, "ImageMissing")
    })
  )

  test(
    "creates, starts, stops and removes a container, and says whether there was anything to do",
    Effect.gen(function*() {
      const docker = yield* Docker.Docker
      const { Id, Warnings } = yield* docker.createContainer({
        name: "effect-units-life",
        spec: {
          Image: image,
          Cmd: script(untilTold),
          Env: ["A=1"],
          Labels: { "effect-units.test": "life" },
          HostConfig: { Binds: ["/tmp:/models:ro"], Memory: 64 * 1024 * 1024, ShmSize: 128 * 1024 * 1024 }
        }
      })
      // What an engine warns of where the machine forwards nothing is no word on this container.
      assert.deepStrictEqual(Warnings.filter((warning) => !warning.startsWith("IPv4 forwarding is disabled")), [])
      const created = yield* docker.inspectContainer("effect-units-life")
      assert.deepInclude(created, { Id, Name: "/effect-units-life" })
      assert.deepInclude(created.State, { Status: "created", Running: false, Pid: 0, OOMKilled: false, Error: "" })
      assert.deepStrictEqual(created.Config, {
        Image: image,
        Cmd: script(untilTold),
        Tty: false,
        Labels: { "effect-units.test": "life" }
      })
      assert.deepInclude(created.HostConfig, {
        Binds: ["/tmp:/models:ro"],
        Memory: 64 * 1024 * 1024,
        ShmSize: 128 * 1024 * 1024,
        PortBindings: {}
      })
      assert.isTrue(yield* docker.startContainer(Id))
      assert.isFalse(yield* docker.startContainer(Id))
      assert.deepStrictEqual(yield* firstLine(Id), [{ stream: "stdout", text: "ready" }])
      const { State } = yield* docker.inspectContainer(Id)
      assert.deepInclude(State, { Status: "running", Running: true })
      assert.isAbove(State.Pid, 0)
      const end = yield* Effect.forkChild(docker.waitContainer(Id), { startImmediately: true })
      assert.isTrue(yield* docker.stopContainer(Id))
      assert.isFalse(yield* docker.stopContainer(Id))
      assert.strictEqual(yield* Fiber.join(end), 3)
      assert.strictEqual(yield* docker.waitContainer(Id), 3)
      assert.deepInclude((yield* docker.inspectContainer(Id)).State, { Status: "exited", Running: false, ExitCode: 3 })
      assert.deepStrictEqual(yield* lines(Id), [{ stream: "stdout", text: "ready" }, {
        stream: "stdout",
        text: "told"
      }])
      yield* docker.removeContainer(Id)
      for (
        const call of [
          docker.inspectContainer(Id),
          docker.startContainer(Id),
          docker.stopContainer(Id),
          docker.killContainer(Id),
          docker.waitContainer(Id),
          docker.removeContainer(Id),
          docker.usage(Id),
          Stream.runDrain(docker.logs(Id))
        ]
      ) {
        const reason = yield* reasonFrom<unknown, never>(call)
        assert.deepInclude(reason, { _tag: "ContainerNotFound", container: Id, retryable: false })
      }
    })
  )

  test(
    "kills what does not end in time, and sends other signals",
    Effect.gen(function*() {
      const docker = yield* Docker.Docker
      const deaf = yield* running("trap '' TERM; echo ready; while :; do sleep 0.05; done")
      yield* firstLine(deaf)
      assert.isTrue(yield* docker.stopContainer(deaf, { timeout: "1 second" }))
      assert.strictEqual(yield* docker.waitContainer(deaf), 137)
      const told = yield* running(untilTold)
      yield* firstLine(told)
      yield* docker.killContainer(told, { signal: "SIGTERM" })
      assert.strictEqual(yield* docker.waitContainer(told), 3)
      const killed = yield* running(untilTold)
      yield* docker.killContainer(killed)
      assert.strictEqual(yield* docker.waitContainer(killed), 137)
    })
  )

  test(
    "names what stands in the way of a container",
    Effect.gen(function*() {
      const docker = yield* Docker.Docker
      const id = yield* running(untilTold)
      const name = (yield* docker.inspectContainer(id)).Name.slice(1)
      const same = yield* reasonFrom(docker.createContainer({ name, spec: { Image: image, Cmd: ["true"] } }))
      assert.deepInclude(same, { _tag: "Conflict", in_progress: false, retryable: false })
      assert.include(same.message, id)
      assert.strictEqual((yield* reasonFrom(docker.removeContainer(id)))._tag, "Conflict")
      yield* docker.removeContainer(id, { force: true })
      const created = yield* container({ Cmd: ["true"] })
      assert.strictEqual((yield* reasonFrom(docker.killContainer(created)))._tag, "Conflict")
      const absent = yield* reasonFrom(docker.createContainer({ spec: { Image: "effect-units-absent:v1" } }))
      assert.deepInclude(absent, { _tag: "ImageMissing", image: "effect-units-absent:v1", retryable: false })
      const nothing = yield* reasonFrom(docker.createContainer({ spec: { Image: image } }))
      assert.deepInclude(nothing, { _tag: "Refused", status: 400, detail: "No command specified", retryable: false })
      const program = yield* reasonFrom(docker.startContainer(yield* container({ Cmd: ["no-such-program"] })))
      assert.deepInclude(program, { _tag: "Refused", status: 400, retryable: false })
      assert.include(program.message, "no-such-program")
      const little = yield* reasonFrom(
        docker.createContainer({ spec: { Image: image, Cmd: ["true"], HostConfig: { Memory: 1000 } } })
      )
      assert.strictEqual(little._tag, "OutOfMemory")
      const gpu = yield* container({
        Cmd: ["true"],
        HostConfig: { DeviceRequests: [{ Driver: "nvidia", Count: -1, Capabilities: [["gpu"]] }] }
      })
      assert.strictEqual((yield* reasonFrom(docker.startContainer(gpu)))._tag, "NoGpu")
    })
  )

  test(
    "lists containers by label, state and name, newest first",
    Effect.gen(function*() {
      const docker = yield* Docker.Docker
      const first = yield* running(untilTold, { Labels: { "effect-units.list": "a", other: "1" } })
      const second = yield* container({ Cmd: ["true"], Labels: { "effect-units.list": "b" } })
      const ids = (options: Parameters<typeof docker.listContainers>[0]) =>
        Effect.map(docker.listContainers(options), (list) => list.map(({ Id }) => Id))
      const all = { all: true, filters: { label: ["effect-units.list"] } }
      assert.deepStrictEqual(yield* ids(all), [second, first])
      assert.deepStrictEqual(yield* ids({ filters: all.filters }), [first])
      assert.deepStrictEqual(yield* ids({ all: true, filters: { label: ["effect-units.list=b"] } }), [second])
      assert.deepStrictEqual(yield* ids({ filters: { label: ["effect-units.list"], status: ["created"] } }), [second])
      const [summary] = yield* docker.listContainers(all)
      assert.deepInclude(summary, {
        Id: second,
        Image: image,
        State: "created",
        Labels: { "effect-units.list": "b" },
        Ports: []
      })
      const [name = ""] = summary?.Names ?? []
      assert.deepStrictEqual(yield* ids({ all: true, filters: { name: [`^${name}$`] } }), [second])
      assert.deepStrictEqual(yield* ids({ all: true, filters: { id: [first] } }), [first])
    })
  )

  test(
    "reads a log whole, in part, by stream, with times, and of a terminal",
    Effect.gen(function*() {
      const docker = yield* Docker.Docker
      const id = yield* running(
        "for i in 1 2 3; do echo out $i; sleep 0.02; echo err $i >&2; sleep 0.02; done; echo -n 'größer 日本'"
      )
      yield* docker.waitContainer(id)
      const out = (text: string) => ({ stream: "stdout", text })
      const err = (text: string) => ({ stream: "stderr", text })
      assert.deepStrictEqual(
        yield* lines(id),
        [out("out 1"), err("err 1"), out("out 2"), err("err 2"), out("out 3"), err("err 3"), out("größer 日本")]
      )
      assert.deepStrictEqual(yield* lines(id, { tail: 2 }), [err("err 3"), out("größer 日本")])
      assert.deepStrictEqual(
        yield* lines(id, { streams: ["stderr"] }),
        [err("err 1"), err("err 2"), err("err 3")]
      )
      assert.deepStrictEqual(yield* lines(id, { since: 4_000_000_000 }), [])
      const [timed] = yield* lines(id, { timestamps: true })
      assert.strictEqual(timed?.text, "out 1")
      assert.match(timed?.time ?? "", /^\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d+Z$/)

      const terminal = yield* running("echo out; echo err >&2", { Tty: true })
      yield* docker.waitContainer(terminal)
      assert.deepStrictEqual(yield* lines(terminal), [out("out"), out("err")])
      assert.strictEqual(
        Buffer.concat((yield* Stream.runCollect(docker.logs(terminal))).map(({ bytes }) => bytes)).toString(),
        "out\r\nerr\r\n"
      )
    })
  )

  test(
    "follows a log until the container ends, or for as long as somebody reads",
    Effect.gen(function*() {
      const docker = yield* Docker.Docker
      const id = yield* running(untilTold)
      yield* firstLine(id)
      const rest = yield* Effect.forkChild(lines(id, { follow: true }), { startImmediately: true })
      yield* docker.stopContainer(id)
      assert.deepStrictEqual((yield* Fiber.join(rest)).map(({ text }) => text), ["ready", "told"])
      const endless = yield* running("yes abcdefgh | head -n 100000; while :; do sleep 0.05; done")
      const some = yield* docker.logLines(endless, { follow: true }).pipe(Stream.take(20_000), Stream.runCollect)
      assert.strictEqual(some.length, 20_000)
      assert.isTrue(some.every(({ text }) => text === "abcdefgh"))
      assert.isTrue((yield* docker.inspectContainer(endless)).State.Running)
    })
  )

  test(
    "tells what happens, by label",
    Effect.gen(function*() {
      const docker = yield* Docker.Docker
      const label = "effect-units.events=1"
      const filters = { label: [label], type: ["container"], event: ["create", "start", "die", "destroy"] }
      const events = yield* docker.events({ filters, since: 1 }).pipe(
        Stream.take(4),
        Stream.runCollect,
        Effect.forkChild({ startImmediately: true })
      )
      const { Id } = yield* docker.createContainer({
        spec: { Image: image, Cmd: ["true"], Labels: { "effect-units.events": "1" } }
      })
      yield* docker.startContainer(Id)
      yield* docker.waitContainer(Id)
      yield* docker.removeContainer(Id)
      const seen = yield* Fiber.join(events)
      assert.deepStrictEqual(seen.map(({ Action, Actor }) => [Action, Actor.ID]), [
        ["create", Id],
        ["start", Id],
        ["die", Id],
        ["destroy", Id]
      ])
      assert.deepInclude(seen[2]?.Actor.Attributes, { exitCode: "0", image })
      assert.deepStrictEqual(yield* Stream.runCollect(docker.events({ filters, since: 1, until: 2 })), [])
    })
  )

  test(
    "measures what a container uses, and nothing of one that has ended",
    Effect.gen(function*() {
      const docker = yield* Docker.Docker
      const usage = yield* docker.usage(yield* running("while :; do :; done"))
      assert.isAbove(usage.cpuPercent, 0)
      assert.isAbove(usage.memoryBytes, 4096)
      assert.isAbove(usage.memoryLimitBytes, usage.memoryBytes)
      assert.strictEqual(usage.pids, 1)
      const ended = yield* running("true")
      yield* docker.waitContainer(ended)
      assert.deepStrictEqual(yield* docker.usage(ended), {
        cpuPercent: 0,
        memoryBytes: 0,
        memoryLimitBytes: 0,
        pids: 0
      })
    })
  )

  test(
    "shows that a container was killed for its memory",
    Effect.gen(function*() {
      const docker = yield* Docker.Docker
      const id = yield* running("a=xxxxxxxx; while :; do a=$a$a; done", { HostConfig: { Memory: 16 * 1024 * 1024 } })
      assert.strictEqual(yield* docker.waitContainer(id), 137)
      assert.deepInclude((yield* docker.inspectContainer(id)).State, {
        Status: "exited",
        OOMKilled: true,
        ExitCode: 137
      })
    })
  )

  test(
    "pulls an image with its progress, and with the credentials that its registry wants",
    Effect.gen(function*() {
      const docker = yield* Docker.Docker
      const open = `${yield* registry()}/busybox:v1`
      const progress = yield* Stream.runCollect(docker.pullImage(open))
      assert.isTrue(progress.some(({ status }) => status === "Pull complete"))
      assert.isTrue(progress.some(({ progressDetail }) => progressDetail?.current !== undefined))
      assert.deepStrictEqual((yield* docker.inspectImage(open)).Config?.Cmd, ["echo", "pulled"])

      const closed = `${yield* registry({ username: "me", password: "secret??~~" })}/busybox:v1`
      const auth = (password: string) => ({ username: "me", password: Redacted.make(password) })
      assert.deepInclude(
        yield* reasonFrom(Stream.runDrain(docker.pullImage(closed))),
        { _tag: "Unauthorized", image: closed, retryable: false }
      )
      const wrong = yield* failureOf(Stream.runDrain(docker.pullImage(closed, { auth: auth("wrong-secret") })))
      assert.strictEqual(wrong.reason._tag, "Unauthorized")
      assert.notInclude(inspect(wrong, { depth: 20 }) + JSON.stringify(wrong) + wrong.stack, "wrong-secret")
      yield* Stream.runDrain(docker.pullImage(closed, { auth: auth("secret??~~") }))
      assert.include((yield* docker.inspectImage(closed)).RepoTags, closed)
    })
  )

  test(
    "fails for what goes wrong with a pull, before its answer and inside it",
    Effect.gen(function*() {
      const docker = yield* Docker.Docker
      const host = yield* registry()
      const pulled = (image: string) => reasonFrom(Stream.runDrain(docker.pullImage(image)))
      assert.deepInclude(yield* pulled(`${host}/busybox:v9`), { _tag: "ImageMissing", retryable: false })
      assert.deepInclude(yield* pulled(`${host}/absent`), { _tag: "ImageMissing", image: `${host}/absent` })
      const broken = yield* pulled(`${host}/broken:v1`)
      assert.deepInclude(broken, { _tag: "Refused", status: 200, retryable: true })
      assert.include(broken.message, "filesystem layer verification failed")
      const nobody = yield* pulled(`127.0.0.1:${yield* freePort}/busybox:v1`)
      assert.deepInclude(nobody, { _tag: "Refused", status: 500, retryable: true })
      for (const image of ["", "UPPER CASE", "a/../b", "x?fromSrc=-", "name:tag:tag", "-x"]) {
        assert.deepStrictEqual((yield* pulled(image))._tag, "InvalidImage")
      }
    })
  )

  it.effect.skipIf(!publishes)(
    "publishes a port, and names one that is taken by a container or by another program",
    () =>
      Effect.gen(function*() {
        const docker = yield* Docker.Docker
        const [inner, outer, taken] = [yield* freePort, yield* freePort, yield* freePort]
        const publishing = (port: number) => ({
          ExposedPorts: { [`${inner}/tcp`]: {} },
          HostConfig: { PortBindings: { [`${inner}/tcp`]: [{ HostIp: "127.0.0.1", HostPort: String(port) }] } }
        })
        const serving = `trap 'exit 0' TERM; httpd -f -p ${inner} -h www & wait`
        const id = yield* running(serving, publishing(outer))
        assert.strictEqual(yield* served(outer, "/health"), "healthy\n")
        const [found] = yield* docker.listContainers({ filters: { publish: [String(outer)] } })
        assert.strictEqual(found?.Id, id)
        assert.deepStrictEqual(found?.Ports, [{ IP: "127.0.0.1", PrivatePort: inner, PublicPort: outer, Type: "tcp" }])

        const second = yield* container({ Cmd: ["true"], ...publishing(outer) })
        const byContainer = yield* reasonFrom(docker.startContainer(second))
        assert.deepInclude(byContainer, { _tag: "PortTaken", port: outer, retryable: true })

        yield* Effect.acquireRelease(
          Effect.callback<net.Server>((resume) => {
            const server = net.createServer().listen(taken, "127.0.0.1", () => resume(Effect.succeed(server)))
          }),
          (server) => Effect.callback<void>((resume) => void server.close(() => resume(Effect.void)))
        )
        const third = yield* container({ Cmd: ["true"], ...publishing(taken) })
        assert.deepInclude(yield* reasonFrom(docker.startContainer(third)), { _tag: "PortTaken", port: taken })

        yield* docker.removeContainer(id, { force: true })
        assert.isTrue(yield* docker.startContainer(second))
      }).pipe((test) => Effect.suspend(() => Effect.provide(test, client(address)))),
    60_000
  )
}

withProgram("busybox", "the stand-in", () => {
  suite(Effect.map(DockerServer.make(), ({ address }) => address), { publishes: true })
})

withProgram("Docker", "Docker's own engine", () => {
  suite(dockerd, { publishes: canPublish() })
})

const standIn = Effect.fnUntraced(function*(options: DockerNode.Options = {}) {
  const server = yield* DockerServer.make()
  const context = yield* Layer.build(client(server.address, options))
  return { ...server, docker: Context.get(context, Docker.Docker) }
})

withProgram("busybox", "an engine that does not behave", () => {
  it.effect("tells how it failed, and whether a retry helps", () =>
    Effect.gen(function*() {
      const { docker, inject } = yield* standIn()
      const answer = (status: number, message: string) =>
        Effect.andThen(
          inject("POST", /start$/, { _tag: "Answer", status, message }),
          reasonFrom(docker.startContainer("x"))
        )
      assert.deepInclude(yield* answer(500, "something broke"), { _tag: "Refused", status: 500, retryable: true })
      assert.deepInclude(yield* answer(409, "removal of container x is already in progress"), {
        _tag: "Conflict",
        in_progress: true,
        retryable: true
      })
      assert.deepInclude(yield* answer(500, "write /var/lib/docker/x: no space left on device"), { _tag: "DiskFull" })
      assert.deepInclude(yield* answer(500, "fork/exec /proc/self/exe: cannot allocate memory"), {
        _tag: "OutOfMemory"
      })
      yield* inject("GET", /json$/, { _tag: "Lines", lines: ["<html>not an engine</html>"], last: "end" })
      assert.deepInclude(yield* reasonFrom(docker.inspectContainer("x")), { _tag: "Undecodable", retryable: false })
      yield* inject("POST", /start$/, { _tag: "Lines", lines: [], last: "cut" })
      assert.deepInclude(yield* reasonFrom(docker.startContainer("x")), { _tag: "Unreachable", retryable: true })
    }))

  it.effect("waits for an answer as long as it may, and no longer", () =>
    Effect.gen(function*() {
      const { docker, inject, seen } = yield* standIn({ timeout: "20 seconds", pullTimeout: "3 minutes" })
      yield* docker.apiVersion
      const silent = Effect.fnUntraced(function*<A>(
        call: Effect.Effect<A, DockerError>,
        path: RegExp,
        fault: DockerServer.Fault,
        seconds: number
      ) {
        const before = seen.length
        yield* inject("POST", path, fault)
        const fiber = yield* Effect.forkChild(reasonFrom(call), { startImmediately: true })
        const arrived = Effect.promise(() => new Promise((resolve) => setImmediate(resolve)))
        while (seen.length === before) yield* arrived
        // Its head has to be read, too, before it is silent.
        for (let i = 0; i < 20; i++) yield* arrived
        yield* TestClock.adjust(Duration.millis(seconds * 1000 - 1))
        assert.isUndefined(fiber.pollUnsafe())
        yield* TestClock.adjust("1 milli")
        const reason = yield* Fiber.join(fiber)
        assert.isTrue(yield* Effect.promise(() => seen[before]?.ended ?? Promise.resolve(false)))
        return reason
      })
      const hang: DockerServer.Fault = { _tag: "Hang" }
      assert.deepInclude(yield* silent(docker.startContainer("x"), /start$/, hang, 20), {
        _tag: "TimedOut",
        waiting_for: "response",
        after_seconds: 20,
        retryable: true
      })
      const stop = docker.stopContainer("x", { timeout: "40 seconds" })
      assert.strictEqual((yield* silent(stop, /stop/, hang, 60))._tag, "TimedOut")
      const pull = Stream.runDrain(docker.pullImage("a/b"))
      const lines: DockerServer.Fault = { _tag: "Lines", lines: [{ status: "Pulling" }], last: "hang" }
      assert.deepInclude(yield* silent(pull, /create/, lines, 180), {
        _tag: "TimedOut",
        waiting_for: "data",
        after_seconds: 180
      })
    }))

  it.effect("fails a pull that is cut, that says so inside its answer, or that ends without the image", () =>
    Effect.gen(function*() {
      const { docker, inject } = yield* standIn()
      const pulled = (lines: ReadonlyArray<unknown>, last: "end" | "cut") =>
        Effect.gen(function*() {
          yield* inject("POST", /images.create/, { _tag: "Lines", lines, last })
          const told: Array<string> = []
          const exit = yield* docker.pullImage("a/b:c").pipe(
            Stream.runForEach(({ status }) => Effect.sync(() => void told.push(status))),
            reasonFrom
          )
          return { told, reason: exit }
        })
      const first = { status: "Pulling fs layer", id: "1", progressDetail: {} }
      const cut = yield* pulled([first], "cut")
      assert.deepInclude(cut.reason, { _tag: "Unreachable", retryable: true })
      const inside = yield* pulled(
        [first, {}, { aux: { ID: "x" } }, { errorDetail: { code: 1, message: "unexpected EOF" }, error: "EOF" }, first],
        "end"
      )
      assert.deepStrictEqual(inside.told, ["Pulling fs layer"])
      assert.deepInclude(inside.reason, { _tag: "Refused", status: 200, detail: "unexpected EOF", retryable: true })
      const denied = yield* pulled([{ error: "pull access denied for a/b, repository does not exist" }], "end")
      assert.strictEqual(denied.reason._tag, "Unauthorized")
      assert.strictEqual((yield* pulled([first], "end")).reason._tag, "ImageMissing")
      assert.strictEqual((yield* pulled(["{\"status\": oops"], "end")).reason._tag, "Undecodable")
    }))

  it.effect("fails a log that is cut, and joins one that comes in any pieces", () =>
    Effect.gen(function*() {
      const { docker, inject } = yield* standIn()
      yield* docker.importImage(archive, { image })
      const { Id } = yield* docker.createContainer({ spec: { Image: image, Cmd: script("echo größer; echo err >&2") } })
      yield* docker.startContainer(Id)
      yield* docker.waitContainer(Id)
      const texts = Effect.map(Stream.runCollect(docker.logLines(Id)), (lines) => lines.map(({ text }) => text).sort())
      for (const bytes of [1, 3, 7, 9]) {
        yield* inject("GET", /logs/, { _tag: "Split", bytes })
        assert.deepStrictEqual(yield* texts, ["err", "größer"])
      }
      for (const after of [3, 8, 12]) {
        yield* inject("GET", /logs/, { _tag: "Cut", after })
        assert.deepInclude(yield* reasonFrom(texts), { _tag: "Unreachable", retryable: true })
      }
    }))

  it.effect("is let go of when a call is interrupted, or a stream not read to its end", () =>
    Effect.gen(function*() {
      const { docker, inject, seen } = yield* standIn()
      yield* docker.importImage(archive, { image })
      const { Id } = yield* docker.createContainer({
        spec: { Image: image, Cmd: script("while :; do echo x; sleep 0.01; done") }
      })
      yield* docker.startContainer(Id)
      const letGo = Effect.suspend(() => Effect.promise(() => seen.at(-1)?.ended ?? Promise.resolve(false)))
      const arrived = (path: RegExp) =>
        Effect.promise(async () => {
          while (!path.test(seen.at(-1)?.path ?? "")) await new Promise((resolve) => setImmediate(resolve))
        })
      yield* docker.logLines(Id, { follow: true }).pipe(Stream.take(3), Stream.runDrain)
      assert.isTrue(yield* letGo)
      yield* inject("POST", /images.create/, { _tag: "Lines", lines: [{ status: "Pulling" }], last: "hang" })
      const calls: ReadonlyArray<readonly [RegExp, Effect.Effect<unknown, DockerError>]> = [
        [/wait/, docker.waitContainer(Id)],
        [/events/, Stream.runDrain(docker.events())],
        [/logs/, Stream.runForEach(docker.logs(Id, { follow: true }), () => Effect.never)],
        [/images.create/, Stream.runDrain(docker.pullImage("a/b"))]
      ]
      for (const [path, call] of calls) {
        const fiber = yield* Effect.forkChild(call, { startImmediately: true })
        yield* arrived(path)
        yield* Fiber.interrupt(fiber)
        assert.isTrue(yield* letGo)
      }
      assert.isTrue((yield* docker.inspectContainer(Id)).State.Running)
    }))
})

describe("make", () => {
  /** A client whose engine answers by a function. */
  const over = (answer: (path: string) => Response) =>
    Docker.make(
      HttpClient.make((request, url) =>
        Effect.sync(() => HttpClientResponse.fromWeb(request, answer(`${url.pathname}${url.search}`)))
      ),
      { address: "a test", baseUrl: "http://localhost" }
    )
  const ping = (version: string) => new Response("OK", { headers: { "api-version": version } })

  it.effect("speaks the newest version that both sides know, and none that is too old", () =>
    Effect.gen(function*() {
      assert.strictEqual(yield* over(() => ping("1.99")).apiVersion, "1.47")
      assert.strictEqual(yield* over(() => ping("2.0")).apiVersion, "1.47")
      assert.strictEqual(yield* over(() => ping("1.40")).apiVersion, "1.40")
      assert.deepInclude(yield* reasonFrom(over(() => ping("1.9")).apiVersion), {
        _tag: "TooOld",
        version: "1.9",
        minimum: "1.40"
      })
      assert.strictEqual((yield* reasonFrom(over(() => new Response("OK")).apiVersion))._tag, "Undecodable")
    }))

  it.effect("asks for the version again where the engine has become an older one", () =>
    Effect.gen(function*() {
      const asked: Array<string> = []
      let version = "1.45"
      const docker = over((path) => {
        asked.push(path)
        if (path === "/_ping") return ping(version)
        return path.startsWith(`/v${version}/`)
          ? Response.json([])
          : Response.json({ message: "client version 1.45 is too new. Maximum supported API version is 1.41" }, {
            status: 400
          })
      })
      assert.deepStrictEqual(yield* docker.listContainers(), [])
      version = "1.41"
      assert.deepInclude(yield* reasonFrom(docker.listContainers()), { _tag: "Refused", status: 400 })
      assert.deepStrictEqual(yield* docker.listContainers(), [])
      assert.strictEqual(asked.filter((path) => path === "/_ping").length, 2)
    }))

  const Frame = Schema.Struct({
    stream: Schema.Literals(["stdout", "stderr"]),
    text: Schema.String.check(Schema.isMaxLength(40))
  })
  it.effect.prop("gives what was written, however frames and chunks are cut", {
    frames: Schema.Array(Frame).check(Schema.isMaxLength(12)),
    sizes: Schema.NonEmptyArray(Schema.Int.check(Schema.isBetween({ minimum: 1, maximum: 30 })))
  }, ({ frames, sizes }) =>
    Effect.gen(function*() {
      const bytes = Buffer.concat(frames.flatMap(({ stream, text }) => {
        const payload = Buffer.from(text)
        const header = Buffer.from([stream === "stdout" ? 1 : 2, 0, 0, 0, 0, 0, 0, 0])
        header.writeUInt32BE(payload.length, 4)
        return [header, payload]
      }))
      const body = new ReadableStream({
        start: (controller) => {
          for (let at = 0, i = 0; at < bytes.length; i++) {
            const size = sizes[i % sizes.length] ?? 1
            controller.enqueue(new Uint8Array(bytes.subarray(at, at + size)))
            at += size
          }
          controller.close()
        }
      })
      const docker = over((path) =>
        path === "/_ping" ? ping("1.41") : path.includes("/logs") ? new Response(body) : Response.json(inspected)
      )
      const chunks = yield* Stream.runCollect(docker.logs("x"))
      for (const stream of ["stdout", "stderr"] as const) {
        assert.strictEqual(
          Buffer.concat(chunks.filter((chunk) => chunk.stream === stream).map(({ bytes }) => bytes)).toString(),
          Buffer.concat(frames.filter((frame) => frame.stream === stream).map(({ text }) => Buffer.from(text)))
            .toString()
        )
      }
    }), { arbitrary: { runs: 100 } })

  const inspected = {
    Id: "x",
    Name: "/x",
    Created: "",
    Image: "",
    State: {
      Status: "exited",
      Running: false,
      OOMKilled: false,
      Pid: 0,
      ExitCode: 0,
      Error: "",
      StartedAt: "",
      FinishedAt: ""
    },
    Config: { Image: "", Cmd: null, Tty: false, Labels: null },
    HostConfig: { NetworkMode: "", Memory: 0, ShmSize: 0 }
  }
  const logging = (bytes: Uint8Array<ArrayBuffer>) =>
    over((path) =>
      path === "/_ping" ? ping("1.41") : path.includes("/logs") ? new Response(bytes) : Response.json(inspected)
    )
  const frame = (type: number, text: string) => {
    const header = Buffer.from([type, 0, 0, 0, 0, 0, 0, 0])
    header.writeUInt32BE(Buffer.byteLength(text), 4)
    return Buffer.concat([header, Buffer.from(text)])
  }

  it.effect("fails a log that has no frames, and one that carries a failure of the engine", () =>
    Effect.gen(function*() {
      const read = (bytes: Buffer) => reasonFrom(Stream.runDrain(logging(new Uint8Array(bytes)).logs("x")))
      assert.strictEqual((yield* read(Buffer.from("plain text, no frames")))._tag, "Undecodable")
      assert.deepInclude(yield* read(frame(3, "error grabbing logs: EOF")), {
        _tag: "Refused",
        status: 200,
        detail: "error grabbing logs: EOF"
      })
    }))

  it.effect("gives a line that does not end in several, instead of keeping it", () =>
    Effect.gen(function*() {
      const docker = logging(new Uint8Array(Buffer.concat([frame(1, "x".repeat(150_000)), frame(1, "\nlast\n")])))
      const lengths = (yield* Stream.runCollect(docker.logLines("x"))).map(({ text }) => text.length)
      assert.deepStrictEqual(lengths, [65_536, 65_536, 18_928, 4])
    }))
})

describe("DockerNode", () => {
  it.effect("says that no engine is there, and what address it cannot use", () =>
    Effect.gen(function*() {
      const version = (host: string) =>
        Docker.Docker.use(({ apiVersion }) => apiVersion).pipe(Effect.provide(client(host)), Effect.flip)
      const absent = yield* version("unix:///nowhere/docker.sock")
      assert.deepInclude(absent, { _tag: "DockerError", action: "ask for the version of the API", retryable: true })
      assert.strictEqual(
        absent.message,
        "Cannot ask for the version of the API: No Docker Engine could be talked to at unix:///nowhere/docker.sock (ENOENT). " +
          "Start Docker, or say where it is with DOCKER_HOST."
      )
      const port = yield* freePort
      const refused = yield* version(`tcp://127.0.0.1:${port}`)
      assert.strictEqual(
        refused._tag === "DockerError" && refused.reason._tag === "Unreachable" ? refused.reason.code : "",
        "ECONNREFUSED"
      )
      for (const address of ["ssh://host", "/var/run/docker.sock", "tcp://", "tcp://a b"]) {
        const error = yield* version(address)
        assert.deepStrictEqual(error._tag === "DockerError" ? error.reason._tag : error._tag, "Unsupported")
      }
    }))
})

/** An engine over TCP, which says its version and nothing else. */
const overTcp = (tls?: https.ServerOptions) =>
  Effect.map(
    Effect.acquireRelease(
      Effect.promise(async () => {
        const answer: http.RequestListener = (_, response) => {
          response.writeHead(200, { "api-version": "1.41" }).end("OK")
        }
        const server = tls === undefined ? http.createServer(answer) : https.createServer(tls, answer)
        await once(server.listen(0, "127.0.0.1"), "listening")
        return server
      }),
      (server) =>
        Effect.promise(async () => {
          server.closeAllConnections()
          await new Promise((resolve) => server.close(resolve))
        })
    ),
    (server) => {
      const address = server.address()
      return `tcp://127.0.0.1:${typeof address === "object" ? address?.port : ""}`
    }
  )

const clientBy = (env: Record<string, string>) =>
  DockerNode.layerConfig.pipe(
    Layer.provide(Layer.merge(NodeServices.layer, ConfigProvider.layer(ConfigProvider.fromEnv({ env }))))
  )

/** The version that an engine says, by a client that the environment tells where to look. */
const versionBy = (env: Record<string, string>) =>
  Docker.Docker.use(({ address, apiVersion }) => Effect.map(apiVersion, (version) => [address, version])).pipe(
    Effect.provide(clientBy(env))
  )

describe("DockerNode.layerConfig", () => {
  it.effect("goes where DOCKER_HOST says, and to the usual socket where it says nothing", () =>
    Effect.gen(function*() {
      const host = yield* overTcp()
      assert.deepStrictEqual(yield* versionBy({ DOCKER_HOST: host, DOCKER_TLS_VERIFY: "" }), [host, "1.41"])
      const address = yield* Docker.Docker.use(({ address }) => Effect.succeed(address)).pipe(
        Effect.provide(clientBy({ DOCKER_HOST: "" }))
      )
      assert.strictEqual(address, "unix:///var/run/docker.sock")
      const unreadable = { DOCKER_HOST: host, DOCKER_TLS_VERIFY: "1", DOCKER_CERT_PATH: "/nowhere" }
      assert.strictEqual((yield* Effect.flip(versionBy(unreadable)))._tag, "PlatformError")
    }))
})

withProgram("openssl", "DockerNode over TLS", () => {
  it.effect("proves who it is, and wants the engine to do so", () =>
    Effect.gen(function*() {
      const directory = yield* Effect.acquireRelease(
        Effect.sync(() => fs.mkdtempSync(path.join(os.tmpdir(), "docker-tls-"))),
        (directory) => Effect.sync(() => fs.rmSync(directory, { recursive: true }))
      )
      const openssl = (...args: ReadonlyArray<string>) =>
        assert.strictEqual(spawnSync("openssl", args, { cwd: directory }).status, 0, args.join(" "))
      const read = (name: string) => fs.readFileSync(path.join(directory, name))
      const key = ["-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes"]
      openssl("req", "-x509", ...key, "-keyout", "ca-key.pem", "-out", "ca.pem", "-subj", "/CN=ca", "-days", "2")
      for (const name of ["server", "client"]) {
        openssl("req", ...key, "-keyout", `${name}-key.pem`, "-out", `${name}.csr`, "-subj", `/CN=${name}`)
        fs.writeFileSync(path.join(directory, `${name}.ext`), "subjectAltName=IP:127.0.0.1")
        const by = ["-CA", "ca.pem", "-CAkey", "ca-key.pem", "-CAcreateserial", "-days", "2", "-extfile", `${name}.ext`]
        openssl("x509", "-req", "-in", `${name}.csr`, ...by, "-out", `${name}.pem`)
      }
      fs.copyFileSync(path.join(directory, "client.pem"), path.join(directory, "cert.pem"))
      fs.copyFileSync(path.join(directory, "client-key.pem"), path.join(directory, "key.pem"))
      const tls = { cert: read("server.pem"), key: read("server-key.pem"), ca: read("ca.pem"), requestCert: true }
      const trusted = yield* overTcp(tls)
      const env = (host: string) => ({ DOCKER_HOST: host, DOCKER_TLS_VERIFY: "1", DOCKER_CERT_PATH: directory })
      assert.deepStrictEqual(yield* versionBy(env(trusted)), [trusted, "1.41"])

      openssl(
        "req",
        "-x509",
        ...key,
        "-keyout",
        "other-key.pem",
        "-out",
        "other.pem",
        "-subj",
        "/CN=other",
        "-days",
        "2"
      )
      const impostor = yield* overTcp({ cert: read("other.pem"), key: read("other-key.pem") })
      const error = yield* Effect.flip(versionBy(env(impostor)))
      assert.deepInclude(error._tag === "DockerError" ? error.reason : error, { _tag: "Unreachable", retryable: false })
      assert.include(error.message, "Check the certificates on both sides")
    }))
})

describe("reasonOf", () => {
  it("knows the port in what engines of several versions say", () => {
    const port = (detail: string) => {
      const reason = reasonOf(500, detail, {})
      return reason._tag === "PortTaken" ? reason.port : reason._tag
    }
    const prefix = "driver failed programming external connectivity on endpoint x (c0ffee0123): "
    assert.strictEqual(port(`${prefix}Bind for 0.0.0.0:8000 failed: port is already allocated`), 8000)
    assert.strictEqual(port(`${prefix}Bind for :::8000 failed: port is already allocated`), 8000)
    assert.strictEqual(
      port(`${prefix}Error starting userland proxy: listen tcp4 127.0.0.1:81: bind: address already in use`),
      81
    )
    assert.strictEqual(
      port(
        "failed to set up container networking: failed to bind host port for 0.0.0.0:9000:172.17.0.2:80/tcp: address already in use"
      ),
      9000
    )
    assert.strictEqual(port("failed to bind host port 0.0.0.0:9001/tcp: address already in use"), 9001)
    assert.strictEqual(port("address already in use"), undefined)
  })
})
