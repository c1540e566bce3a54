/**
 * The Docker Engine API: images, containers, their logs, figures and events.
 *
 * Bodies keep the names that the API gives them, so that its reference (https://docs.docker.com/reference/api/engine/) holds here too;
 * of answers only what is used is decoded, and the rest ignored. The version of the API is the highest that both sides speak.
 *
 * **Details**
 *
 * Interrupting a call closes its connection. The engine finishes what it has begun all the same: a container can be created by a call
 * whose answer nobody has read. Give containers a name, and remove them by it.
 *
 * @since 0.1.0
 */
import * as Context from "effect/Context"
import * as Duration from "effect/Duration"
import * as Effect from "effect/Effect"
import * as Base64 from "effect/encoding/Base64"
import * as Ndjson from "effect/encoding/Ndjson"
import { constTrue } from "effect/Function"
import * as HttpClient from "effect/http/HttpClient"
import * as HttpClientRequest from "effect/http/HttpClientRequest"
import type { HttpClientResponse } from "effect/http/HttpClientResponse"
import * as Option from "effect/Option"
import * as Redacted from "effect/Redacted"
import * as Result from "effect/Result"
import * as Schema from "effect/Schema"
import * as SchemaGetter from "effect/SchemaGetter"
import type * as Scope from "effect/Scope"
import * as Stream from "effect/Stream"
import { codeOf } from "../internal/httpPost.ts"
import {
  DockerError,
  type DockerReason,
  InvalidImage,
  reasonOf,
  Refused,
  TimedOut,
  TooOld,
  Undecodable,
  Unreachable
} from "./DockerError.ts"

// Go writes an empty list or map as null, or leaves it out.
const orEmpty = <S extends Schema.Constraint>(schema: S, empty: S["Type"]) =>
  Schema.optionalKey(Schema.NullOr(schema)).pipe(
    Schema.decodeTo(Schema.toType(schema), {
      decode: SchemaGetter.transformOptional((value) =>
        Option.some(Option.getOrElse(Option.filter(value, (value) => value !== null), () => empty))
      ),
      encode: SchemaGetter.passthroughSupertype()
    })
  )

const Strings = orEmpty(Schema.Array(Schema.String), [])
const Labels = orEmpty(Schema.Record(Schema.String, Schema.String), {})

/**
 * An image that the engine has.
 *
 * @category models
 * @since 0.1.0
 */
export const Image = Schema.Struct({
  Id: Schema.String,
  RepoTags: Strings,
  RepoDigests: Strings,
  /** Bytes on disk. */
  Size: Schema.Finite,
  Config: Schema.optionalKey(Schema.NullOr(Schema.Struct({
    Cmd: Strings,
    Entrypoint: Strings,
    ExposedPorts: orEmpty(Schema.Record(Schema.String, Schema.Unknown), {}),
    Labels
  })))
})

/**
 * @category models
 * @since 0.1.0
 */
export type Image = typeof Image.Type

/**
 * A line of progress while an image is pulled. `id` is the layer that it is about; `progressDetail` counts its bytes.
 *
 * @category models
 * @since 0.1.0
 */
export const PullProgress = Schema.Struct({
  status: Schema.String,
  id: Schema.optionalKey(Schema.String),
  progressDetail: Schema.optionalKey(Schema.NullOr(Schema.Struct({
    current: Schema.optionalKey(Schema.Finite),
    total: Schema.optionalKey(Schema.Finite)
  })))
})

/**
 * @category models
 * @since 0.1.0
 */
export type PullProgress = typeof PullProgress.Type

const PullLine = Schema.Struct({
  ...PullProgress.fields,
  // Registries send notes that have none.
  status: Schema.optionalKey(Schema.String),
  error: Schema.optionalKey(Schema.String),
  errorDetail: Schema.optionalKey(Schema.NullOr(Schema.Struct({ message: Schema.optionalKey(Schema.String) })))
})

/**
 * What a container is doing. `Status` is one of `created`, `running`, `paused`, `restarting`, `removing`, `exited` and `dead`; `Error` is
 * why it could not be started, or empty. Times are RFC 3339, and in the year 1 where they have not come yet.
 *
 * @category models
 * @since 0.1.0
 */
export const ContainerState = Schema.Struct({
  Status: Schema.String,
  Running: Schema.Boolean,
  OOMKilled: Schema.Boolean,
  Pid: Schema.Int,
  ExitCode: Schema.Int,
  Error: Schema.String,
  StartedAt: Schema.String,
  FinishedAt: Schema.String
})

const PortBinding = Schema.Struct({ HostIp: Schema.String, HostPort: Schema.String })

/**
 * A container, as `inspectContainer` shows it. `Name` begins with a slash; `Image` is the image's id, `Config.Image` what it was asked for as.
 *
 * @category models
 * @since 0.1.0
 */
export const Container = Schema.Struct({
  Id: Schema.String,
  Name: Schema.String,
  Created: Schema.String,
  Image: Schema.String,
  State: ContainerState,
  Config: Schema.Struct({ Image: Schema.String, Cmd: Strings, Tty: Schema.Boolean, Labels }),
  HostConfig: Schema.Struct({
    NetworkMode: Schema.String,
    Binds: Strings,
    Memory: Schema.Finite,
    ShmSize: Schema.Finite,
    PortBindings: orEmpty(Schema.Record(Schema.String, Schema.NullOr(Schema.Array(PortBinding))), {})
  })
})

/**
 * @category models
 * @since 0.1.0
 */
export type Container = typeof Container.Type

/**
 * A container, as `listContainers` shows it. `Created` is in Unix seconds; names begin with a slash.
 *
 * @category models
 * @since 0.1.0
 */
export const ContainerSummary = Schema.Struct({
  Id: Schema.String,
  Names: Strings,
  Image: Schema.String,
  Created: Schema.Finite,
  State: Schema.String,
  Labels,
  Ports: orEmpty(
    Schema.Array(Schema.Struct({
      IP: Schema.optionalKey(Schema.String),
      PrivatePort: Schema.Int,
      PublicPort: Schema.optionalKey(Schema.Int),
      Type: Schema.String
    })),
    []
  )
})

/**
 * @category models
 * @since 0.1.0
 */
export type ContainerSummary = typeof ContainerSummary.Type

/**
 * What happened in the engine; see "Monitor events" in the API's reference for types and actions. `timeNano` is in Unix nanoseconds.
 *
 * @category models
 * @since 0.1.0
 */
export const Event = Schema.Struct({
  Type: Schema.String,
  Action: Schema.String,
  Actor: Schema.Struct({ ID: Schema.String, Attributes: Labels }),
  timeNano: Schema.Finite
})

/**
 * @category models
 * @since 0.1.0
 */
export type Event = typeof Event.Type

const Cpu = Schema.Struct({
  cpu_usage: Schema.Struct({ total_usage: Schema.Finite }),
  system_cpu_usage: Schema.optionalKey(Schema.Finite),
  online_cpus: Schema.optionalKey(Schema.Finite)
})

const RawStats = Schema.Struct({
  cpu_stats: Cpu,
  precpu_stats: Cpu,
  memory_stats: Schema.Struct({
    usage: Schema.optionalKey(Schema.Finite),
    limit: Schema.optionalKey(Schema.Finite),
    stats: orEmpty(Schema.Record(Schema.String, Schema.Finite), {})
  }),
  pids_stats: Schema.optionalKey(Schema.Struct({ current: Schema.optionalKey(Schema.NullOr(Schema.Finite)) }))
})

/**
 * What a container uses: of the processors in percent of one of them, over about the last second; memory in bytes, without what the
 * system can take back at once; its processes and threads. All are 0 where it does not run.
 *
 * @category models
 * @since 0.1.0
 */
export interface Usage {
  readonly cpuPercent: number
  readonly memoryBytes: number
  readonly memoryLimitBytes: number
  readonly pids: number
}

// The formulas of `docker stats`: docs.docker.com/reference/api/engine, "Get container stats based on resource usage".
const usageOf = (
  { cpu_stats: cpu, memory_stats: memory, pids_stats: pids, precpu_stats: before }: typeof RawStats.Type
): Usage => {
  const used = cpu.cpu_usage.total_usage - before.cpu_usage.total_usage
  const passed = (cpu.system_cpu_usage ?? 0) - (before.system_cpu_usage ?? 0)
  const cache = memory.stats["total_inactive_file"] ?? memory.stats["inactive_file"] ?? 0
  return {
    cpuPercent: used > 0 && passed > 0 ? used / passed * (cpu.online_cpus ?? 1) * 100 : 0,
    memoryBytes: Math.max(0, (memory.usage ?? 0) - cache),
    memoryLimitBytes: memory.limit ?? 0,
    pids: pids?.current ?? 0
  }
}

/**
 * A container to create: the part of the API's body that is used here.
 *
 * @category models
 * @since 0.1.0
 */
export interface ContainerSpec {
  readonly Image: string
  readonly Cmd?: ReadonlyArray<string> | undefined
  readonly Entrypoint?: ReadonlyArray<string> | undefined
  /** `NAME=value`. */
  readonly Env?: ReadonlyArray<string> | undefined
  readonly Labels?: Readonly<Record<string, string>> | undefined
  /** `{ "8000/tcp": {} }`. */
  readonly ExposedPorts?: Readonly<Record<string, Readonly<Record<string, never>>>> | undefined
  readonly WorkingDir?: string | undefined
  readonly Tty?: boolean | undefined
  readonly HostConfig?: {
    /** `/host/path:/container/path:ro`. */
    readonly Binds?: ReadonlyArray<string> | undefined
    /** As `Binds`, of paths that can hold a colon; what is not there on the host is refused instead of made. */
    readonly Mounts?:
      | ReadonlyArray<{
        readonly Type: "bind" | "volume"
        readonly Source: string
        readonly Target: string
        readonly ReadOnly?: boolean | undefined
      }>
      | undefined
    /** `{ "8000/tcp": [{ HostIp: "127.0.0.1", HostPort: "8000" }] }`. */
    readonly PortBindings?: Readonly<Record<string, ReadonlyArray<typeof PortBinding.Type>>> | undefined
    /** `bridge`, `host`, `none`, or the name of a network. */
    readonly NetworkMode?: string | undefined
    /** Bytes. */
    readonly Memory?: number | undefined
    /** Billionths of a processor. */
    readonly NanoCpus?: number | undefined
    /** Bytes of `/dev/shm`. */
    readonly ShmSize?: number | undefined
    readonly IpcMode?: string | undefined
    readonly LogConfig?: { readonly Type: string; readonly Config: Readonly<Record<string, string>> } | undefined
    readonly DeviceRequests?:
      | ReadonlyArray<{
        readonly Driver?: string | undefined
        /** -1 for all there are. */
        readonly Count?: number | undefined
        readonly DeviceIDs?: ReadonlyArray<string> | undefined
        readonly Capabilities: ReadonlyArray<ReadonlyArray<string>>
      }>
      | undefined
    readonly RestartPolicy?: { readonly Name: string; readonly MaximumRetryCount?: number | undefined } | undefined
  } | undefined
}

/**
 * Credentials of a registry. They appear in no error, log or span.
 *
 * @category models
 * @since 0.1.0
 */
export interface RegistryAuth {
  readonly username: string
  readonly password: Redacted.Redacted<string>
  /** The registry that they are for, such as `ghcr.io`. */
  readonly serveraddress?: string | undefined
}

/**
 * Which entries of a list, or events, are wanted; see the API's reference for the names: `{ label: ["app=x"], status: ["running"] }`.
 *
 * @category models
 * @since 0.1.0
 */
export type Filters = Readonly<Record<string, ReadonlyArray<string>>>

/**
 * A piece of what a container wrote. A frame of the engine can come in several.
 *
 * @category models
 * @since 0.1.0
 */
export interface LogChunk {
  readonly stream: "stdout" | "stderr"
  readonly bytes: Uint8Array
}

/**
 * A line that a container wrote, without its end. `time` is RFC 3339 with nanoseconds, where timestamps were asked for.
 *
 * @category models
 * @since 0.1.0
 */
export interface LogLine {
  readonly stream: "stdout" | "stderr"
  readonly text: string
  readonly time?: string | undefined
}

/**
 * Which part of a container's log.
 *
 * @category models
 * @since 0.1.0
 */
export interface LogOptions {
  /** Goes on with what is written from now on, until the container ends. Default: false. */
  readonly follow?: boolean | undefined
  /** The last so many lines. Default: all. */
  readonly tail?: number | undefined
  /** From this time on, in Unix seconds; fractions count. */
  readonly since?: number | undefined
  /** Default: both. */
  readonly streams?: ReadonlyArray<"stdout" | "stderr"> | undefined
}

/**
 * A Docker Engine. Every call fails with `DockerError` alone.
 *
 * @category services
 * @since 0.1.0
 */
export class Docker extends Context.Service<Docker, {
  /** Where the engine is looked for, for messages. */
  readonly address: string
  /** The version of the API that both sides speak, such as `1.41`. Asks again until an engine has answered. */
  readonly apiVersion: Effect.Effect<string, DockerError>
  /** Fails with `ImageMissing` where the engine does not have it. */
  readonly inspectImage: (image: string) => Effect.Effect<Image, DockerError>
  /**
   * Pulls an image, and ends when the engine has it. Without a tag it is `latest`.
   *
   * The engine reports failures inside of an answer that began well; they fail the stream, as does an answer that ends before the image is there.
   * Interrupting it ends the engine's pull too; layers that are complete are kept.
   */
  readonly pullImage: (
    image: string,
    options?: { readonly auth?: RegistryAuth | undefined }
  ) => Stream.Stream<PullProgress, DockerError>
  /** Makes an image of a tar archive of its root folder. `changes` are lines of a Dockerfile, such as `CMD ["httpd"]`. */
  readonly importImage: <E>(
    archive: Stream.Stream<Uint8Array, E>,
    options: { readonly image: string; readonly changes?: ReadonlyArray<string> | undefined }
  ) => Effect.Effect<Image, DockerError>
  readonly removeImage: (
    image: string,
    options?: { readonly force?: boolean | undefined }
  ) => Effect.Effect<void, DockerError>
  /** `ImageMissing` where the engine does not have the image, `Conflict` where the name is in use. */
  readonly createContainer: (
    options: { readonly name?: string | undefined; readonly spec: ContainerSpec }
  ) => Effect.Effect<{ readonly Id: string; readonly Warnings: ReadonlyArray<string> }, DockerError>
  /** Says whether it did anything: false where the container ran already. */
  readonly startContainer: (container: string) => Effect.Effect<boolean, DockerError>
  /**
   * Asks the container to end, and kills it where it has not after `timeout` (default 10 seconds). Says whether it did anything: false where
   * the container did not run.
   */
  readonly stopContainer: (
    container: string,
    options?: { readonly timeout?: Duration.Input | undefined }
  ) => Effect.Effect<boolean, DockerError>
  /** Sends a signal, by default `SIGKILL`. `Conflict` where the container does not run. */
  readonly killContainer: (
    container: string,
    options?: { readonly signal?: string | undefined }
  ) => Effect.Effect<void, DockerError>
  /** Waits, however long, until the container has ended, and gives its exit code. */
  readonly waitContainer: (container: string) => Effect.Effect<number, DockerError>
  /** `Conflict` where it runs, unless `force` kills it first. `volumes` removes its anonymous volumes too. */
  readonly removeContainer: (
    container: string,
    options?: { readonly force?: boolean | undefined; readonly volumes?: boolean | undefined }
  ) => Effect.Effect<void, DockerError>
  readonly inspectContainer: (container: string) => Effect.Effect<Container, DockerError>
  /** Those that run, newest first; with `all` the others too. */
  readonly listContainers: (
    options?: { readonly all?: boolean | undefined; readonly filters?: Filters | undefined }
  ) => Effect.Effect<ReadonlyArray<ContainerSummary>, DockerError>
  /** Takes about a second, over which the engine measures. */
  readonly usage: (container: string) => Effect.Effect<Usage, DockerError>
  /** What the container wrote, as bytes; of one with a terminal all of it as `stdout`. */
  readonly logs: (container: string, options?: LogOptions) => Stream.Stream<LogChunk, DockerError>
  /** The same by lines. A line of more than 64 Ki characters comes in several. */
  readonly logLines: (
    container: string,
    options?: LogOptions & { readonly timestamps?: boolean | undefined }
  ) => Stream.Stream<LogLine, DockerError>
  /** What happens from now on, or from `since` to `until` (Unix seconds). */
  readonly events: (
    options?: {
      readonly filters?: Filters | undefined
      readonly since?: number | undefined
      readonly until?: number | undefined
    }
  ) => Stream.Stream<Event, DockerError>
}>()("effect-units/backends/Docker") {}

/**
 * How to talk to an engine.
 *
 * @category models
 * @since 0.1.0
 */
export interface Options {
  /** Where the engine is, as messages name it: `unix:///var/run/docker.sock`. */
  readonly address: string
  /** What goes before the paths: `http://localhost`. */
  readonly baseUrl: string
  /** How long the engine may take to answer, apart from what it waits for on its own. Default: 1 minute. */
  readonly timeout?: Duration.Input | undefined
  /** How long it may be silent during a pull. Default: 5 minutes, as large layers are checked without a word. */
  readonly pullTimeout?: Duration.Input | undefined
}

/** The highest version that this client was written against, and the lowest: the first with GPUs (`DeviceRequests`). */
const newestVersion = [1, 47] as const
const oldestVersion = [1, 40] as const

const versionOf = (text: string | undefined): readonly [number, number] | undefined => {
  const match = /^(\d+)\.(\d+)$/.exec(text ?? "")
  return match === null ? undefined : [Number(match[1]), Number(match[2])]
}

const isBefore = (a: readonly [number, number], b: readonly [number, number]) =>
  a[0] < b[0] || (a[0] === b[0] && a[1] < b[1])

// The grammar of https://pkg.go.dev/github.com/distribution/reference, which keeps any reference from being another path of the API.
const component = "[a-zA-Z0-9]+(?:(?:[._-]|__|-+)[a-zA-Z0-9]+)*"
const reference = new RegExp(
  `^(${component}(?::\\d+)?(?:/${component})*)(?::([\\w][\\w.-]{0,127}))?(?:@([\\w+.-]+:[0-9a-fA-F]{32,}))?$`
)

const parse = (image: string): { readonly name: string; readonly tag: string } | undefined => {
  const match = reference.exec(image)
  // Without a tag the engine would pull all there are.
  return match === null ? undefined : { name: match[1] ?? image, tag: match[3] ?? match[2] ?? "latest" }
}

/** The type of a frame in its first byte, and the length of what follows in its last four, the highest first. */
const headerBytes = 8
/** Longer lines come in several, so that a container that never ends one does not fill the memory. */
const maxLineLength = 64 * 1024

/** Frames out of chunks that are cut anywhere. What a chunk has of a frame is given at once, not kept. */
const makeDemultiplexer = () => {
  const header = new Uint8Array(headerBytes)
  let filled = 0
  let left = 0
  let type = 0
  let failure = ""
  const push = (chunk: Uint8Array): Result.Result<ReadonlyArray<LogChunk>, string> => {
    const chunks: Array<LogChunk> = []
    for (let at = 0; at < chunk.length;) {
      if (left === 0) {
        const count = Math.min(headerBytes - filled, chunk.length - at)
        header.set(chunk.subarray(at, at + count), filled)
        filled += count
        at += count
        if (filled < headerBytes) break
        filled = 0
        type = header[0] ?? 0
        left = new DataView(header.buffer).getUint32(4)
        if (type > 3 || header[1] !== 0 || header[2] !== 0 || header[3] !== 0) {
          return Result.fail("a log without frames")
        }
        continue
      }
      const bytes = chunk.subarray(at, at + left)
      at += bytes.length
      left -= bytes.length
      // The fourth type carries a failure of the engine itself.
      if (type === 3) failure += new TextDecoder().decode(bytes)
      else chunks.push({ stream: type === 2 ? "stderr" : "stdout", bytes })
    }
    return Result.succeed(chunks)
  }
  return { push, isWithin: () => left > 0 || filled > 0, failure: () => left === 0 ? failure : "" }
}

/** Lines out of pieces; one decoder a stream, since a piece can end within a character. */
const makeLines = (timestamps: boolean) => {
  const decoders = { stdout: new TextDecoder(), stderr: new TextDecoder() }
  const rest = { stdout: "", stderr: "" }
  const lineOf = (stream: "stdout" | "stderr", line: string): LogLine => {
    const text = line.endsWith("\r") ? line.slice(0, -1) : line
    const space = timestamps ? text.indexOf(" ") : -1
    return space < 0 ? { stream, text } : { stream, text: text.slice(space + 1), time: text.slice(0, space) }
  }
  const push = ({ bytes, stream }: LogChunk): ReadonlyArray<LogLine> => {
    const lines = (rest[stream] + decoders[stream].decode(bytes, { stream: true })).split("\n")
    let last = lines.pop() ?? ""
    while (last.length > maxLineLength) {
      lines.push(last.slice(0, maxLineLength))
      last = last.slice(maxLineLength)
    }
    rest[stream] = last
    return lines.map((line) => lineOf(stream, line))
  }
  const end = (): ReadonlyArray<LogLine> =>
    (["stdout", "stderr"] as const).flatMap((stream) => {
      const last = rest[stream] + decoders[stream].decode()
      return last === "" ? [] : [lineOf(stream, last)]
    })
  return { push, end }
}

const ErrorBody = Schema.fromJsonString(Schema.Struct({ message: Schema.String }))

interface Call {
  readonly action: string
  readonly method: "GET" | "POST" | "DELETE"
  readonly path: string
  readonly params?: Readonly<Record<string, string | number | boolean | undefined>> | undefined
  readonly change?: ((request: HttpClientRequest.HttpClientRequest) => HttpClientRequest.HttpClientRequest) | undefined
  readonly about?: { readonly image?: string | undefined; readonly container?: string | undefined } | undefined
  readonly timeout?: Duration.Duration | undefined
}

const filtersOf = (filters: Filters | undefined) => filters === undefined ? undefined : JSON.stringify(filters)

/**
 * Builds the client over an `HttpClient` whose requests go to the engine; see `DockerNode.layer`.
 *
 * Nothing is sent yet: a host without Docker is told so by the first call.
 *
 * @category constructors
 * @since 0.1.0
 */
export const make = (http: HttpClient.HttpClient, options: Options): typeof Docker.Service => {
  const { address, baseUrl } = options
  const client = HttpClient.withScope(http)
  const timeout = Duration.fromInputUnsafe(options.timeout ?? "1 minute")
  const pullTimeout = Duration.fromInputUnsafe(options.pullTimeout ?? "5 minutes")
  let negotiated: string | undefined

  const unreachable = (error: unknown): DockerReason => new Unreachable({ address, code: codeOf(error) })
  const undecodable = (detail: string): DockerReason => new Undecodable({ address, detail: detail.slice(0, 300) })

  const inTime = (within: Duration.Duration) =>
    Effect.timeoutOrElse({
      duration: within,
      orElse: () =>
        Effect.fail<DockerReason>(
          new TimedOut({ address, waiting_for: "response", after_seconds: Duration.toSeconds(within) })
        )
    })

  const execute = (request: HttpClientRequest.HttpClientRequest) =>
    client.execute(request).pipe(
      Effect.mapError(unreachable),
      // A span of the request would show the registry's credentials in its headers.
      Effect.provideService(HttpClient.TracerDisabledWhen, constTrue),
      Effect.withTracerEnabled(false)
    )

  const textOf = (response: HttpClientResponse) => Effect.mapError(response.text, unreachable)

  const negotiate: Effect.Effect<string, DockerReason> = Effect.suspend(() => {
    if (negotiated !== undefined) return Effect.succeed(negotiated)
    return Effect.scoped(Effect.gen(function*() {
      const { headers } = yield* execute(HttpClientRequest.get(`${baseUrl}/_ping`))
      const theirs = versionOf(headers["api-version"])
      if (theirs === undefined) return yield* undecodable("it names no version of the API")
      if (isBefore(theirs, oldestVersion)) {
        return yield* new TooOld({ version: theirs.join("."), minimum: oldestVersion.join(".") })
      }
      negotiated = (isBefore(theirs, newestVersion) ? theirs : newestVersion).join(".")
      return negotiated
    })).pipe(inTime(timeout))
  })

  const open = Effect.fnUntraced(
    function*(call: Call): Effect.fn.Return<HttpClientResponse, DockerReason, Scope.Scope> {
      const { about = {}, change = (request) => request, method, params = {}, path } = call
      const version = yield* negotiate
      const request = HttpClientRequest.make(method)(`${baseUrl}/v${version}${path}`).pipe(
        HttpClientRequest.setUrlParams(params),
        change
      )
      const response = yield* execute(request).pipe(inTime(call.timeout ?? timeout))
      // 304 stands for "is so already".
      if (response.status < 300 || response.status === 304) return response
      const text = yield* inTime(timeout)(textOf(response))
      const body = Schema.decodeResult(ErrorBody)(text)
      // An engine that was replaced by another version: the next call asks anew.
      if (response.status === 400 && /client version/.test(text)) negotiated = undefined
      const detail = Result.isSuccess(body) ? body.success.message.trim() : text.trim().slice(0, 300)
      return yield* reasonOf(response.status, detail || "no message", about)
    }
  )

  const named = (action: string) => Effect.mapError((reason: DockerReason) => new DockerError({ action, reason }))

  /** Succeeds with the status. */
  const send = (call: Call): Effect.Effect<number, DockerError> =>
    Effect.scoped(Effect.map(open(call), ({ status }) => status)).pipe(named(call.action))

  const json = <S extends Schema.ConstraintDecoder<unknown, never>>(
    call: Call,
    schema: S
  ): Effect.Effect<S["Type"], DockerError> =>
    Effect.scoped(
      open(call).pipe(
        Effect.flatMap((response) => inTime(call.timeout ?? timeout)(textOf(response)))
      )
    ).pipe(
      Effect.flatMap((text) =>
        Effect.mapError(
          Schema.decodeEffect(Schema.fromJsonString(schema))(text),
          (error) => undecodable(error.message)
        )
      ),
      named(call.action)
    )

  const bytes = (call: Call, idle: Duration.Duration): Stream.Stream<Uint8Array, DockerReason> =>
    Stream.unwrap(Effect.map(open(call), (response) =>
      response.stream.pipe(
        Stream.mapError(unreachable),
        Stream.timeoutOrElse({
          duration: idle,
          orElse: () =>
            Stream.fail<DockerReason>(
              new TimedOut({ address, waiting_for: "data", after_seconds: Duration.toSeconds(idle) })
            )
        })
      )))

  const objects = <S extends Schema.ConstraintDecoder<unknown, never>>(
    call: Call,
    schema: S,
    idle: Duration.Duration
  ): Stream.Stream<S["Type"], DockerReason> =>
    bytes(call, idle).pipe(
      Stream.pipeThroughChannel(Ndjson.decodeSchema(schema)({ ignoreEmptyLines: true })),
      Stream.catchTags({
        NdjsonError: (error) =>
          Stream.fail(
            // A line without its end is what a cut connection leaves.
            error.unterminated ? new Unreachable({ address, code: "cut off" }) : undecodable(String(error.cause))
          ),
        SchemaError: (error) => Stream.fail(undecodable(error.message))
      })
    )

  const failing = (action: string) => <A>(stream: Stream.Stream<A, DockerReason>): Stream.Stream<A, DockerError> =>
    Stream.mapError(stream, (reason) => new DockerError({ action, reason }))

  const imagePath = (image: string) => `/images/${image}`
  const valid = (action: string, image: string) =>
    named(action)(parse(image) === undefined ? Effect.fail(new InvalidImage({ image })) : Effect.void)
  const containerPath = (container: string) => `/containers/${encodeURIComponent(container)}`

  const inspectImage = (image: string) => {
    const action = `look at the image ${image}`
    return Effect.andThen(
      valid(action, image),
      json({ action, method: "GET", path: `${imagePath(image)}/json`, about: { image } }, Image)
    )
  }

  const pullImage: typeof Docker.Service["pullImage"] = (image, { auth } = {}) => {
    const action = `pull the image ${image}`
    const parsed = parse(image)
    if (parsed === undefined) return failing(action)(Stream.fail(new InvalidImage({ image })))
    const call: Call = {
      action,
      method: "POST",
      path: "/images/create",
      params: { fromImage: parsed.name, tag: parsed.tag },
      about: { image },
      // A registry is asked before the answer begins.
      timeout: pullTimeout,
      change: auth === undefined
        ? undefined
        : HttpClientRequest.setHeader(
          "X-Registry-Auth",
          // RFC 4648, section 5, with padding, which the engine insists on.
          Base64.encode(JSON.stringify({ ...auth, password: Redacted.value(auth.password) }))
            .replaceAll("+", "-").replaceAll("/", "_")
        )
    }
    const lines = objects(call, PullLine, pullTimeout).pipe(
      Stream.mapEffect(({ error, errorDetail, status, ...rest }) => {
        const failure = errorDetail?.message ?? error
        if (failure !== undefined) return Effect.fail(reasonOf(200, failure, { image }))
        return Effect.succeed(status === undefined ? [] : [{ status, ...rest }])
      }),
      Stream.flattenIterable
    )
    // Some engines end the answer in good order whatever happened.
    const there = Effect.mapError(inspectImage(image), ({ reason }) => reason)
    return failing(action)(Stream.concat(lines, Stream.drain(Stream.fromEffect(there))))
  }

  const inspectContainer = (container: string) =>
    json({
      action: `look at the container ${container}`,
      method: "GET",
      path: `${containerPath(container)}/json`,
      about: { container }
    }, Container)

  const logBytes = (container: string, options: LogOptions & { readonly timestamps?: boolean | undefined }) => {
    const { follow = false, since, streams = ["stdout", "stderr"], tail, timestamps = false } = options
    const action = `read the log of the container ${container}`
    const call: Call = {
      action,
      method: "GET",
      path: `${containerPath(container)}/logs`,
      params: {
        follow,
        tail: tail ?? "all",
        since,
        timestamps,
        stdout: streams.includes("stdout"),
        stderr: streams.includes("stderr")
      },
      about: { container }
    }
    const demultiplexed = Stream.suspend(() => {
      const demultiplexer = makeDemultiplexer()
      return bytes(call, Duration.infinity).pipe(
        Stream.mapEffect((chunk) => Effect.fromResult(Result.mapError(demultiplexer.push(chunk), undecodable))),
        Stream.flattenIterable,
        Stream.concat(Stream.suspend((): Stream.Stream<never, DockerReason> => {
          const failure = demultiplexer.failure()
          if (failure !== "") return Stream.fail(new Refused({ status: 200, detail: failure }))
          return demultiplexer.isWithin() ? Stream.fail(new Unreachable({ address, code: "cut off" })) : Stream.empty
        }))
      )
    })
    // Before API 1.42 only this tells that there are no frames, as a terminal has one stream.
    return Stream.unwrap(Effect.map(inspectContainer(container), ({ Config }) =>
      failing(action)(
        Config.Tty
          ? Stream.map(bytes(call, Duration.infinity), (bytes): LogChunk => ({ stream: "stdout", bytes }))
          : demultiplexed
      )))
  }

  return Docker.of({
    address,
    apiVersion: named("ask for the version of the API")(negotiate),
    inspectImage,
    pullImage,
    importImage: (archive, { changes = [], image }) => {
      const action = `import the image ${image}`
      const parsed = parse(image)
      if (parsed === undefined) return named(action)(Effect.fail(new InvalidImage({ image })))
      return send({
        action,
        method: "POST",
        path: "/images/create",
        params: { fromSrc: "-", repo: parsed.name, tag: parsed.tag },
        timeout: pullTimeout,
        change: (request) =>
          HttpClientRequest.bodyStream(
            changes.reduce((request, line) => HttpClientRequest.appendUrlParam(request, "changes", line), request),
            archive,
            { contentType: "application/x-tar" }
          )
      }).pipe(Effect.andThen(inspectImage(image)))
    },
    removeImage: (image, { force = false } = {}) => {
      const action = `remove the image ${image}`
      return Effect.andThen(
        valid(action, image),
        Effect.asVoid(send({ action, method: "DELETE", path: imagePath(image), params: { force }, about: { image } }))
      )
    },
    createContainer: ({ name, spec }) =>
      json({
        action: `create the container ${name ?? `of ${spec.Image}`}`,
        method: "POST",
        path: "/containers/create",
        params: { name },
        about: { image: spec.Image },
        change: HttpClientRequest.bodyJsonUnsafe(spec)
      }, Schema.Struct({ Id: Schema.String, Warnings: Strings })),
    startContainer: (container) =>
      Effect.map(
        send({
          action: `start the container ${container}`,
          method: "POST",
          path: `${containerPath(container)}/start`,
          about: { container }
        }),
        (status) => status !== 304
      ),
    stopContainer: (container, options = {}) => {
      const grace = Duration.fromInputUnsafe(options.timeout ?? "10 seconds")
      return Effect.map(
        send({
          action: `stop the container ${container}`,
          method: "POST",
          path: `${containerPath(container)}/stop`,
          params: { t: Math.ceil(Duration.toSeconds(grace)) },
          about: { container },
          timeout: Duration.sum(timeout, grace)
        }),
        (status) => status !== 304
      )
    },
    killContainer: (container, { signal = "SIGKILL" } = {}) =>
      Effect.asVoid(send({
        action: `send ${signal} to the container ${container}`,
        method: "POST",
        path: `${containerPath(container)}/kill`,
        params: { signal },
        about: { container }
      })),
    waitContainer: (container) =>
      Effect.map(
        json({
          action: `wait for the container ${container}`,
          method: "POST",
          path: `${containerPath(container)}/wait`,
          about: { container },
          timeout: Duration.infinity
        }, Schema.Struct({ StatusCode: Schema.Int })),
        ({ StatusCode }) => StatusCode
      ),
    removeContainer: (container, { force = false, volumes = false } = {}) =>
      Effect.asVoid(send({
        action: `remove the container ${container}`,
        method: "DELETE",
        path: containerPath(container),
        params: { force, v: volumes },
        about: { container }
      })),
    inspectContainer,
    listContainers: ({ all = false, filters } = {}) =>
      json({
        action: "list the containers",
        method: "GET",
        path: "/containers/json",
        params: { all, filters: filtersOf(filters) }
      }, Schema.Array(ContainerSummary)),
    usage: (container) =>
      Effect.map(
        json({
          action: `measure the container ${container}`,
          method: "GET",
          path: `${containerPath(container)}/stats`,
          params: { stream: false },
          about: { container }
        }, RawStats),
        usageOf
      ),
    logs: (container, options = {}) => logBytes(container, options),
    logLines: (container, options = {}) =>
      Stream.suspend(() => {
        const lines = makeLines(options.timestamps ?? false)
        return logBytes(container, options).pipe(
          Stream.map(lines.push),
          Stream.flattenIterable,
          Stream.concat(Stream.suspend(() => Stream.fromIterable(lines.end())))
        )
      }),
    events: ({ filters, since, until } = {}) => {
      const action = "follow the events"
      const params = { filters: filtersOf(filters), since, until }
      return failing(action)(objects({ action, method: "GET", path: "/events", params }, Event, Duration.infinity))
    }
  })
}
