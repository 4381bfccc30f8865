import { once } from "node:events";
import { setTimeout as sleep } from "node:timers/promises";
import { WebSocket } from "ws";
import { PublicKey } from "#base/keys.ts";
import { silentLogger } from "#base/log.ts";
import { createRelayToken, encodeRelayToken, type RelayToken, relayTokenKey } from "#base/relay-token.ts";
import { type Clock, systemClock } from "#base/time.ts";
import { encodeAuth, encodePeerList, encodeTransport, type RelayType } from "./protocol/messages.ts";
import { PeerId } from "./protocol/peer-id.ts";
import { listenRelay, type RelayPort } from "./server/relay-port.ts";
import { RelayServer, type RelayServerOptions } from "./server/relay-server.ts";

/* Support for the tests of this folder. */

export const SECRET = "perch-relay-secret";

export const validToken = (): RelayToken => createRelayToken(SECRET, Date.now() / 1000 + 3600);

export interface RelayHost extends AsyncDisposable {
  readonly url: string;
  readonly server: RelayServer;
  readonly port: RelayPort;
}

/** A relay on loopback; `clock` is that of the server. */
export async function relayHost(
  options: Partial<RelayServerOptions> = {},
  port = 0,
  clock: Clock = systemClock,
): Promise<RelayHost> {
  let server: RelayServer | undefined;
  const listening = await listenRelay(() => server!, { port });
  const url = `rel://127.0.0.1:${listening.port}`;
  server = new RelayServer(
    { clock, log: silentLogger },
    { instanceUrl: url, tokenKey: relayTokenKey(SECRET), ...options },
  );
  return {
    url,
    server,
    port: listening,
    async [Symbol.asyncDispose]() {
      await server.close();
      await listening.close();
    },
  };
}

/** An agent made of a plain WebSocket and nothing of the client. */
export class RawAgent implements Disposable {
  readonly ws: WebSocket;
  readonly messages: Buffer[] = [];
  readonly id: PeerId;
  closed = false;

  constructor(url: string, id: PeerId | string) {
    this.id = PeerId.ofText(id);
    this.ws = new WebSocket(`${url.replace(/^rel/, "ws")}/relay`, { perMessageDeflate: false });
    this.ws.on("message", (data: Buffer) => this.messages.push(data));
    this.ws.on("error", () => {});
    this.ws.on("close", () => {
      this.closed = true;
    });
  }

  static async join(url: string, id: PeerId | string, token = encodeRelayToken(validToken())): Promise<RawAgent> {
    const agent = new RawAgent(url, id);
    await once(agent.ws, "open");
    agent.send(encodeAuth(agent.id, token));
    await until("the AuthResponse", () => agent.messages.length > 0 || agent.closed);
    return agent;
  }

  send(message: Uint8Array): void {
    this.ws.send(message, { binary: true });
  }

  transport(to: PeerId, payload: Uint8Array): void {
    this.send(encodeTransport(to, payload));
  }

  list(type: typeof RelayType.subscribe | typeof RelayType.unsubscribe, ...peers: PeerId[]): void {
    for (const message of encodePeerList(type, peers)) this.send(message);
  }

  /** Type and rest of what came since the last call, in hex. */
  take(): string[] {
    return this.messages.splice(0).map((message) => message.toString("hex"));
  }

  [Symbol.dispose](): void {
    this.ws.terminate();
  }
}

/** A key that differs from all others, for peers that need no private one. */
export function somePublicKey(seed: number): PublicKey {
  const bytes = new Uint8Array(32);
  new DataView(bytes.buffer).setUint32(0, seed);
  return PublicKey.fromBytes(bytes);
}

export async function until(what: string, check: () => boolean, limitMs = 5000): Promise<void> {
  const end = performance.now() + limitMs;
  while (!check()) {
    if (performance.now() > end) throw new Error(`waited ${limitMs} ms for: ${what}`);
    await sleep(2);
  }
}

/** Lets what is on its way over loopback arrive. */
export function settle(): Promise<void> {
  return sleep(30);
}
