/**
 * From the name of a model to an endpoint that serves it, and from what goes wrong there to the failures of units.
 *
 * @since 0.1.0
 */
import * as Cache from "effect/Cache"
import * as Clock from "effect/Clock"
import * as Context from "effect/Context"
import * as Duration from "effect/Duration"
import * as Effect from "effect/Effect"
import * as Exit from "effect/Exit"
import * as Layer from "effect/Layer"
import * as Result from "effect/Result"
import * as Stream from "effect/Stream"
import { ModelStore } from "../model/ModelStore.ts"
import type { InternalError } from "../UnitError.ts"
import type { Backend, ListedModel } from "./Backend.ts"
import type { BackendReason } from "./BackendReason.ts"
import { type Endpoint, Endpoints } from "./Endpoints.ts"
import { type InferenceFailure, InferenceInvalidParams, InferenceModelNotLoaded } from "./Errors.ts"
import { failureOf, internal } from "./internal/failures.ts"
import * as Serving from "./Serving.ts"

/**
 * A live endpoint with the models that it serves at this moment.
 *
 * @category models
 * @since 0.1.0
 */
export interface Served {
  readonly endpoint: Endpoint
  readonly models: ReadonlyArray<ListedModel>
}

/**
 * What can go wrong between a unit and a model.
 *
 * @category errors
 * @since 0.1.0
 */
export type Failure = InferenceFailure | InternalError

/**
 * Sends requests to endpoints that serve their model.
 *
 * **Details**
 *
 * `call` and `stream` take the name of a model as the caller knows it: the id or the name of a registered model, or a name that an
 * endpoint serves, whatever their case. `use` gets a backend and the model's id there, and gives the operation; it gives `undefined`
 * where the backend has no such operation. `what` names the operation, for messages.
 *
 *     router.call(model, "chat", (backend, model) => backend.chat?.({ ...request, model }))
 *
 * Of several endpoints that serve a model, each gets its turn; one that could not be reached is passed over for a while, unless there is
 * no other. Where no connection comes about, so that nothing was sent, another endpoint is asked, once. Nothing else is tried again.
 *
 * Failures:
 *
 * - `InferenceModelNotLoaded`: no endpoint that answers serves the model.
 * - `InferenceInvalidParams`: none that serves it has the operation, or the backend refuses the request.
 * - `InferenceEngineError`, `InferenceTimeout`, `InferenceRateLimited`: as the backend failed.
 * - `InternalError`: the register of models, or the list of endpoints, cannot be read.
 *
 * `served` asks all endpoints for their models; those that do not answer are left out, and those without a list have what was declared.
 *
 * @category services
 * @since 0.1.0
 */
export class Router extends Context.Service<Router, {
  readonly call: <A>(
    model: string,
    what: string,
    use: (backend: Backend, model: string) => Effect.Effect<A, BackendReason> | undefined
  ) => Effect.Effect<A, Failure>
  readonly stream: <A>(
    model: string,
    what: string,
    use: (backend: Backend, model: string) => Stream.Stream<A, BackendReason> | undefined
  ) => Stream.Stream<A, Failure>
  readonly served: Effect.Effect<ReadonlyArray<Served>, InternalError>
}>()("effect-units/inference/Router") {}

/**
 * Settings of the router.
 *
 * @category models
 * @since 0.1.0
 */
export interface Options {
  /** How long it is remembered which endpoints serve a model. Default: 5 seconds. */
  readonly remember?: Duration.Input | undefined
  /** How long an endpoint that could not be reached is passed over. Default: 10 seconds. */
  readonly avoid?: Duration.Input | undefined
}

/** An endpoint that serves a model, and the model's id there. */
interface Replica {
  readonly endpoint: Endpoint
  readonly served: string
}

/** Names of models that are remembered. */
const capacity = 1024

/** Endpoints that one call asks for their models at the same time. */
const concurrency = 16

/** What is known of an endpoint belongs to one life of it. */
const keyOf = ({ address, name }: Endpoint): string => `${name}\n${address}`

/** What an endpoint is said to serve, with what it tells of that itself; without a word on it, all that it lists. */
const declared = ({ models }: Endpoint, listed: ReadonlyArray<ListedModel>): ReadonlyArray<ListedModel> =>
  models?.map((id) => listed.find((model) => model.id === id) ?? { id }) ?? listed

const make = Effect.fnUntraced(function*(options: Options) {
  const endpoints = yield* Endpoints
  const store = yield* ModelStore
  const remember = Duration.toMillis(options.remember ?? "5 seconds")
  const avoid = Duration.toMillis(options.avoid ?? "10 seconds")
  const lists = new Map<string, { readonly models: ReadonlyArray<ListedModel>; readonly until: number }>()
  const avoided = new Map<string, number>()
  const turns = new Map<string, number>()

  const list = Effect.gen(function*() {
    const live = yield* endpoints.list
    const keys = new Set(live.map(keyOf))
    for (const known of [lists, avoided]) {
      for (const key of known.keys()) if (!keys.has(key)) known.delete(key)
    }
    return live
  })

  const ask = Effect.fnUntraced(function*(endpoint: Endpoint): Effect.fn.Return<
    ReadonlyArray<ListedModel>,
    BackendReason
  > {
    const key = keyOf(endpoint)
    const models = yield* Effect.tapError(endpoint.backend.models, () =>
      Effect.map(Clock.currentTimeMillis, (now) => {
        lists.delete(key)
        avoided.set(key, now + avoid)
      }))
    avoided.delete(key)
    lists.set(key, { models, until: (yield* Clock.currentTimeMillis) + remember })
    return models
  })

  /** The models of an endpoint, by what is remembered where that will do. */
  const modelsOf = Effect.fnUntraced(function*(endpoint: Endpoint, fresh: boolean) {
    if (endpoint.models !== undefined) return declared(endpoint, [])
    const known = lists.get(keyOf(endpoint))
    const now = yield* Clock.currentTimeMillis
    if (!fresh && known !== undefined && known.until > now) return known.models
    if (!fresh && (avoided.get(keyOf(endpoint)) ?? 0) > now) return []
    return yield* ask(endpoint)
  })

  const replicasOf = Effect.fnUntraced(function*(model: string, fresh: boolean) {
    const live = yield* Effect.mapError(list, internal)
    const registered = yield* Effect.mapError(store.find(model), internal)
    const isMeant = Serving.isOneOf([model, ...(registered === undefined ? [] : Serving.namesOf(registered))])
    const silent: Array<string> = []
    const found = yield* Effect.forEach(
      live,
      (endpoint) =>
        Effect.map(Effect.result(modelsOf(endpoint, fresh)), (result): ReadonlyArray<Replica> => {
          if (Result.isFailure(result)) {
            silent.push(`${endpoint.name} did not answer. ${result.failure.detail}`)
            return []
          }
          const models = result.success
          const served = models.find(({ id }) => isMeant(id))?.id ??
            // What was started for the model serves it under whatever name it has there, where that is the only one.
            (endpoint.modelId !== undefined && endpoint.modelId === registered?.id && models.length === 1
              ? models[0]?.id
              : undefined)
          return served === undefined ? [] : [{ endpoint, served }]
        }),
      { concurrency }
    )
    return { replicas: found.flat(), silent, live: live.length }
  })

  const look = Effect.fnUntraced(function*(model: string): Effect.fn.Return<ReadonlyArray<Replica>, Failure> {
    const remembered = yield* replicasOf(model, false)
    if (remembered.replicas.length > 0) return remembered.replicas
    // It may have come meanwhile.
    const { live, replicas, silent } = yield* replicasOf(model, true)
    if (replicas.length > 0) return replicas
    const what = live === 0 ? "There is no endpoint." : `None of ${live} endpoints serves it.`
    return yield* new InferenceModelNotLoaded({
      model,
      detail: [what, ...silent, "Start an engine or a service with it, or see which models there are"].join(" "),
      retryable: silent.length > 0
    })
  })

  const known = yield* Cache.makeWith(look, {
    capacity,
    timeToLive: (exit) => Exit.isSuccess(exit) ? remember : 0
  })

  /** The replicas in the order in which they are to be asked: those that can be reached first, beginning with the one whose turn it is. */
  const inTurn = Effect.fnUntraced(function*(model: string) {
    const replicas = yield* Cache.get(known, model)
    const now = yield* Clock.currentTimeMillis
    const turn = turns.get(model) ?? 0
    turns.delete(model)
    turns.set(model, (turn + 1) % 0x40000000)
    const [oldest] = turns.keys()
    if (turns.size > capacity && oldest !== undefined) turns.delete(oldest)
    const reachable = replicas.filter(({ endpoint }) => (avoided.get(keyOf(endpoint)) ?? 0) <= now)
    const equal = reachable.filter(({ endpoint }) => endpoint.isLastResort !== true)
    const lastResorts = reachable.filter((replica) => !equal.includes(replica))
    const rest = replicas.filter((replica) => !reachable.includes(replica))
    const first = equal.length === 0 ? 0 : turn % equal.length
    return [...equal.slice(first), ...equal.slice(0, first), ...lastResorts, ...rest]
  })

  /** The first replica that has the operation. */
  const choose = <X>(
    model: string,
    what: string,
    replicas: ReadonlyArray<Replica>,
    use: (backend: Backend, model: string) => X | undefined
  ): Effect.Effect<{ readonly replica: Replica; readonly work: X }, InferenceInvalidParams> => {
    for (const replica of replicas) {
      const work = use(replica.endpoint.backend, replica.served)
      if (work !== undefined) return Effect.succeed({ replica, work })
    }
    const names = replicas.map(({ endpoint }) => endpoint.name).join(", ")
    return Effect.fail(
      new InferenceInvalidParams({
        model,
        ...(replicas.length === 1 ? { endpoint: names } : {}),
        detail: replicas.length === 1
          ? `This endpoint cannot do ${what}. Use a model that is served by one that can`
          : `None of its endpoints (${names}) can do ${what}. Use a model that is served by one that can`
      })
    )
  }

  /** Forgets what turned out wrong. */
  const learn = Effect.fnUntraced(function*(model: string, { endpoint }: Replica, reason: BackendReason) {
    if (reason._tag === "Unreachable") avoided.set(keyOf(endpoint), (yield* Clock.currentTimeMillis) + avoid)
    // A connection that breaks may have been that of an endpoint that is going.
    const broke = reason._tag === "EngineFailed" && reason.status === undefined && reason.retryable
    if (reason._tag === "Unreachable" || reason._tag === "ModelMissing" || broke) {
      lists.delete(keyOf(endpoint))
      yield* Cache.invalidate(known, model)
    }
  })

  /** Where to go after a connection that did not come about: to another endpoint, or to the same one in another place. */
  const others = (model: string, { endpoint }: Replica) =>
    Effect.map(inTurn(model), (replicas) => replicas.filter((other) => keyOf(other.endpoint) !== keyOf(endpoint))).pipe(
      Effect.orElseSucceed((): ReadonlyArray<Replica> => [])
    )

  return Router.of({
    call: Effect.fnUntraced(function*(model, what, use) {
      const { replica, work } = yield* choose(model, what, yield* inTurn(model), use)
      return yield* Effect.catch(work, (reason) =>
        Effect.gen(function*() {
          yield* learn(model, replica, reason)
          const failure = failureOf(reason, model, replica.endpoint.name)
          if (reason._tag !== "Unreachable") return yield* failure
          const next = yield* Effect.mapError(choose(model, what, yield* others(model, replica), use), () => failure)
          return yield* Effect.catch(next.work, (again) =>
            Effect.andThen(
              learn(model, next.replica, again),
              Effect.fail(failureOf(again, model, next.replica.endpoint.name))
            ))
        }))
    }),
    stream: (model, what, use) =>
      Stream.unwrap(Effect.gen(function*() {
        const { replica, work } = yield* choose(model, what, yield* inTurn(model), use)
        return Stream.catch(work, (reason) =>
          Stream.unwrap(Effect.gen(function*() {
            yield* learn(model, replica, reason)
            const failure = failureOf(reason, model, replica.endpoint.name)
            // It came before the first element, as nothing was sent.
            if (reason._tag !== "Unreachable") return yield* failure
            const next = yield* Effect.mapError(choose(model, what, yield* others(model, replica), use), () => failure)
            return Stream.catch(next.work, (again) =>
              Stream.fromEffect(
                Effect.andThen(
                  learn(model, next.replica, again),
                  Effect.fail(failureOf(again, model, next.replica.endpoint.name))
                )
              ))
          })))
      })),
    served: Effect.gen(function*() {
      const live = yield* Effect.mapError(list, internal)
      const answers = yield* Effect.forEach(
        live,
        (endpoint) =>
          Effect.map(Effect.result(ask(endpoint)), (result): ReadonlyArray<Served> => {
            if (Result.isSuccess(result)) return [{ endpoint, models: declared(endpoint, result.success) }]
            // It is there, and has no list.
            return result.failure._tag === "Refused" ? [{ endpoint, models: declared(endpoint, []) }] : []
          }),
        { concurrency }
      )
      return answers.flat()
    })
  })
})

/**
 * Layer of the router over the endpoints and the register of models.
 *
 * @category layers
 * @since 0.1.0
 */
export const layer = (options: Options = {}): Layer.Layer<Router, never, Endpoints | ModelStore> =>
  Layer.effect(Router, make(options))
