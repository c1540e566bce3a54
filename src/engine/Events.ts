/**
 * What the engine domain tells of itself, besides the lifecycle of its units. Times are RFC 3339.
 *
 * @since 0.1.0
 */
import * as Schema from "effect/Schema"
import * as DomainEvent from "../DomainEvent.ts"
import { EngineId, EngineStatus, EngineType } from "./Engine.ts"

const engine = { engine_id: EngineId, name: Schema.String, type: EngineType }

/**
 * `engine.started`: an engine runs and is healthy.
 *
 * @category events
 * @since 0.1.0
 */
export const EngineStarted = DomainEvent.define("engine.started", {
  ...engine,
  process_id: Schema.String,
  status: EngineStatus,
  started_at: Schema.String
})

/**
 * `engine.stopped`: an engine was ended. `reason` is `stop`, `force`, `restart`, `shutdown` (this program ends), `ended` (it had
 * ended by itself) or `detached` (somebody else runs it, and it goes on).
 *
 * @category events
 * @since 0.1.0
 */
export const EngineStopped = DomainEvent.define("engine.stopped", {
  ...engine,
  status: EngineStatus,
  reason: Schema.String,
  stopped_at: Schema.String
})

/**
 * `engine.error`: a start or a stop has failed, or an engine has ended by itself (`error_code` 00202).
 *
 * @category events
 * @since 0.1.0
 */
export const EngineFailed = DomainEvent.define("engine.error", {
  ...engine,
  status: EngineStatus,
  error: Schema.String,
  error_code: Schema.String,
  timestamp: Schema.String
})

/**
 * `engine.health_changed`: a running engine has stopped to answer as a healthy one does, or does so again.
 *
 * @category events
 * @since 0.1.0
 */
export const EngineHealthChanged = DomainEvent.define("engine.health_changed", {
  ...engine,
  old_status: Schema.Literals(["healthy", "unhealthy"]),
  new_status: Schema.Literals(["healthy", "unhealthy"]),
  timestamp: Schema.String
})

/**
 * `engine.start_progress`: how far a start is. `service_id` is the engine's name. `phase` is `pulling` (0 to 50), `starting` (70),
 * `loading` (75), `ready` (100) or `failed` (-1).
 *
 * @category events
 * @since 0.1.0
 */
export const EngineStartProgress = DomainEvent.define("engine.start_progress", {
  service_id: Schema.String,
  phase: Schema.Literals(["pulling", "starting", "loading", "ready", "failed"]),
  message: Schema.String,
  progress: Schema.Finite,
  timestamp: Schema.String
})
