import { parseIp } from "#base/ip.ts";
import { closeAtExit, forgetAtExit, stopProcesses } from "./cleanup.ts";
import { LabError } from "./errors.ts";
import { Host } from "./host.ts";
import {
  createNamespacePrefix,
  createNamespaces,
  HOST_INTERFACE,
  installInterface,
  removeNamespaces,
  runIp,
  sweepDeadLabs,
} from "./namespace.ts";
import { assertPrivileges } from "./rootless.ts";

export interface VethOptions {
  /** In bytes. Default 1500. */
  readonly mtu?: number;
  /**
   * `off` makes the pair behave like cables between cards without segmentation offload: one packet is one packet. Needs the
   * program ethtool. Default `on`, as the kernel makes it.
   */
  readonly segmentation?: "on" | "off";
}

const NETWORK = "10.255.0";
const NETWORK6 = "2001:db8:ffff::";

/**
 * Two hosts joined by a veth pair: no router process, no delay, what the kernel can carry. For throughput. Needs what
 * `createLab` needs. Throws LabError; nothing is left then.
 */
export async function createVethPair(options: VethOptions = {}): Promise<VethPair> {
  assertPrivileges();
  sweepDeadLabs();
  const prefix = createNamespacePrefix();
  const pair = new VethPair(prefix);
  try {
    await pair.start(options);
  } catch (error) {
    await pair.close();
    throw error;
  }
  return pair;
}

/** Two hosts, `left` and `right`; made by `createVethPair`. */
export class VethPair implements AsyncDisposable {
  readonly left: Host;
  readonly right: Host;
  readonly #prefix: string;
  #closed: Promise<void> | undefined;

  constructor(prefix: string) {
    this.#prefix = prefix;
    const makeHost = (name: string, number: number): Host => {
      const plan = {
        name,
        site: "veth",
        address: parseIp(`${NETWORK}.${number}`),
        address6: parseIp(`${NETWORK6}${number}`),
      };
      return new Host(plan, prefix + name);
    };
    this.left = makeHost("left", 1);
    this.right = makeHost("right", 2);
    closeAtExit(this);
  }

  /** For `createVethPair` alone. */
  async start({ mtu = 1500, segmentation = "on" }: VethOptions): Promise<void> {
    const hosts = [this.left, this.right];
    await createNamespaces(hosts.map((host) => host.namespace));
    const [left, right] = hosts.map((host) => host.namespace);
    const peer = ["peer", "name", HOST_INTERFACE, "netns", right!];
    await runIp(["-n", left!, "link", "add", HOST_INTERFACE, "type", "veth", ...peer]);
    await Promise.all(
      hosts.map((host) =>
        installInterface(host.namespace, mtu, {
          address: { address: host.address, bits: 24 },
          address6: { address: host.address6!, bits: 64 },
        }),
      ),
    );
    if (segmentation === "off") await Promise.all(hosts.map((host) => turnSegmentationOff(host)));
  }

  /** Stops all programs and removes both; idempotent, never throws. */
  close(): Promise<void> {
    this.#closed ??= this.#shutDown();
    return this.#closed;
  }

  [Symbol.asyncDispose](): Promise<void> {
    return this.close();
  }

  closeNow(): void {
    removeNamespaces(this.#prefix);
  }

  async #shutDown(): Promise<void> {
    await stopProcesses([this.left.namespace, this.right.namespace]);
    removeNamespaces(this.#prefix);
    forgetAtExit(this);
  }
}

async function turnSegmentationOff(host: Host): Promise<void> {
  const features = ["tso", "gso", "gro", "tx-udp-segmentation"].flatMap((feature) => [feature, "off"]);
  const { code, stderr } = await host.exec("ethtool", ["-K", HOST_INTERFACE, ...features]);
  if (code !== 0) throw new LabError("command-failed", `ethtool on ${host.name}: ${stderr.trim()}`);
}
