import assert from "node:assert/strict";
import { describe, test } from "node:test";
import { setTimeout as pause } from "node:timers/promises";
import { PrivateKey } from "#base/keys.ts";
import { SYSTEM_PYTHON } from "../../scripts/system-packages.ts";
import { PortsHost } from "./external-ports-lab.ts";
import { delivered, Judge, Lab, missingForLab, OurDevice, ping } from "./wireguard-lab.ts";

const missing = missingForLab();
const options = missing === undefined ? { timeout: 20_000 } : { skip: missing };
const GO_PORT = 51821;

/** A binding request of RFC 8489 without attributes, and with a number to tell it apart. */
function stun(number: number, type = 0x0001): string {
  const out = Buffer.alloc(20);
  out.writeUInt16BE(type, 0);
  out.writeUInt32BE(0x2112a442, 4);
  out.writeUInt32BE(number, 16);
  return out.toString("base64");
}

const stunNumber = (datagram: string): number => Buffer.from(datagram, "base64").readUInt32BE(16);

describe("the port of wireguard-go, shared by raw sockets", missing === undefined ? {} : { skip: missing }, () => {
  for (const [family, there, here] of [
    ["IPv4", "10.77.0.2", "10.77.0.1"],
    ["IPv6", "[fd77::2]", "[fd77::1]"],
  ] as const)
    test(`STUN comes and goes, and handshakes reach both, over ${family}`, options, async () => {
      await using lab = await Lab.create();
      const judge = await Judge.start(lab, ["10.98.0.1/24"], GO_PORT);
      const device = await OurDevice.start(lab, ["10.98.0.2/24"]);
      const [shared, remote] = [new PortsHost(lab, lab.there), new PortsHost(lab, lab.here)];
      await shared.request({ op: "raw", port: GO_PORT });
      const target = `${there}:${GO_PORT}`;

      await remote.request({ op: "udp", port: 3478, datagram: stun(1), to: target });
      const [request] = await shared.waitFor("stun", 1);
      assert.deepEqual([request!.datagram, request!.from, request!.to], [stun(1), `${here}:3478`, target]);
      assert.equal(await shared.request({ op: "send", datagram: stun(2, 0x0101), to: request!.from! }), undefined);
      const [answer] = await remote.waitFor("udp", 1);
      assert.deepEqual([answer!.datagram, answer!.from], [stun(2, 0x0101), target]);
      // Any length has a right checksum: the receiving kernel looks.
      for (const bytes of [0, 1, 2, 3, 1399, 1400]) {
        const datagram = Buffer.alloc(bytes, 0xa7).toString("base64");
        const before = remote.of("udp").length;
        assert.equal(await shared.request({ op: "send", datagram, to: request!.from!, from: target }), undefined);
        assert.equal((await remote.waitFor("udp", before + 1)).at(-1)!.datagram, datagram);
      }

      await judge.setPeer(device.publicKey, { allowedIps: ["10.98.0.2/32"] });
      await device.request({ op: "setPeer", key: judge.publicKey, mode: "awake", allowedIps: ["10.98.0.1/32"] });
      await device.request({ op: "setPath", key: judge.publicKey, path: target });
      await device.request({ op: "initiate", key: judge.publicKey, paths: [target] });
      await device.waitFor("established");
      const [initiation] = await shared.waitFor("handshake", 1);
      assert.equal(Buffer.from(initiation!.datagram!, "base64").length, 148);
      assert.deepEqual([initiation!.from, initiation!.to], [`${here}:${device.listenPort}`, target]);
      const woken = ((await shared.request({ op: "counters" })) as Record<string, number>)["port-wake-ups"];
      const pings = ["-c", "50", "-i", "0.005", "10.98.0.1"];
      assert.equal(await delivered(device, 50, () => ping(lab, lab.here, ...pings)), 50);
      const { "port-wake-ups": wokenByData } = (await shared.request({ op: "counters" })) as Record<string, number>;
      assert.equal(wokenByData, woken, "data wakes nobody");
      await Promise.all([shared.close(), remote.close(), device.close()]);
    });

  test("what is not for the port, or from this machine's loopback, is not seen", options, async () => {
    await using lab = await Lab.create();
    await Judge.start(lab, ["10.98.0.1/24"], GO_PORT);
    const [shared, remote] = [new PortsHost(lab, lab.there), new PortsHost(lab, lab.here)];
    await shared.request({ op: "raw", port: GO_PORT });
    await shared.request({ op: "udp", port: 4000, datagram: stun(1), to: `127.0.0.1:${GO_PORT}` });
    await shared.request({ op: "udp", port: 4000, datagram: stun(2), to: `[::1]:${GO_PORT}` });
    for (const there of ["10.77.0.2", "[fd77::2]"]) {
      await remote.request({ op: "udp", port: 4000, datagram: stun(3), to: `${there}:${GO_PORT + 1}` });
      await remote.request({ op: "udp", port: 4000, datagram: "bmI=", to: `${there}:${GO_PORT}` });
      await remote.request({ op: "udp", port: 4000, datagram: stun(4), to: `${there}:${GO_PORT}` });
    }
    await shared.waitFor("stun", 2);
    assert.deepEqual(
      shared.of("stun").map(({ datagram }) => stunNumber(datagram!)),
      [4, 4],
    );

    // The device takes another port.
    await shared.request({ op: "setPort", port: GO_PORT + 1 });
    for (const there of ["10.77.0.2", "[fd77::2]"]) {
      await remote.request({ op: "udp", port: 4000, datagram: stun(5), to: `${there}:${GO_PORT}` });
      await remote.request({ op: "udp", port: 4000, datagram: stun(6), to: `${there}:${GO_PORT + 1}` });
    }
    await shared.waitFor("stun", 4);
    assert.deepEqual(
      shared
        .of("stun")
        .slice(2)
        .map(({ datagram }) => stunNumber(datagram!)),
      [6, 6],
    );
    assert.equal(await shared.request({ op: "send", datagram: stun(7), to: "10.77.0.1:4000" }), undefined);
    assert.equal((await remote.waitFor("udp", 1))[0]!.from, `10.77.0.2:${GO_PORT + 1}`);
    await Promise.all([shared.close(), remote.close()]);
  });

  test(
    "where there is no way, the error is named; where there are two addresses, one can be chosen",
    options,
    async () => {
      await using lab = await Lab.create();
      await lab.ip(lab.there, "addr", "add", "10.77.0.9/24", "dev", "wire");
      await lab.ip(lab.there, "addr", "add", "fd77::9/64", "dev", "wire", "nodad");
      const [shared, remote] = [new PortsHost(lab, lab.there), new PortsHost(lab, lab.here)];
      await shared.request({ op: "raw", port: GO_PORT });
      const datagram = stun(1);
      for (const to of ["203.0.113.1:9", "[2001:db8::1]:9"])
        assert.equal(await shared.request({ op: "send", datagram, to }), "ENETUNREACH");
      assert.equal(await shared.request({ op: "send", datagram, to: "10.77.0.1:0" }), "EINVAL");
      assert.equal(
        await shared.request({ op: "send", datagram, to: "10.77.0.1:9", from: `[fd77::9]:${GO_PORT}` }),
        "EAFNOSUPPORT",
      );
      for (const [here, from] of [
        ["10.77.0.1", "10.77.0.9"],
        ["[fd77::1]", "[fd77::9]"],
      ] as const) {
        // Makes the socket that receives.
        await remote.request({ op: "udp", port: 4000, datagram: stun(0), to: `${here}:4001` });
        const before = remote.of("udp").length;
        const message = { op: "send", datagram, to: `${here}:4000`, from: `${from}:${GO_PORT}` } as const;
        assert.equal(await shared.request(message), undefined);
        assert.equal((await remote.waitFor("udp", before + 1)).at(-1)!.from, `${from}:${GO_PORT}`);
      }
      await Promise.all([shared.close(), remote.close()]);
    },
  );

  test("messages that were sent as one, and come as one, are told one by one", options, async () => {
    await using lab = await Lab.create();
    const shared = new PortsHost(lab, lab.there);
    await shared.request({ op: "raw", port: GO_PORT });
    const three = [1, 2, 3].map((number) => Buffer.from(stun(number), "base64").toString("hex"));
    // UDP_SEGMENT (17, 103): nothing on the way between the two hosts cuts the message.
    const program = [
      "import socket, struct",
      "s = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)",
      `s.connect(("10.77.0.2", ${GO_PORT}))`,
      `s.sendmsg([bytes.fromhex("${three.join("")}")], [(17, 103, struct.pack("H", 20))])`,
    ].join("\n");
    await lab.exec(lab.here, SYSTEM_PYTHON, "-c", program);
    const told = await shared.waitFor("stun", 3);
    assert.deepEqual(
      told.map(({ datagram }) => stunNumber(datagram!)),
      [1, 2, 3],
    );
    await shared.close();
  });

  test("an idle port wakes nobody", options, async () => {
    await using lab = await Lab.create();
    const shared = new PortsHost(lab, lab.there);
    await shared.request({ op: "raw", port: GO_PORT });
    await shared.request({ op: "ends", kind: "loopback-addresses", devicePort: GO_PORT });
    await shared.request({ op: "open", key: PrivateKey.generate().publicKey });
    const wakeUps = async (): Promise<number> =>
      ((await shared.request({ op: "counters" })) as Record<string, number>)["port-wake-ups"]!;
    await pause(200);
    const before = await wakeUps();
    await pause(500);
    assert.equal(await wakeUps(), before);
    await shared.close();
  });
});
