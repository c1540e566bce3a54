/** Units under the transactional policy, whose process dies in the middle of it: what they wrote and what they say of it agree. */
import { assert, describe, it } from "@effect/vitest"
import { Array as Arr, Deferred, Effect, Exit, Fiber, Layer, Queue, Schema, Stream } from "effect"
import { SqlClient } from "effect/sql"
import * as fs from "node:fs"
import * as os from "node:os"
import * as path from "node:path"
import * as Sqlite from "../src/backends/Sqlite.ts"
import * as DomainEvent from "../src/DomainEvent.ts"
import * as EventPublisher from "../src/EventPublisher.ts"
import * as EventStore from "../src/EventStore.ts"
import * as Execution from "../src/Execution.ts"
import * as ExecutionEvent from "../src/ExecutionEvent.ts"
import { instrumentEffect, instrumentStream } from "../src/instrument.ts"
import { layerStore } from "../src/publishers/Store.ts"
import { executionsOf } from "../src/testing/index.ts"
import * as ChildProcess from "./fixtures/childProcess.ts"
import { failed } from "./fixtures/events.ts"
import { newName } from "./fixtures/names.ts"
import { client } from "./fixtures/postgres.ts"
import { schemas, services, type Where } from "./fixtures/transactionalWorld.ts"
import { stress, withServer } from "./servers.ts"

/** Where a process dies: around a unit's own write, around a commit, between the parts of an append to the log, and of pruning. */
const steps = ["before insert", "after insert", "before commit", "after commit", "after event", "after pruned events"]

const allEvents = Effect.fnUntraced(function*(store: EventStore.Store) {
  const events: Array<EventPublisher.Event> = []
  for (let after = 0;;) {
    const page = yield* store.read({ after, limit: 1000 })
    const last = page.at(-1)
    if (last === undefined) return events
    events.push(...page.map(({ event }) => event))
    after = last.offset
  }
})

const modelOf = (value: unknown): string =>
  // Both name it by the same field, by their Schemas.
  (value as { readonly model_id: string }).model_id

/** Opens a database whose process has died, and compares the models with what the log says. Gives the models. */
const inspect = Effect.fnUntraced(function*(known: ReadonlySet<string>) {
  const store = yield* EventStore.EventStore
  const sql = yield* SqlClient.SqlClient
  yield* store.closeAbandoned
  const rows = yield* sql<{ id: string }>`SELECT id FROM effect_units_models ORDER BY id`
  const models = new Set(rows.map(({ id }) => id))
  const events = yield* allEvents(store)

  const told = { completed: new Set<string>(), created: new Set<string>() }
  const lives = new Map<string, { starts: number; ends: Array<string> }>()
  for (const event of events) {
    if (DomainEvent.isDomainEvent(event)) {
      if (event.type === "model.created") told.created.add(modelOf(event.payload))
      continue
    }
    const life = lives.get(event.correlation_id) ?? { starts: 0, ends: [] }
    lives.set(event.correlation_id, life)
    if (event.event_type === "execution_started") life.starts++
    else life.ends.push(event.event_type)
    if (event.event_type === "execution_completed" && event.domain === "model") {
      told.completed.add(modelOf(event.output))
    }
  }
  // A model is there if and only if its completed event is; of those that were there before, events may have been pruned.
  assert.deepStrictEqual([...told.completed].filter((id) => !models.has(id)), [])
  assert.deepStrictEqual([...told.created].filter((id) => !models.has(id)), [])
  assert.deepStrictEqual([...models].filter((id) => !told.completed.has(id) && !known.has(id)), [])
  assert.deepStrictEqual([...models].filter((id) => !told.created.has(id) && !known.has(id)), [])
  // Each execution that began has ended once. Where its start was pruned, its end may be left.
  for (const [id, { ends, starts }] of lives) {
    assert.deepStrictEqual([id, ends.length, starts <= 1], [id, 1, true])
  }
  assert.deepStrictEqual(yield* store.executions({ outcome: "running" }), [])
  // What is told of executions and the log are pruned together.
  const strays = yield* sql`SELECT ended_offset FROM effect_units_executions
    WHERE ended_offset NOT IN (SELECT event_offset FROM effect_units_events)`
  assert.deepStrictEqual(strays, [])
  const failures = events.filter((event) =>
    ExecutionEvent.isExecutionEvent(event) && event.event_type === "execution_failed" &&
    event.failure.kind === "abandoned"
  )
  return { models, abandoned: failures.length, events: events.length }
})

/** Lets worlds crash at a step, as many in one process as their database has room for, and looks at each of them. */
const crash = Effect.fnUntraced(function*(
  where: Where,
  step: string,
  seeds: ReadonlyArray<number>,
  gone: (seeds: ReadonlyArray<number>) => Effect.Effect<void>,
  known: Map<number, ReadonlySet<string>>
) {
  const child = yield* ChildProcess.start("transactionalProcess.ts", JSON.stringify(where), step, ...seeds.map(String))
  const said = (yield* Queue.collect(child.lines)).join()
  const [, stopped, atStep] = /^stopped (\d+), (\d+) at the step$/.exec(said) ?? assert.fail(said)
  assert.strictEqual(Number(stopped), seeds.length)
  yield* gone(seeds)
  const abandoned = yield* Effect.forEach(seeds, (seed) =>
    inspect(known.get(seed) ?? new Set()).pipe(
      Effect.provide(services(where, seed)),
      Effect.map((found) => {
        known.set(seed, found.models)
        return found.abandoned
      })
    ), { concurrency: 4 })
  return { abandoned: sum(abandoned), atStep: Number(atStep) }
})

const sum = (numbers: ReadonlyArray<number>): number => numbers.reduce((total, number) => total + number, 0)

const worlds = 50 * Math.max(1, stress)

const crashEverywhere = Effect.fnUntraced(function*(
  where: Where,
  steps: ReadonlyArray<string>,
  atOnce: number,
  gone: (seeds: ReadonlyArray<number>) => Effect.Effect<void>
) {
  const known = new Map<number, ReadonlySet<string>>()
  const groups = Arr.chunksOf(Array.from({ length: worlds }, (_, seed) => seed), atOnce)
  const crashes = yield* Effect.forEach(
    steps,
    (step) => Effect.forEach(groups, (seeds) => crash(where, step, seeds, gone, known))
  )
  // Where there is nothing to prune a world stops behind that.
  assert.deepStrictEqual(steps.filter((_, index) => sum(crashes[index]!.map(({ atStep }) => atStep)) <= worlds / 2), [])
  // They did die in the middle of something, and had done something before.
  assert.isAbove(sum(crashes.flat().map(({ abandoned }) => abandoned)), worlds)
  assert.isAbove(sum([...known.values()].map(({ size }) => size)), worlds)
})

const title = `a process that dies at any step leaves models and log in agreement, ${worlds} times a step`

class No extends Schema.TaggedError<No>("test/No")("No", {}) {}

/** Units on a database, what they leave in it, and what they say. */
const world = Effect.gen(function*() {
  const sql = yield* SqlClient.SqlClient
  const store = yield* EventStore.EventStore
  yield* sql`CREATE TABLE notes (text TEXT PRIMARY KEY)`
  const write = (text: string) => Effect.orDie(sql`INSERT INTO notes ${sql.insert({ text })}`)
  const notes = Effect.map(
    sql<{ text: string }>`SELECT text FROM notes ORDER BY text`,
    (rows) => rows.map(({ text }) => text)
  )
  /** `unit ending`, by execution in the order of their starts. */
  const told = Effect.gen(function*() {
    const last = yield* store.lastOffset
    const events = (yield* store.read({ limit: 1000 })).map(({ event }) => event).filter(
      ExecutionEvent.isExecutionEvent
    )
    assert.strictEqual(events.length, last)
    return executionsOf(events).map(({ terminal, unit_name }) =>
      `${unit_name} ${
        terminal?.event_type === "execution_failed" ? terminal.failure.kind : terminal?.event_type.slice(10)
      }`
    )
  })
  const unit = <A, E, R>(name: string, effect: Effect.Effect<A, E, R>) =>
    instrumentEffect(effect, { name: `test.${name}` })
  return { sql, store, write, notes, told, unit }
})

/** Runs the cases in which a unit is not the whole of a transaction, or not all of it. */
const joins = <E>(
  layer: Layer.Layer<EventPublisher.EventPublisher | EventStore.EventStore | SqlClient.SqlClient, E>
) => {
  const on = <A, E2>(
    effect: Effect.Effect<A, E2, EventPublisher.EventPublisher | EventStore.EventStore | SqlClient.SqlClient>
  ) => Effect.provide(effect, Layer.fresh(layer))

  it.live("a unit inside of a transaction goes with it, rolled back or committed", () =>
    on(Effect.gen(function*() {
      const { notes, sql, told, unit, write } = yield* world
      const charge = (text: string) => unit("charge", write(text))
      const around = (name: string, fails: boolean) =>
        Effect.exit(sql.withTransaction(Effect.gen(function*() {
          yield* write(`${name}, around`)
          yield* charge(`${name}, inside`)
          if (fails) return yield* new No()
        })))
      assert.deepStrictEqual(yield* around("first", true), Exit.fail(new No()))
      assert.deepStrictEqual([yield* notes, yield* told], [[], []])
      assert.isTrue(Exit.isSuccess(yield* around("second", false)))
      assert.deepStrictEqual([yield* notes, yield* told], [["second, around", "second, inside"], [
        "test.charge completed"
      ]])
    })))

  it.live("a unit that fails inside of a larger transaction takes its own writes back, and no others", () =>
    on(Effect.gen(function*() {
      const { notes, sql, told, unit, write } = yield* world
      const refused = unit("refused", Effect.andThen(write("refused"), new No()))
      yield* sql.withTransaction(Effect.gen(function*() {
        yield* write("before")
        assert.deepStrictEqual(yield* Effect.exit(refused), Exit.fail(new No()))
        yield* write("after")
      }))
      assert.deepStrictEqual([yield* notes, yield* told], [["after", "before"], ["test.refused fail"]])
    })))

  it.live("a unit that fails takes back the units inside of it, which then never were", () =>
    on(Effect.gen(function*() {
      const { notes, told, unit, write } = yield* world
      const inner = (text: string) => unit("inner", write(text))
      const exit = yield* Effect.exit(unit("outer", Effect.andThen(inner("a"), Effect.andThen(inner("b"), new No()))))
      assert.deepStrictEqual(exit, Exit.fail(new No()))
      assert.deepStrictEqual([yield* notes, yield* told], [[], ["test.outer fail"]])
      yield* unit(
        "outer",
        Effect.andThen(Effect.exit(unit("inner", Effect.andThen(write("c"), Effect.die("broken")))), inner("d"))
      )
      assert.deepStrictEqual(
        [yield* notes, yield* told],
        [["d"], ["test.outer fail", "test.outer completed", "test.inner die", "test.inner completed"]]
      )
    })))

  it.live("a unit that is interrupted, or takes too long, has written nothing, and says so once", () =>
    on(Effect.gen(function*() {
      const { notes, told, unit, write } = yield* world
      const begun = yield* Deferred.make<void>()
      const stuck = unit(
        "stuck",
        Effect.andThen(write("stuck"), Effect.andThen(Deferred.succeed(begun, undefined), Effect.never))
      )
      const fiber = yield* Effect.forkChild(stuck)
      yield* Deferred.await(begun)
      yield* Fiber.interrupt(fiber)
      const late = yield* Effect.exit(Effect.timeout(stuck, "50 millis"))
      assert.isTrue(Exit.isFailure(late))
      assert.deepStrictEqual([yield* notes, yield* told], [[], ["test.stuck interrupt", "test.stuck interrupt"]])
      yield* unit("next", write("next"))
      assert.deepStrictEqual(yield* notes, ["next"])
    })))

  it.live("a unit whose execution others have ended in the log takes its writes back", () =>
    on(Effect.gen(function*() {
      const { notes, store, told, unit, write } = yield* world
      yield* store.append([failed("a")])
      const late = Execution.withIdGenerator(unit("late", write("late")), () => "a")
      const error = yield* Effect.flip(EventPublisher.failOnRefusal(late))
      assert.include(error.message, "the log has an end of this execution")
      assert.deepStrictEqual([yield* notes, yield* told], [[], ["test.late fail"]])
    })))

  it.live("a unit that gives a stream has no transaction: what it wrote stays, and one end says how it went", () =>
    on(Effect.gen(function*() {
      const { notes, told, write } = yield* world
      const rows = (fails: boolean) =>
        instrumentStream(
          Stream.make("a", "b").pipe(
            Stream.mapEffect((text) => Effect.as(write(`${text}, ${fails}`), text)),
            Stream.concat(fails ? Stream.fail(new No()) : Stream.empty)
          ),
          { name: "test.rows" }
        )
      assert.deepStrictEqual(yield* Stream.runCollect(rows(false)), ["a", "b"])
      assert.deepStrictEqual(yield* Effect.exit(Stream.runCollect(rows(true))), Exit.fail(new No()))
      assert.deepStrictEqual(
        [yield* notes, yield* told],
        [["a, false", "a, true", "b, false", "b, true"], ["test.rows completed", "test.rows fail"]]
      )
    })))
}

describe("SQLite", () => {
  joins(
    layerStore({ policy: "transactional" }).pipe(
      Layer.provideMerge(EventStore.layer()),
      Layer.provideMerge(Sqlite.layer({ filename: ":memory:" }))
    )
  )

  it.live(title, () =>
    Effect.gen(function*() {
      const directory = yield* Effect.acquireRelease(
        Effect.sync(() => fs.mkdtempSync(path.join(os.tmpdir(), "effect-units-transactional-"))),
        (directory) => Effect.sync(() => fs.rmSync(directory, { recursive: true }))
      )
      yield* crashEverywhere({ directory }, steps, 50, () => Effect.void)
    }), 600_000 * Math.max(1, stress))
})

await withServer("PostgreSQL", "PostgreSQL", (url) => {
  joins(
    layerStore({ policy: "transactional" }).pipe(
      Layer.provideMerge(EventStore.layer()),
      Layer.provideMerge(client(url))
    )
  )

  it.live(title, () =>
    Effect.gen(function*() {
      const { gone, where } = yield* schemas(url, newName("effect_units_crash"), worlds)
      yield* crashEverywhere(where, [...steps, "after staged"], 16, gone)
    }), 600_000 * Math.max(1, stress))
})
