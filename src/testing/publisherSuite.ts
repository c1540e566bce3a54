/**
 * The conformance suite: what a publisher and its subscriber promise, as cases that run against them.
 *
 * @since 0.1.0
 */
import * as Clock from "effect/Clock"
import * as Config from "effect/Config"
import * as ConfigProvider from "effect/ConfigProvider"
import * as Duration from "effect/Duration"
import * as Effect from "effect/Effect"
import type * as Layer from "effect/Layer"
import * as References from "effect/References"
import type { EventPublisher } from "../EventPublisher.ts"
import type { EventSubscriber } from "../EventSubscriber.ts"
import { definitions } from "./internal/cases.ts"
import { limitOf, make } from "./internal/kit.ts"
import type { Nonconformance } from "./Nonconformance.ts"

/**
 * What a transport promises beyond delivery to those who are subscribed. Each promise makes cases due; without it they are skipped, and
 * say so.
 *
 * **Details**
 *
 * Delivery is at least once. All the same an event that is published once, and neither given back nor left unacknowledged, has to come once:
 * the suite lets nothing go wrong on its way, but in the case that restarts the server, and there it counts duplicates.
 *
 * @category models
 * @since 0.1.0
 */
export interface Promises {
  /** Named consumers go on where they stopped, also when the Layer was closed and built again in between. */
  readonly durable: boolean
  /**
   * `global`: a subscriber sees all events in the order of publishing. `execution`: those of one execution. `none`: in any.
   */
  readonly ordered: "global" | "execution" | "none"
  /** Subscribers that share a consumer's name share its events: each goes to one of them. */
  readonly groups: boolean
  /** A subscription can begin after a position and after a time. */
  readonly replay: boolean
  /**
   * Whether an event that is published again under its id arrives once: `window` for some seconds, `forever` also when the Layer was
   * closed and built again in between.
   */
  readonly dedup: "none" | "window" | "forever"
  /** The Layer's policy is `transactional`: events of a unit commit with it or not at all. */
  readonly transactional: boolean
  /** A subscription can begin with what was published before there was any. */
  readonly newSubscriberSeesOld: boolean
  /** Size of the largest event that is taken, as JSON, in bytes; `Infinity` where there is no limit. */
  readonly maxPayloadBytes: number
  /**
   * Kills the server and starts it again on its storage; succeeds when it can be reached. Only makes a case due where `durable` is promised,
   * too.
   */
  readonly restart?: Effect.Effect<unknown, unknown> | undefined
}

/**
 * What the suite is run on.
 *
 * @category models
 * @since 0.1.0
 */
export interface ConformanceOptions<out E> {
  /** Names the publisher in the titles of the tests. */
  readonly name: string
  /**
   * The Layer on the storage that belongs to a topic: a file, a stream, a subject, a schema.
   *
   * **Details**
   *
   * Two builds with the same topic share their storage, one after the other and at one time; two with different topics share nothing.
   * Cases build it several times. Topics are made of small letters, digits and `_`, at most 40 of them, and never come twice. A transport
   * that only writes is given a subscriber that reads where it arrives; `EventSubscriber.fromStream` makes one.
   */
  readonly layer: (topic: string) => Layer.Layer<EventPublisher | EventSubscriber, E>
  readonly promises: Promises
  /** Removes the storage of a topic, when every build on it is closed. What goes wrong is logged. */
  readonly cleanup?: ((topic: string) => Effect.Effect<unknown, unknown>) | undefined
  /**
   * How long an event, or the end of something, may take to come. Default 5 seconds. A whole case may take six times that, and 30 seconds at
   * least; the one that restarts the server three times as long.
   */
  readonly wait?: Duration.Input | undefined
  /** Whole sizes, and time limits five times as long. Default `false`. `publisherSuite` sets it by the environment. */
  readonly stress?: boolean | undefined
}

/**
 * What a case measured, where it measures.
 *
 * @category models
 * @since 0.1.0
 */
export interface Figures {
  /** From 16 publishers at once to one subscriber that acknowledges each. */
  readonly events_per_second?: number
  /** From `publish` to the handler, or to the end of `publish` where that is later, one event at a time, in milliseconds. */
  readonly latency_p50_ms?: number
  readonly latency_p99_ms?: number
  /** Deliveries beyond the first of an event, in all. */
  readonly duplicates?: number
}

/**
 * A case of the suite, ready to run.
 *
 * @category models
 * @since 0.1.0
 */
export interface ConformanceCase<out E> {
  /** Several cases can share a number. */
  readonly number: number
  readonly name: string
  /** The promise that it shows, or `delivery`, which every transport owes. */
  readonly promise: keyof Promises | "delivery"
  /** Why it is not due, where it is not. */
  readonly skipped: string | undefined
  /** How long it may take: it fails then. */
  readonly limit: Duration.Duration
  /** Fails with a `Nonconformance` that says what happened, or with the Layer's own failure. Succeeds with what it measured. */
  readonly run: Effect.Effect<Figures, E | Nonconformance>
}

/**
 * The cases of the suite for a publisher, to be run one by one.
 *
 * **Example** (Seeing one case)
 *
 * ```ts
 * const inOrder = conformanceCases(options).find(({ promise }) => promise === "ordered")
 * ```
 *
 * @category conformance
 * @since 0.1.0
 */
export const conformanceCases = <E>(options: ConformanceOptions<E>): ReadonlyArray<ConformanceCase<E>> => {
  const stress = options.stress === true
  const wait = Duration.fromInputUnsafe(options.wait ?? "5 seconds")
  return definitions.map(({ name, number, patience = 1, promise, run, skipped }) => {
    const limit = Duration.times(limitOf(wait, stress), patience)
    return {
      number,
      name,
      promise,
      skipped: skipped(options.promises),
      limit,
      run: Clock.clockWith((clock) => {
        const kit = make({
          number,
          promise,
          layer: options.layer,
          cleanup: options.cleanup ?? (() => Effect.void),
          wait,
          stress,
          clock
        })
        return kit.within(Effect.scoped(run(kit, options.promises)), "the whole case", limit)
      })
    }
  })
}

/**
 * What the suite needs of vitest; `import * as vitest from "vitest"` has it.
 *
 * @category models
 * @since 0.1.0
 */
export interface Vitest {
  readonly describe: Describe & { readonly concurrent: Describe }
  readonly it:
    & ((name: string, test: (context: TestContext) => Promise<void>, timeout: number) => unknown)
    & { readonly skip: (name: string, test: () => void) => unknown }
}

type Describe = (name: string, body: () => void) => unknown

interface TestContext {
  readonly task: { readonly meta: object }
}

const repetitions = (): number =>
  Effect.runSync(Effect.provideService(
    Config.Int("STRESS").pipe(Config.withDefault(0)),
    ConfigProvider.ConfigProvider,
    // The environment as it is now; the default provider keeps it as it was when it was first asked.
    ConfigProvider.fromEnv()
  ))

/**
 * Registers the suite with vitest: one test a case, those that are not due as skipped, with the reason in the title.
 *
 * **Details**
 *
 * The environment variable `STRESS=n` makes the sizes whole and the time limits five times as long, and repeats the suite n times: all cases
 * at one time, as far as vitest's `maxConcurrency` goes, and those that restart the server one by one after them. What a case measures is in
 * `task.meta.conformance`.
 *
 * **Gotchas**
 *
 * It runs in real time. Where `promises.restart` is given, the server is killed twice: give it one of its own, that nothing else uses, and
 * where suites share it, let them run one after the other, in one file.
 *
 * **Example** (Running it on a publisher)
 *
 * ```ts
 * import * as vitest from "vitest"
 *
 * publisherSuite({
 *   vitest,
 *   name: "bus",
 *   layer: () => Layer.provideMerge(EventBus.layerSubscriber(), EventPublisher.layerBus),
 *   promises: {
 *     durable: false,
 *     ordered: "global",
 *     groups: false,
 *     replay: false,
 *     dedup: "none",
 *     transactional: false,
 *     newSubscriberSeesOld: false,
 *     maxPayloadBytes: Infinity
 *   }
 * })
 * ```
 *
 * @category conformance
 * @since 0.1.0
 */
export const publisherSuite = <E>(
  options: Omit<ConformanceOptions<E>, "stress"> & { readonly vitest: Vitest }
): void => {
  const { describe, it } = options.vitest
  const times = repetitions()
  const all = conformanceCases({ ...options, stress: times > 0 })
  const register = (cases: typeof all) => (): void => {
    for (const { limit, name, number, promise, run, skipped } of cases) {
      const title = `${number}. ${name}`
      if (skipped !== undefined) {
        it.skip(`${title} (skipped: ${skipped})`, () => {})
        continue
      }
      it(title, async ({ task }) => {
        const figures = await Effect.runPromise(run.pipe(
          // Cases provoke warnings; what goes wrong is in their failures.
          Effect.provideService(References.MinimumLogLevel, "Error")
        ))
        Object.assign(task.meta, { conformance: { number, promise, ...figures } })
        // A case ends by itself, and says what it waited for; this is for an event loop that stands still.
      }, Duration.toMillis(limit) * 2)
    }
  }
  const name = `conformance of ${options.name}`
  if (times <= 1) return void describe(name, register(all))
  const restarts = all.filter(({ promise }) => promise === "restart")
  const others = all.filter(({ promise }) => promise !== "restart")
  const titles = Array.from({ length: times }, (_, index) => `${name}, ${index + 1} of ${times}`)
  for (const title of titles) describe.concurrent(title, register(others))
  // One at a time, as each takes the server away from all others.
  for (const title of titles) describe(title, register(restarts))
}
