import * as vitest from "@effect/vitest"
import { Effect, Layer, Stream } from "effect"
import { EventPublisher, EventSubscriber } from "../../src/index.ts"
import { publisherSuite } from "../../src/testing/index.ts"

/** Reads on what the publisher keeps in memory. Positions are places in it, so it must not drop anything. */
const subscriber = Layer.effect(
  EventSubscriber.EventSubscriber,
  Effect.gen(function*() {
    const memory = yield* EventPublisher.Memory
    let closed = false
    yield* Effect.addFinalizer(() =>
      Effect.sync(() => {
        closed = true
      })
    )
    const start = (from: EventSubscriber.From, events: ReadonlyArray<EventPublisher.Event>): number => {
      if (from === "new") return events.length
      if (from === "beginning") return 0
      if ("position" in from) return Number(from.position) + 1
      const index = events.findIndex(({ timestamp }) => Date.parse(timestamp) > from.time)
      return index === -1 ? events.length : index
    }
    return EventSubscriber.EventSubscriber.of({
      subscribe: (options) =>
        Effect.flatMap(memory.all, (events) => {
          let next = start(options.from ?? "new", events)
          const more = Effect.suspend(() => {
            // Looked at before the events, so that what came until then is still read.
            const last = closed
            return Effect.map(memory.all, (events) => {
              const page = events.slice(next).map((event, index) => ({
                event,
                position: String(next + index),
                missed: 0
              }))
              next = events.length
              return { page, last }
            })
          })
          const pages = Stream.fromEffectRepeat(Effect.delay(more, 1)).pipe(
            Stream.takeUntil(({ last }) => last),
            Stream.flatMap(({ page }) => Stream.fromIterable(page)),
            Stream.filter(({ event }) => EventSubscriber.wants(options)(event))
          )
          return EventSubscriber.fromStream(pages, options)
        })
    })
  })
)

publisherSuite({
  vitest,
  name: "memory",
  layer: () => Layer.provideMerge(subscriber, EventPublisher.layerMemoryWith({ capacity: 100_000 })),
  promises: {
    durable: false,
    ordered: "global",
    groups: false,
    replay: true,
    dedup: "none",
    transactional: false,
    newSubscriberSeesOld: true,
    maxPayloadBytes: Infinity
  }
})
