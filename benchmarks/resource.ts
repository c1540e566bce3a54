/**
 * The ledger of slots on a SQLite file: a thousand requests at once, beside the same number of inserts, each in a transaction of its own.
 *
 *     node benchmarks/resource.ts [--quick] [--json FILE]
 */
import * as NodeServices from "@effect/platform-node/NodeServices"
import { Effect, Layer, ManagedRuntime } from "effect"
import { SqlClient } from "effect/sql"
import assert from "node:assert/strict"
import { mkdtempSync, rmSync } from "node:fs"
import { tmpdir } from "node:os"
import { join } from "node:path"
import { DatabaseSync } from "node:sqlite"
import * as Sqlite from "../src/backends/Sqlite.ts"
import * as EventPublisher from "../src/EventPublisher.ts"
import * as Resource from "../src/resource/index.ts"
import { main, median, minimum, type Report, time } from "./harness.ts"

const request = { name: "llama", type: "inference_native", memory_bytes: 1 } as const

const columns =
  `id TEXT PRIMARY KEY, host TEXT NOT NULL, position BIGINT NOT NULL, name TEXT NOT NULL, type TEXT NOT NULL,
  memory_limit BIGINT NOT NULL, created_at BIGINT NOT NULL`

const row = (index: number) => ({
  id: `slot-${index.toString(16).padStart(8, "0")}`,
  host: "local",
  position: index,
  name: "llama",
  type: "inference_native",
  memory_limit: 1,
  created_at: 1_700_000_000
})

interface Case {
  readonly what: string
  readonly run: () => unknown
  /** Takes away what `run` has left, outside of the time that is measured. */
  readonly after: () => unknown
}

/** Every case, in turns. */
export const run = async (quick: boolean): Promise<Report> => {
  const count = quick ? 100 : 1000
  const rounds = quick ? 3 : 20
  const directory = mkdtempSync(join(tmpdir(), "effect-units-bench-"))
  const database = Sqlite.layer({ filename: join(directory, "units.db") })
  const runtime = ManagedRuntime.make(
    Resource.layer({ directory }).pipe(
      Layer.provideMerge(Layer.mergeAll(database, NodeServices.layer, EventPublisher.layerNoop))
    )
  )
  const raw = new DatabaseSync(join(directory, "raw.db"))
  const inserted = runtime.runPromise(SqlClient.SqlClient.use((sql) => sql.unsafe(`CREATE TABLE inserts (${columns})`)))

  try {
    await inserted
    raw.exec("PRAGMA journal_mode = WAL; PRAGMA synchronous = NORMAL; PRAGMA wal_autocheckpoint = 4000")
    raw.exec(`CREATE TABLE inserts (${columns})`)
    const names = Object.keys(row(0))
    const insert = raw.prepare(`INSERT INTO inserts (${names.join(", ")}) VALUES (${names.map(() => "?").join(", ")})`)
    const indices = Array.from({ length: count }, (_, index) => index)

    const allocations = () => runtime.runPromise(Resource.allocations())
    const releaseAll = async () => {
      const { allocations: all } = await allocations()
      assert.equal(all.length, count)
      await runtime.runPromise(Effect.forEach(all, Resource.release, { discard: true }))
    }
    const allocate = (concurrency: number | "unbounded") => () =>
      runtime.runPromise(Effect.forEach(indices, () => Resource.allocate(request), { concurrency, discard: true }))
    const direct = "inserts by node:sqlite, a transaction each"
    const client = "inserts by Effect's client, a transaction each"
    const atOnce = "resource.allocate, all at once"
    const cases: ReadonlyArray<Case> = [
      {
        what: direct,
        run: () => {
          for (const index of indices) {
            raw.exec("BEGIN IMMEDIATE")
            insert.run(...Object.values(row(index)))
            raw.exec("COMMIT")
          }
        },
        after: () => raw.exec("DELETE FROM inserts")
      },
      {
        what: client,
        run: () =>
          runtime.runPromise(SqlClient.SqlClient.use((sql) =>
            Effect.forEach(
              indices,
              (index) => sql.withTransaction(sql`INSERT INTO inserts ${sql.insert(row(index))}`),
              { concurrency: "unbounded", discard: true }
            )
          )),
        after: () => runtime.runPromise(SqlClient.SqlClient.use((sql) => sql`DELETE FROM inserts`))
      },
      { what: atOnce, run: allocate("unbounded"), after: releaseAll },
      { what: "resource.allocate, one after the other", run: allocate(1), after: releaseAll },
      {
        what: "resource.can_allocate, all at once",
        run: () =>
          runtime.runPromise(
            Effect.forEach(indices, () => Resource.canAllocate({ memory_bytes: 1 }), {
              concurrency: "unbounded",
              discard: true
            })
          ),
        after: () => undefined
      }
    ]
    const measured = cases.map((each) => ({ ...each, millis: Array.of<number>(), cpu: Array.of<number>() }))
    for (let turn = -1; turn < rounds; turn++) {
      for (const { after, cpu, millis, run } of measured) {
        const before = process.cpuUsage()
        const nanos = await time(run)
        const { system, user } = process.cpuUsage(before)
        await after()
        if (turn < 0) continue
        millis.push(nanos / 1e6)
        cpu.push((system + user) / 1000)
      }
    }
    /** By the time of the processor, which other programs of the machine add little to. */
    const best = (what: string) => minimum(measured.find((each) => each.what === what)?.cpu ?? [])
    const ratio = best(atOnce) / best(client)
    return {
      title: `Ledger of slots on SQLite, ${count.toLocaleString("en-US")} calls`,
      rows: measured.map(({ cpu, millis, what }) => ({
        what,
        "a second": Math.round(count / minimum(millis) * 1000).toLocaleString("en-US"),
        "median a second": Math.round(count / median(millis) * 1000).toLocaleString("en-US"),
        "ms a round": minimum(millis).toFixed(1),
        "CPU ms a round": minimum(cpu).toFixed(1),
        "times the client's insert": (minimum(cpu) / best(client)).toFixed(2)
      })),
      notes: [
        `The best and the median of ${rounds} rounds, the last column by the time of the processor; the file in ${tmpdir()}, ` +
        "synchronous NORMAL. Each call of resource.allocate reads what the host has, at once with others, takes the lock, " +
        "sums up what is given, and writes the slot."
      ],
      targets: [{
        target: "resource.allocate, all at once: at most 8 times an insert in a transaction by the same client",
        measured: `${ratio.toFixed(2)}×`,
        met: ratio <= 8
      }]
    }
  } finally {
    await runtime.dispose()
    raw.close()
    rmSync(directory, { recursive: true, force: true })
  }
}

if (import.meta.main) await main([run])
