import { randomFillSync } from "node:crypto";
import type { Duplex } from "node:stream";
import type { Clock, Millis, Timer } from "#base/time.ts";
import { FlowQueue, type FlowQueueOptions } from "./flow-queue.ts";
import { applyMask } from "./frame-mask.ts";
import { RELAY_MESSAGE_MAX_BYTES } from "./messages.ts";

/*
 * Writes relay messages as WebSocket frames (RFC 6455, 5.2), many per system call.
 *
 *   0             1                      2 or 4        (+4 when masked)
 *   +-------------+----------------------+-------------+----------
 *   | FIN, binary | mask bit, length <126| mask key    | message
 *   |             | or 126, length u16   |             |
 */

/** Bytes handed to the socket at once: what a socket reads at once (64 KiB) fits. */
const BATCH_BYTES = 72 * 1024;
/** With so much waiting a write need not wait for the end of the turn to be worth it. */
const LARGE_QUEUE_BYTES = 32 * 1024;
/** With no more than that waiting, a small buffer of Node's own pool does. */
const SMALL_QUEUE_BYTES = 2048;
const SMALL_BATCH_BYTES = SMALL_QUEUE_BYTES + 512;
const POOL_BUFFERS = 32;
/** Longest header: 2 + 2 + 4. */
const FRAME_HEADER_MAX_BYTES = 8;
const FIN_BINARY = 0x82;

/** Large batch buffers not in use, shared by all writers. */
const pool: Buffer[] = [];

export interface FrameWriterOptions extends FlowQueueOptions {
  /** Clients mask, servers do not. */
  readonly mask: boolean;
  /** A write not accepted by the system within this time calls `stalled`. */
  readonly stallMs: Millis;
}

export interface FrameWriterDeps {
  readonly clock: Clock;
  /** Runs a flush soon, at the latest at the end of this turn of the event loop. */
  readonly schedule: (flush: () => void) => void;
  /** Gets each message back once it is copied into a frame, to use its memory again. */
  readonly written?: (message: Uint8Array) => void;
  /** Called once when the other side takes nothing any more. */
  readonly stalled: () => void;
}

/**
 * The sending half of one connection. Messages queue (FlowQueue) until the end of the turn and leave as one write; while
 * the system does not take more, they queue by the rules of FlowQueue, and nobody waits.
 *
 * Whole frames are written with `socket.write`, so the WebSocket library may write its own control frames in between.
 */
export class FrameWriter {
  readonly #deps: FrameWriterDeps;
  readonly #options: FrameWriterOptions;
  readonly #queue: FlowQueue;
  #socket: Duplex | undefined;
  /** The end of the turn, and that of the present callback. */
  #scheduled = false;
  #scheduledSoon = false;
  /** When the write under way was handed over; undefined when there is none. */
  #writingSince: Millis | undefined;
  #stallCheck: Timer | undefined;
  #ended = false;
  #whenEmpty: (() => void) | undefined;
  #bytesWritten = 0;

  constructor(deps: FrameWriterDeps, options: FrameWriterOptions) {
    this.#deps = deps;
    this.#options = options;
    this.#queue = new FlowQueue(options);
  }

  /** Messages dropped for lack of room or because they got old. */
  get dropped(): number {
    return this.#queue.dropped;
  }

  /** Those of them that told a sender to slow down. */
  get droppedEarly(): number {
    return this.#queue.droppedEarly;
  }

  /** Bytes waiting here; what the socket holds is not counted. */
  get queuedBytes(): number {
    return this.#queue.bytes;
  }

  get bytesWritten(): number {
    return this.#bytesWritten;
  }

  /** Whether a write is under way: a pushed message will wait, and should not hold on to a large buffer. */
  get isBlocked(): boolean {
    return this.#writingSince !== undefined || this.#socket === undefined;
  }

  /** The connection is there; what waits leaves now. */
  open(socket: Duplex): void {
    this.#socket = socket;
    this.flush();
  }

  /** Does not wait for the end of the turn: what waits leaves now, as far as the system takes it. */
  flush(): void {
    if (this.#writingSince !== undefined || !this.#socket) return;
    if (this.#queue.isEmpty) {
      this.#whenEmpty?.();
      return;
    }
    const now = this.#deps.clock.now();
    const large = this.#queue.bytes > SMALL_QUEUE_BYTES;
    const batch = large ? (pool.pop() ?? Buffer.allocUnsafeSlow(BATCH_BYTES)) : Buffer.allocUnsafe(SMALL_BATCH_BYTES);
    const length = this.#fill(batch, now);
    if (length === 0) {
      if (large) giveBack(batch);
      this.#whenEmpty?.();
      return;
    }
    this.#writingSince = now;
    this.#bytesWritten += length;
    this.#socket.write(batch.subarray(0, length), () => {
      if (large) giveBack(batch);
      this.#writingSince = undefined;
      this.flush();
    });
    this.#watchStall();
  }

  /** One of the protocol's own messages. */
  pushOwn(message: Uint8Array): void {
    if (this.#ended) return;
    this.#queue.pushOwn(message);
    this.#schedule();
  }

  /** A Transport that carries a handshake. The message belongs to the writer from now on. */
  pushHandshake(message: Uint8Array): void {
    if (this.#ended) return;
    this.#queue.pushHandshake(message);
    this.#schedule();
  }

  /** A Transport that carries data. The message belongs to the writer from now on. */
  pushData(source: unknown, message: Uint8Array): void {
    if (this.#ended) return;
    this.#queue.pushData(source, message, this.#deps.clock.now());
    this.#schedule();
  }

  /** Takes nothing more; resolves when what waits was handed to the system, or the writer was destroyed. */
  drain(): Promise<void> {
    this.#ended = true;
    return new Promise((resolve) => {
      this.#whenEmpty = resolve;
      this.flush();
    });
  }

  /** Forgets everything; the socket is the caller's. */
  destroy(): void {
    this.#ended = true;
    this.#queue.clear();
    this.#socket = undefined;
    this.#stallCheck?.cancel();
    this.#whenEmpty?.();
  }

  #schedule(): void {
    if (!this.#scheduled) {
      this.#scheduled = true;
      this.#deps.schedule(this.#onTurnEnd);
    }
    if (this.#scheduledSoon || this.isBlocked || this.#queue.bytes < LARGE_QUEUE_BYTES) return;
    this.#scheduledSoon = true;
    process.nextTick(this.#onSoon);
  }

  readonly #onTurnEnd = (): void => {
    this.#scheduled = false;
    this.#queue.endTurn();
    this.flush();
  };

  readonly #onSoon = (): void => {
    this.#scheduledSoon = false;
    this.flush();
  };

  /** Fills `batch` with frames and returns their length. */
  #fill(batch: Buffer, now: Millis): number {
    const { mask } = this.#options;
    let at = 0;
    // The next message is only known when taken; it is no longer than any may be, and no longer than all that waits.
    while (batch.length - at >= FRAME_HEADER_MAX_BYTES + Math.min(this.#queue.bytes, RELAY_MESSAGE_MAX_BYTES)) {
      const message = this.#queue.take(now);
      if (!message) break;
      const { length } = message;
      batch[at++] = FIN_BINARY;
      if (length < 126) {
        batch[at++] = (mask ? 0x80 : 0) | length;
      } else {
        batch[at++] = (mask ? 0x80 : 0) | 126;
        batch[at++] = length >> 8;
        batch[at++] = length & 0xff;
      }
      if (mask) {
        at += writeMasked(batch, at, message);
      } else {
        batch.set(message, at);
        at += length;
      }
      this.#deps.written?.(message);
    }
    return at;
  }

  /** One timer while writes do not return at once, not one per write. */
  #watchStall(): void {
    if (this.#stallCheck) return;
    const { stallMs } = this.#options;
    const check = (): void => {
      this.#stallCheck = undefined;
      if (this.#writingSince === undefined || !this.#socket) return;
      const left = stallMs - (this.#deps.clock.now() - this.#writingSince);
      if (left <= 0) this.#deps.stalled();
      else this.#stallCheck = this.#deps.clock.after(left, check);
    };
    this.#stallCheck = this.#deps.clock.after(stallMs, check);
  }
}

function giveBack(batch: Buffer): void {
  if (pool.length < POOL_BUFFERS) pool.push(batch);
}

const maskPool = Buffer.alloc(4096);
let maskAt = maskPool.length;

/** Writes a fresh mask key and the masked message; returns the bytes written. */
function writeMasked(batch: Buffer, at: number, message: Uint8Array): number {
  if (maskAt === maskPool.length) {
    randomFillSync(maskPool);
    maskAt = 0;
  }
  const a = maskPool[maskAt]!;
  const b = maskPool[maskAt + 1]!;
  const c = maskPool[maskAt + 2]!;
  const d = maskPool[maskAt + 3]!;
  maskAt += 4;
  batch[at] = a;
  batch[at + 1] = b;
  batch[at + 2] = c;
  batch[at + 3] = d;
  const to = at + 4;
  const end = to + message.length;
  batch.set(message, to);
  applyMask(batch, to, end, [a, b, c, d]);
  return 4 + message.length;
}
