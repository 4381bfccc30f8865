import { once } from "node:events";
import { createServer } from "node:http";
import type { AddressInfo } from "node:net";
import { setTimeout as sleep } from "node:timers/promises";
import { type WebSocket, WebSocketServer } from "ws";
import type { PublicKey } from "#base/keys.ts";
import { silentLogger } from "#base/log.ts";
import { type Clock, type ManualClock, systemClock } from "#base/time.ts";
import { encodeAuthResponse, parseRelayMessage } from "../protocol/messages.ts";
import { somePublicKey, validToken } from "../testing.ts";
import { RelayClient, type RelayClientEvents } from "./relay-client.ts";

/* Support for the tests of this folder. */

export const alice = somePublicKey(1);
export const bob = somePublicKey(2);
export const eve = somePublicKey(3);
export const handshake = (text: string): Buffer => Buffer.from(`\u0001${text}`);

export function agent(key: PublicKey, peers: readonly PublicKey[], clock: Clock = systemClock) {
  const client = new RelayClient({ clock, log: silentLogger }, { key });
  const datagrams: RelayClientEvents["datagram"][] = [];
  const presence: RelayClientEvents["presence"][] = [];
  const home: RelayClientEvents["home"][] = [];
  const lost: string[] = [];
  client.events.on("datagram", (event) => datagrams.push(event));
  client.events.on("presence", (event) => presence.push(event));
  client.events.on("home", (event) => home.push(event));
  client.events.on("lost", ({ server }) => lost.push(server));
  for (const peer of peers) client.registerPeer(peer);
  client.setToken(validToken());
  const texts = (): string[] => datagrams.map(({ datagram }) => Buffer.from(datagram).toString());
  return { client, datagrams, presence, home, lost, texts, [Symbol.asyncDispose]: () => client.close() };
}

/** Moves time and lets pings be answered on the way. */
export async function pass(clock: ManualClock, ms: number): Promise<void> {
  for (let left = ms; left > 0; left -= 5_000) {
    clock.advance(Math.min(5_000, left));
    await sleep(10);
  }
}

/** A relay that does as it is told: `onMessage` gets what agents send after their Auth was answered. */
export async function fakeRelay(
  options: {
    beforeAnswer?: (ws: WebSocket, url: string) => void;
    mute?: boolean;
    onMessage?: (data: Buffer) => void;
  } = {},
  port = 0,
) {
  const http = createServer();
  const wss = new WebSocketServer({ server: http, autoPong: options.mute !== true });
  http.listen(port, "127.0.0.1");
  await once(http, "listening");
  const url = `rel://127.0.0.1:${(http.address() as AddressInfo).port}`;
  const connections: WebSocket[] = [];
  const messages: Buffer[] = [];
  wss.on("connection", (ws) => {
    connections.push(ws);
    ws.on("error", () => {});
    ws.on("message", (data: Buffer) => {
      messages.push(data);
      if (parseRelayMessage(data).kind === "auth") {
        options.beforeAnswer?.(ws, url);
        if (ws.readyState === ws.OPEN) ws.send(encodeAuthResponse(url));
      } else {
        options.onMessage?.(data);
      }
    });
  });
  return {
    url,
    connections,
    messages,
    port: (http.address() as AddressInfo).port,
    async [Symbol.asyncDispose]() {
      for (const ws of connections) ws.terminate();
      await new Promise<void>((resolve) => http.close(() => resolve()));
    },
  };
}
