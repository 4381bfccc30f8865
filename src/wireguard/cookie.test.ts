import assert from "node:assert/strict";
import { describe, it } from "node:test";
import { type IpAddress, parseIp } from "#base/ip.ts";
import { PrivateKey } from "#base/keys.ts";
import { COOKIE_REFRESH_TIME, COOKIE_SECRET_LATENCY } from "./constants.ts";
import { CookieChecker, CookieJar } from "./cookie.ts";
import { createInitiation } from "./handshake.ts";
import { LocalIdentity, RemoteIdentity } from "./identity.ts";
import { IndexTable } from "./index-table.ts";
import { COOKIE_REPLY, INITIATION } from "./messages.ts";
import { RATE_LIMIT_MAX_SOURCES, RateLimiter, rateLimitKey } from "./rate-limiter.ts";
import { generateEphemeral } from "./x25519.ts";

const here = new LocalIdentity(PrivateKey.generate());
const there = new LocalIdentity(PrivateKey.generate());
const remote = RemoteIdentity.create(here, there.publicBytes)!;
const source = Uint8Array.of(192, 0, 2, 1, 0xca, 0x6c);
const elsewhere = Uint8Array.of(192, 0, 2, 1, 0xca, 0x6d);

const initiation = (): Uint8Array =>
  createInitiation(here, remote, {
    ephemeral: generateEphemeral(),
    localIndex: 5,
    timestamp: new Uint8Array(12),
  })!.message;

describe("cookies", () => {
  it("accept mac1 made for us and no other", () => {
    const message = initiation();
    assert.equal(new CookieChecker(there).isMac1Valid(message), true);
    assert.equal(new CookieChecker(here).isMac1Valid(message), false);
    for (const at of [0, 8, INITIATION.static, INITIATION.mac1, INITIATION.mac1 + 15]) {
      const wrong = message.slice();
      wrong[at]! ^= 1;
      if (at !== 0) assert.equal(new CookieChecker(there).isMac1Valid(wrong), false, `byte ${at}`);
    }
    const otherMac2 = message.slice();
    otherMac2[INITIATION.mac2]! ^= 1;
    assert.equal(new CookieChecker(there).isMac1Valid(otherMac2), true, "mac2 is not under mac1");
  });

  it("travel to the initiator and come back as mac2 for that source only", () => {
    const checker = new CookieChecker(there);
    const jar = new CookieJar();
    const first = initiation();
    jar.stamp(first, 0);
    assert.equal(checker.isMac2Valid(first, source, 0), false);
    assert.equal(jar.consumeReply(remote, checker.createReply(first, source, 0), 10), true);
    const second = initiation();
    jar.stamp(second, 20);
    assert.equal(checker.isMac2Valid(second, source, 30), true);
    assert.equal(checker.isMac2Valid(second, elsewhere, 30), false);
  });

  it("are refused when they answer another message than the last one", () => {
    const checker = new CookieChecker(there);
    const jar = new CookieJar();
    const first = initiation();
    const reply = checker.createReply(first, source, 0);
    assert.equal(jar.consumeReply(remote, reply, 0), false, "nothing was sent");
    jar.stamp(first, 0);
    jar.stamp(initiation(), 1);
    assert.equal(jar.consumeReply(remote, reply, 2), false, "sealed to the earlier mac1");
  });

  it("are refused when a byte of the reply is wrong", () => {
    const checker = new CookieChecker(there);
    const jar = new CookieJar();
    const message = initiation();
    jar.stamp(message, 0);
    const reply = checker.createReply(message, source, 0);
    for (let at = COOKIE_REPLY.nonce; at < reply.length; at++) {
      const wrong = reply.slice();
      wrong[at]! ^= 0x80;
      assert.equal(jar.consumeReply(remote, wrong, 0), false, `byte ${at}`);
    }
  });

  it("expire with the responder's secret, and a little earlier at the initiator", () => {
    const checker = new CookieChecker(there);
    const jar = new CookieJar();
    const first = initiation();
    jar.stamp(first, 0);
    jar.consumeReply(remote, checker.createReply(first, source, 0), 0);
    const late = initiation();
    jar.stamp(late, COOKIE_REFRESH_TIME - COOKIE_SECRET_LATENCY - 1);
    assert.equal(checker.isMac2Valid(late, source, COOKIE_REFRESH_TIME - 1), true);
    assert.equal(checker.isMac2Valid(late, source, COOKIE_REFRESH_TIME), false);
    checker.createReply(first, source, COOKIE_REFRESH_TIME);
    assert.equal(checker.isMac2Valid(late, source, COOKIE_REFRESH_TIME), false, "made with the old secret");
    const tooLate = initiation();
    jar.stamp(tooLate, COOKIE_REFRESH_TIME - COOKIE_SECRET_LATENCY);
    assert.deepEqual([...tooLate.subarray(INITIATION.mac2)], Array(16).fill(0));
  });
});

describe("the rate limiter", () => {
  it("lets five at once and twenty a second of one source through", () => {
    const limiter = new RateLimiter();
    let passed = 0;
    for (let i = 0; i < 50; i++) if (limiter.allow("a", 0)) passed++;
    assert.equal(passed, 5);
    for (let now = 1; now <= 1000; now++) if (limiter.allow("a", now)) passed++;
    assert.equal(passed, 25);
    assert.equal(limiter.allow("b", 1000), true, "another source has its own");
  });

  it("forgets sources after a second and refuses new ones when the table is full", () => {
    const limiter = new RateLimiter();
    for (let i = 0; i < RATE_LIMIT_MAX_SOURCES; i++) limiter.allow(`s${i}`, 500);
    assert.equal(limiter.allow("one more", 600), false);
    assert.equal(limiter.allow("one more", 1600), true);
    assert.equal(limiter.size, 1);
  });

  it("takes an IPv6 /64 as one source and an IPv4 address as one", () => {
    const key = (text: string): string => rateLimitKey(parseIp(text) as IpAddress);
    assert.equal(key("2001:db8::1"), key("2001:db8::ffff:1"));
    assert.notEqual(key("2001:db8:0:1::1"), key("2001:db8::1"));
    assert.notEqual(key("192.0.2.1"), key("192.0.2.2"));
  });
});

describe("the index table", () => {
  it("never gives an index twice, nor zero, nor STUN's magic cookie", () => {
    const drawn = [0, 0x42a41221, 5, 5, 6];
    const table = new IndexTable<string>(() => drawn.shift()!);
    assert.equal(table.allocate("a"), 5);
    assert.equal(table.allocate("b"), 6);
    assert.equal(table.get(5), "a");
    table.free(5);
    assert.equal(table.get(5), undefined);
    assert.equal(table.size, 1);
  });

  it("draws different numbers by itself", () => {
    const table = new IndexTable<number>();
    for (let i = 0; i < 1000; i++) table.allocate(i);
    assert.equal(table.size, 1000);
  });
});
