import assert from "node:assert/strict";
import { test } from "node:test";
import { parseIp } from "#base/ip.ts";
import { DNS_LABEL_MAX, dnsLabelOf, isDnsLabel, suffixedDnsLabel } from "./dns-label.ts";
import { parseSetupKey, SetupKeyError } from "./setup-key.ts";

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

test("a setup key is a UUID, read in any case and never repeated in an error", () => {
  assert.equal(parseSetupKey(" A2C8E62B-38F5-4553-B31E-DD66C696CEBB\n"), "a2c8e62b-38f5-4553-b31e-dd66c696cebb");
  for (const bad of ["", "secret-that-is-no-uuid", "A2C8E62B38F54553B31EDD66C696CEBB"]) {
    assert.throws(
      () => parseSetupKey(bad),
      (error) => error instanceof SetupKeyError && (bad === "" || !error.message.includes(bad)),
    );
  }
});
