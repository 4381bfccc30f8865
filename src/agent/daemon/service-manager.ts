import { messageOf } from "#base/errors.ts";
import type { Logger } from "#base/log.ts";
import type { Clock, Millis, Timer } from "#base/time.ts";
import { encodeUnixAddress, sendUnixDatagram } from "#net/unix-datagram.ts";

/** Messages that wait while the manager's queue is full; the oldest goes first. */
const WAITING_MAX = 16;
const RETRY_MS: Millis = 100;
/** The status line changes at most this often. */
const STATUS_MS: Millis = 1000;
/** Beats per watchdog interval: one may be missed, or find the data worker at its start. */
const BEATS = 3;

export interface ServiceManagerDeps {
  readonly clock: Clock;
  readonly log: Logger;
  /** Whether the daemon still does its work; asked before each beat of the watchdog, on the daemon's own event loop. */
  readonly isWorking: () => boolean;
  /** What `systemctl status` shows of the daemon: one line. */
  readonly statusLine: () => string;
  /** False when the receiver's queue is full. */
  readonly send?: typeof sendUnixDatagram;
}

/** What systemd told the process (sd_notify(3), sd_watchdog_enabled(3)). */
export interface ServiceManagerOptions {
  readonly address: Uint8Array<ArrayBuffer>;
  /** The manager ends a service that is silent for longer; undefined: it does not watch. */
  readonly watchdogMs: Millis | undefined;
}

/**
 * Reads the variables of a service manager and takes them away, so that programs that we start do not speak for us. Undefined
 * where none asked to be told.
 */
export function takeServiceManager(
  environment: NodeJS.ProcessEnv,
  pid: number,
  log: Logger,
): ServiceManagerOptions | undefined {
  const { NOTIFY_SOCKET: socket, WATCHDOG_USEC: interval, WATCHDOG_PID: watched } = environment;
  for (const name of ["NOTIFY_SOCKET", "WATCHDOG_USEC", "WATCHDOG_PID"]) delete environment[name];
  if (!socket) return undefined;
  const address = encodeUnixAddress(socket);
  if (!address) {
    log.warn("the service manager's socket is of no known kind", { socket });
    return undefined;
  }
  const isOurs = watched === undefined || Number(watched) === pid;
  const watchdogMs = isOurs && /^[1-9]\d*$/.test(interval ?? "") ? Number(interval) / 1000 : undefined;
  return { address, watchdogMs };
}

/**
 * Tells the service manager how the daemon is, by the protocol of sd_notify(3): datagrams of `NAME=value` lines.
 *
 *   READY=1             the daemon's socket answers; also at the end of a reload
 *   STATUS=...          the line of `systemctl status`, when it changed
 *   WATCHDOG=1          three times per interval, from the event loop, as long as the daemon works
 *   RELOADING=1         the log is opened again
 *   STOPPING=1          the tunnel is taken down
 *
 * A manager that cannot be reached is logged once and does not hurt the daemon.
 */
export class ServiceManager implements Disposable {
  readonly #deps: ServiceManagerDeps;
  readonly #options: ServiceManagerOptions;
  readonly #waiting: string[] = [];
  #retry: Timer | undefined;
  #beat: Timer | undefined;
  #statusTimer: Timer | undefined;
  #statusAt: Millis = Number.NEGATIVE_INFINITY;
  #status = "";
  #wasWorking = true;
  #failed = false;

  constructor(deps: ServiceManagerDeps, options: ServiceManagerOptions) {
    this.#deps = deps;
    this.#options = options;
  }

  /** The daemon answers. Begins the watchdog's beats. */
  ready(): void {
    this.#status = this.#deps.statusLine();
    this.#tell(`READY=1\nSTATUS=${this.#status}`);
    this.#beatOn();
  }

  /** The status may have changed. */
  noteChange(): void {
    if (this.#statusTimer) return;
    const { clock } = this.#deps;
    this.#statusTimer = clock.after(Math.max(0, this.#statusAt + STATUS_MS - clock.now()), () => {
      this.#statusTimer = undefined;
      const line = this.#deps.statusLine();
      if (line === this.#status) return;
      this.#statusAt = clock.now();
      this.#status = line;
      this.#tell(`STATUS=${line}`);
    });
  }

  /** Runs `reload` between the two messages that enclose it. */
  reload(reload: () => void): void {
    // CLOCK_MONOTONIC, which is what hrtime reads.
    this.#tell(`RELOADING=1\nMONOTONIC_USEC=${process.hrtime.bigint() / 1000n}`);
    try {
      reload();
    } finally {
      this.#tell("READY=1");
    }
  }

  /** The daemon ends; nothing but the beats follows. */
  stopping(): void {
    this.#statusTimer?.cancel();
    this.#statusTimer = undefined;
    this.#tell("STOPPING=1\nSTATUS=taking the tunnel down");
  }

  [Symbol.dispose](): void {
    for (const timer of [this.#retry, this.#beat, this.#statusTimer]) timer?.cancel();
    this.#retry = this.#beat = this.#statusTimer = undefined;
  }

  #beatOn(): void {
    const { watchdogMs } = this.#options;
    if (watchdogMs === undefined) return;
    this.#beat?.cancel();
    this.#beat = this.#deps.clock.after(watchdogMs / BEATS, () => this.#beatOn());
    const isWorking = this.#deps.isWorking();
    if (isWorking) this.#tell("WATCHDOG=1");
    // Said once: without a beat the manager ends the daemon and starts it anew.
    else if (this.#wasWorking) this.#deps.log.error("the data worker makes no progress; the watchdog is not fed");
    this.#wasWorking = isWorking;
  }

  #tell(message: string): void {
    if (this.#waiting.length === WAITING_MAX) this.#waiting.shift();
    this.#waiting.push(message);
    if (!this.#retry) this.#flush();
  }

  #flush(): void {
    this.#retry = undefined;
    const send = this.#deps.send ?? sendUnixDatagram;
    try {
      for (let next = this.#waiting[0]; next !== undefined; next = this.#waiting[0]) {
        if (!send(this.#options.address, next)) {
          this.#retry = this.#deps.clock.after(RETRY_MS, () => this.#flush());
          return;
        }
        this.#waiting.shift();
      }
    } catch (error) {
      this.#waiting.length = 0;
      if (!this.#failed) this.#deps.log.warn("the service manager cannot be told", { err: messageOf(error) });
      this.#failed = true;
    }
  }
}
