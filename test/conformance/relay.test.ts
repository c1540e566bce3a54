import * as vitest from "@effect/vitest"
import { jetstreamManager } from "@nats-io/jetstream"
import { connect } from "@nats-io/transport-node"
import { Effect, Layer } from "effect"
import * as fs from "node:fs"
import * as os from "node:os"
import * as path from "node:path"
import { createClient } from "redis"
import { type EventPublisher, type EventSubscriber, Relay } from "../../src/index.ts"
import * as Nats from "../../src/publishers/Nats.ts"
import * as Redis from "../../src/publishers/Redis.ts"
import * as Sqlite from "../../src/publishers/Sqlite.ts"
import { type Promises, publisherSuite } from "../../src/testing/index.ts"
import { withServer } from "../servers.ts"

const directory = fs.mkdtempSync(path.join(os.tmpdir(), "effect-units-conformance-"))
vitest.afterAll(() => fs.rmSync(directory, { recursive: true }))

/** A publisher into a SQLite file, from which a relay moves the events to a broker, where the subscriber reads them. */
const relayed = <E, E2>(
  topic: string,
  to: Layer.Layer<EventPublisher.EventPublisher, E>,
  subscriber: Layer.Layer<EventSubscriber.EventSubscriber, E2>
) =>
  Layer.merge(
    Layer.provideMerge(
      Relay.layer({ name: topic, to, lease: "2 seconds", pollInterval: "100 millis" }),
      Sqlite.layer({ filename: path.join(directory, `${topic}.db`), policy: "transactional" })
    ),
    subscriber
  )

const removeFile = (topic: string): void => {
  for (const suffix of ["", "-wal", "-shm"]) fs.rmSync(path.join(directory, `${topic}.db${suffix}`), { force: true })
}

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
        Nats.layerPublisher({ servers, prefix, policy: "closed" }),
        Nats.layerSubscriber({ servers, prefix })
      ),
    promises,
    cleanup: (prefix) =>
      Effect.promise(async () => {
        removeFile(prefix)
        const nc = await connect({ servers })
        await (await jetstreamManager(nc)).streams.delete(prefix)
        await nc.close()
      })
  })
})

await withServer("Redis", "SQLite, a relay and Redis Streams", (url) => {
  publisherSuite({
    vitest,
    name: "SQLite, relay, Redis Streams",
    layer: (key) =>
      relayed(key, Redis.layerPublisher({ url, key, policy: "closed" }), Redis.layerSubscriber({ url, key })),
    promises: { ...promises, maxPayloadBytes: Infinity },
    cleanup: (key) =>
      Effect.promise(async () => {
        removeFile(key)
        const client = await createClient({ url }).connect()
        await client.del(key)
        await client.close()
      })
  })
})
