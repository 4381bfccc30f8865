import type { RuleForm } from "./open-sources.ts";

/*
 * The chains around the rules in the two forms of the table, in the language of nft(8). `inbound` has what comes from the interface,
 * `outbound` what goes into it, and holds nothing back; `refuse` has what the rules do not let in:
 *
 *   tracked   inbound   reply of a tracked flow ─▶ replies      the flow began here: in
 *                       ICMP error about a tracked flow ─▶ in
 *                       else ─▶ rules4, rules6                  every packet of a flow that began outside: a change of the rules
 *                                                               is in force with its next one
 *   open      inbound   all ─▶ rules4, rules6                   no expression asks for connection tracking, which the kernel would
 *                                                               do for all packets of the machine then
 *   both      refuse    of a flow in `ours` ─▶ in, else dropped
 *
 * Flows outlive the form that the table had when they began, and who finds one half way does not know who began it. So sets of each
 * family know it, by address and port of the remote and the local end:
 *
 *   ours      began here      open: TCP that is opened, all UDP; tracked: UDP
 *   theirs    began outside   the same; tracked: also TCP that is found half way on its way out of a port where services listen
 *   known     UDP that was looked at a moment ago, and need not be for the next packets
 *
 * What is in `theirs` is for the rules to judge, whatever connection tracking says; what is in `ours` comes in, whatever the rules
 * say. A flow that is in neither began here when its first packet goes out.
 */

type Family = 4 | 6;
const FAMILIES: readonly Family[] = [4, 6];
type Owner = "ours" | "theirs";
const OWNERS: readonly Owner[] = ["ours", "theirs"];

/** Linux has connection tracking at -200, destination NAT at -100 and source NAT at 100 (NF_IP_PRI_*). */
const HOOKS = { inbound: "prerouting priority -150", outbound: "postrouting priority 110" } as const;
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
/** For so long a UDP flow that was looked at is not looked at again. */
const KNOWN_UDP_FOR = "20s";
/** Reserved; no packet with it comes in. */
const RESERVED_PROTOCOL = 255;

/** Of the table: packets that the rules kept out. */
export const NFT_DROP_COUNTER = "dropped";

const SYN = "tcp flags & (fin | syn | rst | ack) == syn";
/** To the rules of its family. Behind extension headers that cannot be read to their end no comparison is true. */
const TO_RULES = ["meta nfproto ipv4 goto rules4", `meta l4proto != ${RESERVED_PROTOCOL} goto rules6`, "goto refuse"];
const DROP = `counter name ${NFT_DROP_COUNTER} drop`;

type Chains = Readonly<Record<string, readonly string[]>>;
type Form = Chains & Readonly<Record<keyof typeof HOOKS, readonly string[]>>;

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
    ...FAMILIES.map((family) => know("out", family)),
    ...FAMILIES.map((family) => `${renew("out", family, "theirs", THEIR_UDP_FOR)} return`),
    ...FAMILIES.map((family) => remember("out", family, "ours", OUR_UDP_FOR)),
  ],
};

const FORMS: Readonly<Record<RuleForm, Form>> = {
  open: {
    // What most packets are first: each expression counts.
    inbound: [
      "meta nfproto ipv4 tcp flags & (syn | rst) == 0 goto rules4",
      `${isKnown("in", 4)} goto rules4`,
      `${isKnown("in", 6)} goto rules6`,
      "meta l4proto udp jump come_udp",
      "tcp flags & (syn | rst) != 0 jump come",
      ...TO_RULES,
    ],
    come: [
      ...FAMILIES.map((family) => `tcp flags & rst == rst ${renew("in", family, "ours", CLOSED_TCP_FOR)}`),
      `${SYN} goto come_new`,
    ],
    come_new: ["jump come_tcp", ...FAMILIES.map((family) => remember("in", family, "theirs", TCP_FOR))],
    come_udp: [
      ...FAMILIES.map((family) => know("in", family)),
      ...FAMILIES.map((family) => `${renew("in", family, "ours", OUR_UDP_FOR)} return`),
      ...FAMILIES.map((family) => remember("in", family, "theirs", THEIR_UDP_FOR)),
    ],
    outbound: [
      "tcp flags & (fin | syn | rst) == 0 accept",
      ...FAMILIES.map((family) => `${isKnown("out", family)} accept`),
      "meta l4proto udp goto ask_udp",
      "meta l4proto tcp goto turn",
    ],
    turn: [
      `${SYN} goto ask`,
      "tcp flags & syn == syn return",
      ...OWNERS.flatMap((owner) => FAMILIES.map((family) => renew("out", family, owner, CLOSED_TCP_FOR))),
    ],
    ask: ["jump ask_tcp", ...FAMILIES.map((family) => remember("out", family, "ours", TCP_FOR))],
  },
  tracked: {
    inbound: ["ct direction reply ct state established goto replies", "ct state related,new jump unusual", ...TO_RULES],
    replies: [...FAMILIES.map((family) => `${isIn("in", family, "theirs")} goto rejudge`), "accept"],
    rejudge: [
      ...FAMILIES.flatMap((family) => [
        `meta l4proto udp ${remember("in", family, "theirs", THEIR_UDP_FOR)}`,
        `meta l4proto tcp ${remember("in", family, "theirs", TCP_FOR)}`,
      ]),
      ...TO_RULES,
    ],
    unusual: [
      "meta l4proto udp return",
      "ct state related icmp type { destination-unreachable, time-exceeded, parameter-problem } accept",
      "ct state related icmpv6 type 1-4 accept",
      `${SYN} goto come_tcp`,
    ],
    outbound: ["meta l4proto udp goto go_udp", "ct state new meta l4proto tcp goto begin"],
    go_udp: [
      ...FAMILIES.map((family) => `${isKnown("out", family)} accept`),
      "ct direction original goto ask_udp",
      ...FAMILIES.map((family) => know("out", family)),
      ...FAMILIES.map((family) => `${renew("out", family, "ours", OUR_UDP_FOR)} return`),
      ...FAMILIES.map((family) => remember("out", family, "theirs", THEIR_UDP_FOR)),
    ],
    begin: [`${SYN} goto ask_tcp`, "tcp flags & (syn | rst) == 0 goto half_way"],
    half_way: [
      // Connection tracking has it from now on, as one that began here; it says "new" until there is an answer.
      ...FAMILIES.map((family) => `${renew("out", family, "ours", CLOSED_TCP_FOR)} return`),
      `tcp sport >= ${FIRST_EPHEMERAL_PORT} return`,
      ...FAMILIES.map((family) => remember("out", family, "theirs", TCP_FOR)),
    ],
  },
};

/**
 * The chains that hook, which let the packets of other interfaces pass, and all that they need. The chains `rules4` and `rules6` are
 * there.
 */
export function createFlows(table: string, interfaceName: string, form: RuleForm): string[] {
  const sets = FAMILIES.flatMap((family) => {
    const address = family === 4 ? "ipv4_addr" : "ipv6_addr";
    const make = (name: string, protocol: string): string =>
      `add set ${table} ${name}${family} { type ${address} . ${protocol}inet_service . ${address} . inet_service; flags dynamic,timeout; size ${FLOWS_MAX}; }`;
    return [...OWNERS.map((owner) => make(owner, "inet_proto . ")), make("known", "")];
  });
  return [
    ...sets,
    ...Object.entries(HOOKS).map(
      ([chain, hook]) => `add chain ${table} ${chain} { type filter hook ${hook}; policy accept; }`,
    ),
    ...addChains(table, COMMON),
    ...addForm(table, interfaceName, form),
  ];
}

/** From one form to the other, with all that the sets know. */
export function changeFlows(table: string, interfaceName: string, from: RuleForm, to: RuleForm): string[] {
  const chains = Object.keys(FORMS[from]);
  return [
    ...chains.map((chain) => `flush chain ${table} ${chain}`),
    ...chains.filter((chain) => !(chain in HOOKS)).map((chain) => `delete chain ${table} ${chain}`),
    ...addForm(table, interfaceName, to),
  ];
}

function addForm(table: string, interfaceName: string, form: RuleForm): string[] {
  const { inbound, outbound, ...others } = FORMS[form];
  return addChains(table, {
    inbound: [`iifname != "${interfaceName}" accept`, ...inbound],
    outbound: [`oifname != "${interfaceName}" accept`, ...outbound],
    ...others,
  });
}

function addChains(table: string, chains: Chains): string[] {
  return [
    ...Object.keys(chains)
      .filter((chain) => !(chain in HOOKS))
      .map((chain) => `add chain ${table} ${chain}`),
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

/** A UDP packet of a flow that was looked at lately. */
function isKnown(way: "in" | "out", family: Family): string {
  return `${udpFlow(way, family)} @known${family}`;
}

function know(way: "in" | "out", family: Family): string {
  return `update @known${family} { ${udpFlow(way, family)} timeout ${KNOWN_UDP_FOR} }`;
}

function udpFlow(way: "in" | "out", family: Family): string {
  const ip = family === 4 ? "ip" : "ip6";
  return way === "in"
    ? `${ip} saddr . udp sport . ${ip} daddr . udp dport`
    : `${ip} daddr . udp dport . ${ip} saddr . udp sport`;
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
