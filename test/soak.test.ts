/**
 * What holds over many executions: memory, fibers, exact accounts of what is lost. Shortened; the environment variable `STRESS` runs
 * it in full.
 */
import { assert, describe, it } from "@effect/vitest"
import { Cause, Clock, Context, Deferred, Effect, Exit, Fiber, Metric, Stream } from "effect"
import { TestClock } from "effect/testing"
import * as v8 from "node:v8"
import * as vm from "node:vm"
import * as EventBus from "../src/EventBus.ts"
import * as EventPublisher from "../src/EventPublisher.ts"
import { isExecutionEvent, isTerminal } from "../src/ExecutionEvent.ts"
import { instrumentEffect, instrumentStream } from "../src/instrument.ts"
import { idle, makeWorld, named, range, recorder, sequences } from "./publisherWorld.ts"

const isStress = process.env["STRESS"] !== undefined
/** Full size and shortened size. */
const size = (full: number, shortened: number): number => isStress ? full : shortened
const timeout = isStress ? 3_600_000 : 60_000

v8.setFlagsFromString("--expose-gc")
// With that flag a new context has the collector as a global.
const collectGarbage = vm.runInNewContext("gc") as () => void

const megabyte = 1024 * 1024

const heapUsed = (): number => {
  collectGarbage()
  return process.memoryUsage().heapUsed
}

/** Counts the fibers that run, by Effect's own hook. */
const makeFiberCount = () => {
  let active = 0
  const service: Metric.FiberRuntimeMetricsService = {
    recordFiberStart: () => void active++,
    recordFiberEnd: () => void active--
  }
  return {
    active: () => active,
    counted: <A, E, R>(self: Effect.Effect<A, E, R>) => Effect.provideService(self, Metric.FiberRuntimeMetrics, service)
  }
}

/** Runs `batch` ten times, and fails where the heap or the fibers are more after the last than after the second. */
const assertFlat = Effect.fnUntraced(function*<A, E, R>(
  batch: Effect.Effect<A, E, R>,
  active: () => number,
  bound = 2 * megabyte
) {
  const heaps: Array<number> = []
  const fibers: Array<number> = []
  for (let i = 0; i < 10; i++) {
    yield* batch
    heaps.push(heapUsed())
    fibers.push(active())
  }
  // The first batches compile code and fill buffers.
  const growth = heaps[9]! - heaps[1]!
  assert.isBelow(
    growth,
    bound,
    `heap after each batch: ${heaps.map((bytes) => (bytes / megabyte).toFixed(1)).join(" ")}`
  )
  assert.strictEqual(fibers[9], fibers[1], `fibers after each batch: ${fibers.join(" ")}`)
})

describe("executions leave nothing behind", () => {
  /** All ends that an execution can have, nested. */
  const mixed = Effect.gen(function*() {
    yield* named("test.outer", Effect.andThen(idle, Effect.exit(named("test.fails", Effect.fail("no")))))
    yield* Effect.exit(named("test.dies", Effect.die("defect")))
    yield* Effect.exit(named("test.interrupted", Effect.interrupt))
    yield* instrumentEffect(Effect.succeed({ big: "x".repeat(100) }), { name: "test.values", input: { n: 1 } })
  })
  const executionsOfMixed = 6

  const layers: ReadonlyArray<readonly [string, number, () => ReturnType<typeof EventPublisher.layer>]> = [
    ["noop", size(10_000_000, 60_000), () => EventPublisher.layerNoop],
    ["memory", size(10_000_000, 300_000), () => EventPublisher.layerMemoryWith({ capacity: 1000 })],
    ["bus", size(10_000_000, 60_000), () => EventPublisher.layerBus],
    ["Effects", size(1_000_000, 12_000), () => EventPublisher.layer({ publish: () => Effect.void })],
    ["closed", size(1_000_000, 6_000), () => EventPublisher.layer({ publish: () => Effect.void, policy: "closed" })],
    [
      "failing",
      size(1_000_000, 12_000),
      () =>
        EventPublisher.layer({
          publish: () => {
            throw new Error("no connection")
          }
        })
    ],
    [
      "all combinators",
      size(1_000_000, 12_000),
      () =>
        EventPublisher.combine(
          EventPublisher.filter(EventPublisher.layerMemoryWith({ capacity: 100 }), (event) => event.domain === "test"),
          EventPublisher.sample(EventPublisher.layer({ publish: () => Effect.void }), { rate: 0.5 })
        ).pipe(EventPublisher.buffered({ capacity: 100, strategy: "suspend" }))
    ]
  ]

  for (const [name, executions, layer] of layers) {
    it.live(`${name}: ${executions} executions`, () => {
      const { active, counted } = makeFiberCount()
      return Effect.gen(function*() {
        const world = yield* makeWorld(layer())
        // A long run goes on in turns, so that fibers of publishers have theirs.
        const batch = Effect.forEach(
          range(1, executions / executionsOfMixed / 10 / 10),
          () => Effect.andThen(Effect.repeat(mixed, { times: 9 }), Effect.yieldNow),
          { discard: true }
        )
        yield* assertFlat(world.run(Effect.andThen(batch, Effect.yieldNow)), active)
        const total = Object.entries(world.counts()).reduce(
          (sum, [key, count]) => key.startsWith("executions") ? sum + count : sum,
          0
        )
        if (!world.publisher.isNoop) assert.isAtLeast(total, 0.9 * executions)
        yield* world.close
        yield* Effect.yieldNow
        assert.strictEqual(active(), 0)
      }).pipe(counted)
    }, timeout)
  }

  it.live("the bus: subscribers that read, and one that never does", () => {
    const { active, counted } = makeFiberCount()
    return Effect.gen(function*() {
      const world = yield* makeWorld(EventPublisher.layerBus)
      const bus = Context.get(world.context, EventBus.EventBus)
      let read = 0
      const reader = yield* Effect.forkChild(
        Stream.runForEach(yield* bus.subscription({ onGap: () => Effect.void }), () => Effect.sync(() => read++))
      )
      const idler = yield* bus.subscription({
        capacity: 1000,
        onGap: (missed) => Effect.sync(() => void (read -= missed))
      })
      const count = size(1_000_000, 2000)
      yield* assertFlat(
        world.run(Effect.forEach(range(1, count), () => Effect.andThen(idle, Effect.yieldNow), { discard: true })),
        active
      )
      yield* world.close
      yield* Fiber.join(reader)
      assert.strictEqual(read, 20 * count)
      yield* Stream.runDrain(idler)
      assert.strictEqual(read, 1000)
    }).pipe(counted)
  }, timeout)

  it.live("a chain of daemons, each begun by the one before", () => {
    const { active, counted } = makeFiberCount()
    return Effect.gen(function*() {
      const world = yield* makeWorld(EventPublisher.layerMemoryWith({ capacity: 100 }))
      let goOn = yield* Deferred.make<number>()
      let paused = yield* Deferred.make<void>()
      const link = (left: number): Effect.Effect<unknown, never, EventPublisher.EventPublisher> =>
        named("test.link", Effect.forkDetach(next(left)))
      const next = (left: number): Effect.Effect<unknown, never, EventPublisher.EventPublisher> =>
        Effect.suspend(() => {
          if (left > 0) return link(left - 1)
          const again = goOn
          return Effect.andThen(Deferred.succeed(paused, undefined), Effect.flatMap(Deferred.await(again), link))
        })
      yield* Effect.forkDetach(world.run(next(0)))
      yield* Deferred.await(paused)
      const links = size(100_000, 2000)
      const batch = Effect.gen(function*() {
        const before = goOn
        goOn = yield* Deferred.make<number>()
        paused = yield* Deferred.make<void>()
        yield* Deferred.succeed(before, links)
        yield* Deferred.await(paused)
      })
      yield* assertFlat(batch, active, megabyte)
    }).pipe(counted)
  }, timeout)

  it.live("layers that are built and closed", () => {
    const { active, counted } = makeFiberCount()
    return Effect.gen(function*() {
      const layer = EventPublisher.layerMemory.pipe(
        EventPublisher.combine(EventPublisher.layerBus),
        EventPublisher.buffered({ capacity: 10, strategy: "sliding" })
      )
      const once = Effect.andThen(Effect.provide(idle, layer), Effect.yieldNow)
      yield* assertFlat(Effect.repeat(once, { times: size(10_000, 50) }), active)
    }).pipe(counted)
  }, timeout)
})

describe("streams", () => {
  /** A stream of numbers, one a chunk, that looks at the heap as it goes. */
  const counting = (count: number, look: () => void): Stream.Stream<number> =>
    Stream.fromPull(Effect.sync(() => {
      let n = 0
      return Effect.suspend(() => {
        if (n === count) return Cause.done()
        if (++n % (count / 10) === 0) look()
        return Effect.succeed([n] as const)
      })
    }))

  const ended = (events: ReadonlyArray<EventPublisher.Event>) =>
    events.filter(isExecutionEvent).filter(isTerminal).map((event) =>
      event.event_type === "execution_completed"
        ? [event.event_type, event.chunks, event.output]
        : [event.event_type, event.chunks, event.failure.kind]
    )

  for (const count of [0, 1, size(10_000_000, 1_000_000)]) {
    it.live(`of ${count} chunks go through with memory flat`, () =>
      Effect.gen(function*() {
        const { events, layer } = recorder()
        const heaps: Array<number> = []
        const stream = counting(count, () => void heaps.push(heapUsed()))
        const seen = yield* Effect.provide(
          Stream.runFold(instrumentStream(stream, { name: "test.stream" }), () => 0, (sum) => sum + 1),
          layer
        )
        assert.strictEqual(seen, count)
        assert.deepStrictEqual(ended(events), [["execution_completed", count, { chunks: count }]])
        if (count > 1) assert.isBelow(heaps[9]! - heaps[1]!, megabyte)
      }), timeout)
  }

  it.effect("tell how far they came where the consumer stops, they fail, or nothing comes for too long", () =>
    Effect.gen(function*() {
      const { events, layer } = recorder()
      const { run } = yield* makeWorld(layer)
      const instrumented = <E>(stream: Stream.Stream<number, E>) => instrumentStream(stream, { name: "test.stream" })
      let finalized = 0
      const endless = Stream.ensuring(Stream.forever(Stream.make(1)), Effect.sync(() => finalized++))
      assert.deepStrictEqual(yield* run(Stream.runCollect(Stream.take(instrumented(endless), 3))), [1, 1, 1])
      assert.strictEqual(finalized, 1)
      const failing = Stream.concat(Stream.make(1, 2), Stream.fail("no"))
      assert.deepStrictEqual(
        yield* Effect.exit(run(Stream.runDrain(instrumented(failing)))),
        Exit.fail("no")
      )
      const stalled = yield* Deferred.make<void>()
      const stuck = Stream.concat(
        Stream.make(1, 2, 3),
        Stream.fromEffect(Effect.andThen(Deferred.succeed(stalled, undefined), Effect.never))
      )
      const waiting = yield* Effect.forkChild(run(Stream.runCollect(Stream.timeout(instrumented(stuck), "30 seconds"))))
      yield* Deferred.await(stalled)
      yield* TestClock.adjust("30 seconds")
      assert.deepStrictEqual(yield* Fiber.join(waiting), [1, 2, 3])
      assert.deepStrictEqual(ended(events), [
        ["execution_failed", 3, "interrupt"],
        ["execution_failed", 2, "fail"],
        ["execution_failed", 3, "interrupt"]
      ])
    }))
})

describe("a producer a hundred times as fast as the consumer", () => {
  const seconds = size(60, 1)
  /** Executions, two events each, of which a hundred events come in a millisecond. */
  const produce = Effect.forEach(
    range(1, seconds * 1000),
    () => Effect.andThen(Effect.repeat(idle, { times: 49 }), Effect.sleep("1 milli")),
    { discard: true }
  )
  const produced = seconds * 1000 * 100

  const assertBounded = Effect.fnUntraced(function*<A, E, R>(self: Effect.Effect<A, E, R>) {
    const heap = heapUsed()
    const rss = process.memoryUsage().rss
    const result = yield* self
    assert.isBelow(heapUsed() - heap, 8 * megabyte)
    assert.isBelow(process.memoryUsage().rss - rss, 256 * megabyte)
    return result
  })

  /** Moves the clock by a millisecond at a time, so that each side has its turns. */
  const play = Effect.fnUntraced(function*<A, E>(fiber: Fiber.Fiber<A, E>) {
    while (fiber.pollUnsafe() === undefined) yield* TestClock.adjust("1 milli")
    return yield* Fiber.join(fiber)
  })

  for (const strategy of ["dropping", "sliding"] as const) {
    it.effect(
      `a buffer, ${strategy}: what is lost is what was produced and not received`,
      () =>
        assertBounded(Effect.gen(function*() {
          let received = 0
          let gaps = 0
          let last = 0
          const slow = EventPublisher.layer({
            policy: "closed",
            publish: ({ sequence }) =>
              Effect.andThen(
                Effect.sleep("1 milli"),
                Effect.sync(() => {
                  received++
                  gaps += sequence - last - 1
                  last = sequence
                })
              )
          })
          const world = yield* makeWorld(EventPublisher.buffered(slow, { capacity: 1000, strategy }))
          yield* play(yield* Effect.forkChild(world.run(produce)))
          yield* play(yield* Effect.forkChild(world.close))
          const { "drops buffered": dropped } = world.counts()
          assert.strictEqual(dropped, produced - received)
          assert.strictEqual(gaps + (produced - last), dropped)
          assert.isAtLeast(received, seconds * 1000)
          assert.strictEqual(world.logs.length, 1)
        })),
      timeout
    )

    it.effect(
      `a subscriber, ${strategy}: what it is told of is what was produced and not received`,
      () =>
        assertBounded(Effect.gen(function*() {
          const world = yield* makeWorld(EventPublisher.layerBus)
          const bus = Context.get(world.context, EventBus.EventBus)
          let received = 0
          let told = 0
          let last = 0
          const stream = yield* bus.subscription({
            capacity: 1000,
            strategy,
            onGap: (missed) =>
              Effect.sync(() => {
                told += missed
                last += missed
              })
          })
          const reader = yield* Effect.forkChild(Stream.runForEach(stream, (event) =>
            Effect.andThen(
              Effect.sleep("1 milli"),
              Effect.sync(() => {
                received++
                // The gap was told in the very place where the numbers have it.
                assert.strictEqual(event.sequence, ++last)
              })
            )))
          yield* play(yield* Effect.forkChild(world.run(produce)))
          yield* world.close
          yield* play(reader)
          assert.strictEqual(told, produced - received)
          assert.isAtLeast(received, seconds * 1000)
        })),
      timeout
    )
  }

  it.effect(
    "a buffer that suspends: everything arrives, in order, in the consumer's time",
    () =>
      assertBounded(Effect.gen(function*() {
        const received: Array<number> = []
        const slow = EventPublisher.layer({
          policy: "closed",
          publish: ({ sequence }) => Effect.andThen(Effect.sleep("1 milli"), Effect.sync(() => received.push(sequence)))
        })
        const world = yield* makeWorld(EventPublisher.buffered(slow, { capacity: 100, strategy: "suspend" }))
        const count = seconds * 500
        const start = yield* Clock.currentTimeMillis
        yield* play(yield* Effect.forkChild(world.run(Effect.forEach(range(1, count), () => idle, { discard: true }))))
        yield* play(yield* Effect.forkChild(world.close))
        assert.deepStrictEqual(received, range(1, 2 * count))
        assert.strictEqual((yield* Clock.currentTimeMillis) - start, 2 * count)
        assert.deepStrictEqual(world.counts(), { "executions completed": count })
      })),
    timeout
  )
})

describe("many at once", () => {
  it.live("units in many fibers are numbered without holes, each execution in its order", () =>
    Effect.gen(function*() {
      const { events, layer } = recorder()
      const { run } = yield* makeWorld(layer)
      const count = size(100_000, 5000)
      yield* run(Effect.forEach(range(1, count), () =>
        Effect.andThen(Effect.yieldNow, named("test.outer", Effect.andThen(Effect.yieldNow, idle))), {
        concurrency: 100,
        discard: true
      }))
      assert.deepStrictEqual(sequences(events), range(1, 4 * count))
    }), timeout)
})
