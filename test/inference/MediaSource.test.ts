import { NodeHttpClient, NodeServices } from "@effect/platform-node"
import { assert, describe, it } from "@effect/vitest"
import { Context, Effect, Fiber, Layer } from "effect"
import { FetchHttpClient, HttpClient, HttpClientResponse } from "effect/http"
import { TestClock } from "effect/testing"
import * as fs from "node:fs"
import * as path from "node:path"
import { type MediaError, Unavailable, Unusable } from "../../src/inference/index.ts"
import * as Source from "../../src/inference/MediaSource.ts"
import * as PublicAddress from "../../src/internal/publicAddress.ts"
import { png, wav } from "./samples.ts"
import type { Route } from "./StandIn.ts"
import { folder, serve } from "./world.ts"

const source = (options: Source.Options, client: Layer.Layer<HttpClient.HttpClient> = NodeHttpClient.layerUndici) =>
  Effect.map(
    Layer.build(Source.layer(options).pipe(Layer.provide(Layer.merge(client, NodeServices.layer)))),
    (context) => Context.get(context, Source.MediaSource)
  )

const reason = (effect: Effect.Effect<unknown, MediaError>) => Effect.map(Effect.flip(effect), ({ reason }) => reason)

const expected = (effect: Effect.Effect<unknown, MediaError>) =>
  Effect.map(reason(effect), (reason) => {
    assert.instanceOf(reason, Unusable)
    return reason._tag === "Unusable" ? reason.expected : ""
  })

const base64 = wav(4).toString("base64")

describe("recordings", () => {
  it.effect("are in the input itself", () =>
    Effect.gen(function*() {
      const { audio } = yield* source({})
      const recording = { bytes: wav(4), name: "audio.wav", type: "audio/wav" }
      assert.deepStrictEqual(yield* audio(base64), recording)
      assert.deepStrictEqual(yield* audio(`data:audio/ogg;base64,${base64}`), recording)
      assert.deepStrictEqual(yield* audio(`data:audio/x-amr;base64,AAAA`), {
        bytes: Buffer.alloc(3),
        name: "audio.amr",
        type: "audio/x-amr"
      })
    }))

  it.effect("are nothing else", () =>
    Effect.gen(function*() {
      const { audio } = yield* source({})
      const texts = [
        "hello",
        "AAAA",
        "data:text/plain;base64,AAAA",
        "data:audio/wav,RIFF",
        "data:audio/wav;base64",
        "/etc/hostname",
        `file:///etc/hostname`,
        png.toString("base64")
      ]
      for (const text of texts) assert.include(yield* expected(audio(text)), "Expected a recording", text)
    }))

  it.effect("are in files below the folders that are allowed, and nowhere else", () =>
    Effect.gen(function*() {
      const root = yield* folder
      const elsewhere = yield* folder
      const write = (directory: string, name: string, bytes: Uint8Array | string) => {
        fs.writeFileSync(path.join(directory, name), bytes)
        return path.join(directory, name)
      }
      fs.mkdirSync(path.join(root, "..in"))
      const inside = write(root, "a.b.bin", wav(4))
      const deeper = write(path.join(root, "..in"), "speech.amr", "#!AMR")
      const outside = write(elsewhere, "b.wav", wav(4))
      const link = path.join(root, "link.wav")
      fs.symlinkSync(outside, link)
      const { audio } = yield* source({ audioRoots: [path.join(root, "none"), root] })
      assert.deepStrictEqual(yield* audio(inside), { bytes: wav(4), name: "a.b.wav", type: "audio/wav" })
      assert.deepStrictEqual(yield* audio(deeper), {
        bytes: Buffer.from("#!AMR"),
        name: "speech.amr",
        type: "application/octet-stream"
      })
      const refused = [
        outside,
        link,
        root,
        elsewhere,
        path.join(root, "missing.wav"),
        `${root}/../${path.basename(elsewhere)}/b.wav`,
        path.relative(process.cwd(), inside),
        `${inside}\0`,
        `/${"x".repeat(5000)}.wav`
      ]
      const said = yield* Effect.forEach(refused, (path) => expected(audio(path)))
      // What is elsewhere is not told from what is not there.
      assert.strictEqual(new Set(said).size, 1)
      const none = yield* source({})
      yield* expected(none.audio(inside))
    }))

  it.effect("may begin as a path does", () =>
    Effect.gen(function*() {
      const { audio } = yield* source({ audioRoots: ["/"] })
      const mp3 = Buffer.from([0xFF, 0xFB, 0x90, 0x44])
      assert.isTrue(mp3.toString("base64").startsWith("/"))
      assert.deepStrictEqual((yield* audio(mp3.toString("base64"))).type, "audio/mpeg")
    }))

  it.effect("are not larger than they may be, to the byte", () =>
    Effect.gen(function*() {
      const root = yield* folder
      fs.writeFileSync(path.join(root, "a.wav"), wav(4))
      const { length } = wav(4)
      for (const text of [base64, path.join(root, "a.wav"), `data:audio/wav;base64,${base64}`]) {
        const fits = yield* source({ audioRoots: [root], maxAudioBytes: length })
        assert.strictEqual((yield* fits.audio(text)).bytes.length, length)
        const tight = yield* source({ audioRoots: [root], maxAudioBytes: length - 1 })
        assert.include(yield* expected(tight.audio(text)), `at most ${length - 1} bytes`)
      }
      const { audio } = yield* source({})
      assert.include(yield* expected(audio("A".repeat(40 * 1024 * 1024))), "at most 26214400 bytes")
    }))
})

/** Images, and redirects to where the query says. */
const routes: ReadonlyArray<Route> = [
  { method: "GET", path: "/image", handle: () => ({ headers: { "content-type": "text/plain" }, body: png }) },
  { method: "GET", path: "/text", handle: () => ({ headers: { "content-type": "image/png" }, body: "PNG" }) },
  {
    method: "GET",
    path: "/to",
    handle: ({ url }) => ({ status: 302, headers: { location: url.searchParams.get("to") ?? "" }, body: "" })
  }
]

const to = (url: string) => `/to?to=${encodeURIComponent(url)}`

describe("images", () => {
  const image = { bytes: png, name: "image.png", type: "image/png" }

  it.effect("are in the input itself", () =>
    Effect.gen(function*() {
      const { image: read } = yield* source({})
      assert.deepStrictEqual(yield* read(png.toString("base64")), image)
      assert.deepStrictEqual(yield* read(`data:;base64,${png.toString("base64")}`), image)
      for (const text of ["hello", base64, "ftp://example.com/a.png", "/etc/hostname", "data:audio/wav;base64,AAAA"]) {
        assert.include(yield* expected(read(text)), "Expected an image", text)
      }
      const tight = yield* source({ maxImageBytes: png.length - 1 })
      assert.include(yield* expected(tight.image(png.toString("base64"))), "Expected at most")
    }))

  const clients = [
    ["Undici", NodeHttpClient.layerUndici],
    ["node:http", NodeHttpClient.layerNodeHttp],
    ["fetch", FetchHttpClient.layer]
  ] as const
  for (const [name, client] of clients) {
    it.effect(`come from the web by ${name}, also from where it leads to`, () =>
      Effect.gen(function*() {
        const { url } = yield* serve(routes)
        const { image: read } = yield* source({ allowPrivateAddresses: true }, client)
        const same = (media: typeof image) => ({ ...media, bytes: Buffer.from(media.bytes) })
        assert.deepStrictEqual(same((yield* read(`${url}/image`)) as typeof image), image)
        assert.deepStrictEqual(same((yield* read(`${url}${to(to("image"))}`)) as typeof image), image)
      }))
  }

  it.effect("do not come from this machine or network, unless that is allowed", () =>
    Effect.gen(function*() {
      const server = yield* serve(routes)
      const { port } = new URL(server.url)
      const { image: read } = yield* source({})
      const hosts = ["127.0.0.1", "localhost", "[::1]", "[::ffff:127.0.0.1]", "2130706433", "0x7f.1", "10.0.0.1"]
      for (const host of [...hosts, "169.254.169.254", "[fd00::1]", "0.0.0.0"]) {
        assert.include(yield* expected(read(`http://${host}:${port}/image`)), "Expected a public address", host)
      }
      assert.strictEqual(server.connections(), 0)
    }))

  it.effect("do not come from a name that turns out to be this machine when the connection is made", () =>
    Effect.gen(function*() {
      const server = yield* serve(routes)
      const client = NodeHttpClient.layerUndiciOptions({ connect: { lookup: PublicAddress.lookup } })
      // The check that comes before is switched off, as if the name had had another address then.
      const { image: read } = yield* source({ allowPrivateAddresses: true }, client)
      const failure = yield* reason(read(`http://localhost:${new URL(server.url).port}/image`))
      assert.instanceOf(failure, Unavailable)
      assert.strictEqual(server.connections(), 0)
    }))

  it.effect("are not asked for in somebody's name", () =>
    Effect.gen(function*() {
      const server = yield* serve(routes)
      const { image: read } = yield* source({ allowPrivateAddresses: true })
      const address = server.url.replace("//", "//me:secret@")
      assert.include(yield* expected(read(`${address}/image`)), "without a user and a password")
      assert.deepStrictEqual(server.requests, [])
    }))

  it.effect("do not come from this network by way of a public host", () =>
    Effect.gen(function*() {
      const asked: Array<string> = []
      const client = HttpClient.make((request, url) =>
        Effect.sync(() => {
          asked.push(url.href)
          const headers = { location: "http://169.254.169.254/latest" }
          return HttpClientResponse.fromWeb(request, new Response(null, { status: 307, headers }))
        })
      )
      const { image: read } = yield* source({}, Layer.succeed(HttpClient.HttpClient, client))
      assert.include(yield* expected(read("http://1.1.1.1/image")), "Expected a public address")
      assert.deepStrictEqual(asked, ["http://1.1.1.1/image"])
    }))

  it.effect("are checked at each step of a redirect", () =>
    Effect.gen(function*() {
      const server = yield* serve(routes)
      const { image: read } = yield* source({ allowPrivateAddresses: true })
      const from = (place: string) => expected(read(`${server.url}${to(place)}`))
      assert.include(yield* from("file:///etc/hostname"), "no http or https address")
      assert.include(yield* from("http://"), "no http or https address")
      // Each leads to itself.
      server.fault(
        "/loop",
        ...Array.from({ length: 7 }, () => ({
          kind: "answer" as const,
          status: 301,
          headers: { location: "/loop" },
          body: ""
        }))
      )
      assert.include(yield* expected(read(`${server.url}/loop`)), "more than 5 times")
    }))

  it.effect("are what they say, small enough, and there", () =>
    Effect.gen(function*() {
      const server = yield* serve(routes)
      const { url } = server
      const { image: read } = yield* source({ allowPrivateAddresses: true, maxImageBytes: 100 })
      assert.include(yield* expected(read(`${url}/text`)), "it is something else")
      assert.include(yield* expected(read(`${url}/missing`)), "answered 404")
      server.fault("/image", { kind: "answer", body: Buffer.concat([png, Buffer.alloc(100)]) })
      assert.include(yield* expected(read(`${url}/image`)), "at most 100 bytes")
      const host = new URL(url).host
      for (const status of [500, 503, 429]) {
        server.fault("/image", { kind: "answer", status, body: "" })
        assert.deepStrictEqual(
          yield* reason(read(`${url}/image`)),
          new Unavailable({ host, detail: `it answered ${status}`, isTimeout: false })
        )
      }
      server.fault("/image", { kind: "cut", after: 20 })
      assert.strictEqual((yield* reason(read(`${url}/image`)))._tag, "Unavailable")
      yield* Effect.promise(() => server.close())
      assert.strictEqual((yield* reason(read(`${url}/image`)))._tag, "Unavailable")
    }))

  it.effect("are not waited for longer than they may take, and leave no connection", () =>
    Effect.gen(function*() {
      const server = yield* serve(routes)
      const { image: read } = yield* source({ allowPrivateAddresses: true, imageTimeout: "7 seconds" })
      server.fault("/image", { kind: "stall", after: 20 })
      const fiber = yield* Effect.forkChild(reason(read(`${server.url}/image`)))
      yield* Effect.promise(() => server.waiting())
      yield* TestClock.adjust("7 seconds")
      assert.deepStrictEqual(
        yield* Fiber.join(fiber),
        new Unavailable({ host: new URL(server.url).host, detail: "it took longer than 7 s", isTimeout: true })
      )
      yield* Effect.promise(() => server.left())
    }))
})
