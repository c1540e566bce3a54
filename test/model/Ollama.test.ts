import { assert, describe, it } from "@effect/vitest"
import { Effect, Fiber, Schedule } from "effect"
import { TestClock } from "effect/testing"
import type { HubModel } from "../../src/model/Hub.ts"
import {
  ChecksumMismatch,
  DiskFull,
  HubError,
  type HubReason,
  InvalidResponse,
  Network,
  RepoNotFound,
  Unauthorized,
  Upstream
} from "../../src/model/HubError.ts"
import * as ModelHub from "../../src/model/ModelHub.ts"
import * as Ollama from "../../src/model/Ollama.ts"
import type { Progress } from "../../src/model/Progress.ts"
import { layer, reasonOf, setup } from "./hubs.ts"
import * as HubServer from "./HubServer.ts"

const source = "ollama"
const repo = "tiny"
const tag = "1b"
const model: HubServer.OllamaModel = {
  name: "tiny:1b",
  layers: [1000, 500, 10],
  show: {
    details: { format: "gguf", family: "llama", parameter_size: "1B", quantization_level: "Q8_0" },
    capabilities: ["completion", "tools"],
    model_info: {
      "general.architecture": "llama",
      "general.parameter_count": 1_000_000,
      "llama.block_count": 16,
      "llama.attention.head_count": 32,
      "llama.attention.head_count_kv": 8,
      "llama.embedding_length": 2048,
      "llama.context_length": 131_072,
      "tokenizer.ggml.tokens": null
    }
  }
}
const pulled: HubModel = {
  name: "tiny:1b",
  type: "llm",
  format: "gguf",
  tags: ["llama", "1B", "Q8_0"],
  revision: HubServer.ollamaDigest("tiny:1b"),
  files: [],
  size: 1510,
  checksum: `sha256:${HubServer.ollamaDigest("tiny:1b")}`,
  shape: {
    weightBytes: 1510,
    parameterCount: 1_000_000,
    contextLength: 131_072,
    layers: 16,
    kvHeads: 8,
    headDim: 64
  }
}

it.layer(layer)("Ollama", (it) => {
  describe("pull", () => {
    it.effect("has Ollama pull, sums its layers, and gives what it holds then", () =>
      Effect.gen(function*() {
        const { directory, fs, hub, onProgress, progress, server } = yield* setup()
        server.addOllamaModel(model)
        assert.deepStrictEqual(yield* hub.pull({ source, repo, tag, directory, onProgress }), pulled)
        assert.deepStrictEqual(JSON.parse(server.requests[0]?.body ?? ""), { model: "tiny:1b", stream: true })
        assert.deepStrictEqual(yield* fs.readDirectory(directory), [])
        assert.strictEqual(progress[0]?.status, "pulling manifest")
        // Each layer when it is done; the clock stands still, so nothing in between.
        assert.deepStrictEqual(
          progress.map(({ bytes_done, bytes_total, progress }) => [bytes_done, bytes_total, Math.round(progress)]),
          [[0, 0, 0], [1000, 1000, 100], [1500, 1500, 100], [1510, 1510, 100], [1510, 1510, 100]]
        )
      }))

    it.effect("asks again after a broken, an ended and a torn answer", () =>
      Effect.gen(function*() {
        const { directory, hub, onProgress, server } = yield* setup()
        server.addOllamaModel(model)
        server.pullFault(
          { kind: "cut", after: 3 },
          { kind: "end", after: 1 },
          { kind: "torn", after: 2, text: "{\"status\":\"pul" }
        )
        assert.deepStrictEqual(yield* hub.pull({ source, repo, tag, directory, onProgress }), pulled)
        assert.strictEqual(server.requests.filter(({ url }) => url === "/api/pull").length, 4)
      }))

    it.effect("fails by an error line, although the status is 200", () =>
      Effect.gen(function*() {
        const { directory, hub, onProgress, server } = yield* setup()
        server.addOllamaModel(model)
        const cases: ReadonlyArray<readonly [string, HubReason]> = [
          ["pull model manifest: file does not exist", new RepoNotFound({ repo: "tiny:1b" })],
          ["invalid model name", new RepoNotFound({ repo: "tiny:1b" })],
          ["write /srv/x: no space left on device", new DiskFull({ path: "Ollama's model store" })],
          ["unauthorized: access denied", new Unauthorized({ detail: "unauthorized: access denied" })],
          [
            "digest mismatch, file must be downloaded again: want a, got b",
            new ChecksumMismatch({ path: "tiny:1b", expected: "the digest of the registry", actual: "another" })
          ],
          [
            "this model needs a newer version",
            new Upstream({ status: 200, detail: "this model needs a newer version" })
          ]
        ]
        for (const [message, reason] of cases) {
          const before = server.requests.length
          server.pullFault({ kind: "error", after: 2, message })
          const pull = hub.pull({ source, repo, tag, directory, onProgress })
          assert.deepStrictEqual(yield* reasonOf(pull, source, repo), reason)
          assert.strictEqual(server.requests.length, before + 1)
        }
        assert.deepStrictEqual(yield* hub.search({ source, query: "tiny", limit: 10 }), [])
      }))

    it.effect("asks again when Ollama could not reach its registry, and then gives up", () =>
      Effect.gen(function*() {
        const { directory, hub, onProgress, server } = yield* setup()
        server.addOllamaModel(model)
        const fault = { kind: "error", after: 1, message: "dial tcp: lookup registry.ollama.ai: no such host" } as const
        server.pullFault(fault, fault, fault, fault)
        const reason = yield* reasonOf(hub.pull({ source, repo, tag, directory, onProgress }), source, repo)
        assert.deepStrictEqual(
          reason,
          new Network({ host: new URL(server.url).host, description: `Ollama says: ${fault.message}` })
        )
        assert.strictEqual(server.requests.length, 4)
      }))

    it.effect("fails for a line in another form", () =>
      Effect.gen(function*() {
        const { directory, hub, onProgress, server } = yield* setup()
        server.addOllamaModel(model)
        for (const line of ["<html>", "[]", "{\"status\":1}", "{\"digest\":\"a\",\"total\":-1}"]) {
          server.pullFault({ kind: "line", after: 1, line })
          const pull = hub.pull({ source, repo, tag, directory, onProgress })
          assert.instanceOf(yield* reasonOf(pull, source, repo), InvalidResponse, line)
        }
      }))

    it.effect("of a model that its library does not have fails", () =>
      Effect.gen(function*() {
        const { directory, hub, onProgress } = yield* setup()
        const reason = yield* reasonOf(hub.pull({ source, repo: "nothing", directory, onProgress }), source, "nothing")
        assert.deepStrictEqual(reason, new RepoNotFound({ repo: "nothing" }))
      }))

    it.effect("that is interrupted closes the connection, and the next one goes on", () =>
      Effect.gen(function*() {
        const { directory, hub, onProgress, progress, server } = yield* setup()
        server.addOllamaModel(model)
        server.pullFault({ kind: "stall", after: 8 })
        const fiber = yield* Effect.forkChild(hub.pull({ source, repo, tag, directory, onProgress }))
        yield* Effect.promise(server.stalled)
        yield* Fiber.interrupt(fiber)
        yield* Effect.promise(server.abandoned)
        progress.length = 0
        const everySecond = (report: Progress) => Effect.andThen(onProgress(report), TestClock.adjust("1 second"))
        assert.deepStrictEqual(yield* hub.pull({ source, repo, tag, directory, onProgress: everySecond }), pulled)
        // Of 1510 bytes Ollama had 1125 from before; those did not come over the network this time.
        assert.deepStrictEqual(progress.at(-1), {
          status: "pulled",
          progress: 100,
          bytes_total: 1510,
          bytes_done: 1510,
          speed: Math.round(385 / (progress.length - 1))
        })
      }))

    it.effect("is told the registry that is the mirror", () =>
      Effect.gen(function*() {
        const { directory, hub, onProgress, server } = yield* setup()
        const mirror = "http://registry.test:5000/"
        const name = "registry.test:5000/library/tiny:1b"
        server.addOllamaModel({ ...model, name })
        assert.strictEqual((yield* hub.pull({ source, repo, tag, mirror, directory, onProgress })).name, name)
        assert.deepStrictEqual(JSON.parse(server.requests[0]?.body ?? ""), {
          model: name,
          stream: true,
          insecure: true
        })
      }))
  })

  describe("describe", () => {
    it.effect("gives what Ollama holds", () =>
      Effect.gen(function*() {
        const { directory, hub, onProgress, server } = yield* setup()
        const latest = { ...model, name: "tiny:latest", show: {} }
        server.addOllamaModel(model)
        server.addOllamaModel(latest)
        yield* hub.pull({ source, repo, tag, directory, onProgress })
        yield* hub.pull({ source, repo, directory, onProgress })
        assert.deepStrictEqual(yield* hub.describe({ source, repo, tag }), pulled)
        assert.deepInclude(yield* hub.describe({ source, repo: "Tiny" }), {
          name: "tiny",
          type: "llm",
          tags: ["type:guessed"]
        })
        assert.deepStrictEqual(
          yield* reasonOf(hub.describe({ source, repo, tag: "2b" }), source, repo),
          new RepoNotFound({ repo: "tiny:2b" })
        )
      }))

    it.effect("tells the type by what the model can do", () =>
      Effect.gen(function*() {
        const { directory, hub, onProgress, server } = yield* setup()
        const typeOf = (show: Record<string, unknown>) => {
          server.addOllamaModel({ ...model, show })
          return Effect.map(hub.pull({ source, repo, tag, directory, onProgress }), ({ type }) => type)
        }
        assert.strictEqual(yield* typeOf({ capabilities: ["completion", "vision"] }), "vlm")
        assert.strictEqual(yield* typeOf({ capabilities: ["embedding"] }), "embedding")
        assert.strictEqual(yield* typeOf({ model_info: { "general.architecture": "nomic-bert" } }), "embedding")
      }))
  })

  it.effect("remove deletes once, and what is gone is no failure", () =>
    Effect.gen(function*() {
      const { directory, hub, onProgress, server } = yield* setup()
      server.addOllamaModel(model)
      yield* hub.pull({ source, repo, tag, directory, onProgress })
      yield* hub.remove({ source, repo, tag })
      assert.instanceOf(yield* reasonOf(hub.describe({ source, repo, tag }), source, repo), RepoNotFound)
      yield* hub.remove({ source, repo, tag })
      const last = server.requests.at(-1)
      assert.deepStrictEqual([last?.method, last?.url, last?.body], [
        "DELETE",
        "/api/delete",
        "{\"model\":\"tiny:1b\"}"
      ])
      server.fault("/api/delete", { kind: "answer", status: 400, body: "{\"error\":\"busy\"}" })
      assert.deepStrictEqual(
        yield* reasonOf(hub.remove({ source, repo, tag }), source, repo),
        new Upstream({ status: 400, detail: "busy" })
      )
    }))

  it.effect("search finds what the server holds", () =>
    Effect.gen(function*() {
      const { directory, hub, onProgress, server } = yield* setup()
      server.addOllamaModel(model)
      server.addOllamaModel({ ...model, name: "other:latest" })
      yield* hub.pull({ source, repo, tag, directory, onProgress })
      yield* hub.pull({ source, repo: "other", directory, onProgress })
      const results = yield* hub.search({ source, query: "TIN", limit: 10 })
      assert.deepStrictEqual(results, [{
        id: "tiny:1b",
        name: "tiny:1b",
        type: "llm",
        source,
        description: "held by this Ollama server",
        downloads: 0,
        tags: ["llama", "1B", "Q8_0"]
      }])
      assert.deepStrictEqual(yield* hub.search({ source, query: "tiny", limit: 10, type: "asr" }), [])
    }))

  it.effect("a server that is down is a network failure that may pass", () =>
    Effect.gen(function*() {
      const { server } = yield* setup()
      yield* Effect.promise(server.close)
      const hub = yield* ModelHub.make({ ollama: { endpoint: server.url }, retry: Schedule.recurs(1) })
      const error = yield* Effect.flip(hub.describe({ source, repo }))
      assert.instanceOf(error, HubError)
      assert.instanceOf(error.reason, Network)
      assert.isTrue(error.retryable)
    }))
})

describe("the name of a model", () => {
  it("is that of Ollama's own commands", () => {
    const cases: ReadonlyArray<readonly [Parameters<typeof Ollama.modelName>[0], string]> = [
      [{ repo: "llama3.2" }, "llama3.2"],
      [{ repo: "llama3.2", tag: "1b" }, "llama3.2:1b"],
      [{ repo: "user/model", tag: "q4" }, "user/model:q4"],
      [{ repo: "hf.co/user/model", tag: "Q4_K_M" }, "hf.co/user/model:Q4_K_M"],
      [{ repo: "user/model", mirror: "https://registry.test" }, "registry.test/user/model"],
      [{ repo: "model", tag: "x", mirror: "https://registry.test/a/b/" }, "registry.test/a/b/library/model:x"]
    ]
    for (const [reference, name] of cases) assert.strictEqual(Ollama.modelName(reference), name)
  })
})

it("the address of Ollama follows from OLLAMA_HOST", () => {
  const cases: ReadonlyArray<readonly [string, string]> = [
    ["localhost", "http://localhost:11434"],
    ["gpu.test:1234", "http://gpu.test:1234"],
    [":1234", "http://localhost:1234"],
    ["0.0.0.0", "http://127.0.0.1:11434"],
    ["[::]:1234", "http://[::1]:1234"],
    ["gpu.test:80", "http://gpu.test"],
    ["http://gpu.test", "http://gpu.test"],
    ["https://gpu.test/ollama/", "https://gpu.test/ollama"]
  ]
  for (const [host, url] of cases) assert.strictEqual(Ollama.endpointOf(host), url, host)
})
