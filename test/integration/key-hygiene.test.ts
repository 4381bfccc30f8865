import assert from "node:assert/strict";
import { execFile } from "node:child_process";
import { mkdirSync, mkdtempSync, readdirSync, readFileSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { describe, test } from "node:test";
import { promisify } from "node:util";
import { PrivateKey } from "#base/keys.ts";
import { PerchNetwork, waitFor } from "../../lab/perch-network.ts";
import { skipWithoutLab } from "../../lab/rootless.ts";
import { createVethStar } from "../../lab/veth-star.ts";
import { root } from "./data-plane/checks.ts";
import { shows, stringsOf, textsOf } from "./key-hygiene/search.ts";

const run = promisify(execFile);
const DEVICES = new URL("./key-hygiene/two-devices.ts", import.meta.url).pathname;
const HOOK = new URL("./key-hygiene/snapshot-on-signal.ts", import.meta.url).href;

const secretIn = (file: string): Uint8Array => new Uint8Array(Buffer.from(readFileSync(file, "latin1"), "base64"));

test("the search finds a key in every form that a string gives it", () => {
  const secret = PrivateKey.generate().bytes();
  for (const text of textsOf(secret)) assert.ok(shows(`before ${text} after`, secret), text);
  assert.ok(!shows(PrivateKey.generate().toBase64(), secret));
});

test("no heap of a process with devices has a private, preshared or session key in a string", root, async () => {
  const directory = mkdtempSync(join(tmpdir(), "perch-keys-"));
  try {
    for (const name of ["a", "b"]) mkdirSync(join(directory, name), { mode: 0o700 });
    // `b` makes its key itself.
    writeFileSync(join(directory, "a", "private.key"), `${PrivateKey.generate().toBase64()}\n`, { mode: 0o600 });
    writeFileSync(join(directory, "preshared.key"), PrivateKey.generate().encode());
    const canary = `canary${Date.now()}`;
    const { stdout } = await run("unshare", ["--net", process.execPath, DEVICES, directory, canary], {
      timeout: 18_000,
    });
    const publicKey = stdout.split(" ")[0]!;
    const sessionKeys = new Uint8Array(readFileSync(join(directory, "session-keys")));
    assert.equal(sessionKeys.length, 2 * 64);
    const secrets: [string, Uint8Array][] = [
      ["a's private key", secretIn(join(directory, "a", "private.key"))],
      ["b's private key", secretIn(join(directory, "b", "private.key"))],
      ["the preshared key", secretIn(join(directory, "preshared.key"))],
      ...[0, 32, 64, 96].map((at): [string, Uint8Array] => ["a session key", sessionKeys.subarray(at, at + 32)]),
    ];
    const heaps = readdirSync(directory).filter((name) => name.endsWith(".heapsnapshot"));
    assert.deepEqual(heaps.sort(), ["main.heapsnapshot", "worker0.heapsnapshot", "worker1.heapsnapshot"]);
    for (const heap of heaps) {
      const strings = stringsOf(join(directory, heap));
      if (heap.startsWith("main")) {
        assert.ok(strings.includes(canary), "a string that is kept is in the snapshot");
        assert.ok(strings.includes(publicKey), "so is the public key");
      }
      for (const [what, secret] of secrets) assert.ok(!shows(strings, secret), `${what} in ${heap}`);
    }
  } finally {
    rmSync(directory, { recursive: true });
  }
});

describe("an agent that runs", { skip: await skipWithoutLab(), timeout: 90_000 }, () => {
  test("has its private key in no string of its heap and in no line of its log", async () => {
    await using star = await createVethStar(["hub", "alder"]);
    await using network = await PerchNetwork.start(star, {
      server: "hub",
      agents: ["alder"],
      daemonEnvironment: { NODE_OPTIONS: `--import ${HOOK}` },
    });
    const alder = network.agent("alder");
    const secret = secretIn(join(alder.directory, "state", "private.key"));
    const heap = `/tmp/perch-heap-${alder.pid!}.heapsnapshot`;
    try {
      process.kill(alder.pid!, "SIGUSR2");
      await waitFor(async () => alder.log.includes("heap snapshot is written"), "the snapshot", 30_000);
      const strings = stringsOf(heap);
      assert.ok(strings.includes(alder.address), "a string that is kept is in the snapshot");
      assert.ok(!shows(strings, secret), "the private key");
      assert.ok(!shows(alder.log, secret), "the private key in the log");
    } finally {
      rmSync(heap, { force: true });
    }
  });
});
