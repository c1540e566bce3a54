/**
 * One run of a unit, from its started event to its terminal one. The hot path of the library.
 *
 * An execution is two steps of the fiber's loop around the work itself. The second, `Begun`, is evaluated below a finalizer: an
 * interruption that comes between the two finds either nothing begun, and publishes nothing, or the finalizer in place, and
 * publishes the end. Everything that can wait for serialisation, ids included, is left to the events.
 *
 * @since 0.1.0
 */
import * as Cause from "effect/Cause"
import * as Channel from "effect/Channel"
import * as Clock from "effect/Clock"
import * as Context from "effect/Context"
import * as Effect from "effect/Effect"
import * as Effectable from "effect/Effectable"
import * as Exit from "effect/Exit"
import * as Fiber from "effect/Fiber"
import * as Option from "effect/Option"
import * as Pull from "effect/Pull"
import * as Scope from "effect/Scope"
import * as Stream from "effect/Stream"
import { EventPublisher, handOver, type Publisher } from "../EventPublisher.ts"
import * as Execution from "../Execution.ts"
import type { ExecutionEvent } from "../ExecutionEvent.ts"
import { asExecutionEvent, LiveCompleted, LiveExecution, LiveFailed, LiveStarted, type UnitInfo } from "./liveEvent.ts"
import * as Metrics from "./metrics.ts"
import { isSilent, publishing } from "./publishing.ts"
import * as Snapshot from "./snapshot.ts"

/**
 * What running a unit takes. `prepare` checks the input and gives the value that the work gets and the event shows; without it they
 * get the input, which is a `Checked` then.
 *
 * @internal
 */
export interface Runnable<in In, out Checked, out Invalid> extends UnitInfo {
  readonly prepare: ((input: In) => Effect.Effect<Checked, Invalid>) | undefined
  /** Whether a checked input can share parts with what was given, so that its caller could change it still. */
  readonly sharesInput: boolean
  /** Whether the input can hold secrets that the other events must not repeat. */
  readonly hasSecrets: boolean
  /** The record of this unit in the registry that was seen last, so that the common case looks nothing up. */
  tally: { readonly of: Metrics.Tallies; readonly tally: Metrics.Tally } | undefined
}

type AnyFiber = Fiber.Fiber<unknown, unknown>

interface Evaluated {
  readonly evaluate: (fiber: AnyFiber) => Effect.Effect<unknown, unknown, unknown>
}

/** Base of an Effect that is evaluated by a method. */
const Primitive = (() => {
  const Base = function() {}
  Base.prototype = Effectable.Prototype<Effect.Effect<unknown, unknown, unknown> & Evaluated>({
    label: "Unit",
    evaluate(fiber) {
      return this.evaluate(fiber)
    }
  })
  // A function with this prototype constructs Effects; TypeScript has no way to say so. `effect/Effectable` does the same.
  return Base as unknown as new<A, E, R>() => Effect.Effect<A, E, R>
})()

// `Context.get` asks each time whether a reference that is not there has a default, and costs twice as much as these.
const defaultSurroundings = Context.get(Context.empty(), Execution.Surroundings)
const defaultClock = Context.get(Context.empty(), Clock.Clock)

const surroundingsOf = (fiber: AnyFiber): Execution.Surroundings =>
  Context.getOrUndefined(fiber.context, Execution.Surroundings) ?? defaultSurroundings

const clockOf = (fiber: AnyFiber): Clock.Clock => Context.getOrUndefined(fiber.context, Clock.Clock) ?? defaultClock

/**
 * What checking an input gives: an Exit where the check was synchronous, as checks of plain Schemas are; `undefined` where nothing
 * is checked.
 */
type Prepared<Checked, Invalid> = Effect.Effect<Checked, Invalid> | undefined

const prepare = <In, Checked, Invalid>(
  runnable: Runnable<In, Checked, Invalid>,
  input: In
): Prepared<Checked, Invalid> => {
  if (runnable.prepare === undefined) return undefined
  try {
    return runnable.prepare(input)
  } catch (defect) {
    return Exit.die(defect)
  }
}

// By its tag, as `Exit.isExit` costs as much as a clock read, and what a check gives is either an Exit or has no tag.
const isSuccess = <A, E>(checked: Effect.Effect<A, E>): checked is Exit.Success<A, E> =>
  "_tag" in checked && checked._tag === "Success"

/** Goes on with a checked input, at once where it can. */
const proceed = <Checked, Invalid, A, E, R>(
  checked: Prepared<Checked, Invalid>,
  input: unknown,
  handler: (input: Checked) => Effect.Effect<A, E, R>
): Effect.Effect<A, E | Invalid, R> => {
  // Where nothing is checked, the input is what the handler takes.
  if (checked === undefined) return handler(input as Checked)
  return isSuccess(checked) ? handler(checked.value) : Effect.flatMap(checked, handler)
}

/** What a started event shows: the checked input; or what was given, where the check failed or is still to come. */
const shown = (
  runnable: Runnable<never, unknown, unknown>,
  checked: Prepared<unknown, unknown>,
  input: unknown
): unknown => {
  if (checked === undefined) return input
  if (!isSuccess(checked)) return Snapshot.of(input)
  return runnable.sharesInput ? Snapshot.of(checked.value) : checked.value
}

const begin = (
  fiber: AnyFiber,
  unit: UnitInfo & { readonly hasSecrets: boolean },
  publisher: Publisher,
  surroundings: Execution.Surroundings,
  value: unknown
): LiveExecution =>
  new LiveExecution(
    unit,
    clockOf(fiber),
    surroundings,
    fiber.cache.span,
    publisher.limits,
    unit.hasSecrets ? value : undefined
  )

/** The terminal event of an exit, counted. */
const finish = (
  execution: LiveExecution,
  runnable: Runnable<never, unknown, unknown>,
  publisher: Publisher,
  exit: Exit.Exit<unknown, unknown>,
  chunks: number | undefined
): ExecutionEvent => {
  const durationNs = execution.elapsed()
  count(runnable, publisher, exit, durationNs)
  return asExecutionEvent(
    Exit.isSuccess(exit)
      ? new LiveCompleted(execution, durationNs, chunks, exit.value)
      : new LiveFailed(execution, durationNs, chunks, exit.cause)
  )
}

const outcomeOf = (exit: Exit.Exit<unknown, unknown>): Metrics.Outcome => {
  if (Exit.isSuccess(exit)) return "completed"
  if (Cause.hasFails(exit.cause)) return "failed"
  return Cause.hasDies(exit.cause) ? "died" : "interrupted"
}

const count = (
  runnable: Runnable<never, unknown, unknown>,
  publisher: Publisher,
  exit: Exit.Exit<unknown, unknown>,
  durationNs: number
): void => {
  let seen = runnable.tally
  if (seen === undefined || seen.of !== publisher.tallies) {
    seen = { of: publisher.tallies, tally: Metrics.register(publisher.tallies, runnable, publisher.context) }
    runnable.tally = seen
  }
  seen.tally.add(outcomeOf(exit), durationNs)
}

/**
 * An execution that waits to be run. Running it again is another execution.
 *
 * @internal
 */
export class Run<In, Checked, Invalid, A, E, R> extends Primitive<A, E | Invalid, R | EventPublisher>
  implements Evaluated
{
  declare readonly runnable: Runnable<In, Checked, Invalid>
  declare readonly input: In
  declare readonly handler: (input: Checked) => Effect.Effect<A, E, R>

  constructor(
    runnable: Runnable<In, Checked, Invalid>,
    input: In,
    handler: (input: Checked) => Effect.Effect<A, E, R>
  ) {
    super()
    this.runnable = runnable
    this.input = input
    this.handler = handler
  }

  evaluate(fiber: AnyFiber): Effect.Effect<A, E | Invalid, R | EventPublisher> {
    // The type of a Run asks for the service; a fiber shows its context without its type.
    const publisher = Context.getUnsafe(fiber.context, EventPublisher)
    const checked = prepare(this.runnable, this.input)
    if (publisher.isNoop) return proceed(checked, this.input, this.handler)
    const surroundings = surroundingsOf(fiber)
    if (isSilent(publisher, surroundings)) {
      // What goes on from here may outlast the call of a publish function that started it, and stays silent then, too.
      return Effect.provideService(proceed(checked, this.input, this.handler), Execution.Surroundings, publishing)
    }
    if (publisher.waits) {
      return strict(this.runnable, publisher, surroundings, this.input, checked, this.handler)
    }
    return ending(new Begun(this, fiber, publisher, surroundings, checked))
  }
}

// A function of its own, as what a closure holds is allocated on entry of the function around it, whether it is made or not.
const ending = <In, Checked, Invalid, A, E, R>(
  begun: Begun<In, Checked, Invalid, A, E, R>
): Effect.Effect<A, E | Invalid, R> => Effect.onExitPrimitive<A, E | Invalid, R>(begun, (exit) => begun.end(exit))

class Begun<In, Checked, Invalid, A, E, R> extends Primitive<A, E | Invalid, R> implements Evaluated {
  declare private readonly run: Run<In, Checked, Invalid, A, E, R>
  declare private readonly fiber: AnyFiber
  declare private readonly outer: Context.Context<never>
  declare private readonly publisher: Publisher
  declare private readonly surroundings: Execution.Surroundings
  declare private readonly checked: Prepared<Checked, Invalid>
  declare private execution: LiveExecution | undefined

  constructor(
    run: Run<In, Checked, Invalid, A, E, R>,
    fiber: AnyFiber,
    publisher: Publisher,
    surroundings: Execution.Surroundings,
    checked: Prepared<Checked, Invalid>
  ) {
    super()
    this.run = run
    this.fiber = fiber
    this.outer = fiber.context
    this.publisher = publisher
    this.surroundings = surroundings
    this.checked = checked
    this.execution = undefined
  }

  evaluate(fiber: AnyFiber): Effect.Effect<A, E | Invalid, R> {
    const { checked, outer, publisher, run } = this
    const value = shown(run.runnable, checked, run.input)
    const execution = begin(fiber, run.runnable, publisher, this.surroundings, value)
    this.execution = execution
    publisher.offer(asExecutionEvent(new LiveStarted(execution, value)))
    fiber.setContext(Context.addUnsafe(outer, Execution.Surroundings.key, execution))
    return proceed(checked, run.input, run.handler)
  }

  end(exit: Exit.Exit<A, E | Invalid>): undefined {
    // Interrupted before it was evaluated: nothing has begun, and nothing ends.
    if (this.execution === undefined) return
    this.fiber.setContext(this.outer)
    this.publisher.offer(finish(this.execution, this.run.runnable, this.publisher, exit, undefined))
  }
}

/** Where handing over takes time: under the policies `closed` and `transactional`, so that nothing runs unseen. */
const strict = <In, Checked, Invalid, A, E, R>(
  runnable: Runnable<In, Checked, Invalid>,
  publisher: Publisher,
  surroundings: Execution.Surroundings,
  input: In,
  checked: Prepared<Checked, Invalid>,
  handler: (input: Checked) => Effect.Effect<A, E, R>
): Effect.Effect<A, E | Invalid, R> =>
  Effect.uninterruptibleMask((restore) =>
    Effect.withFiber((fiber: AnyFiber) => {
      const value = shown(runnable, checked, input)
      const execution = begin(fiber, runnable, publisher, surroundings, value)
      const inside = Effect.suspend(() => proceed(checked, input, handler)).pipe(
        Effect.provideService(Execution.Surroundings, execution)
      )
      const end = (exit: Exit.Exit<unknown, unknown>): Effect.Effect<void> =>
        handOver(publisher, finish(execution, runnable, publisher, exit, undefined))
      const started = asExecutionEvent(new LiveStarted(execution, value))
      return Effect.flatMap(introduce(publisher, started, restore, end), () => {
        const transaction = publisher.transaction
        if (transaction === undefined) {
          return Effect.flatMap(Effect.exit(restore(inside)), (exit) => Effect.andThen(end(exit), exit))
        }
        // Only the work can be interrupted: once the transaction commits, its completed event is the end.
        const stored = transaction.run(
          restore(inside),
          (output) => asExecutionEvent(new LiveCompleted(execution, execution.elapsed(), undefined, output))
        )
        return Effect.flatMap(Effect.exit(stored), (exit) => {
          if (Exit.isFailure(exit)) return Effect.andThen(end(exit), exit)
          count(runnable, publisher, exit, execution.elapsed())
          return exit
        })
      })
    })
  )

/**
 * Hands over the start of an execution, where that takes time. A refusal is a defect: what may not start does not run, and has no
 * end either. Who gives up meanwhile still waits for the answer, as long as an end may wait: a start that has arrived needs its
 * end, and so does one of which nobody knows.
 */
const introduce = (
  publisher: Publisher,
  started: ExecutionEvent,
  restore: <A, E, R>(effect: Effect.Effect<A, E, R>) => Effect.Effect<A, E, R>,
  end: (exit: Exit.Exit<never>) => Effect.Effect<void>
): Effect.Effect<void> =>
  Effect.flatMap(
    Effect.forkChild(publisher.publish(started), { startImmediately: true }),
    (answer) =>
      Effect.flatMap(Effect.exit(restore(Fiber.join(answer))), (handed) => {
        if (Exit.isSuccess(handed)) return Effect.void
        const refusal = Cause.findErrorOption(handed.cause)
        // An open publisher loses the event, and the unit runs.
        if (Option.isSome(refusal)) return publisher.policy === "open" ? Effect.void : Effect.die(refusal.value)
        const exit = Exit.failCause(withoutFailures(handed.cause))
        return Effect.flatMap(Effect.timeoutOption(Fiber.await(answer), publisher.terminalTimeout), (late) => {
          if (Option.isSome(late) && Exit.isFailure(late.value)) return exit
          answer.interruptUnsafe()
          return Effect.andThen(end(exit), exit)
        })
      })
  )

const withoutFailures = (cause: Cause.Cause<unknown>): Cause.Cause<never> =>
  Cause.fromReasons(cause.reasons.filter((reason) => !Cause.isFailReason(reason)))

/**
 * The executions of a stream: one each time that it is run, from its first pull until it is drained, fails, or its consumer stops.
 *
 * @internal
 */
export const runStream = <In, Checked, Invalid, A, E, R, S>(
  runnable: Runnable<In, Checked, Invalid>,
  input: In,
  handler: (input: Checked) => Stream.Stream<A, E, R>,
  aggregate: { readonly initial: () => S; readonly step: (state: S, chunk: A) => S }
): Stream.Stream<A, E | Invalid, R | EventPublisher> =>
  Stream.fromChannel(Channel.fromTransformBracket((_upstream, _scope, scope) =>
    Effect.withFiber((fiber: AnyFiber) => {
      // The type of the stream asks for the service; a fiber shows its context without its type.
      const publisher = Context.getUnsafe(fiber.context, EventPublisher)
      const surroundings = surroundingsOf(fiber)
      const checked = prepare(runnable, input)
      // Where nothing is checked, the input is what the handler takes.
      const ready = checked ?? Effect.succeed(input as unknown as Checked)
      const stream = Stream.unwrap(Effect.suspend(() => Effect.map(ready, handler)))
      if (isSilent(publisher, surroundings)) return Channel.toPullScoped(Stream.toChannel(stream), scope)

      const value = shown(runnable, checked, input)
      const execution = begin(fiber, runnable, publisher, surroundings, value)
      const within = Effect.provideService(Execution.Surroundings, execution)
      let chunks = 0
      let state = aggregate.initial()
      let failed: Cause.Cause<unknown> | undefined
      let drained = false

      const end = Effect.suspend(() => {
        const exit = failed !== undefined
          ? Exit.failCause(failed)
          : drained
          ? Exit.succeed(state)
          // Stopped by its consumer.
          : Exit.failCause(Cause.interrupt())
        const event = finish(execution, runnable, publisher, exit, chunks)
        return handOver(publisher, event)
      })
      const observe = (pull: Pull.Pull<readonly [A, ...Array<A>], E | Invalid, void, R>) =>
        Effect.onExitPrimitive(within(pull), (exit) => {
          if (Exit.isSuccess(exit)) {
            chunks += exit.value.length
            try {
              for (const chunk of exit.value) state = aggregate.step(state, chunk)
            } catch (defect) {
              failed = Cause.die(defect)
              throw defect
            }
          } else if (Pull.isDoneCause(exit.cause)) {
            drained = true
          } else {
            failed = exit.cause
          }
          return undefined
        })

      const started = asExecutionEvent(new LiveStarted(execution, value))
      return Effect.uninterruptibleMask((restore) =>
        Effect.suspend(() => {
          if (publisher.waits) return introduce(publisher, started, restore, () => end)
          publisher.offer(started)
          return Effect.void
        }).pipe(
          // Registered before the scope of the handler is forked, so it runs after the handler's own finalizers.
          Effect.andThen(Scope.addFinalizer(scope, end)),
          Effect.andThen(Effect.suspend(() => Channel.toPullScoped(Stream.toChannel(stream), Scope.forkUnsafe(scope)))),
          within,
          Effect.map(observe)
        )
      )
    })
  ))
