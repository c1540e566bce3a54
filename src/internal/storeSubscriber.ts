/**
 * The reading end of an event store: the log followed from a place, which a named consumer keeps as a checkpoint.
 *
 * @since 0.1.0
 */
import type * as Duration from "effect/Duration"
import * as Effect from "effect/Effect"
import * as Exit from "effect/Exit"
import * as Scope from "effect/Scope"
import * as Stream from "effect/Stream"
import type { EventStoreError, Store } from "../EventStore.ts"
import { EventSubscriber, type From, type Options, SubscribeError } from "../EventSubscriber.ts"
import { acknowledging, type Sourced } from "./acknowledging.ts"

const transport = "the event store"

const fromStoreError = (error: EventStoreError): SubscribeError =>
  new SubscribeError({ transport, detail: error.message, retryable: error.retryable, cause: error })

const refusal = (detail: string, retryable: boolean): SubscribeError =>
  new SubscribeError({ transport, detail, retryable })

/**
 * The store answers 0 where a consumer never saved a checkpoint, and a consumer that waits at the beginning has to be told from one that
 * is new: it saves this.
 */
const atTheBeginning = -1

const pageSize = 1000

/** The offset after which the first event lies that is later than a time, in Unix milliseconds. */
const offsetBefore = Effect.fnUntraced(function*(
  store: Store,
  time: number
): Effect.fn.Return<number, EventStoreError> {
  let after = 0
  while (true) {
    const page = yield* store.read({ after, limit: pageSize })
    const later = page.findIndex(({ event }) => Date.parse(event.timestamp) > time)
    if (later > 0) return page[later - 1]?.offset ?? after
    if (later === 0) return after
    const last = page.at(-1)
    if (last === undefined) return after
    after = last.offset
  }
})

const start = (store: Store, from: From): Effect.Effect<number, SubscribeError> => {
  if (from === "beginning") return Effect.succeed(0)
  if (from === "new") return Effect.mapError(store.lastOffset, fromStoreError)
  if ("time" in from) return Effect.mapError(offsetBefore(store, from.time), fromStoreError)
  const offset = Number(from.position)
  return Number.isSafeInteger(offset) && offset >= 0
    ? Effect.succeed(offset)
    : Effect.fail(refusal(`"${from.position}" is no position of it: positions are whole numbers, the offsets`, false))
}

/** Where a named consumer goes on, or begins: then its place is saved before anything can be missed. */
const resume = Effect.fnUntraced(function*(
  store: Store,
  consumer: string,
  from: From
): Effect.fn.Return<number, SubscribeError> {
  const saved = yield* Effect.mapError(store.checkpoint(consumer), fromStoreError)
  if (saved !== 0) return saved === atTheBeginning ? 0 : saved
  const offset = yield* start(store, from)
  yield* Effect.mapError(store.saveCheckpoint(consumer, offset === 0 ? atTheBeginning : offset), fromStoreError)
  return offset
})

/**
 * Makes the reading end of a store, which lasts as long as the scope.
 *
 * @internal
 */
export const make = Effect.fnUntraced(function*(
  store: Store,
  settings: { readonly pollInterval?: Duration.Input | undefined }
): Effect.fn.Return<EventSubscriber["Service"], never, Scope.Scope> {
  const lifetime = yield* Effect.scope
  const consumers = new Set<string>()

  const subscribe = Effect.fnUntraced(function*(
    options: Options
  ): Effect.fn.Return<Stream.Stream<Sourced, SubscribeError>, SubscribeError, Scope.Scope> {
    const { consumer, domains, types, units } = options
    if (consumer !== undefined) {
      yield* Effect.acquireRelease(
        Effect.suspend(() =>
          consumers.has(consumer)
            ? Effect.fail(
              refusal(`consumer "${consumer}" has a subscriber already; one at a time can read for it`, true)
            )
            : Effect.sync(() => consumers.add(consumer))
        ),
        () => Effect.sync(() => consumers.delete(consumer))
      )
    }
    const after = consumer === undefined
      ? yield* start(store, options.from ?? "new")
      : yield* resume(store, consumer, options.from ?? "beginning")
    const filtered = types !== undefined || domains !== undefined || units !== undefined
    // What was pruned before a reader of the whole log began was never its to miss.
    let last = consumer === undefined && options.from === "beginning" ? undefined : after
    return store.tail({
      after,
      filter: filtered ? { types, domains, units } : undefined,
      pollInterval: settings.pollInterval
    }).pipe(
      Stream.map(({ event, offset }) => {
        // Offsets have no holes but those that were pruned.
        const missed = filtered || last === undefined ? 0 : offset - last - 1
        last = offset
        return { event, position: String(offset), missed }
      }),
      Stream.mapError(fromStoreError)
    )
  })

  return EventSubscriber.of({
    subscribe: Effect.fnUntraced(function*(options) {
      const { consumer } = options
      // Ends with whichever is first, the subscriber or the store, so that nothing reads a store that is closed.
      const scope = yield* Scope.fork(lifetime)
      yield* Effect.addFinalizer((exit) => Scope.close(scope, exit))
      return yield* Effect.gen(function*() {
        const source = yield* subscribe(options)
        return yield* acknowledging(source, {
          maxInFlight: options.maxInFlight,
          ackTimeout: options.ackTimeout,
          keepPlace: consumer === undefined ? undefined : {
            save: (position) => Effect.mapError(store.saveCheckpoint(consumer, Number(position)), fromStoreError),
            ended: () => refusal("the subscription has ended; the event goes to the consumer's next subscriber", false)
          }
        })
      }).pipe(
        Scope.provide(scope),
        Effect.onError((cause) => Scope.close(scope, Exit.failCause(cause)))
      )
    })
  })
})
