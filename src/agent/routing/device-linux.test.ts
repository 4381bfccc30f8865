import assert from "node:assert/strict";
import { execFile } from "node:child_process";
import { test } from "node:test";
import { promisify } from "node:util";

const PROBE = `
import { silentLogger } from "#base/log.ts";
import { systemClock } from "#base/time.ts";
import { probeDevice } from "#agent/routing/device-linux.ts";
const deps = { clock: systemClock, log: silentLogger, stateDir: "/nonexistent" };
probeDevice(deps, { device: process.argv[1], interfaceName: "perchprobe0", wireguardPort: 0 })
  .then(() => console.log("fine"), ({ code, message }) => console.log(code + ": " + message));`;

test("a device whose program is not installed is refused by the name of the Debian package, and with another way", async () => {
  // Where the programs of Debian are not: neither /usr/bin nor /bin.
  const env = { ...process.env, PATH: "/nonexistent", NODE_TEST_CONTEXT: undefined };
  const args = ["--input-type=module-typescript", "-e", PROBE, "wireguard-go"];
  const { stdout } = await promisify(execFile)(process.execPath, args, { env, cwd: import.meta.dirname });
  assert.match(
    stdout,
    /^program-missing: .*wireguard-go is not installed \(Debian package wireguard-go\); install it, or choose --device embedded/,
  );
});
