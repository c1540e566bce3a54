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

/**
 * Entries of all arrays and objects of one value together. A graph whose parts are shared has far more paths than parts, and is
 * written out path by path.
 */
const maxEntries = 100_000

/** @internal */
export const redacted = "<redacted>"

/** Reasons come out of thrown errors, too: longer ones are told by their length. */
const longestReason = 1000

/** @internal */
export const unencodable = (reason: string): Schema.Json => ({
  $unencodable: reason.length <= longestReason ? reason : `a reason of ${reason.length} characters`
})

const truncatedBytes = (bytes: number, content: string | Uint8Array): Schema.Json => ({
  $truncated: true,
  bytes,
  sha256: createHash("sha256").update(content).digest("hex")
})

/**
 * What is shown of a value where there is no room for it: all of it up to a kibibyte, else the size and the hash of its text, which is its JSON
 * where it is no string.
 *
 * @internal
 */
export const outline = (value: Schema.Json): Schema.Json => {
  const content = typeof value === "string" ? value : JSON.stringify(value)
  const bytes = Buffer.byteLength(content)
  return bytes > 1024 ? truncatedBytes(bytes, content) : value
}

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

const assign = (target: Record<string, Schema.Json>, key: string, value: Schema.Json, limits: Limits): void => {
  const shown = text(key, limits)
  const name = typeof shown === "string" ? shown : JSON.stringify(shown)
  // `__proto__` as an own key has to stay a key.
  if (name === "__proto__") {
    Object.defineProperty(target, name, { value, enumerable: true, configurable: true, writable: true })
  } else {
    target[name] = value
  }
}

/**
 * What was thrown, in words. Never throws itself.
 *
 * @internal
 */
export const describe = (thrown: unknown): string => {
  try {
    return String(thrown instanceof Error ? thrown.message : thrown)
  } catch {
    return "a value that cannot be described"
  }
}

/**
 * Shapes: `undefined` is left out of objects and `null` in arrays; bigint is a decimal string; NaN and the infinities are
 * their names; a Date is RFC 3339; a Map is a list of pairs, a Set and a typed array a list; bytes are base64; an Error is name
 * and message; a `Redacted` is `<redacted>`; an object with `toJSON` is what that returns. A cycle, a function, a symbol, an
 * invalid Date, a getter that throws and anything deeper than 64 levels is `{ "$unencodable": reason }`. Once a value has shown
 * 100,000 entries in all, every further array or object of it is `{ $truncated, items }`.
 *
 * @internal
 */
export const fromUnknown = (value: unknown, limits: Limits): Schema.Json => walk(value, start(limits))

/**
 * Where in a value its encoding is.
 *
 * @internal
 */
export interface Walk {
  readonly limits: Limits
  /** The objects around the place, outermost first. */
  readonly path: Array<object>
  entriesLeft: number
}

/** @internal */
export const start = (limits: Limits): Walk => ({ limits, path: [], entriesLeft: maxEntries })

/**
 * `fromUnknown`, for a part of a value.
 *
 * @internal
 */
export const walk = (value: unknown, state: Walk): Schema.Json => {
  switch (typeof value) {
    case "string":
      return text(value, state.limits)
    case "number":
      return Number.isFinite(value) ? (Object.is(value, -0) ? 0 : value) : String(value)
    case "boolean":
      return value
    case "bigint":
      return String(value)
    case "undefined":
      return null
    case "object":
      return value === null ? null : walkObject(value, state)
    default:
      return unencodable(`a ${typeof value}`)
  }
}

/**
 * Encodes an object by a function that encodes its parts. A cycle, a place that is too deep, and whatever is thrown on the way,
 * are a marker instead.
 *
 * @internal
 */
export const inside = (value: object, state: Walk, encode: () => Schema.Json): Schema.Json => {
  const { path } = state
  if (path.includes(value)) return unencodable("a cycle")
  if (path.length >= maxDepth) return unencodable(`nested deeper than ${maxDepth} levels`)
  path.push(value)
  try {
    return encode()
  } catch (thrown) {
    return unencodable(describe(thrown))
  } finally {
    path.pop()
  }
}

const walkObject = (value: object, state: Walk): Schema.Json => inside(value, state, () => walkKnown(value, state))

const walkKnown = (value: object, state: Walk): Schema.Json => {
  const { limits } = state
  if (Redacted.isRedacted(value)) return redacted
  if (Array.isArray(value)) return walkArray(value, state)
  if (value instanceof Uint8Array) return blob(value, limits)
  if (value instanceof ArrayBuffer) return blob(new Uint8Array(value), limits)
  if (value instanceof DataView) return blob(new Uint8Array(value.buffer, value.byteOffset, value.byteLength), limits)
  // What is left of the views are typed arrays: of numbers or bigints, with a length, as an array has them.
  if (ArrayBuffer.isView(value)) return walkArray(value as unknown as ReadonlyArray<unknown>, state)
  if (value instanceof Map || value instanceof Set) {
    return value.size > limits.maxItems ? truncatedItems(value.size) : walkArray(Array.from<unknown>(value), state)
  }
  if (value instanceof Date && Number.isNaN(value.getTime())) return unencodable("an invalid date")
  if (Predicate.hasProperty(value, "toJSON") && typeof value.toJSON === "function") return walk(value.toJSON(), state)
  if (value instanceof Error) return { name: walk(value.name, state), message: walk(value.message, state) }
  const keys = Object.keys(value)
  return entries(keys.length, state, () => {
    const out: Record<string, Schema.Json> = {}
    for (const key of keys) {
      const entry = property(value, key)
      if (entry._tag === "thrown") assign(out, key, unencodable(entry.reason), limits)
      else if (entry.value !== undefined) assign(out, key, walk(entry.value, state), limits)
    }
    return out
  })
}

const walkArray = (values: ReadonlyArray<unknown>, state: Walk): Schema.Json =>
  entries(values.length, state, () =>
    Array.from({ length: values.length }, (_, index) => {
      const entry = property(values, index)
      return entry._tag === "thrown" ? unencodable(entry.reason) : walk(entry.value, state)
    }))

/**
 * Encodes so many entries of an array or object, where the value may show that many more.
 *
 * @internal
 */
export const entries = (count: number, state: Walk, encode: () => Schema.Json): Schema.Json => {
  if (count > state.limits.maxItems || count > state.entriesLeft) return truncatedItems(count)
  state.entriesLeft -= count
  return encode()
}

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
