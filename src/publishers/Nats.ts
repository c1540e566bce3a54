/**
 * Events through NATS JetStream: a publisher, and a subscriber with durable consumers. The client is `@nats-io/transport-node` with
 * `@nats-io/jetstream`, which an application that imports this module installs.
 *
 * An event is a message on the subject `<prefix>.<domain>.<unit>.<type>`, `units.model.pull.execution_completed`, with the wire object
 * as JSON, the event's id as `Nats-Msg-Id`, and the W3C `traceparent` of the span around it, always with the flag "sampled", as an event is
 * recorded whether its span is or not. A domain event has the unit that published it, or `_`,
 * and the rest of its type: `units.model.pull.created`. What a subject cannot hold is percent-encoded.
 *
 * **Guarantees**
 *
 * - Durability: an event that the server has acknowledged is in the stream, on most of its replicas. A server that is killed loses none. The
 *   crash of a machine can take what its server had not yet flushed to the disk, which it does every two minutes by default; replicas alone
 *   do not help, as a replica that has lost its last writes can make a majority with one that never had them
 *   (https://jepsen.io/analyses/nats-2.12.1). `jetstream { sync_interval: always }` in the configuration of every server, from nats-server
 *   2.10 on, flushes before each acknowledgement, at a small part of the rate: `benchmarks/crash.ts` measures it.
 * - Order: as published, by each publisher. After a failure the oldest event without acknowledgement goes alone until the server has it,
 *   and then the others, in order. In a cluster, an election that is over within one round trip can still let a later event in
 *   before an earlier one; `maxUnacknowledged: 1` excludes that.
 * - Duplicates: what is sent again has the same id, and within `duplicateWindow` the server stores it once. Beyond it, after a crash of
 *   the publisher's own, and on the way to a subscriber, delivery is at least once: deduplicate on the event's `id`, as
 *   `EventSubscriber.distinct` does.
 * - Loss: what units hand over waits in the memory of the process until the server has it. So a process that is killed loses what was
 *   waiting, under the `open` policy; under `closed` no unit begins before the server has its start. A buffer that is full drops
 *   the new event, and counts it.
 * - Closing the scope sends what waits, for at most `flushTimeout`; what is left then is counted as dropped. A subscription gives back what it
 *   has not acknowledged, for the consumer's next subscriber.
 *
 * @since 0.1.0
 */
import {
  AckPolicy,
  type ConsumerConfig,
  type ConsumerInfo,
  DeliverPolicy,
  JetStreamApiCodes,
  JetStreamApiError,
  type JetStreamManager,
  jetstreamManager,
  ReplayPolicy,
  RetentionPolicy,
  type StreamConfig
} from "@nats-io/jetstream"
import {
  ClosedConnectionError,
  connect,
  createInbox,
  headers,
  InvalidArgumentError,
  type Msg,
  type MsgHdrs,
  nanos,
  type NatsConnection,
  type NodeConnectionOptions,
  nuid,
  PermissionViolationError,
  RequestError,
  type Subscription as NatsSubscription,
  TimeoutError
} from "@nats-io/transport-node"
import type * as Arr from "effect/Array"
import * as Cause from "effect/Cause"
import * as Config from "effect/Config"
import * as Duration from "effect/Duration"
import * as Effect from "effect/Effect"
import * as Exit from "effect/Exit"
import * as Latch from "effect/Latch"
import * as Layer from "effect/Layer"
import * as Predicate from "effect/Predicate"
import type * as Pull from "effect/Pull"
import * as Random from "effect/Random"
import * as Schema from "effect/Schema"
import type * as Scope from "effect/Scope"
import * as Stream from "effect/Stream"
import * as EventPublisher from "../EventPublisher.ts"
import * as EventSubscriber from "../EventSubscriber.ts"
import * as Backoff from "../internal/backoff.ts"
import * as Brokers from "../internal/brokers.ts"
import * as ServerAddress from "../internal/serverAddress.ts"

/**
 * How long a stream keeps events. Each that is set is a limit, and the oldest events go first. Where none is, events stay for good.
 *
 * @category models
 * @since 0.1.0
 */
export interface Retention {
  readonly maxAge?: Duration.Input | undefined
  readonly maxBytes?: number | undefined
  readonly maxEvents?: number | undefined
}

/**
 * Where the server is, and what the stream on it is like.
 *
 * **Details**
 *
 * A stream that is missing is created; one that exists is left as it is, and checked: that it keeps the subjects of the prefix, and what
 * is set of `retention`, `storage`, `replicas` and `duplicateWindow`.
 *
 * @category models
 * @since 0.1.0
 */
export interface StreamOptions {
  /**
   * Addresses of the servers of one cluster, as a list or with commas between them. Default `nats://127.0.0.1:4222`. What is special in a user,
   * a password or a token (`nats://token@host`) is percent-encoded. Those of the first address that has any are for all servers, and
   * authentication in `connection` comes before them.
   */
  readonly servers?: string | ReadonlyArray<string> | undefined
  /** What else the client takes: authentication, TLS, pings. It reconnects for as long as the Layer lives. */
  readonly connection?:
    | Omit<NodeConnectionOptions, "servers" | "reconnect" | "maxReconnectAttempts" | "waitOnFirstConnect">
    | undefined
  /** First part of the subjects, of one word or several with dots between them. Default `units`. */
  readonly prefix?: string | undefined
  /** Name of the stream. Default: the prefix, with `_` for dots. */
  readonly stream?: string | undefined
  readonly retention?: Retention | undefined
  /** Default `file`. */
  readonly storage?: "file" | "memory" | undefined
  /** How many servers of a cluster keep the stream: 1, 3 or 5. Default 1. */
  readonly replicas?: number | undefined
  /** For how long the server knows an id again. Default 2 minutes. */
  readonly duplicateWindow?: Duration.Input | undefined
}

/**
 * Settings of a publisher.
 *
 * @category models
 * @since 0.1.0
 */
export interface PublisherOptions extends StreamOptions {
  /** Under `closed` a unit does not begin before the server has acknowledged its start. Default `open`. */
  readonly policy?: "open" | "closed" | undefined
  /** Names the publisher in the events that it numbers. Default: a new UUID. */
  readonly source?: string | undefined
  /** How many events may wait to be sent; more are refused and counted. Default 16,384. */
  readonly capacity?: number | undefined
  /** How many events may be sent and not acknowledged. Default 512. */
  readonly maxUnacknowledged?: number | undefined
  /**
   * After how long without an acknowledgement an event is sent again, under the same id. Default 2 seconds: less than `timeout`, so that
   * under `closed` a lost acknowledgement refuses no unit.
   */
  readonly ackTimeout?: Duration.Input | undefined
  /** How long a unit waits for the acknowledgement under `closed`, before it is refused. Default 5 seconds. */
  readonly timeout?: Duration.Input | undefined
  /** How long the end of an execution waits under `closed`. Default 5 seconds. */
  readonly terminalTimeout?: Duration.Input | undefined
  /** How long closing the scope waits for what was accepted. Default 10 seconds. */
  readonly flushTimeout?: Duration.Input | undefined
  /** Longest string or blob in an event, in bytes. Default 64 KiB. */
  readonly maxFieldBytes?: number | undefined
}

/**
 * Settings of a subscriber.
 *
 * @category models
 * @since 0.1.0
 */
export type SubscriberOptions = StreamOptions

/**
 * Settings of both ends.
 *
 * @category models
 * @since 0.1.0
 */
export interface Options extends PublisherOptions, SubscriberOptions {}

/**
 * No server could be reached, or none let us in. A retry can help.
 *
 * @category errors
 * @since 0.1.0
 */
export class Unreachable extends Schema.TaggedError<Unreachable>("effect-units/publishers/Nats/Unreachable")(
  "Unreachable",
  { servers: Schema.Array(Schema.String), detail: Schema.String, cause: Schema.Defect() }
) {
  readonly retryable = true
  override get message(): string {
    return `no connection to ${
      this.servers.join(", ")
    }: ${this.detail}. Check that a server runs there, and its credentials`
  }
}

/**
 * The server refuses to create or show the stream: JetStream is off, not permitted, or at its limits. A retry does not help by itself.
 *
 * @category errors
 * @since 0.1.0
 */
export class StreamRefused extends Schema.TaggedError<StreamRefused>("effect-units/publishers/Nats/StreamRefused")(
  "StreamRefused",
  { stream: Schema.String, detail: Schema.String, cause: Schema.Defect() }
) {
  readonly retryable = false
  override get message(): string {
    return `the stream ${this.stream} cannot be used: ${this.detail}. ` +
      "Start the server with JetStream (nats-server -js), and allow this user to manage the stream"
  }
}

/**
 * The server cannot create or show the stream now: it does not answer, has no room, or its cluster has no leader. A retry can help.
 *
 * @category errors
 * @since 0.1.0
 */
export class StreamUnavailable
  extends Schema.TaggedError<StreamUnavailable>("effect-units/publishers/Nats/StreamUnavailable")(
    "StreamUnavailable",
    { stream: Schema.String, detail: Schema.String, cause: Schema.Defect() }
  )
{
  readonly retryable = true
  override get message(): string {
    return `the stream ${this.stream} cannot be used now: ${this.detail}. Try again; if that lasts, see the server's log`
  }
}

/**
 * The stream exists, and is not what the options say. A retry does not help.
 *
 * @category errors
 * @since 0.1.0
 */
export class StreamDiffers extends Schema.TaggedError<StreamDiffers>("effect-units/publishers/Nats/StreamDiffers")(
  "StreamDiffers",
  {
    stream: Schema.String,
    differences: Schema.Array(
      Schema.Struct({ field: Schema.String, found: Schema.String, expected: Schema.String })
    )
  }
) {
  readonly retryable = false
  override get message(): string {
    const list = this.differences.map(({ expected, field, found }) =>
      `${field} is ${found}, the options say ${expected}`
    )
    return `the stream ${this.stream} differs: ${
      list.join("; ")
    }. Change the options, or the stream (nats stream edit ${this.stream})`
  }
}

/**
 * A Layer of this module could not be built; `reason` says why.
 *
 * @category errors
 * @since 0.1.0
 */
export class NatsError extends Schema.TaggedError<NatsError>("effect-units/publishers/Nats/NatsError")("NatsError", {
  reason: Schema.Union([Unreachable, StreamRefused, StreamUnavailable, StreamDiffers])
}) {
  override readonly cause = this.reason
  override get message(): string {
    return `NATS: ${this.reason.message}`
  }
  /** Whether building it again can succeed later. */
  get retryable(): boolean {
    return this.reason.retryable
  }
}

const transport = "NATS JetStream"

const prefixOf = (options: StreamOptions): string => options.prefix ?? "units"

const streamOf = (options: StreamOptions): string => options.stream ?? prefixOf(options).replaceAll(".", "_")

/** One part of a subject, or a name: dots, wildcards and spaces have a meaning there. */
const token = (text: string): string =>
  text === "" ? "_" : encodeURIComponent(text.toWellFormed()).replace(
    /[.~!*'()]/g,
    (character) => `%${character.charCodeAt(0).toString(16).toUpperCase()}`
  )

/** A dotted name without its first part; all of it where there is but one. */
const rest = (name: string): string => name.slice(name.indexOf(".") + 1)

const subjectOf = (prefix: string, event: EventPublisher.Event): string => {
  const unit = event.unit_name === undefined ? "_" : token(rest(event.unit_name))
  return `${prefix}.${token(event.domain)}.${unit}.${token(rest(Brokers.typeOf(event)))}`
}

const allOf = (options: StreamOptions): string => `${prefixOf(options)}.>`

/** One subject with wildcards for all that a subscription wants, and maybe more. */
const filterOf = (options: StreamOptions, wanted: EventSubscriber.Options): string => {
  const part = (list: ReadonlyArray<string> | undefined, name: (text: string) => string): string => {
    const [first, second] = list ?? []
    return first === undefined || second !== undefined ? "*" : token(name(first))
  }
  const parts = [part(wanted.domains, (domain) => domain), part(wanted.units, rest), part(wanted.types, rest)]
  return parts.every((part) => part === "*") ? allOf(options) : [prefixOf(options), ...parts].join(".")
}

/** A connection that is made again whenever it breaks, and who wants to know. */
interface Link {
  readonly nc: NatsConnection
  readonly isUp: () => boolean
  readonly watchers: Set<Watcher>
}

interface Watcher {
  readonly down: () => void
  readonly up: () => void
  readonly refused: (error: PermissionViolationError) => void
}

const serversOf = (options: StreamOptions): Array<string> => {
  const { servers = "nats://127.0.0.1:4222" } = options
  return typeof servers === "string" ? servers.split(",").map((server) => server.trim()) : [...servers]
}

/** What the client can take: it would leave out the credentials of an address, and take a password that begins with a digit for a port. */
const connectionOf = (servers: ReadonlyArray<string>, given: NodeConnectionOptions): NodeConnectionOptions => {
  const isGiven = (given.authenticator ?? given.token ?? given.user) !== undefined
  const found = isGiven ? undefined : servers.map(ServerAddress.credentialsOf).find(({ user }) => user !== "")
  return {
    ...given,
    servers: servers.map((address) => {
      const bare = address.includes("@") ? ServerAddress.withoutCredentials(address) : address
      if (bare === undefined) throw new Error("an address that cannot be read")
      return bare
    }),
    ...(found === undefined
      ? {}
      : found.password === ""
      ? { token: found.user }
      : { user: found.user, pass: found.password })
  }
}

const makeLink = Effect.fnUntraced(function*(options: StreamOptions): Effect.fn.Return<Link, NatsError, Scope.Scope> {
  const servers = serversOf(options)
  const given = options.connection ?? {}
  const random = yield* Random.Random
  const watchers = new Set<Watcher>()
  let isUp = true
  const pause = given.reconnectDelayHandler ??
    (() => (given.reconnectTimeWait ?? 250) + random.nextDoubleUnsafe() * (given.reconnectJitter ?? 100))
  // The client asks for the pause on the spot when a connection breaks. Its status comes later, when it may have taken messages
  // for the next connection already, which would arrive before those that have to be sent again.
  const reconnectDelayHandler = (): number => {
    if (isUp) {
      isUp = false
      for (const watcher of watchers) watcher.down()
    }
    return pause()
  }
  const nc = yield* Effect.acquireRelease(
    Effect.tryPromise({
      try: () =>
        connect({
          name: "effect-units",
          ignoreAuthErrorAbort: true,
          ...connectionOf(servers, given),
          reconnect: true,
          maxReconnectAttempts: -1,
          waitOnFirstConnect: false,
          reconnectDelayHandler
        }),
      catch: (thrown) => {
        const { addresses, cause, detail } = ServerAddress.tell(servers, thrown)
        return new NatsError({ reason: new Unreachable({ servers: addresses, detail, cause }) })
      }
    }),
    (nc) => Effect.promise(() => nc.close())
  )
  isUp = true
  yield* Effect.forkScoped(Effect.promise(async () => {
    for await (const status of nc.status()) {
      if (status.type === "reconnect") {
        isUp = true
        for (const watcher of watchers) watcher.up()
      } else if (status.type === "error" && status.error instanceof PermissionViolationError) {
        for (const watcher of watchers) watcher.refused(status.error)
      }
    }
  }))
  return { nc, watchers, isUp: () => isUp }
})

const watch = (link: Link, watcher: Watcher): Effect.Effect<void, never, Scope.Scope> =>
  Effect.asVoid(Effect.acquireRelease(
    Effect.sync(() => link.watchers.add(watcher)),
    () => Effect.sync(() => link.watchers.delete(watcher))
  ))

const hasCode = (cause: unknown, code: number): boolean => cause instanceof JetStreamApiError && cause.code === code

/**
 * Whether a question to the server can be answered later. 10076 says that JetStream is off. Source: server/errors.json of nats-server, where
 * a `code` from 500 on is the server's own trouble.
 */
const canPass = (cause: unknown): boolean =>
  cause instanceof JetStreamApiError
    ? cause.status >= 500 && cause.code !== 10_076
    : cause instanceof TimeoutError || cause instanceof ClosedConnectionError ||
      cause instanceof RequestError && !(cause.cause instanceof PermissionViolationError)

/** What the options say of the stream, under the server's names. */
const statedBy = (options: StreamOptions) => {
  const { maxAge, maxBytes, maxEvents } = options.retention ?? {}
  const stated = {
    retention: RetentionPolicy.Limits,
    max_age: maxAge === undefined ? undefined : nanos(Duration.toMillis(maxAge)),
    max_bytes: maxBytes,
    max_msgs: maxEvents,
    storage: options.storage,
    num_replicas: options.replicas,
    duplicate_window: options.duplicateWindow === undefined
      ? undefined
      : nanos(Duration.toMillis(options.duplicateWindow))
  }
  return Object.fromEntries(Object.entries(stated).filter(([, value]) => value !== undefined))
}

const check = (found: StreamConfig, options: StreamOptions): Effect.Effect<void, NatsError> => {
  const subject = allOf(options)
  const differences = found.subjects.includes(subject)
    ? []
    : [{ field: "subjects", found: found.subjects.join(", "), expected: subject }]
  const fields: Record<string, unknown> = found
  for (const [field, expected] of Object.entries(statedBy(options))) {
    if (fields[field] !== expected) {
      differences.push({ field, found: String(fields[field]), expected: String(expected) })
    }
  }
  return differences.length === 0
    ? Effect.void
    : Effect.fail(new NatsError({ reason: new StreamDiffers({ stream: found.name, differences }) }))
}

/** The stream, and who manages it. */
interface Managed {
  readonly manager: JetStreamManager
  readonly subjects: ReadonlyArray<string>
}

/** Creates the stream, or checks the one that exists. */
const ensureStream = Effect.fnUntraced(
  function*(link: Link, options: StreamOptions): Effect.fn.Return<Managed, NatsError> {
    const stream = streamOf(options)
    const call = <A>(promise: () => Promise<A>): Effect.Effect<A, NatsError> =>
      Effect.tryPromise({
        try: promise,
        catch: (cause) => {
          const Reason = canPass(cause) ? StreamUnavailable : StreamRefused
          return new NatsError({ reason: new Reason({ stream, detail: Brokers.describe(cause), cause }) })
        }
      })
    const manager = yield* call(() => jetstreamManager(link.nc))
    const find = call(() =>
      manager.streams.info(stream).catch((cause: unknown) => {
        if (hasCode(cause, JetStreamApiCodes.StreamNotFound)) return undefined
        throw cause
      })
    )
    const add = call(() => manager.streams.add({ name: stream, subjects: [allOf(options)], ...statedBy(options) }))
    // Two who start at once can both find it missing; to add the same stream twice is fine, and another one is found.
    const found = (yield* find) ??
      (yield* Effect.catch(add, (error) => Effect.filterOrFail(find, Predicate.isNotUndefined, () => error)))
    yield* check(found.config, options)
    return { manager, subjects: found.config.subjects }
  }
)

/** An event as it is sent, and sent again. */
interface Sent {
  readonly item: Brokers.Outgoing
  readonly subject: string
  readonly headers: MsgHdrs
  payload: Uint8Array
  /** When it was sent last, in milliseconds of a monotonic clock. */
  at: number
}

const encoder = new TextEncoder()

const traceparent = (event: EventPublisher.Event): string | undefined =>
  event.trace_id !== undefined && event.span_id !== undefined
    ? `00-${event.trace_id}-${event.span_id}-01`
    : undefined

/** The message is larger than the stream's `max_msg_size`. Source of this and the next: `error_code` in server/errors.json of nats-server. */
const messageTooLarge = 10_054

/** What stays refused however often it is sent: headers over a limit, a stream that is sealed. All else can pass, a full account or stream too. */
const finalRefusals: ReadonlySet<unknown> = new Set([10_097, 10_109])

/** The server's answer to a publish: nothing where it is stored, else what is wrong, in words and by its code. */
const refusalOf = (msg: Msg): { readonly detail: string; readonly code: unknown } | undefined => {
  if (msg.data.length === 0) return { detail: `no stream takes it (status ${msg.headers?.code ?? 0})`, code: undefined }
  const answer: unknown = JSON.parse(msg.string())
  if (!Predicate.hasProperty(answer, "error")) return undefined
  const detail = Predicate.hasProperty(answer.error, "description") ? String(answer.error.description) : "an error"
  return { detail, code: Predicate.hasProperty(answer.error, "err_code") ? answer.error.err_code : undefined }
}

/**
 * The events that were sent and are not acknowledged, in order. While all goes well many are under way. When one fails in a way that can
 * pass, nothing new is sent: the oldest goes alone, after a pause, until the server has it; then the others, in order.
 */
class Window implements Watcher {
  private readonly sent = new Map<string, Sent>()
  private readonly link: Link
  private readonly outbound: Brokers.Outbound
  private readonly prefix: string
  private readonly inbox: string
  private readonly capacity: number
  private readonly ackTimeout: number
  private readonly warn: (text: string) => void
  private readonly backoff = new Brokers.Backoff(50, 2000)
  private count = 0
  private flowing = true
  /** The one that goes alone. */
  private probe: string | undefined
  private retryAt = 0
  private waiting: (() => boolean) | undefined

  constructor(
    link: Link,
    outbound: Brokers.Outbound,
    inbox: string,
    options: PublisherOptions,
    warn: (text: string) => void
  ) {
    this.link = link
    this.outbound = outbound
    this.inbox = inbox
    this.prefix = prefixOf(options)
    this.capacity = Math.max(1, options.maxUnacknowledged ?? 512)
    this.ackTimeout = Duration.toMillis(options.ackTimeout ?? "2 seconds")
    this.warn = warn
  }

  get size(): number {
    return this.sent.size
  }

  /** How many more may be sent, as soon as that is a good part of all: few large writes cost less than many small ones. */
  readonly room: Effect.Effect<number> = this.when(() => {
    const free = this.capacity - this.sent.size
    return this.flowing && 4 * free >= this.capacity ? free : undefined
  })

  /** Succeeds when all is settled. */
  readonly settled: Effect.Effect<unknown> = this.when(() => this.sent.size === 0 ? true : undefined)

  private when<A>(ready: () => A | undefined): Effect.Effect<A> {
    return Effect.callback((resume) => {
      const look = (): boolean => {
        const value = ready()
        if (value !== undefined) resume(Effect.succeed(value))
        return value !== undefined
      }
      if (look()) return
      // One fiber sends, and it waits for one thing at a time.
      this.waiting = look
      return Effect.sync(() => {
        this.waiting = undefined
      })
    })
  }

  /** Once for all that is acknowledged in one go; and the fiber that waits goes on as soon as it is told. */
  private changed(): void {
    const { waiting } = this
    if (waiting === undefined) return
    this.waiting = undefined
    queueMicrotask(() => {
      if (!waiting()) this.waiting = waiting
    })
  }

  send(items: ReadonlyArray<Brokers.Outgoing>): void {
    for (const item of items) {
      if (item.withdrawn) continue
      const sent = this.encode(item)
      if (sent === undefined) continue
      const key = String(this.count++)
      this.sent.set(key, sent)
      if (this.flowing) this.publish(key, sent)
    }
  }

  private encode(item: Brokers.Outgoing): Sent | undefined {
    try {
      const { event } = item
      const fields = headers()
      fields.set("Nats-Msg-Id", event.id)
      const parent = traceparent(event)
      if (parent !== undefined) fields.set("traceparent", parent)
      const payload = encoder.encode(Brokers.toText(event))
      return { item, subject: subjectOf(this.prefix, event), headers: fields, payload, at: 0 }
    } catch (thrown) {
      this.outbound.refused(item, Brokers.describe(thrown), thrown)
      return undefined
    }
  }

  private publish(key: string, sent: Sent): void {
    sent.at = Brokers.monotonicMillis()
    try {
      this.link.nc.publish(sent.subject, sent.payload, { headers: sent.headers, reply: `${this.inbox}.${key}` })
    } catch (thrown) {
      if (thrown instanceof InvalidArgumentError) {
        const most = this.link.nc.info?.max_payload
        const detail =
          `${sent.payload.length} bytes and its headers are more than the server's max_payload of ${most} bytes. ` +
          "Raise that, or lower maxFieldBytes"
        this.tooLarge(key, sent, detail, thrown)
      } else this.stop(Brokers.describe(thrown))
    }
  }

  /** Sends it again without what it carries. Under the closed policy somebody waits to hear that it cannot be stored whole. */
  private tooLarge(key: string, sent: Sent, detail: string, cause: unknown): void {
    const { event, settled } = sent.item
    const payload = settled === undefined ? encoder.encode(Brokers.toOutline(event)) : sent.payload
    if (payload.length < sent.payload.length) {
      this.warn(`Event ${event.id} goes with markers in place of what it carries: ${detail}`)
      sent.payload = payload
      this.publish(key, sent)
    } else {
      this.remove(key)
      this.outbound.refused(sent.item, detail, cause)
    }
  }

  private remove(key: string): void {
    this.sent.delete(key)
    if (key === this.probe) this.resume()
    // With nothing left there is nothing to try.
    else if (this.sent.size === 0 && this.link.isUp()) this.resume()
    this.changed()
  }

  answered(msg: Msg): void {
    const key = msg.subject.slice(this.inbox.length + 1)
    const sent = this.sent.get(key)
    if (sent === undefined) return
    const refusal = refusalOf(msg)
    if (refusal === undefined) {
      this.backoff.reset()
      this.outbound.acknowledged(sent.item)
      this.remove(key)
    } else if (refusal.code === messageTooLarge) {
      this.tooLarge(key, sent, refusal.detail, undefined)
    } else if (finalRefusals.has(refusal.code)) {
      this.outbound.refused(sent.item, refusal.detail, undefined)
      this.remove(key)
    } else if (this.flowing || key === this.probe) this.stop(refusal.detail)
  }

  private stop(detail: string): void {
    if (this.flowing) {
      this.flowing = false
      this.warn(`${transport} does not take events: ${detail}. They wait, and are sent again`)
    }
    this.probe = undefined
    this.retryAt = Brokers.monotonicMillis() + this.backoff.next()
  }

  private resume(): void {
    this.flowing = true
    this.probe = undefined
    for (const [key, sent] of this.sent) {
      if (!this.flowing) return
      if (sent.item.withdrawn) this.sent.delete(key)
      else this.publish(key, sent)
    }
  }

  private tryOldest(): void {
    for (const [key, sent] of this.sent) {
      if (sent.item.withdrawn) {
        this.sent.delete(key)
        continue
      }
      this.probe = key
      return this.publish(key, sent)
    }
    this.resume()
    this.changed()
  }

  down(): void {
    this.stop("the connection broke")
  }

  up(): void {
    this.tryOldest()
  }

  refused(error: PermissionViolationError): void {
    if (error.operation !== "publish") return
    for (const [key, sent] of this.sent) {
      if (sent.subject !== error.subject) continue
      this.outbound.refused(sent.item, `this user may not publish to ${sent.subject}`, error)
      this.remove(key)
    }
  }

  /** Looks after what is overdue. */
  tick(): void {
    if (!this.link.isUp()) return
    const now = Brokers.monotonicMillis()
    const [oldest] = this.sent.values()
    if (oldest === undefined) return
    if (this.flowing) {
      if (now - oldest.at < this.ackTimeout) return
      this.stop("no acknowledgement in time")
      this.tryOldest()
    } else if (this.probe === undefined ? now >= this.retryAt : now - oldest.at >= this.ackTimeout) {
      this.tryOldest()
    }
  }
}

/** How often overdue acknowledgements are looked for. */
const tick = Duration.millis(100)

const sender = (link: Link, options: PublisherOptions): Brokers.Sender => {
  let unsettled = (): number => 0
  return {
    transport,
    buffer: "nats",
    unsettled: () => unsettled(),
    run: (outbound) =>
      Effect.scoped(Effect.gen(function*() {
        const context = yield* Effect.context<never>()
        const inbox = createInbox(options.connection?.inboxPrefix)
        const window = new Window(
          link,
          outbound,
          inbox,
          options,
          (text) => void Effect.runForkWith(context)(Effect.logWarning(text))
        )
        unsettled = () => window.size
        yield* Effect.acquireRelease(
          Effect.sync(() => link.nc.subscribe(`${inbox}.*`, { callback: (_, msg) => window.answered(msg) })),
          (subscription) => Effect.sync(() => subscription.unsubscribe())
        )
        yield* watch(link, window)
        yield* Effect.forkScoped(Effect.forever(Effect.andThen(Effect.sleep(tick), Effect.sync(() => window.tick()))))
        while (true) {
          const room = yield* window.room
          const batch = yield* outbound.ring.take(room)
          if (batch === undefined) break
          window.send(batch.items)
        }
        yield* window.settled
      }))
  }
}

const subscribeError = (detail: string, retryable: boolean, cause?: unknown): EventSubscriber.SubscribeError =>
  new EventSubscriber.SubscribeError({
    transport,
    detail,
    retryable,
    ...(cause === undefined ? {} : { cause })
  })

const failed = (cause: unknown): EventSubscriber.SubscribeError =>
  subscribeError(Brokers.describe(cause), !(cause instanceof JetStreamApiError) || cause.status >= 500, cause)

const callManager = <A>(promise: () => Promise<A>): Effect.Effect<A, EventSubscriber.SubscribeError> =>
  Effect.tryPromise({ try: promise, catch: failed })

const startOf = (
  from: EventSubscriber.From
): Effect.Effect<Partial<ConsumerConfig>, EventSubscriber.SubscribeError> => {
  if (from === "new") return Effect.succeed({ deliver_policy: DeliverPolicy.New })
  if (from === "beginning") return Effect.succeed({ deliver_policy: DeliverPolicy.All })
  if ("time" in from) {
    const time = new Date(from.time)
    return Number.isNaN(time.getTime())
      ? Effect.fail(subscribeError(`${from.time} is no time in Unix milliseconds`, false))
      : Effect.succeed({ deliver_policy: DeliverPolicy.StartTime, opt_start_time: time.toISOString() })
  }
  return /^\d{1,15}$/.test(from.position)
    ? Effect.succeed({ deliver_policy: DeliverPolicy.StartSequence, opt_start_seq: Number(from.position) + 1 })
    : Effect.fail(
      subscribeError(`"${from.position}" is no sequence of a stream: give the position of a delivery`, false)
    )
}

/** How long the server keeps the consumer of a subscriber without a name that it does not hear of. */
const inactiveThreshold = nanos(5 * 60 * 1000)

interface WantedConsumer {
  readonly name: string
  readonly durable_name?: string
  readonly inactive_threshold?: number
  readonly filter_subject: string
  readonly ack_wait: number
  readonly max_ack_pending: number
}

/** Creates the consumer, or makes the one that exists what is wanted. It goes on where it is. */
const ensureConsumer = Effect.fnUntraced(function*(
  manager: JetStreamManager,
  stream: string,
  wanted: WantedConsumer,
  from: EventSubscriber.From
): Effect.fn.Return<ConsumerInfo, EventSubscriber.SubscribeError> {
  const { name } = wanted
  const find = callManager(() =>
    manager.consumers.info(stream, name).catch((cause: unknown) => {
      if (hasCode(cause, JetStreamApiCodes.ConsumerNotFound)) return undefined
      throw cause
    })
  )
  const found = yield* find
  if (found === undefined) {
    const start = yield* startOf(from)
    const add = callManager(() =>
      manager.consumers.add(stream, {
        ...wanted,
        ...start,
        ack_policy: AckPolicy.Explicit,
        replay_policy: ReplayPolicy.Instant
      })
    )
    return yield* Effect.catch(add, (error) => Effect.filterOrFail(find, Predicate.isNotUndefined, () => error))
  }
  const { ack_wait, filter_subject, max_ack_pending } = found.config
  const isSame = ack_wait === wanted.ack_wait && max_ack_pending === wanted.max_ack_pending &&
    filter_subject === wanted.filter_subject
  return isSame
    ? found
    : yield* callManager(() =>
      manager.consumers.update(stream, name, {
        ack_wait: wanted.ack_wait,
        max_ack_pending: wanted.max_ack_pending,
        filter_subject: wanted.filter_subject
      })
    )
})

/** What a delivered message says of itself in the subject of its acknowledgement. Source: ADR-15 of nats-architecture-and-design. */
const infoOf = (reply: string) => {
  const tokens = reply.split(".")
  // Since 2.9 servers can put the domain and the account in front.
  const at = tokens.length >= 11 ? 6 : 4
  return { attempt: Number(tokens[at]), stream: Number(tokens[at + 1]), consumer: Number(tokens[at + 2]) }
}

/** A message that was delivered to us and that we have not acknowledged. */
interface Held {
  readonly reply: string
  readonly at: number
}

/** What became of a message, and where to say so. */
interface Settled {
  readonly reply: string
  readonly payload: string
}

/** Gives a message back, for after a pause. */
const nak = (millis: number): string => millis > 0 ? `-NAK {"delay": ${nanos(millis)}}` : "-NAK"

const pullExpires = nanos(30_000)
const heartbeatMillis = 5000

interface SubscriptionSettings {
  readonly stream: string
  readonly isNamed: boolean
  readonly isFiltered: boolean
  readonly wants: (event: EventPublisher.Event) => boolean
  readonly maxInFlight: number
  readonly ackTimeout: number
  /** Milliseconds to wait after an attempt. */
  readonly pause: (attempt: number) => Effect.Effect<number>
  readonly inboxPrefix: string | undefined
  readonly warn: (text: string) => void
}

/** What was settled in one go, and when it was sent last, in milliseconds of a monotonic clock. */
interface Unconfirmed {
  readonly settled: ReadonlyArray<Settled>
  at: number
}

/** After how long without the server's confirmation acknowledgements are sent again. */
const confirmWithin = 2000

/**
 * A subscription at work. It asks the server for as many messages as it may hold, and sends acknowledgements again until the server confirms
 * them.
 */
class Subscription implements Watcher {
  /** True while it is not known whether the server still has the consumer. */
  isTroubled = false
  private readonly link: Link
  private readonly settings: SubscriptionSettings
  private readonly messages: NatsSubscription
  private readonly confirmations: NatsSubscription
  private readonly messageInbox: string
  private readonly confirmationInbox: string
  /** By the sequence in the stream. */
  private readonly held = new Map<number, Held>()
  /** Those of the held that nobody has taken. */
  private readonly ready = new Map<number, EventSubscriber.Delivery>()
  /** Those that the server has to deliver again. Of a named consumer others may get them, and nobody asks. */
  private readonly owed = new Set<number>()
  private readonly changed = Latch.makeUnsafe(false)
  private ended: Exit.Exit<void, EventSubscriber.SubscribeError> | undefined
  private settled: Array<Settled> = []
  private readonly unconfirmed = new Map<string, Unconfirmed>()
  private consumer = ""
  private lastOfStream = 0
  private lastOfConsumer = 0
  private missed = 0
  private count = 0
  private request = ""
  private outstanding = 0
  private heardAt = 0
  private isTurning = false
  private isClosing = false
  private onConfirmed: (() => void) | undefined

  constructor(link: Link, info: ConsumerInfo, settings: SubscriptionSettings) {
    const inbox = createInbox(settings.inboxPrefix)
    this.link = link
    this.settings = settings
    this.begin(info)
    this.messageInbox = `${inbox}.m`
    this.confirmationInbox = `${inbox}.c`
    this.messages = link.nc.subscribe(`${this.messageInbox}.*`, {
      callback: (error, msg) => error === null ? this.received(msg) : this.fail(failed(error))
    })
    this.confirmations = link.nc.subscribe(`${this.confirmationInbox}.*`, {
      callback: (error, msg) => error === null ? this.confirmed(msg) : this.fail(failed(error))
    })
    this.ask()
  }

  /** One that has delivered nothing is where it was told to begin, also where a limit of the stream has taken what was there. */
  private begin({ config, delivered, name }: ConsumerInfo): void {
    const start = delivered.consumer_seq === 0 ? config.opt_start_seq : undefined
    this.consumer = name
    this.lastOfStream = start === undefined ? delivered.stream_seq : start - 1
    this.lastOfConsumer = delivered.consumer_seq
  }

  /** One at a time, so that none goes stale on its way. */
  readonly next: Pull.Pull<Arr.NonEmptyReadonlyArray<EventSubscriber.Delivery>, EventSubscriber.SubscribeError> = Effect
    .suspend(() => {
      this.letGo()
      for (const [stream, delivery] of this.ready) {
        this.ready.delete(stream)
        return Effect.succeed<Arr.NonEmptyReadonlyArray<EventSubscriber.Delivery>>([delivery])
      }
      if (this.ended !== undefined) return Effect.andThen(this.ended, Cause.done())
      this.changed.closeUnsafe()
      return Effect.andThen(this.changed.await, this.next)
    })

  private endWith(exit: Exit.Exit<void, EventSubscriber.SubscribeError>): void {
    this.ended ??= exit
    this.changed.openUnsafe()
  }

  fail(error: EventSubscriber.SubscribeError): void {
    this.endWith(Exit.fail(error))
  }

  private received(msg: Msg): void {
    this.heardAt = Brokers.monotonicMillis()
    if (msg.reply?.startsWith("$JS.ACK.") === true) return this.delivered(msg, msg.reply)
    // 100 is a heartbeat. Anything else ends a request for messages, the current one or one before it.
    const status = msg.headers?.code ?? 0
    if (status === 100 || msg.subject !== this.request) return
    this.outstanding = 0
    // 404 and 408 are the ways of a request to end without messages; what else there is may mean that the consumer is gone.
    if (status === 404 || status === 408) this.ask()
    else this.isTroubled = true
  }

  private delivered(msg: Msg, reply: string): void {
    const { attempt, consumer, stream } = infoOf(reply)
    if (this.outstanding > 0) this.outstanding--
    // The oldest first: one that comes again is the newest.
    this.drop(stream)
    this.owed.delete(stream)
    this.held.set(stream, { reply, at: this.heardAt })
    this.lookForGap(attempt, stream, consumer)
    if (this.isClosing) return
    const event = Brokers.fromText(msg.string())
    if (Exit.isFailure(event)) {
      this.settings.warn(
        `Message ${stream} of the stream ${this.settings.stream} is no event that this program can read. It is passed over`
      )
      return this.release(stream, reply, "+TERM")
    }
    if (!this.settings.wants(event.value)) return this.release(stream, reply, "+ACK")
    const { missed } = this
    this.missed = 0
    this.ready.set(stream, {
      event: event.value,
      position: String(stream),
      attempt,
      missed,
      ack: this.settle(stream, reply, "+ACK"),
      retry: () =>
        Effect.flatMap(this.settings.pause(attempt), (millis) =>
          Effect.andThen(
            this.settle(stream, reply, nak(millis)),
            Effect.sync(() => this.owe(stream))
          ))
    })
    this.changed.openUnsafe()
  }

  /**
   * Messages that a limit of the stream has taken before they were delivered: the stream's sequence has grown by more than the consumer's own.
   * A filter leaves messages out, so beside one it cannot be told.
   */
  private lookForGap(attempt: number, stream: number, consumer: number): void {
    if (attempt === 1) {
      const gap = stream - this.lastOfStream - (consumer - this.lastOfConsumer)
      if (gap > 0 && !this.settings.isFiltered) this.missed += gap
      this.lastOfStream = stream
    }
    this.lastOfConsumer = consumer
  }

  private settle(stream: number, reply: string, payload: string): Effect.Effect<void, EventSubscriber.SubscribeError> {
    return Effect.suspend(() => {
      if (this.isClosing) return Effect.fail(subscribeError("the subscription has ended", false))
      this.release(stream, reply, payload)
      return Effect.void
    })
  }

  private release(stream: number, reply: string, payload: string): void {
    if (this.held.get(stream)?.reply === reply) this.held.delete(stream)
    this.owed.delete(stream)
    this.settled.push({ reply, payload })
    if (this.isTurning) return
    // Once for all that is acknowledged in one go.
    this.isTurning = true
    queueMicrotask(() => {
      this.isTurning = false
      this.sendSettled()
      this.ask()
    })
  }

  private sendSettled(): void {
    if (this.settled.length === 0 || !this.link.isUp()) return
    const key = String(this.count++)
    const unconfirmed = { settled: this.settled, at: 0 }
    this.settled = []
    this.unconfirmed.set(key, unconfirmed)
    this.publish(key, unconfirmed)
  }

  /** The server takes them in order, so that the last one is confirmed when all are in. */
  private publish(key: string, unconfirmed: Unconfirmed): void {
    unconfirmed.at = Brokers.monotonicMillis()
    const last = unconfirmed.settled.length - 1
    for (const [index, { payload, reply }] of unconfirmed.settled.entries()) {
      const confirm = index === last ? { reply: `${this.confirmationInbox}.${key}` } : undefined
      this.link.nc.publish(reply, payload, confirm)
    }
  }

  private confirmed(msg: Msg): void {
    // Nobody is there to take it: for a moment, while a cluster elects, or for good.
    if (msg.headers?.code === 503) {
      this.isTroubled = true
      if (!this.isClosing) return
    }
    this.unconfirmed.delete(msg.subject.slice(this.confirmationInbox.length + 1))
    if (this.unconfirmed.size === 0) this.onConfirmed?.()
  }

  private ask(): void {
    const free = this.settings.maxInFlight - this.held.size
    if (this.outstanding > 0 || free <= 0 || this.isClosing || this.isTroubled || !this.link.isUp()) return
    this.outstanding = free
    this.heardAt = Brokers.monotonicMillis()
    this.request = `${this.messageInbox}.${this.count++}`
    const request = { batch: free, expires: pullExpires, idle_heartbeat: nanos(heartbeatMillis) }
    this.link.nc.publish(
      `$JS.API.CONSUMER.MSG.NEXT.${this.settings.stream}.${this.consumer}`,
      JSON.stringify(request),
      { reply: this.request }
    )
  }

  down(): void {
    this.outstanding = 0
  }

  up(): void {
    for (const [key, unconfirmed] of this.unconfirmed) this.publish(key, unconfirmed)
    this.sendSettled()
    this.restart()
  }

  refused(error: PermissionViolationError): void {
    if (error.operation === "publish" && error.subject.startsWith("$JS.")) this.fail(failed(error))
  }

  /** Lets go of what the server delivers again. */
  private letGo(): void {
    const now = Brokers.monotonicMillis()
    for (const [stream, { at }] of this.held) {
      if (now - at < this.settings.ackTimeout) break
      this.drop(stream)
      this.owe(stream)
    }
  }

  private owe(stream: number): void {
    if (!this.settings.isNamed && !this.held.has(stream)) this.owed.add(stream)
  }

  private drop(stream: number): void {
    this.held.delete(stream)
    const delivery = this.ready.get(stream)
    if (delivery === undefined) return
    this.ready.delete(stream)
    // The next one tells of it.
    this.missed += delivery.missed
  }

  /** Lets go of what is overdue, sends again what is not confirmed, and finds out whether the server is silent. */
  look(): void {
    this.letGo()
    const now = Brokers.monotonicMillis()
    for (const [key, unconfirmed] of this.unconfirmed) {
      if (now - unconfirmed.at >= confirmWithin && this.link.isUp()) this.publish(key, unconfirmed)
    }
    if (this.outstanding > 0 && now - this.heardAt > 3 * heartbeatMillis) this.isTroubled = true
    this.ask()
  }

  /** Asks anew: the consumer is there. */
  restart(): void {
    this.isTroubled = false
    this.outstanding = 0
    this.ask()
  }

  /** The first message that a consumer has to begin with that takes the place of this one. */
  get position(): number {
    return Math.min(this.lastOfStream + 1, ...this.held.keys(), ...this.owed)
  }

  replace(info: ConsumerInfo): void {
    this.begin(info)
    for (const stream of this.held.keys()) this.drop(stream)
    this.owed.clear()
    this.settled = []
    this.unconfirmed.clear()
    this.restart()
  }

  /** Takes no more; what is on its way to us still comes, and is held. */
  readonly stop: Effect.Effect<void> = Effect.promise(async () => {
    this.isClosing = true
    this.ready.clear()
    if (this.link.isUp()) await this.messages.drain()
  })

  /** Gives back what is not acknowledged, in order, and waits until the server has confirmed all there is to confirm. */
  readonly giveBack: Effect.Effect<void> = Effect.callback((resume) => {
    const held = Array.from(this.held).sort(([left], [right]) => left - right)
    for (const [, { reply }] of held) this.settled.push({ reply, payload: "-NAK" })
    this.sendSettled()
    if (this.unconfirmed.size === 0) return resume(Effect.void)
    this.onConfirmed = () => resume(Effect.void)
  })

  end(): void {
    this.isClosing = true
    if (!this.link.nc.isClosed()) {
      this.messages.unsubscribe()
      this.confirmations.unsubscribe()
    }
    this.endWith(Exit.void)
  }
}

/** How often a subscription is looked after. */
const lookAfter = Duration.millis(250)

const isMissing = (error: EventSubscriber.SubscribeError): boolean =>
  hasCode(error.cause, JetStreamApiCodes.ConsumerNotFound) || hasCode(error.cause, JetStreamApiCodes.StreamNotFound)

const makeSubscriber = Effect.fnUntraced(function*(
  options: SubscriberOptions
): Effect.fn.Return<typeof EventSubscriber.EventSubscriber.Service, NatsError, Scope.Scope> {
  const link = yield* makeLink(options)
  const { manager, subjects } = yield* ensureStream(link, options)
  const stream = streamOf(options)
  const scoped = yield* Brokers.subscriptions

  const subscribe = Effect.fnUntraced(function*(
    wanted: EventSubscriber.Options
  ): Effect.fn.Return<
    Stream.Stream<EventSubscriber.Delivery, EventSubscriber.SubscribeError>,
    EventSubscriber.SubscribeError,
    Scope.Scope
  > {
    const context = yield* Effect.context<never>()
    const isNamed = wanted.consumer !== undefined
    const name = wanted.consumer === undefined ? nuid.next() : token(wanted.consumer)
    const filter = filterOf(options, wanted)
    const maxInFlight = Math.max(1, wanted.maxInFlight ?? 1)
    const ackTimeout = Duration.toMillis(wanted.ackTimeout ?? "30 seconds")
    const config = {
      name,
      ...(isNamed ? { durable_name: name } : { inactive_threshold: inactiveThreshold }),
      filter_subject: filter,
      ack_wait: nanos(ackTimeout),
      // One at a time is for the consumer as a whole: order outlives a subscriber that dies. Several are several for each subscriber.
      max_ack_pending: maxInFlight === 1 ? 1 : isNamed ? Math.max(1000, 16 * maxInFlight) : maxInFlight
    }
    const create = (from: EventSubscriber.From) => ensureConsumer(manager, stream, config, from)
    if (Number.isFinite(wanted.maxAttempts ?? Infinity)) {
      yield* Effect.logWarning(
        `${transport} parks no events: attempts go on beyond the ${wanted.maxAttempts} of maxAttempts`
      )
    }
    const info = yield* create(wanted.from ?? (isNamed ? "beginning" : "new"))
    // To be asked for the consumer makes the server forget our request for messages, which it knows now to lead nowhere. It would come
    // upon it when something is given back, and version 2.9.10 loses its place then.
    const leave = (subscription: Subscription) =>
      isNamed
        ? Effect.andThen(callManager(() => manager.consumers.info(stream, name)), subscription.giveBack)
        : callManager(() => manager.consumers.delete(stream, name))
    const subscription = yield* Effect.acquireRelease(
      Effect.sync(() =>
        new Subscription(link, info, {
          stream,
          isNamed,
          isFiltered: filter !== allOf(options) || subjects.length > 1,
          wants: EventSubscriber.wants(wanted),
          maxInFlight,
          ackTimeout,
          pause: Backoff.make(wanted.backoff),
          inboxPrefix: options.connection?.inboxPrefix,
          warn: (text) => void Effect.runForkWith(context)(Effect.logWarning(text))
        })
      ),
      (subscription) =>
        subscription.stop.pipe(
          Effect.andThen(Effect.suspend(() => link.isUp() ? leave(subscription) : Effect.void)),
          Effect.ignore,
          Effect.interruptible,
          Effect.timeoutOption("3 seconds"),
          Brokers.inRealTime,
          Effect.andThen(Effect.sync(() => subscription.end()))
        )
    )
    yield* watch(link, subscription)
    const gone = (error: EventSubscriber.SubscribeError): Effect.Effect<void> =>
      !isMissing(error)
        ? Effect.void
        : isNamed || hasCode(error.cause, JetStreamApiCodes.StreamNotFound)
        ? Effect.sync(() =>
          subscription.fail(
            subscribeError(`${error.detail}: somebody has deleted it. Subscribe anew`, true, error.cause)
          )
        )
        : create({ position: String(subscription.position - 1) }).pipe(
          Effect.map((info) => subscription.replace(info)),
          Effect.ignore
        )
    const look = Effect.suspend(() => {
      subscription.look()
      return !subscription.isTroubled || !link.isUp() ? Effect.void : Effect.matchEffect(
        callManager(() => manager.consumers.info(stream, name)),
        { onSuccess: () => Effect.sync(() => subscription.restart()), onFailure: gone }
      )
    })
    yield* Effect.andThen(Effect.sleep(lookAfter), look).pipe(
      Effect.forever,
      Effect.withTracerEnabled(false),
      Brokers.inRealTime,
      Effect.forkScoped
    )
    return Stream.fromPull(Effect.succeed(subscription.next))
  })

  return EventSubscriber.EventSubscriber.of({ subscribe: (wanted) => scoped(subscribe(wanted)) })
})

const makePublisher = Effect.fnUntraced(
  function*(options: PublisherOptions): Effect.fn.Return<EventPublisher.Publisher, NatsError, Scope.Scope> {
    const link = yield* makeLink(options)
    yield* ensureStream(link, options)
    return yield* Brokers.makePublisher(options, sender(link, options))
  }
)

/**
 * Layer of a publisher.
 *
 * **Details**
 *
 * Building it connects, and creates or checks the stream; it fails with `NatsError`. After that units never wait for the server
 * under the `open` policy: events wait in a buffer of `capacity` while the server is away, and are sent when it is back. An event that
 * the server refuses for good is a `PublishError` with the reason `Rejected` under `closed`, and counted and logged under `open`.
 *
 * One that is larger than the server's `max_payload` is refused so under `closed`, and behind a `Relay` parked, whole, in its store. Under `open` it arrives
 * with `{ "$truncated": true, "bytes": n, "sha256": hex }` in place of its input, output, error or payload, which is logged; where the limit is the stream's own
 * `max_msg_size`, behind events that were under way with it.
 *
 * Many events are sent before the first is acknowledged, so one publisher does the work of many; there is no need for `buffered` in front of
 * it, which would publish one after the other.
 *
 * @category layers
 * @since 0.1.0
 */
export const layerPublisher = (
  options: PublisherOptions = {}
): Layer.Layer<EventPublisher.EventPublisher, NatsError> =>
  Layer.effect(EventPublisher.EventPublisher, makePublisher(options))

/**
 * Layer of a subscriber, on a connection of its own.
 *
 * **Details**
 *
 * A subscriber with a name is a durable consumer on the server, one without a name an ephemeral one that goes with it. `types`,
 * `domains` and `units` become the consumer's subject filter as far as one subject can say them; the rest is sorted out here.
 *
 * With `maxInFlight: 1` one event at a time is under way to a consumer, whatever the number of its subscribers, so order holds when a
 * subscriber dies and when an event is delivered again; the others of a group stand by. With more, each subscriber of a group has up to as many, and
 * what is delivered again comes behind later events.
 *
 * Positions are sequences of the stream. `missed` counts those that are empty: a limit of the stream has taken their events before this
 * consumer saw them, or the account had no room when they were given out. Beside a subject filter it stays 0. A message that is no event, or one of a newer version, is passed over, which is logged. Messages
 * on their way when a connection breaks come again after `ackTimeout`.
 *
 * An event that is given back waits for its `backoff` on the server; with `maxInFlight: 1` all that follows it waits, too. Attempts go on for good,
 * as nothing is parked here: `maxAttempts` is warned of. A handler that puts aside what it cannot handle, and succeeds, lets the others go on.
 *
 * Give all subscribers of a name the same options: the filter, `ackTimeout` and `maxInFlight` of the last one hold for the consumer.
 *
 * @category layers
 * @since 0.1.0
 */
export const layerSubscriber = (
  options: SubscriberOptions = {}
): Layer.Layer<EventSubscriber.EventSubscriber, NatsError> =>
  Layer.effect(EventSubscriber.EventSubscriber, makeSubscriber(options))

/**
 * Layer of both ends.
 *
 * **Example** (Units that publish to NATS, and a consumer)
 *
 * ```ts
 * const layer = Nats.layer({ servers: "nats://nats.internal:4222", retention: { maxAge: "30 days" }, replicas: 3 })
 *
 * const billing = EventSubscriber.consume({ consumer: "billing", types: ["execution_completed"] }, (event) => charge(event))
 * ```
 *
 * @category layers
 * @since 0.1.0
 */
export const layer = (
  options: Options = {}
): Layer.Layer<EventPublisher.EventPublisher | EventSubscriber.EventSubscriber, NatsError> =>
  Layer.merge(layerPublisher(options), layerSubscriber(options))

/**
 * Layer of both ends, with options from `Config`.
 *
 * **Example** (The address from the environment)
 *
 * ```ts
 * const layer = Nats.layerConfig({ servers: Config.String("NATS_URL") })
 * ```
 *
 * @category layers
 * @since 0.1.0
 */
export const layerConfig = (
  options: Config.Wrap<Options>
): Layer.Layer<EventPublisher.EventPublisher | EventSubscriber.EventSubscriber, NatsError | Config.ConfigError> =>
  Layer.unwrap(Effect.map(Config.unwrap(options), layer))
