/**
 * Writes the section of README.md that lists the units, from the catalog itself. `--check` only looks, and fails where it is not current.
 */
import * as fs from "node:fs"
import { catalog, streams } from "../src/units.ts"

const needs: Record<string, string> = {
  inference: "endpoints that serve models, which speak the OpenAI protocol or are Ollama, and the register of models",
  model:
    "a SQL database for the register, the file system, and for pulls HTTP access to HuggingFace, ModelScope or an Ollama server",
  device:
    "child processes and the file system; for GPUs NVIDIA's driver with `nvidia-smi`, without which the processor is the one device",
  resource: "a SQL database for the ledger, and `/proc` and the control groups where it runs on Linux"
}

const all = [...catalog.units, ...streams.units]

const code = (text: string): string => `\`${text}\``

const codeOf = (failure: { readonly prototype: { readonly code: string } }): string => failure.prototype.code

const failures = (unit: (typeof all)[number]): string =>
  unit.error.members.map((member) => `${code(member.fields._tag.schema.literal)} ${codeOf(member)}`).filter((failure) =>
    !failure.includes("InvalidInput")
  ).join(", ")

const section = catalog.domains.map((domain) => {
  const units = all.filter((unit) => unit.domain === domain)
  return [
    `### ${domain}`,
    "",
    `\`import * as ${domain.charAt(0).toUpperCase()}${domain.slice(1)} from "effect-units/${domain}"\`. Needs ${
      needs[domain] ?? "nothing"
    }.`,
    "",
    "| unit | kind | what it does | failures besides `InvalidInput` |",
    "| --- | --- | --- | --- |",
    ...units.map((unit) =>
      `| ${code(unit.name)} | ${unit.chunk === undefined ? unit.kind : "stream"} | ${unit.description} | ${
        failures(unit)
      } |`
    )
  ].join("\n")
}).join("\n\n")

const readme = fs.readFileSync("README.md", "utf8")
const [start, end] = ["<!-- domains:start -->", "<!-- domains:end -->"]
const from = readme.indexOf(start)
const to = readme.indexOf(end)
if (from === -1 || to < from) throw new Error("README.md has no place for the list of units")
const current = `${readme.slice(0, from + start.length)}\n${section}\n${readme.slice(to)}`

if (!process.argv.includes("--check")) fs.writeFileSync("README.md", current)
else if (current !== readme) {
  console.error("README.md does not list the units as they are: run `npm run readme`")
  process.exitCode = 1
}
