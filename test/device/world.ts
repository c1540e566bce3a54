/** A host for the units of this domain: the embedded services, a stand-in for NVIDIA's program, and a kernel made of files. */
import { Context, Effect, Layer, Redacted } from "effect"
import * as fs from "node:fs"
import * as os from "node:os"
import * as path from "node:path"
import { layerEmbedded } from "../../src/node.ts"
import { Host } from "../lives.ts"
import { secretOf } from "../secrets.ts"
import { type Card, rtx4090 } from "./cards.ts"

/** What the stand-in for NVIDIA's program says. */
export interface State {
  readonly gpus: ReadonlyArray<Card>
  /** Who runs it; 0 is root. */
  readonly uid?: number
  /** What it says instead: to all calls, or to those that query or set. With `withRows`, before what it would say. */
  readonly says?: Said
  /** It does not end by itself: always, or when it sets something. */
  readonly hangs?: "always" | "-pl"
  readonly ignoresSignals?: boolean
  /** It says that it has set a limit, and has not. */
  readonly keepsLimit?: boolean
  /** How long it takes to set a limit. */
  readonly settingMillis?: number
}

export interface Said {
  readonly code: number
  readonly stdout?: string
  readonly stderr?: string
  readonly only?: "-pl" | "query"
  readonly withRows?: boolean
}

export class World extends Context.Service<World, {
  /** The program's file, as a setting of the domain. */
  readonly command: string
  readonly proc: string
  readonly sys: string
  /** Says what the program says from now on. */
  readonly set: (state: State) => void
  readonly state: () => State
  /** The arguments of each run so far. */
  readonly calls: () => ReadonlyArray<string>
  /** Writes a file of the kernel: `proc/stat`. */
  readonly write: (name: string, content: string) => void
  /** Takes a file away. */
  readonly remove: (name: string) => void
  /** Whether the program has left such a file behind. */
  readonly has: (name: string) => boolean
  /** Waits until a run hangs, and gives its process id. */
  readonly hanging: Effect.Effect<number>
}>()("test/device/World") {}

export const meminfo = (total: number, available: number): string =>
  `MemTotal: ${total} kB\nMemFree: 1 kB\nMemAvailable: ${available} kB\n`

export const GiB = 1024 * 1024

const makeWorld = (root: string): World["Service"] => {
  const bin = path.join(root, "bin")
  fs.mkdirSync(bin)
  const command = path.join(bin, "nvidia-smi")
  fs.symlinkSync(path.join(import.meta.dirname, "nvidia-smi"), command)
  const state = path.join(bin, "state.json")
  const has = (name: string) => fs.existsSync(path.join(bin, name))
  const read = (name: string) => fs.readFileSync(path.join(bin, name), "utf8")
  const world: World["Service"] = {
    command,
    proc: path.join(root, "proc"),
    sys: path.join(root, "sys"),
    set: (next) => {
      fs.rmSync(path.join(bin, "hanging"), { force: true })
      fs.writeFileSync(state, JSON.stringify({ uid: 0, ...next }))
    },
    state: () => JSON.parse(fs.readFileSync(state, "utf8")) as State,
    calls: () => has("calls") ? read("calls").trim().split("\n") : [],
    write: (name, content) => {
      fs.mkdirSync(path.dirname(path.join(root, name)), { recursive: true })
      fs.writeFileSync(path.join(root, name), content)
    },
    remove: (name) => fs.rmSync(path.join(root, name), { recursive: true, force: true }),
    has,
    hanging: Effect.gen(function*() {
      while (!has("hanging") || read("hanging") === "") {
        yield* Effect.promise(() => new Promise((resolve) => setImmediate(resolve)))
      }
      return Number(read("hanging"))
    })
  }
  world.set({ gpus: [rtx4090] })
  world.write("proc/meminfo", meminfo(32 * GiB, 24 * GiB))
  world.write("proc/cpuinfo", "vendor_id\t: GenuineIntel\nmodel name\t: Intel(R) Xeon(R)\nflags\t: fpu avx2 amx_tile\n")
  world.write("proc/stat", "cpu 100 0 100 800 0 0 0 0 0 0\n")
  return world
}

const root = Effect.acquireRelease(
  // The system's temporary folder may itself be a link.
  Effect.sync(() => fs.realpathSync(fs.mkdtempSync(path.join(os.tmpdir(), "device-")))),
  (root) => Effect.sync(() => fs.rmSync(root, { recursive: true }))
)

/** A world, for tests of single services. */
export const layerWorld = Layer.effect(World, Effect.map(root, makeWorld))

const secret = secretOf("device")

/** The embedded services over a world. */
export const layer = Layer.unwrap(Effect.gen(function*() {
  const folder = yield* root
  const world = makeWorld(folder)
  const directory = path.join(folder, "embedded")
  return Layer.mergeAll(
    layerEmbedded({
      directory,
      hubs: { huggingface: { token: Redacted.make(secret) } },
      device: {
        nvidiaSmi: { command: world.command },
        host: { proc: world.proc, sys: world.sys, platform: "linux" }
      }
    }),
    Layer.succeed(World, world),
    Layer.succeed(Host, { directory, ownTexts: [folder], secrets: [secret] })
  )
}))
