import {
  createEmbeddedDevice,
  PrivateKey,
  PublicKey,
  parseEndpoint,
  parsePrefix,
  silentLogger,
  systemClock,
} from "#wireguard/index.ts";

/** One end of the throughput bench: an embedded device with one peer, until stdin closes. Says `ready` when it is up. */
export interface EndOptions {
  readonly privateKey: string;
  readonly peer: string;
  readonly endpoint: string;
  readonly allowedIp: string;
  readonly port: number;
  readonly mtu: number;
}

const options = JSON.parse(process.argv[2]!) as EndOptions;
await using device = await createEmbeddedDevice(
  { clock: systemClock, log: silentLogger },
  {
    interfaceName: "wg0",
    privateKey: PrivateKey.parse(options.privateKey),
    listenPort: options.port,
    mtu: options.mtu,
  },
);
const peer = PublicKey.parse(options.peer);
device.setPeer(peer, { mode: "awake", allowedIps: [parsePrefix(options.allowedIp)] });
device.setPath(peer, { kind: "udp", endpoint: parseEndpoint(options.endpoint) });
process.stdout.write("ready\n");
for await (const _ of process.stdin);
