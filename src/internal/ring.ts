/**
 * A bounded queue with one consumer, for handing values from synchronous code to a fiber.
 *
 * `effect/Queue` does the same, through a fiber's scheduler on every offer. A publisher offers on the path of every unit, so this
 * one only touches an array there, and wakes its consumer once per batch.
 *
 * @since 0.1.0
 */
import * as Effect from "effect/Effect"

/**
 * What the consumer gets: the items, and how many are missing before the first of them.
 *
 * @internal
 */
export interface Batch<A> {
  readonly missed: number
  readonly items: ReadonlyArray<A>
}

interface Waiter<A> {
  readonly item: A
  readonly done: (accepted: boolean) => void
}

/** @internal */
export class Ring<A> {
  readonly capacity: number
  private items: Array<A> = []
  private head = 0
  private missedBefore = 0
  private missedAfter = 0
  private waiters: Array<Waiter<A>> = []
  private wake: (() => void) | undefined
  private ended = false

  constructor(capacity: number) {
    this.capacity = Math.max(1, capacity)
  }

  get size(): number {
    return this.items.length - this.head
  }

  /** Adds an item; where the queue is full, the item is the one that is lost, and the answer `false`. */
  offer(item: A): boolean {
    if (this.ended) return false
    if (this.size >= this.capacity) {
      this.missedAfter++
      return false
    }
    this.push(item)
    return true
  }

  /** Adds an item; where the queue is full, its oldest is the one that is lost, and the answer `false`. */
  slide(item: A): boolean {
    if (this.ended) return false
    const full = this.size >= this.capacity
    if (full) {
      this.head++
      this.missedBefore++
      if (this.head > this.capacity) this.compact()
    }
    this.push(item)
    return !full
  }

  /** Adds an item as soon as there is room, in the order of the calls. `false` where the queue ended before. */
  readonly offerWaiting = (item: A): Effect.Effect<boolean> =>
    Effect.callback((resume) => {
      if (this.ended) return resume(Effect.succeed(false))
      if (this.size < this.capacity && this.waiters.length === 0) {
        this.push(item)
        return resume(Effect.succeed(true))
      }
      const waiter: Waiter<A> = { item, done: (accepted) => resume(Effect.succeed(accepted)) }
      this.waiters.push(waiter)
      return Effect.sync(() => {
        this.waiters = this.waiters.filter((other) => other !== waiter)
      })
    })

  /** Lets the consumer have what is left, and nothing more in. */
  end(): void {
    this.ended = true
    const waiters = this.waiters
    this.waiters = []
    for (const waiter of waiters) waiter.done(false)
    this.signal()
  }

  /** At most `max` items, as soon as there is one; `undefined` once the queue has ended and is empty. */
  readonly take = (max: number): Effect.Effect<Batch<A> | undefined> =>
    Effect.callback((resume) => {
      const deliver = (): void => {
        if (this.size > 0) resume(Effect.succeed(this.batch(max)))
        else if (this.ended) resume(Effect.undefined)
      }
      if (this.size > 0 || this.ended) return deliver()
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

  private batch(max: number): Batch<A> {
    const items = this.items.slice(this.head, this.head + max)
    const missed = this.missedBefore
    this.head += items.length
    this.missedBefore = 0
    if (this.head === this.items.length) {
      this.items = []
      this.head = 0
      // What was lost for want of room came after all of these, and before whatever comes next.
      this.missedBefore = this.missedAfter
      this.missedAfter = 0
    }
    this.admit()
    return { items, missed }
  }

  private admit(): void {
    while (this.waiters.length > 0 && this.size < this.capacity) {
      // In bounds by the condition.
      const waiter = this.waiters.shift()!
      this.push(waiter.item)
      waiter.done(true)
    }
  }

  private push(item: A): void {
    this.items.push(item)
    this.signal()
  }

  private compact(): void {
    this.items = this.items.slice(this.head)
    this.head = 0
  }

  private signal(): void {
    if (this.wake !== undefined) this.wake()
  }
}
