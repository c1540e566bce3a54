/**
 * Sequential reading of a binary header through one small buffer.
 *
 * A header's parser reads thousands of small values, and an Effect for each would cost more than the rest. So values are
 * taken synchronously from the window, and only `fill` is an Effect: it is called when `has` says that too few bytes are
 * there. However long a file is, and whatever its header claims, no more than the window is ever in memory.
 *
 * @since 0.1.0
 */
import * as Effect from "effect/Effect"
import * as FileSystem from "effect/FileSystem"
import type * as Scope from "effect/Scope"
import { fromPlatform, ModelFileError, Truncated, Unreadable } from "../ModelFileError.ts"

/** Bytes in the window, and so the most that one value may take. */
const capacity = 64 * 1024

// A mark at the start of a name is part of it.
const decoder = new TextDecoder("utf-8", { ignoreBOM: true })

/** @internal */
export class FileWindow {
  /** The absolute position of the next byte. */
  get position(): number {
    return this.start + this.cursor
  }

  readonly path: string
  readonly size: number
  private readonly file: FileSystem.File
  private readonly bytes = new Uint8Array(capacity)
  private readonly view = new DataView(this.bytes.buffer)
  // The window holds the file's bytes [start, start + length); the cursor is relative to it.
  private start = 0
  private length = 0
  private cursor = 0

  constructor(path: string, size: number, file: FileSystem.File) {
    this.path = path
    this.size = size
    this.file = file
  }

  /** Whether `count` bytes can be taken without `fill`. */
  has(count: number): boolean {
    return this.cursor + count <= this.length
  }

  /**
   * Makes `count` bytes available at the position; fails with `Truncated` when the file ends before. `count` is at most
   * `capacity`.
   */
  fill(count: number): Effect.Effect<void, ModelFileError> {
    return Effect.suspend(() => {
      if (this.has(count)) return Effect.void
      const end = this.position + count
      if (end > this.size) return Effect.fail(this.truncated(end, this.size))
      this.start = this.position
      if (this.cursor < this.length) {
        this.bytes.copyWithin(0, this.cursor, this.length)
        this.length -= this.cursor
      } else {
        this.length = 0
      }
      this.cursor = 0
      return this.readUntil(count)
    })
  }

  private readUntil(count: number): Effect.Effect<void, ModelFileError> {
    return Effect.flatMap(
      Effect.mapError(
        this.file.read(this.bytes.subarray(this.length), { position: BigInt(this.start + this.length) }),
        fromPlatform(this.path)
      ),
      (read) => {
        this.length += read
        if (this.has(count)) return Effect.void
        // The file was longer when it was opened: somebody cuts it meanwhile.
        return read === 0
          ? Effect.fail(this.truncated(this.start + count, this.start + this.length))
          : this.readUntil(count)
      }
    )
  }

  /** Moves the position, within the window or beyond it, without reading. */
  skip(count: number): void {
    this.cursor += count
    if (this.cursor > this.length) {
      this.start += this.cursor
      this.cursor = 0
      this.length = 0
    }
  }

  u8(): number {
    return this.view.getUint8(this.take(1))
  }
  i8(): number {
    return this.view.getInt8(this.take(1))
  }
  u16(): number {
    return this.view.getUint16(this.take(2), true)
  }
  i16(): number {
    return this.view.getInt16(this.take(2), true)
  }
  u32(): number {
    return this.view.getUint32(this.take(4), true)
  }
  i32(): number {
    return this.view.getInt32(this.take(4), true)
  }
  f32(): number {
    return this.view.getFloat32(this.take(4), true)
  }
  f64(): number {
    return this.view.getFloat64(this.take(8), true)
  }
  u64(): bigint {
    return this.view.getBigUint64(this.take(8), true)
  }
  i64(): bigint {
    return this.view.getBigInt64(this.take(8), true)
  }
  /** A u64 that counts something: exact below 2^53, rounded above, and so good for comparing with any limit. */
  count(): number {
    const at = this.take(8)
    return this.view.getUint32(at, true) + this.view.getUint32(at + 4, true) * 2 ** 32
  }
  /** UTF-8 text; what is no UTF-8 becomes U+FFFD. */
  text(bytes: number): string {
    const at = this.take(bytes)
    return decoder.decode(this.bytes.subarray(at, at + bytes))
  }

  private take(count: number): number {
    const at = this.cursor
    this.cursor += count
    return at
  }

  private truncated(expected: number, actual: number): ModelFileError {
    return new ModelFileError({ path: this.path, reason: new Truncated({ expected, actual }) })
  }
}

/**
 * Opens a regular file for reading. Anything else is `Unreadable` without being opened: opening a pipe would wait for a
 * writer.
 *
 * @internal
 */
export const openRegular: (
  path: string
) => Effect.Effect<
  { readonly file: FileSystem.File; readonly size: number },
  ModelFileError,
  FileSystem.FileSystem | Scope.Scope
> = Effect.fnUntraced(function*(path: string) {
  const fs = yield* FileSystem.FileSystem
  const info = yield* Effect.mapError(fs.stat(path), fromPlatform(path))
  if (info.type !== "File") {
    return yield* new ModelFileError({ path, reason: new Unreadable({ detail: `it is no file, but ${info.type}` }) })
  }
  const size = Number(info.size)
  if (!Number.isSafeInteger(size)) {
    return yield* new ModelFileError({ path, reason: new Unreadable({ detail: "it is larger than 2^53 bytes" }) })
  }
  const file = yield* Effect.mapError(fs.open(path), fromPlatform(path))
  return { file, size }
})

/**
 * Opens a window on a regular file; the scope closes it.
 *
 * @internal
 */
export const open = (
  path: string
): Effect.Effect<FileWindow, ModelFileError, FileSystem.FileSystem | Scope.Scope> =>
  Effect.map(openRegular(path), ({ file, size }) => new FileWindow(path, size, file))
