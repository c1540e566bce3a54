/**
 * Copies of what a caller could still change before an event that shows it is written.
 *
 * @since 0.1.0
 */
import * as Schema from "effect/Schema"
import type * as SchemaAST from "effect/SchemaAST"
import * as Json from "./json.ts"

/**
 * Whether what a check gives can share parts with what it was given: values that a schema does not look into, or does not build
 * anew.
 *
 * @internal
 */
export const isShared = (ast: SchemaAST.AST, seen: Set<SchemaAST.AST> = new Set()): boolean => {
  if (seen.has(ast)) return false
  seen.add(ast)
  const below = (child: SchemaAST.AST): boolean => isShared(child, seen)
  switch (ast._tag) {
    case "Any":
    case "Unknown":
    case "ObjectKeyword":
    case "Declaration":
      return true
    case "Objects":
      return ast.propertySignatures.some((property) => below(property.type)) ||
        ast.indexSignatures.some((signature) => below(signature.type))
    case "Arrays":
      return ast.elements.some(below) || ast.rest.some(below)
    case "Union":
      return ast.types.some(below)
    case "Suspend":
      return below(ast.thunk())
    default:
      return false
  }
}

/**
 * Copies plain objects and lists, instances of Schema classes, dates, maps, sets and bytes, to any depth. What an event would not
 * show anyway is not copied: collections and bytes beyond their limits. Nor are instances of other classes, as nobody knows how.
 *
 * @internal
 */
export const of = (value: unknown): unknown => copy(value, new Map())

const copy = (value: unknown, copies: Map<object, unknown>): unknown => {
  if (typeof value !== "object" || value === null) return value
  const known = copies.get(value)
  if (known !== undefined) return known
  try {
    return copyObject(value, copies)
  } catch {
    // Proxies can refuse to be looked at, and what is nested without end has no copy. Serialisation will say so.
    return value
  }
}

const { maxFieldBytes, maxItems } = Json.defaultLimits

const copyObject = (value: object, copies: Map<object, unknown>): unknown => {
  const filled = <A extends object>(made: A, fill: (made: A) => void): A => {
    // Known before it is filled, so that a cycle leads to the copy.
    copies.set(value, made)
    fill(made)
    return made
  }
  if (Array.isArray(value)) {
    if (value.length > maxItems) return value
    return filled<Array<unknown>>([], (made) => {
      made.length = value.length
      for (const key of Object.keys(value)) copyProperty(value, key, made, copies)
    })
  }
  if (value instanceof Date) return filled(new Date(value.getTime()), () => {})
  if (value instanceof Uint8Array) {
    return value.byteLength > maxFieldBytes ? value : filled(new Uint8Array(value), () => {})
  }
  if (value instanceof Map) {
    return value.size > maxItems ? value : filled(new Map<unknown, unknown>(), (made) => {
      for (const [key, item] of value) made.set(copy(key, copies), copy(item, copies))
    })
  }
  if (value instanceof Set) {
    return value.size > maxItems ? value : filled(new Set<unknown>(), (made) => {
      for (const item of value) made.add(copy(item, copies))
    })
  }
  const prototype: object | null = Object.getPrototypeOf(value)
  if (prototype !== null && prototype !== Object.prototype && !Schema.isSchema(value.constructor)) return value
  const keys = Object.keys(value)
  return keys.length > maxItems
    ? value
    : filled(Object.create(prototype), (made) => keys.forEach((key) => copyProperty(value, key, made, copies)))
}

/** A getter stays one, and is not called. */
const copyProperty = (from: object, key: string, to: object, copies: Map<object, unknown>): void => {
  const property = Object.getOwnPropertyDescriptor(from, key)
  if (property === undefined) return
  Object.defineProperty(to, key, "value" in property ? { ...property, value: copy(property.value, copies) } : property)
}
