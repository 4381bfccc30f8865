// biome-ignore-all lint/suspicious/noConsole: an example talks

/*
 * Two devices in one process that handshake over loopback. As root: node examples/wireguard/two-devices.ts
 *
 * Both interfaces are of one machine, so nothing is routed through them: what it shows is keys, peers, paths, events, counters.
 */
import {
  createEmbeddedDevice,
  DEFAULT_MTU,
  PrivateKey,
  parseEndpoint,
  parsePrefix,
  silentLogger,
  systemClock,
  type WireGuardDevice,
} from "perch/wireguard";

const open = (interfaceName: string): Promise<WireGuardDevice> =>
  createEmbeddedDevice(
    { clock: systemClock, log: silentLogger },
    { interfaceName, privateKey: PrivateKey.generate(), listenPort: 0, mtu: DEFAULT_MTU },
  );
const loopback = ({ listenPort }: WireGuardDevice) =>
  ({ kind: "udp", endpoint: parseEndpoint(`127.0.0.1:${listenPort}`) }) as const;

await using left = await open("perch-left");
await using right = await open("perch-right");
left.setPeer(right.publicKey, { mode: "awake", allowedIps: [parsePrefix("10.9.0.2/32")] });
// Costs one row in a table until somebody wants it; the handshake of `left` does.
right.setPeer(left.publicKey, { mode: "asleep", allowedIps: [parsePrefix("10.9.0.1/32")] });
right.events.on("wake", ({ key, cause }) => {
  console.log(`right: woken by a ${cause.kind}`);
  right.setPeer(key, { mode: "awake", allowedIps: [parsePrefix("10.9.0.1/32")] });
});

const established = Promise.all(
  [left, right].map(
    (device) =>
      new Promise<void>((done) => {
        device.events.on("established", ({ role }) => {
          console.log(`${device.interfaceName}: session as ${role}`);
          done();
        });
      }),
  ),
);
left.setPath(right.publicKey, loopback(right));
left.initiate(right.publicKey, [loopback(right)]);
await established;
console.log(`left sent ${left.peerStats(right.publicKey)?.txBytes} bytes`);
