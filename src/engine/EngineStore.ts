/**
 * The register of engines: their records in SQL, and who is working on which.
 *
 * @since 0.1.0
 */
import * as Clock from "effect/Clock"
import * as Context from "effect/Context"
import type * as Duration from "effect/Duration"
import * as Effect from "effect/Effect"
import * as Layer from "effect/Layer"
import * as Predicate from "effect/Predicate"
import * as Random from "effect/Random"
import * as Schema from "effect/Schema"
import * as Migrator from "effect/sql/Migrator"
import * as SqlClient from "effect/sql/SqlClient"
import * as SqlError from "effect/sql/SqlError"
import * as Operations from "../backends/Operations.ts"
import { EngineConfig, EngineId, type EngineStatus, EngineType } from "./Engine.ts"
import { EngineNotFound } from "./Errors.ts"
import { Instance, RuntimeKind } from "./Runtime.ts"

/**
 * A start of an engine that has been made, from before anything runs until it is known that nothing runs any more.
 *
 * **Details**
 *
 * `id` is `Launch.id`. `owner` is the identity of the program that made it, where the system tells such. `instance` is absent before it
 * runs. `host` and `port` are where it is reached.
 *
 * @category models
 * @since 0.1.0
 */
export const StoredLaunch = Schema.Struct({
  id: Schema.NonEmptyString,
  owner: Schema.optionalKey(Schema.String),
  host: Schema.String,
  port: Schema.Int,
  instance: Schema.optionalKey(Instance)
})

/**
 * @category models
 * @since 0.1.0
 */
export type StoredLaunch = typeof StoredLaunch.Type

/**
 * A record: what is known of an engine by itself.
 *
 * **Details**
 *
 * `runtime` is what it is run by. `launch` is there for as long as something of it may run. `error` says why the status is `error`.
 *
 * @category models
 * @since 0.1.0
 */
export interface StoredEngine {
  readonly id: EngineId
  readonly name: string
  readonly type: EngineType
  readonly status: EngineStatus
  readonly version: string
  readonly path: string
  readonly runtime: RuntimeKind
  readonly config: EngineConfig
  readonly launch: StoredLaunch | undefined
  readonly error: string | undefined
  readonly created_at: number
  readonly updated_at: number
}

/**
 * The statuses that a record has by itself. It shows the others for as long as that work is under way.
 *
 * @category models
 * @since 0.1.0
 */
export type Settled = "stopped" | "running" | "error"

/**
 * What can be changed in a record. What is `undefined` is taken away.
 *
 * @category models
 * @since 0.1.0
 */
export type Change =
  & Partial<Pick<StoredEngine, "version" | "path" | "runtime" | "config" | "launch" | "error">>
  & { readonly status?: Settled }

/**
 * Long work on an engine, of which only one can be under way.
 *
 * @category models
 * @since 0.1.0
 */
export type Operation = "start" | "stop" | "restart" | "install"

/**
 * The store could not be read or written. A retry can help where `retryable` says so.
 *
 * @category errors
 * @since 0.1.0
 */
export class EngineStoreError extends Schema.TaggedError<EngineStoreError>("effect-units/engine/EngineStoreError")(
  "EngineStoreError",
  { operation: Schema.String, retryable: Schema.Boolean, cause: Schema.Defect() }
) {
  override get message(): string {
    const detail = Predicate.hasProperty(this.cause, "message") ? String(this.cause.message) : "no reason is known"
    return `The register of engines could not be used to ${this.operation}: ${detail}. Check the database and its disk`
  }
}

/**
 * Reads and writes records. Each method is atomic, also against other programs that share the database.
 *
 * **Details**
 *
 * - `register` gives the record of a name, and makes it first where there is none; `created` says so. A record without a `path` is
 *   one that is just being installed: where that has ended, the others do not see it.
 * - `list` goes by creation, then id.
 * - `during` runs work on an engine, given as it is then, while no other works on it; see `Operations.during`. The status shows the work.
 *   `at` is changed together with the claim.
 * - `settle` changes a record whose launch is still the one given, and that nobody works on; it says whether it did.
 * - `cancel` ends work with `Cancelled`, waits until it has ended, and says whether there was any.
 *
 * @category services
 * @since 0.1.0
 */
export class EngineStore extends Context.Service<EngineStore, {
  readonly register: (
    engine: Pick<StoredEngine, "name" | "type" | "version" | "path" | "runtime">
  ) => Effect.Effect<{ readonly engine: StoredEngine; readonly created: boolean }, EngineStoreError>
  readonly get: (name: string) => Effect.Effect<StoredEngine, EngineNotFound | EngineStoreError>
  readonly list: (
    filter: { readonly type?: EngineType | undefined }
  ) => Effect.Effect<ReadonlyArray<StoredEngine>, EngineStoreError>
  readonly change: (id: EngineId, change: Change) => Effect.Effect<StoredEngine, EngineNotFound | EngineStoreError>
  readonly settle: (id: EngineId, launchId: string, change: Change) => Effect.Effect<boolean, EngineStoreError>
  readonly remove: (id: EngineId) => Effect.Effect<void, EngineStoreError>
  readonly during: <A, E, R>(
    engine: Pick<StoredEngine, "id" | "name">,
    operation: Operation,
    work: (engine: StoredEngine) => Effect.Effect<A, E, R>
  ) => Effect.Effect<A, E | Operations.Busy | Operations.Cancelled | EngineNotFound | EngineStoreError, R>
  readonly cancel: (id: EngineId, operation: Operation) => Effect.Effect<boolean, EngineStoreError>
}>()("effect-units/engine/EngineStore") {}

/**
 * Settings of the store.
 *
 * @category models
 * @since 0.1.0
 */
export interface Options {
  /** How long work whose program is gone blocks an engine. Default 30 seconds. */
  readonly lease?: Duration.Input | undefined
}

const migrate = Migrator.make({})({
  table: "effect_units_engine_migrations",
  loader: Migrator.fromRecord({
    "1_engines": Effect.gen(function*() {
      const sql = yield* SqlClient.SqlClient
      yield* sql`CREATE TABLE effect_units_engines (
        id TEXT PRIMARY KEY,
        name TEXT NOT NULL,
        type TEXT NOT NULL,
        status TEXT NOT NULL,
        launch_id TEXT,
        created_at BIGINT NOT NULL,
        updated_at BIGINT NOT NULL,
        details TEXT NOT NULL,
        ${sql.literal(Operations.columns)}
      )`
      yield* sql`CREATE UNIQUE INDEX effect_units_engines_name ON effect_units_engines (name)`
      yield* sql`CREATE INDEX effect_units_engines_order ON effect_units_engines (created_at, id)`
    })
  })
})

/** What a row holds besides its columns. */
const Details = Schema.fromJsonString(
  Schema.Struct({
    version: Schema.String,
    path: Schema.String,
    runtime: RuntimeKind,
    config: EngineConfig,
    launch: Schema.optional(StoredLaunch),
    error: Schema.optional(Schema.String)
  })
)

const Row = Schema.Struct({
  ...Operations.Claim.fields,
  id: EngineId,
  name: Schema.NonEmptyString,
  type: EngineType,
  status: Schema.Literals(["stopped", "running", "error"]),
  // PostgreSQL gives 64-bit integers as bigint.
  created_at: Schema.Union([Schema.Finite, Schema.BigInt]),
  updated_at: Schema.Union([Schema.Finite, Schema.BigInt]),
  details: Details
})

const decodeRow = Schema.decodeUnknownEffect(Row)
const encodeDetails = Schema.encodeEffect(Details)

/** The status that work shows, by the status that the record has. */
const shownDuring = (operation: string | undefined, settled: Settled): EngineStatus => {
  switch (operation) {
    case "start":
      return "starting"
    case "stop":
      return "stopping"
    case "restart":
      return settled === "running" ? "stopping" : "starting"
    case "install":
      // What is installed takes effect at the next start.
      return settled === "running" ? "running" : "installing"
    default:
      return settled
  }
}

const engineOf = (
  { created_at, details, id, name, type, updated_at }: typeof Row.Type,
  status: EngineStatus
): StoredEngine => ({
  id,
  name,
  type,
  status,
  version: details.version,
  path: details.path,
  runtime: details.runtime,
  config: details.config,
  launch: details.launch,
  error: details.error,
  created_at: Number(created_at),
  updated_at: Number(updated_at)
})

/** A row as readers see it now, and the status that it has by itself. */
const toEngine = Effect.fnUntraced(function*(unknownRow: unknown) {
  const row = yield* decodeRow(unknownRow)
  const operation = Operations.underWay(row, yield* Clock.currentTimeMillis)
  return { engine: engineOf(row, shownDuring(operation, row.status)), settled: row.status }
})

const unixSeconds = Effect.map(Clock.currentTimeMillis, (millis) => Math.floor(millis / 1000))

const newId = Effect.map(
  Random.nextIntBetween(0, 2 ** 32, { halfOpen: true }),
  (n) => EngineId.make(`engine-${n.toString(16).padStart(8, "0")}`)
)

/** How often a record is tried to be added: its id may be taken, or another program may take its name at the same time. */
const attempts = 8

const failing = (operation: string) => (cause: SqlError.SqlError | Schema.SchemaError): EngineStoreError =>
  new EngineStoreError({ operation, cause, retryable: cause._tag === "SqlError" && cause.isRetryable })

const isSeen = ({ path, status }: StoredEngine): boolean => path !== "" || status === "installing"

const make = Effect.fnUntraced(function*(options: Options) {
  const sql = yield* SqlClient.SqlClient
  yield* migrate
  const operations = yield* Operations.make<Operation, EngineNotFound, EngineStoreError>({
    table: "effect_units_engines",
    lease: options.lease,
    missing: (id) => new EngineNotFound({ name: id }),
    failed: failing
  })

  const byName = Effect.fnUntraced(function*(name: string) {
    const [row] = yield* sql`SELECT * FROM effect_units_engines WHERE name = ${name}`
    return row === undefined ? undefined : (yield* toEngine(row)).engine
  })

  /** Changes a row that is looked at in the same transaction. */
  const update = Effect.fnUntraced(function*(row: unknown, change: Change) {
    const { engine, settled } = yield* toEngine(row)
    const changed: StoredEngine = { ...engine, ...change, updated_at: yield* unixSeconds }
    const { config, error, id, launch, path, runtime, updated_at, version } = changed
    yield* sql`UPDATE effect_units_engines SET ${
      sql.update({
        // The status that readers see may be that of work, which no record has by itself.
        status: change.status ?? settled,
        launch_id: launch?.id ?? null,
        updated_at,
        details: yield* encodeDetails({ version, path, runtime, config, launch, error })
      })
    } WHERE id = ${id}`
    return changed
  })

  return EngineStore.of({
    register: Effect.fnUntraced(
      function*(engine) {
        const known = yield* byName(engine.name)
        if (known !== undefined) return { engine: known, created: false }
        const { name, path, runtime, type, version } = engine
        const now = yield* unixSeconds
        const made: StoredEngine = {
          id: yield* newId,
          name,
          type,
          status: "stopped",
          version,
          path,
          runtime,
          config: {},
          launch: undefined,
          error: undefined,
          created_at: now,
          updated_at: now
        }
        yield* sql`INSERT INTO effect_units_engines ${
          sql.insert({
            id: made.id,
            name,
            type,
            status: made.status,
            created_at: now,
            updated_at: now,
            details: yield* encodeDetails({ version, path, runtime, config: {} })
          })
        }`
        return { engine: made, created: true }
      },
      sql.withTransaction,
      Effect.retry({
        times: attempts,
        // For SQLite a taken primary key is another constraint than a taken name.
        while: (error) =>
          SqlError.isSqlError(error) &&
          (error.reason._tag === "UniqueViolation" || error.reason._tag === "ConstraintError")
      }),
      Effect.catchTag(["SqlError", "SchemaError"], (error) => failing("add an engine")(error))
    ),
    get: Effect.fnUntraced(
      function*(name) {
        const engine = yield* byName(name)
        return engine !== undefined && isSeen(engine) ? engine : yield* new EngineNotFound({ name })
      },
      Effect.catchTag(["SqlError", "SchemaError"], (error) => failing("read an engine")(error))
    ),
    list: Effect.fnUntraced(
      function*({ type }) {
        const matches = sql.and(type === undefined ? [] : [sql`type = ${type}`])
        const rows = yield* sql`SELECT * FROM effect_units_engines WHERE ${matches} ORDER BY created_at, id`
        const engines = yield* Effect.forEach(rows, (row) => Effect.map(toEngine(row), ({ engine }) => engine))
        return engines.filter(isSeen)
      },
      Effect.catchTag(["SqlError", "SchemaError"], (error) => failing("list engines")(error))
    ),
    change: Effect.fnUntraced(
      function*(id, change) {
        const [row] = yield* sql`SELECT * FROM effect_units_engines WHERE id = ${id}`
        return row === undefined ? yield* new EngineNotFound({ name: id }) : yield* update(row, change)
      },
      sql.withTransaction,
      Effect.catchTag(["SqlError", "SchemaError"], (error) => failing("change an engine")(error))
    ),
    settle: Effect.fnUntraced(
      function*(id, launchId, change) {
        const now = yield* Clock.currentTimeMillis
        // Written to before it is read, so that no other transaction can come in between.
        const [row] = yield* sql`UPDATE effect_units_engines SET launch_id = launch_id
          WHERE id = ${id} AND launch_id = ${launchId} AND (operation IS NULL OR operation_until < ${now}) RETURNING *`
        if (row !== undefined) yield* update(row, change)
        return row !== undefined
      },
      sql.withTransaction,
      Effect.catchTag(["SqlError", "SchemaError"], (error) => failing("change an engine")(error))
    ),
    remove: (id) =>
      sql`DELETE FROM effect_units_engines WHERE id = ${id}`.pipe(
        Effect.asVoid,
        Effect.mapError(failing("remove an engine"))
      ),
    during: ({ id, name }, operation, work) =>
      operations.during({
        id,
        operation,
        work: (row) =>
          Effect.flatMap(
            Effect.mapError(decodeRow(row), failing(operation)),
            // With the status that it has by itself, as the work is this one.
            (row) => work(engineOf(row, row.status))
          )
      }).pipe(
        Effect.mapError((error) => error instanceof EngineNotFound ? new EngineNotFound({ name }) : error)
      ),
    cancel: (id, operation) => operations.cancel(id, [operation])
  })
})

/**
 * Layer of the register in the SQL database of the application. It makes its tables, all of them named `effect_units_engine...`.
 *
 * Building it fails with `EngineStoreError` where the tables cannot be made.
 *
 * @category layers
 * @since 0.1.0
 */
export const layer = (options: Options = {}): Layer.Layer<EngineStore, EngineStoreError, SqlClient.SqlClient> =>
  Layer.effect(
    EngineStore,
    make(options).pipe(
      Effect.catchTag(["SqlError", "MigrationError"], (cause) =>
        new EngineStoreError({
          operation: "set it up",
          cause,
          retryable: cause._tag === "SqlError" && cause.isRetryable
        }))
    )
  )
