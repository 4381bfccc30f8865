import assert from "node:assert/strict";
import { execFileSync } from "node:child_process";
import { test } from "node:test";
import { libc } from "#net/libc.ts";
import {
  closeTun,
  interfaceIndex,
  interfaceMtu,
  openTun,
  setInterfaceMtu,
  setInterfaceUp,
  TUN_QUEUE_PACKETS,
  TunError,
} from "./linux.ts";

const root = process.getuid?.() === 0 ? {} : { skip: "needs root" };

function codeOf(run: () => unknown): string {
  try {
    run();
  } catch (error) {
    assert.ok(error instanceof TunError, String(error));
    return error.code;
  }
  return "none";
}

test("a TUN gets a free number for %d and goes away with its descriptor", root, () => {
  const tun = openTun({ name: "perch-t%d" });
  assert.match(tun.name, /^perch-t\d+$/);
  assert.equal(tun.virtioHeader, false);
  assert.ok(interfaceIndex(tun.name) > 0);
  closeTun(tun);
  assert.equal(
    codeOf(() => interfaceIndex(tun.name)),
    "interface-missing",
  );
});

test("MTU and link state are set, a bad MTU is named", root, () => {
  const tun = openTun({ name: "perch-t%d", virtioHeader: true });
  try {
    assert.equal(tun.virtioHeader, true);
    setInterfaceMtu(tun.name, 1408);
    assert.equal(interfaceMtu(tun.name), 1408);
    setInterfaceUp(tun.name, true);
    assert.match(execFileSync("ip", ["link", "show", tun.name], { encoding: "utf8" }), /[<,]UP[,>]/);
    assert.throws(() => setInterfaceMtu(tun.name, 1_000_000), { code: "mtu-invalid", message: /1000000/ });
  } finally {
    closeTun(tun);
  }
});

test("the kernel keeps a burst until it is read", root, () => {
  const tun = openTun({ name: "perch-t%d" });
  try {
    const shown = execFileSync("ip", ["link", "show", tun.name], { encoding: "utf8" });
    assert.match(shown, new RegExp(`qlen ${TUN_QUEUE_PACKETS}\\b`));
  } finally {
    closeTun(tun);
  }
});

test("the descriptor is not inherited by child processes", root, () => {
  const tun = openTun({ name: "perch-t%d" });
  try {
    const seen = execFileSync("sh", ["-c", "ls -l /proc/self/fd"], { encoding: "utf8" });
    assert.doesNotMatch(seen, /net\/tun/);
  } finally {
    closeTun(tun);
  }
});

test("names that cannot work are refused with the name and the limit", () => {
  assert.throws(() => openTun({ name: "a-name-of-16-byte" }), {
    code: "interface-name-invalid",
    message: /17 bytes.*15/,
  });
  for (const name of ["", ".", "a/b", "a b", "%s", "%d%d"]) {
    assert.equal(
      codeOf(() => openTun({ name })),
      "interface-name-invalid",
      name,
    );
  }
});

test("a name in use is refused", root, () => {
  const tun = openTun({ name: "perch-t%d" });
  try {
    assert.throws(() => openTun({ name: tun.name }), { code: "interface-taken", message: new RegExp(tun.name) });
    assert.equal(
      codeOf(() => openTun({ name: "lo" })),
      "interface-taken",
    );
  } finally {
    closeTun(tun);
  }
});

test("a persistent TUN that nobody has open is somebody else's all the same", root, () => {
  const name = `perch-p${process.pid % 1_000_000}`;
  execFileSync("ip", ["tuntap", "add", name, "mode", "tun"]);
  try {
    assert.throws(() => openTun({ name }), { code: "interface-taken", message: new RegExp(name) });
    assert.throws(() => openTun({ name, virtioHeader: true }), { code: "interface-taken" });
  } finally {
    execFileSync("ip", ["tuntap", "delete", name, "mode", "tun"]);
  }
});

test("without the privilege the error says which one is missing", root, () => {
  const script = `
    process.setgid(65534); process.setuid(65534);
    const { openTun } = await import(${JSON.stringify(new URL("./linux.ts", import.meta.url).href)});
    try { openTun({ name: "perch-t%d" }); console.log("opened"); } catch (error) { console.log(error.code, error.message); }`;
  const output = execFileSync(process.execPath, ["--input-type=module", "-e", script], { encoding: "utf8" });
  assert.match(output, /^tun-not-permitted .*CAP_NET_ADMIN/);
});

test("opened and closed TUNs leave no descriptor behind", root, () => {
  const probe = (): number => {
    const fd = libc().open("/dev/null", 0x80000);
    libc().close(fd);
    return fd;
  };
  const before = probe();
  for (let i = 0; i < 10; i++) closeTun(openTun({ name: "perch-t%d", virtioHeader: i % 2 === 0 }));
  for (let i = 0; i < 10; i++) codeOf(() => openTun({ name: "lo" }));
  assert.equal(probe(), before);
});
