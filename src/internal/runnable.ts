/**
 * What running a unit takes, made once when the unit is defined.
 *
 * @since 0.1.0
 */
import * as Encode from "./encode.ts"
import type { Runnable } from "./run.ts"
import * as Snapshot from "./snapshot.ts"
import type { Top } from "./types.ts"

const domainOf = (name: string): string => {
  const dot = name.indexOf(".")
  return dot === -1 ? name : name.slice(0, dot)
}

const encoder = (schema: Top | undefined): Encode.Encoder => schema === undefined ? Encode.unknown : Encode.make(schema)

/** What is known of a unit, or of a function that is run as one. */
interface Named {
  readonly name: string
  readonly kind?: "command" | "query" | undefined
  readonly input?: Top | undefined
  readonly output?: Top | undefined
  readonly error?: Top | undefined
}

/**
 * `prepare` checks the input by its schema.
 *
 * @internal
 */
export const runnable = <In, Checked, Invalid>(
  options: Named,
  prepare: Runnable<In, Checked, Invalid>["prepare"]
): Runnable<In, Checked, Invalid> => ({
  name: options.name,
  domain: domainOf(options.name),
  kind: options.kind ?? "command",
  encodeInput: encoder(options.input),
  encodeOutput: encoder(options.output),
  encodeError: encoder(options.error),
  sharesInput: prepare !== undefined && options.input !== undefined && Snapshot.isShared(options.input.ast),
  hasSecrets: options.input !== undefined && Encode.containsSecret(options.input.ast),
  prepare,
  tally: undefined
})

/**
 * The aggregate of a stream that has no other: how many elements it gave.
 *
 * @internal
 */
export const chunkCount = {
  initial: (): { readonly chunks: number } => ({ chunks: 0 }),
  step: ({ chunks }: { readonly chunks: number }): { readonly chunks: number } => ({ chunks: chunks + 1 })
}
