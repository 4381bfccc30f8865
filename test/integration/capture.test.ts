import assert from "node:assert/strict";
import { execFileSync } from "node:child_process";
import { readFileSync, statSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import { describe, test } from "node:test";
import { type LabAgent, PerchNetwork, waitFor } from "../../lab/perch-network.ts";
import { skipWithoutLab } from "../../lab/rootless.ts";
import { createVethStar } from "../../lab/veth-star.ts";

/** What tcpdump makes of the file, a line a packet. */
const dump = (file: string): string[] =>
  execFileSync("tcpdump", ["-n", "-r", file], { encoding: "utf8", stdio: ["ignore", "pipe", "ignore"] })
    .trim()
    .split("\n")
    .filter((line) => line !== "");

describe("perch debug capture", { skip: await skipWithoutLab(), timeout: 60_000 }, () => {
  test("writes what is sent and received as a file for its owner alone, which tcpdump reads", async () => {
    const agents = ["alder", "birch"];
    await using star = await createVethStar(["hub", ...agents]);
    await using network = await PerchNetwork.start(star, { server: "hub", agents });
    const [alder, birch] = agents.map((name) => network.agent(name)) as [LabAgent, LabAgent];
    const ping = (...options: string[]) => alder.host.exec("ping", ["-i", "0.1", ...options, birch.address]);

    // birch sleeps: the first packets wait for it, and are in the file all the same.
    const file = join(network.directory, "all.pcapng");
    writeFileSync(file, "what was there before", { mode: 0o644 });
    const all = alder.perch(["debug", "capture", "-w", file, "--count", "6", "--duration", "20s"]);
    await waitFor(async () => statSync(file).size > 40, "the file's header");
    await ping("-c", "3");
    const said = await all;
    assert.equal(said.code, 0, said.stderr);
    assert.match(said.stderr, /6 packets/);
    assert.equal(statSync(file).mode & 0o777, 0o600);
    const lines = dump(file);
    assert.equal(lines.length, 6, lines.join("\n"));
    assert.equal(
      lines.filter((line) => line.includes(`${alder.address} > ${birch.address}: ICMP echo request`)).length,
      3,
    );
    assert.equal(
      lines.filter((line) => line.includes(`${birch.address} > ${alder.address}: ICMP echo reply`)).length,
      3,
    );
    assert.ok(readFileSync(file).includes("waits for a session"));

    // Somebody else's packets are not in one peer's capture, and Ctrl-C leaves a whole file.
    const none = await alder.perch(["debug", "capture", "--peer", "nobody", "-w", file]);
    assert.match(none.stderr, /nobody/);
    assert.equal(dump(file).length, 6, "a refused capture leaves the file alone");
    const short = join(network.directory, "short.pcapng");
    const timed = alder.perch([
      "debug",
      "capture",
      "--peer",
      "birch",
      "--snaplen",
      "40",
      "-w",
      short,
      "--duration",
      "2s",
    ]);
    await waitFor(async () => (statSync(short, { throwIfNoEntry: false })?.size ?? 0) > 40, "the second header");
    await ping("-c", "2", "-s", "1000");
    assert.match((await timed).stderr, /4 packets/);
    assert.equal(dump(short).length, 4);
  });
});
