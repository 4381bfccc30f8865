import { randomBytes } from "node:crypto";
import { Emitter } from "#base/emitter.ts";
import { type Endpoint, type IpAddress, ipFromBytes } from "#base/ip.ts";
import type { PublicKey } from "#base/keys.ts";
import { errnoName } from "#net/errno.ts";
import { lastError, libc, NetError, retryInterrupted } from "#net/libc.ts";
import { AF_INET, SOCKADDR_IN_BYTES } from "#net/sockaddr.ts";
import { assembleFilter, attachFilter, type FilterStep } from "#net/socket-filter.ts";
import { sendDatagram } from "#net/udp-send.ts";
import type { LocalEnds, LocalEndsEvents } from "../parts.ts";
import { LoopbackSender } from "./loopback-sender.ts";
import type { PortRecord } from "./port-records.ts";
import type { PortThread, PortWatch } from "./port-thread.ts";

const SOCK_DGRAM_NONBLOCK_CLOEXEC = 2 | 0x800 | 0x80000;
const SOL_SOCKET = 1;
const SO_RCVBUF = 8;
const SO_BINDTODEVICE = 25;
const SO_RCVBUFFORCE = 33;
const SO_RXQ_OVFL = 40;
const SOL_IP = 0;
const IP_PKTINFO = 8;
const SOL_UDP = 17;
const UDP_GRO = 104;
const RECEIVE_BUFFER_BYTES = 4 << 20;

/** 127.128.0.0/9 is cut into peers; the lower half is left to sockets of their own and to other programs. */
const FIRST_ADDRESS = 0x7f800000;
const ADDRESSES = 1 << 23;
const POLLIN = 1;
const SELF_TEST_BYTES = 16;
const SELF_TEST_MS = 200;

export interface LoopbackAddressesOptions {
  /** 0: not known yet, nothing is accepted. */
  readonly devicePort: number;
}

/**
 * All local ends on one socket: each peer is an address of its own of 127.0.0.0/8, on one port. The kernel tells which address a
 * datagram was sent to, and takes the sender's address from us, so the device sees a peer where it was configured. A peer costs
 * two table entries; nothing in the kernel.
 */
export class LoopbackAddresses implements LocalEnds {
  readonly name = "loopback-addresses";
  readonly events = new Emitter<LocalEndsEvents>();
  readonly #fd: number;
  readonly #port: number;
  readonly #sender: LoopbackSender;
  readonly #watch: PortWatch;
  readonly #numbers = new Map<PublicKey, number>();
  readonly #keys = new Map<number, PublicKey>();
  #nextNumber = 1;
  #devicePort = 0;
  #wrongSender = 0;
  #unknownPeer = 0;
  #closed: Promise<void> | undefined;

  private constructor(thread: PortThread, fd: number, port: number, devicePort: number) {
    this.#fd = fd;
    this.#port = port;
    this.#sender = new LoopbackSender(fd);
    this.setDevicePort(devicePort);
    this.#watch = thread.watch(fd, (record) => this.#receive(record));
  }

  /** Throws NetError when the machine has no FFI, or not all of 127.0.0.0/8; nothing is left open then. */
  static open(thread: PortThread, options: LoopbackAddressesOptions): LoopbackAddresses {
    const { fd, port } = openSocket();
    try {
      selfTest(fd, port);
      return new LoopbackAddresses(thread, fd, port, options.devicePort);
    } catch (error) {
      libc().close(fd);
      throw error;
    }
  }

  open(key: PublicKey): Endpoint {
    let number = this.#numbers.get(key);
    if (number === undefined) {
      number = this.#takeNumber();
      this.#numbers.set(key, number);
      this.#keys.set(number, key);
    }
    return { address: addressOf(number), port: this.#port };
  }

  close(key: PublicKey): void {
    const number = this.#numbers.get(key);
    if (number === undefined) return;
    this.#numbers.delete(key);
    this.#keys.delete(number);
  }

  deliver(key: PublicKey, datagram: Uint8Array): boolean {
    const number = this.#numbers.get(key);
    if (number === undefined || this.#devicePort === 0) return false;
    return this.#sender.queue(FIRST_ADDRESS + number, datagram);
  }

  setDevicePort(port: number): void {
    if (this.#closed) return;
    this.#devicePort = port;
    this.#sender.setPort(port);
    attachFilter(this.#fd, assembleFilter(onlyFromPort(port)));
  }

  counters(): ReadonlyMap<string, number> {
    return new Map([
      ["drop-wrong-sender", this.#wrongSender],
      ["drop-unknown-end", this.#unknownPeer],
      ["drop-deliver", this.#sender.dropped],
    ]);
  }

  [Symbol.asyncDispose](): Promise<void> {
    this.#closed ??= this.#close();
    return this.#closed;
  }

  async #close(): Promise<void> {
    this.#sender.close();
    this.#numbers.clear();
    this.#keys.clear();
    await this.#watch.end();
    libc().close(this.#fd);
  }

  /** Counts up, so that what was on its way to a closed peer does not reach the next one to be opened. */
  #takeNumber(): number {
    if (this.#keys.size >= ADDRESSES - 2)
      throw new NetError("syscall-failed", `no more than ${ADDRESSES - 2} peers have an address of 127.128.0.0/9`);
    while (this.#keys.has(this.#nextNumber)) this.#nextNumber = (this.#nextNumber % (ADDRESSES - 2)) + 1;
    const number = this.#nextNumber;
    this.#nextNumber = (number % (ADDRESSES - 2)) + 1;
    return number;
  }

  #receive(record: PortRecord): void {
    // The kernel's filter looked at the port; these may have been queued before it was changed.
    if (record.sourcePort !== this.#devicePort || record.sourceV4 >>> 24 !== 127) {
      this.#wrongSender++;
      return;
    }
    const key = this.#keys.get(record.localV4 - FIRST_ADDRESS);
    if (key === undefined) {
      this.#unknownPeer++;
      return;
    }
    const { payload, segmentBytes } = record;
    for (let at = 0; at < payload.length; at += segmentBytes)
      this.events.emit("datagram", { key, datagram: copyOf(payload.subarray(at, at + segmentBytes)) });
  }
}

/** Out of Node's pool: memory for each alone keeps the garbage collector busy. */
function copyOf(bytes: Uint8Array): Uint8Array {
  const copy = Buffer.allocUnsafe(bytes.length);
  copy.set(bytes);
  return copy;
}

function addressOf(number: number): IpAddress {
  const value = FIRST_ADDRESS + number;
  return ipFromBytes(Uint8Array.of(value >>> 24, value >>> 16, value >>> 8, value));
}

/** What a UDP socket sees begins with the UDP header: source port 0/2. */
function onlyFromPort(port: number): FilterStep[] {
  return [
    { op: "load-half", at: 0 },
    { op: "jump-equal", value: port === 0 ? 0x10000 : port, to: "accept" },
    { op: "drop" },
    { op: "label", name: "accept" },
    { op: "accept" },
  ];
}

function openSocket(): { fd: number; port: number } {
  const c = libc();
  const fd = c.socket(AF_INET, SOCK_DGRAM_NONBLOCK_CLOEXEC, 0);
  if (fd < 0) throw lastError("cannot open the socket of the local ends");
  const set = (level: number, name: number, value: number): boolean =>
    c.setsockopt(fd, level, name, new Uint32Array([value]), 4) === 0;
  try {
    if (!set(SOL_SOCKET, SO_RCVBUFFORCE, RECEIVE_BUFFER_BYTES)) set(SOL_SOCKET, SO_RCVBUF, RECEIVE_BUFFER_BYTES);
    set(SOL_SOCKET, SO_RXQ_OVFL, 1);
    set(SOL_UDP, UDP_GRO, 1);
    if (!set(SOL_IP, IP_PKTINFO, 1)) throw lastError("cannot learn where datagrams were sent to");
    // Not allowed to everybody, and not needed: whoever is not the device is dropped by the source.
    c.setsockopt(fd, SOL_SOCKET, SO_BINDTODEVICE, Buffer.from("lo\0"), 3);
    const name = new Uint8Array(SOCKADDR_IN_BYTES);
    const view = new DataView(name.buffer);
    view.setUint16(0, AF_INET, true);
    if (c.bind(fd, name, name.length) < 0) throw lastError("cannot bind the socket of the local ends");
    if (c.getsockname(fd, name, new Uint32Array([name.length])) < 0) throw lastError("cannot read the bound port");
    return { fd, port: view.getUint16(2) };
  } catch (error) {
    c.close(fd);
    throw error;
  }
}

/** Sends itself a datagram from one of the addresses to another, which must arrive: not every machine has all of 127.0.0.0/8. */
function selfTest(fd: number, port: number): void {
  const c = libc();
  const sent = randomBytes(SELF_TEST_BYTES);
  const errno = sendDatagram(fd, sent, { address: addressOf(ADDRESSES - 2), port }, addressOf(0));
  if (errno !== 0)
    throw new NetError("syscall-failed", `127.0.0.0/8 is not to be had: ${errnoName(errno)}`, {
      errno: errnoName(errno),
    });
  // pollfd: descriptor 0/4, events 4/2, revents 6/2.
  const polled = new Int32Array([fd, POLLIN]);
  const received = Buffer.alloc(SELF_TEST_BYTES);
  while (retryInterrupted(() => c.poll(polled, 1, SELF_TEST_MS)) > 0)
    if (c.read(fd, received, received.length) === SELF_TEST_BYTES && received.equals(sent)) return;
  throw new NetError("syscall-failed", `a datagram between two addresses of 127.0.0.0/8 did not arrive`);
}
