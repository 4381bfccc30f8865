import assert from "node:assert/strict";
import { describe, it } from "node:test";
import { missingForLab } from "../interop/wireguard-lab.ts";
import { Wire } from "./data-plane/wire.ts";
import { DevicePair } from "./device-compliance/device-pair.ts";

/** One way: what leaves both ends within it crosses. */
const DELAY_MS = 150;
/** Pings, one a second: over before WireGuard's own retry, 5 s. */
const PINGS = 4;

describe("handshakes between two devices that are wireguard-go", {
  skip: missingForLab(),
  timeout: 60_000,
  concurrency: 2,
}, () => {
  it("come back directly where a direct path was known, and no data passes the relay", async () => {
    await using pair = await DevicePair.start("wireguard-go", "wireguard-go");
    const { a, b } = pair;
    await pair.reset();
    await pair.automate("udp");
    assert.equal(await a.ping(b.address, 2, 0.05, "-W", "5"), 2);
    await b.event("established");
    for (const end of [a, b]) {
      await pair.sleep(end);
      // Its sessions go with it.
      await end.restart();
    }
    await pair.automate("relay");
    pair.relayed = 0;
    assert.equal(await a.ping(b.address, 10, 0.05, "-W", "5"), 10);
    assert.ok(pair.relayed > 0, "the initiation");
    assert.equal(pair.relayedData, 0);
    for (const end of [a, b]) {
      const { payload } = await end.event("established");
      assert.deepEqual(payload.source, pair.direct(pair.other(end)));
    }
  });

  it("that cross after both were restarted come to something before WireGuard's own retry", async (t) => {
    await using pair = await DevicePair.over(
      await Wire.impaired({ latencyMs: DELAY_MS }),
      "wireguard-go",
      "wireguard-go",
    );
    const { a, b } = pair;
    await pair.reset();
    await pair.automate("udp");
    assert.equal(await a.ping(b.address, 2, 0.05, "-W", "5"), 2);
    await Promise.all([a.event("established"), b.event("established")]);
    await Promise.all([a.restart(), b.restart()]);
    // What waits in a device that begins anew is lost.
    const answered = await a.ping(b.address, PINGS, 1, "-W", "1");
    const crossed = await Promise.all([a, b].map((end) => end.call<Record<string, number>>("counters")));
    const counts = crossed.map((counters) => counters["handshakes-crossed"] ?? 0);
    t.diagnostic(`begun anew: ${counts.join(" and ")}, ${answered} of ${PINGS} answered`);
    assert.ok(answered > 0);
    assert.ok(counts[0]! + counts[1]! <= 1, "one end only");
  });
});
