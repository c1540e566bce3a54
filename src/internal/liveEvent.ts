/**
 * Events as running units publish them: the raw values and what it takes to encode them, nothing computed before it is asked for.
 *
 * Their getters give the fields of the wire, so a live event is an `ExecutionEvent` or a `DomainEvent` to whoever reads it.
 *
 * @since 0.1.0
 */
import * as Cause from "effect/Cause"
import type * as Clock from "effect/Clock"
import type * as Schema from "effect/Schema"
import type * as Tracer from "effect/Tracer"
import type { DomainEvent } from "../DomainEvent.ts"
import type { Attributes, Execution, Surroundings } from "../Execution.ts"
import type {
  ExecutionCompleted,
  ExecutionEvent,
  ExecutionFailed,
  ExecutionStarted,
  Failure
} from "../ExecutionEvent.ts"
import * as Encode from "./encode.ts"
import { LazyId, type Tick } from "./ids.ts"
import * as Json from "./json.ts"

/**
 * What events need to know of a unit.
 *
 * @internal
 */
export interface UnitInfo {
  readonly name: string
  readonly domain: string
  readonly kind: "command" | "query"
  readonly encodeInput: Encode.Encoder
  readonly encodeOutput: Encode.Encoder
  readonly encodeError: Encode.Encoder
}

let rootsStarted = 0

let wallClock: Clock.Clock | undefined
let wallTick: Tick = { millis: 0 }
let nextTickNanos = 0n

/**
 * The wall time at a monotonic time. Events tell time in milliseconds, so one reading serves every execution that starts within
 * one: under load, most of them.
 */
const wallTime = (clock: Clock.Clock, nanos: bigint): Tick => {
  if (clock !== wallClock || nanos >= nextTickNanos) {
    wallClock = clock
    nextTickNanos = nanos + 1_000_000n
    wallTick = { millis: clock.currentTimeMillisUnsafe() }
  }
  return wallTick
}

/**
 * How many root executions have started in this process so far.
 *
 * @internal
 */
export const rootCount = (): number => rootsStarted

const w3c = (id: string | undefined, digits: number): string | undefined =>
  id !== undefined && id.length === digits && /^[0-9a-f]+$/.test(id) ? id : undefined

/** A span whose ids are those of W3C Trace Context. */
const contextOf = (span: Tracer.AnySpan | undefined): Tracer.AnySpan | undefined =>
  w3c(span?.traceId, 32) === undefined || w3c(span?.spanId, 16) === undefined ? undefined : span

// Fields below are declared, not defined: a defined field is written twice, first as `undefined`, and these are made for every call.

/** @internal */
export class LiveExecution implements Execution, Surroundings {
  declare readonly unit: UnitInfo
  declare readonly start: Tick
  declare readonly attributes: Attributes | undefined
  declare readonly generateId: ((startMillis: number) => string) | undefined
  declare readonly span: Tracer.AnySpan | undefined
  declare readonly limits: Json.Limits
  declare readonly id: LazyId
  declare private readonly clock: Clock.Clock
  declare private readonly startNanos: bigint
  // Ids, not the executions themselves: a chain of daemons must not keep all of its ancestors alive.
  declare readonly parentId: LazyId | undefined
  declare readonly rootId: LazyId
  /** What says which trace the whole tree is in: the span around its root, or an execution from elsewhere. */
  declare private readonly origin: Tracer.AnySpan | Execution | undefined
  /** The number of its root execution in the order of their starts; what tells a whole tree from one that was joined midway. */
  declare readonly rootOrder: number
  /** Known only where the input may hold secrets: what else is serialised must not repeat them. */
  declare readonly secretInput: unknown

  constructor(
    unit: UnitInfo,
    clock: Clock.Clock,
    surroundings: Surroundings,
    span: Tracer.AnySpan | undefined,
    limits: Json.Limits,
    secretInput: unknown
  ) {
    const startNanos = clock.monotonicTimeNanosUnsafe()
    const start = wallTime(clock, startNanos)
    const parent = surroundings.execution
    const generateId = surroundings.generateId
    this.unit = unit
    this.start = start
    this.attributes = surroundings.attributes
    this.generateId = generateId
    this.span = span
    this.limits = limits
    this.id = new LazyId(start, generateId === undefined ? undefined : generateId(start.millis))
    this.secretInput = secretInput
    if (parent === undefined) {
      this.parentId = undefined
      this.rootId = this.id
      this.origin = span
      this.rootOrder = ++rootsStarted
    } else if (parent instanceof LiveExecution) {
      this.parentId = parent.id
      this.rootId = parent.rootId
      this.origin = parent.origin
      this.rootOrder = parent.rootOrder
    } else {
      // A parent from elsewhere: for those who watch this process, the tree begins here.
      this.parentId = new LazyId(start, parent.correlation_id)
      this.rootId = new LazyId(start, parent.root_id)
      this.origin = parent.trace_id === undefined ? span : parent
      this.rootOrder = ++rootsStarted
    }
    this.clock = clock
    this.startNanos = startNanos
  }

  /** The surroundings of what runs inside of this execution are the execution itself. */
  get execution(): Execution {
    return this
  }

  /** Whole nanoseconds since the start. A clock that was replaced or set back does not make them less than none. */
  elapsed(): number {
    return Math.max(0, Number(this.clock.monotonicTimeNanosUnsafe() - this.startNanos))
  }

  get correlation_id(): string {
    return this.id.value
  }
  get parent_id(): string | undefined {
    return this.parentId?.value
  }
  get root_id(): string {
    return this.rootId.value
  }
  get trace_id(): string | undefined {
    const { origin } = this
    if (origin === undefined) return undefined
    return "traceId" in origin ? contextOf(origin)?.traceId : w3c(origin.trace_id, 32)
  }
  get unit_name(): string {
    return this.unit.name
  }
  get domain(): string {
    return this.unit.domain
  }
  get kind(): "command" | "query" {
    return this.unit.kind
  }
}

/** The attributes as the wire takes them, whatever a program without types has put there. */
const attributesOf = (
  attributes: Attributes | undefined,
  execution: Execution | undefined,
  limits: Json.Limits
): Attributes | undefined => {
  if (attributes === undefined) return undefined
  const secrets = execution instanceof LiveExecution ? secretsOf(execution) : new Set<string>()
  const json = Encode.scrub(
    Object.fromEntries(Object.entries(attributes).map(([name, value]) => [name, Json.fromUnknown(value, limits)])),
    secrets
  )
  return Object.fromEntries(
    Object.entries(json ?? {}).map(([name, value]) => [name, typeof value === "object" ? JSON.stringify(value) : value])
  )
}

const timestamp = (millis: number): string => {
  const date = new Date(millis)
  return Number.isNaN(date.getTime()) ? new Date(0).toISOString() : date.toISOString()
}

/** Base of the live events. Subclasses add the payload. */
abstract class Live {
  /** Set by the publisher that numbers the event. */
  declare source: string
  declare sequence: number

  constructor() {
    this.source = ""
    this.sequence = 0
  }
}

abstract class LiveExecutionEvent extends Live {
  declare readonly execution: LiveExecution

  constructor(execution: LiveExecution) {
    super()
    this.execution = execution
  }

  get kind(): "command" | "query" {
    return this.execution.unit.kind
  }
  get domain(): string {
    return this.execution.unit.domain
  }
  get unit_name(): string {
    return this.execution.unit.name
  }
  get correlation_id(): string {
    return this.execution.id.value
  }
  get parent_id(): string | undefined {
    return this.execution.parentId?.value
  }
  get root_id(): string {
    return this.execution.rootId.value
  }
  get trace_id(): string | undefined {
    return contextOf(this.execution.span)?.traceId ?? this.execution.trace_id
  }
  get span_id(): string | undefined {
    return contextOf(this.execution.span)?.spanId
  }
  get attributes(): Attributes | undefined {
    return attributesOf(this.execution.attributes, this.execution, this.execution.limits)
  }
}

/** @internal */
export class LiveStarted extends LiveExecutionEvent {
  declare private readonly value: unknown
  declare private encoded: Schema.Json | undefined

  constructor(execution: LiveExecution, value: unknown) {
    super(execution)
    this.value = value
    this.encoded = undefined
  }

  get id(): string {
    return `${this.execution.id.value}:started`
  }
  get event_type(): "execution_started" {
    return "execution_started"
  }
  get timestamp(): string {
    return timestamp(this.execution.start.millis)
  }
  get input(): Schema.Json | undefined {
    if (this.value === undefined) return undefined
    return this.encoded ??= encode(this.execution.unit.encodeInput, this.value, this.execution.limits, this.execution)
  }
}

abstract class LiveTerminal extends LiveExecutionEvent {
  declare readonly duration_ns: number
  declare readonly chunks: number | undefined

  constructor(execution: LiveExecution, durationNs: number, chunks: number | undefined) {
    super(execution)
    this.duration_ns = durationNs
    this.chunks = chunks
  }

  get duration_ms(): number {
    return Math.floor(this.duration_ns / 1e6)
  }
  // The start by the wall clock and the duration by the monotonic one: an event never lies before the start of its execution.
  get timestamp(): string {
    return timestamp(this.execution.start.millis + this.duration_ms)
  }
}

/** @internal */
export class LiveCompleted extends LiveTerminal {
  declare private readonly value: unknown
  declare private encoded: Schema.Json | undefined

  constructor(execution: LiveExecution, durationNs: number, chunks: number | undefined, value: unknown) {
    super(execution, durationNs, chunks)
    this.value = value
    this.encoded = undefined
  }

  get id(): string {
    return `${this.execution.id.value}:completed`
  }
  get event_type(): "execution_completed" {
    return "execution_completed"
  }
  get output(): Schema.Json | undefined {
    if (this.value === undefined) return undefined
    return this.encoded ??= encode(this.execution.unit.encodeOutput, this.value, this.execution.limits, this.execution)
  }
}

/** @internal */
export class LiveFailed extends LiveTerminal {
  declare private readonly cause: Cause.Cause<unknown>
  declare private described: { readonly error: string; readonly failure: Failure } | undefined

  constructor(
    execution: LiveExecution,
    durationNs: number,
    chunks: number | undefined,
    cause: Cause.Cause<unknown>
  ) {
    super(execution, durationNs, chunks)
    this.cause = cause
    this.described = undefined
  }

  get id(): string {
    return `${this.execution.id.value}:failed`
  }
  get event_type(): "execution_failed" {
    return "execution_failed"
  }
  get error(): string {
    return (this.described ??= describe(this.cause, this.execution)).error
  }
  get failure(): Failure {
    return (this.described ??= describe(this.cause, this.execution)).failure
  }
}

/** @internal */
export class LiveDomainEvent extends Live {
  declare readonly type: string
  declare readonly domain: string
  declare readonly execution: Execution | undefined
  declare private readonly span: Tracer.AnySpan | undefined
  declare private readonly value: unknown
  declare private readonly encode: Encode.Encoder
  declare private readonly millis: number
  declare private readonly lazyId: LazyId
  declare private readonly limits: Json.Limits
  declare private readonly surrounding: Attributes | undefined
  declare private encoded: Schema.Json | undefined

  constructor(options: {
    readonly type: string
    readonly domain: string
    readonly value: unknown
    readonly encode: Encode.Encoder
    readonly clock: Clock.Clock
    readonly surroundings: Surroundings
    readonly span: Tracer.AnySpan | undefined
    readonly limits: Json.Limits
  }) {
    super()
    this.type = options.type
    this.domain = options.domain
    this.value = options.value
    this.encode = options.encode
    const { execution } = options.surroundings
    // By the clock of its execution, so that it never lies after that one's end.
    this.millis = execution instanceof LiveExecution
      ? execution.start.millis + Math.floor(execution.elapsed() / 1e6)
      : options.clock.currentTimeMillisUnsafe()
    this.execution = execution
    this.span = options.span
    this.surrounding = options.surroundings.attributes
    this.limits = options.limits
    this.lazyId = new LazyId({ millis: this.millis }, undefined)
    this.encoded = undefined
  }

  get id(): string {
    return this.lazyId.value
  }
  get timestamp(): string {
    return timestamp(this.millis)
  }
  get correlation_id(): string | undefined {
    return this.execution?.correlation_id
  }
  get root_id(): string | undefined {
    return this.execution?.root_id
  }
  get unit_name(): string | undefined {
    return this.execution?.unit_name
  }
  get trace_id(): string | undefined {
    return contextOf(this.span)?.traceId ?? this.execution?.trace_id
  }
  get span_id(): string | undefined {
    return contextOf(this.span)?.spanId
  }
  get attributes(): Attributes | undefined {
    return attributesOf(this.surrounding, this.execution, this.limits)
  }
  get payload(): Schema.Json {
    return this.encoded ??= encode(this.encode, this.value, this.limits, this.execution)
  }
}

/** The strings of the input that its Schema calls secret. */
const secretsOf = (execution: LiveExecution): Set<string> => {
  const secrets = new Set<string>()
  if (execution.secretInput !== undefined) {
    execution.unit.encodeInput(execution.secretInput, { limits: execution.limits, secrets })
  }
  return secrets
}

const encode = (
  encoder: Encode.Encoder,
  value: unknown,
  limits: Json.Limits,
  execution: Execution | undefined
): Schema.Json => {
  const secrets = execution instanceof LiveExecution ? secretsOf(execution) : new Set<string>()
  return Encode.scrub(encoder(value, { limits, secrets }), secrets)
}

/** A property, where it can be read. */
const read = (value: unknown, name: string): unknown => {
  if ((typeof value !== "object" || value === null) && typeof value !== "function") return undefined
  const entry = Json.property(value, name)
  return entry._tag === "value" ? entry.value : undefined
}

const longestMessage = 1000

const describe = (
  cause: Cause.Cause<unknown>,
  execution: LiveExecution
): { readonly error: string; readonly failure: Failure } => {
  const { limits, unit } = execution
  const secrets = secretsOf(execution)
  const target = { limits, secrets }
  const shown = (value: unknown): string => {
    const json = Encode.scrub(Json.fromUnknown(value, limits), secrets)
    return typeof json === "string" ? json : JSON.stringify(json)
  }
  const messageOf = (error: unknown): string => {
    const message = typeof error === "string" ? error : read(error, "message")
    if (typeof message === "string") return shown(message)
    const json = shown(error)
    return json.length > longestMessage ? `${json.slice(0, longestMessage)}...` : json
  }
  const text = (name: "tag" | "code", value: unknown) => typeof value === "string" ? { [name]: shown(value) } : {}

  // Of several reasons the first typed failure counts, then the first defect: what `Cause.squash` gives the caller, too.
  const fail = cause.reasons.find(Cause.isFailReason)
  if (fail !== undefined) {
    // First, as it finds the secrets that the error holds itself.
    const value = unit.encodeError(fail.error, target)
    const retryable = read(fail.error, "retryable")
    return {
      error: messageOf(fail.error),
      failure: {
        kind: "fail",
        ...text("tag", read(fail.error, "_tag")),
        ...text("code", read(fail.error, "code")),
        ...(typeof retryable === "boolean" ? { retryable } : {}),
        value: Encode.scrub(value, secrets)
      }
    }
  }
  const die = cause.reasons.find(Cause.isDieReason)
  if (die !== undefined) {
    return {
      error: messageOf(die.defect),
      failure: { kind: "die", ...text("tag", read(die.defect, "_tag") ?? read(die.defect, "name")) }
    }
  }
  return { error: "The execution was interrupted", failure: { kind: "interrupt" } }
}

type Reads<A> = { readonly [K in keyof A]: A[K] | undefined }

/**
 * A live event as its readers see it.
 *
 * @internal
 */
export const asExecutionEvent = (
  event: Reads<ExecutionStarted> | Reads<ExecutionCompleted> | Reads<ExecutionFailed>
): ExecutionEvent =>
  // Safe: the parameter proves every field. A getter can give `undefined` where the wire leaves the field out, which reads the
  // same, and `toJson` leaves it out.
  event as ExecutionEvent

/**
 * A live domain event as its readers see it.
 *
 * @internal
 */
export const asDomainEvent = (event: Reads<DomainEvent>): DomainEvent =>
  // Safe for the same reason.
  event as DomainEvent

/**
 * Gives an event the next number of a source, unless it has one.
 *
 * @internal
 */
export const number = (event: object, counter: { readonly source: string; sequence: number }): void => {
  // Live events alone carry the number 0, until their first publisher numbers them; what was decoded has its number.
  const live = event as { source: string; sequence: number }
  if (live.sequence === 0) {
    live.source = counter.source
    live.sequence = ++counter.sequence
  }
}

/**
 * The event under the next number of a source: itself where it has none yet, a copy where another source numbered it.
 *
 * @internal
 */
export const renumber = <E extends object>(event: E, counter: { readonly source: string; sequence: number }): E => {
  if (event instanceof Live && event.sequence === 0) {
    number(event, counter)
    return event
  }
  const copy: E = Object.assign(Object.create(Object.getPrototypeOf(event)), event)
  return Object.assign(copy, { source: counter.source, sequence: ++counter.sequence })
}

/**
 * Whether an event belongs to a tree of executions that began after `count` roots had. Events from elsewhere always do.
 *
 * @internal
 */
export const beganAfter = (event: object, count: number): boolean => {
  const execution = event instanceof LiveExecutionEvent || event instanceof LiveDomainEvent
    ? event.execution
    : undefined
  return !(execution instanceof LiveExecution) || execution.rootOrder > count
}
