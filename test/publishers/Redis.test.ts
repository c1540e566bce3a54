import { assert, it } from "@effect/vitest"
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
  type Scope,
  Stream
} from "effect"
import { inspect } from "node:util"
import { createClient } from "redis"
import { EventPublisher, EventSubscriber } from "../../src/index.ts"
import * as Redis from "../../src/publishers/Redis.ts"
import { completed, domainEvent, started } from "../fixtures/events.ts"
import { newName } from "../fixtures/names.ts"
import { freePort, ownRedis, type OwnServer } from "../fixtures/ownServer.ts"
import { receive, shown, subscribe, touch } from "../fixtures/receiving.ts"
import { type TcpProxy, tcpProxy } from "../fixtures/tcpProxy.ts"
import { makeWorld, named, range } from "../publisherWorld.ts"
import { stress, withProgram, withServer } from "../servers.ts"

/** In real time, and without the warnings that servers which fail give rise to. */
const live = <A, E>(name: string, test: () => Effect.Effect<A, E, Scope.Scope>, timeout?: number) =>
  it.live(name, () => Effect.provideService(test(), References.MinimumLogLevel, "Error"), timeout)

/** A client of a test's own, as far as a test needs it. */
const clientOf = (url: string) =>
  Effect.acquireRelease(
    Effect.promise(() => createClient({ url, RESP: 2 }).on("error", () => {}).connect()),
    (client) => Effect.sync(() => client.destroy())
  )

/** A stream of its own on a server, what a test needs to look at it, and its end. */
const stage = Effect.fnUntraced(function*(url: string) {
  const key = newName("redis_test")
  const client = yield* clientOf(url)
  yield* Effect.addFinalizer(() => Effect.promise(() => client.del(key).catch(() => {})))
  const send = (...command: ReadonlyArray<string>) => Effect.promise(() => client.sendCommand([...command]))
  const entries = Effect.promise(async () => await client.xRange(key, "-", "+") ?? [])
  /** The ids of the events, in the order of the stream. */
  const ids = Effect.map(entries, (all) => all.map(({ message }) => message["id"] ?? ""))
  return { options: { url, key }, key, client, send, entries, ids }
})

/** What a group has not acknowledged: for how many milliseconds, and how often it was delivered. */
const pendingOf = (key: string, send: (...command: ReadonlyArray<string>) => Effect.Effect<unknown>) =>
  Effect.map(send("XPENDING", key, "c", "-", "+", "100"), (pending) =>
    // What the command answers.
    (pending as ReadonlyArray<readonly [id: string, member: string, age: number, deliveries: number]>).map(
      ([, , age, deliveries]) => ({ age, deliveries })
    ))

const publisher = (options: Redis.PublisherOptions) =>
  Effect.map(
    Layer.build(Redis.layerPublisher({ policy: "closed", ...options })),
    Context.get(EventPublisher.EventPublisher)
  )

const subscriber = (options: Redis.SubscriberOptions) =>
  Effect.map(Layer.build(Redis.layerSubscriber(options)), Context.get(EventSubscriber.EventSubscriber))

const numbered = (from: number, to: number) =>
  range(from, to).map((n) => started(`e${String(n).padStart(5, "0")}`, { sequence: n }))

/** Publishes under the closed policy, and succeeds when all are acknowledged. */
const publishAll = (to: EventPublisher.Publisher, events: ReadonlyArray<EventPublisher.Event>) =>
  Effect.forEach(events, (event) => to.publish(event), { concurrency: "unbounded", discard: true })

const idsOf = (events: ReadonlyArray<EventPublisher.Event>): ReadonlyArray<string> => events.map(({ id }) => id)

await withServer("Redis", "Redis Streams", (url) => {
  it.effect("an event is an entry with its id and its JSON, and comes back as it was", () =>
    Effect.gen(function*() {
      const { entries, options } = yield* stage(url)
      const events = [
        started("a", { input: { text: "NUL \u0000, lone \ud800, 🤖" } }),
        domainEvent("d1", { correlation: "a" }),
        completed("a")
      ]
      yield* publishAll(yield* publisher(options), events)
      assert.deepStrictEqual(
        (yield* entries).map(({ message }) => ({ ...message, event: JSON.parse(message["event"] ?? "") as unknown })),
        events.map((event) => ({ id: event.id, event }))
      )
      for (const reading of [{ from: "beginning" }, { consumer: "c" }] as const) {
        const received = yield* receive(yield* subscriber(options), reading, 3)
        assert.deepStrictEqual(received.map(({ event }) => event), events)
        assert.deepStrictEqual(received.map(({ position }) => position), (yield* entries).map(({ id }) => id))
      }
    }))

  it.effect("says where no server is, without the credentials, and what a key holds that is no stream", () =>
    Effect.gen(function*() {
      const { key, options, send } = yield* stage(url)
      const port = yield* freePort
      const error = yield* Effect.flip(
        Effect.scoped(Layer.build(Redis.layer({ url: `redis://user:secret@127.0.0.1:${port}` })))
      )
      assert.deepStrictEqual([error.reason._tag, error.retryable], ["Unreachable", true])
      assert.include(error.message, `redis://127.0.0.1:${port}`)
      assert.notInclude(inspect(error, { depth: Infinity }), "secret")
      const tls = { connection: { socket: { tls: true } } } as const
      for (
        const options of [
          { url: "redis://:se/secret@127.0.0.1" },
          { url: "redis://127.0.0.1:12/secret@127.0.0.1" },
          { url: `redis://:se@secret@127.0.0.1:${port}` },
          { url: `redis://:secret@127.0.0.1:${port}`, ...tls }
        ]
      ) {
        const error = yield* Effect.flip(Effect.scoped(Layer.build(Redis.layer(options))))
        assert.notInclude(inspect(error, { depth: Infinity }), "secret")
      }
      yield* send("SET", key, "text")
      assert.deepStrictEqual(
        yield* Effect.flip(Effect.scoped(Layer.build(Redis.layer(options)))),
        new Redis.RedisError({ reason: new Redis.NoStream({ key, found: "string" }) })
      )
    }))

  it.effect("reads its options from Config", () =>
    Effect.gen(function*() {
      const { ids, options } = yield* stage(url)
      const layer = Redis.layerConfig({ url: Config.String("REDIS_URL"), key: Config.String("KEY") }).pipe(
        Layer.provide(ConfigProvider.layer(ConfigProvider.fromUnknown({ REDIS_URL: options.url, KEY: options.key })))
      )
      const world = yield* makeWorld(layer)
      world.publisher.offer(started("a"))
      yield* world.close
      assert.deepStrictEqual(yield* ids, ["a:started"])
    }))

  it.effect("what the server refuses for good is told, counted, and does not hold up the others", () =>
    Effect.gen(function*() {
      const { ids, key, options, send } = yield* stage(url)
      const closed = yield* publisher(options)
      const open = yield* makeWorld(Redis.layerPublisher(options))
      yield* send("SET", key, "text")
      const refused = yield* Effect.flip(closed.publish(started("a")))
      assert.deepStrictEqual([refused.reason._tag, refused.retryable], ["Rejected", false])
      open.publisher.offer(started("b"))
      open.publisher.offer(completed("b"))
      yield* Effect.repeat(Effect.yieldNow, { while: () => open.counts()["failures Rejected"] !== 2 })
      yield* send("DEL", key)
      yield* closed.publish(started("c"))
      yield* open.close
      assert.strictEqual(open.logs.filter((line) => line.includes("The event is lost")).length, 1)
      assert.deepStrictEqual(yield* ids, ["c:started"])
    }))

  it.effect("the stream is bounded, and its readers are told how many events they missed, once", () =>
    Effect.gen(function*() {
      const { client, ids, key, options } = yield* stage(url)
      const limited = { ...options, maxLength: 100 }
      const to = yield* publisher(limited)
      const reading = yield* subscriber(limited)
      yield* publishAll(to, numbered(1, 3))
      // A group that has read one, one that has read none, and a reader without a name.
      assert.deepStrictEqual((yield* receive(reading, { consumer: "c" }, 1)).map(shown), ["e00001:started/1"])
      yield* touch(reading, { consumer: "none" })
      const unnamed = yield* subscribe(reading, { from: "beginning" })
      const first = yield* unnamed.next
      assert.strictEqual(shown(first), "e00001:started/1")
      yield* publishAll(to, numbered(4, 2000))
      const length = yield* Effect.promise(() => client.xLen(key))
      assert.isBelow(length, 300)
      const [oldest, next] = yield* ids
      const gone = 2000 - length
      for (
        const [consumer, missed] of [["c", gone - 1], ["none", gone]] as const
      ) {
        assert.deepStrictEqual((yield* receive(reading, { consumer }, 2)).map(shown), [
          `${oldest}/1 after ${missed} missing`,
          `${next}/1`
        ])
      }
      // It has read the first three already.
      yield* first.ack
      yield* (yield* unnamed.next).ack
      yield* (yield* unnamed.next).ack
      const after = yield* unnamed.next
      assert.strictEqual(shown(after), `${oldest}/1 after ${gone - 3} missing`)
      yield* after.ack
      assert.strictEqual(shown(yield* unnamed.next), `${next}/1`)
    }))

  /** A stream of which a test says what the ids of its entries are, in seconds. */
  const secondly = Effect.fnUntraced(function*() {
    const { key, options, send } = yield* stage(url)
    const store = Effect.fnUntraced(function*(from: number, to: number) {
      for (const [index, event] of numbered(from, to).entries()) {
        yield* send("XADD", key, `${from + index}000-0`, "id", event.id, "event", JSON.stringify(event))
      }
    })
    return {
      reading: yield* subscriber(options),
      store,
      keep: (count: number) => send("XTRIM", key, "MAXLEN", String(count))
    }
  })

  it.effect("who goes on at a position that was trimmed is told that events are missing", () =>
    Effect.gen(function*() {
      const { keep, reading, store } = yield* secondly()
      yield* store(1, 5)
      yield* keep(2)
      for (const isNamed of [true, false]) {
        const first = (from: EventSubscriber.From) =>
          Effect.map(
            receive(reading, { consumer: isNamed ? JSON.stringify(from) : undefined, from }, 1),
            (received) => received.map(shown).join()
          )
        assert.deepStrictEqual(yield* first({ position: "2000-0" }), "e00004:started/1 after 1 missing")
        assert.deepStrictEqual(yield* first({ position: "4000-0" }), "e00005:started/1")
        assert.deepStrictEqual(yield* first({ position: "0-0" }), "e00004:started/1")
        assert.deepStrictEqual(yield* first({ time: 2000 }), "e00004:started/1")
        assert.deepStrictEqual(yield* first({ time: 4500 }), "e00005:started/1")
      }
    }))

  it.effect("how many are missing after that is counted", () =>
    Effect.gen(function*() {
      for (const consumer of ["c", undefined]) {
        const { keep, reading, store } = yield* secondly()
        yield* store(1, 5)
        yield* keep(2)
        const { next } = yield* subscribe(reading, { consumer, from: { position: "2000-0" } })
        yield* (yield* next).ack
        const held = yield* next
        yield* store(6, 9)
        yield* keep(1)
        yield* held.ack
        assert.strictEqual(shown(yield* next), "e00009:started/1 after 3 missing")
      }
    }))

  it.effect("what is trimmed before a reader that began in the middle has come to the end is a gap, too", () =>
    Effect.gen(function*() {
      for (const consumer of ["c", undefined]) {
        const { keep, reading, store } = yield* secondly()
        yield* store(1, 100)
        const { next } = yield* subscribe(reading, { consumer, from: { position: "1000-0" } })
        let delivery = yield* next
        yield* keep(1)
        // What it has read ahead comes first.
        while (delivery.position !== "100000-0") {
          assert.strictEqual(delivery.missed, 0)
          yield* delivery.ack
          delivery = yield* next
        }
        assert.strictEqual(shown(delivery), "e00100:started/1 after 1 missing")
      }
    }))

  it.effect("what is trimmed between its delivery and its acknowledgement is a gap, too", () =>
    Effect.gen(function*() {
      const { key, options, send } = yield* stage(url)
      yield* publishAll(yield* publisher(options), numbered(1, 5))
      yield* send("XGROUP", "CREATE", key, "c", "0", "ENTRIESREAD", "0")
      yield* send("XREADGROUP", "GROUP", "c", "dead", "COUNT", "3", "STREAMS", key, ">")
      yield* send("XTRIM", key, "MAXLEN", "1")
      const received = yield* receive(
        yield* subscriber(options),
        { consumer: "c", ackTimeout: "1 millis", maxInFlight: 8 },
        1
      )
      assert.deepStrictEqual(received.map(shown), ["e00005:started/1 after 4 missing"])
    }))

  it.effect("what a dead subscriber has not acknowledged comes again in time, and before what follows it", () =>
    Effect.gen(function*() {
      const { key, options, send } = yield* stage(url)
      yield* publishAll(yield* publisher(options), numbered(1, 4))
      yield* send("XGROUP", "CREATE", key, "c", "0")
      yield* send("XREADGROUP", "GROUP", "c", "dead", "COUNT", "2", "STREAMS", key, ">")
      const received = yield* receive(yield* subscriber(options), { consumer: "c", ackTimeout: "300 millis" }, 4)
      assert.deepStrictEqual(received.map(shown), [
        "e00001:started/2",
        "e00002:started/2",
        "e00003:started/1",
        "e00004:started/1"
      ])
    }))

  it.effect("what a subscriber gives back at its end goes to the next one at once", () =>
    Effect.gen(function*() {
      const { key, options, send } = yield* stage(url)
      yield* publishAll(yield* publisher(options), numbered(1, 5))
      const reading = yield* subscriber(options)
      yield* Effect.scoped(Effect.gen(function*() {
        const { next } = yield* subscribe(reading, { consumer: "c", maxInFlight: 3 })
        yield* (yield* next).ack
        yield* next
        yield* next
      }))
      const received = yield* receive(reading, { consumer: "c", maxInFlight: 3 }, 4)
      assert.deepStrictEqual(received.map(shown).slice(0, 2), ["e00002:started/2", "e00003:started/2"])
      assert.deepStrictEqual(received.map(({ event }) => event.id), idsOf(numbered(2, 5)))
      // Nothing is left of either but what keeps the things that were given back.
      const members = yield* send("XINFO", "CONSUMERS", key, "c")
      assert.deepStrictEqual((members as unknown as ReadonlyArray<ReadonlyArray<string>>).map((one) => one[1]), [
        "released"
      ])
    }))

  it.effect("what is not acknowledged in time comes again, though its subscriber lives", () =>
    Effect.gen(function*() {
      const { options } = yield* stage(url)
      yield* publishAll(yield* publisher(options), numbered(1, 2))
      const { next } = yield* subscribe(yield* subscriber(options), { consumer: "c", ackTimeout: "200 millis" })
      const first = yield* next
      const again = yield* next
      assert.deepStrictEqual([shown(first), shown(again)], ["e00001:started/1", "e00001:started/2"])
      yield* first.ack
      yield* again.ack
      assert.strictEqual(shown(yield* next), "e00002:started/1")
    }))

  it.effect("one that is given back comes again before newer ones, as its next attempt, also after its subscriber's end", () =>
    Effect.gen(function*() {
      const { options } = yield* stage(url)
      yield* publishAll(yield* publisher(options), numbered(1, 3))
      const reading = yield* subscriber(options)
      const came: Array<string> = []
      yield* Effect.scoped(Effect.gen(function*() {
        const { next } = yield* subscribe(reading, { consumer: "c" })
        for (let index = 0; index < 2; index++) {
          const delivery = yield* next
          came.push(shown(delivery))
          yield* delivery.retry()
        }
        came.push(shown(yield* next))
      }))
      came.push(...(yield* receive(reading, { consumer: "c" }, 3)).map(shown))
      assert.deepStrictEqual(came, [
        "e00001:started/1",
        "e00001:started/2",
        "e00001:started/3",
        "e00001:started/4",
        "e00002:started/1",
        "e00003:started/1"
      ])
    }))

  it.effect("waits longer before each attempt, as backoff says and also beyond ackTimeout, and parks nothing", () =>
    Effect.gen(function*() {
      const { options } = yield* stage(url)
      yield* publishAll(yield* publisher(options), numbered(1, 1))
      const logs: Array<string> = []
      const logger = Logger.make(({ message }) => void logs.push(String(message)))
      const reading = yield* subscriber(options)
      const backoff = { base: "20 millis", factor: 30, max: "600 millis" } as const
      const pauses: Array<number> = []
      for (
        const wanted of [
          { consumer: "given", backoff, maxAttempts: 2, ackTimeout: "200 millis" },
          { consumer: "default", maxAttempts: Infinity }
        ] as const
      ) {
        const { next } = yield* Effect.provide(subscribe(reading, wanted), Logger.layer([logger]))
        let delivery = yield* next
        for (let attempt = 1; attempt <= 3; attempt++) {
          const at = performance.now()
          yield* delivery.retry()
          delivery = yield* next
          pauses.push(performance.now() - at)
          assert.strictEqual(delivery.attempt, attempt + 1)
        }
      }
      assert.deepStrictEqual(logs, ["Redis Streams parks no events: attempts go on beyond the 2 of maxAttempts"])
      for (const [index, expected] of [20, 600, 600, 100, 200, 400].entries()) {
        const pause = pauses[index] ?? 0
        // A timer may come a moment early.
        assert.isAtLeast(pause, 0.8 * expected - 5, `attempt ${index + 1}`)
      }
    }))

  it.effect("what waited longer than ackTimeout to be taken comes in its newest delivery alone", () =>
    Effect.gen(function*() {
      const { key, options, send } = yield* stage(url)
      yield* publishAll(yield* publisher(options), numbered(1, 30))
      yield* send("XGROUP", "CREATE", key, "c", "0", "ENTRIESREAD", "0")
      yield* send("XTRIM", key, "MAXLEN", "20")
      const stream = yield* (yield* subscriber(options)).subscribe({
        consumer: "c",
        maxInFlight: 20,
        ackTimeout: "500 millis"
      })
      // Nothing is taken until each was delivered twice and more.
      const deliveries = Effect.map(pendingOf(key, send), (pending) => pending.map(({ deliveries }) => deliveries))
      yield* Effect.repeat(deliveries, { until: (times) => times.length === 20 && times.every((time) => time > 1) })
      const received = yield* stream.pipe(
        Stream.tap((delivery) => delivery.ack),
        Stream.take(20),
        Stream.runCollect
      )
      assert.deepStrictEqual(new Set(received.map(({ event }) => event.id)), new Set(idsOf(numbered(11, 30))))
      assert.isTrue(received.every(({ attempt }) => attempt > 1))
      assert.strictEqual(received.reduce((sum, { missed }) => sum + missed, 0), 10)
    }))

  it.effect("what is acknowledged late, and came again, is not handled again", () =>
    Effect.gen(function*() {
      const { key, options, send } = yield* stage(url)
      yield* publishAll(yield* publisher(options), numbered(1, 2))
      const stream = yield* (yield* subscriber(options)).subscribe({ consumer: "c", ackTimeout: "1 second" })
      const pull = yield* Stream.toPull(stream)
      const [late] = yield* pull
      // The server has given it to us again, and we have heard of it.
      yield* Effect.repeat(pendingOf(key, send), {
        until: ([first]) => first !== undefined && first.deliveries === 2 && first.age > 100
      })
      yield* late.ack
      assert.deepStrictEqual((yield* pull).map(shown), ["e00002:started/1"])
    }))

  it.effect("of one at a time the others stand by; of several each has its own", () =>
    Effect.gen(function*() {
      const { options } = yield* stage(url)
      yield* publishAll(yield* publisher(options), numbered(1, 9))
      const reading = yield* subscriber(options)
      const one = yield* subscribe(reading, { consumer: "one" })
      const standBy = yield* subscribe(reading, { consumer: "one" })
      const held = yield* Effect.raceFirst(one.next, standBy.next)
      assert.strictEqual(shown(held), "e00001:started/1")
      const first = yield* subscribe(reading, { consumer: "many", maxInFlight: 3 })
      const theirs = [yield* first.next, yield* first.next, yield* first.next]
      const second = yield* subscribe(reading, { consumer: "many", maxInFlight: 2 })
      const others = [yield* second.next, yield* second.next]
      assert.deepStrictEqual([...theirs, ...others].map(({ event }) => event.id), idsOf(numbered(1, 5)))
      yield* theirs[1]?.ack ?? Effect.void
      assert.strictEqual(shown(yield* first.next), "e00006:started/1")
      assert.deepStrictEqual(
        [yield* first.waiting, yield* second.waiting, yield* one.waiting, yield* standBy.waiting],
        [0, 0, 0, 0]
      )
      yield* held.ack
      assert.strictEqual(shown(yield* Effect.raceFirst(one.next, standBy.next)), "e00002:started/1")
    }))

  it.effect("passes over what is no event, and says so", () =>
    Effect.gen(function*() {
      const { entries, key, options, send } = yield* stage(url)
      const to = yield* publisher(options)
      yield* to.publish(started("a"))
      yield* send("XADD", key, "*", "event", "{}")
      yield* send("XADD", key, "*", "something", "else")
      yield* to.publish(started("b"))
      const foreign = (yield* entries).slice(1, 3).map(({ id }) =>
        `Entry ${id} of the stream ${key} is no event that this program can read. It is passed over`
      )
      for (const reading of [{ consumer: "c" }, { from: "beginning" }] as const) {
        const logs: Array<string> = []
        const logger = Logger.make(({ message }) => void logs.push(String(message)))
        const received = yield* Effect.provide(
          receive(yield* subscriber(options), reading, 2),
          Logger.layer([logger])
        )
        assert.deepStrictEqual(received.map(shown), ["a:started/1", "b:started/1"])
        assert.deepStrictEqual(logs, foreign)
      }
    }))

  it.effect("a group that is gone ends its subscriptions, and another subscription makes it anew", () =>
    Effect.gen(function*() {
      const { key, options, send } = yield* stage(url)
      const to = yield* publisher(options)
      yield* to.publish(started("a"))
      const reading = yield* subscriber(options)
      const { next } = yield* subscribe(reading, { consumer: "c" })
      const first = yield* next
      yield* send("DEL", key)
      yield* first.ack
      const error = yield* Effect.flip(next)
      assert.deepStrictEqual([error._tag, "retryable" in error && error.retryable], ["SubscribeError", true])
      yield* to.publish(started("b"))
      assert.deepStrictEqual((yield* receive(reading, { consumer: "c" }, 1)).map(shown), ["b:started/1"])
    }))

  it.effect("a start that makes no sense is refused, and a retry does not help", () =>
    Effect.gen(function*() {
      const { options } = yield* stage(url)
      const reading = yield* subscriber(options)
      for (const from of [{ position: "twelve" }, { time: Number.NaN }]) {
        const error = yield* Effect.flip(Effect.scoped(reading.subscribe({ from })))
        assert.deepStrictEqual([error.transport, error.retryable], ["Redis Streams", false])
      }
    }))
})

withProgram("Redis", "Redis Streams that fail", () => {
  const proxied = (server: OwnServer, filter?: Parameters<typeof tcpProxy>[1]) =>
    Effect.map(tcpProxy(server.port, filter), (proxy) => ({ ...proxy, url: `redis://127.0.0.1:${proxy.port}` }))

  live(
    "a batch whose answer is lost is stored again: each event at least once, in order after its first time",
    () =>
      Effect.gen(function*() {
        const server = yield* ownRedis()
        const { ids, options } = yield* stage(server.url)
        let isDeaf = false
        const proxy = yield* proxied(server, () => (bytes) => isDeaf ? Buffer.alloc(0) : bytes)
        const to = yield* publisher({ ...options, url: proxy.url, batch: 50, ackTimeout: "5 seconds" })
        yield* to.publish(started("first"))
        isDeaf = true
        const events = numbered(1, 120)
        const publishing = yield* Effect.forkScoped(publishAll(to, events))
        // The server has the batch, and we do not hear of it.
        yield* Effect.repeat(Effect.andThen(Effect.sleep("5 millis"), ids), { until: ({ length }) => length > 1 })
        isDeaf = false
        yield* proxy.cut
        yield* Fiber.join(publishing)
        const stored = yield* ids
        assert.strictEqual(stored.length, 1 + 120 + 50)
        assert.deepStrictEqual([...new Set(stored)], ["first:started", ...idsOf(events)])
      })
  )

  live("a group's gap is told, whichever answer of the server is lost", () =>
    Effect.gen(function*() {
      const server = yield* ownRedis()
      for (const lost of range(1, 4)) {
        const { ids, key, options, send } = yield* stage(server.url)
        yield* publishAll(yield* publisher(options), numbered(1, 5))
        yield* send("XGROUP", "CREATE", key, "c", "0", "ENTRIESREAD", "0")
        yield* send("XTRIM", key, "MAXLEN", "2")
        let answers = -Infinity
        const proxy: TcpProxy & { readonly url: string } = yield* proxied(server, () => (bytes) => {
          if (++answers !== lost) return bytes
          queueMicrotask(() => Effect.runSync(proxy.cut))
          return Buffer.alloc(0)
        })
        const { next } = yield* subscribe(yield* subscriber({ ...options, url: proxy.url }), { consumer: "c" })
        answers = 0
        const told: Array<number> = []
        for (const id of yield* ids) {
          const delivery = yield* next
          assert.strictEqual(delivery.event.id, id)
          told.push(delivery.missed)
          yield* delivery.ack
        }
        assert.deepStrictEqual([lost, ...told], [lost, 3, 0])
        assert.isAtLeast(answers, lost)
      }
    }))

  live("connections that break under load lose nothing, on both ends", () =>
    Effect.gen(function*() {
      const server = yield* ownRedis("--appendfsync", "no")
      const { ids, options } = yield* stage(server.url)
      const proxy = yield* proxied(server)
      const events = numbered(1, stress > 0 ? 50_000 : 5000)
      const due = new Set(idsOf(events))
      const world = yield* makeWorld(Redis.layerPublisher({ ...options, url: proxy.url, capacity: 100_000 }))
      const reading = yield* subscriber({ ...options, url: proxy.url })
      // As long as nothing dies, nobody has to wait for the time of acknowledgements to pass.
      const stream = yield* reading.subscribe({ consumer: "c", maxInFlight: 8, ackTimeout: "10 minutes" })
      const order: Array<string> = []
      const reader = yield* Stream.runForEachWhile(stream, ({ ack, event }) => {
        if (due.delete(event.id)) order.push(event.id)
        return Effect.as(ack, due.size > 0)
      }).pipe(Effect.forkScoped)
      for (const [index, event] of events.entries()) {
        world.publisher.offer(event)
        if (index % 1000 === 499) {
          yield* Effect.sleep("20 millis")
          yield* proxy.cut
        }
      }
      yield* Fiber.join(reader)
      yield* world.close
      assert.deepStrictEqual([...new Set(yield* ids)], idsOf(events))
      assert.deepStrictEqual(order.toSorted(), idsOf(events))
      assert.deepStrictEqual(world.counts(), {})
    }), 60_000)

  live(
    "what was acknowledged is there after the server was killed, and what was not comes then",
    () =>
      Effect.gen(function*() {
        const server = yield* ownRedis()
        const { key, options } = yield* stage(server.url)
        const to = yield* publisher({ ...options, timeout: "30 seconds", batch: 16 })
        const events = numbered(1, stress > 0 ? 20_000 : 2000)
        const acknowledged: Array<string> = []
        const publishing = yield* Effect.forEach(
          events,
          (event) => Effect.tap(to.publish(event), () => Effect.sync(() => acknowledged.push(event.id))),
          { concurrency: 500, discard: true }
        ).pipe(Effect.forkScoped)
        const ids = Effect.scoped(Effect.flatMap(clientOf(server.url), (client) =>
          Effect.map(
            Effect.promise(async () => await client.xRange(key, "-", "+") ?? []),
            (all) => all.map(({ message }) => message["id"] ?? "")
          )))
        for (const share of [3, 2]) {
          yield* Effect.sleep("5 millis").pipe(
            Effect.repeat({
              while: () => acknowledged.length < events.length / share
            })
          )
          const before = [...acknowledged]
          yield* server.kill
          yield* server.start
          const stored = new Set(yield* ids)
          assert.deepStrictEqual(before.filter((id) => !stored.has(id)), [])
        }
        yield* Fiber.join(publishing)
        assert.deepStrictEqual([...new Set(yield* ids)], idsOf(events))
      }),
    60_000
  )

  live("a replica that takes the place of its master has all that was acknowledged", () =>
    Effect.gen(function*() {
      const master = yield* ownRedis()
      const replica = yield* ownRedis("--replicaof", "127.0.0.1", String(master.port))
      const { options } = yield* stage(master.url)
      const onReplica = yield* stage(replica.url)
      yield* Effect.repeat(
        Effect.andThen(Effect.sleep("20 millis"), onReplica.send("INFO", "replication")),
        { until: (info) => JSON.stringify(info).includes("master_link_status:up") }
      )
      const proxy = yield* proxied(master)
      const to = yield* publisher({
        ...options,
        url: proxy.url,
        replicas: 1,
        timeout: "30 seconds",
        ackTimeout: "1 second"
      })
      const events = numbered(1, 400)
      const acknowledged: Array<string> = []
      const publishing = yield* Effect.forEach(
        events,
        (event) => Effect.tap(to.publish(event), () => Effect.sync(() => acknowledged.push(event.id))),
        { concurrency: 20, discard: true }
      ).pipe(Effect.forkScoped)
      yield* Effect.sleep("5 millis").pipe(Effect.repeat({ while: () => acknowledged.length < 200 }))
      yield* master.kill
      const before = [...acknowledged]
      // The address leads to the replica before that takes writes.
      proxy.leadTo(replica.port)
      const count = proxy.connections()
      yield* Effect.repeat(Effect.sleep("10 millis"), { while: () => proxy.connections() < count + 2 })
      const another = yield* ownRedis("--replicaof", "127.0.0.1", String(replica.port))
      yield* onReplica.send("REPLICAOF", "NO", "ONE")
      const ids = Effect.map(
        Effect.promise(async () => await onReplica.client.xRange(options.key, "-", "+") ?? []),
        (all) => all.map(({ message }) => message["id"] ?? "")
      )
      const stored = new Set(yield* ids)
      assert.deepStrictEqual(before.filter((id) => !stored.has(id)), [])
      yield* Fiber.join(publishing)
      assert.deepStrictEqual([...new Set(yield* ids)], idsOf(events))
      yield* another.kill
    }), 60_000)

  live(
    "while too few replicas have events these are neither acknowledged nor stored again",
    () =>
      Effect.gen(function*() {
        const server = yield* ownRedis()
        const { ids, options, send } = yield* stage(server.url)
        const waits = Effect.map(
          send("INFO", "commandstats"),
          (info) => Number(/cmdstat_wait:calls=(\d+)/.exec(JSON.stringify(info))?.[1] ?? 0)
        )
        const patient = { ...options, replicas: 1, timeout: "30 seconds", ackTimeout: "1 second" } as const
        const impatient = yield* publisher({ ...patient, timeout: "300 millis" })
        const error = yield* Effect.flip(impatient.publish(started("impatient")))
        assert.strictEqual(error.reason._tag, "TimedOut")
        const to = yield* publisher(patient)
        const publishing = yield* Effect.forkScoped(publishAll(to, numbered(1, 3)))
        const before = yield* waits
        yield* Effect.repeat(Effect.sleep("20 millis"), {
          until: () => Effect.map(waits, (count) => count >= before + 3)
        })
        assert.isUndefined(publishing.pollUnsafe())
        yield* ownRedis("--replicaof", "127.0.0.1", String(server.port))
        yield* Fiber.join(publishing)
        assert.deepStrictEqual(yield* ids, ["impatient:started", ...idsOf(numbered(1, 3))])
      })
  )

  live("what a master has that was demoted before its replicas had it is stored again", () =>
    Effect.gen(function*() {
      const server = yield* ownRedis()
      const { ids, options, send } = yield* stage(server.url)
      const to = yield* publisher({ ...options, replicas: 1, timeout: "30 seconds", ackTimeout: "1 second" })
      const publishing = yield* Effect.forkScoped(to.publish(started("a")))
      const storedTimes = (times: number) =>
        Effect.repeat(Effect.andThen(Effect.sleep("5 millis"), ids), { until: ({ length }) => length === times })
      yield* storedTimes(1)
      yield* send("REPLICAOF", "127.0.0.1", String(yield* freePort))
      const refusals = Effect.map(send("INFO", "errorstats"), JSON.stringify)
      yield* Effect.repeat(Effect.andThen(Effect.sleep("5 millis"), refusals), {
        until: (info) => info.includes("errorstat_READONLY")
      })
      yield* send("REPLICAOF", "NO", "ONE")
      yield* storedTimes(2)
      assert.isUndefined(publishing.pollUnsafe())
    }))

  live(
    "at the defaults of the closed policy what is not answered is stored again before its unit is refused",
    () =>
      Effect.gen(function*() {
        const server = yield* ownRedis()
        const { ids, options } = yield* stage(server.url)
        // The first connection gets no more answers.
        let isDeaf = false
        let made = 0
        const proxy = yield* proxied(server, () => {
          const isFirst = ++made === 1
          return (bytes) => isDeaf && isFirst ? Buffer.alloc(0) : bytes
        })
        const to = yield* publisher({ ...options, url: proxy.url })
        isDeaf = true
        yield* to.publish(started("a"))
        assert.deepStrictEqual(yield* ids, ["a:started", "a:started"])
      })
  )

  it.live("while the server has no memory events wait, and come in order when it has", () =>
    Effect.gen(function*() {
      const server = yield* ownRedis("--maxmemory-policy", "noeviction")
      const { ids, options, send } = yield* stage(server.url)
      const world = yield* makeWorld(Redis.layerPublisher(options))
      yield* send("CONFIG", "SET", "maxmemory", "1")
      const events = numbered(1, 600)
      for (const event of events) world.publisher.offer(event)
      yield* Effect.repeat(Effect.sleep("10 millis"), { while: () => world.logs.length === 0 })
      assert.deepStrictEqual(yield* ids, [])
      yield* send("CONFIG", "SET", "maxmemory", "0")
      yield* world.close
      assert.deepStrictEqual(yield* ids, idsOf(events))
      assert.deepStrictEqual(world.counts(), {})
      assert.match(world.logs.join("\n"), /^Redis Streams does not take events: OOM .*They wait, and are stored again$/)
    }))

  live(
    "under the closed policy no unit begins while the server is away, and nothing is told of it later",
    () =>
      Effect.gen(function*() {
        const server = yield* ownRedis()
        const { options } = yield* stage(server.url)
        const world = yield* makeWorld(
          Redis.layerPublisher({ ...options, policy: "closed", timeout: "300 millis", terminalTimeout: "300 millis" })
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
        const { client } = yield* stage(server.url)
        const stored = yield* Effect.promise(async () => await client.xRange(options.key, "-", "+") ?? [])
        assert.deepStrictEqual(
          stored.map(({ message }) => message["id"]?.slice(message["id"].indexOf(":"))),
          [":started", ":completed", ":started", ":completed"]
        )
      })
  )

  live(
    "a server that hangs is given up, units run on, the buffer is bounded, and closing keeps its time",
    () =>
      Effect.gen(function*() {
        const server = yield* ownRedis()
        const { ids, options } = yield* stage(server.url)
        const to = yield* publisher({ ...options, ackTimeout: "200 millis", timeout: "30 seconds" })
        const world = yield* makeWorld(
          Redis.layerPublisher({ ...options, capacity: 100, batch: 50, flushTimeout: "300 millis" })
        )
        yield* server.pause
        const publishing = yield* Effect.forkScoped(to.publish(started("a")))
        for (const event of numbered(1, 500)) {
          world.publisher.offer(event)
          yield* Effect.yieldNow
        }
        yield* world.close
        const { "drops redis": dropped = 0, "failures BufferFull": full = 0, ...others } = world.counts()
        assert.deepStrictEqual([full + dropped, others], [500, {}])
        // Those in the buffer, and the batch under way.
        assert.isAtLeast(dropped, 101)
        assert.isAtMost(dropped, 150)
        yield* server.resume
        yield* Fiber.join(publishing)
        assert.include(yield* ids, "a:started")
      })
  )
})
