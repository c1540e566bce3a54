/**
 * Long work on the records of a SQL table, one piece at a time a record: a pull, a check, an install.
 *
 * A claim stands for the work, in columns of the record itself. It is renewed for as long as the work goes on, so that work whose
 * process is gone blocks its record for no longer than the claim lasts; and it is seen by every process that shares the database.
 *
 * @since 0.1.0
 */
import * as Clock from "effect/Clock"
import * as Deferred from "effect/Deferred"
import * as Duration from "effect/Duration"
import * as Effect from "effect/Effect"
import * as Random from "effect/Random"
import * as Result from "effect/Result"
import * as Schema from "effect/Schema"
import * as SqlClient from "effect/sql/SqlClient"
import type * as SqlError from "effect/sql/SqlError"

/**
 * The columns that a table needs besides `id TEXT PRIMARY KEY`, as SQL.
 *
 * @category constants
 * @since 0.1.0
 */
export const columns = "operation TEXT, operation_token TEXT, operation_until BIGINT, operation_cancelled BIGINT"

// PostgreSQL gives 64-bit integers as bigint.
const Millis = Schema.Union([Schema.Finite, Schema.BigInt])

/**
 * What a reader of the table needs of those columns; see `underWay`.
 *
 * @category models
 * @since 0.1.0
 */
export const Claim = Schema.Struct({
  operation: Schema.NullOr(Schema.String),
  operation_until: Schema.NullOr(Millis)
})

/**
 * The operation that is under way on a record at a time (Unix milliseconds), if any.
 *
 * @category accessors
 * @since 0.1.0
 */
export const underWay = ({ operation, operation_until }: typeof Claim.Type, now: number): string | undefined =>
  operation !== null && Number(operation_until) >= now ? operation : undefined

/**
 * Something else works on the record, here or in another process. A retry helps once that has ended.
 *
 * @category errors
 * @since 0.1.0
 */
export class Busy extends Schema.TaggedError<Busy>("effect-units/backends/Operations/Busy")("Busy", {
  id: Schema.String,
  operation: Schema.String
}) {
  override get message(): string {
    return `The ${this.operation} of ${this.id} is under way. Wait until it has ended`
  }
}

/**
 * The work was ended by `cancel`, or another process took the record over because this one stood still for too long.
 *
 * @category errors
 * @since 0.1.0
 */
export class Cancelled extends Schema.TaggedError<Cancelled>("effect-units/backends/Operations/Cancelled")(
  "Cancelled",
  { id: Schema.String }
) {
  override get message(): string {
    return `The work on ${this.id} was cancelled`
  }
}

/**
 * The operations on the records of one table, whose owner says how a record that is not there (`Missing`) and SQL that fails
 * (`Failed`) are named.
 *
 * @category models
 * @since 0.1.0
 */
export interface Operations<Operation extends string, Missing, Failed> {
  /**
   * Claims a record, runs work on it, and gives the record free, whatever the end of the work.
   *
   * **Details**
   *
   * The work is given the row as it was claimed. `set` are columns that change together with the claim. Fails with `Busy` where
   * there is work on the record, and with `Cancelled` where this work was ended by `cancel`; its finalizers have run by then.
   */
  readonly during: <A, E, R>(options: {
    readonly id: string
    readonly operation: Operation
    readonly set?: Readonly<Record<string, unknown>> | undefined
    readonly work: (row: unknown) => Effect.Effect<A, E, R>
  }) => Effect.Effect<A, E | Busy | Cancelled | Missing | Failed, R>
  /**
   * Ends the work on a record where it is one of these operations, waits until it has ended, and says whether there was any.
   *
   * **Details**
   *
   * Work of another process is told at its next renewal, after a tenth of the time that a claim lasts at most.
   */
  readonly cancel: (id: string, operations: ReadonlyArray<Operation>) => Effect.Effect<boolean, Failed>
}

/**
 * Settings of `make`.
 *
 * @category models
 * @since 0.1.0
 */
export interface Options<Missing, Failed> {
  /** Name of the table, which has `columns`. */
  readonly table: string
  /** How long work whose process is gone blocks a record. Default 30 seconds. */
  readonly lease?: Duration.Input | undefined
  /** The failure for an id without a record. */
  readonly missing: (id: string) => Missing
  /** The failure for SQL that failed, and what it was to do. */
  readonly failed: (action: string) => (cause: SqlError.SqlError) => Failed
}

/** How often another process's work is looked at, once it has been cancelled. */
const pollInterval = "100 millis"

// 48 random bits, of which the record's own id takes part in every comparison.
const newToken = Effect.map(
  Random.nextIntBetween(0, 2 ** 48, { halfOpen: true }),
  (n) => n.toString(16).padStart(12, "0")
)

/** Work of this process. */
interface Working {
  readonly token: string
  readonly cancel: Deferred.Deferred<void>
  readonly ended: Deferred.Deferred<void>
  /** Whether the claim may be in the table: unless it has failed, for an interruption can come after its commit. */
  claimed: boolean
}

/**
 * Builds the operations of a table.
 *
 * @category constructors
 * @since 0.1.0
 */
export const make = Effect.fnUntraced(function*<Operation extends string, Missing, Failed>(
  options: Options<Missing, Failed>
): Effect.fn.Return<Operations<Operation, Missing, Failed>, never, SqlClient.SqlClient> {
  const { failed, missing } = options
  const sql = yield* SqlClient.SqlClient
  const table = sql(options.table)
  const lease = Duration.toMillis(options.lease ?? "30 seconds")
  const working = new Map<string, Working>()

  const claim = Effect.fnUntraced(
    function*(
      id: string,
      token: string,
      operation: Operation,
      set: Readonly<Record<string, unknown>>
    ): Effect.fn.Return<Result.Result<unknown, Busy | Missing>, SqlError.SqlError> {
      const now = yield* Clock.currentTimeMillis
      const claimed = {
        ...set,
        operation,
        operation_token: token,
        operation_until: now + lease,
        operation_cancelled: null
      }
      const [row] = yield* sql`UPDATE ${table} SET ${sql.update(claimed)}
        WHERE id = ${id} AND (operation IS NULL OR operation_until < ${now}) RETURNING *`
      if (row !== undefined) return Result.succeed(row)
      const [other] = yield* sql<{ operation: string | null }>`SELECT operation FROM ${table} WHERE id = ${id}`
      if (other === undefined) return Result.fail(missing(id))
      // It may have ended between the two statements; the caller has met it all the same.
      return Result.fail(new Busy({ id, operation: other.operation ?? operation }))
    },
    (effect, _id, _token, operation) => Effect.flatMap(Effect.mapError(effect, failed(operation)), Effect.fromResult)
  )

  /** Renews a claim, until it is cancelled or lost. While the database does not answer, it lasts as long as it may. */
  const renew = Effect.fnUntraced(function*(id: string, token: string) {
    const mine = Effect.gen(function*() {
      const now = yield* Clock.currentTimeMillis
      const renewed = yield* sql`UPDATE ${table} SET operation_until = ${now + lease}
        WHERE id = ${id} AND operation_token = ${token} AND operation_cancelled IS NULL RETURNING id`
      // A record that is gone was removed by this work: nobody else can have claimed it.
      return renewed.length > 0 || (yield* sql`SELECT id FROM ${table} WHERE id = ${id}`).length === 0
    })
    for (;;) {
      yield* Effect.sleep(lease / 10)
      if (!(yield* Effect.orElseSucceed(mine, () => true))) return yield* new Cancelled({ id })
    }
  })

  const release = (id: string, token: string) =>
    sql`UPDATE ${table}
      SET operation = NULL, operation_token = NULL, operation_until = NULL, operation_cancelled = NULL
      WHERE id = ${id} AND operation_token = ${token}`.pipe(
      // The claim runs out by itself.
      Effect.catch((error) => Effect.logWarning(`The claim on ${id} was not given back`, error))
    )

  const begin = Effect.gen(function*() {
    const state: Working = {
      token: yield* newToken,
      cancel: yield* Deferred.make<void>(),
      ended: yield* Deferred.make<void>(),
      claimed: true
    }
    working.set(state.token, state)
    return state
  })

  const end = Effect.fnUntraced(function*(id: string, state: Working) {
    if (state.claimed) yield* release(id, state.token)
    working.delete(state.token)
    yield* Deferred.succeed(state.ended, undefined)
  })

  const waitForRelease = Effect.fnUntraced(function*(id: string, token: string) {
    const held = Effect.flatMap(
      Clock.currentTimeMillis,
      (now) =>
        sql`SELECT id FROM ${table} WHERE id = ${id} AND operation_token = ${token} AND operation_until >= ${now}`
    )
    while ((yield* held).length > 0) yield* Effect.sleep(pollInterval)
  })

  return {
    during: ({ id, operation, set = {}, work }) =>
      Effect.acquireUseRelease(
        begin,
        (state) =>
          claim(id, state.token, operation, set).pipe(
            Effect.tapError(() =>
              Effect.sync(() => {
                state.claimed = false
              })
            ),
            Effect.flatMap((row) =>
              Effect.raceAllFirst([
                work(row),
                Effect.andThen(Deferred.await(state.cancel), Effect.fail(new Cancelled({ id }))),
                renew(id, state.token)
              ])
            )
          ),
        (state) => end(id, state)
      ),
    cancel: Effect.fnUntraced(
      function*(id, operations) {
        const now = yield* Clock.currentTimeMillis
        const [claimed] = yield* sql<{ operation_token: string }>`UPDATE ${table} SET operation_cancelled = ${now}
          WHERE id = ${id} AND operation_until >= ${now} AND ${sql.in("operation", operations)}
          RETURNING operation_token`
        if (claimed === undefined) return false
        const here = working.get(claimed.operation_token)
        if (here === undefined) {
          yield* waitForRelease(id, claimed.operation_token)
        } else {
          yield* Deferred.succeed(here.cancel, undefined)
          yield* Deferred.await(here.ended)
        }
        return true
      },
      Effect.mapError(failed("cancel the work"))
    )
  }
})
