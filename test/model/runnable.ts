/**
 * A language model that runs, of half a megabyte: a llama of two blocks with random weights, the same each time. What it says is nonsense,
 * and takes every step that a large one takes.
 */
import { gguf, type GgufTensor, type GgufValue, string, u32 } from "./files.ts"

const width = 64
const heads = 4
const blocks = 2
const hidden = 128

const f32 = (value: number): GgufValue => ({ type: "f32", value })

/** Numbers from -0.5 to 0.5 that look random: a linear congruential generator by Numerical Recipes, of which the upper bits are used. */
const randomNumbers = () => {
  let state = 42
  return (): number => {
    state = (Math.imul(state, 1_664_525) + 1_013_904_223) >>> 0
    return (state >>> 8) / 2 ** 24 - 0.5
  }
}

// The types of llama.cpp's vocabulary: 1 a normal piece of text, 2 unknown, 3 control, 6 a byte.
const vocabulary = [
  { text: "<unk>", type: 2 },
  { text: "<s>", type: 3 },
  { text: "</s>", type: 3 },
  ...Array.from({ length: 256 }, (_, byte) => ({
    text: `<0x${byte.toString(16).toUpperCase().padStart(2, "0")}>`,
    type: 6
  })),
  ...[
    "\u2581",
    ...Array.from("abcdefghijklmnopqrstuvwxyz"),
    "th",
    "he",
    "in",
    "er",
    "\u2581a",
    "\u2581the",
    "{",
    "}",
    ":",
    ",",
    "\n"
  ].map((text) => ({
    text,
    type: 1
  }))
]

const template = "{% for message in messages %}{{ message['role'] }}: {{ message['content'] }}\n{% endfor %}assistant: "

/** The bytes of the file. `contextLength` is in tokens, the name is `general.name`. */
export const runnableGguf = ({ contextLength = 2048, name = "Tiny Random" } = {}): Uint8Array => {
  const next = randomNumbers()
  const tensor = (name: string, shape: ReadonlyArray<number>, scale: number): GgufTensor => {
    const values = new Float32Array(shape.reduce((product, extent) => product * extent, 1))
    for (let index = 0; index < values.length; index++) values[index] = scale === 0 ? 1 : next() * scale
    // One row for each token: letters and pieces of words are what it says, and hardly ever a byte or the end.
    if (name === "output.weight") values.fill(0, 0, width * vocabulary.findIndex(({ type }) => type === 1))
    return { name, shape, bytes: values.byteLength, data: new Uint8Array(values.buffer) }
  }
  const norm = (name: string) => tensor(name, [width], 0)
  const matrix = (name: string, columns: number, rows: number) => tensor(name, [columns, rows], 0.3)
  const block = (index: number): ReadonlyArray<GgufTensor> => {
    const part = (name: string) => `blk.${index}.${name}.weight`
    return [
      norm(part("attn_norm")),
      ...["attn_q", "attn_k", "attn_v", "attn_output"].map((name) => matrix(part(name), width, width)),
      norm(part("ffn_norm")),
      matrix(part("ffn_gate"), width, hidden),
      matrix(part("ffn_up"), width, hidden),
      matrix(part("ffn_down"), hidden, width)
    ]
  }
  return gguf({
    pairs: [
      ["general.architecture", string("llama")],
      ["general.name", string(name)],
      ["general.file_type", u32(0)],
      ["llama.context_length", u32(contextLength)],
      ["llama.embedding_length", u32(width)],
      ["llama.block_count", u32(blocks)],
      ["llama.feed_forward_length", u32(hidden)],
      ["llama.attention.head_count", u32(heads)],
      ["llama.attention.head_count_kv", u32(heads)],
      ["llama.attention.layer_norm_rms_epsilon", f32(1e-5)],
      ["llama.rope.dimension_count", u32(width / heads)],
      ["llama.vocab_size", u32(vocabulary.length)],
      ["tokenizer.ggml.model", string("llama")],
      ["tokenizer.ggml.tokens", { type: "array", of: "string", values: vocabulary.map(({ text }) => text) }],
      ["tokenizer.ggml.scores", { type: "array", of: "f32", values: vocabulary.map((_, index) => -index) }],
      ["tokenizer.ggml.token_type", { type: "array", of: "i32", values: vocabulary.map(({ type }) => type) }],
      ["tokenizer.ggml.bos_token_id", u32(1)],
      ["tokenizer.ggml.eos_token_id", u32(2)],
      ["tokenizer.ggml.unknown_token_id", u32(0)],
      ["tokenizer.ggml.add_bos_token", { type: "bool", value: true }],
      ["tokenizer.ggml.add_eos_token", { type: "bool", value: false }],
      ["tokenizer.chat_template", string(template)]
    ],
    tensors: [
      tensor("token_embd.weight", [width, vocabulary.length], 0.5),
      norm("output_norm.weight"),
      tensor("output.weight", [width, vocabulary.length], 1),
      ...Array.from({ length: blocks }, (_, index) => block(index)).flat()
    ]
  })
}
