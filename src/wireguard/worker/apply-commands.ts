import { unreachable } from "#base/errors.ts";
import { COOKIE_SECRET_BYTES } from "../messages.ts";
import type { Capture } from "./capture.ts";
import type { FilterMode, PacketFilter } from "./filter.ts";
import type { HandshakeGate } from "./handshake-gate.ts";
import { PathKind, type Peer, type Peers } from "./peers.ts";
import type { Receiver } from "./receive.ts";
import { ADD_ASLEEP, ADD_RESTORED, Command, FAMILY_RELAY, RecordField } from "./records.ts";
import type { Reporter } from "./reporter.ts";
import type { Ring } from "./ring.ts";
import type { Routes } from "./routes.ts";
import type { SendQueue } from "./send-queue.ts";
import type { Sessions } from "./sessions.ts";
import type { Staging } from "./staging.ts";
import { Counter, PeerField, type Stats } from "./stats.ts";
import type { Timers } from "./timers.ts";
import type { Transmitter } from "./transmit.ts";

/** Packets staged longer ago than this do not wake a peer that just went to sleep. */
const FRESH_STAGED_MS = 1000;

export interface ApplyDeps {
  readonly peers: Peers;
  readonly routes: Routes;
  readonly sessions: Sessions;
  readonly staging: Staging;
  readonly timers: Timers;
  readonly reporter: Reporter;
  readonly stats: Stats;
  readonly queue: SendQueue;
  readonly gate: HandshakeGate;
  readonly transmitter: Transmitter;
  readonly receiver: Receiver;
  readonly filter: PacketFilter;
  readonly capture: Capture;
  /** The ring that main made for the capture that it asks for now. */
  readonly captureRing: () => Ring | undefined;
}

/** The worker's end of the command ring: each record changes the tables at once. Unknown slots are ignored. */
export class CommandApplier {
  /** Device clock of this turn of the loop. */
  now = 0;
  readonly #ring: Ring;
  readonly #deps: ApplyDeps;

  constructor(ring: Ring, deps: ApplyDeps) {
    this.#ring = ring;
    this.#deps = deps;
  }

  /** Applies up to `limit` records; true when some may be left. */
  apply(limit: number): boolean {
    const ring = this.#ring;
    let count = 0;
    while (count < limit) {
      const at = ring.next();
      if (at < 0) break;
      this.#one(ring, at);
      ring.release();
      count++;
    }
    this.#deps.receiver.endInjected();
    if (ring.takeSpaceWish()) this.#deps.reporter.wakeMain();
    return count === limit;
  }

  /** Drops sessions that reached their end, and what hangs on them. */
  expire(peer: Peer, age: number): void {
    const { sessions, peers, stats } = this.#deps;
    sessions.expire(peer, this.now, age);
    stats.words[stats.row(peer.slot) + PeerField.sessionCreated] = peer.current?.createdAt ?? 0;
    peers.releaseIfIdle(peer);
  }

  #one(ring: Ring, at: number): void {
    const { view } = ring;
    const { peers, routes, stats } = this.#deps;
    const command = ring.bytes[at + RecordField.opcode] as Command;
    const slot = view.getUint32(at + RecordField.slot, true);
    const argument = view.getUint32(at + RecordField.argument, true);
    if (command === Command.setMtu) {
      this.#deps.transmitter.mtu = argument;
      return;
    }
    if (command === Command.setCookieSecret) {
      const secret = ring.bytes.subarray(at + RecordField.payload, at + RecordField.payload + COOKIE_SECRET_BYTES);
      this.#deps.gate.setCookieSecret(secret);
      secret.fill(0);
      return;
    }
    if (command === Command.capture) {
      const target = argument === 0 ? undefined : this.#deps.captureRing();
      if (target) this.#deps.capture.begin(target, slot, argument);
      else this.#deps.capture.end();
      return;
    }
    if (isFilterCommand(command)) {
      this.#filter(command, ring, at);
      return;
    }
    if (command === Command.addPeer) {
      if ((argument & ADD_RESTORED) !== 0) stats.takeOverRow(slot);
      else stats.clearRow(slot);
      peers.add(slot, (argument & ADD_ASLEEP) !== 0, argument & 0xffff);
      return;
    }
    if (!peers.exists(slot)) return;
    const isV6 = ring.bytes[at + RecordField.family] === 6;
    switch (command) {
      case Command.removePeer:
        return this.#remove(slot);
      case Command.setAsleep:
        return argument !== 0 ? this.#sleep(slot) : this.#wake(slot);
      case Command.setKeepalive:
        return this.#setKeepalive(slot, argument);
      case Command.addPrefix:
        return routes.add(isV6, view, at + RecordField.address, argument, slot);
      case Command.removePrefix:
        return routes.remove(isV6, view, at + RecordField.address, argument, slot);
      case Command.setPath:
        return this.#setPath(slot, ring, at);
      case Command.installSession:
        return this.#install(slot, ring, at);
      case Command.dropStaged: {
        const peer = peers.active(slot);
        if (peer) this.#deps.staging.clear(peer, Counter["drop-staged-given-up"]);
        return;
      }
      case Command.rearmWake: {
        const peer = peers.active(slot);
        if (!peer) return;
        peer.wakeReported = false;
        peers.releaseIfIdle(peer);
        return;
      }
      case Command.noteAuthenticated:
        return this.#note(slot, argument !== 0, view.getFloat64(at + RecordField.time, true));
      case Command.inject: {
        const bytes = view.getUint32(at + RecordField.payloadBytes, true);
        return this.#deps.receiver.injectRelayed(slot, ring.bytes, at + RecordField.payload, bytes);
      }
      default:
        // A record that this worker does not know can only be a mistake in the program.
        return unreachable(command);
    }
  }

  #filter(command: FilterCommand, ring: Ring, at: number): void {
    const { filter } = this.#deps;
    const argument = ring.view.getUint32(at + RecordField.argument, true);
    switch (command) {
      case Command.filterBegin:
        return filter.begin(argument as FilterMode);
      case Command.filterSource: {
        const isV6 = ring.bytes[at + RecordField.family] === 6;
        const bytes = ring.view.getUint32(at + RecordField.payloadBytes, true);
        const rules = ring.bytes.subarray(at + RecordField.payload, at + RecordField.payload + bytes);
        return filter.setSource(isV6, ring.view, at + RecordField.address, argument, rules);
      }
      case Command.filterCommit:
        return filter.commit();
      default:
        return unreachable(command);
    }
  }

  #remove(slot: number): void {
    const { peers, routes, sessions, staging, timers, stats } = this.#deps;
    routes.removePeer(slot);
    const peer = peers.active(slot);
    if (peer) {
      staging.clear(peer, Counter["drop-staged-removed"]);
      sessions.expire(peer, Number.POSITIVE_INFINITY, 0);
      timers.remove(peer);
    }
    peers.remove(slot);
    stats.clearRow(slot);
  }

  #sleep(slot: number): void {
    const { peers, sessions, staging, stats, timers } = this.#deps;
    peers.setAsleep(slot, true);
    const peer = peers.active(slot);
    if (!peer) return;
    sessions.retire(peer);
    stats.words[stats.row(slot) + PeerField.sessionCreated] = 0;
    peer.path = PathKind.none;
    peer.wakeReported = false;
    timers.stop(peer);
    if (peer.stagedPackets > 0) {
      if (this.now - peer.stagedAt > FRESH_STAGED_MS) staging.clear(peer, Counter["drop-staged-asleep"]);
      else this.#deps.transmitter.wakeByStaged(peer);
    }
    peers.releaseIfIdle(peer);
  }

  #wake(slot: number): void {
    const { peers, timers, transmitter } = this.#deps;
    peers.setAsleep(slot, false);
    const peer = peers.activate(slot);
    peer.wakeReported = false;
    timers.keepaliveChanged(peer, this.now);
    transmitter.flushStaged(peer);
  }

  #setKeepalive(slot: number, seconds: number): void {
    const { peers } = this.#deps;
    const was = peers.active(slot)?.persistentKeepalive ?? 0;
    peers.setKeepalive(slot, seconds);
    const peer = peers.active(slot);
    if (!peer || peer.asleep) return;
    this.#deps.timers.keepaliveChanged(peer, this.now);
    if (was === 0 && seconds > 0) this.sendKeepalive(peer);
  }

  /** Sends a keepalive, or asks for the session that it needs. */
  sendKeepalive(peer: Peer): void {
    if (peer.asleep || this.#deps.transmitter.sendKeepalive(peer)) return;
    if (!this.#deps.transmitter.usableSession(peer)) this.#deps.reporter.needHandshake(peer, "keepalive", this.now);
  }

  #setPath(slot: number, ring: Ring, at: number): void {
    const { peers, queue, transmitter } = this.#deps;
    const peer = peers.active(slot);
    // An asleep peer has no path.
    if (!peer || peer.asleep) return;
    queue.closeMessage();
    const family = ring.bytes[at + RecordField.family]!;
    const address = at + RecordField.address;
    peer.gso = true;
    peer.sockaddr.fill(0);
    peer.path =
      family === FAMILY_RELAY
        ? PathKind.relay
        : family === 4
          ? PathKind.v4
          : family === 6
            ? PathKind.v6
            : PathKind.none;
    if (peer.path === PathKind.v4 || peer.path === PathKind.v6) {
      const sockaddr = new DataView(peer.sockaddr.buffer);
      sockaddr.setUint16(0, peer.path === PathKind.v4 ? 2 : 10, true);
      sockaddr.setUint16(2, ring.view.getUint16(at + RecordField.port, true));
      const bytes = new Uint8Array(peer.sockaddr.buffer);
      if (peer.path === PathKind.v4) bytes.set(ring.bytes.subarray(address, address + 4), 4);
      else bytes.set(ring.bytes.subarray(address, address + 16), 8);
    }
    transmitter.pathGiven(peer);
  }

  #install(slot: number, ring: Ring, at: number): void {
    const { peers, sessions, timers, transmitter, stats } = this.#deps;
    const peer = peers.activate(slot);
    const payload = at + RecordField.payload;
    const initiator = ring.view.getUint32(at + RecordField.argument, true) !== 0;
    const createdAt = ring.view.getFloat64(at + RecordField.time, true);
    sessions.install(
      peer,
      {
        initiator,
        createdAt,
        localIndex: ring.view.getUint32(payload, true),
        remoteIndex: ring.view.getUint32(payload + 4, true),
      },
      ring.bytes,
      payload + 8,
    );
    ring.bytes.fill(0, payload + 8, payload + 72);
    timers.sessionInstalled(peer, createdAt);
    if (!initiator) return;
    stats.words[stats.row(slot) + PeerField.sessionCreated] = createdAt;
    // The responder may not send before it saw a packet: with nothing waiting, a keepalive is that packet.
    if (peer.stagedPackets > 0 && !peer.asleep && peer.path !== PathKind.none) transmitter.flushStaged(peer);
    else transmitter.sendKeepalive(peer);
  }

  #note(slot: number, sent: boolean, bytes: number): void {
    const { peers, timers, stats } = this.#deps;
    const row = stats.row(slot);
    stats.words[row + (sent ? PeerField.txBytes : PeerField.rxBytes)]! += bytes;
    stats.words[Counter[sent ? "tx-bytes" : "rx-bytes"]]! += bytes;
    stats.words[row + (sent ? PeerField.lastTx : PeerField.lastRx)] = this.now;
    const peer = peers.active(slot);
    if (!peer) return;
    if (sent) timers.authenticatedSent(peer, this.now);
    else timers.authenticatedReceived(peer, this.now);
  }
}

type FilterCommand = typeof Command.filterBegin | typeof Command.filterSource | typeof Command.filterCommit;

function isFilterCommand(command: Command): command is FilterCommand {
  return command === Command.filterBegin || command === Command.filterSource || command === Command.filterCommit;
}
