import { assert, describe, it } from "@effect/vitest"
import { Cause, Deferred, Effect, Exit, Fiber, Schema } from "effect"
import * as DomainEvent from "../../src/DomainEvent.ts"
import * as EventPublisher from "../../src/EventPublisher.ts"
import { instrumentEffect } from "../../src/instrument.ts"
import * as Testing from "../../src/testing/index.ts"
import * as Unit from "../../src/Unit.ts"

const double = Unit.query("math.double", {
  description: "Twice a number",
  input: { n: Schema.Int },
  output: Schema.Int,
  errors: [],
  handler: ({ n }) => Effect.succeed(2 * n)
})

const Said = DomainEvent.define("math.said", { n: Schema.Int })

const named = <A, E, R>(name: string, effect: Effect.Effect<A, E, R>) => instrumentEffect(effect, { name })

/** Runs with a publisher that records. */
const recorded = <A, E, R>(
  f: (test: Testing.TestEvents["Service"]) => Effect.Effect<A, E, R>
) => Effect.provide(Testing.TestEvents.use(f), Testing.layerTest)

const names = (executions: ReadonlyArray<Testing.ObservedExecution>) => executions.map(({ unit_name }) => unit_name)

describe("layerTest", () => {
  it.effect("records lifecycle events, domain events, and the executions that they tell of", () =>
    recorded((test) =>
      Effect.gen(function*() {
        yield* named("math.outer", Effect.andThen(double({ n: 1 }), Said.publish({ n: 2 })))
        const events = yield* test.events
        assert.deepStrictEqual(events.map((event) => [event.unit_name, event.event_type, event.sequence]), [
          ["math.outer", "execution_started", 1],
          ["math.double", "execution_started", 2],
          ["math.double", "execution_completed", 3],
          ["math.outer", "execution_completed", 5]
        ])
        assert.deepStrictEqual((yield* test.domainEvents).map(({ payload, type }) => [type, payload]), [
          ["math.said", { n: 2 }]
        ])
        const [outer, inner] = yield* test.executions
        assert.deepStrictEqual([outer?.started, outer?.terminal], [events[0], events[3]])
        assert.deepStrictEqual<unknown>(outer?.children, [inner])
        yield* test.assertLifecycle
      })
    ))

  it.effect("waits for an execution to end, and for all below it", () =>
    recorded((test) =>
      Effect.gen(function*() {
        const gate = yield* Deferred.make<void>()
        const child = named("t.child", Deferred.await(gate))
        yield* named("t.parent", Effect.forkDetach(child, { startImmediately: true }))
        const ended = yield* Effect.forkChild(test.ended("t.parent"), { startImmediately: true })
        yield* Effect.yieldNow
        assert.isUndefined(ended.pollUnsafe())
        yield* Deferred.succeed(gate, undefined)
        const execution = yield* Fiber.join(ended)
        assert.deepStrictEqual(names(execution.children), ["t.child"])
        assert.strictEqual(execution.children[0]?.terminal?.event_type, "execution_completed")
      })
    ))

  it.effect("counts the executions of a unit from 0, and waits for one that is still to come", () =>
    recorded((test) =>
      Effect.gen(function*() {
        const third = yield* Effect.forkChild(test.ended("math.double", 2), { startImmediately: true })
        for (const n of [1, 2, 3]) {
          assert.isUndefined(third.pollUnsafe())
          yield* double({ n })
        }
        const execution = yield* Fiber.join(third)
        assert.deepStrictEqual(execution.started.input, { n: 3 })
        assert.deepStrictEqual((yield* test.ended("math.double")).started.input, { n: 1 })
      })
    ))

  it.effect("lets a test wait for one execution after the other", () =>
    recorded((test) =>
      Effect.gen(function*() {
        const both = yield* Effect.forkChild(
          Effect.all([test.ended("t.a"), test.ended("t.b"), test.ended("t.c")]),
          { startImmediately: true }
        )
        const other = yield* Effect.forkChild(test.ended("t.a"), { startImmediately: true })
        for (const name of ["t.a", "t.b", "t.c"]) {
          yield* named(name, Effect.void)
          yield* Effect.yieldNow
        }
        assert.deepStrictEqual(names(yield* Fiber.join(both)), ["t.a", "t.b", "t.c"])
        assert.strictEqual((yield* Fiber.join(other)).unit_name, "t.a")
      })
    ))

  it.effect("lets what waits give up", () =>
    recorded((test) =>
      Effect.gen(function*() {
        const waiting = yield* Effect.forkChild(test.ended("t.never"), { startImmediately: true })
        yield* Fiber.interrupt(waiting)
        yield* named("t.never", Effect.void)
        assert.isTrue(Exit.hasInterrupts(yield* Fiber.await(waiting)))
      })
    ))

  it.effect("settles when every execution that has started has ended", () =>
    recorded((test) =>
      Effect.gen(function*() {
        yield* test.settled
        const gates = [yield* Deferred.make<void>(), yield* Deferred.make<void>()]
        const running = yield* Effect.forEach(
          gates,
          (gate, index) => Effect.forkChild(named(`t.u${index}`, Deferred.await(gate)), { startImmediately: true })
        )
        const settled = yield* Effect.forkChild(test.settled, { startImmediately: true })
        yield* Deferred.succeed(gates[0]!, undefined)
        yield* Fiber.join(running[0]!)
        yield* Effect.yieldNow
        assert.isUndefined(settled.pollUnsafe())
        yield* Deferred.succeed(gates[1]!, undefined)
        yield* Fiber.join(settled)
        yield* test.assertLifecycle
      })
    ))

  it.effect("forgets the events so far, but not for the lifecycle's rules", () =>
    recorded((test) =>
      Effect.gen(function*() {
        yield* double({ n: 1 })
        yield* Said.publish({ n: 1 })
        yield* test.clear
        assert.deepStrictEqual([yield* test.events, yield* test.domainEvents, yield* test.executions], [[], [], []])
        yield* double({ n: 2 })
        assert.deepStrictEqual((yield* test.ended("math.double")).started.input, { n: 2 })
        yield* test.assertLifecycle
      })
    ))

  it.effect("dies where the lifecycle is broken, and says how", () =>
    recorded((test) =>
      Effect.gen(function*() {
        yield* double({ n: 1 })
        const publisher = yield* EventPublisher.EventPublisher
        const [, completed] = yield* test.events
        if (completed !== undefined) publisher.offer(completed)
        const exit = yield* Effect.exit(test.assertLifecycle)
        const defect = Exit.isFailure(exit) ? Cause.squash(exit.cause) : undefined
        assert.isTrue(defect instanceof Error)
        assert.strictEqual(
          String(defect),
          [
            "Error: The lifecycle is broken:",
            `math.double ${completed?.id} has number 2 where 3 is due`,
            `math.double ${completed?.id} ended twice`
          ].join("\n")
        )
      })
    ))
})
