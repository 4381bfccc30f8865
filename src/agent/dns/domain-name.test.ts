import assert from "node:assert/strict";
import { test } from "node:test";
import fc from "fast-check";
import { ipFromBytes, parseIp, parsePrefix, prefixContains } from "#base/ip.ts";
import {
  type DomainName,
  isDomainName,
  parseReverseName,
  reverseName,
  reverseZones,
  toDomainName,
} from "./domain-name.ts";

test("names are compared without the case of ASCII letters and without the last dot", () => {
  assert.equal(toDomainName("Bob.Perch.Internal."), "bob.perch.internal");
  assert.equal(toDomainName("."), "");
  // The Kelvin sign becomes a k where a whole alphabet is folded.
  assert.equal(toDomainName("\u212a.x"), "\u212a.x");
});

test("a name has labels of 1 to 63 bytes and 253 bytes in all", () => {
  for (const good of ["a", "a.b.", "x".repeat(63), `${"x".repeat(63)}.`.repeat(3) + "y".repeat(61)])
    assert.ok(isDomainName(good), good);
  for (const bad of ["", ".", "a..b", ".a", "x".repeat(64), `${"x".repeat(63)}.`.repeat(4), "ä".repeat(32)])
    assert.ok(!isDomainName(bad), bad);
});

test("reverse names of the RFCs' examples", () => {
  assert.equal(reverseName(parseIp("10.2.0.52")), "52.0.2.10.in-addr.arpa");
  assert.equal(
    reverseName(parseIp("4321:0:1:2:3:4:567:89ab")),
    "b.a.9.8.7.6.5.0.4.0.0.0.3.0.0.0.2.0.0.0.1.0.0.0.0.0.0.0.1.2.3.4.ip6.arpa",
  );
});

test("every address comes back from its reverse name, and lies in exactly one zone of each prefix around it", () => {
  const bytes = fc.oneof(
    fc.uint8Array({ minLength: 4, maxLength: 4 }),
    fc.uint8Array({ minLength: 16, maxLength: 16 }),
  );
  fc.assert(
    fc.property(bytes, fc.nat(), fc.nat(), (raw, cut, other) => {
      const address = ipFromBytes(raw);
      const name = reverseName(address);
      assert.equal(parseReverseName(name), address);
      const width = address.includes(":") ? 128 : 32;
      const bits = 1 + (cut % (width - 1));
      const zones = reverseZones({ address, bits });
      assert.equal(zones.filter((zone) => name.endsWith(`.${zone}`) || name === zone).length, 1);
      // And no address outside of the prefix lies in one.
      const stranger = raw.slice();
      stranger[other % raw.length]! ^= 1 << (other % 8);
      const away = ipFromBytes(stranger);
      if (away.includes(":") !== address.includes(":")) return;
      const isInside = prefixContains({ address, bits }, away);
      assert.equal(
        zones.some((zone) => reverseName(away).endsWith(`.${zone}`) || reverseName(away) === zone),
        isInside,
      );
    }),
  );
});

test("what is no whole address is none", () => {
  for (const text of [
    "2.0.10.in-addr.arpa",
    "1.2.3.4.5.in-addr.arpa",
    "256.0.0.1.in-addr.arpa",
    "01.0.0.1.in-addr.arpa",
    "x.0.0.1.in-addr.arpa",
    "1.ip6.arpa",
    "in-addr.arpa",
    "1.2.3.4",
  ])
    assert.equal(parseReverseName(text as DomainName), undefined, text);
  assert.deepEqual(reverseZones(parsePrefix("100.64.0.0/15")), ["64.100.in-addr.arpa", "65.100.in-addr.arpa"]);
});
