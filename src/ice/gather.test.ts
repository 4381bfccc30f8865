import assert from "node:assert/strict";
import type { NetworkInterfaceInfo } from "node:os";
import { test } from "node:test";
import { parseEndpoint, parsePrefix } from "#base/ip.ts";
import { formatCandidate, parseCandidate } from "./candidate.ts";
import { createIceCredentials, gatherHostCandidates, serverReflexiveCandidate } from "./gather.ts";

function entry(address: string, internal = false): NetworkInterfaceInfo {
  const common = { address, netmask: "", mac: "", internal, cidr: null };
  return address.includes(":") ? { ...common, family: "IPv6", scopeid: 0 } : { ...common, family: "IPv4" };
}

const interfaces = {
  lo: [entry("127.0.0.1", true), entry("::1", true)],
  eth0: [entry("192.168.1.10"), entry("fe80::1%eth0"), entry("2001:db8::10"), entry("192.168.1.10")],
  eth1: [entry("169.254.3.4"), entry("fec0::1"), entry("::10.0.0.1"), entry("100.90.0.5")],
  veth12: [entry("10.9.0.1")],
  docker0: [entry("172.17.0.1")],
  wt0: [entry("100.64.0.1")],
  perch0: [entry("100.64.0.9")],
};

const texts = (options: Partial<Parameters<typeof gatherHostCandidates>[0]>): string[] =>
  gatherHostCandidates({ port: 51820, ufrag: "u", interfaces, ...options }).map(({ endpoint }) => endpoint.address);

test("every usable address is offered once; loopback, link-local and retired kinds are not", () => {
  assert.deepEqual(texts({ ownInterfaces: ["perch0"] }), ["192.168.1.10", "2001:db8::10", "100.90.0.5"]);
});

test("addresses of the overlay are not offered, whatever interface has them", () => {
  const overlay = [parsePrefix("100.64.0.0/16"), parsePrefix("100.90.0.0/16")];
  assert.deepEqual(texts({ overlay }), ["192.168.1.10", "2001:db8::10"]);
});

test("the list of skipped interfaces can be replaced", () => {
  assert.deepEqual(texts({ blacklist: ["eth", "perch", "wt"] }), ["10.9.0.1", "172.17.0.1"]);
  assert.ok(!texts({ blacklist: [] }).includes("127.0.0.1"));
});

test("families can be left out", () => {
  assert.deepEqual(texts({ families: [6] }), ["2001:db8::10"]);
});

test("candidates read back as stock agents write them, with ids that are all different", () => {
  const hosts = gatherHostCandidates({ port: 51820, ufrag: "abcdefghijklmnop", interfaces });
  for (const host of hosts) assert.deepEqual(parseCandidate(formatCandidate(host)), host);
  assert.equal(hosts[0]?.foundation, "2631669666");
  assert.equal(hosts[0]?.priority, 2130706431);
  assert.equal(new Set(hosts.map(({ cid }) => cid)).size, hosts.length);
  assert.ok(hosts.every(({ cid }) => /^[A-Za-z0-9+/]{32}$/.test(cid!)));
});

test("a mapped address becomes a candidate related to the family's first host, unless it is a host's own", () => {
  const hosts = gatherHostCandidates({ port: 51820, ufrag: "u", interfaces });
  const candidate = serverReflexiveCandidate(parseEndpoint("203.0.113.7:40112"), hosts, "u");
  assert.equal(candidate?.foundation, "3891555988");
  assert.equal(candidate?.priority, 1694498815);
  assert.deepEqual(candidate?.related, parseEndpoint("192.168.1.10:51820"));
  assert.equal(serverReflexiveCandidate(parseEndpoint("192.168.1.10:51820"), hosts, "u"), undefined);
  assert.deepEqual(
    serverReflexiveCandidate(parseEndpoint("[2001:db8::99]:5"), hosts, "u")?.related?.address,
    "2001:db8::10",
  );
});

test("credentials are 16 and 32 letters", () => {
  const { ufrag, pwd } = createIceCredentials();
  assert.match(ufrag, /^[A-Za-z]{16}$/);
  assert.match(pwd, /^[A-Za-z]{32}$/);
  assert.notEqual(createIceCredentials().pwd, pwd);
});
