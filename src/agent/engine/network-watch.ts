import { networkInterfaces } from "node:os";
import type { Clock, Millis, Timer } from "#base/time.ts";

/** How often the local addresses are looked at. */
export const WATCH_INTERVAL: Millis = 5000;

/**
 * Notices that the machine's addresses changed: another network, a cable pulled, a suspend that ended elsewhere. The
 * tunnel's own interface does not count.
 */
export class NetworkWatch {
  readonly #clock: Clock;
  readonly #ownInterface: string;
  readonly #onChange: () => void;
  readonly #interfaces: typeof networkInterfaces;
  #seen: string;
  #timer: Timer | undefined;

  constructor(clock: Clock, ownInterface: string, onChange: () => void, interfaces = networkInterfaces) {
    this.#clock = clock;
    this.#ownInterface = ownInterface;
    this.#onChange = onChange;
    this.#interfaces = interfaces;
    this.#seen = this.#read();
    this.#arm();
  }

  close(): void {
    this.#timer?.cancel();
    this.#timer = undefined;
  }

  #arm(): void {
    this.#timer = this.#clock.after(WATCH_INTERVAL, () => {
      this.#arm();
      const seen = this.#read();
      if (seen === this.#seen) return;
      const lostAll = seen === "";
      this.#seen = seen;
      // Without any address there is nothing to negotiate with; the return of one is the change that counts.
      if (!lostAll) this.#onChange();
    });
  }

  #read(): string {
    const addresses: string[] = [];
    for (const [name, entries] of Object.entries(this.#interfaces())) {
      if (name === this.#ownInterface) continue;
      for (const { internal, address } of entries ?? []) if (!internal) addresses.push(`${name} ${address}`);
    }
    return addresses.sort().join();
  }
}
