import type { PathKind, Peer } from "./peers.ts";
import { HANDSHAKE_REASONS, type HandshakeReason, RECORD_HEADER_BYTES, RecordField, Report } from "./records.ts";
import type { Ring } from "./ring.ts";
import { Counter, type Stats } from "./stats.ts";

/** An address in the arena: `family` is a PathKind, 0 when there is none. */
export interface AddressPlace {
  family: PathKind;
  /** Offset of the 4 or 16 address bytes. */
  at: number;
  port: number;
}

const ASK_INTERVAL_MS = 1000;

/**
 * The worker's end of the rings towards main. Main is woken once per turn of the loop, when something was written and it
 * sleeps.
 */
export class Reporter {
  readonly relay: Ring;
  /** Where captured packets go, while there is a capture. */
  capture: Ring | undefined;
  readonly #events: Ring;
  readonly #datagrams: Ring;
  readonly #stats: Stats;
  readonly #arenaBytes: Uint8Array;
  readonly #wakeMain: () => void;
  #written = false;

  constructor(
    rings: { events: Ring; datagrams: Ring; relay: Ring },
    stats: Stats,
    arenaBytes: Uint8Array,
    wakeMain: () => void,
  ) {
    this.relay = rings.relay;
    this.#events = rings.events;
    this.#datagrams = rings.datagrams;
    this.#stats = stats;
    this.#arenaBytes = arenaBytes;
    this.#wakeMain = wakeMain;
  }

  /** Wakes main when it has something to read. Called once per turn of the loop. */
  flush(): void {
    if (!this.#written) return;
    this.#written = false;
    const asleep = [this.#events, this.#datagrams, this.relay].map((ring) => ring.consumerSleeps());
    if (asleep.includes(true) || this.capture?.consumerSleeps()) this.#wakeMain();
  }

  /** Makes main look even when no record was written: the command ring has room again. */
  wakeMain(): void {
    this.#wakeMain();
  }

  /** Main should be woken: a record was written to `relay` or `capture` by somebody else. */
  noteRelayWritten(): void {
    this.#written = true;
  }

  /** Reports the first packet towards an asleep peer; once per sleep. `at`: the packet in the arena. */
  wakeByPacket(peer: Peer, at: number, length: number): void {
    if (peer.wakeReported) return;
    const bytes = this.#arenaBytes;
    const isV6 = bytes[at]! >> 4 === 6;
    const record = this.#begin(this.#events, Report.wakePacket, peer.slot);
    if (record < 0) return;
    const ring = this.#events;
    const addressBytes = isV6 ? 16 : 4;
    const source = at + (isV6 ? 8 : 12);
    const transport = at + (isV6 ? 40 : (bytes[at]! & 15) * 4);
    const protocol = bytes[at + (isV6 ? 6 : 9)]!;
    ring.bytes[record + RecordField.family] = isV6 ? 6 : 4;
    ring.bytes[record + RecordField.family2] = isV6 ? 6 : 4;
    ring.bytes[record + RecordField.protocol] = protocol;
    for (let i = 0; i < addressBytes; i++) {
      ring.bytes[record + RecordField.address + i] = bytes[source + i]!;
      ring.bytes[record + RecordField.address2 + i] = bytes[source + addressBytes + i]!;
    }
    // TCP, UDP, SCTP, UDP-Lite, DCCP begin with the ports; fragments after the first do not have them.
    const laterFragment = !isV6 && (((bytes[at + 6]! << 8) | bytes[at + 7]!) & 0x1fff) !== 0;
    if ([6, 17, 33, 132, 136].includes(protocol) && !laterFragment && transport + 4 <= at + length) {
      ring.view.setUint16(record + RecordField.port, (bytes[transport]! << 8) | bytes[transport + 1]!, true);
      ring.view.setUint16(record + RecordField.port2, (bytes[transport + 2]! << 8) | bytes[transport + 3]!, true);
    }
    // An echo or time stamp request has an identifier instead, which tells programs apart as a port does.
    const type = bytes[transport]!;
    const isQuery = isV6 ? protocol === 58 && type === 128 : protocol === 1 && (type === 8 || type === 13);
    if (isQuery && !laterFragment && transport + 6 <= at + length)
      ring.view.setUint16(record + RecordField.port, (bytes[transport + 4]! << 8) | bytes[transport + 5]!, true);
    ring.view.setUint32(record + RecordField.argument, length, true);
    this.#commit(ring);
    peer.wakeReported = true;
  }

  wakeByData(peer: Peer, source: AddressPlace): void {
    if (peer.wakeReported) return;
    const record = this.#begin(this.#events, Report.wakeData, peer.slot);
    if (record < 0) return;
    this.#writeAddress(this.#events, record, source);
    this.#commit(this.#events);
    peer.wakeReported = true;
  }

  /** The same reason at most once a second per peer. */
  needHandshake(peer: Peer, reason: HandshakeReason, now: number): void {
    if (now - peer.askedAt < ASK_INTERVAL_MS && peer.askedReason === reason) return;
    const record = this.#begin(this.#events, Report.needHandshake, peer.slot);
    if (record < 0) return;
    this.#events.view.setUint32(record + RecordField.argument, HANDSHAKE_REASONS.indexOf(reason), true);
    this.#commit(this.#events);
    peer.askedAt = now;
    peer.askedReason = reason;
  }

  confirmed(peer: Peer, localIndex: number, source: AddressPlace): void {
    this.#peerEvent(Report.confirmed, peer.slot, localIndex, source);
  }

  sessionEnded(slot: number, localIndex: number): void {
    this.#peerEvent(Report.sessionEnded, slot, localIndex, undefined);
  }

  silent(peer: Peer): void {
    this.#peerEvent(Report.silent, peer.slot, 0, undefined);
  }

  pathHint(peer: Peer, source: AddressPlace, adopted: boolean): void {
    this.#peerEvent(Report.pathHint, peer.slot, adopted ? 1 : 0, source);
  }

  /** `to` is the peer's path. */
  pathError(peer: Peer, errno: number, now: number): void {
    if (now - peer.pathErrorAt < ASK_INTERVAL_MS) return;
    const record = this.#begin(this.#events, Report.pathError, peer.slot);
    if (record < 0) return;
    const { bytes, view } = this.#events;
    const isV6 = peer.path === 6;
    bytes[record + RecordField.family] = peer.path;
    const address = new Uint8Array(peer.sockaddr.buffer);
    view.setUint16(record + RecordField.port, (address[2]! << 8) | address[3]!, true);
    bytes.set(isV6 ? address.subarray(8, 24) : address.subarray(4, 8), record + RecordField.address);
    view.setUint32(record + RecordField.argument, errno, true);
    this.#commit(this.#events);
    peer.pathErrorAt = now;
  }

  /** A handshake or STUN message at arena offset `at`. Dropped and counted when main does not keep up. */
  datagram(
    report: typeof Report.handshake | typeof Report.stun,
    at: number,
    length: number,
    source: AddressPlace,
    relaySlot: number,
    local: AddressPlace,
    now: number,
  ): void {
    const ring = this.#datagrams;
    const record = this.#begin(ring, report, relaySlot, length);
    if (record < 0) {
      this.#stats.words[Counter["drop-handshake-queue"]]!++;
      return;
    }
    this.#writeAddress(ring, record, source);
    ring.view.setFloat64(record + RecordField.time, now, true);
    if (local.family !== 0) {
      const bytes = local.family === 6 ? 16 : 4;
      for (let i = 0; i < bytes; i++) ring.bytes[record + RecordField.address2 + i] = this.#arenaBytes[local.at + i]!;
      ring.bytes[record + RecordField.family2] = local.family;
      ring.view.setUint16(record + RecordField.port2, local.port, true);
    }
    for (let i = 0; i < length; i++) ring.bytes[record + RecordField.payload + i] = this.#arenaBytes[at + i]!;
    this.#commit(ring);
  }

  #peerEvent(report: Report, slot: number, argument: number, source: AddressPlace | undefined): void {
    const record = this.#begin(this.#events, report, slot);
    if (record < 0) return;
    this.#events.view.setUint32(record + RecordField.argument, argument, true);
    if (source) this.#writeAddress(this.#events, record, source);
    this.#commit(this.#events);
  }

  #begin(ring: Ring, report: Report, slot: number, payloadBytes = 0): number {
    const record = ring.begin(RECORD_HEADER_BYTES + payloadBytes);
    if (record < 0) {
      ring.countDropped();
      return -1;
    }
    ring.bytes.fill(0, record + 4, record + RECORD_HEADER_BYTES);
    ring.bytes[record + RecordField.opcode] = report;
    ring.view.setUint32(record + RecordField.slot, slot, true);
    ring.view.setUint32(record + RecordField.payloadBytes, payloadBytes, true);
    return record;
  }

  #writeAddress(ring: Ring, record: number, place: AddressPlace): void {
    ring.bytes[record + RecordField.family] = place.family;
    if (place.family !== 4 && place.family !== 6) return;
    const bytes = place.family === 6 ? 16 : 4;
    for (let i = 0; i < bytes; i++) ring.bytes[record + RecordField.address + i] = this.#arenaBytes[place.at + i]!;
    ring.view.setUint16(record + RecordField.port, place.port, true);
  }

  #commit(ring: Ring): void {
    ring.commit();
    this.#written = true;
  }
}
