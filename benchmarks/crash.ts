/**
 * What the acknowledgement of a message broker is worth: a server is killed under load, started again on what its disk has, and asked for
 * the events that it had acknowledged; and what the settings of the server cost, in events acknowledged a second until it is killed. What a
 * power cut takes beside that cannot be shown on one machine: the kernel outlives the server, and writes what it was given.
 *
 *     node benchmarks/crash.ts [--quick] [--json FILE]
 */
import { jetstream, jetstreamManager } from "@nats-io/jetstream"
import { connect } from "@nats-io/transport-node"
import { Context, Effect, Exit, Fiber, Layer, References, type Scope } from "effect"
import { execFileSync } from "node:child_process"
import { createClient } from "redis"
import * as EventPublisher from "../src/EventPublisher.ts"
import * as Nats from "../src/publishers/Nats.ts"
import * as Redis from "../src/publishers/Redis.ts"
import { ownNats, ownRedis, type OwnServer } from "../test/fixtures/ownServer.ts"
import { eventsOf } from "./events.ts"
import { main, type Report } from "./harness.ts"

const window = 512

/** Kills a server under load, starts it again, and counts what was acknowledged, how fast, and what of it is gone. */
const lostBy = <E>(
  own: Effect.Effect<OwnServer, never, Scope.Scope>,
  layerOf: (server: OwnServer) => Layer.Layer<EventPublisher.EventPublisher, E>,
  stored: (server: OwnServer) => Promise<ReadonlySet<string>>,
  kills: number,
  count: number
) =>
  Effect.gen(function*() {
    const server = yield* own
    const publisher = Context.get(yield* Layer.build(layerOf(server)), EventPublisher.EventPublisher)
    const acknowledged: Array<string> = []
    const publish = (count: number) =>
      Effect.forEach(
        eventsOf(count, 16),
        // One that is refused was not acknowledged, and may be missing.
        (event) =>
          Effect.ignore(Effect.tap(publisher.publish(event), () => Effect.sync(() => acknowledged.push(event.id)))),
        { concurrency: window, discard: true }
      )
    yield* publish(count)
    let lost = 0
    let measured = 0
    let ms = 0
    for (let kill = 0; kill < kills; kill++) {
      const already = acknowledged.length
      const start = performance.now()
      const publishing = yield* Effect.forkScoped(publish(2 * count))
      yield* Effect.repeat(Effect.sleep("1 millis"), {
        while: () => acknowledged.length < already + count && publishing.pollUnsafe() === undefined
      })
      ms += performance.now() - start
      const before = [...acknowledged]
      measured += before.length - already
      yield* server.kill
      yield* server.start
      const there = yield* Effect.promise(() => stored(server))
      lost += before.filter((id) => !there.has(id)).length
      yield* Fiber.join(publishing)
    }
    return { acknowledged: acknowledged.length, lost, perSecond: Math.round(1000 * measured / ms) }
  }).pipe(
    Effect.provideService(References.MinimumLogLevel, "Error"),
    Effect.scoped,
    Effect.runPromise
  )

const natsIds = async (server: OwnServer): Promise<ReadonlySet<string>> => {
  const nc = await connect({ servers: server.url })
  const manager = await jetstreamManager(nc)
  const ids = new Set<string>()
  const { state } = await manager.streams.info("units")
  const consumer = await jetstream(nc).consumers.get("units")
  if (state.messages > 0) {
    for await (const message of await consumer.consume({ max_messages: 1000 })) {
      ids.add(message.headers?.get("Nats-Msg-Id") ?? "")
      if (message.seq === state.last_seq) break
    }
  }
  await nc.close()
  return ids
}

const redisIds = async (server: OwnServer): Promise<ReadonlySet<string>> => {
  const client = await createClient({ url: server.url }).connect()
  const entries = await client.xRange("units", "-", "+")
  client.destroy()
  return new Set(entries?.map(({ message }) => message["id"] ?? ""))
}

/** A program and its version, as it tells it: `nats-server: v2.10.27`, `Redis server v=7.0.15 sha=...`. */
const versionOf = (program: string): string => {
  const told = execFileSync(program, ["--version"], { encoding: "utf8" })
  return `${program} ${/\bv=?([\d.]+)/.exec(told)?.[1] ?? told.trim()}`
}

/** Every server, in the order of the table. */
export const run = async (quick: boolean): Promise<Report> => {
  const kills = quick ? 1 : 5
  const count = quick ? 500 : 8000
  const options = { policy: "closed", timeout: "30 seconds" } as const
  const nats = (config?: string) =>
    lostBy(ownNats(config), ({ url }) => Nats.layerPublisher({ ...options, servers: url }), natsIds, kills, count)
  const redis = (...args: ReadonlyArray<string>) =>
    lostBy(ownRedis(...args), ({ url }) => Redis.layerPublisher({ ...options, url }), redisIds, kills, count)
  const always = "jetstream { sync_interval: always }"
  // Versions before 2.10 refuse the setting, and do not start.
  const canFlush = Exit.isSuccess(await Effect.runPromiseExit(Effect.scoped(ownNats(always))))
  const results = {
    "NATS JetStream": await nats(),
    ...(canFlush ? { "NATS JetStream, sync_interval always": await nats(always) } : {}),
    "Redis Streams, appendfsync everysec": await redis("--appendfsync", "everysec"),
    "Redis Streams, appendfsync always": await redis()
  }
  return {
    title: `Servers killed ${kills} times under load`,
    rows: Object.entries(results).map(([server, { acknowledged, lost, perSecond }]) => ({
      server,
      acknowledged,
      lost,
      "acknowledged a second": perSecond
    })),
    notes: [
      `${
        ["nats-server", "redis-server"].map(versionOf).join(", ")
      }; ${window} events under way at a time. A kill leaves what the kernel was given to write; only a power cut takes it.`,
      ...canFlush
        ? []
        : ["The installed nats-server does not know `sync_interval: always`, which begins with 2.10: it is left out."]
    ],
    targets: Object.entries(results).map(([server, { lost }]) => ({
      target: `${server}: nothing that was acknowledged is lost`,
      measured: String(lost),
      met: lost === 0
    }))
  }
}

if (import.meta.main) await main([run])
