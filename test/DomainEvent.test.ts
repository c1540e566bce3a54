import { assert, describe, it } from "@effect/vitest"
import { CloudEvent } from "cloudevents"
import { Effect, Redacted, Schema } from "effect"
import * as DomainEvent from "../src/DomainEvent.ts"
import { layerNoop } from "../src/EventPublisher.ts"
import * as Execution from "../src/Execution.ts"
import { isExecutionEvent } from "../src/ExecutionEvent.ts"
import { instrument } from "../src/instrument.ts"
import { layerTest, TestEvents } from "../src/testing/index.ts"
import * as Unit from "../src/Unit.ts"

const Shipped = DomainEvent.define("order.shipped", {
  order_id: Schema.String,
  at: Schema.Date,
  token: Schema.optionalKey(Schema.RedactedFromValue(Schema.String))
})

const ship = instrument(
  () => Shipped.publish({ order_id: "o-1", at: new Date(0), token: Redacted.make("s3cret-token") }),
  { name: "order.ship" }
)

describe("DomainEvent", () => {
  it.effect("tells what happened inside of an execution, without secrets", () =>
    Effect.gen(function*() {
      const test = yield* TestEvents
      yield* ship().pipe(Execution.annotate({ request_id: "r-1" }))
      const [started, completed] = yield* test.events
      const [event] = yield* test.domainEvents
      assert.deepStrictEqual(DomainEvent.toJson(event!), {
        type: "order.shipped",
        id: event!.id,
        domain: "order",
        timestamp: "1970-01-01T00:00:00.000Z",
        correlation_id: started!.correlation_id,
        root_id: started!.correlation_id,
        unit_name: "order.ship",
        attributes: { request_id: "r-1" },
        source: started!.source,
        sequence: 2,
        payload: { order_id: "o-1", at: "1970-01-01T00:00:00.000Z", token: "<redacted>" }
      })
      assert.deepStrictEqual([started?.sequence, completed?.sequence], [1, 3])
    }).pipe(Effect.provide(layerTest)))

  it.effect("stands by itself outside of any execution", () =>
    Effect.gen(function*() {
      yield* Shipped.publish({ order_id: "o-2", at: new Date(0) })
      const [event] = yield* (yield* TestEvents).domainEvents
      assert.deepStrictEqual([event?.correlation_id, event?.unit_name, event?.payload], [
        undefined,
        undefined,
        { order_id: "o-2", at: "1970-01-01T00:00:00.000Z" }
      ])
    }).pipe(Effect.provide(layerTest)))

  it.effect("has the ids of the span that was active around it, inside and outside of executions", () =>
    Effect.gen(function*() {
      const publish = Effect.andThen(Shipped.publish({ order_id: "o-3", at: new Date(0) }), ship())
      const { spanId, traceId } = yield* Effect.withSpan(Effect.andThen(publish, Effect.currentSpan), "request")
      const events = yield* (yield* TestEvents).domainEvents
      for (const event of events) {
        const decoded = yield* DomainEvent.fromJson(JSON.parse(JSON.stringify(DomainEvent.toJson(event))))
        assert.deepStrictEqual([decoded.trace_id, decoded.span_id], [traceId, spanId])
        assert.strictEqual(DomainEvent.toCloudEvent(event).traceparent, `00-${traceId}-${spanId}-01`)
      }
      assert.deepStrictEqual(events.map(({ unit_name }) => unit_name), [undefined, "order.ship"])
    }).pipe(Effect.provide(layerTest)))

  it.effect("shows its payload as it was when it was published", () =>
    Effect.gen(function*() {
      const Progress = DomainEvent.define("order.progress", {
        done: Schema.Int,
        files: Schema.Array(Schema.Struct({ name: Schema.String }))
      })
      const state = { done: 0, files: [{ name: "a" }] }
      for (const done of [1, 2, 3]) {
        state.done = done
        yield* Progress.publish(state)
        state.files.push({ name: `f${done}` })
      }
      const events = yield* (yield* TestEvents).domainEvents
      const names = ["a", "f1", "f2"].map((name) => ({ name }))
      assert.deepStrictEqual(events.map((event) => event.payload), [
        { done: 1, files: names.slice(0, 1) },
        { done: 2, files: names.slice(0, 2) },
        { done: 3, files: names }
      ])
    }).pipe(Effect.provide(layerTest)))

  it.effect("does not repeat the secrets of the execution around it", () =>
    Effect.gen(function*() {
      const Noted = DomainEvent.define("order.noted", { text: Schema.String })
      const login = Unit.command("order.login", {
        description: "Says more than it should",
        input: { password: Unit.secret(Schema.String) },
        output: {},
        errors: [],
        handler: ({ password }) => Effect.as(Noted.publish({ text: `It is ${password}` }), {})
      })
      yield* login({ password: "marker-4711" }).pipe(Execution.annotate({ note: "not marker-4711" }))
      const [event] = yield* (yield* TestEvents).domainEvents
      assert.deepStrictEqual([event?.payload, event?.attributes], [{ text: "It is <redacted>" }, {
        note: "not <redacted>"
      }])
    }).pipe(Effect.provide(layerTest)))

  it.effect("is never mistaken for a lifecycle event", () =>
    Effect.gen(function*() {
      yield* ship()
      const test = yield* TestEvents
      const [started] = yield* test.events
      const [event] = yield* test.domainEvents
      assert.deepStrictEqual([isExecutionEvent(event), DomainEvent.isDomainEvent(event)], [false, true])
      assert.deepStrictEqual([isExecutionEvent(started), DomainEvent.isDomainEvent(started)], [true, false])
      assert.isFalse("event_type" in DomainEvent.toJson(event!))
    }).pipe(Effect.provide(layerTest)))

  it.effect("round-trips through JSON and CloudEvents", () =>
    Effect.gen(function*() {
      yield* ship()
      const [event] = yield* (yield* TestEvents).domainEvents
      const json: unknown = JSON.parse(JSON.stringify(DomainEvent.toJson(event!)))
      assert.deepStrictEqual(DomainEvent.toJson(yield* DomainEvent.fromJson(json)), json)
      const sdk = new CloudEvent({ ...DomainEvent.toCloudEvent(event!) }, true)
      assert.strictEqual(sdk.type, "effect-units.order.shipped")
      assert.deepStrictEqual(
        DomainEvent.toJson(yield* DomainEvent.fromCloudEvent(JSON.parse(sdk.toString()))),
        json
      )
    }).pipe(Effect.provide(layerTest)))

  it.effect.prop(
    "round-trips through its Schema",
    { event: DomainEvent.DomainEvent },
    ({ event }) =>
      Effect.gen(function*() {
        const json: unknown = JSON.parse(JSON.stringify(DomainEvent.toJson(event)))
        // Text against text, as JSON has no negative zero.
        assert.strictEqual(JSON.stringify(DomainEvent.toJson(yield* DomainEvent.fromJson(json))), JSON.stringify(json))
      }),
    { arbitrary: { runs: 50 } }
  )

  it.effect("costs nothing under the noop publisher", () => Effect.provide(ship(), layerNoop))
})
