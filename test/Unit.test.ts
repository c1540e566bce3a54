import { assert, describe, it } from "@effect/vitest"
import { Context, Deferred, Effect, Exit, Fiber, Redacted, Schema, Stream } from "effect"
import { expectTypeOf } from "vitest"
import { type EventPublisher, layerNoop } from "../src/EventPublisher.ts"
import * as ExecutionEvent from "../src/ExecutionEvent.ts"
import { layerTest, TestEvents } from "../src/testing/index.ts"
import * as Unit from "../src/Unit.ts"
import * as UnitError from "../src/UnitError.ts"

class Cards extends Context.Service<Cards, { readonly charge: (amount: number) => string }>()("test/Cards") {}

class Declined extends UnitError.make<Declined>()("Declined", { code: "90003", retryable: false }, {
  last4: Schema.String
}) {}

class Unrelated extends UnitError.make<Unrelated>()("Unrelated", { code: "90004", retryable: false }, {}) {}

const charge = Unit.command("billing.charge", {
  description: "Charges a card",
  input: {
    amount: Schema.Int.check(Schema.isGreaterThan(0)),
    currency: Schema.String.pipe(Unit.withDefault("EUR")),
    card: Schema.optionalKey(Schema.RedactedFromValue(Schema.String)),
    lines: Schema.optionalKey(Schema.Array(Schema.Struct({ sku: Schema.NonEmptyString })))
  },
  output: { receipt: Schema.String, at: Schema.Date },
  errors: [Declined],
  examples: [{ amount: 1 }],
  handler: Effect.fnUntraced(function*({ amount, currency }) {
    const cards = yield* Cards
    if (amount === 13) return yield* new Declined({ last4: "4242" })
    return { receipt: `${cards.charge(amount)} ${currency}`, at: new Date(0) }
  })
})

const cards = Effect.provideService(Cards, { charge: (amount) => `#${amount}` })

const silent = <A, E>(effect: Effect.Effect<A, E, Cards | EventPublisher>) => Effect.provide(cards(effect), layerNoop)

describe("Unit", () => {
  it("is a function that says what it is", () => {
    assert.isTrue(Unit.isUnit(charge))
    assert.isFalse(Unit.isUnit(() => Effect.void))
    const { description, domain, examples, kind, name } = charge
    assert.deepStrictEqual({ description, domain, examples, kind, name }, {
      description: "Charges a card",
      domain: "billing",
      examples: [{ amount: 1 }],
      kind: "command",
      name: "billing.charge"
    })
    assert.strictEqual(
      Unit.query("a.b", { description: "", input: {}, output: {}, errors: [], handler: () => Effect.succeed({}) }).kind,
      "query"
    )
  })

  it.effect("fills defaults in, and gives the handler's result by reference", () =>
    Effect.gen(function*() {
      assert.deepStrictEqual(yield* silent(charge({ amount: 2 })), { receipt: "#2 EUR", at: new Date(0) })
      const result = { receipt: "r", at: new Date(1) }
      const same = Unit.query("a.same", {
        description: "",
        input: {},
        output: charge.output,
        errors: [],
        handler: () => Effect.succeed(result)
      })
      assert.strictEqual(yield* silent(same()), result)
    }))

  it.effect("refuses input that does not fit, by unit, path and what is expected, before the handler runs", () =>
    Effect.gen(function*() {
      const test = yield* TestEvents
      const error = yield* Effect.flip(cards(charge({ amount: 0.5, lines: [{ sku: "a" }, { sku: "" }] })))
      assert.deepStrictEqual(
        error,
        new UnitError.InvalidInput({
          unit: "billing.charge",
          issues: [
            { path: "amount", expected: "Expected an integer" },
            { path: "lines[1].sku", expected: "Expected a value with a length of at least 1" }
          ]
        })
      )
      const execution = yield* test.ended("billing.charge")
      assert.strictEqual(execution.terminal?.event_type, "execution_failed")
      assert.deepStrictEqual(
        execution.terminal?.event_type === "execution_failed" &&
          [execution.terminal.error, execution.terminal.failure.code, execution.terminal.failure.tag],
        [error.message, "00009", "InvalidInput"]
      )
    }).pipe(Effect.provide(layerTest)))

  it.effect("holds its own copy of the input", () =>
    Effect.gen(function*() {
      const test = yield* TestEvents
      const input = { amount: 2, lines: [{ sku: "a" }] }
      yield* cards(charge(input))
      input.amount = 99
      input.lines.push({ sku: "b" })
      input.lines[0]!.sku = "z"
      const [started] = yield* test.events
      assert.deepStrictEqual(started?.event_type === "execution_started" && started.input, {
        amount: 2,
        currency: "EUR",
        lines: [{ sku: "a" }]
      })
    }).pipe(Effect.provide(layerTest)))

  it.effect("does the same work without events by its handler, and asks for no publisher", () =>
    Effect.gen(function*() {
      assert.deepStrictEqual(yield* cards(charge.handler({ amount: 2 })), { receipt: "#2 EUR", at: new Date(0) })
      assert.deepStrictEqual(
        yield* Effect.exit(cards(charge.handler({ amount: 13 }))),
        Exit.fail(new Declined({ last4: "4242" }))
      )
      assert.instanceOf(yield* Effect.flip(cards(charge.handler({ amount: -1 }))), UnitError.InvalidInput)
    }))

  it.effect("takes and gives JSON by execute, unknown keys ignored", () =>
    Effect.gen(function*() {
      const output = yield* silent(charge.execute({ amount: 2, currency: "USD", card: "4242", more: true }))
      assert.deepStrictEqual(output, { receipt: "#2 USD", at: "1970-01-01T00:00:00.000Z" })
      const error = yield* Effect.flip(silent(charge.execute({ amount: "2", currency: null })))
      assert.deepStrictEqual(error._tag === "InvalidInput" && error.issues.map(({ path }) => path), [
        "amount",
        "currency"
      ])
      const nothing = yield* Effect.flip(silent(charge.execute(undefined)))
      assert.strictEqual(
        nothing.message,
        "The input of billing.charge is not valid. amount: Expected a value, the field is required"
      )
      assert.deepStrictEqual(
        yield* Effect.exit(silent(charge.execute("all of it"))).pipe(Effect.map(Exit.isFailure)),
        true
      )
    }))

  it.effect("hides what its Schema calls secret", () =>
    Effect.gen(function*() {
      const test = yield* TestEvents
      yield* cards(charge({ amount: 1, card: Redacted.make("4242424242424242") }))
      yield* Effect.exit(cards(charge.execute({ amount: "x", card: "4242424242424242" })))
      const events = yield* test.events
      assert.strictEqual(events.length, 4)
      assert.notInclude(JSON.stringify(events.map(ExecutionEvent.toJson)), "42424")
      assert.deepInclude(events[0]?.event_type === "execution_started" && events[0].input, { card: "<redacted>" })
      assert.deepInclude(events[2]?.event_type === "execution_started" && events[2].input, { card: "<redacted>" })
    }).pipe(Effect.provide(layerTest)))

  describe("that streams", () => {
    const words = Unit.stream("text.words", {
      description: "Splits a text",
      kind: "query",
      input: { text: Schema.String },
      chunk: Schema.String,
      output: { letters: Schema.Int },
      aggregate: { initial: () => ({ letters: 0 }), step: ({ letters }, word) => ({ letters: letters + word.length }) },
      errors: [Declined],
      handler: ({ text }) =>
        text === "no" ? Stream.fail(new Declined({ last4: "1" })) : Stream.fromIterable(text.split(" "))
    })

    it.effect("gives its chunks, and its aggregate in the completed event", () =>
      Effect.gen(function*() {
        const test = yield* TestEvents
        assert.deepStrictEqual(yield* Stream.runCollect(words({ text: "one two three" })), ["one", "two", "three"])
        const { terminal } = yield* test.ended("text.words")
        assert.deepStrictEqual(
          terminal?.event_type === "execution_completed" && [terminal.output, terminal.chunks, terminal.kind],
          [{ letters: 11 }, 3, "query"]
        )
      }).pipe(Effect.provide(layerTest)))

    it.effect("fails as its handler does, and by InvalidInput", () =>
      Effect.gen(function*() {
        assert.deepStrictEqual(
          yield* Effect.exit(Stream.runDrain(words({ text: "no" }))),
          Exit.fail(new Declined({ last4: "1" }))
        )
        const error = yield* Effect.flip(Stream.runDrain(words.execute({ text: 1 })))
        assert.instanceOf(error, UnitError.InvalidInput)
        assert.deepStrictEqual(yield* Stream.runCollect(words.handler({ text: "a b" })), ["a", "b"])
      }).pipe(Effect.provide(layerTest)))
  })

  it.effect("ends as interrupted when it is interrupted", () =>
    Effect.gen(function*() {
      const test = yield* TestEvents
      const running = yield* Deferred.make<void>()
      const wait = Unit.command("a.wait", {
        description: "Waits",
        input: {},
        output: {},
        errors: [],
        handler: () => Effect.andThen(Deferred.succeed(running, undefined), Effect.never)
      })
      const fiber = yield* Effect.forkChild(wait())
      yield* Deferred.await(running)
      yield* Fiber.interrupt(fiber)
      const { terminal } = yield* test.ended("a.wait")
      assert.deepStrictEqual(terminal?.event_type === "execution_failed" && terminal.failure, { kind: "interrupt" })
      yield* test.assertLifecycle
    }).pipe(Effect.provide(layerTest)))

  describe("keeps types", () => {
    it("of inputs, with what may be left out", () => {
      expectTypeOf(charge).parameter(0).toEqualTypeOf<{
        readonly amount: number
        readonly currency?: string
        readonly card?: Redacted.Redacted<string>
        readonly lines?: ReadonlyArray<{ readonly sku: string }>
      }>()
      // @ts-expect-error - amount is required
      void charge({})
      // @ts-expect-error - amount is a number
      void charge({ amount: "1" })
      // @ts-expect-error - an optional field may be absent, not undefined
      void charge({ amount: 1, card: undefined })
    })

    it("of results, failures and services", () => {
      expectTypeOf(charge({ amount: 1 })).toEqualTypeOf<
        Effect.Effect<
          { readonly receipt: string; readonly at: Date },
          Declined | UnitError.InvalidInput,
          Cards | EventPublisher
        >
      >()
      expectTypeOf(charge.handler({ amount: 1 })).toEqualTypeOf<
        Effect.Effect<{ readonly receipt: string; readonly at: Date }, Declined | UnitError.InvalidInput, Cards>
      >()
      expectTypeOf(charge.execute(1)).toEqualTypeOf<
        Effect.Effect<Schema.Json, Declined | UnitError.InvalidInput, Cards | EventPublisher>
      >()
    })

    it("of what a handler may do", () => {
      Unit.command("a.b", {
        description: "",
        input: {},
        output: {},
        errors: [Declined],
        // @ts-expect-error - Unrelated is not declared
        // @effect-diagnostics-next-line missingEffectError:off
        handler: () => Effect.fail(new Unrelated())
      })
      Unit.command("a.b", {
        description: "",
        input: {},
        output: { n: Schema.Int },
        errors: [],
        // @ts-expect-error - the output has n
        handler: () => Effect.succeed({})
      })
      // @ts-expect-error - a name has a domain
      const bare = Unit.command("charge", {
        description: "",
        input: {},
        output: {},
        errors: [],
        handler: () => Effect.succeed({})
      })
      assert.strictEqual(bare.domain, "charge")
    })
  })
})
