/**
 * The way to a Docker Engine on Node: over its unix socket or Windows pipe, over TCP, or over TCP with TLS.
 *
 * @since 0.1.0
 */
import * as NodeHttpClient from "@effect/platform-node/NodeHttpClient"
import * as Config from "effect/Config"
import type * as Duration from "effect/Duration"
import * as Effect from "effect/Effect"
import * as FileSystem from "effect/FileSystem"
import * as HttpClient from "effect/http/HttpClient"
import * as Layer from "effect/Layer"
import * as Option from "effect/Option"
import * as Path from "effect/Path"
import type * as PlatformError from "effect/PlatformError"
import * as Docker from "./Docker.ts"
import { DockerError, Unsupported } from "./DockerError.ts"

/**
 * Where the engine is, and how long it may take.
 *
 * @category models
 * @since 0.1.0
 */
export interface Options {
  /** `unix://` and a path, `npipe://` and a path, or `tcp://host:port`. Default: `unix:///var/run/docker.sock`. */
  readonly host?: string | undefined
  /** A folder with `ca.pem`, `cert.pem` and `key.pem`. Where it is given, TCP is spoken with TLS, and both sides prove who they are. */
  readonly certificates?: string | undefined
  /** How long the engine may take to answer. Default: 1 minute. */
  readonly timeout?: Duration.Input | undefined
  /** How long it may be silent during a pull. Default: 5 minutes. */
  readonly pullTimeout?: Duration.Input | undefined
}

/**
 * Layer of a `Docker` client.
 *
 * Building it does not talk to the engine, which may start later. It fails with `DockerError` where `host` is no address that is known
 * here, and with `PlatformError` where a certificate cannot be read.
 *
 * @category layers
 * @since 0.1.0
 */
export const layer = (
  options: Options = {}
): Layer.Layer<Docker.Docker, DockerError | PlatformError.PlatformError, FileSystem.FileSystem | Path.Path> =>
  Layer.unwrap(Effect.gen(function*() {
    const address = options.host ?? "unix:///var/run/docker.sock"
    const over = (
      baseUrl: string,
      connect:
        | { readonly socketPath: string }
        | { readonly ca: string; readonly cert: string; readonly key: string }
        | undefined
    ) =>
      Layer.effect(
        Docker.Docker,
        Effect.map(HttpClient.HttpClient, (http) => Docker.make(http, { ...options, address, baseUrl }))
      ).pipe(
        // Every Undici client is the same layer over another dispatcher, and one build of it would serve all others of the application.
        Layer.provide(Layer.fresh(NodeHttpClient.layerUndiciOptions(connect === undefined ? undefined : { connect })))
      )

    const local = /^(?:unix|npipe):\/\/(.+)$/.exec(address)?.[1]
    if (local !== undefined) return over("http://localhost", { socketPath: local })

    const remote = /^(?:tcp|http):\/\/([^/]+)\/?$/.exec(address)?.[1]
    if (remote === undefined || !URL.canParse(`http://${remote}`)) {
      return yield* new DockerError({ action: "use Docker", reason: new Unsupported({ address }) })
    }
    if (options.certificates === undefined) return over(`http://${remote}`, undefined)
    const fs = yield* FileSystem.FileSystem
    const path = yield* Path.Path
    const read = (name: string) => fs.readFileString(path.join(options.certificates ?? "", name))
    const [ca, cert, key] = yield* Effect.all([read("ca.pem"), read("cert.pem"), read("key.pem")])
    return over(`https://${remote}`, { ca, cert, key })
  }))

/**
 * The same, by the environment that Docker's own command line reads: `DOCKER_HOST`, and with a `DOCKER_TLS_VERIFY` that is not empty
 * the certificates in `DOCKER_CERT_PATH`.
 *
 * @category layers
 * @since 0.1.0
 */
export const layerConfig: Layer.Layer<
  Docker.Docker,
  DockerError | PlatformError.PlatformError | Config.ConfigError,
  FileSystem.FileSystem | Path.Path
> = Layer.unwrap(Effect.gen(function*() {
  const setting = (name: string) =>
    Effect.map(
      Config.option(Config.String(name)),
      (value) => Option.getOrUndefined(Option.filter(value, (text) => text !== ""))
    )
  const verify = yield* setting("DOCKER_TLS_VERIFY")
  return layer({
    host: yield* setting("DOCKER_HOST"),
    certificates: verify === undefined ? undefined : yield* setting("DOCKER_CERT_PATH")
  })
}))
