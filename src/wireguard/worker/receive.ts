import { TRANSPORT_OVERHEAD } from "../constants.ts";
import { COOKIE_REPLY_BYTES, INITIATION_BYTES, MessageType, RESPONSE_BYTES } from "../messages.ts";
import type { Aead } from "./aead.ts";
import type { Arena } from "./arena.ts";
import type { Capture } from "./capture.ts";
import type { Coalescer } from "./coalesce.ts";
import type { PacketFilter } from "./filter.ts";
import type { HandshakeGate } from "./handshake-gate.ts";
import { ipLength } from "./inner-packet.ts";
import type { SessionLimits } from "./limits.ts";
import { PathKind, type Peer } from "./peers.ts";
import { Captured, Report } from "./records.ts";
import type { AddressPlace, Reporter } from "./reporter.ts";
import type { Routes } from "./routes.ts";
import type { Session, Sessions } from "./sessions.ts";
import { Counter, PeerField, type Stats } from "./stats.ts";
import type { Timers } from "./timers.ts";
import type { Transmitter } from "./transmit.ts";
import type { UdpReceiver } from "./udp-receive.ts";

const HEADER_BYTES = 16;
/** A counter with this high word or more cannot be reached in a session's life: refused with the paper's limit. */
const COUNTER_HIGH_LIMIT = 2 ** 21;
const STUN_COOKIE = 0x2112a442;
const STUN_HEADER_BYTES = 20;
const HINT_INTERVAL_MS = 1000;
/** Relayed datagrams of one turn wait here until their packets are written. */
const INJECT_BYTES = 512 << 10;

export interface ReceiveDeps {
  readonly arena: Arena;
  readonly aead: Aead;
  readonly sessions: Sessions;
  readonly routes: Routes;
  readonly timers: Timers;
  readonly reporter: Reporter;
  readonly gate: HandshakeGate;
  readonly stats: Stats;
  readonly applyCommands: () => void;
  readonly coalescer: Coalescer;
  readonly transmitter: Transmitter;
  readonly limits: SessionLimits;
  readonly filter: PacketFilter;
  readonly capture: Capture;
}

/**
 * From the network to the TUN, top to bottom: tell WireGuard from STUN, find the session, decrypt in place, refuse replays,
 * then believe: confirm the session, learn the path, run the timers, check the inner source, write.
 */
export class Receiver {
  /** Device clock of this turn of the loop. */
  now = 0;
  readonly #deps: ReceiveDeps;
  readonly #bytes: Uint8Array;
  readonly #view: DataView;
  readonly #words: Float64Array;
  readonly #inject: number;
  #injected = 0;
  readonly #relaySource: AddressPlace = { family: PathKind.relay, at: 0, port: 0 };
  readonly #noAddress: AddressPlace = { family: PathKind.none, at: 0, port: 0 };

  constructor(deps: ReceiveDeps) {
    this.#deps = deps;
    this.#bytes = deps.arena.bytes;
    this.#view = deps.arena.view;
    this.#words = deps.stats.words;
    this.#inject = deps.arena.take(INJECT_BYTES);
  }

  /** Receives and writes one batch from a socket. False when there was nothing. */
  turn(udp: UdpReceiver): boolean {
    const messages = udp.receive();
    if (messages <= 0) return false;
    // Main gave a session's keys before it answered the handshake, so they are in the ring by now, if not here.
    this.#deps.applyCommands();
    for (let i = 0; i < messages; i++) {
      udp.read(i);
      if (udp.truncated) {
        this.#words[Counter["drop-truncated"]]!++;
        continue;
      }
      // Datagrams merged by the kernel come from one source and have one size; what each is must be asked of each.
      let done = 0;
      do {
        const length = Math.min(udp.segmentBytes, udp.length - done);
        this.#datagram(udp.at + done, length, udp.source, -1, udp.local);
        done += udp.segmentBytes;
      } while (done < udp.length);
    }
    this.#deps.coalescer.flush();
    return true;
  }

  /** Takes a datagram that a relay delivered from the peer of `slot`; `endInjected` must follow. */
  injectRelayed(slot: number, from: Uint8Array, at: number, length: number): void {
    const place = (this.#injected + 63) & ~63;
    if (place + length > INJECT_BYTES) {
      this.endInjected();
      if (length > INJECT_BYTES) {
        this.#words[Counter["drop-truncated"]]!++;
        return;
      }
      this.injectRelayed(slot, from, at, length);
      return;
    }
    this.#bytes.set(from.subarray(at, at + length), this.#inject + place);
    this.#injected = place + length;
    this.#datagram(this.#inject + place, length, this.#relaySource, slot, this.#noAddress);
  }

  /** Writes what the injected datagrams held; their memory is used again. */
  endInjected(): void {
    if (this.#injected === 0) return;
    this.#deps.coalescer.flush();
    this.#injected = 0;
  }

  /** `relaySlot` -1: from a socket. */
  #datagram(at: number, length: number, source: AddressPlace, relaySlot: number, local: AddressPlace): void {
    this.#words[Counter["rx-datagrams"]]!++;
    if (length >= TRANSPORT_OVERHEAD) {
      const type = this.#view.getUint32(at, true);
      if (type === MessageType.transport) {
        this.#transport(at, length, source, relaySlot);
        return;
      }
      if (
        (type === MessageType.initiation && length === INITIATION_BYTES) ||
        (type === MessageType.response && length === RESPONSE_BYTES) ||
        (type === MessageType.cookieReply && length === COOKIE_REPLY_BYTES)
      ) {
        if (type !== MessageType.cookieReply && !this.#deps.gate.admits(at, type, source, relaySlot, this.now)) return;
        const slot = Math.max(relaySlot, 0);
        this.#deps.reporter.datagram(Report.handshake, at, length, source, slot, local, this.now);
        return;
      }
      if (type >= 1 && type <= 3) {
        this.#words[Counter["drop-malformed"]]!++;
        return;
      }
    }
    if (relaySlot < 0 && this.#isStun(at, length)) {
      this.#deps.reporter.datagram(Report.stun, at, length, source, 0, local, this.now);
      return;
    }
    this.#words[Counter["drop-unknown-type"]]!++;
  }

  /** RFC 8489 section 5: two zero bits, length a multiple of 4 that fits, magic cookie. */
  #isStun(at: number, length: number): boolean {
    return (
      length >= STUN_HEADER_BYTES &&
      (this.#bytes[at]! & 0xc0) === 0 &&
      this.#view.getUint32(at + 4) === STUN_COOKIE &&
      length % 4 === 0 &&
      this.#view.getUint16(at + 2) + STUN_HEADER_BYTES === length
    );
  }

  /** The order of the checks is the protocol's (paper section 5.4.6): nothing is believed before the tag and the window. */
  #transport(at: number, length: number, source: AddressPlace, relaySlot: number): void {
    const { sessions, limits, aead, stats, timers, coalescer, filter } = this.#deps;
    const view = this.#view;
    const session = sessions.find(view.getUint32(at + 4, true));
    if (session === undefined) {
      this.#words[Counter["drop-unknown-index"]]!++;
      return;
    }
    if (this.now - session.createdAt >= limits.rejectAfterTime) {
      this.#words[Counter["drop-expired"]]!++;
      return;
    }
    const peer = session.peer;
    if (relaySlot >= 0 && relaySlot !== peer.slot) {
      this.#words[Counter["drop-relay-mismatch"]]!++;
      return;
    }
    const low = view.getUint32(at + 8, true);
    const high = view.getUint32(at + 12, true);
    if (high >= COUNTER_HIGH_LIMIT) {
      this.#words[Counter["drop-replay"]]!++;
      return;
    }
    const inner = at + HEADER_BYTES;
    const innerBytes = length - TRANSPORT_OVERHEAD;
    if (!aead.open(session.receiveKey, low, high, inner, innerBytes)) {
      this.#words[Counter["drop-authentication"]]!++;
      return;
    }
    if (!session.window.accept(high * 0x100000000 + low)) {
      this.#words[Counter["drop-replay"]]!++;
      return;
    }

    const row = stats.row(peer.slot);
    this.#words[row + PeerField.rxBytes]! += length;
    this.#words[Counter["rx-bytes"]]! += length;
    this.#words[row + PeerField.lastRx] = this.now;
    this.#words[Counter["rx-packets"]]!++;
    if (session === peer.next) this.#confirmed(peer, session, source);
    if (!this.#isPath(peer, source)) this.#elsewhere(peer, source);
    timers.authenticatedReceived(peer, this.now);
    this.#renewOnReceive(peer, session);
    if (innerBytes === 0) return;

    timers.dataReceived(peer, this.now);
    const packetBytes = ipLength(this.#bytes, inner, innerBytes);
    if (packetBytes === 0) {
      this.#words[Counter["drop-inner-malformed"]]!++;
      return;
    }
    if (this.#deps.routes.source(inner) !== peer.slot) {
      this.#words[Counter["drop-allowed-ips"]]!++;
      return;
    }
    this.#words[row + PeerField.lastDataRx] = this.now;
    if (peer.asleep) this.#deps.reporter.wakeByData(peer, source);
    if (filter.isOn && !filter.accepts(inner, packetBytes)) {
      this.#words[Counter["drop-filter"]]!++;
      if (this.#deps.capture.isOn) this.#deps.capture.add(Captured.filtered, peer.slot, inner, packetBytes);
      return;
    }
    if (this.#deps.capture.isOn) this.#deps.capture.add(Captured.inbound, peer.slot, inner, packetBytes);
    coalescer.add(inner, packetBytes);
  }

  #confirmed(peer: Peer, session: Session, source: AddressPlace): void {
    const { sessions, reporter, transmitter, stats } = this.#deps;
    sessions.confirm(peer);
    this.#words[stats.row(peer.slot) + PeerField.sessionCreated] = peer.current?.createdAt ?? 0;
    reporter.confirmed(peer, session.localIndex, source);
    transmitter.flushStaged(peer);
  }

  /** The initiator renews an old session when it only receives, once (paper section 6.2). */
  #renewOnReceive(peer: Peer, session: Session): void {
    const { limits, reporter } = this.#deps;
    if (!session.initiator || session.askedOnReceive || session !== peer.current || peer.asleep) return;
    const renewAt = limits.rejectAfterTime - limits.keepaliveTimeout - limits.rekeyTimeout;
    if (this.now - session.createdAt <= renewAt) return;
    session.askedOnReceive = true;
    reporter.needHandshake(peer, "rekey-time", this.now);
  }

  #isPath(peer: Peer, source: AddressPlace): boolean {
    if (peer.path !== source.family) return false;
    if (source.family === PathKind.relay) return true;
    const view = this.#view;
    const { sockaddr } = peer;
    if (sockaddr[0] !== view.getUint32(source.at - (source.family === PathKind.v4 ? 4 : 8), true)) return false;
    if (source.family === PathKind.v4) return sockaddr[1] === view.getUint32(source.at, true);
    for (let i = 0; i < 4; i++) if (sockaddr[2 + i] !== view.getUint32(source.at + 4 * i, true)) return false;
    return true;
  }

  /** An authenticated packet came from where we do not send: a hint, and the path of a peer that has none. */
  #elsewhere(peer: Peer, source: AddressPlace): void {
    if (peer.asleep) return;
    const adopted = peer.path === PathKind.none;
    if (adopted) this.#adopt(peer, source);
    const fingerprint = this.#fingerprint(source);
    if (adopted || fingerprint !== peer.pathHintSource || this.now - peer.pathHintAt >= HINT_INTERVAL_MS) {
      peer.pathHintSource = fingerprint;
      peer.pathHintAt = this.now;
      this.#deps.reporter.pathHint(peer, source, adopted);
    }
    if (adopted) this.#deps.transmitter.pathGiven(peer);
  }

  #adopt(peer: Peer, source: AddressPlace): void {
    peer.path = source.family;
    peer.gso = true;
    peer.sockaddr.fill(0);
    if (source.family === PathKind.relay) return;
    const from = source.at - (source.family === PathKind.v4 ? 4 : 8);
    const words = source.family === PathKind.v4 ? 2 : 7;
    for (let i = 0; i < words; i++) peer.sockaddr[i] = this.#view.getUint32(from + 4 * i, true);
    // Flow information belongs to the packet that came.
    if (source.family === PathKind.v6) peer.sockaddr[1] = 0;
  }

  #fingerprint(source: AddressPlace): number {
    let value = source.family * 65_537 + source.port;
    if (source.family === PathKind.relay) return value;
    const bytes = source.family === PathKind.v4 ? 4 : 16;
    for (let i = 0; i < bytes; i += 4) value = (Math.imul(value, 31) ^ this.#view.getInt32(source.at + i)) | 0;
    return value;
  }
}
