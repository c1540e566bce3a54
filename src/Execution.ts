/**
 * The execution that the current fiber is inside of: its ids, its unit, and the attributes set around it.
 *
 * @since 0.1.0
 */
import * as Context from "effect/Context"
import * as Effect from "effect/Effect"
import { dual } from "effect/Function"
import { publishing } from "./internal/publishing.ts"

/**
 * What `annotate` adds to the events of the executions it surrounds: `request_id`, `user_id`, a tenant.
 *
 * @category models
 * @since 0.1.0
 */
export interface Attributes {
  readonly [name: string]: string | number | boolean
}

/**
 * One run of a unit.
 *
 * **Details**
 *
 * `correlation_id` is the UUID that both events of the run carry. `parent_id` is the enclosing execution's, absent at the
 * root; `root_id` is the outermost one's, and equals `correlation_id` at the root. `trace_id` is the W3C trace that the tree belongs to: that
 * of the span around its root, absent where there was none.
 *
 * @category models
 * @since 0.1.0
 */
export interface Execution {
  readonly correlation_id: string
  readonly parent_id: string | undefined
  readonly root_id: string
  readonly trace_id?: string | undefined
  readonly unit_name: string
  readonly domain: string
  readonly kind: "command" | "query"
  readonly attributes: Attributes | undefined
}

/**
 * What surrounds the running code: the execution it is inside of, and how executions that start here are made.
 *
 * **Details**
 *
 * One reference for all of it, as every execution reads it when it starts. Forked fibers inherit it, so an execution started in
 * a child fiber or a daemon still names its parent. Provide `execution` to go on under a parent from elsewhere, such as another
 * process.
 *
 * @category models
 * @since 0.1.0
 */
export interface Surroundings {
  /** The execution around the running code, `undefined` outside of any. */
  readonly execution: Execution | undefined
  /** The attributes that executions started here will carry. */
  readonly attributes: Attributes | undefined
  /**
   * Makes the correlation id of an execution from its start, in Unix milliseconds. `undefined` stands for UUID version 7. A
   * function is called once per execution, in the order in which they start.
   */
  readonly generateId: ((startMillis: number) => string) | undefined
}

/**
 * The surroundings of the running code.
 *
 * @category references
 * @since 0.1.0
 */
export const Surroundings: Context.Reference<Surroundings> = Context.Reference<Surroundings>(
  "effect-units/Execution/Surroundings",
  { defaultValue: () => ({ execution: undefined, attributes: undefined, generateId: undefined }) }
)

/**
 * The execution that surrounds the running code, `undefined` outside of any.
 *
 * @category accessors
 * @since 0.1.0
 */
export const current: Effect.Effect<Execution | undefined> = Effect.map(
  Surroundings,
  (surroundings) => surroundings.execution
)

const surround = <A, E, R>(
  self: Effect.Effect<A, E, R>,
  change: (surroundings: Surroundings) => Partial<Surroundings>
): Effect.Effect<A, E, R> =>
  Effect.updateContext(self, (context: Context.Context<R>) => {
    const surroundings = Context.get(context, Surroundings)
    if (surroundings === publishing) return context
    const { attributes, execution, generateId } = surroundings
    const before = { attributes, execution, generateId }
    return Context.add(context, Surroundings, { ...before, ...change(before) })
  })

/**
 * Adds attributes to every event of the executions that start inside of an effect.
 *
 * **Details**
 *
 * Nested calls merge; the inner value of a name wins. An execution that already runs keeps the attributes it started with.
 *
 * **Example** (Naming the request)
 *
 * ```ts
 * Model.list({}).pipe(Execution.annotate({ request_id: "r-17", user_id: "ada" }))
 * ```
 *
 * @category combinators
 * @since 0.1.0
 */
export const annotate: {
  (attributes: Attributes): <A, E, R>(self: Effect.Effect<A, E, R>) => Effect.Effect<A, E, R>
  <A, E, R>(self: Effect.Effect<A, E, R>, attributes: Attributes): Effect.Effect<A, E, R>
} = dual(
  2,
  <A, E, R>(self: Effect.Effect<A, E, R>, attributes: Attributes): Effect.Effect<A, E, R> =>
    surround(self, (before) => ({ attributes: { ...before.attributes, ...attributes } }))
)

/**
 * Makes the correlation ids of the executions inside of an effect with a function of one's own: repeatable ids for a test.
 *
 * @category combinators
 * @since 0.1.0
 */
export const withIdGenerator: {
  (generateId: (startMillis: number) => string): <A, E, R>(self: Effect.Effect<A, E, R>) => Effect.Effect<A, E, R>
  <A, E, R>(self: Effect.Effect<A, E, R>, generateId: (startMillis: number) => string): Effect.Effect<A, E, R>
} = dual(
  2,
  <A, E, R>(self: Effect.Effect<A, E, R>, generateId: (startMillis: number) => string): Effect.Effect<A, E, R> =>
    surround(self, () => ({ generateId }))
)

/**
 * Runs an effect as if inside of an execution that is known by its ids alone: what goes on in another process, or was read from
 * a message. Executions inside name it as their parent.
 *
 * **Details**
 *
 * With its `trace_id`, which `current` gives, they are in the trace of their tree where no span is active around them. A span that is has its own
 * trace: begin it below the one that came with the message, as by its `traceparent`.
 *
 * @category combinators
 * @since 0.1.0
 */
export const continueFrom: {
  (execution: Execution): <A, E, R>(self: Effect.Effect<A, E, R>) => Effect.Effect<A, E, R>
  <A, E, R>(self: Effect.Effect<A, E, R>, execution: Execution): Effect.Effect<A, E, R>
} = dual(
  2,
  <A, E, R>(self: Effect.Effect<A, E, R>, execution: Execution): Effect.Effect<A, E, R> =>
    surround(self, () => ({ execution }))
)
