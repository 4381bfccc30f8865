import assert from "node:assert/strict";
import { type ChildProcess, spawn, spawnSync } from "node:child_process";
import { once } from "node:events";
import { readdirSync, readFileSync } from "node:fs";
import { createInterface } from "node:readline";
import { describe, test } from "node:test";
import { setTimeout as sleep } from "node:timers/promises";
import { fileURLToPath } from "node:url";
import { createLab } from "../../lab/lab.ts";
import { HOST_INTERFACE, listNamespaces, processesIn, sweepDeadLabs } from "../../lab/namespace.ts";
import { NAT } from "../../lab/nat.ts";
import { skipWithoutLab } from "../../lab/rootless.ts";
import type { LabTopology } from "../../lab/topology.ts";
import { createVethPair } from "../../lab/veth.ts";
import { UdpPeer } from "./lab-udp-peer.ts";

const skip = await skipWithoutLab();
const OWNER = fileURLToPath(new URL("./lab-owner.ts", import.meta.url));
const GONE_WITHIN_MS = 4000;

const TOPOLOGY: LabTopology = {
  sites: [{ name: "dc" }, { name: "home", nat: NAT.portRestricted }],
  hosts: [
    { name: "server", site: "dc" },
    { name: "a", site: "home" },
  ],
};

interface Report {
  readonly privileges: string;
  readonly namespaces: readonly string[];
  readonly router: number;
  readonly stubborn: number;
  readonly ping?: string;
}

interface Owner {
  readonly child: ChildProcess;
  readonly exited: Promise<[number | null, NodeJS.Signals | null]>;
  readonly report: Report;
}

/** Runs lab-owner.ts as `[command, ...args]` would, up to its report. */
async function startOwner(task: string, wrapper: readonly string[] = []): Promise<Owner> {
  const [command, ...args] = [...wrapper, process.execPath, OWNER, task];
  const { NODE_TEST_CONTEXT: _, ...env } = process.env;
  const child = spawn(command!, args, { stdio: ["ignore", "pipe", "pipe"], env, cwd: "/" });
  let stderr = "";
  child.stderr.on("data", (text) => {
    stderr += text;
  });
  const exited = once(child, "exit") as Owner["exited"];
  const line = once(createInterface({ input: child.stdout }), "line") as Promise<[string]>;
  const first = await Promise.race([line, exited]);
  if (typeof first[0] !== "string") throw new Error(`the owner ended with ${first[0] ?? first[1]}: ${stderr}`);
  return { child, exited, report: JSON.parse(first[0]) as Report };
}

const isThere = (name: string): boolean => listNamespaces().includes(name);

/** Is the process there, and not only waiting for its parent to notice its end? */
function isAlive(pid: number): boolean {
  try {
    return !/^\d+ \(.*\) Z/.test(readFileSync(`/proc/${pid}/stat`, "latin1"));
  } catch {
    return false;
  }
}

async function assertGone({ namespaces, router, stubborn }: Report, withinMs: number): Promise<void> {
  const left = (): unknown[] => [...namespaces.filter(isThere), ...[router, stubborn].filter(isAlive)];
  const deadline = performance.now() + withinMs;
  while (left().length > 0 && performance.now() < deadline) await sleep(20);
  assert.deepEqual(left(), []);
}

describe("lab lifecycle", { skip, timeout: 20_000 }, () => {
  test("a closed lab leaves no namespace, no interface and no process", async () => {
    const interfaces = (): string[] => readdirSync("/sys/class/net").filter((name) => name === HOST_INTERFACE);
    const before = interfaces();
    let namespaces: string[] = [];
    let router: number | undefined;
    {
      await using lab = await createLab(TOPOLOGY);
      router = lab.routerPid;
      namespaces = lab.hosts.map((host) => host.namespace);
      lab.host("a").spawn("sleep", ["1000"]);
      await lab.host("a").exec("sh", ["-c", "setsid sleep 1000 >/dev/null 2>&1 &"]);
      assert.ok(namespaces.every(isThere));
      assert.equal(processesIn(namespaces).length, 2);
    }
    assert.deepEqual(namespaces.filter(isThere), []);
    assert.equal(isAlive(router!), false);
    assert.deepEqual(interfaces(), before);
  });

  test("labs side by side do not see each other", async () => {
    await using first = await createLab(TOPOLOGY);
    await using second = await createLab(TOPOLOGY);
    const [in1, in2] = await Promise.all([first, second].map((lab) => UdpPeer.open(lab.host("server"), 7000)));
    const [out1, out2] = await Promise.all([first, second].map((lab) => UdpPeer.open(lab.host("a"))));
    await out1!.send(in1!.endpoint, "one");
    await out2!.send(in2!.endpoint, "two");
    await in1!.expect("one");
    await in2!.expect("two");
    assert.equal(in1!.has("two") || in2!.has("one"), false);
    await first.close();
    await out2!.send(in2!.endpoint, "still-there");
    await in2!.expect("still-there");
  });

  test("a closed lab refuses work, closing twice is fine", async () => {
    const lab = await createLab(TOPOLOGY);
    await Promise.all([lab.close(), lab.close()]);
    await assert.rejects(lab.cut("home"), { code: "lab-closed" });
    await lab.close();
  });

  test("a lab whose router dies says so and can be closed", async () => {
    await using lab = await createLab(TOPOLOGY);
    process.kill(lab.routerPid!, "SIGKILL");
    await sleep(50);
    await assert.rejects(lab.counters(), { code: "router-failed", message: /SIGKILL/ });
  });

  test("a topology that is refused leaves nothing", async () => {
    const before = listNamespaces();
    await assert.rejects(createLab({ ...TOPOLOGY, hosts: [{ name: "x", site: "nowhere" }] }), {
      code: "topology-invalid",
    });
    assert.deepEqual(
      listNamespaces().filter((name) => !before.includes(name)),
      [],
    );
  });

  for (const [task, code] of [
    ["throw", 1],
    ["exit", 7],
  ] as const) {
    test(`an owner that ends by ${task} leaves nothing at its end`, async () => {
      const { exited, report } = await startOwner(task);
      assert.deepEqual(await exited, [code, null]);
      assert.deepEqual(report.namespaces.filter(isThere), []);
      await assertGone(report, GONE_WITHIN_MS);
    });
  }

  for (const signal of ["SIGINT", "SIGTERM"] as const) {
    test(`an owner that is ended by ${signal} cleans up first and then ends by it`, async () => {
      const { child, exited, report } = await startOwner("wait");
      child.kill(signal);
      assert.deepEqual(await exited, [null, signal]);
      assert.deepEqual(report.namespaces.filter(isThere), []);
      await assertGone(report, GONE_WITHIN_MS);
    });
  }

  test("when the owner is killed the router cleans up", async () => {
    const { child, exited, report } = await startOwner("wait");
    child.kill("SIGKILL");
    await exited;
    await assertGone(report, GONE_WITHIN_MS);
  });

  test("when owner and router are killed the next lab cleans up", async () => {
    const { child, exited, report } = await startOwner("wait");
    process.kill(report.router, "SIGKILL");
    child.kill("SIGKILL");
    await exited;
    await using alive = await createVethPair();
    await using _ = await createLab(TOPOLOGY);
    await assertGone(report, 500);
    assert.ok(isThere(alive.left.namespace), "what belongs to the living stays");
    assert.deepEqual(sweepDeadLabs(), []);
  });

  const unprivileged = skipUnprivileged();
  test("without root the lab runs in a user namespace", { skip: unprivileged }, async () => {
    const { exited, report } = await startOwner("ping", ["runuser", "-u", "nobody", "--"]);
    assert.equal(report.privileges, "user-namespace");
    assert.match(report.ping!, /2 received/);
    assert.deepEqual(await exited, [0, null]);
    assert.deepEqual(report.namespaces.filter(isThere), [], "nothing of it shows outside");
    await assertGone(report, GONE_WITHIN_MS);
  });

  test("a killed program in a user namespace leaves nothing either", { skip: unprivileged }, async () => {
    const { child, exited, report } = await startOwner("wait", [
      "setpriv",
      "--reuid=65534",
      "--regid=65534",
      "--clear-groups",
      "--",
    ]);
    child.kill("SIGKILL");
    await exited;
    await assertGone(report, GONE_WITHIN_MS);
  });
});

/** Can this test become an unprivileged user who may make user namespaces? */
function skipUnprivileged(): string | false {
  if (process.env.PERCH_LAB_USER_NAMESPACE !== undefined) return "already in a user namespace";
  const probe = spawnSync("runuser", ["-u", "nobody", "--", "unshare", "--user", "--map-root-user", "true"]);
  return probe.status === 0 ? false : "no runuser, or unprivileged user namespaces are not allowed";
}
