/**
 * Names a process so that another one on the same machine can tell, later, whether it still runs.
 *
 * A process id alone comes back for another process. Linux tells more: the boot, the namespace that the id counts in, and the
 * time at which the process started, in clock ticks since the boot (`proc(5)`, field 22 of `/proc/<pid>/stat`). Elsewhere there
 * is no identity, and whoever asks has to go by a lease.
 *
 * @since 0.1.0
 */
import * as fs from "node:fs"

/**
 * What the system says of a process. `group` and `session` are process ids of their leaders.
 *
 * @internal
 */
export interface Stat {
  readonly state: string
  readonly group: number
  readonly session: number
  readonly startTicks: string
}

/**
 * Looks a process up, `self` included; `undefined` where there is none, or no such file system.
 *
 * @internal
 */
export const stat = (pid: string): Stat | undefined => {
  try {
    const text = fs.readFileSync(`/proc/${pid}/stat`, "utf8")
    // The second field is the name in brackets, which may itself hold spaces and brackets; the third one follows the last.
    const fields = text.slice(text.lastIndexOf(")") + 2).split(" ")
    const [state, , group, session] = fields
    const startTicks = fields[19]
    return state === undefined || startTicks === undefined
      ? undefined
      : { state, group: Number(group), session: Number(session), startTicks }
  } catch {
    return undefined
  }
}

const realm = (): string | undefined => {
  try {
    const boot = fs.readFileSync("/proc/sys/kernel/random/boot_id", "utf8").trim()
    return `${boot} ${fs.readlinkSync("/proc/self/ns/pid")}`
  } catch {
    return undefined
  }
}

/**
 * The identity of this process: boot, namespace, process id and start, separated by spaces. `undefined` where there is none.
 *
 * @internal
 */
export const own = (): string | undefined => {
  const where = realm()
  const self = stat("self")
  return where === undefined || self === undefined ? undefined : `${where} ${process.pid} ${self.startTicks}`
}

/**
 * The identity of another process of this machine. `undefined` where there is no such process, or no identity.
 *
 * @internal
 */
export const of = (pid: number): string | undefined => {
  const where = realm()
  const found = stat(String(pid))
  return where === undefined || found === undefined ? undefined : `${where} ${pid} ${found.startTicks}`
}

/**
 * Whether a process has not ended. A zombie has, and waits for its parent to notice.
 *
 * @internal
 */
export const runs = ({ state }: Stat): boolean => state !== "Z" && state !== "X"

/**
 * Whether the process of an identity still runs; `undefined` where that cannot be known from here: another machine, another
 * container, or the same machine before it was started anew.
 *
 * @internal
 */
export const isAlive = (identity: string): boolean | undefined => {
  const where = realm()
  if (where === undefined || !identity.startsWith(`${where} `)) return undefined
  const [pid = "", startTicks] = identity.slice(where.length + 1).split(" ")
  const found = stat(pid)
  return found !== undefined && found.startTicks === startTicks && runs(found)
}
