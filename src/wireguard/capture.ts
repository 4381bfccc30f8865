import type { PublicKey } from "#base/keys.ts";
import type { Clock, Timer } from "#base/time.ts";
import { DeviceError } from "./device-error.ts";
import { encodePcapngCounters, encodePcapngHeader, encodePcapngPacket } from "./pcapng.ts";
import type { Plane } from "./plane.ts";
import { Captured, RecordField } from "./worker/records.ts";
import { Ring } from "./worker/ring.ts";

/** Longest packet there is: an IPv6 one with 65,535 bytes behind its header. */
export const SNAP_LENGTH_MAX = 65_575;
/** Room for what a reader has not taken; beyond it packets are dropped and counted. */
const RING_BYTES = 4 << 20;
/** A reader gets about so much at once. */
const CHUNK_BYTES = 64 << 10;

export interface CaptureOptions {
  /** One peer's packets; default: all. */
  readonly key?: PublicKey | undefined;
  /** Bytes kept of each packet, 1 to 65,575 (default). */
  readonly snapLength?: number | undefined;
  /** The capture ends after so many packets; default: never. */
  readonly maxPackets?: number | undefined;
  /** The file does not grow beyond so many bytes, but for its last 44; default: without limit. */
  readonly maxBytes?: number | undefined;
  /** ms; default: without end. */
  readonly duration?: number | undefined;
}

/** Why a capture ended. */
export type CaptureEnd = "stopped" | "packets" | "bytes" | "duration" | "peer-removed" | "replaced" | "device-closed";

export interface CaptureSummary {
  /** In the file. */
  readonly packets: number;
  readonly bytes: number;
  /** Seen and not in the file: the reader was too slow. */
  readonly dropped: number;
  /** Undefined while it goes on. */
  readonly end: CaptureEnd | undefined;
}

/**
 * Inner packets of the device as a pcapng file that comes in pieces: `for await (const bytes of capture) ...`, once. Leaving the
 * loop stops it. Outbound packets are as the kernel gave them: up to 64 KiB of one TCP or UDP flow in one, with a checksum
 * that is not finished yet. Inbound ones are as the peer sent them. A comment says where one waits for a session or was
 * dropped by the packet filter.
 */
export interface PacketCapture extends AsyncIterable<Uint8Array> {
  readonly summary: CaptureSummary;
  /** Ends it; what was captured before still comes. Idempotent. */
  stop(): void;
}

interface CaptureDeps {
  readonly clock: Clock;
  readonly plane: Pick<Plane, "interfaceName" | "startCapture" | "stopCapture">;
}

/** The one capture that a device has at a time, or none. */
export class CaptureHost {
  readonly #deps: CaptureDeps;
  #current: RingCapture | undefined;
  #closed = false;

  constructor(deps: CaptureDeps) {
    this.#deps = deps;
  }

  /** Of one slot or all. Ends the capture that there is. Throws DeviceError `closed` and RangeError. */
  start(options: CaptureOptions, slot: number | undefined): PacketCapture {
    if (this.#closed) throw new DeviceError("closed", "the device is closed");
    const capture = new RingCapture(this.#deps, options, slot, () => {
      if (this.#current !== capture) return;
      this.#current = undefined;
      this.#deps.plane.stopCapture();
    });
    this.end("replaced");
    this.#current = capture;
    capture.begin();
    return capture;
  }

  end(why: CaptureEnd): void {
    this.#closed ||= why === "device-closed";
    this.#current?.end(why);
  }

  /** The slot may be somebody else's soon. */
  notePeerRemoved(slot: number): void {
    if (this.#current?.slot === slot) this.end("peer-removed");
  }
}

/** Reads what the data worker copies into a ring. */
class RingCapture implements PacketCapture {
  /** Undefined: all peers. */
  readonly slot: number | undefined;
  readonly #deps: CaptureDeps;
  readonly #options: CaptureOptions;
  readonly #snapLength: number;
  readonly #ring = Ring.create(RING_BYTES);
  readonly #ended: () => void;
  #timer: Timer | undefined;
  #packets = 0;
  #bytes = 0;
  #end: CaptureEnd | undefined;
  #wake: (() => void) | undefined;

  constructor(deps: CaptureDeps, options: CaptureOptions, slot: number | undefined, ended: () => void) {
    const { snapLength = SNAP_LENGTH_MAX } = options;
    if (!(Number.isInteger(snapLength) && snapLength >= 1 && snapLength <= SNAP_LENGTH_MAX))
      throw new RangeError(`snap length ${snapLength} is not between 1 and ${SNAP_LENGTH_MAX}`);
    this.slot = slot;
    this.#deps = deps;
    this.#options = options;
    this.#snapLength = snapLength;
    this.#ended = ended;
  }

  begin(): void {
    const { duration } = this.#options;
    const { clock, plane } = this.#deps;
    if (duration !== undefined) this.#timer = clock.after(duration, () => this.end("duration"));
    const [ring, snapLength] = [this.#ring, this.#snapLength];
    plane.startCapture({ ring, slot: this.slot, snapLength, filled: () => this.#wake?.() });
  }

  get summary(): CaptureSummary {
    return { packets: this.#packets, bytes: this.#bytes, dropped: this.#ring.dropped, end: this.#end };
  }

  stop(): void {
    this.end("stopped");
  }

  end(why: CaptureEnd): void {
    if (this.#end) return;
    this.#end = why;
    this.#timer?.cancel();
    this.#ended();
    this.#wake?.();
  }

  async *[Symbol.asyncIterator](): AsyncGenerator<Uint8Array> {
    try {
      yield this.#count(encodePcapngHeader(this.#deps.plane.interfaceName, this.#snapLength));
      for (;;) {
        const chunk = this.#take();
        if (chunk.length > 0) yield chunk;
        else if (this.#end) break;
        else await this.#filled();
      }
      const { dropped } = this.summary;
      yield this.#count(encodePcapngCounters(this.#deps.clock.wall(), this.#packets + dropped, dropped));
    } finally {
      this.stop();
    }
  }

  /** What is in the ring, as blocks; empty when there is nothing, or the capture is full. */
  #take(): Uint8Array {
    const { maxPackets = Number.POSITIVE_INFINITY, maxBytes = Number.POSITIVE_INFINITY } = this.#options;
    const ring = this.#ring;
    const blocks: Uint8Array[] = [];
    for (let size = 0; size < CHUNK_BYTES; ) {
      if (this.#end === "packets" || this.#end === "bytes") break;
      const at = ring.next();
      if (at < 0) break;
      const block = this.#encode(at);
      ring.release();
      if (this.#bytes + block.length > maxBytes) {
        this.end("bytes");
        break;
      }
      blocks.push(this.#count(block));
      size += block.length;
      if (++this.#packets >= maxPackets) this.end("packets");
    }
    return Buffer.concat(blocks);
  }

  #encode(at: number): Uint8Array {
    const { bytes, view } = this.#ring;
    const { clock } = this.#deps;
    const what = bytes[at + RecordField.opcode] as Captured;
    const from = at + RecordField.payload;
    return encodePcapngPacket({
      // The wall clock may have been set since; a moment ago it hardly was.
      at: clock.wall() - clock.now() + view.getFloat64(at + RecordField.time, true),
      direction: what === Captured.outbound || what === Captured.waiting ? "out" : "in",
      bytes: bytes.subarray(from, from + view.getUint32(at + RecordField.payloadBytes, true)),
      length: view.getUint32(at + RecordField.argument, true),
      comment: COMMENTS[what],
    });
  }

  /** Resolves when the ring may hold something, or the capture ended. */
  #filled(): Promise<void> {
    const { promise, resolve } = Promise.withResolvers<void>();
    this.#wake = () => {
      this.#wake = undefined;
      this.#ring.wakeUp();
      resolve();
    };
    if (!this.#ring.sleepUnlessFilled()) this.#wake();
    return promise;
  }

  #count(block: Uint8Array): Uint8Array {
    this.#bytes += block.length;
    return block;
  }
}

const COMMENTS: Readonly<Record<Captured, string | undefined>> = {
  [Captured.outbound]: undefined,
  [Captured.waiting]: "waits for a session",
  [Captured.inbound]: undefined,
  [Captured.filtered]: "dropped by the packet filter",
};
