import type { Millis } from "#base/time.ts";
import { LONG_BURST_BYTES, QueueControl } from "./queue-control.ts";

/** Share a source gets per round, bytes: one full WireGuard packet as a relay message. */
const QUANTUM_BYTES = 1500;

export interface FlowQueueOptions {
  /** Bytes of data waiting; above it the oldest message of the longest flow is dropped. */
  readonly maxBytes: number;
  /** Data that waited longer is dropped when its turn comes. */
  readonly maxAgeMs: Millis;
  /** Bytes of handshakes waiting; above it the oldest is dropped. */
  readonly maxHandshakeBytes: number;
  /** Shared with other queues; default none. */
  readonly budget?: QueueBudget;
}

/**
 * Room that many queues share. Each may hold as much as is still free (dynamic thresholds: Choudhury and Hahn, 1998), so what
 * waits never exceeds the limit, a few slow receivers leave room for others, and many get equal parts.
 */
export class QueueBudget {
  readonly maxBytes: number;
  /** Waiting in all queues. */
  bytes = 0;
  /** Messages dropped because of this limit, not of that of their own queue. */
  dropped = 0;

  constructor(maxBytes: number) {
    this.maxBytes = maxBytes;
  }

  get free(): number {
    return this.maxBytes - this.bytes;
  }
}

/**
 * What waits for one connection, in three classes: the protocol's own messages (never dropped, few), WireGuard handshakes,
 * data. Data is taken by deficit round robin over its sources, so that one of them cannot starve the others.
 *
 *   own ────────────────────────────────┐
 *   handshakes (drop oldest) ───────────┤ take() in this order
 *   data  source A ──┐                  │
 *         source B ──┴─ round robin ────┘  (drop oldest of the longest)
 */
export class FlowQueue {
  readonly #options: FlowQueueOptions;
  readonly #own = new Fifo();
  readonly #handshakes = new Fifo();
  readonly #flows = new Map<unknown, Flow>();
  /** Flows with something waiting; the first is next. */
  readonly #round: Flow[] = [];
  readonly #control = new QueueControl();
  /** Bytes of data that came in this turn, also of those that left already. */
  readonly #turnBytes = new Map<unknown, number>();
  #dataBytes = 0;
  #dropped = 0;
  #droppedEarly = 0;

  constructor(options: FlowQueueOptions) {
    this.#options = options;
  }

  get isEmpty(): boolean {
    return this.#own.length === 0 && this.#handshakes.length === 0 && this.#round.length === 0;
  }

  /** Bytes waiting in all classes. */
  get bytes(): number {
    return this.#own.bytes + this.#handshakes.bytes + this.#dataBytes;
  }

  /** Handshakes and data dropped so far. */
  get dropped(): number {
    return this.#dropped;
  }

  /** Those of them that told a sender to slow down. */
  get droppedEarly(): number {
    return this.#droppedEarly;
  }

  pushOwn(message: Uint8Array): void {
    this.#own.push({ message, at: 0 });
  }

  pushHandshake(message: Uint8Array): void {
    this.#handshakes.push({ message, at: 0 });
    this.#account(message.length);
    while (this.#handshakes.bytes > this.#room(this.#options.maxHandshakeBytes)) {
      this.#noteDropped(this.#handshakes.bytes > this.#options.maxHandshakeBytes);
      this.#account(-(this.#handshakes.shift()?.message.length ?? 0));
    }
  }

  /** `source` is compared by identity. */
  pushData(source: unknown, message: Uint8Array, now: Millis): void {
    let flow = this.#flows.get(source);
    const turnBytes = (this.#turnBytes.get(source) ?? 0) + message.length;
    this.#turnBytes.set(source, turnBytes);
    this.#control.noteBurst(turnBytes, now);
    // A source with little of its own waiting is not who fills the queue.
    const isFilling = turnBytes > LONG_BURST_BYTES / 2 || (flow && flow.fifo.bytes > 2 * QUANTUM_BYTES);
    if (isFilling && this.#control.decideDrop(message.length, now)) {
      this.#dropped++;
      this.#droppedEarly++;
      return;
    }
    if (!flow) {
      flow = { source, fifo: new Fifo(), deficit: 0 };
      this.#flows.set(source, flow);
      this.#round.push(flow);
    }
    flow.fifo.push({ message, at: now });
    this.#dataBytes += message.length;
    this.#account(message.length);
    while (this.#dataBytes > this.#room(this.#options.maxBytes)) {
      this.#noteDropped(this.#dataBytes > this.#options.maxBytes);
      this.#dropOldest();
    }
  }

  /** What comes from now on does not come together with what came before. */
  endTurn(): void {
    this.#turnBytes.clear();
  }

  /** The next message, undefined when nothing (fresh enough) waits. */
  take(now: Millis): Uint8Array | undefined {
    const own = this.#own.shift();
    if (own) return own.message;
    const handshake = this.#handshakes.shift();
    if (handshake) {
      this.#account(-handshake.message.length);
      return handshake.message;
    }
    for (;;) {
      const flow = this.#round[0];
      if (!flow) return undefined;
      const head = flow.fifo.peek();
      if (!head) {
        this.#round.shift();
        this.#flows.delete(flow.source);
        continue;
      }
      if (now - head.at > this.#options.maxAgeMs) {
        this.#dropped++;
        this.#shift(flow);
        continue;
      }
      if (this.#round.length === 1) {
        // Alone there is nothing to share; a debt from now would be unfair to this flow later.
        flow.deficit = 0;
      } else if (flow.deficit >= head.message.length) {
        flow.deficit -= head.message.length;
      } else {
        this.#round.shift();
        this.#round.push(flow);
        flow.deficit += QUANTUM_BYTES;
        continue;
      }
      this.#shift(flow);
      this.#control.noteWait(now - head.at, now);
      return head.message;
    }
  }

  /** Forgets everything. */
  clear(): void {
    this.#account(-this.#handshakes.bytes - this.#dataBytes);
    this.#own.clear();
    this.#handshakes.clear();
    this.#flows.clear();
    this.#turnBytes.clear();
    this.#round.length = 0;
    this.#dataBytes = 0;
  }

  #dropOldest(): void {
    let longest: Flow | undefined;
    for (const flow of this.#round) if (!longest || flow.fifo.bytes > longest.fifo.bytes) longest = flow;
    if (longest) this.#shift(longest);
  }

  /** Bytes that a class with this limit of its own may hold now, of which it holds some already. */
  #room(own: number): number {
    const { budget } = this.#options;
    return budget ? Math.min(own, Math.max(0, budget.free)) : own;
  }

  #account(bytes: number): void {
    if (this.#options.budget) this.#options.budget.bytes += bytes;
  }

  #noteDropped(ownLimit: boolean): void {
    this.#dropped++;
    if (!ownLimit && this.#options.budget) this.#options.budget.dropped++;
  }

  #shift(flow: Flow): void {
    const item = flow.fifo.shift();
    if (!item) return;
    this.#dataBytes -= item.message.length;
    this.#account(-item.message.length);
  }
}

interface Item {
  readonly message: Uint8Array;
  readonly at: Millis;
}

interface Flow {
  readonly source: unknown;
  readonly fifo: Fifo;
  /** Bytes this flow may still send before the others have a turn. */
  deficit: number;
}

/** Array with a moving head; what was taken is given back in large pieces. */
class Fifo {
  #items: (Item | undefined)[] = [];
  #head = 0;
  bytes = 0;

  get length(): number {
    return this.#items.length - this.#head;
  }

  push(item: Item): void {
    this.#items.push(item);
    this.bytes += item.message.length;
  }

  peek(): Item | undefined {
    return this.#items[this.#head];
  }

  shift(): Item | undefined {
    const item = this.#items[this.#head];
    if (!item) return undefined;
    this.#items[this.#head++] = undefined;
    this.bytes -= item.message.length;
    if (this.#head === this.#items.length) {
      this.#items.length = 0;
      this.#head = 0;
    } else if (this.#head >= 1024) {
      this.#items = this.#items.slice(this.#head);
      this.#head = 0;
    }
    return item;
  }

  clear(): void {
    this.#items = [];
    this.#head = 0;
    this.bytes = 0;
  }
}
