/**
 * What can go wrong between this host and a Docker Engine: one error, `DockerError`, with a tagged reason for each way to fail. A
 * reason's message says what happened and what to do about it; `retryable` says whether the same call may succeed later without
 * anyone changing anything.
 *
 * No reason carries a request or a header: those can hold the credentials of a registry.
 *
 * @since 0.1.0
 */
import * as Schema from "effect/Schema"

/** Faults of a connection that do not pass by themselves: no right to the socket, and what TLS refuses. */
const lasting = /^(EACCES|EPERM|ERR_TLS_|ERR_SSL_|EPROTO$|CERT_|DEPTH_ZERO_|SELF_SIGNED_|UNABLE_TO_)/

/**
 * The engine cannot be reached, or the connection broke. `address` is where it was looked for; `code` is the system's name for what
 * happened, such as `ENOENT` for a socket that is not there, or `ECONNRESET`.
 *
 * @category errors
 * @since 0.1.0
 */
export class Unreachable extends Schema.TaggedError<Unreachable>("effect-units/backends/DockerError/Unreachable")(
  "Unreachable",
  { address: Schema.String, code: Schema.String }
) {
  get retryable(): boolean {
    return !lasting.test(this.code)
  }
  override get message() {
    const advice = /^(EACCES|EPERM)$/.test(this.code)
      ? "Run as a user who may use Docker, such as one of the group docker"
      : lasting.test(this.code)
      ? "Check the certificates on both sides"
      : "Start Docker, or say where it is with DOCKER_HOST"
    return `No Docker Engine could be talked to at ${this.address} (${this.code}). ${advice}.`
  }
}

/**
 * The address is of no kind that is known here.
 *
 * @category errors
 * @since 0.1.0
 */
export class Unsupported extends Schema.TaggedError<Unsupported>("effect-units/backends/DockerError/Unsupported")(
  "Unsupported",
  { address: Schema.String }
) {
  get retryable(): boolean {
    return false
  }
  override get message() {
    return `"${this.address}" is no address of a Docker Engine. Write it as unix:///path/to/docker.sock or tcp://host:port.`
  }
}

/**
 * The engine speaks no version of the API that this client does.
 *
 * @category errors
 * @since 0.1.0
 */
export class TooOld extends Schema.TaggedError<TooOld>("effect-units/backends/DockerError/TooOld")(
  "TooOld",
  { version: Schema.String, minimum: Schema.String }
) {
  get retryable(): boolean {
    return false
  }
  override get message() {
    return `The Docker Engine speaks version ${this.version} of its API, ${this.minimum} is needed. Upgrade Docker.`
  }
}

/**
 * There is no container of this name or id.
 *
 * @category errors
 * @since 0.1.0
 */
export class ContainerNotFound extends Schema.TaggedError<ContainerNotFound>(
  "effect-units/backends/DockerError/ContainerNotFound"
)("ContainerNotFound", { container: Schema.String }) {
  get retryable(): boolean {
    return false
  }
  override get message() {
    return `There is no container ${this.container}. It may have been removed: list the containers.`
  }
}

/**
 * The engine does not have the image, or no registry does.
 *
 * @category errors
 * @since 0.1.0
 */
export class ImageMissing extends Schema.TaggedError<ImageMissing>("effect-units/backends/DockerError/ImageMissing")(
  "ImageMissing",
  { image: Schema.String, detail: Schema.String }
) {
  get retryable(): boolean {
    return false
  }
  override get message() {
    return `There is no image ${this.image} (${this.detail}). Check its name and tag, and pull it.`
  }
}

/**
 * The text is no reference of an image: `name`, `host/name:tag` or `name@sha256:...`.
 *
 * @category errors
 * @since 0.1.0
 */
export class InvalidImage extends Schema.TaggedError<InvalidImage>("effect-units/backends/DockerError/InvalidImage")(
  "InvalidImage",
  { image: Schema.String }
) {
  get retryable(): boolean {
    return false
  }
  override get message() {
    return `${
      JSON.stringify(this.image)
    } is no reference of an image. Write it as name, host/name:tag or name@sha256:digest.`
  }
}

/**
 * The registry does not give the image to this user.
 *
 * @category errors
 * @since 0.1.0
 */
export class Unauthorized extends Schema.TaggedError<Unauthorized>("effect-units/backends/DockerError/Unauthorized")(
  "Unauthorized",
  { image: Schema.String, detail: Schema.String }
) {
  get retryable(): boolean {
    return false
  }
  override get message() {
    return `The registry refuses ${this.image} (${this.detail}). Check its name, or give credentials that may pull it.`
  }
}

/**
 * The state of a container, or its name, does not allow it. `in_progress` is true where that passes by itself: the engine is still
 * busy with the container.
 *
 * @category errors
 * @since 0.1.0
 */
export class Conflict extends Schema.TaggedError<Conflict>("effect-units/backends/DockerError/Conflict")(
  "Conflict",
  { detail: Schema.String, in_progress: Schema.Boolean }
) {
  get retryable(): boolean {
    return this.in_progress
  }
  override get message() {
    return `${this.detail}. ${
      this.in_progress ? "Try again when that has ended." : "Remove or stop that container, or choose another name."
    }`
  }
}

/**
 * A port of the host that the container publishes is in use; `port` is which, where the engine says so. A retry helps once whoever
 * holds it has ended.
 *
 * @category errors
 * @since 0.1.0
 */
export class PortTaken extends Schema.TaggedError<PortTaken>("effect-units/backends/DockerError/PortTaken")(
  "PortTaken",
  { port: Schema.UndefinedOr(Schema.Int), detail: Schema.String }
) {
  get retryable(): boolean {
    return true
  }
  override get message() {
    const port = this.port === undefined ? "A port of this host" : `Port ${this.port} of this host`
    return `${port} is in use (${this.detail}). Stop what holds it, or publish another one.`
  }
}

/**
 * The host has no memory for it, or the container's limit is too low to begin with.
 *
 * @category errors
 * @since 0.1.0
 */
export class OutOfMemory extends Schema.TaggedError<OutOfMemory>("effect-units/backends/DockerError/OutOfMemory")(
  "OutOfMemory",
  { detail: Schema.String }
) {
  get retryable(): boolean {
    return false
  }
  override get message() {
    return `There is too little memory: ${this.detail}. Free some, or give the container more.`
  }
}

/**
 * The engine cannot give a container the GPUs of this host.
 *
 * @category errors
 * @since 0.1.0
 */
export class NoGpu extends Schema.TaggedError<NoGpu>("effect-units/backends/DockerError/NoGpu")(
  "NoGpu",
  { detail: Schema.String }
) {
  get retryable(): boolean {
    return false
  }
  override get message() {
    return `Docker cannot give a GPU to a container (${this.detail}). Install the NVIDIA driver and the ` +
      "NVIDIA Container Toolkit, or run without a GPU."
  }
}

/**
 * No space is left where Docker keeps its images and containers.
 *
 * @category errors
 * @since 0.1.0
 */
export class DiskFull extends Schema.TaggedError<DiskFull>("effect-units/backends/DockerError/DiskFull")(
  "DiskFull",
  { detail: Schema.String }
) {
  get retryable(): boolean {
    return false
  }
  override get message() {
    return `Docker has no space left: ${this.detail}. Free some, with "docker system prune" for example.`
  }
}

/**
 * The engine refuses, or fails, for a reason that stands for no other. `status` is the HTTP status; 200 when the failure came inside
 * an answer that began well.
 *
 * @category errors
 * @since 0.1.0
 */
export class Refused extends Schema.TaggedError<Refused>("effect-units/backends/DockerError/Refused")(
  "Refused",
  { status: Schema.Int, detail: Schema.String }
) {
  get retryable(): boolean {
    return this.status === 200 || this.status === 429 || this.status >= 500
  }
  override get message() {
    return `The Docker Engine answers ${this.status}: ${this.detail}. ${
      this.retryable ? "Try again later; should it repeat, see the engine's log." : "Check what was asked for."
    }`
  }
}

/**
 * The answer is not in the API's documented form. Something else than a Docker Engine may answer there.
 *
 * @category errors
 * @since 0.1.0
 */
export class Undecodable extends Schema.TaggedError<Undecodable>("effect-units/backends/DockerError/Undecodable")(
  "Undecodable",
  { address: Schema.String, detail: Schema.String }
) {
  get retryable(): boolean {
    return false
  }
  override get message() {
    return `The answer of ${this.address} is not a Docker Engine's: ${this.detail}. Check what DOCKER_HOST points at.`
  }
}

/**
 * The engine did not answer, or went silent, for longer than it may.
 *
 * @category errors
 * @since 0.1.0
 */
export class TimedOut extends Schema.TaggedError<TimedOut>("effect-units/backends/DockerError/TimedOut")(
  "TimedOut",
  { address: Schema.String, waiting_for: Schema.Literals(["response", "data"]), after_seconds: Schema.Finite }
) {
  get retryable(): boolean {
    return true
  }
  override get message() {
    return `${this.address} sent no ${this.waiting_for} within ${this.after_seconds} s. Try again, or raise the timeout.`
  }
}

/**
 * Every way in which a Docker Engine can fail.
 *
 * @category errors
 * @since 0.1.0
 */
export const DockerReason = Schema.Union([
  Unreachable,
  Unsupported,
  TooOld,
  ContainerNotFound,
  ImageMissing,
  InvalidImage,
  Unauthorized,
  Conflict,
  PortTaken,
  OutOfMemory,
  NoGpu,
  DiskFull,
  Refused,
  Undecodable,
  TimedOut
])

/**
 * @category errors
 * @since 0.1.0
 */
export type DockerReason = typeof DockerReason.Type

/**
 * The one failure of the Docker client. `action` says what it was to do: `start the container vllm`.
 *
 * @category errors
 * @since 0.1.0
 */
export class DockerError extends Schema.TaggedError<DockerError>("effect-units/backends/DockerError")("DockerError", {
  action: Schema.String,
  reason: DockerReason
}) {
  override readonly cause = this.reason
  /**
   * Whether the same call may succeed later without a change by the caller.
   *
   * @since 0.1.0
   */
  get retryable(): boolean {
    return this.reason.retryable
  }
  override get message() {
    return `Cannot ${this.action}: ${this.reason.message}`
  }
}

// What the engine writes has no codes but HTTP's, so its words have to tell. Sources: the messages of dockerd (libnetwork's port
// allocator and proxy, the daemon's device and image code), containerd, runc and registries.
const portTaken = /port is already allocated|address already in use|failed to bind host port/i
const portOf = /(?:Bind for|listen (?:tcp|udp)[46]?|failed to bind host port(?: for)?) \S*?:(\d+)(?:[/: ]|$)/i
const memory = /cannot allocate memory|out of memory|minimum memory limit/i
const gpu = /could not select device driver|nvidia-container-cli|unresolvable CDI devices/i
const disk = /no space left on device/i
const denied = /denied|unauthorized|authentication required|no basic auth credentials/i
const absent =
  /no such image|manifest unknown|manifest for .* not found|not found: manifest|repository .*not found|name unknown/i
const busy = /already in progress|is restarting|is being removed|marked for removal/i

/**
 * The reason that an answer of the engine stands for. `image` and `container` are what the request was about.
 *
 * @category conversions
 * @since 0.1.0
 */
export const reasonOf = (
  status: number,
  detail: string,
  about: { readonly image?: string | undefined; readonly container?: string | undefined }
): DockerReason => {
  if (portTaken.test(detail)) {
    const port = portOf.exec(detail)?.[1]
    return new PortTaken({ port: port === undefined ? undefined : Number(port), detail })
  }
  if (gpu.test(detail)) return new NoGpu({ detail })
  if (memory.test(detail)) return new OutOfMemory({ detail })
  if (disk.test(detail)) return new DiskFull({ detail })
  if (about.image !== undefined) {
    const { image } = about
    // A registry that hides what is private answers "does not exist or may require login: denied".
    if (denied.test(detail) || status === 401 || status === 403) return new Unauthorized({ image, detail })
    if (status === 404 || absent.test(detail)) return new ImageMissing({ image, detail })
  }
  if (status === 404 && about.container !== undefined) return new ContainerNotFound({ container: about.container })
  if (status === 409) return new Conflict({ detail, in_progress: busy.test(detail) })
  return new Refused({ status, detail })
}
