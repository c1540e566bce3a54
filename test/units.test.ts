import { assert, describe, it } from "@effect/vitest"
import { Cause, Effect, Exit, Schema } from "effect"
import * as ExecutionEvent from "../src/ExecutionEvent.ts"
import type * as UnitError from "../src/UnitError.ts"
import { catalog, streams } from "../src/units.ts"
import { deviceLives } from "./device/lives.ts"
import { engineLives } from "./engine/lives.ts"
import { inferenceLives } from "./inference/lives.ts"
import { declaredFailures, gaps, type Life, type Observed } from "./lives.ts"
import { modelLives } from "./model/lives.ts"
import { resourceLives } from "./resource/lives.ts"
import { formsOf } from "./secrets.ts"

/** Every domain adds its own. */
const lives: ReadonlyArray<Life> = [...modelLives, ...deviceLives, ...inferenceLives, ...resourceLives, ...engineLives]

const units = [...catalog.units, ...streams.units]

const nameOf = ({ end }: Life): string =>
  end === "completed" ? "completes" : end === "interrupted" ? "is interrupted" : `fails with ${end.tag}`

describe("the catalog", () => {
  it("has units of which each end is shown", () => {
    assert.deepStrictEqual(gaps(units, lives), [])
    assert.deepStrictEqual(
      lives.filter(({ unit: { name }, unit }) => (catalog.get(name) ?? streams.get(name)) !== unit),
      []
    )
  })

  it("would miss an end that is not shown", () => {
    const [unit, ...others] = units
    for (const end of ["completed", "interrupted", ...declaredFailures(unit!)]) {
      const without = lives.filter((life) =>
        life.unit !== unit || (life.end !== end && (life.end as { tag?: string }).tag !== end)
      )
      assert.deepStrictEqual(gaps([unit!, ...others], without), [`${unit!.name}: ${end}`])
    }
  })
})

/** Which events there are, and that they tell what the caller got. */
const assertEnd = Effect.fnUntraced(function*({ end, tells, unit }: Life, { events, exit }: Observed) {
  const terminal = end === "completed" ? "execution_completed" : "execution_failed"
  assert.deepStrictEqual(
    events.map((event) => ExecutionEvent.isExecutionEvent(event) ? event.event_type : event.type),
    ["execution_started", ...tells, terminal]
  )
  if (end === "completed") return assert.isTrue(Exit.isSuccess(exit))
  const last = events.at(-1)
  assert(last !== undefined && "failure" in last && Exit.isFailure(exit))
  const { error, failure } = last
  if (end === "interrupted") {
    assert.isTrue(Cause.hasInterruptsOnly(exit.cause))
    return assert.deepStrictEqual(failure, { kind: "interrupt" })
  }
  const { code, constructor, message, retryable } = Cause.squash(exit.cause) as UnitError.Traits & Error
  const { value, ...others } = failure
  assert.deepStrictEqual({ error, ...others }, { error: message, kind: "fail", tag: end.tag, code, retryable })
  const schema = Schema.toCodecJson(unit.error)
  const decoded = yield* Schema.decodeUnknownEffect(schema)(JSON.parse(JSON.stringify(value)))
  assert.strictEqual((decoded as Error).constructor, constructor)
  assert.strictEqual((decoded as Error).message, message)
  assert.deepStrictEqual(yield* Schema.encodeUnknownEffect(schema)(decoded), value)
})

const assertNoSecrets = ({ secrets, sinks }: Observed) => {
  assert.isAbove(secrets.length, 0)
  assert.deepStrictEqual(secrets.flatMap(formsOf).filter((form) => sinks.includes(form)), [])
}

for (const unit of units) {
  describe(unit.name, () => {
    for (const life of lives.filter((life) => life.unit === unit)) {
      it.effect(nameOf(life), () =>
        Effect.gen(function*() {
          const called = yield* life.run("call")
          yield* assertEnd(life, called)
          assertNoSecrets(called)
          if (unit.kind === "query" || (life.end !== "completed" && !life.leavesTraces)) {
            assert.strictEqual(called.after, called.before)
          }
          const wired = yield* life.run("wire")
          yield* assertEnd(life, wired)
          assertNoSecrets(wired)
          assert.strictEqual(wired.comparable, called.comparable)
        }))
    }
  })
}
