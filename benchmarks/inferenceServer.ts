/**
 * A server of models for benchmarks, as a process of its own: it writes its address, and ends with the process that started it.
 *
 * The model says what it does: `wait` answers after 5 ms; `rate:R:N` streams N chunks, R of them a second, or as fast as the client takes
 * them where R is 0. The first comes at once.
 */
import * as Http from "node:http"
import type { AddressInfo } from "node:net"

const usage = { prompt_tokens: 1, completion_tokens: 1, total_tokens: 2 }

const answer = JSON.stringify({
  id: "chatcmpl-1",
  object: "chat.completion",
  created: 1,
  model: "wait",
  choices: [{ index: 0, message: { role: "assistant", content: "an answer of some words" }, finish_reason: "stop" }],
  usage
})

const event = (value: unknown): string => `data: ${typeof value === "string" ? value : JSON.stringify(value)}\n\n`

const head = { id: "chatcmpl-1", object: "chat.completion.chunk", created: 1, model: "m" }
const chunk = event({ ...head, choices: [{ index: 0, delta: { content: " word" }, finish_reason: null }] })
const end = event({ ...head, choices: [{ index: 0, delta: {}, finish_reason: "stop" }] }) +
  event({ ...head, choices: [], usage }) + event("[DONE]")

/** Until the client has taken what was written, or is gone. */
const taken = (response: Http.ServerResponse): Promise<void> =>
  new Promise((resolve) => {
    const done = () => {
      response.off("drain", done).off("close", done)
      resolve()
    }
    response.on("drain", done).on("close", done)
  })

const stream = async (response: Http.ServerResponse, rate: number, count: number): Promise<void> => {
  response.socket?.setNoDelay(true)
  response.writeHead(200, { "content-type": "text/event-stream" })
  response.write(chunk)
  const start = performance.now()
  for (let sent = 1; sent < count && !response.destroyed;) {
    const due = rate === 0 ? sent + 64 : Math.floor((performance.now() - start) * rate / 1000)
    let flowing = true
    for (; sent < Math.min(due, count); sent++) flowing = response.write(chunk)
    if (rate > 0) await new Promise((resolve) => setTimeout(resolve, 1))
    else if (!flowing) await taken(response)
  }
  response.end(end)
}

const serve = async (request: Http.IncomingMessage, response: Http.ServerResponse): Promise<void> => {
  if (request.method === "GET") {
    const data = ["wait", "rate:0:1", "rate:0:20000", "rate:10:50", "rate:10:5", "rate:100:500", "rate:100:50"]
    response.end(JSON.stringify({ data: data.map((id) => ({ id })) }))
    return
  }
  const parts: Array<Buffer> = []
  for await (const part of request) parts.push(part)
  const { model } = JSON.parse(Buffer.concat(parts).toString())
  const [kind, rate, count] = String(model).split(":")
  if (kind === "rate") return stream(response, Number(rate), Number(count))
  setTimeout(() => response.setHeader("content-type", "application/json").end(answer), 5)
}

const server = Http.createServer((request, response) => void serve(request, response))
server.listen(0, "127.0.0.1", () => {
  // A server that listens on TCP has an address with a port.
  console.log(`http://127.0.0.1:${(server.address() as AddressInfo).port}`)
})
process.stdin.resume().on("end", () => process.exit())
