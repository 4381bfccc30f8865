import assert from "node:assert/strict";
import { describe, it } from "node:test";
import fc from "fast-check";
import { parseEndpoint } from "#base/ip.ts";
import { PresharedKey, PrivateKey, PublicKey } from "#base/keys.ts";
import { ManualClock } from "#base/time.ts";
import { macWithState } from "./blake2s.ts";
import {
  COOKIE_REFRESH_TIME,
  type HandshakeTiming,
  REKEY_ATTEMPT_TIME,
  REKEY_TIMEOUT,
  ZERO_KEYS_TIME,
} from "./constants.ts";
import { createInitiation, type SessionKeys } from "./handshake.ts";
import type { HandshakeAction, HandshakeCounter, HandshakeSource } from "./handshake-action.ts";
import { HandshakeManager, type HandshakePeer } from "./handshake-manager.ts";
import { LocalIdentity, RemoteIdentity } from "./identity.ts";
import { INITIATION, RESPONSE, writeU32 } from "./messages.ts";
import { encodeTai64n } from "./tai64n.ts";
import { generateEphemeral } from "./x25519.ts";

const HERE: HandshakeSource = { kind: "udp", endpoint: parseEndpoint("192.0.2.1:51820") };
const THERE: HandshakeSource = { kind: "udp", endpoint: parseEndpoint("192.0.2.2:51820") };
const PSK = PresharedKey.parse(Buffer.alloc(32, 9).toString("base64"));

type ActionOf<Kind extends HandshakeAction["kind"]> = Extract<HandshakeAction, { kind: Kind }>;

function only<Kind extends HandshakeAction["kind"]>(actions: readonly HandshakeAction[], kind: Kind): ActionOf<Kind> {
  const found = actions.filter((action): action is ActionOf<Kind> => action.kind === kind);
  assert.equal(found.length, 1, `one ${kind} among ${actions.map((action) => action.kind)}`);
  return found[0]!;
}

const kinds = (actions: readonly HandshakeAction[]): string[] => actions.map((action) => action.kind);
const same = (a: Uint8Array, b: Uint8Array): boolean => Buffer.compare(a, b) === 0;

/** The peers that a manager may handshake with. */
class Peers {
  readonly #rows: { slot: number; key: PublicKey; presharedKey: PresharedKey | undefined }[] = [];

  put(slot: number, key: PublicKey, presharedKey?: PresharedKey): void {
    this.#rows[slot] = { slot, key, presharedKey };
  }

  setPresharedKey(slot: number, presharedKey: PresharedKey): void {
    this.#rows[slot]!.presharedKey = presharedKey;
  }

  remove(slot: number): void {
    delete this.#rows[slot];
  }

  get(key: PublicKey): HandshakePeer | undefined {
    return this.#rows.find((row) => row?.key === key);
  }

  at(slot: number): HandshakePeer | undefined {
    return this.#rows[slot];
  }
}

/** Two managers that know each other as slot 1, and a clock. */
function pair(options: { psk?: [PresharedKey?, PresharedKey?]; timing?: Partial<HandshakeTiming> } = {}) {
  const clock = new ManualClock(1000);
  const keys = [PrivateKey.generate(), PrivateKey.generate()] as const;
  const peers = [new Peers(), new Peers()] as const;
  const make = (which: 0 | 1): HandshakeManager => {
    peers[which].put(1, keys[1 - which]!.publicKey, options.psk?.[which]);
    const deps = { peers: peers[which], wall: () => clock.wall(), random: () => 0.5 };
    return new HandshakeManager(deps, keys[which], options.timing);
  };
  const a = make(0);
  const b = make(1);
  const count = (manager: HandshakeManager, name: HandshakeCounter): number => manager.counters().get(name)!;
  const atA = (message: Uint8Array, busy = false, source = THERE) => a.receive(message, source, clock.now(), busy);
  const atB = (message: Uint8Array, busy = false, source = HERE) => b.receive(message, source, clock.now(), busy);
  return { clock, keys, peers, a, b, count, atA, atB };
}

const mirrored = (one: SessionKeys, other: SessionKeys): boolean =>
  same(one.sendKey, other.receiveKey) && same(one.receiveKey, other.sendKey) && one.localIndex === other.remoteIndex;

/** An initiation from A's key to B with a timestamp of choice, past A's manager. */
function forge(keys: readonly [PrivateKey, PrivateKey], seconds: number, nanos = 0): Uint8Array {
  const local = new LocalIdentity(keys[0]);
  const remote = RemoteIdentity.create(local, new LocalIdentity(keys[1]).publicBytes)!;
  return createInitiation(local, remote, {
    ephemeral: generateEphemeral(),
    localIndex: 77,
    timestamp: encodeTai64n(seconds, nanos),
  })!.message;
}

describe("a handshake between two managers", () => {
  for (const psk of [undefined, PSK]) {
    it(`gives both the same session ${psk ? "with" : "without"} a preshared key`, () => {
      const { a, clock, atA, atB } = pair(psk ? { psk: [psk, psk] } : {});
      const { message } = only(a.want(1, clock.now()), "send-initiation");
      clock.advance(20);
      const answer = atB(message);
      assert.deepEqual(kinds(answer), ["initiation-accepted", "session", "send-reply"], "keys before the response");
      assert.deepEqual(only(answer, "send-reply").to, HERE, "back the way it came");
      clock.advance(20);
      const end = atA(only(answer, "send-reply").message);
      assert.ok(mirrored(only(end, "session").keys, only(answer, "session").keys));
      const { rtt, source } = only(end, "completed");
      assert.equal(rtt, 40);
      assert.deepEqual(source, THERE);
      assert.equal(a.isInFlight(1), false);
    });
  }

  it("fails when only one side has the preshared key, or another one", () => {
    const other = PresharedKey.parse(Buffer.alloc(32, 8).toString("base64"));
    for (const psk of [
      [PSK, undefined],
      [undefined, PSK],
      [PSK, other],
    ] as [PresharedKey?, PresharedKey?][]) {
      const { a, clock, atA, atB, count } = pair({ psk });
      const answer = atB(only(a.want(1, clock.now()), "send-initiation").message);
      assert.deepEqual(atA(only(answer, "send-reply").message), []);
      assert.equal(count(a, "drop-handshake-authentication"), 1);
    }
  });

  it("takes a new preshared key from the next handshake on", () => {
    const { a, clock, peers, atA, atB } = pair();
    atA(only(atB(only(a.want(1, clock.now()), "send-initiation").message), "send-reply").message);
    for (const known of peers) known.setPresharedKey(1, PSK);
    clock.advance(REKEY_TIMEOUT);
    const answer = atB(only(a.want(1, clock.now()), "send-initiation").message);
    assert.equal(atA(only(answer, "send-reply").message).length, 2);
  });

  it("goes over a relay, and a message whose sender is not whom the relay named is dropped", () => {
    const { a, b, clock, atA, atB, count } = pair();
    const { message } = only(a.want(1, clock.now()), "send-initiation");
    assert.deepEqual(atB(message, false, { kind: "relay", slot: 2 }), []);
    assert.equal(count(b, "drop-handshake-relay-mismatch"), 1);
    const answer = atB(message, false, { kind: "relay", slot: 1 });
    assert.deepEqual(only(answer, "send-reply").to, { kind: "relay", slot: 1 });
    const response = only(answer, "send-reply").message;
    assert.deepEqual(atA(response, false, { kind: "relay", slot: 3 }), []);
    assert.equal(atA(response, false, { kind: "relay", slot: 1 }).length, 2);
  });

  it("completes both ways when both sides start at the same instant", () => {
    const { a, b, clock, atA, atB } = pair();
    const fromA = only(a.want(1, clock.now()), "send-initiation").message;
    const fromB = only(b.want(1, clock.now()), "send-initiation").message;
    clock.advance(10);
    const answerB = atB(fromA);
    const answerA = atA(fromB);
    clock.advance(10);
    const endA = atA(only(answerB, "send-reply").message);
    const endB = atB(only(answerA, "send-reply").message);
    assert.ok(mirrored(only(endA, "session").keys, only(answerB, "session").keys));
    assert.ok(mirrored(only(endB, "session").keys, only(answerA, "session").keys));
    clock.advance(10_000);
    assert.deepEqual([...a.tick(clock.now()), ...b.tick(clock.now())], [], "nothing is repeated");
  });

  it("accepts a response once, and not one to an initiation that was replaced", () => {
    const { a, b, clock, atA, atB, count } = pair();
    const first = only(a.initiate(1, clock.now()), "send-initiation").message;
    const answerToFirst = only(atB(first), "send-reply").message;
    clock.advance(60);
    const second = only(a.initiate(1, clock.now()), "send-initiation").message;
    assert.ok(!same(first, second));
    assert.deepEqual(atA(answerToFirst), []);
    assert.equal(count(a, "drop-handshake-no-state"), 1);
    const answer = only(atB(second), "send-reply").message;
    assert.equal(atA(answer).length, 2);
    assert.deepEqual(atA(answer), []);
    assert.equal(b.contacts, 1);
  });

  it("keeps an initiation good after a forged response to it", () => {
    const { a, clock, atA, atB } = pair();
    const answer = only(atB(only(a.want(1, clock.now()), "send-initiation").message), "send-reply").message;
    const forged = answer.slice();
    forged[RESPONSE.empty]! ^= 1;
    assert.deepEqual(atA(forged), [], "mac1 is wrong too");
    assert.equal(atA(answer).length, 2);
  });
});

describe("what is asked for", () => {
  it("sends one initiation in 5 s however often the data path asks", () => {
    const { a, clock } = pair();
    let sent = 0;
    for (let i = 0; i < 50; i++) {
      sent += a.want(1, clock.now()).length;
      clock.advance(99);
    }
    assert.equal(sent, 1);
  });

  it("holds the 5 s from a response too", () => {
    const { a, b, clock, atB } = pair();
    atB(only(a.want(1, clock.now()), "send-initiation").message);
    assert.deepEqual(b.want(1, clock.now()), []);
    clock.advance(REKEY_TIMEOUT);
    assert.equal(b.want(1, clock.now()).length, 1);
  });

  it("does not hold the 5 s over a sleep", () => {
    const { a, clock } = pair();
    assert.equal(a.want(1, clock.now()).length, 1);
    a.rest(1);
    assert.equal(a.indicesInUse, 0);
    clock.advance(30);
    assert.equal(a.want(1, clock.now()).length, 1);
    assert.deepEqual(a.want(1, clock.now()), []);
  });

  it("sends at once when told to, and the same bytes again within 50 ms", () => {
    const { a, clock, atA, atB } = pair();
    const first = only(a.initiate(1, clock.now()), "send-initiation");
    clock.advance(30);
    const again = only(a.initiate(1, clock.now()), "send-initiation");
    assert.equal(again.repeated, true);
    assert.ok(same(first.message, again.message));
    clock.advance(30);
    const next = only(a.initiate(1, clock.now()), "send-initiation");
    assert.equal(next.repeated, false);
    const end = atA(only(atB(next.message), "send-reply").message);
    assert.equal(only(end, "completed").rtt, 0);
    clock.advance(30);
    const repeated = only(a.initiate(1, clock.now()), "send-initiation");
    assert.equal(repeated.repeated, false, "nothing was in flight");
    a.initiate(1, clock.now());
    const later = atA(only(atB(repeated.message), "send-reply").message);
    assert.equal(only(later, "completed").rtt, undefined, "which of the two was answered is not known");
  });

  it("sends the next one 25 ms after the last, or the responder would drop it", () => {
    const { a, clock, atA, atB } = pair();
    atA(only(atB(only(a.initiate(1, clock.now()), "send-initiation").message), "send-reply").message);
    clock.advance(5);
    only(a.initiate(1, clock.now()), "initiation-delayed");
    only(a.initiate(1, clock.now()), "initiation-delayed");
    assert.deepEqual(a.want(1, clock.now()), []);
    assert.equal(a.isInFlight(1), true);
    clock.advance(a.nextDeadline()! - clock.now());
    const { message } = only(a.tick(clock.now()), "send-initiation");
    assert.equal(atA(only(atB(message), "send-reply").message).length, 2);
    a.initiate(1, clock.now());
    a.cancel(1);
    clock.advance(100);
    assert.deepEqual(a.tick(clock.now()), []);
    assert.equal(a.isInFlight(1), false);
  });

  it("sends the next one 20 ms after an answer that came late, for the responder may have been slow", () => {
    const { a, b, clock, atA, atB } = pair();
    const first = only(a.initiate(1, clock.now()), "send-initiation").message;
    clock.advance(60);
    atA(only(atB(first), "send-reply").message);
    only(a.initiate(1, clock.now()), "initiation-delayed");
    clock.advance(a.nextDeadline()! - clock.now());
    only(atB(only(a.tick(clock.now()), "send-initiation").message), "send-reply");
    assert.equal(b.counters().get("drop-handshake-flood") ?? 0, 0);
  });

  it("is nothing for an unknown slot or a degenerate key", () => {
    const { a, clock, peers } = pair();
    assert.deepEqual(a.initiate(9, clock.now()), []);
    peers[0].put(2, PublicKey.fromBytes(Buffer.alloc(32)));
    assert.deepEqual(a.initiate(2, clock.now()), []);
    assert.equal(a.contacts, 0);
    assert.equal(a.indicesInUse, 0);
  });
});

describe("an unanswered initiation", () => {
  it("is replaced every 5 s with jitter and given up after 90 s", () => {
    const { a, clock, count } = pair();
    const start = clock.now();
    only(a.want(1, start), "send-initiation");
    const times: number[] = [];
    const seen = new Set<string>();
    for (;;) {
      const next = a.nextDeadline()!;
      clock.advance(next - clock.now());
      const actions = a.tick(clock.now());
      if (actions.length === 0) continue; // looked for contacts to forget
      if (actions[0]!.kind === "gave-up") break;
      const { message } = only(actions, "send-initiation");
      assert.ok(!seen.has(Buffer.from(message).toString("hex")), "a new message each time");
      seen.add(Buffer.from(message).toString("hex"));
      times.push(clock.now() - start);
    }
    assert.equal(clock.now() - start, REKEY_ATTEMPT_TIME);
    assert.equal(times.length, 17);
    times.forEach((time, index) => {
      assert.ok(Math.abs(time - (index + 1) * 5166.5) < 1e-6);
    });
    assert.equal(count(a, "handshake-given-up"), 1);
    assert.equal(a.indicesInUse, 0);
    assert.equal(a.want(1, clock.now() + REKEY_TIMEOUT).length, 1, "and may be tried again");
  });

  it("is dropped once the peer's own handshake was confirmed", () => {
    const { a, b, clock, atA, atB } = pair();
    const mine = only(a.want(1, clock.now()), "send-initiation").message;
    const theirs = only(b.want(1, clock.now()), "send-initiation").message;
    only(atA(theirs), "send-reply");
    a.noteConfirmed(1);
    assert.equal(a.isInFlight(1), false);
    assert.deepEqual(atA(only(atB(mine), "send-reply").message), []);
    clock.advance(6000);
    assert.deepEqual(a.tick(clock.now()), []);
    assert.equal(a.indicesInUse, 1, "the responder's session");
  });

  it("is forgotten when cancelled", () => {
    const { a, clock, atA, atB, count } = pair();
    const { message } = only(a.want(1, clock.now()), "send-initiation");
    a.cancel(1);
    assert.equal(a.indicesInUse, 0);
    assert.deepEqual(atA(only(atB(message), "send-reply").message), []);
    assert.equal(count(a, "drop-handshake-no-state"), 1);
    clock.advance(6000);
    assert.deepEqual(a.tick(clock.now()), []);
  });
});

describe("initiations that are refused", () => {
  it("are replayed ones and ones with an older timestamp", () => {
    const { b, keys, clock, atB, count } = pair();
    const newer = forge(keys, 2_000_000_001);
    const older = forge(keys, 2_000_000_000);
    assert.equal(atB(newer).length, 3);
    clock.advance(21);
    assert.deepEqual(atB(newer), []);
    assert.deepEqual(atB(older), []);
    assert.equal(count(b, "drop-handshake-replay"), 2);
    assert.equal(atB(forge(keys, 2_000_000_001, 1)).length, 3);
  });

  it("are replayed ones even when everything else of the peer was forgotten", () => {
    const { b, keys, clock, atB, count } = pair();
    const message = forge(keys, 2_000_000_000);
    atB(message);
    clock.advance(ZERO_KEYS_TIME + 120_000);
    b.tick(clock.now());
    assert.equal(b.contacts, 0);
    assert.deepEqual(atB(message), []);
    assert.equal(count(b, "drop-handshake-replay"), 1);
    assert.equal(b.contacts, 0);
  });

  it("are more than fifty a second of one peer", () => {
    const { keys, clock, atB } = pair();
    let accepted = 0;
    for (let i = 0; i < 51; i++) {
      accepted += atB(forge(keys, 2_000_000_000, i)).length > 0 ? 1 : 0;
      clock.advance(1000 / 51);
    }
    assert.ok(accepted < 51 && accepted >= 25, `${accepted} of 51`);
    clock.advance(20);
    assert.equal(atB(forge(keys, 2_000_000_001)).length, 3);
  });

  it("are those of strangers, of ourselves, of a removed peer, and those meant for others", () => {
    const { a, b, keys, peers, clock, atA, atB, count } = pair();
    const stranger = PrivateKey.generate();
    assert.deepEqual(atB(forge([stranger, keys[1]], 2_000_000_000)), []);
    assert.equal(count(b, "drop-handshake-unknown-peer"), 1);
    assert.deepEqual(atB(forge([keys[1], keys[1]], 2_000_000_000)), []);
    assert.equal(count(b, "drop-handshake-own-key"), 1);
    const { message } = only(a.want(1, clock.now()), "send-initiation");
    assert.deepEqual(atA(message), []);
    assert.equal(count(a, "drop-handshake-mac1"), 1);
    b.removePeer(1);
    peers[1].remove(1);
    assert.deepEqual(atB(message), []);
    assert.equal(count(b, "drop-handshake-unknown-peer"), 2);
    assert.equal(b.contacts, 0);
  });

  it("leave no running state of theirs unwiped, whatever they are refused for", () => {
    const { a, b, keys, clock, atB } = pair();
    // The class is not exported: what any handshake has is of it.
    const local = new LocalIdentity(keys[0]);
    const remote = RemoteIdentity.create(local, b.local.publicBytes)!;
    const timestamp = encodeTai64n(1, 0);
    const sent = createInitiation(local, remote, { ephemeral: generateEphemeral(), localIndex: 1, timestamp })!;
    const prototype = Object.getPrototypeOf(sent.transcript) as { wipe(): void };
    const { wipe } = prototype;
    const wiped = new Set<unknown>();
    prototype.wipe = function (this: unknown): void {
      wiped.add(this);
      wipe.call(this);
    };
    const wipes = (receive: () => unknown): number => {
      const before = wiped.size;
      receive();
      return wiped.size - before;
    };
    try {
      const stranger = PrivateKey.generate();
      assert.equal(
        wipes(() => atB(forge([stranger, keys[1]], 2_000_000_000))),
        1,
        "stranger",
      );
      assert.equal(
        wipes(() => atB(forge([keys[1], keys[1]], 2_000_000_000))),
        1,
        "ourselves",
      );
      const mismatch = { kind: "relay", slot: 2 } as const;
      assert.equal(
        wipes(() => atB(forge(keys, 2_000_000_000), false, mismatch)),
        1,
        "relay of another",
      );
      assert.equal(
        wipes(() => atB(forge(keys, 2_000_000_000))),
        2,
        "accepted: both halves are used up",
      );
      assert.equal(
        wipes(() => atB(forge(keys, 2_000_000_001))),
        1,
        "flood",
      );
      clock.advance(1000);
      assert.equal(
        wipes(() => atB(forge(keys, 1_999_999_999))),
        2,
        "replay",
      );
      assert.equal(
        wipes(() => a.initiate(1, clock.now())),
        0,
      );
      assert.equal(
        wipes(() => a.removePeer(1)),
        1,
        "our own initiation",
      );
    } finally {
      prototype.wipe = wipe;
    }
  });

  it("are ones that only name the peer's public key, and they leave nothing behind", () => {
    const { b, keys, atB, count } = pair();
    const message = forge(keys, 2_000_000_000);
    // What an attacker can make who knows both public keys: a good first half, and a second half he has no key for.
    message[INITIATION.timestamp]! ^= 1;
    const remote = RemoteIdentity.create(new LocalIdentity(keys[0]), b.local.publicBytes)!;
    message.set(remac(remote, message), INITIATION.mac1);
    assert.deepEqual(atB(message), []);
    assert.equal(count(b, "drop-handshake-authentication"), 1);
    assert.equal(b.contacts, 0);
    assert.equal(b.nextDeadline(), undefined);
  });
});

describe("under load", () => {
  it("asks for mac2, accepts it, and lets the initiator's next attempt through with the cookie", () => {
    const { a, b, clock, atA, atB, count } = pair();
    const first = only(a.want(1, clock.now()), "send-initiation").message;
    const refused = atB(first, true);
    assert.deepEqual(kinds(refused), ["send-reply"]);
    const reply = only(refused, "send-reply");
    assert.equal(reply.slot, undefined);
    assert.equal(reply.message.length, 64);
    assert.ok(reply.message.length < first.length, "no amplification");
    assert.deepEqual(atA(reply.message), [], "a cookie is not answered at once");
    assert.equal(count(a, "cookie-replies-taken"), 1);
    clock.advance(a.nextDeadline()! - clock.now());
    const second = only(a.tick(clock.now()), "send-initiation").message;
    assert.ok(second.subarray(INITIATION.mac2).some((byte) => byte !== 0));
    assert.deepEqual(kinds(atB(second, true, THERE)), ["send-reply"], "the cookie is for another address");
    assert.equal(atB(second, true).length, 3);
    assert.equal(count(b, "cookie-replies-sent"), 2);
  });

  it("stays for a second after the last sign of it, then mac2 is not looked at", () => {
    const { a, keys, clock, atB } = pair();
    atB(only(a.want(1, clock.now()), "send-initiation").message, true);
    clock.advance(999);
    assert.deepEqual(kinds(atB(only(a.initiate(1, clock.now()), "send-initiation").message)), ["send-reply"]);
    clock.advance(1);
    const next = forge(keys, 2_000_000_000);
    next.fill(7, INITIATION.mac2);
    assert.equal(atB(next).length, 3);
  });

  it("does not take a cookie of two minutes ago", () => {
    const { a, clock, atA, atB } = pair();
    atA(only(atB(only(a.want(1, clock.now()), "send-initiation").message, true), "send-reply").message);
    clock.advance(COOKIE_REFRESH_TIME);
    const late = only(a.initiate(1, clock.now()), "send-initiation").message;
    assert.deepEqual([...late.subarray(INITIATION.mac2)], Array(16).fill(0));
    assert.deepEqual(kinds(atB(late, true)), ["send-reply"]);
  });

  it("limits one address to a burst of 5, even with a good mac2", () => {
    const { a, b, clock, atA, atB, count } = pair();
    atA(only(atB(only(a.want(1, clock.now()), "send-initiation").message, true), "send-reply").message);
    clock.advance(100);
    const { message } = only(a.initiate(1, clock.now()), "send-initiation");
    assert.equal(atB(message, true).length, 3);
    for (let i = 0; i < 19; i++) assert.deepEqual(atB(message, true), []);
    assert.equal(count(b, "drop-handshake-flood"), 4, "let through, and dropped as a repetition");
    assert.equal(count(b, "drop-handshake-rate-limit"), 15);
  });

  it("refuses cookie replies that belong to nothing", () => {
    const { a, clock, atA, count } = pair();
    const reply = new Uint8Array(64);
    reply[0] = 3;
    atA(reply);
    const { message } = only(a.want(1, clock.now()), "send-initiation");
    reply.set(message.subarray(4, 8), 4);
    atA(reply);
    assert.equal(count(a, "drop-cookie-reply"), 2);
  });
});

describe("what peers cost", () => {
  it("is given back nine minutes after the last handshake", () => {
    const { a, b, clock, atA, atB } = pair();
    const answer = atB(only(a.want(1, clock.now()), "send-initiation").message);
    const end = atA(only(answer, "send-reply").message);
    a.noteSessionEnded(only(end, "session").keys.localIndex);
    b.noteSessionEnded(only(answer, "session").keys.localIndex);
    const until = clock.now() + ZERO_KEYS_TIME;
    while (clock.now() < until + 60_000) {
      clock.advance(10_000);
      if (clock.now() < until) assert.equal(a.contacts, 1);
      assert.deepEqual([...a.tick(clock.now()), ...b.tick(clock.now())], []);
    }
    for (const manager of [a, b]) {
      assert.equal(manager.contacts, 0);
      assert.equal(manager.indicesInUse, 0);
      assert.equal(manager.nextDeadline(), undefined);
    }
  });

  it("is given back at once when the peer is removed, and its slot may have a new owner", () => {
    const { a, clock, peers, atA, atB, count } = pair();
    const { message } = only(a.want(1, clock.now()), "send-initiation");
    a.removePeer(1);
    assert.equal(a.indicesInUse, 0);
    assert.equal(a.nextDeadline(), undefined);
    peers[0].put(1, PrivateKey.generate().publicKey);
    assert.deepEqual(atA(only(atB(message), "send-reply").message), []);
    assert.equal(count(a, "drop-handshake-no-state"), 1);
  });
});

describe("bytes from anywhere", () => {
  const messages = (() => {
    const { a, clock, atB } = pair();
    const initiation = only(a.want(1, clock.now()), "send-initiation").message;
    const response = only(atB(initiation), "send-reply").message;
    clock.advance(100);
    const cookie = only(atB(only(a.initiate(1, clock.now()), "send-initiation").message, true), "send-reply").message;
    return { initiation, response, cookie };
  })();

  it("of every length short of a message are dropped", () => {
    const { a, clock } = pair();
    for (const message of Object.values(messages)) {
      for (let length = 0; length < message.length; length++)
        assert.deepEqual(a.receive(message.slice(0, length), THERE, clock.now(), length % 2 === 0), []);
      assert.deepEqual(a.receive(Buffer.concat([message, Buffer.alloc(1)]), THERE, clock.now(), false), []);
    }
    assert.deepEqual(a.receive(new Uint8Array(65_507), THERE, clock.now(), true), []);
  });

  it("with any byte of an initiation flipped give no session", () => {
    for (let at = 0; at < INITIATION.mac2; at++) {
      const { keys, atB } = pair();
      const message = forge(keys, 2_000_000_000);
      message[at]! ^= 1 << (at % 8);
      assert.deepEqual(atB(message), [], `byte ${at}`);
    }
  });

  it("with any byte of a response flipped give no session", () => {
    const { a, clock, atA, atB } = pair();
    const response = only(atB(only(a.want(1, clock.now()), "send-initiation").message), "send-reply").message;
    for (let at = 0; at < RESPONSE.mac2; at++) {
      const wrong = response.slice();
      wrong[at]! ^= 1 << (at % 8);
      assert.deepEqual(atA(wrong), [], `byte ${at}`);
    }
    assert.equal(atA(response).length, 2);
  });

  it("at random never throw and never authenticate", () => {
    const { a, clock } = pair();
    only(a.want(1, clock.now()), "send-initiation");
    fc.assert(
      fc.property(
        fc.constantFrom([1, 148], [2, 92], [3, 64], [4, 32], [0, 0]),
        fc.uint8Array({ minLength: 148, maxLength: 148 }),
        fc.boolean(),
        ([type, length], noise, isBusy) => {
          const message = noise.slice(0, length);
          if (length! >= 4) writeU32(message, 0, type!);
          for (const action of a.receive(message, THERE, clock.now(), isBusy)) assert.equal(action.kind, "send-reply");
        },
      ),
      { numRuns: 2000 },
    );
  });

  it("with a good mac1 and noise inside are dropped after one exchange", () => {
    const { a, b, atB, count } = pair();
    const remote = RemoteIdentity.create(a.local, b.local.publicBytes)!;
    for (let i = 0; i < 200; i++) {
      const message = new Uint8Array(148);
      crypto.getRandomValues(message);
      writeU32(message, 0, 1);
      message.set(remac(remote, message), INITIATION.mac1);
      assert.deepEqual(atB(message), []);
    }
    assert.equal(count(b, "drop-handshake-authentication"), 200);
  });
});

/** A valid mac1 for a changed message: anybody can make one who knows the responder's public key. */
function remac(remote: RemoteIdentity, message: Uint8Array): Uint8Array {
  return macWithState(remote.mac1Key, message, INITIATION.mac1);
}
