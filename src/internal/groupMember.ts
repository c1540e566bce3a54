/**
 * A member of a group at work: one fiber claims events for it, as many as it may hold, and tells the store what became of them; what is
 * acknowledged at one time is one transaction.
 *
 * @since 0.1.0
 */
import type * as Arr from "effect/Array"
import * as Cause from "effect/Cause"
import type * as Clock from "effect/Clock"
import type * as Context from "effect/Context"
import * as Deferred from "effect/Deferred"
import * as Duration from "effect/Duration"
import * as Effect from "effect/Effect"
import * as Exit from "effect/Exit"
import * as Latch from "effect/Latch"
import * as Option from "effect/Option"
import type * as Pull from "effect/Pull"
import * as Schedule from "effect/Schedule"
import type * as Scope from "effect/Scope"
import type * as SqlError from "effect/sql/SqlError"
import * as Stream from "effect/Stream"
import type { MemberOptions } from "../ConsumerGroups.ts"
import type { Event } from "../EventPublisher.ts"
import type { EventStoreError } from "../EventStore.ts"
import { type Delivery, type From, SubscribeError } from "../EventSubscriber.ts"
import * as Backoff from "./backoff.ts"
import * as Closing from "./closing.ts"
import * as Rows from "./eventRows.ts"
import * as FailureText from "./failureText.ts"
import type { Claimed, Groups, Member, Settlement, Turned } from "./groups.ts"
import { uuidV7 } from "./ids.ts"
import * as Metrics from "./metrics.ts"

const transport = "the event store"

/** @internal */
export const fromStoreError = (error: EventStoreError): SubscribeError =>
  new SubscribeError({ transport, detail: error.message, retryable: error.retryable, cause: error })

const refusal = (detail: string, reason?: SubscribeError["reason"]): SubscribeError =>
  new SubscribeError({ transport, detail, retryable: false, ...(reason === undefined ? {} : { reason }) })

/**
 * What members need of the store around them.
 *
 * @internal
 */
export interface Surroundings {
  readonly groups: Groups
  readonly clock: Clock.Clock
  /** The offset after which a group begins. */
  readonly start: (from: From) => Effect.Effect<number, SubscribeError>
  readonly toError: (error: SqlError.SqlError) => EventStoreError
  readonly inTransaction: (context: Context.Context<never>) => boolean
  readonly transact: <A, E, R>(self: Effect.Effect<A, E, R>) => Effect.Effect<A, E | SqlError.SqlError, R>
  readonly afterCommit: (effect: Effect.Effect<void>) => Effect.Effect<void>
  /** Before members look for events: gives those a place in the log that are committed and have none. */
  readonly settle: Effect.Effect<unknown, SqlError.SqlError>
  /** The store's. */
  readonly lifetime: Scope.Scope
}

/** What the members of a group in this process know of each other. */
interface Listener {
  readonly wake: () => void
  /** It was told that there may be something to claim, and has not looked since. */
  isTold: boolean
}

interface Listeners {
  readonly all: Set<Listener>
  /** Those that want events, and wait as they found none. */
  readonly idle: Set<Listener>
}

/** Something that a member was handed. */
interface Held extends Claimed {
  /** In milliseconds, by the clock that is never set. */
  readonly deadline: number
  isSettled: boolean
}

/** What a member has to say of an event, and who waits for the answer. */
interface Request {
  readonly held: Held
  readonly settlement: Settlement
  readonly done: Deferred.Deferred<void, SubscribeError>
}

// A hundred years, so that an endless timeout is a number that a database can hold.
const longest = 100 * 365 * 24 * 3600 * 1000

/** How far a clock is set back, in milliseconds, before it matters. */
const setBack = 1000

const never: FailureText.FailureText = { message: "It was given back, and nobody said why", cause: "" }

const leaseLost = (event: Event): SubscribeError =>
  refusal(
    `event ${event.id} was not acknowledged within ackTimeout, and another subscriber has it or had it`,
    "lease_lost"
  )

const ended = (): SubscribeError =>
  refusal("the subscription has ended; the event goes to the consumer's next subscriber", "ended")

/** Why nothing can be settled after the end. */
const reasonOf = (end: Exit.Exit<void, SubscribeError>): SubscribeError =>
  Option.getOrElse(Exit.isFailure(end) ? Cause.findErrorOption(end.cause) : Option.none(), ended)

/**
 * Makes the members of a store's groups.
 *
 * @internal
 */
export const make = (surroundings: Surroundings) => {
  const { afterCommit, clock, groups, inTransaction, lifetime, settle, start, toError, transact } = surroundings
  const members = new Map<string, Listeners>()

  /** Has one member look for events, which tells the next one if there are more. Who is at work looks again before it waits. */
  const tell = (consumer: string): void => {
    const listeners = members.get(consumer)
    const [first] = listeners?.idle ?? []
    if (first === undefined) {
      for (const { wake } of listeners?.all ?? []) wake()
      return
    }
    listeners?.idle.delete(first)
    first.isTold = true
    first.wake()
  }

  const failed = (error: SqlError.SqlError): SubscribeError => fromStoreError(toError(error))

  /** Milliseconds by the clock that is never set. */
  const elapsed = (): number => Number(clock.monotonicTimeNanosUnsafe() / 1_000_000n)

  const subscribe = Effect.fnUntraced(function*(
    options: MemberOptions
  ): Effect.fn.Return<Stream.Stream<Delivery, SubscribeError>, SubscribeError, Scope.Scope> {
    const context = yield* Effect.context<never>()
    const max = Math.max(1, Math.trunc(options.maxInFlight ?? 1))
    const pollInterval = Duration.toMillis(options.pollInterval ?? "1 second")
    const pause = Backoff.make(options.backoff)
    const longestPause = Math.min(Math.ceil(Backoff.longest(options.backoff)), longest)
    const { domains, types, units } = options
    const consumer = Rows.text(options.consumer)
    const member: Member = {
      consumer,
      id: uuidV7(clock.currentTimeMillisUnsafe()),
      wanted: { types, domains, units },
      ackTimeout: Math.min(Duration.toMillis(options.ackTimeout ?? "30 seconds"), longest),
      maxAttempts: Math.max(1, options.maxAttempts ?? 15)
    }
    const metrics = Metrics.group(options.consumer)
    const count = (outcome: "acknowledged" | "retried" | "parked" | "expired", events: number): void => {
      if (events > 0) metrics.deliveries[outcome].updateUnsafe(events, context)
    }

    yield* groups.join(consumer, member.wanted, Effect.suspend(() => start(options.from ?? "beginning"))).pipe(
      Effect.mapError((error) => error instanceof SubscribeError ? error : failed(error))
    )

    /** What it was handed and has not settled, by offset, in the order of the deadlines. */
    const inFlight = new Map<number, Held>()
    let requests: Array<Request> = []
    /** Those that the transaction under way is about. */
    let batch: Array<Request> = []
    /** Claimed, and not asked for yet. */
    let claimed: Array<Held> = []
    let isWanting = false
    let end: Exit.Exit<void, SubscribeError> | undefined
    let isClosed = false
    const signal = Latch.makeUnsafe(false)
    const ready = Latch.makeUnsafe(false)

    /** Forgets what has run out: another member may have it, or this one again. */
    const expire = (): void => {
      const now = elapsed()
      for (const [offset, { deadline }] of inFlight) {
        if (deadline > now) return
        inFlight.delete(offset)
      }
    }

    const settled = (held: Held): void => {
      held.isSettled = true
      if (inFlight.get(held.offset) === held) inFlight.delete(held.offset)
    }

    const request = (held: Held, settlement: Settlement): Effect.Effect<void, SubscribeError> =>
      Effect.suspend(() => {
        // Nobody is there to settle it any more.
        if (end !== undefined) return Effect.fail(reasonOf(end))
        const done = Deferred.makeUnsafe<void, SubscribeError>()
        const mine: Request = { held, settlement, done }
        requests.push(mine)
        signal.openUnsafe()
        return Effect.onInterrupt(Deferred.await(done), () =>
          Effect.sync(() => {
            requests = requests.filter((other) => other !== mine)
          }))
      })

    /** Part of the transaction around it, whose connection the fiber below would wait for. */
    const acknowledgeWithin = (held: Held): Effect.Effect<void, SubscribeError> =>
      transact(groups.acknowledge(member, held.offset)).pipe(
        Effect.mapError(failed),
        Effect.flatMap(({ offsets, released }) =>
          offsets.length === 0
            ? Effect.fail(leaseLost(held.event))
            : afterCommit(Effect.sync(() => {
              settled(held)
              count("acknowledged", 1)
              if (released) tell(consumer)
              signal.openUnsafe()
            }))
        )
      )

    const deliver = (held: Held): Delivery => ({
      event: held.event,
      position: String(held.offset),
      attempt: held.attempt,
      missed: held.missed,
      ack: Effect.contextWith((around: Context.Context<never>) => {
        if (held.isSettled) return Effect.void
        if (isClosed) return Effect.fail(ended())
        // Under the same name as member it would pass for the newer delivery.
        const newer = inFlight.get(held.offset)
        if (newer !== undefined && newer !== held) return Effect.fail(leaseLost(held.event))
        return inTransaction(around)
          ? acknowledgeWithin(held)
          : request(held, { _tag: "Ack", offset: held.offset })
      }),
      retry: (cause) =>
        Effect.suspend(() => {
          // Who has lost it has nothing to give back.
          if (held.isSettled || isClosed || inFlight.get(held.offset) !== held) return Effect.void
          const failure = cause === undefined ? never : FailureText.describe(cause)
          const { attempt, event, offset } = held
          const settlement = attempt >= member.maxAttempts
            ? Effect.succeed<Settlement>({ _tag: "Park", offset, event, failure })
            : Effect.map(pause(attempt), (millis): Settlement => ({
              _tag: "Retry",
              offset,
              dueAt: clock.currentTimeMillisUnsafe() + millis,
              failure
            }))
          return Effect.catch(
            Effect.flatMap(settlement, (one) => request(held, one)),
            (error) => error.reason === "lease_lost" ? Effect.void : Effect.fail(error)
          )
        })
    })

    const stop = (exit: Exit.Exit<void, SubscribeError>): void => {
      end ??= exit
      ready.openUnsafe()
    }

    const answer = (turned: Extract<Turned, { readonly _tag: "Turned" }>): void => {
      const counts = { Ack: 0, Retry: 0, Park: 0 }
      for (const { done, held, settlement } of batch) {
        if (turned.settled.has(held.offset)) {
          settled(held)
          counts[settlement._tag]++
          Deferred.doneUnsafe(done, Exit.void)
        } else {
          if (inFlight.get(held.offset) === held) inFlight.delete(held.offset)
          Deferred.doneUnsafe(done, Exit.fail(leaseLost(held.event)))
        }
      }
      count("acknowledged", counts.Ack)
      count("retried", counts.Retry)
      count("parked", turned.newlyParked)
      count("expired", turned.claimed.filter(({ expired }) => expired).length)
      metrics.parked.updateUnsafe(turned.parked, context)
      if (turned.lag !== undefined) metrics.lag.updateUnsafe(turned.lag, context)
    }

    const refuse = (refused: ReadonlyArray<Request>, error: SubscribeError): void => {
      for (const { done } of refused) Deferred.doneUnsafe(done, Exit.fail(error))
    }

    const self: Listener = { wake: () => void signal.openUnsafe(), isTold: false }
    const listeners = yield* Effect.acquireRelease(
      Effect.sync(() => {
        const others: Listeners = members.get(consumer) ?? { all: new Set(), idle: new Set() }
        members.set(consumer, others)
        others.all.add(self)
        return others
      }),
      ({ all }) =>
        Effect.sync(() => {
          all.delete(self)
          if (all.size === 0) members.delete(consumer)
        })
    )

    const work = Effect.gen(function*() {
      // Whether a claim may find something, so that there is no need to look first.
      let isPromising = true
      let isFull = false
      const ahead = (): number => clock.currentTimeMillisUnsafe() - elapsed()
      let before = ahead()
      while (true) {
        signal.closeUnsafe()
        expire()
        const since = before
        before = ahead()
        if (before < since - setBack) {
          yield* Effect.mapError(groups.advance(consumer, member.ackTimeout, longestPause), failed)
        }
        const room = isWanting ? max - inFlight.size : 0
        if (self.isTold) {
          self.isTold = false
          // It does not look now, and another one has to.
          if (room <= 0) tell(consumer)
        }
        if (requests.length === 0 && room <= 0) {
          // Room comes by a request, or as the oldest delivery runs out.
          const [oldest] = inFlight.values()
          const wait = isWanting && oldest !== undefined ? oldest.deadline - elapsed() : Infinity
          yield* waitFor(signal, wait)
          continue
        }
        if (requests.length === 0 && !isPromising) {
          const { due, lag } = yield* Effect.mapError(Effect.andThen(settle, groups.look(consumer)), failed)
          metrics.lag.updateUnsafe(lag, context)
          const now = clock.currentTimeMillisUnsafe()
          if (due > now && (lag <= 0 || isFull)) {
            listeners.idle.add(self)
            yield* waitFor(signal, Math.min(due - now, pollInterval))
            listeners.idle.delete(self)
            // Whether there is room again, only a claim tells.
            isPromising = isFull
            continue
          }
        }
        // Others who are about to acknowledge take part in the same transaction.
        if (requests.length > 0) yield* Effect.yieldNow
        batch = requests
        requests = []
        const exit = yield* Effect.exit(Effect.mapError(
          groups.turn(member, batch.map(({ settlement }) => settlement), Math.max(0, room)),
          failed
        ))
        if (Exit.isFailure(exit)) {
          return yield* Exit.failCause(exit.cause)
        }
        const turned = exit.value
        if (turned._tag !== "Turned") {
          const error = refusal(
            turned._tag === "Removed"
              ? `group "${options.consumer}" was removed`
              : `a subscriber that came later made group "${options.consumer}" ask for other events. Members of one group have to ` +
                "ask for the same; take another name for other events"
          )
          return yield* error
        }
        answer(turned)
        batch = []
        if (room > 0 ? turned.more : turned.released) tell(consumer)
        if (room > 0) {
          isPromising = turned.more
          isFull = turned.full
        }
        if (turned.claimed.length > 0) {
          const deadline = elapsed() + member.ackTimeout
          for (const one of turned.claimed) {
            const held: Held = { ...one, deadline, isSettled: false }
            // At the end, where the latest deadline belongs.
            inFlight.delete(one.offset)
            inFlight.set(one.offset, held)
            claimed.push(held)
          }
          isWanting = false
          ready.openUnsafe()
        }
      }
    })

    const pull: Pull.Pull<Arr.NonEmptyReadonlyArray<Delivery>, SubscribeError> = Effect.suspend(() => {
      expire()
      // What was claimed for a pull that was interrupted may have run out.
      const [first, ...others] = claimed.filter((held) => inFlight.get(held.offset) === held).map(deliver)
      claimed = []
      if (first !== undefined) return Effect.succeed<Arr.NonEmptyReadonlyArray<Delivery>>([first, ...others])
      if (end !== undefined) return Exit.isFailure(end) ? Exit.failCause(end.cause) : Cause.done()
      isWanting = true
      ready.closeUnsafe()
      signal.openUnsafe()
      return Effect.andThen(
        Effect.onInterrupt(ready.await, () =>
          Effect.sync(() => {
            isWanting = false
            signal.openUnsafe()
          })),
        pull
      )
    })

    // After the fiber below has ended.
    yield* Effect.addFinalizer(() =>
      Effect.suspend(() => {
        isClosed = true
        stop(Exit.void)
        refuse([...batch, ...requests], ended())
        requests = []
        const leave = Effect.map(Closing.within(groups.leave(member)), (released) => {
          if (released) tell(consumer)
        })
        // Where the database is away, the others have to wait no longer than until it is back.
        const later = Effect.retry(leave, Schedule.upTo(Schedule.spaced(pollInterval), { duration: member.ackTimeout }))
        return Effect.catch(leave, (error) =>
          Effect.logWarning(
            "A member could not give back its events as it left; they come again as soon as it can, or after their timeout",
            error
          ).pipe(
            Effect.andThen(Effect.forkIn(Effect.ignore(later), lifetime)),
            Effect.asVoid
          ))
      })
    )
    yield* work.pipe(
      Effect.onExit((exit) =>
        Effect.sync(() => {
          // Interrupted by the end of the scope. It ends in no other way than by a failure.
          const isOver = Exit.isFailure(exit) && Cause.hasInterruptsOnly(exit.cause)
          const over = isOver ? Exit.void : exit
          stop(over)
          listeners.idle.delete(self)
          // What it was told, and was about to look for, others have to look for.
          tell(consumer)
          // For the reason why it has ended: where another subscription helps, it says so.
          refuse([...batch, ...requests], reasonOf(over))
          requests = []
        })
      ),
      Effect.withTracerEnabled(false),
      Closing.forkScoped
    )
    return Stream.fromPull(Effect.succeed(pull))
  })

  return {
    subscribe,
    tellAll: (): void => {
      for (const consumer of members.keys()) tell(consumer)
    }
  }
}

const waitFor = (latch: Latch.Latch, millis: number): Effect.Effect<void> =>
  millis === Infinity
    ? latch.await
    : Effect.timeoutOrElse(latch.await, { duration: Math.max(0, millis), orElse: () => Effect.void })
