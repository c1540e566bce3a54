/**
 * Events through Redis Streams: a publisher, and a subscriber with consumer groups. The client is `redis`, which an application that imports
 * this module installs. Redis 7.0 or later.
 *
 * All events are entries of one stream, under one key. An entry has the fields `id`, the event's id, and `event`, its wire object as JSON.
 *
 * **Guarantees**
 *
 * - Durability: an event that the server has acknowledged is in its memory, and outlives what the server writes to disk. `appendonly yes`
 *   keeps it over a restart, but for the last second (`appendfsync everysec`, the default); with `appendfsync always` it survives a power
 *   cut. With `replicas` it is acknowledged when as many replicas have it, too, and so outlives a fail-over to one of them.
 *   `maxmemory-policy noeviction`, or the stream may go as a whole.
 * - Order: as published, by each publisher. A batch of events is stored as a whole, or not at all, and the next one after it.
 * - Duplicates: Redis does not know an event again. A batch whose answer was lost is stored again: delivery is at least once, the
 *   event's `id` is the key to deduplicate on.
 * - Loss: what units hand over waits in the memory of the process until the server has it. So a process that is killed loses what was
 *   waiting, under the `open` policy; under `closed` no unit begins before the server has its start. A buffer that is full drops
 *   the new event, and counts it. The stream keeps `maxLength` events; a subscriber that comes later than that is told how many it missed.
 * - Closing the scope stores what waits, for at most `flushTimeout`; what is left then is counted as dropped. A subscription gives back what it
 *   has not acknowledged, for the consumer's next subscriber.
 *
 * @since 0.1.0
 */
import * as Arr from "effect/Array"
import * as Cause from "effect/Cause"
import * as Config from "effect/Config"
import * as Duration from "effect/Duration"
import * as Effect from "effect/Effect"
import * as Exit from "effect/Exit"
import * as Fiber from "effect/Fiber"
import * as Latch from "effect/Latch"
import * as Layer from "effect/Layer"
import type * as Pull from "effect/Pull"
import * as Result from "effect/Result"
import * as Schema from "effect/Schema"
import type * as Scope from "effect/Scope"
import * as Stream from "effect/Stream"
import { createHash } from "node:crypto"
import { createClient, ErrorReply, MultiErrorReply, type RedisClientOptions } from "redis"
import * as EventPublisher from "../EventPublisher.ts"
import * as EventSubscriber from "../EventSubscriber.ts"
import * as Backoff from "../internal/backoff.ts"
import * as Brokers from "../internal/brokers.ts"
import { uuidV7 } from "../internal/ids.ts"
import * as ServerAddress from "../internal/serverAddress.ts"

/**
 * Where the server is, and the stream on it.
 *
 * @category models
 * @since 0.1.0
 */
export interface StreamOptions {
  /** `redis[s]://[[user][:password]@]host[:port][/database]`. Default `redis://127.0.0.1:6379`. */
  readonly url?: string | undefined
  /** What else the client takes. A connection that breaks is made again for as long as the Layer lives. */
  readonly connection?:
    | Pick<RedisClientOptions, "socket" | "username" | "password" | "credentialsProvider" | "database" | "name">
    | undefined
  /** Key of the stream. Default `units`. */
  readonly key?: string | undefined
}

/**
 * Settings of a publisher.
 *
 * @category models
 * @since 0.1.0
 */
export interface PublisherOptions extends StreamOptions {
  /** Under `closed` a unit does not begin before the server has acknowledged its start. Default `open`. */
  readonly policy?: "open" | "closed" | undefined
  /** Names the publisher in the events that it numbers. Default: a new UUID. */
  readonly source?: string | undefined
  /** How many events may wait to be stored; more are refused and counted. Default 16,384. */
  readonly capacity?: number | undefined
  /** How many events are stored at once at most. Default 256. */
  readonly batch?: number | undefined
  /** How many events the stream keeps, and some more: the oldest go in whole nodes, as with `MAXLEN ~`. Default 1,000,000. */
  readonly maxLength?: number | undefined
  /**
   * How many replicas must have an event, too, before it counts as stored (`WAIT`). While fewer have it, it is not stored again, and later
   * events wait. Default 0.
   */
  readonly replicas?: number | undefined
  /** After how long without an answer a connection is given up, and its batch stored again. Default 2 seconds. */
  readonly ackTimeout?: Duration.Input | undefined
  /** How long a unit waits for the acknowledgement under `closed`, before it is refused. Default 5 seconds. */
  readonly timeout?: Duration.Input | undefined
  /** How long the end of an execution waits under `closed`. Default 5 seconds. */
  readonly terminalTimeout?: Duration.Input | undefined
  /** How long closing the scope waits for what was accepted. Default 10 seconds. */
  readonly flushTimeout?: Duration.Input | undefined
  /** Longest string or blob in an event, in bytes. Default 64 KiB. */
  readonly maxFieldBytes?: number | undefined
}

/**
 * Settings of a subscriber.
 *
 * @category models
 * @since 0.1.0
 */
export type SubscriberOptions = StreamOptions

/**
 * Settings of both ends.
 *
 * @category models
 * @since 0.1.0
 */
export interface Options extends PublisherOptions, SubscriberOptions {}

/**
 * The server could not be reached, or did not let us in. A retry can help.
 *
 * @category errors
 * @since 0.1.0
 */
export class Unreachable extends Schema.TaggedError<Unreachable>("effect-units/publishers/Redis/Unreachable")(
  "Unreachable",
  { url: Schema.String, detail: Schema.String, cause: Schema.Defect() }
) {
  readonly retryable = true
  override get message(): string {
    return `no connection to ${this.url}: ${this.detail}. Check that a server runs there, and its credentials`
  }
}

/**
 * The key holds something else than a stream. A retry does not help.
 *
 * @category errors
 * @since 0.1.0
 */
export class NoStream extends Schema.TaggedError<NoStream>("effect-units/publishers/Redis/NoStream")("NoStream", {
  key: Schema.String,
  found: Schema.String
}) {
  readonly retryable = false
  override get message(): string {
    return `the key ${this.key} holds a ${this.found}, and no stream. Name another key`
  }
}

/**
 * A Layer of this module could not be built; `reason` says why.
 *
 * @category errors
 * @since 0.1.0
 */
export class RedisError extends Schema.TaggedError<RedisError>("effect-units/publishers/Redis/RedisError")(
  "RedisError",
  { reason: Schema.Union([Unreachable, NoStream]) }
) {
  override readonly cause = this.reason
  override get message(): string {
    return `Redis: ${this.reason.message}`
  }
  /** Whether building it again can succeed later. */
  get retryable(): boolean {
    return this.reason.retryable
  }
}

const transport = "Redis Streams"

const keyOf = (options: StreamOptions): string => options.key ?? "units"

const urlOf = (options: StreamOptions): string => options.url ?? "redis://127.0.0.1:6379"

const newClient = (options: StreamOptions) => {
  const { socket, ...rest } = options.connection ?? {}
  return createClient({ ...rest, url: urlOf(options), socket: { ...socket, reconnectStrategy: false } })
}

type Client = ReturnType<typeof newClient>

/** Why a call failed, and whether that can pass. */
interface Failure {
  readonly detail: string
  readonly passing: boolean
  readonly cause: unknown
}

/** What a server says that is no master any more: to a write, to who waits for replicas, and to who would. */
const demoted = /^(READONLY|UNBLOCKED|ERR WAIT)\b/

const passing = /^(BUSY|CLUSTERDOWN|LOADING|MASTERDOWN|MISCONF|NOREPLICAS|OOM|TRYAGAIN)\b/

const failureOf = (thrown: unknown): Failure => {
  const cause = thrown instanceof MultiErrorReply ? thrown.replies[0] ?? thrown : thrown
  const detail = Brokers.describe(cause)
  return { detail, passing: !(cause instanceof ErrorReply) || passing.test(detail) || demoted.test(detail), cause }
}

/**
 * A connection that is made when it is needed, and made anew when it broke or was silent. The client's own way to reconnect keeps commands for
 * later, out of the order of ours, and does not give a silent server up.
 */
interface Connection {
  /** Sends commands, and waits for their answer for so long. */
  readonly call: <A>(send: (client: Client) => Promise<A>, within: Duration.Duration) => Effect.Effect<A, Failure>
}

const makeConnection = Effect.fnUntraced(
  function*(options: StreamOptions): Effect.fn.Return<Connection, never, Scope.Scope> {
    let current: Promise<Client> | undefined
    let isClosed = false

    const open = async (): Promise<Client> => {
      const client = newClient(options)
      // Whoever waits for an answer is told of it.
      client.on("error", () => {})
      await client.connect()
      return client
    }
    const drop = (opened: Promise<Client>): void => {
      if (current === opened) current = undefined
      opened.then((client) => client.isOpen && client.destroy(), () => {})
    }
    const acquire = async (): Promise<Client> => {
      if (isClosed) throw new Error("the connection is closed")
      const opened = current ??= open()
      try {
        const client = await opened
        if (client.isReady) return client
      } catch (thrown) {
        drop(opened)
        throw thrown
      }
      drop(opened)
      return acquire()
    }
    const giveUp = Effect.sync(() => {
      if (current !== undefined) drop(current)
    })
    yield* Effect.addFinalizer(() =>
      Effect.sync(() => {
        isClosed = true
        if (current !== undefined) drop(current)
      })
    )
    return {
      call: (send, within) =>
        Effect.tryPromise({
          try: acquire,
          // Credentials that are refused today may have been changed tomorrow.
          catch: (cause): Failure => ({ detail: Brokers.describe(cause), passing: !isClosed, cause })
        }).pipe(
          Effect.flatMap((client) => Effect.tryPromise({ try: () => send(client), catch: failureOf })),
          Effect.timeoutOrElse({
            duration: within,
            orElse: () => {
              const detail = `no answer within ${Duration.format(within)}`
              return Effect.andThen(giveUp, Effect.fail<Failure>({ detail, passing: true, cause: new Error(detail) }))
            }
          }),
          // After a fail-over the address may lead to the new master.
          Effect.tapError(({ detail }) => demoted.test(detail) ? giveUp : Effect.void),
          Brokers.inRealTime
        )
    }
  }
)

/** How long calls other than a publisher's wait for an answer. */
const answerWithin = Duration.seconds(5)

const check = (connection: Connection, options: StreamOptions): Effect.Effect<void, RedisError> =>
  Effect.matchEffect(connection.call((client) => client.type(keyOf(options)), answerWithin), {
    onFailure: (failure) => {
      const { addresses, cause, detail } = ServerAddress.tell([urlOf(options)], failure.cause)
      return Effect.fail(new RedisError({ reason: new Unreachable({ url: addresses.join(), detail, cause }) }))
    },
    onSuccess: (found) =>
      found === "none" || found === "stream"
        ? Effect.void
        : Effect.fail(new RedisError({ reason: new NoStream({ key: keyOf(options), found }) }))
  })

/** An event as it is stored, and stored again. */
interface Outgoing {
  readonly item: Brokers.Outgoing
  readonly id: string
  readonly text: string
}

const encode = (item: Brokers.Outgoing, refused: Brokers.Outbound["refused"]): Outgoing | undefined => {
  try {
    return { item, id: item.event.id, text: Brokers.toText(item.event) }
  } catch (thrown) {
    refused(item, Brokers.describe(thrown), thrown)
    return undefined
  }
}

/** How much text is stored at once, in characters: a batch has to arrive within `ackTimeout`, or it never would. */
const longestBatch = 1024 * 1024

const sender = (connection: Connection, options: PublisherOptions): Brokers.Sender => {
  const key = keyOf(options)
  const size = Math.max(1, options.batch ?? 256)
  const maxLength = String(Math.max(1, options.maxLength ?? 1_000_000))
  const replicas = options.replicas ?? 0
  const within = Duration.fromInputUnsafe(options.ackTimeout ?? "2 seconds")
  let unsettled = 0

  const store = (client: Client, entries: ReadonlyArray<Outgoing>): Promise<unknown> => {
    const multi = client.multi()
    for (const { id, text } of entries) {
      multi.addCommand(["XADD", key, "MAXLEN", "~", maxLength, "*", "id", id, "event", text])
    }
    return multi.exec()
  }
  /** How many replicas have what was stored on this connection. Half of the time, so that the answer comes before we give up on it. */
  const wait = (client: Client): Promise<number> =>
    replicas === 0 ? Promise.resolve(0) : client.wait(replicas, Math.ceil(Duration.toMillis(within) / 2))

  const run = Effect.fnUntraced(function*({ acknowledged, refused, ring }: Brokers.Outbound) {
    const backoff = new Brokers.Backoff(50, 2000)
    let failing = false

    const tryAgain = (detail: string) => {
      const streak = failing
      failing = true
      return Effect.andThen(
        streak
          ? Effect.void
          : Effect.logWarning(`${transport} does not take events: ${detail}. They wait, and are stored again`),
        Effect.sleep(backoff.next())
      )
    }

    /** Succeeds when all are stored, or refused for good. */
    const storeAll = Effect.fnUntraced(function*(entries: ReadonlyArray<Outgoing>) {
      let waiting = entries
      /** The connection on which they were stored, and the replicas did not have them yet. */
      let stored: Client | undefined
      const attempt = async (client: Client): Promise<number> => {
        if (stored === client) return wait(client)
        const [done, reached] = await Promise.allSettled([store(client, waiting), wait(client)])
        if (done.status === "rejected") throw done.reason
        stored = client
        if (reached.status === "rejected") throw reached.reason
        return reached.value
      }
      while (waiting.length > 0) {
        const result = yield* Effect.result(connection.call(attempt, within))
        if (Result.isSuccess(result) && result.success >= replicas) {
          backoff.reset()
          failing = false
          for (const { item } of waiting) acknowledged(item)
          return
        }
        if (Result.isFailure(result) && !result.failure.passing) {
          for (const { item } of waiting) refused(item, result.failure.detail, result.failure.cause)
          return
        }
        yield* tryAgain(
          Result.isFailure(result) ? result.failure.detail : `${result.success} of ${replicas} replicas have them`
        )
        waiting = waiting.filter(({ item }) => !item.withdrawn)
      }
    })

    // While one batch is stored the next one is encoded.
    let storing: Fiber.Fiber<void> | undefined
    const storeNext = Effect.fnUntraced(function*(entries: ReadonlyArray<Outgoing>) {
      if (storing !== undefined) yield* Fiber.join(storing)
      const stored = Effect.map(storeAll(entries), () => {
        unsettled -= entries.length
      })
      storing = yield* Effect.forkChild(stored, { startImmediately: true })
    })

    while (true) {
      const batch = yield* ring.take(size)
      if (batch === undefined) break
      unsettled += batch.items.length
      let entries: Array<Outgoing> = []
      let length = 0
      for (const item of batch.items) {
        const entry = item.withdrawn ? undefined : encode(item, refused)
        if (entry === undefined) {
          unsettled--
          continue
        }
        if (length + entry.text.length > longestBatch && entries.length > 0) {
          yield* storeNext(entries)
          entries = []
          length = 0
        }
        entries.push(entry)
        length += entry.text.length
      }
      yield* storeNext(entries)
    }
    if (storing !== undefined) yield* Fiber.join(storing)
  })

  return { transport, buffer: "redis", unsettled: () => unsettled, run }
}

/** A Lua script. The server knows it by its hash once it has run it. */
class Script {
  private readonly text: string
  private readonly hash: string

  constructor(text: string) {
    this.text = text
    this.hash = createHash("sha1").update(text).digest("hex")
  }

  async run(client: Client, key: string, args: ReadonlyArray<string>): Promise<unknown> {
    try {
      return await client.sendCommand(["EVALSHA", this.hash, "1", key, ...args])
    } catch (thrown) {
      if (!(thrown instanceof ErrorReply) || !thrown.message.startsWith("NOSCRIPT")) throw thrown
      return await client.sendCommand(["EVAL", this.text, "1", key, ...args])
    }
  }
}

/** Turns a flat list of names and values into a table. */
const luaTable = `local function fields(list)
  local table = {}
  for i = 1, #list, 2 do table[list[i]] = list[i + 1] end
  return table
end
`

/** Whether a stream has entries, but none of them up to an id; with a real id, whether the entry of that id was trimmed. */
const luaBehind = `local function isBehind(info, id)
  return id ~= '0-0' and info['length'] > 0 and #redis.call('XRANGE', KEYS[1], '-', id, 'COUNT', 1) == 0
end
`

/**
 * Where a new reader begins: the id after which it reads, and how many entries the stream ever had up to there, where that can be known.
 * Arguments: `new`, `beginning`, or an id; `1` where that id stands for a time, and is no entry's.
 */
const startScript = new Script(`${luaTable}${luaBehind}
local from = ARGV[1]
local isId = from ~= 'new' and from ~= 'beginning'
if redis.call('EXISTS', KEYS[1]) == 0 then return { isId and from or '0-0', 0 } end
local info = fields(redis.call('XINFO', 'STREAM', KEYS[1]))
local gone = info['entries-added'] - info['length']
if from == 'new' or from == info['last-generated-id'] then return { info['last-generated-id'], info['entries-added'] } end
if not isId or from == '0-0' then return { '0-0', gone } end
return { from, ARGV[2] == '1' and isBehind(info, from) and gone or -1 }`)

/**
 * Reads for a member of a group what no member has read, and counts what was trimmed before the group had read it. Where the group does not
 * know how many entries it has read, and the last of them was trimmed, at least one is missing. Arguments: group, member, how many, \`1\`
 * where nothing may be read while anything is unacknowledged, and which gap the member knows. Gives what is missing, how many entries the
 * stream ever had up to the end of that gap, the id up to which the group has read, whether something is unacknowledged, and the entries.
 * Behind a gap that the member does not know nothing is read: the group forgets it only when the member has heard of it.
 */
const readGroupScript = new Script(`${luaTable}${luaBehind}
local groups = redis.call('EXISTS', KEYS[1]) == 1 and redis.call('XINFO', 'GROUPS', KEYS[1]) or {}
for _, list in ipairs(groups) do
  local group = fields(list)
  if group['name'] == ARGV[1] then
    local last = group['last-delivered-id']
    if ARGV[4] == '1' and group['pending'] > 0 then return { 0, 0, last, 1, {} } end
    local missed, gone = 0, 0
    if not group['lag'] or group['lag'] >= redis.call('XLEN', KEYS[1]) then
      local info = fields(redis.call('XINFO', 'STREAM', KEYS[1]))
      gone = info['entries-added'] - info['length']
      missed = math.max(0, gone - (group['entries-read'] or isBehind(info, last) and gone - 1 or gone))
    end
    if missed > 0 then
      local upTo = string.format('%.0f', gone)
      if upTo ~= ARGV[5] then return { missed, gone, last, 0, {} } end
      redis.call('XGROUP', 'SETID', KEYS[1], ARGV[1], last, 'ENTRIESREAD', upTo)
    end
    local read = redis.call('XREADGROUP', 'GROUP', ARGV[1], ARGV[2], 'COUNT', ARGV[3], 'STREAMS', KEYS[1], '>')
    return { missed, gone, last, 0, read and read[1][2] or {} }
  end
end
return redis.error_reply('NOGROUP the group is gone')`)

/**
 * Reads what comes after an id. Arguments: the id, how many entries the stream had up to there or -1, how many to read. Gives what is
 * missing, at least one where that is not known and the entry of the id was trimmed; how many entries the stream had up to the last one that
 * was read; and the entries.
 */
const readScript = new Script(`${luaTable}${luaBehind}
if redis.call('EXISTS', KEYS[1]) == 0 then return { 0, 0, {} } end
local info = fields(redis.call('XINFO', 'STREAM', KEYS[1]))
local index, missed = tonumber(ARGV[2]), 0
local gone = info['entries-added'] - info['length']
if index < 0 and gone > 0 and isBehind(info, ARGV[1]) then index = gone - 1 end
if index >= 0 then
  missed = math.max(0, gone - index)
  index = index + missed
end
local read = redis.call('XREAD', 'COUNT', ARGV[3], 'STREAMS', KEYS[1], ARGV[1])
local entries = read and read[1][2] or {}
if index >= 0 then
  index = index + #entries
elseif #entries > 0 and entries[#entries][1] == info['last-generated-id'] then
  index = info['entries-added']
end
return { missed, index, entries }`)

/**
 * Takes over what members have not acknowledged for too long, and forgets members that are long gone and have nothing. Arguments: group,
 * member, milliseconds, how many, from which id on, milliseconds after which a member is gone. Gives the id to go on from, the entries with
 * the number of their deliveries, and how many were trimmed.
 */
const claimScript = new Script(`${luaTable}
local claimed = redis.call('XAUTOCLAIM', KEYS[1], ARGV[1], ARGV[2], ARGV[3], ARGV[5], 'COUNT', ARGV[4])
local entries = {}
for _, entry in ipairs(claimed[2]) do
  local pending = redis.call('XPENDING', KEYS[1], ARGV[1], entry[1], entry[1], 1)
  entries[#entries + 1] = { entry[1], entry[2], pending[1][4] }
end
for _, list in ipairs(redis.call('XINFO', 'CONSUMERS', KEYS[1], ARGV[1])) do
  local member = fields(list)
  if member['pending'] == 0 and member['name'] ~= ARGV[2] and member['idle'] > tonumber(ARGV[6]) then
    redis.call('XGROUP', 'DELCONSUMER', KEYS[1], ARGV[1], member['name'])
  end
end
return { claimed[1], entries, claimed[3] and #claimed[3] or 0 }`)

/** Gives back what a member has not acknowledged, to whoever claims it next, and forgets the member. Arguments: group, member. */
const leaveScript = new Script(`
local from = '-'
repeat
  local pending = redis.call('XPENDING', KEYS[1], ARGV[1], from, '+', 100, ARGV[2])
  for _, entry in ipairs(pending) do
    redis.call('XCLAIM', KEYS[1], ARGV[1], 'released', 0, entry[1], 'IDLE', '1000000000', 'JUSTID')
    from = '(' .. entry[1]
  end
until #pending < 100
redis.call('XGROUP', 'DELCONSUMER', KEYS[1], ARGV[1], ARGV[2])`)

/** What the server thinks we have. Arguments: group, member, how many. */
const ownScript = new Script(`
local read = redis.call('XREADGROUP', 'GROUP', ARGV[1], ARGV[2], 'COUNT', ARGV[3], 'STREAMS', KEYS[1], '0')
return read and read[1][2] or {}`)

/** An entry as it comes: its id; its fields as a flat list, none where it was trimmed; the number of its deliveries where it is not the first. */
type Entry = readonly [id: string, fields: ReadonlyArray<string> | null, deliveries?: number]

/** What a source gives at once, and how many entries are missing before. */
interface Reading {
  readonly missed: number
  readonly entries: ReadonlyArray<Entry>
}

/** How long a reader waits for an entry at most, before it looks after other things. */
const longestWait = 2000

/** Waits until there is an entry after an id. */
const bell = (connection: Connection, key: string, id: string, millis: number): Effect.Effect<void, Failure> =>
  Effect.asVoid(connection.call(
    (client) => client.sendCommand(["XREAD", "BLOCK", String(Math.ceil(millis)), "COUNT", "1", "STREAMS", key, id]),
    Duration.sum(answerWithin, Duration.millis(millis))
  ))

/** The id after which a reader begins, or `new` or `beginning`. */
interface From {
  readonly id: string
  readonly isTime: boolean
}

interface Start {
  readonly id: string
  readonly index: number
}

const findStart = (connection: Connection, key: string, { id, isTime }: From): Effect.Effect<Start, Failure> =>
  Effect.map(
    connection.call((client) => startScript.run(client, key, [id, isTime ? "1" : "0"]), answerWithin),
    (reply) => {
      // What the script returns.
      const [id, index] = reply as readonly [string, number]
      return { id, index }
    }
  )

/** How many entries are read at once at most, by a reader for itself. */
const pageSize = 64

const unreadable = (key: string, id: string): Effect.Effect<void> =>
  Effect.logWarning(`Entry ${id} of the stream ${key} is no event that this program can read. It is passed over`)

const eventOf = (fields: ReadonlyArray<string> | null): Exit.Exit<EventPublisher.Event, unknown> =>
  Brokers.fromText(fields?.[fields.indexOf("event") + 1] ?? "")

/** Tries again what fails in a way that can pass. */
const persist = <A>(effect: Effect.Effect<A, Failure>): Effect.Effect<A, Failure> => {
  const backoff = new Brokers.Backoff(50, 2000)
  const attempt: Effect.Effect<A, Failure> = Effect.catchIf(
    effect,
    (failure) => failure.passing,
    () => Effect.andThen(Effect.sleep(backoff.next()), attempt)
  )
  return Effect.tap(attempt, () => Effect.sync(() => backoff.reset()))
}

/** The events of the whole stream, read without a trace on the server. */
const readAlone = (
  connection: Connection,
  waiting: Connection,
  key: string,
  start: Start,
  wants: (event: EventPublisher.Event) => boolean
): Stream.Stream<Pick<EventSubscriber.Delivery, "event" | "position" | "missed">, EventSubscriber.SubscribeError> => {
  let { id, index } = start
  let missed = 0
  const read = Effect.suspend(() =>
    connection.call((client) => readScript.run(client, key, [id, String(index), String(pageSize)]), answerWithin)
  )
  const next = Effect.gen(function*() {
    while (true) {
      // What the script returns.
      const [gap, upTo, entries] = (yield* read) as readonly [number, number, ReadonlyArray<Entry>]
      missed += gap
      index = upTo
      id = entries.at(-1)?.[0] ?? id
      const page: Array<{ event: EventPublisher.Event; position: string; missed: number }> = []
      for (const [position, fields] of entries) {
        const event = eventOf(fields)
        if (Exit.isFailure(event)) yield* unreadable(key, position)
        else if (wants(event.value)) {
          page.push({ event: event.value, position, missed })
          missed = 0
        }
      }
      if (Arr.isArrayNonEmpty(page)) return page
      if (entries.length === 0) yield* bell(waiting, key, id, longestWait)
    }
  })
  return Stream.fromPull(Effect.succeed(Brokers.inRealTime(Effect.mapError(persist(next), subscribeError))))
}

/** How long a member that may not read waits for the others. */
const standBy = Duration.millis(50)

/** A member of a group, as the server knows it. */
interface Member {
  /** Reads at most so many. Where there are none it waits a while, and may give none. */
  readonly read: (count: number) => Effect.Effect<Reading, Failure>
  readonly ack: (ids: ReadonlyArray<string>) => Effect.Effect<unknown, Failure>
  /** Notes that an entry is delivered to us again, for the so-many-th time. */
  readonly renew: (id: string, attempt: number) => Effect.Effect<unknown, Failure>
  readonly leave: Effect.Effect<unknown, Failure>
}

const makeMember = (connection: Connection, waiting: Connection, settings: {
  readonly key: string
  readonly group: string
  readonly member: string
  readonly ackTimeout: number
  readonly maxInFlight: number
  /** Whether we have an entry, or have acknowledged it. */
  readonly knows: (id: string) => boolean
}): Member => {
  const { ackTimeout, group, key, knows, maxInFlight, member } = settings
  const interval = Math.min(Math.max(100, ackTimeout / 3), 5000)
  const goneAfter = String(Math.max(10 * ackTimeout, 600_000))
  let claimAt = 0
  let claimFrom = "0-0"
  // An answer that was lost may have held entries that the server has given to us.
  let isUnsure = false
  // The last gap that the group told us of: it forgets it when we read behind it.
  let gap = { missed: 0, upTo: 0 }
  const takeGap = (): number => {
    const { missed, upTo } = gap
    gap = { missed: 0, upTo }
    return missed
  }

  const run = (script: Script, ...args: ReadonlyArray<string>): Effect.Effect<unknown, Failure> =>
    connection.call((client) => script.run(client, key, [group, member, ...args]), answerWithin)

  // At most what we hold, as many that are acknowledged, and as many that we do not know of.
  const own: Effect.Effect<Reading, Failure> = Effect.suspend(() =>
    Effect.map(run(ownScript, String(3 * maxInFlight)), (reply) => {
      isUnsure = false
      // What the script returns.
      const entries = (reply as ReadonlyArray<Entry>).filter(([id]) => !knows(id))
      return { missed: entries.length === 0 ? 0 : takeGap(), entries }
    })
  )

  const claim = (count: number): Effect.Effect<Reading, Failure> =>
    Effect.map(run(claimScript, String(ackTimeout), String(count), claimFrom, goneAfter), (reply) => {
      // What the script returns.
      const [next, entries, missed] = reply as readonly [string, ReadonlyArray<Entry>, number]
      claimFrom = next
      // Where the list does not end, or gave as many as we take, there may be more.
      if (next === "0-0" && entries.length < count) claimAt = Brokers.monotonicMillis() + interval
      return { missed, entries }
    })

  const readNew = (count: number): Effect.Effect<Reading, Failure> =>
    Effect.flatMap(run(readGroupScript, String(count), maxInFlight === 1 ? "1" : "0", String(gap.upTo)), (reply) => {
      // What the script returns.
      const [missed, upTo, last, isBusy, entries] = reply as readonly [
        number,
        number,
        string,
        number,
        ReadonlyArray<Entry>
      ]
      if (missed > 0 && upTo !== gap.upTo) {
        gap = { missed, upTo }
        return readNew(count)
      }
      const told = takeGap()
      // None where another member was told of it, and has read behind it.
      const reading = { missed: missed > 0 ? told : 0, entries }
      if (entries.length > 0 || missed > 0) return Effect.succeed(reading)
      if (isBusy === 1) return Effect.as(Effect.sleep(standBy), reading)
      const wait = Math.max(1, Math.min(longestWait, claimAt - Brokers.monotonicMillis()))
      return Effect.as(bell(waiting, key, last, wait), reading)
    })

  const orElse = (first: Effect.Effect<Reading, Failure>, second: Effect.Effect<Reading, Failure>) =>
    Effect.filterOrElse(first, ({ entries, missed }) => entries.length > 0 || missed > 0, () => second)

  return {
    read: (count) =>
      Effect.suspend(() => {
        const isDue = Brokers.monotonicMillis() >= claimAt
        const claimed = isDue ? orElse(claim(count), readNew(count)) : readNew(count)
        return isUnsure ? orElse(own, claimed) : claimed
      }).pipe(
        Effect.tapError(() =>
          Effect.sync(() => {
            isUnsure = true
          })
        )
      ),
    ack: (ids) => connection.call((client) => client.xAck(key, group, [...ids]), answerWithin),
    renew: (id, attempt) =>
      connection.call(
        (client) => client.xClaimJustId(key, group, member, 0, id, { RETRYCOUNT: attempt }),
        answerWithin
      ),
    leave: run(leaveScript)
  }
}

/** An entry that the server has given to us, and that is not acknowledged. */
interface Held {
  readonly id: string
  readonly event: EventPublisher.Event
  readonly attempt: number
  readonly missed: number
  /** When the server was last told that it is ours, in milliseconds of a monotonic clock. */
  at: number
}

const subscribeError = ({ cause, detail, passing }: Failure): EventSubscriber.SubscribeError =>
  new EventSubscriber.SubscribeError({ transport, detail, retryable: passing || detail.startsWith("NOGROUP"), cause })

/** A member at work: what it holds, and what it has to acknowledge. */
class Intake {
  private readonly member: Member
  private readonly settings: {
    readonly key: string
    readonly wants: (event: EventPublisher.Event) => boolean
    readonly maxInFlight: number
    readonly ackTimeout: number
    /** How long an entry waits that was given back, in milliseconds, by the number of its attempts. */
    readonly pause: (attempt: number) => Effect.Effect<number>
    /** Runs an effect in the background, as long as the subscription lives. */
    readonly fork: (effect: Effect.Effect<void>) => void
  }
  private readonly held: Map<string, Held>
  private readonly toAck: Set<string>
  /** What of it is not taken yet. */
  private ready: Array<Held> = []
  private readonly arrived = Latch.makeUnsafe(false)
  private ended: Pull.Pull<never, EventSubscriber.SubscribeError> | undefined
  private isFlushingSoon = false
  private isClosing = false
  private missed = 0
  private freed: (() => void) | undefined

  constructor(member: Member, held: Map<string, Held>, toAck: Set<string>, settings: Intake["settings"]) {
    this.member = member
    this.held = held
    this.toAck = toAck
    this.settings = settings
  }

  /** One at a time: what is taken later may have gone to another member by then. */
  readonly next: Pull.Pull<Arr.NonEmptyReadonlyArray<EventSubscriber.Delivery>, EventSubscriber.SubscribeError> = Effect
    .suspend(() => {
      for (let held = this.ready.shift(); held !== undefined; held = this.ready.shift()) {
        if (this.isOurs(held)) return Effect.succeed(Arr.of(this.deliveryOf(held)))
        this.letGo(held)
      }
      if (this.ended !== undefined) return this.ended
      this.arrived.closeUnsafe()
      return Effect.andThen(this.arrived.await, this.next)
    })

  private deliveryOf(held: Held): EventSubscriber.Delivery {
    const settle = (how: () => void): Effect.Effect<void, EventSubscriber.SubscribeError> =>
      Effect.suspend(() => {
        if (this.isClosing) {
          return Effect.fail(subscribeError({ detail: "the subscription has ended", passing: false, cause: undefined }))
        }
        how()
        return Effect.void
      })
    return {
      event: held.event,
      position: held.id,
      attempt: held.attempt,
      missed: held.missed,
      ack: settle(() => this.acknowledge(held.id)),
      retry: () => settle(() => this.retry(held))
    }
  }

  private deliver(id: string, event: EventPublisher.Event, attempt: number): void {
    const held: Held = { id, event, attempt, missed: this.missed, at: Brokers.monotonicMillis() }
    this.missed = 0
    this.held.set(id, held)
    this.ready.push(held)
  }

  private acknowledge(id: string): void {
    // Also where it came again meanwhile.
    this.held.delete(id)
    this.toAck.add(id)
    this.freed?.()
    if (this.isFlushingSoon) return
    // Once for all that is acknowledged in one go.
    this.isFlushingSoon = true
    queueMicrotask(() => this.settings.fork(this.flush))
  }

  private retry(held: Held): void {
    if (!this.isOurs(held)) return
    const waiting = { ...held }
    this.held.set(held.id, waiting)
    this.settings.fork(Effect.flatMap(this.settings.pause(held.attempt), (millis) => this.keep(waiting, millis)))
  }

  /** Delivers an entry that was given back once it has waited. Until then the server is told that it is ours. */
  private readonly keep = Effect.fnUntraced({ self: this }, function*(waiting: Held, millis: number) {
    const { attempt, event, id } = waiting
    const step = this.settings.ackTimeout / 4
    const due = Brokers.monotonicMillis() + millis
    while (this.isOurs(waiting)) {
      const now = Brokers.monotonicMillis()
      const left = due - now
      if (left > 0 && now - waiting.at < 2 * step) {
        yield* Effect.sleep(Math.min(left, step))
        continue
      }
      const renewal = yield* Effect.exit(this.member.renew(id, left > 0 ? attempt : attempt + 1))
      if (this.held.get(id) !== waiting) return
      if (left <= 0) {
        this.deliver(id, event, attempt + 1)
        return this.arrived.openUnsafe()
      }
      if (Exit.isSuccess(renewal)) waiting.at = Brokers.monotonicMillis()
      else yield* Effect.sleep(Math.min(left, step))
    }
  })

  /** Sends the acknowledgements. Those of which it is not known whether they arrived are kept for the next time. */
  readonly flush: Effect.Effect<void> = Effect.suspend(() => {
    this.isFlushingSoon = false
    const ids = [...this.toAck]
    this.toAck.clear()
    const keep = Effect.sync(() => {
      for (const id of ids) this.toAck.add(id)
    })
    return ids.length === 0
      ? Effect.void
      : this.member.ack(ids).pipe(Effect.catch(() => keep), Effect.onInterrupt(() => keep), Effect.asVoid)
  })

  private readonly room: Effect.Effect<void> = Effect.callback((resume) => {
    this.freed = () => {
      this.freed = undefined
      resume(Effect.void)
    }
    return Effect.sync(() => {
      this.freed = undefined
    })
  })

  /** Whether an entry is not acknowledged, and not claimed again, by us or another member. */
  private isOurs(held: Held, now = Brokers.monotonicMillis()): boolean {
    return this.held.get(held.id) === held && now - held.at < this.settings.ackTimeout
  }

  /** Forgets a delivery that is not ours any more. Where nobody has taken it, what is missing is told with the next one. */
  private letGo(held: Held): void {
    if (this.held.get(held.id) === held) this.held.delete(held.id)
    this.missed += held.missed
    this.freed?.()
  }

  private expire(): void {
    const now = Brokers.monotonicMillis()
    const late = [...this.held.values()].filter((held) => !this.isOurs(held, now))
    if (late.length === 0) return
    for (const { id } of late) this.held.delete(id)
    const [ready, gone] = Arr.partition(
      this.ready,
      (held) => this.isOurs(held, now) ? Result.succeed(held) : Result.fail(held)
    )
    this.ready = ready
    for (const held of gone) this.letGo(held)
  }

  private take({ entries, missed }: Reading): Effect.Effect<void> {
    this.missed += missed
    const taken = Effect.forEach(entries, ([id, fields, deliveries = 1]) => {
      // Trimmed after it was delivered.
      if (fields === null) {
        this.missed++
        this.acknowledge(id)
        return Effect.void
      }
      const event = eventOf(fields)
      if (Exit.isSuccess(event)) {
        if (this.settings.wants(event.value)) this.deliver(id, event.value, deliveries)
        else this.acknowledge(id)
        return Effect.void
      }
      this.acknowledge(id)
      return unreadable(this.settings.key, id)
    }, { discard: true })
    // Once for all of them, or the reader would be woken for each.
    return Effect.andThen(taken, Effect.sync(() => this.arrived.openUnsafe()))
  }

  /** Reads as long as it runs. Ends with what does not pass. */
  readonly run: Effect.Effect<void, Failure> = Effect.gen({ self: this }, function*() {
    const backoff = new Brokers.Backoff(50, 2000)
    while (true) {
      this.expire()
      const free = this.settings.maxInFlight - this.held.size
      if (free <= 0) {
        yield* Effect.timeoutOption(this.room, Math.min(250, this.settings.ackTimeout))
        continue
      }
      // One behind the other on the connection, without waiting for the first answer.
      const [, reading] = yield* Effect.all([this.flush, Effect.result(this.member.read(free))], { concurrency: 2 })
      if (Result.isSuccess(reading)) {
        backoff.reset()
        yield* this.take(reading.success)
      } else if (reading.failure.passing) {
        yield* Effect.sleep(backoff.next())
      } else {
        return yield* Effect.fail(reading.failure)
      }
    }
  })

  readonly close: Effect.Effect<void> = Effect.suspend(() => {
    this.isClosing = true
    this.ready = []
    return Effect.andThen(this.flush, Effect.ignore(this.member.leave))
  })

  /** Nothing comes any more, but for what is ready. */
  end(last: Pull.Pull<never, EventSubscriber.SubscribeError>): void {
    this.ended ??= last
    this.arrived.openUnsafe()
  }
}

const fromOf = (from: EventSubscriber.From): Effect.Effect<From, EventSubscriber.SubscribeError> => {
  if (typeof from === "string") return Effect.succeed({ id: from, isTime: false })
  const fail = (detail: string) => Effect.fail(subscribeError({ detail, passing: false, cause: undefined }))
  if ("time" in from) {
    const millis = Math.floor(from.time)
    return Number.isSafeInteger(millis) && millis >= 0
      ? Effect.succeed({ id: millis === 0 ? "0-0" : `${millis - 1}-18446744073709551615`, isTime: true })
      : fail(`${from.time} is no time in Unix milliseconds`)
  }
  return /^\d{1,19}-\d{1,20}$/.test(from.position)
    ? Effect.succeed({ id: from.position, isTime: false })
    : fail(`"${from.position}" is no id of an entry: give the position of a delivery`)
}

const makeSubscriber = Effect.fnUntraced(function*(
  options: SubscriberOptions
): Effect.fn.Return<typeof EventSubscriber.EventSubscriber.Service, RedisError, Scope.Scope> {
  const connection = yield* makeConnection(options)
  yield* check(connection, options)
  const key = keyOf(options)
  const scoped = yield* Brokers.subscriptions

  const createGroup = (group: string, { id, index }: Start): Effect.Effect<unknown, Failure> => {
    const read = index < 0 ? [] : ["ENTRIESREAD", String(index)]
    return connection.call(
      (client) => client.sendCommand(["XGROUP", "CREATE", key, group, id, "MKSTREAM", ...read]),
      answerWithin
    ).pipe(
      Effect.catchIf((failure) => failure.detail.startsWith("BUSYGROUP"), () => Effect.void)
    )
  }

  const subscribe = Effect.fnUntraced(function*(
    wanted: EventSubscriber.Options
  ): Effect.fn.Return<
    Stream.Stream<EventSubscriber.Delivery, EventSubscriber.SubscribeError>,
    EventSubscriber.SubscribeError,
    Scope.Scope
  > {
    const context = yield* Effect.context<Scope.Scope>()
    const maxInFlight = Math.max(1, wanted.maxInFlight ?? 1)
    const ackTimeout = Math.max(1, Math.ceil(Duration.toMillis(wanted.ackTimeout ?? "30 seconds")))
    const waiting = yield* makeConnection(options)
    const from = yield* fromOf(wanted.from ?? (wanted.consumer === undefined ? "new" : "beginning"))
    const start = yield* Effect.mapError(findStart(connection, key, from), subscribeError)
    const wants = EventSubscriber.wants(wanted)
    if (Number.isFinite(wanted.maxAttempts ?? Infinity)) {
      yield* Effect.logWarning(
        `${transport} parks no events: attempts go on beyond the ${wanted.maxAttempts} of maxAttempts`
      )
    }
    if (wanted.consumer === undefined) {
      return yield* EventSubscriber.fromStream(readAlone(connection, waiting, key, start, wants), wanted)
    }
    const group = wanted.consumer
    yield* Effect.mapError(createGroup(group, start), subscribeError)
    const held = new Map<string, Held>()
    const toAck = new Set<string>()
    const member = makeMember(connection, waiting, {
      key,
      group,
      member: uuidV7(Brokers.realClock.currentTimeMillisUnsafe()),
      ackTimeout,
      maxInFlight,
      knows: (id) => held.has(id) || toAck.has(id)
    })
    const background = Effect.runForkWith(context)
    const intake = yield* Effect.acquireRelease(
      Effect.sync(() =>
        new Intake(member, held, toAck, {
          key,
          wants,
          maxInFlight,
          ackTimeout,
          pause: Backoff.make(wanted.backoff),
          fork: (effect) => void background(Effect.forkScoped(Brokers.inRealTime(effect)))
        })
      ),
      (intake) =>
        intake.close.pipe(
          Effect.interruptible,
          Effect.timeoutOption("3 seconds"),
          Brokers.inRealTime,
          Effect.andThen(Effect.sync(() => intake.end(Cause.done())))
        )
    )
    yield* intake.run.pipe(
      Effect.catch((failure) => Effect.sync(() => intake.end(Effect.fail(subscribeError(failure))))),
      Effect.withTracerEnabled(false),
      Brokers.inRealTime,
      Effect.forkScoped
    )
    return Stream.fromPull(Effect.succeed(intake.next))
  })

  return EventSubscriber.EventSubscriber.of({ subscribe: (wanted) => scoped(subscribe(wanted)) })
})

const makePublisher = Effect.fnUntraced(
  function*(options: PublisherOptions): Effect.fn.Return<EventPublisher.Publisher, RedisError, Scope.Scope> {
    const connection = yield* makeConnection(options)
    yield* check(connection, options)
    return yield* Brokers.makePublisher(options, sender(connection, options))
  }
)

/**
 * Layer of a publisher.
 *
 * **Details**
 *
 * Building it connects, and fails with `RedisError` where that does not work or the key holds something else. After that units never wait for
 * the server under the `open` policy: events wait in a buffer of `capacity` while the server is away or out of memory, and are stored when that
 * has passed. What the server refuses for good is a `PublishError` with the reason `Rejected` under `closed`, and counted and logged under
 * `open`.
 *
 * Events are stored in batches, so one publisher does the work of many; there is no need for `buffered` in front of it, which would publish one
 * after the other.
 *
 * @category layers
 * @since 0.1.0
 */
export const layerPublisher = (
  options: PublisherOptions = {}
): Layer.Layer<EventPublisher.EventPublisher, RedisError> =>
  Layer.effect(EventPublisher.EventPublisher, makePublisher(options))

/**
 * Layer of a subscriber. It has one connection, and each subscription one of its own to wait on.
 *
 * **Details**
 *
 * A subscriber with a name is a member of the consumer group of that name, one without a name reads the stream for itself and leaves no trace
 * on the server. `types`, `domains` and `units` are sorted out here.
 *
 * With `maxInFlight: 1` one event at a time is under way to a group, whatever the number of its members, so order holds when a member
 * dies and when an event is delivered again; the others stand by. With more, each member has up to as many, and what is
 * delivered again comes behind later events.
 *
 * What a member that is gone has not acknowledged goes to another one after `ackTimeout`; what a member gives back at the end of its scope, at
 * once. Positions are ids of entries. `missed` counts events that were trimmed before the reader had read them, or between their delivery
 * and their acknowledgement. For a reader that began at a time or a position the number is known from when it has first come to the end of
 * the stream, or to a gap: where that position itself, or what the reader has read last, was trimmed, `missed` is 1 for all that may have
 * followed it. Of what was before a time and is trimmed nothing is known. An entry that is no event, or one of a newer version, is passed
 * over, which is logged.
 *
 * An event that is given back waits for its `backoff`, and keeps its room meanwhile: with `maxInFlight: 1` all that follows it waits, too. How
 * long it has waited is forgotten when its subscriber ends. Attempts go on for good, as nothing is parked here: `maxAttempts` is warned of. A
 * handler that puts aside what it cannot handle, and succeeds, lets the others go on. What is not taken within `ackTimeout` goes to whoever
 * claims it first, as its next attempt, and not to a handler as the old one.
 *
 * Where the group is gone, as after a server came back without its data, the Stream fails with a `SubscribeError` of which `retryable` is true.
 *
 * @category layers
 * @since 0.1.0
 */
export const layerSubscriber = (
  options: SubscriberOptions = {}
): Layer.Layer<EventSubscriber.EventSubscriber, RedisError> =>
  Layer.effect(EventSubscriber.EventSubscriber, makeSubscriber(options))

/**
 * Layer of both ends.
 *
 * **Example** (Units that publish to Redis, and a consumer)
 *
 * ```ts
 * const layer = Redis.layer({ url: "redis://redis.internal", key: "events", maxLength: 5_000_000 })
 *
 * const billing = EventSubscriber.consume({ consumer: "billing", types: ["execution_completed"] }, (event) => charge(event))
 * ```
 *
 * @category layers
 * @since 0.1.0
 */
export const layer = (
  options: Options = {}
): Layer.Layer<EventPublisher.EventPublisher | EventSubscriber.EventSubscriber, RedisError> =>
  Layer.merge(layerPublisher(options), layerSubscriber(options))

/**
 * Layer of both ends, with options from `Config`.
 *
 * **Example** (The address from the environment)
 *
 * ```ts
 * const layer = Redis.layerConfig({ url: Config.String("REDIS_URL") })
 * ```
 *
 * @category layers
 * @since 0.1.0
 */
export const layerConfig = (
  options: Config.Wrap<Options>
): Layer.Layer<EventPublisher.EventPublisher | EventSubscriber.EventSubscriber, RedisError | Config.ConfigError> =>
  Layer.unwrap(Effect.map(Config.unwrap(options), layer))
