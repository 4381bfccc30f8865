import { execFileSync } from "node:child_process";
import { createLab, type Lab } from "../../../lab/lab.ts";
import type { LinkCounters, LinkOptions } from "../../../lab/link.ts";

/** Runs `ip ARGUMENTS` and throws with its output when it fails. */
export function ip(...args: string[]): void {
  execFileSync("ip", args, { stdio: ["ignore", "ignore", "pipe"] });
}

export interface WireEnd {
  readonly namespace: string;
  readonly address: string;
  readonly address6: string;
}

let serial = 0;

/** Two namespaces that reach each other over IPv4 and IPv6. */
export class Wire implements AsyncDisposable {
  readonly ends: readonly [WireEnd, WireEnd];
  readonly #lab: Lab | undefined;

  private constructor(ends: readonly [WireEnd, WireEnd], lab?: Lab) {
    this.ends = ends;
    this.#lab = lab;
  }

  /** A veth pair, `v0` at each end: no delay, nothing lost. */
  static cable(): Wire {
    const id = `${process.pid.toString(36)}${serial++}`;
    const end = (name: string, n: number): WireEnd => ({
      namespace: `pdp-${name}-${id}`,
      address: `192.0.2.${n}`,
      address6: `2001:db8::${n}`,
    });
    const ends = [end("a", 1), end("b", 2)] as const;
    for (const { namespace } of ends) ip("netns", "add", namespace);
    const [{ namespace: here }, { namespace: there }] = ends;
    ip("link", "add", "v0", "netns", here, "type", "veth", "peer", "name", "v0", "netns", there);
    for (const { namespace, address, address6 } of ends) {
      ip("-n", namespace, "link", "set", "lo", "up");
      ip("-n", namespace, "addr", "add", `${address}/24`, "dev", "v0");
      ip("-n", namespace, "addr", "add", `${address6}/64`, "dev", "v0", "nodad");
      ip("-n", namespace, "link", "set", "v0", "up");
    }
    return new Wire(ends);
  }

  /** The lab's router between them, whose link does the same to packets of both directions; the same choices in every run. */
  static async impaired(link: LinkOptions): Promise<Wire> {
    const lab = await createLab({
      // One site has it all: what one link lost or doubled, another would lose or double again.
      sites: [
        { name: "a", ipv6: true, ...link },
        { name: "b", ipv6: true },
      ],
      hosts: ["a", "b"].map((name) => ({ name, site: name })),
    });
    const end = (name: string): WireEnd => {
      const { namespace, address, address6 } = lab.host(name);
      return { namespace, address, address6: address6! };
    };
    return new Wire([end("a"), end("b")], lab);
  }

  /** What an impaired wire did, from `a` and to `a`. */
  async counters(): Promise<{ readonly up: LinkCounters; readonly down: LinkCounters }> {
    const { sites, drops } = await this.#lab!.counters();
    const unwanted = Object.entries(drops).filter(([, count]) => count > 0);
    if (unwanted.length > 0) throw new Error(`the lab lost packets unasked: ${JSON.stringify(unwanted)}`);
    return sites.a!;
  }

  async [Symbol.asyncDispose](): Promise<void> {
    if (this.#lab) await this.#lab.close();
    else for (const { namespace } of this.ends) ip("netns", "del", namespace);
  }
}
