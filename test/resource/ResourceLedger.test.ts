import { assert, describe, it } from "@effect/vitest"
import {
  Cause,
  Context,
  Effect,
  Exit,
  Fiber,
  Layer,
  Queue,
  Random,
  Redacted,
  References,
  Schema,
  type Scope
} from "effect"
import { SqlClient } from "effect/sql"
import { TestClock } from "effect/testing"
import * as Postgres from "../../src/backends/Postgres.ts"
import type { EventPublisher } from "../../src/EventPublisher.ts"
import * as Resource from "../../src/resource/index.ts"
import { ResourceLedger } from "../../src/resource/ResourceLedger.ts"
import type * as ResourceLedgers from "../../src/resource/ResourceLedger.ts"
import * as Testing from "../../src/testing/index.ts"
import { start } from "../fixtures/childProcess.ts"
import { ownSchema } from "../fixtures/postgres.ts"
import { stress, withServer } from "../servers.ts"
import { GiB, layerLedger, layerMachine, type Machine, newMachine, sqlite, temporaryDirectory } from "./world.ts"

const slot = (memory_limit: number, more: Partial<Resource.Request> = {}): Resource.Request => ({
  name: "llama",
  type: "inference_native",
  memory_limit,
  gpu_fraction: 0,
  priority: 5,
  ...more
})

/** Fibers take turns after a few steps, also between two statements. */
const interleaved = Effect.provideService(References.MaxOpsBeforeYield, 7)

class OwnMachine extends Context.Service<OwnMachine, Machine>()("test/resource/OwnMachine") {}

/** Runs a test on a host of its own. */
const onMachine = <A, E, R>(effect: Effect.Effect<A, E, R>) =>
  Effect.suspend(() => {
    const machine = newMachine()
    return effect.pipe(
      Effect.provideService(OwnMachine, machine),
      Effect.provide(layerMachine(machine)),
      Effect.scoped
    )
  })

type Services = ResourceLedger | SqlClient.SqlClient

/** Opens ledgers over one database: each time it is run, one on a connection of its own, as each process has. */
type Open = (
  machine: Machine,
  options?: Partial<ResourceLedgers.Options>
) => Effect.Effect<Context.Context<Services>, unknown, Scope.Scope>

const suite = (databases: string, database: Effect.Effect<Open, unknown, Scope.Scope>) =>
  describe(databases, () => {
    /** One ledger on a host that tests change. */
    const opened = Effect.gen(function*() {
      const machine = yield* OwnMachine
      const open = yield* database
      const context = yield* open(machine)
      const ledger = Context.get(context, ResourceLedger)
      const take = (bytes: number, more?: Partial<Resource.Request>) =>
        Effect.map(ledger.allocate(slot(bytes, more)), ({ slot }) => slot.id)
      const statuses = Effect.map(ledger.allocations({}), (all) =>
        Object.fromEntries(all.map(({ slot_id, status }) => [slot_id, status])))
      const reserved = Effect.map(
        ledger.budget,
        ({ pools }) => [pools.inference.reserved, pools.container.reserved, pools.system.reserved]
      )
      return {
        machine,
        open,
        context,
        ledger,
        take,
        statuses,
        reserved,
        sql: Context.get(context, SqlClient.SqlClient)
      }
    })

    describe("a slot", () => {
      it.effect("comes back as it went in, in another process too, and is gone once released", () =>
        Effect.gen(function*() {
          const { ledger, machine, open } = yield* opened
          const other = Context.get(yield* open(machine), ResourceLedger)
          yield* TestClock.setTime(7_999)
          const name = "a \u0000 \uD800 \u{1F999}"
          const request = slot(18 * GiB, { name, type: "docker_container", gpu_fraction: 0.3, priority: 100 })
          const { preempted, slot: made } = yield* ledger.allocate(request)
          assert.deepStrictEqual(preempted, [])
          assert.match(made.id, /^slot-[0-9a-f]{8}$/)
          const whole = { ...request, id: made.id, status: "active", created_at: 7, updated_at: 7 } as const
          assert.deepStrictEqual(made, whole)
          assert.deepStrictEqual((yield* other.status).slots, [whole])
          assert.deepStrictEqual(yield* other.release(made.id), whole)
          assert.deepStrictEqual((yield* ledger.status).slots, [])
          assert.deepStrictEqual(
            yield* Effect.flip(ledger.release(made.id)),
            new Resource.SlotNotFound({ slot_id: made.id })
          )
        }).pipe(onMachine))

      it.effect("that is not there is not found, whatever its id", () =>
        Effect.gen(function*() {
          const { ledger, take } = yield* opened
          yield* take(1)
          for (
            const slot_id of ["slot-00000000", "'; DROP TABLE effect_units_resource_slots; --", "a\u0000", "\uD800"]
          ) {
            const missing = new Resource.SlotNotFound({ slot_id })
            assert.deepStrictEqual(yield* Effect.flip(ledger.release(slot_id)), missing)
            assert.deepStrictEqual(yield* Effect.flip(ledger.update(slot_id, { memory_limit: 1 })), missing)
            assert.deepStrictEqual(yield* ledger.allocations({ slot_id }), [])
          }
          assert.strictEqual((yield* ledger.allocations({})).length, 1)
        }).pipe(onMachine))

      it.effect("has an id that is drawn again when it is taken, and given up when always taken", () =>
        Effect.gen(function*() {
          const { take } = yield* opened
          const ids = yield* Effect.forEach([1, 2, 3], () =>
            Random.withSeed(take(1), "seed"))
          assert.strictEqual(new Set(ids).size, 3)
          const constant = Random.Random.of({ nextIntUnsafe: () => 7, nextDoubleUnsafe: () => 0.5 })
          const always = Effect.provideService(take(1), Random.Random, constant)
          assert.strictEqual(yield* always, "slot-80000000")
          assert.instanceOf(yield* Effect.flip(always), Resource.ResourceLedgerError)
        }).pipe(onMachine))

      it.effect("belongs to its host alone", () =>
        Effect.gen(function*() {
          const { ledger, machine, open, take } = yield* opened
          const elsewhere = Context.get(yield* open(machine, { host: "elsewhere" }), ResourceLedger)
          const id = yield* take(54 * GiB)
          assert.deepStrictEqual(yield* elsewhere.allocations({}), [])
          assert.strictEqual((yield* Effect.flip(elsewhere.release(id)))._tag, "SlotNotFound")
          yield* elsewhere.allocate(slot(54 * GiB))
          assert.strictEqual((yield* ledger.allocations({})).length, 1)
        }).pipe(onMachine))
    })

    describe("what fits", () => {
      it.effect("is the pool's last byte, and not one more; what is released can be had again at once", () =>
        Effect.gen(function*() {
          const { ledger, take } = yield* opened
          const pools = [["inference_native", 54, "inference"], ["docker_container", 18, "container"], [
            "system_service",
            18,
            "system"
          ]] as const
          for (const [type, gib, pool] of pools) {
            const first = yield* take(gib * GiB - 1, { type })
            yield* take(1, { type })
            assert.deepStrictEqual(
              yield* Effect.flip(ledger.allocate(slot(1, { type }))),
              new Resource.ResourceInsufficient({
                reason: "pool exhausted",
                pool,
                requested: 1,
                available: 0,
                retryable: true
              })
            )
            yield* ledger.release(first)
            yield* take(gib * GiB - 1, { type })
          }
          assert.deepStrictEqual(yield* ledger.budget, {
            total: 100 * GiB,
            reserved: 10 * GiB,
            pools: {
              inference: { name: "inference", total: 54 * GiB, reserved: 54 * GiB, available: 0 },
              container: { name: "container", total: 18 * GiB, reserved: 18 * GiB, available: 0 },
              system: { name: "system", total: 18 * GiB, reserved: 18 * GiB, available: 0 }
            }
          })
          const never = yield* Effect.flip(ledger.allocate(slot(54 * GiB + 1)))
          assert.deepInclude(never, { retryable: false, requested: 54 * GiB + 1 })
        }).pipe(onMachine))

      it.effect("is what the host has available besides what is reserved", () =>
        Effect.gen(function*() {
          const { ledger, machine, take } = yield* opened
          machine.used = 60 * GiB
          assert.deepStrictEqual(
            yield* Effect.flip(ledger.allocate(slot(30 * GiB + 1))),
            new Resource.ResourceInsufficient({
              reason: "insufficient memory",
              pool: "inference",
              requested: 30 * GiB + 1,
              available: 30 * GiB,
              retryable: true
            })
          )
          const id = yield* take(30 * GiB)
          // What its workload is known not to use yet is kept from others, although the host shows it as available.
          machine.usage.set(id, 10 * GiB)
          machine.used = 70 * GiB
          assert.deepInclude(yield* Effect.flip(ledger.allocate(slot(1))), {
            reason: "insufficient memory",
            available: 0
          })
          machine.usage.set(id, 31 * GiB)
          yield* take(20 * GiB)
          assert.strictEqual((yield* ledger.allocations({ slot_id: id }))[0]?.memory_used, 31 * GiB)
        }).pipe(onMachine))

      it.effect("is the GPUs there are, counted exactly", () =>
        Effect.gen(function*() {
          const { ledger, machine, take } = yield* opened
          // By floating point 0.1 + 0.2 + 0.7 is more than 1.
          for (const gpu_fraction of [0.1, 0.2, 0.7]) yield* take(1, { gpu_fraction })
          const gpu = (requested: number, available: number, retryable: boolean) =>
            new Resource.ResourceInsufficient({
              reason: "insufficient gpu",
              pool: "inference",
              requested,
              available,
              retryable
            })
          assert.deepStrictEqual(yield* Effect.flip(take(1, { gpu_fraction: 0.01 })), gpu(0.01, 0, true))
          machine.gpus = 2
          const id = yield* take(1, { gpu_fraction: 0.75 })
          assert.deepStrictEqual(yield* Effect.flip(take(1, { gpu_fraction: 0.5 })), gpu(0.5, 0.25, true))
          yield* ledger.release(id)
          yield* take(1, { gpu_fraction: 1 })
          machine.gpus = 0
          assert.deepStrictEqual(yield* Effect.flip(take(1, { gpu_fraction: 1 })), gpu(1, 0, false))
          // Who asks for none does not care.
          yield* take(1)
        }).pipe(onMachine))

      it.effect("is nothing for a low priority while the pressure is critical", () =>
        Effect.gen(function*() {
          const { ledger, machine, take } = yield* opened
          machine.total = 1000
          machine.used = 900
          const refused = yield* Effect.flip(ledger.allocate(slot(1, { priority: 79 })))
          assert.deepStrictEqual(
            refused,
            new Resource.ResourcePressureHigh({ used: 900, total: 1000, priority: 79, priority_needed: 80 })
          )
          // Critical or not, the reserved headroom stays.
          assert.strictEqual((yield* Effect.flip(take(1, { priority: 80 })))._tag, "ResourceInsufficient")
          machine.used = 899
          assert.strictEqual((yield* Effect.flip(take(1)))._tag, "ResourceInsufficient")
          machine.used = 0
          yield* take(1)
        }).pipe(onMachine))

      it.effect("is no more than ten thousand slots, preempted ones included", () =>
        Effect.gen(function*() {
          const { ledger, sql, take } = yield* opened
          const id = yield* take(1, { priority: 0 })
          const copies = (status: string, last: number) =>
            sql`WITH RECURSIVE numbers (i) AS (SELECT 2 UNION ALL SELECT i + 1 FROM numbers WHERE i < ${last})
              INSERT INTO effect_units_resource_slots
              SELECT ${status} || i, host, position, name, type, memory_limit, gpu_fraction, gpu_parts, priority,
                ${status}, owner, created_at, updated_at
              FROM effect_units_resource_slots CROSS JOIN numbers WHERE id = ${id}`
          yield* copies("idle", 5000)
          yield* copies("preempted", 5000)
          const last = yield* take(1)
          const full = yield* Effect.flip(ledger.allocate(slot(1, { priority: 100 })))
          assert.deepInclude(full, { reason: "too many slots", available: 0, retryable: true })
          assert.deepStrictEqual(yield* ledger.canAllocate(slot(1)), { can_allocate: false, reason: "too many slots" })
          yield* ledger.release(last)
          yield* take(1)
        }).pipe(onMachine))

      it.effect("is read from the host, which may fail, and then nothing changes", () =>
        Effect.gen(function*() {
          const { ledger, machine, statuses, take } = yield* opened
          const id = yield* take(1)
          machine.broken = true
          const tags = yield* Effect.forEach([
            take(1),
            ledger.update(id, { memory_limit: 2 }),
            ledger.budget,
            ledger.status,
            ledger.canAllocate(slot(1))
          ], (call: Effect.Effect<unknown, { readonly _tag: string }>) => Effect.flip(call))
          assert.deepStrictEqual(tags.map(({ _tag }) => _tag), Array.from({ length: 5 }, () => "HostError"))
          // What needs no reading goes on.
          yield* ledger.update(id, { status: "idle" })
          assert.deepStrictEqual(yield* statuses, { [id]: "idle" })
          yield* ledger.release(id)
        }).pipe(onMachine))
    })

    describe("preemption", () => {
      it.effect("takes the lowest priority first, then the oldest, and no more than needed", () =>
        Effect.gen(function*() {
          const { ledger, reserved, statuses, take } = yield* opened
          const a = yield* take(18 * GiB, { priority: 3 })
          const b = yield* take(9 * GiB, { priority: 1 })
          const c = yield* take(9 * GiB, { priority: 1 })
          const d = yield* take(18 * GiB, { priority: 2 })
          const small = yield* ledger.allocate(slot(GiB, { priority: 2 }))
          assert.deepStrictEqual(small.preempted, [b])
          // 8 GiB are left.
          const large = yield* ledger.allocate(slot(30 * GiB, { priority: 3 }))
          assert.deepStrictEqual(large.preempted, [c, d])
          assert.deepStrictEqual(yield* statuses, {
            [a]: "active",
            [b]: "preempted",
            [c]: "preempted",
            [d]: "preempted",
            [small.slot.id]: "active",
            [large.slot.id]: "active"
          })
          assert.deepStrictEqual(yield* reserved, [49 * GiB, 0, 0])
          // The same priority is not lower.
          assert.strictEqual((yield* Effect.flip(take(50 * GiB, { priority: 3 })))._tag, "ResourceInsufficient")
        }).pipe(onMachine))

      it.effect("takes idle slots as well, and those of another pool only where the host lacks memory", () =>
        Effect.gen(function*() {
          const { ledger, machine, take } = yield* opened
          const container = yield* take(18 * GiB, { priority: 0, type: "docker_container" })
          const native = yield* take(54 * GiB)
          yield* ledger.update(native, { status: "idle" })
          const { preempted, slot: first } = yield* ledger.allocate(slot(1, { priority: 6 }))
          assert.deepStrictEqual(preempted, [native])
          yield* ledger.release(first.id)
          machine.used = 80 * GiB
          assert.deepStrictEqual((yield* ledger.allocate(slot(20 * GiB, { priority: 6 }))).preempted, [container])
        }).pipe(onMachine))

      it.effect("never takes a system service, and nothing at all where it would not be enough", () =>
        Effect.gen(function*() {
          const { ledger, statuses, take } = yield* opened
          const service = yield* take(18 * GiB, { priority: 0, type: "system_service" })
          const native = yield* take(20 * GiB, { priority: 50 })
          const low = yield* take(20 * GiB, { priority: 0 })
          const before = yield* statuses
          assert.deepInclude(yield* Effect.flip(ledger.allocate(slot(1, { priority: 100, type: "system_service" }))), {
            reason: "pool exhausted",
            available: 0
          })
          assert.deepInclude(yield* Effect.flip(ledger.allocate(slot(35 * GiB, { priority: 50 }))), {
            reason: "pool exhausted",
            available: 14 * GiB
          })
          assert.deepStrictEqual(yield* statuses, before)
          assert.sameMembers(Object.keys(before), [service, native, low])
        }).pipe(onMachine))

      it.effect("takes parts of GPUs back", () =>
        Effect.gen(function*() {
          const { ledger, take } = yield* opened
          yield* take(1, { priority: 0 })
          const half = yield* take(1, { priority: 2, gpu_fraction: 0.5 })
          const rest = yield* take(1, { priority: 1, gpu_fraction: 0.5 })
          const { preempted } = yield* ledger.allocate(slot(1, { priority: 9, gpu_fraction: 0.5 }))
          assert.deepStrictEqual(preempted, [rest])
          assert.deepStrictEqual((yield* ledger.allocate(slot(1, { priority: 9, gpu_fraction: 0.1 }))).preempted, [
            half
          ])
        }).pipe(onMachine))

      it.effect("can be undone once there is room", () =>
        Effect.gen(function*() {
          const { ledger, reserved, take } = yield* opened
          const id = yield* take(30 * GiB, { gpu_fraction: 0.5 })
          const winner = yield* take(50 * GiB, { priority: 6, gpu_fraction: 0.5 })
          const back = ledger.update(id, { status: "active" })
          assert.deepInclude(yield* Effect.flip(back), {
            _tag: "ResourceInsufficient",
            requested: 30 * GiB,
            available: 4 * GiB
          })
          assert.deepStrictEqual(
            yield* Effect.flip(ledger.update(id, { status: "idle" })),
            new Resource.InvalidTransition({ from: "preempted", to: "idle" })
          )
          // It does not count, so it can have any size.
          yield* ledger.update(id, { memory_limit: 99 * GiB })
          yield* ledger.update(id, { memory_limit: 40 * GiB })
          yield* ledger.release(winner)
          yield* take(1, { gpu_fraction: 0.6 })
          assert.deepInclude(yield* Effect.flip(back), { reason: "insufficient gpu", requested: 0.5, available: 0.4 })
          yield* ledger.release(yield* take(1, { priority: 9, gpu_fraction: 0.9 }))
          assert.deepInclude(yield* back, { status: "active", memory_limit: 40 * GiB })
          assert.deepStrictEqual(yield* reserved, [40 * GiB, 0, 0])
        }).pipe(onMachine))
    })

    describe("a change", () => {
      it.effect("is made as a whole or not at all, and is none where nothing differs", () =>
        Effect.gen(function*() {
          const { ledger, take } = yield* opened
          yield* TestClock.setTime(7_000)
          const id = yield* take(50 * GiB)
          const seen = Effect.map(ledger.status, ({ slots: [slot] }) => slot)
          const made = yield* seen
          yield* TestClock.setTime(9_000)
          for (const change of [{}, { status: "active" }, { memory_limit: 50 * GiB, status: "active" }] as const) {
            assert.deepStrictEqual(yield* ledger.update(id, change), made)
          }
          const refused = yield* Effect.flip(ledger.update(id, { memory_limit: 54 * GiB + 1, status: "idle" }))
          assert.deepInclude(refused, { reason: "pool exhausted", requested: 4 * GiB + 1, available: 4 * GiB })
          assert.deepStrictEqual(yield* seen, made)
          const changed = { ...made, memory_limit: 54 * GiB, status: "idle", updated_at: 9 }
          assert.deepStrictEqual(yield* ledger.update(id, { memory_limit: 54 * GiB, status: "idle" }), changed)
          assert.deepStrictEqual(yield* seen, changed)
          // Shrinking needs no room.
          yield* ledger.update(id, { memory_limit: 1 })
          yield* take(54 * GiB - 1)
        }).pipe(onMachine))
    })

    describe("an owner that is gone", () => {
      it.effect("leaves its slots idle to the next that starts, and they keep what they have", () =>
        Effect.gen(function*() {
          const { ledger, machine, open, sql, statuses, take } = yield* opened
          const kept = yield* take(GiB)
          const taken = yield* take(54 * GiB, { priority: 1 }).pipe(
            Effect.catch(() => take(53 * GiB, { priority: 1 }))
          )
          const winner = yield* take(GiB, { priority: 9 })
          const before = yield* statuses
          assert.deepStrictEqual(before, { [kept]: "active", [taken]: "preempted", [winner]: "active" })
          // This process is there, so another that starts changes nothing.
          yield* open(machine)
          assert.deepStrictEqual(yield* statuses, before)
          yield* sql`UPDATE effect_units_resource_owners SET process = (SELECT process || '9' FROM
            (SELECT process FROM effect_units_resource_owners) AS all_owners)`
          yield* TestClock.setTime(9_000)
          const next = Context.get(yield* open(machine), ResourceLedger)
          assert.deepStrictEqual(yield* statuses, { ...before, [kept]: "idle", [winner]: "idle" })
          assert.strictEqual((yield* next.status).slots.find(({ id }) => id === kept)?.updated_at, 9)
          assert.strictEqual((yield* next.budget).pools.inference.reserved, 2 * GiB)
          // Whoever makes one active owns it.
          yield* next.update(kept, { status: "active" })
          yield* sql`INSERT INTO effect_units_resource_owners ${
            sql.insert({ owner: "someone", host: "local", process: null, lease_until: 0 })
          }`
          yield* open(machine)
          assert.strictEqual((yield* statuses)[kept], "active")
          assert.deepStrictEqual(yield* sql`SELECT owner FROM effect_units_resource_owners WHERE owner = 'someone'`, [])
          yield* ledger.release(taken)
        }).pipe(onMachine))

      it.effect("that cannot be seen from here counts as gone once its lease is over", () =>
        Effect.gen(function*() {
          const { machine, open, sql, statuses, take } = yield* opened
          const mine = yield* take(GiB)
          // Its scope closes, and nobody looks after its lease any more.
          const { slot: { id } } = yield* Effect.scoped(
            Effect.flatMap(open(machine), (other) => Context.get(other, ResourceLedger).allocate(slot(GiB)))
          )
          yield* TestClock.adjust("10 minutes")
          assert.deepStrictEqual(yield* statuses, { [mine]: "active", [id]: "active" })
          yield* sql`UPDATE effect_units_resource_owners SET process = NULL, lease_until = ${600_000 + 30_000}`
          yield* TestClock.adjust("29 seconds")
          assert.deepStrictEqual(yield* statuses, { [mine]: "active", [id]: "active" })
          // What is looked up on a server has not been seen when the clock has moved.
          while ((yield* statuses)[id] === "active") yield* TestClock.adjust("5 seconds")
          assert.deepStrictEqual(yield* statuses, { [mine]: "active", [id]: "idle" })
        }).pipe(onMachine))
    })

    it.effect(
      "of a thousand requests at once by two processes as many are granted as fit, each with a slot of its own",
      () =>
        Effect.gen(function*() {
          const { ledger, machine, open, reserved } = yield* opened
          const other = Context.get(yield* open(machine), ResourceLedger)
          const size = 64 * 2 ** 20
          const results = yield* Effect.forEach(
            Array.from({ length: 1000 }, (_, index) => index % 2 === 0 ? ledger : other),
            (ledger) => Effect.result(ledger.allocate(slot(size))),
            { concurrency: "unbounded" }
          )
          const ids = results.flatMap((result) => result._tag === "Success" ? [result.success.slot.id] : [])
          const refused = results.flatMap((result) => result._tag === "Failure" ? [result.failure._tag] : [])
          assert.strictEqual(ids.length, 54 * GiB / size)
          assert.strictEqual(new Set(ids).size, ids.length)
          assert.deepStrictEqual(new Set(refused), new Set(["ResourceInsufficient"]))
          assert.sameMembers((yield* ledger.allocations({})).map(({ slot_id }) => slot_id), ids)
          assert.deepStrictEqual(yield* reserved, [54 * GiB, 0, 0])
          yield* Effect.forEach(ids, (id, index) => (index % 2 === 0 ? other : ledger).release(id), {
            concurrency: "unbounded"
          })
          assert.deepStrictEqual(yield* reserved, [0, 0, 0])
          assert.deepStrictEqual(yield* ledger.allocations({}), [])
        }).pipe(onMachine, interleaved, TestClock.withLive),
      60_000
    )

    const Size = Schema.Int.check(Schema.isBetween({ minimum: 1, maximum: 30 }))
    const Priority = Schema.Literals([0, 1, 5, 90])
    const Fraction = Schema.Literals([0, 0.1, 0.5, 1])
    const Request = Schema.Struct({
      type: Resource.SlotType,
      gib: Size,
      priority: Priority,
      gpu_fraction: Fraction
    })
    const requestOf = ({ gib, ...rest }: typeof Request.Type) => ({ ...rest, name: "a", memory_limit: gib * GiB })

    it.effect.prop("an answer is what a request gets right after", {
      slots: Schema.Array(Request).check(Schema.isMaxLength(8)),
      asked: Request,
      any: Schema.Boolean,
      used: Schema.Int.check(Schema.isBetween({ minimum: 0, maximum: 100 }))
    }, ({ any, asked, slots, used }) =>
      Effect.gen(function*() {
        const { ledger, machine } = yield* opened
        yield* Effect.forEach(slots, (one) => Effect.ignore(ledger.allocate(requestOf(one))))
        machine.used = used * GiB
        const request = requestOf(asked)
        const before = yield* ledger.allocations({})
        const answer = yield* ledger.canAllocate(any ? { ...request, type: undefined } : request)
        assert.deepStrictEqual(yield* ledger.allocations({}), before)
        const results = yield* Effect.forEach(any ? Resource.SlotType.literals : [request.type], (type) =>
          Effect.gen(function*() {
            const grant = yield* ledger.allocate({ ...request, type })
            // Back to where it was.
            yield* ledger.release(grant.slot.id)
            machine.used = 0
            for (const id of grant.preempted) {
              yield* ledger.update(id, { status: "active" })
            }
            machine.used = used * GiB
            return grant
          }).pipe(Effect.catchTag(["ResourceInsufficient", "ResourcePressureHigh"], (error) =>
            Effect.succeed(error))))
        const grants = results.filter((result) =>
          "slot" in result
        )
        assert.strictEqual(answer.can_allocate, grants.length > 0)
        const free = grants.some(({ preempted }) => preempted.length === 0)
        if (grants.length > 0) return assert.strictEqual(answer.reason, free ? undefined : "would require preemption")
        const reasons = results.map((result) => "reason" in result ? result.reason : "pressure critical")
        assert.include(reasons, answer.reason)
      }).pipe(onMachine), { arbitrary: { runs: 40 } })

    const Step = Schema.Struct({
      kind: Schema.Literals(["allocate", "allocate", "allocate", "release", "grow", "shrink", "status"]),
      request: Request,
      status: Resource.SlotStatus,
      process: Schema.Int.check(Schema.isBetween({ minimum: 0, maximum: 1 })),
      /** After how many turns of the scheduler the step is interrupted, if at all. */
      interruptAfter: Schema.UndefinedOr(Schema.Int.check(Schema.isBetween({ minimum: 0, maximum: 40 })))
    })

    it.effect.prop("in any order, with any interruption, no more is promised than there is, and no slot gets lost", {
      steps: Schema.Array(Step).check(Schema.isBetweenLength(20, 50))
    }, ({ steps }) =>
      Effect.gen(function*() {
        const { context, ledger, machine, open } = yield* opened
        const processes = [context, yield* open(machine)] as const
        const { domainEvents } = yield* Testing.TestEvents
        const told = Effect.map(domainEvents, (events) => {
          const ids = (type: string) =>
            events.flatMap((event) =>
              event.type === type && Schema.is(Schema.Struct({ slot_id: Resource.SlotId }))(event.payload)
                ? [event.payload.slot_id]
                : []
            )
          return { allocated: ids("resource.allocated"), released: ids("resource.released") }
        })
        const check = Effect.gen(function*() {
          const { pools } = yield* ledger.budget
          for (const pool of Object.values(pools)) assert.isAtMost(pool.reserved, pool.total)
          const all = yield* ledger.allocations({})
          const parts = all.filter(({ status }) => status !== "preempted").map(({ gpu_fraction }) => gpu_fraction * 10)
          assert.isAtMost(parts.reduce((sum, part) => sum + Math.round(part), 0), 10)
        })
        let turn = 0
        const play = Effect.fnUntraced(function*({ kind, process, request, status }: typeof Step.Type) {
          const { memory_limit, ...rest } = requestOf(request)
          const slots = (yield* ledger.status).slots
          const target = slots[turn++ % Math.max(1, slots.length)]
          const slot_id = target?.id ?? "slot-00000000"
          const call: Effect.Effect<unknown, unknown, EventPublisher | ResourceLedger> = kind === "allocate"
            ? Resource.allocate({ ...rest, memory_bytes: memory_limit })
            : kind === "release"
            ? Resource.release({ slot_id })
            : kind === "grow"
            ? Resource.updateSlot({ slot_id, memory_limit: (target?.memory_limit ?? 1) + memory_limit })
            : kind === "shrink"
            ? Resource.updateSlot({ slot_id, memory_limit: Math.min(memory_limit, target?.memory_limit ?? 1) })
            : Resource.updateSlot({ slot_id, status })
          yield* Effect.exit(Effect.provide(call, processes[process]!))
          yield* check
        })
        yield* Effect.forEach(steps, (step) =>
          Effect.gen(function*() {
            const fiber = yield* Effect.forkChild(play(step))
            if (step.interruptAfter !== undefined) {
              for (let turns = step.interruptAfter; turns > 0; turns--) yield* Effect.yieldNow
              yield* Fiber.interrupt(fiber)
            }
            const exit = yield* Fiber.await(fiber)
            if (Exit.isFailure(exit) && !Cause.hasInterruptsOnly(exit.cause)) yield* exit
          }), { concurrency: 5, discard: true }).pipe(interleaved)
        yield* check
        const rows = (yield* ledger.allocations({})).map(({ slot_id }) => slot_id)
        const { allocated, released } = yield* told
        assert.strictEqual(new Set(allocated).size, allocated.length)
        assert.sameMembers(allocated.filter((id) => !released.includes(id)), rows)
        yield* Effect.forEach(rows, (slot_id) => Effect.provide(Resource.release({ slot_id }), processes[1]), {
          concurrency: "unbounded"
        })
        assert.deepStrictEqual((yield* told).released.toSorted(), allocated.toSorted())
        assert.deepStrictEqual(
          Object.values((yield* ledger.budget).pools).map(({ reserved }) => reserved),
          [0, 0, 0]
        )
      }).pipe(onMachine, Effect.provide(Testing.layerTest), TestClock.withLive), {
      arbitrary: { runs: stress > 0 ? 300 : 15 },
      timeout: 120_000
    })
  })

suite(
  "SQLite",
  Effect.map(
    temporaryDirectory,
    (directory): Open => (machine, options) =>
      Layer.build(Layer.fresh(layerLedger(sqlite(directory), machine, options)))
  )
)

await withServer("PostgreSQL", "ledger", (url) =>
  suite(
    "PostgreSQL",
    Effect.map(ownSchema(url), (schema): Open => (machine, options) =>
      Layer.build(
        Layer.fresh(layerLedger(Postgres.layer({ url: Redacted.make(url), schema }), machine, options))
      ))
  ))

describe("processes", () => {
  it.effect(
    "that share a ledger and are killed leave every slot that they were given, and no more than there is",
    () =>
      Effect.gen(function*() {
        const directory = yield* temporaryDirectory
        const machine = yield* OwnMachine
        const open = Effect.map(
          Layer.build(Layer.fresh(layerLedger(sqlite(directory), machine))),
          (context) => Context.get(context, ResourceLedger)
        )
        const watcher = yield* open
        const rounds = stress > 0 ? 20 : 2
        const killed = 3
        const given: Array<string> = []
        const givenBack = new Set<string>()
        for (let round = 0; round < rounds; round++) {
          const children = yield* Effect.forEach(
            Array.from({ length: killed }, (_, child) => `${round}-${child}`),
            (name) => start("ledgerProcess.ts", directory, name)
          )
          // Each is killed in the middle of what it does, after another number of lines.
          const said = yield* Effect.forEach(children, ({ kill, lines }, child) =>
            Effect.gen(function*() {
              const before = yield* Queue.takeN(lines, 30 + 20 * child + round)
              yield* kill
              return [...before, ...yield* Queue.collect(lines)]
            }), { concurrency: "unbounded" })
          for (const line of said.flat()) {
            if (line.startsWith("+ ")) given.push(line.slice(2))
            if (line.startsWith("- ")) givenBack.add(line.slice(2))
          }
          const { pools } = yield* watcher.budget
          for (const pool of Object.values(pools)) assert.isAtMost(pool.reserved, pool.total)
        }
        assert.strictEqual(new Set(given).size, given.length)
        const next = yield* open
        const left = yield* next.allocations({})
        assert.isAbove(left.length, 0)
        assert.deepStrictEqual(left.filter(({ status }) => status === "active"), [])
        yield* Effect.forEach(left, ({ slot_id }) => next.release(slot_id))
        assert.deepStrictEqual(
          Object.values((yield* next.budget).pools).map(({ available, total }) => total - available),
          [0, 0, 0]
        )
      }).pipe(onMachine, TestClock.withLive),
    120_000
  )
})
