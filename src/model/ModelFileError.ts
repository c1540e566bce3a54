/**
 * What can be wrong with a model's files on disk: one error, `ModelFileError`, with the path and a tagged reason.
 *
 * A reason's message says what was found and what to do. None of them goes away by trying again: the files have to
 * change first.
 *
 * @since 0.1.0
 */
import type * as PlatformError from "effect/PlatformError"
import * as Schema from "effect/Schema"

/**
 * There is nothing at the path; or a link there leads nowhere.
 *
 * @category errors
 * @since 0.1.0
 */
export class Missing extends Schema.TaggedError<Missing>("effect-units/model/ModelFileError/Missing")("Missing", {}) {
  override get message() {
    return "is missing. Check the path; of a model that was downloaded, pull it again"
  }
}

/**
 * The file or folder is there and cannot be read: no permission, a device instead of a file, a broken disk.
 *
 * @category errors
 * @since 0.1.0
 */
export class Unreadable extends Schema.TaggedError<Unreadable>("effect-units/model/ModelFileError/Unreadable")(
  "Unreadable",
  { detail: Schema.String, cause: Schema.optional(Schema.Defect()) }
) {
  override get message() {
    return `cannot be read: ${this.detail}. Check its permissions and the disk`
  }
}

/**
 * No file there is known to hold weights.
 *
 * @category errors
 * @since 0.1.0
 */
export class NoWeights extends Schema.TaggedError<NoWeights>("effect-units/model/ModelFileError/NoWeights")(
  "NoWeights",
  {}
) {
  override get message() {
    return "holds no weights. Give a .gguf, .safetensors, .onnx, .engine, .plan, .bin, .pt or .pth file, or a folder with some"
  }
}

/**
 * A folder holds several models, and which one is meant cannot be told. `candidates` are paths in the folder.
 *
 * @category errors
 * @since 0.1.0
 */
export class Ambiguous extends Schema.TaggedError<Ambiguous>("effect-units/model/ModelFileError/Ambiguous")(
  "Ambiguous",
  { candidates: Schema.Array(Schema.String) }
) {
  override get message() {
    return `holds several models. Give one of them: ${this.candidates.join(", ")}`
  }
}

/**
 * The content breaks the rules of its format. `offset` is the byte at which that shows, where there is one.
 *
 * @category errors
 * @since 0.1.0
 */
export class Malformed extends Schema.TaggedError<Malformed>("effect-units/model/ModelFileError/Malformed")(
  "Malformed",
  { detail: Schema.String, offset: Schema.optional(Schema.Natural) }
) {
  override get message() {
    const place = this.offset === undefined ? "" : ` at byte ${this.offset}`
    return `is malformed${place}: ${this.detail}. Download or convert it again`
  }
}

/**
 * The file is shorter than its own header asks for. Sizes in bytes; `expected` is a lower bound when the header itself
 * is cut.
 *
 * @category errors
 * @since 0.1.0
 */
export class Truncated extends Schema.TaggedError<Truncated>("effect-units/model/ModelFileError/Truncated")(
  "Truncated",
  { expected: Schema.Natural, actual: Schema.Natural }
) {
  override get message() {
    return `is truncated: it needs ${this.expected} bytes or more, and has ${this.actual}. Download it again`
  }
}

/**
 * The file is longer than its own header says. Sizes in bytes.
 *
 * @category errors
 * @since 0.1.0
 */
export class LengthMismatch extends Schema.TaggedError<LengthMismatch>(
  "effect-units/model/ModelFileError/LengthMismatch"
)("LengthMismatch", { expected: Schema.Natural, actual: Schema.Natural }) {
  override get message() {
    return `has ${this.actual} bytes, and its header says ${this.expected}. Download it again`
  }
}

/**
 * A folder is larger or deeper than any model: it was probably not the one that was meant.
 *
 * @category errors
 * @since 0.1.0
 */
export class TooMany extends Schema.TaggedError<TooMany>("effect-units/model/ModelFileError/TooMany")("TooMany", {
  what: Schema.Literals(["files", "levels of folders"]),
  limit: Schema.Natural
}) {
  override get message() {
    return `has more than ${this.limit} ${this.what}. Give the model's own folder`
  }
}

/**
 * Every way in which a model's files can fail.
 *
 * @category errors
 * @since 0.1.0
 */
export const ModelFileReason = Schema.Union([
  Missing,
  Unreadable,
  NoWeights,
  Ambiguous,
  Malformed,
  Truncated,
  LengthMismatch,
  TooMany
])

/**
 * @category errors
 * @since 0.1.0
 */
export type ModelFileReason = typeof ModelFileReason.Type

/**
 * The one failure of everything that reads model files. `path` is the file or folder at fault, which in a folder is not
 * always the one that was asked for.
 *
 * @category errors
 * @since 0.1.0
 */
export class ModelFileError extends Schema.TaggedError<ModelFileError>("effect-units/model/ModelFileError")(
  "ModelFileError",
  { path: Schema.String, reason: ModelFileReason }
) {
  override get message() {
    return `${this.path} ${this.reason.message}`
  }
}

// Names in hostile files have any length; what people read does not need more.
const maxDetail = 500

/**
 * The error for content that breaks the rules of its format. A long `detail` is cut.
 *
 * @category constructors
 * @since 0.1.0
 */
export const malformed = (path: string, detail: string, offset?: number | undefined): ModelFileError =>
  new ModelFileError({ path, reason: new Malformed({ detail: detail.slice(0, maxDetail), offset }) })

/**
 * The error for a failure of the file system: `Missing` when there is nothing at the path, else `Unreadable`.
 *
 * @category constructors
 * @since 0.1.0
 */
export const fromPlatform = (path: string) => (error: PlatformError.PlatformError): ModelFileError =>
  new ModelFileError({
    path,
    reason: error.reason._tag === "NotFound"
      ? new Missing()
      : new Unreadable({ detail: error.reason._tag, cause: error })
  })
