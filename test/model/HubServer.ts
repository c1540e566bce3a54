/**
 * A stand-in for the model hubs on loopback sockets: the Hugging Face Hub, ModelScope and an Ollama server behind one
 * address, and a second address, on another port, that large files are redirected to. It answers as the real ones do,
 * and misbehaves on request.
 *
 * It needs nothing but Node, so that examples can use it as well:
 *
 *     const server = await HubServer.start()
 *     server.addRepository({ repo: "acme/tiny", files: [{ path: "model.safetensors", content, lfs: true }] })
 *     server.fault("model.safetensors", { kind: "cut", after: 1000 })   // one request breaks after 1000 bytes
 *     // ... pull from server.url ...
 *     await server.close()
 */
import * as Crypto from "node:crypto"
import * as Http from "node:http"
import { listen, makeSignal, read, stop } from "../fixtures/httpServer.ts"

/** A file of a repository. Files in large storage (`lfs`) are served by the second address, with a SHA-256. */
export interface RepositoryFile {
  readonly path: string
  readonly content: Uint8Array
  readonly lfs?: boolean | undefined
}

/** A repository, known to the Hugging Face and the ModelScope routes alike. */
export interface Repository {
  readonly repo: string
  readonly files: ReadonlyArray<RepositoryFile>
  /** Commits by branch or tag. Default: one commit for `main` and `master`. */
  readonly revisions?: Readonly<Record<string, string>> | undefined
  readonly pipeline_tag?: string | undefined
  readonly tags?: ReadonlyArray<string> | undefined
  readonly downloads?: number | undefined
  /** Files answer 403 `GatedRepo` unless a request carries this token. */
  readonly gated?: string | undefined
  /** More fields of the Hugging Face Hub's answer about the repository. */
  readonly info?: Readonly<Record<string, unknown>> | undefined
}

/** A model in the library that the Ollama server pulls from. */
export interface OllamaModel {
  readonly name: string
  /** Sizes of the layers in bytes. */
  readonly layers: ReadonlyArray<number>
  /** The answer to `POST /api/show`. */
  readonly show?: Readonly<Record<string, unknown>> | undefined
}

/** How one answer goes wrong. Each fault is used up by one request. */
export type Fault =
  /**
   * The connection breaks a moment after so many bytes of the body. How many of them the client still reads is up to
   * the client; to break at an exact place, stall, wait for the client, and `breakOff`.
   */
  | { readonly kind: "cut"; readonly after: number }
  /** Nothing more comes after so many bytes of the body, and the connection stays open. The ETag may be another one. */
  | { readonly kind: "stall"; readonly after: number; readonly etag?: string | undefined }
  /** The body comes in pieces of so many bytes, one every so many milliseconds. */
  | { readonly kind: "slow"; readonly bytes: number; readonly everyMillis: number }
  /** The body has the right length and other bytes. */
  | { readonly kind: "corrupt" }
  /** The body is longer than it should be, its length is not announced, and it does not end. */
  | { readonly kind: "overlong"; readonly extra: number }
  /** No answer comes at all, and the connection stays open. */
  | { readonly kind: "silence" }
  /** `Range` is ignored: the whole file comes with status 200. */
  | { readonly kind: "whole" }
  /** `If-Range` is ignored, and the file has another ETag. */
  | { readonly kind: "etag"; readonly etag: string }
  /** Any answer. */
  | {
    readonly kind: "answer"
    readonly status: number
    readonly headers?: Readonly<Record<string, string>> | undefined
    readonly body?: string | undefined
  }

/** How one answer to `POST /api/pull` goes wrong, after so many lines. */
export type PullFault =
  | { readonly kind: "cut"; readonly after: number }
  | { readonly kind: "stall"; readonly after: number }
  | { readonly kind: "error"; readonly after: number; readonly message: string }
  | { readonly kind: "line"; readonly after: number; readonly line: string }
  /** The answer ends in the middle of a line. */
  | { readonly kind: "torn"; readonly after: number; readonly text: string }
  | { readonly kind: "end"; readonly after: number }

/** A request that came in. `url` is path and query. */
export interface Received {
  readonly host: "hub" | "storage"
  readonly method: string
  readonly url: string
  readonly headers: Http.IncomingHttpHeaders
  readonly body: string
}

export interface HubServer {
  /** Base address of all three hubs; `/mirror/hf` below it is the same. */
  readonly url: string
  /** Base address of the storage that large files are redirected to. */
  readonly storageUrl: string
  /** Every request so far, in order. */
  readonly requests: ReadonlyArray<Received>
  readonly addRepository: (repository: Repository) => void
  readonly addOllamaModel: (model: OllamaModel) => void
  /** Queues faults for a path: that of a file in its repository, or that of a route. */
  readonly fault: (path: string, ...faults: ReadonlyArray<Fault>) => void
  /** Queues faults for pulls by the Ollama server. */
  readonly pullFault: (...faults: ReadonlyArray<PullFault>) => void
  /** Entries a page of file listings and searches. Default: 1000. */
  pageSize: number
  /** Breaks the connections of the stalled bodies of a file. */
  readonly breakOff: (path: string) => void
  /** Resolves when a fault leaves a client waiting. */
  readonly stalled: () => Promise<void>
  /** Resolves when a client closes its connection in the middle of a body. */
  readonly abandoned: () => Promise<void>
  readonly close: () => Promise<void>
}

const hex = (algorithm: string, ...data: ReadonlyArray<string | Uint8Array>) => {
  const hash = Crypto.createHash(algorithm)
  for (const part of data) hash.update(part)
  return hash.digest("hex")
}

/** SHA-256 of some bytes, in hex. */
export const sha256 = (content: Uint8Array): string => hex("sha256", content)

/** The checksum of some bytes as a Git blob, in hex. */
export const gitSha1 = (content: Uint8Array): string => hex("sha1", `blob ${content.length}\0`, content)

/** The digest of an Ollama model, in hex. */
export const ollamaDigest = (name: string): string => hex("sha256", name)

/** Starts the hubs on free ports of the loopback interface. */
export const start = async (): Promise<HubServer> => {
  const repositories = new Map<string, Repository>()
  const library = new Map<string, OllamaModel>()
  const held = new Map<string, OllamaModel>()
  const faults = new Map<string, Array<Fault>>()
  const pullFaults: Array<PullFault> = []
  const layersDone = new Map<string, number>()
  const requests: Array<Received> = []
  const timers = new Set<NodeJS.Timeout>()
  const stalled = makeSignal()
  const abandoned = makeSignal()

  const json = (response: Http.ServerResponse, status: number, body: unknown, headers: Record<string, string> = {}) => {
    response.writeHead(status, { "content-type": "application/json", ...headers })
    response.end(JSON.stringify(body))
  }

  const noticeAbandonment = (response: Http.ServerResponse) =>
    response.on("close", () => {
      if (!response.writableFinished) abandoned.fire()
    })

  const answerIfAsked = (response: Http.ServerResponse, fault: Fault | undefined): boolean => {
    if (fault?.kind === "silence") {
      stalled.fire()
      return true
    }
    if (fault?.kind !== "answer") return false
    response.writeHead(fault.status, fault.headers)
    response.end(fault.body)
    return true
  }

  const page = <A>(
    url: URL,
    items: ReadonlyArray<A>
  ): { readonly items: ReadonlyArray<A>; readonly link: Record<string, string> } => {
    const from = Number(url.searchParams.get("cursor") ?? 0)
    const limit = Math.min(self.pageSize, Number(url.searchParams.get("limit") ?? self.pageSize))
    const until = from + limit
    if (until >= items.length) return { items: items.slice(from), link: {} }
    const next = new URL(url)
    next.searchParams.set("cursor", String(until))
    // The real hub names itself, even to those who reached it through a mirror.
    return {
      items: items.slice(from, until),
      link: { link: `<https://huggingface.co${next.pathname}${next.search}>; rel="next"` }
    }
  }

  const stalledBodies = new Map<string, Array<Http.ServerResponse>>()

  const sendFile = (
    request: Http.IncomingMessage,
    response: Http.ServerResponse,
    { content, path }: RepositoryFile,
    fault: Fault | undefined
  ) => {
    const usual = `"${sha256(content).slice(0, 16)}"`
    const etag = fault?.kind === "etag" || fault?.kind === "stall" ? fault.etag ?? usual : usual
    const range = /^bytes=(\d+)-$/.exec(request.headers.range ?? "")
    const conditional = request.headers["if-range"]
    const partial = range !== null && fault?.kind !== "whole" &&
      (conditional === undefined || conditional === etag || fault?.kind === "etag")
    const start = partial ? Number(range[1]) : 0
    if (partial && start >= content.length) {
      response.writeHead(416, { "content-range": `bytes */${content.length}` })
      response.end()
      return
    }
    const bytes = Buffer.from(content.slice(start))
    const body = fault?.kind === "corrupt"
      ? bytes.map((byte) => byte ^ 0xff)
      : fault?.kind === "overlong"
      ? Buffer.concat([bytes, Buffer.alloc(fault.extra)])
      : bytes
    response.writeHead(partial ? 206 : 200, {
      "accept-ranges": "bytes",
      etag,
      ...(fault?.kind === "overlong" ? undefined : { "content-length": body.length }),
      ...(partial ? { "content-range": `bytes ${start}-${content.length - 1}/${content.length}` } : undefined)
    })
    if (fault?.kind !== "cut") noticeAbandonment(response)
    switch (fault?.kind) {
      case "cut":
        response.write(body.subarray(0, fault.after), () => {
          timers.add(setTimeout(() => response.socket?.destroy(), 20))
        })
        return
      case "stall":
        stalledBodies.set(path, [...stalledBodies.get(path) ?? [], response])
        response.write(body.subarray(0, fault.after), () => stalled.fire())
        return
      case "slow": {
        let at = 0
        const timer = setInterval(() => {
          response.write(body.subarray(at, at + fault.bytes))
          at += fault.bytes
          if (at >= body.length) {
            clearTimeout(timer)
            timers.delete(timer)
            response.end()
          }
        }, fault.everyMillis)
        timers.add(timer)
        response.on("close", () => clearTimeout(timer))
        return
      }
      case "overlong":
        response.write(body)
        return
      default:
        response.end(body)
    }
  }

  const commitOf = (repository: Repository, revision: string): string | undefined => {
    const only = hex("sha1", repository.repo)
    const revisions = repository.revisions ?? { main: only, master: only }
    return revisions[revision] ?? Object.values(revisions).find((commit) => commit === revision)
  }

  const bearer = (request: Http.IncomingMessage) => request.headers.authorization?.replace(/^Bearer /, "")

  const huggingFace = (
    request: Http.IncomingMessage,
    response: Http.ServerResponse,
    url: URL,
    path: string
  ): boolean => {
    const missing = (status: number, code: string, message: string) =>
      json(response, status, { error: message }, { "x-error-code": code, "x-error-message": message })
    if (path === "/api/models") {
      const text = url.searchParams.get("search")?.toLowerCase() ?? ""
      const tag = url.searchParams.get("pipeline_tag")
      const found = [...repositories.values()]
        .filter(({ pipeline_tag, repo }) => repo.toLowerCase().includes(text) && (tag === null || pipeline_tag === tag))
        .sort((a, b) => (b.downloads ?? 0) - (a.downloads ?? 0))
      const { items, link } = page(url, found)
      json(
        response,
        200,
        items.map(({ downloads = 0, pipeline_tag, repo, tags = [] }) => ({
          _id: hex("sha1", repo).slice(0, 24),
          id: repo,
          modelId: repo,
          private: false,
          downloads,
          likes: 0,
          library_name: "transformers",
          ...(pipeline_tag === undefined ? undefined : { pipeline_tag }),
          tags
        })),
        link
      )
      return true
    }
    const api = /^\/api\/models\/(.+)\/(revision|tree)\/([^/]+)$/.exec(path)
    const resolve = /^\/(.+?)\/resolve\/([^/]+)\/(.+)$/.exec(path)
    const [, repo = "", kind, revision = ""] = api ?? [undefined, resolve?.[1], "resolve", resolve?.[2]]
    if (api === null && (resolve === null || path.startsWith("/api/"))) return false
    const repository = repositories.get(repo)
    if (repository === undefined) {
      missing(401, "RepoNotFound", "Repository not found")
      return true
    }
    const commit = commitOf(repository, decodeURIComponent(revision))
    if (commit === undefined) {
      missing(404, "RevisionNotFound", `Invalid rev id: ${revision}`)
      return true
    }
    if (kind === "revision") {
      json(response, 200, {
        id: repo,
        modelId: repo,
        sha: commit,
        private: false,
        gated: repository.gated === undefined ? false : "auto",
        disabled: false,
        downloads: repository.downloads ?? 0,
        ...(repository.pipeline_tag === undefined ? undefined : { pipeline_tag: repository.pipeline_tag }),
        tags: repository.tags ?? [],
        siblings: repository.files.map((file) => ({ rfilename: file.path })),
        ...repository.info
      })
      return true
    }
    if (kind === "tree") {
      const folders = new Set(
        repository.files.flatMap(({ path }) => path.includes("/") ? [path.slice(0, path.lastIndexOf("/"))] : [])
      )
      const entries = [
        ...[...folders].map((path) => ({ type: "directory", oid: hex("sha1", path), size: 0, path })),
        ...repository.files.map((file) =>
          file.lfs === true
            ? {
              type: "file",
              oid: hex("sha1", "pointer", file.path),
              size: file.content.length,
              lfs: { oid: sha256(file.content), size: file.content.length, pointerSize: 134 },
              path: file.path
            }
            : { type: "file", oid: gitSha1(file.content), size: file.content.length, path: file.path }
        )
      ]
      const { items, link } = page(url, entries)
      json(response, 200, items, link)
      return true
    }
    const filePath = decodeURIComponent(resolve?.[3] ?? "")
    const file = repository.files.find((file) => file.path === filePath)
    if (file === undefined) {
      missing(404, "EntryNotFound", "Entry not found")
      return true
    }
    if (repository.gated !== undefined && bearer(request) !== repository.gated) {
      missing(403, "GatedRepo", `Access to model ${repo} is restricted`)
      return true
    }
    if (file.lfs === true) {
      response.writeHead(302, {
        location: `${self.storageUrl}/${repo}/${encodeURIComponent(filePath)}?Signature=signed`,
        "x-repo-commit": commit,
        "x-linked-etag": `"${sha256(file.content)}"`,
        "x-linked-size": String(file.content.length)
      })
      response.end()
      return true
    }
    const fault = faults.get(filePath)?.shift()
    if (answerIfAsked(response, fault)) return true
    response.setHeader("x-repo-commit", commit)
    sendFile(request, response, file, fault)
    return true
  }

  const modelScope = (
    request: Http.IncomingMessage,
    response: Http.ServerResponse,
    url: URL,
    path: string
  ): boolean => {
    if (path === "/openapi/v1/models") {
      const text = url.searchParams.get("search")?.toLowerCase() ?? ""
      const size = Number(url.searchParams.get("page_size"))
      const from = (Number(url.searchParams.get("page_number")) - 1) * size
      const found = [...repositories.values()].filter(({ repo }) => repo.toLowerCase().includes(text))
        .sort((a, b) => (b.downloads ?? 0) - (a.downloads ?? 0))
      json(response, 200, {
        success: true,
        request_id: "r",
        data: {
          models: found.slice(from, from + size).map(({ downloads = 0, pipeline_tag, repo, tags = [] }) => ({
            id: repo,
            display_name: repo,
            downloads,
            likes: 0,
            tags,
            tasks: pipeline_tag === undefined ? [] : [pipeline_tag]
          })),
          total_count: found.length,
          page_number: from / size + 1,
          page_size: size
        }
      })
      return true
    }
    const match = /^\/api\/v1\/models\/([^/]+\/[^/]+)(\/repo\/files|\/repo)?$/.exec(path)
    if (match === null) return false
    const [, repo = "", kind] = match
    const ok = (data: unknown) =>
      json(response, 200, { Code: 200, Data: data, Message: "success", RequestId: "r", Success: true })
    const missing = (message: string) =>
      json(response, 404, { Code: 10010205001, Message: message, RequestId: "r", Success: false })
    const repository = repositories.get(repo)
    if (repository === undefined) {
      missing("model not found")
      return true
    }
    const commit = commitOf(repository, url.searchParams.get("Revision") ?? "master")
    if (kind === undefined) {
      ok({
        Id: 1,
        Name: repo.split("/")[1],
        Path: repo.split("/")[0],
        Downloads: repository.downloads ?? 0,
        Tags: repository.tags ?? null,
        Tasks: repository.pipeline_tag === undefined ? null : [{ Id: 1, Name: repository.pipeline_tag }]
      })
      return true
    }
    if (commit === undefined) {
      missing("revision not found")
      return true
    }
    if (kind === "/repo/files") {
      ok({
        Files: repository.files.map(({ content, lfs = false, path }) => ({
          Name: path.slice(path.lastIndexOf("/") + 1),
          Path: path,
          Type: "blob",
          Size: content.length,
          Sha256: sha256(content),
          IsLFS: lfs,
          Revision: commit
        })),
        IsVisual: 0,
        LatestCommitter: { Id: commit, ShortId: commit.slice(0, 8) }
      })
      return true
    }
    const filePath = url.searchParams.get("FilePath") ?? ""
    const file = repository.files.find((file) => file.path === filePath)
    if (file === undefined) {
      missing("file not found")
      return true
    }
    const fault = faults.get(filePath)?.shift()
    if (!answerIfAsked(response, fault)) sendFile(request, response, file, fault)
    return true
  }

  const ollama = (
    request: Http.IncomingMessage,
    response: Http.ServerResponse,
    path: string,
    body: string
  ): boolean => {
    if (path === "/api/tags") {
      json(response, 200, {
        models: [...held.values()].map(({ layers, name }) => ({
          name,
          model: name,
          modified_at: "2025-01-01T00:00:00Z",
          size: layers.reduce((sum, size) => sum + size, 0),
          digest: ollamaDigest(name),
          details: { format: "gguf" }
        }))
      })
      return true
    }
    if (!["/api/pull", "/api/show", "/api/delete"].includes(path)) return false
    const { model } = JSON.parse(body)
    const last = model.slice(model.lastIndexOf("/") + 1)
    const name = last.includes(":") ? model : `${model}:latest`
    if (path === "/api/show") {
      const shown = held.get(name)
      if (shown === undefined) json(response, 404, { error: `model '${model}' not found` })
      else json(response, 200, { license: "", modelfile: "", details: { format: "gguf" }, ...shown.show })
      return true
    }
    if (path === "/api/delete") {
      if (request.method === "DELETE" && held.delete(name)) response.writeHead(200).end()
      else json(response, 404, { error: `model '${model}' not found` })
      return true
    }
    const wanted = library.get(name)
    const fault = pullFaults.shift()
    response.writeHead(200, { "content-type": "application/x-ndjson" })
    if (fault?.kind !== "cut") noticeAbandonment(response)
    let lines = 0
    // Undefined when the answer ended early.
    const line = (value: unknown): true | undefined => {
      if (fault !== undefined && lines === fault.after) {
        switch (fault.kind) {
          case "cut":
            timers.add(setTimeout(() => response.socket?.destroy(), 20))
            return undefined
          case "stall":
            stalled.fire()
            return undefined
          case "error":
            response.end(`${JSON.stringify({ error: fault.message })}\n`)
            return undefined
          case "line":
            response.end(`${fault.line}\n`)
            return undefined
          case "torn":
            response.end(fault.text)
            return undefined
          case "end":
            response.end()
            return undefined
        }
      }
      lines++
      response.write(`${JSON.stringify(value)}\n`)
      return true
    }
    if (!line({ status: "pulling manifest" })) return true
    if (wanted === undefined) {
      response.end(`${JSON.stringify({ error: "pull model manifest: file does not exist" })}\n`)
      return true
    }
    for (const [index, total] of wanted.layers.entries()) {
      const digest = `sha256:${hex("sha256", name, String(index))}`
      const status = `pulling ${digest.slice(7, 19)}`
      for (let completed = layersDone.get(digest) ?? 0;;) {
        if (!line({ status, digest, total, completed })) return true
        layersDone.set(digest, completed)
        if (completed === total) break
        completed = Math.min(total, completed + Math.ceil(total / 4))
      }
    }
    if (!line({ status: "verifying sha256 digest" }) || !line({ status: "writing manifest" })) return true
    held.set(name, wanted)
    if (line({ status: "success" })) response.end()
    return true
  }

  const answer = (request: Http.IncomingMessage, response: Http.ServerResponse, body: string) => {
    const url = new URL((request.url ?? "/").replace(/^\/mirror\/hf(?=\/)/, ""), self.url)
    requests.push({ host: "hub", method: request.method ?? "", url: request.url ?? "", headers: request.headers, body })
    if (answerIfAsked(response, faults.get(url.pathname)?.shift())) return
    const done = ollama(request, response, url.pathname, body) ||
      modelScope(request, response, url, url.pathname) ||
      huggingFace(request, response, url, url.pathname)
    if (!done) json(response, 404, { error: "not found" })
  }
  const hub = Http.createServer((request, response) => {
    // A request that breaks off before its body is there needs no answer.
    read(request).then((body) => answer(request, response, body.toString()), () => response.destroy())
  })

  const storage = Http.createServer((request, response) => {
    const url = new URL(request.url ?? "/", self.storageUrl)
    requests.push({
      host: "storage",
      method: request.method ?? "",
      url: request.url ?? "",
      headers: request.headers,
      body: ""
    })
    const slash = url.pathname.lastIndexOf("/")
    const path = decodeURIComponent(url.pathname.slice(slash + 1))
    const file = repositories.get(url.pathname.slice(1, slash))?.files.find((file) => file.path === path)
    // Storage that is handed a token for the hub refuses it, as S3 does for two kinds of authorisation at once.
    if (file === undefined || request.headers.authorization !== undefined || request.headers.cookie !== undefined) {
      response.writeHead(400).end()
      return
    }
    const fault = faults.get(path)?.shift()
    if (!answerIfAsked(response, fault)) sendFile(request, response, file, fault)
  })

  const self: HubServer = {
    url: await listen(hub),
    storageUrl: await listen(storage),
    requests,
    addRepository: (repository) => {
      repositories.set(repository.repo, repository)
    },
    addOllamaModel: (model) => {
      library.set(model.name, model)
    },
    fault: (path, ...more) => {
      faults.set(path, [...faults.get(path) ?? [], ...more])
    },
    pullFault: (...more) => {
      pullFaults.push(...more)
    },
    breakOff: (path) => {
      for (const response of stalledBodies.get(path) ?? []) response.destroy()
      stalledBodies.delete(path)
    },
    pageSize: 1000,
    stalled: stalled.wait,
    abandoned: abandoned.wait,
    close: async () => {
      for (const timer of timers) clearTimeout(timer)
      await Promise.all([stop(hub), stop(storage)])
    }
  }
  return self
}
