import { assert, describe, it } from "@effect/vitest"
import { Effect, Exit, Fiber, Layer, Scope, Stream } from "effect"
import { EventStore, EventSubscriber } from "../../src/index.ts"
import * as Events from "../fixtures/events.ts"

const layer = Layer.provideMerge(EventStore.layerSubscriber(), EventStore.layerSqlite({ filename: ":memory:" }))

const append = (...ids: ReadonlyArray<string>) =>
  EventStore.EventStore.use((store) =>
    store.append(ids.map((id, index) => Events.domainEvent(id, { at: index * 1000 })))
  )

/** The next so many events of a subscription, acknowledged or not, and its end. */
const next = Effect.fnUntraced(function*(
  count: number,
  options: EventSubscriber.Options,
  handle: (delivery: EventSubscriber.Delivery) => Effect.Effect<unknown, EventSubscriber.SubscribeError> = ({ ack }) =>
    ack
) {
  const subscriber = yield* EventSubscriber.EventSubscriber
  const stream = yield* subscriber.subscribe(options)
  return yield* Stream.runCollect(Stream.tap(Stream.take(stream, count), handle))
}, Effect.scoped)

const shown = (deliveries: ReadonlyArray<EventSubscriber.Delivery>) =>
  deliveries.map(({ event, missed, position }) => `${position} ${event.id}${missed === 0 ? "" : ` after ${missed}`}`)

const started = <A, E, R>(effect: Effect.Effect<A, E, R>) => Effect.forkChild(effect, { startImmediately: true })

describe("EventStore.layerSubscriber", () => {
  it.effect("begins a named consumer at the beginning, and keeps its place", () =>
    Effect.gen(function*() {
      yield* append("a", "b", "c")
      assert.deepStrictEqual(shown(yield* next(2, { consumer: "x" })), ["1 a", "2 b"])
      assert.deepStrictEqual(shown(yield* next(1, { consumer: "x" })), ["3 c"])
      assert.deepStrictEqual(shown(yield* next(1, { consumer: "y" })), ["1 a"])
    }).pipe(Effect.provide(layer)))

  it.effect("keeps the place of a consumer that began with what is new in an empty log", () =>
    Effect.gen(function*() {
      const subscriber = yield* EventSubscriber.EventSubscriber
      yield* Effect.scoped(Effect.asVoid(subscriber.subscribe({ consumer: "x", from: "new" })))
      yield* append("a", "b")
      assert.deepStrictEqual(shown(yield* next(2, { consumer: "x", from: "new" })), ["1 a", "2 b"])
    }).pipe(Effect.provide(layer)))

  it.effect("keeps the place of a consumer that has acknowledged nothing", () =>
    Effect.gen(function*() {
      const subscriber = yield* EventSubscriber.EventSubscriber
      yield* append("a", "b")
      yield* Effect.scoped(Effect.asVoid(subscriber.subscribe({ consumer: "x", from: "new" })))
      yield* append("c")
      assert.deepStrictEqual(shown(yield* next(1, { consumer: "x" }, () => Effect.void)), ["3 c"])
      assert.deepStrictEqual(shown(yield* next(1, { consumer: "x", from: "beginning" })), ["3 c"])
    }).pipe(Effect.provide(layer)))

  it.effect("delivers again what was not acknowledged, and nothing else", () =>
    Effect.gen(function*() {
      yield* append("a", "b", "c", "d")
      const options = { consumer: "x", maxInFlight: 4 }
      const handle = ({ ack, event }: EventSubscriber.Delivery) => event.id === "b" ? Effect.void : ack
      assert.deepStrictEqual(shown(yield* next(4, options, handle)), ["1 a", "2 b", "3 c", "4 d"])
      yield* append("e")
      assert.deepStrictEqual(shown(yield* next(2, options)), ["2 b", "5 e"])
    }).pipe(Effect.provide(layer)))

  it.effect("begins after a position, and after a time", () =>
    Effect.gen(function*() {
      yield* append("a", "b", "c")
      assert.deepStrictEqual(shown(yield* next(2, { from: { position: "1" } })), ["2 b", "3 c"])
      assert.deepStrictEqual(shown(yield* next(2, { from: { time: 500 } })), ["2 b", "3 c"])
      assert.deepStrictEqual(shown(yield* next(1, { from: { time: 1000 } })), ["3 c"])
      assert.deepStrictEqual(shown(yield* next(3, { from: { time: -1 } })), ["1 a", "2 b", "3 c"])
      const subscriber = yield* EventSubscriber.EventSubscriber
      const stream = yield* subscriber.subscribe({ from: { time: 5000 } })
      yield* append("d")
      assert.deepStrictEqual(shown(yield* Stream.runCollect(Stream.take(stream, 1))), ["4 d"])
      const error = yield* Effect.flip(next(1, { from: { position: "b" } }))
      assert.strictEqual(
        error.message,
        "Reading events from the event store failed: \"b\" is no position of it: positions are whole numbers, the offsets"
      )
    }).pipe(Effect.provide(layer)))

  it.effect("tells how many events were pruned before they were read", () =>
    Effect.gen(function*() {
      const store = yield* EventStore.EventStore
      yield* append("a", "b", "c", "d", "e")
      assert.deepStrictEqual(shown(yield* next(1, { consumer: "x" })), ["1 a"])
      yield* store.prune({ keep: 2, unacknowledged: true })
      assert.deepStrictEqual(shown(yield* next(2, { consumer: "x" })), ["4 d after 2", "5 e"])
      // What went before a reader came was never its to miss.
      assert.deepStrictEqual(shown(yield* next(1, { from: "beginning" })), ["4 d"])
      assert.deepStrictEqual(shown(yield* next(1, { from: { position: "2" } })), ["4 d after 1"])
    }).pipe(Effect.provide(layer)))

  it.effect("refuses an acknowledgement after the end, so that the event comes again", () =>
    Effect.gen(function*() {
      yield* append("a")
      const [delivery] = yield* next(1, { consumer: "x" }, () => Effect.void)
      const exit = yield* Effect.exit(delivery?.ack ?? Effect.void)
      assert.deepStrictEqual(
        exit,
        Exit.fail(
          new EventSubscriber.SubscribeError({
            transport: "the event store",
            detail: "the subscription has ended; the event goes to the consumer's next subscriber",
            retryable: false,
            reason: "ended"
          })
        )
      )
      assert.deepStrictEqual(shown(yield* next(1, { consumer: "x" })), ["1 a"])
    }).pipe(Effect.provide(layer)))

  it.effect("ends with its Layer", () =>
    Effect.gen(function*() {
      const scope = yield* Scope.make()
      const context = yield* Layer.buildWithScope(layer, scope)
      const stream = yield* EventSubscriber.EventSubscriber.use(({ subscribe }) => subscribe({})).pipe(
        Effect.provide(context)
      )
      const reading = yield* started(Stream.runCollect(stream))
      yield* Scope.close(scope, Exit.void)
      assert.deepStrictEqual(yield* Fiber.join(reading), [])
    }))
})
