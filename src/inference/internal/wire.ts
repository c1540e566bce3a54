/**
 * JSON of servers, decoded fast: the schema is compiled, and once.
 *
 * @since 0.1.0
 */
import * as Result from "effect/Result"
import * as Schema from "effect/Schema"
import * as SchemaJITCompiler from "effect/schema/SchemaJITCompiler"

/** @internal */
export const parse = (text: string): Result.Result<unknown, Error> =>
  // What JSON.parse throws is a SyntaxError.
  Result.try({ try: () => JSON.parse(text) as unknown, catch: (cause) => cause as Error })

/** @internal */
export type Decoder<A> = (text: string) => Result.Result<A, Error>

const made = new WeakMap<object, Decoder<unknown>>()

/**
 * The decoder of a schema: JSON text to values.
 *
 * @internal
 */
export const decoder = <S extends Schema.ConstraintDecoder<unknown, never>>(schema: S): Decoder<S["Type"]> => {
  const known = made.get(schema)
  if (known !== undefined) return known
  // Compiled checks cost a tenth of interpreted ones. Where code generation is forbidden, this leaves the interpreter in place.
  SchemaJITCompiler.enable(schema.ast)
  const decode = Schema.decodeUnknownResult(schema)
  const whole: Decoder<S["Type"]> = (text) => {
    const parsed = parse(text)
    return Result.isFailure(parsed) ? parsed : decode(parsed.success)
  }
  made.set(schema, whole)
  return whole
}
