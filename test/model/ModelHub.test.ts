import { assert, describe, it } from "@effect/vitest"
import { ConfigProvider, Effect, Layer, Schedule, Schema } from "effect"
import * as HubError from "../../src/model/HubError.ts"
import * as ModelHub from "../../src/model/ModelHub.ts"
import { layer, setup } from "./hubs.ts"
import * as HubServer from "./HubServer.ts"

const unavailable = { kind: "answer", status: 404 } as const

it.layer(layer)("ModelHub", (it) => {
  describe("a search of all hubs", () => {
    const withModels = Effect.fnUntraced(function*() {
      const all = yield* setup()
      const { directory, hub, onProgress, server } = all
      server.addRepository({ repo: "acme/tiny-a", downloads: 10, files: [] })
      server.addRepository({ repo: "acme/tiny-b", downloads: 20, files: [] })
      server.addOllamaModel({ name: "tiny:latest", layers: [1] })
      yield* hub.pull({ source: "ollama", repo: "tiny", directory, onProgress })
      return all
    })
    const search = (hub: ModelHub.ModelHub["Service"], limit = 10) =>
      Effect.map(hub.search({ query: "tiny", limit }), (results) => results.map(({ id, source }) => `${source} ${id}`))

    it.effect("merges by downloads", () =>
      Effect.gen(function*() {
        const { hub } = yield* withModels()
        const results = [
          "huggingface acme/tiny-b",
          "modelscope acme/tiny-b",
          "huggingface acme/tiny-a",
          "modelscope acme/tiny-a",
          "ollama tiny"
        ]
        assert.deepStrictEqual(yield* search(hub), results)
        assert.deepStrictEqual(yield* search(hub, 2), results.slice(0, 2))
      }))

    it.effect("leaves out the hubs that fail", () =>
      Effect.gen(function*() {
        const { hub, server } = yield* withModels()
        server.fault("/api/models", { kind: "answer", status: 200, body: "<html>" })
        server.fault("/openapi/v1/models", unavailable)
        assert.deepStrictEqual(yield* search(hub), ["ollama tiny"])
      }))

    it.effect("fails when all of them do", () =>
      Effect.gen(function*() {
        const { hub, server } = yield* withModels()
        server.fault("/api/models", { kind: "answer", status: 429, headers: { "retry-after": "99" } })
        server.fault("/openapi/v1/models", unavailable)
        server.fault("/api/tags", unavailable)
        assert.deepStrictEqual(
          yield* Effect.flip(search(hub)),
          new HubError.HubError({
            source: "huggingface",
            repo: undefined,
            reason: new HubError.RateLimited({ retry_after_seconds: 99 })
          })
        )
      }))
  })

  describe("layerConfig", () => {
    const describeAll = (env: (url: string) => Record<string, string>) =>
      Effect.scoped(Effect.gen(function*() {
        const server = yield* Effect.acquireRelease(
          Effect.promise(() => HubServer.start()),
          (server) => Effect.promise(() => server.close())
        )
        yield* Effect.gen(function*() {
          const hub = yield* ModelHub.ModelHub
          for (const source of ["huggingface", "modelscope", "ollama"] as const) {
            yield* Effect.flip(hub.describe({ source, repo: "acme/tiny" }))
          }
        }).pipe(
          Effect.provide(
            ModelHub.layerConfig({ retry: Schedule.recurs(0) }).pipe(
              Layer.provide(ConfigProvider.layer(ConfigProvider.fromUnknown(env(server.url))))
            )
          )
        )
        return server.requests.map(({ headers, url }) => [url, headers.authorization ?? headers.cookie])
      }))

    it.effect("takes addresses and tokens", () =>
      Effect.gen(function*() {
        const requests = yield* describeAll((url) => ({
          HF_ENDPOINT: `${url}/`,
          HF_TOKEN: "hf_secret\n",
          MODELSCOPE_DOMAIN: url,
          MODELSCOPE_API_TOKEN: "ms_secret",
          OLLAMA_HOST: new URL(url).host
        }))
        assert.deepStrictEqual(requests, [
          ["/api/models/acme/tiny/revision/main", "Bearer hf_secret"],
          ["/api/v1/models/acme/tiny?Revision=master", "m_session_id=ms_secret"],
          ["/api/tags", undefined]
        ])
      }))

    it.effect("takes what is empty as not set", () =>
      Effect.gen(function*() {
        const requests = yield* describeAll((url) => ({
          HF_ENDPOINT: url,
          HF_TOKEN: " ",
          MODELSCOPE_DOMAIN: url,
          OLLAMA_HOST: url
        }))
        assert.deepStrictEqual(requests.map(([, secret]) => secret), [undefined, undefined, undefined])
      }))
  })
})

describe("HubError", () => {
  const reasons: ReadonlyArray<readonly [HubError.HubReason, boolean]> = [
    [new HubError.RepoNotFound({ repo: "a/b" }), false],
    [new HubError.RevisionNotFound({ revision: "x", choices: [] }), false],
    [new HubError.RevisionNotFound({ revision: "x", choices: ["y", "z"] }), false],
    [new HubError.FileNotFound({ path: "x" }), false],
    [new HubError.Gated({ url: "https://hub.test/a/b" }), false],
    [new HubError.Unauthorized({ detail: "HTTP 401" }), false],
    [new HubError.RateLimited({ retry_after_seconds: 3 }), true],
    [new HubError.RateLimited({}), true],
    [new HubError.Network({ host: "hub.test", description: "ECONNRESET" }), true],
    [new HubError.InvalidAddress({ address: "ftp://hub.test" }), false],
    [new HubError.Timeout({ host: "hub.test", waiting_for: "data", after_seconds: 60 }), true],
    [new HubError.ChecksumMismatch({ path: "x", expected: "sha256:a", actual: "sha256:b" }), true],
    [new HubError.SizeMismatch({ path: "x", expected: 1, actual: 2 }), true],
    [new HubError.UnsafePath({ path: "../x" }), false],
    [new HubError.DiskFull({ path: "/x" }), false],
    [new HubError.Disk({ path: "/x", description: "EACCES" }), false],
    [new HubError.Upstream({ status: 503, detail: "down" }), true],
    [new HubError.Upstream({ status: 410, detail: "gone" }), false],
    [new HubError.InvalidResponse({ host: "hub.test", description: "no JSON" }), false]
  ]

  it.effect("is the same after encoding and decoding, whatever its reason", () =>
    Effect.forEach(reasons, ([reason, retryable]) =>
      Effect.gen(function*() {
        const error = new HubError.HubError({ source: "huggingface", repo: "a/b", reason })
        const json = JSON.parse(JSON.stringify(yield* Schema.encodeEffect(HubError.HubError)(error)))
        const decoded = yield* Schema.decodeUnknownEffect(HubError.HubError)(json)
        assert.deepStrictEqual(decoded, error)
        assert.strictEqual(decoded.message, error.message)
        assert.isTrue(error.message.startsWith(`huggingface a/b: ${reason.message}`))
        assert.strictEqual(decoded.retryable, retryable, reason._tag)
      })))
})
