import { assert, describe, it } from "@effect/vitest"
import { Effect } from "effect"
import * as fs from "node:fs"
import * as path from "node:path"
import * as Inference from "../../src/inference/index.ts"
import { InvalidInput } from "../../src/UnitError.ts"
import { Host } from "../lives.ts"
import { spoken } from "./MediaServer.ts"
import { wav } from "./samples.ts"
import { layer, World } from "./world.ts"

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
      // Ollama serves it, and does not speak.
      const silent = yield* Effect.flip(Inference.synthesize.handler({ model: "tiny:1b", text: "hello" }))
      assert.strictEqual(silent.code, "00301")
      assert.include(silent.message, "cannot do speech")
    }).pipe(Effect.provide(layer)))
})
