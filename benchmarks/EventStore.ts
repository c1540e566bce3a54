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

/** Every case, in the order of the table. */
export const run = async (quick: boolean): Promise<Report> => {
  const directory = mkdtempSync(join(tmpdir(), "effect-units-bench-"))
  const rounds = quick ? 3 : 20
  const growth = quick ? 10 : 2000
  const runtime = ManagedRuntime.make(EventStore.layerSqlite({ filename: join(directory, "events.db") }))
  const plain = new DatabaseSync(join(directory, "plain.db"))
  try {
    const store = await runtime.runPromise(EventStore.EventStore)
    const rows: Array<Row> = []
    const measure = async (what: string, each: number, unit: string, prepare: () => () => unknown): Promise<void> => {
      const millis: Array<number> = []
      const cpu: Array<number> = []
      for (let turn = -1; turn < rounds; turn++) {
        // What is prepared before the clock runs is not measured.
        const work = prepare()
        const before = process.cpuUsage()
        const nanos = await time(work)
        const { system, user } = process.cpuUsage(before)
        if (turn < 0) continue
        millis.push(nanos / 1e6)
        cpu.push((system + user) / 1000)
      }
      rows.push({ what, each, unit, millis, cpu })
    }
    const append = (batches: Batches) => () =>
      runtime.runPromise(Effect.forEach(batches, (events) => store.append(events, { owned: true }), { discard: true }))
    const list = (options: EventStore.ExecutionsOptions, count: number) => () => async () =>
      assert.equal((await runtime.runPromise(store.executions(options))).length, count)
    const failed = { unit: "model.pull", outcome: "failed" } as const

    /** Reads and follows the log from places all over it. */
    const reading = async (where: string): Promise<void> => {
      const last = await runtime.runPromise(store.lastOffset)
      const length = 10 * batch
      let turn = 0
      const from = () => Math.floor((turn++ % rounds) / rounds * (last - length))
      await measure(`read pages of ${batch}${where}`, length, "events", () => {
        let after = from()
        return async () => {
          for (let page = 0; page < 10; page++) {
            const entries = await runtime.runPromise(store.read({ after, limit: batch }))
            assert.equal(entries.length, batch)
            after += batch
          }
        }
      })
      await measure(`follow the log${where}`, length, "events", () => {
        const events = store.tail({ after: from() }).pipe(Stream.take(length), Stream.runCount)
        return async () => assert.equal(await runtime.runPromise(events), length)
      })
    }
    const stored = async () => `, ${round(await runtime.runPromise(store.lastOffset))} events stored`

    await append(short(20))()
    const inSmall = await stored()
    await reading(inSmall)

    const insert = plainTable(plain)
    await measure("node:sqlite by hand: id and text, no executions", 10 * batch, "events", () => {
      const batches = short(10)
      return () => insert(batches)
    })
    await measure("append, executions of one batch", 10 * batch, "events", () => append(short(10)))
    await measure("append, executions over two batches", 10 * batch, "events", () => append(long(10)))
    await measure("append, one event a transaction", 200, "events", () => {
      const [events = []] = short(1)
      return append(events.slice(0, 200).map((event) => [event]))
    })
    await measure("first page of executions", 100, "executions", list({}, 100))
    await measure("page of executions of a unit that failed", 1, "pages", list(failed, 0))

    for (let turn = 0; turn < growth; turn += 10) await append(short(10))()
    const inLarge = await stored()
    await measure(`append, executions of one batch${inLarge}`, 10 * batch, "events", () => append(short(10)))
    await measure(`append, executions over two batches${inLarge}`, 10 * batch, "events", () => append(long(10)))
    await measure(`first page of executions${inLarge}`, 100, "executions", list({}, 100))
    await measure(`page of executions of a unit that failed${inLarge}`, 1, "pages", list(failed, 0))

    await reading(inLarge)
    const last = await runtime.runPromise(store.lastOffset)
    const passOver = store.read({ after: last - 10 * batch, filter: { units: ["none.such"] } })
    await measure(
      "pass over events that a filter does not want",
      10 * batch,
      "events",
      () => () => runtime.runPromise(passOver)
    )
    let keep = last
    await measure(
      "prune",
      5 * batch,
      "events",
      () => () => runtime.runPromise(store.prune({ keep: keep -= 5 * batch }))
    )

    const best = (what: string, of: "millis" | "cpu" = "millis"): number => {
      const row = rows.find((each) => each.what === what)
      assert(row !== undefined, `${what} was not measured`)
      return row.each / minimum(row[of]) * 1000
    }
    const appended = best("append, executions of one batch")
    /** By the time of the processor, of which two measurements of the same differ less. */
    const noSlower = (what: string, before: string) => {
      const ratio = best(what + inLarge, "cpu") / best(what + before, "cpu")
      return {
        target: `${what}: as fast${inLarge}, within 15 %`,
        measured: `${ratio.toFixed(2)}×`,
        met: ratio >= 0.85
      }
    }
    return {
      title: `EventStore on SQLite, batches of ${batch}`,
      rows: rows.map(rowOf),
      notes: [
        `The best and the median of ${rounds} rounds; the file in ${tmpdir()}, synchronous NORMAL. Both depend on the disk, and on what ` +
        "else the machine does; the time of the processor depends less on it."
      ],
      targets: [
        {
          target: "append, executions of one batch: at least 50,000 events a second",
          measured: round(appended),
          met: appended >= 50_000
        },
        noSlower("append, executions of one batch", ""),
        noSlower(`read pages of ${batch}`, inSmall),
        noSlower("follow the log", inSmall)
      ]
    }
  } finally {
    await runtime.dispose()
    plain.close()
    rmSync(directory, { recursive: true, force: true })
  }
}

if (import.meta.main) await main([run])
