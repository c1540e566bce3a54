/**
 * Reranking, in both forms that there are: that of Jina and Cohere, as vLLM, LocalAI and xinference have it, and that of Hugging Face's
 * text-embeddings-inference.
 *
 * @since 0.1.0
 */
import * as Effect from "effect/Effect"
import * as Schema from "effect/Schema"
import type { Backend } from "./Backend.ts"
import type { EndpointHttp } from "./EndpointHttp.ts"
import * as Forms from "./internal/forms.ts"

const Results = Schema.Struct({
  results: Schema.Array(
    Schema.Union([
      Schema.Struct({ index: Schema.Natural, relevance_score: Schema.Finite }),
      Schema.Struct({ index: Schema.Natural, score: Schema.Finite })
    ])
  )
})

const Ranks = Schema.Array(Schema.Struct({ index: Schema.Natural, score: Schema.Finite }))

/**
 * Scores of documents. An endpoint without `/rerank` below `/v1` is asked below its host, in the other form; that one serves one model, and takes
 * no name.
 *
 * @category constructors
 * @since 0.1.0
 */
export const make = (http: EndpointHttp, root: string) => ({
  rerank: ({ documents, model, query }) =>
    http.json(
      http.post("/rerank", { model, query, documents, top_n: documents.length, return_documents: false }),
      Results,
      model
    ).pipe(
      Effect.map(({ results }) =>
        results.map((result) => ({
          index: result.index,
          score: "relevance_score" in result ? result.relevance_score : result.score
        }))
      ),
      Forms.orElse(() =>
        http.json(
          http.post(`${root}/rerank`, { query, texts: documents, raw_scores: false, return_text: false }),
          Ranks,
          model
        )
      ),
      Effect.map((scores) => ({ scores }))
    )
} satisfies Partial<Backend>)
