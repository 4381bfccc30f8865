import type { Millis } from "#base/time.ts";
import { type Address, loadLibrary } from "#net/libc.ts";

const POLLIN = 1;
const POLLFD_BYTES = 8;
const PR_SET_PDEATHSIG = 1;
const PR_SET_TIMERSLACK = 29;

type Ppoll = (fds: Address, count: number, timeout: Address, signals: Address) => number;

/**
 * Waits for descriptors to become readable or a time to pass, with nanoseconds in the timeout: poll(2) and Node's own
 * timers know only whole milliseconds. Blocks the thread.
 *
 * ```
 * struct pollfd    4 fd | 2 events | 2 revents
 * struct timespec  8 seconds | 8 nanoseconds
 * ```
 */
export class ReadinessWait {
  readonly #view: DataView;
  readonly #memory: Uint8Array;
  readonly #timeout = new BigInt64Array(2);
  #count = 0;
  readonly #ppoll: Ppoll;

  /** `capacity` is the largest number of descriptors. */
  constructor(capacity: number) {
    this.#memory = new Uint8Array(capacity * POLLFD_BYTES);
    this.#view = new DataView(this.#memory.buffer);
    this.#ppoll = loadLibrary(null).func("ppoll", "int", ["void *", "ulong", "void *", "void *"]) as Ppoll;
  }

  /** Adds a descriptor and returns its slot. */
  add(fd: number): number {
    const slot = this.#count++;
    this.#view.setInt32(slot * POLLFD_BYTES, fd, true);
    this.#view.setInt16(slot * POLLFD_BYTES + 4, POLLIN, true);
    return slot;
  }

  /** Takes a descriptor out; its slot stays, never ready. */
  mute(slot: number): void {
    this.#view.setInt32(slot * POLLFD_BYTES, -1, true);
  }

  /** Undefined waits without end. True when some slot is ready; a signal ends the wait too. */
  wait(timeoutMs: Millis | undefined): boolean {
    if (timeoutMs !== undefined) {
      const seconds = Math.floor(timeoutMs / 1000);
      this.#timeout[0] = BigInt(seconds);
      this.#timeout[1] = BigInt(Math.floor((timeoutMs - seconds * 1000) * 1e6));
    }
    return this.#ppoll(this.#memory, this.#count, timeoutMs === undefined ? null : this.#timeout, null) > 0;
  }

  /** After a wait that returned true: is there something to read, or an error to be met by reading? */
  isReady(slot: number): boolean {
    return this.#view.getInt16(slot * POLLFD_BYTES + 6, true) !== 0;
  }
}

function prctl(option: number, argument: number): void {
  const call = loadLibrary(null).func("prctl", "int", ["int", "ulong", "ulong", "ulong", "ulong"]) as (
    ...values: number[]
  ) => number;
  call(option, argument, 0, 0, 0);
}

/** Lets this thread's timeouts end when they are due; Linux otherwise adds up to 50 us to save wake-ups. */
export function refuseTimerSlack(): void {
  prctl(PR_SET_TIMERSLACK, 1);
}

/** Has the kernel send this process a signal when its parent dies. */
export function signalOnParentDeath(signal: number): void {
  prctl(PR_SET_PDEATHSIG, signal);
}
