import assert from "node:assert/strict";
import { describe, it } from "node:test";
import { INITIATION } from "#wireguard/messages.ts";
import { type MessageKind, type OnWire, type VirtualEnd, VirtualPair } from "./wireguard-pair.ts";

/*
 * The reference's section 12, "sessions", "timers" and "roaming", by two whole devices with the protocol's own limits. All times
 * are virtual and exact but for what a timer's jitter and its 100 ms slots add.
 */
const SLOT = 100;
const JITTER = 333;

const since = (end: VirtualEnd, at: number, ...kinds: MessageKind[]): OnWire[] =>
  end.sent.filter((message) => message.at >= at && kinds.includes(message.kind));

function about(at: number, expected: number, slack: number): void {
  assert.ok(at >= expected && at <= expected + slack, `${at} is not within ${slack} after ${expected}`);
}

describe("a session", () => {
  it("begins with the first packet, which is delivered, and the initiator confirms with it", async () => {
    await using pair = new VirtualPair();
    pair.connect();
    assert.deepEqual(
      pair.a.sent.map(({ kind }) => kind),
      ["initiation", "data"],
    );
    assert.deepEqual(
      pair.b.sent.map(({ kind }) => kind),
      ["response"],
    );
    assert.deepEqual(pair.b.received, ["hello"]);
    assert.equal(pair.a.count("established") + pair.b.count("established"), 2);
  });

  it("is renewed by its initiator alone, after 120 s, when it sends", async () => {
    await using pair = new VirtualPair();
    const { a, b, clock } = pair;
    pair.connect();
    const begun = a.events[0]!.at;
    for (let second = 0; second < 115; second++) {
      a.send("there");
      b.send("back");
      clock.advance(1000);
    }
    assert.equal(since(a, 1001, "initiation").length + since(b, 0, "initiation").length, 0);
    for (let tenth = 0; tenth < 100; tenth++) {
      a.send("there");
      b.send("back");
      clock.advance(100);
    }
    const [renewal, ...more] = since(a, 1001, "initiation");
    about(renewal!.at - begun, 120_000, 200);
    assert.deepEqual(more, []);
    assert.deepEqual(since(b, 0, "initiation"), [], "the responder leaves it to the initiator");
    assert.equal(a.received.length, 215);
    assert.equal(b.received.length, 216);
  });

  it("is renewed by its initiator when it answers with keepalives only", async () => {
    await using pair = new VirtualPair();
    const { a, b, clock } = pair;
    pair.connect();
    const begun = a.events[0]!.at;
    for (let second = 0; second < 150; second++) {
      b.send("one way");
      clock.advance(1000);
    }
    const renewals = since(a, begun + 1, "initiation");
    assert.equal(renewals.length, 1);
    // A keepalive is a sent packet.
    about(renewals[0]!.at - begun, 120_000, 10_000 + 2 * SLOT);
    assert.deepEqual(since(b, 0, "initiation"), []);
    assert.equal(a.received.length, 150);
  });

  it("is renewed after 165 s when its initiator sends nothing at all and hears something", async () => {
    await using pair = new VirtualPair();
    const { a, b, clock } = pair;
    pair.connect();
    const begun = a.events[0]!.at;
    // A keepalive is not answered by one.
    b.know(a, { persistentKeepalive: 3 });
    clock.advance(175_000);
    const renewals = since(a, begun + 1, "initiation");
    assert.equal(renewals.length, 1);
    about(renewals[0]!.at - begun, 165_000, 3000 + 2 * SLOT);
    assert.deepEqual(since(b, 0, "initiation"), []);
  });

  it("that neither side uses ends after 180 s, and neither sends nor wakes for it", async () => {
    await using pair = new VirtualPair();
    const { a, b, clock } = pair;
    pair.connect();
    clock.advance(179_000);
    assert.equal(a.rig.path.sessions.size + b.rig.path.sessions.size, 2);
    const before = clock.now();
    clock.advance(2000);
    assert.equal(a.rig.path.sessions.size + b.rig.path.sessions.size, 0);
    assert.deepEqual(since(a, before, "initiation", "data", "keepalive"), []);
    clock.advance(600_000);
    assert.equal(clock.pending, 0, "nothing is armed for a pair that rests");
  });

  it("is not used for what arrives after 180 s, however authentic", async () => {
    await using pair = new VirtualPair();
    const { a, b, clock } = pair;
    pair.connect();
    let held: Uint8Array | undefined;
    a.loses = ({ kind, bytes }) => {
      if (kind === "data") held = bytes;
      return true;
    };
    a.send("late");
    clock.advance(180_000);
    b.arrive(held!, a.host);
    assert.equal(b.received.includes("late"), false);
    const dropped = b.rig.counter("drop-expired") + b.rig.counter("drop-unknown-index");
    assert.equal(dropped, 1);
  });

  it("still decrypts what is under way when the next one is in use", async () => {
    await using pair = new VirtualPair();
    const { a, b, clock } = pair;
    pair.connect();
    let held: Uint8Array | undefined;
    a.loses = ({ kind, bytes }) => {
      if (kind !== "data") return false;
      held = bytes;
      return true;
    };
    a.send("held");
    a.loses = () => false;
    a.renewWith(b);
    clock.advance(100);
    a.send("new session");
    clock.advance(100);
    assert.equal(a.count("established"), 2);
    b.arrive(held!, a.host);
    assert.deepEqual(b.received, ["hello", "new session", "held"]);
  });

  it("is not sent with by the responder before the initiator's first packet on it", async () => {
    await using pair = new VirtualPair();
    const { a, b, clock } = pair;
    // The initiator's first packets are lost: the responder has the session, unconfirmed.
    a.loses = ({ kind }) => kind === "data" || kind === "keepalive";
    a.send("lost");
    clock.advance(100);
    assert.equal(b.rig.path.sessions.size, 1);
    b.send("waits");
    clock.advance(1000);
    assert.deepEqual(since(b, 0, "data"), []);
    a.loses = () => false;
    a.send("heard");
    clock.advance(100);
    assert.deepEqual(b.received, ["heard"]);
    assert.deepEqual(a.received, ["waits"]);
  });

  it("is renewed after its number of packets, and refused above the last one", async () => {
    await using pair = new VirtualPair({ limits: { rekeyAfterMessages: 100, rejectAfterMessages: 200 } });
    const { a, b, clock } = pair;
    pair.connect();
    // The first hundred packets come after the 5 s between handshakes.
    clock.advance(6000);
    for (let i = 0; i < 99; i++) a.send(`${i}`);
    clock.advance(100);
    assert.equal(since(a, 1001, "initiation").length, 0);
    a.loses = ({ kind }) => kind === "initiation";
    for (let i = 99; i < 250; i++) a.send(`${i}`);
    clock.advance(100);
    assert.equal(since(a, 1001, "initiation").length, 1);
    assert.equal(since(a, 0, "data").length, 200, "not one more with this session");
    a.loses = () => false;
    clock.advance(6000);
    assert.equal(a.count("established"), 2);
    assert.deepEqual(
      b.received,
      ["hello", ...Array.from({ length: 250 }, (_, i) => `${i}`)],
      "what waited left in order",
    );
  });

  it("is found by both when both begin at the same instant", async () => {
    await using pair = new VirtualPair();
    const { a, b, clock } = pair;
    a.send("from a");
    b.send("from b");
    clock.advance(1000);
    assert.deepEqual(a.received, ["from b"]);
    assert.deepEqual(b.received, ["from a"]);
    const receiver = ({ bytes }: OnWire): number => new DataView(bytes.buffer, bytes.byteOffset).getUint32(4, true);
    a.send("again");
    b.send("again");
    clock.advance(1000);
    const [lastA, lastB] = [since(a, 0, "data").at(-1)!, since(b, 0, "data").at(-1)!];
    const used = [a.rig.path.sessions.find(receiver(lastB)), b.rig.path.sessions.find(receiver(lastA))];
    assert.equal(used[0]!.localIndex, used[1]!.remoteIndex, "the same one");
    clock.advance(60_000);
    assert.equal(since(a, 2000, "initiation").length + since(b, 2000, "initiation").length, 0);
  });

  it("loses nothing in four hours of traffic both ways", async () => {
    await using pair = new VirtualPair();
    const { a, b, clock } = pair;
    const every = 7000;
    const numbers = Array.from({ length: (4 * 3_600_000) / every }, (_, i) => i);
    for (const i of numbers) {
      a.send(`a${i}`);
      b.send(`b${i}`);
      clock.advance(every);
    }
    assert.deepEqual(
      b.received,
      numbers.map((i) => `a${i}`),
    );
    assert.deepEqual(
      a.received,
      numbers.map((i) => `b${i}`),
    );
    // The first packet after 120 s of a session renews it.
    const handshakes = since(a, 0, "initiation").length + since(b, 0, "initiation").length;
    assert.ok(Math.abs(handshakes - (numbers.length * every) / 126_000) < 4, `${handshakes} handshakes`);
    assert.equal(a.count("handshake-failed") + b.count("handshake-failed"), 0);
    assert.ok(a.rig.path.sessions.size <= 4 && b.rig.path.sessions.size <= 4);
  });
});

describe("a timer", () => {
  it("answers received data with a keepalive after 10 s, not after own sending", async () => {
    await using pair = new VirtualPair();
    const { a, b, clock } = pair;
    pair.connect();
    const received = 1000 + 30;
    clock.advance(30_000);
    const [answer, ...more] = since(b, 0, "keepalive");
    about(answer!.at, received + 10_000, SLOT);
    assert.deepEqual(more, []);
    const again = clock.now();
    a.send("asks");
    clock.advance(100);
    b.send("answers");
    clock.advance(9000);
    assert.deepEqual(since(b, again, "keepalive"), []);
  });

  it("begins a handshake when data went unanswered for 15 s, which repeats every 5 s, and gives up after 90 s", async () => {
    await using pair = new VirtualPair();
    const { a, b, clock } = pair;
    pair.connect();
    clock.advance(20_000);
    b.loses = () => true;
    const sent = clock.now();
    a.send("into the void");
    clock.advance(130_000);
    const initiations = since(a, sent, "initiation");
    about(initiations[0]!.at - sent, 15_000, JITTER + SLOT);
    for (let i = 1; i < initiations.length; i++)
      about(initiations[i]!.at - initiations[i - 1]!.at, 5000, JITTER + SLOT);
    assert.equal(a.count("handshake-failed"), 1);
    const failed = a.events.find(({ name }) => name === "handshake-failed")!;
    about(failed.at - initiations[0]!.at, 90_000, SLOT);
    const quiet = clock.now();
    clock.advance(600_000);
    assert.deepEqual(since(a, quiet, "initiation"), [], "and it stays given up");
    // What waits from now on asks again.
    b.loses = () => false;
    a.send("once more");
    clock.advance(1000);
    assert.equal(b.received.at(-1), "once more");
  });

  it("drops what was staged when the handshake is given up, and tells how much", async () => {
    await using pair = new VirtualPair();
    const { a, b, clock } = pair;
    b.loses = () => true;
    a.send("never delivered");
    clock.advance(91_000);
    const failed = a.events.find(({ name }) => name === "handshake-failed")!;
    assert.ok((failed.payload as { droppedBytes: number }).droppedBytes > 0);
    b.loses = () => false;
    clock.advance(10_000);
    a.send("later");
    clock.advance(1000);
    assert.deepEqual(b.received, ["later"]);
    assert.equal(a.rig.counter("drop-staged-given-up"), 1);
  });

  it("sends persistent keepalives at once and at their interval, for hours, over every renewal", async () => {
    await using pair = new VirtualPair();
    const { a, b, clock } = pair;
    a.know(b, { persistentKeepalive: 25 });
    const begun = clock.now();
    clock.advance(50);
    assert.ok(a.count("established") === 1, "the first one is at once: it begins the session");
    clock.advance(3 * 3_600_000);
    const all = since(a, begun, "keepalive", "initiation", "response", "data");
    for (let i = 1; i < all.length; i++)
      assert.ok(all[i]!.at - all[i - 1]!.at <= 25_000 + SLOT, `${all[i]!.at - all[i - 1]!.at} ms of silence`);
    const keepalives = since(a, begun, "keepalive").length;
    assert.ok(keepalives >= (3 * 3600) / 26 && keepalives <= (3 * 3600) / 25 + 95, `${keepalives}`);
    a.know(b, { persistentKeepalive: 0 });
    clock.advance(200_000);
    const off = clock.now();
    clock.advance(600_000);
    assert.deepEqual(since(a, off, "keepalive", "initiation"), []);
    assert.equal(clock.pending, 0);
  });
});

describe("a path", () => {
  it("is hinted at by data from elsewhere, and by a handshake alone", async () => {
    await using pair = new VirtualPair();
    const { a, b, clock } = pair;
    pair.connect();
    a.host = 7;
    a.send("from elsewhere");
    clock.advance(100);
    assert.equal(b.received.at(-1), "from elsewhere");
    assert.equal(b.count("path-hint"), 1);
    const hint = b.events.findLast(({ name }) => name === "path-hint")!.payload as { source: unknown };
    assert.deepEqual(hint.source, { kind: "udp", endpoint: { address: "192.0.2.7", port: 51820 } });
    clock.advance(10_000);
    a.host = 8;
    a.loses = ({ kind }) => kind !== "initiation";
    a.renewWith(b);
    clock.advance(100);
    assert.equal(b.count("path-hint"), 2);
  });

  it("is not moved or hinted at by what is not authentic: forged, replayed or a cookie reply", async () => {
    await using pair = new VirtualPair();
    const { a, b, clock } = pair;
    pair.connect();
    const datagrams = a.sent.map(({ bytes }) => bytes);
    const forged = datagrams.map((bytes) => {
      const copy = bytes.slice();
      copy[copy.length - 1]! ^= 1;
      return copy;
    });
    const cookie = new Uint8Array(64);
    cookie[0] = 3;
    for (const bytes of [...datagrams, ...forged, cookie]) b.arrive(bytes, 99);
    clock.advance(1000);
    assert.equal(b.count("path-hint"), 0);
    const before = a.received.length;
    b.send("still there");
    clock.advance(100);
    assert.equal(a.received.length, before + 1);
    assert.equal(b.rig.counter("drop-replay"), 1);
  });
});

describe("20,000 initiations with a wrong mac1", () => {
  it("are dropped by the worker, each counted, and of the data among them nothing is lost or comes late", async (t) => {
    await using pair = new VirtualPair();
    const { a, b, clock } = pair;
    pair.connect();
    const bogus = a.sent[0]!.bytes.slice();
    bogus[INITIATION.mac1]! ^= 1;
    const begun = performance.now();
    for (let i = 0; i < 200; i++) {
      for (let k = 0; k < 100; k++) b.rig.kernel.udpIn.push({ bytes: bogus, host: 66 });
      a.send(`${i}`);
      clock.advance(10);
      assert.equal(b.received.length, 2 + i, "in the turn in which it came");
    }
    t.diagnostic(`${((performance.now() - begun) / 20).toFixed(1)} us each, with this test's own guard`);
    assert.equal(b.rig.counter("drop-mac1"), 20_000);
    assert.equal(b.rig.counter("drop-handshake-queue"), 0);
    assert.deepEqual(since(b, 1100, "response", "cookie"), []);
  });
});
