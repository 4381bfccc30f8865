import { setTimeout as sleep } from "node:timers/promises";
import { PublicKey } from "#base/keys.ts";
import type { StatusHead } from "#gen/daemon_pb.ts";
import type { WakeEnd, WakePair } from "./wake-pair.ts";

/** A reading of so few peers that was under way is over by then. */
const READING_MS = 20;
/** The agent looks at a peer that fell asleep every 5 s, less often where there are many. */
const PATIENCE_MS = 60_000;

/**
 * Takes a sleeping pair's sessions out of those devices that are wireguard-go, as minutes of sleep do; resolves when the agents
 * have seen it. Everything else the devices know stays. Embedded ones use none that they had before a sleep.
 */
export async function forgetSessions(pair: WakePair): Promise<void> {
  await Promise.all([pair.from, pair.to].map((end) => forgetSession(pair, end)));
}

async function forgetSession(pair: WakePair, end: WakeEnd): Promise<void> {
  const { host } = end.agent;
  const { interfaceName, device } = await readHead(end);
  if (device !== "wireguard-go") return;
  const peer = PublicKey.fromBytes(pair.peerOf(end)!.key);
  const { stdout } = await host.exec("wg", ["show", interfaceName, "dump"]);
  // Key, preshared key, endpoint, allowed IPs and what is counted.
  const [, , endpoint, allowedIps] =
    stdout
      .split("\n")
      .find((line) => line.startsWith(peer))
      ?.split("\t") ?? [];
  if (endpoint === undefined || allowedIps === undefined)
    throw new Error(`${end.agent.name} has no peer ${peer} in its device`);
  for (const change of [["remove"], ["endpoint", endpoint, "allowed-ips", allowedIps]]) {
    const { code, stderr } = await host.exec("wg", ["set", interfaceName, "peer", peer, ...change]);
    if (code !== 0) throw new Error(`wg on ${end.agent.name}: ${stderr.trim()}`);
  }
  await sleep(READING_MS);
  const before = await countReadings(end);
  for (const deadline = performance.now() + PATIENCE_MS; (await countReadings(end)) === before; ) {
    if (performance.now() > deadline) throw new Error(`${end.agent.name} does not read its device`);
    await sleep(READING_MS);
  }
}

async function countReadings(end: WakeEnd): Promise<number> {
  return (await readHead(end)).counters.readings ?? Number.NaN;
}

async function readHead({ daemon }: WakeEnd): Promise<StatusHead> {
  for await (const { head } of daemon.getStatus({})) if (head) return head;
  throw new Error("the daemon says nothing of itself");
}
