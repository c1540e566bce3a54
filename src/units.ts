/**
 * The catalog of all units that the library ships. The one module that knows every domain.
 *
 * @since 0.1.0
 */
import * as Catalog from "./Catalog.ts"
import * as Device from "./device/index.ts"
import * as Engine from "./engine/index.ts"
import * as Inference from "./inference/index.ts"
import * as Model from "./model/index.ts"
import * as Resource from "./resource/index.ts"

/**
 * Every unit, by domain: commands first, then queries.
 *
 * @category catalog
 * @since 0.1.0
 */
export const catalog = Catalog.make(
  Model.create,
  Model.delete,
  Model.pull,
  Model.import,
  Model.verify,
  Model.get,
  Model.list,
  Model.search,
  Model.estimateResources,
  Engine.start,
  Engine.stop,
  Engine.restart,
  Engine.install,
  Engine.get,
  Engine.list,
  Engine.features,
  Device.detect,
  Device.setPowerLimit,
  Device.info,
  Device.metrics,
  Device.health,
  Inference.chat,
  Inference.complete,
  Inference.embed,
  Inference.transcribe,
  Inference.synthesize,
  Inference.generateImage,
  Inference.generateVideo,
  Inference.rerank,
  Inference.detect,
  Inference.models,
  Inference.voices,
  Resource.allocate,
  Resource.release,
  Resource.updateSlot,
  Resource.status,
  Resource.budget,
  Resource.allocations,
  Resource.canAllocate
)

/**
 * The units that give their answer bit by bit. Each is a variant of one of the catalog, with the same input.
 *
 * @category catalog
 * @since 0.1.0
 */
export const streams = Catalog.make(Inference.chatStream, Inference.completeStream)
