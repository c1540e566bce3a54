import { assert, describe, it } from "@effect/vitest"
import {
  Context,
  Deferred,
  Effect,
  Exit,
  Fiber,
  Layer,
  Logger,
  Metric,
  Queue,
  Schedule,
  Schema,
  Scope,
  Stream
} from "effect"
import { TestClock } from "effect/testing"
import * as DomainEvent from "../src/DomainEvent.ts"
import * as EventBus from "../src/EventBus.ts"
import * as EventPublisher from "../src/EventPublisher.ts"
import type { ExecutionEvent } from "../src/ExecutionEvent.ts"
import { instrumentEffect } from "../src/instrument.ts"
import { violations } from "../src/testing/lifecycle.ts"

const named = <A, E, R>(name: string, effect: Effect.Effect<A, E, R>) => instrumentEffect(effect, { name })

const Said = DomainEvent.define("chat.said", { text: Schema.String })
const Left = DomainEvent.define("room.left", {})

/** An event from elsewhere, the `n`-th of its source. */
const nth = (n: number): ExecutionEvent => ({
  event_type: "execution_started",
  kind: "command",
  domain: "test",
  unit_name: "test.nth",
  id: `${n}:started`,
  timestamp: "2026-01-02T03:04:05.678Z",
  correlation_id: String(n),
  root_id: String(n),
  source: "elsewhere",
  sequence: n
})

const range = (from: number, to: number) => Array.from({ length: to - from + 1 }, (_, index) => from + index)

/** What a stream gives until it ends, in a fiber that has begun. */
const collect = <A, E>(stream: Stream.Stream<A, E>) =>
  Effect.forkChild(Stream.runCollect(stream), { startImmediately: true })

const shown = (events: ReadonlyArray<ExecutionEvent>) =>
  events.map((event) => `${event.unit_name} ${event.event_type.slice(10)}`)

const sequences = (events: ReadonlyArray<{ readonly sequence: number }>) => events.map(({ sequence }) => sequence)

/** A bus, and its closing. */
const makeBus = Effect.gen(function*() {
  const scope = yield* Scope.make()
  const context = yield* Layer.buildWithScope(EventBus.layer, scope)
  return { bus: Context.get(context, EventBus.EventBus), close: Scope.close(scope, Exit.void) }
})

/** Runs with a bus that units publish to, and gives what subscriptions of it give until it closes. */
const onBus = Effect.fnUntraced(function*<A, B, E, R>(
  subscribe: (bus: EventBus.EventBus["Service"]) => Effect.Effect<A, E, R>,
  program: Effect.Effect<B, E, EventPublisher.EventPublisher>
) {
  const scope = yield* Scope.make()
  const context = yield* Layer.buildWithScope(EventPublisher.layerBus, scope)
  const subscribed = yield* subscribe(Context.get(context, EventBus.EventBus))
  yield* Effect.provide(program, context)
  yield* Scope.close(scope, Exit.void)
  return subscribed
})

const dropsOf = (registry: Metric.MetricRegistry): number =>
  Metric.snapshotUnsafe(Context.make(Metric.MetricRegistry, registry)).reduce(
    (sum, { attributes, id, state }) =>
      id === "effect_units_events_dropped" && attributes?.["buffer"] === "bus" && "count" in state
        ? sum + Number(state.count)
        : sum,
    0
  )

describe("publish and subscribe", () => {
  it.effect("gives every subscriber all events, in their order", () =>
    Effect.gen(function*() {
      const collected = yield* onBus(
        (bus) => Effect.forEach(range(1, 20), () => Effect.flatMap(bus.subscription(), collect)),
        Effect.forEach(range(1, 500), (n) => named(`test.u${n % 3}`, Effect.void), { discard: true })
      )
      const all = yield* Effect.forEach(collected, (fiber) => Fiber.join(fiber))
      assert.strictEqual(all.length, 20)
      for (const events of all) {
        assert.deepStrictEqual(sequences(events), range(1, 1000))
        assert.deepStrictEqual(violations(events), [])
      }
    }))

  it.effect("has the subscription once the effect has run, though nobody pulls yet", () =>
    Effect.gen(function*() {
      const stream = yield* onBus((bus) => bus.subscription(), named("test.early", Effect.void))
      assert.deepStrictEqual(shown(yield* Stream.runCollect(stream)), ["test.early started", "test.early completed"])
    }))

  it.effect("subscribes a stream when it is first pulled", () =>
    Effect.gen(function*() {
      const stream = EventBus.subscribe({ types: ["execution_completed"] })
      yield* named("test.before", Effect.void)
      const fiber = yield* Effect.forkChild(Stream.runCollect(Stream.take(stream, 2)), { startImmediately: true })
      yield* named("test.a", Effect.void)
      yield* named("test.b", Effect.void)
      assert.deepStrictEqual(shown(yield* Fiber.join(fiber)), ["test.a completed", "test.b completed"])
    }).pipe(Effect.provide(EventPublisher.layerBus)))

  it.effect("counts its subscribers, who leave with their scope", () =>
    Effect.gen(function*() {
      const { bus } = yield* makeBus
      const scope = yield* Scope.make()
      const stream = yield* Scope.provide(bus.subscription(), scope)
      yield* Scope.provide(Effect.asVoid(bus.domainSubscription()), scope)
      assert.strictEqual(yield* bus.subscribers, 2)
      const fiber = yield* collect(stream)
      bus.publish(nth(1))
      yield* Scope.close(scope, Exit.void)
      bus.publish(nth(2))
      assert.strictEqual(yield* bus.subscribers, 0)
      assert.deepStrictEqual(sequences(yield* Fiber.join(fiber)), [1])
    }))

  it.effect("unsubscribes a consumer that has enough", () =>
    Effect.gen(function*() {
      const bus = yield* EventBus.EventBus
      const fiber = yield* Effect.forkChild(
        Stream.runCollect(Stream.take(EventBus.subscribe(), 1)),
        { startImmediately: true }
      )
      assert.strictEqual(yield* bus.subscribers, 1)
      bus.publish(nth(1))
      yield* Fiber.join(fiber)
      assert.strictEqual(yield* bus.subscribers, 0)
    }).pipe(Effect.provide(EventBus.layer)))

  it.effect("ends its streams when it closes, after all that waits", () =>
    Effect.gen(function*() {
      const { bus, close } = yield* makeBus
      const idle = yield* Effect.flatMap(bus.subscription(), collect)
      const late = yield* bus.subscription()
      for (const n of range(1, 1000)) bus.publish(nth(n))
      yield* close
      assert.deepStrictEqual(sequences(yield* Fiber.join(idle)), range(1, 1000))
      assert.deepStrictEqual(sequences(yield* Stream.runCollect(late)), range(1, 1000))
      assert.deepStrictEqual(yield* Stream.runCollect(late), [])
    }))

  it.effect("is silent once it is closed", () => {
    const registry: Metric.MetricRegistry = new Map()
    return Effect.gen(function*() {
      const { bus, close } = yield* makeBus
      const before = yield* bus.subscription()
      yield* close
      const after = yield* bus.subscription()
      bus.publish(nth(1))
      assert.strictEqual(yield* bus.subscribers, 0)
      assert.deepStrictEqual([yield* Stream.runCollect(before), yield* Stream.runCollect(after)], [[], []])
      assert.strictEqual(dropsOf(registry), 0)
    }).pipe(Effect.provideService(Metric.MetricRegistry, registry))
  })

  it.effect("goes on where a consumer of a subscription has stopped", () =>
    Effect.gen(function*() {
      const { bus, close } = yield* makeBus
      const stream = yield* bus.subscription()
      bus.publish(nth(1))
      assert.deepStrictEqual(sequences(yield* Stream.runCollect(Stream.take(stream, 1))), [1])
      const waiting = yield* collect(stream)
      yield* Fiber.interrupt(waiting)
      bus.publish(nth(2))
      yield* close
      assert.deepStrictEqual(sequences(yield* Stream.runCollect(stream)), [2])
    }))
})

describe("filters", () => {
  const failing = named("billing.refund", Effect.fail("no"))
  const program = Effect.gen(function*() {
    yield* named("billing.charge", Effect.andThen(named("mail.send", Effect.void), Said.publish({ text: "hi" })))
    yield* Effect.exit(failing)
    yield* Left.publish({})
  })
  const select = (options: EventBus.Options) =>
    Effect.flatMap(
      onBus((bus) => Effect.flatMap(bus.subscription(options), collect), program),
      (fiber) => Effect.map(Fiber.join(fiber), shown)
    )

  it.effect("by type", () =>
    Effect.gen(function*() {
      assert.deepStrictEqual(yield* select({ types: ["execution_failed", "execution_completed"] }), [
        "mail.send completed",
        "billing.charge completed",
        "billing.refund failed"
      ])
    }))

  it.effect("by domain", () =>
    Effect.gen(function*() {
      assert.deepStrictEqual(yield* select({ domains: ["mail"] }), ["mail.send started", "mail.send completed"])
    }))

  it.effect("by unit", () =>
    Effect.gen(function*() {
      assert.deepStrictEqual(yield* select({ units: ["mail.send", "billing.refund"] }), [
        "mail.send started",
        "mail.send completed",
        "billing.refund started",
        "billing.refund failed"
      ])
    }))

  it.effect("by all of them together, and by none", () =>
    Effect.gen(function*() {
      assert.deepStrictEqual(
        yield* select({ types: ["execution_started"], domains: ["billing"], units: ["mail.send", "billing.charge"] }),
        ["billing.charge started"]
      )
      assert.deepStrictEqual(yield* select({ units: [] }), [])
    }))

  it.effect("by execution, alone or with all below it", () =>
    Effect.gen(function*() {
      const { bus, close } = yield* makeBus
      const tree: ReadonlyArray<ExecutionEvent> = [
        nth(1),
        { ...nth(2), parent_id: "1", root_id: "1" },
        { ...nth(3), parent_id: "2", root_id: "1" },
        nth(4)
      ]
      const one = yield* bus.subscription({ correlationId: "2" })
      const below = yield* bus.subscription({ rootId: "1" })
      for (const event of tree) bus.publish(event)
      yield* close
      assert.deepStrictEqual(sequences(yield* Stream.runCollect(one)), [2])
      assert.deepStrictEqual(sequences(yield* Stream.runCollect(below)), [1, 2, 3])
    }))

  it.effect("keep domain events and lifecycle events apart", () =>
    Effect.gen(function*() {
      const [lifecycle, domain] = yield* onBus(
        (bus) =>
          Effect.all([Effect.flatMap(bus.subscription(), collect), Effect.flatMap(bus.domainSubscription(), collect)]),
        program
      )
      assert.deepStrictEqual(shown(yield* Fiber.join(lifecycle)), [
        "billing.charge started",
        "mail.send started",
        "mail.send completed",
        "billing.charge completed",
        "billing.refund started",
        "billing.refund failed"
      ])
      assert.deepStrictEqual((yield* Fiber.join(domain)).map(({ payload, type }) => [type, payload]), [
        ["chat.said", { text: "hi" }],
        ["room.left", {}]
      ])
    }))

  it.effect("of domain events: by type, domain and execution", () =>
    Effect.gen(function*() {
      const byOptions = (options: EventBus.DomainOptions) =>
        Effect.flatMap(
          onBus((bus) => Effect.flatMap(bus.domainSubscription(options), collect), program),
          (fiber) => Effect.map(Fiber.join(fiber), (events) => events.map(({ type }) => type))
        )
      assert.deepStrictEqual(yield* byOptions({ types: ["room.left"] }), ["room.left"])
      assert.deepStrictEqual(yield* byOptions({ domains: ["chat"] }), ["chat.said"])
      assert.deepStrictEqual(yield* byOptions({ types: ["room.left"], domains: ["chat"] }), [])
      assert.deepStrictEqual(yield* byOptions({ correlationId: "another" }), [])
      const { bus, close } = yield* makeBus
      const mine = yield* bus.domainSubscription({ correlationId: "mine" })
      const event = { type: "a.b", domain: "a", timestamp: nth(1).timestamp, source: "s", payload: null }
      bus.publish({ ...event, id: "1", sequence: 1, correlation_id: "mine" })
      bus.publish({ ...event, id: "2", sequence: 2, correlation_id: "yours" })
      bus.publish({ ...event, id: "3", sequence: 3 })
      yield* close
      assert.deepStrictEqual(sequences(yield* Stream.runCollect(mine)), [1])
    }))

  it.effect("subscribe to domain events when their stream is first pulled", () =>
    Effect.gen(function*() {
      const fiber = yield* Effect.forkChild(
        Stream.runCollect(Stream.take(EventBus.subscribeDomain({ types: ["chat.said"] }), 1)),
        { startImmediately: true }
      )
      yield* Left.publish({})
      yield* Said.publish({ text: "a" })
      assert.deepStrictEqual((yield* Fiber.join(fiber)).map(({ payload }) => payload), [{ text: "a" }])
    }).pipe(Effect.provide(EventPublisher.layerBus)))
})

describe("a slow subscriber", () => {
  /** Where events are missing, and which came. */
  const account = (
    subscribe: (onGap: (missed: number) => Effect.Effect<void>) => Effect.Effect<
      Stream.Stream<ExecutionEvent>,
      never,
      Scope.Scope
    >
  ) =>
    Effect.gen(function*() {
      const log: Array<number | string> = []
      const stream = yield* subscribe((missed) => Effect.sync(() => void log.push(`missed ${missed}`)))
      return { log, stream: Stream.map(stream, (event) => void log.push(event.sequence)) }
    })

  it.effect("loses the newest, and is told how many, where they would have been", () => {
    const registry: Metric.MetricRegistry = new Map()
    return Effect.gen(function*() {
      const { bus, close } = yield* makeBus
      const { log, stream } = yield* account((onGap) => bus.subscription({ capacity: 3, onGap }))
      for (const n of range(1, 10)) bus.publish(nth(n))
      yield* Stream.runDrain(Stream.take(stream, 3))
      for (const n of range(11, 15)) bus.publish(nth(n))
      yield* close
      yield* Stream.runDrain(stream)
      assert.deepStrictEqual(log, [1, 2, 3, "missed 7", 11, 12, 13, "missed 2"])
      assert.strictEqual(dropsOf(registry), 9)
    }).pipe(Effect.provideService(Metric.MetricRegistry, registry))
  })

  it.effect("loses the oldest where it slides, and is told how many first", () => {
    const registry: Metric.MetricRegistry = new Map()
    return Effect.gen(function*() {
      const { bus, close } = yield* makeBus
      const { log, stream } = yield* account((onGap) => bus.subscription({ capacity: 3, strategy: "sliding", onGap }))
      for (const n of range(1, 10)) bus.publish(nth(n))
      yield* Stream.runDrain(Stream.take(stream, 3))
      for (const n of range(11, 15)) bus.publish(nth(n))
      yield* close
      yield* Stream.runDrain(stream)
      assert.deepStrictEqual(log, ["missed 7", 8, 9, 10, "missed 2", 13, 14, 15])
      assert.strictEqual(dropsOf(registry), 9)
    }).pipe(Effect.provideService(Metric.MetricRegistry, registry))
  })

  it.effect("is told at once, not with the next event", () =>
    Effect.gen(function*() {
      const { bus } = yield* makeBus
      const gaps = yield* Queue.unbounded<number>()
      const stream = yield* bus.subscription({
        capacity: 2,
        onGap: (missed) => Effect.asVoid(Queue.offer(gaps, missed))
      })
      for (const n of range(1, 5)) bus.publish(nth(n))
      const fiber = yield* Effect.forkChild(Stream.runDrain(stream))
      assert.strictEqual(yield* Queue.take(gaps), 3)
      yield* Fiber.interrupt(fiber)
    }))

  it.effect("is warned in the log where it does not say how it wants to be told", () => {
    const lines: Array<unknown> = []
    const logger = Logger.make(({ message }) => void lines.push(message))
    return Effect.gen(function*() {
      const { bus, close } = yield* makeBus
      const stream = yield* bus.subscription({ capacity: 1 })
      for (const n of range(1, 3)) bus.publish(nth(n))
      yield* close
      yield* Stream.runDrain(stream)
      assert.deepStrictEqual(lines, [["A subscriber of the event bus is too slow: it missed 2 events"]])
    }).pipe(Effect.provide(Logger.layer([logger])))
  })

  it.effect("costs the others nothing, holds no more than its capacity, and never slows a unit", () =>
    Effect.gen(function*() {
      const count = 5000
      const gate = yield* Deferred.make<void>()
      let missedByStuck = 0
      let received = 0
      // One never pulls, one is stuck in its handler, one has died, one reads on.
      const { dead, good, idle, stuck } = yield* onBus(
        (bus) =>
          Effect.gen(function*() {
            const idle = yield* bus.subscription({
              capacity: 16,
              onGap: (missed) => Effect.sync(() => void (missedByStuck += missed))
            })
            const slow = yield* bus.subscription({ capacity: 16 })
            const stuck = yield* Effect.forkChild(
              Stream.runForEach(slow, () => Effect.andThen(Effect.sync(() => received++), Deferred.await(gate))),
              { startImmediately: true }
            )
            const dying = yield* bus.subscription({ capacity: 16 })
            const dead = yield* Effect.forkChild(Stream.runForEach(dying, () => Effect.die("listener")), {
              startImmediately: true
            })
            const good = yield* Effect.flatMap(bus.subscription({ capacity: 2 * count }), collect)
            return { idle, stuck, dead, good }
          }),
        Effect.forEach(range(1, count), () => named("test.unit", Effect.void), { discard: true })
      )
      assert.deepStrictEqual(sequences(yield* Fiber.join(good)), range(1, 2 * count))
      assert.isTrue(Exit.hasDies(yield* Fiber.await(dead)))
      assert.deepStrictEqual([received, stuck.pollUnsafe()], [1, undefined])
      assert.deepStrictEqual(sequences(yield* Stream.runCollect(idle)), range(1, 16))
      assert.strictEqual(missedByStuck, 2 * count - 16)
      yield* Fiber.interrupt(stuck)
    }))
})

describe("a defective listener", () => {
  it.effect("costs the others nothing, and later events reach it again", () =>
    Effect.gen(function*() {
      const { bus, close } = yield* makeBus
      const poison = 2
      const handled: Array<number> = []
      let failures = 0
      const defective = yield* bus.subscription()
      const listener = yield* Effect.forkChild(
        Stream.runForEach(defective, (event) => {
          if (event.sequence === poison) {
            failures++
            return Effect.die("poison")
          }
          return Effect.sync(() => void handled.push(event.sequence))
        }).pipe(
          Effect.catchDefect((defect) => Effect.fail(defect)),
          Effect.retry(Schedule.recurs(3))
        ),
        { startImmediately: true }
      )
      const other = yield* Effect.flatMap(bus.subscription(), collect)
      for (const n of range(1, 5)) {
        bus.publish(nth(n))
        yield* Effect.yieldNow
      }
      yield* close
      yield* Fiber.join(listener)
      assert.deepStrictEqual([handled, failures], [[1, 3, 4, 5], 1])
      assert.deepStrictEqual(sequences(yield* Fiber.join(other)), [1, 2, 3, 4, 5])
    }))

  it.effect("of one event leaves those beside it alone, also where they came together", () =>
    Effect.gen(function*() {
      const { bus, close } = yield* makeBus
      const handled: Array<number> = []
      const stream = yield* bus.subscription()
      for (const n of range(1, 5)) bus.publish(nth(n))
      yield* close
      yield* Stream.runForEach(stream, (event) =>
        Effect.ignoreCause(
          event.sequence === 2 ? Effect.die("poison") : Effect.sync(() => handled.push(event.sequence))
        ))
      assert.deepStrictEqual(handled, [1, 3, 4, 5])
    }))
})

describe("listen", () => {
  /** A listener on a bus, and what it does with events until the bus closes. */
  const listening = Effect.fnUntraced(function*<E>(
    handle: (event: ExecutionEvent) => Effect.Effect<void, E>,
    options?: EventBus.ListenOptions
  ) {
    const registry: Metric.MetricRegistry = new Map()
    const lines: Array<unknown> = []
    const logger = Logger.make(({ message }) => void lines.push(message))
    const { bus, close } = yield* makeBus
    const fiber = yield* EventBus.listen(handle, options).pipe(
      Effect.provideService(EventBus.EventBus, bus),
      Effect.provideService(Metric.MetricRegistry, registry),
      Effect.provide(Logger.layer([logger])),
      Effect.forkChild({ startImmediately: true })
    )
    const failures = () =>
      Metric.snapshotUnsafe(Context.make(Metric.MetricRegistry, registry)).flatMap(({ id, state }) =>
        id === "effect_units_listener_failures" && "count" in state ? [state.count] : []
      )
    return { bus, ended: Effect.andThen(close, Fiber.join(fiber)), failures, fiber, lines }
  })

  it.effect("handles one event after the other, until the bus closes", () =>
    Effect.gen(function*() {
      const handled: Array<number> = []
      const { bus, ended, failures } = yield* listening(
        (event) => Effect.andThen(Effect.yieldNow, Effect.sync(() => void handled.push(event.sequence))),
        { units: ["test.nth"] }
      )
      for (const n of range(1, 1000)) bus.publish(nth(n))
      bus.publish({ ...nth(0), unit_name: "test.other" })
      yield* ended
      assert.deepStrictEqual([handled, failures()], [range(1, 1000), []])
    }))

  for (
    const [name, defect] of [
      ["fails", () => Effect.fail("no")],
      ["dies", () => Effect.die("no")],
      ["interrupts itself", () => Effect.interrupt],
      [
        "throws",
        () => {
          throw new Error("no")
        }
      ]
    ] as const
  ) {
    it.effect(`tries an event again whose handler ${name}, gives it up, and goes on with the next`, () =>
      Effect.gen(function*() {
        const handled: Array<string> = []
        const { bus, ended, failures, lines } = yield* listening((event): Effect.Effect<void, string> => {
          if (event.sequence % 3 === 2) {
            handled.push(`${event.sequence} fails`)
            return defect()
          }
          return Effect.sync(() => void handled.push(String(event.sequence)))
        })
        for (const n of range(1, 5)) bus.publish(nth(n))
        yield* Effect.yieldNow
        assert.deepStrictEqual(handled, ["1", "2 fails"])
        yield* TestClock.adjust("299 millis")
        assert.deepStrictEqual(handled, ["1", "2 fails", "2 fails"])
        yield* TestClock.adjust("401 millis")
        const four = Array(4).fill("2 fails")
        assert.deepStrictEqual(handled, ["1", ...four, "3", "4", "5 fails"])
        assert.deepStrictEqual(failures(), [1])
        yield* TestClock.adjust("700 millis")
        yield* ended
        assert.deepStrictEqual(failures(), [2])
        // The success between them has ended the first streak.
        assert.strictEqual(lines.length, 2)
      }))
  }

  it.effect("counts every event that it gives up, and logs the first of a streak", () =>
    Effect.gen(function*() {
      const { bus, ended, failures, lines } = yield* listening(() => Effect.die("always"), {
        retry: Schedule.recurs(0)
      })
      for (const n of range(1, 1000)) bus.publish(nth(n))
      yield* ended
      assert.deepStrictEqual([failures(), lines.length], [[1000], 1])
    }))

  it.effect("goes on where a retry succeeds, and counts nothing", () =>
    Effect.gen(function*() {
      let tries = 0
      const { bus, ended, failures } = yield* listening(() => ++tries < 3 ? Effect.fail("not yet") : Effect.void, {
        retry: Schedule.recurs(5)
      })
      bus.publish(nth(1))
      yield* ended
      assert.deepStrictEqual([tries, failures()], [3, []])
    }))

  it.effect("ends with the fiber that it runs in, in the midst of a handler and of a pause", () =>
    Effect.gen(function*() {
      const bus = yield* EventBus.EventBus
      for (const handle of [() => Effect.never, () => Effect.fail("no")]) {
        const fiber = yield* Effect.forkChild(EventBus.listen(handle), { startImmediately: true })
        bus.publish(nth(1))
        yield* Effect.yieldNow
        yield* Fiber.interrupt(fiber)
        assert.strictEqual(yield* bus.subscribers, 0)
      }
    }).pipe(Effect.provide(EventBus.layer)))
})

describe("a subscriber that comes while executions run", () => {
  /** A unit within a unit, both of which run until they are told. */
  const nested = Effect.gen(function*() {
    const inner = yield* Deferred.make<void>()
    const outer = yield* Deferred.make<void>()
    const fiber = yield* Effect.forkChild(
      named(
        "test.outer",
        Effect.gen(function*() {
          yield* named("test.first", Deferred.await(inner))
          yield* Said.publish({ text: "between" })
          yield* named("test.second", Deferred.await(outer))
        })
      ),
      { startImmediately: true }
    )
    const finish = Effect.gen(function*() {
      yield* Deferred.succeed(inner, undefined)
      yield* Deferred.succeed(outer, undefined)
      yield* Fiber.join(fiber)
    })
    return { finish }
  })

  it.effect("sees whole trees, or nothing of them", () =>
    Effect.gen(function*() {
      const bus = yield* EventBus.EventBus
      const before = yield* bus.subscription()
      const running = yield* nested
      const midway = yield* bus.subscription()
      const midwayDomain = yield* bus.domainSubscription()
      yield* running.finish
      const next = yield* nested
      yield* next.finish
      const whole = [
        "test.outer started",
        "test.first started",
        "test.first completed",
        "test.second started",
        "test.second completed",
        "test.outer completed"
      ]
      assert.deepStrictEqual(shown(yield* Stream.runCollect(Stream.take(before, 12))), [...whole, ...whole])
      assert.deepStrictEqual(shown(yield* Stream.runCollect(Stream.take(midway, 6))), whole)
      const [said] = yield* Stream.runCollect(Stream.take(midwayDomain, 1))
      assert.strictEqual(said?.sequence, 11)
    }).pipe(Effect.provide(EventPublisher.layerBus)))

  it.effect("sees the rest of what runs where it asks for that", () =>
    Effect.gen(function*() {
      const bus = yield* EventBus.EventBus
      const running = yield* nested
      const rest = yield* bus.subscription({ includeRunning: true })
      const restDomain = yield* bus.domainSubscription({ includeRunning: true })
      yield* running.finish
      assert.deepStrictEqual(shown(yield* Stream.runCollect(Stream.take(rest, 4))), [
        "test.first completed",
        "test.second started",
        "test.second completed",
        "test.outer completed"
      ])
      assert.strictEqual((yield* Stream.runCollect(Stream.take(restDomain, 1))).length, 1)
    }).pipe(Effect.provide(EventPublisher.layerBus)))

  it.effect.prop("sees whole trees in any interleaving", {
    // Who goes on next: one of three trees, or a new subscriber.
    turns: Schema.Array(Schema.Literals(["a", "b", "c", "subscribe"])).check(Schema.isMaxLength(40))
  }, ({ turns }) =>
    Effect.gen(function*() {
      const bus = yield* EventBus.EventBus
      const steps = {
        a: yield* Queue.unbounded<void>(),
        b: yield* Queue.unbounded<void>(),
        c: yield* Queue.unbounded<void>()
      }
      const step = (name: "a" | "b" | "c") => Queue.take(steps[name])
      const tree = (name: "a" | "b" | "c") =>
        Effect.forever(
          Effect.andThen(
            step(name),
            named(`${name}.root`, Effect.andThen(step(name), named(`${name}.leaf`, step(name))))
          )
        )
      const running = yield* Effect.forEach(
        ["a", "b", "c"] as const,
        (name) => Effect.forkChild(tree(name), { startImmediately: true })
      )
      const subscriptions: Array<Stream.Stream<ExecutionEvent>> = []
      for (const turn of turns) {
        if (turn === "subscribe") subscriptions.push(yield* bus.subscription())
        else yield* Queue.offer(steps[turn], undefined)
        yield* Effect.yieldNow
      }
      yield* Fiber.interruptAll(running)
      const end = nth(0)
      bus.publish(end)
      for (const subscription of subscriptions) {
        const events = yield* Stream.runCollect(
          Stream.takeUntil(subscription, (event) => event === end, { excludeLast: true })
        )
        const starts = new Set(events.filter((event) => event.parent_id === undefined).map((event) => event.root_id))
        assert.deepStrictEqual(violations(events, { ignoreSequence: true }), [])
        assert.isTrue(events.every((event) => starts.has(event.root_id)))
      }
    }).pipe(Effect.provide(EventPublisher.layerBus)))
})
