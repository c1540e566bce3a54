import { Effect } from "effect"
import * as Device from "../../src/device/index.ts"

/** Takes a tenth off the power limit of a GPU that runs hot, as far as its card allows. */
export const cool = Effect.fnUntraced(function*(device_id: string, watts: number) {
  const { temperature } = yield* Device.metrics({ device_id })
  if (temperature === null || temperature < 85) return
  yield* Device.setPowerLimit({ device_id, limit_watts: watts * 0.9 }).pipe(
    Effect.catchTag("InvalidPowerLimit", ({ message }) => Effect.logWarning(message))
  )
})
