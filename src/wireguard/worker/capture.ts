import type { Arena } from "./arena.ts";
import { CAPTURE_ALL, type Captured, RECORD_HEADER_BYTES, RecordField } from "./records.ts";
import type { Reporter } from "./reporter.ts";
import type { Ring } from "./ring.ts";

/**
 * Copies inner packets to main while somebody looks: outbound ones as the kernel gave them, before they are cut; inbound
 * ones decrypted, before they are joined. Who has them asks `isOn` first, which is all that a capture costs while there is
 * none. A ring that main does not empty in time makes no packet wait: what does not fit is counted and left out.
 */
export class Capture {
  isOn = false;
  readonly #arena: Arena;
  readonly #reporter: Reporter;
  readonly #clock: () => number;
  #slot = CAPTURE_ALL;
  #snapLength = 0;

  constructor(arena: Arena, reporter: Reporter, clock: () => number) {
    this.#arena = arena;
    this.#reporter = reporter;
    this.#clock = clock;
  }

  /** From now on: the first `snapLength` bytes of each packet of the peer (CAPTURE_ALL: of all). */
  begin(ring: Ring, slot: number, snapLength: number): void {
    this.#reporter.capture = ring;
    this.#slot = slot;
    this.#snapLength = snapLength;
    this.isOn = true;
  }

  end(): void {
    this.isOn = false;
    this.#reporter.capture = undefined;
  }

  /** Takes the packet at arena offset `at`. */
  add(what: Captured, slot: number, at: number, length: number): void {
    const ring = this.#reporter.capture;
    if (ring === undefined || (this.#slot !== CAPTURE_ALL && this.#slot !== slot)) return;
    const kept = Math.min(length, this.#snapLength);
    const record = ring.begin(RECORD_HEADER_BYTES + kept);
    if (record < 0) {
      ring.countDropped();
      return;
    }
    ring.bytes[record + RecordField.opcode] = what;
    ring.view.setUint32(record + RecordField.slot, slot, true);
    ring.view.setUint32(record + RecordField.argument, length, true);
    ring.view.setFloat64(record + RecordField.time, this.#clock(), true);
    ring.view.setUint32(record + RecordField.payloadBytes, kept, true);
    ring.bytes.set(this.#arena.bytes.subarray(at, at + kept), record + RecordField.payload);
    ring.commit();
    this.#reporter.noteRelayWritten();
  }
}
