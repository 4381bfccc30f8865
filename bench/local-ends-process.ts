/** Measures local ends of one kind alone in a process: `local-ends-process.ts PLAN`, both plan and result as JSON. Needs --expose-gc. */
import { createSocket } from "node:dgram";
import { once } from "node:events";
import { readdirSync } from "node:fs";
import { setTimeout as sleep } from "node:timers/promises";
import type { Endpoint } from "#base/ip.ts";
import { PublicKey } from "#base/keys.ts";
import { silentLogger } from "#base/log.ts";
import { systemClock } from "#base/time.ts";
import { trimHeap } from "#net/heap.ts";
import type { LocalEnds } from "#wireguard/external/parts.ts";
import { LoopbackAddresses } from "#wireguard/external/ports/loopback-addresses.ts";
import { LoopbackMac1, TRIES_PER_SECOND } from "#wireguard/external/ports/loopback-mac1.ts";
import { LoopbackSockets } from "#wireguard/external/ports/loopback-sockets.ts";
import { PortThread } from "#wireguard/external/ports/port-thread.ts";
import { fakeInitiation } from "#wireguard/external/testing/fake-initiation.ts";

export interface LocalEndsPlan {
  readonly kind: LocalEnds["name"];
  readonly peers: number;
  /** Wakes, of different peers. */
  readonly samples: number;
  /** In each direction. */
  readonly datagrams: number;
}

export interface LocalEndsCost {
  /** Bytes beyond the process without local ends, and of these those of the port thread, which the raw port needs as well. */
  readonly rss: number;
  readonly threadRss: number;
  readonly descriptors: number;
  readonly openMs: number;
  /** From the device's send to the event, ms. */
  readonly wakes: readonly number[];
  readonly receivedPerSecond: number;
  readonly deliveredPerSecond: number;
}

const DATAGRAM_BYTES = 1280;
/** On their way at once: less than the smallest buffer between here and there. */
const WINDOW = 64;

const plan = JSON.parse(process.argv[2]!) as LocalEndsPlan;
const device = createSocket({ type: "udp4", recvBufferSize: 4 << 20 });
device.bind(0);
await once(device, "listening");
const devicePort = device.address().port;
const descriptors = (): number => readdirSync("/proc/self/fd").length;

async function resident(): Promise<number> {
  for (let i = 0; i < 3; i++) {
    globalThis.gc?.();
    await sleep(50);
  }
  trimHeap();
  return process.memoryUsage.rss();
}

function makeEnds(): LocalEnds {
  if (plan.kind === "loopback-sockets") return new LoopbackSockets({ devicePort });
  if (plan.kind === "loopback-mac1") return new LoopbackMac1({ clock: systemClock }, { devicePort });
  return LoopbackAddresses.open(thread!, { devicePort });
}

const keys = Array.from({ length: plan.peers }, () => PublicKey.fromBytes(crypto.getRandomValues(new Uint8Array(32))));
const endpoints = new Map<PublicKey, Endpoint>();
for (const key of keys) endpoints.set(key, { address: "127.0.0.1" as Endpoint["address"], port: 1 });
const before = { rss: await resident(), descriptors: descriptors() };
const thread =
  plan.kind === "loopback-addresses" ? await PortThread.start({ log: silentLogger, clock: systemClock }) : undefined;
const threadRss = thread ? (await resident()) - before.rss : 0;

const openedAt = performance.now();
const ends = makeEnds();
for (const key of keys) endpoints.set(key, ends.open(key));
const openMs = performance.now() - openedAt;
const rss = (await resident()) - before.rss;
const ownDescriptors = descriptors() - before.descriptors;

let told = Promise.withResolvers<PublicKey>();
ends.events.on("moved", ({ key, endpoint }) => void endpoints.set(key, endpoint));
const stopWakes = ends.events.on("datagram", ({ key }) => told.resolve(key));
const wakes: number[] = [];
for (let index = 0; index < plan.samples; index++) {
  const key = keys[Math.floor((index + 0.5) * (plan.peers / plan.samples)) % plan.peers]!;
  const initiation = fakeInitiation(key);
  told = Promise.withResolvers();
  // As packets come to an agent that does nothing: mac1 has its budget of tries back.
  await sleep(2 + (plan.kind === "loopback-mac1" ? (plan.peers * 1000) / TRIES_PER_SECOND : 0));
  const sentAt = performance.now();
  const { address, port } = endpoints.get(key)!;
  device.send(initiation, port, address);
  if ((await told.promise) !== key) throw new Error("the wrong peer was told");
  wakes.push(performance.now() - sentAt);
}
stopWakes();

/** Datagrams per second, with WINDOW on their way. `send` sends one, `arrived` tells of each that came. */
async function rate(send: () => void, arrived: (listener: () => void) => void): Promise<number> {
  const all = Promise.withResolvers<void>();
  let [sent, received] = [0, 0];
  const fill = (): void => {
    for (; sent < plan.datagrams && sent - received < WINDOW; sent++) send();
  };
  arrived(() => {
    if (++received === plan.datagrams) all.resolve();
    if (sent - received < WINDOW / 2) fill();
  });
  const startedAt = performance.now();
  fill();
  await Promise.race([
    all.promise,
    sleep(60_000).then(() => {
      throw new Error(`${received} of ${sent} datagrams arrived`);
    }),
  ]);
  return (plan.datagrams * 1000) / (performance.now() - startedAt);
}

const peer = keys[plan.peers >> 1]!;
const data = new Uint8Array(DATAGRAM_BYTES).fill(4);
// Data names nobody: where that matters the peer has an end of its own from now on.
endpoints.set(peer, ends.open(peer));
const { address, port } = endpoints.get(peer)!;
const receivedPerSecond = await rate(
  () => device.send(data, port, address),
  (listener) => void ends.events.on("datagram", listener),
);
const deliveredPerSecond = await rate(
  () => void ends.deliver(peer, data),
  (listener) => void device.on("message", listener),
);
const cost: LocalEndsCost = {
  rss,
  threadRss,
  descriptors: ownDescriptors,
  openMs,
  wakes,
  receivedPerSecond,
  deliveredPerSecond,
};
process.stdout.write(JSON.stringify(cost), () => process.exit(0));
