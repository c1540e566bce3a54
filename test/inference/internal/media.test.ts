import { assert, describe, it } from "@effect/vitest"
import { Effect, Schema } from "effect"
import * as Media from "../../../src/inference/internal/media.ts"
import { mp4, png, wav } from "../samples.ts"

const bytes = (...all: ReadonlyArray<number | string>): Uint8Array =>
  Buffer.concat(all.map((part) => typeof part === "number" ? Buffer.from([part]) : Buffer.from(part, "latin1")))

const formats = (containerOf: (bytes: Uint8Array) => Media.Container | undefined, all: ReadonlyArray<Uint8Array>) =>
  all.map((one) => containerOf(one)?.format)

describe("containers by their first bytes", () => {
  it("of recordings", () => {
    assert.deepStrictEqual(
      formats(Media.audioOf, [
        wav(1),
        bytes("RF64", 255, 255, 255, 255, "WAVE"),
        bytes("ID3", 4),
        bytes(0xFF, 0xFB, 0x90),
        bytes(0xFF, 0xF3, 0x40),
        bytes(0xFF, 0xF1, 0x50),
        bytes(0xFF, 0xF9, 0x50),
        bytes("OggS"),
        bytes("fLaC"),
        bytes(0, 0, 0, 32, "ftypM4A "),
        bytes(0x1A, 0x45, 0xDF, 0xA3)
      ]),
      ["wav", "wav", "mp3", "mp3", "mp3", "aac", "aac", "ogg", "flac", "m4a", "webm"]
    )
  })

  it("of images", () => {
    assert.deepStrictEqual(
      formats(Media.imageOf, [
        png,
        bytes(0xFF, 0xD8, 0xFF, 0xE0),
        bytes("GIF89a"),
        bytes("RIFF", 0, 0, 0, 0, "WEBP"),
        bytes("II*", 0),
        bytes("MM", 0, "*"),
        bytes("BM", "x".repeat(30)),
        bytes(0, 0, 0, 32, "ftypavif"),
        bytes(0, 0, 0, 32, "ftypheic")
      ]),
      ["png", "jpeg", "gif", "webp", "tiff", "tiff", "bmp", "avif", "heic"]
    )
  })

  it("of videos", () => {
    assert.deepStrictEqual(
      formats(Media.videoOf, [mp4(1), bytes(0x1A, 0x45, 0xDF, 0xA3), bytes("RIFF", 0, 0, 0, 0, "AVI ")]),
      ["mp4", "webm", "avi"]
    )
  })

  it("tell nothing of what is too short, or something else", () => {
    const odd = [bytes(), bytes(0xFF), bytes("RIFF"), bytes("RIFF", 0, 0, 0, 0, "FILE"), bytes("ID"), bytes("BM")]
    for (const containerOf of [Media.audioOf, Media.imageOf, Media.videoOf]) {
      assert.deepStrictEqual(formats(containerOf, odd), odd.map(() => undefined))
    }
    // A frame of MPEG whose layer and version are reserved.
    assert.strictEqual(Media.audioOf(bytes(0xFF, 0xE0)), undefined)
  })

  it("names formats by media types", () => {
    assert.deepStrictEqual(
      ["audio/x-wav; rate=1", "AUDIO/MPEG", "audio/pcm", "video/mp4"].map(Media.formatOfType),
      ["wav", "mp3", "pcm", "mp4"]
    )
  })
})

describe("wavSeconds", () => {
  it("is the bytes of the sound by those of a second", () => {
    assert.strictEqual(Media.wavSeconds(wav(12000)), 1.5)
    assert.strictEqual(Media.wavSeconds(wav(0)), 0)
  })

  it("counts what is there where the header does not know, or knows too much", () => {
    assert.strictEqual(Media.wavSeconds(wav(4000, { size: 0xFFFFFFFF })), 0.5)
    assert.strictEqual(Media.wavSeconds(wav(4000, { size: 0 })), 0.5)
    assert.strictEqual(Media.wavSeconds(wav(4000, { size: 16001 })), 0.5)
    assert.strictEqual(Media.wavSeconds(wav(4000, { riff: "RF64", size: 0xFFFFFFFF })), 0.5)
    // What comes after the sound is no sound.
    assert.strictEqual(Media.wavSeconds(wav(8000, { size: 8000 })), 0.5)
  })

  it("passes over other chunks, which begin at even places", () => {
    const list = Buffer.concat([bytes("LIST", 3, 0, 0, 0, "abc", 0)])
    assert.strictEqual(Media.wavSeconds(wav(8000, { extra: list })), 1)
  })

  it("knows nothing of what is none, or breaks off", () => {
    const whole = wav(100)
    for (let length = 0; length < 44; length++) {
      assert.strictEqual(Media.wavSeconds(whole.subarray(0, length)), undefined)
    }
    assert.strictEqual(Media.wavSeconds(png), undefined)
    const silent = Buffer.from(whole)
    silent.writeUInt32LE(0, 28)
    assert.strictEqual(Media.wavSeconds(silent), undefined)
  })

  it.effect.prop("reads whatever bytes there are", { rest: Schema.Uint8Array }, ({ rest }) =>
    Effect.sync(() => {
      const seconds = Media.wavSeconds(Buffer.concat([bytes("RIFF", 0, 0, 0, 0, "WAVE"), rest]))
      assert.isTrue(seconds === undefined || seconds >= 0)
    }))
})

describe("Base64", () => {
  it.effect.prop("gives the bytes back", { all: Schema.Uint8Array }, ({ all }) =>
    Effect.sync(() => {
      const text = Media.toBase64(all)
      if (all.length === 0) return assert.strictEqual(Media.fromBase64(text), undefined)
      for (const form of [text, text.replace(/=+$/, ""), `${text.slice(0, 3)}\r\n ${text.slice(3)}\n`]) {
        assert.deepStrictEqual(Media.fromBase64(form), Buffer.from(all))
      }
      assert.deepStrictEqual(Media.fromDataUri(`DATA:Audio/WAV;x=1;base64,${text}`), {
        type: "audio/wav",
        bytes: Buffer.from(all)
      })
    }))

  it("is strict", () => {
    for (const text of ["", "=", "a", "abcde", "ab=", "abcd=", "a=bc", "ab==cd==", "ab-_", "/data/a.wav", "é"]) {
      assert.strictEqual(Media.fromBase64(text), undefined, text)
    }
  })

  it("in a data URI has to be named", () => {
    assert.deepStrictEqual(Media.fromDataUri("data:audio/wav,abcd"), { type: "audio/wav", bytes: undefined })
    assert.deepStrictEqual(Media.fromDataUri("data:;base64"), { type: "", bytes: undefined })
    assert.deepStrictEqual(Media.fromDataUri("data:;base64,AA=="), { type: "", bytes: Buffer.from([0]) })
    assert.strictEqual(Media.fromDataUri("AAAA"), undefined)
  })
})
