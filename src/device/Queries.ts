/**
 * The queries of the device domain: units that change nothing.
 *
 * @since 0.1.0
 */
import * as Effect from "effect/Effect"
import * as Schema from "effect/Schema"
import * as Unit from "../Unit.ts"
import { type Checkup, Devices } from "./Devices.ts"
import { DeviceMetricsError, DeviceNotFound, DeviceUnreachable } from "./Errors.ts"
import { DeviceHealthChanged, DeviceMetricsAlert } from "./Events.ts"
import { Device, DeviceId, Health, Metrics, Sample } from "./Model.ts"

/** A device without its type. */
const Info = Schema.Struct({
  id: DeviceId,
  name: Device.fields.name,
  vendor: Schema.String,
  architecture: Schema.String,
  capabilities: Device.fields.capabilities,
  memory: Device.fields.memory
})

const toInfo = ({ architecture, capabilities, id, memory, name, vendor }: Device): typeof Info.Type => ({
  id,
  name,
  vendor,
  architecture,
  capabilities,
  memory
})

/**
 * `device.info`: what does not change about a device, or about all of them where none is named. What it says of GPUs is up to 30 seconds
 * old.
 *
 * @category queries
 * @since 0.1.0
 */
export const info = Unit.query("device.info", {
  description: "Tells what a device is, or what all devices are",
  input: { device_id: Schema.optionalKey(Schema.NonEmptyString) },
  output: Schema.Union([Info, Schema.Struct({ devices: Schema.Array(Info) })]),
  errors: [DeviceNotFound, DeviceUnreachable],
  examples: [{}, { device_id: "gpu-0" }],
  handler: Effect.fnUntraced(function*({ device_id }) {
    const devices = yield* Devices
    if (device_id !== undefined) return toInfo(yield* devices.get(device_id))
    return { devices: (yield* devices.list).map(toInfo) }
  })
})

/**
 * `device.metrics`: what a device does right now; of the first one where none is named. With `history`, the last 60 readings by this
 * process, oldest first, of which this one is the last. `device.metrics_alert` tells of a metric that has risen above its threshold.
 *
 * @category queries
 * @since 0.1.0
 */
export const metrics = Unit.query("device.metrics", {
  description: "Reads the utilisation, temperature, power and memory of a device",
  input: {
    device_id: Schema.optionalKey(Schema.NonEmptyString),
    history: Schema.Boolean.pipe(Unit.withDefault(false))
  },
  output: { ...Metrics.fields, history: Schema.optionalKey(Schema.Array(Sample)) },
  errors: [DeviceNotFound, DeviceMetricsError, DeviceUnreachable],
  examples: [{}, { device_id: "gpu-0", history: true }],
  handler: Effect.fnUntraced(function*({ device_id, history }) {
    const reading = yield* (yield* Devices).read(device_id)
    for (const alert of reading.alerts) {
      yield* DeviceMetricsAlert.publish({ device_id: reading.device_id, ...alert })
    }
    return history ? { ...reading.metrics, history: reading.history } : reading.metrics
  })
})

const announce = Effect.fnUntraced(function*({ changedFrom, device_id, status }: Checkup) {
  if (changedFrom === undefined) return
  yield* DeviceHealthChanged.publish({ device_id, old_status: changedFrom, new_status: status })
})

/**
 * `device.health`: how a device fares, or how all of them do where none is named, where one that cannot be read is `unknown`. It is read
 * anew each time. `device.health_changed` tells of a device that fares in another way than at the last look.
 *
 * @category queries
 * @since 0.1.0
 */
export const health = Unit.query("device.health", {
  description: "Tells how a device fares, or how all devices do",
  input: { device_id: Schema.optionalKey(Schema.NonEmptyString) },
  output: Schema.Union([
    Health,
    Schema.Struct({ devices: Schema.Array(Schema.Struct({ device_id: DeviceId, ...Health.fields })) })
  ]),
  errors: [DeviceNotFound, DeviceUnreachable],
  examples: [{}, { device_id: "gpu-0" }],
  handler: Effect.fnUntraced(function*({ device_id }) {
    const devices = yield* Devices
    if (device_id !== undefined) {
      const checkup = yield* devices.check(device_id)
      yield* announce(checkup)
      const { issues, status } = checkup
      return { status, issues }
    }
    const checkups = yield* devices.checkAll
    yield* Effect.forEach(checkups, announce)
    return { devices: checkups.map(({ device_id, issues, status }) => ({ device_id, status, issues })) }
  })
})
