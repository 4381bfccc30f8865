import type { Emitter } from "#base/emitter.ts";
import type { Endpoint } from "#base/ip.ts";
import type { Clock, Millis } from "#base/time.ts";
import type { DeviceEvents, DevicePath, PacketSource } from "../device.ts";
import { TRANSIENT_ERRORS } from "../device-error.ts";
import { samePath } from "../device-path.ts";
import type { DeviceTeller } from "./device-teller.ts";
import { type ExternalPeer, FIRST_RETURN_PAUSE, type PeerUse, useOf } from "./external-peer.ts";
import type { SharedPort } from "./parts.ts";

export interface PeerPathsDeps {
  readonly clock: Clock;
  readonly events: Emitter<DeviceEvents>;
  readonly teller: DeviceTeller;
  readonly sharedPort: SharedPort;
  readonly count: (name: string, by?: number) => void;
}

const LONGEST_RETURN_PAUSE: Millis = 1_000;
/** As long as the agent tries a direct way that worked first. */
const KNOWN_DIRECT_LIFETIME: Millis = 10 * 60_000;
/** Makes NATs on the way let the answer in, and is noticed by no device (the NAT-keepalive of RFC 3948, section 2.3). */
const OPENER = Uint8Array.of(0xff);

/** Where packets of each peer go, and where its device is sent so that they do. */
export class PeerPaths {
  readonly #deps: PeerPathsDeps;

  constructor(deps: PeerPathsDeps) {
    this.#deps = deps;
  }

  /** Of an awake peer; what waited goes there. */
  choose(peer: ExternalPeer, use: PeerUse, path: DevicePath): void {
    const before = use.path;
    use.path = path;
    if (path.kind !== "none") use.adopted = undefined;
    if (path.kind === "udp") use.knownDirect = undefined;
    if (!samePath(before, path)) {
      use.hinted = undefined;
      use.detour = false;
      use.returnTimer?.cancel();
      use.returnTimer = undefined;
      use.returnPause = FIRST_RETURN_PAUSE;
      if (path.kind === "udp") this.#deps.teller.endpoint(peer, path.endpoint);
      else if (use.told !== "local") this.#deps.teller.endpoint(peer, "local");
    }
    if (path.kind !== "none") for (const datagram of use.held.take()) this.send(peer, path, datagram);
  }

  /** Sends what the device gave us for the peer, and is not meant to be seen. */
  send(peer: ExternalPeer, path: DevicePath, datagram: Uint8Array): void {
    switch (path.kind) {
      case "relay":
        this.#deps.events.emit("relay-out", { key: peer.key, datagram });
        return;
      case "udp": {
        const { endpoint } = path;
        const code = this.#deps.sharedPort.send(datagram, endpoint);
        if (code !== undefined && !TRANSIENT_ERRORS.has(code))
          this.#deps.events.emit("path-error", { key: peer.key, endpoint, code });
        return;
      }
      case "none":
        this.#deps.count("drop-staged-bytes", useOf(peer).held.push(datagram));
    }
  }

  /** Where a handshake or data just worked is good enough for data until the caller chooses. */
  adopt(peer: ExternalPeer, use: PeerUse, source: PacketSource): void {
    if (peer.mode === "asleep") {
      use.heard = source;
      return;
    }
    if (use.path.kind !== "none" || (use.adopted && samePath(use.adopted, source))) return;
    use.adopted = source;
    for (const datagram of use.held.take()) this.send(peer, source, datagram);
    this.hint(peer, use, source);
  }

  hint(peer: ExternalPeer, use: PeerUse, source: PacketSource): void {
    if (peer.mode !== "awake" || samePath(use.path, source)) return;
    use.hinted = source;
    this.#deps.events.emit("path-hint", { key: peer.key, source });
  }

  // The direct way that worked last

  /** The peer falls asleep on this path: its next handshake may come directly again. */
  remember(use: PeerUse, path: DevicePath): void {
    if (path.kind !== "udp") return;
    use.knownDirect = { endpoint: path.endpoint, until: this.#deps.clock.now() + KNOWN_DIRECT_LIFETIME };
  }

  /** An answer may come from there. */
  invite(endpoint: Endpoint): void {
    this.#deps.sharedPort.send(OPENER, endpoint);
  }

  /**
   * The device answers an initiation that came by the relay. A response is good once, whichever way is the faster: so it goes
   * over the direct way that worked last as well, once, and who gets it there goes on there.
   */
  respond(peer: ExternalPeer, use: PeerUse, response: Uint8Array): void {
    const { knownDirect } = use;
    use.knownDirect = undefined;
    if (knownDirect && this.#deps.clock.now() < knownDirect.until) {
      this.#deps.sharedPort.send(response, knownDirect.endpoint);
      this.#deps.count("responses-sent-directly");
    }
    this.send(peer, { kind: "relay" }, response);
  }

  // Back to where the device was meant to be

  /** Data that the relay brings makes the device send its answers to the local end: soon it goes back to its path. */
  returnSoon(peer: ExternalPeer, use: PeerUse): void {
    if (use.returnTimer || use.detour) return;
    use.returnTimer = this.#deps.clock.after(use.returnPause, () => {
      use.returnTimer = undefined;
      use.returnPause = Math.min(LONGEST_RETURN_PAUSE, use.returnPause * 2);
      if (use.path.kind === "udp") this.returnTo(peer, use, use.path.endpoint);
    });
  }

  returnTo(peer: ExternalPeer, use: PeerUse, endpoint: Endpoint): void {
    use.detour = false;
    this.#deps.teller.endpoint(peer, endpoint);
  }
}
