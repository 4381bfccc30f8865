import type { PublicKey } from "#base/keys.ts";
import type { Logger } from "#base/log.ts";
import type { Clock, Millis, Timer } from "#base/time.ts";
import type { ManagementStore, Presence } from "./store.ts";

/** How long a sighting may wait before it is stored; a thousand peers that come back at once are one transaction. */
const STORE_AFTER: Millis = 5_000;

/** When each peer was last here. A crash may lose the last seconds of it, nothing else depends on it. */
export class PresenceBook {
  readonly #clock: Clock;
  readonly #log: Logger;
  readonly #store: ManagementStore;
  readonly #entries = new Map<PublicKey, Presence>();
  readonly #dirty = new Set<PublicKey>();
  #timer: Timer | undefined;
  #storing: Promise<void> = Promise.resolve();

  constructor(deps: { readonly clock: Clock; readonly log: Logger; readonly store: ManagementStore }) {
    this.#clock = deps.clock;
    this.#log = deps.log;
    this.#store = deps.store;
  }

  async load(): Promise<void> {
    for (const entry of await this.#store.loadPresence()) this.#entries.set(entry.key, entry);
  }

  get(key: PublicKey): Presence {
    return this.#entries.get(key) ?? { key, seenAt: 0, loginAt: 0 };
  }

  /** The peer is here now. */
  seen(key: PublicKey, login = false): void {
    const now = this.#clock.wall();
    this.#entries.set(key, { key, seenAt: now, loginAt: login ? now : this.get(key).loginAt });
    this.#dirty.add(key);
    this.#timer ??= this.#clock.after(STORE_AFTER, () => {
      this.#timer = undefined;
      this.#flush();
    });
  }

  forget(key: PublicKey): void {
    this.#entries.delete(key);
    this.#dirty.delete(key);
  }

  /** Stores what is not stored yet. */
  async close(): Promise<void> {
    this.#timer?.cancel();
    this.#flush();
    await this.#storing;
  }

  #flush(): void {
    const entries = [...this.#dirty].map((key) => this.get(key));
    this.#dirty.clear();
    if (entries.length === 0) return;
    this.#storing = this.#storing.then(() =>
      this.#store.recordPresence(entries).catch((err) => this.#log.error("presence not stored", { err })),
    );
  }
}
