/**
 * Addresses of servers in messages, where credentials have no place.
 *
 * @since 0.1.0
 */
import * as Predicate from "effect/Predicate"
import { describe } from "./brokers.ts"

/** Where the part of an address begins that can hold credentials. */
const authorityAt = (address: string): number => {
  const at = address.indexOf("://")
  return at === -1 ? 0 : at + 3
}

const parse = (address: string): URL | undefined => {
  const at = authorityAt(address)
  const text = `${at === 0 ? "any://" : address.slice(0, at)}${address.slice(at)}`
  return URL.canParse(text) ? new URL(text) : undefined
}

/**
 * An address without its user and password; `undefined` where it cannot be told what of it they are. A `/`, `?` or `#` in a password that is
 * not percent-encoded ends the authority, and the pieces of the password look like a host, a port or a path.
 *
 * @internal
 */
export const withoutCredentials = (address: string): string | undefined => {
  const url = parse(address)
  if (url === undefined) return undefined
  const { hash, host, pathname, search } = url
  return host === "" || `${pathname}${search}${hash}`.includes("@")
    ? undefined
    : `${address.slice(0, authorityAt(address))}${host}${pathname}`
}

const decoded = (part: string): string => {
  try {
    return decodeURIComponent(part)
  } catch {
    return part
  }
}

/**
 * The user and the password of an address, each the empty string where there is none.
 *
 * @internal
 */
export const credentialsOf = (address: string): { readonly user: string; readonly password: string } => {
  const { password = "", username = "" } = parse(address) ?? {}
  return { user: decoded(username), password: decoded(password) }
}

const unusable =
  "the client cannot use the address. Percent-encode what is special in its user and password (encodeURIComponent)"

/** Whether an error, or what caused it, repeats one of the texts, or the input of `URL`. */
const repeats = (thrown: unknown, secrets: ReadonlyArray<string>): boolean =>
  Predicate.isError(thrown) &&
  ("input" in thrown || secrets.some((secret) => thrown.message.includes(secret)) || repeats(thrown.cause, secrets))

/**
 * What may be told of a client that did not connect: the addresses without credentials, and what it threw, unless that repeats them.
 *
 * @internal
 */
export const tell = (
  addresses: ReadonlyArray<string>,
  thrown: unknown
): { readonly addresses: ReadonlyArray<string>; readonly detail: string; readonly cause: unknown } => {
  const shown = addresses.map(withoutCredentials)
  const secrets = addresses.map((address) => address.slice(authorityAt(address))).filter((part) => part.includes("@"))
  const hides = shown.includes(undefined) || repeats(thrown, secrets)
  return {
    addresses: shown.map((address) => address ?? "(hidden)"),
    detail: hides ? unusable : describe(thrown),
    cause: hides ? new Error(unusable) : thrown
  }
}
