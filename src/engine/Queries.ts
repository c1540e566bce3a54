/**
 * The queries of the engine domain: units that change nothing. They tell what runs in reality, whatever is recorded.
 *
 * @since 0.1.0
 */
import * as Effect from "effect/Effect"
import * as Schema from "effect/Schema"
import * as Unit from "../Unit.ts"
import { InternalError } from "../UnitError.ts"
import { Engine, EngineStatus, EngineType, Features } from "./Engine.ts"
import { Engines, processId } from "./Engines.ts"
import { EngineStore } from "./EngineStore.ts"
import { EngineNotFound } from "./Errors.ts"
import { internal } from "./internal/failures.ts"

/**
 * `engine.get`: one engine of the register. One that runs is asked for its models.
 *
 * @category queries
 * @since 0.1.0
 */
export const get = Unit.query("engine.get", {
  description: "Tells the state of an engine, and what it serves",
  input: { name: Schema.NonEmptyString },
  output: {
    name: Engine.fields.name,
    type: EngineType,
    status: EngineStatus,
    version: Engine.fields.version,
    capabilities: Engine.fields.capabilities,
    models: Engine.fields.models,
    process_id: Engine.fields.process_id,
    path: Engine.fields.path
  },
  errors: [EngineNotFound, InternalError],
  examples: [{ name: "ollama" }],
  handler: Effect.fnUntraced(function*({ name }) {
    const store = yield* EngineStore
    const engines = yield* Engines
    const engine = yield* engines.actual(yield* internal(store.get(name)))
    const served = engine.status === "running" ? yield* engines.served(engine) : undefined
    const { path, status, type, version } = engine
    return {
      name,
      type,
      status,
      version,
      capabilities: engines.recipe(engine).capabilities,
      models: served?.models ?? [],
      process_id: processId(engine),
      path
    }
  })
})

/**
 * `engine.list`: the engines of the register, by creation, then id. `total` is the count before paging.
 *
 * @category queries
 * @since 0.1.0
 */
export const list = Unit.query("engine.list", {
  description: "Lists the engines of the register",
  input: {
    type: Schema.optionalKey(EngineType),
    status: Schema.optionalKey(EngineStatus),
    limit: Schema.Int.check(Schema.isBetween({ minimum: 1, maximum: 100 })).pipe(Unit.withDefault(100)),
    offset: Schema.Int.check(Schema.isGreaterThanOrEqualTo(0)).pipe(Unit.withDefault(0))
  },
  output: {
    items: Schema.Array(Schema.Struct({ name: Schema.String, type: EngineType, status: EngineStatus })),
    total: Schema.Natural
  },
  errors: [InternalError],
  examples: [{}, { status: "running" }],
  handler: Effect.fnUntraced(function*({ limit, offset, status, type }) {
    const store = yield* EngineStore
    const engines = yield* Engines
    // Whether an engine runs is not known to the database, so all of them are looked at; a host has a handful.
    const recorded = yield* internal(store.list({ type }))
    const actual = yield* Effect.forEach(recorded, engines.actual, { concurrency: 16 })
    const matching = actual.filter((engine) => status === undefined || engine.status === status)
    return {
      items: matching.slice(offset, offset + limit).map(({ name, status, type }) => ({ name, type, status })),
      total: matching.length
    }
  })
})

/**
 * `engine.features`: what an engine can do by its type. Of one that runs, `max_context_length` is what it says itself, where it does.
 *
 * @category queries
 * @since 0.1.0
 */
export const features = Unit.query("engine.features", {
  description: "Tells what an engine can do",
  input: { name: Schema.NonEmptyString },
  output: Features,
  errors: [EngineNotFound, InternalError],
  examples: [{ name: "vllm" }],
  handler: Effect.fnUntraced(function*({ name }) {
    const store = yield* EngineStore
    const engines = yield* Engines
    const engine = yield* engines.actual(yield* internal(store.get(name)))
    const { features } = engines.recipe(engine)
    const served = engine.status === "running" ? yield* engines.served(engine) : undefined
    return served?.contextLength === undefined ? features : { ...features, max_context_length: served.contextLength }
  })
})
