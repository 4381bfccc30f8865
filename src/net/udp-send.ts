import { type Endpoint, type IpAddress, ipToBytes, isV6 } from "#base/ip.ts";
import { libc } from "./libc.ts";
import { encodeSockaddr } from "./sockaddr.ts";

const MSG_DONTWAIT = 0x40;

/*
 * msghdr      56 B: name 0/8, name bytes 8/4, iov 16/8, iov count 24/8, control 32/8, control bytes 40/8, flags 48/4
 * cmsghdr     length 0/8, level 8/4, type 12/4, data at 16
 * in_pktinfo  12 B: interface 0/4, local address 4/4, destination 8/4      in6_pktinfo  20 B: address 0/16, interface 16/4
 */
const MSGHDR_BYTES = 56;
const CMSG_DATA = 16;

/**
 * Sends one datagram without waiting; the kernel takes it whole or not at all, so other threads may send on the same
 * descriptor. `from` pins the local address. Returns 0 or the error number.
 */
export function sendDatagram(fd: number, datagram: Uint8Array, to: Endpoint, from?: IpAddress): number {
  const c = libc();
  const name = encodeSockaddr(to);
  const sent =
    from === undefined
      ? c.sendto(fd, datagram, datagram.length, MSG_DONTWAIT, name, name.length)
      : sendFrom(fd, datagram, name, from);
  return sent < 0 ? c.errno() : 0;
}

function sendFrom(fd: number, datagram: Uint8Array, name: Uint8Array, from: IpAddress): number {
  const c = libc();
  const control = packetInfo(from);
  const iovec = new BigUint64Array([BigInt(c.addressOf(datagram)), BigInt(datagram.length)]);
  const message = new Uint8Array(MSGHDR_BYTES);
  const header = new DataView(message.buffer);
  const setAddress = (offset: number, value: ArrayBufferView): void =>
    header.setBigUint64(offset, BigInt(c.addressOf(value)), true);
  setAddress(0, name);
  header.setUint32(8, name.length, true);
  setAddress(16, iovec);
  header.setUint32(24, 1, true);
  setAddress(32, control);
  header.setUint32(40, control.length, true);
  return c.sendmsg(fd, message, MSG_DONTWAIT);
}

function packetInfo(from: IpAddress): Uint8Array {
  const v6 = isV6(from);
  const control = new Uint8Array(v6 ? 40 : 32);
  const view = new DataView(control.buffer);
  view.setUint32(0, CMSG_DATA + (v6 ? 20 : 12), true);
  view.setUint32(8, v6 ? 41 : 0, true);
  view.setUint32(12, v6 ? 50 : 8, true);
  control.set(ipToBytes(from), CMSG_DATA + (v6 ? 0 : 4));
  return control;
}
