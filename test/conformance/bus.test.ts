import * as vitest from "@effect/vitest"
import { Layer } from "effect"
import { EventBus, EventPublisher } from "../../src/index.ts"
import { type Promises, publisherSuite } from "../../src/testing/index.ts"

const bus = () => Layer.provideMerge(EventBus.layerSubscriber({ capacity: 16_384 }), EventPublisher.layerBus)

const promises: Promises = {
  durable: false,
  ordered: "global",
  groups: false,
  replay: false,
  dedup: "none",
  transactional: false,
  newSubscriberSeesOld: false,
  maxPayloadBytes: Infinity
}

publisherSuite({ vitest, name: "bus", layer: bus, promises })

publisherSuite({
  vitest,
  name: "bus, buffered",
  layer: () => EventPublisher.buffered(bus(), { capacity: 100, strategy: "suspend" }),
  promises
})

publisherSuite({
  vitest,
  name: "bus, combined",
  layer: () => EventPublisher.combine(bus(), EventPublisher.layerMemory),
  promises
})
