import type { Emitter } from "#base/emitter.ts";
import { unreachable } from "#base/errors.ts";
import { type Endpoint, type IpAddress, ipFromBytes } from "#base/ip.ts";
import { errnoName } from "#net/errno.ts";
import type { DataPlaneEvents, PlaneSource } from "./plane-events.ts";
import { FAMILY_RELAY, HANDSHAKE_REASONS, RecordField, Report } from "./records.ts";
import type { Ring } from "./ring.ts";

/**
 * Main's end of a ring from the worker: turns up to `limit` records into events, at least one, and no more once the turn `isOver`.
 * Returns true when more wait.
 */
export function emitReports(
  ring: Ring,
  events: Emitter<DataPlaneEvents>,
  limit: number,
  isOver: () => boolean = () => false,
): boolean {
  for (let count = 0; count < limit; count++) {
    if (count > 0 && isOver()) return true;
    const at = ring.next();
    if (at < 0) return false;
    const emit = parseReport(ring, at, events);
    // Released before the listeners run: everything they get was copied.
    ring.release();
    emit();
  }
  return true;
}

/**
 * The same for the ring of relayed datagrams, without a copy: the listener's view ends when it returns. Copies, each with
 * memory of its own, made the garbage collector take a fifth of all time.
 */
export function emitRelayed(ring: Ring, events: Emitter<DataPlaneEvents>, limit: number): boolean {
  const { bytes, view } = ring;
  for (let count = 0; count < limit; count++) {
    const at = ring.next();
    if (at < 0) return false;
    const from = at + RecordField.payload;
    const slot = view.getUint32(at + RecordField.slot, true);
    const datagram = bytes.subarray(from, from + view.getUint32(at + RecordField.payloadBytes, true));
    try {
      events.emit("relayOut", { slot, datagram });
    } finally {
      ring.release();
    }
  }
  return true;
}

function parseReport(ring: Ring, at: number, events: Emitter<DataPlaneEvents>): () => void {
  const { bytes, view } = ring;
  const report = bytes[at + RecordField.opcode] as Report;
  const slot = view.getUint32(at + RecordField.slot, true);
  const argument = view.getUint32(at + RecordField.argument, true);
  const port = view.getUint16(at + RecordField.port, true);
  const family = bytes[at + RecordField.family]!;
  const payload = (): Uint8Array => {
    const from = at + RecordField.payload;
    return bytes.slice(from, from + view.getUint32(at + RecordField.payloadBytes, true));
  };
  const endpoint = (): Endpoint => ({ address: addressAt(bytes, at + RecordField.address, family), port });
  const source = (): PlaneSource =>
    family === FAMILY_RELAY ? { kind: "relay", slot } : { kind: "udp", endpoint: endpoint() };
  const family2 = bytes[at + RecordField.family2]!;
  const port2 = view.getUint16(at + RecordField.port2, true);
  const second = (): IpAddress => addressAt(bytes, at + RecordField.address2, family2);

  switch (report) {
    case Report.wakePacket: {
      const packet = {
        source: addressAt(bytes, at + RecordField.address, family),
        destination: second(),
        protocol: bytes[at + RecordField.protocol]!,
        sourcePort: port,
        destinationPort: port2,
        bytes: argument,
      };
      return () => events.emit("wake", { slot, cause: { kind: "packet", packet } });
    }
    case Report.wakeData: {
      const from = source();
      return () => events.emit("wake", { slot, cause: { kind: "data", source: from } });
    }
    case Report.handshake: {
      const payloadCopy = payload();
      const from = source();
      const local = family2 === 0 ? undefined : second();
      const receivedAt = view.getFloat64(at + RecordField.time, true);
      return () => events.emit("handshake", { datagram: payloadCopy, source: from, local, receivedAt });
    }
    case Report.stun: {
      const datagram = payload();
      const from = endpoint();
      const to = family2 === 0 ? undefined : { address: second(), port: port2 };
      const receivedAt = view.getFloat64(at + RecordField.time, true);
      return () => events.emit("stun", { datagram, from, to, receivedAt });
    }
    case Report.relayOut:
      // They have a ring of their own, which emitRelayed reads.
      return () => {};
    case Report.needHandshake: {
      const reason = HANDSHAKE_REASONS[argument]!;
      return () => events.emit("needHandshake", { slot, reason });
    }
    case Report.confirmed: {
      const from = source();
      return () => events.emit("confirmed", { slot, localIndex: argument, source: from });
    }
    case Report.sessionEnded:
      return () => events.emit("sessionEnded", { slot, localIndex: argument });
    case Report.silent:
      return () => events.emit("silent", { slot });
    case Report.pathHint: {
      const from = source();
      return () => events.emit("pathHint", { slot, source: from, adopted: argument === 1 });
    }
    case Report.pathError: {
      const to = endpoint();
      return () => events.emit("pathError", { slot, endpoint: to, code: errnoName(argument) });
    }
    default:
      return unreachable(report);
  }
}

/** `family` 6 is IPv6, anything else IPv4. */
function addressAt(bytes: Uint8Array, offset: number, family: number): IpAddress {
  return ipFromBytes(bytes.slice(offset, offset + (family === 6 ? 16 : 4)));
}
