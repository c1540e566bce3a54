/**
 * What tests of units need: a publisher that records, and effects that wait for executions to end, without real time.
 *
 * @since 0.1.0
 */
import * as Context from "effect/Context"
import * as Effect from "effect/Effect"
import * as Layer from "effect/Layer"
import type { DomainEvent } from "../DomainEvent.ts"
import { isDomainEvent } from "../DomainEvent.ts"
import * as EventPublisher from "../EventPublisher.ts"
import type { ExecutionEvent } from "../ExecutionEvent.ts"
import { isExecutionEvent } from "../ExecutionEvent.ts"
import { executionsOf, type ObservedExecution, violations } from "./lifecycle.ts"

export * as Faults from "./Faults.ts"
export { executionsOf, type ObservedExecution, violations } from "./lifecycle.ts"
export { Nonconformance } from "./Nonconformance.ts"
export {
  type ConformanceCase,
  conformanceCases,
  type ConformanceOptions,
  type Figures,
  type Promises,
  publisherSuite,
  type Vitest
} from "./publisherSuite.ts"

/**
 * The events that `layerTest` recorded.
 *
 * @category services
 * @since 0.1.0
 */
export class TestEvents extends Context.Service<TestEvents, {
  /** The lifecycle events so far. */
  readonly events: Effect.Effect<ReadonlyArray<ExecutionEvent>>
  /** The domain events so far. */
  readonly domainEvents: Effect.Effect<ReadonlyArray<DomainEvent>>
  /** The executions so far, in the order of their starts. */
  readonly executions: Effect.Effect<ReadonlyArray<ObservedExecution>>
  /**
   * Waits for an execution of a unit to end, and for all below it, and gives it. `index` counts the executions of that unit from 0.
   * It waits as long as it takes: put a timeout around it where the execution may never come.
   */
  readonly ended: (unitName: string, index?: number) => Effect.Effect<ObservedExecution>
  /** Waits until every execution that has started has ended. */
  readonly settled: Effect.Effect<void>
  /** Dies with an `Error` that says what is wrong where all events since the beginning break a rule; see `violations`. */
  readonly assertLifecycle: Effect.Effect<void>
  /** Lets the others begin anew: they forget the events so far. `assertLifecycle` does not. */
  readonly clear: Effect.Effect<void>
}>()("effect-units/testing/TestEvents") {}

const hasEnded = (execution: ObservedExecution): boolean =>
  execution.terminal !== undefined && execution.children.every(hasEnded)

const make = Effect.gen(function*() {
  const all: Array<EventPublisher.Event> = []
  let cleared = 0
  const watchers = new Set<() => void>()
  let looking = false
  const publisher = yield* EventPublisher.make({
    publish: (event) => {
      all.push(event)
      if (watchers.size === 0 || looking) return
      looking = true
      // What waits is asked again after the unit has gone on, so that a test sees what its caller sees.
      queueMicrotask(() => {
        looking = false
        for (const look of Array.from(watchers)) look()
      })
    }
  })
  const since = () => all.slice(cleared)
  const lifecycle = () => since().filter(isExecutionEvent)
  const until = <A>(find: () => A | undefined): Effect.Effect<A> =>
    Effect.suspend(() => {
      const found = find()
      if (found !== undefined) return Effect.succeed(found)
      return Effect.callback<A>((resume) => {
        const look = (): void => {
          const found = find()
          if (found === undefined) return
          watchers.delete(look)
          resume(Effect.succeed(found))
        }
        watchers.add(look)
        return Effect.sync(() => void watchers.delete(look))
      })
    })
  const events = TestEvents.of({
    events: Effect.sync(lifecycle),
    domainEvents: Effect.sync(() => since().filter(isDomainEvent)),
    executions: Effect.sync(() => executionsOf(lifecycle())),
    ended: (unitName, index = 0) =>
      until(() => {
        const execution = executionsOf(lifecycle()).filter((one) => one.unit_name === unitName)[index]
        return execution !== undefined && hasEnded(execution) ? execution : undefined
      }),
    settled: Effect.asVoid(
      until(() => executionsOf(lifecycle()).every((one) => one.terminal !== undefined) || undefined)
    ),
    assertLifecycle: Effect.suspend(() => {
      const broken = violations(all, { allowRunning: true })
      return broken.length === 0 ? Effect.void : Effect.die(new Error(`The lifecycle is broken:\n${broken.join("\n")}`))
    }),
    clear: Effect.sync(() => {
      cleared = all.length
    })
  })
  return Context.make(EventPublisher.EventPublisher, publisher).pipe(Context.add(TestEvents, events))
})

/**
 * Layer of a publisher that records every event, and of the service that reads and waits for them.
 *
 * **Example** (Testing a unit)
 *
 * ```ts
 * it.effect("charges the card", () =>
 *   Effect.gen(function*() {
 *     const test = yield* Testing.TestEvents
 *     yield* charge({ amount: 3 })
 *     const execution = yield* test.ended("billing.charge")
 *     assert.strictEqual(execution.terminal?.event_type, "execution_completed")
 *   }).pipe(Effect.provide(Testing.layerTest)))
 * ```
 *
 * @category layers
 * @since 0.1.0
 */
export const layerTest: Layer.Layer<EventPublisher.EventPublisher | TestEvents> = Layer.effectContext(make)
