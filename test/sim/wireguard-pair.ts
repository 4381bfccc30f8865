import { Emitter } from "#base/emitter.ts";
import { type Endpoint, parseEndpoint, parsePrefix } from "#base/ip.ts";
import { PrivateKey } from "#base/keys.ts";
import { silentLogger } from "#base/log.ts";
import { ManualClock, type Millis, type Timer } from "#base/time.ts";
import type { DeviceEvents, DevicePath } from "#wireguard/device.ts";
import { EmbeddedDevice } from "#wireguard/embedded-device.ts";
import { LocalIdentity } from "#wireguard/identity.ts";
import type { Plane } from "#wireguard/plane.ts";
import { type CommandRecord, type SessionKeys, sessionRecord } from "#wireguard/worker/commands.ts";
import type { SessionLimits } from "#wireguard/worker/limits.ts";
import { buildPacket } from "#wireguard/worker/packet-model.ts";
import type { DataPlaneEvents } from "#wireguard/worker/plane-events.ts";
import { ADD_ASLEEP, Command } from "#wireguard/worker/records.ts";
import { emitReports } from "#wireguard/worker/reports.ts";
import { withHeader } from "../fuzz/device/fake-kernel.ts";
import { MemoryGuard } from "../fuzz/device/memory-guard.ts";
import { Rig } from "../fuzz/device/rig.ts";

const VIRTIO_BYTES = 10;
const REPORTS_MAX = 10_000;
const guard = MemoryGuard.install();

/** Stands between a whole device and a whole worker that share the test's thread: each command is applied at once. */
class RigPlane implements Plane {
  readonly events = new Emitter<DataPlaneEvents>();
  readonly features = ["test"];
  readonly interfaceName = "wg-sim";
  readonly listenPort = 51820;
  readonly handshakeLoad = 0;
  readonly rig: Rig;
  readonly #apply: () => void;
  readonly #send: (datagram: Uint8Array) => void;

  constructor(rig: Rig, apply: () => void, send: (datagram: Uint8Array) => void) {
    this.rig = rig;
    this.#apply = apply;
    this.#send = send;
  }

  addPeer(slot: number, { asleep, keepalive = 0 }: { readonly asleep: boolean; readonly keepalive?: number }): void {
    this.#command({ opcode: Command.addPeer, slot, argument: ((asleep ? ADD_ASLEEP : 0) | keepalive) >>> 0 });
  }
  removePeer(slot: number): void {
    this.#command({ opcode: Command.removePeer, slot });
  }
  setAsleep(slot: number, asleep: boolean): void {
    this.#command({ opcode: Command.setAsleep, slot, argument: asleep ? 1 : 0 });
  }
  rearmWake(slot: number): void {
    this.#command({ opcode: Command.rearmWake, slot });
  }
  setKeepalive(slot: number, seconds: number): void {
    this.#command({ opcode: Command.setKeepalive, slot, argument: seconds });
  }
  addPrefix(slot: number, { address, bits }: Parameters<Plane["addPrefix"]>[1]): void {
    this.#command({ opcode: Command.addPrefix, slot, address, argument: bits });
  }
  removePrefix(slot: number, { address, bits }: Parameters<Plane["removePrefix"]>[1]): void {
    this.#command({ opcode: Command.removePrefix, slot, address, argument: bits });
  }
  setPath(slot: number, path: DevicePath): void {
    if (path.kind === "relay") throw new Error("this wire has no relay");
    const { address, port } = path.kind === "udp" ? path.endpoint : {};
    this.#command({
      opcode: Command.setPath,
      slot,
      ...(address === undefined || port === undefined ? {} : { address, port }),
    });
  }
  installSession(slot: number, keys: SessionKeys): void {
    this.#command(sessionRecord(slot, keys));
  }
  dropStaged(slot: number): void {
    this.#command({ opcode: Command.dropStaged, slot });
  }
  noteAuthenticated(slot: number, direction: "sent" | "received", bytes = 0): void {
    this.#command({ opcode: Command.noteAuthenticated, slot, argument: direction === "sent" ? 1 : 0, time: bytes });
  }
  sendDatagram(datagram: Uint8Array, _to: Endpoint): string | undefined {
    this.#send(datagram.slice());
    return undefined;
  }
  peerCounters(slot: number): ReturnType<Plane["peerCounters"]> {
    return this.rig.stats.peer(slot);
  }
  counters(): ReturnType<Plane["counters"]> {
    return this.rig.counters();
  }
  isWorking(): boolean {
    return true;
  }
  close(): Promise<void> {
    this.rig.close();
    return Promise.resolve();
  }
  /** Not what this plane is for: the worker's gate stays without a secret. */
  setCookieSecret(): void {}
  restorePeer(): void {
    throw new Error("this worker does not die");
  }
  setFilter(): void {
    throw new Error("no filter here");
  }
  setFilterSource(): void {
    throw new Error("no filter here");
  }
  startCapture(): void {
    throw new Error("no capture here");
  }
  stopCapture(): void {}
  injectRelayed(): void {
    throw new Error("this wire has no relay");
  }

  #command(record: CommandRecord): void {
    this.rig.commands.send(record);
    this.#apply();
  }
}

export type MessageKind = "initiation" | "response" | "cookie" | "keepalive" | "data";

const KINDS = ["initiation", "response", "cookie"] as const;
const KEEPALIVE_BYTES = 32;

/** What a datagram is, from outside. */
function kindOf(datagram: Uint8Array): MessageKind {
  return KINDS[datagram[0]! - 1] ?? (datagram.length === KEEPALIVE_BYTES ? "keepalive" : "data");
}

export interface OnWire {
  readonly at: Millis;
  readonly kind: MessageKind;
  readonly bytes: Uint8Array;
}

/** One whole device: handshakes, worker, timers; its TUN and its socket are arrays. */
export class VirtualEnd {
  readonly device: EmbeddedDevice;
  readonly rig: Rig;
  /** All that it sent, in order. */
  readonly sent: OnWire[] = [];
  /** Payloads of the inner packets that came out of it. */
  readonly received: string[] = [];
  readonly events: { readonly name: keyof DeviceEvents; readonly at: Millis; readonly payload: unknown }[] = [];
  /** Last byte of its address; what arrives from another is from elsewhere. */
  host: number;
  /** Loses a datagram that it sends, or not. */
  loses: (message: OnWire) => boolean = () => false;
  deliver: (message: OnWire) => void = () => {};
  readonly #clock: ManualClock;
  readonly #kernel: NonNullable<MemoryGuard["kernel"]>;
  readonly #plane: RigPlane;
  readonly #destination: number;
  #timer: Timer | undefined;
  #isRunning = false;

  constructor(clock: ManualClock, host: number, limits: Partial<SessionLimits>) {
    this.#clock = clock;
    this.host = host;
    this.#destination = 3 - host;
    const privateKey = PrivateKey.generate();
    this.rig = new Rig(guard, { limits, mac1Key: new LocalIdentity(privateKey).mac1Key });
    this.#kernel = guard.kernel!;
    this.#plane = new RigPlane(
      this.rig,
      () => this.run(),
      (datagram) => this.#put(datagram),
    );
    this.device = new EmbeddedDevice({ clock, log: silentLogger, plane: this.#plane }, { privateKey, mtu: 1420 });
    for (const name of ["established", "path-hint", "silent", "handshake-failed", "wake"] as const)
      this.device.events.on(name, (payload) => this.events.push({ name, at: clock.now(), payload }));
  }

  know(other: VirtualEnd, more: { readonly persistentKeepalive?: number } = {}): void {
    const allowedIps = [parsePrefix(`10.77.0.${other.host}/32`)];
    this.device.setPeer(other.device.publicKey, { mode: "awake", allowedIps, ...more });
    this.device.setPath(other.device.publicKey, { kind: "udp", endpoint: endpointOf(other.host) });
  }

  /** A handshake now, whatever the session's age. */
  renewWith(other: VirtualEnd): void {
    this.device.initiate(other.device.publicKey, [{ kind: "udp", endpoint: endpointOf(other.host) }]);
  }

  count(name: keyof DeviceEvents): number {
    return this.events.filter((event) => event.name === name).length;
  }

  /** Gives the TUN a packet with this payload for the other end. */
  send(payload: string): void {
    const packet = buildPacket({ v6: false, protocol: "udp", payload: Buffer.from(payload) });
    // The model's packets go from .1 to .2: swapped addresses have the same checksums.
    packet[15] = 3 - this.#destination;
    packet[19] = this.#destination;
    this.rig.kernel.tunIn.push(withHeader({}, packet));
    this.run();
  }

  /** A datagram arrives from the address that ends in `host`. */
  arrive(bytes: Uint8Array, host: number): void {
    this.rig.kernel.udpIn.push({ bytes, host });
    this.run();
  }

  /** The worker's loop and main's, until there is nothing left to do at this moment. */
  run(): void {
    if (this.#isRunning) return;
    this.#isRunning = true;
    const { rig } = this;
    const before = guard.kernel;
    guard.kernel = this.#kernel;
    rig.setNow(this.#clock.now());
    let more = true;
    while (more) {
      more = rig.path.applier.apply(1024);
      rig.transmit();
      rig.receive();
      if (rig.path.timers.nextAt <= rig.now) rig.path.timers.run(rig.now);
      rig.path.queue.flush();
      for (const { bytes } of rig.kernel.sent.splice(0)) this.#put(bytes);
      for (const written of rig.kernel.tunOut.splice(0)) {
        const packet = Buffer.from(written.subarray(VIRTIO_BYTES));
        this.received.push(packet.toString("utf8", 28));
      }
      for (const ring of [rig.main.events, rig.main.datagrams]) {
        while (ring.used > 0) {
          more = true;
          emitReports(ring, this.#plane.events, REPORTS_MAX);
        }
      }
      // What a listener commanded lies in the ring.
      more ||= rig.commandRing.used > 0;
    }
    guard.kernel = before;
    this.#isRunning = false;
    this.#timer?.cancel();
    const { nextAt } = rig.path.timers;
    if (nextAt !== Number.POSITIVE_INFINITY) this.#timer = this.#clock.after(nextAt - rig.now, () => this.run());
  }

  #put(bytes: Uint8Array): void {
    const message = { at: this.#clock.now(), kind: kindOf(bytes), bytes };
    this.sent.push(message);
    if (!this.loses(message)) this.deliver(message);
  }
}

const endpointOf = (host: number): Endpoint => parseEndpoint(`192.0.2.${host}:51820`);

/** Two whole devices that know each other, on a wire with a delay; all time is virtual. */
export class VirtualPair {
  readonly clock = new ManualClock(1000);
  readonly a: VirtualEnd;
  readonly b: VirtualEnd;

  constructor(options: { readonly delayMs?: Millis; readonly limits?: Partial<SessionLimits> } = {}) {
    const { delayMs = 10, limits = {} } = options;
    this.a = new VirtualEnd(this.clock, 1, limits);
    this.b = new VirtualEnd(this.clock, 2, limits);
    for (const [from, to] of [
      [this.a, this.b],
      [this.b, this.a],
    ] as const) {
      from.deliver = ({ bytes }) => void this.clock.after(delayMs, () => to.arrive(bytes, from.host));
    }
    this.a.know(this.b);
    this.b.know(this.a);
  }

  /** A first packet from `a`, which begins the session. */
  connect(): void {
    this.a.send("hello");
    this.clock.advance(100);
  }

  async [Symbol.asyncDispose](): Promise<void> {
    for (const { device } of [this.a, this.b]) await device.close();
    if (guard.violations.length > 0) throw new Error(guard.violations.join("\n"));
  }
}
