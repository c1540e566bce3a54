/**
 * The commands of the model domain: units that change the register, and the files that belong to it.
 *
 * @since 0.1.0
 */
import * as Cause from "effect/Cause"
import * as Effect from "effect/Effect"
import * as Exit from "effect/Exit"
import * as FileSystem from "effect/FileSystem"
import * as Path from "effect/Path"
import * as Schema from "effect/Schema"
import type { EventPublisher } from "../EventPublisher.ts"
import * as Unit from "../Unit.ts"
import { InternalError, InvalidInput, RateLimited } from "../UnitError.ts"
import {
  ModelAlreadyExists,
  ModelDeleteFailed,
  ModelImportFailed,
  ModelNotFound,
  ModelPullFailed,
  ModelVerifyFailed,
  PullInProgress
} from "./Errors.ts"
import { ModelCreated, ModelDeleted, ModelPullProgress, ModelVerified } from "./Events.ts"
import { guessedTag } from "./Hub.ts"
import { type HubError, HubSource } from "./HubError.ts"
import { internal } from "./internal/failures.ts"
import * as LocalFiles from "./LocalFiles.ts"
import { Checksum, ModelFormat, ModelId, ModelSource, ModelType } from "./Model.ts"
import type { ModelFileError } from "./ModelFileError.ts"
import { ModelHub } from "./ModelHub.ts"
import { ModelStore, ModelUsage, type StoredModel } from "./ModelStore.ts"

const announce = (model: StoredModel) =>
  ModelCreated.publish({
    model_id: model.id,
    name: model.name,
    type: model.type,
    format: model.format,
    source: model.source,
    created_at: model.created_at
  })

/**
 * `model.create`: puts a model into the register, with status `pending`. `path` is noted, and looked at by `model.verify`.
 *
 * @category commands
 * @since 0.1.0
 */
export const create = Unit.command("model.create", {
  description: "Registers a model by name, without looking at its files",
  input: {
    name: Schema.NonEmptyString,
    type: ModelType.pipe(Unit.withDefault("llm")),
    source: ModelSource.pipe(Unit.withDefault("local")),
    format: ModelFormat.pipe(Unit.withDefault("gguf")),
    path: Schema.optionalKey(Schema.NonEmptyString)
  },
  output: { model_id: ModelId },
  errors: [ModelAlreadyExists, InternalError],
  examples: [{ name: "llama-3-8b", type: "llm", format: "gguf" }],
  handler: Effect.fnUntraced(function*({ format, name, path, source, type }) {
    const store = yield* ModelStore
    const model = yield* store.insert({
      name,
      type,
      format,
      source,
      status: "pending",
      size: 0,
      tags: [],
      files: [],
      ...(path === undefined ? {} : { path })
    }).pipe(internal)
    yield* announce(model)
    return { model_id: model.id }
  })
})

/**
 * `model.import`: registers the model that a file or folder holds, with status `ready`. The files stay where they are, and their
 * headers are read: names and types that are not given come from there.
 *
 * @category commands
 * @since 0.1.0
 */
export const import_ = Unit.command("model.import", {
  description: "Registers the model in a local file or folder",
  input: {
    path: Schema.NonEmptyString,
    name: Schema.optionalKey(Schema.NonEmptyString),
    type: Schema.optionalKey(ModelType),
    auto_detect: Schema.Boolean.pipe(Unit.withDefault(true))
  },
  output: { model_id: ModelId },
  errors: [ModelImportFailed, ModelAlreadyExists, InternalError],
  examples: [{ path: "/models/llama-3-8b.Q4_K_M.gguf" }],
  handler: Effect.fnUntraced(function*({ auto_detect, name, path, type }) {
    const store = yield* ModelStore
    const found = yield* Effect.mapError(
      LocalFiles.inspect(path),
      (error) => new ModelImportFailed({ path, reason: error.reason._tag, detail: capital(error.message) })
    )
    const detected = auto_detect ? found.type : "llm"
    const model = yield* store.insert({
      name: name ?? found.name,
      type: type ?? detected,
      format: found.format,
      source: "local",
      status: "ready",
      path: found.path,
      size: found.size,
      tags: type === undefined && auto_detect && found.typeGuessed ? [guessedTag] : [],
      files: found.files,
      shape: found.shape
    }).pipe(internal)
    yield* announce(model)
    return { model_id: model.id }
  })
})

const capital = (text: string): string => text.charAt(0).toUpperCase() + text.slice(1)

const defaultTags: Record<HubSource, string> = { ollama: "latest", huggingface: "main", modelscope: "master" }

const HttpUrl = Schema.String.check(
  Schema.makeFilter((text: string) => URL.canParse(text) && /^https?:$/.test(new URL(text).protocol), {
    expected: "an http or https URL"
  })
)

const pullFailed = (model: StoredModel) => (error: HubError) =>
  error.reason._tag === "RateLimited"
    ? new RateLimited({
      detail: error.message,
      ...(error.reason.retry_after_seconds === undefined
        ? {}
        : { retry_after_seconds: error.reason.retry_after_seconds })
    })
    : new ModelPullFailed({
      model_id: model.id,
      reason: error.reason._tag,
      detail: error.message,
      retryable: error.retryable
    })

/**
 * `model.pull`: downloads a model from a hub. A repeat of a finished pull has the same `model_id`, checks what is there and fetches
 * what has changed; a repeat of a broken one goes on where it stopped.
 *
 * **Details**
 *
 * The model is in the register from the start, with status `pulling`; at the end it is `ready`, after a failure or an interruption
 * `error`. `tag` is a branch, tag or commit, by default `latest` (Ollama), `main` (HuggingFace) or `master` (ModelScope); where a
 * repository holds several quantisations, it chooses one by the end of its file name. `mirror` takes the place of the hub's address.
 *
 * @category commands
 * @since 0.1.0
 */
export const pull = Unit.command("model.pull", {
  description: "Downloads a model from HuggingFace, ModelScope or Ollama",
  input: {
    source: HubSource,
    repo: Schema.NonEmptyString,
    tag: Schema.optionalKey(Schema.NonEmptyString),
    mirror: Schema.optionalKey(HttpUrl)
  },
  output: { model_id: ModelId, status: Schema.Literal("ready") },
  errors: [PullInProgress, ModelPullFailed, RateLimited, InternalError],
  examples: [{ source: "huggingface", repo: "Qwen/Qwen3-0.6B-GGUF", tag: "Q8_0" }],
  handler: Effect.fnUntraced(function*({ mirror, repo, source, tag = defaultTags[source] }) {
    const store = yield* ModelStore
    const hub = yield* ModelHub
    const context = yield* Effect.context<EventPublisher>()
    const { created, model } = yield* store.register({
      name: tag === defaultTags[source] ? repo : `${repo}:${tag}`,
      type: "llm",
      format: "gguf",
      source,
      status: "pulling",
      size: 0,
      tags: [],
      files: [],
      origin: { source, repo, tag, ...(mirror === undefined ? {} : { mirror }) }
    }).pipe(internal)

    let told = { progress: 0, bytes_total: 0, bytes_done: 0, speed: 0 }
    const fetch = Effect.gen(function*() {
      yield* store.change(model.id, { status: "pulling" })
      if (created) yield* announce(model)
      const pulled = yield* hub.pull({
        source,
        repo,
        tag,
        mirror,
        directory: store.directory(model.id),
        onProgress: ({ status, ...numbers }) => {
          told = numbers
          return Effect.provideContext(ModelPullProgress.publish({ model_id: model.id, status, ...numbers }), context)
        }
      })
      yield* store.change(model.id, {
        type: pulled.type,
        format: pulled.format,
        status: "ready",
        size: pulled.size,
        tags: pulled.tags,
        files: pulled.files,
        shape: pulled.shape,
        ...(pulled.checksum === undefined ? {} : { checksum: pulled.checksum }),
        ...(source === "ollama" ? {} : { path: store.directory(model.id) })
      })
      return { model_id: model.id, status: "ready" as const }
    }).pipe(
      Effect.onExit((exit) =>
        Exit.isSuccess(exit) ? Effect.void : Effect.andThen(
          Effect.ignore(store.change(model.id, { status: "error" })),
          ModelPullProgress.publish({
            model_id: model.id,
            status: "failed",
            ...told,
            speed: 0,
            error: Cause.hasInterruptsOnly(exit.cause)
              ? "The pull was interrupted"
              : messageOf(Cause.squash(exit.cause))
          })
        )
      )
    )

    return yield* store.during(model.id, "pull", fetch).pipe(
      Effect.catchTags({
        HubError: (error) => Effect.fail(pullFailed(model)(error)),
        ModelBusy: () => Effect.fail(new PullInProgress({ model_id: model.id })),
        Cancelled: () => Effect.fail(ended(model, "Cancelled", "The model was deleted with force meanwhile")),
        ModelNotFound: () => Effect.fail(ended(model, "Deleted", "The model was deleted meanwhile"))
      }),
      internal
    )
  })
})

const messageOf = (error: unknown): string => error instanceof Error ? error.message : String(error)

const ended = (model: StoredModel, reason: string, detail: string): ModelPullFailed =>
  new ModelPullFailed({ model_id: model.id, reason, detail: `${detail}. Pull it again`, retryable: false })

/**
 * `model.delete`: takes a model out of the register, with the files that a pull brought; imported files stay.
 *
 * **Details**
 *
 * Without `force` a model that a service uses, or that is being pulled or checked, is not deleted. With it, a pull or check of this
 * process is ended first. Ollama is told to delete its copy. The record goes last, so a delete that failed can be tried again.
 *
 * @category commands
 * @since 0.1.0
 */
export const delete_ = Unit.command("model.delete", {
  description: "Removes a model and the files that were pulled for it",
  input: { model_id: Schema.NonEmptyString, force: Schema.Boolean.pipe(Unit.withDefault(false)) },
  output: { success: Schema.Literal(true) },
  errors: [ModelNotFound, ModelDeleteFailed, InternalError],
  examples: [{ model_id: "model-0a1b2c3d" }],
  handler: Effect.fnUntraced(function*({ force, model_id }) {
    const store = yield* ModelStore
    const hub = yield* ModelHub
    const fs = yield* FileSystem.FileSystem
    const model = yield* store.get(model_id).pipe(internal)
    const refuse = (detail: string, services: ReadonlyArray<string> = []) =>
      new ModelDeleteFailed({ model_id: model.id, detail, services })

    const services = yield* Effect.flatMap(ModelUsage, (usedBy) => usedBy(model.id))
    if (services.length > 0 && !force) {
      return yield* refuse(`It is used by ${services.join(", ")}. Stop them first, or delete with force`, services)
    }
    if (force) yield* store.cancel(model.id)

    yield* store.during(
      model.id,
      "delete",
      Effect.gen(function*() {
        if (model.origin?.source === "ollama") {
          yield* hub.remove(model.origin).pipe(
            Effect.mapError((error) => refuse(`${error.message} Then delete it again`))
          )
        }
        if (model.origin !== undefined) {
          yield* fs.remove(store.directory(model.id), { recursive: true, force: true }).pipe(
            Effect.mapError((error) => refuse(`Its files could not be removed: ${error.message}. Delete it again`))
          )
        }
        yield* store.remove(model.id)
      })
    ).pipe(
      Effect.catchTags({
        ModelBusy: ({ operation }) =>
          Effect.fail(refuse(
            `Its ${operation} is under way${force ? " in another process" : ""}. Wait until it has ended${
              force ? "" : ", or delete with force"
            }`
          )),
        Cancelled: () => Effect.fail(refuse("Another delete with force came in between"))
      }),
      internal
    )
    yield* ModelDeleted.publish({ model_id: model.id, name: model.name })
    return { success: true } as const
  })
})

/**
 * `model.verify`: checks a model's files against what was recorded of them, and their structure against their format.
 *
 * **Details**
 *
 * What is wrong is in `issues`; the model is `ready` where nothing is, else `error`. `checksum` is checked besides, and goes with a
 * model of one weight file. Of a model that Ollama holds, its digest there is checked. A check that could not be done, or was
 * interrupted, leaves the status as it was.
 *
 * @category commands
 * @since 0.1.0
 */
export const verify = Unit.command("model.verify", {
  description: "Checks the files of a model",
  input: { model_id: Schema.NonEmptyString, checksum: Schema.optionalKey(Checksum) },
  output: { valid: Schema.Boolean, issues: Schema.Array(Schema.String) },
  errors: [ModelNotFound, ModelVerifyFailed, InternalError],
  examples: [{ model_id: "model-0a1b2c3d" }],
  handler: Effect.fnUntraced(function*({ checksum, model_id }) {
    const store = yield* ModelStore
    const model = yield* store.get(model_id).pipe(internal)
    const failed = (detail: string) => new ModelVerifyFailed({ model_id: model.id, detail })

    const issues = yield* store.during(
      model.id,
      "verify",
      Effect.gen(function*() {
        yield* store.change(model.id, { status: "verifying" })
        const issues = yield* model.origin?.source === "ollama"
          ? checkAtHub(model, checksum)
          : checkFiles(model, checksum)
        yield* store.change(model.id, { status: issues.length === 0 ? "ready" : "error" })
        return issues
      }).pipe(
        Effect.onExit((exit) =>
          Exit.isSuccess(exit) ? Effect.void : Effect.ignore(store.change(model.id, { status: model.status }))
        )
      )
    ).pipe(
      Effect.catchTags({
        HubError: (error) => Effect.fail(failed(error.message)),
        ModelFileError: (error) => Effect.fail(failed(capital(error.message))),
        ModelBusy: ({ operation }) =>
          Effect.fail(failed(`Its ${operation} is under way. Check it once that has ended`)),
        Cancelled: () => Effect.fail(failed("It was deleted with force meanwhile"))
      }),
      internal
    )
    yield* ModelVerified.publish({ model_id: model.id, valid: issues.length === 0, issues })
    return { valid: issues.length === 0, issues }
  })
})

const invalidChecksum = (expected: string) =>
  new InvalidInput({ unit: "model.verify", issues: [{ path: "checksum", expected }] })

const checkFiles = Effect.fnUntraced(function*(model: StoredModel, checksum: string | undefined) {
  const { files, path } = model
  if (path === undefined) return ["It has no files: neither a pull nor an import has brought any"]
  const issues = yield* LocalFiles.verify(path, files)
  return checksum === undefined ? issues : [...issues, ...yield* checkChecksum(path, checksum)]
})

const checkChecksum = Effect.fnUntraced(function*(
  path: string,
  checksum: string
): Effect.fn.Return<ReadonlyArray<string>, ModelFileError | InvalidInput, FileSystem.FileSystem | Path.Path> {
  const fs = yield* FileSystem.FileSystem
  const paths = yield* Path.Path
  const inspected = yield* Effect.result(LocalFiles.inspect(path))
  // What cannot be inspected is among the issues already.
  if (inspected._tag === "Failure") return []
  const [weight, ...others] = inspected.success.weights
  if (weight === undefined || others.length > 0) {
    return yield* invalidChecksum("Expected no checksum, as the model has several weight files; leave it out")
  }
  const file = paths.join(inspected.success.root, weight)
  const [scheme, value] = checksum.split(":")
  const actual = scheme === "size"
    ? yield* Effect.match(fs.stat(file), { onSuccess: (info) => String(info.size), onFailure: () => "unknown" })
    : yield* LocalFiles.hashFile(file)
  return actual === value ? [] : [`${weight} has the ${scheme} ${actual}, not ${value}`]
})

const checkAtHub = Effect.fnUntraced(function*(model: StoredModel, checksum: string | undefined) {
  const hub = yield* ModelHub
  // Only called for a model that has one.
  const origin = model.origin!
  const there = yield* Effect.result(hub.describe(origin))
  if (there._tag === "Failure") {
    return there.failure.reason._tag === "RepoNotFound"
      ? [`Ollama does not hold ${origin.repo}:${origin.tag} any more`]
      : yield* there.failure
  }
  const expected = checksum ?? model.checksum
  const actual = expected?.startsWith("size:") === true ? `size:${there.success.size}` : there.success.checksum
  return expected === undefined || expected === actual ? [] : [`Ollama holds ${actual}, not ${expected}`]
})
