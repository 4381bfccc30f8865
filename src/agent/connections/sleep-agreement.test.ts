import assert from "node:assert/strict";
import { describe, test } from "node:test";
import fc from "fast-check";
import type { SleepMessage } from "#signal/protocol/sleep-message.ts";
import {
  comeDue,
  PROPOSAL_PAUSES,
  propose,
  QUIET_MIN,
  receive,
  SILENT,
  type SleepEffect,
  type SleepFacts,
  type SleepStep,
  type SleepTalk,
} from "./sleep-agreement.ts";

const THRESHOLD = 60_000;
const NOW = 1_000_000;

function facts(overrides: Partial<SleepFacts> = {}): SleepFacts {
  return {
    now: NOW,
    awake: true,
    lazy: true,
    threshold: THRESHOLD,
    lastActivity: NOW - THRESHOLD,
    lastSent: 0,
    lastReceived: 0,
    waiting: false,
    lastProven: 0,
    lastOffered: 0,
    ...overrides,
  };
}

const noEpoch = (): number => assert.fail("no new proposal is needed");
const kinds = (effects: readonly SleepEffect[]): string[] => effects.map(({ kind }) => kind);
const said = (effects: readonly SleepEffect[]): SleepMessage[] =>
  effects.flatMap((effect) => (effect.kind === "say" ? [effect.message] : []));
const proposed = (epoch = 7, idle = THRESHOLD): SleepTalk => propose("no traffic for 1 min", idle, epoch, facts()).talk;

describe("who is asked", () => {
  const ask = (idle: number, overrides: Partial<SleepFacts>, talk: SleepTalk = SILENT): SleepStep =>
    receive(talk, { kind: "propose", epoch: 7, idle }, noEpoch, facts(overrides));

  test("sleeps and says so where it saw no traffic either", () => {
    const { talk, effects } = ask(THRESHOLD, {});
    assert.equal(talk, SILENT);
    assert.deepEqual(effects, [
      { kind: "say", message: { kind: "agree", epoch: 7 } },
      { kind: "sleep", reason: "no traffic for 1 min, the other side proposed to sleep" },
    ]);
  });

  test("asleep, says again that it sleeps", () => {
    assert.deepEqual(ask(THRESHOLD, { awake: false }).effects, [{ kind: "say", message: { kind: "agree", epoch: 7 } }]);
  });

  test("refuses with the time that is missing, by the shorter of both thresholds", () => {
    const wait = (idle: number, quiet: number): unknown => {
      const [message] = said(ask(idle, { lastActivity: NOW - quiet }).effects);
      return message?.kind === "refuse" ? message.wait : message?.kind;
    };
    assert.equal(wait(THRESHOLD, 10_000), 20_000);
    assert.equal(wait(10 * THRESHOLD, 10_000), 20_000);
    assert.equal(wait(20_000, 4_000), 6_000);
    assert.equal(wait(20_000, 10_000), "agree");
    assert.equal(wait(0, 500), QUIET_MIN - 500);
    assert.equal(wait(0, QUIET_MIN), "agree");
  });

  test("refuses while packets wait, and for good where the peer is permanent", () => {
    assert.deepEqual(said(ask(0, { waiting: true }).effects), [{ kind: "refuse", epoch: 7, wait: 5_000 }]);
    assert.deepEqual(said(ask(0, { lazy: false }).effects), [{ kind: "refuse", epoch: 7, wait: undefined }]);
  });

  test("agrees to what it proposed itself, however recent the traffic before was", () => {
    const { effects } = ask(0, { lastActivity: NOW - 10 }, proposed());
    assert.deepEqual(kinds(effects), ["say", "sleep"]);
  });
});

describe("who proposes", () => {
  test("stays awake until the other end agrees", () => {
    const { talk, effects } = propose("no traffic for 1 min", THRESHOLD, 7, facts());
    assert.deepEqual(said(effects), [{ kind: "propose", epoch: 7, idle: THRESHOLD }]);
    assert.equal(talk.kind, "proposed");
    const agreed = receive(talk, { kind: "agree", epoch: 7 }, noEpoch, facts());
    assert.deepEqual(agreed, {
      talk: SILENT,
      effects: [{ kind: "sleep", reason: "no traffic for 1 min, the other side agreed" }],
    });
  });

  test("is not put to sleep by an answer to another proposal", () => {
    assert.deepEqual(receive(proposed(), { kind: "agree", epoch: 8 }, noEpoch, facts()).effects, []);
  });

  test("asks anew when the answer to a repetition comes after that to the proposal: refused first, agreed then", () => {
    const refused = receive(proposed(), { kind: "refuse", epoch: 7, wait: 50 }, noEpoch, facts());
    const { talk, effects } = receive(refused.talk, { kind: "agree", epoch: 7 }, () => 8, facts({ now: NOW + 80 }));
    assert.deepEqual(kinds(effects), ["look-at"]);
    assert.ok(talk.kind === "proposed" && talk.epoch === 8);
    const permanent = receive(refused.talk, { kind: "agree", epoch: 7 }, noEpoch, facts({ lazy: false }));
    assert.deepEqual(kinds(permanent.effects), ["prove"]);
  });

  test("calls the other end back when it sent something meanwhile", () => {
    const { effects } = receive(
      proposed(),
      { kind: "agree", epoch: 7 },
      noEpoch,
      facts({ now: NOW + 80, lastSent: NOW + 20, lastActivity: NOW + 20 }),
    );
    assert.deepEqual(kinds(effects), ["call-back", "look-at"]);
  });

  test("asks anew when a packet came meanwhile: a late one, or the other end woke after agreeing", () => {
    const heard = facts({ now: NOW + 80, lastReceived: NOW + 60, lastActivity: NOW + 60 });
    const { talk, effects } = receive(proposed(), { kind: "agree", epoch: 7 }, () => 8, heard);
    assert.deepEqual(kinds(effects), ["look-at"]);
    assert.ok(talk.kind === "proposed" && talk.epoch === 8);
  });

  test("asks anew when there was a handshake meanwhile: the other end may have woken after agreeing", () => {
    const { talk, effects } = receive(
      proposed(),
      { kind: "agree", epoch: 7 },
      () => 8,
      facts({ now: NOW + 80, lastProven: NOW + 60 }),
    );
    assert.deepEqual(kinds(effects), ["look-at"]);
    assert.ok(talk.kind === "proposed" && talk.epoch === 8);
    assert.deepEqual(said(comeDue(talk, facts({ now: talk.repeatAt })).effects), [
      { kind: "propose", epoch: 8, idle: THRESHOLD },
    ]);
  });

  test("asks anew when it repeated an OFFER behind the proposal: that wakes who has just agreed", () => {
    const offered = facts({ now: NOW + 80, lastOffered: NOW + 10 });
    const { talk, effects } = receive(proposed(), { kind: "agree", epoch: 7 }, () => 8, offered);
    assert.deepEqual(kinds(effects), ["look-at"]);
    assert.ok(talk.kind === "proposed" && talk.epoch === 8);
  });

  test("repeats the proposal a bounded number of times and sleeps then without an answer", () => {
    let talk = proposed();
    let sent = 1;
    for (;;) {
      assert.ok(talk.kind === "proposed");
      const step = comeDue(talk, facts({ now: talk.repeatAt }));
      talk = step.talk;
      if (said(step.effects).length === 0) {
        assert.deepEqual(kinds(step.effects), ["sleep-alone"]);
        break;
      }
      sent++;
    }
    assert.equal(sent, PROPOSAL_PAUSES.length);
    assert.ok(PROPOSAL_PAUSES.reduce((sum, pause) => sum + pause) <= 8_000);
  });

  test("gives the proposal up when there is traffic again, and calls back an end that had agreed", () => {
    const talk = proposed();
    assert.ok(talk.kind === "proposed");
    const traffic = facts({ now: talk.repeatAt, lastActivity: NOW + 10, lastSent: NOW + 10 });
    const step = comeDue(talk, traffic);
    assert.equal(step.talk.kind, "withdrawn");
    assert.deepEqual(kinds(step.effects), ["note", "look-at", "prove"]);
    const agreed = receive(step.talk, { kind: "agree", epoch: 7 }, noEpoch, traffic);
    assert.deepEqual(kinds(agreed.effects), ["call-back", "look-at"]);
  });

  test("proves the other end when it may not sleep any more: the agreement may be lost", () => {
    const talk = proposed();
    assert.ok(talk.kind === "proposed");
    const at = { now: talk.repeatAt, lazy: false };
    assert.ok(kinds(comeDue(talk, facts(at)).effects).includes("prove"));
    const heard = facts({ ...at, lastReceived: NOW + 10 });
    assert.ok(!kinds(comeDue(talk, heard).effects).includes("prove"));
  });

  test("asks again after the time named in a refusal, within bounds", () => {
    const lookAfter = (wait: number): number => {
      const { effects } = receive(proposed(), { kind: "refuse", epoch: 7, wait }, noEpoch, facts());
      const look = effects.find((effect) => effect.kind === "look-at");
      return look!.at - NOW;
    };
    assert.equal(lookAfter(20_000), 20_000);
    assert.equal(lookAfter(0), 1_000);
    assert.equal(lookAfter(2 ** 32 - 1), 24 * 3_600_000);
    assert.deepEqual(
      kinds(receive(proposed(), { kind: "refuse", epoch: 7, wait: undefined }, noEpoch, facts()).effects),
      ["kept"],
    );
  });
});

test("two silent ends that lose messages both sleep, and differ for one way and one repetition a loss at most", () => {
  const delay = 40;
  fc.assert(
    fc.property(fc.array(fc.boolean(), { maxLength: 6 }), fc.boolean(), (losses, both) => {
      const ends = [0, 1].map(() => ({ talk: SILENT as SleepTalk, asleepAt: undefined as number | undefined }));
      const agenda: { at: number; run: () => void }[] = [];
      let now = NOW;
      let epoch = 1;
      let lost = 0;
      const act = (index: number, decide: (talk: SleepTalk, known: SleepFacts) => SleepStep): void => {
        const end = ends[index]!;
        const { talk, effects } = decide(end.talk, facts({ now, awake: end.asleepAt === undefined }));
        end.talk = talk;
        for (const effect of effects) {
          if (effect.kind === "sleep" || effect.kind === "sleep-alone") {
            end.asleepAt = now;
            end.talk = SILENT;
          } else if (effect.kind === "say") {
            const isLost = losses.shift() ?? false;
            if (isLost) lost++;
            else {
              const run = (): void => act(1 - index, (t, f) => receive(t, effect.message, () => ++epoch, f));
              agenda.push({ at: now + delay, run });
            }
          } else if (effect.kind === "look-at") {
            const { at } = effect;
            const run = (): void => {
              const { talk: open } = end;
              if (end.asleepAt === undefined && open.kind === "proposed" && open.repeatAt === at)
                act(index, (_, f) => comeDue(open, f));
            };
            agenda.push({ at, run });
          }
        }
      };
      for (const index of both ? [0, 1] : [0]) act(index, (_, f) => propose("quiet", THRESHOLD, ++epoch, f));
      for (;;) {
        agenda.sort((x, y) => x.at - y.at);
        const next = agenda.shift();
        if (!next) break;
        now = next.at;
        next.run();
      }
      const [a, b] = ends.map(({ asleepAt }) => asleepAt);
      // When every proposal is lost the proposer sleeps alone and says so by a plain GO_IDLE, which is not played here.
      if (lost < PROPOSAL_PAUSES.length) {
        assert.ok(a !== undefined && b !== undefined);
        assert.ok(Math.abs(a - b) <= delay + PROPOSAL_PAUSES.slice(0, lost).reduce((sum, pause) => sum + pause, 0) * 2);
      } else assert.ok(a !== undefined);
    }),
  );
});
