import * as NodeServices from "@effect/platform-node/NodeServices"
import { assert, it } from "@effect/vitest"
import * as Deferred from "effect/Deferred"
import * as Effect from "effect/Effect"
import * as Exit from "effect/Exit"
import * as Fiber from "effect/Fiber"
import * as FileSystem from "effect/FileSystem"
import * as PlatformError from "effect/PlatformError"
import { execFileSync } from "node:child_process"
import { createHash } from "node:crypto"
import * as LocalFiles from "../../src/model/LocalFiles.ts"
import {
  Ambiguous,
  LengthMismatch,
  Malformed,
  Missing,
  ModelFileError,
  NoWeights,
  TooMany,
  Truncated,
  Unreadable
} from "../../src/model/ModelFileError.ts"
import {
  Bytes,
  file,
  folder,
  gguf,
  type GgufTensor,
  type GgufValue,
  llamaConfig,
  llamaPairs,
  llamaTensors,
  safetensors,
  string,
  tinyGguf,
  tinySafetensors,
  u32
} from "./files.ts"

const sha256 = (content: string | Uint8Array) => createHash("sha256").update(content).digest("hex")

/** What `inspect` says is wrong, with the path relative to the folder. */
const errorOf = (root: string, name = "") =>
  Effect.map(
    Effect.flip(LocalFiles.inspect(name === "" ? root : `${root}/${name}`)),
    (error) => [error.path.slice(root.length + 1), error.reason] as const
  )

const weights = safetensors({ "w": { dtype: "F16", shape: [10], bytes: 20 } })
const config = JSON.stringify(llamaConfig)

/** The files of a model in shards, split like `gguf-split` does it: the first has the keys, each some tensors. */
const shards = (count = 3, tensors: ReadonlyArray<GgufTensor> = llamaTensors) =>
  tensors.map((tensor, i) =>
    gguf({
      pairs: [
        ...(i === 0 ? llamaPairs : []),
        ["split.no", { type: "u16", value: i }],
        ["split.count", { type: "u16", value: count }],
        ["split.tensors.count", { type: "i32", value: 3 }]
      ],
      tensors: [tensor]
    })
  )

it.layer(NodeServices.layer)("LocalFiles.inspect", (it) => {
  it.effect("tells all of a GGUF file", () =>
    Effect.gen(function*() {
      const bytes = tinyGguf()
      const root = yield* folder({ "tiny.Q8_0.gguf": bytes, "other.txt": "" })
      assert.deepStrictEqual(yield* LocalFiles.inspect(`${root}/tiny.Q8_0.gguf`), {
        path: `${root}/tiny.Q8_0.gguf`,
        kind: "file",
        root,
        name: "Tiny Llama",
        type: "llm",
        typeGuessed: false,
        format: "gguf",
        size: bytes.length,
        weights: ["tiny.Q8_0.gguf"],
        files: [{ path: "tiny.Q8_0.gguf", size: bytes.length }],
        shape: {
          contextLength: 512,
          layers: 2,
          kvHeads: 2,
          headDim: 8,
          weightBytes: bytes.length,
          parameterCount: 1125
        }
      })
    }))

  it.effect("tells all of a folder of safetensors", () =>
    Effect.gen(function*() {
      const root = yield* folder({
        "config.json": config,
        "model.safetensors": tinySafetensors,
        "original/params.json": "{}",
        "tokenizer.json": "{}",
        ".git/objects/pack": "x",
        ".gitattributes": "x"
      })
      const model = yield* LocalFiles.inspect(root)
      assert.deepStrictEqual(model, {
        path: root,
        kind: "directory",
        root,
        name: root.slice(root.lastIndexOf("/") + 1),
        type: "llm",
        typeGuessed: false,
        format: "safetensors",
        size: config.length + tinySafetensors.length + 4,
        weights: ["model.safetensors"],
        files: [
          { path: "config.json", size: config.length },
          { path: "model.safetensors", size: tinySafetensors.length },
          { path: "original/params.json", size: 2 },
          { path: "tokenizer.json", size: 2 }
        ],
        shape: {
          layers: 2,
          contextLength: 512,
          kvHeads: 2,
          headDim: 8,
          weightBytes: tinySafetensors.length,
          parameterCount: 16
        }
      })
    }))

  const nameAndType = (pairs: ReadonlyArray<readonly [string, GgufValue]>, name = "my.model-1.5b.gguf") =>
    Effect.map(
      Effect.flatMap(file(name, tinyGguf({ pairs })), LocalFiles.inspect),
      (model) => [model.name, model.type]
    )

  it.effect("takes name and type from the header, else the name from the file", () =>
    Effect.gen(function*() {
      const arch = (name: string) => ["general.architecture", string(name)] as const
      assert.deepStrictEqual(yield* nameAndType([arch("llama")]), ["my.model-1.5b", "llm"])
      assert.deepStrictEqual(yield* nameAndType([arch("bert"), ["general.name", string(" \n")]]), [
        "my.model-1.5b",
        "embedding"
      ])
      assert.deepStrictEqual(yield* nameAndType([arch("bert"), ["bert.pooling_type", u32(4)]]), [
        "my.model-1.5b",
        "rerank"
      ])
      assert.deepStrictEqual(yield* nameAndType([arch("qwen3"), ["qwen3.pooling_type", u32(3)]]), [
        "my.model-1.5b",
        "embedding"
      ])
      assert.deepStrictEqual(yield* nameAndType([arch("qwen2vl"), ["general.name", string(" V ")]]), ["V", "vlm"])
      assert.deepStrictEqual(yield* nameAndType([arch("wan")], "W.GGUF"), ["W", "video_gen"])
    }))

  it.effect("takes a set of shards by any of them", () =>
    Effect.gen(function*() {
      const [a, b, c] = shards()
      assert.isDefined(a)
      assert.isDefined(b)
      assert.isDefined(c)
      const root = yield* folder({ "t-00001-of-00003.gguf": a, "t-00002-of-00003.gguf": b, "t-00003-of-00003.gguf": c })
      const bySecond = yield* LocalFiles.inspect(`${root}/t-00002-of-00003.gguf`)
      const files = [
        { path: "t-00001-of-00003.gguf", size: a.length },
        { path: "t-00002-of-00003.gguf", size: b.length },
        { path: "t-00003-of-00003.gguf", size: c.length }
      ]
      const size = a.length + b.length + c.length
      assert.deepStrictEqual(bySecond, {
        path: `${root}/t-00001-of-00003.gguf`,
        kind: "file",
        root,
        name: "Tiny Llama",
        type: "llm",
        typeGuessed: false,
        format: "gguf",
        size,
        weights: files.map(({ path }) => path),
        files,
        shape: { contextLength: 512, layers: 2, kvHeads: 2, headDim: 8, weightBytes: size, parameterCount: 1125 }
      })
      assert.deepStrictEqual(yield* LocalFiles.inspect(`${root}/t-00001-of-00003.gguf`), bySecond)
      const byFolder = yield* LocalFiles.inspect(root)
      assert.deepStrictEqual(byFolder, { ...bySecond, path: root, kind: "directory" })

      const fs = yield* FileSystem.FileSystem
      yield* fs.remove(`${root}/t-00002-of-00003.gguf`)
      assert.deepStrictEqual(yield* errorOf(root), ["t-00002-of-00003.gguf", new Missing()])
      assert.deepStrictEqual(yield* errorOf(root, "t-00003-of-00003.gguf"), ["t-00002-of-00003.gguf", new Missing()])
      yield* fs.remove(`${root}/t-00001-of-00003.gguf`)
      assert.deepStrictEqual(yield* errorOf(root), ["t-00001-of-00003.gguf", new Missing()])
    }))

  it.effect("refuses shards that do not belong together", () =>
    Effect.gen(function*() {
      const [a, b] = shards(2)
      assert.isDefined(a)
      assert.isDefined(b)
      const lacking = yield* folder({ "t-00001-of-00002.gguf": a, "t-00002-of-00002.gguf": b })
      assert.deepStrictEqual(yield* errorOf(lacking), [
        "t-00001-of-00002.gguf",
        new Malformed({ detail: "its shards hold 2 tensors, not 3", offset: undefined })
      ])
      const renamed = yield* folder({ "t.gguf": a })
      assert.deepStrictEqual(yield* errorOf(renamed), [
        "t.gguf",
        new Malformed({ detail: "it is one of 2 shards, and is not named like one", offset: undefined })
      ])
    }))

  it.effect("takes one GGUF model of a folder, with its projectors and without accessories", () =>
    Effect.gen(function*() {
      const projector = gguf({ pairs: [["general.architecture", string("clip")]], tensors: llamaTensors })
      const imatrix = gguf({ pairs: [["general.type", string("imatrix")]], tensors: llamaTensors })
      const adapter = gguf({ pairs: [...llamaPairs, ["general.type", string("adapter")]], tensors: llamaTensors })
      const vocabulary = gguf({ pairs: llamaPairs })
      const root = yield* folder({
        "mmproj.gguf": projector,
        "model.gguf": tinyGguf(),
        "imatrix.gguf": imatrix,
        "lora.gguf": adapter,
        "vocab.gguf": vocabulary
      })
      const model = yield* LocalFiles.inspect(root)
      assert.deepStrictEqual(model.weights, ["model.gguf", "mmproj.gguf"])
      assert.deepStrictEqual([model.name, model.type, model.files.length], ["Tiny Llama", "vlm", 5])
      assert.deepStrictEqual(
        [model.shape.weightBytes, model.shape.parameterCount],
        [tinyGguf().length + projector.length, 2250]
      )
      const alone = yield* LocalFiles.inspect(`${root}/mmproj.gguf`)
      assert.deepStrictEqual([alone.name, alone.type], ["mmproj", "vlm"])

      const several = yield* folder({ "a/Q4.gguf": tinyGguf(), "b/Q8.gguf": tinyGguf() })
      assert.deepStrictEqual(yield* errorOf(several), ["", new Ambiguous({ candidates: ["a/Q4.gguf", "b/Q8.gguf"] })])
      assert.deepStrictEqual(yield* errorOf(yield* folder({ "vocab.gguf": vocabulary, "imatrix.gguf": imatrix })), [
        "",
        new NoWeights()
      ])
      const nameless = yield* folder({ "x.gguf": gguf({ tensors: llamaTensors }) })
      assert.deepStrictEqual(yield* errorOf(nameless), [
        "x.gguf",
        new Malformed({ detail: "it has no general.architecture", offset: undefined })
      ])
    }))

  it.effect("takes of safetensors what a loader takes", () =>
    Effect.gen(function*() {
      const weightsOf = (files: Record<string, string | Uint8Array>) =>
        Effect.map(
          Effect.flatMap(folder(files), LocalFiles.inspect),
          (model) => [model.weights, model.shape.weightBytes, model.shape.parameterCount]
        )
      const one = weights.length
      // What the index names, and not the copy in another layout beside it.
      assert.deepStrictEqual(
        yield* weightsOf({
          "consolidated.safetensors": weights,
          "model-00001-of-00001.safetensors": weights,
          "model.safetensors.index.json": JSON.stringify({ weight_map: { w: "model-00001-of-00001.safetensors" } })
        }),
        [["model-00001-of-00001.safetensors"], one, 10]
      )
      // One folder a part, one of them with an index of its own.
      assert.deepStrictEqual(
        yield* weightsOf({
          "unet/d-00001-of-00001.safetensors": weights,
          "unet/d.safetensors.index.json": JSON.stringify({ weight_map: { w: "d-00001-of-00001.safetensors" } }),
          "vae/d.safetensors": weights,
          "vae/d.fp16.safetensors": weights,
          "text/a.fp16.safetensors": weights
        }),
        [["unet/d-00001-of-00001.safetensors", "text/a.fp16.safetensors", "vae/d.safetensors"], 3 * one, 30]
      )
      // Of several formats, the first.
      assert.deepStrictEqual(
        yield* weightsOf({
          "model.safetensors": weights,
          "pytorch_model.bin": "x",
          "onnx/model.onnx": "x",
          "x.gguf": "x"
        }),
        [["model.safetensors"], one, 10]
      )
    }))

  it.effect("takes the weights of other formats by their names", () =>
    Effect.gen(function*() {
      const inspect = (files: Record<string, string | Uint8Array>) =>
        Effect.map(
          Effect.flatMap(folder(files), LocalFiles.inspect),
          (model) => [model.format, model.weights, model.shape.weightBytes, model.typeGuessed]
        )
      assert.deepStrictEqual(
        yield* inspect({
          "pytorch_model.bin": "abc",
          "training_args.bin": "x",
          "optimizer.pt": "x",
          "rng_state_0.pth": "x"
        }),
        ["pytorch", ["pytorch_model.bin"], 3, true]
      )
      assert.deepStrictEqual(yield* inspect({ "m.onnx": "ab", "m.onnx_data": "abcd" }), [
        "onnx",
        ["m.onnx", "m.onnx_data"],
        6,
        true
      ])
      assert.deepStrictEqual(yield* inspect({ "rank0.engine": "ab" }), ["tensorrt", ["rank0.engine"], 2, true])
      assert.deepStrictEqual(yield* errorOf(yield* folder({ "m.onnx": "" })), [
        "m.onnx",
        new Truncated({ expected: 1, actual: 0 })
      ])
      assert.deepStrictEqual(yield* errorOf(yield* folder({ "p-00002-of-00002.bin": "x" })), [
        "p-00001-of-00002.bin",
        new Missing()
      ])
    }))

  it.effect("takes the type from the JSON files beside the weights", () =>
    Effect.gen(function*() {
      const typeOf = Effect.fnUntraced(function*(files: Record<string, unknown>) {
        const texts = Object.entries(files).map(([name, json]) => [name, JSON.stringify(json)])
        const root = yield* folder({ "model.safetensors": weights, ...Object.fromEntries(texts) })
        const model = yield* LocalFiles.inspect(root)
        return [model.type, model.typeGuessed]
      })
      const architecture = (name: string, model_type?: string) => ({
        "config.json": { architectures: [name], model_type }
      })
      assert.deepStrictEqual(yield* typeOf({}), ["llm", true])
      assert.deepStrictEqual(yield* typeOf({ "config.json": {} }), ["llm", true])
      assert.deepStrictEqual(yield* typeOf({ "config.json": { architectures: "LlamaForCausalLM", model_type: 1 } }), [
        "llm",
        true
      ])
      assert.deepStrictEqual(yield* typeOf(architecture("LlamaForCausalLM", "llama")), ["llm", false])
      assert.deepStrictEqual(yield* typeOf(architecture("Qwen2VLForConditionalGeneration", "qwen2_vl")), ["vlm", false])
      assert.deepStrictEqual(yield* typeOf(architecture("WhisperForConditionalGeneration", "whisper")), ["asr", false])
      assert.deepStrictEqual(yield* typeOf({ ...architecture("Qwen2ForCausalLM", "qwen2"), "modules.json": [] }), [
        "embedding",
        false
      ])
      assert.deepStrictEqual(
        yield* typeOf({ ...architecture("XLMRobertaForSequenceClassification", "xlm-roberta"), "modules.json": [] }),
        ["rerank", false]
      )
      assert.deepStrictEqual(yield* typeOf({ "model_index.json": { _class_name: "StableDiffusionXLPipeline" } }), [
        "diffusion",
        false
      ])
      assert.deepStrictEqual(yield* typeOf({ "model_index.json": { _class_name: "WanPipeline" } }), [
        "video_gen",
        false
      ])
      assert.deepStrictEqual(yield* typeOf({ "configuration.json": { task: "text-to-speech" } }), ["tts", false])
    }))

  it.effect("takes the shape from config.json, under the names that families have for it", () =>
    Effect.gen(function*() {
      const shapeOf = Effect.fnUntraced(function*(config: unknown) {
        const root = yield* folder({ "model.safetensors": weights, "config.json": JSON.stringify(config) })
        const { parameterCount, weightBytes, ...shape } = (yield* LocalFiles.inspect(root)).shape
        assert.deepStrictEqual([parameterCount, weightBytes], [10, weights.length])
        return shape
      })
      assert.deepStrictEqual(yield* shapeOf({ n_layer: 12, n_head: 12, n_embd: 768, n_positions: 1024 }), {
        layers: 12,
        contextLength: 1024,
        kvHeads: 12,
        headDim: 64
      })
      assert.deepStrictEqual(
        yield* shapeOf({
          architectures: ["XForConditionalGeneration"],
          hidden_size: 1,
          text_config: {
            num_hidden_layers: 4,
            num_attention_heads: 8,
            num_key_value_heads: 2,
            head_dim: 128,
            max_position_embeddings: 32768
          }
        }),
        { layers: 4, contextLength: 32768, kvHeads: 2, headDim: 128 }
      )
      assert.deepStrictEqual(
        yield* shapeOf({
          num_hidden_layers: 61,
          num_attention_heads: 128,
          hidden_size: 7168,
          kv_lora_rank: 512,
          qk_rope_head_dim: 64
        }),
        { layers: 61, contextLength: undefined, kvHeads: 1, headDim: 288 }
      )
      assert.deepStrictEqual(
        yield* shapeOf({
          num_hidden_layers: "4",
          num_attention_heads: 2 ** 53,
          hidden_size: -1,
          head_dim: 0.5,
          max_position_embeddings: null
        }),
        { layers: undefined, contextLength: undefined, kvHeads: undefined, headDim: undefined }
      )
      // Nothing is kept from one token to the next.
      assert.deepStrictEqual(yield* shapeOf({ ...llamaConfig, architectures: ["BertModel"], model_type: "bert" }), {})
    }))

  it.effect("refuses a broken config.json in a folder, and lets it be beside a file", () =>
    Effect.gen(function*() {
      const root = yield* folder({ "model.safetensors": weights, "config.json": "{" })
      const [path, reason] = yield* errorOf(root)
      assert.strictEqual(path, "config.json")
      assert.instanceOf(reason, Malformed)
      assert.strictEqual((yield* LocalFiles.inspect(`${root}/model.safetensors`)).typeGuessed, true)
      const whole = yield* folder({ "a.safetensors": weights, "config.json": config })
      const model = yield* LocalFiles.inspect(`${whole}/a.safetensors`)
      assert.deepStrictEqual([model.name, model.type, model.typeGuessed, model.shape.layers], ["a", "llm", false, 2])
    }))

  it.effect("says what is wrong", () =>
    Effect.gen(function*() {
      const root = yield* folder({
        "empty/.keep": "",
        "readme/README.md": "x",
        "cut/m.gguf": tinyGguf().slice(0, -1),
        "long/m.safetensors": new Bytes().raw(weights).zeros(1).toUint8Array(),
        "text/m.gguf": "hello, world",
        "x.txt": "hello, world"
      })
      assert.deepStrictEqual(yield* errorOf(root, "nothing"), ["nothing", new Missing()])
      assert.deepStrictEqual(yield* errorOf(root, "empty"), ["empty", new NoWeights()])
      assert.deepStrictEqual(yield* errorOf(root, "readme"), ["readme", new NoWeights()])
      assert.deepStrictEqual(yield* errorOf(root, "x.txt"), ["x.txt", new NoWeights()])
      assert.deepStrictEqual(yield* errorOf(root, "cut"), [
        "cut/m.gguf",
        new Truncated({ expected: tinyGguf().length, actual: tinyGguf().length - 1 })
      ])
      assert.deepStrictEqual(yield* errorOf(root, "long"), [
        "long/m.safetensors",
        new LengthMismatch({ expected: weights.length, actual: weights.length + 1 })
      ])
      assert.deepStrictEqual(yield* errorOf(root, "text/m.gguf"), [
        "text/m.gguf",
        new Malformed({ detail: "it does not begin with GGUF", offset: 0 })
      ])
      const error = yield* Effect.flip(LocalFiles.inspect("a\0b"))
      assert.instanceOf(error.reason, Unreadable)
      assert.instanceOf((yield* Effect.flip(LocalFiles.inspect(`${root}/x.txt/y`))).reason, Unreadable)
    }))

  it.effect("resolves links, and knows files without an extension by their content", () =>
    Effect.gen(function*() {
      const fs = yield* FileSystem.FileSystem
      // The layout of HuggingFace's cache.
      const root = yield* folder({
        "blobs/aaa": tinyGguf({ pairs: [["general.architecture", string("llama")]] }),
        "blobs/bbb": weights,
        "blobs/ccc": config,
        "blobs/ddd": "neither of them",
        "snapshots/1/x": "",
        "snapshots/2/x": ""
      })
      yield* fs.symlink("../../blobs/aaa", `${root}/snapshots/1/tiny.gguf`)
      yield* fs.symlink("../../blobs/bbb", `${root}/snapshots/2/model.safetensors`)
      yield* fs.symlink("../../blobs/ccc", `${root}/snapshots/2/config.json`)

      const byLink = yield* LocalFiles.inspect(`${root}/snapshots/1/tiny.gguf`)
      assert.deepStrictEqual(
        [byLink.path, byLink.root, byLink.name, byLink.files.map(({ path }) => path)],
        [`${root}/blobs/aaa`, `${root}/blobs`, "tiny", ["aaa"]]
      )
      assert.deepStrictEqual(yield* LocalFiles.inspect(`${root}/blobs/aaa`), { ...byLink, name: "aaa" })
      assert.deepStrictEqual(yield* LocalFiles.verify(byLink.path, byLink.files), [])

      const snapshot = yield* LocalFiles.inspect(`${root}/snapshots/2`)
      assert.deepStrictEqual([snapshot.type, snapshot.weights, snapshot.size], [
        "llm",
        ["model.safetensors"],
        config.length + weights.length
      ])
      const bySafetensorsLink = yield* LocalFiles.inspect(`${root}/snapshots/2/model.safetensors`)
      assert.deepStrictEqual([bySafetensorsLink.path, bySafetensorsLink.name, bySafetensorsLink.typeGuessed], [
        `${root}/blobs/bbb`,
        "model",
        false
      ])
      assert.strictEqual((yield* LocalFiles.inspect(`${root}/blobs/bbb`)).format, "safetensors")
      assert.deepStrictEqual(yield* errorOf(root, "blobs/ddd"), ["blobs/ddd", new NoWeights()])
    }))

  it.effect("walks in no circle, out of no folder, and into no pipe", () =>
    Effect.gen(function*() {
      const fs = yield* FileSystem.FileSystem
      const root = yield* folder({ "m/model.safetensors": weights, "m/sub/a.txt": "a", "out/b.gguf": "x" })
      yield* fs.symlink("..", `${root}/m/sub/up`)
      yield* fs.symlink(".", `${root}/m/self`)
      yield* fs.symlink(`${root}/out`, `${root}/m/out`)
      yield* fs.symlink("/", `${root}/m/everything`)
      execFileSync("mkfifo", [`${root}/m/pipe.safetensors`])
      const model = yield* LocalFiles.inspect(`${root}/m`)
      assert.deepStrictEqual(model.files.map(({ path }) => path), ["model.safetensors", "sub/a.txt"])

      assert.deepStrictEqual(yield* errorOf(root, "m/pipe.safetensors"), [
        "m/pipe.safetensors",
        new Unreadable({ detail: "it is no file, but FIFO", cause: undefined })
      ])
      yield* fs.symlink("b.gguf", `${root}/out/a.gguf`)
      yield* fs.remove(`${root}/out/b.gguf`)
      assert.deepStrictEqual(yield* errorOf(root, "out"), ["out/a.gguf", new Missing()])
      yield* fs.symlink("a.gguf", `${root}/out/b.gguf`)
      assert.instanceOf((yield* errorOf(root, "out"))[1], Unreadable)
      assert.instanceOf((yield* errorOf(root, "out/a.gguf"))[1], Unreadable)
    }))

  it.effect("gives up on folders larger than any model", () =>
    Effect.gen(function*() {
      const fs = yield* FileSystem.FileSystem
      const root = yield* folder({})
      yield* fs.makeDirectory(`${root}/deep${"/d".repeat(40)}`, { recursive: true })
      assert.deepStrictEqual(yield* errorOf(root), ["", new TooMany({ what: "levels of folders", limit: 32 })])
      const entries = Array.from({ length: 10_001 }, (_, i) => ({ name: `f${i}`, type: "File" as const }))
      const info = yield* fs.stat(yield* file("a", "a"))
      const many = FileSystem.FileSystem.of({
        ...fs,
        readDirectoryEntries: () => Effect.succeed(entries),
        stat: (path) => path.includes("/f") ? Effect.succeed(info) : fs.stat(path)
      })
      assert.deepStrictEqual(
        yield* Effect.provideService(errorOf(root), FileSystem.FileSystem, many),
        ["", new TooMany({ what: "files", limit: 10_000 })]
      )
    }))
})

it.layer(NodeServices.layer)("LocalFiles.hashFile", (it) => {
  it.effect("hashes files of any length", () =>
    Effect.gen(function*() {
      assert.strictEqual(
        yield* Effect.flatMap(file("x", ""), LocalFiles.hashFile),
        "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855"
      )
      assert.strictEqual(
        yield* Effect.flatMap(file("x", "abc"), LocalFiles.hashFile),
        "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"
      )
      const bytes = new Uint8Array(3 * 1024 * 1024 + 7).map((_, i) => i * 31)
      assert.strictEqual(yield* Effect.flatMap(file("x", bytes), LocalFiles.hashFile), sha256(bytes))
    }))

  it.effect("can be interrupted in the middle of a file", () =>
    Effect.gen(function*() {
      const fs = yield* FileSystem.FileSystem
      const path = yield* file("x", "")
      // Sparse: it takes no room, and many minutes to read.
      yield* fs.truncate(path, 2 ** 40)
      const started = yield* Deferred.make<void>()
      let closed = 0
      const watched = FileSystem.FileSystem.of({
        ...fs,
        open: Effect.fnUntraced(function*(path: string, options) {
          yield* Effect.addFinalizer(() => Effect.sync(() => closed++))
          const file = yield* fs.open(path, options)
          return {
            ...file,
            read: (buffer: Uint8Array) => Effect.tap(file.read(buffer), () => Deferred.succeed(started, undefined))
          }
        })
      })
      const fiber = yield* Effect.forkChild(
        Effect.provideService(LocalFiles.hashFile(path), FileSystem.FileSystem, watched)
      )
      yield* Deferred.await(started)
      yield* Fiber.interrupt(fiber)
      assert.isTrue(Exit.hasInterrupts(yield* Fiber.await(fiber)))
      assert.strictEqual(closed, 1)
    }))
})

it.layer(NodeServices.layer)("LocalFiles.verify", (it) => {
  const files = {
    "config.json": config,
    "model.safetensors": weights,
    "sub/extra.gguf": tinyGguf()
  }
  const manifest = Object.entries(files).map(([path, content]) => ({
    path,
    size: content.length,
    sha256: sha256(content)
  }))

  it.effect("finds nothing wrong with a model that is whole", () =>
    Effect.gen(function*() {
      const root = yield* folder({ ...files, "unknown.txt": "x" })
      assert.deepStrictEqual(yield* LocalFiles.verify(root, manifest), [])
      assert.deepStrictEqual(yield* LocalFiles.verify(`${root}/model.safetensors`, manifest.slice(1, 2)), [])
      assert.deepStrictEqual(yield* LocalFiles.verify(root, (yield* LocalFiles.inspect(root)).files), [])
      assert.deepStrictEqual(yield* LocalFiles.verify(root, []), [])
    }))

  it.effect("has one line for each finding", () =>
    Effect.gen(function*() {
      const root = yield* folder({ "config.json": config.replace("llama", "LLAMA"), "sub/extra.gguf/x": "" })
      assert.deepStrictEqual(yield* LocalFiles.verify(root, [...manifest, { path: "small.bin", size: 9 }]), [
        `config.json has the SHA-256 ${sha256(config.replace("llama", "LLAMA"))}, not ${sha256(config)}`,
        "model.safetensors is missing. Check the path; of a model that was downloaded, pull it again",
        "sub/extra.gguf is no file, but Directory",
        "small.bin is missing. Check the path; of a model that was downloaded, pull it again"
      ])
      const short = yield* folder({ ...files, "model.safetensors": "" })
      assert.deepStrictEqual(yield* LocalFiles.verify(short, manifest), [
        `model.safetensors has 0 bytes, not ${weights.length}`
      ])
      // Not what lies beside the model, when that is gone as a whole.
      assert.deepStrictEqual(yield* LocalFiles.verify(`${root}/gone`, manifest), [
        `${root}/gone is missing. Check the path; of a model that was downloaded, pull it again`
      ])
    }))

  it.effect("finds what is wrong inside of a file that has not changed", () =>
    Effect.gen(function*() {
      const bad = {
        "hole.safetensors": new Bytes().u64(57).raw(
          new TextEncoder().encode(`{"a":{"dtype":"U8","shape":[1],"data_offsets":[1,2]    }}`)
        ).zeros(2).toUint8Array(),
        "cut.gguf": tinyGguf().slice(0, 900),
        "m.safetensors.index.json": JSON.stringify({
          weight_map: { w: "w.safetensors", v: "w.safetensors", x: "gone.safetensors" }
        }),
        "w.safetensors": weights
      }
      const root = yield* folder(bad)
      const manifest = Object.entries(bad).map(([path, content]) => ({
        path,
        size: content.length,
        sha256: sha256(content)
      }))
      assert.deepStrictEqual(yield* LocalFiles.verify(root, manifest), [
        "hole.safetensors is malformed: the tensor a at offset 1, not 0, leaves a hole before it. Download or convert it again",
        `cut.gguf is truncated: it needs ${tinyGguf().length} bytes or more, and has 900. Download it again`,
        "w.safetensors is malformed: the tensor v should be here by m.safetensors.index.json, and is not. Download or convert it again"
      ])
      assert.deepStrictEqual(yield* LocalFiles.verify(`${root}/cut.gguf`, []), [
        `${root}/cut.gguf is truncated: it needs ${tinyGguf().length} bytes or more, and has 900. Download it again`
      ])
      assert.deepStrictEqual(yield* LocalFiles.verify(`${root}/gone`, []), [
        `${root}/gone is missing. Check the path; of a model that was downloaded, pull it again`
      ])
    }))

  it.effect("fails when it cannot look", () =>
    Effect.gen(function*() {
      const fs = yield* FileSystem.FileSystem
      const root = yield* folder(files)
      const denied = (path: string) =>
        PlatformError.systemError({
          _tag: "PermissionDenied",
          module: "FileSystem",
          method: "open",
          pathOrDescriptor: path
        })
      const locked = FileSystem.FileSystem.of({
        ...fs,
        open: (path, options) => path.endsWith("model.safetensors") ? Effect.fail(denied(path)) : fs.open(path, options)
      })
      const cause = denied(`${root}/model.safetensors`)
      const expected = new ModelFileError({
        path: `${root}/model.safetensors`,
        reason: new Unreadable({ detail: "PermissionDenied", cause })
      })
      for (const files of [manifest, []]) {
        const error = yield* Effect.flip(
          Effect.provideService(LocalFiles.verify(root, files), FileSystem.FileSystem, locked)
        )
        assert.deepStrictEqual(error, expected)
      }
    }))
})
