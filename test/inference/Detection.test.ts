import { NodeHttpClient } from "@effect/platform-node"
import { assert, it } from "@effect/vitest"
import { Effect } from "effect"
import type { Backend } from "../../src/inference/Backend.ts"
import { EngineFailed, ModelMissing } from "../../src/inference/BackendReason.ts"
import * as OpenAi from "../../src/inference/OpenAi.ts"
import * as MediaServer from "./MediaServer.ts"
import { png } from "./samples.ts"
import type { Route } from "./StandIn.ts"
import { serve } from "./world.ts"

const model = "facebook/detr resnet-50"

const client = Effect.fnUntraced(function*(routes: ReadonlyArray<Route>) {
  const server = yield* serve(routes)
  // The operation that is used here is there.
  return { server, backend: (yield* OpenAi.make({ baseUrl: server.url })) as Required<Backend> }
})

const image = { bytes: png, name: "image.png", type: "image/png" }
const other = { ...image, bytes: Buffer.concat([png, Buffer.alloc(1)]) }

it.layer(NodeHttpClient.layerUndici)("detection", (it) => {
  it.effect("asks in LocalAI's form; finding nothing is an answer", () =>
    Effect.gen(function*() {
      const { backend, server } = yield* client(MediaServer.detectionRoutes({ models: [model] }))
      assert.deepStrictEqual(yield* backend.detect({ model, image }), {
        detections: [{ label: "dog", confidence: 0.9, bbox: [350, 200.5, 150, 100] }]
      })
      assert.deepStrictEqual(yield* backend.detect({ model, image: other }), { detections: [] })
      server.fault("/v1/detection", { kind: "answer", body: { detections: null } })
      assert.deepStrictEqual(yield* backend.detect({ model, image }), { detections: [] })
      // A float of 32 bits, and no name.
      const odd = { x: -1, y: 0, width: 1, height: 1, confidence: 1.0000001192092896 }
      server.fault("/v1/detection", { kind: "answer", body: { detections: [odd] } })
      assert.deepStrictEqual(yield* backend.detect({ model, image }), {
        detections: [{ label: "", confidence: 1, bbox: [-1, 0, 1, 1] }]
      })
      server.fault("/v1/detection", { kind: "answer", body: { detections: [{ class_name: "dog", confidence: 1 }] } })
      assert.instanceOf(yield* Effect.flip(backend.detect({ model, image })), EngineFailed)
    }))

  it.effect("asks in Hugging Face's form where the other one is not there, whose boxes have two corners", () =>
    Effect.gen(function*() {
      const { backend, server } = yield* client(MediaServer.boxesRoutes("facebook/detr%20resnet-50"))
      assert.deepStrictEqual(yield* backend.detect({ model, image }), {
        detections: [{ label: "dog", confidence: 0.9, bbox: [350, 200, 150, 100] }]
      })
      assert.deepStrictEqual(yield* backend.detect({ model, image: other }), { detections: [] })
      assert.deepStrictEqual(server.requests.slice(0, 2).map(({ url }) => url.pathname), [
        "/v1/detection",
        "/models/facebook/detr%20resnet-50"
      ])
    }))

  it.effect("tells a model that is being loaded from an endpoint that is busy", () =>
    Effect.gen(function*() {
      const { backend, server } = yield* client(MediaServer.boxesRoutes("m"))
      const answer = (body: object) => {
        server.fault("/models/m", { kind: "answer", status: 503, body })
        return Effect.flip(backend.detect({ model: "m", image }))
      }
      assert.deepStrictEqual(
        yield* answer({ error: "Model m is currently loading", estimated_time: 20.5 }),
        new ModelMissing({ detail: "It says: Model m is currently loading. Try again later", loading: true })
      )
      assert.deepStrictEqual(
        yield* answer({ error: "Not yet", estimated_time: 3 }),
        new ModelMissing({ detail: "It says: Not yet. Try again later", loading: true })
      )
      assert.strictEqual((yield* answer({ error: "Service Unavailable" }))._tag, "Busy")
    }))
})
