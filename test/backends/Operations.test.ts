import { assert, describe, it } from "@effect/vitest"
import { Context, Deferred, Effect, Exit, Fiber, Layer, Schema } from "effect"
import { SqlClient, type SqlError } from "effect/sql"
import { TestClock } from "effect/testing"
import * as fs from "node:fs"
import * as os from "node:os"
import * as path from "node:path"
import * as Operations from "../../src/backends/Operations.ts"
import * as Sqlite from "../../src/backends/Sqlite.ts"

class Missing extends Schema.TaggedError<Missing>()("Missing", { id: Schema.String }) {}
class Failed extends Schema.TaggedError<Failed>()("Failed", { action: Schema.String, cause: Schema.Defect() }) {}

const settings = {
  table: "things",
  lease: "10 seconds",
  missing: (id: string) => new Missing({ id }),
  failed: (action: string) => (cause: SqlError.SqlError) => new Failed({ action, cause })
} as const

type Operation = "build" | "check"

const temporaryFile = Effect.map(
  Effect.acquireRelease(
    Effect.sync(() => fs.mkdtempSync(path.join(os.tmpdir(), "operations-"))),
    (directory) => Effect.sync(() => fs.rmSync(directory, { recursive: true }))
  ),
  (directory) => path.join(directory, "test.db")
)

/** The operations of one process. */
const process = Effect.fnUntraced(function*(filename: string) {
  const sql = Context.get(yield* Layer.build(Sqlite.layer({ filename })), SqlClient.SqlClient)
  const operations = yield* Operations.make<Operation, Missing, Failed>(settings).pipe(
    Effect.provideService(SqlClient.SqlClient, sql)
  )
  return { sql, ...operations }
})

/** A table with the record `a`, and the operations on it. */
const setup = Effect.gen(function*() {
  const filename = yield* temporaryFile
  const things = yield* process(filename)
  const { sql } = things
  yield* sql`CREATE TABLE things (id TEXT PRIMARY KEY, state TEXT, ${sql.literal(Operations.columns)})`
  yield* sql`INSERT INTO things (id, state) VALUES ('a', 'new')`
  const row = Effect.map(sql`SELECT * FROM things`, ([row]) => ({ ...row }))
  return { filename, row, ...things }
})

const free = { operation: null, operation_token: null, operation_until: null, operation_cancelled: null }

/** Work that has begun, and goes on until it is interrupted; it says when it has cleaned up. */
const endless = Effect.gen(function*() {
  const begun = yield* Deferred.make<unknown>()
  const log: Array<string> = []
  const work = (row: unknown) =>
    Effect.andThen(Deferred.succeed(begun, row), Effect.never).pipe(
      Effect.ensuring(Effect.andThen(Effect.yieldNow, Effect.sync(() => void log.push("cleaned up"))))
    )
  return { work, begun: Deferred.await(begun), log }
})

describe("during", () => {
  it.effect("claims the record for as long as the work goes on, with the columns that change together", () =>
    Effect.gen(function*() {
      const { during, row } = yield* setup
      yield* TestClock.setTime(5000)
      const result = yield* during({
        id: "a",
        operation: "build",
        set: { state: "building" },
        work: (claimed) =>
          Effect.gen(function*() {
            const now = yield* row
            assert.deepStrictEqual({ ...claimed as object }, now)
            assert.deepInclude(now, { id: "a", state: "building", operation: "build", operation_until: 15_000 })
            assert.match(String(now["operation_token"]), /^[0-9a-f]{12}$/)
            return 7
          })
      })
      assert.strictEqual(result, 7)
      assert.deepStrictEqual(yield* row, { id: "a", state: "building", ...free })
    }))

  it.effect("gives the record free whatever the end of the work", () =>
    Effect.gen(function*() {
      const { during, row } = yield* setup
      const run = <A, E>(work: Effect.Effect<A, E>) =>
        Effect.exit(during({ id: "a", operation: "build", work: () => work }))
      assert.deepStrictEqual(yield* run(Effect.fail("no")), Exit.fail("no"))
      assert.deepStrictEqual(yield* row, { id: "a", state: "new", ...free })
      assert.deepStrictEqual(yield* run(Effect.die("defect")), Exit.die("defect"))
      assert.deepStrictEqual(yield* row, { id: "a", state: "new", ...free })
      const { begun, log, work } = yield* endless
      const fiber = yield* Effect.forkChild(run(work(undefined)))
      yield* begun
      yield* Fiber.interrupt(fiber)
      assert.deepStrictEqual(log, ["cleaned up"])
      assert.deepStrictEqual(yield* row, { id: "a", state: "new", ...free })
    }))

  it.effect("fails where there is other work, no record, or no table", () =>
    Effect.gen(function*() {
      const { during, sql } = yield* setup
      const { begun, work } = yield* endless
      const fiber = yield* Effect.forkChild(during({ id: "a", operation: "build", work }))
      yield* begun
      const check = (id: string) => Effect.flip(during({ id, operation: "check", work: () => Effect.void }))
      assert.deepStrictEqual(yield* check("a"), new Operations.Busy({ id: "a", operation: "build" }))
      assert.deepStrictEqual(yield* check("b"), new Missing({ id: "b" }))
      yield* Fiber.interrupt(fiber)
      yield* sql`DROP TABLE things`
      const error = yield* check("a")
      assert.instanceOf(error, Failed)
      assert.strictEqual(error.action, "check")
    }))

  it.effect("claims nothing when it is interrupted while it waits for the database", () =>
    Effect.gen(function*() {
      const { during, row, sql } = yield* setup
      const held = yield* Deferred.make<void>()
      const holder = yield* Effect.forkChild(
        sql.withTransaction(Effect.andThen(Deferred.succeed(held, undefined), Effect.never))
      )
      yield* Deferred.await(held)
      const fiber = yield* Effect.forkChild(during({ id: "a", operation: "build", work: () => Effect.never }))
      yield* Effect.yieldNow
      const interrupting = yield* Effect.forkChild(Fiber.interrupt(fiber))
      yield* Effect.yieldNow
      yield* Fiber.interrupt(holder)
      yield* Fiber.join(interrupting)
      assert.deepStrictEqual(yield* row, { id: "a", state: "new", ...free })
    }))

  it.effect("renews its claim, also when the database fails for a while", () =>
    Effect.gen(function*() {
      const { during, row, sql } = yield* setup
      const { begun, work } = yield* endless
      const fiber = yield* Effect.forkChild(during({ id: "a", operation: "build", work }))
      yield* begun
      yield* TestClock.adjust("25 seconds")
      assert.strictEqual((yield* row)["operation_until"], 35_000)
      yield* sql`ALTER TABLE things RENAME TO away`
      yield* TestClock.adjust("5 seconds")
      yield* sql`ALTER TABLE away RENAME TO things`
      assert.strictEqual((yield* row)["operation_until"], 35_000)
      yield* TestClock.adjust("1 second")
      assert.strictEqual((yield* row)["operation_until"], 41_000)
      assert.instanceOf(
        yield* Effect.flip(during({ id: "a", operation: "check", work: () => Effect.void })),
        Operations.Busy
      )
      yield* Fiber.interrupt(fiber)
    }))

  it.effect("takes over what nobody has renewed, and ends the work that has lost its claim", () =>
    Effect.gen(function*() {
      const { during, row, sql } = yield* setup
      const { begun, log, work } = yield* endless
      const fiber = yield* Effect.forkChild(Effect.flip(during({ id: "a", operation: "build", work })))
      yield* begun
      // As if this process had stood still.
      yield* sql`UPDATE things SET operation_until = -1`
      const other = yield* endless
      const second = yield* Effect.forkChild(during({ id: "a", operation: "check", work: other.work }))
      assert.deepInclude(yield* other.begun, { operation: "check" })
      yield* TestClock.adjust("1 second")
      assert.deepStrictEqual(yield* Fiber.join(fiber), new Operations.Cancelled({ id: "a" }))
      assert.deepStrictEqual(log, ["cleaned up"])
      assert.deepInclude(yield* row, { operation: "check", operation_until: 11_000 })
      yield* Fiber.interrupt(second)
      assert.deepStrictEqual(yield* row, { id: "a", state: "new", ...free })
    }))

  it.effect("lets work finish that removes its own record", () =>
    Effect.gen(function*() {
      const { during, sql } = yield* setup
      const work = Effect.andThen(sql`DELETE FROM things`, Effect.as(Effect.sleep("1 minute"), "done"))
      const fiber = yield* Effect.forkChild(during({ id: "a", operation: "build", work: () => work }))
      yield* TestClock.adjust("1 minute")
      assert.strictEqual(yield* Fiber.join(fiber), "done")
    }))
})

describe("cancel", () => {
  it.effect("ends the work and waits until it has cleaned up", () =>
    Effect.gen(function*() {
      const { cancel, during, row } = yield* setup
      assert.isFalse(yield* cancel("a", ["build"]))
      assert.isFalse(yield* cancel("b", ["build"]))
      const { begun, log, work } = yield* endless
      const fiber = yield* Effect.forkChild(Effect.flip(during({ id: "a", operation: "build", work })))
      yield* begun
      assert.isFalse(yield* cancel("a", ["check"]))
      assert.deepInclude(yield* row, { operation: "build", operation_cancelled: null })
      assert.isTrue(yield* cancel("a", ["check", "build"]))
      assert.deepStrictEqual(log, ["cleaned up"])
      assert.deepStrictEqual(yield* row, { id: "a", state: "new", ...free })
      assert.deepStrictEqual(yield* Fiber.join(fiber), new Operations.Cancelled({ id: "a" }))
    }))

  it.effect("reaches work of another process", () =>
    Effect.gen(function*() {
      const { during, filename, row } = yield* setup
      const other = yield* process(filename)
      const { begun, log, work } = yield* endless
      const fiber = yield* Effect.forkChild(Effect.flip(during({ id: "a", operation: "build", work })))
      yield* begun
      const cancelling = yield* Effect.forkChild(other.cancel("a", ["build"]))
      yield* TestClock.adjust("999 millis")
      assert.deepStrictEqual(log, [])
      yield* TestClock.adjust("101 millis")
      assert.isTrue(yield* Fiber.join(cancelling))
      assert.deepStrictEqual(log, ["cleaned up"])
      assert.deepStrictEqual(yield* Fiber.join(fiber), new Operations.Cancelled({ id: "a" }))
      assert.deepStrictEqual(yield* row, { id: "a", state: "new", ...free })
    }))

  it.effect("waits no longer than the claim of a process that is gone", () =>
    Effect.gen(function*() {
      const { cancel, sql } = yield* setup
      yield* sql`UPDATE things SET operation = 'build', operation_token = 'gone', operation_until = 3000`
      const cancelling = yield* Effect.forkChild(cancel("a", ["build"]))
      yield* TestClock.adjust("3 seconds")
      assert.isUndefined(cancelling.pollUnsafe())
      yield* TestClock.adjust("100 millis")
      assert.isTrue(yield* Fiber.join(cancelling))
    }))
})

it.live("never has two at work on a record, in two processes that share a database", () =>
  Effect.gen(function*() {
    const { filename, row, ...one } = yield* setup
    const two = yield* process(filename)
    let working = 0
    let most = 0
    let done = 0
    const work = () =>
      Effect.gen(function*() {
        most = Math.max(most, ++working)
        yield* Effect.yieldNow
        done++
      }).pipe(Effect.ensuring(Effect.sync(() => void working--)))
    const attempt = (index: number) =>
      (index % 2 === 0 ? one : two).during({ id: "a", operation: "build", work }).pipe(
        Effect.eventually,
        Effect.timeout("20 seconds")
      )
    yield* Effect.forEach(Array.from({ length: 40 }, (_, index) => index), attempt, { concurrency: 8, discard: true })
    assert.deepStrictEqual({ done, most, working }, { done: 40, most: 1, working: 0 })
    assert.deepStrictEqual(yield* row, { id: "a", state: "new", ...free })
  }))
