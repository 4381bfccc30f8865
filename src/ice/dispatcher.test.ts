import assert from "node:assert/strict";
import { test } from "node:test";
import { type Endpoint, parseEndpoint } from "#base/ip.ts";
import { ManualClock } from "#base/time.ts";
import {
  EARLY_REQUEST_LIFETIME,
  EARLY_REQUESTS_MAX,
  EARLY_REQUESTS_PER_UFRAG,
  StunDispatcher,
  type StunReceiver,
} from "./dispatcher.ts";
import { encodeStun, type StunMessage, TransactionId } from "./stun-message.ts";

const from = parseEndpoint("192.0.2.1:4000");
const to = parseEndpoint("192.0.2.2:51820");

class Recorder implements StunReceiver {
  readonly localUfrag: string;
  readonly transactionTag: string;
  readonly got: { message: StunMessage; from: Endpoint; to: Endpoint | undefined }[] = [];

  constructor(localUfrag: string, transactionTag: string) {
    this.localUfrag = localUfrag;
    this.transactionTag = transactionTag;
  }

  receive(message: StunMessage, sender: Endpoint, local?: Endpoint): void {
    this.got.push({ message, from: sender, to: local });
  }
}

function request(ufrag: string): Uint8Array {
  const transactionId = TransactionId.create();
  return encodeStun({ class: "request", transactionId, username: `${ufrag}:them` }, { password: "secret" });
}

function success(transactionId: string): Uint8Array {
  return encodeStun({ class: "success", transactionId: transactionId as TransactionId });
}

test("requests find their agent by ufrag, answers by the tag of the transaction", () => {
  const dispatcher = new StunDispatcher({ clock: new ManualClock() });
  const [a, b] = [new Recorder("aaaa", "aaaaaaaaaaaa"), new Recorder("bbbb", "bbbbbbbbbbbb")];
  dispatcher.register(a);
  dispatcher.register(b);
  dispatcher.receive(request("bbbb"), from, to);
  dispatcher.receive(success("aaaaaaaaaaaa000000000001"), from, to);
  assert.deepEqual([a.got.length, b.got.length], [1, 1]);
  assert.equal(a.got[0]?.message.class, "success");
  assert.deepEqual([b.got[0]?.from, b.got[0]?.to], [from, to]);
  dispatcher.unregister(a);
  dispatcher.receive(success("aaaaaaaaaaaa000000000002"), from, to);
  assert.equal(a.got.length, 1);
  assert.equal(dispatcher.counters().get("answer-unknown"), 1);
});

test("answers to nobody go to the mapped-address cache, and are counted when it does not want them", () => {
  const wanted = "0123456789ab0123456789ab";
  const dispatcher = new StunDispatcher({
    clock: new ManualClock(),
    cache: { receive: (message) => message.transactionId === wanted },
  });
  dispatcher.receive(success(wanted), from);
  assert.equal(dispatcher.counters().size, 0);
  dispatcher.receive(success("ffffffffffffffffffffffff"), from);
  assert.equal(dispatcher.counters().get("answer-unknown"), 1);
});

test("requests for an agent that registers within three seconds are delivered to it, older ones are not", () => {
  const clock = new ManualClock();
  const dispatcher = new StunDispatcher({ clock });
  const buffer = request("late");
  dispatcher.receive(buffer, from, to);
  buffer.fill(0); // The socket uses its buffer again.
  clock.advance(EARLY_REQUEST_LIFETIME - 1);
  dispatcher.receive(request("late"), from, to);
  clock.advance(2);
  const agent = new Recorder("late", "111111111111");
  dispatcher.register(agent);
  assert.equal(agent.got.length, 1);
  assert.equal(clock.pending, 0);
  dispatcher.unregister(agent);
  dispatcher.register(agent);
  assert.equal(agent.got.length, 1, "delivered once");

  const patient = new Recorder("soon", "222222222222");
  dispatcher.receive(request("soon"), from, to);
  clock.advance(EARLY_REQUEST_LIFETIME);
  dispatcher.register(patient);
  assert.equal(patient.got.length, 1);
});

test("a flood of requests for unknown agents stays within the limits, in all and for one name", () => {
  const dispatcher = new StunDispatcher({ clock: new ManualClock() });
  for (let i = 0; i < 50; i++) dispatcher.receive(request("same"), from);
  const same = new Recorder("same", "111111111111");
  dispatcher.register(same);
  assert.equal(same.got.length, EARLY_REQUESTS_PER_UFRAG);

  for (let i = 0; i < EARLY_REQUESTS_MAX + 40; i++) dispatcher.receive(request(`n${i}`), from);
  let kept = 0;
  for (let i = 0; i < EARLY_REQUESTS_MAX + 40; i++) {
    const agent = new Recorder(`n${i}`, `tag${i}`);
    dispatcher.register(agent);
    kept += agent.got.length;
    if (i < 40) assert.equal(agent.got.length, 0, "the oldest go first");
  }
  assert.equal(kept, EARLY_REQUESTS_MAX);
});

test("what is no STUN, has no name or no integrity is counted and dropped", () => {
  const dispatcher = new StunDispatcher({ clock: new ManualClock() });
  const agent = new Recorder("aaaa", "aaaaaaaaaaaa");
  dispatcher.register(agent);
  const transactionId = TransactionId.create();
  dispatcher.receive(new Uint8Array([1, 2, 3]), from);
  dispatcher.receive(encodeStun({ class: "request", transactionId }), from);
  dispatcher.receive(encodeStun({ class: "request", transactionId, username: "aaaa:bbbb" }), from);
  dispatcher.receive(encodeStun({ class: "indication", transactionId }), from);
  assert.equal(agent.got.length, 0);
  assert.deepEqual(Object.fromEntries(dispatcher.counters()), { malformed: 1, "request-unnamed": 2, indication: 1 });
});

test("an agent that takes over a ufrag is not removed by the late unregister of the one before", () => {
  const dispatcher = new StunDispatcher({ clock: new ManualClock() });
  const [old, fresh] = [new Recorder("same", "111111111111"), new Recorder("same", "222222222222")];
  dispatcher.register(old);
  dispatcher.register(fresh);
  dispatcher.unregister(old);
  dispatcher.receive(request("same"), from);
  assert.deepEqual([old.got.length, fresh.got.length], [0, 1]);
  assert.equal(dispatcher.size, 1);
});
