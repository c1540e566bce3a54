/**
 * TCP ports of this host for what a program starts: engines, containers, tunnels.
 *
 * A port is given out once it has been proven free, by listening on it at the address that it will be used on. From then on nobody
 * else who asks here gets it, until the scope that holds it closes. Whoever asks in another program on the same machine does not get
 * it either, on Linux: the reservation is a socket in the kernel's abstract namespace, which goes with its process, however that ends.
 *
 * **Gotchas**
 *
 * A program that does not ask here can take the port between the proof and its use. Whoever uses it has to expect that, and `prove`
 * tells who it was.
 *
 * @since 0.1.0
 */
import * as Context from "effect/Context"
import * as Effect from "effect/Effect"
import * as Random from "effect/Random"
import * as Result from "effect/Result"
import * as Schema from "effect/Schema"
import type * as Scope from "effect/Scope"
import * as fs from "node:fs/promises"
import * as net from "node:net"

const Port = Schema.Int.check(Schema.isBetween({ minimum: 1, maximum: 65535 }))
const isPort = Schema.is(Port)

/**
 * A process that listens on a port: its id, and the name of its program.
 *
 * @category models
 * @since 0.1.0
 */
export const Holder = Schema.Struct({ pid: Schema.Int, name: Schema.String })

/**
 * @category models
 * @since 0.1.0
 */
export type Holder = typeof Holder.Type

const nameOf = (holder: Holder | undefined): string =>
  holder === undefined ? "a process that this user cannot see" : `${holder.name} (process ${holder.pid})`

/**
 * Something listens on the port already. `holder` is who, where the system tells; a container's port can be held by Docker's proxy.
 * A retry helps once that has ended.
 *
 * @category errors
 * @since 0.1.0
 */
export class Taken extends Schema.TaggedError<Taken>("effect-units/backends/Ports/Taken")("Taken", {
  host: Schema.String,
  port: Port,
  holder: Schema.UndefinedOr(Holder)
}) {
  readonly retryable = true
  override get message(): string {
    return `port ${this.port} of ${this.host} is held by ${nameOf(this.holder)}. Stop that, or choose another port`
  }
}

/**
 * The port has been given to someone else, in this program or in another one on this machine. `purpose` is what for, where it was
 * this program. A retry helps once it has been released.
 *
 * @category errors
 * @since 0.1.0
 */
export class Reserved extends Schema.TaggedError<Reserved>("effect-units/backends/Ports/Reserved")("Reserved", {
  port: Port,
  purpose: Schema.UndefinedOr(Schema.String),
  holder: Schema.UndefinedOr(Holder)
}) {
  readonly retryable = true
  override get message(): string {
    return `port ${this.port} is reserved for ${this.purpose ?? nameOf(this.holder)}. Stop that, or choose another port`
  }
}

/**
 * The system does not let this user listen on the port; below 1024 that is usual. A retry does not help.
 *
 * @category errors
 * @since 0.1.0
 */
export class NotPermitted extends Schema.TaggedError<NotPermitted>("effect-units/backends/Ports/NotPermitted")(
  "NotPermitted",
  { host: Schema.String, port: Port }
) {
  readonly retryable = false
  override get message(): string {
    return `this user may not listen on port ${this.port} of ${this.host}. Choose a port above 1023, or give it the right to`
  }
}

/**
 * The host is no address of this machine. A retry does not help.
 *
 * @category errors
 * @since 0.1.0
 */
export class NoSuchAddress extends Schema.TaggedError<NoSuchAddress>("effect-units/backends/Ports/NoSuchAddress")(
  "NoSuchAddress",
  { host: Schema.String }
) {
  readonly retryable = false
  override get message(): string {
    return `${this.host} is no address of this machine. Use one of its own, such as 127.0.0.1`
  }
}

/**
 * Every port of the range is taken or reserved. A retry helps once one of them is released.
 *
 * @category errors
 * @since 0.1.0
 */
export class Exhausted extends Schema.TaggedError<Exhausted>("effect-units/backends/Ports/Exhausted")("Exhausted", {
  host: Schema.String,
  from: Port,
  to: Port
}) {
  readonly retryable = true
  override get message(): string {
    return `all ports from ${this.from} to ${this.to} of ${this.host} are in use. Stop something, or widen the range`
  }
}

/**
 * The system refuses to listen for another reason; `code` is its own name for that, such as `EMFILE`. A retry may help.
 *
 * @category errors
 * @since 0.1.0
 */
export class Unusable extends Schema.TaggedError<Unusable>("effect-units/backends/Ports/Unusable")("Unusable", {
  host: Schema.String,
  port: Port,
  code: Schema.String
}) {
  readonly retryable = true
  override get message(): string {
    return `port ${this.port} of ${this.host} cannot be listened on (${this.code}). Try again, or look what ${this.code} stands for`
  }
}

/**
 * A number that is no port. A retry does not help.
 *
 * @category errors
 * @since 0.1.0
 */
export class InvalidPort extends Schema.TaggedError<InvalidPort>("effect-units/backends/Ports/InvalidPort")(
  "InvalidPort",
  { port: Schema.Number }
) {
  readonly retryable = false
  override get message(): string {
    return `${this.port} is no port. Choose a whole number from 1 to 65535`
  }
}

/**
 * A port could not be had. `reason` says why and what to do; `retryable` is true where waiting can help.
 *
 * @category errors
 * @since 0.1.0
 */
export class PortError extends Schema.TaggedError<PortError>("effect-units/backends/Ports/PortError")("PortError", {
  reason: Schema.Union([Taken, Reserved, NotPermitted, NoSuchAddress, Exhausted, Unusable, InvalidPort])
}) {
  override readonly cause = this.reason
  override get message(): string {
    return this.reason.message
  }
  get retryable(): boolean {
    return this.reason.retryable
  }
}

/**
 * The ports that are given to whoever does not ask for a certain one, both ends included. Default: 20000 to 29999.
 *
 * **Details**
 *
 * The default lies below the ports that systems give to outgoing connections (from 32768 on Linux), where a port that was free a
 * moment ago can be in use now.
 *
 * @category references
 * @since 0.1.0
 */
export const Range = Context.Reference<{ readonly from: number; readonly to: number }>(
  "effect-units/backends/Ports/Range",
  { defaultValue: () => ({ from: 20_000, to: 29_999 }) }
)

/**
 * What to reserve.
 *
 * @category models
 * @since 0.1.0
 */
export interface Options {
  /** What it is for, as whoever asks for the same port is told: `engine vllm`. */
  readonly purpose: string
  /** The address that the port will be used on. Default: `127.0.0.1`. */
  readonly host?: string | undefined
  /** This port and no other. Leave it out for any port of `Range`. */
  readonly port?: number | undefined
  /** This port where it can be had, and any port of `Range` otherwise. `port` goes first. */
  readonly preferred?: number | undefined
}

/**
 * A port that is the holder's for as long as the scope is open.
 *
 * @category models
 * @since 0.1.0
 */
export interface Reservation {
  readonly host: string
  readonly port: number
  /** Proves once more that nothing listens there, and fails with `Taken` where something does: before another attempt to start. */
  readonly prove: Effect.Effect<void, PortError>
}

/** Ports are the machine's, so what is reserved is known to the whole process, by what it is for. */
const reserved = new Map<number, string>()

const listen = (options: net.ListenOptions) =>
  Effect.callback<net.Server, NodeJS.ErrnoException>((resume) => {
    // What connects in the meantime is sent away, or closing would wait for it.
    const server = net.createServer((socket) => socket.destroy())
    server.once("error", (error) => resume(Effect.fail(error)))
    // A worker of node:cluster would otherwise share a port that its siblings listen on.
    server.listen({ ...options, exclusive: true }, () => resume(Effect.succeed(server)))
  })

const close = (server: net.Server) =>
  Effect.callback<void>((resume) => {
    server.close(() => resume(Effect.void))
  })

/** The tables of listening sockets: `proc(5)`, `/proc/net/tcp` and `/proc/net/unix`. */
const inodeOf = async (port: number): Promise<string | undefined> => {
  const hex = port.toString(16).toUpperCase().padStart(4, "0")
  for (const table of ["/proc/net/tcp", "/proc/net/tcp6"]) {
    for (const line of (await fs.readFile(table, "utf8")).split("\n")) {
      // Fields: slot, local address, remote address, state (0A listens), queues, timer, retransmits, user, timeout, inode.
      const [, local, , state, , , , , , inode] = line.trim().split(/\s+/)
      if (state === "0A" && local?.endsWith(`:${hex}`) === true) return inode
    }
  }
  return undefined
}

const inodeOfLock = async (name: string): Promise<string | undefined> =>
  (await fs.readFile("/proc/net/unix", "utf8")).split("\n")
    .map((line) => line.trim().split(/\s+/))
    // The table shows the NUL in front of an abstract name as "@".
    .find((fields) => fields[7] === `@${name}`)?.[6]

const processOf = async (inode: string): Promise<Holder | undefined> => {
  for (const pid of await fs.readdir("/proc")) {
    if (!/^\d+$/.test(pid)) continue
    // A process of another user shows no files, and any may end while it is looked at.
    const files = await fs.readdir(`/proc/${pid}/fd`).catch(() => [])
    for (const file of files) {
      const target = await fs.readlink(`/proc/${pid}/fd/${file}`).catch(() => "")
      if (target === `socket:[${inode}]`) {
        const name = await fs.readFile(`/proc/${pid}/comm`, "utf8").catch(() => "")
        return { pid: Number(pid), name: name.trim() }
      }
    }
  }
  return undefined
}

const found = (search: () => Promise<string | undefined>): Effect.Effect<Holder | undefined> =>
  Effect.tryPromise(async () => {
    const inode = await search()
    return inode === undefined ? undefined : processOf(inode)
  }).pipe(
    // Only Linux has these files.
    Effect.orElseSucceed(() => undefined)
  )

/**
 * The process that listens on a port of this machine, at whatever address. `undefined` where there is none, where it is another
 * user's, and on systems other than Linux.
 *
 * @category accessors
 * @since 0.1.0
 */
export const holder = (port: number): Effect.Effect<Holder | undefined> => found(() => inodeOf(port))

const failure = (reason: PortError["reason"]) => new PortError({ reason })

const refused = (host: string, port: number, code: string | undefined): PortError => {
  switch (code) {
    case "EADDRINUSE":
      return failure(new Taken({ host, port, holder: undefined }))
    case "EACCES":
      return failure(new NotPermitted({ host, port }))
    case "EADDRNOTAVAIL":
    case "ENOTFOUND":
    case "EAI_AGAIN":
    case "EINVAL":
      return failure(new NoSuchAddress({ host }))
    default:
      return failure(new Unusable({ host, port, code: code ?? "no code" }))
  }
}

/** Looks up who it is, which takes a look at every process: only for what is told to the caller. */
const named = (error: PortError): Effect.Effect<never, PortError> => {
  const { reason } = error
  switch (reason._tag) {
    case "Taken":
      return Effect.flatMap(
        holder(reason.port),
        (holder) => Effect.fail(failure(new Taken({ host: reason.host, port: reason.port, holder })))
      )
    case "Reserved":
      return reason.purpose !== undefined ? Effect.fail(error) : Effect.flatMap(
        found(() => inodeOfLock(lockName(reason.port))),
        (holder) => Effect.fail(failure(new Reserved({ port: reason.port, purpose: undefined, holder })))
      )
    default:
      return Effect.fail(error)
  }
}

const prove = (host: string, port: number): Effect.Effect<void, PortError> =>
  Effect.uninterruptible(
    listen({ host, port }).pipe(
      Effect.mapError((error) => refused(host, port, error.code)),
      Effect.flatMap(close)
    )
  )

const lockName = (port: number) => `effect-units/port/${port}`

/** Keeps other programs of this machine off. Fails where one of them has it. */
const lock = (port: number): Effect.Effect<net.Server | undefined, PortError> =>
  process.platform !== "linux" ? Effect.undefined : Effect.matchEffect(listen({ path: `\0${lockName(port)}` }), {
    onFailure: (error) =>
      error.code === "EADDRINUSE"
        ? Effect.fail(failure(new Reserved({ port, purpose: undefined, holder: undefined })))
        // A system that does not do this protects from other programs no more than others do.
        : Effect.undefined,
    // What is reserved does not keep a program from ending.
    onSuccess: (server) => Effect.sync(() => server.unref())
  })

const unlock = (server: net.Server | undefined) => server === undefined ? Effect.void : close(server)

const take = (host: string, port: number, purpose: string): Effect.Effect<Reservation, PortError, Scope.Scope> => {
  const forget = Effect.sync(() => reserved.delete(port))
  const acquire = Effect.suspend(() => {
    if (!isPort(port)) return Effect.fail(failure(new InvalidPort({ port })))
    const other = reserved.get(port)
    if (other !== undefined) return Effect.fail(failure(new Reserved({ port, purpose: other, holder: undefined })))
    reserved.set(port, purpose)
    return lock(port).pipe(
      Effect.tap((server) => Effect.onError(prove(host, port), () => unlock(server))),
      Effect.onError(() => forget)
    )
  })
  return Effect.as(Effect.acquireRelease(acquire, (server) => Effect.andThen(unlock(server), forget)), {
    host,
    port,
    prove: Effect.catch(prove(host, port), named)
  })
}

const takeAny = Effect.fnUntraced(function*(host: string, purpose: string) {
  const { from, to } = yield* Range
  const size = to - from + 1
  // From anywhere, so that programs that do not see each other's reservations seldom meet.
  const start = yield* Random.nextIntBetween(0, size, { halfOpen: true })
  for (let i = 0; i < size; i++) {
    const taken = yield* Effect.result(take(host, from + (start + i) % size, purpose))
    if (Result.isSuccess(taken)) return taken.success
    if (taken.failure.reason._tag !== "Taken" && taken.failure.reason._tag !== "Reserved") return yield* taken.failure
  }
  return yield* failure(new Exhausted({ host, from, to }))
})

/**
 * Reserves a port until the scope closes.
 *
 * **Details**
 *
 * A port is reserved at all addresses at once, whichever it was asked for. With `port`, fails with the reason `Taken` or `Reserved`
 * where it is not to be had, naming who has it as far as that can be known; without, with `Exhausted` where no port of `Range` is.
 * What the system refuses for another reason (`NotPermitted`, `NoSuchAddress`) fails at once.
 *
 * **Example** (A port for an engine, 8000 if it is free)
 *
 * ```ts
 * const start = Effect.gen(function*() {
 *   const { port, host } = yield* Ports.reserve({ purpose: "engine vllm", preferred: 8000 })
 *   yield* Effect.log(`http://${host}:${port}`)
 * })
 * ```
 *
 * @category constructors
 * @since 0.1.0
 */
export const reserve = (options: Options): Effect.Effect<Reservation, PortError, Scope.Scope> => {
  const { host = "127.0.0.1", port, preferred, purpose } = options
  const any = takeAny(host, purpose)
  if (port !== undefined) return Effect.catch(take(host, port, purpose), named)
  return preferred === undefined ? any : Effect.catch(take(host, preferred, purpose), () => any)
}
