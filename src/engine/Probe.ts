/**
 * What a running engine says of itself over HTTP: whether it is healthy, and which models it serves.
 *
 * @since 0.1.0
 */
import type * as Duration from "effect/Duration"
import * as Effect from "effect/Effect"
import * as HttpClient from "effect/http/HttpClient"
import * as HttpClientRequest from "effect/http/HttpClientRequest"
import * as Schema from "effect/Schema"
import type { Recipe } from "./Recipe.ts"

/**
 * The models that an engine serves, and the longest context of any of them in tokens, where the engine tells.
 *
 * @category models
 * @since 0.1.0
 */
export interface Served {
  readonly models: ReadonlyArray<string>
  readonly contextLength: number | undefined
}

/** For one answer of a server on this host: a healthy one answers at once. */
const answerTimeout = "5 seconds"

/** https://platform.openai.com/docs/api-reference/models/list; `max_model_len` is vLLM's and SGLang's. */
const OpenAiModels = Schema.Struct({
  data: Schema.Array(
    Schema.Struct({ id: Schema.String, max_model_len: Schema.optional(Schema.NullOr(Schema.Natural)) })
  )
})

/** https://github.com/ollama/ollama/blob/main/docs/api.md#list-local-models */
const OllamaTags = Schema.Struct({ models: Schema.NullOr(Schema.Array(Schema.Struct({ name: Schema.String }))) })

/** `/info` of text-generation-inference and text-embeddings-inference. */
const Info = Schema.Struct({
  model_id: Schema.String,
  served_model_name: Schema.optional(Schema.NullOr(Schema.String)),
  max_total_tokens: Schema.optional(Schema.NullOr(Schema.Natural)),
  max_input_length: Schema.optional(Schema.NullOr(Schema.Natural))
})

/**
 * Asks engines by an HTTP client. None of the answers is a failure: an engine that cannot be asked is not healthy, and tells nothing.
 *
 * @category constructors
 * @since 0.1.0
 */
export const make = Effect.map(HttpClient.HttpClient, (client) => {
  const get = (url: string, timeout: Duration.Input = answerTimeout) =>
    client.execute(HttpClientRequest.get(url)).pipe(
      Effect.flatMap((response) => Effect.map(response.text, (text) => ({ status: response.status, text }))),
      Effect.timeout(timeout)
    )

  const json = <A>(url: string, schema: Schema.Codec<A, unknown>) =>
    Effect.flatMap(get(url), ({ text }) => Schema.decodeEffect(Schema.fromJsonString(schema))(text))

  const served = ({ modelsPath }: Recipe, base: string) => {
    const url = `${base}${modelsPath}`
    switch (modelsPath) {
      case "/v1/models":
        return Effect.map(json(url, OpenAiModels), ({ data }) => {
          const lengths = data.flatMap(({ max_model_len }) => max_model_len ?? [])
          return {
            models: data.map(({ id }) => id),
            contextLength: lengths.length === 0 ? undefined : Math.max(...lengths)
          }
        })
      case "/api/tags":
        return Effect.map(json(url, OllamaTags), ({ models }) => ({
          models: (models ?? []).map(({ name }) => name),
          contextLength: undefined
        }))
      case "/info":
        return Effect.map(json(url, Info), ({ max_input_length, max_total_tokens, model_id, served_model_name }) => ({
          models: [served_model_name ?? model_id],
          contextLength: max_total_tokens ?? max_input_length ?? undefined
        }))
    }
  }

  return {
    /** Whether an engine at an address such as `http://127.0.0.1:8000` is healthy by its recipe. */
    isHealthy: (
      { healthPath, healthText }: Recipe,
      base: string,
      timeout?: Duration.Input | undefined
    ): Effect.Effect<boolean> =>
      get(`${base}${healthPath}`, timeout).pipe(
        Effect.map(({ status, text }) => status === 200 && (healthText === undefined || text.includes(healthText))),
        Effect.orElseSucceed(() => false)
      ),
    /** What an engine serves; `undefined` where it does not tell. */
    served: (recipe: Recipe, base: string): Effect.Effect<Served | undefined> =>
      Effect.orElseSucceed(served(recipe, base), () => undefined)
  }
})

/**
 * @category models
 * @since 0.1.0
 */
export type Probe = Effect.Success<typeof make>
