/** The real hubs, for which `SMOKE_HUBS=1` has to be set and the network to be there. */
import { assert, describe, it } from "@effect/vitest"
import { Effect, FileSystem } from "effect"
import * as ModelHub from "../../src/model/ModelHub.ts"
import { filesBelow, layer } from "./hubs.ts"

describe.skipIf(process.env["SMOKE_HUBS"] === undefined)("the real hubs", () => {
  const onProgress = () => Effect.void
  const inFolder = Effect.flatMap(FileSystem.FileSystem, (fs) => fs.makeTempDirectoryScoped())

  it.live("HuggingFace is searched, described and pulled from", () =>
    Effect.gen(function*() {
      const hub = yield* ModelHub.make({})
      const directory = yield* inFolder
      const source = "huggingface"
      assert.isNotEmpty(yield* hub.search({ source, query: "gpt2", type: "llm", limit: 5 }))
      assert.deepInclude(yield* hub.describe({ source, repo: "openai-community/gpt2" }), {
        type: "llm",
        format: "safetensors"
      })
      const pulled = yield* hub.pull({ source, repo: "hf-internal-testing/tiny-random-gpt2", directory, onProgress })
      assert.sameMembers(Object.keys(yield* filesBelow(directory)), pulled.files.map(({ path }) => path))
    }).pipe(Effect.provide(layer)), 120_000)

  it.live("ModelScope is searched, described and pulled from", () =>
    Effect.gen(function*() {
      const hub = yield* ModelHub.make({})
      const directory = yield* inFolder
      const source = "modelscope"
      assert.isNotEmpty(yield* hub.search({ source, query: "qwen", limit: 5 }))
      const repo = "Qwen/Qwen2.5-0.5B-Instruct"
      assert.deepInclude(yield* hub.describe({ source, repo }), { type: "llm", format: "safetensors" })
      yield* hub.pull({ source, repo, directory, onProgress })
    }).pipe(Effect.provide(layer)), 600_000)
})
