/**
 * Runs in a host of the lab: `touch-process.ts PORT WITHIN_MS PATIENCE_MS`, addresses on standard input, one a line. Connects to each by
 * TCP, spread evenly over WITHIN_MS, and prints as JSON after how many milliseconds each was connected, null where it was not.
 */
import { connect, type Socket } from "node:net";
import { text } from "node:stream/consumers";
import { setTimeout as sleep } from "node:timers/promises";

const [port, withinMs, patienceMs] = process.argv.slice(2).map(Number) as [number, number, number];
const addresses = (await text(process.stdin)).trim().split("\n");
const times: (number | null)[] = addresses.map(() => null);
const sockets: Socket[] = [];
const { promise: all, resolve } = Promise.withResolvers<void>();
let connected = 0;
const startedAt = performance.now();
for (const [index, address] of addresses.entries()) {
  const wait = startedAt + (index * withinMs) / addresses.length - performance.now();
  if (wait >= 1) await sleep(wait);
  const touchedAt = performance.now();
  const socket = connect(port, address);
  socket.on("error", () => {});
  socket.on("connect", () => {
    times[index] = performance.now() - touchedAt;
    if (++connected === addresses.length) resolve();
  });
  sockets.push(socket);
}
const touchedMs = performance.now() - startedAt;
await Promise.race([all, sleep(patienceMs)]);
const result = { touchedMs, allMs: performance.now() - startedAt, times };
process.stdout.write(JSON.stringify(result), () => process.exit(0));
