import { Errno } from "#net/errno.ts";
import { type Libc, libc } from "#net/libc.ts";
import { PADDING_MULTIPLE, TRANSPORT_OVERHEAD } from "../constants.ts";
import type { Aead } from "./aead.ts";
import type { Arena } from "./arena.ts";
import type { Capture } from "./capture.ts";
import type { PacketFilter } from "./filter.ts";
import { ipLength, VIRTIO } from "./inner-packet.ts";
import type { SessionLimits } from "./limits.ts";
import { PathKind, type Peer, type Peers } from "./peers.ts";
import { Captured, RECORD_HEADER_BYTES, RecordField, Report } from "./records.ts";
import type { Reporter } from "./reporter.ts";
import type { Routes } from "./routes.ts";
import { Segmenter } from "./segment.ts";
import type { SendQueue } from "./send-queue.ts";
import type { Session } from "./sessions.ts";
import type { Staging } from "./staging.ts";
import { Counter, PeerField, type Stats } from "./stats.ts";
import type { Timers } from "./timers.ts";
import type { TunWriter } from "./tun-writer.ts";

/** Largest packet that a TUN delivers. */
const TUN_PACKET_BYTES = 65_536;
/** Packets read in one turn, so that a flood of packets that lead nowhere does not keep receiving from its turn. */
const READS_PER_TURN = 512;

const TRANSPORT_TYPE = 4;
const HEADER_BYTES = 16;

export interface TransmitDeps {
  readonly arena: Arena;
  readonly aead: Aead;
  readonly peers: Peers;
  readonly routes: Routes;
  readonly staging: Staging;
  readonly timers: Timers;
  readonly reporter: Reporter;
  readonly stats: Stats;
  readonly queue: SendQueue;
  readonly tun: TunWriter;
  readonly limits: SessionLimits;
  readonly filter: PacketFilter;
  readonly capture: Capture;
}

/**
 * From the TUN to the network, top to bottom: read a packet, find its peer, cut it into segments, encrypt each straight into
 * the send queue. What has no session or no path is staged.
 */
export class Transmitter {
  /** Device clock of this turn of the loop. */
  now = 0;
  mtu: number;
  readonly #deps: TransmitDeps;
  readonly #libc: Libc;
  readonly #tunFd: number;
  readonly #virtioHeader: boolean;
  readonly #bytes: Uint8Array;
  readonly #segmenter: Segmenter;
  readonly #words: Float64Array;
  readonly #relayAddress: number;
  /** The one packet being worked on; its virtio header lies in front of it. */
  readonly #packet: number;
  readonly #paddingSaved = new Uint8Array(PADDING_MULTIPLE);
  /** Peers whose staged packets had to stop because the socket's buffer was full. */
  #waiting: Peer[] = [];

  constructor(deps: TransmitDeps, options: { tunFd: number; mtu: number }) {
    this.#deps = deps;
    this.#libc = libc();
    this.#tunFd = options.tunFd;
    this.#virtioHeader = deps.tun.virtioHeader;
    this.mtu = options.mtu;
    this.#bytes = deps.arena.bytes;
    this.#words = deps.stats.words;
    this.#segmenter = new Segmenter(deps.arena);
    this.#relayAddress = this.#libc.addressOf(deps.reporter.relay.bytes);
    // 64 bytes in front keep the packet itself aligned; 64 behind take padding.
    this.#packet = deps.arena.take(64 + TUN_PACKET_BYTES + 64) + 64;
  }

  /** Staged packets stopped at a full socket: they go on with the next turn that finds room. */
  get hasWaiting(): boolean {
    return this.#waiting.length > 0;
  }

  /** Reads and sends one batch. False when there was nothing to read. */
  turn(): boolean {
    const { queue } = this.#deps;
    if (queue.blockedFamily !== 0 && !queue.flush()) return false;
    this.#resumeStaged();
    let reads = 0;
    while (reads < READS_PER_TURN && !queue.full) {
      const length = this.#read();
      if (length < 0) break;
      reads++;
      this.#outbound(length);
    }
    queue.flush();
    return reads > 0;
  }

  /** Sends a keepalive when the peer has a session and a path. */
  sendKeepalive(peer: Peer): boolean {
    const session = this.usableSession(peer);
    if (!session || peer.path === PathKind.none) return false;
    this.#emit(peer, session, this.#packet, 0);
    this.#sent(peer, session, false);
    return true;
  }

  /**
   * The peer got a path: what waits leaves. A session of ours that was never sent with is confirmed with a keepalive, for
   * the responder may not send before it saw a packet.
   */
  pathGiven(peer: Peer): void {
    this.flushStaged(peer);
    if (peer.current?.initiator && peer.current.sendCounter === 0) this.sendKeepalive(peer);
  }

  /** Sends what waits for the peer, in order, as far as it has a session and a path. */
  flushStaged(peer: Peer): void {
    const { queue, staging, reporter } = this.#deps;
    while (peer.stagedPackets > 0) {
      const session = this.usableSession(peer);
      if (!session) {
        if (!peer.asleep) reporter.needHandshake(peer, "staged", this.now);
        return;
      }
      if (peer.asleep || peer.path === PathKind.none) return;
      if (queue.full) queue.flush();
      if (queue.blockedFamily !== 0) {
        this.#waiting.push(peer);
        return;
      }
      this.#send(peer, session, staging.shift(peer, this.#packet));
    }
  }

  /** Reports a wake for the oldest packet that waits for an asleep peer. */
  wakeByStaged(peer: Peer): void {
    const length = this.#deps.staging.peek(peer, this.#packet);
    if (length >= 0) this.#deps.reporter.wakeByPacket(peer, this.#packet, length);
  }

  /** The session that may be used for sending now. */
  usableSession(peer: Peer): Session | undefined {
    const session = peer.current;
    if (session === undefined) return undefined;
    const { limits } = this.#deps;
    const usable =
      this.now - session.createdAt < limits.rejectAfterTime && session.sendCounter < limits.rejectAfterMessages;
    return usable ? session : undefined;
  }

  #resumeStaged(): void {
    if (this.#waiting.length === 0) return;
    const peers = this.#waiting;
    this.#waiting = [];
    for (const peer of peers) this.flushStaged(peer);
  }

  /** Reads one packet to `#packet`; its length, or -1 when there is none. */
  #read(): number {
    const header = this.#virtioHeader ? VIRTIO.bytes : 0;
    const address = this.#deps.arena.base + this.#packet - header;
    for (;;) {
      const bytes = this.#libc.readAt(this.#tunFd, address, TUN_PACKET_BYTES + header);
      if (bytes >= header) {
        this.#words[Counter["tun-read"]]!++;
        return bytes - header;
      }
      const errno = this.#libc.errno();
      if (errno === Errno.EINTR) continue;
      if (errno === Errno.EBADFD || errno === Errno.EBADF) this.#deps.tun.gone = true;
      return -1;
    }
  }

  #outbound(length: number): void {
    const at = this.#packet;
    const { peers, routes } = this.#deps;
    if (ipLength(this.#bytes, at, length) === 0) {
      this.#words[Counter["drop-outbound-malformed"]]!++;
      return;
    }
    const slot = routes.destination(at);
    if (slot < 0) {
      this.#words[Counter["drop-no-route"]]!++;
      return;
    }
    const peer = peers.active(slot);
    if (peer !== undefined && !peer.asleep && peer.path !== PathKind.none && peer.stagedPackets === 0) {
      const session = this.usableSession(peer);
      if (session !== undefined) {
        if (this.#deps.capture.isOn) this.#deps.capture.add(Captured.outbound, slot, at, length);
        this.#send(peer, session, length);
        return;
      }
    }
    this.#stage(slot, length);
  }

  /** Keeps the packet until there is a session and a path, and says that they are wanted. */
  #stage(slot: number, length: number): void {
    const { peers, routes, staging, reporter, stats } = this.#deps;
    const asleep = peers.isAsleep(slot);
    if (asleep && routes.isBroadcast(this.#packet)) {
      this.#words[Counter["drop-multicast-asleep"]]!++;
      return;
    }
    if (this.#deps.capture.isOn) this.#deps.capture.add(Captured.waiting, slot, this.#packet, length);
    const peer = peers.activate(slot);
    if (staging.push(peer, this.#packet, length, this.now)) this.#words[Counter["staged-packets"]]!++;
    this.#words[stats.row(slot) + PeerField.lastDataTx] = this.now;
    if (asleep) reporter.wakeByPacket(peer, this.#packet, length);
    else if (!this.usableSession(peer)) reporter.needHandshake(peer, "staged", this.now);
  }

  /** Sends the packet at `#packet`, in as many datagrams as its virtio header asks for. */
  #send(peer: Peer, session: Session, length: number): void {
    const segmenter = this.#segmenter;
    const { filter } = this.#deps;
    if (filter.isOn) filter.outbound(this.#packet, length);
    const count = segmenter.begin(this.#packet, length);
    if (count === 0) {
      this.#words[Counter["drop-outbound-malformed"]]!++;
      return;
    }
    for (let i = 0; i < count; i++) {
      segmenter.segment(i, count);
      this.#emit(peer, session, segmenter.offset, segmenter.length);
    }
    this.#sent(peer, session, true);
  }

  /** What follows from having sent: timers, renewal of the session (paper section 6.2), statistics. */
  #sent(peer: Peer, session: Session, data: boolean): void {
    const { timers, reporter, limits, stats } = this.#deps;
    const row = stats.row(peer.slot);
    if (data) {
      timers.dataSent(peer, this.now);
      this.#words[row + PeerField.lastDataTx] = this.now;
    }
    timers.authenticatedSent(peer, this.now);
    this.#words[row + PeerField.lastTx] = this.now;
    if (session.sendCounter > limits.rekeyAfterMessages) reporter.needHandshake(peer, "rekey-count", this.now);
    else if (session.initiator && this.now - session.createdAt > limits.rekeyAfterTime)
      reporter.needHandshake(peer, "rekey-time", this.now);
  }

  /** Encrypts one inner packet (empty: keepalive) into the send queue, or into the ring towards the relay. */
  #emit(peer: Peer, session: Session, at: number, length: number): void {
    const { arena, queue, stats, reporter } = this.#deps;
    const padded = this.#paddedLength(length);
    const size = padded + TRANSPORT_OVERHEAD;
    const counter = session.sendCounter++;
    if (peer.path === PathKind.relay) {
      const ring = reporter.relay;
      const record = ring.begin(RECORD_HEADER_BYTES + size);
      if (record < 0) {
        ring.countDropped();
        this.#words[Counter["drop-relay-queue"]]!++;
        return;
      }
      ring.bytes[record + RecordField.opcode] = Report.relayOut;
      ring.bytes[record + RecordField.family] = 0;
      ring.bytes[record + RecordField.family2] = 0;
      ring.view.setUint32(record + RecordField.slot, peer.slot, true);
      ring.view.setUint32(record + RecordField.payloadBytes, size, true);
      this.#seal(session, counter, at, length, padded, ring.view, record + RecordField.payload, this.#relayAddress);
      ring.commit();
      reporter.noteRelayWritten();
    } else {
      const place = queue.reserve(peer, size);
      if (place < 0) return;
      this.#seal(session, counter, at, length, padded, arena.view, place, arena.base);
    }
    this.#words[stats.row(peer.slot) + PeerField.txBytes]! += size;
    this.#words[Counter["tx-packets"]]!++;
    this.#words[Counter["tx-bytes"]]! += size;
  }

  /** Writes header, ciphertext and tag to offset `to` of `view`, whose memory begins at address `base`. */
  #seal(
    session: Session,
    counter: number,
    at: number,
    length: number,
    padded: number,
    view: DataView,
    to: number,
    base: number,
  ): void {
    const low = counter >>> 0;
    const high = Math.floor(counter / 0x100000000);
    view.setUint32(to, TRANSPORT_TYPE, true);
    view.setUint32(to + 4, session.remoteIndex, true);
    view.setUint32(to + 8, low, true);
    view.setUint32(to + 12, high, true);
    const bytes = this.#bytes;
    // The bytes behind a segment belong to the next one: lent for the padding and put back.
    for (let i = length; i < padded; i++) {
      this.#paddingSaved[i - length] = bytes[at + i]!;
      bytes[at + i] = 0;
    }
    const { arena, aead } = this.#deps;
    aead.seal(session.sendKey, low, high, arena.base + at, padded, view, to + HEADER_BYTES, base);
    for (let i = length; i < padded; i++) bytes[at + i] = this.#paddingSaved[i - length]!;
  }

  /** A multiple of 16, but not above the MTU; a packet from before the MTU shrank is padded as its last MTU-sized part. */
  #paddedLength(length: number): number {
    const last = length > this.mtu ? length % this.mtu : length;
    const padded = Math.min((last + PADDING_MULTIPLE - 1) & ~(PADDING_MULTIPLE - 1), this.mtu);
    return length - last + padded;
  }
}
