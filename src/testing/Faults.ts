/**
 * Faults in the transport behind a publisher, by a script or by chance that a seed repeats: to see what an application, a subscriber or
 * a publisher makes of them.
 *
 * @since 0.1.0
 */
import * as Context from "effect/Context"
import type * as Duration from "effect/Duration"
import * as Effect from "effect/Effect"
import { dual } from "effect/Function"
import * as Layer from "effect/Layer"
import * as Random from "effect/Random"
import type * as Scope from "effect/Scope"
import * as EventPublisher from "../EventPublisher.ts"

/**
 * What goes wrong with one event.
 *
 * **Details**
 *
 * - `fail`: the transport does not have it, and says so.
 * - `die`: the same as a defect.
 * - `hang`: the transport does not have it, and never answers.
 * - `delay`: it is published after a time.
 * - `drop`: the transport does not have it, and says that it has.
 * - `duplicate`: it is published twice.
 * - `reorder`: it is published after the next event, or at the end of the scope.
 * - `crash`: it is published, and fails all the same: what a connection that breaks before the answer looks like.
 *
 * @category models
 * @since 0.1.0
 */
export type Fault = "fail" | "die" | "hang" | "drop" | "duplicate" | "reorder" | "crash" | {
  readonly delay: Duration.Input
}

/**
 * Chooses the fault for an event, `undefined` for none. `index` counts what is published from 0, each attempt by itself.
 *
 * @category models
 * @since 0.1.0
 */
export type Schedule = (event: EventPublisher.Event, index: number) => Fault | undefined

/**
 * How often faults come: the share of events, from 0 to 1, for each.
 *
 * @category models
 * @since 0.1.0
 */
export type Rates = ReadonlyArray<readonly [rate: number, fault: Fault]>

/**
 * The faults of a list, one after the other, and then none.
 *
 * @category schedules
 * @since 0.1.0
 */
export const scripted = (faults: ReadonlyArray<Fault | undefined>): Schedule => (_event, index) => faults[index]

/** The 32-bit finaliser of MurmurHash3 (Austin Appleby), over a Weyl sequence, as a number from 0 up to 1. */
const uniform = (seed: number, index: number): number => {
  let z = (seed + Math.imul(index + 1, 0x9e3779b9)) | 0
  z = Math.imul(z ^ (z >>> 16), 0x85ebca6b)
  z = Math.imul(z ^ (z >>> 13), 0xc2b2ae35)
  return ((z ^ (z >>> 16)) >>> 0) / 0x1_0000_0000
}

/**
 * Faults by chance, the same ones for the same seed.
 *
 * **Example** (One event in ten fails, one in twenty comes twice)
 *
 * ```ts
 * const schedule = Faults.seeded(42, [[0.1, "fail"], [0.05, "duplicate"]])
 * ```
 *
 * @category schedules
 * @since 0.1.0
 */
export const seeded = (seed: number, rates: Rates): Schedule => (_event, index) => {
  let left = uniform(seed, index)
  for (const [rate, fault] of rates) {
    if (left < rate) return fault
    left -= rate
  }
  return undefined
}

/**
 * Faults by chance, by a seed that is drawn from `Random` and logged, so that `seeded` can repeat them.
 *
 * @category schedules
 * @since 0.1.0
 */
export const random = (rates: Rates): Effect.Effect<Schedule> =>
  Effect.gen(function*() {
    const seed = yield* Random.nextIntBetween(0, 0x7fffffff)
    yield* Effect.logInfo(`Faults come by seed ${seed}`)
    return seeded(seed, rates)
  })

/**
 * Settings of `inject`: the schedule, and those of `EventPublisher.make` that say how long the faulty transport may take.
 *
 * @category models
 * @since 0.1.0
 */
export interface Options extends Pick<EventPublisher.Options, "capacity" | "timeout" | "flushTimeout"> {
  readonly schedule: Schedule | Effect.Effect<Schedule>
}

/**
 * Puts a faulty transport between units and a publisher.
 *
 * **Details**
 *
 * The policy, the limits and the `terminalTimeout` stay those of the publisher, and what its policy says of a transport that fails holds.
 * Under the `transactional` policy a fault hits the commit: `fail`, `die` and `hang` before it, `crash` after it; `drop` commits without
 * the completed event; `duplicate` and `reorder` do nothing there.
 *
 * **Example** (Every event arrives twice)
 *
 * ```ts
 * const layer = EventPublisher.layerBus.pipe(Faults.inject({ schedule: () => "duplicate" }))
 * ```
 *
 * @category layers
 * @since 0.1.0
 */
export const inject: {
  (options: Options): <A, E, R>(
    self: Layer.Layer<A | EventPublisher.EventPublisher, E, R>
  ) => Layer.Layer<A | EventPublisher.EventPublisher, E, R>
  <A, E, R>(
    self: Layer.Layer<A | EventPublisher.EventPublisher, E, R>,
    options: Options
  ): Layer.Layer<A | EventPublisher.EventPublisher, E, R>
} = dual(
  2,
  <A, E, R>(
    self: Layer.Layer<A | EventPublisher.EventPublisher, E, R>,
    options: Options
  ): Layer.Layer<A | EventPublisher.EventPublisher, E, R> =>
    Layer.effectContext(Effect.gen(function*() {
      const context = yield* Layer.build(self)
      // Safe: the type of the layer says that it gives one, only not in a form from which the compiler can take it out again.
      const publisher = Context.get(
        context as Context.Context<EventPublisher.EventPublisher>,
        EventPublisher.EventPublisher
      )
      return publisher.isNoop
        ? context
        : Context.add(context, EventPublisher.EventPublisher, yield* make(publisher, options))
    }))
)

const make = Effect.fnUntraced(function*(
  publisher: EventPublisher.Publisher,
  options: Options
): Effect.fn.Return<EventPublisher.Publisher, never, Scope.Scope> {
  const schedule = Effect.isEffect(options.schedule) ? yield* options.schedule : options.schedule
  let index = 0
  let held: ReadonlyArray<EventPublisher.Event> = []

  const failure = (event: EventPublisher.Event): EventPublisher.PublishError =>
    new EventPublisher.PublishError({
      event_id: event.id,
      reason: new EventPublisher.Unavailable({ detail: "a fault was injected" })
    })
  const defect = Effect.die(new Error("A fault was injected"))
  const never = Effect.interruptible(Effect.never)

  const releaseHeld = Effect.suspend(() => {
    const events = held
    held = []
    // Each by itself, and the event that they follow is published all the same. The publisher reports what fails.
    return Effect.forEach(events, (event) => Effect.ignore(publisher.publish(event)), { discard: true })
  })
  const pass = (event: EventPublisher.Event): Effect.Effect<void, EventPublisher.PublishError> =>
    Effect.andThen(publisher.publish(event), releaseHeld)

  const publish = (
    event: EventPublisher.Event,
    fault: Fault | undefined
  ): Effect.Effect<void, EventPublisher.PublishError> => {
    switch (fault) {
      case undefined:
        return pass(event)
      case "fail":
        return Effect.fail(failure(event))
      case "die":
        return defect
      case "hang":
        return never
      case "drop":
        return Effect.void
      case "duplicate":
        return Effect.andThen(publisher.publish(event), pass(event))
      case "reorder":
        return Effect.sync(() => {
          held = [...held, event]
        })
      case "crash":
        return Effect.andThen(pass(event), Effect.fail(failure(event)))
      default:
        return Effect.delay(Effect.suspend(() => pass(event)), fault.delay)
    }
  }

  /** What comes between the work of a transaction and its commit. */
  const beforeCommit = (event: EventPublisher.Event, fault: Fault | undefined): Effect.Effect<void> => {
    if (fault === "fail") return Effect.die(failure(event))
    if (fault === "die") return defect
    if (fault === "hang") return never
    return typeof fault === "object" ? Effect.sleep(fault.delay) : Effect.void
  }

  const { transaction } = publisher
  const run: EventPublisher.Transaction["run"] | undefined = transaction && ((work, completed) =>
    Effect.suspend(() => {
      let event: ReturnType<typeof completed>
      let fault: Fault | undefined
      const inside = Effect.tap(work, (value) => {
        event = completed(value)
        if (event === undefined) return Effect.void
        fault = schedule(event, index++)
        return beforeCommit(event, fault)
      })
      return Effect.tap(
        transaction.run(inside, () => fault === "drop" ? undefined : event),
        () => fault === "crash" && event !== undefined ? Effect.die(failure(event)) : Effect.void
      )
    }))

  // Below that of `make`, so it runs after what was accepted has been published.
  yield* Effect.addFinalizer(() => releaseHeld)
  return yield* EventPublisher.make({
    publish: (event) => publish(event, schedule(event, index++)),
    policy: publisher.policy,
    transaction: run && { run },
    capacity: options.capacity,
    timeout: options.timeout,
    flushTimeout: options.flushTimeout,
    terminalTimeout: publisher.terminalTimeout,
    maxFieldBytes: publisher.limits.maxFieldBytes
  })
})
