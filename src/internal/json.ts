/**
 * Any value as JSON: bounded in size and depth, and never failing.
 *
 * Serialisers meet values that no Schema describes: inputs of plain functions, defects, causes. What JSON cannot say becomes
 * a marker in its place, so that one odd value never costs an event.
 *
 * @since 0.1.0
 */
import * as Predicate from "effect/Predicate"
import * as Redacted from "effect/Redacted"
import type * as Schema from "effect/Schema"
import { createHash } from "node:crypto"

/**
 * Bounds of what one event may hold.
 *
 * @internal
 */
export interface Limits {
  /** Longest string or blob, in bytes of UTF-8; longer ones become `{ $truncated, bytes, sha256 }`. */
  readonly maxFieldBytes: number
  /** Most entries of one array or object; larger ones become `{ $truncated, items }`. */
  readonly maxItems: number
}

/** @internal */
export const defaultLimits: Limits = { maxFieldBytes: 64 * 1024, maxItems: 10_000 }

/** Deeper than this, a value is cut: far from any stack limit, far above any sensible payload. */
const maxDepth = 64

/** @internal */
export const redacted = "<redacted>"

/** @internal */
export const unencodable = (reason: string): Schema.Json => ({ $unencodable: reason })

const truncatedBytes = (bytes: number, content: string | Uint8Array): Schema.Json => ({
  $truncated: true,
  bytes,
  sha256: createHash("sha256").update(content).digest("hex")
})

const truncatedItems = (items: number): Schema.Json => ({ $truncated: true, items })

const text = (value: string, limits: Limits): Schema.Json => {
  // A UTF-16 unit is at most three bytes of UTF-8: short strings need no count.
  if (value.length * 3 <= limits.maxFieldBytes) return value
  const bytes = Buffer.byteLength(value)
  return bytes <= limits.maxFieldBytes ? value : truncatedBytes(bytes, value)
}

const blob = (value: Uint8Array, limits: Limits): Schema.Json =>
  value.byteLength <= limits.maxFieldBytes
    ? Buffer.from(value.buffer, value.byteOffset, value.byteLength).toString("base64")
    : truncatedBytes(value.byteLength, value)

// `__proto__` as an own key has to stay a key.
const assign = (target: Record<string, Schema.Json>, key: string, value: Schema.Json): void => {
  if (key === "__proto__") {
    Object.defineProperty(target, key, { value, enumerable: true, configurable: true, writable: true })
  } else {
    target[key] = value
  }
}

const describe = (thrown: unknown): string => {
  try {
    return thrown instanceof Error ? thrown.message : String(thrown)
  } catch {
    return "a value that cannot be described"
  }
}

/**
 * Shapes: `undefined` is left out of objects and `null` in arrays; bigint is a decimal string; NaN and the infinities are
 * their names; a Date is RFC 3339; a Map is a list of pairs, a Set a list; bytes are base64; an Error is name and message;
 * a `Redacted` is `<redacted>`; an object with `toJSON` is what that returns. A cycle, a function, a symbol, a getter that
 * throws and anything deeper than 64 levels is `{ "$unencodable": reason }`.
 *
 * @internal
 */
export const fromUnknown = (value: unknown, limits: Limits): Schema.Json => walk(value, limits, [])

const walk = (value: unknown, limits: Limits, path: Array<object>): Schema.Json => {
  switch (typeof value) {
    case "string":
      return text(value, limits)
    case "number":
      return Number.isFinite(value) ? (Object.is(value, -0) ? 0 : value) : String(value)
    case "boolean":
      return value
    case "bigint":
      return String(value)
    case "undefined":
      return null
    case "object":
      return value === null ? null : walkObject(value, limits, path)
    default:
      return unencodable(`a ${typeof value}`)
  }
}

const walkObject = (value: object, limits: Limits, path: Array<object>): Schema.Json => {
  if (path.includes(value)) return unencodable("a cycle")
  if (path.length >= maxDepth) return unencodable(`nested deeper than ${maxDepth} levels`)
  path.push(value)
  try {
    return walkKnown(value, limits, path)
  } catch (thrown) {
    return unencodable(describe(thrown))
  } finally {
    path.pop()
  }
}

const walkKnown = (value: object, limits: Limits, path: Array<object>): Schema.Json => {
  if (Redacted.isRedacted(value)) return redacted
  if (Array.isArray(value)) return walkList(value, value.length, limits, path)
  if (value instanceof Uint8Array) return blob(value, limits)
  if (value instanceof ArrayBuffer) return blob(new Uint8Array(value), limits)
  if (value instanceof Map || value instanceof Set) return walkList(value, value.size, limits, path)
  if (Predicate.hasProperty(value, "toJSON") && typeof value.toJSON === "function") {
    return walk(value.toJSON(), limits, path)
  }
  if (value instanceof Error) return { name: text(value.name, limits), message: text(value.message, limits) }
  const keys = Object.keys(value)
  if (keys.length > limits.maxItems) return truncatedItems(keys.length)
  const out: Record<string, Schema.Json> = {}
  for (const key of keys) {
    const entry = property(value, key)
    if (entry._tag === "thrown") assign(out, key, unencodable(entry.reason))
    else if (entry.value !== undefined) assign(out, key, walk(entry.value, limits, path))
  }
  return out
}

const walkList = (
  values: Iterable<unknown>,
  size: number,
  limits: Limits,
  path: Array<object>
): Schema.Json => size > limits.maxItems ? truncatedItems(size) : Array.from(values, (item) => walk(item, limits, path))

/**
 * Reads a property that may be a getter that throws.
 *
 * @internal
 */
export const property = (
  target: object,
  key: PropertyKey
): { readonly _tag: "value"; readonly value: unknown } | { readonly _tag: "thrown"; readonly reason: string } => {
  try {
    return { _tag: "value", value: Reflect.get(target, key) }
  } catch (thrown) {
    return { _tag: "thrown", reason: describe(thrown) }
  }
}
