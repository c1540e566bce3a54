/**
 * Which processes descend from one that was started here, as Linux shows it: `proc(5)`.
 *
 * A child leads a session and a group of its own, and carries a mark in its environment that its children inherit. A process is of
 * the family where it is in that group or session, and was started while the leader was seen alive: until the last of them has
 * ended, the leader's id is given to nobody else, but afterwards it is. Or where it carries the mark, whatever group it went to.
 * Both are needed: programs overwrite their environment to set their title, and leave their group to become daemons.
 *
 * @since 0.1.0
 */
import * as fs from "node:fs"
import * as ProcessIdentity from "./processIdentity.ts"

/**
 * The variable of the environment that holds the mark.
 *
 * @internal
 */
export const markVariable = "EFFECT_UNITS_PROCESS"

/** @internal */
export interface Family {
  /** Absent where only the mark is known. */
  readonly leader?: { readonly pid: number; readonly identity: string } | undefined
  readonly mark: string
  /** When the leader was last seen alive, in clock ticks since the boot; see `now`. Absent where it never was. */
  readonly seen?: number | undefined
}

/** @internal */
export interface Member {
  readonly pid: number
  readonly group: number
  readonly startTicks: number
}

// Linux tells user space of 100 ticks a second on every architecture that Node runs on (`USER_HZ`).
const ticksPerSecond = 100

/**
 * Clock ticks since the boot; `undefined` on systems that do not tell.
 *
 * @internal
 */
export const now = (): number | undefined => {
  try {
    return Math.floor(Number(fs.readFileSync("/proc/uptime", "utf8").split(" ")[0]) * ticksPerSecond)
  } catch {
    return undefined
  }
}

const carries = (pid: string, mark: string): boolean => {
  try {
    return fs.readFileSync(`/proc/${pid}/environ`, "utf8").split("\0").includes(`${markVariable}=${mark}`)
  } catch {
    // It has ended, or is another user's, and so none that was started here.
    return false
  }
}

const processes = (): ReadonlyArray<string> => {
  try {
    return fs.readdirSync("/proc").filter((name) => /^\d+$/.test(name))
  } catch {
    return []
  }
}

/**
 * The members that run now, the leader included.
 *
 * @internal
 */
export const members = ({ leader, mark, seen }: Family): ReadonlyArray<Member> => {
  const startOfLeader = leader === undefined ? 0 : Number(leader.identity.split(" ").at(-1))
  const found: Array<Member> = []
  for (const pid of processes()) {
    const stat = ProcessIdentity.stat(pid)
    if (stat === undefined || !ProcessIdentity.runs(stat)) continue
    const startTicks = Number(stat.startTicks)
    // Nothing is older than what it descends from.
    if (startTicks < startOfLeader || Number(pid) === process.pid) continue
    const inGroup = leader !== undefined && (stat.group === leader.pid || stat.session === leader.pid)
    if ((inGroup && seen !== undefined && startTicks <= seen) || carries(pid, mark)) {
      found.push({ pid: Number(pid), group: stat.group, startTicks })
    }
  }
  return found
}
