import { assert, describe, it } from "@effect/vitest"
import { Cause, Deferred, Duration, Effect, Exit, Fiber, Layer, Queue, Scope, Stream } from "effect"
import { TestClock } from "effect/testing"
import { EventBus, EventPublisher, EventSubscriber } from "../src/index.ts"
import * as Events from "./fixtures/events.ts"

const sourced = (n: number, missed = 0) => ({
  event: Events.started(`e${n}`),
  position: String(n),
  missed
})

const shown = (delivery: EventSubscriber.Delivery) => `${delivery.position}/${delivery.attempt}`

/** A subscription over a queue, whose deliveries wait in another queue until a test takes them. */
const subscribed = Effect.fnUntraced(function*(options: Parameters<typeof EventSubscriber.fromStream>[1] = {}) {
  const source = yield* Queue.unbounded<ReturnType<typeof sourced>>()
  const stream = yield* EventSubscriber.fromStream(Stream.fromQueue(source), options)
  const deliveries = yield* Queue.unbounded<EventSubscriber.Delivery>()
  const reading = yield* Effect.forkScoped(Stream.runForEach(stream, (delivery) => Queue.offer(deliveries, delivery)))
  const publish = (...numbers: ReadonlyArray<number>) => Queue.offerAll(source, numbers.map((n) => sourced(n)))
  const settled = Effect.all(Array.from({ length: 50 }, () => Effect.yieldNow), { discard: true })
  /** What was delivered, when nothing more comes of itself. */
  const take = Effect.andThen(settled, Queue.clear(deliveries))
  return { publish, reading, source, take }
})

describe("fromStream", () => {
  it.effect("delivers one event at a time by default, the next one when it is acknowledged", () =>
    Effect.gen(function*() {
      const { publish, take } = yield* subscribed()
      yield* publish(1, 2, 3)
      const [first, ...others] = yield* take
      assert.deepStrictEqual([first && shown(first), others], ["1/1", []])
      yield* first?.ack ?? Effect.void
      const next = yield* take
      assert.deepStrictEqual(next.map(shown), ["2/1"])
    }))

  it.effect("keeps as many in flight as it is allowed to", () =>
    Effect.gen(function*() {
      const { publish, take } = yield* subscribed({ maxInFlight: 3 })
      yield* publish(1, 2, 3, 4, 5)
      const [first, second, third, ...others] = yield* take
      assert.deepStrictEqual([first, second, third].map((one) => one && shown(one)), ["1/1", "2/1", "3/1"])
      assert.deepStrictEqual(others, [])
      yield* second?.ack ?? Effect.void
      assert.deepStrictEqual((yield* take).map(shown), ["4/1"])
      yield* first?.ack ?? Effect.void
      yield* third?.ack ?? Effect.void
      assert.deepStrictEqual((yield* take).map(shown), ["5/1"])
    }))

  it.effect("delivers what is given back again, before anything newer and in the old order", () =>
    Effect.gen(function*() {
      const source = Stream.make(sourced(1), sourced(2), sourced(3), sourced(4))
      const pull = yield* Stream.toPull(yield* EventSubscriber.fromStream(source, { maxInFlight: 3 }))
      const next = Effect.map(pull, ([delivery]) => delivery)
      const [first, second, third] = [yield* next, yield* next, yield* next]
      yield* third.retry()
      yield* second.ack
      // There is room for the fourth now, and it waits behind those that come again.
      yield* Effect.all(Array.from({ length: 20 }, () => Effect.yieldNow), { discard: true })
      yield* first.retry()
      yield* TestClock.adjust("1 second")
      assert.deepStrictEqual([shown(yield* next), shown(yield* next), shown(yield* next)], ["1/2", "3/2", "4/1"])
    }))

  it.effect("tells once of what is missing before an event", () =>
    Effect.gen(function*() {
      const pull = yield* Stream.toPull(yield* EventSubscriber.fromStream(Stream.make(sourced(5, 4)), {}))
      const [first] = yield* pull
      yield* first.retry()
      yield* TestClock.adjust("1 second")
      const [again] = yield* pull
      assert.deepStrictEqual([first.missed, again.missed], [4, 0])
    }))

  it.effect("delivers again what is not acknowledged in time", () =>
    Effect.gen(function*() {
      const { publish, take } = yield* subscribed({ maxInFlight: 2, ackTimeout: "10 seconds" })
      yield* publish(1)
      yield* take
      yield* TestClock.adjust("4 seconds")
      yield* publish(2)
      const [second] = yield* take
      yield* TestClock.adjust("5999 millis")
      assert.deepStrictEqual(yield* take, [])
      yield* TestClock.adjust("1 millis")
      const [again] = yield* take
      assert.strictEqual(again && shown(again), "1/2")
      yield* second?.ack ?? Effect.void
      yield* TestClock.adjust("9999 millis")
      assert.deepStrictEqual(yield* take, [])
      yield* TestClock.adjust("1 millis")
      assert.deepStrictEqual((yield* take).map(shown), ["1/3"])
    }))

  it.effect("takes the acknowledgement of an earlier attempt, and no give-back of one", () =>
    Effect.gen(function*() {
      const { publish, take } = yield* subscribed({ ackTimeout: "1 second" })
      yield* publish(1, 2)
      const [early] = yield* take
      yield* TestClock.adjust("1 second")
      const [again] = yield* take
      assert.strictEqual(again && shown(again), "1/2")
      yield* early?.retry() ?? Effect.void
      assert.deepStrictEqual(yield* take, [])
      yield* early?.ack ?? Effect.void
      assert.deepStrictEqual((yield* take).map(shown), ["2/1"])
      yield* again?.retry() ?? Effect.void
      yield* again?.ack ?? Effect.void
      assert.deepStrictEqual(yield* take, [])
    }))

  it.effect("waits twice as long after each attempt, up to a maximum, and holds its room meanwhile", () =>
    Effect.gen(function*() {
      const { publish, take } = yield* subscribed({ backoff: { base: "1 second", max: "3 seconds" } })
      yield* publish(1, 2)
      // A fifth more or less than 1, 2, 3 and 3 seconds.
      for (const [attempt, millis] of [1000, 2000, 3000, 3000].entries()) {
        const [one, ...others] = yield* take
        assert.deepStrictEqual([one && shown(one), others], [`1/${attempt + 1}`, []])
        yield* one?.retry(Cause.fail("no")) ?? Effect.void
        yield* TestClock.adjust(millis * 0.8 - 1)
        assert.deepStrictEqual(yield* take, [])
        yield* TestClock.adjust(millis * 0.4 + 2)
      }
      const [last] = yield* take
      yield* last?.ack ?? Effect.void
      assert.deepStrictEqual((yield* take).map(shown), ["2/1"])
    }))

  it.effect("takes the acknowledgement of what was given back and waits", () =>
    Effect.gen(function*() {
      const { publish, take } = yield* subscribed()
      yield* publish(1, 2)
      const [first] = yield* take
      yield* first?.retry() ?? Effect.void
      yield* first?.ack ?? Effect.void
      assert.deepStrictEqual((yield* take).map(shown), ["2/1"])
    }))

  it.effect("never delivers again with an endless timeout", () =>
    Effect.gen(function*() {
      const { publish, take } = yield* subscribed({ ackTimeout: Duration.infinity, maxInFlight: 2 })
      yield* publish(1)
      yield* take
      yield* TestClock.adjust("300 days")
      assert.deepStrictEqual(yield* take, [])
    }))

  it.effect("ends after its source, when nothing is in flight", () =>
    Effect.gen(function*() {
      const stream = yield* EventSubscriber.fromStream(Stream.make(sourced(1), sourced(2)), {})
      const ack = yield* Deferred.make<void>()
      const reading = yield* Effect.forkChild(Stream.runCollect(Stream.tap(stream, (delivery) =>
        Effect.andThen(delivery.position === "2" ? Deferred.await(ack) : Effect.void, delivery.ack))))
      yield* Effect.yieldNow
      assert.isUndefined(reading.pollUnsafe())
      yield* Deferred.succeed(ack, undefined)
      assert.deepStrictEqual((yield* Fiber.join(reading)).map(shown), ["1/1", "2/1"])
    }))

  it.effect("fails with its source, after what it still has", () =>
    Effect.gen(function*() {
      const error = new EventSubscriber.SubscribeError({ transport: "t", detail: "gone", retryable: true })
      const source = Stream.concat(Stream.make(sourced(1)), Stream.fail(error))
      const stream = yield* EventSubscriber.fromStream(source, { maxInFlight: 2 })
      const positions: Array<string> = []
      const exit = yield* Effect.exit(Stream.runForEach(stream, (delivery) => {
        positions.push(delivery.position)
        return delivery.ack
      }))
      assert.deepStrictEqual(positions, ["1"])
      assert.deepStrictEqual(exit, Exit.fail(error))
    }))

  it.effect("ends with its scope", () =>
    Effect.gen(function*() {
      const scope = yield* Scope.make()
      const stream = yield* Scope.provide(EventSubscriber.fromStream(Stream.never, {}), scope)
      const reading = yield* Effect.forkChild(Stream.runCollect(stream), { startImmediately: true })
      yield* Scope.close(scope, Exit.void)
      assert.deepStrictEqual(yield* Fiber.join(reading), [])
    }))
})

describe("wants", () => {
  it("goes by type, domain and unit, of events of both kinds", () => {
    const charged = Events.completed("a", { unit: "billing.charge" })
    const created = Events.domainEvent("b", { type: "model.created" })
    const within = Events.domainEvent("c", { type: "model.created", correlation: "x" })
    const accepted = (options: Parameters<typeof EventSubscriber.wants>[0]) =>
      [charged, created, within].filter(EventSubscriber.wants(options)).map(({ id }) => id)
    assert.deepStrictEqual(accepted({}), ["a:completed", "b", "c"])
    assert.deepStrictEqual(accepted({ types: ["execution_completed"] }), ["a:completed"])
    assert.deepStrictEqual(accepted({ types: ["model.created"] }), ["b", "c"])
    assert.deepStrictEqual(accepted({ types: [] }), [])
    assert.deepStrictEqual(accepted({ domains: ["billing"] }), ["a:completed"])
    assert.deepStrictEqual(accepted({ units: ["model.pull"] }), ["c"])
    assert.deepStrictEqual(accepted({ domains: ["model"], units: ["billing.charge"] }), [])
  })
})

describe("consume", () => {
  it.effect("acknowledges what its handler handles, and gives back what it fails on", () =>
    Effect.gen(function*() {
      const seen: Array<string> = []
      const subscriber = EventSubscriber.EventSubscriber.of({
        subscribe: (options) => EventSubscriber.fromStream(Stream.make(sourced(1), sourced(2), sourced(3)), options)
      })
      const consuming = yield* EventSubscriber.consume({}, (event, delivery) =>
        Effect.suspend(() => {
          seen.push(shown(delivery))
          if (event.id === "e2:started" && delivery.attempt === 1) return Effect.fail("not now")
          return event.id === "e2:started" && delivery.attempt === 2 ? Effect.die("nor now") : Effect.void
        })).pipe(Effect.provideService(EventSubscriber.EventSubscriber, subscriber), Effect.forkChild)
      yield* TestClock.adjust("1 second")
      yield* Fiber.join(consuming)
      assert.deepStrictEqual(seen, ["1/1", "2/1", "2/2", "2/3", "3/1"])
    }))

  it.effect("says what a handler failed with, goes on where an acknowledgement was too late, and ends where one fails", () =>
    Effect.gen(function*() {
      const told: Array<unknown> = []
      const failure = (reason?: "lease_lost") =>
        new EventSubscriber.SubscribeError({ transport: "t", detail: "d", retryable: false, ...(reason && { reason }) })
      const delivery = (
        n: number,
        ack: EventSubscriber.Delivery["ack"]
      ): EventSubscriber.Delivery => ({
        ...sourced(n),
        attempt: 1,
        ack,
        retry: (cause) => Effect.sync(() => void told.push(cause))
      })
      const subscriber = EventSubscriber.EventSubscriber.of({
        subscribe: () =>
          Effect.succeed(Stream.make(
            delivery(1, Effect.fail(failure("lease_lost"))),
            delivery(2, Effect.void),
            delivery(3, Effect.fail(failure())),
            delivery(4, Effect.sync(() => void told.push("too far")))
          ))
      })
      const exit = yield* EventSubscriber.consume(
        {},
        (event) => event.id === "e2:started" ? Effect.fail("not now") : Effect.void
      )
        .pipe(Effect.provideService(EventSubscriber.EventSubscriber, subscriber), Effect.exit)
      assert.deepStrictEqual(exit, Exit.fail(failure()))
      assert.deepStrictEqual(told, [Cause.fail("not now")])
    }))

  it.effect("acknowledges while the next event is handled, where more than one may be in flight", () =>
    Effect.gen(function*() {
      const acknowledged = yield* Deferred.make<void>()
      const second = yield* Deferred.make<void>()
      const subscriber = EventSubscriber.EventSubscriber.of({
        subscribe: () =>
          Effect.succeed(Stream.make(
            ...[1, 2].map((n): EventSubscriber.Delivery => ({
              ...sourced(n),
              attempt: 1,
              ack: n === 1 ? Deferred.await(acknowledged) : Effect.void,
              retry: () => Effect.void
            }))
          ))
      })
      const consuming = yield* EventSubscriber.consume(
        { maxInFlight: 2 },
        (event) => event.id === "e2:started" ? Deferred.succeed(second, undefined) : Effect.void
      ).pipe(Effect.provideService(EventSubscriber.EventSubscriber, subscriber), Effect.forkChild)
      yield* Deferred.await(second)
      yield* Deferred.succeed(acknowledged, undefined)
      yield* Fiber.join(consuming)
    }))
})

describe("distinct", () => {
  /** A subscriber whose transport has these events, by their ids, one at each position. */
  const layer = (events: ReadonlyArray<readonly [id: string, missed: number]>) =>
    Layer.succeed(EventSubscriber.EventSubscriber, {
      subscribe: (options) =>
        EventSubscriber.fromStream(
          Stream.fromIterable(events.map(([id, missed], position) => ({
            event: Events.started(id),
            position: String(position),
            missed
          }))),
          options
        )
    })

  const read = (
    options: EventSubscriber.Options,
    count: number,
    isGivenBack: (delivery: EventSubscriber.Delivery) => boolean = () => false
  ) =>
    EventSubscriber.deliveries({ backoff: { base: 0 }, ...options }).pipe(
      Stream.tap((delivery) => isGivenBack(delivery) ? delivery.retry() : delivery.ack),
      Stream.map((delivery) => `${shown(delivery)} ${delivery.event.correlation_id}/${delivery.missed}`),
      Stream.take(count),
      Stream.runCollect
    )

  const twice = layer([["a", 0], ["b", 0], ["a", 2], ["b", 1], ["c", 4], ["a", 0], ["d", 0]])

  it.effect("delivers the first copy of an event alone, with what is missing before those it passes over", () =>
    Effect.gen(function*() {
      assert.deepStrictEqual(yield* read({}, 4), ["0/1 a/0", "1/1 b/0", "4/1 c/7", "6/1 d/0"])
    }).pipe(Effect.provide(EventSubscriber.distinct(twice))))

  it.effect("delivers that copy again until it is handled", () =>
    Effect.gen(function*() {
      const received = yield* read({}, 5, ({ attempt, position }) => position === "0" && attempt === 1)
      assert.deepStrictEqual(received, ["0/1 a/0", "0/2 a/0", "1/1 b/0", "4/1 c/7", "6/1 d/0"])
    }).pipe(Effect.provide(twice.pipe(EventSubscriber.distinct()))))

  it.effect("passes over a copy while the first is being handled", () =>
    Effect.gen(function*() {
      const stream = yield* EventSubscriber.EventSubscriber.use(({ subscribe }) => subscribe({ maxInFlight: 4 }))
      const pull = yield* Stream.toPull(stream)
      const [a] = yield* pull
      const [b] = yield* pull
      const [c] = yield* pull
      assert.deepStrictEqual([a, b, c].map(shown), ["0/1", "1/1", "4/1"])
      yield* a.retry()
      yield* TestClock.adjust("1 second")
      const [again] = yield* pull
      assert.strictEqual(shown(again), "0/2")
    }).pipe(Effect.provide(twice.pipe(EventSubscriber.distinct()))))

  it.effect("acknowledges again what comes again though it was handled", () =>
    Effect.gen(function*() {
      let acknowledged = 0
      const delivery = (n: number, attempt: number) => ({
        ...sourced(n),
        attempt,
        ack: Effect.sync(() => void acknowledged++),
        retry: () => Effect.void
      })
      const layer = Layer.succeed(EventSubscriber.EventSubscriber, {
        subscribe: () => Effect.succeed(Stream.make(delivery(1, 1), delivery(1, 2), delivery(2, 1)))
      })
      const received = yield* Effect.provide(read({}, 2), EventSubscriber.distinct(layer))
      assert.deepStrictEqual([received, acknowledged], [["1/1 e1/0", "2/1 e2/0"], 3])
    }))

  it.effect("remembers so many ids, each subscription its own", () =>
    Effect.gen(function*() {
      const due = ["0/1 a/0", "1/1 b/0", "2/1 a/2", "3/1 b/1", "4/1 c/4"]
      assert.deepStrictEqual(yield* read({}, 5), due)
      assert.deepStrictEqual(yield* read({}, 5), due)
    }).pipe(Effect.provide(EventSubscriber.distinct(twice, { capacity: 1 }))))
})

describe("EventBus.layerSubscriber", () => {
  const layer = (capacity?: number) =>
    Layer.provideMerge(EventBus.layerSubscriber({ capacity }), EventPublisher.layerBus)

  it.effect("tells how many events there was no room for, before the one that follows them", () =>
    Effect.gen(function*() {
      const subscriber = yield* EventSubscriber.EventSubscriber
      const publisher = yield* EventPublisher.EventPublisher
      const stream = yield* subscriber.subscribe({ maxInFlight: 10 })
      const deliveries: Array<string> = []
      const reading = yield* Effect.forkChild(Stream.runForEach(stream, ({ ack, event, missed }) => {
        deliveries.push(`${event.id} after ${missed}`)
        return ack
      }))
      for (const id of ["a", "b", "c", "d", "e"]) publisher.offer(Events.domainEvent(id))
      yield* Effect.all(Array.from({ length: 20 }, () => Effect.yieldNow), { discard: true })
      publisher.offer(Events.domainEvent("f"))
      yield* Effect.all(Array.from({ length: 20 }, () => Effect.yieldNow), { discard: true })
      assert.deepStrictEqual(deliveries, ["a after 0", "b after 0", "f after 3"])
      yield* Fiber.interrupt(reading)
    }).pipe(Effect.provide(layer(2))))

  it.effect("refuses what it cannot do: names, and any beginning but now", () =>
    Effect.gen(function*() {
      const subscriber = yield* EventSubscriber.EventSubscriber
      for (
        const options of [
          { consumer: "billing" },
          { from: "beginning" },
          { from: { time: 0 } },
          { from: { position: "1" } }
        ] as const
      ) {
        const error = yield* Effect.flip(subscriber.subscribe(options))
        assert.deepStrictEqual(
          error,
          new EventSubscriber.SubscribeError({
            transport: "the event bus",
            detail: "it keeps no events. Leave `consumer` and `from` out, or take a durable transport",
            retryable: false
          })
        )
      }
      yield* Effect.asVoid(subscriber.subscribe({ from: "new" }))
    }).pipe(Effect.provide(layer())))

  it.effect("takes part in executions that are under way", () =>
    Effect.gen(function*() {
      const bus = yield* EventBus.EventBus
      const subscriber = yield* EventSubscriber.EventSubscriber
      const stream = yield* subscriber.subscribe({})
      bus.publish(Events.completed("x"))
      const [first] = yield* Stream.runCollect(Stream.take(stream, 1))
      assert.strictEqual(first?.event.id, "x:completed")
    }).pipe(Effect.provide(layer())))
})
