/**
 * Types that several modules of the core share.
 *
 * @since 0.1.0
 */
import type * as Schema from "effect/Schema"

/**
 * A schema that needs no services, the only kind a unit may have: events are encoded outside of any context.
 *
 * @internal
 */
export interface Top extends Schema.Top {
  readonly DecodingServices: never
  readonly EncodingServices: never
}
