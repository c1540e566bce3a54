/**
 * Endpoints that speak the OpenAI protocol: all that is known of it, put together.
 *
 * @since 0.1.0
 */
import * as Effect from "effect/Effect"
import type * as HttpClient from "effect/http/HttpClient"
import type { Backend } from "./Backend.ts"
import * as Detection from "./Detection.ts"
import * as EndpointHttp from "./EndpointHttp.ts"
import * as OpenAiAudio from "./OpenAiAudio.ts"
import * as OpenAiImages from "./OpenAiImages.ts"
import * as OpenAiText from "./OpenAiText.ts"
import * as OpenAiVideos from "./OpenAiVideos.ts"
import * as Rerank from "./Rerank.ts"

/**
 * The address below which the protocol is: that of the options, with `/v1` where they give nothing but a host.
 *
 * @category conversions
 * @since 0.1.0
 */
export const baseUrl = (address: string): string => {
  const trimmed = address.replace(/\/+$/, "")
  return URL.canParse(trimmed) && new URL(trimmed).pathname === "/" ? `${trimmed}/v1` : trimmed
}

/**
 * Builds the client of an endpoint. `baseUrl` is what stands before `/chat/completions`; of a host without a path it is `/v1`.
 *
 * @category constructors
 * @since 0.1.0
 */
export const make = (options: EndpointHttp.Options): Effect.Effect<Backend, never, HttpClient.HttpClient> => {
  const base = baseUrl(options.baseUrl)
  // Where servers have what the protocol does not know.
  const root = base.replace(/\/v1$/, "")
  const isOpenAi = URL.canParse(base) && new URL(base).hostname === "api.openai.com"
  return Effect.map(EndpointHttp.make({ ...options, baseUrl: base }), (http): Backend => ({
    ...OpenAiText.make(http),
    ...OpenAiAudio.make(http, { voices: isOpenAi ? OpenAiAudio.openAiVoices : undefined }),
    ...OpenAiImages.make(http),
    ...OpenAiVideos.make(http, { root, jobTimeout: options.jobTimeout }),
    ...Rerank.make(http, root),
    ...Detection.make(http, root)
  }))
}
