/** A host for the units of this domain: the embedded services in a folder that vanishes, and stand-in hubs on loopback. */
import { Context, Deferred, Effect, Layer, Redacted, Schedule } from "effect"
import { SqlClient } from "effect/sql"
import * as fs from "node:fs"
import * as os from "node:os"
import * as path from "node:path"
import { layerEmbedded } from "../../src/node.ts"
import { Host } from "../lives.ts"
import { secretOf } from "../secrets.ts"
import * as HubServer from "./HubServer.ts"

export const tokens = { huggingface: secretOf("huggingface"), modelscope: secretOf("modelscope", "token") }

export class World extends Context.Service<World, {
  /** The folder of the embedded services. */
  readonly directory: string
  /** A folder for models that are imported. */
  readonly elsewhere: string
  readonly server: HubServer.HubServer
}>()("test/model/World") {}

/** The services, and a folder `elsewhere`, below one folder that goes with the scope. Hubs are asked once, and with tokens. */
export const layer = Layer.unwrap(Effect.gen(function*() {
  const root = yield* Effect.acquireRelease(
    // The system's temporary folder may itself be a link.
    Effect.sync(() => fs.realpathSync(fs.mkdtempSync(path.join(os.tmpdir(), "model-")))),
    (root) => Effect.sync(() => fs.rmSync(root, { recursive: true }))
  )
  const server = yield* Effect.acquireRelease(
    Effect.promise(() => HubServer.start()),
    (server) => Effect.promise(() => server.close())
  )
  const directory = path.join(root, "embedded")
  const elsewhere = path.join(root, "elsewhere")
  fs.mkdirSync(elsewhere)
  const { host } = new URL(server.url)
  return Layer.mergeAll(
    layerEmbedded({
      directory,
      hubs: {
        retry: Schedule.recurs(0),
        huggingface: { endpoint: server.url, token: Redacted.make(tokens.huggingface) },
        modelscope: { endpoint: server.url, token: Redacted.make(tokens.modelscope) },
        ollama: { endpoint: server.url }
      }
    }),
    Layer.succeed(World, { directory, elsewhere, server }),
    Layer.succeed(Host, {
      directory,
      ownTexts: [root, host, new URL(server.storageUrl).host],
      secrets: Object.values(tokens)
    })
  )
}))

/** Writes a file to be imported, and gives its path. */
export const write = Effect.fnUntraced(function*(name: string, content: string | Uint8Array) {
  const file = path.join((yield* World).elsewhere, name)
  fs.mkdirSync(path.dirname(file), { recursive: true })
  fs.writeFileSync(file, content)
  return file
})

/** Waits until so many bytes of a file that is being pulled are on disk: what a hub has sent is there a little later. */
export const onDisk = Effect.fnUntraced(function*(model_id: string, name: string, bytes: number) {
  const part = path.join((yield* World).directory, "models", model_id, `${name}.part`)
  while (!fs.existsSync(part) || fs.statSync(part).size < bytes) {
    yield* Effect.promise(() => new Promise((resolve) => setImmediate(resolve)))
  }
})

/** Takes the connection to the database away until the scope closes: who needs it waits. */
export const holdDatabase = Effect.gen(function*() {
  const sql = yield* SqlClient.SqlClient
  const held = yield* Deferred.make<void>()
  yield* Effect.forkScoped(sql.withTransaction(Effect.andThen(Deferred.succeed(held, undefined), Effect.never)))
  yield* Deferred.await(held)
})

/** Breaks the database: the register has lost its table. */
export const breakDatabase = Effect.flatMap(SqlClient.SqlClient, (sql) => sql`DROP TABLE effect_units_models`)
