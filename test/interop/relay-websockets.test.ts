import assert from "node:assert/strict";
import { test } from "node:test";
import { PublicKey } from "#base/keys.ts";
import { silentLogger } from "#base/log.ts";
import { createRelayToken, relayTokenKey } from "#base/relay-token.ts";
import { systemClock } from "#base/time.ts";
import { RelayClient, type RelayClientEvents } from "#relay/client/relay-client.ts";
import { PeerId } from "#relay/protocol/peer-id.ts";
import { listenRelay } from "#relay/server/relay-port.ts";
import { RelayServer } from "#relay/server/relay-server.ts";
import { missingPython, startJudge } from "./python.ts";

const skip = missingPython({ "websockets.legacy.client": "python3-websockets" }) ?? false;
const SECRET = "shared between relay and management";
const deps = { clock: systemClock, log: silentLogger };
const perchKey = PublicKey.fromBytes(new Uint8Array(32).fill(7));
const judgeKey = PublicKey.fromBytes(new Uint8Array(32).fill(8));
const idHex = (key: PublicKey): string => PeerId.toBytes(PeerId.of(key)).toString("hex");

function client(key: PublicKey, peer: PublicKey, url: string) {
  const relay = new RelayClient(deps, { key });
  relay.registerPeer(peer);
  relay.setToken(createRelayToken(SECRET, Date.now() / 1000 + 600));
  const once = <Name extends keyof RelayClientEvents>(name: Name): Promise<RelayClientEvents[Name]> =>
    new Promise((resolve) => {
      const off = relay.events.on(name, (event) => {
        off();
        resolve(event);
      });
    });
  const connected = once("home");
  relay.setServers([url]);
  return { relay, once, connected, [Symbol.asyncDispose]: () => relay.close() };
}

test("an agent built on python3-websockets works with the Perch relay and a Perch agent", { skip }, async () => {
  let server: RelayServer | undefined;
  await using port = await listenRelay(() => server!);
  const url = `rel://127.0.0.1:${port.port}`;
  server = new RelayServer(deps, { instanceUrl: url, tokenKey: relayTokenKey(SECRET), healthIntervalMs: 300 });
  await using perch = client(perchKey, judgeKey, url);
  assert.equal((await perch.connected).connected, true);
  await using judge = startJudge("relay_judge.py", "agent", `ws://127.0.0.1:${port.port}/relay`, SECRET, judgeKey);
  const sooner = new Set<string>();
  /** The next message that is not one of the health checks in between. */
  const message = async (): Promise<unknown> => {
    for (;;) {
      const line = (await judge.next()) as { type?: number };
      if (line.type !== 5) return line;
      sooner.add("health check");
    }
  };
  assert.deepEqual(await message(), { extensions: 0, subprotocol: null });
  assert.deepEqual(await message(), { version: 1, type: 7, rest: Buffer.from(url).toString("hex") });
  judge.say(`subscribe ${idHex(perchKey)}`);
  assert.deepEqual(await message(), { version: 1, type: 10, rest: idHex(perchKey) });

  const received = perch.once("datagram");
  judge.say(`send ${idHex(perchKey)} 0400aa`);
  const { from, datagram } = await received;
  assert.equal(from, judgeKey);
  assert.equal(Buffer.from(datagram).toString("hex"), "0400aa");
  const pieces = perch.once("datagram");
  judge.say(`fragments ${idHex(perchKey)} ${"0b".repeat(300)}`);
  assert.equal((await pieces).datagram.length, 300);

  assert.ok(perch.relay.send(judgeKey, Buffer.from("01ff", "hex")));
  assert.deepEqual(await message(), { version: 1, type: 3, rest: `${idHex(perchKey)}01ff` });
  const long = Buffer.alloc(8782, 4);
  assert.ok(perch.relay.send(judgeKey, long));
  assert.deepEqual(await message(), { version: 1, type: 3, rest: idHex(perchKey) + long.toString("hex") });
  for (let i = 0; i < 50; i++) assert.ok(perch.relay.send(judgeKey, Buffer.of(4, i)));
  for (let i = 0; i < 50; i++)
    assert.deepEqual(await message(), {
      version: 1,
      type: 3,
      rest: idHex(perchKey) + Buffer.of(4, i).toString("hex"),
    });

  const presence = perch.once("presence");
  perch.relay.subscribe([judgeKey]);
  assert.deepEqual(await presence, { peer: judgeKey, online: true, server: url });
  while (!sooner.has("health check")) await Promise.race([message(), new Promise((done) => setTimeout(done, 400))]);
  const gone = perch.once("presence");
  judge.say("close");
  assert.deepEqual(await gone, { peer: judgeKey, online: false, server: url });
  await server.close();
});

test("Perch agents talk through a relay built on python3-websockets", { skip }, async () => {
  await using judge = startJudge("relay_judge.py", "server", SECRET);
  const { port } = (await judge.next()) as { port: number };
  const url = `rel://127.0.0.1:${port}`;
  await using a = client(perchKey, judgeKey, url);
  await a.connected;
  await using b = client(judgeKey, perchKey, url);
  await b.connected;
  for (let i = 0; i < 2; i++) assert.deepEqual(await judge.next(), { path: "/relay", ok: true, offered: false });
  const received = b.once("datagram");
  assert.ok(a.relay.send(judgeKey, Buffer.from("0102", "hex")));
  const { from, datagram, server } = await received;
  assert.deepEqual([from, Buffer.from(datagram).toString("hex"), server], [perchKey, "0102", url]);
  const presence = a.once("presence");
  a.relay.subscribe([judgeKey]);
  assert.deepEqual(await presence, { peer: judgeKey, online: true, server: url });
  judge.say("check");
  assert.deepEqual(await judge.next(), { healthCheck: true });
  assert.deepEqual(await judge.next(), { healthCheck: true });
  await a.relay.close();
  assert.deepEqual(await judge.next(), { saidClose: true });
});
