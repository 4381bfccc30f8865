import assert from "node:assert/strict";
import { once } from "node:events";
import { test } from "node:test";
import { Worker } from "node:worker_threads";
import { Emitter } from "./emitter.ts";

interface Events {
  readonly changed: { readonly to: number };
  readonly closed: undefined;
}

test("listeners hear their event in order of subscription, and no other event", () => {
  const emitter = new Emitter<Events>();
  const heard: string[] = [];
  emitter.on("changed", ({ to }) => heard.push(`first ${to}`));
  emitter.on("closed", () => heard.push("closed"));
  emitter.on("changed", ({ to }) => heard.push(`second ${to}`));
  emitter.emit("changed", { to: 1 });
  emitter.emit("changed", { to: 2 });
  assert.deepEqual(heard, ["first 1", "second 1", "first 2", "second 2"]);
  emitter.emit("closed", undefined);
  assert.equal(heard.at(-1), "closed");
});

test("an unsubscribed listener hears nothing, and unsubscribing twice is harmless", () => {
  const emitter = new Emitter<Events>();
  let heard = 0;
  const off = emitter.on("changed", () => heard++);
  emitter.on("changed", () => heard++);
  off();
  off();
  emitter.emit("changed", { to: 1 });
  assert.equal(heard, 1);
});

test("listeners that come and go during an event do not disturb it", () => {
  const emitter = new Emitter<Events>();
  const heard: string[] = [];
  emitter.on("changed", () => {
    heard.push("a");
    emitter.on("changed", () => heard.push("late"));
  });
  const off = emitter.on("changed", () => {
    heard.push("b");
    off();
  });
  emitter.on("changed", () => heard.push("c"));
  emitter.emit("changed", { to: 1 });
  assert.deepEqual(heard, ["a", "b", "c"]);
});

test("an exception in a listener is uncaught, and the other listeners and the emitting code go on", async () => {
  // In a worker, where an uncaught exception is seen by its owner alone.
  const url = new URL("./emitter.ts", import.meta.url).href;
  const worker = new Worker(
    `const { parentPort } = require("node:worker_threads");
     import(${JSON.stringify(url)}).then(({ Emitter }) => {
       const emitter = new Emitter();
       emitter.on("changed", () => { throw new Error("a listener's bug"); });
       emitter.on("changed", () => parentPort.postMessage("second listener"));
       emitter.emit("changed", {});
       parentPort.postMessage("emitted");
     });`,
    { eval: true },
  );
  const messages: unknown[] = [];
  worker.on("message", (message) => messages.push(message));
  const [error] = (await once(worker, "error")) as [Error];
  await worker.terminate();
  assert.equal(error.message, "a listener's bug");
  assert.deepEqual(messages, ["second listener", "emitted"]);
});
