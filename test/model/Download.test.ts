import { NodeHttpClient, NodeServices } from "@effect/platform-node"
import { assert, describe, it } from "@effect/vitest"
import { Effect, Fiber, FileSystem, Layer, PlatformError, Schedule } from "effect"
import { HttpClientRequest } from "effect/http"
import { TestClock } from "effect/testing"
import * as Download from "../../src/model/Download.ts"
import {
  ChecksumMismatch,
  Disk,
  DiskFull,
  FileNotFound,
  InvalidResponse,
  Network,
  SizeMismatch,
  Timeout,
  UnsafePath
} from "../../src/model/HubError.ts"
import * as HubHttp from "../../src/model/HubHttp.ts"
import type { Progress } from "../../src/model/Progress.ts"
import { bytes, filesBelow, layer } from "./hubs.ts"
import * as HubServer from "./HubServer.ts"

const weights = bytes(100_000)
const hostOf = (url: string) => new URL(url).host

/** A repository of one file of our own choosing, and the download pointed at it. */
const setup = Effect.fnUntraced(function*(
  content: Uint8Array = weights,
  options: { readonly path?: string; readonly retry?: Schedule.Schedule<unknown> } = {}
) {
  const fs = yield* FileSystem.FileSystem
  const server = yield* Effect.acquireRelease(
    Effect.promise(() => HubServer.start()),
    (server) => Effect.promise(() => server.close())
  )
  const directory = yield* fs.makeTempDirectoryScoped()
  const path = options.path ?? "model.bin"
  server.addRepository({ repo: "acme/tiny", files: [{ path, content }] })
  const download = yield* Download.make(yield* HubHttp.make({ retry: options.retry ?? Schedule.recurs(3) }))
  const progress: Array<Progress> = []
  const fileAt = (path: string, content: Uint8Array): Download.File => ({
    path,
    request: HttpClientRequest.get(`${server.url}/acme/tiny/resolve/main/${path}`),
    size: content.length,
    sha256: HubServer.sha256(content),
    onStatus: (status, headers, text) =>
      status === 404 ? new FileNotFound({ path }) : HubHttp.statusReason(status, headers, text)
  })
  const all = (files: ReadonlyArray<Download.File>, parallel = 2) =>
    download.all({
      directory,
      files,
      parallel,
      onProgress: (report) => Effect.sync(() => void progress.push(report))
    })
  return {
    fs,
    server,
    directory,
    progress,
    fileAt,
    all,
    file: fileAt(path, content),
    /** Breaks a stalled body once the file has come to each of these lengths, one after the other. */
    breakAt: Effect.fnUntraced(function*<A, E>(
      fiber: Fiber.Fiber<A, E>,
      ...lengths: ReadonlyArray<number>
    ) {
      for (const length of lengths) {
        yield* Effect.promise(server.stalled)
        yield* waitForBytes(`${directory}/${path}.part`, length)
        server.breakOff(path)
      }
      return yield* Fiber.join(fiber)
    }),
    /** What was asked for, as `Range` and `If-Range`. */
    ranges: () => server.requests.map(({ headers }) => [headers.range, headers["if-range"]])
  }
})

const etag = `"${HubServer.sha256(weights).slice(0, 16)}"`
const done = { path: "model.bin", size: weights.length, sha256: HubServer.sha256(weights) }

it.layer(layer)("Download", (it) => {
  describe("a file", () => {
    it.effect("is put in place whole, with its checksum", () =>
      Effect.gen(function*() {
        const { all, directory, file } = yield* setup()
        assert.deepStrictEqual(yield* all([file]), [done])
        assert.deepStrictEqual(yield* filesBelow(directory), { "model.bin": weights })
      }))

    it.effect("may come in many pieces", () =>
      Effect.gen(function*() {
        const { all, directory, file, server } = yield* setup()
        server.fault("model.bin", { kind: "slow", bytes: 9_999, everyMillis: 1 })
        assert.deepStrictEqual(yield* all([file]), [done])
        assert.deepStrictEqual(yield* filesBelow(directory), { "model.bin": weights })
      }))

    it.effect("may be empty", () =>
      Effect.gen(function*() {
        const { all, directory, file, server } = yield* setup(new Uint8Array(0))
        yield* all([file])
        assert.deepStrictEqual(yield* filesBelow(directory), { "model.bin": new Uint8Array(0) })
        assert.deepStrictEqual(server.requests, [])
      }))

    it.effect("keeps its folders, so that equal names do not collide", () =>
      Effect.gen(function*() {
        const { all, directory, fileAt, server } = yield* setup()
        const [a, b] = [bytes(10, 2), bytes(20, 3)]
        server.addRepository({
          repo: "acme/tiny",
          files: [{ path: "a/x.bin", content: a }, { path: "b/c/x.bin", content: b }]
        })
        yield* all([fileAt("a/x.bin", a), fileAt("b/c/x.bin", b)])
        assert.deepStrictEqual(yield* filesBelow(directory), { "a/x.bin": a, "b/c/x.bin": b })
      }))

    it.effect("that leads out of its folder is refused before anything is asked for or written", () =>
      Effect.gen(function*() {
        const { all, directory, file, server } = yield* setup()
        const paths = [
          "../x",
          "a/../../x",
          "/etc/x",
          "a//x",
          "./x",
          "a/.",
          "",
          "a\\..\\x",
          "C:/x",
          "x\0.bin",
          "x\n.bin"
        ]
        for (const path of paths) {
          assert.deepStrictEqual(yield* Effect.flip(all([file, { ...file, path }])), new UnsafePath({ path }))
        }
        assert.deepStrictEqual(yield* filesBelow(directory), {})
        assert.deepStrictEqual(server.requests, [])
      }))

    it.effect("that is not there leaves nothing behind", () =>
      Effect.gen(function*() {
        const { all, directory, fileAt } = yield* setup()
        const reason = yield* Effect.flip(all([fileAt("other.bin", weights)]))
        assert.deepStrictEqual(reason, new FileNotFound({ path: "other.bin" }))
        assert.deepStrictEqual(yield* filesBelow(directory), {})
      }))
  })

  describe("a broken connection", () => {
    it.effect("is taken up where it broke", () =>
      Effect.gen(function*() {
        const { all, breakAt, directory, file, ranges, server } = yield* setup()
        server.fault("model.bin", { kind: "stall", after: 30_000 }, { kind: "stall", after: 30_000 })
        assert.deepStrictEqual(yield* breakAt(yield* Effect.forkChild(all([file])), 30_000, 60_000), [done])
        assert.deepStrictEqual(ranges(), [
          [undefined, undefined],
          ["bytes=30000-", etag],
          ["bytes=60000-", etag]
        ])
        assert.deepStrictEqual(yield* filesBelow(directory), { "model.bin": weights })
      }))

    it.effect("leaves what arrived when the schedule ends, and the next call goes on from there", () =>
      Effect.gen(function*() {
        const { all, breakAt, directory, file, ranges, server } = yield* setup(weights, { retry: Schedule.recurs(1) })
        server.fault("model.bin", { kind: "stall", after: 30_000 }, { kind: "stall", after: 10_000 })
        const reason = yield* Effect.flip(breakAt(yield* Effect.forkChild(all([file])), 30_000, 40_000))
        assert.instanceOf(reason, Network)
        assert.strictEqual(reason.host, hostOf(server.url))
        assert.deepStrictEqual(yield* filesBelow(directory), { "model.bin.part": weights.slice(0, 40_000) })
        yield* all([file])
        assert.deepStrictEqual(ranges().slice(2), [["bytes=40000-", undefined]])
        assert.deepStrictEqual(yield* filesBelow(directory), { "model.bin": weights })
      }))

    it.effect("counts anew after a mebibyte of progress", () =>
      Effect.gen(function*() {
        const large = bytes(4 * 1024 * 1024)
        const { all, breakAt, file, server } = yield* setup(large, { retry: Schedule.recurs(1) })
        const cut = { kind: "stall", after: 1_200_000 } as const
        server.fault("model.bin", cut, cut, cut)
        yield* breakAt(yield* Effect.forkChild(all([file])), 1_200_000, 2_400_000, 3_600_000)
        assert.strictEqual(server.requests.length, 4)
      }))

    it.effect("starts over when the server sends the whole file again", () =>
      Effect.gen(function*() {
        const { all, breakAt, directory, file, server } = yield* setup()
        server.fault("model.bin", { kind: "stall", after: 30_000 }, { kind: "whole" })
        yield* breakAt(yield* Effect.forkChild(all([file])), 30_000)
        assert.deepStrictEqual(yield* filesBelow(directory), { "model.bin": weights })
      }))

    it.effect("starts over when the file has changed meanwhile", () =>
      Effect.gen(function*() {
        const { all, breakAt, directory, file, ranges, server } = yield* setup()
        server.fault("model.bin", { kind: "stall", after: 30_000, etag: "\"old\"" })
        yield* breakAt(yield* Effect.forkChild(all([file])), 30_000)
        assert.deepStrictEqual(ranges(), [[undefined, undefined], ["bytes=30000-", "\"old\""]])
        assert.deepStrictEqual(yield* filesBelow(directory), { "model.bin": weights })
      }))

    it.effect("starts over when a server that ignores If-Range sends a part of another version", () =>
      Effect.gen(function*() {
        const { all, breakAt, directory, file, ranges, server } = yield* setup()
        server.fault("model.bin", { kind: "stall", after: 30_000 }, { kind: "etag", etag: "\"new\"" })
        yield* breakAt(yield* Effect.forkChild(all([file])), 30_000)
        assert.deepStrictEqual(ranges(), [[undefined, undefined], ["bytes=30000-", etag], [undefined, undefined]])
        assert.deepStrictEqual(yield* filesBelow(directory), { "model.bin": weights })
      }))

    it.effect("does not send a weak ETag as a condition", () =>
      Effect.gen(function*() {
        const { all, breakAt, file, ranges, server } = yield* setup()
        server.fault("model.bin", { kind: "stall", after: 30_000, etag: "W/\"weak\"" })
        yield* breakAt(yield* Effect.forkChild(all([file])), 30_000)
        assert.deepStrictEqual(ranges(), [[undefined, undefined], ["bytes=30000-", undefined]])
      }))

    it.effect("refuses a part that was not asked for", () =>
      Effect.gen(function*() {
        const { all, breakAt, directory, file, server } = yield* setup()
        server.fault("model.bin", { kind: "stall", after: 30_000 }, {
          kind: "answer",
          status: 206,
          headers: { "content-range": "bytes 5-9/100000" },
          body: "abcde"
        })
        assert.deepStrictEqual(
          yield* Effect.flip(breakAt(yield* Effect.forkChild(all([file])), 30_000)),
          new InvalidResponse({
            host: hostOf(server.url),
            description: "asked for bytes from 30000 on, it sent \"bytes 5-9/100000\""
          })
        )
        assert.deepStrictEqual(yield* filesBelow(directory), { "model.bin.part": weights.slice(0, 30_000) })
      }))
  })

  describe("what an earlier call left", () => {
    it.effect("is checked and used", () =>
      Effect.gen(function*() {
        const { all, directory, file, fs, ranges } = yield* setup()
        yield* fs.writeFile(`${directory}/model.bin.part`, weights.slice(0, 70_000))
        assert.deepStrictEqual(yield* all([file]), [done])
        assert.deepStrictEqual(ranges(), [["bytes=70000-", undefined]])
      }))

    it.effect("is put in place without a request when it is whole", () =>
      Effect.gen(function*() {
        const { all, directory, file, fs, server } = yield* setup()
        yield* fs.writeFile(`${directory}/model.bin.part`, weights)
        assert.deepStrictEqual(yield* all([file]), [done])
        assert.deepStrictEqual(server.requests, [])
        assert.deepStrictEqual(yield* filesBelow(directory), { "model.bin": weights })
      }))

    it.effect("is thrown away when it turns out to be of another file", () =>
      Effect.gen(function*() {
        const { all, directory, file, fs, ranges } = yield* setup()
        yield* fs.writeFile(`${directory}/model.bin.part`, bytes(70_000, 9))
        assert.deepStrictEqual(yield* all([file]), [done])
        assert.deepStrictEqual(ranges(), [["bytes=70000-", undefined], [undefined, undefined]])
        assert.deepStrictEqual(yield* filesBelow(directory), { "model.bin": weights })
      }))

    it.effect("is thrown away when it is longer than the file, or the server has nothing at that place", () =>
      Effect.gen(function*() {
        const { all, directory, file, fs, ranges, server } = yield* setup()
        yield* fs.writeFile(`${directory}/model.bin.part`, bytes(100_001))
        yield* all([file])
        yield* fs.remove(`${directory}/model.bin`)
        yield* fs.writeFile(`${directory}/model.bin.part`, weights.slice(0, 70_000))
        server.fault("model.bin", { kind: "answer", status: 416, headers: { "content-range": "bytes */10" } })
        yield* all([file])
        assert.deepStrictEqual(ranges(), [
          [undefined, undefined],
          ["bytes=70000-", undefined],
          [undefined, undefined]
        ])
        assert.deepStrictEqual(yield* filesBelow(directory), { "model.bin": weights })
      }))

    it.effect("is not used when no checksum can tell whether it fits", () =>
      Effect.gen(function*() {
        const { all, breakAt, directory, file, fs, ranges, server } = yield* setup()
        yield* fs.writeFile(`${directory}/model.bin.part`, weights.slice(0, 70_000))
        server.fault("model.bin", { kind: "stall", after: 30_000 }, {
          kind: "stall",
          after: 20_000,
          etag: "W/\"weak\""
        })
        yield* breakAt(yield* Effect.forkChild(all([{ ...file, sha256: undefined }])), 30_000, 20_000)
        // Within one call an ETag can tell; without one it begins anew.
        assert.deepStrictEqual(ranges(), [
          [undefined, undefined],
          ["bytes=30000-", etag],
          [undefined, undefined]
        ])
        assert.deepStrictEqual(yield* filesBelow(directory), { "model.bin": weights })
      }))
  })

  describe("a repeat", () => {
    it.effect("fetches nothing when everything is as listed", () =>
      Effect.gen(function*() {
        const { all, file, server } = yield* setup()
        const first = yield* all([file])
        assert.deepStrictEqual(yield* all([file]), first)
        assert.strictEqual(server.requests.length, 1)
      }))

    it.effect("fetches what changed, on disk or on the hub", () =>
      Effect.gen(function*() {
        const { all, directory, fileAt, fs, server } = yield* setup()
        const contents: Record<string, Uint8Array> = { a: bytes(10, 2), b: bytes(10, 3), c: bytes(10, 4) }
        const publish = () =>
          server.addRepository({
            repo: "acme/tiny",
            files: Object.entries(contents).map(([path, content]) => ({ path, content }))
          })
        const files = () => Object.entries(contents).map(([path, content]) => fileAt(path, content))
        publish()
        yield* all(files())
        yield* fs.writeFile(`${directory}/b`, bytes(10, 5))
        contents["c"] = bytes(12, 6)
        publish()
        yield* all(files())
        assert.deepStrictEqual(server.requests.slice(3).map(({ url }) => url.at(-1)), ["b", "c"])
        assert.deepStrictEqual(yield* filesBelow(directory), contents)
      }))
  })

  describe("wrong bytes", () => {
    it.effect("fail by SHA-256, and are deleted", () =>
      Effect.gen(function*() {
        const { all, directory, file, server } = yield* setup()
        server.fault("model.bin", { kind: "corrupt" })
        const actual = HubServer.sha256(weights.map((byte) => byte ^ 0xff))
        assert.deepStrictEqual(
          yield* Effect.flip(all([file])),
          new ChecksumMismatch({
            path: "model.bin",
            expected: `sha256:${done.sha256}`,
            actual: `sha256:${actual}`
          })
        )
        assert.deepStrictEqual(yield* filesBelow(directory), {})
      }))

    it.effect("fail by Git's checksum where there is no other", () =>
      Effect.gen(function*() {
        const { all, file, server } = yield* setup()
        const git = { ...file, sha256: undefined, gitSha1: HubServer.gitSha1(weights) }
        server.fault("model.bin", { kind: "corrupt" })
        const actual = HubServer.gitSha1(weights.map((byte) => byte ^ 0xff))
        assert.deepStrictEqual(
          yield* Effect.flip(all([git])),
          new ChecksumMismatch({
            path: "model.bin",
            expected: `git-sha1:${git.gitSha1}`,
            actual: `git-sha1:${actual}`
          })
        )
        assert.deepStrictEqual(yield* all([git]), [done])
      }))

    it.effect("in excess fail as soon as they come", () =>
      Effect.gen(function*() {
        const { all, directory, file, server } = yield* setup()
        server.fault("model.bin", { kind: "overlong", extra: 1 })
        const reason = yield* Effect.flip(all([file]))
        assert.deepStrictEqual(reason, new SizeMismatch({ path: "model.bin", expected: 100_000, actual: 100_001 }))
        assert.deepStrictEqual(yield* filesBelow(directory), {})
      }))

    it.effect("fail before they come when their number is announced", () =>
      Effect.gen(function*() {
        const { all, directory, file } = yield* setup(bytes(1_000_000))
        const reason = yield* Effect.flip(all([{ ...file, size: 500_000 }]))
        assert.deepStrictEqual(reason, new SizeMismatch({ path: "model.bin", expected: 500_000, actual: 1_000_000 }))
        assert.deepStrictEqual(yield* filesBelow(directory), {})
      }))
  })

  describe("interruption", () => {
    it.effect("in the middle of a body closes the connection, keeps what arrived, and the next call goes on", () =>
      Effect.gen(function*() {
        const { all, directory, file, ranges, server } = yield* setup()
        server.fault("model.bin", { kind: "stall", after: 50_000 })
        const fiber = yield* Effect.forkChild(all([file]))
        yield* Effect.promise(server.stalled)
        yield* waitForBytes(`${directory}/model.bin.part`, 50_000)
        yield* Fiber.interrupt(fiber)
        yield* Effect.promise(server.abandoned)
        assert.deepStrictEqual(yield* filesBelow(directory), { "model.bin.part": weights.slice(0, 50_000) })
        assert.deepStrictEqual(yield* all([file]), [done])
        assert.deepStrictEqual(ranges(), [[undefined, undefined], ["bytes=50000-", undefined]])
        assert.deepStrictEqual(yield* filesBelow(directory), { "model.bin": weights })
      }))

    it.effect("is what happens to the other files when one fails", () =>
      Effect.gen(function*() {
        const { all, directory, file, fileAt, server } = yield* setup()
        server.addRepository({
          repo: "acme/tiny",
          files: [{ path: "model.bin", content: weights }, { path: "bad.bin", content: weights }]
        })
        server.fault("model.bin", { kind: "stall", after: 50_000 })
        server.fault("bad.bin", { kind: "stall", after: 10 })
        const fiber = yield* Effect.forkChild(all([file, fileAt("bad.bin", weights)]))
        yield* Effect.promise(server.stalled)
        yield* Effect.promise(server.stalled)
        yield* waitForBytes(`${directory}/model.bin.part`, 50_000)
        server.fault("bad.bin", { kind: "answer", status: 404 })
        server.breakOff("bad.bin")
        const reason = yield* Effect.flip(Fiber.join(fiber))
        assert.deepStrictEqual(reason, new FileNotFound({ path: "bad.bin" }))
        yield* Effect.promise(server.abandoned)
        assert.deepStrictEqual(yield* filesBelow(directory), {
          "bad.bin.part": weights.slice(0, 10),
          "model.bin.part": weights.slice(0, 50_000)
        })
      }))
  })

  describe("silence", () => {
    const untilDone = <A, E>(fiber: Fiber.Fiber<A, E>) =>
      Effect.repeat(TestClock.adjust("10 seconds"), { until: () => fiber.pollUnsafe() !== undefined }).pipe(
        Effect.andThen(Effect.flip(Fiber.join(fiber)))
      )

    it.effect("in the middle of a body times out", () =>
      Effect.gen(function*() {
        const { all, directory, file, server } = yield* setup(weights, { retry: Schedule.recurs(0) })
        server.fault("model.bin", { kind: "stall", after: 50_000 })
        const fiber = yield* Effect.forkChild(all([file]))
        yield* Effect.promise(server.stalled)
        yield* waitForBytes(`${directory}/model.bin.part`, 50_000)
        const host = hostOf(server.url)
        assert.deepStrictEqual(yield* untilDone(fiber), new Timeout({ host, waiting_for: "data", after_seconds: 60 }))
        yield* Effect.promise(server.abandoned)
      }))

    it.effect("that passes is got over", () =>
      Effect.gen(function*() {
        const { all, file, server } = yield* setup(weights, { retry: Schedule.recurs(2) })
        server.fault("model.bin", { kind: "silence" }, { kind: "stall", after: 50_000 })
        const fiber = yield* Effect.forkChild(all([file]))
        yield* Effect.repeat(TestClock.adjust("10 seconds"), { until: () => fiber.pollUnsafe() !== undefined })
        assert.deepStrictEqual(yield* Fiber.join(fiber), [done])
      }))

    it.effect("instead of an answer times out", () =>
      Effect.gen(function*() {
        const { all, file, server } = yield* setup(weights, { retry: Schedule.recurs(0) })
        server.fault("model.bin", { kind: "silence" })
        const fiber = yield* Effect.forkChild(all([file]))
        yield* Effect.promise(server.stalled)
        const host = hostOf(server.url)
        assert.deepStrictEqual(
          yield* untilDone(fiber),
          new Timeout({ host, waiting_for: "response", after_seconds: 30 })
        )
      }))
  })

  describe("the disk", () => {
    const errno = (code: string, method: string) =>
      PlatformError.systemError({
        _tag: "Unknown",
        module: "FileSystem",
        method,
        cause: Object.assign(new Error(`${code}: no space left on device, write`), { code })
      })

    // The file system of this host, with room for so many bytes in all open files.
    const withRoom = (room: number) =>
      Layer.effect(
        FileSystem.FileSystem,
        Effect.map(FileSystem.FileSystem, (fs) => ({
          ...fs,
          open: (path, options) =>
            Effect.map(fs.open(path, options), (file) =>
              new Proxy(file, {
                get: (target, key) =>
                  key !== "writeAll" ? Reflect.get(target, key, target) : (buffer: Uint8Array) => {
                    if (buffer.length <= room) {
                      room -= buffer.length
                      return target.writeAll(buffer)
                    }
                    const rest = buffer.subarray(0, room)
                    room = 0
                    return Effect.andThen(target.writeAll(rest), Effect.fail(errno("ENOSPC", "writeAll")))
                  }
              }))
        } satisfies FileSystem.FileSystem))
      ).pipe(Layer.provideMerge(NodeServices.layer))

    it.effect("when full keeps what fitted, and the next call goes on from there", () =>
      Effect.gen(function*() {
        const { all, directory, file, fs, server } = yield* setup()
        const http = yield* HubHttp.make({ retry: Schedule.recurs(3) })
        const full = yield* Download.make(http).pipe(Effect.provide(withRoom(60_000)))
        const reason = yield* Effect.flip(full.all({
          directory,
          files: [file],
          parallel: 1,
          onProgress: () => Effect.void
        }))
        assert.deepStrictEqual(reason, new DiskFull({ path: `${directory}/model.bin.part` }))
        assert.deepStrictEqual(yield* filesBelow(directory), { "model.bin.part": weights.slice(0, 60_000) })
        assert.strictEqual(server.requests.length, 1)
        yield* all([file])
        assert.strictEqual(server.requests[1]?.headers.range, "bytes=60000-")
        assert.deepStrictEqual(Uint8Array.from(yield* fs.readFile(`${directory}/model.bin`)), weights)
      }))

    it.effect("that cannot be written is named", () =>
      Effect.gen(function*() {
        const { all, directory, fileAt, fs } = yield* setup()
        yield* fs.writeFile(`${directory}/a`, new Uint8Array(1))
        const reason = yield* Effect.flip(all([fileAt("a/model.bin", weights)]))
        assert.instanceOf(reason, Disk)
        assert.strictEqual(reason.path, `${directory}/a/model.bin`)
        assert.match(reason.description, /^EEXIST|^ENOTDIR/)
      }))
  })

  it.effect("progress tells the first, every file and the last, with what was there before", () =>
    Effect.gen(function*() {
      const { all, directory, fileAt, fs, progress, server } = yield* setup()
      const [a, b] = [bytes(100, 2), bytes(300, 3)]
      server.addRepository({ repo: "acme/tiny", files: [{ path: "a", content: a }, { path: "b", content: b }] })
      yield* fs.writeFile(`${directory}/a`, a)
      yield* fs.writeFile(`${directory}/b.part`, b.slice(0, 150))
      yield* all([fileAt("a", a), fileAt("b", b)], 1)
      const report = { bytes_total: 400, speed: 0 }
      assert.deepStrictEqual(progress, [
        { ...report, status: "downloading", progress: 0, bytes_done: 0 },
        { ...report, status: "downloaded a", progress: 25, bytes_done: 100 },
        { ...report, status: "downloaded b", progress: 100, bytes_done: 400 },
        { ...report, status: "downloaded", progress: 100, bytes_done: 400 }
      ])
    }))
})

it.effect("works over node:http and fetch as over Undici", () =>
  Effect.forEach([NodeHttpClient.layerNodeHttp, NodeHttpClient.layerFetch], (client) =>
    Effect.gen(function*() {
      const { all, breakAt, directory, file, ranges, server } = yield* setup()
      server.fault("model.bin", { kind: "stall", after: 30_000 })
      assert.deepStrictEqual(yield* breakAt(yield* Effect.forkChild(all([file])), 30_000), [done])
      assert.deepStrictEqual(ranges(), [[undefined, undefined], ["bytes=30000-", etag]])
      yield* Effect.scoped(Effect.gen(function*() {
        yield* Effect.flatMap(FileSystem.FileSystem, (fs) => fs.remove(`${directory}/model.bin`))
        server.fault("model.bin", { kind: "stall", after: 50_000 })
        const fiber = yield* Effect.forkChild(all([file]))
        yield* Effect.promise(server.stalled)
        yield* Fiber.interrupt(fiber)
        yield* Effect.promise(server.abandoned)
      }))
    }).pipe(Effect.provide(Layer.merge(client, NodeServices.layer)))))

/** Waits until a file that is being written has so many bytes. */
const waitForBytes = Effect.fnUntraced(function*(path: string, size: number) {
  const fs = yield* FileSystem.FileSystem
  yield* Effect.repeat(
    Effect.orElseSucceed(Effect.map(fs.stat(path), (info) => Number(info.size)), () => 0),
    { until: (found) => found === size }
  )
})
