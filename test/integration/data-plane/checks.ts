import assert from "node:assert/strict";
import type { ChildProcess } from "node:child_process";
import { createInterface } from "node:readline";
import type { End } from "./pair.ts";

/** Options of tests that need network namespaces. */
export const root = process.getuid?.() === 0 ? { timeout: 20_000 } : { skip: "needs root: network namespaces and TUN" };

const TRAFFIC = new URL("./traffic.ts", import.meta.url).pathname;

/** Runs traffic.ts in the end's namespace; its output line by line. */
export function traffic(end: End, ...args: string[]): { process: ChildProcess; line: () => Promise<string> } {
  const child = end.spawn(process.execPath, TRAFFIC, ...args);
  const lines = createInterface({ input: child.stdout! })[Symbol.asyncIterator]();
  let errors = "";
  child.stderr!.on("data", (text: Buffer) => {
    errors += text.toString();
  });
  const line = async (): Promise<string> => {
    const { value, done } = await lines.next();
    if (done) throw new Error(`${args.join(" ")} ended without a result: ${errors}`);
    return value as string;
  };
  return { process: child, line };
}

const bracket = (address: string): string => (address.includes(":") ? `[${address}]` : address);

export async function tcpArrivesWhole(from: End, to: End, address: string, bytes: number): Promise<void> {
  const receiver = traffic(to, "tcp-receive", address);
  const port = await receiver.line();
  const sender = traffic(from, "tcp-send", `${bracket(address)}:${port}`, String(bytes));
  assert.equal(await receiver.line(), await sender.line(), `TCP to ${address}`);
}

export async function udpArrivesWhole(from: End, to: End, address: string, size: number): Promise<void> {
  const bursts = 25;
  const receiver = traffic(to, "udp-receive", address, String(bursts * 40));
  const port = await receiver.line();
  const sender = traffic(from, "udp-send", `${bracket(address)}:${port}`, String(bursts), String(size));
  assert.equal(await receiver.line(), await sender.line(), `UDP of ${size} bytes to ${address}`);
}

export async function ping(from: End, address: string, ...options: string[]): Promise<void> {
  await from.exec("ping", "-c", "2", "-i", "0.05", "-W", "2", ...options, address);
}

/** Counters that say that packets were refused; ones that a quiet link may show are left out. */
export function refusals(counters: Record<string, number>): Record<string, number> {
  const harmless = new Set(["drop-no-route", "drop-unknown-index"]);
  return Object.fromEntries(
    Object.entries(counters).filter(([name, value]) => name.startsWith("drop-") && value > 0 && !harmless.has(name)),
  );
}
