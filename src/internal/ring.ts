/**
 * A bounded queue with one consumer, for handing values from synchronous code to a fiber.
 *
 * `effect/Queue` does the same through a fiber's scheduler on every offer; a publisher offers on the path of every unit, so
 * this one only touches an array there, and wakes its consumer once per batch.
 *
 * @since 0.1.0
 */
import * as Effect from "effect/Effect"

/** @internal */
export class Ring<A> {
  readonly capacity: number
  private items: Array<A> = []
  private wake: (() => void) | undefined
  private ended = false

  constructor(capacity: number) {
    this.capacity = capacity
  }

  get size(): number {
    return this.items.length
  }

  /** False where the queue is full. */
  offer(item: A): boolean {
    if (this.items.length >= this.capacity) return false
    this.items.push(item)
    this.signal()
    return true
  }

  /** Lets the consumer have what is left, and no more. */
  end(): void {
    this.ended = true
    this.signal()
  }

  /** All that is there, as soon as there is anything; `undefined` once the queue has ended and is empty. */
  readonly take: Effect.Effect<ReadonlyArray<A> | undefined> = Effect.callback((resume) => {
    const deliver = (): void => {
      if (this.items.length > 0) {
        const batch = this.items
        this.items = []
        resume(Effect.succeed(batch))
      } else if (this.ended) {
        resume(Effect.undefined)
      }
    }
    if (this.items.length > 0 || this.ended) return deliver()
    let waiting = true
    this.wake = () => {
      this.wake = undefined
      // Not on the spot: the consumer would run inside of the offer, on the path of a unit.
      queueMicrotask(() => {
        if (waiting) deliver()
      })
    }
    return Effect.sync(() => {
      waiting = false
      this.wake = undefined
    })
  })

  private signal(): void {
    if (this.wake !== undefined) this.wake()
  }
}
