import assert from "node:assert/strict";
import { test } from "node:test";
import { PrivateKey } from "#base/keys.ts";
import { mac, macWithState } from "../blake2s.ts";
import { LocalIdentity } from "../identity.ts";
import { MAC_BYTES, MessageType, mac1Offset } from "../messages.ts";
import { HandshakeGate } from "./handshake-gate.ts";
import { Counter, Stats } from "./stats.ts";

const IDENTITY = new LocalIdentity(PrivateKey.generate());
const SECRET = new Uint8Array(32).fill(7);

function setup() {
  const bytes = new Uint8Array(1024);
  const stats = Stats.create(1);
  const queue = { used: 0, capacity: 1000 };
  const gate = new HandshakeGate(bytes, stats, queue, IDENTITY.mac1Key);
  /** A message with the right mac1 at 100, from the address at 0. */
  const ask = (
    options: {
      type?: 1 | 2;
      address?: number[];
      cookie?: Uint8Array;
      relaySlot?: number;
      now?: number;
      break?: number;
    } = {},
  ): boolean => {
    const { type = MessageType.initiation, address = [192, 0, 2, 1], relaySlot = -1, now = 0 } = options;
    const mac1 = mac1Offset(type);
    const message = bytes.subarray(100, 100 + mac1 + 2 * MAC_BYTES);
    for (let i = 0; i < mac1; i++) message[i] = i;
    message[0] = type;
    message.set(macWithState(IDENTITY.mac1Key, message, mac1), mac1);
    message.fill(0, mac1 + MAC_BYTES);
    if (options.cookie) message.set(mac(options.cookie, message.subarray(0, mac1 + MAC_BYTES)), mac1 + MAC_BYTES);
    if (options.break !== undefined) message[options.break]! ^= 1;
    bytes.set(address);
    const family = relaySlot >= 0 ? 255 : address.length === 4 ? 4 : 6;
    return gate.admits(100, type, { family, at: 0, port: 0x1234 }, relaySlot, now);
  };
  const count = (name: "drop-mac1" | "drop-unproved-source"): number => stats.words[Counter[name]]!;
  return { gate, queue, ask, count };
}

test("a message of either type passes with its mac1 alone, and no byte of it may differ", () => {
  for (const type of [1, 2] as const) {
    const { ask, count } = setup();
    assert.ok(ask({ type }));
    for (let at = 0; at < mac1Offset(type) + MAC_BYTES; at++) assert.ok(!ask({ type, break: at }), `byte ${at}`);
    assert.equal(count("drop-mac1"), mac1Offset(type) + MAC_BYTES);
  }
});

test("nothing is refused for its number while the queue is short", () => {
  const { ask, queue } = setup();
  queue.used = 124;
  for (let i = 0; i < 1000; i++) assert.ok(ask());
});

test("under load one source gets 50 at once and 200 a second, others get theirs", () => {
  const { ask, queue, count } = setup();
  queue.used = 125;
  const passed = (address: number[], now: number): number =>
    Array.from({ length: 500 }, () => ask({ address, now })).filter(Boolean).length;
  assert.equal(passed([192, 0, 2, 1], 0), 50);
  assert.equal(passed([192, 0, 2, 2], 0), 50);
  assert.equal(count("drop-unproved-source"), 900);
  assert.equal(passed([192, 0, 2, 1], 100), 20);
  const net = [0x20, 1, 0xd, 0xb8, 0, 0, 0, 1];
  assert.equal(passed([...net, 0, 0, 0, 0, 0, 0, 0, 1], 100), 50);
  assert.equal(passed([...net, 0, 0, 0, 0, 0, 0, 0, 2], 100), 0, "a host has a /64");
});

test("load lasts a second after its last sign", () => {
  const { ask, queue } = setup();
  queue.used = 125;
  for (let i = 0; i < 50; i++) ask({ now: 0 });
  assert.ok(!ask({ now: 0 }));
  queue.used = 0;
  for (let i = 0; i < 300; i++) ask({ now: 999 });
  assert.ok(!ask({ now: 999 }));
  assert.ok(ask({ now: 1000 }));
});

test("the last quarter of the queue is for those who proved their address with the cookie of the day", () => {
  const { gate, ask, queue } = setup();
  queue.used = 750;
  assert.ok(!ask());
  const address = [192, 0, 2, 1, 0x12, 0x34];
  const cookie = mac(SECRET, Uint8Array.from(address));
  assert.ok(!ask({ cookie }), "no secret yet");
  gate.setCookieSecret(SECRET);
  for (let i = 0; i < 500; i++) assert.ok(ask({ cookie }));
  assert.ok(!ask({ cookie, address: [192, 0, 2, 9] }), "somebody else's cookie");
  assert.ok(!ask({ cookie, break: 147 }));
  const relayCookie = mac(SECRET, Buffer.concat([Buffer.from("relay"), Uint8Array.of(0, 0, 1, 2)]));
  assert.ok(ask({ cookie: relayCookie, relaySlot: 258 }));
  assert.ok(!ask({ cookie: relayCookie, relaySlot: 259 }));
  gate.setCookieSecret(new Uint8Array(32).fill(8));
  assert.ok(!ask({ cookie }), "yesterday's cookie");
});
