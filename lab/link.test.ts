import assert from "node:assert/strict";
import { describe, test } from "node:test";
import fc from "fast-check";
import { Flight, type Packet, PacketPool } from "./flight.ts";
import { Link, type LinkOptions } from "./link.ts";
import { createRandom } from "./random.ts";

const makeLink = (options: LinkOptions): Link => new Link(options, createRandom(11));

describe("link", () => {
  test("a packet takes the delay, neither more nor less", () => {
    assert.equal(makeLink({ latencyMs: 20 }).admit(100, 5), 25);
    assert.equal(makeLink({}).admit(100, 5), 5);
  });

  test("jitter stays within its range and keeps the order", () => {
    const link = makeLink({ latencyMs: 10, jitterMs: 4 });
    let before = 0;
    let spread = 0;
    for (let now = 0; now < 1000; now += 0.5) {
      const arrival = link.admit(100, now)!;
      assert.ok(arrival >= before);
      assert.ok(arrival >= now + 10 && arrival <= now + 14);
      spread = Math.max(spread, arrival - now - 10);
      before = arrival;
    }
    assert.ok(spread > 3.5, `widest jitter ${spread}`);
  });

  test("loss, duplicates and reordering come as often as told", () => {
    const link = makeLink({ loss: 0.2, duplicate: 0.1, reorder: 0.05 });
    for (let i = 0; i < 20_000; i++) if (link.admit(100, i) !== undefined) link.wantDuplicate();
    const { lost, duplicated, reordered, packets } = link.counters;
    assert.ok(Math.abs(lost / 20_000 - 0.2) < 0.01, `lost ${lost}`);
    assert.ok(Math.abs(duplicated / packets - 0.1) < 0.01, `duplicated ${duplicated}`);
    assert.ok(Math.abs(reordered / packets - 0.05) < 0.01, `reordered ${reordered}`);
    assert.equal(packets + lost, 20_000);
  });

  test("a reordered packet is overtaken by the one behind it", () => {
    const link = makeLink({ latencyMs: 10, reorder: 1, reorderMs: 5 });
    assert.equal(link.admit(100, 0), 15);
    link.change({ reorder: 0 });
    assert.equal(link.admit(100, 1), 11);
  });

  test("bandwidth spaces packets out and a full queue drops the last", () => {
    const link = makeLink({ bandwidthMbps: 8, latencyMs: 3, queueBytes: 3000 });
    const arrivals = [1, 2, 3, 4].map(() => link.admit(1000, 0));
    assert.deepEqual(arrivals, [4, 5, 6, undefined]);
    assert.equal(link.counters.queueFull, 1);
    assert.equal(link.admit(1000, 1), 7, "one millisecond later there is room for one again");
    link.change({ bandwidthMbps: "unlimited" });
    assert.equal(link.admit(1000, 10), 13);
  });

  test("a cut link takes nothing and loses what is under way", () => {
    const link = makeLink({ latencyMs: 10 });
    assert.equal(link.admit(100, 0), 10);
    link.cut();
    assert.equal(link.arrives(), false);
    assert.equal(link.admit(100, 1), undefined);
    link.restore();
    assert.equal(link.arrives(), true);
    assert.equal(link.admit(100, 2), 12);
    assert.equal(link.counters.cut, 2);
  });

  test("a shorter delay does not let later packets overtake earlier ones", () => {
    const link = makeLink({ latencyMs: 100 });
    assert.equal(link.admit(100, 0), 100);
    link.change({ latencyMs: 10 });
    assert.equal(link.admit(100, 1), 100);
    assert.equal(link.admit(100, 95), 105);
  });
});

describe("flight", () => {
  test("packets leave by time, equal times in the order they came", () => {
    fc.assert(
      fc.property(fc.array(fc.integer({ min: 0, max: 20 }), { maxLength: 200 }), (times) => {
        const pool = new PacketPool(1, 1000);
        const flight = new Flight();
        const names = new Map<Packet, number>();
        times.forEach((due, index) => {
          const packet = pool.take()!;
          names.set(packet, index);
          flight.add(packet, due);
        });
        const expected = times.map((due, index) => ({ due, index })).sort((a, b) => a.due - b.due || a.index - b.index);
        assert.equal(flight.nextDue(), expected[0]?.due);
        for (const { index } of expected) assert.equal(names.get(flight.take(20)!), index);
        assert.equal(flight.size, 0);
      }),
    );
  });

  test("nothing leaves before its time", () => {
    const flight = new Flight();
    flight.add(new PacketPool(1, 1).take()!, 5);
    assert.equal(flight.take(4.999), undefined);
    assert.ok(flight.take(5));
  });

  test("the pool has a limit and takes buffers back", () => {
    const pool = new PacketPool(8, 2);
    const first = pool.take()!;
    assert.ok(pool.take());
    assert.equal(pool.take(), undefined);
    pool.give(first);
    assert.equal(pool.take(), first);
  });
});
