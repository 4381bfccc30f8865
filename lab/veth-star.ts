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

const NETWORK = "10.255.1";
const NETWORK6 = "2001:db8:fffe::";
const MTU = 1500;
const HOSTS_MAX = 200;

/**
 * Hosts joined by a bridge of the kernel: no router process, no delay, no NAT. For throughput of more than two programs.
 * Needs what `createLab` needs. Throws LabError; nothing is left then.
 */
export async function createVethStar(names: readonly string[]): Promise<VethStar> {
  assertPrivileges();
  sweepDeadLabs();
  if (names.length > HOSTS_MAX) throw new LabError("topology-invalid", `${names.length} hosts, at most ${HOSTS_MAX}`);
  const star = new VethStar(createNamespacePrefix(), names);
  try {
    await star.start();
  } catch (error) {
    await star.close();
    throw error;
  }
  return star;
}

/** Made by `createVethStar`. */
export class VethStar implements AsyncDisposable {
  readonly hosts: ReadonlyMap<string, Host>;
  readonly #prefix: string;
  readonly #switch: string;
  #closed: Promise<void> | undefined;

  constructor(prefix: string, names: readonly string[]) {
    this.#prefix = prefix;
    this.#switch = `${prefix}switch`;
    this.hosts = new Map(
      names.map((name, index) => {
        const address = parseIp(`${NETWORK}.${index + 1}`);
        const address6 = parseIp(`${NETWORK6}${index + 1}`);
        return [name, new Host({ name, site: "star", address, address6 }, prefix + name)];
      }),
    );
    closeAtExit(this);
  }

  host(name: string): Host {
    const host = this.hosts.get(name);
    if (!host) throw new LabError("topology-invalid", `there is no host ${JSON.stringify(name)}`);
    return host;
  }

  /** For `createVethStar` alone. */
  async start(): Promise<void> {
    const hosts = [...this.hosts.values()];
    await createNamespaces([this.#switch, ...hosts.map((host) => host.namespace)]);
    await runIp(
      ["-n", this.#switch, "-batch", "-"],
      [
        "link add bridge0 type bridge",
        "link set bridge0 up",
        ...hosts.flatMap(({ namespace }, index) => [
          `link add port${index} type veth peer name ${HOST_INTERFACE} netns ${namespace}`,
          `link set port${index} master bridge0 up`,
        ]),
      ],
    );
    await Promise.all(
      hosts.map((host) =>
        installInterface(host.namespace, MTU, {
          address: { address: host.address, bits: 24 },
          address6: { address: host.address6!, bits: 64 },
        }),
      ),
    );
  }

  /** Stops all programs and removes everything; idempotent, never throws. */
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
    await stopProcesses([this.#switch, ...[...this.hosts.values()].map((host) => host.namespace)]);
    removeNamespaces(this.#prefix);
    forgetAtExit(this);
  }
}
