import assert from "node:assert/strict";
import { createSocket, type RemoteInfo } from "node:dgram";
import { once } from "node:events";
import { test } from "node:test";
import { parseIp } from "#base/ip.ts";
import { Errno } from "./errno.ts";
import { closeUdpPair, openUdpPair } from "./udp-linux.ts";
import { sendDatagram } from "./udp-send.ts";

test("a datagram leaves from the pinned local address, in both families", async () => {
  const pair = openUdpPair({ port: 0 });
  try {
    for (const [type, address, from] of [
      ["udp4", "127.0.0.1", "127.0.0.7"],
      ["udp6", "::1", "::1"],
    ] as const) {
      if (type === "udp6" && pair.v6 < 0) continue;
      const receiver = createSocket(type);
      try {
        receiver.bind(0, address);
        await once(receiver, "listening");
        const arrived = once(receiver, "message");
        const to = { address: parseIp(address), port: receiver.address().port };
        const fd = type === "udp4" ? pair.v4 : pair.v6;
        assert.equal(sendDatagram(fd, new Uint8Array([7]), to, parseIp(from)), 0);
        const [message, source] = (await arrived) as [Buffer, RemoteInfo];
        assert.deepEqual([...message], [7]);
        assert.equal(source.address, from);
        assert.equal(source.port, pair.port);
      } finally {
        receiver.close();
      }
    }
  } finally {
    closeUdpPair(pair);
  }
});

test("a failed send returns the error number", () => {
  const pair = openUdpPair({ port: 0 });
  try {
    const to = { address: parseIp("127.0.0.1"), port: 9 };
    assert.equal(sendDatagram(pair.v4, new Uint8Array(70_000), to), Errno.EMSGSIZE);
  } finally {
    closeUdpPair(pair);
  }
});
