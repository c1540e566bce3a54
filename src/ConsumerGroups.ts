/**
 * Groups of subscribers to an event store: who shares which events, how far each group has come, and the events that it gave up.
 *
 * A group is a name. Its members, in any number of processes, share the events: each goes to one of them, as a lease for `ackTimeout`.
 * An event that is given back, or whose member dies, comes again after a pause that grows; after `maxAttempts` it is *parked*, with what
 * went wrong, until somebody replays or discards it. Other systems call that a dead letter.
 *
 * Order is kept per execution: an event is handed out when those before it of the same execution are acknowledged or discarded. So the
 * later events of an execution wait behind one that is to be tried again, and behind one that is parked; those of other executions go on.
 * A replay therefore keeps the order, too. Domain events outside of an execution wait for nothing.
 *
 * @since 0.1.0
 */
import type * as DateTime from "effect/DateTime"
import type * as Duration from "effect/Duration"
import type * as Effect from "effect/Effect"
import * as Schema from "effect/Schema"
import type * as Scope from "effect/Scope"
import type * as Stream from "effect/Stream"
import type { Event } from "./EventPublisher.ts"
import type { EventStoreError } from "./EventStore.ts"
import type * as EventSubscriber from "./EventSubscriber.ts"

/**
 * How a group stands.
 *
 * @category models
 * @since 0.1.0
 */
export interface Group {
  readonly name: string
  /** Offset up to which the events were handed out, or passed over as nobody asked for them. */
  readonly position: number
  /** How far the newest event of the log is after it; 0 where there is none. */
  readonly lag: number
  /** How many events are with a member, or wait for another attempt; counted up to 10,000. */
  readonly open: number
  /** How many events are parked. */
  readonly parked: number
}

/**
 * An event that a group gave up.
 *
 * @category models
 * @since 0.1.0
 */
export interface ParkedEvent {
  /** Names it in `replay`, `discard` and `edit`. */
  readonly id: string
  readonly group: string
  readonly offset: number
  /** As it will be replayed, an edit included. Absent where the stored one cannot be decoded. */
  readonly event?: Event
  /** How often it was handed out since it came, or was replayed last. */
  readonly attempts: number
  /** The message of the last failure, at most 1,000 characters, redacted as events are. */
  readonly error: string
  /** The last failure as text, with stacks, at most 8,000 characters. */
  readonly cause: string
  /** RFC 3339, UTC, milliseconds. */
  readonly parked_at: string
  readonly edited: boolean
}

/**
 * Which parked events: those that fit every field that is set, and of a list any one.
 *
 * @category models
 * @since 0.1.0
 */
export interface ParkedFilter {
  readonly group?: string | undefined
  /** Lifecycle event types, or types of domain events. */
  readonly types?: ReadonlyArray<string> | undefined
  readonly domains?: ReadonlyArray<string> | undefined
  readonly units?: ReadonlyArray<string> | undefined
  /** Parked at this time or later. */
  readonly since?: DateTime.DateTime | undefined
  /** Parked before this time. */
  readonly until?: DateTime.DateTime | undefined
  /** A part of the error's message, in small or large ASCII letters. */
  readonly error?: string | undefined
}

/**
 * A page of parked events.
 *
 * @category models
 * @since 0.1.0
 */
export interface ParkedOptions extends ParkedFilter {
  /** The page of older ones: give the last event of the page before. */
  readonly before?: Pick<ParkedEvent, "id" | "parked_at"> | undefined
  /** Default 100, at most 1,000. */
  readonly limit?: number | undefined
}

/**
 * What a member of a group wants.
 *
 * @category models
 * @since 0.1.0
 */
export interface MemberOptions extends EventSubscriber.Options {
  /** Name of the group. */
  readonly consumer: string
  /** How long what another process did may stay unseen. Default 1 second. */
  readonly pollInterval?: Duration.Input | undefined
}

/**
 * No event is parked under the id: it was replayed or discarded, or there never was one. A retry does not help.
 *
 * @category errors
 * @since 0.1.0
 */
export class NotParked extends Schema.TaggedError<NotParked>("effect-units/ConsumerGroups/NotParked")("NotParked", {
  id: Schema.String
}) {
  readonly retryable = false
  override get message(): string {
    return `no event is parked as "${this.id}": take an id of the list of parked events`
  }
}

/**
 * An edit may change what an event says, and not which event it is. A retry does not help.
 *
 * @category errors
 * @since 0.1.0
 */
export class OtherEvent extends Schema.TaggedError<OtherEvent>("effect-units/ConsumerGroups/OtherEvent")("OtherEvent", {
  id: Schema.String,
  event_id: Schema.String
}) {
  readonly retryable = false
  override get message(): string {
    return `event "${this.event_id}" is another one than is parked as "${this.id}": keep its id and its correlation_id`
  }
}

/**
 * There is no group of that name. A retry does not help.
 *
 * @category errors
 * @since 0.1.0
 */
export class GroupNotFound extends Schema.TaggedError<GroupNotFound>("effect-units/ConsumerGroups/GroupNotFound")(
  "GroupNotFound",
  { group: Schema.String }
) {
  readonly retryable = false
  override get message(): string {
    return `there is no group "${this.group}": a group begins with its first subscriber`
  }
}

/**
 * The groups of a store; `EventStore` has them as `groups`.
 *
 * @category models
 * @since 0.1.0
 */
export interface ConsumerGroups {
  /**
   * The deliveries of one member; `EventStore.layerSubscriber` gives the same as an `EventSubscriber`.
   *
   * **Details**
   *
   * The group begins where `from` says when its first member comes. What a member has not acknowledged when its scope closes goes to the
   * others at once; what it has when it dies, after its `ackTimeout`. An acknowledgement after that time counts for as long as nobody else
   * has the event; after that it fails with a `SubscribeError` of the reason `lease_lost`. Inside of the store's `withTransaction`
   * `ack` is a part of the transaction, so that what a handler writes to the same database is written exactly once.
   *
   * While 10,000 events of a group are with members or wait for another attempt, nothing new is handed out.
   *
   * **Gotchas**
   *
   * A group has one filter: that of the subscriber who came last. Members that ask for something else end with a `SubscribeError`.
   * Leases and pauses go by the clocks of the machines; where these differ by more than `ackTimeout`, members take events from each other.
   * Where a clock is set forward, leases run out early, and events come again. Where it is set back, members that see it have nothing wait
   * longer, from then on, than their own `ackTimeout` or longest pause.
   */
  readonly subscribe: (
    options: MemberOptions
  ) => Effect.Effect<
    Stream.Stream<EventSubscriber.Delivery, EventSubscriber.SubscribeError>,
    EventSubscriber.SubscribeError,
    Scope.Scope
  >
  /** All groups, by name. */
  readonly list: Effect.Effect<ReadonlyArray<Group>, EventStoreError>
  /** Removes a group with all that waits or is parked in it. Its members end with a `SubscribeError`. */
  readonly remove: (group: string) => Effect.Effect<void, EventStoreError | GroupNotFound>
  /** Parked events, those parked last first. A filter costs by the parked events that it passes over. */
  readonly parked: (options?: ParkedOptions) => Effect.Effect<ReadonlyArray<ParkedEvent>, EventStoreError>
  readonly get: (id: string) => Effect.Effect<ParkedEvent, EventStoreError | NotParked>
  /** Hands the event out again, with as many attempts as a new one, and then what waits behind it. */
  readonly replay: (id: string) => Effect.Effect<void, EventStoreError | NotParked>
  /** Puts another event in the place of a parked one, for this group alone; the log stays as it is. `replay` hands it out. */
  readonly edit: (id: string, event: Event) => Effect.Effect<void, EventStoreError | NotParked | OtherEvent>
  /** Counts the event as handled, and hands out what waits behind it. */
  readonly discard: (id: string) => Effect.Effect<void, EventStoreError | NotParked>
  /** Replays all that fit, oldest first, in transactions of 500, and succeeds with their number. What is parked meanwhile stays. */
  readonly replayAll: (filter: ParkedFilter) => Effect.Effect<number, EventStoreError>
  /** Discards all that fit, as `replayAll` replays them. */
  readonly discardAll: (filter: ParkedFilter) => Effect.Effect<number, EventStoreError>
}
