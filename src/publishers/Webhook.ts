/**
 * Events to HTTP endpoints, as CloudEvents that are signed by the Standard Webhooks scheme; and the helper that receives them.
 *
 * **Guarantees**
 *
 * - At least once from this buffer on, while the process lives: an event is repeated until the endpoint answers 2xx. The CloudEvent's
 *   `id` is the key to deduplicate on; the same delivery always carries the same `webhook-id`.
 * - In order per endpoint, and so per execution: a delivery that fails holds back those behind it, and nobody else's.
 * - No unit waits, and none fails, under the `open` policy: encoding, signing and sending happen in a fiber per endpoint, behind a bounded
 *   buffer. Under `closed` an event is published once every endpoint that wants it has answered 2xx; one that is published again, as by a
 *   `Relay`, goes on where it was.
 * - What is lost: events that come while an endpoint's buffer is full, and what is not delivered when the process dies or the flush at
 *   the end of the scope takes longer than `flushTimeout`. Both but the crash are counted in `effect_units_events_dropped` and logged,
 *   and all show as gaps in `sequence` to a receiver of all events. Put a durable store in front where that is too much.
 * - An endpoint that keeps failing is parked: no more requests, until `Endpoints.resume`. An error in the log, the gauge
 *   `effect_units_webhook_parked` and `Endpoints.list` say so whatever the settings are, and `onParked` tells the program, which can
 *   publish it as the domain event `EndpointParked`. What waits is kept as far as its buffer goes.
 *
 * **Endpoints that others chose**
 *
 * - Redirects are failures, wherever they lead: nothing is sent to an address that was not configured. That holds for every
 *   `HttpClient` that hands redirects out: those over `node:http`, Undici and `fetch`. One that the application has wrapped in
 *   `HttpClient.followRedirects` follows them before it can be stopped; then the delivery counts as failed, and says why.
 * - Addresses that are not public (loopback, private, link-local, and whatever else the registries of IANA set apart) are refused,
 *   unless the endpoint has `allowPrivateAddresses`. The name is resolved before every attempt, and every address that it has must be
 *   public. That leaves the moment between this lookup and the client's own, in which a name server that means harm can change its
 *   answer (DNS rebinding). `WebhookNode.layer` closes it, and so does `publicLookup` in the agent of your own client: then the
 *   addresses that are checked are the ones that are connected to. A client over `fetch` has no place for it. One that goes through a
 *   proxy resolves names elsewhere; there the proxy has to refuse.
 * - Answers are not trusted: a request has `timeout` to be answered, at most 64 KiB of an answer's body are read and for at most a
 *   second, and the status alone counts.
 *
 * Addresses and secrets show in no error, log line, metric or span: endpoints go by their `name`.
 *
 * Sources: CloudEvents specification 1.0.2 with its HTTP binding (structured and batched mode) and JSON format; Standard Webhooks
 * specification 1.0.0; RFC 9110, section 10.2.3 (`Retry-After`).
 *
 * @since 0.1.0
 */
import type { NonEmptyReadonlyArray } from "effect/Array"
import * as Clock from "effect/Clock"
import * as Context from "effect/Context"
import * as Deferred from "effect/Deferred"
import * as Duration from "effect/Duration"
import * as Effect from "effect/Effect"
import * as Exit from "effect/Exit"
import * as Fiber from "effect/Fiber"
import * as Headers from "effect/http/Headers"
import * as HttpBody from "effect/http/HttpBody"
import type * as HttpClient from "effect/http/HttpClient"
import * as HttpClientRequest from "effect/http/HttpClientRequest"
import * as Layer from "effect/Layer"
import * as Metric from "effect/Metric"
import * as Predicate from "effect/Predicate"
import * as Redacted from "effect/Redacted"
import * as Schedule from "effect/Schedule"
import * as Schema from "effect/Schema"
import type * as Scope from "effect/Scope"
import { createHash } from "node:crypto"
import type * as Net from "node:net"
import * as DomainEvent from "../DomainEvent.ts"
import * as EventPublisher from "../EventPublisher.ts"
import * as ExecutionEvent from "../ExecutionEvent.ts"
import * as HttpPost from "../internal/httpPost.ts"
import * as Json from "../internal/json.ts"
import * as Metrics from "../internal/metrics.ts"
import * as PublicAddress from "../internal/publicAddress.ts"
import { Ring } from "../internal/ring.ts"
import * as Signature from "../internal/webhookSignature.ts"

/**
 * Where events go.
 *
 * @category models
 * @since 0.1.0
 */
export interface Endpoint {
  /** Names the endpoint in logs, metrics and errors. Unique in its Layer. */
  readonly name: string
  /** `https` or `http`. It never shows, as many services put a secret into its path. */
  readonly url: string | Redacted.Redacted
  /**
   * `whsec_<base64>`, 24 to 64 random bytes each. Deliveries are signed with all of them, so that a receiver can go over from one to
   * the next at its own time: add the new one, let the receiver change, take the old one away. A secret belongs to one endpoint.
   */
  readonly secrets: NonEmptyReadonlyArray<Redacted.Redacted>
  /** Lifecycle event types, or types of domain events. Default: all. */
  readonly types?: ReadonlyArray<string> | undefined
  /** Default: all. */
  readonly domains?: ReadonlyArray<string> | undefined
  /** Names of units. Domain events outside of any unit have none. Default: all. */
  readonly units?: ReadonlyArray<string> | undefined
  /**
   * `structured`, the default: one event a request, as `application/cloudevents+json`. `batched`: what waits, up to `maxBatch` events and a
   * mebibyte, as `application/cloudevents-batch+json`. A larger event goes alone.
   */
  readonly mode?: "structured" | "batched" | undefined
  /** Most events of a batch. Default 100. */
  readonly maxBatch?: number | undefined
  /** More headers, such as `authorization`. */
  readonly headers?: Readonly<Record<string, string | Redacted.Redacted>> | undefined
  /** How long the endpoint may take to begin its answer, connecting included. Default 15 seconds. */
  readonly timeout?: Duration.Input | undefined
  /**
   * When to try again. An endpoint whose delivery still fails when the schedule is over is parked. Default: 9 times, after a second at
   * first, then after twice as long each time, give or take a fifth: some eight minutes in all.
   */
  readonly retry?: Schedule.Schedule<unknown, WebhookError> | undefined
  /** The longest `Retry-After` that is waited out; for a longer one the next attempt comes after this. Default 1 hour. */
  readonly maxRetryAfter?: Duration.Input | undefined
  /** How many events may wait, beside those that are being sent; more are dropped and counted. Default 10,000. */
  readonly capacity?: number | undefined
  /** Also send to addresses that are not public: those of this machine and this network. Default `false`. */
  readonly allowPrivateAddresses?: boolean | undefined
}

/**
 * Settings of the Layer.
 *
 * @category models
 * @since 0.1.0
 */
export interface Options {
  readonly endpoints: ReadonlyArray<Endpoint>
  /**
   * Under `closed` a unit does not begin before every endpoint that wants it has its start. What a `Relay` sends through needs it; units
   * seldom want to wait for somebody else's server. Default `open`.
   */
  readonly policy?: "open" | "closed" | undefined
  /**
   * How long who publishes waits under `closed`. Default: 5 seconds more than the longest `timeout` of the endpoints, so 20 seconds
   * where they have none of their own. An event that is published again after that goes on where it was: an endpoint that has it, or is
   * being sent it, gets it once.
   */
  readonly timeout?: Duration.Input | undefined
  /** How long the end of an execution waits under `closed`. Default 5 seconds. */
  readonly terminalTimeout?: Duration.Input | undefined
  /** Told when an endpoint is parked. `EndpointParked.publish` fits, with a publisher of its own. Failures are logged. */
  readonly onParked?: ((parked: EndpointParked) => Effect.Effect<void>) | undefined
  /** How long closing the scope waits for what was accepted. Default 10 seconds. */
  readonly flushTimeout?: Duration.Input | undefined
  /** Default: a new UUID. Give one where a restarted process should go on under its old name. */
  readonly source?: string | undefined
  /** Longest string or blob in an event, in bytes; longer ones are replaced by their size and SHA-256. Default 64 KiB. */
  readonly maxFieldBytes?: number | undefined
}

/**
 * The domain event that says that an endpoint gets no more requests.
 *
 * @category models
 * @since 0.1.0
 */
export const EndpointParked = DomainEvent.define("webhook.endpoint_parked", {
  /** The endpoint's name. */
  endpoint: Schema.String,
  /** How often the last delivery was tried. */
  attempts: Schema.Int,
  /** What went wrong the last time. */
  error: Schema.String,
  /** Events that wait for the endpoint to be resumed. */
  waiting: Schema.Int
})

/**
 * @category models
 * @since 0.1.0
 */
export type EndpointParked = typeof EndpointParked.payload.Type

/**
 * What becomes of an endpoint's deliveries.
 *
 * @category models
 * @since 0.1.0
 */
export interface EndpointState {
  readonly name: string
  /** `retrying` waits to try again. */
  readonly status: "active" | "retrying" | "parked"
  /** Accepted events that the endpoint does not have yet. */
  readonly waiting: number
  /** How often the delivery at the head has failed since it was begun, or since the endpoint was resumed. */
  readonly attempts: number
  /** Why it failed the last time; `undefined` once a delivery succeeds. */
  readonly error: WebhookError | undefined
}

/**
 * The server could not be reached, or broke off. `code` is the system's, such as `ECONNREFUSED`. A retry can help.
 *
 * @category errors
 * @since 0.1.0
 */
export class Unreachable
  extends Schema.TaggedError<Unreachable>("effect-units/publishers/Webhook/Unreachable")("Unreachable", {
    code: Schema.String
  })
{
  override get message(): string {
    return `it cannot be reached (${this.code}). Check its address, and that it runs`
  }
}

/**
 * No encrypted connection could be made. `code` is the TLS library's, such as `CERT_HAS_EXPIRED`. A retry helps once the certificate is
 * in order.
 *
 * @category errors
 * @since 0.1.0
 */
export class TlsFailed extends Schema.TaggedError<TlsFailed>("effect-units/publishers/Webhook/TlsFailed")("TlsFailed", {
  code: Schema.String
}) {
  override get message(): string {
    return `no encrypted connection could be made (${this.code}). Check its certificate, and which authorities the client trusts`
  }
}

/**
 * No answer came in time. The events may have arrived; a retry can help.
 *
 * @category errors
 * @since 0.1.0
 */
export class TimedOut extends Schema.TaggedError<TimedOut>("effect-units/publishers/Webhook/TimedOut")("TimedOut", {
  after_ms: Schema.Finite
}) {
  override get message(): string {
    return `it did not answer within ${this.after_ms} ms. Let it answer first and work later, or give it a longer timeout`
  }
}

/**
 * The answer was not 2xx. A retry can help, but after 410, which says that the endpoint wants no more.
 *
 * @category errors
 * @since 0.1.0
 */
export class Refused extends Schema.TaggedError<Refused>("effect-units/publishers/Webhook/Refused")("Refused", {
  status: Schema.Int,
  /** How long the endpoint asks to wait. */
  retry_after_ms: Schema.optionalKey(Schema.Finite)
}) {
  override get message(): string {
    return `it answered with HTTP status ${this.status}`
  }
}

/**
 * The answer was a redirect, which is not followed. A retry does not help: configure the address that it leads to.
 *
 * @category errors
 * @since 0.1.0
 */
export class Redirected
  extends Schema.TaggedError<Redirected>("effect-units/publishers/Webhook/Redirected")("Redirected", {
    status: Schema.Int
  })
{
  override get message(): string {
    return `it redirects (HTTP status ${this.status}), which is not followed. Configure the address that it redirects to`
  }
}

/**
 * The name has an address that is not public. A retry helps once it has not.
 *
 * @category errors
 * @since 0.1.0
 */
export class ForbiddenAddress
  extends Schema.TaggedError<ForbiddenAddress>("effect-units/publishers/Webhook/ForbiddenAddress")("ForbiddenAddress", {
    address: Schema.String
  })
{
  override get message(): string {
    return `its address ${this.address} is not public. Set allowPrivateAddresses where it is meant`
  }
}

/**
 * An endpoint, or a secret, is configured wrongly. A retry does not help.
 *
 * @category errors
 * @since 0.1.0
 */
export class InvalidSettings
  extends Schema.TaggedError<InvalidSettings>("effect-units/publishers/Webhook/InvalidSettings")("InvalidSettings", {
    detail: Schema.String
  })
{
  override get message(): string {
    return `its settings are wrong: ${this.detail}`
  }
}

/**
 * A received request lacks a header of the scheme, or has one that is not in its form.
 *
 * @category errors
 * @since 0.1.0
 */
export class InvalidHeader
  extends Schema.TaggedError<InvalidHeader>("effect-units/publishers/Webhook/InvalidHeader")("InvalidHeader", {
    header: Schema.String
  })
{
  override get message(): string {
    return `the header ${this.header} is missing or malformed`
  }
}

/**
 * None of the signatures of a received request is made with one of the secrets.
 *
 * @category errors
 * @since 0.1.0
 */
export class SignatureMismatch
  extends Schema.TaggedError<SignatureMismatch>("effect-units/publishers/Webhook/SignatureMismatch")(
    "SignatureMismatch",
    {}
  )
{
  override get message(): string {
    return "no signature matches. Verify the body as it came, byte by byte, and with the sender's secret"
  }
}

/**
 * A received request was signed too long ago, or in the future: it is repeated by somebody, or a clock is wrong.
 *
 * @category errors
 * @since 0.1.0
 */
export class OutOfTolerance
  extends Schema.TaggedError<OutOfTolerance>("effect-units/publishers/Webhook/OutOfTolerance")("OutOfTolerance", {
    /** Negative where the request was signed in the future. */
    age_seconds: Schema.Finite,
    tolerance_seconds: Schema.Finite
  })
{
  override get message(): string {
    return `the request is ${this.age_seconds} s old, where ${this.tolerance_seconds} s are tolerated. Check the clocks of both machines`
  }
}

/**
 * A received delivery is known by its id: the sender missed the answer, or somebody repeats it. `handled` is `false` while the first one
 * is still being handled.
 *
 * @category errors
 * @since 0.1.0
 */
export class Replayed extends Schema.TaggedError<Replayed>("effect-units/publishers/Webhook/Replayed")("Replayed", {
  webhook_id: Schema.String,
  handled: Schema.Boolean
}) {
  override get message(): string {
    return this.handled
      ? `the delivery ${this.webhook_id} was handled before`
      : `the delivery ${this.webhook_id} is being handled by another request`
  }
}

/**
 * The body of a received request does not hold events of this library.
 *
 * @category errors
 * @since 0.1.0
 */
export class InvalidBody
  extends Schema.TaggedError<InvalidBody>("effect-units/publishers/Webhook/InvalidBody")("InvalidBody", {
    detail: Schema.String
  })
{
  override get message(): string {
    return `the body holds no events: ${this.detail}`
  }
}

/**
 * A delivery could not be sent, or not be received; `reason` says why. `endpoint` is the name of the one that was sent to.
 *
 * @category errors
 * @since 0.1.0
 */
export class WebhookError
  extends Schema.TaggedError<WebhookError>("effect-units/publishers/Webhook/WebhookError")("WebhookError", {
    endpoint: Schema.optionalKey(Schema.String),
    reason: Schema.Union([
      Unreachable,
      TlsFailed,
      TimedOut,
      Refused,
      Redirected,
      ForbiddenAddress,
      InvalidSettings,
      InvalidHeader,
      SignatureMismatch,
      OutOfTolerance,
      Replayed,
      InvalidBody
    ])
  })
{
  override get message(): string {
    const subject = this.endpoint === undefined
      ? "A webhook was not received"
      : `The webhook endpoint "${this.endpoint}" failed`
    return `${subject}: ${this.reason.message}`
  }

  /**
   * The HTTP status with which a receiver answers, so that the sender does what is right: 200 to what was handled before, 409 to what is
   * being handled, which makes the sender try again, 400 and 401 to what is not from the sender.
   */
  get responseStatus(): number {
    switch (this.reason._tag) {
      case "Replayed":
        return this.reason.handled ? 200 : 409
      case "SignatureMismatch":
      case "OutOfTolerance":
        return 401
      case "InvalidHeader":
      case "InvalidBody":
        return 400
      default:
        return 500
    }
  }
}

type Reason = WebhookError["reason"]

/**
 * The endpoints of the Layer, as an operator sees them.
 *
 * @category services
 * @since 0.1.0
 */
export class Endpoints extends Context.Service<Endpoints, {
  /** In the order of the settings. */
  readonly list: Effect.Effect<ReadonlyArray<EndpointState>>
  /**
   * Sends to a parked endpoint again, beginning with the delivery that failed, or, with `skip`, with the one after it. `false` where no
   * endpoint of that name is parked. What is skipped is dropped and counted; under `closed` it is `Rejected` once the other endpoints
   * are through with it, so that a `Relay` puts it aside.
   */
  readonly resume: (name: string, options?: { readonly skip?: boolean | undefined }) => Effect.Effect<boolean>
}>()("effect-units/publishers/Webhook/Endpoints") {}

/**
 * A lookup for the agent of an HTTP client, which refuses names that have an address that is not public. With it there is no moment
 * in which the answer of a name server can change.
 *
 * **Example** (A client that cannot be led into this network)
 *
 * ```ts
 * const client = Layer.fresh(NodeHttpClient.layerNodeHttpOptions({ keepAlive: true, lookup: Webhook.publicLookup }))
 * ```
 *
 * With Undici: `Layer.fresh(NodeHttpClient.layerUndiciOptions({ connect: { lookup: Webhook.publicLookup } }))`.
 *
 * **Gotchas**
 *
 * These layers share their client: without `Layer.fresh`, where the application has another one of the same kind, this one is that one,
 * and its lookup is not used. `WebhookNode.layer` has seen to it. An address without a name needs no lookup. The publisher refuses those
 * itself.
 *
 * @category security
 * @since 0.1.0
 */
export const publicLookup: Net.LookupFunction = PublicAddress.lookup

const structuredType = "application/cloudevents+json"
const batchedType = "application/cloudevents-batch+json"

const attemptsOf = (endpoint: string, outcome: "delivered" | "failed") =>
  Metric.counter("effect_units_webhook_attempts", {
    description: "Requests to webhook endpoints, by how they ended",
    incremental: true,
    attributes: { endpoint, outcome }
  })

const parkedOf = (endpoint: string) =>
  Metric.gauge("effect_units_webhook_parked", {
    description: "1 where a webhook endpoint is parked, 0 where it is not",
    attributes: { endpoint }
  })

const defaultRetry = Schedule.exponential("1 second").pipe(Schedule.jittered, Schedule.upTo({ times: 9 }))

const maxBatchBytes = 1024 * 1024

/** How many events are remembered whose publisher has given up waiting under `closed`. */
const maxGivenUp = 10_000

/** An event on its way to one endpoint. */
interface Outgoing {
  readonly event: EventPublisher.Event
  /** Who waits for it; nobody does under the `open` policy. */
  readonly handed: Handed | undefined
}

/** An event under `closed`: what becomes of it at all the endpoints that want it. */
class Handed {
  /** Done when none of them is left. */
  readonly receipt: EventPublisher.Receipt
  /** The endpoints whose buffers it is still to be put in. */
  readonly missing: Set<Outlet>
  /** True while nobody waits: endpoints that have not begun to send it need not. */
  withdrawn = false
  private left: number
  private refused: EventPublisher.PublishError | undefined

  constructor(outlets: ReadonlyArray<Outlet>, giveUp: (handed: Handed) => void) {
    this.missing = new Set(outlets)
    this.left = outlets.length
    this.receipt = new EventPublisher.Receipt(() => giveUp(this))
  }

  /** One endpoint has the event, or will never have it. */
  settle(refused?: EventPublisher.PublishError): void {
    this.refused ??= refused
    if (--this.left > 0) return
    this.receipt.settle(this.refused === undefined ? Exit.void : Exit.fail(this.refused))
  }
}

/** One request's worth of events: the same bytes under the same id at every attempt. */
interface Delivery {
  readonly id: string
  readonly items: ReadonlyArray<Outgoing>
  readonly body: Uint8Array
}

const sha256 = (text: string): string => createHash("sha256").update(text).digest("hex")

// A full stop ends the id in what is signed, and other characters do not fit into a header.
const headerId = (id: string): string => /^[\w:-]{1,128}$/.test(id) ? id : sha256(id)

/** An event as it goes into a body. */
interface Part {
  readonly item: Outgoing
  readonly id: string
  readonly json: string
}

const partOf = (item: Outgoing): Part => {
  const { event } = item
  return {
    item,
    id: event.id,
    json: JSON.stringify(
      ExecutionEvent.isExecutionEvent(event) ? ExecutionEvent.toCloudEvent(event) : DomainEvent.toCloudEvent(event)
    )
  }
}

const structured = (parts: ReadonlyArray<Part>): ReadonlyArray<Delivery> =>
  parts.map(({ id, item, json }) => ({ id: headerId(id), items: [item], body: Buffer.from(json) }))

const batched = (parts: ReadonlyArray<Part>): ReadonlyArray<Delivery> => {
  const batches: Array<Array<Part>> = []
  let room = 0
  for (const part of parts) {
    const bytes = Buffer.byteLength(part.json)
    room -= bytes
    const last = batches.at(-1)
    if (last !== undefined && room >= 0) last.push(part)
    else {
      batches.push([part])
      room = maxBatchBytes - bytes
    }
  }
  return batches.map((batch) => ({
    id: `batch-${sha256(batch.map(({ id }) => id).join("\n"))}`,
    items: batch.map(({ item }) => item),
    body: Buffer.from(`[${batch.map(({ json }) => json).join(",")}]`)
  }))
}

const within = (list: ReadonlyArray<string> | undefined): (value: string | undefined) => boolean => {
  if (list === undefined) return () => true
  const set: ReadonlySet<string | undefined> = new Set(list)
  return (value) => set.has(value)
}

const wants = (endpoint: Endpoint): (event: EventPublisher.Event) => boolean => {
  const types = within(endpoint.types)
  const domains = within(endpoint.domains)
  const units = within(endpoint.units)
  return (event) =>
    types(ExecutionEvent.isExecutionEvent(event) ? event.event_type : event.type) && domains(event.domain) &&
    units(event.unit_name)
}

const revealed = (value: string | Redacted.Redacted): string =>
  typeof value === "string" ? value : Redacted.value(value)

const parseUrl = (endpoint: Endpoint): URL | { readonly invalid: string } => {
  const text = revealed(endpoint.url)
  if (!URL.canParse(text)) return { invalid: "url is no address" }
  const url = new URL(text)
  if (url.protocol !== "https:" && url.protocol !== "http:") return { invalid: "url begins with https:// or http://" }
  return url.username === "" && url.password === ""
    ? url
    : { invalid: "url holds a user or a password. Send them as a header" }
}

const timeoutOf = ({ timeout }: Endpoint): Duration.Duration => Duration.fromInputUnsafe(timeout ?? "15 seconds")

/** What the settings of an endpoint come to. */
interface Checked {
  readonly url: URL
  readonly keys: ReadonlyArray<Signature.Key>
}

const check = (endpoint: Endpoint): Checked | { readonly invalid: string } => {
  const url = parseUrl(endpoint)
  if ("invalid" in url) return url
  const keys: Array<Signature.Key> = []
  for (const secret of endpoint.secrets) {
    const key = Signature.key(secret)
    if ("invalid" in key) return key
    keys.push(key)
  }
  return keys.length === 0 ? { invalid: "it has no secret" } : { url, keys }
}

/** One of the addresses of a host that is not public, or `undefined`. */
const privateAddress = (url: URL): Effect.Effect<string | undefined, Reason> =>
  Effect.tryPromise({
    try: () => PublicAddress.findPrivate(url),
    catch: (cause) =>
      new Unreachable({
        code: Predicate.hasProperty(cause, "code") && typeof cause.code === "string" ? cause.code : "ENOTFOUND"
      })
  })

type Resumed = "again" | "skip"

/** An endpoint at work: its buffer, and what becomes of it. */
class Outlet {
  readonly endpoint: Endpoint
  readonly ring: Ring<Outgoing>
  /** Events that were taken out of the buffer and are not delivered. */
  inHand = 0
  attempts = 0
  error: WebhookError | undefined
  retrying = false
  parked: Deferred.Deferred<Resumed> | undefined
  readonly wants: (event: EventPublisher.Event) => boolean
  private readonly context: Context.Context<never>
  // Made once, as a metric keeps its key.
  private readonly outcomes: Readonly<Record<"delivered" | "failed", Metric.Counter<number>>>
  private overflowing = false

  constructor(endpoint: Endpoint, context: Context.Context<never>) {
    this.endpoint = endpoint
    this.outcomes = { delivered: attemptsOf(endpoint.name, "delivered"), failed: attemptsOf(endpoint.name, "failed") }
    this.wants = wants(endpoint)
    this.ring = new Ring(endpoint.capacity ?? 10_000)
    this.context = context
  }

  get waiting(): number {
    return this.ring.size + this.inHand
  }

  get state(): EndpointState {
    return {
      name: this.endpoint.name,
      status: this.parked !== undefined ? "parked" : this.retrying ? "retrying" : "active",
      waiting: this.waiting,
      attempts: this.attempts,
      error: this.error
    }
  }

  offer(event: EventPublisher.Event): void {
    if (!this.wants(event)) return
    if (this.ring.offer({ event, handed: undefined })) {
      this.overflowing = false
      return
    }
    this.dropped(1)
    if (this.overflowing) return
    this.overflowing = true
    this.warn(
      `The buffer of the webhook endpoint "${this.endpoint.name}" is full (${this.ring.capacity} events). ` +
        "Further events are dropped, and counted in effect_units_events_dropped."
    )
  }

  /** Gives an event up, for good. */
  private refuse({ event, handed }: Outgoing, detail: string): void {
    if (handed === undefined) return this.dropped(1)
    const reason = new EventPublisher.Rejected({ detail })
    handed.settle(new EventPublisher.PublishError({ event_id: event.id, reason }))
  }

  delivered({ items }: Delivery): void {
    for (const { handed } of items) handed?.settle()
  }

  skipped({ items }: Delivery): void {
    for (const item of items) {
      this.refuse(item, `the webhook endpoint "${this.endpoint.name}" was resumed without it`)
    }
  }

  /** Up to `max` events in the form in which they are sent; `undefined` once the buffer has ended and is empty. */
  take(max: number): Effect.Effect<ReadonlyArray<Part> | undefined> {
    return Effect.map(this.ring.take(max), (batch) => {
      const parts = batch?.items.flatMap((item) => {
        if (item.handed?.withdrawn === true) {
          item.handed.missing.add(this)
          return []
        }
        try {
          return [partOf(item)]
        } catch (thrown) {
          // An event of somebody's own making, as those of units are always fit for JSON.
          const detail = `it is not fit for JSON: ${Json.describe(thrown)}`
          this.refuse(item, detail)
          this.warn(`The event ${item.event.id} was dropped, as ${detail}`)
          return []
        }
      })
      this.inHand = parts?.length ?? 0
      return parts
    })
  }

  dropped(events: number): void {
    Metrics.drops(`webhook ${this.endpoint.name}`).updateUnsafe(events, this.context)
  }

  attempted(outcome: "delivered" | "failed"): void {
    this.outcomes[outcome].updateUnsafe(1, this.context)
  }

  gauge(value: 0 | 1): void {
    parkedOf(this.endpoint.name).updateUnsafe(value, this.context)
  }

  private warn(message: string): void {
    Effect.logWarning(message).pipe(Effect.runForkWith(this.context))
  }
}

const toReason = (failure: HttpPost.Failure, timeout: Duration.Duration): Reason => {
  switch (failure._tag) {
    case "Unreachable":
      return new Unreachable({ code: failure.code })
    case "Tls":
      return new TlsFailed({ code: failure.code })
    case "TimedOut":
      return new TimedOut({ after_ms: Duration.toMillis(timeout) })
  }
}

type Send = (delivery: Delivery) => Effect.Effect<void, Reason>

/** Sends one delivery, once. */
const sender = (endpoint: Endpoint, { keys, url }: Checked, post: HttpPost.Post): Send => {
  const timeout = timeoutOf(endpoint)
  const contentType = endpoint.mode === "batched" ? batchedType : structuredType
  const own = Object.fromEntries(Object.entries(endpoint.headers ?? {}).map(([name, value]) => [name, revealed(value)]))
  const base = HttpClientRequest.post(url.href, { headers: { "user-agent": "effect-units", ...own } })
  const late = Effect.suspend(() => Effect.fail(new TimedOut({ after_ms: Duration.toMillis(timeout) })))
  const allowed = endpoint.allowPrivateAddresses === true
    ? Effect.void
    : privateAddress(url).pipe(
      Effect.timeoutOrElse({ duration: timeout, orElse: () => late }),
      Effect.flatMap((address) => address === undefined ? Effect.void : Effect.fail(new ForbiddenAddress({ address })))
    )

  return Effect.fnUntraced(function*(delivery) {
    yield* allowed
    // By the clock of this attempt, not of the event: receivers refuse what was signed long ago.
    const timestamp = String(Math.floor((yield* Clock.currentTimeMillis) / 1000))
    const request = base.pipe(
      HttpClientRequest.setBody(HttpBody.uint8Array(delivery.body, contentType)),
      HttpClientRequest.setHeaders({
        [Signature.headers.id]: delivery.id,
        [Signature.headers.timestamp]: timestamp,
        [Signature.headers.signature]: Signature.sign(keys, { id: delivery.id, timestamp, body: delivery.body })
      })
    )
    const answer = yield* Effect.mapError(post(request, timeout), (failure) => toReason(failure, timeout))
    if (answer.redirected || (answer.status >= 300 && answer.status < 400)) {
      return yield* new Redirected({ status: answer.status })
    }
    if (answer.status < 200 || answer.status >= 300) {
      return yield* new Refused({
        status: answer.status,
        ...(answer.retryAfter === undefined ? {} : { retry_after_ms: Duration.toMillis(answer.retryAfter) })
      })
    }
  })
}

/** An endpoint that answers 410 wants no more. */
const isGone = ({ reason }: WebhookError): boolean => reason._tag === "Refused" && reason.status === 410

/** The endpoint's schedule, but not before the time that the endpoint asks for, within bounds. */
const retrying = (endpoint: Endpoint): Schedule.Schedule<unknown, WebhookError> => {
  const schedule: Schedule.Schedule<unknown, WebhookError> = endpoint.retry ?? defaultRetry
  const longest = Duration.fromInputUnsafe(endpoint.maxRetryAfter ?? "1 hour")
  return Schedule.modifyDelay(schedule, ({ duration, input: { reason } }) => {
    const asked = reason._tag === "Refused" ? reason.retry_after_ms : undefined
    return Effect.succeed(
      asked === undefined ? duration : Duration.max(duration, Duration.min(Duration.millis(asked), longest))
    )
  })
}

/** Empties the buffer of an endpoint until it has ended. */
const drain = (
  outlet: Outlet,
  send: Send,
  onParked: Options["onParked"],
  isClosing: () => boolean
): Effect.Effect<void> => {
  const { endpoint } = outlet
  const schedule = retrying(endpoint)
  const [size, deliveries] = endpoint.mode === "batched" ? [endpoint.maxBatch ?? 100, batched] : [1, structured]

  const park = Effect.fnUntraced(function*(error: WebhookError): Effect.fn.Return<Resumed> {
    // Nobody is there to resume it any more.
    if (isClosing()) return yield* Effect.interrupt
    const resumed = Deferred.makeUnsafe<Resumed>()
    const { attempts, waiting } = outlet
    outlet.parked = resumed
    outlet.gauge(1)
    yield* Effect.logError(
      `${error.message}. It is parked after ${attempts} attempts: ${waiting} events wait until it is resumed.`
    )
    if (onParked !== undefined) {
      yield* Effect.catchCause(
        onParked({ endpoint: endpoint.name, attempts, error: error.message, waiting }),
        (cause) => Effect.logError(`onParked failed for the webhook endpoint "${endpoint.name}"`, cause)
      )
    }
    const how = yield* Deferred.await(resumed)
    outlet.parked = undefined
    outlet.retrying = false
    outlet.gauge(0)
    return how
  })

  const attempt = (delivery: Delivery): Effect.Effect<void, WebhookError> =>
    Effect.suspend(() => {
      outlet.retrying = false
      return send(delivery)
    }).pipe(
      Effect.mapError((reason) => new WebhookError({ endpoint: endpoint.name, reason })),
      Effect.tapError((error) => {
        const isFirst = outlet.error === undefined
        outlet.attempted("failed")
        outlet.attempts++
        outlet.retrying = true
        outlet.error = error
        return isFirst ? Effect.logWarning(error.message) : Effect.void
      })
    )

  const deliver = (delivery: Delivery): Effect.Effect<void> =>
    attempt(delivery).pipe(
      Effect.retry({ schedule, until: isGone }),
      Effect.map(() => {
        outlet.delivered(delivery)
        outlet.attempted("delivered")
        outlet.attempts = 0
        outlet.error = undefined
      }),
      Effect.catch((error) =>
        Effect.flatMap(park(error), (how) => {
          outlet.attempts = 0
          if (how === "again") return deliver(delivery)
          outlet.skipped(delivery)
          return Effect.void
        })
      )
    )

  return Effect.gen(function*() {
    while (true) {
      const parts = yield* outlet.take(size)
      if (parts === undefined) return
      for (const delivery of deliveries(parts)) {
        yield* deliver(delivery)
        outlet.inHand -= delivery.items.length
      }
    }
  })
}

const invalid = (endpoint: string, detail: string): WebhookError =>
  new WebhookError({ endpoint, reason: new InvalidSettings({ detail }) })

const make = Effect.fnUntraced(
  function*(options: Options): Effect.fn.Return<
    Context.Context<EventPublisher.EventPublisher | Endpoints>,
    WebhookError,
    HttpClient.HttpClient | Scope.Scope
  > {
    const post = yield* HttpPost.make
    const context = yield* Effect.context<never>()
    const outlets = new Map<string, { readonly outlet: Outlet; readonly send: Send }>()
    for (const endpoint of options.endpoints) {
      const checked = check(endpoint)
      if ("invalid" in checked) return yield* invalid(endpoint.name, checked.invalid)
      if (outlets.has(endpoint.name)) return yield* invalid(endpoint.name, "another endpoint has the same name")
      outlets.set(endpoint.name, {
        outlet: new Outlet(endpoint, context),
        send: sender(endpoint, checked, post)
      })
    }

    let closing = false
    const running = yield* Effect.forEach(outlets.values(), ({ outlet, send }) =>
      Effect.map(
        Effect.forkDetach(drain(outlet, send, options.onParked, () => closing)),
        (fiber) => ({ outlet, fiber })
      ))
    const flush = Effect.gen(function*() {
      closing = true
      for (const { fiber, outlet } of running) {
        outlet.ring.end()
        if (outlet.parked !== undefined) fiber.interruptUnsafe()
      }
      yield* Effect.timeoutOption(
        Effect.forEach(running, ({ fiber }) => Fiber.await(fiber), { discard: true }),
        options.flushTimeout ?? "10 seconds"
      )
      for (const { fiber, outlet } of running) {
        // Not waited for, as the deadline has passed.
        fiber.interruptUnsafe()
        if (outlet.waiting === 0) continue
        outlet.dropped(outlet.waiting)
        yield* Effect.logWarning(
          `The webhook endpoint "${outlet.endpoint.name}" was closed with ${outlet.waiting} events that it does not have.`
        )
      }
    })
    yield* Effect.addFinalizer(() => flush)

    const offer = (event: EventPublisher.Event): void => {
      for (const { outlet } of running) outlet.offer(event)
    }
    /** By the event's id, the one that was given up last at the end. */
    const givenUp = new Map<string, Handed>()
    const giveUp = (id: string, handed: Handed): void => {
      handed.withdrawn = true
      givenUp.set(id, handed)
      const [oldest] = givenUp.keys()
      if (givenUp.size > maxGivenUp && oldest !== undefined) givenUp.delete(oldest)
    }
    // An event that comes again, as from a relay, goes on where it was: an endpoint that has it, or is being sent it, gets it once.
    const hand = (event: EventPublisher.Event): EventPublisher.Receipt | undefined => {
      const wanting = running.flatMap(({ outlet }) => outlet.wants(event) ? [outlet] : [])
      if (wanting.length === 0) return undefined
      const handed = givenUp.get(event.id) ?? new Handed(wanting, (handed) => giveUp(event.id, handed))
      for (const { ring } of handed.missing) {
        if (ring.size < ring.capacity) continue
        const reason = new EventPublisher.BufferFull({ capacity: ring.capacity })
        throw new EventPublisher.PublishError({ event_id: event.id, reason })
      }
      for (const { ring } of handed.missing) ring.offer({ event, handed })
      handed.missing.clear()
      handed.withdrawn = false
      givenUp.delete(event.id)
      return handed.receipt
    }
    const longest = Math.max(0, ...options.endpoints.map((endpoint) => Duration.toMillis(timeoutOf(endpoint))))
    const publisher = yield* EventPublisher.make({
      publish: options.policy === "closed" ? hand : offer,
      policy: options.policy,
      timeout: options.timeout ?? Duration.millis(longest + 5000),
      terminalTimeout: options.terminalTimeout,
      source: options.source,
      maxFieldBytes: options.maxFieldBytes
    })
    const endpoints = Endpoints.of({
      list: Effect.sync(() => running.map(({ outlet }) => outlet.state)),
      resume: (name, options) =>
        Effect.suspend(() => {
          const parked = outlets.get(name)?.outlet.parked
          return parked === undefined
            ? Effect.succeed(false)
            : Deferred.succeed(parked, options?.skip === true ? "skip" : "again")
        })
    })
    return Context.make(EventPublisher.EventPublisher, publisher).pipe(Context.add(Endpoints, endpoints))
  }
)

/**
 * Layer that sends events to HTTP endpoints, over the application's `HttpClient`. Fails with `InvalidSettings` where an address or a
 * secret cannot be used. Where others choose the addresses, take `WebhookNode.layer`.
 *
 * **Example** (Two receivers)
 *
 * ```ts
 * const layer = Webhook.layer({
 *   endpoints: [
 *     { name: "billing", url: "https://billing.example/hooks", secrets: [billingSecret], units: ["inference.chat"] },
 *     { name: "audit", url: "https://audit.example/events", secrets: [newSecret, oldSecret], mode: "batched" }
 *   ]
 * }).pipe(Layer.provide(NodeHttpClient.layerNodeHttpOptions({ keepAlive: true })))
 * ```
 *
 * @category layers
 * @since 0.1.0
 */
export const layer = (
  options: Options
): Layer.Layer<EventPublisher.EventPublisher | Endpoints, WebhookError, HttpClient.HttpClient> =>
  Layer.effectContext(make(options))

/**
 * What becomes of an id that is claimed: it was `new` and is now the caller's to handle, or it is `claimed` by another, or it was
 * `handled` before.
 *
 * @category models
 * @since 0.1.0
 */
export type Claim = "new" | "claimed" | "handled"

/**
 * The ids of deliveries that a receiver has seen.
 *
 * @category models
 * @since 0.1.0
 */
export interface SeenIds {
  /** Claims an id. It may be forgotten after a time in Unix milliseconds, as the delivery is too old from then on. */
  readonly claim: (id: string, until: number) => Effect.Effect<Claim>
  /** Says whether the delivery was handled. One that was not can be claimed again. */
  readonly settle: (id: string, handled: boolean) => Effect.Effect<void>
}

/**
 * Keeps the ids of the newest deliveries in this process, `capacity` at most.
 *
 * **Gotchas**
 *
 * Older ids give way to newer ones. Within the time that deliveries are tolerated, twice `tolerance` at most, no more than `capacity` may
 * come, or the oldest could be repeated. Several processes behind one address need a store that they share.
 *
 * @category constructors
 * @since 0.1.0
 */
export const makeSeenIds = (options: { readonly capacity: number }): SeenIds => {
  const seen = new Map<string, { readonly until: number; handled: boolean }>()
  return {
    claim: (id, until) =>
      Effect.map(Clock.currentTimeMillis, (now) => {
        const known = seen.get(id)
        if (known !== undefined && known.until >= now) return known.handled ? "handled" : "claimed"
        for (const [oldest, entry] of seen) {
          if (entry.until >= now && seen.size < options.capacity) break
          seen.delete(oldest)
        }
        seen.set(id, { until, handled: false })
        return "new"
      }),
    settle: (id, handled) =>
      Effect.sync(() => {
        const entry = seen.get(id)
        if (entry === undefined) return
        if (handled) entry.handled = true
        else seen.delete(id)
      })
  }
}

/**
 * Where `verify` and `receive` keep the ids that they have seen. Default: 100,000 of them in this process. Give each sender a store of
 * its own, so that none can use up the ids of another.
 *
 * @category references
 * @since 0.1.0
 */
export const CurrentSeenIds: Context.Reference<SeenIds> = Context.Reference<SeenIds>(
  "effect-units/publishers/Webhook/CurrentSeenIds",
  { defaultValue: () => makeSeenIds({ capacity: 100_000 }) }
)

/**
 * A request to verify.
 *
 * @category models
 * @since 0.1.0
 */
export interface Request {
  /** The secrets that the sender may sign with. One signature by one of them is enough. */
  readonly secrets: NonEmptyReadonlyArray<Redacted.Redacted>
  /** By name, in any case. */
  readonly headers: Readonly<Record<string, string | ReadonlyArray<string> | undefined>>
  /** The body as it came, byte by byte: what was parsed and written again has another signature. */
  readonly body: string | Uint8Array
  /** How far the time of the signature may lie from this machine's. Default 5 minutes. */
  readonly tolerance?: Duration.Input | undefined
}

const failed = (reason: Reason): Effect.Effect<never, WebhookError> => Effect.fail(new WebhookError({ reason }))

const header = (headers: Headers.Headers, name: string, form: RegExp): Effect.Effect<string, WebhookError> => {
  const value = headers[name]
  return value !== undefined && form.test(value) ? Effect.succeed(value) : failed(new InvalidHeader({ header: name }))
}

const decodeEvent = (json: unknown): Effect.Effect<EventPublisher.Event, WebhookError> => {
  const data = Predicate.hasProperty(json, "data") ? json.data : undefined
  const event: Effect.Effect<EventPublisher.Event, Schema.SchemaError> = Predicate.hasProperty(data, "event_type")
    ? ExecutionEvent.fromCloudEvent(json)
    : DomainEvent.fromCloudEvent(json)
  // A schema's own message shows the values that do not fit.
  return Effect.catchTag(
    event,
    "SchemaError",
    () => failed(new InvalidBody({ detail: "an entry is no event of this library in the form of a CloudEvent" }))
  )
}

const decodeBody = Effect.fnUntraced(function*(
  body: Uint8Array,
  contentType: string
): Effect.fn.Return<ReadonlyArray<EventPublisher.Event>, WebhookError> {
  const [mediaType = ""] = contentType.split(";")
  const json = yield* Effect.try({
    try: (): unknown => JSON.parse(new TextDecoder("utf-8", { fatal: true }).decode(body)),
    catch: () => new WebhookError({ reason: new InvalidBody({ detail: "it is not JSON" }) })
  })
  switch (mediaType.trim().toLowerCase()) {
    case structuredType:
      return [yield* decodeEvent(json)]
    case batchedType:
      return Array.isArray(json)
        ? yield* Effect.forEach(json, decodeEvent)
        : yield* failed(new InvalidBody({ detail: "a batch is a list" }))
    default:
      return yield* failed(new InvalidBody({ detail: `the content type is ${structuredType} or ${batchedType}` }))
  }
})

/**
 * Verifies a request, handles its events, and remembers the delivery once they are handled.
 *
 * **Details**
 *
 * Fails with `InvalidHeader`, `SignatureMismatch`, `OutOfTolerance`, `Replayed` or `InvalidBody`; `responseStatus` of the error is the
 * status to answer with. What was not verified is not parsed. A delivery whose handler fails, dies or is interrupted is forgotten, so
 * that the sender's next attempt is handled; one that comes while the first is being handled is refused for now. So events are handled at
 * least once.
 *
 * **Gotchas**
 *
 * A delivery that the sender made anew, after a restart, has another `webhook-id`: deduplicate on the `id` of the events, too.
 *
 * **Example** (Behind any HTTP server)
 *
 * ```ts
 * const answer = Webhook.receive({ secrets, headers: request.headers, body }, (events) => Effect.forEach(events, store)).pipe(
 *   Effect.as(204),
 *   Effect.catchTag("WebhookError", (error) => Effect.succeed(error.responseStatus))
 * )
 * ```
 *
 * @category receivers
 * @since 0.1.0
 */
export const receive = Effect.fnUntraced(function*<A, E, R>(
  request: Request,
  handler: (events: ReadonlyArray<EventPublisher.Event>) => Effect.Effect<A, E, R>
): Effect.fn.Return<A, E | WebhookError, R> {
  const keys: Array<Signature.Key> = []
  for (const secret of request.secrets) {
    const key = Signature.key(secret)
    if ("invalid" in key) return yield* failed(new InvalidSettings({ detail: key.invalid }))
    keys.push(key)
  }
  const headers = Headers.fromInput(request.headers)
  // Printable characters but the full stop, which ends the id in what is signed.
  const id = yield* header(headers, Signature.headers.id, /^[!-\-/-~]{1,256}$/)
  const timestamp = yield* header(headers, Signature.headers.timestamp, /^\d{1,12}$/)
  const signature = yield* header(headers, Signature.headers.signature, /./)
  const body = typeof request.body === "string" ? Buffer.from(request.body) : request.body
  if (!Signature.verify(keys, { id, timestamp, body }, signature)) return yield* failed(new SignatureMismatch())

  const tolerance = Duration.toMillis(request.tolerance ?? "5 minutes")
  const signedAt = Number(timestamp) * 1000
  const age = (yield* Clock.currentTimeMillis) - signedAt
  if (Math.abs(age) > tolerance) {
    return yield* failed(
      new OutOfTolerance({ age_seconds: Math.round(age / 1000), tolerance_seconds: tolerance / 1000 })
    )
  }

  const seen = yield* CurrentSeenIds
  return yield* Effect.uninterruptibleMask((restore) =>
    Effect.flatMap(seen.claim(id, signedAt + tolerance), (claim) => {
      if (claim !== "new") return failed(new Replayed({ webhook_id: id, handled: claim === "handled" }))
      return decodeBody(body, headers["content-type"] ?? "").pipe(
        Effect.flatMap(handler),
        restore,
        Effect.onExit((exit) => seen.settle(id, Exit.isSuccess(exit)))
      )
    })
  )
})

/**
 * Verifies a request and gives its events; see `receive`. The delivery counts as handled at once: where handling can fail, use `receive`.
 *
 * @category receivers
 * @since 0.1.0
 */
export const verify = (request: Request): Effect.Effect<ReadonlyArray<EventPublisher.Event>, WebhookError> =>
  receive(request, Effect.succeed)
