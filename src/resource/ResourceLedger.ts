/**
 * The ledger of slots: who was promised how much of the host, in SQL, and what there is left to promise.
 *
 * @since 0.1.0
 */
import * as Clock from "effect/Clock"
import * as Context from "effect/Context"
import * as Deferred from "effect/Deferred"
import * as Duration from "effect/Duration"
import * as Effect from "effect/Effect"
import * as Exit from "effect/Exit"
import * as Layer from "effect/Layer"
import * as Predicate from "effect/Predicate"
import * as Random from "effect/Random"
import * as Schema from "effect/Schema"
import * as Migrator from "effect/sql/Migrator"
import * as SqlClient from "effect/sql/SqlClient"
import type * as SqlError from "effect/sql/SqlError"
import * as Host from "../backends/Host.ts"
import { uuidV7 } from "../internal/ids.ts"
import * as ProcessIdentity from "../internal/processIdentity.ts"
import * as Budgeting from "./Budgeting.ts"
import { ResourceInsufficient, ResourcePressureHigh, SlotNotFound } from "./Errors.ts"
import { GpuCount } from "./GpuCount.ts"
import {
  type Allocation,
  type Budget,
  type PoolName,
  type Pressure,
  type Reason,
  Slot,
  SlotId,
  type SlotStatus,
  type SlotType
} from "./Resource.ts"

/**
 * Tells how many bytes of memory the workloads of slots use, by the ids of those for which that is known. The default knows it of none;
 * whoever runs workloads provides its own.
 *
 * **Details**
 *
 * What a slot has and its workload does not use yet is then kept from other slots, although the host shows it as available.
 *
 * @category references
 * @since 0.1.0
 */
export const SlotUsage: Context.Reference<Effect.Effect<ReadonlyMap<string, number>>> = Context.Reference<
  Effect.Effect<ReadonlyMap<string, number>>
>("effect-units/resource/SlotUsage", { defaultValue: () => Effect.succeed(new Map()) })

/**
 * The ledger could not be read or written. A retry can help where `retryable` says so.
 *
 * @category errors
 * @since 0.1.0
 */
export class ResourceLedgerError
  extends Schema.TaggedError<ResourceLedgerError>("effect-units/resource/ResourceLedgerError")(
    "ResourceLedgerError",
    { operation: Schema.String, retryable: Schema.Boolean, cause: Schema.Defect() }
  )
{
  override get message(): string {
    const detail = Predicate.hasProperty(this.cause, "message") ? String(this.cause.message) : "no reason is known"
    return `The ledger of slots could not be used to ${this.operation}: ${detail}. Check the database and its disk`
  }
}

/**
 * What is asked of the ledger.
 *
 * @category models
 * @since 0.1.0
 */
export type Request = Pick<Slot, "name" | "type" | "memory_limit" | "gpu_fraction" | "priority">

/**
 * A slot that was given, and those that were taken away for it, the one that went first at the front.
 *
 * @category models
 * @since 0.1.0
 */
export interface Grant {
  readonly slot: Slot
  readonly preempted: ReadonlyArray<SlotId>
}

/**
 * What can be changed in a slot.
 *
 * @category models
 * @since 0.1.0
 */
export interface Change {
  readonly memory_limit?: number | undefined
  readonly status?: SlotStatus | undefined
}

/**
 * A status that does not follow on the one that a slot has: one that was taken away can only become active again. A retry does not help.
 *
 * @category errors
 * @since 0.1.0
 */
export class InvalidTransition
  extends Schema.TaggedError<InvalidTransition>("effect-units/resource/InvalidTransition")("InvalidTransition", {
    from: Schema.String,
    to: Schema.String
  })
{
  override get message(): string {
    return `A slot that is ${this.from} cannot become ${this.to}. Make it active first`
  }
}

/**
 * The host and its slots at one moment. `entered` is true where the pressure was another at the last look from this process.
 *
 * @category models
 * @since 0.1.0
 */
export interface Status {
  readonly memory: Host.Capacity
  readonly storage: Host.Capacity
  readonly slots: ReadonlyArray<Slot>
  readonly pressure: Pressure
  readonly entered: boolean
}

/**
 * Promises slots, and keeps account of them. Each method is atomic, also against other processes that share the database: no two of
 * them together promise more than there is.
 *
 * **Details**
 *
 * - `allocate` gives a slot where it fits in its pool, in what the host has available, and in its GPUs; where it does not, it takes
 *   away slots of lower priority, but for those of type `system_service`: the lowest priority first, of the same priority the oldest, and
 *   no more of them than needed. It takes away all that it needs, or nothing.
 * - `canAllocate` says what `allocate` would do. Without `type` it tells whether a slot of any type would be given.
 * - `release` gives what the slot was. `update` makes all of a change or nothing; a change to what is already there is none.
 * - What is passed as `committed` runs once a change is in the database, and whatever comes in between: an interruption that comes
 *   earlier leaves nothing, one that comes later is too late.
 * - Slots and allocations go by creation, then id. There are 10,000 at most.
 *
 * @category services
 * @since 0.1.0
 */
export class ResourceLedger extends Context.Service<ResourceLedger, {
  readonly allocate: <R = never>(
    request: Request,
    committed?: (grant: Grant) => Effect.Effect<void, never, R>
  ) => Effect.Effect<
    Grant,
    ResourceInsufficient | ResourcePressureHigh | Host.HostError | ResourceLedgerError,
    R
  >
  readonly canAllocate: (request: {
    readonly type?: SlotType | undefined
    readonly memory_limit: number
    readonly gpu_fraction: number
    readonly priority: number
  }) => Effect.Effect<
    { readonly can_allocate: boolean; readonly reason?: Reason },
    Host.HostError | ResourceLedgerError
  >
  readonly release: <R = never>(
    id: string,
    committed?: (slot: Slot) => Effect.Effect<void, never, R>
  ) => Effect.Effect<Slot, SlotNotFound | ResourceLedgerError, R>
  readonly update: (
    id: string,
    change: Change
  ) => Effect.Effect<
    Slot,
    SlotNotFound | ResourceInsufficient | InvalidTransition | Host.HostError | ResourceLedgerError
  >
  readonly status: Effect.Effect<Status, Host.HostError | ResourceLedgerError>
  readonly budget: Effect.Effect<Budget, Host.HostError | ResourceLedgerError>
  readonly allocations: (filter: {
    readonly slot_id?: string | undefined
    readonly type?: SlotType | undefined
  }) => Effect.Effect<ReadonlyArray<Allocation>, ResourceLedgerError>
}>()("effect-units/resource/ResourceLedger") {}

/**
 * Settings of the ledger.
 *
 * @category models
 * @since 0.1.0
 */
export interface Options extends Budgeting.Settings {
  /** A folder on the file system whose storage is reported, such as that of the models. It has to be there. */
  readonly directory: string
  /**
   * Names the host whose memory this is. Processes of one host share its ledger; hosts that share a database need a name each.
   * Default `local`.
   */
  readonly host?: string | undefined
  /**
   * For how long a process counts as running that cannot be seen from here, as in another container, since it last said so. Default
   * 30 seconds.
   */
  readonly lease?: Duration.Input | undefined
}

const migrate = Migrator.make({})({
  table: "effect_units_resource_migrations",
  loader: Migrator.fromRecord({
    "1_ledger": Effect.gen(function*() {
      const sql = yield* SqlClient.SqlClient
      // The row of a host is locked by whoever changes its slots, and counts them.
      yield* sql`CREATE TABLE effect_units_resource_hosts (host TEXT PRIMARY KEY, last_position BIGINT NOT NULL)`
      yield* sql`CREATE TABLE effect_units_resource_owners (
        owner TEXT PRIMARY KEY,
        host TEXT NOT NULL,
        process TEXT,
        lease_until BIGINT NOT NULL
      )`
      yield* sql`CREATE TABLE effect_units_resource_slots (
        id TEXT PRIMARY KEY,
        host TEXT NOT NULL,
        position BIGINT NOT NULL,
        name TEXT NOT NULL,
        type TEXT NOT NULL,
        memory_limit BIGINT NOT NULL,
        gpu_fraction DOUBLE PRECISION NOT NULL,
        gpu_parts BIGINT NOT NULL,
        priority INTEGER NOT NULL,
        status TEXT NOT NULL,
        owner TEXT NOT NULL,
        created_at BIGINT NOT NULL,
        updated_at BIGINT NOT NULL
      )`
      yield* sql`CREATE INDEX effect_units_resource_slots_order ON effect_units_resource_slots (host, created_at, id)`
      // All that the sums need, so that they read no row.
      yield* sql`CREATE INDEX effect_units_resource_slots_books
        ON effect_units_resource_slots (host, type, status, memory_limit, gpu_parts)`
    })
  })
})

// PostgreSQL gives 64-bit integers as bigint.
type Integer = number | bigint
const Integer = Schema.Union([Schema.Finite, Schema.BigInt])

/** Not every database takes every text as it is. */
const Name = Schema.fromJsonString(Slot.fields.name)

const Row = Schema.Struct({
  ...Slot.fields,
  name: Name,
  memory_limit: Integer,
  priority: Integer,
  created_at: Integer,
  updated_at: Integer
})

const decodeRow = Schema.decodeUnknownEffect(Row)
const encodeName = Schema.encodeEffect(Name)
const isSlotId = Schema.is(SlotId)

const toSlot = (row: unknown): Effect.Effect<Slot, Schema.SchemaError> =>
  Effect.map(decodeRow(row), ({ created_at, memory_limit, priority, updated_at, ...rest }) => ({
    ...rest,
    memory_limit: Number(memory_limit),
    priority: Number(priority),
    created_at: Number(created_at),
    updated_at: Number(updated_at)
  }))

const unixSeconds = Effect.map(Clock.currentTimeMillis, (millis) => Math.floor(millis / 1000))

const newId = Effect.map(
  Random.nextIntBetween(0, 2 ** 32, { halfOpen: true }),
  (n) => SlotId.make(`slot-${n.toString(16).padStart(8, "0")}`)
)

/** How often an id is drawn that may be taken. */
const attempts = 8

const partsOf = (fraction: number): number => Math.round(fraction * Budgeting.gpuParts)

const demandOf = (
  { gpu_fraction, memory_limit, type }: Pick<Slot, "gpu_fraction" | "memory_limit" | "type">
): Budgeting.Demand => ({ pool: Budgeting.poolOf[type], bytes: memory_limit, gpu: partsOf(gpu_fraction) })

/** Why a demand does not fit, the most telling reason first. */
const refusalOf = (
  demand: Budgeting.Demand,
  supply: Budgeting.Supply,
  books: Budgeting.Books
): ResourceInsufficient => {
  const { bytes, gpu, pool } = demand
  const room = Budgeting.roomFor(pool, supply, books)
  const memory = Math.min(room.pool, room.host)
  return bytes > memory
    ? new ResourceInsufficient({
      reason: room.pool <= room.host ? "pool exhausted" : "insufficient memory",
      pool,
      requested: bytes,
      available: Math.max(0, memory),
      retryable: bytes <= supply.pools[pool]
    })
    : new ResourceInsufficient({
      reason: "insufficient gpu",
      pool,
      requested: gpu / Budgeting.gpuParts,
      available: Math.max(0, room.gpu) / Budgeting.gpuParts,
      retryable: gpu <= supply.gpus * Budgeting.gpuParts
    })
}

/** What a request is weighed by. */
interface Scales {
  readonly supply: Budgeting.Supply
  readonly books: Budgeting.Books
  /** Bytes that the workloads of slots use, where that is known. */
  readonly used: ReadonlyMap<string, number>
}

/** The answer for a slot of any of several types: the one that costs others least, or was closest to being given. */
const bestOf = (
  answers: ReadonlyArray<
    { readonly preempted: ReadonlyArray<SlotId> } | ResourceInsufficient | ResourcePressureHigh
  >
): { readonly can_allocate: boolean; readonly reason?: Reason } => {
  const given = answers.filter((answer) => "preempted" in answer)
  if (given.some(({ preempted }) => preempted.length === 0)) return { can_allocate: true }
  if (given.length > 0) return { can_allocate: true, reason: "would require preemption" }
  const refused = answers.filter((answer) => answer instanceof ResourceInsufficient)
    .toSorted((one, other) => other.available - one.available)
  return { can_allocate: false, reason: refused[0]?.reason ?? "pressure critical" }
}

const failing = (operation: string) => (cause: SqlError.SqlError | Schema.SchemaError): ResourceLedgerError =>
  new ResourceLedgerError({ operation, cause, retryable: cause._tag === "SqlError" && cause.isRetryable })

/**
 * One reading at a time, for all who ask for it meanwhile. It goes on in a fiber of its own, as whoever asked first may be
 * interrupted. (`Effect.cachedWithTTL` keeps something for each call in a fiber, until that fiber ends.)
 */
const shared = <A, E>(read: Effect.Effect<A, E>): Effect.Effect<A, E> => {
  let underWay: Deferred.Deferred<A, E> | undefined
  return Effect.uninterruptibleMask((restore) => {
    if (underWay !== undefined) return restore(Deferred.await(underWay))
    const result = underWay = Deferred.makeUnsafe<A, E>()
    const reading = Effect.onExit(read, (exit) => {
      underWay = undefined
      return Deferred.done(result, exit)
    })
    return Effect.andThen(Effect.forkDetach(reading), restore(Deferred.await(result)))
  })
}

const make = Effect.fnUntraced(function*(options: Options) {
  // The ledger's columns have the names that they have, whatever the application transforms its own to.
  const sql = (yield* SqlClient.SqlClient).withoutTransforms()
  yield* Effect.provideService(migrate, SqlClient.SqlClient, sql)
  const { memory: readMemory, storage } = yield* Host.Host
  const memory = shared(readMemory)
  const clock = yield* Clock.Clock
  const host = options.host ?? "local"
  const lease = Duration.toMillis(options.lease ?? "30 seconds")

  /** Runs a change while no other process and no other fiber makes one, and gives it the next number. */
  const locked = <A, E, R>(change: (position: number) => Effect.Effect<A, E, R>) =>
    sql.withTransaction(Effect.flatMap(
      sql<{ last_position: Integer }>`
        INSERT INTO effect_units_resource_hosts ${sql.insert({ host, last_position: 1 })}
        ON CONFLICT (host) DO UPDATE SET last_position = effect_units_resource_hosts.last_position + 1
        RETURNING last_position`,
      ([row]) => change(Number(row?.last_position))
    ))

  /** The same, telling of it as soon as it is committed, even where the fiber is interrupted just then. */
  const telling = <A, E, R, R2>(
    change: (position: number) => Effect.Effect<A, E, R>,
    committed: (value: A) => Effect.Effect<void, never, R2>
  ) =>
    Effect.uninterruptibleMask((restore) => {
      let done: { readonly value: A } | undefined
      const noted = (value: A) =>
        sql.afterCommit(Effect.sync(() => {
          done = { value }
        }))
      return Effect.flatMap(
        Effect.exit(restore(locked((position) => Effect.tap(change(position), noted)))),
        (exit) => {
          const value = Exit.isSuccess(exit) ? exit : done
          return value === undefined ? exit : Effect.andThen(committed(value.value), exit)
        }
      )
    })

  // Names this ledger's process, so that another one can tell when the owner of a slot is gone.
  const owner = uuidV7(clock.currentTimeMillisUnsafe())
  const process = ProcessIdentity.own() ?? null
  let isOwner = false

  // Written anew each time: whoever took this process for gone has deleted it.
  const renew = Effect.flatMap(
    Clock.currentTimeMillis,
    (now) =>
      sql`INSERT INTO effect_units_resource_owners ${sql.insert({ owner, host, process, lease_until: now + lease })}
      ON CONFLICT (owner) DO UPDATE SET lease_until = excluded.lease_until`
  )

  const own = Effect.suspend(() =>
    isOwner ? Effect.void : Effect.andThen(
      renew,
      sql.afterCommit(Effect.sync(() => {
        isOwner = true
      }))
    )
  )

  const goneOwners = Effect.gen(function*() {
    const now = yield* Clock.currentTimeMillis
    const owners = yield* sql<{ owner: string; process: string | null; lease_until: Integer }>`
      SELECT owner, process, lease_until FROM effect_units_resource_owners WHERE host = ${host}`
    return owners.flatMap((row) => {
      const seen = row.process === null ? undefined : ProcessIdentity.isAlive(row.process)
      return row.owner === owner || (seen ?? Number(row.lease_until) > now) ? [] : [row.owner]
    })
  })

  /** Makes idle what was active in processes that are gone. */
  const settleOrphans = Effect.gen(function*() {
    // Looked up first without the lock: mostly there is nothing to do.
    if ((yield* goneOwners).length === 0) return
    yield* locked(() =>
      Effect.gen(function*() {
        const gone = yield* goneOwners
        if (gone.length === 0) return
        const updated_at = yield* unixSeconds
        yield* sql`DELETE FROM effect_units_resource_owners WHERE ${sql.in("owner", gone)}`
        yield* sql`UPDATE effect_units_resource_slots SET ${sql.update({ status: "idle", updated_at })}
          WHERE host = ${host} AND status = 'active'
            AND owner NOT IN (SELECT owner FROM effect_units_resource_owners WHERE host = ${host})`
      })
    )
  })

  /** What there is, as it is now. GPUs are looked for where they are asked for. */
  const supplyFor = Effect.fnUntraced(function*(gpu_fraction: number) {
    const now = yield* memory
    const gpus = gpu_fraction > 0 ? yield* (yield* GpuCount) : 0
    return { memory: now, gpus, ...Budgeting.divide(now.total, options) }
  })

  const usage = Effect.flatten(SlotUsage)

  const counted = sql`host = ${host} AND status <> 'preempted'`

  /** What slots have by now. */
  const readBooks = Effect.fnUntraced(function*(used: ReadonlyMap<string, number>) {
    const sums = yield* sql<{ type: SlotType; slots: Integer; bytes: Integer; gpu: Integer }>`
      SELECT type, COUNT(*) AS slots,
        CAST(SUM(CASE WHEN status = 'preempted' THEN 0 ELSE memory_limit END) AS BIGINT) AS bytes,
        CAST(SUM(CASE WHEN status = 'preempted' THEN 0 ELSE gpu_parts END) AS BIGINT) AS gpu
      FROM effect_units_resource_slots WHERE host = ${host} GROUP BY type`
    const bytes: Record<PoolName, number> = { inference: 0, container: 0, system: 0 }
    let [slots, gpu, unused] = [0, 0, 0]
    for (const sum of sums) {
      bytes[Budgeting.poolOf[sum.type]] = Number(sum.bytes)
      slots += Number(sum.slots)
      gpu += Number(sum.gpu)
    }
    // Most hosts do not know it of any slot, and need not look at each.
    const limits = used.size === 0 ? [] : yield* sql<{ id: string; memory_limit: Integer }>`
      SELECT id, memory_limit FROM effect_units_resource_slots WHERE ${counted}`
    for (const { id, memory_limit } of limits) {
      const limit = Number(memory_limit)
      unused += Math.max(0, limit - (used.get(id) ?? limit))
    }
    return { slots, bytes, gpu, unused }
  })

  /** The one rule by which slots are given: which others are taken away for a new one, mostly none. Fails where it cannot be given. */
  const judge = Effect.fnUntraced(function*(request: Omit<Request, "name">, { books, supply, used }: Scales) {
    const { priority } = request
    const { memory } = supply
    if (priority < Budgeting.criticalPriority && Budgeting.pressureOf(memory) === "critical") {
      const { total, used } = memory
      const priority_needed = Budgeting.criticalPriority
      return yield* new ResourcePressureHigh({ used, total, priority, priority_needed })
    }
    const demand = demandOf(request)
    const { pool } = demand
    if (books.slots >= Budgeting.maxSlots) {
      const reason = "too many slots"
      return yield* new ResourceInsufficient({ reason, pool, requested: 1, available: 0, retryable: true })
    }
    const missing = Budgeting.missingFor(demand, Budgeting.roomFor(pool, supply, books))
    if (missing === undefined) return []
    const rows = yield* sql<{ id: SlotId; type: SlotType; memory_limit: Integer; gpu_parts: Integer }>`
      SELECT id, type, memory_limit, gpu_parts FROM effect_units_resource_slots
      WHERE ${counted} AND type <> 'system_service' AND priority < ${priority}
      ORDER BY priority, position`
    const candidates = rows.map(({ gpu_parts, id, memory_limit, type }) => ({
      id,
      pool: Budgeting.poolOf[type],
      bytes: Number(memory_limit),
      gpu: Number(gpu_parts),
      used: used.get(id)
    }))
    const chosen = Budgeting.choose(candidates, pool, missing)
    return chosen === undefined ? yield* refusalOf(demand, supply, books) : chosen.map(({ id }) => id)
  })

  const insert = Effect.fnUntraced(function*(request: Request, position: number) {
    const now = yield* unixSeconds
    const name = yield* encodeName(request.name)
    for (let attempt = 0; attempt < attempts; attempt++) {
      const slot: Slot = { id: yield* newId, ...request, status: "active", created_at: now, updated_at: now }
      const row = { ...slot, name, host, position, gpu_parts: partsOf(request.gpu_fraction), owner }
      const inserted = yield* sql`INSERT INTO effect_units_resource_slots ${sql.insert(row)}
        ON CONFLICT (id) DO NOTHING RETURNING id`
      if (inserted.length > 0) return slot
    }
    const cause = new Error(`Each of ${attempts} ids that were drawn is taken`)
    return yield* new ResourceLedgerError({ operation: "give a slot", cause, retryable: true })
  })

  const find = Effect.fnUntraced(function*(id: string) {
    const [row] = isSlotId(id)
      ? yield* sql`SELECT * FROM effect_units_resource_slots WHERE host = ${host} AND id = ${id}`
      : []
    return row === undefined ? yield* new SlotNotFound({ slot_id: id }) : yield* toSlot(row)
  })

  const list = Effect.fnUntraced(
    function*(filter: { readonly slot_id?: string | undefined; readonly type?: SlotType | undefined }) {
      // Not every database compares with every text.
      if (filter.slot_id !== undefined && !isSlotId(filter.slot_id)) return []
      const rows = yield* sql`SELECT * FROM effect_units_resource_slots WHERE ${
        sql.and([
          sql`host = ${host}`,
          ...(filter.slot_id === undefined ? [] : [sql`id = ${filter.slot_id}`]),
          ...(filter.type === undefined ? [] : [sql`type = ${filter.type}`])
        ])
      } ORDER BY created_at, id`
      return yield* Effect.forEach(rows, toSlot)
    }
  )

  yield* settleOrphans
  yield* Effect.suspend(() => isOwner ? Effect.asVoid(renew) : Effect.void).pipe(
    Effect.andThen(settleOrphans),
    Effect.catch((error) => Effect.logWarning("The ledger of slots could not look after its owners", error)),
    Effect.delay(lease / 3),
    Effect.forever,
    Effect.forkScoped
  )
  /** The pressure at the last look. */
  let pressureSeen: Pressure = "low"

  return ResourceLedger.of({
    allocate: Effect.fnUntraced(function*(request, committed = () => Effect.void) {
      const supply = yield* supplyFor(request.gpu_fraction)
      const used = yield* usage
      return yield* telling(
        Effect.fnUntraced(function*(position) {
          const preempted = yield* judge(request, { supply, used, books: yield* readBooks(used) })
          if (preempted.length > 0) {
            const updated_at = yield* unixSeconds
            yield* sql`UPDATE effect_units_resource_slots SET ${sql.update({ status: "preempted", updated_at })}
              WHERE ${sql.in("id", preempted)}`
          }
          yield* own
          return { slot: yield* insert(request, position), preempted }
        }),
        committed
      ).pipe(Effect.catchTag(["SqlError", "SchemaError"], (error) => failing("give a slot")(error)))
    }),
    canAllocate: Effect.fnUntraced(
      function*({ type, ...request }) {
        const used = yield* usage
        const scales = { used, supply: yield* supplyFor(request.gpu_fraction), books: yield* readBooks(used) }
        const answers = yield* Effect.forEach(
          type === undefined ? Budgeting.types : [type],
          (type) =>
            judge({ ...request, type }, scales).pipe(
              Effect.map((preempted) => ({ preempted })),
              Effect.catchTags({
                ResourceInsufficient: (refusal) => Effect.succeed(refusal),
                ResourcePressureHigh: (refusal) => Effect.succeed(refusal)
              })
            )
        )
        return bestOf(answers)
      },
      Effect.catchTag("SqlError", (error) => failing("tell what fits")(error))
    ),
    release: (id, committed = () => Effect.void) =>
      telling(
        () => Effect.tap(find(id), () => sql`DELETE FROM effect_units_resource_slots WHERE id = ${id}`),
        committed
      ).pipe(Effect.catchTag(["SqlError", "SchemaError"], (error) => failing("release a slot")(error))),
    update: Effect.fnUntraced(
      function*(id, change) {
        const slot = yield* find(id)
        const { memory_limit, status } = {
          memory_limit: change.memory_limit ?? slot.memory_limit,
          status: change.status ?? slot.status
        }
        if (memory_limit === slot.memory_limit && status === slot.status) return slot
        const comesBack = slot.status === "preempted" && status !== "preempted"
        if (comesBack && status === "idle") return yield* new InvalidTransition({ from: slot.status, to: status })
        const more = status === "preempted" ? 0 : comesBack ? memory_limit : memory_limit - slot.memory_limit
        if (more > 0) {
          const gpu_fraction = comesBack ? slot.gpu_fraction : 0
          const supply = yield* supplyFor(gpu_fraction)
          const books = yield* readBooks(yield* usage)
          const demand = demandOf({ type: slot.type, memory_limit: more, gpu_fraction })
          if (Budgeting.missingFor(demand, Budgeting.roomFor(demand.pool, supply, books)) !== undefined) {
            return yield* refusalOf(demand, supply, books)
          }
        }
        const changed: Slot = { ...slot, memory_limit, status, updated_at: yield* unixSeconds }
        if (status === "active") yield* own
        yield* sql`UPDATE effect_units_resource_slots SET ${
          sql.update({
            memory_limit,
            status,
            updated_at: changed.updated_at,
            // Whoever makes a slot active owns it from then on.
            ...(status === "active" && status !== slot.status ? { owner } : {})
          })
        } WHERE id = ${id}`
        return changed
      },
      (update) => locked(() => update),
      Effect.catchTag(["SqlError", "SchemaError"], (error) => failing("change a slot")(error))
    ),
    status: Effect.gen(function*() {
      const used = yield* memory
      const stored = yield* storage(options.directory)
      const slots = yield* Effect.mapError(list({}), failing("list slots"))
      const pressure = Budgeting.pressureOf(used)
      const entered = pressure !== pressureSeen
      pressureSeen = pressure
      return { memory: used, storage: stored, slots, pressure, entered }
    }),
    budget: Effect.gen(function*() {
      const { memory: { total }, pools, reserved } = yield* supplyFor(0)
      const { bytes } = yield* Effect.mapError(readBooks(new Map()), failing("sum up slots"))
      const pool = <Name extends PoolName>(name: Name) => ({
        name,
        total: pools[name],
        reserved: bytes[name],
        available: Math.max(0, pools[name] - bytes[name])
      })
      return {
        total,
        reserved,
        pools: { inference: pool("inference"), container: pool("container"), system: pool("system") }
      }
    }),
    allocations: Effect.fnUntraced(function*(filter) {
      const slots = yield* Effect.mapError(list(filter), failing("list slots"))
      const used = yield* usage
      return slots.map(({ gpu_fraction, id, memory_limit, name, priority, status, type }) => ({
        slot_id: id,
        name,
        type,
        memory_used: used.get(id) ?? memory_limit,
        gpu_fraction,
        priority,
        status
      }))
    })
  })
})

/**
 * Layer of the ledger in the SQL database of the application. It makes its tables, all of them named `effect_units_resource_...`.
 *
 * **Details**
 *
 * A slot outlives its process. Slots that were active in a process that is gone become idle when a ledger of the same host is built,
 * and within a third of the lease from then on: they keep what they have until they are released.
 *
 * Building it fails with `ResourceLedgerError` where the tables cannot be made.
 *
 * @category layers
 * @since 0.1.0
 */
export const layer = (
  options: Options
): Layer.Layer<ResourceLedger, ResourceLedgerError, SqlClient.SqlClient | Host.Host> =>
  Layer.effect(
    ResourceLedger,
    make(options).pipe(
      Effect.catchTag(["SqlError", "MigrationError"], (cause) =>
        new ResourceLedgerError({
          operation: "set it up",
          cause,
          retryable: cause._tag === "SqlError" && cause.isRetryable
        }))
    )
  )
