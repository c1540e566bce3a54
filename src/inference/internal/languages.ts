/**
 * Languages by their ISO 639-1 codes.
 *
 * @since 0.1.0
 */

/** Every code of ISO 639-1, as the Library of Congress, its registration authority, lists them. */
const codes = (
  "aa ab ae af ak am an ar as av ay az ba be bg bh bi bm bn bo br bs ca ce ch co cr cs cu cv cy da de dv dz ee el en eo es et eu fa ff fi " +
  "fj fo fr fy ga gd gl gn gu gv ha he hi ho hr ht hu hy hz ia id ie ig ii ik io is it iu ja jv ka kg ki kj kk kl km kn ko kr ks ku kv kw ky " +
  "la lb lg li ln lo lt lu lv mg mh mi mk ml mn mr ms mt my na nb nd ne ng nl nn no nr nv ny oc oj om or os pa pi pl ps pt qu rm rn ro ru rw " +
  "sa sc sd se sg si sk sl sm sn so sq sr ss st su sv sw ta te tg th ti tk tl tn to tr ts tt tw ty ug uk ur uz ve vi vo wa wo xh yi yo za zh zu"
).split(" ")

const known = new Set(codes)

/** What Whisper and those after it call languages, where that is not the name that they have in the Unicode CLDR. */
const otherNames: Readonly<Record<string, string>> = {
  bengali: "bn",
  cantonese: "zh",
  castilian: "es",
  flemish: "nl",
  haitian: "ht",
  letzeburgesch: "lb",
  mandarin: "zh",
  moldavian: "ro",
  moldovan: "ro",
  myanmar: "my",
  panjabi: "pa",
  pushto: "ps",
  sinhalese: "si",
  tagalog: "tl",
  tibetan: "bo",
  valencian: "ca"
}

let names: ReadonlyMap<string, string> | undefined

const byName = (name: string): string | undefined => {
  if (names === undefined) {
    const english = new Intl.DisplayNames("en", { type: "language" })
    names = new Map([
      ...codes.map((code) => [(english.of(code) ?? code).toLowerCase(), code] as const),
      ...Object.entries(otherNames)
    ])
  }
  return names.get(name)
}

/**
 * The ISO 639-1 code of a language by its English name, by any code of ISO 639 that has a short form, or by a language tag (BCP 47). It is
 * `undefined` where there is none.
 *
 * @internal
 */
export const isoLanguage = (language: string): string | undefined => {
  const name = language.trim().toLowerCase()
  if (known.has(name)) return name
  const code = byName(name)
  if (code !== undefined) return code
  try {
    // The canonical form of a tag has the shortest code.
    const [tag] = Intl.getCanonicalLocales(name.replaceAll("_", "-"))
    const primary = tag?.split("-")[0]
    return primary !== undefined && known.has(primary) ? primary : undefined
  } catch {
    // Not a tag.
    return undefined
  }
}
