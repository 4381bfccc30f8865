import { createSocket, type Socket as UdpSocket } from "node:dgram";
import { createServer, type Server, type Socket } from "node:net";
import { messageOf } from "#base/errors.ts";
import { type Endpoint, formatEndpoint, type IpAddress, isV6, parseIp } from "#base/ip.ts";
import type { Logger } from "#base/log.ts";
import type { Millis } from "#base/time.ts";

/** Answers one message; undefined: nothing is sent. Never rejects. */
export type AnswerMessage = (message: Uint8Array, from: IpAddress, overTcp: boolean) => Promise<Uint8Array | undefined>;

/** TCP connections at once; more are closed at once. */
export const CONNECTIONS_MAX = 64;
/** A connection on which nothing happens for this long is closed (RFC 7766, section 6.2.3). */
const CONNECTION_IDLE: Millis = 10_000;
/** Questions of one connection that are being answered; then it is not read on. */
const PIPELINE_MAX = 16;

/** UDP and TCP sockets of one address that pass messages to `answer`. Bounded: connections, and questions per connection. */
export class DnsServer implements AsyncDisposable {
  readonly endpoint: Endpoint;
  readonly #udp: UdpSocket;
  readonly #tcp: Server;
  readonly #connections = new Set<Socket>();
  #closed: Promise<void> | undefined;

  private constructor(endpoint: Endpoint, udp: UdpSocket, tcp: Server) {
    this.endpoint = endpoint;
    this.#udp = udp;
    this.#tcp = tcp;
  }

  /** Listens on both transports or, with what the system threw, on none. */
  static async listen(endpoint: Endpoint, answer: AnswerMessage, log: Logger): Promise<DnsServer> {
    const { address, port } = endpoint;
    const udp = createSocket({ type: isV6(address) ? "udp6" : "udp4" });
    await new Promise<void>((resolve, reject) => {
      udp.once("error", (error) => {
        udp.close();
        reject(error);
      });
      udp.bind({ address, port, exclusive: true }, resolve);
    });
    udp.removeAllListeners("error");
    const tcp = createServer({ allowHalfOpen: true });
    try {
      await new Promise<void>((resolve, reject) => {
        tcp.once("error", reject);
        tcp.listen({ host: address, port: udp.address().port, exclusive: true }, resolve);
      });
    } catch (error) {
      udp.close();
      throw error;
    }
    tcp.removeAllListeners("error");
    const server = new DnsServer({ address, port: udp.address().port }, udp, tcp);
    // A reply that cannot be sent is the asker's to ask for again.
    udp.on("error", (err) => log.debug("a name server socket failed", { err: messageOf(err) }));
    tcp.on("error", (err) => log.debug("a name server socket failed", { err: messageOf(err) }));
    udp.on("message", (message, from) => {
      void answer(message, parseIp(from.address), false).then((reply) => {
        if (reply && !server.#closed) udp.send(reply, from.port, from.address, () => {});
      });
    });
    tcp.on("connection", (socket) => server.#serve(socket, answer));
    log.info("answering questions about names", { endpoint: formatEndpoint(server.endpoint) });
    return server;
  }

  /** Ends all connections; idempotent. */
  close(): Promise<void> {
    this.#closed ??= this.#end();
    return this.#closed;
  }

  [Symbol.asyncDispose](): Promise<void> {
    return this.close();
  }

  async #end(): Promise<void> {
    for (const socket of this.#connections) socket.destroy();
    const closed = new Promise<void>((resolve) => this.#tcp.close(() => resolve()));
    await new Promise<void>((resolve) => this.#udp.close(() => resolve()));
    await closed;
  }

  #serve(socket: Socket, answer: AnswerMessage): void {
    if (this.#connections.size >= CONNECTIONS_MAX || socket.remoteAddress === undefined) return void socket.destroy();
    const from = parseIp(socket.remoteAddress);
    this.#connections.add(socket);
    socket.on("close", () => this.#connections.delete(socket));
    socket.on("error", () => socket.destroy());
    socket.setTimeout(CONNECTION_IDLE, () => socket.destroy());
    let received: Uint8Array = new Uint8Array();
    let pending = 0;
    let ended = false;
    const finish = (): void => {
      if (ended && pending === 0) socket.end();
    };
    const read = (): void => {
      while (pending < PIPELINE_MAX && received.length >= 2) {
        const length = (received[0]! << 8) | received[1]!;
        if (received.length < 2 + length) break;
        const message = received.slice(2, 2 + length);
        received = received.subarray(2 + length);
        pending++;
        void answer(message, from, true).then((reply) => {
          pending--;
          if (reply && socket.writable)
            socket.write(Buffer.concat([Uint8Array.of(reply.length >> 8, reply.length), reply]));
          read();
          finish();
        });
      }
      if (pending >= PIPELINE_MAX) socket.pause();
      else if (!ended) socket.resume();
    };
    socket.on("data", (part: Buffer) => {
      received = received.length === 0 ? part : Buffer.concat([received, part]);
      read();
    });
    socket.on("end", () => {
      ended = true;
      finish();
    });
  }
}
