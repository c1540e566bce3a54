/**
 * Values as the JSON of an event: encoded by their Schema, without secrets, within bounds, and never failing.
 *
 * A schema is compiled once into an encoder. Where nothing below it is secret, the encoder is the schema's own JSON codec.
 * Where something is, the value is walked beside the schema, so that a secret is left out whether or not the value fits.
 *
 * @since 0.1.0
 */
import * as Exit from "effect/Exit"
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

/** @internal */
export type Encoder = (value: unknown, target: Target) => Schema.Json

/**
 * Encoder for what has no schema.
 *
 * @internal
 */
export const unknown: Encoder = (value, target) => Json.fromUnknown(value, target.limits)

const cache = new WeakMap<SchemaAST.AST, Encoder>()

/** @internal */
export const make = (schema: Schema.Constraint): Encoder => compile(schema.ast)

const compile = (ast: SchemaAST.AST): Encoder => {
  const known = cache.get(ast)
  if (known !== undefined) return known
  // Recursive schemas meet themselves while they compile.
  let compiled: Encoder | undefined
  cache.set(ast, (value, target) => (compiled ??= build(ast))(value, target))
  compiled = build(ast)
  cache.set(ast, compiled)
  return compiled
}

const build = (ast: SchemaAST.AST): Encoder => {
  if (isSecret(ast)) return hide
  const byStructure = structural(ast)
  if (containsSecret(ast)) return byStructure ?? hide
  const codec = SchemaParser.encodeUnknownExit(
    Schema.toCodecJson(Schema.make<Schema.Codec<unknown, unknown>>(ast))
  )
  const inPart = byStructure ?? unknown
  return (value, target) => {
    const encoded = attempt(codec, value)
    // What does not fit its schema is encoded part by part, so that only the odd part is lost.
    return encoded !== undefined && Exit.isSuccess(encoded)
      ? Json.fromUnknown(encoded.value, target.limits)
      : inPart(value, target)
  }
}

const attempt = <A>(f: (value: unknown) => A, value: unknown): A | undefined => {
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

/** Shorter ones are hidden in their own place, but not looked for elsewhere: they would tear ordinary words apart. */
const shortestSecret = 4

const collectStrings = (value: unknown, into: Set<string>, depth: number): void => {
  if (typeof value === "string") {
    if (value.length >= shortestSecret) into.add(value)
  } else if (Redacted.isRedacted(value)) {
    collectStrings(Redacted.value(value), into, depth)
  } else if (typeof value === "object" && value !== null && depth < 8) {
    for (const key of Object.keys(value)) {
      const entry = Json.property(value, key)
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
  if (isSecret(ast)) return true
  const below = (child: SchemaAST.AST): boolean => containsSecret(child, seen)
  if (ast.encoding?.some((link) => below(link.to)) === true) return true
  switch (ast._tag) {
    case "Declaration":
      return ast.typeParameters.some(below)
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

/** The encoder that walks the value beside the schema; `undefined` where the schema has no parts to walk. */
const structural = (ast: SchemaAST.AST): Encoder | undefined => {
  switch (ast._tag) {
    case "Objects":
      return walkObject(ast)
    case "Arrays":
      return walkList(ast)
    case "Union":
      return walkUnion(ast)
    case "Suspend":
      return (value, target) => compile(ast.thunk())(value, target)
    case "Declaration": {
      // A class: its instances have the fields of the struct that it is made from.
      const [fields] = ast.typeParameters
      return fields !== undefined && SchemaAST.isObjects(fields) && ast.typeParameters.length === 1
        ? walkObject(fields)
        : undefined
    }
    default:
      return undefined
  }
}

// What is not of the shape at all is not looked into: under an unknown name, or in an unknown place, anything may be secret.
const misfit = (value: unknown): Schema.Json =>
  Json.unencodable(`expected an object or a list, got ${value === null ? "null" : typeof value}`)

const walkObject = (ast: SchemaAST.Objects): Encoder => {
  const known = ast.propertySignatures.map((property) => ({
    name: property.name,
    encode: compile(property.type)
  }))
  const rest = ast.indexSignatures.map((signature) => compile(signature.type))
  const names = new Set(known.map((property) => property.name))
  return (value, target) => {
    if (typeof value !== "object" || value === null) return misfit(value)
    const entries: Array<[string, Schema.Json]> = []
    const add = (name: PropertyKey, encode: Encoder): void => {
      const entry = Json.property(value, name)
      if (entry._tag === "thrown") entries.push([String(name), Json.unencodable(entry.reason)])
      else if (entry.value !== undefined) entries.push([String(name), encode(entry.value, target)])
    }
    for (const property of known) add(property.name, property.encode)
    const [encodeRest] = rest
    if (encodeRest !== undefined) {
      const others = Object.keys(value).filter((key) => !names.has(key))
      if (others.length > target.limits.maxItems) return { $truncated: true, items: others.length }
      for (const name of others) add(name, encodeRest)
    }
    return Object.fromEntries(entries)
  }
}

const walkList = (ast: SchemaAST.Arrays): Encoder => {
  const elements = ast.elements.map(compile)
  const rest = ast.rest.map(compile)
  return (value, target) => {
    if (!Array.isArray(value)) return misfit(value)
    if (value.length > target.limits.maxItems) return { $truncated: true, items: value.length }
    return value.map((item: unknown, index) => {
      const encode = elements[index] ?? rest[0]
      return encode === undefined ? Json.unencodable("an excess element") : encode(item, target)
    })
  }
}

const walkUnion = (ast: SchemaAST.Union): Encoder => {
  const members = ast.types.map((member) => ({
    is: SchemaParser.is(Schema.make<Schema.Top>(SchemaAST.toType(member))),
    encode: compile(member)
  }))
  const secret = containsSecret(ast)
  return (value, target) => {
    const member = members.find((candidate) => attempt(candidate.is, value) === true)
    if (member !== undefined) return member.encode(value, target)
    return secret ? hide(value, target) : unknown(value, target)
  }
}

/**
 * Replaces every secret that a serialisation met, wherever it turns up again: in a message, in a nested string.
 *
 * @internal
 */
export const scrub = (value: Schema.Json, secrets: ReadonlySet<string>): Schema.Json => {
  if (secrets.size === 0) return value
  // Longest first, so that a secret that holds another leaves no tail.
  const ordered = Array.from(secrets).sort((a, b) => b.length - a.length)
  const scrubText = (text: string): string =>
    ordered.reduce((result, secret) => result.replaceAll(secret, Json.redacted), text)
  const recur = (node: Schema.Json): Schema.Json => {
    if (typeof node === "string") return scrubText(node)
    if (Array.isArray(node)) return node.map(recur)
    if (typeof node === "object" && node !== null) {
      return Object.fromEntries(Object.entries(node).map(([key, entry]) => [key, recur(entry)]))
    }
    return node
  }
  return recur(value)
}
