/** Real servers of models: one of the OpenAI protocol, for which `OPENAI_BASE_URL` has to be set, and Ollama, for which `OLLAMA_HOST`. */
import { NodeHttpClient } from "@effect/platform-node"
import { assert, describe, it } from "@effect/vitest"
import { Effect, Redacted, Stream } from "effect"
import type { HttpClient } from "effect/http"
import type { Backend } from "../../src/inference/Backend.ts"
import * as Endpoints from "../../src/inference/Endpoints.ts"
import * as Serving from "../../src/inference/Serving.ts"
import { endpointOf } from "../../src/model/Ollama.ts"

const messages = [{ role: "user", content: "Say hello, and nothing else." }] as const

/** The first model that chats answers whole and streamed alike. */
const chats = Effect.fnUntraced(function*({ chat, chatStream, models }: Backend) {
  const model = (yield* models).find((model) => Serving.typeOf(model) === "llm")?.id
  if (model === undefined) return assert.fail("It serves no language model")
  const request = { model, messages, max_tokens: 16, temperature: 0 }
  const whole = yield* chat!(request)
  assert.isAbove(whole.usage?.completion_tokens ?? 0, 0)
  const chunks = yield* Stream.runCollect(chatStream!(request))
  const done = chunks.at(-1)
  assert.strictEqual(done?.type, "done")
  assert.include(["stop", "length"], done?.metadata.finish_reason)
  assert.isAbove(done?.usage?.completion_tokens ?? 0, 0)
})

const suite = (
  name: string,
  address: string | undefined,
  make: (address: string) => Effect.Effect<Endpoints.Endpoint, never, HttpClient.HttpClient>
) =>
  describe.skipIf(address === undefined)(name, () => {
    it.live("chats, whole and streamed", () =>
      Effect.flatMap(make(address ?? ""), ({ backend }) => chats(backend)).pipe(
        Effect.provide(NodeHttpClient.layerUndici)
      ), 300_000)
  })

const key = process.env["OPENAI_API_KEY"]

suite("a real server of the OpenAI protocol", process.env["OPENAI_BASE_URL"], (baseUrl) =>
  Endpoints.make({
    name: "openai",
    dialect: "openai",
    baseUrl,
    apiKey: key === undefined ? undefined : Redacted.make(key)
  }))

suite(
  "a real Ollama server",
  process.env["OLLAMA_HOST"],
  (host) => Endpoints.make({ name: "ollama", dialect: "ollama", baseUrl: endpointOf(host) })
)
