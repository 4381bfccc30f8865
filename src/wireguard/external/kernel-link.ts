import { type ChildProcess, spawn } from "node:child_process";
import { randomInt } from "node:crypto";
import type { Clock, Millis, Timer } from "#base/time.ts";
import { ExternalDeviceError } from "./external-error.ts";
import { commandThatEndsWithUs, PROGRAM_ENVIRONMENT } from "./find-program.ts";
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
/** When the interface is looked for once more: before, a deletion could have been missed. */
const WATCH_SETTLE: Millis = 500;

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
  const deletion = await ip("link", "delete", "dev", interfaceName);
  if (!deletion.ok && interfaceExists(interfaceName)) throw refused(`remove ${interfaceName}`, deletion.complaint);
  return true;
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
  readonly #link: KernelLink;
  readonly #clock: Clock;
  readonly #gone: () => void;
  #monitor: ChildProcess | undefined;
  #timer: Timer | undefined;
  #ended = false;

  constructor(link: KernelLink, clock: Clock, gone: () => void) {
    this.#link = link;
    this.#clock = clock;
    this.#gone = gone;
    void this.#start();
  }

  close(): void {
    this.#ended = true;
    this.#timer?.cancel();
    this.#monitor?.kill("SIGKILL");
  }

  async #start(): Promise<void> {
    const { interfaceName, index } = this.#link;
    const ahead = await commandThatEndsWithUs("KILL");
    if (this.#ended || this.#isGone()) return;
    const [program, ...args] = [...ahead, "ip", "-o", "monitor", "link", "dev", interfaceName];
    const monitor = spawn(program!, args, { stdio: ["ignore", "pipe", "ignore"], env: PROGRAM_ENVIRONMENT });
    this.#monitor = monitor;
    monitor.stdout.setEncoding("latin1");
    monitor.stdout.on("data", (text: string) => {
      if (text.includes(`Deleted ${index}:`)) this.#tell();
      else this.#isGone();
    });
    monitor.on("error", () => {});
    // It does not end by itself: somebody ended it.
    monitor.on("close", () => this.#later(() => void this.#start()));
    this.#later(() => this.#isGone());
  }

  #later(call: () => void): void {
    this.#timer?.cancel();
    if (!this.#ended) this.#timer = this.#clock.after(WATCH_SETTLE, call);
  }

  #isGone(): boolean {
    if (interfaceExists(this.#link.interfaceName)) return false;
    this.#tell();
    return true;
  }

  #tell(): void {
    if (this.#ended) return;
    this.close();
    this.#gone();
  }
}
