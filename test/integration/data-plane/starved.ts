/**
 * Starts a data plane with 0, 1, 2, … descriptors free until it starts; a line of JSON for each attempt. Run in a network
 * namespace of its own.
 */
import { closeSync, openSync, readdirSync } from "node:fs";
import { messageOf } from "#base/errors.ts";
import { DataPlane } from "#wireguard/worker/data-plane.ts";

const say = (line: unknown): void => void process.stdout.write(`${JSON.stringify(line)}\n`);
const open = (): number => readdirSync("/proc/self/fd").length;

/** Takes all descriptors but `free`, up to the limit that the shell set. */
function takeAllBut(free: number): number[] {
  const taken: number[] = [];
  try {
    for (;;) taken.push(openSync("/dev/null", "r"));
  } catch {
    for (const fd of taken.splice(0, free)) closeSync(fd);
  }
  return taken;
}

async function attempt(free: number): Promise<boolean> {
  const before = open();
  const taken = takeAllBut(free);
  let outcome: { code: string; message?: string };
  try {
    const plane = await DataPlane.start({ interfaceName: "tun0", mtu: 1420, listenPort: 0 });
    outcome = { code: "started" };
    await plane.close();
  } catch (error) {
    outcome = { code: String((error as { code?: unknown }).code), message: messageOf(error) };
  } finally {
    for (const fd of taken) closeSync(fd);
  }
  say({ free, ...outcome, before, after: open() });
  return outcome.code === "started";
}

// Modules and threads that are loaded once would count as a leak.
await (await DataPlane.start({ interfaceName: "tun0", mtu: 1420, listenPort: 0 })).close();
for (let free = 0; free < 40 && !(await attempt(free)); free++);
