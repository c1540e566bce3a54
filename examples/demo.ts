/**
 * The main job on embedded defaults: real units on real model files, their lives printed as they come and read back from SQLite.
 *
 *     npm run demo
 *
 * It imports a GGUF file and a sharded safetensors folder, pulls a model from a hub on this machine whose connection breaks midway,
 * asks for one that does not exist, and interrupts a pull. Then it looks at the machine, reserves memory for a small model, starts an
 * engine that serves it, chats with it, and gives everything back. It works in a temporary folder that is gone when it ends.
 *
 * It imports the library by path, so that it runs without a build; an application imports `effect-units` and its subpaths.
 */
import { NodeRuntime, NodeServices } from "@effect/platform-node"
import { Effect, Fiber, FileSystem, Layer, Path, Schema, Stream } from "effect"
import { fileURLToPath } from "node:url"
import * as Device from "../src/device/index.ts"
import * as Engine from "../src/engine/index.ts"
import { EventPublisher, EventStore, Execution, Unit, UnitError } from "../src/index.ts"
import * as Inference from "../src/inference/index.ts"
import * as Model from "../src/model/index.ts"
import { layerEmbedded } from "../src/node.ts"
import * as Sqlite from "../src/publishers/Sqlite.ts"
import * as Resource from "../src/resource/index.ts"
import { llamaConfig, safetensors, tinyGguf } from "../test/model/files.ts"
import * as HubServer from "../test/model/HubServer.ts"
import { runnableGguf } from "../test/model/runnable.ts"
import { makePrinter, printChunk, printExecutions } from "./report.ts"

/** A unit of one's own, made of the library's: whoever watches sees three executions inside of one. */
const onboard = Unit.command("demo.onboard", {
  description: "Imports a model, checks it, and says what it needs",
  input: { path: Schema.NonEmptyString },
  output: { model_id: Model.ModelId, valid: Schema.Boolean, memory_recommended: Schema.Natural },
  errors: [
    Model.ModelImportFailed,
    Model.ModelAlreadyExists,
    Model.ModelNotFound,
    Model.ModelVerifyFailed,
    UnitError.InternalError
  ],
  handler: Effect.fnUntraced(function*({ path }) {
    const { model_id } = yield* Model.import({ path })
    const { valid } = yield* Model.verify({ model_id })
    const { memory_recommended } = yield* Model.estimateResources({ model_id })
    return { model_id, valid, memory_recommended }
  })
})

/** How `engine.ts` beside this file is run. */
const tinyEngine = Engine.Recipe.make({
  process: {
    command: process.execPath,
    args: ({ host, model, port, servedName }) => [
      fileURLToPath(new URL("engine.ts", import.meta.url)),
      "--host",
      host,
      "--port",
      String(port),
      "--model",
      String(model),
      "--name",
      String(servedName)
    ],
    howToInstall: () => "it is in the examples"
  }
})

const megabytes = (count: number): number => count * 1_000_000

/** A model hub on a loopback port, with a repository whose connection breaks once and one that never finishes. */
const hubServer = Effect.gen(function*() {
  const server = yield* Effect.acquireRelease(
    Effect.promise(() => HubServer.start()),
    (server) => Effect.promise(() => server.close())
  )
  const weights = (bytes: number) => safetensors({ "model.weight": { dtype: "U8", shape: [bytes], bytes } })
  const config = { path: "config.json", content: new TextEncoder().encode(JSON.stringify(llamaConfig)) }
  server.addRepository({
    repo: "acme/breaks-once",
    pipeline_tag: "text-generation",
    files: [config, { path: "model.safetensors", content: weights(megabytes(24)), lfs: true }]
  })
  server.fault("model.safetensors", { kind: "cut", after: megabytes(9) }, {
    kind: "slow",
    bytes: megabytes(1),
    everyMillis: 80
  })
  server.addRepository({
    repo: "acme/never-ends",
    files: [{ path: "endless.safetensors", content: weights(megabytes(4)), lfs: true }]
  })
  server.fault("endless.safetensors", { kind: "stall", after: megabytes(1) })
  return server
})

/** Writes a GGUF file and a folder of two safetensors shards with their index. */
const writeModels = Effect.fnUntraced(function*(directory: string) {
  const fs = yield* FileSystem.FileSystem
  const paths = yield* Path.Path
  const gguf = paths.join(directory, "tiny-llama.gguf")
  yield* fs.writeFile(gguf, tinyGguf())
  const sharded = paths.join(directory, "tiny-sharded")
  yield* fs.makeDirectory(sharded)
  const tensor = (bytes: number) => ({ dtype: "F32", shape: [bytes / 4], bytes })
  const shards = {
    "embed.weight": "model-00001-of-00002.safetensors",
    "head.weight": "model-00002-of-00002.safetensors"
  }
  for (const [name, shard] of Object.entries(shards)) {
    yield* fs.writeFile(paths.join(sharded, shard), safetensors({ [name]: tensor(4096) }))
  }
  const index = { metadata: { total_size: 8192 }, weight_map: shards }
  yield* fs.writeFileString(paths.join(sharded, "model.safetensors.index.json"), JSON.stringify(index))
  yield* fs.writeFileString(paths.join(sharded, "config.json"), JSON.stringify(llamaConfig))
  return { gguf, sharded }
})

/** An engine with memory of its own, for as long as the scope lasts. */
const servingEngine = Effect.fnUntraced(function*(model_id: string) {
  const { memory_recommended } = yield* Model.estimateResources({ model_id })
  yield* Effect.acquireRelease(
    Resource.allocate({ name: "tiny", type: "inference_native", memory_bytes: memory_recommended }),
    ({ slot_id }) => Effect.orDie(Resource.release({ slot_id }))
  )
  yield* Effect.acquireRelease(
    Effect.interruptible(Engine.start({ name: "tiny", model_id })),
    () => Effect.orDie(Engine.stop({ name: "tiny" }))
  )
})

/** A small model of random weights, which has all the parts of a large one, and nothing to say. */
const talk = Effect.fnUntraced(function*(directory: string) {
  const fs = yield* FileSystem.FileSystem
  const paths = yield* Path.Path
  const path = paths.join(directory, "tiny-random.gguf")
  yield* fs.writeFile(path, runnableGguf())
  yield* Device.detect()
  yield* Resource.status()
  const { model_id } = yield* Model.import({ path })
  yield* Effect.scoped(Effect.andThen(
    servingEngine(model_id),
    Inference.chatStream({
      model: model_id,
      messages: [{ role: "user", content: "Why is the sky blue?" }],
      max_tokens: 24,
      temperature: 1
    }).pipe(Stream.runForEach((chunk) => Effect.sync(() => printChunk(chunk))))
  ))
  yield* Resource.status()
}, Execution.annotate({ request_id: "demo" }))

const job = Effect.fnUntraced(function*(directory: string, server: HubServer.HubServer) {
  const files = yield* writeModels(directory)
  yield* onboard({ path: files.gguf })
  yield* onboard({ path: files.sharded })

  yield* Model.pull({ source: "huggingface", repo: "acme/breaks-once" })
  yield* Model.pull({ source: "huggingface", repo: "acme/does-not-exist" }).pipe(
    Effect.catchTag("ModelPullFailed", () => Effect.void)
  )
  const endless = yield* Effect.forkChild(Model.pull({ source: "huggingface", repo: "acme/never-ends" }))
  yield* Effect.promise(() => server.stalled())
  yield* Fiber.interrupt(endless)

  yield* Model.list({ limit: 10 })
}, Execution.annotate({ request_id: "demo" }))

const program = Effect.gen(function*() {
  const fs = yield* FileSystem.FileSystem
  const paths = yield* Path.Path
  const directory = yield* fs.makeTempDirectoryScoped({ prefix: "effect-units-demo-" })
  const log = paths.join(directory, "events.db")
  const server = yield* hubServer

  console.log(`Working in ${directory}, which is removed at the end.\n`)
  const printer = EventPublisher.layer({ publish: makePrinter() })
  const services = layerEmbedded({
    directory: paths.join(directory, "data"),
    hubs: { huggingface: { endpoint: server.url } },
    engines: { recipes: { tiny: tinyEngine } },
    endpoints: []
  })
  // The publisher is the application's choice: this one prints, and stores durably.
  const publisher = EventPublisher.combine(printer, Sqlite.layer({ filename: log }))
  yield* job(directory, server).pipe(
    Effect.andThen(talk(directory)),
    Effect.provide(Layer.merge(services, publisher))
  )

  console.log("\nRead back from the SQLite log:\n")
  const store = yield* Layer.build(EventStore.layerSqlite({ filename: log }))
  printExecutions(
    yield* EventStore.EventStore.use((store) => store.executions({ limit: 100 })).pipe(Effect.provide(store))
  )
})

NodeRuntime.runMain(Effect.provide(Effect.scoped(program), NodeServices.layer))
