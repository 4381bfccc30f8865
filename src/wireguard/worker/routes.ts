import { AllowedIps } from "./allowed-ips.ts";
import { IPV4, IPV6, PROTOCOL_UDP, UDP } from "./inner-packet.ts";

/**
 * UDP ports that are asked only to find out who is there: NetBIOS names and datagrams, SSDP, WS-Discovery, mDNS, LLMNR. What
 * is found by them is then used by other ports, which wake.
 */
export const DISCOVERY_PORTS: readonly number[] = [137, 138, 1900, 3702, 5353, 5355];

/** Allowed IPs of both families, asked with packets in the arena. */
export class Routes {
  readonly #view: DataView;
  readonly #v4 = new AllowedIps(32);
  readonly #v6 = new AllowedIps(128);

  constructor(view: DataView) {
    this.#view = view;
  }

  /** Slot of the peer that the packet's destination belongs to, or -1. Version and length were checked. */
  destination(at: number): number {
    return this.#lookup(at, IPV4.destination, IPV6.destination);
  }

  /** Slot of the peer that the packet's source belongs to, or -1. */
  source(at: number): number {
    return this.#lookup(at, IPV4.source, IPV6.source);
  }

  /**
   * Whether the packet is for whoever is there: multicast, the broadcast address of everything or of the prefix that
   * `destination` found for it just now, or a service discovery, which programs send to single addresses as well.
   */
  isBroadcast(at: number): boolean {
    const view = this.#view;
    if (isDiscovery(view, at)) return true;
    if (view.getUint8(at) >> 4 === 6) return view.getUint8(at + IPV6.destination) === 0xff;
    const address = view.getUint32(at + IPV4.destination);
    if (address >>> 28 === 14 || address === 0xffffffff) return true;
    const bits = this.#v4.matchedBits;
    if (bits < 1 || bits > 30) return false;
    const hosts = 0xffffffff >>> bits;
    return (address & hosts) >>> 0 === hosts;
  }

  /** `view` holds the address in network order at `at`. */
  add(isV6: boolean, view: DataView, at: number, bits: number, slot: number): void {
    if (isV6)
      this.#v6.add(view.getInt32(at), view.getInt32(at + 4), view.getInt32(at + 8), view.getInt32(at + 12), bits, slot);
    else this.#v4.add(view.getInt32(at), 0, 0, 0, bits, slot);
  }

  remove(isV6: boolean, view: DataView, at: number, bits: number, slot: number): void {
    if (isV6)
      this.#v6.remove(
        view.getInt32(at),
        view.getInt32(at + 4),
        view.getInt32(at + 8),
        view.getInt32(at + 12),
        bits,
        slot,
      );
    else this.#v4.remove(view.getInt32(at), 0, 0, 0, bits, slot);
  }

  removePeer(slot: number): void {
    this.#v4.removePeer(slot);
    this.#v6.removePeer(slot);
  }

  #lookup(at: number, v4: number, v6: number): number {
    const view = this.#view;
    if (view.getUint8(at) >> 4 === 4) return this.#v4.lookup(view.getInt32(at + v4), 0, 0, 0);
    const a = at + v6;
    return this.#v6.lookup(view.getInt32(a), view.getInt32(a + 4), view.getInt32(a + 8), view.getInt32(a + 12));
  }
}

/** A UDP datagram to a port of service discovery; version and length were checked. */
function isDiscovery(view: DataView, at: number): boolean {
  const isV6 = view.getUint8(at) >> 4 === 6;
  if (view.getUint8(at + (isV6 ? IPV6.nextHeader : IPV4.protocol)) !== PROTOCOL_UDP) return false;
  const header = isV6 ? IPV6.bytes : (view.getUint8(at) & 15) * 4;
  const length = isV6 ? IPV6.bytes + view.getUint16(at + IPV6.payloadLength) : view.getUint16(at + IPV4.totalLength);
  if (length < header + UDP.bytes) return false;
  const isLaterFragment = !isV6 && (view.getUint16(at + IPV4.fragment) & 0x1fff) !== 0;
  return !isLaterFragment && DISCOVERY_PORTS.includes(view.getUint16(at + header + 2));
}
