import assert from "node:assert/strict";
import { execFileSync } from "node:child_process";
import { test } from "node:test";

const isRoot = process.getuid?.() === 0;

test("changes are told together, and those that nobody watched when there is a watcher again", {
  skip: !isRoot && "needs root: a network namespace",
}, () => {
  const script = `
    import { execFileSync } from "node:child_process";
    import { readFileSync } from "node:fs";
    import { setTimeout as pause } from "node:timers/promises";
    const { watchNetworkChanges } = await import(${JSON.stringify(new URL("./network-changes-linux.ts", import.meta.url))});
    const children = () => readFileSync("/proc/self/task/" + process.pid + "/children", "utf8").split(" ").filter(Boolean);
    const isMonitor = (pid) => readFileSync("/proc/" + pid + "/cmdline", "latin1").includes("ip\\0-o\\0monitor");
    let told = 0;
    const changes = watchNetworkChanges(() => told++);
    const until = async (done) => {
      for (let i = 0; !done(); i++) {
        if (i > 100) throw new Error("told " + told);
        await pause(50);
      }
    };
    const ip = (...args) => execFileSync("ip", args);
    await until(() => children().some(isMonitor));
    await pause(100);
    ip("link", "add", "one", "type", "bridge");
    ip("address", "add", "192.0.2.1/24", "dev", "one");
    ip("link", "set", "one", "up");
    await until(() => told > 0);
    await pause(500);
    const before = told;
    const [monitor] = children().filter(isMonitor);
    process.kill(Number(monitor), "SIGKILL");
    await until(() => told > before);
    await pause(100);
    const again = told;
    ip("address", "add", "192.0.2.2/24", "dev", "one");
    await until(() => told > again);
    changes.close();
    await until(() => children().length === 0);
    console.log("fine");`;
  const args = ["-n", process.execPath, "--input-type=module", "-e", script];
  assert.equal(execFileSync("unshare", args, { encoding: "utf8", timeout: 15_000 }), "fine\n");
});
