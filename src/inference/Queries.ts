/**
 * The queries of the inference domain: what can be asked for.
 *
 * @since 0.1.0
 */
import * as Effect from "effect/Effect"
import * as Schema from "effect/Schema"
import { ModelType } from "../model/Model.ts"
import { ModelStore, type StoredModel } from "../model/ModelStore.ts"
import * as Unit from "../Unit.ts"
import { InternalError } from "../UnitError.ts"
import { inferenceFailures } from "./Errors.ts"
import { InferenceModel, Voice } from "./Inference.ts"
import { internal } from "./internal/failures.ts"
import { Router } from "./Router.ts"
import * as Serving from "./Serving.ts"

/**
 * `inference.models`: the models that are being served at this moment, by id, then provider, each once.
 *
 * **Details**
 *
 * Every live endpoint is asked. One that does not answer is left out, and where none answers, there are no models.
 *
 * @category queries
 * @since 0.1.0
 */
export const models = Unit.query("inference.models", {
  description: "Lists the models that are being served",
  input: { type: Schema.optionalKey(ModelType) },
  output: { models: Schema.Array(InferenceModel) },
  errors: [InternalError],
  examples: [{}, { type: "embedding" }],
  handler: Effect.fnUntraced(function*({ type }) {
    const router = yield* Router
    const served = yield* router.served
    const register = yield* registered
    const registeredAs = Serving.finder(register)
    const found = new Map<string, InferenceModel>()
    for (const { endpoint, models } of served) {
      for (const model of models) {
        const key = JSON.stringify([model.id, endpoint.provider])
        if (found.has(key)) continue
        const known = registeredAs(model.id) ??
          (models.length === 1 ? register.find(({ id }) => id === endpoint.modelId) : undefined)
        const type = known?.type ?? Serving.typeOf(model)
        found.set(key, {
          id: model.id,
          name: known?.name ?? model.id,
          type,
          provider: endpoint.provider,
          description: model.description ?? "",
          ...(model.max_tokens === undefined ? {} : { max_tokens: model.max_tokens }),
          modalities: model.modalities ?? Serving.modalitiesOf(type)
        })
      }
    }
    const byId = Array.from(found.values()).sort((a, b) => compare(a.id, b.id) || compare(a.provider, b.provider))
    return { models: type === undefined ? byId : byId.filter((model) => model.type === type) }
  })
})

/**
 * `inference.voices`: the voices that models speak with, by id, each once: those of one model, or of all that are being served.
 *
 * **Details**
 *
 * An endpoint that cannot list them has none. Where a model is given, what goes wrong with it is a failure; without one, endpoints that do not
 * answer are left out.
 *
 * @category queries
 * @since 0.1.0
 */
export const voices = Unit.query("inference.voices", {
  description: "Lists the voices that models speak with",
  input: { model: Schema.optionalKey(Schema.NonEmptyString) },
  output: { voices: Schema.Array(Voice) },
  errors: [...inferenceFailures, InternalError],
  examples: [{}, { model: "kokoro" }],
  handler: Effect.fnUntraced(function*({ model }) {
    const router = yield* Router
    if (model !== undefined) {
      return {
        voices: sorted(
          yield* router.call(model, "voices", (backend, model) => backend.voices?.({ model }) ?? Effect.succeed([]))
        )
      }
    }
    const registeredAs = Serving.finder(yield* registered)
    const speaking = (yield* router.served).flatMap(({ endpoint, models }) =>
      models.filter((listed) => (registeredAs(listed.id)?.type ?? Serving.typeOf(listed)) === "tts")
        .map(({ id }) => endpoint.backend.voices?.({ model: id }) ?? Effect.succeed([]))
    )
    const found = yield* Effect.forEach(
      speaking,
      (voices) => Effect.orElseSucceed(voices, (): ReadonlyArray<Voice> => []),
      { concurrency }
    )
    return { voices: sorted(found.flat()) }
  })
})

/** Endpoints that are asked at the same time. */
const concurrency = 16

/** By id, and of several with the same the first. */
const sorted = (voices: ReadonlyArray<Voice>): ReadonlyArray<Voice> => {
  const byId = new Map<string, Voice>()
  for (const voice of voices) if (!byId.has(voice.id)) byId.set(voice.id, voice)
  return Array.from(byId.values()).sort((a, b) => compare(a.id, b.id))
}

const compare = (a: string, b: string): number => a < b ? -1 : a > b ? 1 : 0

const pageSize = 1000

/** Every model of the register. */
const registered = Effect.gen(function*() {
  const store = yield* ModelStore
  const all: Array<StoredModel> = []
  while (true) {
    const { items, total } = yield* Effect.mapError(store.list({ limit: pageSize, offset: all.length }), internal)
    all.push(...items)
    if (items.length === 0 || all.length >= total) return all
  }
})
