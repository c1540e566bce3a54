/**
 * Keeps the figures of a run, so that none is typed by hand: in `figures.json`, whole in `FIGURES.md`, and beside their targets in the
 * README, between its two markers.
 *
 *     npm run bench -- --json /tmp/figures.json
 *     node benchmarks/readme.ts /tmp/figures.json
 *
 * A run of one benchmark will do, `node benchmarks/groups.ts --json /tmp/figures.json`: the figures of the others stay.
 */
import { existsSync, readFileSync, writeFileSync } from "node:fs"
import type { Report, Results } from "./harness.ts"

/** A report, and the machine that it was measured on. */
interface Kept extends Report {
  readonly machine: string
}

const here = (name: string): URL => new URL(name, import.meta.url)
const start = "<!-- bench:start -->"
const end = "<!-- bench:end -->"

const table = (rows: Report["rows"]): string => {
  const columns = Object.keys(rows[0] ?? {})
  const line = (cells: ReadonlyArray<string | number>): string => `| ${cells.join(" | ")} |`
  return [
    line(columns),
    line(columns.map((_, index) => index === 0 ? "---" : "---:")),
    ...rows.map((row) => line(columns.map((column) => row[column] ?? "")))
  ].join("\n")
}

const targets = (report: Report): ReadonlyArray<string> =>
  report.targets.length === 0
    ? []
    : [table(report.targets.map(({ measured, met, target }) => ({ target, measured, "": met ? "met" : "missed" })))]

const file = process.argv[2]
if (file === undefined) throw new Error("Name the file that `npm run bench -- --json FILE` wrote")
// The shape is what harness.ts writes.
const { machine, quick, reports } = JSON.parse(readFileSync(file, "utf8")) as Results
if (quick) throw new Error(`${file} holds figures of a --quick run, which measures nothing`)

// The shape is what is written below.
const before = existsSync(here("figures.json"))
  ? JSON.parse(readFileSync(here("figures.json"), "utf8")) as ReadonlyArray<Kept>
  : []
const about = Object.entries(machine).map(([name, value]) => `${name} ${value}`).join(", ")
const added = reports.map((report): Kept => ({ ...report, machine: about }))
const kept = [
  ...before.map((old) => added.find(({ title }) => title === old.title) ?? old),
  ...added.filter(({ title }) => !before.some((old) => old.title === title))
]
writeFileSync(here("figures.json"), `${JSON.stringify(kept, null, 2)}\n`)

const sections = kept.map((report) =>
  [
    `## ${report.title}`,
    `Measured on: ${report.machine}.`,
    table(report.rows),
    ...report.notes,
    ...targets(report)
  ].join("\n\n")
)
writeFileSync(
  here("FIGURES.md"),
  `# Figures\n\nWhat \`npm run bench\` measured; \`benchmarks/readme.ts\` wrote this page.\n\n${
    sections.join("\n\n")
  }\n`
)

const readme = here("../README.md")
const text = readFileSync(readme, "utf8")
const from = text.indexOf(start)
const to = text.indexOf(end)
if (from === -1 || to < from) throw new Error(`README.md needs the markers ${start} and ${end}`)
const machines = Array.from(new Set(kept.map((report) => report.machine))).join("; ")
const summary = [
  `Measured by \`npm run bench\` on: ${machines}. The whole tables are in [benchmarks/FIGURES.md](benchmarks/FIGURES.md).`,
  ...kept.flatMap((report) => report.targets.length === 0 ? [] : [`**${report.title}**`, ...targets(report)])
].join("\n\n")
writeFileSync(readme, `${text.slice(0, from + start.length)}\n\n${summary}\n\n${text.slice(to)}`)
