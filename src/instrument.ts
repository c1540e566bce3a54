/**
 * The combinator that gives an Effect its lifecycle events.
 *
 * `execution_started` comes first, then exactly one of `execution_completed` and `execution_failed`, whatever happens: success,
 * failure, defect, interruption. The result is untouched. Units are built on it; use it for what is not a unit.
 *
 * @since 0.1.0
 */
import type * as Effect from "effect/Effect"
import type * as Stream from "effect/Stream"
import type { EventPublisher } from "./EventPublisher.ts"
import { Run, type Runnable, runStream } from "./internal/run.ts"
import { chunkCount, runnable } from "./internal/runnable.ts"
import type { Top } from "./internal/types.ts"

/**
 * How an execution is named, and how its values are shown.
 *
 * @category models
 * @since 0.1.0
 */
export interface Options {
  /** `<domain>.<unit>`, such as `billing.charge`. A name without a dot is its own domain. */
  readonly name: string
  /** Default `command`. */
  readonly kind?: "command" | "query" | undefined
  /** Encodes the input in events, and says what in it is secret. Default: any value, as JSON. It checks nothing. */
  readonly input?: Top | undefined
  /** The same for the output. */
  readonly output?: Top | undefined
  /** The same for the failures. */
  readonly error?: Top | undefined
}

/** A function applied to any number of arguments, of which the event shows nothing where there are none, and else the list. */
const applied = <Args extends ReadonlyArray<unknown>, A, E, R>(
  unit: Runnable<unknown, unknown, never>,
  handler: (...args: Args) => Effect.Effect<A, E, R>,
  args: Args
): Effect.Effect<A, E, R | EventPublisher> =>
  new Run(unit, args.length === 0 ? undefined : args, () => handler(...args))

/**
 * Gives a function that returns an Effect its lifecycle events. The function keeps its parameters.
 *
 * **Gotchas**
 *
 * Arguments are held by reference until an event is serialised: who changes one changes an event that was not yet. A unit checks
 * its input, and holds a copy.
 *
 * **Example** (Instrumenting a function)
 *
 * ```ts
 * const charge = instrument((order: Order) => chargeCard(order), { name: "billing.charge" })
 * // (order: Order) => Effect<Receipt, CardDeclined, Cards | EventPublisher>
 * ```
 *
 * @category combinators
 * @since 0.1.0
 */
export const instrument: {
  (options: Options): <Args extends ReadonlyArray<unknown>, A, E, R>(
    handler: (...args: Args) => Effect.Effect<A, E, R>
  ) => (...args: Args) => Effect.Effect<A, E, R | EventPublisher>
  <Args extends ReadonlyArray<unknown>, A, E, R>(
    handler: (...args: Args) => Effect.Effect<A, E, R>,
    options: Options
  ): (...args: Args) => Effect.Effect<A, E, R | EventPublisher>
} = <Args extends ReadonlyArray<unknown>, A, E, R>(
  ...parameters: [options: Options] | [handler: (...args: Args) => Effect.Effect<A, E, R>, options: Options]
) => {
  const of = (handler: (...args: Args) => Effect.Effect<A, E, R>, options: Options) => {
    const unit = runnable<unknown, unknown, never>(options, undefined)
    // One parameter is the common case, and needs no list. It is passed on as it came.
    const unary = handler as unknown as (input: unknown) => Effect.Effect<A, E, R>
    return (...args: Args): Effect.Effect<A, E, R | EventPublisher> =>
      args.length === 1 ? new Run(unit, args[0], unary) : applied(unit, handler, args)
  }
  // The overloads differ in their results, which one implementation can only give as a union.
  return (parameters.length === 1
    ? (handler: (...args: Args) => Effect.Effect<A, E, R>) => of(handler, parameters[0])
    : of(parameters[0], parameters[1])) as never
}

/**
 * Gives an Effect its lifecycle events. `input` is what the started event shows.
 *
 * **Example** (Instrumenting one Effect)
 *
 * ```ts
 * const program = instrumentEffect(migrate, { name: "schema.migrate", input: { version: 4 } })
 * ```
 *
 * @category combinators
 * @since 0.1.0
 */
export const instrumentEffect: {
  (options: ValueOptions): <A, E, R>(effect: Effect.Effect<A, E, R>) => Effect.Effect<A, E, R | EventPublisher>
  <A, E, R>(effect: Effect.Effect<A, E, R>, options: ValueOptions): Effect.Effect<A, E, R | EventPublisher>
} = <A, E, R>(
  ...parameters: [options: ValueOptions] | [effect: Effect.Effect<A, E, R>, options: ValueOptions]
) => {
  const of = (effect: Effect.Effect<A, E, R>, options: ValueOptions): Effect.Effect<A, E, R | EventPublisher> =>
    new Run(runnable<unknown, unknown, never>(optionsOf(options), undefined), options.input, () => effect)
  // The overloads differ in their results, which one implementation can only give as a union.
  return (parameters.length === 1
    ? (effect: Effect.Effect<A, E, R>) => of(effect, parameters[0])
    : of(parameters[0], parameters[1])) as never
}

/**
 * Gives a Stream its lifecycle events: started when it is first pulled, one terminal event when it is drained, fails, or its
 * consumer stops.
 *
 * **Details**
 *
 * The completed event's output is `{ chunks }`, how many elements went through; both terminal events also say it in `chunks`. A
 * consumer that stops early ends the execution with `execution_failed`, failure kind `interrupt`. Each run of the stream is an
 * execution of its own. Elements are counted, not kept.
 *
 * @category combinators
 * @since 0.1.0
 */
export const instrumentStream: {
  (options: ValueOptions): <A, E, R>(stream: Stream.Stream<A, E, R>) => Stream.Stream<A, E, R | EventPublisher>
  <A, E, R>(stream: Stream.Stream<A, E, R>, options: ValueOptions): Stream.Stream<A, E, R | EventPublisher>
} = <A, E, R>(
  ...parameters: [options: ValueOptions] | [stream: Stream.Stream<A, E, R>, options: ValueOptions]
) => {
  const of = (stream: Stream.Stream<A, E, R>, options: ValueOptions): Stream.Stream<A, E, R | EventPublisher> =>
    runStream(
      runnable<unknown, unknown, never>(optionsOf(options), undefined),
      options.input,
      () => stream,
      chunkCount
    )
  // The overloads differ in their results, which one implementation can only give as a union.
  return (parameters.length === 1
    ? (stream: Stream.Stream<A, E, R>) => of(stream, parameters[0])
    : of(parameters[0], parameters[1])) as never
}

/**
 * How `instrumentEffect` and `instrumentStream` name an execution, and what its started event shows.
 *
 * @category models
 * @since 0.1.0
 */
export interface ValueOptions {
  /** `<domain>.<unit>`, such as `billing.charge`. A name without a dot is its own domain. */
  readonly name: string
  /** Default `command`. */
  readonly kind?: "command" | "query" | undefined
  /** What the started event shows; any value, as JSON. */
  readonly input?: unknown
}

const optionsOf = ({ kind, name }: ValueOptions): Options => ({ name, kind })
