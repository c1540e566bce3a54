/**
 * JSON from files that strangers wrote: bounded before it is parsed, and without a key that comes twice.
 *
 * @since 0.1.0
 */
import * as Effect from "effect/Effect"
import type * as FileSystem from "effect/FileSystem"
import * as Predicate from "effect/Predicate"
import { fromPlatform, malformed, ModelFileError, Truncated } from "../ModelFileError.ts"
import { openRegular } from "./fileWindow.ts"

/** The most that a whole JSON file may have. The largest indexes that are published have some 20 MB. */
const maxFileBytes = 100_000_000

// A header of legal size can still be made of millions of tiny values, each of them a hundred times larger in memory.
// No file that is published has a tenth of these.
const maxValues = 2_000_000
const maxDepth = 32

/**
 * Reads exactly `length` bytes at `position`; fails with `Truncated` when the file ends before.
 *
 * @internal
 */
export const readBytes: (
  path: string,
  file: FileSystem.File,
  position: number,
  length: number
) => Effect.Effect<Uint8Array, ModelFileError> = Effect.fnUntraced(function*(path, file, position, length) {
  const bytes = new Uint8Array(length)
  let done = 0
  while (done < length) {
    const read = yield* Effect.mapError(
      file.read(bytes.subarray(done), { position: BigInt(position + done) }),
      fromPlatform(path)
    )
    if (read === 0) {
      return yield* new ModelFileError({
        path,
        reason: new Truncated({ expected: position + length, actual: position + done })
      })
    }
    done += read
  }
  return bytes
})

const quote = 0x22
const backslash = 0x5c
const isSpace = (byte: number | undefined) => byte === 0x20 || byte === 0x09 || byte === 0x0a || byte === 0x0d

const lenient = new TextDecoder()

// Two spellings of one key are one key. What is no JSON string fails in `JSON.parse` anyway, as it stands.
const unescaped = (raw: string): string => {
  try {
    return String(JSON.parse(`"${raw}"`))
  } catch {
    return raw
  }
}

interface Finding {
  readonly detail: string
  readonly at: number
}

/**
 * Looks for what `JSON.parse` would take without a word, or choke on: a key that comes twice in one object, and more
 * nesting or values than any file needs. It trusts nothing else about the bytes, which may not even be JSON.
 */
const scan = (bytes: Uint8Array): Finding | undefined => {
  // The keys of each open object; for an array, none.
  const open: Array<Set<string> | undefined> = []
  let values = 0
  for (let at = 0; at < bytes.length; at++) {
    switch (bytes[at]) {
      case quote: {
        const start = at + 1
        let escaped = false
        for (at = start; at < bytes.length && bytes[at] !== quote; at++) {
          if (bytes[at] === backslash) {
            escaped = true
            at++
          }
        }
        const siblings = open.at(-1)
        if (siblings === undefined) break
        let after = at + 1
        while (isSpace(bytes[after])) after++
        if (bytes[after] !== 0x3a) break
        const raw = lenient.decode(bytes.subarray(start, at))
        const key = escaped ? unescaped(raw) : raw
        if (siblings.has(key)) return { detail: `the key ${key} comes twice`, at: start }
        siblings.add(key)
        break
      }
      case 0x7b:
      case 0x5b:
        open.push(bytes[at] === 0x7b ? new Set() : undefined)
        if (open.length > maxDepth) return { detail: `it nests more than ${maxDepth} levels`, at }
        if (++values > maxValues) return { detail: `it has more than ${maxValues} values`, at }
        break
      case 0x2c:
        if (++values > maxValues) return { detail: `it has more than ${maxValues} values`, at }
        break
      case 0x7d:
      case 0x5d:
        open.pop()
    }
  }
  return undefined
}

/**
 * Parses a JSON object; fails with `Malformed`. `base` is where in the file the bytes begin.
 *
 * **Gotchas**
 *
 * `__proto__` is an own key of the result like any other, so read the result by `Object.entries` or `Object.hasOwn`.
 *
 * @internal
 */
export const parseObject = (
  path: string,
  bytes: Uint8Array,
  base: number
): Effect.Effect<{ readonly [key: string]: unknown }, ModelFileError> =>
  Effect.suspend(() => {
    const finding = scan(bytes)
    if (finding !== undefined) return Effect.fail(malformed(path, finding.detail, base + finding.at))
    return Effect.filterOrFail(
      Effect.try({
        try: (): unknown => JSON.parse(new TextDecoder("utf-8", { fatal: true }).decode(bytes)),
        catch: (cause) => malformed(path, cause instanceof Error ? cause.message : String(cause), base)
      }),
      Predicate.isObject,
      () => malformed(path, "it is no object", base)
    )
  })

/**
 * Reads a file that holds one JSON object. Fails with `Malformed` for anything else, and for one of more than 100 MB.
 *
 * @internal
 */
export const read: (
  path: string
) => Effect.Effect<{ readonly [key: string]: unknown }, ModelFileError, FileSystem.FileSystem> = Effect.fnUntraced(
  function*(path: string) {
    const { file, size } = yield* openRegular(path)
    if (size > maxFileBytes) return yield* malformed(path, `it is a JSON file of ${size} bytes`)
    return yield* parseObject(path, yield* readBytes(path, file, 0, size), 0)
  },
  Effect.scoped
)

/**
 * The entries of an object whose values are all strings; of anything else, `undefined`.
 *
 * @internal
 */
export const stringMap = (value: unknown): ReadonlyMap<string, string> | undefined => {
  if (!Predicate.isObject(value)) return undefined
  const map = new Map<string, string>()
  for (const [key, text] of Object.entries(value)) {
    if (!Predicate.isString(text)) return undefined
    map.set(key, text)
  }
  return map
}
