import { randomBytes } from "node:crypto";
import { setTimeout as sleep } from "node:timers/promises";
import { Emitter } from "#base/emitter.ts";
import { messageOf } from "#base/errors.ts";
import { type Logger, silentLogger } from "#base/log.ts";
import { type Clock, type Millis, systemClock } from "#base/time.ts";
import { type DeviceRecord, removeDeadSocket } from "./device-mark.ts";
import { ExternalDeviceError } from "./external-error.ts";
import { needFreeInterfaceName } from "./interface-names.ts";
import { needProgram } from "./need-program.ts";
import type { Backend, BackendEvents } from "./parts.ts";
import { isServed, needSignOfLife } from "./uapi-connection.ts";
import { UapiControl, uapiPath } from "./uapi-control.ts";
import { type ProcessSetUp, WireguardGoProcess } from "./wireguard-go-process.ts";
import { WireguardGoWatch } from "./wireguard-go-watch.ts";

/** The death that is one too many of those within `DEATHS_INTERVAL`. */
const DEATHS_MAX = 5;
const DEATHS_INTERVAL: Millis = 60_000;
/** Between a death and the next start, for each earlier death that counts: the first is answered at once. */
const RESTART_PAUSE: Millis = 100;

export interface WireguardGoDeps {
  readonly log?: Logger;
  readonly clock?: Clock;
  /** Told what to take away should we be killed. */
  readonly record?: DeviceRecord;
}

export interface WireguardGoOptions {
  /** At most 15 bytes; no interface may have it. */
  readonly interfaceName: string;
  /** Default: `wireguard-go`, looked for in PATH. */
  readonly program?: string;
}

/**
 * An interface that wireguard-go implements, which runs as our child and again when it died, or hung: `restarted`. An interface that somebody
 * deleted comes back in the same way, as the program then ends like one that was told to. Throws ExternalDeviceError: `program-missing`,
 * `interface-taken`, `not-permitted`, `control-failed`; TunError `interface-name-invalid`; and what the record throws.
 */
export async function startWireguardGo(options: WireguardGoOptions, deps: WireguardGoDeps = {}): Promise<Backend> {
  const { interfaceName, program = "wireguard-go" } = options;
  const path = needProgram(program, "wireguard-go");
  needFreeInterfaceName(interfaceName);
  const socketPath = uapiPath(interfaceName);
  if (await isServed(socketPath)) {
    throw new ExternalDeviceError(
      "interface-taken",
      `another program serves ${socketPath}: an interface ${interfaceName} of another network namespace`,
    );
  }
  const setUp: ProcessSetUp = {
    program: path,
    interfaceName,
    socketPath,
    mark: randomBytes(16).toString("hex"),
    log: deps.log ?? silentLogger,
    clock: deps.clock ?? systemClock,
  };
  const { record } = deps;
  record?.write({ kind: "wireguard-go", interfaceName, mark: setUp.mark, socketPath });
  try {
    const process = await WireguardGoProcess.start(setUp, new AbortController().signal);
    return new WireguardGoBackend(setUp, process, record);
  } catch (error) {
    record?.remove();
    throw error;
  }
}

/**
 *          died, hung       started
 *   running --------> dead ---------> running       fifth death in a minute, or start impossible: gone
 *      |                |
 *      '---- close -----'----> closed
 */
class WireguardGoBackend implements Backend {
  readonly kind = "wireguard-go";
  readonly interfaceName: string;
  readonly events = new Emitter<BackendEvents>();
  readonly #setUp: ProcessSetUp;
  readonly #record: DeviceRecord | undefined;
  readonly #closing = new AbortController();
  readonly #deaths: Millis[] = [];
  #control: UapiControl;
  #supervision: Promise<void>;

  constructor(setUp: ProcessSetUp, process: WireguardGoProcess, record: DeviceRecord | undefined) {
    this.interfaceName = setUp.interfaceName;
    this.#setUp = setUp;
    this.#record = record;
    this.#control = new UapiControl(setUp.socketPath);
    this.#supervision = this.#supervise(process);
  }

  get control(): UapiControl {
    return this.#control;
  }

  async close(): Promise<void> {
    this.#closing.abort();
    await this.#supervision;
  }

  [Symbol.asyncDispose](): Promise<void> {
    return this.close();
  }

  /** Runs until `close` or until the interface is gone for good. Never throws. */
  async #supervise(first: WireguardGoProcess): Promise<void> {
    const { signal } = this.#closing;
    const { promise: closing, resolve } = Promise.withResolvers<undefined>();
    signal.addEventListener("abort", () => resolve(undefined));
    let process = first;
    let gone: string | undefined;
    // Also when we were closed as the next one had just begun: it is to end as well.
    for (;;) {
      const reason = await Promise.race([this.#watchOver(process), closing]);
      await this.#control[Symbol.asyncDispose]();
      if (reason === undefined) {
        await process.end();
        break;
      }
      const next = await this.#startAgain(reason);
      if (typeof next === "string") {
        gone = next;
        break;
      }
      if (!next) break;
      process = next;
      this.#control = new UapiControl(this.#setUp.socketPath);
      this.events.emit("restarted", { reason });
    }
    await this.#clear();
    if (gone === undefined || signal.aborted) return;
    this.events.emit("gone", { reason: gone });
  }

  /** Why it is over, in words; one that hangs is killed. */
  async #watchOver(process: WireguardGoProcess): Promise<string> {
    const { socketPath, clock } = this.#setUp;
    using _watch = new WireguardGoWatch({
      clock,
      ask: (signal) => needSignOfLife(socketPath, signal),
      hung: (reason) => process.kill(`was killed, as ${reason}`),
    });
    return await process.ended;
  }

  /** The next process; why there is none; or undefined, when we close. */
  async #startAgain(firstReason: string): Promise<WireguardGoProcess | string | undefined> {
    const { signal } = this.#closing;
    const { clock } = this.#setUp;
    for (let reason = firstReason; ; ) {
      if (signal.aborted) return undefined;
      const now = clock.now();
      while (this.#deaths.length > 0 && now - this.#deaths[0]! > DEATHS_INTERVAL) this.#deaths.shift();
      this.#deaths.push(now);
      if (this.#deaths.length >= DEATHS_MAX)
        return `wireguard-go died ${DEATHS_MAX} times within ${DEATHS_INTERVAL / 1000} s, the last time: ${reason}`;
      await sleep(RESTART_PAUSE * (this.#deaths.length - 1), undefined, { signal }).catch(() => {});
      try {
        needFreeInterfaceName(this.interfaceName);
        return await WireguardGoProcess.start(this.#setUp, signal);
      } catch (error) {
        if (signal.aborted) return undefined;
        if (!(error instanceof ExternalDeviceError && error.code === "control-failed")) return messageOf(error);
        reason = messageOf(error);
      }
    }
  }

  async #clear(): Promise<void> {
    try {
      await removeDeadSocket(this.#setUp.socketPath);
      this.#record?.remove();
    } catch (error) {
      this.#setUp.log.warn("what is left of wireguard-go cannot be removed", { err: error });
    }
  }
}
