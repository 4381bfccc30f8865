import { Emitter } from "#base/emitter.ts";
import { type Endpoint, type IpAddress, isV6 } from "#base/ip.ts";
import { Errno, errnoName } from "#net/errno.ts";
import { lastError, libc } from "#net/libc.ts";
import { routeSource } from "#net/route-source.ts";
import { AF_INET, AF_INET6 } from "#net/sockaddr.ts";
import { assembleFilter, attachFilter } from "#net/socket-filter.ts";
import { sendDatagram } from "#net/udp-send.ts";
import type { SharedPort, SharedPortEvents } from "../parts.ts";
import type { PortRecord } from "./port-records.ts";
import type { PortThread, PortWatch } from "./port-thread.ts";
import { encodeRawUdp, parseRawUdp, parseRawV4, type RawDatagram, rawPieces } from "./raw-datagram.ts";
import { rawFilterV4, rawFilterV6 } from "./raw-filter.ts";

const SOCK_RAW_NONBLOCK_CLOEXEC = 3 | 0x800 | 0x80000;
const IPPROTO_UDP = 17;
const SOL_SOCKET = 1;
const SO_RXQ_OVFL = 40;
const SOL_IP = 0;
const IP_MTU_DISCOVER = 10;
const SOL_IPV6 = 41;
/** Takes the place of the checksum in a packet, which the kernel fills in and checks then. */
const IPV6_CHECKSUM = 7;
const IPV6_MTU_DISCOVER = 23;
const IPV6_RECVPKTINFO = 49;
const UDP_CHECKSUM_AT = 6;

export interface RawPortOptions {
  /** The device's UDP port; 0: not known yet. */
  readonly port: number;
}

interface RawSocket {
  readonly family: typeof AF_INET | typeof AF_INET6;
  readonly fd: number;
  readonly watch: PortWatch;
}

/**
 * The device's UDP port beside the device, by raw sockets: each gets a copy of what comes in, and a filter in the kernel leaves
 * only STUN and handshake messages from the network of it. Needs CAP_NET_RAW.
 *
 * Where the device has datagrams merged (UDP_GRO, as wireguard-go does), one that came right behind larger ones of the same
 * source may be merged into them and is not seen: STUN during a bulk transfer from the same endpoint gets lost now and then.
 */
export class RawPort implements SharedPort {
  readonly events = new Emitter<SharedPortEvents>();
  readonly #sockets: RawSocket[] = [];
  #port = 0;
  #malformed = 0;
  #closed: Promise<void> | undefined;

  private constructor() {}

  /** Throws NetError `not-permitted`, `ffi-missing` or `syscall-failed`; nothing is left open then. */
  static async open(thread: PortThread, options: RawPortOptions): Promise<RawPort> {
    const port = new RawPort();
    try {
      for (const family of [AF_INET, AF_INET6] as const) port.#open(thread, family);
      port.setPort(options.port);
      return port;
    } catch (error) {
      await port[Symbol.asyncDispose]();
      throw error;
    }
  }

  send(datagram: Uint8Array, to: Endpoint, from?: Endpoint): string | undefined {
    const family = isV6(to.address) ? AF_INET6 : AF_INET;
    const socket = this.#sockets.find((candidate) => candidate.family === family);
    if (this.#closed) return "EBADF";
    if (!socket || (from && isV6(from.address) !== isV6(to.address))) return "EAFNOSUPPORT";
    if (to.port === 0 || this.#port === 0) return "EINVAL";
    const ports = { source: this.#port, destination: to.port };
    if (family === AF_INET6) return this.#transmit(socket.fd, encodeRawUdp(ports, datagram), to.address, from?.address);
    let source = from?.address;
    if (source === undefined) {
      const route = routeSource(to);
      if (route.kind === "refused") return route.errno;
      source = route.address;
    }
    const packet = encodeRawUdp(ports, datagram, { source, destination: to.address });
    return this.#transmit(socket.fd, packet, to.address, source);
  }

  setPort(port: number): void {
    this.#port = port;
    for (const { family, fd } of this.#sockets) attachFilter(fd, filterFor(family, port));
  }

  counters(): ReadonlyMap<string, number> {
    return new Map([["drop-raw-malformed", this.#malformed]]);
  }

  [Symbol.asyncDispose](): Promise<void> {
    this.#closed ??= this.#close();
    return this.#closed;
  }

  async #close(): Promise<void> {
    await Promise.all(this.#sockets.map(({ watch }) => watch.end()));
    for (const { fd } of this.#sockets) libc().close(fd);
  }

  #transmit(fd: number, packet: Uint8Array, address: IpAddress, source: IpAddress | undefined): string | undefined {
    // The port in a raw socket's address is a protocol, 0 stands for the socket's.
    const errno = sendDatagram(fd, packet, { address, port: 0 }, source);
    return errno === 0 ? undefined : errnoName(errno);
  }

  #open(thread: PortThread, family: RawSocket["family"]): void {
    const c = libc();
    const fd = c.socket(family, SOCK_RAW_NONBLOCK_CLOEXEC, IPPROTO_UDP);
    if (fd < 0) {
      if (family === AF_INET6 && c.errno() === Errno.EAFNOSUPPORT) return;
      throw lastError("cannot open a raw socket");
    }
    try {
      attachFilter(fd, filterFor(family, 0));
      this.#setOptions(fd, family);
      discardQueued(fd);
    } catch (error) {
      c.close(fd);
      throw error;
    }
    const listener = family === AF_INET ? this.#receiveV4 : this.#receiveV6;
    this.#sockets.push({ family, fd, watch: thread.watch(fd, listener) });
  }

  #setOptions(fd: number, family: RawSocket["family"]): void {
    const set = (level: number, name: number, value: number): boolean =>
      libc().setsockopt(fd, level, name, new Uint32Array([value]), 4) === 0;
    set(SOL_SOCKET, SO_RXQ_OVFL, 1);
    if (family === AF_INET) {
      set(SOL_IP, IP_MTU_DISCOVER, 0);
      return;
    }
    set(SOL_IPV6, IPV6_MTU_DISCOVER, 0);
    if (!set(SOL_IPV6, IPV6_CHECKSUM, UDP_CHECKSUM_AT)) throw lastError("cannot have UDP checksums computed");
    if (!set(SOL_IPV6, IPV6_RECVPKTINFO, 1)) throw lastError("cannot learn where datagrams were sent to");
  }

  readonly #receiveV4 = (record: PortRecord): void => {
    const datagram = parseRawV4(record.payload);
    if (datagram) this.#emit(datagram, datagram.source, datagram.destination);
    else this.#malformed++;
  };

  readonly #receiveV6 = (record: PortRecord): void => {
    const datagram = parseRawUdp(record.payload);
    const { local } = record;
    if (datagram && local !== undefined) this.#emit(datagram, record.source.address, local);
    else this.#malformed++;
  };

  #emit(datagram: RawDatagram, source: IpAddress, destination: IpAddress): void {
    // Queued before the filter was changed.
    if (datagram.destinationPort !== this.#port) return;
    const from = { address: source, port: datagram.sourcePort };
    const to = { address: destination, port: datagram.destinationPort };
    for (const { kind, bytes } of rawPieces(datagram.payload))
      this.events.emit(kind, { datagram: Uint8Array.from(bytes), from, to });
  }
}

function filterFor(family: RawSocket["family"], port: number): Uint8Array<ArrayBuffer> {
  if (port === 0) return assembleFilter([{ op: "drop" }]);
  return assembleFilter(family === AF_INET ? rawFilterV4(port) : rawFilterV6(port));
}

/** What came between the socket and its filter. */
function discardQueued(fd: number): void {
  const buffer = new Uint8Array(1);
  while (libc().read(fd, buffer, 1) >= 0);
}
