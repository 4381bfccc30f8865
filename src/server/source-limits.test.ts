import assert from "node:assert/strict";
import { test } from "node:test";
import { parseIp } from "#base/ip.ts";
import { type Admission, SourceLimits } from "./source-limits.ts";

const admitMany = (limits: SourceLimits, address: string, count: number): Admission[] =>
  Array.from({ length: count }, () => {
    const admission = limits.admit(parseIp(address));
    assert.ok(admission);
    return admission;
  });

test("a source over its unproven limit is refused until one of its connections proves itself or closes", () => {
  const limits = new SourceLimits({ maxUnproven: 3, maxConnections: 100 });
  const [first, second] = admitMany(limits, "192.0.2.1", 3);
  assert.equal(limits.admit(parseIp("192.0.2.1")), undefined);
  assert.ok(limits.admit(parseIp("192.0.2.2")), "another source is not concerned");
  first!.noteProven();
  first!.noteProven();
  admitMany(limits, "192.0.2.1", 1);
  assert.equal(limits.admit(parseIp("192.0.2.1")), undefined);
  second!.noteClosed();
  second!.noteClosed();
  admitMany(limits, "192.0.2.1", 1);
  assert.equal(limits.admit(parseIp("192.0.2.1")), undefined);
});

test("the limit of all connections holds for proven ones, and not for loopback", () => {
  const limits = new SourceLimits({ maxUnproven: 10, maxConnections: 2 });
  for (const admission of admitMany(limits, "192.0.2.1", 2)) admission.noteProven();
  assert.equal(limits.admit(parseIp("192.0.2.1")), undefined);
  for (const address of ["127.0.0.1", "::1"])
    for (let i = 0; i < 5; i++) admitMany(limits, address, 1)[0]!.noteProven();
});

test("an IPv6 source is its /64", () => {
  const limits = new SourceLimits({ maxUnproven: 2, maxConnections: 100 });
  admitMany(limits, "2001:db8::1", 1);
  admitMany(limits, "2001:db8::ffff:1", 1);
  assert.equal(limits.admit(parseIp("2001:db8::2")), undefined);
  assert.ok(limits.admit(parseIp("2001:db8:0:1::2")));
});

test("nothing is remembered of a source whose connections have closed", () => {
  const limits = new SourceLimits({ maxUnproven: 10, maxConnections: 10 });
  const admissions = [...admitMany(limits, "192.0.2.1", 5), ...admitMany(limits, "2001:db8::1", 5)];
  assert.equal(limits.size, 2);
  for (const admission of admissions) admission.noteClosed();
  assert.equal(limits.size, 0);
});
