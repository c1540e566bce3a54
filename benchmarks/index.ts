/**
 * Every benchmark, one after the other: `npm run bench`, with `-- --quick` to see that they run, and `-- --json FILE` to keep the
 * figures, which `benchmarks/readme.ts` puts into the README.
 */
import * as Crash from "./crash.ts"
import * as EventStore from "./EventStore.ts"
import * as Groups from "./groups.ts"
import { main } from "./harness.ts"
import * as Inference from "./inference.ts"
import * as Instrument from "./instrument.ts"
import * as Publishers from "./publishers.ts"
import * as Relay from "./Relay.ts"
import * as Resource from "./resource.ts"

await main([
  Instrument.run,
  EventStore.run,
  Groups.run,
  Publishers.run,
  Relay.run,
  Relay.runLog,
  Crash.run,
  Inference.run,
  Inference.runStreams,
  Resource.run
])
