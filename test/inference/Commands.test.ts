import { assert, describe, it } from "@effect/vitest"
import { Effect, Exit, Fiber, Layer, Redacted, Schema, Stream } from "effect"
import { inspect } from "node:util"
import * as ExecutionEvent from "../../src/ExecutionEvent.ts"
import * as Endpoints from "../../src/inference/Endpoints.ts"
import { InferenceEngineError } from "../../src/inference/Errors.ts"
import * as Inference from "../../src/inference/index.ts"
import * as Router from "../../src/inference/Router.ts"
import * as Testing from "../../src/testing/index.ts"
import type { InvalidInput } from "../../src/UnitError.ts"
import * as OpenAiServer from "./OpenAiServer.ts"
import { layer, nextTurns, serve, World } from "./world.ts"

const world = Layer.provideMerge(layer, Testing.layerTest)

const messages = [{ role: "user", content: "one two three" }] as const

/** The places where an input is wrong. */
const issuesOf = (work: Effect.Effect<unknown, unknown, Inference.Router>) =>
  Effect.map(Effect.flip(work), (error) => {
    const { _tag, code, issues } = error as InvalidInput
    return [_tag, code, issues.map(({ path }) => path)]
  })

describe("inference.chat", () => {
  it.effect("gives the same answer from each endpoint that serves the model, and its events tell it", () =>
    Effect.gen(function*() {
      const { ollama, openai } = yield* World
      const { executions } = yield* Testing.TestEvents
      const input = { model: "ECHO", messages, max_tokens: 2, stream: true }
      const answer = {
        content: "one two",
        finish_reason: "length",
        usage: { prompt_tokens: 3, completion_tokens: 2, total_tokens: 5 },
        model: "echo",
        id: "chatcmpl-1"
      } as const
      assert.deepStrictEqual(yield* Inference.chat(input), answer)
      assert.deepStrictEqual(yield* Inference.chat(input), { ...answer, model: "echo:latest", id: "" })
      assert.deepStrictEqual(openai.requests.map(({ url }) => url.pathname), ["/v1/models", "/v1/chat/completions"])
      assert.deepStrictEqual(ollama.requests.map(({ url }) => url.pathname), ["/api/tags", "/api/chat"])
      const [first] = yield* executions
      assert(first?.terminal?.event_type === "execution_completed")
      assert.deepStrictEqual([first.started?.input, first.terminal.output], [input, answer])
    }).pipe(Effect.provide(world)))

  it.effect("checks its input before any endpoint hears of it", () =>
    Effect.gen(function*() {
      const { ollama, openai } = yield* World
      const wrong: ReadonlyArray<readonly [object, ReadonlyArray<string>]> = [
        [{}, ["model", "messages"]],
        [{ model: "", messages }, ["model"]],
        [{ model: "echo", messages: [] }, ["messages[0]"]],
        [{ model: "echo", messages: [{ role: "user" }] }, ["messages[0].content"]],
        [{ model: "echo", messages: [{ role: "robot", content: "" }] }, ["messages[0].role"]],
        [{ model: "echo", messages, temperature: 2.1, top_p: -0.1 }, ["temperature", "top_p"]],
        [{ model: "echo", messages, max_tokens: 0, top_k: 1.5 }, ["max_tokens", "top_k"]],
        [{ model: "echo", messages, frequency_penalty: -3, presence_penalty: "1" }, [
          "frequency_penalty",
          "presence_penalty"
        ]],
        [{ model: "echo", messages, stop: ["a", 7] }, ["stop[1]"]],
        [{ model: "echo", messages, stop: "a" }, ["stop"]],
        [{ model: "echo", messages, temperature: null }, ["temperature"]]
      ]
      for (const [input, paths] of wrong) {
        const found = yield* issuesOf(Effect.provide(Inference.chat.execute(input), Testing.layerTest))
        assert.deepStrictEqual(found, ["InvalidInput", "00009", paths], JSON.stringify(input))
      }
      assert.lengthOf([...openai.requests, ...ollama.requests], 0)
    }).pipe(Effect.provide(world)))

  it.effect("names the endpoint in its failures, and no other part of its address", () =>
    Effect.gen(function*() {
      const { openai } = yield* World
      openai.fault("/v1/chat/completions", { kind: "answer", status: 500, body: `{"error":{"message":"CUDA error"}}` })
      const error = yield* Effect.flip(Inference.chat({ model: "embed-4", messages }))
      assert.deepStrictEqual(
        error,
        new InferenceEngineError({
          model: "embed-4",
          endpoint: "first",
          detail: "It says: CUDA error.",
          status: 500,
          retryable: true
        })
      )
      assert.strictEqual(
        error.message,
        `The endpoint first failed for the model "embed-4". It says: CUDA error.`
      )
    }).pipe(Effect.provide(world)))

  it.effect("closes its connection when it is interrupted, as the server sees it", () =>
    Effect.gen(function*() {
      const { openai } = yield* World
      openai.fault("/v1/chat/completions", { kind: "silence" })
      const fiber = yield* Effect.forkChild(Inference.chat({ model: "embed-4", messages }))
      yield* Effect.promise(() => openai.waiting())
      assert.strictEqual(openai.open(), 1)
      yield* Fiber.interrupt(fiber)
      yield* Effect.promise(() => openai.left())
      assert.strictEqual(openai.open(), 0)
    }).pipe(Effect.provide(world)))

  it.effect("goes to a replica that is there when one has gone, and is sent once", () =>
    Effect.gen(function*() {
      const { ollama, openai } = yield* World
      yield* Inference.chat({ model: "echo", messages })
      yield* Effect.promise(() => ollama.close())
      // What the server has closed is seen to be, before it is used again.
      yield* nextTurns
      const before = openai.requests.length
      for (let turn = 0; turn < 4; turn++) {
        assert.strictEqual((yield* Inference.chat({ model: "echo", messages })).model, "echo")
      }
      const chats = openai.requests.slice(before).filter(({ method }) => method === "POST")
      assert.strictEqual(chats.length, 4)
    }).pipe(Effect.provide(world)))
})

describe("inference.complete", () => {
  it.effect("gives how the text goes on", () =>
    Effect.gen(function*() {
      const input = { model: "echo", prompt: "one two three", stop: ["three"] }
      const answer = {
        text: "one two",
        finish_reason: "stop",
        usage: { prompt_tokens: 3, completion_tokens: 2, total_tokens: 5 }
      } as const
      assert.deepStrictEqual(yield* Inference.complete(input), answer)
      assert.deepStrictEqual(yield* Inference.complete(input), answer)
      assert.deepStrictEqual(
        yield* issuesOf(
          Effect.provide(Inference.complete.execute({ model: "echo", prompt: "", top_k: 1 }), Testing.layerTest)
        ),
        ["InvalidInput", "00009", ["prompt"]]
      )
    }).pipe(Effect.provide(world)))
})

describe("inference.embed", () => {
  it.effect("takes one text or many, and gives as many vectors", () =>
    Effect.gen(function*() {
      const one = yield* Inference.embed({ model: "embed-4", input: "two words" })
      const many = yield* Inference.embed({ model: "embed-4", input: ["other", "two words"] })
      assert.deepStrictEqual([one.embeddings.length, many.embeddings.length], [1, 2])
      assert.deepStrictEqual(many.embeddings[1], one.embeddings[0])
      assert.deepStrictEqual(many.usage, { prompt_tokens: 3, total_tokens: 3 })
      for (const input of ["", [], ["a", ""], ["a", 7]]) {
        const [tag] = yield* issuesOf(
          Effect.provide(Inference.embed.execute({ model: "embed-4", input }), Testing.layerTest)
        )
        assert.strictEqual(tag, "InvalidInput")
      }
    }).pipe(Effect.provide(world)))

  it.effect("takes nothing for vectors that has not one of the same length for each text", () =>
    Effect.gen(function*() {
      const { openai } = yield* World
      const vector = (index: number, ...embedding: ReadonlyArray<number>) => ({ index, embedding })
      const answers = [
        [],
        [vector(0, 1)],
        [vector(0, 1), vector(0, 1)],
        [vector(0, 1), vector(1, 1, 2)],
        [vector(0), vector(1)],
        [vector(0, 1), vector(2, 1)]
      ]
      for (const data of answers) {
        openai.fault("/v1/embeddings", { kind: "answer", body: { data } })
        const error = yield* Effect.flip(Inference.embed({ model: "embed-4", input: ["a", "b"] }))
        assert(error._tag === "InferenceEngineError", JSON.stringify(data))
        assert.include(error.detail, "For 2 texts it gave ")
      }
      // What is more than was asked for is passed over.
      openai.fault("/v1/embeddings", { kind: "answer", body: { data: [vector(1, 2), vector(0, 1), vector(7, 3)] } })
      const { embeddings } = yield* Inference.embed({ model: "embed-4", input: ["a", "b"] })
      assert.deepStrictEqual(embeddings, [[1], [2]])
    }).pipe(Effect.provide(world)))
})

describe("a key", () => {
  const Key = Schema.String.check(Schema.isPattern(/^[!-~]{8,40}$/))

  it.effect.prop(
    "is in no event, failure or message, whatever the server makes of it",
    { key: Key },
    ({ key }) =>
      Effect.gen(function*() {
        const server = yield* serve(OpenAiServer.routes({ models: ["echo"], key }))
        const endpoints = Endpoints.layer([
          { name: "only", dialect: "openai", baseUrl: server.url, apiKey: Redacted.make(key) }
        ])
        const test = yield* Testing.TestEvents
        const input = { model: "echo", messages } as const
        const units = [
          ["/v1/chat/completions", Inference.chat(input)],
          ["/v1/chat/completions", Stream.runDrain(Inference.chatStream(input))],
          ["/v1/completions", Inference.complete({ model: "echo", prompt: "a" })],
          ["/v1/completions", Stream.runDrain(Inference.completeStream({ model: "echo", prompt: "a" }))],
          ["/v1/embeddings", Inference.embed({ model: "echo", input: "a" })]
        ] as const
        const error = { message: `Incorrect API key provided: ${key}`, authorization: `Bearer ${key}` }
        const seen: Array<unknown> = []
        const router = Layer.provide(Router.layer(), endpoints)
        yield* Effect.gen(function*() {
          for (const [path, run] of units) {
            for (const status of [200, 400, 401, 404, 429, 500, 503]) {
              server.fault(path, { kind: "answer", status, body: { error } })
              seen.push(yield* Effect.exit(Effect.asVoid(run)))
            }
            server.fault(path, {
              kind: "answer",
              status: 200,
              body: `data: ${JSON.stringify({ error: { message: key } })}\n\n`
            })
            seen.push(yield* Effect.exit(Effect.asVoid(run)))
          }
          seen.push(yield* Inference.models())
        }).pipe(Effect.provide(router))
        const events = yield* test.events
        assert.isAbove(events.length, 60)
        assert.isTrue(seen.slice(0, -1).every((exit) => Exit.isExit(exit) && Exit.isFailure(exit)))
        assert.isTrue(server.requests.every(({ headers }) => headers.authorization === `Bearer ${key}`))
        assert.notInclude(JSON.stringify(events.map(ExecutionEvent.toCloudEvent)), key)
        assert.notInclude(inspect([events, seen], { depth: 20 }), key)
      }).pipe(Effect.scoped, Effect.provide(world)),
    { arbitrary: { runs: 10 } }
  )
})
