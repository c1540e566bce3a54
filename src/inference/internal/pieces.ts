/**
 * Streamed answers, whatever form their protocol gives them: from pieces to chunks, with the end that every stream must have.
 *
 * @since 0.1.0
 */
import type * as Arr from "effect/Array"
import * as Cause from "effect/Cause"
import * as Effect from "effect/Effect"
import * as Sse from "effect/encoding/Sse"
import * as Option from "effect/Option"
import * as Pull from "effect/Pull"
import * as Stream from "effect/Stream"
import { type BackendReason, EngineFailed } from "../BackendReason.ts"
import type { FinishReason, StreamChunk, Usage } from "../Inference.ts"

/**
 * What one message of a protocol says. Each part may be missing, and what is told again counts anew.
 *
 * @internal
 */
export interface Piece {
  readonly text?: string | undefined
  readonly finish_reason?: FinishReason | undefined
  readonly usage?: Usage | undefined
  readonly model?: string | undefined
  readonly id?: string | undefined
  /** Nothing comes after it that counts. */
  readonly last?: boolean
  /** The answer has failed. */
  readonly failure?: BackendReason | undefined
}

// A connection whose answer was read to its end is used again; one that is left before is closed. The end is on its way.
const timeToEnd = "1 second"

/**
 * Chunks of an answer. It ends well where a last piece or a reason to finish has come; else it has broken off, and fails.
 *
 * @internal
 */
export const chunks = (
  pieces: Stream.Stream<Piece, BackendReason>,
  model: string
): Stream.Stream<StreamChunk, BackendReason> =>
  Stream.transformPull(pieces, (pull) =>
    Effect.sync(() => {
      let metadata: StreamChunk["metadata"] = { finish_reason: "", model, id: "" }
      let finishReason: FinishReason | undefined
      let usage: Usage | undefined
      let failure: BackendReason | undefined
      let ended = false

      const read = (piece: Piece, out: Array<StreamChunk>): void => {
        if (piece.model !== undefined && piece.model !== metadata.model) metadata = { ...metadata, model: piece.model }
        if (piece.id !== undefined && piece.id !== metadata.id) metadata = { ...metadata, id: piece.id }
        if (piece.text !== undefined && piece.text !== "") out.push({ type: "content", data: piece.text, metadata })
        finishReason = piece.finish_reason ?? finishReason
        usage = piece.usage ?? usage
        failure = piece.failure
        if (piece.last === true) out.push(done())
      }

      const done = (): StreamChunk => {
        ended = true
        return {
          type: "done",
          data: "",
          metadata: { ...metadata, finish_reason: finishReason ?? "" },
          ...(usage === undefined ? {} : { usage })
        }
      }

      const rest: Pull.Pull<never, never> = Effect.forever(pull, { disableYield: true }).pipe(
        // Whatever comes, the answer is complete.
        Effect.exit,
        Effect.timeoutOption(timeToEnd),
        Effect.andThen(Cause.done())
      )

      const next: Pull.Pull<Arr.NonEmptyReadonlyArray<StreamChunk>, BackendReason> = Effect.suspend(() => {
        if (failure !== undefined) return Effect.fail(failure)
        return ended ? rest : Pull.matchEffect(pull, {
          onSuccess: (batch) => {
            const out: Array<StreamChunk> = []
            for (const piece of batch) {
              read(piece, out)
              if (ended || failure !== undefined) break
            }
            return isNonEmpty(out) ? Effect.succeed(out) : next
          },
          onFailure: (cause) =>
            finishReason === undefined || Option.isNone(Cause.findErrorOption(cause))
              ? Effect.failCause(cause)
              : Effect.succeed([done()]),
          onDone: () =>
            finishReason === undefined
              ? Effect.fail(
                new EngineFailed({ detail: "Its answer broke off before it was complete. Try again", retryable: true })
              )
              : Effect.succeed([done()])
        })
      })
      return next
    }))

const isNonEmpty = <A>(list: Array<A>): list is [A, ...Array<A>] => list.length > 0

/**
 * The data of server-sent events. Comments and keep-alives are passed over, and so is how long to wait before connecting again.
 *
 * @internal
 */
export const eventData = (
  body: Stream.Stream<Uint8Array, BackendReason>
): Stream.Stream<string, BackendReason> =>
  Stream.transformPull(Stream.decodeText(body), (pull) =>
    Effect.sync(() => {
      let out: Array<string> = []
      const parser = Sse.makeParser((event) => {
        if (event._tag === "Event") out.push(event.data)
      })
      const next: Pull.Pull<Arr.NonEmptyReadonlyArray<string>, BackendReason> = Effect.flatMap(pull, (texts) => {
        for (const text of texts) {
          const error = parser.feed(text)
          if (error !== undefined) {
            return Effect.fail(
              new EngineFailed({ detail: `Its answer cannot be read: ${error.message}`, retryable: false })
            )
          }
        }
        const events = out
        out = []
        return isNonEmpty(events) ? Effect.succeed(events) : next
      })
      return next
    }))
