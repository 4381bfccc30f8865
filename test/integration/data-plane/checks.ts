import assert from "node:assert/strict";
import type { ChildProcess } from "node:child_process";
import { createInterface } from "node:readline";
import type { End } from "./pair.ts";
import type { UdpReceived, UdpSent } from "./traffic.ts";

/** Options of tests that need network namespaces. */
export const root = process.getuid?.() === 0 ? { timeout: 20_000 } : { skip: "needs root: network namespaces and TUN" };

const TRAFFIC = new URL("./traffic.ts", import.meta.url).pathname;

/** Where traffic.ts can run: pipes for stdin and stdout. */
export type TrafficEnd = Pick<End, "spawn">;

/** Runs traffic.ts in the end's namespace; its output line by line. */
export function traffic(end: TrafficEnd, ...args: string[]): { process: ChildProcess; line: () => Promise<string> } {
  const child = end.spawn(process.execPath, TRAFFIC, ...args);
  const lines = createInterface({ input: child.stdout! })[Symbol.asyncIterator]();
  let errors = "";
  child.stderr?.on("data", (text: Buffer) => {
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

/** Sends a stream and compares; the hash of both ends. */
export async function tcpArrivesWhole(from: End, to: End, address: string, bytes: number): Promise<string> {
  const receiver = traffic(to, "tcp-receive", address);
  const port = await receiver.line();
  const sender = traffic(from, "tcp-send", `${bracket(address)}:${port}`, String(bytes));
  const [received, sent] = await Promise.all([receiver.line(), sender.line()]);
  assert.equal(received, sent, `TCP to ${address}`);
  return sent;
}

/** Sends bursts with UDP_SEGMENT, 40 datagrams of `size` bytes each, the last one smaller; both ends' own accounts. */
export async function sendUdp(
  from: TrafficEnd,
  to: TrafficEnd,
  address: string,
  { bursts, size, ahead }: { readonly bursts: number; readonly size: number; readonly ahead?: number },
): Promise<{ readonly sent: UdpSent; readonly received: UdpReceived }> {
  const receiver = traffic(to, "udp-receive", address, String(size));
  const port = await receiver.line();
  const numbers = [bursts, size, ...(ahead === undefined ? [] : [ahead])].map(String);
  const sender = traffic(from, "udp-send", `${bracket(address)}:${port}`, ...numbers);
  const sending = sender.line().then((line) => {
    const sent = JSON.parse(line) as UdpSent;
    receiver.process.stdin!.write(`end ${sent.datagrams}\n`);
    return sent;
  });
  // It has ended when the last bursts are reported.
  sender.process.stdin!.on("error", () => {});
  for (;;) {
    const line = await receiver.line();
    if (line.startsWith("{")) return { sent: await sending, received: JSON.parse(line) as UdpReceived };
    sender.process.stdin!.write(`${line}\n`);
  }
}

/** The same where nothing may be lost; the hash of both ends. */
export async function udpArrivesWhole(
  from: End,
  to: End,
  address: string,
  bursts: { readonly bursts: number; readonly size: number },
): Promise<string> {
  const { sent, received } = await sendUdp(from, to, address, bursts);
  const whole: UdpReceived = { ...sent, duplicates: 0, altered: 0, outOfOrder: 0 };
  assert.deepEqual(received, whole, `UDP of ${bursts.size} bytes to ${address}`);
  return sent.hash;
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
