/** Recordings, images and videos, made here. */

const ascii = (text: string): Buffer => Buffer.from(text, "latin1")

const uint32 = (value: number): Buffer => {
  const bytes = Buffer.alloc(4)
  bytes.writeUInt32LE(value)
  return bytes
}

/** A WAV file of so many samples, 8000 a second, one channel of 16 bits. `size` is what its header says of the sound. */
export const wav = (
  samples: number,
  { extra = Buffer.alloc(0), riff = "RIFF", size = samples * 2 }: {
    readonly size?: number
    readonly extra?: Buffer
    readonly riff?: string
  } = {}
): Buffer => {
  const sound = Buffer.alloc(samples * 2)
  for (let index = 0; index < samples; index++) sound.writeInt16LE((index * 257) % 0x7FFF, index * 2)
  const format = Buffer.alloc(16)
  format.writeUInt16LE(1, 0)
  format.writeUInt16LE(1, 2)
  format.writeUInt32LE(8000, 4)
  format.writeUInt32LE(16000, 8)
  format.writeUInt16LE(2, 12)
  format.writeUInt16LE(16, 14)
  const rest = Buffer.concat([
    ascii("WAVE"),
    ascii("fmt "),
    uint32(16),
    format,
    extra,
    ascii("data"),
    uint32(size),
    sound
  ])
  return Buffer.concat([ascii(riff), uint32(size === 0xFFFFFFFF ? size : rest.length), rest])
}

/** A PNG of one pixel: signature, header, data, end, with their checksums. */
export const png = Buffer.from(
  "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR42mNkYPhfDwAChwGA60e6kgAAAABJRU5ErkJggg==",
  "base64"
)

/** The beginning of an MP4 file, and whatever comes then. */
export const mp4 = (bytes: number): Buffer =>
  Buffer.concat([Buffer.from([0, 0, 0, 24]), ascii("ftypisom"), Buffer.alloc(bytes, 0xA5)])
