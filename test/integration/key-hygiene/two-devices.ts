/**
 * Two embedded devices in one process that complete a handshake with a preshared key, then heap snapshots of both kinds of
 * thread. Run in a network namespace of its own:
 *
 *     two-devices.ts DIRECTORY CANARY
 *
 * All secrets go to DIRECTORY as bytes, so that this program makes no string of them either: `private.key` in `a` and `b`,
 * `preshared.key`, `session-keys`. CANARY is kept as a string, which the snapshot must show.
 */
import { execFileSync } from "node:child_process";
import { appendFileSync, createWriteStream, readFileSync } from "node:fs";
import { join } from "node:path";
import { pipeline } from "node:stream/promises";
import { setFlagsFromString, writeHeapSnapshot } from "node:v8";
import type { Worker } from "node:worker_threads";
import { loadIdentity } from "#agent/identity.ts";
import { parseEndpoint, parsePrefix } from "#base/ip.ts";
import { PresharedKey } from "#base/keys.ts";
import { silentLogger } from "#base/log.ts";
import { systemClock } from "#base/time.ts";
import { createEmbeddedDevice } from "#wireguard/create-embedded-device.ts";
import { DataPlane } from "#wireguard/worker/data-plane.ts";

const [directory, canary] = process.argv.slice(2) as [string, string];
const workers: Worker[] = [];
process.on("worker", (worker) => void workers.push(worker));

const { installSession } = DataPlane.prototype;
DataPlane.prototype.installSession = function (slot, keys) {
  appendFileSync(join(directory, "session-keys"), keys.sendKey);
  appendFileSync(join(directory, "session-keys"), keys.receiveKey);
  installSession.call(this, slot, keys);
};

execFileSync("ip", ["link", "set", "lo", "up"]);
const start = (name: string): ReturnType<typeof createEmbeddedDevice> =>
  createEmbeddedDevice(
    { clock: systemClock, log: silentLogger },
    { interfaceName: `kh-${name}`, listenPort: 0, mtu: 1420, privateKey: loadIdentity(join(directory, name)) },
  );
const [a, b] = [await start("a"), await start("b")];
const text = readFileSync(join(directory, "preshared.key"));
const presharedKey = PresharedKey.parse(text);
text.fill(0);
const established = Promise.all(
  [a, b].map((device) => new Promise<void>((done) => device.events.on("established", () => done()))),
);
for (const [device, other, network] of [
  [a, b, "10.9.2.0/24"],
  [b, a, "10.9.1.0/24"],
] as const) {
  device.setPeer(other.publicKey, { mode: "awake", allowedIps: [parsePrefix(network)], presharedKey });
  device.setPath(other.publicKey, { kind: "udp", endpoint: parseEndpoint(`127.0.0.1:${other.listenPort}`) });
}
a.initiate(b.publicKey, [{ kind: "udp", endpoint: parseEndpoint(`127.0.0.1:${b.listenPort}`) }]);
await established;

setFlagsFromString("--heap-snapshot-string-limit=1000000");
writeHeapSnapshot(join(directory, "main.heapsnapshot"));
// A worker takes its snapshot when a packet brings it back from the kernel.
const poke = setInterval(() => {
  for (const [from, to] of [
    [a, b],
    [b, a],
  ] as const)
    from.sendDatagram(new Uint8Array(5), parseEndpoint(`127.0.0.1:${to.listenPort}`));
}, 20);
for (const [index, worker] of workers.entries())
  await pipeline(await worker.getHeapSnapshot(), createWriteStream(join(directory, `worker${index}.heapsnapshot`)));
clearInterval(poke);
await a.close();
await b.close();
process.stdout.write(`${a.publicKey} ${canary.length}\n`);
