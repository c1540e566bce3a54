/**
 * What HTTP clients say of requests and answers: short, and without what is secret in them.
 *
 * @since 0.1.0
 */
import type { HttpClientError } from "effect/http/HttpClientError"
import type { HttpClientRequest } from "effect/http/HttpClientRequest"
import * as Predicate from "effect/Predicate"

/**
 * The first line of what a server wrote, short enough for a message.
 *
 * @internal
 */
export const excerpt = (text: string): string => {
  const line = text.replaceAll(/\s+/g, " ").trim()
  return line.length > 300 ? `${line.slice(0, 300)}...` : line
}

/**
 * The innermost cause of an error: what the system said.
 *
 * @internal
 */
export const rootCause = (error: { readonly cause?: unknown }): unknown => {
  let cause: unknown = error.cause
  while (Predicate.hasProperty(cause, "cause") && cause.cause !== undefined) cause = cause.cause
  return cause
}

/**
 * What went wrong on the way. Only what the system says: a client's error also holds the request, and with it the token.
 *
 * @internal
 */
export const describe = (error: HttpClientError): string => {
  const cause = rootCause(error)
  if (Predicate.isError(cause)) {
    const code = "code" in cause && Predicate.isString(cause.code) ? cause.code : undefined
    return code === undefined || cause.message.includes(code) ? cause.message : `${code} ${cause.message}`
  }
  return error.reason._tag
}

/** @internal */
export const isWebAddress = (url: string): boolean => URL.canParse(url) && /^https?:$/.test(new URL(url).protocol)

/**
 * The host and port that a request goes to: all of its address that is fit for a message, since the rest may be signed.
 *
 * @internal
 */
export const hostOf = (request: HttpClientRequest): string =>
  URL.canParse(request.url) ? new URL(request.url).host : request.url

/** @internal */
export const concat = (chunks: ReadonlyArray<Uint8Array>): Uint8Array => {
  const bytes = new Uint8Array(chunks.reduce((sum, chunk) => sum + chunk.length, 0))
  let offset = 0
  for (const chunk of chunks) {
    bytes.set(chunk, offset)
    offset += chunk.length
  }
  return bytes
}
