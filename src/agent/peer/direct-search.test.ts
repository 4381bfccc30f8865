import assert from "node:assert/strict";
import { test } from "node:test";
import { parseEndpoint } from "#base/ip.ts";
import type { Millis } from "#base/time.ts";
import {
  type AwakeState,
  createPeerState,
  type DirectPath,
  nextDeadline,
  type PeerConnectionState,
  type PeerContext,
  type PeerEffect,
  type PeerEvent,
  step,
} from "./peer-state.ts";
import { createContext, createRemote, createStockRemote } from "./testing/peer-facts.ts";

const endpoint = parseEndpoint("192.0.2.7:51820");
const direct: DirectPath = { kind: "ice", endpoint, localKind: "host", remoteKind: "srflx", local: undefined, rtt: 40 };

/** A peer on the relay, connected; time moves from deadline to deadline. */
class Pair {
  state: PeerConnectionState = createPeerState("asleep");
  now = 1000;
  lastUserData: Millis = 0;
  context: Partial<PeerContext> = {};
  readonly ran: { readonly at: Millis; readonly effect: PeerEffect }[] = [];

  constructor(perch = true, context: Partial<PeerContext> = {}) {
    this.context = context;
    this.post({ kind: "wake", cause: "icmp", initiate: true });
    this.post({ kind: "answer", remote: perch ? createRemote() : createStockRemote() });
    this.post({ kind: "established", source: { kind: "relay" } });
  }

  post(event: PeerEvent): this {
    const context = createContext(this.now, { lastUserData: () => this.lastUserData, ...this.context });
    const { state, effects } = step(this.state, event, context);
    this.state = state;
    for (const effect of effects) this.ran.push({ at: this.now, effect });
    return this;
  }

  get awake(): AwakeState {
    assert.equal(this.state.kind, "awake");
    return this.state as AwakeState;
  }

  fail(): this {
    return this.post({ kind: "ice-lost", ice: this.awake.ice, reason: "no-answer", failed: true });
  }

  /** Runs for a while, with user traffic all the time or none; what was done, as [ms since the begin, kind]. */
  run(duration: Millis, traffic: boolean, answers = true): [Millis, PeerEffect["kind"]][] {
    const start = this.now;
    const from = this.ran.length;
    for (;;) {
      const at = nextDeadline(this.state);
      if (at === undefined || at > start + duration) break;
      this.now = Math.max(at, this.now);
      if (traffic) this.lastUserData = this.now;
      const before = this.ran.length;
      this.post({ kind: "tick" });
      if (this.ran.slice(before).some(({ effect }) => effect.kind === "initiate") && this.awake.relay) {
        this.post({ kind: "established", source: { kind: "relay" } });
      }
      if (answers && this.ran.slice(before).some(({ effect }) => effect.kind === "send-offer")) {
        this.post({ kind: "answer", remote: createRemote() });
        this.fail();
      }
    }
    this.now = start + duration;
    return this.ran.slice(from).map(({ at, effect }) => [at - start, effect.kind]);
  }
}

const count = (done: readonly [Millis, PeerEffect["kind"]][], kind: PeerEffect["kind"]): number =>
  done.filter(([, effect]) => effect === kind).length;

test("a direct way that was there is probed for within 2 s of its failed search, and every 5 s while traffic flows", () => {
  const pair = new Pair().post({ kind: "ice-selected", ice: 1, direct });
  pair.post({ kind: "ice-lost", ice: 1, reason: "suspicion-confirmed", failed: false });
  pair.post({ kind: "answer", remote: createRemote() }).fail();
  const probes = pair.run(28_000, true).filter(([, kind]) => kind === "probe-ice");
  assert.deepEqual(
    probes.map(([at]) => at),
    [2000, 5000, 9500, 14_500, 19_500, 24_500],
  );
});

test("a pair that never had a direct way is probed for after 10 s, then more rarely, in a day at most 24 times an hour", () => {
  const pair = new Pair().fail();
  const probes = pair.run(24 * 3_600_000, true).filter(([, kind]) => kind === "probe-ice");
  assert.ok(probes[0]![0] >= 10_000);
  assert.ok(probes.length <= 24 * 24, `${probes.length} probes in a day`);
});

test("without user traffic nothing is sent, however long: no probe, no offer", () => {
  const pair = new Pair().fail();
  assert.deepEqual(pair.run(24 * 3_600_000, false), []);
});

test("traffic after a long quiet time is noticed within half a minute", () => {
  const pair = new Pair().post({ kind: "ice-selected", ice: 1, direct });
  pair.post({ kind: "ice-lost", ice: 1, reason: "consent-expired", failed: false });
  pair.post({ kind: "answer", remote: createRemote() }).fail();
  pair.run(3_600_000, false);
  const first = pair.run(40_000, true).find(([, kind]) => kind === "probe-ice" || kind === "send-offer");
  assert.ok(first && first[0] <= 30_000, `${first}`);
});

test("with user traffic a whole search follows after 30 s, 2 min, 8 min, and at most hourly in the end", () => {
  const pair = new Pair().fail();
  const offers = pair.run(24 * 3_600_000, true).filter(([, kind]) => kind === "send-offer");
  assert.ok(offers[0]![0] >= 30_000 && offers[0]![0] <= 60_000, `${offers[0]}`);
  assert.ok(offers.length <= 30, `${offers.length} offers in a day`);
});

test("where no way carries the search is repeated after 3 s, traffic or not", () => {
  const pair = new Pair(true, { relayUp: false }).post({ kind: "relay", up: false }).fail();
  const offers = pair.run(3500, false, false).filter(([, kind]) => kind === "send-offer");
  assert.equal(offers.length, 1);
});

test("a stock remote, whose agent is gone, is not probed", () => {
  const pair = new Pair(false).fail();
  assert.equal(count(pair.run(29_000, true), "probe-ice"), 0);
});

test("evidence from our side begins a new search at once, but only where none is under way and no direct way is used", () => {
  const again: PeerEvent = { kind: "search-again", reason: "UDP gets through again" };
  const resting = new Pair().fail();
  const { id } = resting.awake.local;
  resting.ran.length = 0;
  resting.post(again);
  const kinds = resting.ran.map(({ effect }) => effect.kind);
  assert.deepEqual(kinds, ["note", "open-ice", "send-offer"]);
  assert.notEqual(resting.awake.local.id, id);
  for (const pair of [new Pair(), new Pair().post({ kind: "ice-selected", ice: 1, direct })]) {
    pair.ran.length = 0;
    pair.post(again);
    assert.deepEqual(pair.ran, []);
  }
});

test("a packet of the remote that comes directly, while we take the relay, has the place it came from probed", () => {
  const pair = new Pair().fail();
  pair.ran.length = 0;
  pair.post({ kind: "path-hint", source: { kind: "udp", endpoint } });
  assert.deepEqual(
    pair.ran.map(({ effect }) => effect),
    [{ kind: "probe-ice", heardFrom: endpoint }],
  );
});

test("a search that is put off gives the agent the remote's half to keep, and says so", () => {
  const until = 1000 + 20 * 60_000;
  const pair = new Pair(true, { holdOf: () => ({ failures: 4, until }) });
  const checks = pair.ran.map(({ effect }) => effect).filter((effect) => effect.kind === "check-ice");
  assert.deepEqual(
    checks.map(({ quiet }) => quiet),
    [true],
  );
  const note = pair.ran
    .map(({ effect }) => effect)
    .find((effect) => effect.kind === "note" && effect.event === "direct-held");
  assert.match(note?.kind === "note" ? note.detail : "", /failed 4 times .* 20 min/);
  pair.context = {};
  const offers = pair.run(25 * 60_000, true).filter(([, kind]) => kind === "send-offer");
  assert.ok(offers[0] && offers[0][0] >= 19 * 60_000, "searched when the time has come and there is traffic");
});

test("a way that is found ends the rest, whoever found it", () => {
  const pair = new Pair().fail();
  pair.post({ kind: "ice-selected", ice: pair.awake.ice, direct });
  assert.equal(pair.awake.rest, undefined);
  assert.equal(count(pair.run(3_600_000, true), "probe-ice"), 0);
});

test("another local address has a path in use checked, and nothing restarted", () => {
  const pair = new Pair().post({ kind: "ice-selected", ice: 1, direct });
  const before = pair.awake;
  pair.ran.length = 0;
  pair.post({ kind: "check-path" }).post({ kind: "search-again", reason: "this machine has another address" });
  assert.deepEqual(
    pair.ran.map(({ effect }) => effect.kind),
    ["suspect-ice"],
  );
  assert.deepEqual(pair.awake, before);
});
