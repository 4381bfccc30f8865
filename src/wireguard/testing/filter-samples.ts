import fc from "fast-check";
import { isV6, parsePrefix } from "#base/ip.ts";
import type { FilterRule, FilterRules } from "../filter.ts";
import type { Packet } from "../worker/filter-model.ts";

/* Packets and rules for properties of a packet filter, from so few addresses and ports that they meet often. */

export const LOCAL = "100.64.0.1";
export const REMOTE = "100.64.0.2";
export const OTHER = "100.64.1.9";
export const LOCAL6 = "fd00::1";
export const REMOTE6 = "fd00::2";

export const sampleEnds = fc.constantFrom(
  { local: LOCAL, remote: REMOTE },
  { local: LOCAL, remote: OTHER },
  { local: LOCAL6, remote: REMOTE6 },
);
export const sampleDirection = fc.constantFrom("in" as const, "out" as const);
/** Of services, and of a program that asks. */
export const samplePort = fc.constantFrom(22, 80, 40_000);

const udp: fc.Arbitrary<Packet["body"]> = fc.record({
  kind: fc.constant("udp" as const),
  localPort: samplePort,
  remotePort: samplePort,
});

/** Of protocols without ports. */
const portless: fc.Arbitrary<Packet["body"]> = fc.oneof(
  fc.record({ kind: fc.constantFrom("question" as const, "answer" as const), id: fc.nat(1) }),
  fc.record({ kind: fc.constant("redirect" as const) }),
  fc.record({ kind: fc.constant("other" as const), protocol: fc.constantFrom(47, 50) }),
);

/** Packets of all protocols but TCP, and no errors. */
export const sampleOthers: fc.Arbitrary<Packet> = samplePackets(
  fc.oneof({ weight: 1, arbitrary: udp }, { weight: 1, arbitrary: portless }),
);

export function samplePackets(body: fc.Arbitrary<Packet["body"]>): fc.Arbitrary<Packet> {
  return fc.tuple(sampleDirection, sampleEnds, body).map(([direction, ends, what]) => ({
    direction,
    ...ends,
    body: what,
  }));
}

/** ICMP errors about packets. One quotes a packet of its own family. */
export function sampleErrors(quoted: fc.Arbitrary<Packet>): fc.Arbitrary<Packet> {
  return fc.tuple(sampleEnds, quoted).map(([ends, about]): Packet => {
    const isOfOne = isV6(parsePrefix(ends.local).address) === isV6(parsePrefix(about.local).address);
    return {
      direction: "in",
      ...(isOfOne ? ends : { local: about.local, remote: about.remote }),
      body: { kind: "error", about },
    };
  });
}

const sampleRule: fc.Arbitrary<FilterRule> = fc
  .record({
    verdict: fc.constantFrom("accept" as const, "accept" as const, "drop" as const),
    protocol: fc.constantFrom("all" as const, "tcp" as const, "udp" as const, "icmp" as const),
    source: fc.constantFrom(`${REMOTE}/32`, "100.64.0.0/16", "0.0.0.0/0", `${REMOTE6}/128`, "fd00::/8", "::/0"),
    toLocal: fc.boolean(),
    ports: fc.option(fc.constantFrom({ first: 22, last: 22 }, { first: 0, last: 80 }, { first: 0, last: 65_535 }), {
      nil: undefined,
    }),
  })
  .map(({ verdict, protocol, source, toLocal, ports }) => ({
    verdict,
    protocol,
    source: parsePrefix(source),
    ...(toLocal ? { destination: ownAddress(source) } : {}),
    ...(ports && protocol !== "icmp" ? { ports } : {}),
  }));

export const sampleRules: fc.Arbitrary<FilterRules> = fc.record({
  inbound: fc.array(sampleRule, { maxLength: 6 }),
  otherwise: fc.constantFrom("drop" as const, "drop" as const, "accept" as const),
});

/** Rules that let everybody do everything here, as those of a network's default policy do, among others that say less. */
export const sampleOpenRules: fc.Arbitrary<FilterRules> = fc
  .tuple(
    fc.constantFrom([`${REMOTE}/32`, `${OTHER}/32`, `${REMOTE6}/128`], ["0.0.0.0/0", "::/0"]),
    fc.boolean(),
    fc.array(
      sampleRule.filter(({ verdict, protocol }) => verdict === "accept" && protocol !== "all"),
      { maxLength: 2 },
    ),
  )
  .map(([sources, toLocal, more]) => ({
    inbound: [
      ...sources.map((source) => ({
        source: parsePrefix(source),
        protocol: "all" as const,
        verdict: "accept" as const,
        ...(toLocal ? { destination: ownAddress(source) } : {}),
      })),
      ...more,
    ],
    otherwise: "drop",
  }));

function ownAddress(source: string): FilterRule["source"] {
  return parsePrefix(source.includes(":") ? `${LOCAL6}/128` : `${LOCAL}/32`);
}
