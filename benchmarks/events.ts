/** The events that the benchmarks of transports publish. */
import type { ExecutionEvent } from "../src/ExecutionEvent.ts"
import { uuidV7 } from "../src/internal/ids.ts"

let sequence = 0

/** One execution after the other, start and end, with so many characters of input or output: wire objects of about 400 bytes more. */
export const makeEvents = (size: number): () => ExecutionEvent => {
  const text = "x".repeat(size)
  let open: string | undefined
  return () => {
    const correlation_id = open ?? uuidV7(1_700_000_000_000 + sequence)
    const common = {
      domain: "model",
      unit_name: "model.pull",
      kind: "command",
      timestamp: new Date(1_700_000_000_000 + sequence).toISOString(),
      correlation_id,
      root_id: correlation_id,
      source: "018bcfe5-6800-7000-8000-000000000000",
      sequence: ++sequence
    } as const
    if (open === undefined) {
      open = correlation_id
      return { event_type: "execution_started", id: `${correlation_id}:started`, ...common, input: { text } }
    }
    open = undefined
    return {
      event_type: "execution_completed",
      id: `${correlation_id}:completed`,
      ...common,
      output: { text },
      duration_ms: 12,
      duration_ns: 12_345_678
    }
  }
}

export const eventsOf = (count: number, size: number): ReadonlyArray<ExecutionEvent> => {
  const next = makeEvents(size)
  return Array.from({ length: count }, next)
}
