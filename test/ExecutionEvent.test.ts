import { assert, describe, it } from "@effect/vitest"
import { CloudEvent } from "cloudevents"
import { Effect, Exit, Schema } from "effect"
import * as fs from "node:fs"
import * as EventPublisher from "../src/EventPublisher.ts"
import * as Execution from "../src/Execution.ts"
import * as ExecutionEvent from "../src/ExecutionEvent.ts"
import { instrument } from "../src/instrument.ts"
import { layerTest, TestEvents } from "../src/testing/index.ts"
import * as Unit from "../src/Unit.ts"
import * as UnitError from "../src/UnitError.ts"

class Declined extends UnitError.make<Declined>()("Declined", { code: "90002", retryable: true }, {
  last4: Schema.String,
  at: Schema.Date
}) {
  override get message() {
    return `The card ending in ${this.last4} was declined`
  }
}

const charge = Unit.command("billing.charge", {
  description: "Charges a card",
  input: { amount: Schema.Int, on: Schema.Date },
  output: { receipt: Schema.String, paid: Schema.BigInt },
  errors: [Declined],
  handler: ({ amount, on }) =>
    amount > 100
      ? Effect.fail(new Declined({ last4: "4242", at: on }))
      : Effect.succeed({ receipt: "r-1", paid: BigInt(amount) })
})

const on = new Date("2026-01-02T03:04:05.678Z")

let ids = 0
const repeatable = Execution.withIdGenerator(() => `00000000-0000-7000-8000-${String(++ids).padStart(12, "0")}`)

/** Events of every kind: completed, failed, dead, interrupted; nested, annotated. */
const lived = Effect.gen(function*() {
  ids = 0
  yield* charge({ amount: 3, on })
  yield* Effect.exit(charge({ amount: 300, on }))
  yield* Effect.exit(charge({ amount: 1.5, on }))
  const outer = instrument(() => Effect.exit(instrument(() => Effect.die(new Error("boom")), { name: "a.die" })()), {
    name: "a.outer",
    kind: "query"
  })
  yield* outer()
  yield* Effect.exit(instrument(() => Effect.interrupt, { name: "a.stop" })())
  const test = yield* TestEvents
  return yield* test.events
}).pipe(Execution.annotate({ request_id: "r-17", attempt: 2, dry: false }), repeatable, Effect.provide(layerTest))

describe("ExecutionEvent", () => {
  it.effect("has the fields of the wire, each event its own", () =>
    Effect.gen(function*() {
      const [started, completed, , failed] = yield* lived
      const id = "00000000-0000-7000-8000-000000000001"
      const source = started?.source
      assert.deepStrictEqual(ExecutionEvent.toJson(started!), {
        event_type: "execution_started",
        domain: "billing",
        unit_name: "billing.charge",
        kind: "command",
        id: `${id}:started`,
        timestamp: "1970-01-01T00:00:00.000Z",
        correlation_id: id,
        root_id: id,
        attributes: { request_id: "r-17", attempt: 2, dry: false },
        source: source!,
        sequence: 1,
        input: { amount: 3, on: "2026-01-02T03:04:05.678Z" }
      })
      assert.deepStrictEqual(ExecutionEvent.toJson(completed!), {
        event_type: "execution_completed",
        domain: "billing",
        unit_name: "billing.charge",
        kind: "command",
        id: `${id}:completed`,
        timestamp: "1970-01-01T00:00:00.000Z",
        correlation_id: id,
        root_id: id,
        attributes: { request_id: "r-17", attempt: 2, dry: false },
        source: source!,
        sequence: 2,
        duration_ms: 0,
        duration_ns: 0,
        output: { receipt: "r-1", paid: "3" }
      })
      const json = ExecutionEvent.toJson(failed!)
      assert.strictEqual(json.event_type === "execution_failed" && json.error, "The card ending in 4242 was declined")
      assert.deepStrictEqual(json.event_type === "execution_failed" && json.failure, {
        kind: "fail",
        tag: "Declined",
        code: "90002",
        retryable: true,
        value: { _tag: "Declined", last4: "4242", at: "2026-01-02T03:04:05.678Z" }
      })
    }))

  it.effect("carries a failure that decodes back to its class", () =>
    Effect.gen(function*() {
      const failed = (yield* lived)[3]
      assert.isTrue(failed?.event_type === "execution_failed")
      const value = failed?.event_type === "execution_failed" ? failed.failure.value : undefined
      const decoded = yield* Schema.decodeUnknownEffect(Schema.toCodecJson(charge.error))(value)
      assert.deepStrictEqual(decoded, new Declined({ last4: "4242", at: on }))
      assert.instanceOf(decoded, Declined)
    }))

  it.effect("round-trips through JSON, whatever became of the execution", () =>
    Effect.gen(function*() {
      for (const event of yield* lived) {
        const json: unknown = JSON.parse(JSON.stringify(ExecutionEvent.toJson(event)))
        const decoded = yield* ExecutionEvent.fromJson(json)
        assert.deepStrictEqual(ExecutionEvent.toJson(decoded), json)
        assert.isTrue(ExecutionEvent.isExecutionEvent(decoded))
        assert.strictEqual(ExecutionEvent.isTerminal(decoded), ExecutionEvent.isTerminal(event))
      }
    }))

  it.effect.prop(
    "round-trips through its Schema",
    { event: ExecutionEvent.ExecutionEvent },
    ({ event }) =>
      Effect.gen(function*() {
        const json: unknown = JSON.parse(JSON.stringify(ExecutionEvent.toJson(event)))
        assert.deepStrictEqual(
          ExecutionEvent.toJson(yield* ExecutionEvent.fromJson(json)),
          ExecutionEvent.toJson(event)
        )
      }),
    { arbitrary: { runs: 100 } }
  )

  it.effect("is read by those who do not know every field", () =>
    Effect.gen(function*() {
      const [event] = yield* lived
      const json = ExecutionEvent.toJson(event!)
      const decoded = yield* ExecutionEvent.fromJson({ ...json, added_in_2031: { deep: [1] } })
      assert.deepStrictEqual(ExecutionEvent.toJson(decoded), json)
    }))

  it.effect("says what does not fit", () =>
    Effect.gen(function*() {
      const [event] = yield* lived
      const error = yield* Effect.flip(ExecutionEvent.fromJson({ ...ExecutionEvent.toJson(event!), sequence: -1 }))
      assert.include(error.message, "sequence")
      assert.isTrue(Exit.isFailure(yield* Effect.exit(ExecutionEvent.fromJson("execution_started"))))
      assert.isTrue(Exit.isFailure(yield* Effect.exit(ExecutionEvent.fromJson({ event_type: "execution_paused" }))))
    }))

  it.effect("decodes what version 0.1.0 has stored", () =>
    Effect.gen(function*() {
      const stored: unknown = JSON.parse(
        fs.readFileSync(new URL("fixtures/events-0.1.0.json", import.meta.url), "utf8")
      )
      const events = yield* Schema.decodeUnknownEffect(Schema.Array(ExecutionEvent.ExecutionEvent))(stored)
      assert.deepStrictEqual(events.map(ExecutionEvent.toJson), stored as typeof events)
      assert.deepStrictEqual(new Set(events.map((event) => event.event_type)).size, 3)
    }))

  describe("as a CloudEvent", () => {
    it.effect("is valid for the CloudEvents SDK, and comes back", () =>
      Effect.gen(function*() {
        for (const event of yield* lived) {
          const cloudEvent = ExecutionEvent.toCloudEvent(event)
          // The SDK's constructor validates in strict mode, and throws.
          const sdk = new CloudEvent({ ...cloudEvent }, true)
          const wire: unknown = JSON.parse(sdk.toString())
          assert.strictEqual(sdk.id, event.id)
          assert.strictEqual(sdk.type, `effect-units.${event.event_type}`)
          assert.strictEqual(sdk.subject, event.unit_name)
          const back = yield* ExecutionEvent.fromCloudEvent(wire)
          assert.deepStrictEqual(ExecutionEvent.toJson(back), ExecutionEvent.toJson(event))
        }
      }))

    it.effect("carries the ambient span", () =>
      Effect.gen(function*() {
        const test = yield* TestEvents
        yield* Effect.withSpan(charge({ amount: 1, on }), "request")
        const [started] = yield* test.events
        assert.match(started?.trace_id ?? "", /^[0-9a-f]{32}$/)
        assert.strictEqual(
          ExecutionEvent.toCloudEvent(started!).traceparent,
          `00-${started?.trace_id}-${started?.span_id}-01`
        )
      }).pipe(Effect.provide(layerTest)))

    it.effect("is refused where its envelope or its event does not fit", () =>
      Effect.gen(function*() {
        const [event] = yield* lived
        const cloudEvent = ExecutionEvent.toCloudEvent(event!)
        const exits = yield* Effect.forEach([
          { ...cloudEvent, specversion: "0.3" },
          { ...cloudEvent, data: { hello: "world" } },
          null
        ], (wrong) => Effect.exit(ExecutionEvent.fromCloudEvent(wrong)))
        assert.isTrue(exits.every(Exit.isFailure))
      }))
  })

  it.effect("keeps large strings and blobs out, by size and hash", () =>
    Effect.gen(function*() {
      const test = yield* TestEvents
      const echo = instrument((text: string) => Effect.succeed(text), { name: "a.echo" })
      yield* echo("x".repeat(65_537))
      const [started] = yield* test.events
      assert.deepStrictEqual(started?.event_type === "execution_started" && started.input, {
        $truncated: true,
        bytes: 65_537,
        sha256: "1abe08ebecf1c18cab71f6fe28aaddf20268f85bad78bb9a72f88ca47c874662"
      })
    }).pipe(Effect.provide(layerTest)))

  it.effect("is encoded within the bounds that the publisher sets", () =>
    Effect.gen(function*() {
      const seen: Array<ExecutionEvent.ExecutionEvent> = []
      const publisher = EventPublisher.layer({
        maxFieldBytes: 4,
        publish: (event) => {
          if (ExecutionEvent.isExecutionEvent(event)) seen.push(event)
        }
      })
      yield* instrument((text: string) => Effect.succeed(text), { name: "a.echo" })("12345").pipe(
        Effect.provide(publisher)
      )
      assert.deepInclude(seen[0]?.event_type === "execution_started" && seen[0].input, { $truncated: true, bytes: 5 })
    }))
})
