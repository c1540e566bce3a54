/**
 * The servers that suites talk to, and programs that suites start for themselves.
 *
 * Where a server is missing, its suite is left out with a line that says how to get it; where `CI` is set, it fails instead.
 */
import { describe } from "@effect/vitest"
import { spawnSync } from "node:child_process"
import * as fs from "node:fs"
import * as net from "node:net"
import * as path from "node:path"

interface Known {
  readonly variable: string
  readonly url: string
  readonly program: string
  readonly install: string
}

const known = {
  NATS: {
    variable: "NATS_URL",
    url: "nats://127.0.0.1:4222",
    program: "nats-server",
    install: "apt-get install nats-server && nats-server -js -a 127.0.0.1"
  },
  Redis: {
    variable: "REDIS_URL",
    url: "redis://127.0.0.1:6379",
    program: "redis-server",
    install: "apt-get install redis-server && redis-server --bind 127.0.0.1"
  },
  PostgreSQL: {
    variable: "DATABASE_URL",
    url: "postgres://postgres@127.0.0.1:5432/postgres",
    program: "postgres",
    install: "apt-get install postgresql, and as the user postgres, in /usr/lib/postgresql/*/bin: " +
      "./initdb -A trust -D ~/units && ./pg_ctl -D ~/units start"
  }
} as const satisfies Record<string, Known>

/** The servers that suites can ask for. */
export type Server = keyof typeof known

/** Where a server is: what its variable says, or the standard port of this machine. */
export const urlOf = (server: Server): string => process.env[known[server].variable] || known[server].url

const standardPorts: ReadonlyMap<string, number> = new Map([
  ["nats:", 4222],
  ["redis:", 6379],
  ["rediss:", 6379],
  ["postgres:", 5432],
  ["postgresql:", 5432]
])

/** How often, and how much larger, suites run what takes long: 0 by default, the value of `STRESS` where it is set. */
export const stress = Number(process.env["STRESS"] ?? 0)

/** Whether something takes connections there. */
export const answers = (address: string): Promise<boolean> =>
  new Promise((resolve) => {
    const { hostname, port, protocol } = new URL(address)
    const socket = net.connect({
      host: hostname,
      port: Number(port) || (standardPorts.get(protocol) ?? 0),
      timeout: 2000
    })
    const done = (answer: boolean) => {
      socket.destroy()
      resolve(answer)
    }
    socket.once("connect", () => done(true)).once("error", () => done(false)).once("timeout", () => done(false))
  })

/** Whether this is a run that may leave nothing out. */
const isCI = !["", "0", "false"].includes(process.env["CI"] ?? "")

const suite = (title: string, missing: string | undefined, how: string, define: () => void): void => {
  const line = missing === undefined ? title : `${title} is left out: ${missing}. To run it: ${how}`
  if (missing !== undefined && isCI) throw new Error(line)
  if (missing !== undefined) console.warn(line)
  describe.skipIf(missing !== undefined)(line, () => {
    define()
  })
}

/**
 * A suite that talks to a server.
 *
 *     await withServer("Redis", "publishers/Redis", (url) => { it.effect(...) })
 */
export const withServer = async (server: Server, title: string, define: (url: string) => void): Promise<void> => {
  const { install, variable } = known[server]
  const url = urlOf(server)
  const missing = await answers(url) ? undefined : `no ${server} server answers at ${url}`
  suite(title, missing, `${install}; or set ${variable}`, () => define(url))
}

/** Where Debian keeps the programs of the newest PostgreSQL that is installed; they are on no path. */
export const postgresPrograms = (): string | undefined => {
  const root = "/usr/lib/postgresql"
  const [newest] = fs.existsSync(root) ? fs.readdirSync(root).sort((a, b) => Number(b) - Number(a)) : []
  return newest === undefined ? undefined : path.join(root, newest, "bin")
}

const programs = {
  NATS: known.NATS,
  Redis: known.Redis,
  PostgreSQL: { program: path.join(postgresPrograms() ?? "", "postgres"), install: known.PostgreSQL.install },
  Docker: { program: "dockerd", install: "apt-get install docker.io busybox-static, and run as root" },
  busybox: { program: "busybox", install: "apt-get install busybox-static" },
  openssl: { program: "openssl", install: "apt-get install openssl" }
} as const satisfies Record<string, Pick<Known, "program" | "install">>

const lacking = (server: keyof typeof programs): string | undefined => {
  const { program } = programs[server]
  if (spawnSync(program, ["--version"]).error !== undefined) return `${program} is not installed`
  // An engine mounts file systems.
  return server === "Docker" && process.getuid?.() !== 0 ? "this user is not root" : undefined
}

/** A suite that starts servers of its own, from the installed program. */
export const withProgram = (server: keyof typeof programs, title: string, define: () => void): void => {
  suite(title, lacking(server), programs[server].install, define)
}
