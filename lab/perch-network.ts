import type { ChildProcess } from "node:child_process";
import { closeSync, mkdirSync, mkdtempSync, openSync, readFileSync, rmSync } from "node:fs";
import { connect } from "node:net";
import { tmpdir } from "node:os";
import { join, resolve } from "node:path";
import { setTimeout as sleep } from "node:timers/promises";
import { createDaemonClient, type DaemonClient } from "#agent/daemon/daemon-client.ts";
import type { Millis } from "#base/time.ts";
import { LabError } from "./errors.ts";
import type { ExecResult, Host } from "./host.ts";
import type { Lab } from "./lab.ts";

const PERCH = resolve(import.meta.dirname, "../bin/perch");
/** Ports of the lab's server, as a real one has them. */
const SERVER_PORT = 33073;
const STUN_PORT = 3478;
const READY_TIMEOUT: Millis = 90_000;
const EXIT_TIMEOUT: Millis = 10_000;

/** Devices of the agents, in turn; empty: the default. Such as `wireguard-go` or `wireguard-go,embedded`. */
const LAB_DEVICES = (process.env.PERCH_LAB_DEVICES ?? "").split(",").filter(Boolean);
/** Names of interfaces given out by this process. */
let interfacesNamed = 0;

export interface PerchNetworkOptions {
  /** Host that runs `perch server`; it must be reachable from all others. */
  readonly server: string;
  /** Hosts that run an agent, named in the network as in the lab. */
  readonly agents: readonly string[];
  /** Further flags of `perch up`, for one agent or for all. */
  readonly upFlags?: (agent: string) => readonly string[];
  /** Sleep after this long without traffic; shorter than the product's minimum only here. */
  readonly inactivity?: string;
  /** Further environment of the daemons. */
  readonly daemonEnvironment?: Readonly<Record<string, string>>;
  /** Called with the server's data directory, still empty, before the server starts. */
  readonly prepareServer?: (dataDirectory: string) => Promise<void>;
  /** Called as things happen, for a demo that tells the story. */
  readonly log?: (line: string) => void;
}

/** What `perch status --json` says, as far as the lab reads it. */
export interface StatusJson {
  readonly netbirdIp: string;
  readonly peers: { readonly details: readonly StatusPeer[] };
}

export interface StatusPeer {
  readonly fqdn: string;
  readonly netbirdIp: string;
  readonly publicKey: string;
  readonly status: string;
  readonly connectionType: string;
}

/** One agent of the network: its daemon runs in its host's namespace with a state directory of its own. */
export class LabAgent {
  readonly name: string;
  readonly host: Host;
  readonly directory: string;
  readonly #environment: Readonly<Record<string, string>>;
  #daemon: ChildProcess | undefined;
  #address = "";

  constructor(host: Host, directory: string, environment: Readonly<Record<string, string>> = {}) {
    this.name = host.name;
    this.host = host;
    this.#environment = environment;
    this.directory = directory;
    mkdirSync(directory, { recursive: true });
  }

  get #client(): DaemonClient {
    return createDaemonClient(this.socket);
  }

  get socket(): string {
    return join(this.directory, "perch.sock");
  }

  get daemonAddr(): string {
    return `unix://${this.socket}`;
  }

  /** Process id of the daemon, to measure or to kill. */
  get pid(): number | undefined {
    return this.#daemon?.pid;
  }

  /** Overlay IPv4 address; known once the agent was up. */
  get address(): string {
    return this.#address;
  }

  get log(): string {
    return readFileSync(join(this.directory, "daemon.log"), "utf8");
  }

  startDaemon(): void {
    const log = openSync(join(this.directory, "daemon.log"), "a");
    const flags = [
      "--daemon-addr",
      this.daemonAddr,
      "--state-dir",
      join(this.directory, "state"),
      "--log-level",
      "debug",
    ];
    this.#daemon = this.host.spawn(PERCH, ["service", "run", ...flags], {
      stdio: ["ignore", log, log],
      env: { ...process.env, PERCH_ALLOW_SHORT_INACTIVITY: "1", ...this.#environment },
    });
    closeSync(log);
  }

  /** Runs a `perch` command against this agent's daemon. */
  perch(args: readonly string[], timeoutMs: Millis = 30_000): Promise<ExecResult> {
    return this.host.exec(PERCH, [...args, "--daemon-addr", this.daemonAddr], {
      timeoutMs,
      env: { ...process.env, PERCH_ALLOW_SHORT_INACTIVITY: "1" },
    });
  }

  /** The same, failing with what the command said when its exit code is not 0. */
  async mustPerch(args: readonly string[], timeoutMs?: Millis): Promise<string> {
    const { code, stdout, stderr } = await this.perch(args, timeoutMs);
    if (code !== 0)
      throw new LabError("command-failed", `perch ${args[0]} on ${this.name}: exit ${code}: ${stderr.trim()}`);
    return stdout;
  }

  async up(flags: readonly string[]): Promise<void> {
    await this.mustPerch(["up", ...flags], READY_TIMEOUT);
    for await (const { head } of this.#client.getStatus({}))
      if (head) this.#address = head.address.replace(/\/\d+$/, "");
  }

  async status(): Promise<StatusJson> {
    return JSON.parse(await this.mustPerch(["status", "--json"])) as StatusJson;
  }

  /** Number of peers in the map; asked of the daemon itself, without the start of a program. */
  async countPeers(): Promise<number> {
    let count = 0;
    for await (const { peers } of this.#client.getStatus({ withPeers: true })) count += peers.length;
    return count;
  }

  /** Whether somebody listens on the daemon's socket. */
  isListening(): Promise<boolean> {
    return new Promise((resolve) => {
      const socket = connect(this.socket);
      socket.on("connect", () => {
        socket.destroy();
        resolve(true);
      });
      socket.on("error", () => resolve(false));
    });
  }

  /** How this agent sees another one. */
  async peer(name: string): Promise<StatusPeer> {
    const peers = (await this.status()).peers.details;
    const peer = peers.find(({ fqdn }) => fqdn === name || fqdn.startsWith(`${name}.`));
    if (!peer)
      throw new LabError(
        "command-failed",
        `${this.name} knows no peer ${name}, only ${peers.map((p) => p.fqdn).join()}`,
      );
    return peer;
  }

  /** Ends the daemon with a signal and waits until it is gone. */
  async stop(signal: NodeJS.Signals = "SIGTERM"): Promise<void> {
    const daemon = this.#daemon;
    this.#daemon = undefined;
    if (daemon) await end(daemon, signal);
  }
}

/** Where a network finds its hosts: a lab, or a star of cables. */
export type Hosts = Pick<Lab, "host">;

/**
 * `perch server` and agents on the hosts of a lab, run by the commands a user would type. Directories are temporary;
 * `close` ends every process and removes them.
 */
export class PerchNetwork implements AsyncDisposable {
  readonly agents: ReadonlyMap<string, LabAgent>;
  readonly directory: string;
  readonly #lab: Hosts;
  readonly #options: PerchNetworkOptions;
  #server: ChildProcess | undefined;
  #setupKey = "";

  private constructor(lab: Hosts, options: PerchNetworkOptions) {
    this.#lab = lab;
    this.#options = options;
    this.directory = mkdtempSync(join(tmpdir(), "perch-lab-"));
    this.agents = new Map(
      options.agents.map((name) => [
        name,
        new LabAgent(lab.host(name), join(this.directory, name), options.daemonEnvironment),
      ]),
    );
  }

  /** Starts the server, then all agents side by side; resolves when every agent has its map. */
  static async start(lab: Hosts, options: PerchNetworkOptions): Promise<PerchNetwork> {
    const network = new PerchNetwork(lab, options);
    try {
      await options.prepareServer?.(join(network.directory, "server"));
      await network.startServer();
      await Promise.all(options.agents.map((name) => network.startAgent(name)));
      await network.waitForPeers();
      return network;
    } catch (error) {
      await network.close();
      throw error;
    }
  }

  get managementUrl(): string {
    return `http://${this.#lab.host(this.#options.server).address}:${SERVER_PORT}`;
  }

  get setupKey(): string {
    return this.#setupKey;
  }

  get serverPid(): number | undefined {
    return this.#server?.pid;
  }

  agent(name: string): LabAgent {
    const agent = this.agents.get(name);
    if (!agent) throw new LabError("topology-invalid", `there is no agent ${JSON.stringify(name)}`);
    return agent;
  }

  /** Starts the server and waits until it says `ready`; the data directory is the same every time. */
  async startServer(): Promise<void> {
    const host = this.#lab.host(this.#options.server);
    const keyFile = join(this.directory, "setup-key");
    const log = openSync(join(this.directory, "server.log"), "a");
    const server = host.spawn(
      PERCH,
      [
        "server",
        ...["--listen", `0.0.0.0:${SERVER_PORT}`, "--stun-listen", `0.0.0.0:${STUN_PORT}`],
        ...["--public-url", this.managementUrl, "--data-dir", join(this.directory, "server")],
        ...["--setup-key-file", keyFile, "--log-level", "debug"],
      ],
      { stdio: ["ignore", "pipe", log] },
    );
    closeSync(log);
    this.#server = server;
    await ready(server, () => readFileSync(join(this.directory, "server.log"), "utf8"));
    if (!this.#setupKey) this.#setupKey = readFileSync(keyFile, "utf8").trim();
    this.#options.log?.(`server ready at ${this.managementUrl}`);
  }

  async stopServer(signal: NodeJS.Signals = "SIGTERM"): Promise<void> {
    const server = this.#server;
    this.#server = undefined;
    if (server) await end(server, signal);
  }

  /** Runs `perch server …` beside the running server, on its data directory. */
  perchServer(args: readonly string[]): Promise<ExecResult> {
    const host = this.#lab.host(this.#options.server);
    return host.exec(PERCH, ["server", ...args, "--data-dir", join(this.directory, "server")], { timeoutMs: 20_000 });
  }

  /** The flags of `perch up` for an agent that is not yet in the network. */
  joinFlags(hostname: string): readonly string[] {
    return ["--management-url", this.managementUrl, "--setup-key", this.#setupKey, "--hostname", hostname];
  }

  async startAgent(name: string): Promise<void> {
    const agent = this.agent(name);
    agent.startDaemon();
    await waitFor(() => agent.isListening(), `daemon of ${name}`);
    await agent.up([
      ...this.joinFlags(name),
      ...this.#deviceFlags(name),
      ...(this.#options.inactivity ? ["--inactivity-threshold", this.#options.inactivity] : []),
      ...(this.#options.upFlags?.(name) ?? []),
    ]);
    this.#options.log?.(`${name} is up as ${agent.address}`);
  }

  /**
   * Programs that implement WireGuard keep their control sockets in one folder for all network namespaces: each agent's interface
   * gets a name of its own on this machine.
   */
  #deviceFlags(name: string): readonly string[] {
    const flags = this.#options.upFlags?.(name) ?? [];
    const given = flags[flags.indexOf("--device") + 1];
    const device = flags.includes("--device")
      ? given
      : LAB_DEVICES[[...this.agents.keys()].indexOf(name) % LAB_DEVICES.length];
    const deviceFlags = device === undefined || device === given ? [] : ["--device", device];
    if (device !== "wireguard-go" || flags.includes("--interface-name")) return deviceFlags;
    const interfaceName = `pl${process.pid.toString(36)}x${(interfacesNamed++).toString(36)}`;
    return [...deviceFlags, "--interface-name", interfaceName];
  }

  /** Ends the daemon and starts it again; it comes up by itself with its stored settings. */
  async restartAgent(name: string): Promise<void> {
    const agent = this.agent(name);
    await agent.stop();
    agent.startDaemon();
    await waitFor(
      async () => (await agent.perch(["status", "--check", "ready"])).code === 0,
      `${name} after its restart`,
    );
  }

  /** Until every agent's map holds every other agent. */
  async waitForPeers(): Promise<void> {
    const others = this.agents.size - 1;
    for (const agent of this.agents.values()) {
      await waitFor(async () => (await agent.countPeers()) >= others, `all peers in the map of ${agent.name}`);
    }
  }

  /** Ends all agents and the server and removes their files; idempotent. */
  async close(): Promise<void> {
    await Promise.all([...this.agents.values()].map((agent) => agent.stop()));
    await this.stopServer();
    rmSync(this.directory, { recursive: true, force: true });
  }

  [Symbol.asyncDispose](): Promise<void> {
    return this.close();
  }
}

/** Asks again until `condition` holds; a bounded wait for something that tells nobody. */
export async function waitFor(
  condition: () => Promise<boolean>,
  what: string,
  timeoutMs: Millis = READY_TIMEOUT,
): Promise<void> {
  const deadline = performance.now() + timeoutMs;
  while (!(await condition())) {
    if (performance.now() > deadline) throw new LabError("command-timeout", `${what}: not within ${timeoutMs} ms`);
    await sleep(100);
  }
}

function ready(server: ChildProcess, log: () => string): Promise<void> {
  return new Promise((resolve, reject) => {
    let output = "";
    const fail = (why: string): void => {
      clearTimeout(timeout);
      reject(new LabError("command-failed", `perch server ${why}: ${log().trim().split("\n").at(-1) ?? ""}`));
    };
    const timeout = setTimeout(() => fail(`was not ready within ${READY_TIMEOUT} ms`), READY_TIMEOUT);
    server.stdout!.setEncoding("utf8").on("data", (text: string) => {
      output += text;
      if (!/^ready/m.test(output)) return;
      clearTimeout(timeout);
      resolve();
    });
    server.on("exit", (code, signal) => fail(`ended with ${signal ?? code}`));
  });
}

async function end(child: ChildProcess, signal: NodeJS.Signals): Promise<void> {
  if (child.exitCode !== null || child.signalCode !== null) return;
  const gone = new Promise<void>((resolve) => child.once("exit", () => resolve()));
  child.kill(signal);
  const forced = setTimeout(() => child.kill("SIGKILL"), EXIT_TIMEOUT);
  await gone;
  clearTimeout(forced);
}
