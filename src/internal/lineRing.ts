/**
 * The last lines of a program's output, bounded in bytes and in lines.
 *
 * Output comes in pieces of any size, cut anywhere: in the middle of a character, or between the two bytes of a line's end. A line
 * ends with LF, CRLF or CR, the last as progress bars rewrite theirs. Bytes that are no UTF-8 become U+FFFD.
 *
 * @since 0.1.0
 */

interface Line {
  readonly text: string
  readonly bytes: number
}

/**
 * How much a `LineRing` keeps. All are at least 1.
 *
 * @internal
 */
export interface Bounds {
  /** UTF-8 bytes of all lines, without their ends. */
  readonly maxBytes: number
  readonly maxLines: number
  /** Characters (UTF-16 units) after which a line is broken in two. */
  readonly maxLineLength: number
}

/** @internal */
export const defaultBounds: Bounds = { maxBytes: 1024 * 1024, maxLines: 10_000, maxLineLength: 16 * 1024 }

/** The first piece of a text that is longer than `max`, no character cut in two. */
const pieceOf = (text: string, max: number): string => {
  const code = text.charCodeAt(max)
  return text.slice(0, max > 1 && code >= 0xdc00 && code <= 0xdfff ? max - 1 : max)
}

/** @internal */
export class LineRing {
  private readonly bounds: Bounds
  private decoder = new TextDecoder()
  /** The lines that are kept are those from `head` on. */
  private lines: Array<Line> = []
  private head = 0
  private bytes = 0
  /** The end of the text, of which no end of line is there yet. */
  private rest = ""
  /** A CR was the last character: an LF that follows belongs to it. */
  private afterCr = false
  private total = 0

  constructor(bounds: Bounds = defaultBounds) {
    this.bounds = bounds
  }

  /** How many lines there have been, without the one that has not ended. */
  get count(): number {
    return this.total
  }

  push(chunk: Uint8Array): void {
    this.take(this.decoder.decode(chunk, { stream: true }))
  }

  /** Counts what has no end of line yet as a line: nothing will follow. What follows all the same starts a new one. */
  end(): void {
    this.take(this.decoder.decode())
    this.decoder = new TextDecoder()
    if (this.rest !== "") this.add(this.rest)
    this.rest = ""
  }

  /** The lines from the `from`-th on, counted from 0 over all there have been, as far as they are kept. */
  since(from: number): ReadonlyArray<string> {
    const dropped = this.total - (this.lines.length - this.head)
    return this.lines.slice(this.head + Math.max(0, from - dropped)).map(({ text }) => text)
  }

  /** The last lines, what has no end yet included. */
  tail(count: number): ReadonlyArray<string> {
    const all = this.since(Math.max(0, this.total - count))
    const shown = this.rest === "" ? all : [...all, this.rest]
    return shown.slice(Math.max(0, shown.length - count))
  }

  private take(text: string): void {
    if (text === "") return
    const fresh = this.afterCr && text.startsWith("\n") ? text.slice(1) : text
    this.afterCr = text.endsWith("\r")
    const [first = "", ...others] = fresh.split(/\r\n|\n|\r/)
    this.rest += first
    for (const next of others) {
      this.breakRest()
      this.add(this.rest)
      this.rest = next
    }
    this.breakRest()
  }

  /** Makes lines of the beginning of one that is too long. */
  private breakRest(): void {
    while (this.rest.length > this.bounds.maxLineLength) {
      const piece = pieceOf(this.rest, this.bounds.maxLineLength)
      this.add(piece)
      this.rest = this.rest.slice(piece.length)
    }
  }

  private add(text: string): void {
    const { maxBytes, maxLines } = this.bounds
    const bytes = Buffer.byteLength(text)
    this.lines.push({ text, bytes })
    this.bytes += bytes
    this.total++
    for (; this.lines.length - this.head > maxLines || this.bytes > maxBytes; this.head++) {
      this.bytes -= this.lines[this.head]?.bytes ?? 0
    }
    if (this.head > this.lines.length / 2) {
      this.lines = this.lines.slice(this.head)
      this.head = 0
    }
  }
}
