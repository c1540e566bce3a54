import { Effect } from "effect"
import * as Inference from "../../src/inference/index.ts"

/** Asks whichever endpoint serves the model, and once more where that can help. */
export const answer = (question: string) =>
  Inference.chat({ model: "qwen3", messages: [{ role: "user", content: question }], max_tokens: 200 }).pipe(
    Effect.retry({ times: 1, while: ({ retryable }) => retryable })
  )
