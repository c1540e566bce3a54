import { assert, describe, expectTypeOf, it } from "@effect/vitest"
import { Cause, Context, DateTime, Effect, Exit, Redacted, Schema, Stream } from "effect"
import * as DomainEvent from "../src/DomainEvent.ts"
import * as EventPublisher from "../src/EventPublisher.ts"
import * as Execution from "../src/Execution.ts"
import * as ExecutionEvent from "../src/ExecutionEvent.ts"
import { instrument } from "../src/instrument.ts"
import * as Unit from "../src/Unit.ts"
import * as UnitError from "../src/UnitError.ts"
import { InvalidInput } from "../src/UnitError.ts"
import { observe } from "./observe.ts"

class ModelNotFound extends UnitError.make<ModelNotFound>()("ModelNotFound", { code: "00100", retryable: false }, {
  model_id: Schema.String
}) {
  override get message(): string {
    return `There is no model ${this.model_id}. List the models to see which there are`
  }
}

class Models extends Context.Service<Models, {
  readonly size: (id: string) => Effect.Effect<number, ModelNotFound>
}>()("test/Models") {}

const models = Models.of({
  size: (model_id) => model_id === "tiny" ? Effect.succeed(3) : Effect.fail(new ModelNotFound({ model_id }))
})

const size = Unit.query("model.size", {
  description: "How large a model is",
  input: { model_id: Schema.NonEmptyString, unit: Schema.optionalKey(Schema.Literals(["bytes", "kilobytes"])) },
  output: { size: Schema.Finite },
  errors: [ModelNotFound],
  examples: [{ model_id: "tiny" }],
  handler: ({ model_id, unit }) =>
    Effect.map(
      Models.use((service) => service.size(model_id)),
      (bytes) => ({ size: unit === "kilobytes" ? bytes / 1024 : bytes })
    )
})

const startedInputs = (events: ReadonlyArray<ExecutionEvent.ExecutionEvent>) =>
  events.flatMap((event) => event.event_type === "execution_started" ? [event.input] : [])

/** A unit that takes one value and gives nothing. */
const taking = <S extends Schema.Codec<unknown, unknown>>(value: S) =>
  Unit.command("test.take", {
    description: "Takes a value",
    input: Schema.Struct({ value }),
    output: {},
    errors: [],
    handler: () => Effect.succeed({})
  })

describe("Unit", () => {
  it("says what it is", () => {
    assert.strictEqual(size.name, "model.size")
    assert.strictEqual(size.domain, "model")
    assert.strictEqual(size.kind, "query")
    assert.strictEqual(size.description, "How large a model is")
    assert.deepStrictEqual(size.examples, [{ model_id: "tiny" }])
    assert.deepStrictEqual(Schema.decodeUnknownSync(size.input)({ model_id: "a" }), { model_id: "a" })
    assert.deepStrictEqual(Schema.decodeUnknownSync(size.output)({ size: 1 }), { size: 1 })
    assert.isTrue(Schema.is(size.error)(new ModelNotFound({ model_id: "a" })))
    assert.isTrue(Schema.is(size.error)(new InvalidInput({ unit: "model.size", issues: [] })))
    assert.isUndefined(size.chunk)
    assert.deepStrictEqual(Object.keys(size).toSorted(), [
      "chunk",
      "description",
      "domain",
      "error",
      "examples",
      "execute",
      "handler",
      "input",
      "kind",
      "name",
      "output",
      "~effect-units/Unit"
    ])
  })

  it("is told from other functions", () => {
    assert.isTrue(Unit.isUnit(size))
    for (const other of [() => Effect.void, {}, null, undefined, "model.size", { ...size }]) {
      assert.isFalse(Unit.isUnit(other))
    }
  })

  it.effect("takes schemas as well as fields", () =>
    Effect.gen(function*() {
      const double = Unit.query("math.double", {
        description: "Twice a number",
        input: Schema.Finite,
        output: Schema.Finite,
        errors: [],
        handler: (n) => Effect.succeed(n * 2)
      })
      const { events, exit } = yield* observe(double(21))
      assert.deepStrictEqual(exit, Exit.succeed(42))
      assert.deepStrictEqual(
        events.map((event) => "input" in event ? event.input : "output" in event && event.output),
        [21, 42]
      )
    }))

  describe("checks its input", () => {
    const Limits = {
      name: Schema.NonEmptyString,
      limit: Schema.Int.check(Schema.isBetween({ minimum: 1, maximum: 100 })),
      kind: Schema.Literals(["llm", "vlm"]),
      options: Schema.Struct({ files: Schema.Array(Schema.Struct({ path: Schema.String })) })
    }
    const fine = { name: "a", limit: 1, kind: "llm" as const, options: { files: [{ path: "/a" }] } }
    const cases: ReadonlyArray<
      readonly [given: unknown, issues: ReadonlyArray<{ readonly path: string; readonly expected: string }>]
    > = [
      ["text", [{ path: "", expected: "Expected object" }]],
      [null, [{ path: "", expected: "Expected object" }]],
      [[fine], [{ path: "", expected: "Expected object" }]],
      [{ ...fine, name: 4711 }, [{ path: "name", expected: "Expected string" }]],
      [{ ...fine, name: null }, [{ path: "name", expected: "Expected string" }]],
      [{ ...fine, limit: 1.5 }, [{ path: "limit", expected: "Expected an integer" }]],
      [{ ...fine, limit: 101 }, [{ path: "limit", expected: "Expected a value between 1 and 100" }]],
      [{ ...fine, kind: "gguf" }, [{ path: "kind", expected: "Expected \"llm\" | \"vlm\"" }]],
      [{ ...fine, options: { files: [{ path: "/a" }, { path: 1 }] } }, [{
        path: "options.files[1].path",
        expected: "Expected string"
      }]],
      [{ ...fine, options: {} }, [{ path: "options.files", expected: "Expected a value, the field is required" }]],
      [{ limit: "1", kind: "llm", options: { files: 1 } }, [
        { path: "name", expected: "Expected a value, the field is required" },
        { path: "limit", expected: "Expected number" },
        { path: "options.files", expected: "Expected array" }
      ]]
    ]

    const strict = Unit.command("test.strict", {
      description: "Never runs with an input that does not fit",
      input: Limits,
      output: {},
      errors: [],
      handler: () => Effect.die("the handler ran")
    })
    // What a program without types does.
    const untyped = strict as unknown as
      & Record<
        "handler" | "execute",
        (input: unknown) => Effect.Effect<unknown, unknown, EventPublisher.EventPublisher>
      >
      & ((input: unknown) => Effect.Effect<unknown, unknown, EventPublisher.EventPublisher>)

    it.effect.each(cases)("and names every issue of %j", ([given, issues]) =>
      Effect.gen(function*() {
        const error = new InvalidInput({ unit: "test.strict", issues })
        const bare = yield* Effect.exit(untyped.handler(given)).pipe(Effect.provide(EventPublisher.layerNoop))
        assert.deepStrictEqual(bare, Exit.fail(error))
        for (const run of [untyped(given), untyped.execute(given)]) {
          const { events, exit } = yield* observe(run)
          assert.deepStrictEqual(exit, Exit.fail(error))
          assert.deepStrictEqual(events.map(({ event_type }) => event_type), ["execution_started", "execution_failed"])
          assert.deepStrictEqual(startedInputs(events), [given])
          assert.deepStrictEqual(
            events.flatMap((event) => event.event_type === "execution_failed" ? [[event.error, event.failure]] : []),
            [[
              error.message,
              {
                kind: "fail",
                tag: "InvalidInput",
                code: "00009",
                retryable: false,
                value: { _tag: "InvalidInput", unit: "test.strict", issues }
              }
            ]]
          )
        }
      }))

    it.effect("and publishes the failure where a check itself throws", () =>
      Effect.gen(function*() {
        const broken = taking(Schema.String.check(Schema.makeFilter(() => {
          throw new Error("a check that throws")
        })))
        const { events, exit } = yield* observe(broken({ value: "a" }))
        assert.deepStrictEqual(exit, Exit.die(new Error("a check that throws")))
        assert.deepStrictEqual(events.map((event) => event.event_type === "execution_failed" && event.failure), [
          false,
          { kind: "die", tag: "Error" }
        ])
      }))

    it.effect("and drops what it does not know", () =>
      Effect.gen(function*() {
        let got: unknown
        const unit = Unit.command("test.known", {
          description: "Shows what the handler gets",
          input: { a: Schema.optionalKey(Schema.Int) },
          output: {},
          errors: [],
          handler: (input) => {
            got = input
            return Effect.succeed({})
          }
        })
        const excess = { a: 1, token: "marker" }
        const { events } = yield* observe(Effect.andThen(unit(excess), unit.execute(excess)))
        assert.deepStrictEqual(startedInputs(events), [{ a: 1 }, { a: 1 }])
        assert.deepStrictEqual(got, { a: 1 })
      }))

    it.effect("that has no fields as one that is an object", () =>
      Effect.gen(function*() {
        const unit = Unit.query("test.nothing", {
          description: "Takes nothing",
          input: {},
          output: {},
          errors: [],
          handler: () => Effect.succeed({})
        })
        const excess = { token: "marker" }
        const { events } = yield* observe(
          Effect.all([unit(), unit({}), unit(excess), unit.execute(undefined), unit.execute(excess)])
        )
        assert.deepStrictEqual(startedInputs(events), [{}, {}, {}, {}, {}])
        for (const given of ["text", [1], 1, null]) {
          const { exit } = yield* observe(unit.execute(given))
          assert.isTrue(Exit.isFailure(exit) && Cause.hasFails(exit.cause), String(given))
        }
      }))
  })

  describe("fills in what may be left out", () => {
    const list = Unit.query("model.list", {
      description: "Lists models",
      input: {
        limit: Schema.Int.check(Schema.isBetween({ minimum: 1, maximum: 100 })).pipe(Unit.withDefault(100)),
        type: Schema.optionalKey(Schema.String),
        since: Schema.Date.pipe(Schema.optionalKey)
      },
      output: { limit: Schema.Int, has_type: Schema.Boolean },
      errors: [],
      handler: (input) => Effect.succeed({ limit: input.limit, has_type: "type" in input })
    })

    it.effect("for callers and on the wire alike", () =>
      Effect.gen(function*() {
        const { events, exit } = yield* observe(Effect.all([
          list(),
          list({}),
          list({ limit: 3 }),
          list({ type: "llm" }),
          list.handler(),
          list.execute(undefined),
          list.execute({}),
          list.execute({ limit: 3, type: "llm" })
        ]))
        assert.deepStrictEqual(
          exit,
          Exit.succeed([
            { limit: 100, has_type: false },
            { limit: 100, has_type: false },
            { limit: 3, has_type: false },
            { limit: 100, has_type: true },
            { limit: 100, has_type: false },
            { limit: 100, has_type: false },
            { limit: 100, has_type: false },
            { limit: 3, has_type: true }
          ])
        )
        // The started event shows what the handler gets.
        assert.deepStrictEqual(startedInputs(events), [
          { limit: 100 },
          { limit: 100 },
          { limit: 3 },
          { limit: 100, type: "llm" },
          { limit: 100 },
          { limit: 100 },
          { limit: 3, type: "llm" }
        ])
      }))

    it.effect("but takes no default for a value that does not fit", () =>
      Effect.gen(function*() {
        for (const limit of [0, null, "3", 1.5]) {
          const { exit } = yield* observe(list.execute({ limit }))
          assert.isTrue(Exit.isFailure(exit), String(limit))
        }
      }))
  })

  describe("shows its input as it was when it was called", () => {
    class Basket extends Schema.Class<Basket>("Basket")({ items: Schema.mutable(Schema.Array(Schema.String)) }) {}

    const mutations: ReadonlyArray<
      readonly [
        name: string,
        schema: Schema.Codec<unknown, unknown>,
        make: () => unknown,
        change: (value: never) => void
      ]
    > = [
      ["a list", Schema.Array(Schema.String), () => ["a"], (value: Array<string>) => void value.push("b")],
      ["a struct", Schema.Struct({ n: Schema.Int }), () => ({ n: 1 }), (value: { n: number }) => void value.n++],
      [
        "a record",
        Schema.Record(Schema.String, Schema.Int),
        () => ({ n: 1 }),
        (value: { n: number }) => void value.n++
      ],
      ["anything", Schema.Unknown, () => ({ list: [1] }), (value: { list: Array<number> }) => void value.list.push(2)],
      ["JSON", Schema.Json, () => ({ list: [1] }), (value: { list: Array<number> }) => void value.list.push(2)],
      ["a date", Schema.Date, () => new Date(0), (value: Date) => void value.setTime(1)],
      ["bytes", Schema.Uint8Array, () => new Uint8Array([1]), (value: Uint8Array) => void value.fill(2)],
      [
        "a Map",
        Schema.ReadonlyMap(Schema.String, Schema.Int),
        () => new Map([["a", 1]]),
        (value: Map<string, number>) => void value.set("b", 2)
      ],
      ["an instance", Basket, () => new Basket({ items: ["a"] }), (value: Basket) => void value.items.push("b")]
    ]

    it.effect.each(mutations)("%s", ([, schema, make, change]) =>
      Effect.gen(function*() {
        const unit = taking(schema)
        const encoded = Schema.encodeUnknownSync(Schema.toCodecJson(schema))(make())
        const given = make()
        const { events } = yield* observe(
          Effect.tap(unit({ value: given }), () => Effect.sync(() => change(given as never)))
        )
        assert.deepStrictEqual(startedInputs(events), [{ value: encoded }])
      }))

    it.effect("where it does not fit, too", () =>
      Effect.gen(function*() {
        const given = { value: [1], date: new Date(0) }
        const { events } = yield* observe(
          Effect.ensuring(
            taking(Schema.String).execute(given),
            Effect.sync(() => {
              given.value.push(2)
              given.date.setTime(1)
            })
          )
        )
        assert.deepStrictEqual(startedInputs(events), [{ value: [1] }])
      }))
  })

  it.effect("runs without events and without a publisher by its handler", () =>
    Effect.gen(function*() {
      assert.deepStrictEqual(yield* size.handler({ model_id: "tiny" }), { size: 3 })
      const missing = yield* Effect.exit(size.handler({ model_id: "none" }))
      assert.deepStrictEqual(missing, Exit.fail(new ModelNotFound({ model_id: "none" })))
      const { events } = yield* observe(size.handler({ model_id: "tiny" }))
      assert.deepStrictEqual(events, [])
    }).pipe(Effect.provideService(Models, models)))

  describe("executes JSON", () => {
    const Rich = Schema.Struct({
      at: Schema.Date,
      when: Schema.DateTimeUtc,
      big: Schema.BigInt,
      bytes: Schema.Uint8Array,
      map: Schema.ReadonlyMap(Schema.String, Schema.BigInt),
      maybe: Schema.Option(Schema.String),
      // JSON has one zero.
      number: Schema.Number.check(Schema.makeFilter((n) => !Object.is(n, -0))),
      // Any other text could turn up elsewhere by chance, and be hidden there, too.
      secret: Schema.Redacted(Schema.Literal("marker-4711")),
      nested: Schema.Array(Schema.Struct({ at: Schema.optionalKey(Schema.Date) })),
      either: Schema.Union([
        Schema.Struct({ kind: Schema.Literal("n"), n: Schema.BigInt }),
        Schema.Struct({ kind: Schema.Literal("s"), s: Schema.String })
      ])
    })
    const echo = Unit.command("test.echo", {
      description: "Gives what it takes",
      input: Rich,
      output: Rich,
      errors: [],
      handler: Effect.succeed
    })

    it.effect.prop("there and back", { value: Rich }, ({ value }) =>
      Effect.gen(function*() {
        const codec = Schema.toCodecJson(Rich)
        const wire = Schema.encodeUnknownSync(codec)(value)
        const { events, exit } = yield* observe(echo.execute(JSON.parse(JSON.stringify(wire))))
        assert.deepStrictEqual(exit, Exit.succeed(wire))
        const same = Schema.toEquivalence(Rich)
        assert.isTrue(Exit.isSuccess(exit) && same(Schema.decodeUnknownSync(codec)(exit.value), value))
        // Events show the same JSON, without what is secret.
        const shown = Object.assign({}, wire, { secret: "<redacted>" })
        assert.deepStrictEqual(
          events.map((event) => "input" in event ? event.input : "output" in event && event.output),
          [shown, shown]
        )
      }), { arbitrary: { runs: 50 } })

    it.effect("and gives the handler what its types say", () =>
      Effect.gen(function*() {
        let got: unknown
        const unit = Unit.command("test.types", {
          description: "Shows what the handler gets",
          input: { at: Schema.Date, when: Schema.DateTimeUtc, big: Schema.BigInt, key: Schema.Redacted(Schema.String) },
          output: {},
          errors: [],
          handler: (input) => {
            got = { ...input, key: Redacted.value(input.key) }
            return Effect.succeed({})
          }
        })
        yield* observe(
          unit.execute({ at: "2026-01-01T00:00:00.000Z", when: "2026-01-01T00:00:00.000Z", big: "12", key: "marker" })
        )
        assert.deepStrictEqual(got, {
          at: new Date(Date.UTC(2026, 0, 1)),
          when: DateTime.makeUnsafe(Date.UTC(2026, 0, 1)),
          big: 12n,
          key: "marker"
        })
      }))

    it.effect("keeps typed failures as they are", () =>
      Effect.gen(function*() {
        const { exit } = yield* observe(size.execute({ model_id: "none" })).pipe(Effect.provideService(Models, models))
        assert.deepStrictEqual(exit, Exit.fail(new ModelNotFound({ model_id: "none" })))
      }))

    it.effect("and dies of an output that its schema does not describe", () =>
      Effect.gen(function*() {
        const odd = Unit.query("test.odd", {
          description: "Gives what it should not",
          input: {},
          output: { n: Schema.Int },
          errors: [],
          handler: () => Effect.succeed({ n: 0.5 })
        })
        // The caller in TypeScript gets what the handler gave; only the wire has a form to keep.
        const direct = yield* observe(odd())
        assert.deepStrictEqual(direct.exit, Exit.succeed({ n: 0.5 }))
        const { exit } = yield* observe(odd.execute({}))
        assert.isTrue(Exit.isFailure(exit) && Cause.hasDies(exit.cause) && !Cause.hasFails(exit.cause))
      }))
  })

  describe("of a stream", () => {
    const count = Unit.stream("text.count", {
      description: "Counts down, and adds up how far",
      kind: "query",
      input: { from: Schema.Int, by: Schema.Int.pipe(Unit.withDefault(1)) },
      chunk: Schema.Struct({ n: Schema.BigInt }),
      output: { total: Schema.Finite, last: Schema.optionalKey(Schema.BigInt) },
      aggregate: {
        initial: () => ({ total: 0 }),
        step: ({ total }, { n }) => ({ total: total + 1, last: n })
      },
      errors: [ModelNotFound],
      handler: ({ by, from }) =>
        from < 0
          ? Stream.fail(new ModelNotFound({ model_id: String(from) }))
          : Stream.map(Stream.range(0, Math.floor(from / by)), (step) => ({ n: BigInt(from - step * by) }))
    })

    it("says what it is", () => {
      assert.isTrue(Unit.isUnit(count))
      assert.strictEqual(count.kind, "query")
      assert.strictEqual(count.domain, "text")
      assert.isTrue(Schema.is(count.chunk)({ n: 1n }))
      const plain = Unit.stream("text.plain", {
        description: "Has a default of everything",
        input: {},
        chunk: Schema.String,
        errors: [],
        handler: () => Stream.empty
      })
      assert.strictEqual(plain.kind, "command")
      assert.strictEqual(plain.output, Unit.ChunkCount)
      assert.deepStrictEqual(plain.examples, [])
    })

    it.effect("completes with the aggregate of its chunks", () =>
      Effect.gen(function*() {
        const { events, exit } = yield* observe(Stream.runCollect(count({ from: 2 })))
        assert.deepStrictEqual(exit, Exit.succeed([{ n: 2n }, { n: 1n }, { n: 0n }]))
        assert.deepStrictEqual(startedInputs(events), [{ from: 2, by: 1 }])
        assert.deepStrictEqual(
          events.flatMap((event) => event.event_type === "execution_completed" ? [[event.output, event.chunks]] : []),
          [[{ total: 3, last: "0" }, 3]]
        )
      }))

    it.effect("aggregates anew each time it is run", () =>
      Effect.gen(function*() {
        const stream = count({ from: 1 })
        const { events } = yield* observe(Effect.andThen(Stream.runDrain(stream), Stream.runDrain(stream)))
        assert.deepStrictEqual(
          events.flatMap((event) => event.event_type === "execution_completed" ? [event.output] : []),
          [{ total: 2, last: "0" }, { total: 2, last: "0" }]
        )
      }))

    it.effect("checks its input, without events or a publisher by its handler", () =>
      Effect.gen(function*() {
        const invalid = new InvalidInput({
          unit: "text.count",
          issues: [{ path: "from", expected: "Expected an integer" }]
        })
        assert.deepStrictEqual(yield* Effect.exit(Stream.runCollect(count.handler({ from: 0.5 }))), Exit.fail(invalid))
        assert.deepStrictEqual(yield* Stream.runCollect(count.handler({ from: 0 })), [{ n: 0n }])
        const { events, exit } = yield* observe(Stream.runCollect(count({ from: 0.5 })))
        assert.deepStrictEqual(exit, Exit.fail(invalid))
        assert.deepStrictEqual(
          events.map((event) => event.event_type === "execution_failed" && [event.failure.tag, event.chunks]),
          [
            false,
            ["InvalidInput", 0]
          ]
        )
      }))

    it.effect("executes JSON, chunk by chunk", () =>
      Effect.gen(function*() {
        const { exit } = yield* observe(Stream.runCollect(count.execute({ from: 2, by: 2 })))
        assert.deepStrictEqual(exit, Exit.succeed([{ n: "2" }, { n: "0" }]))
        const failed = yield* observe(Stream.runCollect(count.execute({ from: -1 })))
        assert.deepStrictEqual(failed.exit, Exit.fail(new ModelNotFound({ model_id: "-1" })))
      }))

    it.effect("dies of an aggregate that throws, and its event says so", () =>
      Effect.gen(function*() {
        const broken = Unit.stream("text.broken", {
          description: "Cannot add up",
          input: {},
          chunk: Schema.Int,
          output: { total: Schema.Int },
          aggregate: {
            initial: () => ({ total: 0 }),
            step: () => {
              throw new Error("no sum")
            }
          },
          errors: [],
          handler: () => Stream.make(1, 2)
        })
        const { events, exit } = yield* observe(Stream.runDrain(broken()))
        assert.deepStrictEqual(exit, Exit.die(new Error("no sum")))
        assert.deepStrictEqual(
          events.flatMap((event) => event.event_type === "execution_failed" ? [[event.error, event.failure.kind]] : []),
          [["no sum", "die"]]
        )
      }))
  })

  describe("keeps secrets to itself", () => {
    const Secret = Unit.secret(Schema.String)
    class Login extends Schema.Class<Login>("Login")({ user: Schema.String, password: Secret }) {}
    interface Tree {
      readonly token?: string
      readonly below: ReadonlyArray<Tree>
    }
    const Tree = Schema.Struct({
      token: Schema.optionalKey(Secret),
      below: Schema.Array(Schema.suspend((): Schema.Codec<Tree> => Tree))
    })
    class Refused extends UnitError.make<Refused>()("Refused", { code: "10000", retryable: false }, {
      detail: Schema.String,
      attempts: Schema.Record(Schema.String, Schema.Json),
      key: Schema.optionalKey(Schema.Redacted(Schema.String))
    }) {
      override get message(): string {
        return `Refused: ${this.detail}`
      }
    }

    const Places = {
      redacted: Schema.Redacted(Schema.String),
      from_value: Schema.RedactedFromValue(Schema.String),
      marked: Secret,
      checked: Secret.check(Schema.isMinLength(1)),
      list: Schema.Array(Schema.Struct({ token: Secret })),
      tuple: Schema.Tuple([Schema.String, Secret]),
      record: Schema.Record(Schema.String, Secret),
      union: Schema.Union([
        Schema.Struct({ kind: Schema.Literal("open") }),
        Schema.Struct({ kind: Schema.Literal("key"), key: Secret })
      ]),
      login: Login,
      tree: Tree,
      maybe: Schema.NullOr(Secret),
      deep: Schema.Struct({ map: Schema.ReadonlyMap(Schema.String, Schema.Struct({ key: Secret })) })
    }
    const at: { readonly [K in keyof typeof Places]: (secret: string) => (typeof Places)[K]["Type"] } = {
      redacted: (secret) => Redacted.make(secret),
      from_value: (secret) => Redacted.make(secret),
      marked: (secret) => secret,
      checked: (secret) => secret,
      list: (token) => [{ token: "another" }, { token }],
      tuple: (secret) => ["first", secret],
      record: (secret) => ({ a: "another", b: secret }),
      union: (key) => ({ kind: "key", key }),
      login: (password) => new Login({ user: "ada", password }),
      tree: (token) => ({ below: [{ below: [{ token, below: [] }] }] }),
      maybe: (secret) => secret,
      deep: (key) => ({ map: new Map([["k", { key }]]) })
    }
    const place = Schema.Literals([
      "redacted",
      "from_value",
      "marked",
      "checked",
      "list",
      "tuple",
      "record",
      "union",
      "login",
      "tree",
      "maybe",
      "deep"
    ])

    const Told = DomainEvent.define("vault.told", { text: Schema.String, more: Schema.Json })
    const leak = (text: string): Schema.Json => ({
      text,
      list: [text, `${text}${text}`],
      [text]: 1,
      json: JSON.stringify({ text }),
      url: encodeURIComponent(text)
    })
    const Ending = Schema.Literals([
      "success",
      "failure",
      "failure with a secret of its own",
      "defect",
      "defect that is no error",
      "defect with properties",
      "interruption"
    ])

    const vault = (ending: typeof Ending.Type, secret: string) => ({
      description: "Does all it can to give a secret away",
      errors: [Refused],
      run: (): Effect.Effect<
        { readonly text: string; readonly more: Schema.Json; readonly own: Redacted.Redacted<string> },
        Refused,
        EventPublisher.EventPublisher
      > => {
        const text = `It is ${secret}!`
        const told = Execution.annotate(Told.publish({ text, more: leak(secret) }), { note: text, [secret]: secret })
        switch (ending) {
          case "success":
            return Effect.as(told, { text, more: leak(secret), own: Redacted.make(`own-${secret}`) })
          case "failure":
            return Effect.fail(new Refused({ detail: text, attempts: { first: leak(secret) } }))
          case "failure with a secret of its own":
            return Effect.fail(new Refused({ detail: text, attempts: { [secret]: text }, key: Redacted.make(secret) }))
          case "defect":
            return Effect.die(new TypeError(text, { cause: text }))
          case "defect that is no error":
            return Effect.die(leak(secret))
          case "defect with properties":
            return Effect.die(Object.assign(new Error(text), { _tag: secret, name: text, code: secret }))
          case "interruption":
            return Effect.interrupt
        }
      }
    })
    const Output = { text: Schema.String, more: Schema.Json, own: Schema.Redacted(Schema.String) }
    const Input = Object.fromEntries(Object.entries(Places).map(([name, schema]) => [name, Schema.optionalKey(schema)]))

    /** Every form of everything that was published. */
    const texts = (events: ReadonlyArray<EventPublisher.Event>): string =>
      JSON.stringify(events.map((event) =>
        ExecutionEvent.isExecutionEvent(event)
          ? [ExecutionEvent.toJson(event), ExecutionEvent.toCloudEvent(event)]
          : [DomainEvent.toJson(event), DomainEvent.toCloudEvent(event)]
      ))

    const publishedBy = Effect.fnUntraced(function*<A, E>(self: Effect.Effect<A, E, EventPublisher.EventPublisher>) {
      const events: Array<EventPublisher.Event> = []
      const publisher = yield* EventPublisher.make({ publish: (event) => void events.push(event) })
      const exit = yield* Effect.exit(self).pipe(Effect.provideService(EventPublisher.EventPublisher, publisher))
      return { events, exit }
    })

    // Whatever follows, the first part is not in any event by accident, nor in any name of a field.
    const marked = Schema.String.pipe(Schema.check(Schema.isMaxLength(20)))

    it.effect.prop("wherever one is, and wherever its text turns up", {
      where: place,
      ending: Ending,
      tail: marked,
      wire: Schema.Boolean,
      form: Schema.Literals(["unit", "stream", "function"])
    }, ({ ending, form, tail, where, wire }) =>
      Effect.gen(function*() {
        const secret = `marker-4711-${tail}`
        const { description, errors, run } = vault(ending, secret)
        const input = { [where]: at[where](secret) }
        const annotated = { note: `It is ${secret}!` }
        const codec = Schema.toCodecJson(Schema.Struct(Input))
        const given = wire ? Schema.encodeUnknownSync(codec)(input) : input
        const command = Unit.command("vault.open", { description, input: Input, output: Output, errors, handler: run })
        const stream = Unit.stream("vault.stream", {
          description,
          input: Input,
          chunk: Schema.Struct(Output),
          output: { all: Schema.Array(Schema.Struct(Output)) },
          aggregate: { initial: () => ({ all: [] }), step: (state, chunk) => ({ all: [...state.all, chunk] }) },
          errors,
          handler: () => Stream.fromEffect(Effect.suspend(run))
        })
        const program: Effect.Effect<unknown, unknown, EventPublisher.EventPublisher> = form === "stream"
          ? (wire ? Stream.runDrain(stream.execute(given)) : Stream.runDrain(stream(input)))
          : form === "unit"
          ? (wire ? command.execute(given) : command(input))
          : instrument((_given: unknown) => run(), {
            name: "vault.function",
            input: Schema.Struct(Input),
            output: Schema.Struct(Output),
            error: Refused
          })(input)
        const { events } = yield* publishedBy(Execution.annotate(program, annotated))
        assert.isAtLeast(events.length, 2)
        const text = texts(events)
        assert.notInclude(text, "marker-4711")
        assert.include(text, "<redacted>")
      }), { arbitrary: { runs: 60 * Number(process.env["STRESS"] ?? 1) }, timeout: 600_000 })

    it.effect.prop("where the input does not fit, too", {
      where: place,
      tail: marked,
      wire: Schema.Boolean,
      spoil: Schema.Literals(["another field", "its own shape", "its own type"])
    }, ({ spoil, tail, where, wire }) =>
      Effect.gen(function*() {
        const secret = `marker-4711-${tail}`
        const strict = Unit.command("vault.strict", {
          description: "Takes what fits",
          input: { ...Input, number: Schema.Int },
          output: {},
          errors: [],
          handler: () => Effect.succeed({})
        })
        const spoiled = spoil === "another field"
          ? { [where]: at[where](secret), number: "none" }
          : { [where]: spoil === "its own shape" ? { odd: [secret, { odd: secret }] } : ["first", [secret]], number: 1 }
        // What a program without types does.
        const untyped = strict as unknown as (
          input: unknown
        ) => Effect.Effect<unknown, unknown, EventPublisher.EventPublisher>
        const { events, exit } = yield* publishedBy(wire ? strict.execute(spoiled) : untyped(spoiled))
        assert.isTrue(Exit.isFailure(exit) && Cause.hasFails(exit.cause))
        assert.deepStrictEqual(events.length, 2)
        assert.notInclude(texts(events), "marker-4711")
      }), { arbitrary: { runs: 60 * Number(process.env["STRESS"] ?? 1) }, timeout: 600_000 })

    it.effect("but not from the handler, nor from the caller", () =>
      Effect.gen(function*() {
        const login = Unit.command("vault.login", {
          description: "Gives back what it takes",
          input: { password: Secret, key: Schema.Redacted(Schema.String) },
          output: { password: Secret, key: Schema.Redacted(Schema.String) },
          errors: [],
          handler: (input) => Effect.succeed(input)
        })
        const given = { password: "marker-4711", key: Redacted.make("marker-4712") }
        const { events, exit } = yield* observe(login(given))
        assert.deepStrictEqual(exit, Exit.succeed(given))
        const shown = { password: "<redacted>", key: "<redacted>" }
        assert.deepStrictEqual(
          events.map((event) => "input" in event ? event.input : "output" in event && event.output),
          [shown, shown]
        )
        const wire = yield* observe(login.execute({ password: "marker-4711", key: "marker-4712" }))
        assert.deepStrictEqual(wire.exit, Exit.succeed({ password: "marker-4711", key: "marker-4712" }))
      }))
  })

  describe("has exact types", () => {
    const list = Unit.query("model.list", {
      description: "Lists models",
      input: { limit: Schema.Int.pipe(Unit.withDefault(100)), type: Schema.optionalKey(Schema.String) },
      output: { items: Schema.Array(Schema.String), next: Schema.optionalKey(Schema.String) },
      errors: [],
      handler: ({ limit, type }) => {
        expectTypeOf(limit).toEqualTypeOf<number>()
        expectTypeOf(type).toEqualTypeOf<string | undefined>()
        return Effect.succeed({ items: [] })
      }
    })
    const chat = Unit.stream("inference.chat", {
      description: "Answers in pieces",
      input: { prompt: Schema.String },
      chunk: Schema.Struct({ text: Schema.String }),
      output: { text: Schema.String, reason: Schema.optionalKey(Schema.String) },
      aggregate: {
        initial: () => ({ text: "" }),
        step: (state, chunk) => {
          expectTypeOf(state).toEqualTypeOf<{ readonly text: string; readonly reason?: string }>()
          expectTypeOf(chunk).toEqualTypeOf<{ readonly text: string }>()
          return { text: state.text + chunk.text }
        }
      },
      errors: [ModelNotFound],
      handler: ({ prompt }) =>
        Stream.fromEffect(Effect.as(Models.use((service) => service.size(prompt)), { text: prompt }))
    })
    const counted = Unit.stream("inference.counted", {
      description: "Counts its pieces",
      input: {},
      chunk: Schema.Int,
      errors: [],
      handler: () => Stream.make(1)
    })
    type Sized = { readonly model_id: string; readonly unit?: "bytes" | "kilobytes" }

    it("of what a unit takes, gives, raises and needs", () => {
      expectTypeOf(size).parameters.toEqualTypeOf<[input: Sized]>()
      expectTypeOf(size({ model_id: "a" })).toEqualTypeOf<
        Effect.Effect<{ readonly size: number }, ModelNotFound | InvalidInput, Models | EventPublisher.EventPublisher>
      >()
      expectTypeOf(size.handler({ model_id: "a" })).toEqualTypeOf<
        Effect.Effect<{ readonly size: number }, ModelNotFound | InvalidInput, Models>
      >()
      expectTypeOf(size.execute({})).toEqualTypeOf<
        Effect.Effect<Schema.Json, ModelNotFound | InvalidInput, Models | EventPublisher.EventPublisher>
      >()
      expectTypeOf(list()).toEqualTypeOf<
        Effect.Effect<
          { readonly items: ReadonlyArray<string>; readonly next?: string },
          InvalidInput,
          EventPublisher.EventPublisher
        >
      >()
      expectTypeOf(list.handler()).toEqualTypeOf<
        Effect.Effect<{ readonly items: ReadonlyArray<string>; readonly next?: string }, InvalidInput>
      >()
    })

    it("of an input that may be left out, in part or as a whole", () => {
      expectTypeOf(list).parameters.toEqualTypeOf<[input?: { readonly limit?: number; readonly type?: string }]>()
      expectTypeOf(list).toBeCallableWith()
      expectTypeOf(list).toBeCallableWith({})
      expectTypeOf(list).toBeCallableWith({ limit: 3 })
      const refused = () => [
        // @ts-expect-error - a required field is missing
        size({}),
        // @ts-expect-error - the whole input is missing
        size(),
        // @ts-expect-error - no such field
        size({ model_id: "a", colour: "red" }),
        // @ts-expect-error - the wrong type
        size({ model_id: 1 }),
        // @ts-expect-error - not in the enumeration
        size({ model_id: "a", unit: "bits" }),
        // @ts-expect-error - left out is something else than undefined
        list({ type: undefined }),
        Unit.query("a.b", {
          description: "",
          input: { n: Schema.Int },
          output: {},
          errors: [],
          // @ts-expect-error - examples are inputs
          examples: [{ n: "1" }],
          handler: () => Effect.succeed({})
        })
      ]
      assert.isFunction(refused)
    })

    it("of helpers", () => {
      expectTypeOf<Unit.Input<typeof size>>().toEqualTypeOf<Sized>()
      expectTypeOf<Unit.Output<typeof size>>().toEqualTypeOf<{ readonly size: number }>()
      expectTypeOf<Unit.Error<typeof size>>().toEqualTypeOf<ModelNotFound | InvalidInput>()
      expectTypeOf<Unit.Services<typeof size>>().toEqualTypeOf<Models>()
      expectTypeOf<Unit.Input<typeof list>>().toEqualTypeOf<{ readonly limit?: number; readonly type?: string }>()
      expectTypeOf<Unit.Error<typeof list>>().toEqualTypeOf<InvalidInput>()
      expectTypeOf<Unit.Services<typeof list>>().toEqualTypeOf<never>()
      expectTypeOf<Unit.Input<typeof chat>>().toEqualTypeOf<{ readonly prompt: string }>()
      expectTypeOf<Unit.Output<typeof chat>>().toEqualTypeOf<{ readonly text: string; readonly reason?: string }>()
      expectTypeOf<Unit.Error<typeof chat>>().toEqualTypeOf<ModelNotFound | InvalidInput>()
      expectTypeOf<Unit.Services<typeof chat>>().toEqualTypeOf<Models>()
      expectTypeOf<Unit.Output<typeof counted>>().toEqualTypeOf<{ readonly chunks: number }>()
      expectTypeOf<Unit.Services<typeof size | typeof list>>().toEqualTypeOf<Models>()
    })

    it("of streams", () => {
      expectTypeOf(chat({ prompt: "a" })).toEqualTypeOf<
        Stream.Stream<{ readonly text: string }, ModelNotFound | InvalidInput, Models | EventPublisher.EventPublisher>
      >()
      expectTypeOf(chat.handler({ prompt: "a" })).toEqualTypeOf<
        Stream.Stream<{ readonly text: string }, ModelNotFound | InvalidInput, Models>
      >()
      expectTypeOf(chat.execute({})).toEqualTypeOf<
        Stream.Stream<Schema.Json, ModelNotFound | InvalidInput, Models | EventPublisher.EventPublisher>
      >()
      expectTypeOf(counted()).toEqualTypeOf<Stream.Stream<number, InvalidInput, EventPublisher.EventPublisher>>()
    })

    it("of handlers, which can do no more than is declared", () => {
      const shapes = { description: "", input: { n: Schema.Int }, output: { n: Schema.Int } }
      const refused = () => [
        // @ts-expect-error - a failure that is not declared
        // @effect-diagnostics-next-line missingEffectError:off
        Unit.query("a.b", { ...shapes, errors: [], handler: () => Effect.fail(new ModelNotFound({ model_id: "a" })) }),
        Unit.query("a.b", {
          ...shapes,
          errors: [ModelNotFound],
          // @ts-expect-error - one of two failures is not declared
          // @effect-diagnostics-next-line missingEffectError:off
          handler: ({ n }) => n > 1 ? Effect.fail(new ModelNotFound({ model_id: "a" })) : Effect.fail("other")
        }),
        // @ts-expect-error - another output
        Unit.query("a.b", { ...shapes, errors: [], handler: () => Effect.succeed({ n: "1" }) }),
        // @ts-expect-error - a field of the output is missing
        Unit.query("a.b", { ...shapes, errors: [], handler: () => Effect.succeed({}) }),
        // @ts-expect-error - no such field of the input
        Unit.query("a.b", { ...shapes, errors: [], handler: ({ m }) => Effect.succeed({ n: m }) }),
        // @ts-expect-error - a name has a domain
        Unit.query("b", { ...shapes, errors: [], handler: ({ n }) => Effect.succeed({ n }) }),
        // @ts-expect-error - not an Effect
        Unit.query("a.b", { ...shapes, errors: [], handler: ({ n }) => ({ n }) }),
        Unit.stream("a.b", {
          ...shapes,
          output: undefined,
          chunk: Schema.Int,
          errors: [],
          // @ts-expect-error - a stream's failure is not declared
          handler: () => Stream.fail("other")
        })
      ]
      assert.isFunction(refused)
      // What is declared need not be raised, and InvalidInput is always declared.
      const fine = Unit.query("a.b", {
        ...shapes,
        errors: [ModelNotFound],
        handler: ({ n }) => n > 1 ? Effect.fail(new InvalidInput({ unit: "a.b", issues: [] })) : Effect.succeed({ n })
      })
      expectTypeOf<Unit.Error<typeof fine>>().toEqualTypeOf<ModelNotFound | InvalidInput>()
    })

    it("of services, which a publisher is one of", () => {
      // @ts-expect-error - what publishes needs a publisher before it can run
      // @effect-diagnostics-next-line missingEffectContext:off
      const run: Effect.Effect<unknown, unknown, Models> = size({ model_id: "a" })
      // @ts-expect-error - and the services of its handler
      // @effect-diagnostics-next-line missingEffectContext:off
      const bare: Effect.Effect<unknown, unknown> = size.handler({ model_id: "a" })
      assert.isTrue(Effect.isEffect(run) && Effect.isEffect(bare))
    })

    it("and every unit is one of any", () => {
      const units: ReadonlyArray<Unit.Any> = [size, list, chat, counted]
      assert.deepStrictEqual(units.map((unit) => unit.name), [
        "model.size",
        "model.list",
        "inference.chat",
        "inference.counted"
      ])
      expectTypeOf(Unit.secret(Schema.String)).toEqualTypeOf<typeof Schema.String>()
      expectTypeOf<(typeof list)["input"]["Encoded"]>().toEqualTypeOf<
        { readonly limit?: number; readonly type?: string }
      >()
    })
  })
})
