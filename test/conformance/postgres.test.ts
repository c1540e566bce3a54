import * as vitest from "@effect/vitest"
import { Effect, Layer, Redacted } from "effect"
import * as Postgres from "../../src/publishers/Postgres.ts"
import { type Promises, publisherSuite } from "../../src/testing/index.ts"
import { ownPostgres, sharedServer } from "../fixtures/ownServer.ts"
import { dropSchema } from "../fixtures/postgres.ts"
import { withProgram } from "../servers.ts"

const promises: Promises = {
  durable: true,
  ordered: "global",
  groups: true,
  replay: true,
  dedup: "forever",
  transactional: false,
  newSubscriberSeesOld: true,
  maxPayloadBytes: 8 * 1024 * 1024
}

withProgram("PostgreSQL", "PostgreSQL", () => {
  // Twenty Layers at one time, in as many repetitions as run at one time, are more clients than a server takes by default.
  const server = sharedServer(ownPostgres("max_connections=500"), vitest)
  for (
    const [name, policy, restart] of [
      ["open", "open"],
      ["closed", "closed"],
      ["transactional", "transactional"],
      ["killed", "closed", server.restart]
    ] as const
  ) {
    publisherSuite({
      vitest,
      name: `PostgreSQL, ${name}`,
      layer: (schema) =>
        Layer.provideMerge(
          Postgres.layerSubscriber(),
          Postgres.layer({ url: Redacted.make(server.url()), schema, policy })
        ),
      promises: { ...promises, transactional: policy === "transactional", restart },
      cleanup: (schema) => Effect.suspend(() => dropSchema(server.url(), schema))
    })
  }
})
