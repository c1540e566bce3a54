import * as NodeHttpClient from "@effect/platform-node/NodeHttpClient"
import { assert, describe, it } from "@effect/vitest"
import { Effect, Fiber } from "effect"
import { TestClock } from "effect/testing"
import { once } from "node:events"
import * as http from "node:http"
import type * as net from "node:net"
import * as Probe from "../../src/engine/Probe.ts"
import { recipes } from "../../src/engine/Recipe.ts"

/** A server that answers each path with a status and a body, and others never. */
const server = (answers: Readonly<Record<string, readonly [number, unknown]>>) =>
  Effect.acquireRelease(
    Effect.promise(async () => {
      const asked: Array<string> = []
      const server = http.createServer(({ url = "" }, response) => {
        asked.push(url)
        const answer = answers[url]
        if (answer === undefined) return
        response.writeHead(answer[0]).end(typeof answer[1] === "string" ? answer[1] : JSON.stringify(answer[1]))
      }).listen(0, "127.0.0.1")
      await once(server, "listening")
      return { server, asked, url: `http://127.0.0.1:${(server.address() as net.AddressInfo).port}` }
    }),
    ({ server }) =>
      Effect.sync(() => {
        server.closeAllConnections()
        server.close()
      })
  )

const provided = Effect.provide(NodeHttpClient.layerUndici)

describe("Probe", () => {
  it.effect("takes the status, and the text where the recipe has one", () =>
    Effect.gen(function*() {
      const probe = yield* Probe.make
      const { url } = yield* server({ "/": [200, "Welcome to another server"], "/health": [503, ""] })
      assert.isFalse(yield* probe.isHealthy(recipes.ollama, url))
      assert.isFalse(yield* probe.isHealthy(recipes.vllm, url))
      const { url: healthy } = yield* server({ "/": [200, "Ollama is running"], "/health": [200, ""] })
      assert.isTrue(yield* probe.isHealthy(recipes.ollama, healthy))
      assert.isTrue(yield* probe.isHealthy(recipes.vllm, healthy))
      assert.isFalse(yield* probe.isHealthy(recipes.vllm, "http://127.0.0.1:1"))
    }).pipe(provided))

  it.effect("does not wait for an answer that does not come", () =>
    Effect.gen(function*() {
      const probe = yield* Probe.make
      const { asked, url } = yield* server({})
      const asking = yield* Effect.forkChild(probe.isHealthy(recipes.vllm, url, "2 seconds"))
      while (asked.length === 0) yield* Effect.promise(() => new Promise((resolve) => setImmediate(resolve)))
      yield* TestClock.adjust("2 seconds")
      assert.isFalse(yield* Fiber.join(asking))
    }).pipe(provided))

  it.effect("reads what each kind of server tells of its models", () =>
    Effect.gen(function*() {
      const probe = yield* Probe.make
      const { url } = yield* server({
        "/v1/models": [200, {
          object: "list",
          data: [{ id: "a", max_model_len: 4096 }, { id: "b", max_model_len: null }]
        }],
        "/api/tags": [200, { models: [{ name: "llama3:8b", size: 1 }] }],
        "/info": [200, { model_id: "/models/tiny", served_model_name: null, max_input_length: 512 }]
      })
      assert.deepStrictEqual(yield* probe.served(recipes.vllm, url), { models: ["a", "b"], contextLength: 4096 })
      assert.deepStrictEqual(yield* probe.served(recipes.ollama, url), {
        models: ["llama3:8b"],
        contextLength: undefined
      })
      assert.deepStrictEqual(yield* probe.served(recipes.rerank, url), {
        models: ["/models/tiny"],
        contextLength: 512
      })
      const { url: odd } = yield* server({ "/v1/models": [200, "no JSON"], "/api/tags": [200, { models: null }] })
      assert.isUndefined(yield* probe.served(recipes.vllm, odd))
      assert.deepStrictEqual(yield* probe.served(recipes.ollama, odd), { models: [], contextLength: undefined })
    }).pipe(provided))
})
