/**
 * The inference domain: requests to models that are being served, wherever that is.
 *
 * **Example** (A question to a model)
 *
 * ```ts
 * import * as Inference from "effect-units/inference"
 *
 * const program = Inference.chat({
 *   model: "qwen3",
 *   messages: [{ role: "user", content: "Why is the sky blue?" }],
 *   max_tokens: 200
 * })
 * ```
 *
 * @since 0.1.0
 */
import type * as Config from "effect/Config"
import type * as FileSystem from "effect/FileSystem"
import type * as HttpClient from "effect/http/HttpClient"
import * as Layer from "effect/Layer"
import type * as Path from "effect/Path"
import type { ModelStore } from "../model/ModelStore.ts"
import * as Endpoints from "./Endpoints.ts"
import * as MediaSource from "./MediaSource.ts"
import * as Router from "./Router.ts"

export type { Backend } from "./Backend.ts"
export * from "./BackendReason.ts"
export { chat, complete, embed } from "./Commands.ts"
export { type Endpoint, type EndpointOptions, Endpoints, EndpointsError } from "./Endpoints.ts"
export { layer as layerEngines } from "./EngineEndpoints.ts"
export * from "./Errors.ts"
export * from "./Inference.ts"
export { layer as layerInProcess } from "./InProcess.ts"
export { detect, generateImage, generateVideo, rerank, synthesize, transcribe } from "./MediaCommands.ts"
export { MediaError, MediaSource, Unavailable, Unusable } from "./MediaSource.ts"
export { models, voices } from "./Queries.ts"
export { Router } from "./Router.ts"
export { chatStream, completeStream } from "./Streams.ts"

/** What all layers of this domain need. */
type Needs = HttpClient.HttpClient | ModelStore | FileSystem.FileSystem | Path.Path

/**
 * Layer of all that the units of this domain need, for a fixed list of endpoints.
 *
 * @category layers
 * @since 0.1.0
 */
export const layer = (
  endpoints: ReadonlyArray<Endpoints.EndpointOptions>,
  options: Router.Options & MediaSource.Options = {}
): Layer.Layer<Router.Router | Endpoints.Endpoints | MediaSource.MediaSource, never, Needs> =>
  Layer.merge(Layer.provideMerge(Router.layer(options), Endpoints.layer(endpoints)), MediaSource.layer(options))

/**
 * The same, with the endpoints that `Config` tells of; see `Endpoints.layerConfig`.
 *
 * @category layers
 * @since 0.1.0
 */
export const layerConfig = (
  options: Router.Options & Endpoints.Timeouts & MediaSource.Options = {}
): Layer.Layer<Router.Router | Endpoints.Endpoints | MediaSource.MediaSource, Config.ConfigError, Needs> =>
  Layer.merge(Layer.provideMerge(Router.layer(options), Endpoints.layerConfig(options)), MediaSource.layer(options))
