import { createSocket, type RemoteInfo, type Socket } from "node:dgram";
import { once } from "node:events";
import { PerchError } from "#base/errors.ts";
import { type Endpoint, formatEndpoint, isV6, parseIp } from "#base/ip.ts";
import type { Logger } from "#base/log.ts";
import { encodeStun, parseStun, STUN_METHOD_BINDING } from "./stun-message.ts";

export class StunServerError extends PerchError<"stun-listen"> {}

export interface StunServerDeps {
  readonly log: Logger;
}

export interface StunServerOptions {
  /** One socket each. `::` serves IPv4 as well. Port 0 takes a free one. */
  readonly listen: readonly Endpoint[];
}

/**
 * Tells agents the address that their datagrams come from: Binding requests, nothing else (relay.md, section 11). Whatever
 * is no Binding request is counted and ignored; it never answers with an error, and an answer is at most twice as long as
 * a request, so that the responder is of no use to an attacker who forges sources.
 */
export class StunServer {
  readonly #log: Logger;
  readonly #listen: readonly Endpoint[];
  readonly #sockets: Socket[] = [];
  #answered = 0;
  #ignored = 0;
  #closed = false;

  constructor(deps: StunServerDeps, options: StunServerOptions) {
    this.#log = deps.log;
    this.#listen = options.listen;
  }

  /** Opens all sockets. Throws StunServerError when one cannot be opened; none stays open then. Called once. */
  async start(): Promise<void> {
    try {
      for (const endpoint of this.#listen) {
        const socket = createSocket({ type: isV6(endpoint.address) ? "udp6" : "udp4" });
        this.#sockets.push(socket);
        socket.on("message", (datagram, from) => this.#answer(socket, datagram, from));
        socket.bind({ address: endpoint.address, port: endpoint.port, exclusive: true });
        await once(socket, "listening");
        socket.on("error", (err) => this.#log.warn("STUN socket failed", { err }));
      }
    } catch (cause) {
      await this.close();
      const names = this.#listen.map(formatEndpoint).join(", ");
      throw new StunServerError("stun-listen", `cannot answer STUN on ${names}`, { cause, retryable: true });
    }
  }

  /** Where it listens, with the real ports; empty before `start` and after `close`. */
  get addresses(): readonly Endpoint[] {
    return this.#sockets.map((socket) => {
      const { address, port } = socket.address();
      return { address: parseIp(address), port };
    });
  }

  counters(): { readonly answered: number; readonly ignored: number } {
    return { answered: this.#answered, ignored: this.#ignored };
  }

  /** Closes the sockets; idempotent. */
  async close(): Promise<void> {
    if (this.#closed) return;
    this.#closed = true;
    const sockets = this.#sockets.splice(0);
    await Promise.all(sockets.map((socket) => new Promise<void>((resolve) => socket.close(() => resolve()))));
  }

  [Symbol.asyncDispose](): Promise<void> {
    return this.close();
  }

  #answer(socket: Socket, datagram: Uint8Array, from: RemoteInfo): void {
    const request = parseStun(datagram);
    if (request?.class !== "request" || request.method !== STUN_METHOD_BINDING || from.port === 0) {
      this.#ignored++;
      return;
    }
    // A dual-stack socket names IPv4 senders ::ffff:a.b.c.d, which parseIp turns into IPv4; link-local ones carry a zone.
    const address = parseIp(from.address.replace(/%.*$/, ""));
    const { transactionId } = request;
    const answer = encodeStun({
      class: "success",
      transactionId,
      xorMappedAddress: { address, port: from.port },
    });
    this.#answered++;
    socket.send(answer, from.port, from.address, (err) => {
      if (err) this.#log.debug("STUN answer not sent", { err });
    });
  }
}
