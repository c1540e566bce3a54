import { assert, describe, it } from "@effect/vitest"
import { Schema } from "effect"
import type { DomainEvent } from "../../src/DomainEvent.ts"
import type { ExecutionCompleted, ExecutionFailed, ExecutionStarted } from "../../src/ExecutionEvent.ts"
import { format } from "../../src/internal/consoleLine.ts"

const common = {
  kind: "command",
  domain: "model",
  unit_name: "model.pull",
  timestamp: "2026-01-02T03:04:05.678Z",
  correlation_id: "0192f000-0000-7000-8000-0000000000aa",
  root_id: "0192f000-0000-7000-8000-0000000000aa",
  source: "test",
  sequence: 1
} as const

const started: ExecutionStarted = {
  ...common,
  event_type: "execution_started",
  id: `${common.correlation_id}:started`,
  input: { path: "/m" }
}
const completed: ExecutionCompleted = {
  ...common,
  event_type: "execution_completed",
  id: `${common.correlation_id}:completed`,
  duration_ms: 1,
  duration_ns: 1_250_000,
  output: [1]
}
const failed: ExecutionFailed = {
  ...common,
  event_type: "execution_failed",
  id: `${common.correlation_id}:failed`,
  duration_ms: 1,
  duration_ns: 1_250_000,
  error: "No such model",
  failure: { kind: "fail", tag: "ModelNotFound", code: "00100" }
}
const created: DomainEvent = {
  type: "model.created",
  id: "0192f000-0000-7000-8000-0000000000bb",
  domain: "model",
  timestamp: common.timestamp,
  source: "test",
  sequence: 1,
  payload: { model_id: "m-1" }
}

describe("format", () => {
  it("says when, what, who and with what", () => {
    assert.strictEqual(format(started, false), `03:04:05.678 > model.pull [000000aa] {"path":"/m"}`)
    assert.strictEqual(format(completed, false), "03:04:05.678 + model.pull [000000aa] 1.3 ms [1]")
    assert.strictEqual(
      format(failed, false),
      `03:04:05.678 x model.pull [000000aa] 1.3 ms ModelNotFound 00100: "No such model"`
    )
    assert.strictEqual(format(created, false), `03:04:05.678 · model.created {"model_id":"m-1"}`)
  })

  it("names the parent of an execution, and the execution of a domain event", () => {
    assert.strictEqual(
      format({ ...started, parent_id: "0192f000-0000-7000-8000-0000000000cc" }, false),
      `03:04:05.678 > model.pull [000000aa < 000000cc] {"path":"/m"}`
    )
    assert.strictEqual(
      format({ ...created, correlation_id: common.correlation_id }, false),
      `03:04:05.678 · model.created [000000aa] {"model_id":"m-1"}`
    )
  })

  it("leaves out what is not there", () => {
    const { input: _input, ...noInput } = started
    const { output: _output, ...noOutput } = completed
    assert.strictEqual(format(noInput, false), "03:04:05.678 > model.pull [000000aa]")
    assert.strictEqual(format(noOutput, false), "03:04:05.678 + model.pull [000000aa] 1.3 ms")
  })

  it("says of a failure what is known of it", () => {
    const why = (failure: ExecutionFailed["failure"]) =>
      format({ ...failed, failure }, false).replace("03:04:05.678 x model.pull [000000aa] 1.3 ms ", "")
    assert.strictEqual(why({ kind: "fail", tag: "Odd" }), `Odd: "No such model"`)
    assert.strictEqual(why({ kind: "fail", code: "00100" }), `fail 00100: "No such model"`)
    assert.strictEqual(why({ kind: "die", tag: "TypeError" }), `TypeError: "No such model"`)
    assert.strictEqual(why({ kind: "interrupt" }), `interrupt: "No such model"`)
  })

  it("gives durations in the unit that fits", () => {
    const duration = (duration_ns: number) =>
      format({ ...completed, duration_ns, output: 0 }, false).replace("03:04:05.678 + model.pull [000000aa] ", "")
        .slice(0, -2)
    assert.deepStrictEqual([0, 999, 1_499_999, 59_940_000, 1e9, 7.2e12].map(duration), [
      "0 µs",
      "1 µs",
      "1.5 ms",
      "59.9 ms",
      "1.00 s",
      "7200.00 s"
    ])
  })

  it("is in colour where it may be", () => {
    assert.strictEqual(
      format(failed, true),
      "\u001b[2m03:04:05.678\u001b[0m \u001b[31mx\u001b[0m model.pull \u001b[2m[000000aa]\u001b[0m 1.3 ms " +
        `ModelNotFound 00100: "No such model"`
    )
    assert.strictEqual(
      format(created, true),
      `\u001b[2m03:04:05.678\u001b[0m \u001b[33m·\u001b[0m model.created {"model_id":"m-1"}`
    )
  })

  it("cuts what is long, between characters", () => {
    const line = format({ ...started, input: "🙂".repeat(1000) }, false)
    assert.isTrue(line.isWellFormed())
    assert.isTrue(line.endsWith("..."))
    assert.strictEqual(line.length, "03:04:05.678 > model.pull [000000aa] ".length + 120)
    const exact = "a".repeat(118)
    assert.isTrue(format({ ...started, input: exact }, false).endsWith(`"${exact}"`))
  })

  const hostile = "\u0000\u0007\u001b[2J\r\n\t\u007f\u009b31m\u2028\u2029\u202e\u2066"

  it("has one line and no control character, whatever an event holds", () => {
    const events = [
      { ...started, unit_name: hostile, correlation_id: hostile, parent_id: hostile, input: { [hostile]: hostile } },
      { ...completed, unit_name: hostile, output: hostile },
      { ...failed, error: hostile, failure: { kind: "fail", tag: hostile, code: hostile } },
      { ...created, type: hostile, correlation_id: hostile, payload: [hostile] }
    ] as const
    for (const event of events) {
      assert.notMatch(
        format({ ...event, timestamp: hostile.repeat(3) }, false),
        /[\p{Cc}\p{Zl}\p{Zp}\p{Bidi_Control}]/u
      )
    }
  })

  it.prop("has one line and no control character, for any text", [Schema.String], ([text]) => {
    const line = format({ ...failed, unit_name: text, error: text, failure: { kind: "fail", tag: text } }, false)
    assert.notMatch(line, /[\p{Cc}\p{Zl}\p{Zp}]/u)
  })
})
