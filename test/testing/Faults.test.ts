import { assert, describe, it } from "@effect/vitest"
import { Context, Effect, Exit, Fiber, Layer, Metric, Random, References, Scope } from "effect"
import { TestClock } from "effect/testing"
import { EventBus, EventPublisher, instrumentEffect } from "../../src/index.ts"
import { conformanceCases, Faults, Nonconformance, type Promises } from "../../src/testing/index.ts"
import * as Events from "../fixtures/events.ts"

const { Memory } = EventPublisher

/** Publishes events through faults, and gives what became of each, and the ids of what arrived. */
const publishing = Effect.fnUntraced(function*(
  ids: ReadonlyArray<string>,
  options: Faults.Options
) {
  const scope = yield* Scope.make()
  const context = yield* Layer.buildWithScope(Faults.inject(EventPublisher.layerMemory, options), scope)
  const publisher = Context.get(context, EventPublisher.EventPublisher)
  const exits = yield* Effect.forEach(ids, (id) => Effect.exit(publisher.publish(Events.domainEvent(id))))
  yield* Scope.close(scope, Exit.void)
  const all = yield* Context.get(context, Memory).all
  return {
    arrived: all.map(({ id }) => id),
    reasons: exits.map((exit) => Exit.isSuccess(exit) ? "published" : reasonOf(exit))
  }
})

const reasonOf = (exit: Exit.Exit<void, EventPublisher.PublishError>): string => {
  const error = Exit.findErrorOption(exit)
  return error._tag === "Some" ? error.value.message : "defect"
}

const refused = (id: string, why = "a fault was injected") =>
  `Event ${id} was not published: the transport is unavailable: ${why}. Check that it runs and can be reached; a retry can help`

/** How many failures to publish were counted. */
const failuresIn = (registry: typeof Metric.MetricRegistry.Service) =>
  Metric.snapshotUnsafe(Context.make(Metric.MetricRegistry, registry))
    .filter(({ id }) => id === "effect_units_publish_failures")
    .map(({ state }) => state)

describe("inject", () => {
  it.effect("does to each event what its fault says", () =>
    Effect.gen(function*() {
      const schedule = Faults.scripted([undefined, "fail", "drop", "duplicate", "die", "crash", undefined])
      assert.deepStrictEqual(yield* publishing(["a", "b", "c", "d", "e", "f", "g", "h"], { schedule }), {
        arrived: ["a", "d", "d", "f", "g", "h"],
        reasons: [
          "published",
          refused("b"),
          "published",
          "published",
          refused("e", "A fault was injected"),
          refused("f"),
          "published",
          "published"
        ]
      })
    }))

  it.effect("lets a reordered event follow the next one, or comes with the end of the scope", () =>
    Effect.gen(function*() {
      const schedule = Faults.scripted(["reorder", undefined, "reorder", "reorder", undefined, "reorder"])
      const { arrived } = yield* publishing(["a", "b", "c", "d", "e", "f"], { schedule })
      assert.deepStrictEqual(arrived, ["b", "a", "e", "c", "d", "f"])
    }))

  it.effect("keeps what becomes of a reordered event from the others", () =>
    Effect.gen(function*() {
      const arrived: Array<string> = []
      const refusing = Layer.effect(
        EventPublisher.EventPublisher,
        EventPublisher.make({
          publish: ({ id }) => {
            if (id === "a") throw new Error("not this one")
            arrived.push(id)
          }
        })
      )
      const registry = new Map()
      const context = yield* Layer.build(
        Faults.inject(refusing, { schedule: Faults.scripted(["reorder", "reorder", undefined]) })
      ).pipe(Effect.provideService(Metric.MetricRegistry, registry))
      const publisher = Context.get(context, EventPublisher.EventPublisher)
      for (const id of ["a", "b", "c"]) yield* publisher.publish(Events.domainEvent(id))
      assert.deepStrictEqual(arrived, ["c", "b"])
      assert.deepStrictEqual(failuresIn(registry), [{ count: 1, incremental: true }])
    }))

  it.effect("delays by the clock, and hangs until it times out", () =>
    Effect.gen(function*() {
      const schedule = Faults.scripted([{ delay: "3 seconds" }, "hang"])
      const fiber = yield* Effect.forkChild(publishing(["a", "b"], { schedule, timeout: "10 seconds" }), {
        startImmediately: true
      })
      yield* TestClock.adjust("3 seconds")
      yield* TestClock.adjust("9999 millis")
      assert.isUndefined(fiber.pollUnsafe())
      yield* TestClock.adjust("1 millis")
      assert.deepStrictEqual(yield* Fiber.join(fiber), {
        arrived: ["a"],
        reasons: [
          "published",
          "Event b was not published: no acknowledgement within 10000 ms. The event may have arrived: a retry is deduplicated by its id"
        ]
      })
    }))

  it.effect("leaves units of an open publisher alone, and counts what it does", () =>
    Effect.gen(function*() {
      const registry = new Map()
      const layer = Faults.inject(EventPublisher.layerMemory, { schedule: Faults.scripted(["fail", "die", "drop"]) })
      const scope = yield* Scope.make()
      const context = yield* Layer.buildWithScope(layer, scope).pipe(
        Effect.provideService(Metric.MetricRegistry, registry)
      )
      const unit = instrumentEffect(Effect.succeed(1), { name: "test.unit" })
      assert.strictEqual(yield* Effect.provide(unit, context), 1)
      assert.strictEqual(yield* Effect.provide(unit, context), 1)
      yield* Scope.close(scope, Exit.void)
      const events = yield* Context.get(context, Memory).events
      assert.deepStrictEqual(events.map(({ event_type, sequence }) => [event_type, sequence]), [[
        "execution_completed",
        4
      ]])
      assert.deepStrictEqual(failuresIn(registry), [{ count: 2, incremental: true }])
    }))

  it.effect("keeps the units of a closed publisher from running", () =>
    Effect.gen(function*() {
      const closed = Layer.effect(
        EventPublisher.EventPublisher,
        EventPublisher.make({ publish: () => {}, policy: "closed" })
      )
      let ran = 0
      const unit = instrumentEffect(Effect.sync(() => ++ran), { name: "test.unit" })
      const layer = Faults.inject(closed, { schedule: Faults.scripted(["fail"]) })
      yield* Effect.gen(function*() {
        const error = yield* Effect.flip(EventPublisher.failOnRefusal(unit))
        assert.instanceOf(error, EventPublisher.PublishError)
        assert.strictEqual(ran, 0)
        assert.strictEqual(yield* unit, 1)
      }).pipe(Effect.provide(layer))
    }))

  it.effect("hits the commit of a transactional publisher", () =>
    Effect.gen(function*() {
      /** What commits, of work that writes its own name. */
      const committing = Effect.fnUntraced(function*(fault: Faults.Fault | undefined) {
        const committed: Array<string> = []
        const run: EventPublisher.Transaction["run"] = (work, completed) =>
          Effect.tap(work, (value) =>
            Effect.sync(() => {
              const event = completed(value)
              committed.push("work", ...(event === undefined ? [] : [event.event_type]))
            }))
        const transactional = Layer.effect(
          EventPublisher.EventPublisher,
          EventPublisher.make({ publish: () => {}, policy: "transactional", transaction: { run } })
        )
        // The started event is the first.
        const layer = Faults.inject(transactional, { schedule: Faults.scripted([undefined, fault]) })
        const unit = instrumentEffect(Effect.succeed("done"), { name: "test.unit" })
        const exit = yield* Effect.exit(EventPublisher.failOnRefusal(unit).pipe(Effect.provide(layer)))
        return [Exit.isSuccess(exit) ? exit.value : Exit.hasFails(exit) ? "refused" : "defect", ...committed]
      })
      assert.deepStrictEqual(yield* committing(undefined), ["done", "work", "execution_completed"])
      assert.deepStrictEqual(yield* committing("fail"), ["refused"])
      assert.deepStrictEqual(yield* committing("die"), ["defect"])
      assert.deepStrictEqual(yield* committing("drop"), ["done", "work"])
      assert.deepStrictEqual(yield* committing("crash"), ["refused", "work", "execution_completed"])
      assert.deepStrictEqual(yield* committing("duplicate"), ["done", "work", "execution_completed"])
      const delayed = yield* Effect.forkChild(committing({ delay: "1 second" }), { startImmediately: true })
      yield* TestClock.adjust("999 millis")
      assert.isUndefined(delayed.pollUnsafe())
      yield* TestClock.adjust("1 millis")
      assert.deepStrictEqual(yield* Fiber.join(delayed), ["done", "work", "execution_completed"])
      const hanging = yield* Effect.forkChild(committing("hang"), { startImmediately: true })
      yield* TestClock.adjust("1 hour")
      assert.isUndefined(hanging.pollUnsafe())
      yield* Fiber.interrupt(hanging)
    }))

  it.effect("leaves a noop what it is", () =>
    Effect.gen(function*() {
      const publisher = yield* EventPublisher.EventPublisher
      assert.isTrue(publisher.isNoop)
    }).pipe(Effect.provide(Faults.inject(EventPublisher.layerNoop, { schedule: () => "die" }))))
})

describe("seeded", () => {
  const event = Events.started("x")
  const drawn = (schedule: Faults.Schedule, count = 10_000) =>
    Array.from({ length: count }, (_, index) => schedule(event, index))

  it("repeats itself for a seed, and differs for another", () => {
    const rates: Faults.Rates = [[0.3, "fail"], [0.2, "duplicate"]]
    assert.deepStrictEqual(drawn(Faults.seeded(7, rates), 100), drawn(Faults.seeded(7, rates), 100))
    assert.notDeepEqual(drawn(Faults.seeded(7, rates), 100), drawn(Faults.seeded(8, rates), 100))
  })

  it("keeps to its rates", () => {
    const faults = drawn(Faults.seeded(1, [[0.3, "fail"], [0.2, "duplicate"], [0.01, { delay: 5 }]]))
    const share = (fault: unknown) => faults.filter((one) => one === fault).length / faults.length
    assert.approximately(share("fail"), 0.3, 0.02)
    assert.approximately(share("duplicate"), 0.2, 0.02)
    assert.approximately(share(undefined), 0.49, 0.02)
    assert.deepStrictEqual(drawn(Faults.seeded(1, [[1, "drop"]]), 3), ["drop", "drop", "drop"])
    assert.deepStrictEqual(drawn(Faults.seeded(1, []), 3), [undefined, undefined, undefined])
  })

  it.effect("takes its seed from Random where none is given", () =>
    Effect.gen(function*() {
      const rates: Faults.Rates = [[0.5, "fail"]]
      const draw = (seed: string) =>
        Effect.map(Random.withSeed(Faults.random(rates), seed), (schedule) => drawn(schedule, 50))
      assert.deepStrictEqual(yield* draw("a"), yield* draw("a"))
      assert.notDeepEqual(yield* draw("a"), yield* draw("b"))
      const { arrived } = yield* publishing(["a", "b"], { schedule: Faults.random([[1, "drop"]]) })
      assert.deepStrictEqual(arrived, [])
    }))
})

describe("the conformance suite on a faulty transport", () => {
  const promises: Promises = {
    durable: false,
    ordered: "global",
    groups: false,
    replay: false,
    dedup: "window",
    transactional: false,
    newSubscriberSeesOld: false,
    maxPayloadBytes: Infinity
  }
  const found = (fault: Faults.Fault, promise: keyof Promises | "delivery", number: number) =>
    it.live(`finds ${JSON.stringify(fault)} by case ${number}, ${promise}`, () =>
      Effect.gen(function*() {
        const cases = conformanceCases({
          name: "faulty",
          layer: () =>
            Layer.provideMerge(EventBus.layerSubscriber(), EventPublisher.layerBus).pipe(
              Faults.inject({ schedule: (_, index) => index % 10 === 3 ? fault : undefined, timeout: "500 millis" })
            ),
          promises,
          wait: "1 second"
        })
        const run = cases.find((one) => one.number === number && one.promise === promise)?.run ?? Effect.void
        const error = yield* Effect.flip(Effect.provideService(run, References.MinimumLogLevel, "None"))
        assert.instanceOf(error, Nonconformance)
        assert.deepStrictEqual([error.number, error.promise], [number, promise])
      }))
  found("fail", "delivery", 1)
  found("die", "delivery", 1)
  found("hang", "delivery", 1)
  found("drop", "delivery", 1)
  found("crash", "delivery", 1)
  found("duplicate", "delivery", 1)
  found("reorder", "ordered", 4)
  found("duplicate", "dedup", 2)
})
