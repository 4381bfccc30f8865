import assert from "node:assert/strict";
import { type ChildProcess, spawn } from "node:child_process";
import { once } from "node:events";
import { test } from "node:test";
import { fileURLToPath } from "node:url";
import { systemClock } from "#base/time.ts";
import { ManagementStore } from "./server/store.ts";
import { remoteKeys, TestAgent, temporaryDirectory, testMeta } from "./test-server.ts";

interface Ready {
  readonly url: string;
  readonly port: number;
  readonly key: string;
}

async function startProcess(path: string, port: number): Promise<{ child: ChildProcess; ready: Ready }> {
  const script = fileURLToPath(new URL("test-server-process.ts", import.meta.url));
  const child = spawn(process.execPath, [script, path, String(port)], { stdio: ["ignore", "pipe", "inherit"] });
  const [line] = (await once(child.stdout!, "data")) as [Buffer];
  return { child, ready: JSON.parse(line.toString()) as Ready };
}

async function kill(child: ChildProcess): Promise<void> {
  const exited = once(child, "exit");
  child.kill("SIGKILL");
  await exited;
}

test("kill -9 in the middle of registrations: every peer that was answered is there, and no serial comes twice", async () => {
  using directory = temporaryDirectory();
  const path = `${directory.path}/m.db`;
  const serials: number[] = [];
  const answered = new Set<string>();
  for (let round = 0; round < 3; round++) {
    const { child, ready } = await startProcess(path, 0);
    const agents = Array.from({ length: 40 }, () => new TestAgent(ready.url));
    let count = 0;
    const logins = agents.map((agent, i) =>
      agent.client.login({ setupKey: ready.key, meta: testMeta(`h${round}-${i}`) }).then(
        () => {
          answered.add(agent.key.publicKey);
          if (++count === 5 + round) child.kill("SIGKILL");
        },
        () => {},
      ),
    );
    await Promise.all(logins);
    if (child.exitCode === null && child.signalCode === null) await kill(child);
    for (const agent of agents) await agent[Symbol.asyncDispose]();
    await using store = await ManagementStore.open({ clock: systemClock }, { path });
    const account = await store.loadAccount();
    const stored = new Set<string>(account.peers.map((peer) => peer.key));
    assert.deepEqual(
      [...answered].filter((key) => !stored.has(key)),
      [],
    );
    assert.equal(account.serial, stored.size, "one registration, one serial");
    serials.push(account.serial);
  }
  assert.ok(answered.size >= 18, `${answered.size} were answered`);
  assert.deepEqual(
    serials,
    [...new Set(serials)].sort((a, b) => a - b),
  );
});

test("an agent whose server was killed comes back by itself and gets what changed meanwhile", async () => {
  using directory = temporaryDirectory();
  const path = `${directory.path}/m.db`;
  const first = await startProcess(path, 0);
  await using a = new TestAgent(first.ready.url);
  await using b = new TestAgent(first.ready.url);
  await a.client.login({ setupKey: first.ready.key, meta: testMeta("a") });
  const connected: boolean[] = [];
  a.client.events.on("state", (state) => {
    // Failed attempts in between differ in their errors only.
    if (connected.at(-1) !== state.connected) connected.push(state.connected);
  });
  a.sync(testMeta("a"));
  await a.until((update) => update.NetworkMap !== undefined);
  await kill(first.child);
  const second = await startProcess(path, first.ready.port);
  try {
    await b.client.login({ setupKey: first.ready.key, meta: testMeta("b") });
    await a.until((update) => remoteKeys(update).includes(b.key.publicKey));
    assert.deepEqual(connected, [true, false, true]);
  } finally {
    await kill(second.child);
  }
});
