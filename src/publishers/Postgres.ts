/**
 * Events in PostgreSQL: the store, a publisher into it, and the subscriber that reads it. The client is `@effect/sql-pg`, which an
 * application that imports this module installs.
 *
 * **Guarantees**
 *
 * - Durability: an event that is committed survives the end of the process, and with PostgreSQL's defaults (`fsync`, `full_page_writes`
 *   and `synchronous_commit` on) a power cut of the server as well.
 * - Order: the log is in the order in which each publisher published, where what a transaction publishes counts as of its commit; and an
 *   event with a smaller offset is never seen after one with a larger offset.
 * - Duplicates: each event is stored once, whatever is retried, for as long as `prune` leaves it. On the way to a subscriber delivery is at least once: deduplicate on the
 *   event's `id`.
 * - Loss: under `open` what units hand over waits in memory until it is committed, some milliseconds, and a process that is killed loses
 *   it. Under `closed` no unit begins before its start is committed. Under `transactional` a unit's writes and its completed event commit
 *   together or not at all. While the server is away events wait and are tried again, and what finds no room is refused and counted.
 * - A process that was killed leaves no execution open: the next store on the database ends them, or the one of another process.
 * - Closing the scope stores what was accepted, for at most `flushTimeout`, and counts what is left then as dropped.
 *   A server that has gone silent is given up some seconds later.
 *
 * **How events get their offsets**
 *
 * An append outside of a transaction takes the lock of one row, counts on from its number, and commits: so offsets have no holes and are
 * visible in their order, and publishers wait for one another for the time of one batch. A transaction of the application must not hold
 * that lock until it ends. What it appends goes into a table of its own, `effect_units_staged`, without any lock, and commits with it;
 * right after the commit the store moves it into the log, as any other append. Should the process die in between, the next tail, or the
 * next store that is opened, does so, or any store on its round each third of a lease. So a transaction that stays open delays its own
 * events and nobody else's, one that rolls back leaves no trace, and there is no transaction id to wait for, which a restored dump would
 * upset, or a long-running report. What such a report, as any snapshot that is kept open, does cost is time: the server keeps all versions of the
 * row that is locked until it ends, and an append looks through them, some milliseconds after 100,000 of them.
 *
 * What was committed and the log refuses for good, as an id that is too long for an index, stays in that table, is logged, and counted in
 * `effect_units_events_dropped`; `refused` says why. Set to NULL, once it is corrected, it is tried again.
 *
 * @since 0.1.0
 */
import * as PgClient from "@effect/sql-pg/PgClient"
import * as PgConnection from "@effect/sql-pg/PgConnection"
import type * as Config from "effect/Config"
import type * as Duration from "effect/Duration"
import * as Effect from "effect/Effect"
import * as Layer from "effect/Layer"
import type * as SqlClient from "effect/sql/SqlClient"
import * as Stream from "effect/Stream"
import * as Postgres from "../backends/Postgres.ts"
import type * as EventPublisher from "../EventPublisher.ts"
import * as EventStore from "../EventStore.ts"
import type { EventSubscriber } from "../EventSubscriber.ts"
import { inRealTime } from "../internal/brokers.ts"
import { layerStore, type Options } from "./Store.ts"

export { layerStore, make, type Options } from "./Store.ts"

/**
 * Settings of the store and of its client.
 *
 * @category models
 * @since 0.1.0
 */
export interface StoreOptions extends Omit<EventStore.Options, "notifications">, Postgres.Options {}

/**
 * Layer of a store on the client of the application, for events that commit in one transaction with other data. Its tables begin with
 * `effect_units_`. Tails hear at once of what other processes commit, by `LISTEN`, on a connection beside those of the pool.
 *
 * @category layers
 * @since 0.1.0
 */
export const layerEventStore = (
  options?: Omit<EventStore.Options, "notifications">
): Layer.Layer<EventStore.EventStore, EventStore.EventStoreError, SqlClient.SqlClient | PgClient.PgClient> =>
  Layer.unwrap(Effect.map(PgClient.PgClient, (client) =>
    EventStore.layer({
      ...options,
      notifications: (channel) =>
        // One at the start, for what was committed before the server listened.
        PgConnection.make(client.config).pipe(
          inRealTime,
          Effect.flatMap((connection) => connection.listen(channel)),
          Effect.map((queue) => Stream.concat(Stream.make(undefined), Stream.fromQueue(queue))),
          Stream.unwrap
        )
    })))

const clientOf = (options: Postgres.Options) =>
  Layer.catch(Postgres.layer(options), (error) => Layer.effectContext(Effect.fail(EventStore.fromSqlError(error))))

/**
 * Layer of a publisher into a PostgreSQL database, of the store there, and of the client that both use; see `layerStore`. Handlers that use
 * this client take part in the transactions of the policy `transactional`.
 *
 * **Details**
 *
 * Fails with `EventStoreError` where the database cannot be used.
 *
 * **Example** (Events in a schema of their own)
 *
 * ```ts
 * const layer = Postgres.layer({ url: Redacted.make("postgres://app@localhost/app"), schema: "events" })
 * ```
 *
 * @category layers
 * @since 0.1.0
 */
export const layer = (
  options: Options & StoreOptions
): Layer.Layer<
  EventPublisher.EventPublisher | EventStore.EventStore | SqlClient.SqlClient | PgClient.PgClient,
  EventStore.EventStoreError
> => layerStore(options).pipe(Layer.provideMerge(layerEventStore(options)), Layer.provideMerge(clientOf(options)))

/**
 * `layer` with the URL from the variable `DATABASE_URL`.
 *
 * @category layers
 * @since 0.1.0
 */
export const layerConfig = (
  options?: Options & Omit<StoreOptions, "url">
): Layer.Layer<
  EventPublisher.EventPublisher | EventStore.EventStore | SqlClient.SqlClient | PgClient.PgClient,
  EventStore.EventStoreError | Config.ConfigError
> => Layer.unwrap(Effect.map(Postgres.databaseUrl, (url) => layer({ ...options, url })))

/**
 * Layer that reads the store as one reads any other transport; see `EventStore.layerSubscriber`.
 *
 * **Details**
 *
 * What other processes commit is seen at once. Where notifications do not come through, as with a pooler that keeps no session, it is seen
 * within `pollInterval` (default 1 second).
 *
 * @category layers
 * @since 0.1.0
 */
export const layerSubscriber: (
  options?: { readonly pollInterval?: Duration.Input | undefined }
) => Layer.Layer<EventSubscriber, never, EventStore.EventStore> = EventStore.layerSubscriber
