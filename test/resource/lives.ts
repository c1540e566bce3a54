/** How each unit of the resource domain ends. */
import { Effect } from "effect"
import * as Resource from "../../src/resource/index.ts"
import { domain } from "../lives.ts"
import { holdDatabase } from "../model/world.ts"
import { breakDatabase, GiB, layer, setMachine } from "./world.ts"

const lives = domain(layer)

const unknown = { slot_id: "slot-00000000" }
const llama = { name: "llama", type: "inference_native", memory_bytes: 40 * GiB } as const

const given = Resource.allocate(llama)
const broken = <I>(input: I) => ({ given: Effect.as(breakDatabase, input) })
const held = <A, E, R>(given: Effect.Effect<A, E, R>) => ({ given: Effect.tap(given, holdDatabase) })
const unreadable = { given: Effect.as(setMachine({ broken: true }), {}) }

export const resourceLives = [
  ...lives(Resource.allocate, {
    completed: {
      given: Effect.as(given, { ...llama, gpu_fraction: 0.5, priority: 6 }),
      tells: ["resource.preemption", "resource.allocated"]
    },
    failures: {
      ResourceInsufficient: { given: Effect.as(given, llama) },
      ResourcePressureHigh: { given: Effect.as(setMachine({ used: 90 * GiB }), llama) },
      ResourceAllocationFailed: { given: Effect.as(setMachine({ broken: true }), llama) },
      InternalError: broken(llama),
      InvalidInput: { given: Effect.succeed({ ...llama, memory_bytes: 0 }) }
    },
    interrupted: held(Effect.succeed(llama))
  }),
  ...lives(Resource.release, {
    completed: { given, tells: ["resource.released"] },
    failures: {
      SlotNotFound: { given: Effect.succeed(unknown) },
      InternalError: broken(unknown),
      InvalidInput: { given: Effect.succeed({ slot_id: "" }) }
    },
    interrupted: held(given)
  }),
  ...lives(Resource.updateSlot, {
    completed: {
      given: Effect.map(given, ({ slot_id }) => ({ slot_id, memory_limit: 54 * GiB, status: "idle" } as const))
    },
    failures: {
      SlotNotFound: { given: Effect.succeed(unknown) },
      ResourceInsufficient: {
        given: Effect.map(given, ({ slot_id }) => ({ slot_id, memory_limit: 54 * GiB + 1 }))
      },
      InternalError: broken(unknown),
      InvalidInput: { given: Effect.succeed({ ...unknown, memory_limit: -1 }) }
    },
    interrupted: held(given)
  }),
  ...lives(Resource.status, {
    completed: {
      given: Effect.as(Effect.andThen(given, setMachine({ used: 75 * GiB })), {}),
      tells: ["resource.pressure_warning"]
    },
    failures: { InternalError: unreadable, InvalidInput: { given: Effect.succeed("all" as never) } },
    interrupted: held(Effect.succeed({}))
  }),
  ...lives(Resource.budget, {
    completed: { given: Effect.as(given, {}) },
    failures: { InternalError: unreadable, InvalidInput: { given: Effect.succeed("all" as never) } },
    interrupted: held(Effect.succeed({}))
  }),
  ...lives(Resource.allocations, {
    completed: { given },
    failures: { InternalError: broken({}), InvalidInput: { given: Effect.succeed({ slot_id: "" }) } },
    interrupted: held(Effect.succeed({}))
  }),
  ...lives(Resource.canAllocate, {
    completed: { given: Effect.as(given, { memory_bytes: llama.memory_bytes, priority: 6 }) },
    failures: {
      InternalError: { given: Effect.as(setMachine({ broken: true }), { memory_bytes: 1 }) },
      InvalidInput: { given: Effect.succeed({ memory_bytes: 0.5 }) }
    },
    interrupted: held(Effect.succeed({ memory_bytes: 1 }))
  })
]
