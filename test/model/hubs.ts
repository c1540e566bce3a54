/** What the tests of the hub clients share: a server, a folder, and a service that points from one to the other. */
import { NodeHttpClient, NodeServices } from "@effect/platform-node"
import { assert } from "@effect/vitest"
import { Effect, FileSystem, Layer, Schedule } from "effect"
import type { HubError } from "../../src/model/HubError.ts"
import * as ModelHub from "../../src/model/ModelHub.ts"
import type { Progress } from "../../src/model/Progress.ts"
import * as HubServer from "./HubServer.ts"

export const layer = Layer.merge(NodeHttpClient.layerUndici, NodeServices.layer)

/** Bytes that are the same in every run, and different at every offset that matters. */
export const bytes = (length: number, seed = 1): Uint8Array => {
  const content = new Uint8Array(length)
  let state = seed
  for (let i = 0; i < length; i++) {
    state = (Math.imul(state, 1103515245) + 12345) & 0x7fffffff
    content[i] = state >>> 16
  }
  return content
}

export const text = (value: unknown): Uint8Array => new TextEncoder().encode(JSON.stringify(value))

/** All hubs behind one stand-in server, a folder that vanishes with the test, and three retries without a pause. */
export const setup = Effect.fnUntraced(
  function*(options: Omit<ModelHub.Options, "huggingface" | "modelscope" | "ollama"> & {
    readonly huggingface?: Omit<NonNullable<ModelHub.Options["huggingface"]>, "endpoint">
    readonly modelscope?: Omit<NonNullable<ModelHub.Options["modelscope"]>, "endpoint">
  } = {}) {
    const fs = yield* FileSystem.FileSystem
    const server = yield* Effect.acquireRelease(
      Effect.promise(() => HubServer.start()),
      (server) => Effect.promise(() => server.close())
    )
    const directory = yield* fs.makeTempDirectoryScoped()
    const hub = yield* ModelHub.make({
      retry: Schedule.recurs(3),
      ...options,
      huggingface: { ...options.huggingface, endpoint: server.url },
      modelscope: { ...options.modelscope, endpoint: server.url },
      ollama: { endpoint: server.url }
    })
    const progress: Array<Progress> = []
    const onProgress = (report: Progress) => Effect.sync(() => void progress.push(report))
    return { fs, server, directory, hub, progress, onProgress }
  }
)

/** Every file below a folder with its bytes, by relative path. */
export const filesBelow = Effect.fnUntraced(function*(directory: string) {
  const fs = yield* FileSystem.FileSystem
  const files: Record<string, Uint8Array> = {}
  for (const path of (yield* fs.readDirectory(directory, { recursive: true })).sort()) {
    const info = yield* fs.stat(`${directory}/${path}`)
    if (info.type === "File") files[path] = Uint8Array.from(yield* fs.readFile(`${directory}/${path}`))
  }
  return files
})

/** The reason of a failure, and that the error around it is about this source and repository. */
export const reasonOf = <A, R>(effect: Effect.Effect<A, HubError, R>, source: string, repo?: string) =>
  Effect.map(Effect.flip(effect), (error) => {
    assert.strictEqual(error.source, source)
    assert.strictEqual(error.repo, repo)
    return error.reason
  })
