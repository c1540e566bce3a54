/**
 * What the lifecycle events of a unit cost its caller, beside the same events by other means.
 *
 * Every case does the same trivial work, `n + 1`. What the events cost is the difference to the case named as its baseline.
 */
import "reflect-metadata"
import { Inject, Module } from "@nestjs/common"
import { NestFactory } from "@nestjs/core"
import { CommandBus, CommandHandler, CqrsModule, EventBus as NestEventBus, EventsHandler } from "@nestjs/cqrs"
import { BasicTracerProvider, type SpanProcessor } from "@opentelemetry/sdk-trace-base"
import { Context, Effect, Layer, ManagedRuntime, Schema, Stream } from "effect"
import assert from "node:assert/strict"
import { randomUUID } from "node:crypto"
import { tracingChannel } from "node:diagnostics_channel"
import { mkdtempSync, rmSync } from "node:fs"
import { tmpdir } from "node:os"
import { join } from "node:path"
import * as EventBus from "../src/EventBus.ts"
import * as EventPublisher from "../src/EventPublisher.ts"
import * as EventStore from "../src/EventStore.ts"
import * as Execution from "../src/Execution.ts"
import * as ExecutionEvent from "../src/ExecutionEvent.ts"
import { instrument, instrumentEffect } from "../src/instrument.ts"
import * as Sqlite from "../src/publishers/Sqlite.ts"
import * as Unit from "../src/Unit.ts"
import type { InvalidInput } from "../src/UnitError.ts"
import { type Case, main, measure, type Measured, repeat, type Report, type Target } from "./harness.ts"

interface Input {
  readonly n: number
}

type Work<R = never> = (input: Input) => Effect.Effect<Input, InvalidInput, R>

/** Closed when all is measured. */
const opened: Array<{ readonly dispose: () => Promise<void> }> = []

const open = <R, E>(layer: Layer.Layer<R, E>): ManagedRuntime.ManagedRuntime<R, E> => {
  const runtime = ManagedRuntime.make(layer)
  opened.push(runtime)
  return runtime
}

const increment = ({ n }: Input): Effect.Effect<Input> => Effect.succeed({ n: n + 1 })
const instrumented = instrument(increment, { name: "bench.increment" })
const unit = Unit.query("bench.increment_unit", {
  description: "The next number",
  input: { n: Schema.Int },
  output: { n: Schema.Int },
  errors: [],
  handler: increment
})
const spanned = (input: Input) => Effect.withSpan(increment(input), "bench.increment")

const gives = async (result: Effect.Effect<Input, unknown>): Promise<void> =>
  assert.deepEqual(await Effect.runPromise(result), { n: 2 })

/** Keeps the newest 10,000 of what is pushed, as `EventPublisher.layerMemory` does. */
const makeSink = () => {
  const kept: Array<unknown> = []
  let next = 0
  return {
    kept,
    push: (event: unknown): void => {
      kept[next] = event
      next = (next + 1) % 10_000
    }
  }
}

/** The event types of what was published last. */
const lastTypes = (events: ReadonlyArray<unknown>, count: number) =>
  events.slice(-count).map((event) => ExecutionEvent.isExecutionEvent(event) ? event.event_type : undefined)

const both = ["execution_started", "execution_completed"]

/** A case of one Effect after the other, in the runtime of a Layer. */
const ofLayer = <R>(
  name: string,
  baseline: string,
  runtime: ManagedRuntime.ManagedRuntime<R, unknown>,
  work: Work<R>,
  verify: (ran: Input) => Effect.Effect<unknown, unknown, R> = () => Effect.void
): Case => ({
  name,
  baseline,
  verify: () =>
    runtime.runPromise(Effect.flatMap(work({ n: 1 }), (ran) => {
      assert.deepEqual(ran, { n: 2 })
      return verify(ran)
    })),
  run: (calls) => runtime.runPromise(repeat(calls, (n) => work({ n })))
})

const memoryHas = (...types: ReadonlyArray<string>) => () =>
  EventPublisher.Memory.use((memory) =>
    Effect.map(memory.events, (events) => assert.deepEqual(lastTypes(events, types.length), types))
  )

type Around = <E>(
  self: Effect.Effect<void, E, EventPublisher.EventPublisher>
) => Effect.Effect<void, E, EventPublisher.EventPublisher>

const alone: Around = (self) => self

/** Everything that an event can carry: a parent, attributes and a span around it. */
const surrounded: Around = (self) =>
  instrumentEffect(self, { name: "bench.batch" }).pipe(
    Execution.annotate({ request_id: "r-17", user_id: "ada" }),
    Effect.withSpan("bench.batch")
  )

const hasEverything = (event: ExecutionEvent.ExecutionEvent | undefined): void => {
  assert(event !== undefined)
  assert.deepEqual(event.attributes, { request_id: "r-17", user_id: "ada" })
  assert(event.parent_id !== undefined && event.root_id === event.parent_id && event.correlation_id !== event.parent_id)
  assert(event.trace_id !== undefined && event.span_id !== undefined && event.sequence > 0)
}

const surroundedMemory = (
  name: string,
  baseline: string,
  runtime: ManagedRuntime.ManagedRuntime<EventPublisher.EventPublisher | EventPublisher.Memory, never>,
  work: Work<EventPublisher.EventPublisher>
): Case => ({
  name,
  baseline,
  verify: () =>
    runtime.runPromise(Effect.gen(function*() {
      const memory = yield* EventPublisher.Memory
      yield* memory.clear
      yield* surrounded(Effect.asVoid(work({ n: 1 })))
      const events = yield* memory.events
      assert.deepEqual(lastTypes(events, 4), ["execution_started", ...both, "execution_completed"])
      hasEverything(events.at(-3))
      hasEverything(events.at(-2))
    })),
  run: (calls) => runtime.runPromise(surrounded(repeat(calls, (n) => work({ n }))))
})

const withoutEvents = (): ReadonlyArray<Case> => {
  const runtime = open(Layer.empty)
  return [
    {
      name: "bare Effect",
      verify: () => gives(increment({ n: 1 })),
      run: (calls) => runtime.runPromise(repeat(calls, (n) => increment({ n })))
    },
    ofLayer("Effect.withSpan, no tracer", "bare Effect", runtime, spanned)
  ]
}

const publishers = (): ReadonlyArray<Case> => {
  const noop = open(EventPublisher.layerNoop)
  const discarding = open(EventPublisher.layer({ publish: () => {} }))
  const memory = open(EventPublisher.layerMemory)
  return [
    ofLayer("noop", "bare Effect", noop, instrumented),
    ofLayer("noop, unit", "bare Effect", noop, unit),
    ofLayer("unit.handler: input checks, no events", "bare Effect", noop, unit.handler),
    ofLayer("a function that discards events", "bare Effect", discarding, instrumented),
    ofLayer("memory", "bare Effect", memory, instrumented, memoryHas(...both)),
    ofLayer("memory, unit", "bare Effect", memory, unit, memoryHas(...both)),
    surroundedMemory("memory, parent + attributes + span", "bare Effect", memory, instrumented),
    surroundedMemory("memory, unit, parent + attributes + span", "bare Effect", memory, unit)
  ]
}

/** So many functions, one call of each after the other. */
const inTurn = (count: number): Case => {
  const units = Array.from({ length: count }, (_, index) => instrument(increment, { name: `bench.number_${index}` }))
  const name = `memory, ${count.toLocaleString("en")} instrumented functions in turn`
  // In bounds by the remainder.
  const next = (input: Input) => units[input.n % count]!(input)
  return ofLayer(
    name,
    "bare Effect",
    open(EventPublisher.layerMemory),
    next,
    () =>
      EventPublisher.Memory.use((memory) =>
        Effect.map(memory.events, (events) => assert.equal(events.at(-1)?.unit_name, "bench.number_1"))
      )
  )
}

/** Serialisation happens where events are read, so it is measured where they are: in batches, between which the memory is cleared. */
const serialisation = (): ReadonlyArray<Case> => {
  const memory = open(EventPublisher.layerMemory)
  const serialised = (
    name: string,
    serialise: (event: ExecutionEvent.ExecutionEvent) => unknown
  ): Case => {
    const batch = (size: number) =>
      EventPublisher.Memory.use((service) =>
        repeat(size, (n) => instrumented({ n })).pipe(
          Effect.andThen(service.events),
          Effect.map((events) => events.map(serialise)),
          Effect.tap(service.clear)
        )
      )
    return {
      name,
      baseline: "memory",
      verify: async () => {
        await memory.runPromise(EventPublisher.Memory.use((service) => service.clear))
        const [started, completed] = await memory.runPromise(batch(1))
        assert.deepEqual(
          [started, completed].map((event) => typeof event === "string" ? JSON.parse(event) : event).map(
            ({ event_type, input, output }) => ({ event_type, input, output })
          ),
          [
            { event_type: "execution_started", input: { n: 0 }, output: undefined },
            { event_type: "execution_completed", input: undefined, output: { n: 1 } }
          ]
        )
      },
      run: (calls) =>
        memory.runPromise(repeat(Math.ceil(calls / 500), (index) => batch(Math.min(500, calls - index * 500))))
    }
  }
  return [
    serialised("memory, then toJson of both events", ExecutionEvent.toJson),
    serialised("memory, then JSON text of both events", (event) => JSON.stringify(ExecutionEvent.toJson(event)))
  ]
}

/** Goes on when a condition holds, and lets others run until then. */
const until = (holds: () => boolean): Effect.Effect<void> =>
  Effect.suspend(() => holds() ? Effect.void : Effect.andThen(Effect.yieldNow, until(holds)))

/** A sample ends when every subscriber has seen every event. */
const bus = (name: string, count: number, around: Around): Case => {
  const seen = Array.from({ length: count }, () => 0)
  let last: ExecutionEvent.ExecutionEvent | undefined
  const subscribe = (index: number) =>
    Effect.gen(function*() {
      const service = yield* EventBus.EventBus
      const events = yield* service.subscription({
        onGap: (missed) => Effect.die(`A subscriber missed ${missed} events`)
      })
      yield* Stream.runForEachArray(events, (chunk) =>
        Effect.sync(() => {
          seen[index] = (seen[index] ?? 0) + chunk.length
          last = chunk.at(-1)
        })).pipe(Effect.forkScoped)
    })
  const subscribers = Layer.effectDiscard(Effect.forEach(seen.keys(), subscribe, { discard: true }))
  const runtime = open(Layer.provideMerge(subscribers, EventPublisher.layerBus))
  // `surrounded` is an execution of its own.
  const more = around === surrounded ? 2 : 0
  const run = (calls: number) =>
    Effect.suspend(() => {
      const expected = (seen[0] ?? 0) + 2 * calls + more
      return Effect.andThen(
        around(repeat(calls, (n) => instrumented({ n }))),
        until(() => seen.every((events) => events >= expected))
      )
    })
  return {
    name,
    baseline: "bare Effect",
    verify: async () => {
      await runtime.runPromise(run(3))
      assert(seen.every((events) => events === 6 + more))
      assert.equal(last?.event_type, count === 0 ? undefined : "execution_completed")
    },
    run: (calls) => runtime.runPromise(run(calls))
  }
}

/** A sample ends when the publisher behind the buffer has every event. */
const buffered = (): Case => {
  let published = 0
  const runtime = open(
    EventPublisher.layer({
      publish: () => {
        published++
      }
    }).pipe(EventPublisher.buffered({ capacity: 1_000_000, strategy: "dropping" }))
  )
  const run = (calls: number) =>
    Effect.suspend(() => {
      const expected = published + 2 * calls
      return Effect.andThen(repeat(calls, (n) => instrumented({ n })), until(() => published >= expected))
    })
  return {
    name: "buffered, published in the background",
    baseline: "bare Effect",
    verify: async () => {
      await runtime.runPromise(run(3))
      assert.equal(published, 6)
    },
    run: (calls) => runtime.runPromise(run(calls))
  }
}

/** A sample ends when every event is committed. */
const sqlite = (directory: string): Case => {
  const runtime = open(
    Sqlite.layer({ filename: join(directory, "instrument.db"), capacity: 1_000_000, linger: 0 })
  )
  const committed = (offset: number): Effect.Effect<void, EventStore.EventStoreError, EventStore.EventStore> =>
    EventStore.EventStore.use((store) =>
      Effect.flatMap(
        store.lastOffset,
        (last) => last >= offset ? Effect.void : Effect.andThen(Effect.sleep(1), committed(offset))
      )
    )
  const run = (calls: number) =>
    EventStore.EventStore.use((store) =>
      Effect.flatMap(
        store.lastOffset,
        (before) => Effect.andThen(repeat(calls, (n) => instrumented({ n })), committed(before + 2 * calls))
      )
    )
  return {
    name: "SQLite, both events committed",
    baseline: "bare Effect",
    verify: async () => {
      await runtime.runPromise(run(3))
      const entries = await runtime.runPromise(EventStore.EventStore.use((store) => store.read()))
      assert.deepEqual(lastTypes(entries.map(({ event }) => event), 6), [...both, ...both, ...both])
    },
    run: (calls) => runtime.runPromise(run(calls))
  }
}

/** So many services besides those of the Layer. */
const services = (count: number): Layer.Layer<never> =>
  Layer.succeedContext(
    Context.makeUnsafe(new Map(Array.from({ length: count }, (_, index) => [`bench/${index}`, index])))
  )

const inContext = (count: number): ReadonlyArray<Case> => {
  const name = `bare Effect, ${count} services in the context`
  const bare = open(services(count))
  const memory = open(Layer.merge(EventPublisher.layerMemory, services(count)))
  return [
    {
      name,
      verify: async () => {
        const { mapUnsafe } = await bare.runPromise(Effect.context<never>())
        assert(mapUnsafe.has("bench/0") && mapUnsafe.has(`bench/${count - 1}`))
        await gives(increment({ n: 1 }))
      },
      run: (calls) => bare.runPromise(repeat(calls, (n) => increment({ n })))
    },
    ofLayer(`memory, ${count} services in the context`, name, memory, instrumented, memoryHas(...both))
  ]
}

/** Executions in executions. Figures are per execution, so all depths can be compared. */
const nested = (depth: number): ReadonlyArray<Case> => {
  const runtime = open(EventPublisher.layerMemory)
  type Level = Work<EventPublisher.EventPublisher>
  const tower = (level: (work: Level) => Level): Level => {
    let work: Level = level(increment)
    for (let index = 1; index < depth; index++) {
      const inner = work
      work = level((input) => Effect.map(inner(input), (output) => output))
    }
    return work
  }
  const bare = tower((work) => work)
  const events = tower((work) => instrument(work, { name: "bench.level" }))
  const perExecution = (work: Level) => (calls: number) =>
    runtime.runPromise(repeat(Math.ceil(calls / depth), (n) => work({ n })))
  const name = `bare Effect, ${depth} deep`
  const started = Array.from({ length: depth }, () => "execution_started")
  return [
    { name, verify: () => runtime.runPromise(bare({ n: 1 })), run: perExecution(bare) },
    {
      ...ofLayer(
        `memory, ${depth} deep`,
        name,
        runtime,
        events,
        () =>
          EventPublisher.Memory.use((memory) =>
            Effect.map(memory.events, (all) => {
              const [root, ...below] = all.slice(-2 * depth)
              assert.deepEqual(lastTypes(all, 2 * depth), [
                ...started,
                ...started.map(() => "execution_completed")
              ])
              assert(below.every((event) => event.root_id === root?.correlation_id))
            })
          )
      ),
      run: perExecution(events)
    }
  ]
}

/** Executions that let other fibers run in between. */
const fibers = (count: number): ReadonlyArray<Case> => {
  const runtime = open(EventPublisher.layerMemory)
  const yielding = ({ n }: Input): Effect.Effect<Input> => Effect.as(Effect.yieldNow, { n: n + 1 })
  const events = instrument(yielding, { name: "bench.yielding" })
  const atOnce = (work: Work<EventPublisher.EventPublisher>) => (calls: number) =>
    runtime.runPromise(
      Effect.forEach(
        Array.from({ length: Math.min(count, calls) }),
        () => repeat(Math.ceil(calls / count), (n) => work({ n })),
        { concurrency: "unbounded", discard: true }
      )
    )
  const label = count === 1 ? "1 fiber" : `${count.toLocaleString("en")} fibers at once`
  const name = `bare Effect that yields, ${label}`
  // So many that what a fiber costs is no part of what its executions cost.
  const leastCalls = 30 * count
  return [
    { name, leastCalls, verify: () => gives(yielding({ n: 1 })), run: atOnce(yielding) },
    { ...ofLayer(`memory, ${label}`, name, runtime, events, memoryHas(...both)), leastCalls, run: atOnce(events) }
  ]
}

interface HandEvent {
  readonly event_type: string
  readonly correlation_id: string
  readonly timestamp: number
  readonly [field: string]: unknown
}

const byHand = (): ReadonlyArray<Case> => {
  const sink = makeSink()
  const announced = (input: Input): HandEvent => ({
    event_type: "execution_started",
    domain: "bench",
    unit_name: "bench.increment",
    correlation_id: randomUUID(),
    timestamp: Date.now(),
    input
  })
  const ended = (started: HandEvent, event_type: string, fields: Readonly<Record<string, unknown>>): HandEvent => {
    const timestamp = Date.now()
    return {
      event_type,
      domain: "bench",
      unit_name: "bench.increment",
      correlation_id: started.correlation_id,
      timestamp,
      duration_ms: timestamp - started.timestamp,
      ...fields
    }
  }

  const sync = ({ n }: Input): Input => ({ n: n + 1 })
  const syncEvents = (input: Input): Input => {
    const started = announced(input)
    sink.push(started)
    try {
      const output = sync(input)
      sink.push(ended(started, "execution_completed", { output }))
      return output
    } catch (error) {
      sink.push(ended(started, "execution_failed", { error: String(error) }))
      throw error
    }
  }

  const async = async ({ n }: Input): Promise<Input> => ({ n: n + 1 })
  const asyncEvents = async (input: Input): Promise<Input> => {
    const started = announced(input)
    sink.push(started)
    try {
      const output = await async(input)
      sink.push(ended(started, "execution_completed", { output }))
      return output
    } catch (error) {
      sink.push(ended(started, "execution_failed", { error: String(error) }))
      throw error
    }
  }

  class Publish extends Context.Service<Publish, (event: HandEvent) => Effect.Effect<void>>()("bench/Publish") {}
  const publishing = Layer.succeed(Publish, (event) => Effect.sync(() => sink.push(event)))
  const runtime = open(publishing)
  const combined = Effect.fnUntraced(function*(input: Input) {
    const publish = yield* Publish
    const started = announced(input)
    yield* publish(started)
    return yield* increment(input).pipe(
      Effect.tap((output) => publish(ended(started, "execution_completed", { output }))),
      Effect.tapCause((cause) => publish(ended(started, "execution_failed", { error: String(cause) })))
    )
  })

  let result: unknown
  const times = (work: (input: Input) => unknown) => (calls: number): void => {
    for (let n = 0; n < calls; n++) result = work({ n })
  }
  const awaited = (work: (input: Input) => Promise<unknown>) => async (calls: number): Promise<void> => {
    for (let n = 0; n < calls; n++) result = await work({ n })
  }
  const publishesBoth = async (work: () => unknown): Promise<void> => {
    sink.kept.length = 0
    result = await work()
    assert.deepEqual(result, { n: 2 })
    assert.deepEqual(lastTypes(sink.kept, 2), both)
  }
  return [
    { name: "bare function", verify: () => assert.deepEqual(sync({ n: 1 }), { n: 2 }), run: times(sync) },
    {
      name: "function, events by hand",
      baseline: "bare function",
      verify: () => publishesBoth(() => syncEvents({ n: 1 })),
      run: times(syncEvents)
    },
    {
      name: "bare async function",
      verify: async () => assert.deepEqual(await async({ n: 1 }), { n: 2 }),
      run: awaited(async)
    },
    {
      name: "async function, events by hand",
      baseline: "bare async function",
      verify: () => publishesBoth(() => asyncEvents({ n: 1 })),
      run: awaited(asyncEvents)
    },
    {
      name: "Effect.gen, tap and tapCause, events by hand",
      baseline: "bare Effect",
      verify: () => publishesBoth(() => runtime.runPromise(combined({ n: 1 }))),
      run: (calls) => runtime.runPromise(repeat(calls, (n) => combined({ n })))
    }
  ]
}

/** One span that is recorded and ended; the processor counts it and lets go of it. */
const openTelemetry = (): Case => {
  let ended = 0
  const processor: SpanProcessor = {
    onStart: () => {},
    onEnd: () => {
      ended++
    },
    forceFlush: () => Promise.resolve(),
    shutdown: () => Promise.resolve()
  }
  const tracer = new BasicTracerProvider({ spanProcessors: [processor] }).getTracer("bench")
  const traced = ({ n }: Input): Input => {
    const span = tracer.startSpan("bench.increment")
    try {
      return { n: n + 1 }
    } finally {
      span.end()
    }
  }
  let result: unknown
  return {
    name: "OpenTelemetry, one span",
    baseline: "bare function",
    verify: () => {
      assert.deepEqual(traced({ n: 1 }), { n: 2 })
      assert.equal(ended, 1)
    },
    run: (calls) => {
      for (let n = 0; n < calls; n++) result = traced({ n })
      return result
    }
  }
}

const diagnosticsChannel = (): Case => {
  const channel = tracingChannel<unknown, { readonly n: number; result?: unknown }>("bench.increment")
  const sink = makeSink()
  channel.start.subscribe((message) => sink.push(message))
  channel.end.subscribe((message) => sink.push(message))
  const traced = (input: Input): Input => channel.traceSync(({ n }) => ({ n: n + 1 }), { n: input.n }, undefined, input)
  let result: unknown
  return {
    name: "node:diagnostics_channel, start and end",
    baseline: "bare function",
    verify: () => {
      assert.deepEqual(traced({ n: 1 }), { n: 2 })
      assert.deepEqual(sink.kept, [{ n: 1, result: { n: 2 } }, { n: 1, result: { n: 2 } }])
    },
    run: (calls) => {
      for (let n = 0; n < calls; n++) result = traced({ n })
      return result
    }
  }
}

/** A command on its bus; the same command with two events on theirs, each with a handler. Decorators are called by hand. */
const nestJs = async (): Promise<ReadonlyArray<Case>> => {
  let handled = 0
  class Increment {
    readonly n: number
    constructor(n: number) {
      this.n = n
    }
  }
  class ReportedIncrement extends Increment {}
  class Started {
    readonly correlation_id: string
    readonly input: Input
    constructor(correlation_id: string, input: Input) {
      this.correlation_id = correlation_id
      this.input = input
    }
  }
  class Completed {
    readonly correlation_id: string
    readonly output: Input
    constructor(correlation_id: string, output: Input) {
      this.correlation_id = correlation_id
      this.output = output
    }
  }
  class IncrementHandler {
    async execute({ n }: Increment): Promise<Input> {
      return { n: n + 1 }
    }
  }
  class ReportedIncrementHandler {
    private readonly events: NestEventBus
    constructor(events: NestEventBus) {
      this.events = events
    }
    async execute({ n }: ReportedIncrement): Promise<Input> {
      const id = randomUUID()
      this.events.publish(new Started(id, { n }))
      const output = { n: n + 1 }
      this.events.publish(new Completed(id, output))
      return output
    }
  }
  class EventHandler {
    handle(): void {
      handled++
    }
  }
  CommandHandler(Increment)(IncrementHandler)
  CommandHandler(ReportedIncrement)(ReportedIncrementHandler)
  Inject(NestEventBus)(ReportedIncrementHandler, undefined, 0)
  EventsHandler(Started, Completed)(EventHandler)
  const start = async (eventHandlers: ReadonlyArray<typeof EventHandler>): Promise<CommandBus> => {
    // oxlint-disable-next-line typescript/no-extraneous-class - NestJS knows modules by their class
    class BenchModule {}
    Module({
      imports: [CqrsModule.forRoot()],
      providers: [IncrementHandler, ReportedIncrementHandler, ...eventHandlers]
    })(BenchModule)
    const app = await NestFactory.createApplicationContext(BenchModule, { logger: false })
    opened.push({ dispose: () => app.close() })
    return app.get(CommandBus)
  }
  const unheard = await start([])
  const heard = await start([EventHandler])
  let result: unknown
  const execute = (commands: CommandBus, make: (n: number) => Increment) => async (calls: number): Promise<unknown> => {
    for (let n = 0; n < calls; n++) result = await commands.execute(make(n))
    return result
  }
  const verify = (commands: CommandBus, command: Increment, events: number) => async (): Promise<void> => {
    handled = 0
    assert.deepEqual(await commands.execute(command), { n: 2 })
    assert.equal(handled, events)
  }
  const bare = "NestJS CQRS, bare command"
  return [
    { name: bare, verify: verify(heard, new Increment(1), 0), run: execute(heard, (n) => new Increment(n)) },
    {
      name: "NestJS CQRS, command and two events that nobody handles",
      baseline: bare,
      verify: verify(unheard, new ReportedIncrement(1), 0),
      run: execute(unheard, (n) => new ReportedIncrement(n))
    },
    {
      name: "NestJS CQRS, command and two events, a handler each",
      baseline: bare,
      verify: verify(heard, new ReportedIncrement(1), 2),
      run: execute(heard, (n) => new ReportedIncrement(n))
    }
  ]
}

const round = (value: number): string => value.toFixed(Math.abs(value) < 10 ? 1 : 0)

const signed = (value: number): string => `${value < 0 ? "" : "+"}${round(value)}`

const overOf = (measured: ReadonlyArray<Measured>) => (name: string): number => {
  const found = measured.find((each) => each.name === name)?.overNs
  assert(found !== undefined, `${name} was not measured beside a baseline`)
  return found
}

const limits = (measured: ReadonlyArray<Measured>, where: string): ReadonlyArray<Target> => {
  const over = overOf(measured)
  const atMost = (name: string, limit: number): Target => ({
    target: `${where}, ${name}: at most +${limit} ns`,
    measured: `${signed(over(name))} ns`,
    met: over(name) <= limit
  })
  const span = over("Effect.withSpan, no tracer")
  const handedOver = measured.filter(({ name }) =>
    /^(noop|memory|bus, [01] subscribers?)(, unit|, parent.*)*$/.test(name)
  )
  const [dearest = ""] = handedOver.map(({ name }) => name).toSorted((a, b) => over(b) - over(a))
  return [
    atMost("noop", 50),
    atMost("memory, parent + attributes + span", 400),
    atMost("bus, 0 subscribers, parent + attributes + span", 400),
    {
      target: `${where}, any of noop, memory and bus: at most a sixth of Effect.withSpan`,
      measured: `1/${(span / over(dearest)).toFixed(1)} (${dearest})`,
      met: over(dearest) <= span / 6
    }
  ]
}

const growth = (measured: ReadonlyArray<Measured>): ReadonlyArray<Target> => {
  const over = overOf(measured)
  // The same case measured twice differs by as much.
  const tolerance = 0.15
  const noDearer = (name: string, than: string): Target => ({
    target: `${name}: no dearer than "${than}", within ${100 * tolerance} %`,
    measured: `${(over(name) / over(than)).toFixed(2)}×`,
    met: over(name) <= (1 + tolerance) * over(than)
  })
  return [
    noDearer("memory, 100 services in the context", "memory, 3 services in the context"),
    noDearer("memory, 100 instrumented functions in turn", "memory")
  ]
}

const rowsOf = (measured: ReadonlyArray<Measured>, where: string): Report["rows"] => {
  const byName = new Map(measured.map((each) => [each.name, each]))
  const span = byName.get("Effect.withSpan, no tracer")?.overNs ?? Number.NaN
  return measured.map(({ baseline, bytes, medianNs, minNs, name, overNs }) => {
    const base = baseline === undefined ? undefined : byName.get(baseline)
    return {
      what: where + name,
      ns: round(minNs),
      "median ns": round(medianNs),
      "over its baseline": overNs === undefined ? "" : signed(overNs),
      "times it": base === undefined ? "" : (minNs / base.minNs).toFixed(1),
      "of withSpan": overNs === undefined ? "" : (overNs / span).toFixed(2),
      bytes: round(bytes),
      baseline: baseline ?? ""
    }
  })
}

/** Every case, in the order of the table: the first ones before the process has run anything else, and all together. */
export const run = async (quick: boolean): Promise<Report> => {
  const directory = mkdtempSync(join(tmpdir(), "effect-units-bench-"))
  try {
    const first = [
      ...withoutEvents(),
      ...publishers(),
      bus("bus, 0 subscribers, parent + attributes + span", 0, surrounded)
    ]
    const apart = await measure(first, quick)
    const together = await measure([
      ...first,
      ...[100, 1000].map(inTurn),
      ...serialisation(),
      bus("bus, 0 subscribers", 0, alone),
      bus("bus, 1 subscriber", 1, alone),
      bus("bus, 1 subscriber, parent + attributes + span", 1, surrounded),
      bus("bus, 100 subscribers", 100, alone),
      buffered(),
      sqlite(directory),
      ...[3, 30, 100].flatMap(inContext),
      ...[1, 5, 20].flatMap(nested),
      ...[1, 1000].flatMap(fibers),
      ...byHand(),
      openTelemetry(),
      diagnosticsChannel(),
      ...await nestJs()
    ], quick)
    return {
      title: "instrument: one execution with its two events",
      rows: [...rowsOf(apart, "apart: "), ...rowsOf(together, "")],
      notes: [
        "ns: the least of many interleaved samples, per execution. Bytes: allocated on the heap, per execution. " +
        "Bus, buffer and SQLite: until every subscriber has seen, or the publisher behind has taken, every event. " +
        "\"Times it\": the whole beside the whole of its baseline. \"Of withSpan\": what is over the baseline, beside what a span adds.",
        "Apart: in a process that has run nothing else, so that what is measured is compiled for itself alone. The others take turns " +
        "with all that is in the table, which is more like a program."
      ],
      targets: [...limits(apart, "apart"), ...limits(together, "together"), ...growth(together)]
    }
  } finally {
    for (const each of opened.splice(0)) await each.dispose()
    rmSync(directory, { recursive: true, force: true })
  }
}

if (import.meta.main) await main([run])
