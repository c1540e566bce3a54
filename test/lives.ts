/**
 * The lives of units: how each one completes, meets each of the failures that it declares, and is interrupted. A domain lists
 * them beside its tests, and `units.test.ts` plays all of them.
 */
import {
  Context,
  Effect,
  Exit,
  Fiber,
  Layer,
  Logger,
  Random,
  References,
  Schema,
  type Scope,
  Stream,
  Tracer
} from "effect"
import { TestClock, TestConsole } from "effect/testing"
import * as Crypto from "node:crypto"
import * as fs from "node:fs"
import * as path from "node:path"
import { DatabaseSync } from "node:sqlite"
import { inspect } from "node:util"
import * as DomainEvent from "../src/DomainEvent.ts"
import * as EventPublisher from "../src/EventPublisher.ts"
import * as ExecutionEvent from "../src/ExecutionEvent.ts"
import * as Testing from "../src/testing/index.ts"
import type * as Unit from "../src/Unit.ts"

/** One way for a unit to end. */
export interface Case<U extends Unit.Any, R> {
  /** Brings the host to where the unit ends in this way, and gives the input. */
  readonly given: Effect.Effect<Unit.Input<U>, unknown, R | EventPublisher.EventPublisher | Scope.Scope>
  /** What happens while the unit runs. An interruption comes after it. */
  readonly meanwhile?: Effect.Effect<unknown, unknown, R | Scope.Scope>
  /** The types of the domain events that the unit publishes. */
  readonly tells?: ReadonlyArray<string>
  /** That tables or files are others afterwards, although the unit did not complete. */
  readonly leavesTraces?: boolean
}

type Tag<E> = E extends { readonly _tag: infer T extends string } ? T : never

/** All ends of a unit. The compiler asks for each declared failure, and so does `gaps`. */
export interface Lives<U extends Unit.Any, R> {
  readonly completed: Case<U, R>
  readonly failures: { readonly [T in Tag<Unit.Error<U>>]: Case<U, R> }
  readonly interrupted: Case<U, R>
}

/** Where the units of a domain run: every layer of a domain has one. */
export class Host extends Context.Service<Host, {
  /** The folder of the embedded services, with their database `units.db`. */
  readonly directory: string
  /** What is another text on each host: its folders and addresses. It is read at the end. */
  readonly ownTexts: ReadonlyArray<string>
  /** What must not be seen anywhere. */
  readonly secrets: ReadonlyArray<string>
}>()("test/Host") {}

/** What was to be seen of one run. */
export interface Observed {
  readonly exit: Exit.Exit<unknown, unknown>
  /** The events of the execution, in their order. */
  readonly events: ReadonlyArray<EventPublisher.Event>
  /** What the caller got and the events, as text without what differs from host to host and run to run. */
  readonly comparable: string
  /** Tables and files, before and after. */
  readonly before: string
  readonly after: string
  /** Everything that left the unit, with what must not be in it. */
  readonly sinks: string
  readonly secrets: ReadonlyArray<string>
}

/** One life of one unit, ready to be run: called by its function, or by `execute` with JSON. */
export interface Life {
  readonly unit: Unit.Any
  readonly end: "completed" | "interrupted" | { readonly tag: string }
  readonly tells: ReadonlyArray<string>
  readonly leavesTraces: boolean
  readonly run: (by: "call" | "wire") => Effect.Effect<Observed>
}

/** The tags of the failures that a unit declares. */
export const declaredFailures = (unit: Unit.Any): ReadonlyArray<string> => {
  const ast = unit.error.ast
  const members = ast._tag === "Union" ? ast.types : [ast]
  return members.map((member) => {
    const fields = member._tag === "Declaration" ? member.typeParameters[0] : undefined
    const tag = fields?._tag === "Objects" ? fields.propertySignatures.find(({ name }) => name === "_tag") : undefined
    if (tag?.type._tag !== "Literal") throw new Error(`${unit.name} declares a failure without a tag`)
    return String(tag.type.literal)
  })
}

/** What is missing, in words: an end of a unit that nothing shows. */
export const gaps = (units: ReadonlyArray<Unit.Any>, lives: ReadonlyArray<Life>): ReadonlyArray<string> =>
  units.flatMap((unit) => {
    const ends = lives.filter((life) => life.unit === unit).map(({ end }) => typeof end === "string" ? end : end.tag)
    return ["completed", "interrupted", ...declaredFailures(unit)]
      .filter((end) => !ends.includes(end))
      .map((end) => `${unit.name}: ${end}`)
  })

/** The lives of a domain over its layer, which is built anew for each run. */
export const domain = <R>(layer: Layer.Layer<R | Host, unknown>) => {
  const life = <U extends Unit.Any>(unit: U, end: Life["end"], shown: Case<U, R>): Life => ({
    unit,
    end,
    tells: shown.tells ?? [],
    leavesTraces: shown.leavesTraces ?? false,
    run: (by) =>
      Effect.suspend(() => {
        const sinks = makeSinks()
        return observe(unit, end, shown, by, sinks).pipe(
          Effect.provide(Layer.provideMerge(layer, Layer.merge(sinks.layer, publisher))),
          Random.withSeed("lives"),
          Effect.scoped,
          // Of its own: times are compared with those of another run.
          Effect.provide(TestClock.layer()),
          Effect.orDie
        )
      })
  })
  return <U extends Unit.Any>(unit: U, lives: Lives<U, R>): ReadonlyArray<Life> => [
    life(unit, "completed", lives.completed),
    // The types of `Object.entries` forget that there is a case for each tag.
    ...Object.entries<Case<U, R>>(lives.failures).map(([tag, shown]) => life(unit, { tag }, shown)),
    life(unit, "interrupted", lives.interrupted)
  ]
}

const publisher = EventPublisher.combine(Testing.layerTest, EventPublisher.layerConsole)

/** Where else than into events something could get: logs of every level, and spans. */
const makeSinks = () => {
  const logs: Array<unknown> = []
  const spans: Array<Tracer.Span> = []
  const tracer = Tracer.make({
    span: (options) => {
      const span = new Tracer.NativeSpan(options)
      spans.push(span)
      return span
    }
  })
  const layer = Layer.mergeAll(
    Logger.layer([Logger.make(({ cause, message }) => void logs.push(message, cause))]),
    Layer.succeed(References.MinimumLogLevel, "All"),
    Layer.succeed(Tracer.Tracer, tracer)
  )
  return { logs, spans, layer }
}

const observe = Effect.fnUntraced(function*<U extends Unit.Any, R>(
  unit: U,
  end: Life["end"],
  { given, meanwhile = Effect.void }: Case<U, R>,
  by: "call" | "wire",
  { logs, spans }: ReturnType<typeof makeSinks>
) {
  const host = yield* Host
  const { directory, secrets } = host
  const test = yield* Testing.TestEvents
  const input = yield* given
  const before = snapshot(directory)
  const earlier = yield* test.executions
  const fiber = yield* Effect.forkChild(yield* runnable(unit, input, by))
  const started = Effect.map(
    test.executions,
    (all) => all.find((one) => one.unit_name === unit.name && !earlier.some((other) => other.started === one.started))
  )
  let execution = yield* started
  for (; execution === undefined; execution = yield* started) yield* Effect.yieldNow
  yield* meanwhile
  if (end === "interrupted") yield* Fiber.interrupt(fiber)
  const exit = yield* Fiber.await(fiber)
  yield* test.assertLifecycle
  const everything = [...yield* test.events, ...yield* test.domainEvents]
  const { correlation_id } = execution
  const events = everything.filter((event) => event.correlation_id === correlation_id)
    .sort((a, b) => a.sequence - b.sequence)
  const after = snapshot(directory)
  const result = yield* resultOf(unit, exit, by)
  const seen = {
    exit,
    events: everything.map(toCloudEvent),
    console: [...yield* TestConsole.logLines, ...yield* TestConsole.errorLines],
    logs,
    spans: spans.map(({ attributes, name, status }) => ({ attributes, name, status })),
    after
  }
  const observed: Observed = {
    exit,
    events,
    // By their places, which do not depend on how long they are; the longer ones first, as they may hold shorter ones.
    comparable: [...host.ownTexts.entries()].toSorted(([, a], [, b]) => b.length - a.length).reduce(
      (text, [index, own]) => text.replaceAll(own, `<${index}>`),
      JSON.stringify([result, events.map(lasting)], undefined, 2)
    ),
    before,
    after,
    sinks: inspect(seen, { depth: 20, maxArrayLength: null, maxStringLength: null, breakLength: Infinity }),
    secrets
  }
  return observed
})

/** The unit as its caller runs it. Of a stream, the list of its chunks. */
const runnable = Effect.fnUntraced(function*<U extends Unit.Any>(unit: U, input: Unit.Input<U>, by: "call" | "wire") {
  // A unit is a function that gives an Effect or a Stream, which `Any` does not say. Its services are those of the host.
  const call = unit as unknown as (input: unknown) => unknown
  const json = Schema.encodeUnknownEffect(Schema.toCodecJson(unit.input))
  const made = by === "call"
    ? call(input)
    // What is no valid input has no JSON of its own, and goes as it is.
    : unit.execute(yield* Effect.orElseSucceed(json(input), () => input))
  const stream = made as Stream.Stream<unknown, unknown>
  return Stream.isStream(made) ? Stream.runCollect(stream) : made as Effect.Effect<unknown, unknown>
})

/** What the caller got, as JSON. `execute` gives JSON already. */
const resultOf = (unit: Unit.Any, exit: Exit.Exit<unknown, unknown>, by: "call" | "wire") =>
  Exit.match(exit, {
    onSuccess: (value) => {
      const schema = unit.chunk === undefined ? unit.output : Schema.Array(unit.chunk)
      return by === "wire" ? Effect.succeed(value) : Schema.encodeUnknownEffect(Schema.toCodecJson(schema))(value)
    },
    onFailure: (cause) => Effect.succeed(cause.reasons.map((reason) => reason._tag))
  })

const toCloudEvent = (event: EventPublisher.Event) =>
  ExecutionEvent.isExecutionEvent(event) ? ExecutionEvent.toCloudEvent(event) : DomainEvent.toCloudEvent(event)

/** What an event has in common with that of another run. */
const lasting = (event: EventPublisher.Event): unknown => {
  if (!ExecutionEvent.isExecutionEvent(event)) return { type: event.type, payload: event.payload }
  const { event_type, kind, unit_name } = event
  switch (event.event_type) {
    case "execution_started":
      return { event_type, kind, unit_name, input: event.input }
    case "execution_completed":
      return { event_type, kind, unit_name, output: event.output }
    case "execution_failed":
      return { event_type, kind, unit_name, error: event.error, failure: event.failure }
  }
}

/** The tables of the database, and the files beside it. */
const snapshot = (directory: string): string => {
  const db = new DatabaseSync(path.join(directory, "units.db"), { readOnly: true })
  try {
    const tables = db.prepare("SELECT name FROM sqlite_master WHERE type = 'table' ORDER BY name").all()
    const rows = tables.map(({ name }) => [name, db.prepare(`SELECT * FROM "${String(name)}"`).all()])
    const files = fs.readdirSync(directory, { recursive: true, withFileTypes: true })
      .filter((entry) => entry.isFile() && !entry.name.startsWith("units.db"))
      .map(({ name, parentPath }) => path.join(parentPath, name)).sort()
      .map((file) => [file, Crypto.hash("sha256", fs.readFileSync(file))])
    return JSON.stringify([rows, files], undefined, 2)
  } finally {
    db.close()
  }
}
