import { encodePeerList, RelayType } from "../protocol/messages.ts";
import type { PeerId } from "../protocol/peer-id.ts";

/** Most peers one connection may subscribe to; more are ignored. */
export const SUBSCRIPTIONS_MAX = 65_536;

/** A connection that may subscribe. */
export interface PresenceSubscriber {
  /** What it still wants to hear about each peer; owned by PresenceIndex. */
  readonly interest: Map<PeerId, "both" | "offline">;
  /** Tells the connection of the latest state of a peer. */
  notePresence(peer: PeerId, online: boolean): void;
}

/**
 * Who wants to hear about whom (relay.md, 6.3). `online` is told once per subscription, `offline` every time; subscriptions
 * end with their subscriber. Telling costs as much as there are subscribers, not connections.
 */
export class PresenceIndex {
  readonly #watchers = new Map<PeerId, Set<PresenceSubscriber>>();

  /** Adds to both interests. The caller tells the subscriber who is online now. */
  subscribe(subscriber: PresenceSubscriber, peers: readonly PeerId[]): void {
    for (const peer of peers) {
      if (!subscriber.interest.has(peer)) {
        if (subscriber.interest.size >= SUBSCRIPTIONS_MAX) return;
        const watchers = this.#watchers.get(peer) ?? new Set();
        this.#watchers.set(peer, watchers);
        watchers.add(subscriber);
      }
      subscriber.interest.set(peer, "both");
    }
  }

  unsubscribe(subscriber: PresenceSubscriber, peers: Iterable<PeerId>): void {
    for (const peer of peers) {
      if (!subscriber.interest.delete(peer)) continue;
      const watchers = this.#watchers.get(peer);
      watchers?.delete(subscriber);
      if (watchers?.size === 0) this.#watchers.delete(peer);
    }
  }

  /** The subscriber's connection ended. */
  remove(subscriber: PresenceSubscriber): void {
    this.unsubscribe(subscriber, [...subscriber.interest.keys()]);
  }

  noteOnline(peer: PeerId): void {
    for (const subscriber of this.#watchers.get(peer) ?? []) {
      if (subscriber.interest.get(peer) !== "both") continue;
      subscriber.interest.set(peer, "offline");
      subscriber.notePresence(peer, true);
    }
  }

  noteOffline(peer: PeerId): void {
    for (const subscriber of this.#watchers.get(peer) ?? []) subscriber.notePresence(peer, false);
  }
}

/**
 * Presence on its way to one subscriber: the last state of each peer, in the order of the changes, so that a peer that went
 * and came back is told as online and never as offline.
 */
export class PresenceOutbox {
  readonly #states = new Map<PeerId, boolean>();

  /** True when the outbox was empty before. */
  note(peer: PeerId, online: boolean): boolean {
    const first = this.#states.size === 0;
    this.#states.delete(peer);
    this.#states.set(peer, online);
    return first;
  }

  /** The messages to send, in true order; the outbox is empty afterwards. */
  drain(): Buffer[] {
    const messages: Buffer[] = [];
    let run: PeerId[] = [];
    let runOnline = true;
    const flush = (): void => {
      messages.push(...encodePeerList(runOnline ? RelayType.peersOnline : RelayType.peersWentOffline, run));
      run = [];
    };
    for (const [peer, online] of this.#states) {
      if (online !== runOnline) flush();
      runOnline = online;
      run.push(peer);
    }
    flush();
    this.#states.clear();
    return messages;
  }
}
