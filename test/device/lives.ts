/** How each unit of the device domain ends. */
import { Effect } from "effect"
import * as Device from "../../src/device/index.ts"
import { domain } from "../lives.ts"
import { rtx4090 } from "./cards.ts"
import { layer, type State, World } from "./world.ts"

const lives = domain(layer)

const gpu = { device_id: "gpu-0" }
const unknown = { device_id: "gpu-9" }
const limit = { ...gpu, limit_watts: 300 }

/** NVIDIA's program says something else from now on. */
const when = <I>(state: Partial<State>, input: I) =>
  Effect.map(World, (world) => {
    world.set({ ...world.state(), ...state })
    return input
  })

const broken: Partial<State> = { says: { code: 255, stdout: "Failed to initialize NVML: Unknown Error\n" } }
const garbage: Partial<State> = { says: { code: 0, stdout: "0, GPU-\n" } }

/** NVIDIA's program hangs while the unit waits for it. */
const held = <I>(input: I, hangs: "always" | "-pl" = "always") => ({
  given: when({ hangs }, input),
  meanwhile: Effect.flatMap(World, ({ hanging }) => hanging)
})

const invalid = { given: Effect.succeed({ device_id: "" }) }

export const deviceLives = [
  ...lives(Device.detect, {
    completed: { given: Effect.succeed({}), tells: ["device.detected", "device.detected"] },
    failures: {
      DeviceUnreachable: {
        given: Effect.tap(when({ gpus: [] }, {}), Effect.map(World, ({ remove }) => remove("proc/meminfo")))
      },
      // There is no object that it would refuse.
      InvalidInput: { given: Effect.succeed([]) }
    },
    interrupted: held({})
  }),
  ...lives(Device.setPowerLimit, {
    completed: { given: Effect.succeed(limit) },
    failures: {
      InvalidPowerLimit: { given: Effect.succeed({ ...gpu, limit_watts: 601 }) },
      DeviceNotFound: { given: Effect.succeed({ ...limit, ...unknown }) },
      Unauthorized: { given: when({ uid: 1000 }, limit) },
      DeviceUnreachable: { given: when(broken, limit) },
      InvalidInput: { given: Effect.succeed({ ...gpu, limit_watts: 0 }) }
    },
    interrupted: held(limit, "-pl")
  }),
  ...lives(Device.info, {
    completed: { given: Effect.succeed({}) },
    failures: {
      DeviceNotFound: { given: Effect.succeed(unknown) },
      DeviceUnreachable: { given: when(broken, gpu) },
      InvalidInput: invalid
    },
    interrupted: held(gpu)
  }),
  ...lives(Device.metrics, {
    completed: {
      given: when({ gpus: [{ ...rtx4090, "temperature.gpu": "91" }] }, { history: true }),
      tells: ["device.metrics_alert"]
    },
    failures: {
      DeviceNotFound: { given: Effect.succeed(unknown) },
      DeviceMetricsError: { given: when(garbage, gpu) },
      DeviceUnreachable: { given: when(broken, gpu) },
      InvalidInput: invalid
    },
    interrupted: held(gpu)
  }),
  ...lives(Device.health, {
    completed: {
      given: Effect.andThen(Device.health(gpu), when({ gpus: [{ ...rtx4090, "temperature.gpu": "91" }] }, {})),
      tells: ["device.health_changed"]
    },
    failures: {
      DeviceNotFound: { given: Effect.succeed(unknown) },
      DeviceUnreachable: { given: when(broken, gpu) },
      InvalidInput: invalid
    },
    interrupted: held(gpu)
  })
]
