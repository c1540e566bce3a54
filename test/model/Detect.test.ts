import { assert, describe, it } from "@effect/vitest"
import * as Detect from "../../src/model/Detect.ts"

describe("Detect", () => {
  it("maps pipeline tags of both hubs", () => {
    const tags = {
      llm: ["text-generation", "text2text-generation", "causal-lm", "chat"],
      vlm: ["image-text-to-text", "visual-question-answering", "multimodal"],
      asr: ["automatic-speech-recognition"],
      tts: ["text-to-speech"],
      embedding: ["feature-extraction", "sentence-similarity"],
      diffusion: ["text-to-image", "image-to-image"],
      video_gen: ["text-to-video", "image-to-video"],
      detection: ["object-detection", "image-segmentation"],
      rerank: ["text-ranking", "reranking"]
    }
    for (const [type, names] of Object.entries(tags)) {
      for (const name of names) assert.strictEqual(Detect.typeOfPipelineTag(name), type)
    }
    assert.strictEqual(Detect.typeOfPipelineTag(" Text-Generation "), "llm")
    assert.deepStrictEqual(["fill-mask", "", "constructor"].map(Detect.typeOfPipelineTag), [
      undefined,
      undefined,
      undefined
    ])
    assert.strictEqual(Detect.defaultType, "llm")
  })

  it("maps extensions to formats", () => {
    const formats = {
      "a/b.gguf": "gguf",
      "b.GGUF": "gguf",
      "model-00001-of-00002.safetensors": "safetensors",
      "m.onnx": "onnx",
      "m.engine": "tensorrt",
      "m.plan": "tensorrt",
      "m.bin": "pytorch",
      "m.pt": "pytorch",
      "m.pth": "pytorch",
      "m.gguf.part": undefined,
      "m.safetensors.index.json": undefined,
      "gguf": undefined,
      "m.constructor": undefined
    }
    assert.deepStrictEqual(Object.keys(formats).map(Detect.formatOfPath), Object.values(formats))
  })

  it("maps architectures of GGUF headers, after the pooling", () => {
    assert.deepStrictEqual(
      ["llama", "something-new", "nomic-bert", "qwen3vlmoe", "whisper", "flux", "wan", "wavtokenizer-dec"].map((name) =>
        Detect.typeOfGgufArchitecture(name)
      ),
      ["llm", "llm", "embedding", "vlm", "asr", "diffusion", "video_gen", "tts"]
    )
    assert.deepStrictEqual(
      [0, 1, 2, 3, 4, 5].map((pooling) => Detect.typeOfGgufArchitecture("qwen3", pooling)),
      ["llm", "embedding", "embedding", "embedding", "rerank", "llm"]
    )
  })

  it("maps what config.json says", () => {
    const configs: ReadonlyArray<readonly [string | undefined, string | undefined, string | undefined]> = [
      ["LlamaForCausalLM", "llama", "llm"],
      ["GPT2LMHeadModel", "gpt2", "llm"],
      ["T5ForConditionalGeneration", "t5", "llm"],
      ["Qwen2_5_VLForConditionalGeneration", "qwen2_5_vl", "vlm"],
      ["LlavaForConditionalGeneration", "llava", "vlm"],
      ["WhisperForConditionalGeneration", "whisper", "asr"],
      ["Wav2Vec2ForCTC", undefined, "asr"],
      ["VitsModel", "vits", "tts"],
      ["BertModel", "bert", "embedding"],
      ["Qwen2Model", "qwen2", "embedding"],
      ["XLMRobertaForSequenceClassification", "xlm-roberta", "rerank"],
      ["NomicBertForSequenceClassification", "nomic_bert", "rerank"],
      ["DetrForObjectDetection", "detr", "detection"],
      ["SegformerForSemanticSegmentation", "segformer", "detection"],
      [undefined, "whisper", "asr"],
      [undefined, "unheard-of", undefined],
      ["Unheard", "constructor", undefined],
      [undefined, undefined, undefined]
    ]
    assert.deepStrictEqual(
      configs.map(([name, model_type]) =>
        Detect.typeOfConfig({ architectures: name === undefined ? undefined : [name], model_type })
      ),
      configs.map(([, , type]) => type)
    )
  })

  it("tells pictures from video", () => {
    assert.deepStrictEqual(
      [
        "StableDiffusionPipeline",
        "FluxPipeline",
        "StableVideoDiffusionPipeline",
        "HunyuanVideoPipeline",
        "WanImageToVideoPipeline",
        "LTXPipeline",
        "CogVideoXPipeline"
      ].map(Detect.typeOfDiffusersClass),
      ["diffusion", "diffusion", "video_gen", "video_gen", "video_gen", "video_gen", "video_gen"]
    )
  })

  it("reads and writes the names of shards", () => {
    const shard = { stem: "a-b", number: 2, count: 10, extension: ".gguf" }
    assert.deepStrictEqual(Detect.shardOfName("a-b-00002-of-00010.gguf"), shard)
    assert.strictEqual(Detect.nameOfShard("a-b", 2, 10, ".gguf"), "a-b-00002-of-00010.gguf")
    for (
      const name of [
        "a.gguf",
        "a-00000-of-00002.gguf",
        "a-00003-of-00002.gguf",
        "-00001-of-00002.gguf",
        "a-1-of-2.gguf",
        "a-00001-of-00002"
      ]
    ) {
      assert.isUndefined(Detect.shardOfName(name))
    }
  })
})
