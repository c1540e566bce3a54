/** What every protocol for text promises. Each has its tests run this over its own stand-in server. */
import { NodeHttpClient } from "@effect/platform-node"
import { assert, describe, it } from "@effect/vitest"
import { Effect, Fiber, Queue, type Scope, Stream } from "effect"
import type { HttpClient } from "effect/http"
import { TestClock } from "effect/testing"
import type { Backend, ChatRequest, CompleteRequest } from "../../src/inference/Backend.ts"
import {
  type BackendReason,
  Busy,
  EngineFailed,
  ModelMissing,
  Refused,
  TimedOut
} from "../../src/inference/BackendReason.ts"
import type { StreamChunk } from "../../src/inference/Inference.ts"
import type * as StandIn from "./StandIn.ts"
import { nextTurns, serve } from "./world.ts"

/** A protocol: its server, its client, and its paths. The server has the models `echo` and `tiny`. */
export interface Protocol {
  readonly name: string
  readonly routes: ReadonlyArray<StandIn.Route>
  readonly make: (baseUrl: string) => Effect.Effect<Backend, never, HttpClient.HttpClient>
  readonly paths: { readonly chat: string; readonly complete: string; readonly embed: string; readonly models: string }
  /** The id that it gives to requests. */
  readonly id: string
  /** The answer to `hello`, as it is streamed, and an error in the middle of one. */
  readonly error: string
}

/** A text with characters of one to four bytes. */
const text = "naïve 漢字 🦙 end"

const hello: ChatRequest = { model: "echo", messages: [{ role: "user", content: text }] }
const onward: CompleteRequest = { model: "echo", prompt: text }

/** The texts of content chunks together, and the last chunk. */
const together = (chunks: ReadonlyArray<StreamChunk>) => ({
  text: chunks.filter(({ type }) => type === "content").map(({ data }) => data).join(""),
  last: chunks.at(-1),
  dones: chunks.filter(({ type }) => type === "done").length
})

export const suite = (protocol: Protocol) =>
  describe(`text by ${protocol.name}`, () => {
    const { id, paths } = protocol
    const opened = Effect.gen(function*() {
      const server = yield* serve(protocol.routes)
      // All that is here is there.
      const backend = (yield* protocol.make(server.url)) as Required<Backend>
      return { server, backend }
    })
    const test = (title: string, body: () => Effect.Effect<unknown, unknown, HttpClient.HttpClient | Scope.Scope>) =>
      it.effect(title, () => Effect.provide(body(), NodeHttpClient.layerUndici))

    const usage = { prompt_tokens: 4, completion_tokens: 4, total_tokens: 8 }

    test("answers a chat with its text, why it ended, and the tokens it took", () =>
      Effect.gen(function*() {
        const { backend } = yield* opened
        assert.deepStrictEqual(yield* backend.chat(hello), {
          content: text,
          finish_reason: "stop",
          usage,
          model: "echo",
          id
        })
        assert.deepStrictEqual(yield* backend.complete({ ...onward, max_tokens: 3 }), {
          text: "naïve 漢字 🦙",
          finish_reason: "length",
          usage: { prompt_tokens: 4, completion_tokens: 3, total_tokens: 7 }
        })
      }))

    test("streams the same, and ends with one last chunk", () =>
      Effect.gen(function*() {
        const { backend } = yield* opened
        const done = {
          type: "done" as const,
          data: "",
          metadata: { finish_reason: "stop" as const, model: "echo", id },
          usage
        }
        for (const stream of [backend.chatStream(hello), backend.completeStream(onward)]) {
          const chunks = yield* Stream.runCollect(stream)
          assert.deepStrictEqual(chunks.map(({ data }) => data), ["naïve", " 漢字", " 🦙", " end", ""])
          assert.deepStrictEqual(chunks.at(-1), {
            ...done,
            metadata: { ...done.metadata, id: chunks.at(-1)!.metadata.id }
          })
        }
        assert.deepStrictEqual((yield* Stream.runCollect(backend.chatStream(hello))).at(-1), done)
        const short = yield* Stream.runCollect(backend.chatStream({ ...hello, max_tokens: 1 }))
        assert.strictEqual(short.at(-1)?.metadata.finish_reason, "length")
      }))

    test("reads streams that come in any pieces, inside of characters and lines as well", () =>
      Effect.gen(function*() {
        const { backend, server } = yield* opened
        for (const bytes of [1, 2, 3, 5, 7, 11, 64]) {
          server.fault(paths.chat, { kind: "split", bytes })
          const { dones, last, text: all } = together(yield* Stream.runCollect(backend.chatStream(hello)))
          assert.deepStrictEqual([bytes, all, dones, last?.usage], [bytes, text, 1, usage])
        }
      }))

    test("gives each chunk when it comes", () =>
      Effect.gen(function*() {
        const { backend, server } = yield* opened
        const whole = yield* Effect.promise(() => wholeBody(server, paths.chat, { ...hello, stream: true }))
        // The server waits after the first word; the client has it all the same.
        server.fault(paths.chat, { kind: "stall", after: whole.indexOf(" 漢字") })
        const queue = yield* Queue.unbounded<string>()
        const fiber = yield* Effect.forkChild(
          Stream.runForEach(backend.chatStream(hello), ({ data }) => Queue.offer(queue, data))
        )
        assert.strictEqual(yield* Queue.take(queue), "naïve")
        yield* Effect.promise(() => server.waiting())
        server.go()
        yield* Fiber.join(fiber)
        assert.strictEqual((yield* Queue.takeAll(queue)).join(""), " 漢字 🦙 end")
      }))

    const failing = (request: ChatRequest = hello) =>
      Effect.fnUntraced(function*(fault: StandIn.Fault) {
        const { backend, server } = yield* opened
        server.fault(paths.chat, fault, fault)
        const called = yield* Effect.flip(backend.chat(request))
        const streamed = yield* Effect.flip(Stream.runDrain(backend.chatStream(request)))
        assert.deepStrictEqual(streamed, called)
        return called
      })

    test("tells why a request failed, whole and streamed alike", () =>
      Effect.gen(function*() {
        const status = (status: number, body = "", headers = {}) => failing()({ kind: "answer", status, body, headers })
        const failures: ReadonlyArray<readonly [BackendReason, BackendReason]> = [
          [yield* status(400, `{"error":"no such option"}`), new Refused({ detail: "It says: no such option." })],
          [
            yield* status(404, `{"error":{"message":"The model is gone."}}`),
            new ModelMissing({ detail: "It says: The model is gone. Pull or load it there first", loading: false })
          ],
          [
            yield* status(404, "404 page not found"),
            new Refused({
              detail: "The endpoint has no such operation. It says: 404 page not found.",
              unsupported: true
            })
          ],
          [yield* status(504), new TimedOut({ detail: "It answered 504." })],
          [
            yield* status(429, "", { "retry-after": "7" }),
            new Busy({ detail: "It answered 429.", retry_after_seconds: 7 })
          ],
          [yield* status(503), new Busy({ detail: "It answered 503." })],
          [
            yield* status(503, `{"error":{"message":"Loading model"}}`),
            new ModelMissing({ detail: "It says: Loading model. Try again later", loading: true })
          ],
          [yield* status(500), new EngineFailed({ detail: "It answered 500.", status: 500, retryable: true })],
          [
            yield* status(401, `{"detail":"who are you?"}`),
            new EngineFailed({ detail: "It says: who are you?. Check its API key", status: 401, retryable: false })
          ]
        ]
        for (const [actual, expected] of failures) assert.deepStrictEqual(actual, expected)
      }))

    test("refuses what its server refuses: a model that it does not have", () =>
      Effect.gen(function*() {
        const { backend } = yield* opened
        const error = yield* Effect.flip(backend.chat({ ...hello, model: "nobody's" }))
        assert.strictEqual(error._tag, "ModelMissing")
      }))

    test("fails when the connection breaks, or the answer ends, in the middle of a stream; what came before is given", () =>
      Effect.gen(function*() {
        const { backend, server } = yield* opened
        const whole = yield* Effect.promise(() => wholeBody(server, paths.chat, { ...hello, stream: true }))
        for (const kind of ["cut", "end"] as const) {
          server.fault(paths.chat, { kind, after: whole.indexOf(" 🦙") })
          const taken: Array<string> = []
          const error = yield* Effect.flip(
            Stream.runForEach(backend.chatStream(hello), ({ data }) => Effect.sync(() => taken.push(data)))
          )
          assert.deepStrictEqual([error._tag, "retryable" in error && error.retryable], ["EngineFailed", true])
          if (kind === "end") assert.deepStrictEqual(taken, ["naïve", " 漢字"])
        }
      }))

    test("fails with an error that comes inside of a stream, after what came before it", () =>
      Effect.gen(function*() {
        const { backend, server } = yield* opened
        const whole = yield* Effect.promise(() => wholeBody(server, paths.chat, { ...hello, stream: true }))
        const before = whole.subarray(0, lineBefore(whole, whole.indexOf(" 🦙")))
        server.fault(paths.chat, {
          kind: "answer",
          status: 200,
          body: Buffer.concat([before, Buffer.from(protocol.error)])
        })
        const taken: Array<string> = []
        const error = yield* Effect.flip(
          Stream.runForEach(backend.chatStream(hello), ({ data }) => Effect.sync(() => taken.push(data)))
        )
        assert.deepStrictEqual(
          error,
          new EngineFailed({ detail: "It says: out of memory.", status: 500, retryable: true })
        )
        assert.deepStrictEqual(taken, ["naïve", " 漢字"])
      }))

    test("does not take what it cannot read for an answer", () =>
      Effect.gen(function*() {
        for (const body of ["", "{", "[]", "{}", `{"choices":[]}`]) {
          const error = yield* failingWhole(body)
          assert.strictEqual(error._tag, "EngineFailed", body)
        }
      }))

    const failingWhole = Effect.fnUntraced(function*(body: string) {
      const { backend, server } = yield* opened
      server.fault(paths.chat, { kind: "answer", status: 200, body })
      return yield* Effect.flip(backend.chat(hello))
    })

    test("gives up on a server that never answers, and on one that falls silent", () =>
      Effect.gen(function*() {
        const { backend, server } = yield* opened
        const timesOut = Effect.fnUntraced(function*(
          work: Effect.Effect<unknown, BackendReason>,
          fault: StandIn.Fault,
          after: "10 minutes" | "5 minutes"
        ) {
          server.fault(paths.chat, fault)
          const fiber = yield* Effect.forkChild(Effect.flip(work))
          yield* Effect.promise(() => server.waiting())
          // The head of the answer arrives on its own time.
          yield* nextTurns
          yield* TestClock.adjust(after)
          assert.strictEqual((yield* Fiber.join(fiber))._tag, "TimedOut")
          yield* Effect.promise(() => server.left())
        })
        yield* timesOut(backend.chat(hello), { kind: "silence" }, "10 minutes")
        yield* timesOut(Stream.runDrain(backend.chatStream(hello)), { kind: "silence" }, "10 minutes")
        yield* timesOut(backend.chat(hello), { kind: "stall", after: 10 }, "5 minutes")
        yield* timesOut(Stream.runDrain(backend.chatStream(hello)), { kind: "stall", after: 10 }, "5 minutes")
      }))

    test("closes the connection when it is interrupted, and when nobody takes the rest of a stream", () =>
      Effect.gen(function*() {
        const { backend, server } = yield* opened
        const whole = yield* Effect.promise(() => wholeBody(server, paths.chat, { ...hello, stream: true }))
        for (
          const work of [
            backend.chat(hello),
            backend.embed({ model: "echo", input: ["a"] }),
            Stream.runDrain(backend.chatStream(hello))
          ]
        ) {
          server.fault(paths.chat, { kind: "silence" })
          server.fault(paths.embed, { kind: "silence" })
          const fiber = yield* Effect.forkChild(Effect.asVoid(work))
          yield* Effect.promise(() => server.waiting())
          yield* Fiber.interrupt(fiber)
          yield* Effect.promise(() => server.left())
        }
        // On a server of its own, as faults that were not used are still waiting there.
        const { backend: other, server: another } = yield* opened
        another.fault(paths.chat, { kind: "stall", after: whole.indexOf(" 🦙") })
        const taken = yield* Stream.runCollect(Stream.take(other.chatStream(hello), 1))
        assert.strictEqual(taken.length, 1)
        yield* Effect.promise(() => another.left())
        assert.strictEqual(another.open(), 0)
      }))

    test("uses its connection again after a stream that was taken to its end", () =>
      Effect.gen(function*() {
        const { backend, server } = yield* opened
        for (let count = 0; count < 10; count++) yield* Stream.runDrain(backend.chatStream(hello))
        // One that has just come to its end may not be free again when the next stream begins.
        assert.isAtMost(server.connections(), 2)
      }))

    test("embeds in one request, in the order of the texts", () =>
      Effect.gen(function*() {
        const { backend, server } = yield* opened
        const input = ["one two", "three", "one two"]
        const { embeddings, usage } = yield* backend.embed({ model: "echo", input })
        const alone = yield* Effect.forEach(input, (text) => backend.embed({ model: "echo", input: [text] }))
        assert.deepStrictEqual(embeddings, alone.flatMap(({ embeddings }) => embeddings))
        assert.notDeepEqual(embeddings[0], embeddings[1])
        assert.deepStrictEqual(usage, { prompt_tokens: 5, total_tokens: 5 })
        assert.strictEqual(server.requests.filter(({ url }) => url.pathname === paths.embed).length, 4)
      }))

    test("lists its models, and gives up on the list soon", () =>
      Effect.gen(function*() {
        const { backend, server } = yield* opened
        assert.deepStrictEqual((yield* backend.models).map(({ id }) => id.replace(":latest", "")), ["echo", "tiny"])
        server.fault(paths.models, { kind: "silence" })
        const fiber = yield* Effect.forkChild(Effect.flip(backend.models))
        yield* Effect.promise(() => server.waiting())
        yield* TestClock.adjust("5 seconds")
        assert.strictEqual((yield* Fiber.join(fiber))._tag, "TimedOut")
      }))
  })

/** Where the line that holds a place begins. */
const lineBefore = (bytes: Buffer, at: number): number => bytes.lastIndexOf("\n", at) + 1

/** The body of a streamed answer, as the server sends it. */
const wholeBody = async (server: StandIn.StandIn, path: string, body: ChatRequest & { readonly stream: true }) => {
  const response = await fetch(`${server.url}${path}`, {
    method: "POST",
    headers: { "content-type": "application/json" },
    body: JSON.stringify(path.startsWith("/api/") ? { ...body, options: {} } : body)
  })
  return Buffer.from(await response.arrayBuffer())
}
