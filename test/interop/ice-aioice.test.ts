import assert from "node:assert/strict";
import { type ChildProcessWithoutNullStreams, execFileSync, spawn, spawnSync } from "node:child_process";
import { once } from "node:events";
import { join } from "node:path";
import { createInterface } from "node:readline";
import { after, before, describe, test } from "node:test";

/*
 *   namespace a: 10.77.0.1, fd77::1 ---- veth ---- namespace b: 10.77.0.2, fd77::2
 *   Perch agent, port 51820                        aioice, random ports
 */

const PYTHON = "/usr/bin/python3";
const NAMESPACES = [`perch-ice-${process.pid}-a`, `perch-ice-${process.pid}-b`] as const;

const skip = missing();

function missing(): string | false {
  if (process.getuid?.() !== 0) return "network namespaces need root";
  if (spawnSync("ip", ["-V"]).status !== 0) return "needs iproute2";
  if (spawnSync(PYTHON, ["-c", "import aioice"]).status !== 0) return "needs python3-aioice";
  return false;
}

function ip(...args: string[]): void {
  execFileSync("ip", args, { stdio: ["ignore", "ignore", "inherit"] });
}

/** A child that speaks JSON lines; `wait` resolves with the first message, past or future, that has the key. */
class Peer {
  readonly process: ChildProcessWithoutNullStreams;
  readonly heard: Record<string, unknown>[] = [];
  readonly #waiting = new Set<() => void>();
  readonly #listeners = new Set<(message: Record<string, unknown>) => void>();

  constructor(namespace: string, command: readonly string[]) {
    this.process = spawn("ip", ["netns", "exec", namespace, ...command], { stdio: "pipe" });
    this.process.stderr.pipe(process.stderr);
    createInterface({ input: this.process.stdout }).on("line", (line) => {
      const message = JSON.parse(line) as Record<string, unknown>;
      this.heard.push(message);
      for (const listener of this.#listeners) listener(message);
      for (const wake of [...this.#waiting]) wake();
    });
  }

  say(message: Record<string, unknown>): void {
    this.process.stdin.write(`${JSON.stringify(message)}\n`);
  }

  /** Passes on what was said and what will be. */
  onMessage(listener: (message: Record<string, unknown>) => void): void {
    this.heard.forEach(listener);
    this.#listeners.add(listener);
  }

  async wait(key: string, limitMs = 8_000): Promise<unknown> {
    const deadline = AbortSignal.timeout(limitMs);
    for (;;) {
      const found = this.heard.find((message) => key in message);
      if (found) return found[key];
      assert.ok(
        !deadline.aborted,
        `nothing about ${key} within ${limitMs} ms: ${JSON.stringify(this.heard.slice(-4))}`,
      );
      await new Promise<void>((resolve) => {
        const wake = (): void => {
          this.#waiting.delete(wake);
          deadline.removeEventListener("abort", wake);
          resolve();
        };
        this.#waiting.add(wake);
        deadline.addEventListener("abort", wake);
      });
    }
  }

  async stop(): Promise<void> {
    if (this.process.exitCode !== null || this.process.signalCode !== null) return;
    const gone = once(this.process, "exit");
    this.process.stdin.end();
    const timer = setTimeout(() => this.process.kill("SIGKILL"), 2_000);
    await gone;
    clearTimeout(timer);
  }
}

const here = import.meta.dirname;

async function meet(
  perchRole: "controlling" | "controlled",
  rules: "stock" | "perch",
  late = false,
): Promise<[Peer, Peer]> {
  const perch = new Peer(NAMESPACES[0], [process.execPath, join(here, "perch-ice-peer.ts"), perchRole, rules]);
  const foreignRole = perchRole === "controlling" ? "controlled" : "controlling";
  const foreign = new Peer(NAMESPACES[1], [PYTHON, join(here, "aioice-peer.py"), foreignRole]);
  await perch.wait("credentials");
  foreign.onMessage((message) => {
    if (!late && ("credentials" in message || "candidate" in message)) perch.say(message);
  });
  perch.onMessage((message) => {
    if ("credentials" in message || "candidate" in message) foreign.say(message);
  });
  await foreign.wait("candidate");
  foreign.say({ connect: true });
  if (late) {
    // aioice checks for half a second before Perch hears of it; its candidates are never told.
    await new Promise((resolve) => setTimeout(resolve, 500));
    perch.say({ credentials: await foreign.wait("credentials") });
  }
  return [perch, foreign];
}

describe("aioice as the remote agent", { skip, concurrency: false }, () => {
  before(() => {
    const [a, b] = NAMESPACES;
    for (const name of NAMESPACES) {
      ip("netns", "add", name);
      ip("-n", name, "link", "set", "lo", "up");
    }
    ip("-n", a, "link", "add", "uplink", "type", "veth", "peer", "name", "uplink", "netns", b);
    NAMESPACES.forEach((name, index) => {
      ip("-n", name, "address", "add", `10.77.0.${index + 1}/24`, "dev", "uplink");
      ip("-n", name, "address", "add", `fd77::${index + 1}/64`, "dev", "uplink", "nodad");
      ip("-n", name, "link", "set", "uplink", "up");
    });
  });

  after(() => {
    for (const name of NAMESPACES) spawnSync("ip", ["netns", "del", name]);
  });

  for (const perchRole of ["controlling", "controlled"] as const) {
    for (const rules of ["stock", "perch"] as const) {
      test(`nominates and passes data both ways, Perch ${perchRole}, ${rules} rules`, async () => {
        const [perch, foreign] = await meet(perchRole, rules);
        try {
          await perch.wait("connected");
          const theirs = (await foreign.wait("connected")) as { local: [string, number]; remote: [string, number] };
          assert.equal(theirs.remote[1], 51820);
          perch.say({ send: "from perch" });
          foreign.say({ send: "from aioice" });
          assert.equal(await foreign.wait("data"), "from perch");
          assert.equal(await perch.wait("data"), "from aioice");
          perch.say({ report: true });
          const pairs = (await perch.wait("pairs")) as { selected: boolean; nominated: boolean; answered: number }[];
          assert.ok(pairs.some((pair) => pair.selected && pair.nominated && pair.answered > 0));
        } finally {
          await Promise.all([perch.stop(), foreign.stop()]);
        }
      });
    }
  }

  test("connects when the remote checks first and its candidates are never signalled", async () => {
    const [perch, foreign] = await meet("controlling", "stock", true);
    try {
      await perch.wait("connected");
      await foreign.wait("connected");
      perch.say({ send: "learned from your checks" });
      assert.equal(await foreign.wait("data"), "learned from your checks");
    } finally {
      await Promise.all([perch.stop(), foreign.stop()]);
    }
  });

  test("notices within six seconds that the remote was killed", async () => {
    const [perch, foreign] = await meet("controlled", "stock");
    try {
      await perch.wait("connected");
      await foreign.wait("connected");
      foreign.process.kill("SIGKILL");
      await once(foreign.process, "exit");
      assert.equal(await perch.wait("lost", 7_500), "consent-expired");
    } finally {
      await Promise.all([perch.stop(), foreign.stop()]);
    }
  });
});
