import { Emitter } from "#base/emitter.ts";
import { messageOf } from "#base/errors.ts";
import type { Endpoint } from "#base/ip.ts";
import type { PublicKey } from "#base/keys.ts";
import type { Logger } from "#base/log.ts";
import type { Clock, Timer } from "#base/time.ts";
import type { LocalEnds, LocalEndsEvents } from "../parts.ts";
import { freeDescriptors } from "./free-descriptors.ts";
import { LoopbackAddresses } from "./loopback-addresses.ts";
import { LoopbackMac1, MOVE_GRACE } from "./loopback-mac1.ts";
import { LoopbackSockets } from "./loopback-sockets.ts";
import type { PortThread } from "./port-thread.ts";

/** Peers with a socket each, at most; more share one. */
const DEFAULT_THRESHOLD = 500;
/** Of the descriptors that are free, for sockets of few peers, and as many for those of many that are told apart by mac1. */
const DESCRIPTOR_SHARE = 1 / 4;

export interface LocalEndsDeps {
  readonly clock: Clock;
  readonly log: Logger;
  /** Absent where there is no FFI: many peers are then told apart by mac1. The caller closes it, after the local ends. */
  readonly thread?: PortThread | undefined;
}

export interface LocalEndsOptions {
  /** 0: not known yet, nothing is accepted. */
  readonly devicePort: number;
  /** Default DEFAULT_THRESHOLD, less where the process may not have so many descriptors; 0: all share one from the first on. */
  readonly threshold?: number | undefined;
}

/** Local ends for any number of peers: a socket each while they are few, one shared socket when they are many. */
export function createLocalEnds(deps: LocalEndsDeps, options: LocalEndsOptions): LocalEnds {
  return new ScalingLocalEnds(deps, options);
}

/**
 *                              more than the threshold
 *   a socket each (few) -------------------------------------------------> one socket (many)
 *          ^                                                                    |
 *          '--------------- less than half of the threshold -------------------'
 *
 * Passing over moves all open peers. What the device sends to a peer's earlier endpoint arrives for MOVE_GRACE more, so nothing is
 * lost while the device is told.
 */
class ScalingLocalEnds implements LocalEnds {
  readonly events = new Emitter<LocalEndsEvents>();
  readonly #deps: LocalEndsDeps;
  readonly #threshold: number;
  /** Sockets of peers that one kind of ends may have. */
  readonly #socketsMax = Math.floor(freeDescriptors() * DESCRIPTOR_SHARE);
  readonly #few: LoopbackSockets;
  #many: LoopbackAddresses | LoopbackMac1 | undefined;
  /** Open peers, and who has them. */
  readonly #peers = new Map<PublicKey, LocalEnds>();
  /** Peers that moved, at the place that they left. */
  readonly #left = new Map<PublicKey, { readonly ends: LocalEnds; readonly timer: Timer }>();
  #current: LocalEnds;
  #devicePort: number;
  #closed: Promise<void> | undefined;

  constructor(deps: LocalEndsDeps, options: LocalEndsOptions) {
    this.#deps = deps;
    this.#devicePort = options.devicePort;
    this.#threshold = Math.min(options.threshold ?? DEFAULT_THRESHOLD, this.#socketsMax);
    this.#few = new LoopbackSockets({ devicePort: options.devicePort });
    this.#listen(this.#few);
    this.#current = this.#few;
    void deps.thread?.gone.then(({ reason }) =>
      this.events.emit("failed", { reason: `the thread that reads its sockets died too often: ${reason}` }),
    );
  }

  /** Of peers that are opened now. */
  get name(): LocalEnds["name"] {
    return this.#current.name;
  }

  open(key: PublicKey): Endpoint {
    const known = this.#peers.get(key);
    if (known) return known.open(key);
    this.#arrive(key);
    if (this.#current === this.#few && this.#peers.size >= this.#threshold) this.#passTo(this.#theMany());
    const endpoint = this.#current.open(key);
    this.#peers.set(key, this.#current);
    return endpoint;
  }

  close(key: PublicKey): void {
    this.#arrive(key);
    const ends = this.#peers.get(key);
    if (!ends) return;
    this.#peers.delete(key);
    ends.close(key);
    if (this.#current !== this.#few && this.#peers.size < this.#threshold / 2) this.#passTo(this.#few);
  }

  deliver(key: PublicKey, datagram: Uint8Array): boolean {
    return this.#peers.get(key)?.deliver(key, datagram) ?? false;
  }

  setDevicePort(port: number): void {
    this.#devicePort = port;
    this.#few.setDevicePort(port);
    this.#many?.setDevicePort(port);
  }

  counters(): ReadonlyMap<string, number> {
    const sums = new Map<string, number>();
    for (const ends of [this.#few, this.#many])
      for (const [name, count] of ends?.counters() ?? []) sums.set(name, (sums.get(name) ?? 0) + count);
    return sums;
  }

  [Symbol.asyncDispose](): Promise<void> {
    this.#closed ??= this.#close();
    return this.#closed;
  }

  async #close(): Promise<void> {
    for (const { timer } of this.#left.values()) timer.cancel();
    this.#left.clear();
    this.#peers.clear();
    await Promise.all([this.#few, this.#many].map((ends) => ends?.[Symbol.asyncDispose]()));
  }

  #listen(ends: LocalEnds): void {
    ends.events.on("datagram", (event) => {
      if (this.#peers.get(event.key) === ends || this.#left.get(event.key)?.ends === ends)
        this.events.emit("datagram", event);
    });
    ends.events.on("moved", (event) => {
      if (this.#peers.get(event.key) === ends) this.events.emit("moved", event);
    });
  }

  #theMany(): LocalEnds {
    if (this.#many) return this.#many;
    this.#many = this.#makeMany();
    this.#listen(this.#many);
    return this.#many;
  }

  #makeMany(): LoopbackAddresses | LoopbackMac1 {
    const { thread, log, clock } = this.#deps;
    const options = { devicePort: this.#devicePort, socketsMax: this.#socketsMax };
    if (thread) {
      try {
        return LoopbackAddresses.open(thread, options);
      } catch (error) {
        log.warn("peers cannot have loopback addresses of their own, mac1 tells them apart", { err: messageOf(error) });
      }
    }
    return new LoopbackMac1({ clock }, options);
  }

  /** New peers get their ends there, and those that have others move. */
  #passTo(next: LocalEnds): void {
    this.#current = next;
    for (const [key, ends] of this.#peers) if (ends !== next) this.#move(key, ends, next);
  }

  #move(key: PublicKey, from: LocalEnds, to: LocalEnds): void {
    let endpoint: Endpoint;
    try {
      to.open(key);
      // The second time says that there may be a session.
      endpoint = to.open(key);
    } catch (error) {
      // It stays where it is, which works as well.
      this.#deps.log.warn("a peer keeps its local end", { err: messageOf(error) });
      return;
    }
    const back = this.#left.get(key);
    back?.timer.cancel();
    if (back && back.ends !== to && back.ends !== from) back.ends.close(key);
    const timer = this.#deps.clock.after(MOVE_GRACE, () => this.#arrive(key));
    this.#left.set(key, { ends: from, timer });
    this.#peers.set(key, to);
    this.events.emit("moved", { key, endpoint });
  }

  /** The device has been told: nothing comes to the earlier place any more. */
  #arrive(key: PublicKey): void {
    const left = this.#left.get(key);
    if (!left) return;
    left.timer.cancel();
    this.#left.delete(key);
    left.ends.close(key);
  }
}
