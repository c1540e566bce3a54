import { assert, it } from "@effect/vitest"
import { Effect } from "effect"
import { TestClock } from "effect/testing"
import * as Progress from "../../src/model/Progress.ts"

const collect = Effect.fnUntraced(function*(promised: number) {
  const reports: Array<Progress.Progress> = []
  const reporter = yield* Progress.make(promised, (report) => Effect.sync(() => void reports.push(report)))
  return { reports, reporter }
})

it.effect("tells at most twice a second what advances, with the speed since the last time", () =>
  Effect.gen(function*() {
    const { reporter, reports } = yield* collect(1000)
    yield* reporter.tell("start")
    for (let done = 10; done <= 120; done += 10) {
      yield* TestClock.adjust("100 millis")
      yield* reporter.advance("a", { done, received: 10 }, "a")
    }
    yield* reporter.finish("end")
    assert.deepStrictEqual(reports, [
      { status: "start", progress: 0, bytes_total: 1000, bytes_done: 0, speed: 0 },
      { status: "a", progress: 5, bytes_total: 1000, bytes_done: 50, speed: 100 },
      { status: "a", progress: 10, bytes_total: 1000, bytes_done: 100, speed: 100 },
      { status: "end", progress: 100, bytes_total: 120, bytes_done: 120, speed: 100 }
    ])
  }))

it.effect("sums parts, with totals that become known on the way and parts that begin anew", () =>
  Effect.gen(function*() {
    const { reporter, reports } = yield* collect(0)
    const step = (key: string, done: number, total: number, received: number) =>
      Effect.andThen(TestClock.adjust("1 second"), reporter.advance(key, { done, total, received }, key))
    yield* step("a", 50, 100, 0)
    yield* step("b", 30, 300, 30)
    yield* step("a", 10, 100, 10)
    assert.deepStrictEqual(reports, [
      { status: "a", progress: 50, bytes_total: 100, bytes_done: 50, speed: 0 },
      { status: "b", progress: 20, bytes_total: 400, bytes_done: 80, speed: 30 },
      { status: "a", progress: 10, bytes_total: 400, bytes_done: 40, speed: 10 }
    ])
  }))

it.effect("has a progress of 0 while nothing is known, and never more than 100", () =>
  Effect.gen(function*() {
    const { reporter, reports } = yield* collect(0)
    yield* reporter.tell("start")
    yield* reporter.advance("a", { done: 70, received: 70 }, "a")
    yield* reporter.tell("on")
    assert.deepStrictEqual(reports.map(({ bytes_total, progress }) => [progress, bytes_total]), [[0, 0], [100, 70]])
  }))
