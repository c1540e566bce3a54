/** How each unit of the inference domain ends. */
import { Effect } from "effect"
import { SqlClient } from "effect/sql"
import { TestClock } from "effect/testing"
import * as Inference from "../../src/inference/index.ts"
import { domain } from "../lives.ts"
import type * as StandIn from "./StandIn.ts"
import { key, layer, World } from "./world.ts"

const lives = domain(layer)

/** The register of models has lost its table. */
const breakRegister = Effect.flatMap(SqlClient.SqlClient, (sql) => sql`DROP TABLE effect_units_models`)

/** Lets the next answer of a path go wrong, and gives the input. */
const faulty = <I>(path: string, fault: StandIn.Fault, input: I) =>
  Effect.map(World, ({ openai }) => {
    openai.fault(path, fault)
    return input
  })

/** A fault has left the unit waiting. */
const waiting = Effect.flatMap(World, ({ openai }) => Effect.promise(() => openai.waiting()))

/** The ends that every request to a model can come to. `input` is for the OpenAI endpoint, whose path is given. */
const failures = <I extends { readonly model: string }>(path: string, input: I, invalid: I) => ({
  InferenceModelNotLoaded: { given: Effect.succeed({ ...input, model: "nobody's" }) },
  InferenceInvalidParams: {
    given: faulty(path, { kind: "answer", status: 400, body: { error: { message: `no, ${key}` } } }, input)
  },
  InferenceEngineError: { given: faulty(path, { kind: "answer", status: 500, body: `Bearer ${key}` }, input) },
  InferenceTimeout: {
    given: faulty(path, { kind: "silence" }, input),
    meanwhile: Effect.andThen(waiting, TestClock.adjust("10 minutes"))
  },
  InferenceRateLimited: {
    given: faulty(path, { kind: "answer", status: 429, headers: { "retry-after": "7" }, body: "" }, input)
  },
  InternalError: { given: Effect.as(breakRegister, input) },
  InvalidInput: { given: Effect.succeed(invalid) }
})

const interrupted = <I>(path: string, input: I) => ({
  given: faulty(path, { kind: "silence" }, input),
  meanwhile: waiting
})

const messages = [{ role: "user", content: "one two three" }] as const
const chat = { model: "embed-4", messages } as const

export const inferenceLives = [
  ...lives(Inference.chat, {
    completed: { given: Effect.succeed({ model: "Echo", messages, max_tokens: 2 }) },
    failures: failures("/v1/chat/completions", chat, { ...chat, model: "" }),
    interrupted: interrupted("/v1/chat/completions", chat)
  })
]
