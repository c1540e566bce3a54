/**
 * The HTTP that the hub clients share: requests that follow redirects without taking secrets along, timeouts on
 * silence instead of on the whole, retries that respect `Retry-After`, and answers that are decoded by Schema.
 *
 * @since 0.1.0
 */
import * as Clock from "effect/Clock"
import * as Context from "effect/Context"
import * as Duration from "effect/Duration"
import * as Effect from "effect/Effect"
import { constFalse } from "effect/Function"
import * as FetchHttpClient from "effect/http/FetchHttpClient"
import type * as Headers from "effect/http/Headers"
import * as HttpClient from "effect/http/HttpClient"
import type { HttpClientError } from "effect/http/HttpClientError"
import type { HttpClientRequest } from "effect/http/HttpClientRequest"
import type { HttpClientResponse } from "effect/http/HttpClientResponse"
import * as Option from "effect/Option"
import * as Pull from "effect/Pull"
import * as Result from "effect/Result"
import * as Schedule from "effect/Schedule"
import * as Schema from "effect/Schema"
import type * as Scope from "effect/Scope"
import * as Stream from "effect/Stream"
import { concat, describe, excerpt, hostOf, isWebAddress } from "../internal/httpText.ts"
import {
  type HubReason,
  InvalidAddress,
  InvalidResponse,
  Network,
  RateLimited,
  Timeout,
  Unauthorized,
  Upstream
} from "./HubError.ts"

/**
 * How the hub clients use the network.
 *
 * @category models
 * @since 0.1.0
 */
export interface HttpOptions {
  /** How long a hub may take to begin its answer, redirects and connecting included. Default: 30 seconds. */
  readonly responseTimeout?: Duration.Input | undefined
  /** How long an answer may pause once it has begun. The whole may take any time. Default: 1 minute. */
  readonly idleTimeout?: Duration.Input | undefined
  /**
   * When to try again after a broken connection, a timeout, or a status that says "later". Default: 5 times, at first
   * after half a second, then after twice as long each time. A mebibyte of progress begins the schedule anew.
   */
  readonly retry?: Schedule.Schedule<unknown, HubReason> | undefined
  /** The longest `Retry-After` that is waited out; a longer one fails with `RateLimited`. Default: 30 seconds. */
  readonly maxRetryAfter?: Duration.Input | undefined
}

/**
 * Turns an answer other than 2xx into a reason. `text` is the beginning of the body.
 *
 * @category models
 * @since 0.1.0
 */
export type OnStatus = (status: number, headers: Headers.Headers, text: string) => HubReason

/**
 * What a hub client asks of the network.
 *
 * @category models
 * @since 0.1.0
 */
export interface HubHttp {
  /**
   * Sends a request and succeeds when the head of the answer is there, whatever its status. The connection closes
   * with the scope, also in the middle of the body.
   */
  readonly open: (request: HttpClientRequest) => Effect.Effect<HttpClientResponse, HubReason, Scope.Scope>
  /** The body as it arrives; fails when it pauses for longer than the idle timeout. */
  readonly body: (response: HttpClientResponse) => Stream.Stream<Uint8Array, HubReason>
  /** Fails with what an answer other than 2xx stands for, by the beginning of its body. */
  readonly fail: (response: HttpClientResponse, onStatus: OnStatus) => Effect.Effect<never, HubReason>
  /** Sends a request, with retries, and decodes the JSON of its answer. */
  readonly json: <S extends Schema.ConstraintDecoder<unknown, never>>(
    request: HttpClientRequest,
    schema: S,
    onStatus: OnStatus
  ) => Effect.Effect<{ readonly value: S["Type"]; readonly headers: Headers.Headers }, HubReason>
  /** Repeats what failed for a passing reason, by the retry schedule; `progressed` says that the schedule begins anew. */
  readonly retry: <A, R>(
    attempt: Effect.Effect<A, HubReason, R>,
    progressed?: () => boolean
  ) => Effect.Effect<A, HubReason, R>
}

const maxRedirects = 5
// A listing of ten thousand files has some 2 MB; what is larger is not metadata.
const maxJsonBytes = 64 * 1024 * 1024
const maxErrorBytes = 4096

/**
 * The reason that a status stands for on every hub, where the hub says nothing more exact.
 *
 * @category models
 * @since 0.1.0
 */
export const statusReason: OnStatus = (status, _headers, text) =>
  status === 401 || status === 403
    ? new Unauthorized({ detail: `HTTP ${status}` })
    : new Upstream({ status, detail: excerpt(text) || "no message" })

// RFC 9110, section 10.2.3: seconds, or a date. The Hugging Face Hub also sends `RateLimit: "api";r=0;t=55`, with the
// seconds until its window begins anew (IETF draft-ietf-httpapi-ratelimit-headers).
const retryAfter = (headers: Headers.Headers, now: number): number | undefined => {
  const value = headers["retry-after"]?.trim()
  if (value !== undefined && /^\d+$/.test(value)) return Math.min(Number(value), Number.MAX_SAFE_INTEGER)
  const date = value === undefined ? Number.NaN : Date.parse(value)
  if (!Number.isNaN(date)) return Math.max(0, Math.ceil((date - now) / 1000))
  const window = /;\s*t=(\d+)/.exec(headers["ratelimit"] ?? "")
  return window === null ? undefined : Math.min(Number(window[1]), Number.MAX_SAFE_INTEGER)
}

const originOf = (url: string): string => {
  if (!URL.canParse(url)) return url
  const { host, protocol } = new URL(url)
  return `${protocol}//${host}`
}

/**
 * Builds the shared HTTP over the application's `HttpClient`.
 *
 * **Details**
 *
 * Redirects are followed here, hop by hop and at most five times, and `Authorization` and `Cookie` are dropped as soon
 * as the origin changes. That holds for every client that hands redirects out: those over `node:http` and Undici do so
 * always, the one over `fetch` is told to by `FetchHttpClient.RequestInit`.
 *
 * **Gotchas**
 *
 * A `RequestInit` that the fetch layer was built with gives way to this one. To use one of your own, say with a proxy,
 * provide it where this effect runs: it is taken over, with `redirect: "manual"`.
 *
 * @category constructors
 * @since 0.1.0
 */
export const make = Effect.fnUntraced(function*(
  options: HttpOptions
): Effect.fn.Return<HubHttp, never, HttpClient.HttpClient> {
  const client = (yield* HttpClient.HttpClient).pipe(
    HttpClient.withScope,
    // For every hop: a client may die of a scheme that it does not know.
    HttpClient.transform((
      effect,
      request
    ): Effect.Effect<HttpClientResponse, HttpClientError | InvalidAddress, Scope.Scope> =>
      isWebAddress(request.url) ? effect : Effect.fail(new InvalidAddress({ address: originOf(request.url) }))
    ),
    HttpClient.followRedirects(maxRedirects)
  )
  const requestInit = Option.getOrElse(yield* Effect.serviceOption(FetchHttpClient.RequestInit), () => ({}))
  const fetchByHand = Context.make(FetchHttpClient.RequestInit, { ...requestInit, redirect: "manual" })
  const responseTimeout = Duration.fromInputUnsafe(options.responseTimeout ?? "30 seconds")
  const idleTimeout = Duration.fromInputUnsafe(options.idleTimeout ?? "1 minute")
  const maxRetryAfter = Duration.toSeconds(options.maxRetryAfter ?? "30 seconds")
  const schedule: Schedule.Schedule<unknown, HubReason> = options.retry ?? Schedule.exponential("500 millis").pipe(
    Schedule.jittered,
    Schedule.upTo({ times: 5 })
  )

  const open: HubHttp["open"] = (request) =>
    client.execute(request).pipe(
      Effect.provide(fetchByHand),
      Effect.catchTag(
        "HttpClientError",
        (error) => Effect.fail(new Network({ host: hostOf(error.request), description: describe(error) }))
      ),
      Effect.timeoutOrElse({
        duration: responseTimeout,
        orElse: () =>
          Effect.fail(
            new Timeout({
              host: hostOf(request),
              waiting_for: "response",
              after_seconds: Duration.toSeconds(responseTimeout)
            })
          )
      })
    )

  const body: HubHttp["body"] = (response) =>
    response.stream.pipe(
      Stream.mapError((error) => new Network({ host: hostOf(response.request), description: describe(error) })),
      Stream.timeoutOrElse({
        duration: idleTimeout,
        orElse: () =>
          Stream.fail(
            new Timeout({
              host: hostOf(response.request),
              waiting_for: "data",
              after_seconds: Duration.toSeconds(idleTimeout)
            })
          )
      })
    )

  const text = Effect.fnUntraced(function*(response: HttpClientResponse, limit: number) {
    const chunks: Array<Uint8Array> = []
    let length = 0
    yield* Stream.runForEachWhile(body(response), (chunk) =>
      Effect.sync(() => {
        chunks.push(chunk)
        length += chunk.length
        return length <= limit
      }))
    return { text: new TextDecoder().decode(concat(chunks)), truncated: length > limit }
  })

  const fail: HubHttp["fail"] = Effect.fnUntraced(function*(response, onStatus) {
    const said = yield* Effect.orElseSucceed(text(response, maxErrorBytes), () => ({ text: "" }))
    if (response.status === 429) {
      const seconds = retryAfter(response.headers, yield* Clock.currentTimeMillis)
      return yield* new RateLimited({ retry_after_seconds: seconds })
    }
    return yield* onStatus(response.status, response.headers, said.text)
  })

  // Undefined: trying again is no use, or not before a time that is the caller's to spend.
  const wait = (reason: HubReason): Duration.Duration | undefined => {
    switch (reason._tag) {
      case "Network":
      case "Timeout":
        return Duration.zero
      case "Upstream":
        return reason.retryable ? Duration.zero : undefined
      case "RateLimited":
        return reason.retry_after_seconds !== undefined && reason.retry_after_seconds <= maxRetryAfter
          ? Duration.seconds(reason.retry_after_seconds)
          : undefined
      default:
        return undefined
    }
  }

  const retry: HubHttp["retry"] = Effect.fnUntraced(function*(attempt, progressed = constFalse) {
    let next = yield* Schedule.toStepWithSleep(schedule)
    while (true) {
      const result = yield* Effect.result(attempt)
      if (Result.isSuccess(result)) return result.success
      const pause = wait(result.failure)
      if (pause === undefined) return yield* result.failure
      if (progressed()) next = yield* Schedule.toStepWithSleep(schedule)
      const again = yield* next(result.failure).pipe(
        Effect.as(true),
        Pull.catchDone(() => Effect.succeed(false))
      )
      if (!again) return yield* result.failure
      if (Duration.isGreaterThan(pause, Duration.zero)) yield* Effect.sleep(pause)
    }
  })

  const json: HubHttp["json"] = Effect.fnUntraced(function*(request, schema, onStatus) {
    const invalid = (description: string) => new InvalidResponse({ host: hostOf(request), description })
    const attempt = Effect.gen(function*() {
      const response = yield* open(request)
      if (response.status < 200 || response.status >= 300) {
        return yield* fail(response, onStatus)
      }
      return { ...(yield* text(response, maxJsonBytes)), headers: response.headers }
    })
    const answer = yield* retry(Effect.scoped(attempt))
    if (answer.truncated) return yield* invalid(`it has more than ${maxJsonBytes} bytes`)
    const value = yield* Effect.mapError(
      Schema.decodeEffect(Schema.fromJsonString(schema))(answer.text),
      (error) => invalid(excerpt(error.message))
    )
    return { value, headers: answer.headers }
  })

  return { open, body, fail, json, retry }
})
