/**
 * Secrets that test hosts have, and all the forms in which one could be seen. Their characters are those that escaping changes. They are
 * the same each time, but where `STRESS` is set.
 */
import { createHash, randomUUID } from "node:crypto"
import { inspect } from "node:util"
import { stress } from "./servers.ts"

const alphabets = {
  /** What a header can hold. */
  header: "!\"#$%&'()*+,-./:;<=>?@[\\]^_`{|}~aZ09",
  /** What a cookie and an address can hold as well. */
  token: "-._~aZ09"
} as const

const seed = stress > 0 ? randomUUID() : "secrets"

/** A secret of its own for each name. */
export const secretOf = (name: string, alphabet: keyof typeof alphabets = "header"): string => {
  const characters = alphabets[alphabet]
  const bytes = createHash("sha512").update(`${seed} ${name}`).digest()
  return `marker${Array.from(bytes.subarray(0, 24), (byte) => characters.charAt(byte % characters.length)).join("")}end`
}

const escaped = (text: string): string => JSON.stringify(text).slice(1, -1)

/** The secret as it is, in JSON, in JSON within JSON, in an address, in Base64, in hexadecimal digits, and each as `inspect` shows it. */
export const formsOf = (secret: string): ReadonlyArray<string> => {
  const forms = [
    secret,
    escaped(secret),
    escaped(escaped(secret)),
    encodeURIComponent(secret),
    Buffer.from(secret).toString("base64").replace(/=+$/, ""),
    Buffer.from(secret).toString("base64url"),
    Buffer.from(secret).toString("hex")
  ]
  return [...new Set([...forms, ...forms.map((form) => inspect(form).slice(1, -1))])]
}
