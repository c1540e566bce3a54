/**
 * What can go wrong between this host and a model hub: one error, `HubError`, with a tagged reason for each way to
 * fail. A reason's message says what happened and what to do about it; `retryable` says whether the same call may
 * succeed later without anyone changing anything.
 *
 * No reason carries a request, a header or a redirected address: those hold tokens and signatures.
 *
 * @since 0.1.0
 */
import * as Schema from "effect/Schema"

/**
 * The hubs that models are pulled from.
 *
 * @category models
 * @since 0.1.0
 */
export const HubSource = Schema.Literals(["ollama", "huggingface", "modelscope"])

/**
 * @category models
 * @since 0.1.0
 */
export type HubSource = typeof HubSource.Type

/**
 * The hub knows no repository of this name. Hubs answer the same for a private one, so a missing token looks alike.
 *
 * @category errors
 * @since 0.1.0
 */
export class RepoNotFound extends Schema.TaggedError<RepoNotFound>("effect-units/model/HubError/RepoNotFound")(
  "RepoNotFound",
  { repo: Schema.String }
) {
  get retryable(): boolean {
    return false
  }
  override get message() {
    return `There is no repository "${this.repo}", or it is private. Check its name, or set a token that may read it.`
  }
}

/**
 * The repository has no branch, tag or commit of this name, nor a file that it could stand for. `choices` names what
 * there is, as far as it is known.
 *
 * @category errors
 * @since 0.1.0
 */
export class RevisionNotFound extends Schema.TaggedError<RevisionNotFound>(
  "effect-units/model/HubError/RevisionNotFound"
)("RevisionNotFound", { revision: Schema.String, choices: Schema.Array(Schema.String) }) {
  get retryable(): boolean {
    return false
  }
  override get message() {
    const choices = this.choices.length === 0 ? "" : ` Choose one of: ${this.choices.join(", ")}.`
    return `The repository has no revision or file "${this.revision}".${choices || " Check the tag."}`
  }
}

/**
 * A file is not there, or the repository holds no weights in a format that is known here.
 *
 * @category errors
 * @since 0.1.0
 */
export class FileNotFound extends Schema.TaggedError<FileNotFound>("effect-units/model/HubError/FileNotFound")(
  "FileNotFound",
  { path: Schema.String }
) {
  get retryable(): boolean {
    return false
  }
  override get message() {
    return `The repository has no file "${this.path}". It may have changed meanwhile: check what it holds, then pull again.`
  }
}

/**
 * The repository exists, and its owner grants access person by person. `url` is the page to ask on.
 *
 * @category errors
 * @since 0.1.0
 */
export class Gated extends Schema.TaggedError<Gated>("effect-units/model/HubError/Gated")(
  "Gated",
  { url: Schema.String }
) {
  get retryable(): boolean {
    return false
  }
  override get message() {
    return `The repository is gated. Accept its conditions at ${this.url}, and set a token of that account.`
  }
}

/**
 * The hub refuses the token, or wants one.
 *
 * @category errors
 * @since 0.1.0
 */
export class Unauthorized extends Schema.TaggedError<Unauthorized>("effect-units/model/HubError/Unauthorized")(
  "Unauthorized",
  { detail: Schema.String }
) {
  get retryable(): boolean {
    return false
  }
  override get message() {
    return `The hub refuses access (${this.detail}). Set a token that is valid and may read the repository.`
  }
}

/**
 * Too many requests, and the hub asks for a longer wait than the client may take on its own. `retry_after_seconds` is
 * the wait, where the hub named one.
 *
 * @category errors
 * @since 0.1.0
 */
export class RateLimited extends Schema.TaggedError<RateLimited>("effect-units/model/HubError/RateLimited")(
  "RateLimited",
  { retry_after_seconds: Schema.optional(Schema.Natural) }
) {
  get retryable(): boolean {
    return true
  }
  override get message() {
    const wait = this.retry_after_seconds === undefined ? "later" : `in ${this.retry_after_seconds} s`
    return `The hub limits the rate of requests. Try again ${wait}; a token usually raises the limit.`
  }
}

/**
 * The hub could not be reached, or the connection broke more often than the retry schedule allows. What arrived is
 * kept, and the next pull goes on from there.
 *
 * @category errors
 * @since 0.1.0
 */
export class Network extends Schema.TaggedError<Network>("effect-units/model/HubError/Network")(
  "Network",
  { host: Schema.String, description: Schema.String }
) {
  get retryable(): boolean {
    return true
  }
  override get message() {
    return `The connection to ${this.host} failed: ${this.description}. Check that it can be reached, then try again.`
  }
}

/**
 * An endpoint, a mirror, or the place that a hub redirects to is no address of a web server. `address` leaves out what
 * comes after the host.
 *
 * @category errors
 * @since 0.1.0
 */
export class InvalidAddress extends Schema.TaggedError<InvalidAddress>("effect-units/model/HubError/InvalidAddress")(
  "InvalidAddress",
  { address: Schema.String }
) {
  get retryable(): boolean {
    return false
  }
  override get message() {
    return `"${this.address}" is no http or https address. Give the endpoint or mirror as a URL, such as https://host.`
  }
}

/**
 * The hub answered nothing, or sent nothing more, for too long.
 *
 * @category errors
 * @since 0.1.0
 */
export class Timeout extends Schema.TaggedError<Timeout>("effect-units/model/HubError/Timeout")(
  "Timeout",
  { host: Schema.String, waiting_for: Schema.Literals(["response", "data"]), after_seconds: Schema.Finite }
) {
  get retryable(): boolean {
    return true
  }
  override get message() {
    return `${this.host} sent no ${this.waiting_for} within ${this.after_seconds} s. Try again, or raise the timeout.`
  }
}

/**
 * The bytes that arrived are not those that the hub's own listing promises. They are deleted.
 *
 * @category errors
 * @since 0.1.0
 */
export class ChecksumMismatch extends Schema.TaggedError<ChecksumMismatch>(
  "effect-units/model/HubError/ChecksumMismatch"
)("ChecksumMismatch", { path: Schema.String, expected: Schema.String, actual: Schema.String }) {
  get retryable(): boolean {
    return true
  }
  override get message() {
    return `"${this.path}" arrived with checksum ${this.actual}, expected ${this.expected}. Pull again; ` +
      "should it repeat, the hub, a mirror or a proxy alters the file."
  }
}

/**
 * A file is longer or shorter than the hub's own listing promises, in bytes.
 *
 * @category errors
 * @since 0.1.0
 */
export class SizeMismatch extends Schema.TaggedError<SizeMismatch>("effect-units/model/HubError/SizeMismatch")(
  "SizeMismatch",
  { path: Schema.String, expected: Schema.Natural, actual: Schema.Natural }
) {
  get retryable(): boolean {
    return true
  }
  override get message() {
    return `"${this.path}" has ${this.actual} bytes, expected ${this.expected}. Pull again; ` +
      "should it repeat, the hub, a mirror or a proxy alters the file."
  }
}

/**
 * The hub names a file that would be written outside the model's own folder. Nothing is written.
 *
 * @category errors
 * @since 0.1.0
 */
export class UnsafePath extends Schema.TaggedError<UnsafePath>("effect-units/model/HubError/UnsafePath")(
  "UnsafePath",
  { path: Schema.String }
) {
  get retryable(): boolean {
    return false
  }
  override get message() {
    return `The repository holds a file named ${
      JSON.stringify(this.path)
    }, which leads out of its folder. Do not trust it.`
  }
}

/**
 * No space is left where the model is stored. What was written is kept, and the next pull goes on from there.
 *
 * @category errors
 * @since 0.1.0
 */
export class DiskFull extends Schema.TaggedError<DiskFull>("effect-units/model/HubError/DiskFull")(
  "DiskFull",
  { path: Schema.String }
) {
  get retryable(): boolean {
    return false
  }
  override get message() {
    return `No space is left to write ${this.path}. Free some, then pull again: it goes on where it stopped.`
  }
}

/**
 * A file could not be read or written, for a reason other than space.
 *
 * @category errors
 * @since 0.1.0
 */
export class Disk extends Schema.TaggedError<Disk>("effect-units/model/HubError/Disk")(
  "Disk",
  { path: Schema.String, description: Schema.String }
) {
  get retryable(): boolean {
    return false
  }
  override get message() {
    return `Cannot use ${this.path}: ${this.description}. Check the folder and its permissions.`
  }
}

/**
 * The hub answered with a status or a message that stands for no other reason. `status` is the HTTP status; 200 when
 * the failure came inside an answer that began well.
 *
 * @category errors
 * @since 0.1.0
 */
export class Upstream extends Schema.TaggedError<Upstream>("effect-units/model/HubError/Upstream")(
  "Upstream",
  { status: Schema.Int, detail: Schema.String }
) {
  get retryable(): boolean {
    return this.status >= 500 || this.status === 408
  }
  override get message() {
    return `The hub answered ${this.status}: ${this.detail}. ` +
      (this.retryable ? "Try again later." : "Check the request, and the hub's own page.")
  }
}

/**
 * The answer is not in the hub's documented form: no JSON, a missing field, or a part that was not asked for.
 *
 * @category errors
 * @since 0.1.0
 */
export class InvalidResponse extends Schema.TaggedError<InvalidResponse>("effect-units/model/HubError/InvalidResponse")(
  "InvalidResponse",
  { host: Schema.String, description: Schema.String }
) {
  get retryable(): boolean {
    return false
  }
  override get message() {
    return `${this.host} sent an answer that is not a hub's: ${this.description}. Check the endpoint or mirror.`
  }
}

/**
 * Every way in which a hub can fail.
 *
 * @category errors
 * @since 0.1.0
 */
export const HubReason = Schema.Union([
  RepoNotFound,
  RevisionNotFound,
  FileNotFound,
  Gated,
  Unauthorized,
  RateLimited,
  Network,
  InvalidAddress,
  Timeout,
  ChecksumMismatch,
  SizeMismatch,
  UnsafePath,
  DiskFull,
  Disk,
  Upstream,
  InvalidResponse
])

/**
 * @category errors
 * @since 0.1.0
 */
export type HubReason = typeof HubReason.Type

/**
 * The one failure of the hub clients. `repo` is absent when the call was about no single repository, as in a search.
 *
 * @category errors
 * @since 0.1.0
 */
export class HubError extends Schema.TaggedError<HubError>("effect-units/model/HubError")("HubError", {
  source: HubSource,
  repo: Schema.optional(Schema.String),
  reason: HubReason
}) {
  /**
   * Whether the same call may succeed later without a change by the caller.
   *
   * @since 0.1.0
   */
  get retryable(): boolean {
    return this.reason.retryable
  }
  override get message() {
    return `${this.source}${this.repo === undefined ? "" : ` ${this.repo}`}: ${this.reason.message}`
  }
}
