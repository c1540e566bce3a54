import * as vitest from "@effect/vitest"
import { Layer, Redacted } from "effect"
import * as Postgres from "../../src/publishers/Postgres.ts"
import { type Promises, publisherSuite } from "../../src/testing/index.ts"
import { ownPostgres, sharedServer } from "../fixtures/ownServer.ts"
import { dropSchema } from "../fixtures/postgres.ts"
import { withProgram, withServer } from "../servers.ts"

const promises: Promises = {
  durable: true,
  ordered: "global",
  groups: true,
  replay: true,
  dedup: "forever",
  transactional: false,
  newSubscriberSeesOld: true,
  maxPayloadBytes: Infinity
}

await withServer("PostgreSQL", "PostgreSQL on a server that stays", (url) => {
  for (const policy of ["open", "closed", "transactional"] as const) {
    const schemaOf = (topic: string) => `conformance_${policy}_${topic}`
    publisherSuite({
      vitest,
      name: `PostgreSQL, ${policy}`,
      layer: (topic) =>
        Layer.provideMerge(
          Postgres.layerSubscriber(),
          Postgres.layer({ url: Redacted.make(url), schema: schemaOf(topic), policy })
        ),
      promises: { ...promises, transactional: policy === "transactional" },
      cleanup: (topic) => dropSchema(url, schemaOf(topic))
    })
  }
})

withProgram("PostgreSQL", "PostgreSQL on a server that is killed and started again", () => {
  const server = sharedServer(ownPostgres(), vitest)
  publisherSuite({
    vitest,
    name: "PostgreSQL, killed",
    layer: (schema) =>
      Layer.provideMerge(
        Postgres.layerSubscriber(),
        Postgres.layer({ url: Redacted.make(server.url()), schema, policy: "closed" })
      ),
    promises: { ...promises, restart: server.restart }
  })
})
