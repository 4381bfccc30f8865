import { type ChildProcess, execFile, execFileSync, spawn } from "node:child_process";
import { promisify } from "node:util";
import { nftProgram } from "#wireguard/external/nft.ts";
import { NftRules } from "#wireguard/external/nft-rules.ts";
import { createNamespacePrefix, createNamespaces, removeNamespaces } from "../../../lab/namespace.ts";
import { PEER, type Place } from "../filter-traffic.ts";

const run = promisify(execFile);

/** Two hosts at a cable; the second one filters what comes from the first. Addresses end in 1 and 2. */
export class FilteredCable implements AsyncDisposable {
  readonly a: Place;
  readonly b: Place;
  readonly rules: NftRules;
  readonly #prefix: string;
  readonly #children: ChildProcess[];

  private constructor(prefix: string, children: ChildProcess[], hosts: readonly [Place, Place], rules: NftRules) {
    this.#prefix = prefix;
    this.#children = children;
    [this.a, this.b] = hosts;
    this.rules = rules;
  }

  static async start(): Promise<FilteredCable> {
    const prefix = createNamespacePrefix();
    const names = [`${prefix}a`, `${prefix}b`] as const;
    await createNamespaces(names);
    try {
      const lines = [
        `link add wg8 netns ${names[0]} mtu 1420 type veth peer name wg8 netns ${names[1]}`,
        ...names.flatMap((name, index) => [
          `-n ${name} addr add 10.77.0.${index + 1}/24 dev wg8`,
          `-n ${name} addr add fd77::${index + 1}/64 dev wg8 nodad`,
          // A tunnel has no neighbours to be discovered, and the filter lets nobody discover any.
          `-n ${name} link set wg8 mtu 1420 address 02:00:00:00:00:0${index + 1} up`,
          `-n ${name} neigh add fd77::${2 - index} lladdr 02:00:00:00:00:0${2 - index} dev wg8`,
          `-n ${name} link set lo up`,
        ]),
      ];
      for (const line of lines) execFileSync("ip", line.split(" "));
      const children: ChildProcess[] = [];
      const rules = await NftRules.open("wg8", nftProgram(["ip", "netns", "exec", names[1], "nft"]));
      rules.movePrefixes([], PEER);
      return new FilteredCable(prefix, children, [host(names[0], children), host(names[1], children)], rules);
    } catch (error) {
      removeNamespaces(prefix);
      throw error;
    }
  }

  async [Symbol.asyncDispose](): Promise<void> {
    await this.rules.close();
    for (const child of this.#children) child.kill("SIGKILL");
    removeNamespaces(this.#prefix);
  }
}

function host(namespace: string, children: ChildProcess[]): Place {
  return {
    async exec(program, ...args) {
      const { stdout } = await run("ip", ["netns", "exec", namespace, program, ...args], { timeout: 30_000 });
      return stdout;
    },
    spawn(program, ...args) {
      const child = spawn("ip", ["netns", "exec", namespace, program, ...args], { stdio: ["pipe", "pipe", "pipe"] });
      children.push(child);
      return child;
    },
  };
}
