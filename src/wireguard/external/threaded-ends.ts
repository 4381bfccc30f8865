import type { Emitter } from "#base/emitter.ts";
import type { Endpoint } from "#base/ip.ts";
import type { PublicKey } from "#base/keys.ts";
import type { LocalEnds, LocalEndsEvents } from "./parts.ts";

/** Local ends that own the thread that reads for them: it ends after them, and after the shared port, which goes first. */
export class ThreadedEnds implements LocalEnds {
  readonly #ends: LocalEnds;
  readonly #thread: AsyncDisposable & { counters(): ReadonlyMap<string, number> };

  constructor(ends: LocalEnds, thread: AsyncDisposable & { counters(): ReadonlyMap<string, number> }) {
    this.#ends = ends;
    this.#thread = thread;
  }

  get name(): LocalEnds["name"] {
    return this.#ends.name;
  }

  get events(): Emitter<LocalEndsEvents> {
    return this.#ends.events;
  }

  open(key: PublicKey): Endpoint {
    return this.#ends.open(key);
  }

  close(key: PublicKey): void {
    this.#ends.close(key);
  }

  deliver(key: PublicKey, datagram: Uint8Array): boolean {
    return this.#ends.deliver(key, datagram);
  }

  setDevicePort(port: number): void {
    this.#ends.setDevicePort(port);
  }

  counters(): ReadonlyMap<string, number> {
    return new Map([...this.#thread.counters(), ...(this.#ends.counters?.() ?? [])]);
  }

  async [Symbol.asyncDispose](): Promise<void> {
    await this.#ends[Symbol.asyncDispose]();
    await this.#thread[Symbol.asyncDispose]();
  }
}
