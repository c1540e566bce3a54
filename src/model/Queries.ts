/**
 * The queries of the model domain: units that change nothing.
 *
 * @since 0.1.0
 */
import * as Effect from "effect/Effect"
import * as Schema from "effect/Schema"
import * as Unit from "../Unit.ts"
import { InternalError, RateLimited, Timeout } from "../UnitError.ts"
import { ModelNotFound } from "./Errors.ts"
import * as Estimate from "./Estimate.ts"
import { type HubError, HubSource } from "./HubError.ts"
import { internal, rateLimited } from "./internal/failures.ts"
import * as LocalFiles from "./LocalFiles.ts"
import { Model, ModelFormat, ModelId, ModelStatus, ModelType, Requirements, SearchResult } from "./Model.ts"
import { ModelHub } from "./ModelHub.ts"
import { ModelStore, type StoredModel } from "./ModelStore.ts"

const limit = (maximum: number, byDefault: number) =>
  Schema.Int.check(Schema.isBetween({ minimum: 1, maximum })).pipe(Unit.withDefault(byDefault))

const offset = Schema.Int.check(Schema.isGreaterThanOrEqualTo(0)).pipe(Unit.withDefault(0))

/**
 * `model.get`: one model of the register.
 *
 * @category queries
 * @since 0.1.0
 */
export const get = Unit.query("model.get", {
  description: "Tells what the register holds of a model",
  input: { model_id: Schema.NonEmptyString },
  output: {
    id: ModelId,
    name: Model.fields.name,
    type: ModelType,
    format: ModelFormat,
    status: ModelStatus,
    size: Model.fields.size,
    requirements: Schema.optionalKey(Requirements)
  },
  errors: [ModelNotFound, InternalError],
  examples: [{ model_id: "model-0a1b2c3d" }],
  handler: Effect.fnUntraced(function*({ model_id }) {
    const store = yield* ModelStore
    const { format, id, name, requirements, size, status, type } = yield* store.get(model_id).pipe(internal)
    return { id, name, type, format, status, size, ...(requirements === undefined ? {} : { requirements }) }
  })
})

/**
 * `model.list`: the models of the register, by creation, then id. `total` is the count before paging.
 *
 * @category queries
 * @since 0.1.0
 */
export const list = Unit.query("model.list", {
  description: "Lists the models of the register",
  input: {
    type: Schema.optionalKey(ModelType),
    status: Schema.optionalKey(ModelStatus),
    format: Schema.optionalKey(ModelFormat),
    limit: limit(100, 100),
    offset
  },
  output: {
    items: Schema.Array(Schema.Struct({ id: ModelId, name: Schema.String, type: ModelType, status: ModelStatus })),
    total: Schema.Natural
  },
  errors: [InternalError],
  examples: [{}, { status: "ready", limit: 10 }],
  handler: Effect.fnUntraced(function*(filter) {
    const store = yield* ModelStore
    const { items, total } = yield* store.list(filter).pipe(internal)
    return { items: items.map(({ id, name, status, type }) => ({ id, name, type, status })), total }
  })
})

const searchFailed = (error: HubError): RateLimited | Timeout | InternalError =>
  rateLimited(error) ?? (
    error.reason._tag === "Timeout"
      ? new Timeout({ detail: error.message })
      : new InternalError({ detail: error.message, cause: error })
  )

/**
 * `model.search`: models on the hubs, the most downloaded first. Without `source` all hubs are asked, and those that answer count.
 *
 * @category queries
 * @since 0.1.0
 */
export const search = Unit.query("model.search", {
  description: "Searches the hubs for models",
  input: {
    query: Schema.NonEmptyString,
    source: Schema.optionalKey(HubSource),
    type: Schema.optionalKey(ModelType),
    limit: limit(100, 20)
  },
  output: { results: Schema.Array(Schema.Struct(omitTags(SearchResult.fields))) },
  errors: [Timeout, RateLimited, InternalError],
  examples: [{ query: "qwen3", type: "llm" }],
  handler: Effect.fnUntraced(function*({ limit, query, source, type }) {
    const hub = yield* ModelHub
    const found = yield* Effect.mapError(hub.search({ query, source, type, limit }), searchFailed)
    return {
      results: found.map(({ description, downloads, id, name, source, type }) => ({
        id,
        name,
        type,
        source,
        description,
        downloads
      }))
    }
  })
})

function omitTags<F extends { readonly tags: unknown }>({ tags: _tags, ...fields }: F): Omit<F, "tags"> {
  return fields
}

/**
 * `model.estimate_resources`: the memory that a model needs, in bytes. Recorded requirements win; otherwise see
 * `Estimate.estimate` for the formula. What it is computed from comes from the register, else from the files, else from the hub;
 * where none of them tells, it fails with `InternalError`: no number is made up.
 *
 * @category queries
 * @since 0.1.0
 */
export const estimateResources = Unit.query("model.estimate_resources", {
  description: "Estimates the memory that a model needs to serve",
  input: { model_id: Schema.NonEmptyString },
  output: { memory_min: Schema.Natural, memory_recommended: Schema.Natural, gpu_type: Schema.String },
  errors: [ModelNotFound, InternalError],
  examples: [{ model_id: "model-0a1b2c3d" }],
  handler: Effect.fnUntraced(function*({ model_id }) {
    const store = yield* ModelStore
    const model = yield* store.get(model_id).pipe(internal)
    if (model.requirements !== undefined) {
      const { gpu_type, memory_min, memory_recommended } = model.requirements
      return { memory_min, memory_recommended, gpu_type }
    }
    return Estimate.estimate(model.shape ?? {}) ??
      (yield* byFiles(model)) ??
      (yield* byHub(model)) ??
      (yield* new InternalError({
        detail:
          `The memory of ${model.id} cannot be estimated, for nothing tells its size. Pull it, or import its files`
      }))
  })
})

const byFiles = Effect.fnUntraced(function*({ id, origin, path }: StoredModel) {
  if (path === undefined) return undefined
  const found = yield* Effect.result(LocalFiles.inspect(path))
  if (found._tag === "Success") return Estimate.estimate(found.success.shape)
  // The hub may know.
  if (origin !== undefined) return undefined
  return yield* new InternalError({ detail: `The memory of ${id} cannot be estimated. ${found.failure.message}` })
})

const byHub = Effect.fnUntraced(function*({ id, origin }: StoredModel) {
  if (origin === undefined) return undefined
  const { describe } = yield* ModelHub
  const { shape } = yield* Effect.mapError(
    describe(origin),
    (error) => new InternalError({ detail: `The memory of ${id} cannot be estimated. ${error.message}`, cause: error })
  )
  return Estimate.estimate(shape)
})
