import assert from "node:assert/strict";
import { endianness } from "node:os";
import { test } from "node:test";
import { formatPrefix } from "#base/ip.ts";
import { type MachineRoute, parseRoutes4, parseRoutes6, readAddresses, readRoutes } from "./machine-linux.ts";

const show = (routes: readonly MachineRoute[]): string[] =>
  routes.map(({ prefix, interfaceName }) => `${formatPrefix(prefix)} ${interfaceName}`);

test("the kernel's IPv4 table is read, without routes that are down or refuse", { skip: endianness() !== "LE" }, () => {
  const text = `Iface\tDestination\tGateway \tFlags\tRefCnt\tUse\tMetric\tMask\t\tMTU\tWindow\tIRTT
eth0\t00000000\t010200C0\t0003\t0\t0\t0\t00000000\t0\t0\t0
perch0\t00004064\t00000000\t0001\t0\t0\t0\t0000FFFF\t0\t0\t0
eth1\t0000000A\t00000000\t0000\t0\t0\t0\t000000FF\t0\t0\t0
*\t0000000B\t00000000\t0201\t0\t0\t0\t000000FF\t0\t0\t0
`;
  assert.deepEqual(show(parseRoutes4(text)), ["0.0.0.0/0 eth0", "100.64.0.0/16 perch0"]);
  assert.deepEqual(parseRoutes4(""), []);
});

test("the kernel's IPv6 table is read", () => {
  const none = "0".repeat(32);
  const text = `20010db8000100000000000000000000 40 ${none} 00 ${none} 00000100 00000001 00000000 00000001     eth0
${none} 00 ${none} 00 ${none} ffffffff 00000001 00000000 00200200       lo
`;
  assert.deepEqual(show(parseRoutes6(text)), ["2001:db8:1::/64 eth0"]);
});

test("this machine's own tables and addresses can be read", () => {
  assert.ok(readAddresses().some(({ interfaceName }) => interfaceName === "lo"));
  for (const { prefix } of readRoutes()) assert.match(formatPrefix(prefix), /^[0-9a-f.:]+\/\d+$/);
});
