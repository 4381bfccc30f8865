import { execFile } from "node:child_process";
import { formatEndpoint } from "#base/ip.ts";
import { DnsError } from "./dns-error.ts";
import type { HostNames, HostResolver } from "./host-resolver.ts";

/** A bus that hangs must not hang the tunnel. */
const COMMAND_TIMEOUT_MS = 5000;

/**
 * systemd-resolved, told per link over D-Bus by `resolvectl`: only questions for the network's domains come to the agent. All of it
 * hangs on the interface: resolved forgets it when the interface goes, also by a crash.
 */
export class SystemdResolved implements HostResolver {
  readonly kind = "systemd-resolved";
  readonly anyPort = true;
  /** What is told for a link is nobody else's to change. */
  readonly problem = undefined;
  readonly #told = new Set<string>();

  fallback(): readonly [] {
    return [];
  }

  async apply(names: HostNames): Promise<void> {
    const link = names.interfaceName;
    const search = new Set<string>(names.search);
    const domains = [
      ...names.search,
      ...names.match.filter((domain) => !search.has(domain)).map((domain) => `~${domain}`),
    ];
    if (names.everything) domains.push("~.");
    const { address, port } = names.server;
    this.#told.add(link);
    await resolvectl("dns", link, port === 53 ? address : formatEndpoint(names.server));
    await resolvectl("domain", link, ...(domains.length > 0 ? domains : [""]));
    await resolvectl("default-route", link, names.everything ? "yes" : "no");
    // Names are not asked for by multicast where only packets for somebody go.
    await resolvectl("llmnr", link, "no");
    await resolvectl("mdns", link, "no");
    // Before, these names did not exist, and resolved remembers that.
    await resolvectl("flush-caches");
  }

  async restore(): Promise<readonly string[]> {
    const links = [...this.#told];
    this.#told.clear();
    const problems: string[] = [];
    for (const link of links) {
      await resolvectl("revert", link).catch((error: unknown) => {
        // With the interface its settings went as well.
        if (!/No such device|unknown interface|Failed to resolve interface/i.test(String(error)))
          problems.push(String(error));
      });
    }
    return problems;
  }
}

/** Whether resolved answers on the bus. */
export async function isResolvedRunning(): Promise<boolean> {
  return resolvectl("status").then(
    () => true,
    () => false,
  );
}

function resolvectl(...args: readonly string[]): Promise<string> {
  return new Promise((resolve, reject) => {
    execFile("resolvectl", ["--no-pager", ...args], { timeout: COMMAND_TIMEOUT_MS }, (error, stdout, stderr) => {
      if (!error) return resolve(stdout);
      const why = stderr.trim() || error.message;
      reject(new DnsError("resolver", `resolvectl ${args.join(" ")}: ${why}`, { cause: error }));
    });
  });
}
