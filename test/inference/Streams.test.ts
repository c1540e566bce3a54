import { assert, describe, it } from "@effect/vitest"
import { Effect, Exit, Layer, Stream } from "effect"
import * as Inference from "../../src/inference/index.ts"
import * as Testing from "../../src/testing/index.ts"
import { streams } from "../../src/units.ts"
import { layer, World } from "./world.ts"

const world = Layer.provideMerge(layer, Testing.layerTest)

const messages = [{ role: "user", content: "one two three" }] as const
const input = { model: "embed-4", messages } as const
const path = "/v1/chat/completions"

const last = Effect.gen(function*() {
  const { executions } = yield* Testing.TestEvents
  return (yield* executions).at(-1)?.terminal
})

describe("inference.chat_stream", () => {
  it.effect("gives what inference.chat gives, bit by bit, and its completed event holds it as a whole", () =>
    Effect.gen(function*() {
      const whole = yield* Inference.chat(input)
      const chunks = yield* Stream.runCollect(Inference.chatStream(input))
      const metadata = { finish_reason: "", model: "embed-4", id: "chatcmpl-1" }
      assert.deepStrictEqual(chunks, [
        { type: "content", data: "one", metadata: { ...metadata, finish_reason: "" } },
        { type: "content", data: " two", metadata: { ...metadata, finish_reason: "" } },
        { type: "content", data: " three", metadata: { ...metadata, finish_reason: "" } },
        {
          type: "done",
          data: "",
          metadata: { ...metadata, finish_reason: "stop" },
          usage: { prompt_tokens: 3, completion_tokens: 3, total_tokens: 6 }
        }
      ])
      const terminal = yield* last
      assert(terminal?.event_type === "execution_completed")
      assert.deepStrictEqual([terminal.output, terminal.chunks], [whole, 4])
    }).pipe(Effect.provide(world)))

  it.effect("keeps no text that is longer than an event shows", () =>
    Effect.gen(function*() {
      const content = Array.from({ length: 100 }, () => "x".repeat(999)).join(" ")
      const chunks = yield* Stream.runCollect(
        Inference.chatStream({ model: "embed-4", messages: [{ role: "user", content }] })
      )
      assert.strictEqual(chunks.map(({ data }) => data).join(""), content)
      const terminal = yield* last
      assert(terminal?.event_type === "execution_completed")
      assert.deepStrictEqual([terminal.output, terminal.chunks], [{
        finish_reason: "stop",
        usage: { prompt_tokens: 100, completion_tokens: 100, total_tokens: 200 },
        model: "embed-4",
        id: "chatcmpl-1"
      }, 101])
    }).pipe(Effect.provide(world)))

  it.effect("fails where it breaks off, and its failed event tells how many chunks came", () =>
    Effect.gen(function*() {
      const { openai } = yield* World
      yield* Inference.models()
      const error = { error: { message: "out of memory", code: 500 } }
      const body = [
        ...["one", " two"].map((content) => `data: ${JSON.stringify({ choices: [{ delta: { content } }] })}\n\n`),
        `data: ${JSON.stringify(error)}\n\n`
      ]
      openai.fault(path, { kind: "answer", body })
      const exit = yield* Effect.exit(Stream.runDrain(Inference.chatStream(input)))
      assert.isTrue(Exit.isFailure(exit))
      const terminal = yield* last
      assert(terminal?.event_type === "execution_failed")
      assert.deepStrictEqual(
        [terminal.chunks, terminal.failure.code, terminal.error],
        [2, "00302", `The endpoint first failed for the model "embed-4". It says: out of memory.`]
      )
    }).pipe(Effect.provide(world)))

  it.effect("closes its connection when its consumer stops, which its events tell as an interruption", () =>
    Effect.gen(function*() {
      const { openai } = yield* World
      openai.fault(path, { kind: "stall", after: 400 })
      const taken = yield* Stream.runCollect(Stream.take(Inference.chatStream(input), 1))
      assert.deepStrictEqual(taken.map(({ data }) => data), ["one"])
      yield* Effect.promise(() => openai.left())
      assert.strictEqual(openai.open(), 0)
      const terminal = yield* last
      assert(terminal?.event_type === "execution_failed")
      assert.deepStrictEqual(terminal.failure, { kind: "interrupt" })
    }).pipe(Effect.provide(world)))

  it.effect("is an execution of its own each time that it is run", () =>
    Effect.gen(function*() {
      const stream = Inference.chatStream(input)
      yield* Stream.runDrain(stream)
      yield* Stream.runDrain(stream)
      const { executions } = yield* Testing.TestEvents
      assert.strictEqual((yield* executions).length, 2)
    }).pipe(Effect.provide(world)))
})

describe("inference.complete_stream", () => {
  it.effect("gives what inference.complete gives", () =>
    Effect.gen(function*() {
      for (const model of ["embed-4", "tiny:1b"]) {
        const prompt = { model, prompt: "one two three", max_tokens: 2 }
        const whole = yield* Inference.complete(prompt)
        const chunks = yield* Stream.runCollect(Inference.completeStream(prompt))
        assert.deepStrictEqual(chunks.map(({ data }) => data), ["one", " two", ""])
        const terminal = yield* last
        assert(terminal?.event_type === "execution_completed")
        assert.deepStrictEqual(terminal.output, whole)
      }
    }).pipe(Effect.provide(world)))
})

describe("the catalog of streams", () => {
  it.effect("runs a stream by its name, to its end", () =>
    Effect.gen(function*() {
      const chunks = yield* streams.execute("inference.chat_stream", { ...input, stream: true })
      assert.strictEqual((chunks as ReadonlyArray<unknown>).length, 4)
      const error = yield* Effect.flip(streams.execute("inference.chat_stream", { ...input, messages: [] }))
      assert.strictEqual(error._tag, "InvalidInput")
    }).pipe(Effect.provide(world)))
})
