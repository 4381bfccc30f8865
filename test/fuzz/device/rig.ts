import { createCipheriv, createDecipheriv } from "node:crypto";
import { type IpAddress, parseIp } from "#base/ip.ts";
import { type CommandRecord, CommandSender, sessionRecord } from "#wireguard/worker/commands.ts";
import { DataPath } from "#wireguard/worker/data-path.ts";
import { PROTOCOL_LIMITS, type SessionLimits } from "#wireguard/worker/limits.ts";
import { ADD_ASLEEP, Command, RecordField, Report } from "#wireguard/worker/records.ts";
import { Ring } from "#wireguard/worker/ring.ts";
import { DEVICE_COUNTERS, type DeviceCounter, Stats } from "#wireguard/worker/stats.ts";
import { FakeKernel, Fd } from "./fake-kernel.ts";
import type { MemoryGuard } from "./memory-guard.ts";

const TAG_BYTES = 16;
const HEADER_BYTES = 16;

export interface RigOptions {
  readonly virtioHeader?: boolean;
  readonly gso?: boolean;
  readonly gro?: boolean;
  readonly mtu?: number;
  readonly limits?: Partial<SessionLimits>;
  readonly mac1Key?: Int32Array;
  readonly peerCapacity?: number;
}

/** What a session's keys and indices are made of, for both ends. */
export interface TestSession {
  readonly localIndex: number;
  readonly remoteIndex: number;
  /** Towards the peer, and from it. */
  readonly sendKey: Uint8Array<ArrayBuffer>;
  readonly receiveKey: Uint8Array<ArrayBuffer>;
}

/**
 * The data worker in the test's own thread but for its loop: real tables, real OpenSSL, real rings, a
 * fake kernel, and time that the test moves. `main` holds the other ends of the rings.
 */
export class Rig {
  readonly kernel: FakeKernel;
  readonly stats: Stats;
  readonly path: DataPath;
  readonly commandRing: Ring;
  readonly commands: CommandSender;
  readonly main: { readonly events: Ring; readonly datagrams: Ring; readonly relay: Ring };
  now = 1000;

  constructor(guard: MemoryGuard, options: RigOptions = {}) {
    this.kernel = new FakeKernel(guard);
    this.stats = Stats.create(options.peerCapacity ?? 64);
    this.main = { events: Ring.create(1 << 18), datagrams: Ring.create(1 << 18), relay: Ring.create(1 << 22) };
    this.commandRing = Ring.create(1 << 20);
    this.commands = new CommandSender(this.commandRing, () => {});
    this.path = new DataPath(
      {
        tunFd: Fd.tun,
        virtioHeader: options.virtioHeader ?? true,
        udpSegmentation: true,
        v4Fd: Fd.v4,
        v6Fd: Fd.v6,
        gso: options.gso ?? true,
        gro: options.gro ?? true,
        eventFd: -1,
        mtu: options.mtu ?? 1420,
        port: 51_820,
        control: new SharedArrayBuffer(64),
        commands: this.commandRing.buffer,
        events: this.main.events.buffer,
        datagrams: this.main.datagrams.buffer,
        relay: this.main.relay.buffer,
        stats: this.stats.buffer,
        clockOffset: 0,
        limits: { ...PROTOCOL_LIMITS, ...options.limits },
        mac1Key: options.mac1Key,
        capture: undefined,
      },
      { clock: () => this.now, wakeMain: () => {}, newestCapture: () => undefined },
    );
    this.setNow(this.now);
  }

  setNow(now: number): void {
    this.now = now;
    this.path.now = now;
  }

  /** Gives commands and has them applied. */
  command(...records: readonly CommandRecord[]): void {
    for (const record of records) this.commands.send(record);
    while (this.path.applyCommands());
  }

  /** A peer with one address of each family, a path over UDP and a session of which `initiator` says who began it. */
  addPeer(
    slot: number,
    options: { readonly asleep?: boolean; readonly path?: "v4" | "v6" | "relay" | "none" } = {},
  ): void {
    const asleep = options.asleep ?? false;
    this.command(
      { opcode: Command.addPeer, slot, argument: asleep ? ADD_ASLEEP : 0 },
      { opcode: Command.addPrefix, slot, address: innerAddress(slot, 4), argument: 32 },
      { opcode: Command.addPrefix, slot, address: innerAddress(slot, 6), argument: 128 },
    );
    const path = options.path ?? "v4";
    if (path === "none" || asleep) return;
    this.command(
      path === "relay"
        ? { opcode: Command.setPath, slot, family: 255 }
        : {
            opcode: Command.setPath,
            slot,
            address: parseIp(path === "v4" ? "192.0.2.1" : "2001:db8::1"),
            port: 51_820,
          },
    );
  }

  /** Installs a session of which both ends' keys are known. */
  install(
    slot: number,
    session: TestSession,
    role: "initiator" | "responder" = "initiator",
    createdAt = this.now,
  ): void {
    this.command(sessionRecord(slot, { role, createdAt, ...session }));
  }

  /** Has the worker take what a socket has, as the loop does. */
  receive(): void {
    while (this.kernel.udpIn.length > 0) {
      const before = this.kernel.udpIn.length;
      this.path.receiver.turn(this.path.v4);
      if (this.kernel.udpIn.length === before) break;
    }
  }

  /** The same for the socket of the other family. */
  receiveV6(): void {
    while (this.path.receiver.turn(this.path.v6));
  }

  /** Has the worker send what the TUN has, as the loop does. */
  transmit(): void {
    while (this.path.transmitter.turn());
    this.path.queue.flush();
  }

  counter(name: DeviceCounter): number {
    return this.stats.words[DEVICE_COUNTERS.indexOf(name)]!;
  }

  counters(): Map<DeviceCounter, number> {
    return this.stats.device();
  }

  /** Counts the records that wait for main, by kind, and takes them. */
  drain(ring: Ring): { opcode: number; slot: number; payload: Uint8Array }[] {
    const records: { opcode: number; slot: number; payload: Uint8Array }[] = [];
    for (let at = ring.next(); at >= 0; at = ring.next()) {
      const payload = at + RecordField.payload;
      records.push({
        opcode: ring.bytes[at + RecordField.opcode]!,
        slot: ring.view.getUint32(at + RecordField.slot, true),
        payload: ring.bytes.slice(payload, payload + ring.view.getUint32(at + RecordField.payloadBytes, true)),
      });
      ring.release();
    }
    return records;
  }

  /** Datagrams that went to the peer, over the sockets and over the relay, and are taken here. */
  takeSent(): Uint8Array[] {
    const relayed = this.drain(this.main.relay).filter(({ opcode }) => opcode === Report.relayOut);
    return [...this.kernel.sent.splice(0).map(({ bytes }) => bytes), ...relayed.map(({ payload }) => payload)];
  }

  close(): void {
    this.path[Symbol.dispose]();
  }
}

/** The inner address of a slot's peer. */
export function innerAddress(slot: number, family: 4 | 6): IpAddress {
  if (family === 6) return parseIp(`fd77::${(slot >>> 16).toString(16)}:${(slot & 0xffff).toString(16)}`);
  return parseIp(`10.${77 + (slot >>> 16)}.${(slot >> 8) & 255}.${slot & 255}`);
}

/** A transport message (type 4) from the peer. */
export function sealed(session: TestSession, counter: bigint, inner: Uint8Array): Uint8Array<ArrayBuffer> {
  const message = new Uint8Array(HEADER_BYTES + inner.length + TAG_BYTES);
  const header = new DataView(message.buffer);
  header.setUint32(0, 4, true);
  header.setUint32(4, session.localIndex, true);
  header.setBigUint64(8, counter, true);
  const cipher = createCipheriv("chacha20-poly1305", session.receiveKey, nonce(counter), { authTagLength: TAG_BYTES });
  message.set(cipher.update(inner), HEADER_BYTES);
  cipher.final();
  message.set(cipher.getAuthTag(), HEADER_BYTES + inner.length);
  return message;
}

/** What a transport message to the peer holds. Throws when it is not authentic. */
export function opened(session: TestSession, message: Uint8Array): { counter: bigint; inner: Uint8Array } {
  const header = new DataView(message.buffer, message.byteOffset, message.length);
  if (header.getUint32(0, true) !== 4 || header.getUint32(4, true) !== session.remoteIndex)
    throw new Error("no transport message of this session");
  const counter = header.getBigUint64(8, true);
  const decipher = createDecipheriv("chacha20-poly1305", session.sendKey, nonce(counter), { authTagLength: TAG_BYTES });
  decipher.setAuthTag(message.subarray(message.length - TAG_BYTES));
  const inner = decipher.update(message.subarray(HEADER_BYTES, message.length - TAG_BYTES));
  decipher.final();
  return { counter, inner: new Uint8Array(inner) };
}

function nonce(counter: bigint): Uint8Array {
  const bytes = new Uint8Array(12);
  new DataView(bytes.buffer).setBigUint64(4, counter, true);
  return bytes;
}
