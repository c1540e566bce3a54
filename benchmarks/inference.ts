/**
 * What the inference domain adds to a call of a model over HTTP, beside clients that do nothing else: `fetch`, and Undici's own.
 *
 * The server is a process of its own on the loopback, and takes 5 ms for an answer. Events go to a publisher in memory.
 *
 *     node benchmarks/inference.ts [--quick] [--json FILE]
 */
import { NodeHttpClient, NodeServices } from "@effect/platform-node"
import Undici from "@effect/platform-node/Undici"
import { Effect, Layer, ManagedRuntime, Stream } from "effect"
import assert from "node:assert/strict"
import { spawn } from "node:child_process"
import { once } from "node:events"
import { mkdtempSync, rmSync } from "node:fs"
import { tmpdir } from "node:os"
import { join } from "node:path"
import * as Sqlite from "../src/backends/Sqlite.ts"
import * as EventPublisher from "../src/EventPublisher.ts"
import * as Inference from "../src/inference/index.ts"
import * as ModelStore from "../src/model/ModelStore.ts"
import { heldBytes, main, median, type Report } from "./harness.ts"

const messages = [{ role: "user", content: "What is there to say?" }] as const

const startServer = async () => {
  const child = spawn(process.execPath, [join(import.meta.dirname, "inferenceServer.ts")], {
    stdio: ["pipe", "pipe", "inherit"]
  })
  const [line] = await once(child.stdout, "data")
  return { url: String(line).trim(), close: () => child.stdin.end() }
}

/** The units over one endpoint. */
const open = (url: string, directory: string) =>
  ManagedRuntime.make(
    Inference.layer([{ name: "server", dialect: "openai", baseUrl: url }]).pipe(
      Layer.provide(ModelStore.layer({ directory })),
      Layer.provide(Sqlite.layer({ filename: join(directory, "units.db") })),
      Layer.provide([NodeHttpClient.layerUndici, NodeServices.layer]),
      Layer.provideMerge(EventPublisher.layerMemory)
    )
  )

type Runtime = ReturnType<typeof open>

const headers = { "content-type": "application/json" }

const post = (model: string, stream: boolean) => ({
  method: "POST" as const,
  headers,
  body: JSON.stringify({ model, messages, ...(stream ? { stream, stream_options: { include_usage: true } } : {}) })
})

const check = (content: unknown): void => assert.equal(content, "an answer of some words")

const textOf = (answer: { choices: ReadonlyArray<{ message: { content: string } }> }) =>
  answer.choices[0]?.message.content

/** The ways to get an answer. */
const callers = (url: string, runtime: Runtime, agent: Undici.Agent) => ({
  "inference.chat": async () => check((await runtime.runPromise(Inference.chat({ model: "wait", messages }))).content),
  fetch: async () => {
    const response = await fetch(`${url}/v1/chat/completions`, post("wait", false))
    // The server is the benchmark's own.
    check(textOf(await response.json() as never))
  },
  Undici: async () => {
    const { body } = await Undici.request(`${url}/v1/chat/completions`, { ...post("wait", false), dispatcher: agent })
    // The same.
    check(textOf(await body.json() as never))
  }
})

/** The ways to wait for the first word of an answer, and leave. */
const firsts = (url: string, runtime: Runtime) => ({
  "inference.chat_stream": async () => {
    const [first] = await runtime.runPromise(
      Stream.runCollect(Stream.take(Inference.chatStream({ model: "rate:0:1", messages }), 1))
    )
    assert.equal(first?.data, " word")
  },
  fetch: async () => {
    const controller = new AbortController()
    const response = await fetch(`${url}/v1/chat/completions`, {
      ...post("rate:0:1", true),
      signal: controller.signal
    })
    const { value } = await response.body!.getReader().read()
    const [line] = new TextDecoder().decode(value).split("\n")
    assert.equal(JSON.parse(line!.slice(6)).choices[0].delta.content, " word")
    controller.abort()
  }
})

type Ways = Readonly<Record<string, () => Promise<void>>>

/** Milliseconds that each of some ways takes, call by call and in turns, for the machine is not the same from one second to the next. */
const inTurns = async <W extends Ways>(ways: W, rounds: number) => {
  const names: ReadonlyArray<keyof W> = Object.keys(ways)
  const times = new Map(names.map((name): [keyof W, Array<number>] => [name, []]))
  for (let round = -Math.ceil(rounds / 10); round < rounds; round++) {
    for (let turn = 0; turn < names.length; turn++) {
      // In bounds by the remainder.
      const name = names[(turn + round + rounds) % names.length]!
      const start = performance.now()
      await ways[name]!()
      if (round >= 0) times.get(name)!.push(performance.now() - start)
    }
  }
  return (name: keyof W): ReadonlyArray<number> => times.get(name) ?? []
}

const percentile = (values: ReadonlyArray<number>, share: number): number =>
  values.toSorted((a, b) => a - b)[Math.min(values.length - 1, Math.floor(values.length * share))] ?? Number.NaN

const ms = (value: number): string => value.toFixed(3)

const rowOf = (what: string, times: ReadonlyArray<number>, base: ReadonlyArray<number> | undefined) => ({
  what,
  "median ms": ms(median(times)),
  "p95 ms": ms(percentile(times, 0.95)),
  "over fetch, ms": base === undefined ? "" : ms(median(times) - median(base))
})

/** Streams at once, drained by the unit. */
const drain = async (runtime: Runtime, model: string, streams: number) => {
  let chunks = 0
  const cpu = process.cpuUsage()
  const start = performance.now()
  await runtime.runPromise(
    Effect.forEach(
      Array.from({ length: streams }),
      () => Stream.runForEach(Inference.chatStream({ model, messages }), () => Effect.sync(() => chunks++)),
      { concurrency: "unbounded", discard: true }
    )
  )
  const seconds = (performance.now() - start) / 1000
  const { system, user } = process.cpuUsage(cpu)
  return { chunks, seconds, cpu: (system + user) / 1e6 }
}

const streaming = async (runtime: Runtime, quick: boolean) => {
  const cases = [
    { title: "1 stream, as fast as it goes", model: quick ? "rate:0:1" : "rate:0:20000", streams: 1 },
    { title: "100 streams of 10 chunks a second", model: quick ? "rate:10:5" : "rate:10:50", streams: 100 },
    { title: "100 streams of 100 chunks a second", model: quick ? "rate:100:50" : "rate:100:500", streams: 100 }
  ]
  const rows: Array<Readonly<Record<string, string | number>>> = []
  let most = 0
  for (const { model, streams, title } of cases) {
    await drain(runtime, model, streams)
    const before = heldBytes()
    const { chunks, cpu, seconds } = await drain(runtime, model, streams)
    const grown = heldBytes() - before
    most = Math.max(most, grown)
    rows.push({
      what: title,
      chunks,
      "chunks/s": Math.round(chunks / seconds),
      "CPU us a chunk": (cpu * 1e6 / chunks).toFixed(1),
      "heap, kB more": Math.round(grown / 1000)
    })
  }
  return { rows, most }
}

/** Latencies of whole answers and of first words. */
export const run = async (quick: boolean): Promise<Report> =>
  withServer(async (url, runtime) => {
    const agent = new Undici.Agent()
    const rounds = quick ? 20 : 400
    const calls = await inTurns(callers(url, runtime, agent), rounds)
    const words = await inTurns(firsts(url, runtime), rounds)
    await agent.close()
    const over = median(calls("inference.chat")) / median(calls("fetch")) - 1
    const overFirst = median(words("inference.chat_stream")) - median(words("fetch"))
    return {
      title: "A call of a model, and its first word",
      rows: [
        rowOf("answer after 5 ms: fetch", calls("fetch"), undefined),
        rowOf("answer after 5 ms: Undici", calls("Undici"), calls("fetch")),
        rowOf("answer after 5 ms: inference.chat", calls("inference.chat"), calls("fetch")),
        rowOf("first word: fetch", words("fetch"), undefined),
        rowOf("first word: inference.chat_stream", words("inference.chat_stream"), words("fetch"))
      ],
      notes: [`In turns, ${rounds} calls of each, one after the other, with both events to a publisher in memory.`],
      targets: [
        {
          target: "inference.chat: at most 3 % over fetch",
          measured: `${(100 * over).toFixed(1)} %`,
          met: over <= 0.03
        },
        { target: "first word: at most 1 ms over fetch", measured: `${ms(overFirst)} ms`, met: overFirst <= 1 }
      ]
    }
  })

/** Many chunks, and many streams at once. */
export const runStreams = async (quick: boolean): Promise<Report> =>
  withServer(async (_url, runtime) => {
    const { most, rows } = await streaming(runtime, quick)
    return {
      title: "Streamed answers at once",
      rows,
      notes: ["Each stream is an execution with both of its events. CPU is that of the client's process."],
      targets: [{
        target: "heap after as before, to 2 MB",
        measured: `${(most / 1e6).toFixed(2)} MB`,
        met: most <= 2e6
      }]
    }
  })

const withServer = async (use: (url: string, runtime: Runtime) => Promise<Report>): Promise<Report> => {
  const directory = mkdtempSync(join(tmpdir(), "bench-inference-"))
  const server = await startServer()
  const runtime = open(server.url, directory)
  try {
    return await use(server.url, runtime)
  } finally {
    await runtime.dispose()
    server.close()
    rmSync(directory, { recursive: true })
  }
}

if (import.meta.main) await main([run, runStreams])
