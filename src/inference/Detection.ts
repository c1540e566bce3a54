/**
 * Detection of objects, in both forms that there are: LocalAI's, and that of Hugging Face's inference.
 *
 * @since 0.1.0
 */
import * as Effect from "effect/Effect"
import * as Schema from "effect/Schema"
import type { Backend, DetectRequest } from "./Backend.ts"
import type { EndpointHttp } from "./EndpointHttp.ts"
import * as Forms from "./internal/forms.ts"
import * as Media from "./internal/media.ts"

const Detections = Schema.Struct({
  // Nothing found is null at some.
  detections: Forms.maybe(Schema.Array(Schema.Struct({
    x: Schema.Finite,
    y: Schema.Finite,
    width: Schema.Finite,
    height: Schema.Finite,
    class_name: Forms.maybe(Schema.String),
    confidence: Schema.Finite
  })))
})

const Boxes = Schema.Array(Schema.Struct({
  label: Schema.String,
  score: Schema.Finite,
  box: Schema.Struct({ xmin: Schema.Finite, ymin: Schema.Finite, xmax: Schema.Finite, ymax: Schema.Finite })
}))

/** Between 0 and 1: sums of floats go a little beyond. */
const confidence = (value: number): number => Math.min(Math.max(value, 0), 1)

/**
 * Objects in images. An endpoint without LocalAI's path is asked in the other form, below its host.
 *
 * @category constructors
 * @since 0.1.0
 */
export const make = (http: EndpointHttp, root: string) => {
  const byLocalAi = ({ image, model }: DetectRequest) =>
    Effect.map(
      http.json(
        http.post("/detection", { model, image: `data:${image.type};base64,${Media.toBase64(image.bytes)}` }),
        Detections,
        model
      ),
      ({ detections }) =>
        detections?.map(({ class_name, confidence: value, height, width, x, y }) => ({
          label: class_name ?? "",
          confidence: confidence(value),
          bbox: [x, y, width, height] as const
        })) ?? []
    )

  const byHuggingFace = ({ image, model }: DetectRequest) =>
    Effect.map(
      http.json(
        http.post(`${root}/models/${model.split("/").map(encodeURIComponent).join("/")}`, {
          inputs: Media.toBase64(image.bytes)
        }),
        Boxes,
        model
      ),
      (boxes) =>
        boxes.map(({ box: { xmax, xmin, ymax, ymin }, label, score }) => ({
          label,
          confidence: confidence(score),
          bbox: [xmin, ymin, xmax - xmin, ymax - ymin] as const
        }))
    )

  return {
    detect: (request) =>
      byLocalAi(request).pipe(
        Forms.orElse(() => byHuggingFace(request)),
        Effect.map((detections) => ({ detections }))
      )
  } satisfies Partial<Backend>
}
