/** Values that JSON has no word for, or that fight whoever looks at them, and what becomes of them in an event. */
import { Redacted, type Schema } from "effect"

/** The marker in place of what cannot be encoded. */
export const unencodable = (reason: string): Schema.Json => ({ $unencodable: reason })
const revoked = (target: object): object => {
  const { proxy, revoke } = Proxy.revocable(target, {})
  revoke()
  return proxy
}

class Point {
  readonly x: number
  readonly #hidden = "hidden"
  constructor(x: number) {
    this.x = x
  }
  get hidden(): string {
    return this.#hidden
  }
}

const cyclic: { self?: unknown } = {}
cyclic.self = cyclic

// Types know no error whose message is not a string; programs do.
const messageless = (message: unknown): Error => Object.assign(new Error("x"), { message })

export const oddities: ReadonlyArray<readonly [name: string, value: unknown, json: Schema.Json]> = [
  ["a string with a NUL", "a\u0000b", "a\u0000b"],
  ["a lone high surrogate", "\ud800", "\ud800"],
  ["a lone low surrogate", "x\udc00", "x\udc00"],
  ["NaN", NaN, "NaN"],
  ["infinity", Infinity, "Infinity"],
  ["negative infinity", -Infinity, "-Infinity"],
  ["negative zero", -0, 0],
  ["a bigint", 12345678901234567890n, "12345678901234567890"],
  ["null", null, null],
  ["a Date", new Date(0), "1970-01-01T00:00:00.000Z"],
  ["an invalid Date", new Date(NaN), unencodable("an invalid date")],
  ["a Map", new Map<unknown, unknown>([["a", 1n], [{ k: 1 }, undefined]]), [["a", "1"], [{ k: 1 }, null]]],
  ["a Set", new Set([1, "two"]), [1, "two"]],
  ["bytes", new Uint8Array([1, 2, 3]), "AQID"],
  ["part of a buffer", Buffer.from("xabcx").subarray(1, 4), "YWJj"],
  ["an ArrayBuffer", new Uint8Array([255]).buffer, "/w=="],
  ["a DataView", new DataView(new Uint8Array([1, 2, 3]).buffer, 1, 2), "AgM="],
  ["floats", new Float32Array([0.5, NaN]), [0.5, "NaN"]],
  ["big integers", new BigInt64Array([1n]), ["1"]],
  ["a sparse array", Object.assign(Array.from({ length: 2 }), { 1: "b" }), [null, "b"]],
  ["a symbol", Symbol("s"), unencodable("a symbol")],
  ["a function", () => 1, unencodable("a function")],
  ["a cycle", cyclic, { self: unencodable("a cycle") }],
  ["an Error", new TypeError("bad"), { name: "TypeError", message: "bad" }],
  ["an Error without a message", messageless(undefined), { name: "Error", message: null }],
  ["an Error whose message is no text", messageless(1n), { name: "Error", message: "1" }],
  ["an instance", new Point(1), { x: 1 }],
  ["an object without a prototype", Object.assign(Object.create(null), { a: 1 }), { a: 1 }],
  ["a Redacted", Redacted.make("marker"), "<redacted>"],
  [
    "a Redacted that was wiped",
    (() => {
      const secret = Redacted.make("marker")
      Redacted.wipeUnsafe(secret)
      return secret
    })(),
    "<redacted>"
  ],
  ["toJSON", { toJSON: () => ({ shown: 1n }) }, { shown: "1" }],
  ["toJSON that gives undefined", { toJSON: () => undefined }, null],
  ["toJSON that throws", {
    toJSON: () => {
      throw new Error("no JSON here")
    }
  }, unencodable("no JSON here")],
  ["toJSON that gives itself", {
    toJSON() {
      return this
    }
  }, unencodable("a cycle")],
  ["a getter that throws", {
    fine: 1,
    get bad(): never {
      throw new Error("no value here")
    }
  }, { fine: 1, bad: unencodable("no value here") }],
  ["a getter that throws what has no text", {
    get bad(): never {
      throw Object.create(null)
    }
  }, { bad: unencodable("a value that cannot be described") }],
  ["a getter that throws an error without a text", {
    get bad(): never {
      throw messageless(2n)
    }
  }, { bad: unencodable("2") }],
  ["a getter that throws a book", {
    get bad(): never {
      throw new Error("x".repeat(2_000_000))
    }
  }, { bad: unencodable("a reason of 2000000 characters") }],
  [
    "an array with an element that throws",
    Object.defineProperty(["a", "b", "c"], 1, {
      get() {
        throw new Error("no element here")
      }
    }),
    ["a", unencodable("no element here"), "c"]
  ],
  [
    "a revoked proxy",
    revoked({}),
    unencodable("Cannot perform 'has' on a proxy that has been revoked")
  ],
  ["a revoked function", revoked(() => 1), unencodable("a function")]
]
