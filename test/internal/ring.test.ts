import { assert, describe, it } from "@effect/vitest"
import { Deferred, Effect, Exit, Fiber, Schema } from "effect"
import * as v8 from "node:v8"
import * as vm from "node:vm"
import { type Batch, Ring } from "../../src/internal/ring.ts"

/** Everything up to the end of the queue, batch by batch. */
const drain = <A>(ring: Ring<A>, max = 100): Effect.Effect<ReadonlyArray<Batch<A>>> =>
  Effect.gen(function*() {
    const batches: Array<Batch<A>> = []
    while (true) {
      const batch = yield* ring.take(max)
      if (batch === undefined) return batches
      batches.push(batch)
    }
  })

const ignored = (): void => {}

/** What a consumer does to a queue, or who offers to it. */
const Step = Schema.Union([
  Schema.Struct({ offers: Schema.Int.check(Schema.isBetween({ minimum: 1, maximum: 12 })) }),
  Schema.Struct({ takes: Schema.Int.check(Schema.isBetween({ minimum: 1, maximum: 6 })) })
])

describe("Ring", () => {
  it.effect("gives items in their order, in batches of at most so many", () =>
    Effect.gen(function*() {
      const ring = new Ring<number>(8)
      for (let n = 1; n <= 5; n++) assert.isTrue(ring.offer(n))
      assert.strictEqual(ring.size, 5)
      assert.deepStrictEqual(yield* ring.take(2), { missed: 0, items: [1, 2] })
      assert.deepStrictEqual(yield* ring.take(9), { missed: 0, items: [3, 4, 5] })
      assert.strictEqual(ring.size, 0)
    }))

  it.effect("loses the new item where it is full, and tells it before the item that follows", () =>
    Effect.gen(function*() {
      const ring = new Ring<number>(3)
      assert.deepStrictEqual([1, 2, 3, 4, 5].map((n) => ring.offer(n)), [true, true, true, false, false])
      // Room again: what comes now comes after the gap, although older items still wait before it.
      assert.deepStrictEqual(yield* ring.take(1), { missed: 0, items: [1] })
      assert.isTrue(ring.offer(6))
      assert.isFalse(ring.offer(7))
      ring.end()
      assert.deepStrictEqual(yield* drain(ring), [
        { missed: 0, items: [2, 3] },
        { missed: 2, items: [6] },
        { missed: 1, items: [] }
      ])
    }))

  it.effect("loses the oldest item where it slides, and tells it first", () =>
    Effect.gen(function*() {
      const ring = new Ring<number>(3)
      assert.deepStrictEqual([1, 2, 3, 4, 5].map((n) => ring.slide(n)), [true, true, true, false, false])
      ring.end()
      assert.deepStrictEqual(yield* drain(ring), [{ missed: 2, items: [3, 4, 5] }])
    }))

  it.effect("tells what is missing at once, also where nothing follows", () =>
    Effect.gen(function*() {
      const ring = new Ring<number>(1)
      ring.offer(1)
      ring.offer(2)
      assert.deepStrictEqual(yield* ring.take(9), { missed: 0, items: [1] })
      assert.deepStrictEqual(yield* ring.take(9), { missed: 1, items: [] })
    }))

  for (const strategy of ["offer", "slide"] as const) {
    it.effect.prop(`accounts for every item, in its place (${strategy})`, {
      capacity: Schema.Int.check(Schema.isBetween({ minimum: 1, maximum: 40 })),
      steps: Schema.Array(Step).check(Schema.isMaxLength(60))
    }, ({ capacity, steps }) =>
      Effect.gen(function*() {
        const ring = new Ring<number>(capacity)
        let offered = 0
        let seen = 0
        const receive = (batch: Batch<number>): void => {
          seen += batch.missed
          for (const item of batch.items) assert.strictEqual(item, ++seen)
        }
        for (const step of steps) {
          if ("offers" in step) {
            for (let i = 0; i < step.offers; i++) ring[strategy](++offered)
          } else if (ring.size > 0) {
            const batch = yield* ring.take(step.takes)
            if (batch !== undefined) receive(batch)
          }
          assert.isAtMost(ring.size, capacity)
        }
        ring.end()
        for (const batch of yield* drain(ring)) receive(batch)
        assert.strictEqual(seen, offered)
      }), { arbitrary: { runs: 300 } })
  }

  it.effect("holds one item at least", () =>
    Effect.gen(function*() {
      for (const capacity of [0, -1, Number.NaN, 1.9]) {
        const ring = new Ring<number>(capacity)
        assert.deepStrictEqual([ring.capacity, ring.offer(1), ring.offer(2)], [1, true, false])
        assert.deepStrictEqual(yield* ring.take(9), { missed: 0, items: [1] })
      }
    }))

  it.effect("holds as many as come where it has no bound, at the cost of those that wait", () =>
    Effect.gen(function*() {
      const ring = new Ring<number>(Number.POSITIVE_INFINITY)
      let offered = 0
      let taken = 0
      for (const backlog of [1000, 10, 5000, 1]) {
        while (ring.size < backlog) ring.offer(++offered)
        for (let i = 0; i < 20_000; i++) {
          ring.offer(++offered)
          if (ring.size <= backlog) continue
          const batch = yield* ring.take(ring.size - backlog)
          for (const item of batch?.items ?? []) assert.strictEqual(item, ++taken)
        }
      }
      assert.strictEqual(offered - taken, ring.size)
    }))

  it.effect("wakes its consumer after whoever offers has gone on, once for all that came", () =>
    Effect.gen(function*() {
      const ring = new Ring<number>(8)
      const fiber = yield* Effect.forkChild(ring.take(9), { startImmediately: true })
      ring.offer(1)
      ring.offer(2)
      assert.isUndefined(fiber.pollUnsafe())
      ring.offer(3)
      assert.deepStrictEqual(yield* Fiber.join(fiber), { missed: 0, items: [1, 2, 3] })
    }))

  it.effect("leaves everything in place where its consumer is interrupted", () =>
    Effect.gen(function*() {
      const ring = new Ring<number>(8)
      const waiting = yield* Effect.forkChild(ring.take(9), { startImmediately: true })
      yield* Fiber.interrupt(waiting)
      const woken = yield* Effect.forkChild(ring.take(9), { startImmediately: true })
      ring.offer(1)
      woken.interruptUnsafe()
      assert.isTrue(Exit.hasInterrupts(yield* Fiber.await(woken)))
      assert.deepStrictEqual(yield* ring.take(9), { missed: 0, items: [1] })
    }))

  it.effect("serves several consumers, each item once", () =>
    Effect.gen(function*() {
      const ring = new Ring<number>(8)
      const consumers = yield* Effect.forEach(
        [1, 2, 3],
        () => Effect.forkChild(drain(ring, 1), { startImmediately: true })
      )
      for (let n = 1; n <= 6; n++) {
        ring.offer(n)
        yield* Effect.yieldNow
      }
      ring.end()
      const batches = yield* Effect.forEach(consumers, (consumer) => Fiber.join(consumer))
      assert.sameMembers(batches.flat().flatMap(({ items }) => items), [1, 2, 3, 4, 5, 6])
    }))

  it.effect("takes nothing more in once it has ended, and lets out what is left", () =>
    Effect.gen(function*() {
      const ring = new Ring<number>(8)
      ring.offer(1)
      ring.end()
      ring.end()
      assert.deepStrictEqual([ring.offer(2), ring.slide(3), yield* ring.offerWaiting(4, ignored)], [
        false,
        false,
        false
      ])
      assert.deepStrictEqual(yield* drain(ring), [{ missed: 0, items: [1] }])
      assert.isUndefined(yield* ring.take(9))
    }))

  it.effect("ends a consumer that waits", () =>
    Effect.gen(function*() {
      const ring = new Ring<number>(8)
      const fiber = yield* Effect.forkChild(ring.take(9), { startImmediately: true })
      ring.end()
      assert.isUndefined(yield* Fiber.join(fiber))
    }))

  it.effect("holds on to nothing that was taken", () =>
    Effect.gen(function*() {
      v8.setFlagsFromString("--expose-gc")
      // With that flag a new context has the collector as a global.
      const collectGarbage = vm.runInNewContext("gc") as () => void
      const ring = new Ring<object>(100)
      const offered = Array.from({ length: 50 }, (_, n) => {
        const item = { n }
        ring.offer(item)
        return new WeakRef(item)
      })
      yield* Effect.asVoid(ring.take(49))
      // A reference that was just made or read holds its target for the rest of the turn.
      yield* Effect.promise(() => new Promise((resolve) => setImmediate(resolve)))
      collectGarbage()
      assert.deepStrictEqual(offered.filter((reference) => reference.deref() !== undefined), offered.slice(49))
    }))

  describe("offerWaiting", () => {
    it.effect("waits for room, in the order of the calls", () =>
      Effect.gen(function*() {
        const ring = new Ring<number>(2)
        const offers = yield* Effect.forEach(
          [1, 2, 3, 4, 5],
          (n) => Effect.forkChild(ring.offerWaiting(n, ignored), { startImmediately: true })
        )
        assert.deepStrictEqual(offers.map((fiber) => fiber.pollUnsafe() !== undefined), [
          true,
          true,
          false,
          false,
          false
        ])
        assert.deepStrictEqual(yield* ring.take(1), { missed: 0, items: [1] })
        assert.deepStrictEqual(offers.map((fiber) => fiber.pollUnsafe() !== undefined), [
          true,
          true,
          true,
          false,
          false
        ])
        assert.deepStrictEqual(yield* ring.take(4), { missed: 0, items: [2, 3, 4, 5] })
        assert.deepStrictEqual(yield* Effect.forEach(offers, (fiber) => Fiber.join(fiber)), Array(5).fill(true))
      }))

    it.effect("gives up where it is interrupted, and says so once", () =>
      Effect.gen(function*() {
        const ring = new Ring<number>(1)
        let abandoned = 0
        const offer = (n: number) =>
          Effect.forkChild(ring.offerWaiting(n, () => void abandoned++), { startImmediately: true })
        yield* offer(1)
        const second = yield* offer(2)
        const third = yield* offer(3)
        yield* Fiber.interrupt(second)
        assert.strictEqual(abandoned, 1)
        assert.deepStrictEqual(yield* ring.take(9), { missed: 0, items: [1, 3] })
        assert.isTrue(yield* Fiber.join(third))
        yield* Fiber.interrupt(third)
        assert.strictEqual(abandoned, 1)
      }))

    it.effect("answers those who wait that the queue has ended", () =>
      Effect.gen(function*() {
        const ring = new Ring<number>(1)
        ring.offer(1)
        const waiting = yield* Effect.forkChild(ring.offerWaiting(2, ignored), { startImmediately: true })
        ring.end()
        assert.isFalse(yield* Fiber.join(waiting))
        assert.deepStrictEqual(yield* drain(ring), [{ missed: 0, items: [1] }])
      }))
  })

  describe("forEach", () => {
    it.effect("handles one item after the other, until the queue has ended and is empty", () =>
      Effect.gen(function*() {
        const ring = new Ring<number>(2)
        const handled: Array<number> = []
        const gates = [yield* Deferred.make<void>(), yield* Deferred.make<void>(), yield* Deferred.make<void>()]
        const fiber = yield* Effect.forkChild(
          ring.forEach((n) => Effect.andThen(Effect.sync(() => handled.push(n)), Deferred.await(gates[n - 1]!))),
          { startImmediately: true }
        )
        ring.offer(1)
        yield* Effect.yieldNow
        // The first is being handled, so there is room for two more.
        assert.deepStrictEqual([ring.offer(2), ring.offer(3), ring.offer(4)], [true, true, false])
        assert.deepStrictEqual([handled, ring.size, ring.unfinished], [[1], 2, 3])
        yield* Deferred.succeed(gates[0]!, undefined)
        yield* Effect.yieldNow
        assert.deepStrictEqual([handled, ring.size, ring.unfinished], [[1, 2], 1, 2])
        ring.end()
        yield* Deferred.succeed(gates[1]!, undefined)
        yield* Deferred.succeed(gates[2]!, undefined)
        yield* Fiber.join(fiber)
        assert.deepStrictEqual([handled, ring.size, ring.unfinished], [[1, 2, 3], 0, 0])
      }))

    it.effect("counts an item as unfinished whose handling was interrupted", () =>
      Effect.gen(function*() {
        const ring = new Ring<number>(2)
        ring.offer(1)
        ring.offer(2)
        const fiber = yield* Effect.forkChild(ring.forEach(() => Effect.never), { startImmediately: true })
        yield* Fiber.interrupt(fiber)
        assert.deepStrictEqual([ring.size, ring.unfinished], [1, 2])
      }))
  })
})
