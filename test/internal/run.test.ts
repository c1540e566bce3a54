import { assert, describe, it } from "@effect/vitest"
import { Cause, Clock, Deferred, Effect, Exit, Fiber, Layer, LayerRef, Option, Scheduler, Schema, Stream } from "effect"
import { TestClock } from "effect/testing"
import * as EventPublisher from "../../src/EventPublisher.ts"
import { type ExecutionEvent, fromJson, isExecutionEvent, isTerminal, toJson } from "../../src/ExecutionEvent.ts"
import { instrument, instrumentEffect, instrumentStream } from "../../src/instrument.ts"
import { violations } from "../../src/testing/lifecycle.ts"
import * as Unit from "../../src/Unit.ts"

/** Interrupts one fiber at a step of the program: while it runs, or while it waits for its turn. */
class InterruptAt extends Scheduler.MixedScheduler {
  steps = 0
  target: Fiber.Fiber<unknown, unknown> | undefined
  readonly at: number
  readonly mode: "running" | "waiting"

  constructor(at: number, mode: "running" | "waiting") {
    super()
    this.at = at
    this.mode = mode
  }

  override shouldYield(fiber: Fiber.Fiber<unknown, unknown>): boolean {
    const { target } = this
    if (target === undefined || ++this.steps !== this.at) return super.shouldYield(fiber)
    if (this.mode === "running") {
      target.interruptUnsafe()
      return false
    }
    queueMicrotask(() => target.interruptUnsafe())
    return true
  }
}

/** Runs a program on a fiber of its own, which is interrupted at a step. `steps` is how many there were. */
const interruptedAt = <A, E>(program: Effect.Effect<A, E>, at: number, mode: "running" | "waiting") =>
  Effect.suspend(() => {
    const scheduler = new InterruptAt(at, mode)
    const marked = Effect.withFiber((fiber: Fiber.Fiber<unknown, unknown>) => {
      scheduler.target = fiber
      return program
    })
    return Effect.forkDetach(Effect.provideService(marked, Scheduler.Scheduler, scheduler)).pipe(
      Effect.flatMap(Fiber.await),
      Effect.map((exit) => ({ exit, steps: scheduler.steps }))
    )
  })

/** What a program takes and gives back. */
class Ledger {
  taken = 0
  returned = 0
  readonly resource = Effect.acquireRelease(
    Effect.sync(() => void this.taken++),
    () => Effect.andThen(Effect.yieldNow, Effect.sync(() => void this.returned++))
  )
}

const leaf = (ledger: Ledger) =>
  Unit.query("deep.leaf", {
    description: "Takes a resource for a moment",
    input: { n: Schema.Int },
    output: { n: Schema.Int },
    errors: [],
    handler: ({ n }) => ledger.resource.pipe(Effect.andThen(Effect.yieldNow), Effect.as({ n }), Effect.scoped)
  })

/** Publishers by how an event gets to its transport. */
const publishers: Readonly<Record<string, (record: (event: EventPublisher.Event) => void) => EventPublisher.Options>> =
  {
    "an open one": (record) => ({ publish: record }),
    "a closed one that acknowledges late": (record) => ({
      policy: "closed",
      publish: (event) => Effect.andThen(Effect.sync(() => record(event)), Effect.yieldNow)
    }),
    "a closed one that delivers late": (record) => ({
      policy: "closed",
      publish: (event) => Effect.andThen(Effect.yieldNow, Effect.sync(() => record(event)))
    }),
    "a transactional one": (record) => ({
      policy: "transactional",
      publish: (event) => Effect.andThen(Effect.sync(() => record(event)), Effect.yieldNow),
      transaction: {
        run: (work, completed) =>
          Effect.tap(work, (output) =>
            Effect.sync(() => {
              const event = completed(output)
              if (event !== undefined) record(event)
            }))
      }
    })
  }

/** Programs of one root execution. */
const programs: Readonly<
  Record<string, (ledger: Ledger) => Effect.Effect<unknown, unknown, EventPublisher.EventPublisher>>
> = {
  "a unit": (ledger) => leaf(ledger)({ n: 1 }),
  "a unit by its wire": (ledger) => leaf(ledger).execute({ n: 1 }),
  "a function that succeeds at once": () => instrument(() => Effect.succeed(1), { name: "deep.root" })(),
  "nested units, in turn and at once": (ledger) =>
    instrument(
      () =>
        Effect.gen(function*() {
          yield* ledger.resource
          yield* leaf(ledger)({ n: 1 })
          yield* Effect.all([leaf(ledger)({ n: 2 }), leaf(ledger)({ n: 3 })], { concurrency: 2 })
        }).pipe(Effect.scoped),
      { name: "deep.root" }
    )(),
  "a race": (ledger) =>
    instrument(() => Effect.race(leaf(ledger)({ n: 1 }), Effect.andThen(leaf(ledger)({ n: 2 }), Effect.never)), {
      name: "deep.root"
    })(),
  "a failure that is caught": (ledger) =>
    instrument(
      () =>
        instrument(() => Effect.andThen(leaf(ledger)({ n: 1 }), Effect.fail("no")), { name: "deep.failing" })().pipe(
          Effect.catch(() => leaf(ledger)({ n: 2 }))
        ),
      { name: "deep.root" }
    )(),
  "an uninterruptible region": (ledger) =>
    instrument(() => Effect.andThen(Effect.uninterruptible(leaf(ledger)({ n: 1 })), Effect.yieldNow), {
      name: "deep.root"
    })(),
  "a finalizer that runs a unit": (ledger) =>
    instrument(() => Effect.ensuring(Effect.yieldNow, Effect.orDie(leaf(ledger)({ n: 1 }))), { name: "deep.root" })(),
  "a stream": (ledger) =>
    Stream.scoped(Stream.fromEffect(ledger.resource)).pipe(
      Stream.flatMap(() => Stream.make(1, 2)),
      Stream.rechunk(1),
      Stream.mapEffect((n) => leaf(ledger)({ n })),
      instrumentStream({ name: "deep.root" }),
      Stream.runDrain
    ),
  "a stream that is left early": (ledger) =>
    Stream.scoped(Stream.fromEffect(ledger.resource)).pipe(
      Stream.flatMap(() => Stream.make(1, 2, 3)),
      Stream.rechunk(1),
      instrumentStream({ name: "deep.root" }),
      Stream.take(1),
      Stream.mapEffect((n) => leaf(ledger)({ n })),
      Stream.runDrain
    )
}

describe("run", () => {
  describe("ends what it started, at whatever step it is interrupted", () => {
    const modes = ["running", "waiting"] as const
    const cases = Object.entries(programs).flatMap(([name, program]) =>
      Object.entries(publishers).flatMap(([publisher, options]) =>
        modes.map((mode) => ({
          title: `${name}, interrupted while ${mode}, ${publisher}`,
          name,
          program,
          publisher,
          options,
          mode
        }))
      )
    )

    it.live.each(cases)("$title", ({ mode, name, options, program }) =>
      Effect.gen(function*() {
        const seen = { untouched: 0, interrupted: 0, completed: 0 }
        for (let at = 1;; at++) {
          const where = `at step ${at}`
          const events: Array<ExecutionEvent> = []
          const ledger = new Ledger()
          const publisher = yield* EventPublisher.make(options((event) => {
            if (isExecutionEvent(event)) events.push(event)
          }))
          const { exit, steps } = yield* interruptedAt(
            Effect.provideService(program(ledger), EventPublisher.EventPublisher, publisher),
            at,
            mode
          )
          // Where publishing takes time, events of different executions may overtake each other; none is lost.
          assert.deepStrictEqual(violations(events, { ignoreSequence: publisher.waits }), [], where)
          assert.deepStrictEqual(
            events.map(({ sequence }) => sequence).sort((a, b) => a - b),
            events.map((_, index) => index + 1),
            where
          )
          assert.strictEqual(ledger.returned, ledger.taken, where)

          // The root ends last, so nothing is left of an execution that was interrupted.
          const terminal = events.findLast(isTerminal)
          assert.isUndefined(terminal?.parent_id, where)
          if (terminal === undefined) {
            seen.untouched++
            assert.isTrue(Exit.isFailure(exit) && Cause.hasInterruptsOnly(exit.cause), where)
          } else if (terminal.event_type === "execution_completed") {
            seen.completed++
          } else {
            seen.interrupted++
            assert.strictEqual(terminal.failure.kind, "interrupt", where)
          }
          if (steps < at) {
            assert.isTrue(Exit.isSuccess(exit), where)
            break
          }
        }
        assert.isAbove(seen.untouched, 0)
        // What ends at once can only be interrupted before or after; what is left early is interrupted by that.
        if (name !== "a function that succeeds at once") assert.isAbove(seen.interrupted, 0)
        if (name !== "a stream that is left early") assert.isAbove(seen.completed, 0)
      }), 60_000)
  })

  describe("under a publisher that does not answer", () => {
    const closed = (publish: EventPublisher.Options["publish"]) =>
      EventPublisher.make({ policy: "closed", publish, terminalTimeout: "5 seconds", timeout: "30 seconds" })
    const work = instrument(() => Effect.die("it ran"), { name: "slow.work" })
    const stream = Stream.runDrain(instrumentStream(Stream.die("it ran"), { name: "slow.stream" }))

    it.effect.each([{ name: "a function", run: work() }, { name: "a stream", run: stream }])(
      "$name that is interrupted meanwhile waits for a while, ends what may have started, and does not run",
      ({ run }) =>
        Effect.gen(function*() {
          const asked: Array<string> = []
          const publisher = yield* closed((event) => {
            asked.push(event.id.slice(-9))
            return Effect.never
          })
          const fiber = yield* Effect.forkChild(Effect.provideService(run, EventPublisher.EventPublisher, publisher))
          yield* TestClock.adjust("1 second")
          const interruption = yield* Effect.forkChild(Fiber.interrupt(fiber))
          yield* TestClock.adjust("4 seconds")
          assert.deepStrictEqual(asked.map((id) => id.slice(id.indexOf(":"))), [":started"])
          yield* TestClock.adjust("1 second")
          assert.deepStrictEqual(asked.map((id) => id.slice(id.indexOf(":"))), [":started", ":failed"])
          yield* TestClock.adjust("5 seconds")
          yield* Fiber.join(interruption)
          const exit = yield* Fiber.await(fiber)
          assert.isTrue(Exit.isFailure(exit) && Cause.hasInterruptsOnly(exit.cause))
        })
    )

    it.effect.each([{ name: "a function", run: work() }, { name: "a stream", run: stream }])(
      "$name that is interrupted before it is refused has no end",
      ({ run }) =>
        Effect.gen(function*() {
          const asked: Array<string> = []
          const publisher = yield* closed((event) => {
            asked.push(event.id)
            const refusal = new EventPublisher.PublishError({
              event_id: event.id,
              reason: new EventPublisher.Rejected({ detail: "no" })
            })
            return Effect.andThen(Effect.sleep("2 seconds"), refusal)
          })
          const fiber = yield* Effect.forkChild(Effect.provideService(run, EventPublisher.EventPublisher, publisher))
          yield* TestClock.adjust("1 second")
          const interruption = yield* Effect.forkChild(Fiber.interrupt(fiber))
          yield* TestClock.adjust("1 second")
          yield* Fiber.join(interruption)
          const exit = yield* Fiber.await(fiber)
          assert.isTrue(Exit.isFailure(exit) && Cause.hasInterruptsOnly(exit.cause))
          assert.strictEqual(asked.length, 1)
        })
    )
  })

  it.effect("a publisher that is swapped while an execution runs sees the whole tree, and the next one none of it", () =>
    Effect.gen(function*() {
      const generations: Array<Array<string>> = []
      const open: Array<boolean> = []
      const layer = Layer.unwrap(Effect.gen(function*() {
        const generation = generations.length
        const seen: Array<string> = []
        generations.push(seen)
        open.push(true)
        yield* Effect.addFinalizer(() => Effect.sync(() => void (open[generation] = false)))
        return EventPublisher.layer({
          publish: (event) => {
            assert.isTrue(open[generation])
            if (isExecutionEvent(event)) seen.push(`${event.unit_name} ${event.event_type}`)
          }
        })
      }))
      const ref = yield* LayerRef.make(Layer.fresh(layer))
      const swap = yield* Deferred.make<void>()
      const swapped = yield* Deferred.make<void>()
      const leaf = (name: string) => instrument(() => Effect.void, { name })()
      const tree = instrument(
        () =>
          leaf("deep.before").pipe(
            Effect.andThen(Deferred.succeed(swap, undefined)),
            Effect.andThen(Deferred.await(swapped)),
            Effect.andThen(Stream.runDrain(instrumentStream(Stream.make(1), { name: "deep.stream" }))),
            Effect.andThen(leaf("deep.after"))
          ),
        { name: "deep.root" }
      )
      const first = yield* Effect.forkChild(Effect.provide(tree(), ref.get))
      yield* Deferred.await(swap)
      yield* ref.invalidate
      yield* Effect.provide(leaf("deep.next"), ref.get)
      yield* Deferred.succeed(swapped, undefined)
      yield* Fiber.join(first)
      const whole = (name: string, ...inside: ReadonlyArray<string>) => [
        `${name} execution_started`,
        ...inside,
        `${name} execution_completed`
      ]
      assert.deepStrictEqual(generations, [
        whole("deep.root", ...whole("deep.before"), ...whole("deep.stream"), ...whole("deep.after")),
        whole("deep.next")
      ])
    }))

  describe("keeps the rules in any program", () => {
    type Program =
      | { readonly _tag: "Succeed" | "Fail" | "Die" | "Throw" | "Interrupt" | "Yield" }
      | { readonly _tag: "Sleep"; readonly millis: number }
      | { readonly _tag: "Run"; readonly form: "function" | "effect" | "unit"; readonly body: Program }
      | {
        readonly _tag: "Then" | "Both" | "Race" | "Ensure" | "Catch"
        readonly first: Program
        readonly second: Program
      }
      | { readonly _tag: "Timeout" | "InterruptAfter"; readonly millis: number; readonly body: Program }
      | { readonly _tag: "Retry" | "Resource" | "Uninterruptible" | "Fork" | "Daemon"; readonly body: Program }
      | {
        readonly _tag: "Stream"
        readonly form: "function" | "unit"
        readonly elements: number
        readonly batch: number
        readonly take: number
        readonly body: Program
      }

    const Millis = Schema.Int.check(Schema.isBetween({ minimum: 0, maximum: 20 }))
    const Few = Schema.Int.check(Schema.isBetween({ minimum: 1, maximum: 4 }))
    const below = Schema.suspend((): Schema.Codec<Program> => Program)
    const Program: Schema.Codec<Program> = Schema.Union([
      Schema.Struct({ _tag: Schema.Literals(["Succeed", "Fail", "Die", "Throw", "Interrupt", "Yield"]) }),
      Schema.Struct({ _tag: Schema.Literal("Sleep"), millis: Millis }),
      Schema.Struct({
        _tag: Schema.Literal("Run"),
        form: Schema.Literals(["function", "effect", "unit"]),
        body: below
      }),
      Schema.Struct({
        _tag: Schema.Literals(["Then", "Both", "Race", "Ensure", "Catch"]),
        first: below,
        second: below
      }),
      Schema.Struct({ _tag: Schema.Literals(["Timeout", "InterruptAfter"]), millis: Millis, body: below }),
      Schema.Struct({ _tag: Schema.Literals(["Retry", "Resource", "Uninterruptible", "Fork", "Daemon"]), body: below }),
      Schema.Struct({
        _tag: Schema.Literal("Stream"),
        form: Schema.Literals(["function", "unit"]),
        elements: Schema.Int.check(Schema.isBetween({ minimum: 0, maximum: 4 })),
        batch: Few,
        take: Few,
        body: below
      })
    ])

    /** How a program is run: with its executions, or as if there were none. */
    type Mode = "instrumented" | "bare"

    /** What runs along with a program. */
    interface World {
      readonly mode: Mode
      /** What happened, in order. */
      readonly log: Array<string>
      readonly daemons: Array<Fiber.Fiber<unknown, unknown>>
    }

    interface Place {
      readonly path: string
      /** The execution around this place. */
      readonly parent: string
      /** Whether a fork stands between this place and that execution. */
      readonly forked: boolean
    }

    type Running = Effect.Effect<unknown, unknown, EventPublisher.EventPublisher>

    const anything = { description: "Anything", output: Schema.Unknown, errors: [Schema.Unknown] }
    const Input = { parent: Schema.String, forked: Schema.Boolean }

    const run = (program: Program, at: Place, world: World): Running => {
      const inside = (step: string, part: Program, change?: Partial<Place>): Running =>
        Effect.suspend(() => run(part, { ...at, ...change, path: `${at.path}${step}` }, world))
      const note = (what: string) => Effect.sync(() => void world.log.push(`${what} ${at.path}`))
      const name = `u.${at.path}` as const
      const input = { parent: at.parent, forked: at.forked }
      const within = { parent: name, forked: false }
      switch (program._tag) {
        case "Succeed":
          return Effect.as(note("succeed"), program)
        case "Fail":
          return Effect.andThen(note("fail"), Effect.fail(program))
        case "Die":
          return Effect.andThen(note("die"), Effect.die(program))
        case "Throw":
          return Effect.suspend(() => {
            throw program
          })
        case "Interrupt":
          return Effect.andThen(note("interrupt"), Effect.interrupt)
        case "Yield":
          return Effect.as(Effect.yieldNow, program)
        case "Sleep":
          return Effect.as(Effect.sleep(program.millis), program)
        case "Run": {
          const body = (): Running => inside("r", program.body, within)
          if (world.mode === "bare") return Effect.suspend(body)
          switch (program.form) {
            case "function":
              return instrument((given: typeof input) => given === input ? body() : Effect.die("another input"), {
                name
              })(input)
            case "effect":
              return instrumentEffect(Effect.suspend(body), { name, input })
            case "unit":
              return Unit.command(name, { ...anything, input: Input, handler: body })(input)
          }
        }
        case "Then":
          return Effect.andThen(inside("a", program.first), inside("b", program.second))
        case "Both":
          return Effect.all([inside("a", program.first), inside("b", program.second)], { concurrency: 2 })
        case "Race":
          return Effect.race(inside("a", program.first), inside("b", program.second))
        case "Ensure":
          return Effect.ensuring(inside("a", program.first), Effect.ignoreCause(inside("b", program.second)))
        case "Catch":
          return Effect.catch(inside("a", program.first), () => inside("b", program.second))
        case "Timeout":
          return Effect.timeoutOption(inside("t", program.body), program.millis)
        case "InterruptAfter":
          return Effect.gen(function*() {
            const fiber = yield* Effect.forkChild(inside("i", program.body, { forked: true }))
            yield* Effect.sleep(program.millis)
            yield* Fiber.interrupt(fiber)
            return yield* Fiber.join(fiber)
          })
        case "Retry":
          return Effect.retry(inside("y", program.body), { times: 2 })
        case "Resource":
          return Effect.scoped(
            Effect.andThen(
              Effect.acquireRelease(note("acquire"), () => Effect.andThen(Effect.yieldNow, note("release"))),
              inside("s", program.body)
            )
          )
        case "Uninterruptible":
          return Effect.uninterruptible(inside("u", program.body))
        case "Fork":
          return Effect.as(Effect.forkChild(inside("f", program.body, { forked: true })), program)
        case "Daemon":
          return Effect.map(Effect.forkDetach(inside("d", program.body, { forked: true })), (fiber) => {
            world.daemons.push(fiber)
            return program
          })
        case "Stream": {
          const elements = Stream.range(1, program.elements).pipe(
            Stream.rechunk(program.batch),
            Stream.mapEffect((n) => inside(`e${n}`, program.body, within)),
            Stream.ensuring(note("closed"))
          )
          const stream = world.mode === "bare"
            ? elements
            : program.form === "function"
            ? instrumentStream(elements, { name, input })
            : Unit.stream(name, {
              description: "Anything",
              errors: [Schema.Unknown],
              input: Input,
              chunk: Schema.Unknown,
              handler: () => elements
            })(input)
          return Stream.runCollect(Stream.take(stream, program.take))
        }
      }
    }

    const start = { path: "_", parent: "", forked: false }

    /** Runs a program to its end, with all of its daemons, however long that takes by the test clock. */
    const toEnd = Effect.fnUntraced(function*(program: Program, mode: Mode) {
      const world: World = { mode, log: [], daemons: [] }
      const fiber = yield* Effect.forkDetach(run(program, start, world))
      const fibers = (): ReadonlyArray<Fiber.Fiber<unknown, unknown>> => [fiber, ...world.daemons]
      // Time stands still until all that can run without it has run.
      yield* Effect.repeat(Effect.yieldNow, { times: 50 })
      while (fibers().some((one) => one.pollUnsafe() === undefined)) yield* TestClock.adjust("1 second")
      return { exit: yield* Fiber.await(fiber), log: world.log }
    })

    /** An exit without the ids of fibers. */
    const shape = (exit: Exit.Exit<unknown, unknown>): unknown =>
      Exit.isSuccess(exit)
        ? { value: exit.value }
        : exit.cause.reasons.map((reason) =>
          Cause.isFailReason(reason)
            ? { fail: reason.error }
            : Cause.isDieReason(reason)
            ? { die: reason.defect }
            : "interrupt"
        )

    const Fault = Schema.Literals(["none", "throw", "throw nothing", "throw something odd", "fail", "die", "hang"])

    const faulty = (
      fault: typeof Fault.Type,
      event: EventPublisher.Event
    ): void | Effect.Effect<void, EventPublisher.PublishError> => {
      const error = new EventPublisher.PublishError({
        event_id: event.id,
        reason: new EventPublisher.Unavailable({ detail: "down" })
      })
      switch (fault) {
        case "none":
          return
        case "throw":
          throw error
        case "throw nothing":
          throw undefined
        case "throw something odd":
          throw Object.create(null)
        case "fail":
          return Effect.fail(error)
        case "die":
          return Effect.die("a defect of the publisher")
        case "hang":
          return Effect.never
      }
    }

    /** One execution around many: one after the other, whatever becomes of the first, or at once, where one ends the other. */
    const gather = ([first, ...others]: readonly [Program, ...Array<Program>]): Program => {
      const run = (body: Program): Program => ({ _tag: "Run", form: "unit", body })
      return run(others.reduce<Program>(
        (all, next, index) => ({ _tag: index % 2 === 0 ? "Ensure" : "Both", first: run(next), second: all }),
        first
      ))
    }

    // A clock of its own, that waits however long it takes for what it wakes: this machine may have other work to do.
    const clockLayer = TestClock.layer({ warningDelay: "1 hour" })
    const runs = 60 * Number(process.env["STRESS"] ?? 1)
    // The same programs each time, so that a change is what breaks them; under STRESS others.
    const seed = process.env["STRESS"] === undefined ? { seed: "effect-units" } : {}

    it.live.prop("with a publisher that fails now and then", {
      programs: Schema.NonEmptyArray(Program),
      faults: Schema.NonEmptyArray(Fault)
    }, ({ faults, programs }) =>
      Effect.gen(function*() {
        const program = gather(programs)
        const clock = yield* Clock.Clock
        const events: Array<ExecutionEvent> = []
        const times: Array<number> = []
        const publisher = yield* EventPublisher.make({
          timeout: "3 millis",
          publish: (event) => {
            if (isExecutionEvent(event)) {
              events.push(event)
              times.push(clock.currentTimeMillisUnsafe())
            }
            return faulty(faults[events.length % faults.length] ?? "none", event)
          }
        })
        const bare = yield* Effect.provide(toEnd(program, "bare"), EventPublisher.layerNoop)
        const noop = yield* Effect.provide(toEnd(program, "instrumented"), EventPublisher.layerNoop)
        const seen = yield* Effect.provideService(
          toEnd(program, "instrumented"),
          EventPublisher.EventPublisher,
          publisher
        )
        // Lets the publisher give up on what it waits for, so that its scope can close.
        yield* TestClock.adjust("1 minute")

        // What the program gives and does is the same with and without events.
        assert.deepStrictEqual(shape(noop.exit), shape(bare.exit))
        assert.deepStrictEqual(shape(seen.exit), shape(bare.exit))
        if (
          Exit.isSuccess(seen.exit) && Exit.isSuccess(bare.exit) && !Array.isArray(bare.exit.value) &&
          !Option.isOption(bare.exit.value)
        ) {
          assert.strictEqual(seen.exit.value, bare.exit.value)
        }
        assert.deepStrictEqual(noop.log, bare.log)
        assert.deepStrictEqual(seen.log, bare.log)

        // Every event is JSON, and can be read back.
        const wire = events.map(toJson)
        const read = yield* Effect.forEach(wire, (event) => fromJson(JSON.parse(JSON.stringify(event))))
        assert.deepStrictEqual(read.map(toJson), wire)

        // Every execution has its two events, numbered without holes, in trees that hold together.
        assert.deepStrictEqual(violations(events), [])
        const indexOf = (id: string | undefined, suffix: RegExp) =>
          events.findIndex((event) => event.correlation_id === id && suffix.test(event.id))
        events.forEach((event, index) => {
          if (isTerminal(event)) {
            const start = indexOf(event.correlation_id, /:started$/)
            const millis = (times[index] ?? 0) - (times[start] ?? 0)
            assert.deepStrictEqual([event.duration_ns, event.duration_ms], [millis * 1e6, millis])
            assert.strictEqual(event.timestamp, new Date(times[index] ?? 0).toISOString())
            return
          }
          assert.strictEqual(event.timestamp, new Date(times[index] ?? 0).toISOString())
          const input = Schema.decodeUnknownSync(Schema.Struct(Input))(event.input)
          const parent = events[indexOf(event.parent_id, /:started$/)]
          assert.strictEqual(parent?.unit_name ?? "", input.parent)
          if (parent === undefined) return
          assert.isBelow(indexOf(event.parent_id, /:started$/), index)
          if (!input.forked) {
            assert.isBelow(
              indexOf(event.correlation_id, /:(completed|failed)$/),
              indexOf(event.parent_id, /:(completed|failed)$/)
            )
          }
        })
      }).pipe(Effect.scoped, Effect.provide(clockLayer)), { arbitrary: { runs, size: 20, ...seed }, timeout: 600_000 })
  })
})
