import { NodeHttpClient } from "@effect/platform-node"
import { assert, it } from "@effect/vitest"
import { Effect } from "effect"
import type { Backend } from "../../src/inference/Backend.ts"
import { Busy, EngineFailed, Refused } from "../../src/inference/BackendReason.ts"
import * as OpenAi from "../../src/inference/OpenAi.ts"
import * as MediaServer from "./MediaServer.ts"
import type { Route } from "./StandIn.ts"
import { serve } from "./world.ts"

const client = Effect.fnUntraced(function*(routes: ReadonlyArray<Route>) {
  const server = yield* serve(routes)
  // The operation that is used here is there.
  return { server, backend: (yield* OpenAi.make({ baseUrl: server.url })) as Required<Backend> }
})

const request = { model: "ranker", query: "a red ship", documents: ["a blue ship", "none", "a red ship"] }

const byIndex = (scores: ReadonlyArray<{ readonly index: number; readonly score: number }>) =>
  scores.toSorted((a, b) => a.index - b.index)

const expected = request.documents.map((document, index) => ({
  index,
  score: MediaServer.relevance(request.query, document)
}))

it.layer(NodeHttpClient.layerUndici)("reranking", (it) => {
  it.effect("asks in the form of vLLM for a score of each document", () =>
    Effect.gen(function*() {
      const { backend, server } = yield* client(MediaServer.rerankRoutes({ models: ["ranker"] }))
      assert.deepStrictEqual(byIndex((yield* backend.rerank(request)).scores), expected)
      assert.deepStrictEqual(JSON.parse(server.requests[0]!.body.toString()), {
        ...request,
        top_n: 3,
        return_documents: false
      })
      server.fault("/v1/rerank", { kind: "answer", body: { results: [{ index: 0, score: -3.5, document: "x" }] } })
      assert.deepStrictEqual(yield* backend.rerank(request), { scores: [{ index: 0, score: -3.5 }] })
    }))

  it.effect("asks in the form of text-embeddings-inference where the other one is not there", () =>
    Effect.gen(function*() {
      const { backend, server } = yield* client(MediaServer.textsRoutes)
      assert.deepStrictEqual(byIndex((yield* backend.rerank(request)).scores), expected)
      assert.deepStrictEqual(server.requests.map(({ url }) => url.pathname), ["/v1/rerank", "/rerank"])
      const overloaded = { error: "Model is overloaded", error_type: "Overloaded" }
      server.fault("/rerank", { kind: "answer", status: 429, body: overloaded })
      assert.deepStrictEqual(
        yield* Effect.flip(backend.rerank(request)),
        new Busy({ detail: "It says: Model is overloaded." })
      )
    }))

  it.effect("takes a refusal for one, and no answer that it cannot read", () =>
    Effect.gen(function*() {
      const { backend, server } = yield* client(MediaServer.rerankRoutes({ models: ["ranker"] }))
      server.fault("/v1/rerank", { kind: "answer", status: 400, body: "too long" })
      assert.deepStrictEqual(
        yield* Effect.flip(backend.rerank(request)),
        new Refused({ detail: "It says: too long." })
      )
      const bodies = [{ results: [{ index: 0 }] }, { results: [{ index: -1, score: 1 }] }, {
        results: [{ index: 0, relevance_score: "NaN" }]
      }]
      for (const body of bodies) {
        server.fault("/v1/rerank", { kind: "answer", body })
        assert.instanceOf(yield* Effect.flip(backend.rerank(request)), EngineFailed)
      }
      assert.strictEqual(server.requests.length, 4)
    }))
})
