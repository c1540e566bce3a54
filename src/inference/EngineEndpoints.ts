/**
 * The engines of this host as endpoints, for as long as they run.
 *
 * @since 0.1.0
 */
import * as Context from "effect/Context"
import * as Effect from "effect/Effect"
import * as HttpClient from "effect/http/HttpClient"
import * as Layer from "effect/Layer"
import { Engines, type LiveEngine } from "../engine/Engines.ts"
import { type Endpoint, Endpoints, EndpointsError, make, type Timeouts } from "./Endpoints.ts"

/**
 * Layer of the engines that run, each as `engine:<name>`; one that is started again is another endpoint of the same name. One that was
 * started for a registered model serves it, whatever it calls it.
 *
 * @category layers
 * @since 0.1.0
 */
export const layer = (
  options: Timeouts = {}
): Layer.Layer<Endpoints, never, Engines | HttpClient.HttpClient> =>
  Layer.effect(
    Endpoints,
    Effect.gen(function*() {
      const { live } = yield* Engines
      const client = Context.make(HttpClient.HttpClient, yield* HttpClient.HttpClient)
      /** What was built for a start of an engine, which keeps its connections and what it knows of the models. */
      let known = new Map<string, Endpoint>()

      const build = ({ address, dialect, launch, model_id, name, type }: LiveEngine) =>
        make({
          ...options,
          // Apart from the names of other endpoints, as that of an Ollama server is.
          name: `engine:${name}`,
          provider: type,
          dialect,
          baseUrl: address,
          modelId: model_id
        }).pipe(
          // On the same port, it may serve something else.
          Effect.map((endpoint) => ({ ...endpoint, address: `${address} ${launch}` })),
          Effect.provideContext(client)
        )

      const list = Effect.gen(function*() {
        const engines = yield* live
        const now = new Map<string, Endpoint>()
        for (const engine of engines) now.set(engine.launch, known.get(engine.launch) ?? (yield* build(engine)))
        known = now
        return Array.from(now.values())
      })

      return Endpoints.of({ list: Effect.mapError(list, (cause) => new EndpointsError({ cause })) })
    })
  )
