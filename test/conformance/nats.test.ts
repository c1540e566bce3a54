import * as vitest from "@effect/vitest"
import * as Nats from "../../src/publishers/Nats.ts"
import { type Promises, publisherSuite } from "../../src/testing/index.ts"
import { ownNats, sharedServer } from "../fixtures/ownServer.ts"
import { removeStream } from "../fixtures/removal.ts"
import { withProgram, withServer } from "../servers.ts"

const promises: Promises = {
  durable: true,
  ordered: "global",
  groups: true,
  replay: true,
  dedup: "window",
  transactional: false,
  newSubscriberSeesOld: true,
  // The server's max_payload counts the headers, too.
  maxPayloadBytes: 1_000_000
}

await withServer("NATS", "NATS JetStream on a server that stays", (url) => {
  publisherSuite({
    vitest,
    name: "NATS JetStream, closed",
    layer: (prefix) => Nats.layer({ servers: url, prefix, policy: "closed" }),
    promises,
    cleanup: (prefix) => removeStream(url, prefix)
  })
})

withProgram("NATS", "NATS JetStream on a server that is killed and started again", () => {
  const server = sharedServer(ownNats(), vitest)
  publisherSuite({
    vitest,
    name: "NATS JetStream, open",
    layer: (prefix) => Nats.layer({ servers: server.url(), prefix }),
    promises: { ...promises, restart: server.restart }
  })
})
