import assert from "node:assert/strict";
import { test } from "node:test";
import { create, type MessageInitShape } from "@bufbuild/protobuf";
import fc from "fast-check";
import { formatPrefix, parsePrefix } from "#base/ip.ts";
import { FirewallRuleSchema, RuleAction, RuleDirection, RuleProtocol } from "#gen/management_pb.ts";
import { encodeCompactPrefix } from "#management/protocol/compact-prefix.ts";
import { checkRules, FILTER_RULES_PER_SOURCE } from "#wireguard/filter.ts";
import { convertRules } from "./access-rules.ts";

type Init = MessageInitShape<typeof FirewallRuleSchema>;

const PEER = "100.64.0.2";
const tcp = (more: Init = {}): Init => ({ PeerIP: PEER, Protocol: RuleProtocol.TCP, ...more });
const range = (start: number, end: number): NonNullable<Init["PortInfo"]> => ({
  portSelection: { case: "range", value: { start, end } },
});

/** The rules as text, and what was said about them. */
function converted(...rules: Init[]): { rules: string[]; problems: string[] } {
  const problems: string[] = [];
  const bySource = convertRules(
    rules.map((rule) => create(FirewallRuleSchema, rule)),
    problems,
  );
  const texts = [...bySource.values()].flatMap(({ source, rules: own }) =>
    own.map(
      ({ verdict, protocol, ports }) =>
        `${verdict} ${protocol}${ports ? ` ${ports.first}-${ports.last}` : ""} from ${formatPrefix(source)}`,
    ),
  );
  return { rules: texts, problems };
}

for (const [name, rule, expected] of [
  ["a single port as text", tcp({ Port: "22" }), [`accept tcp 22-22 from ${PEER}/32`]],
  ["a range of zeros is every port", tcp({ PortInfo: range(0, 0) }), [`accept tcp from ${PEER}/32`]],
  [
    "a range of zeros leaves the text its say",
    tcp({ PortInfo: range(0, 0), Port: "22" }),
    [`accept tcp 22-22 from ${PEER}/32`],
  ],
  ["a range wins over the text", tcp({ PortInfo: range(80, 90), Port: "22" }), [`accept tcp 80-90 from ${PEER}/32`]],
  [
    "a port of PortInfo wins over the text",
    tcp({ PortInfo: { portSelection: { case: "port", value: 443 } }, Port: "22" }),
    [`accept tcp 443-443 from ${PEER}/32`],
  ],
  ["no port at all is every port", tcp(), [`accept tcp from ${PEER}/32`]],
  [
    "a prefix wins over the address, and only the first counts",
    tcp({ sourcePrefixes: ["10.1.2.3/16", "10.9.0.0/16"].map((text) => encodeCompactPrefix(parsePrefix(text))) }),
    ["accept tcp from 10.1.0.0/16"],
  ],
  ["0.0.0.0 is anybody", tcp({ PeerIP: "0.0.0.0" }), ["accept tcp from 0.0.0.0/0"]],
  [":: is anybody with IPv6", tcp({ PeerIP: "::" }), ["accept tcp from ::/0"]],
  ["an IPv6 peer", tcp({ PeerIP: "fd00::2" }), ["accept tcp from fd00::2/128"]],
  ["ICMP has no ports", { PeerIP: PEER, Protocol: RuleProtocol.ICMP, Port: "22" }, [`accept icmp from ${PEER}/32`]],
  [
    "a rule to drop",
    { PeerIP: PEER, Protocol: RuleProtocol.ALL, Action: RuleAction.DROP },
    [`drop all from ${PEER}/32`],
  ],
  ["the other direction is not held back", tcp({ Direction: RuleDirection.OUT }), []],
] as const satisfies readonly (readonly [string, Init, readonly string[]])[]) {
  test(`a rule of the network is read: ${name}`, () => {
    assert.deepEqual(converted(rule), { rules: expected, problems: [] });
  });
}

test("a rule that accepts and cannot be read is left out and named", () => {
  for (const bad of [
    { Protocol: RuleProtocol.UNKNOWN },
    { Protocol: RuleProtocol.NETBIRD_SSH },
    { Protocol: RuleProtocol.CUSTOM, customProtocol: 47 },
    { Port: "ssh" },
    { Port: "70000" },
    { PortInfo: range(9, 8) },
    { PeerIP: "somebody" },
    { PeerIP: "" },
    { sourcePrefixes: [Uint8Array.of(1, 2, 3)] },
    { sourcePrefixes: [Uint8Array.of(10, 0, 0, 0, 33)] },
  ] satisfies Init[]) {
    const { rules, problems } = converted(tcp(bad), tcp({ Port: "22" }));
    assert.deepEqual(rules, [`accept tcp 22-22 from ${PEER}/32`]);
    assert.equal(problems.length, 1);
    assert.match(problems[0]!, /left out/);
  }
});

test("a rule that drops and cannot be read drops all that it could have meant", () => {
  const drop = { Action: RuleAction.DROP };
  assert.deepEqual(converted(tcp({ ...drop, Protocol: RuleProtocol.UNKNOWN })).rules, [`drop all from ${PEER}/32`]);
  assert.deepEqual(converted(tcp({ ...drop, Port: "ssh" })).rules, [`drop all from ${PEER}/32`]);
  assert.deepEqual(converted(tcp({ ...drop, PeerIP: "somebody" })).rules, [
    "drop all from 0.0.0.0/0",
    "drop all from ::/0",
  ]);
  assert.deepEqual(converted(tcp({ Action: 7 as RuleAction })).rules, [`drop tcp from ${PEER}/32`], "neither of both");
});

test("equal rules count once, and a source with too many keeps those that drop", () => {
  assert.deepEqual(converted(tcp({ Port: "22" }), tcp({ Port: "22" })).rules, [`accept tcp 22-22 from ${PEER}/32`]);
  const many = Array.from({ length: 2000 }, (_, port) => tcp({ Port: String(port + 1) }));
  const { rules, problems } = converted(...many, tcp({ Port: "25", Action: RuleAction.DROP }));
  assert.equal(rules.length, FILTER_RULES_PER_SOURCE);
  assert.equal(rules[0], `drop tcp 25-25 from ${PEER}/32`);
  assert.equal(problems.length, 1);
  const drops = many.map((rule) => ({ ...rule, Action: RuleAction.DROP }));
  assert.deepEqual(converted(...drops).rules, [`drop all from ${PEER}/32`]);
});

test("whatever a server sends, the device takes what comes out", () => {
  const rule: fc.Arbitrary<Init> = fc.record({
    PeerIP: fc.oneof(fc.ipV4(), fc.ipV6(), fc.string({ maxLength: 20 })),
    Direction: fc.constantFrom(RuleDirection.IN, RuleDirection.OUT),
    Action: fc.nat(3) as fc.Arbitrary<RuleAction>,
    Protocol: fc.nat(8) as fc.Arbitrary<RuleProtocol>,
    Port: fc.oneof(fc.constant(""), fc.nat(99_999).map(String), fc.string({ maxLength: 6 })),
    PortInfo: fc.option(
      fc.tuple(fc.nat(70_000), fc.nat(70_000)).map(([first, last]) => range(first, last)),
      { nil: undefined },
    ) as fc.Arbitrary<NonNullable<Init["PortInfo"]>>,
    sourcePrefixes: fc.array(fc.uint8Array({ maxLength: 18 }), { maxLength: 2 }),
  });
  fc.assert(
    fc.property(fc.array(rule, { maxLength: 10 }), (rules) => {
      const problems: string[] = [];
      const bySource = convertRules(
        rules.map((one) => create(FirewallRuleSchema, one)),
        problems,
      );
      for (const { source, rules: own } of bySource.values()) checkRules(source, own);
    }),
  );
});
