import * as vitest from "@effect/vitest"
import * as Redis from "../../src/publishers/Redis.ts"
import { type Promises, publisherSuite } from "../../src/testing/index.ts"
import { ownRedis, sharedServer } from "../fixtures/ownServer.ts"
import { removeKey } from "../fixtures/removal.ts"
import { withProgram, withServer } from "../servers.ts"

const promises: Promises = {
  durable: true,
  ordered: "global",
  groups: true,
  replay: true,
  dedup: "none",
  transactional: false,
  newSubscriberSeesOld: true,
  maxPayloadBytes: Infinity
}

await withServer("Redis", "Redis Streams on a server that stays", (url) => {
  publisherSuite({
    vitest,
    name: "Redis Streams, closed",
    layer: (key) => Redis.layer({ url, key, policy: "closed" }),
    promises,
    cleanup: (key) => removeKey(url, key)
  })
})

withProgram("Redis", "Redis Streams on a server that is killed and started again", () => {
  const server = sharedServer(ownRedis(), vitest)
  publisherSuite({
    vitest,
    name: "Redis Streams, open",
    layer: (key) => Redis.layer({ url: server.url(), key }),
    promises: { ...promises, restart: server.restart }
  })
})
