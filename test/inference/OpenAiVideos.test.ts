import { NodeHttpClient } from "@effect/platform-node"
import { assert, it } from "@effect/vitest"
import { Clock, Duration, Effect, Fiber } from "effect"
import { TestClock } from "effect/testing"
import type { Backend } from "../../src/inference/Backend.ts"
import { EngineFailed, TimedOut } from "../../src/inference/BackendReason.ts"
import type * as EndpointHttp from "../../src/inference/EndpointHttp.ts"
import * as OpenAi from "../../src/inference/OpenAi.ts"
import * as MediaServer from "./MediaServer.ts"
import type { Route } from "./StandIn.ts"
import { serve } from "./world.ts"

const models = ["wan2"]
const request = { model: "wan2", prompt: "a pixel that moves" }
const job = "/v1/videos/video-1"

const client = Effect.fnUntraced(function*(
  routes: ReadonlyArray<Route>,
  options: Omit<EndpointHttp.Options, "baseUrl"> = {}
) {
  const server = yield* serve(routes)
  // The operation that is used here is there.
  return { server, backend: (yield* OpenAi.make({ ...options, baseUrl: server.url })) as Required<Backend> }
})

const opened = (looks: number, options: Omit<EndpointHttp.Options, "baseUrl"> = {}) => {
  const jobs = new Map<string, MediaServer.Job>()
  return Effect.map(
    client(MediaServer.videoRoutes({ models }, jobs, looks), options),
    (opened) => ({ ...opened, jobs })
  )
}

/** A clock by which pauses of a job are over at once, and noted; nothing else ever comes to its time. */
const hasty = Effect.sync(() => {
  const pauses: Array<number> = []
  const hasty: Clock.Clock = {
    currentTimeMillisUnsafe: () => 0,
    currentTimeMillis: Effect.succeed(0),
    currentTimeNanosUnsafe: () => 0n,
    currentTimeNanos: Effect.succeed(0n),
    monotonicTimeNanosUnsafe: () => 0n,
    monotonicTimeNanos: Effect.succeed(0n),
    sleep: (duration) => {
      const millis = Duration.toMillis(duration)
      // The longest pause is 15 seconds, and none is 5.
      if (millis > 15_000 || millis === 5000) return Effect.never
      return Effect.sync(() => void pauses.push(millis))
    }
  }
  return { pauses, inHaste: Effect.provideService(Clock.Clock, hasty) }
})

const methods = ({ requests }: { readonly requests: ReadonlyArray<{ readonly method: string; readonly url: URL }> }) =>
  requests.map(({ method, url }) => `${method} ${url.pathname}`)

it.layer(NodeHttpClient.layerUndici)("videos by the OpenAI protocol", (it) => {
  it.effect("begins a job, looks at it ever less often, fetches the video, and deletes the job", () =>
    Effect.gen(function*() {
      const { backend, jobs, server } = yield* opened(9)
      const { inHaste, pauses } = yield* hasty
      const wanted = { ...request, duration: 8, fps: 24, width: 64, height: 32, seed: 7 }
      const { duration, type, video } = yield* inHaste(backend.generateVideo(wanted))
      assert.deepStrictEqual({ duration, type }, { duration: 8, type: "video/mp4" })
      assert.isTrue(MediaServer.video.equals(video))
      assert.deepStrictEqual(jobs.get("video-1"), {
        looks: 9,
        deleted: true,
        fields: { ...request, seconds: "8", size: "64x32", fps: "24", seed: "7" }
      })
      assert.deepStrictEqual(pauses, [1000, 1500, 2250, 3375, 5062.5, 7593.75, 11390.625, 15_000, 15_000])
      assert.deepStrictEqual(methods(server), [
        "POST /v1/videos",
        ...Array.from({ length: 9 }, () => `GET ${job}`),
        `GET ${job}/content`,
        `DELETE ${job}`
      ])
    }))

  it.effect("sends nothing that was not given", () =>
    Effect.gen(function*() {
      const { backend, jobs } = yield* opened(0)
      yield* backend.generateVideo(request)
      assert.deepStrictEqual(jobs.get("video-1")?.fields, request)
    }))

  it.effect("fails as the job does, and deletes it", () =>
    Effect.gen(function*() {
      const { backend, jobs, server } = yield* opened(99)
      const { inHaste } = yield* hasty
      const ends = [
        [{ status: "failed", error: { message: "out of memory", code: "server_error" } }, "EngineFailed"],
        [{ status: "failed", error: { message: "not allowed", code: "invalid_request_error" } }, "Refused"],
        [{ status: "cancelled" }, "EngineFailed"],
        [{ status: "expired", error: null }, "EngineFailed"]
      ] as const
      for (const [index, [end, tag]] of ends.entries()) {
        const id = `video-${index + 1}`
        server.fault(`/v1/videos/${id}`, { kind: "answer", body: { id, ...end } })
        assert.strictEqual((yield* Effect.flip(inHaste(backend.generateVideo(request))))._tag, tag)
        assert.isTrue(jobs.get(id)?.deleted)
      }
    }))

  it.effect("is not begun anew elsewhere when its server goes away", () =>
    Effect.gen(function*() {
      const { backend, server } = yield* opened(2)
      const { inHaste } = yield* hasty
      server.fault(job, { kind: "answer", status: 200, body: { id: "video-1", status: "queued" } })
      const fiber = yield* Effect.forkChild(Effect.flip(inHaste(backend.generateVideo(request))))
      while (!methods(server).includes(`GET ${job}`)) yield* Effect.promise(() => new Promise(setImmediate))
      yield* Effect.promise(() => server.close())
      const reason = yield* Fiber.join(fiber)
      assert(reason._tag === "EngineFailed")
      assert.isTrue(reason.retryable)
    }))

  it.effect("puts up with looks that fail, four in a row, and no more", () =>
    Effect.gen(function*() {
      const { backend, jobs, server } = yield* opened(2)
      const { inHaste } = yield* hasty
      const broken = { kind: "answer", status: 502, body: "" } as const
      const busy = { kind: "answer", status: 429, body: "" } as const
      const cut = { kind: "cut", after: 5 } as const
      server.fault(job, broken, busy, cut, broken)
      assert.strictEqual((yield* inHaste(backend.generateVideo(request))).type, "video/mp4")
      server.fault("/v1/videos/video-2", broken, broken, broken, broken, broken)
      assert.deepStrictEqual(
        yield* Effect.flip(inHaste(backend.generateVideo(request))),
        new EngineFailed({ detail: "It answered 502.", status: 502, retryable: true })
      )
      // What does not pass is not looked at again.
      server.fault("/v1/videos/video-3", { kind: "answer", status: 401, body: "" })
      const reason = yield* Effect.flip(inHaste(backend.generateVideo(request)))
      assert.strictEqual(reason._tag === "EngineFailed" && reason.status, 401)
      assert.deepStrictEqual(Array.from(jobs.values(), ({ deleted }) => deleted), [true, true, true])
    }))

  it.effect("cancels the job at its server when it is interrupted while it looks at it or fetches the video", () =>
    Effect.gen(function*() {
      for (const [looks, path] of [[99, job], [0, `${job}/content`]] as const) {
        const { backend, jobs, server } = yield* opened(looks)
        const { inHaste } = yield* hasty
        server.fault(path, { kind: "silence" })
        const fiber = yield* Effect.forkChild(inHaste(backend.generateVideo(request)))
        yield* Effect.promise(() => server.waiting())
        assert.isFalse(jobs.get("video-1")?.deleted)
        yield* Fiber.interrupt(fiber)
        assert.isTrue(jobs.get("video-1")?.deleted)
        yield* Effect.promise(() => server.left())
        assert.deepStrictEqual(methods(server).slice(-2), [`GET ${path}`, `DELETE ${job}`])
      }
    }))

  it.effect("cancels a job also where the interruption comes before its server has told of it", () =>
    Effect.gen(function*() {
      const { backend, jobs, server } = yield* opened(99)
      server.fault("/v1/videos", { kind: "stall", after: 10 })
      const fiber = yield* Effect.forkChild(backend.generateVideo(request))
      yield* Effect.promise(() => server.waiting())
      const interruption = yield* Effect.forkChild(Fiber.interrupt(fiber))
      yield* Effect.yieldNow
      server.go()
      yield* Fiber.join(interruption)
      assert.isTrue(jobs.get("video-1")?.deleted)
    }))

  it.effect("waits no longer than 5 seconds for a server that does not tell, and then closes the connection", () =>
    Effect.gen(function*() {
      const { backend, server } = yield* opened(99)
      server.fault("/v1/videos", { kind: "silence" })
      const fiber = yield* Effect.forkChild(backend.generateVideo(request))
      yield* Effect.promise(() => server.waiting())
      const interruption = yield* Effect.forkChild(Fiber.interrupt(fiber))
      yield* TestClock.adjust("4999 millis")
      assert.strictEqual(server.open(), 1)
      yield* TestClock.adjust("1 millis")
      yield* Fiber.join(interruption)
      yield* Effect.promise(() => server.left())
    }))

  it.effect("gives up at the deadline, and cancels the job", () =>
    Effect.gen(function*() {
      const patient = { responseTimeout: "2 hours", idleTimeout: "2 hours" } as const
      for (const [options, seconds] of [[{}, 1800], [{ jobTimeout: "1 minute" }, 60]] as const) {
        const { backend, jobs, server } = yield* opened(0, { ...patient, ...options })
        server.fault(`${job}/content`, { kind: "stall", after: 10 })
        const fiber = yield* Effect.forkChild(Effect.flip(backend.generateVideo(request)))
        yield* Effect.promise(() => server.waiting())
        yield* TestClock.adjust(Duration.seconds(seconds - 1))
        assert.isFalse(jobs.get("video-1")?.deleted)
        yield* TestClock.adjust("1 second")
        const reason = yield* Fiber.join(fiber)
        assert.instanceOf(reason, TimedOut)
        assert.include(reason.detail, `within ${seconds} s`)
        assert.isTrue(jobs.get("video-1")?.deleted)
      }
    }))

  it.effect("has the video also where its job cannot be deleted", () =>
    Effect.gen(function*() {
      const { backend, jobs, server } = yield* opened(0)
      // The first request for this path is the one to delete it, as nobody looks at what is done.
      server.fault(job, { kind: "answer", status: 500, body: "" })
      assert.isTrue(MediaServer.video.equals((yield* backend.generateVideo(request)).video))
      assert.isFalse(jobs.get("video-1")?.deleted)
    }))

  it.effect("fails where the video is empty, or a look at the job cannot be read", () =>
    Effect.gen(function*() {
      const { backend, server } = yield* opened(0)
      server.fault(`${job}/content`, { kind: "answer", body: "" })
      assert.instanceOf(yield* Effect.flip(backend.generateVideo(request)), EngineFailed)
      server.fault("/v1/videos", { kind: "answer", body: { status: "queued" } })
      assert.instanceOf(yield* Effect.flip(backend.generateVideo(request)), EngineFailed)
    }))

  it.effect("asks LocalAI at once, below its host", () =>
    Effect.gen(function*() {
      const { backend, server } = yield* client(MediaServer.localVideoRoutes({ models }))
      const wanted = { ...request, duration: 2.5, fps: 8, width: 64, height: 32, seed: 7 }
      const { type, video } = yield* backend.generateVideo(wanted)
      assert.strictEqual(type, "video/mp4")
      assert.isTrue(MediaServer.video.equals(video))
      const { duration: _, ...same } = wanted
      assert.deepStrictEqual(JSON.parse(server.requests[1]!.body.toString()), {
        ...same,
        num_frames: 20,
        seconds: "2.5",
        response_format: "b64_json"
      })
      const answer = (data: ReadonlyArray<object>) => {
        server.fault("/video", { kind: "answer", body: { data } })
        return backend.generateVideo(request)
      }
      assert.isTrue(MediaServer.video.equals((yield* answer([{ url: `${server.url}/generated/1.mp4` }])).video))
      const asked = server.requests.length
      for (const data of [[], [{}], [{ b64_json: "?" }], [{ url: "http://127.0.0.1:9/1.mp4" }], [{ url: "/1.mp4" }]]) {
        assert.instanceOf(yield* Effect.flip(answer(data)), EngineFailed)
      }
      assert.strictEqual(server.requests.length, asked + 2 * 5)
    }))

  it.effect("cannot make videos where the server knows neither form", () =>
    Effect.gen(function*() {
      const { backend } = yield* client([])
      assert.strictEqual((yield* Effect.flip(backend.generateVideo(request)))._tag, "Refused")
    }))
})
