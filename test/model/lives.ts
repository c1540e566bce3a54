/** How each unit of the model domain ends. */
import { Effect } from "effect"
import { TestClock } from "effect/testing"
import * as Model from "../../src/model/index.ts"
import { domain } from "../lives.ts"
import { llamaConfig, tinyGguf, tinySafetensors } from "./files.ts"
import type * as HubServer from "./HubServer.ts"
import { breakDatabase, holdDatabase, layer, onDisk, tokens, World, write } from "./world.ts"

const lives = domain(layer)

const unknown = { model_id: "model-00000000" }
const repo = "acme/tiny"
const pull = { source: "huggingface", repo } as const
const repository: HubServer.Repository = {
  repo,
  pipeline_tag: "text-generation",
  downloads: 7,
  files: [{ path: "tiny.gguf", content: tinyGguf(), lfs: true }]
}

/** Adds a repository to the hubs, and faults to paths there. */
const hub = (faults: Readonly<Record<string, HubServer.Fault>> = {}) =>
  Effect.map(World, ({ server }) => {
    server.addRepository(repository)
    for (const [path, fault] of Object.entries(faults)) server.fault(path, fault)
  })

const onOllama = Effect.gen(function*() {
  const { server } = yield* World
  server.addOllamaModel({ name: "tiny:latest", layers: [100] })
  const { model_id } = yield* Model.pull({ source: "ollama", repo: "tiny" })
  return { model_id }
})

/** A hub has left the unit waiting. */
const waiting = Effect.flatMap(World, ({ server }) => Effect.promise(() => server.stalled()))

/** A pull that has come to a halt in the middle of its file, and goes on waiting. */
const pulling = Effect.gen(function*() {
  yield* hub({ "tiny.gguf": { kind: "stall", after: 100 } })
  yield* Effect.forkScoped(Model.pull(pull))
  yield* waiting
  const { items: [model] } = yield* Model.list()
  yield* onDisk(model!.id, "tiny.gguf", 100)
  return { model_id: model!.id }
})

const imported = Effect.gen(function*() {
  const path = yield* write("tiny.gguf", tinyGguf())
  return yield* Model.import({ path })
})

const silence = { kind: "silence" } as const
const limited = { kind: "answer", status: 429, headers: { "retry-after": "99" } } as const
const down = { kind: "answer", status: 503 } as const

const broken = <I>(input: I) => ({ given: Effect.as(breakDatabase, input) })
const held = <A, E, R>(given: Effect.Effect<A, E, R>) => ({ given: Effect.tap(given, holdDatabase) })

export const modelLives = [
  ...lives(Model.create, {
    completed: { given: Effect.succeed({ name: "tiny", path: "tiny.gguf" }), tells: ["model.created"] },
    failures: {
      ModelAlreadyExists: { given: Effect.as(Model.create({ name: "tiny" }), { name: "Tiny" }) },
      InternalError: broken({ name: "tiny" }),
      InvalidInput: { given: Effect.succeed({ name: "" }) }
    },
    interrupted: held(Effect.succeed({ name: "tiny" }))
  }),
  ...lives(Model.delete, {
    completed: {
      given: Effect.gen(function*() {
        yield* hub()
        const { model_id } = yield* Model.pull(pull)
        return { model_id }
      }),
      tells: ["model.deleted"]
    },
    failures: {
      ModelNotFound: { given: Effect.succeed(unknown) },
      ModelDeleteFailed: { given: pulling },
      InternalError: broken(unknown),
      InvalidInput: { given: Effect.succeed({ model_id: "" }) }
    },
    interrupted: {
      given: Effect.tap(onOllama, Effect.map(World, ({ server }) => server.fault("/api/delete", silence))),
      meanwhile: waiting
    }
  }),
  ...lives(Model.pull, {
    completed: {
      given: Effect.gen(function*() {
        yield* hub()
        const { server } = yield* World
        return { ...pull, mirror: `${server.url}/mirror/hf` }
      }),
      tells: ["model.created", "model.pull_progress", "model.pull_progress", "model.pull_progress"]
    },
    failures: {
      PullInProgress: { given: Effect.as(pulling, pull) },
      ModelPullFailed: {
        given: Effect.succeed(pull),
        tells: ["model.created", "model.pull_progress"],
        leavesTraces: true
      },
      RateLimited: {
        given: Effect.as(hub({ "tiny.gguf": limited }), pull),
        tells: ["model.created", "model.pull_progress", "model.pull_progress"],
        leavesTraces: true
      },
      InternalError: broken(pull),
      InvalidInput: { given: Effect.succeed({ ...pull, mirror: `https://me:${tokens.modelscope}@hub.test` }) }
    },
    interrupted: {
      given: Effect.as(hub({ "tiny.gguf": { kind: "stall", after: 100 } }), pull),
      meanwhile: waiting,
      tells: ["model.created", "model.pull_progress", "model.pull_progress"],
      leavesTraces: true
    }
  }),
  ...lives(Model.import, {
    completed: {
      given: Effect.gen(function*() {
        yield* write("folder/config.json", JSON.stringify(llamaConfig))
        yield* write("folder/model.safetensors", tinySafetensors)
        const { elsewhere } = yield* World
        return { path: `${elsewhere}/folder` }
      }),
      tells: ["model.created"]
    },
    failures: {
      ModelImportFailed: { given: Effect.map(write("tiny.gguf", tinyGguf().slice(0, 600)), (path) => ({ path })) },
      ModelAlreadyExists: {
        given: Effect.gen(function*() {
          const path = yield* write("tiny.gguf", tinyGguf())
          yield* Model.import({ path })
          return { path, name: "another name" }
        })
      },
      InternalError: {
        given: Effect.map(Effect.tap(write("tiny.gguf", tinyGguf()), breakDatabase), (path) => ({ path }))
      },
      InvalidInput: { given: Effect.succeed({ path: "" }) }
    },
    interrupted: held(Effect.map(write("tiny.gguf", tinyGguf()), (path) => ({ path })))
  }),
  ...lives(Model.verify, {
    completed: { given: imported, tells: ["model.verified"] },
    failures: {
      ModelNotFound: { given: Effect.succeed(unknown) },
      ModelVerifyFailed: { given: pulling },
      InternalError: broken(unknown),
      InvalidInput: { given: Effect.succeed({ ...unknown, checksum: "md5:d41d8cd98f00b204e9800998ecf8427e" }) }
    },
    interrupted: {
      given: Effect.tap(onOllama, Effect.map(World, ({ server }) => server.fault("/api/tags", silence))),
      meanwhile: waiting
    }
  }),
  ...lives(Model.get, {
    completed: { given: imported },
    failures: {
      ModelNotFound: { given: Effect.succeed(unknown) },
      InternalError: broken(unknown),
      InvalidInput: { given: Effect.succeed({ model_id: "" }) }
    },
    interrupted: held(imported)
  }),
  ...lives(Model.list, {
    completed: { given: Effect.as(imported, { status: "ready", limit: 10 } as const) },
    failures: {
      InternalError: broken({}),
      InvalidInput: { given: Effect.succeed({ limit: 101 }) }
    },
    interrupted: held(Effect.succeed({}))
  }),
  ...lives(Model.search, {
    completed: { given: Effect.as(hub(), { query: "tiny" }) },
    failures: {
      Timeout: {
        given: Effect.as(hub({ "/api/models": silence }), { query: "tiny", source: "huggingface" } as const),
        meanwhile: Effect.andThen(waiting, TestClock.adjust("30 seconds"))
      },
      RateLimited: {
        given: Effect.as(hub({ "/api/models": limited }), { query: "tiny", source: "huggingface" } as const)
      },
      InternalError: {
        given: Effect.as(hub({ "/api/models": down, "/openapi/v1/models": down, "/api/tags": down }), { query: "tiny" })
      },
      InvalidInput: { given: Effect.succeed({ query: "tiny", limit: 0 }) }
    },
    interrupted: {
      given: Effect.as(hub({ "/api/models": silence }), { query: "tiny" }),
      meanwhile: waiting
    }
  }),
  ...lives(Model.estimateResources, {
    completed: { given: imported },
    failures: {
      ModelNotFound: { given: Effect.succeed(unknown) },
      InternalError: { given: Model.create({ name: "tiny" }) },
      InvalidInput: { given: Effect.succeed({ model_id: "" }) }
    },
    interrupted: held(imported)
  })
]
