import { assert, describe, it } from "@effect/vitest"
import { Cause, Effect, Exit, Fiber, Layer, References, type Scope } from "effect"
import type { EventPublisher } from "../../src/EventPublisher.ts"
import * as Resource from "../../src/resource/index.ts"
import * as Testing from "../../src/testing/index.ts"
import { InvalidInput } from "../../src/UnitError.ts"
import { catalog } from "../../src/units.ts"
import { GiB, layer, setMachine } from "./world.ts"

type Services = Layer.Success<typeof layer> | EventPublisher | Testing.TestEvents

/** A test on a host of its own. */
const test = <E>(name: string, effect: Effect.Effect<void, E, Services | Scope.Scope>) =>
  it.effect(name, () => effect.pipe(Effect.provide(Layer.merge(layer, Testing.layerTest))))

const told = Effect.map(
  Testing.TestEvents.use(({ domainEvents }) => domainEvents),
  (events) => events.map(({ payload, type }) => ({ type, payload }))
)

const slots = Effect.map(Resource.status(), ({ slots }) => slots)

const llama = { name: "llama", type: "inference_native", memory_bytes: GiB } as const

describe("input", () => {
  const slot_id = "slot-00000000"
  const refused: ReadonlyArray<readonly [name: string, input: unknown, ...paths: ReadonlyArray<string>]> = [
    ["allocate", undefined, "name", "type", "memory_bytes"],
    ["allocate", "all", ""],
    ["allocate", { ...llama, name: "" }, "name"],
    ["allocate", { ...llama, type: "gpu" }, "type"],
    ...[0, -1, 1.5, "1", null, 2 ** 53, Number.MAX_VALUE].map((memory_bytes) =>
      ["allocate", { ...llama, memory_bytes }, "memory_bytes"] as const
    ),
    ...[-0.1, 1.1, "1", null].map((gpu_fraction) => ["allocate", { ...llama, gpu_fraction }, "gpu_fraction"] as const),
    ...[-1, 101, 5.5, "5", null].map((priority) => ["allocate", { ...llama, priority }, "priority"] as const),
    ["release", {}, "slot_id"],
    ["release", { slot_id: 7 }, "slot_id"],
    ["update_slot", { status: "idle" }, "slot_id"],
    ["update_slot", { slot_id, memory_limit: 0 }, "memory_limit"],
    ["update_slot", { slot_id, status: "gone" }, "status"],
    ["update_slot", { slot_id, memory_limit: -1, status: "gone" }, "memory_limit", "status"],
    ["allocations", { type: "gpu" }, "type"],
    ["allocations", { slot_id: "" }, "slot_id"],
    ["can_allocate", {}, "memory_bytes"],
    ["can_allocate", { memory_bytes: 0 }, "memory_bytes"],
    ["can_allocate", { memory_bytes: 1, priority: -1 }, "priority"],
    ["status", [], ""],
    ["budget", "all", ""]
  ]
  test(
    "that does not fit is refused, and changes nothing",
    Effect.gen(function*() {
      for (const [name, input, ...paths] of refused) {
        const unit = catalog.units.find((unit) => unit.name === `resource.${name}`)
        assert(unit !== undefined)
        // The units of this domain need nothing but what a host of this domain has.
        const call = unit.execute(input) as Effect.Effect<unknown, unknown, EventPublisher | Resource.ResourceLedger>
        const error = yield* Effect.flip(call)
        assert.instanceOf(error, InvalidInput, `${name} ${JSON.stringify(input)}`)
        assert.deepStrictEqual(error.issues.map(({ path }) => path), paths, `${name} ${JSON.stringify(input)}`)
      }
      assert.deepStrictEqual(yield* slots, [])
    })
  )
})

describe("resource.allocate", () => {
  test(
    "gives a slot of its own to each call, with defaults, and tells of it",
    Effect.gen(function*() {
      const first = yield* Resource.allocate(llama)
      const second = yield* Resource.allocate(llama)
      assert.notStrictEqual(first.slot_id, second.slot_id)
      assert.sameDeepMembers(
        [...yield* slots],
        [first, second].map(({ slot_id: id }) => ({
          id,
          name: "llama",
          type: "inference_native",
          memory_limit: GiB,
          gpu_fraction: 0,
          priority: 5,
          status: "active"
        }))
      )
      assert.deepStrictEqual(
        yield* told,
        [first, second].map(({ slot_id }) => ({
          type: "resource.allocated",
          payload: { slot_id, memory: GiB }
        }))
      )
    })
  )

  test(
    "tells of each slot that it takes away before the one that it gives",
    Effect.gen(function*() {
      const low = yield* Resource.allocate({ ...llama, memory_bytes: 30 * GiB, priority: 1 })
      const lower = yield* Resource.allocate({ ...llama, memory_bytes: 24 * GiB, priority: 0 })
      const events = yield* Testing.TestEvents
      yield* events.clear
      const high = yield* Resource.allocate({ ...llama, memory_bytes: 54 * GiB, priority: 2 })
      const reason = `Made room for ${high.slot_id}, whose priority is 2`
      assert.deepStrictEqual(yield* told, [
        { type: "resource.preemption", payload: { slot_id: lower.slot_id, reason } },
        { type: "resource.preemption", payload: { slot_id: low.slot_id, reason } },
        { type: "resource.allocated", payload: { slot_id: high.slot_id, memory: 54 * GiB } }
      ])
    })
  )

  test(
    "says what is missing, and what to do",
    Effect.gen(function*() {
      const error = yield* Effect.flip(Resource.allocate({ ...llama, memory_bytes: 55 * GiB }))
      assert.instanceOf(error, Resource.ResourceInsufficient)
      assert.deepInclude(error, {
        code: "00400",
        requested: 55 * GiB,
        available: 54 * GiB,
        pool: "inference",
        retryable: false
      })
      assert.match(
        error.message,
        /^The pool inference has 57982058496 bytes left, and 59055800320 are asked for\. Release/
      )
      yield* setMachine({ used: 95 * GiB })
      const pressed = yield* Effect.flip(Resource.allocate(llama))
      assert.deepInclude(pressed, { code: "00403", priority: 5, priority_needed: 80 })
      yield* setMachine({ broken: true })
      const failed = yield* Effect.flip(Resource.allocate(llama))
      assert.instanceOf(failed, Resource.ResourceAllocationFailed)
      assert.match(failed.message, /\/proc\/meminfo has no line/)
      assert.deepStrictEqual(yield* told, [])
    })
  )

  it.effect(
    "interrupted after any number of steps leaves no slot, but for one that events tell of",
    () =>
      Effect.gen(function*() {
        const ends = new Map<string, number>()
        for (let steps = 0, done = 0; done < 3; steps++) {
          const end = yield* Effect.gen(function*() {
            const fiber = yield* Effect.forkChild(Resource.allocate(llama))
            for (let turns = 0; turns < steps; turns++) yield* Effect.yieldNow
            yield* Fiber.interrupt(fiber)
            const exit = yield* Fiber.await(fiber)
            const events = (yield* told).map(({ type }) => type)
            const ids = (yield* slots).map(({ id }) => id)
            const execution = (yield* Testing.TestEvents.use(({ executions }) => executions))
              .find(({ unit_name }) => unit_name === "resource.allocate")
            const terminal = execution?.terminal
            if (terminal?.event_type === "execution_completed") {
              // It had ended by then, and its last event tells the id, even where the caller was interrupted just before it could look.
              assert.deepStrictEqual(events, ["resource.allocated"])
              assert.deepStrictEqual<unknown>(terminal.output, { slot_id: ids[0] })
              return Exit.isSuccess(exit) ? "done" : "completed"
            }
            assert.isTrue(Exit.isFailure(exit) && Cause.hasInterruptsOnly(exit.cause))
            if (events.length === 0) {
              assert.deepStrictEqual(ids, [])
              return "nothing"
            }
            // Between the end of the work and the last event, nobody can give it back any more.
            if (ids.length > 0) {
              assert.deepStrictEqual(events, ["resource.allocated"])
              return "told"
            }
            assert.deepStrictEqual(events, ["resource.allocated", "resource.released"])
            return "released"
          }).pipe(
            Effect.provideService(References.MaxOpsBeforeYield, 3),
            Effect.provide(Layer.fresh(Layer.merge(layer, Testing.layerTest))),
            Effect.scoped
          )
          ends.set(end, (ends.get(end) ?? 0) + 1)
          if (end === "done") done++
        }
        assert.includeMembers([...ends.keys()], ["nothing", "released", "done"])
        assert.isBelow(ends.get("told") ?? 0, ends.get("released") ?? 0)
      }),
    60_000
  )
})

describe("resource.release", () => {
  test(
    "takes a slot of any status away, once, and tells of it",
    Effect.gen(function*() {
      const { slot_id } = yield* Resource.allocate(llama)
      for (const status of ["idle", "preempted"] as const) {
        const other = yield* Resource.allocate(llama)
        yield* Resource.updateSlot({ ...other, status })
        assert.deepStrictEqual(yield* Resource.release(other), { success: true })
      }
      const events = yield* Testing.TestEvents
      yield* events.clear
      assert.deepStrictEqual(yield* Resource.release({ slot_id }), { success: true })
      assert.deepStrictEqual(yield* told, [{ type: "resource.released", payload: { slot_id } }])
      assert.deepStrictEqual(yield* Effect.flip(Resource.release({ slot_id })), new Resource.SlotNotFound({ slot_id }))
      assert.strictEqual((yield* told).length, 1)
      assert.deepStrictEqual(yield* slots, [])
    })
  )
})

describe("resource.update_slot", () => {
  test(
    "refuses a status that does not follow, by its name, and publishes nothing",
    Effect.gen(function*() {
      const { slot_id } = yield* Resource.allocate(llama)
      assert.deepStrictEqual(yield* Resource.updateSlot({ slot_id }), { success: true })
      yield* Resource.updateSlot({ slot_id, status: "preempted" })
      const error = yield* Effect.flip(Resource.updateSlot({ slot_id, status: "idle", memory_limit: 1 }))
      assert.instanceOf(error, InvalidInput)
      assert.deepStrictEqual(error.issues.map(({ path }) => path), ["status"])
      assert.deepInclude((yield* slots)[0], { status: "preempted", memory_limit: GiB })
      assert.strictEqual((yield* told).length, 1)
    })
  )
})
