import { Errno } from "#net/errno.ts";
import { libc } from "#net/libc.ts";
import { Arena } from "../../worker/arena.ts";
import type { AddressPlace } from "../../worker/reporter.ts";
import { Ring } from "../../worker/ring.ts";
import { Counter, Stats } from "../../worker/stats.ts";
import { UdpBuffers, UdpReceiver } from "../../worker/udp-receive.ts";
import { type PortChannel, type PortCommand, PortControl, PortRecordField, type PortStart } from "./port-records.ts";

/** Batches of all sockets before commands are looked at again. */
const ROUNDS_PER_TURN = 16;

const POLLIN = 1;
const POLLNVAL = 0x20;
const POLLFD_BYTES = 8;
/** Of one device: the shared local ends, before and after they were replaced, and a raw socket of each family. */
const CHANNELS_MAX = 15;

interface WatchedChannel extends PortChannel {
  readonly receiver: UdpReceiver;
}

export interface PortLoopDeps {
  /** There is something in the ring, and main sleeps. */
  readonly wakeMain: () => void;
  /** The next word from main, undefined when there is none. */
  readonly nextCommand: () => PortCommand | undefined;
  /** The descriptor is not touched any more. */
  readonly unwatched: (id: number) => void;
}

/**
 * The loop of the port thread:
 *
 *   poll (the only place that waits, for ever when there is nothing) -> commands -> up to 16 rounds over the sockets that are ready
 *
 * What does not fit into the ring is dropped and counted there. The descriptors are not its own.
 */
export class PortLoop {
  readonly #libc = libc();
  readonly #arena: Arena;
  readonly #stats: Stats;
  readonly #ring: Ring;
  readonly #control: Int32Array;
  readonly #eventFd: number;
  readonly #buffers: UdpBuffers;
  readonly #pollfds: number;
  readonly #eventBuffer: number;
  readonly #deps: PortLoopDeps;
  readonly #channels: WatchedChannel[] = [];
  #written = false;

  constructor(start: PortStart, deps: PortLoopDeps) {
    this.#deps = deps;
    this.#arena = new Arena(UdpBuffers.arenaBytes(true) + 8192);
    this.#stats = new Stats(start.stats);
    this.#ring = new Ring(start.ring);
    this.#control = new Int32Array(start.control);
    this.#eventFd = start.eventFd;
    this.#buffers = new UdpBuffers(this.#arena, true);
    this.#pollfds = this.#arena.take((1 + CHANNELS_MAX) * POLLFD_BYTES);
    this.#eventBuffer = this.#arena.take(8);
    for (const channel of start.channels) this.#watch(channel);
    this.#writePollfds();
  }

  /** Main wants it to end. */
  get isStopped(): boolean {
    return Atomics.load(this.#control, PortControl.stop) !== 0;
  }

  /** Once around. Throws when `poll` itself does not work. */
  turn(): void {
    const { view, base } = this.#arena;
    const polled = this.#libc.poll(base + this.#pollfds, 1 + this.#channels.length, -1);
    if (polled < 0) {
      if (this.#libc.errno() === Errno.EINTR) return;
      throw new Error(`poll fails with errno ${this.#libc.errno()}`);
    }
    this.#stats.words[Counter["wake-ups"]]!++;
    const ready = this.#channels.filter((_, index) => {
      const events = view.getUint16(this.#pollfds + (1 + index) * POLLFD_BYTES + 6, true);
      if ((events & POLLNVAL) !== 0) throw new Error("a socket was closed while it was watched");
      return events !== 0;
    });
    if (view.getUint16(this.#pollfds + 6, true) !== 0) {
      this.#libc.read(this.#eventFd, base + this.#eventBuffer, 8);
      this.#applyCommands();
    }
    for (let round = 0; round < ROUNDS_PER_TURN; round++) {
      let received = false;
      // A socket that main took back is main's again.
      for (const channel of ready) if (this.#channels.includes(channel) && this.#receive(channel)) received = true;
      this.#flush();
      if (!received) return;
    }
  }

  #applyCommands(): void {
    for (let command = this.#deps.nextCommand(); command; command = this.#deps.nextCommand()) {
      if (command.kind === "watch") {
        this.#watch(command.channel);
        continue;
      }
      const { id } = command;
      const index = this.#channels.findIndex((channel) => channel.id === id);
      if (index >= 0) this.#channels.splice(index, 1);
      this.#deps.unwatched(id);
    }
    this.#writePollfds();
  }

  #watch(channel: PortChannel): void {
    if (this.#channels.length === CHANNELS_MAX) throw new Error(`more than ${CHANNELS_MAX} sockets to watch`);
    const receiver = new UdpReceiver(this.#arena, this.#stats, this.#buffers, channel.fd, 0);
    this.#channels.push({ ...channel, receiver });
  }

  /** pollfd: descriptor 0/4, events 4/2, revents 6/2. */
  #writePollfds(): void {
    [this.#eventFd, ...this.#channels.map(({ fd }) => fd)].forEach((fd, index) => {
      this.#arena.view.setInt32(this.#pollfds + index * POLLFD_BYTES, fd, true);
      this.#arena.view.setUint16(this.#pollfds + index * POLLFD_BYTES + 4, POLLIN, true);
    });
  }

  /** A batch into the ring; false when there was none. */
  #receive({ id, receiver }: WatchedChannel): boolean {
    const messages = receiver.receive();
    for (let index = 0; index < messages; index++) {
      receiver.read(index);
      this.#report(id, receiver);
    }
    return messages > 0;
  }

  #report(id: number, { at, length, segmentBytes, truncated, source, local }: UdpReceiver): void {
    if (truncated) {
      this.#stats.words[Counter["drop-truncated"]]!++;
      return;
    }
    const ring = this.#ring;
    const record = ring.begin(PortRecordField.payload + length);
    if (record < 0) {
      ring.countDropped();
      return;
    }
    const { view } = ring;
    view.setUint16(record + PortRecordField.channel, id, true);
    view.setUint16(record + PortRecordField.sourcePort, source.port, true);
    ring.bytes[record + PortRecordField.sourceFamily] = source.family;
    ring.bytes[record + PortRecordField.localFamily] = local.family;
    view.setUint32(record + PortRecordField.payloadBytes, length, true);
    view.setUint32(record + PortRecordField.segmentBytes, segmentBytes, true);
    this.#copyAddress(record + PortRecordField.source, source);
    this.#copyAddress(record + PortRecordField.local, local);
    this.#copy(record + PortRecordField.payload, at, length);
    ring.commit();
    this.#written = true;
  }

  #copyAddress(to: number, { family, at }: AddressPlace): void {
    if (family === 4 || family === 6) this.#copy(to, at, family === 6 ? 16 : 4);
  }

  #copy(to: number, from: number, bytes: number): void {
    this.#ring.bytes.set(this.#arena.bytes.subarray(from, from + bytes), to);
  }

  #flush(): void {
    if (this.#written && this.#ring.consumerSleeps()) this.#deps.wakeMain();
    this.#written = false;
  }
}
