/**
 * Work in shards that several processes share: each shard is one process's at a time, and what it writes is fenced.
 *
 * Each process counts up a number of its own in the database, its beat. Whoever sees that number stand still for as long as a lease, by
 * its own clock, takes the process for gone; so the clocks of different machines are never compared. A shard has a token that grows
 * with each taking: what its last holder writes under an older one is refused, however late it comes.
 *
 * - `effect_units_relays`: one row per name, with the number of its shards.
 * - `effect_units_relay_members`: one row per process that takes part.
 * - `effect_units_relay_shards`: one row per shard, with its holder and its token.
 *
 * @since 0.1.0
 */
import * as Clock from "effect/Clock"
import * as Duration from "effect/Duration"
import * as Effect from "effect/Effect"
import * as Fiber from "effect/Fiber"
import * as Latch from "effect/Latch"
import * as Schema from "effect/Schema"
import * as Scope from "effect/Scope"
import { type EventStoreError, fromSqlError, type Store } from "../EventStore.ts"
import * as Closing from "./closing.ts"
import { uuidV7 } from "./ids.ts"
import * as ProcessIdentity from "./processIdentity.ts"

// Integer columns come as numbers from SQLite and as bigints from PostgreSQL.
type Integer = number | bigint

/**
 * The tables, as SQL.
 *
 * @internal
 */
export const tables: ReadonlyArray<string> = [
  "CREATE TABLE effect_units_relays (relay TEXT PRIMARY KEY, shards INTEGER NOT NULL)",
  `CREATE TABLE effect_units_relay_members (
    relay TEXT NOT NULL,
    member TEXT NOT NULL,
    process TEXT,
    beat BIGINT NOT NULL,
    PRIMARY KEY (relay, member)
  )`,
  `CREATE TABLE effect_units_relay_shards (
    relay TEXT NOT NULL,
    shard INTEGER NOT NULL,
    member TEXT,
    token BIGINT NOT NULL,
    relayed BIGINT NOT NULL,
    refused BIGINT NOT NULL,
    PRIMARY KEY (relay, shard)
  )`
]

/**
 * The shard is another process's by now.
 *
 * @internal
 */
export class Lost extends Schema.TaggedError<Lost>("effect-units/internal/shardLeases/Lost")("Lost", {
  shard: Schema.Int
}) {}

/**
 * A shard that this process holds.
 *
 * @internal
 */
export interface Lease {
  readonly shard: number
  readonly token: number
  /** False once another process may have taken the shard. */
  readonly isFresh: () => boolean
  /** Opens when the shard is to be given back. */
  readonly stop: Latch.Latch
  readonly isStopping: () => boolean
  /** Runs an effect in a transaction that commits only while the shard is this process's. */
  readonly fenced: <A, R>(effect: Effect.Effect<A, EventStoreError, R>) => Effect.Effect<A, Lost | EventStoreError, R>
}

/**
 * Says that a shard is another process's by now.
 *
 * @internal
 */
export const lostMessage = (relay: string, shard: number): string =>
  `The relay "${relay}" has lost shard ${shard} to another process`

/** @internal */
export interface Options {
  readonly name: string
  readonly lease: Duration.Duration
  /** How long the end of the scope, or another process that wants its share, waits for the work on a shard. */
  readonly patience: Duration.Duration
  /** The work on a shard: until it is to stop, or has lost the shard. */
  readonly work: (lease: Lease) => Effect.Effect<void, Lost>
  /** Told after each beat. */
  readonly onBeat: (held: number) => Effect.Effect<void>
}

/** A shard at work. */
class Held {
  readonly token: number
  readonly stop = Latch.makeUnsafe(false)
  isStopping = false
  fiber: Fiber.Fiber<void, Lost> | undefined

  constructor(token: number) {
    this.token = token
  }
}

interface MemberRow {
  readonly member: string
  readonly process: string | null
  readonly beat: Integer
}

interface ShardRow {
  readonly shard: Integer
  readonly member: string | null
  readonly token: Integer
}

/**
 * Takes part until the scope closes, and works on its share of the shards.
 *
 * @internal
 */
export const make = Effect.fnUntraced(function*(
  store: Store,
  options: Options
): Effect.fn.Return<void, EventStoreError, Scope.Scope> {
  const { name, work } = options
  const { sql } = store
  const clock = yield* Clock.Clock
  // Made before the finalizer below is added, and so closed after that has waited for the work to end.
  const workers = yield* Effect.acquireRelease(
    Scope.make("parallel"),
    (workers, exit) => Closing.attempt(Scope.close(workers, exit))
  )
  const lease = Duration.toMillis(options.lease)
  const member = uuidV7(clock.currentTimeMillisUnsafe())
  const process = ProcessIdentity.own() ?? null
  // A clock that is never set back.
  const now = (): number => Number(clock.monotonicTimeNanosUnsafe() / 1_000_000n)

  const held = new Map<number, Held>()
  /** The beats of the other members, and since when they have been what they are. */
  const seen = new Map<string, { readonly beat: number; readonly since: number }>()
  let freshUntil = -Infinity
  let closing = false

  const beat = Effect.suspend(() =>
    sql`INSERT INTO effect_units_relay_members ${sql.insert({ relay: name, member, process, beat: 1 })}
      ON CONFLICT (relay, member) DO UPDATE SET beat = effect_units_relay_members.beat + 1`
  )

  const isGone = ({ beat, member, process }: MemberRow): boolean => {
    const at = now()
    const known = seen.get(member)
    if (known === undefined || known.beat !== Number(beat)) seen.set(member, { beat: Number(beat), since: at })
    const stands = known !== undefined && known.beat === Number(beat) && at - known.since >= lease
    return stands || (process !== null && ProcessIdentity.isAlive(process) === false)
  }

  /** The members that are there, this one among them. What is gone is taken out, unless it beats after all. */
  const present = Effect.gen(function*() {
    const members = yield* sql<MemberRow>`
      SELECT member, process, beat FROM effect_units_relay_members WHERE relay = ${name} ORDER BY member`
    const there = new Set([member])
    for (const row of members) {
      if (row.member === member) continue
      if (!isGone(row)) {
        there.add(row.member)
        continue
      }
      const removed = yield* sql`DELETE FROM effect_units_relay_members
        WHERE relay = ${name} AND member = ${row.member} AND beat = ${row.beat} RETURNING member`
      if (removed.length === 0) there.add(row.member)
    }
    for (const known of seen.keys()) if (!members.some((row) => row.member === known)) seen.delete(known)
    return there
  })

  // A process that stands still within a transaction would keep its locks, and those who take over would wait for them.
  const limitIdle = sql.onDialectOrElse({
    pg: () =>
      Effect.asVoid(sql`SELECT set_config('idle_in_transaction_session_timeout', ${String(Math.ceil(lease))}, TRUE)`),
    orElse: () => Effect.void
  })

  const isMine = (shard: number, token: number) =>
    Effect.andThen(
      limitIdle,
      // Written, not read: the row stays locked until the transaction ends.
      sql`UPDATE effect_units_relay_shards SET token = token
        WHERE relay = ${name} AND shard = ${shard} AND token = ${token} AND member = ${member} RETURNING shard`
    )

  const giveBack = (shard: number, token: number): Effect.Effect<void> =>
    // Others take it when they miss the beat.
    Closing.attempt(sql`UPDATE effect_units_relay_shards SET member = NULL
      WHERE relay = ${name} AND shard = ${shard} AND token = ${token} AND member = ${member}`)

  const hold = Effect.fnUntraced(function*(shard: number, token: number) {
    const entry = new Held(token)
    const fenced: Lease["fenced"] = (effect) =>
      store.withTransaction(Effect.andThen(
        Effect.filterOrFail(
          Effect.mapError(isMine(shard, token), fromSqlError),
          (rows) => rows.length > 0,
          () => new Lost({ shard })
        ),
        effect
      ))
    held.set(shard, entry)
    const working = work({
      shard,
      token,
      fenced,
      stop: entry.stop,
      isFresh: () => now() < freshUntil,
      isStopping: () => entry.isStopping
    })
    // However it ends: nobody else would take what this process holds.
    const end = Effect.suspend(() => {
      if (held.get(shard) === entry) held.delete(shard)
      return giveBack(shard, token)
    })
    entry.fiber = yield* Effect.forkIn(Effect.ensuring(working, end), workers)
  })

  const take = Effect.fnUntraced(function*({ shard, token }: ShardRow) {
    const [taken] = yield* sql<{ token: Integer }>`
      UPDATE effect_units_relay_shards SET token = token + 1, member = ${member}
      WHERE relay = ${name} AND shard = ${shard} AND token = ${token} RETURNING token`
    if (taken !== undefined) yield* hold(Number(shard), Number(taken.token))
  })

  const letGo = (entry: Held): Effect.Effect<void> =>
    Effect.suspend(() => {
      entry.isStopping = true
      entry.stop.openUnsafe()
      const { fiber } = entry
      return fiber === undefined ? Effect.void : Effect.timeoutOrElse(Effect.asVoid(Fiber.await(fiber)), {
        duration: options.patience,
        orElse: () => Closing.attempt(Fiber.interrupt(fiber))
      })
    })

  const share = Effect.gen(function*() {
    // By the beginning: nobody has seen the new beat for longer than that.
    const begun = now()
    yield* beat
    const there = yield* present
    const rows = yield* sql<ShardRow>`
      SELECT shard, member, token FROM effect_units_relay_shards WHERE relay = ${name} ORDER BY shard`
    for (const row of rows) {
      const mine = held.get(Number(row.shard))
      if (mine?.fiber === undefined || mine.token === Number(row.token)) continue
      yield* Effect.logInfo(lostMessage(name, Number(row.shard)))
      yield* Fiber.interrupt(mine.fiber)
    }
    // What is still held has not been taken meanwhile.
    freshUntil = begun + lease
    const due = Math.ceil(rows.length / there.size)
    for (const entry of Array.from(held.values()).slice(due)) {
      if (!entry.isStopping) yield* Effect.forkIn(letGo(entry), workers)
    }
    for (const row of rows) {
      if (closing || held.size >= due) return
      const isFree = row.member === null || !there.has(row.member) || row.member === member
      if (isFree && !held.has(Number(row.shard))) yield* take(row)
    }
  })

  const turn = Effect.andThen(share, Effect.suspend(() => options.onBeat(held.size)))

  yield* Effect.addFinalizer(() =>
    Effect.gen(function*() {
      closing = true
      const ended = Effect.forEach(Array.from(held.values()), letGo, { concurrency: "unbounded", discard: true })
      // What is under way may take longer than a lease.
      const beating = Effect.suspend(() => {
        const begun = now()
        return Effect.map(beat, () => {
          // Not once it may have been taken.
          if (now() < freshUntil) freshUntil = begun + lease
        })
      })
      yield* Effect.raceFirst(ended, Effect.forever(Effect.delay(Effect.ignore(Closing.within(beating)), lease / 3)))
      yield* Closing.attempt(sql`DELETE FROM effect_units_relay_members WHERE relay = ${name} AND member = ${member}`)
    })
  )
  yield* Effect.mapError(turn, fromSqlError)
  let failing = false
  yield* turn.pipe(
    Effect.map(() => {
      failing = false
    }),
    // A defect too: without a beat others take what this process holds.
    Effect.catchCause((cause) => {
      const streak = failing
      failing = true
      return streak ? Effect.void : Effect.logWarning(`The relay "${name}" could not look after its lease`, cause)
    }),
    Effect.delay(lease / 3),
    Effect.forever,
    Closing.forkScoped
  )
})
