import { assert, describe, it } from "@effect/vitest"
import { Effect, Schema } from "effect"
import * as fs from "node:fs"
import * as path from "node:path"
import * as Inference from "../../src/inference/index.ts"
import { layerEmbedded } from "../../src/node.ts"
import { InvalidInput } from "../../src/UnitError.ts"
import { Host } from "../lives.ts"
import { spoken, video } from "./MediaServer.ts"
import * as OpenAiServer from "./OpenAiServer.ts"
import { png, wav } from "./samples.ts"
import { folder, layer, serve, World } from "./world.ts"

const model = "embed-4"
const transcriptions = "/v1/audio/transcriptions"
const audio = wav(4000).toString("base64")

describe("inference.transcribe", () => {
  it.effect("names the language by its code, and takes the duration from the recording where nobody tells it", () =>
    Effect.gen(function*() {
      const { openai } = yield* World
      const input = { model, audio }
      const text = `${wav(4000).length} bytes`
      assert.deepStrictEqual(yield* Inference.transcribe.handler(input), {
        text,
        language: "en",
        duration: 1.5,
        segments: [{ id: 0, start: 0, end: 1.5, text }]
      })
      const answer = (language: string | null) =>
        openai.fault(transcriptions, { kind: "answer", body: { text, language } })
      answer(null)
      assert.deepStrictEqual(yield* Inference.transcribe.handler(input), { text, duration: 0.5, segments: [] })
      answer("klingon")
      assert.deepStrictEqual(yield* Inference.transcribe.handler({ ...input, language: "de" }), {
        text,
        language: "de",
        duration: 0.5,
        segments: []
      })
      answer(null)
      const ogg = Buffer.from("OggS").toString("base64")
      assert.deepStrictEqual(yield* Inference.transcribe.handler({ model, audio: ogg }), { text, segments: [] })
    }).pipe(Effect.provide(layer)))

  it.effect("reads a file below an allowed folder", () =>
    Effect.gen(function*() {
      const { directory } = yield* Host
      const file = path.join(directory, "speech.wav")
      fs.writeFileSync(file, wav(3))
      const { text } = yield* Inference.transcribe.handler({ model, audio: file })
      assert.strictEqual(text, `${wav(3).length} bytes`)
    }).pipe(Effect.provide(layer)))

  it.effect("takes only languages that there are", () =>
    Effect.gen(function*() {
      for (const language of ["english", "EN", "xx", ""]) {
        const failure = yield* Effect.flip(Inference.transcribe.handler({ model, audio, language }))
        assert.deepStrictEqual(
          failure,
          new InvalidInput({
            unit: "inference.transcribe",
            issues: [{ path: "language", expected: "Expected a language as its two letters of ISO 639-1" }]
          })
        )
      }
    }).pipe(Effect.provide(layer)))
})

describe("inference.synthesize", () => {
  it.effect("gives the recording, its format and how long it plays", () =>
    Effect.gen(function*() {
      const { openai } = yield* World
      const input = { model, text: "hello" }
      assert.deepStrictEqual(yield* Inference.synthesize.handler(input), {
        audio: spoken("hello").toString("base64"),
        format: "wav",
        duration: 0.5
      })
      const headers = { "content-type": "audio/x-custom" }
      openai.fault("/v1/audio/speech", { kind: "answer", headers, body: "ID3" })
      assert.deepStrictEqual(yield* Inference.synthesize.handler(input), { audio: "SUQz", format: "mp3" })
      openai.fault("/v1/audio/speech", { kind: "answer", headers, body: "abc" })
      assert.deepStrictEqual(yield* Inference.synthesize.handler(input), { audio: "YWJj", format: "custom" })
    }).pipe(Effect.provide(layer)))

  it.effect("refuses a voice that is not there, and a model that cannot speak", () =>
    Effect.gen(function*() {
      const unknown = yield* Effect.flip(Inference.synthesize.handler({ model, text: "hello", voice: "nobody" }))
      assert.deepStrictEqual(
        unknown,
        new Inference.InferenceInvalidParams({ model, endpoint: "first", detail: "It says: Voice 'nobody' not found." })
      )
      // An Ollama that does not speak serves it.
      const silent = yield* Effect.flip(Inference.synthesize.handler({ model: "tiny:1b", text: "hello" }))
      assert.strictEqual(silent.code, "00301")
      assert.include(silent.message, "no such operation")
      // None has a form of this.
      const still = yield* Effect.flip(Inference.generateVideo.handler({ model: "tiny:1b", prompt: "hello" }))
      assert.strictEqual(still.code, "00301")
      assert.include(still.message, "cannot do videos")
    }).pipe(Effect.provide(layer)))
})

/** Lets the next answer of a path be this one. */
const answer = (path: string, body: object) =>
  Effect.map(World, ({ openai }) => {
    const headers = { "content-type": "application/json" }
    openai.fault(path, { kind: "answer", headers, body: JSON.stringify(body) })
  })

const issue = (unit: string, path: string, expected: string) => new InvalidInput({ unit, issues: [{ path, expected }] })

describe("inference.generate_image", () => {
  const input = { model, prompt: "a pixel" }
  const sent = Effect.map(World, ({ openai }) => JSON.parse(openai.requests.at(-1)!.body.toString()).size)

  it.effect("takes a size in either form", () =>
    Effect.gen(function*() {
      for (const frame of [{ size: "64x32" }, { width: 64, height: 32 }, { size: "64x32", width: 64 }]) {
        assert.deepStrictEqual(yield* Inference.generateImage.handler({ ...input, ...frame }), {
          images: [{ base64: png.toString("base64") }],
          format: "png"
        })
        assert.strictEqual(yield* sent, "64x32")
      }
      yield* Inference.generateImage.handler(input)
      assert.isUndefined(yield* sent)
    }).pipe(Effect.provide(layer)))

  it.effect("refuses sizes that are none, or contradict each other", () =>
    Effect.gen(function*() {
      const refused = (frame: { readonly size?: string; readonly width?: number; readonly height?: number }) =>
        Effect.flip(Inference.generateImage.handler({ ...input, ...frame }))
      const name = "inference.generate_image"
      for (
        const size of ["large", "64", "64x", "x64", "64X32", " 64x32", "64x32x1", "0x64", "064x64", "-1x1", "1e3x1"]
      ) {
        assert.deepStrictEqual(
          yield* refused({ size }),
          issue(name, "size", "Expected a size in pixels, such as 1024x768")
        )
      }
      const both = "Expected the same as width and height say; leave one of them out"
      assert.deepStrictEqual(yield* refused({ size: "64x32", width: 32 }), issue(name, "size", both))
      assert.deepStrictEqual(yield* refused({ size: "64x32", width: 64, height: 64 }), issue(name, "size", both))
      const half = "Expected width and height, or neither"
      assert.deepStrictEqual(yield* refused({ width: 64 }), issue(name, "height", half))
      assert.deepStrictEqual(yield* refused({ height: 64 }), issue(name, "width", half))
      const { openai } = yield* World
      assert.strictEqual(openai.requests.length, 0)
    }).pipe(Effect.provide(layer)))

  it.effect("names the format by the bytes, or the end of the address", () =>
    Effect.gen(function*() {
      const jpeg = Buffer.from([0xFF, 0xD8, 0xFF, 0xE0]).toString("base64")
      const images = [
        [{ b64_json: jpeg }, "jpeg"],
        [{ b64_json: "AAAA" }, ""],
        [{ url: "https://images.test/a.JPG?x=.png" }, "jpeg"],
        [{ url: "https://images.test/a.webp" }, "webp"],
        [{ url: "https://images.test/a" }, ""]
      ] as const
      for (const [image, format] of images) {
        yield* answer("/v1/images/generations", { data: [image] })
        assert.strictEqual((yield* Inference.generateImage.handler(input)).format, format)
      }
    }).pipe(Effect.provide(layer)))
})

describe("inference.generate_video", () => {
  it.effect("gives the video, its format, and how long the endpoint says that it is", () =>
    Effect.gen(function*() {
      const wanted = { model, prompt: "a pixel that moves", duration: 2.5 }
      assert.deepStrictEqual(yield* Inference.generateVideo.handler(wanted), {
        video: video.toString("base64"),
        format: "mp4",
        duration: 2.5
      })
      yield* answer("/v1/videos", { id: "other", status: "completed" })
      const { openai } = yield* World
      openai.fault("/v1/videos/other/content", {
        kind: "answer",
        headers: { "content-type": "video/x-flv" },
        body: "FLV"
      })
      assert.deepStrictEqual(yield* Inference.generateVideo.handler(wanted), { video: "RkxW", format: "flv" })
    }).pipe(Effect.provide(layer)))

  it.effect("refuses lengths and sizes that are none", () =>
    Effect.gen(function*() {
      for (const wrong of [{ duration: 0 }, { duration: -1 }, { fps: 0.5 }, { width: 64 }, { seed: 0.5 }]) {
        const failure = yield* Effect.flip(Inference.generateVideo.handler({ model, prompt: "a pixel", ...wrong }))
        assert.instanceOf(failure, InvalidInput)
      }
    }).pipe(Effect.provide(layer)))
})

describe("inference.rerank", () => {
  const scores = (scores: ReadonlyArray<readonly [index: number, score: number]>) =>
    answer("/v1/rerank", { results: scores.map(([index, score]) => ({ index, relevance_score: score })) })
  const input = { model, query: "a red ship", documents: ["none", "a red ship", "none", "ship"] } as const

  it.effect("orders all documents by score, and equal ones as they came", () =>
    Effect.gen(function*() {
      const { results } = yield* Inference.rerank.handler(input)
      assert.deepStrictEqual(results.map(({ document, index }) => [index, document]), [
        [1, "a red ship"],
        [3, "ship"],
        [0, "none"],
        [2, "none"]
      ])
      const one = yield* Inference.rerank.handler({ ...input, documents: ["a"] })
      assert.deepStrictEqual(one, { results: [{ document: "a", score: 1 / 3, index: 0 }] })
      // Scores are as the model gives them.
      yield* scores([[2, -7.25], [0, 11], [3, -0.5], [1, -7.25]])
      const scored = yield* Inference.rerank.handler(input)
      assert.deepStrictEqual(scored.results.map(({ index, score }) => [index, score]), [
        [0, 11],
        [3, -0.5],
        [1, -7.25],
        [2, -7.25]
      ])
    }).pipe(Effect.provide(layer)))

  it.effect("fails where a document is missing, there twice, or unknown", () =>
    Effect.gen(function*() {
      const wrong = [
        [[0, 1], [1, 1], [2, 1]],
        [[0, 1], [1, 1], [2, 1], [2, 1]],
        [[0, 1], [1, 1], [2, 1], [4, 1]],
        [[0, 1], [1, 1], [2, 1], [3, 1], [3, 2]],
        []
      ] as const
      for (const all of wrong) {
        yield* scores(all)
        const failure = yield* Effect.flip(Inference.rerank.handler(input))
        assert.strictEqual(failure.code, "00302")
        assert.include(failure.message, `For 4 documents it gave ${all.length} scores`)
      }
    }).pipe(Effect.provide(layer)))

  it.layer(layer)("for any scores", (it) => {
    it.effect.prop(
      "gives each document once, none before a better one",
      { all: Schema.NonEmptyArray(Schema.Literals([-2, 0, 0.5, 3])) },
      ({ all }) =>
        Effect.gen(function*() {
          const documents = all.map((score, index) => `${index}: ${score}`)
          const [first, ...rest] = documents
          yield* scores(all.map((score, index) => [index, score] as const).toReversed())
          const { results } = yield* Inference.rerank.handler({ ...input, documents: [first!, ...rest] })
          const best = documents.map((document, index) => ({ document, score: all[index]!, index }))
          // Array.prototype.sort is stable.
          assert.deepStrictEqual(results, best.toSorted((a, b) => b.score - a.score))
        })
    )
  })
})

describe("inference.detect", () => {
  it.effect("finds objects, and tells a model that is being loaded, which a retry can help", () =>
    Effect.gen(function*() {
      const input = { model, image: `data:image/png;base64,${png.toString("base64")}` }
      assert.deepStrictEqual(yield* Inference.detect.handler(input), {
        detections: [{ label: "dog", confidence: 0.9, bbox: [350, 200.5, 150, 100] }]
      })
      const { openai } = yield* World
      openai.fault("/v1/detection", { kind: "answer", status: 503, body: { error: "Not yet", estimated_time: 3 } })
      const failure = yield* Effect.flip(Inference.detect.handler(input))
      assert.deepStrictEqual([failure.code, failure.retryable], ["00300", true])
    }).pipe(Effect.provide(layer)))

  it.effect("takes no image of this network, and says which host did not give one", () =>
    Effect.gen(function*() {
      const { openai } = yield* World
      assert.deepStrictEqual(
        yield* Effect.flip(Inference.detect.handler({ model, image: `${openai.url}/image.png` })),
        issue(
          "inference.detect",
          "image",
          "Expected a public address. Allow private ones where images are to come from this network"
        )
      )
      const failure = yield* Effect.flip(
        Inference.detect.handler({ model, image: "http://nowhere.invalid:81/image.png" })
      )
      assert.deepStrictEqual(
        failure,
        new Inference.InferenceEngineError({
          model,
          endpoint: "nowhere.invalid:81",
          detail: "It did not give the image: its name has no address. Check it",
          retryable: true
        })
      )
      assert.strictEqual(openai.requests.length, 0)
    }).pipe(Effect.provide(layer)))
})

describe("inference.voices", () => {
  const ids = Effect.map(({ voices }: { readonly voices: ReadonlyArray<Inference.Voice> }) =>
    voices.map(({ id }) => id)
  )

  it.effect("lists the voices of a model by id, none where its endpoint has no list, and fails where there is no model", () =>
    Effect.gen(function*() {
      yield* answer("/v1/audio/voices", { voices: ["b", "a", "b"] })
      assert.deepStrictEqual(yield* ids(Inference.voices.handler({ model })), ["a", "b"])
      assert.deepStrictEqual(yield* ids(Inference.voices.handler({ model: "tiny:1b" })), [])
      const failure = yield* Effect.flip(Inference.voices.handler({ model: "nobody's" }))
      assert.strictEqual(failure.code, "00300")
    }).pipe(Effect.provide(layer)))

  it.effect("lists those of all models that speak, and leaves out endpoints that do not answer", () =>
    Effect.gen(function*() {
      const serving = (id: string, voices: ReadonlyArray<string>) =>
        serve([...OpenAiServer.routes({ models: [id, "qwen3"] }), {
          method: "GET",
          path: "/v1/audio/voices",
          handle: () => ({ body: { voices } })
        }])
      const first = yield* serving("kokoro-82m", ["c", "a"])
      const second = yield* serving("tts-1", ["b", "a"])
      const silent = yield* serving("piper-tts", [])
      silent.fault("/v1/audio/voices", { kind: "answer", status: 500, body: "" })
      const directory = yield* folder
      const endpoints = [first, second, silent].map(({ url }, index) =>
        ({ name: `${index}`, dialect: "openai", baseUrl: url }) as const
      )
      const host = layerEmbedded({ directory, hubs: {}, endpoints })
      assert.deepStrictEqual(yield* ids(Effect.provide(Inference.voices.handler(), host)), ["a", "b", "c"])
      // Models of language have not been asked.
      assert.deepStrictEqual(
        first.requests.map(({ url }) => url.pathname + url.search),
        ["/v1/models", "/v1/audio/voices?model=kokoro-82m&model_id=kokoro-82m"]
      )
    }))
})
