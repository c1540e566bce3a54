/**
 * Puts the figures of a run into the README, between its two markers, so that none is typed by hand.
 *
 *     npm run bench -- --json figures.json
 *     node benchmarks/readme.ts figures.json
 *
 * A run of one benchmark will do, `node benchmarks/groups.ts --json figures.json`: the other tables stay.
 */
import { readFileSync, writeFileSync } from "node:fs"
import type { Report, Results } from "./harness.ts"

const readme = new URL("../README.md", import.meta.url)
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

const section = (report: Report): string =>
  [
    `### ${report.title}`,
    table(report.rows),
    ...report.notes,
    ...report.targets.length === 0
      ? []
      : [table(report.targets.map(({ measured, met, target }) => ({ target, measured, "": met ? "met" : "missed" })))]
  ].join("\n\n")

const file = process.argv[2]
if (file === undefined) throw new Error("Name the file that `npm run bench -- --json FILE` wrote")
// The shape is what harness.ts writes.
const { machine, quick, reports } = JSON.parse(readFileSync(file, "utf8")) as Results
if (quick) throw new Error(`${file} holds figures of a --quick run, which measures nothing`)

const text = readFileSync(readme, "utf8")
const from = text.indexOf(start)
const to = text.indexOf(end)
if (from === -1 || to < from) throw new Error(`README.md needs the markers ${start} and ${end}`)
const about = Object.entries(machine).map(([name, value]) => `${name} ${value}`).join(", ")
// A run of one benchmark leaves the figures of the others as they are.
const others = text.slice(from + start.length, to).split(/^(?=### )/m).slice(1).filter((section) =>
  !reports.some(({ title }) => section.startsWith(`### ${title}\n`))
)
const figures = [
  `Measured on: ${about}; \`npm run bench\`.`,
  ...others.map((section) => section.trim()),
  ...reports.map(section)
].join("\n\n")
writeFileSync(readme, `${text.slice(0, from + start.length)}\n\n${figures}\n\n${text.slice(to)}`)
