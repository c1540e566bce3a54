import { NodeHttpClient } from "@effect/platform-node"
import { assert, it } from "@effect/vitest"
import { Clock, Duration, Effect, Schedule, Schema } from "effect"
import { HttpClientRequest } from "effect/http"
import {
  InvalidAddress,
  InvalidResponse,
  Network,
  RateLimited,
  Unauthorized,
  Upstream
} from "../../src/model/HubError.ts"
import * as HubHttp from "../../src/model/HubHttp.ts"
import { layer } from "./hubs.ts"
import * as HubServer from "./HubServer.ts"

const Answer = Schema.Struct({ a: Schema.Int })
const ok = { kind: "answer", status: 200, body: "{\"a\":1}" } as const
const now = Date.parse("2025-01-01T00:00:00Z")

/** Asks a stand-in that answers so; also tells how often it was asked and which pauses were made, in seconds. */
const ask = (answers: ReadonlyArray<HubServer.Fault>, options: HubHttp.HttpOptions = {}) =>
  Effect.scoped(Effect.gen(function*() {
    const server = yield* Effect.acquireRelease(
      Effect.promise(() => HubServer.start()),
      (server) => Effect.promise(() => server.close())
    )
    server.fault("/x", ...answers)
    const pauses: Array<number> = []
    const recording: Clock.Clock = {
      currentTimeMillisUnsafe: () => now,
      currentTimeMillis: Effect.succeed(now),
      currentTimeNanosUnsafe: () => BigInt(now) * 1_000_000n,
      currentTimeNanos: Effect.succeed(BigInt(now) * 1_000_000n),
      monotonicTimeNanosUnsafe: () => 0n,
      monotonicTimeNanos: Effect.succeed(0n),
      // Timeouts sleep as well, beside what they watch; a pause is over at once.
      sleep: (duration) => {
        if (Duration.toSeconds(duration) === 30) return Effect.never
        if (Duration.toMillis(duration) > 0) pauses.push(Duration.toSeconds(duration))
        return Effect.void
      }
    }
    const outcome = yield* Effect.gen(function*() {
      const http = yield* HubHttp.make({ retry: Schedule.recurs(3), idleTimeout: "30 seconds", ...options })
      const request = HttpClientRequest.get(`${server.url}/x`)
      return yield* Effect.result(Effect.map(http.json(request, Answer, HubHttp.statusReason), ({ value }) => value))
    }).pipe(Effect.provideService(Clock.Clock, recording))
    return { outcome, asked: server.requests.length, pauses, host: new URL(server.url).host }
  }))

const status = (status: number, headers: Record<string, string> = {}, body = "") =>
  ({ kind: "answer", status, headers, body }) as const

it.layer(layer)("HubHttp", (it) => {
  it.effect("decodes an answer", () =>
    Effect.gen(function*() {
      const { asked, outcome } = yield* ask([ok])
      assert.deepInclude(outcome, { _tag: "Success", success: { a: 1 } })
      assert.strictEqual(asked, 1)
    }))

  it.effect("waits as long as Retry-After says, in seconds, as a date, or as the rest of the window", () =>
    Effect.gen(function*() {
      const { asked, outcome, pauses } = yield* ask([
        status(429, { "retry-after": "7" }),
        status(429, { "retry-after": "Wed, 01 Jan 2025 00:00:20 GMT" }),
        status(429, { ratelimit: "\"api\";r=0;t=11" }),
        ok
      ])
      assert.strictEqual(outcome._tag, "Success")
      assert.deepStrictEqual(pauses, [7, 20, 11])
      assert.strictEqual(asked, 4)
    }))

  it.effect("does not wait for longer than it may, nor when no time is named", () =>
    Effect.gen(function*() {
      const long = yield* ask([status(429, { "retry-after": "31" }), ok])
      assert.deepInclude(long, { asked: 1, pauses: [] })
      assert.deepInclude(long.outcome, { failure: new RateLimited({ retry_after_seconds: 31 }) })
      const short = yield* ask([status(429, { "retry-after": "6" }), ok], { maxRetryAfter: "5 seconds" })
      assert.deepInclude(short.outcome, { failure: new RateLimited({ retry_after_seconds: 6 }) })
      const unknown = yield* ask([status(429), ok])
      assert.strictEqual(unknown.asked, 1)
      assert.deepInclude(unknown.outcome, { failure: new RateLimited({ retry_after_seconds: undefined }) })
    }))

  it.effect("tries again after a status that passes, as often as the schedule says", () =>
    Effect.gen(function*() {
      const once = yield* ask([status(503), status(408), ok])
      assert.deepInclude(once, { asked: 3 })
      assert.strictEqual(once.outcome._tag, "Success")
      const often = yield* ask([status(500), status(502), status(503), status(504, {}, " still\n down ")])
      assert.strictEqual(often.asked, 4)
      assert.deepInclude(often.outcome, { failure: new Upstream({ status: 504, detail: "still down" }) })
    }))

  it.effect("does not try again what will not change", () =>
    Effect.gen(function*() {
      const denied = yield* ask([status(401), ok])
      assert.strictEqual(denied.asked, 1)
      assert.deepInclude(denied.outcome, { failure: new Unauthorized({ detail: "HTTP 401" }) })
      const gone = yield* ask([status(410), ok])
      assert.strictEqual(gone.asked, 1)
      assert.deepInclude(gone.outcome, { failure: new Upstream({ status: 410, detail: "no message" }) })
    }))

  it.effect("fails by type for an answer in another form", () =>
    Effect.gen(function*() {
      for (const body of ["", "<html>", "[]", "{\"a\":\"1\"}", "{\"a\":1"]) {
        const { asked, host, outcome } = yield* ask([{ ...ok, body }])
        assert.strictEqual(asked, 1)
        assert.strictEqual(outcome._tag, "Failure")
        if (outcome._tag === "Failure") {
          assert.instanceOf(outcome.failure, InvalidResponse)
          assert.strictEqual(outcome.failure.host, host)
        }
      }
    }))

  it.effect("follows no more than five redirects", () =>
    Effect.gen(function*() {
      const again = status(302, { location: "/x" })
      const five = yield* ask([again, again, again, again, again, ok])
      assert.deepInclude(five.outcome, { success: { a: 1 } })
      const six = yield* ask([again, again, again, again, again, again, ok])
      assert.deepInclude(six.outcome, { failure: new Upstream({ status: 302, detail: "no message" }) })
    }))

  it.effect("goes to web servers only, over every client", () =>
    Effect.forEach(
      [NodeHttpClient.layerUndici, NodeHttpClient.layerNodeHttp, NodeHttpClient.layerFetch],
      (client) =>
        Effect.gen(function*() {
          const redirected = yield* ask([status(302, { location: "ftp://other.test/x?secret" })])
          assert.deepInclude(redirected.outcome, { failure: new InvalidAddress({ address: "ftp://other.test" }) })
          const http = yield* HubHttp.make({})
          for (const [url, address] of [["file:///etc/passwd", "file://"], ["nowhere", "nowhere"]] as const) {
            const request = HttpClientRequest.get(url)
            const reason = yield* Effect.flip(http.json(request, Answer, HubHttp.statusReason))
            assert.deepStrictEqual(reason, new InvalidAddress({ address }))
          }
        }).pipe(Effect.provide(client))
    ))

  it.effect("names the host that cannot be reached, and not what was asked of it", () =>
    Effect.gen(function*() {
      const server = yield* Effect.promise(() => HubServer.start())
      yield* Effect.promise(server.close)
      const http = yield* HubHttp.make({ retry: Schedule.recurs(1) })
      const request = HttpClientRequest.bearerToken(HttpClientRequest.get(`${server.url}/x?secret=1`), "hf_secret")
      const reason = yield* Effect.flip(http.json(request, Answer, HubHttp.statusReason))
      assert.instanceOf(reason, Network)
      assert.strictEqual(reason.host, new URL(server.url).host)
      assert.match(reason.message, /ECONNREFUSED/)
      assert.notMatch(JSON.stringify(reason) + String(reason), /secret/)
    }))
})
