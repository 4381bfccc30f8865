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

test("a machine without IPv6 gets the IPv4 address, and hears what failed", { skip: !root && "needs root" }, () => {
  const out = inNamespace(`${prelude}
    show("link"); execFileSync("sysctl", ["-qw", "net.ipv6.conf.all.disable_ipv6=1"]);
    const problems = await tunnel.apply(p("100.90.1.2/16", "fd00:1::2/64"), p("10.1.0.0/16"));
    console.log(show("-br", "address", "show", "dev", "t0"), show("route", "show", "dev", "t0"), JSON.stringify(problems));
  `);
  assert.match(out, /100\.90\.1\.2\/16/);
  assert.match(out, /10\.1\.0\.0\/16/);
  assert.match(out, /\["ip address replace fd00:1::2\/64 dev t0 nodad: .*disabled/i);
});

test("a routed network that is also the machine's own leaves the machine's route alone", {
  skip: !root && "needs root",
}, () => {
  const out = inNamespace(`${prelude}
    show("link", "add", "e0", "type", "veth", "peer", "name", "e1"); show("link", "set", "e1", "up"); show("link", "set", "e0", "up");
    show("address", "add", "192.168.1.7/24", "dev", "e0");
    await tunnel.apply(p("100.90.1.2/16"), p("192.168.1.0/24"));
    show("link", "del", "t0");
    console.log(show("route"), show("route", "get", "192.168.1.9"));
  `);
  assert.match(out, /192\.168\.1\.0\/24 dev e0/);
  assert.match(out, /192\.168\.1\.9 dev e0/);
});

test("one route that cannot be made does not keep the others from being made", { skip: !root && "needs root" }, () => {
  const out = inNamespace(`${prelude}
    execFileSync("sysctl", ["-qw", "net.ipv6.conf.all.disable_ipv6=1"]);
    const problems = await tunnel.apply(p("100.90.1.2/16"), p("10.1.0.0/16", "fd09::/48", "10.3.0.0/16"));
    console.log(problems.length, show("route", "show", "dev", "t0"));
  `);
  assert.match(out, /^1 /);
  assert.match(out, /10\.1\.0\.0\/16.*\n.*10\.3\.0\.0\/16/);
});

test("a route of another agent to the same network stays, is said to be there, and makes room when it goes", {
  skip: !root && "needs root",
}, () => {
  const out = inNamespace(`${prelude}
    show("link", "add", "t2", "type", "veth", "peer", "name", "t3"); show("link", "set", "t3", "up");
    const other = new TunnelInterface("t2");
    const routes = p("10.1.0.0/16", "fd09::/48");
    console.log(JSON.stringify(await other.apply(p("100.91.1.2/16", "fd00:2::2/64"), routes)));
    console.log(JSON.stringify(await tunnel.apply(p("100.90.1.2/16", "fd00:1::2/64"), routes)));
    const count = () => ["t0", "t2"].map((name) => [show("route", "show", "10.1.0.0/16", "dev", name), show("-6", "route", "show", "fd09::/48", "dev", name)].filter(Boolean).length);
    console.log(JSON.stringify(count()));
    await tunnel.apply(p("100.90.1.2/16", "fd00:1::2/64"), []);
    console.log(JSON.stringify(count()));
    await tunnel.apply(p("100.90.1.2/16", "fd00:1::2/64"), routes);
    await other.apply(p("100.91.1.2/16", "fd00:2::2/64"), []);
    console.log(JSON.stringify([await tunnel.apply(p("100.90.1.2/16", "fd00:1::2/64"), routes), count()]));
  `);
  const [first, second, both, without, after] = out
    .trim()
    .split("\n")
    .map((line) => JSON.parse(line) as unknown);
  assert.deepEqual(first, []);
  assert.match(String(second), /10\.1\.0\.0\/16 dev t0 .*exists.*fd09::\/48 dev t0 .*exists/i);
  assert.deepEqual(
    [both, without, after],
    [
      [0, 2],
      [0, 2],
      [[], [2, 0]],
    ],
  );
});

test("another interface of the same name gets everything that the earlier one had, and its MTU", {
  skip: !root && "needs root",
}, () => {
  const out = inNamespace(`${prelude}
    const all = new TunnelInterface("t0", 1340);
    const wanted = [p("100.90.1.2/16", "fd00:1::2/64"), p("10.1.0.0/16")] as const;
    const look = () => show("-o", "link", "show", "dev", "t0").replace(/^\\d+: |@if\\d+/g, "").replace(/(link\\/ether|brd) \\S+/g, "")
      + show("-br", "address", "show", "dev", "t0").replace(/@if\\d+/, "") + show("route", "show", "dev", "t0");
    await all.apply(...wanted);
    const before = look();
    show("link", "del", "t0");
    show("link", "add", "t0", "type", "veth", "peer", "name", "t1"); show("link", "set", "t1", "up");
    all.forget();
    const problems = await all.apply(...wanted);
    console.log(JSON.stringify([before, look(), problems]));
  `);
  const [before, after, problems] = JSON.parse(out) as [string, string, string[]];
  assert.deepEqual(problems, []);
  assert.match(after, /mtu 1340/);
  assert.match(after, /10\.1\.0\.0\/16/);
  assert.equal(after, before);
});

test("where no descriptor is left for `ip` that is the interface's error, and not the end of the process", () => {
  const code = `${prelude}
    import { openSync } from "node:fs";
    try { for (;;) openSync("/dev/null"); } catch {}
    await tunnel.apply([], []).catch(({ code, message }) => console.log(code, message));`;
  const limited = 'ulimit -n 100; exec "$0" --input-type=module-typescript -e "$1"';
  const options = { cwd: import.meta.dirname, encoding: "utf8" } as const;
  const out = execFileSync("sh", ["-c", limited, process.execPath, code], options);
  assert.match(out, /^interface cannot configure the interface: .*EMFILE\n$/);
});
