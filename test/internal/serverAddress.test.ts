import { assert, describe, it } from "@effect/vitest"
import { Effect, Schema } from "effect"
import { inspect } from "node:util"
import * as ServerAddress from "../../src/internal/serverAddress.ts"

const thrownBy = (use: () => unknown): unknown => {
  try {
    use()
    return new Error("refused")
  } catch (thrown) {
    return thrown
  }
}

describe("serverAddress", () => {
  it("an address loses its user and password, and nothing else", () => {
    for (
      const [address, shown] of [
        ["redis://h", "redis://h"],
        ["rediss://user:secret@h:6380/2", "rediss://h:6380/2"],
        ["redis://:se@cret@h", "redis://h"],
        ["redis://:se%2Fcret@[::1]:1", "redis://[::1]:1"],
        ["127.0.0.1:4222", "127.0.0.1:4222"],
        ["user:se@cret@h:4222", "h:4222"],
        ["redis://:se/cret@h", undefined],
        ["redis://user:12/secret@h", undefined],
        ["redis://user:12?secret@h", undefined],
        ["redis://user:12#secret@h", undefined],
        ["redis://user:secret", undefined],
        ["", undefined]
      ] as const
    ) assert.strictEqual(ServerAddress.withoutCredentials(address), shown, address)
  })

  it("the user and the password of an address are what they are without the encoding", () => {
    for (
      const [address, user, password] of [
        ["nats://h:4222", "", ""],
        ["nats://token@h", "token", ""],
        ["nats://user:12@se%2Fcret%25@h:4222", "user", "12@se/cret%"],
        ["us%20er:100%@h:4222", "us er", "100%"],
        ["nats://user:se/cret@h", "", ""]
      ] as const
    ) assert.deepStrictEqual(ServerAddress.credentialsOf(address), { user, password }, address)
  })

  const odd = Schema.String.check(Schema.isMaxLength(3))
  const reserved = Schema.Literals("@/?#:\\[]% |\"'`\n12".split(""))

  it.effect.prop(
    "no piece of a password is told, however odd it is and whoever could not read it",
    {
      user: odd,
      before: odd,
      first: reserved,
      second: reserved,
      after: odd,
      scheme: Schema.Literals(["redis://", "nats://", ""])
    },
    ({ after, before, first, scheme, second, user }) =>
      Effect.sync(() => {
        const address = `${scheme}${user}:${before}pieceone${first}piecetwo${second}piecethree${after}@127.0.0.1:6379`
        for (
          const use of [
            () => new URL(address),
            () => new URL(`http://${address.slice(scheme.length)}`),
            // As `redis` does where its options contradict the address.
            () => {
              throw new TypeError(`mismatch with the URL ${address} passed`)
            }
          ]
        ) {
          const thrown = thrownBy(use)
          const cause = new Error("it did not connect", { cause: thrown })
          for (const error of [thrown, cause]) {
            assert.notMatch(inspect(ServerAddress.tell([address], error), { depth: Infinity }), /piece/i)
          }
        }
      }),
    { arbitrary: { runs: 500 } }
  )

  it("what is no secret is told as it was thrown", () => {
    const refused = new Error("connect ECONNREFUSED 127.0.0.1:6379")
    assert.deepStrictEqual(ServerAddress.tell(["redis://:secret@127.0.0.1:6379", "redis://h"], refused), {
      addresses: ["redis://127.0.0.1:6379", "redis://h"],
      detail: refused.message,
      cause: refused
    })
  })
})
