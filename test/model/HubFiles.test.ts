import { assert, describe, it } from "@effect/vitest"
import * as HubFiles from "../../src/model/HubFiles.ts"

const select = (paths: ReadonlyArray<string>, choice?: string) => {
  const selection = HubFiles.select(paths.map((path) => ({ path })), choice)
  return selection && {
    format: selection.format,
    weights: selection.weights.map(({ path }) => path),
    others: selection.others.map(({ path }) => path)
  }
}

describe("a repository of one model", () => {
  it("has its weights in the best format, and what is needed to use them", () => {
    assert.deepStrictEqual(
      select([
        ".gitattributes",
        "README.md",
        "config.json",
        "flax_model.msgpack",
        "generation_config.json",
        "merges.txt",
        "model-00001-of-00002.safetensors",
        "model-00002-of-00002.safetensors",
        "model.safetensors.index.json",
        "onnx/model.onnx",
        "picture.png",
        "pytorch_model-00001-of-00002.bin",
        "pytorch_model-00002-of-00002.bin",
        "pytorch_model.bin.index.json",
        "tf_model.h5",
        "tokenizer.json",
        "tokenizer.model",
        "training_args.bin",
        "vocab.json"
      ]),
      {
        format: "safetensors",
        weights: ["model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"],
        others: [
          "config.json",
          "generation_config.json",
          "merges.txt",
          "model.safetensors.index.json",
          "tokenizer.json",
          "tokenizer.model",
          "vocab.json"
        ]
      }
    )
  })

  it("has its PyTorch weights without the state of the training", () => {
    assert.deepStrictEqual(
      select(["optimizer.bin", "pytorch_model.bin", "pytorch_model.bin.index.json", "training_args.bin"]),
      { format: "pytorch", weights: ["pytorch_model.bin"], others: ["pytorch_model.bin.index.json"] }
    )
  })

  it("has what an ONNX model keeps outside of its file", () => {
    assert.deepStrictEqual(
      select(["config.json", "model.onnx", "model.onnx_data"]),
      { format: "onnx", weights: ["model.onnx"], others: ["config.json", "model.onnx_data"] }
    )
  })

  it("has every weight once", () => {
    assert.deepStrictEqual(
      select(["consolidated.safetensors", "model.safetensors", "original/model.safetensors"])?.weights,
      ["model.safetensors"]
    )
    assert.deepStrictEqual(select(["consolidated.00.pth", "params.json"])?.weights, ["consolidated.00.pth"])
    assert.deepStrictEqual(select(["original/model.safetensors"])?.weights, ["original/model.safetensors"])
    assert.deepStrictEqual(
      select([
        "model_index.json",
        "sd_xl_base_1.0.safetensors",
        "unet/config.json",
        "unet/diffusion_pytorch_model.fp16.safetensors",
        "unet/diffusion_pytorch_model.safetensors",
        "vae/diffusion_pytorch_model.fp16.safetensors"
      ]),
      {
        format: "safetensors",
        weights: ["unet/diffusion_pytorch_model.safetensors", "vae/diffusion_pytorch_model.fp16.safetensors"],
        others: ["model_index.json", "unet/config.json"]
      }
    )
  })

  it("has none without weights", () => {
    assert.isUndefined(select(["README.md", "config.json", "training_args.bin"]))
    assert.isUndefined(select([]))
  })
})

describe("a repository of quantisations", () => {
  const repository = [
    "config.json",
    "imatrix.gguf",
    "mmproj-model-bf16.gguf",
    "mmproj-model-f16.gguf",
    "tiny-IQ2_M.gguf",
    "tiny-Q4_K_M.gguf",
    "tiny-UD-Q4_K_M.gguf",
    "Q8_0/tiny-Q8_0-00001-of-00002.gguf",
    "Q8_0/tiny-Q8_0-00002-of-00002.gguf"
  ]
  const projector = "mmproj-model-f16.gguf"

  it("has Q4_K_M unless another one is asked for", () => {
    assert.deepStrictEqual(select(repository), {
      format: "gguf",
      weights: ["tiny-Q4_K_M.gguf", projector],
      others: ["config.json"]
    })
    assert.deepStrictEqual(select(["a-Q8_0.gguf", "a-F16.gguf"])?.weights, ["a-Q8_0.gguf"])
  })

  it("has the one whose name ends with the choice, or is the choice, with all its shards", () => {
    const shards = ["Q8_0/tiny-Q8_0-00001-of-00002.gguf", "Q8_0/tiny-Q8_0-00002-of-00002.gguf", projector]
    const cases: ReadonlyArray<readonly [string, ReadonlyArray<string>]> = [
      ["q8_0", shards],
      ["tiny-Q8_0", shards],
      ["Q8_0/tiny-Q8_0-00001-of-00002.gguf", shards],
      ["IQ2_M", ["tiny-IQ2_M.gguf", projector]],
      ["tiny-IQ2_M.gguf", ["tiny-IQ2_M.gguf", projector]],
      ["UD-Q4_K_M", ["tiny-UD-Q4_K_M.gguf", projector]]
    ]
    for (const [choice, weights] of cases) assert.deepStrictEqual(select(repository, choice)?.weights, weights, choice)
  })

  it("does not have what merely looks alike", () => {
    for (const choice of ["Q2_M", "K_M ", "main", "", "Q5_K_M", "README.md"]) {
      assert.isUndefined(select(repository, choice), choice)
    }
    assert.deepStrictEqual(HubFiles.choices(repository.map((path) => ({ path }))), [
      "tiny-IQ2_M",
      "tiny-Q4_K_M",
      "tiny-UD-Q4_K_M",
      "Q8_0/tiny-Q8_0"
    ])
  })

  it("is chosen from by name beside weights in other formats", () => {
    const both = ["config.json", "model.safetensors", "tiny-Q4_0.gguf"]
    assert.deepStrictEqual(select(both)?.format, "safetensors")
    assert.deepStrictEqual(select(both, "Q4_0"), {
      format: "gguf",
      weights: ["tiny-Q4_0.gguf"],
      others: ["config.json"]
    })
    assert.deepStrictEqual(select(both, "model.safetensors")?.weights, ["model.safetensors"])
  })
})
