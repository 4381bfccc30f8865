import assert from "node:assert/strict";
import { test } from "node:test";
import { type Endpoint, formatEndpoint, parseEndpoint } from "#base/ip.ts";
import { ManualClock } from "#base/time.ts";
import {
  MAPPED_ADDRESS_LIFETIME,
  MAPPED_ADDRESS_SERVERS_MAX,
  MappedAddressCache,
  QUERY_SCHEDULE,
  QUERY_TIMEOUT,
} from "./stun-client.ts";
import { encodeStun, parseStun, type StunFields } from "./stun-message.ts";

const server = parseEndpoint("198.51.100.1:3478");
const other = parseEndpoint("198.51.100.2:3478");
const mapped = parseEndpoint("203.0.113.7:40112");

function setUp() {
  const clock = new ManualClock();
  const sent: { at: number; to: Endpoint; datagram: Uint8Array }[] = [];
  const cache = new MappedAddressCache({
    clock,
    send: (datagram, to) => void sent.push({ at: clock.now(), to, datagram }),
  });
  /** Answers the newest request to a server. */
  const answer = (from: Endpoint, fields: Partial<StunFields> = { xorMappedAddress: mapped }): boolean => {
    const request = sent.findLast(({ to }) => formatEndpoint(to) === formatEndpoint(from))!;
    const { transactionId } = parseStun(request.datagram)!;
    return cache.receive(parseStun(encodeStun({ class: "success", transactionId, ...fields }))!, from);
  };
  return { clock, sent, cache, answer };
}

test("callers at the same time share one query, later ones are served for 25 seconds without a packet", async () => {
  const { clock, sent, cache, answer } = setUp();
  const [first, second] = [cache.query(server), cache.query(server)];
  assert.equal(sent.length, 1);
  assert.equal(answer(server), true);
  assert.deepEqual([await first, await second], [mapped, mapped]);
  assert.equal(clock.pending, 0);
  clock.advance(MAPPED_ADDRESS_LIFETIME - 1);
  assert.deepEqual(await cache.query(server), mapped);
  assert.equal(sent.length, 1);
  clock.advance(1);
  const refreshed = cache.query(server);
  assert.deepEqual(cache.lastKnown(server), mapped, "the old answer is at hand meanwhile");
  assert.equal(sent.length, 2);
  answer(server);
  await refreshed;
});

test("a silent server is asked five times in 1.5 seconds and given up after 3.1", async () => {
  const { clock, sent, cache } = setUp();
  const result = cache.query(server);
  clock.advance(QUERY_TIMEOUT - 1);
  assert.deepEqual(
    sent.map(({ at }) => at),
    QUERY_SCHEDULE,
  );
  assert.equal(new Set(sent.map(({ datagram }) => Buffer.from(datagram).toString("hex"))).size, 1, "one transaction");
  clock.advance(1);
  assert.equal(await result, undefined);
  assert.equal(clock.pending, 0);
});

test("an answer from elsewhere, with another transaction or a second time is not taken", async () => {
  const { cache, answer } = setUp();
  const result = cache.query(server);
  void cache.query(other);
  assert.equal(answer(server, { xorMappedAddress: mapped, method: 3 }), false);
  const { transactionId } = { transactionId: "0".repeat(24) as never };
  assert.equal(answer(server, { xorMappedAddress: mapped, transactionId }), false);
  assert.equal(answer(server), true);
  assert.deepEqual(await result, mapped);
  assert.equal(answer(server), false);
  cache.close();
});

test("an error answer ends the query without a value", async () => {
  const { clock, cache, answer } = setUp();
  const result = cache.query(server);
  assert.equal(answer(server, { class: "error", error: { code: 400, reason: "Bad Request" } }), true);
  assert.equal(await result, undefined);
  assert.equal(clock.pending, 0);
});

test("a report tells what a server saw, how far it is, and that it went silent", async () => {
  const { clock, cache, answer } = setUp();
  const nothing = { server, mapped: undefined, answeredAt: undefined, rtt: undefined, silentAt: undefined };
  assert.deepEqual(cache.report(server), nothing);
  void cache.query(server);
  clock.advance(20);
  answer(server);
  assert.deepEqual(cache.report(server), { server, mapped, answeredAt: 20, rtt: 20, silentAt: undefined });
  void cache.refresh(server);
  clock.advance(QUERY_TIMEOUT);
  const silentAt = 20 + QUERY_TIMEOUT;
  assert.deepEqual(cache.report(server), { server, mapped, answeredAt: 20, rtt: 20, silentAt });
  void cache.refresh(server);
  clock.advance(150);
  answer(server);
  const answeredAt = silentAt + 150;
  assert.deepEqual(cache.report(server), { server, mapped, answeredAt, rtt: undefined, silentAt: undefined });
  cache.forget();
  assert.deepEqual(cache.report(server), nothing);
});

test("every answer is told, also one that changes nothing", () => {
  const { cache, answer } = setUp();
  const answers: Endpoint[] = [];
  cache.events.on("answered", (event) => answers.push(event.mapped));
  for (let i = 0; i < 2; i++) {
    void cache.refresh(server);
    answer(server);
  }
  assert.deepEqual(answers, [mapped, mapped]);
});

test("a changed mapping is reported once", async () => {
  const { cache, answer } = setUp();
  const changes: unknown[] = [];
  cache.events.on("changed", ({ mapped: now, previous }) => changes.push([now.port, previous?.port]));
  for (const port of [1000, 1000, 2000]) {
    void cache.refresh(server);
    answer(server, { xorMappedAddress: { ...mapped, port } });
  }
  assert.deepEqual(changes, [
    [1000, undefined],
    [2000, 1000],
  ]);
});

test("close ends what is under way, and the number of remembered servers is bounded", async () => {
  const { clock, cache, answer } = setUp();
  for (let i = 0; i <= MAPPED_ADDRESS_SERVERS_MAX; i++) {
    const each = { ...server, port: 1000 + i };
    void cache.query(each);
    answer(each);
  }
  assert.equal(cache.lastKnown({ ...server, port: 1000 }), undefined);
  assert.deepEqual(cache.lastKnown({ ...server, port: 1001 }), mapped);
  const result = cache.query(other);
  cache.close();
  cache.close();
  assert.equal(await result, undefined);
  assert.equal(await cache.query(other), undefined);
  assert.equal(clock.pending, 0);
});
