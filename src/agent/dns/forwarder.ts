import { randomInt } from "node:crypto";
import { createSocket } from "node:dgram";
import { connect } from "node:net";
import { type Endpoint, isV6 } from "#base/ip.ts";
import type { Clock, Millis } from "#base/time.ts";

/** How long one server may take; two of them answer before a stub resolver gives up after 5 s. */
export const SERVER_PATIENCE: Millis = 2000;
/** Questions under way at once; more are refused. */
export const IN_FLIGHT_MAX = 512;
/** Servers asked for one question. */
const SERVERS_MAX = 3;
const HEADER_BYTES = 12;
/** Response codes of servers that cannot help: the next one is asked. */
const NO_HELP: ReadonlySet<number> = new Set([2, 4, 5]);

/** Asks other name servers. Replies are passed on as they came, with the asker's ID. */
export class Forwarder {
  readonly #clock: Clock;
  /** The server of a list that answered last is asked first. */
  readonly #preferred = new WeakMap<readonly Endpoint[], Endpoint>();
  readonly #cancels = new Set<() => void>();
  #closed = false;

  constructor(clock: Clock) {
    this.#clock = clock;
  }

  get inFlight(): number {
    return this.#cancels.size;
  }

  /**
   * Asks the servers one after the other, over the same kind of transport as the asker used. Undefined: none answered, or too
   * much is under way. Never rejects.
   */
  async ask(message: Uint8Array, servers: readonly Endpoint[], overTcp: boolean): Promise<Uint8Array | undefined> {
    if (this.#cancels.size >= IN_FLIGHT_MAX) return undefined;
    const preferred = this.#preferred.get(servers);
    const order = preferred ? [preferred, ...servers.filter((server) => server !== preferred)] : servers;
    let unhelpful: Uint8Array | undefined;
    for (const server of order.slice(0, SERVERS_MAX)) {
      if (this.#closed) return undefined;
      const reply = await this.#askOne(message, server, overTcp);
      if (!reply) continue;
      if (NO_HELP.has(reply[3]! & 0xf)) {
        unhelpful ??= reply;
        continue;
      }
      this.#preferred.set(servers, server);
      return reply;
    }
    return unhelpful;
  }

  /** What is under way ends without an answer. Idempotent. */
  close(): void {
    this.#closed = true;
    for (const cancel of [...this.#cancels]) cancel();
  }

  #askOne(message: Uint8Array, server: Endpoint, overTcp: boolean): Promise<Uint8Array | undefined> {
    // An ID and a port of our own: who cannot see the question cannot forge an answer (RFC 5452).
    const query = Buffer.from(message);
    query.writeUInt16BE(randomInt(0x10000), 0);
    return new Promise((resolve) => {
      let stop = (): void => {};
      const end = (reply: Buffer | undefined): void => {
        timer.cancel();
        if (!this.#cancels.delete(cancel)) return;
        stop();
        reply?.set(message.subarray(0, 2));
        resolve(reply);
      };
      const cancel = (): void => end(undefined);
      this.#cancels.add(cancel);
      const timer = this.#clock.after(SERVER_PATIENCE, cancel);
      const take = (reply: Buffer): void => {
        if (isReplyTo(reply, query)) end(reply);
      };
      stop = (overTcp ? askOverTcp : askOverUdp)(query, server, take, cancel);
    });
  }
}

/** Returns what ends it. */
type Ask = (query: Buffer, server: Endpoint, take: (reply: Buffer) => void, fail: () => void) => () => void;

const askOverUdp: Ask = (query, server, take, fail) => {
  const socket = createSocket(isV6(server.address) ? "udp6" : "udp4");
  let isOpen = true;
  const stop = (): void => {
    if (isOpen) socket.close();
    isOpen = false;
  };
  socket.on("error", fail).on("message", (reply: Buffer) => take(Buffer.from(reply)));
  // A connected socket hears this server alone, and that nobody listens there.
  socket.connect(server.port, server.address, () => isOpen && socket.send(query));
  return stop;
};

const askOverTcp: Ask = (query, server, take, fail) => {
  const socket = connect(server.port, server.address);
  const length = Buffer.alloc(2);
  length.writeUInt16BE(query.length);
  let received = Buffer.alloc(0);
  socket.on("error", fail).on("close", fail);
  socket.on("data", (part: Buffer) => {
    received = Buffer.concat([received, part]);
    if (received.length < 2 || received.length < 2 + received.readUInt16BE(0)) return;
    take(Buffer.from(received.subarray(2, 2 + received.readUInt16BE(0))));
    fail();
  });
  // Not ended: some servers take that for a change of mind.
  socket.write(Buffer.concat([length, query]));
  return () => void socket.destroy();
};

/** Same ID, a reply, and the same question in the same letters. */
function isReplyTo(reply: Buffer, query: Buffer): boolean {
  if (reply.length < HEADER_BYTES || (reply[2]! & 0x80) === 0 || reply.readUInt16BE(0) !== query.readUInt16BE(0))
    return false;
  // Some servers leave the question out of an error.
  if (reply.readUInt16BE(4) === 0) return (reply[3]! & 0xf) !== 0;
  const end = questionEnd(query);
  return reply.length >= end && reply.subarray(HEADER_BYTES, end).equals(query.subarray(HEADER_BYTES, end));
}

/** Of a query whose question was checked by `parseQuery`. */
function questionEnd(query: Buffer): number {
  let at = HEADER_BYTES;
  while (query[at]! > 0) at += query[at]! + 1;
  return at + 5;
}
