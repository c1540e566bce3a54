// What somebody who installed the package writes first: a unit of their own, run and observed.
import { Effect, Schema } from "effect"
import { EventPublisher, Unit, UnitError } from "effect-units"

class NameTaken extends UnitError.make<NameTaken>()("NameTaken", { code: "90001", retryable: false }, {
  name: Schema.String
}) {
  override get message() {
    return `${this.name} is taken. Choose another name`
  }
}

const register = Unit.command("account.register", {
  description: "Registers a name",
  input: { name: Schema.NonEmptyString },
  output: { greeting: Schema.String },
  errors: [NameTaken],
  handler: ({ name }) => name === "root" ? new NameTaken({ name }) : Effect.succeed({ greeting: `Hello, ${name}` })
})

// The types are exact: these failures, this service, nothing else.
const run: (
  input: { readonly name: string }
) => Effect.Effect<{ readonly greeting: string }, NameTaken | UnitError.InvalidInput, EventPublisher.EventPublisher> =
  register

Unit.query("account.rename", {
  description: "Fails with what it does not list",
  input: {},
  output: {},
  errors: [],
  // @ts-expect-error - a failure that `errors` does not list
  handler: () => new NameTaken({ name: "root" })
})

const program = Effect.gen(function*() {
  const { greeting } = yield* run({ name: "Ada" })
  const taken = yield* Effect.flip(run({ name: "root" }))
  const invalid = yield* Effect.flip(run({ name: "" }))
  const memory = yield* EventPublisher.Memory
  const events = yield* memory.events
  return [greeting, taken.code, invalid._tag, ...events.map((event) => event.event_type)].join(" ")
})

const seen = Effect.runSync(Effect.provide(program, EventPublisher.layerMemory))
const expected = "Hello, Ada 90001 InvalidInput execution_started execution_completed " +
  "execution_started execution_failed execution_started execution_failed"
if (seen !== expected) throw new Error(`Expected ${expected}, saw ${seen}`)
