/**
 * Runs the conformance suite of every publisher, with `STRESS=1` in its whole sizes, and prints what came out: each case by each publisher,
 * and how fast they are. `--write` puts it into README.md, where every publisher took part and every case that is due passed. `--read <file>` takes a
 * JSON report of vitest instead of running anything.
 */
import { Layer } from "effect"
import * as childProcess from "node:child_process"
import * as fs from "node:fs"
import * as os from "node:os"
import * as path from "node:path"
import { EventBus, EventPublisher } from "../src/index.ts"
import { conformanceCases, type Figures } from "../src/testing/index.ts"

const root = path.resolve(import.meta.dirname, "..")

/** The part of vitest's JSON report that is read here. */
interface Report {
  readonly testResults: ReadonlyArray<{
    readonly name: string
    readonly status: string
    readonly message: string
    readonly assertionResults: ReadonlyArray<{
      readonly ancestorTitles: ReadonlyArray<string>
      readonly title: string
      readonly status: string
      readonly meta?: { readonly conformance?: Figures }
    }>
  }>
}

const read = (file: string): Report => JSON.parse(fs.readFileSync(file, "utf8"))

const failures: Array<string> = []

const run = (): Report => {
  const directory = fs.mkdtempSync(path.join(os.tmpdir(), "effect-units-conformance-"))
  const file = path.join(directory, "report.json")
  try {
    // One file at a time, so that no publisher is measured beside another.
    const { signal, status } = childProcess.spawnSync(
      process.execPath,
      [
        path.join(root, "node_modules/vitest/vitest.mjs"),
        "run",
        "test/conformance",
        "--no-file-parallelism",
        "--reporter=default",
        "--reporter=json",
        `--outputFile.json=${file}`
      ],
      { cwd: root, stdio: ["ignore", "inherit", "inherit"], env: process.env }
    )
    if (status !== 0) failures.push(`vitest ended with ${signal ?? `status ${status}`}`)
    return read(file)
  } finally {
    fs.rmSync(directory, { recursive: true })
  }
}

interface Outcome {
  status: "passed" | "skipped" | "FAILED"
  reason: string | undefined
}

interface Publisher {
  readonly name: string
  readonly outcomes: Map<string, Outcome>
  readonly figures: Array<Figures>
}

const readArgument = process.argv.indexOf("--read")
const report = readArgument === -1 ? run() : read(process.argv[readArgument + 1] ?? "")

const publishers = new Map<string, Publisher>()
const leftOut = new Set<string>()

for (const file of report.testResults) {
  if (file.status === "failed" && file.assertionResults.length === 0) failures.push(`${file.name}: ${file.message}`)
  for (const { ancestorTitles, meta, status, title } of file.assertionResults) {
    // A suite whose server is missing has its cases all the same, each without a reason of its own.
    const missing = ancestorTitles.find((ancestor) => ancestor.includes(" is left out: "))
    if (missing !== undefined) {
      leftOut.add(missing)
      continue
    }
    const suite = ancestorTitles.find((ancestor) => ancestor.startsWith("conformance of "))
    if (suite === undefined) {
      if (status === "failed") failures.push(`${file.name}: ${title}`)
      continue
    }
    const name = suite.slice("conformance of ".length).replace(/, \d+ of \d+$/, "")
    const publisher: Publisher = publishers.get(name) ?? { name, outcomes: new Map(), figures: [] }
    publishers.set(name, publisher)
    const [, key = title, reason] = /^(.*?)(?: \(skipped: (.*)\))?$/.exec(title) ?? []
    // Of several repetitions the worst one counts.
    if (publisher.outcomes.get(key)?.status !== "FAILED") {
      const outcome = status === "passed" ? "passed" : reason === undefined ? "FAILED" : "skipped"
      publisher.outcomes.set(key, { status: outcome, reason })
      if (outcome === "FAILED") failures.push(`${name}: ${title}`)
    }
    if (meta?.conformance !== undefined) publisher.figures.push(meta.conformance)
  }
}

const cases = conformanceCases({
  name: "",
  layer: () => Layer.provideMerge(EventBus.layerSubscriber(), EventPublisher.layerBus),
  promises: {
    durable: true,
    ordered: "global",
    groups: true,
    replay: true,
    dedup: "forever",
    transactional: true,
    newSubscriberSeesOld: true,
    maxPayloadBytes: Infinity
  }
})

const columns = [...publishers.values()]

const row = (cells: ReadonlyArray<string>): string => `| ${cells.join(" | ")} |`

const median = (publisher: Publisher, figure: keyof Figures): string => {
  const values = publisher.figures.flatMap((figures) => figures[figure] ?? []).sort((a, b) => a - b)
  const value = values[Math.floor(values.length / 2)]
  if (value === undefined) return ""
  return value >= 1000 ? Math.round(value).toLocaleString("en") : String(Number(value.toPrecision(3)))
}

const marks = { passed: "yes", skipped: "-", FAILED: "FAILED" } as const

const matrix = [
  row(["case", "shows", ...columns.map(({ name }) => name), "- where it"]),
  row(["---", "---", ...columns.map(() => ":-:"), "---"]),
  ...cases.map(({ name, number, promise }) => {
    const outcomes = columns.map(({ outcomes }) => outcomes.get(`${number}. ${name}`))
    const reasons = new Set(outcomes.flatMap((outcome) => outcome?.reason ?? []))
    return row([
      `${number}. ${name}`,
      `\`${promise}\``,
      ...outcomes.map((outcome) => outcome === undefined ? "" : marks[outcome.status]),
      [...reasons].join("; ")
    ])
  }),
  ...([
    ["events per second, 16 publishers to 1 subscriber", "events_per_second"],
    ["latency, median, ms", "latency_p50_ms"],
    ["latency, 99 %, ms", "latency_p99_ms"],
    ["deliveries beyond the first, of 14.", "duplicates"]
  ] as const).map(([title, figure]) => row([title, "", ...columns.map((publisher) => median(publisher, figure)), ""]))
].join("\n")

const [cpu] = os.cpus()
const [command, sizes, rated, timed] = Number(process.env["STRESS"] ?? 0) > 0
  ? ["STRESS=1 npm run conformance", "whole", "5,000", "103"]
  : ["npm run conformance", "reduced", "300", "33"]
const text = `${matrix}

By \`${command}\`, in ${sizes} sizes: the rate is that of ${rated} events, the latency that of ${timed}, published one by one. It is the
time from \`publish\` to the handler, and until the transport has acknowledged the event where that takes longer. On ${os.cpus().length} cores of
${cpu?.model.trim()}, Node ${process.version}, servers on the same machine.`

console.log(text)
for (const line of leftOut) console.log(line)
for (const line of failures) console.error(`FAILED ${line}`)
if (failures.length > 0) process.exitCode = 1

if (process.argv.includes("--write")) {
  const file = path.join(root, "README.md")
  const readme = fs.readFileSync(file, "utf8")
  const [start, end] = ["<!-- conformance:start -->", "<!-- conformance:end -->"]
  const from = readme.indexOf(start)
  const to = readme.indexOf(end)
  if (from === -1 || to < from) throw new Error("README.md has no place for the matrix")
  if (failures.length > 0 || leftOut.size > 0) {
    console.error("README.md stays as it is: every publisher has to take part, and every case that is due has to pass")
    process.exitCode = 1
  } else fs.writeFileSync(file, `${readme.slice(0, from + start.length)}\n${text}\n${readme.slice(to)}`)
}
