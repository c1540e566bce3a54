/**
 * Writes the section of README.md on the domains: what each needs, an example, and its units, from the catalog itself. Examples are the
 * files in examples/domains, which the compiler checks. `--check` only looks, and fails where it is not current.
 */
import * as fs from "node:fs"
import { catalog, streams } from "../src/units.ts"

const needs: Record<string, string> = {
  inference:
    "endpoints that serve models: engines that run, servers that speak the OpenAI protocol or are Ollama, or this process itself with `node-llama-cpp`; the register of models, and the file system and the web for recordings and images; streams are in the catalog `streams`, beside that of the units",
  model:
    "a SQL database for the register, the file system, and for pulls HTTP access to HuggingFace, ModelScope or an Ollama server",
  device:
    "child processes and the file system; for GPUs NVIDIA's driver with `nvidia-smi`, without which the processor is the one device",
  engine:
    "a SQL database for the register, HTTP to ask engines, the register of models, and child processes with a folder for their output; for containers a Docker Engine of version 19.03 or later, where `DOCKER_HOST` says or at its usual socket, with NVIDIA's container toolkit for GPUs",
  resource: "a SQL database for the ledger, and `/proc` and the control groups where it runs on Linux"
}

const all = [...catalog.units, ...streams.units]

const code = (text: string): string => `\`${text}\``

const codeOf = (failure: { readonly prototype: { readonly code: string } }): string => failure.prototype.code

const failures = (unit: (typeof all)[number]): string =>
  unit.error.members.map((member) => `${code(member.fields._tag.schema.literal)} ${codeOf(member)}`).filter((failure) =>
    !failure.includes("InvalidInput")
  ).join(", ")

const importLine = (domain: string): string =>
  `import * as ${domain.charAt(0).toUpperCase()}${domain.slice(1)} from "effect-units/${domain}"`

/** The domain's example as an application writes it; without one, the line that imports the domain. */
const example = (domain: string): string => {
  const file = `examples/domains/${domain}.ts`
  const source = fs.existsSync(file) ? fs.readFileSync(file, "utf8") : importLine(domain)
  return source.trim()
    .replaceAll(
      /"\.\.\/\.\.\/src\/(?:(.+)\/)?index\.ts"/g,
      (_, subpath?: string) => subpath === undefined ? "\"effect-units\"" : `"effect-units/${subpath}"`
    )
}

const section = catalog.domains.map((domain) => {
  const units = all.filter((unit) => unit.domain === domain)
  return [
    `### ${domain}`,
    "",
    `Needs ${needs[domain] ?? "nothing"}.`,
    "",
    "```ts",
    example(domain),
    "```",
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
