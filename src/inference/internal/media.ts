/**
 * Recordings, images and videos as bytes: what they are by their first bytes, how long a WAV file is, and their forms as text.
 *
 * @since 0.1.0
 */

/**
 * What a file is: the usual ending of its name, and its media type.
 *
 * @internal
 */
export interface Container {
  readonly format: string
  readonly type: string
}

const ascii = (bytes: Uint8Array, from: number, to: number): string => String.fromCharCode(...bytes.subarray(from, to))

const startsWith = (bytes: Uint8Array, ...start: ReadonlyArray<number>): boolean =>
  start.every((byte, index) => bytes[index] === byte)

/**
 * The container of a recording. Sources: RFC 2361 and Microsoft's RIFF, ID3v2 and ISO 11172-3 (MPEG), ISO 13818-7 (ADTS), RFC 3533 (Ogg),
 * RFC 9639 (FLAC), ISO 14496-12 (MP4), RFC 8794 (EBML).
 *
 * @internal
 */
export const audioOf = (bytes: Uint8Array): Container | undefined => {
  const head = ascii(bytes, 0, 4)
  if (isWav(bytes)) return { format: "wav", type: "audio/wav" }
  if (head === "OggS") return { format: "ogg", type: "audio/ogg" }
  if (head === "fLaC") return { format: "flac", type: "audio/flac" }
  if (ascii(bytes, 4, 8) === "ftyp") return { format: "m4a", type: "audio/mp4" }
  if (startsWith(bytes, 0x1A, 0x45, 0xDF, 0xA3)) return { format: "webm", type: "audio/webm" }
  const [first, second = 0] = bytes
  if (head.startsWith("ID3")) return { format: "mp3", type: "audio/mpeg" }
  if (first !== 0xFF || second < 0xE0) return undefined
  // Layer 0 is reserved in MPEG audio, and what AAC has.
  if ((second & 0x06) !== 0) return { format: "mp3", type: "audio/mpeg" }
  return second >= 0xF0 ? { format: "aac", type: "audio/aac" } : undefined
}

/**
 * The format of an image. Sources: ISO 15948 (PNG), ISO 10918 (JPEG), GIF89a, RFC 9649 (WebP), ISO 23000-22 (AVIF, HEIC), TIFF 6.0.
 *
 * @internal
 */
export const imageOf = (bytes: Uint8Array): Container | undefined => {
  if (startsWith(bytes, 0x89, 0x50, 0x4E, 0x47, 0x0D, 0x0A, 0x1A, 0x0A)) return { format: "png", type: "image/png" }
  if (startsWith(bytes, 0xFF, 0xD8, 0xFF)) return { format: "jpeg", type: "image/jpeg" }
  const head = ascii(bytes, 0, 4)
  if (head === "GIF8") return { format: "gif", type: "image/gif" }
  if (head === "RIFF" && ascii(bytes, 8, 12) === "WEBP") return { format: "webp", type: "image/webp" }
  if (head === "II*\0" || head === "MM\0*") return { format: "tiff", type: "image/tiff" }
  if (head.startsWith("BM") && bytes.length > 26) return { format: "bmp", type: "image/bmp" }
  const brand = ascii(bytes, 4, 12)
  if (brand === "ftypavif" || brand === "ftypavis") return { format: "avif", type: "image/avif" }
  return brand.startsWith("ftyphei") || brand === "ftypmif1" ? { format: "heic", type: "image/heic" } : undefined
}

/**
 * The container of a video.
 *
 * @internal
 */
export const videoOf = (bytes: Uint8Array): Container | undefined => {
  if (ascii(bytes, 4, 8) === "ftyp") return { format: "mp4", type: "video/mp4" }
  if (startsWith(bytes, 0x1A, 0x45, 0xDF, 0xA3)) return { format: "webm", type: "video/webm" }
  if (ascii(bytes, 0, 4) === "GIF8") return { format: "gif", type: "image/gif" }
  return ascii(bytes, 0, 4) === "RIFF" && ascii(bytes, 8, 12) === "AVI "
    ? { format: "avi", type: "video/x-msvideo" }
    : undefined
}

/**
 * The ending that fits a media type: what is behind the slash, without parameters and `x-`.
 *
 * @internal
 */
export const formatOfType = (type: string): string =>
  type.replace(/;.*$/, "").trim().toLowerCase().replace(/^[^/]*\/(?:x-)?/, "").replace(/^mpeg$/, "mp3")

const isWav = (bytes: Uint8Array): boolean =>
  /^(?:RIFF|RF64|BW64)$/.test(ascii(bytes, 0, 4)) && ascii(bytes, 8, 12) === "WAVE"

/**
 * How many seconds a WAV file plays: the bytes of its sound by those of a second. `undefined` for anything else.
 *
 * **Details**
 *
 * What is written before its end is known has a size of 0 or 0xFFFFFFFF, and so has a file above four gigabytes: what is really there counts,
 * and never more than that.
 *
 * @internal
 */
export const wavSeconds = (bytes: Uint8Array): number | undefined => {
  if (!isWav(bytes)) return undefined
  const view = new DataView(bytes.buffer, bytes.byteOffset, bytes.byteLength)
  let byteRate = 0
  for (let at = 12; at + 8 <= bytes.length;) {
    const name = ascii(bytes, at, at + 4)
    const size = view.getUint32(at + 4, true)
    const start = at + 8
    if (name === "fmt " && start + 12 <= bytes.length) byteRate = view.getUint32(start + 8, true)
    if (name === "data") {
      const there = bytes.length - start
      return byteRate === 0 ? undefined : (size === 0 ? there : Math.min(size, there)) / byteRate
    }
    // Chunks begin at even places.
    at = start + size + size % 2
  }
  return undefined
}

/**
 * Bytes as Base64. Node's own encoder takes about a fifth of the time of one in JavaScript, and videos have megabytes.
 *
 * @internal
 */
export const toBase64 = (bytes: Uint8Array): string =>
  Buffer.from(bytes.buffer, bytes.byteOffset, bytes.byteLength).toString("base64")

/**
 * The bytes that a text holds in Base64, with or without padding, over as many lines as there are; `undefined` where it is none, as
 * an empty text is.
 *
 * @internal
 */
export const fromBase64 = (text: string): Uint8Array | undefined => {
  const joined = /\s/.test(text) ? text.replaceAll(/\s+/g, "") : text
  const digits = joined.replace(/={1,2}$/, "")
  // Four digits are three bytes; one digit left over is less than a byte.
  if (digits === "" || digits.length % 4 === 1 || /[^A-Za-z0-9+/]/.test(digits)) return undefined
  if (digits.length !== joined.length && joined.length % 4 !== 0) return undefined
  return Buffer.from(digits, "base64")
}

/**
 * The parts of a data URI (RFC 2397); `undefined` where the text is none. `bytes` is missing where it holds anything else than Base64.
 *
 * @internal
 */
export const fromDataUri = (
  text: string
): { readonly type: string; readonly bytes: Uint8Array | undefined } | undefined => {
  if (!/^data:/i.test(text)) return undefined
  const comma = text.indexOf(",")
  if (comma === -1) return { type: "", bytes: undefined }
  const head = text.slice(5, comma)
  const type = head.replace(/;.*$/, "").trim().toLowerCase()
  return { type, bytes: /;\s*base64\s*$/i.test(head) ? fromBase64(text.slice(comma + 1)) : undefined }
}
