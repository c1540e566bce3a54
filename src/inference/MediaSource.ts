/**
 * Where recordings and images come from that units are given: the input itself, a file, or the web.
 *
 * @since 0.1.0
 */
import * as Context from "effect/Context"
import * as Duration from "effect/Duration"
import * as Effect from "effect/Effect"
import * as FileSystem from "effect/FileSystem"
import * as FetchHttpClient from "effect/http/FetchHttpClient"
import * as HttpClient from "effect/http/HttpClient"
import * as HttpClientRequest from "effect/http/HttpClientRequest"
import type { HttpClientResponse } from "effect/http/HttpClientResponse"
import * as Layer from "effect/Layer"
import * as Path from "effect/Path"
import * as Schema from "effect/Schema"
import type * as Scope from "effect/Scope"
import * as Stream from "effect/Stream"
import { concat, describe, isWebAddress } from "../internal/httpText.ts"
import * as PublicAddress from "../internal/publicAddress.ts"
import type { Media } from "./Backend.ts"
import * as Formats from "./internal/media.ts"

/**
 * What was given is no such thing, is too large, or comes from where nothing may come from. A retry does not help.
 *
 * @category errors
 * @since 0.1.0
 */
export class Unusable extends Schema.TaggedError<Unusable>("effect-units/inference/Unusable")("Unusable", {
  /** What was expected instead, as a sentence without an end. */
  expected: Schema.String
}) {}

/**
 * The host that the image is at did not give it. A retry can help.
 *
 * @category errors
 * @since 0.1.0
 */
export class Unavailable extends Schema.TaggedError<Unavailable>("effect-units/inference/Unavailable")("Unavailable", {
  host: Schema.String,
  detail: Schema.String,
  isTimeout: Schema.Boolean
}) {}

/**
 * A recording or an image could not be had; see its reason.
 *
 * @category errors
 * @since 0.1.0
 */
export class MediaError extends Schema.TaggedError<MediaError>("effect-units/inference/MediaError")("MediaError", {
  reason: Schema.Union([Unusable, Unavailable])
}) {
  override get message(): string {
    const { reason } = this
    return reason._tag === "Unusable" ? reason.expected : `${reason.host} did not give the image: ${reason.detail}`
  }
}

/**
 * Gets recordings and images.
 *
 * **Details**
 *
 * - `audio` takes a data URI, the absolute path of a file below a folder that is allowed, or Base64.
 * - `image` takes a data URI, an `http` or `https` address, or Base64.
 *
 * What they are is told by their first bytes. A data URI or a file that these do not tell of is what it says, or what its name ends in; Base64
 * that is nothing known fails.
 *
 * @category services
 * @since 0.1.0
 */
export class MediaSource extends Context.Service<MediaSource, {
  readonly audio: (text: string) => Effect.Effect<Media, MediaError>
  readonly image: (text: string) => Effect.Effect<Media, MediaError>
}>()("effect-units/inference/MediaSource") {}

/**
 * What is allowed.
 *
 * @category models
 * @since 0.1.0
 */
export interface Options {
  /** Folders whose files can be given by their absolute path, those that links lead out of them to excepted. Default: none. */
  readonly audioRoots?: ReadonlyArray<string> | undefined
  /** Most bytes of a recording. Default: 25 MB (26,214,400 bytes), as OpenAI has it. */
  readonly maxAudioBytes?: number | undefined
  /** Most bytes of an image. Default: as many. */
  readonly maxImageBytes?: number | undefined
  /** Also fetch images from addresses that are not public: those of this machine and this network. Default: `false`. */
  readonly allowPrivateAddresses?: boolean | undefined
  /** How long fetching an image may take. Default: 30 seconds. */
  readonly imageTimeout?: Duration.Input | undefined
}

const defaultBytes = 25 * 1024 * 1024

/** Redirects that are followed. */
const maxRedirects = 5

/** A path that is longer is none. */
const maxPath = 4096

const unusable = (expected: string) => new MediaError({ reason: new Unusable({ expected }) })

/** How many bytes Base64 of this length can hold: more than it has, never fewer. */
const mostBytes = (text: string): number => text.length * 3 / 4

const make = Effect.fnUntraced(function*(options: Options) {
  const client = HttpClient.withScope(yield* HttpClient.HttpClient)
  const fs = yield* FileSystem.FileSystem
  const paths = yield* Path.Path
  const maxAudio = options.maxAudioBytes ?? defaultBytes
  const maxImage = options.maxImageBytes ?? defaultBytes
  const imageTimeout = Duration.fromInputUnsafe(options.imageTimeout ?? "30 seconds")
  const roots = options.audioRoots ?? []
  // A client over fetch would go wherever a redirect leads.
  const fetchByHand = Context.make(FetchHttpClient.RequestInit, { redirect: "manual" })

  const tooLarge = (limit: number) => unusable(`Expected at most ${limit} bytes. Give a smaller one`)

  /** What a text holds itself. Some lines more than the limit are let through, to be measured when they are bytes. */
  const inline = (
    text: string,
    limit: number,
    containerOf: (bytes: Uint8Array) => Formats.Container | undefined,
    family: "audio" | "image",
    expected: string
  ): Effect.Effect<Media, MediaError> => {
    if (mostBytes(text) > limit * 1.1 + 1024) return Effect.fail(tooLarge(limit))
    const uri = Formats.fromDataUri(text)
    const bytes = uri === undefined ? Formats.fromBase64(text) : uri.bytes
    if (bytes === undefined) return Effect.fail(unusable(expected))
    if (bytes.length > limit) return Effect.fail(tooLarge(limit))
    const container = containerOf(bytes) ??
      (uri?.type.startsWith(`${family}/`) === true
        ? { format: Formats.formatOfType(uri.type), type: uri.type }
        : undefined)
    return container === undefined
      ? Effect.fail(unusable(expected))
      : Effect.succeed({ bytes, name: `${family}.${container.format}`, type: container.type })
  }

  /** The file of a path, where it is one below an allowed folder. What is elsewhere is not looked at. */
  const fileOf = Effect.fnUntraced(function*(path: string) {
    if (roots.length === 0 || path.length > maxPath || path.includes("\0") || !paths.isAbsolute(path)) return undefined
    const real = yield* fs.realPath(path)
    for (const root of roots) {
      const inside = paths.relative(yield* Effect.orElseSucceed(fs.realPath(root), () => root), real)
      if (inside === "" || inside === ".." || inside.startsWith(`..${paths.sep}`) || paths.isAbsolute(inside)) continue
      const { size, type } = yield* fs.stat(real)
      return type === "File" ? { path: real, size } : undefined
    }
    return undefined
  })

  const audio = Effect.fnUntraced(function*(text: string) {
    const file = yield* Effect.orElseSucceed(fileOf(text), () => undefined)
    if (file === undefined) {
      return yield* inline(
        text,
        maxAudio,
        Formats.audioOf,
        "audio",
        "Expected a recording (WAV, MP3, Ogg, FLAC, MP4, WebM, AAC) as Base64, as a data URI, or as the absolute path of a file in a " +
          "folder that is allowed"
      )
    }
    if (file.size > maxAudio) return yield* tooLarge(maxAudio)
    const bytes = yield* Effect.mapError(fs.readFile(file.path), () => unusable("Expected a file that can be read"))
    if (bytes.length > maxAudio) return yield* tooLarge(maxAudio)
    const container = Formats.audioOf(bytes)
    const name = paths.basename(file.path)
    return container === undefined
      ? { bytes, name, type: "application/octet-stream" }
      : { bytes, name: `${paths.parse(name).name}.${container.format}`, type: container.type }
  })

  const unavailable = (host: string, detail: string, isTimeout = false) =>
    new MediaError({ reason: new Unavailable({ host, detail, isTimeout }) })

  const checked = Effect.fnUntraced(function*(url: URL) {
    if (url.username !== "" || url.password !== "") {
      return yield* unusable("Expected an address without a user and a password, which events would show")
    }
    if (options.allowPrivateAddresses === true) return
    const found = yield* Effect.tryPromise({
      try: () => PublicAddress.findPrivate(url),
      catch: () => unavailable(url.host, "its name has no address. Check it")
    })
    if (found !== undefined) {
      return yield* unusable("Expected a public address. Allow private ones where images are to come from this network")
    }
  })

  /** The answer at an address, or at where it leads to. */
  const opened = Effect.fnUntraced(function*(address: string) {
    let url = new URL(address)
    for (let redirects = 0; redirects <= maxRedirects; redirects++) {
      yield* checked(url)
      const { host } = url
      const response: HttpClientResponse = yield* client.execute(HttpClientRequest.get(url.href)).pipe(
        Effect.provideContext(fetchByHand),
        Effect.mapError((error) => unavailable(host, describe(error)))
      )
      const { status } = response
      if (status >= 200 && status < 300) return { response, host }
      const location = response.headers["location"]
      if (status < 300 || status >= 400 || location === undefined) {
        return yield* (status >= 500 || status === 429 || status === 408
          ? unavailable(host, `it answered ${status}`)
          : unusable(`Expected an image there, and ${host} answered ${status}. Check the address`))
      }
      if (!URL.canParse(location, url.href) || !isWebAddress(new URL(location, url).href)) {
        return yield* unusable(`Expected an image there, and ${host} leads to what is no http or https address`)
      }
      url = new URL(location, url)
    }
    return yield* unusable(`Expected an image there, and it leads on more than ${maxRedirects} times`)
  })

  const fetched = Effect.fnUntraced(function*(address: string): Effect.fn.Return<Media, MediaError, Scope.Scope> {
    const { host, response } = yield* opened(address)
    const chunks: Array<Uint8Array> = []
    let length = 0
    yield* Stream.runForEachWhile(response.stream, (chunk) =>
      Effect.sync(() => {
        chunks.push(chunk)
        length += chunk.length
        return length <= maxImage
      })).pipe(Effect.mapError((error) => unavailable(host, describe(error))))
    if (length > maxImage) return yield* tooLarge(maxImage)
    const bytes = concat(chunks)
    const container = Formats.imageOf(bytes)
    if (container === undefined) {
      return yield* unusable(
        "Expected an image there (PNG, JPEG, WebP, GIF, BMP, TIFF, AVIF, HEIC), and it is something else"
      )
    }
    return { bytes, name: `image.${container.format}`, type: container.type }
  })

  const image = (text: string): Effect.Effect<Media, MediaError> =>
    isWebAddress(text)
      ? Effect.scoped(fetched(text)).pipe(
        Effect.timeoutOrElse({
          duration: imageTimeout,
          orElse: () =>
            Effect.fail(
              unavailable(new URL(text).host, `it took longer than ${Duration.toSeconds(imageTimeout)} s`, true)
            )
        })
      )
      : inline(
        text,
        maxImage,
        Formats.imageOf,
        "image",
        "Expected an image (PNG, JPEG, WebP, GIF, BMP, TIFF, AVIF, HEIC) as Base64, as a data URI, or as an http or https address"
      )

  return MediaSource.of({ audio, image })
})

/**
 * Layer of what may be read.
 *
 * **Details**
 *
 * The names of hosts are looked up before they are asked, and of each redirect again. A name can have another address a moment later: give
 * this layer a client whose own lookup refuses what is not public, such as
 * `NodeHttpClient.layerUndiciOptions({ connect: { lookup: Webhook.publicLookup } })`, where strangers choose the addresses.
 *
 * @category layers
 * @since 0.1.0
 */
export const layer = (
  options: Options = {}
): Layer.Layer<MediaSource, never, HttpClient.HttpClient | FileSystem.FileSystem | Path.Path> =>
  Layer.effect(MediaSource, make(options))
