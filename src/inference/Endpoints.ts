/**
 * The endpoints that are live: which there are, what they can do, and which models they serve.
 *
 * @since 0.1.0
 */
import * as Config from "effect/Config"
import * as Context from "effect/Context"
import * as Effect from "effect/Effect"
import type * as HttpClient from "effect/http/HttpClient"
import * as Layer from "effect/Layer"
import * as Option from "effect/Option"
import * as Predicate from "effect/Predicate"
import * as Redacted from "effect/Redacted"
import * as Schema from "effect/Schema"
import { endpointOf } from "../model/Ollama.ts"
import type { Backend } from "./Backend.ts"
import type * as EndpointHttp from "./EndpointHttp.ts"
import * as Ollama from "./Ollama.ts"
import * as OpenAi from "./OpenAi.ts"

/**
 * An endpoint, ready to be asked.
 *
 * **Details**
 *
 * - `name` is unique among the endpoints, lasts as long as the endpoint, and is what failures call it.
 * - `provider` is the kind of server, as `inference.models` shows it: `openai`, `ollama`, `vllm`, `node-llama-cpp`.
 * - `address` tells one life of the endpoint from the next: what is known of it is forgotten when it has another one.
 * - `models` are ids that it serves. Without them it is asked.
 * - `modelId` is the id of the registered model that it was started for, whatever the endpoint itself calls it.
 * - `isLastResort` is true of one that is asked only where no other one serves a model.
 *
 * @category models
 * @since 0.1.0
 */
export interface Endpoint {
  readonly name: string
  readonly provider: string
  readonly address: string
  readonly backend: Backend
  readonly models?: ReadonlyArray<string> | undefined
  readonly modelId?: string | undefined
  readonly isLastResort?: boolean | undefined
}

/**
 * What can be said of an endpoint that is reached by HTTP, or that is in this process and brings its own backend.
 *
 * **Details**
 *
 * `provider` is the dialect by default. `baseUrl` of `openai` is what stands before `/chat/completions`, and gets `/v1` where it is a
 * host without a path. The key is sent to the endpoint, and shown nowhere.
 *
 * @category models
 * @since 0.1.0
 */
export type EndpointOptions =
  & {
    readonly name: string
    readonly provider?: string | undefined
    readonly models?: ReadonlyArray<string> | undefined
    readonly modelId?: string | undefined
  }
  & (
    | EndpointHttp.Options & { readonly dialect: "openai" | "ollama" }
    | { readonly dialect: "in_process"; readonly backend: Backend }
  )

/**
 * The endpoints could not be listed. A retry can help.
 *
 * @category errors
 * @since 0.1.0
 */
export class EndpointsError
  extends Schema.TaggedError<EndpointsError>("effect-units/inference/EndpointsError")("EndpointsError", {
    cause: Schema.Defect()
  })
{
  override get message(): string {
    const detail = Predicate.hasProperty(this.cause, "message") ? String(this.cause.message) : "no reason is known"
    return `The endpoints could not be listed: ${detail}`
  }
}

/**
 * Tells which endpoints are live at this moment, in a stable order. It is asked often, and has to answer at once.
 *
 * @category services
 * @since 0.1.0
 */
export class Endpoints extends Context.Service<Endpoints, {
  readonly list: Effect.Effect<ReadonlyArray<Endpoint>, EndpointsError>
}>()("effect-units/inference/Endpoints") {}

/**
 * Builds an endpoint.
 *
 * @category constructors
 * @since 0.1.0
 */
export const make = Effect.fnUntraced(function*(
  options: EndpointOptions
): Effect.fn.Return<Endpoint, never, HttpClient.HttpClient> {
  const { modelId, models, name, provider = options.dialect } = options
  switch (options.dialect) {
    case "in_process":
      return { name, provider, address: "in process", backend: options.backend, models, modelId }
    case "openai":
      return { name, provider, address: options.baseUrl, backend: yield* OpenAi.make(options), models, modelId }
    case "ollama":
      return { name, provider, address: options.baseUrl, backend: yield* Ollama.make(options), models, modelId }
  }
})

/**
 * Layer of a fixed list of endpoints.
 *
 * **Example** (Two replicas and a service on the internet)
 *
 * ```ts
 * const endpoints = Endpoints.layer([
 *   { name: "vllm-1", dialect: "openai", baseUrl: "http://10.0.0.1:8000" },
 *   { name: "vllm-2", dialect: "openai", baseUrl: "http://10.0.0.2:8000" },
 *   { name: "openai", dialect: "openai", baseUrl: "https://api.openai.com", apiKey: Redacted.make(key) }
 * ])
 * ```
 *
 * @category layers
 * @since 0.1.0
 */
export const layer = (
  endpoints: ReadonlyArray<EndpointOptions>
): Layer.Layer<Endpoints, never, HttpClient.HttpClient> =>
  Layer.effect(
    Endpoints,
    Effect.map(Effect.forEach(endpoints, make), (list) => Endpoints.of({ list: Effect.succeed(list) }))
  )

/**
 * How long endpoints may take; see `EndpointHttp.Options`.
 *
 * @category models
 * @since 0.1.0
 */
export type Timeouts = Pick<EndpointHttp.Options, "responseTimeout" | "idleTimeout" | "listTimeout" | "jobTimeout">

/**
 * Layer of the endpoints that `Config` tells of, by the names that clients and Ollama itself use.
 *
 * | variable | meaning |
 * |---|---|
 * | `OPENAI_BASE_URL`, `OPENAI_API_KEY` | address of a server that speaks the OpenAI protocol, and its key; without the address there is no such endpoint |
 * | `OLLAMA_HOST` | where Ollama listens: `host`, `host:port` or an address; by default this host, where it counts as not there while nothing answers |
 *
 * @category layers
 * @since 0.1.0
 */
export const layerConfig = (
  options: Timeouts = {}
): Layer.Layer<Endpoints, Config.ConfigError, HttpClient.HttpClient> => {
  const text = (name: string) =>
    Config.map(Config.option(Config.String(name)), (value) => Option.getOrUndefined(value)?.trim() || undefined)
  const config = Config.all({
    baseUrl: text("OPENAI_BASE_URL"),
    apiKey: Config.map(Config.option(Config.Redacted("OPENAI_API_KEY")), (value) => {
      const key = Option.isSome(value) ? Redacted.value(value.value).trim() : ""
      return key === "" ? undefined : Redacted.make(key)
    }),
    ollama: Config.map(text("OLLAMA_HOST"), (host) => endpointOf(host ?? "localhost"))
  })
  return Layer.unwrap(Effect.map(config, ({ apiKey, baseUrl, ollama }) =>
    layer([
      ...(baseUrl === undefined
        ? []
        : [{ ...options, name: "openai", dialect: "openai" as const, baseUrl, apiKey }]),
      { ...options, name: "ollama", dialect: "ollama" as const, baseUrl: ollama }
    ])))
}

/**
 * Layer of the endpoints of several layers, in their order. A name that comes twice counts where it comes first.
 *
 * @category layers
 * @since 0.1.0
 */
export const combine = <E, R>(
  ...layers: ReadonlyArray<Layer.Layer<Endpoints, E, R>>
): Layer.Layer<Endpoints, E, R> =>
  Layer.effect(
    Endpoints,
    Effect.map(
      Effect.forEach(layers, (layer) => Effect.map(Layer.build(layer), (context) => Context.get(context, Endpoints))),
      (all) =>
        Endpoints.of({
          list: Effect.map(Effect.forEach(all, ({ list }) => list), (lists) => {
            const byName = new Map<string, Endpoint>()
            for (const endpoint of lists.flat()) {
              if (!byName.has(endpoint.name)) byName.set(endpoint.name, endpoint)
            }
            return Array.from(byName.values())
          })
        })
    )
  )
