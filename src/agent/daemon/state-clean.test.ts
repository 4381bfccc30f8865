import assert from "node:assert/strict";
import {
  existsSync,
  linkSync,
  mkdirSync,
  mkdtempSync,
  readdirSync,
  readFileSync,
  rmSync,
  writeFileSync,
} from "node:fs";
import { createServer, type Server } from "node:net";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { afterEach, beforeEach, describe, test } from "node:test";
import { RESOLVER_RECORD_FILE } from "../dns/resolver-record.ts";
import { assertRestored, cleanState } from "./state-clean.ts";
import { takeLock } from "./state-lock.ts";
import { listenOnUnix } from "./unix-listener.ts";

/** No process has it: above the kernel's largest (proc(5), pid_max). */
const DEAD = 2 ** 22 + 1;

describe("what a killed daemon left", () => {
  let root: string;
  let stateDir: string;
  let socketPath: string;
  const clean = () => cleanState({ stateDir, socketPath });

  beforeEach(() => {
    root = mkdtempSync(join(tmpdir(), "perch-clean-"));
    stateDir = join(root, "state");
    socketPath = join(root, "run/perch.sock");
    for (const folder of [stateDir, join(root, "run")]) mkdirSync(folder);
  });
  afterEach(() => rmSync(root, { recursive: true }));

  /** A socket file that nobody listens on any more. */
  async function leaveSocket(): Promise<void> {
    const server: Server = createServer();
    await new Promise<void>((done) => server.listen(`${socketPath}.made`, done));
    // Node takes the path away with the server; the name that a crash leaves is another.
    linkSync(`${socketPath}.made`, socketPath);
    await new Promise((done) => server.close(done));
  }

  test("is gone afterwards: drafts, locks and their drafts, the socket; what is kept stays", async () => {
    for (const name of ["settings.json", "private.key", "handshake-timestamp", "notes.txt"])
      writeFileSync(join(stateDir, name), name);
    for (const name of ["settings.json.new", "resolver.json.new"]) writeFileSync(join(stateDir, name), "half");
    for (const lock of [join(stateDir, "daemon.lock"), `${socketPath}.lock`]) {
      for (const end of ["", `.${DEAD}`, ".remove", `.remove.${DEAD}`, ".remove.remove", ".remove.remove.remove"])
        writeFileSync(`${lock}${end}`, `${DEAD} 1@boot\n`);
    }
    await leaveSocket();
    const { done, problems } = await clean();
    assert.deepEqual(problems, []);
    assert.deepEqual(done, [`the socket ${socketPath} of a daemon that is gone is removed`]);
    assert.deepEqual(readdirSync(stateDir).sort(), [
      "handshake-timestamp",
      "notes.txt",
      "private.key",
      "settings.json",
    ]);
    assert.deepEqual(readdirSync(join(root, "run")), []);
    assert.deepEqual(await clean(), { done: [], problems: [] }, "the second time there is nothing to do");
  });

  test("is left alone while a daemon runs: on its state directory with an error, on its socket without", async () => {
    {
      using _lock = takeLock(join(stateDir, "daemon.lock"), String);
      writeFileSync(join(stateDir, "settings.json.new"), "being written");
      await assert.rejects(clean(), { code: "daemon-running", message: /perch down/ });
      assert.ok(existsSync(join(stateDir, "settings.json.new")));
    }
    const server = createServer();
    await using _listener = await listenOnUnix(server, socketPath);
    assert.deepEqual(await clean(), { done: [], problems: [] });
    assert.ok(existsSync(socketPath) && existsSync(`${socketPath}.lock`));
  });

  test("that is none of ours stays: a file in the socket's place, a draft of a lock whose process lives", async () => {
    writeFileSync(socketPath, "a file");
    writeFileSync(`${socketPath}.lock.${process.ppid}`, "being written");
    await clean();
    assert.equal(readFileSync(socketPath, "utf8"), "a file");
    assert.ok(existsSync(`${socketPath}.lock.${process.ppid}`));
  });

  test("where nothing was made, nothing is made; a record that cannot be read is reported and stays", async () => {
    rmSync(stateDir, { recursive: true });
    rmSync(join(root, "run"), { recursive: true });
    assert.deepEqual(await clean(), { done: [], problems: [] });
    assert.deepEqual(readdirSync(root), []);
    mkdirSync(stateDir);
    writeFileSync(join(stateDir, RESOLVER_RECORD_FILE), "{");
    const restoration = await clean();
    assert.match(restoration.problems.join(), /resolver\.json is not readable/);
    assert.throws(() => assertRestored(restoration), { code: "state-dirty" });
    assert.deepEqual(readdirSync(stateDir), [RESOLVER_RECORD_FILE]);
  });
});
