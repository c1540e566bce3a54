/** How each unit of the inference domain ends. */
import { Effect } from "effect"
import { SqlClient } from "effect/sql"
import { TestClock } from "effect/testing"
import * as Inference from "../../src/inference/index.ts"
import type * as Unit from "../../src/Unit.ts"
import { domain } from "../lives.ts"
import { png, wav } from "./samples.ts"
import type * as StandIn from "./StandIn.ts"
import { key, layer, World } from "./world.ts"

const lives = domain(layer)

/** The register of models has lost its table. */
const breakRegister = Effect.flatMap(SqlClient.SqlClient, (sql) => sql`DROP TABLE effect_units_models`)

/** Lets the next answer of a path go wrong, and gives the input. */
const faulty = <I>(path: string, fault: StandIn.Fault, input: I) =>
  Effect.map(World, ({ openai }) => {
    openai.fault(path, fault)
    return input
  })

/** The same for an operation that is tried in two forms. */
const faultyTwice = <I>(path: string, fault: StandIn.Fault, input: I) =>
  Effect.andThen(faulty(path, fault, input), faulty(path, fault, input))

/** A fault has left the unit waiting. */
const waiting = Effect.flatMap(World, ({ openai }) => Effect.promise(() => openai.waiting()))

/** The ends that every request to a model can come to. `input` is for the OpenAI endpoint, whose path is given. */
const failures = <I extends { readonly model: string }>(path: string, input: I, invalid: I) => ({
  InferenceModelNotLoaded: { given: Effect.succeed({ ...input, model: "nobody's" }) },
  InferenceInvalidParams: {
    given: faulty(path, { kind: "answer", status: 400, body: { error: { message: `no, ${key}` } } }, input)
  },
  InferenceEngineError: { given: faulty(path, { kind: "answer", status: 500, body: `Bearer ${key}` }, input) },
  InferenceTimeout: {
    given: faulty(path, { kind: "silence" }, input),
    meanwhile: Effect.andThen(waiting, TestClock.adjust("10 minutes"))
  },
  InferenceRateLimited: {
    given: faulty(path, { kind: "answer", status: 429, headers: { "retry-after": "7" }, body: "" }, input)
  },
  InternalError: { given: Effect.as(breakRegister, input) },
  InvalidInput: { given: Effect.succeed(invalid) }
})

const interrupted = <I>(path: string, input: I) => ({
  given: faulty(path, { kind: "silence" }, input),
  meanwhile: waiting
})

/** An answer that comes to a halt in the middle. */
const stalled = <I>(path: string, input: I) => faulty(path, { kind: "stall", after: 250 }, input)

const messages = [{ role: "user", content: "one two three" }] as const
const chat = { model: "embed-4", messages } as const
const complete = { model: "embed-4", prompt: "one two three" }
const embed = { model: "embed-4", input: "one two" }

const transcribe = { model: "embed-4", audio: wav(800).toString("base64") }
const synthesize = { model: "embed-4", text: "one two" }
const generateImage: Unit.Input<typeof Inference.generateImage> = { model: "embed-4", prompt: "a pixel" }
const generateVideo: Unit.Input<typeof Inference.generateVideo> = { model: "embed-4", prompt: "a pixel that moves" }
const rerank = { model: "embed-4", query: "one two", documents: ["three", "two one"] } as const
const detect = { model: "embed-4", image: png.toString("base64") }

export const inferenceLives = [
  ...lives(Inference.chat, {
    completed: { given: Effect.succeed({ model: "Echo", messages, max_tokens: 2 }) },
    failures: failures("/v1/chat/completions", chat, { ...chat, model: "" }),
    interrupted: interrupted("/v1/chat/completions", chat)
  }),
  ...lives(Inference.complete, {
    completed: { given: Effect.succeed({ model: "Echo", prompt: "one two three", stop: ["three"] }) },
    failures: failures("/v1/completions", complete, { ...complete, prompt: "" }),
    interrupted: interrupted("/v1/completions", complete)
  }),
  ...lives(Inference.embed, {
    completed: { given: Effect.succeed({ model: "Echo", input: ["one two", "three"] } as const) },
    failures: failures("/v1/embeddings", embed, { ...embed, input: "" }),
    interrupted: interrupted("/v1/embeddings", embed)
  }),
  ...lives(Inference.transcribe, {
    completed: { given: Effect.succeed(transcribe) },
    failures: {
      ...failures("/v1/audio/transcriptions", transcribe, { ...transcribe, audio: "/etc/hostname" }),
      InferenceInvalidParams: {
        given: faultyTwice("/v1/audio/transcriptions", { kind: "answer", status: 400, body: `no, ${key}` }, transcribe)
      }
    },
    interrupted: interrupted("/v1/audio/transcriptions", transcribe)
  }),
  ...lives(Inference.synthesize, {
    completed: { given: Effect.succeed({ ...synthesize, voice: "af_heart", stream: true }) },
    failures: failures("/v1/audio/speech", synthesize, { ...synthesize, text: "" }),
    interrupted: interrupted("/v1/audio/speech", synthesize)
  }),
  ...lives(Inference.generateImage, {
    completed: { given: Effect.succeed({ ...generateImage, size: "64x32", width: 64, height: 32, steps: 3, seed: 7 }) },
    failures: failures("/v1/images/generations", generateImage, { ...generateImage, size: "large" }),
    interrupted: interrupted("/v1/images/generations", generateImage)
  }),
  ...lives(Inference.generateVideo, {
    completed: {
      given: Effect.succeed({ ...generateVideo, duration: 2, fps: 8, width: 64, height: 32 })
    },
    failures: failures("/v1/videos", generateVideo, { ...generateVideo, width: 64 }),
    interrupted: interrupted("/v1/videos/video-1/content", generateVideo)
  }),
  ...lives(Inference.rerank, {
    completed: { given: Effect.succeed(rerank) },
    // Nothing to order, which the type of the input forbids.
    failures: failures("/v1/rerank", rerank, { ...rerank, documents: [] as never }),
    interrupted: interrupted("/v1/rerank", rerank)
  }),
  ...lives(Inference.detect, {
    completed: { given: Effect.succeed(detect) },
    failures: failures("/v1/detection", detect, { ...detect, image: "http://127.0.0.1/image.png" }),
    interrupted: interrupted("/v1/detection", detect)
  }),
  ...lives(Inference.voices, {
    completed: { given: Effect.succeed({ model: "embed-4" }) },
    failures: failures("/v1/audio/voices", { model: "embed-4" }, { model: "" }),
    interrupted: interrupted("/v1/audio/voices", { model: "embed-4" })
  }),
  ...lives(Inference.models, {
    completed: { given: Effect.succeed({ type: "llm" } as const) },
    failures: {
      InternalError: { given: Effect.as(breakRegister, {}) },
      // An input that its own type forbids, as a caller over a wire can send it.
      InvalidInput: { given: Effect.succeed({ type: "none" } as never) }
    },
    interrupted: interrupted("/v1/models", {})
  }),
  ...lives(Inference.chatStream, {
    completed: { given: Effect.succeed({ model: "Echo", messages, max_tokens: 2 }) },
    // Nothing to answer, which the type of the input forbids.
    failures: failures("/v1/chat/completions", chat, { ...chat, messages: [] as never }),
    interrupted: { ...interrupted("/v1/chat/completions", chat), given: stalled("/v1/chat/completions", chat) }
  }),
  ...lives(Inference.completeStream, {
    completed: { given: Effect.succeed(complete) },
    failures: failures("/v1/completions", complete, { ...complete, prompt: "" }),
    interrupted: { ...interrupted("/v1/completions", complete), given: stalled("/v1/completions", complete) }
  })
]
