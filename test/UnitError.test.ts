import { assert, describe, it } from "@effect/vitest"
import { Effect, Exit, Schema } from "effect"
import { expectTypeOf } from "vitest"
import * as UnitError from "../src/UnitError.ts"

class Fixed extends UnitError.make<Fixed>()("Fixed", { code: "90005", retryable: true }, { id: Schema.Int }) {
  override get message() {
    return `${this.id} is wrong. Choose another one`
  }
}

class Depends extends UnitError.make<Depends>()("Depends", { code: "90006", retryable: false }, {
  retryable: Schema.Boolean
}) {}

describe("UnitError", () => {
  it.effect("is a tagged error with a code, which it does not encode", () =>
    Effect.gen(function*() {
      const error = new Fixed({ id: 3 })
      assert.deepStrictEqual([error._tag, error.code, error.retryable, error.message], [
        "Fixed",
        "90005",
        true,
        "3 is wrong. Choose another one"
      ])
      assert.instanceOf(error, Error)
      assert.deepStrictEqual(yield* Schema.encodeEffect(Fixed)(error), { _tag: "Fixed", id: 3 })
      const decoded = yield* Schema.decodeUnknownEffect(Fixed)({ _tag: "Fixed", id: 3 })
      assert.deepStrictEqual(decoded, error)
      assert.strictEqual(decoded.code, "90005")
      assert.deepStrictEqual(
        yield* Effect.exit(Effect.gen(function*() {
          return yield* error
        })),
        Exit.fail(error)
      )
    }))

  it.effect("lets each instance say whether a retry helps", () =>
    Effect.gen(function*() {
      assert.isTrue(new Depends({ retryable: true }).retryable)
      assert.isFalse(new Depends({ retryable: false }).retryable)
      assert.isTrue((yield* Schema.decodeUnknownEffect(Depends)({ _tag: "Depends", retryable: true })).retryable)
    }))

  it("gives every shared failure its code", () => {
    const failures = [
      new UnitError.InvalidInput({ unit: "a.b", issues: [] }),
      new UnitError.InternalError({ detail: "the store is down" }),
      new UnitError.RateLimited({ detail: "too many", retry_after_seconds: 3 }),
      new UnitError.Timeout({ detail: "no answer" })
    ]
    assert.deepStrictEqual(failures.map(({ code, retryable }) => [code, retryable]), [
      ["00009", false],
      ["00008", true],
      ["00007", true],
      ["00006", true]
    ])
    assert.strictEqual(failures[1]?.message, "the store is down")
  })

  it("says of bad input where it is wrong, and never what it was", () => {
    const error = new UnitError.InvalidInput({
      unit: "a.b",
      issues: [{ path: "", expected: "Expected object" }, { path: "files[2].name", expected: "Expected string" }]
    })
    assert.strictEqual(error.message, "The input of a.b is not valid. Expected object; files[2].name: Expected string")
  })

  it("keeps types", () => {
    expectTypeOf(new Fixed({ id: 1 })).toHaveProperty("code").toEqualTypeOf<string>()
    // @ts-expect-error - id is required
    assert.throws(() => new Fixed({}))
  })
})
