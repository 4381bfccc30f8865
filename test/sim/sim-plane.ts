import { Emitter } from "#base/emitter.ts";
import { type Endpoint, formatEndpoint, formatPrefix, type Prefix } from "#base/ip.ts";
import type { Clock, Millis, Timer } from "#base/time.ts";
import { TRANSPORT_OVERHEAD } from "#wireguard/constants.ts";
import type { DevicePath } from "#wireguard/device.ts";
import { MessageType } from "#wireguard/messages.ts";
import type { Plane } from "#wireguard/plane.ts";
import type { SessionKeys } from "#wireguard/worker/commands.ts";
import { PROTOCOL_LIMITS } from "#wireguard/worker/limits.ts";
import { PathKind, type Peer, Peers } from "#wireguard/worker/peers.ts";
import type { DataPlaneEvents, PlaneSource } from "#wireguard/worker/plane-events.ts";
import { type Session, Sessions } from "#wireguard/worker/sessions.ts";
import { STAGED_PEER_MAX_BYTES } from "#wireguard/worker/staging.ts";
import { Counter, PeerField, Stats } from "#wireguard/worker/stats.ts";
import { Timers } from "#wireguard/worker/timers.ts";

const CAPACITY = 256;
const PORT = 51820;
const HEADER_BYTES = 16;
const TAG_BYTES = 16;
const VIRTIO_BYTES = 10;
const FRESH_STAGED: Millis = 1000;
const REPORT_INTERVAL: Millis = 1000;
const STUN_COOKIE = 0x2112a442;

/** An inner packet: what the world knows of it is kept under `id`. At least INNER_MIN_BYTES. */
export interface InnerPacket {
  readonly id: number;
  /** Overlay addresses. */
  readonly source: string;
  readonly destination: string;
  readonly bytes: number;
}

/** `id`, source and destination as they stand in the plaintext. */
export const INNER_MIN_BYTES = 16;

export interface SimPlaneDeps {
  /** Not the agent's own: the plane stands for another thread. */
  readonly clock: Clock;
  /** False: there is no network to send on. */
  readonly send: (datagram: Uint8Array, to: Endpoint) => boolean;
  /** A packet leaves, encrypted. */
  readonly emit: (packet: InnerPacket) => void;
  /** A decrypted packet for the machine. */
  readonly deliver: (packet: InnerPacket) => void;
  /** A packet that is given up, and the counter that says why. */
  readonly drop: (packet: InnerPacket, why: string) => void;
}

/** The packet in a transport message of the simulation; undefined for keepalives and everything else. */
export function readInner(datagram: Uint8Array): InnerPacket | undefined {
  const bytes = datagram.length - TRANSPORT_OVERHEAD;
  if (datagram[0] !== MessageType.transport || bytes < INNER_MIN_BYTES) return undefined;
  const view = new DataView(datagram.buffer, datagram.byteOffset);
  const address = (at: number): string => [...datagram.subarray(at, at + 4)].join(".");
  return {
    id: view.getUint32(HEADER_BYTES),
    bytes: view.getUint32(HEADER_BYTES + 4),
    source: address(HEADER_BYTES + 8),
    destination: address(HEADER_BYTES + 12),
  };
}

/**
 * Stands for the data worker in a simulation, with the worker's own sessions, timers and peer tables, and its rules for
 * staging, sleeping, hints and reports (src/wireguard/worker). Left out are system calls, segmentation and encryption: a
 * transport message carries the sender's key as its tag, so only the holder of the session accepts it, once.
 *
 * As in the real one nothing happens inside a call: commands take effect, and reports arrive, later in the same instant, or
 * after `lag`, in order.
 */
export class SimPlane implements Plane {
  readonly events = new Emitter<DataPlaneEvents>();
  readonly features = ["simulated"];
  readonly interfaceName = "perch0";
  readonly listenPort = PORT;
  handshakeLoad = 0;
  setCookieSecret(): void {}
  /** Time a command or a report takes between the two threads. */
  lag: Millis = 0;
  readonly #deps: SimPlaneDeps;
  readonly #clock: Clock;
  readonly #stats = Stats.create(CAPACITY);
  readonly #peers = new Peers(CAPACITY);
  readonly #sessions: Sessions;
  readonly #timers: Timers;
  readonly #tags = new WeakMap<Session, { readonly send: Uint8Array; readonly receive: Uint8Array }>();
  readonly #routes = new Map<string, number>();
  readonly #paths = new Map<number, DevicePath>();
  readonly #staged = new Map<number, InnerPacket[]>();
  readonly #hinted = new Map<number, string>();
  #timer: Timer | undefined;
  #timerAt = Number.POSITIVE_INFINITY;
  /** Under way between the two threads. */
  readonly #commands: (() => void)[] = [];
  readonly #reports: (() => void)[] = [];
  #closed = false;

  constructor(deps: SimPlaneDeps) {
    this.#deps = deps;
    this.#clock = deps.clock;
    this.#sessions = new Sessions((session) =>
      this.#report("sessionEnded", { slot: session.peer.slot, localIndex: session.localIndex }),
    );
    this.#timers = new Timers(PROTOCOL_LIMITS, {
      sendKeepalive: (peer) => this.#keepalive(peer),
      noAnswer: (peer) => this.#needHandshake(peer, "no-answer"),
      silent: ({ slot }) => this.#report("silent", { slot }),
      expireSessions: (peer) => this.#expire(peer, PROTOCOL_LIMITS.rejectAfterTime),
    });
  }

  // Commands

  addPeer(slot: number, { asleep, keepalive = 0 }: { readonly asleep: boolean; readonly keepalive?: number }): void {
    this.#command(() => {
      this.#stats.clearRow(slot);
      this.#peers.add(slot, asleep, keepalive);
    });
  }

  removePeer(slot: number): void {
    this.#commandFor(slot, () => {
      for (const [prefix, owner] of this.#routes) if (owner === slot) this.#routes.delete(prefix);
      const peer = this.#peers.active(slot);
      if (peer) {
        this.#clearStaged(peer, "drop-staged-removed");
        this.#sessions.expire(peer, Number.POSITIVE_INFINITY, 0);
        this.#timers.remove(peer);
      }
      this.#paths.delete(slot);
      this.#peers.remove(slot);
      this.#stats.clearRow(slot);
    });
  }

  setAsleep(slot: number, asleep: boolean): void {
    this.#commandFor(slot, () => (asleep ? this.#sleep(slot) : this.#wake(slot)));
  }

  /** The worker of a simulation never dies, and nobody looks at its packets. */
  restorePeer(): void {}
  startCapture(): void {}
  stopCapture(): void {}

  rearmWake(slot: number): void {
    this.#commandFor(slot, () => {
      const peer = this.#peers.active(slot);
      if (!peer) return;
      peer.wakeReported = false;
      this.#peers.releaseIfIdle(peer);
    });
  }

  /** The packets of a simulation have no protocol and no ports: there is nothing to judge them by. */
  setFilter(): void {}

  setFilterSource(): void {}

  setKeepalive(slot: number, seconds: number): void {
    this.#commandFor(slot, () => {
      const was = this.#peers.active(slot)?.persistentKeepalive ?? 0;
      this.#peers.setKeepalive(slot, seconds);
      const peer = this.#peers.active(slot);
      if (!peer || peer.asleep) return;
      this.#timers.keepaliveChanged(peer, this.#now());
      if (was === 0 && seconds > 0) this.#keepalive(peer);
    });
  }

  addPrefix(slot: number, prefix: Prefix): void {
    this.#commandFor(slot, () => void this.#routes.set(formatPrefix(prefix), slot));
  }

  removePrefix(slot: number, prefix: Prefix): void {
    this.#commandFor(slot, () => {
      if (this.#routes.get(formatPrefix(prefix)) === slot) this.#routes.delete(formatPrefix(prefix));
    });
  }

  setPath(slot: number, path: DevicePath): void {
    this.#commandFor(slot, () => {
      const peer = this.#peers.active(slot);
      if (!peer || peer.asleep) return;
      this.#takePath(peer, path);
      this.#pathGiven(peer);
    });
  }

  installSession(slot: number, keys: SessionKeys): void {
    const send = keys.sendKey.slice(0, TAG_BYTES);
    const receive = keys.receiveKey.slice(0, TAG_BYTES);
    const { role, localIndex, remoteIndex } = keys;
    const createdAt = this.#now();
    this.#commandFor(slot, () => {
      const peer = this.#peers.activate(slot);
      const initiator = role === "initiator";
      const nowhere = new Uint8Array(64);
      const session = this.#sessions.install(peer, { initiator, localIndex, remoteIndex, createdAt }, nowhere, 0);
      this.#tags.set(session, { send, receive });
      this.#timers.sessionInstalled(peer, createdAt);
      if (!initiator) return;
      this.#set(slot, PeerField.sessionCreated, createdAt);
      if (peer.stagedPackets > 0 && !peer.asleep && peer.path !== PathKind.none) this.#flushStaged(peer);
      else this.#sendKeepalive(peer);
    });
  }

  dropStaged(slot: number): void {
    this.#commandFor(slot, () => {
      const peer = this.#peers.active(slot);
      if (peer) this.#clearStaged(peer, "drop-staged-given-up");
    });
  }

  noteAuthenticated(slot: number, direction: "sent" | "received", bytes = 0): void {
    this.#commandFor(slot, () => {
      const sent = direction === "sent";
      this.#add(slot, sent ? PeerField.txBytes : PeerField.rxBytes, bytes);
      this.#set(slot, sent ? PeerField.lastTx : PeerField.lastRx, this.#now());
      const peer = this.#peers.active(slot);
      if (!peer) return;
      if (sent) this.#timers.authenticatedSent(peer, this.#now());
      else this.#timers.authenticatedReceived(peer, this.#now());
    });
  }

  injectRelayed(slot: number, datagram: Uint8Array): void {
    this.#commandFor(slot, () => this.#datagram(datagram, { kind: "relay", slot }));
  }

  sendDatagram(datagram: Uint8Array, to: Endpoint): string | undefined {
    if (this.#closed) return "EBADF";
    return this.#deps.send(datagram, to) ? undefined : "ENETUNREACH";
  }

  peerCounters(slot: number): ReturnType<Plane["peerCounters"]> {
    return this.#stats.peer(slot);
  }

  counters(): ReturnType<Plane["counters"]> {
    return new Map([...this.#stats.device(), ["drop-relay-queue-in", 0] as const]);
  }

  isWorking(): boolean {
    return true;
  }

  close(): Promise<void> {
    this.#closed = true;
    this.#timer?.cancel();
    return Promise.resolve();
  }

  // From the machine

  /** A packet of a program on this machine; false when no peer has the destination. */
  outbound(packet: InnerPacket): boolean {
    const slot = this.#routes.get(`${packet.destination}/32`);
    if (slot === undefined) {
      this.#count("drop-no-route");
      return false;
    }
    const peer = this.#peers.active(slot);
    const session = peer && this.#usable(peer);
    if (peer && session && !peer.asleep && peer.path !== PathKind.none && peer.stagedPackets === 0) {
      this.#send(peer, session, packet);
    } else {
      this.#stage(slot, packet);
    }
    this.#armTimer();
    return true;
  }

  /** Packets that wait, over all peers. */
  get stagedPackets(): number {
    let count = 0;
    for (const packets of this.#staged.values()) count += packets.length;
    return count;
  }

  get sessions(): number {
    return this.#sessions.size;
  }

  // From the network

  receive(datagram: Uint8Array, from: Endpoint): void {
    if (this.#closed) return;
    // The worker takes what is in the ring before it looks at what came.
    for (const run of this.#commands.splice(0)) run();
    this.#datagram(datagram, { kind: "udp", endpoint: from });
    this.#armTimer();
  }

  #datagram(datagram: Uint8Array, source: PlaneSource): void {
    const view = new DataView(datagram.buffer, datagram.byteOffset, datagram.length);
    const type = datagram.length >= TRANSPORT_OVERHEAD ? view.getUint32(0, true) : 0;
    const receivedAt = this.#now();
    if (type === MessageType.transport) return this.#transport(datagram, view, source);
    if (type >= 1 && type <= 3)
      return this.#report("handshake", { datagram: datagram.slice(), source, local: undefined, receivedAt });
    if (source.kind === "udp" && datagram.length >= 20 && view.getUint32(4) === STUN_COOKIE) {
      const { endpoint: from } = source;
      return this.#report("stun", { datagram: datagram.slice(), from, to: undefined, receivedAt });
    }
    this.#count("drop-unknown-type");
  }

  #transport(datagram: Uint8Array, view: DataView, source: PlaneSource): void {
    const now = this.#now();
    const packet = readInner(datagram);
    const refuse = (why: keyof typeof Counter): void => {
      this.#count(why);
      if (packet) this.#deps.drop(packet, why);
    };
    const session = this.#sessions.find(view.getUint32(4, true));
    if (!session) return refuse("drop-unknown-index");
    if (now - session.createdAt >= PROTOCOL_LIMITS.rejectAfterTime) return refuse("drop-expired");
    const { peer } = session;
    if (source.kind === "relay" && source.slot !== peer.slot) return refuse("drop-relay-mismatch");
    const tag = datagram.subarray(datagram.length - TAG_BYTES);
    if (Buffer.compare(tag, this.#tags.get(session)!.receive) !== 0) return refuse("drop-authentication");
    const counter = view.getUint32(12, true) * 2 ** 32 + view.getUint32(8, true);
    if (!session.window.accept(counter)) return refuse("drop-replay");

    this.#add(peer.slot, PeerField.rxBytes, datagram.length);
    this.#set(peer.slot, PeerField.lastRx, now);
    if (session === peer.next) {
      this.#sessions.confirm(peer);
      this.#set(peer.slot, PeerField.sessionCreated, peer.current?.createdAt ?? 0);
      this.#report("confirmed", { slot: peer.slot, localIndex: session.localIndex, source });
      this.#flushStaged(peer);
    }
    if (!this.#isPath(peer, source)) this.#elsewhere(peer, source);
    this.#timers.authenticatedReceived(peer, now);
    this.#renewOnReceive(peer, session);
    if (datagram.length === TRANSPORT_OVERHEAD) return;
    this.#timers.dataReceived(peer, now);
    if (!packet || this.#routes.get(`${packet.source}/32`) !== peer.slot) return refuse("drop-allowed-ips");
    this.#set(peer.slot, PeerField.lastDataRx, now);
    if (peer.asleep && !peer.wakeReported) {
      peer.wakeReported = true;
      this.#report("wake", { slot: peer.slot, cause: { kind: "data", source } });
    }
    this.#deps.deliver(packet);
  }

  #renewOnReceive(peer: Peer, session: Session): void {
    if (!session.initiator || session.askedOnReceive || session !== peer.current || peer.asleep) return;
    const { rejectAfterTime, keepaliveTimeout, rekeyTimeout } = PROTOCOL_LIMITS;
    if (this.#now() - session.createdAt <= rejectAfterTime - keepaliveTimeout - rekeyTimeout) return;
    session.askedOnReceive = true;
    this.#needHandshake(peer, "rekey-time");
  }

  #isPath(peer: Peer, source: PlaneSource): boolean {
    const path = this.#paths.get(peer.slot) ?? { kind: "none" };
    if (path.kind !== "udp" || source.kind !== "udp") return path.kind === source.kind;
    return formatEndpoint(path.endpoint) === formatEndpoint(source.endpoint);
  }

  #elsewhere(peer: Peer, source: PlaneSource): void {
    if (peer.asleep) return;
    const now = this.#now();
    const adopted = peer.path === PathKind.none;
    if (adopted) this.#takePath(peer, source.kind === "relay" ? { kind: "relay" } : source);
    const name = source.kind === "relay" ? "relay" : formatEndpoint(source.endpoint);
    if (adopted || name !== this.#hinted.get(peer.slot) || now - peer.pathHintAt >= REPORT_INTERVAL) {
      this.#hinted.set(peer.slot, name);
      peer.pathHintAt = now;
      this.#report("pathHint", { slot: peer.slot, source, adopted });
    }
    if (adopted) this.#pathGiven(peer);
  }

  // Sleeping and staging

  #sleep(slot: number): void {
    this.#peers.setAsleep(slot, true);
    const peer = this.#peers.active(slot);
    this.#paths.delete(slot);
    if (!peer) return;
    this.#sessions.retire(peer);
    this.#set(slot, PeerField.sessionCreated, 0);
    peer.path = PathKind.none;
    peer.wakeReported = false;
    this.#timers.stop(peer);
    if (peer.stagedPackets > 0) {
      if (this.#now() - peer.stagedAt > FRESH_STAGED) this.#clearStaged(peer, "drop-staged-asleep");
      else this.#wakeByPacket(peer, this.#staged.get(slot)![0]!);
    }
    this.#peers.releaseIfIdle(peer);
  }

  #wake(slot: number): void {
    this.#peers.setAsleep(slot, false);
    const peer = this.#peers.activate(slot);
    peer.wakeReported = false;
    this.#timers.keepaliveChanged(peer, this.#now());
    this.#flushStaged(peer);
  }

  #stage(slot: number, packet: InnerPacket): void {
    const asleep = this.#peers.isAsleep(slot);
    const peer = this.#peers.activate(slot);
    const queue = this.#staged.get(slot) ?? [];
    this.#staged.set(slot, queue);
    const cost = stagedCost(packet);
    while (queue.length > 0 && peer.stagedBytes + cost > STAGED_PEER_MAX_BYTES) {
      this.#deps.drop(this.#shiftStaged(peer, queue), "drop-staged-peer-full");
      this.#count("drop-staged-peer-full");
    }
    queue.push(packet);
    peer.stagedBytes += cost;
    peer.stagedPackets++;
    peer.stagedAt = this.#now();
    this.#set(slot, PeerField.stagedBytes, peer.stagedBytes);
    this.#set(slot, PeerField.lastDataTx, this.#now());
    if (asleep) this.#wakeByPacket(peer, packet);
    else if (!this.#usable(peer)) this.#needHandshake(peer, "staged");
  }

  #wakeByPacket(peer: Peer, packet: InnerPacket): void {
    if (peer.wakeReported) return;
    peer.wakeReported = true;
    const { source, destination, bytes } = packet;
    const summary = { source, destination, protocol: 17, sourcePort: 9, destinationPort: 9, bytes };
    this.#report("wake", { slot: peer.slot, cause: { kind: "packet", packet: summary } });
  }

  #shiftStaged(peer: Peer, queue: InnerPacket[]): InnerPacket {
    const packet = queue.shift()!;
    peer.stagedPackets--;
    peer.stagedBytes -= stagedCost(packet);
    this.#set(peer.slot, PeerField.stagedBytes, peer.stagedBytes);
    return packet;
  }

  #clearStaged(peer: Peer, why: keyof typeof Counter): void {
    const queue = this.#staged.get(peer.slot) ?? [];
    while (queue.length > 0) {
      this.#count(why);
      this.#deps.drop(this.#shiftStaged(peer, queue), why);
    }
  }

  #flushStaged(peer: Peer): void {
    const queue = this.#staged.get(peer.slot) ?? [];
    while (queue.length > 0) {
      const session = this.#usable(peer);
      if (!session) {
        if (!peer.asleep) this.#needHandshake(peer, "staged");
        return;
      }
      if (peer.asleep || peer.path === PathKind.none) return;
      this.#send(peer, session, this.#shiftStaged(peer, queue));
    }
  }

  #pathGiven(peer: Peer): void {
    this.#flushStaged(peer);
    // The responder may not send before it saw a packet of ours.
    if (peer.current?.initiator && peer.current.sendCounter === 0) this.#sendKeepalive(peer);
  }

  // Sending

  #usable(peer: Peer): Session | undefined {
    const session = peer.current;
    return session && this.#now() - session.createdAt < PROTOCOL_LIMITS.rejectAfterTime ? session : undefined;
  }

  #keepalive(peer: Peer): void {
    if (peer.asleep || this.#sendKeepalive(peer)) return;
    if (!this.#usable(peer)) this.#needHandshake(peer, "keepalive");
  }

  #sendKeepalive(peer: Peer): boolean {
    const session = this.#usable(peer);
    if (!session || peer.path === PathKind.none) return false;
    this.#emit(peer, session, undefined);
    this.#sent(peer, session, false);
    return true;
  }

  #send(peer: Peer, session: Session, packet: InnerPacket): void {
    this.#emit(peer, session, packet);
    this.#sent(peer, session, true);
  }

  #emit(peer: Peer, session: Session, packet: InnerPacket | undefined): void {
    const datagram = new Uint8Array(TRANSPORT_OVERHEAD + (packet?.bytes ?? 0));
    const view = new DataView(datagram.buffer);
    const counter = session.sendCounter++;
    view.setUint32(0, MessageType.transport, true);
    view.setUint32(4, session.remoteIndex, true);
    view.setUint32(8, counter, true);
    if (packet) {
      this.#deps.emit(packet);
      view.setUint32(HEADER_BYTES, packet.id);
      view.setUint32(HEADER_BYTES + 4, packet.bytes);
      datagram.set(packet.source.split(".").map(Number), HEADER_BYTES + 8);
      datagram.set(packet.destination.split(".").map(Number), HEADER_BYTES + 12);
    }
    datagram.set(this.#tags.get(session)!.send, datagram.length - TAG_BYTES);
    const { slot } = peer;
    const path = this.#paths.get(slot)!;
    if (path.kind === "relay") this.#report("relayOut", { slot, datagram });
    else if (path.kind === "udp" && !this.#deps.send(datagram, path.endpoint)) {
      if (packet) this.#deps.drop(packet, "no-network");
      if (this.#now() - peer.pathErrorAt >= REPORT_INTERVAL) {
        peer.pathErrorAt = this.#now();
        this.#report("pathError", { slot, endpoint: path.endpoint, code: "ENETUNREACH" });
      }
    }
    this.#add(slot, PeerField.txBytes, datagram.length);
  }

  #sent(peer: Peer, session: Session, data: boolean): void {
    const now = this.#now();
    if (data) {
      this.#timers.dataSent(peer, now);
      this.#set(peer.slot, PeerField.lastDataTx, now);
    }
    this.#timers.authenticatedSent(peer, now);
    this.#set(peer.slot, PeerField.lastTx, now);
    if (session.initiator && now - session.createdAt > PROTOCOL_LIMITS.rekeyAfterTime)
      this.#needHandshake(peer, "rekey-time");
  }

  #needHandshake(peer: Peer, reason: DataPlaneEvents["needHandshake"]["reason"]): void {
    if (this.#now() - peer.askedAt < REPORT_INTERVAL && peer.askedReason === reason) return;
    peer.askedReason = reason;
    peer.askedAt = this.#now();
    this.#report("needHandshake", { slot: peer.slot, reason });
  }

  // The two threads

  #command(run: () => void): void {
    if (this.#closed) return;
    this.#inOrder(this.#commands, () => {
      run();
      this.#armTimer();
    });
  }

  #commandFor(slot: number, run: () => void): void {
    this.#command(() => {
      if (this.#peers.exists(slot)) run();
    });
  }

  #report<Name extends keyof DataPlaneEvents>(name: Name, payload: DataPlaneEvents[Name]): void {
    this.#inOrder(this.#reports, () => this.events.emit(name, payload));
  }

  #inOrder(queue: (() => void)[], run: () => void): void {
    queue.push(run);
    this.#clock.after(this.lag, () => {
      const first = queue.shift();
      if (!this.#closed) first?.();
    });
  }

  #armTimer(): void {
    const next = this.#timers.nextAt;
    if (next === this.#timerAt || this.#closed) return;
    this.#timer?.cancel();
    this.#timerAt = next;
    if (next === Number.POSITIVE_INFINITY) return;
    this.#timer = this.#clock.after(next - this.#now(), () => {
      this.#timerAt = Number.POSITIVE_INFINITY;
      this.#timers.run(this.#now());
      this.#armTimer();
    });
  }

  #expire(peer: Peer, age: Millis): void {
    this.#sessions.expire(peer, this.#now(), age);
    this.#set(peer.slot, PeerField.sessionCreated, peer.current?.createdAt ?? 0);
    this.#peers.releaseIfIdle(peer);
  }

  #takePath(peer: Peer, path: DevicePath): void {
    this.#paths.set(peer.slot, path);
    peer.path = path.kind === "udp" ? PathKind.v4 : PathKind[path.kind];
  }

  #now(): Millis {
    return this.#clock.now();
  }

  #set(slot: number, field: number, value: number): void {
    this.#stats.words[this.#stats.row(slot) + field] = value;
  }

  #add(slot: number, field: number, value: number): void {
    this.#stats.words[this.#stats.row(slot) + field]! += value;
  }

  #count(name: keyof typeof Counter): void {
    this.#stats.words[Counter[name]]!++;
  }
}

/** Packets are kept with their virtio header. */
function stagedCost(packet: InnerPacket): number {
  return packet.bytes + VIRTIO_BYTES;
}
