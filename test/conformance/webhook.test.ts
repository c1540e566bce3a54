import { NodeHttpClient } from "@effect/platform-node"
import * as vitest from "@effect/vitest"
import { Effect, Layer, Redacted } from "effect"
import * as Http from "node:http"
import { EventBus } from "../../src/index.ts"
import * as Webhook from "../../src/publishers/Webhook.ts"
import { publisherSuite } from "../../src/testing/index.ts"

const secrets = [Redacted.make(`whsec_${Buffer.alloc(32, 7).toString("base64")}`)] as const

/** An endpoint that verifies what it is sent, and its address. The events go to the bus, where a subscriber reads them. */
const receiver = Effect.gen(function*() {
  const bus = yield* EventBus.EventBus
  const run = Effect.runPromiseWith(yield* Effect.context<never>())
  const seen = Webhook.makeSeenIds({ capacity: 100_000 })
  const respond = (request: Http.IncomingMessage, response: Http.ServerResponse): void => {
    const chunks: Array<Buffer> = []
    request.on("data", (chunk: Buffer) => chunks.push(chunk))
    request.on("end", () => {
      const received = Webhook.receive(
        { secrets, headers: request.headers, body: Buffer.concat(chunks) },
        (events) => Effect.sync(() => events.forEach(bus.publish))
      ).pipe(
        Effect.as(204),
        Effect.catchTag("WebhookError", (error) => Effect.succeed(error.responseStatus)),
        Effect.provideService(Webhook.CurrentSeenIds, seen)
      )
      void run(received).then((status) => response.writeHead(status).end())
    })
  }
  const server = yield* Effect.acquireRelease(
    Effect.callback<Http.Server>((resume) => {
      const server = Http.createServer(respond)
      server.listen(0, "127.0.0.1", () => resume(Effect.succeed(server)))
    }),
    (server) =>
      Effect.callback<void>((resume) => {
        server.close(() => resume(Effect.void))
        server.closeAllConnections()
      })
  )
  const address = server.address()
  if (address === null || typeof address === "string") return yield* Effect.die(new Error("no TCP port"))
  return `http://127.0.0.1:${address.port}/events`
})

for (const mode of ["structured", "batched"] as const) {
  publisherSuite({
    vitest,
    name: `webhook, ${mode}`,
    layer: () =>
      Layer.unwrap(Effect.map(receiver, (url) =>
        Webhook.layer({
          endpoints: [{ name: "receiver", url, secrets, mode, allowPrivateAddresses: true }],
          // One request an event: ten thousand of them take a while to go.
          flushTimeout: "1 minute"
        }))).pipe(
          Layer.provide(NodeHttpClient.layerNodeHttpOptions({ keepAlive: true })),
          Layer.merge(EventBus.layerSubscriber({ capacity: 16_384 })),
          Layer.provide(EventBus.layer)
        ),
    promises: {
      durable: false,
      ordered: "global",
      groups: false,
      replay: false,
      dedup: "none",
      transactional: false,
      newSubscriberSeesOld: false,
      maxPayloadBytes: Infinity
    }
  })
}
