/**
 * What a handler failed with, as texts that can be stored: bounded, and without the secrets that its Schema names.
 *
 * @since 0.1.0
 */
import * as Cause from "effect/Cause"
import * as Predicate from "effect/Predicate"
import * as Schema from "effect/Schema"
import * as Encode from "./encode.ts"
import * as Json from "./json.ts"

const longestMessage = 1000
const longestCause = 8000

/** @internal */
export interface FailureText {
  readonly message: string
  /** With stacks. */
  readonly cause: string
}

/** Half a character and NUL are what some database cannot hold; they are replaced, as these texts are only shown. */
const storable = (text: string, longest: number): string =>
  (text.length > longest ? `${text.slice(0, longest)}...` : text).toWellFormed().replaceAll("\0", "\ufffd")

/** The strings that an error's own Schema, where it has one, calls secret. */
const collectSecrets = (error: unknown, secrets: Set<string>): void => {
  if (!Predicate.hasProperty(error, "constructor")) return
  const schema = error.constructor
  if (Schema.isSchema(schema)) Encode.make(schema)(error, { limits: Json.defaultLimits, secrets })
}

const messageOf = (error: unknown): string => {
  if (typeof error === "string") return error
  const message = Predicate.hasProperty(error, "message") ? error.message : undefined
  return typeof message === "string" ? message : JSON.stringify(Json.fromUnknown(error, Json.defaultLimits))
}

/**
 * The message and the whole of a cause. Of several reasons the first typed failure counts, then the first defect.
 *
 * @internal
 */
export const describe = (cause: Cause.Cause<unknown>): FailureText => {
  const secrets = new Set<string>()
  for (const reason of cause.reasons) {
    if (Cause.isFailReason(reason)) collectSecrets(reason.error, secrets)
    else if (Cause.isDieReason(reason)) collectSecrets(reason.defect, secrets)
  }
  const hidden = (text: string, longest: number): string => {
    const scrubbed = Encode.scrub(text, secrets)
    return storable(typeof scrubbed === "string" ? scrubbed : "", longest)
  }
  const isInterrupted = cause.reasons.length > 0 && Cause.hasInterruptsOnly(cause)
  try {
    return {
      message: isInterrupted ? "The handler was interrupted" : hidden(messageOf(Cause.squash(cause)), longestMessage),
      cause: hidden(Cause.pretty(cause), longestCause)
    }
  } catch (thrown) {
    // A getter of the error that throws.
    return { message: `The failure cannot be shown: ${Json.describe(thrown)}`, cause: "" }
  }
}
