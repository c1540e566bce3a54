/** A host for the units of this domain: the embedded services in a folder that vanishes, and two stand-in servers on loopback. */
import { Context, Effect, Layer, Redacted } from "effect"
import * as fs from "node:fs"
import * as os from "node:os"
import * as path from "node:path"
import { layerEmbedded } from "../../src/node.ts"
import { Host } from "../lives.ts"
import { secretOf } from "../secrets.ts"
import * as MediaServer from "./MediaServer.ts"
import * as OllamaServer from "./OllamaServer.ts"
import * as OpenAiServer from "./OpenAiServer.ts"
import * as StandIn from "./StandIn.ts"

export const key = secretOf("inference")

/** Ids of the models that both servers have, and those that one of them has. */
export const models = { openai: ["echo", "embed-4"], ollama: ["echo:latest", "tiny:1b"] } as const

export class World extends Context.Service<World, {
  /** Speaks the OpenAI protocol, and wants the key. */
  readonly openai: StandIn.StandIn
  readonly ollama: StandIn.StandIn
}>()("test/inference/World") {}

/** A server that lives as long as the scope. */
export const serve = (routes: ReadonlyArray<StandIn.Route>) =>
  Effect.acquireRelease(
    Effect.promise(() => StandIn.start(routes)),
    (server) => Effect.promise(() => server.close())
  )

/** What is on its way through the sockets of this process arrives. */
export const nextTurns = Effect.promise(async () => {
  for (let turn = 0; turn < 50; turn++) await new Promise((resolve) => setImmediate(resolve))
})

/** A folder that goes with the scope. */
export const folder = Effect.acquireRelease(
  // The system's temporary folder may itself be a link.
  Effect.sync(() => fs.realpathSync(fs.mkdtempSync(path.join(os.tmpdir(), "inference-")))),
  (directory) => Effect.sync(() => fs.rmSync(directory, { recursive: true }))
)

export const layer = Layer.unwrap(Effect.gen(function*() {
  const directory = yield* folder
  const options = { models: models.openai, key }
  const openai = yield* serve([...OpenAiServer.routes(options), ...MediaServer.routes(options)])
  const ollama = yield* serve(OllamaServer.routes({ models: models.ollama.map((name) => ({ name })) }))
  return Layer.mergeAll(
    layerEmbedded({
      directory,
      hubs: {},
      media: { audioRoots: [directory] },
      endpoints: [
        { name: "first", dialect: "openai", baseUrl: openai.url, apiKey: Redacted.make(key) },
        { name: "second", dialect: "ollama", baseUrl: ollama.url }
      ]
    }),
    Layer.succeed(World, { openai, ollama }),
    Layer.succeed(Host, {
      directory,
      ownTexts: [directory, new URL(openai.url).host, new URL(ollama.url).host],
      secrets: [key]
    })
  )
}))
