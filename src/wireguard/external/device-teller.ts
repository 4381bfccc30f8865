import { messageOf } from "#base/errors.ts";
import { type Endpoint, formatPrefix, isHostPrefix, maskPrefix, type Prefix } from "#base/ip.ts";
import type { Logger } from "#base/log.ts";
import type { ChangeBatch } from "./change-batch.ts";
import { type ExternalPeer, type PeerUse, useOf } from "./external-peer.ts";
import type { LocalEnds, PeerChange } from "./parts.ts";
import { forgetLife } from "./peer-reading.ts";

/** Seconds; of a peer that is to have none, while one is needed to make the device send. */
const ANY_KEEPALIVE = 25;

export interface DeviceTellerDeps {
  readonly log: Logger;
  readonly localEnds: LocalEnds;
  readonly batch: ChangeBatch;
}

/** What to do so that the device makes an initiation. */
export interface Prompt {
  /** It goes straight to where the device sends now, instead of to us first. */
  readonly direct: boolean;
}

/** Tells the device what a peer is to be, and remembers what it was told. */
export class DeviceTeller {
  readonly #log: Logger;
  readonly #localEnds: LocalEnds;
  readonly #batch: ChangeBatch;
  /** Networks (not hosts) -> who was given them last: a peer that is told anew must not take them back. */
  readonly #networks = new Map<string, ExternalPeer>();

  constructor({ log, localEnds, batch }: DeviceTellerDeps) {
    this.#log = log;
    this.#localEnds = localEnds;
    this.#batch = batch;
  }

  /** A new peer, asleep, with its local end open. */
  add(peer: ExternalPeer): void {
    this.#takeNetworks(peer, peer.allowedIps);
    this.#open(peer);
    this.#batch.push(this.config(peer));
  }

  remove(peer: ExternalPeer): void {
    this.#takeNetworks(peer, []);
    this.#batch.push({ key: peer.key, remove: true });
    this.#localEnds.close(peer.key);
  }

  prefixes(peer: ExternalPeer, allowedIps: readonly Prefix[]): void {
    this.#takeNetworks(peer, allowedIps);
    peer.allowedIps = allowedIps;
    this.#batch.push({ key: peer.key, updateOnly: true, allowedIps });
  }

  presharedKey({ key, presharedKey }: ExternalPeer): void {
    this.#batch.push({ key, updateOnly: true, presharedKey: presharedKey ?? null });
  }

  keepalive(peer: ExternalPeer, keepalive: number): void {
    const use = useOf(peer);
    if (use.toldKeepalive === keepalive) return;
    use.toldKeepalive = keepalive;
    use.toldIn = this.#batch.push({ key: peer.key, updateOnly: true, keepalive });
  }

  /** Also when it was told before: it may have roamed since. */
  endpoint(peer: ExternalPeer, told: PeerUse["told"]): void {
    const use = useOf(peer);
    const endpoint = told === "local" ? this.#local(peer, use) : told;
    use.told = told;
    if (endpoint) use.toldIn = this.#batch.push({ key: peer.key, updateOnly: true, endpoint });
  }

  /** The peer's local end is another one. */
  moved(peer: ExternalPeer, endpoint: Endpoint): void {
    peer.local = endpoint;
    if (peer.use && peer.use.told !== "local") return;
    const number = this.#batch.push({ key: peer.key, updateOnly: true, endpoint });
    if (peer.use) peer.use.toldIn = number;
  }

  /** Keepalive off and on: without a session the device makes a handshake of it, unless it made one within 5 s. */
  prompt(peer: ExternalPeer, { direct }: Prompt): void {
    const use = useOf(peer);
    if (!direct && use.told !== "local") this.endpoint(peer, "local");
    this.keepalive(peer, 0);
    this.keepalive(peer, peer.keepalive || ANY_KEEPALIVE);
    if (peer.keepalive === 0) this.keepalive(peer, 0);
  }

  /**
   * The device forgets sessions, handshakes and packets of the peer and begins anew. With a prompt it makes an initiation at
   * once.
   */
  reset(peer: ExternalPeer, prompt: Prompt | undefined): void {
    const use = useOf(peer);
    forgetLife(use);
    this.#batch.push({ key: peer.key, remove: true });
    if (!prompt?.direct && use.told !== "local") {
      use.told = "local";
      this.#local(peer, use);
    }
    use.toldKeepalive = prompt ? peer.keepalive || ANY_KEEPALIVE : 0;
    use.toldIn = this.#batch.push(this.config(peer));
    use.resetIn = use.toldIn;
  }

  /** All that the device has to know of a peer that it does not have. */
  config(peer: ExternalPeer): PeerChange {
    const { key, presharedKey, local, use } = peer;
    const endpoint = use && use.told !== "local" ? use.told : local;
    return {
      key,
      allowedIps: this.#ownPrefixes(peer),
      ...(endpoint ? { endpoint } : {}),
      ...(presharedKey ? { presharedKey } : {}),
      keepalive: use?.toldKeepalive ?? 0,
    };
  }

  #local(peer: ExternalPeer, use: PeerUse): Endpoint | undefined {
    // It becomes the device's endpoint anew, of a peer that may have a session.
    if (use.told !== "local" || !peer.local) this.#open(peer);
    return peer.local;
  }

  #open(peer: ExternalPeer): void {
    try {
      peer.local = this.#localEnds.open(peer.key);
    } catch (error) {
      // Its packets cannot wake it; it can be woken by itself and by hand.
      this.#log.error("no local end for a peer", { err: messageOf(error) });
    }
  }

  #ownPrefixes(peer: ExternalPeer): readonly Prefix[] {
    const isOwn = (prefix: Prefix): boolean => isHostPrefix(prefix) || this.#networks.get(nameOf(prefix)) === peer;
    return peer.allowedIps.every(isOwn) ? peer.allowedIps : peer.allowedIps.filter(isOwn);
  }

  #takeNetworks(peer: ExternalPeer, allowedIps: readonly Prefix[]): void {
    for (const prefix of peer.allowedIps) {
      if (!isHostPrefix(prefix) && this.#networks.get(nameOf(prefix)) === peer) this.#networks.delete(nameOf(prefix));
    }
    for (const prefix of allowedIps) if (!isHostPrefix(prefix)) this.#networks.set(nameOf(prefix), peer);
  }
}

function nameOf(prefix: Prefix): string {
  return formatPrefix(maskPrefix(prefix));
}
