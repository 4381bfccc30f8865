import assert from "node:assert/strict";
import { execFileSync } from "node:child_process";
import { test } from "node:test";

const root = process.getuid?.() === 0;

/** Runs a piece of code in a network namespace of its own that has one interface `t0`. */
function inNamespace(code: string): string {
  const script = `ip link add t0 type veth peer name t1 && ip link set t1 up && exec "$0" --input-type=module-typescript -e "$1"`;
  return execFileSync("unshare", ["-n", "sh", "-c", script, process.execPath, code], {
    cwd: import.meta.dirname,
    encoding: "utf8",
  });
}

const prelude = `
import { execFileSync } from "node:child_process";
import { parsePrefix } from "#base/ip.ts";
import { TunnelInterface } from "#agent/routing/interface-linux.ts";
const p = (...texts: string[]) => texts.map(parsePrefix);
const show = (...args: string[]) => execFileSync("ip", args, { encoding: "utf8" });
const tunnel = new TunnelInterface("t0");
`;

test("addresses and routes follow the desired state, difference by difference", { skip: !root && "needs root" }, () => {
  const out = inNamespace(`${prelude}
    await tunnel.apply(p("100.90.1.2/16", "fd00:1::2/64"), p("10.1.0.0/16", "fd00:9::/48", "100.90.0.0/16"));
    await tunnel.apply(p("100.90.1.3/16", "fd00:1::2/64"), p("10.2.0.0/16"));
    console.log(show("-br", "address", "show", "dev", "t0") + show("route", "show", "dev", "t0") + show("-6", "route", "show", "dev", "t0"));
  `);
  assert.match(out, /100\.90\.1\.3\/16/);
  assert.doesNotMatch(out, /100\.90\.1\.2/);
  assert.match(out, /fd00:1::2\/64/);
  assert.match(out, /10\.2\.0\.0\/16/);
  // With a link-local address the kernel would send packets of its own into the tunnel.
  assert.doesNotMatch(out, /fe80/);
  assert.doesNotMatch(out, /10\.1\.0\.0|fd00:9::/);
});

test("an interface that is not there is an error that names the command", { skip: !root && "needs root" }, () => {
  const out = inNamespace(`${prelude}
    const gone = new TunnelInterface("nope0");
    await gone.apply(p("100.90.1.2/16"), []).catch((error) => console.log(error.code, error.message));
  `);
  assert.match(out, /^interface .*100\.90\.1\.2\/16 dev nope0.*Cannot find device/);
});
