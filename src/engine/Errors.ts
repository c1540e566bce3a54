/**
 * The failures of the engine domain, one class per code. Their messages say what happened and what to do.
 *
 * @since 0.1.0
 */
import * as Schema from "effect/Schema"
import * as UnitError from "../UnitError.ts"

/**
 * No engine has this name. A retry does not help; `engine.list` tells which there are, `engine.install` brings one.
 *
 * @category errors
 * @since 0.1.0
 */
export class EngineNotFound
  extends UnitError.make<EngineNotFound>()("EngineNotFound", { code: "00200", retryable: false }, {
    name: Schema.String
  })
{
  override get message(): string {
    return `There is no engine ${this.name}. List the engines to see which there are, or install it first`
  }
}

/**
 * The engine runs, or is just being started or stopped: `status` says which. A retry helps once it has stopped.
 *
 * @category errors
 * @since 0.1.0
 */
export class EngineAlreadyRunning
  extends UnitError.make<EngineAlreadyRunning>()("EngineAlreadyRunning", { code: "00201", retryable: true }, {
    name: Schema.String,
    status: Schema.Literals(["running", "starting", "stopping"])
  })
{
  override get message(): string {
    return this.status === "running"
      ? `The engine ${this.name} runs already. Use it, or restart it`
      : `The engine ${this.name} is ${this.status}. Wait until that has ended`
  }
}

/**
 * The engine does not run, so it cannot be stopped. A retry does not help.
 *
 * @category errors
 * @since 0.1.0
 */
export class EngineNotRunning
  extends UnitError.make<EngineNotRunning>()("EngineNotRunning", { code: "00202", retryable: false }, {
    name: Schema.String
  })
{
  override get message(): string {
    return `The engine ${this.name} does not run. There is nothing to stop`
  }
}

/**
 * An engine did not start; nothing of the attempt is left. Whether a retry can help is said by `retryable`.
 *
 * @category errors
 * @since 0.1.0
 */
export class EngineStartFailed
  extends UnitError.make<EngineStartFailed>()("EngineStartFailed", { code: "00203", retryable: false }, {
    name: Schema.String,
    /**
     * The kind of failure: `Missing` (no program or image), `ModelMissing`, `PortTaken`, `OutOfMemory`, `Died`, `HealthTimeout`,
     * `Unavailable` (no Docker), `Refused`, `Interrupted`, `Survived`, `Busy` (being installed), `Cancelled` (by a stop).
     */
    reason: Schema.String,
    detail: Schema.String,
    retryable: Schema.Boolean
  })
{
  override get message(): string {
    return `The engine ${this.name} was not started. ${this.detail}`
  }
}

/**
 * An engine was not stopped, or not entirely. A retry can help.
 *
 * @category errors
 * @since 0.1.0
 */
export class EngineStopFailed
  extends UnitError.make<EngineStopFailed>()("EngineStopFailed", { code: "00204", retryable: true }, {
    name: Schema.String,
    detail: Schema.String
  })
{
  override get message(): string {
    return `The engine ${this.name} was not stopped. ${this.detail}`
  }
}

/**
 * An engine was not installed; the register is as before. Whether a retry can help is said by `retryable`.
 *
 * @category errors
 * @since 0.1.0
 */
export class EngineInstallFailed
  extends UnitError.make<EngineInstallFailed>()("EngineInstallFailed", { code: "00205", retryable: false }, {
    name: Schema.String,
    /** The kind of failure: `Missing`, `Unavailable`, `Refused`, `Interrupted`, `Busy`. */
    reason: Schema.String,
    detail: Schema.String,
    retryable: Schema.Boolean
  })
{
  override get message(): string {
    return `The engine ${this.name} was not installed. ${this.detail}`
  }
}
