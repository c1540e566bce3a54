/** The databases that the benchmarks of large logs compare, and what they fill them with. */
import * as PgClient from "@effect/sql-pg/PgClient"
import { Context, Effect, Fiber, Layer, Redacted, type Scope } from "effect"
import { mkdtempSync, rmSync } from "node:fs"
import { tmpdir } from "node:os"
import { join } from "node:path"
import * as PostgresClient from "../src/backends/Postgres.ts"
import * as EventStore from "../src/EventStore.ts"
import { uuidV7 } from "../src/internal/ids.ts"
import * as Postgres from "../src/publishers/Postgres.ts"
import { answers, urlOf } from "../test/servers.ts"
import { eventsOf } from "./events.ts"

const rowsAtOnce = 500

/** Appends so many events, in batches of 500. */
export const append = (store: EventStore.Store, count: number) =>
  Effect.forEach(
    Array.from({ length: count / rowsAtOnce }),
    () => store.append(eventsOf(rowsAtOnce, 16), { owned: true }),
    { discard: true }
  )

/**
 * How many events a second are appended until something else is over, and the longest that a batch of 500 took, in milliseconds. The next
 * one comes after a pause, by default at once.
 */
export const appending = <A, E, R>(
  store: EventStore.Store,
  meanwhile: Effect.Effect<A, E, R>,
  pause: Effect.Effect<void> = Effect.void
) =>
  Effect.gen(function*() {
    const start = performance.now()
    const fiber = yield* Effect.forkChild(meanwhile, { startImmediately: true })
    let longest = 0
    let events = 0
    while (fiber.pollUnsafe() === undefined) {
      const begun = performance.now()
      yield* append(store, rowsAtOnce)
      longest = Math.max(longest, performance.now() - begun)
      events += rowsAtOnce
      yield* pause
    }
    return { result: yield* Fiber.join(fiber), rate: events / (performance.now() - start) * 1000, longest }
  })

/** A kind of database. */
export interface Database {
  readonly name: string
  readonly url?: string
  /** A store of its own for each name. */
  readonly open: (name: string) => Effect.Effect<EventStore.Store, unknown, Scope.Scope>
}

const storeOf = <E>(layer: Layer.Layer<EventStore.EventStore, E>) =>
  Effect.map(Layer.build(layer), (context) => Context.get(context, EventStore.EventStore))

const databases = (directory: string): ReadonlyArray<Database> => {
  const url = Redacted.make(urlOf("PostgreSQL"))
  return [
    { name: "SQLite", open: (name) => storeOf(EventStore.layerSqlite({ filename: join(directory, `${name}.db`) })) },
    {
      name: "PostgreSQL",
      url: urlOf("PostgreSQL"),
      open: Effect.fnUntraced(function*(name: string) {
        const schema = `bench_${name}_${uuidV7(Date.now()).replaceAll("-", "")}`
        const client = Context.get(yield* Layer.build(PostgresClient.layer({ url })), PgClient.PgClient)
        yield* Effect.addFinalizer(() =>
          Effect.orDie(Effect.asVoid(client`DROP SCHEMA IF EXISTS ${client(schema)} CASCADE`))
        )
        return yield* storeOf(
          Layer.provide(Postgres.layerEventStore(), PostgresClient.layer({ url, schema }))
        )
      })
    }
  ]
}

/** Measures one database after the other, in the order of the table, and says which are left out. */
export const onEach = async <A, E>(measure: (database: Database) => Effect.Effect<A, E>) => {
  const directory = mkdtempSync(join(tmpdir(), "effect-units-bench-"))
  const measured: Array<readonly [string, A]> = []
  const leftOut: Array<string> = []
  try {
    for (const database of databases(directory)) {
      if (database.url === undefined || await answers(database.url)) {
        measured.push([database.name, await Effect.runPromise(measure(database))])
      } else leftOut.push(`${database.name} is left out: nothing answers at ${database.url}.`)
    }
  } finally {
    rmSync(directory, { recursive: true, force: true })
  }
  return { measured, leftOut }
}
