/**
 * The register of models: their records in SQL, and who is working on which.
 *
 * @since 0.1.0
 */
import * as Clock from "effect/Clock"
import * as Context from "effect/Context"
import type * as Duration from "effect/Duration"
import * as Effect from "effect/Effect"
import * as Layer from "effect/Layer"
import * as Path from "effect/Path"
import * as Predicate from "effect/Predicate"
import * as Random from "effect/Random"
import * as Schema from "effect/Schema"
import * as Migrator from "effect/sql/Migrator"
import * as SqlClient from "effect/sql/SqlClient"
import * as SqlError from "effect/sql/SqlError"
import * as Operations from "../backends/Operations.ts"
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
 * The statuses that a record has by itself. It shows `pulling` and `verifying` for as long as that work is under way.
 *
 * @category models
 * @since 0.1.0
 */
export type Settled = Exclude<ModelStatus, "pulling" | "verifying">

/**
 * What a record starts from: its id and times are given by the store.
 *
 * @category models
 * @since 0.1.0
 */
export type NewModel = Omit<StoredModel, "id" | "status" | "created_at" | "updated_at"> & { readonly status: Settled }

/**
 * What can be changed in a record. What is `undefined` is taken away.
 *
 * @category models
 * @since 0.1.0
 */
export type Change = Partial<NewModel>

/**
 * Long work on a model, of which only one can be under way.
 *
 * @category models
 * @since 0.1.0
 */
export type Operation = "pull" | "verify" | "delete"

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
    const detail = Predicate.hasProperty(this.cause, "message") ? String(this.cause.message) : "no reason is known"
    return `The register of models could not be used to ${this.operation}: ${detail}. Check the database and its disk`
  }
}

/**
 * Reads and writes records. Each method is atomic, also against other processes that share the database.
 *
 * **Details**
 *
 * - `insert` fails with `ModelAlreadyExists` where a name, whatever its case, or a path is taken.
 * - `register` gives the record of an origin, and makes it first where there is none; `created` says so.
 * - `find` gives the model whose id or name it is, whatever the case of the name, and `undefined` where there is none.
 * - `list` goes by creation, then id. `total` is the count before paging.
 * - `during` runs work on a model, given as it is then, while no other works on it; see `Operations.during`. The status shows the
 *   work. What was being pulled is left with the status `error`, unless the work changes it.
 * - `cancel` ends a pull or a check with `Cancelled`, waits until it has ended, and says whether there was any.
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
  readonly find: (idOrName: string) => Effect.Effect<StoredModel | undefined, ModelStoreError>
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
    id: string,
    operation: Operation,
    work: (model: StoredModel) => Effect.Effect<A, E, R>
  ) => Effect.Effect<A, E | Operations.Busy | Operations.Cancelled | ModelNotFound | ModelStoreError, R>
  readonly cancel: (id: string) => Effect.Effect<boolean, ModelStoreError>
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
        ${sql.literal(Operations.columns)}
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
  ...Operations.Claim.fields,
  id: ModelId,
  name: Schema.NonEmptyString,
  path: Schema.NullOr(Schema.NonEmptyString),
  type: ModelType,
  format: ModelFormat,
  status: ModelStatus,
  // PostgreSQL gives 64-bit integers as bigint.
  created_at: Schema.Union([Schema.Finite, Schema.BigInt]),
  updated_at: Schema.Union([Schema.Finite, Schema.BigInt]),
  details: Details
})

const decodeRow = Schema.decodeUnknownEffect(Row)
const encodeDetails = Schema.encodeEffect(Details)

const shownDuring: { readonly [operation: string]: ModelStatus } = { pull: "pulling", verify: "verifying" }

/** A row as readers see it now. */
const toModel = Effect.fnUntraced(function*(unknownRow: unknown) {
  const row = yield* decodeRow(unknownRow)
  const operation = Operations.underWay(row, yield* Clock.currentTimeMillis)
  const model: StoredModel = {
    id: row.id,
    name: row.name,
    type: row.type,
    format: row.format,
    status: (operation === undefined ? undefined : shownDuring[operation]) ?? row.status,
    ...row.details,
    ...(row.path === null ? {} : { path: row.path }),
    created_at: Number(row.created_at),
    updated_at: Number(row.updated_at)
  }
  return model
})

const unixSeconds = Effect.map(Clock.currentTimeMillis, (millis) => Math.floor(millis / 1000))

// On Ollama a mirror is another registry, whose models have other names.
const originKey = ({ mirror, repo, source, tag }: Origin): string =>
  JSON.stringify([source, repo, tag, ...(source === "ollama" && mirror !== undefined ? [mirror] : [])])

const nameKey = (name: string): string => name.toLowerCase()

const newId = Effect.map(
  Random.nextIntBetween(0, 2 ** 32, { halfOpen: true }),
  (n) => ModelId.make(`model-${n.toString(16).padStart(8, "0")}`)
)

/** How often a record is tried to be added: its id may be taken, or another process may take its name at the same time. */
const attempts = 8

const failing = (operation: string) => (cause: SqlError.SqlError | Schema.SchemaError): ModelStoreError =>
  new ModelStoreError({ operation, cause, retryable: cause._tag === "SqlError" && cause.isRetryable })

const make = Effect.fnUntraced(function*(options: Options) {
  const sql = yield* SqlClient.SqlClient
  const paths = yield* Path.Path
  yield* migrate
  const operations = yield* Operations.make<Operation, ModelNotFound, ModelStoreError>({
    table: "effect_units_models",
    lease: options.lease,
    missing: (id) => new ModelNotFound({ model_id: id }),
    failed: failing
  })

  const find = Effect.fnUntraced(function*(id: string) {
    const [row] = yield* sql`SELECT * FROM effect_units_models WHERE id = ${id}`
    return row === undefined ? yield* new ModelNotFound({ model_id: id }) : yield* toModel(row)
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

  const named = (name: string) =>
    sql<{ id: string }>`SELECT id FROM effect_units_models WHERE name_key = ${nameKey(name)}`

  /** What stands in the way of a record: of a path and a name that are taken, a caller would rather know of the path. */
  const conflict = Effect.fnUntraced(function*({ name, path }: NewModel) {
    const [samePath] = path === undefined
      ? []
      : yield* sql<{ id: string }>`SELECT id FROM effect_units_models WHERE path = ${path}`
    if (samePath !== undefined && path !== undefined) {
      return new ModelAlreadyExists({ model_id: samePath.id, conflict: "path", value: path })
    }
    const [sameName] = yield* named(name)
    return sameName && new ModelAlreadyExists({ model_id: sameName.id, conflict: "name", value: name })
  })

  const create = Effect.fnUntraced(function*(model: NewModel, id: ModelId) {
    const now = yield* unixSeconds
    const made: StoredModel = { ...model, id, created_at: now, updated_at: now }
    yield* sql`INSERT INTO effect_units_models ${sql.insert(yield* columns(made))}`
    return made
  })

  const settle = <A, E, R>(effect: Effect.Effect<A, E | SqlError.SqlError, R>) =>
    Effect.retry(sql.withTransaction(effect), {
      times: attempts,
      while: (error) => SqlError.isSqlError(error) && error.reason._tag === "UniqueViolation"
    })

  return ModelStore.of({
    insert: (model) =>
      settle(Effect.gen(function*() {
        const taken = yield* conflict(model)
        return taken === undefined ? yield* create(model, yield* newId) : yield* taken
      })).pipe(Effect.catchTag(["SqlError", "SchemaError"], (error) => failing("add a model")(error))),
    register: (model) =>
      settle(Effect.gen(function*() {
        const [row] = yield* sql`
          SELECT * FROM effect_units_models WHERE origin_key = ${originKey(model.origin)}`
        if (row !== undefined) return { model: yield* toModel(row), created: false }
        // Inference finds models by name, so where another model has that of the repository, this one says where it is from.
        const id = yield* newId
        const names = [model.name, `${model.name}@${model.origin.source}`]
        for (const name of names) {
          if ((yield* named(name)).length === 0) return { model: yield* create({ ...model, name }, id), created: true }
        }
        return { model: yield* create({ ...model, name: `${model.name}@${id}` }, id), created: true }
      })).pipe(Effect.catchTag(["SqlError", "SchemaError"], (error) => failing("register a pull")(error))),
    get: (id) => find(id).pipe(Effect.catchTag(["SqlError", "SchemaError"], (error) => failing("read a model")(error))),
    find: Effect.fnUntraced(
      function*(idOrName) {
        const [row] = yield* sql`SELECT * FROM effect_units_models WHERE id = ${idOrName} OR name_key = ${
          nameKey(idOrName)
        }
          ORDER BY CASE WHEN id = ${idOrName} THEN 0 ELSE 1 END LIMIT 1`
        return row === undefined ? undefined : yield* toModel(row)
      },
      Effect.catchTag(["SqlError", "SchemaError"], (error) => failing("find a model")(error))
    ),
    list: Effect.fnUntraced(
      function*({ format, limit, offset, status, type }) {
        const now = yield* Clock.currentTimeMillis
        // The status that readers see; see `toModel`.
        const shown = sql`CASE
          WHEN operation_until >= ${now} AND operation = 'pull' THEN 'pulling'
          WHEN operation_until >= ${now} AND operation = 'verify' THEN 'verifying'
          ELSE status END`
        const matches = sql.and([
          ...(type === undefined ? [] : [sql`type = ${type}`]),
          ...(format === undefined ? [] : [sql`format = ${format}`]),
          ...(status === undefined ? [] : [sql`${shown} = ${status}`])
        ])
        // One statement, so that page and total are of the same moment. It has a row where the page is empty, too.
        const rows = yield* sql<{ readonly id: unknown; readonly total: number | bigint }>`
          WITH matching AS (SELECT * FROM effect_units_models WHERE ${matches})
          SELECT page.*, counted.total FROM (SELECT COUNT(*) AS total FROM matching) AS counted
          LEFT JOIN (SELECT * FROM matching ORDER BY created_at, id LIMIT ${limit} OFFSET ${offset}) AS page ON 1 = 1
          ORDER BY page.created_at, page.id`
        const items = yield* Effect.forEach(rows.filter((row) => row.id !== null), toModel)
        return { items, total: Number(rows[0]?.total) }
      },
      Effect.catchTag(["SqlError", "SchemaError"], (error) => failing("list models")(error))
    ),
    change: Effect.fnUntraced(
      function*(id, change) {
        const model = yield* find(id)
        const changed: StoredModel = { ...model, ...change, updated_at: yield* unixSeconds }
        const { id: _, status, ...values } = yield* columns(changed)
        // The status that was found may be that of work, which no record has by itself.
        const set = change.status === undefined ? values : { ...values, status }
        yield* sql`UPDATE effect_units_models SET ${sql.update(set)} WHERE id = ${id}`
        return changed
      },
      sql.withTransaction,
      Effect.catchTag(["SqlError", "SchemaError"], (error) => failing("change a model")(error))
    ),
    remove: (id) =>
      sql`DELETE FROM effect_units_models WHERE id = ${id}`.pipe(
        Effect.asVoid,
        Effect.mapError(failing("remove a model"))
      ),
    during: (id, operation, work) =>
      Effect.flatMap(unixSeconds, (now) =>
        operations.during({
          id,
          operation,
          set: operation === "pull" ? { status: "error", updated_at: now } : {},
          work: (row) => Effect.flatMap(Effect.mapError(toModel(row), failing(operation)), work)
        })),
    cancel: (id) => operations.cancel(id, ["pull", "verify"]),
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
