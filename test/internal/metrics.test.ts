import { assert, describe, it } from "@effect/vitest"
import { Context, Effect, Fiber, Metric, Schema } from "effect"
import { TestClock } from "effect/testing"
import * as EventPublisher from "../../src/EventPublisher.ts"
import { instrument } from "../../src/instrument.ts"
import * as Metrics from "../../src/internal/metrics.ts"
import * as Unit from "../../src/Unit.ts"

class Broken extends Schema.TaggedError<Broken>("test/Broken")("Broken", {}) {}

const Job = { input: { ms: Schema.Int, end: Schema.Literals(["ok", "fail", "die"]) }, output: {}, errors: [Broken] }

const work = Unit.command("work.do", {
  ...Job,
  description: "Takes its time and ends as it is told",
  handler: ({ end, ms }) =>
    Effect.sleep(ms).pipe(
      Effect.andThen(
        end === "ok" ? Effect.succeed({}) : end === "fail" ? Effect.fail(new Broken()) : Effect.die("defect")
      )
    )
})

/** The series of a registry: every counter of executions that is not zero, and every histogram of durations. */
const series = (registry: Metric.MetricRegistry) => {
  const all = Metric.snapshotUnsafe(Context.make(Metric.MetricRegistry, registry))
  return {
    counts: all.flatMap(({ attributes, id, state }) =>
      id === "effect_units_executions" && "count" in state && Number(state.count) > 0
        ? [[attributes?.["unit"], attributes?.["domain"], attributes?.["kind"], attributes?.["outcome"], state.count]]
        : []
    ),
    durations: all.flatMap(({ attributes, id, state }) =>
      id === "effect_units_execution_duration" ? [[attributes?.["unit"], attributes?.["time_unit"], state]] : []
    )
  }
}

const withRegistry = <A, E>(
  registry: Metric.MetricRegistry,
  self: Effect.Effect<A, E, EventPublisher.EventPublisher>
) => self.pipe(Effect.provide(EventPublisher.layerMemory), Effect.provideService(Metric.MetricRegistry, registry))

const run = Effect.fnUntraced(function*<A, E>(self: Effect.Effect<A, E, EventPublisher.EventPublisher>, ms: number) {
  const fiber = yield* Effect.forkChild(Effect.exit(self))
  yield* TestClock.adjust(ms)
  return yield* Fiber.join(fiber)
})

/** Effect's own histogram. */
const reference = Metric.histogram("reference", {
  boundaries: [
    0.1,
    0.25,
    0.5,
    1,
    2.5,
    5,
    10,
    25,
    50,
    100,
    250,
    500,
    1000,
    2500,
    5000,
    10_000,
    30_000,
    60_000,
    300_000
  ]
})

describe("metrics", () => {
  it.effect("count executions by unit and outcome", () =>
    Effect.gen(function*() {
      const registry: Metric.MetricRegistry = new Map()
      yield* withRegistry(
        registry,
        Effect.gen(function*() {
          for (const end of ["ok", "ok", "ok", "fail", "fail", "die"] as const) yield* run(work({ ms: 0, end }), 0)
          yield* run(Effect.timeoutOption(work({ ms: 10, end: "ok" }), 1), 1)
          // Bad input ends in a typed failure like any other.
          yield* Effect.exit(work({ ms: 0.5, end: "ok" }))
        })
      )
      assert.deepStrictEqual(series(registry).counts, [
        ["work.do", "work", "command", "completed", 3],
        ["work.do", "work", "command", "failed", 3],
        ["work.do", "work", "command", "died", 1],
        ["work.do", "work", "command", "interrupted", 1]
      ])
    }))

  it.effect("hold durations as Effect's own histogram does", () =>
    Effect.gen(function*() {
      const registry: Metric.MetricRegistry = new Map()
      const millis = [0, 0, 1, 2, 3, 100, 101, 5000, 300_000, 300_001]
      yield* withRegistry(
        registry,
        Effect.forEach(millis, (ms) => run(work({ ms, end: "ok" }), ms), { discard: true })
      )
      const [found] = series(registry).durations
      const expected = yield* Effect.forEach(millis, (ms) => Metric.update(reference, ms)).pipe(
        Effect.andThen(Metric.value(reference)),
        Effect.provideService(Metric.MetricRegistry, new Map())
      )
      assert.deepStrictEqual(found, ["work.do", "milliseconds", expected])
    }))

  it.effect("are those of the registry that the publisher was made in", () =>
    Effect.gen(function*() {
      const first: Metric.MetricRegistry = new Map()
      const second: Metric.MetricRegistry = new Map()
      const once = run(work({ ms: 0, end: "ok" }), 0)
      yield* withRegistry(first, once)
      yield* withRegistry(second, once)
      // Back to the first: the numbers go on, they do not begin anew.
      yield* withRegistry(first, once)
      const outcome = (count: number) => [["work.do", "work", "command", "completed", count]]
      assert.deepStrictEqual(series(first).counts, outcome(2))
      assert.deepStrictEqual(series(second).counts, outcome(1))
    }))

  it.effect("take functions by name, and both ways into a unit as one", () =>
    Effect.gen(function*() {
      const registry: Metric.MetricRegistry = new Map()
      const named = () => instrument(() => Effect.void, { name: "plain", kind: "query" })
      yield* withRegistry(
        registry,
        Effect.gen(function*() {
          yield* named()()
          yield* named()()
          yield* work({ ms: 0, end: "ok" })
          yield* work.execute({ ms: 0, end: "ok" })
        })
      )
      assert.deepStrictEqual(series(registry).counts, [
        ["plain", "plain", "query", "completed", 2],
        ["work.do", "work", "command", "completed", 2]
      ])
    }))

  it.effect("count nothing under the noop publisher", () =>
    Effect.gen(function*() {
      const registry: Metric.MetricRegistry = new Map()
      yield* work({ ms: 0, end: "ok" }).pipe(
        Effect.provide(EventPublisher.layerNoop),
        Effect.provideService(Metric.MetricRegistry, registry)
      )
      assert.deepStrictEqual(series(registry), { counts: [], durations: [] })
    }))

  it.effect("start as an empty histogram", () =>
    Effect.gen(function*() {
      const empty = yield* Effect.provideService(Metric.value(reference), Metric.MetricRegistry, new Map())
      assert.deepStrictEqual(new Metrics.Tally().durations(), empty)
    }))
})
