/**
 * Language models run inside of this process by llama.cpp, through `node-llama-cpp`, an optional package that an application installs.
 *
 * A model is a GGUF file. It is loaded when it is first used, is shared by all requests, and leaves memory when it has been idle for a
 * while. Requests beyond `parallel` wait their turn. Interrupting one stops its generation within a token; nothing else is disturbed.
 *
 * @since 0.1.0
 */
import * as Context from "effect/Context"
import type * as Duration from "effect/Duration"
import * as Effect from "effect/Effect"
import * as Layer from "effect/Layer"
import * as Queue from "effect/Queue"
import * as RcMap from "effect/RcMap"
import * as Schema from "effect/Schema"
import type * as Scope from "effect/Scope"
import * as Semaphore from "effect/Semaphore"
import * as Stream from "effect/Stream"
import type * as Cpp from "node-llama-cpp"
import * as os from "node:os"

/**
 * `node-llama-cpp` is not installed, or has no binary for this machine. A retry does not help.
 *
 * @category errors
 * @since 0.1.0
 */
export class NotInstalled
  extends Schema.TaggedError<NotInstalled>("effect-units/LlamaCpp/NotInstalled")("NotInstalled", {
    cause: Schema.Defect()
  })
{
  override get message(): string {
    return "node-llama-cpp cannot be loaded. Run `npm install node-llama-cpp`, which has binaries for most machines"
  }
}

/**
 * A file that cannot be loaded as a model, or not into the memory there is. A retry does not help before something else has changed.
 *
 * @category errors
 * @since 0.1.0
 */
export class NotLoadable extends Schema.TaggedError<NotLoadable>("effect-units/LlamaCpp/NotLoadable")("NotLoadable", {
  path: Schema.String,
  cause: Schema.Defect()
}) {
  override get message(): string {
    const why = this.cause instanceof Error ? this.cause.message : String(this.cause)
    return `${this.path} cannot be loaded: ${why}. Give it a GGUF file of a language model that fits into memory`
  }
}

/**
 * The prompt leaves no room in the context for an answer. A retry with a shorter one can help.
 *
 * @category errors
 * @since 0.1.0
 */
export class PromptTooLong extends Schema.TaggedError<PromptTooLong>("effect-units/LlamaCpp/PromptTooLong")(
  "PromptTooLong",
  { tokens: Schema.Int, context_length: Schema.Int }
) {
  override get message(): string {
    return `the prompt has ${this.tokens} tokens, and the context of the model ${this.context_length}. Shorten the prompt, or give ` +
      "the engine a larger contextSize"
  }
}

/**
 * llama.cpp failed while it evaluated a request. A retry can help.
 *
 * @category errors
 * @since 0.1.0
 */
export class EvaluationFailed
  extends Schema.TaggedError<EvaluationFailed>("effect-units/LlamaCpp/EvaluationFailed")("EvaluationFailed", {
    cause: Schema.Defect()
  })
{
  override get message(): string {
    return `llama.cpp failed: ${
      this.cause instanceof Error ? this.cause.message : String(this.cause)
    }. A retry can help`
  }
}

/**
 * A request was not served; `reason` says why.
 *
 * @category errors
 * @since 0.1.0
 */
export class LlamaCppError
  extends Schema.TaggedError<LlamaCppError>("effect-units/LlamaCpp/LlamaCppError")("LlamaCppError", {
    reason: Schema.Union([NotInstalled, NotLoadable, PromptTooLong, EvaluationFailed])
  })
{
  override get message(): string {
    return `The embedded engine: ${this.reason.message}`
  }

  /** Whether the same request can succeed without anything else being changed. */
  get retryable(): boolean {
    return this.reason._tag === "EvaluationFailed"
  }
}

/**
 * Settings of the Layer.
 *
 * @category models
 * @since 0.1.0
 */
export interface Options {
  /** Where to compute: `auto` takes a GPU where one and a binary for it is there. Default `auto`; `false` is the processor alone. */
  readonly gpu?: "auto" | "metal" | "cuda" | "vulkan" | false | undefined
  /** Threads per evaluation. Default: half of what the machine has, at least 1, as more spin against each other on a busy machine. */
  readonly threads?: number | undefined
  /** Tokens of a prompt and its answer together, at most. Default: the model's own length, at most 4096. */
  readonly contextSize?: number | undefined
  /** How many requests a model serves at a time; each takes memory of its own. Default 1. */
  readonly parallel?: number | undefined
  /** How long a model that nobody uses stays in memory. Default 5 minutes. */
  readonly idleTimeToLive?: Duration.Input | undefined
}

/**
 * How to choose the next token. What is missing is left to llama.cpp.
 *
 * @category models
 * @since 0.1.0
 */
export interface Sampling {
  /** 0 always takes the likeliest token. */
  readonly temperature?: number | undefined
  /** Default: as many as there is room for in the context. */
  readonly max_tokens?: number | undefined
  readonly top_p?: number | undefined
  readonly top_k?: number | undefined
  readonly frequency_penalty?: number | undefined
  readonly presence_penalty?: number | undefined
  /** Texts that end the answer, and are not part of it. */
  readonly stop?: ReadonlyArray<string> | undefined
  readonly seed?: number | undefined
}

/**
 * A turn of a conversation.
 *
 * @category models
 * @since 0.1.0
 */
export interface Message {
  readonly role: "system" | "user" | "assistant"
  readonly content: string
}

/**
 * A part of an answer: text as it comes, and at the end why it ended and what it took, in tokens.
 *
 * @category models
 * @since 0.1.0
 */
export type Piece =
  | { readonly type: "text"; readonly text: string }
  | {
    readonly type: "end"
    readonly finish_reason: "stop" | "length"
    readonly prompt_tokens: number
    readonly completion_tokens: number
  }

/**
 * Vectors in the order of the texts, all of one length, and how many tokens the texts have.
 *
 * @category models
 * @since 0.1.0
 */
export interface Embeddings {
  readonly embeddings: ReadonlyArray<ReadonlyArray<number>>
  readonly prompt_tokens: number
}

/**
 * What a loaded model is like.
 *
 * @category models
 * @since 0.1.0
 */
export interface Loaded {
  /** Tokens of prompt and answer together. */
  readonly context_length: number
  /** The length of its embeddings. */
  readonly embedding_length: number
  /** `general.architecture` of the file. */
  readonly architecture: string
  /** `general.name` of the file. */
  readonly name: string | undefined
}

/**
 * The engine. Models go by the absolute paths of their files.
 *
 * @category services
 * @since 0.1.0
 */
export class LlamaCpp extends Context.Service<LlamaCpp, {
  /** Answers a conversation, with the chat template of the model. */
  readonly chat: (
    path: string,
    messages: ReadonlyArray<Message>,
    sampling?: Sampling
  ) => Stream.Stream<Piece, LlamaCppError>
  /** Goes on with a text, which no template touches. */
  readonly complete: (path: string, prompt: string, sampling?: Sampling) => Stream.Stream<Piece, LlamaCppError>
  readonly embed: (path: string, texts: ReadonlyArray<string>) => Effect.Effect<Embeddings, LlamaCppError>
  /** Loads a model, where it is not loaded yet. */
  readonly load: (path: string) => Effect.Effect<Loaded, LlamaCppError>
}>()("effect-units/LlamaCpp") {}

const failed = (cause: unknown): LlamaCppError => new LlamaCppError({ reason: new EvaluationFailed({ cause }) })

const attempt = <A>(run: () => Promise<A>): Effect.Effect<A, LlamaCppError> =>
  Effect.tryPromise({ try: run, catch: failed })

/** Something of llama.cpp's that has to be given back, whatever becomes of who uses it. */
const disposable = <A extends { readonly dispose: () => Promise<void> }, E>(
  acquire: Effect.Effect<A, E>
): Effect.Effect<A, E, Scope.Scope> =>
  Effect.acquireRelease(acquire, (acquired) => Effect.promise(() => acquired.dispose()))

/** A model in memory. */
interface Resident {
  readonly library: typeof Cpp
  readonly model: Cpp.LlamaModel
  readonly contextSize: number
  /** Those that nobody uses. There are as many as the semaphore has permits. */
  readonly sequences: Array<Cpp.LlamaContextSequence>
  readonly free: Semaphore.Semaphore
  /** Made when first needed. */
  readonly embedding: Effect.Effect<Cpp.LlamaEmbeddingContext, LlamaCppError>
}

const samplingOf = (sampling: Sampling) => ({
  ...(sampling.temperature === undefined ? {} : { temperature: sampling.temperature }),
  ...(sampling.top_p === undefined ? {} : { topP: sampling.top_p }),
  ...(sampling.top_k === undefined ? {} : { topK: sampling.top_k }),
  ...(sampling.seed === undefined ? {} : { seed: sampling.seed }),
  ...(sampling.stop === undefined ? {} : { customStopTriggers: sampling.stop }),
  // The penalty that it has by default is none that callers know of.
  repeatPenalty: sampling.frequency_penalty === undefined && sampling.presence_penalty === undefined
    ? false as const
    : {
      penalty: 1,
      frequencyPenalty: sampling.frequency_penalty ?? 0,
      presencePenalty: sampling.presence_penalty ?? 0
    }
})

/** How a generation reports, and how it is stopped. */
interface Reporting {
  readonly signal: AbortSignal
  readonly stopOnAbortSignal: true
  readonly maxTokens: number
  readonly onTextChunk: (text: string) => void
}

interface Generation {
  readonly promptTokens: number
  readonly run: (reporting: Reporting) => Promise<{ readonly metadata: { readonly stopReason: string } }>
  readonly dispose: () => void
}

const generate = (
  { contextSize, free, sequences }: Resident,
  sampling: Sampling,
  start: (sequence: Cpp.LlamaContextSequence) => Generation
): Stream.Stream<Piece, LlamaCppError> =>
  Stream.callback<Piece, LlamaCppError>(Effect.fnUntraced(function*(queue) {
    yield* Effect.acquireRelease(Semaphore.take(free, 1), () => Semaphore.release(free, 1))
    const sequence = yield* Effect.acquireRelease(
      // There is one for each permit.
      Effect.sync(() => sequences.pop()!),
      (sequence) => Effect.sync(() => void sequences.push(sequence))
    )
    yield* attempt(() => sequence.clearHistory())
    const generation = yield* Effect.acquireRelease(
      Effect.try({ try: () => start(sequence), catch: failed }),
      ({ dispose }) => Effect.sync(dispose)
    )
    const { promptTokens, run } = generation
    const room = contextSize - promptTokens
    if (room <= 0) {
      return yield* new LlamaCppError({
        reason: new PromptTooLong({ tokens: promptTokens, context_length: contextSize })
      })
    }
    const { usedOutputTokens: before } = sequence.tokenMeter
    let running: ReturnType<Generation["run"]> | undefined
    // The sequence is free for others only when llama.cpp has let go of it, which the signal after this tells it to.
    yield* Effect.addFinalizer(() => Effect.promise(() => Promise.allSettled([running])))
    const signal = yield* Effect.abortSignal
    const { metadata } = yield* attempt(() =>
      running = run({
        signal,
        stopOnAbortSignal: true,
        maxTokens: Math.min(sampling.max_tokens ?? room, room),
        onTextChunk: (text) => {
          if (text !== "") Queue.offerUnsafe(queue, { type: "text", text })
        }
      })
    )
    Queue.offerUnsafe(queue, {
      type: "end",
      finish_reason: metadata.stopReason === "maxTokens" ? "length" : "stop",
      prompt_tokens: promptTokens,
      completion_tokens: sequence.tokenMeter.usedOutputTokens - before
    })
    Queue.endUnsafe(queue)
  }))

const historyOf = (messages: ReadonlyArray<Message>): Array<Cpp.ChatHistoryItem> =>
  messages.map(({ content, role }) =>
    role === "assistant" ? { type: "model", response: [content] } : { type: role, text: content }
  )

/**
 * Makes the engine; its models leave memory with the scope.
 *
 * @category constructors
 * @since 0.1.0
 */
export const make = Effect.fnUntraced(
  function*(options: Options = {}): Effect.fn.Return<LlamaCpp["Service"], never, Scope.Scope> {
    const context = yield* Effect.context<never>()
    const threads = options.threads ?? Math.max(1, os.availableParallelism() >> 1)
    const notInstalled = (cause: unknown) => new LlamaCppError({ reason: new NotInstalled({ cause }) })
    const start = Effect.gen(function*() {
      const library = yield* Effect.tryPromise({ try: () => import("node-llama-cpp"), catch: notInstalled })
      // Never given back: it holds next to nothing, the library does so when the process ends, and with several of them in a process
      // giving one back can hang.
      const llama = yield* Effect.tryPromise({
        try: () =>
          library.getLlama({
            gpu: options.gpu ?? "auto",
            // Nothing is compiled or fetched behind an application's back.
            build: "never",
            skipDownload: true,
            maxThreads: threads,
            logger: (level, message) => {
              Effect.logDebug(`llama.cpp, ${level}: ${message.trim()}`).pipe(Effect.runForkWith(context))
            }
          }),
        catch: notInstalled
      })
      return { library, llama }
    })
    const engine = yield* Effect.cached(Effect.uninterruptible(start))

    const load = Effect.fnUntraced(
      function*(path: string): Effect.fn.Return<Resident, LlamaCppError, Scope.Scope> {
        const { library, llama } = yield* engine
        const loadable = <A>(run: () => Promise<A>) =>
          Effect.tryPromise({
            try: run,
            catch: (cause) => new LlamaCppError({ reason: new NotLoadable({ path, cause }) })
          })
        const model = yield* disposable(loadable(() => llama.loadModel({ modelPath: path })))
        const contextSize = Math.min(options.contextSize ?? 4096, model.trainContextSize)
        const parallel = Math.max(1, options.parallel ?? 1)
        const evaluator = yield* disposable(
          loadable(() => model.createContext({ contextSize, sequences: parallel, threads: { ideal: threads, min: 1 } }))
        )
        // It goes with the model.
        const embedding = yield* Effect.cached(
          Effect.uninterruptible(loadable(() => model.createEmbeddingContext({ contextSize, threads })))
        )
        return {
          library,
          model,
          contextSize,
          sequences: Array.from({ length: parallel }, () => evaluator.getSequence()),
          free: Semaphore.makeUnsafe(parallel),
          embedding
        }
      }
    )
    const models = yield* RcMap.make({
      lookup: load,
      idleTimeToLive: options.idleTimeToLive ?? "5 minutes"
    })
    // What could not be loaded is tried again by the next request.
    const resident = (path: string) => Effect.tapError(RcMap.get(models, path), () => RcMap.invalidate(models, path))
    const use = <A>(path: string, stream: (resident: Resident) => Stream.Stream<A, LlamaCppError>) =>
      Stream.unwrap(Effect.map(resident(path), stream))

    return LlamaCpp.of({
      chat: (path, messages, sampling = {}) =>
        use(path, (resident) =>
          generate(resident, sampling, (contextSequence) => {
            const chat = new resident.library.LlamaChat({ contextSequence, autoDisposeSequence: false })
            const history = historyOf(messages)
            const { contextText } = chat.chatWrapper.generateContextState({ chatHistory: history })
            return {
              promptTokens: contextText.tokenize(resident.model.tokenizer).length,
              run: (reporting) => chat.generateResponse(history, { ...samplingOf(sampling), ...reporting }),
              dispose: () => chat.dispose()
            }
          })),
      complete: (path, prompt, sampling = {}) =>
        use(path, (resident) =>
          generate(resident, sampling, (contextSequence) => {
            const completion = new resident.library.LlamaCompletion({ contextSequence, autoDisposeSequence: false })
            const tokens = resident.model.tokenize(prompt)
            return {
              promptTokens: tokens.length,
              run: (reporting) =>
                completion.generateCompletionWithMeta(tokens, { ...samplingOf(sampling), ...reporting }),
              dispose: () => completion.dispose()
            }
          })),
      embed: (path, texts) =>
        Effect.scoped(Effect.gen(function*() {
          const { contextSize, embedding } = yield* resident(path)
          const evaluator = yield* embedding
          let prompt_tokens = 0
          const embeddings: Array<ReadonlyArray<number>> = []
          for (const text of texts) {
            const tokens = evaluator.calculateInputLength(text)
            if (tokens > contextSize) {
              return yield* new LlamaCppError({ reason: new PromptTooLong({ tokens, context_length: contextSize }) })
            }
            prompt_tokens += tokens
            // llama.cpp cannot be stopped within a text.
            const { vector } = yield* Effect.uninterruptible(attempt(() => evaluator.getEmbeddingFor(text)))
            embeddings.push(vector)
          }
          return { embeddings, prompt_tokens }
        })),
      load: (path) =>
        Effect.scoped(Effect.map(resident(path), ({ contextSize, model }) => ({
          context_length: contextSize,
          embedding_length: model.embeddingVectorSize,
          architecture: model.fileInfo.metadata.general.architecture,
          name: model.fileInfo.metadata.general.name
        })))
    })
  }
)

/**
 * Layer of the engine. `node-llama-cpp` is loaded with the first model; where it is missing, requests fail with `NotInstalled`.
 *
 * @category layers
 * @since 0.1.0
 */
export const layer = (options?: Options): Layer.Layer<LlamaCpp> => Layer.effect(LlamaCpp, make(options))
