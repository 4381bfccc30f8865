import assert from "node:assert/strict";
import { type ChildProcess, spawn } from "node:child_process";
import { existsSync } from "node:fs";
import { join } from "node:path";
import { createInterface } from "node:readline";
import { type TestContext, test } from "node:test";
import { fileURLToPath } from "node:url";
import { KEY, SERVER, scene, until } from "./testing/perch-process.ts";

// systemd runs on no test machine: Python's own sockets receive in its place, with the sender's pid from the kernel.
const PYTHON = "/usr/bin/python3";
const RECEIVER = fileURLToPath(new URL("./testing/notify-receiver.py", import.meta.url));
const python = { skip: !existsSync(PYTHON) && `no ${PYTHON}` };

interface Said {
  readonly pid: number;
  readonly lines: readonly string[];
  readonly answers?: boolean;
}

/** Listens on `name`; `said` grows with what comes. */
async function receive(t: TestContext, name: string, daemonSocket: string): Promise<readonly Said[]> {
  const child: ChildProcess = spawn(PYTHON, [RECEIVER, name, daemonSocket], { stdio: ["ignore", "pipe", "inherit"] });
  t.after(() => child.kill("SIGKILL"));
  const said: Said[] = [];
  let listening = false;
  createInterface({ input: child.stdout! }).on("line", (line) => {
    const message = JSON.parse(line);
    if ("listening" in message) listening = true;
    else said.push(message);
  });
  await until(() => listening);
  return said;
}

const beats = (said: readonly Said[]): number => said.filter(({ lines }) => lines[0] === "WATCHDOG=1").length;
const talk = (said: readonly Said[]): readonly string[] =>
  said.map(({ lines }) => lines.join(" ").replace(/USEC=\d+/, "USEC=")).filter((text) => text !== "WATCHDOG=1");

test(
  "a service manager hears when the daemon answers, how it is, that it reloads and that it ends",
  python,
  async (t) => {
    const at = scene(t);
    const name = join(at.dir, "notify");
    const said = await receive(t, name, join(at.dir, "d.sock"));
    const daemon = await at.startDaemonWith({ NOTIFY_SOCKET: name });
    await until(() => said.length > 0);
    assert.deepEqual(said[0], {
      ...said[0],
      pid: daemon.process.pid,
      lines: ["READY=1", "STATUS=down"],
      answers: true,
    });
    assert.equal((await at.run(`up --management-url ${SERVER} --setup-key ${KEY}`)).code, 0);
    await until(() => talk(said).includes("STATUS=up, 2 of 4 peers connected"));
    const before = said.length;
    daemon.process.kill("SIGHUP");
    await until(() => said.length >= before + 2);
    assert.deepEqual(talk(said.slice(before)), ["RELOADING=1 MONOTONIC_USEC=", "READY=1"]);
    assert.equal(await daemon.stop(), 0);
    await until(() => talk(said).at(-1) === "STOPPING=1 STATUS=taking the tunnel down");
    assert.equal(beats(said), 0, "nobody asked for a watchdog");
  },
);

test(
  "the watchdog is fed on an abstract socket as long as the daemon's process runs, and no longer",
  python,
  async (t) => {
    const at = scene(t);
    const name = `@perch-test-${process.pid}-notify`;
    const said = await receive(t, name, join(at.dir, "d.sock"));
    const daemon = await at.startDaemonWith({ NOTIFY_SOCKET: name, WATCHDOG_USEC: "300000" });
    await until(() => beats(said) >= 4);
    daemon.process.kill("SIGSTOP");
    // What was sent before the signal took effect.
    await new Promise((resolve) => setTimeout(resolve, 200));
    const stopped = beats(said);
    await new Promise((resolve) => setTimeout(resolve, 600));
    assert.equal(beats(said), stopped);
    daemon.process.kill("SIGCONT");
    await until(() => beats(said) > stopped);
  },
);
