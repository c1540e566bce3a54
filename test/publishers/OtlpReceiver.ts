/** A stand-in for an OpenTelemetry receiver: OTLP over HTTP on a loopback socket, in JSON. It fails on request. */
import * as Http from "node:http"
import type { AddressInfo } from "node:net"

type AnyValue = {
  readonly stringValue?: string
  readonly boolValue?: boolean
  readonly intValue?: number | string
  readonly doubleValue?: number
  readonly arrayValue?: { readonly values: ReadonlyArray<AnyValue> }
}

interface KeyValue {
  readonly key: string
  readonly value: AnyValue
}

/** A span, with its attributes as plain values. */
export interface Span {
  readonly traceId: string
  readonly spanId: string
  readonly parentSpanId: string | undefined
  readonly name: string
  readonly kind: number
  readonly startTimeUnixNano: string
  readonly endTimeUnixNano: string
  readonly attributes: Readonly<Record<string, unknown>>
  readonly events: ReadonlyArray<{
    readonly name: string
    readonly timeUnixNano: string
    readonly attributes: Readonly<Record<string, unknown>>
  }>
  readonly droppedEventsCount: number
  readonly links: ReadonlyArray<{ readonly traceId: string; readonly spanId: string }>
  readonly status: { readonly code: number; readonly message?: string }
}

/** A data point of a metric that counts or measures. */
export interface DataPoint {
  readonly name: string
  readonly attributes: Readonly<Record<string, unknown>>
  readonly value: number
}

export interface Received {
  readonly path: string
  readonly headers: Http.IncomingHttpHeaders
  readonly body: Buffer
}

export type Answer = (response: Http.ServerResponse) => void

export interface OtlpReceiver {
  readonly url: string
  readonly received: ReadonlyArray<Received>
  /** The spans that were taken in JSON, in the order of their arrival, repeated ones as often as they came. */
  readonly spans: () => ReadonlyArray<Span>
  /** The resource and the scopes of the newest spans. */
  readonly resource: () => Readonly<Record<string, unknown>>
  /** The data points of the newest export of metrics: counters by value, histograms by count. */
  readonly points: () => ReadonlyArray<DataPoint>
  /** Queues answers; without one, everything is taken. What is answered with an error is not taken. */
  readonly answer: (...answers: ReadonlyArray<Answer>) => void
  readonly close: () => Promise<void>
}

export const status = (code: number, headers: Http.OutgoingHttpHeaders = {}): Answer => (response) => {
  response.writeHead(code, headers).end()
}

const plain = (value: AnyValue): unknown =>
  value.stringValue ?? value.boolValue ?? value.doubleValue ??
    (value.intValue === undefined ? value.arrayValue?.values.map(plain) : Number(value.intValue))

const record = (list: ReadonlyArray<KeyValue> | undefined): Readonly<Record<string, unknown>> =>
  Object.fromEntries((list ?? []).map(({ key, value }) => [key, plain(value)]))

// What follows reads the JSON of OTLP as its specification says it is; a test that meets anything else fails by it.
interface Traces {
  readonly resourceSpans: ReadonlyArray<{
    readonly resource: { readonly attributes: ReadonlyArray<KeyValue> }
    readonly scopeSpans: ReadonlyArray<{
      readonly spans: ReadonlyArray<
        Omit<Span, "attributes" | "events"> & {
          readonly attributes: ReadonlyArray<KeyValue>
          readonly events: ReadonlyArray<
            Omit<Span["events"][number], "attributes"> & { readonly attributes: ReadonlyArray<KeyValue> }
          >
        }
      >
    }>
  }>
}

interface Metrics {
  readonly resourceMetrics: ReadonlyArray<{
    readonly scopeMetrics: ReadonlyArray<{
      readonly metrics: ReadonlyArray<{
        readonly name: string
        readonly sum?: Points
        readonly gauge?: Points
        readonly histogram?: Points
      }>
    }>
  }>
}

interface Points {
  readonly dataPoints: ReadonlyArray<{
    readonly attributes: ReadonlyArray<KeyValue>
    readonly asInt?: string
    readonly asDouble?: number
    readonly count?: number
  }>
}

export const start = (): Promise<OtlpReceiver> => {
  const received: Array<Received> = []
  const taken: Array<Received> = []
  const queued: Array<Answer> = []
  const server = Http.createServer((request, response) => {
    const chunks: Array<Buffer> = []
    request.on("data", (chunk: Buffer) => chunks.push(chunk))
    request.on("end", () => {
      const one = { path: request.url ?? "", headers: request.headers, body: Buffer.concat(chunks) }
      received.push(one)
      const answer = queued.shift()
      if (answer === undefined) {
        taken.push(one)
        response.writeHead(200, { "content-type": "application/json" }).end("{}")
      } else {
        answer(response)
        if (response.statusCode === 200) taken.push(one)
      }
    })
  })

  const bodies = (path: string) =>
    taken.filter((one) => one.path === path && one.headers["content-type"] === "application/json").map(({ body }) =>
      JSON.parse(body.toString())
    )

  return new Promise((resolve) => {
    server.listen(0, "127.0.0.1", () => {
      // A TCP server that listens has an address with a port.
      const { port } = server.address() as AddressInfo
      resolve({
        url: `http://127.0.0.1:${port}`,
        received,
        spans: () =>
          bodies("/v1/traces").flatMap(({ resourceSpans }: Traces) =>
            resourceSpans.flatMap(({ scopeSpans }) => scopeSpans.flatMap(({ spans }) => spans))
          ).map((span) => ({
            ...span,
            attributes: record(span.attributes),
            events: span.events.map((event) => ({ ...event, attributes: record(event.attributes) }))
          })),
        resource: () => {
          const last: Traces | undefined = bodies("/v1/traces").at(-1)
          return record(last?.resourceSpans[0]?.resource.attributes)
        },
        points: () => {
          const last: Metrics | undefined = bodies("/v1/metrics").at(-1)
          const metrics = last?.resourceMetrics.flatMap(({ scopeMetrics }) =>
            scopeMetrics.flatMap(({ metrics }) => metrics)
          )
          return (metrics ?? []).flatMap(({ gauge, histogram, name, sum }) =>
            (sum ?? gauge ?? histogram)?.dataPoints.map((point) => ({
              name,
              attributes: record(point.attributes),
              value: Number(point.asInt ?? point.asDouble ?? point.count)
            })) ?? []
          )
        },
        answer: (...answers) => void queued.push(...answers),
        close: () =>
          new Promise((resolve) => {
            server.closeAllConnections()
            server.close(() => resolve())
          })
      })
    })
  })
}
