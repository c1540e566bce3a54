/**
 * A set of units: found by name, run with unknown input, described by JSON Schema. What gateways are built on.
 *
 * @since 0.1.0
 */
import * as Effect from "effect/Effect"
import type * as JsonSchema from "effect/JsonSchema"
import * as Schema from "effect/Schema"
import * as Stream from "effect/Stream"
import type { EventPublisher } from "./EventPublisher.ts"
import type * as Unit from "./Unit.ts"
import * as UnitError from "./UnitError.ts"

/**
 * The catalog has no unit of this name. A retry does not help.
 *
 * @category errors
 * @since 0.1.0
 */
export class UnitNotFound extends UnitError.make<UnitNotFound>()("UnitNotFound", { code: "00004", retryable: false }, {
  unit: Schema.String,
  /** Names that are alike, or in the same domain. */
  similar: Schema.Array(Schema.String)
}) {
  override get message(): string {
    const hint = this.similar.length === 0 ? "" : ` Did you mean ${this.similar.join(", ")}?`
    return `There is no unit ${JSON.stringify(this.unit)}.${hint}`
  }
}

/**
 * JSON Schemas (draft 2020-12) of what a unit takes, gives and raises, as it crosses a wire.
 *
 * @category models
 * @since 0.1.0
 */
export interface JsonSchemas {
  readonly input: JsonSchema.Document<"draft-2020-12">
  readonly output: JsonSchema.Document<"draft-2020-12">
  readonly error: JsonSchema.Document<"draft-2020-12">
  /** Of one chunk, where the unit is a stream. */
  readonly chunk: JsonSchema.Document<"draft-2020-12"> | undefined
}

/**
 * A set of units with unique names.
 *
 * @category models
 * @since 0.1.0
 */
export interface Catalog<out U extends Unit.Any> {
  /** In the order in which they were given. */
  readonly units: ReadonlyArray<U>
  /** The domains, in the order of their first unit. */
  readonly domains: ReadonlyArray<string>
  /** The unit of a name, `undefined` where there is none. */
  readonly get: (name: string) => U | undefined
  /**
   * Runs a unit by name on unknown JSON and gives JSON, with its events. Fails with `UnitNotFound`, `InvalidInput`, or what the unit
   * raises. A stream unit is run to its end and gives the list of its chunks; use its own `execute` to have them as they come.
   */
  readonly execute: (
    name: string,
    input?: unknown
  ) => Effect.Effect<
    Schema.Json,
    Unit.Error<U> | UnitError.InvalidInput | UnitNotFound,
    Unit.Services<U> | EventPublisher
  >
  /** The JSON Schemas of a unit. */
  readonly jsonSchemas: (unit: Unit.Any) => JsonSchemas
}

/** What `execute` needs of a unit whose types are not known. */
type Executed = Effect.Effect<Schema.Json, never, never> | Stream.Stream<Schema.Json, never, never>

/**
 * Makes a catalog. Throws a `TypeError` where two units have one name: that is a mistake in the program, found when it starts.
 *
 * @category constructors
 * @since 0.1.0
 */
export const make = <const Units extends ReadonlyArray<Unit.Any>>(...units: Units): Catalog<Units[number]> => {
  const byName = new Map<string, Units[number]>()
  for (const unit of units) {
    if (byName.has(unit.name)) throw new TypeError(`Two units of the catalog are named ${unit.name}`)
    byName.set(unit.name, unit)
  }
  const similar = (name: string): ReadonlyArray<string> => {
    const domain = name.split(".")[0]
    return units.map((unit) => unit.name).filter((other) =>
      other.toLowerCase() === name.toLowerCase() || other.split(".")[0] === domain
    ).slice(0, 10)
  }
  const documents = new WeakMap<Unit.Any, JsonSchemas>()
  return {
    units,
    domains: Array.from(new Set(units.map((unit) => unit.domain))),
    get: (name) => byName.get(name),
    execute: (name, input) => {
      const unit = byName.get(name)
      if (unit === undefined) return Effect.fail(new UnitNotFound({ unit: name, similar: similar(name) }))
      // `Any` does not say what `execute` gives, as that depends on the unit: an Effect, or a Stream where there are chunks. The
      // failures and services of the result are those of the unit, as the signature says.
      const executed = unit.execute(input) as Executed
      return Stream.isStream(executed) ? Stream.runCollect(executed) : executed
    },
    jsonSchemas: (unit) => {
      const known = documents.get(unit)
      if (known !== undefined) return known
      const made: JsonSchemas = {
        input: Schema.toJsonSchemaDocument(unit.input),
        output: Schema.toJsonSchemaDocument(unit.output),
        error: Schema.toJsonSchemaDocument(unit.error),
        chunk: unit.chunk === undefined ? undefined : Schema.toJsonSchemaDocument(unit.chunk)
      }
      documents.set(unit, made)
      return made
    }
  }
}
