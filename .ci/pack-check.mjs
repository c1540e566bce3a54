// Packs the library as npm would publish it, and uses the tarball the way a stranger does: in an empty project, on the
// oldest Node that package.json promises.
import assert from "node:assert/strict"
import { spawnSync } from "node:child_process"
import * as fs from "node:fs"
import * as os from "node:os"
import * as path from "node:path"

const root = path.resolve(import.meta.dirname, "..")
const manifest = JSON.parse(fs.readFileSync(path.join(root, "package.json"), "utf8"))
const optionalPeers = Object.keys(manifest.peerDependenciesMeta).filter((name) =>
  manifest.peerDependenciesMeta[name].optional
)

const oldestNode = `${/^>=(\d+\.\d+)$/.exec(manifest.engines.node)[1]}.0`

const step = (text) => console.log(`- ${text}`)

/** Runs a command, shows what it printed when it fails, and returns its standard output. */
const run = (cwd, command, ...args) => {
  const result = spawnSync(command, args, { cwd, encoding: "utf8" })
  if (result.error) throw result.error
  if (result.status !== 0) {
    throw new Error(`${[command, ...args].join(" ")} exited with ${result.status}\n${result.stdout}${result.stderr}`)
  }
  return result.stdout
}
const bin = (name) => path.join(root, "node_modules", ".bin", name)

const filesBelow = (directory) =>
  fs.readdirSync(directory, { recursive: true, withFileTypes: true })
    .filter((entry) => entry.isFile())
    .map((entry) => path.relative(directory, path.join(entry.parentPath, entry.name)).split(path.sep).join("/"))

/** The export map that the sources ask for: the core, folders with an index, single modules, backends, publishers. */
const wantedExports = () => {
  const target = (to) => ({ types: `./dist/${to}.d.ts`, default: `./dist/${to}.js` })
  const has = (file) => fs.existsSync(path.join(root, "src", file))
  const wanted = { ".": target("index"), "./internal/*": null, "./package.json": "./package.json" }
  for (const { name } of fs.readdirSync(path.join(root, "src"), { withFileTypes: true })) {
    if (has(`${name}/index.ts`)) wanted[`./${name}`] = target(`${name}/index`)
  }
  for (const name of ["units", "node"]) if (has(`${name}.ts`)) wanted[`./${name}`] = target(name)
  for (const name of ["backends", "publishers"]) wanted[`./${name}/*`] = target(`${name}/*`)
  wanted["./backends/internal/*"] = null
  return wanted
}

const checkFiles = (installed) => {
  const allowed = [
    /^(package\.json|README\.md|LICENSE|CHANGELOG\.md)$/,
    /^src\/(?!.*\.(test|spec)\.).+\.ts$/,
    /^dist\/(?!.*\.(test|spec)\.).+\.(js|d\.ts)(\.map)?$/
  ]
  const files = filesBelow(installed)
  assert.deepEqual(
    files.filter((file) => !allowed.some((pattern) => pattern.test(file))),
    [],
    "files that do not belong"
  )
  for (const required of ["README.md", "LICENSE", "CHANGELOG.md"]) {
    assert.ok(files.includes(required), `${required} is missing`)
  }

  for (const file of files) {
    const text = fs.readFileSync(path.join(installed, file), "utf8")
    assert.ok(!text.includes(root + path.sep), `${file} names a path of this machine`)
    if (!file.endsWith(".map")) continue
    for (const source of JSON.parse(text).sources) {
      const at = path.posix.join(path.posix.dirname(file), source)
      assert.ok(files.includes(at), `${file} maps to ${source}, which is not in the package`)
    }
  }
  return files
}

/** Every subpath a user can write, such as `./model`, with patterns spelled out. */
const subpaths = () =>
  Object.keys(manifest.exports).flatMap((key) => {
    if (manifest.exports[key] === null || key === "./package.json") return []
    if (!key.endsWith("/*")) return [key]
    return fs.readdirSync(path.join(root, "src", key.slice(0, -1)))
      .filter((file) => file.endsWith(".ts"))
      .map((file) => key.replace("*", path.basename(file, ".ts")))
  })

/** Imports a specifier in a process of its own: the modules which that loaded, or why there is no such module. */
const load = (project, node, specifier) => {
  const program = `
    import { registerHooks } from "node:module"
    const loaded = []
    registerHooks({ load: (url, context, next) => (loaded.push(url), next(url, context)) })
    const missing = await import(${JSON.stringify(specifier)}).then(() => undefined, (error) => {
      if (["ERR_MODULE_NOT_FOUND", "ERR_PACKAGE_PATH_NOT_EXPORTED"].includes(error.code)) return error.message
      throw error
    })
    process.stdout.write(JSON.stringify({ loaded, missing }))`
  return JSON.parse(run(project, node, "--input-type=module", "--eval", program))
}

const directory = fs.mkdtempSync(path.join(os.tmpdir(), "effect-units-pack-"))
try {
  step("package.json exports what src holds")
  assert.deepEqual(manifest.exports, wantedExports())

  step("build and pack")
  run(root, "npm", "run", "build")
  run(root, "npm", "pack", "--ignore-scripts", "--pack-destination", directory)
  const tarball = path.join(directory, `${manifest.name}-${manifest.version}.tgz`)

  step("publint, and are the types wrong")
  run(root, bin("publint"), "run", tarball, "--strict")
  run(root, bin("attw"), tarball, "--profile", "esm-only", "--entrypoints", ...subpaths())

  step(`install into an empty project, with Node ${oldestNode}`)
  const project = path.join(directory, "project")
  fs.mkdirSync(project)
  const empty = { name: "stranger", private: true, type: "module", allowScripts: { node: true } }
  fs.writeFileSync(path.join(project, "package.json"), JSON.stringify(empty))
  const install = (...packages) => run(project, "npm", "install", "--no-audit", "--no-fund", ...packages)
  const pinned = (name) => `${name}@${manifest.devDependencies[name]}`
  install(tarball, pinned("effect"), `node@${oldestNode}`)
  const node = path.join(project, "node_modules", ".bin", "node")
  assert.equal(run(project, node, "--version").trim(), `v${oldestNode}`)

  step("files in the package")
  const files = checkFiles(path.join(project, "node_modules", manifest.name))
  console.log(`  ${files.length} files`)

  const typecheck = (name, types, exactOptionalPropertyTypes = true) => {
    const compilerOptions = {
      target: "ES2023",
      lib: ["ES2024", "ESNext.Disposable", "DOM"],
      types,
      module: "NodeNext",
      strict: true,
      exactOptionalPropertyTypes,
      skipLibCheck: false,
      noEmit: true
    }
    fs.writeFileSync(path.join(project, "tsconfig.json"), JSON.stringify({ compilerOptions, files: [name] }))
    run(project, bin("tsc"), "--project", "tsconfig.json")
  }

  step("run and type-check a stranger's program, without Node's types")
  fs.copyFileSync(path.join(root, ".ci", "stranger.ts"), path.join(project, "stranger.ts"))
  run(project, node, "stranger.ts")
  typecheck("stranger.ts", [])

  step("import every subpath, without any optional peer")
  const specifier = (subpath) => manifest.name + subpath.slice(1)
  const needsPeer = subpaths().filter((subpath) => {
    const result = load(project, node, specifier(subpath))
    const lacksPeer = optionalPeers.some((name) => result.missing?.startsWith(`Cannot find package '${name}'`))
    assert.ok(result.missing === undefined || lacksPeer, `${specifier(subpath)}: ${result.missing}`)
    return lacksPeer
  })
  // The core and the domains come without peers; only what adapts to one may ask for it.
  assert.deepEqual(
    needsPeer.filter((subpath) => !/^\.\/(node$|testing$|publishers\/|backends\/)/.test(subpath)),
    [],
    "these load an optional peer"
  )
  const beyondCore = load(project, node, manifest.name).loaded.filter((url) =>
    /\/effect-units\/dist\/(?!(internal|backends)\/)([^/]+\/|units\.js|node\.js)/.test(url)
  )
  assert.deepEqual(beyondCore, [], "the root loads more than the core")

  step("internal modules stay internal")
  const inner = files.find((file) => /^dist\/internal\/.+\.js$/.test(file))
  assert.ok(inner !== undefined, "no internal module to try")
  for (const file of [inner, inner.slice("dist/".length), inner.slice("dist/".length, -".js".length)]) {
    assert.match(load(project, node, `${manifest.name}/${file}`).missing ?? "", /is not (defined by|exported)/, file)
  }

  step("import and type-check every subpath, with the optional peers")
  // Nothing names node-llama-cpp before it is used, not even a type, and it weighs 900 MB.
  install(pinned("@types/node"), ...optionalPeers.filter((name) => name !== "node-llama-cpp").map(pinned))
  for (const subpath of needsPeer) assert.equal(load(project, node, specifier(subpath)).missing, undefined, subpath)
  const reexport = (name, some) =>
    fs.writeFileSync(
      path.join(project, name),
      some.map((subpath, index) => `export * as part${index} from "${specifier(subpath)}"`).join("\n")
    )
  // The declarations of the NATS client contradict themselves under exactOptionalPropertyTypes, so what needs a client goes without.
  reexport("own.ts", subpaths().filter((subpath) => !/^\.\/publishers\/(Nats|Redis)$/.test(subpath)))
  typecheck("own.ts", ["node"])
  reexport("everything.ts", subpaths())
  typecheck("everything.ts", ["node"], false)
} finally {
  fs.rmSync(directory, { recursive: true, force: true })
}
console.log("The package is sound.")
