import { Errno, errnoName } from "./errno.ts";
import { type Libc, lastError, libc, NetError } from "./libc.ts";
import { AF_INET, AF_INET6, SOCKADDR_IN_BYTES, SOCKADDR_IN6_BYTES } from "./sockaddr.ts";

const SOCK_DGRAM_NONBLOCK_CLOEXEC = 2 | 0x800 | 0x80000;
const SOL_SOCKET = 1;
const SO_SNDBUF = 7;
const SO_RCVBUF = 8;
const SO_SNDBUFFORCE = 32;
const SO_RCVBUFFORCE = 33;
const SO_MARK = 36;
const SO_RXQ_OVFL = 40;
const SOL_IP = 0;
const IP_PKTINFO = 8;
const IP_MTU_DISCOVER = 10;
const SOL_IPV6 = 41;
const IPV6_MTU_DISCOVER = 23;
const IPV6_V6ONLY = 26;
const IPV6_RECVPKTINFO = 49;
const SOL_UDP = 17;
const UDP_SEGMENT = 103;
const UDP_GRO = 104;

/** Kernel memory asked for per socket and direction, in bytes. */
const SOCKET_BUFFER_BYTES = 7 << 20;
/** Attempts to find a port that is free in both families. */
const FREE_PORT_ATTEMPTS = 32;

export interface UdpPairOptions {
  /** 0 takes a port that is free in both families. */
  readonly port: number;
  /** SO_MARK, against routing loops; 0 or absent: none. Needs CAP_NET_ADMIN. */
  readonly fwmark?: number;
  /** Ask the kernel to merge received datagrams (Linux 5.0); default true. */
  readonly gro?: boolean;
  /** Default true. */
  readonly ipv6?: boolean;
}

/** Two sockets with one port, one per family; without IPv6 on the machine `v6` is -1. Whoever holds it closes it. */
export interface UdpPair {
  readonly v4: number;
  readonly v6: number;
  readonly port: number;
  /** Received datagrams may come merged (UDP_GRO). */
  readonly gro: boolean;
  /** One message may carry many datagrams (UDP_SEGMENT, Linux 4.18). */
  readonly gso: boolean;
}

/**
 * Opens non-blocking wildcard sockets that are not inherited by child processes, with the local address of each datagram
 * reported and outer fragmentation left to the kernel. Throws NetError `port-taken` naming the port, or `not-permitted`.
 */
export function openUdpPair(options: UdpPairOptions): UdpPair {
  const c = libc();
  for (let attempt = 0; ; attempt++) {
    const v4 = openSocket(c, AF_INET, options);
    if (v4 < 0) throw lastError("cannot open a UDP socket");
    try {
      bindTo(c, v4, AF_INET, options.port);
      const port = boundPort(c, v4);
      const v6 = (options.ipv6 ?? true) ? openV6(c, port, options) : -1;
      return { v4, v6, port, gro: probeGro(c, v4, options), gso: probeGso(c, v4) };
    } catch (error) {
      c.close(v4);
      const another = options.port === 0 && attempt < FREE_PORT_ATTEMPTS;
      if (!(another && error instanceof NetError && error.code === "port-taken")) throw error;
    }
  }
}

export function closeUdpPair(pair: UdpPair): void {
  const c = libc();
  c.close(pair.v4);
  if (pair.v6 >= 0) c.close(pair.v6);
}

/** -1 when the machine has no IPv6. */
function openV6(c: Libc, port: number, options: UdpPairOptions): number {
  const fd = openSocket(c, AF_INET6, options);
  if (fd < 0) {
    if (c.errno() === Errno.EAFNOSUPPORT) return -1;
    throw lastError("cannot open a UDP socket for IPv6");
  }
  try {
    bindTo(c, fd, AF_INET6, port);
    return fd;
  } catch (error) {
    c.close(fd);
    // With IPv6 switched off by sysctl the socket exists and its wildcard address does not.
    if (error instanceof NetError && (error.errno === "EADDRNOTAVAIL" || error.errno === "EAFNOSUPPORT")) return -1;
    throw error;
  }
}

/** A socket with all options set, not bound; -1 with errno set when there is none. Throws when SO_MARK is refused. */
function openSocket(c: Libc, family: number, options: UdpPairOptions): number {
  const fd = c.socket(family, SOCK_DGRAM_NONBLOCK_CLOEXEC, 0);
  if (fd < 0) return fd;
  for (const [force, plain] of [
    [SO_RCVBUFFORCE, SO_RCVBUF],
    [SO_SNDBUFFORCE, SO_SNDBUF],
  ] as const) {
    // FORCE passes the administrator's maximum and needs CAP_NET_ADMIN; the plain form takes what it gets.
    if (!setInt(c, fd, SOL_SOCKET, force, SOCKET_BUFFER_BYTES)) setInt(c, fd, SOL_SOCKET, plain, SOCKET_BUFFER_BYTES);
  }
  setInt(c, fd, SOL_SOCKET, SO_RXQ_OVFL, 1);
  if (family === AF_INET) {
    setInt(c, fd, SOL_IP, IP_PKTINFO, 1);
    setInt(c, fd, SOL_IP, IP_MTU_DISCOVER, 0);
  } else {
    setInt(c, fd, SOL_IPV6, IPV6_V6ONLY, 1);
    setInt(c, fd, SOL_IPV6, IPV6_RECVPKTINFO, 1);
    setInt(c, fd, SOL_IPV6, IPV6_MTU_DISCOVER, 0);
  }
  if (options.gro ?? true) setInt(c, fd, SOL_UDP, UDP_GRO, 1);
  if (options.fwmark && !setInt(c, fd, SOL_SOCKET, SO_MARK, options.fwmark)) {
    const error = lastError(`cannot mark packets with ${options.fwmark}`);
    c.close(fd);
    throw error;
  }
  return fd;
}

function bindTo(c: Libc, fd: number, family: number, port: number): void {
  const address = new Uint8Array(family === AF_INET ? SOCKADDR_IN_BYTES : SOCKADDR_IN6_BYTES);
  const view = new DataView(address.buffer);
  view.setUint16(0, family, true);
  view.setUint16(2, port);
  if (c.bind(fd, address, address.length) === 0) return;
  const errno = c.errno();
  const name = errnoName(errno);
  if (errno === Errno.EADDRINUSE)
    throw new NetError("port-taken", `UDP port ${port} is already in use`, { errno: name, retryable: true });
  if (errno === Errno.EACCES || errno === Errno.EPERM)
    throw new NetError("not-permitted", `binding UDP port ${port} is not permitted`, { errno: name });
  throw new NetError("syscall-failed", `cannot bind UDP port ${port}: ${name}`, { errno: name });
}

function boundPort(c: Libc, fd: number): number {
  const address = new Uint8Array(SOCKADDR_IN6_BYTES);
  const length = new Uint32Array([address.length]);
  if (c.getsockname(fd, address, length) < 0) throw lastError("cannot read the bound port");
  return new DataView(address.buffer).getUint16(2);
}

function probeGro(c: Libc, fd: number, options: UdpPairOptions): boolean {
  return (options.gro ?? true) && getInt(c, fd, SOL_UDP, UDP_GRO) === 1;
}

function probeGso(c: Libc, fd: number): boolean {
  return getInt(c, fd, SOL_UDP, UDP_SEGMENT) !== undefined;
}

function setInt(c: Libc, fd: number, level: number, name: number, value: number): boolean {
  return c.setsockopt(fd, level, name, new Uint32Array([value]), 4) === 0;
}

function getInt(c: Libc, fd: number, level: number, name: number): number | undefined {
  const value = new Int32Array(1);
  return c.getsockopt(fd, level, name, value, new Uint32Array([4])) === 0 ? value[0] : undefined;
}
