/**
 * Images by the OpenAI protocol, as OpenAI, vllm-omni, SGLang, LocalAI, xinference and servers of Stable Diffusion speak it.
 *
 * @since 0.1.0
 */
import * as Effect from "effect/Effect"
import * as Schema from "effect/Schema"
import type { Backend, GenerateImageRequest } from "./Backend.ts"
import { type BackendReason, EngineFailed } from "./BackendReason.ts"
import type { EndpointHttp } from "./EndpointHttp.ts"
import type { Image } from "./Inference.ts"
import { maybe } from "./internal/forms.ts"
import * as Media from "./internal/media.ts"

const Images = Schema.Struct({
  data: Schema.Array(Schema.Struct({ b64_json: maybe(Schema.String), url: maybe(Schema.String) }))
})

const bodyOf = ({ height, model, negative_prompt, prompt, seed, steps, width }: GenerateImageRequest) => ({
  model,
  prompt,
  n: 1,
  size: width === undefined || height === undefined ? undefined : `${width}x${height}`,
  negative_prompt,
  seed,
  // One name for each family of servers. Each passes over those of the others; OpenAI itself has none, and refuses all.
  steps,
  num_inference_steps: steps,
  step: steps
})

/** The image of an entry; `undefined` where there is none. */
const imageOf = ({ b64_json, url }: (typeof Images.Type)["data"][number]): Image | undefined => {
  const text = b64_json ?? (url?.startsWith("data:") === true ? url : undefined)
  if (text === undefined) return url === undefined || url === null ? undefined : { url }
  const uri = Media.fromDataUri(text)
  const bytes = uri === undefined ? Media.fromBase64(text) : uri.bytes
  return bytes === undefined ? undefined : { base64: Media.toBase64(bytes) }
}

/**
 * Images from a text.
 *
 * **Details**
 *
 * Images are asked for as Base64. Models that know nothing else, and refuse to be asked, are asked again without it. A server that gives an
 * address all the same is not asked for what is there.
 *
 * @category constructors
 * @since 0.1.0
 */
export const make = (http: EndpointHttp) => {
  const generate = (request: GenerateImageRequest, format: "b64_json" | undefined) =>
    http.json(http.post("/images/generations", { ...bodyOf(request), response_format: format }), Images, request.model)

  return {
    generateImage: Effect.fnUntraced(function*(request): Effect.fn.Return<
      { readonly images: ReadonlyArray<Image> },
      BackendReason
    > {
      const { data } = yield* Effect.catchTag(
        generate(request, "b64_json"),
        "Refused",
        (refused) => /response_format/.test(refused.detail) ? generate(request, undefined) : Effect.fail(refused)
      )
      const images = data.map(imageOf)
      const whole = images.filter((image) => image !== undefined)
      if (whole.length === 0 || whole.length < images.length) {
        return yield* new EngineFailed({
          detail: "Its answer lacks an image, or has one that cannot be read",
          retryable: false
        })
      }
      return { images: whole }
    })
  } satisfies Partial<Backend>
}
