import assert from "node:assert/strict";
import type { ChildProcess } from "node:child_process";
import { readdirSync } from "node:fs";
import { createInterface } from "node:readline";
import { describe, test } from "node:test";
import { setTimeout as sleep } from "node:timers/promises";
import { type LabAgent, PerchNetwork, waitFor } from "../../lab/perch-network.ts";
import { skipWithoutLab } from "../../lab/rootless.ts";
import { createVethStar } from "../../lab/veth-star.ts";

const HOOK = new URL("./kill-data-worker.ts", import.meta.url).href;
const STREAM = new URL("./steady-stream.ts", import.meta.url).pathname;
/** From the fault until traffic flows again; generous for a loaded machine. */
const BACK_MS = 15_000;
/** What a fault looks like: thrown in the loop, or the thread gone without a word. */
const FAULTS: readonly NodeJS.Signals[] = ["SIGUSR2", "SIGPWR", "SIGUSR2"];

/** By the tunnel: without one, the bridge would carry the packet in the clear. */
const reaches = async (from: LabAgent, to: LabAgent): Promise<boolean> =>
  (await from.host.exec("ping", ["-c1", "-W1", "-I", "perch0", to.address])).code === 0;

/** A datagram that means nothing, to the WireGuard port. */
const poke = (from: LabAgent, { host }: LabAgent): Promise<unknown> =>
  from.host.exec("bash", ["-c", `echo poke > /dev/udp/${host.address}/51820`]);

/** What a process holds: a leak shows as one more after each fault. */
function held({ pid }: LabAgent): { descriptors: number; threads: number } {
  return {
    descriptors: readdirSync(`/proc/${pid}/fd`).length,
    threads: readdirSync(`/proc/${pid}/task`).length,
  };
}

/** The interface with its number, which a new one would not have, its addresses and the routes through it. */
async function tunnelOf({ host }: LabAgent): Promise<string> {
  const ip = async (...args: string[]): Promise<string> => (await host.exec("ip", args)).stdout;
  return `${await ip("-o", "link", "show", "perch0")}${await ip("-o", "addr", "show", "perch0")}${await ip("route")}`;
}

async function counters(agent: LabAgent): Promise<Readonly<Record<string, number>>> {
  const { perch } = JSON.parse(await agent.mustPerch(["status", "--json"]));
  return perch.counters;
}

const lines = (child: ChildProcess): AsyncIterator<string> =>
  createInterface({ input: child.stdout! })[Symbol.asyncIterator]();

/** Two agents that talk to each other, whose data workers die on a signal. */
async function startPair(): Promise<AsyncDisposable & { readonly alder: LabAgent; readonly birch: LabAgent }> {
  await using started = new AsyncDisposableStack();
  const star = started.use(await createVethStar(["hub", "alder", "birch"]));
  const network = started.use(
    await PerchNetwork.start(star, {
      server: "hub",
      agents: ["alder", "birch"],
      daemonEnvironment: { NODE_OPTIONS: `--import ${HOOK}` },
    }),
  );
  const [alder, birch] = [network.agent("alder"), network.agent("birch")];
  await waitFor(() => reaches(alder, birch), "the first way from alder to birch");
  const owned = started.move();
  return { alder, birch, [Symbol.asyncDispose]: () => owned.disposeAsync() };
}

describe("the data worker of an agent dies", { skip: await skipWithoutLab(), timeout: 120_000 }, () => {
  test("another takes over: interface and connections stay, and only the handshake is made again", async (t) => {
    await using pair = await startPair();
    const { alder, birch } = pair;
    const tunnel = await tunnelOf(alder);
    const before = held(alder);
    const pid = alder.pid!;

    const receiver = birch.host.spawnNode(STREAM, ["receive", birch.address], { stdio: ["ignore", "pipe", "inherit"] });
    const received = lines(receiver);
    const port = (await received.next()).value as string;
    const sender = alder.host.spawnNode(STREAM, ["send", birch.address, port], { stdio: ["pipe", "pipe", "inherit"] });
    const sent = lines(sender);
    const pings = birch.host.exec("ping", ["-i", "0.1", "-c", "80", "-W", "2", alder.address], { timeoutMs: 60_000 });

    for (const [index, signal] of FAULTS.entries()) {
      await sleep(1_000);
      const { "rx-packets": carried = 0 } = await counters(alder);
      process.kill(pid, signal);
      await waitFor(
        async () => ((await counters(alder))["worker-restarts"] ?? 0) > index,
        `restart ${index + 1}`,
        BACK_MS,
      );
      const after = await counters(alder);
      assert.ok((after["rx-packets"] ?? 0) >= carried, "counters go on from where they were");
      // birch still believes in its session: it is alder's handshake that mends it, at once.
      await waitFor(() => reaches(alder, birch), "traffic", BACK_MS);
    }

    sender.stdin!.write("enough\n");
    const [{ value: all }, { value: arrived }] = await Promise.all([sent.next(), received.next()]);
    assert.equal(arrived, all, "one TCP connection, whole");
    const { stdout } = await pings;
    const came = Number(/(\d+) received/.exec(stdout)?.[1]);
    t.diagnostic(`${came} of 80 pings came back, ${String(all).split(" ")[0]} bytes of TCP`);
    assert.ok(came >= 40, stdout);

    assert.equal(await tunnelOf(alder), tunnel, "the same interface, addresses and routes");
    assert.equal(alder.pid, pid, "the process is the same");
    assert.doesNotMatch(alder.log, /the tunnel ended/, "and the agent built nothing again");
    assert.equal(alder.log.match(/data worker died, another takes over/g)?.length, FAULTS.length, "each said once");
    assert.match(alder.log, /a fault for the test/);
    assert.match(alder.log, /ended without a word/);
    const doctor = await alder.perch(["doctor"]);
    assert.match(doctor.stdout, /data worker.*3 times/s);
    await waitFor(async () => held(alder).threads <= before.threads, `threads of ${JSON.stringify(before)}`, 5_000);
    const after = held(alder);
    // Connections to the server, and of this test to the daemon, may be between two lives.
    assert.ok(after.descriptors <= before.descriptors + 2, `${JSON.stringify(before)}, then ${JSON.stringify(after)}`);
  });

  test("one that dies again and again ends the tunnel with the reason, and the agent builds it anew", async () => {
    await using pair = await startPair();
    const { alder, birch } = pair;
    const deaths = (): number => alder.log.match(/data worker died/g)?.length ?? 0;
    for (let fault = 1; fault <= 5; fault++) {
      process.kill(alder.pid!, "SIGUSR2");
      await waitFor(
        async () => {
          await poke(birch, alder);
          return deaths() >= fault;
        },
        `fault ${fault}`,
        BACK_MS,
      );
    }
    await waitFor(async () => /the tunnel ended/.test(alder.log), "the end of the tunnel", BACK_MS);
    assert.match(alder.log, /died 5 times within 60 s, at last of: a fault for the test/);
    await waitFor(() => reaches(alder, birch), "traffic", BACK_MS);
    await waitFor(() => reaches(birch, alder), "traffic back", BACK_MS);
    const interfaces = (await alder.host.exec("ip", ["-br", "link", "show", "type", "tun"])).stdout;
    assert.equal(interfaces.trim().split("\n").length, 1, interfaces);
  });
});
