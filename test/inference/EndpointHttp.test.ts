import { NodeHttpClient } from "@effect/platform-node"
import { assert, describe, it } from "@effect/vitest"
import { Effect, Fiber, type Layer, Redacted, Schema, type Scope, Stream, Tracer } from "effect"
import { FetchHttpClient, type HttpClient } from "effect/http"
import { TestClock } from "effect/testing"
import { Busy, EngineFailed, Refused, TimedOut } from "../../src/inference/BackendReason.ts"
import * as EndpointHttp from "../../src/inference/EndpointHttp.ts"
import type * as StandIn from "./StandIn.ts"
import { nextTurns, serve } from "./world.ts"

const key = "sk-marker-of-a-secret"
const Answer = Schema.Struct({ ok: Schema.Boolean })

const routes: ReadonlyArray<StandIn.Route> = [
  { method: "GET", path: "/json", handle: () => ({ body: { ok: true } }) },
  { method: "GET", path: "/pieces", handle: () => ({ body: [`{"ok"`, ":tr", "ue}"] }) },
  { method: "POST", path: "/post", handle: ({ body }) => ({ body: { ok: body.toString() === `{"a":1}` } }) },
  { method: "GET", path: "/elsewhere", handle: () => ({ body: { ok: true } }) },
  { method: "POST", path: "/elsewhere", handle: () => ({ body: { ok: true } }) }
]

const opened = Effect.gen(function*() {
  const server = yield* serve(routes)
  const http = yield* EndpointHttp.make({ baseUrl: `${server.url}/`, apiKey: Redacted.make(key) })
  /** What becomes of one answer. */
  const answered = (reply: Omit<Extract<StandIn.Fault, { readonly kind: "answer" }>, "kind">, model?: string) => {
    server.fault("/json", { kind: "answer", ...reply })
    return Effect.flip(http.json(http.get("/json"), Answer, model))
  }
  return { server, http, answered }
})

const suite = (name: string, client: Layer.Layer<HttpClient.HttpClient>) =>
  describe(`EndpointHttp over ${name}`, () => {
    const test = (
      title: string,
      body: () => Effect.Effect<unknown, unknown, HttpClient.HttpClient | Scope.Scope>
    ) => it.effect(title, () => Effect.provide(body(), client))

    test("asks below its base with its key, and decodes what comes in one piece or in several", () =>
      Effect.gen(function*() {
        const { http, server } = yield* opened
        for (const request of [http.get("/json"), http.get("/pieces"), http.post("/post", { a: 1, b: undefined })]) {
          assert.deepStrictEqual(yield* http.json(request, Answer), { ok: true })
        }
        assert.deepStrictEqual(yield* http.list("/json", Answer), { ok: true })
        assert.deepStrictEqual(
          server.requests.map(({ headers }) => headers.authorization),
          Array(4).fill(`Bearer ${key}`)
        )
        const elsewhere = yield* http.json(http.get(`${server.url}/elsewhere`), Answer)
        assert.deepStrictEqual(elsewhere, { ok: true })
      }))

    test("reads no more than it may, and closes the connection of what is longer", () =>
      Effect.gen(function*() {
        const { http, server } = yield* opened
        for (const path of ["/json", "/pieces"]) {
          const { bytes, type } = yield* http.bytes(http.get(path), 11)
          assert.strictEqual(new TextDecoder().decode(bytes), `{"ok":true}`)
          assert.strictEqual(type, path === "/json" ? "application/json" : "text/plain")
          const reason = yield* Effect.flip(http.bytes(http.get(path), 10))
          assert.deepStrictEqual(
            reason,
            new EngineFailed({ detail: "Its answer has more than 10 bytes", retryable: false })
          )
        }
        // Longer than what is read in one go.
        const large = Buffer.alloc(3 * 1024 * 1024, "x")
        server.fault("/json", { kind: "answer", body: large })
        assert.deepStrictEqual(Buffer.from((yield* http.bytes(http.get("/json"), large.length)).bytes), large)
      }))

    test("shows no key, whatever the server says", () =>
      Effect.gen(function*() {
        const { answered } = yield* opened
        for (const status of [400, 401, 404, 429, 500, 503, 200]) {
          const reason = yield* answered({
            status,
            body: `{"error":{"message":"Incorrect API key provided: ${key}, for me"}}`
          })
          assert.notInclude(JSON.stringify(reason) + reason.detail, key)
          if (status === 400) {
            assert.strictEqual(reason.detail, "It says: Incorrect API key provided: <redacted>, for me.")
          }
        }
      }))

    test("understands what the different servers say, and no more of it than fits a message", () =>
      Effect.gen(function*() {
        const { answered } = yield* opened
        const said = (body: string) => Effect.map(answered({ status: 422, body }), ({ detail }) => detail)
        assert.deepStrictEqual(
          [
            yield* said(`{"error":{"message":"of OpenAI","type":"invalid_request_error","code":null}}`),
            yield* said(`{"object":"error","message":"of vLLM","code":40301}`),
            yield* said(`{"error":"of Ollama"}`),
            yield* said(`{"detail":[{"loc":["body","n"],"msg":"of FastAPI"}]}`),
            yield* said("of a proxy,\n  in plain text."),
            yield* said(""),
            yield* said("null"),
            yield* said(`{"error":null,"message":null}`)
          ],
          [
            "It says: of OpenAI.",
            "It says: of vLLM.",
            "It says: of Ollama.",
            `It says: [{"loc":["body","n"],"msg":"of FastAPI"}].`,
            "It says: of a proxy, in plain text.",
            "It answered 422.",
            "It answered 422.",
            "It answered 422."
          ]
        )
        const long = yield* said("x".repeat(100_000))
        assert.strictEqual(long, `It says: ${"x".repeat(300)}.`)
      }))

    test("tells a model that is missing from a path that is", () =>
      Effect.gen(function*() {
        const { answered } = yield* opened
        const tag = (body: string, model?: string) =>
          Effect.map(answered({ status: 404, body }, model), ({ _tag }) => _tag)
        assert.deepStrictEqual(
          [
            yield* tag(`{"error":{"message":"gone","code":"model_not_found"}}`),
            yield* tag(`{"error":"model 'x' not found"}`),
            yield* tag(`{"error":"there is no Tiny"}`, "tiny"),
            yield* tag(`{"detail":"Not Found"}`, "tiny"),
            yield* tag("")
          ],
          ["ModelMissing", "ModelMissing", "ModelMissing", "Refused", "Refused"]
        )
        const refused = [yield* answered({ status: 405, body: "" }), yield* answered({ status: 501, body: "" })]
        for (const reason of refused) assert.instanceOf(reason, Refused)
      }))

    test("tells how long to wait, in seconds or until a date", () =>
      Effect.gen(function*() {
        const { answered } = yield* opened
        yield* TestClock.setTime(30_000)
        const wait = (value: string) =>
          Effect.map(
            answered({ status: 429, headers: { "retry-after": value }, body: "" }),
            (reason) => reason instanceof Busy ? reason.retry_after_seconds : reason
          )
        assert.deepStrictEqual(
          [yield* wait("7"), yield* wait("Thu, 01 Jan 1970 00:01:00 GMT"), yield* wait("soon")],
          [7, 30, undefined]
        )
      }))

    test("follows no redirect", () =>
      Effect.gen(function*() {
        const { http, server } = yield* opened
        for (const status of [302, 307]) {
          server.fault("/post", { kind: "answer", status, headers: { location: `${server.url}/elsewhere` }, body: "" })
          const reason = yield* Effect.flip(http.json(http.post("/post", {}), Answer))
          assert(reason instanceof EngineFailed)
          assert.include(reason.detail, "redirects are not followed")
        }
        assert.deepStrictEqual(server.requests.map(({ url }) => url.pathname), ["/post", "/post"])
      }))

    test("says that nothing was sent where no connection came about, without the address", () =>
      Effect.gen(function*() {
        const { server } = yield* opened
        yield* Effect.promise(() => server.close())
        for (const baseUrl of [`${server.url}/secret/path`, "http://does-not-exist.invalid/secret/path"]) {
          const http = yield* EndpointHttp.make({ baseUrl })
          const reason = yield* Effect.flip(http.json(http.get("/json"), Answer))
          assert.strictEqual(reason._tag, "Unreachable")
          assert.notInclude(reason.detail, "secret")
        }
        for (const baseUrl of ["ftp://host", "host:80", ""]) {
          const http = yield* EndpointHttp.make({ baseUrl })
          const reason = yield* Effect.flip(http.json(http.get("/json"), Answer))
          assert(reason instanceof EngineFailed && !reason.retryable)
        }
      }))

    test("does not say so where the server has broken off", () =>
      Effect.gen(function*() {
        const { http, server } = yield* opened
        server.fault("/json", { kind: "cut", after: 0 }, { kind: "cut", after: 3 })
        for (let turn = 0; turn < 2; turn++) {
          const reason = yield* Effect.flip(http.json(http.get("/json"), Answer))
          assert(reason instanceof EngineFailed && reason.retryable)
        }
        // Each request was sent once.
        assert.strictEqual(server.requests.length, 2)
      }))

    test("does not wait long for what a server says of a failure", () =>
      Effect.gen(function*() {
        const { http, server } = yield* opened
        server.fault("/json", { kind: "answer", status: 500, body: [] })
        assert.strictEqual((yield* Effect.flip(http.json(http.get("/json"), Answer))).detail, "It answered 500.")
        const slow = yield* serve([{
          method: "GET",
          path: "/json",
          handle: () => ({ status: 500, body: "x".repeat(9) })
        }])
        slow.fault("/json", { kind: "stall", after: 4 })
        const patient = yield* EndpointHttp.make({ baseUrl: slow.url })
        const fiber = yield* Effect.forkChild(Effect.flip(patient.json(patient.get("/json"), Answer)))
        yield* Effect.promise(() => slow.waiting())
        yield* nextTurns
        yield* TestClock.adjust("5 seconds")
        assert.strictEqual((yield* Fiber.join(fiber)).detail, "It answered 500.")
        yield* Effect.promise(() => slow.left())
      }))

    test("has timeouts of its own where the options give them", () =>
      Effect.gen(function*() {
        const { server } = yield* opened
        const http = yield* EndpointHttp.make({
          baseUrl: server.url,
          responseTimeout: "3 seconds",
          idleTimeout: "2 seconds",
          listTimeout: "1 second"
        })
        const late = Effect.fnUntraced(
          function*(work: Effect.Effect<unknown, unknown>, fault: StandIn.Fault, millis: number) {
            server.fault("/json", fault)
            const fiber = yield* Effect.forkChild(Effect.flip(work))
            yield* Effect.promise(() => server.waiting())
            yield* nextTurns
            yield* TestClock.adjust(millis - 1)
            assert.isUndefined(fiber.pollUnsafe())
            yield* TestClock.adjust(1)
            assert.instanceOf(yield* Fiber.join(fiber), TimedOut)
          }
        )
        const silence = { kind: "silence" } as const
        const stall = { kind: "stall", after: 3 } as const
        yield* late(http.json(http.get("/json"), Answer), silence, 3000)
        yield* late(http.json(http.get("/json"), Answer), stall, 2000)
        yield* late(http.list("/json", Answer), silence, 1000)
        yield* late(Stream.runDrain(http.stream(http.get("/json"), "m")), silence, 3000)
        yield* late(Stream.runDrain(http.stream(http.get("/json"), "m")), stall, 2000)
      }))

    test("makes a span for a request within another one, without the key, and none by itself", () =>
      Effect.gen(function*() {
        const { http } = yield* opened
        const spans: Array<Tracer.Span> = []
        const tracer = Tracer.make({
          span: (options) => {
            const span = new Tracer.NativeSpan(options)
            spans.push(span)
            return span
          }
        })
        const request = Effect.provideService(http.json(http.get("/json"), Answer), Tracer.Tracer, tracer)
        yield* request
        assert.lengthOf(spans, 0)
        yield* Effect.provideService(Effect.withSpan(request, "outer"), Tracer.Tracer, tracer)
        assert.lengthOf(spans, 2)
        assert.notInclude(JSON.stringify(spans.map(({ attributes }) => [...attributes])), key)
      }))
  })

suite("Undici", NodeHttpClient.layerUndici)
suite("node:http", NodeHttpClient.layerNodeHttp)
suite("fetch", FetchHttpClient.layer)
