import { assert, describe, it } from "@effect/vitest"
import { Effect, Exit, Fiber, Queue, Result, Schema, Scope } from "effect"
import { once } from "node:events"
import * as net from "node:net"
import * as Ports from "../../src/backends/Ports.ts"
import { start } from "../fixtures/childProcess.ts"
import { freePort } from "../fixtures/ownServer.ts"

const listening = (port: number, host = "127.0.0.1") =>
  Effect.acquireRelease(
    Effect.promise(async () => {
      const server = net.createServer().listen(port, host)
      await once(server, "listening")
      return server
    }),
    (server) => Effect.promise(() => new Promise((resolve) => server.close(resolve)))
  )

/** Eight ports below those that systems give out by themselves, others for each process that runs these tests. */
const from = 30_000 + 8 * (process.pid % 345)
const range = { from, to: from + 7 }

const me = { pid: process.pid, name: "node" }

/** What `reserve` fails with; a reservation that it makes is released again. */
const reasonOf = (options: Ports.Options) =>
  Effect.scoped(Effect.map(Effect.flip(Ports.reserve(options)), ({ reason }) => reason))

/** Names of a process's main thread differ with the test pool; who it is, its id says. */
const withName = (reason: Ports.PortError["reason"]) =>
  "holder" in reason && reason.holder !== undefined ? { ...reason.holder, name: "node" } : undefined

describe("reserve", () => {
  it.effect("gives a wished port, on which its holder can listen, and to nobody else", () =>
    Effect.gen(function*() {
      const port = yield* freePort
      const reservation = yield* Ports.reserve({ purpose: "engine vllm", port })
      assert.deepInclude(reservation, { host: "127.0.0.1", port })
      assert.deepStrictEqual(
        yield* reasonOf({ purpose: "engine tts", port }),
        new Ports.Reserved({ port, purpose: "engine vllm", holder: undefined })
      )
      yield* Effect.scoped(listening(port))
      yield* reservation.prove
    }))

  it.effect("gives the port to the next one when the scope is closed, whatever its end", () =>
    Effect.gen(function*() {
      const port = yield* freePort
      yield* Effect.scoped(Ports.reserve({ purpose: "first", port }))
      yield* Effect.exit(Effect.scoped(Effect.andThen(Ports.reserve({ purpose: "second", port }), Effect.fail("no"))))
      const third = yield* Effect.forkChild(
        Effect.scoped(Effect.andThen(Ports.reserve({ purpose: "third", port }), Effect.never)),
        { startImmediately: true }
      )
      yield* Fiber.interrupt(third)
      assert.strictEqual((yield* Ports.reserve({ purpose: "fourth", port })).port, port)
    }))

  it.effect("names the process that listens on a wished port, at whatever address", () =>
    Effect.gen(function*() {
      const port = yield* freePort
      yield* listening(port, "0.0.0.0")
      const reason = yield* reasonOf({ purpose: "x", port })
      assert.strictEqual(reason._tag, "Taken")
      assert.deepStrictEqual(withName(reason), me)
      assert.match(
        reason.message,
        new RegExp(`^port ${port} of 127.0.0.1 is held by .+ \\(process ${process.pid}\\)\\. Stop that`)
      )
    }))

  it.effect("takes another port where a preferred one is taken or reserved", () =>
    Effect.gen(function*() {
      const [taken, free] = [yield* freePort, yield* freePort]
      yield* listening(taken)
      const other = yield* Ports.reserve({ purpose: "a", preferred: taken })
      assert.isTrue(other.port >= 20_000 && other.port <= 29_999)
      assert.strictEqual((yield* Ports.reserve({ purpose: "b", preferred: free })).port, free)
      assert.notStrictEqual((yield* Ports.reserve({ purpose: "c", preferred: free })).port, free)
    }))

  it.effect("proves again, and tells who took the port after it was given", () =>
    Effect.gen(function*() {
      const reservation = yield* Ports.reserve({ purpose: "a" })
      yield* listening(reservation.port)
      const { reason } = yield* Effect.flip(reservation.prove)
      assert.strictEqual(reason._tag, "Taken")
      assert.deepStrictEqual(withName(reason), me)
    }))

  it.effect("says what is wrong with a number, an address, or a range without a free port", () =>
    Effect.gen(function*() {
      for (const port of [0, -1, 65_536, 1.5, Number.NaN]) {
        assert.deepStrictEqual(yield* reasonOf({ purpose: "x", port }), new Ports.InvalidPort({ port }))
      }
      const host = "192.0.2.1" // RFC 5737: nobody's
      assert.deepStrictEqual(yield* reasonOf({ purpose: "x", host }), new Ports.NoSuchAddress({ host }))
      const port = yield* freePort
      yield* listening(port)
      assert.deepStrictEqual(
        yield* Effect.provideService(reasonOf({ purpose: "x" }), Ports.Range, { from: port, to: port }),
        new Ports.Exhausted({ host: "127.0.0.1", from: port, to: port })
      )
    }))

  it.effect.prop("never gives a port twice, however many ask at once and whatever they wish for", {
    wishes: Schema.Array(Schema.UndefinedOr(Schema.Int.check(Schema.isBetween({ minimum: 0, maximum: 7 })))).check(
      Schema.isMaxLength(12)
    ),
    releases: Schema.Array(Schema.Boolean)
  }, ({ releases, wishes }) =>
    Effect.gen(function*() {
      const owners = new Map<number, number>()
      const results = yield* Effect.forEach(wishes, (wish, i) =>
        Effect.gen(function*() {
          const scope = yield* Effect.acquireRelease(Scope.make(), (scope, exit) => Scope.close(scope, exit))
          const result = yield* Ports.reserve({
            purpose: `owner ${i}`,
            preferred: wish === undefined ? undefined : range.from + wish
          }).pipe(Scope.provide(scope), Effect.result)
          if (Result.isFailure(result)) {
            // Some are given back meanwhile, so that whoever asks before that finds no port.
            assert.strictEqual(result.failure.reason._tag, "Exhausted")
            return false
          }
          const { port } = result.success
          assert.isFalse(owners.has(port), `port ${port} was given to ${owners.get(port)} and ${i}`)
          owners.set(port, i)
          if (releases[i] === true) {
            yield* Effect.yieldNow
            owners.delete(port)
            yield* Scope.close(scope, Exit.void)
          }
          return true
        }), { concurrency: "unbounded" })
      assert.isAtLeast(results.filter(Boolean).length, Math.min(wishes.length, 8))
    }).pipe(Effect.scoped, Effect.provideService(Ports.Range, range)), {
    arbitrary: { runs: 60 }
  })
})

describe.runIf(process.platform === "linux")("another program", () => {
  it.effect("does not get a port that is reserved here, and gives its own back even where it is killed", () =>
    Effect.gen(function*() {
      const port = yield* freePort
      yield* Effect.scoped(Effect.gen(function*() {
        yield* Ports.reserve({ purpose: "here", port })
        const other = yield* start("portProcess.ts", String(port))
        assert.match(
          yield* Queue.take(other.lines),
          new RegExp(`^port ${port} is reserved for .+ \\(process ${process.pid}\\)`)
        )
      }))
      const other = yield* start("portProcess.ts", String(port))
      assert.strictEqual(yield* Queue.take(other.lines), "reserved")
      const reason = yield* reasonOf({ purpose: "here", port })
      assert.strictEqual(reason._tag, "Reserved")
      assert.isDefined(withName(reason))
      yield* other.kill
      assert.strictEqual((yield* Ports.reserve({ purpose: "here", port })).port, port)
    }))
})
