/**
 * One POST to a server that is not trusted: bounded in time and in what is read of the answer, without redirects, and without an
 * address or a header in what goes wrong.
 *
 * @since 0.1.0
 */
import * as Clock from "effect/Clock"
import * as Context from "effect/Context"
import type * as Duration from "effect/Duration"
import * as Effect from "effect/Effect"
import { constTrue } from "effect/Function"
import * as FetchHttpClient from "effect/http/FetchHttpClient"
import * as Headers from "effect/http/Headers"
import * as HttpClient from "effect/http/HttpClient"
import type { HttpClientRequest } from "effect/http/HttpClientRequest"
import type { HttpClientResponse } from "effect/http/HttpClientResponse"
import * as Option from "effect/Option"
import * as Predicate from "effect/Predicate"
import * as Result from "effect/Result"
import * as Stream from "effect/Stream"
import * as Execution from "../Execution.ts"
import { publishing } from "./publishing.ts"

/** @internal */
export interface Answer {
  readonly status: number
  /** The answer is that of another address: the client has followed a redirect. */
  readonly redirected: boolean
  /** How long the server asks to wait, by `Retry-After`. */
  readonly retryAfter: Duration.Duration | undefined
  /** The beginning of the body, as far as it came in time. */
  readonly text: string
}

/**
 * No answer came. `code` is the system's or the TLS library's, such as `ECONNREFUSED`, or the name of an error without one; it holds no secret.
 *
 * @internal
 */
export type Failure =
  | { readonly _tag: "Unreachable"; readonly code: string }
  | { readonly _tag: "Tls"; readonly code: string }
  | { readonly _tag: "TimedOut" }

/** @internal */
export type Post = (request: HttpClientRequest, timeout: Duration.Duration) => Effect.Effect<Answer, Failure>

// Nothing in an answer's body changes its meaning. It is read so that the connection can be used again, where that costs little.
const maxBodyBytes = 64 * 1024
const maxBodyTime = "1 second"

/** Source: "X509 certificate error codes" in the documentation of `node:tls`, and the prefixes of Node's own codes. */
const tlsCode = new RegExp(
  "^(ERR_TLS_|ERR_SSL_|EPROTO$|CERT_|CRL_|UNABLE_TO_|DEPTH_ZERO_|SELF_SIGNED_|ERROR_IN_C|INVALID_CA$|INVALID_PURPOSE$" +
    "|PATH_LENGTH_EXCEEDED$|HOSTNAME_MISMATCH$)"
)

/**
 * The first code among the causes of an error, or the name of the last one. Their messages hold addresses.
 *
 * @internal
 */
export const codeOf = (error: unknown): string => {
  let cause = error
  let name = "unknown error"
  for (let depth = 0; depth < 8 && Predicate.isObject(cause); depth++) {
    if (typeof cause["code"] === "string") return cause["code"]
    if (typeof cause["name"] === "string") name = cause["name"]
    cause = cause["cause"]
  }
  return name
}

const failureOf = (error: unknown): Failure => {
  const code = codeOf(error)
  return tlsCode.test(code) ? { _tag: "Tls", code } : { _tag: "Unreachable", code }
}

const textOf = (response: HttpClientResponse): Effect.Effect<string> =>
  Effect.suspend(() => {
    const chunks: Array<Uint8Array> = []
    let length = 0
    return Stream.runForEachWhile(response.stream, (chunk) =>
      Effect.sync(() => {
        chunks.push(chunk)
        length += chunk.length
        return length < maxBodyBytes
      })).pipe(
        Effect.timeoutOption(maxBodyTime),
        // A body that breaks, or never ends, does not change what the status says.
        Effect.exit,
        Effect.map(() => Buffer.concat(chunks).toString("utf8", 0, maxBodyBytes))
      )
  })

const retryAfterOf = (response: HttpClientResponse, now: number): Duration.Duration | undefined => {
  const value = response.headers["retry-after"]
  const parsed = value === undefined ? undefined : Headers.parseRetryAfter(value)
  return parsed === undefined || Result.isFailure(parsed) ? undefined : Headers.retryAfterDelay(parsed.success, now)
}

/**
 * Takes the application's client.
 *
 * Redirects are not followed: clients over `node:http` and Undici hand them out, the one over `fetch` is told to by `RequestInit`. A
 * client that the application has wrapped in `HttpClient.followRedirects` cannot be told; then the answer says so. Requests make no
 * spans, as those would show the whole address, and no events.
 *
 * @internal
 */
export const make: Effect.Effect<Post, never, HttpClient.HttpClient> = Effect.gen(function*() {
  const client = HttpClient.withScope(yield* HttpClient.HttpClient)
  const requestInit = Option.getOrElse(yield* Effect.serviceOption(FetchHttpClient.RequestInit), () => ({}))
  const services = Context.make(FetchHttpClient.RequestInit, { ...requestInit, redirect: "manual" as const }).pipe(
    // Without this the client tells the server of a span, even of one that is not recorded.
    Context.add(HttpClient.TracerDisabledWhen, constTrue),
    Context.add(Execution.Surroundings, publishing)
  )
  return (request, timeout) =>
    Effect.scoped(Effect.gen(function*() {
      const response = yield* client.execute(request).pipe(
        Effect.mapError(failureOf),
        // A client of the application's own may die.
        Effect.catchDefect((defect) => Effect.fail(failureOf(defect))),
        Effect.timeoutOrElse({ duration: timeout, orElse: () => Effect.fail<Failure>({ _tag: "TimedOut" }) })
      )
      return {
        status: response.status,
        redirected: response.request.url !== request.url,
        retryAfter: retryAfterOf(response, yield* Clock.currentTimeMillis),
        text: yield* textOf(response)
      }
    })).pipe(
      Effect.provideContext(services),
      Effect.withTracerEnabled(false)
    )
})
