import { randomInt } from "node:crypto";
import type { Clock } from "#base/time.ts";
import { ProgramMonitor } from "#net/program-monitor.ts";
import { ExternalDeviceError } from "./external-error.ts";
import { interfaceExists } from "./interface-names.ts";
import { type ProgramResult, runProgram } from "./run-program.ts";

/** An interface that is ours: nobody else's of the same name has the same number. */
export interface KernelLink {
  readonly interfaceName: string;
  readonly index: number;
}

/** The kernel counts up from 1. */
const INDEX_MIN = 2 ** 30;
const INDEX_MAX = 2 ** 31 - 1;

export function chooseLinkIndex(): number {
  return randomInt(INDEX_MIN, INDEX_MAX);
}

/** Makes it, down. Throws ExternalDeviceError: `kernel-unsupported`, `interface-taken`, `not-permitted`, `control-failed`. */
export async function addLink({ interfaceName, index }: KernelLink, type: string): Promise<void> {
  const { ok, complaint } = await ip("link", "add", "name", interfaceName, "index", String(index), "type", type);
  if (ok) return;
  if (/unknown device type|not supported/i.test(complaint))
    throw new ExternalDeviceError("kernel-unsupported", `this kernel has no interfaces of type ${type}`);
  if (/file exists/i.test(complaint))
    throw new ExternalDeviceError("interface-taken", `there is an interface ${interfaceName} already`);
  throw refused(`make the interface ${interfaceName}`, complaint);
}

/** False: it is not there any more, and one of the same name with another number is left alone. Throws ExternalDeviceError. */
export async function deleteLink({ interfaceName, index }: KernelLink): Promise<boolean> {
  if (!interfaceExists(interfaceName)) return false;
  const { ok, output } = await ip("-j", "link", "show", "dev", interfaceName);
  if (!ok || indexIn(output.toString()) !== index) return false;
  await removePeers(interfaceName);
  const deletion = await ip("link", "delete", "dev", interfaceName);
  if (!deletion.ok && interfaceExists(interfaceName)) throw refused(`remove ${interfaceName}`, deletion.complaint);
  return true;
}

/**
 * The kernel waits out a grace period for each peer that goes with its interface, minutes for 10,000, and none for those that are
 * taken away before. Whether it is done is no matter for the deletion.
 */
async function removePeers(interfaceName: string): Promise<void> {
  const args = ["setconf", interfaceName, "/dev/null"];
  await runProgram({ program: "wg", debianPackage: "wireguard-tools", args }).catch(() => {});
}

function indexIn(json: string): unknown {
  try {
    return (JSON.parse(json) as { ifindex?: unknown }[])[0]?.ifindex;
  } catch {
    return undefined;
  }
}

function refused(what: string, complaint: string): ExternalDeviceError {
  const code = /operation not permitted|permission denied/i.test(complaint) ? "not-permitted" : "control-failed";
  return new ExternalDeviceError(code, `cannot ${what}: ${complaint}`);
}

function ip(...args: readonly string[]): Promise<ProgramResult> {
  return runProgram({ program: "ip", debianPackage: "iproute2", args });
}

/** Tells once, by rtnetlink, that a link is gone; costs nothing while nothing happens to it. */
export class LinkWatch {
  readonly #interfaceName: string;
  readonly #gone: () => void;
  readonly #monitor: ProgramMonitor;
  #ended = false;

  constructor({ interfaceName, index }: KernelLink, clock: Clock, gone: () => void) {
    this.#interfaceName = interfaceName;
    this.#gone = gone;
    const command = ["ip", "-o", "monitor", "link", "dev", interfaceName] as const;
    const line = (text: string): void => {
      if (text.includes(`Deleted ${index}:`)) this.#tell();
      else this.#look();
    };
    // While nobody watched, a deletion could have been missed.
    const look = (): void => this.#look();
    this.#monitor = new ProgramMonitor({ command, line, settled: look, ended: look }, clock);
  }

  close(): void {
    this.#ended = true;
    this.#monitor.close();
  }

  #look(): void {
    if (!interfaceExists(this.#interfaceName)) this.#tell();
  }

  #tell(): void {
    if (this.#ended) return;
    this.close();
    this.#gone();
  }
}
