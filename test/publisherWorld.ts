/** A publisher with all that it does besides publishing in view: what it counts, what it logs, and its closing. */
import { Context, Effect, Exit, Layer, Logger, Metric, Scope } from "effect"
import * as EventPublisher from "../src/EventPublisher.ts"
import { instrumentEffect } from "../src/instrument.ts"

export type Event = EventPublisher.Event

/** An event in short: `test.unit started`, or the type of a domain event. */
export const short = (event: Event): string =>
  "event_type" in event ? `${event.unit_name} ${event.event_type.slice("execution_".length)}` : event.type

export const sequences = (events: ReadonlyArray<Event>): ReadonlyArray<number> => events.map(({ sequence }) => sequence)

export const range = (from: number, to: number): ReadonlyArray<number> =>
  Array.from({ length: to - from + 1 }, (_, index) => from + index)

export const named = <A, E, R>(name: string, effect: Effect.Effect<A, E, R>) => instrumentEffect(effect, { name })

/** A unit that does nothing. */
export const idle = named("test.idle", Effect.void)

export const unavailable = (event: Event): EventPublisher.PublishError =>
  new EventPublisher.PublishError({
    event_id: event.id,
    reason: new EventPublisher.Unavailable({ detail: "no connection" })
  })

export interface World<Services> {
  readonly publisher: EventPublisher.Publisher
  readonly context: Context.Context<Services>
  /** Runs units under the publisher. */
  readonly run: <A, E, R>(self: Effect.Effect<A, E, R>) => Effect.Effect<A, E, Exclude<R, Services>>
  readonly close: Effect.Effect<void>
  /** Counters that are not zero: `failures <reason>`, `drops <buffer>`, `executions <outcome>`. */
  readonly counts: () => Record<string, number>
  readonly logs: ReadonlyArray<string>
}

const labels = {
  effect_units_publish_failures: ["failures", "reason"],
  effect_units_events_dropped: ["drops", "buffer"],
  effect_units_executions: ["executions", "outcome"]
} as const

const isLabelled = (id: string): id is keyof typeof labels => id in labels

export const makeWorld = Effect.fnUntraced(function*<Services, E>(
  layer: Layer.Layer<Services | EventPublisher.EventPublisher, E>
): Effect.fn.Return<World<Services | EventPublisher.EventPublisher>, E> {
  const registry: Metric.MetricRegistry = new Map()
  const logs: Array<string> = []
  const logger = Logger.make(({ message }) => void logs.push(String(message)))
  const scope = yield* Scope.make()
  const context = yield* Layer.buildWithScope(layer, scope).pipe(
    Effect.provide(Logger.layer([logger])),
    Effect.provideService(Metric.MetricRegistry, registry)
  )
  const counts = () => {
    const found: Record<string, number> = {}
    for (const { attributes, id, state } of Metric.snapshotUnsafe(Context.make(Metric.MetricRegistry, registry))) {
      if (!isLabelled(id) || !("count" in state) || Number(state.count) === 0) continue
      const [label, attribute] = labels[id]
      const key = `${label} ${attributes?.[attribute]}`
      found[key] = (found[key] ?? 0) + Number(state.count)
    }
    return found
  }
  return {
    publisher: Context.get(context, EventPublisher.EventPublisher),
    context,
    run: (self) => Effect.provide(self, context),
    close: Scope.close(scope, Exit.void),
    counts,
    logs
  }
})

/** A publisher that records what it is given, at once. */
export const recorder = (options?: Omit<EventPublisher.Options, "publish">) => {
  const events: Array<Event> = []
  return { events, layer: EventPublisher.layer({ ...options, publish: (event) => void events.push(event) }) }
}
