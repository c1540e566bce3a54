import * as vitest from "@effect/vitest"
import { Effect, Layer } from "effect"
import * as fs from "node:fs"
import * as os from "node:os"
import * as path from "node:path"
import { EventStore } from "../../src/index.ts"
import * as Sqlite from "../../src/publishers/Sqlite.ts"
import { type Promises, publisherSuite } from "../../src/testing/index.ts"

const directory = fs.mkdtempSync(path.join(os.tmpdir(), "effect-units-conformance-"))
vitest.afterAll(() => fs.rmSync(directory, { recursive: true }))

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

for (const policy of ["open", "closed", "transactional"] as const) {
  publisherSuite({
    vitest,
    name: `SQLite, ${policy}`,
    layer: (topic) =>
      Layer.provideMerge(
        EventStore.layerSubscriber(),
        Sqlite.layer({ filename: path.join(directory, `${policy}-${topic}.db`), policy })
      ),
    promises: { ...promises, transactional: policy === "transactional" },
    cleanup: (topic) =>
      Effect.sync(() => {
        for (const suffix of ["", "-wal", "-shm"]) {
          fs.rmSync(path.join(directory, `${policy}-${topic}.db${suffix}`), { force: true })
        }
      })
  })
}
