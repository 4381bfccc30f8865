import assert from "node:assert/strict";
import { execFileSync } from "node:child_process";
import { mkdirSync, mkdtempSync, rmSync, symlinkSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { test } from "node:test";

/** As another network's process sees the first one, in front of an /etc of its own or the machine's. */
const ENTER = `set -e
mount -t tmpfs perch-test /proc/1
mkdir /proc/1/root /proc/1/ns
ln -s "net:[1]" /proc/1/ns/net
mount --bind "$1" /proc/1/root
mount --bind "$2" "$3"
shift 3
exec "$@"`;
const PROGRAM = `
  import { readHostFacts } from "#agent/dns/choose-resolver-linux.ts";
  const { ownsResolvConf, inMachineNetwork } = readHostFacts(process.argv[1]);
  process.stdout.write(JSON.stringify({ ownsResolvConf, inMachineNetwork }));`;

test("a network namespace owns its resolver file where its /etc is its own, also while there is no file", {
  skip: process.getuid?.() !== 0 && "needs root: namespaces",
}, () => {
  const root = mkdtempSync(join(tmpdir(), "perch-etc-"));
  const [machine, own, etc] = [`${root}/machine`, `${root}/own`, `${root}/etc`];
  try {
    for (const folder of [`${machine}${etc}`, own, etc]) mkdirSync(folder, { recursive: true });
    const look = (folder: string): unknown =>
      JSON.parse(
        execFileSync(
          "unshare",
          [
            ...["--net", "--mount", "sh", "-c", ENTER, "sh", machine, folder, etc],
            ...[process.execPath, "--input-type=module-typescript", "-e", PROGRAM, `${etc}/resolv.conf`],
          ],
          { cwd: import.meta.dirname, encoding: "utf8" },
        ),
      );
    const machines = `${machine}${etc}`;
    const states: readonly (() => void)[] = [
      () => {},
      () => symlinkSync("nowhere/resolv.conf", `${own}/resolv.conf`),
      () => writeFileSync(`${own}/resolv.conf`, ""),
      () => writeFileSync(`${machines}/resolv.conf`, ""),
    ];
    for (const [i, change] of states.entries()) {
      rmSync(`${own}/resolv.conf`, { force: true });
      change();
      assert.deepEqual(look(own), { ownsResolvConf: true, inMachineNetwork: false }, `own, state ${i}`);
      assert.deepEqual(look(machines), { ownsResolvConf: false, inMachineNetwork: false }, `machine's, state ${i}`);
    }
  } finally {
    rmSync(root, { recursive: true });
  }
});
