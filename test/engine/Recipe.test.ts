import { assert, describe, it } from "@effect/vitest"
import { EngineType } from "../../src/engine/Engine.ts"
import * as Recipe from "../../src/engine/Recipe.ts"

const settings: Recipe.Settings = {
  host: "127.0.0.1",
  port: 8123,
  model: "/models/tiny",
  servedName: "tiny",
  gpu: false,
  config: { max_model_len: 2048, tensor_parallel_size: 2 }
}

/** What each engine is started with as a program, without a GPU. */
const programs: Record<EngineType, string> = {
  ollama: "ollama serve",
  vllm:
    "vllm serve /models/tiny --host 127.0.0.1 --port 8123 --tensor-parallel-size 2 --max-model-len 2048 --served-model-name tiny",
  sglang: "python3 -m sglang.launch_server --model-path /models/tiny --host 127.0.0.1 --port 8123 --tp-size 2 " +
    "--context-length 2048 --served-model-name tiny --device cpu",
  whisper: "python3 -m uvicorn --factory --host 127.0.0.1 --port 8123 speaches.main:create_app",
  tts: "python3 -m uvicorn --factory --host 127.0.0.1 --port 8123 speaches.main:create_app",
  diffusion: "local-ai run --address 127.0.0.1:8123 --models-path /models/tiny",
  transformers: "transformers serve --host 127.0.0.1 --port 8123 --device cpu --force-model /models/tiny",
  huggingface: "text-generation-launcher --model-id /models/tiny --hostname 127.0.0.1 --port 8123 --num-shard 2 " +
    "--max-total-tokens 2048",
  video: "local-ai run --address 127.0.0.1:8123 --models-path /models/tiny",
  rerank: "text-embeddings-router --model-id /models/tiny --hostname 127.0.0.1 --port 8123"
}

/** And what a container of each is given. */
const containers: Partial<Record<EngineType, string>> = {
  ollama: "ollama/ollama:latest serve",
  vllm: "vllm/vllm-openai:latest --model /models/tiny --port 8123 --tensor-parallel-size 2 --max-model-len 2048 " +
    "--served-model-name tiny",
  sglang:
    "lmsysorg/sglang:latest python3 -m sglang.launch_server --model-path /models/tiny --host 127.0.0.1 --port 8123 " +
    "--tp-size 2 --context-length 2048 --served-model-name tiny --device cpu",
  whisper: "ghcr.io/speaches-ai/speaches:latest-cpu",
  tts: "ghcr.io/speaches-ai/speaches:latest-cpu",
  diffusion: "localai/localai:latest --address :8123 --models-path /models/tiny",
  huggingface:
    "ghcr.io/huggingface/text-generation-inference:latest --model-id /models/tiny --port 8123 --num-shard 2 " +
    "--max-total-tokens 2048",
  video: "localai/localai:latest --address :8123 --models-path /models/tiny",
  rerank: "ghcr.io/huggingface/text-embeddings-inference:cpu-latest --model-id /models/tiny --port 8123"
}

describe("the recipes", () => {
  for (const type of EngineType.literals) {
    it(`start ${type} as a program and as a container`, () => {
      const { container, process } = Recipe.recipes[type]
      const program = process && [process.command, ...process.args(settings)].join(" ")
      const image = container && [`${container.image}:${container.tag}`, ...container.args(settings)].join(" ")
      assert.deepStrictEqual([program, image], [programs[type], containers[type]])
      assert.strictEqual(Recipe.recipes[type].type, type)
    })
  }

  it("take the share of a GPU's memory that is asked for, and nine tenths otherwise", () => {
    const shareOf = (config: Recipe.Settings["config"]) => {
      const args = Recipe.recipes.vllm.process?.args({ ...settings, gpu: true, config }) ?? []
      return args[args.indexOf("--gpu-memory-utilization") + 1]
    }
    assert.deepStrictEqual([shareOf({}), shareOf({ gpu_memory_utilization: 0.5 })], ["0.9", "0.5"])
  })

  it("hide the GPUs where they are not to be used", () => {
    const env = Recipe.recipes.vllm.process?.env
    assert.deepStrictEqual(env?.(settings), { CUDA_VISIBLE_DEVICES: "", HIP_VISIBLE_DEVICES: "" })
    assert.deepStrictEqual(env?.({ ...settings, gpu: true }), {})
  })

  it("name the tag of a version, and how to get a program", () => {
    const { container, process } = Recipe.recipes.vllm
    assert.deepStrictEqual(["0.6.3", "v0.6.3", "nightly"].map((version) => container?.tagOf?.(version)), [
      "v0.6.3",
      "v0.6.3",
      "nightly"
    ])
    assert.deepStrictEqual([process?.howToInstall("0.6.3"), process?.howToInstall(undefined)], [
      "run `pip install vllm==0.6.3`",
      "run `pip install vllm`"
    ])
  })
})
