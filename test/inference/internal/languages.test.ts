import { assert, describe, it } from "@effect/vitest"
import { isoLanguage } from "../../../src/inference/internal/languages.ts"

describe("isoLanguage", () => {
  it("knows names, codes and tags", () => {
    const known = {
      en: "en",
      English: "en",
      " chinese ": "zh",
      mandarin: "zh",
      zh_CN: "zh",
      "pt-BR": "pt",
      eng: "en",
      deu: "de",
      "haitian creole": "ht",
      haitian: "ht",
      valencian: "ca",
      myanmar: "my",
      norwegian: "no",
      nynorsk: undefined,
      "": undefined,
      klingon: undefined,
      haw: undefined,
      xx: undefined,
      unknown: undefined
    }
    assert.deepStrictEqual(
      Object.fromEntries(Object.keys(known).map((language) => [language, isoLanguage(language)])),
      known
    )
  })
})
