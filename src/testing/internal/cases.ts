/**
 * The cases of the conformance suite, by number.
 *
 * @since 0.1.0
 */
import * as Deferred from "effect/Deferred"
import * as Duration from "effect/Duration"
import * as Effect from "effect/Effect"
import * as Exit from "effect/Exit"
import * as Fiber from "effect/Fiber"
import * as Schedule from "effect/Schedule"
import type * as Schema from "effect/Schema"
import * as Scope from "effect/Scope"
import * as DomainEvent from "../../DomainEvent.ts"
import * as EventPublisher from "../../EventPublisher.ts"
import * as EventSubscriber from "../../EventSubscriber.ts"
import * as Execution from "../../Execution.ts"
import { isExecutionEvent } from "../../ExecutionEvent.ts"
import { instrument, instrumentEffect } from "../../instrument.ts"
import { violations } from "../lifecycle.ts"
import type { Nonconformance } from "../Nonconformance.ts"
import type { Figures, Promises } from "../publisherSuite.ts"
import { difference, gather, idsOf, type Kit, type Reader } from "./kit.ts"

type Event = EventPublisher.Event

/**
 * A case before it is given a Layer.
 *
 * @internal
 */
export interface CaseDefinition {
  readonly number: number
  readonly name: string
  /** What it shows: a promise, or what every transport owes. */
  readonly promise: keyof Promises | "delivery"
  /** Why it is not run, where the promises do not make it due. */
  readonly skipped: (promises: Promises) => string | undefined
  /** How many times as long as others it may take. Default 1. */
  readonly patience?: number
  readonly run: <E>(kit: Kit<E>, promises: Promises) => Effect.Effect<Figures, E | Nonconformance, Scope.Scope>
}

const always = (): undefined => undefined
const unless = (made: (promises: Promises) => boolean, reason: string) => (promises: Promises): string | undefined =>
  made(promises) ? undefined : reason

const durable = unless((promises) => promises.durable, "promises no durability")
const none: Figures = {}

/** The name of a consumer where its place is kept. */
const nameOf = (promises: Promises): string | undefined => promises.durable ? "conformance" : undefined

/** Values that transports have broken. */
const torture: Schema.Json = {
  text: "naïve 模型 🤖 \u0000 \u0007 \ud800 \"quoted\" \\ \n </script> ' ; --",
  empty: { object: {}, list: [], text: "" },
  numbers: [0, -1, 0.1, 1e21, 5e-324, 9007199254740991],
  nothing: null,
  flags: [true, false],
  nested: [[[[[[["deep"]]]]]]],
  ["__proto__"]: { polluted: true },
  "a.b$c": { "": "empty key" }
}

const percentile = (sorted: ReadonlyArray<number>, share: number): number =>
  sorted[Math.min(sorted.length - 1, Math.floor(sorted.length * share))] ?? 0

const rounded = (millis: number): number => Math.round(millis * 1000) / 1000

/** These events come to a reader, each once, and nothing comes after them. */
const expect = <E>(
  kit: Kit<E>,
  reader: Reader,
  events: ReadonlyArray<Event>,
  inOrder: boolean
): Effect.Effect<void, Nonconformance> =>
  gather([reader], events).pipe(
    Effect.andThen(kit.quiet),
    Effect.andThen(Effect.suspend(() => {
      const different = difference(reader.deliveries, events, inOrder)
      return different === undefined ? Effect.void : Effect.fail(kit.broken(different))
    }))
  )

/** The ids of each execution's events, in the order in which they came. */
const byExecution = (events: ReadonlyArray<Event>): ReadonlyMap<string, ReadonlyArray<string>> => {
  const keys = new Map<string, Array<string>>()
  for (const { correlation_id, id } of events) {
    const list = keys.get(correlation_id ?? "")
    if (list === undefined) keys.set(correlation_id ?? "", [id])
    else list.push(id)
  }
  return keys
}

const deliver: CaseDefinition = {
  number: 1,
  name: "every event arrives as it was published, and the stream ends when the Layer closes",
  promise: "delivery",
  skipped: always,
  run: Effect.fnUntraced(function*(kit) {
    const author = kit.author()
    const build = yield* kit.open(yield* kit.topic)
    const reader = yield* kit.read(build)
    const id = author.correlationId()
    const events = [
      ...author.events(kit.size(30, 100)),
      author.started(id, torture),
      author.domainEvent(id, torture),
      author.completed(id, torture)
    ]
    const latencies: Array<number> = []
    for (const event of events) {
      const before = kit.clock.monotonicTimeNanosUnsafe()
      yield* kit.publish(build, [event])
      yield* gather([reader], [event])
      latencies.push(Number(kit.clock.monotonicTimeNanosUnsafe() - before) / 1e6)
    }
    // Published one at a time, each after the last one's arrival, so whatever the transport promises of order, this is it.
    yield* expect(kit, reader, events, true)
    for (const { attempt, event, missed, position } of reader.deliveries) {
      yield* kit.check(attempt === 1, () => `the first delivery of ${event.id} says attempt ${attempt}`)
      yield* kit.check(missed === 0, () => `${missed} events are said to be missing before ${event.id}, and none is`)
      yield* kit.check(position !== "", () => `the delivery of ${event.id} has no position`)
    }
    yield* build.close
    yield* reader.ended
    latencies.sort((a, b) => a - b)
    return {
      latency_p50_ms: rounded(percentile(latencies, 0.5)),
      latency_p99_ms: rounded(percentile(latencies, 0.99))
    }
  })
}

const happened = DomainEvent.define("conformance.happened", {})

const units: CaseDefinition = {
  number: 1,
  name: "units tell their story: nested, failing, dying, annotated",
  promise: "delivery",
  skipped: always,
  run: Effect.fnUntraced(function*(kit, promises) {
    const build = yield* kit.open(yield* kit.topic)
    const reader = yield* kit.read(build)
    const inner = instrument((n: number) => Effect.as(happened.publish({}), { n }), { name: "conformance.inner" })
    const failing = instrumentEffect(Effect.fail("no such thing"), { name: "conformance.failing" })
    const dying = instrumentEffect(Effect.die(new Error("out of order")), { name: "conformance.dying" })
    const outer = instrument(
      (n: number) =>
        inner(n).pipe(
          Effect.tap(() => Effect.exit(failing)),
          Effect.tap(() => Effect.exit(dying))
        ),
      { name: "conformance.outer", kind: "query" }
    )
    const count = kit.size(10, 50)
    yield* Effect.forEach(Array.from({ length: count }, (_, n) => n), outer, { concurrency: 5, discard: true }).pipe(
      Execution.annotate({ request_id: "r-1", attempt: 2 }),
      Effect.provideService(EventPublisher.EventPublisher, build.publisher)
    )
    // Four executions with two events each, and what the inner one says.
    const expected = count * 9
    yield* reader.until(
      (deliveries) => deliveries.length >= expected,
      () => `${reader.deliveries.length} of ${expected} events came`
    )
    const all = reader.deliveries.map(({ event }) => event)
    const lifecycle = all.filter(isExecutionEvent)
    const ended = lifecycle.filter(({ event_type }) => event_type !== "execution_started")
    const endings = (unit: string, ending: string): number =>
      ended.filter(({ event_type, unit_name }) => unit_name === unit && event_type === `execution_${ending}`).length
    for (
      const [unit, ending] of [
        ["conformance.outer", "completed"],
        ["conformance.inner", "completed"],
        ["conformance.failing", "failed"],
        ["conformance.dying", "failed"]
      ] as const
    ) {
      yield* kit.check(
        endings(unit, ending) === count,
        () => `${endings(unit, ending)} of ${count} executions of ${unit} are told to have ${ending}`
      )
    }
    const outputs = new Set(
      ended.flatMap((event) =>
        event.event_type === "execution_completed" && event.unit_name === "conformance.outer"
          ? [JSON.stringify(event.output)]
          : []
      )
    )
    yield* kit.check(outputs.size === count, () => `${count} executions have ${outputs.size} outputs`)
    const unmarked = all.find(({ attributes }) => attributes?.["request_id"] !== "r-1" || attributes["attempt"] !== 2)
    yield* kit.check(unmarked === undefined, () => `event ${unmarked?.id} came without its attributes`)
    if (promises.ordered !== "none") {
      const broken = violations(lifecycle, { ignoreSequence: true })
      yield* kit.check(broken.length === 0, () => `the lifecycle is broken: ${broken[0]}`)
    }
    return none
  })
}

/** As large as case 1 gets where a transport sets no limit. */
const largest = 1024 * 1024

const payload: CaseDefinition = {
  number: 1,
  name: "the largest event that is promised arrives, and a larger one is not lost in silence",
  promise: "maxPayloadBytes",
  skipped: always,
  run: Effect.fnUntraced(function*(kit, promises) {
    const author = kit.author()
    const build = yield* kit.open(yield* kit.topic)
    const reader = yield* kit.read(build)
    const sized = (bytes: number): Event => {
      const event = author.started(author.correlationId(), "")
      const rest = bytes - JSON.stringify(event).length
      return isExecutionEvent(event) ? { ...event, event_type: "execution_started", input: "x".repeat(rest) } : event
    }
    const large = sized(Math.min(promises.maxPayloadBytes, largest))
    const small = author.started(author.correlationId(), "small")
    yield* kit.publish(build, [large, small])
    yield* expect(kit, reader, [large, small], promises.ordered === "global")
    if (!Number.isFinite(promises.maxPayloadBytes)) return none

    const before = yield* build.losses
    const tooLarge = sized(promises.maxPayloadBytes * 2)
    const after = author.started(author.correlationId(), "after")
    const refused = yield* Effect.exit(kit.publish(build, [tooLarge]))
    yield* kit.publish(build, [after])
    yield* gather([reader], [after])
    const came = (): boolean => idsOf(reader.deliveries).includes(tooLarge.id)
    if (Exit.isSuccess(refused) && !came() && (yield* build.losses) === before) {
      yield* kit.quiet
      yield* kit.check(
        came() || (yield* build.losses) > before,
        () => `an event of twice ${promises.maxPayloadBytes} bytes was taken, and neither came nor was counted as lost`
      )
    }
    return none
  })
}

const concurrent: CaseDefinition = {
  number: 2,
  name: "many publishers and many subscribers: every event arrives",
  promise: "delivery",
  skipped: always,
  run: Effect.fnUntraced(function*(kit, promises) {
    const count = kit.size(300, 5000)
    const parties = kit.size(5, 50)
    const events = kit.author().events(count)
    const build = yield* kit.open(yield* kit.topic)
    // Those that share a name share the events; the others see all of them.
    const options = { consumer: promises.groups ? "conformance" : undefined, maxInFlight: 64 }
    const readers = yield* Effect.forEach(
      Array.from({ length: parties }),
      () => kit.read(build, options),
      { concurrency: "unbounded" }
    )
    yield* kit.publishBy(build, parties, events)
    yield* promises.groups
      ? gather(readers, events)
      : Effect.forEach(readers, (reader) => gather([reader], events), { concurrency: "unbounded", discard: true })
    const known = new Set(events.map(({ id }) => id))
    const foreign = readers.flatMap(({ deliveries }) => idsOf(deliveries)).find((id) => !known.has(id))
    yield* kit.check(foreign === undefined, () => `event ${foreign} came, and was never published here`)
    yield* Effect.forEach(readers, ({ close }) => close, { concurrency: "unbounded", discard: true })

    // The rate is that of one subscriber: with many the figure would say how many there are.
    const reader = yield* kit.read(build, { maxInFlight: 64 })
    const more = kit.author().events(count)
    const before = kit.clock.monotonicTimeNanosUnsafe()
    yield* kit.publishBy(build, 16, more)
    yield* gather([reader], more)
    const seconds = Number(kit.clock.monotonicTimeNanosUnsafe() - before) / 1e9
    return { events_per_second: Math.round(count / seconds) }
  })
}

const deduplicate: CaseDefinition = {
  number: 2,
  name: "an event that is published again, as after an answer that was lost, arrives once",
  promise: "dedup",
  skipped: unless((promises) => promises.dedup !== "none", "promises no deduplication"),
  run: Effect.fnUntraced(function*(kit, promises) {
    const topic = yield* kit.topic
    const author = kit.author()
    const events = author.events(kit.size(20, 100))
    const last = author.events(2)
    const build = yield* kit.open(topic)
    const reader = yield* kit.read(build)
    yield* kit.publish(build, events)
    yield* kit.publish(build, events)
    yield* kit.publishBy(build, 2, [...events, ...events])
    yield* kit.publish(build, last)
    yield* expect(kit, reader, [...events, ...last], promises.ordered === "global")
    if (promises.dedup !== "forever" || !promises.durable) return none

    yield* build.close
    const again = yield* kit.open(topic)
    const later = yield* kit.read(again)
    const new_ = author.events(2)
    yield* kit.publish(again, [...events, ...new_])
    yield* expect(kit, later, new_, promises.ordered === "global")
    return none
  })
}

const topics: CaseDefinition = {
  number: 3,
  name: "many topics at once, and nothing crosses over",
  promise: "delivery",
  skipped: always,
  run: Effect.fnUntraced(function*(kit, promises) {
    const lanes = yield* Effect.forEach(
      Array.from({ length: kit.size(4, 20) }),
      Effect.fnUntraced(function*() {
        const build = yield* kit.open(yield* kit.topic)
        return { build, reader: yield* kit.read(build), events: kit.author().events(kit.size(25, 100)) }
      }),
      { concurrency: "unbounded" }
    )
    yield* Effect.forEach(lanes, ({ build, events }) => kit.publish(build, events), {
      concurrency: "unbounded",
      discard: true
    })
    yield* Effect.forEach(
      lanes,
      ({ events, reader }) => expect(kit, reader, events, promises.ordered === "global"),
      { concurrency: "unbounded", discard: true }
    )
    return none
  })
}

const inOrder: CaseDefinition = {
  number: 4,
  name: "every subscriber sees the events in the order in which they were published",
  promise: "ordered",
  skipped: unless((promises) => promises.ordered !== "none", "promises no order"),
  run: Effect.fnUntraced(function*(kit, promises) {
    const keys = 16
    const rounds = Math.ceil(kit.size(160, 1000) / keys)
    const author = kit.author()
    const ids = Array.from({ length: keys }, () => author.correlationId())
    const step = (id: string, round: number): Event =>
      round === 0
        ? author.started(id)
        : round === rounds - 1
        ? author.completed(id)
        : author.domainEvent(id, { round })
    const interleaved = Array.from({ length: rounds }, (_, round) => ids.map((id) => step(id, round))).flat()
    const build = yield* kit.open(yield* kit.topic)
    const readers = yield* Effect.forEach(Array.from({ length: kit.size(3, 10) }), () => kit.read(build))
    // As units do it: by one fiber, and so in one order; or by one for each execution.
    yield* promises.ordered === "global"
      ? kit.hand(build, interleaved)
      : kit.publishBy(build, keys, interleaved)
    yield* Effect.forEach(
      readers,
      (reader) => expect(kit, reader, interleaved, promises.ordered === "global"),
      { concurrency: "unbounded", discard: true }
    )
    for (const reader of readers) {
      const came = byExecution(reader.deliveries.map(({ event }) => event))
      for (const [id, expected] of byExecution(interleaved)) {
        const order = came.get(id) ?? []
        const at = expected.findIndex((id, index) => order[index] !== id)
        yield* kit.check(at === -1, () => `of execution ${id}, ${order[at]} came where ${expected[at]} is due`)
      }
    }
    return none
  })
}

const resend: CaseDefinition = {
  number: 5,
  name: "an event that is given back is delivered again, and its attempts are counted",
  promise: "delivery",
  skipped: always,
  run: Effect.fnUntraced(function*(kit, promises) {
    const build = yield* kit.open(yield* kit.topic)
    const events = kit.author().events(kit.size(20, 100))
    const givenBack = new Set<string>()
    const acknowledged = new Set<string>()
    const reader = yield* kit.read(build, { consumer: nameOf(promises) }, (delivery) => {
      const { id } = delivery.event
      if (givenBack.size < 2 && !givenBack.has(id)) {
        givenBack.add(id)
        return delivery.retry()
      }
      acknowledged.add(id)
      return delivery.ack
    })
    yield* kit.publish(build, events)
    yield* reader.until(
      () => acknowledged.size === events.length,
      () => `${acknowledged.size} of ${events.length} events came to be acknowledged`
    )
    for (const { id } of events) {
      const attempts = reader.deliveries.filter(({ event }) => event.id === id).map(({ attempt }) => attempt)
      const expected = givenBack.has(id) ? "1, 2" : "1"
      yield* kit.check(
        attempts.join(", ") === expected,
        () => `the attempts of ${id} are told as ${attempts.join(", ")}, where ${expected} is right`
      )
    }
    return none
  })
}

const noAck: CaseDefinition = {
  number: 6,
  name: "one in flight: nothing follows an event before it is acknowledged",
  promise: "ordered",
  skipped: unless((promises) => promises.ordered !== "none", "promises no order"),
  run: Effect.fnUntraced(function*(kit) {
    const build = yield* kit.open(yield* kit.topic)
    const witness = yield* kit.read(build)
    // Asks for the next one right away, whatever became of the last.
    const reader = yield* kit.read(build, { maxInFlight: 1 }, () => Effect.void)
    const author = kit.author()
    const id = author.correlationId()
    // Of one execution, as some keep no other order.
    const events = [
      author.started(id, {}),
      author.domainEvent(id, {}),
      author.domainEvent(id, {}),
      author.completed(id, {})
    ]
    yield* kit.publish(build, events)
    yield* gather([witness], events)
    for (let index = 0; index < events.length; index++) {
      yield* gather([reader], events.slice(0, index + 1))
      yield* kit.quiet
      const delivery = reader.deliveries[index]
      if (reader.deliveries.length !== index + 1 || delivery === undefined) {
        return yield* kit.broken(`${reader.deliveries.length} events came while ${index} were acknowledged`)
      }
      yield* acknowledge(kit, delivery)
    }
    return none
  })
}

const acknowledge = <E>(
  kit: Kit<E>,
  delivery: EventSubscriber.Delivery
): Effect.Effect<void, Nonconformance> =>
  Effect.mapError(
    kit.within(delivery.ack, "acknowledging"),
    (error) => error instanceof EventSubscriber.SubscribeError ? kit.broken(error.message, error) : error
  )

const continueAfterClose: CaseDefinition = {
  number: 7,
  name: "a named consumer goes on where it stopped, whatever is closed in between",
  promise: "durable",
  skipped: durable,
  run: Effect.fnUntraced(function*(kit) {
    const topic = yield* kit.topic
    const author = kit.author()
    const options = { consumer: "conformance", maxInFlight: 8 }
    const seen = new Set<string>()
    const acknowledged = new Set<string>()
    const all: Array<Event> = []

    /** Reads on in a build of its own, acknowledges so many events, leaves the next ones unacknowledged, and closes everything. */
    const readOn = (publishing: ReadonlyArray<Event>, wanted: number) =>
      Effect.scoped(Effect.gen(function*() {
        const build = yield* kit.open(topic)
        const before = new Set(acknowledged)
        let begun = 0
        let count = 0
        let left = 0
        const reader = yield* kit.read(build, options, (delivery) => {
          const { id } = delivery.event
          seen.add(id)
          if (before.has(id)) return Effect.fail(kit.broken(`event ${id} came again after it was acknowledged`))
          if (begun >= wanted) return Effect.sync(() => void left++)
          begun++
          return Effect.tap(delivery.ack, () =>
            Effect.sync(() => {
              count++
              acknowledged.add(id)
            }))
        })
        yield* kit.publishBy(build, 16, publishing)
        yield* reader.until(
          () => count >= wanted && (left > 0 || acknowledged.size === all.length),
          () => `${count} of ${wanted} events came to a consumer that goes on, and ${left} more`
        )
        yield* reader.close
        yield* build.close
      }))

    const batch = kit.size(200, 5000) / 5
    yield* readOn([], 0)
    for (let index = 0; index < 5; index++) {
      const events = author.events(batch)
      all.push(...events)
      yield* readOn(events, Math.floor(batch / 2))
    }
    for (let reopened = 0; acknowledged.size < all.length && reopened < 20; reopened++) {
      const left = all.length - acknowledged.size
      yield* readOn([], Math.min(left, Math.max(10, Math.floor(left / 4))))
    }
    yield* readOn([], all.length - acknowledged.size)
    const missing = all.filter(({ id }) => !seen.has(id))
    yield* kit.check(missing.length === 0, () => `${missing.length} of ${all.length} events were lost`)
    return none
  })
}

const concurrentClose: CaseDefinition = {
  number: 8,
  name: "subscriptions that open and close at once leave no trace",
  promise: "delivery",
  skipped: always,
  run: Effect.fnUntraced(function*(kit, promises) {
    const topic = yield* kit.topic
    const build = yield* kit.open(topic)
    const steady = yield* kit.read(build)
    const opening = Array.from({ length: 10 })
    yield* Effect.forEach(opening, () => Effect.scoped(Effect.flatMap(kit.read(build), ({ close }) => close)), {
      concurrency: "unbounded",
      discard: true
    })
    if (promises.durable) {
      // Whole builds on one storage, too.
      yield* Effect.forEach(
        opening.slice(0, kit.size(4, 10)),
        () =>
          Effect.scoped(Effect.gen(function*() {
            const other = yield* kit.open(topic)
            yield* kit.read(other)
            yield* other.close
          })),
        { concurrency: "unbounded", discard: true }
      )
    }
    const reader = yield* kit.read(build)
    const events = kit.author().events(50)
    yield* kit.publish(build, events)
    yield* expect(kit, reader, events, promises.ordered === "global")
    yield* expect(kit, steady, events, promises.ordered === "global")
    return none
  })
}

const continueAfterErrors: CaseDefinition = {
  number: 9,
  name: "subscribers that give everything back leave it to the next one",
  promise: "durable",
  skipped: durable,
  run: Effect.fnUntraced(function*(kit) {
    const build = yield* kit.open(yield* kit.topic)
    const events = kit.author().events(50)
    // So often that other settings would have them wait for minutes, or park them.
    const options = {
      consumer: "conformance",
      backoff: { base: "1 millis", factor: 1 },
      maxAttempts: Infinity
    } satisfies EventSubscriber.Options
    const first = yield* kit.read(build, options)
    yield* first.close
    yield* kit.publish(build, events)
    for (let index = 0; index < 3; index++) {
      const errors = kit.size(20, 100)
      const bad = yield* kit.read(build, options, ({ retry }) => retry())
      yield* bad.until(
        ({ length }) => length >= errors,
        () => `${bad.deliveries.length} of ${errors} deliveries came to one that gives them all back`
      )
      yield* bad.close
    }
    const good = yield* kit.read(build, options)
    yield* expectAll(kit, good, events)
    return none
  })
}

/** All of them, however often. */
const expectAll = <E>(
  kit: Kit<E>,
  reader: Reader,
  events: ReadonlyArray<Event>
): Effect.Effect<void, Nonconformance> =>
  Effect.andThen(
    gather([reader], events),
    Effect.suspend(() => {
      const known = new Set(events.map(({ id }) => id))
      const foreign = idsOf(reader.deliveries).find((id) => !known.has(id))
      return kit.check(foreign === undefined, () => `event ${foreign} came and was not expected`)
    })
  )

const consumerGroups: CaseDefinition = {
  number: 10,
  name: "every group gets every event, and of a group one member each",
  promise: "groups",
  skipped: unless((promises) => promises.groups, "promises no groups"),
  run: Effect.fnUntraced(function*(kit) {
    const build = yield* kit.open(yield* kit.topic)
    const events = kit.author().events(50)
    const members = (consumer: string) => Effect.forEach([0, 1], () => kit.read(build, { consumer, maxInFlight: 4 }))
    const groups = [yield* members("first"), yield* members("second")]
    yield* kit.publish(build, events)
    for (const group of groups) yield* gather(group, events)
    yield* kit.quiet
    for (const group of groups) {
      const came = group.flatMap(({ deliveries }) => idsOf(deliveries))
      const twice = came.find((id, index) => came.indexOf(id) !== index)
      yield* kit.check(twice === undefined, () => `event ${twice} went to two members of one group`)
    }
    return none
  })
}

const publisherClose: CaseDefinition = {
  number: 11,
  name: "what was accepted is delivered, though the scope closes right after",
  promise: "delivery",
  skipped: always,
  run: Effect.fnUntraced(function*(kit, promises) {
    const topic = yield* kit.topic
    const consumer = nameOf(promises)
    const events = kit.author().events(kit.size(500, 10_000))
    const publishers = 20
    const build = yield* kit.open(topic)
    const reader = yield* kit.read(build, { consumer, maxInFlight: 64 })
    // A durable transport has to hold them on its own.
    if (promises.durable) yield* reader.close
    yield* Effect.forEach(
      Array.from({ length: publishers }, (_, index) => events.filter((_, at) => at % publishers === index)),
      (share) => kit.hand(build, share),
      { concurrency: "unbounded", discard: true }
    )
    // What is lost from here on was accepted.
    const accepted = events.length - (yield* build.losses)
    yield* build.close
    const came = (deliveries: Reader["deliveries"]): number => {
      const ids = new Set(idsOf(deliveries))
      return events.filter(({ id }) => ids.has(id)).length
    }
    if (promises.durable) {
      const again = yield* kit.open(topic)
      const later = yield* kit.read(again, { consumer, maxInFlight: 64 })
      yield* later.until(
        (deliveries) => deliveries.length >= accepted && came(deliveries) >= accepted,
        () => `${came(later.deliveries)} of ${accepted} accepted events came`
      )
    } else {
      yield* reader.ended
      yield* kit.check(
        came(reader.deliveries) >= accepted,
        () => `${came(reader.deliveries)} of ${accepted} accepted events came`
      )
    }
    return none
  })
}

const filters: CaseDefinition = {
  number: 12,
  name: "a subscriber gets what it asks for by type, domain and unit, and nothing of another topic",
  promise: "delivery",
  skipped: always,
  run: Effect.fnUntraced(function*(kit, promises) {
    const [build, elsewhere] = [yield* kit.open(yield* kit.topic), yield* kit.open(yield* kit.topic)]
    const authors = ["billing.charge", "billing.refund", "billing_archive.charge", "model.pull"].map(kit.author)
    const events = Array.from({ length: kit.size(5, 20) }, () =>
      authors.flatMap((author) => {
        const id = author.correlationId()
        return [
          author.started(id),
          author.domainEvent(id, {}, "progress"),
          author.domainEvent(id, {}, "progress_ended"),
          author.completed(id)
        ]
      })).flat()
    const wanted: ReadonlyArray<EventSubscriber.Options> = [
      {},
      { types: ["execution_completed"] },
      { types: ["billing.progress"] },
      { types: ["execution_started", "model.progress"] },
      { domains: ["billing"] },
      { domains: ["model", "billing_archive"] },
      { units: ["billing.charge"] },
      { types: ["execution_started"], domains: ["billing"], units: ["billing.charge", "model.pull"] }
    ]
    const foreign = yield* kit.read(elsewhere)
    const readers = yield* Effect.forEach(wanted, (options) => kit.read(build, options))
    yield* kit.publish(build, events)
    yield* kit.publish(elsewhere, events.slice(0, 1))
    yield* gather([foreign], events.slice(0, 1))
    yield* Effect.forEach(readers, (reader, index) => {
      const options = wanted[index] ?? {}
      return expect(kit, reader, events.filter(EventSubscriber.wants(options)), promises.ordered === "global").pipe(
        Effect.mapError((error) => kit.broken(`of ${JSON.stringify(options)}, ${error.detail}`, error.cause))
      )
    }, { concurrency: "unbounded", discard: true })
    yield* kit.check(
      foreign.deliveries.length === 1,
      () => `${foreign.deliveries.length - 1} events of another topic came`
    )
    return none
  })
}

const interruption: CaseDefinition = {
  number: 13,
  name: "interrupting a consumer ends its handler and its subscription, and the next one gets the rest",
  promise: "delivery",
  skipped: always,
  run: Effect.fnUntraced(function*(kit, promises) {
    const build = yield* kit.open(yield* kit.topic)
    const consumer = nameOf(promises)
    const author = kit.author()
    const events = author.events(6)
    const witness = yield* kit.read(build)
    const subscribed = yield* Deferred.make<void>()
    const handling = yield* Deferred.make<void>()
    const released = yield* Deferred.make<void>()
    const consuming = yield* EventSubscriber.consume(
      { consumer },
      () =>
        Effect.andThen(Deferred.succeed(handling, undefined), Effect.never).pipe(
          Effect.ensuring(Deferred.succeed(released, undefined))
        )
    ).pipe(
      Effect.provideService(EventSubscriber.EventSubscriber, {
        subscribe: (options) =>
          Effect.tap(build.subscriber.subscribe(options), () => Deferred.succeed(subscribed, undefined))
      }),
      Effect.forkScoped
    )
    yield* kit.within(Deferred.await(subscribed), "subscribing")
    yield* kit.publish(build, events)
    yield* kit.within(Deferred.await(handling), "delivering the first event")
    yield* kit.within(Fiber.interrupt(consuming), "interrupting a consumer")
    yield* kit.check(
      Deferred.isDoneUnsafe(released),
      () => "the consumer was interrupted, and its handler went on"
    )
    // None of them is under way any more.
    yield* gather([witness], events)
    const next = yield* kit.read(build, { consumer })
    const more = author.events(4)
    yield* kit.publish(build, more)
    yield* expect(kit, next, promises.durable ? [...events, ...more] : more, promises.ordered === "global")
    return none
  })
}

const reconnect: CaseDefinition = {
  number: 14,
  name: "the server restarts twice under load, and nothing is lost",
  promise: "restart",
  // Without a place that is kept, a subscriber misses what is published until it has subscribed again.
  skipped: (promises) => promises.restart === undefined ? "there is no server to restart" : durable(promises),
  // Publishing and receiving may each take as long as another case.
  patience: 3,
  run: Effect.fnUntraced(function*(kit, promises) {
    const { restart = Effect.void } = promises
    const events = kit.author().events(kit.size(1000, 10_000))
    const publishers = kit.size(10, 100)
    const build = yield* kit.open(yield* kit.topic)
    const came = new Map<string, number>()
    const all = yield* Deferred.make<void>()
    const due = new Set(events.map(({ id }) => id))
    // What was in flight cannot be given back while the server is down, and comes again when its time is over.
    const options = { consumer: nameOf(promises), maxInFlight: 64, ackTimeout: kit.bound }
    yield* EventSubscriber.consume(options, ({ id }) =>
      Effect.sync(() => {
        came.set(id, (came.get(id) ?? 0) + 1)
        due.delete(id)
        if (due.size === 0) Deferred.doneUnsafe(all, Exit.void)
      })).pipe(
        Effect.provideService(EventSubscriber.EventSubscriber, build.subscriber),
        // A subscription that breaks says whether another one helps.
        Effect.retry({ while: ({ retryable }) => retryable, schedule: Schedule.spaced("50 millis") }),
        Effect.forkScoped
      )
    const restarted = yield* Deferred.make<void>()
    const restartedAgain = yield* Deferred.make<void>()
    let published = 0
    const publish = (event: Event): Effect.Effect<void, Nonconformance> =>
      build.publisher.publish(event).pipe(
        Effect.retry({ while: ({ retryable }) => retryable, schedule: Schedule.spaced("50 millis") }),
        Effect.mapError((error) => kit.broken(error.message, error)),
        Effect.map(() => {
          published++
          if (published > events.length / 3) Deferred.doneUnsafe(restarted, Exit.void)
          if (published > events.length / 2) Deferred.doneUnsafe(restartedAgain, Exit.void)
        })
      )
    const restarting = Effect.forEach(
      [restarted, restartedAgain],
      (due) => Effect.andThen(Deferred.await(due), restart),
      { discard: true }
    ).pipe(Effect.mapError((error) => kit.broken("the server could not be restarted", error)))
    const publishing = Effect.forEach(
      Array.from({ length: publishers }, (_, index) => events.filter((_, at) => at % publishers === index)),
      (share) => Effect.forEach(share, publish, { discard: true }),
      { concurrency: "unbounded", discard: true }
    )
    const bound = Duration.times(kit.bound, 6)
    yield* kit.within(
      Effect.all([publishing, restarting], { concurrency: "unbounded" }),
      "publishing while the server restarts",
      bound
    )
    yield* kit.within(Deferred.await(all), "receiving everything after a restart", bound).pipe(
      Effect.mapError((error) => kit.broken(`${error.detail}: ${due.size} of ${events.length} events did not come`))
    )
    return { duplicates: Array.from(came.values()).reduce((sum, times) => sum + times - 1, 0) }
  })
}

const lateSubscribers: CaseDefinition = {
  number: 15,
  name: "a subscriber that comes late sees all that was published before",
  promise: "newSubscriberSeesOld",
  skipped: unless((promises) => promises.newSubscriberSeesOld, "keeps nothing for new subscribers"),
  run: Effect.fnUntraced(function*(kit, promises) {
    const build = yield* kit.open(yield* kit.topic)
    const author = kit.author()
    const events = author.events(kit.size(60, 300))
    const part = events.length / 3
    const readers: Array<Reader> = []
    for (let index = 0; index < 3; index++) {
      yield* kit.publish(build, events.slice(index * part, (index + 1) * part))
      readers.push(yield* kit.read(build, { from: "beginning" }))
    }
    yield* Effect.forEach(readers, (reader) => expect(kit, reader, events, promises.ordered === "global"), {
      concurrency: "unbounded",
      discard: true
    })
    return none
  })
}

const replay: CaseDefinition = {
  number: 15,
  name: "a subscriber begins right after a position, or after a time",
  promise: "replay",
  skipped: unless((promises) => promises.replay, "promises no replay"),
  run: Effect.fnUntraced(function*(kit, promises) {
    const build = yield* kit.open(yield* kit.topic)
    const author = kit.author()
    const ordered = promises.ordered === "global"
    const witness = yield* kit.read(build)
    const old = author.events(20)
    yield* kit.publish(build, old)
    yield* gather([witness], old)
    // A time between the two parts, whether the transport goes by its own clock or by the timestamps of the events.
    yield* kit.quiet
    const time = kit.clock.currentTimeMillisUnsafe()
    yield* kit.quiet
    const recent = author.events(20)
    yield* kit.publish(build, recent)
    yield* gather([witness], recent)

    const all = [...old, ...recent]
    const arrival = [...witness.deliveries]
    for (const at of [0, 7, 19, 30]) {
      const rest = arrival.slice(at + 1).map(({ event }) => event)
      const reader = yield* kit.read(build, { from: { position: arrival[at]?.position ?? "" } })
      yield* expect(kit, reader, rest, ordered)
    }
    const reader = yield* kit.read(build, { from: { time } })
    yield* expect(kit, reader, recent, ordered)
    const whole = yield* kit.read(build, { from: { time: 0 } })
    yield* expect(kit, whole, all, ordered)
    return none
  })
}

const races: CaseDefinition = {
  number: 16,
  name: "subscribers do not hold each other up, come and go while events are published, and end with their Layer",
  promise: "delivery",
  skipped: always,
  run: Effect.fnUntraced(function*(kit, promises) {
    const build = yield* kit.open(yield* kit.topic)
    const author = kit.author()
    const stuck = yield* kit.read(build, { maxInFlight: 1 }, () => Effect.never)
    const steady = yield* kit.read(build, { maxInFlight: 16 })
    const events = author.events(kit.size(200, 1000))
    const parts = Array.from({ length: 10 }, (_, index) => events.filter((_, at) => at % 10 === index))
    yield* Effect.forEach(
      parts,
      (part) =>
        Effect.all([
          kit.publish(build, part),
          Effect.scoped(Effect.flatMap(kit.read(build), ({ close }) => close)),
          // Closed by interruption, while it opens.
          Effect.raceFirst(Effect.scoped(Effect.ignore(kit.read(build))), Effect.yieldNow)
        ], { concurrency: "unbounded", discard: true }),
      { concurrency: "unbounded", discard: true }
    )
    yield* expect(kit, steady, events, false)
    yield* stuck.until((all) => all.length > 0, () => "no event came to a subscriber that acknowledges none")
    yield* kit.check(
      stuck.deliveries.length === 1,
      () => `${stuck.deliveries.length} events came to a subscriber that acknowledges none`
    )

    const hold = yield* Deferred.make<void>()
    const holding = yield* Deferred.make<void>()
    const slow = yield* kit.read(build, { maxInFlight: 4 }, (delivery) =>
      Deferred.succeed(holding, undefined).pipe(
        Effect.andThen(Deferred.await(hold)),
        Effect.andThen(promises.durable ? Effect.ignore(delivery.ack) : delivery.ack)
      ))
    const buffered = author.events(20)
    yield* kit.publish(build, buffered)
    yield* kit.within(Deferred.await(holding), "delivering the first event")
    yield* build.close
    yield* Deferred.succeed(hold, undefined)
    yield* slow.ended
    // Where a transport keeps them, they are there for the next subscriber; elsewhere this one has them.
    if (!promises.durable) yield* expect(kit, slow, buffered, promises.ordered === "global")
    return none
  })
}

const atOnce = Duration.seconds(1)

const closing: CaseDefinition = {
  number: 17,
  name:
    "closing takes less than a second: with nobody reading, with an event unacknowledged, twice, and used afterwards",
  promise: "delivery",
  skipped: always,
  run: Effect.fnUntraced(function*(kit) {
    const author = kit.author()
    const bound = Duration.times(atOnce, kit.patience)
    const idle = yield* kit.open(yield* kit.topic)
    const unread = yield* Scope.make()
    yield* Effect.mapError(
      Scope.provide(Effect.asVoid(idle.subscriber.subscribe({})), unread),
      (error) => kit.broken(error.message, error)
    )
    yield* kit.publish(idle, author.events(10))
    yield* kit.within(idle.close, "closing the Layer while nobody reads", bound)
    yield* kit.within(Scope.close(unread, Exit.void), "closing a subscription that nobody read", bound)

    const build = yield* kit.open(yield* kit.topic)
    const reader = yield* kit.read(build, { maxInFlight: 1 }, () => Effect.void)
    const blocked = yield* kit.read(build, { maxInFlight: 1 }, () => Effect.never)
    // Stays open while the Layer closes.
    const left = yield* kit.read(build, { maxInFlight: 1 }, () => Effect.never)
    const events = author.events(10)
    yield* kit.publish(build, events)
    for (const each of [reader, blocked, left]) yield* gather([each], events.slice(0, 1))
    yield* kit.within(blocked.close, "closing a subscription whose handler is blocked", bound)
    yield* kit.within(reader.close, "closing a subscription with an event unacknowledged", bound)
    yield* kit.within(Effect.all([build.close, build.close], { concurrency: 2 }), "closing the Layer twice", bound)
    yield* kit.within(build.close, "closing the Layer once more", bound)

    const late = reader.deliveries[0]
    if (late !== undefined) {
      yield* kit.within(Effect.exit(late.ack), "acknowledging after the end", bound)
      yield* kit.within(Effect.exit(late.retry()), "giving back after the end", bound)
    }
    const before = yield* build.losses
    const afterwards = yield* kit.within(
      Effect.exit(build.publisher.publish(author.domainEvent(author.correlationId(), {}))),
      "publishing after the end",
      bound
    )
    yield* kit.check(
      Exit.isFailure(afterwards) || (yield* build.losses) > before,
      () => "a publisher took an event after its scope was closed, and counted no loss"
    )
    yield* Effect.sync(() => build.publisher.offer(author.started(author.correlationId())))
    return none
  })
}

const transactions: CaseDefinition = {
  number: 19,
  name: "what a unit tells commits with it or not at all, and one failed event says that it did not",
  promise: "transactional",
  skipped: unless((promises) => promises.transactional, "promises no transactions"),
  run: Effect.fnUntraced(function*(kit) {
    const build = yield* kit.open(yield* kit.topic)
    const reader = yield* kit.read(build)
    const { policy, transaction } = build.publisher
    yield* kit.check(
      policy === "transactional" && transaction !== undefined,
      () => `the policy of the publisher is "${policy}"; give its Layer the transactional one`
    )
    const inner = instrument((n: number) => Effect.as(happened.publish({}), n), { name: "conformance.inner" })
    const committed = instrument((n: number) => inner(n), { name: "conformance.committed" })
    const rolledBack = instrument((n: number) => Effect.andThen(inner(n), Effect.fail("changed my mind")), {
      name: "conformance.rolled_back"
    })
    const last = instrument((n: number) => Effect.succeed(n), { name: "conformance.last" })
    const run = <A, E>(effect: Effect.Effect<A, E, EventPublisher.EventPublisher>) =>
      Effect.exit(Effect.provideService(effect, EventPublisher.EventPublisher, build.publisher))
    yield* run(rolledBack(1))
    yield* run(committed(2))
    yield* run(last(3))
    const told = (unit: string, ending: string): number =>
      reader.deliveries.filter(({ event }) =>
        isExecutionEvent(event) && event.unit_name === unit && event.event_type === `execution_${ending}`
      ).length
    yield* reader.until(
      () => told("conformance.last", "completed") > 0,
      () => "the last unit's completed event did not come"
    )
    // Where executions overtake each other, the last one to end need not come last.
    yield* Effect.ignore(reader.until(
      () => told("conformance.rolled_back", "failed") > 0 && told("conformance.committed", "completed") > 0,
      () => "an end did not come"
    ))
    yield* kit.quiet
    for (
      const [unit, ending, times] of [
        ["conformance.rolled_back", "started", 1],
        ["conformance.rolled_back", "completed", 0],
        ["conformance.rolled_back", "failed", 1],
        ["conformance.committed", "started", 1],
        ["conformance.committed", "completed", 1],
        ["conformance.committed", "failed", 0],
        // One in the unit that committed, none in the one that did not.
        ["conformance.inner", "completed", 1],
        ["conformance.inner", "failed", 0]
      ] as const
    ) {
      yield* kit.check(
        told(unit, ending) === times,
        () => `${told(unit, ending)} ${ending} events of ${unit} are told, where ${times} are right`
      )
    }
    const said = reader.deliveries.filter(({ event }) => !isExecutionEvent(event)).length
    yield* kit.check(said === 1, () => `${said} domain events are told, where 1 is right`)
    return none
  })
}

/** @internal */
export const definitions: ReadonlyArray<CaseDefinition> = [
  deliver,
  units,
  payload,
  concurrent,
  deduplicate,
  topics,
  inOrder,
  resend,
  noAck,
  continueAfterClose,
  concurrentClose,
  continueAfterErrors,
  consumerGroups,
  publisherClose,
  filters,
  interruption,
  reconnect,
  lateSubscribers,
  replay,
  races,
  closing,
  transactions
]
