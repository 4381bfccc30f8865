import { Emitter } from "#base/emitter.ts";
import { type Endpoint, parsePrefix } from "#base/ip.ts";
import { PrivateKey, type PublicKey } from "#base/keys.ts";
import { silentLogger } from "#base/log.ts";
import type { Clock, Millis, Timer } from "#base/time.ts";
import { PROTOCOL_VERSION } from "#base/version.ts";
import { isHandshake } from "#relay/protocol/messages.ts";
import { openMessage, parseEncryptedMessage, sealMessage } from "#signal/protocol/sealed-message.ts";
import { EmbeddedDevice } from "#wireguard/embedded-device.ts";
import type { Plane } from "#wireguard/plane.ts";
import { NO_PEER_COUNTERS } from "#wireguard/worker/stats.ts";
import { ConnectionManager } from "./connections/connection-manager.ts";
import { DirectPaths } from "./peer/direct-paths.ts";

/** The first life of a function costs most, the next two still a little. */
const ROUNDS = 3;
/** Then it is over, however far it came. */
const PATIENCE: Millis = 5_000;
const PORT = 51820;
const OVERLAY = parsePrefix("100.64.0.0/10");
const RELAY = "rel://rehearsal.invalid:1";

/**
 * Two small agents in memory of which one wakes the other until both send directly, with everything that the main thread of
 * a real wake runs: connections, handshakes, ICE, sealed messages. Nothing leaves the process.
 *
 * The first wake of a process would otherwise take some 15 ms longer than the later ones at either side: functions are
 * compiled, and libraries set up, when they are called first. Run once after the start, when nobody waits; each message
 * is a turn of the event loop of its own.
 */
export class Rehearsal {
  readonly #clock: Clock;
  readonly #timeout: Timer;
  #actors: readonly Actor[] = [];
  #rounds = 0;
  #closed = false;

  constructor(clock: Clock) {
    this.#clock = clock;
    this.#timeout = clock.after(PATIENCE, () => this.close());
    this.#later(() => this.#begin());
  }

  /** Wakes that went all the way to a direct path. */
  get rounds(): number {
    return this.#rounds;
  }

  get closed(): boolean {
    return this.#closed;
  }

  /** Ends it where it is; idempotent. */
  close(): void {
    this.#closed = true;
    this.#timeout.cancel();
    for (const actor of this.#actors) actor.close();
    this.#actors = [];
  }

  #later(act: () => void): void {
    this.#clock.after(0, () => this.#closed || act());
  }

  #begin(): void {
    const round = this.#rounds;
    const later = (act: () => void): void => this.#later(() => round === this.#rounds && act());
    const changed = (): void => later(() => this.#look());
    const left = new Actor(this.#clock, 1, later, changed);
    const right = new Actor(this.#clock, 2, later, changed);
    this.#actors = [left, right];
    left.meet(right);
    right.meet(left);
    left.receivePacket();
  }

  #look(): void {
    if (!this.#actors.every((actor) => actor.isDirect)) return;
    for (const actor of this.#actors) actor.close();
    this.#actors = [];
    this.#rounds++;
    if (this.#rounds === ROUNDS) this.close();
    else this.#later(() => this.#begin());
  }
}

/** One of the two agents; what it sends arrives at the other one in a later turn. */
class Actor {
  readonly #key = PrivateKey.generate();
  readonly #number: number;
  readonly #clock: Clock;
  readonly #later: (act: () => void) => void;
  readonly #events: Plane["events"] = new Emitter();
  readonly #device: EmbeddedDevice;
  readonly #direct: DirectPaths;
  readonly #connections: ConnectionManager;
  #other: Actor | undefined;
  #slot = 0;

  constructor(clock: Clock, number: number, later: (act: () => void) => void, changed: () => void) {
    this.#clock = clock;
    this.#number = number;
    this.#later = later;
    this.#device = new EmbeddedDevice(
      { clock, log: silentLogger, plane: this.#createPlane() },
      { privateKey: this.#key, mtu: 1280, peerCapacity: 2 },
    );
    const deps = { clock, log: silentLogger, device: this.#device, interfaces: () => this.#interfaces() };
    this.#direct = new DirectPaths(deps, { allowed: true, overlay: [OVERLAY] });
    const relay = {
      home: { instanceUrl: RELAY },
      rtt: undefined,
      isUp: () => true,
      serverOf: () => RELAY,
      useServer: () => {},
      probe: () => {},
    };
    const signal = {
      send: async (to: PublicKey, body: Parameters<typeof sealMessage>[0]) => {
        const sealed = sealMessage(body, to, this.#key);
        this.#reach((other) => other.#receiveSealed(sealed));
        return { delivered: true };
      },
      probe: () => {},
    };
    this.#connections = new ConnectionManager(
      {
        ...deps,
        relay,
        signal,
        ice: this.#direct,
        ownKey: this.#key.publicKey,
        version: PROTOCOL_VERSION,
        wireguardPort: PORT,
        presharedKey: undefined,
        changed,
      },
      { inactivityThreshold: 60_000, pinned: new Set() },
      true,
    );
    this.#device.events.on("relay-out", ({ datagram }) =>
      this.#reach((other) => other.#connections.receiveRelayed(this.#key.publicKey, datagram)),
    );
  }

  /** Its packets take a direct path and a handshake proved the other one. */
  get isDirect(): boolean {
    return this.#connection?.status === "connected" && this.#connection.path.kind === "direct";
  }

  get #connection() {
    return this.#other && this.#connections.find(this.#other.#key.publicKey);
  }

  get #address(): string {
    return `192.0.2.${this.#number}`;
  }

  get #endpoint(): Endpoint {
    return { address: parsePrefix(`${this.#address}/32`).address, port: PORT };
  }

  meet(other: Actor): void {
    this.#other = other;
    const overlay = parsePrefix(`100.64.0.${other.#number}/32`);
    const info = { key: other.#key.publicKey, fqdn: "rehearsal", agentVersion: PROTOCOL_VERSION, routes: [] };
    const peer = { ...info, addresses: [overlay.address], allowedIps: [overlay] };
    this.#connections.apply({ removed: [], changed: [], added: [peer] });
  }

  /** A program's first packet for the other one, which sleeps. */
  receivePacket(): void {
    const source = parsePrefix(`100.64.0.${this.#number}/32`).address;
    const destination = parsePrefix(`100.64.0.${this.#other!.#number}/32`).address;
    const packet = { protocol: 17, source, destination, sourcePort: 40_000, destinationPort: 7, bytes: 64 };
    this.#events.emit("wake", { slot: this.#slot, cause: { kind: "packet", packet } });
  }

  close(): void {
    this.#connections.close();
    this.#direct.close();
    void this.#device.close();
  }

  #reach(act: (other: Actor) => void): void {
    const other = this.#other!;
    this.#later(() => act(other));
  }

  #receiveSealed(sealed: Uint8Array): void {
    const message = parseEncryptedMessage(sealed);
    if (!message) return;
    const { from, body } = openMessage(message, this.#key);
    this.#connections.receiveSignal(from, body);
  }

  /** As a data worker would report a datagram (packet-path.md, "In"). */
  #receiveDatagram(datagram: Uint8Array, from: Endpoint): void {
    const receivedAt = this.#clock.now();
    // A STUN answer begins with 1 as well, but goes on with 1.
    if (isHandshake(datagram) && datagram[1] === 0) {
      const source = { kind: "udp", endpoint: from } as const;
      this.#events.emit("handshake", { datagram, source, local: undefined, receivedAt });
    } else {
      this.#events.emit("stun", { datagram, from, to: this.#endpoint, receivedAt });
    }
  }

  /** What the device asks of a data worker, as far as a wake goes. */
  #createPlane(): Plane {
    const ignore = (): void => {};
    const plane: Partial<Plane> = {
      events: this.#events,
      features: [],
      interfaceName: "rehearsal",
      listenPort: PORT,
      handshakeLoad: 0,
      addPeer: (slot) => {
        this.#slot = slot;
      },
      sendDatagram: (datagram) => {
        const copy = datagram.slice();
        this.#reach((other) => other.#receiveDatagram(copy, this.#endpoint));
        return undefined;
      },
      injectRelayed: (slot, datagram) => {
        const source = { kind: "relay", slot } as const;
        const receivedAt = this.#clock.now();
        this.#events.emit("handshake", { datagram, source, local: undefined, receivedAt });
      },
      installSession: (_, { role, remoteIndex }) => {
        // The initiator's first packet, by which the other one knows that the session is good.
        if (role !== "initiator") return;
        this.#reach((other) => {
          const source = { kind: "relay", slot: other.#slot } as const;
          other.#events.emit("confirmed", { slot: other.#slot, localIndex: remoteIndex, source });
        });
      },
      peerCounters: () => NO_PEER_COUNTERS,
      counters: () => new Map(),
      isWorking: () => true,
      close: async () => {},
      ...{ setCookieSecret: ignore, setAsleep: ignore, rearmWake: ignore, setKeepalive: ignore, addPrefix: ignore },
      ...{ removePrefix: ignore, removePeer: ignore, setPath: ignore, dropStaged: ignore, noteAuthenticated: ignore },
    };
    return plane as Plane;
  }

  #interfaces(): ReturnType<typeof import("node:os").networkInterfaces> {
    const address = this.#address;
    const netmask = "255.255.255.0";
    return { rehearsal0: [{ address, netmask, family: "IPv4", mac: "", internal: false, cidr: `${address}/24` }] };
  }
}
