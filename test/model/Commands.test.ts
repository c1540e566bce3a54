import { assert, describe, it } from "@effect/vitest"
import { Cause, Effect, Exit, Fiber, Layer, type Scope } from "effect"
import { SqlClient } from "effect/sql"
import { TestClock } from "effect/testing"
import { createHash } from "node:crypto"
import * as fs from "node:fs"
import * as path from "node:path"
import type { EventPublisher } from "../../src/EventPublisher.ts"
import * as Model from "../../src/model/index.ts"
import * as ModelStore from "../../src/model/ModelStore.ts"
import * as Testing from "../../src/testing/index.ts"
import { InternalError, InvalidInput, RateLimited } from "../../src/UnitError.ts"
import { catalog } from "../../src/units.ts"
import { gguf, llamaConfig, llamaTensors, safetensors, string, tinyGguf, tinySafetensors } from "./files.ts"
import * as HubServer from "./HubServer.ts"
import { breakDatabase, layer, onDisk, tokens, World, write } from "./world.ts"

type Services = Layer.Success<typeof layer> | EventPublisher | Testing.TestEvents

/** A test on a host of its own. */
const test = <E>(name: string, effect: Effect.Effect<void, E, Services | Scope.Scope>) =>
  it.effect(name, () => effect.pipe(Effect.provide(Layer.merge(layer, Testing.layerTest))))

const record = (model_id: string) => Effect.flatMap(Model.ModelStore, (store) => store.get(model_id))

const statusOf = (model_id: string) => Effect.map(record(model_id), ({ status }) => status)

const total = Effect.map(Model.list(), ({ total }) => total)

/** Domain events so far, those of the last unit alone where asked for by its name. */
const told = Effect.fnUntraced(function*(unit?: string) {
  const test = yield* Testing.TestEvents
  const last = (yield* test.executions).findLast(({ unit_name }) => unit_name === unit)
  return (yield* test.domainEvents)
    .filter(({ correlation_id }) => unit === undefined || correlation_id === last?.correlation_id)
    .map(({ payload, type }) => ({ type, payload }))
})

const sha256 = (content: Uint8Array): string => createHash("sha256").update(content).digest("hex")

const below = (directory: string): ReadonlyArray<string> =>
  fs.existsSync(directory)
    ? fs.readdirSync(directory, { recursive: true, withFileTypes: true })
      .filter((entry) => entry.isFile())
      .map((entry) => path.relative(directory, path.join(entry.parentPath, entry.name))).sort()
    : []

/** The files of a pulled model, below the folder that is its own. */
const owned = (model_id: string) =>
  Effect.map(World, ({ directory }) => below(path.join(directory, "models", model_id)))

const server = Effect.map(World, ({ server }) => server)

const stalled = Effect.flatMap(server, (server) => Effect.promise(server.stalled))

const abandoned = Effect.flatMap(server, (server) => Effect.promise(server.abandoned))

/** A register over the database of this host, as another process would have it. */
const anotherStore = Effect.gen(function*() {
  const { directory } = yield* World
  const built = yield* Layer.build(ModelStore.layer({ directory: path.join(directory, "models") }))
  return Effect.provideContext(Model.ModelStore, built)
}).pipe(Effect.flatten)

const isRefused = (unit: string, ...paths: ReadonlyArray<string>) => (error: unknown) => {
  assert.instanceOf(error, InvalidInput)
  assert.strictEqual(error.unit, unit)
  assert.deepStrictEqual(error.issues.map(({ path }) => path), paths)
}

describe("input", () => {
  const sha = `sha256:${"0".repeat(64)}`
  const refused: ReadonlyArray<readonly [name: string, input: unknown, ...paths: ReadonlyArray<string>]> = [
    ["create", {}, "name"],
    ["create", [], ""],
    ["create", { name: "" }, "name"],
    ["create", { name: 1 }, "name"],
    ["create", { name: "a", type: "LLM" }, "type"],
    ["create", { name: "a", type: null }, "type"],
    ["create", { name: "a", format: "bin" }, "format"],
    ["create", { name: "a", source: "ftp" }, "source"],
    ["create", { name: "a", path: "" }, "path"],
    ["create", { type: "x", format: "y" }, "name", "type", "format"],
    ["delete", {}, "model_id"],
    ["delete", { model_id: "a", force: "true" }, "force"],
    ["delete", { model_id: "a", force: 1 }, "force"],
    ["pull", { source: "huggingface" }, "repo"],
    ["pull", { source: "local", repo: "a/b" }, "source"],
    ["pull", { source: "ollama", repo: "" }, "repo"],
    ["pull", { source: "ollama", repo: "a", tag: "" }, "tag"],
    ["pull", { source: "ollama", repo: "a", mirror: "ftp://hub.test" }, "mirror"],
    ["pull", { source: "ollama", repo: "a", mirror: "hub.test" }, "mirror"],
    ["pull", { source: "ollama", repo: "a", mirror: "https://me@hub.test" }, "mirror"],
    ["pull", { source: "ollama", repo: "a", mirror: "https://:secret@hub.test" }, "mirror"],
    ["import", { name: "a" }, "path"],
    ["import", { path: "a", auto_detect: "yes" }, "auto_detect"],
    ["import", { path: "a", type: "unknown" }, "type"],
    ["verify", {}, "model_id"],
    ["verify", { model_id: "a", checksum: "md5:d41d8cd98f00b204e9800998ecf8427e" }, "checksum"],
    ["verify", { model_id: "a", checksum: sha.slice(0, -1) }, "checksum"],
    ["verify", { model_id: "a", checksum: "size:-1" }, "checksum"],
    ["verify", { model_id: "a", checksum: "0".repeat(64) }, "checksum"]
  ]
  test(
    "that does not fit is refused before anything happens",
    Effect.gen(function*() {
      for (const [name, input, ...paths] of refused) {
        isRefused(`model.${name}`, ...paths)(yield* Effect.flip(catalog.execute(`model.${name}`, input)))
      }
      assert.strictEqual(yield* total, 0)
      assert.deepStrictEqual((yield* server).requests, [])
    })
  )

  test(
    "may have keys that are not known",
    Effect.gen(function*() {
      yield* Model.create.execute({ name: "a", size: -1, id: "model-ffffffff" })
      assert.strictEqual(yield* total, 1)
    })
  )
})

describe("model.create", () => {
  test(
    "registers a model that waits for its files",
    Effect.gen(function*() {
      yield* TestClock.adjust("1001 seconds")
      const { model_id } = yield* Model.create({ name: "tiny" })
      assert.match(model_id, /^model-[0-9a-f]{8}$/)
      assert.deepStrictEqual(yield* record(model_id), {
        id: model_id,
        name: "tiny",
        type: "llm",
        format: "gguf",
        status: "pending",
        source: "local",
        size: 0,
        tags: [],
        files: [],
        created_at: 1001,
        updated_at: 1001
      })
      assert.deepStrictEqual(yield* told(), [{
        type: "model.created",
        payload: { model_id, name: "tiny", type: "llm", format: "gguf", source: "local", created_at: 1001 }
      }])
    })
  )

  test(
    "takes what it is told, and makes the path absolute without looking there",
    Effect.gen(function*() {
      const { model_id } = yield* Model.create({
        name: "tiny",
        type: "embedding",
        format: "onnx",
        source: "modelscope",
        path: "no/such/file"
      })
      const { format, path: recorded, source, type } = yield* record(model_id)
      assert.deepStrictEqual({ format, path: recorded, source, type }, {
        format: "onnx",
        path: path.resolve("no/such/file"),
        source: "modelscope",
        type: "embedding"
      })
    })
  )

  test(
    "refuses a name that is taken, whatever its case, and a path that is",
    Effect.gen(function*() {
      const { model_id } = yield* Model.create({ name: "Ünïcode Tiny", path: "/models/tiny" })
      assert.deepStrictEqual(
        yield* Effect.flip(Model.create({ name: "üNÏCODE tiny" })),
        new Model.ModelAlreadyExists({ model_id, conflict: "name", value: "üNÏCODE tiny" })
      )
      assert.deepStrictEqual(
        yield* Effect.flip(Model.create({ name: "another", path: "/models/../models/tiny" })),
        new Model.ModelAlreadyExists({ model_id, conflict: "path", value: "/models/tiny" })
      )
      assert.strictEqual(yield* total, 1)
    })
  )

  test(
    "adds only one of many with the same name at once",
    Effect.gen(function*() {
      const exits = yield* Effect.forEach(
        Array.from({ length: 20 }, (_, index) => index % 2 === 0 ? "tiny" : "TINY"),
        (name) => Effect.exit(Model.create({ name })),
        { concurrency: "unbounded" }
      )
      assert.strictEqual(exits.filter(Exit.isSuccess).length, 1)
      assert.strictEqual(yield* total, 1)
      assert.strictEqual((yield* told()).length, 1)
    })
  )
})

describe("model.import", () => {
  const bert = gguf({
    pairs: [["general.architecture", string("bert")], ["general.name", string("Tiny BERT")]],
    tensors: llamaTensors
  })

  test(
    "reads the header of a GGUF file, which stays where it is",
    Effect.gen(function*() {
      const file = yield* write("tiny-bert.Q8_0.gguf", bert)
      const { model_id } = yield* Model.import({ path: file })
      assert.deepStrictEqual(yield* record(model_id), {
        id: model_id,
        name: "Tiny BERT",
        type: "embedding",
        format: "gguf",
        status: "ready",
        source: "local",
        path: file,
        size: bert.length,
        tags: [],
        files: [{ path: "tiny-bert.Q8_0.gguf", size: bert.length }],
        shape: { weightBytes: bert.length, parameterCount: 1125 },
        created_at: 0,
        updated_at: 0
      })
      assert.deepStrictEqual(yield* told(), [{
        type: "model.created",
        payload: {
          model_id,
          name: "Tiny BERT",
          type: "embedding",
          format: "gguf",
          source: "local",
          created_at: 0
        }
      }])
      assert.deepStrictEqual(new Uint8Array(fs.readFileSync(file)), bert)
      assert.deepStrictEqual(below((yield* World).directory).filter((name) => !name.startsWith("units.db")), [])
    })
  )

  test(
    "reads a folder of safetensors by its configuration, with all files in its size",
    Effect.gen(function*() {
      const config = JSON.stringify({ ...llamaConfig, architectures: ["BertModel"], model_type: "bert" })
      yield* write("encoder/config.json", config)
      yield* write("encoder/tokenizer.json", "{}")
      const file = yield* write("encoder/model.safetensors", tinySafetensors)
      const { model_id } = yield* Model.import({ path: path.dirname(file) })
      const { files, format, name, size, type } = yield* record(model_id)
      assert.deepStrictEqual({ files, format, name, size, type }, {
        files: [
          { path: "config.json", size: config.length },
          { path: "model.safetensors", size: tinySafetensors.length },
          { path: "tokenizer.json", size: 2 }
        ],
        format: "safetensors",
        name: "encoder",
        size: config.length + tinySafetensors.length + 2,
        type: "embedding"
      })
    })
  )

  test(
    "prefers the name and the type that it is given, and says when it had to guess",
    Effect.gen(function*() {
      const typeAndTags = Effect.fnUntraced(function*(input: Parameters<typeof Model.import>[0]) {
        const { model_id } = yield* Model.import(input)
        const { name, tags, type } = yield* record(model_id)
        return { name, tags, type }
      })
      const path = (name: string) => write(name, bert)
      assert.deepStrictEqual(
        yield* typeAndTags({ path: yield* path("a.gguf"), name: "mine", type: "rerank" }),
        { name: "mine", type: "rerank", tags: [] }
      )
      assert.deepStrictEqual(
        yield* typeAndTags({ path: yield* path("b.gguf"), name: "b", auto_detect: false }),
        { name: "b", type: "llm", tags: ["type:guessed"] }
      )
      assert.deepStrictEqual(
        yield* typeAndTags({ path: yield* path("c.gguf"), type: "vlm", auto_detect: false }),
        { name: "Tiny BERT", type: "vlm", tags: [] }
      )
      assert.deepStrictEqual(
        yield* typeAndTags({ path: yield* write("plain.safetensors", tinySafetensors) }),
        { name: "plain", type: "llm", tags: ["type:guessed"] }
      )
    })
  )

  test(
    "knows a path again, through links and relative paths",
    Effect.gen(function*() {
      const file = yield* write("tiny.gguf", tinyGguf())
      const { model_id } = yield* Model.import({ path: file })
      const link = path.join(path.dirname(file), "link.gguf")
      fs.symlinkSync(file, link)
      for (const again of [link, path.relative(process.cwd(), file), `${path.dirname(file)}/./tiny.gguf`]) {
        assert.deepStrictEqual(
          yield* Effect.flip(Model.import({ path: again, name: "another" })),
          new Model.ModelAlreadyExists({ model_id, conflict: "path", value: file })
        )
      }
      const copy = yield* write("copy.gguf", tinyGguf())
      assert.deepStrictEqual(
        yield* Effect.flip(Model.import({ path: copy })),
        new Model.ModelAlreadyExists({ model_id, conflict: "name", value: "Tiny Llama" })
      )
    })
  )

  test(
    "refuses what holds no whole model, says why, and registers nothing",
    Effect.gen(function*() {
      const { elsewhere } = yield* World
      const at = (name: string) => path.join(elsewhere, name)
      yield* write("cut.gguf", tinyGguf().slice(0, 600))
      yield* write("header.gguf", tinyGguf({ magic: "GGUX" }))
      yield* write("short.safetensors", tinySafetensors.slice(0, -1))
      yield* write("long.safetensors", new Uint8Array([...tinySafetensors, 0]))
      yield* write("text/README.md", "no weights")
      yield* write("two/a.gguf", tinyGguf())
      yield* write("two/b.gguf", tinyGguf())
      yield* write("shards/a-00001-of-00002.gguf", tinyGguf())
      fs.symlinkSync(at("nowhere"), at("dangling"))
      fs.symlinkSync(at("loop"), at("loop"))
      const reasons: ReadonlyArray<readonly [string, string]> = [
        ["nothing.gguf", "Missing"],
        ["dangling", "Missing"],
        ["loop", "Unreadable"],
        ["/dev/null", "Unreadable"],
        ["cut.gguf", "Truncated"],
        ["header.gguf", "Malformed"],
        ["short.safetensors", "Truncated"],
        ["long.safetensors", "LengthMismatch"],
        ["text", "NoWeights"],
        ["text/README.md", "NoWeights"],
        ["two", "Ambiguous"],
        ["shards", "Missing"]
      ]
      for (const [name, reason] of reasons) {
        const given = path.resolve(elsewhere, name)
        const error = yield* Effect.flip(Model.import({ path: given }))
        assert.instanceOf(error, Model.ModelImportFailed)
        assert.deepStrictEqual([error.path, error.reason], [given, reason])
        assert.isTrue(error.message.startsWith(`${given} was not imported. ${given}`), error.message)
      }
      assert.strictEqual(yield* total, 0)
      assert.deepStrictEqual(yield* told(), [])
    })
  )
})

const repo = "acme/tiny"
const tiny = { source: "huggingface", repo } as const
const weights = tinyGguf()
const commit = createHash("sha1").update(repo).digest("hex")

/** A repository of a model that is pulled in one file, and configuration that comes with it. */
const repository = (content: Uint8Array = weights, more: Partial<HubServer.Repository> = {}): HubServer.Repository => ({
  repo,
  files: [{ path: "q/tiny.gguf", content, lfs: true }, { path: "config.json", content: new Uint8Array([123, 125]) }],
  ...more
})

const hubWith = (content?: Uint8Array, more?: Partial<HubServer.Repository>) =>
  Effect.tap(server, (server) => Effect.sync(() => server.addRepository(repository(content, more))))

const fault = (path: string, ...faults: ReadonlyArray<HubServer.Fault>) =>
  Effect.map(server, (server) => server.fault(path, ...faults))

/** Starts a pull that comes to a halt in the middle of a file. */
const halted = Effect.fnUntraced(function*() {
  yield* hubWith()
  yield* fault("q/tiny.gguf", { kind: "stall", after: 700 })
  const fiber = yield* Effect.forkChild(Model.pull(tiny))
  yield* stalled
  const { items: [model] } = yield* Model.list({ status: "pulling" })
  yield* onDisk(model!.id, "q/tiny.gguf", 700)
  return { fiber, model_id: model!.id }
})

describe("model.pull", () => {
  test(
    "brings the files of a HuggingFace model, and all that is known of it",
    Effect.gen(function*() {
      const { requests } = yield* hubWith(weights, { tags: ["tiny"], pipeline_tag: "text-generation" })
      const result = yield* Model.pull(tiny)
      const { model_id } = result
      assert.deepStrictEqual(result, { model_id, status: "ready" })
      const directory = path.join((yield* World).directory, "models", model_id)
      const stored = yield* record(model_id)
      assert.deepStrictEqual(stored, {
        id: model_id,
        name: repo,
        type: "llm",
        format: "gguf",
        status: "ready",
        source: "huggingface",
        path: directory,
        size: weights.length + 2,
        checksum: `sha256:${sha256(weights)}`,
        tags: ["tiny"],
        files: [
          { path: "q/tiny.gguf", size: weights.length, sha256: sha256(weights) },
          { path: "config.json", size: 2, sha256: sha256(new Uint8Array([123, 125])) }
        ],
        origin: { source: "huggingface", repo, tag: "main" },
        // More than the listing tells: the dimensions are in the header.
        shape: {
          weightBytes: weights.length,
          parameterCount: 1125,
          contextLength: 512,
          layers: 2,
          kvHeads: 2,
          headDim: 8
        },
        created_at: 0,
        updated_at: 0
      })
      assert.deepStrictEqual(yield* owned(model_id), ["config.json", "q/tiny.gguf"])
      assert.deepStrictEqual(new Uint8Array(fs.readFileSync(`${directory}/q/tiny.gguf`)), weights)
      assert.isTrue(
        requests.filter(({ host }) => host === "hub").every(({ headers }) =>
          headers.authorization === `Bearer ${tokens.huggingface}`
        )
      )

      const [created, ...progress] = yield* told("model.pull")
      assert.deepStrictEqual(created, {
        type: "model.created",
        payload: { model_id, name: repo, type: "llm", format: "gguf", source: "huggingface", created_at: 0 }
      })
      const all = { model_id, bytes_total: weights.length + 2, speed: 0 }
      assert.deepStrictEqual(progress.at(0), {
        type: "model.pull_progress",
        payload: { ...all, status: "downloading", progress: 0, bytes_done: 0 }
      })
      assert.deepStrictEqual(progress.at(-1), {
        type: "model.pull_progress",
        payload: { ...all, status: "downloaded", progress: 100, bytes_done: weights.length + 2 }
      })
      assert.strictEqual(progress.length, 4)
    })
  )

  test(
    "brings a ModelScope model, with a type that its header tells",
    Effect.gen(function*() {
      const bert = gguf({ pairs: [["general.architecture", string("bert")]], tensors: llamaTensors })
      const { requests } = yield* hubWith(bert)
      const { model_id } = yield* Model.pull({ source: "modelscope", repo })
      const { format, origin, status, tags, type } = yield* record(model_id)
      assert.deepStrictEqual({ format, origin, status, tags, type }, {
        format: "gguf",
        origin: { source: "modelscope", repo, tag: "master" },
        status: "ready",
        tags: [],
        type: "embedding"
      })
      assert.isTrue(requests.every(({ headers }) => headers.cookie === `m_session_id=${tokens.modelscope}`))
    })
  )

  test(
    "has Ollama pull a model, by tag or by Ollama's own form of names",
    Effect.gen(function*() {
      const hub = yield* server
      hub.addOllamaModel({ name: "tiny:1b", layers: [100, 10] })
      const { model_id } = yield* Model.pull({ source: "ollama", repo: "tiny:1b" })
      const stored = yield* record(model_id)
      assert.deepStrictEqual(stored, {
        id: model_id,
        name: "tiny:1b",
        type: "llm",
        format: "gguf",
        status: "ready",
        source: "ollama",
        size: 110,
        checksum: `sha256:${HubServer.ollamaDigest("tiny:1b")}`,
        tags: ["type:guessed"],
        files: [],
        origin: { source: "ollama", repo: "tiny", tag: "1b" },
        shape: { weightBytes: 110 },
        created_at: 0,
        updated_at: 0
      })
      assert.deepStrictEqual(yield* owned(model_id), [])
      assert.strictEqual((yield* Model.pull({ source: "ollama", repo: "tiny", tag: "1b" })).model_id, model_id)
    })
  )

  test(
    "shows the model as being pulled, with a type that is a guess",
    Effect.gen(function*() {
      const { fiber, model_id } = yield* halted()
      const { status, tags } = yield* record(model_id)
      assert.deepStrictEqual({ status, tags }, { status: "pulling", tags: ["type:guessed"] })
      assert.strictEqual((yield* Model.get({ model_id })).status, "pulling")
      yield* Fiber.interrupt(fiber)
    })
  )

  test(
    "again has the same id, fetches nothing, and tells of no new model",
    Effect.gen(function*() {
      const { requests } = yield* hubWith()
      const { model_id } = yield* Model.pull(tiny)
      const before = yield* record(model_id)
      const files = () => requests.filter(({ url }) => !url.startsWith("/api/")).length
      const fetched = files()
      assert.deepStrictEqual(yield* Model.pull({ ...tiny, tag: "main" }), { model_id, status: "ready" })
      assert.strictEqual(files(), fetched)
      assert.deepStrictEqual(yield* record(model_id), before)
      assert.strictEqual(yield* total, 1)
      assert.deepStrictEqual((yield* told()).filter(({ type }) => type === "model.created").length, 1)
    })
  )

  test(
    "of a model that has changed fetches what is new, and takes away what is gone",
    Effect.gen(function*() {
      const { requests } = yield* hubWith()
      const { model_id } = yield* Model.pull(tiny)
      yield* hubWith(weights, {
        files: [{ path: "model.safetensors", content: tinySafetensors, lfs: true }, ...repository().files.slice(1)]
      })
      const before = requests.length
      yield* Model.pull(tiny)
      assert.deepStrictEqual(
        requests.slice(before).filter(({ url }) => !url.startsWith("/api/")).map(({ url }) => url.split("?")[0]),
        [`/${repo}/resolve/${commit}/model.safetensors`, `/${repo}/model.safetensors`]
      )
      assert.deepStrictEqual(yield* owned(model_id), ["config.json", "model.safetensors"])
      const { checksum, format, size } = yield* record(model_id)
      assert.deepStrictEqual({ checksum, format, size }, {
        checksum: `sha256:${sha256(tinySafetensors)}`,
        format: "safetensors",
        size: tinySafetensors.length + 2
      })
    })
  )

  test(
    "of the same model at once fails, of another goes on",
    Effect.gen(function*() {
      const { fiber, model_id } = yield* halted()
      assert.deepStrictEqual(yield* Effect.flip(Model.pull(tiny)), new Model.PullInProgress({ model_id }))
      for (const other of [{ ...tiny, tag: "tiny" }, { ...tiny, source: "modelscope" }] as const) {
        const pulled = yield* Model.pull(other)
        assert.notStrictEqual(pulled.model_id, model_id)
      }
      assert.strictEqual(yield* statusOf(model_id), "pulling")
      yield* Fiber.interrupt(fiber)
    })
  )

  test(
    "starts only one of many at once",
    Effect.gen(function*() {
      yield* hubWith()
      const exits = yield* Effect.forEach(Array.from({ length: 10 }), () => Effect.exit(Model.pull(tiny)), {
        concurrency: "unbounded"
      })
      assert.strictEqual(exits.filter(Exit.isSuccess).length, 1)
      for (const exit of exits.filter(Exit.isFailure)) {
        assert.instanceOf(Cause.squash(exit.cause), Model.PullInProgress)
      }
      assert.strictEqual(yield* total, 1)
    })
  )

  test(
    "that breaks off leaves an error and what it has, from where a repeat goes on",
    Effect.gen(function*() {
      const { fiber, model_id } = yield* halted()
      const hub = yield* server
      hub.breakOff("q/tiny.gguf")
      const error = yield* Effect.flip(Fiber.join(fiber))
      assert.instanceOf(error, Model.ModelPullFailed)
      assert.deepStrictEqual([error.model_id, error.reason, error.retryable], [model_id, "Network", true])
      assert.strictEqual(yield* statusOf(model_id), "error")
      assert.deepStrictEqual(yield* owned(model_id), ["config.json", "q/tiny.gguf.part"])
      assert.deepInclude((yield* told("model.pull")).at(-1)?.payload, {
        model_id,
        status: "failed",
        speed: 0,
        error: error.detail
      })
      const before = hub.requests.length
      assert.deepStrictEqual(yield* Model.pull(tiny), { model_id, status: "ready" })
      assert.deepStrictEqual(
        hub.requests.slice(before).filter(({ host }) => host === "storage").map(({ headers }) => headers.range),
        ["bytes=700-"]
      )
      assert.strictEqual(yield* statusOf(model_id), "ready")
      assert.deepStrictEqual(yield* owned(model_id), ["config.json", "q/tiny.gguf"])
    })
  )

  test(
    "that is interrupted closes its connection, and leaves an error and what it has",
    Effect.gen(function*() {
      const { fiber, model_id } = yield* halted()
      yield* Fiber.interrupt(fiber)
      yield* abandoned
      assert.strictEqual(yield* statusOf(model_id), "error")
      assert.deepStrictEqual(yield* owned(model_id), ["config.json", "q/tiny.gguf.part"])
      assert.deepInclude((yield* told("model.pull")).at(-1)?.payload, {
        status: "failed",
        error: "The pull was interrupted"
      })
      const test = yield* Testing.TestEvents
      const { terminal } = yield* test.ended("model.pull")
      assert.strictEqual(terminal?.event_type === "execution_failed" && terminal.failure.kind, "interrupt")
      yield* test.assertLifecycle
      assert.deepStrictEqual(yield* Model.pull(tiny), { model_id, status: "ready" })
    })
  )

  describe("fails by what went wrong", () => {
    const answer = (status: number, headers: Record<string, string> = {}, body = ""): HubServer.Fault => ({
      kind: "answer",
      status,
      headers,
      body
    })
    const api = `/api/models/${repo}/revision/main`
    const tree = `/api/models/${repo}/tree/${commit}`
    const cases: ReadonlyArray<
      readonly [
        reason: string,
        retryable: boolean,
        given: Effect.Effect<unknown, never, World>,
        input?: Partial<Parameters<typeof Model.pull>[0]>
      ]
    > = [
      ["RepoNotFound", false, Effect.void],
      ["RevisionNotFound", false, hubWith(), { tag: "nothing" }],
      ["FileNotFound", false, hubWith(weights, { files: [] })],
      ["Gated", false, hubWith(weights, { gated: "another token" })],
      ["Unauthorized", false, Effect.andThen(hubWith(), fault(api, answer(403)))],
      ["Network", true, Effect.andThen(hubWith(), fault("q/tiny.gguf", { kind: "cut", after: 0 }))],
      ["Upstream", true, Effect.andThen(hubWith(), fault(api, answer(503)))],
      ["Upstream", false, Effect.andThen(hubWith(), fault(api, answer(418)))],
      ["InvalidResponse", false, Effect.andThen(hubWith(), fault(api, answer(200, {}, "<html>")))],
      ["InvalidAddress", false, Effect.andThen(hubWith(), fault(api, answer(302, { location: "ftp://hub.test/" })))],
      ["ChecksumMismatch", true, Effect.andThen(hubWith(), fault("q/tiny.gguf", { kind: "corrupt" }))],
      ["SizeMismatch", true, Effect.andThen(hubWith(), fault("q/tiny.gguf", { kind: "overlong", extra: 1 }))],
      [
        "UnsafePath",
        false,
        hubWith(weights, { files: [{ path: "../tiny.gguf", content: weights }] })
      ],
      [
        "Disk",
        false,
        Effect.andThen(hubWith(), Effect.map(World, ({ directory }) => fs.writeFileSync(`${directory}/models`, "")))
      ],
      ["RepoNotFound", false, Effect.void, { source: "ollama" }],
      [
        "DiskFull",
        false,
        Effect.map(
          server,
          (server) => server.pullFault({ kind: "error", after: 0, message: "write: no space left on device" })
        ),
        { source: "ollama" }
      ]
    ]
    for (const [reason, retryable, given, input] of cases) {
      test(
        `${reason}, ${retryable ? "which" : "which no"} retry may mend${
          input === undefined ? "" : `, ${JSON.stringify(input)}`
        }`,
        Effect.gen(function*() {
          yield* given
          const error = yield* Effect.flip(Model.pull({ ...tiny, ...input }))
          const { items: [model] } = yield* Model.list()
          assert.instanceOf(error, Model.ModelPullFailed)
          assert.deepStrictEqual(
            { model_id: error.model_id, reason: error.reason, retryable: error.retryable, code: error.code },
            { model_id: model!.id, reason, retryable, code: "00102" }
          )
          assert.isTrue(error.message.endsWith(error.detail) && error.detail.length > 20)
          assert.strictEqual(model!.status, "error")
          assert.deepInclude((yield* told("model.pull")).at(-1)?.payload, {
            model_id: model!.id,
            status: "failed",
            speed: 0,
            error: error.detail
          })
        })
      )
    }

    test(
      "RateLimited, with the time to wait",
      Effect.gen(function*() {
        yield* hubWith()
        yield* fault(tree, answer(429, { "retry-after": "120" }))
        const error = yield* Effect.flip(Model.pull(tiny))
        assert.instanceOf(error, RateLimited)
        assert.strictEqual(error.retry_after_seconds, 120)
        assert.strictEqual((yield* Model.list({ status: "error" })).total, 1)
      })
    )

    test(
      "Timeout, when nothing comes",
      Effect.gen(function*() {
        yield* hubWith()
        yield* fault(api, { kind: "silence" })
        const fiber = yield* Effect.forkChild(Effect.flip(Model.pull(tiny)))
        yield* stalled
        yield* TestClock.adjust("30 seconds")
        const error = yield* Fiber.join(fiber)
        assert.instanceOf(error, Model.ModelPullFailed)
        assert.deepStrictEqual([error.reason, error.retryable], ["Timeout", true])
      })
    )

    test(
      "InternalError, when the register breaks meanwhile",
      Effect.gen(function*() {
        const { fiber } = yield* halted()
        yield* breakDatabase
        yield* Effect.map(server, (server) => server.breakOff("q/tiny.gguf"))
        assert.instanceOf(yield* Effect.flip(Fiber.join(fiber)), Model.ModelPullFailed)
        assert.instanceOf(yield* Effect.flip(Model.pull(tiny)), InternalError)
      })
    )
  })

  test(
    "lasts longer than its claim on the model, which is renewed",
    Effect.gen(function*() {
      const { fiber, model_id } = yield* halted()
      // Shorter than the pause that a hub is allowed.
      yield* TestClock.adjust("50 seconds")
      assert.strictEqual(yield* statusOf(model_id), "pulling")
      assert.deepStrictEqual(yield* Effect.flip(Model.pull(tiny)), new Model.PullInProgress({ model_id }))
      yield* Fiber.interrupt(fiber)
    })
  )

  test(
    "whose process is gone shows as an error when its claim has run out, and goes on then",
    Effect.gen(function*() {
      const { fiber, model_id } = yield* halted()
      const sql = yield* SqlClient.SqlClient
      const claim = yield* sql`SELECT operation, operation_token, operation_until FROM effect_units_models`
      yield* Fiber.interrupt(fiber)
      // As it was when it stood still: nobody is there to renew it.
      yield* sql`UPDATE effect_units_models SET ${sql.update(claim[0] as Record<string, unknown>)}`
      assert.strictEqual(yield* statusOf(model_id), "pulling")
      assert.deepStrictEqual(yield* Effect.flip(Model.pull(tiny)), new Model.PullInProgress({ model_id }))
      yield* TestClock.adjust("30001 millis")
      assert.strictEqual(yield* statusOf(model_id), "error")
      assert.strictEqual((yield* Model.list({ status: "error" })).total, 1)
      assert.deepStrictEqual(yield* Model.pull(tiny), { model_id, status: "ready" })
      const { requests } = yield* server
      assert.strictEqual(requests.findLast(({ host }) => host === "storage")?.headers.range, "bytes=700-")
    })
  )

  test(
    "finds another name where that of the repository is taken",
    Effect.gen(function*() {
      yield* hubWith()
      yield* Model.create({ name: "ACME/tiny" })
      yield* Model.create({ name: "acme/tiny@modelscope" })
      const names = yield* Effect.forEach(
        [tiny, { ...tiny, source: "modelscope" }, { ...tiny, tag: "tiny" }] as const,
        (input) => Effect.flatMap(Model.pull(input), ({ model_id }) => record(model_id))
      )
      assert.deepStrictEqual(
        names.map(({ name }) => name),
        ["acme/tiny@huggingface", `acme/tiny@${names[1]?.id}`, "acme/tiny:tiny"]
      )
    })
  )

  test(
    "uses a mirror, which on Ollama holds other models",
    Effect.gen(function*() {
      const hub = yield* hubWith()
      const mirror = `${hub.url}/mirror/hf`
      const { model_id } = yield* Model.pull({ ...tiny, mirror })
      assert.isTrue(
        hub.requests.filter(({ host }) => host === "hub").every(({ headers, url }) =>
          url.startsWith("/mirror/hf/") && headers.authorization === undefined
        )
      )
      assert.strictEqual((yield* Model.pull(tiny)).model_id, model_id)
      assert.deepStrictEqual((yield* record(model_id)).origin, { ...tiny, tag: "main" })

      const registry = "https://registry.test/v2"
      hub.addOllamaModel({ name: "tiny:latest", layers: [1] })
      hub.addOllamaModel({ name: "registry.test/v2/library/tiny:latest", layers: [1] })
      const ours = yield* Model.pull({ source: "ollama", repo: "tiny" })
      const theirs = yield* Model.pull({ source: "ollama", repo: "tiny", mirror: registry })
      assert.notStrictEqual(ours.model_id, theirs.model_id)
      yield* Model.delete({ model_id: theirs.model_id })
      assert.deepStrictEqual(
        JSON.parse(hub.requests.findLast(({ url }) => url === "/api/delete")?.body ?? ""),
        { model: "registry.test/v2/library/tiny:latest" }
      )
      assert.deepStrictEqual((yield* Model.verify(ours)).issues, [])
    })
  )
})

describe("model.verify", () => {
  const importTiny = Effect.gen(function*() {
    const file = yield* write("tiny.gguf", weights)
    const { model_id } = yield* Model.import({ path: file })
    return { file, model_id }
  })
  const finding = (...issues: ReadonlyArray<string>) => ({ valid: issues.length === 0, issues })

  test(
    "finds nothing wrong with a whole model, and tells so",
    Effect.gen(function*() {
      const { model_id } = yield* importTiny
      assert.deepStrictEqual(yield* Model.verify({ model_id }), finding())
      assert.strictEqual(yield* statusOf(model_id), "ready")
      assert.deepStrictEqual(yield* told("model.verify"), [{
        type: "model.verified",
        payload: { model_id, valid: true, issues: [] }
      }])
    })
  )

  test(
    "finds what is wrong with the files, and leaves an error until it is mended",
    Effect.gen(function*() {
      const { file, model_id } = yield* importTiny
      const { size } = yield* record(model_id)
      const hostile = tinyGguf()
      hostile[0] = 0
      const cases: ReadonlyArray<readonly [Uint8Array | undefined, RegExp]> = [
        [undefined, /^\S+ is missing/],
        [weights.slice(1), new RegExp(`^tiny.gguf has ${size - 1} bytes, not ${size}$`)],
        [hostile, /^tiny.gguf is malformed at byte 0/]
      ]
      for (const [content, issue] of cases) {
        if (content === undefined) fs.rmSync(file)
        else fs.writeFileSync(file, content)
        const { issues, valid } = yield* Model.verify({ model_id })
        assert.isFalse(valid)
        assert.strictEqual(issues.length, 1)
        assert.match(issues[0] ?? "", issue)
        assert.strictEqual(yield* statusOf(model_id), "error")
        assert.deepStrictEqual((yield* told("model.verify"))[0]?.payload, { model_id, valid, issues })
      }
      fs.writeFileSync(file, weights)
      assert.deepStrictEqual(yield* Model.verify({ model_id }), finding())
      assert.strictEqual(yield* statusOf(model_id), "ready")
    })
  )

  test(
    "compares what was pulled with the checksums of its hub",
    Effect.gen(function*() {
      yield* hubWith()
      const { model_id } = yield* Model.pull(tiny)
      assert.deepStrictEqual(yield* Model.verify({ model_id }), finding())
      const file = path.join((yield* World).directory, "models", model_id, "q/tiny.gguf")
      const other = weights.slice()
      other[weights.length - 1] = 0
      fs.writeFileSync(file, other)
      assert.deepStrictEqual(
        yield* Model.verify({ model_id }),
        finding(`q/tiny.gguf has the SHA-256 ${sha256(other)}, not ${sha256(weights)}`)
      )
      assert.deepStrictEqual(yield* Model.pull(tiny), { model_id, status: "ready" })
      assert.deepStrictEqual(yield* Model.verify({ model_id }), finding())
    })
  )

  test(
    "compares a checksum that it is given with the one weight file",
    Effect.gen(function*() {
      const { model_id } = yield* importTiny
      const right = [`sha256:${sha256(weights)}`, `sha256:${sha256(weights).toUpperCase()}`, `size:${weights.length}`]
      for (const checksum of right) assert.deepStrictEqual(yield* Model.verify({ model_id, checksum }), finding())
      const none = "0".repeat(64)
      assert.deepStrictEqual(
        yield* Model.verify({ model_id, checksum: `sha256:${none}` }),
        finding(`tiny.gguf has the sha256 ${sha256(weights)}, not ${none}`)
      )
      assert.deepStrictEqual(
        yield* Model.verify({ model_id, checksum: "size:1" }),
        finding(`tiny.gguf has the size ${weights.length}, not 1`)
      )
      assert.strictEqual(yield* statusOf(model_id), "error")

      yield* hubWith()
      const pulled = yield* Model.pull(tiny)
      assert.deepStrictEqual(
        yield* Model.verify({ model_id: pulled.model_id, checksum: `sha256:${sha256(weights)}` }),
        finding()
      )
      assert.deepStrictEqual(
        yield* Model.verify({ model_id: pulled.model_id, checksum: `sha256:${none}` }),
        finding(`q/tiny.gguf has the sha256 ${sha256(weights)}, not ${none}`)
      )
    })
  )

  test(
    "refuses a checksum of a model with several weight files",
    Effect.gen(function*() {
      yield* write("shards/model-00001-of-00002.safetensors", tinySafetensors)
      const second = safetensors({ "lm_head.weight": { dtype: "F32", shape: [1], bytes: 4 } })
      const file = yield* write("shards/model-00002-of-00002.safetensors", second)
      const { model_id } = yield* Model.import({ path: path.dirname(file) })
      const checked = Model.verify({ model_id, checksum: "size:1" })
      isRefused("model.verify", "checksum")(yield* Effect.flip(checked))
      assert.strictEqual(yield* statusOf(model_id), "ready")
      assert.deepStrictEqual(yield* Model.verify({ model_id }), finding())

      yield* write("more/a.gguf", weights)
      const a = yield* Model.import({ path: path.join((yield* World).elsewhere, "more") })
      yield* write("more/b.gguf", weights)
      assert.deepStrictEqual(yield* Model.verify(a), finding())
      isRefused("model.verify", "checksum")(yield* Effect.flip(Model.verify({ ...a, checksum: "size:1" })))
    })
  )

  test(
    "does not pass a checksum over in a model that cannot be read any more",
    Effect.gen(function*() {
      const file = yield* write("index/model.safetensors", tinySafetensors)
      const { model_id } = yield* Model.import({ path: path.dirname(file) })
      yield* write("index/model-00001-of-00002.safetensors", tinySafetensors)
      assert.deepStrictEqual(yield* Model.verify({ model_id }), finding())
      const { issues } = yield* Model.verify({ model_id, checksum: `size:${tinySafetensors.length}` })
      assert.match(issues.join(), /model-00002-of-00002.safetensors is missing/)
    })
  )

  test(
    "looks at what was registered without a look, and records what it finds",
    Effect.gen(function*() {
      const none = yield* Model.create({ name: "none" })
      assert.deepStrictEqual(yield* Model.verify(none), finding("It has no files: pull it, or import them"))
      assert.strictEqual(yield* statusOf(none.model_id), "error")

      const { elsewhere } = yield* World
      const file = path.join(elsewhere, "later.gguf")
      const later = yield* Model.create({ name: "later", path: file })
      assert.match((yield* Model.verify(later)).issues.join(), /is missing/)
      yield* write("later.gguf", weights)
      assert.deepStrictEqual(yield* Model.verify(later), finding())
      const { files, size, status } = yield* record(later.model_id)
      assert.deepStrictEqual({ files, size, status }, {
        files: [{ path: "later.gguf", size: weights.length }],
        size: weights.length,
        status: "ready"
      })

      const wrong = yield* Model.create({ name: "wrong", path: yield* write("w.safetensors", tinySafetensors) })
      assert.deepStrictEqual(
        yield* Model.verify(wrong),
        finding("It holds safetensors, and is registered as gguf. Register it anew")
      )
      assert.strictEqual((yield* record(wrong.model_id)).size, 0)
    })
  )

  test(
    "asks Ollama for what it holds",
    Effect.gen(function*() {
      const hub = yield* server
      hub.addOllamaModel({ name: "tiny:latest", layers: [100] })
      const model = yield* Model.pull({ source: "ollama", repo: "tiny" })
      const digest = `sha256:${HubServer.ollamaDigest("tiny:latest")}`
      for (const checksum of [digest, "size:100"]) {
        assert.deepStrictEqual(yield* Model.verify({ ...model, checksum }), finding())
      }
      assert.deepStrictEqual(
        yield* Model.verify({ ...model, checksum: "size:7" }),
        finding(`Ollama holds ${digest}, size:100, not size:7`)
      )
      yield* Effect.promise(() =>
        globalThis.fetch(`${hub.url}/api/delete`, { method: "DELETE", body: JSON.stringify({ model: "tiny" }) })
      )
      assert.deepStrictEqual(
        yield* Model.verify(model),
        finding("Ollama does not hold tiny:latest. Pull it again")
      )
      assert.strictEqual(yield* statusOf(model.model_id), "error")
      yield* Model.pull({ source: "ollama", repo: "tiny" })
      hub.fault("/api/tags", { kind: "answer", status: 500 })
      const error = yield* Effect.flip(Model.verify(model))
      assert.instanceOf(error, Model.ModelVerifyFailed)
      assert.strictEqual(yield* statusOf(model.model_id), "ready")
    })
  )

  test(
    "that cannot read the files fails, and leaves the status as it was",
    Effect.gen(function*() {
      const { file, model_id } = yield* importTiny
      fs.rmSync(file)
      fs.symlinkSync(file, file)
      const error = yield* Effect.flip(Model.verify({ model_id }))
      assert.instanceOf(error, Model.ModelVerifyFailed)
      assert.match(error.message, /cannot be read/)
      assert.strictEqual(yield* statusOf(model_id), "ready")
      assert.deepStrictEqual(yield* told("model.verify"), [])
    })
  )

  test(
    "waits for nobody: not while the model is pulled, nor while it is checked",
    Effect.gen(function*() {
      const { fiber, model_id } = yield* halted()
      assert.deepStrictEqual(
        yield* Effect.flip(Model.verify({ model_id })),
        new Model.ModelVerifyFailed({ model_id, detail: "Its pull is under way. Check it once that has ended" })
      )
      assert.strictEqual(yield* statusOf(model_id), "pulling")
      yield* Fiber.interrupt(fiber)

      const hub = yield* server
      hub.addOllamaModel({ name: "tiny:latest", layers: [100] })
      const model = yield* Model.pull({ source: "ollama", repo: "tiny" })
      hub.fault("/api/tags", { kind: "silence" })
      const checking = yield* Effect.forkChild(Model.verify(model))
      yield* stalled
      assert.strictEqual(yield* statusOf(model.model_id), "verifying")
      assert.strictEqual((yield* Model.list({ status: "verifying" })).total, 1)
      assert.deepStrictEqual(
        yield* Effect.flip(Model.verify(model)),
        new Model.ModelVerifyFailed({
          model_id: model.model_id,
          detail: "Its verify is under way. Check it once that has ended"
        })
      )
      const busy = yield* Effect.flip(Model.pull({ source: "ollama", repo: "tiny" }))
      assert.instanceOf(busy, Model.ModelPullFailed)
      assert.deepStrictEqual([busy.reason, busy.retryable], ["Busy", true])
      yield* Fiber.interrupt(checking)
      assert.strictEqual(yield* statusOf(model.model_id), "ready")
    })
  )

  test(
    "works in another process, over the same database",
    Effect.gen(function*() {
      const { file, model_id } = yield* importTiny
      yield* hubWith()
      const pulled = yield* Model.pull(tiny)
      const store = yield* anotherStore
      const verify = (model_id: string) => Effect.provideService(Model.verify({ model_id }), Model.ModelStore, store)
      assert.deepStrictEqual(yield* verify(model_id), finding())
      assert.deepStrictEqual(yield* verify(pulled.model_id), finding())
      fs.rmSync(file)
      assert.isFalse((yield* verify(model_id)).valid)
      assert.strictEqual(yield* statusOf(model_id), "error")
    })
  )
})

describe("model.delete", () => {
  test(
    "removes a pulled model with its files, once",
    Effect.gen(function*() {
      yield* hubWith()
      const { model_id } = yield* Model.pull(tiny)
      assert.deepStrictEqual(yield* Model.delete({ model_id }), { success: true })
      const { directory } = yield* World
      assert.isFalse(fs.existsSync(path.join(directory, "models", model_id)))
      assert.strictEqual(yield* total, 0)
      assert.deepStrictEqual(yield* told("model.delete"), [{
        type: "model.deleted",
        payload: { model_id, name: repo }
      }])
      for (const force of [false, true]) {
        assert.deepStrictEqual(
          yield* Effect.flip(Model.delete({ model_id, force })),
          new Model.ModelNotFound({ model_id })
        )
      }
      const again = yield* Model.pull(tiny)
      assert.notStrictEqual(again.model_id, model_id)
    })
  )

  test(
    "leaves imported files, and those of other models",
    Effect.gen(function*() {
      const file = yield* write("tiny.gguf", weights)
      const { model_id } = yield* Model.import({ path: file })
      const folder = yield* Model.create({ name: "folder", path: path.dirname(file) })
      yield* hubWith()
      const pulled = yield* Model.pull(tiny)
      yield* Model.delete({ model_id, force: true })
      yield* Model.delete({ model_id: folder.model_id, force: true })
      assert.isTrue(fs.existsSync(file))
      assert.deepStrictEqual(yield* owned(pulled.model_id), ["config.json", "q/tiny.gguf"])
    })
  )

  test(
    "removes what a broken pull has left",
    Effect.gen(function*() {
      const { fiber, model_id } = yield* halted()
      yield* Fiber.interrupt(fiber)
      yield* Model.delete({ model_id })
      assert.deepStrictEqual(yield* owned(model_id), [])
    })
  )

  test(
    "refuses while the model is pulled; with force it ends the pull first",
    Effect.gen(function*() {
      const { fiber, model_id } = yield* halted()
      assert.deepStrictEqual(
        yield* Effect.flip(Model.delete({ model_id })),
        new Model.ModelDeleteFailed({
          model_id,
          detail: "Its pull is under way. Wait until it has ended, or delete with force",
          services: []
        })
      )
      assert.strictEqual(yield* statusOf(model_id), "pulling")
      assert.deepStrictEqual(yield* Model.delete({ model_id, force: true }), { success: true })
      yield* abandoned
      const error = yield* Effect.flip(Fiber.join(fiber))
      assert.instanceOf(error, Model.ModelPullFailed)
      assert.deepStrictEqual([error.model_id, error.reason, error.retryable], [model_id, "Cancelled", false])
      assert.deepStrictEqual(yield* owned(model_id), [])
      assert.strictEqual(yield* total, 0)
      const test = yield* Testing.TestEvents
      yield* test.settled
      yield* test.assertLifecycle
      assert.strictEqual((yield* told("model.delete")).at(-1)?.type, "model.deleted")
    })
  )

  test(
    "refuses while the model is checked; with force it ends the check first",
    Effect.gen(function*() {
      const hub = yield* server
      hub.addOllamaModel({ name: "tiny:latest", layers: [100] })
      const { model_id } = yield* Model.pull({ source: "ollama", repo: "tiny" })
      hub.fault("/api/tags", { kind: "silence" })
      const fiber = yield* Effect.forkChild(Model.verify({ model_id }))
      yield* stalled
      assert.instanceOf(yield* Effect.flip(Model.delete({ model_id })), Model.ModelDeleteFailed)
      yield* Model.delete({ model_id, force: true })
      assert.instanceOf(yield* Effect.flip(Fiber.join(fiber)), Model.ModelVerifyFailed)
      assert.strictEqual(yield* total, 0)
    })
  )

  test(
    "refuses while services use the model, and names them; with force it does not ask",
    Effect.gen(function*() {
      yield* hubWith()
      const { model_id } = yield* Model.pull(tiny)
      const used = Effect.provideService(
        Model.ModelUsage,
        (id) => Effect.succeed(id === model_id ? ["svc-vllm-a", "svc-vllm-b"] : [])
      )
      assert.deepStrictEqual(
        yield* Effect.flip(used(Model.delete({ model_id }))),
        new Model.ModelDeleteFailed({
          model_id,
          detail: "It is used by svc-vllm-a, svc-vllm-b. Stop them first, or delete with force",
          services: ["svc-vllm-a", "svc-vllm-b"]
        })
      )
      assert.strictEqual(yield* statusOf(model_id), "ready")
      assert.deepStrictEqual(yield* owned(model_id), ["config.json", "q/tiny.gguf"])
      assert.deepStrictEqual(yield* used(Model.delete({ model_id, force: true })), { success: true })
    })
  )

  test(
    "has Ollama delete its copy, one that it does not hold being done",
    Effect.gen(function*() {
      const hub = yield* server
      hub.addOllamaModel({ name: "tiny:1b", layers: [100] })
      const pull = Model.pull({ source: "ollama", repo: "tiny", tag: "1b" })
      const first = yield* pull
      yield* Model.delete({ model_id: first.model_id })
      const { body, method } = hub.requests.at(-1)!
      assert.deepStrictEqual([method, JSON.parse(body)], ["DELETE", { model: "tiny:1b" }])
      assert.deepStrictEqual((yield* Model.search({ query: "tiny", source: "ollama" })).results, [])

      const second = yield* pull
      hub.fault("/api/delete", { kind: "answer", status: 404, body: "{\"error\":\"model not found\"}" })
      assert.deepStrictEqual(yield* Model.delete({ model_id: second.model_id }), { success: true })
      assert.strictEqual(yield* total, 0)
    })
  )

  test(
    "that Ollama does not do keeps the record, and can be repeated",
    Effect.gen(function*() {
      const hub = yield* server
      hub.addOllamaModel({ name: "tiny:latest", layers: [100] })
      const { model_id } = yield* Model.pull({ source: "ollama", repo: "tiny" })
      hub.fault("/api/delete", { kind: "answer", status: 500, body: "{\"error\":\"file in use\"}" })
      const error = yield* Effect.flip(Model.delete({ model_id }))
      assert.instanceOf(error, Model.ModelDeleteFailed)
      assert.match(error.message, /file in use/)
      assert.strictEqual(yield* statusOf(model_id), "ready")
      assert.deepStrictEqual(yield* told("model.delete"), [])
      assert.deepStrictEqual(yield* Model.delete({ model_id }), { success: true })
    })
  )

  test(
    "that cannot remove the files keeps the record, and can be repeated",
    Effect.gen(function*() {
      yield* hubWith()
      const { model_id } = yield* Model.pull(tiny)
      const { directory } = yield* World
      const models = path.join(directory, "models")
      fs.renameSync(models, `${models}.away`)
      fs.writeFileSync(models, "a file where a folder should be")
      const error = yield* Effect.flip(Model.delete({ model_id }))
      assert.instanceOf(error, Model.ModelDeleteFailed)
      assert.match(error.message, /files could not be removed/)
      assert.strictEqual(yield* statusOf(model_id), "ready")
      fs.rmSync(models)
      fs.renameSync(`${models}.away`, models)
      assert.deepStrictEqual(yield* Model.delete({ model_id }), { success: true })
      assert.deepStrictEqual(below(models), [])
    })
  )

  test(
    "at the same time is done once, also with force",
    Effect.gen(function*() {
      const hub = yield* server
      hub.addOllamaModel({ name: "tiny:latest", layers: [100] })
      const { model_id } = yield* Model.pull({ source: "ollama", repo: "tiny" })
      hub.fault("/api/delete", { kind: "silence" })
      const first = yield* Effect.forkChild(Model.delete({ model_id, force: true }))
      yield* stalled
      assert.instanceOf(yield* Effect.flip(Model.delete({ model_id, force: true })), Model.ModelDeleteFailed)
      yield* Fiber.interrupt(first)
      assert.strictEqual(yield* statusOf(model_id), "ready")
      const exits = yield* Effect.forEach(
        Array.from({ length: 5 }),
        () => Effect.exit(Model.delete({ model_id, force: true })),
        { concurrency: "unbounded" }
      )
      assert.strictEqual(exits.filter(Exit.isSuccess).length, 1)
      assert.strictEqual((yield* told()).filter(({ type }) => type === "model.deleted").length, 1)
    })
  )
})
