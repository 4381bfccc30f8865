import type { PublicKey } from "#base/keys.ts";
import type { Millis } from "#base/time.ts";
import type { RelayClient } from "#relay/client/relay-client.ts";
import type { RelayAddress } from "#signal/protocol/offer.ts";

/**
 * Which relay each peer's packets take. The home relay needs no entry; only peers that are reached over another agent's
 * relay have one, and only those cost a connection to it.
 */
export class RelayPaths {
  readonly #client: RelayClient;
  readonly #foreign = new Map<PublicKey, string>();

  constructor(client: RelayClient) {
    this.#client = client;
  }

  get home(): RelayAddress | undefined {
    const { connected, instanceUrl, address } = this.#client.home;
    return connected && instanceUrl !== undefined ? { instanceUrl, ...(address && { address }) } : undefined;
  }

  /** Round trip to the home relay; undefined until measured. */
  get rtt(): Millis | undefined {
    return this.#client.home.rtt;
  }

  useServer(peer: PublicKey, relay: RelayAddress | undefined): void {
    const server = relay?.instanceUrl;
    if (server !== this.#foreign.get(peer)) this.forget(peer);
    if (relay === undefined || server === this.#client.home.instanceUrl) return;
    this.#foreign.set(peer, relay.instanceUrl);
    this.#client.ensureServer(relay.instanceUrl, relay.address, peer);
  }

  /**
   * A handshake of the peer came over this relay, so the peer is there, whatever was agreed: packets for it go there now.
   * True when that is a change.
   */
  noteHandshake(peer: PublicKey, server: string): boolean {
    if (server === this.serverOf(peer)) return false;
    this.useServer(peer, { instanceUrl: server });
    return true;
  }

  isUp(peer: PublicKey): boolean {
    const foreign = this.#foreign.get(peer);
    return foreign === undefined ? this.#client.home.connected : this.#client.isConnected(foreign);
  }

  serverOf(peer: PublicKey): string {
    return this.#foreign.get(peer) ?? this.#client.home.instanceUrl ?? "";
  }

  /** Sends one encrypted datagram; false when it was dropped. */
  send(peer: PublicKey, datagram: Uint8Array): boolean {
    return this.#client.send(peer, datagram, this.#foreign.get(peer));
  }

  /** The network may be broken: do the relays still answer? */
  probe(): void {
    this.#client.probe();
  }

  /** The peer needs no relay of its own any more. */
  forget(peer: PublicKey): void {
    const server = this.#foreign.get(peer);
    if (server === undefined) return;
    this.#foreign.delete(peer);
    this.#client.releaseServer(server, peer);
  }
}
