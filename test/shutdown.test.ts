import { assert, describe, it } from "@effect/vitest"
import { Effect } from "effect"
import { spawn } from "node:child_process"
import { once } from "node:events"
import * as path from "node:path"
import { createInterface } from "node:readline"
import { range } from "./publisherWorld.ts"

/** Starts the program, ends it as an operator does once it is ready, and gives what it wrote after that. */
const terminated = (...args: ReadonlyArray<string>) =>
  Effect.acquireUseRelease(
    Effect.sync(() =>
      spawn(process.execPath, [path.join(import.meta.dirname, "fixtures/bufferedPublisherProcess.ts"), ...args], {
        stdio: ["ignore", "pipe", "inherit"]
      })
    ),
    (child) =>
      Effect.promise(async () => {
        const closed = once(child, "close")
        const lines: Array<string> = []
        for await (const line of createInterface(child.stdout)) {
          if (line === "ready") child.kill("SIGTERM")
          else lines.push(line)
        }
        await closed
        return lines
      }),
    (child) => Effect.sync(() => child.kill("SIGKILL"))
  )

describe("a process that is told to end", () => {
  it.live("publishes what its buffer holds", () =>
    Effect.gen(function*() {
      assert.deepStrictEqual(yield* terminated(), range(1, 10_000).map(String))
    }), 60_000)

  it.live("says what it could not publish before the deadline", () =>
    Effect.gen(function*() {
      const lines = yield* terminated("stuck")
      assert.deepStrictEqual(lines.map((line) => line.replace(/^.*WARN[^:]*: /, "")), [
        "A publisher could not publish all events within its flushTimeout: 10000 were dropped. " +
        "Give it more time, or a faster transport"
      ])
    }), 60_000)
})
