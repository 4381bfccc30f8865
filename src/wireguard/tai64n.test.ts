import assert from "node:assert/strict";
import { describe, it } from "node:test";
import { isLaterTai64n, Tai64nClock } from "./tai64n.ts";

const hex = (bytes: Uint8Array): string => Buffer.from(bytes).toString("hex");

describe("TAI64N", () => {
  it("labels a Unix second as the reference's vector does and blurs below 16.8 ms", () => {
    const clock = new Tai64nClock(() => 1_705_032_704_000 + 120);
    const stamp = hex(clock.next());
    assert.equal(stamp.slice(0, 16), "4000000065a0bc0a");
    assert.equal(stamp.slice(16), "07000000");
  });

  it("is strictly later each time at one instant, also over the end of a second", () => {
    const clock = new Tai64nClock(() => 999.999_9);
    let last = clock.next();
    for (let i = 0; i < 100; i++) {
      const next = clock.next();
      assert.ok(isLaterTai64n(next, last));
      last = next;
    }
    let wall = 0;
    const nearEnd = new Tai64nClock(() => wall);
    wall = 1_999.99;
    last = nearEnd.next();
    wall = 2_000;
    assert.ok(isLaterTai64n(nearEnd.next(), last));
  });

  it("goes on from the last timestamp after the wall clock stepped back, and follows it again later", () => {
    let wall = 1_800_000_000_000;
    const clock = new Tai64nClock(() => wall);
    let last = clock.next();
    wall -= 3_600_000;
    for (let i = 0; i < 1000; i++) {
      const next = clock.next();
      assert.ok(isLaterTai64n(next, last));
      last = next;
    }
    assert.equal(Buffer.from(last).readUInt32BE(4), 1_800_000_010, "no drift while waiting");
    wall += 7_200_000;
    assert.equal(Buffer.from(clock.next()).readUInt32BE(4), 1_800_003_610);
  });

  it("survives a clock before 1970", () => {
    const clock = new Tai64nClock(() => -5000);
    const first = clock.next();
    assert.ok(isLaterTai64n(clock.next(), first));
  });
});
