import assert from "node:assert/strict";
import { execFileSync } from "node:child_process";
import { readdirSync, readFileSync } from "node:fs";
import { describe, it } from "node:test";
import { chooseBackend } from "#wireguard/external/choose-backend.ts";
import { type DeviceMark, removeMarked } from "#wireguard/external/device-mark.ts";
import { interfaceExists } from "#wireguard/external/interface-names.ts";
import { startKernel } from "#wireguard/external/kernel-backend.ts";
import { waitUntil } from "../../lab/wait-until.ts";
import { enterOwnNetwork } from "./own-network.ts";
import { missingForLab } from "./wireguard-lab.ts";

const skip = missingForLab() ?? false;
if (!skip) enterOwnNetwork();

let links = 0;
const freshName = (): string => `pk${process.pid % 1_000_000}n${links++}`;
/** Everything but the control is the same for each type of interface, and this one every kernel has. */
const linkType = "bridge";

const ip = (...args: readonly string[]): string =>
  execFileSync("ip", args, { stdio: ["ignore", "pipe", "ignore"] }).toString();
const hasWireguard = !skip && canMake("wireguard");

function canMake(type: string): boolean {
  try {
    ip("link", "add", "pkprobe", "type", type);
    ip("link", "delete", "pkprobe");
    return true;
  } catch {
    return false;
  }
}

/** The children of this process that watch an interface. */
function watchersOf(interfaceName: string): string[] {
  return readdirSync("/proc").filter((entry) => {
    try {
      return readFileSync(`/proc/${entry}/cmdline`, "latin1").endsWith(`monitor\0link\0dev\0${interfaceName}\0`);
    } catch {
      return false;
    }
  });
}

class MemoryRecord {
  mark: DeviceMark | undefined;
  write(mark: DeviceMark): void {
    assert.equal(interfaceExists(mark.interfaceName), false, "written before it is made");
    this.mark = mark;
  }
  remove(): void {
    this.mark = undefined;
  }
}

async function watched() {
  const record = new MemoryRecord();
  const backend = await startKernel({ interfaceName: freshName(), linkType }, { record });
  const gone: string[] = [];
  backend.events.on("gone", ({ reason }) => gone.push(reason));
  return { backend, gone, record };
}

describe("the kernel as a backend", { skip, timeout: 20_000, concurrency: 4 }, () => {
  it("makes an interface that is down, and leaves nothing behind", async () => {
    const { backend, gone, record } = await watched();
    const name = backend.interfaceName;
    const [link] = JSON.parse(ip("-j", "addr", "show", "dev", name));
    assert.equal(link.flags.includes("UP"), false);
    assert.deepEqual(link.addr_info, []);
    assert.deepEqual(record.mark, { kind: "kernel", interfaceName: name, index: link.ifindex });
    await waitUntil(() => watchersOf(name).length === 1, "a watcher", 5000);
    await Promise.all([backend.close(), backend.close()]);
    assert.equal(interfaceExists(name), false);
    assert.equal(record.mark, undefined);
    await waitUntil(() => watchersOf(name).length === 0, "the watcher's end", 5000);
    assert.deepEqual(gone, []);
    await assert.rejects(backend.control.read(), { code: "closed" });
  });

  for (const when of ["at once", "later"] as const) {
    it(`is gone when somebody deletes the interface ${when}`, async () => {
      const { backend, gone, record } = await watched();
      const name = backend.interfaceName;
      if (when === "later") await waitUntil(() => watchersOf(name).length === 1, "a watcher", 5000);
      ip("link", "set", name, "up");
      ip("link", "delete", name);
      await waitUntil(() => gone.length > 0, "the backend tells", 5000);
      assert.deepEqual(gone, [`somebody deleted the interface ${name}`]);
      assert.equal(record.mark, undefined);
      await backend.close();
      assert.equal(gone.length, 1);
    });
  }

  it("goes on watching when the watcher is killed", async () => {
    const { backend, gone } = await watched();
    const name = backend.interfaceName;
    await waitUntil(() => watchersOf(name).length === 1, "a watcher", 5000);
    const [first] = watchersOf(name);
    process.kill(Number(first), "SIGKILL");
    await waitUntil(() => watchersOf(name).some((pid) => pid !== first), "another watcher", 5000);
    ip("link", "delete", name);
    await waitUntil(() => gone.length > 0, "the backend tells", 5000);
  });

  it("never touches an interface of that name that is not ours: not at the start, not at the end, not after a crash", async () => {
    const { backend, record } = await watched();
    const name = backend.interfaceName;
    const mark = record.mark!;
    await assert.rejects(startKernel({ interfaceName: name, linkType }), { code: "interface-taken" });
    ip("link", "delete", name);
    ip("link", "add", name, "type", "bridge");
    await backend.close();
    assert.equal(await removeMarked(mark), undefined);
    assert.equal(interfaceExists(name), true);
    ip("link", "delete", name);
  });

  it("is removed by its mark after a crash", async () => {
    const { backend, record } = await watched();
    assert.equal(await removeMarked(record.mark!), `removed the interface ${backend.interfaceName}`);
    assert.equal(interfaceExists(backend.interfaceName), false);
    await backend.close();
  });

  const sayNone = async (): Promise<void> => {
    const record = new MemoryRecord();
    const options = { interfaceName: freshName() };
    await assert.rejects(chooseBackend("kernel", options, { record }), { code: "kernel-unsupported" });
    assert.equal(await chooseBackend("auto", options, { record }), undefined);
    assert.equal(record.mark, undefined);
    assert.equal(interfaceExists(options.interfaceName), false);
  };

  const beChosen = async (): Promise<void> => {
    await using backend = await chooseBackend("auto", { interfaceName: freshName() });
    assert.equal(backend?.kind, "kernel");
    await backend.control.change({ listenPort: 0 }, []);
    assert.equal((await backend.control.read()).peers.size, 0);
  };

  // Which of the two there is to test is the machine's.
  if (hasWireguard) it("is chosen where it works, and configured", beChosen);
  else it("says that this kernel has none, and then there is none to choose", sayNone);

  it("is not what somebody gets who asks for wireguard-go, and a name that is taken is refused", async () => {
    const interfaceName = freshName();
    await using backend = await chooseBackend("wireguard-go", { interfaceName });
    assert.equal(backend?.kind, "wireguard-go");
    for (const choice of ["auto", "kernel", "wireguard-go"] as const)
      await assert.rejects(chooseBackend(choice, { interfaceName }), { code: "interface-taken" });
  });
});
