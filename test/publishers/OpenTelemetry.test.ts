import { assert, describe, it } from "@effect/vitest"
import {
  Clock,
  Config,
  ConfigProvider,
  Context,
  Deferred,
  type Duration,
  Effect,
  Exit,
  Fiber,
  Layer,
  Logger,
  Metric,
  Redacted,
  Schema,
  Scope,
  Stream
} from "effect"
import { FetchHttpClient } from "effect/http"
import { OtlpSerialization, OtlpTracer } from "effect/observability"
import { TestClock } from "effect/testing"
import { createHash } from "node:crypto"
import * as DomainEvent from "../../src/DomainEvent.ts"
import * as EventPublisher from "../../src/EventPublisher.ts"
import * as Execution from "../../src/Execution.ts"
import * as ExecutionEvent from "../../src/ExecutionEvent.ts"
import { instrument, instrumentEffect, instrumentStream } from "../../src/instrument.ts"
import * as OpenTelemetry from "../../src/publishers/OpenTelemetry.ts"
import { completed, domainEvent, failed, started } from "../fixtures/events.ts"
import * as OtlpReceiver from "./OtlpReceiver.ts"

const receiver = Effect.acquireRelease(
  Effect.promise(() => OtlpReceiver.start()),
  (receiver) => Effect.promise(() => receiver.close())
)

const turn = Effect.promise(() => new Promise(setImmediate))

/** Waits for what sockets bring about; they run in real time, whatever the clock of the test says. */
const until = (condition: () => boolean): Effect.Effect<void> =>
  Effect.suspend(() => condition() ? Effect.void : Effect.andThen(turn, until(condition)))

/** The same, while the clock of the test runs. */
const untilInTime = (condition: () => boolean): Effect.Effect<void> =>
  Effect.suspend(() =>
    condition()
      ? Effect.void
      : Effect.andThen(Effect.andThen(TestClock.adjust("100 millis"), turn), untilInTime(condition))
  )

type Options = Partial<OpenTelemetry.TraceOptions & OpenTelemetry.MetricOptions>

/** A publisher in a scope that the test closes, its metrics apart from others, and all that it logs. */
const publishing = Effect.fnUntraced(function*(
  receiver: OtlpReceiver.OtlpReceiver,
  options: Options = {},
  make: typeof OpenTelemetry.layer = OpenTelemetry.layerTraces
) {
  const scope = yield* Scope.make()
  yield* Effect.addFinalizer(() => Scope.close(scope, Exit.void))
  const logged: Array<string> = []
  const logger = Logger.make(({ logLevel, message }) => {
    const text = String(message)
    if (!text.startsWith("A test is using time")) logged.push(`${logLevel} ${text}`)
  })
  const layer = make({ url: receiver.url, resource: { serviceName: "test" }, ...options }).pipe(
    Layer.provide(FetchHttpClient.layer),
    Layer.provideMerge(Layer.merge(Layer.succeed(Metric.MetricRegistry, new Map()), Logger.layer([logger])))
  )
  const context = yield* Layer.buildWithScope(layer, scope)
  const publisher = Context.get(context, EventPublisher.EventPublisher)
  const count = (id: string) =>
    Effect.map(
      Effect.provideContext(Metric.snapshot, context),
      (all) =>
        all.reduce((sum, one) => one.id === id && one.type === "Counter" ? sum + Number(one.state.count) : sum, 0)
    )
  const offer = (...events: ReadonlyArray<EventPublisher.Event>) =>
    Effect.sync(() => {
      for (const event of events) publisher.offer(event)
    })
  return { context, publisher, logged, count, offer, close: Scope.close(scope, Exit.void) }
})

/** Runs an effect with a publisher, closes it, and gives the spans that arrived, by name. */
const exported = Effect.fnUntraced(function*<A, E>(
  program: Effect.Effect<A, E, EventPublisher.EventPublisher>,
  options: Options = {}
) {
  const collector = yield* receiver
  const { close, context } = yield* publishing(collector, options)
  yield* Effect.exit(Effect.provideContext(program, context))
  yield* close
  return byName(collector.spans())
})

const byName = (spans: ReadonlyArray<OtlpReceiver.Span>): Record<string, OtlpReceiver.Span> => {
  assert.strictEqual(new Set(spans.map(({ name }) => name)).size, spans.length)
  return Object.fromEntries(spans.map((span) => [span.name, span]))
}

const unit = <A, E, R>(name: string, effect: Effect.Effect<A, E, R>, kind?: "query") =>
  instrumentEffect(effect, { name, ...(kind === undefined ? {} : { kind }) })

const uuid = (n: number) => `0190f3e2-0000-7000-8000-${String(n).padStart(12, "0")}`

const Progress = DomainEvent.define("test.progress", {
  done: Schema.Int,
  file: Schema.String,
  fast: Schema.Boolean,
  sizes: Schema.Array(Schema.Int)
})

const progress = (done: number) => Progress.publish({ done, file: "a.gguf", fast: true, sizes: [1, 2] })

class NoRoom extends Schema.TaggedError<NoRoom>()("NoRoom", { code: Schema.String, retryable: Schema.Boolean }) {
  override get message(): string {
    return "the disk is full"
  }
}

describe("the tree", () => {
  it.effect("a child's span is below its parent's, in one trace that is the root execution's", () =>
    Effect.gen(function*() {
      let n = 0
      const leaf = (name: string) => unit(name, Effect.sleep("10 millis"), "query")
      const program = unit(
        "test.root",
        Effect.gen(function*() {
          yield* Effect.sleep("5 millis")
          yield* unit("test.middle", Effect.andThen(leaf("test.a"), leaf("test.b")))
          yield* leaf("test.c")
          yield* Effect.sleep("5 millis")
        })
      ).pipe(Execution.withIdGenerator(() => uuid(++n)))
      const collector = yield* receiver
      const { close, context } = yield* publishing(collector)
      const running = yield* Effect.forkChild(Effect.provideContext(program, context))
      yield* TestClock.adjust("40 millis")
      yield* Fiber.join(running)
      yield* close
      const spans = byName(collector.spans())
      const seen = Object.fromEntries(
        Object.values(spans).map((
          { endTimeUnixNano, kind, name, parentSpanId, spanId, startTimeUnixNano, traceId }
        ) => [name, { endTimeUnixNano, kind, parentSpanId, spanId, startTimeUnixNano, traceId }])
      )
      const traceId = "0190f3e2000070008000000000000001"
      const spanId = (n: number) => `80000000000000${String(n).padStart(2, "0")}`
      const expected = (own: number, parent: number | undefined, start: number, end: number) => ({
        traceId,
        spanId: spanId(own),
        parentSpanId: parent === undefined ? undefined : spanId(parent),
        kind: 1,
        startTimeUnixNano: String(start * 1e6),
        endTimeUnixNano: String(end * 1e6)
      })
      assert.deepStrictEqual(seen, {
        "test.root": expected(1, undefined, 0, 40),
        "test.middle": expected(2, 1, 5, 25),
        "test.a": expected(3, 2, 5, 15),
        "test.b": expected(4, 2, 15, 25),
        "test.c": expected(5, 1, 25, 35)
      })
      assert.deepStrictEqual(spans["test.b"]!.attributes, {
        "effect_units.domain": "test",
        "effect_units.kind": "query",
        "effect_units.correlation_id": uuid(4),
        "effect_units.root_id": uuid(1)
      })
      assert.deepStrictEqual(spans["test.b"]!.status, { code: 0 })
      assert.strictEqual(spanId(4), OpenTelemetry.spanId(uuid(4)))
      assert.strictEqual(traceId, OpenTelemetry.traceId(uuid(1)))
    }))

  it.effect("ids that are no random UUID become the beginning of their SHA-256", () =>
    Effect.sync(() => {
      const hash = createHash("sha256").update("job-1").digest("hex")
      assert.strictEqual(OpenTelemetry.traceId("job-1"), hash.slice(0, 32))
      assert.strictEqual(OpenTelemetry.spanId("job-1"), hash.slice(16, 32))
      // The second half of version 1 is the machine, and the same in every id.
      const [a, b] = ["c232ab00-9414-11ec-b3c8-9f6bdeced846", "c232ab01-9414-11ec-b3c8-9f6bdeced846"].map(
        OpenTelemetry.spanId
      )
      assert.notStrictEqual(a, b)
    }))

  it.effect("a child that its parent did not wait for is still below it", () =>
    Effect.gen(function*() {
      const collector = yield* receiver
      const { close, context } = yield* publishing(collector)
      const go = yield* Deferred.make<void>()
      const daemon = yield* Effect.provideContext(
        unit("test.parent", Effect.forkDetach(unit("test.daemon", Deferred.await(go)))),
        context
      )
      yield* Deferred.succeed(go, undefined)
      yield* Fiber.join(daemon)
      yield* close
      const spans = byName(collector.spans())
      assert.strictEqual(spans["test.daemon"]!.parentSpanId, spans["test.parent"]!.spanId)
      assert.strictEqual(spans["test.daemon"]!.traceId, spans["test.parent"]!.traceId)
    }))

  it.effect("what goes on in another process is below its parent there", () =>
    Effect.gen(function*() {
      const here = unit("test.there", Effect.void).pipe(Execution.continueFrom({
        correlation_id: uuid(7),
        parent_id: uuid(6),
        root_id: uuid(5),
        unit_name: "test.here",
        domain: "test",
        kind: "command",
        attributes: undefined
      }))
      const span = (yield* exported(here))["test.there"]!
      assert.strictEqual(span.traceId, OpenTelemetry.traceId(uuid(5)))
      assert.strictEqual(span.parentSpanId, OpenTelemetry.spanId(uuid(7)))
    }))

  it.effect("what goes on in another process is in the trace of its tree there, whose root was inside of a span", () =>
    Effect.gen(function*() {
      const [here, there] = [yield* receiver, yield* receiver]
      const [first, second] = [yield* publishing(here), yield* publishing(there)]
      const nested = unit("test.root", unit("test.parent", Effect.all([Execution.current, Effect.currentSpan])))
      const [execution, request] = yield* Effect.provideContext(Effect.withSpan(nested, "request"), first.context)
      // What a message carries.
      const { correlation_id, domain, kind, parent_id, root_id, trace_id, unit_name } = execution ??
        assert.fail("no execution")
      assert.strictEqual(trace_id, request.traceId)
      const child = unit("test.child", unit("test.grandchild", Execution.current))
      const continued = Execution.continueFrom(child, {
        correlation_id,
        domain,
        kind,
        parent_id,
        root_id,
        trace_id,
        unit_name,
        attributes: undefined
      })
      assert.strictEqual((yield* Effect.provideContext(continued, second.context))?.trace_id, request.traceId)
      yield* first.close
      yield* second.close
      const spans = byName([...here.spans(), ...there.spans()])
      assert.deepStrictEqual(
        ["test.root", "test.parent", "test.child", "test.grandchild"].map((name) => {
          const { links, parentSpanId, traceId } = spans[name]!
          return [traceId, parentSpanId, links]
        }),
        [request.spanId, ...["test.root", "test.parent", "test.child"].map((name) => spans[name]!.spanId)].map(
          (parent) => [request.traceId, parent, []]
        )
      )
    }))
})

describe("beside the application's own spans", () => {
  /** Everything that goes to the receiver: the application's spans by Effect's tracer, and the executions. */
  const together = Effect.fnUntraced(function*<A, E>(program: Effect.Effect<A, E, EventPublisher.EventPublisher>) {
    const collector = yield* receiver
    const memory = yield* Layer.build(EventPublisher.layerMemory)
    const tracer = OtlpTracer.layer({ url: `${collector.url}/v1/traces`, resource: { serviceName: "test" } }).pipe(
      Layer.provide([OtlpSerialization.layerJson, FetchHttpClient.layer])
    )
    const layer = EventPublisher.combine(
      OpenTelemetry.layerTraces({ url: collector.url, resource: { serviceName: "test" } }).pipe(
        Layer.provide(FetchHttpClient.layer)
      ),
      Layer.succeedContext(memory)
    )
    yield* Effect.provide(program, Layer.merge(tracer, layer))
    const spans = byName(collector.spans())
    return { spans, events: yield* Context.get(memory, EventPublisher.Memory).events }
  })

  it.effect("a tree hangs below the span around it, and the ids in its events are those of exported spans", () =>
    Effect.gen(function*() {
      const { events, spans } = yield* together(
        unit("test.root", unit("test.child", Effect.void)).pipe(Effect.withSpan("request"))
      )
      const request = spans["request"]!
      assert.strictEqual(spans["test.root"]!.parentSpanId, request.spanId)
      assert.strictEqual(spans["test.child"]!.parentSpanId, spans["test.root"]!.spanId)
      assert.deepStrictEqual(
        Object.values(spans).map(({ traceId }) => traceId),
        Array.from({ length: 3 }, () => request.traceId)
      )
      assert.deepStrictEqual(
        events.map(({ span_id, trace_id }) => ({ span_id, trace_id })),
        Array.from({ length: 4 }, () => ({ span_id: request.spanId, trace_id: request.traceId }))
      )
      for (const event of events) {
        assert.strictEqual(spans[event.unit_name]!.spanId, OpenTelemetry.spanId(event.correlation_id))
      }
      assert.deepStrictEqual([spans["test.root"]!.links, spans["test.child"]!.links], [[], []])
    }))

  it.effect("a child in a span that its parent opened stays below its parent, with a link to the span", () =>
    Effect.gen(function*() {
      const { spans } = yield* together(
        unit("test.root", Effect.withSpan(unit("test.child", Effect.void), "step")).pipe(Effect.withSpan("request"))
      )
      const step = spans["step"]!
      assert.strictEqual(spans["test.child"]!.parentSpanId, spans["test.root"]!.spanId)
      assert.deepStrictEqual(
        spans["test.child"]!.links.map(({ spanId, traceId }) => ({ spanId, traceId })),
        [{ spanId: step.spanId, traceId: step.traceId }]
      )
    }))

  it.effect("a tree that began without a span stays in its own trace, wherever a handler opens one", () =>
    Effect.gen(function*() {
      const { spans } = yield* together(
        unit("test.root", Effect.withSpan(unit("test.child", Effect.void), "step"))
      )
      assert.strictEqual(spans["test.child"]!.traceId, spans["test.root"]!.traceId)
      assert.notStrictEqual(spans["step"]!.traceId, spans["test.root"]!.traceId)
      assert.deepStrictEqual(spans["test.child"]!.links.map(({ spanId }) => spanId), [spans["step"]!.spanId])
    }))

  it.effect("a root whose trace is not that of its tree, as a part of the events was kept back, has no parent in it", () =>
    Effect.gen(function*() {
      const collector = yield* receiver
      const { close, offer } = yield* publishing(collector)
      const ambient = (digit: string) => ({ trace_id: digit.repeat(32), span_id: digit.repeat(16) })
      yield* offer(
        { ...completed(uuid(2), { unit: "test.child", parent: uuid(1) }), ...ambient("b") },
        { ...completed(uuid(1), { unit: "test.root" }), ...ambient("a") }
      )
      yield* close
      const spans = byName(collector.spans())
      assert.deepStrictEqual(
        ["test.root", "test.child"].map((name) => [spans[name]!.traceId, spans[name]!.parentSpanId]),
        [["b".repeat(32), undefined], ["b".repeat(32), OpenTelemetry.spanId(uuid(1))]]
      )
    }))

  it.effect("a domain event that comes before all else of its tree does not take the tree out of the trace around it", () =>
    Effect.gen(function*() {
      const collector = yield* receiver
      const { close, offer } = yield* publishing(collector)
      const ambient = { trace_id: "a".repeat(32), span_id: "b".repeat(16) }
      yield* offer(
        domainEvent("first", { correlation: uuid(1) }),
        { ...completed(uuid(1), { unit: "test.root" }), ...ambient }
      )
      yield* close
      const { parentSpanId, traceId } = byName(collector.spans())["test.root"]!
      assert.deepStrictEqual([traceId, parentSpanId], [ambient.trace_id, ambient.span_id])
    }))

  it.effect("the same events make the same spans after they were stored and read back", () =>
    Effect.gen(function*() {
      const program = Effect.exit(
        unit("test.root", Effect.andThen(unit("test.child", progress(1)), Effect.fail("no")))
      ).pipe(Effect.withSpan("request"))
      const collector = yield* receiver
      const memory = yield* Layer.build(EventPublisher.layerMemory)
      const { close, context } = yield* publishing(collector)
      const both = yield* Layer.build(EventPublisher.combine(
        Layer.succeed(EventPublisher.EventPublisher, Context.get(context, EventPublisher.EventPublisher)),
        Layer.succeedContext(memory)
      ))
      yield* Effect.provideContext(program, both)
      yield* close
      const again = yield* receiver
      const second = yield* publishing(again)
      for (const event of yield* Context.get(memory, EventPublisher.Memory).all) {
        const decoded = ExecutionEvent.isExecutionEvent(event)
          ? yield* ExecutionEvent.fromJson(JSON.parse(JSON.stringify(ExecutionEvent.toJson(event))))
          : yield* DomainEvent.fromJson(JSON.parse(JSON.stringify(DomainEvent.toJson(event))))
        yield* second.offer(decoded)
      }
      yield* second.close
      assert.strictEqual(collector.spans().length, 2)
      assert.deepStrictEqual(again.spans(), collector.spans())
    }))
})

describe("what a span says", () => {
  it.effect("of failures", () =>
    Effect.gen(function*() {
      const noRoom = new NoRoom({ code: "00507", retryable: true })
      const spans = yield* exported(
        Effect.forEach([
          unit("test.fail", Effect.fail(noRoom)),
          unit("test.die", Effect.die(new TypeError("a bug"))),
          unit("test.interrupt", Effect.interrupt)
        ], Effect.exit)
      )
      const said = (name: string) => {
        const { attributes, status } = spans[name]!
        return {
          status,
          attributes: Object.fromEntries(
            Object.entries(attributes).filter(([key]) => key.startsWith("effect_units.failure") || key === "error.type")
          )
        }
      }
      assert.deepStrictEqual(said("test.fail"), {
        status: { code: 2, message: "the disk is full" },
        attributes: {
          "effect_units.failure.kind": "fail",
          "effect_units.failure.tag": "NoRoom",
          "effect_units.failure.code": "00507",
          "effect_units.failure.retryable": true,
          "error.type": "NoRoom"
        }
      })
      assert.deepStrictEqual(said("test.die"), {
        status: { code: 2, message: "a bug" },
        attributes: {
          "effect_units.failure.kind": "die",
          "effect_units.failure.tag": "TypeError",
          "error.type": "TypeError"
        }
      })
      assert.deepStrictEqual(said("test.interrupt"), {
        status: { code: 0 },
        attributes: { "effect_units.failure.kind": "interrupt" }
      })
    }))

  it.effect("of an execution whose process is gone", () =>
    Effect.gen(function*() {
      const collector = yield* receiver
      const { close, offer } = yield* publishing(collector)
      const failure = { kind: "abandoned" } as const
      yield* offer(failed("gone", { at: 60_000, duration_ms: 50_000, error: "its process ended", failure }))
      yield* close
      const span = byName(collector.spans())["model.pull"]!
      assert.deepStrictEqual(
        [span.startTimeUnixNano, span.endTimeUnixNano, span.status, span.attributes["error.type"]],
        ["10000000000", "60000000000", { code: 2, message: "its process ended" }, "abandoned"]
      )
    }))

  it.effect("of what was set around it", () =>
    Effect.gen(function*() {
      const spans = yield* exported(
        unit("test.do", Effect.void).pipe(
          Execution.annotate({ request_id: "r-1", attempt: 2, ratio: 0.5, dry: false, "effect_units.kind": "forged" })
        )
      )
      const { "effect_units.correlation_id": _, "effect_units.root_id": __, ...attributes } =
        spans["test.do"]!.attributes
      assert.deepStrictEqual(attributes, {
        request_id: "r-1",
        attempt: 2,
        ratio: 0.5,
        dry: false,
        "effect_units.kind": "command",
        "effect_units.domain": "test"
      })
    }))

  it.effect("of streams: how much went through", () =>
    Effect.gen(function*() {
      const stream = instrumentStream(Stream.range(1, 10), { name: "test.all" })
      const stopped = instrumentStream(Stream.range(1, 10).pipe(Stream.rechunk(1)), { name: "test.some" })
      const spans = yield* exported(
        Effect.andThen(Stream.runDrain(stream), Stream.runDrain(Stream.take(stopped, 3)))
      )
      assert.deepStrictEqual(
        ["test.all", "test.some"].map((name) => spans[name]!.attributes["effect_units.chunks"]),
        [10, 3]
      )
    }))

  it.effect("of the domain: an event each, in its execution's span", () =>
    Effect.gen(function*() {
      const collector = yield* receiver
      const { close, context } = yield* publishing(collector)
      const program = unit(
        "test.outer",
        Effect.gen(function*() {
          yield* progress(1)
          yield* unit("test.inner", progress(2))
          yield* TestClock.adjust("3 millis")
          yield* progress(3)
        })
      )
      yield* Effect.provideContext(program, context)
      yield* close
      const spans = byName(collector.spans())
      const told = (name: string) =>
        spans[name]!.events.map(
          ({ attributes: { "effect_units.event_id": id, ...attributes }, name, timeUnixNano }) => {
            assert.isString(id)
            return { attributes, name, timeUnixNano }
          }
        )
      const said = (done: number, timeUnixNano: string) => ({
        name: "test.progress",
        timeUnixNano,
        attributes: { done, file: "a.gguf", fast: true, sizes: [1, 2] }
      })
      assert.deepStrictEqual(told("test.outer"), [said(1, "0"), said(3, "3000000")])
      assert.deepStrictEqual(told("test.inner"), [said(2, "0")])
    }))

  it.effect("of the domain: no more than 128 events, and how many more there were", () =>
    Effect.gen(function*() {
      const spans = yield* exported(
        unit("test.do", Effect.forEach(Array.from({ length: 200 }, (_, n) => n), progress, { discard: true }))
      )
      const { droppedEventsCount, events } = spans["test.do"]!
      assert.deepStrictEqual(
        events.map(({ attributes }) => attributes["done"]),
        Array.from({ length: 128 }, (_, n) => n)
      )
      assert.strictEqual(droppedEventsCount, 72)
    }))

  it.effect("of the domain outside of any execution, or after its end: a span without length", () =>
    Effect.gen(function*() {
      const collector = yield* receiver
      const { close, offer } = yield* publishing(collector)
      yield* offer(
        domainEvent("alone", { type: "test.alone", at: 7 }),
        { ...domainEvent("below", { type: "test.below", at: 8 }), trace_id: "a".repeat(32), span_id: "b".repeat(16) },
        started(uuid(1)),
        completed(uuid(1)),
        domainEvent("late", { type: "test.late", correlation: uuid(1), at: 9, payload: "text" })
      )
      yield* close
      const spans = byName(collector.spans())
      const seen = ({ endTimeUnixNano, parentSpanId, startTimeUnixNano, traceId }: OtlpReceiver.Span) => [
        traceId,
        parentSpanId,
        startTimeUnixNano,
        endTimeUnixNano
      ]
      assert.deepStrictEqual(
        seen(spans["test.alone"]!),
        [OpenTelemetry.traceId("alone"), undefined, "7000000", "7000000"]
      )
      assert.deepStrictEqual(seen(spans["test.below"]!), ["a".repeat(32), "b".repeat(16), "8000000", "8000000"])
      assert.deepStrictEqual(
        seen(spans["test.late"]!),
        [OpenTelemetry.traceId(uuid(1)), OpenTelemetry.spanId(uuid(1)), "9000000", "9000000"]
      )
      assert.deepStrictEqual(spans["test.late"]!.attributes, { payload: "text", "effect_units.event_id": "late" })
    }))

  it.effect("and what it does not: inputs and outputs", () =>
    Effect.gen(function*() {
      const collector = yield* receiver
      const { close, context } = yield* publishing(collector)
      const echo = instrument((text: string) => Effect.succeed(text), { name: "test.echo" })
      yield* Effect.provideContext(echo("a-marker-in-the-input"), context)
      yield* close
      assert.strictEqual(collector.spans().length, 1)
      assert.notInclude(collector.received.map(({ body }) => body.toString()).join(""), "a-marker-in-the-input")
    }))
})

describe("exporting", () => {
  const finished = (n: number) => [started(uuid(n)), completed(uuid(n))]

  it.effect("in batches, as soon as one is full, or its time has come", () =>
    Effect.gen(function*() {
      const collector = yield* receiver
      const { offer } = yield* publishing(collector, { maxBatchSize: 2, exportInterval: "3 seconds" })
      yield* offer(...finished(1), ...finished(2), ...finished(3))
      yield* until(() => collector.spans().length === 2)
      yield* TestClock.adjust("2999 millis")
      yield* turn
      assert.strictEqual(collector.received.length, 1)
      yield* TestClock.adjust("1 millis")
      yield* until(() => collector.spans().length === 3)
      assert.strictEqual(collector.received.length, 2)
      assert.deepStrictEqual(
        collector.spans().map(({ spanId }) => spanId),
        [1, 2, 3].map((n) => OpenTelemetry.spanId(uuid(n)))
      )
    }))

  it.effect("all that was accepted when the scope closes", () =>
    Effect.gen(function*() {
      const collector = yield* receiver
      const { close, logged, offer } = yield* publishing(collector, { maxBatchSize: 100 })
      yield* offer(...Array.from({ length: 1050 }, (_, n) => finished(n)).flat())
      yield* close
      assert.strictEqual(new Set(collector.spans().map(({ spanId }) => spanId)).size, 1050)
      assert.strictEqual(collector.received.length, 11)
      assert.deepStrictEqual(logged, [])
    }))

  it.effect("with the resource and the headers that were given, in JSON", () =>
    Effect.gen(function*() {
      const collector = yield* receiver
      const { close, offer } = yield* publishing(collector, {
        url: `${collector.url}/`,
        headers: { authorization: Redacted.make("Bearer t"), "x-tenant": "a" },
        resource: { serviceName: "inference", serviceVersion: "1.2.3", attributes: { zone: "b" } }
      })
      yield* offer(...finished(1))
      yield* close
      const [request] = collector.received
      assert.strictEqual(request!.path, "/v1/traces")
      assert.strictEqual(request!.headers.authorization, "Bearer t")
      assert.strictEqual(request!.headers["x-tenant"], "a")
      assert.strictEqual(request!.headers["content-type"], "application/json")
      const { "service.name": name, "service.version": version, zone } = collector.resource()
      assert.deepStrictEqual([name, version, zone], ["inference", "1.2.3", "b"])
    }))

  it.effect("or in protobuf", () =>
    Effect.gen(function*() {
      const collector = yield* receiver
      const { close, offer } = yield* publishing(collector, { encoding: "protobuf" })
      yield* offer(...finished(1))
      yield* close
      const [request] = collector.received
      assert.strictEqual(request!.headers["content-type"], "application/x-protobuf")
      // Fields 1, 2 and 5 of a span: two ids of 16 and 8 bytes, and the name.
      const hex = request!.body.toString("hex")
      assert.include(hex, `0a10${OpenTelemetry.traceId(uuid(1))}1208${OpenTelemetry.spanId(uuid(1))}`)
      assert.include(hex, `2a0a${Buffer.from("model.pull").toString("hex")}`)
    }))

  it.effect("again, where the receiver is busy or away for a while, and not before it asks for it", () =>
    Effect.gen(function*() {
      const collector = yield* receiver
      const times: Array<number> = []
      const clock = yield* Effect.clockWith(Effect.succeed)
      const noting = (answer: OtlpReceiver.Answer): OtlpReceiver.Answer => (response) => {
        times.push(clock.currentTimeMillisUnsafe())
        answer(response)
      }
      collector.answer(
        noting(OtlpReceiver.status(503)),
        noting(OtlpReceiver.status(429, { "retry-after": "20" })),
        noting((response) => void response.socket!.destroy()),
        noting((response) => void response.writeHead(200).end())
      )
      const { count, logged, offer } = yield* publishing(collector, { maxBatchSize: 1, exportInterval: "1 hour" })
      yield* offer(...finished(1))
      yield* untilInTime(() => times.length === 4)
      const waits = times.slice(1).map((time, index) => time - times[index]!)
      const [first, second, third] = waits.map((wait) => wait / 1000)
      assert.isTrue(first! >= 0.8 && first! <= 1.5, String(waits))
      assert.isTrue(second! >= 20 && second! <= 20.5, String(waits))
      assert.isTrue(third! >= 3.2 && third! <= 5.3, String(waits))
      assert.strictEqual(yield* count("effect_units_spans_dropped"), 0)
      assert.deepStrictEqual(logged, [])
    }))

  it.effect("what the receiver refuses is given up, counted, and said once, and what follows is exported", () =>
    Effect.gen(function*() {
      const collector = yield* receiver
      collector.answer(OtlpReceiver.status(400), OtlpReceiver.status(413))
      const { close, count, logged, offer } = yield* publishing(collector, { maxBatchSize: 1 })
      yield* offer(...finished(1), ...finished(2), ...finished(3))
      yield* close
      assert.strictEqual(yield* count("effect_units_spans_dropped"), 2)
      assert.deepStrictEqual(logged, [
        "Warn 1 spans were not exported: HTTP status 400. Further ones are counted in effect_units_spans_dropped."
      ])
      assert.deepStrictEqual(collector.spans().map(({ spanId }) => spanId), [OpenTelemetry.spanId(uuid(3))])
    }))

  it.effect("a part that the receiver refuses is counted, too", () =>
    Effect.gen(function*() {
      const collector = yield* receiver
      collector.answer((response) =>
        void response.writeHead(200).end(
          JSON.stringify({ partialSuccess: { rejectedSpans: "2", errorMessage: "too old" } })
        )
      )
      const { close, count, logged, offer } = yield* publishing(collector)
      yield* offer(...finished(1), ...finished(2), ...finished(3))
      yield* close
      assert.strictEqual(yield* count("effect_units_spans_dropped"), 2)
      assert.match(logged[0]!, /^Warn 2 spans were not exported: too old\./)
      assert.strictEqual(collector.received.length, 1)
    }))

  it.effect("a receiver that does not answer costs a bounded buffer, no unit, and no more than the deadline", () =>
    Effect.gen(function*() {
      const collector = yield* receiver
      collector.answer(() => {}, () => {}, () => {})
      const { close, context, count, logged, offer } = yield* publishing(collector, {
        maxBatchSize: 1,
        capacity: 10,
        flushTimeout: "2 seconds"
      })
      yield* offer(...finished(1))
      yield* until(() => collector.received.length === 1)
      // Ten wait, and the unit is not kept waiting.
      yield* offer(...Array.from({ length: 12 }, (_, n) => started(uuid(n + 10))))
      yield* Effect.provideContext(unit("test.do", Effect.void), context)
      assert.strictEqual(yield* count("effect_units_events_dropped"), 4)
      assert.strictEqual(logged.filter((line) => line.includes("is full")).length, 1)
      const closing = yield* Effect.forkChild(close)
      yield* untilInTime(() => closing.pollUnsafe() !== undefined)
      assert.isAtMost(yield* Effect.clockWith((clock) => clock.currentTimeMillis), 2500)
      assert.strictEqual(yield* count("effect_units_spans_dropped"), 1)
      assert.strictEqual(yield* count("effect_units_events_dropped"), 14)
      yield* until(() => logged.some((line) => line.includes("was closed with 1 spans and 10 events")))
    }))

  it.effect("ends with the scope: nothing is left that runs", () =>
    Effect.gen(function*() {
      const collector = yield* receiver
      const clock = yield* Effect.clockWith(Effect.succeed)
      let sleeping = 0
      const counting: Clock.Clock = Object.assign(Object.create(clock), {
        sleep: (duration: Duration.Duration) =>
          Effect.acquireUseRelease(
            Effect.sync(() => void sleeping++),
            () => clock.sleep(duration),
            () => Effect.sync(() => void sleeping--)
          )
      })
      yield* Effect.gen(function*() {
        const { close, offer } = yield* publishing(collector)
        yield* offer(...finished(1))
        yield* until(() => sleeping === 1)
        yield* close
        yield* until(() => sleeping === 0)
      }).pipe(Effect.provideService(Clock.Clock, counting))
    }))

  it.effect("an event that cannot be read is lost alone", () =>
    Effect.gen(function*() {
      const collector = yield* receiver
      const { close, count, offer } = yield* publishing(collector)
      const odd = Object.defineProperty({ ...completed("odd") }, "unit_name", {
        get: () => {
          throw new Error("a bug")
        }
      })
      yield* offer(odd, ...finished(1))
      yield* close
      assert.strictEqual(collector.spans().length, 1)
      assert.strictEqual(yield* count("effect_units_spans_dropped"), 1)
    }))

  it.effect("without a name of the service nothing is built", () =>
    Effect.gen(function*() {
      for (const make of [OpenTelemetry.layer, OpenTelemetry.layerTraces, OpenTelemetry.layerMetrics]) {
        const build = (env: Record<string, string>) =>
          Layer.build(Layer.provide(make({ url: "http://127.0.0.1:1" }), FetchHttpClient.layer)).pipe(
            Effect.scoped,
            Effect.provideService(ConfigProvider.ConfigProvider, ConfigProvider.fromEnv({ env }))
          )
        const error = yield* Effect.flip(build({}))
        assert.isTrue(error instanceof Config.ConfigError)
        const closing = yield* Effect.forkChild(build({ OTEL_SERVICE_NAME: "named" }))
        yield* untilInTime(() => closing.pollUnsafe() !== undefined)
        assert.isTrue(Exit.isSuccess(yield* Fiber.await(closing)))
      }
    }))
})

describe("metrics", () => {
  it.effect("are those that units count anyway, once", () =>
    Effect.gen(function*() {
      const collector = yield* receiver
      const { close, context } = yield* publishing(collector, {}, OpenTelemetry.layer)
      const double = instrument((n: number) => n < 0 ? Effect.fail("negative") : Effect.succeed(n * 2), {
        name: "test.double"
      })
      yield* Effect.forEach([1, 2, 3, -1], (n) => Effect.exit(double(n))).pipe(Effect.provideContext(context))
      yield* close
      assert.strictEqual(collector.spans().length, 4)
      const points = collector.points().filter(({ name, value }) =>
        name.startsWith("effect_units_execution") && value > 0
      )
      assert.deepStrictEqual(
        points.map(({ attributes, name, value }) => [name, attributes["unit"], attributes["outcome"], value]),
        [
          ["effect_units_executions", "test.double", "completed", 3],
          ["effect_units_executions", "test.double", "failed", 1],
          ["effect_units_execution_duration", "test.double", undefined, 4]
        ]
      )
    }))

  it.effect("can be left to the application", () =>
    Effect.gen(function*() {
      const collector = yield* receiver
      const { close, context } = yield* publishing(collector)
      yield* Effect.provideContext(unit("test.do", Effect.void), context)
      yield* close
      assert.deepStrictEqual(collector.received.map(({ path }) => path), ["/v1/traces"])
    }))
})
