import assert from "node:assert/strict";
import { test } from "node:test";
import { type CounterGrowth, judgeGrowth } from "./counter-activity.ts";

const SECOND = 1_000;

function rxData(rx: number, more: Partial<CounterGrowth> = {}): boolean {
  return judgeGrowth({ rx, tx: 0, span: SECOND, handshake: false, ...more }).rxData;
}

/** Transport message of a packet of so many bytes. */
const transport = (packet: number): number => Math.min(1420, Math.ceil(packet / 16) * 16) + 32;

test("one packet of any size is user traffic, with a handshake or without", () => {
  for (let packet = 20; packet <= 1420; packet++) {
    assert.equal(rxData(transport(packet)), true, `${packet} bytes`);
    // Where a handshake is known of, small ones may pass for its messages: the next reading tells.
    if (packet > 500) assert.equal(rxData(transport(packet) + 148, { handshake: true }), true, `${packet} bytes`);
  }
});

test("keepalives and handshake messages are none", () => {
  for (const bytes of [0, 32, 148, 92, 148 + 32, 92 + 32]) assert.equal(rxData(bytes), false, `${bytes}`);
  for (const bytes of [2 * 148, 148 + 92, 64 + 148, 148 + 92 + 64])
    assert.equal(rxData(bytes, { handshake: true }), false, `${bytes}`);
  assert.equal(rxData(3 * 32, { span: 25 * SECOND }), false, "passive ones come every 10 s");
  assert.equal(rxData(3 * 32, { span: 5 * SECOND }), true);
});

test("both directions are told apart, and anything that came is told", () => {
  assert.deepEqual(judgeGrowth({ rx: 32, tx: 128, span: SECOND, handshake: false }), {
    rx: true,
    tx: true,
    rxData: false,
    txData: true,
  });
  assert.deepEqual(judgeGrowth({ rx: 0, tx: 0, span: SECOND, handshake: false }), {
    rx: false,
    tx: false,
    rxData: false,
    txData: false,
  });
});
