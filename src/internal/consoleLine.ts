/**
 * One readable line per event.
 *
 * @since 0.1.0
 */
import type { DomainEvent } from "../DomainEvent.ts"
import { type ExecutionEvent, type Failure, isExecutionEvent } from "../ExecutionEvent.ts"

const codes = { dim: 2, red: 31, green: 32, yellow: 33, cyan: 36 } as const

const painter = (colour: boolean) => (code: keyof typeof codes, text: string): string =>
  colour ? `\u001b[${codes[code]}m${text}\u001b[0m` : text

const longest = 120

// Control characters move a terminal's cursor, line separators break the line, and marks of direction show text in another order
// than it has.
const unsafe = /[\p{Cc}\p{Zl}\p{Zp}\p{Bidi_Control}]/gu

const plain = (text: string): string => text.replaceAll(unsafe, "?")

const brief = (value: unknown): string => {
  if (value === undefined) return ""
  const safe = plain(JSON.stringify(value) ?? "")
  return safe.length > longest ? `${safe.slice(0, longest - 3).toWellFormed()}...` : safe
}

const duration = (nanos: number): string =>
  nanos < 1e6
    ? `${Math.round(nanos / 1e3)} µs`
    : nanos < 1e9
    ? `${(nanos / 1e6).toFixed(1)} ms`
    : `${(nanos / 1e9).toFixed(2)} s`

// The random end of a UUID version 7, as its beginning is the time, and the same for neighbours.
const short = (id: string): string => plain(id.slice(-8))

/** What kind of failure: the error's own name and code, where it has them. */
const reason = ({ code, kind, tag }: Failure): string =>
  plain([tag ?? kind, code].filter((part) => part !== undefined).join(" "))

const line = (...parts: ReadonlyArray<string>): string => parts.filter((part) => part !== "").join(" ")

/** @internal */
export const format = (event: ExecutionEvent | DomainEvent, colour: boolean): string => {
  const paint = painter(colour)
  const time = paint("dim", plain(event.timestamp.slice(11, 23)))
  if (!isExecutionEvent(event)) {
    const who = event.correlation_id === undefined ? "" : paint("dim", `[${short(event.correlation_id)}]`)
    return line(time, paint("yellow", "·"), plain(event.type), who, brief(event.payload))
  }
  const parent = event.parent_id === undefined ? "" : ` < ${short(event.parent_id)}`
  const who = `${plain(event.unit_name)} ${paint("dim", `[${short(event.correlation_id)}${parent}]`)}`
  switch (event.event_type) {
    case "execution_started":
      return line(time, paint("cyan", ">"), who, brief(event.input))
    case "execution_completed":
      return line(time, paint("green", "+"), who, duration(event.duration_ns), brief(event.output))
    case "execution_failed": {
      const why = `${reason(event.failure)}: ${brief(event.error)}`
      return line(time, paint("red", "x"), who, duration(event.duration_ns), why)
    }
  }
}
