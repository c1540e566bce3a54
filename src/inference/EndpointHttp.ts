/**
 * The HTTP that the backends share: one request, sent once, bounded in time, whose connection closes with its scope, and whose failure
 * is a `BackendReason` without the key, a header or an address.
 *
 * @since 0.1.0
 */
import * as Clock from "effect/Clock"
import * as Context from "effect/Context"
import * as Duration from "effect/Duration"
import * as Effect from "effect/Effect"
import { constTrue } from "effect/Function"
import * as FetchHttpClient from "effect/http/FetchHttpClient"
import * as Headers from "effect/http/Headers"
import * as HttpClient from "effect/http/HttpClient"
import type { HttpClientError } from "effect/http/HttpClientError"
import * as HttpClientRequest from "effect/http/HttpClientRequest"
import type { HttpClientResponse } from "effect/http/HttpClientResponse"
import * as Option from "effect/Option"
import * as Predicate from "effect/Predicate"
import * as Redacted from "effect/Redacted"
import * as Result from "effect/Result"
import * as Schema from "effect/Schema"
import * as Stream from "effect/Stream"
import * as Tracer from "effect/Tracer"
import { concat, describe, excerpt, isWebAddress, rootCause } from "../internal/httpText.ts"
import {
  type BackendReason,
  Busy,
  EngineFailed,
  ModelMissing,
  Refused,
  TimedOut,
  Unreachable
} from "./BackendReason.ts"
import * as Wire from "./internal/wire.ts"

/**
 * Where an endpoint is, and how long it may take.
 *
 * @category models
 * @since 0.1.0
 */
export interface Options {
  /** Base of all addresses, without a slash at its end. */
  readonly baseUrl: string
  /** Sent as `Authorization: Bearer <key>`. */
  readonly apiKey?: Redacted.Redacted | undefined
  /**
   * How long an answer may take to begin, connecting included. An answer that is not streamed begins when it is complete. Default: 10
   * minutes.
   */
  readonly responseTimeout?: Duration.Input | undefined
  /** How long an answer may pause once it has begun; of a streamed answer, also before its first chunk. Default: 5 minutes. */
  readonly idleTimeout?: Duration.Input | undefined
  /** How long a list of models or voices may take. Default: 5 seconds. */
  readonly listTimeout?: Duration.Input | undefined
  /** How long a job may take that is begun by one request and asked for by others, its result included. Default: 30 minutes. */
  readonly jobTimeout?: Duration.Input | undefined
}

/**
 * What a backend asks of the network.
 *
 * @category models
 * @since 0.1.0
 */
export interface EndpointHttp {
  /** A request to a path below the base, with the key. An address takes the place of the base. */
  readonly get: (path: string) => HttpClientRequest.HttpClientRequest
  /** The same, with a body of JSON. Fields that are `undefined` are left out. */
  readonly post: (path: string, body: object) => HttpClientRequest.HttpClientRequest
  /** The same, with a form, as files are sent. */
  readonly form: (path: string, form: FormData) => HttpClientRequest.HttpClientRequest
  /** A request to delete. */
  readonly del: (path: string) => HttpClientRequest.HttpClientRequest
  /**
   * Sends a request, and reads the whole answer, which fails where it has more bytes than `limit`, or another status than 2xx. `type` is
   * its media type. `model` is whom the request is for, to tell a model that is missing from a path that is. The connection closes when it
   * is interrupted.
   */
  readonly bytes: (
    request: HttpClientRequest.HttpClientRequest,
    limit: number,
    model?: string
  ) => Effect.Effect<{ readonly bytes: Uint8Array; readonly type: string }, BackendReason>
  /** Sends a request, and decodes the JSON of its answer. */
  readonly json: <S extends Schema.ConstraintDecoder<unknown, never>>(
    request: HttpClientRequest.HttpClientRequest,
    schema: S,
    model?: string
  ) => Effect.Effect<S["Type"], BackendReason>
  /** The same for a list of models or voices, which has to come soon. */
  readonly list: <S extends Schema.ConstraintDecoder<unknown, never>>(
    path: string,
    schema: S
  ) => Effect.Effect<S["Type"], BackendReason>
  /**
   * Sends a request, and gives the body of its answer as it arrives. Fails when it pauses for longer than the idle timeout. The
   * connection closes when nobody takes the rest.
   */
  readonly stream: (
    request: HttpClientRequest.HttpClientRequest,
    model: string
  ) => Stream.Stream<Uint8Array, BackendReason>
  /** What an error inside of a body stands for: one that came with status 200, whose own code is in the error. */
  readonly reason: (error: unknown, model: string) => BackendReason
  /** Text of a server, without the key, and short enough for a message. */
  readonly clean: (text: string) => string
}

// A thousand vectors of four thousand numbers are some 80 MB of JSON.
const maxJsonBytes = 256 * 1024 * 1024
const maxErrorBytes = 4096
const maxErrorTime = "5 seconds"

/** The system's codes for a connection that did not come about. Source: the errors of `node:net`, `node:dns` and Undici. */
const unconnected = new Set([
  "ECONNREFUSED",
  "EHOSTUNREACH",
  "ENETUNREACH",
  "EADDRNOTAVAIL",
  "ENOTFOUND",
  "EAI_AGAIN",
  "UND_ERR_CONNECT_TIMEOUT"
])

const isUnconnected = (error: HttpClientError): boolean => {
  const cause = rootCause(error)
  return Predicate.hasProperty(cause, "code") && Predicate.isString(cause.code) && unconnected.has(cause.code) ||
    Predicate.hasProperty(cause, "syscall") && cause.syscall === "connect"
}

/**
 * How servers say what is wrong: OpenAI's form, the older one of vLLM, a sentence (Ollama), and the one of FastAPI, which has a list for
 * what did not fit.
 */
const ErrorBody = Schema.Struct({
  error: Schema.optional(Schema.Unknown),
  message: Schema.optional(Schema.Unknown),
  detail: Schema.optional(Schema.Unknown),
  code: Schema.optional(Schema.Unknown),
  type: Schema.optional(Schema.Unknown),
  estimated_time: Schema.optional(Schema.Unknown)
})
const decodeErrorBody = Schema.decodeUnknownOption(ErrorBody)

interface Said {
  readonly message: string
  /** Words of the error that are for programs. */
  readonly code: string
  /** A status that the error repeats. */
  readonly status: number | undefined
}

const said = (body: unknown): Said => {
  if (Predicate.isString(body)) return { message: body, code: "", status: undefined }
  const error = Option.getOrUndefined(decodeErrorBody(body))
  if (error === undefined) return { message: "", code: "", status: undefined }
  if (error.error !== undefined && error.error !== null) {
    const inner = said(error.error)
    // So Hugging Face tells that a model is on its way.
    return error.estimated_time === undefined ? inner : { ...inner, code: `${inner.code} loading` }
  }
  const message = error.message ?? error.detail
  const code = [error.code, error.type].filter(Predicate.isString).join(" ")
  const status = Number(error.code)
  return {
    message: Predicate.isString(message) ? message : message === undefined ? "" : JSON.stringify(message),
    code,
    status: Number.isInteger(status) && status >= 400 && status < 600 ? status : undefined
  }
}

/** The status of an error that has only words. Source: the error types of OpenAI, vLLM and llama.cpp. */
const statusOfCode = (code: string): number => {
  if (/rate_limit|insufficient_quota/i.test(code)) return 429
  if (/model_not_found|not_?found/i.test(code)) return 404
  if (/invalid_request|bad_?request|context_length|exceed_context/i.test(code)) return 400
  if (/authentication|permission/i.test(code)) return 401
  if (/unavailable|overloaded/i.test(code)) return 503
  return 500
}

const reasonOf = (
  status: number,
  { code, message }: Said,
  retryAfterSeconds: number | undefined,
  model: string | undefined
): BackendReason => {
  const detail = message === "" ? `It answered ${status}.` : `It says: ${message.replace(/[.\s]+$/, "")}.`
  switch (status) {
    case 401:
    case 403:
      return new EngineFailed({ detail: `${detail} Check its API key`, status, retryable: false })
    case 404:
    case 410: {
      // A path that is not there has no word of a model.
      const aboutModel = /model/i.test(`${code} ${message}`) ||
        model !== undefined && message.toLowerCase().includes(model.toLowerCase())
      return aboutModel
        ? new ModelMissing({ detail: `${detail} Pull or load it there first`, loading: false })
        : unsupported(detail)
    }
    case 405:
    case 501:
      return unsupported(detail)
    case 408:
    case 504:
      return new TimedOut({ detail })
    case 429:
      return busy(detail, retryAfterSeconds)
    case 503:
      return /loading/i.test(`${code} ${message}`)
        ? new ModelMissing({ detail: `${detail} Try again later`, loading: true })
        : busy(detail, retryAfterSeconds)
    default:
      return status >= 400 && status < 500
        ? new Refused({ detail })
        : new EngineFailed({
          detail: status < 400
            ? `It answered ${status}, and redirects are not followed. Give the endpoint the address where it is`
            : detail,
          status,
          retryable: status >= 500
        })
  }
}

const unsupported = (detail: string): Refused =>
  new Refused({ detail: `The endpoint has no such operation. ${detail}`, unsupported: true })

const busy = (detail: string, seconds: number | undefined): Busy =>
  new Busy({ detail, ...(seconds === undefined ? {} : { retry_after_seconds: seconds }) })

const retryAfterOf = (headers: Headers.Headers, now: number): number | undefined => {
  const value = headers["retry-after"]
  const parsed = value === undefined ? undefined : Headers.parseRetryAfter(value)
  return parsed === undefined || Result.isFailure(parsed)
    ? undefined
    : Math.min(Math.ceil(Duration.toSeconds(Headers.retryAfterDelay(parsed.success, now))), Number.MAX_SAFE_INTEGER)
}

const seconds = (millis: number): string => `${millis / 1000} s`

const late = (millis: number): TimedOut =>
  new TimedOut({ detail: `It sent no answer within ${seconds(millis)}. Try again, or raise the timeout` })

const silent = (millis: number): TimedOut =>
  new TimedOut({ detail: `It fell silent for ${seconds(millis)}. Try again, or raise the timeout` })

const tooLong = (limit: number): EngineFailed =>
  new EngineFailed({ detail: `Its answer has more than ${limit} bytes`, retryable: false })

/** Bytes that are read in one go. What is longer is counted as it comes. */
const smallBody = 1024 * 1024

/**
 * Builds the HTTP of one endpoint over the application's client.
 *
 * **Details**
 *
 * Nothing is sent twice, and no redirect is followed: clients over `node:http` and Undici hand them out, the one over `fetch` is told to.
 *
 * @category constructors
 * @since 0.1.0
 */
export const make = Effect.fnUntraced(function*(
  options: Options
): Effect.fn.Return<EndpointHttp, never, HttpClient.HttpClient> {
  const client = yield* HttpClient.HttpClient
  const requestInit = Option.getOrElse(yield* Effect.serviceOption(FetchHttpClient.RequestInit), () => ({}))
  const traced = Context.make(FetchHttpClient.RequestInit, { ...requestInit, redirect: "manual" as const })
  // A span of its own captures a stack.
  const untraced = Context.add(traced, HttpClient.TracerDisabledWhen, constTrue)
  const responseTimeout = Duration.toMillis(options.responseTimeout ?? "10 minutes")
  const idleTimeout = Duration.toMillis(options.idleTimeout ?? "5 minutes")
  const listTimeout = Duration.toMillis(options.listTimeout ?? "5 seconds")
  const key = options.apiKey
  const base = options.baseUrl.replace(/\/+$/, "")

  const clean = (text: string): string =>
    excerpt(key === undefined || Redacted.value(key) === "" ? text : text.replaceAll(Redacted.value(key), "<redacted>"))

  const addressed = (request: HttpClientRequest.HttpClientRequest): HttpClientRequest.HttpClientRequest =>
    key === undefined ? request : HttpClientRequest.bearerToken(request, key)

  const address = (path: string): string => path.startsWith("/") ? `${base}${path}` : path

  const isReachable = isWebAddress(base)

  const transport = (error: HttpClientError): BackendReason => {
    if (isUnconnected(error)) {
      return new Unreachable({ detail: `It cannot be reached: ${describe(error)}. Check that it runs` })
    }
    return new EngineFailed({ detail: `The connection failed: ${describe(error)}. Try again`, retryable: true })
  }

  /** The head of an answer with status 2xx. */
  const send = (
    request: HttpClientRequest.HttpClientRequest,
    model: string | undefined
  ): Effect.Effect<HttpClientResponse, BackendReason> => {
    if (!(request.url.startsWith(base) ? isReachable : isWebAddress(request.url))) {
      return Effect.fail(
        new EngineFailed({ detail: "Its address is no http or https address. Check its base URL", retryable: false })
      )
    }
    return Effect.contextWith((context: Context.Context<never>) =>
      client.execute(request).pipe(
        Effect.provideContext(Context.getOrUndefined(context, Tracer.ParentSpan) === undefined ? untraced : traced),
        Effect.mapError(transport),
        Effect.flatMap((response) =>
          response.status >= 200 && response.status < 300 ? Effect.succeed(response) : failed(response, model)
        )
      )
    )
  }

  const body = (response: HttpClientResponse): Stream.Stream<Uint8Array, BackendReason> =>
    Stream.transformPull(Stream.mapError(response.stream, transport), (pull) =>
      Effect.succeed(
        Effect.timeoutOrElse(pull, { duration: idleTimeout, orElse: () => Effect.fail(silent(idleTimeout)) })
      ))

  /** The bytes of a body, and whether there are more than `limit`. */
  const take = Effect.fnUntraced(function*(response: HttpClientResponse, limit: number) {
    const chunks: Array<Uint8Array> = []
    let length = 0
    yield* Stream.runForEachWhile(body(response), (chunk) => {
      chunks.push(chunk)
      length += chunk.length
      return Effect.succeed(length <= limit)
    })
    return { bytes: concat(chunks), truncated: length > limit }
  })

  const failed = Effect.fnUntraced(function*(response: HttpClientResponse, model: string | undefined) {
    const answer = yield* take(response, maxErrorBytes).pipe(
      Effect.map(({ bytes }) => new TextDecoder().decode(bytes)),
      Effect.timeoutOption(maxErrorTime),
      // What it says of its status does not change that.
      Effect.orElseSucceed(() => Option.none<string>())
    )
    const text = Option.getOrElse(answer, () => "")
    const { code, message } = said(Result.getOrElse(Wire.parse(text), () => text))
    const retryAfter = retryAfterOf(response.headers, yield* Clock.currentTimeMillis)
    return yield* reasonOf(response.status, { code, message: clean(message), status: undefined }, retryAfter, model)
  })

  const begin = (
    request: HttpClientRequest.HttpClientRequest,
    model: string | undefined,
    timeout: number
  ): Effect.Effect<HttpClientResponse, BackendReason> =>
    Effect.timeoutOrElse(send(request, model), { duration: timeout, orElse: () => Effect.fail(late(timeout)) })

  const whole = (response: HttpClientResponse, limit: number): Effect.Effect<Uint8Array, BackendReason> => {
    const announced = Number(response.headers["content-length"])
    // Begun, so that its connection is closed.
    if (announced > limit) return Effect.andThen(take(response, 0), Effect.fail(tooLong(limit)))
    if (announced <= smallBody) {
      return Effect.timeoutOrElse(
        Effect.map(Effect.mapError(response.arrayBuffer, transport), (buffer) => new Uint8Array(buffer)),
        { duration: idleTimeout, orElse: () => Effect.fail(silent(idleTimeout)) }
      )
    }
    return Effect.flatMap(
      take(response, limit),
      ({ bytes, truncated }) => truncated ? Effect.fail(tooLong(limit)) : Effect.succeed(bytes)
    )
  }

  const json = <S extends Schema.ConstraintDecoder<unknown, never>>(
    request: HttpClientRequest.HttpClientRequest,
    schema: S,
    model: string | undefined,
    timeout: number
  ): Effect.Effect<S["Type"], BackendReason> =>
    Effect.flatMap(
      begin(request, model, timeout),
      (response) =>
        Effect.flatMap(whole(response, maxJsonBytes), (bytes) => {
          const decoded = Wire.decoder(schema)(new TextDecoder().decode(bytes))
          return Result.isSuccess(decoded) ? Effect.succeed(decoded.success) : Effect.fail(
            new EngineFailed({
              detail: `Its answer cannot be read: ${clean(decoded.failure.message)}`,
              retryable: false
            })
          )
        })
    )

  return {
    get: (path) => addressed(HttpClientRequest.get(address(path))),
    form: (path, form) => addressed(HttpClientRequest.bodyFormData(HttpClientRequest.post(address(path)), form)),
    del: (path) => addressed(HttpClientRequest.delete(address(path))),
    post: (path, json) => addressed(HttpClientRequest.bodyJsonUnsafe(HttpClientRequest.post(address(path)), json)),
    bytes: (request, limit, model) =>
      Effect.flatMap(
        begin(request, model, responseTimeout),
        (response) =>
          Effect.map(whole(response, limit), (bytes) => ({
            bytes,
            type: response.headers["content-type"] ?? "application/octet-stream"
          }))
      ),
    json: (request, schema, model) => json(request, schema, model, responseTimeout),
    list: (path, schema) => json(addressed(HttpClientRequest.get(address(path))), schema, undefined, listTimeout),
    stream: (request, model) => Stream.unwrap(Effect.map(begin(request, model, responseTimeout), body)),
    reason: (error, model) => {
      const { code, message, status } = said(error)
      return reasonOf(status ?? statusOfCode(code), { code, message: clean(message), status }, undefined, model)
    },
    clean
  }
})
