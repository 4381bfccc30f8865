import { create } from "@bufbuild/protobuf";
import { Engine, type EngineDeps } from "#agent/engine/engine.ts";
import type { PeerConnection } from "#agent/peer/peer-connection.ts";
import { retryTogether, ServiceRecorder } from "#agent/service-recorder.ts";
import { type Endpoint, parseIp, parsePrefix } from "#base/ip.ts";
import { PrivateKey, type PublicKey } from "#base/keys.ts";
import { createLogger, type Logger, silentLogger } from "#base/log.ts";
import { NetworkMapSchema, PeerConfigSchema, RemotePeerConfigSchema, SyncResponseSchema } from "#gen/management_pb.ts";
import { EmbeddedDevice } from "#wireguard/embedded-device.ts";
import { Nat, type NatKind, type NetworkHost, STUN_SERVERS } from "./internet.ts";
import type { StreamHost } from "./server-stream.ts";
import { SimPlane } from "./sim-plane.ts";
import { SimRelayClient } from "./sim-relay.ts";
import { type Dialect, SimSignalClient } from "./sim-signal.ts";
import type { SimWorld } from "./sim-world.ts";
import { MachineClock } from "./virtual-time.ts";

/** Settings that survive a restart of the agent. */
export interface MachineSettings {
  readonly nat: NatKind;
  readonly lazy: boolean;
  readonly threshold: number;
  /** Version that management reports to the others. */
  readonly agentVersion: string;
  /** Relays this agent may choose its home from; all by default. */
  readonly relays?: readonly string[];
  readonly forceRelay?: boolean;
  /** Default: this version's. */
  readonly dialect?: Dialect;
  /** The NAT forgets a mapping nobody used for this long; 0 = never. */
  readonly natLifetime?: number;
}

/** One life of an agent's process: real engine and device; plane and clients stand for threads and servers. */
export interface SimAgent {
  readonly clock: MachineClock;
  readonly plane: SimPlane;
  readonly device: EmbeddedDevice;
  readonly signal: SimSignalClient;
  readonly relay: SimRelayClient;
  readonly engine: Engine;
  /** Open ICE sessions by peer. */
  readonly iceSessions: Map<PublicKey, number>;
}

/** Commands take this long at most to reach the data worker. */
const STARTING = 20;

/** A wrong clock may be wrong by this much. */
const WALL_BACK_MAX = 10 * 365 * 24 * 3_600_000;

/** Keys are expensive and need not differ between worlds. */
const KEYS: PrivateKey[] = [];

function keyOf(index: number): PrivateKey {
  KEYS[index] ??= PrivateKey.fromBytes(Uint8Array.from({ length: 32 }, (_, at) => (at * 7 + index * 31 + 5) & 255));
  return KEYS[index]!;
}

/** A machine with an agent, behind a NAT of its own. It may move, be suspended, lose its network; its agent may die. */
export class SimMachine implements StreamHost {
  readonly index: number;
  readonly name: string;
  readonly key: PrivateKey;
  /** Overlay address. */
  readonly address: string;
  readonly world: SimWorld;
  settings: MachineSettings;
  agent: SimAgent | undefined;
  /** Lives of the agent so far. */
  lives = 0;
  online = true;
  /** Called when a life of the agent begins. */
  onStart: () => void = () => {};
  #host: NetworkHost;
  #site = 0;
  #wallOffset = 0;

  constructor(world: SimWorld, index: number, settings: MachineSettings) {
    this.world = world;
    this.index = index;
    this.name = String.fromCharCode(97 + index);
    // Roles follow the keys; which machine has the greater one must not follow its number.
    this.key = keyOf(world.keyOrder[index]!);
    this.address = `100.64.0.${index + 1}`;
    this.settings = settings;
    this.#host = this.#newHost();
    world.internet.attach(this.#host);
  }

  get publicKey(): PublicKey {
    return this.key.publicKey;
  }

  get suspended(): boolean {
    return this.agent?.clock.suspended ?? false;
  }

  get nat(): Nat {
    return this.#host.nat;
  }

  get endpoint(): Endpoint {
    return this.#host.endpoint;
  }

  /** The connection object for another machine. */
  peer(other: SimMachine): PeerConnection {
    const connection = this.agent?.engine.connections.find(other.publicKey);
    if (!connection) throw new Error(`${this.name} does not know ${other.name}`);
    return connection;
  }

  // The agent's process

  start(): void {
    if (this.agent) return;
    this.lives++;
    const { world, key } = this;
    const { internet, time } = world;
    // WireGuard refuses who comes back with an earlier clock (paper, section 5.1); that is not what is tried here.
    const clock = new MachineClock(time, this.#wallOffset, this.lives > 1 ? this.#wallOffset : -WALL_BACK_MAX);
    const plane = new SimPlane({
      clock: clock.outside,
      send: (datagram, to) => this.#send(datagram, to),
      emit: (packet) => world.noteEmitted(packet),
      deliver: (packet) => world.noteDelivered(this, packet),
      drop: (packet, why) => world.noteDropped(packet, why),
    });
    const log = this.#logger();
    const device = new EmbeddedDevice({ clock, log, plane }, { privateKey: key, mtu: 1420, peerCapacity: 256 });
    const { dialect = "perch" } = this.settings;
    const signal = new SimSignalClient({ clock, server: world.signal, host: this, key: this.publicKey, dialect });
    const relay = new SimRelayClient({ clock, internet, host: this, servers: world.relays, key: this.publicKey });
    const deps = {
      clock,
      log,
      device,
      signal,
      relay,
      tunnel: { apply: async () => [] },
      management: { reconnect() {} },
      changed: () => {},
      interfaces: () => this.#interfaces(),
    };
    const { lazy, threshold, forceRelay = false, relays } = this.settings;
    const engine = new Engine(deps as unknown as EngineDeps, {
      ownKey: this.publicKey,
      own: { address: parsePrefix(`${this.address}/10`), address6: undefined, fqdn: this.name, lazy },
      presharedKey: undefined,
      lazy,
      inactivityThreshold: threshold,
      pinned: new Set(),
      forceRelay,
    });
    const iceSessions = new Map<PublicKey, number>();
    countIceSessions(engine, iceSessions);
    // As session.ts does.
    const [signalState, relayState] = [new ServiceRecorder(clock, () => {}), new ServiceRecorder(clock, () => {})];
    signal.events.on("state", (state) => signalState.note(state));
    relay.events.on("home", (state) => relayState.note(state));
    retryTogether([
      { recorder: signalState, retry: () => signal.noteNetworkChange() },
      { recorder: relayState, retry: () => relay.noteNetworkChange() },
    ]);
    this.agent = { clock, plane, device, signal, relay, engine, iceSessions };
    this.onStart();
    signal.start();
    relay.setServers(relays ?? world.relays.map(({ instanceUrl }) => instanceUrl));
    relay.setToken();
    engine.direct.setServers(STUN_SERVERS);
    this.applyMap();
  }

  /** The network map with every machine of the world, as management would push it. */
  applyMap(): void {
    const others = this.world.machines.filter((other) => other !== this);
    const peerConfig = create(PeerConfigSchema, {
      address: `${this.address}/10`,
      fqdn: this.name,
      LazyConnectionEnabled: this.settings.lazy,
    });
    const remotePeers = others.map((other) =>
      create(RemotePeerConfigSchema, {
        wgPubKey: other.publicKey,
        allowedIps: [`${other.address}/32`],
        fqdn: other.name,
        agentVersion: other.settings.agentVersion,
      }),
    );
    const map = { Serial: BigInt(++this.world.serial), peerConfig, remotePeers };
    this.agent?.engine.update(create(SyncResponseSchema, { NetworkMap: create(NetworkMapSchema, map) }));
  }

  /** The process dies: nothing is said, sessions are gone, the kernel closes its connections. */
  kill(): void {
    const { agent } = this;
    if (!agent) return;
    this.agent = undefined;
    // WireGuard refuses who comes back with an earlier clock (paper, section 5.1); that is not what is tried here.
    this.#wallOffset = agent.clock.wallOffsetMax;
    agent.clock.stop();
    void agent.plane.close();
    void agent.signal.close();
    void agent.relay.close();
    this.world.noteLost(this);
  }

  // The machine

  suspend(): void {
    this.agent?.clock.suspend();
  }

  resume(): void {
    this.agent?.clock.resume();
  }

  /** Unplugs the network, or plugs it in again. */
  setOnline(online: boolean): void {
    this.online = online;
  }

  /** Another network: another address, another NAT; connections over the old one are dead. */
  move(nat: NatKind = this.settings.nat): void {
    const { internet } = this.world;
    internet.detach(this.#host);
    this.#site++;
    this.settings = { ...this.settings, nat };
    this.#host = this.#newHost();
    internet.attach(this.#host);
    this.agent?.signal.mute();
    this.agent?.relay.mute();
  }

  /** A program sends a packet to another machine; its id. */
  send(to: SimMachine, bytes = 100): number | undefined {
    const { agent } = this;
    if (!agent || agent.clock.suspended) return undefined;
    const packet = this.world.createPacket(this, to, bytes);
    if (agent.plane.outbound(packet)) return packet.id;
    // The data worker of an agent that begins in this instant has no routes yet: the kernel would have none either.
    this.world.noteDropped(packet, agent.clock.uptime < STARTING ? "starting" : "drop-no-route");
    return undefined;
  }

  #send(datagram: Uint8Array, to: Endpoint): boolean {
    if (!this.online) return false;
    this.world.noteSent(this, datagram, to);
    this.world.internet.route(this.#host, datagram, to);
    return true;
  }

  #newHost(): NetworkHost {
    const number = this.index * 16 + this.#site + 1;
    const { nat } = this.settings;
    const outside = `203.0.113.${number}`;
    const endpoint = { address: parseIp(nat === "none" ? outside : `10.0.${number}.2`), port: 51820 };
    const gateway = new Nat(nat, outside);
    gateway.lifetime = this.settings.natLifetime ?? 0;
    gateway.now = () => this.world.now;
    const host: NetworkHost = {
      endpoint,
      nat: gateway,
      arrive: (datagram, from) => {
        if (host !== this.#host || !this.online || this.suspended || !this.agent)
          return this.world.internet.onDrop(datagram, "machine away");
        this.agent.plane.receive(datagram, from);
      },
    };
    return host;
  }

  #interfaces(): ReturnType<typeof import("node:os").networkInterfaces> {
    if (!this.online) return {};
    const { address } = this.endpoint;
    const cidr = `${address}/24`;
    return { eth0: [{ address, netmask: "255.255.255.0", family: "IPv4", mac: "", internal: false, cidr }] };
  }

  #logger(): Logger {
    const { trace } = this.world;
    if (!trace) return silentLogger;
    return createLogger((level, message, fields) => {
      if (level !== "trace") trace(`${this.name} ${message} ${describe(fields)}`);
    });
  }
}

function describe(fields: object): string {
  return Object.entries(fields)
    .map(([name, value]) => `${name}=${value instanceof Error ? value.message : String(value)}`)
    .join(" ");
}

/** Puts a counter in front of `open`, which is how the number of ICE agents of a peer becomes visible. */
function countIceSessions(engine: Engine, sessions: Map<PublicKey, number>): void {
  const open = engine.direct.open.bind(engine.direct);
  engine.direct.open = (peer, controlling, local, handlers) => {
    sessions.set(peer, (sessions.get(peer) ?? 0) + 1);
    const session = open(peer, controlling, local, handlers);
    let isOpen = true;
    return {
      ...session,
      close: () => {
        if (isOpen) sessions.set(peer, sessions.get(peer)! - 1);
        isOpen = false;
        session.close();
      },
    };
  };
}
