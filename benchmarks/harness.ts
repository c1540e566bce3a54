/**
 * What the benchmarks share: interleaved measurement, tables, targets, and the command line.
 *
 * A machine that is shared runs at half its speed for seconds at a time, so a figure means something only beside another one that
 * was taken at the same moment. All cases of a benchmark therefore take turns, one short sample each, for many rounds; a case's
 * minimum is what it costs when nobody disturbs it, and its median shows how much it was disturbed. A sample is long enough for
 * the garbage of the case to be collected within it, so a case pays for what it allocates.
 *
 * Options of every benchmark: `--quick` for few and short samples, to see that it runs; `--json FILE` to write the figures.
 */
import { Effect } from "effect"
import effectPackage from "effect/package.json" with { type: "json" }
import { writeFileSync } from "node:fs"
import { cpus } from "node:os"
import { parseArgs } from "node:util"
import { setFlagsFromString } from "node:v8"
import { runInNewContext } from "node:vm"

/** One thing to measure. */
export interface Case {
  readonly name: string
  /** The case that does the same work without what is measured here. Default: none, this is such a case itself. */
  readonly baseline?: string
  /** Proves that the case does what its name says. Called right before it is measured. */
  readonly verify: () => unknown
  /** Does it so many times. Where it returns a promise, the sample ends when that resolves. */
  readonly run: (calls: number) => unknown
  /** How many calls a sample has at least. Default 256. */
  readonly leastCalls?: number
}

/** What was measured of a case, per call. */
export interface Measured {
  readonly name: string
  readonly baseline: string | undefined
  readonly minNs: number
  readonly medianNs: number
  /** On the JavaScript heap. */
  readonly bytes: number
  /** What it costs over its baseline: the difference of their minima. */
  readonly overNs: number | undefined
}

/** A limit of the design, and what was measured. */
export interface Target {
  readonly target: string
  readonly measured: string
  readonly met: boolean
}

/** The result of a benchmark, as it is printed and stored. Every row has the same columns. */
export interface Report {
  readonly title: string
  readonly rows: ReadonlyArray<Readonly<Record<string, string | number>>>
  /** What a reader of the rows has to know. */
  readonly notes: ReadonlyArray<string>
  readonly targets: ReadonlyArray<Target>
}

/** What `--json` writes. */
export interface Results {
  readonly machine: Readonly<Record<string, string | number>>
  readonly quick: boolean
  readonly reports: ReadonlyArray<Report>
}

/** An Effect run so many times, one after the other, in one fiber. */
export const repeat = <A, E, R>(
  calls: number,
  body: (index: number) => Effect.Effect<A, E, R>
): Effect.Effect<void, E, R> =>
  Effect.suspend(() => {
    let index = 0
    return Effect.whileLoop({
      while: () => index < calls,
      body: () => body(index),
      step: () => {
        index++
      }
    })
  })

/** A number as the tables show it. */
export const whole = (value: number): string => Math.round(value).toLocaleString("en-US")

export const minimum = (values: ReadonlyArray<number>): number => Math.min(...values)

export const median = (values: ReadonlyArray<number>): number => {
  const sorted = values.toSorted((a, b) => a - b)
  const middle = sorted.length >> 1
  const upper = sorted[middle] ?? Number.NaN
  return sorted.length % 2 === 1 ? upper : ((sorted[middle - 1] ?? Number.NaN) + upper) / 2
}

const finished = async (run: () => unknown): Promise<void> => {
  const result = run()
  // Only what is asynchronous pays for a turn of the microtask queue.
  if (result instanceof Promise) await result
}

/** Nanoseconds that something takes, by the clock on the wall. */
export const time = async (run: () => unknown): Promise<number> => {
  const start = process.hrtime.bigint()
  await finished(run)
  return Number(process.hrtime.bigint() - start)
}

/**
 * Nanoseconds of processor time that one sample takes, in all threads of the process: the collector's are among them, and waiting
 * for a processor that another process has is not. For cases that only compute, it is the time by the clock of an idle machine.
 */
const processorTime = async (run: () => unknown): Promise<number> => {
  const start = process.cpuUsage()
  await finished(run)
  const { system, user } = process.cpuUsage(start)
  return (system + user) * 1000
}

// Node gives `gc` to scripts that are started with --expose-gc, or to a context that is made after the flag was set.
const collector: (options: { readonly type: "minor" | "major" }) => void = (() => {
  setFlagsFromString("--expose-gc")
  const gc: unknown = runInNewContext("gc")
  if (typeof gc !== "function") throw new Error("This Node does not give access to its garbage collector")
  return (options) => gc(options)
})()

/** Of the young generation, which is all that a few hundred calls fill. A full one would also throw compiled code away. */
const collectGarbage = (): void => collector({ type: "minor" })

/** Bytes on the heap that something still holds. */
export const heldBytes = (): number => {
  collector({ type: "major" })
  return process.memoryUsage().heapUsed
}

/**
 * Bytes that a call allocates: how much more the heap grows over twice as many calls, so that what a sample costs once drops out.
 * The calls are few enough to stay below what makes the collector run, right after it ran. Where it runs nonetheless, the growth
 * is too small; the median passes over that.
 */
const allocated = async (run: Case["run"], samples: number): Promise<number> => {
  const calls = 256
  const growthOver = async (count: number): Promise<number> => {
    collectGarbage()
    const before = process.memoryUsage().heapUsed
    await finished(() => run(count))
    return process.memoryUsage().heapUsed - before
  }
  const growth: Array<number> = []
  for (let sample = 0; sample < samples; sample++) {
    growth.push((await growthOver(2 * calls) - await growthOver(calls)) / calls)
  }
  return median(growth)
}

/** Calls that take about so many nanoseconds, found by doubling, which also gives the compiler something to compile. */
const calibrate = async ({ leastCalls = 256, run }: Case, sampleNs: number): Promise<number> => {
  let calls = leastCalls
  while (true) {
    const taken = await processorTime(() => run(calls))
    if (taken >= sampleNs / 2) return Math.max(leastCalls, Math.round(calls * sampleNs / taken))
    calls *= 2
  }
}

/** Measures all cases in turns. */
export const measure = async (cases: ReadonlyArray<Case>, quick: boolean): Promise<ReadonlyArray<Measured>> => {
  const sampleNs = quick ? 1e6 : 20e6
  const rounds = quick ? 5 : 60
  const warmUp = quick ? 1 : 5
  const states: Array<{ readonly case: Case; calls: number; readonly ns: Array<number> }> = []
  for (const each of cases) {
    await each.verify()
    states.push({ case: each, calls: await calibrate(each, sampleNs), ns: [] })
  }
  // The first calibration ran code that was not compiled yet, beside less other code than there is now.
  for (const state of states) state.calls = await calibrate(state.case, sampleNs)
  for (let round = -warmUp; round < rounds; round++) {
    for (let turn = 0; turn < states.length; turn++) {
      // Each round begins with another case, so that none always follows the same one. In bounds by the remainder.
      const state = states[(turn + round + warmUp) % states.length]!
      const taken = await processorTime(() => state.case.run(state.calls))
      if (round >= 0) state.ns.push(taken / state.calls)
    }
  }
  const measured = new Map<string, Measured>()
  for (const { case: { baseline, name, run }, ns } of states) {
    const minNs = minimum(ns)
    const base = baseline === undefined ? undefined : measured.get(baseline)
    if (baseline !== undefined && base === undefined) throw new Error(`${name} comes before its baseline ${baseline}`)
    measured.set(name, {
      name,
      baseline,
      minNs,
      medianNs: median(ns),
      bytes: await allocated(run, quick ? 1 : 9),
      overNs: base === undefined ? undefined : minNs - base.minNs
    })
  }
  return Array.from(measured.values())
}

const machine = (): Results["machine"] => {
  const cores = cpus()
  return {
    cpu: cores[0]?.model.trim() ?? "unknown",
    cores: cores.length,
    node: process.version,
    effect: effectPackage.version
  }
}

const printTable = (rows: Report["rows"]): void => {
  const columns = Object.keys(rows[0] ?? {})
  const cells = [columns, ...rows.map((row) => columns.map((column) => String(row[column] ?? "")))]
  const widths = columns.map((_, index) => Math.max(...cells.map((line) => line[index]?.length ?? 0)))
  for (const line of cells) {
    console.log(
      line.map((cell, index) => {
        const width = widths[index] ?? 0
        // Names to the left, figures to the right.
        return /^[-+×]?[\d.,]+$/.test(cell) ? cell.padStart(width) : cell.padEnd(width)
      }).join("  ").trimEnd()
    )
  }
}

const print = (report: Report): void => {
  console.log(`\n${report.title}\n`)
  printTable(report.rows)
  for (const note of report.notes) console.log(`\n${note}`)
  if (report.targets.length > 0) {
    console.log("")
    printTable(report.targets.map(({ measured, met, target }) => ({ target, measured, "": met ? "met" : "MISSED" })))
  }
}

/** Runs benchmarks as the command line says, prints what they report, and writes it where `--json` says. */
export const main = async (benchmarks: ReadonlyArray<(quick: boolean) => Promise<Report>>): Promise<void> => {
  const { values: { json, quick } } = parseArgs({
    options: { json: { type: "string" }, quick: { type: "boolean", default: false } }
  })
  const about = machine()
  console.log(Object.entries(about).map(([name, value]) => `${name}: ${value}`).join(", "))
  if (quick) console.log("A quick run shows that everything runs; its figures mean nothing.")
  const reports: Array<Report> = []
  for (const benchmark of benchmarks) {
    const report = await benchmark(quick)
    print(report)
    reports.push(report)
  }
  if (json !== undefined) {
    const results: Results = { machine: about, quick, reports }
    writeFileSync(json, `${JSON.stringify(results, undefined, 2)}\n`)
  }
}
