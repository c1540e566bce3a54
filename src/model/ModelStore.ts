/**
 * The register of models: their records in SQL, and who is working on which.
 *
 * @since 0.1.0
 */
import * as Clock from "effect/Clock"
import * as Context from "effect/Context"
import * as Deferred from "effect/Deferred"
import * as Duration from "effect/Duration"
import * as Effect from "effect/Effect"
import * as Layer from "effect/Layer"
import * as Path from "effect/Path"
import * as Random from "effect/Random"
import * as Schema from "effect/Schema"
import * as Migrator from "effect/sql/Migrator"
import * as SqlClient from "effect/sql/SqlClient"
import type * as SqlError from "effect/sql/SqlError"
import { ModelAlreadyExists, ModelNotFound } from "./Errors.ts"
import { HubSource } from "./HubError.ts"
import { Model, ModelFormat, ModelId, ModelStatus, ModelType } from "./Model.ts"

/**
 * The dimensions of a model, from which its memory is estimated; see `Estimate.ModelShape`.
 *
 * @category models
 * @since 0.1.0
 */
export const Shape = Schema.Struct({
  weightBytes: Schema.optional(Schema.Finite),
  parameterCount: Schema.optional(Schema.Finite),
  bytesPerParameter: Schema.optional(Schema.Finite),
  layers: Schema.optional(Schema.Finite),
  kvHeads: Schema.optional(Schema.Union([Schema.Finite, Schema.Array(Schema.Finite)])),
  headDim: Schema.optional(Schema.Finite),
  contextLength: Schema.optional(Schema.Finite)
})

/**
 * The hub, repository and tag that a model was pulled from.
 *
 * @category models
 * @since 0.1.0
 */
export const Origin = Schema.Struct({
  source: HubSource,
  repo: Schema.String,
  tag: Schema.String,
  mirror: Schema.optional(Schema.String)
})

/**
 * @category models
 * @since 0.1.0
 */
export type Origin = typeof Origin.Type

/**
 * A record: the model, and what only its own domain needs to know.
 *
 * @category models
 * @since 0.1.0
 */
export const StoredModel = Schema.Struct({
  ...Model.fields,
  /** Absent for models that were not pulled. */
  origin: Schema.optional(Origin),
  /** Absent where nothing is known of the model's dimensions. */
  shape: Schema.optional(Shape)
})

/**
 * @category models
 * @since 0.1.0
 */
export type StoredModel = typeof StoredModel.Type

/**
 * What a record starts from: its id and times are given by the store.
 *
 * @category models
 * @since 0.1.0
 */
export type NewModel = Omit<StoredModel, "id" | "created_at" | "updated_at">

/**
 * What can be changed in a record.
 *
 * @category models
 * @since 0.1.0
 */
export type Change = Partial<Omit<StoredModel, "id" | "created_at" | "updated_at">>

/**
 * Long work on a model, of which only one can be under way.
 *
 * @category models
 * @since 0.1.0
 */
export const Operation = Schema.Literals(["pull", "verify", "delete"])

/**
 * @category models
 * @since 0.1.0
 */
export type Operation = typeof Operation.Type

/**
 * The store could not be read or written. A retry can help where `retryable` says so.
 *
 * @category errors
 * @since 0.1.0
 */
export class ModelStoreError extends Schema.TaggedError<ModelStoreError>("effect-units/model/ModelStoreError")(
  "ModelStoreError",
  { operation: Schema.String, retryable: Schema.Boolean, cause: Schema.Defect() }
) {
  override get message(): string {
    const detail = this.cause instanceof Error ? this.cause.message : String(this.cause)
    return `The register of models could not be used to ${this.operation}: ${detail}. Check the database and its disk`
  }
}

/**
 * Something else works on the model, in this process or another. A retry helps once that has ended.
 *
 * @category errors
 * @since 0.1.0
 */
export class ModelBusy extends Schema.TaggedError<ModelBusy>("effect-units/model/ModelBusy")("ModelBusy", {
  model_id: ModelId,
  operation: Operation
}) {}

/**
 * The work on a model was ended by `cancel`.
 *
 * @category errors
 * @since 0.1.0
 */
export class Cancelled extends Schema.TaggedError<Cancelled>("effect-units/model/Cancelled")("Cancelled", {
  model_id: ModelId
}) {}

/**
 * Reads and writes records. Each method is atomic.
 *
 * **Details**
 *
 * - `insert` fails with `ModelAlreadyExists` where a name, whatever its case, or a path is taken.
 * - `register` gives the record of an origin, and makes it first where there is none; `created` says so.
 * - `list` goes by creation, then id. `total` is the count before paging.
 * - `during` runs work while no other works on the model, here or in another process that shares the database. A lease that is
 *   renewed all the while stands for it, so that work whose process is gone blocks nobody for longer than the lease.
 * - `cancel` ends the work that this process does on a model with `Cancelled`, waits until it has ended, and says whether there was
 *   any.
 * - `directory` is where the files of a pulled model are.
 *
 * @category services
 * @since 0.1.0
 */
export class ModelStore extends Context.Service<ModelStore, {
  readonly insert: (model: NewModel) => Effect.Effect<StoredModel, ModelAlreadyExists | ModelStoreError>
  readonly register: (
    model: NewModel & { readonly origin: Origin }
  ) => Effect.Effect<{ readonly model: StoredModel; readonly created: boolean }, ModelStoreError>
  readonly get: (id: string) => Effect.Effect<StoredModel, ModelNotFound | ModelStoreError>
  readonly list: (filter: {
    readonly type?: ModelType | undefined
    readonly status?: ModelStatus | undefined
    readonly format?: ModelFormat | undefined
    readonly limit: number
    readonly offset: number
  }) => Effect.Effect<{ readonly items: ReadonlyArray<StoredModel>; readonly total: number }, ModelStoreError>
  readonly change: (id: ModelId, change: Change) => Effect.Effect<StoredModel, ModelNotFound | ModelStoreError>
  readonly remove: (id: ModelId) => Effect.Effect<void, ModelStoreError>
  readonly during: <A, E, R>(
    id: ModelId,
    operation: Operation,
    work: Effect.Effect<A, E, R>
  ) => Effect.Effect<A, E | ModelBusy | ModelNotFound | Cancelled | ModelStoreError, R>
  readonly cancel: (id: ModelId) => Effect.Effect<boolean>
  readonly directory: (id: ModelId) => string
}>()("effect-units/model/ModelStore") {}

/**
 * Settings of the store.
 *
 * @category models
 * @since 0.1.0
 */
export interface Options {
  /** Absolute path of the folder for the files of pulled models; each has a folder of its own there. */
  readonly directory: string
  /** How long work whose process is gone blocks a model. Default 30 seconds. */
  readonly lease?: Duration.Input | undefined
}

const migrate = Migrator.make({})({
  table: "effect_units_model_migrations",
  loader: Migrator.fromRecord({
    "1_models": Effect.gen(function*() {
      const sql = yield* SqlClient.SqlClient
      yield* sql`CREATE TABLE effect_units_models (
        id TEXT PRIMARY KEY,
        name TEXT NOT NULL,
        name_key TEXT NOT NULL,
        path TEXT,
        origin_key TEXT,
        type TEXT NOT NULL,
        format TEXT NOT NULL,
        status TEXT NOT NULL,
        created_at BIGINT NOT NULL,
        updated_at BIGINT NOT NULL,
        details TEXT NOT NULL,
        operation TEXT,
        operation_token TEXT,
        operation_until BIGINT
      )`
      yield* sql`CREATE UNIQUE INDEX effect_units_models_name ON effect_units_models (name_key)`
      yield* sql`CREATE UNIQUE INDEX effect_units_models_path ON effect_units_models (path) WHERE path IS NOT NULL`
      yield* sql`CREATE UNIQUE INDEX effect_units_models_origin ON effect_units_models (origin_key)
        WHERE origin_key IS NOT NULL`
      yield* sql`CREATE INDEX effect_units_models_order ON effect_units_models (created_at, id)`
    })
  })
})

/** What a row holds besides its columns. */
const Details = Schema.fromJsonString(
  Schema.Struct({
    source: StoredModel.fields.source,
    size: StoredModel.fields.size,
    checksum: StoredModel.fields.checksum,
    requirements: StoredModel.fields.requirements,
    tags: StoredModel.fields.tags,
    files: StoredModel.fields.files,
    origin: StoredModel.fields.origin,
    shape: StoredModel.fields.shape
  })
)

const Row = Schema.Struct({
  id: ModelId,
  name: Schema.NonEmptyString,
  path: Schema.NullOr(Schema.NonEmptyString),
  type: ModelType,
  format: ModelFormat,
  status: ModelStatus,
  // PostgreSQL gives 64-bit integers as bigint.
  created_at: Schema.Union([Schema.Finite, Schema.BigInt]),
  updated_at: Schema.Union([Schema.Finite, Schema.BigInt]),
  details: Details,
  operation_until: Schema.NullOr(Schema.Union([Schema.Finite, Schema.BigInt]))
})

const decodeRow = Schema.decodeUnknownEffect(Row)
const encodeDetails = Schema.encodeEffect(Details)

/** Work whose lease ran out has ended without a word: with its process. */
const toModel = (row: typeof Row.Type, now: number): StoredModel => ({
  id: row.id,
  name: row.name,
  type: row.type,
  format: row.format,
  status: (row.status === "pulling" || row.status === "verifying") && Number(row.operation_until ?? 0) < now
    ? "error"
    : row.status,
  ...row.details,
  ...(row.path === null ? {} : { path: row.path }),
  created_at: Number(row.created_at),
  updated_at: Number(row.updated_at)
})

// The separator cannot be in any of the parts: hubs do not allow it in names.
const originKey = (origin: Origin): string => `${origin.source}\n${origin.repo}\n${origin.tag}`

const nameKey = (name: string): string => name.toLowerCase()

const hex = (digits: number) =>
  Effect.map(
    Random.nextIntBetween(0, 16 ** digits, { halfOpen: true }),
    (n) => n.toString(16).padStart(digits, "0")
  )

const newId = Effect.map(hex(8), (digits) => ModelId.make(`model-${digits}`))

const attempts = 8

const make = Effect.fnUntraced(function*(options: Options) {
  const sql = yield* SqlClient.SqlClient
  const paths = yield* Path.Path
  const lease = Duration.toMillis(options.lease ?? "30 seconds")
  yield* migrate
  const working = new Map<
    ModelId,
    { readonly cancel: Deferred.Deferred<void>; readonly ended: Deferred.Deferred<void> }
  >()

  const failing = (operation: string) => (cause: SqlError.SqlError | Schema.SchemaError): ModelStoreError =>
    new ModelStoreError({ operation, cause, retryable: cause._tag === "SqlError" && cause.isRetryable })

  const find = Effect.fnUntraced(function*(id: string) {
    const [row] = yield* sql`SELECT * FROM effect_units_models WHERE id = ${id}`
    return row === undefined
      ? yield* new ModelNotFound({ model_id: id })
      : toModel(yield* decodeRow(row), yield* Clock.currentTimeMillis)
  })

  const columns = Effect.fnUntraced(function*(model: StoredModel) {
    const { checksum, files, origin, requirements, shape, size, source, tags } = model
    return {
      id: model.id,
      name: model.name,
      name_key: nameKey(model.name),
      path: model.path ?? null,
      origin_key: origin === undefined ? null : originKey(origin),
      type: model.type,
      format: model.format,
      status: model.status,
      created_at: model.created_at,
      updated_at: model.updated_at,
      details: yield* encodeDetails({ source, size, checksum, requirements, tags, files, origin, shape })
    }
  })

  /** What stands in the way of a record, by the order of what a caller would rather know. */
  const conflict = Effect.fnUntraced(function*(model: { readonly name: string; readonly path?: string | undefined }) {
    if (model.path !== undefined) {
      const [row] = yield* sql<{ id: string }>`SELECT id FROM effect_units_models WHERE path = ${model.path}`
      if (row !== undefined) return new ModelAlreadyExists({ model_id: row.id, conflict: "path", value: model.path })
    }
    const [row] = yield* sql<{ id: string }>`
      SELECT id FROM effect_units_models WHERE name_key = ${nameKey(model.name)}`
    return row === undefined
      ? undefined
      : new ModelAlreadyExists({ model_id: row.id, conflict: "name", value: model.name })
  })

  const create = Effect.fnUntraced(function*(model: NewModel) {
    const now = Math.floor((yield* Clock.currentTimeMillis) / 1000)
    const made: StoredModel = { ...model, id: yield* newId, created_at: now, updated_at: now }
    yield* sql`INSERT INTO effect_units_models ${sql.insert(yield* columns(made))}`
    return made
  })

  const insertOnce = Effect.fnUntraced(function*(model: NewModel) {
    const taken = yield* conflict(model)
    return taken === undefined ? yield* create(model) : yield* taken
  })

  // A collision of ids, or of names with another process that looked at the same time: the next look settles it.
  const settle = <A, E, R>(effect: Effect.Effect<A, E | SqlError.SqlError, R>) =>
    Effect.retry(sql.withTransaction(effect), {
      times: attempts,
      while: (error) =>
        typeof error === "object" && error !== null && "_tag" in error && error._tag === "SqlError" &&
        "reason" in error && (error as SqlError.SqlError).reason._tag === "UniqueViolation"
    })

  const write = Effect.fnUntraced(function*(model: StoredModel, change: Change) {
    const now = Math.floor((yield* Clock.currentTimeMillis) / 1000)
    const changed: StoredModel = { ...model, ...change, updated_at: now }
    const { id, ...values } = yield* columns(changed)
    yield* sql`UPDATE effect_units_models SET ${sql.update(values)} WHERE id = ${id}`
    return changed
  })

  const claim = Effect.fnUntraced(function*(id: ModelId, operation: Operation) {
    const token = yield* hex(12)
    const now = yield* Clock.currentTimeMillis
    const claimed = yield* sql`
      UPDATE effect_units_models
      SET operation = ${operation}, operation_token = ${token}, operation_until = ${now + lease}
      WHERE id = ${id} AND (operation IS NULL OR operation_until < ${now})
      RETURNING id`
    if (claimed.length > 0) return token
    const [row] = yield* sql<{ operation: Operation | null }>`
      SELECT operation FROM effect_units_models WHERE id = ${id}`
    if (row === undefined) return yield* new ModelNotFound({ model_id: id })
    return yield* new ModelBusy({ model_id: id, operation: row.operation ?? operation })
  })

  const renew = (token: string) =>
    Effect.gen(function*() {
      yield* Effect.sleep(lease / 3)
      const now = yield* Clock.currentTimeMillis
      yield* sql`UPDATE effect_units_models SET operation_until = ${now + lease} WHERE operation_token = ${token}`
    }).pipe(Effect.ignore, Effect.forever)

  const release = (id: ModelId, token: string) =>
    sql`UPDATE effect_units_models SET operation = NULL, operation_token = NULL, operation_until = NULL
      WHERE id = ${id} AND operation_token = ${token}`.pipe(
      // The lease runs out by itself.
      Effect.catch((error) => Effect.logWarning(`The lease of ${id} was not released`, error))
    )

  const during = <A, E, R>(id: ModelId, operation: Operation, work: Effect.Effect<A, E, R>) =>
    Effect.acquireUseRelease(
      Effect.gen(function*() {
        const token = yield* claim(id, operation).pipe(
          Effect.catchTag("SqlError", (error) => failing(operation)(error))
        )
        const state = { cancel: yield* Deferred.make<void>(), ended: yield* Deferred.make<void>() }
        working.set(id, state)
        return { token, state }
      }),
      ({ state, token }) => {
        const cancelled = Effect.andThen(Deferred.await(state.cancel), Effect.fail(new Cancelled({ model_id: id })))
        return Effect.raceFirst(work, Effect.raceFirst(cancelled, renew(token)))
      },
      ({ state, token }) =>
        Effect.andThen(
          release(id, token),
          Effect.suspend(() => {
            working.delete(id)
            return Deferred.succeed(state.ended, undefined)
          })
        )
    )

  return ModelStore.of({
    insert: (model) =>
      settle(insertOnce(model)).pipe(
        Effect.catchTag(["SqlError", "SchemaError"], (error) => failing("add a model")(error))
      ),
    register: (model) =>
      settle(Effect.gen(function*() {
        const [row] = yield* sql`
          SELECT * FROM effect_units_models WHERE origin_key = ${originKey(model.origin)}`
        if (row !== undefined) {
          return { model: toModel(yield* decodeRow(row), yield* Clock.currentTimeMillis), created: false }
        }
        // Another model can have the name of a repository: inference finds models by name, so this one says where it is from.
        const taken = (yield* conflict({ name: model.name })) !== undefined
        const name = taken ? `${model.name}@${model.origin.source}` : model.name
        return { model: yield* create({ ...model, name }), created: true }
      })).pipe(Effect.catchTag(["SqlError", "SchemaError"], (error) => failing("register a pull")(error))),
    get: (id) => find(id).pipe(Effect.catchTag(["SqlError", "SchemaError"], (error) => failing("read a model")(error))),
    list: ({ format, limit, offset, status, type }) =>
      Effect.gen(function*() {
        const now = yield* Clock.currentTimeMillis
        // The status that readers see; see `toModel`.
        const seen = sql`CASE WHEN status IN ('pulling', 'verifying') AND COALESCE(operation_until, 0) < ${now}
          THEN 'error' ELSE status END`
        const where = sql.and([
          sql`1 = 1`,
          ...(type === undefined ? [] : [sql`type = ${type}`]),
          ...(format === undefined ? [] : [sql`format = ${format}`]),
          ...(status === undefined ? [] : [sql`${seen} = ${status}`])
        ])
        const rows = yield* sql`SELECT * FROM effect_units_models WHERE ${where}
          ORDER BY created_at, id LIMIT ${limit} OFFSET ${offset}`
        const [counted] = yield* sql<{ total: number | bigint }>`
          SELECT COUNT(*) AS total FROM effect_units_models WHERE ${where}`
        const items = yield* Effect.forEach(
          rows,
          (row) => Effect.map(decodeRow(row), (decoded) => toModel(decoded, now))
        )
        return { items, total: Number(counted?.total ?? 0) }
      }).pipe(
        sql.withTransaction,
        Effect.catchTag(["SqlError", "SchemaError"], (error) => failing("list models")(error))
      ),
    change: (id, change) =>
      sql.withTransaction(Effect.flatMap(find(id), (model) => write(model, change))).pipe(
        Effect.catchTag(["SqlError", "SchemaError"], (error) => failing("change a model")(error))
      ),
    remove: (id) =>
      sql`DELETE FROM effect_units_models WHERE id = ${id}`.pipe(
        Effect.asVoid,
        Effect.mapError(failing("remove a model"))
      ),
    during,
    cancel: (id) =>
      Effect.suspend(() => {
        const state = working.get(id)
        return state === undefined
          ? Effect.succeed(false)
          : Deferred.succeed(state.cancel, undefined).pipe(Effect.andThen(Deferred.await(state.ended)), Effect.as(true))
      }),
    directory: (id) => paths.join(options.directory, id)
  })
})

/**
 * Layer of the register in the SQL database of the application. It makes its tables, all of them named `effect_units_model...`.
 *
 * Building it fails with `ModelStoreError` where the tables cannot be made.
 *
 * @category layers
 * @since 0.1.0
 */
export const layer = (
  options: Options
): Layer.Layer<ModelStore, ModelStoreError, SqlClient.SqlClient | Path.Path> =>
  Layer.effect(
    ModelStore,
    make(options).pipe(
      Effect.catchTag(["SqlError", "MigrationError"], (cause) =>
        new ModelStoreError({
          operation: "set it up",
          cause,
          retryable: cause._tag === "SqlError" && cause.isRetryable
        }))
    )
  )

/**
 * Tells which services use a model. The default knows of none; the service domain provides its own.
 *
 * @category references
 * @since 0.1.0
 */
export const ModelUsage: Context.Reference<(id: ModelId) => Effect.Effect<ReadonlyArray<string>>> = Context.Reference<
  (id: ModelId) => Effect.Effect<ReadonlyArray<string>>
>("effect-units/model/ModelUsage", { defaultValue: () => () => Effect.succeed([]) })
