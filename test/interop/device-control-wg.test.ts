import assert from "node:assert/strict";
import { randomBytes } from "node:crypto";
import { mkdtempSync, readFileSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { describe, it } from "node:test";
import { parseEndpoint, parsePrefix } from "#base/ip.ts";
import { PresharedKey, PrivateKey, PublicKey } from "#base/keys.ts";
import { WgControl } from "#wireguard/external/wg-control.ts";
import { startWireguardGo } from "#wireguard/external/wireguard-go-backend.ts";
import { describeDeviceControl } from "./device-control-suite.ts";
import { dumpOf } from "./wg-dump.ts";
import { missingForLab } from "./wireguard-lab.ts";

describeDeviceControl("the program wg", { create: (interfaceName) => new WgControl(interfaceName) });

/** The program `wg`, which notes what it is called with. */
class NotingWg implements Disposable {
  readonly path: string;
  readonly #folder = mkdtempSync(join(tmpdir(), "perch-wg-test-"));
  readonly #notes = join(this.#folder, "notes");

  constructor() {
    this.path = join(this.#folder, "wg");
    // The environment too: both can be read by others.
    writeFileSync(
      this.path,
      `#!/bin/sh\n{ printf '%s\\0' "$@"; env; ls -l /proc/$$/fd; echo; } >>'${this.#notes}'\necho "$1" >>'${this.#notes}.calls'\nexec wg "$@"\n`,
      { mode: 0o700 },
    );
  }

  get notes(): string {
    return readFileSync(this.#notes, "latin1");
  }

  get calls(): string[] {
    return readFileSync(`${this.#notes}.calls`, "latin1").trim().split("\n");
  }

  [Symbol.dispose](): void {
    rmSync(this.#folder, { recursive: true });
  }
}

describe("what the program wg is given", { skip: missingForLab() ?? false, timeout: 30_000 }, () => {
  it("is one command for 10,000 peers, and never a secret on its command line or in a file that has a name", async () => {
    using wg = new NotingWg();
    await using backend = await startWireguardGo({ interfaceName: `pw${process.pid % 1_000_000}` });
    await using control = new WgControl(backend.interfaceName, wg.path);
    const privateKey = PrivateKey.generate();
    const presharedKey = PresharedKey.parse(randomBytes(32).toString("base64"));
    const peers = Array.from({ length: 10_000 }, (_, n) => ({
      key: PublicKey.fromBytes(randomBytes(32)),
      allowedIps: [parsePrefix(`10.1.${n >> 8}.${n & 255}/32`)],
      presharedKey,
    }));
    await control.change({ privateKey, listenPort: 0 }, peers);
    assert.deepEqual(wg.calls, ["set", "set", "addconf"]);
    await control.change(
      {},
      peers.map(({ key }) => ({ key, endpoint: parseEndpoint("127.1.2.3:54321") })),
    );
    assert.deepEqual(wg.calls.slice(3), ["set"]);
    const some = peers.slice(0, 300).map(({ key }) => ({ key, updateOnly: true, presharedKey: null }));
    await control.change({}, some);
    assert.deepEqual(wg.calls.slice(4), ["show", "set"], "asks once which peers there are");
    await control.change(
      {},
      some.map((change) => ({ ...change, presharedKey })),
    );
    assert.deepEqual(wg.calls.slice(6), ["set", "set"], "200 files each at most");
    const dump = dumpOf(backend.interfaceName);
    assert.equal(dump.size, 10_000);
    for (const { key } of peers.slice(0, 300)) assert.equal(dump.get(key)?.presharedKey, presharedKey.toBase64());
    const { notes } = wg;
    for (const secret of [privateKey.toBase64(), presharedKey.toBase64()]) assert.equal(notes.includes(secret), false);
    assert.match(notes, /perch-[0-9a-f]{24} \(deleted\)/);
  });
});
