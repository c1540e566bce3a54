/** A host for the units of this domain: the embedded services in a folder that vanishes, and engines that are real processes. */
import { ConfigProvider, Context, Deferred, Effect, Layer, Redacted } from "effect"
import { SqlClient } from "effect/sql"
import { TestClock } from "effect/testing"
import * as fs from "node:fs"
import * as os from "node:os"
import * as path from "node:path"
import * as Engine from "../../src/engine/index.ts"
import * as ProcessIdentity from "../../src/internal/processIdentity.ts"
import { layerEmbedded } from "../../src/node.ts"
import type { Behaviour } from "../fixtures/engineProcess.ts"
import { Host } from "../lives.ts"
import { secretOf } from "../secrets.ts"

/** What the engines of this world are given, and what must not be seen. */
export const secret = secretOf("engine")

export class World extends Context.Service<World, {
  /** The folder of the embedded services. */
  readonly directory: string
  /** A folder for the engines' behaviour and traces, with their programs in `bin`. */
  readonly elsewhere: string
}>()("test/engine/World") {}

const program = path.join(import.meta.dirname, "..", "fixtures", "engineProcess.ts")

/** Puts an engine on the PATH, or changes what it does from its next start on. */
export const behave = Effect.fnUntraced(function*(type: "ollama" | "vllm" | "tiny", behaviour: Behaviour = {}) {
  const { elsewhere } = yield* World
  fs.writeFileSync(path.join(elsewhere, `${type}.json`), JSON.stringify(behaviour))
  fs.writeFileSync(
    path.join(elsewhere, "bin", type),
    `#!/bin/sh\nexec ${process.execPath} ${program} ${elsewhere} ${type} "$@"\n`,
    { mode: 0o755 }
  )
})

/** Puts a file into the engines' folder: what waits for it goes on. */
export const signal = (file: string) =>
  Effect.map(World, ({ elsewhere }) => fs.writeFileSync(path.join(elsewhere, file), ""))

const notesOf = (elsewhere: string): ReadonlyArray<string> => {
  const file = path.join(elsewhere, "started")
  return fs.existsSync(file) ? fs.readFileSync(file, "utf8").split("\n").filter((line) => line !== "") : []
}

/** What the engines have noted. */
export const notes = Effect.map(World, ({ elsewhere }) => notesOf(elsewhere))

/** The processes that engines have started, and whether each of them runs. */
export const processes = Effect.map(notes, (lines) =>
  lines.flatMap((line) => {
    const pid = /^\d+/.exec(line)?.[0]
    return pid === undefined ? [] : [Number(pid)]
  }))

/** Whether a process runs, as the system says. */
export const runs = (pid: number): boolean => {
  const stat = ProcessIdentity.stat(String(pid))
  return stat !== undefined && ProcessIdentity.runs(stat)
}

/** One turn of the event loop. */
export const turn = Effect.promise(() => new Promise((resolve) => setImmediate(resolve)))

/** Waits until an effect gives true. */
export const until = Effect.fnUntraced(function*<E, R>(condition: Effect.Effect<boolean, E, R>) {
  while (!(yield* condition)) yield* turn
})

/** Waits until engines have noted as many such lines. */
export const noted = (pattern: RegExp, count = 1) =>
  until(Effect.map(notes, (lines) => lines.filter((line) => pattern.test(line)).length >= count))

/** Lets time pass for as long as an effect runs: more of it than a process takes to start, whose time is real. */
export const passing = <A, E, R>(effect: Effect.Effect<A, E, R>) =>
  Effect.raceFirst(effect, Effect.forever(Effect.andThen(turn, TestClock.adjust("50 millis"))))

/** Lets time pass from the end of a test on, until all is closed: engines that do not listen are killed by and by. */
const passingAtTheEnd = Effect.map(Deferred.make<void>(), (ended) => ({
  first: Effect.asVoid(Effect.forkDetach(passing(Deferred.await(ended)))),
  last: Deferred.succeed(ended, undefined)
}))

/** A recipe of one's own: the same program, with a secret in its environment. */
export const tiny = (bin: string) =>
  Engine.Recipe.make({
    process: {
      command: path.join(bin, "tiny"),
      args: ({ host, port }) => ["--host", host, "--port", String(port)],
      env: () => ({ TOKEN: Redacted.make(secret) }),
      howToInstall: () => "write it"
    },
    port: 8090,
    retryDelay: "1 second"
  })

/** A folder for a world, which goes with the scope. */
export const root = Effect.acquireRelease(
  // The system's temporary folder may itself be a link.
  Effect.sync(() => fs.realpathSync(fs.mkdtempSync(path.join(os.tmpdir(), "engine-")))),
  (root) => Effect.sync(() => fs.rmSync(root, { recursive: true }))
)

/** The services over a folder: as often as wanted, one after the other or at the same time. */
export const services = (
  root: string,
  options: Partial<Engine.Options> = {},
  { docker = `unix://${root}/no-docker.sock` }: { readonly docker?: string } = {}
) => {
  const bin = path.join(root, "elsewhere", "bin")
  fs.mkdirSync(bin, { recursive: true })
  const elsewhere = path.join(root, "elsewhere")
  const directory = path.join(root, "embedded")
  const env = { ...process.env, PATH: `${bin}:${process.env["PATH"]}`, DOCKER_HOST: docker }
  return Layer.unwrap(
    Effect.map(
      passingAtTheEnd,
      ({ first, last }) =>
        Layer.effectDiscard(Effect.addFinalizer(() => first)).pipe(
          Layer.provideMerge(Layer.mergeAll(
            layerEmbedded({
              directory,
              engines: { recipes: { tiny: tiny(bin) }, ...options },
              hubs: {},
              endpoints: []
            }),
            Layer.succeed(World, { directory, elsewhere }),
            Layer.succeed(Host, {
              directory,
              // Processes and ports are other ones each time.
              get ownTexts() {
                return [root, ...notesOf(elsewhere).flatMap((line) => line.match(/\d+/g) ?? [])]
              },
              secrets: [secret]
            })
          )),
          Layer.provideMerge(Layer.effectDiscard(Effect.addFinalizer(() => last))),
          Layer.provide(ConfigProvider.layer(ConfigProvider.fromEnv({ env })))
        )
    )
  )
}

export const layer = Layer.unwrap(Effect.map(root, (root) => services(root)))

/** Takes the connection to the database away until the scope closes: who needs it waits. */
export const holdDatabase = Effect.gen(function*() {
  const sql = yield* SqlClient.SqlClient
  const held = yield* Deferred.make<void>()
  yield* Effect.forkScoped(sql.withTransaction(Effect.andThen(Deferred.succeed(held, undefined), Effect.never)))
  yield* Deferred.await(held)
})

/** Breaks the database: the register has lost its table. */
export const breakDatabase = Effect.flatMap(SqlClient.SqlClient, (sql) => sql`DROP TABLE effect_units_engines`)
