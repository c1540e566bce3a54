/**
 * Units: commands, queries and streams with a name, and a Schema for what they take, give and raise.
 *
 * A unit is a function. Calling it checks the input, publishes `execution_started`, runs the handler and publishes exactly one of
 * `execution_completed` and `execution_failed`, through the `EventPublisher` that it asks its context for.
 *
 * **Example** (A query)
 *
 * ```ts
 * const area = Unit.query("geometry.area", {
 *   description: "The area of a rectangle",
 *   input: { width: Schema.Finite, height: Schema.Finite },
 *   output: { area: Schema.Finite },
 *   errors: [],
 *   handler: ({ width, height }) => Effect.succeed({ area: width * height })
 * })
 *
 * const program = area({ width: 3, height: 4 })
 * // Effect<{ readonly area: number }, InvalidInput, EventPublisher>
 * ```
 *
 * @since 0.1.0
 */
import * as Effect from "effect/Effect"
import type * as Exit from "effect/Exit"
import * as Predicate from "effect/Predicate"
import * as Schema from "effect/Schema"
import * as SchemaJITCompiler from "effect/schema/SchemaJITCompiler"
import * as SchemaAST from "effect/SchemaAST"
import * as SchemaParser from "effect/SchemaParser"
import * as Stream from "effect/Stream"
import type { EventPublisher } from "./EventPublisher.ts"
import { secretAnnotation } from "./internal/encode.ts"
import { Run, runStream } from "./internal/run.ts"
import { chunkCount, runnable } from "./internal/runnable.ts"
import type { Top } from "./internal/types.ts"
import { InvalidInput } from "./UnitError.ts"

const TypeId = "~effect-units/Unit"

/**
 * `command` changes something, `query` changes nothing.
 *
 * @category models
 * @since 0.1.0
 */
export type Kind = "command" | "query"

/**
 * What can be said of every unit without its types. The form that catalogues and gateways rely on.
 *
 * @category models
 * @since 0.1.0
 */
export interface Any {
  readonly [TypeId]: typeof TypeId
  readonly name: string
  readonly domain: string
  readonly kind: Kind
  readonly description: string
  readonly input: Top
  readonly output: Top
  readonly error: Top
  readonly chunk: Top | undefined
  readonly examples: ReadonlyArray<unknown>
  readonly execute: (input: unknown) => unknown
}

/**
 * A command or a query.
 *
 * **Details**
 *
 * - Called with an input, it runs with events. Optional fields and fields with a default may be left out.
 * - `handler` does the same without any event, and without `EventPublisher`.
 * - `execute` takes unknown JSON and gives JSON: what gateways call. An output that does not fit its Schema is a defect.
 *
 * @category models
 * @since 0.1.0
 */
export interface Unit<I extends Top, O extends Top, E extends Top, R = never> extends Any {
  (...input: Arguments<I>): Effect.Effect<O["Type"], E["Type"] | InvalidInput, R | EventPublisher>
  readonly handler: (...input: Arguments<I>) => Effect.Effect<O["Type"], E["Type"] | InvalidInput, R>
  readonly execute: (input: unknown) => Effect.Effect<Schema.Json, E["Type"] | InvalidInput, R | EventPublisher>
  readonly input: I
  readonly output: O
  readonly error: E
  readonly chunk: undefined
  readonly examples: ReadonlyArray<I["~type.make.in"]>
}

/**
 * A unit that gives a Stream of chunks; its completed event holds the `output`, an aggregate of them.
 *
 * **Details**
 *
 * Each run of the stream is an execution: started at the first pull, completed when drained, failed when the stream fails or its
 * consumer stops early. Chunks are not kept.
 *
 * @category models
 * @since 0.1.0
 */
export interface StreamUnit<I extends Top, C extends Top, O extends Top, E extends Top, R = never> extends Any {
  (...input: Arguments<I>): Stream.Stream<C["Type"], E["Type"] | InvalidInput, R | EventPublisher>
  readonly handler: (...input: Arguments<I>) => Stream.Stream<C["Type"], E["Type"] | InvalidInput, R>
  readonly execute: (input: unknown) => Stream.Stream<Schema.Json, E["Type"] | InvalidInput, R | EventPublisher>
  readonly input: I
  readonly output: O
  readonly error: E
  readonly chunk: C
  readonly examples: ReadonlyArray<I["~type.make.in"]>
}

/**
 * Parameters of a unit: its input, which may be left out where every field may be.
 *
 * @category type-level
 * @since 0.1.0
 */
export type Arguments<I extends Top> = {} extends I["~type.make.in"] ? [input?: I["~type.make.in"]]
  : [input: I["~type.make.in"]]

/**
 * What a caller passes.
 *
 * @category type-level
 * @since 0.1.0
 */
export type Input<U extends Any> = U["input"]["~type.make.in"]

/**
 * What a caller gets; of a stream unit, the aggregate in its completed event.
 *
 * @category type-level
 * @since 0.1.0
 */
export type Output<U extends Any> = U["output"]["Type"]

/**
 * What a caller has to handle.
 *
 * @category type-level
 * @since 0.1.0
 */
export type Error<U extends Any> = U["error"]["Type"] | InvalidInput

/**
 * The services a unit needs besides `EventPublisher`.
 *
 * @category type-level
 * @since 0.1.0
 */
export type Services<U extends Any> = U extends Unit<infer _I, infer _O, infer _E, infer R> ? R
  : U extends StreamUnit<infer _I, infer _C, infer _O, infer _E, infer R> ? R
  : never

type Fields = { readonly [name: string]: Top }

/** Fields stand for the struct of them. */
type ToSchema<S extends Top | Fields> = S extends Top ? S : S extends Schema.Struct.Fields ? Schema.Struct<S> : never

type ErrorOf<Errors extends ReadonlyArray<Top>> = Schema.Union<Errors>

/** By itself, a struct without fields takes whatever is not null. */
const noFields = Schema.Struct({}).check(
  Schema.makeFilter((value: object) => Predicate.isObject(value), {
    expected: "object",
    toJsonSchema: () => ({ type: "object" })
  })
)

const toSchema = <const S extends Top | Fields>(shape: S): ToSchema<S> =>
  // The two branches of the type, by the same test; a conditional type cannot be followed by the compiler.
  (Schema.isSchema(shape) ? shape : Object.keys(shape).length === 0 ? noFields : Schema.Struct(shape)) as ToSchema<S>

/**
 * Whether a value is a unit.
 *
 * @category guards
 * @since 0.1.0
 */
export const isUnit = (u: unknown): u is Any => Predicate.isFunction(u) && Predicate.hasProperty(u, TypeId)

interface Shapes {
  readonly description: string
  readonly errors: ReadonlyArray<Top>
  readonly examples?: ReadonlyArray<unknown> | undefined
}

/** All that commands, queries and streams have in common. */
const define = <I extends Top, O extends Top>(name: string, kind: Kind, input: I, output: O, shapes: Shapes) => {
  const error = Schema.Union([...shapes.errors, InvalidInput])
  // Compiled checks cost a tenth of interpreted ones. Where code generation is forbidden, this leaves the interpreter in place.
  SchemaJITCompiler.enable(SchemaAST.toType(input.ast))
  const construct = SchemaParser.makeEffect(input)
  const check = (value: unknown): Effect.Effect<I["Type"], InvalidInput> => {
    const given = value === undefined ? {} : value
    const made = construct(given)
    // Naming every issue costs more than checking, so it is left to inputs that have one. An exit that succeeded has none to raise.
    if ("_tag" in made && made._tag === "Success") return made as Exit.Success<I["Type"]>
    return Effect.mapErrorEager(construct(given, allIssues), (issue) => InvalidInput.fromIssue(name, issue))
  }
  const decodeWire = SchemaParser.decodeUnknownEffect(Schema.toCodecJson(input))
  const decode = (value: unknown): Effect.Effect<I["Type"], InvalidInput> =>
    Effect.mapErrorEager(
      decodeWire(value === undefined ? {} : value, allIssues.parseOptions),
      (issue) => InvalidInput.fromIssue(name, issue)
    )
  const named = { name, kind, input, output, error }
  const checked = runnable(named, check)
  return {
    checked,
    decoded: runnable(named, decode),
    check,
    properties: {
      [TypeId]: TypeId,
      domain: checked.domain,
      kind,
      description: shapes.description,
      input,
      output,
      error,
      examples: shapes.examples ?? []
    }
  }
}

const allIssues = { parseOptions: { errors: "all" } } as const

/** Functions have a `name` of their own, which an assignment cannot replace. */
const withName = <F extends (...args: never) => unknown, P extends object>(name: string, f: F, properties: P): F & P =>
  Object.assign(Object.defineProperty(f, "name", { value: name, enumerable: true }), properties)

const make = (kind: Kind) =>
<
  const I extends Top | Fields,
  const O extends Top | Fields,
  const Errors extends ReadonlyArray<Top>,
  R = never
>(
  name: `${string}.${string}`,
  options: {
    /** One line: what the unit does. */
    readonly description: string
    /** Fields of the input, or its Schema. */
    readonly input: I
    /** Fields of the output, or its Schema. */
    readonly output: O
    /** Classes of the failures that the handler can raise. `InvalidInput` is always among them, for what no Schema can check. */
    readonly errors: Errors
    /** Inputs for documentation and tests. */
    readonly examples?: ReadonlyArray<ToSchema<I>["~type.make.in"]> | undefined
    readonly handler: (
      input: ToSchema<I>["Type"]
    ) => Effect.Effect<ToSchema<O>["Type"], Errors[number]["Type"] | InvalidInput, R>
  }
): Unit<ToSchema<I>, ToSchema<O>, ErrorOf<Errors>, R> => {
  const { handler } = options
  const output = toSchema(options.output)
  const { check, checked, decoded, properties } = define(name, kind, toSchema(options.input), output, options)
  const encode = SchemaParser.encodeUnknownEffect(Schema.toCodecJson(output))
  // Every part has the type that the signature states, by the schemas that it was made from.
  return withName(name, (input: unknown) => new Run(checked, input, handler), {
    ...properties,
    chunk: undefined,
    handler: (input: unknown) => Effect.flatMapEager(check(input), handler),
    execute: (input: unknown) =>
      Effect.flatMap(new Run(decoded, input, handler), (output) => Effect.orDie(encode(output)))
  }) as never
}

/**
 * Defines a command: a unit that changes something.
 *
 * @category constructors
 * @since 0.1.0
 */
export const command = make("command")

/**
 * Defines a query: a unit that changes nothing.
 *
 * @category constructors
 * @since 0.1.0
 */
export const query = make("query")

/**
 * Defines a stream unit.
 *
 * **Details**
 *
 * `output` and `aggregate` say what the completed event holds: `step` is called with each chunk. Without them it is
 * `{ chunks }`, the count.
 *
 * @category constructors
 * @since 0.1.0
 */
export const stream: {
  <
    const I extends Top | Fields,
    C extends Top,
    const O extends Top | Fields,
    const Errors extends ReadonlyArray<Top>,
    R = never
  >(
    name: `${string}.${string}`,
    options: {
      readonly description: string
      /** Default `command`. */
      readonly kind?: Kind | undefined
      readonly input: I
      readonly chunk: C
      readonly output: O
      readonly aggregate: {
        readonly initial: () => NoInfer<ToSchema<O>["Type"]>
        readonly step: (state: NoInfer<ToSchema<O>["Type"]>, chunk: C["Type"]) => NoInfer<ToSchema<O>["Type"]>
      }
      readonly errors: Errors
      readonly examples?: ReadonlyArray<ToSchema<I>["~type.make.in"]> | undefined
      readonly handler: (
        input: ToSchema<I>["Type"]
      ) => Stream.Stream<C["Type"], Errors[number]["Type"] | InvalidInput, R>
    }
  ): StreamUnit<ToSchema<I>, C, ToSchema<O>, ErrorOf<Errors>, R>
  <
    const I extends Top | Fields,
    C extends Top,
    const Errors extends ReadonlyArray<Top>,
    R = never
  >(
    name: `${string}.${string}`,
    options: {
      readonly description: string
      /** Default `command`. */
      readonly kind?: Kind | undefined
      readonly input: I
      readonly chunk: C
      // Named here, as the compiler would else take this overload for a stream that aggregates, where fields of the output are optional.
      readonly output?: undefined
      readonly aggregate?: undefined
      readonly errors: Errors
      readonly examples?: ReadonlyArray<ToSchema<I>["~type.make.in"]> | undefined
      readonly handler: (
        input: ToSchema<I>["Type"]
      ) => Stream.Stream<C["Type"], Errors[number]["Type"] | InvalidInput, R>
    }
  ): StreamUnit<ToSchema<I>, C, typeof ChunkCount, ErrorOf<Errors>, R>
} = (
  name: string,
  options: {
    readonly description: string
    readonly kind?: Kind | undefined
    readonly input: Top | Fields
    readonly chunk: Top
    readonly output?: Top | Fields | undefined
    readonly aggregate?:
      | { readonly initial: () => unknown; readonly step: (state: never, chunk: never) => unknown }
      | undefined
    readonly errors: ReadonlyArray<Top>
    readonly examples?: ReadonlyArray<unknown> | undefined
    readonly handler: (input: never) => Stream.Stream<unknown, unknown, unknown>
  }
) => {
  const { check, checked, decoded, properties } = define(
    name,
    options.kind ?? "command",
    toSchema(options.input),
    toSchema(options.output ?? ChunkCount),
    options
  )
  // The overloads tie handler, aggregate and schemas together; the implementation sees each of them as unknown.
  const handler = options.handler as (input: unknown) => Stream.Stream<unknown, unknown, unknown>
  // The same.
  const aggregate = (options.aggregate ?? chunkCount) as {
    readonly initial: () => unknown
    readonly step: (state: unknown, chunk: unknown) => unknown
  }
  const encode = SchemaParser.encodeUnknownEffect(Schema.toCodecJson(options.chunk))
  // Every part has the type that the overloads state, by the schemas that it was made from.
  return withName(name, (input: unknown) => runStream(checked, input, handler, aggregate), {
    ...properties,
    chunk: options.chunk,
    handler: (input: unknown) => Stream.unwrap(Effect.map(check(input), handler)),
    execute: (input: unknown) =>
      Stream.mapEffect(runStream(decoded, input, handler, aggregate), (chunk) => Effect.orDie(encode(chunk)))
  }) as never
}

/**
 * Output of a stream unit that aggregates nothing: how many chunks it gave.
 *
 * @category schemas
 * @since 0.1.0
 */
export const ChunkCount = Schema.Struct({ chunks: Schema.Int })

/**
 * A field that has a default, for callers in TypeScript and on the wire alike.
 *
 * **Example** (A limit of 100)
 *
 * ```ts
 * const limit = Schema.Int.pipe(Unit.withDefault(100))
 * ```
 *
 * @category schemas
 * @since 0.1.0
 */
export const withDefault = <S extends Top & Schema.WithoutConstructorDefault>(
  value: S["~type.make.in"] & S["Encoded"]
) =>
(schema: S): Schema.withDecodingDefaultKey<Schema.withConstructorDefault<S>> =>
  schema.pipe(
    Schema.withConstructorDefault<S>(Effect.succeed(value)),
    Schema.withDecodingDefaultKey<Schema.withConstructorDefault<S>>(Effect.succeed(value))
  )

/**
 * Marks a schema's values as secret: they show as `<redacted>` in every event, and wherever else their text turns up in the
 * events of the same execution.
 *
 * **Details**
 *
 * `Schema.Redacted` and `Schema.RedactedFromValue` are secret by themselves, and hide their values from logs, too.
 *
 * @category schemas
 * @since 0.1.0
 */
export const secret = <S extends Schema.Top>(schema: S): S["Rebuild"] => schema.annotate({ [secretAnnotation]: true })
