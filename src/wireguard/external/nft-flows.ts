import type { RuleForm } from "./open-sources.ts";

/*
 * The chains around the rules in the two forms of the table, in the language of nft(8). `judge` has what comes from the interface,
 * `leave` what goes into it, `refuse` what the rules do not let in:
 *
 *   tracked   judge    reply of a tracked flow ─▶ replies       the flow began here: in
 *                      ICMP error about a tracked flow ─▶ in
 *                      else ─▶ rules4, rules6                   every packet of a flow that began outside: a change of the rules is
 *                                                               in force with its next one
 *   open      judge    all ─▶ rules4, rules6                    no expression of connection tracking is in the table, so the kernel
 *                                                               does not do it for us; it costs a tenth of a tunnel's throughput
 *   both      refuse   of a flow in `ours` ─▶ in, else dropped
 *
 * Flows outlive the form that the table had when they began, and who finds one half way does not know who began it. So two sets
 * for each family know it, by address and port of the remote and the local end:
 *
 *   ours      began here      open: TCP that is opened, all UDP; tracked: UDP
 *   theirs    began outside   the same, of TCP only at ports where programs ask, since services listen below; there, TCP that is
 *                             found half way on its way out is one of theirs too
 *
 * What is in `theirs` is for the rules to judge, whatever connection tracking says; what is in `ours` comes in, whatever the rules
 * say. A flow that is in neither began here when its first packet goes out.
 */

type Family = 4 | 6;
const FAMILIES: readonly Family[] = [4, 6];
type Owner = "ours" | "theirs";
const OWNERS: readonly Owner[] = ["ours", "theirs"];

/** As in the embedded filter: programs ask from ports at or above this one, services listen below. */
const FIRST_EPHEMERAL_PORT = 32_768;
/** Flows that are remembered by each set. Beyond, it is as if they were older than the rules. */
const FLOWS_MAX = 65_535;
/** As long as the kernel keeps a TCP connection, and one of which an end has closed its side. */
const TCP_FOR = "5d";
const CLOSED_TCP_FOR = "2m";
/** A flow that is not remembered any more is ours when its next packet goes out, so theirs are kept longer. */
const OUR_UDP_FOR = "1m";
const THEIR_UDP_FOR = "3m";
/** While connection tracking knows a UDP flow, one packet in so many renews it. */
const RENEWING = 32;
/** Reserved; no packet with it comes in. */
const RESERVED_PROTOCOL = 255;

/** Of the table: packets that the rules kept out. */
export const NFT_DROP_COUNTER = "dropped";

const SYN = "tcp flags & (fin | syn | rst | ack) == syn";
/** To the rules of its family. Behind extension headers that cannot be read to their end no comparison is true. */
const TO_RULES = ["meta nfproto ipv4 goto rules4", `meta l4proto != ${RESERVED_PROTOCOL} goto rules6`, "goto refuse"];
const DROP = `counter name ${NFT_DROP_COUNTER} drop`;

/** Chains that both forms have. */
const ENTRIES: readonly string[] = ["judge", "leave"];

type Chains = Readonly<Record<string, readonly string[]>>;

/** What is the same in both forms. */
const COMMON: Chains = {
  refuse: [`${SYN} ${DROP}`, ...FAMILIES.map((family) => `${isIn("in", family, "ours")} goto admit`), DROP],
  admit: [
    ...FAMILIES.flatMap((family) => [
      `meta l4proto udp ${remember("in", family, "ours", OUR_UDP_FOR)}`,
      `tcp flags & (fin | rst) == 0 ${remember("in", family, "ours", TCP_FOR)}`,
      `tcp flags & (fin | rst) != 0 ${remember("in", family, "ours", CLOSED_TCP_FOR)}`,
    ]),
    "accept",
  ],
  // Packets that may begin a flow.
  come_tcp: FAMILIES.map((family) => forget("in", family, "ours")),
  ask_tcp: FAMILIES.map((family) => forget("out", family, "theirs")),
  ask_udp: [
    ...FAMILIES.map((family) => `${isIn("out", family, "theirs")} return`),
    ...FAMILIES.map((family) => remember("out", family, "ours", OUR_UDP_FOR)),
  ],
};

const FORMS: Readonly<Record<RuleForm, Chains>> = {
  open: {
    judge: ["meta l4proto udp jump come_udp", "tcp flags & (syn | rst) != 0 jump come", ...TO_RULES],
    come: [
      ...FAMILIES.map((family) => `tcp flags & rst == rst ${renew("in", family, "ours", CLOSED_TCP_FOR)}`),
      `${SYN} jump come_tcp`,
      `${SYN} tcp dport >= ${FIRST_EPHEMERAL_PORT} goto come_high`,
    ],
    come_high: FAMILIES.map((family) => remember("in", family, "theirs", TCP_FOR)),
    come_udp: [
      ...FAMILIES.map((family) => `${isIn("in", family, "ours")} return`),
      ...FAMILIES.map((family) => remember("in", family, "theirs", THEIR_UDP_FOR)),
    ],
    leave: ["meta l4proto udp goto ask_udp", "tcp flags & (fin | syn | rst) != 0 goto turn"],
    turn: [
      `${SYN} goto ask`,
      "tcp flags & syn == syn return",
      ...OWNERS.flatMap((owner) => FAMILIES.map((family) => renew("out", family, owner, CLOSED_TCP_FOR))),
    ],
    ask: ["jump ask_tcp", ...FAMILIES.map((family) => remember("out", family, "ours", TCP_FOR))],
  },
  tracked: {
    judge: ["ct direction reply ct state established goto replies", "ct state related,new jump unusual", ...TO_RULES],
    replies: [...FAMILIES.map((family) => `${isIn("in", family, "theirs")} goto rejudge`), "accept"],
    rejudge: [
      ...FAMILIES.flatMap((family) => [
        `meta l4proto udp ${remember("in", family, "theirs", THEIR_UDP_FOR)}`,
        `meta l4proto tcp ${remember("in", family, "theirs", TCP_FOR)}`,
      ]),
      ...TO_RULES,
    ],
    unusual: [
      "ct state related icmp type { destination-unreachable, time-exceeded, parameter-problem } accept",
      "ct state related icmpv6 type 1-4 accept",
      `${SYN} goto come_tcp`,
    ],
    leave: ["ct state new goto begin", `meta l4proto udp numgen random mod ${RENEWING} 0 goto go_on_udp`],
    begin: ["meta l4proto udp goto ask_udp", `${SYN} goto ask_tcp`, "tcp flags & (syn | rst) == 0 goto half_way"],
    go_on_udp: [
      "ct direction original goto ask_udp",
      ...FAMILIES.map((family) => `${isIn("out", family, "ours")} return`),
      ...FAMILIES.map((family) => remember("out", family, "theirs", THEIR_UDP_FOR)),
    ],
    half_way: [
      // Connection tracking has it from now on, as one that began here; it says "new" until there is an answer.
      ...FAMILIES.map((family) => `${renew("out", family, "ours", CLOSED_TCP_FOR)} return`),
      `tcp sport >= ${FIRST_EPHEMERAL_PORT} return`,
      ...FAMILIES.map((family) => remember("out", family, "theirs", TCP_FOR)),
    ],
  },
};

/** What comes from the interface is for `judge`, what goes into it for `leave`. The chains `rules4` and `rules6` are there. */
export function createFlows(table: string, form: RuleForm): string[] {
  const sets = FAMILIES.flatMap((family) =>
    OWNERS.map((owner) => {
      const address = family === 4 ? "ipv4_addr" : "ipv6_addr";
      const key = `${address} . inet_proto . inet_service . ${address} . inet_service`;
      return `add set ${table} ${owner}${family} { type ${key}; flags dynamic,timeout; size ${FLOWS_MAX}; }`;
    }),
  );
  return [...sets, ...addChains(table, COMMON), ...addChains(table, FORMS[form])];
}

/** From one form to the other, with all that the sets know. */
export function changeFlows(table: string, from: RuleForm, to: RuleForm): string[] {
  const flushed = Object.keys(FORMS[from]).map((chain) => `flush chain ${table} ${chain}`);
  const deleted = Object.keys(FORMS[from])
    .filter((chain) => !ENTRIES.includes(chain))
    .map((chain) => `delete chain ${table} ${chain}`);
  return [...flushed, ...deleted, ...addChains(table, FORMS[to])];
}

function addChains(table: string, chains: Chains): string[] {
  return [
    ...Object.keys(chains).map((chain) => `add chain ${table} ${chain}`),
    ...Object.entries(chains).flatMap(([chain, rules]) => rules.map((rule) => `add rule ${table} ${chain} ${rule}`)),
  ];
}

/** The flow of a packet that comes in or goes out: the remote end, and ours. */
function flow(way: "in" | "out", family: Family): string {
  const ip = family === 4 ? "ip" : "ip6";
  return way === "in"
    ? `${ip} saddr . meta l4proto . th sport . ${ip} daddr . th dport`
    : `${ip} daddr . meta l4proto . th dport . ${ip} saddr . th sport`;
}

function isIn(way: "in" | "out", family: Family, owner: Owner): string {
  return `${flow(way, family)} @${owner}${family}`;
}

/** Renews what is remembered already. */
function remember(way: "in" | "out", family: Family, owner: Owner, time: string): string {
  return `update @${owner}${family} { ${flow(way, family)} timeout ${time} }`;
}

/** Only what is remembered. */
function renew(way: "in" | "out", family: Family, owner: Owner, time: string): string {
  return `${isIn(way, family, owner)} ${remember(way, family, owner, time)}`;
}

function forget(way: "in" | "out", family: Family, owner: Owner): string {
  return `delete @${owner}${family} { ${flow(way, family)} }`;
}
