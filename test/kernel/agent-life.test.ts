import assert from "node:assert/strict";
import { readFileSync } from "node:fs";
import { join } from "node:path";
import { after, before, describe, test } from "node:test";
import { type LabAgent, waitFor } from "../../lab/perch-network.ts";
import { AgentBox, withoutNumber, withoutPrograms } from "../integration/agent-box.ts";

const INTERFACE = "pk0";
const PATIENCE_MS = 60_000;

describe("the life of an agent with the kernel's WireGuard", { timeout: 400_000 }, () => {
  let box: AgentBox;
  let agent: LabAgent;

  before(async () => {
    const upFlags = ["--device", "auto", "--interface-name", INTERFACE];
    box = await AgentBox.start({ upFlags, patienceMs: PATIENCE_MS });
    ({ agent } = box);
  });

  after(() => box?.[Symbol.asyncDispose]());

  test("auto is the kernel's, and down takes everything away", async () => {
    await box.ping(3);
    const up = await box.state();
    assert.match((await box.host.exec("ip", ["-d", "link", "show", INTERFACE])).stdout, /wireguard/);
    assert.match(up.nft, new RegExp(`table inet perch-${INTERFACE}`));
    const record = JSON.parse(readFileSync(join(agent.directory, "state/device.json"), "utf8"));
    assert.equal(record.interfaceName, INTERFACE);
    const { perch } = JSON.parse(await agent.mustPerch(["status", "--json"]));
    assert.equal(perch.interface.device, "kernel");
    await agent.mustPerch(["down"]);
    assert.deepEqual(withoutPrograms(await box.state()), withoutPrograms(box.untouched));
    await agent.mustPerch(["up"]);
    await box.ping(3);
  });

  test("SIGKILL of the agent: the next start has one of everything, and `perch state clean` leaves nothing", async () => {
    const before = await box.state();
    await agent.stop("SIGKILL");
    assert.equal((await box.host.exec("ip", ["link", "show", INTERFACE])).code, 0, "an interface outlives its agent");
    await box.resume();
    await box.ping(3);
    assert.deepEqual(withoutNumber((await box.state()).addresses), withoutNumber(before.addresses));
    await agent.stop("SIGKILL");
    assert.match((await box.state()).nft, /perch-/, "rules outlive their owner");
    await agent.mustPerch(["state", "clean", "--state-dir", join(agent.directory, "state")]);
    assert.deepEqual(await box.state(), box.untouched);
    await box.resume();
    await box.ping(3);
  });

  test("an interface that somebody deletes is made anew, with the tunnel", async () => {
    await box.ping(3);
    await box.host.exec("ip", ["link", "delete", INTERFACE]);
    await waitFor(
      async () => (await box.host.exec("ip", ["link", "show", INTERFACE])).code === 0 && (await box.isUp()),
      "up again",
      PATIENCE_MS,
    );
    await box.ping(3);
  });

  test("a WireGuard interface of that name that is somebody else's is never touched, also after a crash", async () => {
    await agent.stop("SIGKILL");
    const key = (await box.host.exec("wg", ["genkey"])).stdout.trim();
    const script = `ip link delete ${INTERFACE}; ip link add ${INTERFACE} type wireguard
      echo ${key} | wg set ${INTERFACE} private-key /dev/stdin listen-port 7777`;
    assert.equal((await box.host.exec("sh", ["-c", script])).code, 0);
    const theirs = async (): Promise<string> => (await box.host.exec("wg", ["show", INTERFACE, "dump"])).stdout;
    const before = await theirs();
    try {
      await agent.perch(["state", "clean", "--state-dir", join(agent.directory, "state")]);
      assert.equal(await theirs(), before);
      await box.startDaemon();
      const { code, stderr } = await agent.perch(["up"]);
      assert.equal(code, 1);
      assert.match(stderr, new RegExp(`there is an interface ${INTERFACE} already`));
      assert.equal(await theirs(), before);
    } finally {
      await box.host.exec("ip", ["link", "delete", INTERFACE]);
    }
    await agent.mustPerch(["up"], PATIENCE_MS);
    await box.ping(3);
  });
});
