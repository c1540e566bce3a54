/**
 * A group of subscribers to an event store that catches up: as fast in a log that holds a million events and has a hundred thousand before
 * the group as in a small one; and what appending costs while old events are deleted.
 *
 *     node benchmarks/groups.ts [--quick] [--json FILE]
 */
import { Effect, Stream } from "effect"
import assert from "node:assert/strict"
import type * as EventStore from "../src/EventStore.ts"
import { append, appending, type Database, onEach } from "./databases.ts"
import { main, median, type Report, whole } from "./harness.ts"

/** Handles so many events of a group, many at a time, and gives how many a second. */
const drain = Effect.fnUntraced(function*(store: EventStore.Store, consumer: string, position: number, count: number) {
  const deliveries = yield* store.groups.subscribe({ consumer, from: { position: String(position) }, maxInFlight: 512 })
  const start = performance.now()
  let handled = 0
  yield* deliveries.pipe(
    Stream.mapEffect(({ ack }) => ack, { concurrency: 512, unordered: true }),
    Stream.takeUntil(() => ++handled >= count),
    Stream.runDrain
  )
  return count / (performance.now() - start) * 1000
}, Effect.scoped)

const measure = Effect.fnUntraced(function*(database: Database, quick: boolean) {
  const stored = quick ? 10_000 : 1_000_000
  const pending = quick ? 15_000 : 100_000
  const count = quick ? 4000 : 10_000
  const rounds = quick ? 2 : 5
  const small = yield* database.open("small")
  const large = yield* database.open("large")
  yield* append(large, stored)
  yield* append(large, pending)
  const rates: Record<"small" | "large", Array<number>> = { small: [], large: [] }
  for (let round = -1; round < rounds; round++) {
    const from = yield* small.lastOffset
    yield* append(small, count)
    // The group of the large log goes on in what is pending, which is never used up.
    const inSmall = yield* drain(small, "group", from, count)
    const inLarge = yield* drain(large, "group", stored, count)
    if (round < 0) continue
    rates.small.push(inSmall)
    rates.large.push(inLarge)
  }
  assert.ok((rounds + 1) * count <= pending, "the group has come to the end")
  const pause = quick ? "200 millis" : "3 seconds"
  const alone = yield* appending(large, Effect.sleep(pause))
  const beside = yield* appending(large, large.prune({ keep: pending + stored / 2 }))
  return {
    small: median(rates.small),
    large: median(rates.large),
    alone: alone.rate,
    beside: beside.rate,
    longest: beside.longest,
    deleted: beside.result.events
  }
}, Effect.scoped)

/** Every database, in the order of the table. */
export const run = async (quick: boolean): Promise<Report> => {
  const { leftOut, measured } = await onEach((database) => measure(database, quick))
  const [stored, pending] = quick ? ["10,000", "15,000"] : ["1,000,000", "100,000"]
  return {
    title: `Groups: ${stored} events stored, ${pending} pending`,
    rows: measured.map(([database, { alone, beside, deleted, large, longest, small }]) => ({
      database,
      "handled/s, small log": whole(small),
      "handled/s, large log": whole(large),
      "appended/s": whole(alone),
      "appended/s while pruning": whole(beside),
      "longest append of 500 while pruning, ms": longest.toFixed(1),
      pruned: whole(deleted)
    })),
    notes: [
      "Handled: claimed and acknowledged one by one, 512 in flight, by one member; the median of some rounds, in turns. Pruning deletes half of " +
      "what is stored while another fiber of the process appends, in batches of 500 events, as fast as it can.",
      ...leftOut
    ],
    targets: measured.flatMap(([database, { large, longest, small }]) => [
      {
        target: `${database}: in the large log at least 80 % as fast as in the small one`,
        measured: `${Math.round(100 * large / small)} %`,
        met: large >= 0.8 * small
      },
      {
        target: `${database}: no append waits for pruning longer than a second`,
        measured: `${longest.toFixed(1)} ms`,
        met: longest < 1000
      }
    ])
  }
}

if (import.meta.main) await main([run])
