/**
 * What keeps a publisher's own doing out of the events: publishing about publishing would have no end.
 *
 * @since 0.1.0
 */
import type { Surroundings } from "../Execution.ts"

/**
 * The surroundings of the code of a publisher, which stay what they are, whatever that code sets around itself.
 *
 * @internal
 */
export const publishing: Surroundings = { execution: undefined, attributes: undefined, generateId: undefined }

/**
 * True where nothing is to be published: no publisher listens, or this is a publisher's own doing.
 *
 * @internal
 */
export const isSilent = (
  publisher: { readonly isNoop: boolean; readonly isPublishing: boolean },
  surroundings: Surroundings
): boolean => publisher.isNoop || publisher.isPublishing || surroundings === publishing
