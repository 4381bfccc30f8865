import assert from "node:assert/strict";
import { test } from "node:test";
import { create } from "@bufbuild/protobuf";
import { parseIp } from "#base/ip.ts";
import { PrivateKey } from "#base/keys.ts";
import { createRelayToken } from "#base/relay-token.ts";
import { HostConfig_Protocol, NetbirdConfigSchema, NetworkMapSchema } from "#gen/management_pb.ts";
import { DNS_LABEL_MAX, dnsLabelOf, isDnsLabel, suffixedDnsLabel } from "./dns-label.ts";
import { parseIceUri, readInfrastructure } from "./infrastructure.ts";
import { readNetworkMap } from "./network-map.ts";
import { parseSetupKey, SetupKeyError } from "./setup-key.ts";
import { isVersionAtLeast, supportsLazyConnections } from "./version.ts";

const LABELS: readonly (readonly [hostname: string, label: string])[] = [
  ["perch-1", "perch-1"],
  ["Web.example.com", "web"],
  ["My Laptop (2)", "my-laptop-2-"],
  ["under_score__x", "under-score-x"],
  ["bücher", "xn--bcher-kva"],
  ["東京", "xn--1lqs71d"],
  ["my bücher", "xn--my-bcher-85a"],
  ["", "peer"],
  [".local", "peer"],
  ["---", "peer"],
  ["x".repeat(80), "x".repeat(DNS_LABEL_MAX)],
  ["a\u0000b\r\nc", "a-b-c"],
];

for (const [hostname, label] of LABELS) {
  test(`the host name ${JSON.stringify(hostname.slice(0, 20))} becomes the label ${label.slice(0, 20)}`, () => {
    const made = dnsLabelOf(hostname);
    if (label.startsWith("xn--my")) assert.match(made, /^xn--my-bcher-/);
    else assert.equal(made, label);
    assert.match(made, /^[a-z0-9-]{1,59}$/);
  });
}

test("a taken label gets the last two octets and never outgrows DNS", () => {
  assert.equal(suffixedDnsLabel("web", parseIp("100.77.3.9")), "web-3-9");
  const longest = suffixedDnsLabel("x".repeat(DNS_LABEL_MAX), parseIp("100.77.255.254"));
  assert.equal(longest.length, 63);
  assert.ok(longest.endsWith("-255-254"));
});

test("an extra label must be usable as it stands", () => {
  for (const good of ["a", "web-1", "xn--bcher-kva", "x".repeat(63)]) assert.ok(isDnsLabel(good), good);
  for (const bad of ["", "-a", "a-", "A", "a.b", "a_b", "x".repeat(64), "bücher"]) assert.ok(!isDnsLabel(bad), bad);
});

test("versions are compared by numbers, suffixes and a leading v aside", () => {
  for (const version of ["0.45.0", "v0.45.0", "0.45.0-rc1", "0.100", "1.0.0", "development", "ci-17", "dev-x"])
    assert.ok(supportsLazyConnections(version), version);
  for (const version of ["0.44.9", "0.9.0", "", "perch", "45"]) assert.ok(!supportsLazyConnections(version), version);
  assert.ok(isVersionAtLeast("0.29.3", "0.29.3"));
  assert.ok(!isVersionAtLeast("0.29.2", "0.29.3"));
});

test("a setup key is a UUID, read in any case and never repeated in an error", () => {
  assert.equal(parseSetupKey(" A2C8E62B-38F5-4553-B31E-DD66C696CEBB\n"), "a2c8e62b-38f5-4553-b31e-dd66c696cebb");
  for (const bad of ["", "secret-that-is-no-uuid", "A2C8E62B38F54553B31EDD66C696CEBB"]) {
    assert.throws(
      () => parseSetupKey(bad),
      (error) => error instanceof SetupKeyError && (bad === "" || !error.message.includes(bad)),
    );
  }
});

test("STUN and TURN URIs get their default port and transport", () => {
  const all = ["stun", "stuns", "turn", "turns"] as const;
  assert.deepEqual(parseIceUri("stun:stun.example:3479", all), {
    scheme: "stun",
    host: "stun.example",
    port: 3479,
    transport: "udp",
  });
  assert.deepEqual(parseIceUri("turns:[2001:db8::1]", all), {
    scheme: "turns",
    host: "2001:db8::1",
    port: 5349,
    transport: "tcp",
  });
  assert.equal(parseIceUri("turn:t.example?transport=tcp", all).transport, "tcp");
  for (const bad of [
    "",
    "stun://host:1",
    "stun:host:0",
    "stun:host:65536",
    "stun:host?transport=udp",
    "turn:host?transport=sctp",
    "stun:2001:db8::1",
    "http:host",
  ])
    assert.throws(() => parseIceUri(bad, all), RangeError, bad);
  assert.throws(() => parseIceUri("turn:host", ["stun"]), RangeError);
});

test("a bad STUN URI or relay signature is left out and named, the rest stands", () => {
  const token = createRelayToken("secret", 1_893_456_000);
  const config = create(NetbirdConfigSchema, {
    signal: { uri: "signal.example:443", protocol: HostConfig_Protocol.HTTPS },
    stuns: [{ uri: "stun:ok.example:3478" }, { uri: "stun://bad" }],
    relay: { urls: ["rels://r.example:443"], tokenPayload: token.payload, tokenSignature: token.signatureBase64 },
  });
  const read = readInfrastructure(config);
  assert.deepEqual(read.signal, { authority: "signal.example:443", tls: true });
  assert.deepEqual(
    read.stuns.map((stun) => stun.host),
    ["ok.example"],
  );
  assert.deepEqual(read.relay, { urls: ["rels://r.example:443"], token });
  assert.equal(read.problems.length, 1);
  config.relay!.tokenSignature = "AAAA";
  assert.equal(readInfrastructure(config).relay, undefined);
  assert.equal(readInfrastructure(create(NetbirdConfigSchema)).relay, undefined);
});

test("one malformed peer of a map is left out and named, the others stand, the own key is skipped", () => {
  const own = PrivateKey.generate().publicKey;
  const other = PrivateKey.generate().publicKey;
  const map = create(NetworkMapSchema, {
    Serial: 7n,
    peerConfig: { address: "100.77.0.5/16", fqdn: "a.perch.internal", LazyConnectionEnabled: true },
    remotePeers: [
      { wgPubKey: own, allowedIps: ["100.77.0.5/32"] },
      { wgPubKey: other, allowedIps: ["100.77.0.6/32", "fd00::6/128"], fqdn: "b", agentVersion: "0.44.0" },
      { wgPubKey: other, allowedIps: ["100.77.0.7/32"] },
      { wgPubKey: "nonsense", allowedIps: ["100.77.0.8/32"], fqdn: "c" },
      { wgPubKey: PrivateKey.generate().publicKey, allowedIps: ["100.77.0.999/32"], fqdn: "d" },
      { wgPubKey: PrivateKey.generate().publicKey, allowedIps: [], fqdn: "e" },
    ],
    firewallRulesIsEmpty: true,
  });
  const view = readNetworkMap(map, own);
  assert.deepEqual(
    view.remotePeers.map((peer) => peer.key),
    [other],
  );
  assert.equal(view.remotePeers[0]!.supportsLazy, false);
  assert.deepEqual(view.remotePeers[0]!.allowedIps, [
    { address: "100.77.0.6", bits: 32 },
    { address: "fd00::6", bits: 128 },
  ]);
  assert.equal(view.problems.length, 3);
  assert.deepEqual(view.self?.address, { address: "100.77.0.5", bits: 16 });
  assert.equal(view.allowsAllInbound, false);
  map.firewallRulesIsEmpty = false;
  assert.equal(readNetworkMap(map, own).allowsAllInbound, true);
  map.remotePeersIsEmpty = true;
  assert.deepEqual(readNetworkMap(map, own).remotePeers, []);
});
