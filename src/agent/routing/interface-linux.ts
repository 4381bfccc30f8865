import { spawn } from "node:child_process";
import { formatPrefix, isV6, maskPrefix, type Prefix } from "#base/ip.ts";
import { describeMissing, findProgram, PROGRAM_ENVIRONMENT } from "#net/find-program.ts";
import { AgentError } from "../errors.ts";

/**
 * Metric of every route of the tunnel. A route of the machine's own (a connected LAN has 0, or 256 in IPv6) to the same
 * network wins and is never replaced: a network that routes 192.168.1.0/24 must not cut a laptop off its own one.
 */
const ROUTE_METRIC = 5120;

/**
 * Addresses and routes of the tunnel interface, by iproute2. Desired state goes in, the difference is applied; everything
 * hangs on the interface, so the kernel removes it all when the device closes or the process dies.
 */
export class TunnelInterface {
  readonly #name: string;
  readonly #mtu: number | undefined;
  #addresses = new Map<string, Prefix>();
  #routes = new Map<string, Prefix>();
  #tail: Promise<unknown> = Promise.resolve();

  /** `mtu` of an interface that does not have it yet. */
  constructor(name: string, mtu?: number) {
    this.#name = name;
    this.#mtu = mtu;
  }

  /**
   * Makes the interface have exactly these addresses (with the network's prefix length) and routes, and be up.
   * A route that covers an address's own network is left to the kernel. Calls are carried out one after the other.
   * Rejects with AgentError `interface`, naming the command that failed, when the interface is of no use; resolves with the
   * commands of lesser weight that failed (IPv6 on a machine without it, a single route), which the next call tries again.
   */
  apply(addresses: readonly Prefix[], routes: readonly Prefix[]): Promise<readonly string[]> {
    const next = this.#tail.then(() => this.#apply(addresses, routes));
    this.#tail = next.catch(() => {});
    return next;
  }

  /** The interface is another one of the same name, down and bare: the next `apply` gives it everything. */
  forget(): void {
    this.#tail = this.#tail.then(() => {
      this.#addresses.clear();
      this.#routes.clear();
    });
  }

  async #apply(addresses: readonly Prefix[], routes: readonly Prefix[]): Promise<readonly string[]> {
    const wantedAddresses = new Map(addresses.map((prefix) => [formatPrefix(prefix), prefix]));
    const connected = new Set(addresses.map((prefix) => formatPrefix(maskPrefix(prefix))));
    const wantedRoutes = new Map(
      routes
        .map(maskPrefix)
        .map((prefix) => [formatPrefix(prefix), prefix] as const)
        .filter(([text]) => !connected.has(text)),
    );
    const removals: string[] = [];
    const needed: string[] = [];
    const wished = new Map<string, () => void>();
    for (const text of this.#routes.keys()) {
      if (!wantedRoutes.has(text)) removals.push(this.#route("del", text));
    }
    for (const text of this.#addresses.keys()) {
      if (!wantedAddresses.has(text)) removals.push(`address del ${text} dev ${this.#name}`);
    }
    if (this.#addresses.size === 0) {
      // No link-local address: with one the kernel looks for routers and reports groups, packets that could wake an exit node.
      removals.push(`link set ${this.#name} addrgenmode none`);
    }
    for (const [text, prefix] of wantedAddresses) {
      if (this.#addresses.has(text)) continue;
      if (isV6(prefix.address)) {
        const forget = (): unknown => this.#addresses.delete(text);
        wished.set(`address replace ${text} dev ${this.#name} nodad`, forget);
      } else needed.push(`address replace ${text} dev ${this.#name}`);
    }
    if (this.#addresses.size === 0) {
      if (this.#mtu !== undefined) needed.push(`link set ${this.#name} mtu ${this.#mtu}`);
      needed.push(`link set ${this.#name} up`);
    }
    for (const text of wantedRoutes.keys()) {
      if (!this.#routes.has(text)) wished.set(this.#route("add", text), () => this.#routes.delete(text));
    }
    await run(removals);
    const [failure] = await run(needed);
    if (failure) throw new AgentError("interface", `ip ${failure.line}: ${failure.reason}`);
    this.#addresses = wantedAddresses;
    this.#routes = wantedRoutes;
    const problems = await run([...wished.keys()]);
    for (const { line } of problems) wished.get(line)?.();
    return problems.map(({ line, reason }) => `ip ${line}: ${reason}`);
  }

  /** Not `replace`: that would take the route of another agent on this machine away, and nobody would put it back. */
  #route(verb: "add" | "del", text: string): string {
    return `route ${verb} ${text} dev ${this.#name} metric ${ROUTE_METRIC}`;
  }
}

interface Failure {
  readonly line: string;
  readonly reason: string;
}

/** Runs all lines in one process of `ip`; what failed. Throws AgentError `interface` when `ip` itself cannot run. */
function run(lines: readonly string[]): Promise<Failure[]> {
  if (lines.length === 0) return Promise.resolve([]);
  return new Promise((resolve, reject) => {
    const fail = (reason: string, cause?: Error): void =>
      reject(new AgentError("interface", `cannot configure the interface: ${reason}`, { cause }));
    const path = findProgram("ip");
    if (path === undefined) return fail(describeMissing("ip", "iproute2"));
    const child = spawn(path, ["-force", "-batch", "-"], {
      stdio: ["pipe", "ignore", "pipe"],
      env: PROGRAM_ENVIRONMENT,
    });
    let errors = "";
    child.on("error", (cause) => fail(cause.message, cause));
    child.on("close", () => resolve(parseFailures(errors, lines)));
    // A system without descriptors makes neither, and says so by `error`.
    child.stderr?.setEncoding("utf8").on("data", (text: string) => {
      errors += text;
    });
    child.stdin?.on("error", () => {}).end(`${lines.join("\n")}\n`);
  });
}

/** `ip -batch` says why, then `Command failed -:LINE`. */
function parseFailures(errors: string, lines: readonly string[]): Failure[] {
  const failures: Failure[] = [];
  let reason = "";
  for (const text of errors.split("\n")) {
    const failed = /^Command failed -:(\d+)/.exec(text);
    if (!failed) {
      if (text.trim() !== "") reason = text.trim();
      continue;
    }
    failures.push({ line: lines[Number(failed[1]) - 1] ?? "", reason: reason || "failed" });
    reason = "";
  }
  return failures;
}
