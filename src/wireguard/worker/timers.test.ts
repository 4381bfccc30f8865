import assert from "node:assert/strict";
import { test } from "node:test";
import fc from "fast-check";
import { PROTOCOL_LIMITS } from "./limits.ts";
import { Peer } from "./peers.ts";
import { Sessions } from "./sessions.ts";
import { Timers } from "./timers.ts";

/** Virtual time: everything the timers do, with when they did it. */
function setup(peers = 1) {
  const log: string[] = [];
  const silences: string[] = [];
  const time = { now: 1000 };
  const sessions = new Sessions(() => undefined);
  const timers = new Timers(
    { ...PROTOCOL_LIMITS, jitter: 0 },
    {
      sendKeepalive: (peer) => {
        log.push(`${time.now} keepalive ${peer.slot}`);
        if (peer.current) timers.authenticatedSent(peer, time.now);
      },
      noAnswer: (peer) => log.push(`${time.now} no-answer ${peer.slot}`),
      silent: (peer) => silences.push(`${time.now} silent ${peer.slot}`),
      expireSessions: (peer) => {
        const before = sessions.size;
        sessions.expire(peer, time.now, PROTOCOL_LIMITS.rejectAfterTime);
        if (sessions.size < before) log.push(`${time.now} expired ${peer.slot}`);
      },
    },
  );
  const made = Array.from({ length: peers }, (_, slot) => new Peer(slot, false));
  const connect = (peer: Peer): void => {
    const options = { initiator: true, localIndex: peer.slot + 1, remoteIndex: 9, createdAt: time.now };
    sessions.install(peer, options, new Uint8Array(64), 0);
    timers.sessionInstalled(peer, time.now);
  };
  const advance = (ms: number): void => {
    const end = time.now + ms;
    while (timers.nextAt <= end) {
      time.now = Math.max(time.now, timers.nextAt);
      timers.run(time.now);
    }
    time.now = end;
  };
  return { log, silences, time, timers, connect, advance, peers: made, peer: made[0]! };
}

test("received data is answered with a keepalive after 10 s, once", () => {
  const { log, timers, connect, advance, peer, time } = setup();
  connect(peer);
  timers.dataReceived(peer, time.now);
  advance(9900);
  assert.deepEqual(log, []);
  advance(60_000);
  assert.deepEqual(log, ["11000 keepalive 0"]);
});

test("more data meanwhile brings one more keepalive, own sending none", () => {
  const { log, timers, connect, advance, peer, time } = setup();
  connect(peer);
  timers.dataReceived(peer, time.now);
  advance(1000);
  timers.dataReceived(peer, time.now);
  advance(30_000);
  assert.deepEqual(log, ["11000 keepalive 0", "21000 keepalive 0"]);
  timers.dataReceived(peer, time.now);
  advance(1000);
  timers.dataReceived(peer, time.now);
  timers.dataSent(peer, time.now);
  timers.authenticatedSent(peer, time.now);
  timers.authenticatedReceived(peer, time.now);
  advance(30_000);
  assert.equal(log.length, 2);
});

test("data without any answer for 15 s asks for a handshake; an answer of any kind clears it", () => {
  const { log, timers, connect, advance, peer, time } = setup();
  connect(peer);
  timers.dataSent(peer, time.now);
  advance(14_900);
  assert.deepEqual(log, []);
  advance(200);
  assert.deepEqual(log, ["16000 no-answer 0"]);
  timers.dataSent(peer, time.now);
  advance(14_000);
  timers.authenticatedReceived(peer, time.now);
  advance(30_000);
  assert.equal(log.length, 1);
});

test("ping-pong with every packet arming and clearing fires nothing", () => {
  const { log, timers, connect, advance, peer, time } = setup();
  connect(peer);
  for (let i = 0; i < 1000; i++) {
    timers.dataSent(peer, time.now);
    timers.authenticatedSent(peer, time.now);
    advance(50);
    timers.authenticatedReceived(peer, time.now);
    timers.dataReceived(peer, time.now);
    advance(50);
  }
  assert.deepEqual(log, []);
  assert.equal(timers.size, 1);
});

test("a persistent keepalive goes out whenever nothing authenticated passed for its interval", () => {
  const { log, timers, connect, advance, peer, time } = setup();
  connect(peer);
  peer.persistentKeepalive = 25_000;
  timers.keepaliveChanged(peer, time.now);
  advance(60_000);
  assert.deepEqual(log, ["26000 keepalive 0", "51000 keepalive 0"]);
  timers.authenticatedReceived(peer, time.now);
  advance(24_000);
  assert.equal(log.length, 2);
  peer.persistentKeepalive = 0;
  timers.keepaliveChanged(peer, time.now);
  advance(90_000);
  assert.equal(log.length, 2);
});

test("a session is dropped at 180 s, and then nothing is armed", () => {
  const { log, timers, connect, advance, peer } = setup();
  connect(peer);
  assert.equal(timers.size, 1);
  advance(179_900);
  assert.ok(peer.current);
  advance(200);
  assert.deepEqual(log, ["181000 expired 0"]);
  assert.equal(timers.size, 0);
  assert.equal(timers.nextAt, Number.POSITIVE_INFINITY);
});

test("a peer put to sleep sends nothing; its session still ends in time", () => {
  const { log, timers, connect, advance, peer, time } = setup();
  connect(peer);
  peer.persistentKeepalive = 5000;
  timers.keepaliveChanged(peer, time.now);
  timers.dataReceived(peer, time.now);
  timers.dataSent(peer, time.now);
  peer.asleep = true;
  timers.stop(peer);
  timers.authenticatedReceived(peer, time.now);
  timers.dataReceived(peer, time.now);
  advance(200_000);
  assert.deepEqual(log, ["181000 expired 0"]);
});

test("peers that nothing happened to have no timer", () => {
  const { timers } = setup(100);
  assert.equal(timers.size, 0);
  assert.equal(timers.nextAt, Number.POSITIVE_INFINITY);
});

test("with many peers in any order each fires at its own time", () => {
  fc.assert(
    fc.property(fc.array(fc.nat(100_000), { minLength: 1, maxLength: 60 }), fc.array(fc.nat(59)), (delays, removed) => {
      const { log, timers, time, advance, peers } = setup(delays.length);
      const order = delays.map((delay, slot) => ({ delay, slot })).sort((a, b) => a.delay - b.delay || a.slot - b.slot);
      for (const { delay, slot } of order) {
        advance(1000 + delay - time.now);
        timers.dataSent(peers[slot]!, time.now);
      }
      // Every peer's timer of 15 s may have fired already where the delays lie far apart.
      for (const slot of removed) if (peers[slot]) timers.remove(peers[slot]);
      const gone = new Set(removed);
      advance(200_000);
      for (const { delay, slot } of order) {
        const line = log.find((entry) => entry.endsWith(` no-answer ${slot}`));
        const due = Math.ceil((1000 + delay + 15_000) / 100) * 100;
        const firedBefore = due <= 1000 + order.at(-1)!.delay;
        if (gone.has(slot) && !firedBefore) assert.equal(line, undefined);
        else assert.equal(line, `${due} no-answer ${slot}`);
      }
    }),
    { numRuns: 50 },
  );
});

test("data without any answer is told after 400 ms and again while it goes on; an answer ends that", () => {
  const { silences, timers, connect, advance, peer, time } = setup();
  connect(peer);
  for (let packet = 0; packet < 10; packet++) {
    timers.dataSent(peer, time.now);
    advance(100);
  }
  assert.deepEqual(silences, ["1400 silent 0", "1800 silent 0"]);
  timers.authenticatedReceived(peer, time.now);
  advance(20_000);
  assert.equal(silences.length, 2);
  timers.dataSent(peer, time.now);
  timers.stop(peer);
  advance(20_000);
  assert.equal(silences.length, 2);
});
