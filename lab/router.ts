import { readSync, writeSync } from "node:fs";
import { setPriority } from "node:os";
import { messageOf, unreachable } from "#base/errors.ts";
import type { Millis } from "#base/time.ts";
import { Errno } from "#net/errno.ts";
import { libc } from "#net/libc.ts";
import { closeTun, openTun, type Tun } from "#tun/linux.ts";
import { type CapturePoint, CONTROL_FD, type RouterCommand, type RouterReply, type RouterRequest } from "./control.ts";
import { HOST_INTERFACE, removeNamespaces } from "./namespace.ts";
import { inNamespace } from "./namespace-entry.ts";
import { Network, type NetworkCounters } from "./network.ts";
import { PcapWriter } from "./pcap.ts";
import type { ResolvedTopology } from "./topology.ts";
import { ReadinessWait, refuseTimerSlack } from "./wait.ts";
import { warmUp } from "./warm-up.ts";

/**
 * The process between the hosts: holds a TUN of every host, moves packets through a `Network`, and takes commands on
 * descriptor 3. One blocking loop and no Node events, so a packet waits for nothing else and an idle lab costs nothing:
 *
 * ```
 *   wait (ppoll: control, every TUN, next due time) -> commands -> read each ready TUN -> advance the network -> wait
 * ```
 */
const READ_BATCH = 64;
/** A capture is written out when nothing happens for this long, or this long after the last time. */
const FLUSH_IDLE_MS: Millis = 5;
const FLUSH_BUSY_MS: Millis = 200;
const WARM_UP_ROUNDS = 1000;
/** Before everything that runs in the hosts: a network does not become slow because its computers are busy. */
const ROUTER_NICENESS = -15;
const CONTROL_READ_BYTES = 64 * 1024;

class Router {
  readonly #libc = libc();
  readonly #tuns: Tun[] = [];
  #network: Network | undefined;
  #wait = new ReadinessWait(1);
  #controlSlot = 0;
  #tunSlots: number[] = [];
  #namespacePrefix: string | undefined;
  readonly #captures = new Map<string, PcapWriter>();
  #flushedAt: Millis = 0;
  #hasUnflushed = false;
  #pendingInput = "";
  /** Milliseconds from `performance.now()` to the Unix epoch. */
  readonly #epoch = Date.now() - performance.now();

  /** Returns when the owner has closed the control socket. */
  run(): void {
    refuseTimerSlack();
    try {
      setPriority(ROUTER_NICENESS);
    } catch {
      // Not allowed in a user namespace: then a busy machine adds delay.
    }
    this.#watch([]);
    for (;;) {
      this.#network?.advance(performance.now());
      const isReady = this.#wait.wait(this.#timeout());
      if (isReady && this.#wait.isReady(this.#controlSlot) && !this.#readControl()) return;
      if (isReady) this.#readTuns();
    }
  }

  /** Ends the interfaces and, should the owner have died without doing so, what lived in its namespaces. */
  close(): void {
    for (const capture of this.#captures.values()) capture.close();
    for (const tun of this.#tuns) closeTun(tun);
    if (this.#namespacePrefix !== undefined) removeNamespaces(this.#namespacePrefix);
  }

  #timeout(): Millis | undefined {
    const due = this.#network?.nextDue();
    const now = performance.now();
    const timeout = due === undefined ? undefined : Math.max(0, due - now);
    const isIdle = timeout === undefined || timeout > FLUSH_IDLE_MS;
    if (this.#hasUnflushed && (isIdle || now - this.#flushedAt > FLUSH_BUSY_MS)) {
      for (const capture of this.#captures.values()) capture.flush();
      this.#hasUnflushed = false;
      this.#flushedAt = now;
    }
    return timeout;
  }

  #watch(tuns: readonly Tun[]): void {
    this.#wait = new ReadinessWait(1 + tuns.length);
    this.#controlSlot = this.#wait.add(CONTROL_FD);
    this.#tunSlots = tuns.map((tun) => this.#wait.add(tun.fd));
  }

  #readTuns(): void {
    const network = this.#network;
    if (!network) return;
    for (let host = 0; host < this.#tunSlots.length; host++) {
      if (this.#wait.isReady(this.#tunSlots[host]!)) this.#readTun(network, host);
    }
  }

  #readTun(network: Network, host: number): void {
    const { fd } = this.#tuns[host]!;
    for (let i = 0; i < READ_BATCH; i++) {
      const packet = network.take();
      if (!packet) return;
      const length = this.#libc.read(fd, packet.bytes, packet.bytes.length);
      if (length <= 0) {
        network.putBack(packet);
        // An interface that was deleted stays readable for ever: stop looking at it.
        if (length < 0 && this.#libc.errno() === Errno.EBADFD) this.#wait.mute(this.#tunSlots[host]!);
        return;
      }
      packet.length = length;
      const now = performance.now();
      this.#capture("host", host, packet.bytes, length, now);
      network.receive(host, packet, now);
    }
  }

  #deliver(host: number, bytes: Uint8Array, length: number): void {
    this.#capture("host", host, bytes, length, performance.now());
    // A host whose interface is down or gone refuses the packet: lost, as on a real cable.
    this.#libc.write(this.#tuns[host]!.fd, bytes, length);
  }

  #capture(kind: CapturePoint["kind"], index: number, bytes: Uint8Array, length: number, now: Millis): void {
    if (this.#captures.size === 0) return;
    const capture = this.#captures.get(captureKey({ kind, index }));
    if (!capture) return;
    capture.write(bytes, length, this.#epoch + now);
    this.#hasUnflushed = true;
  }

  /** False when the owner is gone. */
  #readControl(): boolean {
    const chunk = Buffer.allocUnsafe(CONTROL_READ_BYTES);
    const length = readSync(CONTROL_FD, chunk);
    if (length === 0) return false;
    const lines = (this.#pendingInput + chunk.toString("utf8", 0, length)).split("\n");
    this.#pendingInput = lines.pop()!;
    for (const line of lines) {
      const request = JSON.parse(line) as RouterRequest;
      let reply: RouterReply;
      try {
        const value = this.#obey(request.command);
        reply = { id: request.id, ok: true, value };
      } catch (error) {
        reply = { id: request.id, ok: false, message: messageOf(error) };
      }
      const text = Buffer.from(`${JSON.stringify(reply)}\n`);
      for (let at = 0; at < text.length; ) at += writeSync(CONTROL_FD, text, at);
    }
    return true;
  }

  #obey(command: RouterCommand): NetworkCounters | undefined {
    if (command.kind === "open") {
      this.#namespacePrefix = command.namespacePrefix;
      this.#open(command.topology, command.namespaces);
      return undefined;
    }
    const network = this.#network;
    if (!network) throw new Error(`${command.kind} before open`);
    switch (command.kind) {
      case "start":
        this.#warmUp(network);
        this.#watch(this.#tuns);
        return undefined;
      case "cut":
        network.cutSite(command.site, command.isCut);
        return undefined;
      case "link":
        network.changeLink(command.site, command.direction, command.options);
        return undefined;
      case "udp":
        network.setUdp(command.site, command.udp);
        return undefined;
      case "nat":
        network.setNat(command.site, command.nat);
        return undefined;
      case "rebind":
        network.rebindNat(command.site);
        return undefined;
      case "public-address":
        network.setPublicAddress(command.site, command.address);
        return undefined;
      case "place-host":
        network.placeHost(command.host, command.plan);
        return undefined;
      case "rule":
        network.addRule(command.rule);
        return undefined;
      case "capture-start":
        this.#stopCapture(command.point);
        this.#captures.set(captureKey(command.point), new PcapWriter(command.path));
        return undefined;
      case "capture-stop":
        this.#stopCapture(command.point);
        return undefined;
      case "counters":
        return network.counters();
      default:
        return unreachable(command);
    }
  }

  #open(topology: ResolvedTopology, namespaces: readonly string[]): void {
    // Made where they belong: to move an interface from one namespace to another takes the kernel 20 ms.
    for (const namespace of namespaces)
      this.#tuns.push(inNamespace(namespace, () => openTun({ name: HOST_INTERFACE })));
    this.#network = new Network(topology, {
      deliver: (host, bytes, length) => this.#deliver(host, bytes, length),
      seenAtSite: (site, bytes, length, now) => this.#capture("site", site, bytes, length, now),
    });
  }

  /** Runs the way of a packet often enough to be compiled: with packets in `warmUp`, with empty calls on the TUNs here. */
  #warmUp(network: Network): void {
    warmUp();
    const nothing = new Uint8Array(1);
    for (let round = 0; round < WARM_UP_ROUNDS && this.#tuns.length > 0; round++) {
      this.#readTun(network, 0);
      this.#deliver(0, nothing, 0);
      this.#wait.wait(0);
      this.#timeout();
    }
  }

  #stopCapture(point: CapturePoint): void {
    this.#captures.get(captureKey(point))?.close();
    this.#captures.delete(captureKey(point));
  }
}

function captureKey({ kind, index }: CapturePoint): string {
  return `${kind}:${index}`;
}

if (import.meta.main) {
  const router = new Router();
  try {
    router.run();
  } finally {
    router.close();
  }
}
