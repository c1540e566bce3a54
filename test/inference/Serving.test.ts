import { assert, describe, it } from "@effect/vitest"
import * as Serving from "../../src/inference/Serving.ts"
import { ModelId } from "../../src/model/Model.ts"
import type { StoredModel } from "../../src/model/ModelStore.ts"

const model = (name: string, more: Partial<StoredModel> = {}): StoredModel => ({
  id: ModelId.make("model-0a1b2c3d"),
  name,
  type: "llm",
  format: "gguf",
  status: "ready",
  source: "local",
  size: 0,
  tags: [],
  files: [],
  created_at: 0,
  updated_at: 0,
  ...more
})

describe("namesOf", () => {
  it("has all that a server may call a model", () => {
    assert.deepStrictEqual(Serving.namesOf(model("Tiny")), ["model-0a1b2c3d", "Tiny"])
    const origin = { source: "ollama", repo: "tiny", tag: "latest" } as const
    assert.deepStrictEqual(Serving.namesOf(model("Tiny", { path: "/m/acme/tiny.q4.gguf", origin })), [
      "model-0a1b2c3d",
      "Tiny",
      "/m/acme/tiny.q4.gguf",
      "tiny.q4.gguf",
      "tiny.q4",
      "tiny",
      "tiny:latest"
    ])
    assert.include(Serving.namesOf(model("Tiny", { path: "C:\\models\\tiny" })), "tiny")
  })
})

describe("finder", () => {
  it("finds the model that was registered first among those of one name", () => {
    const first = model("a", { path: "/x/same.gguf" })
    const second = model("b", { path: "/y/same.gguf" })
    const find = Serving.finder([first, second])
    assert.strictEqual(find("SAME:latest"), first)
    assert.strictEqual(find("/y/same.gguf"), second)
    assert.isUndefined(find("c"))
  })
})

describe("typeOf", () => {
  it("takes the endpoint's word, then that of the name", () => {
    assert.strictEqual(Serving.typeOf({ id: "whisper", type: "llm" }), "llm")
    const names = {
      rerank: ["BAAI/bge-reranker-v2-m3", "jina-reranker", "qwen3-rerank"],
      embedding: [
        "nomic-embed-text:latest",
        "BAAI/bge-m3",
        "intfloat/e5-large",
        "all-minilm:l6",
        "text-embedding-3-small"
      ],
      asr: ["openai/whisper-large-v3", "Qwen3-ASR", "FunAudioLLM/SenseVoiceSmall"],
      tts: ["tts-1", "hexgrad/Kokoro-82M", "Qwen3-TTS", "suno/bark"],
      video_gen: ["Wan-AI/Wan2.1-T2V-1.3B", "THUDM/CogVideoX-2b", "sora-2"],
      diffusion: ["stabilityai/stable-diffusion-3", "black-forest-labs/FLUX.1-dev", "dall-e-3", "sdxl-turbo"],
      detection: ["yolo11n", "facebook/detr-resnet-50"],
      vlm: ["llava:7b", "Qwen/Qwen2.5-VL-7B-Instruct", "llama3.2-vision", "qwen3vl"],
      llm: ["qwen3", "llama3.2:1b", "gpt-4o", "mistral", "big-tiger", "Bartowski/evil-7b", "e5x"]
    } as const
    for (const [type, ids] of Object.entries(names)) {
      for (const id of ids) assert.deepStrictEqual([id, Serving.typeOf({ id })], [id, type as keyof typeof names])
    }
  })
})
