import { randomBytes } from "node:crypto";
import { createInterface } from "node:readline";
import { openExternalDevice } from "#wireguard/external/open-external-device.ts";
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
 * One end of the throughput bench: a device with one peer, until stdin closes. Says `ready` when it is there, and its counters
 * as a line of JSON for each line of stdin.
 */
export interface EndOptions {
  readonly device: "embedded" | "wireguard-go";
  readonly privateKey: string;
  readonly peer: string;
  readonly endpoint: string;
  readonly allowedIp: string;
  readonly port: number;
  readonly mtu: number;
  readonly asleepPeers: number;
  /** Enforce rules that let the peer do what the bench does. */
  readonly filter: boolean;
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
if (options.filter) {
  const source = parsePrefix(options.allowedIp);
  const strangers = Array.from({ length: 1000 }, (_, i) => parsePrefix(`100.127.${i >> 8}.${i & 255}/32`));
  device.setFilter({
    inbound: [
      ...(["tcp", "udp", "icmp"] as const).map((protocol) => ({ source, protocol, verdict: "accept" }) as const),
      ...strangers.map((stranger) => ({ source: stranger, protocol: "tcp", verdict: "accept" }) as const),
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
