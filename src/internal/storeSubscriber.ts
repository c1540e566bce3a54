/**
 * The reading end of an event store: a named consumer is a member of a group, one without a name follows the log.
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
import { acknowledging } from "./acknowledging.ts"
import { fromStoreError } from "./groupMember.ts"

const pageSize = 1000

/** The offset after which the first event lies that is later than a time, in Unix milliseconds. */
const offsetBefore = Effect.fnUntraced(function*(
  store: Pick<Store, "read">,
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

/**
 * The offset after which a subscription begins.
 *
 * @internal
 */
export const start = (
  store: Pick<Store, "read" | "lastOffset">,
  from: From,
  beginning: Effect.Effect<number, EventStoreError>
): Effect.Effect<number, SubscribeError> => {
  if (from === "beginning") return Effect.mapError(beginning, fromStoreError)
  if (from === "new") return Effect.mapError(store.lastOffset, fromStoreError)
  if ("time" in from) return Effect.mapError(offsetBefore(store, from.time), fromStoreError)
  const offset = Number(from.position)
  return Number.isSafeInteger(offset) && offset >= 0
    ? Effect.succeed(offset)
    : Effect.fail(
      new SubscribeError({
        transport: "the event store",
        detail: `"${from.position}" is no position of it: positions are whole numbers, the offsets`,
        retryable: false
      })
    )
}

interface Settings {
  readonly pollInterval?: Duration.Input | undefined
}

/** Follows the log by an account of its own. */
const follow = Effect.fnUntraced(function*(store: Store, options: Options, settings: Settings) {
  const { domains, types, units } = options
  const after = yield* start(store, options.from ?? "new", Effect.succeed(0))
  const filtered = types !== undefined || domains !== undefined || units !== undefined
  // What was pruned before a reader of the whole log began was never its to miss.
  let last = options.from === "beginning" ? undefined : after
  const source = store.tail({
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
  return yield* acknowledging(source, options)
})

/**
 * Makes the reading end of a store, which lasts as long as the scope.
 *
 * @internal
 */
export const make = Effect.fnUntraced(function*(
  store: Store,
  settings: Settings
): Effect.fn.Return<EventSubscriber["Service"], never, Scope.Scope> {
  const lifetime = yield* Effect.scope
  return EventSubscriber.of({
    subscribe: Effect.fnUntraced(function*(options) {
      const { consumer } = options
      // Ends with whichever is first, the subscriber or the store, so that nothing reads a store that is closed.
      const scope = yield* Scope.fork(lifetime)
      yield* Effect.addFinalizer((exit) => Scope.close(scope, exit))
      const subscribe = consumer === undefined
        ? follow(store, options, settings)
        : store.groups.subscribe({ ...options, ...settings, consumer })
      return yield* subscribe.pipe(
        Scope.provide(scope),
        Effect.onError((cause) => Scope.close(scope, Exit.failCause(cause)))
      )
    })
  })
})
