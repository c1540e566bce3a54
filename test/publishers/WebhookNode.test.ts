import { NodeHttpClient } from "@effect/platform-node"
import { assert, describe, it } from "@effect/vitest"
import { Context, Effect, Layer, Logger, Redacted } from "effect"
import type { HttpClient } from "effect/http"
import Dns from "node:dns"
import { syncBuiltinESMExports } from "node:module"
import * as EventPublisher from "../../src/EventPublisher.ts"
import * as Webhook from "../../src/publishers/Webhook.ts"
import * as WebhookNode from "../../src/publishers/WebhookNode.ts"
import { domainEvent } from "../fixtures/events.ts"
import * as WebhookServer from "./WebhookServer.ts"

const secrets = [Redacted.make(`whsec_${Buffer.alloc(32, 7).toString("base64")}`)] as const

const server = Effect.acquireRelease(
  Effect.promise(() => WebhookServer.start()),
  (server) => Effect.promise(() => server.close())
)

/**
 * A name server that means harm, for the names under `rebinding.test`: the first answer of each name is a public address, as it is while
 * somebody checks it, and all others are this machine. What it was asked is the count of each name.
 */
const rebinding = Effect.acquireRelease(
  Effect.sync(() => {
    const { lookup, promises } = Dns
    const promised = promises.lookup
    const asked = new Map<string, number>()
    const answer = (name: string) => {
      const times = (asked.get(name) ?? 0) + 1
      asked.set(name, times)
      return { address: times === 1 ? "8.8.8.8" : "127.0.0.1", family: 4 }
    }
    const replace = (callbacks: typeof lookup, promises: typeof promised) => {
      Dns.lookup = callbacks
      Dns.promises.lookup = promises
      syncBuiltinESMExports()
    }
    const callbacks = (name: string, options: Dns.LookupOptions, callback: (...given: Array<unknown>) => void) => {
      if (!name.endsWith(".rebinding.test")) return lookup(name, options, callback)
      const { address, family } = answer(name)
      queueMicrotask(() =>
        options.all === true ? callback(null, [{ address, family }]) : callback(null, address, family)
      )
    }
    const promise = async (name: string, options: Dns.LookupOptions) =>
      name.endsWith(".rebinding.test") ? [answer(name)] : promised(name, options)
    // Of the many forms of these functions, the ones that are called here: with options.
    replace(callbacks as typeof lookup, promise as typeof promised)
    return { asked, restore: () => replace(lookup, promised) }
  }),
  ({ restore }) => Effect.sync(restore)
)

const turn = Effect.promise(() => new Promise(setImmediate))

/** Publishes one event, and gives the state of the endpoints once all have answered or failed. */
const publishOnce = Effect.fnUntraced(function*<R>(
  layer: Layer.Layer<EventPublisher.EventPublisher | Webhook.Endpoints | R, Webhook.WebhookError>
) {
  const context = yield* Layer.build(Layer.provide(layer, Logger.layer([])))
  Context.get(context, EventPublisher.EventPublisher).offer(domainEvent("1"))
  const { list } = Context.get(context, Webhook.Endpoints)
  while (true) {
    const states = yield* list
    if (states.every(({ status, waiting }) => status === "retrying" || waiting === 0)) return states
    yield* turn
  }
})

describe("WebhookNode", () => {
  it.live("is led nowhere by a name server that changes its answer after the check", () =>
    Effect.gen(function*() {
      const receiver = yield* server
      const { asked } = yield* rebinding
      const at = (name: string): Webhook.Options => ({
        flushTimeout: 0,
        endpoints: [{ name, url: `http://${name}.rebinding.test:${receiver.port}`, secrets }]
      })
      // The application's client falls for it.
      const [fooled] = yield* publishOnce(Layer.provide(Webhook.layer(at("fooled")), NodeHttpClient.layerNodeHttp))
      assert.deepStrictEqual([fooled?.waiting, receiver.received.length], [0, 1])

      // Also beside the application's client, which is the same Layer over another agent.
      const layer = Layer.provideMerge(WebhookNode.layer(at("safe")), NodeHttpClient.layerNodeHttp)
      const [safe] = yield* publishOnce<HttpClient.HttpClient>(layer)
      assert.deepStrictEqual(safe?.error?.reason, new Webhook.Unreachable({ code: "EACCES" }))
      assert.deepStrictEqual([...asked], [["fooled.rebinding.test", 2], ["safe.rebinding.test", 2]])
      assert.strictEqual(receiver.connections(), 1)
    }))

  it.live("reaches addresses that are not public where all endpoints of the host allow it", () =>
    Effect.gen(function*() {
      const receiver = yield* server
      const endpoint = (name: string, host: string, allowPrivateAddresses: boolean): Webhook.Endpoint => ({
        name,
        url: `http://${host}:${receiver.port}/${name}`,
        secrets,
        allowPrivateAddresses
      })
      const states = yield* publishOnce(WebhookNode.layer({ endpoints: [endpoint("own", "localhost", true)] }))
      assert.deepStrictEqual(states.map(({ error, waiting }) => ({ error, waiting })), [{
        error: undefined,
        waiting: 0
      }])
      const mixed = yield* publishOnce(WebhookNode.layer({
        flushTimeout: 0,
        endpoints: [endpoint("own", "localhost", true), endpoint("another's", "localhost", false)]
      }))
      assert.deepStrictEqual(mixed.map(({ error }) => error?.reason._tag), ["Unreachable", "ForbiddenAddress"])
      assert.deepStrictEqual(receiver.received.map(({ path }) => path), ["/own"])
    }))

  it.live("says that an address is wrong", () =>
    Effect.gen(function*() {
      const error = yield* Effect.flip(
        Effect.scoped(Layer.build(WebhookNode.layer({ endpoints: [{ name: "x", url: "nowhere", secrets }] })))
      )
      assert.deepStrictEqual(error.reason, new Webhook.InvalidSettings({ detail: "url is no address" }))
    }))
})
