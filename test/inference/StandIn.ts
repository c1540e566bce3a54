/**
 * A server on a loopback socket that stands in for one that serves models. It is made of routes, answers as they say, misbehaves on
 * request, and tells what it saw: requests, connections, clients that left.
 *
 *     const server = await StandIn.start([...OpenAiServer.routes({ models }), ...more])
 *     server.fault("/v1/chat/completions", { kind: "cut", after: 100 })   // one request breaks after 100 bytes
 *     // ... ask server.url ...
 *     await server.close()
 */
import * as Http from "node:http"
import { listen, makeSignal, read, stop } from "../fixtures/httpServer.ts"

/** A request that came in. */
export interface Received {
  readonly method: string
  /** Path and query. */
  readonly url: URL
  readonly headers: Http.IncomingHttpHeaders
  readonly body: Buffer
}

/** What a route answers: a body that comes at once, an object of which the JSON does, or pieces, each of which is sent by itself. */
export interface Reply {
  readonly status?: number
  readonly headers?: Readonly<Record<string, string>>
  readonly body: string | Uint8Array | object | ReadonlyArray<string | Uint8Array>
}

/** A path and what it does. `path` is exact, or ends in `*` and stands for all that begin with it. */
export interface Route {
  readonly method: string
  readonly path: string
  readonly handle: (request: Received) => Reply
}

/** How one answer goes wrong. Each fault is used up by one request. */
export type Fault =
  /** No answer comes at all, and the connection stays open. */
  | { readonly kind: "silence" }
  /** Another answer. */
  | ({ readonly kind: "answer" } & Reply)
  /** The connection breaks after so many bytes of the body. */
  | { readonly kind: "cut"; readonly after: number }
  /** Nothing more comes after so many bytes of the body, and the connection stays open until `go`. */
  | { readonly kind: "stall"; readonly after: number }
  /** The body ends after so many bytes, as if that were all. */
  | { readonly kind: "end"; readonly after: number }
  /** The body comes in pieces of so many bytes. */
  | { readonly kind: "split"; readonly bytes: number }

export interface StandIn {
  /** Base address, without a slash at its end. */
  readonly url: string
  /** Every request so far, in order. */
  readonly requests: ReadonlyArray<Received>
  /** How many connections have been made. */
  readonly connections: () => number
  /** How many answers are under way. */
  readonly open: () => number
  /** Queues faults for a path. */
  readonly fault: (path: string, ...faults: ReadonlyArray<Fault>) => void
  /** Lets the answers that stall go on. */
  readonly go: () => void
  /** Resolves when a fault leaves a client waiting. */
  readonly waiting: () => Promise<void>
  /** Resolves when a client closes its connection before it has its answer. */
  readonly left: () => Promise<void>
  readonly close: () => Promise<void>
}

const bytesOf = (part: string | Uint8Array): Buffer => Buffer.from(part)

const partsOf = (body: Reply["body"]): ReadonlyArray<Buffer> => {
  if (typeof body === "string" || body instanceof Uint8Array) return [bytesOf(body)]
  return Array.isArray(body) ? body.map(bytesOf) : [bytesOf(JSON.stringify(body))]
}

const typeOf = (body: Reply["body"]): string =>
  typeof body === "string" || body instanceof Uint8Array || Array.isArray(body) ? "text/plain" : "application/json"

const sleep = (): Promise<void> => new Promise((resolve) => setImmediate(resolve))

/** Sends parts one by one, so that as a rule each is read by itself, as long as the client is there. */
const send = async (response: Http.ServerResponse, parts: ReadonlyArray<Buffer>): Promise<void> => {
  for (const part of parts) {
    if (response.destroyed) return
    await new Promise<void>((resolve) => {
      const done = () => {
        response.off("close", done)
        resolve()
      }
      // A client that leaves takes the callback with it.
      response.on("close", done)
      response.write(part, done)
    })
    await sleep()
  }
}

const cutInto = (bytes: Buffer, size: number): ReadonlyArray<Buffer> =>
  Array.from({ length: Math.ceil(bytes.length / size) }, (_, index) => bytes.subarray(index * size, (index + 1) * size))

/** Starts a server with these routes on a free port of the loopback interface. */
export const start = async (routes: ReadonlyArray<Route>): Promise<StandIn> => {
  const requests: Array<Received> = []
  const faults = new Map<string, Array<Fault>>()
  const stalled: Array<() => void> = []
  const waiting = makeSignal()
  const left = makeSignal()
  let connections = 0
  let open = 0

  const answer = async (response: Http.ServerResponse, reply: Reply, fault: Fault | undefined): Promise<void> => {
    const parts = partsOf(reply.body)
    const all = Buffer.concat(parts)
    response.socket?.setNoDelay(true)
    response.writeHead(reply.status ?? 200, { "content-type": typeOf(reply.body), ...reply.headers })
    switch (fault?.kind) {
      case "cut":
        await send(response, [all.subarray(0, fault.after)])
        response.socket?.resetAndDestroy()
        return
      case "stall":
        await send(response, [all.subarray(0, fault.after)])
        waiting.fire()
        await new Promise<void>((resolve) => stalled.push(resolve))
        await send(response, [all.subarray(fault.after)])
        break
      case "end":
        await send(response, [all.subarray(0, fault.after)])
        break
      case "split":
        await send(response, cutInto(all, fault.bytes))
        break
      default:
        if (parts.length > 1) await send(response, parts)
        else response.end(all)
    }
    response.end()
  }

  const serve = async (request: Http.IncomingMessage, response: Http.ServerResponse): Promise<void> => {
    const url = new URL(request.url ?? "/", "http://localhost")
    open++
    response.on("close", () => {
      open--
      if (!response.writableFinished) left.fire()
    })
    let body: Buffer
    try {
      body = await read(request)
    } catch {
      // A request that breaks off before its body is there needs no answer.
      response.destroy()
      return
    }
    const received: Received = { method: request.method ?? "", url, headers: request.headers, body }
    requests.push(received)
    const fault = faults.get(url.pathname)?.shift()
    if (fault?.kind === "silence") {
      waiting.fire()
      return
    }
    const route = routes.find(({ method, path }) =>
      method === received.method &&
      (path.endsWith("*") ? url.pathname.startsWith(path.slice(0, -1)) : url.pathname === path)
    )
    const reply = fault?.kind === "answer"
      ? fault
      : route === undefined
      ? { status: 404, body: "404 page not found" }
      : route.handle(received)
    await answer(response, reply, fault)
  }
  const server = Http.createServer((request, response) => {
    // What is odd about a route ends its request, and a test with it.
    serve(request, response).catch((defect: unknown) => response.destroy(defect instanceof Error ? defect : undefined))
  })
  server.on("connection", () => connections++)

  return {
    url: await listen(server),
    requests,
    connections: () => connections,
    open: () => open,
    fault: (path, ...more) => {
      faults.set(path, [...faults.get(path) ?? [], ...more])
    },
    go: () => {
      for (const resume of stalled.splice(0)) resume()
    },
    waiting: waiting.wait,
    left: left.wait,
    close: () => stop(server)
  }
}
