import { createInterface } from "node:readline";
import type { Worker } from "node:worker_threads";
import { parseIp } from "#base/ip.ts";
import { DataPlane } from "#wireguard/worker/data-plane.ts";

/**
 * One end of a tunnel in its own process, steered by lines of JSON on stdin: `[method, ...arguments]` calls the data plane,
 * answers and events go out as lines of JSON. Byte arrays travel as {"hex": "..."}.
 */
const revive = (_key: string, value: unknown): unknown =>
  typeof value === "object" && value !== null && "hex" in value
    ? new Uint8Array(Buffer.from(String(value.hex), "hex"))
    : value;
const replace = (_key: string, value: unknown): unknown => {
  if (value instanceof Uint8Array) return { hex: Buffer.from(value).toString("hex") };
  return value instanceof Map ? Object.fromEntries(value) : value;
};
const say = (message: unknown): void => void process.stdout.write(`${JSON.stringify(message, replace)}\n`);

let worker: Worker | undefined;
process.on("worker", (latest) => {
  worker = latest;
});
const plane = await DataPlane.start(JSON.parse(process.argv[2]!));
for (const name of [
  "wake",
  "handshake",
  "stun",
  "relayOut",
  "needHandshake",
  "confirmed",
  "sessionEnded",
  "pathHint",
  "pathError",
  "restarted",
  "gone",
] as const) {
  plane.events.on(name, (payload) => say({ event: name, payload }));
}
say({ event: "started", payload: { name: plane.interfaceName, port: plane.listenPort, features: plane.features } });

for await (const line of createInterface({ input: process.stdin })) {
  const [id, method, ...args] = JSON.parse(line, revive) as [number, string, ...unknown[]];
  if (method === "exit") process.exit(7);
  if (method === "throw") throw new Error("thrown on purpose");
  if (method === "fall-through") break;
  if (method === "kill-worker") {
    // The thread ends when something brings it back from the kernel.
    void worker?.terminate();
    plane.dropStaged(1_000);
    say({ id, result: null });
    continue;
  }
  if (method === "memory") {
    say({ id, result: process.memoryUsage.rss() });
    continue;
  }
  if (method === "add-asleep") {
    // Peers 1 to COUNT with one address each in 100.64.0.0/10, without a line of JSON for each.
    for (let slot = 1; slot <= Number(args[0]); slot++) {
      plane.addPeer(slot, { asleep: true });
      plane.addPrefix(slot, { address: parseIp(`100.64.${slot >> 8}.${slot & 255}`), bits: 32 });
    }
    say({ id, result: null });
    continue;
  }
  const call = Reflect.get(plane, method) as (...args: unknown[]) => unknown;
  say({ id, result: (await call.apply(plane, args)) ?? null });
}
