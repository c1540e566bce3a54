import { assert, describe, it } from "@effect/vitest"
import * as Effect from "effect/Effect"
import * as Schema from "effect/Schema"
import * as Model from "../../src/model/Model.ts"

const accepts = <S extends Schema.Constraint>(schema: S, values: ReadonlyArray<unknown>) =>
  values.filter(Schema.is(schema))

describe("Model", () => {
  it.effect.prop("goes through JSON unchanged", { model: Model.Model }, ({ model }) =>
    Effect.gen(function*() {
      const codec = Schema.fromJsonString(Schema.toCodecJson(Model.Model))
      const json = yield* Schema.encodeEffect(codec)(model)
      const again = yield* Schema.decodeEffect(codec)(json)
      assert.strictEqual(yield* Schema.encodeEffect(codec)(again), json)
    }), { arbitrary: { runs: 50 } })

  it("has the fields of the wire", () => {
    assert.deepStrictEqual(Object.keys(Model.Model.fields), [
      "id",
      "name",
      "type",
      "format",
      "status",
      "source",
      "path",
      "size",
      "checksum",
      "requirements",
      "tags",
      "files",
      "created_at",
      "updated_at"
    ])
    assert.deepStrictEqual(Object.keys(Model.Requirements.fields), [
      "memory_min",
      "memory_recommended",
      "gpu_memory",
      "gpu_type"
    ])
  })

  it("takes ids of its own form only", () => {
    assert.deepStrictEqual(
      accepts(Model.ModelId, [
        "model-0123abcd",
        "model-0123ABCD",
        "model-0123abc",
        "model-0123abcde",
        "xmodel-0123abcd",
        "model-0123abcd\n",
        ""
      ]),
      ["model-0123abcd"]
    )
  })

  it("takes checksums of known schemes only", () => {
    const hex = "a".repeat(64)
    const good = [`sha256:${hex}`, "size:0", "size:1234"]
    const bad = [
      hex,
      `md5:${hex}`,
      `sha256:${hex}0`,
      `sha256:${hex.toUpperCase()}`,
      "size:",
      "size:-1",
      "size:01",
      "size:1.5",
      `size:1${"0".repeat(16)}`
    ]
    assert.deepStrictEqual(accepts(Model.Checksum, [...good, ...bad]), good)
  })

  it("takes paths that stay inside of a model only", () => {
    const good = ["a", "a/b", ".a", "..a", "a/..b", "a/b..", "a/...", "a\nb", "a\\b", " "]
    const bad = [
      "",
      ".",
      "..",
      "/",
      "/a",
      "a/",
      "a//b",
      "a/./b",
      "a/../b",
      "../a",
      "./a",
      "a/..",
      "a\0b",
      "a/..\n/../b"
    ]
    assert.deepStrictEqual(accepts(Model.RelativePath, [...good, ...bad]), good)
  })

  it("keeps progress within its bounds", () => {
    const progress = { model_id: "model-0123abcd", status: "", progress: 0, bytes_total: 0, bytes_done: 0, speed: 0 }
    const values = [-1, 0, 100, 100.1, NaN, Infinity].map((value) => ({ ...progress, progress: value }))
    assert.deepStrictEqual(accepts(Model.PullProgress, values), values.slice(1, 3))
  })
})
