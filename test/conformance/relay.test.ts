import * as vitest from "@effect/vitest"
import { Effect, Layer, Redacted } from "effect"
import * as fs from "node:fs"
import * as os from "node:os"
import * as path from "node:path"
import { type EventPublisher, type EventStore, type EventSubscriber, Relay } from "../../src/index.ts"
import * as Nats from "../../src/publishers/Nats.ts"
import * as Postgres from "../../src/publishers/Postgres.ts"
import * as Redis from "../../src/publishers/Redis.ts"
import * as Sqlite from "../../src/publishers/Sqlite.ts"
import { type Promises, publisherSuite } from "../../src/testing/index.ts"
import { ownPostgres, sharedServer } from "../fixtures/ownServer.ts"
import { dropSchema } from "../fixtures/postgres.ts"
import { removeKey, removeStream } from "../fixtures/removal.ts"
import { withProgram, withServer } from "../servers.ts"

const directory = fs.mkdtempSync(path.join(os.tmpdir(), "effect-units-conformance-"))
vitest.afterAll(() => fs.rmSync(directory, { recursive: true }))

/** A publisher into a store, from which a relay moves the events to a broker, where the subscriber reads them. */
const relayed = <E, E2, E3>(
  topic: string,
  store: Layer.Layer<EventPublisher.EventPublisher | EventStore.EventStore, E>,
  to: Layer.Layer<EventPublisher.EventPublisher, E2>,
  subscriber: Layer.Layer<EventSubscriber.EventSubscriber, E3>
) =>
  Layer.merge(
    Layer.provideMerge(Relay.layer({ name: topic, to, lease: "2 seconds", pollInterval: "100 millis" }), store),
    subscriber
  )

const file = (topic: string) => Sqlite.layer({ filename: path.join(directory, `${topic}.db`), policy: "transactional" })

const removeFile = (topic: string) =>
  Effect.sync(() => {
    for (const suffix of ["", "-wal", "-shm"]) fs.rmSync(path.join(directory, `${topic}.db${suffix}`), { force: true })
  })

const promises: Promises = {
  durable: true,
  ordered: "execution",
  groups: true,
  replay: true,
  // The store knows an event again for ever; the way to the broker adds what that one promises.
  dedup: "window",
  transactional: true,
  newSubscriberSeesOld: true,
  maxPayloadBytes: 1_000_000
}

await withServer("NATS", "SQLite, a relay and NATS JetStream", (servers) => {
  publisherSuite({
    vitest,
    name: "SQLite, relay, NATS JetStream",
    layer: (prefix) =>
      relayed(
        prefix,
        file(prefix),
        Nats.layerPublisher({ servers, prefix, policy: "closed" }),
        Nats.layerSubscriber({ servers, prefix })
      ),
    promises,
    cleanup: (prefix) => Effect.andThen(removeFile(prefix), removeStream(servers, prefix))
  })
})

await withServer("Redis", "a store, a relay and Redis Streams", (url) => {
  const redis = (key: string) =>
    [Redis.layerPublisher({ url, key, policy: "closed" }), Redis.layerSubscriber({ url, key })] as const

  publisherSuite({
    vitest,
    name: "SQLite, relay, Redis Streams",
    layer: (key) => relayed(key, file(key), ...redis(key)),
    promises: { ...promises, maxPayloadBytes: Infinity },
    cleanup: (key) => Effect.andThen(removeFile(key), removeKey(url, key))
  })

  withProgram("PostgreSQL", "PostgreSQL, a relay and Redis Streams", () => {
    const server = sharedServer(ownPostgres("max_connections=500"), vitest)
    publisherSuite({
      vitest,
      name: "PostgreSQL, relay, Redis Streams",
      layer: (topic) =>
        relayed(
          topic,
          Postgres.layer({ url: Redacted.make(server.url()), schema: topic, policy: "transactional" }),
          ...redis(topic)
        ),
      promises: { ...promises, maxPayloadBytes: Infinity },
      cleanup: (topic) => Effect.andThen(dropSchema(server.url(), topic), removeKey(url, topic))
    })
  })
})
