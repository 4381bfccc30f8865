import type { Millis } from "#base/time.ts";

/** Share a source gets per round, bytes: one full WireGuard packet as a relay message. */
const QUANTUM_BYTES = 1500;

export interface FlowQueueOptions {
  /** Bytes of data waiting; above it the oldest message of the longest flow is dropped. */
  readonly maxBytes: number;
  /** Data that waited longer is dropped when its turn comes. */
  readonly maxAgeMs: Millis;
  /** Bytes of handshakes waiting; above it the oldest is dropped. */
  readonly maxHandshakeBytes: number;
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
  #dataBytes = 0;
  #dropped = 0;

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

  pushOwn(message: Uint8Array): void {
    this.#own.push({ message, at: 0 });
  }

  pushHandshake(message: Uint8Array): void {
    this.#handshakes.push({ message, at: 0 });
    while (this.#handshakes.bytes > this.#options.maxHandshakeBytes) {
      this.#handshakes.shift();
      this.#dropped++;
    }
  }

  /** `source` is compared by identity. */
  pushData(source: unknown, message: Uint8Array, now: Millis): void {
    let flow = this.#flows.get(source);
    if (!flow) {
      flow = { source, fifo: new Fifo(), deficit: 0 };
      this.#flows.set(source, flow);
      this.#round.push(flow);
    }
    flow.fifo.push({ message, at: now });
    this.#dataBytes += message.length;
    while (this.#dataBytes > this.#options.maxBytes) this.#dropOldest();
  }

  /** The next message, undefined when nothing (fresh enough) waits. */
  take(now: Millis): Uint8Array | undefined {
    const first = this.#own.shift() ?? this.#handshakes.shift();
    if (first) return first.message;
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
      return head.message;
    }
  }

  /** Forgets everything. */
  clear(): void {
    this.#own.clear();
    this.#handshakes.clear();
    this.#flows.clear();
    this.#round.length = 0;
    this.#dataBytes = 0;
  }

  #dropOldest(): void {
    let longest: Flow | undefined;
    for (const flow of this.#round) if (!longest || flow.fifo.bytes > longest.fifo.bytes) longest = flow;
    if (!longest) return;
    this.#shift(longest);
    this.#dropped++;
  }

  #shift(flow: Flow): void {
    const item = flow.fifo.shift();
    if (item) this.#dataBytes -= item.message.length;
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
