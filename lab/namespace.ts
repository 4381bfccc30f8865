import { execFile, execFileSync } from "node:child_process";
import { mkdirSync, readdirSync, readFileSync, readlinkSync, rmSync, statSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import { messageOf } from "#base/errors.ts";
import { formatPrefix, type Prefix } from "#base/ip.ts";
import { LabError } from "./errors.ts";

/** The interface of every host. Not `tun0`, `veth…`, `wg…`: agents leave such interfaces out of their candidates. */
export const HOST_INTERFACE = "net0";

/** Where `ip netns` keeps its names. */
export const NAMESPACE_FOLDER = "/run/netns";
/** `ip netns exec NAME` shows the files below NAME in it as those of /etc. */
const NAMESPACE_FILES = "/etc/netns";
const NAME_PATTERN = /^perch-lab-([0-9a-z]+)-([0-9a-z]+)-[0-9a-z]+-/;
/** What a host may send in one burst before the router has read it; the kernel drops the rest. */
const TRANSMIT_QUEUE_PACKETS = 5000;
const TOOL_TIMEOUT_MS = 10_000;

let labsMade = 0;

/**
 * What the namespaces of a new lab begin with: `perch-lab-PID-START-N-`. The owner's process id and start time are in the name, so
 * that whoever comes later knows without any file whether the owner still lives.
 */
export function createNamespacePrefix(): string {
  return `perch-lab-${process.pid.toString(36)}-${startOf(process.pid)?.toString(36)}-${(labsMade++).toString(36)}-`;
}

/** Ticks from boot to the start of a process, or undefined: there is none. proc(5), field 22 of stat. */
function startOf(pid: number): number | undefined {
  try {
    const stat = readFileSync(`/proc/${pid}/stat`, "latin1");
    return Number(stat.slice(stat.lastIndexOf(")") + 2).split(" ")[19]);
  } catch {
    return undefined;
  }
}

/** Names of all namespaces on this machine. */
export function listNamespaces(): string[] {
  try {
    return readdirSync(NAMESPACE_FOLDER);
  } catch {
    return [];
  }
}

/** Creates empty namespaces; all or, after an error, none of them. Throws LabError. */
export async function createNamespaces(names: readonly string[]): Promise<void> {
  try {
    await runIp(
      ["-batch", "-"],
      names.map((name) => `netns add ${name}`),
    );
  } catch (error) {
    deleteNames(names);
    throw error;
  }
}

/** Process ids of all that run in one of the namespaces. */
export function processesIn(namespaces: readonly string[]): number[] {
  const inodes = new Set<string>();
  for (const name of namespaces) {
    try {
      inodes.add(`net:[${statSync(`${NAMESPACE_FOLDER}/${name}`).ino}]`);
    } catch {
      // Gone meanwhile: nobody can be found through it.
    }
  }
  if (inodes.size === 0) return [];
  return readdirSync("/proc")
    .filter((entry) => /^\d+$/.test(entry) && inodes.has(namespaceOf(entry)))
    .map(Number);
}

function namespaceOf(pid: string): string {
  try {
    return readlinkSync(`/proc/${pid}/ns/net`);
  } catch {
    return "";
  }
}

/** Sends a signal to everything in the namespaces and returns how many there were. */
export function signalProcessesIn(namespaces: readonly string[], signal: NodeJS.Signals): number {
  const pids = processesIn(namespaces);
  for (const pid of pids) {
    try {
      process.kill(pid, signal);
    } catch {
      // It ended by itself meanwhile.
    }
  }
  return pids.length;
}

/** Kills everything in the namespaces that begin with `prefix` and removes them. Synchronous: for exits; never throws. */
export function removeNamespaces(prefix: string): void {
  const names = listNamespaces().filter((name) => name.startsWith(prefix));
  // Once more for children that were born while their parents were looked for.
  for (let round = 0; round < 3 && signalProcessesIn(names, "SIGKILL") > 0; round++);
  deleteNames(names);
}

/**
 * Gives a namespace a resolver file of its own: programs started in it from now on see it as /etc/resolv.conf, and the machine's
 * is out of their reach. Returns its path. Root only.
 */
export function giveResolverFile(namespace: string, content: string): string {
  const folder = join(NAMESPACE_FILES, namespace);
  mkdirSync(folder, { recursive: true });
  writeFileSync(join(folder, "resolv.conf"), content, { mode: 0o644 });
  return join(folder, "resolv.conf");
}

function deleteNames(names: readonly string[]): void {
  if (names.length === 0) return;
  for (const name of names) if (name) rmSync(join(NAMESPACE_FILES, name), { recursive: true, force: true });
  try {
    execFileSync("ip", ["-force", "-batch", "-"], {
      input: names.map((name) => `netns del ${name}\n`).join(""),
      stdio: ["pipe", "ignore", "ignore"],
      timeout: TOOL_TIMEOUT_MS,
    });
  } catch {
    // Some were never made, or somebody else was faster; the others are gone.
  }
}

/** Removes what labs of dead owners have left; returns the names of the namespaces. */
export function sweepDeadLabs(): string[] {
  const stale = listNamespaces().filter((name) => {
    const [, pid, start] = NAME_PATTERN.exec(name) ?? [];
    return pid !== undefined && startOf(Number.parseInt(pid, 36)) !== Number.parseInt(start!, 36);
  });
  if (stale.length === 0) return [];
  signalProcessesIn(stale, "SIGKILL");
  deleteNames(stale);
  return stale;
}

export interface HostAddresses {
  readonly address: Prefix;
  readonly address6: Prefix | undefined;
}

/** Brings the interface `HOST_INTERFACE` of a namespace up, with addresses and default routes. */
export async function installInterface(namespace: string, mtu: number, addresses: HostAddresses): Promise<void> {
  const conf = `/proc/sys/net/ipv6/conf/${HOST_INTERFACE}`;
  // No link-local address: without one there are no router solicitations, and an idle host is silent.
  const settings = [
    `echo 0 > ${conf}/accept_ra`,
    `echo 1 > ${conf}/addr_gen_mode`,
    ...(addresses.address6 ? [] : [`echo 1 > ${conf}/disable_ipv6`]),
  ].map((command) => `{ ${command}; } 2>/dev/null`);
  // A kernel without IPv6 has no such files, and nothing to turn off.
  const script = `${settings.join("; ")}; exec ip -batch -`;
  await run(
    "ip",
    ["netns", "exec", namespace, "sh", "-c", script],
    [
      "link set lo up",
      `link set ${HOST_INTERFACE} mtu ${mtu} txqueuelen ${TRANSMIT_QUEUE_PACKETS} up`,
      ...addressCommands(addresses),
    ],
  );
}

/** Replaces the addresses of a host's interface, as DHCP in another network would. */
export async function replaceAddresses(namespace: string, mtu: number, addresses: HostAddresses): Promise<void> {
  await runIp(
    ["-n", namespace, "-batch", "-"],
    [`addr flush dev ${HOST_INTERFACE}`, `link set ${HOST_INTERFACE} mtu ${mtu}`, ...addressCommands(addresses)],
  );
}

function addressCommands({ address, address6 }: HostAddresses): string[] {
  const commands = [
    `addr add ${formatPrefix(address)} broadcast + dev ${HOST_INTERFACE}`,
    `route replace default dev ${HOST_INTERFACE}`,
  ];
  if (address6) {
    commands.push(
      `addr add ${formatPrefix(address6)} dev ${HOST_INTERFACE} nodad`,
      `route replace ::/0 dev ${HOST_INTERFACE}`,
    );
  }
  return commands;
}

/** `ip` with arguments and, for `-batch -`, commands on its standard input. Throws LabError. */
export async function runIp(args: readonly string[], input: readonly string[] = []): Promise<string> {
  return run("ip", args, input);
}

function run(command: string, args: readonly string[], input: readonly string[]): Promise<string> {
  return new Promise((resolve, reject) => {
    const child = execFile(command, args, { timeout: TOOL_TIMEOUT_MS }, (error, stdout, stderr) => {
      if (!error) return resolve(stdout);
      const isMissing = error.code === "ENOENT";
      reject(
        new LabError(
          isMissing ? "tool-missing" : "command-failed",
          isMissing
            ? `${command} is not installed (Debian package iproute2)`
            : `${command} ${args.join(" ")}: ${stderr.trim() || messageOf(error)}`,
          { cause: error },
        ),
      );
    });
    child.stdin?.on("error", () => {});
    child.stdin?.end(input.map((line) => `${line}\n`).join(""));
  });
}
