import { Emitter } from "#base/emitter.ts";
import { type Endpoint, formatEndpoint, formatPrefix, type Prefix, parseEndpoint } from "#base/ip.ts";
import type { PublicKey } from "#base/keys.ts";
import type { FilterRules, SourceRule } from "../../filter.ts";
import type {
  Backend,
  BackendEvents,
  DeviceControl,
  DeviceReading,
  InterfaceChange,
  LocalEnds,
  LocalEndsEvents,
  PacketRules,
  PacketRulesEvents,
  PeerChange,
  PeerReading,
  SharedPort,
  SharedPortEvents,
} from "../parts.ts";

/** Stands where the device would be: takes changes as WireGuard does, and shows the counters that a test gives it. */
export class ScriptedControl implements DeviceControl {
  readonly calls: { readonly change: InterfaceChange; readonly peers: readonly PeerChange[] }[] = [];
  readonly peers = new Map<PublicKey, Partial<PeerReading> & { keepalive: number; prefixes: string[] }>();
  reads = 0;
  /** What a reading shows; 0: the device could not open its port. */
  listenPort = 51820;
  /** What the next changes fail with. */
  readonly failures: Error[] = [];
  /** Held back until it resolves. */
  gate: Promise<void> | undefined;
  readonly #closed = Promise.withResolvers<void>();
  /** A keepalive went from off to on: the device sends. */
  readonly prompted: PublicKey[] = [];

  async change(change: InterfaceChange, peers: readonly PeerChange[]): Promise<void> {
    this.calls.push({ change, peers });
    await this.#pass();
    const failure = this.failures.shift();
    if (failure) throw failure;
    if (change.replacePeers) this.peers.clear();
    for (const peer of peers) this.#apply(peer);
  }

  async read(): Promise<DeviceReading> {
    this.reads++;
    await this.#pass();
    const peers = new Map<PublicKey, PeerReading>();
    for (const [key, { endpoint, rxBytes = 0, txBytes = 0, lastHandshake = 0 }] of this.peers)
      peers.set(key, { endpoint, rxBytes, txBytes, lastHandshake });
    return { listenPort: this.listenPort, peers };
  }

  /** What the device did with a peer since: bytes are added, the rest replaced. */
  note(key: PublicKey, what: Partial<PeerReading>): void {
    const peer = this.peers.get(key)!;
    const { rxBytes = 0, txBytes = 0, ...rest } = what;
    const added = { rxBytes: (peer.rxBytes ?? 0) + rxBytes, txBytes: (peer.txBytes ?? 0) + txBytes };
    this.peers.set(key, { ...peer, ...rest, ...added });
  }

  /** The changes since the last time, in words. */
  take(): string[] {
    return this.calls.splice(0).flatMap(({ peers }) => peers.map(describe));
  }

  /** Ends the calls that are held back, as closing does. */
  async [Symbol.asyncDispose](): Promise<void> {
    this.#closed.reject(new Error("closed"));
    this.#closed.promise.catch(() => {});
  }

  async #pass(): Promise<void> {
    if (this.gate) await Promise.race([this.gate, this.#closed.promise]);
  }

  #apply(change: PeerChange): void {
    const { key } = change;
    if (change.remove) {
      this.peers.delete(key);
      return;
    }
    const known = this.peers.get(key);
    if (!known && change.updateOnly) return;
    const peer = known ?? { keepalive: 0, prefixes: [] };
    if (change.endpoint) Object.assign(peer, { endpoint: change.endpoint });
    if (change.allowedIps) peer.prefixes = change.allowedIps.map(formatPrefix);
    if (change.keepalive !== undefined) {
      if (peer.keepalive === 0 && change.keepalive > 0) this.prompted.push(key);
      peer.keepalive = change.keepalive;
    }
    this.peers.set(key, peer);
  }
}

function describe(change: PeerChange): string {
  if (change.remove) return "remove";
  const { updateOnly, endpoint, allowedIps, presharedKey, keepalive } = change;
  const words = [
    ...(endpoint ? [`to ${formatEndpoint(endpoint)}`] : []),
    ...(allowedIps ? [`ips ${allowedIps.map(formatPrefix).join()}`] : []),
    ...(presharedKey === undefined ? [] : [presharedKey ? "psk" : "no psk"]),
    ...(keepalive === undefined ? [] : [`keepalive ${keepalive}`]),
  ];
  return `${updateOnly ? "" : "add "}${words.join(" ")}`;
}

export class ScriptedBackend implements Backend {
  readonly kind = "wireguard-go";
  readonly interfaceName = "wg-test";
  readonly events = new Emitter<BackendEvents>();
  control = new ScriptedControl();
  closed = 0;

  /** The program dies, and another one runs. */
  restart(): void {
    this.control = new ScriptedControl();
    this.events.emit("restarted", { reason: "killed" });
  }

  async close(): Promise<void> {
    this.closed++;
    await this.control[Symbol.asyncDispose]();
  }

  [Symbol.asyncDispose](): Promise<void> {
    return this.close();
  }
}

export class ScriptedEnds implements LocalEnds {
  readonly name = "loopback-addresses";
  readonly events = new Emitter<LocalEndsEvents>();
  readonly delivered: { readonly key: PublicKey; readonly datagram: Uint8Array }[] = [];
  readonly opened = new Map<PublicKey, Endpoint>();
  #next = 1;

  open(key: PublicKey): Endpoint {
    const endpoint = this.opened.get(key) ?? parseEndpoint(`127.1.${this.#next >> 8}.${this.#next++ & 255}:4000`);
    this.opened.set(key, endpoint);
    return endpoint;
  }

  close(key: PublicKey): void {
    this.opened.delete(key);
  }

  deliver(key: PublicKey, datagram: Uint8Array): boolean {
    this.delivered.push({ key, datagram });
    return true;
  }

  setDevicePort(): void {}

  async [Symbol.asyncDispose](): Promise<void> {}
}

export class ScriptedPort implements SharedPort {
  readonly events = new Emitter<SharedPortEvents>();
  readonly sent: { readonly datagram: Uint8Array; readonly to: string }[] = [];
  readonly errors: string[] = [];

  send(datagram: Uint8Array, to: Endpoint): string | undefined {
    const error = this.errors.shift();
    if (error === undefined) this.sent.push({ datagram, to: formatEndpoint(to) });
    return error;
  }

  setPort(): void {}

  async [Symbol.asyncDispose](): Promise<void> {}
}

export class ScriptedRules implements PacketRules {
  readonly events = new Emitter<PacketRulesEvents>();
  readonly calls: unknown[][] = [];
  /** Prefixes that peers had, and have instead. */
  readonly moves: [string[], string[]][] = [];

  set(rules: FilterRules | undefined): void {
    this.calls.push(["set", rules]);
  }

  setSource(source: Parameters<PacketRules["setSource"]>[0], rules: readonly SourceRule[]): void {
    this.calls.push(["source", formatPrefix(source), rules.length]);
  }

  movePrefixes(before: readonly Prefix[], now: readonly Prefix[]): void {
    this.moves.push([before.map(formatPrefix), now.map(formatPrefix)]);
  }

  async settled(): Promise<void> {}

  async close(): Promise<void> {
    this.calls.push(["close"]);
  }

  [Symbol.asyncDispose](): Promise<void> {
    return this.close();
  }
}
