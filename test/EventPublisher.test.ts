import { assert, describe, expectTypeOf, it } from "@effect/vitest"
import {
  ConfigProvider,
  Console,
  Context,
  Deferred,
  Effect,
  Exit,
  Fiber,
  Layer,
  LayerRef,
  Queue,
  Schema,
  Scope,
  Stream
} from "effect"
import { TestClock, TestConsole } from "effect/testing"
import { createHash } from "node:crypto"
import * as DomainEvent from "../src/DomainEvent.ts"
import * as EventBus from "../src/EventBus.ts"
import * as EventPublisher from "../src/EventPublisher.ts"
import * as Execution from "../src/Execution.ts"
import { type ExecutionEvent, toJson } from "../src/ExecutionEvent.ts"
import { instrument, instrumentEffect } from "../src/instrument.ts"
import { violations } from "../src/testing/lifecycle.ts"
import * as Unit from "../src/Unit.ts"
import * as Events from "./fixtures/events.ts"
import { idle, makeWorld, named, range, recorder, sequences, short, unavailable } from "./publisherWorld.ts"

const Said = DomainEvent.define("chat.said", { text: Schema.String })

const double = Unit.query("math.double", {
  description: "Twice a number",
  input: { n: Schema.Int },
  output: Schema.Int,
  errors: [],
  handler: ({ n }) => Effect.succeed(2 * n)
})

const refused = named("test.refused", Effect.fail("no"))

/** Runs a number of units. */
const times = (count: number) => Effect.forEach(range(1, count), () => idle, { discard: true })

describe("layerNoop", () => {
  it.effect("runs units as if they were not instrumented", () =>
    Effect.gen(function*() {
      const { counts, publisher, run } = yield* makeWorld(EventPublisher.layerNoop)
      const ids: Array<number> = []
      const program = Effect.gen(function*() {
        yield* Said.publish({ text: "nobody hears" })
        return [yield* double({ n: 2 }), yield* Execution.current, yield* Effect.flip(refused)]
      })
      const result = yield* run(Execution.withIdGenerator(program, (millis) => String(ids.push(millis))))
      assert.deepStrictEqual(result, [4, undefined, "no"])
      assert.deepStrictEqual([publisher.isNoop, ids, counts()], [true, [], {}])
      yield* publisher.publish({ ...(yield* someEvent) })
    }))
})

/** The wire object of an event of `idle`. */
const someEvent = Effect.gen(function*() {
  const { events, layer } = recorder()
  yield* Effect.provide(idle, layer)
  const [event] = events
  assert.isDefined(event)
  return toJson(event as ExecutionEvent)
})

describe("layerMemory", () => {
  it.effect("keeps lifecycle events, and all events, in their order", () =>
    Effect.gen(function*() {
      const memory = yield* EventPublisher.Memory
      yield* named("test.outer", Effect.andThen(double({ n: 1 }), Said.publish({ text: "hi" })))
      const lifecycle = ["test.outer started", "math.double started", "math.double completed", "test.outer completed"]
      assert.deepStrictEqual((yield* memory.events).map(short), lifecycle)
      assert.deepStrictEqual((yield* memory.all).map(short), lifecycle.toSpliced(3, 0, "chat.said"))
      assert.deepStrictEqual(sequences(yield* memory.all), [1, 2, 3, 4, 5])
      assert.deepStrictEqual(violations(yield* memory.events, { ignoreSequence: true }), [])
      assert.strictEqual(yield* memory.dropped, 0)
    }).pipe(Effect.provide(EventPublisher.layerMemory)))

  it.effect("keeps the newest, oldest first, and counts the others", () =>
    Effect.gen(function*() {
      const memory = yield* EventPublisher.Memory
      yield* times(1)
      assert.deepStrictEqual(sequences(yield* memory.all), [1, 2])
      yield* times(3)
      assert.deepStrictEqual([sequences(yield* memory.all), yield* memory.dropped], [[6, 7, 8], 5])
      yield* memory.clear
      assert.deepStrictEqual([yield* memory.all, yield* memory.events, yield* memory.dropped], [[], [], 0])
      yield* times(2)
      assert.deepStrictEqual([sequences(yield* memory.all), yield* memory.dropped], [[10, 11, 12], 1])
    }).pipe(Effect.provide(EventPublisher.layerMemoryWith({ capacity: 3 }))))

  it.effect("keeps 10,000 where it is not told how many, and one at least", () =>
    Effect.gen(function*() {
      const read = Effect.gen(function*() {
        const memory = yield* EventPublisher.Memory
        yield* times(5001)
        return [(yield* memory.all).length, yield* memory.dropped]
      })
      assert.deepStrictEqual(yield* Effect.provide(read, EventPublisher.layerMemory), [10_000, 2])
      assert.deepStrictEqual(yield* Effect.provide(read, EventPublisher.layerMemoryWith({ capacity: 0 })), [1, 10_001])
    }))

  it("needs no asynchronous step, not to close either", () => {
    const program = Effect.gen(function*() {
      yield* idle
      return (yield* (yield* EventPublisher.Memory).events).length
    })
    assert.strictEqual(Effect.runSync(Effect.provide(program, EventPublisher.layerMemory)), 2)
    const combined = EventPublisher.layerMemory.pipe(
      EventPublisher.combine(EventPublisher.layerBus),
      EventPublisher.filter(() => true)
    )
    assert.strictEqual(Effect.runSync(Effect.provide(program, combined)), 2)
  })
})

describe("layerConsole", () => {
  /** Lines with standard output a terminal or not. */
  const lines = (isTTY: boolean, env: Record<string, string> = {}) =>
    Effect.gen(function*() {
      const console = yield* TestConsole.make
      yield* Effect.acquireUseRelease(
        Effect.sync(() => {
          const before = process.stdout.isTTY
          process.stdout.isTTY = isTTY
          return before
        }),
        () =>
          instrument((_text: string) => Said.publish({ text: "\u001b[31mred\u0007" }), { name: "test.say" })(
            "\u001b[2J\u009bclear\r\n"
          ).pipe(
            Effect.provide(EventPublisher.layerConsole),
            Effect.provideService(Console.Console, console),
            Effect.provide(ConfigProvider.layer(ConfigProvider.fromEnv({ env })))
          ),
        (before) =>
          Effect.sync(() => {
            process.stdout.isTTY = before
          })
      )
      return yield* console.logLines
    })

  it.effect("writes one line per event, without colour and control characters where it is no terminal", () =>
    Effect.gen(function*() {
      const written = yield* lines(false)
      assert.deepStrictEqual(
        written.map((line) => String(line).replaceAll(/\[[0-9a-f]{8}\]/g, "[id]")),
        [
          `00:00:00.000 > test.say [id] "\\u001b[2J?clear\\r\\n"`,
          `00:00:00.000 · chat.said [id] {"text":"\\u001b[31mred\\u0007"}`,
          `00:00:00.000 + test.say [id] 0 µs`
        ]
      )
    }))

  it.effect("is in colour on a terminal, unless NO_COLOR says otherwise", () =>
    Effect.gen(function*() {
      const isColoured = (written: ReadonlyArray<unknown>) => written.every((line) => String(line).includes("\u001b["))
      assert.isTrue(isColoured(yield* lines(true)))
      assert.isTrue(isColoured(yield* lines(true, { NO_COLOR: "" })))
      assert.deepStrictEqual(
        (yield* lines(true, { NO_COLOR: "1" })).filter((line) => String(line).includes("\u001b")),
        []
      )
    }))

  it.effect("counts a console that throws", () =>
    Effect.gen(function*() {
      const console = {
        ...yield* TestConsole.make,
        log: () => {
          throw new Error("EPIPE")
        }
      }
      const world = yield* Effect.provideService(makeWorld(EventPublisher.layerConsole), Console.Console, console)
      yield* world.run(idle)
      assert.deepStrictEqual(world.counts(), { "failures Unavailable": 2, "executions completed": 1 })
    }))
})

describe("layerBus", () => {
  it.effect("publishes to the subscribers of the bus that it gives", () =>
    Effect.gen(function*() {
      const stream = yield* (yield* EventBus.EventBus).subscription()
      yield* idle
      const events = yield* Stream.runCollect(Stream.take(stream, 2))
      assert.deepStrictEqual(events.map(short), ["test.idle started", "test.idle completed"])
    }).pipe(Effect.provide(EventPublisher.layerBus)))

  it.effect("is swapped between executions, not within one", () =>
    Effect.gen(function*() {
      const memories: Array<EventPublisher.Memory["Service"]> = []
      const layer = Layer.fresh(EventPublisher.layerMemory).pipe(
        Layer.tap((context) => Effect.sync(() => memories.push(Context.get(context, EventPublisher.Memory))))
      )
      const ref = yield* LayerRef.make(layer)
      const gate = yield* Deferred.make<void>()
      const running = yield* Effect.forkChild(
        Effect.provide(named("test.long", Effect.andThen(Deferred.await(gate), idle)), ref.get),
        { startImmediately: true }
      )
      yield* Effect.yieldNow
      yield* ref.invalidate
      yield* Effect.provide(named("test.next", idle), ref.get)
      yield* Deferred.succeed(gate, undefined)
      yield* Fiber.join(running)
      const seen = yield* Effect.forEach(memories, (memory) => Effect.map(memory.events, (events) => events.map(short)))
      const around = (
        name: string
      ) => [`${name} started`, "test.idle started", "test.idle completed", `${name} completed`]
      assert.deepStrictEqual(seen, [around("test.long"), around("test.next")])
    }))
})

describe("make", () => {
  it.effect("publishes at once where the function does", () =>
    Effect.gen(function*() {
      const seen: Array<string> = []
      const { run } = yield* makeWorld(EventPublisher.layer({ publish: (event) => void seen.push(short(event)) }))
      yield* run(named("test.unit", Effect.sync(() => seen.push("runs"))))
      assert.deepStrictEqual(seen, ["test.unit started", "runs", "test.unit completed"])
    }))

  it.effect("numbers events from 1 under one source, domain events included", () =>
    Effect.gen(function*() {
      const { events, layer } = recorder({ source: "orders" })
      const { run } = yield* makeWorld(layer)
      yield* run(named("test.unit", Said.publish({ text: "a" })))
      assert.deepStrictEqual(events.map(({ sequence, source }) => [source, sequence]), [
        ["orders", 1],
        ["orders", 2],
        ["orders", 3]
      ])
    }))

  it.effect("names itself by a UUID of its own where it is given no source", () =>
    Effect.gen(function*() {
      const one = (yield* makeWorld(EventPublisher.layerMemory)).publisher.source
      const other = (yield* makeWorld(EventPublisher.layerBus)).publisher.source
      const uuidV7 = /^[0-9a-f]{8}-[0-9a-f]{4}-7[0-9a-f]{3}-[89ab][0-9a-f]{3}-[0-9a-f]{12}$/
      assert.match(one, uuidV7)
      assert.match(other, uuidV7)
      assert.notStrictEqual(one, other)
    }))

  it.effect("keeps the number that an event came with", () =>
    Effect.gen(function*() {
      const { events, layer } = recorder()
      const { publisher } = yield* makeWorld(layer)
      const event: ExecutionEvent = { ...yield* someEvent, source: "elsewhere", sequence: 17 }
      publisher.offer(event)
      yield* publisher.publish(event)
      assert.deepStrictEqual(events, [event, event])
    }))

  it.effect("runs the Effects that the function returns one after the other, while units go on", () =>
    Effect.gen(function*() {
      const log: Array<string> = []
      const world = yield* makeWorld(EventPublisher.layer({
        publish: (event) =>
          Effect.gen(function*() {
            log.push(`begins ${event.sequence}`)
            yield* Effect.sleep("1 second")
            log.push(`ends ${event.sequence}`)
          })
      }))
      yield* world.run(times(2))
      assert.deepStrictEqual(log, [])
      yield* TestClock.adjust("1 second")
      assert.deepStrictEqual(log, ["begins 1", "ends 1", "begins 2"])
      yield* TestClock.adjust("3 seconds")
      assert.deepStrictEqual(log, range(1, 4).flatMap((n) => [`begins ${n}`, `ends ${n}`]))
      assert.deepStrictEqual(world.counts(), { "executions completed": 2 })
    }))

  it.effect("holds so many events for Effects to publish, counts the others, and logs it once until it has caught up", () =>
    Effect.gen(function*() {
      const published: Array<number> = []
      const gate = yield* Queue.unbounded<void>()
      const world = yield* makeWorld(EventPublisher.layer({
        capacity: 3,
        publish: (event) => Effect.andThen(Queue.take(gate), Effect.sync(() => published.push(event.sequence)))
      }))
      yield* world.run(times(1))
      yield* Effect.yieldNow
      // The first is being published, three wait.
      yield* world.run(times(4))
      assert.deepStrictEqual(world.counts(), { "executions completed": 5, "failures BufferFull": 6 })
      yield* Queue.offerAll(gate, range(1, 2).map(() => undefined))
      yield* Effect.yieldNow
      yield* world.run(times(1))
      assert.deepStrictEqual(world.counts(), { "executions completed": 6, "failures BufferFull": 6 })
      yield* world.run(times(1))
      assert.strictEqual(world.logs.length, 1)
      assert.match(
        world.logs[0]!,
        /^Event .*:started was not published: the buffer of 3 events is full.*Units run on/s
      )
      yield* Queue.offerAll(gate, range(1, 4).map(() => undefined))
      yield* Effect.yieldNow
      assert.deepStrictEqual(published, [1, 2, 3, 4, 11, 12])
      yield* world.run(times(3))
      assert.strictEqual(world.counts()["failures BufferFull"], 11)
      assert.strictEqual(world.logs.length, 2)
    }))

  it.effect("leaves those alone that come beside an event which cannot be published", () =>
    Effect.gen(function*() {
      const published: Array<number> = []
      const world = yield* makeWorld(EventPublisher.layer({
        publish: (event) =>
          event.sequence % 4 === 2
            ? Effect.fail(unavailable(event))
            : event.sequence % 4 === 3
            ? Effect.die("poison")
            : Effect.sync(() => published.push(event.sequence))
      }))
      yield* world.run(times(4))
      yield* world.close
      assert.deepStrictEqual(published, [1, 4, 5, 8])
      assert.deepStrictEqual(world.counts(), { "executions completed": 4, "failures Unavailable": 4 })
    }))

  it.effect("bounds the fields of events", () =>
    Effect.gen(function*() {
      const { events, layer } = recorder({ maxFieldBytes: 10 })
      const { run } = yield* makeWorld(layer)
      yield* run(instrumentEffect(Effect.succeed("short"), { name: "test.unit", input: "longer than that" }))
      assert.deepStrictEqual(
        events.map((event) => "input" in event ? event.input : "output" in event ? event.output : undefined),
        [
          {
            $truncated: true,
            bytes: 16,
            sha256: createHash("sha256").update("longer than that").digest("hex")
          },
          "short"
        ]
      )
    }))

  it.effect("takes nothing more once its scope has closed, and counts it", () =>
    Effect.gen(function*() {
      const { events, layer } = recorder()
      const world = yield* makeWorld(layer)
      yield* world.close
      yield* world.run(idle)
      assert.deepStrictEqual([events, world.counts()], [[], { "failures Closed": 2, "executions completed": 1 }])
      const error = yield* Effect.flip(world.publisher.publish(yield* someEvent))
      assert.deepStrictEqual([error.reason._tag, error.retryable], ["Closed", false])
    }))

  it.effect("is transactional with a transaction only", () =>
    Effect.gen(function*() {
      const exit = yield* Effect.exit(makeWorld(EventPublisher.layer({ publish: () => {}, policy: "transactional" })))
      assert.isTrue(Exit.hasDies(exit))
    }))
})

describe("PublishError", () => {
  const of = (reason: EventPublisher.PublishError["reason"]) =>
    new EventPublisher.PublishError({ event_id: "e:started", reason })

  it("says what is wrong, and whether a retry can help", () => {
    const errors = [
      of(new EventPublisher.Unavailable({ detail: "refused" })),
      of(new EventPublisher.Rejected({ detail: "too large" })),
      of(new EventPublisher.TimedOut({ after_ms: 50 })),
      of(new EventPublisher.BufferFull({ capacity: 8 })),
      of(new EventPublisher.Closed())
    ]
    assert.deepStrictEqual(errors.map((error) => [error.reason._tag, error.retryable]), [
      ["Unavailable", true],
      ["Rejected", false],
      ["TimedOut", true],
      ["BufferFull", true],
      ["Closed", false]
    ])
    for (const error of errors) assert.match(error.message, /^Event e:started was not published: \w/)
  })
})

describe("combine", () => {
  it.effect("gives every event to both, in one numbering, and the services of both", () =>
    Effect.gen(function*() {
      const { publisher, run } = yield* makeWorld(
        EventPublisher.combine(EventPublisher.layerMemory, EventPublisher.layerBus)
      )
      const [inMemory, onBus] = yield* run(Effect.scoped(Effect.gen(function*() {
        const stream = yield* (yield* EventBus.EventBus).subscription()
        yield* named("test.outer", idle)
        return [yield* (yield* EventPublisher.Memory).events, yield* Stream.runCollect(Stream.take(stream, 4))]
      })))
      assert.deepStrictEqual(onBus, inMemory)
      assert.deepStrictEqual(inMemory?.map(({ sequence, source }) => [source, sequence]), [
        [publisher.source, 1],
        [publisher.source, 2],
        [publisher.source, 3],
        [publisher.source, 4]
      ])
      assert.deepStrictEqual([publisher.policy, publisher.waits], ["open", false])
    }))

  it.effect("with a noop is the other publisher", () =>
    Effect.gen(function*() {
      const { events, layer } = recorder({ source: "kept" })
      for (
        const pair of [
          EventPublisher.combine(layer, EventPublisher.layerNoop),
          EventPublisher.layerNoop.pipe(EventPublisher.combine(layer))
        ]
      ) {
        const { publisher, run } = yield* makeWorld(pair)
        yield* run(idle)
        assert.strictEqual(publisher.source, "kept")
      }
      assert.deepStrictEqual(sequences(events), [1, 2, 1, 2])
      assert.isTrue(
        (yield* makeWorld(EventPublisher.combine(EventPublisher.layerNoop, EventPublisher.layerNoop))).publisher.isNoop
      )
    }))

  it.effect("keeps what goes wrong in one from the other", () =>
    Effect.gen(function*() {
      const { events, layer } = recorder()
      const broken = EventPublisher.layer({
        publish: () => {
          throw new Error("broken")
        }
      })
      for (const pair of [EventPublisher.combine(layer, broken), EventPublisher.combine(broken, layer)]) {
        events.length = 0
        const world = yield* makeWorld(pair)
        yield* world.run(idle)
        assert.deepStrictEqual(sequences(events), [1, 2])
        assert.deepStrictEqual(world.counts(), { "failures Unavailable": 2, "executions completed": 1 })
      }
    }))

  it.effect("has the stricter policy and the lower limits", () =>
    Effect.gen(function*() {
      const open = EventPublisher.layer({ publish: () => {}, maxFieldBytes: 100, terminalTimeout: "1 second" })
      const closed = EventPublisher.layer({
        publish: () => {},
        maxFieldBytes: 200,
        policy: "closed",
        terminalTimeout: "9 seconds"
      })
      for (const pair of [EventPublisher.combine(open, closed), EventPublisher.combine(closed, open)]) {
        const { publisher } = yield* makeWorld(pair)
        assert.deepStrictEqual([publisher.policy, publisher.waits, publisher.limits.maxFieldBytes], [
          "closed",
          true,
          100
        ])
      }
    }))

  it.effect("refuses two transactions", () =>
    Effect.gen(function*() {
      const transactional = () =>
        EventPublisher.layer({ publish: () => {}, policy: "transactional", transaction: { run: (work) => work } })
      const exit = yield* Effect.exit(makeWorld(EventPublisher.combine(transactional(), transactional())))
      assert.isTrue(Exit.hasDies(exit))
    }))

  it.effect("makes a buffer in front of it wait for both", () =>
    Effect.gen(function*() {
      const published: Array<string> = []
      const slow = (name: string, millis: number) =>
        EventPublisher.layer({
          capacity: 1,
          publish: ({ sequence }) =>
            Effect.andThen(Effect.sleep(millis), Effect.sync(() => published.push(`${name} ${sequence}`)))
        })
      const world = yield* makeWorld(
        EventPublisher.combine(slow("a", 10), slow("b", 20)).pipe(
          EventPublisher.buffered({ capacity: 4, strategy: "suspend" })
        )
      )
      const fiber = yield* Effect.forkChild(world.run(times(5)))
      yield* TestClock.adjust("200 millis")
      yield* Fiber.join(fiber)
      assert.deepStrictEqual(published, range(1, 10).flatMap((n) => [`a ${n}`, `b ${n}`]))
      assert.deepStrictEqual(world.counts(), { "executions completed": 5 })
    }))
})

describe("combinators", () => {
  it("keep what a Layer gives, needs and fails with", () => {
    class Settings extends Context.Service<Settings, { readonly rate: number }>()("test/Settings") {}
    type Services = EventPublisher.EventPublisher | EventPublisher.Memory
    // Only its type counts.
    const layer = EventPublisher.layerMemory as Layer.Layer<Services, "failed", Settings>
    expectTypeOf(EventPublisher.filter(layer, () => true)).toEqualTypeOf<typeof layer>()
    expectTypeOf(layer.pipe(EventPublisher.sample({ rate: 1 }))).toEqualTypeOf<typeof layer>()
    expectTypeOf(EventPublisher.buffered(layer, { capacity: 1, strategy: "sliding" })).toEqualTypeOf<typeof layer>()
    expectTypeOf(EventPublisher.combine(layer, EventPublisher.layerBus)).toEqualTypeOf<
      Layer.Layer<Services | EventBus.EventBus, "failed", Settings>
    >()
    expectTypeOf(EventPublisher.layerBus.pipe(EventPublisher.combine(layer))).toEqualTypeOf<
      Layer.Layer<Services | EventBus.EventBus, "failed", Settings>
    >()
    // @ts-expect-error - a Promise is no Effect: what becomes of it would go unseen.
    EventPublisher.layer({ publish: async () => {} })
  })
})

describe("filter", () => {
  it.effect("lets through what the predicate accepts, numbered without holes", () =>
    Effect.gen(function*() {
      const { events, layer } = recorder({ source: "behind" })
      const { publisher, run } = yield* makeWorld(
        layer.pipe(EventPublisher.filter((event) => event.unit_name !== "test.idle"))
      )
      yield* run(named("test.a", idle))
      yield* run(idle)
      yield* run(Said.publish({ text: "x" }))
      yield* run(named("test.b", Effect.void))
      assert.deepStrictEqual(events.map((event) => [short(event), event.sequence]), [
        ["test.a started", 1],
        ["test.a completed", 2],
        ["chat.said", 3],
        ["test.b started", 4],
        ["test.b completed", 5]
      ])
      assert.deepStrictEqual(new Set(events.map(({ source }) => source)), new Set([publisher.source]))
      assert.notStrictEqual(publisher.source, "behind")
    }))

  it.effect("beside another publisher leaves that one's numbers alone", () =>
    Effect.gen(function*() {
      const all = recorder()
      const some = recorder()
      const { run } = yield* makeWorld(
        EventPublisher.combine(
          EventPublisher.filter(some.layer, (event) => event.unit_name === "math.double"),
          all.layer
        )
      )
      yield* run(named("test.outer", double({ n: 1 })))
      assert.deepStrictEqual(sequences(all.events), [1, 2, 3, 4])
      assert.deepStrictEqual(sequences(some.events), [1, 2])
      assert.deepStrictEqual(some.events.map(({ id }) => id), all.events.slice(1, 3).map(({ id }) => id))
      // A copy has the same content, encoded or not.
      const strip = ({ sequence: _sequence, source: _source, ...rest }: ExecutionEvent) => rest
      const wire = (events: ReadonlyArray<EventPublisher.Event>) =>
        events.map((event) => strip(toJson(event as ExecutionEvent)))
      assert.deepStrictEqual(wire(some.events), wire(all.events.slice(1, 3)))
    }))

  it.effect("counts a predicate that throws, whose event stays back", () =>
    Effect.gen(function*() {
      const { events, layer } = recorder()
      const world = yield* makeWorld(EventPublisher.filter(layer, (event) => {
        if (event.unit_name === "test.odd") throw new Error("odd")
        return true
      }))
      yield* world.run(named("test.odd", idle))
      assert.deepStrictEqual(events.map(short), ["test.idle started", "test.idle completed"])
      assert.deepStrictEqual(sequences(events), [1, 2])
      assert.deepStrictEqual(world.counts(), { "failures Unavailable": 2, "executions completed": 2 })
    }))

  it.effect("of a noop is a noop, and so is what else stands in front of it", () =>
    Effect.gen(function*() {
      for (
        const layer of [
          EventPublisher.filter(EventPublisher.layerNoop, () => true),
          EventPublisher.sample(EventPublisher.layerNoop, { rate: 1 }),
          EventPublisher.buffered(EventPublisher.layerNoop, { capacity: 1, strategy: "suspend" })
        ]
      ) {
        assert.isTrue((yield* makeWorld(layer)).publisher.isNoop)
      }
    }))

  it.effect("keeps the other services of the Layer", () =>
    Effect.gen(function*() {
      const { run } = yield* makeWorld(
        EventPublisher.layerMemory.pipe(
          EventPublisher.filter(() => true),
          EventPublisher.sample({ rate: 1 }),
          EventPublisher.buffered({ capacity: 9, strategy: "suspend" })
        )
      )
      yield* run(idle)
      yield* Effect.yieldNow
      assert.deepStrictEqual(sequences(yield* run(EventPublisher.Memory.use((memory) => memory.all))), [1, 2])
    }))
})

describe("sample", () => {
  const sampled = (options: EventPublisher.SampleOptions) =>
    Effect.gen(function*() {
      const { events, layer } = recorder()
      return { events, ...(yield* makeWorld(EventPublisher.sample(layer, options))) }
    })

  it.effect("passes nothing but failures at a rate of 0, each with its start right before it", () =>
    Effect.gen(function*() {
      const { events, run } = yield* sampled({ rate: 0 })
      yield* run(named("test.outer", Effect.andThen(idle, Effect.ignore(refused))))
      yield* run(Effect.exit(Effect.andThen(Said.publish({ text: "" }), named("test.dies", Effect.die("defect")))))
      assert.deepStrictEqual(events.map(short), [
        "test.refused started",
        "test.refused failed",
        // Outside of any execution there is no tree that could stay back.
        "chat.said",
        "test.dies started",
        "test.dies failed"
      ])
      assert.deepStrictEqual(sequences(events), [1, 2, 3, 4, 5])
      assert.deepStrictEqual(violations(events.filter((event) => "event_type" in event), { ignoreSequence: true }), [])
    }))

  it.effect("passes everything at a rate of 1", () =>
    Effect.gen(function*() {
      const { events, run } = yield* sampled({ rate: 1 })
      yield* run(named("test.outer", Effect.andThen(idle, Said.publish({ text: "" }))))
      assert.deepStrictEqual(sequences(events), [1, 2, 3, 4, 5])
    }))

  it.effect("passes whole trees, about as many as the rate says, whatever the order", () =>
    Effect.gen(function*() {
      const count = 4000
      const rate = 0.2
      const { events, run } = yield* sampled({ rate, capacity: 4 * count })
      const tree = named("test.root", Effect.andThen(idle, named("test.leaf", Said.publish({ text: "" }))))
      yield* run(Effect.forEach(range(1, count), () => Effect.andThen(Effect.yieldNow, tree), {
        concurrency: 50,
        discard: true
      }))
      const trees = new Map<string | undefined, number>()
      for (const event of events) trees.set(event.root_id, (trees.get(event.root_id) ?? 0) + 1)
      assert.deepStrictEqual(new Set(trees.values()), new Set([7]))
      // Five standard deviations to either side.
      const deviation = Math.sqrt(count * rate * (1 - rate))
      assert.isAbove(trees.size, count * rate - 5 * deviation)
      assert.isBelow(trees.size, count * rate + 5 * deviation)
      assert.deepStrictEqual(violations(events.filter((event) => "event_type" in event), { ignoreSequence: true }), [])
      assert.deepStrictEqual(sequences(events), range(1, events.length))
    }))

  it.effect("chooses alike everywhere", () =>
    Effect.gen(function*() {
      const left = recorder()
      const right = recorder()
      const both = EventPublisher.combine(
        EventPublisher.sample(left.layer, { rate: 0.5 }),
        EventPublisher.sample(right.layer, { rate: 0.5 })
      )
      yield* (yield* makeWorld(both)).run(times(200))
      assert.deepStrictEqual(left.events.map(({ id }) => id), right.events.map(({ id }) => id))
    }))

  it.effect("holds so many starts; beyond that the oldest pass, with their ends", () =>
    Effect.gen(function*() {
      const { events, run } = yield* sampled({ rate: 0, capacity: 2 })
      const gates = yield* Effect.forEach(range(1, 5), () => Deferred.make<void>())
      const fibers = yield* Effect.forEach(gates, (gate, index) =>
        Effect.forkChild(run(named(`test.u${index + 1}`, Deferred.await(gate))), { startImmediately: true }))
      assert.deepStrictEqual(events.map(short), ["test.u1 started", "test.u2 started", "test.u3 started"])
      yield* Effect.forEach(gates, (gate) =>
        Deferred.succeed(gate, undefined))
      yield* Effect.forEach(fibers, (fiber) =>
        Fiber.join(fiber))
      assert.deepStrictEqual(events.map(short).slice(3), [
        "test.u1 completed",
        "test.u2 completed",
        "test.u3 completed"
      ])
      assert.deepStrictEqual(sequences(events), range(1, 6))
      // What has ended is held no more.
      yield* run(times(10))
      assert.strictEqual(events.length, 6)
    }))
})

describe("make", () => {
  it.effect("makes a publisher whose functions can be taken out of it", () =>
    Effect.gen(function*() {
      const seen: Array<string> = []
      const world = yield* makeWorld(EventPublisher.layer({ publish: (event) => void seen.push(event.id) }))
      const { offer, publish, report } = world.publisher
      yield* publish(Events.domainEvent("a"))
      offer(Events.domainEvent("b"))
      report(unavailable(Events.domainEvent("c")))
      assert.deepStrictEqual(seen, ["a", "b"])
      assert.deepStrictEqual(world.counts(), { "failures Unavailable": 1 })
    }))
})

describe("buffered", () => {
  /** A publisher that publishes one event per turn that it is given. */
  const gated = Effect.gen(function*() {
    const gate = yield* Queue.unbounded<void>()
    const published: Array<number> = []
    const layer = EventPublisher.layer({
      policy: "closed",
      publish: (event) => Effect.andThen(Queue.take(gate), Effect.sync(() => published.push(event.sequence)))
    })
    const turns = (count: number) =>
      Effect.andThen(
        Queue.offerAll(gate, range(1, count).map(() => undefined)),
        Effect.forEach(range(0, 2 * count), () => Effect.yieldNow)
      )
    return { layer, published, turns }
  })

  it.effect("suspends units while it is full, and loses nothing", () =>
    Effect.gen(function*() {
      const { layer, published, turns } = yield* gated
      const world = yield* makeWorld(layer.pipe(EventPublisher.buffered({ capacity: 2, strategy: "suspend" })))
      assert.deepStrictEqual([world.publisher.policy, world.publisher.waits], ["open", true])
      let ran = 0
      const fiber = yield* Effect.forkChild(
        world.run(Effect.forEach(range(1, 4), () => named("test.unit", Effect.sync(() => ran++)))),
        { startImmediately: true }
      )
      yield* Effect.yieldNow
      yield* Effect.yieldNow
      // One is being published, two wait, the fourth finds no room.
      assert.deepStrictEqual([ran, fiber.pollUnsafe()], [2, undefined])
      yield* turns(8)
      yield* Fiber.join(fiber)
      assert.deepStrictEqual(published, range(1, 8))
      assert.deepStrictEqual(world.counts(), { "executions completed": 4 })
    }))

  it.effect("drops the newest, counts them, logs it once, and shows it as gaps in the numbers", () =>
    Effect.gen(function*() {
      const { layer, published, turns } = yield* gated
      const world = yield* makeWorld(layer.pipe(EventPublisher.buffered({ capacity: 4, strategy: "dropping" })))
      yield* Effect.yieldNow
      yield* world.run(times(10))
      assert.deepStrictEqual(world.counts(), { "executions completed": 10, "drops buffered": 16 })
      yield* turns(4)
      yield* world.run(times(1))
      yield* turns(2)
      assert.deepStrictEqual(published, [1, 2, 3, 4, 21, 22])
      assert.strictEqual(published.at(-1)! - published.length, 16)
      assert.deepStrictEqual(world.logs, [
        "A buffer of 4 events is full and drops events; they are counted in effect_units_events_dropped."
      ])
      yield* world.run(times(3))
      assert.strictEqual(world.counts()["drops buffered"], 18)
      assert.strictEqual(world.logs.length, 2)
    }))

  it.effect("slides over the oldest, counts them, and shows it as a gap in the numbers", () =>
    Effect.gen(function*() {
      const { layer, published, turns } = yield* gated
      const world = yield* makeWorld(layer.pipe(EventPublisher.buffered({ capacity: 4, strategy: "sliding" })))
      yield* Effect.yieldNow
      yield* world.run(times(10))
      assert.deepStrictEqual(world.counts(), { "executions completed": 10, "drops buffered": 16 })
      yield* turns(4)
      assert.deepStrictEqual(published, [17, 18, 19, 20])
    }))

  for (const strategy of ["suspend", "dropping", "sliding"] as const) {
    it.effect(`publishes what it accepted when its scope closes (${strategy})`, () =>
      Effect.gen(function*() {
        const published: Array<number> = []
        const slow = EventPublisher.layer({
          publish: (event) => Effect.andThen(Effect.sleep("1 milli"), Effect.sync(() => published.push(event.sequence)))
        })
        const world = yield* makeWorld(slow.pipe(EventPublisher.buffered({ capacity: 10_000, strategy })))
        yield* world.run(times(4999))
        const closing = yield* Effect.forkChild(world.close, { startImmediately: true })
        yield* TestClock.adjust("9997 millis")
        assert.isUndefined(closing.pollUnsafe())
        yield* TestClock.adjust("1 milli")
        yield* Fiber.join(closing)
        assert.deepStrictEqual(published, range(1, 9998))
        assert.deepStrictEqual(world.counts(), { "executions completed": 4999 })
      }))

    it.effect(`counts what it could not publish within its deadline (${strategy})`, () =>
      Effect.gen(function*() {
        let published = 0
        const slow = EventPublisher.layer({
          publish: () => Effect.andThen(Effect.sleep("10 millis"), Effect.sync(() => published++))
        })
        const world = yield* makeWorld(
          slow.pipe(EventPublisher.buffered({ capacity: 10_000, strategy, flushTimeout: "2 seconds" }))
        )
        yield* world.run(times(5000))
        const closing = yield* Effect.forkChild(world.close, { startImmediately: true })
        yield* TestClock.adjust("2 seconds")
        yield* Fiber.join(closing)
        assert.isAtLeast(published, 198)
        assert.deepStrictEqual(world.counts(), { "executions completed": 5000, "drops flush": 10_000 - published })
        assert.deepStrictEqual(world.logs, [
          `A publisher could not publish all events within its flushTimeout: ${10_000 - published} were dropped. ` +
          "Give it more time, or a faster transport"
        ])
      }))
  }

  it.effect("keeps its deadline beside a publisher that hangs and does not heed its interruption", () =>
    Effect.gen(function*() {
      const hanging = EventPublisher.layer({ publish: () => Effect.uninterruptible(Effect.never), timeout: "1 hour" })
      for (
        const layer of [
          hanging,
          EventPublisher.buffered(hanging, { capacity: 10, strategy: "suspend" }),
          EventPublisher.buffered(hanging, { capacity: 10, strategy: "sliding", flushTimeout: "10 seconds" })
        ]
      ) {
        const world = yield* makeWorld(layer)
        yield* world.run(times(2))
        const closing = yield* Effect.forkChild(world.close, { startImmediately: true })
        yield* TestClock.adjust("9999 millis")
        assert.isUndefined(closing.pollUnsafe())
        yield* TestClock.adjust("1 milli")
        yield* Fiber.join(closing)
        assert.deepStrictEqual(world.counts(), { "executions completed": 2, "drops flush": 4 })
      }
    }))

  it.effect("drops what waits for room when its scope closes, and lets the units go on", () =>
    Effect.gen(function*() {
      const world = yield* makeWorld(
        EventPublisher.layer({ publish: () => Effect.never, policy: "closed" }).pipe(
          EventPublisher.buffered({ capacity: 1, strategy: "suspend", flushTimeout: "1 second" })
        )
      )
      const fiber = yield* Effect.forkChild(world.run(times(3)), { startImmediately: true })
      yield* Effect.yieldNow
      yield* Effect.yieldNow
      const closing = yield* Effect.forkChild(world.close, { startImmediately: true })
      yield* Fiber.join(fiber)
      yield* TestClock.adjust("1 second")
      yield* Fiber.join(closing)
      assert.deepStrictEqual(world.counts(), { "executions completed": 3, "drops buffered": 4, "drops flush": 2 })
    }))

  it.effect("says to whoever publishes that it is closed, before it waits and while it does", () =>
    Effect.gen(function*() {
      for (const strategy of ["suspend", "dropping", "sliding"] as const) {
        const world = yield* makeWorld(
          EventPublisher.layer({ publish: () => Effect.never, policy: "closed" }).pipe(
            EventPublisher.buffered({ capacity: 1, strategy, flushTimeout: 0 })
          )
        )
        const event = Events.domainEvent("a")
        const { offer, publish, report } = world.publisher
        yield* publish(event)
        yield* Effect.yieldNow
        yield* publish(event)
        const waiting = yield* Effect.forkChild(Effect.exit(publish(event)), { startImmediately: true })
        yield* world.close
        const closed = Exit.fail(
          new EventPublisher.PublishError({ event_id: "a", reason: new EventPublisher.Closed() })
        )
        assert.deepStrictEqual(yield* Fiber.join(waiting), strategy === "suspend" ? closed : Exit.void)
        assert.deepStrictEqual(yield* Effect.exit(publish(event)), closed)
        offer(event)
        report(unavailable(event))
        assert.strictEqual(world.counts()["failures Unavailable"], 1)
        // An open publisher loses events, and units run.
        yield* world.run(idle)
        assert.strictEqual(world.counts()["executions completed"], 1)
      }
    }))

  it.effect("closed beside another publisher, it leaves the other one its events", () =>
    Effect.gen(function*() {
      const seen: Array<string> = []
      const scope = yield* Scope.make()
      const closing = yield* Layer.buildWithScope(
        EventPublisher.buffered(EventPublisher.layer({ publish: () => {} }), { capacity: 1, strategy: "suspend" }),
        scope
      )
      const world = yield* makeWorld(EventPublisher.combine(
        Layer.succeedContext(closing),
        EventPublisher.layer({ publish: (event) => void seen.push(short(event)) })
      ))
      yield* Scope.close(scope, Exit.void)
      yield* world.run(idle)
      assert.deepStrictEqual(seen, ["test.idle started", "test.idle completed"])
    }))

  it.effect("counts an event as dropped whose unit gives up waiting for room", () =>
    Effect.gen(function*() {
      const { layer, published, turns } = yield* gated
      const world = yield* makeWorld(layer.pipe(EventPublisher.buffered({ capacity: 1, strategy: "suspend" })))
      yield* Effect.yieldNow
      yield* world.run(idle)
      let ran = false
      const fiber = yield* Effect.forkChild(
        world.run(named(
          "test.late",
          Effect.sync(() => {
            ran = true
          })
        )),
        { startImmediately: true }
      )
      fiber.interruptUnsafe()
      // What may have begun waits for its answer, and then with its end, but not for ever.
      yield* TestClock.adjust("10 seconds")
      assert.isTrue(Exit.hasInterrupts(yield* Fiber.await(fiber)))
      assert.isFalse(ran)
      assert.deepStrictEqual(world.counts(), {
        "executions completed": 1,
        "executions interrupted": 1,
        "drops buffered": 2,
        "failures TimedOut": 1
      })
      yield* turns(2)
      yield* world.run(named("test.next", Effect.void)).pipe(Effect.forkChild({ startImmediately: true }))
      yield* turns(2)
      assert.deepStrictEqual(published, [1, 2, 5, 6])
    }))

  it.effect("does not end with one event that cannot be published", () =>
    Effect.gen(function*() {
      const published: Array<number> = []
      const world = yield* makeWorld(
        EventPublisher.layer({
          publish: (event) => {
            if (event.sequence === 3) throw new Error("poison")
            return event.sequence === 6 ? Effect.die("poison") : Effect.sync(() => published.push(event.sequence))
          }
        }).pipe(EventPublisher.buffered({ capacity: 100, strategy: "dropping" }))
      )
      yield* world.run(times(4))
      yield* world.close
      assert.deepStrictEqual(published, [1, 2, 4, 5, 7, 8])
      assert.deepStrictEqual(world.counts(), { "executions completed": 4, "failures Unavailable": 2 })
    }))

  it.effect("closes before the publisher behind it", () =>
    Effect.gen(function*() {
      const log: Array<string> = []
      const behind = Layer.effect(
        EventPublisher.EventPublisher,
        Effect.andThen(
          Effect.addFinalizer(() => Effect.sync(() => log.push("closed"))),
          EventPublisher.make({ publish: (event) => Effect.sync(() => log.push(short(event))) })
        )
      )
      const world = yield* makeWorld(EventPublisher.buffered(behind, { capacity: 9, strategy: "dropping" }))
      yield* world.run(idle)
      yield* world.close
      assert.deepStrictEqual(log, ["test.idle started", "test.idle completed", "closed"])
    }))

  it.effect("takes domain events like any other", () =>
    Effect.gen(function*() {
      const { layer, published, turns } = yield* gated
      const world = yield* makeWorld(layer.pipe(EventPublisher.buffered({ capacity: 1, strategy: "suspend" })))
      const fiber = yield* Effect.forkChild(
        world.run(Effect.forEach(range(1, 5), () => Said.publish({ text: "" }), { discard: true })),
        { startImmediately: true }
      )
      yield* Effect.yieldNow
      assert.isUndefined(fiber.pollUnsafe())
      yield* turns(5)
      yield* Fiber.join(fiber)
      assert.deepStrictEqual(published, range(1, 5))
    }))
})

describe("scopes", () => {
  it.effect("leave no fiber behind", () =>
    Effect.gen(function*() {
      // What is forked in a scope is a child of nobody, so it is found by what it would still do: publish.
      const published: Array<string> = []
      const scope = yield* Scope.make()
      const context = yield* Layer.buildWithScope(
        EventPublisher.layer({
          timeout: "1 hour",
          flushTimeout: "1 second",
          publish: (event) =>
            Effect.sleep("10 seconds").pipe(
              Effect.andThen(Effect.sync(() => published.push(short(event)))),
              Effect.onInterrupt(() => Effect.sync(() => published.push("interrupted")))
            )
        }),
        scope
      )
      yield* Effect.provide(idle, context)
      const closing = yield* Effect.forkChild(Scope.close(scope, Exit.void), { startImmediately: true })
      yield* TestClock.adjust("1 second")
      yield* Fiber.join(closing)
      yield* TestClock.adjust("1 hour")
      assert.deepStrictEqual(published, ["interrupted"])
    }))
})
