/**
 * UUID version 7 (RFC 9562, section 5.7), drawn from a pool of random words.
 *
 * `effect/crypto` makes the same ids with one random read each, at about fifteen times the cost; an id is made for every
 * execution, so this one is written by hand. An id becomes a string when it is first read: an execution whose events are
 * never serialised, and which has no children, pays for no string.
 *
 * @since 0.1.0
 */

// All three-digit hexadecimal numbers: an id is its time and six of these.
const triples: ReadonlyArray<string> = Array.from({ length: 4096 }, (_, n) => n.toString(16).padStart(3, "0"))
const variants = ["8", "9", "a", "b"] as const

const pool = new Uint16Array(4096)
let position = pool.length

const word = (): number => {
  if (position === pool.length) {
    globalThis.crypto.getRandomValues(pool)
    position = 0
  }
  // The position is below the length, so the read is in bounds.
  return pool[position++]!
}

// Bounds hold by construction: 12 bits index 4096 entries, 2 bits index 4.
const triple = (): string => triples[word() & 0xfff]!

let lastMillis = -1
let lastPrefix = ""

const prefix = (millis: number): string => {
  if (millis !== lastMillis) {
    // An id has 48 bits for its time; a clock that shows none, or one that is out of range, still gets an id.
    const hex = Math.min(Math.max(0, Math.floor(millis) || 0), 2 ** 48 - 1).toString(16).padStart(12, "0")
    lastMillis = millis
    lastPrefix = `${hex.slice(0, 8)}-${hex.slice(8)}-7`
  }
  return lastPrefix
}

/** @internal */
export const uuidV7 = (millis: number): string => {
  const bits = word()
  // In bounds: twelve bits index the triples, and two of the other four the variants.
  return prefix(millis) + triples[bits & 0xfff]! + "-" + variants[bits >> 14]! + triple() + "-" + triple() + triple() +
    triple() + triple()
}

/**
 * A time by the wall clock, in Unix milliseconds. An object, so that all that happens within one millisecond holds the same one.
 *
 * @internal
 */
export interface Tick {
  readonly millis: number
}

/**
 * An id whose text is made when it is first read.
 *
 * @internal
 */
export class LazyId {
  declare private text: string | undefined
  declare private readonly tick: Tick

  constructor(tick: Tick, text: string | undefined) {
    this.tick = tick
    this.text = text
  }

  get value(): string {
    return this.text ??= uuidV7(this.tick.millis)
  }
}
