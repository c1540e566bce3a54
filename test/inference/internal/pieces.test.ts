import { assert, describe, it } from "@effect/vitest"
import { Effect, Schema, Stream } from "effect"
import { type BackendReason, EngineFailed } from "../../../src/inference/BackendReason.ts"
import * as Pieces from "../../../src/inference/internal/pieces.ts"

const bytesOf = (text: string): Uint8Array => new TextEncoder().encode(text)

/** Bytes cut at some places, which may be anywhere, and the same one more than once. */
const cut = (bytes: Uint8Array, places: ReadonlyArray<number>): Stream.Stream<Uint8Array, BackendReason> => {
  const at = [0, ...places.map((place) => place % (bytes.length + 1)), bytes.length].toSorted((a, b) => a - b)
  return Stream.fromIterable(at.slice(1).map((end, index) => bytes.subarray(at[index], end))).pipe(Stream.rechunk(1))
}

const Places = Schema.Array(Schema.Natural)
const LineEnd = Schema.Literals(["\n", "\r\n", "\r"])

describe("eventData", () => {
  it.effect.prop(
    "is the same however the bytes are cut, with any ends of lines, comments and keep-alives in between",
    { texts: Schema.Array(Schema.String), places: Places, end: LineEnd },
    ({ end, places, texts }) =>
      Effect.gen(function*() {
        // Characters of one to four bytes.
        const said = texts.map((text) => `é漢🦙${text}`)
        const body = said.map((text) => `: ping${end}${end}data: ${JSON.stringify({ text })}${end}${end}`).join("")
        const data = yield* Stream.runCollect(Pieces.eventData(cut(bytesOf(`\uFEFF${body}`), places)))
        // What has no form in UTF-8 was replaced when it was encoded.
        const expected = said.map((text) => text.toWellFormed())
        assert.deepStrictEqual(data.map((each) => JSON.parse(each).text.toWellFormed()), expected)
      })
  )

  it.effect("fails where an event grows without an end", () =>
    Effect.gen(function*() {
      const endless = Stream.forever(Stream.succeed(bytesOf("x".repeat(1024 * 1024))))
      const error = yield* Effect.flip(Stream.runDrain(Pieces.eventData(endless)))
      assert(error instanceof EngineFailed && !error.retryable)
    }))
})

describe("chunks", () => {
  const piece = (text: string): Pieces.Piece => ({ text, model: "m", id: "1" })

  it.effect.prop(
    "hold all texts in their order and end once, in whatever batches the pieces come",
    { texts: Schema.Array(Schema.String), size: Schema.Int.check(Schema.isBetween({ minimum: 1, maximum: 5 })) },
    ({ size, texts }) =>
      Effect.gen(function*() {
        const pieces = Stream.fromIterable<Pieces.Piece>([
          ...texts.map(piece),
          { finish_reason: "length" },
          { last: true },
          piece("too late")
        ]).pipe(Stream.rechunk(size))
        const chunks = yield* Stream.runCollect(Pieces.chunks(pieces, "m"))
        assert.deepStrictEqual(
          chunks.slice(0, -1).map(({ data, type }) => [type, data]),
          texts.filter((text) => text !== "").map((text) => ["content", text])
        )
        assert.deepStrictEqual(chunks.at(-1), {
          type: "done",
          data: "",
          metadata: { finish_reason: "length", model: "m", id: texts.length === 0 ? "" : "1" }
        })
      })
  )

  it.effect("fail where the pieces end, or fail, before there was a reason to finish", () =>
    Effect.gen(function*() {
      const failure = new EngineFailed({ detail: "Crash", retryable: true })
      const run = (pieces: Stream.Stream<Pieces.Piece, BackendReason>) => {
        const taken: Array<string> = []
        return Effect.map(
          Effect.result(
            Stream.runForEach(
              Pieces.chunks(pieces, "m"),
              ({ data, type }) => Effect.sync(() => taken.push(type + data))
            )
          ),
          (result) => [result._tag, taken]
        )
      }
      const one = Stream.succeed(piece("one"))
      const finished = Stream.concat(one, Stream.succeed<Pieces.Piece>({ finish_reason: "stop" }))
      assert.deepStrictEqual(
        [
          yield* run(one),
          yield* run(Stream.concat(one, Stream.fail(failure))),
          yield* run(Stream.fromIterable([piece("one"), { failure }, piece("two")])),
          yield* run(finished),
          yield* run(Stream.concat(finished, Stream.fail(failure)))
        ],
        [
          ["Failure", ["contentone"]],
          ["Failure", ["contentone"]],
          ["Failure", ["contentone"]],
          ["Success", ["contentone", "done"]],
          ["Success", ["contentone", "done"]]
        ]
      )
    }))
})
