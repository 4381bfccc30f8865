import { type IpAddress, ipToBytes, isV6 } from "#base/ip.ts";
import type { Millis } from "#base/time.ts";
import { Command, RECORD_HEADER_BYTES, RecordField, SESSION_PAYLOAD_BYTES } from "./records.ts";
import type { Ring } from "./ring.ts";

/** One record towards the worker; see `records.ts` for what each field means to which command. */
export interface CommandRecord {
  readonly opcode: Command;
  readonly slot: number;
  readonly argument?: number;
  /** Sets the family too. */
  readonly address?: IpAddress;
  readonly port?: number;
  /** Only where there is no address. */
  readonly family?: number;
  readonly time?: number;
  readonly payloadBytes?: number;
  /** Writes the payload at `at`; called once. */
  readonly fill?: (bytes: Uint8Array, at: number) => void;
}

export interface SessionKeys {
  readonly role: "initiator" | "responder";
  /** Index that the peer writes into its packets; unique in the device. */
  readonly localIndex: number;
  /** Index that we write into ours. */
  readonly remoteIndex: number;
  /** 32 bytes each, copied: the caller wipes its own. */
  readonly sendKey: Uint8Array;
  readonly receiveKey: Uint8Array;
  /** When the keys were derived, device clock; default now. */
  readonly createdAt?: Millis;
}

/** Main's end of the command ring. What must not be lost waits in memory when the ring is full, in order. */
export class CommandSender {
  readonly #ring: Ring;
  readonly #wake: () => void;
  #backlog: CommandRecord[] = [];
  #closed = false;

  constructor(ring: Ring, wake: () => void) {
    this.#ring = ring;
    this.#wake = wake;
  }

  /** Records that `trySend` gave up, of this ring. */
  get dropped(): number {
    return this.#ring.dropped;
  }

  /** Never lost while the worker runs. */
  send(record: CommandRecord): void {
    if (this.#closed) return forget(record);
    if (this.#backlog.length > 0 || !this.#write(record)) {
      this.#backlog.push(record);
      this.#ring.wantSpace();
    }
    if (this.#ring.consumerSleeps()) this.#wake();
  }

  /** Lost, and counted, when it does not fit now. */
  trySend(record: CommandRecord): boolean {
    const written = !this.#closed && this.#backlog.length === 0 && this.#write(record);
    if (!written) this.#ring.countDropped();
    if (this.#ring.consumerSleeps()) this.#wake();
    return written;
  }

  /** Called when the worker says that it made room. */
  flush(): void {
    if (this.#backlog.length === 0) return;
    let done = 0;
    while (done < this.#backlog.length && this.#write(this.#backlog[done]!)) done++;
    this.#backlog = this.#backlog.slice(done);
    if (this.#backlog.length > 0) this.#ring.wantSpace();
    if (this.#ring.consumerSleeps()) this.#wake();
  }

  /** The worker is gone: forgets what waits and whatever comes. */
  close(): void {
    this.#closed = true;
    for (const record of this.#backlog) forget(record);
    this.#backlog = [];
  }

  #write(record: CommandRecord): boolean {
    const payloadBytes = record.payloadBytes ?? 0;
    const at = this.#ring.begin(RECORD_HEADER_BYTES + payloadBytes);
    if (at < 0) return false;
    const { bytes, view } = this.#ring;
    // The first 4 bytes are the ring's.
    bytes.fill(0, at + 4, at + RECORD_HEADER_BYTES);
    bytes[at + RecordField.opcode] = record.opcode;
    bytes[at + RecordField.family] = record.family ?? 0;
    if (record.address !== undefined) {
      bytes[at + RecordField.family] = isV6(record.address) ? 6 : 4;
      bytes.set(ipToBytes(record.address), at + RecordField.address);
    }
    view.setUint16(at + RecordField.port, record.port ?? 0, true);
    view.setUint32(at + RecordField.slot, record.slot, true);
    view.setUint32(at + RecordField.argument, record.argument ?? 0, true);
    view.setFloat64(at + RecordField.time, record.time ?? 0, true);
    view.setUint32(at + RecordField.payloadBytes, payloadBytes, true);
    record.fill?.(bytes, at + RecordField.payload);
    this.#ring.commit();
    return true;
  }
}

/** The command that hands over a session's keys, of which it keeps a copy until it is written. */
export function sessionRecord(slot: number, keys: SessionKeys): CommandRecord {
  const sendKey = keys.sendKey.slice();
  const receiveKey = keys.receiveKey.slice();
  return {
    opcode: Command.installSession,
    slot,
    argument: keys.role === "initiator" ? 1 : 0,
    time: keys.createdAt ?? performance.now(),
    payloadBytes: SESSION_PAYLOAD_BYTES,
    fill: (bytes, at) => {
      const view = new DataView(bytes.buffer, bytes.byteOffset + at);
      view.setUint32(0, keys.localIndex, true);
      view.setUint32(4, keys.remoteIndex, true);
      bytes.set(sendKey, at + 8);
      bytes.set(receiveKey, at + 40);
      sendKey.fill(0);
      receiveKey.fill(0);
    },
  };
}

/** Writes the payload to nowhere, which wipes the keys that wait to be written. */
function forget({ fill, payloadBytes = 0 }: CommandRecord): void {
  fill?.(new Uint8Array(payloadBytes), 0);
}
