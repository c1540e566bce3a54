import { NodeServices } from "@effect/platform-node"
import { assert, describe, it } from "@effect/vitest"
import { Context, Deferred, Effect, Exit, Fiber, Layer, Stream } from "effect"
import { SqlClient } from "effect/sql"
import { TestClock } from "effect/testing"
import * as path from "node:path"
import * as Sqlite from "../../src/backends/Sqlite.ts"
import type { Backend, ChatRequest } from "../../src/inference/Backend.ts"
import {
  type BackendReason,
  Busy,
  EngineFailed,
  ModelMissing,
  Refused,
  Unreachable
} from "../../src/inference/BackendReason.ts"
import * as Endpoints from "../../src/inference/Endpoints.ts"
import { InferenceEngineError, InferenceInvalidParams, InferenceModelNotLoaded } from "../../src/inference/Errors.ts"
import type { StreamChunk } from "../../src/inference/Inference.ts"
import { Router } from "../../src/inference/Router.ts"
import * as RouterModule from "../../src/inference/Router.ts"
import * as ModelStore from "../../src/model/ModelStore.ts"
import { folder } from "./world.ts"

/** An endpoint of this process that can be told what to do. */
const fake = (name: string, served: ReadonlyArray<string>, more: Partial<Endpoints.Endpoint> = {}) => {
  const self = {
    served,
    /** What happens at the next requests. */
    failures: [] as Array<BackendReason>,
    listing: Effect.void as Effect.Effect<void, BackendReason>,
    lists: 0,
    calls: [] as Array<string>
  }
  const answer = (request: ChatRequest) =>
    Effect.suspend(() => {
      self.calls.push(request.model)
      const failure = self.failures.shift()
      return failure === undefined ? Effect.succeed(name) : Effect.fail(failure)
    })
  const backend: Backend = {
    models: Effect.suspend(() => {
      self.lists++
      return Effect.as(self.listing, self.served.map((id) => ({ id })))
    }),
    chat: (request) =>
      Effect.map(answer(request), (content) => ({ content, finish_reason: "stop", model: request.model, id: "" })),
    chatStream: (request) =>
      Stream.unwrap(
        Effect.map(answer(request), (data) => {
          const metadata = { finish_reason: "", model: request.model, id: "" } as const
          const chunks: ReadonlyArray<StreamChunk> = [{ type: "content", data, metadata }, {
            type: "done",
            data: "",
            metadata
          }]
          return Stream.fromIterable(chunks)
        })
      )
  }
  const endpoint: Endpoints.Endpoint = { name, provider: "test", address: "here", backend, ...more }
  return Object.assign(self, { endpoint })
}

type Fake = ReturnType<typeof fake>

/** A router over endpoints that can come and go, and the register. */
const opened = Effect.fnUntraced(function*(...fakes: ReadonlyArray<Fake>) {
  const directory = yield* folder
  const live: { list: ReadonlyArray<Endpoints.Endpoint>; failure?: Endpoints.EndpointsError } = {
    list: fakes.map(({ endpoint }) => endpoint)
  }
  const endpoints = Layer.succeed(Endpoints.Endpoints, {
    list: Effect.suspend(() => live.failure === undefined ? Effect.succeed(live.list) : Effect.fail(live.failure))
  })
  const register = ModelStore.layer({ directory }).pipe(
    Layer.provideMerge(Sqlite.layer({ filename: path.join(directory, "test.db") })),
    Layer.provideMerge(NodeServices.layer)
  )
  const context = yield* Layer.build(Layer.provideMerge(RouterModule.layer(), Layer.merge(endpoints, register)))
  const router = Context.get(context, Router)
  const messages = [{ role: "user", content: "hi" }] as const
  return {
    live,
    store: Context.get(context, ModelStore.ModelStore),
    sql: Context.get(context, SqlClient.SqlClient),
    router,
    /** Who answered. */
    chat: (model: string) =>
      Effect.map(
        router.call(model, "chat", (backend, model) => backend.chat?.({ model, messages })),
        ({ content }) => content
      ),
    chatStream: (model: string) =>
      Effect.map(
        Stream.runCollect(
          router.stream(model, "chat", (backend, model) => backend.chatStream?.({ model, messages }))
        ),
        (chunks) => chunks.map(({ data }) => data).join("")
      )
  }
})

const model = { type: "llm", format: "gguf", status: "ready", source: "local", size: 0, tags: [], files: [] } as const

const gone = new Unreachable({ detail: "Nobody there" })

describe("a model", () => {
  it.effect("is found by a name that an endpoint serves, whatever its case, and by Ollama's without the tag", () =>
    Effect.gen(function*() {
      const one = fake("one", ["Qwen/Tiny", "echo:latest", "echo:1b"])
      const { chat } = yield* opened(one)
      for (const name of ["Qwen/Tiny", "qwen/tiny", "echo", "ECHO:latest", "echo:1B"]) yield* chat(name)
      assert.deepStrictEqual(one.calls, ["Qwen/Tiny", "Qwen/Tiny", "echo:latest", "echo:latest", "echo:1b"])
      assert.strictEqual((yield* Effect.flip(chat("qwen")))._tag, "InferenceModelNotLoaded")
    }))

  it.effect("that is registered is found by its id and name, served under any name that stands for it", () =>
    Effect.gen(function*() {
      const one = fake("one", [])
      const { chat, store } = yield* opened(one)
      const origin = { source: "huggingface", repo: "acme/tiny", tag: "q4" } as const
      const { id } = yield* store.insert({ ...model, name: "My Tiny", path: "/models/acme/tiny.gguf", origin })
      for (
        const served of [id, "my tiny", "/models/acme/tiny.gguf", "tiny.gguf", "tiny", "acme/tiny", "acme/tiny:Q4"]
      ) {
        one.served = ["something else", served]
        yield* TestClock.adjust("10 seconds")
        yield* chat(id)
        yield* chat("MY TINY")
        assert.deepStrictEqual(one.calls.splice(0), [served, served])
      }
    }))

  it.effect("that an endpoint was started for is served by it, whatever that calls it, where that is the only one", () =>
    Effect.gen(function*() {
      const one = fake("one", ["/mnt/weights"])
      const { chat, live, store } = yield* opened(one)
      const { id } = yield* store.insert({ ...model, name: "tiny" })
      const other = yield* store.insert({ ...model, name: "other" })
      live.list = [{ ...one.endpoint, modelId: id }]
      yield* chat("tiny")
      assert.deepStrictEqual(one.calls, ["/mnt/weights"])
      assert.strictEqual((yield* Effect.flip(chat(other.id)))._tag, "InferenceModelNotLoaded")
      one.served = ["a", "b"]
      yield* TestClock.adjust("10 seconds")
      assert.strictEqual((yield* Effect.flip(chat("tiny")))._tag, "InferenceModelNotLoaded")
    }))

  it.effect("that nobody serves is told with who did not answer, and asked for again the next time", () =>
    Effect.gen(function*() {
      const [one, two] = [fake("one", []), fake("two", ["tiny"])]
      two.listing = Effect.fail(gone)
      const { chat, live } = yield* opened(one, two)
      assert.deepStrictEqual(
        yield* Effect.flip(chat("tiny")),
        new InferenceModelNotLoaded({
          model: "tiny",
          detail: "None of 2 endpoints serves it. two did not answer. Nobody there " +
            "Start an engine or a service with it, or see which models there are",
          retryable: true
        })
      )
      two.listing = Effect.void
      assert.strictEqual(yield* chat("tiny"), "two")
      one.served = ["late"]
      assert.strictEqual(yield* chat("late"), "one")
      live.list = []
      yield* TestClock.adjust("10 seconds")
      const error = yield* Effect.flip(chat("late"))
      assert(error._tag === "InferenceModelNotLoaded")
      assert.deepStrictEqual([error.detail.split(". ")[0], error.retryable], ["There is no endpoint", false])
    }))

  it.effect("is looked for once in a while, not for each request, however many there are at once", () =>
    Effect.gen(function*() {
      const one = fake("one", ["tiny"])
      const { chat, sql } = yield* opened(one)
      yield* Effect.forEach(Array.from({ length: 20 }), () => chat("tiny"), { concurrency: "unbounded" })
      assert.strictEqual(one.lists, 1)
      yield* TestClock.adjust("5 seconds")
      yield* chat("tiny")
      assert.strictEqual(one.lists, 2)
      yield* sql`DROP TABLE effect_units_models`
      assert.strictEqual(yield* chat("tiny"), "one")
      yield* TestClock.adjust("5 seconds")
      assert.strictEqual((yield* Effect.flip(chat("tiny")))._tag, "InternalError")
    }))

  it.effect("is found for others, too, when the one who asked first gives up", () =>
    Effect.gen(function*() {
      const one = fake("one", ["tiny"])
      const [asked, answer] = [yield* Deferred.make<void>(), yield* Deferred.make<void>()]
      one.listing = Effect.andThen(Deferred.succeed(asked, undefined), Deferred.await(answer))
      const { chat } = yield* opened(one)
      const first = yield* Effect.forkChild(chat("tiny"))
      yield* Deferred.await(asked)
      const second = yield* Effect.forkChild(chat("tiny"), { startImmediately: true })
      yield* Fiber.interrupt(first)
      yield* Deferred.succeed(answer, undefined)
      assert.deepStrictEqual(yield* Fiber.await(second), Exit.succeed("one"))
    }))

  it.effect("that its endpoint has lost is looked for anew", () =>
    Effect.gen(function*() {
      const [one, two] = [fake("one", ["tiny"]), fake("two", [])]
      const { chat } = yield* opened(one, two)
      yield* chat("tiny")
      one.failures.push(new ModelMissing({ detail: "Gone", loading: false }))
      const error = yield* Effect.flip(chat("tiny"))
      assert.deepStrictEqual(
        error,
        new InferenceModelNotLoaded({
          model: "tiny",
          detail: "The endpoint one does not have it. Gone",
          retryable: false
        })
      )
      one.served = []
      two.served = ["tiny"]
      assert.strictEqual(yield* chat("tiny"), "two")
    }))

  it.effect("whose connection broke is looked for anew, and one that its endpoint failed for is not", () =>
    Effect.gen(function*() {
      const one = fake("one", ["tiny"])
      const { chat } = yield* opened(one)
      yield* chat("tiny")
      one.failures.push(new EngineFailed({ detail: "Crash", status: 500, retryable: true }))
      yield* Effect.flip(chat("tiny"))
      yield* chat("tiny")
      assert.strictEqual(one.lists, 1)
      one.failures.push(new EngineFailed({ detail: "Reset", retryable: true }))
      yield* Effect.flip(chat("tiny"))
      yield* chat("tiny")
      assert.strictEqual(one.lists, 2)
    }))

  it.effect("needs no list where it is declared", () =>
    Effect.gen(function*() {
      const one = fake("one", [], { models: ["tiny"] })
      const { chat } = yield* opened(one)
      assert.strictEqual(yield* chat("Tiny"), "one")
      assert.strictEqual(one.lists, 0)
    }))
})

describe("replicas", () => {
  it.effect("take turns, for each model by itself", () =>
    Effect.gen(function*() {
      const all = [fake("one", ["tiny", "other"]), fake("two", ["tiny", "other"]), fake("three", ["tiny"])]
      const { chat, chatStream } = yield* opened(...all)
      const who: Array<string> = []
      for (let turn = 0; turn < 4; turn++) {
        who.push(yield* turn % 2 === 0 ? chat("tiny") : chatStream("tiny"), yield* chat("other"))
      }
      assert.deepStrictEqual(who, ["one", "one", "two", "two", "three", "one", "one", "two"])
      yield* TestClock.adjust("5 seconds")
      assert.strictEqual(yield* chat("tiny"), "two")
    }))

  it.effect("that cannot be reached pass a request on, once, and are passed over for a while", () =>
    Effect.gen(function*() {
      const [one, two] = [fake("one", ["tiny"]), fake("two", ["tiny"])]
      const { chat, chatStream } = yield* opened(one, two)
      for (const call of [chat, chatStream]) {
        let last = yield* call("tiny")
        while (last !== "two") last = yield* call("tiny")
        // Now it is the turn of the first.
        one.failures.push(gone)
        one.listing = Effect.fail(gone)
        const who = [yield* call("tiny"), yield* call("tiny"), yield* call("tiny")]
        assert.deepStrictEqual(who, ["two", "two", "two"])
        assert.deepStrictEqual(one.failures, [])
        one.calls.splice(0)
        one.listing = Effect.void
        yield* TestClock.adjust("20 seconds")
        const later = [yield* call("tiny"), yield* call("tiny")]
        assert.sameMembers(later, ["one", "two"])
      }
    }))

  it.effect("that cannot be reached either are not asked in a ring", () =>
    Effect.gen(function*() {
      const all = [fake("one", ["tiny"]), fake("two", ["tiny"]), fake("three", ["tiny"])]
      const { chat, chatStream } = yield* opened(...all)
      for (const call of [chat, chatStream]) {
        for (const each of all) each.failures.push(gone, gone)
        const error = yield* Effect.flip(call("tiny"))
        assert(error._tag === "InferenceEngineError" && error.retryable)
        assert.strictEqual(all.reduce((sum, { failures }) => sum + failures.length, 0), 4)
        for (const each of all) each.failures.splice(0)
      }
    }))

  it.effect("are asked when there is no other, although they could not be reached before", () =>
    Effect.gen(function*() {
      const one = fake("one", ["tiny"])
      const { chat } = yield* opened(one)
      one.failures.push(gone)
      assert.deepStrictEqual(
        yield* Effect.flip(chat("tiny")),
        new InferenceEngineError({ model: "tiny", endpoint: "one", detail: "Nobody there", retryable: true })
      )
      assert.strictEqual(yield* chat("tiny"), "one")
    }))

  it.effect("that moved are found in their new place within the same request", () =>
    Effect.gen(function*() {
      const [before, after] = [fake("engine", ["tiny"]), fake("engine", ["tiny"], { address: "there" })]
      const { chat, live } = yield* opened(before)
      yield* chat("tiny")
      before.failures.push(gone)
      live.list = [after.endpoint]
      yield* chat("tiny")
      assert.deepStrictEqual([before.calls.length, after.calls.length], [2, 1])
    }))

  it.effect("get no request that may have begun elsewhere", () =>
    Effect.gen(function*() {
      const reasons = [
        [new EngineFailed({ detail: "Broken", status: 500, retryable: true }), "InferenceEngineError"],
        [new Busy({ detail: "Busy", retry_after_seconds: 7 }), "InferenceRateLimited"],
        [new Refused({ detail: "No" }), "InferenceInvalidParams"]
      ] as const
      const [one, two] = [fake("one", ["tiny"]), fake("two", ["tiny"])]
      const { chat, chatStream } = yield* opened(one, two)
      for (const call of [chat, chatStream]) {
        for (const [reason, tag] of reasons) {
          one.failures.push(reason)
          two.failures.push(reason)
          assert.strictEqual((yield* Effect.flip(call("tiny")))._tag, tag)
          assert.strictEqual(one.failures.length + two.failures.length, 1)
          one.failures.splice(0)
          two.failures.splice(0)
        }
      }
    }))

  it.effect("that have the operation are chosen, and without one the failure names all", () =>
    Effect.gen(function*() {
      const [one, two] = [fake("one", ["tiny"]), fake("two", ["tiny"])]
      const { live, router } = yield* opened(one, two)
      const rerank = router.call("tiny", "reranking", (backend) =>
        backend.rerank?.({ model: "", query: "", documents: [] }))
      assert.deepStrictEqual(
        yield* Effect.flip(rerank),
        new InferenceInvalidParams({
          model: "tiny",
          detail: "None of its endpoints (one, two) can do reranking. Use a model that is served by one that can"
        })
      )
      const able: Backend = {
        ...two.endpoint.backend,
        rerank: () =>
          Effect.succeed({ scores: [] })
      }
      live.list = [one.endpoint, { ...two.endpoint, backend: able }]
      yield* TestClock.adjust("5 seconds")
      for (let turn = 0; turn < 3; turn++) {
        assert.deepStrictEqual(yield* rerank, { scores: [] })
      }
      live.list = [one.endpoint]
      yield* TestClock.adjust("5 seconds")
      const error = yield* Effect.flip(rerank)
      assert(error._tag === "InferenceInvalidParams")
      assert.strictEqual(error.endpoint, "one")
    }))
})

describe("served", () => {
  it.effect("leaves out who does not answer, and takes a word for who has no list", () =>
    Effect.gen(function*() {
      const [one, two, three] = [
        fake("one", ["tiny", "hidden"], { models: ["tiny", "unlisted"] }),
        fake("two", ["tiny"], { models: ["tiny"] }),
        fake("three", [], { models: ["tts"] })
      ]
      two.listing = Effect.fail(gone)
      three.listing = Effect.fail(new Refused({ detail: "no such path" }))
      const { router } = yield* opened(one, two, three)
      const served = yield* router.served
      assert.deepStrictEqual(served.map(({ endpoint, models }) => [endpoint.name, models.map(({ id }) => id)]), [
        ["one", ["tiny", "unlisted"]],
        ["three", ["tts"]]
      ])
    }))
})

it.effect("a list of endpoints that cannot be read is an internal error", () =>
  Effect.gen(function*() {
    const one = fake("one", ["tiny"])
    const { chat, live, router } = yield* opened(one)
    live.failure = new Endpoints.EndpointsError({ cause: new Error("no table") })
    for (const work of [Effect.asVoid(chat("tiny")), Effect.asVoid(router.served)]) {
      const error = yield* Effect.flip(work)
      assert(error._tag === "InternalError")
      assert.strictEqual(error.detail, "The endpoints could not be listed: no table")
    }
  }))
