/**
 * How each type of engine is run: as which program or container, where it listens, when it is healthy, what it can do.
 *
 * A recipe is data, besides functions that give arguments. The ten of the library are `recipes`; an application adds its own, or
 * changes these, by an option of the domain's layer.
 *
 * @since 0.1.0
 */
import type * as Duration from "effect/Duration"
import type * as ChildProcess from "effect/process/ChildProcess"
import type * as Redacted from "effect/Redacted"
import type { EngineConfig, EngineType, Features } from "./Engine.ts"

/**
 * What arguments are made from, as the engine sees it: in a container, its own port and the place where the model is mounted.
 *
 * **Details**
 *
 * `model` is the path of a file or folder, or else the name that the engine is to resolve itself; absent where neither was given.
 * `servedName` is the name for clients.
 *
 * @category models
 * @since 0.1.0
 */
export interface Settings {
  readonly host: string
  readonly port: number
  readonly model?: string | undefined
  readonly servedName?: string | undefined
  readonly gpu: boolean
  readonly config: EngineConfig
}

/**
 * Variables of the environment, added to what is inherited; `undefined` takes one away. Secrets are to be `Redacted`.
 *
 * @category models
 * @since 0.1.0
 */
export type Env = Readonly<Record<string, string | Redacted.Redacted | undefined>>

/**
 * An engine as a child process.
 *
 * @category models
 * @since 0.1.0
 */
export interface ProcessPart {
  /** A name on the PATH, or an absolute path. No shell sees it. */
  readonly command: string
  readonly args: (settings: Settings) => ReadonlyArray<string>
  readonly env?: ((settings: Settings) => Env) | undefined
  /** Absolute path of the folder to run in. */
  readonly cwd?: string | undefined
  /**
   * Arguments with which the program says its version and succeeds: where it does not, it counts as not installed. Without them, its
   * being there is enough, and its version is unknown.
   */
  readonly probe?: ReadonlyArray<string> | undefined
  /** The command or page by which a user gets it: part of a failure's message. */
  readonly howToInstall: (version: string | undefined) => string
  /** What it is asked to end by. Default `SIGINT`. */
  readonly stopSignal?: ChildProcess.Signal | undefined
}

/**
 * An engine as a container.
 *
 * @category models
 * @since 0.1.0
 */
export interface ContainerPart {
  /** The image without its tag. */
  readonly image: string
  /** The tag where no version is asked for. */
  readonly tag: string
  /** The tag of a version. Default: the version itself. */
  readonly tagOf?: ((version: string) => string) | undefined
  /** What the image's entrypoint is given. */
  readonly args: (settings: Settings) => ReadonlyArray<string>
  readonly env?: ((settings: Settings) => Env) | undefined
  /** The port that it listens on inside; a port of the host is published to it. */
  readonly port: number
  /** Where the model's folder is mounted, read-only. */
  readonly modelMount: string
  /** Bytes; unlimited by default. */
  readonly memory?: number | undefined
  /** Processors, fractions count; unlimited by default. */
  readonly cpus?: number | undefined
  /** Shares the host's memory segments, as several processes on GPUs need it. Default: false. */
  readonly hostIpc?: boolean | undefined
  /** Bytes of `/dev/shm`, where the host's is not shared. Default: Docker's, 64 MiB. */
  readonly sharedMemory?: number | undefined
}

/**
 * How one engine is run.
 *
 * **Details**
 *
 * - `port` is where it listens unless told otherwise; where that is taken, another one.
 * - It is healthy once `GET healthPath` answers 200, with `healthText` in the body where that is given.
 * - `attach`: where a healthy one answers at its port already, that one is used, and never ended.
 * - `dialect` is the protocol for inference. The models are listed by `modelsPath` in the form that goes with it: OpenAI's
 *   `/v1/models`, Ollama's `/api/tags`, or `/info` of the servers of HuggingFace.
 * - `needsModel`: whether it cannot start without a model.
 * - `startTimeout` bounds one attempt, until it is healthy.
 * - `outOfMemory` are texts in its output by which a start has failed for lack of memory: that is not retried. `transient` are texts of
 *   faults that can pass: where one that has ended wrote such, it is started again, so many times, after `retryDelay`.
 * - `stopGrace` is how long a start that failed is given to end before it is killed. Default 10 seconds.
 *
 * @category models
 * @since 0.1.0
 */
export interface Recipe {
  readonly type: EngineType
  readonly process?: ProcessPart | undefined
  readonly container?: ContainerPart | undefined
  readonly port: number
  readonly gpu: boolean
  readonly healthPath: string
  readonly healthText?: string | undefined
  readonly attach?: boolean | undefined
  readonly dialect: "openai" | "ollama"
  readonly modelsPath: "/v1/models" | "/api/tags" | "/info"
  readonly needsModel: boolean
  readonly startTimeout: Duration.Input
  readonly retries: number
  readonly retryDelay: Duration.Input
  readonly outOfMemory: ReadonlyArray<string>
  readonly transient: ReadonlyArray<string>
  readonly stopGrace?: Duration.Input | undefined
  readonly capabilities: ReadonlyArray<string>
  readonly features: Features
}

/**
 * Texts by which engines on PyTorch, CUDA and llama.cpp say that memory is short.
 *
 * @category constants
 * @since 0.1.0
 */
export const outOfMemoryTexts: ReadonlyArray<string> = [
  "CUDA out of memory",
  "torch.cuda.OutOfMemoryError",
  "torch.OutOfMemoryError",
  "Engine core initialization failed",
  "Failed to allocate",
  "cudaMalloc failed: out of memory",
  "requires more system memory"
]

/**
 * Texts by which programs say that what failed can succeed a moment later.
 *
 * @category constants
 * @since 0.1.0
 */
export const transientTexts: ReadonlyArray<string> = [
  "address already in use",
  "EADDRINUSE",
  "Connection reset by peer",
  "Temporary failure in name resolution",
  "Resource temporarily unavailable"
]

const texts = { outOfMemory: outOfMemoryTexts, transient: transientTexts } as const

const features: Features = {
  supports_streaming: false,
  supports_batch: false,
  supports_multimodal: false,
  supports_tools: false,
  supports_embedding: false,
  supports_gpu_layers: false,
  supports_quantization: false,
  max_concurrent: 1,
  max_context_length: 0,
  max_batch_size: 1
}

const option = (name: string, value: string | number | undefined): ReadonlyArray<string> =>
  value === undefined ? [] : [name, String(value)]

/** What hides the GPUs from a program that would use them. */
const withoutGpu = ({ gpu }: Settings): Env => gpu ? {} : { CUDA_VISIBLE_DEVICES: "", HIP_VISIBLE_DEVICES: "" }

const pip = (name: string) => (version: string | undefined): string =>
  `run \`pip install ${name}${version === undefined ? "" : `==${version}`}\``

const GiB = 1024 ** 3

const patient = { startTimeout: "20 minutes", retries: 5, retryDelay: "10 seconds" } as const
const quick = { startTimeout: "1 minute", retries: 3, retryDelay: "5 seconds" } as const
const openai = { dialect: "openai", modelsPath: "/v1/models", ...texts } as const

/** https://docs.vllm.ai/en/stable/cli/serve.html */
const vllmOptions = ({ config, gpu, servedName }: Settings): ReadonlyArray<string> => [
  ...option("--gpu-memory-utilization", gpu ? config.gpu_memory_utilization ?? 0.9 : undefined),
  ...option("--tensor-parallel-size", config.tensor_parallel_size),
  ...option("--max-model-len", config.max_model_len),
  ...option("--served-model-name", servedName)
]

const vllm: Recipe = {
  ...openai,
  ...patient,
  type: "vllm",
  process: {
    command: "vllm",
    args: (settings) => [
      "serve",
      ...(settings.model === undefined ? [] : [settings.model]),
      ...option("--host", settings.host),
      ...option("--port", settings.port),
      ...vllmOptions(settings)
    ],
    env: withoutGpu,
    probe: ["--version"],
    howToInstall: pip("vllm")
  },
  container: {
    image: "vllm/vllm-openai",
    tag: "latest",
    tagOf: (version) => /^\d/.test(version) ? `v${version}` : version,
    // The entrypoint of the image is the server.
    args: (settings) => [
      ...option("--model", settings.model),
      ...option("--port", settings.port),
      ...vllmOptions(settings)
    ],
    port: 8000,
    modelMount: "/models",
    hostIpc: true
  },
  port: 8000,
  gpu: true,
  healthPath: "/health",
  needsModel: true,
  capabilities: ["chat", "completion"],
  features: {
    ...features,
    supports_streaming: true,
    supports_batch: true,
    supports_tools: true,
    supports_gpu_layers: true,
    supports_quantization: true,
    max_concurrent: 100,
    max_context_length: 128_000,
    max_batch_size: 256
  }
}

/** https://docs.sglang.ai/advanced_features/server_arguments.html */
const sglangArgs = ({ config, gpu, host, model, port, servedName }: Settings): ReadonlyArray<string> => [
  "-m",
  "sglang.launch_server",
  ...option("--model-path", model),
  ...option("--host", host),
  ...option("--port", port),
  ...option("--mem-fraction-static", gpu ? config.gpu_memory_utilization : undefined),
  ...option("--tp-size", config.tensor_parallel_size),
  ...option("--context-length", config.max_model_len),
  ...option("--served-model-name", servedName),
  ...(gpu ? [] : ["--device", "cpu"])
]

const sglang: Recipe = {
  ...openai,
  ...patient,
  type: "sglang",
  process: {
    command: "python3",
    args: sglangArgs,
    env: withoutGpu,
    probe: ["-c", "import importlib.metadata as m; print(m.version('sglang'))"],
    howToInstall: pip("sglang")
  },
  container: {
    image: "lmsysorg/sglang",
    tag: "latest",
    tagOf: (version) => /^\d/.test(version) ? `v${version}` : version,
    args: (settings) => ["python3", ...sglangArgs(settings)],
    port: 30_000,
    modelMount: "/models",
    hostIpc: true
  },
  port: 8080,
  gpu: true,
  healthPath: "/health",
  needsModel: true,
  capabilities: ["chat", "completion"],
  features: {
    ...features,
    supports_streaming: true,
    supports_batch: true,
    supports_multimodal: true,
    supports_tools: true,
    supports_quantization: true,
    max_concurrent: 100,
    max_context_length: 128_000,
    max_batch_size: 256
  }
}

/** https://github.com/ollama/ollama/blob/main/docs/faq.md */
const ollama: Recipe = {
  ...quick,
  ...texts,
  type: "ollama",
  process: {
    command: "ollama",
    args: () => ["serve"],
    env: (settings) => ({ ...withoutGpu(settings), OLLAMA_HOST: `${settings.host}:${settings.port}` }),
    probe: ["--version"],
    howToInstall: () => "get it from https://ollama.com/download"
  },
  container: {
    image: "ollama/ollama",
    tag: "latest",
    args: () => ["serve"],
    env: ({ port }) => ({ OLLAMA_HOST: `0.0.0.0:${port}` }),
    port: 11_434,
    modelMount: "/models"
  },
  port: 11_434,
  gpu: true,
  healthPath: "/",
  healthText: "Ollama is running",
  attach: true,
  dialect: "ollama",
  modelsPath: "/api/tags",
  needsModel: false,
  capabilities: ["chat", "completion", "embedding", "vision", "tools"],
  features: {
    ...features,
    supports_streaming: true,
    supports_multimodal: true,
    supports_tools: true,
    supports_embedding: true,
    supports_gpu_layers: true,
    supports_quantization: true,
    max_concurrent: 10,
    max_context_length: 128_000,
    max_batch_size: 1
  }
}

/** https://speaches.ai: speech to text and back, over the paths of OpenAI. */
const speaches = {
  ...openai,
  ...quick,
  process: {
    command: "python3",
    args: ({ host, port }: Settings) => [
      "-m",
      "uvicorn",
      "--factory",
      ...option("--host", host),
      ...option("--port", port),
      "speaches.main:create_app"
    ],
    env: withoutGpu,
    probe: ["-c", "import importlib.metadata as m; print(m.version('speaches'))"],
    howToInstall: () => "follow https://speaches.ai/installation"
  },
  container: {
    image: "ghcr.io/speaches-ai/speaches",
    tag: "latest-cpu",
    tagOf: (version: string) => `${version}-cpu`,
    args: () => [],
    env: ({ port }: Settings) => ({ UVICORN_PORT: String(port) }),
    port: 8000,
    modelMount: "/model",
    memory: 4 * GiB,
    cpus: 2
  },
  gpu: false,
  needsModel: false
} as const satisfies Partial<Recipe>

const whisper: Recipe = {
  ...speaches,
  type: "whisper",
  port: 8001,
  healthPath: "/health",
  capabilities: ["transcription"],
  features: { ...features, supports_streaming: true, supports_quantization: true, max_concurrent: 4 }
}

const tts: Recipe = {
  ...speaches,
  type: "tts",
  port: 8002,
  healthPath: "/health",
  capabilities: ["speech"],
  features: { ...features, supports_streaming: true, max_concurrent: 4 }
}

/** https://localai.io: images and video, over the paths of OpenAI and its own. */
const localAi = {
  ...openai,
  ...patient,
  process: {
    command: "local-ai",
    args: ({ host, model, port }: Settings) => [
      "run",
      ...option("--address", `${host}:${port}`),
      ...option("--models-path", model)
    ],
    env: withoutGpu,
    probe: ["--version"],
    howToInstall: () => "get it from https://localai.io/installation"
  },
  container: {
    image: "localai/localai",
    tag: "latest",
    tagOf: (version: string) => /^\d/.test(version) ? `v${version}` : version,
    args: ({ model, port }: Settings) => ["--address", `:${port}`, ...option("--models-path", model)],
    port: 8080,
    modelMount: "/models"
  },
  gpu: true,
  healthPath: "/readyz",
  needsModel: false
} as const satisfies Partial<Recipe>

const diffusion: Recipe = {
  ...localAi,
  type: "diffusion",
  port: 8080,
  capabilities: ["image"],
  features: { ...features, supports_quantization: true }
}

const video: Recipe = {
  ...localAi,
  type: "video",
  port: 8080,
  capabilities: ["video"],
  features
}

/** https://huggingface.co/docs/transformers/serving */
const transformers: Recipe = {
  ...openai,
  ...patient,
  type: "transformers",
  process: {
    command: "transformers",
    args: ({ gpu, host, model, port }) => [
      "serve",
      ...option("--host", host),
      ...option("--port", port),
      ...option("--device", gpu ? undefined : "cpu"),
      ...option("--force-model", model)
    ],
    env: withoutGpu,
    probe: ["version"],
    howToInstall: (version) => pip("'transformers[serving]'")(version)
  },
  port: 8080,
  gpu: true,
  healthPath: "/health",
  needsModel: false,
  capabilities: ["chat", "completion"],
  features: {
    ...features,
    supports_streaming: true,
    supports_batch: true,
    supports_multimodal: true,
    supports_embedding: true,
    supports_quantization: true,
    max_concurrent: 4,
    max_context_length: 32_768,
    max_batch_size: 8
  }
}

/** https://huggingface.co/docs/text-generation-inference/reference/launcher */
const huggingface: Recipe = {
  ...openai,
  ...patient,
  type: "huggingface",
  modelsPath: "/info",
  process: {
    command: "text-generation-launcher",
    args: ({ config, host, model, port }) => [
      ...option("--model-id", model),
      ...option("--hostname", host),
      ...option("--port", port),
      ...option("--num-shard", config.tensor_parallel_size),
      ...option("--max-total-tokens", config.max_model_len)
    ],
    env: withoutGpu,
    probe: ["--version"],
    howToInstall: () => "follow https://github.com/huggingface/text-generation-inference#local-install"
  },
  container: {
    image: "ghcr.io/huggingface/text-generation-inference",
    tag: "latest",
    args: ({ config, model, port }) => [
      ...option("--model-id", model),
      ...option("--port", port),
      ...option("--num-shard", config.tensor_parallel_size),
      ...option("--max-total-tokens", config.max_model_len)
    ],
    port: 80,
    modelMount: "/models",
    hostIpc: true
  },
  port: 8080,
  gpu: true,
  healthPath: "/health",
  needsModel: true,
  capabilities: ["chat", "completion"],
  features: {
    ...features,
    supports_streaming: true,
    supports_batch: true,
    supports_tools: true,
    supports_quantization: true,
    max_concurrent: 128,
    max_context_length: 32_768,
    max_batch_size: 128
  }
}

/** https://huggingface.co/docs/text-embeddings-inference/cli_arguments */
const rerank: Recipe = {
  ...openai,
  startTimeout: "10 minutes",
  retries: 3,
  retryDelay: "5 seconds",
  type: "rerank",
  modelsPath: "/info",
  process: {
    command: "text-embeddings-router",
    args: ({ host, model, port }) => [
      ...option("--model-id", model),
      ...option("--hostname", host),
      ...option("--port", port)
    ],
    env: withoutGpu,
    probe: ["--version"],
    howToInstall: () => "follow https://github.com/huggingface/text-embeddings-inference#local-install"
  },
  container: {
    image: "ghcr.io/huggingface/text-embeddings-inference",
    tag: "cpu-latest",
    tagOf: (version) => /^\d/.test(version) ? `cpu-${version}` : version,
    args: ({ model, port }) => [...option("--model-id", model), ...option("--port", port)],
    port: 80,
    modelMount: "/models"
  },
  port: 8080,
  gpu: false,
  healthPath: "/health",
  needsModel: true,
  capabilities: ["rerank", "embedding"],
  features: {
    ...features,
    supports_batch: true,
    supports_embedding: true,
    max_concurrent: 512,
    max_context_length: 8192,
    max_batch_size: 32
  }
}

/**
 * The recipes of the library, by the type of engine. An engine that was installed has the name of its type.
 *
 * @category constants
 * @since 0.1.0
 */
export const recipes: { readonly [T in EngineType]: Recipe } = {
  ollama,
  vllm,
  sglang,
  whisper,
  tts,
  diffusion,
  transformers,
  huggingface,
  video,
  rerank
}

/**
 * A recipe of one's own: a program that serves models in the dialect of OpenAI. What is not given is as for `transformers`, without
 * GPUs, health at `/health`, and a minute to start.
 *
 * **Example** (A script that serves a small model)
 *
 * ```ts
 * const tiny = Recipe.make({
 *   process: {
 *     command: process.execPath,
 *     args: ({ host, port }) => ["server.js", "--host", host, "--port", String(port)],
 *     howToInstall: () => "it comes with the program"
 *   }
 * })
 * ```
 *
 * @category constructors
 * @since 0.1.0
 */
export const make = (
  options: Partial<Recipe> & ({ readonly process: ProcessPart } | { readonly container: ContainerPart })
): Recipe => ({
  ...quick,
  ...openai,
  type: "transformers",
  port: 8080,
  gpu: false,
  healthPath: "/health",
  needsModel: false,
  capabilities: ["chat", "completion"],
  features: transformers.features,
  ...options
})
