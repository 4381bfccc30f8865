import assert from "node:assert/strict";
import { test } from "node:test";
import { create, type MessageInitShape, toBinary } from "@bufbuild/protobuf";
import { formatPrefix, parsePrefix } from "#base/ip.ts";
import { PrivateKey, PublicKey } from "#base/keys.ts";
import { silentLogger } from "#base/log.ts";
import {
  FirewallRuleSchema,
  NetworkMapSchema,
  PerchMapPartSchema,
  RuleAction,
  RuleProtocol,
} from "#gen/management_pb.ts";
import { encodeCompactPrefix } from "#management/protocol/compact-prefix.ts";
import type { WireGuardDevice } from "#wireguard/device.ts";
import { OpenSources, type RuleForm } from "#wireguard/external/open-sources.ts";
import { type FilterRules, groupBySource, type SourceRule } from "#wireguard/filter.ts";
import { Firewall } from "./firewall.ts";

type RuleInit = MessageInitShape<typeof FirewallRuleSchema>;

const OWN = { address: parsePrefix("100.64.0.1/16"), address6: parsePrefix("fd00::1/64") };

/** What the device would enforce, and what it was told. */
class RecordingDevice implements Pick<WireGuardDevice, "setFilter" | "setFilterSource"> {
  isOn = false;
  calls = 0;
  readonly bySource = new Map<string, readonly SourceRule[]>();

  setFilter(rules: FilterRules | undefined): void {
    this.calls++;
    this.isOn = rules !== undefined;
    this.bySource.clear();
    assert.notEqual(rules?.otherwise, "accept");
    for (const [text, group] of groupBySource(rules?.inbound ?? [])) this.bySource.set(text, group.rules);
  }

  setFilterSource(source: ReturnType<typeof parsePrefix>, rules: readonly SourceRule[]): void {
    this.calls++;
    if (rules.length > 0) this.bySource.set(formatPrefix(source), rules);
    else this.bySource.delete(formatPrefix(source));
  }

  /** Texts of what is enforced, sorted. */
  get rules(): string[] {
    return [...this.bySource]
      .flatMap(([source, rules]) =>
        rules.map(
          ({ verdict, protocol, ports, destination }) =>
            `${verdict} ${protocol} ${ports?.first ?? "all"} ${source} > ${destination ? formatPrefix(destination) : "any"}`,
        ),
      )
      .sort();
  }

  /** How many calls the work took. */
  during(work: () => void): number {
    const before = this.calls;
    work();
    return this.calls - before;
  }
}

function setup() {
  const device = new RecordingDevice();
  return { device, firewall: new Firewall({ device, log: silentLogger }, OWN) };
}

const accept = (PeerIP: string, Port = ""): RuleInit => ({ PeerIP, Port, Protocol: RuleProtocol.TCP });
const map = (rules: readonly RuleInit[], firewallRulesIsEmpty = rules.length === 0) =>
  create(NetworkMapSchema, {
    FirewallRules: rules.map((rule) => create(FirewallRuleSchema, rule)),
    firewallRulesIsEmpty,
  });

const KEYS = Array.from({ length: 3 }, () => PrivateKey.generate().publicKey);
const part = (
  peers: readonly (readonly [number, readonly RuleInit[]])[],
  more: MessageInitShape<typeof PerchMapPartSchema> = {},
) =>
  create(PerchMapPartSchema, {
    peers: peers.map(([index, rules]) => ({
      peer: { wgPubKey: KEYS[index]! },
      rules: rules.map((rule) => toBinary(FirewallRuleSchema, create(FirewallRuleSchema, rule))),
    })),
    ...more,
  });

test("nothing comes in before the first map", () => {
  const { device, firewall } = setup();
  assert.equal(device.isOn, true);
  assert.deepEqual(device.rules, []);
  assert.deepEqual(firewall.status, { kind: "rules", rules: 0 });
});

test("no rules mean nothing when the map says so, everything when it does not", () => {
  const { device, firewall } = setup();
  firewall.applyMap(map([]));
  assert.equal(device.isOn, true);
  firewall.applyMap(map([], false));
  assert.equal(device.isOn, false);
  assert.deepEqual(firewall.status, { kind: "open" });
  firewall.applyMap(map([accept("100.64.0.2", "22")]));
  assert.equal(device.isOn, true);
  assert.deepEqual(device.rules, ["accept tcp 22 100.64.0.2/32 > 100.64.0.1/32"]);
  assert.deepEqual(firewall.status, { kind: "rules", rules: 1 });
});

test("a whole map costs the device what changed", () => {
  const { device, firewall } = setup();
  const rules = Array.from({ length: 200 }, (_, i) => accept(`100.64.1.${i}`, "22"));
  firewall.applyMap(map(rules));
  assert.equal(
    device.during(() => firewall.applyMap(map(rules.toReversed()))),
    0,
  );
  assert.equal(
    device.during(() => firewall.applyMap(map([...rules.slice(1), accept("fd00::7", "22")]))),
    2,
  );
  assert.ok(device.rules.includes("accept tcp 22 fd00::7/128 > fd00::1/128"));
  assert.ok(!device.rules.some((rule) => rule.includes("100.64.1.0/32")));
  assert.deepEqual(firewall.status, { kind: "rules", rules: 200 });
});

test("a map in parts is enforced peer by peer", () => {
  const { device, firewall } = setup();
  firewall.applyPart(part([[0, [accept("100.64.0.2", "22"), accept("fd00::2", "22")]]], { reset: true, more: true }));
  assert.deepEqual(device.rules, [
    "accept tcp 22 100.64.0.2/32 > 100.64.0.1/32",
    "accept tcp 22 fd00::2/128 > fd00::1/128",
  ]);
  firewall.applyPart(part([[1, [accept("100.64.0.3")]]]));
  assert.deepEqual(firewall.status, { kind: "rules", rules: 3 });
  assert.equal(
    device.during(() => firewall.applyPart(part([[1, [accept("100.64.0.3", "80")]]]))),
    1,
  );
  assert.ok(device.rules.includes("accept tcp 80 100.64.0.3/32 > 100.64.0.1/32"));
  firewall.applyPart(part([[0, [accept("100.64.0.9", "22")]]]));
  assert.deepEqual(
    device.rules,
    ["accept tcp 22 100.64.0.9/32 > 100.64.0.1/32", "accept tcp 80 100.64.0.3/32 > 100.64.0.1/32"],
    "an address that a peer gave up opens nothing",
  );
  firewall.applyPart(part([], { removed: [PublicKey.toBytes(KEYS[0]!)] }));
  assert.deepEqual(device.rules, ["accept tcp 80 100.64.0.3/32 > 100.64.0.1/32"]);
});

test("a whole map in parts ends what is in none of them, a map with no peers ends everything", () => {
  const { device, firewall } = setup();
  firewall.applyPart(
    part(
      [
        [0, [accept("100.64.0.2")]],
        [1, [accept("100.64.0.3")]],
      ],
      { reset: true },
    ),
  );
  firewall.applyPart(part([[1, [accept("100.64.0.3")]]], { reset: true, more: true }));
  assert.equal(device.rules.length, 2, "not before the last part");
  firewall.applyPart(part([[2, []]]));
  assert.deepEqual(device.rules, ["accept tcp all 100.64.0.3/32 > 100.64.0.1/32"]);
  firewall.applyPart(part([], { reset: true }));
  assert.deepEqual(device.rules, []);
  assert.equal(device.isOn, true, "no rules of no peers is not an open network");
});

test("a peer with a rule that is not readable gets nothing", () => {
  const { device, firewall } = setup();
  const broken = part([[0, [accept("100.64.0.2")]]]);
  broken.peers[0]!.rules.push(Uint8Array.of(0x0a, 99));
  firewall.applyPart(broken);
  assert.deepEqual(device.rules, []);
});

test("maps of the two kinds replace each other", () => {
  const { device, firewall } = setup();
  firewall.applyMap(map([accept("100.64.0.2")]));
  firewall.applyPart(part([[0, [accept("100.64.0.3")]]]));
  assert.deepEqual(device.rules, ["accept tcp all 100.64.0.3/32 > 100.64.0.1/32"]);
  firewall.applyMap(map([{ ...accept("100.64.0.2"), Action: RuleAction.DROP }]));
  assert.deepEqual(device.rules, ["drop tcp all 100.64.0.2/32 > 100.64.0.1/32"]);
});

test("rules follow our own address, and a family that we have no address of stays closed", () => {
  const { device, firewall } = setup();
  firewall.applyMap(map([accept("100.64.0.2"), accept("fd00::2")]));
  firewall.setOwn({ address: parsePrefix("100.64.0.77/16"), address6: undefined });
  assert.deepEqual(device.rules, ["accept tcp all 100.64.0.2/32 > 100.64.0.77/32"]);
});

test("rules about the whole network come with the last part and stay until another last part says otherwise", () => {
  const { device, firewall } = setup();
  const forAll = (...rules: readonly RuleInit[]) => ({
    rules: rules.map((rule) => toBinary(FirewallRuleSchema, create(FirewallRuleSchema, rule))),
  });
  const network = { ...accept("100.64.0.0"), sourcePrefixes: [Uint8Array.of(100, 64, 0, 0, 16)] };
  firewall.applyPart(part([[0, [accept("100.64.0.2", "22")]]], { reset: true, more: true }));
  firewall.applyPart(part([[1, []]], forAll(network)));
  const both = ["accept tcp 22 100.64.0.2/32 > 100.64.0.1/32", "accept tcp all 100.64.0.0/16 > 100.64.0.1/32"];
  assert.deepEqual(device.rules, both);
  firewall.applyPart(part([[1, []]], { more: true }));
  assert.deepEqual(device.rules, both, "not before the last part");
  firewall.applyPart(part([], { reset: true, ...forAll(network) }));
  assert.deepEqual(device.rules, [both[1]]);
  firewall.applyPart(part([]));
  assert.deepEqual(device.rules, []);
});

test("what the default policy of a network comes to needs no connection tracking in an external device", () => {
  const all = (PeerIP: string, source?: string): RuleInit => ({
    PeerIP,
    Protocol: RuleProtocol.ALL,
    ...(source !== undefined && { sourcePrefixes: [encodeCompactPrefix(parsePrefix(source))] }),
  });
  const peers = ["100.64.0.2/32", "fd00::2/128", "100.64.0.3/32", "fd00::3/128"];
  const addresses = peers.map((text) => text.split("/")[0]!);
  for (const rules of [
    addresses.map((address) => all(address)),
    peers.map((source, index) => all(addresses[index]!, source)),
    [all("0.0.0.0"), all("::")],
    [all("100.64.0.0", "100.64.0.0/16"), all("fd00::", "fd00::/64")],
  ]) {
    const { device, firewall } = setup();
    const formOf = (): RuleForm => {
      const open = new OpenSources();
      open.movePrefixes([], peers.map(parsePrefix));
      for (const [text, own] of device.bySource) open.setRules(parsePrefix(text), own);
      return open.form;
    };
    firewall.applyMap(map(rules));
    assert.equal(formOf(), "open");
    firewall.applyMap(map(rules.slice(1)));
    assert.equal(formOf(), "tracked");
  }
});
