import type { networkInterfaces } from "node:os";
import { NameService } from "#agent/dns/name-service.ts";
import { Engine, type EngineDeps } from "#agent/engine/engine.ts";
import type { TunnelInterface } from "#agent/routing/interface-linux.ts";
import { Emitter } from "#base/emitter.ts";
import { formatPrefix, parsePrefix } from "#base/ip.ts";
import { PrivateKey, type PublicKey } from "#base/keys.ts";
import { silentLogger } from "#base/log.ts";
import type { Clock } from "#base/time.ts";
import type { Body } from "#gen/signal_pb.ts";
import { RelayClient } from "#relay/client/relay-client.ts";
import { EmbeddedDevice } from "#wireguard/embedded-device.ts";
import type { Plane } from "#wireguard/plane.ts";
import type { DataPlaneEvents } from "#wireguard/worker/plane-events.ts";
import { NO_PEER_COUNTERS } from "#wireguard/worker/stats.ts";

const INTERFACES: ReturnType<typeof networkInterfaces> = {
  eth0: [
    {
      address: "192.0.2.1",
      netmask: "255.255.255.0",
      family: "IPv4",
      mac: "02:00:00:00:00:01",
      internal: false,
      cidr: "192.0.2.1/24",
    },
  ],
};

/** What a lone agent did to the world outside. */
export interface LoneAgent {
  readonly engine: Engine;
  readonly device: EmbeddedDevice;
  readonly events: Emitter<DataPlaneEvents>;
  readonly key: PrivateKey;
  /** Signal messages it wanted to send. */
  readonly sent: { readonly to: PublicKey; readonly body: Body }[];
  /** Commands to the data worker by name. */
  readonly commands: Map<string, number>;
  /** Routes of the interface, each time it was configured. */
  readonly routes: readonly (readonly string[])[];
  close(): void;
}

/**
 * Everything of an agent that runs on the main thread, for a network of any size: real engine, connections, names, device and
 * relay client, in which the data worker, signal and the system are replaced by ones that only count.
 */
export function createLoneAgent(clock: Clock): LoneAgent {
  const key = PrivateKey.generate();
  const events = new Emitter<DataPlaneEvents>();
  const commands = new Map<string, number>();
  const routesGiven: string[][] = [];
  const facts: Partial<Plane> = {
    events,
    features: [],
    interfaceName: "perch0",
    listenPort: 51820,
    handshakeLoad: 0,
    peerCounters: () => NO_PEER_COUNTERS,
    counters: () => new Map(),
    close: async () => {},
  };
  const plane = new Proxy(facts, {
    get: (known, name: string) =>
      name in known
        ? known[name as keyof Plane]
        : () => {
            commands.set(name, (commands.get(name) ?? 0) + 1);
          },
  }) as Plane;
  const device = new EmbeddedDevice({ clock, log: silentLogger, plane }, { privateKey: key, mtu: 1420 });
  const relay = new RelayClient({ clock, log: silentLogger }, { key: key.publicKey });
  const sent: { to: PublicKey; body: Body }[] = [];
  const signal = {
    events: new Emitter(),
    noteNetworkChange() {},
    send: async (to: PublicKey, body: Body) => {
      sent.push({ to, body });
      return { delivered: true };
    },
  };
  const own = {
    address: parsePrefix("100.70.0.1/16"),
    address6: parsePrefix("fd12:3456:789a:bcde::1/64"),
    fqdn: "me.perch.test",
    lazy: true,
  };
  const names = new NameService(
    {
      clock,
      log: silentLogger,
      wake: (peer, name, act) => engine.connections.wakeByName(peer, name, act),
      changed: () => {},
      chooseHost: async () => ({ kind: "none", reason: "a lone agent has no host" }),
    },
    // The table only: no socket, and nobody who is told.
    { ownKey: key.publicKey, interfaceName: "perch0", enabled: false, wakes: true },
    own,
  );
  const engine: Engine = new Engine(
    {
      clock,
      log: silentLogger,
      device,
      signal,
      relay,
      names,
      tunnel: {
        apply: async (_, routes) => {
          routesGiven.push(routes.map(formatPrefix));
          return [];
        },
      } satisfies Pick<TunnelInterface, "apply">,
      management: { reconnect() {} },
      changed: () => {},
      interfaces: () => INTERFACES,
    } as unknown as EngineDeps,
    {
      ownKey: key.publicKey,
      own,
      presharedKey: undefined,
      lazy: undefined,
      inactivityThreshold: 15 * 60_000,
      pinned: new Set(),
      forceRelay: false,
    },
  );
  const close = (): void => {
    engine.close();
    void device.close();
    void relay.close();
    void names.close();
  };
  return { engine, device, events, key, sent, commands, routes: routesGiven, close };
}

/** The network that lone agents are in, as 100.70.0.1 and ::1. */
export const LONE_NETWORK = {
  network: parsePrefix("100.70.0.0/16"),
  network6: parsePrefix("fd12:3456:789a:bcde::/64"),
};
