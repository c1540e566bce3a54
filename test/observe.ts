/** Runs programs under a publisher that records, with repeatable ids, and gives what the caller and what a consumer sees. */
import { Effect, type Exit, type Scope } from "effect"
import * as EventPublisher from "../src/EventPublisher.ts"
import * as Execution from "../src/Execution.ts"
import * as ExecutionEvent from "../src/ExecutionEvent.ts"

export interface Observed<A, E> {
  readonly exit: Exit.Exit<A, E>
  /** The wire objects, made after the program had ended. */
  readonly events: ReadonlyArray<ExecutionEvent.ExecutionEvent>
}

/** Ids `id-1`, `id-2` ... in the order in which executions start. */
export const numbered = <A, E, R>(self: Effect.Effect<A, E, R>): Effect.Effect<A, E, R> =>
  Effect.suspend(() => {
    let count = 0
    return Execution.withIdGenerator(self, () => `id-${++count}`)
  })

/** Runs a program under the source `test`. `onEvent` is told of each event as it is published. */
export const observe = Effect.fnUntraced(function*<A, E, R>(
  self: Effect.Effect<A, E, R>,
  options?: {
    /** Default `open`. The others take a turn of the scheduler to publish. */
    readonly policy?: EventPublisher.Policy | undefined
    readonly onEvent?: ((event: ExecutionEvent.ExecutionEvent) => void) | undefined
  }
): Effect.fn.Return<Observed<A, E>, never, Exclude<R, EventPublisher.EventPublisher> | Scope.Scope> {
  const events: Array<ExecutionEvent.ExecutionEvent> = []
  const record = (event: EventPublisher.Event): void => {
    if (!ExecutionEvent.isExecutionEvent(event)) return
    events.push(event)
    options?.onEvent?.(event)
  }
  const recordSlowly = (event: EventPublisher.Event) =>
    Effect.andThen(Effect.yieldNow, Effect.sync(() => record(event)))
  const publisher: EventPublisher.Publisher = yield* EventPublisher.make({
    source: "test",
    policy: options?.policy,
    publish: options?.policy === undefined || options.policy === "open" ? record : recordSlowly,
    transaction: {
      run: (work, completed) =>
        Effect.tap(work, (output) => {
          const event = completed(output)
          return event === undefined ? Effect.void : Effect.orDie(publisher.publish(event))
        })
    }
  })
  const exit = yield* Effect.exit(numbered(self)).pipe(
    Effect.provideService(EventPublisher.EventPublisher, publisher)
  )
  return { exit, events: events.map(ExecutionEvent.toJson) }
})
