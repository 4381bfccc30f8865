import assert from "node:assert/strict";
import { readFileSync } from "node:fs";
import { test } from "node:test";
import { type Diagnosis, diagnosePair, type PairFacts, VERDICTS, type Verdict } from "./diagnosis.ts";

/** A pair that is relayed after a search that found nothing, with nothing known of either NAT. */
const RELAYED: PairFacts = {
  name: "birch",
  state: "connected",
  reason: "woken by icmp",
  expired: false,
  lazy: true,
  awakeFor: 30_000,
  path: "relay",
  port: 51820,
  directAllowed: true,
  here: { udp: "works", mapping: "unknown" },
  there: { agent: "perch", ice: true, relay: true, named: "public", udp: "works", mapping: "unknown" },
  stunServers: 1,
  signal: { connected: true, delivered: true },
  relay: { configured: 1, usable: true, server: "rel://hub:33073" },
  checks: { outcome: "failed", pairs: 2, answered: 0, received: 0 },
  handshake: { initiations: 0, last: 1, unopened: 0, replayed: 0 },
};
const CONNECTING: PairFacts = {
  ...RELAYED,
  state: "connecting",
  path: "none",
  handshake: { ...RELAYED.handshake, last: 0 },
};
const SYMMETRIC = { udp: "works", mapping: "endpoint-dependent" } as const;
const CONE = { udp: "works", mapping: "endpoint-independent" } as const;
const PUBLIC = { udp: "works", mapping: "none" } as const;
const SILENT = { udp: "silent", mapping: "unknown" } as const;
const STOCK = { ...RELAYED.there, agent: "stock", udp: "unknown", mapping: "unknown" } as const;
const there = (side: Partial<PairFacts["there"]>): PairFacts["there"] => ({ ...RELAYED.there, ...side });
const UNHEARD = there({ agent: "unheard", ice: false, relay: false, named: "none", udp: "unknown" });

const TABLE: readonly (readonly [
  title: string,
  facts: PairFacts,
  verdict: Verdict,
  certainty: Diagnosis["certainty"],
  cause: RegExp,
])[] = [
  ["direct works", { ...RELAYED, path: "direct" }, "direct", "certain", /talk directly/],
  ["peer asleep", { ...RELAYED, state: "idle", awakeFor: 0 }, "asleep", "certain", /nothing is wrong/],
  [
    "a permanent peer that waits",
    { ...RELAYED, state: "idle", awakeFor: 0, lazy: false, reason: "waiting to connect" },
    "waiting",
    "certain",
    /waiting to connect/,
  ],
  ["just woken", { ...CONNECTING, awakeFor: 900 }, "connecting", "certain", /a moment ago/],
  [
    "still searching",
    { ...RELAYED, checks: { ...RELAYED.checks, outcome: "searching" } },
    "searching",
    "certain",
    /right now/,
  ],
  [
    "no candidates yet",
    { ...RELAYED, awakeFor: 4000, there: UNHEARD, checks: { outcome: "none", pairs: 0, answered: 0, received: 0 } },
    "searching",
    "certain",
    /right now/,
  ],
  [
    "it came by the relay and answers no offer",
    { ...RELAYED, there: UNHEARD, checks: { outcome: "none", pairs: 0, answered: 0, received: 0 } },
    "peer-silent",
    "certain",
    /talks through the relay/,
  ],
  ["relay forced here", { ...RELAYED, directAllowed: false }, "relay-forced", "certain", /this agent was told/i],
  [
    "relay forced there",
    { ...RELAYED, there: there({ ice: false }) },
    "relay-forced-there",
    "certain",
    /birch offers no direct way/,
  ],
  ["login expired", { ...RELAYED, state: "idle", expired: true }, "login-expired", "certain", /expired/],
  [
    "our signal is down",
    { ...CONNECTING, there: UNHEARD, signal: { connected: false, delivered: undefined } },
    "signal-down",
    "certain",
    /no connection to the signal server/,
  ],
  [
    "peer offline: signal says not delivered",
    { ...CONNECTING, there: UNHEARD, signal: { connected: true, delivered: false } },
    "peer-offline",
    "certain",
    /birch is offline/,
  ],
  [
    "no answer through a stock signal server",
    { ...CONNECTING, there: UNHEARD, signal: { connected: true, delivered: undefined } },
    "peer-offline",
    "one-sided",
    /does not tell/,
  ],
  [
    "delivered and never answered",
    { ...CONNECTING, there: UNHEARD },
    "peer-silent",
    "likely",
    /does not answer our offers/,
  ],
  ["no proof yet after a few seconds", { ...CONNECTING, awakeFor: 8000 }, "connecting", "certain", /a moment ago/],
  [
    "pre-shared keys differ",
    { ...CONNECTING, handshake: { ...RELAYED.handshake, last: 0, unopened: 3 } },
    "handshake-unanswered",
    "likely",
    /pre-shared keys differ/,
  ],
  [
    "a clock was set back",
    { ...CONNECTING, handshake: { ...RELAYED.handshake, replayed: 2 } },
    "handshake-unanswered",
    "likely",
    /clock was set back/,
  ],
  [
    "handshake never answered while checks are",
    {
      ...CONNECTING,
      checks: { outcome: "found", pairs: 1, answered: 4, received: 4 },
      handshake: { ...RELAYED.handshake, initiations: 5 },
    },
    "handshake-unanswered",
    "likely",
    /checks are answered, but 5 WireGuard handshakes got no answer/,
  ],
  [
    "relay down and no direct way",
    { ...CONNECTING, here: SYMMETRIC, there: there(SYMMETRIC), relay: { ...RELAYED.relay, usable: false } },
    "no-path",
    "certain",
    /^The relay cannot be reached, and both NATs are symmetric/,
  ],
  [
    "the peer's relay is down and no direct way",
    { ...CONNECTING, here: CONE, there: there({ ...SYMMETRIC, relay: false }) },
    "no-path",
    "certain",
    /^birch is connected to no relay, and the NAT of birch is symmetric/,
  ],
  [
    "no relay at all",
    { ...CONNECTING, here: SILENT, relay: { configured: 0, usable: false, server: "" } },
    "no-path",
    "certain",
    /^The network names no relay, and this network lets no UDP through/,
  ],
  [
    "no STUN server",
    { ...RELAYED, stunServers: 0, here: { udp: "unknown", mapping: "unknown" } },
    "no-stun",
    "certain",
    /names no STUN server/,
  ],
  [
    "no STUN answer on either side",
    { ...RELAYED, here: SILENT, there: there(SILENT) },
    "no-stun-answer",
    "certain",
    /either side/,
  ],
  [
    "UDP blocked here",
    { ...RELAYED, here: SILENT },
    "udp-blocked-here",
    "certain",
    /answer birch, but not this machine/,
  ],
  [
    "no STUN answer here, a stock peer",
    { ...RELAYED, here: SILENT, there: STOCK },
    "udp-silent-here",
    "one-sided",
    /or the servers are down/,
  ],
  [
    "UDP blocked there",
    { ...RELAYED, there: there(SILENT) },
    "udp-blocked-there",
    "certain",
    /network of birch lets no UDP/,
  ],
  [
    "a peer that was not answered by STUN yet",
    { ...RELAYED, there: there({ udp: "unknown", named: "private" }) },
    "udp-blocked-there",
    "likely",
    /only addresses of its own local network/,
  ],
  [
    "a stock peer that was answered by no STUN server",
    { ...RELAYED, here: CONE, there: { ...STOCK, named: "private" } },
    "udp-blocked-there",
    "one-sided",
    /only addresses of its own local network/,
  ],
  [
    "no candidate of the peer",
    { ...RELAYED, checks: { outcome: "none", pairs: 0, answered: 0, received: 0 } },
    "no-candidates",
    "certain",
    /named no address/,
  ],
  [
    "symmetric on both sides",
    { ...RELAYED, here: SYMMETRIC, there: there(SYMMETRIC) },
    "symmetric-both",
    "certain",
    /Both NATs/,
  ],
  [
    "symmetric here, port-restricted there",
    { ...RELAYED, here: SYMMETRIC, there: there(CONE) },
    "symmetric-here",
    "certain",
    /NAT here is symmetric.* the NAT of birch lets in only the exact/,
  ],
  [
    "symmetric here, a firewall there",
    { ...RELAYED, here: SYMMETRIC, there: there(PUBLIC) },
    "symmetric-here",
    "certain",
    /firewall of birch/,
  ],
  [
    "symmetric here, a stock peer",
    { ...RELAYED, here: SYMMETRIC, there: STOCK },
    "symmetric-here",
    "one-sided",
    /NAT here is symmetric/,
  ],
  [
    "port-restricted here, symmetric there",
    { ...RELAYED, here: CONE, there: there(SYMMETRIC) },
    "symmetric-there",
    "certain",
    /NAT of birch is symmetric/,
  ],
  [
    "ours is a cone, theirs follows",
    { ...RELAYED, here: CONE },
    "symmetric-there",
    "likely",
    /most likely that of birch/,
  ],
  [
    "ours is a cone, a stock peer",
    { ...RELAYED, here: CONE, there: STOCK },
    "symmetric-there",
    "one-sided",
    /most likely that of birch/,
  ],
  [
    "theirs is a cone, ours follows",
    { ...RELAYED, there: there(CONE) },
    "symmetric-here",
    "likely",
    /most likely ours/,
  ],
  ["nothing known of either NAT", RELAYED, "mapping-unknown", "likely", /one of the two NATs/],
  ["nothing known, a stock peer", { ...RELAYED, there: STOCK }, "mapping-unknown", "one-sided", /one of the two NATs/],
  [
    "both friendly and no packet",
    { ...RELAYED, here: CONE, there: there(PUBLIC) },
    "blocked-between",
    "likely",
    /firewall stops UDP/,
  ],
  ["only theirs arrive", { ...RELAYED, checks: { ...RELAYED.checks, received: 9 } }, "one-way", "certain", /get here/],
  [
    "answered and not taken",
    { ...RELAYED, checks: { ...RELAYED.checks, answered: 3 } },
    "not-nominated",
    "likely",
    /took none/,
  ],
];

for (const [title, facts, verdict, certainty, cause] of TABLE) {
  test(`${title}: ${verdict}`, () => {
    const diagnosis = diagnosePair(facts);
    assert.deepEqual([diagnosis.verdict, diagnosis.certainty], [verdict, certainty], diagnosis.cause);
    assert.match(diagnosis.cause, cause);
  });
}

test("every verdict is in the table", () => {
  assert.deepEqual([...new Set(TABLE.map(([, , verdict]) => verdict))].sort(), [...VERDICTS].sort());
});

test("docs/errors.md lists every verdict with its exit code, and no other", () => {
  const document = readFileSync(new URL("../../../docs/errors.md", import.meta.url), "utf8");
  const section = document.split("## What the doctor says")[1]!.split("\n## ")[0]!;
  const rows = [...section.matchAll(/^\| ([a-z, -]+) \| ([01]) \|/gm)];
  const listed = rows.flatMap(([, names = "", code]) => names.split(", ").map((name) => `${name} ${code}`));
  const diagnoses = TABLE.map(([, facts]) => diagnosePair(facts));
  const known = new Set(diagnoses.map(({ verdict, healthy }) => `${verdict} ${healthy ? 0 : 1}`));
  assert.deepEqual(listed.sort(), [...known].sort());
});

test("cause and remedy are one sentence each, and what is not well has a remedy", () => {
  for (const [title, facts] of TABLE) {
    const { cause, remedy, healthy } = diagnosePair(facts);
    for (const sentence of [cause, remedy])
      assert.match(sentence, /^$|^(birch|[A-Z])[^.]*(\.[^. ][^.]*)*\.$/, `${title}: ${sentence}`);
    assert.ok(healthy || remedy !== "", title);
  }
});

test("whatever the facts, there is a diagnosis", () => {
  const udp = ["unknown", "works", "silent"] as const;
  const mappings = ["unknown", "none", "endpoint-independent", "endpoint-dependent"] as const;
  const counts = [0, 1];
  for (const state of ["idle", "connecting", "connected"] as const)
    for (const here of udp.flatMap((u) => mappings.map((mapping) => ({ udp: u, mapping }))))
      for (const side of udp.flatMap((u) => mappings.map((mapping) => ({ udp: u, mapping }))))
        for (const agent of ["unheard", "stock", "perch"] as const)
          for (const answered of counts)
            for (const received of counts)
              for (const pairs of counts) {
                const facts: PairFacts = {
                  ...RELAYED,
                  state,
                  here,
                  there: {
                    ...side,
                    agent,
                    ice: agent !== "unheard",
                    relay: answered > 0,
                    named: received ? "private" : "public",
                  },
                  checks: { outcome: pairs ? "failed" : "none", pairs, answered, received },
                };
                const { verdict, cause } = diagnosePair(facts);
                assert.ok(VERDICTS.includes(verdict) && cause.length > 20);
              }
});
