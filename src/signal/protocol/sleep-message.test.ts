import assert from "node:assert/strict";
import { test } from "node:test";
import { create, fromBinary, toBinary } from "@bufbuild/protobuf";
import { Body_Type, BodySchema, type PerchSleep_Step } from "#gen/signal_pb.ts";
import { createGoIdleBody } from "./offer.ts";
import { createSleepBody, parseSleepBody, type SleepMessage } from "./sleep-message.ts";

test("every step survives the wire, as a GO_IDLE", () => {
  for (const message of [
    { kind: "propose", epoch: 0xfffffffe, idle: 900_000 },
    { kind: "propose", epoch: 1, idle: 0 },
    { kind: "agree", epoch: 7 },
    { kind: "refuse", epoch: 7, wait: 0 },
    { kind: "refuse", epoch: 7, wait: undefined },
  ] satisfies SleepMessage[]) {
    const body = fromBinary(BodySchema, toBinary(BodySchema, createSleepBody(message)));
    assert.equal(body.type, Body_Type.GO_IDLE);
    assert.deepEqual(parseSleepBody(body), message);
  }
});

test("durations are whole, and cut where the field ends", () => {
  const propose = (idle: number) => parseSleepBody(createSleepBody({ kind: "propose", epoch: 1, idle }));
  assert.deepEqual(propose(1234.6), { kind: "propose", epoch: 1, idle: 1235 });
  assert.deepEqual(propose(1e12), { kind: "propose", epoch: 1, idle: 2 ** 32 - 1 });
  assert.deepEqual(propose(-3), { kind: "propose", epoch: 1, idle: 0 });
});

test("a GO_IDLE as stock agents send it says that the sender sleeps; a step of a later version says nothing", () => {
  assert.equal(parseSleepBody(createGoIdleBody()), "asleep");
  const later = create(BodySchema, {
    type: Body_Type.GO_IDLE,
    perch: { sleep: { step: 9 as PerchSleep_Step, epoch: 1 } },
  });
  assert.equal(parseSleepBody(fromBinary(BodySchema, toBinary(BodySchema, later))), undefined);
});
