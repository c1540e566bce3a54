/**
 * The publisher to webhooks over a client of its own on Node, which connects to no address but those that were checked.
 *
 * @since 0.1.0
 */
import * as NodeHttpClient from "@effect/platform-node/NodeHttpClient"
import * as Layer from "effect/Layer"
import * as Redacted from "effect/Redacted"
import * as Dns from "node:dns"
import type * as Net from "node:net"
import type * as EventPublisher from "../EventPublisher.ts"
import * as Webhook from "./Webhook.ts"

const hostOf = ({ url }: Webhook.Endpoint): string => {
  const text = typeof url === "string" ? url : Redacted.value(url)
  return URL.canParse(text) ? new URL(text).hostname : ""
}

/** Refuses names that have an address that is not public, but those that only endpoints have which allow that. */
const lookupFor = (endpoints: ReadonlyArray<Webhook.Endpoint>): Net.LookupFunction => {
  const allowed = new Set(endpoints.filter((one) => one.allowPrivateAddresses === true).map(hostOf))
  for (const one of endpoints) if (one.allowPrivateAddresses !== true) allowed.delete(hostOf(one))
  return (hostname, options, callback) =>
    allowed.has(hostname) ? Dns.lookup(hostname, options, callback) : Webhook.publicLookup(hostname, options, callback)
}

/**
 * Layer as `Webhook.layer`, which needs no client: it keeps connections of its own over `node:http` and `node:https`, and looks names up by
 * `Webhook.publicLookup`. So a name server that changes its answer after the check leads nowhere; the delivery fails with `Unreachable`
 * and the code `EACCES`.
 *
 * **Gotchas**
 *
 * `allowPrivateAddresses` goes by host here: of endpoints of one host either all have it, or none is sent to an address that is not public.
 *
 * **Example** (An endpoint that somebody else chose)
 *
 * ```ts
 * const layer = WebhookNode.layer({ endpoints: [{ name: customer.id, url: customer.url, secrets: [customer.secret] }] })
 * ```
 *
 * @category layers
 * @since 0.1.0
 */
export const layer = (
  options: Webhook.Options
): Layer.Layer<EventPublisher.EventPublisher | Webhook.Endpoints, Webhook.WebhookError> =>
  Webhook.layer(options).pipe(Layer.provide(
    // As a layer it is the client that the application may have, over another agent, and would be taken for that one.
    Layer.fresh(NodeHttpClient.layerNodeHttpOptions({ keepAlive: true, lookup: lookupFor(options.endpoints) }))
  ))
