/**
 * SQLite behind Effect's own `SqlClient`, over the `node:sqlite` module that Node carries.
 *
 * The registry has no SQLite driver for Effect 4.1, so this module builds one from the parts that Effect ships for
 * drivers (`SqlClient.make`, `makeSqliteAcquirers`, `Statement.makeCompilerSqlite`, `classifySqliteError`). It needs no
 * native package. `node:sqlite` is loaded when a client is built and not before, so importing this module is free.
 *
 * **Details**
 *
 * A client is one connection, serialised by a semaphore: a statement or a transaction has it to itself, and what other
 * fibers ask for in the meantime waits in order. A transaction begins with `BEGIN IMMEDIATE`, so that it has the write
 * lock before it reads and no read-modify-write can be lost or be refused half way (provide
 * `SqlClient.BeginTransaction` with `BEGIN` for one that only reads); transactions inside it are savepoints.
 *
 * Values bind as follows: `undefined` as NULL, booleans as 0 and 1, safe integers and bigints as INTEGER, other numbers
 * as REAL, strings as TEXT, `Date` as its ISO string, `Uint8Array` as BLOB. Anything else is an error
 * rather than a guess. Rows are objects without a prototype; integers come back as numbers, blobs as `Uint8Array`.
 *
 * **Gotchas**
 *
 * - `node:sqlite` is synchronous: a statement holds the event loop for as long as it runs. Keep each one short: page
 *   reads, and bound batches to some hundred rows. Streams pull 128 rows a step. Waiting for another process's lock
 *   does not hold the event loop.
 * - Node 22 prints an `ExperimentalWarning` once, when the first client is built. `--disable-warning=ExperimentalWarning`
 *   (also in `NODE_OPTIONS`) silences it. Node 24 prints nothing.
 * - An integer beyond 2^53 fails the read rather than lose digits, after a `RETURNING` too, whose write has been made by
 *   then. Provide `SqlClient.SafeIntegers` with `true` to read all integers as `bigint`.
 * - Node 22 reads a text up to its first NUL character only (seen in 22.19); Node 24 reads the whole.
 * - A string that is not well-formed Unicode (a lone surrogate) is stored with U+FFFD in its place. JSON text is safe,
 *   because `JSON.stringify` escapes lone surrogates.
 *
 * @since 0.1.0
 */
import * as Arr from "effect/Array"
import * as Cause from "effect/Cause"
import * as Clock from "effect/Clock"
import * as Duration from "effect/Duration"
import * as Effect from "effect/Effect"
import * as Layer from "effect/Layer"
import * as Predicate from "effect/Predicate"
import * as Reactivity from "effect/reactivity/Reactivity"
import * as Schema from "effect/Schema"
import type * as Scope from "effect/Scope"
import * as Semaphore from "effect/Semaphore"
import * as SqlClient from "effect/sql/SqlClient"
import type * as SqlConnection from "effect/sql/SqlConnection"
import * as SqlError from "effect/sql/SqlError"
import * as Statement from "effect/sql/Statement"
import * as Stream from "effect/Stream"
import * as fs from "node:fs"
import * as path from "node:path"
import type { DatabaseSync, SQLInputValue, SQLOutputValue, StatementSync } from "node:sqlite"

/**
 * Settings of a client.
 *
 * @category models
 * @since 0.1.0
 */
export interface Options {
  /** Path of the database file, created when it is missing, or `:memory:` for one that lives as long as the client. */
  readonly filename: string
  /**
   * How long a statement waits for a lock that another connection holds, by the `Clock`, before it fails. Default 5
   * seconds. The fiber sleeps meanwhile; at most 5 ms at a time are spent inside SQLite.
   */
  readonly busyTimeout?: Duration.Input | undefined
  /**
   * SQLite's `PRAGMA synchronous`. With `normal`, the default, a commit outlives the crash of the process, and a power
   * cut may take the last commits but never the consistency of the file. `full` waits for the disk at each commit, about
   * a seventh of the commits a second. `off` risks the file.
   */
  readonly synchronous?: "off" | "normal" | "full" | undefined
  /** How many prepared statements are kept, the least recently used going first. Default 200. */
  readonly preparedStatements?: number | undefined
}

/**
 * The file is there, but it is no SQLite database (or an encrypted one). A retry does not help.
 *
 * @category errors
 * @since 0.1.0
 */
export class NotADatabase extends Schema.TaggedError<NotADatabase>("effect-units/backends/Sqlite/NotADatabase")(
  "NotADatabase",
  { filename: Schema.String, cause: Schema.Defect() }
) {
  readonly retryable = false
  override get message(): string {
    return `${this.filename} is not a SQLite database; name another file, or move this one away to start anew`
  }
}

/**
 * The file is a damaged database. A retry does not help.
 *
 * @category errors
 * @since 0.1.0
 */
export class Corrupt extends Schema.TaggedError<Corrupt>("effect-units/backends/Sqlite/Corrupt")(
  "Corrupt",
  { filename: Schema.String, cause: Schema.Defect() }
) {
  readonly retryable = false
  override get message(): string {
    return `${this.filename} is damaged; restore it from a backup, or save what can be read with sqlite3's .recover`
  }
}

/**
 * The directory of the file does not exist. It is not created, as a misspelt path would go unnoticed.
 *
 * @category errors
 * @since 0.1.0
 */
export class DirectoryNotFound
  extends Schema.TaggedError<DirectoryNotFound>("effect-units/backends/Sqlite/DirectoryNotFound")(
    "DirectoryNotFound",
    { filename: Schema.String, directory: Schema.String, cause: Schema.Defect() }
  )
{
  readonly retryable = false
  override get message(): string {
    return `The directory ${this.directory} of ${this.filename} does not exist; create it first`
  }
}

/**
 * The file, or the directory in which SQLite keeps its journal beside it, may not be written. A retry does not help.
 *
 * @category errors
 * @since 0.1.0
 */
export class ReadOnly extends Schema.TaggedError<ReadOnly>("effect-units/backends/Sqlite/ReadOnly")(
  "ReadOnly",
  { filename: Schema.String, cause: Schema.Defect() }
) {
  readonly retryable = false
  override get message(): string {
    return `${this.filename} cannot be written; give this user write permission on the file and on its directory`
  }
}

/**
 * Another connection kept the file locked for the whole busy timeout. A retry helps once it lets go.
 *
 * @category errors
 * @since 0.1.0
 */
export class Locked extends Schema.TaggedError<Locked>("effect-units/backends/Sqlite/Locked")(
  "Locked",
  { filename: Schema.String, cause: Schema.Defect() }
) {
  readonly retryable = true
  override get message(): string {
    return `${this.filename} is locked by another connection; end the program that holds it, or raise busyTimeout`
  }
}

/**
 * The file cannot be opened for another reason, which `cause` tells: it is a directory, may not be read, the disk is
 * full, ...
 *
 * @category errors
 * @since 0.1.0
 */
export class Unavailable extends Schema.TaggedError<Unavailable>("effect-units/backends/Sqlite/Unavailable")(
  "Unavailable",
  { filename: Schema.String, detail: Schema.String, cause: Schema.Defect() }
) {
  readonly retryable = false
  override get message(): string {
    return `${this.filename} cannot be opened (${this.detail}); check that it is a regular file that this user may read`
  }
}

/**
 * A client could not be built. `reason` says why; `retryable` is true only when waiting can help.
 *
 * @category errors
 * @since 0.1.0
 */
export class SqliteError extends Schema.TaggedError<SqliteError>("effect-units/backends/Sqlite/SqliteError")(
  "SqliteError",
  { reason: Schema.Union([NotADatabase, Corrupt, DirectoryNotFound, ReadOnly, Locked, Unavailable]) }
) {
  override readonly cause = this.reason
  override get message(): string {
    return this.reason.message
  }
  get retryable(): boolean {
    return this.reason.retryable
  }
}

/**
 * SQLite's primary result codes that callers tell apart; see https://www.sqlite.org/rescode.html.
 *
 * @category models
 * @since 0.1.0
 */
export const ResultCode = {
  busy: 5,
  locked: 6,
  readOnly: 8,
  ioError: 10,
  corrupt: 11,
  full: 13,
  cannotOpen: 14,
  notADatabase: 26
} as const

// SQLITE_BUSY_SNAPSHOT: the transaction reads a snapshot that is out of date, which no waiting mends.
const busySnapshot = 517

/** The longest time in milliseconds that SQLite may hold the event loop while it waits for a lock. */
const syncBusyMillis = 5

/** The longest pause in milliseconds between two attempts to get a lock. */
const maxPauseMillis = 50

const streamRows = 128

// SQLITE_CONSTRAINT_PRIMARYKEY and SQLITE_CONSTRAINT_UNIQUE: two words for one thing, of which the classifier knows the second.
const primaryKeyViolation = 1555
const uniqueViolation = 2067

const extendedCode = (cause: unknown): number | undefined =>
  Predicate.hasProperty(cause, "errcode") && typeof cause.errcode === "number" ? cause.errcode : undefined

/**
 * Reads SQLite's primary result code (see `ResultCode`) from a failure of a client of this module.
 *
 * `undefined` where the failure did not come from SQLite itself, such as a value that cannot be bound.
 *
 * @category accessors
 * @since 0.1.0
 */
export const resultCode = (error: SqlError.SqlError): number | undefined => {
  const code = extendedCode(error.reason.cause)
  return code === undefined ? undefined : code & 0xff
}

const hints: { readonly [code: number]: string } = {
  [ResultCode.full]: "free space on the volume, or raise PRAGMA max_page_count",
  [ResultCode.readOnly]: "give this user write permission on the file and on its directory",
  [ResultCode.busy]: "another connection holds the lock; try again, or raise busyTimeout"
}

const toSqlError = (cause: unknown, operation: string): SqlError.SqlError => {
  const code = extendedCode(cause)
  const text = Predicate.hasProperty(cause, "message") ? String(cause.message) : String(cause)
  const hint = code !== undefined
    ? hints[code & 0xff]
    : Predicate.hasProperty(cause, "code") && cause.code === "ERR_OUT_OF_RANGE"
    ? "provide SqlClient.SafeIntegers with true to read integers as bigint"
    : undefined
  const message = hint === undefined ? text : `${text}: ${hint}`
  // node:sqlite puts SQLite's code into `errcode`, where the classifier looks for `errno`; 1 is a statement that SQLite
  // cannot make sense of, which the classifier does not tell from other failures.
  const reason = code === 1
    ? new SqlError.SqlSyntaxError({ cause, message, operation })
    : SqlError.classifySqliteError(
      code === undefined ? cause : Object.assign(new Error(text, { cause }), {
        errno: code === primaryKeyViolation ? uniqueViolation : code,
        errcode: code
      }),
      { message, operation }
    )
  return new SqlError.SqlError({ reason })
}

const bind = (value: unknown): SQLInputValue => {
  switch (typeof value) {
    case "string":
    case "bigint":
      return value
    case "number":
      // A JavaScript number would bind as REAL and read "1.0" in a TEXT column or in JSON.
      return Number.isSafeInteger(value) ? BigInt(value) : value
    case "boolean":
      return value ? 1n : 0n
    case "undefined":
      return null
  }
  if (value === null || value instanceof Uint8Array) return value
  if (value instanceof Date) return value.toISOString()
  throw new TypeError(
    `A value of type ${Object.prototype.toString.call(value)} cannot be bound; encode it first, as JSON for example`
  )
}

type Row = Record<string, SQLOutputValue>

interface Prepared {
  readonly statement: StatementSync
  readonly reads: boolean
  bigInts: boolean
  arrays: boolean
}

const prepare = (db: DatabaseSync, sql: string): Prepared => {
  const statement = db.prepare(sql)
  // SQLite prepares the first statement of a text and ignores the others without a word.
  const rest = sql.slice(statement.sourceSQL.length)
  if (/[^\s;]/.test(rest.replace(/--.*$/gm, "").replace(/\/\*[^]*?\*\//g, ""))) {
    throw new SyntaxError(`Only one SQL statement can run at a time; this text has a second one: ${rest.trim()}`)
  }
  return { statement, reads: statement.columns().length > 0, bigInts: false, arrays: false }
}

const configure = (prepared: Prepared, bigInts: boolean, arrays: boolean): StatementSync => {
  const { statement } = prepared
  if (prepared.bigInts !== bigInts) statement.setReadBigInts(prepared.bigInts = bigInts)
  if (prepared.arrays !== arrays) statement.setReturnArrays(prepared.arrays = arrays)
  return statement
}

/**
 * Runs `evaluate`, and again for as long as SQLite answers that the database is busy and `timeout` (milliseconds) has
 * not passed. `evaluate` is told whether integers are to be read as bigint.
 */
const attempt = <A>(
  operation: string,
  timeout: number,
  evaluate: (bigInts: boolean) => A
): Effect.Effect<A, SqlError.SqlError> => {
  const go = (deadline: number | undefined, pause: number): Effect.Effect<A, SqlError.SqlError> =>
    Effect.withFiber((fiber) => {
      try {
        return Effect.succeed(evaluate(fiber.getRef(SqlClient.SafeIntegers)))
      } catch (cause) {
        const code = extendedCode(cause)
        if (code !== undefined && (code & 0xff) === ResultCode.busy && code !== busySnapshot) {
          const now = fiber.getRef(Clock.Clock).currentTimeMillisUnsafe()
          const end = deadline ?? now + timeout
          if (now < end) {
            return Effect.andThen(
              Effect.sleep(Math.min(pause, end - now)),
              go(end, Math.min(pause * 2, maxPauseMillis))
            )
          }
        }
        return Effect.fail(toSqlError(cause, operation))
      }
    })
  return go(undefined, 1)
}

interface Connection extends SqlConnection.Connection {
  readonly isTransaction: () => boolean
}

const makeConnection = (db: DatabaseSync, timeout: number, capacity: number): Connection => {
  const cache = new Map<string, Prepared>()
  const cached = (sql: string): Prepared => {
    const hit = cache.get(sql)
    if (hit !== undefined) {
      // A Map keeps the order of insertion: what was used last moves to the end, what goes is at the front.
      cache.delete(sql)
      cache.set(sql, hit)
      return hit
    }
    const prepared = prepare(db, sql)
    if (cache.size >= capacity) {
      for (const oldest of cache.keys()) {
        cache.delete(oldest)
        break
      }
    }
    cache.set(sql, prepared)
    return prepared
  }
  const uncached = (sql: string): Prepared => prepare(db, sql)

  const rows =
    (operation: string, get: (sql: string) => Prepared): SqlConnection.Connection["execute"] =>
    (sql, params, transformRows) => {
      const run = attempt<ReadonlyArray<Row>>(
        operation,
        timeout,
        (bigInts) => configure(get(sql), bigInts, false).all(...params.map(bind))
      )
      return transformRows === undefined ? run : Effect.map(run, transformRows)
    }

  const values =
    (operation: string, get: (sql: string) => Prepared): SqlConnection.Connection["executeValues"] => (sql, params) =>
      attempt(operation, timeout, (bigInts) =>
        // With setReturnArrays(true) a row is an array of its columns, which the types of node:sqlite do not follow.
        configure(get(sql), bigInts, true).all(...params.map(bind)) as unknown as ReadonlyArray<ReadonlyArray<unknown>>)

  return {
    execute: rows("execute", cached),
    executeUnprepared: rows("executeUnprepared", uncached),
    executeValues: values("executeValues", cached),
    executeValuesUnprepared: values("executeValuesUnprepared", uncached),
    executeRaw: (sql, params) =>
      attempt("executeRaw", timeout, (bigInts) => {
        const prepared = cached(sql)
        const statement = configure(prepared, bigInts, false)
        return prepared.reads ? statement.all(...params.map(bind)) : statement.run(...params.map(bind))
      }),
    executeStream: (sql, params, transformRows) =>
      Stream.unwrap(Effect.map(
        Effect.acquireRelease(
          // A statement of its own: a cached one that ran elsewhere in the meantime would reset this iterator.
          attempt(
            "executeStream",
            timeout,
            (bigInts) => configure(prepare(db, sql), bigInts, false).iterate(...params.map(bind))
          ),
          // Ends the read that SQLite still has open when the consumer stops early.
          (iterator) => Effect.sync(() => iterator.return?.())
        ),
        (iterator) =>
          Stream.fromPull(Effect.succeed(Effect.filterOrElse(
            attempt("executeStream", timeout, () => {
              const chunk: Array<Row> = []
              for (let next = iterator.next(); next.done !== true; next = iterator.next()) {
                if (chunk.push(next.value) === streamRows) break
              }
              return transformRows === undefined ? chunk : transformRows(chunk)
            }),
            Arr.isReadonlyArrayNonEmpty,
            () => Cause.done()
          )))
      )),
    isTransaction: () => db.isTransaction
  }
}

const openError = (filename: string, error: SqlError.SqlError): SqliteError => {
  const cause = error.reason.cause
  const reason = () => {
    switch (resultCode(error)) {
      case ResultCode.notADatabase:
        return new NotADatabase({ filename, cause })
      case ResultCode.corrupt:
        return new Corrupt({ filename, cause })
      case ResultCode.readOnly:
        return new ReadOnly({ filename, cause })
      case ResultCode.busy:
      case ResultCode.locked:
        return new Locked({ filename, cause })
      case ResultCode.cannotOpen:
        return cannotOpen(filename, cause)
      default:
        return new Unavailable({ filename, detail: error.message, cause })
    }
  }
  return new SqliteError({ reason: reason() })
}

// SQLite says no more than "unable to open database file"; the file system knows why.
const cannotOpen = (filename: string, cause: unknown): DirectoryNotFound | ReadOnly | Unavailable => {
  const directory = path.dirname(filename)
  const found = fs.statSync(filename, { throwIfNoEntry: false })
  if (found === undefined && !fs.existsSync(directory)) return new DirectoryNotFound({ filename, directory, cause })
  if (found?.isDirectory() === true) return new Unavailable({ filename, detail: "it is a directory", cause })
  try {
    fs.accessSync(directory, fs.constants.W_OK)
  } catch {
    return new ReadOnly({ filename, cause })
  }
  return new Unavailable({ filename, detail: "unable to open database file", cause })
}

/**
 * Opens the file and builds a client on it; the scope closes it.
 *
 * **Details**
 *
 * Sets write-ahead logging, so that readers and the writer of other connections do not wait for each other (a file
 * system without shared memory keeps SQLite's rollback journal), and foreign keys. Fails with `SqliteError` where the
 * file cannot be read and written; to find out, the write lock is taken once, and released.
 *
 * @category constructors
 * @since 0.1.0
 */
export const make: (
  options: Options
) => Effect.Effect<SqlClient.SqlClient, SqliteError, Reactivity.Reactivity | Scope.Scope> = Effect.fnUntraced(
  function*(options: Options) {
    const { filename } = options
    const timeout = Duration.toMillis(options.busyTimeout ?? "5 seconds")
    const open = Effect.mapError((error: SqlError.SqlError) => openError(filename, error))

    const db = yield* Effect.acquireRelease(
      open(attempt("open", 0, () => {
        // Not an import: on Node 22 loading the module prints a warning.
        const { DatabaseSync } = process.getBuiltinModule("node:sqlite")
        return new DatabaseSync(filename, { timeout: syncBusyMillis, enableForeignKeyConstraints: true })
      })),
      (db) => Effect.sync(() => db.close())
    )
    for (
      const sql of [
        "PRAGMA journal_mode = WAL",
        `PRAGMA synchronous = ${options.synchronous ?? "normal"}`,
        // Moving the journal into the file waits for the disk: every 16 MB of journal, not SQLite's 4.
        "PRAGMA wal_autocheckpoint = 4000",
        // 16 MB of pages, not SQLite's 2, so that the ends of several indices stay in memory.
        "PRAGMA cache_size = -16000",
        // A write that is taken back: of a file that may only be read SQLite grants even the write lock, and no write.
        "BEGIN IMMEDIATE",
        "PRAGMA user_version = 0",
        "ROLLBACK"
      ]
    ) {
      yield* open(attempt("open", timeout, () => db.exec(sql)))
    }

    const connection = makeConnection(db, timeout, options.preparedStatements ?? 200)
    return yield* SqlClient.make({
      ...SqlClient.makeSqliteAcquirers({
        connection: Effect.succeed(connection),
        semaphore: yield* Semaphore.make(1),
        isTransaction: (connection) => connection.isTransaction()
      }),
      compiler: Statement.makeCompilerSqlite(),
      driver: "node-sqlite",
      spanAttributes: [["db.system.name", "sqlite"], ["db.namespace", filename]],
      beginTransaction: "BEGIN IMMEDIATE",
      prepareTransactionControls: true,
      releaseSavepoint: (name) => `RELEASE SAVEPOINT ${name}`
    })
  }
)

/**
 * Layer of a `SqlClient` on the SQLite file `filename`.
 *
 * Building it fails with `SqliteError`, whose reason tells a file that is no database, a missing directory, a file that
 * may only be read, a locked one. At run time statements fail with Effect's `SqlError`; `resultCode` tells a full disk
 * from a lock.
 *
 * **Example** (A client on a file)
 *
 * ```ts
 * const program = Effect.gen(function*() {
 *   const sql = yield* SqlClient.SqlClient
 *   return yield* sql`SELECT ${"hello"} AS greeting`
 * }).pipe(Effect.provide(Sqlite.layer({ filename: "app.db" })))
 * ```
 *
 * @category layers
 * @since 0.1.0
 */
export const layer = (options: Options): Layer.Layer<SqlClient.SqlClient, SqliteError> =>
  Layer.effect(SqlClient.SqlClient, make(options)).pipe(Layer.provide(Reactivity.layer))
