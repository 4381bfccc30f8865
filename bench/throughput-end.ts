import { randomBytes } from "node:crypto";
import { createInterface } from "node:readline";
import type { Prefix } from "#base/ip.ts";
import { openExternalDevice } from "#wireguard/external/open-external-device.ts";
import type { FilterRule } from "#wireguard/filter.ts";
import {
  createEmbeddedDevice,
  PrivateKey,
  PublicKey,
  parseEndpoint,
  parsePrefix,
  silentLogger,
  systemClock,
  type WireGuardDevice,
} from "#wireguard/index.ts";

/**
 * Access rules that let the peer do what the bench does: `all` as a network's default policy says, everybody may do everything;
 * `limited` by protocol.
 */
export type BenchRules = "none" | "all" | "limited";

export interface EndOptions {
  readonly device: "embedded" | "wireguard-go";
  readonly privateKey: string;
  readonly peer: string;
  readonly endpoint: string;
  readonly allowedIp: string;
  readonly port: number;
  readonly mtu: number;
  readonly asleepPeers: number;
  /** Of the tunnel: what rules are about. */
  readonly address: string;
  readonly rules: BenchRules;
}

const options = JSON.parse(process.argv[2]!) as EndOptions;
await using device = await createDevice();
const peer = PublicKey.parse(options.peer);
device.setPeer(peer, { mode: "awake", allowedIps: [parsePrefix(options.allowedIp)] });
device.setPath(peer, { kind: "udp", endpoint: parseEndpoint(options.endpoint) });
for (let i = 0; i < options.asleepPeers; i++) {
  const allowedIps = [parsePrefix(`100.${64 + (i >> 16)}.${(i >> 8) & 255}.${i & 255}/32`)];
  device.setPeer(PublicKey.fromBytes(randomBytes(32)), { mode: "asleep", allowedIps });
}
if (options.rules !== "none") {
  const destination = parsePrefix(`${options.address}/32`);
  const accept = (source: Prefix, protocol: FilterRule["protocol"]): FilterRule => ({
    source,
    destination,
    protocol,
    verdict: "accept",
  });
  const source = parsePrefix(options.allowedIp);
  const strangers = Array.from({ length: 1000 }, (_, i) => parsePrefix(`100.127.${i >> 8}.${i & 255}/32`));
  const isLimited = options.rules === "limited";
  const protocols = isLimited ? (["tcp", "udp", "icmp"] as const) : (["all"] as const);
  device.setFilter({
    inbound: [
      ...protocols.map((protocol) => accept(source, protocol)),
      ...strangers.map((stranger) => accept(stranger, isLimited ? "tcp" : "all")),
    ],
    otherwise: "drop",
  });
}
process.stdout.write("ready\n");
for await (const _ of createInterface({ input: process.stdin }))
  process.stdout.write(`${JSON.stringify(Object.fromEntries(device.counters()))}\n`);

function createDevice(): Promise<WireGuardDevice> {
  const deps = { clock: systemClock, log: silentLogger };
  const common = {
    interfaceName: "wg0",
    privateKey: PrivateKey.parse(options.privateKey),
    listenPort: options.port,
    mtu: options.mtu,
  };
  if (options.device === "embedded") return createEmbeddedDevice(deps, common);
  // The bench ends with its namespaces, which leave nothing to record.
  const record = { write: () => {}, remove: () => {} };
  return openExternalDevice({ ...deps, record }, { ...common, choice: options.device });
}
