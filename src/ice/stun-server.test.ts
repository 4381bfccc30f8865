import assert from "node:assert/strict";
import { createSocket, type Socket } from "node:dgram";
import { once } from "node:events";
import { test } from "node:test";
import { parseIp } from "#base/ip.ts";
import { silentLogger } from "#base/log.ts";
import vectors from "../../test/vectors/stun.json" with { type: "json" };
import { encodeStun, parseStun, TransactionId, verifyStunFingerprint } from "./stun-message.ts";
import { StunServer, StunServerError } from "./stun-server.ts";

async function client(type: "udp4" | "udp6", address: string): Promise<Socket & AsyncDisposable> {
  const socket = createSocket(type);
  socket.bind(0, address);
  await once(socket, "listening");
  return Object.assign(socket, {
    [Symbol.asyncDispose]: () => new Promise<void>((resolve) => socket.close(() => resolve())),
  });
}

async function ask(socket: Socket, datagram: Uint8Array, port: number, address: string): Promise<Uint8Array> {
  socket.send(datagram, port, address);
  const [answer] = (await once(socket, "message", { signal: AbortSignal.timeout(5000) })) as [Buffer];
  return answer;
}

test("IPv4 and IPv6 clients of a dual-stack socket learn their address and port", async () => {
  await using server = new StunServer({ log: silentLogger }, { listen: [{ address: parseIp("::"), port: 0 }] });
  await server.start();
  const port = server.addresses[0]!.port;
  for (const [type, address] of [
    ["udp4", "127.0.0.1"],
    ["udp6", "::1"],
  ] as const) {
    await using socket = await client(type, address);
    const bytes = await ask(socket, Buffer.from(vectors.responder.request, "hex"), port, address);
    const answer = parseStun(bytes);
    assert.ok(answer);
    assert.equal(answer.class, "success");
    assert.equal(answer.transactionId, vectors.responder.transactionId);
    assert.deepEqual(answer.xorMappedAddress, { address, port: socket.address().port });
    assert.ok(verifyStunFingerprint(answer));
    // XOR-MAPPED-ADDRESS and FINGERPRINT, nothing else.
    assert.equal(bytes.length, type === "udp4" ? 40 : 52);
  }
});

test("everything but a Binding request is ignored and the next request is answered", async () => {
  await using server = new StunServer({ log: silentLogger }, { listen: [{ address: parseIp("127.0.0.1"), port: 0 }] });
  await server.start();
  const port = server.addresses[0]!.port;
  await using socket = await client("udp4", "127.0.0.1");
  const request = Buffer.from(vectors.responder.request, "hex");
  const noise: Uint8Array[] = [
    Buffer.alloc(0),
    Buffer.from("nb"),
    request.subarray(0, 19),
    Buffer.alloc(1501, request),
    encodeStun({ class: "indication", transactionId: TransactionId.create() }),
    encodeStun({ class: "success", transactionId: TransactionId.create() }),
    encodeStun({ class: "request", method: 3, transactionId: TransactionId.create() }),
    Buffer.concat([Buffer.from("0001000421", "hex"), request.subarray(5)]),
  ];
  for (const datagram of noise) socket.send(datagram, port, "127.0.0.1");
  // Attributes are not evaluated: unknown ones that must be understood, an integrity nobody can check.
  const odd = Buffer.from(encodeStun({ class: "request", transactionId: TransactionId.create() }, { password: "x" }));
  const last = parseStun(await ask(socket, odd, port, "127.0.0.1"));
  assert.equal(last?.transactionId, parseStun(odd)?.transactionId);
  assert.deepEqual(server.counters(), { answered: 1, ignored: noise.length });
});

test("a port that is taken is an error and leaves nothing open", async () => {
  const listen = [{ address: parseIp("127.0.0.1"), port: 0 }];
  await using first = new StunServer({ log: silentLogger }, { listen });
  await first.start();
  const second = new StunServer({ log: silentLogger }, { listen: [...listen, ...first.addresses] });
  await assert.rejects(second.start(), (error) => error instanceof StunServerError && error.code === "stun-listen");
  assert.deepEqual(second.addresses, []);
  await second.close();
});
