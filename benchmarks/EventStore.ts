/**
 * The event store on a SQLite file: appending in batches, reading pages, listing executions, at first and in a log that has grown.
 *
 *     node benchmarks/EventStore.ts [--quick] [--json FILE]
 */
import { Effect, ManagedRuntime, Stream } from "effect"
import assert from "node:assert/strict"
import { mkdtempSync, rmSync } from "node:fs"
import { tmpdir } from "node:os"
import { join } from "node:path"
import { DatabaseSync } from "node:sqlite"
import * as EventStore from "../src/EventStore.ts"
import type { ExecutionEvent } from "../src/ExecutionEvent.ts"
import { uuidV7 } from "../src/internal/ids.ts"
import { main, median, minimum, type Report, time } from "./harness.ts"

const batch = 500

let sequence = 0

const common = (correlation_id: string, part: string) => ({
  id: `${correlation_id}:${part}`,
  domain: "model",
  unit_name: "model.pull",
  kind: "command",
  timestamp: new Date(1_700_000_000_000 + sequence).toISOString(),
  correlation_id,
  root_id: correlation_id,
  source: "018bcfe5-6800-7000-8000-000000000000",
  sequence: ++sequence
} as const)

const newId = (): string => uuidV7(1_700_000_000_000 + sequence)

const started = (id: string): ExecutionEvent => ({
  event_type: "execution_started",
  ...common(id, "started"),
  input: { path: "/models/tiny.gguf" }
})

const completed = (id: string): ExecutionEvent => ({
  event_type: "execution_completed",
  ...common(id, "completed"),
  duration_ms: 3,
  duration_ns: 3_000_000,
  output: { model_id: "model-0a1b2c3d" }
})

const ids = (count: number): ReadonlyArray<string> => Array.from({ length: count }, newId)

type Batches = ReadonlyArray<ReadonlyArray<ExecutionEvent>>

/** Executions that begin and end in one batch. */
const short = (count: number): Batches =>
  Array.from({ length: count }, () => ids(batch / 2).flatMap((id) => [started(id), completed(id)]))

/** Executions that end a batch after they began. */
const long = (count: number): Batches =>
  Array.from({ length: count / 2 }, () => ids(batch)).flatMap((all) => [all.map(started), all.map(completed)])

/** What to measure beside: the same texts in a table with a unique id, and nothing else, by prepared inserts of 50 rows. */
const plainTable = (db: DatabaseSync) => {
  db.exec("PRAGMA journal_mode = WAL; PRAGMA synchronous = NORMAL; PRAGMA wal_autocheckpoint = 4000")
  db.exec("CREATE TABLE events (event_offset INTEGER PRIMARY KEY, id TEXT NOT NULL UNIQUE, body TEXT NOT NULL)")
  const rows = Array.from({ length: 50 }, () => "(?, ?)").join(", ")
  const insert = db.prepare(`INSERT INTO events (id, body) VALUES ${rows}`)
  return (batches: Batches): void => {
    for (const events of batches) {
      db.exec("BEGIN IMMEDIATE")
      for (let from = 0; from < events.length; from += 50) {
        insert.run(...events.slice(from, from + 50).flatMap((event) => [event.id, JSON.stringify(event)]))
      }
      db.exec("COMMIT")
    }
  }
}

interface Row {
  readonly what: string
  /** Milliseconds that each round took. */
  readonly millis: ReadonlyArray<number>
  /** Milliseconds of processor time that each round took, which other programs of the machine do not add to. */
  readonly cpu: ReadonlyArray<number>
  readonly each: number
  readonly unit: string
}

const round = (value: number): string => Math.round(value).toLocaleString("en-US")

const rowOf = ({ cpu, each, millis, unit, what }: Row) => ({
  what,
  "a second": round(each / minimum(millis) * 1000),
  "median a second": round(each / median(millis) * 1000),
  "a CPU second": round(each / minimum(cpu) * 1000),
  of: unit,
  "ms a round": minimum(millis).toFixed(2)
})

/** A store, and what its rows are called. */
interface Log {
  readonly where: string
  readonly store: EventStore.Store
  readonly run: <A, E>(effect: Effect.Effect<A, E, EventStore.EventStore>) => Promise<A>
}

/** Every case, in the order of the table. */
export const run = async (quick: boolean): Promise<Report> => {
  const directory = mkdtempSync(join(tmpdir(), "effect-units-bench-"))
  const rounds = quick ? 3 : 20
  const length = 10 * batch
  const plain = new DatabaseSync(join(directory, "plain.db"))
  const runtimes: Array<ManagedRuntime.ManagedRuntime<EventStore.EventStore, EventStore.EventStoreError>> = []

  const append = ({ run, store }: Log, batches: Batches) => () =>
    run(Effect.forEach(batches, (events) => store.append(events, { owned: true }), { discard: true }))

  const open = async (events: number): Promise<Log> => {
    const runtime = ManagedRuntime.make(EventStore.layerSqlite({ filename: join(directory, `${events}.db`) }))
    runtimes.push(runtime)
    const log: Log = {
      where: `${round(events)} events stored`,
      store: await runtime.runPromise(EventStore.EventStore),
      run: (effect) => runtime.runPromise(effect)
    }
    for (let stored = 0; stored < events; stored += length) await append(log, short(10))()
    return log
  }

  const rows: Array<Row> = []
  /** In turns, so that what is to be compared is measured at the same time. What is prepared before the clock runs is not measured. */
  const measure = async (
    each: number,
    unit: string,
    cases: ReadonlyArray<{ readonly what: string; readonly prepare: () => () => unknown }>
  ): Promise<void> => {
    const measured = cases.map(({ prepare, what }) => ({
      prepare,
      row: { what, each, unit, millis: Array.of<number>(), cpu: Array.of<number>() }
    }))
    for (let turn = -1; turn < rounds; turn++) {
      for (const { prepare, row } of measured) {
        const work = prepare()
        const before = process.cpuUsage()
        const nanos = await time(work)
        const { system, user } = process.cpuUsage(before)
        if (turn < 0) continue
        row.millis.push(nanos / 1e6)
        row.cpu.push((system + user) / 1000)
      }
    }
    rows.push(...measured.map(({ row }) => row))
  }

  try {
    const small = await open(2 * length)
    const large = await open(quick ? 10 * length : 200 * length)
    const both = (what: string, prepare: (log: Log) => () => unknown) =>
      [small, large].map((log) => ({ what: `${what}, ${log.where}`, prepare: () => prepare(log) }))

    // Before anything is appended, so that the small log is as small as its name says.
    let turn = 0
    const from = async ({ run, store }: Log): Promise<number> =>
      Math.floor((turn++ % rounds) / rounds * (await run(store.lastOffset) - length))
    await measure(
      length,
      "events",
      both(`read pages of ${batch}`, (log) => async () => {
        let after = await from(log)
        for (let page = 0; page < 10; page++) {
          const entries = await log.run(log.store.read({ after, limit: batch }))
          assert.equal(entries.length, batch)
          after += batch
        }
      })
    )
    await measure(
      length,
      "events",
      both("follow the log", (log) => async () => {
        const events = log.store.tail({ after: await from(log) }).pipe(Stream.take(length), Stream.runCount)
        assert.equal(await log.run(events), length)
      })
    )
    const list = (options: EventStore.ExecutionsOptions, count: number) => (log: Log) => async () =>
      assert.equal((await log.run(log.store.executions(options))).length, count)
    const failed = { unit: "model.pull", outcome: "failed" } as const
    await measure(100, "executions", both("first page of executions", list({}, 100)))
    await measure(1, "pages", both("page of executions of a unit that failed", list(failed, 0)))
    const last = await large.run(large.store.lastOffset)
    const passOver = large.store.read({ after: last - length, filter: { units: ["none.such"] } })
    await measure(length, "events", [{
      what: "pass over events that a filter does not want",
      prepare: () => () => large.run(passOver)
    }])

    const insert = plainTable(plain)
    await measure(length, "events", [
      {
        what: "node:sqlite by hand: id and text, no executions",
        prepare: () => {
          const batches = short(10)
          return () => insert(batches)
        }
      },
      ...both("append, executions of one batch", (log) => append(log, short(10)))
    ])
    await measure(length, "events", both("append, executions over two batches", (log) => append(log, long(10))))
    await measure(200, "events", [{
      what: "append, one event a transaction",
      prepare: () => {
        const [events = []] = short(1)
        return append(small, events.slice(0, 200).map((event) => [event]))
      }
    }])
    let keep = await large.run(large.store.lastOffset)
    await measure(length / 2, "events", [{
      what: "prune",
      prepare: () => () => large.run(large.store.prune({ keep: keep -= length / 2 }))
    }])

    const best = (what: string, of: "millis" | "cpu" = "millis"): number => {
      const row = rows.find((each) => each.what === what)
      assert(row !== undefined, `${what} was not measured`)
      return row.each / minimum(row[of]) * 1000
    }
    const appended = best(`append, executions of one batch, ${small.where}`)
    /** By the time of the processor, of which two measurements of the same differ less. */
    const noSlower = (what: string) => {
      const ratio = best(`${what}, ${large.where}`, "cpu") / best(`${what}, ${small.where}`, "cpu")
      return {
        target: `${what}: as fast with ${large.where} as with ${round(2 * length)}, within 15 %`,
        measured: `${ratio.toFixed(2)}×`,
        met: ratio >= 0.85
      }
    }
    return {
      title: `EventStore on SQLite, batches of ${batch}`,
      rows: rows.map(rowOf),
      notes: [
        `The best and the median of ${rounds} rounds; the file in ${tmpdir()}, synchronous NORMAL. Both depend on the disk, and on what ` +
        "else the machine does; the time of the processor depends less on it. The logs grow while they are appended to."
      ],
      targets: [
        {
          target: "append, executions of one batch: at least 50,000 events a second",
          measured: round(appended),
          met: appended >= 50_000
        },
        noSlower("append, executions of one batch"),
        noSlower("append, executions over two batches"),
        noSlower(`read pages of ${batch}`),
        noSlower("follow the log")
      ]
    }
  } finally {
    for (const runtime of runtimes) await runtime.dispose()
    plain.close()
    rmSync(directory, { recursive: true, force: true })
  }
}

if (import.meta.main) await main([run])
