import { NodeHttpClient } from "@effect/platform-node"
import { assert, it } from "@effect/vitest"
import { Effect } from "effect"
import type { Backend } from "../../src/inference/Backend.ts"
import { EngineFailed, Refused } from "../../src/inference/BackendReason.ts"
import * as OpenAi from "../../src/inference/OpenAi.ts"
import * as MediaServer from "./MediaServer.ts"
import { png } from "./samples.ts"
import { serve } from "./world.ts"

const path = "/v1/images/generations"

const opened = Effect.gen(function*() {
  const server = yield* serve(MediaServer.imageRoutes({ models: ["sdxl"] }))
  // The operation that is used here is there.
  return { server, backend: (yield* OpenAi.make({ baseUrl: server.url })) as Required<Backend> }
})

const request = { model: "sdxl", prompt: "a pixel" }

it.layer(NodeHttpClient.layerUndici)("images by the OpenAI protocol", (it) => {
  it.effect("asks for Base64, with every option, and nothing that was not given", () =>
    Effect.gen(function*() {
      const { backend, server } = yield* opened
      const images = [{ base64: png.toString("base64") }]
      assert.deepStrictEqual(yield* backend.generateImage(request), { images })
      yield* backend.generateImage({ ...request, width: 64, height: 32, steps: 4, negative_prompt: "blue", seed: 0 })
      const common = { ...request, n: 1, response_format: "b64_json" }
      assert.deepStrictEqual(server.requests.map(({ body }) => JSON.parse(body.toString())), [
        common,
        { ...common, size: "64x32", negative_prompt: "blue", seed: 0, steps: 4, num_inference_steps: 4, step: 4 }
      ])
    }))

  it.effect("asks again where a model does not let itself be asked for a form, and for no other refusal", () =>
    Effect.gen(function*() {
      const { backend, server } = yield* opened
      const refusal = (message: string) =>
        server.fault(path, { kind: "answer", status: 400, body: { error: { message } } })
      refusal("Unknown parameter: 'response_format'.")
      assert.strictEqual((yield* backend.generateImage(request)).images.length, 1)
      assert.isUndefined(JSON.parse(server.requests[1]!.body.toString()).response_format)
      refusal("Your prompt is not allowed.")
      assert.deepStrictEqual(
        yield* Effect.flip(backend.generateImage(request)),
        new Refused({ detail: "It says: Your prompt is not allowed." })
      )
      assert.strictEqual(server.requests.length, 3)
    }))

  it.effect("takes addresses and data URIs, and no answer that lacks an image", () =>
    Effect.gen(function*() {
      const { backend, server } = yield* opened
      const base64 = png.toString("base64")
      const answer = (data: ReadonlyArray<object>) => {
        server.fault(path, { kind: "answer", body: { data } })
        return backend.generateImage(request)
      }
      const url = "http://images.test/1.png?signature=x"
      assert.deepStrictEqual(
        yield* answer([{ url, b64_json: null }, { url: `data:image/png;base64,${base64}` }, {
          b64_json: `data:image/png;base64,${base64}`
        }, { b64_json: `${base64.slice(0, 8)}\n${base64.slice(8)}` }]),
        { images: [{ url }, { base64 }, { base64 }, { base64 }] }
      )
      for (const data of [[], [{}], [{ b64_json: "?" }], [{ b64_json: "" }], [{ url }, { url: "data:image/png,x" }]]) {
        assert.instanceOf(yield* Effect.flip(answer(data)), EngineFailed)
      }
    }))
})
