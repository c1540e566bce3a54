/**
 * The commands of the device domain: looking for devices anew, and what changes them.
 *
 * @since 0.1.0
 */
import * as Effect from "effect/Effect"
import * as Schema from "effect/Schema"
import * as Unit from "../Unit.ts"
import { Devices } from "./Devices.ts"
import { DeviceNotFound, DeviceUnreachable, InvalidPowerLimit, Unauthorized } from "./Errors.ts"
import { DeviceDetected } from "./Events.ts"
import { Device, DeviceId, DeviceType } from "./Model.ts"

/**
 * `device.detect`: the devices of this host, GPUs first. That there is no GPU is an answer; `device.detected` tells of each device that
 * this process had not seen before.
 *
 * @category commands
 * @since 0.1.0
 */
export const detect = Unit.command("device.detect", {
  description: "Looks for the compute devices of this host",
  input: {},
  output: {
    devices: Schema.Array(Schema.Struct({
      id: DeviceId,
      name: Device.fields.name,
      vendor: Schema.String,
      type: DeviceType,
      memory: Device.fields.memory,
      architecture: Schema.String
    }))
  },
  errors: [DeviceUnreachable],
  examples: [{}],
  handler: Effect.fnUntraced(function*() {
    const { devices, fresh } = yield* (yield* Devices).detect
    for (const device of fresh) yield* DeviceDetected.publish({ device })
    return {
      devices: devices.map(({ architecture, id, memory, name, type, vendor }) => ({
        id,
        name,
        vendor,
        type,
        memory,
        architecture
      }))
    }
  })
})

/**
 * `device.set_power_limit`: limits the power of a GPU, within the bounds that the card has, and reads the limit back. It needs root, and
 * lasts until the driver is unloaded.
 *
 * @category commands
 * @since 0.1.0
 */
export const setPowerLimit = Unit.command("device.set_power_limit", {
  description: "Sets the power limit of a GPU in watts",
  input: {
    device_id: Schema.NonEmptyString,
    limit_watts: Schema.Finite.check(Schema.isGreaterThan(0))
  },
  output: { success: Schema.Literal(true) },
  errors: [InvalidPowerLimit, DeviceNotFound, Unauthorized, DeviceUnreachable],
  examples: [{ device_id: "gpu-0", limit_watts: 250 }],
  handler: Effect.fnUntraced(function*({ device_id, limit_watts }) {
    yield* (yield* Devices).setPowerLimit(device_id, limit_watts)
    return { success: true } as const
  })
})
