/**
 * The failures of the device domain, one class per code. Their messages say what happened and what to do.
 *
 * @since 0.1.0
 */
import * as Schema from "effect/Schema"
import * as UnitError from "../UnitError.ts"

/**
 * No device of this host has this id. A retry does not help; `device.detect` tells which there are.
 *
 * @category errors
 * @since 0.1.0
 */
export class DeviceNotFound
  extends UnitError.make<DeviceNotFound>()("DeviceNotFound", { code: "00500", retryable: false }, {
    device_id: Schema.String
  })
{
  override get message(): string {
    return `There is no device ${this.device_id}. Detect the devices to see which there are`
  }
}

/**
 * A device, or the program or file that tells of it, does not answer as it should. Whether a retry can help is said by `retryable`.
 *
 * @category errors
 * @since 0.1.0
 */
export class DeviceUnreachable
  extends UnitError.make<DeviceUnreachable>()("DeviceUnreachable", { code: "00501", retryable: false }, {
    device_id: Schema.String,
    /** The kind of failure, such as `TimedOut`, `Failed`, `Lost`, `NoPermission`, `Unreadable`. */
    reason: Schema.String,
    detail: Schema.String,
    /** True for what can pass by itself. */
    retryable: Schema.Boolean
  })
{
  override get message(): string {
    return `The device ${this.device_id} cannot be reached. ${this.detail}`
  }
}

/**
 * A device answers, and its metrics cannot be read from the answer. A retry can help.
 *
 * @category errors
 * @since 0.1.0
 */
export class DeviceMetricsError
  extends UnitError.make<DeviceMetricsError>()("DeviceMetricsError", { code: "00502", retryable: true }, {
    device_id: Schema.String,
    detail: Schema.String
  })
{
  override get message(): string {
    return `The metrics of ${this.device_id} cannot be read. ${this.detail}`
  }
}

/**
 * A device cannot have this limit. `min_watts` and `max_watts` are its bounds, absent where it has no limit that could be set. A retry
 * does not help.
 *
 * @category errors
 * @since 0.1.0
 */
export class InvalidPowerLimit
  extends UnitError.make<InvalidPowerLimit>()("InvalidPowerLimit", { code: "00009", retryable: false }, {
    device_id: Schema.String,
    limit_watts: Schema.Finite,
    min_watts: Schema.optionalKey(Schema.Finite),
    max_watts: Schema.optionalKey(Schema.Finite)
  })
{
  override get message(): string {
    return this.min_watts === undefined || this.max_watts === undefined
      ? `The power limit of ${this.device_id} cannot be set: that is not supported by the device. Leave it as it is`
      : `The power limit of ${this.device_id} cannot be ${this.limit_watts} W. Choose ${this.min_watts} to ${this.max_watts} W`
  }
}

/**
 * This process may not change the device. A retry does not help.
 *
 * @category errors
 * @since 0.1.0
 */
export class Unauthorized extends UnitError.make<Unauthorized>()("Unauthorized", { code: "00003", retryable: false }, {
  device_id: Schema.String,
  detail: Schema.String
}) {
  override get message(): string {
    return `The device ${this.device_id} was not changed. ${this.detail}`
  }
}
