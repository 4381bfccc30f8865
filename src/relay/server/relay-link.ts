import type { Duplex } from "node:stream";
import type { WebSocket } from "ws";
import type { Clock, Millis, Timer } from "#base/time.ts";
import type { QueueBudget } from "../protocol/flow-queue.ts";
import { FrameWriter } from "../protocol/frame-writer.ts";
import { HEALTH_CHECK_MESSAGE, isHandshake, TRANSPORT_HEADER_BYTES } from "../protocol/messages.ts";
import { PeerId } from "../protocol/peer-id.ts";
import { PresenceOutbox, type PresenceSubscriber } from "./presence.ts";

export interface RelayLinkOptions {
  readonly queueMaxBytes: number;
  readonly queueMaxAgeMs: Millis;
  readonly stallMs: Millis;
  readonly healthIntervalMs: Millis;
  readonly healthWindowMs: Millis;
}

export interface RelayLinkDeps {
  readonly clock: Clock;
  /** Runs a flush once everything that arrived in this turn of the event loop was handled. */
  readonly schedule: (flush: () => void) => void;
  /** Room for what waits for all links together. */
  readonly budget: QueueBudget;
}

/** Bytes of handshakes waiting for one destination. */
const HANDSHAKE_MAX_BYTES = 64 * 1024;

/** One authenticated connection of a relay server: its queue, its subscriptions, its signs of life. */
export class RelayLink implements PresenceSubscriber {
  readonly id: PeerId;
  /** The 36 bytes of `id`. */
  readonly idBytes: Buffer;
  /** For logs. */
  readonly remoteAddress: string;
  readonly since: Millis;
  readonly interest = new Map<PeerId, "both" | "offline">();
  /** The agent said Close: it goes on purpose. */
  saidClose = false;
  lastTransportAt: Millis = Number.NEGATIVE_INFINITY;
  readonly #clock: Clock;
  readonly #options: RelayLinkOptions;
  readonly #ws: WebSocket;
  readonly #writer: FrameWriter;
  readonly #outbox = new PresenceOutbox();
  readonly #schedule: (flush: () => void) => void;
  #lastSeenAt: Millis;
  #health: Timer | undefined;
  #over = false;

  constructor(
    deps: RelayLinkDeps,
    options: RelayLinkOptions,
    connection: {
      readonly id: PeerId;
      readonly ws: WebSocket;
      readonly socket: Duplex;
      readonly remoteAddress: string;
    },
  ) {
    this.#clock = deps.clock;
    this.#schedule = deps.schedule;
    this.#options = options;
    this.id = connection.id;
    this.idBytes = PeerId.toBytes(connection.id);
    this.remoteAddress = connection.remoteAddress;
    this.since = deps.clock.now();
    this.#ws = connection.ws;
    this.#writer = new FrameWriter(
      { clock: deps.clock, schedule: deps.schedule, stalled: () => this.cut() },
      {
        mask: false,
        maxBytes: options.queueMaxBytes,
        maxAgeMs: options.queueMaxAgeMs,
        maxHandshakeBytes: HANDSHAKE_MAX_BYTES,
        stallMs: options.stallMs,
        budget: deps.budget,
      },
    );
    this.#writer.open(connection.socket);
    this.#lastSeenAt = this.since;
    this.#armHealth();
  }

  /** Messages dropped on the way to this agent. */
  get dropped(): number {
    return this.#writer.dropped;
  }

  get droppedEarly(): number {
    return this.#writer.droppedEarly;
  }

  get bytesWritten(): number {
    return this.#writer.bytesWritten;
  }

  /** Any message counts as a sign of life. */
  noteSeen(): void {
    this.#lastSeenAt = this.#clock.now();
  }

  /** One of the relay's own messages. */
  sendOwn(message: Uint8Array): void {
    this.#writer.pushOwn(message);
  }

  /**
   * Forwards a whole Transport message that came from `source`, whose ID is already in it. The buffer is this link's from
   * now on; where it would hold on to a much larger one while waiting, it is copied.
   */
  forward(message: Buffer, source: RelayLink): void {
    const own =
      this.#writer.isBlocked && message.buffer.byteLength > 4 * message.length ? Buffer.from(message) : message;
    if (isHandshake(own, TRANSPORT_HEADER_BYTES)) this.#writer.pushHandshake(own);
    else this.#writer.pushData(source, own);
  }

  notePresence(peer: PeerId, online: boolean): void {
    if (this.#outbox.note(peer, online)) this.#schedule(this.#flushPresence);
  }

  /** Hands out what waits, says `message`, and resolves when the system took it. */
  async finish(message: Uint8Array): Promise<void> {
    this.#health?.cancel();
    this.#writer.pushOwn(message);
    await this.#writer.drain();
  }

  /** Drops the connection without a word; its socket reports 'close'. Idempotent. */
  cut(): void {
    if (this.#over) return;
    this.#over = true;
    this.#health?.cancel();
    this.#writer.destroy();
    this.#ws.terminate();
  }

  readonly #flushPresence = (): void => {
    for (const message of this.#outbox.drain()) this.#writer.pushOwn(message);
  };

  #armHealth(): void {
    this.#health = this.#clock.after(this.#options.healthIntervalMs, () => {
      if (this.#clock.now() - this.#lastSeenAt > this.#options.healthWindowMs) return this.cut();
      this.#writer.pushOwn(HEALTH_CHECK_MESSAGE);
      this.#armHealth();
    });
  }
}
