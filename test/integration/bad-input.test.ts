import assert from "node:assert/strict";
import { chmodSync, existsSync, mkdirSync, mkdtempSync, readFileSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join, resolve } from "node:path";
import { after, before, describe, test } from "node:test";
import type { ExecResult, Host } from "../../lab/host.ts";
import { createLab, type Lab } from "../../lab/lab.ts";
import { NAT } from "../../lab/nat.ts";
import { LabAgent, PerchNetwork, waitFor } from "../../lab/perch-network.ts";
import { skipWithoutLab } from "../../lab/rootless.ts";
import { filesBelow, type MachineState, readMachine } from "./machine-state.ts";

const PERCH = resolve(import.meta.dirname, "../../bin/perch");
const UNKNOWN_KEY = "A2C8E62B-38F5-4553-B31E-DD66C696CEBB";

/** Servers on the hub that are no management: one that greets in another language, one that never says anything. */
const BANNER_PORT = 2222;
const MUTE_PORT = 2223;
const OTHER_SERVERS = `
  const net = require("node:net");
  net.createServer((s) => s.on("error", () => {}).write("SSH-2.0-OpenSSH_9.2\\r\\n")).listen(${BANNER_PORT});
  net.createServer((s) => s.on("error", () => {})).listen(${MUTE_PORT}, () => console.log("ready"));
`;

/** In a user namespace of one user there is nobody to run as. */
const isAlone = /^\s*0\s+\d+\s+1\s*$/.test(readFileSync("/proc/self/uid_map", "latin1"));
const asNobody = { skip: isAlone && "the user namespace has one user" };

describe("bad input ends in one line that names the value", { skip: await skipWithoutLab() }, () => {
  let lab: Lab;
  let network: PerchNetwork;
  let box: Host;
  let agent: LabAgent;
  let untouched: MachineState;

  before(async () => {
    lab = await createLab({
      sites: [{ name: "hub" }, { name: "home", nat: NAT.portRestricted }],
      hosts: [
        { name: "hub", site: "hub" },
        { name: "box", site: "home" },
      ],
    });
    network = await PerchNetwork.start(lab, { server: "hub", agents: [] });
    box = lab.host("box");
    const others = lab.host("hub").spawnNode("-e", [OTHER_SERVERS], { stdio: ["ignore", "pipe", "inherit"] });
    await new Promise((resolve) => others.stdout!.once("data", resolve));
    agent = new LabAgent(box, join(network.directory, "box"));
    agent.startDaemon();
    await waitFor(async () => (await agent.perch(["status"])).code === 0, "daemon of box");
    untouched = await readMachine(box);
  });

  after(async () => {
    await agent?.stop();
    await network?.close();
    await lab?.close();
  });

  /** One line of failure, last on stderr, and the exit code; the machine is as it was. */
  async function refused(result: ExecResult, code: number, line: RegExp, before = untouched): Promise<void> {
    const said = result.stderr.trimEnd().split("\n");
    assert.match(said.at(-1) ?? "", line);
    assert.equal(said.filter((text) => text.startsWith("perch:")).length, 1, result.stderr);
    assert.doesNotMatch(result.stderr, /\n\s+at /);
    assert.equal(result.stdout, "");
    assert.equal(result.code, code, result.stderr);
    assert.deepEqual(await readMachine(box), before);
  }

  const up = (...flags: readonly string[]): Promise<ExecResult> => agent.perch(["up", ...flags]);
  const join_ = (...flags: readonly string[]): Promise<ExecResult> =>
    up("--management-url", network.managementUrl, ...flags);

  async function key(...flags: readonly string[]): Promise<string> {
    const { stdout, stderr } = await network.perchServer(["setup-key", "create", ...flags]);
    assert.match(stdout, /^[0-9A-F-]{36}\n$/i, stderr);
    return stdout.trim();
  }

  const peers = async (): Promise<number> =>
    (JSON.parse((await network.perchServer(["peers", "list", "--json"])).stdout) as unknown[]).length;

  describe("setup keys", () => {
    test("none for a machine that is not registered", async () => {
      await refused(await join_(), 4, /^perch: .*--setup-key/);
    });

    test("an unknown one", async () => {
      await refused(await join_("--setup-key", UNKNOWN_KEY), 4, /^perch: .*setup key A2C8E62B/);
    });

    test("one that is no key at all", async () => {
      await refused(await join_("--setup-key", "not-a-key"), 2, /^perch: --setup-key must be a UUID .*"not-…" of 9/);
    });

    test("a one-off key that was used", async () => {
      const used = await key();
      const other = new LabAgent(box, join(network.directory, "other"));
      other.startDaemon();
      await waitFor(async () => (await other.perch(["status"])).code === 0, "other daemon");
      await other.mustPerch(["login", "--management-url", network.managementUrl, "--setup-key", used]);
      await other.mustPerch(["deregister", "--yes"]);
      await other.stop();
      await refused(await join_("--setup-key", used), 4, new RegExp(`^perch: .*${used.slice(0, 8)}.* used`));
    });

    test("one that has expired", async () => {
      const short = await key("--reusable", "--expires", "1s");
      await new Promise((resolve) => setTimeout(resolve, 1200));
      await refused(await join_("--setup-key", short), 4, new RegExp(`^perch: .*${short.slice(0, 8)}.* expired`));
    });

    test("one that was revoked", async () => {
      const revoked = await key("--reusable");
      assert.match((await network.perchServer(["setup-key", "revoke", revoked])).stdout, /^revoked/);
      await refused(await join_("--setup-key", revoked), 4, new RegExp(`^perch: .*${revoked.slice(0, 8)}.* revoked`));
    });

    test("after all that no peer was made", async () => {
      assert.equal(await peers(), 0);
    });
  });

  describe("servers", () => {
    const hub = (scheme: string, port: number): string => `${scheme}://${lab.host("hub").address}:${port}`;
    const at = (url: string): Promise<ExecResult> => up("--management-url", url, "--setup-key", UNKNOWN_KEY);

    test("a port where nobody listens", async () => {
      const line = `^perch: cannot reach management at ${hub("http", 1)}: nothing listens there`;
      await refused(await at(hub("http", 1)), 1, new RegExp(line));
    });

    test("https where the server speaks plaintext", async () => {
      const line = `^perch: cannot reach management at ${hub("https", 33073)}: .*is it http:// where https://`;
      await refused(await at(hub("https", 33073)), 1, new RegExp(line));
    });

    test("a server that speaks something else", async () => {
      const line = `^perch: cannot reach management at ${hub("http", BANNER_PORT)}: .*is it http:// where https://`;
      await refused(await at(hub("http", BANNER_PORT)), 1, new RegExp(line));
    });

    test("a URL that is none", async () => {
      await refused(await at("vpn.example.com"), 2, /^perch: --management-url .*"vpn.example.com"/);
    });

    test("an address, a name and a server that never answer", async () => {
      const silent = ["http://10.66.0.1:33073", "http://nowhere.invalid", hub("http", MUTE_PORT)];
      const results = await Promise.all(
        silent.map((url, index) =>
          inForeground(`silent${index}`, ["--management-url", url, "--setup-key", UNKNOWN_KEY]),
        ),
      );
      for (const [index, url] of silent.entries()) {
        const line = `^perch: cannot reach management at ${url}: (it does not answer|.*name)`;
        await refused(results[index]!, 1, new RegExp(line));
      }
    });
  });

  describe("a machine that does not allow it", () => {
    let good: string;

    before(async () => {
      good = await key();
    });

    for (const [kind, ...add] of [
      ["veth", "link", "add", "taken0", "type", "veth", "peer", "name", "taken1"],
      ["persistent TUN", "tuntap", "add", "taken0", "mode", "tun"],
    ] as const) {
      test(`a ${kind} of the interface's name exists`, async () => {
        await box.exec("ip", add);
        await box.exec("ip", ["address", "add", "10.77.0.1/24", "dev", "taken0"]);
        await box.exec("ip", ["link", "set", "taken0", "up", "mtu", "1300"]);
        try {
          const taken = await readMachine(box);
          assert.ok(taken.addresses.some((line) => line.includes("10.77.0.1/24")));
          const result = await join_("--setup-key", good, "--interface-name", "taken0");
          await refused(result, 1, /^perch: an interface taken0 exists already; .*--interface-name/, taken);
        } finally {
          await box.exec("ip", ["link", "delete", "taken0"]);
        }
      });
    }

    test("the UDP port is taken", async () => {
      const script = `require("node:dgram").createSocket("udp4").bind(51999, () => console.log("bound"))`;
      const holder = box.spawnNode("-e", [script], { stdio: ["ignore", "pipe", "inherit"] });
      await new Promise((resolve) => holder.stdout!.once("data", resolve));
      try {
        const taken = await readMachine(box);
        const result = await join_("--setup-key", good, "--wireguard-port", "51999");
        await refused(result, 1, /^perch: UDP port 51999 is already in use; .*--wireguard-port/, taken);
      } finally {
        const gone = new Promise((resolve) => holder.once("exit", resolve));
        holder.kill();
        await gone;
      }
    });

    test("the daemon has no CAP_NET_ADMIN", async () => {
      const flags = ["--management-url", network.managementUrl, "--setup-key", good];
      const confined = ["setpriv", "--bounding-set=-net_admin", "--inh-caps=-net_admin"];
      const result = await inForeground("confined", flags, confined);
      await refused(result, 1, /^perch: creating interface perch0 needs root or CAP_NET_ADMIN/);
    });

    test("the command of an ordinary user", asNobody, async () => {
      const run = (...args: readonly string[]) => box.exec("runuser", ["-u", "nobody", "--", PERCH, ...args]);
      await refused(
        await run("service", "run"),
        1,
        /^perch: cannot use the state directory \/var\/lib\/perch: .*run it as root/,
      );
      const open = mkdtempSync(join(tmpdir(), "perch-nobody-"));
      chmodSync(open, 0o777);
      try {
        const result = await run(
          ...["up", "-F", "--daemon-addr", `unix://${open}/perch.sock`, "--state-dir", join(open, "state")],
          ...["--management-url", network.managementUrl, "--setup-key", good],
        );
        await refused(result, 1, /^perch: creating interface perch0 needs root or CAP_NET_ADMIN/);
        assert.deepEqual(filesBelow(open), ["state/", "state/private.key"]);
      } finally {
        rmSync(open, { recursive: true });
      }
    });

    test("the socket of a daemon that this user may not talk to", asNobody, async () => {
      chmodSync(network.directory, 0o755);
      const args = ["-u", "nobody", "--", PERCH, "status", "--daemon-addr", agent.daemonAddr];
      const line = new RegExp(`^perch: may not talk to the daemon on ${agent.socket}: be root or a member`);
      await refused(await box.exec("runuser", args), 5, line);
    });

    test("after all that no peer was made and the key is still good", async () => {
      assert.equal(await peers(), 0);
      const { code, stderr } = await join_("--setup-key", good, "--interface-name", "perch7");
      assert.equal(code, 0, stderr);
      assert.equal(await peers(), 1);
      await agent.mustPerch(["down"]);
      assert.deepEqual(await readMachine(box), untouched);
    });
  });

  describe("a second daemon", () => {
    const daemon = (socket: string, state: string): Promise<ExecResult> =>
      box.exec(PERCH, ["service", "run", "--daemon-addr", `unix://${socket}`, "--state-dir", state]);

    test("on the same socket", async () => {
      const state = join(network.directory, "second-state");
      const files = filesBelow(agent.directory);
      const line = new RegExp(`^perch: a daemon already runs on ${agent.socket}; choose another --daemon-addr`);
      await refused(await daemon(agent.socket, state), 1, line);
      assert.deepEqual(filesBelow(agent.directory), files);
      assert.equal(existsSync(state), false);
      assert.equal((await agent.perch(["status"])).code, 0);
    });

    test("on the same state directory", async () => {
      const socket = join(network.directory, "second.sock");
      const state = join(agent.directory, "state");
      const line = new RegExp(
        `^perch: a daemon \\(pid ${agent.pid}\\) already uses the state directory ${state}; choose`,
      );
      const files = filesBelow(network.directory);
      await refused(await daemon(socket, state), 1, line);
      assert.deepEqual(filesBelow(network.directory), files);
      assert.equal((await agent.perch(["status"])).code, 0);
    });

    test("on a path that is no socket, no directory, or cannot be made", async () => {
      const file = join(network.directory, "file");
      writeFileSync(file, "mine\n");
      const files = filesBelow(network.directory);
      const good = join(network.directory, "unused-state");
      for (const [socket, state, line] of [
        [file, good, `^perch: ${file} exists and is not a socket`],
        [
          join(file, "perch.sock"),
          good,
          `^perch: cannot make the directory of ${file}/perch.sock: ${file} is not a directory`,
        ],
        [
          join(network.directory, "unused.sock"),
          file,
          `^perch: cannot use the state directory ${file}: ${file} is not a directory`,
        ],
        [join(network.directory, "unused.sock"), "/proc/perch", "^perch: cannot use the state directory /proc/perch: "],
      ] as const) {
        await refused(await daemon(socket, state), 1, new RegExp(line));
      }
      assert.deepEqual(filesBelow(network.directory), files);
      assert.equal(readFileSync(file, "utf8"), "mine\n");
    });
  });

  test("a damaged identity is named and never replaced", async () => {
    const state = join(network.directory, "damaged", "state");
    mkdirSync(state, { recursive: true });
    const path = join(state, "private.key");
    for (const text of ["", "not a key\n", `${"A".repeat(42)}=\n`]) {
      writeFileSync(path, text);
      const result = await inForeground("damaged", [
        "--management-url",
        network.managementUrl,
        "--setup-key",
        UNKNOWN_KEY,
      ]);
      await refused(result, 1, new RegExp(`^perch: cannot use the key file ${path}: `));
      assert.equal(readFileSync(path, "utf8"), text);
    }
  });

  describe("servers that cannot start", () => {
    const server = (...flags: readonly string[]): Promise<ExecResult> =>
      lab.host("hub").exec(PERCH, ["server", "--public-url", network.managementUrl, ...flags]);

    test("the TCP or the UDP port is taken, the data directory is used or cannot be", async () => {
      const hub = lab.host("hub");
      const before = await readMachine(hub);
      const files = filesBelow(network.directory);
      const fresh = join(network.directory, "fresh");
      const free = ["--listen", "0.0.0.0:34000", "--stun-listen", "0.0.0.0:34000"];
      const used = join(network.directory, "server");
      for (const [line, ...flags] of [
        ["cannot listen on 0.0.0.0:33073: another program", "--data-dir", fresh, "--stun-listen", "0.0.0.0:34000"],
        ["cannot listen on .*0.0.0.0:3478.*: another program", "--data-dir", fresh, "--listen", "0.0.0.0:34000"],
        [`data directory ${used} is in use by another server`, "--data-dir", used, ...free],
        ["data directory /proc/perch cannot be used: ", "--data-dir", "/proc/perch", ...free],
        [`data directory ${used}/perch.db cannot be used: `, "--data-dir", join(used, "perch.db"), ...free],
      ] as const) {
        const { code, stdout, stderr } = await server(...flags);
        const said = stderr.trimEnd().split("\n");
        assert.match(said.at(-1) ?? "", new RegExp(`^perch: ${line}`));
        assert.equal(said.filter((text) => text.startsWith("perch:")).length, 1, stderr);
        assert.deepEqual([code, stdout], [1, ""]);
        assert.deepEqual(await readMachine(hub), before);
        assert.deepEqual(filesBelow(network.directory), files);
      }
    });
  });

  /** `perch up -F` as a daemon of its own, which ends with its failure and leaves nothing but its identity. */
  async function inForeground(
    name: string,
    flags: readonly string[],
    prefix: readonly string[] = [],
  ): Promise<ExecResult> {
    const directory = join(network.directory, name);
    const [command, ...args] = [
      ...[...prefix, PERCH, "up", "-F", "--daemon-addr", `unix://${directory}/perch.sock`],
      ...["--state-dir", join(directory, "state"), "--log-level", "error", ...flags],
    ];
    const result = await box.exec(command!, args, { timeoutMs: 30_000 });
    assert.deepEqual(filesBelow(directory), ["state/", "state/private.key"]);
    return result;
  }
});
