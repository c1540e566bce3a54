import { assert, describe, it } from "@effect/vitest"
import { Effect, Redacted } from "effect"
import type { HubModel } from "../../src/model/Hub.ts"
import {
  ChecksumMismatch,
  FileNotFound,
  InvalidResponse,
  RepoNotFound,
  RevisionNotFound,
  Unauthorized,
  Upstream
} from "../../src/model/HubError.ts"
import { bytes, filesBelow, layer, reasonOf, setup, text } from "./hubs.ts"
import * as HubServer from "./HubServer.ts"

const source = "modelscope"
const repo = "acme/tiny"
const weights = bytes(50_000)
const config = text({ model_type: "qwen2" })
const commit = "c".repeat(40)
const tiny: HubServer.Repository = {
  repo,
  pipeline_tag: "text-generation",
  tags: ["chat"],
  revisions: { master: commit, "v1.0": "d".repeat(40) },
  files: [
    { path: "config.json", content: config },
    { path: "model.safetensors", content: weights, lfs: true },
    { path: "sub dir/ä&b.json", content: bytes(7) },
    { path: "README.md", content: bytes(10) }
  ]
}
const pulled: HubModel = {
  name: repo,
  type: "llm",
  format: "safetensors",
  tags: ["chat"],
  revision: commit,
  files: [
    { path: "model.safetensors", size: weights.length, sha256: HubServer.sha256(weights) },
    { path: "config.json", size: config.length, sha256: HubServer.sha256(config) },
    { path: "sub dir/ä&b.json", size: 7, sha256: HubServer.sha256(bytes(7)) }
  ],
  size: weights.length + config.length + 7,
  checksum: `sha256:${HubServer.sha256(weights)}`,
  shape: { weightBytes: weights.length }
}
const envelope = (Code: number, Message: string) => JSON.stringify({ Code, Message, RequestId: "r", Success: false })

it.layer(layer)("ModelScope", (it) => {
  describe("pull", () => {
    it.effect("fetches weights and what is needed to use them", () =>
      Effect.gen(function*() {
        const { directory, hub, onProgress, progress, server } = yield* setup()
        server.addRepository(tiny)
        assert.deepStrictEqual(yield* hub.pull({ source, repo, directory, onProgress }), pulled)
        assert.deepStrictEqual(yield* filesBelow(directory), {
          "config.json": config,
          "model.safetensors": weights,
          "sub dir/ä&b.json": bytes(7)
        })
        assert.strictEqual(progress.at(-1)?.bytes_done, pulled.size)
      }))

    it.effect("goes on after a broken connection, and again fetches nothing", () =>
      Effect.gen(function*() {
        const { directory, hub, onProgress, server } = yield* setup()
        server.addRepository(tiny)
        server.fault("model.safetensors", { kind: "cut", after: 20_000 })
        yield* hub.pull({ source, repo, directory, onProgress })
        const before = server.requests.length
        assert.deepStrictEqual(yield* hub.pull({ source, repo, directory, onProgress }), pulled)
        assert.isTrue(server.requests.slice(before).every(({ url }) => !url.includes("FilePath")))
      }))

    it.effect("takes everything from the revision of the tag", () =>
      Effect.gen(function*() {
        const { directory, hub, onProgress, server } = yield* setup()
        server.addRepository(tiny)
        const model = yield* hub.pull({ source, repo, tag: "v1.0", directory, onProgress })
        assert.deepStrictEqual(model, { ...pulled, name: "acme/tiny:v1.0", revision: "d".repeat(40) })
        assert.isTrue(server.requests.every(({ url }) => url.includes("Revision=v1.0")))
      }))

    it.effect("takes the quantisation that the tag chooses, or names the choices", () =>
      Effect.gen(function*() {
        const { directory, hub, onProgress, server } = yield* setup()
        const files = ["a-q4_0.gguf", "a-q8_0.gguf"].map((path, i) => ({ path, content: bytes(100, i + 1) }))
        server.addRepository({ ...tiny, files })
        const model = yield* hub.pull({ source, repo, tag: "Q8_0", directory, onProgress })
        assert.deepStrictEqual(model.files.map(({ path }) => path), ["a-q8_0.gguf"])
        assert.deepStrictEqual(
          yield* reasonOf(hub.describe({ source, repo, tag: "Q1" }), source, repo),
          new RevisionNotFound({ revision: "Q1", choices: ["a-q4_0", "a-q8_0"] })
        )
      }))

    it.effect("checks what it gets", () =>
      Effect.gen(function*() {
        const { directory, hub, onProgress, server } = yield* setup()
        server.addRepository(tiny)
        server.fault("config.json", { kind: "corrupt" })
        const reason = yield* reasonOf(hub.pull({ source, repo, directory, onProgress }), source, repo)
        assert.instanceOf(reason, ChecksumMismatch)
      }))
  })

  it.effect("the token goes along as a cookie, but not to where the hub redirects", () =>
    Effect.gen(function*() {
      const { directory, hub, onProgress, server } = yield* setup({ modelscope: { token: Redacted.make("ms_secret") } })
      server.addRepository(tiny)
      const location = `${server.storageUrl}/acme/tiny/model.safetensors`
      server.fault("model.safetensors", { kind: "answer", status: 302, headers: { location } })
      assert.deepStrictEqual(yield* hub.pull({ source, repo, directory, onProgress }), pulled)
      const cookies = (host: string) =>
        new Set(server.requests.filter((request) => request.host === host).map(({ headers }) => headers.cookie))
      assert.deepStrictEqual(cookies("hub"), new Set(["m_session_id=ms_secret"]))
      assert.deepStrictEqual(cookies("storage"), new Set([undefined]))
    }))

  it.effect("describe tells what a pull would bring", () =>
    Effect.gen(function*() {
      const { hub, server } = yield* setup()
      server.addRepository(tiny)
      assert.deepStrictEqual(yield* hub.describe({ source, repo }), pulled)
      server.addRepository({ repo, files: tiny.files })
      assert.deepInclude(yield* hub.describe({ source, repo }), { type: "llm", tags: ["type:guessed"] })
    }))

  describe("failures", () => {
    it.effect("of what is not there", () =>
      Effect.gen(function*() {
        const { directory, hub, onProgress, server } = yield* setup()
        assert.deepStrictEqual(
          yield* reasonOf(hub.describe({ source, repo }), source, repo),
          new RepoNotFound({ repo })
        )
        server.addRepository(tiny)
        server.fault("config.json", { kind: "answer", status: 404, body: envelope(10010205001, "file not found") })
        assert.deepStrictEqual(
          yield* reasonOf(hub.pull({ source, repo, directory, onProgress }), source, repo),
          new FileNotFound({ path: "config.json" })
        )
      }))

    it.effect("that come under status 200", () =>
      Effect.gen(function*() {
        const { hub, server } = yield* setup()
        const cases = [
          [envelope(10010205001, "信息不存在"), new RepoNotFound({ repo })],
          [
            envelope(10010101004, "get model info failed, err: unauthorized permission"),
            new Unauthorized({ detail: "get model info failed, err: unauthorized permission" })
          ],
          [envelope(500, "boom"), new Upstream({ status: 200, detail: "boom" })]
        ] as const
        for (const [body, reason] of cases) {
          server.fault("/api/v1/models/acme/tiny", { kind: "answer", status: 200, body })
          assert.deepStrictEqual(yield* reasonOf(hub.describe({ source, repo }), source, repo), reason)
        }
      }))

    it.effect("of answers in another form", () =>
      Effect.gen(function*() {
        const { hub, server } = yield* setup()
        for (const body of ["<html>", "[]", JSON.stringify({ Code: "200" }), JSON.stringify({ Code: 200, Data: [] })]) {
          server.fault("/api/v1/models/acme/tiny", { kind: "answer", status: 200, body })
          assert.instanceOf(yield* reasonOf(hub.describe({ source, repo }), source, repo), InvalidResponse)
        }
      }))
  })

  describe("search", () => {
    it.effect("gives names, types and downloads, over pages, of one type when that is asked for", () =>
      Effect.gen(function*() {
        const { hub, server } = yield* setup()
        for (let i = 0; i < 120; i++) {
          const pipeline_tag = i % 60 === 59 ? "text-to-speech" : "text-generation"
          server.addRepository({ repo: `acme/m${i}`, pipeline_tag, downloads: 1000 - i, files: [] })
        }
        const results = yield* hub.search({ source, query: "m", limit: 60 })
        assert.deepStrictEqual(results.map(({ id }) => id), Array.from({ length: 60 }, (_, i) => `acme/m${i}`))
        assert.deepStrictEqual(results[0], {
          id: "acme/m0",
          name: "m0",
          type: "llm",
          source,
          description: "text-generation",
          downloads: 1000,
          tags: []
        })
        const speech = yield* hub.search({ source, query: "m", limit: 60, type: "tts" })
        assert.deepStrictEqual(speech.map(({ id }) => id), ["acme/m59", "acme/m119"])
        assert.deepStrictEqual(yield* hub.search({ source, query: "nothing", limit: 3 }), [])
      }))

    it.effect("fails when there is no data in the answer", () =>
      Effect.gen(function*() {
        const { hub, server } = yield* setup()
        const body = JSON.stringify({ success: false, message: "maintenance" })
        server.fault("/openapi/v1/models", { kind: "answer", status: 200, body })
        assert.deepStrictEqual(
          yield* reasonOf(hub.search({ source, query: "m", limit: 3 }), source),
          new Upstream({ status: 200, detail: "maintenance" })
        )
      }))
  })
})
