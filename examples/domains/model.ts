import { Effect } from "effect"
import * as Model from "../../src/model/index.ts"

/** Pulls a model, and checks the files before anybody relies on them. */
export const fetched = Effect.fnUntraced(function*(repo: string) {
  const { model_id } = yield* Model.pull({ source: "huggingface", repo })
  const { issues, valid } = yield* Model.verify({ model_id })
  if (!valid) yield* Effect.logWarning(issues)
  return yield* Model.get({ model_id })
})
