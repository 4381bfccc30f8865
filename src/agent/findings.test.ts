import assert from "node:assert/strict";
import { test } from "node:test";
import { parseEndpoint, parsePrefix } from "#base/ip.ts";
import type { MappingObservation } from "#ice/mapping.ts";
import type { AgentStatus } from "./control.ts";
import { makePeers } from "./daemon/testing/fake-agent.ts";
import { AREAS, type Area, type Finding } from "./examination.ts";
import { type AgentFacts, examineAgent } from "./findings.ts";
import { WakeMeter } from "./metrics/wake-meter.ts";
import type { NatView } from "./peer/direct-paths.ts";

const SERVER = parseEndpoint("198.51.100.1:3478");
const MAPPED = parseEndpoint("203.0.113.7:40000");

function observation(destination: string, mapped: string): MappingObservation {
  const ends = { destination: parseEndpoint(destination), mapped: parseEndpoint(mapped) };
  return { ...ends, at: 0, by: "server", translated: true };
}

const NAT: NatView = {
  udp: "works",
  mapping: "endpoint-independent",
  mapping6: "unknown",
  servers: [{ server: SERVER, mapped: MAPPED, answeredAt: 0, rtt: 20, silentAt: undefined }],
  observations: [observation("198.51.100.1:3478", "203.0.113.7:40000")],
  addresses: [parseEndpoint("192.168.1.2:51820")],
};
const SILENT: NatView = {
  ...NAT,
  udp: "silent",
  mapping: "unknown",
  servers: [{ server: SERVER, mapped: undefined, answeredAt: undefined, rtt: undefined, silentAt: 0 }],
  observations: [],
};

const STATUS: AgentStatus = {
  state: "up",
  version: "0.1.0",
  fqdn: "alder.perch",
  address: parsePrefix("100.64.0.1/16"),
  interfaceName: "perch0",
  wireguardPort: 51820,
  mtu: 1280,
  device: { kind: "embedded", features: ["tun-tso", "tun-uso", "udp-gso", "udp-gro", "ipv6"] },
  lazy: { enabled: true, source: "network", thresholdMs: 900_000 },
  management: { url: "http://hub:33073", connected: true, since: 0 },
  signal: { url: "http://hub:33073", connected: true, since: 0 },
  relays: [{ uri: "rel://hub:33073", available: true }],
  stuns: [],
  serial: 1,
  firewall: { kind: "rules", rules: 2 },
  counts: { total: 0, idle: 0, connecting: 0, connected: 0 },
  peers: [],
  counters: new Map(),
  wakeTotals: new WakeMeter().totals,
  paths: { direct: 0, relay: 0 },
};

const HEALTHY: AgentFacts = {
  status: STATUS,
  wall: Date.UTC(2026, 5, 1),
  nat: NAT,
  clock: { aheadMs: -300, uncertaintyMs: 510 },
  forceRelay: false,
  autoDevice: false,
  mayAdminister: true,
  tunProblem: undefined,
  kernel: "6.1.0",
  addresses: [
    { prefix: parsePrefix("192.168.1.2/24"), interfaceName: "eth0" },
    { prefix: parsePrefix("100.64.0.1/16"), interfaceName: "perch0" },
  ],
  machineRoutes: [
    { prefix: parsePrefix("0.0.0.0/0"), interfaceName: "eth0" },
    { prefix: parsePrefix("192.168.1.0/24"), interfaceName: "eth0" },
    { prefix: parsePrefix("100.64.0.0/16"), interfaceName: "perch0" },
  ],
  wantedRoutes: [parsePrefix("100.64.0.0/16")],
};
const status = (change: Partial<AgentStatus>): Partial<AgentFacts> => ({ status: { ...STATUS, ...change } });
const remote = (text: string, interfaceName: string) => ({ prefix: parsePrefix(text), interfaceName });

test("a healthy agent has every area once, in order, and all of them in order", () => {
  const findings = examineAgent(HEALTHY);
  assert.deepEqual(
    findings.map(({ area, level, remedy }) => `${area} ${level}${remedy}`),
    AREAS.map((area) => `${area} ok`),
  );
});

const TABLE: readonly (readonly [title: string, Partial<AgentFacts>, Area, Finding["level"], RegExp])[] = [
  ["down", status({ state: "down" }), "agent", "problem", /^down$/],
  ["not registered", status({ state: "needs-login", reason: "x" }), "agent", "problem", /^not registered: x$/],
  ["connecting", status({ state: "starting", reason: "logging in" }), "agent", "problem", /^connecting: logging in$/],
  ["no rights", { mayAdminister: false }, "rights", "problem", /may not configure/],
  ["no TUN device", { tunProblem: "/dev/net/tun does not exist" }, "rights", "problem", /does not exist/],
  [
    "management away",
    status({ management: { url: "http://hub:33073", connected: false, error: "refused", since: 0 } }),
    "management",
    "problem",
    /no connection to http:\/\/hub:33073: refused/,
  ],
  ["signal away", status({ signal: { url: "", connected: false, since: 0 } }), "signal", "problem", /to any server$/],
  ["no relay named", status({ relays: [] }), "relay", "problem", /names no relay/],
  [
    "relay away",
    status({ relays: [{ uri: "rel://hub:33073", available: false, error: "refused" }] }),
    "relay",
    "problem",
    /no connection to rel:\/\/hub:33073: refused/,
  ],
  [
    "a relay that is not the home relay",
    status({ relays: [{ uri: "rel://far:1", available: false }, ...STATUS.relays] }),
    "relay",
    "ok",
    /rel:\/\/far:1 is not used, rel:\/\/hub:33073 is/,
  ],
  ["no STUN server named", { nat: { ...NAT, servers: [] } }, "stun", "problem", /names no STUN server/],
  ["STUN answers", {}, "stun", "ok", /198.51.100.1:3478 answers after 20 ms and sees 203.0.113.7:40000/],
  ["STUN silent", { nat: SILENT }, "stun", "problem", /does not answer/],
  [
    "one of two STUN servers silent",
    { nat: { ...NAT, servers: [...NAT.servers, ...SILENT.servers] } },
    "stun",
    "note",
    /does not answer/,
  ],
  [
    "a STUN server over IPv6 without IPv6",
    {
      nat: {
        ...NAT,
        servers: [...NAT.servers, { ...SILENT.servers[0]!, server: parseEndpoint("[2001:db8::1]:3478") }],
      },
    },
    "stun",
    "ok",
    /there is no IPv6 here/,
  ],
  ["UDP blocked", { nat: SILENT }, "udp", "problem", /lets no UDP through/],
  ["relay forced", { forceRelay: true }, "udp", "note", /switched off/],
  ["nothing asked yet", { nat: { ...SILENT, udp: "unknown" } }, "udp", "note", /not tried yet/],
  ["no NAT", { nat: { ...NAT, mapping: "none" } }, "nat", "ok", /^none/],
  ["one address for all", {}, "nat", "ok", /endpoint-independent\): 203.0.113.7:40000 towards 198.51.100.1:3478/],
  [
    "symmetric",
    {
      nat: {
        ...NAT,
        mapping: "endpoint-dependent",
        observations: [...NAT.observations, observation("198.51.100.9:5", "203.0.113.7:40001")],
      },
    },
    "nat",
    "note",
    /"symmetric"\): 203.0.113.7:40000 towards .*, 203.0.113.7:40001 towards 198.51.100.9:5; peers with a strict NAT/,
  ],
  ["mapping unknown", { nat: { ...NAT, mapping: "unknown" } }, "nat", "note", /is unknown, because only one place/],
  ["no address", { nat: { ...NAT, addresses: [] } }, "addresses", "problem", /no address/],
  ["addresses", {}, "addresses", "ok", /192.168.1.2; no IPv6 beyond/],
  ["clock ahead", { clock: { aheadMs: 600_000, uncertaintyMs: 500 } }, "clock", "problem", /^10 min ahead of/],
  ["clock behind", { clock: { aheadMs: -20_000, uncertaintyMs: 500 } }, "clock", "note", /^20 s behind/],
  ["clock within what can be known", { clock: { aheadMs: 5400, uncertaintyMs: 510 } }, "clock", "ok", /agrees/],
  ["clock never set", { wall: 0 }, "clock", "problem", /1970-01-01.*never set/],
  ["no server time", { clock: undefined }, "clock", "ok", /not compared/],
  ["no device", status({ device: undefined }), "device", "problem", /there is none/],
  [
    "an old kernel",
    status({ device: { kind: "embedded", features: ["tun-tso", "udp-gso", "udp-gro", "ipv6"] } }),
    "device",
    "note",
    /without tun-uso \(kernel 6.1.0\)/,
  ],
  [
    "no kernel for auto",
    { autoDevice: true },
    "device",
    "note",
    /^--device auto found no .* \(6.1.0\) that can be used/,
  ],
  [
    "the kernel's device for auto",
    { autoDevice: true, ...status({ device: { kind: "kernel", features: ["linux 6.1.0", "loopback-sockets"] } }) },
    "device",
    "ok",
    /^kernel, UDP port/,
  ],
  ["GSO refused", status({ counters: new Map([["gso-disabled", 1]]) }), "device", "note", /switched off/],
  [
    "the data worker died",
    status({ counters: new Map([["worker-restarts", 2]]) }),
    "device",
    "note",
    /data worker died 2 times .* another took over/,
  ],
  [
    "wireguard-go died",
    status({
      device: { kind: "wireguard-go", features: ["wireguard-go 0.0.1", "loopback-sockets"] },
      counters: new Map([["worker-restarts", 1]]),
    }),
    "device",
    "note",
    /^wireguard-go died once/,
  ],
  ["interface gone", { addresses: [HEALTHY.addresses[0]!] }, "interface", "problem", /perch0 is gone or down/],
  [
    "address taken away",
    status({ address: parsePrefix("100.64.0.9/16") }),
    "interface",
    "problem",
    /lacks 100.64.0.9\/16/,
  ],
  ["no IPv6 on the machine", status({ address6: parsePrefix("fd00::1/64") }), "interface", "note", /lacks fd00::1\/64/],
  [
    "a route is missing",
    { wantedRoutes: [...HEALTHY.wantedRoutes, parsePrefix("10.1.0.0/16")] },
    "routes",
    "problem",
    /not in place: 10.1.0.0\/16/,
  ],
  [
    "a routed network is here as well",
    {
      wantedRoutes: [parsePrefix("192.168.1.0/24")],
      machineRoutes: [...HEALTHY.machineRoutes, remote("192.168.1.0/24", "perch0")],
    },
    "routes",
    "note",
    /192.168.1.0\/24 is a network of eth0 as well/,
  ],
  [
    "a local network inside the overlay",
    { machineRoutes: [...HEALTHY.machineRoutes, remote("100.64.7.0/24", "eth1")] },
    "overlap",
    "problem",
    /100.64.7.0\/24 of eth1 lies in the overlay's 100.64.0.0\/16/,
  ],
  [
    "the overlay inside a local network",
    { machineRoutes: [...HEALTHY.machineRoutes, remote("100.64.0.0/10", "wwan0")] },
    "overlap",
    "note",
    /overlay's 100.64.0.0\/16 lies in 100.64.0.0\/10 of wwan0/,
  ],
  ["lazy on", {}, "lazy", "ok", /on, decided by the network: peers sleep after 15 min/],
  [
    "lazy off",
    status({ lazy: { ...STATUS.lazy, enabled: false, source: "flag" } }),
    "lazy",
    "ok",
    /off, decided by the flag/,
  ],
  [
    "peers whose wakes failed",
    status({
      peers: makePeers(8).map((peer, index) =>
        index < 7 ? { ...peer, lazy: { lazy: false, why: "its last 2 wakes failed", kept: true } } : peer,
      ),
    }),
    "lazy",
    "note",
    /^waking failed twice in a row, .*: peer-\S+(, \S+){4} and 2 more$/,
  ],
  ["access rules in force", {}, "firewall", "ok", /^the network's access rules are enforced, 2 rules$/],
  ["a network without access rules", status({ firewall: { kind: "open" } }), "firewall", "note", /no access rules/],
];

for (const [title, change, area, level, text] of TABLE) {
  test(`${title}: ${area} ${level}`, () => {
    const findings = examineAgent({ ...HEALTHY, ...change });
    const found = findings.find((finding) => finding.area === area && text.test(finding.text));
    assert.ok(found, JSON.stringify(findings.filter((finding) => finding.area === area)));
    assert.equal(found.level, level);
    if (level === "problem") assert.notEqual(found.remedy, "");
    const order = findings.map((finding) => AREAS.indexOf(finding.area));
    assert.deepEqual(
      order,
      [...order].sort((a, b) => a - b),
    );
  });
}

test("an agent that is down is asked nothing that only a running one knows", () => {
  const down = {
    ...HEALTHY,
    ...status({ state: "down", management: { url: "", connected: false, since: 0 } }),
    nat: undefined,
    clock: undefined,
  };
  assert.deepEqual(
    examineAgent(down).map(({ area }) => area),
    ["agent", "rights"],
  );
});

test("an overlay that is here twice has another remedy than two networks that overlap by chance", () => {
  const remedies = ["100.64.0.0/16", "100.64.7.0/24"].map((prefix) => {
    const machineRoutes = [...HEALTHY.machineRoutes, remote(prefix, "perch1")];
    return examineAgent({ ...HEALTHY, machineRoutes }).find(({ area }) => area === "overlap")?.remedy;
  });
  assert.match(remedies[0]!, /namespace each/);
  assert.equal(remedies[1], "renumber one of the two networks");
});
