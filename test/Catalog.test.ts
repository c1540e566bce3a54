import { assert, describe, it } from "@effect/vitest"
import { Context, Effect, Exit, Layer, Schema, Stream } from "effect"
import { expectTypeOf } from "vitest"
import * as Catalog from "../src/Catalog.ts"
import type { EventPublisher } from "../src/EventPublisher.ts"
import { layerTest, TestEvents } from "../src/testing/index.ts"
import * as Unit from "../src/Unit.ts"
import * as UnitError from "../src/UnitError.ts"

class Rates extends Context.Service<Rates, { readonly rate: number }>()("test/Rates") {}

class TooMuch extends UnitError.make<TooMuch>()("TooMuch", { code: "90001", retryable: false }, {
  most: Schema.Int
}) {
  override get message() {
    return `Ask for ${this.most} at most`
  }
}

const convert = Unit.query("money.convert", {
  description: "Converts an amount",
  input: { amount: Schema.Int, on: Schema.optionalKey(Schema.Date) },
  output: { amount: Schema.Finite, on: Schema.optionalKey(Schema.Date) },
  errors: [TooMuch],
  handler: Effect.fnUntraced(function*({ amount, on }) {
    const { rate } = yield* Rates
    if (amount > 1000) return yield* new TooMuch({ most: 1000 })
    return { amount: amount * rate, ...(on === undefined ? {} : { on }) }
  })
})

const count = Unit.stream("numbers.count", {
  description: "Counts up",
  input: { to: Schema.Int },
  chunk: Schema.Struct({ at: Schema.Int }),
  errors: [],
  handler: ({ to }) => Stream.map(Stream.range(1, to), (at) => ({ at }))
})

const catalog = Catalog.make(convert, count)

const layer = Layer.merge(layerTest, Layer.succeed(Rates, { rate: 2 }))

describe("Catalog", () => {
  it("finds units by name, and says which domains there are", () => {
    assert.strictEqual(catalog.get("money.convert"), convert)
    assert.strictEqual(catalog.get("money.burn"), undefined)
    assert.deepStrictEqual(catalog.units, [convert, count])
    assert.deepStrictEqual(catalog.domains, ["money", "numbers"])
  })

  it("takes no two units of one name", () => {
    assert.throws(() => Catalog.make(convert, count, convert), /Two units of the catalog are named money.convert/)
  })

  it.effect("runs a unit on JSON and gives JSON, with its events", () =>
    Effect.gen(function*() {
      const on = "2026-01-02T03:04:05.000Z"
      assert.deepStrictEqual(yield* catalog.execute("money.convert", { amount: 4, on }), { amount: 8, on })
      const test = yield* TestEvents
      const execution = yield* test.ended("money.convert")
      assert.deepStrictEqual(execution.started.input, { amount: 4, on })
      assert.strictEqual(execution.terminal?.event_type, "execution_completed")
    }).pipe(Effect.provide(layer)))

  it.effect("runs a stream to its end and gives its chunks", () =>
    Effect.gen(function*() {
      assert.deepStrictEqual(yield* catalog.execute("numbers.count", { to: 3 }), [{ at: 1 }, { at: 2 }, { at: 3 }])
    }).pipe(Effect.provide(layer)))

  it.effect("fails as the unit does", () =>
    Effect.gen(function*() {
      const exit = yield* Effect.exit(catalog.execute("money.convert", { amount: 1001 }))
      assert.deepStrictEqual(exit, Exit.fail(new TooMuch({ most: 1000 })))
      const invalid = yield* Effect.flip(catalog.execute("money.convert"))
      assert.deepStrictEqual(
        invalid,
        new UnitError.InvalidInput({
          unit: "money.convert",
          issues: [{ path: "amount", expected: "Expected a value, the field is required" }]
        })
      )
    }).pipe(Effect.provide(layer)))

  it.effect("names units that are alike where there is none of a name", () =>
    Effect.gen(function*() {
      const unlike = yield* Effect.flip(catalog.execute("weather.tell", {}))
      assert.strictEqual(unlike.message, "There is no unit \"weather.tell\".")
      const neighbour = yield* Effect.flip(catalog.execute("numbers.sum", {}))
      assert.deepStrictEqual(neighbour, new Catalog.UnitNotFound({ unit: "numbers.sum", similar: ["numbers.count"] }))
      const error = yield* Effect.flip(catalog.execute("money.CONVERT", {}))
      assert.deepStrictEqual(error, new Catalog.UnitNotFound({ unit: "money.CONVERT", similar: ["money.convert"] }))
      assert.strictEqual(error.message, "There is no unit \"money.CONVERT\". Did you mean money.convert?")
      const test = yield* TestEvents
      assert.deepStrictEqual(yield* test.events, [])
    }).pipe(Effect.provide(layer)))

  it("describes what a unit takes, gives and raises by JSON Schema", () => {
    const { chunk, error, input, output } = catalog.jsonSchemas(convert)
    assert.strictEqual(chunk, undefined)
    assert.deepStrictEqual(input.schema["required"], ["amount"])
    assert.deepStrictEqual(Object.keys(input.schema["properties"] ?? {}), ["amount", "on"])
    assert.deepStrictEqual(output.schema["required"], ["amount"])
    assert.include(JSON.stringify(error), "TooMuch")
    assert.include(JSON.stringify(error), "InvalidInput")
    assert.notStrictEqual(catalog.jsonSchemas(count).chunk, undefined)
  })

  it("describes an input without fields as an object, and values that JSON has no word for by their wire form", () => {
    const nothing = Unit.query("test.nothing", {
      description: "Takes nothing",
      input: {},
      output: {},
      errors: [],
      handler: () => Effect.succeed({})
    })
    const { error, input, output } = catalog.jsonSchemas(nothing)
    assert.strictEqual(input.schema["type"], "object")
    assert.strictEqual(output.schema["type"], "object")
    assert.include(JSON.stringify(error), "InvalidInput")
    const rich = Unit.command("test.rich", {
      description: "Takes what JSON has no word for",
      input: {
        at: Schema.Date,
        big: Schema.BigInt,
        bytes: Schema.Uint8Array,
        key: Schema.Redacted(Schema.String),
        password: Unit.secret(Schema.String),
        limit: Schema.Int.pipe(Unit.withDefault(10))
      },
      output: {},
      errors: [],
      handler: () => Effect.succeed({})
    })
    const { schema } = catalog.jsonSchemas(rich).input
    assert.strictEqual(schema["type"], "object")
    assert.deepStrictEqual(schema["required"], ["at", "big", "bytes", "key", "password"])
    assert.deepStrictEqual(Object.keys(schema["properties"] ?? {}), ["at", "big", "bytes", "key", "password", "limit"])
    // Made once per unit.
    assert.strictEqual(catalog.jsonSchemas(rich), catalog.jsonSchemas(rich))
  })

  it("of no units is empty", () => {
    const none = Catalog.make()
    assert.deepStrictEqual([none.units, none.domains, none.get("a.b")], [[], [], undefined])
  })

  it("keeps types", () => {
    expectTypeOf(catalog.execute("money.convert", {})).toEqualTypeOf<
      Effect.Effect<Schema.Json, TooMuch | UnitError.InvalidInput | Catalog.UnitNotFound, Rates | EventPublisher>
    >()
    expectTypeOf<Unit.Services<typeof convert>>().toEqualTypeOf<Rates>()
    expectTypeOf<Unit.Error<typeof count>>().toEqualTypeOf<UnitError.InvalidInput>()
    expectTypeOf<Unit.Input<typeof count>>().toEqualTypeOf<{ readonly to: number }>()
    expectTypeOf<Unit.Output<typeof count>>().toEqualTypeOf<{ readonly chunks: number }>()
  })
})
