import { assert, describe, expectTypeOf, it } from "@effect/vitest"
import { Cause, Context, Deferred, Effect, Exit, Fiber, Option, Schema, Stream } from "effect"
import { Clock } from "effect"
import { TestClock } from "effect/testing"
import * as DomainEvent from "../src/DomainEvent.ts"
import * as EventPublisher from "../src/EventPublisher.ts"
import * as Execution from "../src/Execution.ts"
import { type ExecutionEvent, isExecutionEvent, isTerminal } from "../src/ExecutionEvent.ts"
import { instrument, instrumentStream } from "../src/instrument.ts"
import { violations } from "../src/testing/lifecycle.ts"
import { started } from "./fixtures/events.ts"
import { type Event, idle, makeWorld, named, range, recorder, sequences, short, unavailable } from "./publisherWorld.ts"

const Said = DomainEvent.define("chat.said", { text: Schema.String })

type Publish = EventPublisher.Options["publish"]

/** Everything that can go wrong in a publish function, and the reason that it is counted under. */
const faults: ReadonlyArray<{
  readonly name: string
  readonly publish: Publish
  readonly reason: "Unavailable" | "TimedOut" | "Rejected"
  /** When it is known, in milliseconds. */
  readonly after: number
}> = [
  {
    name: "throws",
    publish: () => {
      throw new Error("no connection")
    },
    reason: "Unavailable",
    after: 0
  },
  { name: "throws what is no error", publish: throws(Object.create(null)), reason: "Unavailable", after: 0 },
  { name: "throws nothing", publish: throws(undefined), reason: "Unavailable", after: 0 },
  {
    name: "throws an error with an odd message",
    publish: throws(Object.assign(new Error("x"), { message: { not: "text" } })),
    reason: "Unavailable",
    after: 0
  },
  { name: "fails", publish: (event) => Effect.fail(unavailable(event)), reason: "Unavailable", after: 0 },
  {
    name: "rejects",
    publish: (event) =>
      Effect.fail(
        new EventPublisher.PublishError({
          event_id: event.id,
          reason: new EventPublisher.Rejected({ detail: "too large" })
        })
      ),
    reason: "Rejected",
    after: 0
  },
  { name: "dies", publish: () => Effect.die(new Error("defect")), reason: "Unavailable", after: 0 },
  { name: "interrupts itself", publish: () => Effect.interrupt, reason: "Unavailable", after: 0 },
  {
    name: "fails late",
    publish: (event) => Effect.delay(Effect.fail(unavailable(event)), "2 seconds"),
    reason: "Unavailable",
    after: 2000
  },
  { name: "hangs", publish: () => Effect.never, reason: "TimedOut", after: 30_000 },
  {
    name: "hangs and does not heed its interruption",
    publish: () => Effect.uninterruptible(Effect.never),
    reason: "TimedOut",
    after: 30_000
  }
]

function throws(thrown: unknown): Publish {
  return () => {
    throw thrown
  }
}

/** A publisher with a fault in it from the start, or only at the end of executions. */
const faulty = (policy: EventPublisher.Policy, publish: Publish, at: "always" | "end" = "always") => {
  const events: Array<Event> = []
  const layer = EventPublisher.layer({
    policy,
    transaction: { run: (work) => work },
    publish: (event) => {
      if (at === "always" || isExecutionEvent(event) && isTerminal(event)) return publish(event)
      events.push(event)
      return
    }
  })
  return { events, layer }
}

/** Runs to the end, and says how long that took. */
const timed = Effect.fnUntraced(function*<A, E, R>(self: Effect.Effect<A, E, R>, adjust: number) {
  const start = yield* Clock.currentTimeMillis
  const fiber = yield* Effect.forkChild(
    Effect.flatMap(
      Effect.exit(self),
      (exit) => Effect.map(Clock.currentTimeMillis, (end) => ({ exit, millis: end - start }))
    ),
    { startImmediately: true }
  )
  yield* TestClock.adjust(adjust)
  return yield* Fiber.join(fiber)
})

/** A handler, and whether it ran. */
const handler = <A, E>(result: Effect.Effect<A, E>) => {
  let runs = 0
  const unit = named("test.unit", Effect.andThen(Effect.sync(() => void runs++), result))
  return { unit, runs: () => runs }
}

const refusalOf = (exit: Exit.Exit<unknown, unknown>): EventPublisher.PublishError | undefined => {
  const defect = Exit.isFailure(exit) ? Cause.squash(exit.cause) : undefined
  return defect instanceof EventPublisher.PublishError && Exit.hasDies(exit) ? defect : undefined
}

describe("open", () => {
  for (const { after, name, publish, reason } of faults) {
    it.effect(`a publisher that ${name} changes no result, costs no time, and is counted`, () =>
      Effect.gen(function*() {
        const world = yield* makeWorld(faulty("open", publish).layer)
        const value = { same: "reference" }
        const good = handler(Effect.succeed(value))
        const bad = handler(Effect.fail("typed"))
        const odd = handler(Effect.die(value))
        const ends = yield* timed(
          Effect.all([
            Effect.exit(world.run(good.unit)),
            Effect.exit(world.run(bad.unit)),
            Effect.exit(world.run(odd.unit))
          ]),
          0
        )
        assert.deepStrictEqual(ends, {
          exit: Exit.succeed([Exit.succeed(value), Exit.fail("typed"), Exit.die(value)]),
          millis: 0
        })
        assert.deepStrictEqual([good.runs(), bad.runs(), odd.runs()], [1, 1, 1])
        const executions = { "executions completed": 1, "executions failed": 1, "executions died": 1 }
        // One after the other, each within its time.
        yield* TestClock.adjust(6 * after)
        assert.deepStrictEqual(world.counts(), { ...executions, [`failures ${reason}`]: 6 })
        assert.strictEqual(world.logs.length, 1)
        assert.match(world.logs[0]!, /Units run on; further failures are counted in effect_units_publish_failures\.$/)
      }))
  }

  for (const { after, name, publish, reason } of faults) {
    it.effect(`a stream gives its elements at once whose events meet a publisher that ${name}`, () =>
      Effect.gen(function*() {
        const world = yield* makeWorld(faulty("open", publish).layer)
        const stream = instrumentStream(Stream.make(1, 2, 3), { name: "test.stream" })
        const ended = yield* timed(world.run(Stream.runCollect(stream)), 0)
        assert.deepStrictEqual(ended, { exit: Exit.succeed([1, 2, 3]), millis: 0 })
        yield* TestClock.adjust(2 * after)
        assert.deepStrictEqual(world.counts(), { "executions completed": 1, [`failures ${reason}`]: 2 })
      }))
  }

  it.effect("a slow publisher delays no unit, and gets everything in order", () =>
    Effect.gen(function*() {
      const published: Array<number> = []
      const world = yield* makeWorld(EventPublisher.layer({
        publish: (event) => Effect.andThen(Effect.sleep("1 second"), Effect.sync(() => published.push(event.sequence)))
      }))
      const { millis } = yield* timed(world.run(Effect.forEach(range(1, 50), () => idle)), 0)
      assert.strictEqual(millis, 0)
      yield* TestClock.adjust("100 seconds")
      assert.deepStrictEqual(published, range(1, 100))
      assert.deepStrictEqual(world.counts(), { "executions completed": 50 })
    }))

  it.effect("failures are logged once per streak, which ends with the next success", () =>
    Effect.gen(function*() {
      let up = false
      for (
        const publish of [
          (event: Event) => up ? undefined : Effect.fail(unavailable(event)),
          (event: Event) => up ? Effect.void : Effect.fail(unavailable(event)),
          (event: Event) => {
            if (!up) throw new Error(`no connection for ${event.id}`)
          }
        ]
      ) {
        up = false
        const world = yield* makeWorld(EventPublisher.layer({ publish }))
        const turn = (isUp: boolean) =>
          Effect.suspend(() => {
            up = isUp
            return Effect.andThen(
              world.run(Effect.andThen(idle, idle)),
              Effect.andThen(Effect.yieldNow, Effect.yieldNow)
            )
          })
        yield* turn(false)
        yield* turn(false)
        assert.deepStrictEqual([world.logs.length, world.counts()["failures Unavailable"]], [1, 8])
        yield* turn(true)
        yield* turn(false)
        yield* turn(false)
        assert.deepStrictEqual([world.logs.length, world.counts()["failures Unavailable"]], [2, 16])
      }
    }))

  it.effect("a domain event that cannot be published changes nothing either", () =>
    Effect.gen(function*() {
      const world = yield* makeWorld(faulty("open", throws("x")).layer)
      yield* world.run(Said.publish({ text: "" }))
      assert.deepStrictEqual(world.counts(), { "failures Unavailable": 1 })
    }))
})

for (const policy of ["closed", "transactional"] as const) {
  describe(policy, () => {
    for (const { after, name, publish, reason } of faults) {
      it.effect(`a unit does not run whose start meets a publisher that ${name}`, () =>
        Effect.gen(function*() {
          const { layer } = faulty(policy, publish)
          const world = yield* makeWorld(layer)
          const { runs, unit } = handler(Effect.succeed(1))
          const { exit, millis } = yield* timed(world.run(unit), after)
          const refusal = refusalOf(exit)
          assert.deepStrictEqual([runs(), millis, refusal?.reason._tag], [0, after, reason])
          assert.match(refusal?.event_id ?? "", /:started$/)
          assert.deepStrictEqual(world.counts(), { [`failures ${reason}`]: 1 })
          const typed = yield* timed(EventPublisher.failOnRefusal(world.run(unit)), after)
          const error = Exit.findErrorOption(typed.exit)
          assert.strictEqual(error._tag === "Some" ? error.value._tag : undefined, "PublishError")
          assert.deepStrictEqual(world.counts(), { [`failures ${reason}`]: 2 })
          assert.strictEqual(world.logs.length, 1)
          assert.match(world.logs[0]!, /Units do not start while it lasts/)
        }))

      it.effect(`a result stands whose end meets a publisher that ${name}`, () =>
        Effect.gen(function*() {
          const { events, layer } = faulty(policy, publish, "end")
          const world = yield* makeWorld(layer)
          const { runs, unit } = handler(Effect.fail("typed"))
          const wait = Math.min(after, 5000)
          const { exit, millis } = yield* timed(world.run(unit), wait)
          assert.deepStrictEqual([exit, millis, runs()], [Exit.fail("typed"), wait, 1])
          assert.deepStrictEqual(events.map(short), ["test.unit started"])
          assert.deepStrictEqual(world.counts(), { [`failures ${reason}`]: 1, "executions failed": 1 })
          assert.strictEqual(world.logs.length, 1)
        }))

      it.effect(`a domain event changes nothing that meets a publisher that ${name}`, () =>
        Effect.gen(function*() {
          const world = yield* makeWorld(faulty(policy, publish).layer)
          const { exit, millis } = yield* timed(world.run(Said.publish({ text: "" })), after)
          assert.deepStrictEqual([exit, millis], [Exit.void, after])
          assert.deepStrictEqual(world.counts(), { [`failures ${reason}`]: 1 })
        }))

      it.effect(`a stream does not begin whose start meets a publisher that ${name}, and its elements stand whatever meets its end`, () =>
        Effect.gen(function*() {
          const stream = instrumentStream(Stream.make(1, 2, 3), { name: "test.stream" })
          const shut = yield* makeWorld(faulty(policy, publish).layer)
          const refused = yield* timed(shut.run(Stream.runCollect(stream)), after)
          assert.deepStrictEqual([refusalOf(refused.exit)?.reason._tag, refused.millis], [reason, after])
          const world = yield* makeWorld(faulty(policy, publish, "end").layer)
          const wait = Math.min(after, 5000)
          const { exit, millis } = yield* timed(world.run(Stream.runCollect(stream)), wait)
          assert.deepStrictEqual([exit, millis], [Exit.succeed([1, 2, 3]), wait])
          assert.deepStrictEqual(world.counts(), { [`failures ${reason}`]: 1, "executions completed": 1 })
        }))
    }

    it.effect("a slow publisher is waited for, at the start and at the end", () =>
      Effect.gen(function*() {
        const log: Array<string> = []
        const world = yield* makeWorld(
          EventPublisher.layer({
            policy,
            transaction: { run: (work) => work },
            publish: (event) => Effect.andThen(Effect.sleep("1 second"), Effect.sync(() => log.push(short(event))))
          })
        )
        const unit = named("test.unit", Effect.andThen(Effect.sync(() => log.push("runs")), Effect.fail("no")))
        const { exit, millis } = yield* timed(world.run(unit), 2000)
        assert.deepStrictEqual([exit, millis], [Exit.fail("no"), 2000])
        assert.deepStrictEqual(log, ["test.unit started", "runs", "test.unit failed"])
        assert.deepStrictEqual(world.counts(), { "executions failed": 1 })
      }))

    it.effect("its times are those that it is given", () =>
      Effect.gen(function*() {
        const layer = (at: "always" | "end") =>
          EventPublisher.layer({
            policy,
            transaction: { run: (work) => work },
            timeout: "3 seconds",
            terminalTimeout: "1 second",
            publish: (event) =>
              at === "always" || isExecutionEvent(event) && isTerminal(event) ? Effect.never : undefined
          })
        const shut = yield* makeWorld(layer("always"))
        assert.strictEqual((yield* timed(shut.run(idle), 3000)).millis, 3000)
        const open = yield* makeWorld(layer("end"))
        assert.strictEqual((yield* timed(open.run(named("test.fails", Effect.fail("no"))), 1000)).millis, 1000)
      }))

    it.effect("a success after a refusal ends the streak", () =>
      Effect.gen(function*() {
        let up = false
        const world = yield* makeWorld(
          faulty(policy, (event) => up ? undefined : Effect.fail(unavailable(event))).layer
        )
        const turn = (isUp: boolean) =>
          Effect.suspend(() => {
            up = isUp
            return Effect.exit(world.run(idle))
          })
        for (const isUp of [false, false, true, false, false]) yield* turn(isUp)
        assert.deepStrictEqual([world.logs.length, world.counts()["failures Unavailable"]], [2, 4])
      }))
  })
}

describe("closed", () => {
  it.effect("a predicate that throws in front of it refuses the start", () =>
    Effect.gen(function*() {
      const { events, layer } = recorder({ policy: "closed" })
      const world = yield* makeWorld(EventPublisher.filter(layer, () => {
        throw new Error("odd")
      }))
      const { runs, unit } = handler(Effect.void)
      const exit = yield* Effect.exit(world.run(unit))
      assert.deepStrictEqual([refusalOf(exit)?.reason._tag, runs(), events], ["Unavailable", 0, []])
      assert.deepStrictEqual(world.counts(), { "failures Unavailable": 1 })
    }))

  it.effect("beside an open publisher: what is refused is not told to that one, in either order", () =>
    Effect.gen(function*() {
      const { events, layer } = recorder()
      const closed = faulty("closed", (event) => Effect.fail(unavailable(event))).layer
      for (const pair of [EventPublisher.combine(layer, closed), EventPublisher.combine(closed, layer)]) {
        const world = yield* makeWorld(pair)
        const { runs, unit } = handler(Effect.void)
        assert.isDefined(refusalOf(yield* Effect.exit(world.run(unit))))
        assert.deepStrictEqual([runs(), events], [0, []])
        assert.deepStrictEqual(world.counts(), { "failures Unavailable": 1 })
      }
    }))

  it.effect("a receipt tells what becomes of an event, once, and who gives up waiting withdraws it", () =>
    Effect.gen(function*() {
      const receipts = new Map<string, EventPublisher.Receipt>()
      const withdrawn: Array<string> = []
      const publisher = yield* EventPublisher.make({
        policy: "closed",
        timeout: "3 seconds",
        publish: (event) => {
          const receipt = new EventPublisher.Receipt(() => void withdrawn.push(event.id))
          receipts.set(event.id, receipt)
          if (event.id === "at once:started") receipt.settle(Exit.void)
          return receipt
        }
      })
      const publish = (id: string) =>
        Effect.forkChild(Effect.exit(publisher.publish(started(id))), { startImmediately: true })
      const reason = (exit: Exit.Exit<void, EventPublisher.PublishError>) =>
        Exit.isSuccess(exit) ? "published" : Option.getOrUndefined(Exit.findErrorOption(exit))?.reason._tag

      const fibers = yield* Effect.forEach(["at once", "stored", "refused", "forgotten", "left"], publish)
      receipts.get("stored:started")?.settle(Exit.void)
      receipts.get("stored:started")?.settle(Exit.fail(unavailable(started("stored"))))
      receipts.get("refused:started")?.settle(Exit.fail(unavailable(started("refused"))))
      const left = fibers.pop()
      if (left !== undefined) yield* Fiber.interrupt(left)
      yield* TestClock.adjust("3 seconds")
      const exits = yield* Effect.forEach(fibers, Fiber.join)
      assert.deepStrictEqual(exits.map(reason), ["published", "published", "Unavailable", "TimedOut"])
      assert.deepStrictEqual(withdrawn, ["left:started", "forgotten:started"])
      assert.deepStrictEqual(yield* receipts.get("stored:started")?.acknowledged ?? Effect.die("no receipt"), undefined)
    }))

  it.live("gives up by the clock of the machine, too, and by no timer of an event that was published", () =>
    Effect.gen(function*() {
      const reasons: Array<string> = []
      const answers = [Effect.sleep("1 millis"), Effect.never, Effect.sleep("1 millis")]
      const publisher = yield* EventPublisher.make({
        policy: "closed",
        timeout: "30 millis",
        publish: () => Effect.uninterruptible(answers.shift() ?? Effect.void)
      })
      for (const id of ["a", "b", "c"]) {
        const exit = yield* Effect.exit(publisher.publish(started(id)))
        reasons.push(Exit.isSuccess(exit) ? "published" : Option.getOrThrow(Exit.findErrorOption(exit)).reason._tag)
      }
      assert.deepStrictEqual(reasons, ["published", "TimedOut", "published"])
    }))

  it.effect("beside an open publisher: that one has the end, at once, whatever becomes of it in the other", () =>
    Effect.gen(function*() {
      for (const left of [true, false]) {
        const { events, layer } = recorder()
        const closed = faulty("closed", () => Effect.never, "end").layer
        const world = yield* makeWorld(
          left ? EventPublisher.combine(layer, closed) : EventPublisher.combine(closed, layer)
        )
        const fiber = yield* Effect.forkChild(world.run(idle), { startImmediately: true })
        yield* TestClock.adjust(0)
        assert.deepStrictEqual(events.map(short), ["test.idle started", "test.idle completed"])
        assert.isUndefined(fiber.pollUnsafe())
        yield* TestClock.adjust("5 seconds")
        yield* Fiber.join(fiber)
        assert.deepStrictEqual(sequences(events), [1, 2])
        assert.deepStrictEqual(world.counts(), { "failures TimedOut": 1, "executions completed": 1 })
      }
    }))

  it.effect("beside another closed one: both have the end, whatever becomes of it in one", () =>
    Effect.gen(function*() {
      const { events, layer } = recorder({ policy: "closed" })
      for (
        const [publish, wait, reason] of [
          [(event: Event) => Effect.fail(unavailable(event)), 0, "Unavailable"],
          [() => Effect.never, 5000, "TimedOut"]
        ] as const
      ) {
        const other = faulty("closed", publish, "end").layer
        for (const pair of [EventPublisher.combine(layer, other), EventPublisher.combine(other, layer)]) {
          events.length = 0
          const world = yield* makeWorld(pair)
          const { exit, millis } = yield* timed(world.run(idle), wait)
          assert.deepStrictEqual([exit, millis], [Exit.void, wait])
          assert.deepStrictEqual(events.map(short), ["test.idle started", "test.idle completed"])
          assert.deepStrictEqual(world.counts(), { [`failures ${reason}`]: 1, "executions completed": 1 })
        }
      }
    }))

  for (
    const [name, delay] of [["is slow", "6 seconds"], ["hangs", "1 hour"]] as const
  ) {
    it.effect(`beside another publisher: that one has both events of a unit that gives up where the start ${name}`, () =>
      Effect.gen(function*() {
        for (const policy of ["open", "closed"] as const) {
          for (const isLeft of [true, false]) {
            const { events, layer } = recorder({ policy })
            const audit: Array<string> = []
            const slow = EventPublisher.layer({
              policy: "closed",
              timeout: "2 hours",
              publish: (event) => Effect.andThen(Effect.sleep(delay), Effect.sync(() => audit.push(short(event))))
            })
            const pair = isLeft || policy === "closed"
              ? EventPublisher.combine(slow, layer)
              : EventPublisher.combine(layer, slow)
            const world = yield* makeWorld(pair)
            const { runs, unit } = handler(Effect.void)
            const fiber = yield* Effect.forkChild(world.run(unit), { startImmediately: true })
            yield* TestClock.adjust("2 seconds")
            fiber.interruptUnsafe()
            yield* TestClock.adjust("1 minute")
            assert.isTrue(Exit.hasInterrupts(yield* Fiber.await(fiber)))
            assert.strictEqual(runs(), 0)
            assert.deepStrictEqual(events.map(short), ["test.unit started", "test.unit failed"])
            assert.deepStrictEqual(violations(events.filter(isExecutionEvent)), [])
            assert.deepStrictEqual(audit, name === "hangs" ? [] : ["test.unit started"])
          }
        }
      }))
  }

  it.effect("behind a buffer: nothing is refused, and failures are counted", () =>
    Effect.gen(function*() {
      const world = yield* makeWorld(
        faulty("closed", (event) => Effect.fail(unavailable(event))).layer.pipe(
          EventPublisher.buffered({ capacity: 10, strategy: "suspend" })
        )
      )
      yield* world.run(Effect.forEach(range(1, 20), () => idle))
      yield* world.close
      assert.deepStrictEqual(world.counts(), { "failures Unavailable": 40, "executions completed": 20 })
      assert.strictEqual(world.logs.length, 1)
    }))

  it.effect("beside a buffer that is full: the start waits for both, and nothing is lost", () =>
    Effect.gen(function*() {
      const audit = recorder({ policy: "closed" })
      const published: Array<number> = []
      const slow = EventPublisher.layer({
        policy: "closed",
        publish: ({ sequence }) => Effect.andThen(Effect.sleep("1 second"), Effect.sync(() => published.push(sequence)))
      })
      const world = yield* makeWorld(
        EventPublisher.combine(EventPublisher.buffered(slow, { capacity: 1, strategy: "suspend" }), audit.layer)
      )
      const fiber = yield* Effect.forkChild(world.run(Effect.forEach(range(1, 5), () => idle)))
      yield* TestClock.adjust("10 seconds")
      yield* Fiber.join(fiber)
      assert.deepStrictEqual([sequences(audit.events), published], [range(1, 10), range(1, 10)])
      assert.deepStrictEqual(world.counts(), { "executions completed": 5 })
    }))
})

describe("failOnRefusal", () => {
  it.effect("leaves all that is no refusal as it is", () =>
    Effect.gen(function*() {
      const world = yield* makeWorld(EventPublisher.layerMemory)
      const run = <A, E>(effect: Effect.Effect<A, E>) =>
        Effect.exit(EventPublisher.failOnRefusal(world.run(named("test.unit", effect))))
      assert.deepStrictEqual(yield* run(Effect.succeed(1)), Exit.succeed(1))
      assert.deepStrictEqual(yield* run(Effect.fail("typed")), Exit.fail("typed"))
      assert.deepStrictEqual(yield* run(Effect.die("defect")), Exit.die("defect"))
      assert.isTrue(Exit.hasInterrupts(yield* run(Effect.interrupt)))
    }))

  it("gives the refusal its place in the types", () => {
    const unit = named("test.unit", Effect.succeed(1) as Effect.Effect<number, "typed">)
    expectTypeOf(EventPublisher.failOnRefusal(unit)).toEqualTypeOf<
      Effect.Effect<number, "typed" | EventPublisher.PublishError, EventPublisher.EventPublisher>
    >()
  })
})

describe("recursion", () => {
  /** Units and domain events as code in a publisher may run them: by themselves, with settings around them, in fibers. */
  const doings: ReadonlyArray<readonly [string, Effect.Effect<unknown, never, EventPublisher.EventPublisher>]> = [
    ["a unit", named("test.inner", Effect.asVoid(idle))],
    ["a unit that is annotated", Execution.annotate(idle, { user_id: "ada" })],
    ["a unit with ids of its own", Execution.withIdGenerator(idle, () => "id")],
    [
      "a unit under a parent from elsewhere",
      Execution.continueFrom(idle, {
        correlation_id: "c",
        parent_id: undefined,
        root_id: "c",
        unit_name: "x.y",
        domain: "x",
        kind: "query",
        attributes: undefined
      })
    ],
    ["a stream", Stream.runDrain(instrumentStream(Stream.make(1), { name: "test.stream" }))],
    ["a domain event", Said.publish({ text: "" })],
    ["a domain event that is annotated", Execution.annotate(Said.publish({ text: "" }), { user_id: "ada" })],
    ["a unit that ends later", named("test.later", Effect.andThen(Effect.sleep("1 second"), idle))]
  ]

  for (const policy of ["open", "closed"] as const) {
    for (const [name, doing] of doings) {
      it.effect(`nothing is published about ${name} in a publish function that runs it (${policy})`, () =>
        Effect.gen(function*() {
          const seen: Array<string> = []
          const clock = yield* Clock.Clock
          let publisher: EventPublisher.Publisher | undefined
          const world = yield* makeWorld(EventPublisher.layer({
            policy,
            publish: (event) => {
              seen.push(short(event))
              assert.isDefined(publisher)
              const context = Context.make(EventPublisher.EventPublisher, publisher)
              Effect.runFork(Effect.provide(doing, Context.add(context, Clock.Clock, clock)))
            }
          }))
          publisher = world.publisher
          yield* world.run(idle)
          yield* TestClock.adjust("1 minute")
          assert.deepStrictEqual(seen, ["test.idle started", "test.idle completed"])
          assert.deepStrictEqual(world.counts(), { "executions completed": 1 })
        }))

      it.effect(`nothing is published about ${name} in an Effect that publishes (${policy})`, () =>
        Effect.gen(function*() {
          const seen: Array<string> = []
          let publisher: EventPublisher.Publisher | undefined
          const world = yield* makeWorld(EventPublisher.layer({
            policy,
            publish: (event) =>
              Effect.suspend(() => {
                seen.push(short(event))
                assert.isDefined(publisher)
                const later = Effect.forkDetach(Effect.andThen(Effect.sleep("1 second"), doing))
                return Effect.provideService(
                  Effect.asVoid(Effect.all([doing, later])),
                  EventPublisher.EventPublisher,
                  publisher
                )
              })
          }))
          publisher = world.publisher
          const fiber = yield* Effect.forkChild(world.run(idle))
          yield* TestClock.adjust("1 minute")
          yield* Fiber.join(fiber)
          assert.deepStrictEqual(seen, ["test.idle started", "test.idle completed"])
          assert.deepStrictEqual(world.counts(), { "executions completed": 1 })
        }))
    }
  }

  it.effect("a predicate that runs a unit is no end either", () =>
    Effect.gen(function*() {
      const { events, layer } = recorder()
      let publisher: EventPublisher.Publisher | undefined
      let depth = 0
      const world = yield* makeWorld(EventPublisher.filter(layer, () => {
        assert.isDefined(publisher)
        if (++depth > 10) throw new Error("without end")
        Effect.runSync(Effect.provideService(idle, EventPublisher.EventPublisher, publisher))
        depth--
        return true
      }))
      publisher = world.publisher
      yield* world.run(idle)
      assert.deepStrictEqual(events.map(short), ["test.idle started", "test.idle completed"])
    }))

  it.effect("a fiber that a publish function wakes is no part of publishing", () =>
    Effect.gen(function*() {
      const seen: Array<string> = []
      const woken = yield* Deferred.make<void>()
      const world = yield* makeWorld(EventPublisher.layer({
        publish: (event) => {
          seen.push(short(event))
          Deferred.doneUnsafe(woken, Exit.void)
        }
      }))
      const fiber = yield* Effect.forkChild(
        world.run(Effect.andThen(Deferred.await(woken), named("test.woken", Effect.void))),
        { startImmediately: true }
      )
      yield* world.run(idle)
      yield* Fiber.join(fiber)
      assert.sameMembers(seen, [
        "test.idle started",
        "test.idle completed",
        "test.woken started",
        "test.woken completed"
      ])
      assert.deepStrictEqual(world.counts(), { "executions completed": 2 })
    }))

  it.effect("a publisher reaches units by another publisher in silence", () =>
    Effect.gen(function*() {
      const other = yield* makeWorld(EventPublisher.layerMemory)
      const world = yield* makeWorld(EventPublisher.layer({ publish: () => other.run(idle) }))
      yield* world.run(idle)
      yield* world.close
      assert.deepStrictEqual([yield* other.run(EventPublisher.Memory.use((memory) => memory.all)), other.counts()], [
        [],
        {}
      ])
    }))
})

describe("transactions", () => {
  interface Tx {
    readonly writes: Array<string>
  }
  const CurrentTx = Context.Reference<Tx | undefined>("test/CurrentTx", { defaultValue: () => undefined })

  /** A store with transactions and savepoints: what is committed, and what happened, in order. */
  const makeStore = (options?: {
    readonly commit?: Effect.Effect<void, EventPublisher.PublishError>
    readonly refuse?: (event: Event) => boolean
  }) => {
    const log: Array<string> = []
    const committed: Array<string> = []
    const events: Array<Event> = []
    const write = (text: string) =>
      Effect.map(Effect.service(CurrentTx), (tx) => {
        log.push(text)
        ;(tx?.writes ?? committed).push(text)
      })
    const run: EventPublisher.Transaction["run"] = (work, completed) =>
      Effect.flatMap(Effect.service(CurrentTx), (outer) => {
        const name = outer === undefined ? "" : "savepoint "
        const tx: Tx = { writes: [] }
        const commit = Effect.sync(() => {
          log.push(`${name}commit`)
          ;(outer?.writes ?? committed).push(...tx.writes)
        })
        const store = (value: Parameters<typeof completed>[0]) =>
          Effect.suspend(() => {
            const event = completed(value)
            if (event === undefined) return Effect.void
            events.push(event)
            return write(short(event))
          })
        return Effect.sync(() => log.push(`${name}begin`)).pipe(
          Effect.andThen(work),
          Effect.tap(store),
          Effect.tap(() => outer === undefined ? Effect.orDie(options?.commit ?? Effect.void) : Effect.void),
          Effect.provideService(CurrentTx, tx),
          Effect.onExit((exit) => Exit.isSuccess(exit) ? commit : Effect.sync(() => log.push(`${name}rollback`)))
        )
      })
    const layer = EventPublisher.layer({
      policy: "transactional",
      source: "store",
      transaction: { run },
      publish: (event) =>
        Effect.suspend(() => {
          if (options?.refuse?.(event) === true) return Effect.fail(unavailable(event))
          events.push(event)
          return write(short(event))
        })
    })
    return { committed, events, layer, log, write }
  }

  it.effect("commits what a unit writes together with its completed event", () =>
    Effect.gen(function*() {
      const { committed, events, layer, log, write } = makeStore()
      const world = yield* makeWorld(layer)
      const value = { same: "reference" }
      const result = yield* world.run(named("test.unit", Effect.as(write("row"), value)))
      assert.strictEqual(result, value)
      assert.deepStrictEqual(log, ["test.unit started", "begin", "row", "test.unit completed", "commit"])
      assert.deepStrictEqual(committed, ["test.unit started", "row", "test.unit completed"])
      assert.deepStrictEqual(events.map(({ sequence, source }) => [source, sequence]), [["store", 1], ["store", 2]])
      assert.deepStrictEqual(world.counts(), { "executions completed": 1 })
    }))

  for (
    const [name, end] of [
      ["fails", Effect.fail("typed")],
      ["dies", Effect.die("defect")]
    ] as const
  ) {
    it.effect(`rolls back a unit that ${name}, and publishes its failed event after that`, () =>
      Effect.gen(function*() {
        const { committed, events, layer, log, write } = makeStore()
        const world = yield* makeWorld(layer)
        const exit = yield* Effect.exit(world.run(named("test.unit", Effect.andThen(write("row"), end))))
        assert.deepStrictEqual(exit, yield* Effect.exit(end))
        assert.deepStrictEqual(log, ["test.unit started", "begin", "row", "rollback", "test.unit failed"])
        assert.deepStrictEqual(committed, ["test.unit started", "test.unit failed"])
        assert.deepStrictEqual(sequences(events), [1, 2])
      }))
  }

  it.effect("rolls back a unit that is interrupted", () =>
    Effect.gen(function*() {
      const { committed, layer, log, write } = makeStore()
      const world = yield* makeWorld(layer)
      const fiber = yield* Effect.forkChild(world.run(named("test.unit", Effect.andThen(write("row"), Effect.never))))
      yield* Effect.yieldNow
      yield* Fiber.interrupt(fiber)
      assert.isTrue(Exit.hasInterrupts(yield* Fiber.await(fiber)))
      assert.deepStrictEqual(log, ["test.unit started", "begin", "row", "rollback", "test.unit failed"])
      assert.deepStrictEqual(committed, ["test.unit started", "test.unit failed"])
    }))

  it.effect("has one end where a unit is interrupted while it commits", () =>
    Effect.gen(function*() {
      const gate = yield* Deferred.make<void>()
      const committing = yield* Deferred.make<void>()
      const { committed, layer, write } = makeStore({
        commit: Effect.andThen(Deferred.succeed(committing, undefined), Deferred.await(gate))
      })
      const world = yield* makeWorld(layer)
      const fiber = yield* Effect.forkChild(world.run(named("test.unit", write("row"))))
      yield* Deferred.await(committing)
      const interrupting = yield* Effect.forkChild(Fiber.interrupt(fiber), { startImmediately: true })
      yield* Deferred.succeed(gate, undefined)
      yield* Fiber.join(interrupting)
      assert.deepStrictEqual(committed, ["test.unit started", "row", "test.unit completed"])
      assert.deepStrictEqual(world.counts(), { "executions completed": 1 })
    }))

  it.effect("turns a commit that fails into a defect, and the execution into a failed one", () =>
    Effect.gen(function*() {
      const error = new EventPublisher.PublishError({
        event_id: "e:completed",
        reason: new EventPublisher.Unavailable({ detail: "disk full" })
      })
      const { committed, layer, log, write } = makeStore({ commit: Effect.fail(error) })
      const world = yield* makeWorld(layer)
      const unit = named("test.unit", write("row"))
      assert.strictEqual(refusalOf(yield* Effect.exit(world.run(unit))), error)
      assert.deepStrictEqual(log.slice(3), ["test.unit completed", "rollback", "test.unit failed"])
      assert.deepStrictEqual(committed, ["test.unit started", "test.unit failed"])
      assert.strictEqual(yield* Effect.flip(EventPublisher.failOnRefusal(world.run(unit))), error)
      assert.deepStrictEqual(world.counts(), { "executions died": 2 })
    }))

  it.effect("begins nothing for a unit whose start is refused", () =>
    Effect.gen(function*() {
      const { layer, log, write } = makeStore({ refuse: () => true })
      const world = yield* makeWorld(layer)
      assert.isDefined(refusalOf(yield* Effect.exit(world.run(named("test.unit", write("row"))))))
      assert.deepStrictEqual(log, [])
    }))

  it.effect("keeps the result where the failed event cannot be published, and counts it", () =>
    Effect.gen(function*() {
      const { committed, layer } = makeStore({ refuse: (event) => isExecutionEvent(event) && isTerminal(event) })
      const world = yield* makeWorld(layer)
      assert.deepStrictEqual(
        yield* Effect.exit(world.run(named("test.unit", Effect.fail("typed")))),
        Exit.fail("typed")
      )
      assert.deepStrictEqual(committed, ["test.unit started"])
      assert.deepStrictEqual(world.counts(), { "failures Unavailable": 1, "executions failed": 1 })
    }))

  it.effect("a unit within a unit joins its transaction", () =>
    Effect.gen(function*() {
      const { committed, layer, log, write } = makeStore()
      const world = yield* makeWorld(layer)
      yield* world.run(named("test.outer", Effect.andThen(named("test.inner", write("row")), write("other row"))))
      assert.deepStrictEqual(log, [
        "test.outer started",
        "begin",
        "test.inner started",
        "savepoint begin",
        "row",
        "test.inner completed",
        "savepoint commit",
        "other row",
        "test.outer completed",
        "commit"
      ])
      assert.strictEqual(committed.length, 6)
    }))

  it.effect("a unit within a unit is rolled back with it, and leaves nothing", () =>
    Effect.gen(function*() {
      const { committed, layer, write } = makeStore()
      const world = yield* makeWorld(layer)
      const program = named("test.outer", Effect.andThen(named("test.inner", write("row")), Effect.fail("no")))
      yield* Effect.flip(world.run(program))
      assert.deepStrictEqual(committed, ["test.outer started", "test.outer failed"])
    }))

  it.effect("a unit within a unit can fail without it", () =>
    Effect.gen(function*() {
      const { committed, layer, write } = makeStore()
      const world = yield* makeWorld(layer)
      const inner = named("test.inner", Effect.andThen(write("row"), Effect.fail("no")))
      yield* world.run(named("test.outer", Effect.andThen(Effect.ignore(inner), write("other row"))))
      assert.deepStrictEqual(committed, [
        "test.outer started",
        "test.inner started",
        "test.inner failed",
        "other row",
        "test.outer completed"
      ])
    }))

  it.effect("beside another publisher: that one has the completed event after the commit, and whole trees", () =>
    Effect.gen(function*() {
      for (const isLeft of [true, false]) {
        const { committed, events, layer, log, write } = makeStore()
        const seen: Array<Event> = []
        const bus = EventPublisher.layer({
          publish: (event) => {
            seen.push(event)
            log.push(`bus: ${short(event)}`)
          }
        })
        const world = yield* makeWorld(isLeft ? EventPublisher.combine(layer, bus) : EventPublisher.combine(bus, layer))
        assert.strictEqual(world.publisher.policy, "transactional")
        yield* world.run(named("test.unit", write("row")))
        yield* Effect.flip(world.run(named("test.other", Effect.fail("no"))))
        assert.deepStrictEqual(log, [
          "test.unit started",
          "bus: test.unit started",
          "begin",
          "row",
          "test.unit completed",
          "commit",
          "bus: test.unit completed",
          "test.other started",
          "bus: test.other started",
          "begin",
          "rollback",
          "bus: test.other failed",
          "test.other failed"
        ])
        assert.deepStrictEqual(committed.length, 5)
        assert.deepStrictEqual([sequences(events), sequences(seen)], [[1, 2, 3, 4], [1, 2, 3, 4]])
        assert.deepStrictEqual(new Set(seen.map(({ source }) => source)), new Set([world.publisher.source]))
        assert.deepStrictEqual(violations(seen.filter(isExecutionEvent)), [])
      }
    }))

  it.effect("beside a closed publisher that hangs: the committed result stands within its time", () =>
    Effect.gen(function*() {
      const { committed, layer } = makeStore()
      const hanging = faulty("closed", () => Effect.never, "end").layer
      const world = yield* makeWorld(EventPublisher.combine(layer, hanging))
      const { exit, millis } = yield* timed(world.run(named("test.unit", Effect.succeed(1))), 5000)
      assert.deepStrictEqual([exit, millis], [Exit.succeed(1), 5000])
      assert.deepStrictEqual(committed, ["test.unit started", "test.unit completed"])
      assert.deepStrictEqual(world.counts(), { "failures TimedOut": 1, "executions completed": 1 })
    }))

  it.effect("beside an open publisher that hangs: the committed result is not delayed", () =>
    Effect.gen(function*() {
      const { committed, layer } = makeStore()
      const world = yield* makeWorld(
        EventPublisher.combine(layer, EventPublisher.layer({ publish: () => Effect.never }))
      )
      const { exit, millis } = yield* timed(world.run(named("test.unit", Effect.succeed(1))), 0)
      assert.deepStrictEqual([exit, millis], [Exit.succeed(1), 0])
      assert.deepStrictEqual(committed, ["test.unit started", "test.unit completed"])
    }))

  it.effect("behind a filter: an execution is stored or not, and its writes are committed either way", () =>
    Effect.gen(function*() {
      const { committed, events, layer, write } = makeStore()
      const world = yield* makeWorld(EventPublisher.filter(layer, (event) => event.unit_name !== "test.hidden"))
      yield* world.run(named("test.hidden", write("row")))
      yield* world.run(named("test.shown", write("row")))
      assert.deepStrictEqual(committed, ["row", "test.shown started", "row", "test.shown completed"])
      assert.deepStrictEqual(sequences(events), [1, 2])
      assert.deepStrictEqual(new Set(events.map(({ source }) => source)), new Set([world.publisher.source]))
    }))

  it.effect("behind a filter whose predicate throws: the writes are committed, and it is counted", () =>
    Effect.gen(function*() {
      const { committed, layer, write } = makeStore()
      const world = yield* makeWorld(EventPublisher.filter(layer, (event) => {
        if (isExecutionEvent(event) && isTerminal(event)) throw new Error("odd")
        return true
      }))
      yield* world.run(named("test.unit", write("row")))
      assert.deepStrictEqual(committed, ["test.unit started", "row"])
      assert.deepStrictEqual(world.counts(), { "failures Unavailable": 1, "executions completed": 1 })
    }))

  it.effect("behind a sample: both events of an execution are stored, or neither", () =>
    Effect.gen(function*() {
      const { events, layer, log, write } = makeStore()
      const world = yield* makeWorld(EventPublisher.sample(layer, { rate: 0.5 }))
      yield* world.run(Effect.forEach(range(1, 100), () => named("test.unit", write("row"))))
      yield* Effect.exit(
        world.run(Effect.forEach(range(1, 100), () => Effect.exit(named("test.bad", Effect.fail("no")))))
      )
      assert.strictEqual(log.filter((line) => line === "row").length, 100)
      const lifecycle = events.filter(isExecutionEvent)
      assert.isBelow(lifecycle.length, 400)
      assert.strictEqual(lifecycle.filter((event) => event.unit_name === "test.bad").length, 200)
      assert.deepStrictEqual(violations(lifecycle), [])
    }))

  it.effect("behind a buffer there are none", () =>
    Effect.gen(function*() {
      const { layer, log, write } = makeStore()
      const world = yield* makeWorld(EventPublisher.buffered(layer, { capacity: 10, strategy: "dropping" }))
      assert.deepStrictEqual([world.publisher.policy, world.publisher.transaction], ["open", undefined])
      yield* world.run(named("test.unit", write("row")))
      yield* world.close
      assert.deepStrictEqual(log, ["row", "test.unit started", "test.unit completed"])
    }))
})

describe("an event that cannot be encoded", () => {
  it.effect("arrives with a marker in place of the value, and leaves those beside it alone", () =>
    Effect.gen(function*() {
      const { events, layer } = recorder()
      const { run } = yield* makeWorld(layer)
      const poison = {
        get broken(): string {
          throw new Error("getter")
        }
      }
      const echo = instrument((value: unknown) => Effect.succeed(value), { name: "test.echo" })
      yield* run(Effect.forEach([1, poison, 3], (value) => echo(value)))
      const inputs = events.filter((event): event is ExecutionEvent => isExecutionEvent(event)).flatMap((event) =>
        event.event_type === "execution_started" ? [event.input] : []
      )
      assert.deepStrictEqual(inputs, [1, { broken: { $unencodable: "getter" } }, 3])
    }))
})
