/**
 * Values as the JSON of an event: encoded by their Schema, without secrets, within bounds, and never failing.
 *
 * A schema is compiled once into an encoder. Where nothing below it is secret, the encoder is the schema's own JSON codec.
 * Where something is, the value is walked beside the schema, so that a secret is left out whether or not the value fits.
 *
 * @since 0.1.0
 */
import * as Exit from "effect/Exit"
import * as Predicate from "effect/Predicate"
import * as Redacted from "effect/Redacted"
import * as Schema from "effect/Schema"
import * as SchemaAST from "effect/SchemaAST"
import * as SchemaParser from "effect/SchemaParser"
import * as Json from "./json.ts"

/**
 * Annotation of a schema whose values never leave the process.
 *
 * @internal
 */
export const secretAnnotation = "effect-units/secret"

/**
 * What goes with one serialisation: its bounds, and the secret strings that it met.
 *
 * @internal
 */
export interface Target {
  readonly limits: Json.Limits
  readonly secrets: Set<string>
}

/**
 * Never throws. `at` is where it goes on inside of another value.
 *
 * @internal
 */
export type Encoder = (value: unknown, target: Target, at?: Json.Walk) => Schema.Json

/**
 * Encoder for what has no schema.
 *
 * @internal
 */
export const unknown: Encoder = (value, target, at = Json.start(target.limits)) => Json.walk(value, at)

const cache = new WeakMap<SchemaAST.AST, Encoder>()

/** @internal */
export const make = (schema: Schema.Constraint): Encoder => compile(schema.ast)

const compile = (ast: SchemaAST.AST): Encoder => {
  const known = cache.get(ast)
  if (known !== undefined) return known
  // Recursive schemas meet themselves while they compile.
  let compiled: Encoder | undefined
  cache.set(ast, (value, target, at) => (compiled ??= guarded(build(ast)))(value, target, at))
  compiled = guarded(build(ast))
  cache.set(ast, compiled)
  return compiled
}

/** A value that cannot even be looked at costs its own place and no more. */
const guarded = (encode: Encoder): Encoder => (value, target, at) => {
  try {
    return encode(value, target, at)
  } catch (thrown) {
    return Json.unencodable(Json.describe(thrown))
  }
}

const build = (ast: SchemaAST.AST): Encoder => {
  if (isSecret(ast)) return hide
  const byStructure = structural(ast)
  // Where only the encoded side names a secret, nothing says which part of the value it became.
  if (containsSecret(ast)) return partsContainSecret(ast, new Set([ast])) ? byStructure ?? hide : hide
  // A struct without fields takes any object as it is, and what is in it is nobody's field.
  if (byStructure !== undefined && SchemaAST.isObjects(ast) && hasNoFields(ast)) return byStructure
  const codec = SchemaParser.encodeUnknownExit(
    Schema.toCodecJson(Schema.make<Schema.Codec<unknown, unknown>>(ast))
  )
  const inPart = byStructure ?? unknown
  return (value, target, at = Json.start(target.limits)) => {
    const encoded = attempt(codec, value)
    // What does not fit its schema is encoded part by part, so that only the odd part is lost.
    return encoded !== undefined && Exit.isSuccess(encoded)
      ? Json.walk(encoded.value, at)
      : inPart(value, target, at)
  }
}

const hasNoFields = (ast: SchemaAST.Objects): boolean =>
  ast.propertySignatures.length === 0 && ast.indexSignatures.length === 0

const attempt = <I, A>(f: (value: I) => A, value: I): A | undefined => {
  try {
    return f(value)
  } catch {
    return undefined
  }
}

const hide: Encoder = (value, target) => {
  collectStrings(value, target.secrets, 0)
  return Json.redacted
}

/** Names that are secret leave nothing to show of an object. */
const hideNames: Encoder = (value, target) => {
  if (typeof value === "object" && value !== null) collectStrings(Object.keys(value), target.secrets, 0)
  return hide(value, target)
}

/** Shorter ones are hidden in their own place, but not looked for elsewhere: they would tear ordinary words apart. */
const shortestSecret = 4

const collectStrings = (value: unknown, into: Set<string>, depth: number): void => {
  if (typeof value === "string" || typeof value === "number" || typeof value === "bigint") {
    const text = String(value)
    if (text.length >= shortestSecret) into.add(text)
  } else if (Redacted.isRedacted(value)) {
    // One that was wiped has nothing left to collect.
    collectStrings(attempt(Redacted.value, value), into, depth)
  } else if (typeof value === "object" && value !== null && depth < 8) {
    const parts = value instanceof Map || value instanceof Set ? Array.from<unknown>(value) : value
    for (const key of Object.keys(parts)) {
      const entry = Json.property(parts, key)
      if (entry._tag === "value") collectStrings(entry.value, into, depth + 1)
    }
  }
}

const annotationsOf = (ast: SchemaAST.AST): ReadonlyArray<Schema.Annotations.Annotations | undefined> => [
  ast.annotations,
  ...(ast.checks ?? []).map((check) => check.annotations)
]

const isRedactedType = (ast: SchemaAST.AST): boolean => {
  const representation = ast.annotations?.["representation"]
  return typeof representation === "object" && representation !== null && "id" in representation &&
    representation.id === "effect/schema/Redacted"
}

const isSecret = (ast: SchemaAST.AST): boolean =>
  isRedactedType(ast) || annotationsOf(ast).some((annotations) => annotations?.[secretAnnotation] === true)

/** @internal */
export const containsSecret = (ast: SchemaAST.AST, seen: Set<SchemaAST.AST> = new Set()): boolean => {
  if (seen.has(ast)) return false
  seen.add(ast)
  return isSecret(ast) || ast.encoding?.some((link) => containsSecret(link.to, seen)) === true ||
    partsContainSecret(ast, seen)
}

const partsContainSecret = (ast: SchemaAST.AST, seen: Set<SchemaAST.AST>): boolean => {
  const below = (child: SchemaAST.AST): boolean => containsSecret(child, seen)
  switch (ast._tag) {
    case "Declaration":
      return ast.typeParameters.some(below)
    case "Objects":
      return ast.propertySignatures.some((property) => below(property.type)) ||
        ast.indexSignatures.some((signature) => below(signature.parameter) || below(signature.type))
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

/** The encoder that walks the value beside the schema; `undefined` where the schema has no parts to walk. */
const structural = (ast: SchemaAST.AST): Encoder | undefined => {
  switch (ast._tag) {
    case "Objects":
      return ast.indexSignatures.some((signature) => containsSecret(signature.parameter)) ? hideNames : walkObject(ast)
    case "Arrays":
      return walkList(ast)
    case "Union":
      return walkUnion(ast)
    case "Suspend":
      return (value, target, at) => compile(ast.thunk())(value, target, at)
    case "Declaration": {
      // A class, which encodes to the struct that it is made from: its instances have the fields of that.
      const [fields] = ast.typeParameters
      return fields !== undefined && SchemaAST.isObjects(fields) && ast.encoding !== undefined
        ? walkObject(fields)
        : undefined
    }
    default:
      return undefined
  }
}

/** For what is not of the shape at all. It is not looked into where, under an unknown name or in an unknown place, it may be secret. */
const misfit = (ast: SchemaAST.AST): Encoder =>
  containsSecret(ast)
    ? (value) => Json.unencodable(`expected an object or a list, got ${value === null ? "null" : typeof value}`)
    : unknown

/** Whether a value is of a schema's type, as far as can be told without throwing. */
const guard = (ast: SchemaAST.AST): (value: unknown) => boolean => {
  const is = SchemaParser.is(Schema.make<Schema.Top>(SchemaAST.toType(ast)))
  return (value) => attempt(is, value) === true
}

const walkObject = (ast: SchemaAST.Objects): Encoder => {
  const known = ast.propertySignatures.map((property) => ({
    name: property.name,
    encode: compile(property.type)
  }))
  const rest = ast.indexSignatures
    .map((signature) => ({
      takes: guard(signature.parameter),
      encode: compile(signature.type),
      secret: containsSecret(signature.type)
    }))
    // Where a name is of two patterns, or of none, what one of them hides is hidden.
    .sort((a, b) => Number(b.secret) - Number(a.secret))
  const names = new Set(known.map((property) => property.name))
  const otherwise = misfit(ast)
  return (value, target, at = Json.start(target.limits)) => {
    if (!Predicate.isObject(value)) return otherwise(value, target, at)
    return Json.inside(value, at, () => {
      const [fallback] = rest
      const others = fallback === undefined ? [] : Object.keys(value).filter((key) => !names.has(key))
      return Json.entries(known.length + others.length, at, () => {
        const shown: Array<[string, Schema.Json]> = []
        const add = (name: PropertyKey, encode: Encoder): void => {
          const entry = Json.property(value, name)
          if (entry._tag === "thrown") shown.push([String(name), Json.unencodable(entry.reason)])
          else if (entry.value !== undefined) shown.push([String(name), encode(entry.value, target, at)])
        }
        for (const property of known) add(property.name, property.encode)
        if (fallback !== undefined) {
          for (const name of others) add(name, (rest.find((candidate) => candidate.takes(name)) ?? fallback).encode)
        }
        return Object.fromEntries(shown)
      })
    })
  }
}

const walkList = (ast: SchemaAST.Arrays): Encoder => {
  const elements = ast.elements.map(compile)
  // The first of the rest repeats, the others stand at the end.
  const [repeated, ...last] = ast.rest.map(compile)
  const otherwise = misfit(ast)
  return (value, target, at = Json.start(target.limits)) => {
    if (!Array.isArray(value)) return otherwise(value, target, at)
    const { length } = value
    const end = Math.max(elements.length, length - last.length)
    const item = (index: number): Schema.Json => {
      const encode = elements[index] ?? last[index - end] ?? repeated
      if (encode === undefined) return Json.unencodable("an excess element")
      const entry = Json.property(value, index)
      return entry._tag === "thrown" ? Json.unencodable(entry.reason) : encode(entry.value, target, at)
    }
    return Json.inside(
      value,
      at,
      () => Json.entries(length, at, () => Array.from({ length }, (_, index) => item(index)))
    )
  }
}

const walkUnion = (ast: SchemaAST.Union): Encoder => {
  const members = ast.types.map((member) => ({ takes: guard(member), encode: compile(member) }))
  const otherwise = containsSecret(ast) ? hide : unknown
  return (value, target, at) => {
    const member = members.find((candidate) => candidate.takes(value))
    return (member?.encode ?? otherwise)(value, target, at)
  }
}

/** The names of fields are no secret, so short secrets are not looked for in names: they would tear those apart. */
const shortestSecretInName = 8

/** A secret as it shows inside of other texts: itself, within JSON, within a URL. */
const formsOf = (secret: string): ReadonlyArray<string> => [
  secret,
  JSON.stringify(secret).slice(1, -1),
  // Half a character, which only a string of JavaScript can hold, has no form in a URL.
  attempt<string, string>(encodeURIComponent, secret) ?? secret
]

/**
 * Replaces every secret that a serialisation met, wherever it turns up again: in a message, in a nested string, in a name.
 *
 * @internal
 */
export const scrub = (value: Schema.Json, secrets: ReadonlySet<string>): Schema.Json => {
  if (secrets.size === 0) return value
  // Longest first, so that a secret that holds another leaves no tail.
  const forms = Array.from(new Set(Array.from(secrets).flatMap(formsOf))).sort((a, b) => b.length - a.length)
  const inNames = forms.filter((form) => form.length >= shortestSecretInName)
  const hidden = (text: string, sought: ReadonlyArray<string>): string =>
    sought.reduce((result, form) => result.replaceAll(form, Json.redacted), text)
  const recur = (node: Schema.Json): Schema.Json => {
    if (typeof node === "string") return hidden(node, forms)
    if (typeof node === "number") return secrets.has(String(node)) ? Json.redacted : node
    if (Array.isArray(node)) return node.map(recur)
    if (typeof node === "object" && node !== null) {
      return Object.fromEntries(Object.entries(node).map(([key, entry]) => [hidden(key, inNames), recur(entry)]))
    }
    return node
  }
  return recur(value)
}
