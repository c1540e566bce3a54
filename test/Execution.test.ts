import { assert, describe, it } from "@effect/vitest"
import { Effect, Fiber } from "effect"
import * as Execution from "../src/Execution.ts"
import { instrument } from "../src/instrument.ts"
import { layerTest, TestEvents } from "../src/testing/index.ts"

const look = instrument(() => Execution.current, { name: "a.look", kind: "query" })

describe("Execution", () => {
  it.effect("is the one that surrounds the running code, and none outside", () =>
    Effect.gen(function*() {
      assert.strictEqual(yield* Execution.current, undefined)
      const seen = yield* look()
      const [started] = yield* (yield* TestEvents).events
      assert.isDefined(started)
      assert.deepStrictEqual(
        seen &&
          {
            id: seen.correlation_id,
            root: seen.root_id,
            parent: seen.parent_id,
            unit: seen.unit_name,
            kind: seen.kind,
            domain: seen.domain
          },
        {
          id: started.correlation_id,
          root: started.correlation_id,
          parent: undefined,
          unit: "a.look",
          kind: "query",
          domain: "a"
        }
      )
      assert.strictEqual(yield* Execution.current, undefined)
    }).pipe(Effect.provide(layerTest)))

  it.effect("is inherited by forked fibers", () =>
    Effect.gen(function*() {
      const outer = instrument(
        () => Effect.flatMap(Effect.forkChild(Execution.current), Fiber.join),
        { name: "a.outer" }
      )
      assert.strictEqual((yield* outer())?.unit_name, "a.outer")
    }).pipe(Effect.provide(layerTest)))

  it.effect("carries the attributes around it; inner values win, and what runs keeps its own", () =>
    Effect.gen(function*() {
      const outer = instrument(
        () => Effect.asVoid(look().pipe(Execution.annotate({ user_id: "grace", step: 2 }))),
        { name: "a.outer" }
      )
      yield* outer().pipe(Execution.annotate({ request_id: "r-1", user_id: "ada" }))
      yield* look()
      const events = yield* (yield* TestEvents).events
      assert.deepStrictEqual(events.map((event) => [event.unit_name, event.attributes]), [
        ["a.outer", { request_id: "r-1", user_id: "ada" }],
        ["a.look", { request_id: "r-1", user_id: "grace", step: 2 }],
        ["a.look", { request_id: "r-1", user_id: "grace", step: 2 }],
        ["a.outer", { request_id: "r-1", user_id: "ada" }],
        ["a.look", undefined],
        ["a.look", undefined]
      ])
    }).pipe(Effect.provide(layerTest)))

  it.effect("gets its id from a generator where one is given, in the order of the starts", () =>
    Effect.gen(function*() {
      let made = 0
      yield* Effect.andThen(look(), look()).pipe(Execution.withIdGenerator((millis) => `id-${millis}-${++made}`))
      const events = yield* (yield* TestEvents).events
      assert.deepStrictEqual(events.map((event) => event.id), [
        "id-0-1:started",
        "id-0-1:completed",
        "id-0-2:started",
        "id-0-2:completed"
      ])
    }).pipe(Effect.provide(layerTest)))

  it.effect("goes on under a parent from elsewhere", () =>
    Effect.gen(function*() {
      const parent: Execution.Execution = {
        correlation_id: "there",
        parent_id: "further",
        root_id: "root",
        unit_name: "other.unit",
        domain: "other",
        kind: "command",
        attributes: undefined
      }
      yield* look().pipe(Execution.continueFrom(parent))
      const [started] = yield* (yield* TestEvents).events
      assert.deepStrictEqual([started?.parent_id, started?.root_id], ["there", "root"])
    }).pipe(Effect.provide(layerTest)))
})
