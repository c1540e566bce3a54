import { assert, it } from "@effect/vitest"
import { jetstreamManager } from "@nats-io/jetstream"
import { connect, createInbox, type Msg } from "@nats-io/transport-node"
import {
  Config,
  ConfigProvider,
  Context,
  Effect,
  Exit,
  Fiber,
  Layer,
  Logger,
  References,
  type Schema,
  type Scope,
  Stream
} from "effect"
import { createHash } from "node:crypto"
import { inspect } from "node:util"
import { EventPublisher, EventSubscriber } from "../../src/index.ts"
import * as Nats from "../../src/publishers/Nats.ts"
import { completed, domainEvent, failed, started } from "../fixtures/events.ts"
import { newName } from "../fixtures/names.ts"
import { freePort, ownNats, type OwnServer } from "../fixtures/ownServer.ts"
import { receive, shown, subscribe, touch } from "../fixtures/receiving.ts"
import { natsFilter, tcpProxy } from "../fixtures/tcpProxy.ts"
import { makeWorld, named, range } from "../publisherWorld.ts"
import { stress, withProgram, withServer } from "../servers.ts"

/** In real time, and without the warnings that servers which fail give rise to. */
const live = <A, E>(name: string, test: () => Effect.Effect<A, E, Scope.Scope>, timeout?: number) =>
  it.live(name, () => Effect.provideService(test(), References.MinimumLogLevel, "Error"), timeout)

/** A stream of its own on a server, what a test needs to look at it, and its end. */
const stage = Effect.fnUntraced(function*(servers: string, credentials: { user?: string; pass?: string } = {}) {
  const prefix = newName("nats_test")
  const nc = yield* Effect.acquireRelease(
    Effect.promise(() => connect({ servers, reconnectTimeWait: 20, maxReconnectAttempts: -1, ...credentials })),
    (nc) =>
      Effect.promise(async () => {
        try {
          await (await jetstreamManager(nc)).streams.delete(prefix).catch(() => {})
        } finally {
          await nc.close()
        }
      })
  )
  const manager = yield* Effect.promise(() => jetstreamManager(nc, { timeout: 1000 }))
  const message = (seq: number) => Effect.promise(() => manager.streams.getMessage(prefix, { seq }))
  // A question to a server that has just been started again may be lost.
  const info = Effect.tryPromise(() => manager.streams.info(prefix)).pipe(Effect.retry({ times: 10 }), Effect.orDie)
  const size = Effect.map(info, ({ state }) => state.messages)
  /** The ids of the messages, in the order of the stream. */
  const ids = Effect.flatMap(info, ({ state }) =>
    Effect.forEach(
      range(state.first_seq, state.last_seq),
      (seq) => Effect.map(message(seq), (stored) => stored?.header.get("Nats-Msg-Id") ?? ""),
      { concurrency: 64 }
    ))
  return { options: { servers, prefix }, prefix, nc, manager, message, info, size, ids }
})

const publisherOf = (layer: Layer.Layer<EventPublisher.EventPublisher, Nats.NatsError>) =>
  Effect.map(Layer.build(layer), Context.get(EventPublisher.EventPublisher))

const publisher = (options: Nats.PublisherOptions) => publisherOf(Nats.layerPublisher({ policy: "closed", ...options }))

const subscriber = (options: Nats.SubscriberOptions) =>
  Effect.map(Layer.build(Nats.layerSubscriber(options)), Context.get(EventSubscriber.EventSubscriber))

const numbered = (from: number, to: number) =>
  range(from, to).map((n) => started(`e${String(n).padStart(5, "0")}`, { sequence: n }))

/** Publishes under the closed policy, and succeeds when all are acknowledged. */
const publishAll = (to: EventPublisher.Publisher, events: ReadonlyArray<EventPublisher.Event>) =>
  Effect.forEach(events, (event) => to.publish(event), { concurrency: "unbounded", discard: true })

const idsOf = (events: ReadonlyArray<EventPublisher.Event>): ReadonlyArray<string> => events.map(({ id }) => id)

await withServer("NATS", "NATS JetStream", (servers) => {
  it.effect("an event is a message on its subject, under its id, with its span, and comes back as it was", () =>
    Effect.gen(function*() {
      const { message, options } = yield* stage(servers)
      const events = [
        {
          ...started("a", { input: { text: "NUL \u0000, lone \ud800, 🤖" } }),
          trace_id: "0af7651916cd43dd8448eb211c80319c",
          span_id: "b7ad6b7169203331"
        },
        failed("a"),
        {
          ...domainEvent("d1", { correlation: "a" }),
          trace_id: "0af7651916cd43dd8448eb211c80319c",
          span_id: "00f067aa0ba902b7"
        },
        domainEvent("d2", { type: "engine.GPU * found" })
      ]
      yield* publishAll(yield* publisher(options), events)
      const stored = yield* Effect.forEach(range(1, 4), message)
      assert.deepStrictEqual(
        stored.map((one) => [one?.subject, one?.header.get("Nats-Msg-Id"), one?.header.get("traceparent")]),
        [
          ["model.pull.execution_started", "a:started", "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"],
          ["model.pull.execution_failed", "a:failed", ""],
          ["model.pull.created", "d1", "00-0af7651916cd43dd8448eb211c80319c-00f067aa0ba902b7-01"],
          ["engine._.GPU%20%2A%20found", "d2", ""]
        ].map(([subject, ...others]) => [`${options.prefix}.${subject}`, ...others])
      )
      const received = yield* receive(yield* subscriber(options), { from: "beginning" }, 4)
      assert.deepStrictEqual(received.map(({ event }) => event), events)
      assert.deepStrictEqual(received.map(({ position }) => position), ["1", "2", "3", "4"])
    }))

  it.effect("creates the stream with what the options state, and takes it as it is the next time", () =>
    Effect.gen(function*() {
      const { info, options } = yield* stage(servers)
      const stated: Nats.StreamOptions = {
        ...options,
        retention: { maxAge: "1 hour", maxBytes: 1_000_000, maxEvents: 100 },
        storage: "memory",
        duplicateWindow: "30 seconds"
      }
      // Both at once, each of which finds it missing.
      yield* Layer.build(Nats.layer(stated))
      const { config } = yield* info
      assert.deepStrictEqual(
        {
          subjects: config.subjects,
          retention: config.retention,
          max_age: config.max_age,
          max_bytes: config.max_bytes,
          max_msgs: config.max_msgs,
          storage: config.storage,
          duplicate_window: config.duplicate_window
        },
        {
          subjects: [`${options.prefix}.>`],
          retention: "limits",
          max_age: 3_600_000_000_000,
          max_bytes: 1_000_000,
          max_msgs: 100,
          storage: "memory",
          duplicate_window: 30_000_000_000
        }
      )
      yield* Layer.build(Nats.layer(stated))
      yield* Layer.build(Nats.layer(options))
    }))

  it.effect("refuses a stream that is another than the options state, and says in what", () =>
    Effect.gen(function*() {
      const { manager, options, prefix } = yield* stage(servers)
      yield* Effect.promise(() =>
        manager.streams.add({ name: prefix, subjects: [`${prefix}.other`], retention: "workqueue", max_msgs: 5 })
      )
      const error = yield* Effect.flip(
        Effect.scoped(Layer.build(Nats.layerPublisher({ ...options, retention: { maxEvents: 10 } })))
      )
      assert.deepStrictEqual(
        error,
        new Nats.NatsError({
          reason: new Nats.StreamDiffers({
            stream: prefix,
            differences: [
              { field: "subjects", found: `${prefix}.other`, expected: `${prefix}.>` },
              { field: "retention", found: "workqueue", expected: "limits" },
              { field: "max_msgs", found: "5", expected: "10" }
            ]
          })
        })
      )
      assert.deepStrictEqual([error.retryable, error.message.includes("max_msgs is 5, the options say 10")], [
        false,
        true
      ])
    }))

  it.effect("says where no server is, without the credentials", () =>
    Effect.gen(function*() {
      const port = yield* freePort
      for (
        const [credentials, shown] of [
          ["user:secret", `nats://127.0.0.1:${port}`],
          ["user:1@secret", `nats://127.0.0.1:${port}`],
          ["user:1/secret", "(hidden)"]
        ] as const
      ) {
        const error = yield* Effect.flip(
          Effect.scoped(Layer.build(Nats.layer({ servers: `nats://${credentials}@127.0.0.1:${port}` })))
        )
        assert.deepStrictEqual([error.reason._tag, error.retryable], ["Unreachable", true])
        assert.include(error.message, shown)
        assert.notInclude(inspect(error, { depth: 10 }), "secret")
      }
    }))

  it.effect("reads its options from Config", () =>
    Effect.gen(function*() {
      const { options, size } = yield* stage(servers)
      const layer = Nats.layerConfig({
        servers: Config.String("NATS_URL"),
        prefix: Config.String("PREFIX"),
        policy: Config.succeed("closed")
      }).pipe(Layer.provide(
        ConfigProvider.layer(ConfigProvider.fromUnknown({ NATS_URL: options.servers, PREFIX: options.prefix }))
      ))
      const context = yield* Layer.build(layer)
      yield* Context.get(context, EventPublisher.EventPublisher).publish(started("a"))
      assert.strictEqual(yield* size, 1)
    }))

  it.effect("an event that is larger than the server takes is refused for good under closed, and comes with markers under open", () =>
    Effect.gen(function*() {
      const { ids, info, manager, options, prefix } = yield* stage(servers)
      const text = "x".repeat(1_100_000)
      const markerOf = (content: string) => ({
        $truncated: true,
        bytes: content.length,
        sha256: createHash("sha256").update(content).digest("hex")
      })
      const marker = markerOf(text)
      const inObject = markerOf(JSON.stringify({ text }))
      const large = started("large", { input: text })
      const closed = yield* publisher(options)
      const refused = yield* Effect.flip(closed.publish(large))
      assert.deepStrictEqual([refused.reason._tag, refused.retryable], ["Rejected", false])
      assert.include(refused.message, "max_payload of 1048576 bytes")

      const failure = (value: Schema.Json) => ({ kind: "fail", tag: "Odd", retryable: false, value }) as const
      // What is published, and what arrives.
      const due: ReadonlyArray<readonly [EventPublisher.Event, EventPublisher.Event]> = [
        [started("a"), started("a")],
        [large, started("large", { input: marker })],
        [completed("large", { output: { text } }), completed("large", { output: inObject })],
        [
          failed("b", { error: text, failure: failure({ text }) }),
          failed("b", { error: JSON.stringify(marker), failure: failure(inObject) })
        ],
        [failed("c", { failure: failure({ text }) }), failed("c", { failure: failure(inObject) })],
        [domainEvent("d", { payload: { text } }), domainEvent("d", { payload: inObject })],
        [completed("a"), completed("a")]
      ]
      const open = yield* makeWorld(Nats.layerPublisher(options))
      for (const [event] of due) open.publisher.offer(event)
      yield* open.close
      assert.deepStrictEqual(open.counts(), {})
      assert.strictEqual(
        open.logs.filter((line) => line.includes("with markers in place of what it carries")).length,
        5
      )
      const received = yield* receive(yield* subscriber(options), { from: "beginning" }, due.length)
      assert.deepStrictEqual(received.map(({ event }) => event), due.map(([, arrives]) => arrives))

      // A limit of the stream, and an event that has nothing to leave out.
      const { config } = yield* info
      yield* Effect.promise(() => manager.streams.update(prefix, { ...config, max_msg_size: 2000 }))
      const limited = yield* makeWorld(Nats.layerPublisher(options))
      limited.publisher.offer(started("e", { input: "x".repeat(2000) }))
      limited.publisher.offer({ ...started("f"), attributes: { note: "x".repeat(2000) } })
      yield* limited.close
      assert.deepStrictEqual(limited.counts(), { "failures Rejected": 1 })
      assert.deepStrictEqual(yield* ids, [...idsOf(due.map(([event]) => event)), "e:started"])
    }))

  it.effect("events that no stream takes wait, and come in order when there is one again", () =>
    Effect.gen(function*() {
      const { ids, manager, options, prefix } = yield* stage(servers)
      const { close, counts, logs, publisher } = yield* makeWorld(Nats.layerPublisher(options))
      yield* Effect.promise(() => manager.streams.delete(prefix))
      const events = numbered(1, 1500)
      for (const event of events) publisher.offer(event)
      // Two events of one pause.
      yield* Effect.promise(() => new Promise((resolve) => setTimeout(resolve, 120)))
      yield* Effect.promise(() => manager.streams.add({ name: prefix, subjects: [`${prefix}.>`] }))
      yield* close
      assert.deepStrictEqual(yield* ids, idsOf(events))
      assert.deepStrictEqual(counts(), {})
      assert.strictEqual(logs.filter((line) => line.includes("does not take events: no stream takes it")).length, 1)
    }))

  it.effect("one that is given back comes again before newer ones, as its next attempt", () =>
    Effect.gen(function*() {
      const { options } = yield* stage(servers)
      yield* publishAll(yield* publisher(options), numbered(1, 3))
      const subscription = yield* subscribe(yield* subscriber(options), { consumer: "c" })
      const came: Array<string> = []
      for (let index = 0; index < 5; index++) {
        const delivery = yield* subscription.next
        came.push(shown(delivery))
        yield* index < 2 ? delivery.retry() : delivery.ack
      }
      assert.deepStrictEqual(came, [
        "e00001:started/1",
        "e00001:started/2",
        "e00001:started/3",
        "e00002:started/1",
        "e00003:started/1"
      ])
    }))

  it.effect("what a dead subscriber has not acknowledged comes again in time, and before what follows it", () =>
    Effect.gen(function*() {
      const { nc, options, prefix } = yield* stage(servers)
      yield* publishAll(yield* publisher(options), numbered(1, 3))
      const ackTimeout = "300 millis"
      const reading = yield* subscriber(options)
      // Creates the consumer, and takes nothing.
      yield* Effect.scoped(subscribe(reading, { consumer: "c", ackTimeout, from: { position: "0" } }))
      // Another client takes one, and is never heard of again.
      yield* Effect.promise(async () => {
        const inbox = createInbox()
        const messages = nc.subscribe(inbox, { max: 1 })
        nc.publish(`$JS.API.CONSUMER.MSG.NEXT.${prefix}.c`, JSON.stringify({ batch: 1 }), { reply: inbox })
        for await (const _ of messages) { /* It is lost here. */ }
      })
      const received = yield* receive(reading, { consumer: "c", ackTimeout }, 3)
      assert.deepStrictEqual(received.map(({ event }) => event.id), idsOf(numbered(1, 3)))
      assert.isAtLeast(received[0]?.attempt ?? 0, 2)
    }))

  it.effect("what is not acknowledged in time comes again, though its subscriber lives", () =>
    Effect.gen(function*() {
      const { options } = yield* stage(servers)
      yield* publishAll(yield* publisher(options), numbered(1, 2))
      const { next } = yield* subscribe(yield* subscriber(options), { consumer: "c", ackTimeout: "200 millis" })
      const first = yield* next
      const again = yield* next
      assert.deepStrictEqual([shown(first), shown(again)], ["e00001:started/1", "e00001:started/2"])
      // Late, and void: the second delivery is the one that counts.
      yield* first.ack
      yield* again.ack
      assert.strictEqual(shown(yield* next), "e00002:started/1")
    }))

  it.effect("keeps as many in flight as it is allowed to, each subscriber of a group its own", () =>
    Effect.gen(function*() {
      const { options } = yield* stage(servers)
      yield* publishAll(yield* publisher(options), numbered(1, 9))
      const reading = yield* subscriber(options)
      const first = yield* subscribe(reading, { consumer: "c", maxInFlight: 3 })
      const held = [yield* first.next, yield* first.next, yield* first.next]
      assert.deepStrictEqual(held.map(shown), ["e00001:started/1", "e00002:started/1", "e00003:started/1"])
      const second = yield* subscribe(reading, { consumer: "c", maxInFlight: 2 })
      const others = [yield* second.next, yield* second.next]
      assert.deepStrictEqual(others.map(shown), ["e00004:started/1", "e00005:started/1"])
      yield* held[1]?.ack ?? Effect.void
      assert.strictEqual(shown(yield* first.next), "e00006:started/1")
      assert.deepStrictEqual([yield* first.waiting, yield* second.waiting], [0, 0])
    }))

  it.effect("tells how many events a limit of the stream has taken, to a consumer that was not there", () =>
    Effect.gen(function*() {
      const { options } = yield* stage(servers)
      const limited = { ...options, retention: { maxEvents: 10 } }
      const reading = yield* subscriber(limited)
      const to = yield* publisher(limited)
      yield* publishAll(to, numbered(1, 5))
      assert.deepStrictEqual((yield* receive(reading, { consumer: "c" }, 3)).map(shown), [
        "e00001:started/1",
        "e00002:started/1",
        "e00003:started/1"
      ])
      yield* publishAll(to, numbered(6, 30))
      const { next } = yield* subscribe(reading, { consumer: "c", maxInFlight: 2 })
      assert.strictEqual(shown(yield* next), "e00021:started/1 after 17 missing")
      assert.strictEqual(shown(yield* next), "e00022:started/1")
    }))

  it.effect("tells how many events are gone behind the position where a consumer begins, with a name and without", () =>
    Effect.gen(function*() {
      const { options } = yield* stage(servers)
      const limited = { ...options, retention: { maxEvents: 10 } }
      yield* publishAll(yield* publisher(limited), numbered(1, 30))
      const reading = yield* subscriber(limited)
      const from = { position: "5" }
      yield* touch(reading, { consumer: "touched", from })
      for (const consumer of ["c", "touched", undefined]) {
        const received = yield* receive(reading, { consumer, from }, 2)
        assert.deepStrictEqual(received.map(shown), ["e00021:started/1 after 15 missing", "e00022:started/1"])
      }
    }))

  it.effect("waits longer before each attempt, as backoff says, and parks nothing", () =>
    Effect.gen(function*() {
      const { nc, options, prefix } = yield* stage(servers)
      yield* publishAll(yield* publisher(options), numbered(1, 1))
      const pauses: Array<number> = []
      const settling = nc.subscribe(`$JS.ACK.${prefix}.>`, {
        callback: (_, msg) => {
          const [, delay] = /^-NAK \{"delay": (\d+)\}$/.exec(msg.string()) ?? []
          if (delay !== undefined) pauses.push(Number(delay) / 1e6)
        }
      })
      yield* Effect.promise(() => nc.flush())
      const logs: Array<string> = []
      const logger = Logger.make(({ message }) => void logs.push(String(message)))
      const reading = yield* subscriber(options)
      const backoff = { base: "20 millis", factor: 3, max: "90 millis" } as const
      for (const wanted of [{ consumer: "fast", backoff, maxAttempts: 2 }, { consumer: "default" }]) {
        const { next } = yield* Effect.provide(subscribe(reading, wanted), Logger.layer([logger]))
        for (let index = 0; index < 3; index++) yield* (yield* next).retry()
        yield* (yield* next).ack
      }
      assert.deepStrictEqual(logs, ["NATS JetStream parks no events: attempts go on beyond the 2 of maxAttempts"])
      settling.unsubscribe()
      for (const [index, expected] of [20, 60, 90, 100, 200, 400].entries()) {
        const pause = pauses[index] ?? 0
        assert.isTrue(pause >= 0.8 * expected && pause <= 1.2 * expected, `attempt ${index + 1}: ${pause} ms`)
      }
      assert.strictEqual(pauses.length, 6)
    }))

  it.effect("what waited longer than ackTimeout for its turn comes in its newest delivery alone", () =>
    Effect.gen(function*() {
      const { manager, options, prefix } = yield* stage(servers)
      const limited = { ...options, retention: { maxEvents: 20 } }
      yield* publishAll(yield* publisher(limited), numbered(1, 30))
      const stream = yield* (yield* subscriber(limited)).subscribe({
        consumer: "c",
        from: { position: "5" },
        maxInFlight: 20,
        ackTimeout: "500 millis"
      })
      const info = Effect.promise(() => manager.consumers.info(prefix, "c"))
      // Nothing is taken until each was delivered twice and more.
      yield* Effect.repeat(info, { until: ({ delivered }) => delivered.consumer_seq >= 50 })
      const received = yield* stream.pipe(
        Stream.tap((delivery) => delivery.ack),
        Stream.take(20),
        Stream.runCollect
      )
      assert.deepStrictEqual(new Set(received.map(({ event }) => event.id)), new Set(idsOf(numbered(11, 30))))
      assert.isTrue(received.every(({ attempt }) => attempt > 1))
      assert.strictEqual(received.reduce((sum, { missed }) => sum + missed, 0), 5)
    }))

  it.effect("passes over what is no event, and says so", () =>
    Effect.gen(function*() {
      const { nc, options, prefix } = yield* stage(servers)
      const to = yield* publisher(options)
      yield* to.publish(started("a"))
      nc.publish(`${prefix}.model.pull.execution_started`, "{}")
      nc.publish(`${prefix}.model.pull.execution_started`, "{ no JSON")
      yield* Effect.promise(() => nc.flush())
      yield* to.publish(started("b"))
      const logs: Array<string> = []
      const logger = Logger.make(({ message }) => void logs.push(String(message)))
      const received = yield* Effect.provide(
        receive(yield* subscriber(options), { consumer: "c" }, 2),
        Logger.layer([logger])
      )
      assert.deepStrictEqual(received.map(shown), ["a:started/1", "b:started/1"])
      assert.deepStrictEqual(
        logs,
        [2, 3].map((at) =>
          `Message ${at} of the stream ${prefix} is no event that this program can read. It is passed over`
        )
      )
    }))

  it.effect("a consumer that somebody deletes ends its subscriptions; without a name it is made again", () =>
    Effect.gen(function*() {
      const { manager, options, prefix } = yield* stage(servers)
      const to = yield* publisher(options)
      const reading = yield* subscriber(options)
      yield* publishAll(to, numbered(1, 2))
      const named = yield* subscribe(reading, { consumer: "c", maxInFlight: 2 })
      const unnamed = yield* subscribe(reading, { from: "beginning", maxInFlight: 2 })
      yield* (yield* named.next).ack
      // The second one is held, and comes again from the consumer that takes the place of the first.
      yield* (yield* unnamed.next).ack
      assert.strictEqual(shown(yield* unnamed.next), "e00002:started/1")
      yield* Effect.promise(async () => {
        for await (const { name } of manager.consumers.list(prefix)) await manager.consumers.delete(prefix, name)
      })
      yield* publishAll(to, numbered(3, 3))
      yield* named.next
      const error = yield* Effect.flip(named.next)
      assert.deepStrictEqual([error._tag, "retryable" in error && error.retryable], ["SubscribeError", true])
      const again = [yield* unnamed.next, yield* unnamed.next]
      assert.deepStrictEqual(again.map(({ event }) => event.id), ["e00002:started", "e00003:started"])
    }))

  it.effect("what was given back to a consumer without a name comes from the one that takes its place", () =>
    Effect.gen(function*() {
      const { manager, options, prefix } = yield* stage(servers)
      const to = yield* publisher(options)
      yield* publishAll(to, numbered(1, 2))
      const { next } = yield* subscribe(yield* subscriber(options), {
        from: "beginning",
        maxInFlight: 2,
        backoff: { base: "1 hour" }
      })
      yield* (yield* next).retry()
      yield* (yield* next).ack
      yield* Effect.promise(async () => {
        for await (const { name } of manager.consumers.list(prefix)) await manager.consumers.delete(prefix, name)
      })
      yield* to.publish(started("e00003"))
      assert.strictEqual((yield* next).event.id, "e00001:started")
    }))

  it.effect("a start that makes no sense is refused, and a retry does not help", () =>
    Effect.gen(function*() {
      const { options } = yield* stage(servers)
      const reading = yield* subscriber(options)
      for (const from of [{ position: "12-0" }, { time: Number.NaN }]) {
        const error = yield* Effect.flip(Effect.scoped(reading.subscribe({ from })))
        assert.deepStrictEqual([error.transport, error.retryable], ["NATS JetStream", false])
      }
    }))

  it.effect("the last subscriber of a name says what its consumer is like", () =>
    Effect.gen(function*() {
      const { manager, options, prefix } = yield* stage(servers)
      const reading = yield* subscriber(options)
      const config = Effect.map(Effect.promise(() => manager.consumers.info(prefix, "a%2Eb%20c")), ({ config }) => ({
        filter: config.filter_subject,
        wait: config.ack_wait,
        pending: config.max_ack_pending
      }))
      yield* touch(reading, { consumer: "a.b c" })
      assert.deepStrictEqual(yield* config, { filter: `${prefix}.>`, wait: 30_000_000_000, pending: 1 })
      yield* touch(reading, { consumer: "a.b c", ackTimeout: "5 seconds", maxInFlight: 100, units: ["model.pull"] })
      assert.deepStrictEqual(yield* config, { filter: `${prefix}.*.pull.*`, wait: 5_000_000_000, pending: 1600 })
      yield* touch(reading, { consumer: "a.b c", types: ["execution_failed", "model.created"], domains: ["model"] })
      assert.deepStrictEqual(yield* config, { filter: `${prefix}.model.*.*`, wait: 30_000_000_000, pending: 1 })
    }))
})

withProgram("NATS", "NATS JetStream that fails", () => {
  const proxied = (server: OwnServer, filter?: Parameters<typeof tcpProxy>[1]) =>
    Effect.map(tcpProxy(server.port, filter), (proxy) => ({ ...proxy, url: `nats://127.0.0.1:${proxy.port}` }))

  live("a publish whose acknowledgement is lost is sent again, and stored once", () =>
    Effect.gen(function*() {
      const server = yield* ownNats()
      const { ids, options } = yield* stage(server.url)
      const answers: Array<string> = []
      let lost = 0
      const { url } = yield* proxied(
        server,
        natsFilter((_, payload) => {
          if (!payload.includes("\"seq\"") || payload.includes("\"type\"")) return false
          answers.push(payload.includes("\"duplicate\"") ? "duplicate" : "stored")
          // The first of each event.
          return !payload.includes("\"duplicate\"") && lost++ < 5
        })
      )
      const to = yield* publisher({ ...options, servers: url, ackTimeout: "200 millis" })
      const events = numbered(1, 20)
      yield* publishAll(to, events)
      assert.deepStrictEqual(yield* ids, idsOf(events))
      assert.strictEqual(answers.filter((answer) => answer === "stored").length, 20)
      assert.isAtLeast(answers.filter((answer) => answer === "duplicate").length, 5)
    }))

  live("an acknowledgement that is lost refuses no unit, as the settings are by default", () =>
    Effect.gen(function*() {
      const server = yield* ownNats()
      const { ids, options } = yield* stage(server.url)
      let lost = 0
      const { url } = yield* proxied(
        server,
        natsFilter((_, payload) => payload.includes("\"seq\"") && !payload.includes("\"type\"") && lost++ === 0)
      )
      const world = yield* makeWorld(Nats.layerPublisher({ ...options, servers: url, policy: "closed" }))
      assert.strictEqual(yield* world.run(named("model.count", Effect.succeed(1))), 1)
      yield* world.close
      assert.deepStrictEqual((yield* ids).length, 2)
    }))

  live(
    "what is sent again when the server has forgotten its id is there twice, and comes to a distinct subscriber once",
    () =>
      Effect.gen(function*() {
        const server = yield* ownNats()
        const { ids, options } = yield* stage(server.url)
        let lost = 0
        const { url } = yield* proxied(
          server,
          natsFilter((_, payload) => payload.includes("\"seq\"") && !payload.includes("\"type\"") && lost++ === 0)
        )
        const short = { ...options, duplicateWindow: "100 millis" } as const
        const to = yield* publisher({ ...short, servers: url, ackTimeout: "500 millis" })
        yield* to.publish(started("a"))
        yield* to.publish(completed("a"))
        assert.deepStrictEqual(yield* ids, ["a:started", "a:started", "a:completed"])
        const reading = yield* Layer.build(EventSubscriber.distinct(Nats.layerSubscriber(short)))
        const received = yield* receive(Context.get(reading, EventSubscriber.EventSubscriber), { consumer: "c" }, 2)
        assert.deepStrictEqual(received.map(shown), ["a:started/1", "a:completed/1"])
      })
  )

  live("an acknowledgement that the server does not confirm is sent again", () =>
    Effect.gen(function*() {
      const server = yield* ownNats()
      const { manager, options, prefix } = yield* stage(server.url)
      yield* publishAll(yield* publisher(options), numbered(1, 2))
      const lost: Array<string> = []
      const { connections, url } = yield* proxied(
        server,
        natsFilter((subject) => /\.c\.\d+$/.test(subject) && lost.push(subject) < 3)
      )
      const { next } = yield* subscribe(yield* subscriber({ ...options, servers: url }), { consumer: "c" })
      yield* (yield* next).ack
      yield* Effect.repeat(Effect.sleep("10 millis"), { while: () => lost.length < 3 })
      // The same one, on the same connection.
      assert.deepStrictEqual([new Set(lost).size, connections()], [1, 1])
      yield* (yield* next).ack
      const settled = Effect.promise(() => manager.consumers.info(prefix, "c"))
      yield* Effect.repeat(settled, { until: ({ ack_floor }) => ack_floor.stream_seq === 2 })
    }))

  live("connections that break under load cost nothing and change no order", () =>
    Effect.gen(function*() {
      const server = yield* ownNats()
      const { ids, options } = yield* stage(server.url)
      const proxy = yield* proxied(server)
      const world = yield* makeWorld(Nats.layerPublisher({ ...options, servers: proxy.url, capacity: 100_000 }))
      const events = numbered(1, stress > 0 ? 50_000 : 5000)
      const due = new Set(idsOf(events))
      const reading = yield* subscriber({ ...options, servers: proxy.url })
      const stream = yield* reading.subscribe({ consumer: "c", maxInFlight: 64, ackTimeout: "1 second" })
      const reader = yield* Stream.runForEachWhile(stream, ({ ack, event }) => {
        due.delete(event.id)
        return Effect.as(ack, due.size > 0)
      }).pipe(Effect.forkScoped)
      for (const [index, event] of events.entries()) {
        world.publisher.offer(event)
        if (index % 1000 === 499) {
          yield* Effect.sleep("20 millis")
          const before = proxy.connections()
          yield* proxy.cut
          // Both ends are back.
          yield* Effect.repeat(Effect.sleep("10 millis"), { while: () => proxy.connections() < before + 2 })
        }
      }
      yield* Fiber.join(reader)
      yield* world.close
      assert.deepStrictEqual(yield* ids, idsOf(events))
      assert.deepStrictEqual(world.counts(), {})
    }), 60_000)

  live(
    "what was acknowledged is there after the server was killed, and what was not comes then",
    () =>
      Effect.gen(function*() {
        const server = yield* ownNats()
        const { ids, options } = yield* stage(server.url)
        const to = yield* publisher({ ...options, timeout: "30 seconds" })
        const events = numbered(1, stress > 0 ? 20_000 : 2000)
        const acknowledged: Array<string> = []
        const publishing = yield* Effect.forEach(
          events,
          (event) => Effect.tap(to.publish(event), () => Effect.sync(() => acknowledged.push(event.id))),
          { concurrency: 500, discard: true }
        ).pipe(Effect.forkScoped)
        for (const share of [3, 2]) {
          yield* Effect.sleep("5 millis").pipe(
            Effect.repeat({ while: () => acknowledged.length < events.length / share })
          )
          const before = [...acknowledged]
          yield* server.kill
          yield* server.start
          const stored = new Set(yield* ids)
          assert.deepStrictEqual(before.filter((id) => !stored.has(id)), [])
        }
        yield* Fiber.join(publishing)
        assert.deepStrictEqual(yield* ids, idsOf(events))
      }),
    60_000
  )

  live(
    "under the closed policy no unit begins while the server is away, and nothing is told of it later",
    () =>
      Effect.gen(function*() {
        const server = yield* ownNats()
        const { ids, options } = yield* stage(server.url)
        const world = yield* makeWorld(
          Nats.layerPublisher({ ...options, policy: "closed", timeout: "300 millis", terminalTimeout: "300 millis" })
        )
        let ran = 0
        const unit = named("model.count", Effect.sync(() => ++ran))
        assert.strictEqual(yield* world.run(unit), 1)
        yield* server.kill
        const refused = yield* world.run(EventPublisher.failOnRefusal(unit)).pipe(Effect.flip)
        assert.strictEqual(refused.reason._tag, "TimedOut")
        assert.strictEqual(ran, 1)
        yield* server.start
        yield* Effect.repeat(Effect.exit(world.run(unit)), { until: Exit.isSuccess })
        yield* world.close
        const stored = yield* ids
        assert.deepStrictEqual(
          stored.map((id) => id.slice(id.indexOf(":"))),
          [":started", ":completed", ":started", ":completed"]
        )
      })
  )

  live(
    "while the server hangs units run on, the buffer is bounded, and closing keeps its time",
    () =>
      Effect.gen(function*() {
        const server = yield* ownNats()
        const { options } = yield* stage(server.url)
        const world = yield* makeWorld(
          Nats.layerPublisher({ ...options, capacity: 100, maxUnacknowledged: 50, flushTimeout: "300 millis" })
        )
        yield* server.pause
        for (const event of numbered(1, 500)) {
          world.publisher.offer(event)
          yield* Effect.yieldNow
        }
        yield* world.close
        const { "drops nats": dropped = 0, "failures BufferFull": full = 0, ...others } = world.counts()
        assert.deepStrictEqual([full + dropped, others], [500, {}])
        // Those in the buffer, and those under way.
        assert.isAtLeast(dropped, 101)
        assert.isAtMost(dropped, 150)
        yield* server.resume
      })
  )

  live("takes a user and a password, or a token, out of the addresses", () =>
    Effect.gen(function*() {
      const pass = "1@se/cret%"
      const server = yield* ownNats(`authorization { user: "un its", password: "${pass}" }`)
      const { ids, options } = yield* stage(server.url, { user: "un its", pass })
      const at = (credentials: string, address = server.url) => address.replace("//", `//${credentials}@`)
      const right = at(`un%20its:${encodeURIComponent(pass)}`)
      // The client picks any of them.
      yield* (yield* publisher({ ...options, servers: [server.url, right] })).publish(started("a"))
      yield* (yield* publisher({ ...options, servers: at("other:wrong"), connection: { user: "un its", pass } }))
        .publish(started("b"))
      assert.deepStrictEqual(yield* ids, ["a:started", "b:started"])
      const refused = yield* Effect.flip(Effect.scoped(Layer.build(Nats.layer({ servers: at("un%20its:wrong") }))))
      assert.deepStrictEqual([refused.reason._tag, refused.message.includes("wrong")], ["Unreachable", false])

      const other = yield* ownNats("authorization { token: \"1@token\" }")
      yield* Layer.build(Nats.layer({ servers: at("1%40token", other.url) }))
    }))

  live("an event on a subject that this user may not publish to is refused for good", () =>
    Effect.gen(function*() {
      const server = yield* ownNats(`authorization { users = [
        { user: admin, password: secret },
        { user: units, password: secret, permissions: { publish: { deny: ["*.engine.>"] } } }
      ] }`)
      const { ids, options } = yield* stage(server.url, { user: "admin", pass: "secret" })
      const to = yield* publisher({ ...options, connection: { user: "units", pass: "secret" } })
      const error = yield* Effect.flip(to.publish(started("a", { unit: "engine.start" })))
      assert.strictEqual(error.reason._tag, "Rejected")
      yield* to.publish(started("b"))
      assert.deepStrictEqual(yield* ids, ["b:started"])
      const refused = yield* Effect.flip(
        Effect.scoped(Layer.build(Nats.layer({ servers: server.url, connection: { user: "units", pass: "wrong" } })))
      )
      assert.deepStrictEqual([refused.reason._tag, refused.retryable], ["Unreachable", true])
    }))

  it.live("events wait while an account is full, and are lost to a stream that is sealed alone", () =>
    Effect.gen(function*() {
      const server = yield* ownNats(`
        accounts { A { jetstream { max_file: 100KB }, users [ { user: units, password: secret } ] } }
      `)
      const { ids, info, manager, nc, options, prefix } = yield* stage(server.url, { user: "units", pass: "secret" })
      const settings = { ...options, connection: { user: "units", pass: "secret" } }
      const world = yield* makeWorld(Nats.layerPublisher(settings))
      // Half as much again as there is room for.
      const events = range(1, 15).map((n) => started(`e${n}`, { input: "x".repeat(10_000) }))
      for (const event of events) world.publisher.offer(event)
      yield* Effect.repeat(Effect.sleep("10 millis"), {
        while: () => !world.logs.some((line) => line.includes("resource limits exceeded for account. They wait"))
      })
      // What has no room gets its sequence all the same, and is taken out again.
      const there = Effect.map(ids, (ids) => ids.filter((id) => id !== ""))
      const kept = yield* there
      assert.deepStrictEqual(kept, idsOf(events.slice(0, kept.length)))
      yield* Effect.promise(() => manager.streams.purge(prefix))
      yield* world.close
      assert.deepStrictEqual(yield* there, idsOf(events.slice(kept.length)))
      assert.deepStrictEqual(world.counts(), {})

      const { config } = yield* info
      yield* Effect.promise(() =>
        nc.request(`$JS.API.STREAM.UPDATE.${prefix}`, JSON.stringify({ ...config, sealed: true }))
      )
      const refused = yield* Effect.flatMap(publisher(settings), (to) => Effect.flip(to.publish(started("late")))).pipe(
        Effect.provideService(References.MinimumLogLevel, "Error")
      )
      assert.deepStrictEqual([refused.reason._tag, refused.retryable], ["Rejected", false])
      assert.include(refused.message, "sealed")
    }))

  live("what the server cannot tell of a stream for now can be asked again", () =>
    Effect.gen(function*() {
      // Without JetStream, in whose place a client answers.
      const server = yield* ownNats("", [])
      const nc = yield* Effect.acquireRelease(
        Effect.promise(() => connect({ servers: server.url })),
        (nc) => Effect.promise(() => nc.close())
      )
      let answer: (msg: Msg) => void = () => {}
      nc.subscribe("$JS.API.>", { callback: (_, msg) => answer(msg) })
      yield* Effect.promise(() => nc.flush())
      const build = Effect.scoped(Layer.build(Nats.layerPublisher({ servers: server.url }))).pipe(
        Effect.flip,
        Effect.map(({ message, reason, retryable }) => [reason._tag, retryable, message.includes("JetStream system")])
      )
      const refuse = (code: number, err_code: number, description: string) => (msg: Msg) =>
        void msg.respond(JSON.stringify({ error: { code, err_code, description } }))
      const silent = yield* build
      answer = refuse(503, 10_008, "JetStream system temporarily unavailable")
      const busy = yield* build
      answer = refuse(503, 10_076, "JetStream not enabled")
      const off = yield* build
      assert.deepStrictEqual([silent, busy, off], [
        ["StreamUnavailable", true, false],
        ["StreamUnavailable", true, true],
        ["StreamRefused", false, false]
      ])
    }))

  live("says that JetStream is off", () =>
    Effect.gen(function*() {
      const server = yield* ownNats("", [])
      const error = yield* Effect.flip(Effect.scoped(Layer.build(Nats.layer({ servers: server.url }))))
      assert.deepStrictEqual([error.reason._tag, error.retryable], ["StreamRefused", false])
      assert.include(error.message, "nats-server -js")
    }))
})
