import assert from "node:assert/strict";
import { spawn } from "node:child_process";
import { once } from "node:events";
import { type AddressInfo, createServer, type Socket } from "node:net";
import { test } from "node:test";
import { EXIT } from "./exit-codes.ts";
import { cleanEnvironment, PERCH, type Result, scene, until } from "./testing/perch-process.ts";

test("status answers while management takes connections and says nothing, and the checks tell live from ready", async (t) => {
  const held: Socket[] = [];
  const silent = createServer((socket) => void held.push(socket.on("error", () => {}))).listen(0, "127.0.0.1");
  await once(silent, "listening");
  t.after(() => {
    for (const socket of held) socket.destroy();
    silent.close();
  });
  const at = scene(t);
  // The real agent: it logs in before it makes an interface, so no privilege is needed.
  const daemon = spawn(PERCH, ["service", "run", "--daemon-addr", at.address, "--state-dir", at.stateDir], {
    env: cleanEnvironment({}),
    stdio: ["ignore", "ignore", "pipe"],
  });
  t.after(() => daemon.kill("SIGKILL"));
  let log = "";
  daemon.stderr.setEncoding("utf8").on("data", (text: string) => {
    log += text;
  });
  await until(() => log.includes("daemon ready"));

  const url = `http://127.0.0.1:${(silent.address() as AddressInfo).port}`;
  /** Runs `args` in the middle of an `up` of its own: the agent gives each up after 5 s. */
  const whileUpHangs = async (args: string): Promise<Result> => {
    const asked = held.length;
    const up = spawn(PERCH, ["up", "--management-url", url, "--daemon-addr", at.address], {
      env: cleanEnvironment({}),
      stdio: "ignore",
    });
    try {
      await until(() => held.length > asked);
      const result = await at.run(args);
      assert.equal(up.exitCode, null, `${args}: up still waits for the answer`);
      return result;
    } finally {
      const ended = once(up, "exit");
      up.kill();
      await ended;
    }
  };
  for (const form of ["status", "status -d", "status --json", "status --yaml"]) {
    const { code, out, ms } = await whileUpHangs(form);
    assert.equal(code, EXIT.ok, form);
    assert.match(out, /logging in/, form);
    t.diagnostic(`${form}: ${Math.round(ms)} ms`);
  }
  const ready = await whileUpHangs("status --check ready");
  assert.deepEqual([ready.code, ready.out], [EXIT.failure, ""]);
  assert.match(ready.err, /^perch: not ready: the agent is not up: /);
  assert.deepEqual([(await at.run("status --check live")).code, (await at.run("status -4")).code], [0, EXIT.failure]);
});
