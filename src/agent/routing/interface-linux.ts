import { spawn } from "node:child_process";
import { formatPrefix, isV6, maskPrefix, type Prefix } from "#base/ip.ts";
import { AgentError } from "../errors.ts";

/**
 * Addresses and routes of the tunnel interface, by iproute2. Desired state goes in, the difference is applied; everything
 * hangs on the interface, so the kernel removes it all when the device closes or the process dies.
 */
export class TunnelInterface {
  readonly #name: string;
  #addresses = new Map<string, Prefix>();
  #routes = new Map<string, Prefix>();
  #tail: Promise<void> = Promise.resolve();

  constructor(name: string) {
    this.#name = name;
  }

  /**
   * Makes the interface have exactly these addresses (with the network's prefix length) and routes, and be up.
   * A route that covers an address's own network is left to the kernel. Calls are carried out one after the other.
   * Rejects with AgentError `interface`, naming the command that failed.
   */
  apply(addresses: readonly Prefix[], routes: readonly Prefix[]): Promise<void> {
    const next = this.#tail.then(() => this.#apply(addresses, routes));
    this.#tail = next.catch(() => {});
    return next;
  }

  async #apply(addresses: readonly Prefix[], routes: readonly Prefix[]): Promise<void> {
    const wantedAddresses = new Map(addresses.map((prefix) => [formatPrefix(prefix), prefix]));
    const connected = new Set(addresses.map((prefix) => formatPrefix(maskPrefix(prefix))));
    const wantedRoutes = new Map(
      routes
        .map(maskPrefix)
        .map((prefix) => [formatPrefix(prefix), prefix] as const)
        .filter(([text]) => !connected.has(text)),
    );
    const lines: string[] = [];
    for (const text of this.#routes.keys()) {
      if (!wantedRoutes.has(text)) lines.push(`route del ${text} dev ${this.#name}`);
    }
    for (const text of this.#addresses.keys()) {
      if (!wantedAddresses.has(text)) lines.push(`address del ${text} dev ${this.#name}`);
    }
    for (const [text, prefix] of wantedAddresses) {
      if (!this.#addresses.has(text)) {
        lines.push(`address replace ${text} dev ${this.#name}${isV6(prefix.address) ? " nodad" : ""}`);
      }
    }
    if (this.#addresses.size === 0) {
      // No link-local address: with one the kernel looks for routers and reports groups, packets that could wake an exit node.
      lines.push(`link set ${this.#name} addrgenmode none`, `link set ${this.#name} up`);
    }
    for (const text of wantedRoutes.keys()) {
      if (!this.#routes.has(text)) lines.push(`route replace ${text} dev ${this.#name}`);
    }
    if (lines.length > 0) await runBatch(lines);
    this.#addresses = wantedAddresses;
    this.#routes = wantedRoutes;
  }
}

/** Deletions of what is gone already, and settings that a kernel without IPv6 does not have, may fail. */
const MAY_FAIL = / del | addrgenmode /;

/** Runs lines of `ip`, those that may fail before the others. */
async function runBatch(lines: readonly string[]): Promise<void> {
  const optional = lines.filter((line) => MAY_FAIL.test(line));
  const needed = lines.filter((line) => !MAY_FAIL.test(line));
  if (optional.length > 0) await run(optional, true);
  if (needed.length > 0) await run(needed, false);
}

function run(lines: readonly string[], force: boolean): Promise<void> {
  return new Promise((resolve, reject) => {
    const child = spawn("ip", [...(force ? ["-force"] : []), "-batch", "-"], { stdio: ["pipe", "ignore", "pipe"] });
    let errors = "";
    child.stderr.setEncoding("utf8").on("data", (text: string) => {
      errors += text;
    });
    child.on("error", (cause: NodeJS.ErrnoException) => {
      const reason = cause.code === "ENOENT" ? "the command `ip` is missing (Debian: iproute2)" : cause.message;
      reject(new AgentError("interface", `cannot configure the interface: ${reason}`, { cause }));
    });
    child.on("close", (code) => {
      if (code === 0 || force) return resolve();
      const failed = Number(/Command failed -:(\d+)/.exec(errors)?.[1] ?? Number.NaN);
      const line = Number.isNaN(failed) ? lines.join("; ") : lines[failed - 1];
      reject(new AgentError("interface", `ip ${line}: ${errors.trim().split("\n")[0] ?? `exit code ${code}`}`));
    });
    child.stdin.end(`${lines.join("\n")}\n`);
  });
}
