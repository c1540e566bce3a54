/**
 * One readable line per event.
 *
 * @since 0.1.0
 */
import type { DomainEvent } from "../DomainEvent.ts"
import { type ExecutionEvent, isExecutionEvent } from "../ExecutionEvent.ts"

const codes = { dim: 2, red: 31, green: 32, yellow: 33, cyan: 36 } as const

const painter = (colour: boolean) => (code: keyof typeof codes, text: string): string =>
  colour ? `\u001b[${codes[code]}m${text}\u001b[0m` : text

const longest = 120

const brief = (value: unknown): string => {
  if (value === undefined) return ""
  const json = JSON.stringify(value) ?? ""
  // Control characters would move a terminal's cursor. JSON escapes all but these.
  const safe = json.replaceAll(/[\u007f-\u009f]/g, "?")
  return safe.length > longest ? `${safe.slice(0, longest - 3)}...` : safe
}

const duration = (nanos: number): string =>
  nanos < 1e6
    ? `${Math.round(nanos / 1e3)} µs`
    : nanos < 1e9
    ? `${(nanos / 1e6).toFixed(1)} ms`
    : `${(nanos / 1e9).toFixed(2)} s`

// The random end of a UUID version 7, as its beginning is the time, and the same for neighbours.
const short = (id: string): string => id.slice(-8)

/** @internal */
export const format = (event: ExecutionEvent | DomainEvent, colour: boolean): string => {
  const paint = painter(colour)
  const time = paint("dim", event.timestamp.slice(11, 23))
  if (!isExecutionEvent(event)) {
    const who = event.correlation_id === undefined ? "" : ` ${paint("dim", `[${short(event.correlation_id)}]`)}`
    return `${time} ${paint("yellow", "·")} ${event.type}${who} ${brief(event.payload)}`
  }
  const parent = event.parent_id === undefined ? "" : ` < ${short(event.parent_id)}`
  const who = `${event.unit_name} ${paint("dim", `[${short(event.correlation_id)}${parent}]`)}`
  switch (event.event_type) {
    case "execution_started":
      return `${time} ${paint("cyan", ">")} ${who} ${brief(event.input)}`
    case "execution_completed":
      return `${time} ${paint("green", "+")} ${who} ${duration(event.duration_ns)} ${brief(event.output)}`
    case "execution_failed": {
      const code = event.failure.code === undefined ? event.failure.kind : `${event.failure.tag} ${event.failure.code}`
      return `${time} ${paint("red", "x")} ${who} ${duration(event.duration_ns)} ${code}: ${brief(event.error)}`
    }
  }
}
