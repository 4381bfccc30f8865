import assert from "node:assert/strict";
import { test } from "node:test";
import { ManualClock } from "#base/time.ts";
import { retryTogether, ServiceRecorder } from "./service-recorder.ts";

test("the time of a state is that of its last change, and every report is told", () => {
  const clock = new ManualClock();
  let told = 0;
  const recorder = new ServiceRecorder(clock, () => told++);
  const start = clock.wall();
  clock.advance(1000);
  recorder.note({ connected: false, error: new Error("refused") });
  assert.deepEqual(recorder.state, { connected: false, error: "refused", since: start });
  recorder.note({ connected: true });
  clock.advance(1000);
  recorder.note({ connected: true });
  assert.deepEqual(recorder.state, { connected: true, since: start + 1000 });
  assert.equal(told, 3);
});

test("a server that is back makes those that are not be tried at once, and nobody else", () => {
  const clock = new ManualClock();
  const tried: string[] = [];
  const services = ["management", "signal", "relay"].map((name) => ({
    recorder: new ServiceRecorder(clock, () => {}),
    retry: () => void tried.push(name),
  }));
  retryTogether(services);
  const [management, signal, relay] = services.map(({ recorder }) => recorder);
  signal!.note({ connected: true });
  assert.deepEqual(tried.splice(0), ["management", "relay"]);
  relay!.note({ connected: true });
  assert.deepEqual(tried.splice(0), ["management"]);
  management!.note({ connected: true });
  management!.note({ connected: true });
  assert.deepEqual(tried.splice(0), []);
  relay!.note({ connected: false });
  relay!.note({ connected: false });
  assert.deepEqual(tried.splice(0), []);
  relay!.note({ connected: true });
  assert.deepEqual(tried.splice(0), []);
});
