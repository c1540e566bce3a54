/**
 * Secrets of an engine's environment, taken out of what it writes.
 *
 * @since 0.1.0
 */
import * as Redacted from "effect/Redacted"
import type { Env } from "../Recipe.ts"

/**
 * What must not be shown of an environment.
 *
 * @internal
 */
export const secretsOf = (env: Env): ReadonlyArray<string> =>
  Object.values(env).flatMap((value) => {
    const secret = Redacted.isRedacted(value) ? Redacted.value(value) : ""
    return secret === "" ? [] : [secret]
  })

/**
 * A line without them.
 *
 * @internal
 */
export const mask = (secrets: ReadonlyArray<string> = [], line: string): string =>
  secrets.reduce((text, secret) => text.replaceAll(secret, "<redacted>"), line)
