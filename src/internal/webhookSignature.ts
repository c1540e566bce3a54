/**
 * Symmetric signatures by the Standard Webhooks scheme: HMAC-SHA256 over `<id>.<timestamp>.<body>`, under keys that are written as
 * `whsec_<base64>`.
 *
 * Source: Standard Webhooks specification 1.0.0, "Signature scheme" and "Webhook headers".
 *
 * @since 0.1.0
 */
import * as Redacted from "effect/Redacted"
import { createHmac, createSecretKey, type KeyObject, timingSafeEqual } from "node:crypto"

/** @internal */
export const headers = { id: "webhook-id", timestamp: "webhook-timestamp", signature: "webhook-signature" } as const

const prefix = "whsec_"

/**
 * A key, as `node:crypto` holds it: its bytes show nowhere, and need not be made ready for every signature.
 *
 * @internal
 */
export type Key = KeyObject

/**
 * Reads a secret. What is wrong with it is said without the secret.
 *
 * @internal
 */
export const key = (secret: Redacted.Redacted): Key | { readonly invalid: string } => {
  const text = Redacted.value(secret)
  if (!text.startsWith(prefix)) return { invalid: `a secret begins with "${prefix}"` }
  const base64 = text.slice(prefix.length)
  if (!/^[A-Za-z0-9+/]+={0,2}$/.test(base64)) return { invalid: `a secret is base64 after "${prefix}"` }
  const bytes = Buffer.from(base64, "base64")
  return bytes.length < 24 || bytes.length > 64
    ? { invalid: `a secret has 24 to 64 bytes, this one ${bytes.length}` }
    : createSecretKey(bytes)
}

/** @internal */
export interface Signed {
  /** It holds no full stop, which ends it in what is signed. */
  readonly id: string
  /** Unix seconds, in decimal. */
  readonly timestamp: string
  readonly body: Uint8Array
}

const mac = (key: Key, { body, id, timestamp }: Signed): Buffer =>
  createHmac("sha256", key).update(`${id}.${timestamp}.`).update(body).digest()

/**
 * The value of the signature header: one signature per key.
 *
 * @internal
 */
export const sign = (keys: ReadonlyArray<Key>, signed: Signed): string =>
  keys.map((key) => `v1,${mac(key, signed).toString("base64")}`).join(" ")

/**
 * Whether one of the signatures in a header is that of one of the keys. Each comparison takes the same time wherever the two differ.
 *
 * @internal
 */
export const verify = (keys: ReadonlyArray<Key>, signed: Signed, header: string): boolean => {
  const given = header.split(" ").filter((one) => one.startsWith("v1,")).map((one) => Buffer.from(one.slice(3)))
  return keys.some((key) => {
    const expected = Buffer.from(mac(key, signed).toString("base64"))
    return given.some((signature) => signature.length === expected.length && timingSafeEqual(signature, expected))
  })
}
