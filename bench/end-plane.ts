import { createCipheriv, createDecipheriv, createSecretKey, type KeyObject } from "node:crypto";
import { createSocket, type Socket } from "node:dgram";
import { once } from "node:events";
import { Emitter } from "#base/emitter.ts";
import { type Endpoint, parseIp, sameEndpoint } from "#base/ip.ts";
import { KEEPALIVE_TIMEOUT, TRANSPORT_OVERHEAD } from "#wireguard/constants.ts";
import type { DevicePath } from "#wireguard/device.ts";
import { MessageType, messageType, TAG_BYTES } from "#wireguard/messages.ts";
import type { Plane } from "#wireguard/plane.ts";
import type { SessionKeys } from "#wireguard/worker/commands.ts";
import type { DataPlaneEvents, PlaneSource } from "#wireguard/worker/plane-events.ts";

const CIPHER = "chacha20-poly1305";
const NONCE_BYTES = 12;
const HEADER_BYTES = 16;
/** A session is forgotten when so many newer ones of its peer came. */
const SESSIONS_KEPT = 3;

interface EndSession {
  readonly slot: number;
  readonly localIndex: number;
  readonly remoteIndex: number;
  readonly sendKey: KeyObject;
  readonly receiveKey: KeyObject;
  readonly createdAt: number;
  /** The peer proved that it has the keys. */
  confirmed: boolean;
  counter: number;
}

interface EndPeer {
  path: DevicePath;
  /** Newest last. */
  sessions: EndSession[];
  keepalive: NodeJS.Timeout | undefined;
  readonly stats: { -readonly [Name in keyof ReturnType<Plane["peerCounters"]>]: number };
}

/**
 * The data plane of an end that thousands share a process with: a UDP socket and WireGuard's transport messages on the main
 * thread, and in place of an interface a function that answers a packet. It keeps no timers but that of the passive keepalive
 * and stages nothing: such an end answers, and begins nothing.
 */
export class EndPlane implements Plane {
  readonly events = new Emitter<DataPlaneEvents>();
  readonly features: readonly string[] = [];
  readonly interfaceName = "end0";
  readonly handshakeLoad = 0;
  readonly #socket: Socket;
  readonly #answer: (packet: Buffer) => Uint8Array | undefined;
  readonly #peers = new Map<number, EndPeer>();
  readonly #sessions = new Map<number, EndSession>();

  private constructor(socket: Socket, answer: (packet: Buffer) => Uint8Array | undefined) {
    this.#socket = socket;
    this.#answer = answer;
    socket.on("error", () => {});
    socket.on("message", (datagram, { address, port }) => {
      this.#receive(datagram, { kind: "udp", endpoint: { address: parseIp(address), port } });
    });
  }

  /** `answer`: what the machine says to a packet. */
  static async open(answer: (packet: Buffer) => Uint8Array | undefined): Promise<EndPlane> {
    const socket = createSocket("udp4");
    socket.bind(0);
    await once(socket, "listening");
    return new EndPlane(socket, answer);
  }

  get listenPort(): number {
    return this.#socket.address().port;
  }

  addPeer(slot: number): void {
    const stats = { rxBytes: 0, txBytes: 0, lastDataRx: 0, lastDataTx: 0, lastRx: 0, stagedBytes: 0, lastTx: 0 };
    const path: DevicePath = { kind: "none" };
    this.#peers.set(slot, { path, sessions: [], keepalive: undefined, stats: { ...stats, sessionCreated: 0 } });
  }

  removePeer(slot: number): void {
    const peer = this.#peers.get(slot);
    clearTimeout(peer?.keepalive);
    for (const { localIndex } of peer?.sessions ?? []) this.#sessions.delete(localIndex);
    this.#peers.delete(slot);
  }

  setAsleep(slot: number, asleep: boolean): void {
    const peer = this.#peers.get(slot);
    if (!peer) return;
    if (asleep) peer.path = { kind: "none" };
    clearTimeout(peer.keepalive);
  }

  setPath(slot: number, path: DevicePath): void {
    const peer = this.#peers.get(slot);
    if (peer) peer.path = path;
  }

  installSession(slot: number, keys: SessionKeys): void {
    const peer = this.#peers.get(slot);
    if (!peer) return;
    const { localIndex, remoteIndex, createdAt = performance.now() } = keys;
    const session: EndSession = {
      ...{ slot, localIndex, remoteIndex, createdAt, counter: 0 },
      sendKey: createSecretKey(keys.sendKey),
      receiveKey: createSecretKey(keys.receiveKey),
      confirmed: keys.role === "initiator",
    };
    this.#sessions.set(localIndex, session);
    peer.sessions.push(session);
    peer.stats.sessionCreated = createdAt;
    if (peer.sessions.length <= SESSIONS_KEPT) return;
    const old = peer.sessions.shift()!;
    this.#sessions.delete(old.localIndex);
    this.events.emit("sessionEnded", { slot, localIndex: old.localIndex });
  }

  injectRelayed(slot: number, datagram: Uint8Array): void {
    this.#receive(Buffer.from(datagram), { kind: "relay", slot });
  }

  sendDatagram(datagram: Uint8Array, to: Endpoint): string | undefined {
    // A copy: the socket sends it after this turn.
    this.#socket.send(Buffer.from(datagram), to.port, to.address);
    return undefined;
  }

  peerCounters(slot: number): ReturnType<Plane["peerCounters"]> {
    const { stats } = this.#peers.get(slot)!;
    return { ...stats };
  }

  counters(): ReturnType<Plane["counters"]> {
    return new Map() as ReturnType<Plane["counters"]>;
  }

  isWorking(): boolean {
    return true;
  }

  // What an end has no use for: it routes and filters nothing, and its worker, which it has not, never dies.

  setCookieSecret(): void {}
  restorePeer(): void {}
  rearmWake(): void {}
  setKeepalive(): void {}
  addPrefix(): void {}
  removePrefix(): void {}
  dropStaged(): void {}
  setFilter(): void {}
  setFilterSource(): void {}
  noteAuthenticated(): void {}
  startCapture(): void {}
  stopCapture(): void {}

  async close(): Promise<void> {
    for (const slot of [...this.#peers.keys()]) this.removePeer(slot);
    this.#socket.close();
  }

  #receive(datagram: Buffer, source: PlaneSource): void {
    const receivedAt = performance.now();
    const type = messageType(datagram);
    if (type === MessageType.transport) return this.#open(datagram, source);
    if (type !== undefined) return this.events.emit("handshake", { datagram, source, local: undefined, receivedAt });
    if (source.kind === "udp") this.events.emit("stun", { datagram, from: source.endpoint, to: undefined, receivedAt });
  }

  #open(datagram: Buffer, source: PlaneSource): void {
    const session = this.#sessions.get(datagram.readUInt32LE(4));
    const peer = session && this.#peers.get(session.slot);
    const packet = session && decrypt(session.receiveKey, datagram);
    if (!peer || !packet) return;
    const now = performance.now();
    const { slot, localIndex } = session;
    peer.stats.rxBytes += datagram.length;
    peer.stats.lastRx = now;
    if (!session.confirmed) {
      session.confirmed = true;
      this.events.emit("confirmed", { slot, localIndex, source });
    }
    if (peer.path.kind !== "none" && !isPath(peer.path, source))
      this.events.emit("pathHint", { slot, source, adopted: false });
    if (packet.length === 0) return;
    peer.stats.lastDataRx = now;
    const answer = this.#answer(packet);
    if (answer) {
      peer.stats.lastDataTx = now;
      this.#send(peer, session, source, answer);
    } else if (!peer.keepalive) {
      peer.keepalive = setTimeout(() => {
        peer.keepalive = undefined;
        this.#send(peer, peer.sessions.at(-1) ?? session, source, new Uint8Array());
      }, KEEPALIVE_TIMEOUT);
    }
  }

  #send(peer: EndPeer, session: EndSession, source: PlaneSource, packet: Uint8Array): void {
    clearTimeout(peer.keepalive);
    peer.keepalive = undefined;
    const datagram = encrypt(session, packet);
    peer.stats.txBytes += datagram.length;
    peer.stats.lastTx = performance.now();
    // Before anybody chose a path, the way that the question took.
    const path = peer.path.kind === "none" ? source : peer.path;
    if (path.kind === "udp") this.sendDatagram(datagram, path.endpoint);
    else this.events.emit("relayOut", { slot: session.slot, datagram });
  }
}

function isPath(path: DevicePath, source: PlaneSource): boolean {
  return path.kind === "udp" && source.kind === "udp"
    ? sameEndpoint(path.endpoint, source.endpoint)
    : path.kind === source.kind;
}

/** The packet with its padding; undefined when it is not authentic. */
function decrypt(key: KeyObject, datagram: Buffer): Buffer | undefined {
  const nonce = Buffer.alloc(NONCE_BYTES);
  datagram.copy(nonce, NONCE_BYTES - 8, 8, HEADER_BYTES);
  const decipher = createDecipheriv(CIPHER, key, nonce, { authTagLength: TAG_BYTES });
  decipher.setAuthTag(datagram.subarray(-TAG_BYTES));
  const packet = decipher.update(datagram.subarray(HEADER_BYTES, -TAG_BYTES));
  try {
    decipher.final();
    return packet;
  } catch {
    return undefined;
  }
}

function encrypt(session: EndSession, packet: Uint8Array): Buffer {
  const nonce = Buffer.alloc(NONCE_BYTES);
  nonce.writeUInt32LE(session.counter, NONCE_BYTES - 8);
  const cipher = createCipheriv(CIPHER, session.sendKey, nonce, { authTagLength: TAG_BYTES });
  const datagram = Buffer.alloc(TRANSPORT_OVERHEAD + packet.length);
  datagram[0] = MessageType.transport;
  datagram.writeUInt32LE(session.remoteIndex, 4);
  datagram.writeUInt32LE(session.counter++, 8);
  cipher.update(packet).copy(datagram, HEADER_BYTES);
  cipher.final();
  cipher.getAuthTag().copy(datagram, datagram.length - TAG_BYTES);
  return datagram;
}
