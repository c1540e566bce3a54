/**
 * A publisher into an event store: events are durable once they are committed, and units do not wait for that unless they are to.
 *
 * Guarantees: what was committed survives the end of the process, however it ends, and with SQLite's `synchronous: "full"` a power
 * cut as well; events are stored in the order in which they were published, each once, whatever is retried; a process that was
 * killed leaves no execution open, as the store ends them.
 *
 * @since 0.1.0
 */
import * as Layer from "effect/Layer"
import type * as Sqlite from "../backends/Sqlite.ts"
import type * as EventPublisher from "../EventPublisher.ts"
import * as EventStore from "../EventStore.ts"
import { layerStore, type Options } from "./Store.ts"

export { layerStore, make, type Options } from "./Store.ts"

/**
 * Layer of a publisher into a SQLite file, and of the store on that file; see `layerStore`.
 *
 * **Details**
 *
 * Fails with `EventStoreError` where the file cannot be used. The store has a connection of its own to the file.
 *
 * **Example** (Events in a file)
 *
 * ```ts
 * const layer = Sqlite.layer({ filename: "events.db" })
 * ```
 *
 * @category layers
 * @since 0.1.0
 */
export const layer = (
  options: Options & EventStore.Options & Sqlite.Options
): Layer.Layer<EventPublisher.EventPublisher | EventStore.EventStore, EventStore.EventStoreError> =>
  Layer.provideMerge(layerStore(options), EventStore.layerSqlite(options))
