/**
 * What executions and publishers count, as Effect metrics.
 *
 * Updating a `Metric` looks its series up in the registry each time, which costs more than the rest of the bookkeeping of an
 * execution. So an execution adds to plain numbers, one record per unit and registry, and the series read those numbers when a
 * snapshot or an exporter asks.
 *
 * @since 0.1.0
 */
import type * as Context from "effect/Context"
import * as Metric from "effect/Metric"

const boundaries = [
  0.1,
  0.25,
  0.5,
  1,
  2.5,
  5,
  10,
  25,
  50,
  100,
  250,
  500,
  1000,
  2500,
  5000,
  10_000,
  30_000,
  60_000,
  300_000
]

/** @internal */
export const outcomes = ["completed", "failed", "died", "interrupted"] as const

/** @internal */
export type Outcome = (typeof outcomes)[number]

/**
 * The executions of one unit, as one registry sees them.
 *
 * @internal
 */
export class Tally {
  completed = 0
  failed = 0
  died = 0
  interrupted = 0
  private readonly buckets = new Float64Array(boundaries.length + 1)
  private sum = 0
  private min = Number.MAX_VALUE
  private max = -Number.MAX_VALUE

  add(outcome: Outcome, durationNs: number): void {
    this[outcome]++
    const millis = durationNs / 1e6
    let bucket = 0
    // In bounds by the first condition. Most executions are short, so the search from the bottom is the fast one.
    while (bucket < boundaries.length && millis > boundaries[bucket]!) bucket++
    // There is one bucket more than boundaries.
    this.buckets[bucket]!++
    this.sum += millis
    if (millis < this.min) this.min = millis
    if (millis > this.max) this.max = millis
  }

  durations(): Metric.HistogramState {
    let cumulated = 0
    return {
      buckets: boundaries.map((boundary, index): [number, number] => {
        cumulated += this.buckets[index] ?? 0
        return [boundary, cumulated]
      }),
      count: this.completed + this.failed + this.died + this.interrupted,
      min: this.min,
      max: this.max,
      sum: this.sum
    }
  }
}

/** @internal */
export type Tallies = Map<string, Tally>

const byRegistry = new WeakMap<object, Tallies>()

/**
 * The records of the registry that a context holds.
 *
 * @internal
 */
export const tallies = (registry: object): Tallies => {
  const known = byRegistry.get(registry)
  if (known !== undefined) return known
  const made: Tallies = new Map()
  byRegistry.set(registry, made)
  return made
}

const ignore = (): void => {}

/** @internal */
export const register = (
  into: Tallies,
  unit: { readonly name: string; readonly domain: string; readonly kind: string },
  context: Context.Context<never>
): Tally => {
  const known = into.get(unit.name)
  if (known !== undefined) return known
  const tally = new Tally()
  into.set(unit.name, tally)
  const attributes = { unit: unit.name, domain: unit.domain, kind: unit.kind }
  for (const outcome of outcomes) {
    const counter = Metric.counter("effect_units_executions", {
      description: "Executions that ended, by unit and outcome",
      incremental: true,
      attributes: { ...attributes, outcome }
    })
    Metric.registerUnsafe(counter, context, {
      get: () => ({ count: tally[outcome], incremental: true }),
      update: ignore,
      modify: ignore
    })
  }
  const histogram = Metric.histogram("effect_units_execution_duration", {
    description: "How long executions took, in milliseconds, by unit",
    boundaries,
    attributes: { ...attributes, time_unit: "milliseconds" }
  })
  Metric.registerUnsafe(histogram, context, { get: () => tally.durations(), update: ignore, modify: ignore })
  return tally
}

const failuresByReason = new Map<string, Metric.Counter<number>>()

/**
 * Events that a publisher failed to hand over, by what went wrong.
 *
 * @internal
 */
export const publishFailures = (reason: string): Metric.Counter<number> => {
  const known = failuresByReason.get(reason)
  if (known !== undefined) return known
  const made = Metric.counter("effect_units_publish_failures", {
    description: "Events that a publisher failed to hand over",
    incremental: true,
    attributes: { reason }
  })
  failuresByReason.set(reason, made)
  return made
}

/**
 * Events that a listener of the bus gave up, as its handler failed with them.
 *
 * @internal
 */
export const listenerFailures: Metric.Counter<number> = Metric.counter("effect_units_listener_failures", {
  description: "Events that a listener failed to handle",
  incremental: true
})

/**
 * Events that a full buffer did not take, or gave up for newer ones.
 *
 * @internal
 */
export const drops = (buffer: string): Metric.Counter<number> =>
  Metric.counter("effect_units_events_dropped", {
    description: "Events that a full buffer dropped",
    incremental: true,
    attributes: { buffer }
  })

/**
 * What became of the events that a relay took from its store.
 *
 * @internal
 */
export const relayed = (relay: string, outcome: "relayed" | "parked" | "skipped" | "missed"): Metric.Counter<number> =>
  Metric.counter("effect_units_relay_events", {
    description: "Events that a relay moved, put aside or left out",
    incremental: true,
    attributes: { relay, outcome }
  })

/** @internal */
export const relayBatches = (relay: string): Metric.Counter<number> =>
  Metric.counter("effect_units_relay_batches", {
    description: "Batches of events that a relay has moved and marked",
    incremental: true,
    attributes: { relay }
  })

/** @internal */
export const relayFailures = (relay: string, reason: string): Metric.Counter<number> =>
  Metric.counter("effect_units_relay_failures", {
    description: "Attempts of a relay to read, to publish or to mark that failed",
    incremental: true,
    attributes: { relay, reason }
  })

/** @internal */
export const relayLag = (relay: string): Metric.Gauge<number> =>
  Metric.gauge("effect_units_relay_lag_events", {
    description: "Events of the log behind the place up to which a relay has moved all",
    attributes: { relay }
  })

/** @internal */
export const relayLagSeconds = (relay: string): Metric.Gauge<number> =>
  Metric.gauge("effect_units_relay_lag_seconds", {
    description: "Age of the oldest event that a relay has not moved",
    attributes: { relay }
  })

/** @internal */
export const relayShards = (relay: string): Metric.Gauge<number> =>
  Metric.gauge("effect_units_relay_shards", {
    description: "Shards of a relay that this process holds",
    attributes: { relay }
  })

/**
 * What a group of subscribers to an event store counts.
 *
 * @internal
 */
export interface GroupMetrics {
  readonly deliveries: Record<"acknowledged" | "retried" | "parked" | "expired", Metric.Counter<number>>
  readonly parked: Metric.Gauge<number>
  readonly lag: Metric.Gauge<number>
}

/** @internal */
export const group = (name: string): GroupMetrics => {
  const delivery = (outcome: keyof GroupMetrics["deliveries"]) =>
    Metric.counter("effect_units_group_deliveries", {
      description: "Deliveries to members of a group, by what became of them; an expired one went to another member",
      incremental: true,
      attributes: { group: name, outcome }
    })
  return {
    deliveries: {
      acknowledged: delivery("acknowledged"),
      retried: delivery("retried"),
      parked: delivery("parked"),
      expired: delivery("expired")
    },
    parked: Metric.gauge("effect_units_group_parked", {
      description: "Events that are parked in a group",
      attributes: { group: name }
    }),
    lag: Metric.gauge("effect_units_group_lag", {
      description: "Events of the log after the position of a group",
      attributes: { group: name }
    })
  }
}

/**
 * Events that a clean-up deleted.
 *
 * @internal
 */
export const pruned: Metric.Counter<number> = Metric.counter("effect_units_events_pruned", {
  description: "Old events that a clean-up of an event store deleted",
  incremental: true
})

/** @internal */
export const pendingEvents: Metric.Gauge<number> = Metric.gauge("effect_units_event_store_pending_events", {
  description: "Events of transactions that are committed and not in the log yet"
})

/** @internal */
export const openTransaction: Metric.Gauge<number> = Metric.gauge("effect_units_event_store_transaction_seconds", {
  description: "Age of the oldest open transaction that has appended events"
})
