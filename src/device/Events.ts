/**
 * What the device domain tells of itself, besides the lifecycle of its units.
 *
 * @since 0.1.0
 */
import * as Schema from "effect/Schema"
import * as DomainEvent from "../DomainEvent.ts"
import { AlertMetric, Device, DeviceId, HealthStatus } from "./Model.ts"

/**
 * `device.detected`: a device was seen that this process had not seen before.
 *
 * @category events
 * @since 0.1.0
 */
export const DeviceDetected = DomainEvent.define("device.detected", { device: Device })

/**
 * `device.health_changed`: a device fares in another way than at the reading before.
 *
 * @category events
 * @since 0.1.0
 */
export const DeviceHealthChanged = DomainEvent.define("device.health_changed", {
  device_id: DeviceId,
  old_status: HealthStatus,
  new_status: HealthStatus
})

/**
 * `device.metrics_alert`: a metric was read above its threshold, for the first time or after it was not.
 *
 * @category events
 * @since 0.1.0
 */
export const DeviceMetricsAlert = DomainEvent.define("device.metrics_alert", {
  device_id: DeviceId,
  metric: AlertMetric,
  value: Schema.Finite,
  threshold: Schema.Finite
})
