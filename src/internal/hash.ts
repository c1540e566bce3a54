/**
 * A hash that is the same in every process.
 *
 * @since 0.1.0
 */

/**
 * FNV-1a, 32 bits, as a number from 0 up to 1. Source: the IETF draft draft-eastlake-fnv.
 *
 * @internal
 */
export const hashed = (text: string): number => {
  let hash = 0x811c9dc5
  for (let i = 0; i < text.length; i++) hash = Math.imul(hash ^ text.charCodeAt(i), 0x01000193)
  return (hash >>> 0) / 0x1_0000_0000
}
