/**
 * A bounded queue for handing values from synchronous code to a fiber.
 *
 * `effect/Queue` does the same, through a fiber's scheduler on every offer. A publisher offers on the path of every unit, so this
 * one only touches an array there, and wakes its consumer once per batch. It also knows where in the order items are missing.
 *
 * @since 0.1.0
 */
import * as Effect from "effect/Effect"

/**
 * What a consumer gets at once: how many items are missing before the first of these, and the items. None is missing among them.
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

/** So many items are missing before the one that is the `at`-th to leave the queue. */
interface Gap {
  readonly at: number
  missed: number
}

/** @internal */
export class Ring<A> {
  readonly capacity: number
  /** A circle of slots: the items are in those from `head` on. Their number is a power of two, and grows with the backlog. */
  private slots: Array<A | undefined> = Array.from({ length: 8 })
  private head = 0
  private count = 0
  private left = 0
  /** Items that are missing before the one at the head, or before the next one where there is none. */
  private missed = 0
  /** What is missing further behind, in order. At most one gap per item, so bounded as well. */
  private readonly gaps: Array<Gap> = []
  private readonly waiters = new Set<Waiter<A>>()
  private readonly sleepers = new Set<() => void>()
  private handling = 0
  private ended = false

  /** `capacity` is at least 1. */
  constructor(capacity: number) {
    this.capacity = capacity >= 1 ? Math.floor(capacity) : 1
  }

  /** How many items wait. */
  get size(): number {
    return this.count
  }

  /** How many items wait or are just being handled by `forEach`. */
  get unfinished(): number {
    return this.count + this.handling
  }

  /** Adds an item; where the queue is full, the item is the one that is lost, and the answer `false`. */
  offer(item: A): boolean {
    if (this.ended) return false
    if (this.count >= this.capacity) {
      const at = this.left + this.count
      const last = this.gaps.at(-1)
      if (last?.at === at) last.missed++
      else this.gaps.push({ at, missed: 1 })
      return false
    }
    this.push(item)
    return true
  }

  /** Adds an item; where the queue is full, its oldest is the one that is lost, and the answer `false`. */
  slide(item: A): boolean {
    if (this.ended) return false
    const full = this.count >= this.capacity
    if (full) {
      this.shift()
      this.missed++
    }
    this.push(item)
    return !full
  }

  /**
   * Adds an item as soon as there is room, in the order of the calls. `false` where the queue ended before. Where the wait is
   * interrupted, the item is not added, and `abandoned` called.
   */
  readonly offerWaiting = (item: A, abandoned: () => void): Effect.Effect<boolean> =>
    Effect.callback((resume) => {
      if (this.ended) return resume(Effect.succeed(false))
      // Where there is room nobody waits, as room goes to those who wait as soon as it is there.
      if (this.count < this.capacity) {
        this.push(item)
        return resume(Effect.succeed(true))
      }
      const waiter: Waiter<A> = { item, done: (accepted) => resume(Effect.succeed(accepted)) }
      this.waiters.add(waiter)
      return Effect.sync(() => {
        if (this.waiters.delete(waiter)) abandoned()
      })
    })

  /** Lets consumers have what is left, and nothing more in. */
  end(): void {
    this.ended = true
    for (const waiter of this.waiters) {
      this.waiters.delete(waiter)
      waiter.done(false)
    }
    this.wake()
  }

  /**
   * At most `max` items, as soon as there is one; none where it is only known that items are missing; `undefined` once the queue has
   * ended and is empty.
   */
  readonly take = (max: number): Effect.Effect<Batch<A> | undefined> =>
    Effect.suspend(() =>
      this.count > 0 || this.missed > 0
        ? Effect.succeed(this.batch(max))
        : this.ended
        ? Effect.undefined
        : Effect.flatMap(this.change, () => this.take(max))
    )

  /** Handles the items one after the other, until the queue has ended and is empty. What is being handled leaves room for another. */
  readonly forEach = (handle: (item: A) => Effect.Effect<void>): Effect.Effect<void> =>
    Effect.suspend(() => {
      if (this.count > 0) {
        const handleAll = Effect.whileLoop({
          while: () => this.count > 0,
          body: () => {
            this.handling = 1
            return handle(this.shiftAndAdmit())
          },
          step: () => {
            this.handling = 0
          }
        })
        return Effect.andThen(handleAll, this.forEach(handle))
      }
      return this.ended ? Effect.void : Effect.flatMap(this.change, () => this.forEach(handle))
    })

  /** Succeeds when an item comes, or nothing will come any more. */
  private readonly change: Effect.Effect<void> = Effect.callback((resume) => {
    // Not on the spot: the consumer would run inside of the offer, on the path of a unit.
    const sleeper = (): void => queueMicrotask(() => resume(Effect.void))
    this.sleepers.add(sleeper)
    return Effect.sync(() => void this.sleepers.delete(sleeper))
  })

  private wake(): void {
    for (const sleeper of this.sleepers) sleeper()
    this.sleepers.clear()
  }

  private batch(max: number): Batch<A> {
    const missed = this.missed
    this.missed = 0
    const items: Array<A> = []
    while (items.length < max && this.count > 0 && this.missed === 0) items.push(this.shiftAndAdmit())
    return { missed, items }
  }

  /** Takes the item at the head. There has to be one. */
  private shift(): A {
    // A slot between the head and the end of the queue holds an item.
    const item = this.slots[this.head] as A
    this.slots[this.head] = undefined
    this.left++
    this.count--
    this.head = (this.head + 1) & (this.slots.length - 1)
    const [gap] = this.gaps
    if (gap?.at === this.left) {
      this.missed += gap.missed
      this.gaps.shift()
    }
    return item
  }

  private shiftAndAdmit(): A {
    const item = this.shift()
    const [waiter] = this.waiters
    if (waiter !== undefined) {
      this.waiters.delete(waiter)
      this.push(waiter.item)
      waiter.done(true)
    }
    return item
  }

  private push(item: A): void {
    if (this.count === this.slots.length) {
      const inOrder = [...this.slots.slice(this.head), ...this.slots.slice(0, this.head)]
      this.slots = inOrder.concat(Array.from({ length: inOrder.length }))
      this.head = 0
    }
    this.slots[(this.head + this.count) & (this.slots.length - 1)] = item
    this.count++
    if (this.sleepers.size > 0) this.wake()
  }
}
