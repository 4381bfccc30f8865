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

/** What `probeDevice` says in a process with this environment. */
async function probe(environment: Readonly<Record<string, string>>): Promise<string> {
  const env = { ...process.env, ...environment, NODE_TEST_CONTEXT: undefined };
  const args = ["--input-type=module-typescript", "-e", PROBE, "wireguard-go"];
  return (await promisify(execFile)(process.execPath, args, { env, cwd: import.meta.dirname })).stdout;
}

test("a device whose program is not installed is refused by the name of the Debian package, and with another way", async () => {
  // Where the programs of Debian are not: neither /usr/bin nor /bin.
  assert.match(
    await probe({ PATH: "/nonexistent" }),
    /^program-missing: .*wireguard-go is not installed \(Debian package wireguard-go\); install it, or choose --device embedded/,
  );
});

test("a number of local sockets that is none is refused by the variable's name, before anything is made", async () => {
  for (const text of ["many", "1000001"]) {
    const refusal = `setting-invalid: PERCH_LOCAL_SOCKETS_MAX in the daemon's environment must be 0 to 1000000, got "${text}"`;
    assert.equal((await probe({ PERCH_LOCAL_SOCKETS_MAX: text, PATH: "/nonexistent" })).trim(), refusal);
  }
  for (const text of ["", "1000000"])
    assert.match(await probe({ PERCH_LOCAL_SOCKETS_MAX: text, PATH: "/nonexistent" }), /^program-missing/);
});
