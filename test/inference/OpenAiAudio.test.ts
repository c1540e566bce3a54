import { NodeHttpClient } from "@effect/platform-node"
import { assert, describe, it } from "@effect/vitest"
import { Effect, Fiber, type Layer } from "effect"
import { FetchHttpClient, type HttpClient } from "effect/http"
import { TestClock } from "effect/testing"
import type { Backend } from "../../src/inference/Backend.ts"
import { EngineFailed, ModelMissing, Refused } from "../../src/inference/BackendReason.ts"
import * as OpenAi from "../../src/inference/OpenAi.ts"
import * as MediaServer from "./MediaServer.ts"
import { png, wav } from "./samples.ts"
import { serve } from "./world.ts"

const paths = { transcribe: "/v1/audio/transcriptions", speech: "/v1/audio/speech", voices: "/v1/audio/voices" }

const opened = Effect.gen(function*() {
  const server = yield* serve(MediaServer.audioRoutes({ models: ["whisper", "kokoro"] }))
  // All operations that are used here are there.
  return { server, backend: (yield* OpenAi.make({ baseUrl: server.url })) as Required<Backend> }
})

const audio = { bytes: wav(800), name: "audio.wav", type: "audio/wav" }

const clients: ReadonlyArray<readonly [string, Layer.Layer<HttpClient.HttpClient>]> = [
  ["Undici", NodeHttpClient.layerUndici],
  ["node:http", NodeHttpClient.layerNodeHttp],
  ["fetch", FetchHttpClient.layer]
]

describe("transcription by the OpenAI protocol", () => {
  for (const [name, layer] of clients) {
    it.effect(`sends the recording as a file by ${name}`, () =>
      Effect.gen(function*() {
        const { backend, server } = yield* opened
        assert.deepStrictEqual(yield* backend.transcribe({ model: "whisper", audio, language: "de" }), {
          text: "1644 bytes",
          language: "de",
          duration: 1.5,
          segments: [{ id: 0, start: 0, end: 1.5, text: "1644 bytes" }]
        })
        const parts = MediaServer.partsOf(server.requests[0]!)?.map(({ bytes, filename, name, type }) => ({
          name,
          ...(filename === undefined ? { text: bytes.toString() } : { filename, type, same: bytes.equals(audio.bytes) })
        }))
        assert.deepStrictEqual(parts, [
          { name: "file", filename: "audio.wav", type: "audio/wav", same: true },
          { name: "model", text: "whisper" },
          { name: "language", text: "de" },
          { name: "response_format", text: "verbose_json" },
          { name: "timestamp_granularities[]", text: "segment" }
        ])
      }).pipe(Effect.provide(layer)))
  }
})

it.layer(NodeHttpClient.layerUndici)("speech by the OpenAI protocol", (it) => {
  it.effect("asks for the text alone where segments are refused", () =>
    Effect.gen(function*() {
      const { backend, server } = yield* opened
      server.fault(paths.transcribe, { kind: "answer", status: 400, body: { error: { message: "no verbose_json" } } })
      assert.deepStrictEqual(yield* backend.transcribe({ model: "whisper", audio }), {
        text: "1644 bytes",
        language: undefined,
        duration: undefined,
        segments: []
      })
      assert.deepStrictEqual(
        server.requests.map((request) => MediaServer.partsOf(request)?.map(({ name }) => name)),
        [
          ["file", "model", "response_format", "timestamp_granularities[]"],
          ["file", "model", "response_format"]
        ]
      )
    }))

  it.effect("sends a recording once more for no other failure", () =>
    Effect.gen(function*() {
      const { backend, server } = yield* opened
      for (const status of [404, 405, 429, 500, 503]) {
        server.fault(paths.transcribe, { kind: "answer", status, body: "" })
        yield* Effect.flip(backend.transcribe({ model: "whisper", audio }))
      }
      assert.strictEqual(server.requests.length, 5)
    }))

  it.effect("reads transcriptions with less in them, and durations as text", () =>
    Effect.gen(function*() {
      const { backend, server } = yield* opened
      const body = { text: "", language: null, duration: "2.25", segments: [{ start: 0, end: 2, text: "a" }] }
      server.fault(paths.transcribe, { kind: "answer", body })
      assert.deepStrictEqual(yield* backend.transcribe({ model: "whisper", audio }), {
        text: "",
        language: undefined,
        duration: 2.25,
        segments: [{ id: 0, start: 0, end: 2, text: "a" }]
      })
      server.fault(paths.transcribe, { kind: "answer", body: { words: [] } })
      assert.instanceOf(yield* Effect.flip(backend.transcribe({ model: "whisper", audio })), EngineFailed)
    }))

  it.effect("gives what was spoken, byte for byte, in whatever pieces it comes", () =>
    Effect.gen(function*() {
      const { backend, server } = yield* opened
      const said = { audio: MediaServer.spoken("hi"), type: "audio/wav" }
      for (const bytes of [1000, 777, 3201]) {
        server.fault(paths.speech, { kind: "split", bytes })
        const { audio, type } = yield* backend.synthesize({ model: "kokoro", text: "hi", voice: "af_heart" })
        assert.deepStrictEqual({ audio: Buffer.from(audio), type }, said)
      }
      assert.deepStrictEqual(JSON.parse(server.requests[0]!.body.toString()), {
        model: "kokoro",
        input: "hi",
        voice: "af_heart",
        response_format: "wav"
      })
    }))

  it.effect("goes by the bytes, then by the media type, and takes no text for sound", () =>
    Effect.gen(function*() {
      const { backend, server } = yield* opened
      const answer = (type: string, body: string | Uint8Array) => {
        server.fault(paths.speech, { kind: "answer", headers: { "content-type": type }, body })
        return Effect.result(backend.synthesize({ model: "kokoro", text: "hi" }))
      }
      const types = [
        yield* answer("text/plain", wav(1)),
        yield* answer("audio/wav", "ID3"),
        yield* answer("audio/pcm; rate=24000", "\0\x01"),
        yield* answer("application/json", `{"error":"none"}`),
        yield* answer("audio/wav", ""),
        yield* answer("image/png", png)
      ].map((result) => result._tag === "Success" ? result.success.type : result.failure._tag)
      assert.deepStrictEqual(types, [
        "audio/wav",
        "audio/mpeg",
        "audio/pcm; rate=24000",
        "EngineFailed",
        "EngineFailed",
        "EngineFailed"
      ])
    }))

  it.effect("tells a voice that is missing from a model that is", () =>
    Effect.gen(function*() {
      const { backend, server } = yield* opened
      const speak = (voice?: string) => Effect.flip(backend.synthesize({ model: "kokoro", text: "hi", voice }))
      assert.deepStrictEqual(yield* speak("nobody"), new Refused({ detail: "It says: Voice 'nobody' not found." }))
      const body = { detail: "Voice nobody of the model kokoro not found" }
      server.fault(paths.speech, { kind: "answer", status: 404, body })
      assert.instanceOf(yield* speak("nobody"), Refused)
      server.fault(paths.speech, { kind: "answer", status: 404, body: { detail: "Model kokoro is not loaded" } })
      assert.instanceOf(yield* speak("nobody"), ModelMissing)
    }))

  it.effect("closes the connection when it is interrupted", () =>
    Effect.gen(function*() {
      const { backend, server } = yield* opened
      server.fault(paths.speech, { kind: "stall", after: 100 })
      const fiber = yield* Effect.forkChild(backend.synthesize({ model: "kokoro", text: "hi" }))
      yield* Effect.promise(() => server.waiting())
      yield* Fiber.interrupt(fiber)
      yield* Effect.promise(() => server.left())
      assert.strictEqual(server.open(), 0)
    }))

  it.effect("reads lists of voices in their various forms, each voice once", () =>
    Effect.gen(function*() {
      const { backend, server } = yield* opened
      const voice = (id: string, more: object = {}) => ({
        id,
        name: id,
        language: "",
        gender: "",
        description: "",
        ...more
      })
      const full = { id: "a", name: "Anna", language: "english", gender: "female", description: "calm" }
      const forms: ReadonlyArray<readonly [object, ReadonlyArray<object>]> = [
        [{ voices: ["a", "b", "a"] }, [voice("a"), voice("b")]],
        [{ voices: [{ id: "a", name: "Anna" }], uploaded_voices: [] }, [voice("a", { name: "Anna" })]],
        [
          [{ voice_id: "a", model_id: "kokoro", sample_rate: 1 }, { voice_id: "b", model_id: "piper" }],
          [voice("a")]
        ],
        [{ data: [full, { name: "b", gender: null, language: "tlh" }, {}] }, [
          { ...full, language: "en" },
          voice("b", { language: "tlh" })
        ]],
        [[], []]
      ]
      for (const [body, expected] of forms) {
        server.fault(paths.voices, {
          kind: "answer",
          headers: { "content-type": "application/json" },
          body: JSON.stringify(body)
        })
        assert.deepStrictEqual(yield* backend.voices({ model: "kokoro" }), expected)
      }
    }))

  it.effect("looks for voices where speaches has them, and finds none where nobody has them", () =>
    Effect.gen(function*() {
      const other = "/v1/audio/speech/voices"
      const server = yield* serve([{
        method: "GET",
        path: other,
        handle: ({ url }) => ({
          headers: { "content-type": "application/json" },
          body: JSON.stringify([{ voice_id: url.searchParams.get("model_id") }])
        })
      }])
      const backend = yield* OpenAi.make({ baseUrl: server.url })
      const voices = backend.voices!({ model: "a/b c" })
      assert.deepStrictEqual((yield* voices).map(({ id }) => id), ["a/b c"])
      server.fault(other, { kind: "answer", status: 405, body: "" })
      assert.deepStrictEqual(yield* voices, [])
      server.fault(other, { kind: "answer", status: 500, body: "" })
      assert.instanceOf(yield* Effect.flip(voices), EngineFailed)
    }))

  it.effect("does not wait long for a list of voices", () =>
    Effect.gen(function*() {
      const { backend, server } = yield* opened
      server.fault(paths.voices, { kind: "silence" })
      const fiber = yield* Effect.forkChild(Effect.flip(backend.voices({ model: "kokoro" })))
      yield* Effect.promise(() => server.waiting())
      yield* TestClock.adjust("5 seconds")
      assert.strictEqual((yield* Fiber.join(fiber))._tag, "TimedOut")
    }))

  it.effect("knows the voices of OpenAI itself without asking", () =>
    Effect.gen(function*() {
      const backend = yield* OpenAi.make({ baseUrl: "https://api.openai.com" })
      const voices = yield* backend.voices!({ model: "tts-1" })
      assert.deepStrictEqual([voices.length, voices[0]?.id, voices.at(-1)?.id], [11, "alloy", "verse"])
    }))
})
