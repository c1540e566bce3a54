/**
 * The commands of the model domain: units that change the register, and the files that belong to it.
 *
 * @since 0.1.0
 */
import * as Cause from "effect/Cause"
import * as Effect from "effect/Effect"
import * as FileSystem from "effect/FileSystem"
import * as Option from "effect/Option"
import * as Path from "effect/Path"
import * as Schema from "effect/Schema"
import type { EventPublisher } from "../EventPublisher.ts"
import * as Unit from "../Unit.ts"
import { InternalError, InvalidInput, RateLimited } from "../UnitError.ts"
import { defaultType } from "./Detect.ts"
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
import { guessedTag, type HubModel, nameOf } from "./Hub.ts"
import { type HubError, HubSource } from "./HubError.ts"
import { internal, rateLimited } from "./internal/failures.ts"
import * as LocalFiles from "./LocalFiles.ts"
import { ModelFormat, ModelId, ModelSource, ModelType } from "./Model.ts"
import type { ModelFileError } from "./ModelFileError.ts"
import { ModelHub } from "./ModelHub.ts"
import { type Change, ModelStore, ModelUsage, type Origin, type StoredModel } from "./ModelStore.ts"
import type { Progress } from "./Progress.ts"

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
 * `model.create`: puts a model into the register, with status `pending`. `path` is noted, made absolute, and looked at by
 * `model.verify`.
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
    const paths = yield* Path.Path
    const model = yield* store.insert({
      name,
      type,
      format,
      source,
      status: "pending",
      size: 0,
      tags: [],
      files: [],
      ...(path === undefined ? {} : { path: paths.resolve(path) })
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
      (error) => new ModelImportFailed({ path, reason: error.reason._tag, detail: error.message })
    )
    const known = type ?? (auto_detect && !found.typeGuessed ? found.type : undefined)
    const model = yield* store.insert({
      name: name ?? found.name,
      type: known ?? defaultType,
      format: found.format,
      source: "local",
      status: "ready",
      path: found.path,
      size: found.size,
      tags: known === undefined ? [guessedTag] : [],
      files: found.files,
      shape: found.shape
    }).pipe(internal)
    yield* announce(model)
    return { model_id: model.id }
  })
})

const defaultTags: Record<HubSource, string> = { ollama: "latest", huggingface: "main", modelscope: "master" }

// Credentials in an address would go into the register, and to no hub: a mirror is sent no token.
const MirrorUrl = Schema.String.check(
  Schema.makeFilter((text: string) => {
    if (!URL.canParse(text)) return false
    const { password, protocol, username } = new URL(text)
    return /^https?:$/.test(protocol) && username === "" && password === ""
  }, { expected: "an http or https URL without user and password" })
).pipe(Unit.secret)

/**
 * `model.pull`: downloads a model from a hub. A repeat of a finished pull has the same `model_id`, checks what is there and fetches
 * what has changed; a repeat of a broken one goes on where it stopped.
 *
 * **Details**
 *
 * The model is in the register from the start, with status `pulling`; at the end it is `ready`, after a failure or an interruption
 * `error`. `tag` is a branch, tag or commit, by default `latest` (Ollama, whose own form `repo:tag` will do as well), `main`
 * (HuggingFace) or `master` (ModelScope); where a repository holds several quantisations, it chooses one by the end of its file name.
 * `mirror` takes the place of the hub's address.
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
    mirror: Schema.optionalKey(MirrorUrl)
  },
  output: { model_id: ModelId, status: Schema.Literal("ready") },
  errors: [PullInProgress, ModelPullFailed, RateLimited, InternalError],
  examples: [{ source: "huggingface", repo: "Qwen/Qwen3-0.6B-GGUF", tag: "Q8_0" }],
  handler: Effect.fnUntraced(function*(input) {
    const store = yield* ModelStore
    const origin = originOf(input)
    const { created, model } = yield* store.register({
      name: nameOf(origin, defaultTags[origin.source]),
      type: defaultType,
      format: "gguf",
      source: origin.source,
      status: "pending",
      size: 0,
      tags: [guessedTag],
      files: [],
      origin
    }).pipe(internal)
    if (created) yield* announce(model)

    const failed = (reason: string, detail: string, retryable: boolean) =>
      Effect.fail(new ModelPullFailed({ model_id: model.id, reason, detail, retryable }))
    yield* store.during(model.id, "pull", (model) => fetch(model, origin)).pipe(
      Effect.catchTags({
        HubError: (error) => {
          const limited = rateLimited(error)
          return limited === undefined
            ? failed(error.reason._tag, error.message, error.retryable)
            : Effect.fail(limited)
        },
        Busy: ({ operation }) =>
          operation === "pull"
            ? Effect.fail(new PullInProgress({ model_id: model.id }))
            : failed("Busy", `Its ${operation} is under way. Pull it once that has ended`, true),
        Cancelled: () =>
          failed("Cancelled", "It was deleted with force meanwhile. Pull it again to have it back", false),
        ModelNotFound: () => failed("Deleted", "It was deleted meanwhile. Pull it again to have it back", true)
      }),
      internal
    )
    return { model_id: model.id, status: "ready" } as const
  })
})

/** What a pull asks for. Ollama's own names hold the tag. */
const originOf = ({ mirror, repo, source, tag }: {
  readonly source: HubSource
  readonly repo: string
  readonly tag?: string
  readonly mirror?: string
}): Origin => {
  const [, name = repo, tagInName] = (source === "ollama" && tag === undefined && /^(.+):([^:/]+)$/.exec(repo)) || []
  return {
    source,
    repo: name,
    tag: tag ?? tagInName ?? defaultTags[source],
    ...(mirror === undefined ? {} : { mirror })
  }
}

/** Fetches the files of a model and records what they are, telling all the while how far it is. */
const fetch = Effect.fnUntraced(function*(model: StoredModel, origin: Origin) {
  const store = yield* ModelStore
  const hub = yield* ModelHub
  const context = yield* Effect.context<EventPublisher>()
  const directory = store.directory(model.id)
  let told: Omit<Progress, "status"> = { progress: 0, bytes_total: 0, bytes_done: 0, speed: 0 }

  const work = Effect.gen(function*() {
    const pulled = yield* hub.pull({
      ...origin,
      directory,
      onProgress: ({ status, ...numbers }) => {
        told = numbers
        return Effect.provideContext(ModelPullProgress.publish({ model_id: model.id, status, ...numbers }), context)
      }
    })
    yield* removeStale(directory, model.files, pulled.files)
    yield* store.change(model.id, {
      ...(yield* knownOf(pulled, directory)),
      status: "ready",
      origin,
      ...(origin.source === "ollama" ? {} : { path: directory })
    })
  })
  return yield* Effect.onError(work, (cause) =>
    ModelPullProgress.publish({
      model_id: model.id,
      status: "failed",
      ...told,
      speed: 0,
      error: Cause.hasInterruptsOnly(cause) ? "The pull was interrupted" : messageOf(Cause.squash(cause))
    }))
})

const messageOf = (error: unknown): string => error instanceof Error ? error.message : String(error)

/**
 * What a register needs to know of a model that was pulled. Headers tell more of its dimensions than a listing, and may tell the
 * type that a hub had to guess.
 */
const knownOf = Effect.fnUntraced(function*(pulled: HubModel, directory: string) {
  const { checksum, files, format, shape, size, tags, type } = pulled
  const listed = { type, format, size, checksum, tags, files, shape }
  // Ollama keeps the files to itself, and what is whole by its checksum may be in a form that is not known here.
  const found = yield* Effect.option(LocalFiles.inspect(directory))
  if (Option.isNone(found)) return listed
  const local = found.value
  return tags.includes(guessedTag) && !local.typeGuessed
    ? { ...listed, shape: local.shape, type: local.type, tags: tags.filter((tag) => tag !== guessedTag) }
    : { ...listed, shape: local.shape }
})

/** Takes away what an earlier pull brought and the model no longer holds, lest it be taken for a part of the model. */
const removeStale = Effect.fnUntraced(function*(
  directory: string,
  before: StoredModel["files"],
  now: StoredModel["files"]
) {
  const fs = yield* FileSystem.FileSystem
  const paths = yield* Path.Path
  const kept = new Set(now.map((file) => file.path))
  for (const { path } of before) {
    if (kept.has(path)) continue
    yield* fs.remove(paths.join(directory, path), { force: true }).pipe(
      // It is of no use, and of no harm to the files that are.
      Effect.catch((error) => Effect.logWarning(`A file of an earlier version of a model was not removed`, error))
    )
  }
})

/**
 * `model.delete`: takes a model out of the register, with the files that a pull brought; imported files stay.
 *
 * **Details**
 *
 * Without `force` a model that a service uses, or that is being pulled or checked, is not deleted. With it, that pull or check is
 * ended first. Ollama is told to delete its copy. The record goes last, so a delete that failed can be tried again.
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
    if (force) yield* internal(store.cancel(model_id))
    yield* store.during(model_id, "delete", (model) => erase(model, force)).pipe(
      Effect.catchTags({
        Busy: ({ operation }) =>
          Effect.fail(
            refused(model_id, `Its ${operation} is under way. Wait until it has ended, or delete with force`)
          ),
        Cancelled: () => Effect.fail(refused(model_id, "Another process took it over. Delete it again"))
      }),
      internal
    )
    return { success: true } as const
  })
})

const refused = (model_id: string, detail: string, services: ReadonlyArray<string> = []) =>
  new ModelDeleteFailed({ model_id, detail, services })

/** Removes all that belongs to a model, and tells so. */
const erase = Effect.fnUntraced(function*(model: StoredModel, force: boolean) {
  const store = yield* ModelStore
  const hub = yield* ModelHub
  const fs = yield* FileSystem.FileSystem
  const services = yield* Effect.flatMap(ModelUsage, (usedBy) => usedBy(model.id))
  if (services.length > 0 && !force) {
    return yield* refused(
      model.id,
      `It is used by ${services.join(", ")}. Stop them first, or delete with force`,
      services
    )
  }
  if (model.origin?.source === "ollama") {
    yield* Effect.mapError(
      hub.remove(model.origin),
      (error) => refused(model.id, `${error.message} Then delete it again`)
    )
  }
  if (model.origin !== undefined) {
    yield* Effect.mapError(
      fs.remove(store.directory(model.id), { recursive: true, force: true }),
      (error) => refused(model.id, `Its files could not be removed: ${error.message}. Then delete it again`)
    )
  }
  yield* store.remove(model.id)
  yield* ModelDeleted.publish({ model_id: model.id, name: model.name })
})

const GivenChecksum = Schema.String.check(
  Schema.isPattern(/^(?:sha256:[0-9a-fA-F]{64}|size:(?:0|[1-9][0-9]{0,15}))$/, {
    expected: "`sha256:` and 64 hexadecimal digits, or `size:` and a number of bytes"
  })
)

/**
 * `model.verify`: checks a model's files against what was recorded of them, and their structure against their format.
 *
 * **Details**
 *
 * What is wrong is in `issues`; the model is `ready` where nothing is, else `error`. `checksum` is checked besides, and goes with a
 * model of one weight file. Of a model that Ollama holds, its digest there is checked. A check that could not be done, or was
 * interrupted, leaves the status as it was. Of a model that was registered without looking at its files, the first check that finds
 * nothing wrong records them.
 *
 * @category commands
 * @since 0.1.0
 */
export const verify = Unit.command("model.verify", {
  description: "Checks the files of a model",
  input: { model_id: Schema.NonEmptyString, checksum: Schema.optionalKey(GivenChecksum) },
  output: { valid: Schema.Boolean, issues: Schema.Array(Schema.String) },
  errors: [ModelNotFound, ModelVerifyFailed, InternalError],
  examples: [{ model_id: "model-0a1b2c3d" }],
  handler: Effect.fnUntraced(function*({ checksum, model_id }) {
    const store = yield* ModelStore
    const failed = (detail: string) => Effect.fail(new ModelVerifyFailed({ model_id, detail }))
    return yield* store.during(model_id, "verify", (model) => check(model, checksum?.toLowerCase())).pipe(
      Effect.catchTags({
        HubError: (error) => failed(error.message),
        ModelFileError: (error) => failed(error.message),
        Busy: ({ operation }) => failed(`Its ${operation} is under way. Check it once that has ended`),
        Cancelled: () => failed("It was deleted with force meanwhile. Pull or import it again to have it back")
      }),
      internal
    )
  })
})

/** Checks a model, records the outcome and tells it. */
const check = Effect.fnUntraced(function*(model: StoredModel, checksum: string | undefined) {
  const store = yield* ModelStore
  const { issues, known } = yield* model.origin?.source === "ollama"
    ? checkAtOllama(model, model.origin, checksum)
    : checkFiles(model, checksum)
  const valid = issues.length === 0
  yield* store.change(model.id, valid ? { ...known, status: "ready" } : { status: "error" })
  yield* ModelVerified.publish({ model_id: model.id, valid, issues })
  return { valid, issues }
})

/** What a check finds: what is wrong, and what was not known before. */
interface Findings {
  readonly issues: ReadonlyArray<string>
  readonly known?: Change
}

const checkFiles = Effect.fnUntraced(function*(
  { files, format, path }: StoredModel,
  checksum: string | undefined
): Effect.fn.Return<Findings, ModelFileError | InvalidInput, FileSystem.FileSystem | Path.Path> {
  if (path === undefined) return { issues: ["It has no files: pull it, or import them"] }
  const found = yield* Effect.result(LocalFiles.inspect(path))
  if (found._tag === "Failure") {
    if (checksum !== undefined && found.failure.reason._tag === "Ambiguous") return yield* severalWeights
    const issues = yield* LocalFiles.verify(path, files)
    // Where nothing else is wrong, this is why the checksum was not compared.
    return { issues: checksum !== undefined && issues.length === 0 ? [found.failure.message] : issues }
  }
  const local = found.success
  const mismatch = checksum === undefined ? [] : yield* compare(local, files, checksum)
  const issues = [...(yield* LocalFiles.verify(path, files)), ...mismatch]
  if (files.length > 0) return { issues }
  return local.format === format
    ? { issues, known: { files: local.files, shape: local.shape, size: local.size } }
    : { issues: [...issues, `It holds ${local.format}, and is registered as ${format}. Register it anew`] }
})

const severalWeights = Effect.fail(
  new InvalidInput({
    unit: "model.verify",
    issues: [{ path: "checksum", expected: "Expected none, as the model has several weight files; leave it out" }]
  })
)

/** What is wrong by a checksum, in words. */
const compare = Effect.fnUntraced(function*(
  { files, root, weights: [weight, ...others] }: LocalFiles.LocalModel,
  manifest: StoredModel["files"],
  checksum: string
): Effect.fn.Return<ReadonlyArray<string>, ModelFileError | InvalidInput, FileSystem.FileSystem | Path.Path> {
  if (weight === undefined || others.length > 0) return yield* severalWeights
  const paths = yield* Path.Path
  const isWeight = (file: { readonly path: string }) => file.path === weight
  const [scheme, expected] = checksum.split(":")
  // What is recorded is checked anyhow, and hashing takes its time.
  if (scheme === "sha256" && manifest.find(isWeight)?.sha256 === expected) return []
  const actual = scheme === "size"
    ? String(files.find(isWeight)?.size)
    : yield* LocalFiles.hashFile(paths.join(root, weight))
  return actual === expected ? [] : [`${weight} has the ${scheme} ${actual}, not ${expected}`]
})

const checkAtOllama = Effect.fnUntraced(function*(
  model: StoredModel,
  origin: Origin,
  checksum: string | undefined
): Effect.fn.Return<Findings, HubError, ModelHub> {
  const hub = yield* ModelHub
  const there = yield* Effect.result(hub.describe(origin))
  if (there._tag === "Failure") {
    return there.failure.reason._tag === "RepoNotFound"
      ? { issues: [`Ollama does not hold ${origin.repo}:${origin.tag}. Pull it again`] }
      : yield* there.failure
  }
  const held = [there.success.checksum, `size:${there.success.size}`]
  const missing = [model.checksum, checksum].filter((expected) => expected !== undefined && !held.includes(expected))
  return { issues: missing.map((expected) => `Ollama holds ${held.join(", ")}, not ${expected}`) }
})
