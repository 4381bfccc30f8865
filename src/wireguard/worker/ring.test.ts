import assert from "node:assert/strict";
import { test } from "node:test";
import { Worker } from "node:worker_threads";
import fc from "fast-check";
import { Ring } from "./ring.ts";

test("records come out as they went in, whatever their sizes and however full the ring is", () => {
  const step = fc.oneof(fc.integer({ min: 8, max: 400 }), fc.constant(0));
  fc.assert(
    fc.property(fc.array(step, { maxLength: 300 }), (steps) => {
      const producer = Ring.create(1024);
      const consumer = new Ring(producer.buffer);
      const inside: { size: number; tag: number }[] = [];
      let tag = 0;
      for (const size of steps) {
        if (size === 0) {
          const at = consumer.next();
          const expected = inside.shift();
          if (!expected) {
            assert.equal(at, -1);
            continue;
          }
          assert.equal(consumer.view.getUint8(at + 4), expected.tag & 0xff);
          assert.equal(consumer.view.getUint8(at + expected.size - 1), expected.tag & 0xff);
          consumer.release();
        } else {
          const at = producer.begin(size);
          if (at < 0) {
            assert.ok(inside.length > 0, "an empty ring takes everything up to half its size");
            continue;
          }
          assert.ok(at + size <= producer.capacity);
          producer.bytes.fill(tag & 0xff, at + 4, at + size);
          producer.commit();
          inside.push({ size, tag: tag++ });
        }
      }
      for (const expected of inside) {
        const at = consumer.next();
        assert.equal(consumer.view.getUint8(at + 4), expected.tag & 0xff);
        consumer.release();
      }
      assert.equal(consumer.next(), -1);
      assert.equal(consumer.used, 0);
    }),
  );
});

test("the consumer is to be woken once, and does not sleep over a record", () => {
  const producer = Ring.create(1024);
  const consumer = new Ring(producer.buffer);
  assert.equal(producer.consumerSleeps(), false);
  assert.equal(consumer.sleepUnlessFilled(), true);
  producer.begin(16);
  producer.commit();
  assert.equal(producer.consumerSleeps(), true);
  assert.equal(producer.consumerSleeps(), false);
  assert.equal(consumer.sleepUnlessFilled(), false);
});

test("the consumer does not sleep over a wish for space that came when the ring was empty", () => {
  const producer = Ring.create(1024);
  const consumer = new Ring(producer.buffer);
  producer.wantSpace();
  assert.equal(producer.consumerSleeps(), false, "nobody to wake");
  assert.equal(consumer.sleepUnlessFilled(), false);
  assert.ok(consumer.takeSpaceWish());
  assert.ok(consumer.sleepUnlessFilled());
});

test("a wish for space is seen once", () => {
  const producer = Ring.create(1024);
  const consumer = new Ring(producer.buffer);
  assert.equal(consumer.takeSpaceWish(), false);
  producer.wantSpace();
  assert.equal(consumer.takeSpaceWish(), true);
  assert.equal(consumer.takeSpaceWish(), false);
});

test("100,000 records cross between two threads in order", async () => {
  const ring = Ring.create(1 << 14);
  const script = `
    const { workerData, parentPort } = require("node:worker_threads");
    import(${JSON.stringify(new URL("./ring.ts", import.meta.url).href)}).then(({ Ring }) => {
      const ring = new Ring(workerData);
      for (let i = 0; i < 100000; i++) {
        const size = 12 + (i % 50);
        let at;
        while ((at = ring.begin(size)) < 0) Atomics.wait(new Int32Array(new SharedArrayBuffer(4)), 0, 0, 1);
        ring.view.setUint32(at + 4, i, true);
        ring.view.setUint8(at + size - 1, i & 0xff);
        ring.commit();
      }
      parentPort.postMessage("done");
    });`;
  const worker = new Worker(script, { eval: true, workerData: ring.buffer });
  let next = 0;
  while (next < 100_000) {
    const at = ring.next();
    if (at < 0) {
      await new Promise((done) => setImmediate(done));
      continue;
    }
    assert.equal(ring.view.getUint32(at + 4, true), next);
    assert.equal(ring.view.getUint8(at + 11 + (next % 50)), next & 0xff);
    next++;
    ring.release();
  }
  await worker.terminate();
});

test("a producer that died in the middle of a record leaves nothing of it behind", () => {
  const first = Ring.create(1024);
  const consumer = new Ring(first.buffer);
  // Up to where the next record would not fit before the end, so that a skip mark is written too.
  for (let i = 0; i < 3; i++) {
    first.view.setUint8(first.begin(256) + 4, i);
    first.commit();
  }
  for (let i = 0; i < 2; i++) {
    consumer.next();
    consumer.release();
  }
  first.bytes.fill(0xff, first.begin(400) + 4, 400);
  const second = new Ring(first.buffer);
  second.view.setUint8(second.begin(128) + 4, 77);
  second.commit();
  const taken: number[] = [];
  for (let at = consumer.next(); at >= 0; at = consumer.next()) {
    taken.push(consumer.view.getUint8(at + 4));
    consumer.release();
  }
  assert.deepEqual(taken, [2, 77]);
});
