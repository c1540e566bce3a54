/** Units under the transactional policy, whose process dies in the middle of it: what they wrote and what they say of it agree. */
import { assert, describe, it } from "@effect/vitest"
import { Effect, Queue } from "effect"
import { SqlClient } from "effect/sql"
import * as fs from "node:fs"
import * as os from "node:os"
import * as path from "node:path"
import * as DomainEvent from "../src/DomainEvent.ts"
import type * as EventPublisher from "../src/EventPublisher.ts"
import * as EventStore from "../src/EventStore.ts"
import * as ExecutionEvent from "../src/ExecutionEvent.ts"
import * as ChildProcess from "./fixtures/childProcess.ts"
import { type Dialect, services } from "./fixtures/transactionalWorld.ts"
import { stress } from "./servers.ts"

const steps = [
  "before insert",
  "after insert",
  "before commit",
  "after commit",
  "after event",
  "before event",
  "after pruned events",
  "before prune"
] as const

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

const crash = Effect.fnUntraced(function*(dialect: Dialect, step: string, where: string, seeds: ReadonlyArray<number>) {
  const child = yield* ChildProcess.start("transactionalProcess.ts", dialect, step, where, ...seeds.map(String))
  assert.deepStrictEqual(yield* Queue.collect(child.lines), [`stopped ${seeds.length}`])
})

const worlds = 50 * Math.max(1, stress)

describe("SQLite", () => {
  it.live(
    `a process that dies at any step leaves models and log in agreement, ${worlds} times a step`,
    () =>
      Effect.gen(function*() {
        const directory = yield* Effect.acquireRelease(
          Effect.sync(() => fs.mkdtempSync(path.join(os.tmpdir(), "effect-units-transactional-"))),
          (directory) => Effect.sync(() => fs.rmSync(directory, { recursive: true }))
        )
        const seeds = Array.from({ length: worlds }, (_, seed) => seed)
        const known = new Map<number, ReadonlySet<string>>()
        let abandoned = 0
        for (const step of steps) {
          yield* crash("sqlite", step, directory, seeds)
          for (const seed of seeds) {
            const found = yield* Effect.provide(
              inspect(known.get(seed) ?? new Set()),
              services("sqlite", directory, seed)
            )
            known.set(seed, found.models)
            abandoned += found.abandoned
          }
        }
        // The processes did die in the middle of something.
        assert.isAbove(abandoned, worlds)
        assert.isAbove([...known.values()].reduce((sum, { size }) => sum + size, 0), worlds)
      }),
    300_000
  )
})
