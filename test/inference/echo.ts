/** The model behind the stand-in servers. It answers the same to the same, so that results can be asserted. */

/** What a request for text comes to, with tokens counted as words. */
export interface Generated {
  /** The words of the answer; together they are the text. */
  readonly words: ReadonlyArray<string>
  readonly finish: "stop" | "length"
  readonly promptTokens: number
}

const wordsOf = (text: string): ReadonlyArray<string> => text.match(/\s*\S+/g) ?? []

/** Says what it is told, up to a text to stop at, and no more words than it may. */
export const generate = (
  prompt: string,
  { maxTokens, said, stop = [] }: {
    readonly said: string
    readonly maxTokens?: number | undefined
    readonly stop?: ReadonlyArray<string> | undefined
  }
): Generated => {
  const end = Math.min(...stop.map((text) => said.indexOf(text)).filter((index) => index >= 0), said.length)
  const words = wordsOf(said.slice(0, end))
  return {
    words: words.slice(0, maxTokens),
    finish: maxTokens !== undefined && maxTokens < words.length ? "length" : "stop",
    promptTokens: wordsOf(prompt).length
  }
}

/** A vector of four numbers, all between 0 and 1, that goes by the bytes of a text. */
export const embed = (text: string): ReadonlyArray<number> =>
  [7, 11, 13, 17].map((prime) => Buffer.from(text).reduce((sum, byte) => (sum * prime + byte) % 1024, 1) / 1024)

export const countWords = (texts: ReadonlyArray<string>): number =>
  texts.reduce((sum, text) => sum + wordsOf(text).length, 0)
