/**
 * A publisher into the event store of the context, whatever database that is on. `publishers/Sqlite` and `publishers/Postgres` have Layers
 * that bring the store along, and say what it guarantees.
 *
 * @since 0.1.0
 */
import * as Clock from "effect/Clock"
import * as Context from "effect/Context"
import * as Deferred from "effect/Deferred"
import * as Duration from "effect/Duration"
import * as Effect from "effect/Effect"
import * as Exit from "effect/Exit"
import * as Fiber from "effect/Fiber"
import * as Layer from "effect/Layer"
import * as Metric from "effect/Metric"
import * as Option from "effect/Option"
import type * as Scope from "effect/Scope"
import * as EventPublisher from "../EventPublisher.ts"
import * as EventStore from "../EventStore.ts"
import * as ExecutionEvent from "../ExecutionEvent.ts"
import * as Metrics from "../internal/metrics.ts"
import { Ring } from "../internal/ring.ts"

/**
 * Settings of the publisher, apart from the store's.
 *
 * @category models
 * @since 0.1.0
 */
export interface Options {
  /** Default `open`. */
  readonly policy?: EventPublisher.Policy | undefined
  /** Names the publisher in the events that it numbers. Default: a new UUID. */
  readonly source?: string | undefined
  /**
   * Whether this process runs the executions that are published, so that they are closed as abandoned should it die. Default `true`; a
   * relay of events of other processes sets it to `false`.
   */
  readonly owned?: boolean | undefined
  /** How many events may wait to be stored; more are refused and counted. Default 16,384. */
  readonly capacity?: number | undefined
  /** How many events one transaction stores at most. Default 500. */
  readonly batch?: number | undefined
  /**
   * How long the first event of a batch waits for others, under the `open` policy, in real time: default 5 ms. A transaction costs
   * much the same for one event as for many.
   */
  readonly linger?: Duration.Input | undefined
  /** How long closing the scope waits for what was accepted. Default 10 seconds. */
  readonly flushTimeout?: Duration.Input | undefined
  /** How long the end of an execution waits under the policies `closed` and `transactional`. Default 5 seconds. */
  readonly terminalTimeout?: Duration.Input | undefined
  /** Longest string or blob in an event, in bytes. Default 64 KiB. */
  readonly maxFieldBytes?: number | undefined
}

const defaultCapacity = 16_384

const publishError = (event: { readonly id: string }, error: EventStore.EventStoreError): EventPublisher.PublishError =>
  new EventPublisher.PublishError({
    event_id: event.id,
    reason: error.retryable
      ? new EventPublisher.Unavailable({ detail: error.message, cause: error })
      : new EventPublisher.Rejected({ detail: error.message, cause: error })
  })

const endedByOthers = (event_id: string): EventPublisher.PublishError =>
  new EventPublisher.PublishError({
    event_id,
    reason: new EventPublisher.Rejected({
      detail:
        "the log has an end of this execution, from whoever took this process for gone: see the lease of the store"
    })
  })

/** An event on its way, and who waits for it. */
interface Waiting {
  readonly event: EventPublisher.Event
  readonly committed: EventPublisher.Receipt | undefined
}

const isStart = (event: EventPublisher.Event): boolean =>
  ExecutionEvent.isExecutionEvent(event) && !ExecutionEvent.isTerminal(event)

const settle = (
  events: ReadonlyArray<Waiting>,
  exit: (event: EventPublisher.Event) => Exit.Exit<void, EventPublisher.PublishError>
): void => {
  for (const { committed, event } of events) {
    committed?.settle(exit(event))
  }
}

// Nothing may end the fiber that stores.
const broken = (defect: unknown): Effect.Effect<never, EventStore.EventStoreError> =>
  Effect.fail(
    new EventStore.EventStoreError({
      reason: new EventStore.Unavailable({ detail: `a defect: ${String(defect)}`, retryable: false, cause: defect })
    })
  )

const firstRetry = Duration.millis(50)
const longestRetry = Duration.seconds(2)

/** Stores events in batches, in order, by a fiber of its own, until the scope closes and nothing is left. */
const makeWriter = Effect.fnUntraced(function*(
  store: EventStore.Store,
  options: Options
): Effect.fn.Return<Ring<Waiting>, never, Scope.Scope> {
  const ring = new Ring<Waiting>(options.capacity ?? defaultCapacity)
  const size = Math.max(1, options.batch ?? 500)
  const isOpen = (options.policy ?? "open") === "open"
  const owned = options.owned ?? true
  const closing = yield* Deferred.make<void>()
  let failing = false
  /** Those that are being stored, or wait to be tried again. */
  let underWay: ReadonlyArray<Waiting> = []

  /** Counts what failed and nobody waits for, as who waits counts it, too; and logs the first of a streak. */
  const failed = (events: ReadonlyArray<Waiting>, error: EventStore.EventStoreError) => {
    const streak = failing
    failing = true
    return Effect.andThen(
      Metric.update(
        Metrics.publishFailures(error.retryable ? "Unavailable" : "Rejected"),
        events.filter(({ committed }) => committed === undefined).length
      ),
      streak ? Effect.void : Effect.logWarning(
        `${error.message}. ${
          error.retryable ? "Events wait and are tried again" : "Events are lost"
        }; units run on, and failures are counted in effect_units_publish_failures.`
      )
    )
  }

  /**
   * Stores events of which the first `known` have failed before, and succeeds with those that are to be tried again: what the
   * database can take later, but for starts that somebody waits for, who is told at once and decides.
   */
  const attempt = (events: ReadonlyArray<Waiting>, known: number): Effect.Effect<ReadonlyArray<Waiting>> =>
    Effect.matchEffect(Effect.catchDefect(store.append(events.map(({ event }) => event), { owned }), broken), {
      onSuccess: () =>
        Effect.sync(() => {
          failing = false
          settle(events, () => Exit.void)
          return []
        }),
      onFailure: (error) => {
        const refused = (event: EventPublisher.Event) => Exit.fail(publishError(event, error))
        if (error.retryable) {
          const kept = isOpen ? events : events.filter(({ event }) => !isStart(event))
          if (!isOpen) settle(events.filter(({ event }) => isStart(event)), refused)
          return kept.length === 0 ? Effect.succeed(kept) : Effect.as(failed(kept.slice(known), error), kept)
        }
        const [only] = events
        if (events.length === 1 && only !== undefined) {
          settle(events, refused)
          const lost = isOpen || !isStart(only.event)
          return lost
            ? Effect.andThen(Metric.update(Metrics.drops("event_store"), 1), Effect.as(failed(events, error), []))
            : Effect.succeed([])
        }
        // One event that is refused for good does not take the others with it.
        return Effect.map(
          Effect.forEach(events, (event, index) => attempt([event], index < known ? 1 : 0)),
          (kept) => kept.flat()
        )
      }
    })

  // In real time: it is about how a database works, and what is published under a TestClock is to arrive as well.
  const linger = Effect.timeoutOrElse(Deferred.await(closing), {
    duration: options.linger ?? "5 millis",
    orElse: () => Effect.void
  }).pipe(Effect.provideService(Clock.Clock, Clock.Clock.defaultValue()))

  /** Fills a batch up with what waits. */
  const fill = (events: ReadonlyArray<Waiting>): Effect.Effect<ReadonlyArray<Waiting>> =>
    ring.size === 0 || events.length >= size
      ? Effect.succeed(events)
      : Effect.map(ring.take(size - events.length), (batch) => [...events, ...batch?.items ?? []])

  const write = Effect.gen(function*() {
    let kept: ReadonlyArray<Waiting> = []
    let pause = firstRetry
    while (true) {
      const known = kept.length
      if (known > 0) {
        yield* Effect.sleep(pause)
        pause = Duration.min(Duration.times(pause, 2), longestRetry)
      } else {
        pause = firstRetry
        const batch = yield* ring.take(size)
        if (batch === undefined) return
        kept = batch.items
        underWay = kept
        // Those who were told that the last batch is stored publish their next event within this turn.
        if (kept.length < size) yield* isOpen ? linger : Effect.yieldNow
      }
      const events = yield* fill(kept)
      underWay = events
      kept = yield* attempt(events, known)
      underWay = kept
    }
  })

  const fiber = yield* Effect.forkDetach(Effect.withTracerEnabled(write, false))
  const flush = Effect.gen(function*() {
    ring.end()
    yield* Deferred.succeed(closing, undefined)
    const flushed = yield* Effect.timeoutOption(Fiber.await(fiber), options.flushTimeout ?? "10 seconds")
    if (Option.isSome(flushed)) return
    // Not waited for: it may be in the middle of a BEGIN that the database does not answer.
    fiber.interruptUnsafe()
    const lost = [...underWay]
    while (ring.size > 0) lost.push(...(yield* ring.take(ring.size))?.items ?? [])
    const reason = new EventPublisher.Unavailable({
      detail: "the event store did not take it before the publisher was closed"
    })
    settle(lost, (event) => Exit.fail(new EventPublisher.PublishError({ event_id: event.id, reason })))
    yield* Metric.update(Metrics.drops("event_store"), lost.length)
    yield* Effect.logWarning(
      `The event store did not take everything before its deadline: ${lost.length} events were dropped`
    )
  })
  yield* Effect.addFinalizer(() => flush)
  return ring
})

/** What a transaction under way will store at its end. */
interface Collecting {
  readonly events: Array<EventPublisher.Event>
  open: boolean
}

const Collecting = Context.Reference<Collecting | undefined>("effect-units/publishers/Store/Collecting", {
  defaultValue: () => undefined
})

class WorkFailure<E> {
  readonly error: E
  constructor(error: E) {
    this.error = error
  }
}

/**
 * Makes a publisher into the store of the context; see `layerStore`.
 *
 * @category constructors
 * @since 0.1.0
 */
export const make = Effect.fnUntraced(
  function*(
    options: Options = {}
  ): Effect.fn.Return<EventPublisher.Publisher, never, EventStore.EventStore | Scope.Scope> {
    const store = yield* EventStore.EventStore
    const capacity = options.capacity ?? defaultCapacity
    const owned = options.owned ?? true
    const ring = yield* makeWriter(store, options)

    const full = (event: EventPublisher.Event) =>
      new EventPublisher.PublishError({ event_id: event.id, reason: new EventPublisher.BufferFull({ capacity }) })

    const accept = (event: EventPublisher.Event, committed: Waiting["committed"]): void => {
      if (!ring.offer({ event, committed })) throw full(event)
    }

    // Accepted on the spot, for the order.
    const hand = (event: EventPublisher.Event): EventPublisher.Receipt => {
      const committed = new EventPublisher.Receipt()
      accept(event, committed)
      return committed
    }

    // A transaction of the application holds the connection that the writer would wait for: the event becomes a part of it.
    const join = (event: EventPublisher.Event): Effect.Effect<void, EventPublisher.PublishError> =>
      Effect.contextWith((context) =>
        store.inTransaction(context)
          ? Effect.mapError(
            Effect.asVoid(store.append([event], { owned })),
            (error) => publishError(event, error)
          )
          : hand(event).acknowledged
      )

    const publishStrict = (
      event: EventPublisher.Event
    ): Effect.Effect<void, EventPublisher.PublishError> | EventPublisher.Receipt | undefined => {
      const fiber = Fiber.getCurrent()
      const collecting = fiber?.getRef(Collecting)
      if (collecting?.open === true) {
        if (collecting.events.length >= capacity) throw full(event)
        collecting.events.push(event)
        return undefined
      }
      // A fiber that outlives the transaction of the unit that forked it still names that transaction.
      return collecting === undefined && fiber !== undefined && store.inTransaction(fiber.context)
        ? join(event)
        : hand(event)
    }

    const run: EventPublisher.Transaction["run"] = <A, E, R>(
      work: Effect.Effect<A, E, R>,
      completed: (value: A) => ExecutionEvent.ExecutionEvent | undefined
    ): Effect.Effect<A, E, R> =>
      Effect.withFiber((fiber) => {
        const around = fiber.getRef(Collecting)
        const collecting: Collecting = { events: [], open: true }
        let event_id = "of the completed execution"

        const complete = (value: A) =>
          Effect.suspend(() => {
            const event = completed(value)
            if (event === undefined) return Effect.void
            event_id = event.id
            // The publisher numbers it, and it comes behind what was collected.
            publisher.offer(event)
            return collecting.events.at(-1) === event ? Effect.void : Effect.die(full(event))
          })
        const storeCollected = Effect.suspend(() => {
          collecting.open = false
          if (around?.open === true) {
            around.events.push(...collecting.events)
            return Effect.void
          }
          return Effect.flatMap(
            store.append(collecting.events, { owned }),
            ({ duplicates }) => duplicates.includes(event_id) ? Effect.fail(endedByOthers(event_id)) : Effect.void
          )
        })
        return store.withTransaction(
          Effect.mapError(work, (error) => new WorkFailure(error)).pipe(
            Effect.tap(complete),
            Effect.provideService(Collecting, collecting),
            Effect.tap(storeCollected)
          )
        ).pipe(
          Effect.ensuring(Effect.sync(() => {
            collecting.open = false
          })),
          Effect.catch((error) =>
            error instanceof WorkFailure
              ? Effect.fail(error.error)
              : Effect.die(
                error instanceof EventPublisher.PublishError ? error : publishError({ id: event_id }, error)
              )
          )
        )
      })

    const publisher: EventPublisher.Publisher = yield* EventPublisher.make({
      ...options,
      publish: (options.policy ?? "open") === "open" ? (event) => accept(event, undefined) : publishStrict,
      transaction: options.policy === "transactional" ? { run } : undefined
    })
    return publisher
  }
)

/**
 * Layer of a publisher into the `EventStore` of the context.
 *
 * **Details**
 *
 * Under the policy `open` events wait in a buffer of `capacity` and are stored in batches, one transaction each. While the database
 * fails in a way that can pass (locked, full), units run on, what was accepted is tried again, and what finds no room is refused;
 * what it refuses for good is lost. All of that is counted, and logged once per streak. Under `closed` handing an event over
 * succeeds when it is committed, and a start that cannot be committed is refused at once; ends are tried again. Closing the scope
 * stores what was accepted, for at most `flushTimeout`, and counts what is left then as dropped.
 *
 * Under `transactional` the handler of a unit, what it publishes, and its completed event are one transaction of the store's client:
 * use `EventStore.layer` on the `SqlClient` that the handlers use. A unit within a unit, or within a transaction of that client, is a savepoint,
 * and goes with what is around it, its events included. A unit that gives a Stream has no transaction: its events are handed over as under
 * `closed`.
 *
 * **Gotchas**
 *
 * Under `transactional` the transaction is open for as long as the unit runs. On SQLite all other writers wait meanwhile, up to their busy
 * timeout, and on PostgreSQL it holds its locks and a connection: keep downloads, and calls to other servers, out of such units.
 * A roll-back takes with it the events of the units inside, and their numbers, which leaves a gap in `sequence`.
 * Under `closed` and `transactional` a unit must not run inside of a transaction of another client on the same SQLite file: each
 * would wait for the other, until the busy timeout.
 *
 * @category layers
 * @since 0.1.0
 */
export const layerStore = (
  options?: Options
): Layer.Layer<EventPublisher.EventPublisher, never, EventStore.EventStore> =>
  Layer.effect(EventPublisher.EventPublisher, make(options))
