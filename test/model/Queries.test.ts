import { assert, describe, it } from "@effect/vitest"
import { Effect, Fiber, Layer, Schema, type Scope } from "effect"
import { TestClock } from "effect/testing"
import * as fs from "node:fs"
import type { EventPublisher } from "../../src/EventPublisher.ts"
import * as Model from "../../src/model/index.ts"
import * as Testing from "../../src/testing/index.ts"
import { InternalError, InvalidInput, RateLimited, Timeout } from "../../src/UnitError.ts"
import { catalog } from "../../src/units.ts"
import { llamaConfig, safetensors, tinyGguf, tinySafetensors } from "./files.ts"
import type * as HubServer from "./HubServer.ts"
import { layer, World, write } from "./world.ts"

type Services = Layer.Success<typeof layer> | EventPublisher | Testing.TestEvents

/** A test on a host of its own. */
const test = <E>(name: string, effect: Effect.Effect<void, E, Services | Scope.Scope>) =>
  it.effect(name, () => effect.pipe(Effect.provide(Layer.merge(layer, Testing.layerTest))))

const server = Effect.map(World, ({ server }) => server)

const fault = (...faults: ReadonlyArray<readonly [path: string, fault: HubServer.Fault]>) =>
  Effect.map(server, (server) => faults.forEach(([path, fault]) => server.fault(path, fault)))

const unknown = "model-00000000"

describe("input", () => {
  const refused: ReadonlyArray<readonly [name: string, input: unknown, ...paths: ReadonlyArray<string>]> = [
    ["get", {}, "model_id"],
    ["get", { model_id: 7 }, "model_id"],
    ["list", "all", ""],
    ["list", { type: "LLM" }, "type"],
    ["list", { status: "done" }, "status"],
    ["list", { format: "" }, "format"],
    ["list", { type: null }, "type"],
    ["list", { limit: 0 }, "limit"],
    ["list", { limit: 101 }, "limit"],
    ["list", { limit: 1.5 }, "limit"],
    ["list", { limit: "10" }, "limit"],
    ["list", { offset: -1 }, "offset"],
    ["list", { offset: 0.5 }, "offset"],
    ["search", {}, "query"],
    ["search", { query: "" }, "query"],
    ["search", { query: "a", source: "local" }, "source"],
    ["search", { query: "a", type: "x" }, "type"],
    ["search", { query: "a", limit: 101 }, "limit"],
    ["estimate_resources", { model_id: "" }, "model_id"]
  ]
  test(
    "that does not fit is refused",
    Effect.gen(function*() {
      for (const [name, input, ...paths] of refused) {
        const error = yield* Effect.flip(catalog.execute(`model.${name}`, input))
        assert.instanceOf(error, InvalidInput, `${name} ${JSON.stringify(input)}`)
        assert.deepStrictEqual(error.issues.map(({ path }) => path), paths)
      }
      assert.deepStrictEqual((yield* server).requests, [])
    })
  )

  test(
    "may be missing or have more keys where every field is optional",
    Effect.gen(function*() {
      const empty = { items: [], total: 0 }
      for (const input of [undefined, {}, { page: 7 }]) {
        assert.deepStrictEqual(yield* catalog.execute("model.list", input), empty)
      }
    })
  )
})

describe("model.get", () => {
  test(
    "tells what there is to know of a model, requirements included once they are recorded",
    Effect.gen(function*() {
      const { model_id } = yield* Model.create({ name: "tiny", path: "/models/tiny" })
      const known = { id: model_id, name: "tiny", type: "llm", format: "gguf", status: "pending", size: 0 } as const
      assert.deepStrictEqual(yield* Model.get({ model_id }), known)
      const requirements = { memory_min: 1, memory_recommended: 2, gpu_memory: 0, gpu_type: "" }
      const store = yield* Model.ModelStore
      yield* store.change(model_id, { requirements })
      assert.deepStrictEqual(yield* Model.get({ model_id }), { ...known, requirements })
      assert.deepStrictEqual(
        yield* Effect.flip(Model.get({ model_id: unknown })),
        new Model.ModelNotFound({ model_id: unknown })
      )
    })
  )
})

describe("model.list", () => {
  const names = (input: Parameters<typeof Model.list>[0]) =>
    Effect.map(Model.list(input), ({ items, total }) => [items.map(({ name }) => name).join(" "), total] as const)

  /** Models `a` to `j`, one each second but for the last five, which are as old as each other. */
  const many = Effect.gen(function*() {
    const types = ["llm", "embedding"] as const
    const formats = ["gguf", "onnx", "safetensors"] as const
    const made: Array<Model.ModelId> = []
    for (const [index, name] of "abcdefghij".split("").entries()) {
      if (index <= 5) yield* TestClock.adjust("1 second")
      const { model_id } = yield* Model.create({ name, type: types[index % 2]!, format: formats[index % 3]! })
      made.push(model_id)
    }
    // Of the same age, they go by id.
    const order = [...made.slice(0, 5), ...made.slice(5).sort()]
    return order.map((id) => "abcdefghij"[made.indexOf(id)]!)
  })

  test(
    "goes by creation, then id, in pages that together hold each model once",
    Effect.gen(function*() {
      const order = yield* many
      assert.deepStrictEqual(yield* names({}), [order.join(" "), 10])
      for (const limit of [1, 3, 10, 100]) {
        const pages: Array<string> = []
        for (let offset = 0; offset < 10; offset += limit) {
          const { items, total } = yield* Model.list({ limit, offset })
          assert.isAtMost(items.length, limit)
          assert.strictEqual(total, 10)
          pages.push(...items.map(({ name }) => name))
        }
        assert.deepStrictEqual(pages, order)
      }
      assert.deepStrictEqual(yield* Model.list({ offset: 10 }), { items: [], total: 10 })
      assert.deepStrictEqual(yield* Model.list({ offset: Number.MAX_SAFE_INTEGER }), { items: [], total: 10 })
    })
  )

  test(
    "gives what it says of each, and nothing else",
    Effect.gen(function*() {
      const { model_id } = yield* Model.create({ name: "tiny" })
      assert.deepStrictEqual(yield* Model.list(), {
        items: [{ id: model_id, name: "tiny", type: "llm", status: "pending" }],
        total: 1
      })
    })
  )

  test(
    "filters by type, format and status, with the total of what fits",
    Effect.gen(function*() {
      const order = yield* many
      const every = (fits: (index: number) => boolean) =>
        order.filter((name) => fits("abcdefghij".indexOf(name))).join(" ")
      assert.deepStrictEqual(yield* names({ type: "llm" }), [every((i) => i % 2 === 0), 5])
      assert.deepStrictEqual(yield* names({ format: "gguf" }), [every((i) => i % 3 === 0), 4])
      assert.deepStrictEqual(yield* names({ type: "llm", format: "gguf" }), [every((i) => i % 6 === 0), 2])
      assert.deepStrictEqual(yield* names({ type: "llm", limit: 2, offset: 1 }), ["c e", 5])
      assert.deepStrictEqual(yield* names({ status: "pending" }), [order.join(" "), 10])
      assert.deepStrictEqual(yield* names({ status: "ready" }), ["", 0])
      assert.deepStrictEqual(yield* names({ type: "vlm" }), ["", 0])
    })
  )
})

describe("model.search", () => {
  const models = Effect.gen(function*() {
    const hub = yield* server
    hub.addRepository({ repo: "acme/tiny-a", downloads: 10, files: [], pipeline_tag: "text-generation", tags: ["x"] })
    hub.addRepository({ repo: "acme/tiny-b", downloads: 20, files: [], pipeline_tag: "feature-extraction" })
    hub.addRepository({ repo: "acme/other", downloads: 30, files: [] })
    hub.addOllamaModel({ name: "tiny:latest", layers: [1] })
    yield* Model.pull({ source: "ollama", repo: "tiny" })
  })
  const found = (input: Parameters<typeof Model.search>[0]) =>
    Effect.map(Model.search(input), ({ results }) => results.map(({ id, source }) => `${source} ${id}`))
  const hf = ["huggingface acme/tiny-b", "huggingface acme/tiny-a"]
  const ms = ["modelscope acme/tiny-b", "modelscope acme/tiny-a"]

  test(
    "asks one hub, or all at once and merges by downloads",
    Effect.gen(function*() {
      yield* models
      assert.deepStrictEqual(yield* found({ query: "tiny", source: "huggingface" }), hf)
      assert.deepStrictEqual(yield* found({ query: "tiny", source: "modelscope" }), ms)
      assert.deepStrictEqual(yield* found({ query: "tiny", source: "ollama" }), ["ollama tiny"])
      const all = [hf[0], ms[0], hf[1], ms[1], "ollama tiny"]
      assert.deepStrictEqual(yield* found({ query: "tiny" }), all)
      assert.deepStrictEqual(yield* found({ query: "tiny", limit: 2 }), all.slice(0, 2))
      assert.deepStrictEqual(yield* found({ query: "tiny", type: "embedding", source: "huggingface" }), [hf[0]])
      assert.deepStrictEqual(yield* found({ query: "nothing" }), [])
    })
  )

  test(
    "gives what the wire has of a result, without tags",
    Effect.gen(function*() {
      yield* models
      assert.deepStrictEqual(yield* Model.search({ query: "tiny-a", source: "huggingface" }), {
        results: [{
          id: "acme/tiny-a",
          name: "tiny-a",
          type: "llm",
          source: "huggingface",
          description: "text-generation, transformers",
          downloads: 10
        }]
      })
    })
  )

  test(
    "keeps what it has when some hubs fail, and fails when all do",
    Effect.gen(function*() {
      yield* models
      const down = { kind: "answer", status: 503, body: "maintenance" } as const
      yield* fault(["/api/models", down], ["/api/tags", down])
      assert.deepStrictEqual(yield* found({ query: "tiny" }), ms)
      yield* fault(["/api/models", down], ["/api/tags", down], ["/openapi/v1/models", down])
      const error = yield* Effect.flip(Model.search({ query: "tiny" }))
      assert.instanceOf(error, InternalError)
      assert.match(error.message, /^huggingface: The hub answered 503: maintenance/)
    })
  )

  test(
    "tells a limit of the rate and a hub that is silent from other failures",
    Effect.gen(function*() {
      yield* fault(["/api/models", { kind: "answer", status: 429, headers: { "retry-after": "77" } }])
      const limited = yield* Effect.flip(Model.search({ query: "tiny", source: "huggingface" }))
      assert.instanceOf(limited, RateLimited)
      assert.strictEqual(limited.retry_after_seconds, 77)
      yield* fault(["/openapi/v1/models", { kind: "answer", status: 429 }])
      assert.deepStrictEqual(
        Object.keys(yield* Effect.flip(Model.search({ query: "tiny", source: "modelscope" }))),
        ["_tag", "detail"]
      )
      yield* fault(["/api/models", { kind: "silence" }])
      const silent = yield* Effect.forkChild(Effect.flip(Model.search({ query: "tiny", source: "huggingface" })))
      yield* Effect.flatMap(server, (server) => Effect.promise(server.stalled))
      yield* TestClock.adjust("30 seconds")
      assert.instanceOf(yield* Fiber.join(silent), Timeout)
    })
  )
})

describe("model.estimate_resources", () => {
  const estimate = (model_id: string) => Model.estimateResources({ model_id })
  /** The formula, by the dimensions that the files of the tests are written with: 2 layers, 2 heads of width 8, 512 tokens. */
  const byHand = (weights: number) => {
    const kv = 2 * 2 * 2 * 8 * 512 * 2
    return {
      memory_min: Math.ceil(weights * 11 / 10 + kv),
      memory_recommended: Math.ceil((weights + kv) * 12 / 10),
      gpu_type: "RTX 4060"
    }
  }

  test(
    "computes it from what an import has read",
    Effect.gen(function*() {
      const path = yield* write("tiny.gguf", tinyGguf())
      const { model_id } = yield* Model.import({ path })
      // It is in the register: the file is not needed.
      fs.rmSync(path)
      assert.deepStrictEqual(yield* estimate(model_id), byHand(tinyGguf().length))
    })
  )

  test(
    "counts the cache of a model that was pulled, whose dimensions no hub lists",
    Effect.gen(function*() {
      const hub = yield* server
      hub.addRepository({
        repo: "acme/tiny",
        files: [
          { path: "model.safetensors", content: tinySafetensors, lfs: true },
          { path: "config.json", content: new TextEncoder().encode(JSON.stringify(llamaConfig)) }
        ]
      })
      const { model_id } = yield* Model.pull({ source: "huggingface", repo: "acme/tiny" })
      assert.deepStrictEqual(yield* estimate(model_id), byHand(tinySafetensors.length))
    })
  )

  test(
    "prefers recorded requirements",
    Effect.gen(function*() {
      const { model_id } = yield* Model.import({ path: yield* write("tiny.gguf", tinyGguf()) })
      const store = yield* Model.ModelStore
      yield* store.change(model_id, {
        requirements: { memory_min: 1, memory_recommended: 2, gpu_memory: 3, gpu_type: "abacus" }
      })
      assert.deepStrictEqual(yield* estimate(model_id), { memory_min: 1, memory_recommended: 2, gpu_type: "abacus" })
    })
  )

  test(
    "looks at files that were registered without a look",
    Effect.gen(function*() {
      const { model_id } = yield* Model.create({ name: "tiny", path: yield* write("tiny.gguf", tinyGguf()) })
      assert.deepStrictEqual(yield* estimate(model_id), byHand(tinyGguf().length))
    })
  )

  test(
    "asks the hub of a model that has not been pulled to its end, and makes nothing up where it cannot be reached",
    Effect.gen(function*() {
      const hub = yield* server
      const content = safetensors({ w: { dtype: "F32", shape: [1000], bytes: 4000 } })
      hub.addRepository({ repo: "acme/tiny", files: [{ path: "model.safetensors", content, lfs: true }] })
      hub.fault("model.safetensors", { kind: "corrupt" })
      const error = yield* Effect.flip(Model.pull({ source: "huggingface", repo: "acme/tiny" }))
      assert.instanceOf(error, Model.ModelPullFailed)
      assert.deepStrictEqual(yield* estimate(error.model_id), {
        memory_min: Math.ceil(content.length * 11 / 10),
        memory_recommended: Math.ceil(content.length * 12 / 10),
        gpu_type: "RTX 4060"
      })
      yield* fault(["/api/models/acme/tiny/revision/main", { kind: "answer", status: 503 }])
      const unreachable = yield* Effect.flip(estimate(error.model_id))
      assert.instanceOf(unreachable, InternalError)
      assert.match(unreachable.message, new RegExp(`^The memory of ${error.model_id} cannot be estimated. huggingface`))
    })
  )

  test(
    "makes nothing up where nothing tells the size",
    Effect.gen(function*() {
      const nothing = yield* Model.create({ name: "nothing" })
      const gone = yield* Model.create({ name: "gone", path: "/no/such/file" })
      assert.match((yield* Effect.flip(estimate(nothing.model_id))).message, /nothing tells its size/)
      assert.match((yield* Effect.flip(estimate(gone.model_id))).message, /no\/such\/file is missing/)
      assert.instanceOf(yield* Effect.flip(estimate(gone.model_id)), InternalError)
      assert.deepStrictEqual(
        yield* Effect.flip(estimate(unknown)),
        new Model.ModelNotFound({ model_id: unknown })
      )
    })
  )

  test(
    "has no class of GPU for what fits none",
    Effect.gen(function*() {
      const { model_id } = yield* Model.create({ name: "huge" })
      const store = yield* Model.ModelStore
      yield* store.change(model_id, { shape: { weightBytes: 1e12 } })
      assert.deepStrictEqual(yield* estimate(model_id), {
        memory_min: 1.1e12,
        memory_recommended: 1.2e12,
        gpu_type: ""
      })
    })
  )
})

it("documents its units by examples that fit their schemas", () => {
  for (const unit of catalog.units.filter(({ domain }) => domain === "model")) {
    assert.isAbove(unit.examples.length, 0, unit.name)
    const decode = Schema.decodeUnknownSync(Schema.toCodecJson(unit.input))
    for (const example of unit.examples) decode(example)
  }
})
