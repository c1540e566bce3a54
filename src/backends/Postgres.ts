/**
 * PostgreSQL behind Effect's own `SqlClient`, by `@effect/sql-pg`, which an application that imports this module installs.
 *
 * **Details**
 *
 * A client is a pool of connections, opened as they are needed. A statement has a connection for as long as it takes, a transaction until
 * its end; who finds none free waits. A connection that broke is replaced by the next statement, so a client outlives restarts of the
 * server; a statement or transaction that was under way fails with a `SqlError`. A connection that was idle for 30 seconds is
 * probed (TCP keepalive), so that one whose other end is gone without a word breaks.
 *
 * The end of the scope waits for statements and transactions under way, for at most 5 seconds. Those that last longer, because the server
 * has gone silent, fail with a `SqlError` then.
 *
 * Integers of 64 bits come back as `bigint`. PostgreSQL takes no NUL character and no lone surrogate in a text: encode such text as JSON,
 * which has escapes for both, and store it as TEXT or JSON; JSONB refuses `\u0000`.
 *
 * @since 0.1.0
 */
import * as PgClient from "@effect/sql-pg/PgClient"
import * as Config from "effect/Config"
import * as Context from "effect/Context"
import * as Duration from "effect/Duration"
import * as Effect from "effect/Effect"
import type * as Exit from "effect/Exit"
import * as Fiber from "effect/Fiber"
import * as Layer from "effect/Layer"
import * as Reactivity from "effect/reactivity/Reactivity"
import * as Redacted from "effect/Redacted"
import * as Scope from "effect/Scope"
import * as SqlClient from "effect/sql/SqlClient"
import type * as SqlError from "effect/sql/SqlError"
import * as net from "node:net"
import type { ConnectionOptions } from "node:tls"
import { inRealTime } from "../internal/brokers.ts"
import * as Transaction from "../internal/transaction.ts"

/**
 * Settings of a client.
 *
 * @category models
 * @since 0.1.0
 */
export interface Options {
  /** Such as `postgres://user:password@host:5432/database`. */
  readonly url: Redacted.Redacted
  /**
   * The schema that statements use, created when it is missing. Default: what the server has for this user, mostly `public`.
   *
   * A pooler that takes no `search_path` at the start of a connection needs it as a setting of the user instead: `ALTER ROLE ... SET
   * search_path`.
   */
  readonly schema?: string | undefined
  /** TLS; also set by `sslmode` in the URL. */
  readonly ssl?: boolean | ConnectionOptions | undefined
  /**
   * How many connections the client has at most; one more than transactions that run at once. What listens, as an event store does, has
   * one beside them. Default 10.
   */
  readonly maxConnections?: number | undefined
  /** How long opening a connection may take. Default 5 seconds. */
  readonly connectTimeout?: Duration.Input | undefined
  /** Whether statements are prepared by name. Turn it off for a pooler that cannot keep them apart. Default true. */
  readonly prepare?: boolean | undefined
  /** What the server shows of these connections in `pg_stat_activity`. Default `effect-units`. */
  readonly applicationName?: string | undefined
}

const patience = Duration.seconds(5)

/** Where a URL leads, as the driver reads it. */
const addressOf = (url: string): net.NetConnectOpts => {
  const { hostname, port, searchParams } = new URL(url)
  const host = searchParams.get("host") ?? decodeURIComponent(hostname.replace(/^\[(.*)\]$/, "$1"))
  const at = Number(searchParams.get("port") ?? port) || 5432
  return host.startsWith("/")
    ? { path: `${host}/.s.PGSQL.${at}` }
    : { host: host === "" ? "localhost" : host, port: at }
}

/** The sockets of a client. The driver waits for a statement for as long as the server is silent; whoever made the socket can end it. */
const makeSockets = (url: Redacted.Redacted) => {
  const open = new Set<net.Socket>()
  return {
    connect: (): net.Socket => {
      const socket = net.connect({
        ...addressOf(Redacted.value(url)),
        noDelay: true,
        keepAlive: true,
        keepAliveInitialDelay: 30_000
      })
      open.add(socket)
      return socket.once("close", () => open.delete(socket))
    },
    end: Effect.sync(() => {
      for (const socket of open) socket.destroy()
    })
  }
}

/** Closes the driver's scope; its sockets are ended once its patience is. */
const close = (scope: Scope.Closeable, exit: Exit.Exit<unknown, unknown>, end: Effect.Effect<void>) =>
  Effect.flatMap(
    Effect.forkDetach(Scope.close(scope, exit), { startImmediately: true }),
    (closing) =>
      inRealTime(Effect.timeoutOrElse(Fiber.await(closing), {
        duration: patience,
        orElse: () => Effect.andThen(end, Fiber.await(closing))
      }))
  )

// In bytes; the client's own default is 16 MiB, and a row that is larger ends the connection.
const largestRow = 64 * 1024 * 1024

/**
 * Builds a client, and creates its schema where it is missing; the scope closes it.
 *
 * Fails with `SqlError` where the server does not answer or refuses.
 *
 * @category constructors
 * @since 0.1.0
 */
export const make: (
  options: Options
) => Effect.Effect<PgClient.PgClient, SqlError.SqlError, Reactivity.Reactivity | Scope.Scope> = Effect.fnUntraced(
  function*({ schema, ...options }: Options) {
    const sockets = makeSockets(options.url)
    const scope = yield* Effect.acquireRelease(Scope.make(), (scope, exit) => close(scope, exit, sockets.end))
    const made = yield* PgClient.make({
      ...options,
      stream: sockets.connect,
      maxMessageSize: largestRow,
      connectTimeout: options.connectTimeout ?? "5 seconds",
      applicationName: options.applicationName ?? "effect-units",
      startupParameters: schema === undefined ? undefined : { search_path: `"${schema.replaceAll("\"", "\"\"")}"` }
    }).pipe(
      // A server answers in real time, whatever clock a test gives its program.
      inRealTime,
      Scope.provide(scope)
    )
    const client = Object.assign(made, { withTransaction: Transaction.withTransaction(made.withTransaction) })
    if (schema === undefined) {
      yield* client`SELECT 1`
      return client
    }
    // Asked first: who may not create schemas may use one that is there.
    const exists = client`SELECT 1 FROM pg_namespace WHERE nspname = ${schema}`
    if ((yield* exists).length === 0) {
      yield* client`CREATE SCHEMA ${client(schema)}`.pipe(
        // Another process was faster.
        Effect.catch((error) => Effect.flatMap(exists, (rows) => rows.length > 0 ? Effect.void : Effect.fail(error)))
      )
    }
    return client
  }
)

/**
 * Layer of a `SqlClient` on PostgreSQL, and of the same as `PgClient`, which also listens and notifies.
 *
 * Building it fails with `SqlError` where the server does not answer or refuses.
 *
 * **Example** (A client for an application's own tables)
 *
 * ```ts
 * const program = Effect.gen(function*() {
 *   const sql = yield* SqlClient.SqlClient
 *   return yield* sql`SELECT ${"hello"} AS greeting`
 * }).pipe(Effect.provide(Postgres.layerConfig()))
 * ```
 *
 * @category layers
 * @since 0.1.0
 */
export const layer = (options: Options): Layer.Layer<SqlClient.SqlClient | PgClient.PgClient, SqlError.SqlError> =>
  Layer.effectContext(
    Effect.map(
      make(options),
      (client) => Context.make(SqlClient.SqlClient, client).pipe(Context.add(PgClient.PgClient, client))
    )
  ).pipe(Layer.provide(Reactivity.layer))

/**
 * `layer` with the URL from the variable `DATABASE_URL`.
 *
 * @category layers
 * @since 0.1.0
 */
export const layerConfig = (
  options?: Omit<Options, "url">
): Layer.Layer<SqlClient.SqlClient | PgClient.PgClient, SqlError.SqlError | Config.ConfigError> =>
  Layer.unwrap(Effect.map(databaseUrl, (url) => layer({ ...options, url })))

/**
 * Reads the URL of the database from `DATABASE_URL`.
 *
 * @category config
 * @since 0.1.0
 */
export const databaseUrl: Config.Config<Redacted.Redacted> = Config.Redacted("DATABASE_URL")
