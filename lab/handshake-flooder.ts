/**
 * Floods a WireGuard port with handshake initiations that were made beforehand: `handshake-flooder.ts OPTIONS`. Says
 * `ready` when they are made, begins at a line on stdin, says how many it sent at the end.
 */
import { createSocket } from "node:dgram";
import { setTimeout as sleep } from "node:timers/promises";
import { PrivateKey, PublicKey } from "#base/keys.ts";
import { createInitiation } from "#wireguard/handshake.ts";
import { LocalIdentity, RemoteIdentity } from "#wireguard/identity.ts";
import { INITIATION } from "#wireguard/messages.ts";
import { Tai64nClock } from "#wireguard/tai64n.ts";
import { generateEphemeral } from "#wireguard/x25519.ts";

export interface FloodOptions {
  /** `bogus`: mac1 is wrong. `stranger`: right in every way, from a key that nobody knows. `peer`: from `privateKey`. */
  readonly kind: "bogus" | "stranger" | "peer";
  readonly to: string;
  readonly port: number;
  readonly from?: string;
  readonly publicKey: string;
  readonly privateKey?: string;
  readonly perSecond: number;
  readonly seconds: number;
  /** Sends go out in bursts this far apart. */
  readonly tickMs?: number;
}

const options = JSON.parse(process.argv[2]!) as FloodOptions;
const { kind, perSecond, seconds, tickMs = 10 } = options;
const local = new LocalIdentity(options.privateKey ? PrivateKey.parse(options.privateKey) : PrivateKey.generate());
const remote = RemoteIdentity.create(local, PublicKey.toBytes(PublicKey.parse(options.publicKey)))!;
const clock = new Tai64nClock(() => Date.now());
// Only a peer's repeated messages are told from new ones before they are answered.
const different = kind === "peer" ? perSecond * seconds : Math.min(500, perSecond);
const ephemerals = Array.from({ length: 50 }, generateEphemeral);
const messages = Array.from({ length: different }, (_, index) => {
  const ephemeral = ephemerals[index % ephemerals.length]!;
  const sent = createInitiation(local, remote, { ephemeral, localIndex: index + 1, timestamp: clock.next() })!;
  if (kind === "bogus") sent.message[INITIATION.mac1]! ^= 1;
  return sent.message;
});

const socket = createSocket(options.to.includes(":") ? "udp6" : "udp4");
await new Promise<void>((bound) => socket.bind({ port: 0, ...(options.from && { address: options.from }) }, bound));
process.stdout.write("ready\n");
await new Promise((begin) => process.stdin.once("data", begin));
process.stdin.destroy();
const begun = performance.now();
let sent = 0;
for (let elapsed = 0; elapsed < seconds * 1000; elapsed = performance.now() - begun) {
  const due = Math.min(Math.ceil(((elapsed + tickMs) / 1000) * perSecond), perSecond * seconds);
  for (; sent < due; sent++) socket.send(messages[sent % messages.length]!, options.port, options.to);
  await sleep(tickMs);
}
process.stdout.write(`${sent}\n`);
socket.close();
