/**
 * The core: what units of one's own need.
 *
 * @since 0.1.0
 */
export * as Catalog from "./Catalog.ts"
export * as ConsumerGroups from "./ConsumerGroups.ts"
export * as DomainEvent from "./DomainEvent.ts"
export * as EventBus from "./EventBus.ts"
export * as EventPublisher from "./EventPublisher.ts"
export * as EventStore from "./EventStore.ts"
export * as EventSubscriber from "./EventSubscriber.ts"
export * as Execution from "./Execution.ts"
export * as ExecutionEvent from "./ExecutionEvent.ts"
export { instrument, instrumentEffect, instrumentStream } from "./instrument.ts"
export * as Relay from "./Relay.ts"
export * as Unit from "./Unit.ts"
export * as UnitError from "./UnitError.ts"
