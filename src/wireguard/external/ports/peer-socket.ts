import { randomInt } from "node:crypto";
import { createSocket, type RemoteInfo, type Socket } from "node:dgram";
import { messageOf } from "#base/errors.ts";
import { type Endpoint, type IpAddress, ipFromBytes } from "#base/ip.ts";
import { NetError } from "#net/libc.ts";

/** Of a peer that is relayed, whose packets wait for the main thread. Linux gives less where its limit is lower, others refuse. */
const RECEIVE_BUFFER = process.platform === "linux" ? { recvBufferSize: 4 << 20 } : {};
const LOOPBACK = "127.0.0.1" as IpAddress;

/**
 * Which address sockets are bound to: one of this owner's own in 127.64.0.0/10, so that ports are nobody else's, another one
 * when its ports are used up, and 127.0.0.1 on machines that have no other.
 */
export class SocketAddress {
  #current = ownAddress();

  get current(): IpAddress {
    return this.#current;
  }

  /** Another one after `errno` of a bind to the current one; false when there is nothing to be tried. */
  change(errno: string | undefined): boolean {
    if (this.#current === LOOPBACK) return false;
    if (errno !== "EADDRINUSE" && errno !== "EADDRNOTAVAIL") return false;
    this.#current = errno === "EADDRINUSE" ? ownAddress() : LOOPBACK;
    return true;
  }
}

function ownAddress(): IpAddress {
  return ipFromBytes(Uint8Array.of(127, randomInt(64, 128), randomInt(0, 256), randomInt(1, 255)));
}

/** A UDP socket that the device gets as the endpoint of one peer, or of many. Bound when the constructor returns. */
export class PeerSocket {
  readonly endpoint: Endpoint;
  readonly #socket: Socket;
  readonly #noteDropped: () => void;
  #closed: Promise<void> | undefined;

  /**
   * `receive` gets each datagram, whoever sent it; its bytes are the receiver's. `noteDropped`: one could not be sent. Throws NetError
   * `syscall-failed` when there is no socket to be had, such as for lack of descriptors.
   */
  constructor(
    address: SocketAddress,
    receive: (datagram: Uint8Array, from: RemoteInfo) => void,
    noteDropped: () => void,
  ) {
    this.#noteDropped = noteDropped;
    let bound = bindNow(address.current);
    // At most two: its ports are used up, then it turns out that the next address is none of this machine.
    for (let i = 0; i < 2 && bound instanceof NetError && address.change(bound.errno); i++)
      bound = bindNow(address.current);
    if (bound instanceof NetError) throw bound;
    this.#socket = bound;
    const { port } = bound.address();
    this.endpoint = { address: address.current, port };
    bound.on("message", receive);
    bound.on("error", noteDropped);
  }

  /** To a port of 127.0.0.1. The datagram is copied. */
  send(datagram: Uint8Array, port: number): void {
    if (this.#closed) return;
    this.#socket.send(Buffer.from(datagram), port, LOOPBACK, (error) => {
      if (error) this.#noteDropped();
    });
  }

  /** Idempotent; nothing is received after the call. */
  close(): Promise<void> {
    this.#closed ??= new Promise((resolve) => {
      this.#socket.removeAllListeners("message");
      this.#socket.close(() => resolve());
    });
    return this.#closed;
  }
}

/** Binds within the call, where Node waits for the address to be looked up. */
function bindNow(address: IpAddress): Socket | NetError {
  const socket = createSocket({
    type: "udp4",
    ...RECEIVE_BUFFER,
    lookup: (host, _options, callback) => callback(null, host, 4),
  });
  let failure: unknown;
  const noteFailure = (error: unknown): void => {
    failure = error;
  };
  socket.on("error", noteFailure);
  socket.bind({ address, port: 0, exclusive: true });
  socket.off("error", noteFailure);
  if (failure === undefined) return socket;
  socket.close();
  const errno = (failure as NodeJS.ErrnoException).code;
  return new NetError("syscall-failed", `cannot bind a UDP socket to ${address}: ${messageOf(failure)}`, {
    cause: failure,
    ...(errno === undefined ? {} : { errno }),
  });
}
