import type { Millis } from "#base/time.ts";
import type { Internet } from "./internet.ts";

/** Least time after which TCP sends a lost segment again. */
const RETRANSMISSION: Millis = 200;

export interface StreamEnds {
  /** The connection is over, as the client learns it. */
  readonly lost: () => void;
  /** The connection is over, as the server learns it. */
  readonly left: () => void;
}

/** Whether packets of this machine get anywhere now. */
export interface StreamHost {
  readonly online: boolean;
  readonly suspended: boolean;
}

/**
 * A TCP connection from a machine to a server: in order, complete while it lives; loss makes it late. When the machine's
 * address changed it is dead without anybody knowing (`mute`), until one side gives up.
 */
export class ServerStream {
  readonly #internet: Internet;
  readonly #host: StreamHost;
  readonly #ends: StreamEnds;
  readonly #up: Lane = { queue: [], last: 0 };
  readonly #down: Lane = { queue: [], last: 0 };
  #state: "open" | "mute" | "closed" = "open";

  constructor(internet: Internet, host: StreamHost, ends: StreamEnds) {
    this.#internet = internet;
    this.#host = host;
    this.#ends = ends;
  }

  get open(): boolean {
    return this.#state !== "closed";
  }

  /** What is sent now arrives, if late. */
  get live(): boolean {
    return this.#state === "open";
  }

  /** Runs at the server, one delay later. `cargo`: the datagram that is lost when the connection ends first. */
  toServer(run: () => void, cargo?: Uint8Array): void {
    this.#carry(this.#up, run, cargo);
  }

  /** Runs at the client, one delay later. */
  toClient(run: () => void, cargo?: Uint8Array): void {
    this.#carry(this.#down, run, cargo);
  }

  /** The machine moved: nothing passes any more and nobody says so. */
  mute(): void {
    if (this.#state === "open") this.#state = "mute";
  }

  /** The server's process ended. */
  reset(): void {
    if (this.#state === "closed") return;
    const { clock, delay } = this.#internet;
    const wasOpen = this.#state === "open";
    this.#state = "closed";
    this.#ends.left();
    if (wasOpen) clock.after(delay, () => this.#ends.lost());
  }

  /** The client gave up, or its process ended. */
  leave(): void {
    if (this.#state === "closed") return;
    const { clock, delay } = this.#internet;
    // Of a connection that is dead already the server learns nothing; the next registration replaces it.
    const heard = this.#state === "open" && this.#host.online;
    this.#state = "closed";
    if (heard) clock.after(delay, () => this.#ends.left());
  }

  #carry(lane: Lane, run: () => void, cargo: Uint8Array | undefined): void {
    const { clock, delay, jitter, random, loss } = this.#internet;
    let at = clock.now() + delay + (jitter > 0 ? Math.round(jitter * random()) : 0);
    for (let wait = RETRANSMISSION; random() < loss && wait < 10_000; wait *= 2) at += wait;
    lane.last = Math.max(lane.last, at);
    lane.queue.push({ at: lane.last, run, cargo });
    if (lane.queue.length === 1) this.#next(lane, lane.last);
  }

  /** A machine that is off the net or suspended gets what was on the way when it is back, as TCP repeats it. */
  #next(lane: Lane, at: Millis): void {
    const { clock, onDrop } = this.#internet;
    clock.after(at - clock.now(), () => {
      if (this.#state !== "open") {
        for (const { cargo } of lane.queue.splice(0)) if (cargo) onDrop(cargo, "the connection to the relay ended");
        return;
      }
      if (!this.#host.online || this.#host.suspended) return this.#next(lane, clock.now() + RETRANSMISSION);
      const { run } = lane.queue[0]!;
      run();
      lane.queue.shift();
      if (lane.queue[0]) this.#next(lane, lane.queue[0].at);
    });
  }
}

interface Lane {
  readonly queue: { readonly at: Millis; readonly run: () => void; readonly cargo: Uint8Array | undefined }[];
  last: Millis;
}
