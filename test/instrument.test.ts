import { assert, describe, expectTypeOf, it } from "@effect/vitest"
import { Cause, Clock, Context, Deferred, Effect, Exit, Fiber, Schedule, Schema, Stream, Tracer } from "effect"
import { TestClock } from "effect/testing"
import * as EventPublisher from "../src/EventPublisher.ts"
import * as Execution from "../src/Execution.ts"
import { type ExecutionEvent, isExecutionEvent } from "../src/ExecutionEvent.ts"
import { instrument, instrumentEffect, instrumentStream } from "../src/instrument.ts"
import * as Unit from "../src/Unit.ts"
import { observe } from "./observe.ts"

class Declined extends Schema.TaggedError<Declined>("test/Declined")("Declined", { why: Schema.String }) {
  override get message(): string {
    return `Declined: ${this.why}`
  }
}

interface Receipt {
  readonly total: number
}

type Body = (input: { readonly amount: number }) => Effect.Effect<Receipt, Declined>

const name = "billing.charge"
const input = { amount: 3 }

/** One way to give a body its events. `run` gives what the body gives, except where `wire` says that it is JSON. */
interface Form {
  readonly name: string
  readonly run: (body: Body) => Effect.Effect<unknown, unknown, EventPublisher.EventPublisher>
  /** What the terminal events say besides, and the output where it is not the receipt. */
  readonly stream?: boolean
  readonly wire?: boolean
  readonly schema?: boolean
}

const once = (body: Body) => (given: { readonly amount: number }) =>
  Stream.fromEffect(Effect.suspend(() => body(given)))

/** What a stream of one element gives. */
const only = <A, E, R>(stream: Stream.Stream<A, E, R>): Effect.Effect<A | undefined, E, R> =>
  Effect.map(Stream.runCollect(stream), ([first]) => first)

const shapes = {
  description: "Charges a card",
  input: { amount: Schema.Finite },
  errors: [Declined]
}
const Receipt = { total: Schema.Finite }

const forms: ReadonlyArray<Form> = [
  { name: "a function, data-first", run: (body) => instrument(body, { name })(input) },
  { name: "a function, data-last", run: (body) => instrument({ name })(body)(input) },
  {
    name: "an effect, data-first",
    run: (body) => instrumentEffect(Effect.suspend(() => body(input)), { name, input })
  },
  {
    name: "an effect, data-last",
    run: (body) => Effect.suspend(() => body(input)).pipe(instrumentEffect({ name, input }))
  },
  {
    name: "a stream, data-first",
    run: (body) => only(instrumentStream(once(body)(input), { name, input })),
    stream: true
  },
  {
    name: "a stream, data-last",
    run: (body) => only(once(body)(input).pipe(instrumentStream({ name, input }))),
    stream: true
  },
  {
    name: "a unit",
    run: (handler) => Unit.command(name, { ...shapes, output: Receipt, handler })(input),
    schema: true
  },
  {
    name: "a unit by its wire",
    run: (handler) => Unit.command(name, { ...shapes, output: Receipt, handler }).execute(input),
    schema: true,
    wire: true
  },
  {
    name: "a stream unit",
    run: (body) => only(Unit.stream(name, { ...shapes, chunk: Schema.Struct(Receipt), handler: once(body) })(input)),
    schema: true,
    stream: true
  },
  {
    name: "a stream unit by its wire",
    run: (body) =>
      only(Unit.stream(name, { ...shapes, chunk: Schema.Struct(Receipt), handler: once(body) }).execute(input)),
    schema: true,
    stream: true,
    wire: true
  }
]

const receipt: Receipt = { total: 3 }
const declined = new Declined({ why: "no money" })
const defect = new RangeError("out of range")

/** One way to end, after two and a half milliseconds. `drive` ends what does not end by itself. */
interface Ending {
  readonly name: string
  readonly body: Body
  readonly drive?: <A, E, R>(
    self: Effect.Effect<A, E, R>,
    stop: Effect.Effect<void>
  ) => Effect.Effect<A, unknown, R>
  readonly terminal: object
  /** What a caller gets, by reference. */
  readonly same: (exit: Exit.Exit<unknown, unknown>) => void
}

const after = <A, E>(end: Effect.Effect<A, E>): Effect.Effect<A, E> => Effect.andThen(Effect.sleep("2500 micros"), end)

const failureOf = (exit: Exit.Exit<unknown, unknown>): ReadonlyArray<Cause.Reason<unknown>> =>
  Exit.isFailure(exit) ? exit.cause.reasons : []

const interrupted = { error: "The execution was interrupted", failure: { kind: "interrupt" } }
const onlyInterrupted = (exit: Exit.Exit<unknown, unknown>): void => {
  assert.isTrue(Exit.isFailure(exit) && Cause.hasInterruptsOnly(exit.cause))
}

const endings: ReadonlyArray<Ending> = [
  {
    name: "success",
    body: () => after(Effect.succeed(receipt)),
    terminal: { output: { total: 3 } },
    same: (exit) => assert.strictEqual(Exit.isSuccess(exit) ? exit.value : undefined, receipt)
  },
  {
    name: "typed failure",
    body: () => after(Effect.fail(declined)),
    terminal: {
      error: "Declined: no money",
      failure: { kind: "fail", tag: "Declined", value: { _tag: "Declined", why: "no money" } }
    },
    same: (exit) => {
      assert.strictEqual(failureOf(exit).length, 1)
      assert.isTrue(failureOf(exit).every((reason) => Cause.isFailReason(reason) && reason.error === declined))
    }
  },
  {
    name: "defect",
    body: () => after(Effect.die(defect)),
    terminal: { error: "out of range", failure: { kind: "die", tag: "RangeError" } },
    same: (exit) => {
      assert.strictEqual(failureOf(exit).length, 1)
      assert.isTrue(failureOf(exit).every((reason) => Cause.isDieReason(reason) && reason.defect === defect))
    }
  },
  {
    name: "interruption from outside",
    body: () => Effect.never,
    drive: (self, stop) =>
      Effect.gen(function*() {
        const fiber = yield* Effect.forkChild(self)
        yield* stop
        yield* Fiber.interrupt(fiber)
        return yield* Fiber.join(fiber)
      }),
    terminal: interrupted,
    same: onlyInterrupted
  },
  {
    name: "interruption from inside",
    body: () => after(Effect.interrupt),
    terminal: interrupted,
    same: onlyInterrupted
  },
  {
    name: "timeout",
    body: () => Effect.never,
    drive: (self) => Effect.timeout(self, "2500 micros"),
    terminal: interrupted,
    same: (exit) => {
      assert.isTrue(failureOf(exit).every((reason) => Cause.isFailReason(reason) && Cause.isTimeoutError(reason.error)))
    }
  }
]

const terminalType = (ending: Ending) => ending.name === "success" ? "execution_completed" : "execution_failed"

const policies = ["open", "closed", "transactional"] as const

/** Runs a form to an ending under the test clock. */
const runTo = (form: Form, ending: Ending, options: {
  readonly policy: (typeof policies)[number]
  readonly body?: (self: Body) => Body
  readonly onEvent?: (event: ExecutionEvent) => void
  readonly onResume?: () => void
}) =>
  Effect.gen(function*() {
    const running = yield* Deferred.make<void>()
    const stop = yield* Deferred.make<void>()
    const body = (options.body ?? ((self) => self))(ending.body)
    const instrumented = form.run((given) => Effect.andThen(Deferred.succeed(running, undefined), body(given)))
    const driven = ending.drive === undefined ? instrumented : ending.drive(instrumented, Deferred.await(stop))
    const caller = Effect.onExit(driven, () => Effect.sync(() => options.onResume?.()))
    const fiber = yield* Effect.forkChild(observe(caller, options))
    yield* Deferred.await(running)
    yield* TestClock.adjust("2500 micros")
    yield* Deferred.succeed(stop, undefined)
    return yield* Fiber.join(fiber)
  })

const cases = forms.flatMap((form) =>
  endings.flatMap((ending) =>
    policies.map((policy) => ({ title: `${form.name}, ${ending.name}, ${policy} publisher`, form, ending, policy }))
  )
)

describe("instrument", () => {
  describe("publishes exactly its started and one terminal event", () => {
    it.effect.each(cases)("$title", ({ ending, form, policy }) =>
      Effect.gen(function*() {
        yield* TestClock.setTime(Date.UTC(2026, 0, 2, 3, 4, 5, 6))
        const { events } = yield* runTo(form, ending, { policy })
        const common = {
          domain: "billing",
          unit_name: name,
          kind: "command",
          correlation_id: "id-1",
          root_id: "id-1",
          source: "test"
        }
        const terminal = form.stream === true
          ? {
            ...ending.terminal,
            ...(ending.name === "success" ? { chunks: 1, output: { chunks: 1 } } : { chunks: 0 })
          }
          : ending.terminal
        assert.deepStrictEqual<unknown>(events, [
          {
            ...common,
            event_type: "execution_started",
            id: "id-1:started",
            timestamp: "2026-01-02T03:04:05.006Z",
            sequence: 1,
            input: { amount: 3 }
          },
          {
            ...common,
            ...terminal,
            event_type: terminalType(ending),
            id: ending.name === "success" ? "id-1:completed" : "id-1:failed",
            timestamp: "2026-01-02T03:04:05.008Z",
            sequence: 2,
            duration_ms: 2,
            duration_ns: 2_500_000
          }
        ])
      }))
  })

  describe("gives the caller what it would have got, by reference", () => {
    it.effect.each(cases)("$title", ({ ending, form, policy }) =>
      Effect.gen(function*() {
        const { exit } = yield* runTo(form, ending, { policy })
        if (form.wire === true && ending.name === "success") {
          assert.deepStrictEqual(exit, Exit.succeed({ total: 3 }))
        } else {
          ending.same(exit)
        }
      }))
  })

  describe("publishes the start before the handler runs, and the end after its finalizers and before the caller", () => {
    it.effect.each(cases)("$title", ({ ending, form, policy }) =>
      Effect.gen(function*() {
        const log: Array<string> = []
        const note = (line: string) => Effect.sync(() => void log.push(line))
        yield* runTo(form, ending, {
          policy,
          body: (self) => (given) =>
            note("handler").pipe(
              Effect.andThen(self(given)),
              Effect.ensuring(Effect.andThen(Effect.yieldNow, note("finalizer")))
            ),
          onEvent: (event) => void log.push(event.event_type),
          onResume: () => void log.push("caller")
        })
        assert.deepStrictEqual(log, ["execution_started", "handler", "finalizer", terminalType(ending), "caller"])
      }))
  })

  describe("publishes the end of a handler that throws", () => {
    it.effect.each(forms)("$name", (form) =>
      Effect.gen(function*() {
        const { events, exit } = yield* observe(form.run(() => {
          throw defect
        }))
        assert.deepStrictEqual(exit, Exit.die(defect))
        assert.deepStrictEqual(
          events.map((event) => [event.id, event.event_type === "execution_failed" && event.failure]),
          [
            ["id-1:started", false],
            ["id-1:failed", { kind: "die", tag: "RangeError" }]
          ]
        )
      }))
  })

  describe("builds trees of executions", () => {
    /** Unit, parent and root of each event, in order. */
    const outline = (events: ReadonlyArray<ExecutionEvent>) =>
      events.map((event) => [event.id, event.unit_name, event.parent_id, event.root_id])
    const leaf = (unit: string) => instrument(() => Effect.void, { name: unit })

    it.effect("events of children lie between those of their parent", () =>
      Effect.gen(function*() {
        const parent = instrument(() => Effect.andThen(leaf("a.first")(), leaf("a.second")()), { name: "a.parent" })
        const { events } = yield* observe(instrument(() => parent(), { name: "a.root" })())
        assert.deepStrictEqual(outline(events), [
          ["id-1:started", "a.root", undefined, "id-1"],
          ["id-2:started", "a.parent", "id-1", "id-1"],
          ["id-3:started", "a.first", "id-2", "id-1"],
          ["id-3:completed", "a.first", "id-2", "id-1"],
          ["id-4:started", "a.second", "id-2", "id-1"],
          ["id-4:completed", "a.second", "id-2", "id-1"],
          ["id-2:completed", "a.parent", "id-1", "id-1"],
          ["id-1:completed", "a.root", undefined, "id-1"]
        ])
      }))

    it.effect("siblings have no parent, and what follows an execution is outside of it, however it ended", () =>
      Effect.gen(function*() {
        const ends = [Effect.void, Effect.fail("x"), Effect.die("x"), Effect.interrupt]
        const { events } = yield* observe(
          Effect.forEach(
            ends,
            (end) =>
              Effect.andThen(
                Effect.exit(instrument(() => end, { name: "a.one" })()),
                Effect.map(Execution.current, (current) => assert.isUndefined(current))
              )
          )
        )
        assert.deepStrictEqual(
          events.map(({ correlation_id, parent_id, root_id }) => [correlation_id, parent_id, root_id]),
          ["id-1", "id-1", "id-2", "id-2", "id-3", "id-3", "id-4", "id-4"].map((id) => [id, undefined, id])
        )
      }))

    it.effect("a child that was forked names its parent, and may outlast it", () =>
      Effect.gen(function*() {
        const fiber = yield* Effect.forkChild(observe(Effect.gen(function*() {
          const slow = instrument(() => Effect.andThen(Effect.sleep("1 second"), leaf("a.grandchild")()), {
            name: "a.daemon"
          })
          const parent = instrument(() => Effect.forkDetach(slow()), { name: "a.parent" })
          const daemon = yield* parent()
          yield* leaf("a.next")()
          yield* Fiber.join(daemon)
        })))
        yield* TestClock.adjust("1 second")
        const { events } = yield* Fiber.join(fiber)
        assert.deepStrictEqual(outline(events), [
          ["id-1:started", "a.parent", undefined, "id-1"],
          ["id-1:completed", "a.parent", undefined, "id-1"],
          ["id-2:started", "a.next", undefined, "id-2"],
          ["id-2:completed", "a.next", undefined, "id-2"],
          ["id-3:started", "a.daemon", "id-1", "id-1"],
          ["id-4:started", "a.grandchild", "id-3", "id-1"],
          ["id-4:completed", "a.grandchild", "id-3", "id-1"],
          ["id-3:completed", "a.daemon", "id-1", "id-1"]
        ])
      }))

    it.effect("a forked child that its parent does not wait for is interrupted with it", () =>
      Effect.gen(function*() {
        const child = instrument(() => Effect.never, { name: "a.child" })
        const parent = instrument(
          () => Effect.andThen(Effect.forkChild(child(), { startImmediately: true }), Effect.void),
          {
            name: "a.parent"
          }
        )
        const { events } = yield* observe(Effect.andThen(Effect.forkChild(parent()), (fiber) => Fiber.join(fiber)))
        assert.deepStrictEqual(events.map(({ id }) => id), [
          "id-1:started",
          "id-2:started",
          "id-1:completed",
          "id-2:failed"
        ])
      }))

    it.effect("concurrent children share a parent, and losers of a race end before it does", () =>
      Effect.gen(function*() {
        const wait = (unit: string, millis: number) => instrument(() => Effect.sleep(millis), { name: unit })()
        const race = instrument(() => Effect.race(wait("a.fast", 1), wait("a.slow", 9)), { name: "a.race" })
        const fiber = yield* Effect.forkChild(observe(race()))
        yield* TestClock.adjust(1)
        const { events } = yield* Fiber.join(fiber)
        assert.deepStrictEqual(
          events.map(({ event_type, parent_id, unit_name }) => [unit_name, event_type.slice(10), parent_id]),
          [
            ["a.race", "started", undefined],
            ["a.fast", "started", "id-1"],
            ["a.slow", "started", "id-1"],
            ["a.fast", "completed", "id-1"],
            ["a.slow", "failed", "id-1"],
            ["a.race", "completed", undefined]
          ]
        )
      }))

    it.effect("every attempt of a retry is an execution", () =>
      Effect.gen(function*() {
        let attempt = 0
        const flaky = instrument(
          () => Effect.suspend(() => ++attempt < 3 ? Effect.fail("not yet") : Effect.succeed(attempt)),
          {
            name: "a.flaky"
          }
        )
        const { events, exit } = yield* observe(Effect.retry(flaky(), Schedule.recurs(5)))
        assert.deepStrictEqual(exit, Exit.succeed(3))
        assert.deepStrictEqual(
          events.map(({ id }) => id),
          ["id-1:started", "id-1:failed", "id-2:started", "id-2:failed", "id-3:started", "id-3:completed"]
        )
      }))

    it.effect("an effect is a value: each run is an execution, concurrent ones too", () =>
      Effect.gen(function*() {
        const one = instrument(() => Effect.yieldNow, { name: "a.one" })()
        const { events } = yield* observe(Effect.all([one, one], { concurrency: 2 }))
        assert.deepStrictEqual(events.map(({ id }) => id), [
          "id-1:started",
          "id-2:started",
          "id-1:completed",
          "id-2:completed"
        ])
      }))

    it.effect("20 executions deep, every one sees itself and all services", () =>
      Effect.gen(function*() {
        const keys = Array.from({ length: 12 }, (_, n) =>
          Context.Reference<number>(`test/ref-${n}`, { defaultValue: () => 0 }))
        const depths: Array<string | undefined> = []
        const down = (depth: number): Effect.Effect<number, never, EventPublisher.EventPublisher> =>
          instrument(
            () =>
              Effect.gen(function*() {
                const current = yield* Execution.current
                depths.push(current?.unit_name)
                const key = keys[depth % keys.length]
                const below = depth === 20 ? 0 : yield* (key === undefined
                  ? down(depth + 1)
                  : Effect.provideService(down(depth + 1), key, depth))
                assert.strictEqual((yield* Execution.current)?.unit_name, `a.n${depth}`)
                // What was set above is still seen, whatever came between.
                const seen = yield* Effect.forEach(keys, (key) =>
                  Effect.service(key))
                const set = Array.from({ length: 12 }, (_, n) => Math.max(0, ...[n, n + 12].filter((at) => at < depth)))
                assert.deepStrictEqual(seen, set)
                return below + 1
              }),
            { name: `a.n${depth}` }
          )()
        const { events, exit } = yield* observe(down(0))
        assert.deepStrictEqual(exit, Exit.succeed(21))
        assert.deepStrictEqual(depths, Array.from({ length: 21 }, (_, n) => `a.n${n}`))
        assert.strictEqual(events.length, 42)
        assert.deepStrictEqual(
          events.map(({ parent_id, root_id, unit_name }) => [unit_name, parent_id, root_id]),
          [...Array.from({ length: 21 }, (_, n) => n), ...Array.from({ length: 21 }, (_, n) => 20 - n)].map((n) => [
            `a.n${n}`,
            n === 0 ? undefined : `id-${n}`,
            "id-1"
          ])
        )
      }))
  })

  describe("encodes when an event is read, never before", () => {
    it.effect("not on the path of the caller", () =>
      Effect.gen(function*() {
        let encoded = 0
        const value = {
          toJSON: () => {
            encoded++
            return "shown"
          }
        }
        const before: Array<number> = []
        const { events } = yield* observe(
          Effect.andThen(instrumentEffect(Effect.succeed(value), { name: "a.one", input: value }), () => {
            before.push(encoded)
            return Effect.void
          })
        )
        assert.deepStrictEqual(before, [0])
        assert.deepStrictEqual(
          events.map((event) => "input" in event ? event.input : "output" in event && event.output),
          [
            "shown",
            "shown"
          ]
        )
        // Once per event, however often it is read.
        assert.strictEqual(encoded, 2)
      }))

    it.effect("and what cannot be encoded costs its own place only", () =>
      Effect.gen(function*() {
        const odd = {
          fine: 1,
          get bad(): never {
            throw new Error("no value here")
          }
        }
        const { events } = yield* observe(instrumentEffect(Effect.succeed([odd, 2n]), { name: "a.one", input: odd }))
        const shown = { fine: 1, bad: { $unencodable: "no value here" } }
        assert.deepStrictEqual(
          events.map((event) => [event.sequence, "input" in event ? event.input : "output" in event && event.output]),
          [[1, shown], [2, [shown, "2"]]]
        )
      }))
  })

  describe("shows the arguments of a function", () => {
    const inputOf = (events: ReadonlyArray<ExecutionEvent>) =>
      events.flatMap((event) => event.event_type === "execution_started" ? [event.input] : [])

    it.effect("nothing, the only one, or a list", () =>
      Effect.gen(function*() {
        const f = instrument((...args: ReadonlyArray<unknown>) => Effect.succeed(args.length), { name: "a.any" })
        const { events, exit } = yield* observe(
          Effect.all([f(), f(1), f(undefined), f([1, 2]), f(1, { b: 2 }), f(undefined, 2)])
        )
        assert.deepStrictEqual(exit, Exit.succeed([0, 1, 1, 1, 2, 2]))
        assert.deepStrictEqual(inputOf(events), [undefined, 1, undefined, [1, 2], [1, { b: 2 }], [null, 2]])
      }))

    it.effect("by the schemas that are given, which check nothing", () =>
      Effect.gen(function*() {
        const login = instrument(
          (given: { readonly user: string; readonly password: string }) =>
            Effect.succeed({ token: `token-of-${given.user}` }),
          {
            name: "auth.login",
            kind: "query",
            input: Schema.Struct({
              user: Schema.String.check(Schema.isMinLength(10)),
              password: Unit.secret(Schema.String)
            }),
            output: Schema.Struct({ token: Unit.secret(Schema.String) })
          }
        )
        const { events, exit } = yield* observe(login({ user: "ada", password: "marker-secret" }))
        assert.deepStrictEqual(exit, Exit.succeed({ token: "token-of-ada" }))
        assert.deepStrictEqual(
          events.map((event) => [event.kind, "input" in event ? event.input : "output" in event && event.output]),
          [["query", { user: "ada", password: "<redacted>" }], ["query", { token: "<redacted>" }]]
        )
      }))

    it.effect("a name without a dot is its own domain", () =>
      Effect.gen(function*() {
        const { events } = yield* observe(instrumentEffect(Effect.void, { name: "migrate" }))
        assert.deepStrictEqual(events.map(({ domain, unit_name }) => [domain, unit_name]), [
          ["migrate", "migrate"],
          ["migrate", "migrate"]
        ])
        assert.notProperty(events[0], "input")
        assert.notProperty(events[1], "output")
      }))
  })

  describe("names the span that is active", () => {
    const collecting = () => {
      const spans: Array<Tracer.NativeSpan> = []
      const tracer = Tracer.make({
        span: (options) => {
          const span = new Tracer.NativeSpan(options)
          spans.push(span)
          return span
        }
      })
      return { spans, tracer }
    }

    it.effect("by the ids that the tracer has", () =>
      Effect.gen(function*() {
        const { spans, tracer } = collecting()
        const inner = instrument(() => Effect.void, { name: "a.inner" })
        const outer = instrument(() => Effect.withSpan(inner(), "second"), { name: "a.outer" })
        const { events } = yield* observe(
          Effect.andThen(Effect.withSpan(outer(), "first"), inner()).pipe(Effect.provideService(Tracer.Tracer, tracer))
        )
        const [first = [], second = []] = spans.map(({ spanId, traceId }) => [traceId, spanId])
        assert.deepStrictEqual(spans.map((span) => span.name), ["first", "second"])
        assert.deepStrictEqual(events.map(({ span_id, trace_id }) => [trace_id, span_id]), [
          first,
          second,
          second,
          first,
          [undefined, undefined],
          [undefined, undefined]
        ])
        assert.notProperty(events[4], "trace_id")
      }))

    it.effect("and leaves ids out that W3C would not accept", () =>
      Effect.gen(function*() {
        const span = Tracer.externalSpan({ traceId: "trace-1", spanId: "0123456789abcdef" })
        const { events } = yield* observe(
          Effect.withParentSpan(instrument(() => Effect.void, { name: "a.one" })(), span)
        )
        for (const event of events) {
          assert.notProperty(event, "trace_id")
          assert.notProperty(event, "span_id")
        }
      }))
  })

  describe("times", () => {
    it.effect("come from the Clock, in whole nanoseconds and milliseconds, 0 included", () =>
      Effect.gen(function*() {
        const times = ["0 millis", "1 nanos", "999999 nanos", "1 millis", "1999999 nanos", "1 hour"] as const
        const fiber = yield* Effect.forkChild(observe(Effect.forEach(times, (time) =>
          instrument(() =>
            Effect.andThen(Effect.forkChild(TestClock.adjust(time)), (child) =>
              Fiber.join(child)), { name: "a.one" })())))
        const { events } = yield* Fiber.join(fiber)
        assert.deepStrictEqual(
          events.flatMap((event) =>
            "duration_ns" in event ? [[event.duration_ns, event.duration_ms]] : []
          ),
          [
            [0, 0],
            [1, 0],
            [999_999, 0],
            [1_000_000, 1],
            [1_999_999, 1],
            [3_600_000_000_000, 3_600_000]
          ]
        )
      }))

    it.effect("are never less than none, even where a clock is set back", () =>
      Effect.gen(function*() {
        let nanos = 10_000_000n
        const clock = {
          currentTimeMillisUnsafe: () => 5,
          currentTimeMillis: Effect.succeed(5),
          currentTimeNanosUnsafe: () => 5_000_000n,
          currentTimeNanos: Effect.succeed(5_000_000n),
          monotonicTimeNanosUnsafe: () => nanos,
          monotonicTimeNanos: Effect.sync(() => nanos),
          sleep: () => Effect.void
        }
        const { events } = yield* observe(Effect.provideService(
          instrument(() => Effect.sync(() => void (nanos -= 3_000_000n)), { name: "a.one" })(),
          Clock.Clock,
          clock
        ))
        assert.deepStrictEqual(
          events.map((event) => [event.timestamp, "duration_ns" in event ? event.duration_ns : undefined]),
          [
            ["1970-01-01T00:00:00.005Z", undefined],
            ["1970-01-01T00:00:00.005Z", 0]
          ]
        )
      }))
  })

  it.effect("makes ids that are UUIDs of version 7 with the time of the start", () =>
    Effect.gen(function*() {
      yield* TestClock.setTime(Date.UTC(2026, 5, 1))
      const events: Array<ExecutionEvent> = []
      yield* instrument(() => Effect.void, { name: "a.one" })().pipe(
        Effect.provide(EventPublisher.layer({
          publish: (event) => {
            if (isExecutionEvent(event)) events.push(event)
          }
        }))
      )
      const [started, completed] = events
      assert.match(
        started?.correlation_id ?? "",
        /^[0-9a-f]{8}-[0-9a-f]{4}-7[0-9a-f]{3}-[89ab][0-9a-f]{3}-[0-9a-f]{12}$/
      )
      assert.strictEqual(
        Number.parseInt((started?.correlation_id ?? "").replaceAll("-", "").slice(0, 12), 16),
        Date.UTC(2026, 5, 1)
      )
      assert.strictEqual(completed?.correlation_id, started?.correlation_id)
    }))

  it.effect("costs nothing and changes nothing under the noop publisher", () =>
    Effect.gen(function*() {
      const trap = {
        get currentTimeMillisUnsafe(): never {
          throw new Error("the clock was read")
        },
        get monotonicTimeNanosUnsafe(): never {
          throw new Error("the clock was read")
        }
      }
      const clock = Object.setPrototypeOf(trap, yield* Clock.Clock)
      for (const form of forms) {
        for (const ending of endings.filter((one) => one.drive === undefined)) {
          const fiber = yield* form.run(ending.body).pipe(
            Effect.provide(EventPublisher.layerNoop),
            Effect.exit,
            Effect.forkChild
          )
          yield* TestClock.adjust("2500 micros")
          const exit = yield* Fiber.join(fiber)
          if (form.wire !== true || ending.name !== "success") ending.same(exit)
        }
      }
      const seen = yield* instrument(() => Execution.current, { name: "a.one" })().pipe(
        Execution.withIdGenerator(() => assert.fail("an id was made")),
        Effect.provideService(Clock.Clock, clock),
        Effect.provide(EventPublisher.layerNoop)
      )
      assert.isUndefined(seen)
    }))

  describe("of a stream", () => {
    const named = { name: "feed.read", input: { topic: "news" } }
    /** The terminal events of a program's executions: unit, chunks, output or failure. */
    const ends = (events: ReadonlyArray<ExecutionEvent>) =>
      events.flatMap((event) =>
        event.event_type === "execution_started"
          ? []
          : [[event.chunks, event.event_type === "execution_completed" ? event.output : event.failure.kind]]
      )

    it.effect("begins when it is run, not when it is made, and once per run", () =>
      Effect.gen(function*() {
        const stream = instrumentStream(Stream.make(1, 2), named)
        const none = yield* observe(Effect.succeed(stream))
        assert.deepStrictEqual(none.events, [])
        const { events, exit } = yield* observe(
          Effect.all([Stream.runCollect(stream), Stream.runCollect(stream)], { concurrency: 2 })
        )
        assert.deepStrictEqual(exit, Exit.succeed([[1, 2], [1, 2]]))
        assert.deepStrictEqual(events.map(({ id }) => id).toSorted(), [
          "id-1:completed",
          "id-1:started",
          "id-2:completed",
          "id-2:started"
        ])
      }))

    it.effect("counts what went through, none included", () =>
      Effect.gen(function*() {
        for (const length of [0, 1, 2, 10_000]) {
          const { events } = yield* observe(
            Stream.runDrain(instrumentStream(Stream.fromIterable(Array.from({ length }, (_, n) => n)), named))
          )
          assert.deepStrictEqual(ends(events), [[length, { chunks: length }]])
        }
      }))

    it.effect("gives the same elements", () =>
      Effect.gen(function*() {
        const elements = [{ n: 1 }, { n: 2 }]
        const { exit } = yield* observe(Stream.runCollect(instrumentStream(Stream.fromIterable(elements), named)))
        assert.isTrue(Exit.isSuccess(exit) && exit.value.every((element, index) => element === elements[index]))
      }))

    it.effect("fails as interrupted where its consumer stops early, after its finalizers, with the batches that were pulled", () =>
      Effect.gen(function*() {
        const log: Array<string> = []
        const batches = Stream.fromArrays([1, 2], [3, 4], [5, 6]).pipe(
          Stream.ensuring(Effect.sync(() => void log.push("finalizer")))
        )
        const { events, exit } = yield* observe(
          Effect.onExit(
            instrumentStream(batches, named).pipe(Stream.take(3), Stream.runCollect),
            () => Effect.sync(() => void log.push("caller"))
          ),
          { onEvent: (event) => void log.push(event.event_type) }
        )
        assert.deepStrictEqual(exit, Exit.succeed([1, 2, 3]))
        assert.deepStrictEqual(ends(events), [[4, "interrupt"]])
        assert.deepStrictEqual(log, ["execution_started", "finalizer", "execution_failed", "caller"])
      }))

    it.effect("fails with the count so far where it fails midway", () =>
      Effect.gen(function*() {
        for (
          const [end, kind] of [[Effect.fail(declined), "fail"], [Effect.die(defect), "die"], [
            Effect.interrupt,
            "interrupt"
          ]] as const
        ) {
          const { events, exit } = yield* observe(
            Stream.make(1, 2, 3).pipe(Stream.concat(Stream.fromEffect(end)), instrumentStream(named), Stream.runDrain)
          )
          assert.isTrue(Exit.isFailure(exit))
          assert.deepStrictEqual(ends(events), [[3, kind]])
        }
      }))

    it.effect("fails as interrupted where the consumer fails, which keeps its failure", () =>
      Effect.gen(function*() {
        const { events, exit } = yield* observe(
          Stream.runForEach(instrumentStream(Stream.make(1, 2, 3), named), (n) =>
            n === 2 ? Effect.fail("enough") : Effect.void)
        )
        assert.deepStrictEqual(exit, Exit.fail("enough"))
        assert.deepStrictEqual(ends(events), [[3, "interrupt"]])
      }))

    it.effect("fails as interrupted where it is idle for too long", () =>
      Effect.gen(function*() {
        const idle = yield* Deferred.make<void>()
        const stalling = Stream.concat(
          Stream.make(1, 2),
          Stream.fromEffect(Effect.andThen(Deferred.succeed(idle, undefined), Effect.never))
        )
        const fiber = yield* Effect.forkChild(observe(
          instrumentStream(stalling, named).pipe(
            Stream.timeoutOrElse({ duration: "1 second", orElse: () => Stream.make(3) }),
            Stream.runCollect
          )
        ))
        yield* Deferred.await(idle)
        yield* TestClock.adjust("1 second")
        const { events, exit } = yield* Fiber.join(fiber)
        assert.deepStrictEqual(exit, Exit.succeed([1, 2, 3]))
        assert.deepStrictEqual(ends(events), [[2, "interrupt"]])
      }))

    it.effect("is the parent of what it runs, and not of what its consumer runs", () =>
      Effect.gen(function*() {
        const leaf = (unit: string) => instrument(() => Effect.void, { name: unit })()
        const stream = Stream.make(1, 2).pipe(Stream.rechunk(1), Stream.tap(() => leaf("a.inside")))
        const { events } = yield* observe(
          instrumentStream(stream, named).pipe(Stream.rechunk(1), Stream.runForEach(() => leaf("a.outside")))
        )
        assert.deepStrictEqual(
          events.flatMap(({ event_type, parent_id, unit_name }) =>
            event_type === "execution_started" ? [[unit_name, parent_id]] : []
          ),
          [
            ["feed.read", undefined],
            ["a.inside", "id-1"],
            ["a.outside", undefined],
            ["a.inside", "id-1"],
            ["a.outside", undefined]
          ]
        )
      }))

    it.effect("is started anew by a retry", () =>
      Effect.gen(function*() {
        let run = 0
        const flaky = Stream.suspend(() =>
          ++run < 3 ? Stream.concat(Stream.make(run), Stream.fail("not yet")) : Stream.make(run)
        )
        const { events, exit } = yield* observe(
          instrumentStream(flaky, named).pipe(Stream.retry(Schedule.recurs(5)), Stream.runCollect)
        )
        assert.deepStrictEqual(exit, Exit.succeed([1, 2, 3]))
        assert.deepStrictEqual(ends(events), [[1, "fail"], [1, "fail"], [1, { chunks: 1 }]])
      }))
  })

  describe("keeps types", () => {
    class Cards
      extends Context.Service<Cards, { readonly pay: (amount: number) => Effect.Effect<Receipt, Declined> }>()(
        "test/Cards"
      )
    {}
    const pay = (amount: number, note?: string) => Cards.use((cards) => Effect.as(cards.pay(amount), note))

    it("of functions", () => {
      expectTypeOf(instrument(pay, { name })).toEqualTypeOf<
        (
          amount: number,
          note?: string
        ) => Effect.Effect<string | undefined, Declined, Cards | EventPublisher.EventPublisher>
      >()
      expectTypeOf(instrument({ name })(pay)).toEqualTypeOf<
        (
          amount: number,
          note?: string
        ) => Effect.Effect<string | undefined, Declined, Cards | EventPublisher.EventPublisher>
      >()
      expectTypeOf(instrument(() => Effect.void, { name })).toEqualTypeOf<
        () => Effect.Effect<void, never, EventPublisher.EventPublisher>
      >()
      const refused = () => [
        // @ts-expect-error - the parameter is a number
        instrument(pay, { name })("3"),
        // @ts-expect-error - the first parameter is not optional
        instrument(pay, { name })(),
        // @ts-expect-error - a function that gives no Effect has nothing to instrument
        instrument((n: number) => n, { name }),
        // @ts-expect-error - an execution has a name
        instrument(pay, {})
      ]
      assert.isFunction(refused)
    })

    it("of effects", () => {
      expectTypeOf(instrumentEffect(pay(1), { name })).toEqualTypeOf<
        Effect.Effect<string | undefined, Declined, Cards | EventPublisher.EventPublisher>
      >()
      expectTypeOf(pay(1).pipe(instrumentEffect({ name, input: 1 }))).toEqualTypeOf<
        Effect.Effect<string | undefined, Declined, Cards | EventPublisher.EventPublisher>
      >()
    })

    it("of streams", () => {
      const stream = Stream.fromEffect(pay(1))
      expectTypeOf(instrumentStream(stream, { name })).toEqualTypeOf<
        Stream.Stream<string | undefined, Declined, Cards | EventPublisher.EventPublisher>
      >()
      expectTypeOf(stream.pipe(instrumentStream({ name }))).toEqualTypeOf<
        Stream.Stream<string | undefined, Declined, Cards | EventPublisher.EventPublisher>
      >()
    })

    it("and asks for a publisher", () => {
      // @ts-expect-error - what publishes needs a publisher before it can run
      // @effect-diagnostics-next-line missingEffectContext:off
      const run: Effect.Effect<void> = instrument(() => Effect.void, { name })()
      assert.isTrue(Effect.isEffect(run))
    })
  })
})
