import { readdirSync, readFileSync, readlinkSync, statSync } from "node:fs";
import { dirname, join } from "node:path";
import type { HostResolver, NoHostResolver } from "./host-resolver.ts";
import { parseResolvConf, RESOLV_CONF, type ResolvConfDeps, ResolvConfFile } from "./resolv-conf-linux.ts";
import { isResolvedRunning, SystemdResolved } from "./resolved-linux.ts";

/** Inode of the network namespace that a machine starts with, from Linux 6.18 on (linux/nsfs.h, NET_NS_INIT_INO). */
const FIRST_NETWORK = "net:[4026531833]";
/** Where resolved's own resolver listens; a resolv.conf that names it has programs ask resolved. */
const RESOLVED_STUBS: ReadonlySet<string> = new Set(["127.0.0.53", "127.0.0.54"]);
const NAMED_NETWORKS = "/run/netns";

/** What decides is read from here; tests bring their own. */
export interface HostFacts {
  /** Text of the resolver file, empty when there is none. */
  readonly resolvConf: string;
  /** This process is in the network of the machine's own resolver, not in a namespace of its own beside it. */
  readonly inMachineNetwork: boolean;
  /** The resolver file is this network's alone. */
  readonly ownsResolvConf: boolean;
  readonly resolvedRuns: () => Promise<boolean>;
}

/** The way to this host's resolver, or why it is left alone. */
export async function chooseHostResolver(
  deps: ResolvConfDeps,
  facts: HostFacts = readHostFacts(),
  path?: string,
): Promise<HostResolver | NoHostResolver> {
  const { servers } = parseResolvConf(facts.resolvConf);
  const asksResolved = servers.length > 0 && servers.every((server) => RESOLVED_STUBS.has(server));
  if (asksResolved && facts.inMachineNetwork && (await facts.resolvedRuns())) return new SystemdResolved();
  if (!facts.ownsResolvConf) {
    const reason = `${RESOLV_CONF} belongs to another network namespace; give this one its own, for example /etc/netns/NAME/resolv.conf`;
    return { kind: "none", reason };
  }
  return new ResolvConfFile(deps, path === undefined ? {} : { path });
}

/**
 * A network namespace mostly shares its files with the machine around it. To write the resolver file, or to talk to the machine's
 * resolved, from such a namespace would break names for the whole machine: so what cannot be proven to be ours is left alone.
 */
export function readHostFacts(path: string = RESOLV_CONF): HostFacts {
  const own = link("/proc/self/ns/net");
  const first = link("/proc/1/ns/net");
  const isFirst = own !== undefined && (own === FIRST_NETWORK || own === first);
  // Under our own unit's limits the first process cannot be looked at; a service is in the machine's network unless it is named.
  const isService = first === undefined && process.env.INVOCATION_ID !== undefined && !isNamed(own);
  const inMachineNetwork = isFirst || isService || process.env.DBUS_SYSTEM_BUS_ADDRESS !== undefined;
  return {
    resolvConf: text(path),
    inMachineNetwork,
    ownsResolvConf:
      isFirst || isService || isMountPoint(path) || (first !== undefined && differsFrom(`/proc/1/root${path}`, path)),
    resolvedRuns: isResolvedRunning,
  };
}

/** Whether the network namespace has a name, as `ip netns` gives it. */
function isNamed(namespace: string | undefined): boolean {
  try {
    return readdirSync(NAMED_NETWORKS).some(
      (name) => `net:[${statSync(join(NAMED_NETWORKS, name)).ino}]` === namespace,
    );
  } catch {
    return false;
  }
}

/** `ip netns exec` and containers mount a file of their own there. proc(5), mountinfo: the fifth field. */
function isMountPoint(path: string): boolean {
  return text("/proc/self/mountinfo")
    .split("\n")
    .some((line) => line.split(" ")[4] === path);
}

/** Where there is no file, or a link that leads nowhere, their directories tell. */
function differsFrom(other: string, path: string): boolean {
  for (const [there, here] of [
    [other, path],
    [dirname(other), dirname(path)],
  ] as const) {
    try {
      const [a, b] = [statSync(there), statSync(here)];
      return a.dev !== b.dev || a.ino !== b.ino;
    } catch {
      // One of them is missing.
    }
  }
  return false;
}

function link(path: string): string | undefined {
  try {
    return readlinkSync(path);
  } catch {
    return undefined;
  }
}

function text(path: string): string {
  try {
    return readFileSync(path, "utf8");
  } catch {
    return "";
  }
}
