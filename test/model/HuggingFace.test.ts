import { NodeHttpClient, NodeServices } from "@effect/platform-node"
import { assert, describe, it } from "@effect/vitest"
import { Effect, Layer, Redacted } from "effect"
import type { HubModel } from "../../src/model/Hub.ts"
import {
  ChecksumMismatch,
  FileNotFound,
  Gated,
  InvalidResponse,
  RepoNotFound,
  RevisionNotFound,
  Unauthorized,
  UnsafePath,
  Upstream
} from "../../src/model/HubError.ts"
import { bytes, filesBelow, layer, reasonOf, setup, text } from "./hubs.ts"
import * as HubServer from "./HubServer.ts"

const source = "huggingface"
const repo = "acme/tiny"
const weights = bytes(100_000)
const config = text({ model_type: "llama" })
const commit = "a".repeat(40)
const tiny: HubServer.Repository = {
  repo,
  pipeline_tag: "text-generation",
  tags: ["license:mit"],
  revisions: { main: commit },
  files: [
    { path: "README.md", content: bytes(10) },
    { path: "config.json", content: config },
    { path: "model.safetensors", content: weights, lfs: true }
  ]
}
const manifest = [
  { path: "model.safetensors", size: 100_000, sha256: HubServer.sha256(weights) },
  { path: "config.json", size: config.length, sha256: HubServer.sha256(config) }
]
const pulled: HubModel = {
  name: repo,
  type: "llm",
  format: "safetensors",
  tags: ["license:mit"],
  revision: commit,
  files: manifest,
  size: 100_000 + config.length,
  checksum: `sha256:${HubServer.sha256(weights)}`,
  shape: { weightBytes: 100_000, parameterCount: undefined, contextLength: undefined }
}

const quantised = (path: string, seed: number) => ({ path, content: bytes(1000, seed), lfs: true })
const gguf: HubServer.Repository = {
  repo,
  files: [
    { path: "config.json", content: config },
    quantised("tiny-Q2_K.gguf", 2),
    quantised("tiny-Q4_K_M.gguf", 3),
    quantised("tiny-Q8_0-00001-of-00002.gguf", 4),
    quantised("tiny-Q8_0-00002-of-00002.gguf", 5)
  ],
  info: { gguf: { total: 500, architecture: "bert", context_length: 2048 } }
}

it.layer(layer)("HuggingFace", (it) => {
  describe("pull", () => {
    it.effect("fetches weights and what is needed to use them, all of one commit", () =>
      Effect.gen(function*() {
        const { directory, hub, onProgress, progress, server } = yield* setup()
        server.addRepository(tiny)
        assert.deepStrictEqual(yield* hub.pull({ source, repo, directory, onProgress }), pulled)
        assert.deepStrictEqual(yield* filesBelow(directory), { "config.json": config, "model.safetensors": weights })
        assert.deepStrictEqual(server.requests.map(({ host, url }) => `${host} ${url}`).sort(), [
          `hub /acme/tiny/resolve/${commit}/config.json`,
          `hub /acme/tiny/resolve/${commit}/model.safetensors`,
          "hub /api/models/acme/tiny/revision/main",
          `hub /api/models/acme/tiny/tree/${commit}?recursive=true`,
          "storage /acme/tiny/model.safetensors?Signature=signed"
        ])
        assert.strictEqual(progress.at(-1)?.progress, 100)
      }))

    it.effect("takes listing and files from the revision that the tag names", () =>
      Effect.gen(function*() {
        const { directory, hub, onProgress, server } = yield* setup()
        const old = "b".repeat(40)
        server.addRepository({ ...tiny, revisions: { main: commit, "refs/pr/1": old } })
        const model = yield* hub.pull({ source, repo, tag: "refs/pr/1", directory, onProgress })
        assert.deepStrictEqual(model, { ...pulled, name: "acme/tiny:refs/pr/1", revision: old })
        assert.deepStrictEqual(server.requests[0]?.url, "/api/models/acme/tiny/revision/refs%2Fpr%2F1")
        assert.isTrue(server.requests.slice(1).every(({ host, url }) => host === "storage" || url.includes(old)))
      }))

    it.effect("again fetches nothing", () =>
      Effect.gen(function*() {
        const { directory, hub, onProgress, server } = yield* setup()
        server.addRepository(tiny)
        const first = yield* hub.pull({ source, repo, directory, onProgress })
        const before = server.requests.length
        assert.deepStrictEqual(yield* hub.pull({ source, repo, directory, onProgress }), first)
        assert.isTrue(server.requests.slice(before).every(({ url }) => url.startsWith("/api/")))
      }))

    it.effect("goes on after a broken connection", () =>
      Effect.gen(function*() {
        const { directory, hub, onProgress, server } = yield* setup()
        server.addRepository(tiny)
        server.fault("model.safetensors", { kind: "cut", after: 50_000 })
        server.fault("config.json", { kind: "answer", status: 503 })
        yield* hub.pull({ source, repo, directory, onProgress })
        assert.deepStrictEqual(yield* filesBelow(directory), { "config.json": config, "model.safetensors": weights })
      }))

    it.effect("checks files in large storage by SHA-256, and the others by Git's checksum", () =>
      Effect.gen(function*() {
        for (const path of ["model.safetensors", "config.json"]) {
          const { directory, hub, onProgress, server } = yield* setup()
          server.addRepository(tiny)
          server.fault(path, { kind: "corrupt" })
          const reason = yield* reasonOf(hub.pull({ source, repo, directory, onProgress }), source, repo)
          assert.instanceOf(reason, ChecksumMismatch)
          assert.strictEqual(reason.path, path)
        }
      }))

    it.effect("reads a listing of several pages", () =>
      Effect.gen(function*() {
        const { directory, hub, onProgress, server } = yield* setup()
        server.pageSize = 2
        const files = Array.from({ length: 5 }, (_, i) => ({ path: `part-${i}.json`, content: bytes(10, i) }))
        server.addRepository({ ...tiny, files: [...files, { path: "model.safetensors", content: weights }] })
        const model = yield* hub.pull({ source, repo, directory, onProgress })
        assert.strictEqual(model.files.length, 6)
        assert.strictEqual(server.requests.filter(({ url }) => url.includes("/tree/")).length, 3)
      }))

    it.effect("refuses a file that would land outside of the folder", () =>
      Effect.gen(function*() {
        const { directory, hub, onProgress, server } = yield* setup()
        server.addRepository({ ...tiny, files: [...tiny.files, { path: "../evil.json", content: config }] })
        const reason = yield* reasonOf(hub.pull({ source, repo, directory, onProgress }), source, repo)
        assert.deepStrictEqual(reason, new UnsafePath({ path: "../evil.json" }))
        assert.deepStrictEqual(yield* filesBelow(directory), {})
      }))
  })

  describe("a repository of quantisations", () => {
    it.effect("gives Q4_K_M, or the one that the tag chooses, with what the hub knows of its shape", () =>
      Effect.gen(function*() {
        const { directory, hub, onProgress, server } = yield* setup()
        server.addRepository(gguf)
        const usual = yield* hub.pull({ source, repo, directory: `${directory}/a`, onProgress })
        assert.deepInclude(usual, {
          name: repo,
          type: "embedding",
          format: "gguf",
          shape: { weightBytes: 1000, parameterCount: 500, contextLength: 2048 }
        })
        assert.deepStrictEqual(Object.keys(yield* filesBelow(`${directory}/a`)), ["config.json", "tiny-Q4_K_M.gguf"])
        const chosen = yield* hub.pull({ source, repo, tag: "q8_0", directory: `${directory}/b`, onProgress })
        assert.deepInclude(chosen, { name: "acme/tiny:q8_0", checksum: undefined, size: 2000 + config.length })
        assert.deepStrictEqual(Object.keys(yield* filesBelow(`${directory}/b`)), [
          "config.json",
          "tiny-Q8_0-00001-of-00002.gguf",
          "tiny-Q8_0-00002-of-00002.gguf"
        ])
      }))

    it.effect("names the choices when the tag is none of them", () =>
      Effect.gen(function*() {
        const { hub, server } = yield* setup()
        server.addRepository(gguf)
        const reason = yield* reasonOf(hub.describe({ source, repo, tag: "Q5_0" }), source, repo)
        const choices = ["tiny-Q2_K", "tiny-Q4_K_M", "tiny-Q8_0"]
        assert.deepStrictEqual(reason, new RevisionNotFound({ revision: "Q5_0", choices }))
        assert.match(reason.message, /Choose one of: tiny-Q2_K, tiny-Q4_K_M, tiny-Q8_0\.$/)
      }))
  })

  it.effect("describe tells what a pull would bring, and fetches no file", () =>
    Effect.gen(function*() {
      const { hub, server } = yield* setup()
      server.addRepository(tiny)
      // Of what is not in large storage the hub has no SHA-256.
      const files = pulled.files.map((file) =>
        file.path === "config.json" ? { path: file.path, size: file.size } : file
      )
      assert.deepStrictEqual(yield* hub.describe({ source, repo }), { ...pulled, files })
      assert.isTrue(server.requests.every(({ url }) => url.startsWith("/api/")))
    }))

  it.effect("the type is a guess, and says so, when nothing tells it", () =>
    Effect.gen(function*() {
      const { hub, server } = yield* setup()
      const describe = (more: Partial<HubServer.Repository>) => {
        server.addRepository({ repo, files: tiny.files, ...more })
        return Effect.map(hub.describe({ source, repo }), ({ tags, type }) => ({ tags, type }))
      }
      assert.deepStrictEqual(yield* describe({ pipeline_tag: "text-ranking" }), { tags: [], type: "rerank" })
      assert.deepStrictEqual(
        yield* describe({ pipeline_tag: "other", info: { config: { architectures: ["WhisperForCTC"] } } }),
        { tags: [], type: "asr" }
      )
      assert.deepStrictEqual(yield* describe({}), { tags: ["type:guessed"], type: "llm" })
    }))

  describe("the token", () => {
    const token = Redacted.make("hf_secret")

    it.effect("goes to the hub and never to where it redirects, over every client", () =>
      Effect.forEach(
        [NodeHttpClient.layerUndici, NodeHttpClient.layerNodeHttp, NodeHttpClient.layerFetch],
        (client) =>
          Effect.gen(function*() {
            const { directory, hub, onProgress, server } = yield* setup({ huggingface: { token } })
            server.addRepository({ ...tiny, gated: "hf_secret" })
            server.fault("model.safetensors", { kind: "cut", after: 1000 })
            yield* hub.pull({ source, repo, directory, onProgress })
            const sent = (host: string) =>
              new Set(
                server.requests.filter((request) => request.host === host).map((request) =>
                  request.headers.authorization
                )
              )
            assert.deepStrictEqual(sent("hub"), new Set(["Bearer hf_secret"]))
            assert.deepStrictEqual(sent("storage"), new Set([undefined]))
          }).pipe(Effect.scoped, Effect.provide(Layer.merge(client, NodeServices.layer)))
      ))

    it.effect("does not go to a mirror, which gets every request instead of the hub", () =>
      Effect.gen(function*() {
        const { hub, server } = yield* setup({ huggingface: { token } })
        const mirrored = yield* setup()
        mirrored.server.addRepository(tiny)
        mirrored.server.pageSize = 1
        const { directory, onProgress } = mirrored
        // Mirrors may live below a path of their own.
        const mirror = `${mirrored.server.url}/mirror/hf/`
        assert.deepStrictEqual(yield* hub.pull({ source, repo, directory, onProgress, mirror }), pulled)
        assert.deepStrictEqual(server.requests, [])
        for (const { headers, host, url } of mirrored.server.requests) {
          assert.isUndefined(headers.authorization)
          assert.isTrue(host === "storage" || url.startsWith("/mirror/hf/"), url)
        }
      }))

    it.effect("is asked for by a gated repository", () =>
      Effect.gen(function*() {
        const { directory, hub, onProgress, server } = yield* setup()
        server.addRepository({ ...tiny, gated: "hf_secret" })
        const reason = yield* reasonOf(hub.pull({ source, repo, directory, onProgress }), source, repo)
        assert.deepStrictEqual(reason, new Gated({ url: `${server.url}/acme/tiny` }))
      }))

    it.effect("is named when it is refused", () =>
      Effect.gen(function*() {
        const { hub, server } = yield* setup({ huggingface: { token } })
        const detail = "Invalid credentials in Authorization header"
        server.fault("/api/models/acme/tiny/revision/main", {
          kind: "answer",
          status: 401,
          headers: { "x-error-message": detail }
        })
        const reason = yield* reasonOf(hub.describe({ source, repo }), source, repo)
        assert.deepStrictEqual(reason, new Unauthorized({ detail }))
      }))
  })

  describe("failures", () => {
    it.effect("of repositories that are not there", () =>
      Effect.gen(function*() {
        const { hub, server } = yield* setup()
        assert.deepStrictEqual(
          yield* reasonOf(hub.describe({ source, repo, tag: "v1" }), source, repo),
          new RepoNotFound({ repo })
        )
        const before = server.requests.length
        for (const repo of ["", "a/b/c", "../api", "a/..", "a b", "a?b", "a/b#c"]) {
          const reason = yield* reasonOf(hub.describe({ source, repo }), source, repo)
          assert.deepStrictEqual(reason, new RepoNotFound({ repo }))
        }
        assert.strictEqual(server.requests.length, before)
      }))

    it.effect("of a repository without weights", () =>
      Effect.gen(function*() {
        const { hub, server } = yield* setup()
        server.addRepository({ ...tiny, files: [{ path: "README.md", content: bytes(10) }] })
        const reason = yield* reasonOf(hub.describe({ source, repo }), source, repo)
        assert.deepStrictEqual(reason, new FileNotFound({ path: "*.{safetensors,gguf,bin,pt,pth,onnx,engine,plan}" }))
      }))

    it.effect("of a file that vanished between listing and download", () =>
      Effect.gen(function*() {
        const { directory, hub, onProgress, server } = yield* setup()
        server.addRepository(tiny)
        const headers = { "x-error-code": "EntryNotFound", "x-error-message": "Entry not found" }
        server.fault("config.json", { kind: "answer", status: 404, headers })
        const reason = yield* reasonOf(hub.pull({ source, repo, directory, onProgress }), source, repo)
        assert.deepStrictEqual(reason, new FileNotFound({ path: "config.json" }))
      }))

    it.effect("of a disabled repository, and answers that are not a hub's", () =>
      Effect.gen(function*() {
        const { hub, server } = yield* setup()
        const route = "/api/models/acme/tiny/revision/main"
        server.fault(route, {
          kind: "answer",
          status: 403,
          headers: { "x-error-code": "DisabledRepo", "x-error-message": "Access to this resource is disabled." }
        })
        assert.deepStrictEqual(
          yield* reasonOf(hub.describe({ source, repo }), source, repo),
          new Upstream({ status: 403, detail: "Access to this resource is disabled." })
        )
        const bodies = ["<html>", JSON.stringify({ id: repo }), JSON.stringify({ id: repo, sha: "../../other" })]
        for (const body of bodies) {
          server.fault(route, { kind: "answer", status: 200, body })
          assert.instanceOf(yield* reasonOf(hub.describe({ source, repo }), source, repo), InvalidResponse)
        }
      }))
  })

  describe("search", () => {
    const models: ReadonlyArray<HubServer.Repository> = [
      { repo: "acme/tiny-chat", pipeline_tag: "text-generation", downloads: 10, tags: ["x"], files: [] },
      { repo: "acme/tiny-t5", pipeline_tag: "text2text-generation", downloads: 30, files: [] },
      { repo: "acme/tiny-whisper", pipeline_tag: "automatic-speech-recognition", downloads: 20, files: [] },
      { repo: "acme/tiny-other", files: [] },
      { repo: "acme/large", pipeline_tag: "text-generation", downloads: 99, files: [] }
    ]

    it.effect("gives names, types and downloads, the most downloaded first", () =>
      Effect.gen(function*() {
        const { hub, server } = yield* setup()
        for (const model of models) server.addRepository(model)
        const results = yield* hub.search({ source, query: "tiny", limit: 20 })
        assert.deepStrictEqual(results.map(({ downloads, id, type }) => [id, type, downloads]), [
          ["acme/tiny-t5", "llm", 30],
          ["acme/tiny-whisper", "asr", 20],
          ["acme/tiny-chat", "llm", 10],
          ["acme/tiny-other", "llm", 0]
        ])
        assert.deepStrictEqual(results[2], {
          id: "acme/tiny-chat",
          name: "tiny-chat",
          type: "llm",
          source,
          description: "text-generation, transformers",
          downloads: 10,
          tags: ["x"]
        })
      }))

    it.effect("asks by every pipeline tag of a type, and merges", () =>
      Effect.gen(function*() {
        const { hub, server } = yield* setup()
        for (const model of models) server.addRepository(model)
        const results = yield* hub.search({ source, query: "tiny", limit: 20, type: "llm" })
        assert.deepStrictEqual(results.map(({ id }) => id), ["acme/tiny-t5", "acme/tiny-chat"])
        const tags = server.requests.map(({ url }) => new URL(url, server.url).searchParams.get("pipeline_tag"))
        assert.sameMembers(tags, ["text-generation", "text2text-generation"])
      }))

    it.effect("follows pages until there are enough, and no further", () =>
      Effect.gen(function*() {
        const { hub, server } = yield* setup()
        server.pageSize = 2
        for (const model of models) server.addRepository(model)
        assert.strictEqual((yield* hub.search({ source, query: "", limit: 3 })).length, 3)
        assert.strictEqual(server.requests.length, 2)
        assert.deepStrictEqual(yield* hub.search({ source, query: "nothing", limit: 3 }), [])
      }))

    it.effect("encodes what is asked for", () =>
      Effect.gen(function*() {
        const { hub, server } = yield* setup()
        yield* hub.search({ source, query: "a&limit=9#ü", limit: 3 })
        assert.strictEqual(new URL(server.requests[0]?.url ?? "", server.url).searchParams.get("search"), "a&limit=9#ü")
      }))
  })

  it.effect("remove has nothing to do", () =>
    Effect.gen(function*() {
      const { hub, server } = yield* setup()
      yield* hub.remove({ source, repo })
      assert.deepStrictEqual(server.requests, [])
    }))
})
