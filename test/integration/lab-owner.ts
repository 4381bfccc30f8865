import { createLab } from "../../lab/lab.ts";
import { NAT } from "../../lab/nat.ts";
import { ensurePrivileges } from "../../lab/rootless.ts";

/**
 * A program that owns a lab, for tests of how labs end: makes one with a stubborn and a detached process in it, says what
 * there is as one line of JSON, and then does what its argument says: `wait`, `throw`, `exit`, or `ping` and close.
 */
const privileges = await ensurePrivileges();
const lab = await createLab({
  sites: [
    { name: "dc", latencyMs: 5 },
    { name: "home", latencyMs: 5, nat: NAT.symmetric },
  ],
  hosts: [
    { name: "server", site: "dc" },
    { name: "a", site: "home" },
  ],
});
const a = lab.host("a");
const stubborn = a.spawn("sh", ["-c", "trap '' TERM INT HUP; echo up; while :; do sleep 1; done"], {
  stdio: ["ignore", "pipe", "ignore"],
});
await new Promise((resolve) => stubborn.stdout!.once("data", resolve));
await a.exec("sh", ["-c", "setsid sleep 1000 >/dev/null 2>&1 &"]);
const ping =
  process.argv[2] === "ping" ? await a.exec("ping", ["-n", "-c2", "-i0.1", lab.host("server").address]) : undefined;
const report = {
  privileges,
  namespaces: lab.hosts.map((host) => host.namespace),
  router: lab.routerPid,
  stubborn: stubborn.pid,
  ping: ping?.stdout,
};
process.stdout.write(`${JSON.stringify(report)}\n`);
switch (process.argv[2]) {
  case "throw":
    throw new Error("on purpose");
  case "exit":
    process.exit(7);
    break;
  case "ping":
    await lab.close();
    break;
  default:
    break;
}
