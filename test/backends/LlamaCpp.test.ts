import { NodeServices } from "@effect/platform-node"
import { assert, layer } from "@effect/vitest"
import { Cause, Effect, Exit, Fiber, FileSystem, Latch, Layer, Scope, Stream } from "effect"
import { TestClock } from "effect/testing"
import * as LlamaCpp from "../../src/backends/LlamaCpp.ts"
import { file } from "../model/files.ts"
import { runnableGguf } from "../model/runnable.ts"

const hello: ReadonlyArray<LlamaCpp.Message> = [
  { role: "system", content: "Be brief." },
  { role: "user", content: "Hello" },
  { role: "assistant", content: "Hi" },
  { role: "user", content: "How are you?" }
]

/** As the template of the model has it, with the token that begins every text. */
const promptTokens = "system: Be brief.\nuser: Hello\nassistant: Hi\nuser: How are you?\nassistant: ".length

const model = file("tiny.gguf", runnableGguf())

const collect = <E, R>(pieces: Stream.Stream<LlamaCpp.Piece, E, R>) =>
  Effect.map(Stream.runCollect(pieces), (pieces) => {
    const end = pieces.at(-1)
    assert(end?.type === "end")
    assert.deepStrictEqual(pieces.filter(({ type }) => type === "end"), [end])
    return { text: pieces.map((piece) => piece.type === "text" ? piece.text : "").join(""), end }
  })

/** The beginning of an answer that goes on for as long as nobody stops it; done when its first text has come. */
const beginAnswer = Effect.fnUntraced(function*(engine: LlamaCpp.LlamaCpp["Service"], path: string) {
  const begun = Latch.makeUnsafe(false)
  const fiber = yield* engine.chat(path, hello, { temperature: 1, seed: 3 }).pipe(
    Stream.runForEach(() => begun.open),
    Effect.forkChild({ startImmediately: true })
  )
  yield* begun.await
  return fiber
})

layer(Layer.merge(NodeServices.layer, LlamaCpp.layer({ gpu: false, threads: 1 })))("LlamaCpp", (it) => {
  it.effect("says what a model is like", () =>
    Effect.gen(function*() {
      const engine = yield* LlamaCpp.LlamaCpp
      assert.deepStrictEqual(yield* engine.load(yield* model), {
        context_length: 2048,
        embedding_length: 64,
        architecture: "llama",
        name: "Tiny Random"
      })
    }))

  it.effect("answers a conversation piece by piece, and says why it ended and what it took", () =>
    Effect.gen(function*() {
      const engine = yield* LlamaCpp.LlamaCpp
      const path = yield* model
      const { end, text } = yield* collect(engine.chat(path, hello, { max_tokens: 16, seed: 1, temperature: 0.8 }))
      assert.isAbove(text.length, 0)
      assert.strictEqual(end.finish_reason, "length")
      assert.strictEqual(end.completion_tokens, 16)
      // Pieces of the vocabulary that are longer than a character make it fewer.
      assert.isAtMost(end.prompt_tokens, promptTokens + 2)
      assert.isAbove(end.prompt_tokens, promptTokens / 2)
    }))

  it.effect("completes a text, the same each time without temperature", () =>
    Effect.gen(function*() {
      const engine = yield* LlamaCpp.LlamaCpp
      const path = yield* model
      const complete = collect(engine.complete(path, "the cat", { max_tokens: 8, temperature: 0 }))
      const first = yield* complete
      assert.strictEqual(first.end.completion_tokens, 8)
      assert.deepStrictEqual(yield* complete, first)
    }))

  it.effect("ends before a text that is to stop it", () =>
    Effect.gen(function*() {
      const engine = yield* LlamaCpp.LlamaCpp
      const path = yield* model
      const options = { max_tokens: 64, temperature: 0 }
      const { text } = yield* collect(engine.complete(path, "the cat", options))
      const stop = text.slice(4, 6)
      const stopped = yield* collect(engine.complete(path, "the cat", { ...options, stop: [stop] }))
      assert.strictEqual(stopped.text, text.slice(0, text.indexOf(stop)))
      assert.strictEqual(stopped.end.finish_reason, "stop")
    }))

  it.effect("goes on to the end of the context and no further", () =>
    Effect.gen(function*() {
      const engine = yield* LlamaCpp.LlamaCpp
      const path = yield* file("short.gguf", runnableGguf({ contextLength: 256 }))
      const { end } = yield* collect(engine.complete(path, "the cat", { temperature: 1, seed: 2 }))
      if (end.finish_reason === "length") assert.strictEqual(end.prompt_tokens + end.completion_tokens, 256)
      else assert.isBelow(end.prompt_tokens + end.completion_tokens, 256)
    }))

  it.effect("embeds each text by itself", () =>
    Effect.gen(function*() {
      const engine = yield* LlamaCpp.LlamaCpp
      const path = yield* model
      const { embeddings, prompt_tokens } = yield* engine.embed(path, ["one", "two", "one"])
      const [one, two, again] = embeddings
      assert.deepStrictEqual(embeddings.map(({ length }) => length), [64, 64, 64])
      assert.deepStrictEqual(again, one)
      assert.notDeepEqual(two, one)
      const alone = yield* engine.embed(path, ["two"])
      assert.deepStrictEqual(alone.embeddings[0], two)
      assert.isAbove(prompt_tokens, alone.prompt_tokens)
    }))

  it.effect("stops when it is interrupted, and serves the next one", () =>
    Effect.gen(function*() {
      const engine = yield* LlamaCpp.LlamaCpp
      const path = yield* model
      const fiber = yield* beginAnswer(engine, path)
      yield* Fiber.interrupt(fiber)
      // The only place is free, or this would wait for good.
      yield* collect(engine.complete(path, "the cat", { max_tokens: 4 }))
      assert.isTrue(Exit.hasInterrupts(yield* Fiber.await(fiber)))
    }))

  it.effect("serves one after the other where there is room for one", () =>
    Effect.gen(function*() {
      const engine = yield* LlamaCpp.LlamaCpp
      const path = yield* model
      const alone = yield* collect(engine.complete(path, "the cat", { max_tokens: 8, temperature: 0 }))
      const together = yield* Effect.all(
        Array.from({ length: 4 }, () => collect(engine.complete(path, "the cat", { max_tokens: 8, temperature: 0 }))),
        { concurrency: "unbounded" }
      )
      assert.deepStrictEqual(together, [alone, alone, alone, alone])
    }))

  it.effect("refuses a prompt that leaves no room for an answer", () =>
    Effect.gen(function*() {
      const engine = yield* LlamaCpp.LlamaCpp
      const path = yield* file("short.gguf", runnableGguf({ contextLength: 256 }))
      const long = "the cat ".repeat(100)
      const error = yield* Effect.flip(Stream.runDrain(engine.complete(path, long)))
      assert(error.reason._tag === "PromptTooLong")
      assert.strictEqual(error.reason.context_length, 256)
      assert.isAbove(error.reason.tokens, 256)
      assert.isFalse(error.retryable)
      const embedding = yield* Effect.flip(engine.embed(path, ["short", long]))
      assert.strictEqual(embedding.reason._tag, "PromptTooLong")
      yield* collect(engine.complete(path, "the cat", { max_tokens: 4 }))
    }))

  it.effect("says which file it cannot load, and loads it when it is right", () =>
    Effect.gen(function*() {
      const engine = yield* LlamaCpp.LlamaCpp
      const fs = yield* FileSystem.FileSystem
      const path = yield* file("broken.gguf", runnableGguf().slice(0, 5000))
      const error = yield* Effect.flip(engine.load(path))
      assert(error.reason._tag === "NotLoadable")
      assert.include(error.message, path)
      yield* fs.writeFile(path, runnableGguf())
      assert.strictEqual((yield* engine.load(path)).architecture, "llama")
    }))

  it.effect("lets go of a model that nobody uses", () =>
    Effect.gen(function*() {
      const engine = yield* LlamaCpp.make({ gpu: false, threads: 1, idleTimeToLive: "1 minute" })
      const fs = yield* FileSystem.FileSystem
      const path = yield* model
      yield* engine.load(path)
      yield* fs.remove(path)
      // Still there.
      yield* collect(engine.complete(path, "the cat", { max_tokens: 2 }))
      yield* TestClock.adjust("61 seconds")
      const error = yield* Effect.flip(engine.load(path))
      assert.strictEqual(error.reason._tag, "NotLoadable")
    }))

  it.effect("closes while it answers", () =>
    Effect.gen(function*() {
      const scope = yield* Scope.make()
      const engine = yield* Scope.provide(LlamaCpp.make({ gpu: false, threads: 1 }), scope)
      const fiber = yield* beginAnswer(engine, yield* model)
      yield* Fiber.interrupt(fiber)
      yield* Scope.close(scope, Exit.void)
      const exit = yield* Effect.exit(Stream.runDrain(engine.complete(yield* model, "the cat")))
      assert(Exit.isFailure(exit))
      assert.isTrue(Cause.hasInterruptsOnly(exit.cause))
    }))
})
