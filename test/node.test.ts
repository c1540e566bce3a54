import { assert, describe, expectTypeOf, it } from "@effect/vitest"
import { ConfigProvider, Effect, Exit, Layer, PlatformError, Schedule } from "effect"
import { SqlClient } from "effect/sql"
import { TestClock } from "effect/testing"
import { spawn } from "node:child_process"
import { once } from "node:events"
import * as fs from "node:fs"
import * as os from "node:os"
import * as path from "node:path"
import { DatabaseSync } from "node:sqlite"
import { SqliteError } from "../src/backends/Sqlite.ts"
import * as EventPublisher from "../src/EventPublisher.ts"
import * as Model from "../src/model/index.ts"
import { layerEmbedded } from "../src/node.ts"
import type { catalog } from "../src/units.ts"
import { tinyGguf } from "./model/files.ts"
import * as HubServer from "./model/HubServer.ts"

const temporaryDirectory = Effect.acquireRelease(
  Effect.sync(() => fs.realpathSync(fs.mkdtempSync(path.join(os.tmpdir(), "node-")))),
  (directory) => Effect.sync(() => fs.rmSync(directory, { recursive: true }))
)

const hubServer = Effect.acquireRelease(
  Effect.promise(() => HubServer.start()),
  (server) => Effect.promise(() => server.close())
)

const embedded = (options: Parameters<typeof layerEmbedded>[0]) =>
  Layer.merge(layerEmbedded(options), EventPublisher.layerNoop)

const list = (directory: string) => Effect.provide(Model.list(), embedded({ directory }))

describe("layerEmbedded", () => {
  it("has all that the units of the catalog need", () => {
    expectTypeOf<Effect.Services<ReturnType<typeof catalog.execute>>>().toExtend<
      Layer.Success<ReturnType<typeof embedded>>
    >()
  })

  it.effect("makes its folder, and keeps there what units do", () =>
    Effect.gen(function*() {
      const directory = path.join(yield* temporaryDirectory, "not", "there", "yet")
      const file = path.join(path.dirname(path.dirname(path.dirname(directory))), "tiny.gguf")
      fs.writeFileSync(file, tinyGguf())
      const { model_id } = yield* Effect.provide(Model.import({ path: file }), embedded({ directory }))
      assert.deepStrictEqual(fs.readdirSync(directory), ["units.db"])
      // Built anew, as by a process that starts later.
      assert.deepStrictEqual(yield* list(directory), {
        items: [{ id: model_id, name: "Tiny Llama", type: "llm", status: "ready" }],
        total: 1
      })
    }))

  it.effect("can be built twice at once over one folder, by way of a relative path as well", () =>
    Effect.gen(function*() {
      const directory = path.join(yield* temporaryDirectory, "shared")
      const relative = path.relative(process.cwd(), directory)
      yield* Effect.forEach([directory, relative, directory], list, { concurrency: "unbounded" })
      assert.strictEqual((yield* list(directory)).total, 0)
    }))

  it.effect("reaches the hubs that the environment names", () =>
    Effect.gen(function*() {
      const directory = yield* temporaryDirectory
      const server = yield* hubServer
      const content = tinyGguf()
      server.addRepository({ repo: "acme/tiny", files: [{ path: "tiny.gguf", content }] })
      const { model_id } = yield* Model.pull({ source: "huggingface", repo: "acme/tiny" }).pipe(
        Effect.provide(embedded({ directory })),
        Effect.provideService(
          ConfigProvider.ConfigProvider,
          ConfigProvider.fromUnknown({ HF_ENDPOINT: server.url, HF_TOKEN: "hf_secret" })
        )
      )
      assert.strictEqual(server.requests[0]?.headers.authorization, "Bearer hf_secret")
      assert.deepStrictEqual(
        new Uint8Array(fs.readFileSync(path.join(directory, "models", model_id, "tiny.gguf"))),
        content
      )
    }))

  describe("fails by what is wrong with the folder", () => {
    const failure = (directory: string) => Effect.flip(list(directory))

    it.effect("a file is in its place, or above it", () =>
      Effect.gen(function*() {
        const file = path.join(yield* temporaryDirectory, "file")
        fs.writeFileSync(file, "")
        for (const directory of [file, path.join(file, "below")]) {
          assert.instanceOf(yield* failure(directory), PlatformError.PlatformError)
        }
      }))

    it.effect("its database is a folder, or something else", () =>
      Effect.gen(function*() {
        const directory = yield* temporaryDirectory
        const file = path.join(directory, "units.db")
        const reason = Effect.map(failure(directory), (error) => {
          assert.instanceOf(error, SqliteError)
          return error.reason._tag
        })
        fs.mkdirSync(file)
        assert.strictEqual(yield* reason, "Unavailable")
        fs.rmdirSync(file)
        fs.writeFileSync(file, "no database, but a text that is long enough to be read as a header ".repeat(20))
        assert.strictEqual(yield* reason, "NotADatabase")
      }))

    it.effect("its database has tables of the same names", () =>
      Effect.gen(function*() {
        const directory = yield* temporaryDirectory
        const db = new DatabaseSync(path.join(directory, "units.db"))
        db.exec("CREATE TABLE effect_units_models (id INTEGER)")
        db.close()
        assert.instanceOf(yield* failure(directory), Model.ModelStoreError)
      }))
  })

  it.effect("goes on with a pull whose process was killed, once its claim has run out", () =>
    Effect.gen(function*() {
      const directory = yield* temporaryDirectory
      const server = yield* hubServer
      const content = tinyGguf()
      server.addRepository({ repo: "acme/tiny", files: [{ path: "tiny.gguf", content, lfs: true }] })
      server.fault("tiny.gguf", { kind: "stall", after: 700 })
      const program = path.join(import.meta.dirname, "fixtures", "pullProcess.ts")
      const child = spawn(process.execPath, [program, directory, server.url], { stdio: "inherit" })
      yield* Effect.promise(server.stalled)
      // What was sent is there once it is on disk.
      const [model_id = ""] = fs.readdirSync(path.join(directory, "models"))
      const part = path.join(directory, "models", model_id, "tiny.gguf.part")
      while (!fs.existsSync(part) || fs.statSync(part).size < 700) {
        yield* Effect.promise(() => new Promise((resolve) => setImmediate(resolve)))
      }
      const exited = Effect.promise(() => once(child, "exit"))
      child.kill("SIGKILL")
      yield* exited

      // The claim goes by the time of day, which is that of the other process.
      yield* TestClock.setTime(Date.now())
      const hubs = { huggingface: { endpoint: server.url }, retry: Schedule.recurs(0) }
      yield* Effect.gen(function*() {
        const pull = Model.pull({ source: "huggingface", repo: "acme/tiny" })
        assert.strictEqual((yield* Model.get({ model_id })).status, "pulling")
        assert.instanceOf(yield* Effect.flip(pull), Model.PullInProgress)
        yield* TestClock.adjust("31 seconds")
        assert.strictEqual((yield* Model.get({ model_id })).status, "error")
        assert.deepStrictEqual(yield* pull, { model_id, status: "ready" })
        assert.strictEqual(server.requests.at(-1)?.headers.range, "bytes=700-")
        assert.deepStrictEqual(yield* Model.verify({ model_id }), { valid: true, issues: [] })
        const sql = yield* SqlClient.SqlClient
        assert.deepStrictEqual(
          (yield* sql`SELECT operation, operation_token FROM effect_units_models`).map((row) => ({ ...row })),
          [{ operation: null, operation_token: null }]
        )
      }).pipe(Effect.provide(embedded({ directory, hubs })))
      assert.deepStrictEqual(fs.readdirSync(path.join(directory, "models", model_id)), ["tiny.gguf"])
    }), 30_000)

  it.effect("closes its database with its scope", () =>
    Effect.gen(function*() {
      const directory = yield* temporaryDirectory
      const sql = yield* Effect.provide(SqlClient.SqlClient, embedded({ directory }))
      assert.isTrue(Exit.isFailure(yield* Effect.exit(sql`SELECT 1`)))
    }))
})
