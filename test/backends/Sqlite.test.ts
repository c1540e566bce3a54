import { assert, describe, it, vi } from "@effect/vitest"
import { Context, Deferred, Effect, Exit, Fiber, Layer, Stream } from "effect"
import { SqlClient, type SqlError } from "effect/sql"
import { TestClock } from "effect/testing"
import * as fs from "node:fs"
import * as os from "node:os"
import * as path from "node:path"
import { DatabaseSync } from "node:sqlite"
import * as Sqlite from "../../src/backends/Sqlite.ts"

const temporaryDirectory = Effect.acquireRelease(
  Effect.sync(() => fs.mkdtempSync(path.join(os.tmpdir(), "sqlite-"))),
  (directory) => Effect.sync(() => fs.rmSync(directory, { recursive: true }))
)

const build = (options: Sqlite.Options) =>
  Effect.map(Layer.build(Sqlite.layer(options)), Context.get(SqlClient.SqlClient))

const memory = build({ filename: ":memory:" })

/** A client and the path of its file, in a directory of its own. */
const onFile = Effect.gen(function*() {
  const filename = path.join(yield* temporaryDirectory, "test.db")
  return { filename, sql: yield* build({ filename }) }
})

const other = (filename: string) =>
  Effect.acquireRelease(Effect.sync(() => new DatabaseSync(filename)), (db) => Effect.sync(() => db.close()))

const openFailure = (options: Sqlite.Options) => Effect.map(Effect.flip(build(options)), (error) => error.reason)

/** What is worth comparing of a failed statement. */
const summary = (error: SqlError.SqlError) => ({
  tag: error.reason._tag,
  code: Sqlite.resultCode(error),
  message: error.message
})

/** Root may write what nobody else may; run as nobody so that permissions count. */
const asUnprivileged = <A, E, R>(effect: Effect.Effect<A, E, R>) =>
  Effect.acquireUseRelease(
    Effect.sync(() => {
      const root = process.geteuid!() === 0
      if (root) process.seteuid!(65534)
      return root
    }),
    () => effect,
    (root) =>
      Effect.sync(() => {
        if (root) process.seteuid!(0)
      })
  )

describe("values", () => {
  it.effect("come back as they went in", () =>
    Effect.gen(function*() {
      const sql = yield* memory
      const rows = yield* sql<Record<string, unknown>>`SELECT
        ${null} AS none, ${undefined} AS absent, ${true} AS yes, ${false} AS off, ${-7} AS small,
        ${Number.MAX_SAFE_INTEGER} AS large, ${1.5} AS real, ${"a\u0000b é 🙂"} AS text,
        ${new Date(0)} AS date, ${new Uint8Array([0, 1, 255])} AS blob, ${3n} AS big`
      assert.deepStrictEqual(rows.map((row) => ({ ...row })), [{
        none: null,
        absent: null,
        yes: 1,
        off: 0,
        small: -7,
        large: Number.MAX_SAFE_INTEGER,
        real: 1.5,
        text: "a\u0000b é 🙂",
        date: "1970-01-01T00:00:00.000Z",
        blob: new Uint8Array([0, 1, 255]),
        big: 3
      }])
    }))

  it.effect("an integer stays an integer in text and JSON", () =>
    Effect.gen(function*() {
      const sql = yield* memory
      yield* sql`CREATE TABLE notes (body TEXT)`
      yield* sql`INSERT INTO notes VALUES (${1}), (json_array(${1}, ${1.5}))`
      assert.deepStrictEqual(yield* sql`SELECT body FROM notes`.values, [["1"], ["[1,1.5]"]])
    }))

  it.effect("integers beyond 2^53 are read as bigint on demand, and never cut", () =>
    Effect.gen(function*() {
      const sql = yield* memory
      const read = sql`SELECT ${2n ** 60n + 1n} AS n`
      assert.deepStrictEqual(
        yield* read.values.pipe(Effect.provideService(SqlClient.SafeIntegers, true)),
        [[2n ** 60n + 1n]]
      )
      const error = yield* Effect.flip(read)
      assert.include(error.message, "provide SqlClient.SafeIntegers")
      assert.deepStrictEqual(yield* sql`SELECT ${5} AS n`.values, [[5]])
    }))

  it.effect("what cannot be bound is an error, also in the first place", () =>
    Effect.gen(function*() {
      const sql = yield* memory
      yield* sql`CREATE TABLE notes (body TEXT)`
      for (const value of [{ a: 1 }, [1], Symbol("s"), 2n ** 64n]) {
        const error = yield* Effect.flip(sql`INSERT INTO notes VALUES (${value})`)
        assert.strictEqual(error.reason._tag, "UnknownError")
      }
      assert.deepStrictEqual(yield* sql`SELECT * FROM notes`, [])
    }))
})

describe("statements", () => {
  it.effect("a client has foreign keys, write-ahead logging and the asked durability", () =>
    Effect.gen(function*() {
      const directory = yield* temporaryDirectory
      const pragmas = (sql: SqlClient.SqlClient) =>
        Effect.forEach(["journal_mode", "foreign_keys", "synchronous"], (name) =>
          Effect.map(sql`PRAGMA ${sql(name)}`.values, ([row]) => row?.[0]))
      assert.deepStrictEqual(
        yield* pragmas(yield* build({ filename: path.join(directory, "a.db") })),
        ["wal", 1, 1]
      )
      assert.deepStrictEqual(
        yield* pragmas(yield* build({ filename: path.join(directory, "b.db"), synchronous: "full" })),
        ["wal", 1, 2]
      )
    }))

  it.effect("failures are classified", () =>
    Effect.gen(function*() {
      const sql = yield* memory
      yield* sql`CREATE TABLE parents (id INTEGER PRIMARY KEY, name TEXT UNIQUE)`
      yield* sql`CREATE TABLE children (parent INTEGER NOT NULL REFERENCES parents (id))`
      yield* sql`INSERT INTO parents ${sql.insert({ id: 1, name: "a" })}`
      assert.deepStrictEqual(
        yield* Effect.forEach([
          sql`INSERT INTO parents ${sql.insert({ id: 2, name: "a" })}`,
          sql`INSERT INTO parents ${sql.insert({ id: 1, name: "b" })}`,
          sql`INSERT INTO children ${sql.insert({ parent: 7 })}`,
          sql`SELECT * FROM missing`
        ], (statement) => Effect.map(Effect.flip(statement), summary)),
        [
          { tag: "UniqueViolation", code: 19, message: "UNIQUE constraint failed: parents.name" },
          { tag: "UniqueViolation", code: 19, message: "UNIQUE constraint failed: parents.id" },
          { tag: "ConstraintError", code: 19, message: "FOREIGN KEY constraint failed" },
          { tag: "SqlSyntaxError", code: 1, message: "no such table: missing" }
        ]
      )
    }))

  it.effect("a second statement in one text is refused, not ignored", () =>
    Effect.gen(function*() {
      const sql = yield* memory
      const error = yield* Effect.flip(sql.unsafe("CREATE TABLE a (x); CREATE TABLE b (x)"))
      assert.include(error.message, "CREATE TABLE b")
      yield* sql.unsafe("CREATE TABLE a (x); -- the only one\n /* and\n no more */ ;")
      assert.deepStrictEqual(yield* sql`SELECT name FROM sqlite_schema`.values, [["a"]])
    }))

  it.effect("rows, values, raw and bigints agree, also when every statement pushes the last one out", () =>
    Effect.gen(function*() {
      const sql = yield* build({ filename: ":memory:", preparedStatements: 1 })
      yield* sql`CREATE TABLE counts (n INTEGER)`
      for (let n = 1; n <= 3; n++) {
        assert.deepStrictEqual(
          yield* sql`INSERT INTO counts VALUES (${n})`.raw,
          { changes: 1, lastInsertRowid: n }
        )
        const read = sql<{ n: number }>`SELECT n FROM counts WHERE n = ${n}`
        assert.deepStrictEqual((yield* read).map((row) => row.n), [n])
        assert.deepStrictEqual(yield* read.values, [[n]])
        assert.deepStrictEqual(
          yield* read.values.pipe(Effect.provideService(SqlClient.SafeIntegers, true)),
          [[BigInt(n)]]
        )
        assert.deepStrictEqual((yield* read.unprepared).map((row) => row.n), [n])
        assert.deepStrictEqual(yield* read.valuesUnprepared, [[n]])
      }
    }))

  it.effect("the least recently used statement goes first", () =>
    Effect.gen(function*() {
      const sql = yield* build({ filename: ":memory:", preparedStatements: 2 })
      const prepare = yield* Effect.acquireRelease(
        Effect.sync(() => vi.spyOn(DatabaseSync.prototype, "prepare")),
        (spy) => Effect.sync(() => spy.mockRestore())
      )
      for (const text of ["SELECT 1", "SELECT 2", "SELECT 1", "SELECT 3", "SELECT 1", "SELECT 2"]) {
        yield* sql.unsafe(text)
      }
      assert.deepStrictEqual(prepare.mock.calls.flat(), ["SELECT 1", "SELECT 2", "SELECT 3", "SELECT 2"])
    }))

  it.effect("a stream reads all rows, and one that stops early leaves no read open", () =>
    Effect.gen(function*() {
      const sql = yield* memory
      yield* sql`CREATE TABLE counts AS
        WITH RECURSIVE c(n) AS (SELECT 1 UNION ALL SELECT n + 1 FROM c WHERE n < 1000) SELECT n FROM c`
      const all = sql<{ n: number }>`SELECT n FROM counts ORDER BY n`.stream.pipe(Stream.map((row) => row.n))
      assert.deepStrictEqual(yield* Stream.runCollect(all), Array.from({ length: 1000 }, (_, i) => i + 1))
      assert.deepStrictEqual(
        yield* Stream.runCollect(Stream.take(all, 130)),
        Array.from({ length: 130 }, (_, i) => i + 1)
      )
      assert.deepStrictEqual(yield* Stream.runCollect(sql`SELECT n FROM counts WHERE n < 0`.stream), [])
      yield* sql`DROP TABLE counts`
    }))
})

describe("transactions", () => {
  const setup = Effect.gen(function*() {
    const sql = yield* memory
    yield* sql`CREATE TABLE counts (n INTEGER)`
    const add = (n: number) => sql`INSERT INTO counts VALUES (${n})`
    const all = Effect.map(sql`SELECT n FROM counts ORDER BY n`.values, (rows) => rows.map(([n]) => n))
    return { sql, add, all }
  })

  it.effect("commit as a whole; failure, defect and interruption roll back", () =>
    Effect.gen(function*() {
      const { add, all, sql } = yield* setup
      yield* sql.withTransaction(Effect.andThen(add(1), add(2)))
      assert.deepStrictEqual(
        yield* Effect.exit(sql.withTransaction(Effect.andThen(add(3), Effect.fail("no")))),
        Exit.fail("no")
      )
      yield* Effect.exit(sql.withTransaction(Effect.andThen(add(4), Effect.die("bug"))))
      const written = yield* Deferred.make<void>()
      const fiber = yield* Effect.forkChild(
        sql.withTransaction(Effect.andThen(add(5), Effect.andThen(Deferred.succeed(written, undefined), Effect.never)))
      )
      yield* Deferred.await(written)
      yield* Fiber.interrupt(fiber)
      assert.deepStrictEqual(yield* all, [1, 2])
    }))

  it.effect("a nested one rolls back by itself", () =>
    Effect.gen(function*() {
      const { add, all, sql } = yield* setup
      yield* sql.withTransaction(Effect.gen(function*() {
        yield* add(1)
        yield* Effect.exit(sql.withTransaction(Effect.andThen(add(2), Effect.fail("no"))))
        yield* sql.withTransaction(add(3))
      }))
      assert.deepStrictEqual(yield* all, [1, 3])
    }))

  it.effect("other fibers' statements stay outside", () =>
    Effect.gen(function*() {
      const { add, all, sql } = yield* setup
      const written = yield* Deferred.make<void>()
      const proceed = yield* Deferred.make<void>()
      const transaction = yield* Effect.forkChild(sql.withTransaction(Effect.gen(function*() {
        yield* add(1)
        yield* Deferred.succeed(written, undefined)
        yield* Deferred.await(proceed)
        return yield* Effect.fail("no")
      })))
      yield* Deferred.await(written)
      const outside = yield* Effect.forkChild(add(2), { startImmediately: true })
      yield* Deferred.succeed(proceed, undefined)
      assert.deepStrictEqual(yield* Fiber.await(transaction), Exit.fail("no"))
      yield* Fiber.join(outside)
      assert.deepStrictEqual(yield* all, [2])
    }))

  it.effect("a read-modify-write loses nothing to a second process", () =>
    Effect.gen(function*() {
      const { filename, sql } = yield* onFile
      const second = yield* build({ filename })
      yield* sql`CREATE TABLE counts (n INTEGER)`
      yield* sql`INSERT INTO counts VALUES (0)`
      const increment = (client: SqlClient.SqlClient) =>
        client.withTransaction(Effect.gen(function*() {
          const [row] = yield* client<{ n: number }>`SELECT n FROM counts`
          yield* Effect.yieldNow
          yield* client`UPDATE counts SET n = ${row!.n + 1}`
        }))
      const fiber = yield* Effect.forkChild(
        Effect.all(
          Array.from({ length: 20 }, (_, i) => increment(i % 2 === 0 ? sql : second)),
          { concurrency: "unbounded" }
        )
      )
      while (fiber.pollUnsafe() === undefined) yield* TestClock.adjust("10 millis")
      yield* Fiber.join(fiber)
      assert.deepStrictEqual(yield* sql`SELECT n FROM counts`.values, [[20]])
    }))
})

describe("a file that cannot be used", () => {
  it.effect("is no database", () =>
    Effect.gen(function*() {
      const filename = path.join(yield* temporaryDirectory, "notes.txt")
      fs.writeFileSync(filename, "Just a text that is longer than the header of a database. ".repeat(20))
      const reason = yield* openFailure({ filename })
      assert.strictEqual(reason._tag, "NotADatabase")
      assert.strictEqual(
        reason.message,
        `${filename} is not a SQLite database; name another file, or move this one away to start anew`
      )
      assert.isFalse(reason.retryable)
    }))

  it.effect("is in a directory that does not exist, or is one", () =>
    Effect.gen(function*() {
      const directory = yield* temporaryDirectory
      const missing = yield* openFailure({ filename: path.join(directory, "none", "test.db") })
      assert.strictEqual(missing._tag, "DirectoryNotFound")
      assert.include(missing.message, `The directory ${path.join(directory, "none")} of`)
      const itself = yield* openFailure({ filename: directory })
      assert.strictEqual(itself._tag, "Unavailable")
      assert.include(itself.message, "it is a directory")
    }))

  it.effect("is damaged", () =>
    Effect.gen(function*() {
      const filename = path.join(yield* temporaryDirectory, "test.db")
      const db = new DatabaseSync(filename)
      db.exec("CREATE TABLE a (x)")
      db.close()
      const bytes = fs.readFileSync(filename)
      fs.writeFileSync(filename, bytes.fill(0x5a, 100))
      const reason = yield* openFailure({ filename })
      assert.strictEqual(reason._tag, "Corrupt")
      assert.isFalse(reason.retryable)
    }))

  it.effect("may only be read", () =>
    Effect.gen(function*() {
      const directory = yield* temporaryDirectory
      const filename = path.join(directory, "test.db")
      fs.chmodSync(directory, 0o777)
      for (const mode of ["DELETE", "WAL"]) {
        const db = new DatabaseSync(filename)
        db.exec(`PRAGMA journal_mode = ${mode}; PRAGMA user_version = 7`)
        db.close()
        fs.chmodSync(filename, 0o444)
        const file = yield* asUnprivileged(openFailure({ filename }))
        assert.strictEqual(file._tag, "ReadOnly")
        assert.include(file.message, "give this user write permission")
      }
      fs.chmodSync(filename, 0o666)
      fs.chmodSync(directory, 0o555)
      const inside = yield* asUnprivileged(openFailure({ filename }))
      assert.strictEqual(inside._tag, "ReadOnly")
      fs.chmodSync(directory, 0o777)
      // Finding out has changed nothing.
      const sql = yield* build({ filename })
      assert.deepStrictEqual(yield* sql`PRAGMA user_version`.values, [[7]])
    }))

  it.effect("is locked: fails after the busy timeout, and not before", () =>
    Effect.gen(function*() {
      const filename = path.join(yield* temporaryDirectory, "test.db")
      const holder = yield* other(filename)
      holder.exec("BEGIN EXCLUSIVE")
      const fiber = yield* Effect.forkChild(openFailure({ filename, busyTimeout: "2 seconds" }), {
        startImmediately: true
      })
      yield* TestClock.adjust("1999 millis")
      assert.isUndefined(fiber.pollUnsafe())
      yield* TestClock.adjust("1 millis")
      const reason = yield* Fiber.join(fiber)
      assert.strictEqual(reason._tag, "Locked")
      assert.isTrue(reason.retryable)

      const waiting = yield* Effect.forkChild(build({ filename }), { startImmediately: true })
      holder.exec("ROLLBACK")
      yield* TestClock.adjust("1 seconds")
      const sql = yield* Fiber.join(waiting)
      assert.deepStrictEqual(yield* sql`SELECT 1`.values, [[1]])
    }))
})

describe("at run time", () => {
  it.effect("a lock of another connection is waited for, then fails", () =>
    Effect.gen(function*() {
      const { filename, sql } = yield* onFile
      yield* sql`CREATE TABLE a (x)`
      const holder = yield* other(filename)
      holder.exec("BEGIN IMMEDIATE")
      assert.deepStrictEqual(yield* sql`SELECT * FROM a`, [])

      const failing = yield* Effect.forkChild(Effect.flip(sql`INSERT INTO a VALUES (1)`), { startImmediately: true })
      yield* TestClock.adjust("4999 millis")
      assert.isUndefined(failing.pollUnsafe())
      yield* TestClock.adjust("1 millis")
      const error = yield* Fiber.join(failing)
      assert.deepStrictEqual({ ...summary(error), retryable: error.isRetryable }, {
        tag: "LockTimeoutError",
        code: Sqlite.ResultCode.busy,
        message: "database is locked: another connection holds the lock; try again, or raise busyTimeout",
        retryable: true
      })

      const waiting = yield* Effect.forkChild(sql.withTransaction(sql`INSERT INTO a VALUES (2)`), {
        startImmediately: true
      })
      yield* TestClock.adjust("1 seconds")
      holder.exec("ROLLBACK")
      yield* TestClock.adjust("1 seconds")
      yield* Fiber.join(waiting)
      assert.deepStrictEqual(yield* sql`SELECT x FROM a`.values, [[2]])
    }))

  it.effect("a reading transaction that comes to write too late fails at once", () =>
    Effect.gen(function*() {
      const { filename, sql } = yield* onFile
      yield* sql`CREATE TABLE a (x)`
      const writer = yield* other(filename)
      const error = yield* sql.withTransaction(Effect.gen(function*() {
        yield* sql`SELECT * FROM a`
        writer.exec("INSERT INTO a VALUES (1)")
        yield* sql`INSERT INTO a VALUES (2)`
      })).pipe(Effect.provideService(SqlClient.BeginTransaction, "BEGIN"), Effect.flip)
      assert.strictEqual(error.reason._tag, "LockTimeoutError")
      assert.deepStrictEqual(yield* sql`SELECT x FROM a`.values, [[1]])
    }))

  it.effect("a full disk fails the transaction and leaves the client usable", () =>
    Effect.gen(function*() {
      const { sql } = yield* onFile
      yield* sql`CREATE TABLE a (x BLOB)`
      yield* sql`PRAGMA max_page_count = 10`
      const error = yield* Effect.flip(sql.withTransaction(Effect.gen(function*() {
        yield* sql`INSERT INTO a VALUES (${"small"})`
        yield* sql`INSERT INTO a VALUES (${new Uint8Array(100_000)})`
      })))
      assert.strictEqual(error._tag, "SqlError")
      assert.deepStrictEqual(summary(error), {
        tag: "UnknownError",
        code: Sqlite.ResultCode.full,
        message: "database or disk is full: free space on the volume, or raise PRAGMA max_page_count"
      })
      assert.deepStrictEqual(yield* sql`SELECT x FROM a`, [])
      yield* sql`PRAGMA max_page_count = 1000`
      yield* sql`INSERT INTO a VALUES (${"fits"})`
      assert.deepStrictEqual(yield* sql`SELECT x FROM a`.values, [["fits"]])
    }))

  it.effect("closing the scope closes the file", () =>
    Effect.gen(function*() {
      const filename = path.join(yield* temporaryDirectory, "test.db")
      const sql = yield* Effect.scoped(Effect.tap(build({ filename }), (sql) => sql`CREATE TABLE a (x)`))
      assert.deepStrictEqual(fs.readdirSync(path.dirname(filename)), ["test.db"])
      assert.include((yield* Effect.flip(sql`SELECT 1`)).message, "not open")
    }))
})
