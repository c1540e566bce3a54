import { assert, describe, it } from "@effect/vitest"
import { Option, Redacted, Schema, SchemaTransformation } from "effect"
import * as Encode from "../../src/internal/encode.ts"
import * as Json from "../../src/internal/json.ts"
import * as Unit from "../../src/Unit.ts"

const marker = "marker-4711-secret"
const hidden = "<redacted>"

const run = (
  schema: Schema.Top,
  value: unknown
): { readonly json: Schema.Json; readonly secrets: ReadonlyArray<string> } => {
  const secrets = new Set<string>()
  const json = Encode.make(schema)(value, { limits: Json.defaultLimits, secrets })
  return { json, secrets: Array.from(secrets) }
}

const secret = Unit.secret(Schema.String)

class Login extends Schema.Class<Login>("Login")({ user: Schema.String, password: secret }) {}

interface Tree {
  readonly token: string
  readonly below: ReadonlyArray<Tree>
}
const Tree = Schema.Struct({ token: secret, below: Schema.Array(Schema.suspend((): Schema.Codec<Tree> => Tree)) })

interface Chain {
  readonly name: string
  readonly next?: Chain
}
const Chain = Schema.Struct({
  name: Schema.String,
  next: Schema.optionalKey(Schema.suspend((): Schema.Codec<Chain> => Chain))
})

/** Positions of a secret: the Schema, a value of it that holds the marker, and how it shows. */
const positions: ReadonlyArray<readonly [name: string, schema: Schema.Top, value: unknown, json: Schema.Json]> = [
  ["Redacted", Schema.Redacted(Schema.String), Redacted.make(marker), hidden],
  ["a labelled Redacted", Schema.Redacted(Schema.String, { label: "key" }), Redacted.make(marker), hidden],
  ["RedactedFromValue", Schema.RedactedFromValue(Schema.String), Redacted.make(marker), hidden],
  ["Unit.secret", secret, marker, hidden],
  ["Unit.secret before checks", secret.check(Schema.isMinLength(3)), marker, hidden],
  ["Unit.secret after checks", Unit.secret(Schema.String.check(Schema.isMinLength(3))), marker, hidden],
  [
    "Unit.secret between checks and annotations",
    Unit.secret(Schema.String.check(Schema.isMinLength(3))).check(Schema.isMaxLength(99)).annotate({ title: "key" }),
    marker,
    hidden
  ],
  ["Unit.secret under a brand", secret.pipe(Schema.brand("Key")), marker, hidden],
  ["Unit.secret over a brand", Unit.secret(Schema.String.pipe(Schema.brand("Key"))), marker, hidden],
  [
    "Unit.secret of a transformation",
    Unit.secret(Schema.String.pipe(Schema.decode(SchemaTransformation.trim()))),
    marker,
    hidden
  ],
  [
    "a transformation of Unit.secret",
    secret.pipe(Schema.decodeTo(Schema.String, SchemaTransformation.trim())),
    marker,
    hidden
  ],
  [
    "an object whose encoded side alone is secret",
    Schema.Struct({ whole: secret }).pipe(
      Schema.decodeTo(
        Schema.Struct({ part: Schema.String }),
        SchemaTransformation.transform({
          decode: ({ whole }) => ({ part: whole }),
          encode: ({ part }) => ({ whole: part })
        })
      )
    ),
    { part: marker },
    hidden
  ],
  [
    "an encoded key",
    Schema.Struct({ token: secret, id: Schema.Int }).pipe(Schema.encodeKeys({ token: "t" })),
    { token: marker, id: 1 },
    { token: hidden, id: 1 }
  ],
  ["a field with a default", Schema.Struct({ token: secret.pipe(Unit.withDefault("none")) }), { token: marker }, {
    token: hidden
  }],
  ["an optional field", Schema.Struct({ token: Schema.optional(secret) }), { token: marker }, { token: hidden }],
  ["an array", Schema.Array(secret), [marker, "other-secret"], [hidden, hidden]],
  ["a tuple", Schema.Tuple([Schema.String, secret]), ["shown", marker], ["shown", hidden]],
  [
    "the end of a tuple",
    Schema.TupleWithRest(Schema.Tuple([Schema.String]), [Schema.Int, secret]),
    ["shown", 1, 2, marker],
    ["shown", 1, 2, hidden]
  ],
  ["a record", Schema.Record(Schema.String, secret), { a: marker }, { a: hidden }],
  ["the names of a record", Schema.Record(secret, Schema.Int), { [marker]: 1 }, hidden],
  [
    "the second pattern of a record",
    Schema.StructWithRest(Schema.Struct({ id: Schema.Int }), [
      Schema.Record(Schema.TemplateLiteral(["x_", Schema.String]), Schema.String),
      Schema.Record(Schema.TemplateLiteral(["s_", Schema.String]), secret)
    ]),
    { id: 1, x_1: "shown", s_1: marker },
    { id: 1, x_1: "shown", s_1: hidden }
  ],
  [
    "a member of a union",
    Schema.Union([
      Schema.Struct({ kind: Schema.Literal("open") }),
      Schema.Struct({ kind: Schema.Literal("key"), key: secret })
    ]),
    { kind: "key", key: marker },
    { kind: "key", key: hidden }
  ],
  ["a nullable", Schema.NullOr(secret), marker, hidden],
  ["a class", Login, new Login({ user: "ada", password: marker }), { user: "ada", password: hidden }],
  [
    "a class in an array in a record",
    Schema.Record(Schema.String, Schema.Array(Login)),
    { all: [new Login({ user: "ada", password: marker })] },
    { all: [{ user: "ada", password: hidden }] }
  ],
  [
    "a recursion",
    Tree,
    { token: marker, below: [{ token: "other-secret", below: [] }] },
    { token: hidden, below: [{ token: hidden, below: [] }] }
  ],
  ["an Option", Schema.Option(secret), Option.some(marker), hidden],
  ["an Option of a struct", Schema.Option(Schema.Struct({ token: secret })), Option.some({ token: marker }), hidden],
  ["a Map", Schema.ReadonlyMap(Schema.String, secret), new Map([["a", marker]]), hidden],
  ["a Set", Schema.ReadonlySet(secret), new Set([marker]), hidden],
  ["an object of many", Unit.secret(Schema.Struct({ deep: Schema.Struct({ list: Schema.Array(Schema.String) }) })), {
    deep: { list: [marker] }
  }, hidden]
]

/** What does not fit the Schema of a position, and holds the marker where that Schema calls nothing public. */
const misfits: ReadonlyArray<unknown> = [
  marker,
  ["shown", [marker]],
  { token: { inside: marker } },
  { password: [marker], user: 1 },
  { kind: "other", key: marker },
  { unknown: marker },
  new Map([[marker, marker]]),
  new Error(marker),
  { token: marker, below: [{ token: [marker] }, marker] },
  ["shown", 3, 4, [marker]]
]

describe("encode", () => {
  describe("secrets", () => {
    it.each(positions)("hides and remembers what is in %s", (_, schema, value, json) => {
      const shown = run(schema, value)
      assert.deepStrictEqual(shown.json, json)
      assert.include(shown.secrets, marker)
    })

    it.each(positions)("hides what is in %s from inside of a larger value", (_, schema, value, json) => {
      const Around = Schema.Struct({ name: Schema.String, list: Schema.Array(schema) })
      assert.deepStrictEqual(run(Around, { name: "n", list: [value, value] }).json, { name: "n", list: [json, json] })
      // The same where something else does not fit.
      assert.deepStrictEqual(run(Around, { name: 1, list: [value] }).json, { name: 1, list: [json] })
    })

    it.each(positions)("shows nothing of what does not fit %s", (_, schema) => {
      for (const value of misfits) assert.notInclude(JSON.stringify(run(schema, value).json), marker)
    })

    it("hides numbers, and what was wiped", () => {
      assert.deepStrictEqual(run(Unit.secret(Schema.Int), 483920), { json: hidden, secrets: ["483920"] })
      assert.deepStrictEqual(run(Schema.Redacted(Schema.BigInt), Redacted.make(77889900n)), {
        json: hidden,
        secrets: ["77889900"]
      })
      const wiped = Redacted.make(marker)
      Redacted.wipeUnsafe(wiped)
      assert.deepStrictEqual(run(Schema.Redacted(Schema.String), wiped), { json: hidden, secrets: [] })
    })

    it("does not look elsewhere for what is as short as ordinary words", () => {
      assert.deepStrictEqual(run(secret, "abc"), { json: hidden, secrets: [] })
    })

    it("tells whether a schema can hold any", () => {
      for (const [, schema] of positions) assert.isTrue(Encode.containsSecret(schema.ast))
      for (const schema of [Schema.String, Chain, Schema.Option(Schema.String), Schema.Unknown, Schema.Date]) {
        assert.isFalse(Encode.containsSecret(schema.ast))
      }
    })
  })

  describe("scrub", () => {
    const scrub = (value: Schema.Json, ...secrets: ReadonlyArray<string>) => Encode.scrub(value, new Set(secrets))

    it("replaces secrets wherever they turn up", () => {
      assert.deepStrictEqual(
        scrub(
          { a: `x ${marker} y ${marker}`, b: [[marker], 1, null, true], [`k-${marker}`]: 483920 },
          marker,
          "483920"
        ),
        { a: `x ${hidden} y ${hidden}`, b: [[hidden], 1, null, true], [`k-${hidden}`]: hidden }
      )
    })

    it("replaces the longest first", () => {
      assert.strictEqual(scrub("abcdefgh abcd", "abcd", "abcdefgh"), `${hidden} ${hidden}`)
    })

    it("knows secrets by the form they have within JSON and within a URL", () => {
      const odd = "pass \"word\"/ü\n"
      assert.strictEqual(scrub(JSON.stringify({ odd }), odd), `{"odd":"${hidden}"}`)
      assert.strictEqual(scrub(`https://host/?key=${encodeURIComponent(odd)}`, odd), `https://host/?key=${hidden}`)
      assert.strictEqual(scrub("half \ud800 a pair", "half \ud800"), `${hidden} a pair`)
    })

    it("leaves names alone that a short secret is part of", () => {
      assert.deepStrictEqual(scrub({ model_id: "model" }, "model"), { model_id: hidden })
    })

    it("keeps a value as it is where there are none", () => {
      const value = { a: [1] }
      assert.strictEqual(scrub(value), value)
    })
  })

  describe("values", () => {
    it("are encoded by their schema", () => {
      const Rich = Schema.Struct({
        at: Schema.Date,
        big: Schema.BigInt,
        bytes: Schema.Uint8Array,
        map: Schema.ReadonlyMap(Schema.String, Schema.BigInt),
        number: Schema.Number,
        option: Schema.Option(Schema.String)
      })
      const value = {
        at: new Date(0),
        big: 12n,
        bytes: new Uint8Array([1]),
        map: new Map([["a", 1n]]),
        number: NaN,
        option: Option.some("x")
      }
      const { json } = run(Rich, value)
      assert.deepStrictEqual(json, {
        at: "1970-01-01T00:00:00.000Z",
        big: "12",
        bytes: "AQ==",
        map: [["a", "1"]],
        number: "NaN",
        option: { _tag: "Some", value: "x" }
      })
      assert.deepStrictEqual(Schema.decodeUnknownSync(Schema.toCodecJson(Rich))(json), value)
    })

    it("that do not fit cost no more than their own place", () => {
      const Shape = Schema.Struct({ at: Schema.Date, list: Schema.Array(Schema.BigInt), name: Schema.String })
      assert.deepStrictEqual(
        run(Shape, { at: new Date(NaN), list: [1n, { odd: 2n }], name: "n", more: "excess" }).json,
        { at: { $unencodable: "an invalid date" }, list: ["1", { odd: "2" }], name: "n" }
      )
      const getter = {
        at: new Date(0),
        get list(): never {
          throw new Error("no list here")
        },
        name: "n"
      }
      assert.deepStrictEqual(run(Shape, getter).json, {
        at: "1970-01-01T00:00:00.000Z",
        list: { $unencodable: "no list here" },
        name: "n"
      })
    })

    it("that are of another shape altogether are shown, where nothing of the shape is secret", () => {
      const Shape = Schema.Struct({ list: Schema.Array(Schema.BigInt), name: Schema.String })
      assert.deepStrictEqual(run(Shape, "odd").json, "odd")
      assert.deepStrictEqual(run(Shape, null).json, null)
      assert.deepStrictEqual(run(Shape, [1n]).json, ["1"])
      assert.deepStrictEqual(run(Shape, { list: "odd", name: 1n }).json, { list: "odd", name: "1" })
      assert.deepStrictEqual(run(Schema.Array(secret), null).json, {
        $unencodable: "expected an object or a list, got null"
      })
    })

    it("of a struct without fields show none", () => {
      const Nothing = Schema.Struct({})
      assert.deepStrictEqual(run(Nothing, { token: marker }).json, {})
      assert.deepStrictEqual(
        run(Schema.Struct({ inner: Nothing, key: secret }), { inner: { token: marker }, key: marker }),
        {
          json: { inner: {}, key: hidden },
          secrets: [marker]
        }
      )
      assert.deepStrictEqual(run(Nothing, "odd").json, "odd")
    })

    it("without a JSON form get one", () => {
      class Handle {
        readonly fd = 3
      }
      const Shape = Schema.Struct({ handle: Schema.instanceOf(Handle), symbol: Schema.Symbol })
      assert.deepStrictEqual(run(Shape, { handle: new Handle(), symbol: Symbol("s") }).json, {
        handle: { fd: 3 },
        symbol: { $unencodable: "a symbol" }
      })
    })

    it("of a recursion are cut where they are too deep", () => {
      let open: Chain = { name: "last" }
      let hiding: Tree = { token: marker, below: [] }
      for (let level = 0; level < 10_000; level++) {
        open = { name: "n", next: open }
        hiding = { token: marker, below: [hiding] }
      }
      for (const { json } of [run(Chain, open), run(Tree, hiding)]) {
        const text = JSON.stringify(json)
        assert.include(text, "nested deeper than 64 levels")
        assert.notInclude(text, marker)
        assert.isBelow(text.length, 10_000)
      }
    })

    it("of a recursion are cut at a cycle, however many paths lead there", () => {
      const loop: { token: string; below: Array<unknown> } = { token: marker, below: [] }
      loop.below.push(loop, loop, loop)
      const cycle = { $unencodable: "a cycle" }
      assert.deepStrictEqual(run(Tree, loop).json, { token: hidden, below: [cycle, cycle, cycle] })
      const open: { name: string; next?: unknown } = { name: "n" }
      open.next = open
      assert.deepStrictEqual(run(Chain, open).json, { name: "n", next: cycle })
    })

    it("that cannot be looked at are markers", () => {
      const { proxy, revoke } = Proxy.revocable<object>({}, {})
      revoke()
      for (const schema of [Tree, Chain, Schema.Array(secret), Login]) {
        assert.include(JSON.stringify(run(schema, proxy).json), "on a proxy that has been revoked")
      }
    })

    it("that are long lists or records are told by their number", () => {
      const items = Array.from({ length: 10_001 }, () => marker)
      const truncated = { $truncated: true, items: 10_001 }
      assert.deepStrictEqual(run(Schema.Array(secret), items).json, truncated)
      assert.deepStrictEqual(
        run(Schema.Record(Schema.String, secret), Object.fromEntries(items.entries())).json,
        truncated
      )
    })

    it("keep a key that is named __proto__", () => {
      const value: unknown = JSON.parse("{ \"__proto__\": \"shown\" }")
      for (const item of [Schema.String, Schema.Union([Schema.String, Schema.Redacted(Schema.Int)])]) {
        assert.strictEqual(
          JSON.stringify(run(Schema.Record(Schema.String, item), value).json),
          "{\"__proto__\":\"shown\"}"
        )
      }
    })
  })
})
