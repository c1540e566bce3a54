import { NodeServices } from "@effect/platform-node"
import { assert, describe, it } from "@effect/vitest"
import { Cause, Context, Effect, Exit, Layer, Random, References, Schema } from "effect"
import { SqlClient } from "effect/sql"
import { TestClock } from "effect/testing"
import * as fs from "node:fs"
import * as os from "node:os"
import * as path from "node:path"
import * as Operations from "../../src/backends/Operations.ts"
import * as Sqlite from "../../src/backends/Sqlite.ts"
import { ModelAlreadyExists, ModelNotFound } from "../../src/model/Errors.ts"
import { ModelId } from "../../src/model/Model.ts"
import * as ModelStore from "../../src/model/ModelStore.ts"

const temporaryDirectory = Effect.acquireRelease(
  Effect.sync(() => fs.mkdtempSync(path.join(os.tmpdir(), "store-"))),
  (directory) => Effect.sync(() => fs.rmSync(directory, { recursive: true }))
)

/** A store on a connection of its own, as each process has one. */
const open = Effect.fnUntraced(function*(directory: string) {
  const database = Sqlite.layer({ filename: path.join(directory, "test.db") })
  const context = yield* Layer.build(
    Layer.provideMerge(ModelStore.layer({ directory: "/models" }), Layer.merge(database, NodeServices.layer))
  )
  return { store: Context.get(context, ModelStore.ModelStore), sql: Context.get(context, SqlClient.SqlClient) }
})

const opened = Effect.flatMap(temporaryDirectory, open)

/** Stores of two processes, on one database. */
const two = Effect.gen(function*() {
  const directory = yield* temporaryDirectory
  const [one, other] = yield* Effect.all([open(directory), open(directory)], { concurrency: 2 })
  return [one.store, other.store] as const
})

const model = (name: string): ModelStore.NewModel => ({
  name,
  type: "llm",
  format: "gguf",
  status: "pending",
  source: "local",
  size: 0,
  tags: [],
  files: []
})

/** Fibers take turns after a few steps, also between two statements. */
const interleaved = Effect.provideService(References.MaxOpsBeforeYield, 7)

const origin = { source: "huggingface", repo: "acme/tiny", tag: "main" } as const
const nobody = ModelId.make("model-00000000")

describe("a record", () => {
  it.effect("comes back as it went in, in another process too", () =>
    Effect.gen(function*() {
      const [one, other] = yield* two
      yield* TestClock.setTime(7_999)
      const full: ModelStore.NewModel = {
        name: "Tiny \u0000 \u{1F999}",
        type: "vlm",
        format: "safetensors",
        status: "ready",
        source: "huggingface",
        path: "/models/tiny",
        size: Number.MAX_SAFE_INTEGER,
        checksum: "size:7",
        requirements: { memory_min: 1, memory_recommended: 2, gpu_memory: 3, gpu_type: "L4" },
        tags: ["a", ""],
        files: [{ path: "a/b", size: 7, sha256: "0".repeat(64) }, { path: "c", size: 0 }],
        origin: { ...origin, mirror: "https://hub.test" },
        shape: { weightBytes: 7, kvHeads: [1, 2], headDim: 0.5 }
      }
      const made = yield* one.insert(full)
      assert.deepStrictEqual(made, { ...full, id: made.id, created_at: 7, updated_at: 7 })
      assert.deepStrictEqual(yield* other.get(made.id), made)
      assert.deepStrictEqual(yield* other.list({ limit: 10, offset: 0 }), { items: [made], total: 1 })
      const { path: _path, checksum: _checksum, requirements: _requirements, ...rest } = made
      yield* TestClock.setTime(9_000)
      const less = yield* other.change(made.id, {
        path: undefined,
        checksum: undefined,
        requirements: undefined,
        size: 1
      })
      assert.deepStrictEqual(JSON.parse(JSON.stringify(less)), { ...rest, size: 1, updated_at: 9 })
      assert.deepStrictEqual(yield* one.get(made.id), { ...rest, size: 1, updated_at: 9 })
    }))

  it.effect("that is not there is not found, nor made by a change", () =>
    Effect.gen(function*() {
      const { store } = yield* opened
      const missing = new ModelNotFound({ model_id: nobody })
      assert.deepStrictEqual(yield* Effect.flip(store.get(nobody)), missing)
      assert.deepStrictEqual(
        yield* Effect.flip(store.get("'; DROP TABLE effect_units_models; --")).pipe(
          Effect.map((error) => error._tag)
        ),
        "ModelNotFound"
      )
      assert.deepStrictEqual(yield* Effect.flip(store.change(nobody, { size: 1 })), missing)
      assert.deepStrictEqual(yield* Effect.flip(store.during(nobody, "pull", () => Effect.void)), missing)
      yield* store.remove(nobody)
      assert.deepStrictEqual(yield* store.list({ limit: 10, offset: 0 }), { items: [], total: 0 })
    }))

  it.effect("is found by its id, or by its name in any case, the id first", () =>
    Effect.gen(function*() {
      const { store } = yield* opened
      const made = yield* store.insert(model("Tiny"))
      const namesake = yield* store.insert(model(made.id))
      assert.deepStrictEqual(yield* store.find("tINY"), made)
      assert.deepStrictEqual(yield* store.find(made.id), made)
      assert.deepStrictEqual(yield* store.find(namesake.id), namesake)
      assert.isUndefined(yield* store.find("tin"))
    }))

  it.effect("has a folder of its own", () =>
    Effect.gen(function*() {
      const { store } = yield* opened
      assert.strictEqual(store.directory(nobody), "/models/model-00000000")
    }))
})

describe("ids", () => {
  const constant = Random.Random.of({ nextIntUnsafe: () => 7, nextDoubleUnsafe: () => 0.5 })

  it.effect("are drawn again when they are taken", () =>
    Effect.gen(function*() {
      const { store } = yield* opened
      const insert = (name: string) => Effect.map(Random.withSeed(store.insert(model(name)), "seed"), ({ id }) => id)
      const ids = [yield* insert("a"), yield* insert("b"), yield* insert("c")]
      assert.strictEqual(new Set(ids).size, 3)
      const register = (tag: string) =>
        Random.withSeed(store.register({ ...model(tag), origin: { ...origin, tag } }), "seed")
      assert.notInclude(ids, (yield* register("x")).model.id)
      // By the same seed, in a register that is empty, the same ids come in the same order.
      const { store: fresh } = yield* opened
      const again = Effect.map(fresh.insert(model("a")), ({ id }) => id)
      assert.strictEqual(yield* Random.withSeed(again, "seed"), ids[0])
    }))

  it.effect("that are always taken are given up", () =>
    Effect.gen(function*() {
      const { store } = yield* opened
      const insert = (name: string) => Effect.provideService(store.insert(model(name)), Random.Random, constant)
      assert.strictEqual((yield* insert("a")).id, "model-80000000")
      const error = yield* Effect.flip(insert("b"))
      assert.instanceOf(error, ModelStore.ModelStoreError)
      assert.strictEqual(error.operation, "add a model")
      assert.strictEqual((yield* store.list({ limit: 10, offset: 0 })).total, 1)
    }))
})

describe("an origin", () => {
  it.effect("has one record, whoever registers it first", () =>
    Effect.gen(function*() {
      const { store } = yield* opened
      const registered = { ...model("acme/tiny"), origin }
      const first = yield* store.register(registered)
      assert.isTrue(first.created)
      assert.deepStrictEqual(yield* store.register({ ...registered, name: "other" }), { ...first, created: false })
      // A mirror of a hub has the same models. Separators in names do not make them meet.
      const same = yield* store.register({ ...registered, origin: { ...origin, mirror: "https://hub.test" } })
      assert.strictEqual(same.model.id, first.model.id)
      const others: ReadonlyArray<ModelStore.Origin> = [
        { ...origin, tag: "other" },
        { ...origin, source: "modelscope" },
        { ...origin, repo: "acme/tiny\nmain", tag: "x" },
        { ...origin, repo: "acme/tiny", tag: "main\nx" },
        { ...origin, source: "ollama" },
        { ...origin, source: "ollama", mirror: "https://registry.test" }
      ]
      const ids = yield* Effect.forEach(others, (origin) =>
        Effect.map(store.register({ ...registered, origin }), ({ created, model }) => {
          assert.isTrue(created)
          return model.id
        }))
      assert.strictEqual(new Set([first.model.id, ...ids]).size, 7)
    }))
})

describe("a status", () => {
  it.effect("shows the work that is under way, and is left as it was or as the work says", () =>
    Effect.gen(function*() {
      const { store } = yield* opened
      const { id } = yield* store.insert(model("tiny"))
      const seen = Effect.gen(function*() {
        const { status } = yield* store.get(id)
        const { items } = yield* store.list({ status, limit: 10, offset: 0 })
        assert.deepStrictEqual(items.map((item) => item.status), [status])
        return status
      })
      assert.strictEqual(
        yield* store.during(id, "verify", ({ status }) => Effect.map(seen, (now) => `${status} ${now}`)),
        "verifying verifying"
      )
      assert.strictEqual(yield* seen, "pending")
      assert.strictEqual(yield* store.during(id, "delete", () => seen), "pending")
      assert.strictEqual(yield* store.during(id, "pull", () => seen), "pulling")
      assert.strictEqual(yield* seen, "error")
      yield* store.during(id, "pull", () => store.change(id, { status: "ready" }))
      assert.strictEqual(yield* seen, "ready")
      // What others change meanwhile does not make the work's status the record's own.
      yield* store.during(id, "verify", () => store.change(id, { size: 7 }))
      assert.strictEqual(yield* seen, "ready")
      yield* Effect.exit(store.during(id, "verify", () => Effect.die("no")))
      assert.strictEqual(yield* seen, "ready")
      yield* Effect.exit(store.during(id, "pull", () => Effect.die("no")))
      assert.strictEqual(yield* seen, "error")
    }))

  it.effect("is an error after a pull, and as it was after a check, whose process is gone", () =>
    Effect.gen(function*() {
      const { sql, store } = yield* opened
      const { id } = yield* store.insert(model("tiny"))
      const status = Effect.map(store.get(id), ({ status }) => status)
      const abandon = (operation: ModelStore.Operation) =>
        Effect.gen(function*() {
          const left = yield* store.during(id, operation, () => sql`SELECT * FROM effect_units_models`)
          yield* sql`UPDATE effect_units_models SET ${sql.update(left[0] as Record<string, unknown>, ["id"])}`
        })
      yield* abandon("verify")
      assert.strictEqual(yield* status, "verifying")
      yield* TestClock.adjust("30001 millis")
      assert.strictEqual(yield* status, "pending")
      yield* abandon("pull")
      assert.strictEqual(yield* status, "pulling")
      yield* TestClock.adjust("30001 millis")
      assert.strictEqual(yield* status, "error")
      assert.strictEqual((yield* store.list({ status: "error", limit: 1, offset: 0 })).total, 1)
      assert.strictEqual((yield* store.list({ status: "pulling", limit: 1, offset: 0 })).total, 0)
      assert.isFalse(yield* store.cancel(id))
    }))

  it.effect("of a delete is not cancelled by another", () =>
    Effect.gen(function*() {
      const { store } = yield* opened
      const { id } = yield* store.insert(model("tiny"))
      assert.isFalse(yield* store.during(id, "delete", () => store.cancel(id)))
      assert.isTrue(
        Exit.isFailure(
          yield* Effect.exit(store.during(id, "delete", () => store.during(id, "pull", () => Effect.void)))
        )
      )
    }))
})

describe("in two processes at once", () => {
  it.live("no change of one field undoes that of another", () =>
    Effect.gen(function*() {
      const stores = yield* two
      const changes: ReadonlyArray<ModelStore.Change> = [
        { size: 7 },
        { type: "vlm" },
        { format: "onnx" },
        { tags: ["a"] },
        { status: "ready" },
        { checksum: "size:7" },
        { path: "/models/tiny" },
        { shape: { layers: 3 } }
      ]
      for (let round = 0; round < 5; round++) {
        const { id, updated_at: before, ...made } = yield* stores[0].insert(model("tiny"))
        yield* Effect.forEach(changes, (change, index) => stores[index % 2]!.change(id, change), {
          concurrency: "unbounded"
        }).pipe(interleaved)
        const { updated_at: after, ...changed } = yield* stores[0].get(id)
        assert.deepStrictEqual(changed, Object.assign({ id }, made, ...changes))
        assert.isAtLeast(after, before)
        yield* stores[1].remove(id)
      }
    }))

  const Step = Schema.Struct({
    do: Schema.Literals(["insert", "register", "change", "remove", "during", "cancel"]),
    store: Schema.Literals([0, 1]),
    name: Schema.Literals(["a", "A", "b", "c"]),
    operation: Schema.Literals(["pull", "verify", "delete"])
  })

  it.effect.prop("names stay unique, work stays alone, and nothing appears or vanishes by itself", {
    steps: Schema.Array(Step).check(Schema.isBetweenLength(15, 30))
  }, ({ steps }) =>
    Effect.gen(function*() {
      const stores = yield* two
      const first = yield* stores[0].insert(model("c"))
      const ids: Array<ModelId> = [first.id]
      const removed = new Set<ModelId>()
      const working = new Map<ModelId, number>()
      /** The records that are known by then, one after the other. */
      let turn = 0
      const some = () => ids[turn++ % ids.length]!
      const play = Effect.fnUntraced(function*(step: typeof Step.Type) {
        const store = stores[step.store]
        switch (step.do) {
          case "insert": {
            const made = yield* store.insert({ ...model(step.name), path: `/models/${step.name.toLowerCase()}` })
            return void ids.push(made.id)
          }
          case "register": {
            const { created, model: made } = yield* store.register({
              ...model(step.name),
              origin: { ...origin, repo: step.name }
            })
            if (created) ids.push(made.id)
            return
          }
          case "change":
            return void (yield* store.change(some(), { size: 1 }))
          case "remove": {
            const id = some()
            // From here on it may be gone.
            removed.add(id)
            return yield* store.remove(id)
          }
          case "cancel":
            return void (yield* store.cancel(some()))
          case "during": {
            const id = some()
            return yield* store.during(id, step.operation, () =>
              Effect.gen(function*() {
                working.set(id, (working.get(id) ?? 0) + 1)
                assert.strictEqual(working.get(id), 1, "two are at work on a model")
                yield* Effect.sleep("1 millis")
              }).pipe(Effect.ensuring(Effect.sync(() => working.set(id, (working.get(id) ?? 0) - 1)))))
          }
        }
      })
      const expected = [ModelAlreadyExists, ModelNotFound, Operations.Busy, Operations.Cancelled]
      const exits = yield* Effect.forEach(steps, (step) => Effect.exit(play(step)), { concurrency: "unbounded" }).pipe(
        interleaved
      )
      for (const exit of exits) {
        if (Exit.isSuccess(exit)) continue
        const error = Cause.squash(exit.cause)
        assert.isTrue(expected.some((type) => error instanceof type), String(error))
      }
      const { items, total } = yield* stores[0].list({ limit: 100, offset: 0 })
      assert.strictEqual(items.length, total)
      const names = items.map(({ name }) => name.toLowerCase())
      assert.strictEqual(new Set(names).size, names.length)
      assert.deepStrictEqual(items.map(({ id }) => id).sort(), ids.filter((id) => !removed.has(id)).sort())
      for (const { id } of items) {
        yield* stores[1].during(id, "verify", () => Effect.void)
      }
    }).pipe(Effect.scoped, TestClock.withLive), { arbitrary: { runs: 25 }, timeout: 30_000 })
})

describe("the layer", () => {
  it.effect("fails where its tables cannot be made", () =>
    Effect.gen(function*() {
      const directory = yield* temporaryDirectory
      const database = Sqlite.layer({ filename: path.join(directory, "test.db") })
      yield* Effect.flatMap(SqlClient.SqlClient, (sql) => sql`CREATE TABLE effect_units_models (x)`).pipe(
        Effect.provide(database)
      )
      const error = yield* Effect.flip(open(directory))
      assert.instanceOf(error, ModelStore.ModelStoreError)
      assert.deepStrictEqual([error.operation, error.retryable], ["set it up", false])
    }))

  it.effect("makes its tables once, and keeps what is in them", () =>
    Effect.gen(function*() {
      const directory = yield* temporaryDirectory
      const made = yield* Effect.scoped(Effect.flatMap(open(directory), ({ store }) => store.insert(model("tiny"))))
      const { store } = yield* open(directory)
      assert.deepStrictEqual(yield* store.get(made.id), made)
    }))
})

describe("a database that fails", () => {
  it.effect("is named by every method, with what it was to do", () =>
    Effect.gen(function*() {
      const { sql, store } = yield* opened
      yield* sql`DROP TABLE effect_units_models`
      const all: Record<string, Effect.Effect<unknown, unknown>> = {
        "add a model": store.insert(model("tiny")),
        "register a pull": store.register({ ...model("tiny"), origin }),
        "read a model": store.get(nobody),
        "list models": store.list({ limit: 1, offset: 0 }),
        "change a model": store.change(nobody, { size: 1 }),
        "remove a model": store.remove(nobody),
        "pull": store.during(nobody, "pull", () => Effect.void),
        "cancel the work": store.cancel(nobody)
      }
      for (const [operation, method] of Object.entries(all)) {
        const error = yield* Effect.flip(method)
        assert.instanceOf(error, ModelStore.ModelStoreError)
        assert.strictEqual(error.operation, operation)
        assert.match(error.message, /no such table/)
      }
    }))

  it.effect("or a row that makes no sense is a failure, not a defect", () =>
    Effect.gen(function*() {
      const { sql, store } = yield* opened
      const { id } = yield* store.insert(model("tiny"))
      for (const broken of [{ details: "{" }, { details: "{}" }, { status: "done" }, { created_at: "noon" }]) {
        yield* sql`UPDATE effect_units_models SET ${sql.update(broken)}`
        const methods: ReadonlyArray<Effect.Effect<unknown, unknown>> = [
          store.get(id),
          store.list({ limit: 1, offset: 0 }),
          store.change(id, { size: 1 }),
          store.during(id, "delete", () => Effect.void)
        ]
        for (const method of methods) assert.instanceOf(yield* Effect.flip(method), ModelStore.ModelStoreError)
      }
    }))
})
