/**
 * Files from a hub to disk: resumed where they broke off, checked against what the hub's listing promises, and put in
 * place only when they are whole.
 *
 * @since 0.1.0
 */
import * as Effect from "effect/Effect"
import * as FileSystem from "effect/FileSystem"
import type * as Headers from "effect/http/Headers"
import * as HttpClientRequest from "effect/http/HttpClientRequest"
import * as Path from "effect/Path"
import type { PlatformError } from "effect/PlatformError"
import * as Predicate from "effect/Predicate"
import * as Stream from "effect/Stream"
import * as Crypto from "node:crypto"
import { hostOf } from "../internal/httpText.ts"
import {
  ChecksumMismatch,
  Disk,
  DiskFull,
  type HubReason,
  InvalidResponse,
  Network,
  SizeMismatch,
  UnsafePath
} from "./HubError.ts"
import type { HubHttp, OnStatus } from "./HubHttp.ts"
import * as Progress from "./Progress.ts"

/**
 * One file to fetch. `path` is relative, with slashes, and keeps its folders on disk; `size` is bytes. `sha256`, and
 * `gitSha1` of Git's blob object, are lower-case hex; without either the file cannot be checked beyond its size.
 *
 * @category models
 * @since 0.1.0
 */
export interface File {
  readonly path: string
  readonly request: HttpClientRequest.HttpClientRequest
  readonly size: number
  readonly sha256?: string | undefined
  readonly gitSha1?: string | undefined
  /** What an answer other than 2xx means for this file. */
  readonly onStatus: OnStatus
}

/**
 * A file that is whole and in place, with its size in bytes and the checksum of what is on disk.
 *
 * @category models
 * @since 0.1.0
 */
export interface Downloaded {
  readonly path: string
  readonly size: number
  readonly sha256: string
}

/**
 * Fetches files into a folder, which is made when it is missing.
 *
 * @category models
 * @since 0.1.0
 */
export interface Download {
  /**
   * Fetches every file, some at a time, and succeeds with what is then on disk, in the order asked for.
   *
   * **Details**
   *
   * A file is written to `<path>.part` and renamed when its size and checksum are right. A broken connection is taken
   * up again with `Range`; so is a `.part` that an earlier call left, provided that a checksum can tell whether it fits.
   * A file that is in place is read again, and fetched only when it is not what the listing promises.
   *
   * `onProgress` is told at the start, after every file, at the end, and in between at most twice a second.
   *
   * **Gotchas**
   *
   * On failure and on interruption the `.part` files stay, for the next call to go on from; only bytes that are known
   * to be wrong are deleted. No file is touched when one of the paths would lead out of the folder.
   */
  readonly all: (options: {
    readonly directory: string
    readonly files: ReadonlyArray<File>
    readonly parallel: number
    readonly onProgress: (progress: Progress.Progress) => Effect.Effect<void>
  }) => Effect.Effect<ReadonlyArray<Downloaded>, HubReason>
}

const mebibyte = 1024 * 1024

/**
 * Whether a path that a hub names stays inside the folder that it is joined to, on every platform.
 *
 * @category guards
 * @since 0.1.0
 */
export const isSafePath = (path: string): boolean =>
  !path.includes("\\") &&
  !/^[A-Za-z]:/.test(path) &&
  !/\p{Cc}/u.test(path) &&
  path.split("/").every((segment) => segment !== "" && segment !== "." && segment !== "..")

/**
 * What a failure of the file system means for a pull.
 *
 * @category errors
 * @since 0.1.0
 */
export const diskReason = (path: string) => (error: PlatformError): HubReason => {
  const cause = error.cause
  const code = Predicate.hasProperty(cause, "code") ? cause.code : undefined
  return code === "ENOSPC" || code === "EDQUOT"
    ? new DiskFull({ path })
    : new Disk({ path, description: Predicate.isError(cause) ? cause.message : error.message })
}

// SHA-256 for the record, and Git's own checksum where that is all that the hub names: SHA-1 over "blob <size>\0" and
// the content (git-hash-object). Both can be read at any point and go on afterwards.
interface Digest {
  readonly update: (bytes: Uint8Array) => void
  readonly sha256: () => string
  readonly gitSha1: () => string | undefined
}

const makeDigest = (file: File): Digest => {
  const sha256 = Crypto.createHash("sha256")
  const gitSha1 = file.gitSha1 === undefined
    ? undefined
    : Crypto.createHash("sha1").update(`blob ${file.size}\0`)
  return {
    update: (bytes) => {
      sha256.update(bytes)
      gitSha1?.update(bytes)
    },
    sha256: () => sha256.copy().digest("hex"),
    gitSha1: () => gitSha1?.copy().digest("hex")
  }
}

const mismatch = (file: File, size: number, digest: Digest): HubReason | undefined => {
  const { path } = file
  if (file.size !== undefined && file.size !== size) {
    return new SizeMismatch({ path, expected: file.size, actual: size })
  }
  if (file.sha256 !== undefined && file.sha256 !== digest.sha256()) {
    return new ChecksumMismatch({ path, expected: `sha256:${file.sha256}`, actual: `sha256:${digest.sha256()}` })
  }
  const gitSha1 = digest.gitSha1()
  if (gitSha1 !== undefined && file.gitSha1 !== gitSha1) {
    return new ChecksumMismatch({ path, expected: `git-sha1:${file.gitSha1}`, actual: `git-sha1:${gitSha1}` })
  }
  return undefined
}

const hasChecksum = (file: File): boolean => file.sha256 !== undefined || file.gitSha1 !== undefined

// RFC 9110, section 13.1.5: only a strong validator may stand in If-Range.
const strongEtag = (headers: Headers.Headers): string | undefined => {
  const etag = headers["etag"]
  return etag === undefined || etag.startsWith("W/") ? undefined : etag
}

const contentRange = (headers: Headers.Headers) => {
  const match = /^bytes (?:(\d+)-\d+|\*)\/(\d+|\*)$/.exec(headers["content-range"] ?? "")
  if (match === null) return undefined
  return {
    start: match[1] === undefined ? undefined : Number(match[1]),
    total: match[2] === "*" ? undefined : Number(match[2])
  }
}

const contentLength = (headers: Headers.Headers): number | undefined => {
  const value = headers["content-length"]
  return value === undefined || !/^\d+$/.test(value) ? undefined : Number(value)
}

/**
 * Builds the download over the shared HTTP and the application's file system.
 *
 * @category constructors
 * @since 0.1.0
 */
export const make = Effect.fnUntraced(function*(
  http: HubHttp
): Effect.fn.Return<Download, never, FileSystem.FileSystem | Path.Path> {
  const fs = yield* FileSystem.FileSystem
  const paths = yield* Path.Path

  const disk = <A, R>(path: string, effect: Effect.Effect<A, PlatformError, R>) =>
    Effect.mapError(effect, diskReason(path))

  // Undefined when there is no such file.
  const hash = Effect.fnUntraced(function*(path: string, file: File) {
    const digest = makeDigest(file)
    let size = 0
    yield* Stream.runForEach(fs.stream(path, { chunkSize: mebibyte }), (chunk) =>
      Effect.sync(() => {
        digest.update(chunk)
        size += chunk.length
      }))
    return { digest, size }
  }, (effect, path) =>
    effect.pipe(
      Effect.catchIf((error) => error.reason._tag === "NotFound", () => Effect.void),
      Effect.mapError(diskReason(path))
    ))

  const sizeOf = (path: string) =>
    fs.stat(path).pipe(
      Effect.map((info) => info.type === "File" ? Number(info.size) : undefined),
      Effect.catchIf((error) => error.reason._tag === "NotFound", () => Effect.void),
      Effect.mapError(diskReason(path))
    )

  const remove = (path: string) => disk(path, fs.remove(path, { force: true }))

  const inPlace = Effect.fnUntraced(function*(file: File, target: string) {
    if ((yield* sizeOf(target)) !== file.size) return undefined
    const found = yield* hash(target, file)
    if (found === undefined || mismatch(file, found.size, found.digest) !== undefined) return undefined
    return { path: file.path, size: found.size, sha256: found.digest.sha256() }
  })

  const one = Effect.fnUntraced(function*(
    file: File,
    target: string,
    onBytes: (done: number, received: number) => Effect.Effect<void>
  ) {
    yield* disk(target, fs.makeDirectory(paths.dirname(target), { recursive: true }))
    const kept = yield* inPlace(file, target)
    if (kept !== undefined) {
      yield* onBytes(kept.size, 0)
      return kept
    }

    const part = `${target}.part`
    let digest = makeDigest(file)
    let offset = 0
    let etag: string | undefined
    // Whether bytes of an earlier call are among those at hand; they may be of another version of the file.
    let inherited = false
    if (hasChecksum(file)) {
      const left = yield* hash(part, file)
      if (left !== undefined && left.size > 0) {
        digest = left.digest
        offset = left.size
        inherited = true
        yield* onBytes(offset, 0)
      }
    }
    const restart = () => {
      digest = makeDigest(file)
      offset = 0
      etag = undefined
      inherited = false
      return onBytes(0, 0)
    }
    const discard = Effect.suspend(() => Effect.andThen(remove(part), restart()))

    // One request; false when what is at hand turned out to be of no use and it begins anew.
    const transfer = Effect.fnUntraced(function*() {
      const response = yield* http.open(HttpClientRequest.setHeaders(file.request, {
        // A compressed body could not be resumed, and its length would say nothing.
        "accept-encoding": "identity",
        ...(offset > 0 ? { range: `bytes=${offset}-` } : undefined),
        ...(offset > 0 && etag !== undefined ? { "if-range": etag } : undefined)
      }))
      const range = contentRange(response.headers)
      const now = strongEtag(response.headers)
      // There is nothing beyond what is at hand; whether that is the file, its size and checksum will tell.
      if (response.status === 416 && offset > 0) return true
      if (response.status !== 200 && response.status !== 206) {
        return yield* http.fail(response, file.onStatus)
      }
      if (response.status === 206) {
        if (range?.start !== offset) {
          return yield* new InvalidResponse({
            host: hostOf(file.request),
            description: `asked for bytes from ${offset} on, it sent "${response.headers["content-range"] ?? ""}"`
          })
        }
        if (etag !== undefined && now !== undefined && etag !== now) {
          yield* restart()
          return false
        }
      } else if (offset > 0) {
        yield* restart()
      }
      etag = now
      const length = contentLength(response.headers)
      const announced = range?.total ?? (length === undefined ? undefined : offset + length)
      if (announced !== undefined && announced !== file.size) {
        yield* discard
        return yield* new SizeMismatch({ path: file.path, expected: file.size, actual: announced })
      }

      const handle = yield* disk(part, fs.open(part, { flag: offset === 0 ? "w" : "a" }))
      yield* Stream.runForEach(
        http.body(response),
        Effect.fnUntraced(function*(chunk) {
          const next = offset + chunk.length
          if (next > file.size) {
            yield* discard
            return yield* new SizeMismatch({ path: file.path, expected: file.size, actual: next })
          }
          // The system call outlives an interruption, and must not find its file closed, or another in its place.
          yield* Effect.uninterruptible(disk(part, handle.writeAll(chunk)))
          digest.update(chunk)
          offset = next
          yield* onBytes(offset, chunk.length)
        })
      )
      if (offset < file.size) {
        return yield* new Network({
          host: hostOf(file.request),
          description: `the connection closed ${file.size - offset} bytes before the end of "${file.path}"`
        })
      }
      return true
    })

    const fetch: Effect.Effect<Downloaded, HubReason> = Effect.gen(function*() {
      // Without a checksum only an unchanged ETag can tell that the rest belongs to what is at hand.
      if (offset > 0 && !hasChecksum(file) && etag === undefined) yield* restart()
      while (offset < file.size) {
        if (yield* Effect.scoped(transfer())) break
      }
      const reason = mismatch(file, offset, digest)
      if (reason !== undefined) {
        const again = inherited
        yield* discard
        return yield* (again ? fetch : Effect.fail(reason))
      }
      if (offset === 0) yield* disk(part, fs.writeFile(part, new Uint8Array(0)))
      yield* Effect.uninterruptible(disk(target, fs.rename(part, target)))
      return { path: file.path, size: offset, sha256: digest.sha256() }
    })

    let before = offset
    return yield* http.retry(fetch, () => {
      const gained = offset - before
      before = offset
      return gained >= mebibyte
    })
  })

  const all: Download["all"] = Effect.fnUntraced(function*({ directory, files, onProgress, parallel }) {
    for (const { path } of files) {
      if (!isSafePath(path)) return yield* new UnsafePath({ path })
    }
    const promised = files.reduce((sum, file) => sum + file.size, 0)
    const reporter = yield* Progress.make(promised, onProgress)
    yield* reporter.tell("downloading")
    const downloaded = yield* Effect.forEach(
      files,
      Effect.fnUntraced(function*(file) {
        const target = paths.join(directory, ...file.path.split("/"))
        const status = `downloading ${file.path}`
        const result = yield* one(
          file,
          target,
          (done, received) => reporter.advance(file.path, { done, received }, status)
        )
        yield* reporter.tell(`downloaded ${file.path}`)
        return result
      }),
      { concurrency: parallel }
    )
    yield* reporter.finish("downloaded")
    return downloaded
  })

  return { all }
})
