/**
 * A stand-in for the receivers of webhooks, on a loopback socket. It answers 204 at once, and misbehaves on request.
 *
 * Its certificate is self-signed, for `localhost` and `127.0.0.1`, and of no use elsewhere.
 */
import * as Http from "node:http"
import * as Https from "node:https"
import type { AddressInfo, Socket } from "node:net"

/** A request that came in, whole. */
export interface Received {
  readonly method: string
  readonly path: string
  readonly headers: Http.IncomingHttpHeaders
  readonly body: Buffer
}

/** Answers one request, in any way. */
export type Answer = (response: Http.ServerResponse, socket: Socket) => void

export interface WebhookServer {
  /** Without a path. */
  readonly url: string
  readonly port: number
  /** Every request so far, in order. */
  readonly received: ReadonlyArray<Received>
  /** Connections that were opened so far. */
  readonly connections: () => number
  /** The next request that nobody has asked for. */
  readonly next: () => Promise<Received>
  /** Queues answers for a path. */
  readonly answer: (path: string, ...answers: ReadonlyArray<Answer>) => void
  /** Answers all requests for a path this way, when none is queued; `undefined` goes back to 204. */
  readonly always: (path: string, answer: Answer | undefined) => void
  readonly close: () => Promise<void>
}

/** An answer of a status, and perhaps headers. */
export const status = (code: number, headers: Http.OutgoingHttpHeaders = {}): Answer => (response) => {
  response.writeHead(code, headers).end()
}

/** No answer, and the connection stays open. */
export const silence: Answer = () => {}

/** The connection breaks before there is an answer. */
export const hangUp: Answer = (_, socket) => void socket.destroy()

export const certificate = `-----BEGIN CERTIFICATE-----
MIIBZzCCAQ2gAwIBAgIBATAKBggqhkjOPQQDAjAUMRIwEAYDVQQDDAlsb2NhbGhv
c3QwIBcNMjAwMTAxMDAwMDAwWhgPMjEyMDAxMDEwMDAwMDBaMBQxEjAQBgNVBAMM
CWxvY2FsaG9zdDBZMBMGByqGSM49AgEGCCqGSM49AwEHA0IABMpjsQp3J3CZ2hJw
tryuyMldIF6KGJ8rzuapgmQrc9X87Nou77vxEkjevFMMZWD9chMeBcNhawvM5Nek
Z0pHd46jTjBMMBoGA1UdEQQTMBGCCWxvY2FsaG9zdIcEfwAAATAPBgNVHRMBAf8E
BTADAQH/MB0GA1UdDgQWBBQmTX1NlgrnXC9nFTRxa4oiOSM5wzAKBggqhkjOPQQD
AgNIADBFAiEAiGkVk/5KA3EDAP/1ViV0RmlHsXFl0I7X9uwGoWxOWVYCIAv5F6da
n/c6ZQkouk8sKujY1n+nATH/4nhJvo4ZbbL6
-----END CERTIFICATE-----`

const key = `-----BEGIN PRIVATE KEY-----
MIGHAgEAMBMGByqGSM49AgEGCCqGSM49AwEHBG0wawIBAQQgrHVNLVyZ4sbRmc0B
2YG5hjpNzkhYXZAUssDh3DA+AHihRANCAATKY7EKdydwmdoScLa8rsjJXSBeihif
K87mqYJkK3PV/OzaLu+78RJI3rxTDGVg/XITHgXDYWsLzOTXpGdKR3eO
-----END PRIVATE KEY-----`

export const start = (options: { readonly tls?: boolean } = {}): Promise<WebhookServer> => {
  const received: Array<Received> = []
  const unread: Array<Received> = []
  const readers: Array<(request: Received) => void> = []
  const queued = new Map<string, Array<Answer>>()
  const constant = new Map<string, Answer>()
  const sockets = new Set<Socket>()
  let connections = 0

  const onRequest: Http.RequestListener = (request, response) => {
    const chunks: Array<Buffer> = []
    request.on("data", (chunk: Buffer) => chunks.push(chunk))
    request.on("end", () => {
      const path = request.url ?? ""
      const one = { method: request.method ?? "", path, headers: request.headers, body: Buffer.concat(chunks) }
      received.push(one)
      const answer = queued.get(path)?.shift() ?? constant.get(path) ?? status(204)
      answer(response, request.socket)
      const reader = readers.shift()
      if (reader === undefined) unread.push(one)
      else reader(one)
    })
  }
  const server = options.tls === true
    ? Https.createServer({ key, cert: certificate }, onRequest)
    : Http.createServer(onRequest)
  server.on(options.tls === true ? "secureConnection" : "connection", (socket: Socket) => {
    connections++
    sockets.add(socket)
    socket.on("close", () => sockets.delete(socket))
  })

  return new Promise((resolve) => {
    server.listen(0, "127.0.0.1", () => {
      // A TCP server that listens has an address with a port.
      const { port } = server.address() as AddressInfo
      resolve({
        url: `${options.tls === true ? "https" : "http"}://127.0.0.1:${port}`,
        port,
        received,
        connections: () => connections,
        next: () =>
          new Promise((resolve) => {
            const first = unread.shift()
            if (first === undefined) readers.push(resolve)
            else resolve(first)
          }),
        answer: (path, ...answers) => void queued.set(path, [...(queued.get(path) ?? []), ...answers]),
        always: (path, answer) => void (answer === undefined ? constant.delete(path) : constant.set(path, answer)),
        close: () =>
          new Promise((resolve) => {
            for (const socket of sockets) socket.destroy()
            server.close(() => resolve())
          })
      })
    })
  })
}
