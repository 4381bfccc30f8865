import assert from "node:assert/strict";
import { createSocket } from "node:dgram";
import { once } from "node:events";
import { test } from "node:test";
import { parseEndpoint } from "#base/ip.ts";
import { libc, NetError } from "./libc.ts";
import { decodeSockaddr, encodeSockaddr } from "./sockaddr.ts";
import { closeUdpPair, openUdpPair } from "./udp-linux.ts";

test("both families share one free port", () => {
  const pair = openUdpPair({ port: 0 });
  try {
    assert.ok(pair.port > 0);
    assert.ok(pair.v4 >= 0);
    if (pair.v6 >= 0) assert.notEqual(pair.v6, pair.v4);
  } finally {
    closeUdpPair(pair);
  }
});

test("a taken port is named, in either family", async () => {
  for (const type of ["udp4", "udp6"] as const) {
    const other = createSocket({ type, ipv6Only: type === "udp6" });
    other.bind(0);
    await once(other, "listening");
    const { port } = other.address();
    assert.throws(
      () => openUdpPair({ port }),
      (error) => error instanceof NetError && error.code === "port-taken" && error.message.includes(String(port)),
    );
    await new Promise<void>((done) => other.close(done));
  }
});

test("a datagram sent with an encoded address arrives from the pair's port", async () => {
  const pair = openUdpPair({ port: 0 });
  const other = createSocket("udp4");
  try {
    other.bind(0, "127.0.0.1");
    await once(other, "listening");
    const to = encodeSockaddr(parseEndpoint(`127.0.0.1:${other.address().port}`));
    const arrived = once(other, "message");
    const payload = new Uint8Array([1, 2, 3]);
    assert.equal(libc().sendto(pair.v4, payload, 3, 0x40, to, to.length), 3);
    const [message, from] = (await arrived) as [Buffer, { port: number }];
    assert.deepEqual([...message], [1, 2, 3]);
    assert.equal(from.port, pair.port);
  } finally {
    closeUdpPair(pair);
    other.close();
  }
});

test("socket addresses survive encoding and decoding", () => {
  for (const text of ["192.0.2.1:51820", "[2001:db8::1]:1", "0.0.0.0:65535"]) {
    assert.deepEqual(decodeSockaddr(encodeSockaddr(parseEndpoint(text))), parseEndpoint(text));
  }
  assert.equal(decodeSockaddr(new Uint8Array(16)), undefined);
});
