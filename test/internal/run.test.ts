import { assert, describe, it } from "@effect/vitest"
import { Cause, Effect, Exit, Fiber, Scheduler, Schema, Stream } from "effect"
import { TestClock } from "effect/testing"
import * as EventPublisher from "../../src/EventPublisher.ts"
import { type ExecutionEvent, isExecutionEvent, isTerminal } from "../../src/ExecutionEvent.ts"
import { instrument, instrumentStream } from "../../src/instrument.ts"
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
})
