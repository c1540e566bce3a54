import { afterAll, afterEach, assert, describe, it, vi } from "@effect/vitest"
import { Duration, Effect, Exit, Layer, References } from "effect"
import * as fs from "node:fs"
import * as os from "node:os"
import * as path from "node:path"
import { EventStore } from "../../src/index.ts"
import * as Sqlite from "../../src/publishers/Sqlite.ts"
import {
  type ConformanceCase,
  conformanceCases,
  Nonconformance,
  type Promises,
  publisherSuite
} from "../../src/testing/index.ts"
import { type Break, Broker, type Settings } from "../fixtures/broker.ts"

const maxPayloadBytes = 64 * 1024

const everything = (broker: Broker, settings: Settings): Promises => ({
  durable: true,
  ordered: "global",
  groups: true,
  replay: true,
  dedup: "forever",
  transactional: settings.policy === "transactional",
  newSubscriberSeesOld: true,
  maxPayloadBytes,
  restart: broker.restart
})

const casesOf = (
  settings: Settings,
  promises?: Partial<Promises>,
  options?: { readonly wait?: Duration.Input; readonly stress?: boolean }
) => {
  const broker = new Broker({ maxPayloadBytes, ...settings })
  return conformanceCases({
    name: "broker",
    layer: broker.layer,
    promises: { ...everything(broker, settings), ...promises },
    ...options
  })
}

const quietly = <A, E>(run: Effect.Effect<A, E>) => Effect.provideService(run, References.MinimumLogLevel, "None")

describe("a broker that keeps every promise", () => {
  for (const policy of ["open", "closed", "transactional"] as const) {
    describe(policy, () => {
      for (const { name, number, run, skipped } of casesOf({ policy })) {
        if (skipped === undefined) it.live(`${number}. ${name}`, () => quietly(run))
      }
    })
  }
})

describe("in whole sizes", () => {
  const passing = (cases: ReadonlyArray<ConformanceCase<unknown>>): void => {
    for (const { limit, name, number, run, skipped } of cases) {
      if (skipped === undefined) it.live(`${number}. ${name}`, () => quietly(run), Duration.toMillis(limit) * 2)
    }
  }

  describe("the broker", () => {
    passing(casesOf({ policy: "open" }, undefined, { stress: true }))
  })

  describe("a store on SQLite", () => {
    const directory = fs.mkdtempSync(path.join(os.tmpdir(), "effect-units-conformance-"))
    afterAll(() => fs.rmSync(directory, { recursive: true }))
    passing(conformanceCases({
      name: "SQLite",
      layer: (topic) =>
        Layer.provideMerge(
          EventStore.layerSubscriber(),
          Sqlite.layer({ filename: path.join(directory, `${topic}.db`), policy: "transactional" })
        ),
      promises: {
        durable: true,
        ordered: "global",
        groups: true,
        replay: true,
        dedup: "forever",
        transactional: true,
        newSubscriberSeesOld: true,
        maxPayloadBytes: Infinity
      },
      stress: true
    }))
  })
})

/** What a broker that breaks a promise does, and the case that finds it: its number, the promise that it names, and what it says. */
const broken: ReadonlyArray<
  readonly [breaks: Break, number: number, promise: ConformanceCase<never>["promise"], says: RegExp]
> = [
  ["loses every seventh event", 1, "delivery", /1 of 1 events did not come/],
  ["changes the payload", 1, "delivery", /came as .*something else.* and was published as/],
  ["forgets the attributes", 1, "delivery", /and was published as/],
  ["keeps streams open when it closes", 1, "delivery", /ending a subscription whose transport is closed took longer/],
  ["fails streams when it closes", 1, "delivery", /the subscription failed: instead of ending with its transport/],
  ["takes and loses large events", 1, "maxPayloadBytes", /was taken, and neither came nor was counted as lost/],
  ["loses every seventh event", 2, "delivery", /of 300 events did not come/],
  ["stores what it has again", 2, "dedup", /came 2 times|came [3-9] times/],
  ["forgets ids when it closes", 2, "dedup", /was not expected/],
  ["has one topic for all", 3, "delivery", /was not expected/],
  ["stores everything again a little later", 3, "delivery", /came 2 times/],
  ["swaps neighbours", 4, "ordered", /is due/],
  ["stores everything again a little later", 4, "ordered", /came 2 times/],
  ["never delivers again", 5, "delivery", /18 of 20 events came to be acknowledged/],
  ["always says attempt 1", 5, "delivery", /told as 1, 1, where 1, 2 is right/],
  ["delivers ahead of acknowledgements", 6, "ordered", /4 events came while 0 were acknowledged/],
  ["forgets consumers when it closes", 7, "durable", /came again after it was acknowledged/],
  ["forgets acknowledgements", 7, "durable", /came again after it was acknowledged/],
  ["takes delivery for acknowledgement", 7, "durable", /events came to a consumer that goes on/],
  ["ends all subscriptions with one", 8, "delivery", /the subscription ended before its time/],
  ["forgets what was given back", 9, "durable", /of 50 events did not come/],
  ["gives every member every event", 10, "groups", /went to two members of one group/],
  ["has one group for all names", 10, "groups", /of 50 events did not come/],
  ["loses what is buffered when it closes", 11, "delivery", /of 500 accepted events came/],
  ["drops when it closes and counts that", 11, "delivery", /0 of 500 accepted events came/],
  ["ignores filters", 12, "delivery", /was not expected/],
  ["has one topic for all", 12, "delivery", /came and was not expected|of another topic/],
  ["stores everything again a little later", 12, "delivery", /came 2 times/],
  ["takes delivery for acknowledgement", 13, "delivery", /1 of 10 events did not come/],
  ["loses its storage in a restart", 14, "restart", /events did not come/],
  ["shows new subscribers new events only", 15, "newSubscriberSeesOld", /events did not come/],
  ["ignores positions", 15, "replay", /was not expected/],
  ["ignores times", 15, "replay", /was not expected/],
  ["delivers to all or to none", 16, "delivery", /events did not come/],
  ["keeps streams open when it closes", 16, "delivery", /ending a subscription whose transport is closed took longer/],
  ["fails streams when it closes", 16, "delivery", /the subscription failed: instead of ending with its transport/],
  ["hangs when it closes", 17, "delivery", /closing the Layer.* took longer than 1s/],
  ["waits for handlers when it closes", 17, "delivery", /closing the Layer.* took longer than 1s/],
  ["publishes after it is closed", 17, "delivery", /took an event after its scope was closed/],
  ["tells of what was rolled back", 19, "transactional", /2 completed events of conformance.inner are told/],
  ["commits without the completed event", 19, "transactional", /did not come/]
]

describe.concurrent("a broker that breaks a promise fails at the case that names it", () => {
  for (const [breaks, number, promise, says] of broken) {
    it.live(`${number}, ${promise}: one that ${breaks}`, () =>
      Effect.gen(function*() {
        const policy = number === 19 ? "transactional" : "open"
        const due = casesOf({ policy, breaks }, undefined, { wait: "1 second" }).filter((one) =>
          one.number === number && one.promise === promise && one.skipped === undefined
        )
        const failures = yield* Effect.forEach(due, ({ run }) => Effect.exit(quietly(run)))
        const found = failures.flatMap((exit) => Exit.isFailure(exit) ? [Exit.findErrorOption(exit)] : [])
        const errors = found.flatMap((error) => error._tag === "Some" ? [error.value] : [])
        assert.isAbove(errors.length, 0, "no case failed")
        for (const error of errors) {
          assert.instanceOf(error, Nonconformance)
          assert.deepStrictEqual([error.number, error.promise], [number, promise])
        }
        assert.match(errors.map(({ detail }) => detail).join("\n"), says)
      }), 20_000)
  }

  it.live(
    "4, ordered: one that swaps events of an execution, where only that order is promised",
    () =>
      Effect.gen(function*() {
        const inOrder = (breaks: Break | undefined) =>
          casesOf({ policy: "closed", breaks }, { ordered: "execution" }, { wait: "1 second" })
            .find(({ number }) => number === 4)
        const whole = inOrder(undefined)
        assert.isDefined(whole)
        yield* quietly(whole.run)
        const swapped = inOrder("swaps neighbours of an execution")
        assert.isDefined(swapped)
        const error = yield* Effect.flip(quietly(swapped.run))
        assert.match(error.message, /^Case 4, ordered: of execution .* is due$/)
      }),
    20_000
  )
})

describe("publisherSuite", () => {
  const nothing: Promises = {
    durable: false,
    ordered: "none",
    groups: false,
    replay: false,
    dedup: "none",
    transactional: false,
    newSubscriberSeesOld: false,
    maxPayloadBytes: Infinity
  }

  interface Registered {
    readonly suite: string
    readonly title: string
    readonly concurrent: boolean
    readonly limit: number | undefined
    readonly run: ((context: { readonly task: { readonly meta: object } }) => Promise<void>) | undefined
  }

  /** What the suite registers with a vitest that only takes note. */
  const registered = (promises: Promises): ReadonlyArray<Registered> => {
    const tests: Array<Registered> = []
    let suite = ""
    let concurrent = false
    const describe = (isConcurrent: boolean) => (name: string, body: () => void): void => {
      suite = name
      concurrent = isConcurrent
      body()
    }
    publisherSuite({
      vitest: {
        describe: Object.assign(describe(false), { concurrent: describe(true) }),
        it: Object.assign(
          (title: string, run: Registered["run"], limit: number) =>
            tests.push({ suite, title, concurrent, limit, run }),
          {
            skip: (title: string) => tests.push({ suite, title, concurrent, limit: undefined, run: undefined })
          }
        )
      },
      name: "broker",
      layer: new Broker({ policy: "open" }).layer,
      promises
    })
    return tests
  }

  const skipped = (promises: Promises): ReadonlyArray<string> =>
    registered(promises).filter(({ run }) => run === undefined).map(({ title }) =>
      `${Number.parseInt(title, 10)} ${/\(skipped: (.*)\)$/.exec(title)?.[1]}`
    )

  it("reports what is not promised as skipped, with the reason", () => {
    assert.deepStrictEqual(skipped(nothing), [
      "2 promises no deduplication",
      "4 promises no order",
      "6 promises no order",
      "7 promises no durability",
      "9 promises no durability",
      "10 promises no groups",
      "14 there is no server to restart",
      "15 keeps nothing for new subscribers",
      "15 promises no replay",
      "19 promises no transactions"
    ])
    const all = everything(new Broker({ policy: "open" }), { policy: "transactional" })
    assert.deepStrictEqual(skipped(all), [])
    assert.include(skipped({ ...all, durable: false }), "14 promises no durability")
  })

  it("gives a case six waits and half a minute at least, and the one that restarts the server three times as much", () => {
    const seconds = (wait: Duration.Input | undefined, stress: boolean) => {
      const limits = casesOf({ policy: "open" }, undefined, { ...(wait === undefined ? {} : { wait }), stress })
        .map(({ limit, promise }) => [promise === "restart", Duration.toSeconds(limit)].join(" "))
      return [...new Set(limits)]
    }
    assert.deepStrictEqual(seconds(undefined, false), ["false 30", "true 90"])
    assert.deepStrictEqual(seconds("1 second", false), ["false 30", "true 90"])
    assert.deepStrictEqual(seconds("20 seconds", false), ["false 120", "true 360"])
    assert.deepStrictEqual(seconds(undefined, true), ["false 150", "true 450"])
  })

  it("covers each number from 1 to 17", () => {
    const numbers = new Set(registered(nothing).map(({ title }) => Number.parseInt(title, 10)))
    assert.deepStrictEqual([...numbers], [...Array.from({ length: 17 }, (_, index) => index + 1), 19])
  })

  it.live("leaves what it measured in the task's meta", () =>
    Effect.gen(function*() {
      const figures = yield* Effect.forEach(registered(nothing).slice(0, 4), ({ run }) =>
        Effect.promise(async () => {
          const meta = {}
          await run?.({ task: { meta } })
          return meta
        }))
      assert.deepStrictEqual(
        figures.map((meta) => Object.entries(meta).map(([key, value]) => [key, Object.keys(value ?? {})])),
        [
          [["conformance", ["number", "promise", "latency_p50_ms", "latency_p99_ms"]]],
          [["conformance", ["number", "promise"]]],
          [["conformance", ["number", "promise"]]],
          [["conformance", ["number", "promise", "events_per_second"]]]
        ]
      )
    }))

  describe("under stress", () => {
    afterEach(() => vi.unstubAllEnvs())

    const underStress = (times: string) => {
      vi.stubEnv("STRESS", times)
      return registered(nothing)
    }

    it("repeats itself in parallel, apart from what restarts the server, with limits five times as long", () => {
      const once = registered(nothing)
      const thrice = underStress("3")
      assert.strictEqual(thrice.length, once.length * 3)
      const suites = thrice.map(({ concurrent, suite, title }) =>
        `${suite} ${concurrent} ${title.startsWith("14. ") ? "restarts" : "others"}`
      )
      assert.deepStrictEqual([...new Set(suites)], [
        "conformance of broker, 1 of 3 true others",
        "conformance of broker, 2 of 3 true others",
        "conformance of broker, 3 of 3 true others",
        "conformance of broker, 1 of 3 false restarts",
        "conformance of broker, 2 of 3 false restarts",
        "conformance of broker, 3 of 3 false restarts"
      ])
      assert.strictEqual(thrice[0]?.limit, (once[0]?.limit ?? 0) * 5)
      assert.deepStrictEqual([...new Set(underStress("1").map(({ concurrent, suite }) => `${suite} ${concurrent}`))], [
        "conformance of broker false"
      ])
    })
  })
})
