import { randomBytes } from "node:crypto";
import { parsePrefix } from "#base/ip.ts";
import type { Millis } from "#base/time.ts";
import { lastError, libc } from "#net/libc.ts";
import { closeUdpPair, openUdpPair } from "#net/udp-linux.ts";
import { sendDatagram } from "#net/udp-send.ts";
import { macWithState } from "../blake2s.ts";
import { INITIATION, INITIATION_BYTES, MessageType } from "../messages.ts";
import { type CommandRecord, CommandSender, sessionRecord } from "./commands.ts";
import { DataLoop } from "./data-loop.ts";
import { FilterSender } from "./filter-commands.ts";
import { VIRTIO } from "./inner-packet.ts";
import { ADD_ASLEEP, Command, FAMILY_RELAY, RecordField } from "./records.ts";
import { Ring } from "./ring.ts";
import { Stats } from "./stats.ts";
import type { WorkerStart } from "./worker-start.ts";

/** The first life of a function costs most, the next two still a little. */
const ROUNDS = 3;
/** For a datagram of the loopback interface, which is there at once. */
const PATIENCE: Millis = 2;
const TRIES = 8;
const RING_BYTES = 64 << 10;

const AF_UNIX = 1;
const SOCK_SEQPACKET_NONBLOCK_CLOEXEC = 5 | 0x800 | 0x80000;
const EFD_NONBLOCK_CLOEXEC = 0x800 | 0x80000;

const PROTOCOL_TCP = 6;
const PROTOCOL_UDP = 17;
/** Slots of the two peers, whose overlay addresses are 100.64.0.1 and 100.64.0.2. */
const SLOTS = [0, 1] as const;
type Slot = (typeof SLOTS)[number];
const addressOf = (slot: Slot): string => `100.64.0.${slot + 1}`;
const otherThan = (slot: Slot): Slot => (slot === 0 ? 1 : 0);

/**
 * Two peers in one loop that talk to each other: a first packet that waits for its session, data over a relay and over UDP
 * in both directions, through a packet filter, and a handshake message. All in memory of its own, with a pair of unix sockets
 * for the TUN and a UDP socket that sends to itself.
 *
 * The first packets of a worker would otherwise take some 10 ms longer than the later ones: functions are compiled, and
 * OpenSSL is set up, when they are called first. What does not work here is left to the real loop to complain about.
 *
 * @returns inner packets that arrived.
 */
export function rehearse(start: WorkerStart): number {
  try {
    using stage = new Stage(start);
    for (let round = 0; round < ROUNDS; round++) stage.play();
    return stage.arrived;
  } catch {
    return 0;
  }
}

class Stage implements Disposable {
  /** Inner packets that came out of the loop. */
  arrived = 0;
  readonly #undo = new DisposableStack();
  readonly #mac1Key: Int32Array | undefined;
  readonly #headerBytes: number;
  readonly #outerTun: number;
  readonly #socket: { readonly fd: number; readonly port: number };
  readonly #relay = Ring.create(RING_BYTES);
  readonly #reports = [Ring.create(RING_BYTES), Ring.create(RING_BYTES)] as const;
  readonly #commands: CommandSender;
  readonly #loop: DataLoop;
  readonly #packet = new Uint8Array(2048);
  /** `process.hrtime` in ms minus the loop's clock. */
  readonly #clockOffset: number;

  constructor(start: WorkerStart) {
    using undo = new DisposableStack();
    const c = libc();
    const tun = new Int32Array(2);
    if (c.socketpair(AF_UNIX, SOCK_SEQPACKET_NONBLOCK_CLOEXEC, 0, tun) < 0) throw lastError("cannot make unix sockets");
    for (const fd of tun) undo.defer(() => void c.close(fd));
    const sockets = openUdpPair({ port: 0, ipv6: false, gro: start.gro });
    undo.defer(() => closeUdpPair(sockets));
    const eventFd = c.eventfd(0, EFD_NONBLOCK_CLOEXEC);
    undo.defer(() => void c.close(eventFd));
    this.#clockOffset = start.clockOffset;
    this.#mac1Key = start.mac1Key;
    this.#headerBytes = start.virtioHeader ? VIRTIO.bytes : 0;
    this.#outerTun = tun[1]!;
    this.#socket = { fd: sockets.v4, port: sockets.port };
    const commands = Ring.create(RING_BYTES);
    const [events, datagrams] = this.#reports;
    const loop = new DataLoop(
      {
        ...start,
        tunFd: tun[0]!,
        v4Fd: sockets.v4,
        v6Fd: -1,
        eventFd,
        port: sockets.port,
        control: new SharedArrayBuffer(start.control.byteLength),
        stats: Stats.create(SLOTS.length).buffer,
        commands: commands.buffer,
        events: events.buffer,
        datagrams: datagrams.buffer,
        relay: this.#relay.buffer,
        capture: undefined,
      },
      { wakeMain: () => {}, newestCapture: () => undefined },
    );
    undo.use(loop);
    this.#loop = loop;
    this.#commands = new CommandSender(commands, () => {});
    this.#undo = undo.move();
  }

  play(): void {
    const source = parsePrefix("100.64.0.0/10");
    const rules = [{ source, protocol: "udp", verdict: "accept" } as const];
    new FilterSender().set(this.#commands, { inbound: rules, otherwise: "accept" });
    for (const slot of SLOTS) {
      this.#command(Command.addPeer, { slot, argument: ADD_ASLEEP });
      const { address, bits } = parsePrefix(`${addressOf(slot)}/32`);
      this.#command(Command.addPrefix, { slot, address, argument: bits });
    }
    this.#turn();
    this.#send(0, PROTOCOL_UDP, 0);
    this.#wakeBoth();
    for (const protocol of [PROTOCOL_UDP, PROTOCOL_TCP]) for (const to of SLOTS) this.#send(to, protocol);
    const { address } = parsePrefix("127.0.0.1/32");
    const { port } = this.#socket;
    for (const slot of SLOTS) this.#command(Command.setPath, { slot, address, port });
    for (const protocol of [PROTOCOL_UDP, PROTOCOL_TCP]) for (const to of SLOTS) this.#send(to, protocol);
    if (this.#mac1Key) sendDatagram(this.#socket.fd, someInitiation(this.#mac1Key), { address, port });
    this.#turn();
    for (const slot of SLOTS) this.#command(Command.removePeer, { slot });
    this.#turn();
  }

  #wakeBoth(): void {
    const createdAt = Number(process.hrtime.bigint()) / 1e6 - this.#clockOffset;
    const keys = SLOTS.map(() => new Uint8Array(randomBytes(32)));
    for (const slot of SLOTS) {
      this.#command(Command.setAsleep, { slot, argument: 0 });
      this.#command(Command.setPath, { slot, family: FAMILY_RELAY });
      const [sendKey, receiveKey] = [keys[slot]!, keys[otherThan(slot)]!];
      const role = slot === 0 ? "initiator" : "responder";
      const [localIndex, remoteIndex] = [slot + 1, otherThan(slot) + 1];
      this.#commands.send(sessionRecord(slot, { role, localIndex, remoteIndex, sendKey, receiveKey, createdAt }));
      this.#command(Command.noteAuthenticated, { slot, argument: 1, time: 0 });
    }
    for (const key of keys) key.fill(0);
    this.#turn(1);
  }

  #command(opcode: Command, record: Omit<CommandRecord, "opcode">): void {
    this.#commands.send({ opcode, ...record });
  }

  /** A program sends to the peer in slot `to`, in the name of the other one. `arrivals`: 0 for a packet that waits. */
  #send(to: Slot, protocol: number, arrivals = 1): void {
    const packet = somePacket(this.#headerBytes, to, protocol);
    libc().write(this.#outerTun, packet, packet.length);
    this.#turn(arrivals);
  }

  /** Lets the loop go around until nothing is under way, or `expected` more packets arrived. */
  #turn(expected = 0): void {
    const enough = this.arrived + expected;
    for (let tries = 0; tries < TRIES; tries++) {
      const isDone = this.arrived >= enough;
      this.#loop.turn(isDone ? 0 : PATIENCE);
      for (const ring of this.#reports) while (ring.next() >= 0) ring.release();
      const carried = this.#carryRelayed();
      for (; libc().read(this.#outerTun, this.#packet, this.#packet.length) > 0; ) this.arrived++;
      if (isDone && !carried) return;
    }
  }

  #carryRelayed(): boolean {
    let carried = false;
    for (let at = this.#relay.next(); at >= 0; at = this.#relay.next()) {
      const slot = otherThan(this.#relay.view.getUint32(at + RecordField.slot, true) as Slot);
      const payloadBytes = this.#relay.view.getUint32(at + RecordField.payloadBytes, true);
      const datagram = this.#relay.bytes.slice(at + RecordField.payload, at + RecordField.payload + payloadBytes);
      this.#relay.release();
      this.#command(Command.inject, { slot, payloadBytes, fill: (bytes, to) => bytes.set(datagram, to) });
      carried = true;
    }
    return carried;
  }

  [Symbol.dispose](): void {
    this.#undo.dispose();
  }
}

/** What a TUN would give: an IPv4 packet with 20 bytes of transport. */
function somePacket(headerBytes: number, to: Slot, protocol: number): Uint8Array {
  const bytes = new Uint8Array(headerBytes + 40);
  const ip = bytes.subarray(headerBytes);
  const view = new DataView(ip.buffer, ip.byteOffset);
  ip[0] = 0x45;
  view.setUint16(2, ip.length);
  ip[8] = 64;
  ip[9] = protocol;
  ip.set([100, 64, 0, otherThan(to) + 1, 100, 64, 0, to + 1], 12);
  view.setUint16(20, 40_000);
  view.setUint16(22, 7);
  if (protocol === PROTOCOL_UDP) view.setUint16(24, 20);
  // TCP: a header of 20 bytes, SYN.
  else ip.set([0x50, 0x02], 32);
  return bytes;
}

/** Has a right mac1 and is otherwise nothing. */
function someInitiation(mac1Key: Int32Array): Uint8Array {
  const bytes = new Uint8Array(INITIATION_BYTES);
  bytes[0] = MessageType.initiation;
  bytes.set(macWithState(mac1Key, bytes, INITIATION.mac1), INITIATION.mac1);
  return bytes;
}
