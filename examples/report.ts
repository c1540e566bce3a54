/**
 * How the demo shows events while they come, and executions once they are stored.
 */
import type { EventPublisher, EventStore, ExecutionEvent } from "../src/index.ts"
import { DomainEvent, ExecutionEvent as Lifecycle } from "../src/index.ts"
import type { StreamChunk } from "../src/inference/index.ts"

const isTerminal = process.stdout.isTTY

const paint = (code: number, text: string): string => isTerminal ? `\u001b[${code}m${text}\u001b[0m` : text

const duration = (millis: number): string =>
  millis < 1000 ? `${Math.round(millis)} ms` : `${(millis / 1000).toFixed(2)} s`

const brief = (value: unknown): string => {
  const text = value === undefined ? "" : JSON.stringify(value)
  return text.length > 76 ? `${text.slice(0, 73)}...` : text
}

const bar = (progress: number, done: number, speed: number): string => {
  const filled = Math.round(progress / 4)
  const amount = `${(done / 1e6).toFixed(1)} MB, ${(speed / 1e6).toFixed(1)} MB/s`
  return `${"█".repeat(filled)}${"░".repeat(25 - filled)} ${String(Math.round(progress)).padStart(3)} %  ${amount}`
}

/** Prints a piece of an answer as it comes, and at the end which model gave it. */
export const printChunk = ({ data, metadata, type }: StreamChunk): void => {
  const text = type === "content" ? JSON.stringify(data) : `${metadata.model}, until ${metadata.finish_reason}`
  console.log(`${" ".repeat(14)}${paint(35, text)}`)
}

/** Prints one line per event, indented by how deep its execution is nested. */
export const makePrinter = (): (event: EventPublisher.Event) => void => {
  const depths = new Map<string, number>()
  const line = (depth: number, time: string, text: string): void =>
    console.log(`${paint(2, time.slice(11, 23))}  ${"   ".repeat(depth)}${text}`)

  const lifecycle = (event: ExecutionEvent.ExecutionEvent): void => {
    const depth = event.parent_id === undefined ? 0 : (depths.get(event.parent_id) ?? 0) + 1
    const who = `${event.unit_name} ${paint(2, event.correlation_id.slice(-8))}`
    switch (event.event_type) {
      case "execution_started":
        depths.set(event.correlation_id, depth)
        return line(depth, event.timestamp, `${paint(36, "▶")} ${who}  ${brief(event.input)}`)
      case "execution_completed":
        return line(
          depth,
          event.timestamp,
          `${paint(32, "✔")} ${who}  ${duration(event.duration_ns / 1e6)}  ${brief(event.output)}`
        )
      case "execution_failed": {
        const why = `${event.failure.tag ?? event.failure.kind}${
          event.failure.code === undefined ? "" : ` ${event.failure.code}`
        }`
        return line(
          depth,
          event.timestamp,
          `${paint(31, "✘")} ${who}  ${duration(event.duration_ns / 1e6)}  ${why}: ${event.error}`
        )
      }
    }
  }

  return (event) => {
    if (Lifecycle.isExecutionEvent(event)) return lifecycle(event)
    const depth = (depths.get(event.correlation_id ?? "") ?? -1) + 1
    if (event.type !== "model.pull_progress") {
      return line(depth, event.timestamp, `${paint(33, "•")} ${event.type}  ${brief(event.payload)}`)
    }
    const { bytes_done, error, progress, speed } = DomainEvent.toJson(event).payload as {
      readonly bytes_done: number
      readonly error?: string
      readonly progress: number
      readonly speed: number
    }
    line(
      depth,
      event.timestamp,
      `${paint(33, "•")} ${bar(progress, bytes_done, speed)}${error === undefined ? "" : "  (stopped)"}`
    )
  }
}

/** Prints a table of executions, oldest first, and their counts. */
export const printExecutions = (newestFirst: ReadonlyArray<EventStore.ExecutionRecord>): void => {
  const all = newestFirst.toReversed()
  const depths = new Map<string, number>()
  const rows = all.map((one) => {
    const depth = one.parent_id === undefined ? 0 : (depths.get(one.parent_id) ?? 0) + 1
    depths.set(one.correlation_id, depth)
    return [
      one.started_at.slice(11, 23),
      `${"  ".repeat(depth)}${one.unit_name}`,
      one.outcome,
      one.duration_ms === undefined ? "" : duration(one.duration_ms),
      String(one.children),
      one.failure === undefined ? "" : [one.failure.tag ?? one.failure.kind, one.failure.code].filter(Boolean).join(" ")
    ]
  })
  const header = ["started", "unit", "outcome", "took", "children", "failure"]
  const widths = header.map((name, column) => Math.max(name.length, ...rows.map((row) => row[column]?.length ?? 0)))
  const print = (row: ReadonlyArray<string>): void =>
    console.log(row.map((cell, column) => cell.padEnd(widths[column] ?? 0)).join("  ").trimEnd())
  print(header)
  print(widths.map((width) => "-".repeat(width)))
  rows.forEach(print)
  const count = (outcome: EventStore.ExecutionRecord["outcome"]) => all.filter((one) => one.outcome === outcome).length
  console.log(
    `\n${all.length} executions: ${count("completed")} completed, ${count("failed")} failed, ${
      count("running")
    } running`
  )
}
