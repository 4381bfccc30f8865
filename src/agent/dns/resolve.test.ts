import assert from "node:assert/strict";
import { beforeEach, describe, test } from "node:test";
import { type IpAddress, parseEndpoint, parseIp, parsePrefix } from "#base/ip.ts";
import { PrivateKey, type PublicKey } from "#base/keys.ts";
import type { DnsConfig, DnsRecord } from "./dns-config.ts";
import { type DomainName, reverseName } from "./domain-name.ts";
import { NameTable } from "./name-table.ts";
import { createAuthorities, type Resolution, resolve } from "./resolve.ts";

const name = (text: string): DomainName => text as DomainName;
const keys = Array.from({ length: 4 }, () => PrivateKey.generate().publicKey) as [
  PublicKey,
  PublicKey,
  PublicKey,
  PublicKey,
];
const [own, bob, eve, dan] = keys;
const peer = (key: PublicKey, fqdn: string, ...addresses: string[]) => ({
  key,
  fqdn,
  addresses: addresses.map(parseIp),
});
const a = (text: string, data: string): DnsRecord => ({ name: name(text), type: "A", data, ttl: 60 });
const alias = (text: string, data: string): DnsRecord => ({ name: name(text), type: "CNAME", data, ttl: 60 });
const overlay = [parsePrefix("100.64.0.0/16"), parsePrefix("fd00:1::/64")];
const corp = [parseEndpoint("10.0.0.53:53")];
const sub = [parseEndpoint("10.0.0.54:53")];
const all = [parseEndpoint("9.9.9.9:53")];
const home = [parseEndpoint("192.168.1.1:53")];

describe("a question about a name", () => {
  let table: NameTable;
  let config: Pick<DnsConfig, "zones" | "groups">;

  beforeEach(() => {
    table = new NameTable();
    table.putPeer(peer(own, "me.perch.internal", "100.64.0.1", "fd00:1::1"));
    table.putPeer(peer(bob, "bob.perch.internal", "100.64.0.2", "fd00:1::2"));
    table.putPeer(peer(eve, "eve.perch.internal", "100.64.0.3"));
    config = {
      zones: [{ apex: name("perch.internal"), records: [], search: true, authoritative: true }],
      groups: [{ servers: corp, primary: false, domains: [name("corp.example")], search: false }],
    };
  });

  const ask = (text: string, type = "A"): Resolution => {
    const authorities = createAuthorities(config, name("perch.internal"), overlay);
    return resolve(table, authorities, { name: name(text), type }, name("me.perch.internal"), home);
  };
  const answersOf = (resolution: Resolution): string[] => {
    assert.equal(resolution.kind, "answer");
    return resolution.kind === "answer" ? resolution.answers.map(({ type, data }) => `${type} ${data}`) : [];
  };
  const outcome = (resolution: Resolution): string => {
    if (resolution.kind !== "answer") return resolution.kind;
    const isNo = resolution.answers.length === 0 && resolution.rcode === "NOERROR";
    return `${isNo ? "NODATA" : resolution.rcode}${resolution.soa ? ` ${resolution.soa.apex}` : ""}`;
  };

  test("a peer has its addresses, by family, and is named so that it can be woken", () => {
    const v4 = ask("bob.perch.internal");
    assert.deepEqual(answersOf(v4), ["A 100.64.0.2"]);
    assert.deepEqual(v4.kind === "answer" && v4.named.map(({ key }) => key), [bob]);
    assert.deepEqual(answersOf(ask("bob.perch.internal", "AAAA")), ["AAAA fd00:1::2"]);
    assert.deepEqual(answersOf(ask("bob.perch.internal", "ANY")), ["A 100.64.0.2", "AAAA fd00:1::2"]);
    assert.deepEqual(answersOf(ask("me.perch.internal")), ["A 100.64.0.1"]);
  });

  test("what exists without the type is no data, what does not exist is not there, both with the zone's SOA", () => {
    assert.equal(outcome(ask("eve.perch.internal", "AAAA")), "NODATA perch.internal");
    assert.equal(outcome(ask("bob.perch.internal", "UNKNOWN_65")), "NODATA perch.internal");
    assert.equal(outcome(ask("nobody.perch.internal")), "NXDOMAIN perch.internal");
    assert.equal(outcome(ask("x.bob.perch.internal")), "NXDOMAIN perch.internal");
    assert.equal(outcome(ask("perch.internal")), "NODATA perch.internal");
    table.setRecords("zones", [a("www.apps.perch.internal", "100.64.0.9")]);
    assert.equal(outcome(ask("apps.perch.internal")), "NODATA perch.internal", "it has names below");
    table.setRecords("zones", []);
    assert.equal(outcome(ask("apps.perch.internal")), "NXDOMAIN perch.internal");
  });

  test("the apex has SOA and NS", () => {
    const soa = ask("perch.internal", "SOA");
    assert.deepEqual(soa.kind === "answer" && soa.soa, { apex: "perch.internal", asked: true });
    assert.deepEqual(answersOf(ask("perch.internal", "NS")), ["NS me.perch.internal"]);
    assert.equal(ask("perch.internal", "AXFR").kind, "refuse");
  });

  test("an address has the name of its peer and wakes nobody", () => {
    for (const address of ["100.64.0.2", "fd00:1::2"]) {
      const found = ask(reverseName(parseIp(address)), "PTR");
      assert.deepEqual(answersOf(found), ["PTR bob.perch.internal"]);
      assert.deepEqual(found.kind === "answer" && found.named, []);
    }
    assert.equal(outcome(ask("9.0.64.100.in-addr.arpa", "PTR")), "NXDOMAIN 64.100.in-addr.arpa");
    assert.equal(outcome(ask("2.0.64.100.in-addr.arpa", "A")), "NODATA 64.100.in-addr.arpa");
    assert.equal(outcome(ask("0.64.100.in-addr.arpa", "PTR")), "NODATA 64.100.in-addr.arpa");
    assert.equal(outcome(ask("1.0.65.100.in-addr.arpa", "PTR")), "forward");
  });

  test("peers come, change and go", () => {
    table.putPeer(peer(dan, "dan.perch.internal", "100.64.0.4"));
    table.putPeer(peer(bob, "robert.perch.internal", "100.64.0.20"));
    table.removePeer(eve);
    assert.deepEqual(answersOf(ask("dan.perch.internal")), ["A 100.64.0.4"]);
    assert.equal(outcome(ask("bob.perch.internal")), "NXDOMAIN perch.internal");
    assert.deepEqual(answersOf(ask("robert.perch.internal")), ["A 100.64.0.20"]);
    assert.equal(outcome(ask("2.0.64.100.in-addr.arpa", "PTR")), "NXDOMAIN 64.100.in-addr.arpa");
    assert.equal(outcome(ask("eve.perch.internal")), "NXDOMAIN perch.internal");
    assert.equal(table.peers, 3);
    for (const key of keys) table.removePeer(key);
    assert.equal(table.hasBelow(name("perch.internal")), false);
  });

  test("a second peer of the same name does not take the first one's, nor away with it", () => {
    table.putPeer(peer(dan, "bob.perch.internal", "100.64.0.2"));
    assert.equal(table.peerAt("100.64.0.2" as IpAddress)?.key, bob);
    table.removePeer(dan);
    assert.deepEqual(answersOf(ask("bob.perch.internal")), ["A 100.64.0.2"]);
  });

  test("other names of a peer come from the network's records, and lead to the peer", () => {
    table.setRecords(bob, [a("db.perch.internal", "100.64.0.2"), a("bob.perch.internal", "100.64.0.2")]);
    const found = ask("db.perch.internal");
    assert.deepEqual(found.kind === "answer" && found.named.map(({ key }) => key), [bob]);
    assert.deepEqual(answersOf(ask("bob.perch.internal")), ["A 100.64.0.2"], "not twice");
    table.removePeer(bob);
    assert.equal(outcome(ask("db.perch.internal")), "NXDOMAIN perch.internal");
  });

  test("an alias is followed inside, stops after a while, and leads out with who is to be asked", () => {
    table.setRecords("zones", [
      alias("www.perch.internal", "web.perch.internal"),
      alias("web.perch.internal", "bob.perch.internal"),
      alias("loop.perch.internal", "loop.perch.internal"),
      alias("out.perch.internal", "www.corp.example"),
      alias("far.perch.internal", "example.org"),
      alias("gone.perch.internal", "nobody.perch.internal"),
    ]);
    const found = ask("www.perch.internal");
    assert.deepEqual(answersOf(found), ["CNAME web.perch.internal", "CNAME bob.perch.internal", "A 100.64.0.2"]);
    assert.deepEqual(found.kind === "answer" && found.named.map(({ key }) => key), [bob]);
    assert.deepEqual(answersOf(ask("www.perch.internal", "CNAME")), ["CNAME web.perch.internal"]);
    assert.equal(answersOf(ask("loop.perch.internal")).length, 8);
    const rest = (text: string) => {
      const { kind, ...found } = ask(text);
      return kind === "answer" && "rest" in found ? found.rest : undefined;
    };
    assert.deepEqual(rest("out.perch.internal"), { name: "www.corp.example", servers: corp });
    assert.deepEqual(rest("far.perch.internal"), { name: "example.org", servers: home });
    assert.equal(outcome(ask("gone.perch.internal")), "NXDOMAIN perch.internal");
  });

  test("domains of a name server group go to its servers, the longest domain wins", () => {
    const servers = (text: string) => {
      const found = ask(text);
      return found.kind === "forward" ? found.servers : found.kind;
    };
    config = {
      ...config,
      groups: [
        ...config.groups,
        {
          servers: sub,
          primary: false,
          domains: [name("lab.corp.example"), name("dev.perch.internal")],
          search: false,
        },
      ],
    };
    assert.equal(servers("corp.example"), corp);
    assert.equal(servers("a.b.corp.example"), corp);
    assert.equal(servers("x.lab.corp.example"), sub);
    assert.equal(servers("x.dev.perch.internal"), sub);
    assert.equal(servers("notcorp.example"), home);
    assert.equal(servers("bob.perch.internal"), "answer");
    config = { ...config, groups: [...config.groups, { servers: all, primary: true, domains: [], search: false }] };
    assert.deepEqual(servers("example.org"), all);
    assert.equal(servers("corp.example"), corp);
  });

  test("with nobody to ask a question is refused", () => {
    const authorities = createAuthorities(config, name("perch.internal"), overlay);
    const found = resolve(table, authorities, { name: name("example.org"), type: "A" }, name("me"), []);
    assert.equal(found.kind, "refuse");
  });

  test("what a zone that is not authoritative lacks is asked for elsewhere", () => {
    const zone = { apex: name("user.example"), records: [], search: false, authoritative: false };
    config = { ...config, zones: [...config.zones, zone] };
    table.setRecords("zones", [a("db.user.example", "10.9.9.9")]);
    assert.deepEqual(answersOf(ask("db.user.example")), ["A 10.9.9.9"]);
    assert.equal(outcome(ask("db.user.example", "AAAA")), "NODATA user.example");
    assert.equal(ask("www.user.example").kind, "forward");
  });
});

test("a question costs the same with 20,000 peers as with none, and a change what it changes", () => {
  const table = new NameTable();
  let reads = 0;
  for (let i = 0; i < 20_000; i++) {
    const address = parseIp(`100.64.${i >> 8}.${i & 255}`);
    const key = `key-${i}` as PublicKey;
    table.putPeer({
      key,
      fqdn: `p${i}.perch.internal`,
      get addresses() {
        reads++;
        return [address];
      },
    });
  }
  reads = 0;
  const authorities = createAuthorities({ zones: [], groups: [] }, name("perch.internal"), overlay);
  const found = resolve(table, authorities, { name: name("p777.perch.internal"), type: "A" }, name("me"), []);
  assert.equal(found.kind === "answer" && found.answers.length, 1);
  table.removePeer("key-778" as PublicKey);
  assert.ok(reads <= 4, `${reads} peers were looked at`);
});
