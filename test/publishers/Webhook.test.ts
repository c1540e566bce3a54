import { NodeHttpClient } from "@effect/platform-node"
import { assert, describe, it } from "@effect/vitest"
import { HTTP } from "cloudevents"
import {
  Cause,
  Context,
  Deferred,
  Effect,
  Exit,
  Fiber,
  Layer,
  Logger,
  Metric,
  Redacted,
  Schedule,
  Scope,
  Tracer
} from "effect"
import { FetchHttpClient, HttpClient } from "effect/http"
import { TestClock } from "effect/testing"
import { createHmac } from "node:crypto"
import type { LookupAddress } from "node:dns"
import type * as Http from "node:http"
import { Webhook as Standard } from "standardwebhooks"
import * as DomainEvent from "../../src/DomainEvent.ts"
import * as EventPublisher from "../../src/EventPublisher.ts"
import * as EventStore from "../../src/EventStore.ts"
import * as ExecutionEvent from "../../src/ExecutionEvent.ts"
import { instrument } from "../../src/instrument.ts"
import * as PublicAddress from "../../src/internal/publicAddress.ts"
import * as Webhook from "../../src/publishers/Webhook.ts"
import * as Relay from "../../src/Relay.ts"
import { completed, domainEvent, failed, started } from "../fixtures/events.ts"
import * as WebhookServer from "./WebhookServer.ts"

const secretText = `whsec_${Buffer.alloc(32, 7).toString("base64")}`
const otherText = `whsec_${Buffer.alloc(24, 9).toString("base64")}`
const secret = Redacted.make(secretText)
const other = Redacted.make(otherText)

const clients = {
  fetch: FetchHttpClient.layer,
  "node:http": NodeHttpClient.layerNodeHttpOptions({ keepAlive: true }),
  undici: NodeHttpClient.layerUndici
}

const server = (options?: { readonly tls?: boolean }) =>
  Effect.acquireRelease(
    Effect.promise(() => WebhookServer.start(options)),
    (server) => Effect.promise(() => server.close())
  )

type Given = Partial<Webhook.Endpoint> & Pick<Webhook.Endpoint, "url">

const endpoint = (given: Given): Webhook.Endpoint => ({
  name: "receiver",
  secrets: [secret],
  allowPrivateAddresses: true,
  ...given
})

/** The publisher in a scope that the test closes, its metrics apart from others, and all that it logs. */
const publishing = Effect.fnUntraced(
  function*(
    endpoints: ReadonlyArray<Given>,
    options: Partial<Webhook.Options> & { readonly client?: Layer.Layer<HttpClient.HttpClient> } = {}
  ) {
    const { client, ...settings } = options
    // What still waits at the end of a test is given up as fast as the machine is.
    const scope = yield* Effect.acquireRelease(Scope.make(), (scope) =>
      Effect.gen(function*() {
        const closing = yield* Effect.forkChild(Scope.close(scope, Exit.void))
        yield* until(
          Effect.andThen(TestClock.adjust("1 second"), Effect.sync(() => closing.pollUnsafe() !== undefined))
        )
      }))
    const logged: Array<string> = []
    const logger = Logger.make(({ cause, logLevel, message }) => {
      // What the clock of a test says of its being waited for.
      if (String(message).startsWith("A test is using time")) return
      logged.push(`${logLevel} ${String(message)} ${cause.reasons.length === 0 ? "" : Cause.pretty(cause)}`.trim())
    })
    const layer = Webhook.layer({ endpoints: endpoints.map(endpoint), ...settings }).pipe(
      Layer.provide(client ?? FetchHttpClient.layer),
      Layer.provideMerge(Layer.merge(
        Layer.succeed(Metric.MetricRegistry, new Map()),
        Logger.layer([logger])
      ))
    )
    const context = yield* Layer.buildWithScope(layer, scope)
    const publisher = Context.get(context, EventPublisher.EventPublisher)
    const control = Context.get(context, Webhook.Endpoints)
    const metrics = Effect.map(
      Effect.provideContext(Metric.snapshot, context),
      (all) => all.filter(({ id }) => id.startsWith("effect_units_"))
    )
    const count = (id: string, attributes: Record<string, string>) =>
      Effect.map(metrics, (all) => {
        const found = all.find((one) =>
          one.id === id && Object.entries(attributes).every(([name, value]) => one.attributes?.[name] === value)
        )
        return found?.type === "Counter" ? found.state.count : found?.type === "Gauge" ? found.state.value : 0
      })
    return { context, publisher, control, logged, metrics, count, close: Scope.close(scope, Exit.void) }
  }
)

const turn = Effect.promise(() => new Promise(setImmediate))

/** Waits for what sockets bring about; they run in real time, whatever the clock of the test says. */
const until = <E, R>(condition: Effect.Effect<boolean, E, R>): Effect.Effect<void, E, R> =>
  Effect.flatMap(condition, (met) => met ? Effect.void : Effect.andThen(turn, until(condition)))

const inState = (
  { control }: { readonly control: Webhook.Endpoints["Service"] },
  name: string,
  wanted: Partial<Webhook.EndpointState>
) =>
  until(Effect.map(control.list, (states) => {
    const state = states.find((one) => one.name === name)
    return Object.entries(wanted).every(([key, value]) => state?.[key as keyof Webhook.EndpointState] === value)
  }))

const next = (server: WebhookServer.WebhookServer) => Effect.promise(() => server.next())

/** What a receiver makes of a request. */
const read = (received: WebhookServer.Received, secrets: Webhook.Request["secrets"] = [secret]) =>
  Webhook.verify({ secrets, headers: received.headers, body: received.body }).pipe(
    Effect.provideService(Webhook.CurrentSeenIds, Webhook.makeSeenIds({ capacity: 10 }))
  )

const ids = (events: ReadonlyArray<EventPublisher.Event>) => events.map(({ id }) => id)

const offerAll = (publisher: EventPublisher.Publisher, events: ReadonlyArray<EventPublisher.Event>) =>
  Effect.sync(() => {
    for (const event of events) publisher.offer(event)
  })

const many = (count: number) => Array.from({ length: count }, (_, n) => domainEvent(`event-${n}`))

const json = (event: EventPublisher.Event) =>
  ExecutionEvent.isExecutionEvent(event) ? ExecutionEvent.toJson(event) : DomainEvent.toJson(event)

const double = instrument((n: number) => Effect.succeed(n * 2), { name: "test.double" })

describe("what is sent", () => {
  for (const [name, client] of Object.entries(clients)) {
    it.effect(`one CloudEvent a request, signed, by the client over ${name}`, () =>
      Effect.gen(function*() {
        // The reference library reads the time of the machine.
        yield* TestClock.setTime(Date.now())
        const receiver = yield* server()
        const { context, control, publisher } = yield* publishing([{ url: `${receiver.url}/hooks` }], { client })
        assert.strictEqual(yield* Effect.provide(double(21), context), 42)
        yield* offerAll(publisher, [domainEvent("created-1", { payload: { model_id: "ü" } })])

        const requests = [yield* next(receiver), yield* next(receiver), yield* next(receiver)]
        for (const { body, headers, method, path } of requests) {
          assert.strictEqual(method, "POST")
          assert.strictEqual(path, "/hooks")
          assert.strictEqual(headers["content-type"], "application/cloudevents+json")
          const given = Object.fromEntries(Object.entries(headers).map(([key, value]) => [key, String(value)]))
          const verified = new Standard(secretText).verify(body, given)
          assert.deepStrictEqual(verified, JSON.parse(body.toString()))
          const event = HTTP.toEvent({ headers: given, body: body.toString() })
          assert.isFalse(Array.isArray(event))
          assert.strictEqual(headers["webhook-id"], JSON.parse(body.toString()).id)
        }
        const events = (yield* Effect.forEach(requests, (request) => read(request))).flat()
        assert.deepStrictEqual(
          events.map((event) => ExecutionEvent.isExecutionEvent(event) ? event.event_type : event.type),
          ["execution_started", "execution_completed", "model.created"]
        )
        assert.deepStrictEqual(json(events[2]!), domainEvent("created-1", { payload: { model_id: "ü" } }))
        yield* offerAll(publisher, many(20))
        yield* inState({ control }, "receiver", { waiting: 0 })
        assert.strictEqual(receiver.received.length, 23)
        // Undici opens two, and goes on with these.
        assert.isAtMost(receiver.connections(), 2)
      }))
  }

  it.effect("a batch of what waits, in order, verified as one", () =>
    Effect.gen(function*() {
      yield* TestClock.setTime(Date.now())
      const receiver = yield* server()
      const { close, publisher } = yield* publishing([{ url: receiver.url, mode: "batched", maxBatch: 4 }])
      const events = [...many(8), started("e-1"), completed("e-1"), failed("e-2")]
      yield* offerAll(publisher, events)
      yield* close
      const bodies = receiver.received.map(({ body, headers }) => {
        assert.strictEqual(headers["content-type"], "application/cloudevents-batch+json")
        const given = Object.fromEntries(Object.entries(headers).map(([key, value]) => [key, String(value)]))
        const list = HTTP.toEvent({ headers: given, body: body.toString() })
        assert.isTrue(Array.isArray(list))
        return new Standard(secretText).verify(body, given) as ReadonlyArray<unknown>
      })
      assert.deepStrictEqual(bodies.map((body) => body.length), [4, 4, 3])
      const arrived = (yield* Effect.forEach(receiver.received, (request) => read(request))).flat()
      assert.deepStrictEqual(arrived.map(json), events.map(json))
    }))

  it.effect("a batch holds a mebibyte at most; a larger event goes alone", () =>
    Effect.gen(function*() {
      const receiver = yield* server()
      const { close, publisher } = yield* publishing([{ url: receiver.url, mode: "batched" }])
      const sized = (id: string, bytes: number) => domainEvent(id, { payload: { text: "x".repeat(bytes) } })
      yield* offerAll(publisher, [
        sized("a", 600_000),
        sized("b", 400_000),
        sized("c", 100_000),
        sized("d", 2_000_000),
        sized("e", 1)
      ])
      yield* close
      const batches = yield* Effect.forEach(receiver.received, (request) => read(request))
      assert.deepStrictEqual(batches.map(ids), [["a", "b"], ["c"], ["d"], ["e"]])
    }))

  it.effect("an endpoint gets what it asks for", () =>
    Effect.gen(function*() {
      const receiver = yield* server()
      const { close, publisher } = yield* publishing([
        { name: "types", url: `${receiver.url}/types`, types: ["execution_failed", "model.created"] },
        { name: "domains", url: `${receiver.url}/domains`, domains: ["engine"] },
        { name: "units", url: `${receiver.url}/units`, units: ["model.list"] },
        { name: "both", url: `${receiver.url}/both`, units: ["model.pull"], types: ["execution_started"] }
      ])
      yield* offerAll(publisher, [
        started("a"),
        failed("a"),
        started("b", { unit: "model.list" }),
        completed("b", { unit: "model.list" }),
        started("c", { unit: "engine.start" }),
        domainEvent("d"),
        domainEvent("e", { type: "engine.stopped" })
      ])
      yield* close
      const got = (path: string) =>
        receiver.received.filter((one) => one.path === path).map(({ headers }) => headers["webhook-id"])
      assert.deepStrictEqual(got("/types"), ["a:failed", "d"])
      assert.deepStrictEqual(got("/domains"), ["c:started", "e"])
      assert.deepStrictEqual(got("/units"), ["b:started", "b:completed"])
      assert.deepStrictEqual(got("/both"), ["a:started"])
    }))

  it.effect("several secrets sign each delivery, so that a receiver can go over to the new one", () =>
    Effect.gen(function*() {
      const receiver = yield* server()
      const { publisher } = yield* publishing([{ url: receiver.url, secrets: [secret, other] }])
      yield* offerAll(publisher, many(1))
      const request = yield* next(receiver)
      assert.match(String(request.headers["webhook-signature"]), /^v1,\S{44} v1,\S{44}$/)
      for (const one of [secret, other]) assert.deepStrictEqual(ids(yield* read(request, [one])), ["event-0"])
      const stranger = Redacted.make(`whsec_${Buffer.alloc(24, 1).toString("base64")}`)
      assert.deepStrictEqual(ids(yield* read(request, [stranger, other])), ["event-0"])
      assert.deepStrictEqual(
        yield* Effect.flip(read(request, [stranger])),
        new Webhook.WebhookError({ reason: new Webhook.SignatureMismatch() })
      )
    }))

  it.effect("an id that cannot be in a header is its SHA-256 there, and itself in the event", () =>
    Effect.gen(function*() {
      const receiver = yield* server()
      const { publisher } = yield* publishing([{
        url: receiver.url,
        headers: { "x-tenant": "t", "webhook-id": "forged" }
      }])
      yield* offerAll(publisher, [domainEvent("a.1\r\nx: y")])
      const request = yield* next(receiver)
      assert.match(String(request.headers["webhook-id"]), /^[0-9a-f]{64}$/)
      assert.strictEqual(request.headers["x-tenant"], "t")
      assert.deepStrictEqual(ids(yield* read(request)), ["a.1\r\nx: y"])
    }))
})

describe("tracing", () => {
  it.effect("a request makes no span, which would show its address, and tells the endpoint of none", () =>
    Effect.gen(function*() {
      const receiver = yield* server()
      const spans: Array<string> = []
      const tracer = Tracer.make({
        span: (options) => {
          spans.push(options.name)
          return new Tracer.NativeSpan(options)
        }
      })
      // A client that makes spans of its own, too.
      const client = Layer.effect(
        HttpClient.HttpClient,
        Effect.map(HttpClient.HttpClient, HttpClient.transform(Effect.withSpan("client")))
      ).pipe(Layer.provide(FetchHttpClient.layer))
      const request = yield* Effect.gen(function*() {
        const { publisher } = yield* publishing([{ url: receiver.url }], { client })
        yield* offerAll(publisher, many(1))
        return yield* next(receiver)
      }).pipe(Effect.withSpan("application"), Effect.withTracer(tracer))
      assert.deepStrictEqual(spans, ["application"])
      assert.isUndefined(request.headers["traceparent"])
    }))
})

describe("what goes wrong on the way", () => {
  /** Lets the clock run to the next attempt, and gives the time that it took, in seconds. */
  const untilRetry = Effect.fnUntraced(
    function*(made: { readonly control: Webhook.Endpoints["Service"] }, receiver: WebhookServer.WebhookServer) {
      yield* inState(made, "receiver", { status: "retrying" })
      const before = receiver.received.length
      for (let seconds = 1;; seconds++) {
        yield* TestClock.adjust("1 second")
        yield* turn
        const [state] = yield* made.control.list
        if (state!.status === "active") {
          yield* until(Effect.sync(() => receiver.received.length > before))
          return seconds
        }
      }
    }
  )

  it.effect("is tried again, later each time, under the same id, with a signature of its own time", () =>
    Effect.gen(function*() {
      const receiver = yield* server()
      receiver.answer("/", WebhookServer.status(500), WebhookServer.hangUp, WebhookServer.status(404))
      const made = yield* publishing([{ url: receiver.url, retry: Schedule.exponential("10 seconds") }])
      yield* offerAll(made.publisher, many(1))
      const waits = [
        yield* untilRetry(made, receiver),
        yield* untilRetry(made, receiver),
        yield* untilRetry(made, receiver)
      ]
      assert.deepStrictEqual(waits, [10, 20, 40])
      yield* inState(made, "receiver", { status: "active", waiting: 0, attempts: 0, error: undefined })
      const headers = receiver.received.map(({ headers }) => headers)
      assert.deepStrictEqual(headers.map((one) => one["webhook-id"]), Array.from({ length: 4 }, () => "event-0"))
      assert.deepStrictEqual(headers.map((one) => one["webhook-timestamp"]), ["0", "10", "30", "70"])
      for (const request of receiver.received) assert.deepStrictEqual(ids(yield* read(request)), ["event-0"])
      assert.strictEqual(
        yield* made.count("effect_units_webhook_attempts", { endpoint: "receiver", outcome: "failed" }),
        3
      )
      assert.strictEqual(
        yield* made.count("effect_units_webhook_attempts", { endpoint: "receiver", outcome: "delivered" }),
        1
      )
      // One line a streak.
      assert.deepStrictEqual(made.logged, [
        "Warn The webhook endpoint \"receiver\" failed: it answered with HTTP status 500"
      ])
    }))

  it.effect("by default ten times over some minutes", () =>
    Effect.gen(function*() {
      const receiver = yield* server()
      receiver.always("/", WebhookServer.status(500))
      const made = yield* publishing([{ url: receiver.url }])
      yield* offerAll(made.publisher, many(1))
      for (let seconds = 1; seconds <= 256; seconds *= 2) {
        const waited = yield* untilRetry(made, receiver)
        assert.isAtLeast(waited, Math.floor(seconds * 0.8))
        assert.isAtMost(waited, Math.ceil(seconds * 1.2))
      }
      yield* inState(made, "receiver", { status: "parked", attempts: 10 })
    }))

  it.effect("429 and 503 say when, in seconds or as a date, and are believed within bounds", () =>
    Effect.gen(function*() {
      const receiver = yield* server()
      receiver.answer(
        "/",
        WebhookServer.status(429, { "retry-after": "30" }),
        WebhookServer.status(503, { "retry-after": new Date(75_000).toUTCString() }),
        WebhookServer.status(503, { "retry-after": "86400" }),
        WebhookServer.status(429, { "retry-after": "0" }),
        WebhookServer.status(429, { "retry-after": "soon" })
      )
      const made = yield* publishing([
        { url: receiver.url, retry: Schedule.spaced("2 seconds"), maxRetryAfter: "1 minute" }
      ])
      yield* offerAll(made.publisher, many(1))
      const waits: Array<number> = []
      for (let n = 0; n < 5; n++) waits.push(yield* untilRetry(made, receiver))
      // The date is at 75 seconds, 45 after the answer.
      assert.deepStrictEqual(waits, [30, 45, 60, 2, 2])
      yield* inState(made, "receiver", { waiting: 0 })
    }))

  it.effect("an endpoint that does not answer is given up after its timeout, and tried again", () =>
    Effect.gen(function*() {
      const receiver = yield* server()
      receiver.answer("/", WebhookServer.silence)
      const made = yield* publishing([{ url: receiver.url, timeout: "20 seconds", retry: Schedule.spaced("1 second") }])
      yield* offerAll(made.publisher, many(1))
      yield* next(receiver)
      yield* TestClock.adjust("20 seconds")
      yield* inState(made, "receiver", { status: "retrying" })
      const [state] = yield* made.control.list
      assert.deepStrictEqual(
        state!.error,
        new Webhook.WebhookError({ endpoint: "receiver", reason: new Webhook.TimedOut({ after_ms: 20_000 }) })
      )
      assert.strictEqual(yield* untilRetry(made, receiver), 1)
      yield* inState(made, "receiver", { waiting: 0 })
    }))

  for (const [name, client] of Object.entries(clients)) {
    it.effect(`a body that drips holds nothing up for longer than a second (${name})`, () =>
      Effect.gen(function*() {
        const receiver = yield* server()
        receiver.answer("/", (response) => void response.writeHead(200).write("."))
        const made = yield* publishing([{ url: receiver.url }], { client })
        yield* offerAll(made.publisher, many(2))
        yield* next(receiver)
        // Until it listens to the body, there is nothing to give up.
        yield* until(Effect.andThen(TestClock.adjust("100 millis"), Effect.sync(() => receiver.received.length === 2)))
        yield* inState(made, "receiver", { waiting: 0 })
        assert.deepStrictEqual(receiver.received.map(({ headers }) => headers["webhook-id"]), ["event-0", "event-1"])
        assert.deepStrictEqual(made.logged, [])
      }))

    it.effect(`a body without end is not read to its end (${name})`, () =>
      Effect.gen(function*() {
        const receiver = yield* server()
        const sent = yield* Deferred.make<number>()
        receiver.answer("/", (response, socket) => {
          response.writeHead(200)
          const chunk = Buffer.alloc(64 * 1024)
          let bytes = 0
          const more = (): void => {
            while (!socket.destroyed) {
              bytes += chunk.length
              if (!response.write(chunk)) return void response.once("drain", more)
            }
          }
          socket.once("close", () => Deferred.doneUnsafe(sent, Exit.succeed(bytes)))
          more()
        })
        const made = yield* publishing([{ url: receiver.url }], { client })
        yield* offerAll(made.publisher, many(2))
        yield* next(receiver)
        yield* next(receiver)
        // The connection was closed, with what the buffers of both sides hold at most.
        assert.isBelow(yield* Deferred.await(sent), 20_000_000)
        yield* inState(made, "receiver", { waiting: 0, error: undefined })
      }))

    it.effect(`200 with a broken body is a success (${name})`, () =>
      Effect.gen(function*() {
        const receiver = yield* server()
        receiver.answer(
          "/",
          // Shorter than announced.
          (response, socket) => {
            response.writeHead(200, { "content-length": 100 }).write("short")
            setImmediate(() => socket.destroy())
          },
          // No gzip.
          (response) => void response.writeHead(200, { "content-encoding": "gzip" }).end("no gzip at all"),
          // No chunk.
          (_, socket) => void socket.end("HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\nno chunk\r\n"),
          // No JSON.
          (response) => void response.writeHead(201, { "content-type": "application/json" }).end("{")
        )
        const made = yield* publishing([{ url: receiver.url }], { client })
        yield* offerAll(made.publisher, many(5))
        yield* Effect.forEach(many(5), () => next(receiver))
        yield* inState(made, "receiver", { waiting: 0, error: undefined })
        assert.deepStrictEqual(
          receiver.received.map(({ headers }) => headers["webhook-id"]),
          many(5).map(({ id }) => id)
        )
      }))

    it.effect(`redirects are not followed (${name})`, () =>
      Effect.gen(function*() {
        const receiver = yield* server()
        const elsewhere = yield* server()
        for (const status of [301, 302, 303, 307, 308]) {
          receiver.answer("/", WebhookServer.status(status, { location: `${elsewhere.url}/stolen` }))
        }
        const made = yield* publishing([{ url: receiver.url, retry: Schedule.spaced("1 second") }], { client })
        yield* offerAll(made.publisher, many(1))
        for (const status of [301, 302, 303, 307, 308]) {
          yield* inState(made, "receiver", { status: "retrying" })
          const [state] = yield* made.control.list
          assert.deepStrictEqual(
            state!.error,
            new Webhook.WebhookError({ endpoint: "receiver", reason: new Webhook.Redirected({ status }) })
          )
          yield* TestClock.adjust("1 second")
          yield* until(Effect.map(made.control.list, ([state]) => state!.status === "active" || state!.attempts > 5))
          yield* until(Effect.map(made.control.list, ([state]) => state!.status === "retrying" || state!.waiting === 0))
        }
        yield* inState(made, "receiver", { waiting: 0 })
        assert.deepStrictEqual(elsewhere.received, [])
      }))

    it.effect(`what TLS says is a failure of its own (${name})`, () =>
      Effect.gen(function*() {
        const encrypted = yield* server({ tls: true })
        const plain = yield* server()
        const made = yield* publishing([
          { name: "untrusted", url: encrypted.url },
          { name: "plain", url: `https://127.0.0.1:${plain.port}` }
        ], { client })
        yield* offerAll(made.publisher, many(1))
        yield* inState(made, "untrusted", { status: "retrying" })
        yield* inState(made, "plain", { status: "retrying" })
        const [untrusted, unencrypted] = (yield* made.control.list).map(({ error }) => error!.reason)
        assert.deepStrictEqual(untrusted, new Webhook.TlsFailed({ code: "DEPTH_ZERO_SELF_SIGNED_CERT" }))
        // Which of its codes it is depends on what the first bytes of the answer would mean.
        assert.isTrue(unencrypted!._tag === "TlsFailed" && /^(ERR_SSL_|EPROTO)/.test(unencrypted.code))
        assert.deepStrictEqual(encrypted.received, [])
      }))

    it.effect(`a port that nobody listens on is unreachable (${name})`, () =>
      Effect.gen(function*() {
        const port = yield* Effect.scoped(Effect.map(server(), ({ port }) => port))
        const made = yield* publishing([{ url: `http://127.0.0.1:${port}` }], { client })
        yield* offerAll(made.publisher, many(1))
        yield* inState(made, "receiver", { status: "retrying" })
        const [state] = yield* made.control.list
        assert.deepStrictEqual(state!.error!.reason, new Webhook.Unreachable({ code: "ECONNREFUSED" }))
      }))
  }

  it.effect("an encrypted endpoint is delivered to where its certificate is trusted", () =>
    Effect.gen(function*() {
      const receiver = yield* server({ tls: true })
      const { publisher } = yield* publishing([{ url: receiver.url }], {
        client: NodeHttpClient.layerNodeHttpOptions({ ca: WebhookServer.certificate })
      })
      yield* offerAll(publisher, many(1))
      assert.deepStrictEqual(ids(yield* read(yield* next(receiver))), ["event-0"])
    }))

  it.effect("a redirect that the application's client has followed counts as a failure", () =>
    Effect.gen(function*() {
      const receiver = yield* server()
      receiver.always("/", WebhookServer.status(302, { location: `${receiver.url}/moved` }))
      const following = Layer.effect(
        HttpClient.HttpClient,
        Effect.map(HttpClient.HttpClient, HttpClient.followRedirects(3))
      ).pipe(Layer.provide(NodeHttpClient.layerUndici))
      const made = yield* publishing([{ url: receiver.url }], { client: following })
      yield* offerAll(made.publisher, many(1))
      yield* inState(made, "receiver", { status: "retrying" })
      const [state] = yield* made.control.list
      assert.deepStrictEqual(state!.error!.reason, new Webhook.Redirected({ status: 204 }))
    }))

  it.effect("units that the client itself runs are not published, or there would be no end", () =>
    Effect.gen(function*() {
      const receiver = yield* server()
      const own = yield* Deferred.make<EventPublisher.Publisher>()
      const reporting = Layer.effect(
        HttpClient.HttpClient,
        Effect.map(
          HttpClient.HttpClient,
          HttpClient.transform((effect) =>
            Effect.flatMap(
              Deferred.await(own),
              (publisher) =>
                Effect.andThen(Effect.provideService(double(1), EventPublisher.EventPublisher, publisher), effect)
            )
          )
        )
      ).pipe(Layer.provide(FetchHttpClient.layer))
      const made = yield* publishing([{ url: receiver.url }], { client: reporting })
      yield* Deferred.succeed(own, made.publisher)
      yield* offerAll(made.publisher, many(3))
      yield* inState(made, "receiver", { waiting: 0 })
      assert.deepStrictEqual(
        receiver.received.map(({ headers }) => headers["webhook-id"]),
        ["event-0", "event-1", "event-2"]
      )
    }))

  it.effect("a client that dies is a failure, and the endpoint goes on", () =>
    Effect.gen(function*() {
      const receiver = yield* server()
      let calls = 0
      const dying = Layer.effect(
        HttpClient.HttpClient,
        Effect.map(
          HttpClient.HttpClient,
          HttpClient.transform((effect) => ++calls === 1 ? Effect.die(new Error("a bug")) : effect)
        )
      ).pipe(Layer.provide(FetchHttpClient.layer))
      const made = yield* publishing([{ url: receiver.url }], { client: dying })
      yield* offerAll(made.publisher, many(1))
      assert.isAtLeast(yield* untilRetry(made, receiver), 1)
      yield* inState(made, "receiver", { waiting: 0 })
    }))
})

describe("order", () => {
  it.effect("is kept per endpoint, whatever fails, and no endpoint waits for another", () =>
    Effect.gen(function*() {
      const receiver = yield* server()
      const made = yield* publishing([
        { name: "shaky", url: `${receiver.url}/shaky`, retry: Schedule.spaced("1 second") },
        { name: "stuck", url: `${receiver.url}/stuck` },
        { name: "sound", url: `${receiver.url}/sound` }
      ])
      receiver.always("/stuck", WebhookServer.silence)
      receiver.answer("/shaky", ...[500, 204, 503, 500, 204, 204, 429].map((code) => WebhookServer.status(code)))
      yield* offerAll(made.publisher, many(30))
      yield* inState(made, "sound", { waiting: 0 })
      yield* until(Effect.andThen(
        TestClock.adjust("1 second"),
        Effect.sync(() => receiver.received.filter(({ path }) => path === "/shaky").length === 34)
      ))
      yield* inState(made, "shaky", { waiting: 0 })
      const arrived = (path: string) => [
        ...new Set(receiver.received.filter((one) => one.path === path).map(({ headers }) => headers["webhook-id"]))
      ]
      assert.deepStrictEqual(arrived("/shaky"), many(30).map(({ id }) => id))
      assert.deepStrictEqual(arrived("/sound"), many(30).map(({ id }) => id))
      assert.deepStrictEqual(arrived("/stuck"), ["event-0"])
    }))
})

describe("parking", () => {
  const park = (receiver: WebhookServer.WebhookServer, options: Partial<Webhook.Options> = {}) =>
    publishing([
      { name: "bad", url: `${receiver.url}/bad`, retry: Schedule.recurs(2) },
      { name: "good", url: `${receiver.url}/good` }
    ], options)

  it.effect("an endpoint that keeps failing is parked, says so, and the others go on", () =>
    Effect.gen(function*() {
      const receiver = yield* server()
      receiver.always("/bad", WebhookServer.status(500))
      const told = yield* Deferred.make<Webhook.EndpointParked>()
      const made = yield* park(receiver, { onParked: (parked) => Deferred.succeed(told, parked) })
      yield* offerAll(made.publisher, many(3))
      assert.deepStrictEqual(yield* Deferred.await(told), {
        endpoint: "bad",
        attempts: 3,
        error: "The webhook endpoint \"bad\" failed: it answered with HTTP status 500",
        waiting: 3
      })
      yield* inState(made, "good", { waiting: 0 })
      yield* offerAll(made.publisher, [domainEvent("event-3")])
      yield* inState(made, "good", { waiting: 0 })
      assert.deepStrictEqual(
        (yield* made.control.list).map(({ attempts, name, status, waiting }) => ({ attempts, name, status, waiting })),
        [
          { attempts: 3, name: "bad", status: "parked", waiting: 4 },
          { attempts: 0, name: "good", status: "active", waiting: 0 }
        ]
      )
      const at = (path: string) => receiver.received.filter((one) => one.path === path).length
      assert.deepStrictEqual([at("/bad"), at("/good")], [3, 4])
      assert.deepStrictEqual(made.logged, [
        "Warn The webhook endpoint \"bad\" failed: it answered with HTTP status 500",
        "Error The webhook endpoint \"bad\" failed: it answered with HTTP status 500. It is parked after 3 attempts: " +
        "3 events wait until it is resumed."
      ])
      assert.strictEqual(yield* made.count("effect_units_webhook_parked", { endpoint: "bad" }), 1)
      assert.strictEqual(yield* made.count("effect_units_webhook_parked", { endpoint: "good" }), 0)
    }))

  it.effect("a resumed endpoint goes on with the delivery that failed, or after it, and can be parked again", () =>
    Effect.gen(function*() {
      const receiver = yield* server()
      receiver.always("/bad", WebhookServer.status(500))
      const made = yield* park(receiver)
      yield* offerAll(made.publisher, many(3))
      yield* inState(made, "bad", { status: "parked" })
      assert.isTrue(yield* made.control.resume("bad"))
      yield* until(Effect.sync(() => receiver.received.filter(({ path }) => path === "/bad").length === 6))
      yield* inState(made, "bad", { status: "parked", attempts: 3 })
      receiver.always("/bad", undefined)
      assert.isTrue(yield* made.control.resume("bad", { skip: true }))
      yield* inState(made, "bad", { status: "active", waiting: 0, error: undefined })
      assert.strictEqual(yield* made.count("effect_units_webhook_parked", { endpoint: "bad" }), 0)
      assert.strictEqual(yield* made.count("effect_units_events_dropped", { buffer: "webhook bad" }), 1)
      assert.deepStrictEqual(
        receiver.received.filter(({ path }) => path === "/bad").map(({ headers }) => headers["webhook-id"]),
        [...Array.from({ length: 6 }, () => "event-0"), "event-1", "event-2"]
      )
      assert.isFalse(yield* made.control.resume("bad"))
      assert.isFalse(yield* made.control.resume("nobody"))
    }))

  it.effect("an endpoint that is gone is parked at once", () =>
    Effect.gen(function*() {
      const receiver = yield* server()
      receiver.always("/bad", WebhookServer.status(410))
      const made = yield* park(receiver)
      yield* offerAll(made.publisher, many(2))
      yield* inState(made, "bad", { status: "parked", attempts: 1, waiting: 2 })
    }))

  it.effect("onParked that fails is logged, and can publish the domain event elsewhere", () =>
    Effect.gen(function*() {
      const receiver = yield* server()
      receiver.always("/bad", WebhookServer.status(410))
      const memory = yield* Layer.build(EventPublisher.layerMemory)
      const made = yield* park(receiver, {
        onParked: (parked) =>
          Webhook.EndpointParked.publish(parked).pipe(
            Effect.provideContext(memory),
            Effect.andThen(Effect.die(new Error("a bug of the application")))
          )
      })
      yield* offerAll(made.publisher, many(1))
      yield* until(Effect.sync(() => made.logged.some((line) => line.includes("a bug of the application"))))
      const [event] = yield* Context.get(memory, EventPublisher.Memory).all
      assert.isTrue(DomainEvent.isDomainEvent(event))
      if (!DomainEvent.isDomainEvent(event)) return
      assert.strictEqual(event.type, "webhook.endpoint_parked")
      assert.deepStrictEqual(event.payload, {
        endpoint: "bad",
        attempts: 1,
        error: "The webhook endpoint \"bad\" failed: it answered with HTTP status 410",
        waiting: 1
      })
      assert.isTrue(yield* made.control.resume("bad", { skip: true }))
    }))
})

describe("addresses", () => {
  const isPublic = (address: string) => PublicAddress.isPublic(address)

  it("which are public", () => {
    const no = [
      "127.0.0.1",
      "127.255.255.254",
      "0.0.0.0",
      "10.1.2.3",
      "100.64.0.1",
      "169.254.169.254",
      "172.16.0.1",
      "172.31.255.255",
      "192.168.1.1",
      "198.18.0.1",
      "224.0.0.1",
      "255.255.255.255",
      "::",
      "::1",
      "::ffff:127.0.0.1",
      "::ffff:7f00:1",
      "::127.0.0.1",
      "64:ff9b::10.0.0.1",
      "64:ff9b:1::1",
      "fe80::1",
      "fe80::1%eth0",
      "fd00::1",
      "fec0::1",
      "ff02::1",
      "2002:7f00:1::",
      "2001::1",
      "2001:db8::1",
      "",
      "localhost",
      "1.2.3"
    ]
    assert.deepStrictEqual(no.filter(isPublic), [])
    const yes = [
      "1.1.1.1",
      "8.8.8.8",
      "100.63.255.255",
      "172.32.0.1",
      "192.167.255.255",
      "223.255.255.255",
      "2606:4700::1",
      "64:ff9b::8.8.8.8",
      "::ffff:8.8.8.8"
    ]
    assert.deepStrictEqual(yes.filter((address) => !isPublic(address)), [])
  })

  it.effect("that are not public are refused, by number and by name, however they are written", () =>
    Effect.gen(function*() {
      const receiver = yield* server()
      const hosts = [
        "127.0.0.1",
        "localhost",
        "2130706433",
        "0x7f.1",
        "127.1",
        "[::ffff:127.0.0.1]",
        "[::1]"
      ]
      const made = yield* publishing(hosts.map((host) => ({
        name: host,
        url: `http://${host}:${receiver.port}`,
        allowPrivateAddresses: false
      })))
      yield* offerAll(made.publisher, many(1))
      for (const host of hosts) yield* inState(made, host, { status: "retrying" })
      for (const { error, name } of yield* made.control.list) {
        assert.strictEqual(error!.reason._tag, "ForbiddenAddress", name)
      }
      assert.deepStrictEqual(receiver.received, [])
      assert.strictEqual(receiver.connections(), 0)
    }))

  it.effect("a name that has no address is unreachable", () =>
    Effect.gen(function*() {
      const made = yield* publishing([{ url: `https://${"x".repeat(64)}.invalid/hooks`, allowPrivateAddresses: false }])
      yield* offerAll(made.publisher, many(1))
      yield* inState(made, "receiver", { status: "retrying" })
      const [state] = yield* made.control.list
      assert.strictEqual(state!.error!.reason._tag, "Unreachable")
    }))

  it.effect("the lookup for agents checks the addresses that are connected to", () =>
    Effect.gen(function*() {
      const receiver = yield* server()
      // The check of the publisher is off, as it is for an attacker who changes the answer after it.
      for (
        const client of [
          NodeHttpClient.layerNodeHttpOptions({ lookup: Webhook.publicLookup }),
          NodeHttpClient.layerUndiciOptions({ connect: { lookup: Webhook.publicLookup } })
        ]
      ) {
        const made = yield* publishing([{ url: `http://localhost:${receiver.port}` }], { client })
        yield* offerAll(made.publisher, many(1))
        yield* inState(made, "receiver", { status: "retrying" })
        const [state] = yield* made.control.list
        assert.deepStrictEqual(state!.error!.reason, new Webhook.Unreachable({ code: "EACCES" }))
      }
      assert.strictEqual(receiver.connections(), 0)
    }))

  it.effect("the lookup for agents gives what the system's does, one address or all", () =>
    Effect.gen(function*() {
      const look = (host: string, all: boolean) =>
        Effect.callback<string | ReadonlyArray<LookupAddress> | NodeJS.ErrnoException>((resume) =>
          Webhook.publicLookup(host, { all }, (error, found) => resume(Effect.succeed(error ?? found)))
        )
      assert.strictEqual(yield* look("8.8.8.8", false), "8.8.8.8")
      assert.deepStrictEqual(yield* look("8.8.8.8", true), [{ address: "8.8.8.8", family: 4 }])
      const refused = yield* look("10.0.0.1", true)
      assert.isTrue(refused instanceof Error && /10\.0\.0\.1.*not public/.test(refused.message))
    }))
})

describe("the buffer", () => {
  it.effect("loses the newest where it is full, counts them, says so once, and keeps no unit waiting", () =>
    Effect.gen(function*() {
      const receiver = yield* server()
      receiver.answer("/", WebhookServer.silence)
      const made = yield* publishing([{
        url: receiver.url,
        capacity: 3,
        retry: Schedule.recurs(1),
        timeout: "5 seconds"
      }])
      const [first, ...rest] = many(10)
      yield* offerAll(made.publisher, [first!])
      yield* next(receiver)
      yield* offerAll(made.publisher, rest)
      assert.strictEqual(yield* Effect.provide(double(1), made.context), 2)
      // Three wait beside the one that is being sent; of nine and the two of the unit, eight are lost.
      assert.strictEqual(yield* made.count("effect_units_events_dropped", { buffer: "webhook receiver" }), 8)
      assert.deepStrictEqual(made.logged.filter((line) => line.includes("is full")).length, 1)
      yield* TestClock.adjust("5 seconds")
      yield* inState(made, "receiver", { waiting: 0 })
      assert.deepStrictEqual(
        receiver.received.slice(1).map(({ headers }) => headers["webhook-id"]),
        ["event-0", "event-1", "event-2", "event-3"]
      )
    }))

  it.effect("an event that is not fit for JSON is lost alone", () =>
    Effect.gen(function*() {
      const receiver = yield* server()
      const made = yield* publishing([{ url: receiver.url }])
      const odd = { ...domainEvent("odd"), payload: 1n } as unknown as DomainEvent.DomainEvent
      yield* offerAll(made.publisher, [odd, domainEvent("even")])
      assert.strictEqual((yield* next(receiver)).headers["webhook-id"], "even")
      assert.strictEqual(yield* made.count("effect_units_events_dropped", { buffer: "webhook receiver" }), 1)
    }))

  it.effect("is flushed when the scope closes, all endpoints at once", () =>
    Effect.gen(function*() {
      const receiver = yield* server()
      const made = yield* publishing([
        { name: "a", url: `${receiver.url}/a` },
        { name: "b", url: `${receiver.url}/b`, mode: "batched" }
      ])
      yield* offerAll(made.publisher, many(100))
      yield* made.close
      const arrived = (path: string) =>
        Effect.map(
          Effect.forEach(receiver.received.filter((one) => one.path === path), (request) => read(request)),
          (events) => ids(events.flat())
        )
      assert.deepStrictEqual(yield* arrived("/a"), many(100).map(({ id }) => id))
      assert.deepStrictEqual(yield* arrived("/b"), many(100).map(({ id }) => id))
      assert.deepStrictEqual(made.logged, [])
    }))

  it.effect("what the flush does not manage in its time is counted, and a parked endpoint is not waited for", () =>
    Effect.gen(function*() {
      const receiver = yield* server()
      receiver.always("/parked", WebhookServer.status(410))
      receiver.always("/stuck", WebhookServer.silence)
      const made = yield* publishing([
        { name: "parked", url: `${receiver.url}/parked` },
        { name: "stuck", url: `${receiver.url}/stuck` }
      ], { flushTimeout: "3 seconds" })
      yield* offerAll(made.publisher, many(5))
      yield* inState(made, "parked", { status: "parked" })
      const closing = yield* Effect.forkChild(made.close)
      yield* until(Effect.andThen(TestClock.adjust("1 second"), Effect.sync(() => closing.pollUnsafe() !== undefined)))
      assert.isAtMost(yield* Effect.clockWith((clock) => clock.currentTimeMillis), 4000)
      for (const name of ["parked", "stuck"]) {
        assert.strictEqual(yield* made.count("effect_units_events_dropped", { buffer: `webhook ${name}` }), 5)
        assert.isTrue(made.logged.some((line) => line.includes(`"${name}" was closed with 5 events`)))
      }
      // After the end nothing is taken, and nothing breaks.
      yield* offerAll(made.publisher, many(1))
    }))

  it.effect("a parked endpoint does not hold up the end of the scope", () =>
    Effect.gen(function*() {
      const receiver = yield* server()
      receiver.always("/", WebhookServer.status(410))
      const made = yield* publishing([{ url: receiver.url }])
      yield* offerAll(made.publisher, many(1))
      yield* inState(made, "receiver", { status: "parked" })
      yield* made.close
      assert.strictEqual(yield* made.count("effect_units_events_dropped", { buffer: "webhook receiver" }), 1)
    }))

  it.effect("an endpoint that would be parked while the scope closes does not hold it up", () =>
    Effect.gen(function*() {
      const receiver = yield* server()
      receiver.always("/", WebhookServer.status(500))
      const made = yield* publishing([{ url: receiver.url, retry: Schedule.recurs(3) }])
      yield* offerAll(made.publisher, many(2))
      yield* made.close
      assert.strictEqual(yield* made.count("effect_units_events_dropped", { buffer: "webhook receiver" }), 2)
    }))
})

describe("secrets", () => {
  it.effect("show in no log, error, metric or state, whatever goes wrong", () =>
    Effect.gen(function*() {
      const receiver = yield* server()
      const hidden = [
        "path-token-1a2b",
        "query-token-3c4d",
        "header-token-5e6f",
        secretText.slice(6),
        otherText.slice(6)
      ]
      const [path, query, header] = hidden
      const url = (rest: string) => Redacted.make(`${receiver.url}/${path}/${rest}?key=${query}`)
      const given = { headers: { authorization: Redacted.make(`Bearer ${header}`) }, secrets: [secret, other] as const }
      receiver.always(`/${path}/500?key=${query}`, WebhookServer.status(500))
      receiver.always(`/${path}/302?key=${query}`, WebhookServer.status(302, { location: "/" }))
      receiver.always(`/${path}/break?key=${query}`, WebhookServer.hangUp)
      receiver.always(
        `/${path}/garbage?key=${query}`,
        (_, socket) => void socket.end(`garbage ${path} ${header}\r\n\r\n`)
      )
      const retry = Schedule.recurs(1)
      const made = yield* publishing([
        { name: "500", url: url("500"), retry, ...given },
        { name: "302", url: url("302"), retry, ...given },
        { name: "break", url: url("break"), retry, ...given },
        { name: "garbage", url: url("garbage"), retry, ...given },
        { name: "port", url: Redacted.make(`http://127.0.0.1:1/${path}?key=${query}`), retry, ...given },
        { name: "forbidden", url: url("x"), retry, ...given, allowPrivateAddresses: false }
      ], { onParked: () => Effect.fail("no").pipe(Effect.orDie) })
      yield* offerAll(made.publisher, many(1))
      for (const { name } of yield* made.control.list) yield* inState(made, name, { status: "parked" })
      assert.strictEqual(receiver.received[0]!.headers.authorization, `Bearer ${header}`)
      const states = yield* made.control.list
      const shown = [
        ...made.logged,
        JSON.stringify(yield* made.metrics, (_, value: unknown) => typeof value === "bigint" ? String(value) : value),
        ...states.map((state) => JSON.stringify(state)),
        ...states.map(({ error }) =>
          `${error!.message} ${error!.stack} ${String(error)} ${Cause.pretty(Cause.fail(error))}`
        )
      ].join("\n")
      for (const word of hidden) assert.notInclude(shown, word)
      assert.include(shown, "The webhook endpoint \"garbage\" failed")
    }))

  it.effect("wrong settings are said without them", () =>
    Effect.gen(function*() {
      const detail = (given: Partial<Webhook.Endpoint>, more: ReadonlyArray<Webhook.Endpoint> = []) =>
        Effect.map(
          Effect.flip(Effect.scoped(Layer.build(Layer.provide(
            Webhook.layer({ endpoints: [...more, endpoint({ url: "https://receiver.example", ...given })] }),
            FetchHttpClient.layer
          )))),
          ({ endpoint, reason }) => `${endpoint}: ${reason._tag === "InvalidSettings" ? reason.detail : reason._tag}`
        )
      const whsec = (bytes: number) => [Redacted.make(`whsec_${Buffer.alloc(bytes).toString("base64")}`)] as const
      assert.strictEqual(yield* detail({ url: "nowhere" }), "receiver: url is no address")
      assert.strictEqual(yield* detail({ url: "ftp://x.example" }), "receiver: url begins with https:// or http://")
      assert.strictEqual(
        yield* detail({ url: "https://ada:pass@x.example" }),
        "receiver: url holds a user or a password. Send them as a header"
      )
      assert.strictEqual(
        yield* detail({ secrets: [Redacted.make("hunter2")] }),
        "receiver: a secret begins with \"whsec_\""
      )
      assert.strictEqual(
        yield* detail({ secrets: [Redacted.make("whsec_hunter2!")] }),
        "receiver: a secret is base64 after \"whsec_\""
      )
      assert.strictEqual(yield* detail({ secrets: whsec(23) }), "receiver: a secret has 24 to 64 bytes, this one 23")
      assert.strictEqual(yield* detail({ secrets: whsec(65) }), "receiver: a secret has 24 to 64 bytes, this one 65")
      assert.strictEqual(
        yield* detail({}, [endpoint({ url: "https://receiver.example" })]),
        "receiver: another endpoint has the same name"
      )
    }))
})

describe("receiving", () => {
  const body = JSON.stringify(DomainEvent.toCloudEvent(domainEvent("event-1")))

  interface Signing {
    readonly id?: string
    readonly at?: number
    readonly with?: string
    readonly body?: string
    readonly type?: string
  }

  /** A request as the reference library signs it, at a time in Unix seconds. */
  const signed = (given: Signing = {}): Webhook.Request => {
    const text = given.body ?? body
    const id = given.id ?? "delivery-1"
    const at = given.at ?? 1000
    return {
      secrets: [secret],
      headers: {
        "Webhook-Id": id,
        "Webhook-Timestamp": String(at),
        "Webhook-Signature": new Standard(given.with ?? secretText).sign(id, new Date(at * 1000), text),
        "Content-Type": given.type ?? "application/cloudevents+json; charset=utf-8"
      },
      body: text
    }
  }

  const at = (seconds: number) => TestClock.setTime(seconds * 1000)

  const fresh = <A, E, R>(effect: Effect.Effect<A, E, R>) =>
    Effect.provideService(effect, Webhook.CurrentSeenIds, Webhook.makeSeenIds({ capacity: 100 }))

  const reasonOf = (request: Webhook.Request) =>
    Effect.map(Effect.flip(Webhook.verify(request)), ({ reason }) => reason)

  it.effect("what the reference library has signed is accepted, as text and as bytes", () =>
    Effect.gen(function*() {
      yield* at(1000)
      assert.deepStrictEqual((yield* Webhook.verify(signed())).map(json), [domainEvent("event-1")])
      const bytes = { ...signed({ id: "delivery-2" }), body: new TextEncoder().encode(body) }
      assert.deepStrictEqual(ids(yield* Webhook.verify(bytes)), ["event-1"])
    }).pipe(fresh))

  it.effect("what was changed is refused", () =>
    Effect.gen(function*() {
      yield* at(1000)
      const request = signed()
      const header = (name: string, value: string | undefined) => ({
        ...request,
        headers: { ...request.headers, [name]: value }
      })
      const mismatch = new Webhook.SignatureMismatch()
      assert.deepStrictEqual(yield* reasonOf({ ...request, body: `${body} ` }), mismatch)
      assert.deepStrictEqual(yield* reasonOf(header("Webhook-Id", "delivery-2")), mismatch)
      assert.deepStrictEqual(yield* reasonOf(header("Webhook-Timestamp", "1001")), mismatch)
      assert.deepStrictEqual(yield* reasonOf(signed({ with: otherText })), mismatch)
      const signature = String(request.headers["Webhook-Signature"])
      for (
        const forged of ["v1,", "v1", "v1a,abc", signature.slice(3), signature.replace("v1,", "v2,"), `${signature}A`]
      ) {
        assert.deepStrictEqual(yield* reasonOf(header("Webhook-Signature", forged)), mismatch, forged)
      }
      // One that fits among others is enough.
      assert.deepStrictEqual(
        ids(yield* Webhook.verify(header("Webhook-Signature", `v1a,abc v1,wrong ${signature}`))),
        ["event-1"]
      )
    }).pipe(fresh))

  it.effect("headers that are missing or malformed are named", () =>
    Effect.gen(function*() {
      yield* at(1000)
      const request = signed()
      const wrong: ReadonlyArray<readonly [string, string | undefined]> = [
        ["webhook-id", undefined],
        ["webhook-id", ""],
        ["webhook-id", "a.b"],
        ["webhook-id", "a b"],
        ["webhook-timestamp", undefined],
        ["webhook-timestamp", "soon"],
        ["webhook-timestamp", "-1"],
        ["webhook-timestamp", "1e3"],
        ["webhook-signature", undefined],
        ["webhook-signature", ""]
      ]
      for (const [name, value] of wrong) {
        const headers = Object.fromEntries(
          Object.entries(request.headers).map(([key, given]) => [key, key.toLowerCase() === name ? value : given])
        )
        assert.deepStrictEqual(yield* reasonOf({ ...request, headers }), new Webhook.InvalidHeader({ header: name }))
      }
    }).pipe(fresh))

  it.effect("what is too old, or of the future, is refused", () =>
    Effect.gen(function*() {
      yield* at(1000)
      const out = (age_seconds: number, tolerance_seconds: number) =>
        new Webhook.OutOfTolerance({ age_seconds, tolerance_seconds })
      assert.deepStrictEqual(yield* reasonOf(signed({ at: 699 })), out(301, 300))
      assert.deepStrictEqual(yield* reasonOf(signed({ at: 1301 })), out(-301, 300))
      assert.deepStrictEqual(yield* reasonOf({ ...signed({ at: 989 }), tolerance: "10 seconds" }), out(11, 10))
      assert.strictEqual((yield* Webhook.verify(signed({ at: 700, id: "old" }))).length, 1)
      assert.strictEqual((yield* Webhook.verify(signed({ at: 1300, id: "new" }))).length, 1)
    }).pipe(fresh))

  it.effect("a delivery is accepted once", () =>
    Effect.gen(function*() {
      yield* at(1000)
      yield* Webhook.verify(signed())
      const error = yield* Effect.flip(Webhook.verify(signed()))
      assert.deepStrictEqual(error.reason, new Webhook.Replayed({ webhook_id: "delivery-1", handled: true }))
      // The sender is to go on.
      assert.strictEqual(error.responseStatus, 200)
      // With a signature of a later time as well.
      yield* at(1200)
      assert.deepStrictEqual(
        yield* reasonOf(signed({ at: 1200 })),
        new Webhook.Replayed({ webhook_id: "delivery-1", handled: true })
      )
      // As long as it is not too old by itself.
      yield* at(1300)
      assert.deepStrictEqual(
        yield* reasonOf(signed({ at: 1000 })),
        new Webhook.Replayed({ webhook_id: "delivery-1", handled: true })
      )
      yield* at(1301)
      assert.strictEqual((yield* reasonOf(signed({ at: 1000 })))._tag, "OutOfTolerance")
    }).pipe(fresh))

  it.effect("a delivery whose handling fails can come again, and not meanwhile", () =>
    Effect.gen(function*() {
      yield* at(1000)
      const handling = yield* Deferred.make<void>()
      const go = yield* Deferred.make<void, string>()
      const first = yield* Effect.forkChild(
        Webhook.receive(signed(), () => Effect.andThen(Deferred.succeed(handling, undefined), Deferred.await(go)))
      )
      yield* Deferred.await(handling)
      const meanwhile = yield* Effect.flip(Webhook.verify(signed()))
      assert.deepStrictEqual(meanwhile.reason, new Webhook.Replayed({ webhook_id: "delivery-1", handled: false }))
      assert.strictEqual(meanwhile.responseStatus, 409)
      yield* Deferred.fail(go, "no room")
      assert.deepStrictEqual(yield* Fiber.await(first), Exit.fail("no room"))

      const second = yield* Effect.forkChild(Webhook.receive(signed(), () => Effect.never))
      yield* Effect.yieldNow
      yield* Fiber.interrupt(second)

      assert.strictEqual(yield* Webhook.receive(signed(), (events) => Effect.succeed(events.length)), 1)
      assert.deepStrictEqual(
        yield* reasonOf(signed()),
        new Webhook.Replayed({ webhook_id: "delivery-1", handled: true })
      )
    }).pipe(fresh))

  it.effect("the ids that are kept are bounded, and the oldest give way", () =>
    Effect.gen(function*() {
      const seen = Webhook.makeSeenIds({ capacity: 2 })
      const claim = (id: string, until = 1000) => seen.claim(id, until)
      assert.deepStrictEqual([yield* claim("a"), yield* claim("b"), yield* claim("a")], ["new", "new", "claimed"])
      assert.strictEqual(yield* claim("c"), "new")
      assert.deepStrictEqual([yield* claim("c"), yield* claim("b"), yield* claim("a")], ["claimed", "claimed", "new"])
      // Which took the place of the one that came before.
      assert.strictEqual(yield* claim("b"), "new")
      yield* seen.settle("b", true)
      assert.strictEqual(yield* claim("b"), "handled")
      yield* seen.settle("unknown", true)
      yield* TestClock.setTime(1001)
      assert.strictEqual(yield* claim("b", 2000), "new")
    }))

  it.effect("without a store of its own, a receiver uses that of the process", () =>
    Effect.gen(function*() {
      yield* at(1000)
      yield* Webhook.verify(signed({ id: "of-the-process" }))
      assert.strictEqual((yield* reasonOf(signed({ id: "of-the-process" })))._tag, "Replayed")
    }))

  it.effect("a body that holds no events is refused, and not repeated in the error", () =>
    Effect.gen(function*() {
      yield* at(1000)
      const bodies: ReadonlyArray<readonly [body: string, type: string, detail: RegExp]> = [
        ["hunter2", "application/cloudevents+json", /not JSON/],
        ["[]", "application/cloudevents+json", /no event of this library/],
        [
          `{"specversion":"1.0","id":"hunter2","source":"/","type":"x","data":{}}`,
          "application/cloudevents+json",
          /no event/
        ],
        [body, "application/cloudevents-batch+json", /a batch is a list/],
        [`[${body},{"hunter2":1}]`, "application/cloudevents-batch+json", /no event of this library/],
        [body, "application/json", /the content type is/],
        [body, "", /the content type is/]
      ]
      for (const [index, [text, type, detail]] of bodies.entries()) {
        const error = yield* Effect.flip(Webhook.verify(signed({ body: text, type, id: `odd-${index}` })))
        assert.strictEqual(error.reason._tag, "InvalidBody")
        assert.strictEqual(error.responseStatus, 400)
        assert.match(error.message, detail)
        assert.notInclude(error.message, "hunter2")
      }
      assert.deepStrictEqual(
        yield* Webhook.verify(signed({ body: "[]", type: "Application/CloudEvents-Batch+JSON" })),
        []
      )
    }).pipe(fresh))

  it.effect("bytes that are no UTF-8 are no JSON, and signed as they are", () =>
    Effect.gen(function*() {
      yield* at(1000)
      const odd = Uint8Array.of(0x22, 0xff, 0x22)
      const signature = createHmac("sha256", Buffer.alloc(32, 7)).update("odd.1000.").update(odd).digest("base64")
      const error = yield* reasonOf({
        secrets: [secret],
        headers: {
          "webhook-id": "odd",
          "webhook-timestamp": "1000",
          "webhook-signature": `v1,${signature}`,
          "content-type": "application/cloudevents+json"
        },
        body: odd
      })
      assert.deepStrictEqual(error, new Webhook.InvalidBody({ detail: "it is not JSON" }))
    }).pipe(fresh))

  it.effect("a secret that cannot be used is the receiver's own mistake", () =>
    Effect.gen(function*() {
      const error = yield* Effect.flip(Webhook.verify({ ...signed(), secrets: [Redacted.make("hunter2")] }))
      assert.strictEqual(error.reason._tag, "InvalidSettings")
      assert.strictEqual(error.responseStatus, 500)
      assert.notInclude(error.message, "hunter2")
    }))
})

describe("closed", () => {
  const startIn = <A, E, R>(effect: Effect.Effect<A, E, R>) => Effect.forkChild(effect, { startImmediately: true })

  it.effect("an event is published once every endpoint that wants it has it", () =>
    Effect.gen(function*() {
      const receiver = yield* server()
      receiver.answer("/slow", WebhookServer.status(503))
      const { context, publisher } = yield* publishing([
        { name: "slow", url: `${receiver.url}/slow` },
        { name: "other", url: `${receiver.url}/other` },
        { name: "no", url: `${receiver.url}/no`, types: ["billing.charged"] }
      ], { policy: "closed", timeout: "1 hour" })
      assert.strictEqual(publisher.policy, "closed")
      const done = yield* startIn(publisher.publish(domainEvent("1")))
      yield* until(Effect.sync(() => receiver.received.length === 2))
      yield* Effect.repeat(turn, { times: 3 })
      assert.isUndefined(done.pollUnsafe())
      yield* until(Effect.andThen(TestClock.adjust("1 second"), Effect.sync(() => done.pollUnsafe() !== undefined)))
      yield* Fiber.join(done)
      assert.deepStrictEqual(receiver.received.map(({ path }) => path).toSorted(), ["/other", "/slow", "/slow"])
      assert.strictEqual(yield* Effect.provide(double(2), context), 4)
      yield* publisher.publish(domainEvent("nobody wants", { type: "test.unwanted" }))
    }))

  it.effect("who gives up waiting is told, and its event is not sent behind others; a full buffer refuses", () =>
    Effect.gen(function*() {
      const receiver = yield* server()
      receiver.always("/", WebhookServer.status(503))
      const { publisher } = yield* publishing([{ url: `${receiver.url}/`, capacity: 1 }], {
        policy: "closed",
        timeout: "5 seconds"
      })
      const first = yield* startIn(Effect.flip(publisher.publish(domainEvent("1"))))
      yield* next(receiver)
      const second = yield* startIn(Effect.flip(publisher.publish(domainEvent("2"))))
      assert.strictEqual((yield* Effect.flip(publisher.publish(domainEvent("3")))).reason._tag, "BufferFull")
      yield* TestClock.adjust("5 seconds")
      assert.deepStrictEqual(
        [(yield* Fiber.join(first)).reason._tag, (yield* Fiber.join(second)).reason._tag],
        ["TimedOut", "TimedOut"]
      )
      receiver.always("/", undefined)
      const again = yield* startIn(Effect.eventually(publisher.publish(domainEvent("4"))))
      yield* until(Effect.andThen(TestClock.adjust("1 second"), Effect.sync(() => again.pollUnsafe() !== undefined)))
      const sent = yield* Effect.forEach(receiver.received, (request) => read(request))
      assert.notInclude(ids(sent.flat()), "2")
    }))

  it.effect("what an operator leaves out is refused for good", () =>
    Effect.gen(function*() {
      const receiver = yield* server()
      receiver.always("/", WebhookServer.status(503))
      const { control, publisher } = yield* publishing([{ url: `${receiver.url}/`, retry: Schedule.recurs(0) }], {
        policy: "closed"
      })
      const refused = yield* startIn(Effect.flip(publisher.publish(domainEvent("1"))))
      yield* inState({ control }, "receiver", { status: "parked" })
      yield* control.resume("receiver", { skip: true })
      assert.deepStrictEqual(
        (yield* Fiber.join(refused)).reason,
        new EventPublisher.Rejected({ detail: "the webhook endpoint \"receiver\" was resumed without it" })
      )
    }))

  it.effect("an event that is published again goes on where it was, and no endpoint gets it twice", () =>
    Effect.gen(function*() {
      const receiver = yield* server()
      const held: Array<Http.ServerResponse> = []
      receiver.always("/slow", (response) => void held.push(response))
      const { publisher } = yield* publishing([
        { name: "slow", url: `${receiver.url}/slow` },
        { name: "fast", url: `${receiver.url}/fast` }
      ], { policy: "closed", timeout: "5 seconds" })
      const at = (path: string) => receiver.received.filter((one) => one.path === path).length
      /** Publishes one event, and gives up on it once both endpoints have been sent it. */
      const tooLate = Effect.fnUntraced(function*(id: string, requests: number) {
        const late = yield* startIn(Effect.flip(publisher.publish(domainEvent(id))))
        yield* until(Effect.sync(() => at("/slow") === requests && at("/fast") === requests))
        yield* TestClock.adjust("5 seconds")
        assert.strictEqual((yield* Fiber.join(late)).reason._tag, "TimedOut")
      })
      yield* tooLate("1", 1)
      yield* tooLate("1", 1)
      // Answered while it is waited for again.
      const again = yield* startIn(publisher.publish(domainEvent("1")))
      held[0]?.writeHead(204).end()
      yield* Fiber.join(again)
      // Answered while nobody waits.
      yield* tooLate("2", 2)
      held[1]?.writeHead(204).end()
      const third = yield* startIn(publisher.publish(domainEvent("3")))
      yield* until(Effect.sync(() => at("/slow") === 3))
      yield* publisher.publish(domainEvent("2"))
      held[2]?.writeHead(204).end()
      yield* Fiber.join(third)
      for (const path of ["/slow", "/fast"]) {
        assert.deepStrictEqual(
          receiver.received.filter((one) => one.path === path).map(({ headers }) => headers["webhook-id"]),
          ["1", "2", "3"]
        )
      }
    }))

  it.effect("an event that one endpoint gave up unsent is sent there when it is published again, and only there", () =>
    Effect.gen(function*() {
      const receiver = yield* server()
      const held: Array<Http.ServerResponse> = []
      receiver.always("/slow", (response) => void held.push(response))
      const { control, publisher } = yield* publishing([
        { name: "slow", url: `${receiver.url}/slow` },
        { name: "fast", url: `${receiver.url}/fast` }
      ], { policy: "closed", timeout: "5 seconds" })
      const first = yield* startIn(Effect.flip(publisher.publish(domainEvent("1"))))
      const second = yield* startIn(Effect.flip(publisher.publish(domainEvent("2"))))
      yield* inState({ control }, "fast", { waiting: 0 })
      yield* TestClock.adjust("5 seconds")
      yield* Fiber.join(first)
      yield* Fiber.join(second)
      yield* until(Effect.sync(() => held.length === 1))
      held[0]?.writeHead(204).end()
      yield* inState({ control }, "slow", { waiting: 0 })
      const again = yield* startIn(publisher.publish(domainEvent("2")))
      yield* until(Effect.sync(() => held.length === 2))
      held[1]?.writeHead(204).end()
      yield* Fiber.join(again)
      const sent = receiver.received.map(({ headers, path }) => `${path} ${String(headers["webhook-id"])}`)
      assert.deepStrictEqual(sent.toSorted(), ["/fast 1", "/fast 2", "/slow 1", "/slow 2"])
    }))

  it.effect("who publishes waits by default for longer than an endpoint may take", () =>
    Effect.gen(function*() {
      const receiver = yield* server()
      receiver.answer("/", WebhookServer.silence)
      const { publisher } = yield* publishing([{ url: `${receiver.url}/`, timeout: "30 seconds" }], {
        policy: "closed"
      })
      const done = yield* startIn(publisher.publish(domainEvent("1")))
      yield* next(receiver)
      yield* TestClock.adjust("30 seconds")
      yield* until(Effect.andThen(TestClock.adjust("100 millis"), Effect.sync(() => done.pollUnsafe() !== undefined)))
      yield* Fiber.join(done)
      assert.strictEqual(receiver.received.length, 2)
    }))

  it.effect("what an operator leaves out is refused though its publisher had given up, when it is published again", () =>
    Effect.gen(function*() {
      const receiver = yield* server()
      receiver.always("/bad", WebhookServer.status(503))
      const { control, publisher } = yield* publishing([
        {
          name: "bad",
          url: `${receiver.url}/bad`,
          retry: Schedule.spaced("1 minute").pipe(Schedule.upTo({ times: 3 }))
        },
        { name: "good", url: `${receiver.url}/good` }
      ], { policy: "closed", timeout: "5 seconds" })
      const late = yield* startIn(Effect.flip(publisher.publish(domainEvent("1"))))
      yield* until(Effect.andThen(
        TestClock.adjust("10 seconds"),
        Effect.map(control.list, ([bad]) => bad?.status === "parked")
      ))
      assert.strictEqual((yield* Fiber.join(late)).reason._tag, "TimedOut")
      yield* control.resume("bad", { skip: true })
      yield* inState({ control }, "bad", { status: "active" })
      const refused = new EventPublisher.Rejected({ detail: "the webhook endpoint \"bad\" was resumed without it" })
      assert.deepStrictEqual((yield* Effect.flip(publisher.publish(domainEvent("1")))).reason, refused)
      assert.deepStrictEqual(
        receiver.received.map(({ path }) => path).toSorted(),
        ["/bad", "/bad", "/bad", "/bad", "/good"]
      )
    }))

  /** A relay of some events to one endpoint, whose publisher gives up waiting after a moment. */
  const relaying = Effect.fnUntraced(function*(events: ReadonlyArray<EventPublisher.Event>, given: Given) {
    const to = Webhook.layer({ policy: "closed", timeout: "20 millis", endpoints: [endpoint(given)] }).pipe(
      Layer.provide(FetchHttpClient.layer)
    )
    const context = yield* Layer.build(
      Relay.layer({ name: "x", to }).pipe(
        // The same Layer, so it is built once.
        Layer.provideMerge(Layer.provide(Layer.effect(Webhook.Endpoints, Webhook.Endpoints), to)),
        Layer.provideMerge(EventStore.layerSqlite({ filename: ":memory:" })),
        Layer.provideMerge(Layer.merge(
          Layer.succeed(Metric.MetricRegistry, new Map()),
          Logger.layer([])
        ))
      )
    )
    yield* Context.get(context, EventStore.EventStore).append(events)
    const failures = Effect.map(Effect.provideContext(Metric.snapshot, context), (all) =>
      all.reduce(
        (sum, one) =>
          one.type === "Counter" && one.id === "effect_units_relay_failures" ? sum + Number(one.state.count) : sum,
        0
      ))
    return {
      control: Context.get(context, Webhook.Endpoints),
      status: Context.get(context, Relay.Relay).status,
      /** Waits until the publisher has given up once more. */
      givenUp: Effect.flatMap(failures, (before) => until(Effect.map(failures, (now) => now > before)))
    }
  })

  it.live("a relay gets on where every answer takes longer than its publisher waits", () =>
    Effect.gen(function*() {
      const receiver = yield* server()
      const held: Array<Http.ServerResponse> = []
      receiver.always("/", (response) => void held.push(response))
      const { givenUp, status } = yield* relaying(many(3), { url: `${receiver.url}/` })
      for (let n = 0; n < 3; n++) {
        yield* until(Effect.sync(() => held.length > n))
        yield* givenUp
        held[n]?.writeHead(204).end()
      }
      yield* until(Effect.map(status, ({ lag_events }) => lag_events === 0))
      assert.deepStrictEqual(
        receiver.received.map(({ headers }) => headers["webhook-id"]),
        ["event-0", "event-1", "event-2"]
      )
    }))

  it.live("what an operator leaves out is put aside by a relay, however long it has waited", () =>
    Effect.gen(function*() {
      const receiver = yield* server()
      receiver.answer("/", WebhookServer.status(503))
      const made = yield* relaying(many(3), { url: `${receiver.url}/`, retry: Schedule.recurs(0) })
      yield* inState(made, "receiver", { status: "parked" })
      yield* made.givenUp
      yield* made.control.resume("receiver", { skip: true })
      yield* until(Effect.map(made.status, ({ lag_events }) => lag_events === 0))
      const { parked, relayed } = yield* made.status
      assert.deepStrictEqual({ parked, relayed }, { parked: 1, relayed: 2 })
      assert.deepStrictEqual(
        receiver.received.map(({ headers }) => headers["webhook-id"]),
        ["event-0", "event-1", "event-2"]
      )
    }))

  it.live("a relay sends through it, in order for each tree, and marks what the endpoint has", () =>
    Effect.gen(function*() {
      const receiver = yield* server()
      receiver.answer("/", WebhookServer.status(503), WebhookServer.hangUp)
      const events = ["a", "b", "c"].flatMap((
        id
      ) => [started(id), domainEvent(`${id}-said`, { correlation: id }), completed(id)])
      const to = Webhook.layer({
        policy: "closed",
        endpoints: [endpoint({ url: `${receiver.url}/`, retry: Schedule.spaced("10 millis") })]
      }).pipe(Layer.provide(FetchHttpClient.layer))
      const context = yield* Layer.build(
        Relay.layer({ name: "x", to }).pipe(Layer.provideMerge(EventStore.layerSqlite({ filename: ":memory:" })))
      )
      const store = Context.get(context, EventStore.EventStore)
      yield* store.append(events)
      const { status } = Context.get(context, Relay.Relay)
      yield* until(Effect.map(status, ({ lag_events }) => lag_events === 0))
      const bodies = new Map<string, EventPublisher.Event>()
      for (const request of receiver.received) for (const event of yield* read(request)) bodies.set(event.id, event)
      assert.deepStrictEqual(
        [...bodies.values()].toSorted((x, y) => x.id.localeCompare(y.id)),
        events.toSorted((x, y) => x.id.localeCompare(y.id))
      )
      for (const id of ["a", "b", "c"]) {
        const order = [...bodies.keys()].filter((key) => key.startsWith(id))
        assert.deepStrictEqual(order, [`${id}:started`, `${id}-said`, `${id}:completed`])
      }
    }))
})
