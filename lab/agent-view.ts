import { createDaemonClient } from "#agent/daemon/daemon-client.ts";
import { PublicKey } from "#base/keys.ts";
import { type Peer, PeerState } from "#gen/daemon_pb.ts";
import { waitUntil } from "./wait-until.ts";

/** One agent's live view of its peers, fed by the daemon's stream of changes as any program could do it. */
export class AgentView {
  readonly #peers = new Map<PublicKey, Peer>();
  readonly #abort = new AbortController();
  readonly #changed: () => void;
  readonly #done: Promise<void>;

  constructor(socket: string, changed: () => void) {
    this.#changed = changed;
    this.#done = this.#follow(socket);
  }

  /** Peers by name. */
  get peers(): Peer[] {
    return [...this.#peers.values()].sort((a, b) => (a.fqdn < b.fqdn ? -1 : 1));
  }

  /** Undefined before the first part of the stream has come. */
  find(name: string): Peer | undefined {
    return this.#peers.values().find(({ fqdn }) => fqdn.startsWith(`${name}.`));
  }

  peer(name: string): Peer {
    const peer = this.find(name);
    if (!peer) throw new Error(`no peer ${name}`);
    return peer;
  }

  /** Waits until the peer's row satisfies `condition`; the row. */
  async until(name: string, what: string, condition: (peer: Peer) => boolean, timeoutMs: number): Promise<Peer> {
    const holds = (): boolean => {
      const peer = this.find(name);
      return peer !== undefined && condition(peer);
    };
    await waitUntil(holds, `${name} ${what}`, timeoutMs);
    return this.peer(name);
  }

  async close(): Promise<void> {
    this.#abort.abort();
    await this.#done;
  }

  async #follow(socket: string): Promise<void> {
    const request = { filter: { withPeers: true, withTimeline: true } };
    try {
      for await (const part of createDaemonClient(socket).watchStatus(request, { signal: this.#abort.signal })) {
        if (part.reset) this.#peers.clear();
        for (const peer of part.peers) this.#peers.set(PublicKey.fromBytes(peer.key), peer);
        for (const key of part.removed) this.#peers.delete(PublicKey.fromBytes(key));
        this.#changed();
      }
    } catch (error) {
      if (!this.#abort.signal.aborted) throw error;
    }
  }
}

const STATE_NAMES = new Map<PeerState, string>([
  [PeerState.IDLE, "Idle"],
  [PeerState.CONNECTING, "Connecting"],
  [PeerState.CONNECTED, "Connected"],
]);

export function stateName(peer: Peer): string {
  return STATE_NAMES.get(peer.state) ?? "?";
}

export function pathName(peer: Peer): string {
  const path = peer.path?.path;
  switch (path?.case) {
    case "relay":
      return "relay";
    case "direct":
      return `direct ${path.value.remote}`;
    default:
      return "-";
  }
}
