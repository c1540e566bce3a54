import { NodeServices } from "@effect/platform-node"
import { assert, describe, it } from "@effect/vitest"
import { ConfigProvider, Effect, Exit, Fiber, Layer, type Scope, Sink, Stream } from "effect"
import { ChildProcessSpawner } from "effect/process"
import { TestClock } from "effect/testing"
import * as fs from "node:fs"
import * as path from "node:path"
import * as Smi from "../../src/device/NvidiaSmi.ts"
import { gb10, h100Mig, oldDriver, rtx4090, secondCard } from "./cards.ts"
import { layerWorld, type Said, type State, World } from "./world.ts"

const program = (options?: Omit<Smi.Options, "command">) =>
  Layer.unwrap(Effect.map(World, ({ command }) => Smi.layer({ command, ...options }))).pipe(
    Layer.provide(NodeServices.layer)
  )

/** A test with a stand-in of its own. */
const test = <E>(name: string, effect: Effect.Effect<void, E, World | Smi.NvidiaSmi | Scope.Scope>, timeout?: number) =>
  it.effect(name, () => effect.pipe(Effect.provide(Layer.provideMerge(program(), layerWorld))), timeout)

const set = (state: State) => Effect.map(World, (world) => world.set(state))
const says = (said: Said) => set({ gpus: [rtx4090], says: said })

const reasonOf = <A, R>(effect: Effect.Effect<A, Smi.NvidiaSmiError, R>) =>
  Effect.map(Effect.flip(effect), ({ reason }) => reason)

const isAlive = (pid: number): boolean => {
  try {
    process.kill(pid, 0)
    return true
  } catch {
    return false
  }
}

describe("a query", () => {
  test(
    "gives all GPUs, or the one that is named by index, UUID or bus id",
    Effect.gen(function*() {
      const smi = yield* Smi.NvidiaSmi
      const second = secondCard(h100Mig)
      yield* set({ gpus: [rtx4090, second] })
      assert.deepStrictEqual((yield* smi.gpus).map(({ index, name }) => [index, name]), [
        [0, rtx4090["name"]],
        [1, second["name"]]
      ])
      for (const name of ["1", second["uuid"]!, second["pci.bus_id"]!]) {
        assert.strictEqual((yield* smi.gpu(name)).uuid, second["uuid"])
      }
    })
  )

  test(
    "of a host without GPUs is empty",
    Effect.gen(function*() {
      yield* set({ gpus: [] })
      const smi = yield* Smi.NvidiaSmi
      assert.deepStrictEqual(yield* smi.gpus, [])
      assert.deepStrictEqual(yield* reasonOf(smi.gpu("0")), new Smi.NotFound())
    })
  )

  test(
    "leaves out what the driver does not know, and remembers it",
    Effect.gen(function*() {
      const smi = yield* Smi.NvidiaSmi
      const { calls } = yield* World
      yield* set({ gpus: [oldDriver] })
      const [gpu] = yield* smi.gpus
      assert.deepStrictEqual([gpu?.computeCapability, gpu?.slowdown, gpu?.powerMin], [undefined, 1, 150])
      // compute_cap, mig.mode.current, and the new name of why clocks are low.
      assert.strictEqual(calls().length, 4)
      yield* smi.gpu("0")
      assert.strictEqual(calls().length, 5)
    })
  )

  test(
    "asks for little where the driver does not say what it does not know",
    Effect.gen(function*() {
      const smi = yield* Smi.NvidiaSmi
      yield* says({ code: 2, stderr: "ERROR: Option --query-gpu is not recognized.\n" })
      const reason = yield* reasonOf(smi.gpus)
      assert.deepStrictEqual(
        reason,
        new Smi.Failed({ exit_code: 2, detail: "ERROR: Option --query-gpu is not recognized." })
      )
      const { calls } = yield* World
      assert.strictEqual(calls().length, 2)
      assert.match(calls()[1]!, /^--query-gpu=index,uuid,pci\.bus_id,memory\.total,[^ ]*power\.limit,name /)
    })
  )

  const exits: ReadonlyArray<readonly [code: number, reason: Smi.NvidiaSmiError["reason"], message: RegExp]> = [
    [3, new Smi.NotSupported({ detail: "said" }), /does not support this: said/],
    [4, new Smi.NoPermission({ detail: "said" }), /refused: said\. Run as root/],
    [6, new Smi.NotFound(), /found no such GPU/],
    [8, new Smi.Failed({ exit_code: 8, detail: "said" }), /exit code 8: said\. Check that the driver/],
    [9, new Smi.Failed({ exit_code: 9, detail: "said" }), /exit code 9/],
    [10, new Smi.Failed({ exit_code: 10, detail: "said" }), /exit code 10/],
    [12, new Smi.Failed({ exit_code: 12, detail: "said" }), /exit code 12/],
    [13, new Smi.Failed({ exit_code: 13, detail: "said" }), /exit code 13/],
    [15, new Smi.Lost({ detail: "said" }), /a GPU is lost: said/],
    [255, new Smi.Failed({ exit_code: 255, detail: "said" }), /exit code 255/]
  ]
  for (const [code, reason, message] of exits) {
    test(
      `that ends with ${code} fails with ${reason._tag}`,
      Effect.gen(function*() {
        const smi = yield* Smi.NvidiaSmi
        yield* says({ code, stdout: "said\nmore\n" })
        const error = yield* Effect.flip(smi.gpu("0"))
        assert.deepStrictEqual(error, new Smi.NvidiaSmiError({ reason }))
        assert.match(error.message, message)
        // What is printed as an error counts where there is nothing else.
        yield* says({ code, stderr: "said\n" })
        assert.deepStrictEqual(yield* Effect.flip(smi.gpu("0")), error)
      })
    )
  }

  test(
    "counts when an infoROM is damaged, or another GPU is lost",
    Effect.gen(function*() {
      const smi = yield* Smi.NvidiaSmi
      for (const code of [14, 15]) {
        yield* says({ code, stdout: "WARNING: infoROM is corrupted at gpu 0000:01:00.0\n", withRows: true })
        assert.deepStrictEqual((yield* smi.gpus).map(({ index }) => index), [0])
      }
      yield* set({ gpus: [rtx4090], says: { code: 14, stdout: "WARNING: infoROM is corrupted\n" } })
      assert.strictEqual((yield* reasonOf(smi.gpus))._tag, "Malformed")
    })
  )

  test(
    "whose output is something else fails with what is wrong with it",
    Effect.gen(function*() {
      const smi = yield* Smi.NvidiaSmi
      for (const stdout of ["", "<html>", "0, GPU-", "\u0000\u0001\u0002"]) {
        yield* says({ code: 0, stdout })
        assert.strictEqual((yield* reasonOf(smi.gpus))._tag, "Malformed", stdout)
      }
      yield* says({ code: 0, stdout: "x".repeat(2 * 1024 * 1024) })
      assert.match((yield* reasonOf(smi.gpus)).message, /could not be run: .*prints more than 1 MiB/)
    })
  )
})

describe("the program", () => {
  test(
    "is killed when it does not end in time, even where it ignores to be told",
    Effect.gen(function*() {
      const smi = yield* Smi.NvidiaSmi
      const { hanging } = yield* World
      for (const ignoresSignals of [false, true]) {
        yield* set({ gpus: [rtx4090], hangs: "always", ignoresSignals })
        const fiber = yield* Effect.forkChild(reasonOf(smi.gpus))
        const pid = yield* hanging
        yield* TestClock.adjust("9999 millis")
        assert.isTrue(isAlive(pid))
        yield* TestClock.adjust("1 millis")
        assert.deepStrictEqual(yield* Fiber.join(fiber), new Smi.TimedOut())
        assert.isFalse(isAlive(pid))
      }
    })
  )

  test(
    "is killed when nobody waits for it any more",
    Effect.gen(function*() {
      const smi = yield* Smi.NvidiaSmi
      const { hanging } = yield* World
      yield* set({ gpus: [rtx4090], hangs: "always" })
      const fiber = yield* Effect.forkChild(smi.gpus)
      const pid = yield* hanging
      yield* Fiber.interrupt(fiber)
      assert.isFalse(isAlive(pid))
    })
  )

  it.effect("is left behind where it hangs in the driver and cannot be killed", () =>
    Effect.gen(function*() {
      const spawner = ChildProcessSpawner.make(() =>
        Effect.acquireRelease(
          Effect.succeed(ChildProcessSpawner.makeHandle({
            pid: ChildProcessSpawner.ProcessId(1),
            exitCode: Effect.never,
            isRunning: Effect.succeed(true),
            kill: () => Effect.never,
            stdin: Sink.drain,
            stdout: Stream.never,
            stderr: Stream.never,
            all: Stream.never,
            getInputFd: () => Sink.drain,
            getOutputFd: () => Stream.never,
            unref: Effect.succeed(Effect.void)
          })),
          () => Effect.never
        )
      )
      const smi = yield* Smi.NvidiaSmi.pipe(
        Effect.provide(Layer.provide(Smi.layer(), Layer.succeed(ChildProcessSpawner.ChildProcessSpawner, spawner)))
      )
      const fiber = yield* Effect.forkChild(reasonOf(smi.gpus))
      yield* TestClock.adjust("10 seconds")
      assert.strictEqual(fiber.pollUnsafe(), undefined)
      yield* TestClock.adjust("3 seconds")
      assert.deepStrictEqual(yield* Fiber.join(fiber), new Smi.TimedOut())
    }))

  const at = (command: Smi.Options["command"]) =>
    Effect.flatMap(Smi.NvidiaSmi, ({ gpus }) => gpus).pipe(
      Effect.provide(Layer.provide(Smi.layer({ command }), NodeServices.layer))
    )

  test(
    "is the first one that is there",
    Effect.gen(function*() {
      const { command } = yield* World
      assert.strictEqual((yield* at(["no-such-program", "/no/such/program", command])).length, 1)
      assert.deepStrictEqual(yield* reasonOf(at(["no-such-program", "/no/such/program"])), new Smi.NotInstalled())
      assert.match((yield* Effect.flip(at([]))).message, /nvidia-smi is not installed\. Install the NVIDIA driver/)
    })
  )

  test(
    "that is there and cannot be started is a failure of its own",
    Effect.gen(function*() {
      const { command } = yield* World
      const file = path.join(path.dirname(command), "text")
      fs.writeFileSync(file, "no program")
      const denied = yield* reasonOf(at([file, command]))
      assert.strictEqual(denied._tag, "Failed")
      assert.match(denied.message, /^could not be run: .*Check the installation/)
    })
  )

  test(
    "is where the environment says, and nothing in its arguments reaches a shell",
    Effect.gen(function*() {
      const { calls, command } = yield* World
      const from = (env: Record<string, string>) =>
        Layer.provide(Smi.layerConfig(), [
          NodeServices.layer,
          ConfigProvider.layer(ConfigProvider.fromUnknown(env))
        ])
      const smi = yield* Effect.provide(Smi.NvidiaSmi, from({ NVIDIA_SMI: command }))
      assert.strictEqual((yield* smi.gpus).length, 1)
      assert.deepStrictEqual(yield* reasonOf(smi.gpu("$(reboot); *")), new Smi.NotFound())
      assert.match(calls().at(-1)!, / -i \$\(reboot\); \*$/)
      const missing = yield* Effect.provide(Smi.NvidiaSmi, from({ NVIDIA_SMI: "/no/such/program" }))
      assert.deepStrictEqual(yield* reasonOf(missing.gpus), new Smi.NotInstalled())
      for (const env of [{}, { NVIDIA_SMI: " " }]) {
        const exit = yield* Effect.exit(
          Effect.flatMap(Smi.NvidiaSmi, ({ gpus }) => gpus).pipe(Effect.provide(from(env)))
        )
        // Whatever this host has: not the stand-in.
        assert.isFalse(Exit.isSuccess(exit) && exit.value.some(({ uuid }) => uuid === rtx4090["uuid"]))
      }
    })
  )
})

describe("a power limit", () => {
  test(
    "is set as root, within the bounds of the card",
    Effect.gen(function*() {
      const smi = yield* Smi.NvidiaSmi
      yield* smi.setPowerLimit("0", 250.9)
      assert.strictEqual((yield* smi.gpu("0")).powerLimit, 250.9)
      const refused = yield* reasonOf(smi.setPowerLimit("0", 601))
      assert.match(refused.message, /exit code 2: Provided power limit 601 W is not a valid power limit/)
      yield* set({ gpus: [rtx4090], uid: 1000 })
      assert.strictEqual((yield* reasonOf(smi.setPowerLimit("0", 250)))._tag, "NoPermission")
      yield* set({ gpus: [gb10] })
      assert.strictEqual((yield* reasonOf(smi.setPowerLimit("0", 250)))._tag, "NotSupported")
      assert.deepStrictEqual(yield* reasonOf(smi.setPowerLimit("7", 250)), new Smi.NotFound())
    })
  )
})
