import { assert, describe, it } from "@effect/vitest"
import type { DomainEvent } from "../../src/DomainEvent.ts"
import type { ExecutionCompleted, ExecutionFailed, ExecutionStarted } from "../../src/ExecutionEvent.ts"
import { executionsOf, violations } from "../../src/testing/lifecycle.ts"

interface Place {
  readonly sequence: number
  readonly parent?: string
  readonly root?: string
}

const common = (id: string, { parent, root, sequence }: Place) => ({
  kind: "command" as const,
  domain: "test",
  unit_name: "test.unit",
  timestamp: "2026-01-02T03:04:05.678Z",
  correlation_id: id,
  ...(parent === undefined ? {} : { parent_id: parent }),
  root_id: root ?? id,
  source: "a",
  sequence
})

const started = (id: string, place: Place): ExecutionStarted => ({
  ...common(id, place),
  event_type: "execution_started",
  id: `${id}:started`
})
const completed = (id: string, place: Place): ExecutionCompleted => ({
  ...common(id, place),
  event_type: "execution_completed",
  id: `${id}:completed`,
  duration_ms: 2,
  duration_ns: 2_500_000
})
const failed = (id: string, place: Place): ExecutionFailed => ({
  ...common(id, place),
  event_type: "execution_failed",
  id: `${id}:failed`,
  duration_ms: 0,
  duration_ns: 0,
  error: "no",
  failure: { kind: "die" }
})
const said = (sequence: number): DomainEvent => ({
  type: "test.said",
  id: "d",
  domain: "test",
  timestamp: "2026-01-02T03:04:05.678Z",
  source: "a",
  sequence,
  payload: null
})

const tree = [
  started("p", { sequence: 1 }),
  started("c", { sequence: 2, parent: "p", root: "p" }),
  failed("c", { sequence: 3, parent: "p", root: "p" }),
  completed("p", { sequence: 4 })
]

describe("violations", () => {
  it("finds none where every rule is kept", () => {
    assert.deepStrictEqual(violations([]), [])
    assert.deepStrictEqual(violations(tree), [])
    // A daemon that outlives its parent, two sources, a parent from elsewhere, a domain event between.
    assert.deepStrictEqual(
      violations([
        started("p", { sequence: 1 }),
        { ...started("x", { sequence: 1, parent: "elsewhere", root: "elsewhere" }), source: "b" },
        said(2),
        started("d", { sequence: 3, parent: "p", root: "p" }),
        completed("p", { sequence: 4 }),
        completed("d", { sequence: 5, parent: "p", root: "p" }),
        { ...failed("x", { sequence: 2, parent: "elsewhere", root: "elsewhere" }), source: "b" }
      ]),
      []
    )
  })

  const one = (...events: Parameters<typeof violations>[0]) => violations(events)
  const place = { sequence: 2 }
  const start = started("e", { sequence: 1 })

  const rules: ReadonlyArray<readonly [string, ReadonlyArray<string>, ReadonlyArray<string>]> = [
    [
      "a number is left out",
      one(start, completed("e", { sequence: 3 })),
      ["test.unit e:completed has number 3 where 2 is due"]
    ],
    [
      "a number comes twice",
      one(start, completed("e", { sequence: 1 })),
      ["test.unit e:completed has number 1 where 2 is due"]
    ],
    [
      "the numbers do not begin with 1",
      one(started("e", { sequence: 2 }), completed("e", { sequence: 3 })),
      ["test.unit e:started has number 2 where 1 is due"]
    ],
    ["a domain event leaves a number out", one(said(2)), ["test.said d has number 2 where 1 is due"]],
    [
      "an id is not derived",
      one(start, { ...completed("e", place), id: "e:failed" }),
      ["test.unit e:failed has an id that is not derived"]
    ],
    [
      "an execution ends before it starts",
      one(completed("e", { sequence: 1 }), started("e", place)),
      ["test.unit e:completed ended before it started"]
    ],
    [
      "an execution ends twice",
      one(start, completed("e", place), failed("e", { sequence: 3 })),
      ["test.unit e:failed ended twice"]
    ],
    [
      "an execution starts twice",
      one(start, started("e", place), completed("e", { sequence: 3 })),
      ["test.unit e:started started twice"]
    ],
    ["an execution never ends", one(start), ["test.unit e:started never ended"]],
    [
      "the end has another unit",
      one(start, { ...completed("e", place), unit_name: "test.other" }),
      ["test.other e:completed has another unit_name than its started event"]
    ],
    [
      "the end has another domain",
      one(start, { ...completed("e", place), domain: "other" }),
      ["test.unit e:completed has another domain than its started event"]
    ],
    [
      "the end has another kind",
      one(start, { ...completed("e", place), kind: "query" }),
      ["test.unit e:completed has another kind than its started event"]
    ],
    [
      "the end has another parent",
      one(start, { ...completed("e", place), parent_id: "p" }),
      ["test.unit e:completed has another parent_id than its started event"]
    ],
    [
      "the end has another root",
      one(start, { ...completed("e", place), root_id: "p" }),
      ["test.unit e:completed has another root_id than its started event"]
    ],
    [
      "the end is before the start",
      one(start, { ...completed("e", place), timestamp: "2026-01-02T03:04:05.677Z" }),
      ["test.unit e:completed has a time before its start"]
    ],
    [
      "a duration is negative",
      one(start, { ...completed("e", place), duration_ns: -1, duration_ms: -1 }),
      ["test.unit e:completed has no whole duration"]
    ],
    [
      "a duration is a fraction",
      one(start, { ...completed("e", place), duration_ns: 0.5, duration_ms: 0 }),
      ["test.unit e:completed has no whole duration"]
    ],
    [
      "the durations differ",
      one(start, { ...completed("e", place), duration_ms: 3 }),
      ["test.unit e:completed has two durations"]
    ],
    [
      "a root has another root",
      one(started("e", { sequence: 1, root: "r" }), completed("e", { sequence: 2, root: "r" })),
      ["test.unit e:started is a root with another root"]
    ],
    [
      "a child has another root than its parent",
      violations(tree.map((event) => event.correlation_id === "c" ? { ...event, root_id: "q" } : event)),
      ["test.unit c:started has another root than its parent"]
    ],
    [
      "a child starts before its parent",
      one(
        started("c", { sequence: 1, parent: "p", root: "p" }),
        started("p", { sequence: 2 }),
        completed("c", { sequence: 3, parent: "p", root: "p" }),
        completed("p", { sequence: 4 })
      ),
      ["test.unit p:started started after a child of it"]
    ]
  ]

  for (const [name, found, expected] of rules) {
    it(`finds that ${name}`, () => assert.deepStrictEqual(found, expected))
  }

  it("lets executions run and numbers be missing where it is told to", () => {
    assert.deepStrictEqual(violations([start], { allowRunning: true }), [])
    assert.deepStrictEqual(violations([start, completed("e", { sequence: 9 })], { ignoreSequence: true }), [])
  })
})

describe("executionsOf", () => {
  it("puts executions together, in the order of their starts", () => {
    const [p, c, end, done] = tree
    const running = started("r", { sequence: 5 })
    const child = { correlation_id: "c", unit_name: "test.unit", started: c, terminal: end, children: [] }
    assert.deepStrictEqual<unknown>(executionsOf([...tree, completed("unseen", { sequence: 6 }), running]), [
      { correlation_id: "p", unit_name: "test.unit", started: p, terminal: done, children: [child] },
      child,
      { correlation_id: "r", unit_name: "test.unit", started: running, terminal: undefined, children: [] }
    ])
  })
})
