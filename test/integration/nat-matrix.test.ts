import assert from "node:assert/strict";
import { after, before, describe, test } from "node:test";
import type { Millis } from "#base/time.ts";
import type { TimelineEntry } from "#gen/daemon_pb.ts";
import { createLab, type Lab } from "../../lab/lab.ts";
import { NAT, type NatOptions } from "../../lab/nat.ts";
import { PerchNetwork } from "../../lab/perch-network.ts";
import { skipWithoutLab } from "../../lab/rootless.ts";
import type { SiteSpec } from "../../lab/topology.ts";
import type { TrafficResult } from "../../lab/traffic.ts";
import { WakeEnd, WakePair } from "../../lab/wake-pair.ts";

/** How long a pair is watched on the path it took, with traffic. */
const WATCH: Millis = 3000;
/** An echo every so often while it is watched. */
const WATCH_INTERVAL: Millis = 100;
/** A direct path that is possible has to be there by then; generous, the machine is shared. */
const DIRECT_TIMEOUT: Millis = 5000;

/** What a pair's site does with UDP, as far as a direct path depends on it. */
type Kind = "none" | NatOptions | "udp-blocked";

const KINDS: Readonly<Record<string, Kind>> = {
  none: "none",
  independent: NAT.endpointIndependent,
  address: NAT.addressRestricted,
  port: NAT.portRestricted,
  symmetric: NAT.symmetric,
  blocked: "udp-blocked",
};
const NAMES = Object.keys(KINDS);
/** All pairs of a left and a right site: 21 different pairs of kinds, those of two kinds with either in either place. */
const ROUNDS = NAMES.map((_, shift) => NAMES.map((left, i) => [left, NAMES[(i + shift) % NAMES.length]!] as const));

/**
 * Where a direct path is possible without guessing a port. One end must have an address that the other can know before it
 * sends: its own, or one mapping for all destinations. And the packets of the other end must pass its filter: anybody's, or
 * those of an address it sent to, or those of the exact port it sent to, which it can know only if the other end's mapping
 * is the same for all destinations. The way back is then open, because it leads to where the other end sent to.
 */
function expectDirect(a: Kind, b: Kind): { readonly direct: boolean; readonly why: string } {
  if (a === "udp-blocked" || b === "udp-blocked") return { direct: false, why: "no UDP" };
  const knows = (kind: Exclude<Kind, "udp-blocked">): boolean =>
    kind === "none" || kind.mapping === "endpoint-independent";
  const admits = (kind: Exclude<Kind, "udp-blocked">, other: Exclude<Kind, "udp-blocked">): boolean =>
    kind === "none" || kind.filtering !== "address-and-port-dependent" || knows(other);
  if (knows(a) && admits(a, b)) return { direct: true, why: "left can be reached" };
  if (knows(b) && admits(b, a)) return { direct: true, why: "right can be reached" };
  return { direct: false, why: "a port would have to be guessed" };
}

function siteOf(name: string, kind: Kind): SiteSpec {
  const site = { name, latencyMs: 10 };
  if (kind === "none") return site;
  return kind === "udp-blocked" ? { ...site, nat: NAT.portRestricted, udp: "blocked" } : { ...site, nat: kind };
}

interface PairReport extends Observation {
  readonly left: string;
  readonly right: string;
}

interface Observation {
  readonly expected: string;
  readonly firstMs: Millis;
  readonly directMs: Millis | undefined;
  readonly problems: readonly string[];
}

describe("every pair of NATs", { skip: await skipWithoutLab() }, () => {
  let lab: Lab;
  let network: PerchNetwork;
  const agents = NAMES.flatMap((name) => [`${name}-l`, `${name}-r`]);
  const ends = new Map<string, WakeEnd>();
  const reports: PairReport[] = [];

  before(async () => {
    const sites = NAMES.flatMap((name) => [siteOf(`${name}-l`, KINDS[name]!), siteOf(`${name}-r`, KINDS[name]!)]);
    lab = await createLab({
      sites: [{ name: "hub", latencyMs: 10 }, ...sites],
      hosts: ["hub", ...agents].map((name) => ({ name, site: name })),
    });
    network = await PerchNetwork.start(lab, { server: "hub", agents });
    await Promise.all(agents.map(async (name) => ends.set(name, await WakeEnd.start(network.agent(name)))));
  });

  after(async () => {
    await Promise.all([...ends.values()].map((end) => end[Symbol.asyncDispose]()));
    await network?.close();
    await lab?.close();
  });

  for (const [shift, pairs] of ROUNDS.entries()) {
    const title = pairs.map(([left, right]) => `${left}/${right}`).join(" ");
    test(`round ${shift + 1}: ${title}`, { timeout: 60_000 }, async () => {
      const round = await Promise.all(
        pairs.map(async ([left, right]) => {
          const pair = await WakePair.of(ends.get(`${left}-l`)!, ends.get(`${right}-r`)!);
          return { left, right, ...(await observe(lab, pair, KINDS[left]!, KINDS[right]!)) };
        }),
      );
      reports.push(...round);
      assert.deepEqual(
        round.flatMap(({ left, right, problems }) => problems.map((problem) => `${left}/${right}: ${problem}`)),
        [],
      );
    });
  }

  test("all 21 pairs of kinds were seen", (t) => {
    for (const line of table(reports)) t.diagnostic(line);
    assert.equal(new Set(reports.map(({ left, right }) => [left, right].sort().join())).size, 21);
  });
});

/** Wakes one pair by an echo, waits for its path, watches it, and says what was not as it has to be. */
async function observe(lab: Lab, pair: WakePair, left: Kind, right: Kind): Promise<Observation> {
  const { direct, why } = expectDirect(left, right);
  const problems: string[] = [];
  const { from, to } = pair;
  const { result } = await pair.wake("udp", { settleMs: 60 });
  const back = await pair.wake("udp", { settleMs: 60 }, to);
  if (direct) {
    await Promise.all([pair.direct(from, DIRECT_TIMEOUT), pair.direct(to, DIRECT_TIMEOUT)]).catch((error: Error) =>
      problems.push(`${error.message}, but ${why}`),
    );
  }
  const before = await delivered(lab, from, to);
  const count = WATCH / WATCH_INTERVAL;
  const watched = await Promise.all([
    pair.wake("udp", { count, intervalMs: WATCH_INTERVAL, timeoutMs: 2 * WATCH }),
    pair.wake("udp", { count, intervalMs: WATCH_INTERVAL, timeoutMs: 2 * WATCH }, to),
  ]);
  const after = await delivered(lab, from, to);
  for (const traffic of [result, back.result, ...watched.map((record) => record.result)])
    problems.push(...lossOf(traffic));
  const stories = watched.map(({ timeline }) => timeline);
  for (const timeline of stories) problems.push(...pathProblems(timeline, direct));
  // A relayed pair's packets never arrive from host to host, a direct pair's do: both echoes, there and back.
  const passed = after - before;
  if (direct && passed < 4 * count) problems.push(`only ${passed} datagrams of ${4 * count} went directly`);
  if (!direct && after > 0) problems.push(`${after} datagrams went directly, but ${why}`);
  if (problems.length > 0) problems.push(...stories.map(story));
  await pair.sleep().catch(async (error: Error) => {
    problems.push(error.message, ...(await Promise.all([pair.story(from), pair.story(to)])).map(story));
  });
  return {
    expected: direct ? "direct" : "relay",
    firstMs: result.firstMs,
    directMs: stories[0]!.find(isDirect)?.sinceWakeMs,
    problems,
  };
}

/** UDP datagrams that arrived from one host at the other, both ways. */
async function delivered(lab: Lab, from: WakeEnd, to: WakeEnd): Promise<number> {
  const { pairs } = await lab.counters();
  const [a, b] = [from.agent.name, to.agent.name];
  return (pairs[a]?.[b]?.udpPackets ?? 0) + (pairs[b]?.[a]?.udpPackets ?? 0);
}

function lossOf({ sent, received, duplicates }: TrafficResult): string[] {
  return received === sent && duplicates === 0 ? [] : [`${received} of ${sent} echoes, ${duplicates} twice`];
}

const isDirect = ({ event, detail }: TimelineEntry): boolean => event === "path" && detail.startsWith("direct");

/** A pair takes its path and keeps it. */
function pathProblems(timeline: readonly TimelineEntry[], direct: boolean): string[] {
  const found = timeline.some(isDirect);
  const bad = timeline.filter(({ event }) => event === "direct-lost" || event === "unproven" || event === "restart");
  return [
    ...(found === direct ? [] : [direct ? "no direct path in the timeline" : "a direct path that cannot be"]),
    ...bad.map(({ event, detail }) => `${event}: ${detail}`),
  ];
}

function story(timeline: readonly TimelineEntry[]): string {
  return timeline.map(({ sinceWakeMs, event, detail }) => `${sinceWakeMs?.toFixed(0)} ${event} ${detail}`).join("; ");
}

function table(reports: readonly PairReport[]): string[] {
  const ms = (value: Millis | undefined): string => (value === undefined ? "-" : value.toFixed(0));
  const rows = [...reports].sort(
    (a, b) => NAMES.indexOf(a.left) - NAMES.indexOf(b.left) || NAMES.indexOf(a.right) - NAMES.indexOf(b.right),
  );
  return [
    "left        right       path    first reply ms  direct after ms",
    ...rows.map(({ left, right, expected, firstMs, directMs, problems }) =>
      [
        left.padEnd(11),
        right.padEnd(11),
        expected.padEnd(7),
        ms(firstMs).padStart(14),
        ms(directMs).padStart(16),
        problems.length > 0 ? "FAILED" : "",
      ].join(" "),
    ),
  ];
}
