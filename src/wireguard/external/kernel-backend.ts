import { Emitter } from "#base/emitter.ts";
import { type Logger, silentLogger } from "#base/log.ts";
import { type Clock, systemClock } from "#base/time.ts";
import type { DeviceRecord } from "./device-mark.ts";
import { needFreeInterfaceName } from "./interface-names.ts";
import { addLink, chooseLinkIndex, deleteLink, type KernelLink, LinkWatch } from "./kernel-link.ts";
import { needProgram } from "./need-program.ts";
import type { Backend, BackendEvents, DeviceControl } from "./parts.ts";
import { WgControl } from "./wg-control.ts";

export interface KernelDeps {
  readonly log?: Logger;
  readonly clock?: Clock;
  /** Told what to take away should we be killed. */
  readonly record?: DeviceRecord;
}

export interface KernelOptions {
  /** At most 15 bytes; no interface may have it. */
  readonly interfaceName: string;
  /** Default `wireguard`. Another one is for tests on a kernel without it, and has no control. */
  readonly linkType?: string;
}

/**
 * An interface of the kernel's own WireGuard, configured by the program `wg`. Throws ExternalDeviceError: `kernel-unsupported`,
 * `program-missing`, `interface-taken`, `not-permitted`, `control-failed`; TunError `interface-name-invalid`; and what the record throws.
 */
export async function startKernel(options: KernelOptions, deps: KernelDeps = {}): Promise<Backend> {
  const { interfaceName, linkType = "wireguard" } = options;
  for (const [program, debianPackage] of [
    ["ip", "iproute2"],
    ["wg", "wireguard-tools"],
  ] as const)
    needProgram(program, debianPackage);
  needFreeInterfaceName(interfaceName);
  const link: KernelLink = { interfaceName, index: chooseLinkIndex() };
  deps.record?.write({ kind: "kernel", ...link });
  try {
    await addLink(link, linkType);
  } catch (error) {
    deps.record?.remove();
    throw error;
  }
  return new KernelBackend(link, deps);
}

class KernelBackend implements Backend {
  readonly kind = "kernel";
  readonly interfaceName: string;
  readonly control: DeviceControl;
  readonly events = new Emitter<BackendEvents>();
  readonly #link: KernelLink;
  readonly #log: Logger;
  readonly #record: DeviceRecord | undefined;
  readonly #watch: LinkWatch;
  #end: Promise<void> | undefined;

  constructor(link: KernelLink, { log = silentLogger, clock = systemClock, record }: KernelDeps) {
    this.interfaceName = link.interfaceName;
    this.control = new WgControl(link.interfaceName);
    this.#link = link;
    this.#log = log;
    this.#record = record;
    this.#watch = new LinkWatch(link, clock, () => void this.#noteGone());
  }

  close(): Promise<void> {
    this.#end ??= this.#clear();
    return this.#end;
  }

  [Symbol.asyncDispose](): Promise<void> {
    return this.close();
  }

  async #noteGone(): Promise<void> {
    if (this.#end) return;
    await this.close();
    this.events.emit("gone", { reason: `somebody deleted the interface ${this.interfaceName}` });
  }

  async #clear(): Promise<void> {
    this.#watch.close();
    await this.control[Symbol.asyncDispose]();
    try {
      await deleteLink(this.#link);
      this.#record?.remove();
    } catch (error) {
      // The record stays, and the next start tries again.
      this.#log.warn("the interface cannot be removed", { err: error });
    }
  }
}
