import { assert, describe, it } from "@effect/vitest"
import { CloudEvent } from "cloudevents"
import { Cause, Clock, Effect, Exit, Redacted, Schema } from "effect"
import { createHash } from "node:crypto"
import * as fs from "node:fs"
import * as EventPublisher from "../src/EventPublisher.ts"
import * as Execution from "../src/Execution.ts"
import * as ExecutionEvent from "../src/ExecutionEvent.ts"
import { instrument } from "../src/instrument.ts"
import { layerTest, TestEvents } from "../src/testing/index.ts"
import * as Unit from "../src/Unit.ts"
import * as UnitError from "../src/UnitError.ts"
import { observe } from "./observe.ts"
import { oddities } from "./oddities.ts"

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

  it.effect("is enough for a consumer of the nine original fields", () =>
    Effect.gen(function*() {
      const Original = Schema.Struct({
        event_type: Schema.Literals(["execution_started", "execution_completed", "execution_failed"]),
        domain: Schema.String,
        unit_name: Schema.String,
        input: Schema.optionalKey(Schema.Json),
        output: Schema.optionalKey(Schema.Json),
        error: Schema.optionalKey(Schema.String),
        timestamp: Schema.String,
        correlation_id: Schema.String,
        duration_ms: Schema.optionalKey(Schema.Int)
      })
      const events = yield* lived
      const seen = yield* Effect.forEach(events.slice(0, 4), (event) =>
        Schema.decodeUnknownEffect(Original)(JSON.parse(JSON.stringify(ExecutionEvent.toJson(event)))))
      const common = { domain: "billing", unit_name: "billing.charge", timestamp: "1970-01-01T00:00:00.000Z" }
      const first = { ...common, correlation_id: "00000000-0000-7000-8000-000000000001" }
      const second = { ...common, correlation_id: "00000000-0000-7000-8000-000000000002" }
      assert.deepStrictEqual(seen, [
        { ...first, event_type: "execution_started", input: { amount: 3, on: "2026-01-02T03:04:05.678Z" } },
        { ...first, event_type: "execution_completed", output: { receipt: "r-1", paid: "3" }, duration_ms: 0 },
        { ...second, event_type: "execution_started", input: { amount: 300, on: "2026-01-02T03:04:05.678Z" } },
        { ...second, event_type: "execution_failed", error: "The card ending in 4242 was declined", duration_ms: 0 }
      ])
    }))

  describe("holds whatever it is given", () => {
    /** The wire objects of one execution, which have to be JSON, and decode. */
    const wire = Effect.fnUntraced(function*(self: Effect.Effect<unknown, unknown, EventPublisher.EventPublisher>) {
      const { events } = yield* observe(self)
      const texts = events.map((event) => JSON.stringify(event))
      const decoded = yield* Effect.forEach(texts, (text) => ExecutionEvent.fromJson(JSON.parse(text)))
      assert.deepStrictEqual(decoded.map(ExecutionEvent.toJson), events)
      return events
    })
    const around = { event_type: "", correlation_id: "id-1", unit_name: "a.odd", sequence: 0 }

    it.effect.each(oddities)(
      "%s, in its place and without harm to the rest",
      ([, value, json]) =>
        Effect.gen(function*() {
          const unit = Unit.command("a.odd", {
            description: "Takes and gives anything",
            input: { before: Schema.Int, odd: Schema.Unknown },
            output: { odd: Schema.Unknown, after: Schema.Date },
            errors: [Schema.Unknown],
            handler: ({ odd }) => Effect.succeed({ odd, after: new Date(0) })
          })
          for (const self of [unit({ before: 1, odd: value }), unit.execute({ before: 1, odd: value })]) {
            const [started] = yield* wire(self)
            assert.deepInclude(started, {
              ...around,
              event_type: "execution_started",
              sequence: 1,
              input: { before: 1, odd: json }
            })
          }
          const [, completed] = yield* wire(unit({ before: 1, odd: value }))
          assert.deepInclude(completed, {
            ...around,
            event_type: "execution_completed",
            sequence: 2,
            output: { odd: json, after: "1970-01-01T00:00:00.000Z" }
          })
          for (const [kind, end] of [["fail", Effect.fail(value)], ["die", Effect.die(value)]] as const) {
            const [, failed] = yield* wire(
              instrument(() => end, { name: "a.odd" })().pipe(Execution.annotate({ fine: 1 }))
            )
            assert.deepInclude(failed, {
              ...around,
              event_type: "execution_failed",
              sequence: 2,
              attributes: { fine: 1 }
            })
            assert.strictEqual(failed?.event_type === "execution_failed" && failed.failure.kind, kind)
          }
          // What a program without types sets.
          const attributes = { odd: value, fine: 1 } as unknown as Execution.Attributes
          const [annotated] = yield* wire(
            instrument(() => Effect.void, { name: "a.odd" })().pipe(Execution.annotate(attributes))
          )
          assert.deepStrictEqual(annotated?.attributes, {
            odd: typeof json === "object" ? JSON.stringify(json) : json,
            fine: 1
          })
        })
    )

    it.effect("a string of 20 MB, in every place", () =>
      Effect.gen(function*() {
        const huge = "z".repeat(20_000_000)
        const unit = instrument(
          (text: string) => Effect.fail(Object.assign(new Error(text), { _tag: text, code: text })),
          { name: "a.odd" }
        )
        const events = yield* wire(unit(huge).pipe(Execution.annotate({ text: huge })))
        const digest = createHash("sha256").update(huge).digest("hex")
        const marker = { $truncated: true, bytes: 20_000_000, sha256: digest }
        const text = JSON.stringify(marker)
        assert.isBelow(JSON.stringify(events).length, 5000)
        assert.deepInclude(events[0], { attributes: { text }, input: marker })
        assert.deepInclude(events[1], {
          attributes: { text },
          error: text,
          failure: { kind: "fail", tag: text, code: text, value: { name: "Error", message: marker } }
        })
      }))
  })

  describe("tells of failures", () => {
    const failed = Effect.fnUntraced(
      function*(self: Effect.Effect<unknown, unknown>, error?: Schema.Codec<unknown, unknown>) {
        const { events } = yield* observe(instrument(() => self, { name: "a.odd", error })())
        const event = events[1]
        assert.isTrue(event?.event_type === "execution_failed")
        return event?.event_type === "execution_failed" ? { error: event.error, failure: event.failure } : undefined
      }
    )
    const broken = (text: string) => (): never => {
      throw new Error(text)
    }

    it.effect("by their message, or else by what they are", () =>
      Effect.gen(function*() {
        const cases: ReadonlyArray<readonly [error: unknown, message: string]> = [
          ["a text", "a text"],
          [new Error("a message"), "a message"],
          [{ message: "of an object" }, "of an object"],
          [Object.assign(() => {}, { message: "of a function" }), "of a function"],
          [{ message: 3 }, "{\"message\":3}"],
          [{ why: 1n }, "{\"why\":\"1\"}"],
          [null, "null"],
          [undefined, "null"],
          [42, "42"],
          ["x".repeat(2000), "x".repeat(2000)],
          [{ why: "y".repeat(2000) }, `{"why":"${"y".repeat(992)}...`]
        ]
        for (const [error, message] of cases) {
          assert.strictEqual((yield* failed(Effect.fail(error)))?.error, message)
          assert.strictEqual((yield* failed(Effect.die(error)))?.error, message)
        }
      }))

    it.effect("of several reasons by the first typed failure, then the first defect", () =>
      Effect.gen(function*() {
        const reasons = [
          Cause.makeInterruptReason(1),
          Cause.makeDieReason("first defect"),
          Cause.makeFailReason("first failure"),
          Cause.makeFailReason("second failure"),
          Cause.makeDieReason("second defect")
        ]
        const of = (...indices: ReadonlyArray<number>) =>
          failed(Effect.failCause(Cause.fromReasons(reasons.filter((_, index) => indices.includes(index)))))
        assert.deepStrictEqual(yield* of(0, 1, 2, 3, 4), {
          error: "first failure",
          failure: { kind: "fail", value: "first failure" }
        })
        assert.deepStrictEqual(yield* of(0, 1, 4), { error: "first defect", failure: { kind: "die" } })
        assert.deepStrictEqual(yield* of(0), { error: "The execution was interrupted", failure: { kind: "interrupt" } })
        assert.deepStrictEqual(yield* of(), { error: "The execution was interrupted", failure: { kind: "interrupt" } })
      }))

    it.effect("whose properties throw or are odd, by what is left", () =>
      Effect.gen(function*() {
        const fighting = {
          get _tag() {
            return broken("no tag")()
          },
          get message() {
            return broken("no message")()
          },
          code: 7,
          retryable: "maybe",
          fine: 1
        }
        const shown = {
          _tag: { $unencodable: "no tag" },
          message: { $unencodable: "no message" },
          code: 7,
          retryable: "maybe",
          fine: 1
        }
        assert.deepStrictEqual(yield* failed(Effect.fail(fighting)), {
          error: JSON.stringify(shown),
          failure: { kind: "fail", value: shown }
        })
        assert.deepStrictEqual(yield* failed(Effect.die(fighting)), {
          error: JSON.stringify(shown),
          failure: { kind: "die" }
        })
      }))

    it.effect("without the secrets that they hold, in their message, tag and code", () =>
      Effect.gen(function*() {
        class Leaky extends UnitError.make<Leaky>()("Leaky", { code: "90003", retryable: false }, {
          key: Schema.Redacted(Schema.String),
          url: Schema.String
        }) {
          override get message() {
            return `Could not reach ${this.url}`
          }
        }
        const error = new Leaky({ key: Redacted.make("marker 4711"), url: "http://host/?key=marker%204711" })
        assert.deepStrictEqual(yield* failed(Effect.fail(error), Leaky), {
          error: "Could not reach http://host/?key=<redacted>",
          failure: {
            kind: "fail",
            tag: "Leaky",
            code: "90003",
            retryable: false,
            value: { _tag: "Leaky", key: "<redacted>", url: "http://host/?key=<redacted>" }
          }
        })
        // The message is shortened after that, so that no part of a secret is left at its end.
        const Bag = Schema.Struct({ key: Schema.Redacted(Schema.String), filler: Schema.String, text: Schema.String })
        const bag = {
          key: Redacted.make("marker-4711"),
          filler: "f".repeat(950),
          text: "marker-4711 marker-4711 marker-4711"
        }
        assert.notInclude(JSON.stringify(yield* failed(Effect.fail(bag), Bag)), "marker")
      }))
  })

  it.effect("has a time even where the clock has none", () =>
    Effect.gen(function*() {
      const clock = yield* Clock.Clock
      const odd = Object.assign(Object.create(clock), { currentTimeMillisUnsafe: () => NaN })
      const { events } = yield* observe(
        Effect.provideService(instrument(() => Effect.void, { name: "a.odd" })(), Clock.Clock, odd)
      )
      assert.deepStrictEqual(events.map((event) => event.timestamp), [
        "1970-01-01T00:00:00.000Z",
        "1970-01-01T00:00:00.000Z"
      ])
    }))
})
