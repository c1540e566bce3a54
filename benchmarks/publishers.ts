/**
 * The publishers to transports that keep events, each beside its client alone: the same events, as many at a time and as durable, without
 * Layers, order, retries or redelivery.
 *
 * - To acknowledgement: so many publishers, each of which publishes its next event when the transport has acknowledged the last one.
 * - In bulk: all is handed over at once, and it takes until everything is acknowledged.
 * - End to end: sixteen publishers as above, and a subscriber that acknowledges each event.
 *
 * The servers are started from the programs that this machine has; one that it has not is left out, and said so.
 *
 *     node benchmarks/publishers.ts [--quick] [--json FILE]
 */
import * as NodeHttpClient from "@effect/platform-node/NodeHttpClient"
import * as PgClient from "@effect/sql-pg/PgClient"
import { jetstream, jetstreamManager } from "@nats-io/jetstream"
import { connect } from "@nats-io/transport-node"
import { Context, Effect, Exit, Layer, Redacted, References, Scope, Stream } from "effect"
import assert from "node:assert/strict"
import { spawnSync } from "node:child_process"
import { createHmac } from "node:crypto"
import { mkdtempSync, rmSync } from "node:fs"
import * as Http from "node:http"
import type { AddressInfo } from "node:net"
import { tmpdir } from "node:os"
import { join } from "node:path"
import { DatabaseSync } from "node:sqlite"
import { createClient } from "redis"
import * as PostgresClient from "../src/backends/Postgres.ts"
import * as EventPublisher from "../src/EventPublisher.ts"
import * as EventStore from "../src/EventStore.ts"
import * as EventSubscriber from "../src/EventSubscriber.ts"
import type { ExecutionEvent } from "../src/ExecutionEvent.ts"
import { uuidV7 } from "../src/internal/ids.ts"
import * as Nats from "../src/publishers/Nats.ts"
import * as Postgres from "../src/publishers/Postgres.ts"
import * as Redis from "../src/publishers/Redis.ts"
import * as Sqlite from "../src/publishers/Sqlite.ts"
import * as Webhook from "../src/publishers/Webhook.ts"
import { ownNats, ownRedis } from "../test/fixtures/ownServer.ts"
import { answers, urlOf } from "../test/servers.ts"
import { eventsOf, makeEvents } from "./events.ts"
import { main, type Report } from "./harness.ts"
import * as PlainSql from "./plainSql.ts"

type Event = ExecutionEvent
type Events = ReadonlyArray<Event>

const millis = (): number => performance.now()

/** A client alone: it publishes one by one, or where that is how it batches, together what has come from all publishers. */
type Raw = {
  /** All at once, as the transport is best used. */
  readonly bulk: (events: Events) => Promise<unknown>
  /** Calls back with the id of every event from now on, and acknowledges it. */
  readonly subscribe?: (received: (id: string) => void) => Promise<() => unknown>
} & ({ readonly one: (event: Event) => Promise<unknown> } | { readonly together: (events: Events) => Promise<unknown> })

interface Opened {
  /** Of which `publish` succeeds when the transport has the event. */
  readonly publisher: EventPublisher.Publisher
  /** What a program has that does not wait. Closing it waits for the last acknowledgement. */
  readonly bulk: Layer.Layer<EventPublisher.EventPublisher, unknown>
  readonly subscriber?: Layer.Layer<EventSubscriber.EventSubscriber, unknown>
  readonly raw: Raw
}

interface Transport {
  readonly name: string
  /** What starts it, where it is a server of its own. */
  readonly program?: string
  /** Where it is, where it runs already. */
  readonly url?: string
  readonly open: Effect.Effect<Opened, unknown, Scope.Scope>
}

const directory = Effect.acquireRelease(
  Effect.sync(() => mkdtempSync(join(tmpdir(), "effect-units-bench-"))),
  (path) => Effect.sync(() => rmSync(path, { recursive: true, force: true }))
)

/** Wakes whoever waits for the arrival of an event. */
class Arrivals {
  private readonly waiting = new Map<string, () => void>()
  private left = 0
  private onAll: (() => void) | undefined

  readonly arrived = (id: string): void => {
    this.waiting.get(id)?.()
    this.waiting.delete(id)
    if (--this.left === 0) this.onAll?.()
  }

  of(id: string): Promise<void> {
    return new Promise((resolve) => void this.waiting.set(id, resolve))
  }

  /** Of so many, from now on. */
  all(count: number): Promise<void> {
    this.left = count
    return new Promise((resolve) => {
      this.onAll = resolve
    })
  }
}

const publisherOf = <E>(layer: Layer.Layer<EventPublisher.EventPublisher, E>) =>
  Effect.map(Layer.build(layer), (context) => Context.get(context, EventPublisher.EventPublisher))

const acquire = <A>(open: () => Promise<A>, close: (opened: A) => unknown) =>
  Effect.acquireRelease(Effect.promise(open), (opened) => Effect.promise(async () => void await close(opened)))

const capacity = 1_000_000
const rowsAtOnce = 500

const sqlite: Transport = {
  name: "SQLite",
  open: Effect.gen(function*() {
    const folder = yield* directory
    const filename = join(folder, "events.db")
    const store = Layer.succeedContext(yield* Layer.build(EventStore.layerSqlite({ filename })))
    const strict = Layer.provide(Sqlite.layerStore({ policy: "closed", capacity }), store)
    const plain = join(folder, "plain.db")
    yield* Effect.scoped(Layer.build(EventStore.layerSqlite({ filename: plain })))
    const db = yield* Effect.acquireRelease(
      Effect.sync(() => {
        const db = new DatabaseSync(plain)
        db.exec("PRAGMA journal_mode = WAL; PRAGMA synchronous = NORMAL")
        return db
      }),
      (db) => Effect.sync(() => db.close())
    )
    const together = PlainSql.sqlite(db)
    return {
      publisher: yield* publisherOf(strict),
      bulk: Layer.provide(Sqlite.layerStore({ capacity, batch: rowsAtOnce }), store),
      subscriber: Layer.provide(EventStore.layerSubscriber(), store),
      raw: { together, bulk: inBatches(rowsAtOnce, together) }
    }
  })
}

const postgres: Transport = {
  name: "PostgreSQL",
  url: urlOf("PostgreSQL"),
  open: Effect.gen(function*() {
    const options = { url: Redacted.make(urlOf("PostgreSQL")) }
    const [schema, plain] = [0, 1].map((index) => `bench_${uuidV7(Date.now() + index).replaceAll("-", "")}`)
    const admin = yield* clientOf(options)
    yield* Effect.addFinalizer(() =>
      Effect.orDie(admin`DROP SCHEMA IF EXISTS ${admin(schema!)}, ${admin(plain!)} CASCADE`.pipe(Effect.asVoid))
    )
    const store = Layer.succeedContext(
      yield* Layer.build(Layer.provideMerge(Postgres.layerEventStore(), PostgresClient.layer({ ...options, schema })))
    )
    yield* Effect.scoped(
      Layer.build(Layer.provide(Postgres.layerEventStore(), PostgresClient.layer({ ...options, schema: plain })))
    )
    const together = PlainSql.postgres(yield* clientOf({ ...options, schema: plain }))
    return {
      publisher: yield* publisherOf(Layer.provide(Postgres.layerStore({ policy: "closed", capacity }), store)),
      bulk: Layer.provide(Postgres.layerStore({ capacity, batch: rowsAtOnce }), store),
      subscriber: Layer.provide(Postgres.layerSubscriber(), store),
      raw: { together, bulk: inBatches(rowsAtOnce, together) }
    }
  })
}

const clientOf = (options: PostgresClient.Options) =>
  Effect.map(Layer.build(PostgresClient.layer(options)), (context) => Context.get(context, PgClient.PgClient))

const inBatches = (size: number, together: (events: Events) => Promise<unknown>) => async (events: Events) => {
  for (let from = 0; from < events.length; from += size) await together(events.slice(from, from + size))
}

/** How many are under way to a NATS server at a time. */
const window = 512

const nats: Transport = {
  name: "NATS JetStream",
  program: "nats-server",
  open: Effect.gen(function*() {
    const { url: servers } = yield* ownNats()
    const nc = yield* acquire(() => connect({ servers }), (nc) => nc.close())
    const js = jetstream(nc)
    const manager = yield* Effect.promise(() => jetstreamManager(nc))
    yield* Effect.promise(() => manager.streams.add({ name: "alone", subjects: ["alone.>"] }))
    const one = (event: Event) => js.publish("alone.model.pull", JSON.stringify(event), { msgID: event.id })
    let consumers = 0
    return {
      publisher: yield* publisherOf(Nats.layerPublisher({ servers, policy: "closed", capacity })),
      bulk: Nats.layerPublisher({ servers, capacity, maxUnacknowledged: window }),
      subscriber: Nats.layerSubscriber({ servers }),
      raw: {
        one,
        bulk: async (events) => {
          let next = 0
          await Promise.all(Array.from({ length: window }, async () => {
            for (let event = events[next++]; event !== undefined; event = events[next++]) await one(event)
          }))
        },
        subscribe: async (received) => {
          const durable_name = `alone-${consumers++}`
          await manager.consumers.add("alone", { durable_name, ack_policy: "explicit", deliver_policy: "new" })
          const messages = await (await js.consumers.get("alone", durable_name)).consume({ max_messages: 256 })
          const reading = (async () => {
            for await (const message of messages) {
              // It was written above.
              const { id } = message.json() as Event
              message.ack()
              received(id)
            }
          })()
          return async () => {
            await messages.close()
            await reading
          }
        }
      }
    }
  })
}

interface Entry {
  readonly id: string
  readonly message: { readonly id: string; readonly event: string }
}

const redis: Transport = {
  name: "Redis Streams",
  program: "redis-server",
  open: Effect.gen(function*() {
    // It has written to its file what it acknowledges.
    const { url } = yield* ownRedis()
    const open = () => createClient({ url }).on("error", () => {}).connect()
    const client = yield* acquire(open, (client) => client.destroy())
    const one = (event: Event) => client.xAdd("alone", "*", { id: event.id, event: JSON.stringify(event) })
    let groups = 0
    return {
      publisher: yield* publisherOf(Redis.layerPublisher({ url, policy: "closed", capacity })),
      bulk: Redis.layerPublisher({ url, capacity }),
      subscriber: Redis.layerSubscriber({ url }),
      raw: {
        one,
        bulk: inBatches(256, (events) => Promise.all(events.map(one))),
        subscribe: async (received) => {
          const group = `alone-${groups++}`
          await client.xGroupCreate("alone", group, "$", { MKSTREAM: true })
          const reader = await open()
          const closing = new AbortController()
          const reading = (async () => {
            while (!closing.signal.aborted) {
              // What it answers has no type of its own; these are the entries that were written above.
              const streams = await reader.xReadGroup(group, "me", { key: "alone", id: ">" }, {
                COUNT: 256,
                BLOCK: 100
              }) as ReadonlyArray<{ readonly messages: ReadonlyArray<Entry> }> | null
              const messages = streams?.[0]?.messages ?? []
              if (messages.length === 0) continue
              await client.xAck("alone", group, messages.map(({ id }) => id))
              for (const { message } of messages) received((JSON.parse(message.event) as Event).id)
            }
          })()
          return async () => {
            closing.abort()
            await reading
            reader.destroy()
          }
        }
      }
    }
  })
}

const webhook: Transport = {
  name: "webhook, batches of 100",
  open: Effect.gen(function*() {
    const arrivals = new Arrivals()
    const receiver = yield* acquire(
      () =>
        new Promise<Http.Server>((resolve) => {
          const server = Http.createServer((request, response) => {
            const chunks: Array<Buffer> = []
            request.on("data", (chunk: Buffer) => void chunks.push(chunk)).on("end", () => {
              response.writeHead(204).end()
              // Both ends are here, and send arrays.
              const events = JSON.parse(Buffer.concat(chunks).toString()) as ReadonlyArray<{ readonly id: string }>
              for (const { id } of events) arrivals.arrived(id)
            })
          })
          server.listen(0, "127.0.0.1", () => resolve(server))
        }),
      (server) => {
        server.closeAllConnections()
        server.close()
      }
    )
    // A TCP server that listens has an address with a port.
    const url = `http://127.0.0.1:${(receiver.address() as AddressInfo).port}/`
    const key = Buffer.alloc(32, 7)
    const layer = Layer.provide(
      Webhook.layer({
        endpoints: [{
          name: "receiver",
          url,
          secrets: [Redacted.make(`whsec_${key.toString("base64")}`)],
          mode: "batched",
          capacity,
          allowPrivateAddresses: true
        }]
      }),
      NodeHttpClient.layerUndici
    )
    const publisher = yield* publisherOf(layer)
    const send = async (events: Events): Promise<void> => {
      // The publisher sends no more than a mebibyte at once.
      if (events.length > 1 && events.length * JSON.stringify(events[0]).length > 1_000_000) {
        const half = events.length >> 1
        await send(events.slice(0, half))
        return send(events.slice(half))
      }
      const body = JSON.stringify(events.map((data) => ({
        specversion: "1.0",
        id: data.id,
        source: data.source,
        type: data.event_type,
        time: data.timestamp,
        datacontenttype: "application/json",
        data
      })))
      const id = events[0]?.id ?? ""
      const timestamp = String(Math.floor(Date.now() / 1000))
      const { status } = await fetch(url, {
        method: "POST",
        body,
        headers: {
          "content-type": "application/cloudevents-batch+json",
          "webhook-id": id,
          "webhook-timestamp": timestamp,
          "webhook-signature": `v1,${createHmac("sha256", key).update(`${id}.${timestamp}.${body}`).digest("base64")}`
        }
      })
      assert.equal(status, 204)
    }
    return {
      // Nobody can wait for a webhook; here they wait for its arrival.
      publisher: {
        ...publisher,
        offer: (event) => publisher.offer(event),
        report: (error) => publisher.report(error),
        publish: (event) =>
          Effect.promise(() => {
            const arrival = arrivals.of(event.id)
            publisher.offer(event)
            return arrival
          })
      },
      bulk: layer,
      raw: { together: send, bulk: inBatches(100, send) }
    }
  })
}

/** What many publishers measured: how many events a second, and how long each took, in milliseconds. */
interface Sample {
  readonly count: number
  readonly millis: number
  readonly latencies: ReadonlyArray<number>
}

type Begins = (event: Event) => void

const ours = (
  publisher: EventPublisher.Publisher,
  publishers: number,
  size: number,
  length: number,
  begins: Begins = () => {}
): Effect.Effect<Sample, EventPublisher.PublishError> =>
  Effect.gen(function*() {
    const latencies: Array<number> = []
    const start = millis()
    yield* Effect.forEach(
      Array.from({ length: publishers }, () => makeEvents(size)),
      (next) =>
        Effect.suspend(() => {
          let at = 0
          return Effect.whileLoop({
            while: () => millis() - start < length,
            body: () => {
              const event = next()
              at = millis()
              begins(event)
              return publisher.publish(event)
            },
            step: () => void latencies.push(millis() - at)
          })
        }),
      { concurrency: "unbounded", discard: true }
    )
    return { count: latencies.length, millis: millis() - start, latencies }
  })

const alone = async (
  raw: Raw,
  publishers: number,
  size: number,
  length: number,
  begins: Begins = () => {}
): Promise<Sample> => {
  const latencies: Array<number> = []
  const start = millis()
  const makers = Array.from({ length: publishers }, () => makeEvents(size))
  if ("one" in raw) {
    await Promise.all(makers.map(async (next) => {
      while (millis() - start < length) {
        const event = next()
        const at = millis()
        begins(event)
        await raw.one(event)
        latencies.push(millis() - at)
      }
    }))
  } else {
    while (millis() - start < length) {
      const events = makers.map((next) => next())
      const at = millis()
      events.forEach(begins)
      await raw.together(events)
      const taken = millis() - at
      for (const _ of events) latencies.push(taken)
    }
  }
  return { count: latencies.length, millis: millis() - start, latencies }
}

const inBulk = (layer: Opened["bulk"], events: Events) =>
  Effect.gen(function*() {
    const start = millis()
    yield* Effect.scoped(Effect.map(publisherOf(layer), (publisher) => {
      for (const event of events) publisher.offer(event)
      // The end of the scope waits for the last acknowledgement.
    }))
    return { count: events.length, millis: millis() - start, latencies: [] }
  })

type Subscribe = (received: (id: string) => void) => Promise<() => unknown>

const bySubscriber = (layer: NonNullable<Opened["subscriber"]>): Subscribe => async (received) => {
  const scope = Scope.makeUnsafe()
  const reading = Effect.gen(function*() {
    const { subscribe } = Context.get(yield* Layer.build(layer), EventSubscriber.EventSubscriber)
    const deliveries = yield* subscribe({ consumer: uuidV7(Date.now()), from: "new", maxInFlight: 256 })
    yield* deliveries.pipe(
      Stream.mapEffect(({ ack, event }) => Effect.map(ack, () => received(event.id)), {
        concurrency: 256,
        unordered: true
      }),
      Stream.runDrain,
      Effect.forkScoped
    )
  })
  await Effect.runPromise(Scope.provide(reading, scope))
  return () => Effect.runPromise(Scope.close(scope, Exit.void))
}

/** How long after the beginning of its publication a subscriber has an event. */
const endToEnd = async (subscribe: Subscribe, publish: (begins: Begins) => Promise<Sample>): Promise<Sample> => {
  const begun = new Map<string, number>()
  const latencies: Array<number> = []
  const arrivals = new Arrivals()
  const unsubscribe = await subscribe((id) => {
    const at = begun.get(id)
    if (at === undefined) return
    latencies.push(millis() - at)
    arrivals.arrived(id)
  })
  const start = millis()
  const { count } = await publish(({ id }) => void begun.set(id, millis()))
  if (latencies.length < count) await arrivals.all(count - latencies.length)
  const sample = { count, millis: millis() - start, latencies }
  await unsubscribe()
  return sample
}

const quantile = (values: ReadonlyArray<number>, at: number): number => {
  const sorted = values.toSorted((a, b) => a - b)
  return sorted[Math.min(sorted.length - 1, Math.floor(at * sorted.length))] ?? Number.NaN
}

const rate = (samples: ReadonlyArray<Sample>): number =>
  Math.max(...samples.map(({ count, millis }) => count / millis * 1000))

const whole = (value: number): string => Math.round(value).toLocaleString("en-US")

interface Compared {
  readonly transport: string
  readonly what: string
  readonly size: number
  readonly ours: ReadonlyArray<Sample>
  readonly alone: ReadonlyArray<Sample>
}

const share = (compared: Compared): number => rate(compared.ours) / rate(compared.alone)

const rowOf = (compared: Compared): Report["rows"][number] => {
  const times = (samples: ReadonlyArray<Sample>): string => {
    const latencies = samples.flatMap(({ latencies }) => latencies)
    return latencies.length === 0
      ? ""
      : `${quantile(latencies, 0.5).toFixed(2)} / ${quantile(latencies, 0.99).toFixed(2)}`
  }
  const { alone, ours, size, transport, what } = compared
  return {
    transport,
    what,
    "bytes of payload": size,
    "events/s": whole(rate(ours)),
    "client alone": alone.length === 0 ? "" : whole(rate(alone)),
    share: alone.length === 0 ? "" : `${Math.round(100 * share(compared))} %`,
    "p50 / p99 ms": times(ours),
    "client alone p50 / p99": times(alone)
  }
}

const missing = async ({ name, program, url }: Transport): Promise<string | undefined> => {
  if (program !== undefined && spawnSync(program, ["--version"]).error !== undefined) {
    return `${name} is left out: ${program} is not installed.`
  }
  return url === undefined || await answers(url) ? undefined : `${name} is left out: nothing answers at ${url}.`
}

const measure = async (
  { name, open }: Transport,
  quick: boolean
): Promise<ReadonlyArray<Compared>> => {
  const rounds = quick ? 1 : 5
  const length = quick ? 50 : 300
  const scope = Scope.makeUnsafe()
  const run = <A, E>(effect: Effect.Effect<A, E>) =>
    Effect.runPromise(Effect.provideService(effect, References.MinimumLogLevel, "Error"))
  const opened = await run(Scope.provide(open, scope))
  const { bulk, publisher, raw, subscriber } = opened
  const rows: Array<Compared> = []
  /** Both in turns, after one round that does not count. */
  const compare = async (
    what: string,
    size: number,
    ours: () => Promise<Sample>,
    alone: (() => Promise<Sample>) | undefined
  ): Promise<void> => {
    const samples = { ours: Array.of<Sample>(), alone: Array.of<Sample>() }
    for (let round = -1; round < rounds; round++) {
      const both = { ours: await ours(), alone: await alone?.() }
      if (round < 0) continue
      samples.ours.push(both.ours)
      if (both.alone !== undefined) samples.alone.push(both.alone)
    }
    rows.push({ transport: name, what, size, ...samples })
  }
  try {
    for (const size of [16, 4096, 65_536]) {
      for (const publishers of [1, 16, 48]) {
        await compare(
          `to acknowledgement, ${publishers} at once`,
          size,
          () => run(ours(publisher, publishers, size, length)),
          () => alone(raw, publishers, size, length)
        )
      }
      const count = Math.round((quick ? 1000 : 20_000) / (1 + size / 4096))
      await compare(
        "in bulk",
        size,
        () => run(inBulk(bulk, eventsOf(count, size))),
        async () => {
          const events = eventsOf(count, size)
          const start = millis()
          await raw.bulk(events)
          return { count, millis: millis() - start, latencies: [] }
        }
      )
      if (subscriber === undefined) continue
      const { subscribe } = raw
      await compare(
        "end to end, 16 at once",
        size,
        () => endToEnd(bySubscriber(subscriber), (begins) => run(ours(publisher, 16, size, length, begins))),
        subscribe && (() => endToEnd(subscribe, (begins) => alone(raw, 16, size, length, begins)))
      )
    }
    return rows
  } finally {
    await run(Scope.close(scope, Exit.void))
  }
}

const transports: ReadonlyArray<Transport> = [sqlite, postgres, nats, redis, webhook]

/** Every transport, in the order of the table. */
export const run = async (quick: boolean): Promise<Report> => {
  const rows: Array<Compared> = []
  const leftOut: Array<string> = []
  for (const transport of transports) {
    const reason = await missing(transport)
    if (reason === undefined) rows.push(...await measure(transport, quick))
    else leftOut.push(reason)
  }
  const bulk = (transport: Transport): Compared | undefined =>
    rows.find((row) => row.transport === transport.name && row.what === "in bulk" && row.size === 16)
  const atLeast = (transport: Transport, least: number) => {
    const row = bulk(transport)
    return row === undefined ? [] : [{
      target: `${transport.name}, in bulk, 16 bytes: at least ${whole(least)} acknowledged a second`,
      measured: whole(rate(row.ours)),
      met: rate(row.ours) >= least
    }]
  }
  return {
    title: "Publishers to transports that keep events, beside their clients alone",
    rows: rows.map(rowOf),
    notes: [
      "An event is some 400 bytes and its payload. A client alone does the same to the same server with the same durability, as many at a " +
      "time, but no more: no order, no repetition, no second writer; for SQL it writes the same rows of the same tables. Events a second: the best of some rounds, in " +
      "turns; latencies: of all rounds. Latencies of a webhook: until the receiver has the event.",
      ...leftOut
    ],
    targets: [
      ...atLeast(nats, 20_000),
      ...atLeast(postgres, 30_000),
      ...transports.flatMap(({ name }) =>
        ["to acknowledgement", "in bulk", "end to end"].flatMap((what) => {
          const compared = rows.filter((row) =>
            row.transport === name && row.what.startsWith(what) && row.alone.length > 0
          )
          const [least] = compared.toSorted((a, b) => share(a) - share(b))
          return least === undefined ? [] : [{
            target:
              `${name}, ${what}: at least 80 % of the client alone, whatever the size and the number of publishers`,
            measured: `${Math.round(100 * share(least))} % (${least.what}, ${whole(least.size)} bytes)`,
            met: share(least) >= 0.8
          }]
        })
      )
    ]
  }
}

if (import.meta.main) await main([run])
