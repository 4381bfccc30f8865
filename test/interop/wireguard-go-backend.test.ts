import assert from "node:assert/strict";
import { execFileSync, spawn } from "node:child_process";
import { createSocket } from "node:dgram";
import { once } from "node:events";
import { existsSync, readdirSync, readFileSync, unlinkSync, writeFileSync } from "node:fs";
import { mkdtempDisposable } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { describe, it } from "node:test";
import { fileURLToPath } from "node:url";
import { createLogger } from "#base/log.ts";
import { type DeviceMark, type DeviceRecord, removeMarked } from "#wireguard/external/device-mark.ts";
import { interfaceExists } from "#wireguard/external/interface-names.ts";
import type { Backend } from "#wireguard/external/parts.ts";
import { uapiPath } from "#wireguard/external/uapi-control.ts";
import { startWireguardGo } from "#wireguard/external/wireguard-go-backend.ts";
import { waitUntil } from "../../lab/wait-until.ts";
import { enterOwnNetwork } from "./own-network.ts";
import { missingForLab } from "./wireguard-lab.ts";

const skip = missingForLab() ?? false;
if (!skip) enterOwnNetwork();

/** From the moment when a program hangs until another one runs: the next question, two without an answer. */
const HUNG_MS = 15_000;
/** Sooner than a program is ended by force. */
const FORCE_MS = 1_500;

let devices = 0;
/** Control sockets share one directory on this machine. */
const freshName = (): string => `pb${process.pid % 1_000_000}n${devices++}`;

/** The processes of wireguard-go that were started for this interface. */
function processesOf(interfaceName: string): number[] {
  return readdirSync("/proc")
    .filter((entry) => {
      try {
        const words = readFileSync(`/proc/${entry}/cmdline`, "latin1").split("\0");
        return words[0]?.endsWith("wireguard-go") && words[1] === interfaceName;
      } catch {
        return false;
      }
    })
    .map(Number);
}

function assertNothingLeft(interfaceName: string): void {
  assert.deepEqual(processesOf(interfaceName), []);
  assert.equal(interfaceExists(interfaceName), false, "interface");
  assert.equal(existsSync(uapiPath(interfaceName)), false, "socket");
}

class MemoryRecord implements DeviceRecord {
  mark: DeviceMark | undefined;
  /** What happened, in order. */
  readonly calls: string[] = [];

  write(mark: DeviceMark): void {
    this.calls.push(interfaceExists(mark.interfaceName) ? "write too late" : "write");
    this.mark = mark;
  }

  remove(): void {
    this.calls.push("remove");
    this.mark = undefined;
  }
}

interface Watched {
  readonly backend: Backend;
  readonly events: string[];
}

async function watched(interfaceName: string, record?: DeviceRecord): Promise<Watched> {
  const backend = await startWireguardGo({ interfaceName }, record ? { record } : {});
  const events: string[] = [];
  backend.events.on("restarted", ({ reason }) => events.push(`restarted: ${reason}`));
  backend.events.on("gone", ({ reason }) => events.push(`gone: ${reason}`));
  return { backend, events };
}

async function killAndWait({ backend, events }: Watched): Promise<void> {
  const before = events.length;
  const [pid] = processesOf(backend.interfaceName);
  process.kill(pid!, "SIGKILL");
  await waitUntil(() => events.length > before, "the backend tells", 5000);
}

describe("wireguard-go as a backend", { skip, timeout: 20_000, concurrency: 4 }, () => {
  it("brings an interface about that is down and empty, and leaves nothing behind", async () => {
    const name = freshName();
    const record = new MemoryRecord();
    const { backend, events } = await watched(name, record);
    assert.equal(backend.kind, "wireguard-go");
    assert.equal(interfaceExists(name), true);
    const [link] = JSON.parse(execFileSync("ip", ["-j", "addr", "show", "dev", name]).toString());
    assert.equal(link.flags.includes("UP"), false);
    assert.deepEqual(link.addr_info, []);
    assert.deepEqual([...(await backend.control.read()).peers], []);
    assert.deepEqual(record.calls, ["write"]);
    await Promise.all([backend.close(), backend.close()]);
    assert.deepEqual(events, []);
    assert.deepEqual(record.calls, ["write", "remove"]);
    assertNothingLeft(name);
    await assert.rejects(backend.control.read(), { code: "closed" });
  });

  it("starts the program again when it is killed, with an empty interface and a control of its own", async () => {
    const run = await watched(freshName());
    await using backend = run.backend;
    const { control } = backend;
    await control.change({ listenPort: 4321 }, []);
    await killAndWait(run);
    assert.deepEqual(run.events, ["restarted: ended by SIGKILL"]);
    assert.notEqual(backend.control, control);
    assert.notEqual((await backend.control.read()).listenPort, 4321);
    await assert.rejects(control.read(), { code: "closed" });
    assert.equal(processesOf(backend.interfaceName).length, 1);
  });

  it("gives up at the fifth death within a minute", async () => {
    const record = new MemoryRecord();
    const run = await watched(freshName(), record);
    await using backend = run.backend;
    for (let deaths = 1; deaths <= 5; deaths++) await killAndWait(run);
    assert.deepEqual(
      run.events.map((event) => event.split(":")[0]),
      ["restarted", "restarted", "restarted", "restarted", "gone"],
    );
    assertNothingLeft(backend.interfaceName);
    assert.deepEqual(record.calls, ["write", "remove"]);
    await backend.close();
  });

  for (const [what, undo] of [
    ["deletes the interface", (name: string) => execFileSync("ip", ["link", "delete", name])],
    ["removes the control socket", (name: string) => unlinkSync(uapiPath(name))],
    ["ends the program", (name: string) => process.kill(processesOf(name)[0]!, "SIGTERM")],
  ] as const) {
    it(`makes another interface when somebody ${what}`, async () => {
      const run = await watched(freshName());
      await using backend = run.backend;
      undo(backend.interfaceName);
      await waitUntil(() => run.events.length > 0, "the backend tells", 5000);
      assert.equal(run.events.length, 1);
      // Sometimes it has last words.
      assert.match(run.events[0]!, /^restarted: was ended, or its interface deleted/);
      assert.equal(interfaceExists(backend.interfaceName), true);
      await backend.control.change({ listenPort: 0 }, []);
    });
  }

  it("kills the program that was stopped, and starts it again", async () => {
    const run = await watched(freshName());
    await using backend = run.backend;
    const [pid] = processesOf(backend.interfaceName);
    process.kill(pid!, "SIGSTOP");
    await waitUntil(() => run.events.length > 0, "the backend tells", HUNG_MS);
    assert.deepEqual(run.events, ["restarted: was killed, as it did not answer for 6 s"]);
    assert.equal(processesOf(backend.interfaceName).length, 1);
    await backend.control.change({ listenPort: 0 }, []);
  });

  it("kills the program whose control socket takes questions and answers none", async () => {
    const name = freshName();
    await using folder = await mkdtempDisposable(join(tmpdir(), "perch-mute-"));
    const program = join(folder.path, "mute-wireguard");
    const path = JSON.stringify(uapiPath(name));
    const serve = `fs.rmSync(${path}, { force: true }); net.createServer(() => {}).listen(${path})`;
    writeFileSync(program, `#!/bin/sh\nexec ${process.execPath} -e '${serve}'\n`, { mode: 0o755 });
    const events: string[] = [];
    await using backend = await startWireguardGo({ interfaceName: name, program });
    backend.events.on("restarted", ({ reason }) => events.push(reason));
    await waitUntil(() => events.length > 0, "the backend tells", HUNG_MS);
    assert.deepEqual(events, ["was killed, as it did not answer for 6 s"]);
  });

  it("shows no port when another program has it, also when that goes later", async () => {
    await using backend = await startWireguardGo({ interfaceName: freshName() });
    const { control, interfaceName } = backend;
    execFileSync("ip", ["link", "set", interfaceName, "up"]);
    while ((await control.read()).listenPort === 0);
    const other = createSocket("udp4").bind(0, "0.0.0.0");
    await once(other, "listening");
    const { port } = other.address();
    const message = `the device refused the listen port ${port}: EADDRINUSE`;
    await assert.rejects(control.change({ listenPort: port }, []), { code: "control-failed", message });
    assert.equal((await control.read()).listenPort, 0);
    other.close();
    await once(other, "close");
    assert.equal((await control.read()).listenPort, 0);
  });

  it("closes at once while the program is stopped, and leaves nothing", async () => {
    const { backend } = await watched(freshName());
    process.kill(processesOf(backend.interfaceName)[0]!, "SIGSTOP");
    const reading = assert.rejects(backend.control.read(), { code: "closed" });
    const begin = performance.now();
    await backend.close();
    await reading;
    assert.ok(performance.now() - begin < FORCE_MS, "by request");
    assertNothingLeft(backend.interfaceName);
  });

  it("leaves nothing behind when it is closed the moment the program runs again", async () => {
    const run = await watched(freshName());
    const { backend } = run;
    const { promise: closed, resolve } = Promise.withResolvers<void>();
    backend.events.on("restarted", () => resolve(backend.close()));
    process.kill(processesOf(backend.interfaceName)[0]!, "SIGKILL");
    await closed;
    assertNothingLeft(backend.interfaceName);
  });

  it("closes while the program starts again", async () => {
    const run = await watched(freshName());
    process.kill(processesOf(run.backend.interfaceName)[0]!, "SIGKILL");
    await run.backend.close();
    assertNothingLeft(run.backend.interfaceName);
  });

  it("never touches an interface of that name that is not ours", async () => {
    const name = freshName();
    execFileSync("ip", ["tuntap", "add", "dev", name, "mode", "tun"]);
    await assert.rejects(startWireguardGo({ interfaceName: name }), { code: "interface-taken" });
    assert.equal(interfaceExists(name), true);
    assert.deepEqual(processesOf(name), []);
    execFileSync("ip", ["link", "delete", name]);
  });

  it("refuses names that are none, and a program that is not there", async () => {
    for (const interfaceName of ["", ".", "..", "a/b", "wg%d", "a b", "sixteen-letters-"])
      await assert.rejects(startWireguardGo({ interfaceName }), { code: "interface-name-invalid" }, interfaceName);
    await assert.rejects(startWireguardGo({ interfaceName: freshName(), program: "wireguard-gone" }), {
      code: "program-missing",
    });
  });

  it("says why the program does not start, and leaves no record", async () => {
    const record = new MemoryRecord();
    const starting = startWireguardGo({ interfaceName: freshName(), program: "false" }, { record });
    await assert.rejects(starting, { code: "control-failed", message: /ended with code 1/ });
    assert.deepEqual(record.calls, ["write", "remove"]);
  });

  it("runs beside others on the machine", async () => {
    await using one = await startWireguardGo({ interfaceName: freshName() });
    await using other = await startWireguardGo({ interfaceName: freshName() });
    await one.control.change({ listenPort: 1111 }, []);
    await other.control.change({ listenPort: 2222 }, []);
    assert.equal((await one.control.read()).listenPort, 1111);
    await one.close();
    assert.equal((await other.control.read()).listenPort, 2222);
  });

  it("puts what the program complains of into our log", async () => {
    const lines: string[] = [];
    const log = createLogger((level, message, { text }) => lines.push(`${level} ${message}: ${text}`));
    await using backend = await startWireguardGo({ interfaceName: freshName() }, { log });
    await assert.rejects(backend.control.change({}, [{ key: "AA==" as never }]), { code: "control-failed" });
    await waitUntil(() => lines.length > 0, "a line", 2000);
    assert.match(lines.join("\n"), /^warn the WireGuard program complains: .*public key/);
  });

  for (const signal of ["SIGKILL", "SIGTERM"] as const) {
    it(`ends with us when we end by ${signal}, and the record lets the next start remove what was left`, async () => {
      const name = freshName();
      const script = `
        const { startWireguardGo } = await import(${JSON.stringify(fileURLToPath(import.meta.resolve("#wireguard/external/wireguard-go-backend.ts")))});
        await startWireguardGo({ interfaceName: ${JSON.stringify(name)} },
          { record: { write: (mark) => console.log(JSON.stringify(mark)), remove() {} } });
        console.log("up");
      `;
      const agent = spawn(process.execPath, ["--input-type=module", "-e", script], {
        stdio: ["ignore", "pipe", "inherit"],
      });
      let said = "";
      agent.stdout.on("data", (text) => {
        said += text;
      });
      await waitUntil(() => said.endsWith("up\n"), "the agent is up", 10_000);
      const mark = JSON.parse(said.split("\n")[0]!) as DeviceMark;
      assert.equal(mark.interfaceName, name);
      const [pid] = processesOf(name);
      agent.kill(signal);
      await once(agent, "exit");
      await waitUntil(() => !existsSync(`/proc/${pid}/exe`), "wireguard-go ends", 5000);
      await removeMarked(mark);
      assertNothingLeft(name);
    });
  }

  it("is found by its mark where the kernel did not end it, hangs or not, and nobody else is", async () => {
    await using stranger = await startWireguardGo({ interfaceName: freshName() });
    for (const hangs of [false, true]) {
      const name = freshName();
      const mark: DeviceMark = {
        kind: "wireguard-go",
        interfaceName: name,
        mark: "ab".repeat(16),
        socketPath: uapiPath(name),
      };
      const env = { ...process.env, WG_PROCESS_FOREGROUND: "1", PERCH_DEVICE_MARK: mark.mark };
      const left = spawn("wireguard-go", [name], { stdio: "ignore", env });
      const exited = once(left, "exit");
      await waitUntil(() => existsSync(mark.socketPath), "wireguard-go runs", 5000);
      if (hangs) left.kill("SIGSTOP");
      assert.equal(await removeMarked(mark), `ended wireguard-go (${left.pid}), which had the interface ${name}`);
      await exited;
      assertNothingLeft(name);
      assert.equal(await removeMarked(mark), undefined);
    }
    assert.equal(processesOf(stranger.interfaceName).length, 1);
  });
});
