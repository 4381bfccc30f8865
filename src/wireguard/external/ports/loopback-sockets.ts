import type { RemoteInfo } from "node:dgram";
import { Emitter } from "#base/emitter.ts";
import type { Endpoint } from "#base/ip.ts";
import type { PublicKey } from "#base/keys.ts";
import type { LocalEnds, LocalEndsEvents } from "../parts.ts";
import { PeerSocket, SocketAddress } from "./peer-socket.ts";

export interface LoopbackSocketsOptions {
  /** 0: not known yet, nothing is accepted. */
  readonly devicePort: number;
}

/** A UDP socket of Node's for each peer: works everywhere, and costs each peer a descriptor and some KiB. */
export class LoopbackSockets implements LocalEnds {
  readonly name = "loopback-sockets";
  readonly events = new Emitter<LocalEndsEvents>();
  readonly #address = new SocketAddress();
  readonly #sockets = new Map<PublicKey, PeerSocket>();
  readonly #closing = new Set<Promise<void>>();
  #devicePort: number;
  #wrongSender = 0;
  #undelivered = 0;
  #isClosed = false;

  constructor(options: LoopbackSocketsOptions) {
    this.#devicePort = options.devicePort;
  }

  open(key: PublicKey): Endpoint {
    let socket = this.#sockets.get(key);
    if (!socket) {
      socket = new PeerSocket(
        this.#address,
        (datagram, from) => this.#receive(key, datagram, from),
        () => this.#undelivered++,
      );
      this.#sockets.set(key, socket);
    }
    return socket.endpoint;
  }

  close(key: PublicKey): void {
    const socket = this.#sockets.get(key);
    if (!socket) return;
    this.#sockets.delete(key);
    const closed = socket.close().finally(() => this.#closing.delete(closed));
    this.#closing.add(closed);
  }

  deliver(key: PublicKey, datagram: Uint8Array): boolean {
    const socket = this.#sockets.get(key);
    if (!socket || this.#devicePort === 0) return false;
    socket.send(datagram, this.#devicePort);
    return true;
  }

  setDevicePort(port: number): void {
    this.#devicePort = port;
  }

  counters(): ReadonlyMap<string, number> {
    return new Map([
      ["drop-wrong-sender", this.#wrongSender],
      ["drop-deliver", this.#undelivered],
    ]);
  }

  async [Symbol.asyncDispose](): Promise<void> {
    this.#isClosed = true;
    for (const key of [...this.#sockets.keys()]) this.close(key);
    await Promise.all(this.#closing);
  }

  #receive(key: PublicKey, datagram: Uint8Array, from: RemoteInfo): void {
    if (this.#isClosed) return;
    if (isDevice(from, this.#devicePort)) this.events.emit("datagram", { key, datagram });
    else this.#wrongSender++;
  }
}

/** The device is the only one that can send from its port. */
export function isDevice({ address, port }: RemoteInfo, devicePort: number): boolean {
  return port === devicePort && address.startsWith("127.");
}
