/** A host for the units of this domain: its ledger in a folder that vanishes, and memory that tests set. */
import { Context, Effect, Layer } from "effect"
import { SqlClient } from "effect/sql"
import * as fs from "node:fs"
import * as os from "node:os"
import * as path from "node:path"
import * as Host from "../../src/backends/Host.ts"
import * as Sqlite from "../../src/backends/Sqlite.ts"
import * as Resource from "../../src/resource/index.ts"
import * as ResourceLedger from "../../src/resource/ResourceLedger.ts"
import * as Lives from "../lives.ts"
import { secretOf } from "../secrets.ts"

export const GiB = 2 ** 30

/** What a host of 100 GiB has: 10 GiB are reserved, so there are pools of 54, 18 and 18 GiB. */
export interface Machine {
  total: number
  used: number
  gpus: number
  /** Bytes that workloads use, by slot. */
  readonly usage: Map<string, number>
  /** A reading that fails. */
  broken: boolean
}

export class World extends Context.Service<World, {
  /** The folder of the database. */
  readonly directory: string
  readonly machine: Machine
}>()("test/resource/World") {}

export const newMachine = (): Machine => ({ total: 100 * GiB, used: 0, gpus: 1, usage: new Map(), broken: false })

/** The services of a host. */
export const layerMachine = (machine: Machine) => {
  const failure = new Host.HostError({ path: "/proc/meminfo", reason: new Host.Malformed({ expected: "line" }) })
  const unused = Effect.die("nobody asks for this")
  const memory = Effect.suspend(() => {
    const { broken, total, used } = machine
    return broken ? Effect.fail(failure) : Effect.succeed({ total, used, available: total - used })
  })
  return Layer.mergeAll(
    Layer.succeed(Host.Host, {
      memory,
      machineMemory: memory,
      storage: () => Effect.succeed({ total: 1000, used: 600, available: 300 }),
      processor: unused,
      processorTime: unused,
      temperature: unused,
      energy: unused
    }),
    Layer.succeed(Resource.GpuCount, Effect.sync(() => machine.gpus)),
    Layer.succeed(Resource.SlotUsage, Effect.sync(() => machine.usage))
  )
}

export const temporaryDirectory = Effect.acquireRelease(
  // The system's temporary folder may itself be a link.
  Effect.sync(() => fs.realpathSync(fs.mkdtempSync(path.join(os.tmpdir(), "resource-")))),
  (directory) => Effect.sync(() => fs.rmSync(directory, { recursive: true }))
)

/** A ledger over a database of its own. */
export const layerLedger = <E, R>(
  database: Layer.Layer<SqlClient.SqlClient, E, R>,
  machine: Machine,
  options?: Partial<ResourceLedger.Options>
) =>
  ResourceLedger.layer({ directory: "/models", ...options }).pipe(
    Layer.provideMerge(Layer.merge(database, layerMachine(machine)))
  )

/** A connection to the database in a folder, as each process has one. */
export const sqlite = (directory: string) => Sqlite.layer({ filename: path.join(directory, "units.db") })

export const layer = Layer.unwrap(Effect.gen(function*() {
  const directory = yield* temporaryDirectory
  const machine = newMachine()
  return Layer.mergeAll(
    layerLedger(sqlite(directory), machine),
    Layer.succeed(World, { directory, machine }),
    // Nothing secret comes near this domain.
    Layer.succeed(Lives.Host, { directory, ownTexts: [directory], secrets: [secretOf("resource")] })
  )
}))

/** Changes what the host has. */
export const setMachine = (change: Partial<Machine>) =>
  Effect.map(World, ({ machine }) => void Object.assign(machine, change))

/** Breaks the database: the ledger has lost its table. */
export const breakDatabase = Effect.flatMap(SqlClient.SqlClient, (sql) => sql`DROP TABLE effect_units_resource_slots`)
